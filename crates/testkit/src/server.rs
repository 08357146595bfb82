//! A private Redis server.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::aio::MultiplexedConnection;

use crate::leash::Leash;
use crate::setup::made;
use crate::{TempDir, eventually, free_port};

/// What program a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerKind {
    /// Redis 7.0, as Debian 12 has it.
    Redis,
    /// Valkey 8.
    Valkey,
}

impl ServerKind {
    /// Redis, unless `UMBEL_TEST_SERVER` says `valkey`.
    ///
    /// # Panics
    /// When it says something else.
    pub fn of_this_run() -> ServerKind {
        match std::env::var("UMBEL_TEST_SERVER").as_deref() {
            Err(_) | Ok("" | "redis") => ServerKind::Redis,
            Ok("valkey") => ServerKind::Valkey,
            Ok(other) => panic!("UMBEL_TEST_SERVER is {other:?}: redis and valkey are known"),
        }
    }

    fn program(self) -> PathBuf {
        match self {
            ServerKind::Redis => "redis-server".into(),
            ServerKind::Valkey => made("UMBEL_VALKEY", "peers"),
        }
    }
}

/// A server of one's own on a free loopback port, without persistence unless asked for. It dies with the test.
#[derive(Debug)]
pub struct Redis {
    kind: ServerKind,
    port: u16,
    extra: Vec<String>,
    running: Option<(Child, Leash)>,
    folder: TempDir,
    /// Words before the program: another network, another clock.
    around: Vec<String>,
    /// Environment of the program.
    environment: Vec<(String, String)>,
    host: String,
}

/// Loaded before the C library: the wall clock, and as many seconds more as a file says. (libfaketime does not get along
/// with the server's allocator.)
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long ahead(void) {
    char text[32] = {0};
    const char *path = getenv("UMBEL_TEST_CLOCK");
    int file = path ? syscall(SYS_openat, AT_FDCWD, path, O_RDONLY, 0) : -1;
    if (file < 0) return 0;
    long length = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    return length > 0 ? strtol(text, 0, 10) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int answer = syscall(SYS_clock_gettime, clock, now);
    if (answer == 0 && clock == CLOCK_REALTIME) now->tv_sec += ahead();
    return answer;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    (void)zone;
    int answer = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return answer;
}

time_t time(time_t *to) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (to) *to = exact.tv_sec;
    return exact.tv_sec;
}
"#;

/// Starting takes some 20 ms; a machine that builds beside the tests takes longer.
const START: Duration = Duration::from_secs(20);

impl Redis {
    /// Starts a server that keeps nothing on disk.
    pub async fn start() -> Redis {
        Redis::start_with(&[]).await
    }

    /// Starts a server that writes every command to disk before it answers.
    pub async fn durable() -> Redis {
        Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await
    }

