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

impl Broker {
    /// Queues that are bound to a direct exchange by a routing key, as kombu's producers find them.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn bound_queues(&self, exchange: &str, routing_key: &str) -> Result<Vec<String>, Error> {
        let members: Vec<String> = redis::cmd("SMEMBERS")
            .arg(format!("{}_kombu.binding.{exchange}", self.keys.prefix()))
            .query_async(&mut self.connection.clone())
            .await
            .map_err(|source| Error::Call {
                call: "SMEMBERS binding",
                source,
            })?;
        let bound = members.iter().filter_map(|member| {
            let mut parts = member.split(crate::keys::SEPARATOR);
            let key = parts.next()?;
            let queue = parts.nth(1)?;
            (key == routing_key).then(|| queue.to_owned())
        });
        Ok(bound.collect())
    }
}
