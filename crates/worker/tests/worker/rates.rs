//! Rate limits, set by remote control.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
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
    assert!(
        took < Duration::from_secs(8),
        "100 at 50/s took {took:?}: {}",
        worker.tail()
    );
    let verdict = history.verdict(&[]);
    assert_eq!(
        (verdict.done, verdict.rerun, verdict.lost.len()),
        (100, 0, 0),
        "{verdict}"
    );
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
    // One every six seconds: the first runs, the second waits in the worker, the third in Redis.
    limit(&mut celery, "10/m").await;
    let ids = celery.send_all("test.work", vec![json!([0.0]); 3], json!({})).await;
    eventually(SOON, "one runs, two wait", async || {
        let scheduled = celery.inspect(&[NODE], "scheduled", json!([])).await;
        let reserved = celery.inspect(&[NODE], "reserved", json!([])).await;
        let ids_of = |list: &[Value], at: &str| -> Vec<String> {
            let found = list.iter().filter_map(|task| task.pointer(at)?.as_str());
            found.map(str::to_owned).collect()
        };
        let list = |answer: &Value| answer[NODE].as_array().cloned().unwrap_or_default();
        ids_of(&list(&reserved), "/id") == ids[1..2] && ids_of(&list(&scheduled), "/request/id") == ids[2..3]
    })
    .await;
    let asked = celery.inspect(&[NODE], "query_task", json!(ids)).await;
    assert_eq!(asked[NODE][&ids[1]][0], json!("reserved"), "{asked}");
    assert_eq!(asked[NODE][&ids[2]][0], json!("scheduled"), "{asked}");
    let began = Instant::now();
    worker.signal(Signal::Term);
    assert!(worker.wait(SOON).await.success());
    assert!(began.elapsed() < Duration::from_secs(3), "a stop waits for no turn");
    // Limits are a worker's own: the next one has none.
    let _next = test_worker(&redis.url(), &history, &["--name", "w2@lab"]);
    assert_eq!(celery.wait_all(&ids, SOON).await.get("SUCCESS"), Some(&3));
    assert_eq!(history.total(Event::Started), 3);
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
    assert!(
        took < Duration::from_secs(5),
        "120 at 2 × 20/s took {took:?}: one alone needs six"
    );
}
