//! Tasks that neither return nor heed their limit.

use std::time::{Duration, Instant};

use serde_json::json;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, Event, History, Process, Redis, TempDir, eventually, free_port};

use crate::support::{LATER, SOON, admitted, borrowed, laid_aside, start, test_worker};

const LIMIT: &str = "500ms";

/// A worker with two processors' worth of threads whose tasks have half a second.
fn worker(redis: &Redis, history: &History, more: &[&str]) -> Process {
    let flags = ["--concurrency", "4", "--time-limit", LIMIT, "--max-deliveries", "1"];
    test_worker(&redis.url(), history, &[&flags[..], more].concat())
}

#[tokio::test]
async fn w10_a_task_that_never_gives_way_loses_its_lease_and_the_queue_moves_on() {
    for task in ["test.stuck", "test.stuck_thread"] {
        let redis = Redis::start().await;
        let history = History::new();
        let port = free_port();
        let admin = format!("127.0.0.1:{port}");
        let mut worker = worker(&redis, &history, &["--stuck-slots", "2", "--admin-addr", &admin]);
        admitted(&redis, 1).await;
        let mut celery = Celery::client(&redis.url()).await;
        let stuck = celery.send(task, json!([]), json!({})).await;
        worker.says(LATER, "its slot is stuck").await;
        // Its caller is told, by the limit or by the lease, and the message is kept.
        let raised = celery.get(&stuck, LATER).await.expect_err("it never returns");
        assert!(
            ["TimeLimitExceeded", "WorkerLostError"].contains(&raised.exc_type.as_str()),
            "{raised:?}"
        );
        assert_eq!(laid_aside(&redis, "dead", "celery").await.len(), 1);
        assert_eq!(history.count(Event::Started, &stuck), 1);
        let ids = celery.send_all("test.work", vec![json!([0.01]); 40], json!({})).await;
        history.enqueued(borrowed(&ids));
        assert_eq!(celery.wait_all(&ids, SOON).await.get("SUCCESS"), Some(&40), "{task}");
        let metrics = fetch(port, "/metrics").await;
        assert!(metrics.contains("umbel_worker_stuck_slots 1"), "{task}: {metrics}");
        assert_eq!(worker.exit(), None, "one of two allowed: it goes on");
    }
}

#[tokio::test]
async fn w10_with_too_many_stuck_slots_the_worker_drains_and_ends_with_an_error() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut worker = worker(&redis, &history, &["--grace", "10s"]); // Two stuck slots are half of its four.
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    let neighbour = celery.send("test.work", json!([3.0]), json!({"time_limit": 60})).await;
    let running = async || history.count(Event::Started, &neighbour) == 1;
    eventually(SOON, "it runs", running).await;
    let stuck = celery
        .send_all("test.stuck_thread", vec![json!([]); 2], json!({}))
        .await;
    worker.says(LATER, "too many slots are stuck").await;
    let later = celery.send("test.work", json!([0.0]), json!({})).await;
    let status = worker.wait(LATER).await;
    assert_eq!(status.code(), Some(1), "whoever started it starts it again");
    assert_eq!(
        celery.get(&neighbour, SOON).await,
        Ok(json!(3.0)),
        "a drain lets others end"
    );
    let mut connection = redis.connection().await;
    assert_eq!(connection.llen("celery").await, Ok(1), "and takes nothing more");
    let _next = test_worker(&redis.url(), &history, &[]);
    assert_eq!(celery.get(&later, SOON).await, Ok(json!(0.0)));
    for id in &stuck {
        let raised = celery.get(id, LATER).await.expect_err("it never returns");
        assert_eq!(raised.exc_type, "TimeLimitExceeded");
    }
}

