//! Waiting on conditions with a deadline.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Pause between two looks: short against every deadline, long against the cost of a look.
const LOOK_EVERY: Duration = Duration::from_millis(15);

/// Deadlines are so many times longer than tests say: for campaigns with long leases, and for slow machines.
fn patience() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| std::env::var("UMBEL_TEST_PATIENCE").map_or(1, |factor| factor.parse().expect("a number")))
}

/// A deadline as this run means it.
pub(crate) fn patient(deadline: Duration) -> Duration {
    deadline * patience()
}

/// Returns when `condition` holds.
///
/// # Panics
/// When it does not within `deadline`; the message names `what` was waited for.
pub async fn eventually(deadline: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    eventually_some(deadline, what, async || condition().await.then_some(())).await;
}

/// Returns the first value that `look` finds.
///
/// # Panics
/// As [`eventually`].
pub async fn eventually_some<T>(deadline: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let (begin, deadline) = (Instant::now(), patient(deadline));
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begin.elapsed() < deadline, "not within {deadline:?}: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The output of a future that must be ready within `deadline`.
///
/// # Panics
/// When it is not.
pub async fn within<T>(deadline: Duration, what: &str, future: impl Future<Output = T>) -> T {
    let deadline = patient(deadline);
    let done = tokio::time::timeout(deadline, future).await;
    done.unwrap_or_else(|_| panic!("not within {deadline:?}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_is_looked_at_again_until_it_holds() {
        let mut looks = 0;
        eventually(Duration::from_secs(5), "the third look", async || {
            looks += 1;
            looks == 3
        })
        .await;
        assert_eq!(looks, 3);
    }

    #[tokio::test]
    #[should_panic(expected = "not within 50ms: what never happens")]
    async fn a_deadline_names_what_was_waited_for() {
        eventually(Duration::from_millis(50), "what never happens", async || false).await;
    }
}
