//! Canvas where no capture leads: options, failures deep in a workflow, nonsense.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod replay;

use proptest::prelude::*;
use replay::{Replay, call, read, sends, signature, with_sender};
use serde_json::Value;
use umbel_protocol::canvas::{
    Aftermath, ChordEnd, ChordPart, FollowUp, PartState, Signature, after_failure, after_revoked, after_success,
    complete_chord, fail_chord, send, start,
};
use umbel_protocol::json::Json;
use umbel_protocol::result::Failure;

#[test]
fn options_become_fields_of_the_message() {
    let parent = read(&Replay::of("canvas-01-chain-run").sent[0]);
    let with = signature(
        r#"{"task": "t", "args": [], "kwargs": {"a": 1}, "options": {"queue": "q", "priority": 12, "countdown": 1.5,
            "expires": 60, "time_limit": 30, "soft_time_limit": 25.5, "shadow": "s", "ignore_result": true,
            "headers": {"x-trace": "abc"}, "stamped_headers": ["tenant"], "tenant": "acme", "task_id": "own",
            "link": {"task": "cb"}, "link_error": [{"task": "eb"}], "serializer": "pickle"},
            "subtask_type": null, "immutable": false, "chord_size": null}"#,
    );
    let aftermath = with_sender(|sender| send(&parent, &with, sender)).unwrap();
    let ours = sends(&aftermath).remove(0);
    let headers = &ours["headers"];
    assert_eq!(headers["id"], "own");
    assert_eq!(headers["eta"], "1970-01-01T00:00:01.500000+00:00");
    assert_eq!(headers["expires"], "1970-01-01T00:01:00+00:00");
    assert_eq!(headers["timelimit"], serde_json::json!([30, 25.5]));
    assert_eq!(headers["shadow"], "s");
    assert_eq!(headers["x-trace"], "abc");
    assert_eq!(headers["stamped_headers"], serde_json::json!(["tenant"]));
    assert_eq!(headers["stamps"], serde_json::json!({"tenant": "acme"}));
    assert_eq!(headers["parent_id"], parent.id);
    assert_eq!(ours["properties"]["priority"], 9);
    assert_eq!(ours["properties"]["expiration"], "60000");
    assert_eq!(ours["properties"]["delivery_info"]["routing_key"], "q");
    assert_eq!(ours["body"][2]["callbacks"], serde_json::json!([{"task": "cb"}]));
    assert_eq!(ours["body"][2]["errbacks"], serde_json::json!([{"task": "eb"}]));
    // Unknown keys survive.
    assert!(
        with.to_json()
            .as_str()
            .ends_with(r#""immutable": false, "chord_size": null}"#)
    );
    // Without a queue of its own it goes where the running task came from.
    let aftermath = with_sender(|sender| send(&parent, &call("t", "[]"), sender)).unwrap();
    assert_eq!(
        sends(&aftermath)[0]["properties"]["delivery_info"]["routing_key"],
        "celery"
    );
    for bad in [r#"{"countdown": "soon"}"#, r#"{"eta": "soon"}"#, r#"{"expires": []}"#] {
        let mut bad_options = call("t", "[]");
        for (name, value) in Json::parse(bad).unwrap().entries() {
            bad_options.options.set(&name, value);
        }
        with_sender(|sender| send(&parent, &bad_options, sender)).unwrap_err();
    }
}

#[test]
fn a_named_exchange_is_left_to_the_caller() {
    let mut named = call("t", "[]");
    named.options.set("exchange", Json::string("news"));
    named.options.set("routing_key", Json::string("sport.uk"));
    let aftermath = with_sender(|sender| start(&named, "celery", sender)).unwrap();
    let FollowUp::Send(out) = &aftermath.steps[0] else {
        panic!("a message")
    };
    assert_eq!(out.exchange.as_deref(), Some("news"));
    assert_eq!(out.task.queue, "sport.uk");
}

#[test]
fn a_failed_chain_fails_the_members_of_its_groups_and_their_chord() {
    let first = &Replay::of("canvas-33-chord-with-group-member").sent[0];
    let cause = Failure::new("builtins", "ValueError", "x");
    let aftermath = with_sender(|sender| after_failure(&read(first), &cause, None, sender)).unwrap();
    let parts: Vec<String> = aftermath
        .steps
        .iter()
        .filter_map(|step| match step {
            FollowUp::Part(part) => Some(part.member()),
            _ => None,
        })
        .collect();
    assert_eq!(
        parts,
        [
            "86c82a63-35f4-42bd-8213-2d5ac2e306a4:0",
            "e85f4cf8-527f-4b2d-8f63-93b49d2cf65d:1"
        ]
    );
    let is_stored = |step: &&FollowUp| matches!(step, FollowUp::Store(_));
    assert_eq!(aftermath.steps.iter().filter(is_stored).count(), 3);
}

