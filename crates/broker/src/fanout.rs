//! Listening to fanout exchanges. Redis keeps nothing of them: who does not listen has missed it.

use crate::control::Subscription;
use crate::{Config, Error};

/// A queue that gets a copy of everything that is published to a fanout exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FanoutBinding {
    /// The exchange.
    pub exchange: String,
    /// Routing keys, with `#` for "anything": kombu's consumers hear only what their key matches. `#` alone is all of it,
    /// also what has no key.
    pub routing_key: String,
    /// The queue.
    pub queue: String,
}

/// Subscriptions to fanout exchanges.
pub struct FanoutChannel {
    subscription: Subscription,
    /// Pattern and queue.
    queues: Vec<(String, String)>,
}

impl FanoutChannel {
    /// Connects and subscribes.
    ///
    /// # Errors
    /// [`Error::Address`], [`Error::Connect`], [`Error::Call`].
    ///
    /// # Cancellation
    /// Safe.
    pub async fn connect(config: &Config, bindings: &[FanoutBinding]) -> Result<FanoutChannel, Error> {
        let mut queues: Vec<(String, String)> = bindings
            .iter()
            .flat_map(|binding| {
                let key = binding.routing_key.replace('#', "*");
                let without_key = (key == "*").then(String::new);
                let keys = without_key.into_iter().chain([key]);
                keys.map(|key| (config.channel(&binding.exchange, &key), binding.queue.clone()))
            })
            .collect();
        queues.dedup(); // Where keys are no part of names.
        let patterns: Vec<&str> = queues.iter().map(|(pattern, _)| pattern.as_str()).collect();
        let subscription = Subscription::connect(config, &[], &patterns, "PSUBSCRIBE fanout").await?;
        Ok(FanoutChannel { subscription, queues })
    }

    /// The next message, unread, with the queues that get it. `None`: the connection has ended.
    ///
    /// # Cancellation
    /// Safe.
    pub async fn next(&mut self) -> Option<(Vec<String>, Vec<u8>)> {
        loop {
            let message = self.subscription.next().await?;
            let Ok(matched) = message.get_pattern::<String>() else {
                continue;
            };
            // A message comes once for each pattern that it matches.
            let of_pattern = self.queues.iter().filter(|(pattern, _)| *pattern == matched);
            let queues = of_pattern.map(|(_, queue)| queue.clone()).collect();
            return Some((queues, message.get_payload_bytes().to_vec()));
        }
    }
}
