//! Workers that end by themselves.

use std::time::Duration;

use umbel_client::Task;
use umbel_testkit::{Event, Signal, eventually};

use crate::stage::{Stage, results};
use crate::support::SOON;

#[tokio::test]
async fn a_worker_ends_after_its_tasks_and_the_next_does_the_rest() {
    let flags = ["--concurrency", "4", "--max-tasks", "20"];
    let mut stage = Stage::new(1, &flags).await;
    let handles = stage
        .send((0..30).map(|_| Task::new("test.work").args(&(0.05,))).collect())
        .await;
    let status = stage.workers[0].wait(SOON).await;
    assert!(status.success(), "{status}");
    let ran = stage.history.total(Event::Started);
    assert!((18..=20).contains(&ran), "{ran} ran");
    assert_eq!(stage.history.total(Event::Done), ran, "none was cut short");
    assert!(
        stage.workers[0]
            .log()
            .contains("recycling: ran as many tasks as it may")
    );
    stage.add_worker(&["--concurrency", "4"]);
    results::<f64>(&handles).await;
    assert_eq!(stage.history.total(Event::Started), 30);
}

/// What waits for its turn has not run yet: it is counted when it starts, and a turn that was given is used.
#[tokio::test]
async fn a_worker_with_few_tasks_and_a_rate_runs_as_many_as_it_may() {
    let flags = [
        "--concurrency",
        "8",
        "--max-tasks",
        "5",
        "--task-rate",
        "test.work=20/s/1",
    ];
    let mut stage = Stage::new(1, &flags).await;
    stage
        .send((0..12).map(|_| Task::new("test.work").args(&(0.0,))).collect())
        .await;
    let status = stage.workers[0].wait(SOON).await;
    assert!(status.success(), "{status}");
    assert_eq!(stage.history.total(Event::Started), 5);
    assert_eq!(stage.history.total(Event::Done), 5);
}

/// Its grace to stop is shorter than what runs: it waits for it all the same, unless it is told to stop.
#[tokio::test]
async fn a_worker_that_is_old_finishes_what_runs() {
    let flags = ["--max-age", "600ms", "--grace", "1s"];
    let mut stage = Stage::new(1, &flags).await;
    let handles = stage.send(vec![Task::new("test.work").args(&(3.0,))]).await;
    stage.workers[0].says(SOON, "recycling: old enough").await;
    let late = stage.send(vec![Task::new("umbel.echo").args(&(1,))]).await;
    results::<f64>(&handles).await;
    assert!(stage.workers[0].wait(SOON).await.success());
    assert_eq!(stage.history.total(Event::Started), 1);
    stage.add_worker(&[]);
    results::<serde_json::Value>(&late).await;
}

#[tokio::test]
async fn a_worker_that_recycles_is_stopped_by_a_signal_within_its_grace() {
    let mut stage = Stage::new(1, &["--max-age", "500ms", "--grace", "2s"]).await;
    stage.send(vec![Task::new("test.work").args(&(60.0,))]).await;
    stage.workers[0].says(SOON, "recycling: old enough").await;
    stage.workers[0].signal(Signal::Term);
    assert!(stage.workers[0].wait(Duration::from_secs(6)).await.success());
    let broker = crate::support::broker(&stage.redis.url()).await;
    eventually(SOON, "it was handed back", async || {
        crate::support::depth(&broker, "celery").await.waiting == 1
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_is_too_large_ends_when_it_is_idle() {
    let mut stage = Stage::new(1, &["--max-memory", "1Mi"]).await;
    assert!(stage.workers[0].wait(SOON).await.success());
    assert!(
        stage.workers[0]
            .log()
            .contains("recycling: uses more memory than it may")
    );
}