/// Every thread of its runtime hangs: nobody is left to drain, and it must end all the same.
#[tokio::test]
async fn w10_when_stuck_tasks_hold_every_thread_the_worker_ends() {
    let redis = Redis::start().await;
    let history = History::new();
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let slots = (4 * cores).to_string();
    let limit = ["--concurrency", &slots, "--time-limit", LIMIT, "--max-deliveries", "1"];
    let mut worker = test_worker(&redis.url(), &history, &limit);
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    let stuck = celery
        .send_all("test.stuck", vec![json!([]); cores.max(2)], json!({}))
        .await;
    assert_eq!(worker.wait(LATER).await.code(), Some(1));
    let _next = test_worker(&redis.url(), &history, &limit);
    for id in &stuck {
        let raised = celery.get(id, LATER).await.expect_err("it never returns");
        assert_eq!(raised.exc_type, "WorkerLostError");
    }
    let after = celery.send("test.work", json!([0.0]), json!({})).await;
    assert_eq!(celery.get(&after, SOON).await, Ok(json!(0.0)));
}

/// A suspect runs alone; one that never ends must not keep its worker from everything else.
#[tokio::test]
async fn w10_a_suspect_that_never_gives_way_holds_up_nobody() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut worker = worker(&redis, &history, &["--stuck-slots", "3"]);
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    let mut connection = redis.connection().await;
    for task in ["test.stuck", "test.work"] {
        // As if it had killed two workers.
        let args = if task == "test.work" { json!([0.0]) } else { json!([]) };
        let suspect = celery.send(task, args, json!({"queue": "aside"})).await;
        let raw: String = connection.rpop("aside", None).await.expect("sent");
        let record = format!("6:celery{raw}");
        let _: () = connection.lpush("umbel:suspect:celery", record).await.expect("pushed");
        if task == "test.stuck" {
            worker.says(LATER, "its slot is stuck").await;
        } else {
            let next = celery.get(&suspect, SOON).await;
            assert_eq!(next, Ok(json!(0.0)), "the next suspect has its turn");
        }
        let ids = celery.send_all("test.work", vec![json!([0.01]); 20], json!({})).await;
        let states = celery.wait_all(&ids, SOON).await;
        assert_eq!(states.get("SUCCESS"), Some(&20), "after {task}");
    }
    assert_eq!(worker.exit(), None);
}

#[tokio::test]
async fn w28_a_program_ignores_sigterm_and_leaves_children() {
    let redis = Redis::start().await;
    let folder = TempDir::new("w28");
    let program = folder.path().join("stubborn");
    let pids = folder.path().join("pids");
    // It traps, its child leaves the group, and both go on for ten minutes.
    let text = format!(
        "#!/bin/sh\ntrap '' TERM\necho $$ >> {0}\nsetsid sh -c 'echo $$ >> {0}; exec sleep 600' &\nsleep 600 &\necho $! >> {0}\nwait\nsleep 600\n",
        pids.display()
    );
    std::fs::write(&program, text).expect("written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).expect("made a program");
    let jobs = json!({"exec": {"programs": [{"name": "stubborn", "path": program}]}}).to_string();
    let tasks = std::path::Path::new(env!("CARGO_BIN_EXE_umbel-worker"));
    let worker = start(tasks, &redis.url(), &[], &[("UMBEL_JOBS", jobs.as_str())]);
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    let options = json!({"time_limit": 1.5, "soft_time_limit": 0.5});
    let id = celery.send("umbel.exec", json!(["stubborn"]), options).await;
    let begin = Instant::now();
    let raised = celery.get(&id, SOON).await.expect_err("it was killed");
    assert_eq!(raised.exc_type, "TimeLimitExceeded");
    assert!(begin.elapsed() < Duration::from_secs(10));
    let started = std::fs::read_to_string(&pids).expect("they ran");
    assert_eq!(started.lines().count(), 3, "{started}");
    eventually(SOON, "all of them are gone", async || {
        started
            .lines()
            .all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    })
    .await;
    eventually(SOON, "and no zombie of the worker's is left", async || {
        children(worker.pid()).is_empty()
    })
    .await;
    let mut connection = redis.connection().await;
    assert_eq!(connection.hlen("umbel:unacked").await, Ok(0));
}

/// Processes whose parent is this one, ended or not.
fn children(parent: u32) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").expect("there are processes");
    let stats = processes
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    let ours = |stat: &String| {
        let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        fields.split(' ').nth(1) == Some(parent.to_string().as_str())
    };
    stats.filter(ours).collect()
}

async fn fetch(port: u16, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    answer
}
