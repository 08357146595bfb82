//! Clients, and workers of both kinds.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use umbel_client::{Client, Config, Options};
use umbel_testkit::{Process, Redis, repository};

/// What should take milliseconds, on a machine that compiles beside the tests.
pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) async fn client(redis: &Redis) -> Client {
    client_with(redis, Options::default()).await
}

pub(crate) async fn client_with(redis: &Redis, options: Options) -> Client {
    Client::connect(Config::new(&redis.url()), options).await.unwrap()
}

/// The worker, built where it is not: cargo builds binaries for the tests of their own package only.
pub(crate) fn umbel_worker(redis: &Redis, flags: &[&str]) -> Process {
    let url = redis.url();
    let mut args = vec!["--redis-url", &url, "--standalone"];
    args.extend(flags);
    Process::start(worker_binary(), args, &[("RUST_LOG", "info,umbel=debug")])
}

fn worker_binary() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let me = std::env::current_exe().unwrap();
        // target/debug/deps/client-… beside target/debug/umbel-worker.
        let path = me.parent().and_then(Path::parent).unwrap().join("umbel-worker");
        if !path.exists() {
            let build = ["build", "--quiet", "-p", "umbel-worker", "--bin", "umbel-worker"];
            let mut command = std::process::Command::new(env!("CARGO"));
            let done = command.current_dir(repository()).args(build).status();
            assert!(
                done.is_ok_and(|status| status.success()) && path.exists(),
                "build umbel-worker"
            );
        }
        path
    })
}
