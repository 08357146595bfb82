//! Canvas against captures of real Celery 5.7 (and 5.6): every task's end is replayed, and what follows must be what the
//! Python worker sent and stored.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod replay;

use std::collections::{BTreeMap, HashMap};

use replay::{Replay, assert_same, call, content, json, message, read, same, sends, with_sender};
use serde_json::Value;
use umbel_protocol::canvas::{
    Builtin, ChordKeys, FollowUp, ResultTuple, Signature, add_to_chord, builtin, replace, send, start,
};
use umbel_protocol::json::Json;

#[test]
fn what_follows_a_task_is_what_celery_sent() {
    let cases = BTreeMap::from([
        ("canvas-01-chain-run", 2),
        ("canvas-02-chain-immutable", 1),
        ("canvas-03-chain-failure", 0),
        ("canvas-04-link-one", 1),
        ("canvas-05-link-two", 2),
        ("canvas-06-errback-old-style", 1),
        ("canvas-08-errback-unregistered", 1),
        ("canvas-09-group-then-link-chain-end", 2),
        ("canvas-20-chord-run", 1),
        ("canvas-21-chord-member-fails", 0),
        ("canvas-22-chord-body-errback", 0),
        ("canvas-23-chord-nested", 2),
        ("canvas-24-chord-body-chain", 2),
        ("canvas-25-chain-group-chain", 4),
        ("canvas-26-group-of-chains-chord", 3),
        ("canvas-33-chord-with-group-member", 3),
        ("canvas-34-chord-member-retries", 1),
        ("canvas-35-chord-group-body", 2),
        ("canvas-40-chord-unordered-list", 1),
        ("compat-01-chord-celery-5.6", 1),
    ]);
    for (name, followed) in cases {
        assert_eq!(Replay::of(name).run(), followed, "{name}");
    }
}

#[test]
fn replacing_a_task_keeps_its_id() {
    let replay = Replay::of("canvas-30-replace");
    let replaced = read(&replay.sent[0]);
    let with = call("proj.add", "[3, 4]");
    let aftermath = with_sender(|sender| replace(&replaced, &with, sender)).unwrap();
    assert_same(&sends(&aftermath), &replay.sent[1..]);
    assert_eq!(sends(&aftermath)[0]["headers"]["replaced_task_nesting"], 1);
}

#[test]
fn replacing_by_a_group_collects_it_under_the_id() {
    let replay = Replay::of("canvas-31-replace-group");
    let replaced = read(&replay.sent[0]);
    let group = Signature::group(&[call("proj.add", "[0, 0]"), call("proj.add", "[1, 1]")]);
    let aftermath = with_sender(|sender| replace(&replaced, &group, sender)).unwrap();
    assert_same(&sends(&aftermath), &replay.sent[1..3]);
    assert!(
        aftermath
            .steps
            .iter()
            .any(|step| matches!(step, FollowUp::ChordSize { size: 2, .. }))
    );
    // The rest of the capture runs by itself.
    let mut replay = Replay::of("canvas-31-replace-group");
    let own = format!("celery-task-meta-{}", replaced.id);
    replay.commands.retain(|command| command.get(1) != Some(&own));
    assert_eq!(replay.run(), 1);
    let collected = read(replay.sent.last().unwrap());
    let planned = with_sender(|sender| builtin(&collected, sender)).unwrap();
    assert_eq!(planned, Some(Builtin::Returns(Json::parse("[0, 2]").unwrap())));
}

#[test]
fn a_chord_can_grow() {
    let replay = Replay::of("canvas-32-add-to-chord");
    let member = message(&replay.sent, "b7d041a3-b872-460b-9920-49970e8acbf5");
    let extra = call("proj.add", "[100, 100]");
    let aftermath = with_sender(|sender| add_to_chord(&member, &extra, sender)).unwrap();
    assert_same(&sends(&aftermath), &replay.sent[1..2]);
    let group = "be085712-6103-40c5-b75b-fdf967d2bacc".to_owned();
    assert_eq!(
        aftermath.steps[0],
        FollowUp::Extend {
            group: group.clone(),
            by: 1
        }
    );
    let key = ChordKeys::of(&group).extra;
    assert!(
        replay
            .commands
            .iter()
            .any(|command| command[0] == "INCRBY" && command[1] == key)
    );
    let outsider = read(&Replay::of("canvas-01-chain-run").sent[0]);
    with_sender(|sender| add_to_chord(&outsider, &extra, sender)).unwrap_err();
}

