//! What all workers know of the targets together, wherever they keep it.
//!
//! A target's API server does not care how many workers ask it, so its budget, its circuit and its identity are one
//! for all of them. This crate knows no Redis: a worker gives it a [`Board`]. Without one, and while it is away, each
//! worker keeps to the limits by itself, as [`Bucket`] and [`crate::circuit`] say.

use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::circuit::Circuit;

/// A request waits for its token for so long inside its slot; a longer wait gives the slot back.
pub const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A turn of a worker that died is free again after this; a living one renews it three times in this time.
pub const TURN: Duration = Duration::from_secs(15);
/// A target that says 429 is asked at this share of its rate, …
pub const HALVED: f64 = 0.5;
/// … never at less than this, …
pub const LEAST: f64 = 1.0 / 32.0;
/// … and each second at so much more of it: from half to whole in 25 s.
pub const RECOVERY: f64 = 0.02;
/// Several 429s to requests that were under way together are one.
pub const SAME: Duration = Duration::from_secs(1);
/// The longest pause that a target may ask for.
pub const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// What one target is asked at most, by all workers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests a second.
    pub qps: u32,
    /// Requests at once after a pause.
    pub burst: u32,
    /// Tasks at work on it.
    #[serde(rename = "maxConcurrentTasks")]
    pub tasks: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            qps: 20,
            burst: 40,
            tasks: 5,
        }
    }
}

impl Limits {
    /// The same within the bounds of the schema: a worker trusts its environment no further.
    pub(crate) fn sane(self) -> Limits {
        Limits {
            qps: self.qps.clamp(1, 1000),
            burst: self.burst.clamp(1, 2000),
            tasks: self.tasks.clamp(1, 1000),
        }
    }

    /// Tokens that are taken together: a fraction of a second's worth, so that no worker hoards.
    pub fn batch(&self) -> u32 {
        (self.qps.min(self.burst) / 4).clamp(1, 10)
    }
}

/// What was granted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grant {
    /// Requests that may be sent; 0: none, come back after `wait`.
    pub tokens: u32,
    /// The first of them after this time.
    pub wait: Duration,
}

/// What stands about a target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The uid of the kube-system namespace that it must have.
    pub pin: Option<String>,
    /// Its TargetCluster was deleted.
    pub is_gone: bool,
}

/// The answer to a task that wants to work at a target.
#[derive(Debug, Clone, PartialEq)]
pub enum Admission {
    /// It may, and has the turn until [`TURN`] after its last renewal.
    Go {
        /// Requests that it may send already.
        grant: Grant,
        /// The circuit as it is now; this task is the probe if it is half open.
        circuit: Circuit,
        /// What stands about the target.
        facts: Facts,
    },
    /// As many tasks as allowed are at work on it.
    Busy,
    /// The target does not answer.
    Open(Circuit),
    /// Its TargetCluster was deleted.
    Gone,
}

/// The board does not answer now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Away;

/// Where workers keep what they know together. `turn` names one task's stay at a target and is unique among all workers.
pub trait Board: Send + Sync {
    /// A task wants to work at a target.
    fn begin<'a>(&'a self, cluster: &'a str, turn: &'a str, limits: Limits) -> BoxFuture<'a, Result<Admission, Away>>;
    /// More tokens for a task at work; renews its turn.
    fn take<'a>(&'a self, cluster: &'a str, turn: &'a str, limits: Limits) -> BoxFuture<'a, Result<Grant, Away>>;
    /// The task is still at work.
    fn renew<'a>(&'a self, cluster: &'a str, turn: &'a str) -> BoxFuture<'a, Result<(), Away>>;
    /// The task is done; so many tokens were not used.
    fn end<'a>(
        &'a self,
        cluster: &'a str,
        turn: &'a str,
        limits: Limits,
        unused: u32,
    ) -> BoxFuture<'a, Result<(), Away>>;
    /// The target said 429, and to come back after this time.
    fn slow<'a>(&'a self, cluster: &'a str, limits: Limits, pause: Duration) -> BoxFuture<'a, Result<(), Away>>;
    /// The target answered.
    fn answered<'a>(&'a self, cluster: &'a str) -> BoxFuture<'a, Result<Circuit, Away>>;
    /// The target did not answer. True when that opened the circuit.
    fn silent<'a>(&'a self, cluster: &'a str) -> BoxFuture<'a, Result<(Circuit, bool), Away>>;
    /// What stands about a target.
    fn facts<'a>(&'a self, cluster: &'a str) -> BoxFuture<'a, Result<Facts, Away>>;
}

/// A token bucket that adapts, for a worker without a board. Pure; the board's own keeps the same rules.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    tokens: f64,
    at: Instant,
    factor: f64,
    /// When the target last said 429.
    slowed: Option<Instant>,
    /// Nothing before.
    blocked: Option<Instant>,
}

