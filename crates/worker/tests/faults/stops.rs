//! Workers that are told to stop: by which signal, with how much time, with or without a server.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, Event, History, Process, Redis, Signal, eventually, free_port};

use crate::support::{LATER, SOON, admitted, borrowed, flags, test_tasks, test_worker};

/// A signal by its name, whether or not the process is still there.
fn tell(process: &Process, name: &str) {
    let pid = process.pid().to_string();
    let _ = Command::new("/bin/sh")
        .args(["-c", "kill -$0 $1 2>/dev/null", name, &pid])
        .status();
}

async fn is_ready(port: u16) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let request = b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer.starts_with("HTTP/1.1 200"))
    };
    // As patient as a pod's template tells the kubelet to be.
    let answer = tokio::time::timeout(Duration::from_secs(5), ask).await;
    answer.ok().flatten().unwrap_or(false)
}

/// A worker that lost its readiness to load would be taken for broken, and be stopped while it works.
#[tokio::test]
async fn s05_readiness_depends_neither_on_load_nor_on_the_server() {
    let mut redis = Redis::durable().await;
    let history = History::new();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let worker = test_worker(
        &redis.url(),
        &history,
        &["--concurrency", "8", "--admin-addr", &address],
    );
    let mut celery = Celery::client(&redis.url()).await;
    let sleep = celery.send("test.work", json!([6.0]), json!({})).await;
    let spin = celery.send_all("test.spin", vec![json!([1.5]); 6], json!({})).await;
    history.enqueued(borrowed(&spin).chain([sleep.as_str()]));
    eventually(SOON, "it works", async || history.total(Event::Started) >= 2).await;
    eventually(SOON, "it is ready", async || is_ready(port).await).await;
    // It is told to believe the first failure.
    let look = async |what: &str| {
        assert!(is_ready(port).await, "not ready: {what}\n{}", worker.tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    while history.total(Event::Done) < 6 {
        look("tasks keep every thread busy").await;
    }
    redis.kill();
    let away = Instant::now();
    while away.elapsed() < Duration::from_secs(3) {
        look("the server is away").await;
    }
    redis.start_again().await;
    while !history.verdict(&[]).lost.is_empty() {
        look("the server is back").await;
        assert!(away.elapsed() < LATER, "{}", history.verdict(&[]));
    }
}

#[tokio::test]
async fn s10_a_worker_is_killed_right_after_it_was_told_to_stop() {
    let redis = Redis::start().await;
    let history = History::new();
    let flags = ["--concurrency", "4"];
    let mut celery = Celery::client(&redis.url()).await;
    let ids = celery.send_all("test.work", vec![json!([0.4]); 40], json!({})).await;
    history.enqueued(borrowed(&ids));
    let mut worker = test_worker(&redis.url(), &history, &flags);
    let mut kills = 0;
    while kills < 5 {
        // Some of its tasks have ended, so that no message is in the hands of every one of them.
        let before = history.total(Event::Done);
        eventually(LATER, "it works", async || history.total(Event::Done) >= before + 4).await;
        worker.signal(Signal::Term);
        worker.kill();
        kills += 1;
        worker = test_worker(&redis.url(), &history, &flags);
    }
    eventually(LATER, "all is done", async || history.verdict(&[]).lost.is_empty()).await;
    assert_eq!(celery.wait_all(&ids, LATER).await.get("SUCCESS"), Some(&40));
    let verdict = history.verdict(&[]);
    assert_eq!((verdict.stale.len(), verdict.unknown.len()), (0, 0), "{verdict}");
    assert!(verdict.rerun <= kills * 4, "{kills} kills: {verdict}");
    let mut connection = redis.connection().await;
    eventually(SOON, "nothing is held", async || {
        connection.hlen("umbel:unacked").await == Ok(0)
    })
    .await;
}

/// What a node gives that is shut down, or a spot machine that is taken back.
#[tokio::test]
async fn s11_a_notice_of_15_s_is_enough_to_hand_back_what_is_longer() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut worker = test_worker(&redis.url(), &history, &["--grace", "15s", "--concurrency", "2"]);
    let mut celery = Celery::client(&redis.url()).await;
    let short = celery.send("test.work", json!([8.0]), json!({})).await;
    let long = celery.send("test.work", json!([600.0]), json!({})).await;
    history.enqueued([short.as_str(), long.as_str()]);
    eventually(SOON, "both run", async || history.total(Event::Started) == 2).await;
    let begin = Instant::now();
    worker.signal(Signal::Term);
    assert!(worker.wait(SOON).await.success());
    let took = begin.elapsed();
    assert!(
        (Duration::from_secs(12)..Duration::from_secs(15)).contains(&took),
        "it used its time, and no more: {took:?}"
    );
    assert_eq!(
        (history.count(Event::Done, &short), history.count(Event::Done, &long)),
        (1, 0)
    );
    let mut connection = redis.connection().await;
    assert_eq!(connection.llen("celery").await, Ok(1), "the long one waits again");
    assert_eq!(connection.hlen("umbel:att").await, Ok(0), "and nobody is charged");
    assert_eq!(connection.hlen("umbel:unacked").await, Ok(0));
}

/// The first signal asks to finish, the second to hurry, and no further one does anything; which ones they are does not
/// matter.
#[tokio::test]
async fn s12_signals_to_stop_in_any_order_and_number() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut connection = redis.connection().await;
    let mut celery = Celery::client(&redis.url()).await;
    let id = celery.send("test.work", json!([600.0]), json!({})).await;
    history.enqueued([id.as_str()]);
    let orders = [
        ["TERM", "TERM", "TERM"],
        ["INT", "TERM", "HUP"],
        ["HUP", "INT", "TERM"],
        ["TERM", "HUP", "INT"],
    ];
    for (round, order) in orders.into_iter().enumerate() {
        // Whoever runs these tests may be there to outlive his terminal, and his children would inherit that.
        let (url, program) = (redis.url(), test_tasks().to_str().expect("a path of text"));
        let words: Vec<&str> = ["--default-signal=HUP", program]
            .into_iter()
            .chain(flags(&url, &["--grace", "10m"]))
            .collect();
        let mut worker = Process::start("/usr/bin/env".as_ref(), words, &[history.environment()]);
        eventually(SOON, "it runs", async || history.total(Event::Started) == round + 1).await;
        tell(&worker, order[0]);
        eventually(SOON, &format!("{order:?}: it takes no more"), async || {
            let gates: Vec<String> = connection.hvals("umbel:workers").await.unwrap_or_default();
            assert_eq!(
                worker.exit(),
                None,
                "{order:?}: it finishes what runs\n{}",
                worker.tail()
            );
            gates.iter().any(|gate| gate.starts_with("closed"))
        })
        .await;
        assert_eq!(connection.llen("celery").await, Ok(0), "{order:?}: the task goes on");
        let begin = Instant::now();
        for name in &order[1..] {
            tell(&worker, name);
        }
        assert!(worker.wait(SOON).await.success(), "{order:?}\n{}", worker.tail());
        assert!(begin.elapsed() < SOON, "not after its grace");
        assert_eq!(connection.llen("celery").await, Ok(1), "{order:?}: it is handed back");
        assert_eq!(connection.hlen("umbel:att").await, Ok(0), "{order:?}: uncharged");
    }
    assert_eq!(history.total(Event::Done), 0);
}

