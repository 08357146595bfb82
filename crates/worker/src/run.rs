//! A message from its start to what its end means: result, what follows, acknowledgement or another run.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use umbel_broker::{End, FollowUp, StoredResult};
use umbel_protocol::canvas::{Aftermath, Kind as SignatureKind, ResultTuple, Signature};
use umbel_protocol::event::Event;
use umbel_protocol::json::Json;
use umbel_protocol::message::TaskMessage;
use umbel_protocol::result;
use umbel_telemetry::chain;

use crate::admit;
use crate::again::retry;
use crate::app::Shared;
use crate::canvas;
use crate::clock::seconds_of;
use crate::events::seconds;
use crate::execute::{Attempt, Ending, RunLimits};
use crate::job::{Arguments, Failure, Job, JobContext, Outcome};
use crate::lease::{Lease, Run, margin};
use crate::options::Ack;
use crate::request::Request;
use crate::results::{self, Kind, is_wanted};
use crate::runners::{gather, is_gathering};
use crate::settle::is_refused;
use crate::stop::{Retry, When};

/// A message with its lease.
pub(crate) struct Delivery {
    pub(crate) lease: Lease,
    pub(crate) queue: Arc<str>,
    pub(crate) raw: Arc<Vec<u8>>,
    pub(crate) message: Arc<TaskMessage>,
    pub(crate) is_suspect: bool,
    /// Was it acknowledged before its run? Then nobody puts it back.
    pub(crate) is_early: bool,
    /// What a built-in task sends when it succeeds.
    pub(crate) sends: Aftermath,
}

/// For so many seconds a task that was put back may ask whether it was.
const BACK: u64 = 86_400;
/// Pause between two attempts to acknowledge early.
const AGAIN: Duration = Duration::from_millis(50);

/// Runs a message and settles it, whatever happens, as far as that goes without waiting; what is left then is answered.
/// A run that never waits, as most short ones, costs neither a task of the runtime nor timers. Polled once, with the
/// waker of `cx`: what is left must be polled anew.
pub(crate) fn begin(
    shared: &Arc<Shared>,
    delivery: Delivery,
    job: Arc<dyn Job>,
    cx: &mut Context<'_>,
) -> Option<BoxFuture<'static, ()>> {
    let this = Arc::clone(shared);
    let started = match start(shared, delivery) {
        Ok(started) => started,
        Err((delivery, why)) => return unless_done(async move { this.revoke(delivery, why).await }, cx),
    };
    if asks_first(shared, &started.delivery.message) {
        return unless_done(async move { go_on(&this, started, job).await }, cx);
    }
    let args = Arguments::of(&started.delivery.message);
    let mut running = Running::new(shared, started, job, args);
    let Poll::Ready(outcome) = running.attempt.poll(cx) else {
        return Some(async move { running.finish(&this).await }.boxed());
    };
    let (started, ending, order, trail) = running.ended(Ending::Outcome(outcome));
    let (started, ending) = succeed_at_once(shared, started, ending, &trail)?;
    unless_done(async move { finish(&this, started, ending, order, trail).await }, cx)
}

/// What is left of some work after its first poll.
fn unless_done(
    work: impl Future<Output = ()> + Send + 'static,
    cx: &mut Context<'_>,
) -> Option<BoxFuture<'static, ()>> {
    let mut work = work.boxed();
    work.as_mut().poll(cx).is_pending().then_some(work)
}

/// Runs a message and settles it, whatever happens.
pub(crate) async fn run(shared: &Arc<Shared>, delivery: Delivery, job: Arc<dyn Job>) {
    match start(shared, delivery) {
        Ok(started) => go_on(shared, started, job).await,
        Err((delivery, why)) => Box::pin(shared.revoke(delivery, why)).await,
    }
}

/// A delivery whose run has begun.
struct Started {
    delivery: Delivery,
    limits: RunLimits,
    since: f64,
    began: Instant,
}

