//! Servers that are killed, that lose power, that come back empty.

use std::time::{Duration, Instant};

use umbel_broker::{Broker, Config};
use umbel_testkit::redis::{self, AsyncCommands};
use umbel_testkit::{Event, History, Redis, eventually};

use crate::stage::{goes_through, ids, send, settled, told};
use crate::support::{LATER, SOON, admitted, test_worker};

/// Consuming again after the server is back.
const BACK: Duration = Duration::from_secs(5);

#[tokio::test]
async fn r01_a_killed_server_with_a_file_written_every_second_loses_only_what_it_lost_itself() {
    let mut redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "everysec"]).await;
    let history = History::new();
    let mut worker = test_worker(&redis.url(), &history, &["--concurrency", "4"]);
    admitted(&redis, 1).await;
    worker.says(SOON, "\"durability\":\"Basic\"").await;
    let (mut sent, mut at) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let mut connection = redis.connection().await;
        let some = ids(&format!("round{round}"), 40);
        send(&mut connection, &history, &some, 0.02).await.expect("sent");
        sent.extend(some);
        eventually(SOON, "work goes on", async || {
            history.total(Event::Done) >= 15 + 30 * round
        })
        .await;
        redis.kill();
        at.push(sent.len());
        redis.start_again().await;
        let mut connection = redis.connection().await;
        let took = goes_through(&mut connection, &history, &format!("back-{round}")).await;
        assert!(took < BACK, "{took:?}\n{}", worker.tail());
    }
    let mut connection = redis.connection().await;
    settled(&mut connection).await;
    // Nothing waits anywhere: what is not done, the server has lost, and then it was sent within its last two seconds.
    let verdict = history.verdict(&[]);
    assert!(verdict.lost.len() <= 80, "{verdict}");
    assert!(verdict.rerun <= 3 * 4, "at most what ran when it was killed: {verdict}");
    assert_eq!(connection.hlen("umbel:att").await, Ok(0), "nobody is charged for it");
}

#[tokio::test]
async fn r03_a_file_that_ends_anywhere_leaves_no_half_of_a_script() {
    let mut redis = Redis::durable().await;
    let history = History::new();
    {
        let _worker = test_worker(&redis.url(), &history, &["--concurrency", "4", "--max-deliveries", "9"]);
        admitted(&redis, 1).await;
        let mut connection = redis.connection().await;
        send(&mut connection, &history, &ids("m", 120), 0.02)
            .await
            .expect("sent");
        eventually(SOON, "half is done", async || history.total(Event::Done) >= 60).await;
        redis.kill(); // With the worker still at it: the file ends in the middle of the work.
    }
    let file = std::fs::read_dir(redis.folder().join("appendonlydir"))
        .expect("the file is there")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().ends_with(".incr.aof"))
        .expect("an incremental file");
    let whole = std::fs::read(&file).expect("read");
    // From the end backwards, in steps that fall on no boundary.
    for step in 1..=12_usize {
        let length = whole.len().saturating_sub(step * 977 + step * step * 13);
        std::fs::write(&file, &whole[..length]).expect("written");
        redis.start_again().await;
        let mut connection = redis.connection().await;
        let bodies: std::collections::BTreeSet<String> = connection
            .hkeys::<_, Vec<String>>("umbel:unacked")
            .await
            .expect("read")
            .into_iter()
            .collect();
        let leases: std::collections::BTreeSet<String> = connection
            .zrange::<_, Vec<String>>("umbel:lease", 0, -1)
            .await
            .expect("read")
            .into_iter()
            .collect();
        assert_eq!(bodies, leases, "cut at {length} of {}", whole.len());
        let broker = Broker::connect(&Config::new(&redis.url())).await.expect("it runs");
        let report = broker.janitor(true, Duration::ZERO).await.expect("it answers");
        assert_eq!(
            (report.leases_given, report.leases_removed, report.counts_corrected),
            (0, 0, 0),
            "cut at {length}: nothing was to be repaired"
        );
        redis.kill();
    }
    // And with the last of them a worker goes on.
    redis.start_again().await;
    let worker = test_worker(&redis.url(), &history, &[]);
    let mut connection = redis.connection().await;
    settled(&mut connection).await;
    drop(worker);
}

#[tokio::test]
async fn r04_an_emptied_server_is_noticed_and_work_goes_on() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut worker = test_worker(&redis.url(), &history, &["--concurrency", "4"]);
    admitted(&redis, 1).await;
    let mut connection = redis.connection().await;
    send(&mut connection, &history, &ids("running", 4), 3.0)
        .await
        .expect("sent");
    eventually(SOON, "they run", async || history.total(Event::Started) == 4).await;
    let begin = Instant::now();
    told(&mut connection, &["FLUSHALL"]).await;
    worker
        .says(Duration::from_secs(10), "the broker has lost its data")
        .await;
    assert!(begin.elapsed() < Duration::from_secs(10));
    eventually(SOON, "the four slots are free again", async || {
        let text: Vec<String> = connection.keys("umbel:hb:worker:*").await.unwrap_or_default();
        let Some(key) = text.first() else { return false };
        let beat: String = connection.get(key).await.unwrap_or_default();
        beat.contains("\"busy\":0")
    })
    .await;
    let took = goes_through(&mut connection, &history, "after").await;
    assert!(took < BACK, "{took:?}");
    // Their leases are gone, so nothing of theirs took effect any more.
    assert_eq!(history.total(Event::Effect), 1, "{}", worker.tail());
    assert!(worker.exit().is_none(), "no crash loop");
    settled(&mut connection).await;
}

/// A server that is away for less than a lease and for more: what runs goes on, and runs once.
#[tokio::test]
async fn r25_outages_shorter_and_longer_than_the_lease_repeat_nothing() {
    for (name, outage) in [("short", Duration::from_millis(900)), ("long", Duration::from_secs(4))] {
        let mut redis = Redis::durable().await;
        let history = History::new();
        let _workers = [
            test_worker(&redis.url(), &history, &["--concurrency", "5"]),
            test_worker(&redis.url(), &history, &["--concurrency", "5"]),
        ];
        admitted(&redis, 2).await;
        let mut connection = redis.connection().await;
        send(&mut connection, &history, &ids(name, 10), outage.as_secs_f64() + 1.0)
            .await
            .expect("sent");
        eventually(SOON, "all run", async || history.total(Event::Started) == 10).await;
        redis.kill();
        let gone = Instant::now();
        eventually(SOON, "the outage has lasted", async || gone.elapsed() >= outage).await;
        redis.start_again().await;
        let mut connection = redis.connection().await;
        let took = goes_through(&mut connection, &history, "back").await;
        assert!(took < BACK, "{name}: {took:?}");
        eventually(LATER, "all are done", async || history.total(Event::Done) >= 11).await;
        settled(&mut connection).await;
        let verdict = history.verdict(&[]);
        assert_eq!((verdict.rerun, verdict.lost.len()), (0, 0), "{name}: {verdict}");
        let charged: redis::RedisResult<usize> = connection.hlen("umbel:att").await;
        assert_eq!(charged, Ok(0), "{name}");
    }
}
