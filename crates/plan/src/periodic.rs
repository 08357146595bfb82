//! Which slots of a schedule are due, which are missed, and when to look again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use umbel_api::{
    PeriodicTaskSpec,
    periodictask::{MissedRuns, Overlap},
};

use crate::cron::Timetable;

/// A slot that is not older than this is on time: longer than a slow round trip, shorter than a change of leader.
pub const PUNCTUAL: Duration = Duration::from_secs(5);
/// Slots that one pass fires: a backlog of many goes in parts, so that others get their turn.
pub const MOST_AT_ONCE: usize = 50;
/// Missed slots are counted up to this: the count is for people, and a schedule of every second may rest for a year.
const MOST_COUNTED: u64 = 10_000;

/// What a user set for slots that can't fire as they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// For slots that passed while nobody could fire them.
    pub missed_runs: MissedRuns,
    /// A missed slot older than this is not fired any more.
    pub catch_up: Duration,
    /// For slots that come while an earlier run goes on.
    pub overlap: Overlap,
}

impl From<&PeriodicTaskSpec> for Policy {
    fn from(spec: &PeriodicTaskSpec) -> Self {
        Self {
            missed_runs: spec.missed_runs,
            catch_up: spec.catch_up_window.get(),
            overlap: spec.overlap,
        }
    }
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Slots to fire, oldest first.
    pub fire: Vec<Timestamp>,
    /// Slots that are given up by policy; all lie before those to fire.
    pub missed: u64,
}

/// Slots after `floor`, which were not dealt with, judged at `now`.
///
/// # Guarantees
/// Every slot in `(floor, now]` is fired, missed, or (under RunAll, beyond [`MOST_AT_ONCE`]) left for the next pass. With
/// the last slot of `fire`, or else `now`, as the next `floor`, nothing is answered twice.
pub fn due(timetable: &Timetable, policy: &Policy, floor: Timestamp, now: Timestamp) -> Due {
    let window = match policy.missed_runs {
        MissedRuns::Skip => PUNCTUAL,
        MissedRuns::RunOnce | MissedRuns::RunAll => policy.catch_up.max(PUNCTUAL),
    };
    // Slots at the edge itself are inside.
    let edge = now
        .checked_sub(signed(window) + SignedDuration::from_nanos(1))
        .unwrap_or(Timestamp::MIN);
    let recent = floor.max(edge);
    match policy.missed_runs {
        MissedRuns::RunAll => Due {
            fire: timetable.between(recent, now, MOST_AT_ONCE),
            missed: timetable.count(floor, recent, MOST_COUNTED),
        },
        MissedRuns::RunOnce | MissedRuns::Skip => match timetable.latest(recent, now) {
            Some(latest) => Due {
                fire: vec![latest],
                missed: timetable.count(floor, just_before(latest), MOST_COUNTED),
            },
            None => Due {
                fire: Vec::new(),
                missed: timetable.count(floor, recent, MOST_COUNTED),
            },
        },
    }
}

/// What an overlap policy makes of a slot whose schedule has an unfinished run.
pub const fn may_fire(overlap: Overlap, active: bool) -> bool {
    match overlap {
        Overlap::Allow => true,
        Overlap::Forbid => !active,
    }
}

/// When the next slot after `floor` comes; what is past is due now.
pub fn next_wake(timetable: &Timetable, floor: Timestamp, now: Timestamp) -> Option<Timestamp> {
    timetable.next_after(floor).map(|slot| slot.max(now))
}

fn just_before(at: Timestamp) -> Timestamp {
    at.checked_sub(SignedDuration::from_nanos(1)).unwrap_or(at)
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}
