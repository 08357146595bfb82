//! Whether a target may be called now: a dead one must cost its own tasks only, and few of their attempts.

use std::time::{Duration, Instant};

/// Consecutive silent calls before a circuit opens: one may be a lost packet, three in a row are a dead target.
const THRESHOLD: u32 = 3;
/// First pause, doubled with each failed probe up to [`LONGEST`].
const FIRST: Duration = Duration::from_secs(5);
/// Longest pause: a target that came back is used again within a minute.
const LONGEST: Duration = Duration::from_mins(1);
/// A probe that never reports (its task was cancelled) blocks the next one no longer than this.
const PROBE: Duration = Duration::from_secs(30);

/// The state of one target's circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Circuit {
    /// Calls go through.
    Closed {
        /// Silent calls since the last answer.
        failures: u32,
    },
    /// No call until then.
    Open {
        /// When a probe may go.
        until: Instant,
        /// This pause, doubled the next time.
        pause: Duration,
    },
    /// One probe is under way.
    HalfOpen {
        /// When another may go if this one never reports.
        until: Instant,
        /// The pause before it.
        pause: Duration,
    },
}

impl Default for Circuit {
    fn default() -> Self {
        Circuit::Closed { failures: 0 }
    }
}

impl Circuit {
    /// Admits a call, or answers how long to wait.
    ///
    /// # Errors
    /// The time until a call may be tried.
    pub fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        match *self {
            Circuit::Closed { .. } => Ok(()),
            Circuit::Open { until, .. } | Circuit::HalfOpen { until, .. } if now < until => Err(until - now),
            Circuit::Open { pause, .. } | Circuit::HalfOpen { pause, .. } => {
                *self = Circuit::HalfOpen {
                    until: now + PROBE,
                    pause,
                };
                Ok(())
            }
        }
    }

    /// How long a call would have to wait now, without taking the probe.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        match *self {
            Circuit::Closed { .. } => None,
            Circuit::Open { until, .. } | Circuit::HalfOpen { until, .. } => until.checked_duration_since(now),
        }
    }

    /// The target answered, whatever it said.
    pub fn answered(&mut self) {
        *self = Circuit::default();
    }

    /// The target did not answer. True when this opened the circuit.
    pub fn silent(&mut self, now: Instant) -> bool {
        let pause = match *self {
            Circuit::Closed { failures } if failures + 1 < THRESHOLD => {
                *self = Circuit::Closed { failures: failures + 1 };
                return false;
            }
            Circuit::Closed { .. } => FIRST,
            Circuit::HalfOpen { pause, .. } => (pause * 2).min(LONGEST),
            Circuit::Open { .. } => return false, // A call that began before it opened.
        };
        *self = Circuit::Open {
            until: now + pause,
            pause,
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(now: Instant) -> Circuit {
        let mut circuit = Circuit::default();
        let opened: Vec<bool> = (0..3).map(|_| circuit.silent(now)).collect();
        assert_eq!(opened, [false, false, true]);
        circuit
    }

    #[test]
    fn an_answer_forgets_earlier_silence() {
        let now = Instant::now();
        let mut circuit = Circuit::default();
        circuit.silent(now);
        circuit.silent(now);
        circuit.answered();
        assert!(!circuit.silent(now));
        assert_eq!(circuit.admit(now), Ok(()));
    }

    #[test]
    fn an_open_circuit_says_how_long_and_then_lets_one_probe_through() {
        let now = Instant::now();
        let mut circuit = opened(now);
        assert_eq!(circuit.admit(now + Duration::from_secs(2)), Err(Duration::from_secs(3)));
        let later = now + FIRST;
        assert_eq!(circuit.admit(later), Ok(()));
        assert_eq!(circuit.admit(later), Err(PROBE));
    }

    #[test]
    fn a_failed_probe_doubles_the_pause_up_to_the_longest() {
        let mut now = Instant::now();
        let mut circuit = opened(now);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let wait = circuit.wait(now).unwrap();
            pauses.push(wait.as_secs());
            now += wait;
            circuit.admit(now).unwrap();
            assert!(circuit.silent(now));
        }
        assert_eq!(pauses, [5, 10, 20, 40, 60, 60]);
    }

    #[test]
    fn a_probe_that_never_reports_blocks_the_next_for_a_bounded_time() {
        let now = Instant::now();
        let mut circuit = opened(now);
        circuit.admit(now + FIRST).unwrap();
        assert_eq!(circuit.admit(now + FIRST + PROBE), Ok(()));
    }

    #[test]
    fn late_silence_does_not_lengthen_an_open_circuit() {
        let now = Instant::now();
        let mut circuit = opened(now);
        assert!(!circuit.silent(now + Duration::from_secs(4)));
        assert_eq!(circuit.wait(now), Some(FIRST));
    }
}
