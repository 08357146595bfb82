//! C: where Celery's work waits for nothing, or for ever.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use umbel_broker::{Broker, Config};
use umbel_protocol::control::Call;
use umbel_protocol::json::Json;
use umbel_protocol::message::NewTask;
use umbel_testkit::eventually;
use umbel_testkit::redis::AsyncCommands;

use super::{holds, push};
use crate::capture::Capture;
use crate::results::call;
use crate::stage::{SOON, Stage, start};

/// Eight tasks of two a minute, then another: Celery's prefetch is full of the eight.
#[tokio::test]
async fn c3_rate_limited_tasks_hold_up_nobody() {
    let mut stage = Stage::with(&[]).await;
    let broker = Broker::connect(&Config::new(&stage.redis.url())).await.unwrap();
    let limit = Json::of(&json!({"task_name": "demo.slow", "rate_limit": "2/m"}));
    let request = Call::new(
        "rate_limit",
        Json::of(&json!({"task_name": "proj.echo", "rate_limit": "2/m"})),
    );
    assert_ne!(limit, request.arguments);
    broker
        .request(&request.publication(broker.control(), "tag"))
        .await
        .unwrap();
    stage.worker.says(SOON, "rate limit changed").await;
    for number in 0..8 {
        push(
            &mut stage,
            "celery",
            &call(&format!("limited-{number}"), "proj.echo", &json!([number])),
        )
        .await;
    }
    let began = Instant::now();
    push(&mut stage, "celery", &call("free", "proj.add", &json!([1, 1]))).await;
    let mut connection = stage.connection.clone();
    eventually(SOON, "the other one has run", async || {
        connection.exists("celery-task-meta-free").await == Ok(true)
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let keys: Vec<String> = connection.keys("celery-task-meta-limited-*").await.unwrap();
    assert!(keys.len() <= 2, "{keys:?}");
}

/// Within one queue an urgent message goes first, as its producer asked for. A stream of them in one queue holds up no
/// other queue: with Celery the steps come before the queues.
#[tokio::test]
async fn c5_urgent_messages_of_one_queue_do_not_starve_another() {
    let mut stage = Stage::with(&["--queue", "urgent,patient"]).await;
    stage.worker.kill();
    for number in 0..60 {
        push(
            &mut stage,
            "urgent",
            &call(&format!("urgent-{number}"), "proj.add", &json!([number, 0])),
        )
        .await;
    }
    let last = NewTask {
        priority: 9,
        queue: "patient".into(),
        ..call("patient", "proj.add", &json!([0, 0]))
    };
    push(&mut stage, "patient\u{6}\u{16}9", &last).await;
    stage.forget();
    stage.worker = start(&stage.redis.url(), &["--name", "w2@lab", "--queue", "urgent,patient"]);
    let ours = stage.until("all", &[], |ours| ours.documents.len() == 61).await;
    let place = ours
        .documents
        .iter()
        .position(|stored| stored["document"]["task_id"] == "patient");
    assert!(place.is_some_and(|place| place < 40), "{place:?} of 61");
}

/// Celery looks every 100 s for what is overdue after an hour; here it runs again after a lease and two sweeps.
#[tokio::test]
async fn c7_what_a_dead_worker_held_runs_again_within_seconds() {
    let mut stage = Stage::with(&[]).await;
    let raw = push(&mut stage, "celery", &call("held", "proj.sleeps", &json!([1, "again"]))).await;
    holds(&stage, 1).await;
    stage.worker.kill();
    let killed = Instant::now();
    stage.worker = start(&stage.redis.url(), &["--name", "w2@lab"]);
    let ours = stage.until("held", &[raw], |ours| !ours.documents.is_empty()).await;
    assert_eq!(ours.documents[0]["document"]["result"], json!("again"));
    // 2 s of lease, sweeps of 0.5 s, 1 s of running; the rest for a machine that compiles beside it.
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
}

/// As with Celery a chord fails when all parts are in; told to, as soon as one has failed. The others' parts come to
/// nothing then, whoever counts them.
#[tokio::test]
async fn c8_a_chord_fails_with_its_first_failed_member_where_it_is_told_to() {
    for (flags, is_fast) in [
        (&["--concurrency", "4"][..], false),
        (&["--concurrency", "4", "--chord-fail-fast"], true),
    ] {
        let mut stage = Stage::with(flags).await;
        let mut client = Capture::of("canvas-21-chord-member-fails").by_client();
        let mut slow = None;
        let mut chord = String::new();
        for (_, command) in client.iter_mut().filter(|(_, command)| command.text(0) == "LPUSH") {
            let mut envelope: Value = serde_json::from_slice(&command.parts[2]).unwrap();
            if envelope["headers"]["task"] == "proj.fail" {
                continue;
            }
            let mut body = crate::effects::body(&envelope).as_array().unwrap().clone();
            chord = body[2]["chord"]["options"]["task_id"].as_str().unwrap().to_owned();
            body[0] = json!([4, 1]);
            envelope["headers"]["task"] = json!("proj.sleeps");
            envelope["properties"]["body_encoding"] = json!("utf-8");
            envelope["body"] = json!(Value::Array(body).to_string());
            slow = envelope["headers"]["id"].as_str().map(str::to_owned);
            command.parts[2] = envelope.to_string().into_bytes();
        }
        for (_, command) in &client {
            stage.send(&command.parts).await;
        }
        let mut connection = stage.connection.clone();
        let (body, slow) = (
            format!("celery-task-meta-{chord}"),
            format!("celery-task-meta-{}", slow.unwrap()),
        );
        eventually(SOON, "the chord has failed", async || {
            connection.exists(&body).await == Ok(true)
        })
        .await;
        let is_running = connection.exists::<_, bool>(&slow).await == Ok(false);
        assert_eq!(is_running, is_fast, "the other member, when the chord has failed");
        let stored: String = connection.get(&body).await.unwrap();
        assert!(stored.contains("ChordError"), "{stored}");
        eventually(SOON, "the other one has ended", async || {
            connection.exists(&slow).await == Ok(true) && connection.hlen::<_, u64>("umbel:unacked").await == Ok(0)
        })
        .await;
        let again: String = connection.get(&body).await.unwrap();
        assert_eq!(again, stored, "it failed once");
        let size: Vec<String> = connection.keys("celery-taskset-meta-*.s").await.unwrap();
        assert_eq!(size, Vec::<String>::new());
    }
}

/// Expired, refused, unreadable, unknown: with Celery who waits for these without a timeout waits for ever.
#[tokio::test]
async fn c9_who_waits_for_what_was_dropped_is_told() {
    let mut stage = Stage::with(&[]).await;
    let expired = NewTask {
        expires: Some(jiff::Timestamp::UNIX_EPOCH),
        ..call("expired", "proj.add", &json!([1, 1]))
    };
    let mut pickle: Value = serde_json::from_slice(&call("pickle", "proj.add", &json!([1, 1])).encode()).unwrap();
    pickle["content-type"] = json!("application/x-python-serialize");
    let mut broken: Value = serde_json::from_slice(&call("broken", "proj.add", &json!([1, 1])).encode()).unwrap();
    broken["body"] = json!("W1tdLCB7");
    let messages = [
        expired.encode(),
        pickle.to_string().into_bytes(),
        broken.to_string().into_bytes(),
        call("unknown", "no.such.task", &json!([])).encode(),
        call("rejected", "proj.rejecter", &json!([false])).encode(),
    ];
    for raw in &messages {
        stage.send(&[b"LPUSH".to_vec(), b"celery".to_vec(), raw.clone()]).await;
    }
    let ours = stage
        .until("all are told", &messages, |ours| ours.documents.len() >= 5)
        .await;
    let mut told: Vec<(&str, &str)> = ours
        .documents
        .iter()
        .map(|stored| &stored["document"])
        .map(|document| {
            (
                document["task_id"].as_str().unwrap(),
                document["status"].as_str().unwrap(),
            )
        })
        .collect();
    told.sort_unstable();
    assert_eq!(
        told,
        [
            ("broken", "FAILURE"),
            ("expired", "REVOKED"),
            ("pickle", "FAILURE"),
            ("rejected", "FAILURE"),
            ("unknown", "FAILURE")
        ]
    );
}
