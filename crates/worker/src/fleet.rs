//! How many workers share a database: what any of them may do for all, each does more seldom where they are many.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// So few workers each look and sweep as often as one alone.
const FEW: u64 = 4;
/// At most so many times more seldom: a queue that few of many workers serve waits so much longer for its recovery.
const MOST: u32 = 4;

/// From so many workers on, those for whom nothing was left wait before they look again.
const CROWD: u64 = 100;
/// In so long Redis answers one look, with room for all else that it does.
const A_LOOK: Duration = Duration::from_micros(200);
/// Longest wait before a look.
const LONGEST: Duration = Duration::from_millis(200);

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

    /// How long a worker waits between the report of a message and its look, if others were faster the last time: all
    /// are told of each message, one can have it, and the looks of a thousand would keep Redis busy. `luck` in 0..1
    /// spreads them, so that the first looks at once.
    pub(crate) fn hesitate(&self, was_in_vain: bool, luck: f64) -> Duration {
        let workers = self.workers.load(Ordering::Relaxed);
        if !was_in_vain || workers < CROWD {
            return Duration::ZERO;
        }
        let all = A_LOOK * u32::try_from(workers).unwrap_or(u32::MAX);
        all.min(LONGEST).mul_f64(luck)
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

    #[test]
    fn in_a_crowd_those_for_whom_nothing_was_left_hesitate() {
        let fleet = Fleet::default();
        for (workers, was_in_vain, luck, expected) in [
            (99, true, 1.0, 0),
            (100, false, 1.0, 0),
            (100, true, 0.0, 0),
            (100, true, 1.0, 20),
            (1000, true, 0.5, 100),
            (u64::MAX, true, 1.0, 200),
        ] {
            fleet.met(workers);
            let wait = fleet.hesitate(was_in_vain, luck);
            assert_eq!(wait, Duration::from_millis(expected), "{workers} workers");
        }
    }
}
