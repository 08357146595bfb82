//! When a failed task runs again. Pure.

use std::time::Duration;

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

/// The wait before the next run after `retries` earlier ones, or `None` when the attempts are used up. `random` is in
/// `0.0..1.0`.
pub fn next(policy: &RetryPolicy, retries: u32, random: f64) -> Option<Duration> {
    if retries.saturating_add(1) >= policy.max_attempts {
        return None;
    }
    let exponent = i32::try_from(retries.min(1000)).unwrap_or(1000);
    let wait = policy.initial_backoff.as_secs_f64() * policy.factor.max(1.0).powi(exponent);
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
    }
}
