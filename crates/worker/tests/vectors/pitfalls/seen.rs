//! E: what is seen from outside, and surprises.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use umbel_broker::{Broker, Config};
use umbel_protocol::control::Call;
use umbel_protocol::json::Json;
use umbel_protocol::message::{NewTask, TimeLimit};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Signal, eventually};

use super::{holds, push};
use crate::capture::Capture;
use crate::effects::Effects;
use crate::results::call;
use crate::stage::{SOON, Stage, start};

/// Celery's worker keeps what is revoked in its memory: a task for later ran after a restart.
#[tokio::test]
async fn e1_a_revoked_task_for_later_does_not_run_after_a_restart() {
    let mut stage = Stage::with(&[]).await;
    let task = NewTask {
        eta: Some(jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3)),
        ..call("unwanted", "proj.add", &json!([1, 1]))
    };
    push(&mut stage, "celery", &task).await;
    let mut connection = stage.connection.clone();
    eventually(SOON, "it is parked", async || {
        connection.zcard("umbel:delayed:celery").await == Ok(1)
    })
    .await;
    let broker = Broker::connect(&Config::new(&stage.redis.url())).await.unwrap();
    let revoke = Call::new(
        "revoke",
        Json::of(&json!({"task_id": ["unwanted"], "terminate": false, "signal": "SIGTERM"})),
    );
    broker
        .request(&revoke.publication(broker.control(), "tag"))
        .await
        .unwrap();
    let document = async |connection: &mut umbel_testkit::redis::aio::MultiplexedConnection| -> Value {
        let stored: Option<String> = connection.get("celery-task-meta-unwanted").await.unwrap();
        stored.map_or(Value::Null, |stored| serde_json::from_str(&stored).unwrap())
    };
    eventually(SOON, "it counts as revoked", async || {
        document(&mut connection).await["status"] == "REVOKED"
    })
    .await;
    stage.worker.kill();
    stage.worker = start(&stage.redis.url(), &["--name", "w2@lab"]);
    eventually(SOON, "its time has come", async || {
        connection.zcard("umbel:delayed:celery").await == Ok(0) && connection.hlen("umbel:unacked").await == Ok(0)
    })
    .await;
    assert_eq!(document(&mut connection).await["status"], json!("REVOKED"));
    let started = "\"message\":\"started\",\"task.id\"";
    assert!(!stage.worker.log().contains(started), "{}", stage.worker.tail());
}

/// Results, chords that succeed and that fail, answers: whatever a workflow leaves has a time to live.
#[tokio::test]
async fn e2_everything_that_a_workflow_leaves_has_an_end() {
    let mut stage = Stage::with(&["--result-ttl", "1h", "--result-failure-ttl", "1m"]).await;
    for name in [
        "canvas-20-chord-run",
        "canvas-21-chord-member-fails",
        "canvas-25-chain-group-chain",
    ] {
        stage.play(&Capture::of(name)).await;
    }
    stage.said("control-01-ping-full-trace").await;
    let keys: Vec<String> = stage.connection.keys("*").await.unwrap();
    let mut ends = std::collections::BTreeMap::new();
    for key in keys {
        let left: i64 = stage.connection.ttl(&key).await.unwrap();
        ends.insert(key, left);
    }
    let of = |prefix: &str| {
        let keys = ends.iter().filter(|(key, _)| key.starts_with(prefix));
        keys.map(|(key, left)| (key.clone(), *left)).collect::<Vec<_>>()
    };
    let results = of("celery-task");
    assert!(results.len() >= 10, "{ends:?}");
    assert!(
        results.iter().all(|(_, left)| (1..=86_400).contains(left)),
        "{results:?}"
    );
    for (key, left) in of("celery-task-meta-") {
        let stored: String = stage.connection.get(&key).await.unwrap();
        let most = if stored.contains("\"FAILURE\"") { 60 } else { 3600 };
        assert!((1..=most).contains(&left), "{key}: {left} s");
    }
    let endless: Vec<&String> = ends
        .iter()
        .filter(|(key, left)| **left < 0 && !key.starts_with("umbel:"))
        .map(|(key, _)| key)
        .collect();
    // Who consumes what, and the binding of the client that asked: kombu's, a few bytes for each queue and client.
    assert!(
        endless.iter().all(|key| key.starts_with("_kombu.binding.")),
        "{endless:?}"
    );
}

