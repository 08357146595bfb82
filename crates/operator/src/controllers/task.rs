//! `Task`: one run, sent once.
//!
//! # Guarantees
//! Its messages are sent exactly once as long as the broker keeps its acknowledged writes: the mark on the broker is the
//! schedule's, with the object's creation as its only slot. If the broker loses them, they are sent again under the same ids.
//!
//! # What a crash leaves
//! Before `fire`: nothing, the next leader sends. After it: the mark, by which the next leader goes on.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Preconditions};
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use tokio_util::sync::CancellationToken;
use umbel_api::condition::{Finding, Status, find, merge, whole_seconds};
use umbel_api::names::task_condition::{STALLED, SUCCEEDED};
use umbel_api::task::Phase;
use umbel_api::{Task, TaskQueue, TaskStatus};
use umbel_broker::{FireAnswer, ResultStore, RunState, Slot};
use umbel_plan::fanout::Occasion;
use umbel_telemetry::chain;

use crate::apply;
use crate::brokers::Awaited;
use crate::context::Context;
use crate::failpoint;
use crate::send::{Address, Halt, Progress, Sender, Stall, address, redis_time};

/// Wait after something did not work that may work at once.
const SOON: Duration = Duration::from_millis(250);
/// … and after what a person must repair, so that it goes on within 5 s.
const REPAIRED: Duration = Duration::from_secs(3);
/// A run is looked after when it is older by a quarter, between these.
const FOLLOW: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// What was sent less than this ago may be on its way between two places.
const YOUNG: SignedDuration = SignedDuration::from_secs(5);
/// The mark of what has ended stays on the broker for so long.
const KEPT: Duration = Duration::from_secs(3600);
/// Characters of a result in status.
const PREVIEW: usize = 1024;

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The status could not be written.
    #[error("write status of task {0}")]
    WriteStatus(String, #[source] kube::Error),
    /// The object could not be deleted when its time had come.
    #[error("delete task {0}")]
    Delete(String, #[source] kube::Error),
}

/// Reconciles the tasks of a scope until `stop`.
pub async fn run(ctx: Arc<Context>, scope: usize, stop: CancellationToken) {
    let here = &ctx.scopes[scope];
    let own = here.tasks.wakes(|task: &Task| vec![ObjectRef::from_obj(task)]);
    let near = here.tasks.store.clone();
    let by_queue = here.queues.wakes(move |queue: &TaskQueue| {
        let (namespace, name) = (queue.namespace(), queue.name_any());
        let waits = |task: &Task| {
            task.metadata.namespace == namespace
                && task.spec.task_template.queue_ref.name == name
                && task.status.as_ref().is_none_or(|status| status.phase == Phase::Pending)
        };
        let tasks = near.state_filter(waits);
        tasks.iter().map(|task| ObjectRef::from_obj(task.as_ref())).collect()
    });
    let store = here.tasks.store.clone();
    let wakes = futures::stream::select(own, by_queue).boxed();
    super::drive("task", store, wakes, ctx.clone(), reconcile, stop).await;
}

async fn reconcile(task: Arc<Task>, ctx: Arc<Context>) -> Result<Action, Error> {
    let Some(term) = ctx.leader.term() else {
        return Ok(Action::requeue(FOLLOW.1));
    };
    let old = task.status.clone().unwrap_or_default();
    if task.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    if old.phase.is_final() && old.observed_generation == task.metadata.generation {
        return expire(&ctx, &task, &old).await;
    }
    let now = Timestamp::now();
    let mut status = old.clone();
    let wait = if old.phase.is_final() {
        Duration::ZERO // Only what is said of it changes.
    } else {
        match address(&ctx, &task.namespace().unwrap_or_default(), &task.spec.task_template) {
            Ok(address) => go_on(&ctx, &task, &address, term, &mut status).await,
            Err(_) if task.spec.cancel && status.start_time.is_none() => {
                end(&mut status, Phase::Cancelled, now);
                stand(&task, &mut status, &Standing::Fine, now);
                Duration::ZERO
            }
            Err(stall) => {
                stand(&task, &mut status, &Standing::Stalled(&stall), now);
                REPAIRED
            }
        }
    };
    if status.observed_generation != task.metadata.generation {
        stand(&task, &mut status, &Standing::Fine, now);
    }
    tell(&ctx, &task, &old, &status).await;
    let written = apply::status(&ctx.client, &*task, task.status.as_ref(), &status).await;
    match written {
        Ok(true) => ctx.metrics.wrote("patch", "tasks/status"),
        Ok(false) => {}
        // It has changed meanwhile, or is gone: the watch tells.
        Err(error) if matches!(apply::code(&error), Some(404 | 409)) => return Ok(Action::requeue(SOON)),
        Err(error) => return Err(Error::WriteStatus(task.name_any(), error)),
    }
    if status.phase.is_final() {
        forget(&ctx, &task, term).await;
        return expire(&ctx, &task, &status).await;
    }
    Ok(Action::requeue(wait))
}

/// What ended, and is known to have, leaves no mark on the broker for long.
async fn forget(ctx: &Context, task: &Task, term: u64) {
    let address = address(ctx, &task.namespace().unwrap_or_default(), &task.spec.task_template);
    let broker = address
        .ok()
        .and_then(|address| ctx.brokers.writable(&address.source, term).ok());
    let uid = task.uid().unwrap_or_default();
    let Some(broker) = broker else { return };
    let closed = failpoint::around("forget", broker.close_slots(ctx.leader.install(), &uid, KEPT)).await;
    if let Err(error) = closed {
        tracing::debug!(task = task.name_any(), error = %chain(&error), "its mark stays longer");
    }
}

/// Deletes what ended long enough ago; answers when that will be.
async fn expire(ctx: &Context, task: &Task, status: &TaskStatus) -> Result<Action, Error> {
    let (Some(ttl), Some(ended)) = (task.spec.ttl_seconds_after_finished, &status.finish_time) else {
        return Ok(Action::await_change());
    };
    let due = ended.0.saturating_add(SignedDuration::from_secs(ttl.into()));
    let left = Duration::try_from(due.unwrap_or(Timestamp::MAX).duration_since(Timestamp::now())).unwrap_or_default();
    if !left.is_zero() {
        return Ok(Action::requeue(left));
    }
    let api: Api<Task> = Api::namespaced(ctx.client.clone(), &task.namespace().unwrap_or_default());
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: task.uid(),
            resource_version: None,
        }),
        ..DeleteParams::background()
    };
    let deleted = failpoint::around("expire", api.delete(&task.name_any(), &params)).await;
    ctx.metrics.wrote("delete", "tasks");
    match deleted {
        Err(error) if !matches!(apply::code(&error), Some(404 | 409)) => Err(Error::Delete(task.name_any(), error)),
        Ok(_) | Err(_) => Ok(Action::await_change()),
    }
}

