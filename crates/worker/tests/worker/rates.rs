//! Rate limits, set by remote control.

use std::time::{Duration, Instant};

use serde_json::json;
use umbel_testkit::{Celery, Event, History, Process, Redis, Signal, eventually};

use crate::support::{SOON, admitted, borrowed, test_worker};

const NODE: &str = "w1@lab";

async fn stage(history: &History, flags: &[&str]) -> (Redis, Process, Celery) {
    let redis = Redis::start().await;
    let mut all = vec!["--name", NODE];
    all.extend(flags);
    let worker = test_worker(&redis.url(), history, &all);
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    eventually(SOON, "the worker answers", async || {
        celery.inspect(&[NODE], "ping", json!([])).await[NODE].is_object()
    })
    .await;
    (redis, worker, celery)
}

async fn limit(celery: &mut Celery, rate: &str) {
    let arguments = json!({"task_name": "test.work", "rate_limit": rate});
    let said = celery.control(&[], "rate_limit", arguments).await;
    assert_eq!(said[NODE]["ok"], json!("new rate limit set successfully"), "{said}");
}

#[tokio::test]
async fn a_limited_task_keeps_to_its_rate_and_holds_up_nobody() {
    let history = History::new();
    // One slot: a message that waited in it would hold up everything.
    let (_redis, worker, mut celery) = stage(&history, &["--concurrency", "1"]).await;
    limit(&mut celery, "50/s").await;
    let shown = celery.inspect(&[NODE], "registered", json!([])).await;
    let shown = shown[NODE].as_array().expect("a list").clone();
    assert!(shown.contains(&json!("test.work [rate_limit=50/s]")), "{shown:?}");
    let began = Instant::now();
    let limited = celery.send_all("test.work", vec![json!([0.0]); 100], json!({})).await;
    history.enqueued(borrowed(&limited));
    let other = celery.send("umbel.echo", json!([]), json!({})).await;
    assert!(celery.get(&other, SOON).await.is_ok());
    assert!(
        history.total(Event::Done) < 100,
        "the other task did not wait for all that came before it"
    );
    assert_eq!(celery.wait_all(&limited, SOON).await.get("SUCCESS"), Some(&100));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(1900), "100 at 50/s took {took:?}");
    assert!(took < Duration::from_secs(8), "100 at 50/s took {took:?}: {}", worker.tail());
    let verdict = history.verdict(&[]);
    assert_eq!((verdict.done, verdict.rerun, verdict.lost.len()), (100, 0, 0), "{verdict}");
    limit(&mut celery, "0").await;
    let began = Instant::now();
    let free = celery.send_all("test.work", vec![json!([0.0]); 100], json!({})).await;
    celery.wait_all(&free, SOON).await;
    assert!(began.elapsed() < Duration::from_millis(1900), "the limit is lifted");
}

#[tokio::test]
async fn what_waits_for_its_turn_is_shown_kept_and_handed_back() {
    let history = History::new();
    let (redis, mut worker, mut celery) = stage(&history, &["--concurrency", "2"]).await;
    limit(&mut celery, "1/m").await;
    let ids = celery.send_all("test.work", vec![json!([0.0]); 4], json!({})).await;
    eventually(SOON, "one runs, three wait", async || {
        let scheduled = celery.inspect(&[NODE], "scheduled", json!([])).await;
        let reserved = celery.inspect(&[NODE], "reserved", json!([])).await;
        let count = |list: &serde_json::Value| list[NODE].as_array().map_or(0, Vec::len);
        history.total(Event::Done) == 1 && count(&scheduled) + count(&reserved) == 3
    })
    .await;
    let began = Instant::now();
    worker.signal(Signal::Term);
    assert!(worker.wait(SOON).await.success());
    assert!(began.elapsed() < Duration::from_secs(3), "a stop waits for no turn");
    // Limits are a worker's own: the next one has none.
    let _next = test_worker(&redis.url(), &history, &["--name", "w2@lab"]);
    limit_lifted(&mut celery, &ids).await;
    assert_eq!(history.total(Event::Started), 4);
}

/// What was put aside comes back after 45 s at the latest.
async fn limit_lifted(celery: &mut Celery, ids: &[String]) {
    let states = celery.wait_all(ids, Duration::from_secs(60)).await;
    assert_eq!(states.get("SUCCESS"), Some(&ids.len()), "{states:?}");
}

#[tokio::test]
async fn two_workers_run_a_task_twice_as_often() {
    let history = History::new();
    let (redis, _worker, mut celery) = stage(&history, &[]).await;
    let _other = test_worker(&redis.url(), &history, &["--name", "w2@lab"]);
    admitted(&redis, 2).await;
    eventually(SOON, "both answer", async || {
        let both = celery.inspect(&[], "ping", json!([])).await;
        both.as_object().is_some_and(|both| both.len() == 2)
    })
    .await;
    limit(&mut celery, "20/s").await;
    let began = Instant::now();
    let ids = celery.send_all("test.work", vec![json!([0.0]); 120], json!({})).await;
    assert_eq!(celery.wait_all(&ids, SOON).await.get("SUCCESS"), Some(&120));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(2900), "120 at 2 × 20/s took {took:?}");
    assert!(took < Duration::from_secs(5), "120 at 2 × 20/s took {took:?}: one alone needs six");
}
