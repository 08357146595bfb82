//! Time: clocks that are wrong, cores that are taken, messages that come too early or too late.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, Event, History, Process, Redis, eventually};

use crate::support::{LATER, SOON, admitted, borrowed, broker, depth, flags, test_tasks, test_worker};

struct Stage {
    redis: Redis,
    celery: Celery,
    history: History,
    worker: Process,
}

async fn stage(flags: &[&str]) -> Stage {
    let redis = Redis::start().await;
    let history = History::new();
    let worker = test_worker(&redis.url(), &history, flags);
    let celery = Celery::client(&redis.url()).await;
    Stage {
        redis,
        celery,
        history,
        worker,
    }
}

/// A worker that another program starts, e.g. `taskset -c 0`.
fn worker_under(redis: &Redis, history: &History, program: &[&str], more: &[&str]) -> Process {
    let tasks = test_tasks().to_str().expect("the checkout's path is text");
    let url = redis.url();
    let args: Vec<&str> = program[1..].iter().copied().chain([tasks]).collect();
    let args = [args, flags(&url, more)].concat();
    let env = [("RUST_LOG", "info,umbel=debug"), history.environment()];
    Process::start(Path::new(program[0]), args, &env)
}

#[tokio::test]
async fn w06_the_clock_of_a_worker_is_wrong_or_steps() {
    let redis = Redis::start().await;
    let history = History::new();
    // An hour ahead, an hour behind, and one that gains an hour in ten seconds.
    let wrong = ["+3600s", "-3600s", "+0 x360"];
    let workers: Vec<Process> = wrong
        .iter()
        .map(|clock| {
            // What the program faketime sets; that one stays between us and the worker, which would then outlive the test.
            let clock = format!("FAKETIME={clock}");
            let program = [
                "/usr/bin/env",
                "LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1",
                "FAKETIME_DONT_FAKE_MONOTONIC=1",
                "FAKETIME_DISABLE_SHM=1",
                &clock,
            ];
            worker_under(&redis, &history, &program, &["--concurrency", "4"])
        })
        .collect();
    admitted(&redis, 3).await;
    let mut celery = Celery::client(&redis.url()).await;
    // Longer than a lease; some wait for their time, some would expire within an hour.
    let mut ids = celery
        .send_all("test.work", vec![json!([2.5]); 12], json!({"expires": 600}))
        .await;
    ids.extend(
        celery
            .send_all("test.work", vec![json!([0.0]); 12], json!({"countdown": 1.0}))
            .await,
    );
    history.enqueued(borrowed(&ids));
    let begin = Instant::now();
    let states = celery.wait_all(&ids, LATER).await;
    assert_eq!(states.get("SUCCESS"), Some(&24), "{states:?}");
    assert!(begin.elapsed() >= Duration::from_millis(900), "nobody was early");
    let verdict = history.verdict(&[]);
    assert_eq!(
        (verdict.lost.len(), verdict.rerun, verdict.stale.len()),
        (0, 0, 0),
        "{verdict}"
    );
    assert_eq!(history.processes(Event::Done).len(), 3, "each of them worked");
    drop(workers);
}

#[tokio::test]
async fn w07_tasks_keep_the_only_core_busy() {
    let redis = Redis::start().await;
    let history = History::new();
    let _worker = worker_under(
        &redis,
        &history,
        &["/usr/bin/taskset", "-c", "0"],
        &["--concurrency", "4"],
    );
    let _neighbour = test_worker(&redis.url(), &history, &["--queue", "other"]); // Sweeps, and would take what is lost.
    admitted(&redis, 2).await;
    let mut celery = Celery::client(&redis.url()).await;
    let ids = celery.send_all("test.spin", vec![json!([1.2]); 4], json!({})).await;
    history.enqueued(borrowed(&ids));
    eventually(LATER, "all are done", async || history.total(Event::Done) >= 4).await;
    let verdict = history.verdict(&[]);
    assert_eq!((verdict.rerun, verdict.stale.len()), (0, 0), "{verdict}");
}

