//! What a queue allows all its workers together.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use umbel_client::Task;
use umbel_testkit::{Event, eventually};

use crate::stage::{Stage, most_within, results};
use crate::support::{LATER, SOON, broker, depth};

#[tokio::test]
async fn a_paused_queue_is_consumed_nowhere_and_goes_on_at_once() {
    let stage = Stage::new(2, &["--queue", "celery,other"]).await;
    let broker = broker(&stage.redis.url()).await;
    assert!(broker.pause("celery").await.unwrap().is_paused);
    let waiting = stage
        .send((0..20).map(|_| Task::new("test.work").args(&(0.0,))).collect())
        .await;
    // The other queue goes on: what comes through it comes after what waits.
    for _ in 0..3 {
        let other = stage
            .send(vec![Task::new("umbel.echo").args(&(1,)).queue("other")])
            .await;
        results::<serde_json::Value>(&other).await;
    }
    assert_eq!(stage.history.total(Event::Started), 0);
    assert_eq!(depth(&broker, "celery").await.waiting, 20);
    let before = stage.commands().await;
    let other = stage
        .send(vec![Task::new("test.work").args(&(1.0,)).queue("other")])
        .await;
    results::<f64>(&other).await;
    let spent = stage.commands().await - before;
    assert!(
        spent < 1000.0,
        "{spent} commands in a second while a queue is paused: somebody spins"
    );
    let resumed = Instant::now();
    assert!(!broker.resume("celery").await.unwrap().is_paused);
    results::<f64>(&waiting).await;
    assert!(
        resumed.elapsed() < Duration::from_secs(3),
        "took {:?}",
        resumed.elapsed()
    );
}

#[tokio::test]
async fn no_more_than_the_queue_allows_is_held_by_all_workers_together() {
    let flags = ["--concurrency", "8", "--queue-max-in-flight", "celery=3"];
    let stage = Stage::new(3, &flags).await;
    let broker = broker(&stage.redis.url()).await;
    eventually(SOON, "the flag is in Redis", async || {
        broker.queue_policy("celery").await.unwrap().max_in_flight == Some(3)
    })
    .await;
    let began = Instant::now();
    let work = |key: &str| {
        Task::new("test.exclusive").kwargs(&serde_json::json!({"name": "all", "seconds": 0.05, "key": key}))
    };
    let handles = stage.send((0..60).map(|at| work(&at.to_string())).collect()).await;
    results::<i64>(&handles).await;
    let took = began.elapsed();
    assert_eq!(
        stage.number("most:every").await,
        3,
        "three ran at a time, no more and no fewer"
    );
    assert!(
        took < Duration::from_secs(5),
        "60 tasks of 50 ms, three at a time, took {took:?}"
    );
    // Lifted: all slots are used.
    broker.set_max_in_flight("celery", None).await.unwrap();
    let handles = stage.send((0..60).map(|at| work(&at.to_string())).collect()).await;
    results::<i64>(&handles).await;
    assert!(stage.number("most:every").await > 3);
}

#[tokio::test]
async fn a_queues_rate_is_one_for_all_its_workers_and_for_it_alone() {
    let flags = ["--queue", "celery,other", "--queue-rate", "celery=100/s/5"];
    let stage = Stage::new(3, &flags).await;
    let broker = broker(&stage.redis.url()).await;
    eventually(SOON, "the flag is in Redis", async || {
        broker.queue_policy("celery").await.unwrap().rate.is_some()
    })
    .await;
    let began = Instant::now();
    let limited = stage.send((0..250).map(|_| Task::new("bench.stamp")).collect()).await;
    let free = (0..250).map(|_| Task::new("bench.stamp").queue("other"));
    let free = stage.send(free.collect()).await;
    let free: Vec<f64> = results(&free).await;
    assert!(
        most_within(&free, Duration::from_secs(1)) > 120,
        "the other queue has no rate"
    );
    let starts: Vec<f64> = results(&limited).await;
    let took = began.elapsed();
    let most = most_within(&starts, Duration::from_secs(1));
    assert!(most <= 115, "{most} starts within a second");
    assert!(
        took >= Duration::from_millis(2300) && took < Duration::from_secs(6),
        "250 at 100/s took {took:?}"
    );
}

/// Leases of a worker that died count until they are taken back; then the others go on.
#[tokio::test]
async fn room_that_a_dead_worker_held_is_given_back() {
    let mut stage = Stage::new(1, &["--queue-max-in-flight", "2"]).await;
    let broker = broker(&stage.redis.url()).await;
    eventually(SOON, "the flag is in Redis", async || {
        broker.queue_policy("celery").await.unwrap().max_in_flight == Some(2)
    })
    .await;
    stage
        .send((0..2).map(|_| Task::new("test.work").args(&(60.0,))).collect())
        .await;
    eventually(SOON, "both run", async || stage.history.total(Event::Started) == 2).await;
    stage.add_worker(&[]);
    crate::support::admitted(&stage.redis, 2).await;
    let short = stage.send(vec![Task::new("umbel.echo").args(&(1,)).priority(9)]).await;
    assert_eq!(depth(&broker, "celery").await.waiting, 1);
    // The two come back first; purged, they leave their room to the third.
    stage.workers[0].kill();
    eventually(LATER, "both run again", async || {
        stage.history.total(Event::Started) == 4
    })
    .await;
    broker.set_max_in_flight("celery", Some(3)).await.unwrap();
    results::<serde_json::Value>(&short).await;
}

/// Counted from when it was sent, where the message says that and names no expiry of its own.
#[tokio::test]
async fn a_message_that_is_older_than_its_queue_allows_expires() {
    let stage = Stage::new(1, &["--expires-after", "30s"]).await;
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = since.unwrap().as_secs_f64();
    let sent = |seconds: f64| {
        Task::new("test.work")
            .args(&(0.0,))
            .header("umbel_sent_at", &(now - seconds))
    };
    let old = stage.client.send(sent(31.0)).await.unwrap();
    let fresh = stage.client.send(sent(1.0)).await.unwrap();
    let own = stage
        .client
        .send(sent(100.0).expires(Duration::from_secs(60)))
        .await
        .unwrap();
    results::<f64>(&[fresh, own]).await;
    let err = old.get(SOON).await.expect_err("it must not run");
    assert!(err.to_string().contains("expired"), "{err}");
    assert_eq!(stage.history.total(Event::Started), 2);
}
