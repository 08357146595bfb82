//! `PeriodicTask`: what its spec means here and now, and what its status says.
//!
//! The loop that fires is [`crate::beat`]; this is what it asks of one object.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use umbel_api::condition::{Finding, Status, merge, whole_seconds};
use umbel_api::names::MANAGER;
use umbel_api::names::periodic_condition::{FAILING, SCHEDULED, STALLED, SUSPENDED};
use umbel_api::periodictask::{Effective, Outcome, PastRun, Run};
use umbel_api::{PeriodicTask, PeriodicTaskStatus};
use umbel_plan::cron::{Timetable, fingerprint};
use umbel_plan::fanout::Occasion;
use umbel_plan::periodic::Policy;

use crate::brokers::Awaited;
use crate::context::Context;
use crate::failpoint;
use crate::send::{Address, Stall, address};

/// The reason by which slots wait for room.
pub(crate) const QUEUE_FULL: &str = "QueueFull";
/// Open runs that a status names, of slots and of requests; older ones are not followed to their end.
const MOST_ACTIVE: usize = 100;
/// A schedule that was changed may have had a slot that nobody has fired yet: what came due less than this ago is looked at
/// again. Longer than a change of leader.
const EDITED: SignedDuration = SignedDuration::from_secs(60);
/// Behind the words of a schedule that has no slot left.
const OVER: &str = ", over";

/// A schedule that can fire.
pub(crate) struct Understood {
    pub(crate) timetable: Timetable,
    pub(crate) policy: Policy,
    pub(crate) address: Address,
}

/// What the spec means, with the queue as it is now.
pub(crate) fn understand(ctx: &Context, task: &PeriodicTask) -> Result<Understood, Stall> {
    let timetable = Timetable::of(&task.spec, created(task)).map_err(Stall::Schedule)?;
    let namespace = task.namespace().unwrap_or_default();
    Ok(Understood {
        timetable,
        policy: Policy::of(&task.spec, &uid(task)),
        address: address(ctx, &namespace, &task.spec.task_template)?,
    })
}

pub(crate) fn created(task: &PeriodicTask) -> Timestamp {
    task.creation_timestamp().map(|created| created.0).unwrap_or_default()
}

pub(crate) fn uid(task: &PeriodicTask) -> String {
    task.uid().unwrap_or_default()
}

/// Whether too many runs failed in a row.
pub(crate) fn is_paused(task: &PeriodicTask, status: &PeriodicTaskStatus) -> bool {
    task.spec
        .pause_after_failures
        .is_some_and(|most| status.consecutive_failures >= most)
}

/// How many more runs may begin; `None`: any number.
pub(crate) fn runs_left(task: &PeriodicTask, status: &PeriodicTaskStatus) -> Option<u64> {
    task.spec.max_runs.map(|most| most.saturating_sub(status.runs))
}

/// Since when the slots of the present schedule count, noting it in the status; and a slot of the one before that was due and
/// may not have been fired. A changed spec begins to count failures anew.
///
/// One that was held, or over, makes nothing up for. One that was in force until now goes on: a slot of the second of the
/// change, and what its predecessor had not fired yet, is fired as the present schedule has it.
pub(crate) fn in_force(
    task: &PeriodicTask,
    status: &mut PeriodicTaskStatus,
    now: Timestamp,
) -> (Timestamp, Option<Timestamp>) {
    if status.observed_generation != task.metadata.generation {
        status.consecutive_failures = 0;
    }
    let schedule = fingerprint(&task.spec, is_paused(task, status));
    let second = SignedDuration::from_secs(1);
    let (since, edited) = match &status.effective {
        Some(effective) if effective.schedule == schedule => return (effective.since.0, None),
        Some(effective)
            if effective.schedule.strip_suffix(OVER) == Some(schedule.as_str()) && is_over(task, status, now) =>
        {
            return (effective.since.0, None);
        }
        Some(effective) => {
            let was_held = [", suspended", ", paused", OVER]
                .iter()
                .any(|held| effective.schedule.ends_with(held));
            let is_held = task.spec.suspend || is_paused(task, status);
            let unfired = status.next_schedule_time.as_ref().map(|next| next.0);
            let unfired = unfired.filter(|next| *next <= now && !was_held && !is_held);
            let since = unfired.map_or(now, |next| next.max(now.saturating_sub(EDITED).unwrap_or(next)));
            let since = whole_seconds(since);
            (if was_held || is_held { since } else { since - second }, unfired)
        }
        // The creation itself is a slot then.
        None if task.spec.run_on_create => (whole_seconds(created(task)) - second, None),
        None => (whole_seconds(created(task)), None),
    };
    status.effective = Some(Effective {
        schedule,
        since: Time(since),
    });
    (since, edited)
}

