//! Where Celery on Redis loses, doubles or blocks work: shown not to happen here. The letters are those of the list in
//! docs/compatibility.md; pitfalls that a capture shows are with that capture's test.

mod doubled;
mod lost;
mod seen;
mod stuck;

use std::time::Duration;

use serde_json::{Value, json};
use umbel_protocol::message::NewTask;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Process, eventually};

use crate::capture::Capture;
use crate::effects::Effects;
use crate::results::call;
use crate::stage::{SOON, Stage, start};

pub(crate) async fn push(stage: &mut Stage, key: &str, task: &NewTask) -> Vec<u8> {
    let raw = task.encode();
    stage
        .send(&[b"LPUSH".to_vec(), key.as_bytes().to_vec(), raw.clone()])
        .await;
    raw
}

pub(crate) async fn holds(stage: &Stage, count: u64) {
    let mut connection = stage.connection.clone();
    eventually(SOON, "so many are held", async || {
        connection.hlen::<_, u64>("umbel:unacked").await.unwrap() == count
    })
    .await;
}

/// With kombu a worker that has not declared the exchange deletes what it restores.
#[tokio::test]
async fn a4_a_message_goes_back_to_its_list_whatever_its_exchange() {
    let mut stage = Stage::with(&["--queue", "feed"]).await;
    let task = NewTask {
        exchange: "feeds".into(),
        routing_key: Some("feed.sport.important".into()),
        ..call("topic", "proj.sleeps", &json!([60]))
    };
    let raw = push(&mut stage, "feed", &task).await;
    holds(&stage, 1).await;
    stage.worker.kill();
    // It serves another queue, and knows of no exchange.
    stage.worker = start(&stage.redis.url(), &["--name", "w2@lab", "--queue", "other"]);
    let mut connection = stage.connection.clone();
    eventually(SOON, "it is back", async || {
        connection.lrange::<_, Vec<Vec<u8>>>("feed", 0, -1).await.unwrap() == [raw.clone()]
    })
    .await;
}

/// During a rollout Celery's old workers delete tasks that only the new ones know.
#[tokio::test]
async fn a9_an_unknown_task_goes_back_to_who_knows_it() {
    let mut stage = Stage::with(&[]).await;
    push(&mut stage, "celery", &call("busy", "proj.sleeps", &json!([3]))).await;
    holds(&stage, 1).await;
    // The one that has a free slot knows no task of the other's.
    let url = stage.redis.url();
    let flags = ["--redis-url", &url, "--standalone", "--name", "w2@lab"];
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_umbel-worker"));
    let mut other = Process::start(program, flags, &[("UMBEL_LOG", "info,umbel=debug")]);
    let raw = push(&mut stage, "celery", &call("known", "proj.add", &json!([1, 1]))).await;
    other.says(SOON, "handed back to others").await;
    let ours = stage.until("known", &[raw], |ours| ours.documents.len() == 2).await;
    let known = ours
        .documents
        .iter()
        .find(|stored| stored["document"]["task_id"] == "known")
        .unwrap();
    assert_eq!(known["document"]["result"], json!(2));
    assert_eq!(stage.connection.xlen("umbel:dead:celery").await, Ok(0));
}

/// A lease is renewed while a task runs: with a visibility timeout of 3 s a task of 9 s ran three times.
#[tokio::test]
async fn b2_b3_a_task_longer_than_the_lease_runs_once() {
    let mut stage = Stage::with(&[]).await;
    let _other = start(
        &stage.redis.url(),
        &["--name", "w2@lab", "--lease", "600ms", "--renew-every", "200ms"],
    );
    let raw = push(
        &mut stage,
        "celery",
        &call("long", "proj.sleeps", &json!([4.5, "once"])),
    )
    .await;
    let ours = stage.until("long", &[raw], |ours| !ours.documents.is_empty()).await;
    assert_eq!(ours.documents.len(), 1);
    assert_eq!(ours.documents[0]["document"]["result"], json!("once"));
    assert_eq!(ours.messages, Vec::<Value>::new(), "never put back");
}

