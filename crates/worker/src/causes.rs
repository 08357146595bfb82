//! Failures in the log: one line a second for each cause, however many tasks fail by it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shortest time between two lines of one cause.
const EVERY: Duration = Duration::from_secs(1);
/// Causes remembered; more are tasks or exceptions without end, and share lines.
const MOST: usize = 1000;

/// When each cause was told last, and what was not told since.
#[derive(Default)]
pub(crate) struct Causes(Mutex<HashMap<(String, String), (Instant, u64)>>);

impl Causes {
    /// Something has failed. Says whether to tell of it, with how many of the same cause were not told since the last line.
    pub(crate) fn tell(&self, task: &str, exception: &str, now: Instant) -> Option<u64> {
        let mut causes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cause = (task.to_owned(), exception.to_owned());
        if causes.len() >= MOST && !causes.contains_key(&cause) {
            causes.retain(|_, (told, untold)| *untold > 0 || now.saturating_duration_since(*told) < EVERY);
            if causes.len() >= MOST {
                cause = (String::new(), String::new());
            }
        }
        match causes.get_mut(&cause) {
            Some((told, untold)) if now.saturating_duration_since(*told) < EVERY => {
                *untold += 1;
                None
            }
            Some((told, untold)) => {
                *told = now;
                Some(std::mem::take(untold))
            }
            None => {
                causes.insert(cause, (now, 0));
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once_a_second_and_none_hides_another() {
        let (causes, zero) = (Causes::default(), Instant::now());
        assert_eq!(causes.tell("a", "ValueError", zero), Some(0));
        for _ in 0..5 {
            assert_eq!(causes.tell("a", "ValueError", zero), None);
        }
        assert_eq!(causes.tell("a", "KeyError", zero), Some(0));
        assert_eq!(causes.tell("b", "ValueError", zero), Some(0));
        assert_eq!(causes.tell("a", "ValueError", zero + EVERY), Some(5));
    }

    #[test]
    fn causes_without_end_share_lines() {
        let (causes, zero) = (Causes::default(), Instant::now());
        let told = (0..5000)
            .filter(|at| causes.tell("t", &at.to_string(), zero).is_some())
            .count();
        assert_eq!(told, MOST + 1);
        assert!(causes.0.lock().unwrap().len() <= MOST + 1);
    }
}
