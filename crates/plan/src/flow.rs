//! How a queue fares: what comes and goes a second, how long its oldest message has waited, when it will be empty.
//!
//! Memory of a leader, begun anew by the next one. What is told is rounded, so that a status changes when something does.

use std::collections::{BTreeMap, VecDeque};

use jiff::{SignedDuration, Timestamp};
use umbel_api::taskqueue::Rates;

/// What is older does not count.
const WINDOW: SignedDuration = SignedDuration::from_mins(1);
/// Two marks are at least so far apart: heartbeats come every 5 s.
const APART: SignedDuration = SignedDuration::from_secs(5);
/// Below this, a rate is chance.
const SHORTEST: SignedDuration = SignedDuration::from_secs(10);

/// What one worker process has done for a queue since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Runs begun.
    pub started: u64,
    /// Tasks that succeeded.
    pub succeeded: u64,
    /// Tasks that failed for good.
    pub failed: u64,
    /// Messages that it held and that are neither held nor waiting any more, in whatever way.
    pub gone: u64,
}

impl Done {
    fn zip(self, other: Self, each: fn(u64, u64) -> u64) -> Self {
        Self {
            started: each(self.started, other.started),
            succeeded: each(self.succeeded, other.succeeded),
            failed: each(self.failed, other.failed),
            gone: each(self.gone, other.gone),
        }
    }
}

/// What the next message of a queue is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Head<'a> {
    /// What tells it from others.
    pub hash: &'a str,
    /// When it was sent, where its sender says so (Unix seconds).
    pub sent: Option<f64>,
}

/// How a queue fares.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Flow {
    /// Seconds for which the next message has waited, and whether that is a lower bound.
    pub oldest: Option<(u64, bool)>,
    /// Messages a second.
    pub rates: Option<Rates>,
    /// Seconds until all is done that waits or runs.
    pub drain: Option<u64>,
}

/// Sums since the meter began, at one time.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Timestamp,
    done: Done,
    /// Messages that wait or run.
    work: u64,
}

/// Measures one queue.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    workers: BTreeMap<String, Done>,
    marks: VecDeque<Mark>,
    last: Option<Mark>,
    /// The next message, and when it was seen in front first.
    head: Option<(String, Timestamp)>,
    oldest: Option<(u64, bool)>,
}

impl Meter {
    /// Takes in what was seen at one time, by the broker's clock: what each worker has done, how many messages wait or run,
    /// and the next one. A time that is not later than the last one begins anew.
    pub fn see<'a>(
        &mut self,
        at: Timestamp,
        workers: impl IntoIterator<Item = (&'a str, Done)>,
        work: u64,
        head: Option<Head<'_>>,
    ) {
        if self.last.is_some_and(|last| last.at >= at) {
            *self = Self::default();
        }
        let mut now = Mark {
            at,
            work,
            done: self.last.map(|last| last.done).unwrap_or_default(),
        };
        let mut known = BTreeMap::new();
        for (worker, done) in workers {
            // What a process did before it was first seen happened at no known time.
            let before = self.workers.get(worker).copied().unwrap_or(done);
            now.done = now.done.zip(done.zip(before, u64::saturating_sub), u64::saturating_add);
            known.insert(worker.to_owned(), done);
        }
        self.workers = known;
        self.last = Some(now);
        if self.marks.back().is_none_or(|mark| at.duration_since(mark.at) >= APART) {
            self.marks.push_back(now);
        }
        while self
            .marks
            .get(1)
            .is_some_and(|mark| at.duration_since(mark.at) >= WINDOW)
        {
            self.marks.pop_front();
        }
        self.oldest = head.map(|Head { hash, sent }| {
            let since = match &self.head {
                Some((known, since)) if known == hash => *since,
                _ => {
                    self.head = Some((hash.to_owned(), at));
                    at
                }
            };
            let seen = u64::try_from(at.duration_since(since).as_secs()).unwrap_or(0);
            let age = sent.map(|sent| whole(at.as_millisecond() as f64 / 1000.0 - sent));
            (down(age.unwrap_or(seen)), age.is_none())
        });
        if head.is_none() {
            self.head = None;
        }
    }

    /// How the queue fares.
    pub fn flow(&self) -> Flow {
        let rates = self.rates();
        let ends = rates.map_or(0.0, |rates| rates.succeeded + rates.failed);
        let work = self.last.map_or(0, |last| last.work);
        let drain = (work > 0 && ends > 0.0).then(|| up(whole((work as f64 / ends).ceil())));
        Flow {
            oldest: self.oldest,
            rates,
            drain,
        }
    }

    fn rates(&self) -> Option<Rates> {
        let (first, last) = (self.marks.front()?, self.last?);
        let passed = last.at.duration_since(first.at);
        if passed < SHORTEST {
            return None;
        }
        let done = last.done.zip(first.done, u64::saturating_sub);
        // What is there was there before or came, and is not gone.
        let came = (last.work + done.gone).saturating_sub(first.work);
        let rate = |count: u64| rounded(count as f64 / passed.as_secs_f64());
        Some(Rates {
            enqueued: rate(came),
            started: rate(done.started),
            succeeded: rate(done.succeeded),
            failed: rate(done.failed),
        })
    }
}

