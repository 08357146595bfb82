//! SIGTERM: what can end, ends; the rest goes back as it was.

use std::time::Duration;

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
