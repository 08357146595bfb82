//! The number of slots, as remote control and the autoscaler change it while tasks run.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

/// Slots of a worker, as on the command line.
pub(crate) const MOST: usize = 100_000;

/// Slots: how many there are, and which are free.
pub(crate) struct Slots {
    free: Arc<Semaphore>,
    total: AtomicUsize,
}

impl Slots {
    pub(crate) fn new(count: usize) -> Slots {
        Slots {
            free: Arc::new(Semaphore::new(count)),
            total: AtomicUsize::new(count),
        }
    }

    /// Where runs take theirs from.
    pub(crate) fn free(&self) -> &Arc<Semaphore> {
        &self.free
    }

    pub(crate) fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// More slots; false where that were too many.
    pub(crate) fn grow(&self, by: usize) -> bool {
        let grown = self.total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |total| {
            total.checked_add(by).filter(|total| *total <= MOST)
        });
        if grown.is_ok() {
            self.free.add_permits(by);
        }
        grown.is_ok()
    }

    /// Fewer slots, at least one; false where none would be left. Those that are free go at once, the others when their
    /// runs end.
    pub(crate) fn shrink(&self, by: usize) -> bool {
        let shrunk = self.total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |total| {
            total.checked_sub(by).filter(|total| *total > 0)
        });
        if shrunk.is_err() {
            return false;
        }
        let owed = by - self.free.forget_permits(by);
        let free = Arc::clone(&self.free);
        tokio::spawn(async move {
            for _ in 0..owed {
                match free.acquire().await {
                    Ok(slot) => slot.forget(),
                    Err(_) => return,
                }
            }
        });
        true
    }
}