/// Notes that a run begins; back with the reason where its time is over, or nobody wants it any more.
fn start(shared: &Shared, delivery: Delivery) -> Result<Started, (Delivery, &'static str)> {
    let message = &delivery.message;
    let since = shared.clock.now();
    let limits = limits(shared, message);
    let began = Instant::now();
    // Stopped at its hard limit a run ends at once, unless it never gives way; then somebody else may have the message.
    let stuck_at = limits
        .hard
        .and_then(|hard| began.checked_add(hard.saturating_add(margin(shared.config.lease))));
    delivery.lease.running(Run {
        message: Arc::clone(message),
        queue: Arc::clone(&delivery.queue),
        since,
        is_early: false,
        stuck_at,
    });
    tracing::debug!(task.id = %message.id, task.name = %message.task, queue = %delivery.queue, suspect = delivery.is_suspect, "started");
    // Since the look at its arrival.
    let is_expired = admit::is_expired(message, since, shared.config.expires_after);
    if is_expired || shared.revoked.contains(message, since) {
        delivery.lease.stopped();
        let why = if is_expired { "expired" } else { "revoked" };
        return Err((delivery, why));
    }
    Ok(Started {
        delivery,
        limits,
        since,
        began,
    })
}

/// Is there something to wait for before the task itself begins?
fn asks_first(shared: &Shared, message: &TaskMessage) -> bool {
    crate::limits::is_unique_until_start(message)
        || is_early(shared, message)
        || tracks_start(shared, message)
        || crate::secrets::is_needed(message)
        || is_again(message)
}

/// Was it sent again, as the broker had lost what it knew of its first sending?
fn is_again(message: &TaskMessage) -> bool {
    message.own_header("umbel_again").is_some()
}

/// Whether a task that was sent again had succeeded before. Where its result cannot be asked for it runs.
async fn has_succeeded(shared: &Shared, message: &TaskMessage) -> bool {
    match shared.store.documents(std::slice::from_ref(&message.id)).await {
        Ok(documents) => documents.iter().flatten().any(|document| results::is_success(document)),
        Err(err) => {
            tracing::debug!(task.id = %message.id, error = %chain(&err), "its earlier result is not known");
            false
        }
    }
}

async fn go_on(shared: &Arc<Shared>, mut started: Started, job: Arc<dyn Job>) {
    let delivery = &mut started.delivery;
    let message = Arc::clone(&delivery.message);
    if is_again(&message) && has_succeeded(shared, &message).await {
        delivery.lease.stopped();
        tracing::info!(task.id = %message.id, task.name = %message.task, "sent again, and had succeeded before: not run");
        return shared
            .end(started.delivery, End::Ack, None, "succeeded", "ignored")
            .await;
    }
    crate::limits::note_start(shared, &message).await;
    if is_early(shared, &message) {
        if !Box::pin(acknowledge_early(shared, delivery)).await {
            delivery.lease.stopped();
            return lost(shared, delivery);
        }
        delivery.is_early = true;
        delivery.lease.keep();
    }
    if tracks_start(shared, &message) {
        track_start(shared, &message).await;
    }
    match shared.secrets.arguments(&message).await {
        Ok(args) => Running::new(shared, started, job, args).finish(shared).await,
        Err(failure) => {
            let running = Running::new(shared, started, job, Arguments::of(&message));
            let (started, ending, order, trail) = running.ended(Ending::Outcome(Outcome::Failed(failure)));
            finish(shared, started, ending, order, trail).await;
        }
    }
}

/// A task that runs.
struct Running {
    started: Started,
    attempt: Attempt,
    order: i64,
    sent: Arc<std::sync::Mutex<Vec<ResultTuple>>>,
}

impl Running {
    fn new(shared: &Arc<Shared>, started: Started, job: Arc<dyn Job>, args: Arguments) -> Running {
        let delivery = &started.delivery;
        let message = &delivery.message;
        shared
            .metrics
            .tasks
            .waited(&delivery.queue, started.since - ready_at(delivery));
        shared.events.task(|| Event::TaskStarted {
            uuid: message.id.clone(),
        });
        let ctx = context(shared, delivery, started.limits);
        let (order, sent) = (ctx.order, Arc::clone(&ctx.children));
        Running {
            attempt: Attempt::new(job, ctx, args),
            started,
            order,
            sent,
        }
    }

    async fn finish(mut self, shared: &Arc<Shared>) {
        let ending = self.attempt.end(self.started.limits, &shared.abandon).await;
        let (started, ending, order, trail) = self.ended(ending);
        finish(shared, started, ending, order, trail).await;
    }