#[test]
fn a_failed_inner_chord_tells_the_outer_one() {
    let replay = Replay::of("canvas-23-chord-nested");
    let member = read(&replay.sent[0]);
    let cause = Failure::new("builtins", "ValueError", "x");
    let part = ChordPart::of(&member, PartState::Failure, &cause.to_json()).unwrap();
    let end =
        with_sender(|sender| complete_chord(&member, &part, std::slice::from_ref(&part.json), None, sender)).unwrap();
    let ChordEnd::Failed(aftermath) = end else {
        panic!("it failed")
    };
    let outer = aftermath.steps.iter().find_map(|step| match step {
        FollowUp::Part(part) => Some((part.group.clone(), part.member())),
        _ => None,
    });
    let body = "bd0e74ee-a4a7-4d32-9b26-d11300b2ddc6:0".to_owned();
    assert_eq!(outer, Some(("68e7761f-0e46-41bf-bb25-3328d364e01b".to_owned(), body)));
}

/// One of them a function here: it is called with all that is known, before the others are sent.
#[test]
fn errbacks_that_are_functions_are_called_and_the_others_sent() {
    let mut message = read(&Replay::of("canvas-07-errback-new-style").sent[0]);
    let embed = r#"{"callbacks": null, "errbacks": [{"task": "sent", "args": [1]}, {"task": "called", "args": [2]},
        {"task": "celery.chain", "kwargs": {"tasks": [{"task": "called"}]}}], "chain": null, "chord": null}"#;
    message.embed = Some(Json::parse(embed).unwrap());
    let cause = Failure::new("builtins", "ValueError", "x");
    let aftermath = with_sender(|sender| {
        sender.is_function = &|name| name == "called";
        after_failure(&message, &cause, Some("tb"), sender)
    })
    .unwrap();
    let [FollowUp::Call(called), FollowUp::Send(sent), FollowUp::Send(chain)] = aftermath.steps.as_slice() else {
        panic!("a call and two messages: {:?}", aftermath.steps)
    };
    assert_eq!(
        (called.signature.task.as_str(), called.signature.args.as_str()),
        ("called", "[2]")
    );
    assert_eq!((&called.id, called.task.as_str()), (&message.id, "proj.fail"));
    assert_eq!((&called.failure, called.traceback.as_deref()), (&cause, Some("tb")));
    assert_eq!(sent.task.args.as_str(), format!("[\"{}\", 1]", message.id));
    assert_eq!(chain.task.task, "called", "a workflow is sent, whatever its tasks are");
}

/// Celery links the errbacks of a chord to the chords in its header, too. The inner one has called them: for the outer
/// one, whoever notices its end, only those are called that the inner one did not have.
#[test]
fn an_errback_of_nested_chords_is_called_once() {
    let replay = Replay::of("canvas-23-chord-nested");
    let mut member = read(&replay.sent[0]);
    let chord = member.embed.as_ref().and_then(|embed| embed.get("chord")).unwrap();
    let mut inner = Signature::parse(&chord).unwrap();
    let mut outer = Signature::parse(inner.options.get("chord").unwrap()).unwrap();
    let (both, outer_only) = (call("both", "[]").to_json(), call("outer", "[]").to_json());
    outer.options.set("link_error", Json::of(&[&both, &outer_only]));
    inner.options.set("link_error", Json::of(&[&both]));
    inner.options.set("chord", outer.to_json());
    member.embed = Some(Json::of(&serde_json::json!({"chord": inner.to_json()})));
    let failed = |part: &ChordPart| {
        let end = with_sender(|sender| complete_chord(&member, part, std::slice::from_ref(&part.json), None, sender));
        let Ok(ChordEnd::Failed(aftermath)) = end else {
            panic!("it failed")
        };
        let names: Vec<String> = sends(&aftermath)
            .iter()
            .map(|sent| sent["headers"]["task"].as_str().unwrap().to_owned())
            .collect();
        (aftermath, names)
    };
    let cause = Failure::new("builtins", "ValueError", "x");
    let part = ChordPart::of(&member, PartState::Failure, &cause.to_json()).unwrap();
    let (aftermath, called) = failed(&part);
    assert_eq!(called, ["both"]);
    let part = aftermath.steps.iter().find_map(|step| match step {
        FollowUp::Part(part) => Some(part),
        _ => None,
    });
    assert_eq!(failed(part.unwrap()).1, ["outer"]);
}

