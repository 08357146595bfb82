//! Real Celery workers beside ours.

use serde_json::{Value, json};

use crate::celery::START;
use crate::peer::peers;
use crate::{CeleryVersion, Process};

/// How a Celery worker is started.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// Of Celery.
    pub version: CeleryVersion,
    /// Its queues, separated by commas.
    pub queues: &'a str,
    /// `solo` or `prefork`.
    pub pool: &'a str,
    /// Child processes of `prefork`.
    pub concurrency: usize,
    /// Further settings, by Celery's own names.
    pub settings: Value,
    /// Where results go; beside the messages if absent.
    pub results: Option<&'a str>,
    /// More environment, e.g. where to write a history.
    pub environment: Vec<(&'a str, &'a str)>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            version: CeleryVersion::V5_7,
            queues: "celery",
            pool: "solo",
            concurrency: 1,
            settings: json!({}),
            results: None,
            environment: Vec::new(),
        }
    }
}

/// A real Celery worker with the tasks of `e2e/peers/tasks.py`.
pub struct CeleryWorker {
    /// The process; SIGTERM stops it in order.
    pub process: Process,
}

impl CeleryWorker {
    /// Starts one and waits until it takes work.
    ///
    /// # Panics
    /// When it does not get there.
    pub async fn start(broker: &str, options: &Options<'_>) -> CeleryWorker {
        let Options {
            version,
            queues,
            pool,
            concurrency,
            settings,
            results,
            environment,
        } = options;
        let (settings, concurrency, tasks) = (settings.to_string(), concurrency.to_string(), peers());
        let node = format!("celery-{}@%h", crate::free_port()); // Celery wants names that differ.
        let args = [
            "-m",
            "celery",
            "-A",
            "tasks",
            "worker",
            "-Q",
            queues,
            "-P",
            pool,
            "-c",
            &concurrency,
            "-n",
            &node,
        ];
        let quiet = [
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            "-l",
            "INFO",
        ];
        let mut env = vec![
            ("UMBEL_PEER_BROKER", broker),
            ("UMBEL_PEER_RESULTS", results.unwrap_or(broker)),
            ("UMBEL_PEER_SETTINGS", &settings),
            ("PYTHONPATH", tasks.to_str().expect("the checkout's path is text")),
            ("PYTHONDONTWRITEBYTECODE", "1"),
        ];
        env.extend(environment.iter().copied());
        let mut process = Process::start(&version.python(), args.iter().chain(&quiet), &env);
        process.says(START, " ready.").await;
        CeleryWorker { process }
    }
}
