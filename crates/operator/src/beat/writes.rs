//! How often statuses are written. A schedule that fires every few seconds changes its own each time: what nobody waits for may
//! lag, and ten thousand schedules must not drown the API server. What a status lacks at a change of leaders stands in the
//! mark on the broker.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use umbel_api::PeriodicTaskStatus;

/// Writes a second on the long run, of all schedules together, and as many at once.
const RATE: f64 = 30.0;
const BURST: f64 = 300.0;
/// A schedule that was written less than this ago, or before all others can have had their turn, leaves the rest to them
/// when there is little left.
const FAIR: Duration = Duration::from_secs(60);

/// What may still be written now.
pub(super) struct Allowance {
    state: Mutex<(f64, Instant)>,
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Allowance {
        Allowance {
            state: Mutex::new((BURST, now)),
        }
    }

    /// Whether a status may be written that differs by counts and times only, of a schedule whose last write was then.
    /// So many schedules share it.
    pub(super) fn take(&self, last: Option<Instant>, sharers: usize, now: Instant) -> bool {
        // Nothing that can panic runs under this lock.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, at) = *state;
        let grown = (left + RATE * now.saturating_duration_since(at).as_secs_f64()).min(BURST);
        #[allow(clippy::cast_precision_loss)] // Objects of one API server.
        let round = Duration::from_secs_f64(sharers as f64 / RATE);
        let is_fresh = last.is_some_and(|last| now.saturating_duration_since(last) < FAIR.max(round));
        let least = match (is_fresh, round > FAIR) {
            (false, _) => 1.0,
            (true, false) => BURST / 2.0,
            // So many that there is never anything left.
            (true, true) => f64::INFINITY,
        };
        let may = grown >= least;
        *state = (if may { grown - 1.0 } else { grown }, now.max(at));
        may
    }
}

/// Does a status differ by what people and programs wait for, and not by counts and times alone?
pub(super) fn is_news(shown: Option<&PeriodicTaskStatus>, status: &PeriodicTaskStatus) -> bool {
    shown.is_none_or(|shown| {
        shown.observed_generation != status.observed_generation
            || shown.effective != status.effective
            || shown.conditions != status.conditions
            || shown.last_request != status.last_request
            || shown.active_requests != status.active_requests
            || shown.buffered != status.buffered
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_schedules_are_written_at_once_and_many_take_turns() {
        let begin = Instant::now();
        let allowance = Allowance::new(begin);
        let mut last = None;
        for second in 0..600 {
            let now = begin + Duration::from_secs(second);
            assert!(allowance.take(last, 1, now), "one a second is always written");
            last = Some(now);
        }

        // Ten thousand that change every ten seconds.
        let mut written: Vec<Vec<u64>> = vec![Vec::new(); 10_000];
        let mut lasts = vec![None; 10_000];
        let begin = begin + Duration::from_secs(3600);
        for milli in 0..900_000_u64 {
            let (now, who) = (begin + Duration::from_millis(milli), (milli % 10_000) as usize);
            if allowance.take(lasts[who], 10_000, now) {
                lasts[who] = Some(now);
                written[who].push(milli / 1000);
            }
        }
        let all: usize = written.iter().map(Vec::len).sum();
        assert!((26_000..=27_600).contains(&all), "{all}");
        assert!(written.iter().all(|times| !times.is_empty()), "nobody is left out");
        let too_soon = written
            .iter()
            .flat_map(|times| times.windows(2))
            .filter(|pair| pair[1] - pair[0] < 60);
        assert_eq!(too_soon.count(), 0, "one a minute at most");
    }
}