/// Sends what is to be sent, and looks how it fares; answers when to look again.
async fn go_on(ctx: &Context, task: &Task, address: &Address, term: u64, status: &mut TaskStatus) -> Duration {
    let view = ctx.brokers.view(&address.source);
    if let Some(fault) = &view.fault {
        stand(
            task,
            status,
            &Standing::Waiting(&Awaited::end_of(fault)),
            Timestamp::now(),
        );
        return SOON;
    }
    let (Ok(broker), Some(now)) = (ctx.brokers.writable(&address.source, term), view.now()) else {
        // Not contacted yet, or not told our term.
        return SOON;
    };
    let work = Work {
        ctx,
        task,
        address,
        sender: Sender {
            ctx,
            namespace: task.namespace().unwrap_or_default(),
            uid: task.uid().unwrap_or_default(),
            origin: format!("task@{}", task.name_any()),
            term,
            broker: broker.with_steps(&address.steps),
        },
        occasion: Occasion::Slot(task.creation_timestamp().map_or(now, |created| created.0)),
    };
    match work.look(now, status).await {
        Ok(wait) => {
            stand(task, status, &Standing::Fine, now);
            wait
        }
        Err(Halt::Broker(error)) => {
            tracing::warn!(task = task.name_any(), error = %chain(&error), "task not looked after: the broker did not answer");
            if let Some(awaited) = Awaited::after(&error) {
                stand(task, status, &Standing::Waiting(&awaited), now);
            }
            SOON
        }
        Err(Halt::Api(error)) => {
            tracing::warn!(task = task.name_any(), error = %chain(&error), "task not sent: its arguments could not be read");
            REPAIRED
        }
        Err(Halt::Again(wait)) => wait,
        Err(Halt::Full { queue, most }) => {
            stand(task, status, &Standing::Full { queue: &queue, most }, now);
            REPAIRED
        }
        Err(Halt::Stall(stall)) => {
            stand(task, status, &Standing::Stalled(&stall), now);
            REPAIRED
        }
    }
}

struct Work<'a> {
    ctx: &'a Context,
    task: &'a Task,
    address: &'a Address,
    sender: Sender<'a>,
    occasion: Occasion,
}

