//! A: where Celery loses work.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use umbel_protocol::message::{NewTask, TimeLimit};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::redis::aio::MultiplexedConnection;
use umbel_testkit::{Process, Redis, Relay, Signal, eventually, script};

use super::{holds, push};
use crate::capture::Capture;
use crate::results::call;
use crate::stage::{SOON, Stage, start};

/// The stored result of a task, when it has ended.
async fn ended(connection: &mut MultiplexedConnection, id: &str) -> Value {
    let mut document = Value::Null;
    eventually(SOON, &format!("{id} has ended"), async || {
        let stored: Option<String> = connection
            .get(format!("celery-task-meta-{id}"))
            .await
            .unwrap_or_default();
        document = stored.map_or(Value::Null, |stored| serde_json::from_str(&stored).unwrap());
        ["SUCCESS", "FAILURE", "REVOKED"].contains(&document["status"].as_str().unwrap_or_default())
    })
    .await;
    document
}

/// The pop answers a worker that is frozen, or whose answer is lost on the way: kombu has no record of the message yet.
#[tokio::test]
async fn a1_a_worker_that_dies_as_it_takes_a_message_loses_none() {
    let mut stage = Stage::with(&[]).await;
    stage.worker.signal(Signal::Stop);
    for number in 0..3 {
        push(
            &mut stage,
            "celery",
            &call(&format!("frozen-{number}"), "proj.add", &json!([1, number])),
        )
        .await;
    }
    stage.worker.kill();
    // Another takes one; the answer never arrives, and it is killed as well.
    let relay = Relay::before(&stage.redis).await;
    stage.send(&[b"SCRIPT".to_vec(), b"FLUSH".to_vec()]).await; // It knows scripts by the texts that pass.
    let cut = relay.cut_reply(script("reserve"));
    stage.worker = start(&relay.url(), &["--name", "w2@lab"]);
    cut.happened(SOON).await;
    stage.worker.kill();
    stage.worker = start(&stage.redis.url(), &["--name", "w3@lab"]);
    let mut connection = stage.connection.clone();
    for number in 0..3 {
        let document = ended(&mut connection, &format!("frozen-{number}")).await;
        assert_eq!(document["result"], json!(1 + number));
    }
}