/// Whether the spec allows no slot any more, by `maxRuns` or `endTime`.
fn is_over(task: &PeriodicTask, status: &PeriodicTaskStatus, now: Timestamp) -> bool {
    runs_left(task, status) == Some(0) || task.spec.end_time.as_ref().is_some_and(|end| end.0 < now)
}

/// Notes that no slot is left. With more runs, or a later end, slots count from then on.
pub(crate) fn note_over(task: &PeriodicTask, status: &mut PeriodicTaskStatus, now: Timestamp) {
    if is_over(task, status, now)
        && let Some(effective) = &mut status.effective
        && !effective.schedule.ends_with(OVER)
    {
        effective.schedule.push_str(OVER);
    }
}

/// Notes a run that began.
pub(crate) fn note_fired(status: &mut PeriodicTaskStatus, occasion: Occasion, total: usize) {
    let slot = match occasion {
        Occasion::Slot(slot) => slot,
        Occasion::Request(at) => {
            if !status.active_requests.contains(&Time(at)) {
                status.active_requests.push(Time(at));
            }
            count_active(status);
            return;
        }
    };
    // What a broker has lost is sent again, and is no other run.
    let is_again = status.last_run.as_ref().is_some_and(|run| run.slot.0 == slot);
    status.runs += u64::from(!is_again);
    status.last_run = Some(Run {
        slot: Time(slot),
        total: u32::try_from(total).unwrap_or(u32::MAX),
        succeeded: 0,
        failed: 0,
        clusters: None,
    });
    note_dealt_with(status, slot);
    if !status.active.contains(&Time(slot)) {
        status.active.push(Time(slot));
    }
    count_active(status);
}

/// Counts the open runs, and names the latest of them.
pub(crate) fn count_active(status: &mut PeriodicTaskStatus) {
    for open in [&mut status.active, &mut status.active_requests] {
        open.drain(..open.len().saturating_sub(MOST_ACTIVE));
    }
    let count = status.active.len() + status.active_requests.len();
    status.active_runs = u32::try_from(count).unwrap_or(u32::MAX);
}

/// Notes how a run ended.
pub(crate) fn note_ended(task: &PeriodicTask, status: &mut PeriodicTaskStatus, run: PastRun) {
    match run.outcome {
        Outcome::Succeeded => {
            status.consecutive_failures = 0;
            status.last_successful_time = status.last_successful_time.take().max(Some(run.slot.clone()));
        }
        Outcome::Failed | Outcome::Lost => status.consecutive_failures = status.consecutive_failures.saturating_add(1),
        Outcome::Replaced => {}
    }
    status
        .recent
        .retain(|past| (&past.slot, past.is_request) != (&run.slot, run.is_request));
    status.recent.insert(0, run);
    let (mut succeeded, mut failed) = (task.spec.history.succeeded, task.spec.history.failed);
    status.recent.retain(|run| {
        let left = match run.outcome {
            Outcome::Succeeded => &mut succeeded,
            Outcome::Failed | Outcome::Lost | Outcome::Replaced => &mut failed,
        };
        let is_kept = *left > 0;
        *left = left.saturating_sub(1);
        is_kept
    });
}

/// Notes that nothing up to this slot is due any more.
pub(crate) fn note_dealt_with(status: &mut PeriodicTaskStatus, slot: Timestamp) {
    let last = status.last_schedule_time.as_ref().map_or(slot, |last| last.0.max(slot));
    status.last_schedule_time = Some(Time(last));
}