#[test]
fn a_task_sends_tasks() {
    let replay = Replay::of("canvas-36-task-sends-subtask");
    let parent = read(&replay.sent[0]);
    let mut ours = Vec::new();
    let mut children = Vec::new();
    for args in ["[0, 0]", "[1, 1]"] {
        let aftermath = with_sender(|sender| send(&parent, &call("proj.add", args), sender)).unwrap();
        ours.extend(sends(&aftermath));
        children.extend(aftermath.children);
    }
    for (ours, theirs) in ours.iter().zip(&replay.sent[1..]) {
        assert_same(std::slice::from_ref(ours), std::slice::from_ref(theirs));
    }
    let stored = replay.published().remove(0);
    assert_eq!(children.len(), stored["children"].as_array().unwrap().len());
}

#[test]
fn an_empty_header_starts_the_body() {
    let replay = Replay::of("canvas-37-chord-empty-header");
    let chord = Signature::chord(&Signature::group(&[]), &call("proj.tsum", "[]"));
    let aftermath = with_sender(|sender| start(&chord, "celery", sender)).unwrap();
    assert_same(&sends(&aftermath), &replay.sent);
}

#[test]
fn producers_send_what_celerys_producers_send() {
    let cases = [
        (
            "canvas-20-chord-run",
            {
                let header = Signature::group(&[call("proj.add", "[1, 1]"), call("proj.add", "[2, 2]")]);
                Signature::chord(&header, &call("proj.tsum", "[]"))
            },
            2,
        ),
        (
            "canvas-01-chain-run",
            {
                Signature::chain(&[
                    call("proj.add", "[1, 2]"),
                    call("proj.add", "[10]"),
                    call("proj.mul", "[2]"),
                ])
            },
            1,
        ),
        (
            "canvas-09-group-then-link-chain-end",
            {
                let group = Signature::group(&[call("proj.add", "[10]"), call("proj.add", "[20]")]);
                Signature::chain(&[call("proj.add", "[1, 2]"), group])
            },
            1,
        ),
        (
            "canvas-26-group-of-chains-chord",
            {
                let chain =
                    |first: &str, then: &str| Signature::chain(&[call("proj.add", first), call("proj.add", then)]);
                let header = Signature::group(&[chain("[1, 1]", "[5]"), chain("[2, 2]", "[6]")]);
                Signature::chord(&header, &call("proj.tsum", "[]"))
            },
            2,
        ),
        (
            "canvas-23-chord-nested",
            {
                let inner = Signature::group(&[call("proj.add", "[1, 1]"), call("proj.add", "[2, 2]")]);
                let inner = Signature::chord(&inner, &call("proj.tsum", "[]"));
                let header = Signature::group(&[inner, call("proj.add", "[5, 5]")]);
                Signature::chord(&header, &call("proj.tsum", "[]"))
            },
            3,
        ),
    ];
    for (name, canvas, first) in cases {
        let replay = Replay::of(name);
        let aftermath = with_sender(|sender| start(&canvas, "celery", sender)).unwrap();
        let theirs: Vec<String> = replay
            .sent
            .iter()
            .filter(|raw| read(raw).parent_id.is_none())
            .cloned()
            .collect();
        assert_eq!(theirs.len(), first, "{name}");
        let (ours, mut names) = (sends(&aftermath), HashMap::new());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            let mut theirs = content(theirs.as_bytes());
            // Our outermost options are written only when they say something.
            theirs["body"][2]["chord"]["options"]
                .as_object_mut()
                .map(|options| options.remove("add_to_parent"));
            let mut ours = ours.clone();
            ours["body"][2]["chord"]["options"]
                .as_object_mut()
                .map(|options| options.remove("add_to_parent"));
            assert!(
                same(&ours, &theirs, &mut names),
                "{name}\nours   {ours}\ntheirs {theirs}"
            );
        }
        assert_eq!(ours.len(), first, "{name}");
    }
}