#[test]
fn the_members_of_a_group_body_fail_with_the_error_itself() {
    let replay = Replay::of("canvas-35-chord-group-body");
    let member = read(&replay.sent[0]);
    let cause = Failure::new("builtins", "ValueError", "x");
    let part = ChordPart::of(&member, PartState::Failure, &cause.to_json()).unwrap();
    let end =
        with_sender(|sender| complete_chord(&member, &part, std::slice::from_ref(&part.json), None, sender)).unwrap();
    let ChordEnd::Failed(aftermath) = end else {
        panic!("it failed")
    };
    let stored: Vec<(String, String)> = aftermath
        .steps
        .iter()
        .filter_map(|step| match step {
            FollowUp::Store(stored) => {
                let document: Value = serde_json::from_slice(&stored.document).unwrap();
                Some((
                    stored.id.clone(),
                    document["result"]["exc_type"].as_str().unwrap().to_owned(),
                ))
            }
            _ => None,
        })
        .collect();
    let ids = [
        "d1783b50-d391-4c6a-a835-993bb1395542",
        "ff9d39b1-8f58-448d-8cd7-deba60e5598d",
        "9834b359-b9b7-4fbd-b22f-e8fe0faba8ff",
    ];
    assert_eq!(stored, ids.map(|id| (id.to_owned(), "ValueError".to_owned())));
}

#[test]
fn a_chord_that_cannot_go_on_fails() {
    let replay = Replay::of("canvas-22-chord-body-errback");
    let member = read(&replay.sent[0]);
    let part = ChordPart::of(&member, PartState::Success, &Json::of(&1)).unwrap();
    // A part of some other program.
    let strange = Json::parse("[1]").unwrap();
    with_sender(|sender| complete_chord(&member, &part, &[strange], None, sender)).unwrap_err();
    let aftermath = with_sender(|sender| fail_chord(&member, &part, "a part is lost", sender)).unwrap();
    assert_eq!(sends(&aftermath)[0]["headers"]["task"], "proj.errback_old");
    let stored = aftermath.steps.iter().find_map(|step| match step {
        FollowUp::Store(stored) => Some(stored),
        _ => None,
    });
    let stored = stored.unwrap();
    assert_eq!(stored.id, "015bd58d-5a98-4133-8b5f-e5390ca439c8");
    let document: Value = serde_json::from_slice(&stored.document).unwrap();
    assert_eq!(document["result"]["exc_message"][0], "a part is lost");
    assert_eq!(document["children"].as_array().unwrap().len(), 1);
}

#[test]
fn a_revoked_member_returns_its_part() {
    let member = read(&Replay::of("canvas-20-chord-run").sent[1]);
    let aftermath = after_revoked(&member, "revoked");
    let [FollowUp::Part(part)] = aftermath.steps.as_slice() else {
        panic!("one part")
    };
    assert_eq!(
        part.json.as_str(),
        r#"[1, "51f9f260-b238-440e-bb2c-9de9c5654596", "REVOKED", {"exc_type": "TaskRevokedError", "exc_message": ["revoked"], "exc_module": "celery.exceptions"}]"#
    );
    assert_eq!(
        after_revoked(&read(&Replay::of("canvas-01-chain-run").sent[0]), "expired"),
        Aftermath::default()
    );
}

#[test]
fn foreign_nonsense_is_refused_and_expansion_is_bounded() {
    let mut message = read(&Replay::of("canvas-01-chain-run").sent[0]);
    for embed in [
        r#"{"callbacks": "x"}"#,
        r#"{"callbacks": [1]}"#,
        r#"{"chain": [{}]}"#,
        r#"{"chain": [{"task": "t", "args": {}}]}"#,
        r#"{"chain": [{"task": "celery.group", "kwargs": {"tasks": 5}}]}"#,
        r#"{"chain": [{"task": "celery.chord", "kwargs": {"header": []}}]}"#,
        r#"{"chain": [{"task": "celery.chain", "kwargs": {"tasks": []}}]}"#,
    ] {
        message.embed = Some(Json::parse(embed).unwrap());
        let refused = with_sender(|sender| after_success(&message, &Json::null(), sender)).unwrap_err();
        assert_eq!(refused.id.as_deref(), Some(&*message.id), "{embed}");
    }
    let member = r#"{"task": "t"}"#;
    let group = format!(
        r#"{{"callbacks": [{{"task": "celery.group", "kwargs": {{"tasks": [{}]}}}}]}}"#,
        vec![member; 1000].join(", ")
    );
    message.embed = Some(Json::parse(&group).unwrap());
    let large = Json::string(&"x".repeat(100_000));
    let refused = with_sender(|sender| after_success(&message, &large, sender)).unwrap_err();
    assert_eq!(refused.reason.label(), "size");
}

