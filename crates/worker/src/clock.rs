//! Redis' clock, seen from here: its time at the last reply plus our own monotonic time since. The wall clock of this
//! machine decides nothing.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use jiff::Timestamp;

#[derive(Debug)]
pub(crate) struct RedisClock {
    seen: Mutex<Option<(f64, Instant)>>,
}

impl RedisClock {
    pub(crate) fn new() -> RedisClock {
        RedisClock { seen: Mutex::new(None) }
    }

    /// A reply said that it was `seconds` when it was made, just now.
    pub(crate) fn observe(&self, seconds: f64) {
        if seconds > 0.0 {
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some((seconds, Instant::now()));
        }
    }

    /// Redis time in seconds; before the first reply, this machine's.
    pub(crate) fn now(&self) -> f64 {
        match *self.seen.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((seconds, at)) => seconds + at.elapsed().as_secs_f64(),
            None => seconds_of(Timestamp::now()),
        }
    }

    pub(crate) fn timestamp(&self) -> Timestamp {
        #[allow(clippy::cast_possible_truncation)] // Microseconds since 1970 fit.
        Timestamp::from_microsecond((self.now() * 1e6) as i64).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// A timestamp as seconds since 1970.
pub(crate) fn seconds_of(at: Timestamp) -> f64 {
    at.as_microsecond() as f64 / 1e6
}
