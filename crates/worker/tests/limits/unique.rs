//! Unique tasks.

use std::time::Duration;

use umbel_broker::Place;
use umbel_client::{Task, Until};
use umbel_testkit::{Event, eventually};

use crate::stage::{Stage, results};
use crate::support::{LATER, SOON, broker};

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

const HOUR: Duration = Duration::from_secs(3600);

/// Waits until a task with this key may be sent again.
async fn freed(stage: &Stage, first: &umbel_client::Handle, make: impl Fn() -> Task) {
    eventually(LATER, "its key is free", async || {
        let sent = stage.client.send(make()).await.expect("the server answers");
        sent.id() != first.id()
    })
    .await;
}

/// The key is that of what goes on under the id, alone or as the last of a chain, and is let go of at its end.
#[tokio::test]
async fn a_replaced_task_leaves_its_unique_key_to_its_successor() {
    let stage = Stage::new(1, &[]).await;
    for is_chain in [false, true] {
        let make = || {
            let task = Task::new("test.replaced").args(&(1.0, is_chain));
            task.unique(if is_chain { "chain" } else { "one" }, Until::Done, HOUR)
        };
        let before = stage.history.total(Event::Effect);
        let started = stage.history.total(Event::Started);
        let first = stage.client.send(make()).await.unwrap();
        eventually(SOON, "its successor runs", async || {
            stage.history.total(Event::Started) == started + if is_chain { 3 } else { 2 }
        })
        .await;
        assert_eq!(stage.client.send(make()).await.unwrap().id(), first.id());
        assert_eq!(
            stage.history.total(Event::Effect),
            before + usize::from(is_chain),
            "it was asked while the successor ran"
        );
        results::<f64>(std::slice::from_ref(&first)).await;
        freed(&stage, &first, make).await;
        // The one that was sent meanwhile.
        eventually(SOON, "all have ended", async || {
            stage.history.total(Event::Effect) == before + 2 * (1 + usize::from(is_chain))
        })
        .await;
    }
}

#[tokio::test]
async fn a_purge_lets_go_of_unique_keys() {
    let stage = Stage::new(1, &[]).await;
    let broker = broker(&stage.redis.url()).await;
    let waiting = || {
        Task::new("test.work")
            .args(&(0.0,))
            .queue("unserved")
            .unique("w", Until::Done, HOUR)
    };
    let delayed = || {
        let task = Task::new("test.work").args(&(0.0,)).countdown(HOUR);
        task.unique("d", Until::Done, HOUR)
    };
    let of_another = || Task::new("test.work").args(&(3.0,)).unique("o", Until::Done, HOUR);
    for (make, queue, place) in [
        (&waiting as &dyn Fn() -> Task, "unserved", Place::Waiting),
        (&delayed, "celery", Place::Delayed),
    ] {
        let first = stage.client.send(make()).await.unwrap();
        eventually(SOON, "it waits", async || {
            broker.length(queue, place).await.unwrap() == 1
        })
        .await;
        assert_eq!(stage.client.send(make()).await.unwrap().id(), first.id());
        assert_eq!(broker.purge(queue, place, 10).await.unwrap().messages, 1);
        assert_ne!(stage.client.send(make()).await.unwrap().id(), first.id(), "{queue}");
    }
    // A key that has another holder by now stays his.
    let holder = stage.client.send(of_another()).await.unwrap();
    let stale = Task::new("test.work").args(&(0.0,)).queue("unserved");
    stage
        .send(vec![stale.header(
            "umbel_unique",
            &serde_json::json!({"key": "o", "until": "done"}),
        )])
        .await;
    while broker.purge("unserved", Place::Waiting, 10).await.unwrap().messages > 0 {}
    assert_eq!(stage.client.send(of_another()).await.unwrap().id(), holder.id());
}

/// Redis has nothing but a stub of a message that was acknowledged before its run: its key is in there.
#[tokio::test]
async fn an_early_task_whose_worker_dies_lets_go_of_its_unique_key() {
    let mut stage = Stage::new(1, &[]).await;
    let make = || {
        let task = Task::new("test.early").args(&(60.0, serde_json::Value::Null));
        task.unique("early", Until::Done, HOUR)
    };
    let first = stage.client.send(make()).await.unwrap();
    eventually(SOON, "it runs", async || stage.history.total(Event::Started) == 1).await;
    assert_eq!(stage.client.send(make()).await.unwrap().id(), first.id());
    stage.workers[0].kill();
    stage.add_worker(&[]);
    freed(&stage, &first, make).await;
}