#[test]
fn the_results_of_a_nested_header_are_saved_in_their_shape() {
    let replay = Replay::of("canvas-33-chord-with-group-member");
    let group = Signature::group(&[call("proj.add", "[1]"), call("proj.add", "[2]")]);
    let chain = Signature::chain(&[call("proj.add", "[1, 1]"), group]);
    let header = Signature::group(&[chain, call("proj.add", "[7, 7]")]);
    let chord = Signature::chord(&header, &call("proj.ident", "[]"));
    let aftermath = with_sender(|sender| start(&chord, "celery", sender)).unwrap();
    let saved = aftermath.steps.iter().find_map(|step| match step {
        FollowUp::SaveGroup { document, .. } => Some(json(document)),
        _ => None,
    });
    let theirs = replay.commands.iter().find(|command| command[0] == "SET").unwrap();
    let theirs: Value = serde_json::from_str(&theirs[2]).unwrap();
    assert!(same(&saved.unwrap(), &theirs, &mut HashMap::new()));
    assert!(
        aftermath
            .steps
            .iter()
            .any(|step| matches!(step, FollowUp::ChordSize { size: 3, .. }))
    );
    let tuple = ResultTuple::parse(&Json::of(&theirs["result"])).unwrap();
    assert_eq!(json(&tuple.to_json()), theirs["result"]);
}

#[test]
fn a_saved_group_is_read_and_written_as_celery_writes_it() {
    let replay = Replay::of("result-15-group-save-restore-delete");
    let saved = replay.commands.iter().find(|command| command[0] == "SETEX").unwrap();
    let document = Json::parse(&saved[3]).unwrap();
    let group = ResultTuple::parse(&document.get("result").unwrap()).unwrap();
    assert_eq!(format!("{{\"result\": {}}}", group.to_json()), saved[3]);
    let id = saved[1].strip_prefix("celery-taskset-meta-").unwrap();
    assert_eq!(ChordKeys::of(id).group, saved[1]);
    let deleted = replay.commands.iter().rfind(|command| command[0] == "DEL").unwrap();
    assert_eq!(deleted[1], saved[1]);
}

#[test]
fn built_in_tasks_are_planned() {
    let planned = |name: &str| {
        let message = read(&Replay::of(name).sent[0]);
        with_sender(|sender| builtin(&message, sender)).unwrap()
    };
    let args = |list: &[&str]| list.iter().map(|args| Json::parse(args).unwrap()).collect();
    let map = Builtin::Calls {
        task: "proj.ident".into(),
        args: args(&["[1]", "[2]", "[3]"]),
    };
    assert_eq!(planned("canvas-10-map-run"), Some(map));
    let starmap = Builtin::Calls {
        task: "proj.add".into(),
        args: args(&["[1, 2]", "[3, 4]"]),
    };
    assert_eq!(planned("canvas-11-starmap-run"), Some(starmap));
    assert_eq!(planned("canvas-01-chain-run"), None);

    // What chunks sends is what its producer sends when it is called directly.
    let sent = Replay::of("publish-39-map-starmap-chunks").sent;
    let mut message = read(&sent[0]);
    message.task = "celery.chunks".into();
    message.kwargs = Json::parse(
        r#"{"task": {"task": "demo.lnk", "args": [], "kwargs": {}, "options": {}, "subtask_type": null,
            "immutable": false}, "it": [[1], [2], [3]], "n": 2}"#,
    )
    .unwrap();
    let Some(Builtin::Sends { aftermath, result }) = with_sender(|sender| builtin(&message, sender)).unwrap() else {
        panic!("chunks sends");
    };
    for (ours, theirs) in sends(&aftermath).iter().zip(&sent[2..]) {
        let theirs = content(theirs.as_bytes());
        assert_eq!(ours["body"][1], theirs["body"][1]);
        assert_eq!(ours["headers"]["task"], theirs["headers"]["task"]);
        assert_eq!(ours["headers"]["group_index"], theirs["headers"]["group_index"]);
    }
    assert_eq!(sends(&aftermath).len(), 2);
    assert_eq!(result, aftermath.children[0].to_json());
    message.kwargs = Json::empty_object();
    with_sender(|sender| builtin(&message, sender)).unwrap_err();
}