#[test]
fn a_large_body_in_many_members_is_refused_before_it_is_copied() {
    let mut message = read(&Replay::of("canvas-01-chain-run").sent[0]);
    let text = "x".repeat(400_000);
    let body = format!(r#"{{"task": "t", "args": ["{text}"]}}"#);
    let many = vec![r#"{"task": "t"}"#; 500].join(", ");
    for header in [
        format!("[{many}]"),
        // All in one member.
        format!(
            r#"[{{"task": "celery.chain", "kwargs": {{"tasks": [{{"task": "t"}},
            {{"task": "celery.group", "kwargs": {{"tasks": [{many}]}}}}]}}}}]"#
        ),
    ] {
        let embed = format!(
            r#"{{"chain": [{{"task": "celery.chord", "kwargs": {{"header": {header}, "body": {body}, "kwargs": {{}}}}}}]}}"#
        );
        message.embed = Some(Json::parse(&embed).unwrap());
        let refused = with_sender(|sender| after_success(&message, &Json::null(), sender)).unwrap_err();
        assert_eq!(refused.reason.label(), "size");
    }
}

#[test]
fn callbacks_and_errbacks_are_linked_where_they_count() {
    let group = Signature::group(&[call("a", "[]"), call("b", "[]")]);
    let chord = Signature::chord(&group, &call("c", "[]"));
    let linked = chord
        .link(&call("after", "[]"))
        .unwrap()
        .link_error(&call("oops", "[]"))
        .unwrap();
    let aftermath = with_sender(|sender| start(&linked, "q", sender)).unwrap();
    for sent in sends(&aftermath) {
        assert_eq!(sent["body"][2]["callbacks"], Value::Null);
        assert_eq!(sent["body"][2]["chord"]["options"]["link"][0]["task"], "after");
        assert_eq!(sent["body"][2]["chord"]["options"]["link_error"][0]["task"], "oops");
    }
    let chain = Signature::chain(&[call("a", "[]"), call("b", "[]")]);
    let linked = chain
        .link(&call("after", "[]"))
        .unwrap()
        .link_error(&call("oops", "[]"))
        .unwrap();
    let sent = sends(&with_sender(|sender| start(&linked, "q", sender)).unwrap()).remove(0);
    assert_eq!(sent["body"][2]["callbacks"], Value::Null);
    assert_eq!(sent["body"][2]["errbacks"][0]["task"], "oops");
    assert_eq!(sent["body"][2]["chain"][0]["options"]["link"][0]["task"], "after");
    let map = Signature::map(&call("a", "[]"), &[Json::of(&1)]);
    let sent = sends(&with_sender(|sender| start(&map, "q", sender)).unwrap()).remove(0);
    assert_eq!(
        (&sent["headers"]["task"], &sent["body"][1]["it"]),
        (&"celery.map".into(), &serde_json::json!([1]))
    );
}

