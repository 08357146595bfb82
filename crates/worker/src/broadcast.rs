//! Fanout exchanges: each worker gets its own copy of what is published.
//!
//! # Guarantees
//! A publication reaches the workers that listen at that moment, as with Celery; Redis keeps none. From there on a copy is
//! a message like any other, in a list of this worker's own: leased, retried, bounded. A worker that ends leaves its list
//! for an hour at most.

use std::sync::Arc;
use std::time::Duration;

use umbel_broker::{FanoutBinding, FanoutChannel, Publication};
use umbel_telemetry::chain;

use crate::app::Shared;

/// A list that nobody has pushed to for so long is gone.
const KEPT: Duration = Duration::from_secs(3600);
/// Attempts to put a copy into its list.
const ATTEMPTS: u32 = 5;

/// Listens for ever to the exchanges of the queues that are served.
pub(crate) async fn run(shared: Arc<Shared>, backoff: Duration) {
    let mut changes = shared.queues.follow();
    loop {
        let bindings = shared.queues.fanouts();
        if bindings.is_empty() {
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        }
        match FanoutChannel::connect(&shared.config.broker, &bindings).await {
            Ok(channel) => tokio::select! {
                () = changed(&shared, &mut changes, &bindings) => continue,
                () = forward(&shared, channel) => {}
            },
            Err(err) => tracing::warn!(error = %chain(&err), "broadcasts are missed until there is a connection"),
        }
        tokio::time::sleep(backoff.mul_f64(0.2 + 0.3 * crate::random())).await;
    }
}

/// Until other exchanges are to be heard.
async fn changed<T>(shared: &Shared, changes: &mut tokio::sync::watch::Receiver<T>, bindings: &[FanoutBinding]) {
    while shared.queues.fanouts() == bindings {
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn forward(shared: &Shared, mut channel: FanoutChannel) {
    while let Some((queues, raw)) = channel.next().await {
        let copies: Vec<Publication<'_>> = queues
            .iter()
            .map(|queue| Publication::Push {
                queue,
                priority: 0,
                raw: &raw,
                expires: Some(KEPT),
            })
            .collect();
        for attempt in 1..=ATTEMPTS {
            match shared.broker.publish_all(&copies, None).await {
                Ok(()) => break,
                Err(err) if attempt == ATTEMPTS => {
                    tracing::error!(error = %chain(&err.error), "a broadcast is lost: it cannot be put into its list");
                }
                Err(err) => {
                    tracing::debug!(error = %chain(&err.error), "putting a broadcast into its list again");
                    tokio::time::sleep(Duration::from_millis(100) * attempt).await;
                }
            }
        }
    }
}
