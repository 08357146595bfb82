//! Unique tasks.

use std::time::Duration;

use umbel_client::{Task, Until};
use umbel_testkit::{Event, eventually};

use crate::stage::{Stage, results};
use crate::support::SOON;

fn report(until: Until) -> Task {
    Task::new("test.work")
        .args(&(0.5,))
        .unique("report", until, Duration::from_secs(60))
}

#[tokio::test]
async fn a_unique_task_is_sent_once_until_it_is_done() {
    let stage = Stage::new(1, &[]).await;
    let first = stage.client.send(report(Until::Done)).await.unwrap();
    for _ in 0..5 {
        let again = stage.client.send(report(Until::Done)).await.unwrap();
        assert_eq!(again.id(), first.id(), "the answer is the task that is on its way");
    }
    eventually(SOON, "it runs", async || stage.history.total(Event::Started) == 1).await;
    assert_eq!(stage.client.send(report(Until::Done)).await.unwrap().id(), first.id());
    results::<f64>(std::slice::from_ref(&first)).await;
    let mut next = first.clone();
    eventually(SOON, "the key is free", async || {
        next = stage.client.send(report(Until::Done)).await.unwrap();
        next.id() != first.id()
    })
    .await;
    results::<f64>(std::slice::from_ref(&next)).await;
    assert_eq!(stage.history.total(Event::Started), 2);
}

#[tokio::test]
async fn a_task_that_is_unique_until_it_starts_lets_one_wait_behind_it() {
    let stage = Stage::new(1, &["--concurrency", "4"]).await;
    let first = stage.client.send(report(Until::Started)).await.unwrap();
    eventually(SOON, "it runs", async || stage.history.total(Event::Started) == 1).await;
    let next = stage.client.send(report(Until::Started)).await.unwrap();
    assert_ne!(next.id(), first.id());
    results::<f64>(&[first, next]).await;
}

/// Ends of other kinds let go of the key as well: a failure, an expiry; a retry keeps it.
#[tokio::test]
async fn every_end_of_a_unique_task_lets_go_of_its_key() {
    let stage = Stage::new(1, &["--retry-initial-backoff", "300ms"]).await;
    let hour = Duration::from_secs(3600);
    let failing = || Task::new("test.fail").args(&("no",)).unique("k1", Until::Done, hour);
    let expired = || {
        let task = Task::new("test.work").args(&(0.0,)).unique("k2", Until::Done, hour);
        task.expires(Duration::from_millis(1))
            .countdown(Duration::from_millis(200))
    };
    let retried = || Task::new("test.flaky").args(&(1,)).unique("k3", Until::Done, hour);
    for make in [&failing as &dyn Fn() -> Task, &expired, &retried] {
        let first = stage.client.send(make()).await.unwrap();
        assert_eq!(stage.client.send(make()).await.unwrap().id(), first.id());
        eventually(SOON, "its key is free", async || {
            stage.client.send(make()).await.unwrap().id() != first.id()
        })
        .await;
    }
}
