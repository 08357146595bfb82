//! Celery's own workers on the same Redis, with a visibility timeout shorter than our tasks.

use std::time::Duration;

use serde_json::json;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, CeleryOptions, CeleryWorker, Event, History, Redis, Signal, eventually};

use crate::support::{LATER, SOON, admitted, borrowed, test_worker};

/// Its sweeps come every second and restore what is older than a second.
fn impatient() -> serde_json::Value {
    let transport = json!({"visibility_timeout": 1, "unacked_restore_interval": 1, "unacked_restore_throttle": 1});
    json!({"broker_transport_options": transport, "worker_prefetch_multiplier": 1})
}

#[tokio::test]
async fn r23_an_impatient_celery_worker_takes_nothing_of_ours() {
    let redis = Redis::start().await;
    let history = History::new();
    let _worker = test_worker(&redis.url(), &history, &["--concurrency", "8"]);
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    // Ours takes these before any Celery worker is there; each runs for four visibility timeouts.
    let ids = celery.send_all("test.work", vec![json!([4.0]); 8], json!({})).await;
    history.enqueued(borrowed(&ids));
    eventually(SOON, "ours runs them", async || history.total(Event::Started) == 8).await;
    let options = CeleryOptions {
        settings: impatient(),
        environment: vec![history.environment()],
        ..Default::default()
    };
    let _celery_worker = CeleryWorker::start(&redis.url(), &options).await;
    // Both serve one queue: whoever takes a task runs it, once.
    let mixed = celery.send_all("test.work", vec![json!([0.01]); 100], json!({})).await;
    history.enqueued(borrowed(&mixed));
    assert_eq!(celery.wait_all(&ids, LATER).await.get("SUCCESS"), Some(&8));
    assert_eq!(celery.wait_all(&mixed, LATER).await.get("SUCCESS"), Some(&100));
    let verdict = history.verdict(&[]);
    assert_eq!(
        (verdict.done, verdict.rerun, verdict.lost.len()),
        (108, 0, 0),
        "{verdict}"
    );
}

#[tokio::test]
async fn our_rate_does_not_stop_celerys_own_restores() {
    let redis = Redis::start().await;
    let history = History::new();
    let environment = || vec![history.environment()];
    let options = CeleryOptions {
        queues: "late",
        settings: impatient(),
        environment: environment(),
        ..Default::default()
    };
    let doomed = CeleryWorker::start(&redis.url(), &options).await;
    let mut celery = Celery::client(&redis.url()).await;
    let late = celery.send("peers.work", json!([2.0]), json!({"queue": "late"})).await;
    eventually(SOON, "a Celery worker has it", async || {
        history.count(Event::Started, &late) == 1
    })
    .await;
    doomed.process.signal(Signal::Kill);
    let mut connection = redis.connection().await;
    assert_eq!(
        connection.hlen("unacked").await,
        Ok(1),
        "kombu holds what its worker had"
    );
    // Ours at full rate while the next Celery worker looks for what the first one left.
    let _worker = test_worker(&redis.url(), &history, &["--queue", "busy", "--concurrency", "64"]);
    let ids = celery
        .send_all(
            "test.work",
            vec![json!([0.0]); 3000],
            json!({"queue": "busy", "ignore_result": true}),
        )
        .await;
    history.enqueued(borrowed(&ids));
    let _heir = CeleryWorker::start(&redis.url(), &options).await;
    let busy = celery
        .send_all(
            "test.work",
            vec![json!([0.0]); 3000],
            json!({"queue": "busy", "ignore_result": true}),
        )
        .await;
    history.enqueued(borrowed(&busy));
    eventually(Duration::from_secs(15), "kombu restores it", async || {
        history.count(Event::Started, &late) == 2
    })
    .await;
    eventually(SOON, "ours is done", async || history.total(Event::Done) >= 6000).await;
    eventually(SOON, "the restored one is done", async || {
        history.count(Event::Done, &late) == 1
    })
    .await;
    history.enqueued([late.as_str()]);
    let verdict = history.verdict(&[]);
    assert_eq!(
        (verdict.lost.len(), verdict.rerun),
        (0, 1),
        "only kombu's own task ran again: {verdict}"
    );
}

/// What each side knows and what only one does, beside Celery's usual pool, which acknowledges early or late.
#[tokio::test]
async fn beside_prefork_workers_nothing_is_stolen_doubled_or_stuck() {
    let redis = Redis::start().await;
    let history = History::new();
    let _worker = test_worker(&redis.url(), &history, &["--concurrency", "4"]);
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    let mut connection = redis.connection().await;
    // Longer than four visibility timeouts of theirs, and ours before they come.
    let ours = celery.send_all("test.work", vec![json!([5.0]); 3], json!({})).await;
    history.enqueued(borrowed(&ours));
    eventually(SOON, "ours runs them", async || history.total(Event::Started) == 3).await;
    let kombus = async |connection: &mut umbel_testkit::redis::aio::MultiplexedConnection| {
        let hash: bool = connection.exists("unacked").await.unwrap();
        let index: bool = connection.exists("unacked_index").await.unwrap();
        (hash, index)
    };
    assert_eq!(
        kombus(&mut connection).await,
        (false, false),
        "ours leaves kombu's record alone"
    );
    let options = CeleryOptions {
        pool: "prefork",
        concurrency: 2,
        settings: impatient(),
        environment: vec![history.environment()],
        ..Default::default()
    };
    let _first = CeleryWorker::start(&redis.url(), &options).await;
    let _second = CeleryWorker::start(&redis.url(), &options).await;
    let both = celery.send_all("test.work", vec![json!([0.01]); 150], json!({})).await;
    // Acknowledged late, and unknown to ours, which hands it back until one of them has it.
    let theirs = celery.send_all("peers.work", vec![json!([0.01]); 40], json!({})).await;
    // Parked in Redis by ours, held in memory by theirs: due once in either case.
    let later = celery
        .send_all("test.work", vec![json!([0.01]); 20], json!({"countdown": 0.5}))
        .await;
    for ids in [&both, &theirs, &later] {
        history.enqueued(borrowed(ids));
        let states = celery.wait_all(ids, LATER).await;
        assert_eq!(states.get("SUCCESS"), Some(&ids.len()), "{states:?}");
    }
    assert_eq!(celery.wait_all(&ours, LATER).await.get("SUCCESS"), Some(&3));
    let verdict = history.verdict(&[]);
    assert_eq!(
        (verdict.done, verdict.rerun, verdict.lost.len()),
        (213, 0, 0),
        "{verdict}"
    );
    eventually(SOON, "nothing is left anywhere", async || {
        let lists: usize = connection.llen("celery").await.unwrap();
        let delayed: usize = connection.zcard("umbel:delayed:celery").await.unwrap();
        let held: usize = connection.hlen("umbel:unacked").await.unwrap();
        lists + delayed + held == 0 && kombus(&mut connection).await == (false, false)
    })
    .await;
}
