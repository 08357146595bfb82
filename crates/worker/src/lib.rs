//! Umbel's worker: takes Celery messages from Redis and runs them.
//!
//! A task is an async function with a name. A worker of your own is this much:
//!
//! ```no_run
//! use serde::Deserialize;
//! use umbel_worker::{Failure, JobContext, Worker};
//!
//! #[derive(Deserialize)]
//! struct Greet {
//!     name: String,
//! }
//!
//! async fn greet(_ctx: JobContext, args: Greet) -> Result<String, Failure> {
//!     Ok(format!("hello, {}", args.name))
//! }
//!
//! fn main() -> anyhow::Result<()> {
//!     Worker::builder().task("demo.greet", greet).run()
//! }
//! ```
//!
//! Producers send to it as to any Celery worker: `app.send_task("demo.greet", args=["Ada"])` or with
//! `kwargs={"name": "Ada"}`. Flags and environment are those of `umbel-worker`.

mod admit;
mod again;
mod app;
mod args;
mod arguments;
mod autoscale;
mod blocking;
mod bodies;
mod broadcast;
mod budget;
mod canvas;
mod causes;
mod clock;
mod command;
mod consume;
mod control;
mod counts;
mod decide;
mod ends;
mod errback;
mod events;
mod execute;
mod expiring;
mod facts;
mod failure;
mod fleet;
mod heartbeat;
mod inspect;
pub mod job;
pub mod jobs;
mod keyed;
mod lease;
mod limits;
mod lost;
mod metrics;
mod options;
mod orphans;
mod peers;
mod queues;
mod rates;
mod recycle;
mod renew;
mod request;
mod results;
pub mod retry;
mod revoked;
mod run;
mod runners;
mod sample;
mod secrets;
mod server;
mod settle;
mod shares;
mod skew;
mod slots;
mod stop;
mod stuck;
mod subtasks;
mod sweep;
mod targets;
mod tasks;

use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser;
use serde::Serialize;

pub use admit::UnknownTask;
pub use args::{Args, Config, ConfigError, Pod};
pub use arguments::{Arguments, FromArguments};
pub use budget::RetryBudget;
pub use errback::Failed;
pub use expiring::Span;
pub use failure::Failure;
pub use job::{Job, JobContext, Outcome};
pub use keyed::KeyRule;
pub use lease::Lost;
pub use limits::{Named, SharedLimits};
pub use options::{Ack, TaskOptions};
pub use recycle::RecycleLimits;
pub use request::Request;
pub use results::{Results, StoreResults};
pub use shares::Consumption;
pub use stop::{Retry, Stop};
pub use subtasks::SendError;
pub use umbel_protocol::canvas::{Kind as SignatureKind, ResultTuple, Signature};
pub use umbel_protocol::json::Json;
use umbel_telemetry::shutdown::{self, Shutdown};

/// A run that never yields keeps the process for so long when everything else has ended.
const LAST: std::time::Duration = std::time::Duration::from_millis(200);

/// A worker with its tasks.
pub struct Worker {
    tasks: tasks::Tasks,
}

impl Worker {
    /// A worker that knows `umbel.echo` and `umbel.sleep`, and the jobs that its pool enables.
    pub fn builder() -> Worker {
        let mut tasks = tasks::Tasks::default();
        tasks.add(Arc::new(jobs::echo::Echo));
        tasks.add(Arc::new(jobs::sleep::Sleep));
        Worker { tasks }
    }

    /// Adds an async function under a task name. Its arguments are one type, see [`FromArguments`]: a tuple or a struct
    /// for positional ones, a struct for both kinds, [`Arguments`] for whatever comes. Its error is anything that says how
    /// to stop: a [`Failure`], a [`Retry`], a [`Stop`]. A failure that [`Failure::transient`] made is retried by the
    /// queue's policy.
    #[must_use]
    pub fn task<A, R, E, F, Fut>(self, name: &str, call: F) -> Worker
    where
        A: FromArguments + Send + 'static,
        R: Serialize + 'static,
        E: Into<Stop> + 'static,
        F: Fn(JobContext, A) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
    {
        self.task_with(name, TaskOptions::default(), call)
    }

    /// Adds an async function as [`Worker::task`] does, with options of its own.
    #[must_use]
    pub fn task_with<A, R, E, F, Fut>(mut self, name: &str, options: TaskOptions, call: F) -> Worker
    where
        A: FromArguments + Send + 'static,
        R: Serialize + 'static,
        E: Into<Stop> + 'static,
        F: Fn(JobContext, A) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
    {
        self.tasks.add(Arc::new(tasks::function(name, options, call)));
        self
    }

