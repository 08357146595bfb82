//! A held lease as a running task sees it: its fencing token and its trust window.
//!
//! The window ends `lease - margin` after the last successful renewal was *sent*, on the worker's monotonic clock.
//! Outside of it no side effect may start. Not an abort but a wait: after an outage of Redis the lease normally still
//! exists, and the next renewal says so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Why a run may not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The lease expired and was taken away: another worker has the message.
    #[error("the lease on the message was lost")]
    Lease,
    /// The run was cancelled: time limit or drain deadline.
    #[error("the run was cancelled")]
    Cancelled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    Until(Instant),
    Lost,
}

/// The task's side: reads the window.
#[derive(Clone)]
pub(crate) struct Lease {
    pub(crate) lid: Arc<str>,
    pub(crate) term: u64,
    pub(crate) micros: u64,
    pub(crate) trust: watch::Receiver<Trust>,
}

impl Lease {
    pub(crate) fn token(&self) -> String {
        format!("{}.{}", self.term, self.micros)
    }

    /// Resolves inside the window, and as `Lost` once the lease is gone.
    pub(crate) async fn trusted(&self) -> Result<(), Lost> {
        let mut trust = self.trust.clone();
        loop {
            match *trust.borrow_and_update() {
                Trust::Lost => return Err(Lost::Lease),
                Trust::Until(until) if Instant::now() < until => return Ok(()),
                Trust::Until(_) => {}
            }
            if trust.changed().await.is_err() {
                return Err(Lost::Lease); // The worker dropped the lease: settled or handed back.
            }
        }
    }

    /// Resolves when the lease is lost, and only then.
    pub(crate) async fn lost(&self) {
        let mut trust = self.trust.clone();
        let _ = trust.wait_for(|trust| *trust == Trust::Lost).await;
    }
}

/// Margin of a lease: a tenth, at least two seconds, at most a quarter of it.
pub(crate) fn margin(lease: Duration) -> Duration {
    (lease / 10).max(Duration::from_secs(2)).min(lease / 4)
}

/// End of the trust window for a renewal that was sent at `sent`.
pub(crate) fn until(sent: Instant, lease: Duration) -> Instant {
    sent + (lease - margin(lease))
}
