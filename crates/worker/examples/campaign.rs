//! Long campaigns of faults against real workers and a real Redis, by a seed, with a verdict on each.
//!
//! `campaign --kills 2000 --cuts 10000 --pauses 1000 --redis-kills 200 --outages 1,10,60,600 --seed 1`: zero leaves a part
//! out, and `--other PATH` adds one in which workers are swapped for those of another version, and back. It starts the
//! example `test_tasks` beside it, ends with a table, and with an error where anything was lost, ran more often than
//! faults explain, or acted after somebody else had taken over.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use umbel_broker::{Broker, Config};
use umbel_protocol::json::Json;
use umbel_protocol::message::NewTask;
use umbel_testkit::redis::streams::StreamRangeReply;
use umbel_testkit::redis::{self, AsyncCommands};
use umbel_testkit::{Chance, Command, Event, History, Process, Redis, Relay, Signal, eventually};

/// Slots of each worker.
const SLOTS: usize = 8;
/// Leases of the workers; the defaults are thirty times as long.
const LEASE: Duration = Duration::from_secs(2);
/// Messages that wait at any time, so that no fault meets an idle worker.
const BACKLOG: usize = 100;

#[derive(Parser, Debug)]
#[command(about = "Faults against workers, by a seed, with a verdict")]
struct Options {
    /// SIGKILLs of workers, one every 20 to 250 ms
    #[arg(long, default_value_t = 2000)]
    kills: usize,
    /// Replies of Redis that workers do not get
    #[arg(long, default_value_t = 10_000)]
    cuts: usize,
    /// Workers that are frozen for one to three leases
    #[arg(long, default_value_t = 1000)]
    pauses: usize,
    /// Kills of a Redis that writes each command to its disk
    #[arg(long, default_value_t = 200)]
    redis_kills: usize,
    /// Outages of Redis, in seconds each
    #[arg(long, value_delimiter = ',', default_value = "1,3,10,60,600")]
    outages: Vec<u64>,
    /// Workers that are swapped for one of the other version: most are stopped, each fourth is killed
    #[arg(long, default_value_t = 100)]
    swaps: usize,
    /// `test_tasks` of another version
    #[arg(long)]
    other: Option<PathBuf>,
    /// The same seed brings about the same faults at the same moments, as far as a machine can
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What a part of the campaign came to.
struct Outcome {
    name: &'static str,
    faults: usize,
    took: Duration,
    enqueued: usize,
    done: usize,
    dead: usize,
    lost: usize,
    rerun: usize,
    repeated: usize,
    allowed: usize,
    stale: usize,
    held: usize,
    unknown: usize,
}

impl Outcome {
    fn is_good(&self) -> bool {
        self.lost + self.stale + self.unknown == 0 && self.rerun <= self.allowed
    }
}

/// Workers, a producer and the history of one part.
struct Stage {
    url: String,
    history: History,
    tasks: PathBuf,
    workers: Vec<Process>,
    sent: usize,
    seconds: f64,
}

impl Stage {
    fn new(url: &str, workers: usize, seconds: f64) -> anyhow::Result<Stage> {
        let own = std::env::current_exe().context("find this program")?;
        let mut stage = Stage {
            url: url.to_owned(),
            history: History::new(),
            tasks: own.with_file_name("test_tasks"),
            workers: Vec::new(),
            sent: 0,
            seconds,
        };
        ensure!(stage.tasks.exists(), "build the example test_tasks first");
        stage.workers = (0..workers).map(|_| stage.start()).collect();
        Ok(stage)
    }

    fn start(&self) -> Process {
        self.start_of(&self.tasks)
    }

    fn start_of(&self, tasks: &Path) -> Process {
        let slots = SLOTS.to_string();
        let flags = [
            "--redis-url",
            &self.url,
            "--standalone",
            "--concurrency",
            &slots,
            "--lease",
            "2s",
            "--renew-every",
            "600ms",
            "--sweep",
            "500ms",
            "--grace",
            "5s",
            "--name",
            "w@campaign",
        ];
        Process::start(tasks, flags, &[self.history.environment()])
    }

    /// Sends until so many wait. What Redis did not acknowledge may be there all the same, and counts as sent then.
    async fn fill(&mut self, server: &Redis, broker: &Broker) {
        let mut connection = server.connection().await;
        let waiting: usize = connection.llen("celery").await.unwrap_or(BACKLOG);
        let wanted = BACKLOG.saturating_sub(waiting);
        let mut raws = Vec::with_capacity(wanted);
        let mut ids = Vec::with_capacity(wanted);
        for _ in 0..wanted {
            self.sent += 1;
            let id = format!("task-{}", self.sent);
            let task = NewTask {
                id: id.clone(),
                task: "test.work".into(),
                args: Json::of(&(self.seconds,)),
                ignore_result: Some(true),
                ..NewTask::default()
            };
            raws.push(task.encode());
            ids.push(id);
        }
        if broker.publish("celery", 0, &raws).await.is_ok() {
            self.history.enqueued(ids.iter().map(String::as_str));
        }
    }