    /// Starts a server with more settings, as on the command line of `redis-server`.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn start_with(settings: &[&str]) -> Redis {
        Redis::start_kind(ServerKind::of_this_run(), settings).await
    }

    /// Starts this program, whatever the run is about.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn start_kind(kind: ServerKind, settings: &[&str]) -> Redis {
        Redis::prepare(kind, settings).launch().await
    }

    /// Starts one in a namespace of the network, where it has this address.
    ///
    /// # Panics
    /// When it does not answer, or we are not root.
    pub async fn start_in(namespace: &str, address: &str) -> Redis {
        let mut server = Redis::prepare(
            ServerKind::of_this_run(),
            &["--bind", "0.0.0.0", "--protected-mode", "no"],
        );
        server.around = ["ip", "netns", "exec", namespace].map(str::to_owned).to_vec();
        address.clone_into(&mut server.host);
        server.launch().await
    }

    /// Starts one whose wall clock a test can set: [`Redis::set_clock`]. Its monotonic clock is the machine's.
    ///
    /// # Panics
    /// When it does not answer, or there is no compiler for what stands between it and the clock.
    pub async fn with_clock(settings: &[&str]) -> Redis {
        let mut server = Redis::prepare(ServerKind::of_this_run(), settings);
        let (source, library, clock) = (
            server.folder.path().join("clock.c"),
            server.folder.path().join("clock.so"),
            server.folder.path().join("clock"),
        );
        std::fs::write(&source, CLOCK).expect("the folder is ours");
        server.set_clock(0);
        let made = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .output()
            .expect("a C compiler is installed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let text = |path: PathBuf| path.to_str().expect("the folder's name is ours").to_owned();
        server.environment = vec![
            ("LD_PRELOAD".into(), text(library)),
            ("UMBEL_TEST_CLOCK".into(), text(clock)),
        ];
        server.launch().await
    }

    /// From now on the clock of [`Redis::with_clock`] is so many seconds ahead.
    ///
    /// # Panics
    /// When the folder is gone.
    pub fn set_clock(&self, seconds: i32) {
        // In one step: a file that is being written would be read as no offset.
        let (next, clock) = (self.folder.path().join("next"), self.folder.path().join("clock"));
        std::fs::write(&next, seconds.to_string()).expect("the folder is ours");
        std::fs::rename(next, clock).expect("the folder is ours");
    }

    fn prepare(kind: ServerKind, settings: &[&str]) -> Redis {
        Redis {
            kind,
            port: 0,
            extra: settings.iter().map(|&setting| setting.to_owned()).collect(),
            running: None,
            folder: TempDir::new("redis"),
            around: Vec::new(),
            environment: Vec::new(),
            host: "127.0.0.1".into(),
        }
    }

    async fn launch(mut self) -> Redis {
        for _ in 0..10 {
            self.port = free_port(); // Another test may take it first; then the server ends and the next is tried.
            self.spawn();
            if self.answers().await {
                return self;
            }
        }
        panic!("redis-server does not start:\n{}", self.log())
    }

    /// Where its files are.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Starts one that follows the server on this port of loopback, and waits until it has everything.
    ///
    /// # Panics
    /// When it does not.
    pub async fn replica_of(port: u16, settings: &[&str]) -> Redis {
        let of = port.to_string();
        let mut all = vec!["--replicaof", "127.0.0.1", &of, "--repl-diskless-sync-delay", "0"];
        all.extend(settings);
        let replica = Redis::start_with(&all).await;
        let mut connection = replica.connection().await;
        eventually(START, "the replica follows", async || {
            let info: String = redis::cmd("INFO")
                .arg("replication")
                .query_async(&mut connection)
                .await
                .unwrap_or_default();
            info.contains("master_link_status:up")
        })
        .await;
        replica
    }

    /// Sets one thing, as with `redis-cli config set`.
    ///
    /// # Panics
    /// When it refuses.
    pub async fn set(&self, name: &str, value: &str) {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg(name).arg(value);
        command
            .query_async::<()>(&mut self.connection().await)
            .await
            .expect("the setting is taken");
    }

    fn spawn(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("redis.log"))
            .expect("the log can be made");
        let errors = log.try_clone().expect("the log can be shared");
        let mut command = match self.around.split_first() {
            None => Command::new(self.kind.program()),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(self.kind.program());
                command
            }
        };
        let child = command
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .args([
                "--bind",
                "127.0.0.1",
                "--port",
                &self.port.to_string(),
                "--save",
                "",
                "--enable-debug-command",
                "yes",
            ])
            .arg("--dir")
            .arg(self.folder.path())
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .expect("the server is installed: `make setup`");
        let leash = Leash::on(child.id(), Some(self.folder.path()));
        self.running = Some((child, leash));
    }

    /// Waits until it answers; false when it ended instead.
    async fn answers(&mut self) -> bool {
        let client = redis::Client::open(self.url()).expect("a loopback address is an address");
        let mut ended = false;
        eventually(START, "redis-server answers", async || {
            let (child, _) = self.running.as_mut().expect("it was started");
            ended = child.try_wait().ok().flatten().is_some();
            if ended {
                return true;
            }
            let Ok(mut connection) = client.get_multiplexed_async_connection().await else {
                return false;
            };
            redis::cmd("PING").query_async::<String>(&mut connection).await.is_ok()
        })
        .await;
        !ended
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it is not running.
    pub fn pid(&self) -> u32 {
        self.running.as_ref().expect("it is running").0.id()
    }

    /// Address of database 0.
    pub fn url(&self) -> String {
        self.database(0)
    }

    /// Address of one of its databases.
    pub fn database(&self, number: u8) -> String {
        format!("redis://{}:{}/{number}", self.host, self.port)
    }

    /// A connection to database 0, if it takes one now.
    pub async fn try_connection(&self) -> Option<MultiplexedConnection> {
        let client = redis::Client::open(self.url()).ok()?;
        client.get_multiplexed_async_connection().await.ok()
    }

    /// A connection to database 0.
    ///
    /// # Panics
    /// When it is not running.
    pub async fn connection(&self) -> MultiplexedConnection {
        self.connection_to(0).await
    }

    /// A connection to one of its databases.
    ///
    /// # Panics
    /// When it is not running.
    pub async fn connection_to(&self, database: u8) -> MultiplexedConnection {
        let client = redis::Client::open(self.database(database)).expect("a loopback address is an address");
        // Slow scripts of tests and a machine that compiles beside them are no failures.
        let patience = Some(Duration::from_secs(30));
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(patience)
            .set_response_timeout(patience);
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .expect("the server runs")
    }

    /// Kills it: nothing is saved that was not on disk.
    pub fn kill(&mut self) {
        if let Some((mut child, leash)) = self.running.take() {
            drop(leash);
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same port, with what is on disk.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn start_again(&mut self) {
        self.kill();
        self.spawn();
        assert!(
            self.answers().await,
            "redis-server does not start again:\n{}",
            self.log()
        );
    }

    /// What it wrote to its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("redis.log")).unwrap_or_default()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
