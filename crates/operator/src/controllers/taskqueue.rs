//! `TaskQueue`: whose it is, whether its broker answers, and how full it is.
//!
//! Nothing is done to the messages of a queue here. What it allows its workers is set at its broker, and lifted when the
//! object is deleted; nobody waits for that. The status is written at once when a condition turns, and at most every 15 s when
//! only numbers changed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use umbel_api::TaskQueue;
use umbel_api::condition::find;
use umbel_api::names::queue_condition::READY;
use umbel_api::taskqueue::{Depth, QueueRate, TaskQueueStatus};
use umbel_broker::{Broker, QueueDepth, QueuePolicy, Rate};
use umbel_plan::queue::{BrokerFacts, Claim, Eviction, Seen, Worth, owner_before, status, worth};
use umbel_telemetry::chain;

use crate::apply;
use crate::brokers::{Sample, View};
use crate::context::Context;

/// A look without a wake: who owns a queue also depends on brokers whose samples wake others.
const LOOK: Duration = Duration::from_secs(10);

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The status could not be written.
    #[error("write status of taskqueue {0}")]
    WriteStatus(String, #[source] kube::Error),
}

/// When this leader last wrote the status of a queue, by uid.
type Written = Mutex<HashMap<String, Instant>>;

/// Reconciles the queues of one scope until `stop`.
pub async fn run(ctx: Arc<Context>, scope: usize, stop: CancellationToken) {
    let watched = &ctx.scopes[scope].queues;
    let all = ctx.clone();
    // A queue that comes or goes concerns all that claim the same name on a broker.
    let siblings = watched.wakes(move |changed: &TaskQueue| {
        let name = changed.queue_name();
        let namespace = changed.namespace().unwrap_or_default();
        if all.queue(&namespace, &changed.name_any()).is_none() {
            all.metrics.forget_queue(&namespace, &changed.name_any());
            lift(&all, changed);
        }
        let claimants = all.queues().into_iter().filter(|queue| queue.queue_name() == name);
        claimants
            .map(|queue| ObjectRef::from_obj(queue.as_ref()))
            .chain([ObjectRef::from_obj(changed)])
            .collect()
    });
    let everyone = ctx.clone();
    let sampled = stream::unfold(ctx.brokers.wakes(), |mut wakes| async move {
        match wakes.recv().await {
            Ok(source) => Some((Some(source), wakes)),
            Err(RecvError::Lagged(_)) => Some((None, wakes)),
            Err(RecvError::Closed) => None,
        }
    })
    .flat_map(move |source| {
        let concerned = everyone.queues().into_iter().filter(|queue| {
            source
                .as_ref()
                .is_none_or(|source| everyone.brokers.source(queue).as_ref() == Ok(source))
        });
        stream::iter(
            concerned
                .map(|queue| ObjectRef::from_obj(queue.as_ref()))
                .collect::<Vec<_>>(),
        )
    });
    let store = watched.store.clone();
    let written = Arc::new(Written::default());
    let reconcile = move |queue, ctx| reconcile(queue, ctx, written.clone());
    super::drive(
        "taskqueue",
        store,
        stream::select(siblings, sampled).boxed(),
        ctx.clone(),
        reconcile,
        stop,
    )
    .await;
}

async fn reconcile(queue: Arc<TaskQueue>, ctx: Arc<Context>, written: Arc<Written>) -> Result<Action, Error> {
    if ctx.leader.term().is_none() {
        return Ok(Action::requeue(LOOK));
    }
    let seen = seen(&ctx, &queue);
    let claims: Vec<Claim> = ctx.queues().iter().filter_map(|queue| claim(&ctx, queue)).collect();
    let owner = claim(&ctx, &queue).and_then(|mine| owner_before(&mine, &claims));
    let old = queue.status.clone().unwrap_or_default();
    let namespace = queue.namespace().unwrap_or_default();
    if let (Seen::Answer { depth: Ok(depth), .. }, None) = (&seen, owner) {
        ctx.metrics.queue(&namespace, &queue.name_any(), depth);
    }
    if owner.is_none() {
        allow(&ctx, &queue).await;
    }
    let new = status(
        &old,
        &seen,
        owner,
        &namespace,
        queue.metadata.generation,
        Timestamp::now(),
    );
    let uid = queue.uid().unwrap_or_default();
    let since = written
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(&uid)
        .map(Instant::elapsed);
    match worth(&old, &new, since) {
        Worth::Never => return Ok(Action::requeue(LOOK)),
        Worth::After(rest) => return Ok(Action::requeue(rest)),
        Worth::Now => {}
    }
    apply::status(&ctx.client, queue.as_ref(), queue.status.as_ref(), &new)
        .await
        .map_err(|source| Error::WriteStatus(format!("{namespace}/{}", queue.name_any()), source))?;
    ctx.metrics.wrote("patch", "taskqueues/status");
    written
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(uid, Instant::now());
    tell(&ctx, &queue, &old, &new).await;
    Ok(Action::requeue(LOOK))
}

