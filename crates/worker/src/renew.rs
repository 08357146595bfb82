//! Keeps leases alive, on a thread and a connection of its own: tasks that keep every core busy do not stop it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use umbel_broker::{Broker, Config};
use umbel_telemetry::chain;

use crate::lease::Leases;

/// Leases in one call.
const CHUNK: usize = 500;

pub(crate) struct Renewal {
    pub(crate) config: Config,
    pub(crate) leases: Arc<Leases>,
    pub(crate) lease: Duration,
    pub(crate) every: Duration,
}

impl Renewal {
    /// Starts the thread; it ends when `stop` is cancelled.
    ///
    /// # Errors
    /// The thread or its runtime could not be made.
    pub(crate) fn start(self, stop: CancellationToken) -> std::io::Result<std::thread::JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new()
            .name("renew".into())
            .stack_size(256 * 1024)
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = self.run() => {}
                    }
                });
            })
    }

    async fn run(self) {
        let mut broker: Option<Broker> = None;
        let mut is_warned = false;
        loop {
            tokio::time::sleep(if is_warned {
                self.every.min(Duration::from_secs(1))
            } else {
                self.every
            })
            .await;
            let lids = self.leases.renewable(Instant::now());
            if lids.is_empty() {
                is_warned = false;
                continue;
            }
            match self.renew(&mut broker, &lids).await {
                Ok(()) => is_warned = false,
                Err(err) => {
                    if err.is_connection() {
                        broker = None; // It may hang rather than be closed; a lease is short, so start over.
                    }
                    if !is_warned {
                        tracing::warn!(error = %chain(&err), leases = lids.len(), "renewing again");
                    }
                    is_warned = true;
                }
            }
        }
    }

    async fn renew(&self, broker: &mut Option<Broker>, lids: &[Arc<str>]) -> Result<(), umbel_broker::Error> {
        let broker = match broker {
            Some(broker) => broker,
            None => broker.insert(Broker::connect(&self.config).await?),
        };
        for chunk in lids.chunks(CHUNK) {
            let sent = Instant::now();
            let lost = broker.renew(self.lease, chunk).await?;
            self.leases.renewed(chunk, &lost, sent, self.lease);
        }
        Ok(())
    }
}
