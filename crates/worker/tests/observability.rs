//! What a worker shows of itself: log lines that name their task and never say its arguments, metrics that count.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests fail as tests do.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;
use umbel_client::{Client, Options, Task};
use umbel_protocol::canvas::Signature;
use umbel_protocol::json::Json;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Process, Redis, Relay, eventually, eventually_some};

const SOON: Duration = Duration::from_secs(20);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// The example with the tasks of the tests. Cargo builds it with all tests, but not for a single `--test`.
fn test_tasks() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let folder = Path::new(env!("CARGO_BIN_EXE_umbel-worker")).parent().unwrap();
        let path = folder.join("examples/test_tasks");
        if !path.exists() {
            let build = ["build", "--quiet", "-p", "umbel-worker", "--example", "test_tasks"];
            let done = std::process::Command::new(env!("CARGO")).args(build).status();
            assert!(
                done.is_ok_and(|status| status.success()),
                "build the example test_tasks"
            );
        }
        path
    })
}

fn worker(url: &str, flags: &[&str]) -> Process {
    let own = [
        "--redis-url",
        url,
        "--standalone",
        "--lease",
        "2s",
        "--renew-every",
        "600ms",
        "--sweep",
        "500ms",
        "--grace",
        "2s",
        "--admin-addr",
        "127.0.0.1:0",
    ];
    Process::start(
        test_tasks(),
        [&own[..], flags].concat(),
        &[("UMBEL_LOG", "debug"), ("RUST_BACKTRACE", "0")],
    )
}

async fn client(url: &str) -> Client {
    Client::connect(umbel_broker::Config::new(url), Options::default())
        .await
        .unwrap()
}

/// The lines of the log; all are JSON.
fn lines(worker: &Process) -> Vec<Value> {
    let log = worker.log();
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|err| panic!("{line}: {err}")))
        .collect()
}

/// The metrics by series, as somebody gets them who asks.
async fn metrics(worker: &Process) -> BTreeMap<String, f64> {
    let address = eventually_some(SOON, "the admin port is told", async || {
        let line = lines(worker)
            .into_iter()
            .find(|line| line["message"] == "admin server listens")?;
        Some(line["addr"].as_str().unwrap().to_owned())
    })
    .await;
    let text = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
    .await
    .unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("# EOF"), "{text}");
    text.lines()
        .filter(|line| line.starts_with("umbel_"))
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        })
        .collect()
}

async fn ended(client: &Client, ids: &[&str]) {
    for id in ids {
        eventually(SOON, &format!("{id} has ended"), async || {
            let state = client.handle(id).state().await.unwrap().name;
            matches!(state.as_str(), "SUCCESS" | "FAILURE" | "REVOKED")
        })
        .await;
    }
}

