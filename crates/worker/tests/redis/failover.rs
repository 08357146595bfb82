//! A primary that moves: Sentinels, replicas that lag, and two that believe to be it.

use std::time::{Duration, Instant};

use umbel_testkit::redis::{self, AsyncCommands};
use umbel_testkit::{Event, Flow, History, Pipe, Redis, Sentinels, eventually};

use crate::stage::{all_done, goes_through, ids, send, settled, told};
use crate::support::{LATER, SOON, admitted, test_worker};

/// A worker learns of a new primary within this time after it has become one.
const FOUND: Duration = Duration::from_secs(2);

async fn is_primary(server: &Redis) -> bool {
    let Some(mut connection) = server.try_connection().await else {
        return false;
    };
    let role: redis::RedisResult<Vec<redis::Value>> = redis::cmd("ROLE").query_async(&mut connection).await;
    role.is_ok_and(|role| role.first() == Some(&redis::Value::BulkString(b"master".to_vec())))
}

#[tokio::test]
async fn r07_a_new_primary_is_found_by_every_connection_and_no_task_pays_for_it() {
    let first = Redis::start().await;
    let second = Redis::replica_of(first.port(), &[]).await;
    let sentinels = Sentinels::watch(first.port(), 3, "").await;
    let history = History::new();
    let mut worker = test_worker(&sentinels.url(), &history, &["--concurrency", "8"]);
    admitted(&first, 1).await;
    let mut connection = first.connection().await;
    send(&mut connection, &history, &ids("before", 60), 0.1)
        .await
        .expect("sent");
    told(&mut connection, &["WAIT", "1", "1000"]).await;
    eventually(SOON, "some run", async || history.total(Event::Done) >= 10).await;
    let done = history.total(Event::Done);
    sentinels.fail_over().await;
    eventually(SOON, "most Sentinels know the new primary", async || {
        sentinels.primary().await == Some(second.port()) && is_primary(&second).await
    })
    .await;
    let mut connection = second.connection().await;
    let took = goes_through(&mut connection, &history, "at-the-new-one").await;
    assert!(took < FOUND, "found after {took:?}\n{}", worker.tail());
    // The old primary acknowledges until it is told; what only it has seen runs again.
    let window = history.total(Event::Done) - done + 8;
    let verdict = all_done(&history, LATER).await;
    assert!(verdict.rerun <= window, "at most {window}: {verdict}");
    settled(&mut connection).await;
    assert_eq!(connection.hlen("umbel:att").await, Ok(0), "nobody is charged for it");
    // Every connection has left the old one: it sees nobody but its primary, the Sentinels and us.
    eventually(SOON, "the old one is left", async || {
        let Some(mut old) = first.try_connection().await else {
            return false;
        };
        let list: String = redis::cmd("CLIENT")
            .arg("LIST")
            .query_async(&mut old)
            .await
            .unwrap_or_default();
        let is_ours = |line: &&str| line.contains("cmd=evalsha") || line.contains("cmd=subscribe");
        !list.is_empty() && list.lines().filter(is_ours).all(|line| line.contains("name=sentinel"))
    })
    .await;
    assert!(worker.exit().is_none());
}

/// One address in front, as a Service has it, and nobody who tells of a failover: the refusals of writes do.
#[tokio::test]
async fn r07_a_demoted_server_behind_one_address_is_left() {
    let first = Redis::start().await;
    let second = Redis::replica_of(first.port(), &[]).await;
    let address = Pipe::to(first.port()).await;
    let history = History::new();
    let mut worker = test_worker(&address.url(), &history, &[]);
    admitted(&first, 1).await;
    let (mut old, mut new) = (first.connection().await, second.connection().await);
    send(&mut old, &history, &ids("before", 20), 0.1).await.expect("sent");
    told(&mut old, &["WAIT", "1", "1000"]).await;
    told(&mut new, &["REPLICAOF", "NO", "ONE"]).await;
    address.lead_to(second.port());
    let port = second.port().to_string();
    told(&mut old, &["REPLICAOF", "127.0.0.1", &port]).await;
    let took = goes_through(&mut new, &history, "at-the-new-one").await;
    assert!(took < FOUND, "{took:?}\n{}", worker.tail());
    let verdict = all_done(&history, LATER).await;
    assert!(verdict.rerun <= 10, "at most what ran in that moment: {verdict}");
    settled(&mut new).await;
    assert!(worker.exit().is_none());
}

