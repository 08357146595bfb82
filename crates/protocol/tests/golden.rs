//! What real Celery 5.7 wrote, read and written again: each file in `golden/` is a capture of its commands to Redis.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::Path;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use umbel_protocol::json::Json;
use umbel_protocol::message::{BodyEncoding, Limits, NewTask, Retry, TaskMessage, decode, retry};
use umbel_protocol::result::{self, Failure, Meta};

fn vector(name: &str) -> Value {
    let path = Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join("tests/golden")
        .join(format!("{name}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The last argument of every command `name`.
fn payloads(vector: &Value, name: &str) -> Vec<String> {
    let commands = vector["redis"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|event| event["cmd"].as_array());
    commands
        .filter(|command| command[0] == name)
        .map(|command| command.last().unwrap().as_str().unwrap().to_owned())
        .collect()
}

fn read(raw: &str) -> TaskMessage {
    decode(raw.as_bytes(), &Limits::default(), &TimeZone::UTC).unwrap()
}

/// Compressed, or no JSON: refused by this version.
const REFUSED: [(&str, &str, &str); 9] = [
    (
        "publish-13-compression-zlib",
        "compression",
        "compression `application/x-gzip` is not accepted",
    ),
    (
        "publish-14-compression-bzip2",
        "compression",
        "compression `application/x-bz2` is not accepted",
    ),
    (
        "publish-15-compression-lzma",
        "compression",
        "compression `application/x-lzma` is not accepted",
    ),
    (
        "publish-16-compression-brotli",
        "compression",
        "compression `application/x-brotli` is not accepted",
    ),
    (
        "publish-17-compression-zstd",
        "compression",
        "compression `application/zstd` is not accepted",
    ),
    (
        "publish-18-msgpack",
        "content-type",
        "content type `application/x-msgpack` is not accepted",
    ),
    (
        "publish-19-yaml",
        "content-type",
        "content type `application/x-yaml` is not accepted",
    ),
    (
        "publish-20-pickle",
        "content-type",
        "content type `application/x-python-serialize` is not accepted",
    ),
    (
        "publish-50-signed-auth",
        "content-type",
        "content type `application/data` is not accepted",
    ),
];

/// Messages in JSON: of `delay`, of `send_task`, of beat, of an older version.
const READABLE: [&str; 44] = [
    "publish-01-delay-full-trace",
    "publish-02-send-task-by-name",
    "publish-03-zero-args",
    "publish-04-priority-0-to-9",
    "publish-05-priority-custom-steps-sep",
    "publish-06-priority-null",
    "publish-07-countdown",
    "publish-08-eta-aware-offset",
    "publish-09-eta-naive",
    "publish-10-expires-seconds",
    "publish-11-expires-datetime",
    "publish-12-expires-in-the-past",
    "publish-21-json-special-types",
    "publish-22-unicode",
    "publish-23-queue",
    "publish-25-topic-exchange",
    "publish-26-direct-exchange",
    "publish-28-fanout-exchange",
    "publish-28b-fanout-exchange-with-key",
    "publish-29-global-keyprefix",
    "publish-30-protocol-1",
    "publish-31-options",
    "publish-32-body-encoding-utf8",
    "publish-33-queue-x-expires",
    "publish-34-task-sent-event",
    "publish-35-link-and-link-error",
    "publish-36-chain",
    "publish-37-group",
    "publish-38-chord",
    "publish-39-map-starmap-chunks",
    "publish-40-chain-with-group-becomes-chord",
    "publish-41-nested-chord",
    "publish-42-stamps",
    "publish-43-long-args-repr",
    "publish-44-nan-infinity-bigint",
    "beat-01-interval",
    "beat-02-interval-options",
    "beat-03-crontab",
    "beat-04-two-beats-duplicate",
    "compat-02-publish-celery-5.2",
    "consume-02-early-ack",
    "consume-03-late-ack",
    "consume-13-broadcast-queue",
    "consume-14-worker-direct",
];

/// The task messages of a capture: pushed, or published to a fanout exchange.
fn messages(name: &str) -> Vec<String> {
    let vector = vector(name);
    let mut all = payloads(&vector, "LPUSH");
    all.extend(payloads(&vector, "PUBLISH"));
    all.retain(|raw| raw.starts_with("{\"body\"") && !raw.contains("\"exchange\": \"celeryev\""));
    assert!(!all.is_empty(), "{name}");
    all
}

#[test]
fn every_header_and_property_is_read_as_celery_wrote_it() {
    for name in READABLE.iter().filter(|name| **name != "publish-30-protocol-1") {
        for raw in messages(name) {
            let message = read(&raw);
            let envelope: Value = serde_json::from_str(&raw).unwrap();
            let (headers, properties) = (&envelope["headers"], &envelope["properties"]);
            let text = |value: &Value| value.as_str().map(str::to_owned);
            assert_eq!(Some(message.id.clone()), text(&headers["id"]), "{name}");
            assert_eq!(Some(message.task.clone()), text(&headers["task"]), "{name}");
            assert_eq!(
                u64::from(message.retries),
                headers["retries"].as_u64().unwrap(),
                "{name}"
            );
            assert_eq!(message.root_id, text(&headers["root_id"]), "{name}");
            assert_eq!(message.parent_id, text(&headers["parent_id"]), "{name}");
            assert_eq!(message.group, text(&headers["group"]), "{name}");
            assert_eq!(message.group_index, headers["group_index"].as_i64(), "{name}");
            assert_eq!(message.ignore_result, headers["ignore_result"].as_bool(), "{name}");
            assert_eq!(message.argsrepr, text(&headers["argsrepr"]), "{name}");
            assert_eq!(message.kwargsrepr, text(&headers["kwargsrepr"]), "{name}");
            assert_eq!(message.origin, text(&headers["origin"]), "{name}");
            assert_eq!(message.time_limit.hard, headers["timelimit"][0].as_f64(), "{name}");
            assert_eq!(message.time_limit.soft, headers["timelimit"][1].as_f64(), "{name}");
            assert_eq!(message.eta.is_some(), headers["eta"].is_string(), "{name}");
            assert_eq!(message.expires.is_some(), headers["expires"].is_string(), "{name}");
            assert_eq!(message.correlation_id, text(&properties["correlation_id"]), "{name}");
            assert_eq!(message.reply_to, text(&properties["reply_to"]), "{name}");
            assert_eq!(
                Some(message.queue.clone()),
                text(&properties["delivery_info"]["routing_key"]),
                "{name}"
            );
            let priority = properties["priority"].as_i64().unwrap_or(0).clamp(0, 9);
            assert_eq!(i64::from(message.priority), priority, "{name}");
            assert!(!message.redelivered, "{name}");
            for (header, value) in headers.as_object().unwrap() {
                assert_eq!(
                    &message.header(header).unwrap().to::<Value>().unwrap(),
                    value,
                    "{name}: {header}"
                );
            }
        }
    }
}

#[test]
fn bodies_are_split_as_celery_meant_them() {
    for name in READABLE {
        let expect = vector(name)["expect"].clone();
        if expect.get("args").is_none() {
            continue;
        }
        let message = read(&messages(name)[0]);
        assert_eq!(message.args.to::<Value>().unwrap(), expect["args"], "{name}");
        assert_eq!(message.kwargs.to::<Value>().unwrap(), expect["kwargs"], "{name}");
        assert_eq!(message.embed.unwrap().to::<Value>().unwrap(), expect["embed"], "{name}");
    }
}

#[test]
fn a_body_keeps_what_strict_json_cannot_say() {
    let vector = vector("publish-44-nan-infinity-bigint");
    let message = read(&payloads(&vector, "LPUSH")[0]);
    let expect = vector["expect"]["body_text"].as_str().unwrap();
    assert_eq!(
        format!("[{}, {}, {}]", message.args, message.kwargs, message.embed.unwrap()),
        expect
    );
    assert_eq!(message.args.repr(), message.argsrepr.unwrap());
    let error = message.args.to::<Value>().unwrap_err().to_string();
    assert_eq!(error, "NaN and Infinity have no typed form; read the text itself");
}

#[test]
fn times_are_read_with_their_offset_or_in_the_given_zone() {
    let eta = |name: &str, zone: &str| {
        let raw = &payloads(&vector(name), "LPUSH")[0];
        decode(raw.as_bytes(), &Limits::default(), &TimeZone::get(zone).unwrap())
            .unwrap()
            .eta
            .unwrap()
            .to_string()
    };
    assert_eq!(eta("publish-07-countdown", "Asia/Tokyo"), "2026-11-20T11:48:32.08285Z");
    assert_eq!(
        eta("publish-08-eta-aware-offset", "Asia/Tokyo"),
        "2031-02-02T22:35:06.789012Z"
    );
    assert_eq!(eta("publish-09-eta-naive", "UTC"), "2031-02-03T04:05:06Z");
    assert_eq!(eta("publish-09-eta-naive", "Asia/Tokyo"), "2031-02-02T19:05:06Z");
}

#[test]
fn protocol_1_reads_like_protocol_2() {
    let message = read(&payloads(&vector("publish-30-protocol-1"), "LPUSH")[0]);
    assert_eq!(message.task, "demo.old");
    assert_eq!(message.id, "b13a36f9-06d0-48d9-a905-3f8669a9c715");
    assert_eq!(message.args.as_str(), "[1]");
    assert_eq!(message.kwargs.as_str(), r#"{"a": 2}"#);
    assert_eq!(
        message.embed.as_ref().unwrap().as_str(),
        r#"{"callbacks": null, "errbacks": null, "chain": null, "chord": null}"#
    );
    assert_eq!(message.eta, Some("2026-11-20T11:48:33.576998Z".parse().unwrap()));
    assert_eq!(message.queue, "celery");
    assert_eq!(message.headers.as_str(), "{}");
}

#[test]
fn other_serializers_and_compression_are_refused_by_name() {
    for (name, label, text) in REFUSED {
        let raw = &payloads(&vector(name), "LPUSH")[0];
        let refused = decode(raw.as_bytes(), &Limits::default(), &TimeZone::UTC).unwrap_err();
        let headers = &serde_json::from_str::<Value>(raw).unwrap()["headers"];
        assert_eq!(refused.reason.label(), label, "{name}");
        assert_eq!(refused.to_string(), text, "{name}");
        assert_eq!(refused.id.as_deref(), headers["id"].as_str(), "{name}");
        assert_eq!(refused.task.as_deref(), headers["task"].as_str(), "{name}");
    }
}

/// What no producer of ours writes: the legacy protocol, and the fewer headers of an older version.
const NOT_WRITTEN: [&str; 2] = ["publish-30-protocol-1", "compat-02-publish-celery-5.2"];

#[test]
fn a_task_is_written_byte_for_byte_as_celery_writes_it() {
    for name in READABLE.iter().filter(|name| !NOT_WRITTEN.contains(name)) {
        for raw in messages(name) {
            let bytes = String::from_utf8(again(&raw).encode()).unwrap();
            assert_eq!(bytes, raw, "{name}");
        }
    }
}

/// The same message, from what the caller of a producer gives.
fn again(raw: &str) -> NewTask {
    let message = read(raw);
    let envelope: Value = serde_json::from_str(raw).unwrap();
    let (headers, properties) = (&envelope["headers"], &envelope["properties"]);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let left = properties["expiration"].as_str().map(|left| left.parse().unwrap());
    let written = [
        "correlation_id",
        "reply_to",
        "delivery_mode",
        "expiration",
        "delivery_info",
        "priority",
        "body_encoding",
        "delivery_tag",
    ];
    let mut others = Json::parse(raw).unwrap().get("properties").unwrap().entries();
    others.retain(|(name, _)| !written.contains(&name.as_str()));
    NewTask {
        shadow: text(&headers["shadow"]),
        delivery_tag: text(&properties["delivery_tag"]).unwrap(),
        sent_at: left.map(|left| message.expires.unwrap() - SignedDuration::from_millis(left)),
        eta_text: text(&headers["eta"]),
        expires_text: text(&headers["expires"]),
        priority_written: properties["priority"].as_i64(),
        stamps: message.header("stamps").unwrap().entries(),
        delivery_mode: u8::try_from(properties["delivery_mode"].as_u64().unwrap()).unwrap(),
        body_encoding: if properties["body_encoding"] == "utf-8" {
            BodyEncoding::Utf8
        } else {
            BodyEncoding::Base64
        },
        properties: others,
        headers: message.headers.entries().split_off(19),
        ..NewTask::from(&message)
    }
}

#[test]
fn arguments_are_shown_as_celery_shows_them() {
    for name in [
        "publish-01-delay-full-trace",
        "publish-03-zero-args",
        "publish-07-countdown",
    ] {
        let raw = &payloads(&vector(name), "LPUSH")[0];
        let message = read(raw);
        let task = NewTask {
            argsrepr: None,
            kwargsrepr: None,
            ..NewTask::from(&message)
        };
        let written = read(&String::from_utf8(task.encode()).unwrap());
        let as_list = message.argsrepr.as_deref().unwrap().starts_with('[');
        let argsrepr = if as_list {
            Some(message.args.repr())
        } else {
            written.argsrepr
        };
        assert_eq!(argsrepr, message.argsrepr, "{name}");
        assert_eq!(written.kwargsrepr, message.kwargsrepr, "{name}");
    }
}

#[test]
fn a_retry_is_written_byte_for_byte_as_celery_writes_it() {
    for (name, left) in [
        ("retry-01-republish-early-ack", Some(299_968)),
        ("retry-02-inside-chain", None),
    ] {
        let messages = payloads(&vector(name), "LPUSH");
        let (first, second) = (read(&messages[0]), read(&messages[1]));
        let tag = &serde_json::from_str::<Value>(&messages[1]).unwrap()["properties"]["delivery_tag"];
        let again = Retry {
            retries: 1,
            eta: second.eta,
            delivery_tag: tag.as_str().unwrap().into(),
            now: left.map(|left| first.expires.unwrap() - SignedDuration::from_millis(left)),
            headers: Vec::new(),
        };
        let bytes = retry(messages[0].as_bytes(), &again).unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), messages[1], "{name}");
    }
}

#[test]
fn a_retry_of_protocol_1_comes_out_as_protocol_2() {
    let raw = &payloads(&vector("publish-30-protocol-1"), "LPUSH")[0];
    let first = read(raw);
    let bytes = retry(
        raw.as_bytes(),
        &Retry {
            retries: 1,
            ..Retry::default()
        },
    )
    .unwrap();
    let second = read(std::str::from_utf8(&bytes).unwrap());
    let headers = second.headers.clone();
    assert_eq!(headers.get("id").unwrap().text(), Some(first.id.clone()));
    assert_eq!(
        second,
        TaskMessage {
            retries: 1,
            eta: None,
            root_id: Some(first.id.clone()),
            parent_id: Some(first.id.clone()),
            argsrepr: Some("(1,)".into()),
            kwargsrepr: Some("{'a': 2}".into()),
            origin: Some(String::new()),
            headers,
            ..first
        }
    );
}

/// Captures with result documents in JSON.
const RESULTS: [&str; 24] = [
    "result-01-success",
    "result-02-failure-builtin",
    "result-03-failure-custom-args",
    "result-04-retry-then-failure",
    "result-05-started-then-success",
    "result-06-custom-state",
    "result-07-revoked-expired",
    "result-08-children",
    "result-09-returns-special-types",
    "result-10-hard-time-limit",
    "result-11-worker-lost",
    "result-13-get-waits-with-subscribe",
    "result-16-extended",
    "result-17-extended-chain-parent-children",
    "result-18-extended-stamped",
    "result-19-expires-none",
    "result-22-global-keyprefix",
    "result-23-failure-expires",
    "result-24-expires-short",
    "consume-02-early-ack",
    "consume-05-reject-requeue",
    "consume-06-reject-drop",
    "consume-09-eta-held-in-worker",
    "consume-10-unknown-task",
];

#[test]
fn results_are_written_byte_for_byte_as_celery_writes_them() {
    let mut seen = std::collections::BTreeSet::new();
    for name in RESULTS {
        let stored = ["SET", "SETEX"]
            .iter()
            .flat_map(|command| payloads(&vector(name), command));
        let documents: Vec<String> = stored.filter(|value| value.contains("\"task_id\"")).collect();
        assert!(!documents.is_empty(), "{name}");
        for document in documents {
            let parsed = result::parse(document.as_bytes()).unwrap();
            let value: Value = serde_json::from_str(&document).unwrap();
            let mut children: Vec<String> = value["children"]
                .as_array()
                .unwrap()
                .iter()
                .map(|child| child[0][0].as_str().unwrap().to_owned())
                .collect();
            if parsed.status == "RETRY" {
                // The builder adds the task itself.
                assert_eq!(children.pop().as_ref(), Some(&parsed.task_id));
            }
            let known = [
                "status",
                "result",
                "traceback",
                "children",
                "date_done",
                "group_id",
                "parent_id",
                "task_id",
            ];
            let mut extra = Json::parse(&document).unwrap().entries();
            extra.retain(|(name, _)| !known.contains(&name.as_str()));
            let meta = Meta {
                extra: &extra,
                done_at: parsed.date_done.unwrap_or(Timestamp::UNIX_EPOCH),
                children: &children,
                group_id: value["group_id"].as_str(),
                parent_id: value["parent_id"].as_str(),
                ..Meta::default()
            };
            let (id, traceback) = (parsed.task_id.as_str(), parsed.traceback.as_deref());
            let bytes = match parsed.status.as_str() {
                "SUCCESS" => result::success(id, &parsed.result, &meta),
                "FAILURE" => result::failure(id, &parsed.failure().unwrap(), traceback, &meta),
                "RETRY" => result::retry(id, &parsed.failure().unwrap(), traceback, &meta),
                "REVOKED" => {
                    let why = parsed.failure().unwrap().message[0].text().unwrap();
                    result::revoked(id, &why, &meta)
                }
                "STARTED" => {
                    let pid = parsed.result.get("pid").unwrap().to().unwrap();
                    result::started(id, pid, &parsed.result.get("hostname").unwrap().text().unwrap(), &meta)
                }
                other => result::custom(id, other, &parsed.result, &meta),
            };
            assert_eq!(String::from_utf8(bytes).unwrap(), document, "{name}");
            seen.insert(parsed.status);
        }
    }
    assert_eq!(
        seen.into_iter().collect::<Vec<_>>(),
        ["FAILURE", "PROGRESS", "RETRY", "REVOKED", "STARTED", "SUCCESS"]
    );
}

#[test]
fn an_extended_result_tells_of_the_message() {
    for name in ["result-16-extended", "result-18-extended-stamped"] {
        let stored: Value = serde_json::from_str(&payloads(&vector(name), "SETEX")[0]).unwrap();
        let mut headers = Vec::new();
        if let Some(names) = stored["stamped_headers"].as_array() {
            let stamps: serde_json::Map<String, Value> = names
                .iter()
                .map(|name| (name.as_str().unwrap().into(), stored[name.as_str().unwrap()].clone()))
                .collect();
            headers.push(("stamped_headers".into(), Json::of(names)));
            headers.push(("stamps".into(), Json::of(&stamps)));
        }
        let task = NewTask {
            id: "x".into(),
            task: stored["name"].as_str().unwrap().into(),
            args: Json::of(&stored["args"]),
            kwargs: Json::of(&stored["kwargs"]),
            headers,
            ..NewTask::default()
        };
        let message = read(std::str::from_utf8(&task.encode()).unwrap());
        let extra = result::extended(&message, "w1@lab");
        for (key, value) in &extra {
            assert_eq!(value.to::<Value>().unwrap(), stored[key], "{name} {key}");
        }
        let others = ["status", "result", "traceback", "children", "date_done", "task_id"];
        assert_eq!(extra.len() + others.len(), stored.as_object().unwrap().len(), "{name}");
    }
}

#[test]
fn foreign_results_are_read_as_celery_reads_them() {
    let documents: Vec<String> = vector("result-25-client-reading-rules")["redis"]
        .as_array()
        .unwrap()
        .iter()
        .map(|dump| dump["value"].as_str().unwrap().to_owned())
        .collect();
    let parsed: Vec<_> = documents
        .iter()
        .map(|document| result::parse(document.as_bytes()))
        .collect();
    assert_eq!(parsed[0], Err(result::ResultError::Missing("task_id")));
    assert_eq!(parsed[1].as_ref().unwrap().result, Json::of(&1));
    let failure = |index: usize| parsed[index].as_ref().unwrap().failure();
    let error = |module: &str, class: &str, message: Vec<Json>| {
        Some(Failure {
            exc_type: class.into(),
            exc_module: module.into(),
            message,
        })
    };
    assert_eq!(
        failure(2),
        error("rs.tasks", "RustError", vec![Json::string("boom"), Json::of(&7)])
    );
    assert_eq!(failure(3), error("", "RustError", vec![Json::string("boom")]));
    assert_eq!(failure(4), error("builtins", "ValueError", vec![Json::string("plain")]));
    for malformed in [5, 6, 8] {
        assert_eq!(failure(malformed), None);
        assert!(parsed[malformed].as_ref().unwrap().is_ready());
    }
    assert_eq!(
        failure(9),
        error("celery.exceptions", "TaskRevokedError", vec![Json::string("revoked")])
    );
    assert!(!parsed[10].as_ref().unwrap().is_ready());
}

/// Another serializer's document, or a compressed one, is no result that this crate reads; it says so.
#[test]
fn results_in_another_form_are_refused() {
    for name in ["result-20-compressed", "result-21-msgpack"] {
        let events = vector(name)["redis"].as_array().unwrap().clone();
        let stored = events.iter().find(|event| event["cmd"][0] == "SETEX").unwrap();
        let encoded = stored["cmd"][3]["b64"].as_str().unwrap();
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, encoded).unwrap();
        let refused = result::parse(&bytes).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "result is not text; compressed results and serializers other than JSON are not read",
            "{name}"
        );
    }
}

