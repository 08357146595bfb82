//! A worker whose pool allows what a test says, on a Redis of its own.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use umbel_protocol::json::Json;
use umbel_protocol::message::{NewTask, TimeLimit};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Process, Redis, eventually, eventually_some};

/// What should take milliseconds, on a machine that compiles beside the tests.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Flags with leases so short that recovery can be waited for. The first retry comes at once, the second never.
const FLAGS: [&str; 15] = [
    "--standalone",
    "--lease",
    "2s",
    "--renew-every",
    "600ms",
    "--sweep",
    "500ms",
    "--grace",
    "5s",
    "--retry-initial-backoff",
    "100ms",
    "--retry-max-attempts",
    "2",
    "--concurrency",
    "20",
];

/// Starts a worker with these built-in jobs, and this added to its environment.
pub(crate) fn worker(redis: &Redis, jobs: &Value, env: &[(&str, &str)]) -> Process {
    let (url, jobs) = (redis.url(), jobs.to_string());
    let args = [["--redis-url", &url].as_slice(), &FLAGS].concat();
    let mut all = vec![
        ("RUST_LOG", "umbel=debug"),
        ("UMBEL_LOG", "debug"),
        ("UMBEL_JOBS", jobs.as_str()),
    ];
    all.extend(env);
    Process::start(Path::new(env!("CARGO_BIN_EXE_umbel-worker")), args, &all)
}

/// Waits until so many workers take messages.
pub(crate) async fn admitted(redis: &Redis, count: usize) {
    let mut connection = redis.connection().await;
    eventually(SOON, "workers are admitted", async || {
        let entries: Vec<String> = connection.hvals("umbel:workers").await.unwrap_or_default();
        entries.iter().filter(|entry| entry.starts_with("open")).count() >= count
    })
    .await;
}

/// Sends a task and answers its id.
pub(crate) async fn send(redis: &Redis, task: &str, args: &str, kwargs: &str) -> String {
    send_limited(redis, task, args, kwargs, TimeLimit::default()).await
}

/// As [`send`], with time limits.
pub(crate) async fn send_limited(redis: &Redis, task: &str, args: &str, kwargs: &str, limit: TimeLimit) -> String {
    let task = NewTask {
        time_limit: limit,
        ..new(task, args, kwargs)
    };
    push(redis, &task).await
}

/// A task with an id of its own.
pub(crate) fn new(task: &str, args: &str, kwargs: &str) -> NewTask {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let id = format!("00000000-0000-4000-8000-{next:012}");
    NewTask {
        id,
        task: task.to_owned(),
        args: Json::parse(args).expect("arguments are JSON"),
        kwargs: Json::parse(kwargs).expect("arguments are JSON"),
        queue: "celery".to_owned(),
        ..NewTask::default()
    }
}

/// Sends it, and answers its id.
pub(crate) async fn push(redis: &Redis, task: &NewTask) -> String {
    let pushed: Result<u32, _> = redis.connection().await.lpush("celery", task.encode()).await;
    pushed.expect("the server answers");
    task.id.clone()
}

/// The result document of a task, once it is in one of these states.
pub(crate) async fn document(redis: &Redis, id: &str, states: &[&str]) -> Value {
    let text = document_text(redis, id, states).await;
    serde_json::from_str(&text).expect("a result is JSON")
}

/// As [`document`], byte for byte.
pub(crate) async fn document_text(redis: &Redis, id: &str, states: &[&str]) -> String {
    let mut connection = redis.connection().await;
    let what = format!("{id} is {states:?}");
    eventually_some(SOON, &what, async || {
        let text: Option<String> = connection.get(format!("celery-task-meta-{id}")).await.ok()?;
        let status = Json::parse(text.as_ref()?).ok()?.get("status")?.text()?;
        states.contains(&status.as_str()).then_some(text?)
    })
    .await
}

/// The value that a task returned.
///
/// # Panics
/// When it failed.
pub(crate) async fn value(redis: &Redis, id: &str) -> Value {
    let mut document = document(redis, id, &["SUCCESS", "FAILURE"]).await;
    assert_eq!(document["status"], "SUCCESS", "{document}");
    document["result"].take()
}

/// Type and constructor arguments of the exception that a task failed with.
///
/// # Panics
/// When it succeeded.
pub(crate) async fn failure(redis: &Redis, id: &str) -> (String, Value) {
    let document = document(redis, id, &["SUCCESS", "FAILURE"]).await;
    assert_eq!(document["status"], "FAILURE", "{document}");
    let result = &document["result"];
    let name = |field: &str| result[field].as_str().unwrap_or_default().to_owned();
    let module = Some(name("exc_module")).filter(|module| !module.is_empty() && module != "builtins");
    let class = name("exc_type");
    let class = module.map_or(class.clone(), |module| format!("{module}.{class}"));
    (class, result["exc_message"].clone())
}