#[tokio::test]
async fn w13_an_eta_is_parked_outside_the_worker_and_kept() {
    let mut stage = stage(&[]).await;
    let begin = Instant::now();
    let soon = stage
        .celery
        .send("test.work", json!([0.0]), json!({"countdown": 1.5}))
        .await;
    let far = stage
        .celery
        .send("test.work", json!([0.0]), json!({"countdown": 86_400}))
        .await;
    let past = stage
        .celery
        .send("test.work", json!([0.0]), json!({"eta": "2001-01-01T00:00:00"}))
        .await;
    let broker = broker(&stage.redis.url()).await;
    eventually(SOON, "both wait in Redis", async || {
        let depth = depth(&broker, "celery").await;
        depth.delayed == 2 && depth.in_flight == 0
    })
    .await;
    assert_eq!(stage.celery.get(&past, SOON).await, Ok(json!(0.0)));
    assert_eq!(stage.history.count(Event::Started, &soon), 0);
    assert_eq!(stage.celery.get(&soon, SOON).await, Ok(json!(0.0)));
    assert!(
        begin.elapsed() >= Duration::from_millis(1400),
        "ran {:?} after it was sent",
        begin.elapsed()
    );
    assert_eq!(stage.history.count(Event::Started, &far), 0);
    assert_eq!(depth(&broker, "celery").await.delayed, 1);
}

#[tokio::test]
async fn w13_etas_far_past_odd_and_many() {
    let mut stage = stage(&["--concurrency", "4"]).await;
    let mut connection = stage.redis.connection().await;
    for (eta, runs) in [
        ("9999-12-31T23:59:59+00:00", false),
        ("2031-01-01T00:00:00", false), // No zone: UTC.
        ("2031-01-01T00:00:00+14:00", false),
        ("2024-11-21T00:00:00", true),
        ("0001-01-01T00:00:00+00:00", true),
    ] {
        let id = stage.celery.send("test.work", json!([0.0]), json!({"eta": eta})).await;
        if runs {
            assert_eq!(stage.celery.get(&id, SOON).await, Ok(json!(0.0)), "{eta}");
        } else {
            let broker = broker(&stage.redis.url()).await;
            eventually(SOON, "it is parked", async || {
                depth(&broker, "celery").await.delayed == 1
            })
            .await;
            assert_eq!(connection.del("umbel:delayed:celery").await, Ok(1), "{eta}");
        }
    }
    let many = vec![json!([0.0]); 3000];
    let ids = stage
        .celery
        .send_all("test.work", many, json!({"countdown": 86_400}))
        .await;
    stage.history.enqueued(borrowed(&ids));
    let broker = broker(&stage.redis.url()).await;
    eventually(LATER, "all of them wait in Redis", async || {
        let depth = depth(&broker, "celery").await;
        (depth.waiting, depth.in_flight, depth.delayed) == (0, 0, 3000)
    })
    .await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", stage.worker.pid())).expect("it runs");
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap_or("");
    let kilobytes: u64 = resident.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(
        kilobytes < 150_000,
        "what waits is kept in Redis, not here: {kilobytes} kB"
    );
    // kombu's own restoring knows nothing of them.
    assert_eq!(connection.exists("unacked").await, Ok(false));
}

#[tokio::test]
async fn w14_what_has_expired_is_not_run() {
    let mut stage = stage(&["--concurrency", "1"]).await;
    let blocks = stage.celery.send("test.work", json!([1.5]), json!({})).await;
    let expires = stage
        .celery
        .send("test.work", json!([0.0]), json!({"expires": 0.5}))
        .await;
    let lives = stage
        .celery
        .send("test.work", json!([0.0]), json!({"expires": 600}))
        .await;
    assert_eq!(stage.celery.get(&lives, SOON).await, Ok(json!(0.0)));
    let raised = stage.celery.get(&expires, SOON).await.expect_err("it has expired");
    assert_eq!(
        (raised.exc_type.as_str(), raised.message.as_str()),
        ("TaskRevokedError", "expired")
    );
    assert_eq!(stage.celery.state(&expires).await.0, "REVOKED");
    assert_eq!(stage.history.order(Event::Started), [blocks, lives]);
}

#[tokio::test]
async fn w14_a_message_expires_while_it_waits_and_while_it_runs() {
    let mut stage = stage(&["--concurrency", "1"]).await;
    // Begun in time, it runs to its end.
    let running = stage
        .celery
        .send("test.work", json!([1.5]), json!({"expires": 1.0}))
        .await;
    eventually(SOON, "it runs", async || {
        stage.history.count(Event::Started, &running) == 1
    })
    .await;
    let before = stage
        .celery
        .send("test.work", json!([0.0]), json!({"expires": -1.0}))
        .await;
    let waiting = stage
        .celery
        .send("test.work", json!([0.0]), json!({"expires": 0.3}))
        .await;
    assert_eq!(stage.celery.get(&running, SOON).await, Ok(json!(1.5)));
    for id in [&before, &waiting] {
        let raised = stage.celery.get(id, SOON).await.expect_err("it has expired");
        assert_eq!(raised.exc_type, "TaskRevokedError");
        assert_eq!(stage.history.count(Event::Started, id), 0);
    }
}
