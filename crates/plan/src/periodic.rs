//! Which slots of a schedule are due, which are missed, and when to look again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use umbel_api::{
    PeriodicTaskSpec, Span,
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
    /// By how much slots are late on purpose.
    pub jitter: Jitter,
}

/// Slots that fire later than they are, each by an amount of its own, and all before the next one: their order stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Jitter {
    /// The most.
    pub most: Duration,
    /// Tells schedules apart.
    pub seed: u64,
}

impl Jitter {
    /// When a slot is due. The same for whoever asks, so that a new leader goes on where the last one ended.
    pub fn due(&self, timetable: &Timetable, slot: Timestamp) -> Timestamp {
        if self.most.is_zero() {
            return slot;
        }
        let most = u64::try_from(self.most.as_millis()).unwrap_or(u64::MAX);
        let share = mixed(self.seed ^ slot.as_second().unsigned_abs()) % most.saturating_add(1);
        let late = SignedDuration::from_millis(i64::try_from(share).unwrap_or(i64::MAX));
        let most = timetable.next_after(slot).map_or(SignedDuration::MAX, |next| {
            next.duration_since(slot)
                .saturating_sub(SignedDuration::from_secs(1))
                .max(SignedDuration::ZERO)
        });
        slot.checked_add(late.min(most)).unwrap_or(slot)
    }
}

/// A number that looks like chance (SplitMix64).
const fn mixed(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Policy {
    /// As the spec of the object with this uid has it.
    pub fn of(spec: &PeriodicTaskSpec, uid: &str) -> Self {
        // The first bytes of a UUID are chance enough.
        let seed = uid.bytes().fold(0, |seed: u64, byte| mixed(seed ^ u64::from(byte)));
        Self {
            missed_runs: spec.missed_runs,
            catch_up: spec.catch_up_window.get(),
            overlap: spec.overlap,
            jitter: Jitter {
                most: spec.jitter.map_or(Duration::ZERO, Span::get),
                seed,
            },
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

/// Slots after `floor`, which were not dealt with, judged at `now`. `left` is how many runs may be begun at all; once there
/// are none, slots are neither fired nor missed.
///
/// # Guarantees
/// Every slot that is due in `(floor, now]` is fired, missed, or (under RunAll, beyond [`MOST_AT_ONCE`]) left for the next
/// pass. With the last slot of `fire`, or else the last one due, as the next `floor`, nothing is answered twice.
pub fn due(timetable: &Timetable, policy: &Policy, floor: Timestamp, now: Timestamp, left: Option<u64>) -> Due {
    if left == Some(0) {
        return Due::default();
    }
    let window = match policy.missed_runs {
        MissedRuns::Skip => PUNCTUAL,
        MissedRuns::RunOnce | MissedRuns::RunAll => policy.catch_up.max(PUNCTUAL),
    };
    // Slots at the edge itself are inside.
    let edge = now
        .checked_sub(signed(window.saturating_add(policy.jitter.most)) + SignedDuration::from_nanos(1))
        .unwrap_or(Timestamp::MIN);
    let until = last_due(timetable, policy, floor, now);
    let recent = floor.max(edge).min(until.max(floor));
    match policy.missed_runs {
        MissedRuns::RunAll => {
            let most = left.map_or(MOST_AT_ONCE, |left| {
                usize::try_from(left).unwrap_or(usize::MAX).min(MOST_AT_ONCE)
            });
            Due {
                fire: timetable.between(recent, until, most),
                missed: timetable.count(floor, recent, MOST_COUNTED),
            }
        }
        MissedRuns::RunOnce | MissedRuns::Skip => match timetable.latest(recent, until) {
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

/// Until when slots are due: all that are past, but the latest may be late on purpose.
pub fn last_due(timetable: &Timetable, policy: &Policy, floor: Timestamp, now: Timestamp) -> Timestamp {
    if policy.jitter.most.is_zero() {
        return now;
    }
    match timetable.latest(floor, now) {
        Some(latest) if policy.jitter.due(timetable, latest) > now => just_before(latest),
        _ => now,
    }
}

/// What becomes of a slot that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is fired.
    Fire,
    /// It is given up, and counted.
    Skip,
    /// It waits for the end of the run that goes on.
    Keep,
    /// The runs that go on are cancelled, then it is fired.
    Replace,
}

/// What an overlap policy makes of a slot whose schedule has an unfinished run (`is_active`) or a slot that is kept.
pub const fn overlap(policy: Overlap, is_active: bool, is_kept: bool) -> Verdict {
    match (policy, is_active) {
        (_, false) | (Overlap::Allow, true) => Verdict::Fire,
        (Overlap::Forbid, true) => Verdict::Skip,
        (Overlap::BufferOne, true) if is_kept => Verdict::Skip,
        (Overlap::BufferOne, true) => Verdict::Keep,
        (Overlap::Replace, true) => Verdict::Replace,
    }
}

/// When the next slot after `floor` is due; what is past is due now.
pub fn next_wake(timetable: &Timetable, policy: &Policy, floor: Timestamp, now: Timestamp) -> Option<Timestamp> {
    let slot = timetable.next_after(floor)?;
    Some(policy.jitter.due(timetable, slot).max(now))
}

fn just_before(at: Timestamp) -> Timestamp {
    at.checked_sub(SignedDuration::from_nanos(1)).unwrap_or(at)
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}
