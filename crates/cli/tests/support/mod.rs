//! The program as people call it, and our worker beside it.

#![allow(clippy::unwrap_used, clippy::panic, dead_code)] // Helpers of tests fail as tests do; not each test needs all.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use umbel_testkit::{Process, Redis, repository};

/// What should take milliseconds, on a machine that compiles beside the tests.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// The program as nobody has set it up.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_umbel"));
    for name in ["UMBEL_REDIS_URL", "UMBEL_KEY_PREFIX", "UMBEL_RESULT_URL", "KUBECONFIG"] {
        command.env_remove(name);
    }
    command.env("HOME", "/nonexistent").kill_on_drop(true);
    command
}

fn done(output: std::process::Output) -> Done {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Done {
        code: output.status.code().unwrap(),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

/// A call with these arguments and nothing else.
pub(crate) async fn plain(args: &[&str]) -> Done {
    done(program().args(args).output().await.unwrap())
}

pub(crate) fn command(url: &str, args: &[&str]) -> Command {
    let mut command = program();
    command
        .args(args)
        .args(["--redis-url", url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

pub(crate) async fn umbel_with(url: &str, args: &[&str], input: &str) -> Done {
    let mut child = command(url, args).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let _ = stdin.write_all(input.as_bytes()).await; // A call that is refused reads nothing.
    drop(stdin);
    done(child.wait_with_output().await.unwrap())
}

pub(crate) async fn umbel(url: &str, args: &[&str]) -> Done {
    umbel_with(url, args, "").await
}

#[track_caller]
pub(crate) fn good(done: Done) -> String {
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    done.out
}

#[track_caller]
pub(crate) fn value(done: Done) -> Value {
    let out = good(done);
    serde_json::from_str(&out).unwrap_or_else(|err| panic!("{out}: {err}"))
}

pub(crate) fn umbel_worker(redis: &Redis, flags: &[&str]) -> Process {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let path = Path::new(env!("CARGO_BIN_EXE_umbel")).with_file_name("umbel-worker");
        let build = ["build", "--quiet", "-p", "umbel-worker", "--bin", "umbel-worker"];
        let done = std::process::Command::new(env!("CARGO"))
            .current_dir(repository())
            .args(build)
            .status();
        assert!(done.is_ok_and(|status| status.success()), "build umbel-worker");
        path
    });
    let url = redis.url();
    let args = [&["--redis-url", &url, "--standalone"][..], flags].concat();
    Process::start(path, args, &[])
}