fn task(name: &str, id: &str, args: &str) -> Task {
    Task::new(name).id(id).json(
        Json::parse(args).unwrap(),
        Json::parse(r#"{"word": "canary-kwarg"}"#).unwrap(),
    )
}

#[tokio::test]
async fn log_lines_name_their_task_and_never_its_words() {
    let redis = Redis::start().await;
    let url = redis.url();
    let sender = client(&url).await;
    let mut connection = redis.connection().await;
    let worker = worker(
        &url,
        &[
            "--retry-initial-backoff",
            "10ms",
            "--retry-max-attempts",
            "2",
            "--max-message",
            "20000",
        ],
    );
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    let traced = |task: Task| task.header("traceparent", &parent);
    let canary = r#"["canary-arg"]"#;
    let no_kwargs = |name: &str, id: &str, args: &str| {
        Task::new(name)
            .id(id)
            .json(Json::parse(args).unwrap(), Json::empty_object())
    };
    for task in [
        traced(task("umbel.echo", "done", canary)),
        traced(no_kwargs("umbel.sleep", "wrong", canary)),
        traced(task("nobody.knows", "unknown", canary)),
        traced(no_kwargs("test.fail", "fails", r#"["canary-message"]"#)),
        traced(no_kwargs("test.flaky", "flaky", "[9]")),
        traced(no_kwargs("test.panic", "panics", "[]")),
        traced(task("test.panic", "refused", canary)),
        traced(no_kwargs("umbel.sleep", "slow", "[60]")).time_limit(Duration::from_millis(100)),
        task("umbel.echo", "expired", canary).expires("2020-01-01T00:00:00Z".parse::<jiff::Timestamp>().unwrap()),
        task("umbel.echo", "packed", canary).serializer("msgpack"),
        task("umbel.echo", "large", &format!("[\"canary-{}\"]", "x".repeat(30_000))),
    ] {
        sender.send(task).await.unwrap();
    }
    let () = connection
        .lpush("celery", r#"{"canary-envelope": ["canary"#)
        .await
        .unwrap();
    let () = connection
        .lpush(
            "celery",
            r#"{"headers": {"id": "bad", "task": "canary.task"}, "body": "canary", "properties": {}}"#,
        )
        .await
        .unwrap();
    ended(
        &sender,
        &[
            "done", "wrong", "unknown", "fails", "flaky", "panics", "refused", "slow", "expired", "packed",
        ],
    )
    .await;
    eventually(SOON, "all is out of the way", async || {
        connection.llen::<_, u64>("celery").await.unwrap() == 0
            && connection.xlen::<_, u64>("umbel:quarantine:celery").await.unwrap() == 4
    })
    .await;
    // What a task's result holds is not in the log, at any level.
    let log = worker.log();
    let leaks: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("canary") && !line.contains("canary.task"))
        .collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
    let lines = lines(&worker);
    let of = |id: &str, message: &str| {
        let line = lines
            .iter()
            .find(|line| line["task.id"] == id && line["message"] == message);
        line.unwrap_or_else(|| panic!("{id}: {message}: {log}")).clone()
    };
    for (id, name, message, reason) in [
        ("done", "umbel.echo", "started", None),
        ("done", "umbel.echo", "ended", None),
        ("wrong", "umbel.sleep", "task failed: dead letter", Some("TypeError")),
        (
            "unknown",
            "nobody.knows",
            "task failed: dead letter",
            Some("unknown task \"nobody.knows\""),
        ),
        ("fails", "test.fail", "task failed: dead letter", Some("ValueError")),
        ("flaky", "test.flaky", "task failed: dead letter", Some("RuntimeError")),
        ("panics", "test.panic", "panic", None),
        (
            "slow",
            "umbel.sleep",
            "task failed: dead letter",
            Some("ran longer than its hard limit of 0.1 s"),
        ),
    ] {
        let line = of(id, message);
        assert_eq!(line["task.name"], name, "{line}");
        assert_eq!(line["queue"], "celery", "{line}");
        assert_eq!(line["correlation_id"], id, "{line}");
        assert_eq!(line["trace_id"], TRACE, "{line}");
        if let Some(reason) = reason {
            assert_eq!(line["reason"], reason, "{line}");
        }
    }
    assert!(
        lines
            .iter()
            .any(|line| line["message"] == "message put in the quarantine" && line["task.id"] == "packed")
    );
    let other = lines.iter().find(|line| line["message"] == "worker starts").unwrap();
    assert_eq!(other.get("task.id"), None, "{other}");
}

#[tokio::test]
async fn the_trace_goes_on_to_what_follows() {
    let redis = Redis::start().await;
    let url = redis.url();
    let sender = client(&url).await;
    let mut connection = redis.connection().await;
    let _worker = worker(&url, &["--retry-initial-backoff", "1h"]);
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    let chain = format!(
        r#"{{"task": "umbel.echo", "args": [], "kwargs": {{}}, "options": {{"headers": {{"traceparent": "{parent}", "tracestate": "a=b"}},
            "link": [{{"task": "next", "args": [], "kwargs": {{}}, "options": {{"queue": "idle"}}, "subtask_type": null, "immutable": false}}]}},
            "subtask_type": null, "immutable": false}}"#
    );
    let first = Signature::parse(&Json::parse(&chain).unwrap()).unwrap();
    sender.apply(first).await.unwrap();
    let retried = Task::new("test.flaky").json(Json::parse("[9]").unwrap(), Json::empty_object());
    sender.send(retried.header("traceparent", &parent)).await.unwrap();
    let header = |raw: &[u8], name: &str| umbel_protocol::message::header(raw, name).and_then(|value| value.text());
    let next = eventually_some(SOON, "the callback is sent", async || {
        connection
            .clone()
            .lindex::<_, Option<Vec<u8>>>("idle", 0)
            .await
            .unwrap()
    })
    .await;
    assert_eq!(
        header(&next, "traceparent").as_deref(),
        Some(parent.as_str()),
        "{}",
        String::from_utf8_lossy(&next)
    );
    assert_eq!(header(&next, "tracestate").as_deref(), Some("a=b"));
    let again = eventually_some(SOON, "the retry is delayed", async || {
        let members: Vec<Vec<u8>> = connection.zrange("umbel:delayed:celery", 0, 0).await.unwrap();
        members.into_iter().next()
    })
    .await;
    let at = again.iter().position(|byte| *byte == b'{').unwrap();
    assert_eq!(header(&again[at..], "traceparent").as_deref(), Some(parent.as_str()));
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let redis = Redis::start().await;
    let relay = Relay::before(&redis).await;
    let url = redis.url();
    let sender = client(&url).await;
    let mut connection = redis.connection().await;
    let through = relay.url();
    let worker = worker(
        &through,
        &["--queue", "celery,other", "--concurrency", "3", "--dead-kept", "1"],
    );
    let before = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    // Sent a minute ago, as its header says.
    let old = Task::new("umbel.echo")
        .id("old")
        .header("umbel_sent_at", &(before - 60.0));
    sender.send(old).await.unwrap();
    for n in 0..5 {
        sender.send(Task::new("umbel.echo").id(&format!("n{n}"))).await.unwrap();
        sender
            .send(Task::new("nobody.knows").id(&format!("u{n}")))
            .await
            .unwrap();
    }
    ended(
        &sender,
        &["old", "n0", "n1", "n2", "n3", "n4", "u0", "u1", "u2", "u3", "u4"],
    )
    .await;
    sender
        .send(
            Task::new("umbel.sleep")
                .id("busy")
                .json(Json::parse("[60]").unwrap(), Json::empty_object()),
        )
        .await
        .unwrap();
    sender
        .send(Task::new("umbel.echo").countdown(Duration::from_secs(3600)))
        .await
        .unwrap();
    let () = connection.hset("umbel:queue:other", "paused", "1").await.unwrap();
    let () = connection.sadd("umbel:limited", "other").await.unwrap();
    sender
        .send(Task::new("umbel.echo").queue("other").priority(6))
        .await
        .unwrap();
    let seen = eventually_some(SOON, "the queues are as they should be", async || {
        let seen = metrics(&worker).await;
        let is = |series: &str, value: f64| seen.get(series) == Some(&value);
        (is("umbel_queue_delayed{queue=\"celery\"}", 1.0)
            && is("umbel_queue_in_flight{queue=\"celery\"}", 1.0)
            && is("umbel_worker_slots{state=\"busy\"}", 1.0))
        .then_some(seen)
    })
    .await;
    for (series, value) in [
        (
            "umbel_task_total{queue=\"celery\",task=\"umbel.echo\",state=\"succeeded\"}",
            6.0,
        ),
        (
            "umbel_task_total{queue=\"celery\",task=\"(unknown)\",state=\"failed\"}",
            5.0,
        ),
        ("umbel_task_started_total", 7.0),
        ("umbel_task_finished_total", 6.0),
        ("umbel_task_runtime_seconds_count{queue=\"celery\"}", 6.0),
        ("umbel_task_wait_seconds_count{queue=\"celery\"}", 7.0),
        ("umbel_worker_slots{state=\"total\"}", 3.0),
        ("umbel_worker_slots{state=\"busy\"}", 1.0),
        ("umbel_worker_slots{state=\"stuck\"}", 0.0),
        ("umbel_queue_depth{queue=\"other\",priority=\"6\"}", 1.0),
        ("umbel_queue_depth{queue=\"celery\",priority=\"0\"}", 0.0),
        ("umbel_queue_dead{queue=\"celery\"}", 1.0),
        (
            "umbel_queue_evicted_total{queue=\"celery\",kind=\"dead\",cause=\"count\"}",
            4.0,
        ),
        ("umbel_queue_quarantine{queue=\"celery\"}", 0.0),
        ("umbel_queue_paused{queue=\"other\"}", 1.0),
        ("umbel_queue_paused{queue=\"celery\"}", 0.0),
        ("umbel_lease_lost_total", 0.0),
        ("umbel_broker_reconnects_total", 0.0),
        ("umbel_log_dropped_total", 0.0),
    ] {
        assert_eq!(seen.get(series), Some(&value), "{series}: {seen:#?}");
    }
    let waited = seen["umbel_task_wait_seconds_sum{queue=\"celery\"}"];
    assert!((59.0..120.0).contains(&waited), "one waited for a minute: {waited}");

    // An outage is not an empty queue, and is counted.
    relay.close();
    let cut = eventually_some(SOON, "the outage is counted", async || {
        let seen = metrics(&worker).await;
        let errors: f64 = seen
            .iter()
            .filter(|(name, _)| name.starts_with("umbel_broker_errors_total"))
            .map(|(_, count)| count)
            .sum();
        let is_gone = !seen.keys().any(|name| name.starts_with("umbel_queue_depth"));
        (errors > 0.0 && is_gone).then_some(seen)
    })
    .await;
    assert!(cut.contains_key("umbel_worker_slots{state=\"total\"}"));
    relay.resume();
    eventually(SOON, "it is back", async || {
        let seen = metrics(&worker).await;
        seen.keys().any(|name| name.starts_with("umbel_queue_depth")) && seen["umbel_broker_reconnects_total"] > 0.0
    })
    .await;
}

#[tokio::test]
async fn task_names_of_strangers_do_not_grow_the_metrics() {
    let redis = Redis::start().await;
    let sender = client(&redis.url()).await;
    let mut connection = redis.connection().await;
    for batch in 0..4 {
        let tasks = (0..500).map(|n| Task::new(&format!("stranger.{batch}.{n}")));
        sender.send_all(tasks.collect::<Vec<Task>>()).await.unwrap();
    }
    let worker = worker(&redis.url(), &["--results", "None"]);
    eventually(SOON, "all are dead letters", async || {
        connection.xlen::<_, u64>("umbel:dead:celery").await.unwrap() == 2000
    })
    .await;
    let seen = eventually_some(SOON, "all are counted", async || {
        let seen = metrics(&worker).await;
        let counted = seen.get("umbel_task_total{queue=\"celery\",task=\"(unknown)\",state=\"failed\"}");
        (counted == Some(&2000.0)).then_some(seen)
    })
    .await;
    let names: BTreeSet<&String> = seen.keys().filter(|series| series.contains("stranger")).collect();
    assert!(names.is_empty(), "{names:?}");
}