#[tokio::test]
async fn r05_after_a_failover_to_a_lagging_replica_fences_grow_and_nothing_confirmed_is_lost() {
    let mut first = Redis::start().await;
    let link = Pipe::to(first.port()).await;
    let second = Redis::replica_of(link.port(), &[]).await;
    let sentinels = Sentinels::watch(first.port(), 1, "").await;
    let history = History::new();
    let mut worker = test_worker(&sentinels.url(), &history, &["--concurrency", "4"]);
    admitted(&first, 1).await;
    let mut connection = first.connection().await;
    let confirmed = ids("confirmed", 40);
    send(&mut connection, &history, &confirmed, 0.05).await.expect("sent");
    told(&mut connection, &["WAIT", "1", "2000"]).await;
    link.set(Flow {
        is_stopped: true,
        ..Flow::default()
    });
    let seen = history.total(Event::Done);
    eventually(SOON, "more are done than the replica knows", async || {
        history.total(Event::Done) >= seen + 8
    })
    .await;
    let fence: u64 = connection.get("umbel:fence").await.expect("a fence");
    first.kill();
    eventually(SOON, "the replica is the primary", async || is_primary(&second).await).await;
    let done = history.total(Event::Done);
    let mut connection = second.connection().await;
    let took = goes_through(&mut connection, &history, "at-the-new-one").await;
    assert!(took < FOUND + Duration::from_secs(1), "{took:?}\n{}", worker.tail());
    let verdict = all_done(&history, LATER).await;
    assert!(
        verdict.rerun <= done + 4,
        "only what the replica did not know runs again: {verdict}"
    );
    settled(&mut connection).await;
    let later: u64 = connection.get("umbel:fence").await.expect("a fence");
    assert!(later > fence, "the fence went back: {later} after {fence}");
    worker.says(SOON, "the primary has moved").await;
}

#[tokio::test]
async fn r06_of_two_primaries_the_one_without_replicas_takes_no_writes() {
    let guard = ["--min-replicas-to-write", "1", "--min-replicas-max-lag", "2"];
    let first = Redis::start_with(&guard).await;
    // The Sentinels and the worker see the first server through one wire, its replica through another.
    let (outside, link) = (Pipe::to(first.port()).await, Pipe::to(first.port()).await);
    let second = Redis::replica_of(link.port(), &guard).await;
    second.set("min-replicas-to-write", "0").await;
    let sentinels = Sentinels::watch(outside.port(), 1, "").await;
    let history = History::new();
    let mut worker = test_worker(&sentinels.url(), &history, &["--concurrency", "4"]);
    eventually(SOON, "the worker is admitted", async || {
        let entries: Vec<String> = first
            .connection()
            .await
            .hvals("umbel:workers")
            .await
            .unwrap_or_default();
        entries.iter().any(|entry| entry.starts_with("open"))
    })
    .await;
    let mut connection = first.connection().await;
    send(&mut connection, &history, &ids("confirmed", 20), 0.1)
        .await
        .expect("sent");
    told(&mut connection, &["WAIT", "1", "2000"]).await;
    let parted = Instant::now();
    for wire in [&outside, &link] {
        wire.set(Flow {
            is_stopped: true,
            is_closed: true,
            ..Flow::default()
        });
    }
    outside.sever();
    // A producer on the wrong side: refused as soon as the lag is noticed.
    eventually(SOON, "the old primary takes no writes", async || {
        let pushed: redis::RedisResult<()> = connection.lpush("elsewhere", "x").await;
        pushed.is_err_and(|err| err.code() == Some("NOREPLICAS"))
    })
    .await;
    assert!(parted.elapsed() < Duration::from_secs(5), "{:?}", parted.elapsed());
    eventually(SOON, "the replica is the primary", async || is_primary(&second).await).await;
    let mut connection = second.connection().await;
    let took = goes_through(&mut connection, &history, "on-the-right-side").await;
    assert!(took < FOUND + Duration::from_secs(1), "{took:?}\n{}", worker.tail());
    let verdict = all_done(&history, LATER).await;
    assert!(verdict.rerun <= 20, "{verdict}");
    assert!(worker.exit().is_none());
    // Who names a replica by its address is told so, and does not work on it.
    let replica = Redis::replica_of(second.port(), &[]).await;
    let mut lost = test_worker(&replica.url(), &history, &[]);
    lost.says(SOON, &format!("replica of 127.0.0.1:{}", second.port()))
        .await;
}

/// An acknowledged message is one that a replica has: none is lost, whatever the moment.
#[tokio::test]
async fn what_wait_has_confirmed_outlives_a_failover() {
    let mut first = Redis::start().await;
    let replicas = [
        Redis::replica_of(first.port(), &[]).await,
        Redis::replica_of(first.port(), &[]).await,
    ];
    let sentinels = Sentinels::watch(first.port(), 3, "").await;
    let mut config = umbel_client::Config::new(&sentinels.url());
    config.connect_timeout = Duration::from_secs(1);
    let options = umbel_client::Options {
        replicas: Some(umbel_client::Replicas {
            count: 1,
            patience: Duration::from_secs(1),
            is_on_disk: false,
        }),
        ..umbel_client::Options::default()
    };
    let client = umbel_client::Client::connect(config, options)
        .await
        .expect("the primary is found");
    let mut confirmed = Vec::new();
    let mut killed = false;
    eventually(
        LATER,
        "messages are confirmed before and after the failover",
        async || {
            let sent = client.send(umbel_client::Task::new("test.work").args(&(0.0,))).await;
            if let Ok(handle) = sent {
                confirmed.push(handle.id().to_owned());
            }
            if confirmed.len() == 100 && !killed {
                first.kill();
                killed = true;
            }
            confirmed.len() >= 150 && (is_primary(&replicas[0]).await || is_primary(&replicas[1]).await)
        },
    )
    .await;
    let history = History::new();
    history.enqueued(confirmed.iter().map(String::as_str));
    let _worker = test_worker(&sentinels.url(), &history, &[]);
    let verdict = all_done(&history, LATER).await;
    assert!(verdict.lost.is_empty(), "{verdict}");
}
