//! `PeriodicTask`: what its spec means here and now, and what its status says.
//!
//! The loop that fires is [`crate::beat`]; this is what it asks of one object.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use umbel_api::condition::{Finding, Status, find, merge, whole_seconds};
use umbel_api::names::MANAGER;
use umbel_api::names::periodic_condition::{SCHEDULED, STALLED, SUSPENDED};
use umbel_api::names::queue_condition::READY;
use umbel_api::periodictask::{Effective, Run};
use umbel_api::{PeriodicTask, PeriodicTaskStatus};
use umbel_broker::{SlotMessage, Until};
use umbel_plan::cron::{ScheduleFault, Timetable, fingerprint};
use umbel_plan::fanout::{Candidate, Dispatch, Fanout, dispatches, run_id};
use umbel_plan::periodic::Policy;
use umbel_protocol::json::Json;
use umbel_protocol::message::{NewTask, OWN_HEADERS, TimeLimit};

use crate::brokers::{Fault, Source};
use crate::context::Context;
use crate::failpoint;

/// The reason by which slots wait for room.
pub(crate) const QUEUE_FULL: &str = "QueueFull";
/// For so long a unique key is kept for a message that does not expire, and the time that its task may take beyond.
const UNIQUE_KEPT: Duration = Duration::from_secs(86_400);

/// Open runs that a status names; more are counted only.
const MOST_ACTIVE: usize = 20;

/// A schedule that can fire.
pub(crate) struct Understood {
    pub(crate) timetable: Timetable,
    pub(crate) policy: Policy,
    pub(crate) queue: String,
    /// The time limit of tasks that name none.
    pub(crate) time_limit: Duration,
    /// Priority steps of the queue.
    pub(crate) steps: Vec<u8>,
    pub(crate) source: Source,
}

/// Why a schedule can't fire until a person repairs something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stall {
    #[error(transparent)]
    Schedule(ScheduleFault),
    #[error("there is no TaskQueue {0} in this namespace")]
    UnknownQueue(String),
    #[error("TaskQueue {name}: {why}")]
    QueueNotOurs { name: String, why: String },
    #[error("TaskQueue {0} does not accept json, which schedules send")]
    NotAccepted(String),
    #[error("the header {0:?} belongs to the message format")]
    ReservedHeader(String),
    #[error("TaskQueue {0}: {1}")]
    Broker(String, Fault),
    #[error("the key {0:?} on the broker is no queue")]
    WrongKeyType(String),
}

impl Stall {
    fn word(&self) -> &'static str {
        match self {
            Self::Schedule(fault) => fault.word(),
            Self::UnknownQueue(_) => "UnknownQueue",
            Self::QueueNotOurs { .. } => "QueueOwnedElsewhere",
            Self::NotAccepted(_) => "JsonNotAccepted",
            Self::ReservedHeader(_) => "ReservedHeader",
            Self::Broker(_, fault) => fault.reason(),
            Self::WrongKeyType(_) => "WrongKeyType",
        }
    }
}

/// What the spec means, with the queue as it is now.
pub(crate) fn understand(ctx: &Context, task: &PeriodicTask) -> Result<Understood, Stall> {
    let timetable = Timetable::of(&task.spec, created(task)).map_err(Stall::Schedule)?;
    let template = &task.spec.task_template;
    let is_reserved = |name: &&String| OWN_HEADERS.contains(&name.as_str()) || name.starts_with("umbel_");
    if let Some(name) = template.headers.keys().find(is_reserved) {
        return Err(Stall::ReservedHeader(name.clone()));
    }
    let name = &template.queue_ref.name;
    let namespace = task.namespace().unwrap_or_default();
    let queue = ctx
        .queue(&namespace, name)
        .ok_or_else(|| Stall::UnknownQueue(name.clone()))?;
    if !queue.spec.accept.contains(&umbel_api::taskqueue::Serializer::Json) {
        return Err(Stall::NotAccepted(name.clone()));
    }
    let ready = queue.status.as_ref().and_then(|status| find(&status.conditions, READY));
    if let Some(ready) = ready.filter(|ready| ready.reason == "QueueOwnedElsewhere") {
        return Err(Stall::QueueNotOurs {
            name: name.clone(),
            why: ready.message.clone(),
        });
    }
    let source = ctx
        .brokers
        .source(&queue)
        .map_err(|fault| Stall::Broker(name.clone(), fault))?;
    Ok(Understood {
        timetable,
        policy: Policy::from(&task.spec),
        queue: queue.queue_name(),
        time_limit: queue.spec.time_limit.get(),
        steps: queue.spec.priority_steps.clone(),
        source,
    })
}

