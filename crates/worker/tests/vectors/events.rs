//! Events: the captured task runs under its captured id while events are on, and what is told of it is Celery's.

use serde_json::{Value, json};
use umbel_protocol::message::NewTask;
use umbel_testkit::eventually;

use crate::capture::Capture;
use crate::compare::{Names, match_all};
use crate::effects::Effects;
use crate::results::call;
use crate::stage::{SOON, Stage};

/// What workers told of a task, each event by itself.
fn told(events: &[Value], uuid: &str) -> Vec<Value> {
    let mut told: Vec<Value> = events
        .iter()
        .filter(|event| event["body"]["uuid"] == uuid && event["body"]["type"] != "task-sent")
        .cloned()
        .collect();
    for event in &mut told {
        // How many share an envelope depends on how fast they come.
        event["properties"]["delivery_tag"] = json!("");
    }
    told
}

/// The id that the captured events are about.
fn id_of(capture: &Capture) -> String {
    let events = Effects::of(&capture.commands, &[]).events;
    let uuid = events.iter().find_map(|event| event["body"]["uuid"].as_str());
    uuid.expect("an event about a task").to_owned()
}

async fn listening(flags: &[&str]) -> Stage {
    let mut stage = Stage::with(flags).await;
    let enable = Capture::of("control-41-enable-events-off-to-on");
    let publish = enable
        .commands
        .iter()
        .find(|command| command.text(0) == "PUBLISH")
        .unwrap();
    let envelope: Value = serde_json::from_slice(&publish.parts[2]).unwrap();
    let payload = publish
        .text(2)
        .replace(&envelope["headers"]["expires"].to_string(), "0");
    eventually(SOON, "the worker listens", async || {
        stage
            .send(&[
                b"PUBLISH".to_vec(),
                publish.parts[1].clone(),
                payload.clone().into_bytes(),
            ])
            .await
            == umbel_testkit::redis::Value::Int(1)
    })
    .await;
    stage
}

/// Sends a task, and compares the events about it.
async fn tells(stage: &mut Stage, name: &str, task: NewTask) -> Result<(), String> {
    let capture = Capture::of(name);
    let id = id_of(&capture);
    let theirs = told(&Effects::of(&capture.commands, &[]).events, &id);
    let task = NewTask { id: id.clone(), ..task };
    stage.forget();
    stage
        .send(&[b"LPUSH".to_vec(), b"celery".to_vec(), task.encode()])
        .await;
    let last = theirs.last().expect("an event")["body"]["type"]
        .as_str()
        .unwrap_or_default();
    let ours = told_until(stage, &id, last).await;
    compare(name, ours, &theirs)
}

fn compare(name: &str, mut ours: Vec<Value>, theirs: &[Value]) -> Result<(), String> {
    let types = |events: &[Value]| -> Vec<String> {
        let types = events
            .iter()
            .map(|event| event["body"]["type"].as_str().unwrap_or_default().to_owned());
        types.collect()
    };
    // A task for later is told of when it is put aside, and again when it is taken to run.
    let (mut our, mut their) = (types(&ours), types(theirs));
    our.dedup();
    their.dedup();
    // Celery receives the next run before it tells that there will be one.
    if their.iter().any(|kind| kind == "task-retried") {
        our.sort_unstable();
        their.sort_unstable();
    }
    if our != their {
        return Err(format!("{name}: ours {our:?}, Celery's {their:?}"));
    }
    ours.dedup_by_key(|event| event["body"]["type"].to_string());
    match_all("events", &ours, theirs, &mut Names::new()).map_err(|differs| format!("{name}: {differs}"))
}