/// Puts what the queue allows all its workers where they read it. What fails is done at the next look.
async fn allow(ctx: &Context, queue: &TaskQueue) {
    let Ok(source) = ctx.brokers.source(queue) else { return };
    let View {
        broker: Some(broker),
        sample: Some(_), // Then the broker knows this leader's term.
        fault: None,
        ..
    } = ctx.brokers.view(&source)
    else {
        return;
    };
    let limits = queue.spec.limits.clone().unwrap_or_default();
    let rate = limits.rate.map(|QueueRate { count, period, burst }| match burst {
        Some(burst) => Rate::new(count, period.get(), burst),
        None => Rate::even(count, period.get()),
    });
    let rate = match rate.transpose() {
        Ok(rate) => rate,
        Err(err) => return tracing::warn!(queue = %queue.name_any(), error = %chain(&err), "rate not applied"),
    };
    let policy = QueuePolicy {
        is_paused: queue.spec.paused,
        max_in_flight: limits.max_in_flight,
        rate,
    };
    match broker.apply_queue_policy(&queue.queue_name(), &policy).await {
        Ok(false) => {}
        Ok(true) => tracing::info!(queue = %queue.name_any(), ?policy, "what the queue allows is set at its broker"),
        Err(err) => {
            tracing::warn!(queue = %queue.name_any(), error = %chain(&err), "what the queue allows is set later");
        }
    }
}

/// Lifts what a deleted queue allowed its workers, or nobody would know why they take nothing. Of two objects for one
/// queue the other one says what it allows.
fn lift(ctx: &Context, gone: &TaskQueue) {
    if ctx.leader.term().is_none() {
        return;
    }
    let (name, queue) = (gone.name_any(), gone.queue_name());
    // Looked up here and not by the task: nobody asks this broker any more when this was its last queue.
    let broker = ctx
        .brokers
        .source(gone)
        .ok()
        .and_then(|source| ctx.brokers.view(&source).broker);
    let (Some(broker), Some(mine)) = (broker, claim(ctx, gone)) else {
        return tracing::warn!(
            queue = %name,
            "deleted while its broker is away: what it allowed its workers stays there"
        );
    };
    let is_same = |other: Claim| other.broker == mine.broker && other.queue == mine.queue;
    if ctx.queues().iter().filter_map(|other| claim(ctx, other)).any(is_same) {
        return;
    }
    tokio::spawn(async move {
        match broker.lift_queue_policy(&queue).await {
            Ok(false) => {}
            Ok(true) => tracing::info!(queue = %name, "deleted: what it allowed its workers is lifted at its broker"),
            Err(err) => {
                tracing::warn!(queue = %name, error = %chain(&err), "deleted: what it allowed its workers stays at its broker");
            }
        }
    });
}

/// An Event when a queue becomes ready or stops being so.
async fn tell(ctx: &Context, queue: &TaskQueue, old: &TaskQueueStatus, new: &TaskQueueStatus) {
    let (before, now) = (find(&old.conditions, READY), find(&new.conditions, READY));
    let Some(now) = now.filter(|now| before.map(|before| &before.reason) != Some(&now.reason)) else {
        return;
    };
    let kind = match now.status.as_str() {
        "False" => EventType::Warning,
        // That a broker was not asked yet is no news.
        "Unknown" => return,
        _ => EventType::Normal,
    };
    ctx.event(queue, kind, &now.reason, now.message.clone()).await;
}

fn seen(ctx: &Context, queue: &TaskQueue) -> Seen {
    let fault = |fault: &crate::brokers::Fault| Seen::Fault {
        reason: fault.reason().to_owned(),
        why: fault.to_string(),
    };
    let source = match ctx.brokers.source(queue) {
        Ok(source) => source,
        Err(found) => return fault(&found),
    };
    let View {
        fault: found,
        sample,
        broker,
        ..
    } = ctx.brokers.view(&source);
    match (found, sample) {
        (Some(found), _) => fault(&found),
        (None, None) => Seen::Nothing,
        (None, Some(sample)) => match sample.queues.get(&queue.queue_name()) {
            // Created after the latest sample.
            None => Seen::Nothing,
            Some(Ok(found)) => Seen::Answer {
                at: sample.taken_at,
                depth: Ok(depth(found)),
                broker: facts(broker.as_ref(), &sample),
            },
            Some(Err(fault)) => Seen::Answer {
                at: sample.taken_at,
                depth: Err(format!(
                    "the key {:?} is not what a queue's must be: {}",
                    fault.key, fault.reason
                )),
                broker: facts(broker.as_ref(), &sample),
            },
        },
    }
}

/// What the status says of the broker.
fn facts(broker: Option<&Broker>, sample: &Sample) -> BrokerFacts {
    let mut facts = BrokerFacts::default();
    facts.seen.server = broker.map(Broker::server).unwrap_or_default();
    facts.seen.data_set.clone_from(&sample.generation);
    if let Some(survey) = &sample.survey {
        facts.seen.version = format!("{} {}", survey.software, survey.version);
        facts.seen.durability = survey.durability.map(|level| level.word().to_owned());
        facts.seen.weaknesses = survey.weaknesses.iter().map(|&weakness| weakness.to_owned()).collect();
        facts.eviction = survey.eviction_risk().map_or(Eviction::Never, Eviction::Risk);
    }
    facts
}

fn depth(found: &QueueDepth) -> Depth {
    Depth {
        waiting: found.waiting + found.suspect,
        in_flight: found.in_flight,
        delayed: found.delayed,
        dead: found.dead,
        quarantined: found.quarantine,
    }
}

/// The claim of a queue whose broker was seen. Without that nobody can tell whether two URLs mean one server.
fn claim(ctx: &Context, queue: &TaskQueue) -> Option<Claim> {
    let source = ctx.brokers.source(queue).ok()?;
    let View { broker, sample, .. } = ctx.brokers.view(&source);
    let generation = sample?.generation.clone();
    let broker = if generation.is_empty() {
        // No worker has ever said hello there: the address has to do.
        format!("{} {}", broker?.server(), source.prefix)
    } else {
        generation
    };
    Some(Claim {
        broker,
        queue: queue.queue_name(),
        created: queue.creation_timestamp().map(|created| created.0).unwrap_or_default(),
        namespace: source.namespace,
        name: queue.name_any(),
    })
}
