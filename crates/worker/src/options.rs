//! Options of a task, given where it is registered.

use std::sync::Arc;
use std::time::Duration;

use umbel_broker::Rate;
use umbel_protocol::control::per_second;

use crate::arguments::Arguments;
use crate::keyed::KeyOf;
use crate::retry::RetryPolicy;

/// When a message is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Ack {
    /// When its run has ended and the result is stored: at least once.
    #[default]
    Late,
    /// Before its run begins: at most once. A crash loses the run, a drain that ends too early fails it.
    Early,
}

/// What a task wants that differs from the worker's flags; a message may overrule limits and `ignore_result`.
///
/// ```
/// # use std::time::Duration;
/// use umbel_worker::{Ack, TaskOptions};
///
/// let options = TaskOptions::new().ack(Ack::Early).max_retries(1).time_limit(Duration::from_secs(60));
/// ```
#[derive(Debug, Clone, Default)]
pub struct TaskOptions {
    pub(crate) ack: Option<Ack>,
    pub(crate) ignore_result: bool,
    pub(crate) store_errors_even_if_ignored: bool,
    pub(crate) track_started: bool,
    pub(crate) max_retries: Option<u32>,
    pub(crate) retry_delay: Option<Duration>,
    pub(crate) retry_policy: Option<RetryPolicy>,
    pub(crate) time_limit: Option<Duration>,
    pub(crate) soft_time_limit: Option<Duration>,
    pub(crate) rate_limit: Option<String>,
    pub(crate) shared_rate: Option<Rate>,
    pub(crate) concurrency_key: Option<(KeyOf, u32)>,
    pub(crate) aliases: Vec<String>,
    /// The newest version of arguments that it reads; 1 where nothing is said.
    pub(crate) version: Option<u32>,
}

impl TaskOptions {
    /// The worker's flags for everything.
    pub fn new() -> TaskOptions {
        TaskOptions::default()
    }

    /// Acknowledges late or early, whatever the worker's `--ack` says.
    #[must_use]
    pub fn ack(mut self, ack: Ack) -> TaskOptions {
        self.ack = Some(ack);
        self
    }

    /// Stores no result, unless the message asks for one.
    #[must_use]
    pub fn ignore_result(mut self) -> TaskOptions {
        self.ignore_result = true;
        self
    }

    /// Stores failures although results are ignored.
    #[must_use]
    pub fn store_errors_even_if_ignored(mut self) -> TaskOptions {
        self.store_errors_even_if_ignored = true;
        self
    }

    /// Stores the state STARTED when it starts.
    #[must_use]
    pub fn track_started(mut self) -> TaskOptions {
        self.track_started = true;
        self
    }

    /// At most so many retries.
    #[must_use]
    pub fn max_retries(mut self, retries: u32) -> TaskOptions {
        self.max_retries = Some(retries);
        self
    }

    /// The wait before a retry that names none; the same each time.
    #[must_use]
    pub fn retry_delay(mut self, wait: Duration) -> TaskOptions {
        self.retry_delay = Some(wait);
        self
    }

    /// A retry policy of its own.
    #[must_use]
    pub fn retry_policy(mut self, policy: RetryPolicy) -> TaskOptions {
        self.retry_policy = Some(policy);
        self
    }

    /// Stops a run that takes longer.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> TaskOptions {
        self.time_limit = Some(limit);
        self
    }

    /// Asks a run that takes longer to end: [`crate::JobContext::soft_limit`].
    #[must_use]
    pub fn soft_time_limit(mut self, limit: Duration) -> TaskOptions {
        self.soft_time_limit = Some(limit);
        self
    }

    /// Runs it at most so often on this worker: `10/s`, `10/m`, `10/h`.
    ///
    /// # Panics
    /// When it is no rate: a mistake of the program that is seen at its first start.
    #[must_use]
    pub fn rate_limit(mut self, rate: &str) -> TaskOptions {
        assert!(
            per_second(rate).is_some(),
            "{rate:?} is no rate such as 10/s, 10/m or 10/h"
        );
        self.rate_limit = Some(rate.to_owned());
        self
    }

    /// Starts it at most so often on all workers together: `10/s`, `100/1m`, `100/s/20` with a burst of 20 after a pause.
    /// What is over the limit waits in Redis.
    ///
    /// # Panics
    /// When it is no rate: a mistake of the program that is seen at its first start.
    #[must_use]
    pub fn shared_rate_limit(mut self, rate: &str) -> TaskOptions {
        let read = rate.parse();
        assert!(read.is_ok(), "{rate:?} is no rate such as 10/s, 100/1m or 100/s/20");
        self.shared_rate = read.ok();
        self
    }

    /// At most `limit` messages with the same value of this argument run at a time, on all workers together; the others
    /// wait in Redis, in their order. A message without the argument runs without limit. The argument may be positional
    /// where the task takes a struct, whose fields are its names.
    #[must_use]
    pub fn concurrency_key(mut self, argument: &str, limit: u32) -> TaskOptions {
        self.concurrency_key = Some((KeyOf::Argument(argument.to_owned()), limit.max(1)));
        self
    }

    /// As [`TaskOptions::concurrency_key`], by a key that a function makes of the arguments; `None`: no limit. Called for
    /// each message before it runs: it should be quick.
    #[must_use]
    pub fn concurrency_key_by(
        mut self,
        key: impl Fn(&Arguments) -> Option<String> + Send + Sync + 'static,
        limit: u32,
    ) -> TaskOptions {
        self.concurrency_key = Some((KeyOf::Function(Arc::new(key)), limit.max(1)));
        self
    }

    /// Reads arguments up to this version; 1 where nothing is said. A message that says in its header `umbel_version` that
    /// its arguments are newer is left to workers of a newer release.
    #[must_use]
    pub fn version(mut self, newest: u32) -> TaskOptions {
        self.version = Some(newest);
        self
    }

    /// Runs for messages under this name, too.
    #[must_use]
    pub fn alias(mut self, name: &str) -> TaskOptions {
        self.aliases.push(name.to_owned());
        self
    }

    /// The retry policy of this task, where the queue's is `policy`.
    pub(crate) fn retry(&self, policy: &RetryPolicy) -> RetryPolicy {
        let mut own = self.retry_policy.unwrap_or(*policy);
        if let Some(retries) = self.max_retries {
            own.max_attempts = retries.saturating_add(1);
        }
        if let Some(wait) = self.retry_delay {
            own = RetryPolicy {
                initial_backoff: wait,
                max_backoff: wait,
                factor: 1.0,
                jitter: 0.0,
                ..own
            };
        }
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_overrules_the_queue() {
        let queue = RetryPolicy::default();
        assert_eq!(TaskOptions::new().retry(&queue), queue);
        let own = TaskOptions::new()
            .max_retries(1)
            .retry_delay(Duration::from_secs(3))
            .retry(&queue);
        assert_eq!(crate::retry::next(&own, 0, 0.9), Some(Duration::from_secs(3)));
        assert_eq!(crate::retry::next(&own, 1, 0.9), None);
    }
}
