//! When a failed task runs again. Pure.

use std::time::Duration;

use umbel_protocol::json::Json;

/// The header in which a message names a policy, or parts of one.
pub(crate) const HEADER: &str = "umbel_retry";
/// Bounds of what it may name: those of a schedule's or a Task's `retry`.
const MOST_ATTEMPTS: u32 = 1000;
const LARGEST_FACTOR: f64 = 100.0;
/// Seconds. No `retry` can say more, and what is due so late is still before the year 9999.
const LONGEST: f64 = 1.5e11;

/// The queue's policy for messages that say nothing themselves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// Runs in all, the first included.
    pub max_attempts: u32,
    /// Wait after the first failure.
    pub initial_backoff: Duration,
    /// Longest wait.
    pub max_backoff: Duration,
    /// Each wait is so many times the one before.
    pub factor: f64,
    /// The wait varies by this share of itself, up and down; 0 to 1.
    pub jitter: f64,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            max_attempts: 5,
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(600),
            factor: 2.0,
            jitter: 0.2,
        }
    }
}

/// What a message says of its retries.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct OwnPolicy {
    max_attempts: Option<u32>,
    initial_backoff: Option<Duration>,
    max_backoff: Option<Duration>,
    factor: Option<f64>,
    jitter: Option<f64>,
}

impl OwnPolicy {
    /// Reads the header. Anybody may have written it: what makes no sense counts as not said, and its name is answered.
    pub(crate) fn read(header: &Json) -> (OwnPolicy, Vec<&'static str>) {
        let mut ignored = Vec::new();
        if !header.is_object() {
            return (OwnPolicy::default(), vec![HEADER]);
        }
        let mut number = |name, least: f64, most: f64| {
            let value = header.get(name)?;
            let read = value.to::<f64>().ok().filter(|read| (least..=most).contains(read));
            if read.is_none() {
                ignored.push(name);
            }
            read
        };
        let initial_backoff = number("initial_backoff", 0.0, LONGEST).map(Duration::from_secs_f64);
        let max_backoff = number("max_backoff", 0.0, LONGEST).map(Duration::from_secs_f64);
        let factor = number("factor", 1.0, LARGEST_FACTOR);
        let jitter = number("jitter", 0.0, 1.0);
        let given = header.get("max_attempts");
        let max_attempts = given.as_ref().and_then(|given| given.to::<u32>().ok());
        let max_attempts = max_attempts.filter(|most| (1..=MOST_ATTEMPTS).contains(most));
        if given.is_some() && max_attempts.is_none() {
            ignored.push("max_attempts");
        }
        let own = OwnPolicy {
            max_attempts,
            initial_backoff,
            max_backoff,
            factor,
            jitter,
        };
        (own, ignored)
    }

    /// This, and what it does not say as `policy` has it. A first wait that it names is not cut by a bound that it does not.
    pub(crate) fn over(&self, policy: &RetryPolicy) -> RetryPolicy {
        let least = self.initial_backoff.unwrap_or_default();
        RetryPolicy {
            max_attempts: self.max_attempts.unwrap_or(policy.max_attempts),
            initial_backoff: self.initial_backoff.unwrap_or(policy.initial_backoff),
            max_backoff: self.max_backoff.unwrap_or(policy.max_backoff.max(least)),
            factor: self.factor.unwrap_or(policy.factor),
            jitter: self.jitter.unwrap_or(policy.jitter),
        }
    }
}