pub(crate) fn created(task: &PeriodicTask) -> Timestamp {
    task.creation_timestamp().map(|created| created.0).unwrap_or_default()
}

/// Which clusters a slot is for, and under which ids.
pub(crate) fn fan_out(ctx: &Context, task: &PeriodicTask, slot: Timestamp) -> Fanout {
    let candidates: Vec<Candidate> = match &task.spec.task_template.targets {
        None => Vec::new(),
        Some(_) => ctx
            .clusters(&task.namespace().unwrap_or_default())
            .iter()
            .map(|cluster| Candidate {
                name: cluster.name_any(),
                labels: cluster.labels().clone(),
                is_suspended: cluster.spec.suspend,
            })
            .collect(),
    };
    dispatches(&uid(task), slot, task.spec.task_template.targets.as_ref(), &candidates)
}

/// The messages of a slot.
pub(crate) fn messages(
    task: &PeriodicTask,
    understood: &Understood,
    slot: Timestamp,
    dispatches: &[Dispatch],
    now: Timestamp,
) -> Vec<SlotMessage> {
    let template = &task.spec.task_template;
    let expires = template
        .expires_after
        .and_then(|after| slot.checked_add(after.get()).ok());
    let queue = understood.queue.as_str();
    let limit = template.time_limit.map_or(understood.time_limit, umbel_api::Span::get);
    let kept = template.expires_after.map_or(UNIQUE_KEPT, umbel_api::Span::get) + limit;
    let run = run_id(&uid(task), slot).to_string();
    let (args, kwargs) = (Json::of(&template.args), Json::of(&template.kwargs));
    dispatches
        .iter()
        .map(|Dispatch { id, cluster }| {
            let mut headers: Vec<(String, Json)> = template
                .headers
                .iter()
                .map(|(name, value)| (name.clone(), Json::string(value)))
                .collect();
            headers.push(("umbel_run".into(), Json::string(&run)));
            headers.push(("umbel_order".into(), Json::of(&slot.as_millisecond())));
            headers.push((
                "umbel_sent_at".into(),
                Json::of(&(now.as_millisecond() as f64 / 1000.0)),
            ));
            headers.extend(
                cluster
                    .iter()
                    .map(|cluster| ("umbel_cluster".into(), Json::string(cluster))),
            );
            let unique = template.unique_key.as_ref().map(|key| match cluster {
                Some(cluster) => format!("{key}/{cluster}"),
                None => key.clone(),
            });
            headers.extend(unique.iter().map(|key| {
                let header = BTreeMap::from([("key", key.as_str()), ("until", Until::Done.name())]);
                ("umbel_unique".into(), Json::of(&header))
            }));
            let id = id.to_string();
            let message = NewTask {
                id: id.clone(),
                task: template.task.clone(),
                args: args.clone(),
                kwargs: kwargs.clone(),
                queue: queue.to_owned(),
                priority: template.priority,
                expires,
                sent_at: Some(now),
                time_limit: TimeLimit {
                    hard: template.time_limit.map(|limit| limit.get().as_secs_f64()),
                    soft: None,
                },
                origin: format!("beat@{}", task.name_any()),
                headers,
                ..NewTask::default()
            };
            SlotMessage {
                queue: queue.to_owned(),
                priority: template.priority,
                id,
                raw: message.encode(),
                unique: unique.map(|key| (key, kept)),
            }
        })
        .collect()
}

pub(crate) fn uid(task: &PeriodicTask) -> String {
    task.uid().unwrap_or_default()
}