    /// The run is over, by this ending unless its lease is lost; answers its order and the results of what it has sent.
    fn ended(self, ending: Ending) -> (Started, Ending, i64, Vec<Json>) {
        let ending = self.attempt.over(ending);
        self.started.delivery.lease.stopped();
        let sent = std::mem::take(&mut *self.sent.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        let trail = sent.iter().map(ResultTuple::to_json).collect();
        (self.started, ending, self.order, trail)
    }
}

/// Does what an ending means.
async fn finish(shared: &Arc<Shared>, started: Started, ending: Ending, order: i64, trail: Vec<Json>) {
    let Started { delivery, began, .. } = started;
    note_end(shared, &delivery, &ending, began);
    // Boxed is what is rare: it would make the future of every run as large as the largest of them.
    match ending {
        Ending::Outcome(Outcome::Done(value)) => succeed(shared, delivery, &value, began, trail).await,
        Ending::Outcome(Outcome::Retry { after, why }) => {
            let asked = Retry {
                when: after.map(When::In),
                ..Retry::new().because(why)
            };
            Box::pin(retry(shared, delivery, asked, order, &trail)).await;
        }
        Ending::Outcome(Outcome::Parked { after, why }) => {
            Box::pin(park(shared, delivery, after, why, order, &trail)).await;
        }
        Ending::Outcome(Outcome::Again(asked)) => Box::pin(retry(shared, delivery, *asked, order, &trail)).await,
        Ending::Outcome(Outcome::Failed(why)) if why.is_retryable => {
            Box::pin(retry(shared, delivery, Retry::new().because(why), order, &trail)).await;
        }
        Ending::Outcome(Outcome::Failed(why)) => {
            let reason = format!("failed: {why}");
            Box::pin(shared.bury_with(delivery, &why, reason, &trail)).await;
        }
        Ending::Outcome(Outcome::Ignored) => shared.end(delivery, End::Ack, None, "succeeded", "ignored").await,
        Ending::Outcome(Outcome::Rejected { reason, requeue }) => {
            Box::pin(reject(shared, delivery, reason, requeue, &trail)).await;
        }
        Ending::Outcome(Outcome::Replaced(with)) => Box::pin(replace(shared, delivery, &with, &trail)).await,
        Ending::TimedOut(limit) => {
            let seconds = limit.as_secs_f64();
            let shown = if limit.subsec_nanos() == 0 {
                Json::of(&limit.as_secs())
            } else {
                Json::of(&seconds)
            };
            let failure = Failure::raise("billiard.exceptions", "TimeLimitExceeded", &[shown]);
            let reason = format!("ran longer than its hard limit of {seconds} s");
            Box::pin(shared.bury_with(delivery, &failure, reason, &trail)).await;
        }
        Ending::Lost => lost(shared, &delivery),
        Ending::Terminated => {
            tracing::info!(task.id = %delivery.message.id, task.name = %delivery.message.task, "terminated by remote control");
            Box::pin(shared.revoke(delivery, "terminated")).await;
        }
        Ending::HandBack => Box::pin(hand_back(shared, delivery, &trail)).await,
    }
}

fn note_end(shared: &Shared, delivery: &Delivery, ending: &Ending, began: Instant) {
    let message = &delivery.message;
    tracing::debug!(task.id = %message.id, task.name = %message.task, queue = %delivery.queue, outcome = ending.word(), "ended");
    shared.metrics.tasks.ran(&delivery.queue, began.elapsed());
}

/// When the message could have run first (Redis time in seconds): when it was sent, where that is known, or was due;
/// otherwise when this worker took it.
fn ready_at(delivery: &Delivery) -> f64 {
    let message = &delivery.message;
    let sent = message
        .own_header("umbel_sent_at")
        .and_then(|sent| sent.as_str().parse::<f64>().ok());
    #[allow(clippy::cast_precision_loss)] // Microseconds since 1970.
    let seen = || delivery.lease.micros as f64 / 1e6;
    let due = message.eta.map_or(0.0, seconds_of);
    sent.map_or_else(seen, |sent| sent.max(due))
}

/// What the message says, then remote control, then the task, then the flags.
fn limits(shared: &Shared, message: &TaskMessage) -> RunLimits {
    let limit = |limit: Option<f64>| limit.and_then(|limit| Duration::try_from_secs_f64(limit).ok());
    let (hard, soft) = shared.tasks.taken(&message.task);
    let options = shared.tasks.options(&message.task);
    RunLimits {
        hard: limit(message.time_limit.hard)
            .or(hard)
            .or(options.and_then(|options| options.time_limit))
            .or(Some(shared.config.time_limit)),
        soft: limit(message.time_limit.soft)
            .or(soft)
            .or(options.and_then(|options| options.soft_time_limit))
            .or(shared.config.soft_time_limit),
    }
}

fn is_early(shared: &Shared, message: &TaskMessage) -> bool {
    let own = shared.tasks.options(&message.task).and_then(|options| options.ack);
    own.unwrap_or(shared.config.ack) == Ack::Early
}

/// Acknowledges before the run; false if the lease was lost, or if nobody knows: then the task must not run here.
async fn acknowledge_early(shared: &Shared, delivery: &Delivery) -> bool {
    let message = &delivery.message;
    let stub = crate::lost::stub(shared, message);
    let began = Instant::now();
    loop {
        match shared.broker.ack_early(&delivery.lease.lid, &stub).await {
            Ok(is_ours) => return is_ours,
            Err(err) if is_refused(&err) && began.elapsed() > shared.config.lease => {
                tracing::error!(task.id = %message.id, error = %chain(&err), "not acknowledged before its run: not run");
                return false;
            }
            Err(err) => {
                tracing::debug!(task.id = %message.id, error = %chain(&err), "acknowledging again");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Is STARTED to be stored?
fn tracks_start(shared: &Shared, message: &TaskMessage) -> bool {
    let own = shared
        .tasks
        .options(&message.task)
        .is_some_and(|options| options.track_started);
    own || shared.config.results.track_started
}

/// Stores STARTED. A task runs whether or not that succeeds.
async fn track_start(shared: &Shared, message: &TaskMessage) {
    let stored = shared.document(message, Kind::State, &[], |ctx| {
        result::started(ctx.id, std::process::id(), &shared.hostname, &ctx.meta)
    });
    if let Some(stored) = stored
        && let Err(err) = Box::pin(shared.store.store(&[stored])).await
    {
        tracing::warn!(task.id = %message.id, error = %chain(&err), "STARTED not stored");
    }
}

fn lost(shared: &Shared, delivery: &Delivery) {
    shared.metrics.lost.inc();
    tracing::warn!(task.id = %delivery.message.id, task.name = %delivery.message.task, "lease lost: the run was dropped");
    shared.leases.remove(std::iter::once(&delivery.lease.lid));
}

/// The worker stops before the run has ended.
async fn hand_back(shared: &Arc<Shared>, delivery: Delivery, trail: &[Json]) {
    if delivery.is_early {
        let why = "the worker stopped before the task had ended; it was acknowledged early and is not run again";
        let failure = Failure::raise("billiard.exceptions", "WorkerLostError", &[why]);
        return shared.bury_with(delivery, &failure, why.to_owned(), trail).await;
    }
    shared.events.task(|| Event::TaskRejected {
        uuid: delivery.message.id.clone(),
        requeue: true,
    });
    let mut end = End::Release;
    if shared.config.counts_as_attempt {
        // Where nobody can tell, it is not charged.
        let before = shared.broker.deaths(&delivery.message.id).await.unwrap_or(0);
        let deliveries = before.saturating_add(1);
        if deliveries >= u64::from(shared.config.policy.max_deliveries) {
            let why = format!("its workers stopped before the task had ended, in delivery {deliveries}");
            let failure = Failure::raise("billiard.exceptions", "WorkerLostError", &[why.as_str()]);
            return shared.bury_with(delivery, &failure, why, trail).await;
        }
        end = End::Charge;
    }
    tracing::info!(task.id = %delivery.message.id, task.name = %delivery.message.task, "handed back: the worker stops");
    let pool = &shared.config.pod.pool_uid;
    let counted = (!pool.is_empty()).then(|| shared.broker.hand_back_counted(pool));
    let follow_ups = counted.into_iter().collect();
    shared
        .end_with(delivery, end, None, follow_ups, ("", "handed_back"))
        .await;
}

/// The task found no turn. What was acknowledged early is no message any more, so that it is a retry.
async fn park(shared: &Arc<Shared>, delivery: Delivery, after: Duration, why: Failure, order: i64, trail: &[Json]) {
    if delivery.is_early {
        let asked = Retry::new().after(after).because(why);
        return retry(shared, delivery, asked, order, trail).await;
    }
    tracing::debug!(task.id = %delivery.message.id, task.name = %delivery.message.task, reason = %why, "waits for its turn");
    shared.events.task(|| Event::TaskRejected {
        uuid: delivery.message.id.clone(),
        requeue: true,
    });
    // Those that were refused together do not come back together.
    let after = after.mul_f64(1.0 + crate::random() / 2.0);
    let due = shared.clock.now() + after.as_secs_f64();
    shared.due.within(after);
    shared.end(delivery, End::Park { due }, None, "", "parked").await;
}

/// The task refuses its message.
async fn reject(shared: &Arc<Shared>, delivery: Delivery, reason: Option<String>, requeue: bool, trail: &[Json]) {
    let rejected = Event::TaskRejected {
        uuid: delivery.message.id.clone(),
        requeue,
    };
    tracing::info!(task.id = %delivery.message.id, task.name = %delivery.message.task, requeue, "rejected by its task");
    if !requeue {
        let why = reason.as_deref().unwrap_or("no reason given").to_owned();
        let failure = Failure::raise("celery.exceptions", "Reject", &(reason, false));
        shared
            .bury_with(delivery, &failure, format!("rejected by its task: {why}"), trail)
            .await;
        return shared.events.task(|| rejected);
    }
    shared.events.task(|| rejected);
    if delivery.is_early {
        // Redis has its bytes no longer; the task itself wants another run.
        let list = shared.broker.keys().list(&delivery.queue, delivery.message.priority);
        let raw = delivery.raw.to_vec();
        // As settle notes it of those that it puts back: who takes it next may ask.
        let noted = FollowUp::Set {
            key: shared.broker.keys().umbel(&format!("back:{}", delivery.message.id)),
            ttl: BACK,
            value: b"1".to_vec(),
        };
        let back = vec![noted, FollowUp::Push { list, raw }];
        return shared.end_with(delivery, End::Ack, None, back, ("", "requeued")).await;
    }
    shared.end(delivery, End::Requeue, None, "", "requeued").await;
}

/// Another task goes on under this one's id.
async fn replace(shared: &Arc<Shared>, delivery: Delivery, with: &Signature, trail: &[Json]) {
    match canvas::replacement(shared, &delivery.message, with) {
        Ok(aftermath) => {
            shared
                .end_workflow(delivery, End::Ack, None, aftermath, ("", "replaced"))
                .await;
        }
        Err(malformed) => {
            let is_empty = with.kind == SignatureKind::Chain && with.tasks().is_ok_and(|tasks| tasks.is_empty());
            let why = if is_empty {
                "Cannot replace with an empty chain".to_owned()
            } else if with.options.get("chord").is_some() {
                "A signature replacing a task must not be part of a chord".to_owned()
            } else {
                format!("Cannot replace: {malformed}")
            };
            let failure = Failure::raise("celery.exceptions", "ImproperlyConfigured", &[&why]);
            shared
                .bury_with(delivery, &failure, format!("failed: {why}"), trail)
                .await;
        }
    }
}

/// As [`succeed`], where nothing has to be waited for; else back comes what was given.
fn succeed_at_once(
    shared: &Arc<Shared>,
    started: Started,
    ending: Ending,
    trail: &[Json],
) -> Option<(Started, Ending)> {
    let is_alone = started.delivery.sends == Aftermath::default() && canvas::is_alone(&started.delivery.message);
    let results = &shared.config.results;
    let fits = |value: &Json| value.as_str().len() <= results.max_bytes && results.refuses(value).is_none();
    match &ending {
        Ending::Outcome(Outcome::Done(value)) if is_alone && fits(value) && is_gathering() => {
            let Started { delivery, began, .. } = started;
            note_end(shared, &delivery, &ending, began);
            let result = succeeded(shared, &delivery, value, began, trail);
            let ended = shared.ended(delivery, End::Ack, result, Vec::new(), ("succeeded", "succeeded"));
            gather(ended);
            None
        }
        _ => Some((started, ending)),
    }
}

/// Result, what follows, acknowledgement.
async fn succeed(shared: &Arc<Shared>, mut delivery: Delivery, value: &Json, began: Instant, mut trail: Vec<Json>) {
    let (bytes, most) = (value.as_str().len(), shared.config.results.max_bytes);
    if bytes > most {
        let why = format!("the result has {bytes} bytes, more than the limit of {most}");
        let failure = Failure::permanent("ValueError", why.as_str());
        return Box::pin(shared.bury_with(delivery, &failure, format!("ran, but {why}"), &trail)).await;
    }
    if let Some(why) = shared.config.results.refuses(value)
        && is_told(shared, &delivery.message)
    {
        // As Celery's worker, which finds it out when it stores the result.
        let failure = Failure::raise("kombu.exceptions", "EncodeError", &[&why]);
        return Box::pin(shared.bury_with(
            delivery,
            &failure,
            format!("ran, but its result cannot be written: {why}"),
            &trail,
        ))
        .await;
    }
    let mut aftermath = std::mem::take(&mut delivery.sends);
    match canvas::after_success(shared, &delivery.message, value) {
        Ok(after) => {
            aftermath.steps.extend(after.steps);
            aftermath.children.extend(after.children);
        }
        Err(malformed) => {
            let why = Failure::permanent("ValueError", format!("what follows cannot be read: {malformed}"));
            let reason = format!("ran, but what follows cannot be read: {malformed}");
            return Box::pin(shared.bury_with(delivery, &why, reason, &trail)).await;
        }
    }
    trail.extend(aftermath.children.iter().map(ResultTuple::to_json));
    let result = succeeded(shared, &delivery, value, began, &trail);
    shared
        .end_workflow(delivery, End::Ack, result, aftermath, ("succeeded", "succeeded"))
        .await;
}

/// Tells of a success; answers its document.
fn succeeded(
    shared: &Shared,
    delivery: &Delivery,
    value: &Json,
    began: Instant,
    trail: &[Json],
) -> Option<StoredResult> {
    shared.events.task(|| Event::TaskSucceeded {
        uuid: delivery.message.id.clone(),
        result: shown(value),
        runtime: seconds(began),
    });
    shared.document(&delivery.message, Kind::Success, trail, |ctx| {
        result::success(ctx.id, value, &ctx.meta)
    })
}

/// Is the result of a success stored, or a part of a chord?
fn is_told(shared: &Shared, message: &TaskMessage) -> bool {
    let options = shared.tasks.options(&message.task);
    let is_member = message
        .embed
        .as_ref()
        .is_some_and(|embed| embed.get("chord").is_some_and(|chord| !chord.is_null()));
    is_member
        || is_wanted(
            shared.config.results.store,
            options,
            message.ignore_result,
            Kind::Success,
        )
}

fn context(shared: &Arc<Shared>, delivery: &Delivery, limits: RunLimits) -> JobContext {
    let message = &delivery.message;
    let order = message.own_header("umbel_order").and_then(|order| order.to().ok());
    #[allow(clippy::cast_possible_wrap)] // Microseconds since 1970 fit for 290,000 years.
    let first_seen = (delivery.lease.micros / 1000) as i64;
    JobContext {
        id: message.id.clone(),
        task: message.task.clone(),
        queue: delivery.queue.to_string(),
        retries: message.retries,
        order: order.unwrap_or(first_seen),
        headers: message.headers.clone(),
        request: Request {
            message: Arc::clone(message),
            raw: Arc::clone(&delivery.raw),
            hostname: Arc::clone(&shared.hostname),
            limits,
        },
        cancel: CancellationToken::new(),
        soft_limit: CancellationToken::new(),
        lease: delivery.lease.clone(),
        reports: shared.reports.clone(),
        children: Arc::default(),
        shared: Some(Arc::clone(shared)),
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
