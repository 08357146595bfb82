//! Rate limits: how often this worker starts a task, as Celery means it, without bursts.
//!
//! A message whose turn comes soon waits here for it, under its lease and without a slot; one whose turn is further away
//! waits in Redis, where any worker of the queue may get it. So neither holds up the messages behind it, and a worker
//! holds no more than it will soon start.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use umbel_protocol::control::per_second;

use crate::tasks::Tasks;

/// So many messages may wait here for a fast task, and for so long; for a slow one two, and for so long at most. A drain
/// waits for them no longer than that, and a stop not at all.
const HELD: f64 = 64.0;
const HELD_FOR: f64 = 1.0;
const HELD_AT_MOST: f64 = 10.0;
/// What waits in Redis comes back after so many seconds at the latest, up to half as many later: a limit that was lifted
/// meanwhile is noticed, and the wait of many does not end at one moment.
const AWAY: f64 = 30.0;

/// When a message may start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Turn {
    /// At once, or after so long; the turn is taken.
    After(Duration),
    /// Not before so long: to be asked again then.
    Away(Duration),
}

/// The limits of all tasks that have one.
#[derive(Default)]
pub(crate) struct Rates {
    limits: Mutex<HashMap<String, Limit>>,
    is_any: AtomicBool,
    /// Leases of messages that wait here.
    waiting: Mutex<HashSet<Arc<str>>>,
}

struct Limit {
    rate: String,
    /// Seconds between two starts; `None`: no limit.
    every: Option<f64>,
    /// Not before this starts the next one.
    next: Instant,
    /// To here turns are promised to what waits in Redis.
    line: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // Maps are whole after any panic.
}

impl Rates {
    /// The limits that tasks were registered with.
    pub(crate) fn of_tasks(tasks: &Tasks) -> Rates {
        let (rates, now) = (Rates::default(), Instant::now());
        for (task, rate) in tasks.rates() {
            rates.set(task, rate, now);
        }
        rates
    }

    /// Limits a task; an empty rate or zero lifts the limit. False: that is no rate.
    pub(crate) fn set(&self, task: &str, rate: &str, now: Instant) -> bool {
        let Some(per_second) = (if rate.is_empty() { Some(0.0) } else { per_second(rate) }) else {
            return false;
        };
        let mut limits = lock(&self.limits);
        if rate.is_empty() {
            limits.remove(task);
        } else {
            let limit = Limit {
                rate: rate.to_owned(),
                every: (per_second > 0.0).then(|| 1.0 / per_second),
                next: now,
                line: now,
            };
            limits.insert(task.to_owned(), limit);
        }
        let is_any = limits.values().any(|limit| limit.every.is_some());
        self.is_any.store(is_any, Ordering::Relaxed);
        true
    }

    /// The limit of a task, as it was set.
    pub(crate) fn of(&self, task: &str) -> Option<String> {
        lock(&self.limits).get(task).map(|limit| limit.rate.clone())
    }

    /// Is any task limited?
    pub(crate) fn are_any(&self) -> bool {
        self.is_any.load(Ordering::Relaxed)
    }

    /// When a message of the task may start. One load while no task is limited. `random` is in `0.0..1.0`.
    pub(crate) fn turn(&self, task: &str, now: Instant, random: f64) -> Turn {
        if !self.are_any() {
            return Turn::After(Duration::ZERO);
        }
        let mut limits = lock(&self.limits);
        let Some(limit) = limits.get_mut(task) else {
            return Turn::After(Duration::ZERO);
        };
        limit.turn(now, random)
    }

    pub(crate) fn waits(&self, lid: &Arc<str>) {
        lock(&self.waiting).insert(Arc::clone(lid));
    }

    pub(crate) fn waits_no_more(&self, lid: &Arc<str>) {
        lock(&self.waiting).remove(lid);
    }

    /// Leases of messages that wait here for their turn.
    pub(crate) fn waiting(&self) -> Vec<Arc<str>> {
        lock(&self.waiting).iter().cloned().collect()
    }
}