    /// Adds an errback: an async function that is called where a task fails that names it (`link_error`), with what is
    /// known of the failure and the arguments that the errback itself was given. Celery's errbacks of three arguments
    /// (request, exception, traceback) are called so; those of one, the failed id, are tasks like any other.
    ///
    /// It is called at least once, before the failure is stored. What comes of it changes nothing about that.
    #[must_use]
    pub fn errback<A, E, F, Fut>(mut self, name: &str, call: F) -> Worker
    where
        A: FromArguments + Send + 'static,
        E: Into<Stop> + 'static,
        F: Fn(Failed, A) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
    {
        self.tasks.add_errback(name, errback::function(call));
        self
    }

    /// Adds a command for remote control: an async function of the request's arguments, as a struct or a map, whose value
    /// is this worker's answer. Python asks by `app.control.broadcast(name, arguments={…}, reply=True)`, or by
    /// `celery inspect` where the program has registered it, too. Celery's own commands go before one of their names.
    #[must_use]
    pub fn command<A, R, F, Fut>(mut self, name: &str, call: F) -> Worker
    where
        A: FromArguments + Send + 'static,
        R: Serialize + 'static,
        F: Fn(A) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = Result<R, Failure>> + Send + 'static,
    {
        self.tasks.add_command(name, command::function(call));
        self
    }

    /// Adds a job.
    #[must_use]
    pub fn job(mut self, job: impl Job + 'static) -> Worker {
        self.tasks.add(Arc::new(job));
        self
    }

    /// Reads flags and environment and works until SIGTERM, SIGINT or SIGHUP.
    ///
    /// # Errors
    /// A configuration that cannot work, or an address nobody can listen on. A broker that is away is waited for.
    pub fn run(self) -> anyhow::Result<()> {
        jobs::leash::attend();
        // Two at least: a task that never gives way leaves the other one to the rest.
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores.max(2))
            .enable_all()
            .build()
            .context("start the runtime")?;
        // Before everything else: to the first process of a container a signal without a handler is none, and nobody
        // sends it again.
        let stop = {
            let _inside = runtime.enter();
            shutdown::signals().context("listen for signals")?
        };
        let config = Config::try_from(Args::parse())?;
        umbel_telemetry::logs::init("worker");
        umbel_telemetry::cores::off();
        orphans::attend();
        // One provider, chosen before the first TLS connection; a second install is harmless.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let last = LAST.min(config.grace / 100);
        // Not on one of the runtime's threads: what takes messages must not stand behind a task that never gives way.
        let ended = runtime.block_on(self.run_until(config, stop));
        // A run that never yields must not keep the process: its lease returns the message.
        runtime.shutdown_timeout(last);
        ended
    }

    /// Works with a configuration, on the current runtime, until SIGTERM, SIGINT or SIGHUP.
    ///
    /// # Errors
    /// As [`Worker::run`].
    ///
    /// # Cancellation
    /// Like a kill: what is held comes back when its lease ends.
    pub async fn run_with(self, config: Config) -> anyhow::Result<()> {
        jobs::leash::attend();
        let stop = shutdown::signals().context("listen for signals")?;
        Box::pin(self.run_until(config, stop)).await
    }

    async fn run_until(mut self, config: Config, stop: Shutdown) -> anyhow::Result<()> {
        for job in jobs::local(&config.jobs, config.lease, config.renew_every).context("UMBEL_JOBS")? {
            self.tasks.add(job.into());
        }
        let targets = Arc::new(targets::Targets::new(&config.pod.namespace));
        for job in cluster_jobs(&config, &targets).await? {
            self.tasks.add(job.into());
        }
        Box::pin(app::run(config, self.tasks, targets, stop)).await
    }
}

/// The built-in jobs that work at target clusters, where the pool names any.
async fn cluster_jobs(config: &Config, targets: &Arc<targets::Targets>) -> anyhow::Result<Vec<Box<dyn Job>>> {
    if config.clusters.trim().is_empty() {
        return Ok(Vec::new());
    }
    let accesses = umbel_clusters::registry::accesses(&config.clusters).context("UMBEL_CLUSTERS")?;
    if accesses.is_empty() {
        // A pool without clusters has no token either.
        return Ok(Vec::new());
    }
    let settings = jobs::Settings::parse(&config.jobs).context("UMBEL_JOBS")?;
    let client = kube::Client::try_default().await.context("the home cluster's client")?;
    let registry =
        umbel_clusters::Registry::with_board(client, config.pod.namespace.clone(), accesses, Arc::clone(targets) as _);
    jobs::builtin(&registry, settings, config.sources_dir.clone()).context("UMBEL_JOBS")
}

/// A random number in `0.0..1.0`.
pub(crate) fn random() -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let random = (uuid::Uuid::new_v4().as_u128() & 0xFFFF_FFFF) as f64;
    random / 4_294_967_296.0
}