/// Since when the slots of the present schedule count, noting it in the status.
pub(crate) fn in_force(task: &PeriodicTask, status: &mut PeriodicTaskStatus, now: Timestamp) -> Timestamp {
    let schedule = fingerprint(&task.spec);
    let since = match &status.effective {
        Some(effective) if effective.schedule == schedule => return effective.since.0,
        Some(_) => whole_seconds(now),
        None => whole_seconds(created(task)),
    };
    status.effective = Some(Effective {
        schedule,
        since: Time(since),
    });
    since
}

/// Notes a slot that was fired.
pub(crate) fn note_fired(status: &mut PeriodicTaskStatus, slot: Timestamp, total: usize) {
    status.runs += 1;
    status.last_run = Some(Run {
        slot: Time(slot),
        total: u32::try_from(total).unwrap_or(u32::MAX),
        succeeded: 0,
        failed: 0,
    });
    note_dealt_with(status, slot);
    if !status.active.contains(&Time(slot)) {
        status.active.push(Time(slot));
    }
    let surplus = status.active.len().saturating_sub(MOST_ACTIVE);
    status.active.drain(..surplus);
    status.active_runs = u32::try_from(status.active.len()).unwrap_or(u32::MAX);
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
    /// It can't fire until the broker answers.
    Waiting(&'a Fault),
    /// It can't fire until its queue has room.
    Full { queue: &'a str, most: u64 },
    /// It is held by its spec.
    Suspended,
    /// It fires next then, or never again.
    Scheduled(Option<Timestamp>),
}

/// Conditions and next slot.
pub(crate) fn stand(task: &PeriodicTask, status: &mut PeriodicTaskStatus, standing: &Standing<'_>, now: Timestamp) {
    let scheduled = match standing {
        Standing::Stalled(stall) => {
            Finding::new(SCHEDULED, false, stall.word(), "nothing fires until this is repaired")
        }
        Standing::Waiting(fault) => Finding::new(
            SCHEDULED,
            Status::Unknown,
            fault.reason(),
            format!("slots wait for the broker: {fault}"),
        ),
        Standing::Full { queue, most } => Finding::new(
            SCHEDULED,
            Status::Unknown,
            QUEUE_FULL,
            format!("slots wait for room in the queue {queue}, where {most} messages may wait (limits.maxLength)"),
        ),
        Standing::Suspended => Finding::new(SCHEDULED, false, "Suspended", "spec.suspend holds the schedule"),
        Standing::Scheduled(Some(_)) => {
            Finding::new(SCHEDULED, true, "Waiting", "status.nextScheduleTime is the next slot")
        }
        Standing::Scheduled(None) => Finding::new(SCHEDULED, false, "Completed", "no slot is left"),
    };
    let stalled = match standing {
        Standing::Stalled(stall) => Finding::new(STALLED, true, stall.word(), stall.to_string()),
        Standing::Waiting(_) | Standing::Full { .. } | Standing::Suspended | Standing::Scheduled(_) => {
            Finding::new(STALLED, false, "Understood", "the schedule is understood")
        }
    };
    let suspended = if task.spec.suspend {
        Finding::new(SUSPENDED, true, "Suspended", "spec.suspend is true")
    } else {
        Finding::new(SUSPENDED, false, "NotSuspended", "spec.suspend is false")
    };
    let generation = task.metadata.generation;
    status.observed_generation = generation;
    status.conditions = merge(&status.conditions, &[scheduled, stalled, suspended], generation, now);
    status.next_schedule_time = match standing {
        Standing::Scheduled(next) => next.map(Time),
        // It is still the next one, whenever that will be.
        Standing::Waiting(_) | Standing::Full { .. } => status.next_schedule_time.take(),
        Standing::Stalled(_) | Standing::Suspended => None,
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
    failpoint::reach_of("before-status", "PeriodicTask");
    let written = api.patch_status(&task.name_any(), &params, &Patch::Apply(body)).await;
    failpoint::reach_of("after-status", "PeriodicTask");
    let written = written?;
    ctx.metrics.wrote("patch", "periodictasks/status");
    Ok(written.resource_version().unwrap_or_default())
}