impl Limit {
    fn turn(&mut self, now: Instant, random: f64) -> Turn {
        let Some(every) = self.every else {
            return Turn::After(Duration::ZERO);
        };
        let step = Duration::try_from_secs_f64(every).unwrap_or(Duration::MAX);
        let later = |at: Instant, by: Duration| at.checked_add(by).unwrap_or(at);
        // What was not used is not saved up: a limit is a limit also after a pause.
        let start = self.next.max(now);
        let wait = start - now;
        let hold = (2.0 * every).max(HELD_FOR.min(HELD * every)).min(HELD_AT_MOST);
        if wait.as_secs_f64() <= hold {
            self.next = later(start, step);
            return Turn::After(wait);
        }
        let turn = self.line.max(start);
        let away = (turn - now).as_secs_f64() - hold / 2.0;
        if away >= AWAY {
            return Turn::Away(Duration::from_secs_f64(AWAY * (1.0 + random / 2.0)));
        }
        self.line = later(turn, step);
        Turn::Away(Duration::from_secs_f64(away.max(0.001)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays a worker with a backlog: messages arrive at once, and again whenever they were sent away. Starts, in seconds.
    fn starts(rate: &str, messages: usize) -> Vec<f64> {
        let rates = Rates::default();
        let zero = Instant::now();
        assert!(rates.set("t", rate, zero));
        let mut arrivals: Vec<f64> = vec![0.0; messages];
        let mut starts = Vec::new();
        let mut asked = 0.0_f64;
        while let Some(at) = arrivals.pop() {
            asked += 1.0;
            match rates.turn("t", zero + Duration::from_secs_f64(at), (asked * 0.618).fract()) {
                Turn::After(wait) => starts.push(at + wait.as_secs_f64()),
                Turn::Away(wait) => {
                    arrivals.push(at + wait.as_secs_f64());
                    arrivals.sort_by(|a, b| b.total_cmp(a));
                }
            }
        }
        starts.sort_by(f64::total_cmp);
        starts
    }

    #[test]
    fn starts_are_spread_by_the_rate_and_none_is_wasted() {
        for (rate, every, count) in [
            ("50/s", 0.02, 200),
            ("1000/s", 0.001, 200),
            ("2/s", 0.5, 200),
            ("2/m", 30.0, 20),
            ("1/h", 3600.0, 3),
        ] {
            let starts = starts(rate, count);
            assert_eq!(starts.len(), count, "{rate}");
            for pair in starts.windows(2) {
                assert!(pair[1] - pair[0] >= every * 0.999, "{rate}: {pair:?}");
            }
            let (took, least) = (starts[count - 1], f64::from(u32::try_from(count).unwrap() - 1) * every);
            assert!(took <= least * 1.2 + 0.1, "{rate}: {took} s for {count}");
        }
    }

    #[test]
    fn what_was_not_used_is_not_saved_up() {
        let rates = Rates::default();
        let zero = Instant::now();
        rates.set("t", "1/s", zero);
        let later = zero + Duration::from_secs(100);
        assert_eq!(rates.turn("t", later, 0.0), Turn::After(Duration::ZERO));
        assert_eq!(rates.turn("t", later, 0.0), Turn::After(Duration::from_secs(1)));
        assert_eq!(rates.turn("other", later, 0.0), Turn::After(Duration::ZERO));
    }

    #[test]
    fn a_limit_is_shown_as_it_was_set_and_lifted() {
        let rates = Rates::default();
        let now = Instant::now();
        assert!(rates.set("t", "2/m", now));
        assert_eq!(rates.of("t").as_deref(), Some("2/m"));
        assert!(!rates.set("t", "often", now));
        assert_eq!(rates.of("t").as_deref(), Some("2/m"));
        assert!(rates.set("t", "0", now));
        assert_eq!(rates.turn("t", now, 0.0), Turn::After(Duration::ZERO));
        assert!(rates.set("t", "", now));
        assert_eq!(rates.of("t"), None);
    }
}
