//! `PeriodicTask`: what its spec means here and now, and what its status says.
//!
//! The loop that fires is [`crate::beat`]; this is what it asks of one object.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::{Map, Value, json};
use umbel_api::condition::{Finding, Status, find, merge, whole_seconds};
use umbel_api::names::MANAGER;
use umbel_api::names::periodic_condition::{FAILING, SCHEDULED, STALLED, SUSPENDED};
use umbel_api::names::queue_condition::READY;
use umbel_api::periodictask::{ArgFrom, Effective, Outcome, PastRun, Run, TaskTemplate};
use umbel_api::refs::ConfigMapKeyRef;
use umbel_api::{PeriodicTask, PeriodicTaskStatus};
use umbel_broker::{SlotMessage, Until};
use umbel_plan::cron::{ScheduleFault, Timetable, fingerprint};
use umbel_plan::fanout::{Candidate, Dispatch, Fanout, Occasion, dispatches};
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
    #[error("spec.taskTemplate.argsFrom: the argument {0:?} is in kwargs, too")]
    ArgumentTwice(String),
    #[error("spec.taskTemplate.argsFrom: there is no key {key} in a ConfigMap {name} of this namespace")]
    NoConfigMapKey { name: String, key: String },
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
            Self::ArgumentTwice(_) => "ArgumentTwice",
            Self::NoConfigMapKey { .. } => "NoConfigMapKey",
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
    let mut others = template.args_from.iter().map(|from| &from.name);
    if let Some(name) = others.find(|name| template.kwargs.contains_key(*name)) {
        return Err(Stall::ArgumentTwice(name.clone()));
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
        policy: Policy::of(&task.spec, &uid(task)),
        queue: queue.queue_name(),
        time_limit: queue.spec.time_limit.get(),
        steps: queue.spec.priority_steps.clone(),
        source,
    })
}

pub(crate) fn created(task: &PeriodicTask) -> Timestamp {
    task.creation_timestamp().map(|created| created.0).unwrap_or_default()
}

/// Which clusters a run is for, and under which ids.
pub(crate) fn fan_out(ctx: &Context, task: &PeriodicTask, occasion: Occasion) -> Fanout {
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
    let targets = task.spec.task_template.targets.as_ref();
    dispatches(&uid(task), occasion, targets, &candidates)
}

/// The named arguments of a task, with those that stand in ConfigMaps as they are now.
///
/// # Errors
/// The inner one where a ConfigMap has no such value.
pub(crate) async fn arguments(
    ctx: &Context,
    task: &PeriodicTask,
) -> Result<Result<Map<String, Value>, Stall>, kube::Error> {
    let template = &task.spec.task_template;
    let mut kwargs = template.kwargs.clone();
    let api: Api<ConfigMap> = Api::namespaced(ctx.client.clone(), &task.namespace().unwrap_or_default());
    for ArgFrom {
        name,
        config_map_key_ref,
        secret_key_ref: _, // The worker's.
    } in &template.args_from
    {
        let Some(ConfigMapKeyRef { name: map, key }) = config_map_key_ref else {
            continue;
        };
        let data = api.get_opt(map).await?.and_then(|found| found.data).unwrap_or_default();
        let Some(value) = data.get(key) else {
            return Ok(Err(Stall::NoConfigMapKey {
                name: map.clone(),
                key: key.clone(),
            }));
        };
        kwargs.insert(name.clone(), Value::String(value.clone()));
    }
    Ok(Ok(kwargs))
}

/// Which arguments the worker takes from Secrets.
fn from_secrets(template: &TaskTemplate) -> Option<Json> {
    let named = template.args_from.iter().filter_map(|from| {
        let secret = from.secret_key_ref.as_ref()?;
        Some(json!({ "arg": from.name, "secret": secret.name, "key": secret.key }))
    });
    let named: Vec<Value> = named.collect();
    (!named.is_empty()).then(|| Json::of(&named))
}

/// The messages of a run.
pub(crate) fn messages(
    task: &PeriodicTask,
    understood: &Understood,
    occasion: Occasion,
    dispatches: &[Dispatch],
    kwargs: &Map<String, Value>,
    now: Timestamp,
) -> Vec<SlotMessage> {
    let template = &task.spec.task_template;
    let slot = occasion.at();
    let expires = template
        .expires_after
        .and_then(|after| slot.checked_add(after.get()).ok());
    let queue = understood.queue.as_str();
    let limit = template.time_limit.map_or(understood.time_limit, umbel_api::Span::get);
    let kept = template.expires_after.map_or(UNIQUE_KEPT, umbel_api::Span::get) + limit;
    let run = occasion.run_id(&uid(task)).to_string();
    let (args, kwargs) = (Json::of(&template.args), Json::of(kwargs));
    let from_secrets = from_secrets(template);
    dispatches
        .iter()
        .map(|Dispatch { id, cluster }| {
            let mut headers: Vec<(String, Json)> = template
                .headers
                .iter()
                .map(|(name, value)| (name.clone(), Json::string(value)))
                .collect();
            headers.extend(from_secrets.iter().map(|from| ("umbel_args_from".into(), from.clone())));
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

/// Since when the slots of the present schedule count, noting it in the status. A changed spec begins to count failures
/// anew.
pub(crate) fn in_force(task: &PeriodicTask, status: &mut PeriodicTaskStatus, now: Timestamp) -> Timestamp {
    if status.observed_generation != task.metadata.generation {
        status.consecutive_failures = 0;
    }
    let schedule = fingerprint(&task.spec, is_paused(task, status));
    let since = match &status.effective {
        Some(effective) if effective.schedule == schedule => return effective.since.0,
        Some(_) => whole_seconds(now),
        // The creation itself is a slot then.
        None if task.spec.run_on_create => whole_seconds(created(task)) - SignedDuration::from_secs(1),
        None => whole_seconds(created(task)),
    };
    status.effective = Some(Effective {
        schedule,
        since: Time(since),
    });
    since
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
    /// It can't fire until the broker answers.
    Waiting(&'a Fault),
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
    let failing = match (status.consecutive_failures, status.recent.is_empty()) {
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
    failpoint::reach_of("before-status", "PeriodicTask");
    let written = api.patch_status(&task.name_any(), &params, &Patch::Apply(body)).await;
    failpoint::reach_of("after-status", "PeriodicTask");
    let written = written?;
    ctx.metrics.wrote("patch", "periodictasks/status");
    Ok(written.resource_version().unwrap_or_default())
}
