//! The machine around a worker: files, logs, the first process of a container, and very many workers.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;
use umbel_testkit::redis::{self, AsyncCommands};
use umbel_testkit::{
    Celery, Event, History, Process, Redis, Relay, Signal, eventually, eventually_some, free_port, send_signal,
};

use crate::support::{LATER, SOON, admitted, borrowed, broker, depth, flags, test_tasks};

#[tokio::test]
async fn w21_files_run_out() {
    let redis = Redis::start().await;
    let relay = Relay::before(&redis).await;
    let history = History::new();
    let (url, port) = (relay.url(), free_port());
    let admin = format!("127.0.0.1:{port}");
    let tasks = test_tasks().to_str().expect("the checkout's path is text");
    let mut args = vec!["--nofile=64", tasks];
    args.extend(flags(&url, &["--concurrency", "4", "--admin-addr", &admin]));
    let mut worker = Process::start(Path::new("/usr/bin/prlimit"), args, &[history.environment()]);
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    let hoards = celery.send_all("test.hoard", vec![json!([5.0]); 1], json!({})).await;
    eventually(SOON, "there are no more files", async || {
        history.total(Event::Started) == 1
    })
    .await;
    let ids = celery.send_all("test.work", vec![json!([0.01]); 40], json!({})).await;
    history.enqueued(borrowed(&hoards).chain(borrowed(&ids)));
    relay.sever(); // It cannot connect again as long as there are none.
    worker.says(SOON, "Too many open files").await;
    let hoarded = celery.get(&hoards[0], LATER).await.expect("it ends");
    assert!(
        hoarded
            .as_str()
            .is_some_and(|text| text.contains("Too many open files")),
        "{hoarded}"
    );
    assert_eq!(celery.wait_all(&ids, LATER).await.get("SUCCESS"), Some(&40));
    let verdict = history.verdict(&[]);
    assert_eq!((verdict.lost.len(), verdict.unknown.len()), (0, 0), "{verdict}");
    assert!(verdict.rerun <= 4, "{verdict}");
    let log = worker.log();
    let complaints = log.lines().filter(|line| line.contains("Too many open files")).count();
    assert!(complaints < 60, "said, and not again and again: {complaints} lines");
    assert!(!log.contains("panic"), "{log}");
    assert!(fetch(port, "/readyz").await.starts_with("HTTP/1.1 200"), "and Ready");
}

/// A process with standard error where the test says; killed when dropped.
struct Muted(Child);

