//! How many workers share a database: what any of them may do for all, each does more seldom where they are many.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// So few workers each look and sweep as often as one alone.
const FEW: u64 = 4;
/// At most so many times more seldom: a queue that few of many workers serve waits so much longer for its recovery.
const MOST: u32 = 4;

/// What is known of the fleet.
#[derive(Default)]
pub(crate) struct Fleet {
    workers: AtomicU64,
}

impl Fleet {
    /// There are so many workers.
    pub(crate) fn met(&self, workers: u64) {
        self.workers.store(workers, Ordering::Relaxed);
    }

    /// An interval of one worker, at which a few of them would do something often enough, for one of many.
    pub(crate) fn stretch(&self, every: Duration) -> Duration {
        let times = self.workers.load(Ordering::Relaxed) / FEW;
        every * u32::try_from(times).unwrap_or(MOST).clamp(1, MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_workers_ask_more_seldom_and_all_together_no_less_often() {
        let fleet = Fleet::default();
        let every = Duration::from_secs(5);
        for (workers, expected) in [
            (0, 5),
            (1, 5),
            (7, 5),
            (8, 10),
            (12, 15),
            (16, 20),
            (1000, 20),
            (u64::MAX, 20),
        ] {
            fleet.met(workers);
            assert_eq!(fleet.stretch(every), Duration::from_secs(expected), "{workers} workers");
        }
    }
}
