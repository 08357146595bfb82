//! SIGTERM: what can end, ends; the rest goes back as it was.

use std::time::{Duration, Instant};

use serde_json::json;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, Event, History, Redis, Signal, eventually};

use crate::support::{SOON, borrowed, test_worker};

#[tokio::test]
async fn running_tasks_end_within_the_grace() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut worker = test_worker(&redis.url(), &history, &["--grace", "20s", "--concurrency", "2"]);
    let mut celery = Celery::client(&redis.url()).await;
    let ids = celery.send_all("test.work", vec![json!([1.5]); 4], json!({})).await;
    history.enqueued(borrowed(&ids));
    eventually(SOON, "two run", async || history.total(Event::Started) == 2).await;
    worker.signal(Signal::Term);
    assert!(worker.wait(Duration::from_secs(10)).await.success());
    assert_eq!(
        (history.total(Event::Started), history.total(Event::Done)),
        (2, 2),
        "and no new one begins"
    );
    let mut connection = redis.connection().await;
    assert_eq!(connection.llen("celery").await, Ok(2));
    assert_eq!(connection.hlen("umbel:unacked").await, Ok(0));
    assert_eq!(connection.hlen("umbel:workers").await, Ok(0), "it leaves no trace");
    assert_eq!(
        celery.wait_all(&ids[..2], SOON).await.get("SUCCESS"),
        Some(&2),
        "their results are stored"
    );
}

#[tokio::test]
async fn what_cannot_end_goes_back_to_the_head_of_its_list_uncharged() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut worker = test_worker(&redis.url(), &history, &["--grace", "3s", "--concurrency", "3"]);
    let mut celery = Celery::client(&redis.url()).await;
    let ids = celery.send_all("test.work", vec![json!([600.0]); 6], json!({})).await;
    eventually(SOON, "three run", async || history.total(Event::Started) == 3).await;
    let begin = Instant::now();
    worker.signal(Signal::Term);
    assert!(worker.wait(SOON).await.success());
    let took = begin.elapsed();
    assert!(
        took < Duration::from_secs(4),
        "it exits before the grace ends, not after {took:?}"
    );
    let mut connection = redis.connection().await;
    let mut waiting: Vec<String> = connection.lrange("celery", 0, -1).await.expect("the server answers");
    waiting.reverse();
    let found: Vec<String> = waiting
        .iter()
        .map(|raw| serde_json::from_str::<serde_json::Value>(raw).expect("as it was sent")["headers"]["id"].clone())
        .filter_map(|id| id.as_str().map(str::to_owned))
        .collect();
    assert_eq!(found[3..], ids[3..], "those that were never taken keep their places");
    let mut head = found[..3].to_vec();
    head.sort();
    let mut taken = ids[..3].to_vec();
    taken.sort();
    assert_eq!(head, taken, "those that ran are before them");
    assert_eq!(connection.hlen("umbel:att").await, Ok(0), "nobody is charged");
    assert_eq!(connection.hlen("umbel:unacked").await, Ok(0));
}
