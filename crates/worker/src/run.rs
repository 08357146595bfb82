//! A message from its start to what its end means: result, what follows, acknowledgement or another run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use umbel_broker::End;
use umbel_protocol::canvas::{Aftermath, ResultTuple};
use umbel_protocol::event::Event;
use umbel_protocol::json::Json;
use umbel_protocol::message::{self, TaskMessage};
use umbel_protocol::result;

use crate::app::Shared;
use crate::canvas;
use crate::ends::failure_of;
use crate::events::seconds;
use crate::execute::{Ending, RunLimits, execute};
use crate::job::{Arguments, Failure, Job, JobContext, Outcome};
use crate::lease::{Lease, Run};

/// A message with its lease.
pub(crate) struct Delivery {
    pub(crate) lease: Lease,
    pub(crate) queue: Arc<str>,
    pub(crate) raw: Vec<u8>,
    pub(crate) message: TaskMessage,
    pub(crate) is_suspect: bool,
    /// What a built-in task sends when it succeeds.
    pub(crate) sends: Aftermath,
}

/// Runs a message and settles it, whatever happens.
pub(crate) async fn run(shared: &Arc<Shared>, delivery: Delivery, job: Arc<dyn Job>) {
    let message = &delivery.message;
    let since = shared.clock.now();
    let limit = |limit: Option<f64>| limit.and_then(|limit| Duration::try_from_secs_f64(limit).ok());
    let (hard, soft) = shared.tasks.taken(&message.task);
    let limits = RunLimits {
        hard: limit(message.time_limit.hard)
            .or(hard)
            .or(Some(shared.config.time_limit)),
        soft: limit(message.time_limit.soft)
            .or(soft)
            .or(shared.config.soft_time_limit),
    };
    let began = Instant::now();
    // Stopped at its hard limit a run ends at once, unless it never gives way; then somebody else may have the message.
    let stuck_at = limits
        .hard
        .and_then(|hard| began.checked_add(hard.saturating_add(shared.config.lease)));
    shared.leases.running(
        &delivery.lease.lid,
        Run {
            id: message.id.clone(),
            task: message.task.clone(),
            queue: Arc::clone(&delivery.queue),
            since,
        },
        stuck_at,
    );
    tracing::debug!(task.id = %message.id, task.name = %message.task, queue = %delivery.queue, suspect = delivery.is_suspect, "started");
    if shared.revoked.contains(&message.id, since) {
        shared.leases.stopped(&delivery.lease.lid);
        return shared.revoke(delivery, "revoked").await; // Since the look at its arrival.
    }
    shared.events.task(|| Event::TaskStarted {
        uuid: message.id.clone(),
    });
    let ctx = context(shared, &delivery);
    let order = ctx.order;
    let args = Arguments {
        args: message.args.clone(),
        kwargs: message.kwargs.clone(),
    };
    let ending = execute(job, ctx, args, limits, &shared.abandon).await;
    shared.leases.stopped(&delivery.lease.lid);
    tracing::debug!(task.id = %message.id, task.name = %message.task, queue = %delivery.queue, outcome = ending.word(), "ended");
    shared.metrics.runtime(&delivery.queue, began.elapsed());
    match ending {
        Ending::Outcome(Outcome::Done(value)) => succeed(shared, delivery, &value, began).await,
        Ending::Outcome(Outcome::Retry { after, why }) => retry(shared, delivery, after, why, order).await,
        Ending::Outcome(Outcome::Failed(why)) if why.is_retryable => retry(shared, delivery, None, why, order).await,
        Ending::Outcome(Outcome::Failed(why)) => shared.bury(delivery, &why, format!("failed: {why}")).await,
        Ending::TimedOut(limit) => {
            let failure = Failure {
                exc_module: "billiard.exceptions".into(),
                ..Failure::permanent("TimeLimitExceeded", limit.as_secs_f64().to_string())
            };
            let reason = format!("ran longer than its hard limit of {} s", limit.as_secs_f64());
            shared.bury(delivery, &failure, reason).await;
        }
        Ending::Lost => {
            shared.metrics.lost.inc();
            tracing::warn!(task.id = %delivery.message.id, task.name = %delivery.message.task, "lease lost: the run was dropped");
            shared.leases.remove(std::iter::once(&delivery.lease.lid));
        }
        Ending::Terminated => {
            tracing::info!(task.id = %delivery.message.id, task.name = %delivery.message.task, "terminated by remote control");
            shared.revoke(delivery, "terminated").await;
        }
        Ending::HandBack => {
            shared.events.task(|| Event::TaskRejected {
                uuid: delivery.message.id.clone(),
                requeue: true,
            });
            tracing::info!(task.id = %delivery.message.id, task.name = %delivery.message.task, "handed back: the worker stops");
            shared.end(delivery, End::Release, None, "", "handed_back").await;
        }
    }
}

