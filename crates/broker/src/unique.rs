//! Unique tasks: a message that is not enqueued while another one with the same key is on its way.

use std::time::Duration;

use crate::call::{Args, PUBLISH_UNIQUE, RELEASE_UNIQUE};
use crate::{Broker, Error};

/// How long a unique key is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Until {
    /// Until the task starts: another one may then wait behind it.
    Started,
    /// Until the task has ended, retries included.
    #[default]
    Done,
}

impl Until {
    /// As the header has it.
    pub fn name(self) -> &'static str {
        match self {
            Until::Started => "started",
            Until::Done => "done",
        }
    }

    /// From the header.
    pub fn named(name: &str) -> Option<Until> {
        match name {
            "started" => Some(Until::Started),
            "done" => Some(Until::Done),
            _ => None,
        }
    }
}

impl Broker {
    /// Enqueues a message unless a task has its unique key. Answers the id of the task that has it now: `id` if this one
    /// was enqueued. The key is kept for `ttl` at most, in case that nobody ever ends the task.
    ///
    /// # Errors
    /// [`Error::QueueFull`]; [`Error::Call`]: it may or may not be enqueued; publish it again. Its id is remembered for ten minutes, so that it
    /// is enqueued once, also where the task has ended meanwhile and its key is free.
    ///
    /// # Cancellation
    /// As an error.
    pub async fn publish_unique(
        &self,
        queue: &str,
        priority: impl Into<i64>,
        raw: &[u8],
        (key, id, ttl): (&str, &str, Duration),
    ) -> Result<String, Error> {
        let list = self.keys.list(queue, priority);
        let args = Args::new(&PUBLISH_UNIQUE, self.keys.scope())
            .arg(key)
            .arg(id)
            .arg(ttl.as_secs().max(1))
            .arg(&list)
            .arg(raw);
        let answer = args.call(&mut self.connection.clone()).await?;
        match answer.value() {
            redis::Value::Int(most) => Err(Error::QueueFull {
                queue: queue.to_owned(),
                most: u64::try_from(*most).unwrap_or(0),
            }),
            _ => answer.text(),
        }
    }

    /// Lets go of a unique key that the task has. False: it had it no longer.
    ///
    /// # Errors
    /// [`Error::Call`]: repeat it, or leave it to its time to live.
    pub async fn release_unique(&self, key: &str, id: &str) -> Result<bool, Error> {
        let args = Args::new(&RELEASE_UNIQUE, self.keys.scope()).arg(key).arg(id);
        Ok(args.call(&mut self.connection.clone()).await?.count()? == 1)
    }
}
