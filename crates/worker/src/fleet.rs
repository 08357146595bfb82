//! How many workers share a database: what any of them may do for all, each does more seldom where they are many.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// So few workers each look and sweep as often as one alone.
const FEW: u64 = 4;
/// At most so many times more seldom: a queue that few of many workers serve waits so much longer for its recovery.
const MOST: u32 = 4;

/// So many workers are a crowd: those for whom nothing was left wait before they look again.
const CROWD: u64 = 100;
/// In a crowd an idle worker looks so many times more seldom than one alone.
const CROWD_LOOKS: u32 = 12;
/// In so long Redis answers one look and a machine that many of them share gets around to it, with room for all else.
const A_LOOK: Duration = Duration::from_micros(1200);
/// Longest wait before a look.
const LONGEST: Duration = Duration::from_millis(1200);
/// A message that comes after so long a rest is looked for at once: it may be the first of many.
const REST: Duration = Duration::from_secs(1);

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

    /// How long an idle worker waits between two looks, where one alone would wait for `every` and is told of changes.
    pub(crate) fn looks(&self, every: Duration) -> Duration {
        if self.is_crowd() {
            every * CROWD_LOOKS
        } else {
            self.stretch(every)
        }
    }

    /// Are there so many that each does less?
    pub(crate) fn is_crowd(&self) -> bool {
        self.workers.load(Ordering::Relaxed) >= CROWD
    }

    /// How long a worker waits between the report of a message and its look, if others were faster the last time: all
    /// are told of each message, one can have it, and the looks of a thousand would keep Redis busy. Who waits hears of no
    /// other message meanwhile. `luck` in 0..1 spreads them, so that the first looks at once; `rest` is the time since the
    /// last report.
    pub(crate) fn hesitate(&self, was_in_vain: bool, rest: Duration, luck: f64) -> Duration {
        let workers = self.workers.load(Ordering::Relaxed);
        if !was_in_vain || workers < CROWD || rest > REST {
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
    fn in_a_crowd_the_idle_look_seldom() {
        let (fleet, every) = (Fleet::default(), Duration::from_secs(5));
        for (workers, expected) in [(1, 5), (8, 10), (99, 20), (100, 60), (u64::MAX, 60)] {
            fleet.met(workers);
            assert_eq!(fleet.looks(every), Duration::from_secs(expected), "{workers} workers");
        }
    }

    #[test]
    fn in_a_crowd_those_for_whom_nothing_was_left_hesitate() {
        let fleet = Fleet::default();
        for (workers, was_in_vain, rest, luck, expected) in [
            (99, true, 100, 1.0, 0),
            (100, false, 100, 1.0, 0),
            (100, true, 100, 0.0, 0),
            (100, true, 100, 1.0, 120),
            (100, true, 1001, 1.0, 0),
            (1000, true, 1000, 0.5, 600),
            (u64::MAX, true, 100, 1.0, 1200),
        ] {
            fleet.met(workers);
            let wait = fleet.hesitate(was_in_vain, Duration::from_millis(rest), luck);
            assert_eq!(wait, Duration::from_millis(expected), "{workers} workers, {rest} ms");
        }
    }
}