#[tokio::test]
async fn s12_a_worker_that_shall_outlive_its_terminal_does() {
    let redis = Redis::start().await;
    let history = History::new();
    let url = redis.url();
    let program = test_tasks().to_str().expect("a path of text");
    let words: Vec<&str> = [program].into_iter().chain(flags(&url, &[])).collect();
    let mut worker = Process::start("/usr/bin/nohup".as_ref(), words, &[history.environment()]);
    admitted(&redis, 1).await;
    tell(&worker, "HUP");
    let mut celery = Celery::client(&url).await;
    let id = celery.send("test.work", json!([0.0]), json!({})).await;
    history.enqueued([id.as_str()]);
    assert!(celery.get(&id, SOON).await.is_ok(), "it works on");
    tell(&worker, "TERM");
    assert!(worker.wait(SOON).await.success(), "{}", worker.tail());
}

#[tokio::test]
async fn s13_the_server_is_away_while_a_worker_stops() {
    let mut redis = Redis::durable().await;
    let history = History::new();
    let mut worker = test_worker(
        &redis.url(),
        &history,
        &[
            "--grace",
            "12s",
            "--concurrency",
            "2",
            "--lease",
            "8s",
            "--renew-every",
            "2s",
        ],
    );
    let mut celery = Celery::client(&redis.url()).await;
    let short = celery.send("test.work", json!([2.0]), json!({})).await;
    let long = celery
        .send("test.work", json!([600.0]), json!({"time_limit": 60}))
        .await;
    history.enqueued([short.as_str()]);
    eventually(SOON, "both run", async || history.total(Event::Started) == 2).await;
    redis.kill();
    let begin = Instant::now();
    worker.signal(Signal::Term);
    worker.wait(SOON).await;
    let took = begin.elapsed();
    assert!(
        took < Duration::from_secs(12),
        "it ends before its grace: {took:?}\n{}",
        worker.tail()
    );
    assert_eq!(
        history.count(Event::Done, &short),
        1,
        "a task may end\n{}",
        worker.tail()
    );
    redis.start_again().await;
    let _next = test_worker(&redis.url(), &history, &["--concurrency", "2"]);
    eventually(LATER, "the leases return what it held", async || {
        history.count(Event::Started, &short) == 2 && history.count(Event::Started, &long) == 2
    })
    .await;
    assert_eq!(celery.wait_all(&[short], LATER).await.get("SUCCESS"), Some(&1));
}
