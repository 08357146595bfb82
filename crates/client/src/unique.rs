//! Unique tasks: one with the same key is not sent again while one is on its way.

use std::collections::BTreeMap;
use std::time::Duration;

use umbel_broker::{Publication, Until};
use umbel_protocol::canvas::ResultTuple;

use crate::prepare::{Bindings, Sendable};
use crate::{Client, Handle, SendError, Task};

/// What a task must be the only one of.
#[derive(Debug, Clone)]
pub(crate) struct Unique {
    pub(crate) key: String,
    pub(crate) ttl: Duration,
}

impl<C> Task<C> {
    /// Is not sent while another task with this key is on its way; the handle is then that one's. The key is taken until
    /// the task starts or until it is done, retries included, and for `ttl` at most: longer than it may wait and run, and
    /// shorter than anybody can do without it when the worker that ends it is none of Umbel's. For [`Client::send`] and
    /// [`Client::send_all`], to a queue; parts of workflows are sent whatever their keys.
    pub fn unique(mut self, key: &str, until: Until, ttl: Duration) -> Task<C> {
        let header = BTreeMap::from([("key", key), ("until", until.name())]);
        self = self.header("umbel_unique", &header);
        self.options.unique = Some(Unique {
            key: key.to_owned(),
            ttl,
        });
        self
    }
}

impl Client {
    /// Sends a task that has been accepted, unless another one has its key.
    pub(crate) async fn send_unique(&self, task: &Task, unique: &Unique) -> Result<Handle, SendError> {
        let wrong = |reason: &str| SendError::Call {
            task: task.name.clone(),
            reason: reason.to_owned(),
        };
        if unique.key.is_empty() || unique.key.len() > 512 {
            return Err(wrong("a unique key has 1 to 512 bytes"));
        }
        let items = std::slice::from_ref(task);
        let batch = self.write(items, &Bindings::new(), Vec::new()).await?;
        let publications = batch.publications();
        let [
            Publication::Push {
                queue, priority, raw, ..
            },
        ] = publications.as_slice()
        else {
            return Err(wrong("a unique task is sent to one queue, not to an exchange"));
        };
        let retry = self.inner.options.retry;
        let mut pause = retry.pause;
        let mut left = retry.attempts.max(1);
        let id = loop {
            left -= 1;
            let taken = (unique.key.as_str(), task.id(), unique.ttl);
            match self.inner.broker.publish_unique(queue, *priority, raw, taken).await {
                Ok(id) => break id,
                // Redis remembers the id for longer than this goes on, so it is sent once.
                Err(err) if left > 0 && err.is_connection() => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(source) => {
                    let id = vec![task.id().to_owned()];
                    let (unknown, unsent) = if source.may_have_happened() {
                        (id, Vec::new())
                    } else {
                        (Vec::new(), id)
                    };
                    return Err(SendError::Undelivered {
                        sent: Vec::new(),
                        unknown,
                        unsent,
                        source,
                    });
                }
            }
        };
        if id == task.id() && self.inner.options.events {
            self.tell(items).await;
        }
        Ok(Handle::new(
            self,
            ResultTuple::task(&id),
            task.ignore_result == Some(true),
        ))
    }
}