impl Work<'_> {
    async fn look(&self, now: Timestamp, status: &mut TaskStatus) -> Result<Duration, Halt> {
        let Sender { broker, uid, .. } = &self.sender;
        let is_sent = broker.last_slot(self.ctx.leader.install(), uid).await?.is_some();
        if !is_sent {
            if self.task.spec.cancel {
                end(status, Phase::Cancelled, now);
                return Ok(Duration::ZERO);
            }
            if status.start_time.is_some() {
                let note = "the broker has lost this task; it is sent again under the same ids".to_owned();
                self.ctx
                    .event(self.task, EventType::Warning, "BrokerDataLost", note)
                    .await;
            }
            if !self.fire(now, status).await? {
                return Ok(Duration::ZERO);
            }
        }
        let Some(progress) = self.sender.advance(self.occasion, now).await? else {
            end(status, Phase::Lost, now);
            return Ok(Duration::ZERO);
        };
        let is_good = progress.is_good();
        let Progress {
            run,
            clusters,
            has_plan,
        } = progress;
        note(status, &run, now);
        status.task_id = (!has_plan).then(|| self.occasion.id(uid, "", None).to_string());
        status.clusters = clusters;
        if run.is_over() {
            // Of nothing but tasks whose unique keys others had, nothing was sent.
            let is_good = is_good && run.total > 0;
            let phase = match is_good {
                true => Phase::Succeeded,
                // Nobody could say so when it was cancelled: a leader that ended, a status that was not written.
                false if self.task.spec.cancel => Phase::Cancelled,
                false => Phase::Failed,
            };
            end(status, phase, ended(&run, now));
            status.result_preview = self.preview(status.task_id.as_deref()).await?;
            self.sender.close(self.occasion).await?;
            return Ok(Duration::ZERO);
        }
        if self.task.spec.cancel {
            self.sender.cancel(self.occasion, "cancelled").await?;
            if let Some(Progress { run, clusters, .. }) = self.sender.advance(self.occasion, now).await? {
                note(status, &run, now);
                status.clusters = clusters;
            }
            end(status, Phase::Cancelled, now);
            return Ok(Duration::ZERO);
        }
        status.phase = Phase::Running;
        let since = status.start_time.as_ref().map_or(now, |since| since.0);
        let age = now.duration_since(since);
        if age > YOUNG && !run.open.is_empty() && self.is_lost().await? {
            end(status, Phase::Lost, now);
            return Ok(Duration::ZERO);
        }
        let pace = (Duration::try_from(age).unwrap_or_default() / 4).clamp(FOLLOW.0, FOLLOW.1);
        Ok(if has_plan { FOLLOW.0 } else { pace })
    }

    /// Sends the first messages; false where there is nothing to send, and never will be.
    async fn fire(&self, now: Timestamp, status: &mut TaskStatus) -> Result<bool, Halt> {
        let Self {
            ctx,
            task,
            address,
            sender,
            occasion,
        } = self;
        let beginning = sender.begin(&task.spec.task_template).await?;
        let left_out = |names: &str, why: &str| format!("leaves out {names}: {why}");
        beginning.tell(ctx, *task, left_out).await;
        let (messages, kept) = match sender.first(&beginning.plan, address, *occasion, now, status.start_time.is_some())
        {
            Ok(first) => first,
            Err(nothing) => {
                let note = format!("nothing was sent: {}", nothing.why);
                ctx.event(*task, EventType::Warning, "NoClusters", note).await;
                status.clusters = Some(nothing.clusters);
                end(status, Phase::Failed, now);
                return Ok(false);
            }
        };
        if ctx.leader.term() != Some(sender.term) {
            return Err(Halt::Again(SOON));
        }
        let record = Slot {
            install: ctx.leader.install().to_owned(),
            term: sender.term,
            uid: sender.uid.clone(),
            at_ms: occasion.at().as_millisecond(),
            generation: task.metadata.generation.unwrap_or_default(),
            run: Some(occasion.run_id(&sender.uid).to_string()),
            counts: (0, 0),
            plan: kept,
        };
        let answer = failpoint::around("fire", sender.broker.fire(&record, &messages)).await;
        match answer? {
            FireAnswer::Fired { left_out } if left_out == messages.len() => {
                let note = "nothing was sent: another task has its unique key".to_owned();
                ctx.event(*task, EventType::Warning, "NothingSent", note).await;
                end(status, Phase::Failed, now);
                return Ok(false);
            }
            FireAnswer::Fired { left_out } => {
                tracing::info!(
                    task = task.name_any(),
                    messages = messages.len() - left_out,
                    left_out,
                    "task sent"
                );
            }
            FireAnswer::Duplicate { .. } => {}
            FireAnswer::Stale { .. } => return Err(Halt::Again(SOON)),
            FireAnswer::NotYet { now_ms } => {
                let wait = u64::try_from(occasion.at().as_millisecond() - now_ms).unwrap_or(0);
                return Err(Halt::Again(Duration::from_millis(wait + 1)));
            }
            FireAnswer::WrongType { key } => return Err(Halt::Stall(Stall::WrongKeyType(key))),
            FireAnswer::Full { queue, most } => return Err(Halt::Full { queue, most }),
        }
        Ok(true)
    }

    /// Nothing is left of it on the broker, and it did not end before that was seen.
    async fn is_lost(&self) -> Result<bool, Halt> {
        if !self.sender.is_empty(&self.address.queue).await? {
            return Ok(false);
        }
        let id = self.occasion.run_id(&self.sender.uid).to_string();
        Ok(self
            .sender
            .broker
            .run(&id)
            .await?
            .is_none_or(|run| !run.open.is_empty()))
    }

    /// The beginning of the result, where it is JSON beside the queue.
    async fn preview(&self, id: Option<&str>) -> Result<Option<String>, Halt> {
        let Some(id) = id else { return Ok(None) };
        let store = ResultStore::of(&self.sender.broker);
        let found = store.documents(&[id.to_owned()]).await?;
        let document = found.into_iter().flatten().next();
        let document: Option<serde_json::Value> = document.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let result = document.as_ref().and_then(|document| document.get("result"));
        Ok(result.map(|result| result.to_string().chars().take(PREVIEW).collect()))
    }
}