/// Five long tasks, one slot, and a shutdown that is cut short: Celery's four others were away for an hour.
#[tokio::test]
async fn a3_a_shutdown_that_is_cut_short_leaves_nothing_behind() {
    let mut stage = Stage::with(&["--grace", "30s"]).await;
    let mut waiting = Vec::new();
    for number in 0..5 {
        waiting.push(
            push(
                &mut stage,
                "celery",
                &call(&format!("long-{number}"), "proj.sleeps", &json!([2, number])),
            )
            .await,
        );
    }
    holds(&stage, 1).await;
    stage.worker.signal(Signal::Term);
    stage.worker.says(SOON, "stop").await;
    stage.worker.kill();
    let mut left: Vec<Vec<u8>> = stage.connection.lrange("celery", 0, -1).await.unwrap();
    left.reverse();
    assert_eq!(left, waiting[1..], "nobody need wait for them");
    let began = Instant::now();
    stage.worker = start(&stage.redis.url(), &["--name", "w2@lab", "--concurrency", "5"]);
    let mut connection = stage.connection.clone();
    for number in 0..5 {
        assert_eq!(
            ended(&mut connection, &format!("long-{number}")).await["result"],
            json!(number)
        );
    }
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

/// Acknowledged late its member runs again and the body follows; early, the member has failed, and the body with it.
#[tokio::test]
async fn a10_a_chord_ends_although_its_members_worker_was_killed() {
    for (ack, status) in [("late", "SUCCESS"), ("early", "FAILURE")] {
        let mut stage = Stage::with(&["--ack", ack]).await;
        let mut client = Capture::of("canvas-20-chord-run").by_client();
        // The second member sleeps, in a worker that is killed.
        let (_, last) = client.last_mut().unwrap();
        let mut slow: Value = serde_json::from_slice(&last.parts[2]).unwrap();
        let body = crate::effects::body(&slow);
        let mut body = body.as_array().unwrap().clone();
        let chord = body[2]["chord"]["options"]["task_id"].as_str().unwrap().to_owned();
        body[0] = json!([3, 40]);
        slow["headers"]["task"] = json!("proj.sleeps");
        slow["body"] = json!(base64(&Value::Array(body).to_string()));
        last.parts[2] = slow.to_string().into_bytes();
        for (_, command) in &client {
            stage.send(&command.parts).await;
        }
        let key = format!("celery-taskset-meta-{}.j", slow["headers"]["group"].as_str().unwrap());
        let mut connection = stage.connection.clone();
        eventually(SOON, "one is in, one runs", async || {
            let held: Vec<Vec<u8>> = connection.hvals("umbel:unacked").await.unwrap();
            // A zero byte begins what stands for a message that was acknowledged early: until then it would run again.
            let is_acknowledged = held.first().is_some_and(|message| message.starts_with(b"\0"));
            connection.zcard::<_, u64>(&key).await.unwrap() == 1
                && held.len() == 1
                && is_acknowledged == (ack == "early")
        })
        .await;
        stage.worker.kill();
        stage.worker = start(&stage.redis.url(), &["--name", "w2@lab", "--ack", ack]);
        let document = ended(&mut connection, &chord).await;
        assert_eq!(document["status"], json!(status), "{ack}: {document}");
        if status == "FAILURE" {
            assert_eq!(document["result"]["exc_type"], json!("ChordError"));
        }
    }
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// What a server forgets is gone, whoever asks. That it will forget is said at the start, the worker serves it again at
/// once; and of one that writes its commands down nothing is lost, neither what waited nor what ran.
#[tokio::test]
async fn a11_a_server_that_forgets_is_named_and_one_that_keeps_loses_nothing() {
    let mut stage = Stage::with(&[]).await;
    stage.worker.says(SOON, "no append-only file").await;
    push(&mut stage, "celery", &call("held", "proj.sleeps", &json!([60, 0]))).await;
    holds(&stage, 1).await;
    stage.redis.kill();
    stage.redis.start_again().await;
    let began = Instant::now();
    stage.connection = stage.redis.connection().await;
    push(&mut stage, "celery", &call("next", "proj.add", &json!([2, 2]))).await;
    let mut connection = stage.connection.clone();
    assert_eq!(ended(&mut connection, "next").await["result"], json!(4));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());

    let mut redis = Redis::durable().await;
    let mut worker = start(&redis.url(), &[]);
    let mut connection = redis.connection().await;
    for number in 0..9 {
        let task = call(&format!("kept-{number}"), "proj.sleeps", &json!([0.3, number])).encode();
        let _: () = connection.lpush("celery", task).await.unwrap();
    }
    ended(&mut connection, "kept-0").await;
    redis.kill();
    redis.start_again().await;
    let mut connection = redis.connection().await;
    for number in 0..9 {
        let document = ended(&mut connection, &format!("kept-{number}")).await;
        assert_eq!(document["result"], json!(number));
    }
    assert!(worker.exit().is_none(), "{}", worker.tail());
}

/// A server that may throw away any key is named as what it is, and refused where it is told to be.
#[tokio::test]
async fn a12_a_server_that_evicts_is_reported_or_refused() {
    let evicting = ["--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"];
    let redis = Redis::start_with(&evicting).await;
    let mut connection = redis.connection().await;
    let task = call("first", "proj.add", &json!([1, 1])).encode();
    let _: () = connection.lpush("celery", task).await.unwrap();
    let mut strict = start(&redis.url(), &["--name", "w2@lab", "--refuse-eviction"]);
    strict.says(SOON, "allkeys-lru").await;
    assert_eq!(connection.llen("celery").await, Ok(1), "it takes nothing");
    let mut worker = start(&redis.url(), &[]);
    worker.says(SOON, "messages may be thrown away").await;
    assert_eq!(ended(&mut connection, "first").await["result"], json!(2));
    assert_eq!(connection.llen("celery").await, Ok(0));
}

/// The server has no memory for the retry: with Celery the task is gone then. Here nothing is settled until it has.
#[tokio::test]
async fn a13_a_retry_that_cannot_be_stored_is_stored_later() {
    let mut stage = Stage::with(&["--retry-initial-backoff", "1s"]).await;
    push(&mut stage, "celery", &call("again", "proj.autoretry", &json!([1]))).await;
    let warmed = stage.until("a first one", &[], |ours| ours.documents.len() >= 2).await;
    assert_eq!(warmed.documents.len(), 2, "RETRY and SUCCESS");
    push(&mut stage, "celery", &call("full", "proj.sleeps", &json!([1, 0]))).await;
    holds(&stage, 1).await;
    let mut connection = stage.connection.clone();
    // From here on nothing can be written.
    stage.redis.set("min-replicas-to-write", "1").await;
    let held = async |connection: &mut MultiplexedConnection| connection.hlen::<_, u64>("umbel:unacked").await;
    let mut worker = stage.worker.log().len();
    eventually(SOON, "the worker cannot settle", async || {
        let log = stage.worker.log();
        let grown = log.len() > worker && log[worker..].contains("NOREPLICAS");
        worker = worker.min(log.len());
        grown
    })
    .await;
    assert_eq!(held(&mut connection).await, Ok(1), "it is held");
    stage.redis.set("min-replicas-to-write", "0").await;
    assert_eq!(ended(&mut connection, "full").await["status"], json!("SUCCESS"));
    eventually(SOON, "settled", async || held(&mut connection).await == Ok(0)).await;
}

/// kombu's `ack_emulation` turns its record off. Here a message is on record as long as nobody has ended it.
#[tokio::test]
async fn a14_no_setting_turns_the_record_of_messages_off() {
    let mut stage = Stage::with(&[]).await;
    stage.worker.kill();
    let url = format!("{}?ack_emulation=false", stage.redis.url());
    stage.worker = start(&url, &["--name", "w2@lab"]);
    let task = NewTask {
        time_limit: TimeLimit {
            hard: Some(60.0),
            soft: None,
        },
        ..call("kept", "proj.sleeps", &json!([2, "kept"]))
    };
    push(&mut stage, "celery", &task).await;
    let is_refused = refuses(&mut stage.worker, &stage.connection).await;
    if !is_refused {
        stage.worker.kill();
    }
    stage.worker = start(&stage.redis.url(), &["--name", "w3@lab"]);
    let mut connection = stage.connection.clone();
    assert_eq!(ended(&mut connection, "kept").await["result"], json!("kept"));
}

/// Has the worker ended, or does it hold the message?
async fn refuses(worker: &mut Process, connection: &MultiplexedConnection) -> bool {
    let mut connection = connection.clone();
    let mut is_refused = false;
    eventually(SOON, "it holds the message, or has refused the address", async || {
        is_refused = worker.exit().is_some();
        is_refused || connection.hlen::<_, u64>("umbel:unacked").await == Ok(1)
    })
    .await;
    is_refused
}
