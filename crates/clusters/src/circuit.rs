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

/// While another task's probe is under way, look again after this: most probes are answered in milliseconds.
const MEANWHILE: Duration = Duration::from_secs(5);

/// Whether calls go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// They do.
    #[default]
    Closed,
    /// None does until a probe may.
    Open,
    /// One probe is under way.
    HalfOpen,
}

impl State {
    /// As status and the shared record write it.
    pub fn word(self) -> &'static str {
        match self {
            State::Closed => "Closed",
            State::Open => "Open",
            State::HalfOpen => "HalfOpen",
        }
    }

    /// Reads a word; an unknown one is a closed circuit, which at worst costs a call.
    pub fn of(word: &str) -> State {
        match word {
            "Open" => State::Open,
            "HalfOpen" => State::HalfOpen,
            _ => State::Closed,
        }
    }
}

/// The circuit of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Circuit {
    /// Whether calls go through.
    pub state: State,
    /// Silent calls since the last answer.
    pub failures: u32,
    /// Since when it is in this state; `None`: ever since it is known.
    pub since: Option<Instant>,
    /// When the next probe may go, where it is not closed.
    pub until: Option<Instant>,
    /// The present pause, doubled the next time.
    pub pause: Duration,
}

/// The figures by which circuits open and close, for whoever keeps them in another place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Consecutive silent calls before it opens.
    pub threshold: u32,
    /// First pause.
    pub first: Duration,
    /// Longest pause.
    pub longest: Duration,
    /// How long a probe that never reports blocks the next one.
    pub probe: Duration,
}

/// Ours.
pub const RULES: Rules = Rules {
    threshold: THRESHOLD,
    first: FIRST,
    longest: LONGEST,
    probe: PROBE,
};

impl Circuit {
    /// Admits a call, or answers how long to wait.
    ///
    /// # Errors
    /// The time until a call may be tried.
    pub fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        if let Some(wait) = self.wait(now) {
            return Err(wait);
        }
        match self.state {
            State::Closed => {}
            State::Open | State::HalfOpen => {
                *self = Circuit {
                    state: State::HalfOpen,
                    since: Some(now),
                    until: Some(now + PROBE),
                    ..*self
                };
            }
        }
        Ok(())
    }

    /// How long a call would have to wait now, without taking the probe.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let left = self.until.and_then(|until| until.checked_duration_since(now))?;
        match self.state {
            _ if left.is_zero() => None,
            State::Closed => None,
            State::Open => Some(left),
            State::HalfOpen => Some(left.min(MEANWHILE)),
        }
    }

    /// Is there anything that an answer would change?
    pub fn is_clean(&self) -> bool {
        self.state == State::Closed && self.failures == 0
    }

    /// The target answered, whatever it said.
    pub fn answered(&mut self, now: Instant) {
        let since = match self.state {
            State::Closed => self.since,
            State::Open | State::HalfOpen => Some(now),
        };
        *self = Circuit {
            since,
            ..Circuit::default()
        };
    }

    /// The target did not answer. True when this opened the circuit.
    pub fn silent(&mut self, now: Instant) -> bool {
        let pause = match self.state {
            State::Closed if self.failures + 1 < THRESHOLD => {
                self.failures += 1;
                return false;
            }
            State::Closed => FIRST,
            State::HalfOpen => (self.pause * 2).min(LONGEST),
            State::Open => return false, // A call that began before it opened.
        };
        *self = Circuit {
            state: State::Open,
            failures: self.failures + 1,
            since: Some(now),
            until: Some(now + pause),
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
        circuit.answered(now);
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
        assert_eq!(circuit.admit(later), Err(MEANWHILE));
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