fn note(status: &mut TaskStatus, run: &RunState, now: Timestamp) {
    status.attempts = u32::try_from(run.total + run.retries).unwrap_or(u32::MAX);
    status.start_time.get_or_insert(Time(whole_seconds(now)));
}

fn ended(run: &RunState, now: Timestamp) -> Timestamp {
    run.settled_at.and_then(redis_time).unwrap_or(now)
}

fn end(status: &mut TaskStatus, phase: Phase, at: Timestamp) {
    status.phase = phase;
    status.finish_time = Some(Time(whole_seconds(at)));
}

/// How it stands with a task.
enum Standing<'a> {
    /// It can't go on until a person repairs something.
    Stalled(&'a Stall),
    /// It can't go on until the broker answers, or takes writes.
    Waiting(&'a Awaited),
    /// It can't go on until its queue has room.
    Full { queue: &'a str, most: u64 },
    /// It goes on, or has ended.
    Fine,
}

fn stand(task: &Task, status: &mut TaskStatus, standing: &Standing<'_>, now: Timestamp) {
    let stalled = match standing {
        Standing::Stalled(stall) => Finding::new(STALLED, true, stall.word(), stall.to_string()),
        Standing::Waiting(awaited) => Finding::new(
            STALLED,
            false,
            awaited.reason,
            format!("it waits for the broker{}", awaited.words),
        ),
        Standing::Full { queue, most } => Finding::new(
            STALLED,
            false,
            "QueueFull",
            format!("it waits for room in the queue {queue}, where {most} messages may wait (limits.maxLength)"),
        ),
        Standing::Fine => Finding::new(STALLED, false, "Understood", "the task is understood"),
    };
    let succeeded = match status.phase {
        Phase::Pending => Finding::new(SUCCEEDED, Status::Unknown, "Pending", "nothing was sent yet"),
        Phase::Running => Finding::new(SUCCEEDED, Status::Unknown, "Running", "it was sent and has not ended"),
        Phase::Succeeded => Finding::new(SUCCEEDED, true, "Succeeded", "all its tasks have succeeded"),
        Phase::Failed => Finding::new(SUCCEEDED, false, "Failed", "not all its tasks have succeeded"),
        Phase::Cancelled => Finding::new(SUCCEEDED, false, "Cancelled", "it was cancelled (spec.cancel)"),
        Phase::Lost => Finding::new(
            SUCCEEDED,
            false,
            "Lost",
            "the broker holds nothing of it any more, and it is not known how it ended",
        ),
    };
    status.observed_generation = task.metadata.generation;
    status.conditions = merge(&status.conditions, &[succeeded, stalled], task.metadata.generation, now);
}

/// An Event when a task stalls, and when it ends badly.
async fn tell(ctx: &Context, task: &Task, old: &TaskStatus, new: &TaskStatus) {
    let stalled = |status: &TaskStatus| {
        find(&status.conditions, STALLED)
            .filter(|stalled| stalled.status == "True")
            .map(|stalled| (stalled.reason.clone(), stalled.message.clone()))
    };
    if let (before, Some((reason, message))) = (stalled(old), stalled(new))
        && before.is_none_or(|(before, _)| before != reason)
    {
        ctx.event(task, EventType::Warning, &reason, message).await;
    }
    if old.phase != new.phase && new.phase.is_final() {
        let kind = if new.phase == Phase::Succeeded {
            EventType::Normal
        } else {
            EventType::Warning
        };
        let said = find(&new.conditions, SUCCEEDED);
        if let Some(said) = said {
            ctx.event(task, kind, &said.reason, said.message.clone()).await;
        }
    }
}
