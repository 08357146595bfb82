//! Functions that block, as tasks of a worker in this process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use clap::Parser as _;
use serde_json::json;
use umbel_protocol::message::TimeLimit;
use umbel_testkit::{Redis, eventually};
use umbel_worker::{Args, Config, Failure, JobContext, Stop, Worker};

use crate::stage::{SOON, failure, send, send_limited, value};

/// Ends with its test.
struct Running(tokio::task::JoinHandle<anyhow::Result<()>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn start(redis: &Redis, worker: Worker) -> Running {
    let url = redis.url();
    let args = Args::parse_from(["worker", "--redis-url", &url, "--standalone", "--concurrency", "20"]);
    let config = Config::try_from(args).expect("good flags");
    Running(tokio::spawn(worker.run_with(config)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocking_tasks_run_side_by_side_and_hold_up_nobody() {
    let redis = Redis::start().await;
    let all_here = Arc::new(Barrier::new(8));
    let meet = move |_ctx: JobContext, (n,): (u32,)| {
        all_here.wait(); // Passes when all eight are here; the runtime has two threads.
        Ok::<_, Failure>(n + 1)
    };
    let _worker = start(&redis, Worker::builder().blocking_task("test.meet", meet));
    let mut ids = Vec::new();
    for n in 0..7 {
        ids.push(send(&redis, "test.meet", &format!("[{n}]"), "{}").await);
    }
    let beside = send(&redis, "umbel.echo", "[1]", "{}").await;
    assert_eq!(value(&redis, &beside).await["args"], json!([1]));
    ids.push(send(&redis, "test.meet", "[7]", "{}").await);
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(value(&redis, id).await, n + 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocking_task_ends_in_every_way_that_others_do() {
    let redis = Redis::start().await;
    let end = |ctx: JobContext, (how,): (String,)| match how.as_str() {
        "checkpoint" => Ok(ctx.blocking_checkpoint().map(|()| ctx.id.clone())?),
        "fail" => Err(Stop::from(Failure::permanent("KeyError", "k"))),
        "reject" => Err(Stop::reject("no")),
        _ => panic!("no such end: {how}"),
    };
    let _worker = start(&redis, Worker::builder().blocking_task("test.end", end));
    let id = send(&redis, "test.end", r#"["checkpoint"]"#, "{}").await;
    assert_eq!(value(&redis, &id).await, json!(id));
    for (how, class, message) in [
        (r#"["fail"]"#, "KeyError", json!(["k"])),
        (r#"["reject"]"#, "celery.exceptions.Reject", json!(["no", false])),
        ("[1]", "TypeError", json!(null)),
    ] {
        let id = send(&redis, "test.end", how, "{}").await;
        let (found, args) = failure(&redis, &id).await;
        assert_eq!(found, class, "{how}");
        assert!(message.is_null() || args == message, "{how}: {args}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_a_blocking_task_is_its_failure() {
    let redis = Redis::start().await;
    let fail = |_ctx: JobContext, (): ()| -> Result<(), Failure> { panic!("no such luck") };
    let options = umbel_worker::TaskOptions::new().max_retries(0);
    let _worker = start(
        &redis,
        Worker::builder().blocking_task_with("test.panic", options, fail),
    );
    let id = send(&redis, "test.panic", "[]", "{}").await;
    let (class, args) = failure(&redis, &id).await;
    assert_eq!(
        (class.as_str(), args),
        ("RuntimeError", json!(["task panicked: no such luck"]))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocking_task_is_told_when_its_time_is_over() {
    let redis = Redis::start().await;
    let was_told = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&was_told);
    let toil = move |ctx: JobContext, (): ()| -> Result<(), Failure> {
        let began = Instant::now();
        while !ctx.cancel.is_cancelled() && began.elapsed() < Duration::from_secs(30) {
            std::thread::yield_now();
        }
        heard.store(ctx.blocking_checkpoint().is_err(), Ordering::Relaxed);
        Ok(())
    };
    let _worker = start(&redis, Worker::builder().blocking_task("test.toil", toil));
    let limit = TimeLimit {
        hard: Some(0.5),
        soft: None,
    };
    let id = send_limited(&redis, "test.toil", "[]", "{}", limit).await;
    let (class, _) = failure(&redis, &id).await;
    assert_eq!(class, "billiard.exceptions.TimeLimitExceeded");
    eventually(SOON, "the function sees it", async || was_told.load(Ordering::Relaxed)).await;
}