impl Bucket {
    /// A full one.
    pub fn new(limits: Limits, now: Instant) -> Bucket {
        Bucket {
            tokens: f64::from(limits.burst),
            at: now,
            factor: 1.0,
            slowed: None,
            blocked: None,
        }
    }

    fn advance(&mut self, limits: Limits, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.factor = (self.factor + RECOVERY * passed).min(1.0);
        let rate = f64::from(limits.qps) * self.factor;
        self.tokens = (self.tokens + rate * passed).min(f64::from(limits.burst));
        rate
    }

    /// Takes up to `want` tokens, or one on credit.
    pub fn take(&mut self, limits: Limits, want: u32, now: Instant) -> Grant {
        let rate = self.advance(limits, now);
        let blocked = self
            .blocked
            .map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let own = if self.tokens >= 1.0 {
            0.0
        } else {
            (1.0 - self.tokens) / rate
        };
        let wait = blocked.max(Duration::try_from_secs_f64(own).unwrap_or(LONGEST_PAUSE));
        if wait > LONGEST_WAIT {
            return Grant { tokens: 0, wait };
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // At most `want`.
        let tokens = (self.tokens.floor().clamp(1.0, f64::from(want.max(1)))) as u32;
        self.tokens -= f64::from(tokens);
        Grant { tokens, wait }
    }

    /// Gives back what was not used.
    pub fn give_back(&mut self, limits: Limits, unused: u32) {
        self.tokens = (self.tokens + f64::from(unused)).min(f64::from(limits.burst));
    }

    /// The target said 429.
    pub fn slow(&mut self, limits: Limits, pause: Duration, now: Instant) {
        self.advance(limits, now);
        if self.slowed.is_none_or(|at| now.saturating_duration_since(at) >= SAME) {
            self.factor = (self.factor * HALVED).max(LEAST);
            self.tokens = self.tokens.min(0.0);
            self.slowed = Some(now);
        }
        let until = now + pause.min(LONGEST_PAUSE);
        self.blocked = Some(self.blocked.map_or(until, |blocked| blocked.max(until)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        qps: 10,
        burst: 4,
        tasks: 1,
    };

    fn sent(bucket: &mut Bucket, from: Instant, seconds: u64) -> u32 {
        let steps = seconds * 20;
        let mut sent = 0;
        let mut free = from;
        for step in 0..steps {
            let now = from + Duration::from_millis(step * 50);
            if now >= free {
                let grant = bucket.take(LIMITS, 1, now);
                sent += grant.tokens;
                free = now + grant.wait;
            }
        }
        sent
    }

    #[test]
    fn a_burst_then_the_rate() {
        let now = Instant::now();
        let mut bucket = Bucket::new(LIMITS, now);
        let first = bucket.take(LIMITS, 10, now);
        assert_eq!((first.tokens, first.wait), (4, Duration::ZERO));
        let next = bucket.take(LIMITS, 10, now);
        assert_eq!((next.tokens, next.wait), (1, Duration::from_millis(100)));
        let sent = sent(&mut bucket, now + Duration::from_secs(1), 10);
        assert!((99..=105).contains(&sent), "{sent}");
    }

    #[test]
    fn t11_a_429_halves_the_rate_once_and_it_comes_back_by_steps() {
        let now = Instant::now();
        let mut bucket = Bucket::new(LIMITS, now);
        for _ in 0..5 {
            bucket.slow(LIMITS, Duration::from_secs(2), now);
        }
        assert!(
            (bucket.factor - 0.5).abs() < 1e-9,
            "several at a time are one: {bucket:?}"
        );
        assert_eq!(bucket.take(LIMITS, 1, now).wait, Duration::from_secs(2));
        let early = sent(&mut bucket, now + Duration::from_secs(2), 5);
        assert!((25..=36).contains(&early), "about 6 a second, and a burst: {early}");
        let late = sent(&mut bucket, now + Duration::from_secs(40), 5);
        assert!((48..=57).contains(&late), "the whole rate: {late}");
    }

    #[test]
    fn a_long_pause_is_not_sat_out() {
        let now = Instant::now();
        let mut bucket = Bucket::new(LIMITS, now);
        bucket.slow(LIMITS, Duration::from_secs(600), now);
        assert_eq!(
            bucket.take(LIMITS, 1, now),
            Grant {
                tokens: 0,
                wait: LONGEST_PAUSE
            }
        );
        for _ in 0..20 {
            bucket.slow(LIMITS, Duration::ZERO, now + SAME * 2);
        }
        assert!(bucket.factor >= LEAST);
    }

    #[test]
    fn what_was_not_used_comes_back_up_to_the_burst() {
        let now = Instant::now();
        let mut bucket = Bucket::new(LIMITS, now);
        bucket.take(LIMITS, 3, now);
        bucket.give_back(LIMITS, 2);
        assert_eq!(bucket.take(LIMITS, 9, now).tokens, 3);
        bucket.give_back(LIMITS, 99);
        assert_eq!(bucket.take(LIMITS, 9, now).tokens, 4);
    }
}
