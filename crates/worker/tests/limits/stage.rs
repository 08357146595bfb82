//! Workers with limits, and a client that sends to them.

use std::time::Duration;

use umbel_client::{Client, Config, Handle, Options, Task};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{History, Process, Redis};

use crate::support::{SOON, admitted, test_worker};

/// A server, workers with the same flags, and a client.
pub(crate) struct Stage {
    pub(crate) redis: Redis,
    pub(crate) history: History,
    pub(crate) workers: Vec<Process>,
    pub(crate) client: Client,
}

impl Stage {
    pub(crate) async fn new(workers: usize, flags: &[&str]) -> Stage {
        Stage::on(Redis::start().await, workers, flags).await
    }

    pub(crate) async fn on(redis: Redis, workers: usize, flags: &[&str]) -> Stage {
        let history = History::new();
        let client = Client::connect(Config::new(&redis.url()), Options::default())
            .await
            .expect("the server runs");
        let mut stage = Stage {
            redis,
            history,
            workers: Vec::new(),
            client,
        };
        for _ in 0..workers {
            stage.add_worker(flags);
        }
        admitted(&stage.redis, workers).await;
        stage
    }

    /// One more worker, with flags of its own.
    pub(crate) fn add_worker(&mut self, flags: &[&str]) {
        self.workers.push(test_worker(&self.redis.url(), &self.history, flags));
    }

    pub(crate) async fn send(&self, tasks: Vec<Task>) -> Vec<Handle> {
        let handles = self.client.send_all(tasks).await.expect("the server runs");
        self.history.enqueued(handles.iter().map(Handle::id));
        handles
    }

    /// A number that tasks have counted in Redis; 0 if there is none.
    pub(crate) async fn number(&self, key: &str) -> i64 {
        let number: Option<i64> = self
            .redis
            .connection()
            .await
            .get(key)
            .await
            .expect("the server answers");
        number.unwrap_or(0)
    }

    /// Calls that Redis has carried out so far.
    pub(crate) async fn commands(&self) -> f64 {
        self.info("total_commands_processed").await
    }

    /// Seconds of CPU that the server has used.
    pub(crate) async fn cpu(&self) -> f64 {
        self.info("used_cpu_user").await + self.info("used_cpu_sys").await
    }

    async fn info(&self, field: &str) -> f64 {
        let mut connection = self.redis.connection().await;
        let info: String = umbel_testkit::redis::cmd("INFO")
            .arg("everything")
            .query_async(&mut connection)
            .await
            .expect("the server answers");
        let line = info.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
        line.and_then(|value| value.trim().parse().ok()).expect("a number")
    }
}

/// Results of all, in their order.
pub(crate) async fn results<T: serde::de::DeserializeOwned>(handles: &[Handle]) -> Vec<T> {
    let mut results = Vec::new();
    for handle in handles {
        results.push(handle.get_as(SOON).await.expect("it succeeds"));
    }
    results
}

/// The most of these times, in microseconds, that lie within any window of this length.
pub(crate) fn most_within(times: &[f64], window: Duration) -> usize {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    let window = window.as_secs_f64() * 1e6;
    let count = |begin: usize| {
        times[begin..]
            .iter()
            .take_while(|time| **time < times[begin] + window)
            .count()
    };
    (0..times.len()).map(count).max().unwrap_or(0)
}