/// With 5.6 and older a part that came twice took another's place.
#[tokio::test]
async fn b6_a_chords_member_that_comes_twice_counts_once() {
    let capture = Capture::of("canvas-20-chord-run");
    let mut stage = Stage::with(&[]).await;
    let client = capture.by_client();
    let again = client[0].1.clone();
    stage.send(&again.parts).await;
    stage
        .until("the first", &[again.parts[2].clone()], |ours| {
            !ours.documents.is_empty()
        })
        .await;
    stage.forget();
    let own: Vec<Vec<u8>> = client
        .iter()
        .filter_map(|(_, command)| command.parts.get(2).cloned())
        .collect();
    for (_, command) in client {
        stage.send(&command.parts).await;
    }
    let ours = stage.until("the body", &own, |ours| ours.documents.len() >= 2).await;
    let bodies: Vec<&Value> = ours.messages.iter().map(|message| &message["body"][0]).collect();
    assert_eq!(bodies, [&json!([[2, 4]])]);
}

/// Of two runs that end together Celery's later one can replace SUCCESS by FAILURE.
#[tokio::test]
async fn b8_a_success_is_final() {
    let mut stage = Stage::with(&[]).await;
    let first = push(&mut stage, "celery", &call("twice", "proj.add", &json!([1, 1]))).await;
    stage
        .until("the first", &[first], |ours| !ours.documents.is_empty())
        .await;
    stage.forget();
    let second = push(&mut stage, "celery", &call("twice", "proj.fail", &json!(["late"]))).await;
    stage.until("the second", &[second], |_| true).await;
    let stored: String = stage.connection.get("celery-task-meta-twice").await.unwrap();
    let stored: Value = serde_json::from_str(&stored).unwrap();
    assert_eq!((&stored["status"], &stored["result"]), (&json!("SUCCESS"), &json!(2)));
}

/// Celery's worker takes four for each process, and an idle neighbour gets none of them.
#[tokio::test]
async fn c1_a_worker_takes_no_more_than_it_has_slots_for() {
    let mut stage = Stage::with(&[]).await;
    push(&mut stage, "celery", &call("runs", "proj.sleeps", &json!([60]))).await;
    holds(&stage, 1).await;
    let mut others = Vec::new();
    for number in 0..4 {
        let task = call(&format!("waits-{number}"), "proj.add", &json!([number, 1]));
        others.push(push(&mut stage, "celery", &task).await);
    }
    let _idle = start(&stage.redis.url(), &["--name", "w2@lab"]);
    let mut connection = stage.connection.clone();
    eventually(SOON, "the idle one runs them all", async || {
        stage.effects(&others).documents.len() == 4 && connection.llen::<_, u64>("celery").await.unwrap() == 0
    })
    .await;
    holds(&stage, 1).await;
}

/// A thousand tasks for later were all in one worker's memory, and away for an hour when it was killed.
#[tokio::test]
async fn c2_a_flood_of_etas_is_held_by_nobody() {
    let mut stage = Stage::with(&[]).await;
    for number in 0..200 {
        let task = NewTask {
            eta: Some(jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3600)),
            ..call(&format!("later-{number}"), "proj.add", &json!([number, 1]))
        };
        push(&mut stage, "celery", &task).await;
    }
    let next = push(&mut stage, "celery", &call("now", "proj.add", &json!([1, 1]))).await;
    let mut connection = stage.connection.clone();
    eventually(SOON, "all are parked, and the one for now has run", async || {
        connection.zcard::<_, u64>("umbel:delayed:celery").await.unwrap() == 200
            && stage.effects(std::slice::from_ref(&next)).documents.len() == 1
    })
    .await;
    holds(&stage, 0).await;
    stage.worker.kill();
    assert_eq!(stage.connection.zcard("umbel:delayed:celery").await, Ok(200));
}

/// Nobody ever deletes the answers to a client that has died.
#[tokio::test]
async fn e4_an_answer_that_nobody_reads_goes_by_itself() {
    let mut stage = Stage::with(&[]).await;
    stage.said("control-01-ping-full-trace").await;
    let answers = Effects::of(&stage.done(), &[]).answers;
    let left: i64 = stage.connection.ttl(answers[0]["to"].as_str().unwrap()).await.unwrap();
    assert!((1..=3600).contains(&left), "{left} s");
}

/// Receivers add the difference of the zones to a time that is absolute; zero is right for all of them.
#[tokio::test]
async fn e6_events_say_no_zone() {
    let stage = Stage::with(&[]).await;
    let mut online = Vec::new();
    eventually(SOON, "it is online", async || {
        online = stage.all_effects().events;
        !online.is_empty()
    })
    .await;
    assert_eq!(online[0]["body"]["utcoffset"], json!(0.0));
    let at = online[0]["body"]["timestamp"].as_f64().unwrap();
    let now = jiff::Timestamp::now().as_second();
    assert!((at - now as f64).abs() < Duration::from_secs(60).as_secs_f64());
}