/// The wait before the next run after `retries` earlier ones, or `None` when the attempts are used up. `random` is in
/// `0.0..1.0`.
pub fn next(policy: &RetryPolicy, retries: u32, random: f64) -> Option<Duration> {
    if retries.saturating_add(1) >= policy.max_attempts {
        return None;
    }
    let exponent = i32::try_from(retries.min(1000)).unwrap_or(1000);
    // Nothing times infinity is no number.
    let factor = policy.factor.max(1.0).powi(exponent).min(f64::MAX);
    let wait = policy.initial_backoff.as_secs_f64() * factor;
    let wait = wait.min(policy.max_backoff.as_secs_f64());
    let jitter = policy.jitter.clamp(0.0, 1.0) * (2.0 * random - 1.0);
    Some(Duration::from_secs_f64(
        (wait * (1.0 + jitter)).min(policy.max_backoff.as_secs_f64()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_end() {
        let policy = RetryPolicy {
            max_backoff: Duration::from_secs(5),
            ..RetryPolicy::default()
        };
        let waits: Vec<Option<u64>> = (0..5)
            .map(|retries| next(&policy, retries, 0.5).map(|wait| wait.as_secs()))
            .collect();
        assert_eq!(waits, [Some(1), Some(2), Some(4), Some(5), None]);
    }

    #[test]
    fn jitter_stays_in_its_share() {
        let policy = RetryPolicy::default();
        assert_eq!(next(&policy, 0, 0.0), Some(Duration::from_millis(800)));
        assert!(next(&policy, 0, 0.999).unwrap() < Duration::from_millis(1200));
    }

    #[test]
    fn forged_counts_neither_overflow_nor_loop() {
        assert_eq!(next(&RetryPolicy::default(), u32::MAX, 0.5), None);
        let endless = RetryPolicy {
            max_attempts: u32::MAX,
            ..RetryPolicy::default()
        };
        assert_eq!(next(&endless, u32::MAX - 2, 0.5), Some(endless.max_backoff));
        let at_once = RetryPolicy {
            initial_backoff: Duration::ZERO,
            factor: 100.0,
            ..endless
        };
        assert_eq!(next(&at_once, u32::MAX - 2, 0.5), Some(Duration::ZERO));
    }

    #[test]
    fn a_message_wins_by_what_makes_sense_in_it() {
        let queue = RetryPolicy::default();
        let seconds = Duration::from_secs_f64;
        let deep = "[".repeat(60) + &"]".repeat(60);
        let table: &[(&str, RetryPolicy, &[&str])] = &[
            ("{}", queue, &[]),
            (r#"{"newer": [1]}"#, queue, &[]),
            (
                r#"{"max_attempts": 2, "initial_backoff": 0.25, "max_backoff": 3, "factor": 1, "jitter": 0.0}"#,
                RetryPolicy {
                    max_attempts: 2,
                    initial_backoff: seconds(0.25),
                    max_backoff: seconds(3.0),
                    factor: 1.0,
                    jitter: 0.0,
                },
                &[],
            ),
            // A bound below the queue's first wait counts; a first wait above the queue's bound does, too.
            (
                r#"{"max_backoff": 0}"#,
                RetryPolicy {
                    max_backoff: Duration::ZERO,
                    ..queue
                },
                &[],
            ),
            (
                r#"{"initial_backoff": 1200}"#,
                RetryPolicy {
                    initial_backoff: seconds(1200.0),
                    max_backoff: seconds(1200.0),
                    ..queue
                },
                &[],
            ),
            // One field that makes no sense takes none of the others with it.
            (
                r#"{"max_attempts": 0, "jitter": 1}"#,
                RetryPolicy { jitter: 1.0, ..queue },
                &["max_attempts"],
            ),
            (
                r#"{"max_attempts": 7, "initial_backoff": -1, "max_backoff": NaN, "factor": 1e400, "jitter": "0"}"#,
                RetryPolicy {
                    max_attempts: 7,
                    ..queue
                },
                &["initial_backoff", "max_backoff", "factor", "jitter"],
            ),
            (
                r#"{"initial_backoff": 1e300, "max_backoff": Infinity, "factor": 0.5, "jitter": -Infinity}"#,
                queue,
                &["initial_backoff", "max_backoff", "factor", "jitter"],
            ),
            (
                r#"{"initial_backoff": null, "max_backoff": true, "factor": [2], "jitter": {}}"#,
                queue,
                &["initial_backoff", "max_backoff", "factor", "jitter"],
            ),
            (r#"{"max_attempts": 4294967296}"#, queue, &["max_attempts"]),
            (r#"{"max_attempts": 1001}"#, queue, &["max_attempts"]),
            (r#"{"max_attempts": 2.0}"#, queue, &["max_attempts"]),
            (r#"{"max_attempts": -2}"#, queue, &["max_attempts"]),
            (r#"{"max_attempts": "2"}"#, queue, &["max_attempts"]),
            (&format!(r#"{{"factor": {deep}}}"#), queue, &["factor"]),
            ("[2]", queue, &[HEADER]),
            ("\"{}\"", queue, &[HEADER]),
            ("null", queue, &[HEADER]),
            ("NaN", queue, &[HEADER]),
        ];
        for (text, expected, unread) in table {
            let (own, ignored) = OwnPolicy::read(&Json::parse(text).expect(text));
            assert_eq!((own.over(&queue), ignored.as_slice()), (*expected, *unread), "{text}");
            for retries in [0, 1, 999, u32::MAX] {
                let wait = next(&own.over(&queue), retries, 0.999);
                assert!(wait.is_none_or(|wait| wait <= expected.max_backoff), "{text}");
            }
        }
    }
}
