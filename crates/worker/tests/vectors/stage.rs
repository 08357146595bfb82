//! A private Redis with our worker on it, watched: what a client did is played, what the worker did is read.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use umbel_testkit::redis::aio::MultiplexedConnection;
use umbel_testkit::redis::{self, AsyncCommands};
use umbel_testkit::{Process, Redis, eventually};

use crate::capture::Capture;
use crate::compare::compare;
use crate::effects::Effects;
use crate::monitor::{Command, Monitor};

/// What should take milliseconds, on a machine that compiles beside the tests.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// The node name of the captures.
pub(crate) const NODE: &str = "w1@lab";

/// Plays captures one after the other on one worker, and compares all of them.
pub(crate) async fn play(flags: &[&str], names: &[&str]) {
    let mut stage = Stage::with(flags).await;
    let mut differ = Vec::new();
    for name in names {
        let (ours, theirs) = stage.play(&Capture::of(name)).await;
        if let Err(difference) = compare(&ours, &theirs) {
            differ.push(format!("{name}: {difference}"));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n\n"));
}

/// The stage of one capture, or of several that follow each other.
pub(crate) struct Stage {
    pub(crate) redis: Redis,
    pub(crate) worker: Process,
    pub(crate) connection: MultiplexedConnection,
    monitor: Monitor,
    own: String,
    heard: usize,
    /// Names of the worker's queues.
    queues: Vec<String>,
    prefix: String,
}

impl Stage {
    /// A worker with these flags, ready to take messages. One slot, as most captures had one process.
    pub(crate) async fn with(flags: &[&str]) -> Stage {
        let redis = Redis::start().await;
        let monitor = Monitor::of(redis.port()).await;
        Stage::on(redis, monitor, flags).await
    }

    async fn on(redis: Redis, monitor: Monitor, flags: &[&str]) -> Stage {
        let flag = |name: &str| flags.iter().position(|flag| *flag == name).map(|at| flags[at + 1]);
        let worker = start(&redis.url(), flags);
        let mut connection = redis.connection().await;
        let info: String = redis::cmd("CLIENT")
            .arg("INFO")
            .query_async(&mut connection)
            .await
            .expect("the server answers");
        let own = info
            .split(' ')
            .find_map(|word| word.strip_prefix("addr="))
            .expect("an address");
        let stage = Stage {
            own: own.to_owned(),
            queues: flag("--queue")
                .unwrap_or("celery")
                .split(',')
                .map(str::to_owned)
                .collect(),
            prefix: flag("--key-prefix").unwrap_or_default().to_owned(),
            connection,
            redis,
            worker,
            monitor,
            heard: 0,
        };
        stage.is_ready().await;
        stage
    }

    async fn is_ready(&self) {
        let mut connection = self.connection.clone();
        let key = format!("{}umbel:workers", self.prefix);
        eventually(SOON, "the worker takes messages", async || {
            let entries: Vec<String> = connection.hvals(&key).await.unwrap_or_default();
            entries.iter().any(|entry| entry.starts_with("open"))
        })
        .await;
        eventually(SOON, "it listens to remote control", async || {
            let mut asked = redis::cmd("PUBSUB");
            let channels: Vec<String> = asked
                .arg("CHANNELS")
                .query_async(&mut connection)
                .await
                .unwrap_or_default();
            channels.iter().any(|channel| channel.contains("pidbox"))
        })
        .await;
    }

    /// Sends a command as it is.
    pub(crate) async fn send(&mut self, parts: &[Vec<u8>]) -> redis::Value {
        let mut command = redis::Cmd::new();
        for part in parts {
            command.arg(part.as_slice());
        }
        command
            .query_async(&mut self.connection)
            .await
            .expect("the server answers")
    }

    /// Forgets what was done until now.
    pub(crate) fn forget(&mut self) {
        self.heard = self.monitor.commands().len();
    }

    /// What the worker did since.
    pub(crate) fn done(&self) -> Vec<Command> {
        let mut commands = self.monitor.commands().split_off(self.heard);
        commands.retain(|command| command.client != self.own);
        commands
    }

    /// The effects since the worker was started.
    pub(crate) fn all_effects(&self) -> Effects {
        let mut commands = self.monitor.commands();
        commands.retain(|command| command.client != self.own);
        Effects::of(&commands, &[])
    }

    pub(crate) fn effects(&self, own: &[Vec<u8>]) -> Effects {
        Effects::of(&self.done(), own)
    }

    /// Nothing waits, nothing runs, nothing is due: looked at in one step, for what ends may be followed by what waits.
    pub(crate) async fn is_idle(&mut self) -> bool {
        let mut look = redis::pipe();
        look.atomic();
        for queue in &self.queues {
            for step in ["", "\u{6}\u{16}3", "\u{6}\u{16}6", "\u{6}\u{16}9"] {
                look.llen(format!("{}{queue}{step}", self.prefix));
            }
            look.zcard(format!("{}umbel:delayed:{queue}", self.prefix));
        }
        look.hlen(format!("{}umbel:unacked", self.prefix));
        let left: Vec<u64> = look
            .query_async(&mut self.connection)
            .await
            .expect("lists, sets and a hash");
        left.iter().sum::<u64>() == 0
    }

    /// Waits until the record holds all that was done before.
    async fn caught_up(&mut self) {
        let mark = uuid::Uuid::new_v4().to_string();
        self.send(&[b"ECHO".to_vec(), mark.clone().into_bytes()]).await;
        eventually(SOON, "the record has caught up", async || {
            let commands = self.monitor.commands();
            commands
                .iter()
                .rev()
                .any(|command| command.text(0) == "ECHO" && command.text(1) == mark)
        })
        .await;
    }

    /// Plays what the client did, and waits until there is as much of each kind as Celery's worker did, and nothing
    /// more to do.
    pub(crate) async fn play(&mut self, capture: &Capture) -> (Effects, Effects) {
        self.forget();
        let theirs = Effects::of(&capture.by_worker(), &[]);
        let client = capture.by_client();
        assert!(!client.is_empty(), "{}: a client did something", capture.name);
        let own: Vec<Vec<u8>> = client
            .iter()
            .filter_map(|(_, command)| command.parts.get(2).cloned())
            .collect();
        // All at once, or what runs first would depend on how fast they come.
        let mut commands = redis::pipe();
        commands.atomic();
        for (_, command) in client {
            let mut parts = command.parts.into_iter();
            let name = parts.next().unwrap_or_default();
            let command = commands.cmd(&String::from_utf8_lossy(&name));
            for part in parts {
                command.arg(part);
            }
        }
        commands
            .exec_async(&mut self.connection)
            .await
            .expect("the server answers");
        let ours = self
            .until(&capture.name, &own, |ours| {
                ours.documents.len() >= theirs.documents.len()
            })
            .await;
        (ours, theirs)
    }

    /// The effects when `is_enough` says so and the worker is idle.
    pub(crate) async fn until(&mut self, what: &str, own: &[Vec<u8>], is_enough: impl Fn(&Effects) -> bool) -> Effects {
        let patience = std::env::var("UMBEL_TEST_PATIENCE").map_or(1, |factor| factor.parse().expect("a number"));
        let deadline = std::time::Instant::now() + SOON * patience;
        loop {
            // First idle, then read: what came before the last message was settled is in the record.
            let is_idle = self.is_idle().await;
            self.caught_up().await;
            let ours = self.effects(own);
            if is_idle && is_enough(&ours) {
                return ours;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "{what}: the worker does not do as much; idle: {is_idle}; it did {ours:#?}\n{}",
                self.worker.tail()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Our worker with the tasks of the captures. Later flags win.
pub(crate) fn start(url: &str, flags: &[&str]) -> Process {
    let own = [
        ("--name", NODE),
        ("--concurrency", "1"),
        ("--lease", "2s"),
        ("--renew-every", "600ms"),
        ("--sweep", "500ms"),
        ("--grace", "5s"),
        ("--retry-jitter", "0"),
    ];
    let mut args = vec!["--redis-url", url, "--standalone"];
    for (flag, value) in own {
        let is_scaled = flag == "--concurrency" && flags.contains(&"--autoscale");
        if !flags.contains(&flag) && !is_scaled {
            args.extend([flag, value]);
        }
    }
    args.extend(flags);
    Process::start(
        program(),
        &args,
        &[("UMBEL_LOG", "info,umbel=debug"), ("RUST_BACKTRACE", "0")],
    )
}

/// The example beside the worker's binary. Cargo builds it with all tests, but not for a single `--test`.
pub(crate) fn program() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let folder = Path::new(env!("CARGO_BIN_EXE_umbel-worker"))
            .parent()
            .expect("a binary is in a folder");
        let path = folder.join("examples/proj_tasks");
        let build = ["build", "--quiet", "-p", "umbel-worker", "--example", "proj_tasks"];
        let done = path.exists() || {
            let status = std::process::Command::new(env!("CARGO")).args(build).status();
            status.is_ok_and(|status| status.success())
        };
        assert!(done, "build the example proj_tasks");
        path
    })
}
