//! Redis away, restarted, or unwilling.

use std::time::{Duration, Instant};

use serde_json::json;
use umbel_testkit::redis::{self, AsyncCommands};
use umbel_testkit::{Celery, Event, History, Redis, Relay, eventually};

use crate::support::{LATER, SOON, admitted, borrowed, test_worker};

#[tokio::test]
async fn a_worker_waits_for_a_server_that_is_not_there_yet() {
    let mut redis = Redis::start().await;
    redis.kill();
    let history = History::new();
    let mut worker = test_worker(&redis.url(), &history, &[]);
    worker.says(SOON, &format!("127.0.0.1:{}", redis.port())).await;
    assert!(worker.exit().is_none(), "it waits");
    redis.start_again().await;
    let mut celery = Celery::client(&redis.url()).await;
    let id = celery.send("test.work", json!([0.0]), json!({})).await;
    assert_eq!(celery.get(&id, SOON).await, Ok(json!(0.0)));
    let warnings = worker
        .log()
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        .count();
    assert!(warnings < 20, "it does not flood its log: {}", worker.tail());
}

#[tokio::test]
async fn r02_nothing_is_lost_when_the_server_is_killed_again_and_again() {
    let mut redis = Redis::durable().await;
    let history = History::new();
    let flags = ["--concurrency", "8"];
    let _workers = [
        test_worker(&redis.url(), &history, &flags),
        test_worker(&redis.url(), &history, &flags),
    ];
    admitted(&redis, 2).await;
    let mut celery = Celery::client(&redis.url()).await;
    let ids = celery.send_all("test.work", vec![json!([0.02]); 800], json!({})).await;
    history.enqueued(borrowed(&ids));
    for round in 1..=4 {
        eventually(LATER, "work goes on", async || {
            history.total(Event::Done) >= round * 100
        })
        .await;
        redis.start_again().await;
    }
    eventually(LATER, "all are done", async || history.verdict(&[]).lost.is_empty()).await;
    let verdict = history.verdict(&[]);
    assert_eq!(verdict.rerun, 0, "workers that live repeat nothing: {verdict}");
    let mut connection = redis.connection().await;
    eventually(SOON, "nothing is held", async || {
        connection.hlen("umbel:unacked").await == Ok(0)
    })
    .await;
}

#[tokio::test]
async fn an_outage_longer_than_the_lease_repeats_nothing() {
    let redis = Redis::start().await;
    let relay = Relay::before(&redis).await;
    let history = History::new();
    let flags = ["--concurrency", "10"];
    let _workers = [
        test_worker(&relay.url(), &history, &flags),
        test_worker(&relay.url(), &history, &flags),
    ];
    admitted(&redis, 2).await;
    let mut celery = Celery::client(&redis.url()).await;
    // Some end after the outage, some in it: their ends have to wait for longer than a lease.
    let mut ids = celery.send_all("test.work", vec![json!([8.0]); 10], json!({})).await;
    ids.extend(celery.send_all("test.work", vec![json!([1.5]); 10], json!({})).await);
    history.enqueued(borrowed(&ids));
    eventually(SOON, "all run", async || history.total(Event::Started) == 20).await;
    let begin = Instant::now();
    relay.close();
    let mut connection = redis.connection().await;
    eventually(SOON, "every lease has run out", async || {
        let (seconds, _): (u64, u64) = redis::cmd("TIME")
            .query_async(&mut connection)
            .await
            .unwrap_or_default();
        connection.zcount("umbel:lease", seconds, "+inf").await == Ok(0) && begin.elapsed() > Duration::from_secs(5)
    })
    .await;
    relay.resume();
    eventually(LATER, "all are done", async || history.total(Event::Done) >= 20).await;
    eventually(SOON, "all are settled", async || {
        connection.hlen("umbel:unacked").await == Ok(0)
    })
    .await;
    let verdict = history.verdict(&[]);
    assert_eq!(
        (verdict.rerun, verdict.repeated_effects, verdict.lost.len()),
        (0, 0, 0),
        "{verdict}"
    );
}

#[tokio::test]
async fn missing_rights_are_named_and_work_goes_on_when_they_are_given() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut worker = test_worker(&redis.url(), &history, &[]);
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    let mut connection = redis.connection().await;
    let rights = async |connection: &mut redis::aio::MultiplexedConnection, rule: &str| {
        let mut set = redis::cmd("ACL");
        set.arg("SETUSER")
            .arg("default")
            .arg(rule.split(' ').collect::<Vec<_>>());
        set.query_async::<()>(connection).await.expect("the server answers");
    };
    rights(&mut connection, "-evalsha -eval").await;
    let ids = celery.send_all("test.work", vec![json!([0.0]); 10], json!({})).await;
    history.enqueued(borrowed(&ids));
    worker.says(SOON, "evalsha").await;
    assert!(worker.exit().is_none(), "no crash loop");
    assert_eq!(history.total(Event::Started), 0);
    rights(&mut connection, "+evalsha +eval").await;
    assert_eq!(celery.wait_all(&ids, SOON).await.get("SUCCESS"), Some(&10));
    let lines = worker.log().lines().filter(|line| line.contains("evalsha")).count();
    assert!(lines < 20, "it does not flood its log: {lines} lines");
}
