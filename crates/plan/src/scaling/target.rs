//! From demand to a size: what the pool aims at.

use std::time::Duration;

use umbel_api::workerpool::{Target, TargetKind};

use super::{Demand, Limits, Pace};

/// Percent of the slots that should be in use where nothing else is asked for, or can be measured.
const UTILIZATION: u32 = 80;

/// What a pool's size aims at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// This many percent of the slots are in use.
    Utilization(u32),
    /// So many messages wait for each pod.
    Backlog(u32),
    /// All that is there now is done within this time.
    DrainTime(Duration),
    /// What comes now is started within this time.
    Latency(Duration),
}

/// What demand was held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Slots.
    Slots,
    /// So many waiting messages a pod.
    Backlog(u32),
    /// The measured pace, for all to be done within this time.
    DrainTime(Duration, Pace),
    /// The measured pace, for what comes to be started within this time.
    Latency(Duration, Pace),
    /// Slots, because no pace was measured yet for this target.
    NoPace(&'static str),
}

impl From<&Target> for Aim {
    /// The schema refuses a value of the wrong kind; should it happen, [`UTILIZATION`] holds.
    fn from(target: &Target) -> Self {
        let Target { kind, value } = target;
        match (kind, value.count(), value.time()) {
            (TargetKind::Utilization, Some(percent), _) => Self::Utilization(percent),
            (TargetKind::BacklogPerReplica, Some(messages), _) => Self::Backlog(messages),
            (TargetKind::DrainTime, _, Some(time)) => Self::DrainTime(time),
            (TargetKind::Latency, _, Some(time)) => Self::Latency(time),
            _ => Self::Utilization(UTILIZATION),
        }
    }
}

/// The size that fits the aim and leaves the free slots asked for, and what it was made from.
pub(super) fn recommend(limits: &Limits, demand: Demand, pace: Option<Pace>) -> (u32, Basis) {
    let slots = u128::from(limits.concurrency.max(1));
    let total = u128::from(demand.total());
    let backlog = u128::from(demand.waiting.saturating_add(demand.due_soon));
    let by_slots = |percent: u32| (total * 100).div_ceil(slots * u128::from(percent.clamp(1, 100)));
    let (by_aim, basis) = match (limits.aim, pace) {
        (Aim::Utilization(percent), _) => (by_slots(percent), Basis::Slots),
        (Aim::Backlog(each), _) => (backlog.div_ceil(u128::from(each.max(1))), Basis::Backlog(each)),
        (Aim::DrainTime(within), Some(pace)) => {
            let work = total.saturating_mul(pace.task.as_micros());
            (
                work.div_ceil(slots * within.as_micros().max(1)),
                Basis::DrainTime(within, pace),
            )
        }
        (Aim::Latency(within), Some(pace)) => {
            // Slots that start what waits within the time, and besides as many as come: backlog/time + arrivals.
            let micros = within.as_micros().max(1);
            let tasks = (backlog.saturating_mul(1_000_000_000))
                .saturating_add(u128::from(pace.arrivals_milli).saturating_mul(micros));
            let work = tasks.saturating_mul(pace.task.as_micros());
            let each = slots.saturating_mul(micros).saturating_mul(1_000_000_000);
            (work.div_ceil(each), Basis::Latency(within, pace))
        }
        (Aim::DrainTime(_), None) => (by_slots(UTILIZATION), Basis::NoPace("DrainTime")),
        (Aim::Latency(_), None) => (by_slots(UTILIZATION), Basis::NoPace("Latency")),
    };
    let by_idle_slots = (total + u128::from(limits.min_idle_slots)).div_ceil(slots);
    // Slots that stay free are beyond demand as a whole; without any, the aim alone counts.
    let by_idle_slots = if limits.min_idle_slots == 0 { 0 } else { by_idle_slots };
    let wanted = by_aim.max(by_idle_slots).max(u128::from(total > 0));
    (u32::try_from(wanted).unwrap_or(u32::MAX), basis)
}
