//! Messages that were taken together.

use serde_json::json;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, History, Redis};

use crate::support::{LATER, SOON, test_worker};

/// Seconds that a task computes without ever giving way; far longer than its neighbours need.
const COMPUTES: f64 = 15.0;

#[tokio::test]
async fn a_task_that_computes_keeps_back_neither_the_runs_nor_the_results_beside_it() {
    let (redis, history) = (Redis::start().await, History::new());
    let mut celery = Celery::client(&redis.url()).await;
    // All are there before the worker, so it takes them in one batch.
    let mut quick = celery.send_all("umbel.echo", vec![json!([1]); 20], json!({})).await;
    let slow = celery.send("test.spin", json!([COMPUTES]), json!({})).await;
    quick.extend(celery.send_all("umbel.echo", vec![json!([1]); 20], json!({})).await);
    let worker = test_worker(&redis.url(), &history, &["--concurrency", "64"]);
    let states = celery.wait_all(&quick, SOON).await;
    assert_eq!(states.get("SUCCESS"), Some(&40), "{}", worker.tail());
    let mut connection = redis.connection().await;
    let is_done: bool = connection.exists(format!("celery-task-meta-{slow}")).await.unwrap();
    assert!(!is_done, "they were done while it computed");
    assert!(celery.get(&slow, LATER).await.is_ok(), "{}", worker.tail());
}