/// A signature of any shape, some of them wrong.
fn any_signature() -> impl Strategy<Value = String> {
    let args = prop_oneof![Just("[]"), Just("[1]"), Just("null"), Just("{}"), Just("[NaN]")];
    let options = prop_oneof![
        Just("{}"),
        Just(r#"{"task_id": "own", "group_id": null, "chain": [{"task": "later"}]}"#),
        Just(r#"{"link": {"task": "cb"}, "link_error": [{"task": "eb"}], "chord": {"task": "c"}, "group_id": "g"}"#),
        Just(r#"{"countdown": 1e300, "expires": -1e300, "priority": "high", "time_limit": -1}"#),
        Just(r#"{"stamped_headers": ["a", 5], "a": 1, "headers": {"x": [1]}, "task_id": 7}"#),
    ];
    let leaf = (args, options).prop_map(|(args, options)| {
        format!(r#"{{"task": "t", "args": {args}, "kwargs": {{"a": 1}}, "options": {options}, "immutable": true}}"#)
    });
    leaf.prop_recursive(4, 24, 4, |inner| {
        let tasks = proptest::collection::vec(inner.clone(), 0..4).prop_map(|tasks| tasks.join(", "));
        prop_oneof![
            tasks
                .clone()
                .prop_map(|tasks| format!(r#"{{"task": "celery.chain", "kwargs": {{"tasks": [{tasks}]}}}}"#)),
            tasks
                .clone()
                .prop_map(|tasks| format!(r#"{{"task": "celery.group", "kwargs": {{"tasks": [{tasks}]}}}}"#)),
            (tasks, inner).prop_map(|(tasks, body)| {
                format!(
                    r#"{{"task": "celery.chord", "kwargs": {{"header": [{tasks}], "body": {body}, "kwargs": {{}}}}}}"#
                )
            }),
        ]
    })
}

proptest! {
    #[test]
    fn whatever_is_sent_can_be_read_and_has_an_id_of_its_own(
        callbacks in proptest::collection::vec(any_signature(), 0..3),
        chain in proptest::collection::vec(any_signature(), 0..3),
    ) {
        let mut message = read(&Replay::of("canvas-01-chain-run").sent[0]);
        let embed = format!(
            r#"{{"callbacks": [{0}], "chain": [{1}], "errbacks": [{0}], "chord": null}}"#,
            callbacks.join(", "),
            chain.join(", ")
        );
        message.embed = Some(Json::parse(&embed).unwrap());
        let cause = Failure::new("builtins", "ValueError", "x");
        let ends = [
            with_sender(|sender| after_success(&message, &Json::of(&1), sender)),
            with_sender(|sender| after_failure(&message, &cause, None, sender)),
        ];
        for aftermath in ends.into_iter().flatten() {
            let mut tags = std::collections::BTreeSet::new();
            let mut sizes = std::collections::BTreeSet::new();
            for step in &aftermath.steps {
                match step {
                    FollowUp::Send(out) => {
                        let raw = out.task.encode();
                        let sent = read(std::str::from_utf8(&raw).unwrap());
                        prop_assert_eq!(sent.parent_id.as_deref(), Some(&*message.id));
                        prop_assert!(tags.insert(out.task.delivery_tag.clone()));
                    }
                    // Each chord is started once, and waits for something.
                    FollowUp::ChordSize { group, size } => {
                        prop_assert!(*size > 0 && sizes.insert(group.clone()));
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn no_broadcast_is_too_strange_to_be_refused(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(umbel_protocol::event::parse(&payload));
        drop(umbel_protocol::control::Request::parse(&payload));
        drop(umbel_protocol::control::Reply::parse(&payload));
    }

    #[test]
    fn any_pattern_is_answered(pattern in ".{0,40}", node in ".{0,20}", is_glob: bool) {
        let request = umbel_protocol::control::Request {
            method: "ping".into(),
            arguments: Json::empty_object(),
            destination: None,
            pattern: Some(pattern),
            matcher: Some(if is_glob { "glob" } else { "pcre" }.into()),
            ticket: None,
            reply_to: None,
            clock: 0,
            expires: None,
        };
        let answered = request.addressed_to(&node);
        prop_assert!(answered.is_ok() || !is_glob);
    }
}

#[test]
fn a_chord_of_ten_thousand_is_no_trouble() {
    let members: Vec<Signature> = (0..10_000).map(|number| call("t", &format!("[{number}]"))).collect();
    let chord = Signature::chord(&Signature::group(&members), &call("sum", "[]"));
    let aftermath = with_sender(|sender| start(&chord, "q", sender)).unwrap();
    let sent = aftermath
        .steps
        .iter()
        .filter(|step| matches!(step, FollowUp::Send(_)))
        .count();
    assert_eq!((sent, aftermath.steps.len()), (10_000, 10_001));
    assert!(matches!(
        aftermath.steps[9_999],
        FollowUp::ChordSize { size: 10_000, .. }
    ));
    let FollowUp::Send(last) = &aftermath.steps[10_000] else {
        panic!("the last member")
    };
    let last = read(std::str::from_utf8(&last.task.encode()).unwrap());
    let part = ChordPart::of(&last, PartState::Success, &Json::of(&9_999)).unwrap();
    let parts: Vec<Json> = (0..10_000)
        .map(|number| Json::parse(&format!(r#"[1, "m{number}", "SUCCESS", {number}]"#)).unwrap())
        .collect();
    let end = with_sender(|sender| complete_chord(&last, &part, &parts, None, sender)).unwrap();
    let ChordEnd::Body(body) = end else {
        panic!("all succeeded")
    };
    let FollowUp::Send(body) = &body.steps[0] else {
        panic!("the body")
    };
    assert!(body.task.args.as_str().starts_with("[[0, 1, 2, 3, "));
    assert!(body.task.args.as_str().ends_with("9998, 9999]]"));
}
