//! How many runs may be retries: when everything fails at once, retries must not crowd out first runs, nor hammer what
//! is failing. Pure but for its lock.
//!
//! A queue's retries spend what its first runs earn: `ratio` of a retry for each, kept for ten seconds, and a minimum
//! a second. A retry that finds nothing left waits longer in Redis, uncharged: its attempts are counted by its own runs
//! only, so it is never lost for that.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What first runs earn is kept for so long.
const WINDOW: f64 = 10.0;
/// A retry is put off for so long at most; then it asks again, up to half as much later.
const AWAY: f64 = 30.0;

/// The budget of a worker's retries, for each queue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Retries for each first run; 0 to 1000.
    pub ratio: f64,
    /// Retries a second that are always allowed; above 0.
    pub least: f64,
}

impl Default for RetryBudget {
    fn default() -> RetryBudget {
        RetryBudget {
            ratio: 0.2,
            least: 100.0,
        }
    }
}

/// The accounts of all queues.
pub(crate) struct Budget {
    rule: RetryBudget,
    queues: Mutex<HashMap<String, Account>>,
    /// Until there was a retry nobody counts.
    is_any: AtomicBool,
}

struct Account {
    /// What may be spent.
    tokens: f64,
    at: Instant,
    /// To here places are promised to those that wait.
    line: Instant,
    /// Told that it is spent, at.
    told: Option<Instant>,
}

/// What becomes of a retry that wants to run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Spent {
    /// It runs.
    Run,
    /// It waits so long; `is_news` once in a while, for the log.
    Wait {
        /// How long.
        wait: Duration,
        /// Nobody has been told for a minute.
        is_news: bool,
    },
}

impl Budget {
    pub(crate) fn new(rule: RetryBudget) -> Budget {
        Budget {
            rule,
            queues: Mutex::default(),
            is_any: AtomicBool::new(false),
        }
    }

    /// A message that was tried so often before is about to run: how long it must wait first, if it must.
    pub(crate) fn wait(&self, queue: &str, retries: u32) -> Option<Duration> {
        let is_retry = retries > 0;
        if !is_retry && !self.is_any.load(Ordering::Relaxed) {
            return None;
        }
        self.is_any.store(true, Ordering::Relaxed);
        match self.ask(queue, is_retry, Instant::now(), crate::random()) {
            Spent::Run => None,
            Spent::Wait { wait, is_news } => {
                if is_news {
                    tracing::warn!(
                        queue,
                        "so many tasks fail that their retries wait longer: the retry budget is spent"
                    );
                }
                Some(wait)
            }
        }
    }

    /// A message of the queue is about to run for the first time (`is_retry` false), or again. `random` is in `0.0..1.0`.
    fn ask(&self, queue: &str, is_retry: bool, now: Instant, random: f64) -> Spent {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if !queues.contains_key(queue) {
            let account = Account {
                tokens: self.rule.least * WINDOW,
                at: now,
                line: now,
                told: None,
            };
            queues.insert(queue.to_owned(), account);
        }
        let Some(account) = queues.get_mut(queue) else {
            return Spent::Run;
        };
        account.ask(self.rule, is_retry, now, random)
    }
}

impl Account {
    fn ask(&mut self, rule: RetryBudget, is_retry: bool, now: Instant, random: f64) -> Spent {
        let RetryBudget { ratio, least } = rule;
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        // What was earned fades within the window; the minimum flows in, and is what is left after a pause.
        let floor = least * WINDOW;
        let faded = if self.tokens > floor {
            floor + (self.tokens - floor) * (-passed / WINDOW).exp()
        } else {
            (self.tokens + least * passed).min(floor)
        };
        self.tokens = faded;
        if !is_retry {
            self.tokens += ratio;
            return Spent::Run;
        }
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Spent::Run;
        }
        let later = |at: Instant, seconds: f64| at + Duration::from_secs_f64(seconds);
        let place = later(self.line.max(now), 1.0 / least);
        let mut wait = (place - now).as_secs_f64();
        if wait < AWAY {
            self.line = place;
        } else {
            wait = AWAY * (1.0 + random / 2.0);
        }
        let is_news = self
            .told
            .is_none_or(|told| now.saturating_duration_since(told) >= Duration::from_secs(60));
        if is_news {
            self.told = Some(now);
        }
        Spent::Wait {
            wait: Duration::from_secs_f64(wait.max(0.001)),
            is_news,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_share_of_first_runs_and_a_minimum() {
        let budget = Budget::new(RetryBudget { ratio: 0.2, least: 1.0 });
        let zero = Instant::now();
        let (mut first, mut again, mut waited) = (0, 0, 0);
        // For a minute 100 first runs a second, and as many retries want to run.
        for step in 0..6000_u64 {
            let now = zero + Duration::from_millis(10 * step);
            assert_eq!(budget.ask("q", false, now, 0.0), Spent::Run);
            first += 1;
            match budget.ask("q", true, now, 0.5) {
                Spent::Run => again += 1,
                Spent::Wait { wait, .. } => {
                    assert!(wait <= Duration::from_secs(45));
                    waited += 1;
                }
            }
        }
        assert!(
            again >= first / 5 && again <= first / 5 + 70 + 10,
            "{again} retries beside {first} first runs"
        );
        assert_eq!(again + waited, 6000);
    }

    #[test]
    fn without_first_runs_the_minimum_is_left_and_places_are_spread() {
        let budget = Budget::new(RetryBudget {
            ratio: 0.2,
            least: 10.0,
        });
        let now = Instant::now();
        let waits: Vec<Duration> = (0..200)
            .filter_map(|_| match budget.ask("q", true, now, 0.0) {
                Spent::Run => None,
                Spent::Wait { wait, .. } => Some(wait),
            })
            .collect();
        assert_eq!(waits.len(), 100, "the window's minimum runs at once");
        assert_eq!((waits[0].as_millis(), waits[99].as_millis()), (100, 10_000));
        assert_eq!(budget.ask("other", true, now, 0.0), Spent::Run);
    }

    #[test]
    fn it_is_told_once_a_minute() {
        let budget = Budget::new(RetryBudget { ratio: 0.0, least: 0.1 });
        let zero = Instant::now();
        let news = |second: u64| {
            matches!(
                budget.ask("q", true, zero + Duration::from_secs(second), 0.0),
                Spent::Wait { is_news: true, .. }
            )
        };
        assert!(!news(0), "one token is there at first");
        assert_eq!([1, 2, 3].map(news), [true, false, false]);
    }
}
