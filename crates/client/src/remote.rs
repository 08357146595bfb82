//! Revoking tasks, by remote control.

use std::time::Duration;

use umbel_protocol::control::Call;

use crate::{Client, Handle, ResultError};

/// How long an id stays revoked, as with Celery's workers.
const REVOKED: Duration = Duration::from_secs(3 * 3600);

/// How to revoke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoke {
    /// Stop it if it runs.
    pub terminate: bool,
    /// The signal by which Celery's workers stop a run.
    pub signal: String,
    /// Only these workers (`name@host`); all where empty.
    pub destination: Vec<String>,
}

impl Default for Revoke {
    fn default() -> Revoke {
        Revoke {
            terminate: false,
            signal: "SIGTERM".into(),
            destination: Vec::new(),
        }
    }
}

impl Client {
    /// Tells workers not to run these tasks. Celery's workers remember it while they live; Umbel's know it even if they
    /// start later, and for three hours. Returns how many listeners the request had: 0 says that no worker heard it.
    ///
    /// # Errors
    /// [`ResultError::Store`].
    pub async fn revoke(&self, ids: &[String], how: &Revoke) -> Result<u64, ResultError> {
        let Some(first) = ids.first() else { return Ok(0) };
        let broker = &self.inner.broker;
        let unread = |source| self.unread(first, source);
        if how.destination.is_empty() {
            #[allow(clippy::cast_precision_loss)] // Milliseconds since 1970.
            let now = broker.time().await.map_err(unread)? as f64 / 1000.0;
            let until = now + REVOKED.as_secs_f64();
            let stored = if how.terminate {
                broker.terminate(ids, now, until).await
            } else {
                broker.revoke(ids, now, until).await
            };
            stored.map_err(unread)?;
        }
        let mut call = Call::revoke(ids, how.terminate, &how.signal);
        call.destination = (!how.destination.is_empty()).then(|| how.destination.clone());
        call.clock = self.next_clock();
        let request = call.publication(broker.control(), &self.new_id());
        broker.request(&request).await.map_err(unread)
    }
}

impl Handle {
    /// Revokes the task, or all members of a group: [`Client::revoke`].
    ///
    /// # Errors
    /// As there.
    pub async fn revoke(&self, how: &Revoke) -> Result<u64, ResultError> {
        self.client().revoke(&self.ids(), how).await
    }
}
