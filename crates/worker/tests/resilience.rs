//! A worker whose stop, or whose neighbour's trouble, comes at the worst moment.

use std::path::Path;
use std::time::Duration;

use umbel_broker::{Broker, Config};
use umbel_protocol::json::Json;
use umbel_protocol::message::NewTask;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Process, Redis, Signal, eventually};

const SOON: Duration = Duration::from_secs(20);

fn worker(redis: &Redis, flags: &[&str]) -> Process {
    let url = redis.url();
    let args = ["--standalone", "--redis-url", url.as_str()]
        .into_iter()
        .chain(flags.iter().copied());
    Process::start(
        Path::new(env!("CARGO_BIN_EXE_umbel-worker")),
        args,
        &[("RUST_LOG", "info")],
    )
}

fn message(task: &str, id: &str, args: &str) -> Vec<u8> {
    let args = Json::parse(args).expect("valid");
    NewTask {
        id: id.into(),
        task: task.into(),
        queue: "q".into(),
        args,
        ..NewTask::default()
    }
    .encode()
}

/// Somebody listens to remote control and never answers, so an unknown task keeps the worker waiting for a second.
#[tokio::test]
async fn told_to_stop_while_it_decides_it_hands_the_batch_back_in_order() {
    let redis = Redis::start().await;
    let broker = Broker::connect(&Config::new(&redis.url()))
        .await
        .expect("the server runs");
    let client = umbel_testkit::redis::Client::open(redis.url()).expect("an address");
    let mut silent = client.get_async_pubsub().await.expect("the server runs");
    silent.subscribe("/0.celery.pidbox").await.expect("subscribed");
    let messages: Vec<Vec<u8>> = (0..6)
        .map(|n| {
            message(
                if n == 0 { "nobody.knows" } else { "umbel.sleep" },
                &format!("id-{n}"),
                "[30]",
            )
        })
        .collect();
    broker.publish("q", 0, &messages).await.expect("published");

    let mut process = worker(&redis, &["--queue", "q", "--concurrency", "6", "--grace", "60s"]);
    use futures::StreamExt;
    let asked = tokio::time::timeout(SOON, silent.on_message().next()).await;
    assert!(asked.is_ok_and(|asked| asked.is_some()), "{}", process.log());
    process.signal(Signal::Term);
    // Nothing runs, so nothing is waited for: far less than the grace.
    let status = process.wait(SOON).await;
    assert!(status.success(), "{}", process.log());

    let mut raw = redis.connection().await;
    let mut left: Vec<Vec<u8>> = raw.lrange("q", 0, -1).await.expect("read");
    left.reverse();
    assert!(
        left == messages,
        "not handed back in order: {} left\n{}",
        left.len(),
        process.log()
    );
    assert_eq!(raw.hlen::<_, usize>("umbel:unacked").await.expect("read"), 0);
    assert_eq!(raw.hlen::<_, usize>("umbel:att").await.expect("read"), 0, "charged");
}

#[tokio::test]
async fn an_end_that_redis_refuses_does_not_hold_up_the_others() {
    let redis = Redis::start().await;
    let broker = Broker::connect(&Config::new(&redis.url()))
        .await
        .expect("the server runs");
    let mut raw = redis.connection().await;
    let _: () = raw.set("umbel:dead:bad", "a string").await.expect("set");
    let wrong: Vec<Vec<u8>> = (0..3)
        .map(|n| message("umbel.sleep", &format!("bad-{n}"), "[\"x\"]"))
        .collect();
    broker.publish("bad", 0, &wrong).await.expect("published");
    let process = worker(&redis, &["--queue", "bad,good", "--concurrency", "4"]);
    eventually(SOON, "the bad ones are refused", async || {
        process.log().contains("settling again")
    })
    .await;
    broker
        .publish("good", 0, &[message("umbel.sleep", "good-1", "[\"y\"]")])
        .await
        .expect("published");
    // Within the lease of a minute, which those of the other queue are tried again for.
    eventually(SOON, "the failure of the good queue's task is settled", async || {
        raw.xlen::<_, usize>("umbel:dead:good").await.unwrap_or(0) == 1
    })
    .await;
    assert_eq!(
        raw.hlen::<_, usize>("umbel:unacked").await.expect("read"),
        3,
        "the others are still held"
    );
}

/// What an administrator gets who gives a user all keys and all commands: no channels.
#[tokio::test]
async fn without_a_channel_for_results_a_task_is_acknowledged_all_the_same() {
    let redis = Redis::start().await;
    let broker = Broker::connect(&Config::new(&redis.url()))
        .await
        .expect("the server runs");
    let mut raw = redis.connection().await;
    let user = ["SETUSER", "narrow", "on", ">secret", "~*", "+@all", "resetchannels"];
    let _: () = umbel_testkit::redis::cmd("ACL")
        .arg(&user)
        .query_async(&mut raw)
        .await
        .expect("made");
    broker
        .publish("q", 0, &[message("umbel.sleep", "one", "[0.01]")])
        .await
        .expect("published");
    let url = redis.url().replace("redis://", "redis://narrow:secret@");
    let args = ["--standalone", "--queue", "q", "--redis-url", &url];
    let process = Process::start(
        Path::new(env!("CARGO_BIN_EXE_umbel-worker")),
        args,
        &[("RUST_LOG", "info")],
    );
    eventually(SOON, "it is settled", async || {
        let result: Option<String> = raw.get("celery-task-meta-one").await.unwrap_or_default();
        let held: usize = raw.hlen("umbel:unacked").await.unwrap_or(1);
        result.is_some_and(|result| result.contains("SUCCESS")) && held == 0
    })
    .await;
    assert!(
        process.log().contains("results cannot be published"),
        "{}",
        process.log()
    );
}

/// A queue that never runs dry: every reserve brings as much as was asked for.
#[tokio::test]
async fn a_suspect_gets_its_turn_before_a_backlog_has_ended() {
    let redis = Redis::start().await;
    let broker = Broker::connect(&Config::new(&redis.url()))
        .await
        .expect("the server runs");
    let mut raw = redis.connection().await;
    let backlog: Vec<Vec<u8>> = (0..2000)
        .map(|n| message("umbel.sleep", &format!("id-{n}"), "[0.05]"))
        .collect();
    broker.publish("q", 0, &backlog).await.expect("published");
    let process = worker(&redis, &["--queue", "q", "--concurrency", "2"]);
    eventually(SOON, "the backlog is worked on", async || {
        raw.hget("umbel:held", "q:q").await.unwrap_or(0_i64) == 2
    })
    .await;
    let suspect = [&b"1:q"[..], &message("umbel.sleep", "suspect", "[0.01]")].concat();
    let _: () = raw.hset("umbel:att", "suspect", 2).await.expect("set");
    let _: () = raw.lpush("umbel:suspect:q", suspect).await.expect("pushed");
    eventually(SOON, "the suspect has run", async || {
        raw.exists("celery-task-meta-suspect").await.unwrap_or(false)
    })
    .await;
    let left: usize = raw.llen("q").await.expect("read");
    assert!(left > 0, "it had to wait for the end of the backlog\n{}", process.log());
    let counted: usize = raw.hlen("umbel:att").await.expect("read");
    assert_eq!(counted, 0, "its count is cleared");
}
