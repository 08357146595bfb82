//! Whether a stopping pod has as long as its tasks may run.

use std::time::Duration;

use umbel_api::Span;
use umbel_api::condition::Finding;
use umbel_api::names::pool_condition::GRACE_TOO_SHORT;

/// What is said of a pool's grace period: `asked` for, `given` to the pod that has the least, beside the time a task may run.
///
/// A platform may give pods less than their template asks for, and nothing but the pods shows it.
pub fn finding(asked: Duration, given: Option<Duration>, time_limit: Duration) -> Finding {
    let words = |span: Duration| Span::from(span).to_string();
    let given = given.unwrap_or(asked).min(asked);
    if given >= time_limit {
        let note = format!("a stopping pod has {}, and no task should run for longer", words(given));
        return Finding::new(GRACE_TOO_SHORT, false, "LongEnough", note);
    }
    let limit = words(time_limit);
    let end = "what is not done by then is handed back";
    if given < asked {
        let note = format!(
            "a stopping pod has {} where the pool asks for {}: the platform caps it. A task may run for {limit}; {end}",
            words(given),
            words(asked)
        );
        return Finding::new(GRACE_TOO_SHORT, true, "CappedByPlatform", note);
    }
    let note = format!(
        "a stopping pod has {}, by drain.gracePeriod, and a task may run for {limit}; {end}",
        words(given)
    );
    Finding::new(GRACE_TOO_SHORT, true, "ShorterThanTimeLimit", note)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grace_period_is_long_enough_or_says_why_not() {
        let seconds = Duration::from_secs;
        // (asked, given, limit, reason)
        let table = [
            (3630, None, 3600, "LongEnough"),
            (3630, Some(3630), 3600, "LongEnough"),
            (3630, Some(600), 3600, "CappedByPlatform"),
            (3630, Some(3600), 3600, "LongEnough"),
            (20, Some(20), 3600, "ShorterThanTimeLimit"),
            (20, None, 3600, "ShorterThanTimeLimit"),
            (60, Some(25), 3600, "CappedByPlatform"),
            (60, Some(600), 30, "LongEnough"),
        ];
        for (asked, given, limit, reason) in table {
            let found = finding(seconds(asked), given.map(seconds), seconds(limit));
            assert_eq!(found.reason, reason, "{asked} {given:?} {limit}: {found:?}");
        }
        let found = finding(seconds(3630), Some(seconds(600)), seconds(3600));
        assert_eq!(
            found.message,
            "a stopping pod has 10m where the pool asks for 1h30s: the platform caps it. A task may run for 1h; \
             what is not done by then is handed back"
        );
    }
}
