//! Events against captures of Celery 5.7: read, and written again byte for byte.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::path::Path;

use jiff::Timestamp;
use serde_json::Value;
use umbel_protocol::event::{Batch, Event, Fanout, Publication, Source, Stamp, TaskInfo, parse};
use umbel_protocol::message::{Limits, decode};

fn vector(name: &str) -> Value {
    let path = Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join(format!("tests/golden/{name}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Channel and payload of what was published.
fn published(name: &str) -> Vec<(String, String)> {
    let vector = vector(name);
    let commands = vector["redis"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|event| event["cmd"].as_array());
    commands
        .filter(|command| command[0] == "PUBLISH" && command[1].as_str().unwrap().contains("celeryev"))
        .map(|command| (command[1].as_str().unwrap().into(), command[2].as_str().unwrap().into()))
        .collect()
}

fn tag(payload: &str) -> String {
    let envelope: Value = serde_json::from_str(payload).unwrap();
    envelope["properties"]["delivery_tag"].as_str().unwrap().to_owned()
}

/// Reads a payload and writes it again.
fn again(channel: &str, payload: &str) -> Publication {
    let received = parse(payload.as_bytes()).unwrap();
    let source = Source::new(&received[0].hostname, received[0].pid.unwrap());
    let objects: Vec<_> = received
        .iter()
        .map(|received| {
            let stamp = Stamp {
                clock: received.clock,
                timestamp: received.timestamp,
            };
            (received.event().unwrap_or_else(|| panic!("{}", received.kind)), stamp)
        })
        .collect();
    if channel.ends_with("task.multi") {
        let mut batch = Batch::default();
        for (event, stamp) in &objects {
            batch.push(&source, event, *stamp);
        }
        return source.batch(batch, &tag(payload));
    }
    let (event, stamp) = &objects[0];
    source.single(event, *stamp, &tag(payload))
}

#[test]
fn every_event_is_written_as_celery_wrote_it() {
    let cases = [
        ("events-01-worker-online", 1),
        ("events-02-worker-heartbeat", 1),
        ("events-03-task-sent-received-started-succeeded", 4),
        ("events-04-task-failed", 4),
        ("events-05-task-retried", 8),
        ("events-06-task-rejected", 4),
        ("events-07-task-revoked-expired", 2),
        ("events-08-task-received-eta-fields", 4),
        ("events-09-multi-batch", 1),
        ("events-10-task-revoked-terminated", 4),
        ("events-11-worker-offline", 1),
        ("publish-34-task-sent-event", 1),
    ];
    for (name, count) in cases {
        let published = published(name);
        assert!(published.len() >= count, "{name}: {}", published.len());
        for (channel, payload) in published {
            let ours = again(&channel, &payload);
            assert_eq!(std::str::from_utf8(&ours.payload).unwrap(), payload, "{name}");
            assert_eq!(
                Fanout::database(0).channel(&ours.exchange, &ours.routing_key),
                channel,
                "{name}"
            );
        }
    }
}

#[test]
fn a_batch_keeps_its_order_and_single_objects_are_read_alike() {
    let batch = parse(published("events-09-multi-batch")[0].1.as_bytes()).unwrap();
    let kinds: Vec<&str> = batch.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["task-succeeded", "task-received", "task-started"]);
    assert_eq!(batch.iter().map(|event| event.clock).collect::<Vec<_>>(), [5, 6, 7]);
    assert_eq!(batch[0].uuid().as_deref(), Some("986aebe1-590f-44ec-8253-4e0e0ea94ddb"));
    let single = parse(published("events-02-worker-heartbeat")[0].1.as_bytes()).unwrap();
    assert_eq!((single.len(), single[0].hostname.as_str()), (1, "w1@lab"));
}

#[test]
fn an_election_is_read_and_its_acknowledgement_written() {
    let published = published("control-46-election-two-workers");
    let acks = published
        .iter()
        .filter(|(channel, _)| channel.ends_with("/worker.elect.ack"));
    for (channel, payload) in acks {
        assert_eq!(again(channel, payload).payload, payload.as_bytes());
    }
    let elect = published
        .iter()
        .find(|(channel, _)| channel.ends_with("/worker.elect"))
        .unwrap();
    let elect = parse(elect.1.as_bytes()).unwrap();
    assert_eq!((elect[0].kind.as_str(), elect[0].event()), ("worker-elect", None));
}

#[test]
fn a_received_task_is_shown_as_celery_shows_it() {
    let vector = vector("publish-31-options");
    let raw = vector["redis"]
        .as_array()
        .unwrap()
        .iter()
        .find(|event| event["cmd"][0] == "LPUSH")
        .unwrap();
    let raw = raw["cmd"][2].as_str().unwrap();
    let message = decode(raw.as_bytes(), &Limits::default(), &jiff::tz::TimeZone::UTC).unwrap();
    let task = TaskInfo::from(&message);
    assert_eq!((task.name.as_str(), task.args.as_str()), ("shadow.name", "(hidden)"));
    let source = Source::new("w1@lab", 7);
    let stamp = Stamp::at(3, Timestamp::from_microsecond(1_795_176_025_298_072).unwrap());
    let received = source.single(&Event::TaskReceived(task), stamp, "t");
    assert_eq!(
        parse(&received.payload).unwrap()[0].fields.as_str(),
        r#"{"hostname": "w1@lab", "utcoffset": 0.0, "pid": 7, "clock": 3, "uuid": "my-own-id-1", "name": "shadow.name", "args": "(hidden)", "kwargs": "{}", "root_id": "my-own-id-1", "parent_id": null, "retries": 0, "eta": null, "expires": null, "timestamp": 1795176025.298072, "type": "task-received"}"#
    );
    let cancelled = Event::TaskCancelled { uuid: "x".into() };
    assert_eq!(source.single(&cancelled, stamp, "t").routing_key, "task.cancelled");
}

#[test]
fn channels_follow_the_transport_options() {
    // Name, prefix and keys of the transport options, and what the broker puts in front of every name.
    let cases = [
        ("consume-15-custom-key-names", "/app.", true, ""),
        ("consume-16-global-keyprefix-worker", "/0.", true, "pfx:"),
        ("consume-17-fanout-no-prefix-no-patterns", "", false, ""),
    ];
    for (name, prefix, with_keys, front) in cases {
        let fanout = Fanout {
            prefix: prefix.into(),
            with_keys,
        };
        let mut seen = 0;
        for event in vector(name)["redis"].as_array().unwrap() {
            let Some(command) = event["cmd"].as_array() else {
                continue;
            };
            let channel = command[1].as_str().unwrap_or_default();
            if command[0] != "PUBLISH" || channel.contains("task-meta") {
                continue;
            }
            let payload = command[2].as_str().unwrap();
            let envelope: Value = serde_json::from_str(payload).unwrap();
            let info = &envelope["properties"]["delivery_info"];
            let (exchange, key) = (
                info["exchange"].as_str().unwrap(),
                info["routing_key"].as_str().unwrap(),
            );
            assert_eq!(format!("{front}{}", fanout.channel(exchange, key)), channel, "{name}");
            if exchange == "celeryev" {
                let ours = if key == "task.multi" { "task.multi" } else { "" };
                assert_eq!(again(ours, payload).payload, payload.as_bytes(), "{name}");
            }
            seen += 1;
        }
        assert!(seen >= 2, "{name}");
    }
    let usual = Fanout::database(3);
    assert_eq!(usual.channel("celery.pidbox", ""), "/3.celery.pidbox");
    assert_eq!(usual.pattern("celeryev", "worker.#"), "/3.celeryev/worker.*");
}

#[test]
fn nonsense_is_refused_and_a_bad_neighbour_left_out() {
    for bad in [
        "",
        "{}",
        "[]",
        r#"{"content-type": "application/x-python-serialize", "body": ""}"#,
    ] {
        parse(bad.as_bytes()).unwrap_err();
    }
    let sealed = |body: &str| {
        let body = serde_json::to_string(body).unwrap();
        format!(r#"{{"content-type": "application/json", "body": {body}, "properties": {{}}}}"#)
    };
    parse(sealed("5").as_bytes()).unwrap_err();
    parse(sealed("{}").as_bytes()).unwrap_err();
    let mixed = sealed(r#"[5, {"type": "task-started", "hostname": "h", "timestamp": 1.5, "uuid": "u"}, {}]"#);
    assert_eq!(parse(mixed.as_bytes()).unwrap().len(), 1);
}
