//! Events on their way out. Nobody waits for them: what cannot be sent in time is lost.

use std::time::Duration;

use umbel_protocol::event::Publication;

use crate::control::{failed, timed_out};
use crate::{Broker, Error};

impl Broker {
    /// Publishes in one round trip. Returns how many listeners the last one had.
    ///
    /// # Errors
    /// [`Error::Call`]: Redis refused, or did not answer within `patience`. Not to be repeated: events age fast.
    pub async fn publish_events(&self, events: &[Publication], patience: Duration) -> Result<u64, Error> {
        if events.is_empty() {
            return Ok(0);
        }
        let mut pipe = redis::pipe();
        for event in events {
            pipe.cmd("PUBLISH")
                .arg(self.config.channel(&event.exchange, &event.routing_key))
                .arg(&event.payload);
        }
        let mut connection = self.connection.clone();
        let heard: Vec<u64> = tokio::time::timeout(patience, pipe.query_async(&mut connection))
            .await
            .map_err(|_| timed_out("PUBLISH events"))?
            .map_err(failed("PUBLISH events"))?;
        Ok(heard.last().copied().unwrap_or(0))
    }
}
