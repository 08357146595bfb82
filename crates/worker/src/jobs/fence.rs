//! The fence on objects at a target: which run of which delivery wrote last.
//!
//! A token alone orders deliveries, not runs: the retry of an old run is a newer delivery than the first one of a newer
//! run. So the run's order comes first. The trust window of a lease cannot prove that no older writer is left, because
//! a process can be stopped between its check and its call; this comparison at the target does.

use std::fmt;

/// Where the fence of an object is that an apply wrote.
pub(super) const ANNOTATION: &str = "umbel.dev/fence";

/// `<run order>/<term>.<microseconds>`, compared in that order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fence {
    order: i64,
    term: u64,
    micros: u64,
}

impl Fence {
    /// The fence of a delivery. `token` is `<term>.<microseconds>`.
    pub(super) fn of(order: i64, token: &str) -> Option<Fence> {
        let (term, micros) = token.split_once('.')?;
        Some(Fence {
            order,
            term: term.parse().ok()?,
            micros: micros.parse().ok()?,
        })
    }

    /// Is it of an earlier run than the other, rather than of another delivery of the same one?
    pub(super) fn is_of_earlier_run(self, other: Fence) -> bool {
        self.order < other.order
    }

    /// The run's order: milliseconds.
    pub(super) fn order(self) -> i64 {
        self.order
    }

    /// Reads an annotation.
    pub(super) fn parse(text: &str) -> Option<Fence> {
        let (order, token) = text.split_once('/')?;
        Fence::of(order.parse().ok()?, token)
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fence { order, term, micros } = self;
        write!(f, "{order}/{term}.{micros}")
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_later_run_beats_a_later_delivery_of_an_earlier_run() {
        let first_delivery_of_newer = Fence::parse("1700000060000/3.10").unwrap();
        let retry_of_older = Fence::parse("1700000000000/4.99").unwrap();
        assert!(first_delivery_of_newer > retry_of_older);
    }

    #[test]
    fn in_one_run_the_later_term_and_then_the_later_time_wins() {
        let fences = ["5/1.9", "5/1.10", "5/2.1"].map(|text| Fence::parse(text).unwrap());
        assert!(fences.is_sorted());
        assert_eq!(fences.map(|fence| fence.to_string()), ["5/1.9", "5/1.10", "5/2.1"]);
    }

    #[test]
    fn what_is_no_fence_is_none() {
        for text in [
            "",
            "5",
            "5/",
            "5/1",
            "/1.1",
            "x/1.1",
            "5/1.x",
            "5/-1.1",
            "5/1.1/2",
            "99999999999999999999/1.1",
        ] {
            assert_eq!(Fence::parse(text), None, "{text}");
        }
    }
}
