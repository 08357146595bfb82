//! Which queues may refuse messages: known for a few seconds, so that sending to all others costs nothing.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{Broker, Error};

/// So long a producer may go on sending to a queue that was bounded meanwhile: what is too much is dealt with as what
/// other producers send.
const BELIEVED: Duration = Duration::from_secs(5);
/// Queues remembered; a producer with more asks oftener.
const MOST: usize = 10_000;

/// What was last heard of queues.
#[derive(Default)]
pub(crate) struct Bounds {
    known: Mutex<HashMap<String, (Instant, bool)>>,
}

impl Bounds {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Instant, bool)>> {
        // Nothing that can panic runs under this lock.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the queue have limits of its own, as far as is known?
    pub(crate) fn has(&self, queue: &str) -> bool {
        self.lock().get(queue).is_some_and(|(_, has)| *has)
    }
}

impl Broker {
    /// Learns which of these queues have limits, where that is not known. A user who may not read it sends as if there were
    /// none, as Celery's producers do.
    ///
    /// # Errors
    /// [`Error::Call`] where the server did not answer.
    pub(crate) async fn learn_bounds<'a>(&self, queues: impl Iterator<Item = &'a str>) -> Result<(), Error> {
        let now = Instant::now();
        let mut asked: Vec<&str> = Vec::new();
        {
            let known = self.bounds.lock();
            let mut last = None;
            for queue in queues {
                if last == Some(queue) {
                    continue;
                }
                last = Some(queue);
                let is_fresh = known
                    .get(queue)
                    .is_some_and(|(at, _)| now.duration_since(*at) < BELIEVED);
                if !is_fresh && !asked.contains(&queue) {
                    asked.push(queue);
                }
            }
        }
        if asked.is_empty() {
            return Ok(());
        }
        let answer: redis::RedisResult<Vec<bool>> = redis::cmd("SMISMEMBER")
            .arg(self.keys.umbel("limited"))
            .arg(&asked)
            .query_async(&mut self.connection.clone())
            .await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(source) => {
                let error = Error::Call {
                    call: "SMISMEMBER umbel:limited",
                    source,
                };
                if error.is_connection() {
                    return Err(error);
                }
                vec![false; asked.len()]
            }
        };
        let mut known = self.bounds.lock();
        if known.len() + asked.len() > MOST {
            known.clear();
        }
        for (queue, has) in asked.into_iter().zip(answer) {
            known.insert(queue.to_owned(), (now, has));
        }
        Ok(())
    }
}