#[test]
fn the_smallest_message_that_celery_takes_is_taken() {
    let message = read(&payloads(&vector("consume-12-minimal-accepted-message"), "LPUSH")[0]);
    let default = read(
        r#"{"body": "[[1,2],{},{}]", "content-type": "application/json",
        "headers": {"task": "proj.add", "id": "minimal-1"}, "properties": {}}"#,
    );
    let headers = Json::parse(r#"{"task": "proj.add", "id": "minimal-1"}"#).unwrap();
    assert_eq!(
        message,
        TaskMessage {
            queue: "celery".into(),
            ..default
        }
    );
    assert_eq!(message.headers, headers);
    assert_eq!(message.ignore_result, None);
}

/// Case numbers are those of the capture. Every element that stops, loops or loses in Celery has its reason here.
#[test]
fn odd_elements_run_or_are_refused_with_their_reason() {
    let elements = payloads(&vector("consume-18-hostile-and-odd-list-elements"), "LPUSH");
    let cases = vector("consume-18-hostile-and-odd-list-elements")["expect"]["cases"].clone();
    assert_eq!(elements.len(), cases.as_array().unwrap().len());
    let expected = [
        Err("message is not acceptable JSON: expected an object at byte 0"),
        Err("headers.task is missing"),
        Err("headers.task is missing"),
        Err("headers.id is missing"),
        Ok("b"),
        Ok("c"),
        Ok("d"),
        Err("content-type is missing"),
        Err("body is not [args, kwargs, embed]"),
        Err("body is not acceptable JSON: expected a value at byte 0"),
        Err("body is not acceptable JSON: expected a key in quotes at byte 1"),
        Err("content type `application/x-python-serialize` is not accepted"),
        Err("kwargs is not an object"),
        Err("headers.eta is not an ISO 8601 time"),
        Err("headers.eta is not an ISO 8601 time"),
        Ok("m"),
        Ok("n"),
        Ok("o"),
        Ok("p"),
        Ok("q"),
        Ok("r"),
        Ok("s"),
        Ok("t"),
        Ok("u"),
        Ok("v"),
        Err("args is not an array"),
    ];
    for ((number, element), expected) in elements.iter().enumerate().zip(expected) {
        let decoded = decode(element.as_bytes(), &Limits::default(), &TimeZone::UTC);
        let decoded = decoded
            .map(|message| message.id)
            .map_err(|malformed| malformed.to_string());
        assert_eq!(
            decoded.as_deref().map_err(String::as_str),
            expected,
            "case {number}: {element}"
        );
    }
}
