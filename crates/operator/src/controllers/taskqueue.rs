//! `TaskQueue`: whose it is, whether its broker answers, and how full it is.
//!
//! What it allows its workers and producers is set at its broker, and lifted when the object is deleted; nobody waits for
//! that. Messages are touched in two cases only: what waits beyond `limits.maxLength` goes to the dead letters, and with
//! `deletionPolicy: Purge` what is there is removed before the object is gone: a finalizer waits for that. The status is
//! written at once when a condition turns, and at most every 15 s when only numbers changed.

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
use umbel_api::names::queue_condition::{BACKLOGGED, BROKER_DATA_LOST, DEAD_LETTER_GROWING, PAUSED, READY};
use umbel_api::taskqueue::{Depth, OnFull, QueueRate, Step, TaskQueueStatus};
use umbel_broker::{Bound, Broker, QueueDepth, QueuePolicy, Rate, Relieved};
use umbel_plan::queue::{
    About, BrokerFacts, Claim, Eviction, Found, Seen, Worth, owner_before, presumed_owner, status, worth,
};
use umbel_telemetry::chain;

use crate::apply;
use crate::brokers::{Sample, View, Wake};
use crate::context::Context;
use crate::{failpoint, flow};

/// Calls in one look that move what is too much, of about 256 KiB each.
const RELIEVES: usize = 40;
/// After a write that met a newer object: the watch is about to bring it.
const SOON: Duration = Duration::from_millis(100);
/// A look without a wake: who owns a queue also depends on brokers whose samples wake others.
const LOOK: Duration = Duration::from_secs(10);

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The status could not be written.
    #[error("write status of taskqueue {0}")]
    WriteStatus(String, #[source] kube::Error),
    /// The finalizer could not be set or removed.
    #[error("write the finalizers of taskqueue {0}")]
    WriteFinalizers(String, #[source] kube::Error),
    /// The messages could not be removed.
    #[error("remove the messages of taskqueue {0}")]
    Purge(String, #[source] umbel_broker::Error),
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
            Ok(wake) => Some((Some(wake), wakes)),
            Err(RecvError::Lagged(_)) => Some((None, wakes)),
            Err(RecvError::Closed) => None,
        }
    })
    .flat_map(move |wake: Option<Wake>| {
        let concerned = everyone.queues().into_iter().filter(|queue| {
            wake.as_ref().is_none_or(|Wake { source, changed }| {
                changed.has_queue(&queue.queue_name()) && everyone.brokers.source(queue).as_ref() == Ok(source)
            })
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
    let mut seen = seen(&ctx, &queue);
    let old = queue.status.clone().unwrap_or_default();
    let namespace = queue.namespace().unwrap_or_default();
    let mine = claim(&ctx, &queue);
    let (mut claims, mut unseen) = (Vec::new(), Vec::new());
    let name = queue.queue_name();
    // Those of other names claim something else.
    for other in ctx.all_queues().iter().filter(|other| other.queue_name() == name) {
        let seen = claim(&ctx, other);
        if (seen.is_none() || mine.is_none()) && ctx.brokers.source(other).is_ok() {
            unseen.push(claim_on(String::new(), other));
        }
        claims.extend(seen);
    }
    let owner = mine.as_ref().and_then(|mine| owner_before(mine, &claims));
    let is_owned_elsewhere = owner.is_some();
    let owner = owner.or_else(|| presumed_owner(&old, &claim_on(String::new(), &queue), &unseen));
    if super::queue_purge::settle(&ctx, &queue, is_owned_elsewhere).await? {
        // What it said is lifted when it is gone.
        return Ok(Action::requeue(LOOK));
    }
    if let (Seen::Answer { queue: Ok(found), .. }, None) = (&seen, owner) {
        ctx.metrics.queue(&namespace, &queue.name_any(), &found.depth);
    }
    if owner.is_none()
        && allow(&ctx, &queue).await
        && let Seen::Answer { queue: Ok(found), .. } = &mut seen
    {
        // The sample is older than this.
        found.is_paused = queue.spec.paused;
    }
    let most = queue.spec.limits.as_ref().and_then(|limits| limits.max_length);
    let is_over = |found: &Found| most.is_some_and(|most| waiting(&found.depth) > most);
    if owner.is_none()
        && let Seen::Answer { queue: Ok(found), .. } = &seen
        && is_over(found)
    {
        relieve(&ctx, &queue).await;
    }
    let about = About {
        namespace: &namespace,
        generation: queue.metadata.generation,
        is_paused: queue.spec.paused,
        most,
        time_zone: &queue.spec.time_zone,
        // Else it would have been gone above.
        waits_to_purge: queue.metadata.deletion_timestamp.is_some(),
    };
    let new = status(&old, &seen, owner, &about, Timestamp::now());
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
    match apply::status(&ctx.client, queue.as_ref(), queue.status.as_ref(), &new).await {
        Ok(_) => {}
        // The object changed since: the watch brings it, and then it is written.
        Err(error) if matches!(apply::code(&error), Some(404 | 409)) => return Ok(Action::requeue(SOON)),
        Err(source) => return Err(Error::WriteStatus(format!("{namespace}/{}", queue.name_any()), source)),
    }
    ctx.metrics.wrote("patch", "taskqueues/status");
    written
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(uid, Instant::now());
    tell(&ctx, &queue, &old, &new).await;
    Ok(Action::requeue(LOOK))
}

/// The broker of a queue, where it answers and knows this leader's term.
pub(crate) fn broker_of(ctx: &Context, queue: &TaskQueue) -> Option<Broker> {
    let source = ctx.brokers.source(queue).ok()?;
    match ctx.brokers.view(&source) {
        View {
            broker: Some(broker),
            sample: Some(_), // Then it knows the term.
            fault: None,
            ..
        } => Some(broker.with_steps(&queue.spec.priority_steps)),
        _ => None,
    }
}

/// Moves what waits beyond the queue's bound to the dead letters: a bounded part, and more at the next look.
async fn relieve(ctx: &Context, queue: &TaskQueue) {
    let Some(broker) = broker_of(ctx, queue) else { return };
    let (name, mut moved) = (queue.queue_name(), 0);
    let letters = queue.spec.dead_letter;
    let kept = if letters.enabled { letters.max_length } else { 0 };
    for _ in 0..RELIEVES {
        let relieved = failpoint::around("relieve", broker.relieve(&[&name], Some(kept))).await;
        match relieved.as_deref() {
            Ok([Relieved { moved: some, beyond }]) => {
                moved += some;
                if *some == 0 || *beyond == 0 {
                    break;
                }
            }
            Ok(_) => break,
            Err(err) => {
                tracing::warn!(queue = %queue.name_any(), error = %chain(err), "what is too much is moved later");
                break;
            }
        }
    }
    if moved > 0 {
        let note = format!("{moved} messages beyond limits.maxLength were moved to the dead letters");
        tracing::info!(queue = %queue.name_any(), moved, "messages beyond limits.maxLength are dead letters");
        ctx.event(queue, EventType::Warning, "QueueOverflowed", note).await;
    }
}

/// Puts what the queue allows all its workers where they read it; whether that was new. What fails is done at the next look.
async fn allow(ctx: &Context, queue: &TaskQueue) -> bool {
    let Some(broker) = broker_of(ctx, queue) else {
        return false;
    };
    let limits = queue.spec.limits.clone().unwrap_or_default();
    let rate = limits.rate.map(|QueueRate { count, period, burst }| match burst {
        Some(burst) => Rate::new(count, period.get(), burst),
        None => Rate::even(count, period.get()),
    });
    let rate = match rate.transpose() {
        Ok(rate) => rate,
        Err(err) => {
            tracing::warn!(queue = %queue.name_any(), error = %chain(&err), "rate not applied");
            return false;
        }
    };
    let policy = QueuePolicy {
        is_paused: queue.spec.paused,
        max_in_flight: limits.max_in_flight,
        rate,
        bound: limits.max_length.map(|most| Bound {
            most,
            on_full: match limits.on_full {
                OnFull::Refuse => umbel_broker::OnFull::Refuse,
                OnFull::DropOldest => umbel_broker::OnFull::DropOldest,
            },
        }),
    };
    let name = queue.queue_name();
    let sample = ctx
        .brokers
        .source(queue)
        .ok()
        .and_then(|source| ctx.brokers.view(&source).sample);
    let seen = sample
        .as_ref()
        .and_then(|sample| sample.queues.get(&name)?.as_ref().ok());
    if seen.is_some_and(|depth| broker.has_said(&policy, depth.said.as_deref())) {
        return false;
    }
    let applied = failpoint::around("policy", broker.apply_queue_policy(&name, &policy)).await;
    match applied {
        Ok(false) => false,
        Ok(true) => {
            tracing::info!(queue = %queue.name_any(), ?policy, "what the queue allows is set at its broker");
            true
        }
        Err(err) => {
            tracing::warn!(queue = %queue.name_any(), error = %chain(&err), "what the queue allows is set later");
            false
        }
    }
}

/// Lifts what a deleted queue allowed its workers, or nobody would know why they take nothing. Of two objects for one
/// queue the other one says what it allows.
fn lift(ctx: &Context, gone: &TaskQueue) {
    if ctx.leader.term().is_none() || !ctx.claims.holds(&gone.namespace().unwrap_or_default()) {
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
    if ctx
        .all_queues()
        .iter()
        .filter_map(|other| claim(ctx, other))
        .any(is_same)
    {
        return;
    }
    tokio::spawn(async move {
        let lifted = failpoint::around("lift", broker.lift_queue_policy(&queue)).await;
        match lifted {
            Ok(false) => {}
            Ok(true) => tracing::info!(queue = %name, "deleted: what it allowed its workers is lifted at its broker"),
            Err(err) => {
                tracing::warn!(queue = %name, error = %chain(&err), "deleted: what it allowed its workers stays at its broker");
            }
        }
    });
}

/// An Event when a queue becomes ready or stops being so, and when something else about it turns that a person would want
/// to know.
async fn tell(ctx: &Context, queue: &TaskQueue, old: &TaskQueueStatus, new: &TaskQueueStatus) {
    for (condition, kind) in [
        (BROKER_DATA_LOST, EventType::Warning),
        (DEAD_LETTER_GROWING, EventType::Warning),
        (BACKLOGGED, EventType::Warning),
        (PAUSED, EventType::Normal),
    ] {
        let holds = |status: &TaskQueueStatus| {
            find(&status.conditions, condition)
                .filter(|one| one.status == "True")
                .cloned()
        };
        if let (None, Some(now)) = (holds(old), holds(new)) {
            ctx.event(queue, kind, &now.reason, now.message).await;
        }
    }
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
        went_back,
        ..
    } = ctx.brokers.view(&source);
    let facts = |sample: &Sample| facts(broker.as_ref(), sample, went_back);
    match (found, sample) {
        (Some(found), _) => fault(&found),
        (None, None) => Seen::Nothing,
        (None, Some(sample)) => match sample.queues.get(&queue.queue_name()) {
            // Created after the latest sample.
            None => Seen::Nothing,
            Some(Ok(found)) => Seen::Answer {
                at: sample.taken_at,
                queue: Ok(Found {
                    depth: depth(found),
                    flow: sample.flows.get(&queue.queue_name()).copied().unwrap_or_default(),
                    consumers: flow::consumers(ctx, queue, &sample),
                    is_paused: found.is_paused,
                    died: found.died_at.and_then(at_seconds),
                }),
                broker: facts(&sample),
            },
            Some(Err(fault)) => Seen::Answer {
                at: sample.taken_at,
                queue: Err(format!(
                    "the key {:?} is not what a queue's must be: {}",
                    fault.key, fault.reason
                )),
                broker: facts(&sample),
            },
        },
    }
}

/// What the status says of the broker.
fn facts(broker: Option<&Broker>, sample: &Sample, went_back: Option<Timestamp>) -> BrokerFacts {
    let mut facts = BrokerFacts {
        went_back,
        ..BrokerFacts::default()
    };
    facts.seen.token = sample.token;
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
        by_priority: found
            .by_priority
            .iter()
            .map(|&(step, waiting)| Step { step, waiting })
            .collect(),
        in_flight: found.in_flight,
        delayed: found.delayed,
        dead: found.dead,
        quarantined: found.quarantine,
    }
}

/// What waits in the queue's lists.
fn waiting(depth: &Depth) -> u64 {
    depth.by_priority.iter().map(|step| step.waiting).sum()
}

/// A time by the broker's clock.
fn at_seconds(seconds: f64) -> Option<Timestamp> {
    #[allow(
        clippy::cast_possible_truncation,
        reason = "milliseconds since 1970 fit; what does not is cut"
    )]
    Timestamp::from_millisecond((seconds * 1000.0) as i64).ok()
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
    Some(claim_on(broker, queue))
}

fn claim_on(broker: String, queue: &TaskQueue) -> Claim {
    Claim {
        broker,
        queue: queue.queue_name(),
        created: queue.creation_timestamp().map(|created| created.0).unwrap_or_default(),
        namespace: queue.namespace().unwrap_or_default(),
        name: queue.name_any(),
    }
}
