//! Tasks that are not to run. Kept in Redis, so that they are known to every worker and after a restart; here in memory,
//! so that a message costs no question.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use umbel_broker::{Broker, Error};

/// For so long an id is remembered, as by Celery.
pub(crate) const REMEMBERED: Duration = Duration::from_secs(3 * 3600);

/// The ids, each with the time (Redis', in seconds) until which it counts.
#[derive(Default)]
pub(crate) struct Revoked {
    until: Mutex<HashMap<String, f64>>,
    len: AtomicUsize,
}

impl Revoked {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, f64>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner) // A map is whole after any panic.
    }

    /// Is the task not to run? One load when no task is.
    pub(crate) fn contains(&self, id: &str, now: f64) -> bool {
        self.len.load(Ordering::Relaxed) > 0 && self.lock().get(id).is_some_and(|until| *until > now)
    }

    pub(crate) fn add(&self, ids: impl IntoIterator<Item = String>, now: f64) {
        let mut until = self.lock();
        until.extend(ids.into_iter().map(|id| (id, now + REMEMBERED.as_secs_f64())));
        self.len.store(until.len(), Ordering::Relaxed);
    }

    pub(crate) fn ids(&self, now: f64) -> Vec<String> {
        let until = self.lock();
        let mut ids: Vec<String> = until
            .iter()
            .filter(|(_, until)| **until > now)
            .map(|(id, _)| id.clone())
            .collect();
        ids.sort();
        ids
    }

    /// Replaces what is here by what Redis has. Ids that this worker could not store yet are kept.
    pub(crate) async fn refresh(&self, broker: &Broker, now: f64) -> Result<(), Error> {
        let stored = broker.revoked(now).await?;
        let mut until = self.lock();
        until.retain(|_, until| *until > now);
        until.extend(stored);
        until.shrink_to_fit();
        self.len.store(until.len(), Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_counts_for_three_hours() {
        let revoked = Revoked::default();
        assert!(!revoked.contains("1", 0.0));
        revoked.add(["1".to_owned()], 100.0);
        assert!(revoked.contains("1", 100.0) && !revoked.contains("2", 100.0));
        let late = 101.0 + REMEMBERED.as_secs_f64();
        assert!(!revoked.contains("1", late));
        assert_eq!((revoked.ids(100.0).len(), revoked.ids(late).len()), (1, 0));
    }
}
