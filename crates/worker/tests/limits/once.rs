//! Copies of a message.

use std::time::Duration;

use umbel_client::Task;
use umbel_testkit::{Event, eventually};

use crate::stage::{Stage, results};
use crate::support::{SOON, broker, depth};

async fn sent_twice(stage: &Stage, seconds: f64) -> Vec<umbel_client::Handle> {
    let mut handles = Vec::new();
    for at in 0..20 {
        let id = format!("copy-{seconds}-{at}");
        let task = || Task::new("test.work").args(&(seconds,)).id(&id);
        handles.extend(stage.send(vec![task(), task()]).await);
    }
    handles
}

async fn settled(stage: &Stage) {
    let broker = broker(&stage.redis.url()).await;
    eventually(SOON, "all is settled", async || {
        let depth = depth(&broker, "celery").await;
        depth.waiting + depth.in_flight + depth.delayed == 0
    })
    .await;
}

#[tokio::test]
async fn w20_without_deduplication_both_copies_run() {
    let stage = Stage::new(2, &[]).await;
    results::<f64>(&sent_twice(&stage, 0.0).await).await;
    settled(&stage).await;
    assert_eq!(stage.history.total(Event::Started), 40);
}

#[tokio::test]
async fn w20_with_deduplication_one_copy_runs_and_the_other_is_a_duplicate() {
    let stage = Stage::new(2, &["--deduplicate", "1h", "--concurrency", "4"]).await;
    // While the first runs, and after it has ended.
    for seconds in [0.05, 0.0] {
        results::<f64>(&sent_twice(&stage, seconds).await).await;
        settled(&stage).await;
    }
    results::<f64>(&sent_twice(&stage, 0.05).await).await;
    settled(&stage).await;
    assert_eq!(stage.history.total(Event::Started), 40, "copies ran");
    let duplicates: usize = stage
        .workers
        .iter()
        .map(|worker| worker.log().matches("duplicate: another copy").count())
        .sum();
    assert_eq!(duplicates, 20 + 20 + 40, "each copy is told of");
}

/// The copy that is being run dies with its worker: the message that is left is run, not dropped as a copy.
#[tokio::test]
async fn w20_deduplication_loses_nothing_when_the_worker_of_a_copy_dies() {
    let flags = ["--deduplicate", "1h"];
    let mut stage = Stage::new(1, &flags).await;
    let task = || Task::new("test.work").args(&(2.0,)).id("twice");
    let handles = stage.send(vec![task()]).await;
    eventually(SOON, "it runs", async || stage.history.total(Event::Started) == 1).await;
    stage.workers[0].kill();
    stage.add_worker(&flags);
    stage.send(vec![task()]).await;
    results::<f64>(&handles).await;
    settled(&stage).await;
    assert_eq!(stage.history.total(Event::Done), 1);
    // Retries are tries of their own.
    let flaky = stage.send(vec![Task::new("test.flaky").args(&(2,)).id("flaky")]).await;
    assert_eq!(flaky[0].get_as::<u32>(Duration::from_secs(30)).await.unwrap(), 2);
}

/// What goes on under the id of a task is no copy of it: what replaced it, and what it put back.
#[tokio::test]
async fn w20_deduplication_runs_what_goes_on_under_the_same_id() {
    let stage = Stage::new(1, &["--deduplicate", "1h", "--ack", "early"]).await;
    let replaced = stage.send(vec![Task::new("test.replaced").args(&(0.0, false))]).await;
    results::<f64>(&replaced).await;
    let requeued = stage.send(vec![Task::new("test.requeue")]).await;
    assert_eq!(results::<String>(&requeued).await, ["delivered before"]);
    assert!(!stage.workers[0].log().contains("duplicate: another copy"));
    // The end of what goes on is one.
    stage
        .send(vec![Task::new("test.work").args(&(0.0,)).id(replaced[0].id())])
        .await;
    settled(&stage).await;
    assert!(stage.workers[0].log().contains("duplicate: another copy"));
}