impl Drop for Muted {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn w22_nobody_reads_the_log_or_the_disk_is_full() {
    for is_full_disk in [false, true] {
        let redis = Redis::start().await;
        let history = History::new();
        let (url, port) = (redis.url(), free_port());
        let admin = format!("127.0.0.1:{port}");
        let log = || {
            if is_full_disk {
                let full = std::fs::File::options().write(true).open("/dev/full");
                Stdio::from(full.expect("a full disk"))
            } else {
                Stdio::piped()
            }
        };
        let (name, folder) = history.environment();
        let child = Command::new(test_tasks())
            .args(flags(&url, &["--concurrency", "4", "--admin-addr", &admin]))
            .env("UMBEL_LOG", "debug")
            .env(name, folder)
            .stdin(Stdio::null())
            .stdout(log())
            .stderr(log())
            .spawn();
        let mut worker = Muted(child.expect("started"));
        admitted(&redis, 1).await;
        let mut celery = Celery::client(&url).await;
        let mut ids = celery.send_all("test.work", vec![json!([0.001]); 600], json!({})).await;
        let panics = celery
            .send_all("test.panic", vec![json!([]); 3], json!({"retry_policy": {}}))
            .await;
        history.enqueued(borrowed(&ids));
        assert_eq!(celery.wait_all(&ids, LATER).await.get("SUCCESS"), Some(&600));
        // Longer than a lease after the pipe was full: whoever renews writes to it, too.
        let long = celery.send_all("test.work", vec![json!([3.0]); 4], json!({})).await;
        history.enqueued(borrowed(&long));
        ids.extend(long);
        assert_eq!(celery.wait_all(&ids, LATER).await.get("SUCCESS"), Some(&604));
        let verdict = history.verdict(&[]);
        assert_eq!((verdict.lost.len(), verdict.rerun), (0, 0), "{verdict}");
        let metrics = fetch(port, "/metrics").await;
        let dropped = metrics
            .lines()
            .find_map(|line| line.strip_prefix("umbel_log_dropped_total "));
        let dropped: u64 = dropped.and_then(|text| text.parse().ok()).expect("counted");
        assert!(dropped > 0, "nothing was dropped, so this proved nothing");
        drop(panics);
        send_signal(worker.0.id(), Signal::Term);
        let ended = eventually_some(SOON, "it stops", async || worker.0.try_wait().expect("ours")).await;
        assert!(ended.success());
    }
}

#[tokio::test]
async fn w23_a_worker_is_the_first_process_of_its_container() {
    let redis = Redis::start().await;
    let history = History::new();
    let url = redis.url();
    let tasks = test_tasks().to_str().expect("the checkout's path is text");
    let mut quickest = Duration::MAX;
    for _ in 0..3 {
        let mut args = vec!["--fork", "--pid", "--mount-proc", "--kill-child", tasks];
        args.extend(flags(&url, &["--grace", "10s"]));
        let mut outer = Process::start(Path::new("/usr/bin/unshare"), args, &[history.environment()]);
        admitted(&redis, 1).await;
        let children = format!("/proc/{0}/task/{0}/children", outer.pid());
        let worker: u32 = eventually_some(SOON, "it has a child", async || {
            std::fs::read_to_string(&children).ok()?.trim().parse().ok()
        })
        .await;
        let mut celery = Celery::client(&url).await;
        let orphans = celery.send_all("test.orphan", vec![json!([]); 3], json!({})).await;
        for id in &orphans {
            let inside = celery.get(id, SOON).await.expect("it ran");
            assert!(
                inside
                    .as_str()
                    .is_some_and(|pid| pid.parse().is_ok_and(|pid: u32| pid < 100)),
                "not in a container: {inside}"
            );
        }
        let proc = format!("/proc/{worker}/task/{worker}/children");
        eventually(SOON, "orphans that have ended are gone", async || {
            std::fs::read_to_string(&proc).is_ok_and(|children| children.trim().is_empty())
        })
        .await;
        let running = celery.send("test.work", json!([1.0]), json!({})).await;
        eventually(SOON, "it runs", async || history.count(Event::Started, &running) == 1).await;
        let mut connection = redis.connection().await;
        let begin = Instant::now();
        send_signal(worker, Signal::Term);
        eventually_closed(&mut connection).await;
        quickest = quickest.min(begin.elapsed());
        assert!(outer.wait(SOON).await.success());
        assert_eq!(history.count(Event::Done, &running), 1, "it was let end");
    }
    assert!(
        quickest <= Duration::from_millis(100),
        "the drain began after {quickest:?}"
    );
}

/// Looks without a pause until the gate of the only worker is closed.
async fn eventually_closed(connection: &mut redis::aio::MultiplexedConnection) {
    let begin = Instant::now();
    loop {
        let entries: Vec<String> = connection.hvals("umbel:workers").await.expect("the server answers");
        if entries.iter().all(|entry| entry.starts_with("closed")) {
            return;
        }
        assert!(begin.elapsed() < SOON, "it never drained: {entries:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w24_a_hundred_idle_workers_and_one_message() {
    const WORKERS: usize = 100;
    const MESSAGES: usize = 20;
    let redis = Redis::start().await;
    let url = redis.url();
    let runs = Arc::new(AtomicUsize::new(0));
    let mut workers = Vec::new();
    for n in 0..WORKERS {
        let name = format!("w{n}@here");
        let args = [
            "worker",
            "--standalone",
            "--redis-url",
            &url,
            "--concurrency",
            "2",
            "--name",
            &name,
        ];
        let args = umbel_worker::Args::try_parse_from(args).expect("flags");
        let config = umbel_worker::Config::try_from(args).expect("flags that go together");
        let runs = Arc::clone(&runs);
        let count = move |_: umbel_worker::JobContext, (): ()| {
            let runs = Arc::clone(&runs);
            async move { Ok::<usize, umbel_worker::Failure>(runs.fetch_add(1, Ordering::Relaxed)) }
        };
        let worker = umbel_worker::Worker::builder().task("test.count", count);
        workers.push(tokio::spawn(worker.run_with(config)));
    }
    admitted(&redis, WORKERS).await;
    let cpu = async || {
        let mut connection = redis.connection().await;
        let info: String = redis::cmd("INFO")
            .arg("cpu")
            .query_async(&mut connection)
            .await
            .expect("told");
        let line = |name: &str| {
            info.lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok())
        };
        line("used_cpu_user:").unwrap_or(0.0) + line("used_cpu_sys:").unwrap_or(0.0)
    };
    let (before, begin) = (cpu().await, Instant::now());
    eventually(SOON, "three idle seconds", async || {
        begin.elapsed() > Duration::from_secs(3)
    })
    .await;
    let idle = (cpu().await - before) / begin.elapsed().as_secs_f64();

    let broker = broker(&url).await;
    let (before, begin) = (cpu().await, Instant::now());
    for n in 0..MESSAGES {
        let task = umbel_protocol::message::NewTask {
            id: format!("message-{n}"),
            task: "test.count".into(),
            ..umbel_protocol::message::NewTask::default()
        };
        broker.publish("celery", 0, &[task.encode()]).await.expect("published");
        let due = begin + Duration::from_millis(100) * u32::try_from(n + 1).expect("few");
        tokio::time::sleep_until(due.into()).await; // Ten a second.
    }
    let busy = (cpu().await - before) / begin.elapsed().as_secs_f64();
    eventually(SOON, "all are done", async || {
        let depth = depth(&broker, "celery").await;
        depth.waiting + depth.in_flight == 0
    })
    .await;
    assert_eq!(runs.load(Ordering::Relaxed), MESSAGES, "each was taken once");
    println!(
        "Redis: {:.1} % of a core idle, {:.1} % at ten messages a second",
        idle * 100.0,
        busy * 100.0
    );
    assert!(idle <= 0.05, "idle workers cost {:.1} % of a core", idle * 100.0);
    assert!(
        busy <= 0.25,
        "ten messages a second cost {:.1} % of a core",
        busy * 100.0
    );
    for worker in &workers {
        worker.abort();
    }
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