    /// Waits until nothing waits or is held, and judges.
    async fn judge(self, server: &Redis, name: &'static str, faults: usize, allowed: usize, began: Instant) -> Outcome {
        let mut connection = server.connection().await;
        eventually(Duration::from_mins(10), "the rest is done", async || {
            let keys: Result<(usize, usize, usize, usize), _> = redis::pipe()
                .llen("celery")
                .hlen("umbel:unacked")
                .llen("umbel:suspect:celery")
                .zcard("umbel:delayed:celery")
                .query_async(&mut connection)
                .await;
            keys.is_ok_and(|(waiting, held, suspect, delayed)| waiting + held + suspect + delayed == 0)
        })
        .await;
        let dead: StreamRangeReply = connection.xrange_all("umbel:dead:celery").await.unwrap_or_default();
        let dead: Vec<String> = dead.ids.iter().filter_map(|entry| entry.get("id")).collect();
        let verdict = self.history.verdict(&dead);
        for (what, ids) in [
            ("lost", &verdict.lost),
            ("stale", &verdict.stale),
            ("unknown", &verdict.unknown),
        ] {
            if let Some(first) = ids.first() {
                eprintln!("{name}: {what}, the first {first}");
            }
        }
        Outcome {
            name,
            faults,
            took: began.elapsed(),
            enqueued: verdict.enqueued,
            done: verdict.done,
            dead: dead.len(),
            lost: verdict.lost.len(),
            rerun: verdict.rerun,
            repeated: verdict.repeated_effects,
            allowed,
            stale: verdict.stale.len(),
            held: verdict.held,
            unknown: verdict.unknown.len(),
        }
    }
}

async fn broker(url: &str) -> anyhow::Result<Broker> {
    Broker::connect(&Config::new(url)).await.context("connect")
}

async fn kills(count: usize, chance: &mut Chance) -> anyhow::Result<Outcome> {
    let server = Redis::start().await;
    let producer = broker(&server.url()).await?;
    let (mut stage, began) = (Stage::new(&server.url(), 3, 0.03)?, Instant::now());
    for _ in 0..count {
        stage.fill(&server, &producer).await;
        chance.pause(20, 250).await;
        let victim = chance.pick(stage.workers.len());
        stage.workers[victim].kill();
        stage.workers[victim] = stage.start();
    }
    Ok(stage
        .judge(&server, "kills of workers", count, count * SLOTS, began)
        .await)
}

async fn cuts(count: usize, chance: &mut Chance) -> anyhow::Result<Outcome> {
    let server = Redis::start().await;
    let relay = Relay::before(&server).await;
    let producer = broker(&server.url()).await?;
    let (mut stage, began) = (Stage::new(&relay.url(), 2, 0.005)?, Instant::now());
    for round in 0..count {
        if round % 10 == 0 {
            stage.fill(&server, &producer).await;
        }
        let skip = chance.pick(12);
        let is_script = |command: &Command| command.is("EVALSHA");
        relay
            .cut_reply_after(skip, is_script)
            .happened(Duration::from_secs(60))
            .await;
    }
    Ok(stage.judge(&server, "cut replies", count, count, began).await)
}

async fn pauses(count: usize, chance: &mut Chance) -> anyhow::Result<Outcome> {
    const WORKERS: usize = 4;
    let server = Redis::start().await;
    let producer = broker(&server.url()).await?;
    let (mut stage, began) = (Stage::new(&server.url(), WORKERS, 0.1)?, Instant::now());
    let mut asleep: Vec<Option<Instant>> = vec![None; WORKERS];
    let mut paused = 0;
    while paused < count || asleep.iter().any(Option::is_some) {
        stage.fill(&server, &producer).await;
        for (worker, asleep) in stage.workers.iter().zip(&mut asleep) {
            if asleep.is_some_and(|until| until <= Instant::now()) {
                worker.signal(Signal::Cont);
                *asleep = None;
            }
        }
        // One of them is always awake, to take over.
        if paused < count && asleep.iter().filter(|one| one.is_some()).count() < WORKERS - 1 {
            let victim = chance.pick(WORKERS);
            if asleep[victim].is_none() {
                stage.workers[victim].signal(Signal::Stop);
                let millis = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
                asleep[victim] = Some(Instant::now() + Duration::from_millis(millis + chance.below(2 * millis)));
                paused += 1;
            }
        }
        chance.pause(20, 120).await;
    }
    Ok(stage
        .judge(&server, "pauses of workers", count, count * SLOTS, began)
        .await)
}

async fn redis_kills(count: usize, chance: &mut Chance) -> anyhow::Result<Outcome> {
    let mut server = Redis::durable().await;
    let producer = broker(&server.url()).await?;
    let (mut stage, began) = (Stage::new(&server.url(), 3, 0.03)?, Instant::now());
    for _ in 0..count {
        stage.fill(&server, &producer).await;
        chance.pause(300, 1500).await;
        server.kill();
        chance.pause(0, 400).await;
        server.start_again().await;
    }
    // What ran when the server went away is told to it when it is back: nothing has to run twice.
    Ok(stage.judge(&server, "kills of Redis", count, count, began).await)
}

async fn outages(seconds: &[u64]) -> anyhow::Result<Outcome> {
    let mut server = Redis::durable().await;
    let producer = broker(&server.url()).await?;
    let (mut stage, began) = (Stage::new(&server.url(), 3, 0.3)?, Instant::now());
    for outage in seconds {
        stage.fill(&server, &producer).await;
        let before = stage.history.total(Event::Started);
        let history = &stage.history;
        eventually(Duration::from_secs(60), "they work", async || {
            history.total(Event::Started) > before
        })
        .await;
        server.kill();
        tokio::time::sleep(Duration::from_secs(*outage)).await;
        server.start_again().await;
    }
    Ok(stage.judge(&server, "outages of Redis", seconds.len(), 0, began).await)
}

/// Workers of two versions side by side, on what either has left behind: an upgrade, and its way back.
async fn swaps(count: usize, other: &Path, chance: &mut Chance) -> anyhow::Result<Outcome> {
    ensure!(other.exists(), "{} is not there", other.display());
    let server = Redis::start().await;
    let producer = broker(&server.url()).await?;
    let (mut stage, began) = (Stage::new(&server.url(), 3, 0.1)?, Instant::now());
    let mut is_other = vec![false; stage.workers.len()];
    let mut killed = 0;
    for swap in 0..count {
        stage.fill(&server, &producer).await;
        chance.pause(100, 600).await;
        let victim = chance.pick(stage.workers.len());
        is_other[victim] = !is_other[victim];
        let tasks = if is_other[victim] { other } else { &stage.tasks };
        let next = stage.start_of(tasks);
        let mut last = std::mem::replace(&mut stage.workers[victim], next);
        if swap % 4 == 3 {
            last.kill();
            killed += 1;
        } else {
            last.signal(Signal::Term);
            last.wait(Duration::from_secs(15)).await;
        }
    }
    Ok(stage
        .judge(&server, "swaps of versions", count, killed * SLOTS, began)
        .await)
}

fn table(outcomes: &[Outcome], seed: u64) {
    println!(
        "\nseed {seed}\n{:<18} {:>6} {:>8} {:>8} {:>8} {:>5} {:>5} {:>6} {:>8} {:>8} {:>6} {:>5} {:>8}",
        "part",
        "faults",
        "seconds",
        "sent",
        "done",
        "dead",
        "lost",
        "rerun",
        "allowed",
        "effects+",
        "stale",
        "held",
        "unknown"
    );
    for one in outcomes {
        println!(
            "{:<18} {:>6} {:>8} {:>8} {:>8} {:>5} {:>5} {:>6} {:>8} {:>8} {:>6} {:>5} {:>8}{}",
            one.name,
            one.faults,
            one.took.as_secs(),
            one.enqueued,
            one.done,
            one.dead,
            one.lost,
            one.rerun,
            one.allowed,
            one.repeated,
            one.stale,
            one.held,
            one.unknown,
            if one.is_good() { "" } else { "  BAD" }
        );
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let mut outcomes = Vec::new();
    if options.kills > 0 {
        outcomes.push(kills(options.kills, &mut Chance::new(options.seed)).await?);
    }
    if options.cuts > 0 {
        outcomes.push(cuts(options.cuts, &mut Chance::new(options.seed)).await?);
    }
    if options.pauses > 0 {
        outcomes.push(pauses(options.pauses, &mut Chance::new(options.seed)).await?);
    }
    if options.redis_kills > 0 {
        outcomes.push(redis_kills(options.redis_kills, &mut Chance::new(options.seed)).await?);
    }
    let seconds: Vec<u64> = options.outages.iter().copied().filter(|seconds| *seconds > 0).collect();
    if !seconds.is_empty() {
        outcomes.push(outages(&seconds).await?);
    }
    if let Some(other) = options.other.as_deref().filter(|_| options.swaps > 0) {
        outcomes.push(swaps(options.swaps, other, &mut Chance::new(options.seed)).await?);
    }
    table(&outcomes, options.seed);
    ensure!(outcomes.iter().all(Outcome::is_good), "a part is bad");
    Ok(())
}