/// How it stands with a schedule.
pub(crate) enum Standing<'a> {
    /// It can't fire until a person repairs something.
    Stalled(&'a Stall),
    /// It can't fire until the broker answers, or takes writes.
    Waiting(&'a Awaited),
    /// It can't fire until its queue has room.
    Full { queue: &'a str, most: u64 },
    /// It is held by its spec.
    Suspended,
    /// So many runs failed in a row that it is held.
    Paused(u32),
    /// It fires next then, or never again.
    Scheduled(Option<Timestamp>),
}

/// Conditions and next slot.
pub(crate) fn stand(task: &PeriodicTask, status: &mut PeriodicTaskStatus, standing: &Standing<'_>, now: Timestamp) {
    let scheduled = match standing {
        Standing::Stalled(stall) => {
            Finding::new(SCHEDULED, false, stall.word(), "nothing fires until this is repaired")
        }
        Standing::Waiting(awaited) => Finding::new(
            SCHEDULED,
            Status::Unknown,
            awaited.reason,
            format!("slots wait for the broker{}", awaited.words),
        ),
        Standing::Full { queue, most } => Finding::new(
            SCHEDULED,
            Status::Unknown,
            QUEUE_FULL,
            format!("slots wait for room in the queue {queue}, where {most} messages may wait (limits.maxLength)"),
        ),
        Standing::Suspended => Finding::new(SCHEDULED, false, "Suspended", "spec.suspend holds the schedule"),
        Standing::Paused(failures) => Finding::new(
            SCHEDULED,
            false,
            "PausedAfterFailures",
            format!(
                "{failures} runs failed in a row: nothing fires until one that is asked for succeeds or the spec changes"
            ),
        ),
        Standing::Scheduled(Some(_)) => {
            Finding::new(SCHEDULED, true, "Waiting", "status.nextScheduleTime is the next slot")
        }
        Standing::Scheduled(None) => Finding::new(SCHEDULED, false, "Completed", "no slot is left"),
    };
    let stalled = match standing {
        Standing::Stalled(stall) => Finding::new(STALLED, true, stall.word(), stall.to_string()),
        Standing::Waiting(_)
        | Standing::Full { .. }
        | Standing::Suspended
        | Standing::Paused(_)
        | Standing::Scheduled(_) => Finding::new(STALLED, false, "Understood", "the schedule is understood"),
    };
    let suspended = if task.spec.suspend {
        Finding::new(SUSPENDED, true, "Suspended", "spec.suspend is true")
    } else {
        Finding::new(SUSPENDED, false, "NotSuspended", "spec.suspend is false")
    };
    // History may show none.
    let has_ended = !status.recent.is_empty() || status.last_successful_time.is_some();
    let failing = match (status.consecutive_failures, !has_ended) {
        (0, true) => Finding::new(FAILING, false, "NoRunEnded", "no run has ended yet"),
        (0, false) => Finding::new(
            FAILING,
            false,
            "Succeeding",
            "the latest run that ended succeeded, or was replaced",
        ),
        (1, _) => Finding::new(FAILING, true, "RunFailed", "the latest run that ended did not succeed"),
        (failures, _) => Finding::new(
            FAILING,
            true,
            "RunsFailed",
            format!("{failures} runs in a row did not succeed"),
        ),
    };
    let generation = task.metadata.generation;
    status.observed_generation = generation;
    status.conditions = merge(
        &status.conditions,
        &[scheduled, stalled, suspended, failing],
        generation,
        now,
    );
    status.next_schedule_time = match standing {
        Standing::Scheduled(next) => next.map(Time),
        // It is still the next one, whenever that will be.
        Standing::Waiting(_) | Standing::Full { .. } => status.next_schedule_time.take(),
        Standing::Stalled(_) | Standing::Suspended | Standing::Paused(_) => None,
    };
}

/// Writes the status on the given version of the object; the version that follows.
pub(crate) async fn write(
    ctx: &Context,
    task: &Arc<PeriodicTask>,
    version: &str,
    status: &PeriodicTaskStatus,
) -> Result<String, kube::Error> {
    let api: Api<PeriodicTask> = Api::namespaced(ctx.client.clone(), &task.namespace().unwrap_or_default());
    let body = json!({
        "apiVersion": PeriodicTask::api_version(&()),
        "kind": PeriodicTask::kind(&()),
        "metadata": { "name": task.name_any(), "uid": task.uid(), "resourceVersion": version },
        "status": status,
    });
    let params = PatchParams::apply(MANAGER).force();
    let written = failpoint::around_of(
        "status",
        "PeriodicTask",
        api.patch_status(&task.name_any(), &params, &Patch::Apply(body)),
    )
    .await;
    let written = written?;
    ctx.metrics.wrote("patch", "periodictasks/status");
    Ok(written.resource_version().unwrap_or_default())
}