/// Celery's workers of all applications of a database answer; those with a control exchange of their own do not here.
#[tokio::test]
async fn e3_applications_with_an_exchange_each_do_not_answer_for_each_other() {
    let mut stage = Stage::with(&[]).await;
    let mut other = start(&stage.redis.url(), &["--name", "w2@lab", "--control-exchange", "shop"]);
    let mut connection = stage.connection.clone();
    eventually(SOON, "it listens", async || {
        let mut asked = umbel_testkit::redis::cmd("PUBSUB");
        let channels: Vec<String> = asked.arg("CHANNELS").query_async(&mut connection).await.unwrap();
        channels.contains(&"/0.shop.pidbox".to_owned())
    })
    .await;
    // Everybody of the one application is asked: one answers, under its name.
    stage.said("control-01-ping-full-trace").await;
    let answers = Effects::of(&stage.done(), &[]).answers;
    let nodes: Vec<&String> = answers
        .iter()
        .flat_map(|answer| answer["body"].as_object().unwrap().keys())
        .collect();
    assert_eq!(nodes, ["w1@lab"]);
    // A shutdown for all of the other one.
    let mut config = Config::new(&stage.redis.url());
    config.control.namespace = "shop".into();
    let broker = Broker::connect(&config).await.unwrap();
    let shutdown = Call::new("shutdown", Json::empty_object()).publication(broker.control(), "tag");
    assert_eq!(broker.request(&shutdown).await.unwrap(), 1, "one hears it");
    assert!(other.wait(SOON).await.success(), "{}", other.tail());
    assert!(stage.worker.exit().is_none(), "the first lives");
}

/// Celery's pool process and its parent each store it.
#[tokio::test]
async fn e7_a_hard_limit_is_stored_once_and_the_worker_lives() {
    let mut stage = Stage::with(&[]).await;
    let task = NewTask {
        time_limit: TimeLimit {
            hard: Some(0.5),
            soft: None,
        },
        ..call("hard", "proj.hardie", &json!([]))
    };
    let raw = push(&mut stage, "celery", &task).await;
    let next = push(&mut stage, "celery", &call("next", "proj.add", &json!([1, 1]))).await;
    let ours = stage
        .until("both", &[raw, next], |ours| ours.documents.len() >= 2)
        .await;
    let stored: Vec<(&Value, &Value)> = ours
        .documents
        .iter()
        .map(|stored| {
            (
                &stored["document"]["task_id"],
                &stored["document"]["result"]["exc_type"],
            )
        })
        .collect();
    assert_eq!(
        stored,
        [
            (&json!("hard"), &json!("TimeLimitExceeded")),
            (&json!("next"), &Value::Null)
        ]
    );
}

/// What the producer hides stays hidden from whoever watches or asks as he should; no argument is in the log, hidden or not.
#[tokio::test]
async fn e8_arguments_that_a_producer_hides_are_in_no_event_and_no_log() {
    let mut stage = Stage::with(&["--task-events"]).await;
    let hidden = NewTask {
        argsrepr: Some("('***',)".into()),
        kwargsrepr: Some("{}".into()),
        ..call("hidden", "proj.sleeps", &json!([2, "hunter2"]))
    };
    let raw = push(&mut stage, "celery", &hidden).await;
    holds(&stage, 1).await;
    let active = stage.said("control-07-active-safe").await;
    assert_eq!(active[0]["args"], json!("('***',)"), "{active}");
    stage.until("hidden", &[raw], |ours| !ours.documents.is_empty()).await;
    let mut events = Vec::new();
    eventually(SOON, "it is told of", async || {
        events = stage.all_effects().events;
        events.iter().any(|event| event["body"]["type"] == "task-succeeded")
    })
    .await;
    let received = events.iter().find(|event| event["body"]["type"] == "task-received");
    assert_eq!(received.unwrap()["body"]["args"], json!("('***',)"));
    let failing = push(
        &mut stage,
        "celery",
        &call("fails", "proj.sleeps", &json!([{"token": "hunter3"}, 1, 2, 3])),
    )
    .await;
    stage.until("fails", &[failing], |ours| ours.documents.len() >= 2).await;
    let log = stage.worker.log();
    assert!(!log.contains("hunter2") && !log.contains("hunter3"), "{log}");
}

/// Celery's warm shutdown waits for a long task without an end.
#[tokio::test]
async fn e10_a_stop_returns_within_the_grace_although_a_task_is_long() {
    let mut stage = Stage::with(&["--grace", "2s"]).await;
    let raw = push(&mut stage, "celery", &call("long", "proj.sleeps", &json!([60]))).await;
    holds(&stage, 1).await;
    stage.worker.signal(Signal::Term);
    let asked = Instant::now();
    assert!(stage.worker.wait(SOON).await.success(), "{}", stage.worker.tail());
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    let left: Vec<Vec<u8>> = stage.connection.lrange("celery", 0, -1).await.unwrap();
    assert_eq!(left, [raw], "for the next worker, byte for byte");
}
