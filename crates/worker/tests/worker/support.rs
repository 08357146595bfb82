//! Workers under test, with leases so short that recovery can be waited for.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use umbel_broker::{Broker, Config, QueueDepth};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{History, Process, Redis, eventually};

/// What should take milliseconds, on a machine that compiles beside the tests.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// What waits for leases to run out.
pub(crate) const LATER: Duration = Duration::from_secs(40);

/// The flags of every worker here; later ones win.
const SHORT: [&str; 9] = [
    "--standalone",
    "--lease",
    "2s",
    "--renew-every",
    "600ms",
    "--sweep",
    "500ms",
    "--grace",
    "5s",
];

/// The worker with the built-in tasks.
#[allow(dead_code)] // Not every suite starts it.
pub(crate) fn umbel_worker(url: &str, flags: &[&str]) -> Process {
    start(Path::new(env!("CARGO_BIN_EXE_umbel-worker")), url, flags, &[])
}

/// The worker with the tasks of the tests, which write to `history`.
pub(crate) fn test_worker(url: &str, history: &History, flags: &[&str]) -> Process {
    start(test_tasks(), url, flags, &[history.environment()])
}

/// Any worker, with more environment.
pub(crate) fn start(program: &Path, url: &str, flags: &[&str], more: &[(&str, &str)]) -> Process {
    let mut env = vec![("RUST_LOG", "info,umbel=debug"), ("RUST_BACKTRACE", "0")];
    env.extend(more.iter().copied());
    Process::start(program, self::flags(url, flags), &env)
}

/// All flags of a worker: those of the test, and ours that it does not give.
pub(crate) fn flags<'a>(url: &'a str, flags: &[&'a str]) -> Vec<&'a str> {
    // A flag may be given once, so those of the test replace ours.
    let mut args = vec!["--redis-url", url];
    let is_short = std::env::var_os("UMBEL_TEST_DEFAULT_LEASES").is_none(); // A campaign shows the defaults, too.
    let mut own = if is_short { SHORT.as_slice() } else { &["--standalone"] }
        .iter()
        .peekable();
    while let Some(flag) = own.next() {
        let value = own.next_if(|next| !next.starts_with("--"));
        if !flags.contains(flag) {
            args.push(flag);
            args.extend(value);
        }
    }
    args.extend(flags);
    args
}

/// The example beside the worker's binary. Cargo builds it with all tests, but not for a single `--test`.
pub(crate) fn test_tasks() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let folder = Path::new(env!("CARGO_BIN_EXE_umbel-worker"))
            .parent()
            .expect("a binary is in a folder");
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

/// Waits until so many workers take messages.
pub(crate) async fn admitted(redis: &Redis, count: usize) {
    let mut connection = redis.connection().await;
    eventually(SOON, "workers are admitted", async || {
        let entries: Vec<String> = connection.hvals("umbel:workers").await.unwrap_or_default();
        entries.iter().filter(|entry| entry.starts_with("open")).count() >= count
    })
    .await;
}

pub(crate) async fn broker(url: &str) -> Broker {
    Broker::connect(&Config::new(url)).await.expect("the server runs")
}

/// A queue as the operator sees it.
pub(crate) async fn depth(broker: &Broker, queue: &str) -> QueueDepth {
    let mut sample = broker.depths(&[queue.to_owned()]).await.expect("the server answers");
    sample.queues.remove(0).expect("the queue's keys are of their types")
}

/// Reason and task id of each dead letter, or of each message in the quarantine.
pub(crate) async fn laid_aside(redis: &Redis, kind: &str, queue: &str) -> Vec<(String, String)> {
    use umbel_testkit::redis::streams::StreamRangeReply;
    let mut connection = redis.connection().await;
    let entries: StreamRangeReply = connection
        .xrange_all(format!("umbel:{kind}:{queue}"))
        .await
        .expect("the server answers");
    let text = |entry: &umbel_testkit::redis::streams::StreamId, field| entry.get::<String>(field).unwrap_or_default();
    entries
        .ids
        .iter()
        .map(|entry| (text(entry, "reason"), text(entry, "id")))
        .collect()
}

/// Ids as histories want them.
pub(crate) fn borrowed(ids: &[String]) -> impl Iterator<Item = &str> {
    ids.iter().map(String::as_str)
}