/// Two digits that count: more would be chance.
fn rounded(rate: f64) -> f64 {
    if rate <= 0.0 {
        return 0.0;
    }
    let digit = rate.log10().floor() - 1.0;
    let unit = 10_f64.powf(digit.abs());
    if digit < 0.0 {
        (rate * unit).round() / unit
    } else {
        (rate / unit).round() * unit
    }
}

/// Whole seconds, none below zero.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "what does not fit is cut"
)]
fn whole(seconds: f64) -> u64 {
    seconds.max(0.0) as u64
}

/// The distance in which a time of so many seconds is told.
fn step(seconds: u64) -> u64 {
    match seconds {
        0..60 => 15,
        60..600 => 60,
        600..7200 => 600,
        _ => 3600,
    }
}

fn down(seconds: u64) -> u64 {
    // Below the first step each second counts: nothing waits for long there.
    if seconds < 15 {
        return seconds;
    }
    seconds / step(seconds) * step(seconds)
}

fn up(seconds: u64) -> u64 {
    if seconds < 15 {
        return seconds;
    }
    seconds.div_ceil(step(seconds)) * step(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).expect("a valid second")
    }

    fn done(count: u64) -> Done {
        Done {
            started: count,
            succeeded: count - count / 10,
            failed: count / 10,
            gone: count,
        }
    }

    #[test]
    fn rates_are_those_of_the_last_minute() {
        let mut meter = Meter::default();
        // 100 before it was first seen, then ten a second of which one fails; twelve a second come.
        for second in 0..=300 {
            let count = u64::try_from(second).expect("small");
            meter.see(at(second), [("w", done(100 + 10 * count))], 50 + 2 * count, None);
            let rates = meter.flow().rates;
            assert_eq!(rates.is_some(), second >= 10, "after {second} s");
        }
        let flow = meter.flow();
        assert_eq!(
            flow.rates,
            Some(Rates {
                enqueued: 12.0,
                started: 10.0,
                succeeded: 9.0,
                failed: 1.0
            })
        );
        assert_eq!(flow.drain, Some(120), "650 at ten a second, told in minutes");
        // Another process with the same work, and then nothing for a minute.
        for second in 301..=370 {
            meter.see(at(second), [("v", done(7))], 0, None);
        }
        let flow = meter.flow();
        assert_eq!((flow.rates, flow.drain), (Some(Rates::default()), None));
    }

    #[test]
    fn what_is_handed_back_did_not_come() {
        let mut meter = Meter::default();
        for second in 0..=30 {
            let begun = Done {
                started: u64::try_from(second).expect("small"),
                ..Done::default()
            };
            meter.see(at(second), [("w", begun)], 5, None);
        }
        let rates = meter.flow().rates.expect("a rate");
        assert_eq!((rates.enqueued, rates.started), (0.0, 1.0));
    }

    #[test]
    fn the_next_message_ages_from_when_it_was_sent_or_seen() {
        let mut meter = Meter::default();
        let mut see = |second, hash, sent: Option<i64>| {
            let sent = sent.map(|sent| (1_000_000 + sent) as f64);
            meter.see(at(second), [], 1, Some(Head { hash, sent }));
            meter.flow().oldest
        };
        assert_eq!(see(0, "a", None), Some((0, true)));
        assert_eq!(see(14, "a", None), Some((14, true)));
        assert_eq!(see(29, "a", None), Some((15, true)), "told in steps");
        assert_eq!(see(30, "b", None), Some((0, true)));
        assert_eq!(see(31, "c", Some(-100)), Some((120, false)));
        assert_eq!(
            see(32, "d", Some(500)),
            Some((0, false)),
            "a sender whose clock is ahead"
        );
        meter.see(at(33), [], 0, None);
        assert_eq!(meter.flow().oldest, None);
    }

    #[test]
    fn a_clock_that_goes_back_begins_anew() {
        let mut meter = Meter::default();
        for second in 0..60 {
            meter.see(at(second), [("w", done(100))], 5, None);
        }
        meter.see(at(-3600), [("w", done(100))], 5, None);
        assert_eq!(meter.flow().rates, None);
    }

    #[test]
    fn numbers_are_told_with_two_digits() {
        for (rate, told) in [
            (0.0, 0.0),
            (0.01666, 0.017),
            (1.26, 1.3),
            (12.4, 12.0),
            (987.0, 990.0),
            (12_345.0, 12_000.0),
        ] {
            assert!((rounded(rate) - told).abs() < 1e-9, "{rate}: {}", rounded(rate));
        }
        assert_eq!([0, 14, 59, 61, 719, 7300].map(down), [0, 14, 45, 60, 600, 7200]);
        assert_eq!([0, 14, 59, 61, 719, 7300].map(up), [0, 14, 60, 120, 1200, 10_800]);
    }
}
