//! Putting messages into queues.

use crate::{Broker, Error};

impl Broker {
    /// Enqueues messages, in order, with one command.
    ///
    /// # Errors
    /// [`Error::WrongType`] where the queue's key is no list, [`Error::Call`] otherwise. After a connection error the
    /// messages may or may not be in the queue.
    ///
    /// # Cancellation
    /// As a connection error.
    pub async fn publish(&self, queue: &str, priority: u8, messages: &[Vec<u8>]) -> Result<(), Error> {
        if messages.is_empty() {
            return Ok(());
        }
        let list = self.keys.list(queue, priority);
        let mut push = redis::cmd("LPUSH");
        push.arg(&list);
        for message in messages {
            push.arg(message.as_slice());
        }
        push.query_async::<()>(&mut self.connection.clone())
            .await
            .map_err(|source| {
                if source.code() == Some("WRONGTYPE") {
                    Error::WrongType {
                        key: list,
                        reason: source.to_string(),
                    }
                } else {
                    Error::Call { call: "LPUSH", source }
                }
            })
    }
}