/// Result, what follows, acknowledgement.
async fn succeed(shared: &Arc<Shared>, mut delivery: Delivery, value: &Json, began: Instant) {
    let mut aftermath = std::mem::take(&mut delivery.sends);
    match canvas::after_success(shared, &delivery.message, value) {
        Ok(after) => {
            aftermath.steps.extend(after.steps);
            aftermath.children.extend(after.children);
        }
        Err(malformed) => {
            let why = Failure::permanent("ValueError", format!("what follows cannot be read: {malformed}"));
            let reason = format!("ran, but what follows cannot be read: {malformed}");
            return shared.bury(delivery, &why, reason).await;
        }
    }
    shared.events.task(|| Event::TaskSucceeded {
        uuid: delivery.message.id.clone(),
        result: shown(value),
        runtime: seconds(began),
    });
    let trail: Vec<Json> = aftermath.children.iter().map(ResultTuple::to_json).collect();
    let result = shared.document(&delivery.message, true, &trail, |ctx| {
        result::success(ctx.id, value, &ctx.meta)
    });
    shared
        .end_workflow(delivery, End::Ack, result, aftermath, ("succeeded", "succeeded"))
        .await;
}

fn context(shared: &Arc<Shared>, delivery: &Delivery) -> JobContext {
    let message = &delivery.message;
    let order = message.header("umbel_order").and_then(|order| order.to().ok());
    #[allow(clippy::cast_possible_wrap)] // Microseconds since 1970 fit for 290,000 years.
    let first_seen = (delivery.lease.micros / 1000) as i64;
    JobContext {
        id: message.id.clone(),
        task: message.task.clone(),
        queue: delivery.queue.to_string(),
        retries: message.retries,
        order: order.unwrap_or(first_seen),
        headers: message.headers.clone(),
        cancel: CancellationToken::new(),
        soft_limit: CancellationToken::new(),
        lease: delivery.lease.clone(),
        reports: shared.reports.clone(),
    }
}

/// A result as events show it: its repr, cut where nobody reads on.
fn shown(value: &Json) -> String {
    const MOST: usize = 1024;
    let repr = value.repr();
    if repr.len() <= MOST {
        return repr;
    }
    let end = (0..=MOST).rev().find(|at| repr.is_char_boundary(*at)).unwrap_or(0);
    format!("{}...", &repr[..end])
}

/// Runs again later, or ends as a failure when the attempts are used up.
async fn retry(shared: &Arc<Shared>, delivery: Delivery, after: Option<Duration>, why: Failure, order: i64) {
    let retries = delivery.message.retries;
    let Some(backoff) = crate::retry::next(&shared.config.retry, retries, crate::random()) else {
        let reason = format!("failed {} times, the last time: {why}", retries.saturating_add(1));
        return shared.bury(delivery, &why, reason).await;
    };
    let wait = after.unwrap_or(backoff);
    let due = shared.clock.now() + wait.as_secs_f64();
    #[allow(clippy::cast_possible_truncation)] // Microseconds since 1970 fit.
    let eta = jiff::Timestamp::from_microsecond((due * 1e6) as i64).ok();
    let change = message::Retry {
        retries: retries.saturating_add(1),
        eta,
        delivery_tag: uuid::Uuid::new_v4().to_string(),
        now: Some(shared.clock.timestamp()),
        headers: vec![("umbel_order".into(), Json::of(&order))],
    };
    match message::retry(&delivery.raw, &change) {
        Ok(raw) => {
            shared.due.within(wait);
            let failure = failure_of(&why);
            shared.events.task(|| Event::TaskRetried {
                uuid: delivery.message.id.clone(),
                exception: failure.repr(),
                traceback: Some(why.to_string()),
            });
            let result = shared.document(&delivery.message, false, &[], |ctx| {
                result::retry(ctx.id, &failure, Some(&why.to_string()), &ctx.meta)
            });
            shared
                .end(delivery, End::Later { due, raw }, result, "", "retried")
                .await;
        }
        Err(malformed) => {
            // It was read a moment ago, so this is a defect of ours; the message is kept all the same.
            let reason = format!("failed ({why}), and no retry could be made of it: {malformed}");
            shared.bury(delivery, &why, reason).await;
        }
    }
}