#[tokio::test]
async fn of_a_task_is_told_what_celery_tells() {
    let mut stage = listening(&["--retry-max-attempts", "2"]).await;
    let later = NewTask {
        eta: Some(jiff::Timestamp::now() + jiff::SignedDuration::from_millis(1000)),
        expires: Some(jiff::Timestamp::now() + jiff::SignedDuration::from_secs(600)),
        root_id: Some("root-1".into()),
        parent_id: Some("parent-1".into()),
        ..call("", "proj.add", &json!([1, 2]))
    };
    let expired = NewTask {
        expires: Some(jiff::Timestamp::now()),
        ..call("", "proj.add", &json!([1, 2]))
    };
    let mut differ = Vec::new();
    for (name, task) in [
        (
            "events-03-task-sent-received-started-succeeded",
            call("", "proj.add", &json!([2, 3])),
        ),
        ("events-04-task-failed", call("", "proj.fail", &json!(["boom"]))),
        ("events-07-task-revoked-expired", expired),
        ("events-08-task-received-eta-fields", later),
    ] {
        differ.extend(tells(&mut stage, name, task).await.err());
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

#[tokio::test]
async fn of_retries_rejections_and_terminations_is_told_what_celery_tells() {
    let mut stage = listening(&["--retry-initial-backoff", "100ms"]).await;
    let mut differ = Vec::new();
    for (name, task) in [
        ("events-05-task-retried", call("", "proj.autoretry", &json!([1]))),
        ("events-06-task-rejected", call("", "proj.rejecter", &json!([false]))),
    ] {
        differ.extend(tells(&mut stage, name, task).await.err());
    }
    // Terminated by remote control while it runs.
    let capture = Capture::of("events-10-task-revoked-terminated");
    let (id, revoke) = (id_of(&capture), Capture::of("control-20-revoke-terminate"));
    let publish = revoke
        .commands
        .iter()
        .find(|command| command.text(0) == "PUBLISH")
        .unwrap();
    let mut envelope: Value = serde_json::from_slice(&publish.parts[2]).unwrap();
    let body = json!({"method": "revoke", "arguments": {"task_id": id, "terminate": true, "signal": "SIGTERM"}});
    envelope["body"] = json!(body.to_string());
    envelope["properties"]["body_encoding"] = json!("utf-8");
    envelope["headers"]["expires"] = json!(0);
    let revoke = [
        b"PUBLISH".to_vec(),
        publish.parts[1].clone(),
        envelope.to_string().into_bytes(),
    ];
    let theirs = told(&Effects::of(&capture.commands, &[]).events, &id);
    stage.forget();
    let task = call(&id, "proj.sleeps", &json!([20]));
    stage
        .send(&[b"LPUSH".to_vec(), b"celery".to_vec(), task.encode()])
        .await;
    let ours = told_until(&stage, &id, "task-started").await;
    assert!(ours.iter().all(|event| event["body"]["type"] != "task-revoked"));
    stage.send(&revoke).await;
    let ours = told_until(&stage, &id, "task-revoked").await;
    differ.extend(compare(&capture.name, ours, &theirs).err());
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

/// What is told of a task, when this is among it.
async fn told_until(stage: &Stage, id: &str, kind: &str) -> Vec<Value> {
    let mut ours = Vec::new();
    eventually(SOON, kind, async || {
        ours = told(&stage.effects(&[]).events, id);
        ours.iter().any(|event| event["body"]["type"] == kind)
    })
    .await;
    ours
}

/// Worker and task events in the envelopes of Celery: sender, address, mode, encoding, several in a batch.
#[tokio::test]
async fn of_a_worker_is_told_what_celery_tells() {
    let mut stage = listening(&[]).await;
    let mut ours = Vec::new();
    for (name, kind) in [
        ("events-01-worker-online", "worker-online"),
        ("events-02-worker-heartbeat", "worker-heartbeat"),
    ] {
        eventually(SOON, kind, async || {
            ours = stage.all_effects().events;
            ours.retain(|event| event["body"]["type"] == kind);
            !ours.is_empty()
        })
        .await;
        let theirs = Effects::of(&Capture::of(name).commands, &[]).events;
        assert_eq!(match_all(name, &ours[..1], &theirs[..1], &mut Names::new()), Ok(()));
    }
    for number in 0..3 {
        let task = call(&format!("batch-{number}"), "proj.add", &json!([number, 1]));
        stage
            .send(&[b"LPUSH".to_vec(), b"celery".to_vec(), task.encode()])
            .await;
    }
    let theirs = Effects::of(&Capture::of("events-09-multi-batch").commands, &[]).events;
    assert_eq!(theirs.len(), 3);
    eventually(SOON, "a batch", async || {
        let payloads = stage.done();
        payloads.iter().any(|command| {
            let events = Effects::of(std::slice::from_ref(command), &[]).events;
            events.len() > 1 && events.iter().all(|event| event["to"] == theirs[0]["to"])
        })
    })
    .await;
    stage.worker.signal(umbel_testkit::Signal::Term);
    assert!(stage.worker.wait(SOON).await.success());
    ours = stage.effects(&[]).events;
    ours.retain(|event| event["body"]["type"] == "worker-offline");
    let theirs = Effects::of(&Capture::of("events-11-worker-offline").commands, &[]).events;
    assert_eq!(match_all("worker-offline", &ours, &theirs, &mut Names::new()), Ok(()));
}

/// Nobody has asked for events: a worker with `-E` tells of its tasks all the same, and of what they send where that is
/// wanted, on the exchange that it is given.
#[tokio::test]
async fn a_worker_tells_of_tasks_from_the_start_where_it_is_told_to() {
    let flags = ["-E", "--task-sent-events", "--event-exchange", "shopev"];
    let mut stage = Stage::with(&flags).await;
    let raw = call("parent", "proj.spawn", &json!([1])).encode();
    stage.forget();
    stage.send(&[b"LPUSH".to_vec(), b"celery".to_vec(), raw.clone()]).await;
    let ours = stage
        .until("parent and child", &[raw], |ours| ours.documents.len() == 2)
        .await;
    let child = ours.messages[0]["headers"]["id"].as_str().unwrap().to_owned();
    let mut told: Vec<Value> = Vec::new();
    eventually(SOON, "all is told", async || {
        let published = stage.done().into_iter().filter(|command| command.text(0) == "PUBLISH");
        told = published
            .filter(|command| command.text(1).starts_with("/0.shopev/task."))
            .map(|command| crate::effects::body(&serde_json::from_slice(&command.parts[2]).unwrap()))
            .flat_map(|body| body.as_array().cloned().unwrap_or_else(|| vec![body]))
            .collect();
        told.iter().filter(|event| event["type"] == "task-succeeded").count() == 2
    })
    .await;
    let of = |uuid: &str| -> Vec<&str> {
        let events = told.iter().filter(|event| event["uuid"] == uuid);
        events.map(|event| event["type"].as_str().unwrap()).collect()
    };
    assert_eq!(of("parent"), ["task-received", "task-started", "task-succeeded"]);
    assert_eq!(
        of(&child),
        ["task-sent", "task-received", "task-started", "task-succeeded"]
    );
    let sent = told.iter().find(|event| event["type"] == "task-sent").unwrap();
    let theirs = Effects::of(&Capture::of("publish-34-task-sent-event").commands, &[]).events;
    let theirs = theirs
        .iter()
        .find(|event| event["body"]["type"] == "task-sent")
        .unwrap();
    for key in theirs["body"].as_object().unwrap().keys() {
        assert!(sent.get(key).is_some(), "{key}: {sent}");
    }
    assert_eq!(sent["parent_id"], json!("parent"));
    assert!(stage.all_effects().events.is_empty(), "nothing on celeryev");
}
