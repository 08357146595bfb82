//! The loop of a worker: a free slot first, then a message for it, then its run, then its settlement.
//!
//! # Guarantees
//! Never more messages are held than there are slots. A message is decided on the moment it was taken: it runs, or it
//! is parked, handed back, buried or put in the quarantine with a reason. A message that cannot be read ends nobody.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use umbel_broker::{
    Admission as SelfAdmission, Batch, Broker, End, FollowUp, QueueLists, Reserved, Reserver, Settlement, StoredResult,
    Taken, Waker,
};
use umbel_protocol::canvas::{Aftermath, ResultTuple, after_revoked};
use umbel_protocol::event::{Event, TaskInfo};
use umbel_protocol::json::Json;
use umbel_protocol::message::{self, Limits, Malformed, TaskMessage};
use umbel_protocol::result;
use umbel_telemetry::chain;

use crate::admit::{Admission, admit};
use crate::app::Shared;
use crate::canvas;
use crate::events::seconds;
use crate::execute::{Ending, RunLimits, execute};
use crate::job::{Arguments, Failure, Job, JobContext, Outcome};
use crate::lease::{Lease, Run};
use crate::peers::Peers;
use crate::settle::Ended;

/// Messages in one reserve: Redis is busy for less than a millisecond with so many.
const BATCH: usize = 256;
/// Longest wait between two looks where Redis reports changes.
const PATIENCE: Duration = Duration::from_secs(1);
/// Shortest and longest wait where it does not.
const POLL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));
/// A leader whose heartbeat is older does not count, and a worker waits as long for one before it admits itself.
const LEADER_PATIENCE: Duration = Duration::from_secs(30);
/// How often a worker that is not admitted asks for the leader.
const LEADER_ASKED: Duration = Duration::from_secs(5);
/// For so long a busy worker first stops taking messages to be free for a suspect; its claim lasts as long unless it is
/// repeated.
const TAKER: Duration = Duration::from_secs(30);
/// A message that other workers know is handed back so many times before it is given up.
const HAND_BACKS: u64 = 30;

pub(crate) struct Consumer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) broker: Broker,
    pub(crate) reserver: Reserver,
    pub(crate) waker: Waker,
    pub(crate) queues: Vec<QueueLists>,
    pub(crate) peers: Peers,
    pub(crate) quiet: CancellationToken,
    pub(crate) backoff: Duration,
    /// Messages were taken and are not yet decided on: not a moment to drop the loop.
    pub(crate) deciding: watch::Sender<bool>,
    pub(crate) aside: Aside,
}

/// How long a busy worker stands aside for a suspect, taking nothing until its last task ends. In vain, it works on for
/// as long and then stands aside for twice as long: the suspect's turn comes however long tasks run, and the queue
/// moves meanwhile.
pub(crate) struct Aside {
    patience: Duration,
    not_before: Option<Instant>,
}

impl Default for Aside {
    fn default() -> Aside {
        Aside {
            patience: TAKER,
            not_before: None,
        }
    }
}

/// What the loop does next.
enum Next {
    /// Reserve again at once.
    Again,
    /// Look, and wait for something to change.
    Wait,
}

impl Consumer {
    /// Takes and starts messages until told to be quiet. Runs go on after it has returned.
    /// Answers when it was told.
    pub(crate) async fn run(mut self) -> Instant {
        let (quiet, mut deciding) = (self.quiet.clone(), self.deciding.subscribe());
        let told = async {
            quiet.cancelled().await;
            let at = Instant::now();
            let _ = deciding.wait_for(|is_deciding| !is_deciding).await;
            at
        };
        let told = tokio::select! {
            at = told => at,
            () = self.consume() => Instant::now(),
        };
        // The select above may have dropped a reserve on its way, or a batch was not started any more: one more hello
        // hands back what nobody runs.
        if !self.reserver.is_connected() {
            let leases = Arc::clone(&self.shared.leases);
            let hello = self.reserver.ensure(|| leases.lids());
            if !matches!(
                tokio::time::timeout(Duration::from_secs(2).min(self.shared.config.grace / 10), hello).await,
                Ok(Ok(()))
            ) {
                tracing::warn!("could not hand back at once; the lease will");
            }
        }
        told
    }

    async fn consume(&mut self) {
        let mut failures = 0_u32;
        let mut fruitless = 0_u32;
        let mut leader_seen = Instant::now();
        let mut leader_asked = Instant::now();
        let mut is_woken = true;
        let mut looked = Instant::now();
        loop {
            self.shared.readiness.progress();
            if self.quiet.is_cancelled() {
                return;
            }
            let free = self.shared.slots.available_permits();
            if free == 0 {
                // Wait for a slot; the permit itself is taken when there is a message for it.
                drop(self.shared.while_alive(self.shared.slots.acquire()).await);
                continue;
            }
            // Nothing was reported since the last look: another look costs less than a reserve.
            let next = if is_woken {
                self.take(free, &mut fruitless).await
            } else {
                Ok(Next::Wait)
            };
            if self.note_hello() {
                leader_seen = Instant::now(); // After an outage its leader gets as long to come back as we did.
            }
            match next {
                Ok(next) => {
                    failures = 0;
                    // However long the backlog: now and then a look, or a suspect would wait for its end.
                    if matches!(next, Next::Again) && looked.elapsed() < PATIENCE {
                        is_woken = true;
                        continue;
                    }
                }
                Err(err) => {
                    self.shared.metrics.broker_errors.inc();
                    if failures.is_multiple_of(20) {
                        tracing::warn!(error = %chain(&err), server = %self.broker.server(), "taking messages again");
                    }
                    failures += 1;
                    is_woken = true;
                    tokio::time::sleep(self.pause(failures)).await;
                    continue;
                }
            }
            let look = match self.waker.look().await {
                Ok(look) => look,
                Err(err) => {
                    self.shared.metrics.broker_errors.inc();
                    tracing::debug!(error = %chain(&err), "looking again");
                    failures += 1;
                    is_woken = true;
                    tokio::time::sleep(self.pause(failures)).await;
                    continue;
                }
            };
            looked = Instant::now();
            self.shared.clock.observe(look.now);
            if let Some(due_in) = look.due_in {
                self.shared.due.within(due_in);
            }
            let is_open = look.gate == "open";
            self.note_gate(&look.gate);
            if look.gate.is_empty() {
                self.reserver.forget(); // Redis has lost us: hello again.
                is_woken = true;
                tokio::time::sleep(self.pause(1)).await;
                continue;
            }
            if !is_open && !self.shared.config.is_standalone && leader_asked.elapsed() >= LEADER_ASKED {
                leader_asked = Instant::now();
                self.ask_for_leader(&mut leader_seen).await;
            }
            if is_open && look.suspects > 0 && self.take_suspect().await {
                is_woken = true;
                continue;
            }
            if is_open && look.waiting > 0 && fruitless < 3 {
                fruitless += 1; // Somebody else may have been faster; do not spin on a list that cannot be read.
                is_woken = true;
                continue;
            }
            fruitless = 0;
            is_woken = self.wait().await;
        }
    }

    /// One reserve, and everything it brought on its way.
    async fn take(&mut self, free: usize, fruitless: &mut u32) -> Result<Next, umbel_broker::Error> {
        let asked = free.min(BATCH);
        let leases = Arc::clone(&self.shared.leases);
        match self.reserver.reserve(asked, &self.queues, || leases.lids()).await? {
            Reserved::Batch(batch) => {
                let got = batch.taken.len();
                *fruitless = if got > 0 { 0 } else { *fruitless };
                self.start(batch).await;
                // Equal shares: the queue that was first is last the next time.
                self.queues.rotate_left(1); // A worker serves at least one.
                Ok(if got == asked { Next::Again } else { Next::Wait })
            }
            Reserved::Gate(state) => {
                self.note_gate(&state);
                Ok(Next::Wait)
            }
            Reserved::Busy => Ok(Next::Wait),
        }
    }

    fn pause(&self, failures: u32) -> Duration {
        let pause = Duration::from_millis(50) * 2_u32.saturating_pow(failures.min(10));
        pause.min(self.backoff).mul_f64(0.5 + 0.5 * crate::random())
    }

    /// Takes notice of a new connection. True if there is one.
    fn note_hello(&mut self) -> bool {
        let Some(hello) = self.reserver.take_hello() else {
            return false;
        };
        self.note_gate(&hello.gate);
        let mut known = self
            .shared
            .generation
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_new = known.as_ref().is_none_or(|generation| *generation != hello.generation);
        if known.is_some() && is_new {
            tracing::error!(server = %self.broker.server(), "the broker has lost its data");
        }
        if let Some(reason) = hello.unpublished {
            tracing::error!(server = %self.broker.server(), reason, "results cannot be published: clients wait for them in vain");
        }
        tracing::info!(server = %self.broker.server(), gate = %hello.gate, handed_back = hello.handed_back, "connected");
        *known = Some(hello.generation);
        true
    }

    fn note_gate(&self, state: &str) {
        let mut gate = self
            .shared
            .gate
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if *gate != state && !state.is_empty() {
            tracing::info!(gate = state, "gate");
            state.clone_into(&mut gate);
            self.shared.beat_now.notify_one();
        }
        if state == "open" {
            self.shared.readiness.set_ready(); // And ready it stays: not load, not Redis, not a drain takes it back.
        }
    }

    /// Without any leader for long enough a worker opens its own gate.
    async fn ask_for_leader(&self, leader_seen: &mut Instant) {
        let install = &self.shared.config.pod.install;
        match self.broker.leader_age(install).await {
            Ok(Some(age)) if age < LEADER_PATIENCE => *leader_seen = Instant::now(),
            Ok(_) if leader_seen.elapsed() >= LEADER_PATIENCE => {
                let pool = &self.shared.config.pod.pool_uid;
                match self
                    .broker
                    .admit_self(install, &self.shared.worker, pool, LEADER_PATIENCE.as_secs())
                    .await
                {
                    Ok(SelfAdmission::Open) => tracing::warn!("no operator for 30 s: admitted myself"),
                    Ok(SelfAdmission::Leader) => *leader_seen = Instant::now(),
                    Ok(SelfAdmission::Step | SelfAdmission::Unknown) => {}
                    Err(err) => tracing::debug!(error = %chain(&err), "admitting again"),
                }
            }
            Ok(_) => {}
            Err(err) => tracing::debug!(error = %chain(&err), "asking for the leader again"),
        }
    }

    /// Takes nothing until the last task has ended. False when it does not end in time, or another worker does this.
    async fn stand_aside(&mut self) -> bool {
        if self.aside.not_before.is_some_and(|at| Instant::now() < at) {
            return false;
        }
        let began = Instant::now();
        while began.elapsed() < self.aside.patience {
            let mut is_taker = false;
            for queue in &self.queues {
                is_taker |= matches!(
                    self.reserver.becomes_taker(&queue.queue, TAKER.as_secs()).await,
                    Ok(true)
                );
            }
            if !is_taker {
                return false; // Somebody else stands aside, or has taken it.
            }
            self.shared.readiness.progress();
            if tokio::time::timeout(TAKER / 2, self.shared.leases.empty())
                .await
                .is_ok()
            {
                return true;
            }
        }
        self.aside.not_before = Some(Instant::now() + self.aside.patience);
        self.aside.patience = (self.aside.patience * 2).min(self.shared.config.time_limit.max(TAKER));
        false
    }

    /// Runs a suspect alone. True if one was run, so the world is worth another look.
    async fn take_suspect(&mut self) -> bool {
        if !self.shared.leases.is_empty() && !self.stand_aside().await {
            return false;
        }
        let leases = Arc::clone(&self.shared.leases);
        match self.reserver.reserve_suspect(&self.queues, || leases.lids()).await {
            Ok(Reserved::Batch(batch)) if !batch.taken.is_empty() => {
                self.aside = Aside::default();
                self.start(batch).await;
                self.shared.while_alive(self.shared.leases.empty()).await; // Alone means alone.
                true
            }
            Ok(_) => false,
            Err(err) => {
                tracing::debug!(error = %chain(&err), "taking a suspect again");
                false
            }
        }
    }

    /// Waits for a report of a change, or for the next look. True after a report.
    async fn wait(&self) -> bool {
        let patience = if self.waker.is_tracking() {
            PATIENCE
        } else {
            POLL.0 + POLL.1.mul_f64(crate::random())
        };
        // What is due is promoted by a task of its own, and its push is reported like any other.
        tokio::select! {
            () = self.waker.changed() => true,
            () = tokio::time::sleep(patience) => false,
        }
    }

    /// Decides on each message and starts what can run. Told to be quiet, it leaves the rest to the last hello, which
    /// hands back what is not named.
    async fn start(&mut self, batch: Batch) {
        self.deciding.send_replace(true);
        self.decide_all(batch).await;
        self.deciding.send_replace(false);
    }

    async fn decide_all(&mut self, batch: Batch) {
        let Batch {
            term,
            sent,
            now,
            taken,
            has_counted,
            faults,
        } = batch;
        self.shared.has_counted.store(has_counted, Ordering::Relaxed);
        for (key, reason) in faults {
            self.shared.faults.report(&key, &reason);
        }
        if let Some(now) = now {
            self.shared.clock.observe(now);
        }
        let now = self.shared.clock.now();
        for Taken {
            lid,
            micros,
            queue,
            raw,
            is_suspect,
        } in taken
        {
            if self.quiet.is_cancelled() {
                return self.reserver.forget();
            }
            let lease = self
                .shared
                .leases
                .insert(&lid, term, micros, sent, self.shared.config.lease);
            let limits = Limits {
                bytes: self.shared.config.max_message,
                ..Limits::default()
            };
            match message::decode(&raw, &limits, &self.shared.config.zone) {
                Ok(message) => {
                    self.decide(
                        Delivery {
                            lease,
                            queue,
                            raw,
                            message,
                            is_suspect,
                            sends: Aftermath::default(),
                        },
                        now,
                    )
                    .await;
                }
                Err(malformed) => self.reject(lid, queue, &malformed).await,
            }
        }
    }

    async fn decide(&mut self, mut delivery: Delivery, now: f64) {
        if self.shared.revoked.contains(&delivery.message.id, now) {
            return self.shared.revoke(delivery, "revoked").await;
        }
        let mut job = self.shared.tasks.get(&delivery.message.task).cloned();
        if job.is_none()
            && let Some((builtin, sends)) = canvas::builtin(&self.shared, &delivery.message)
        {
            delivery.sends = sends;
            job = Some(builtin);
        }
        match (admit(&delivery.message, job.is_some(), now), job) {
            (Admission::Run, Some(job)) => {
                self.shared
                    .events
                    .task(|| Event::TaskReceived(TaskInfo::from(&delivery.message)));
                self.spawn(delivery, job).await;
            }
            (Admission::Later(due), _) => {
                self.shared
                    .events
                    .task(|| Event::TaskReceived(TaskInfo::from(&delivery.message)));
                self.shared
                    .due
                    .within(Duration::try_from_secs_f64(due - now).unwrap_or_default());
                self.shared.end(delivery, End::Park { due }, None, "", "parked").await;
            }
            (Admission::Expired, _) => self.shared.revoke(delivery, "expired").await,
            (Admission::Unknown | Admission::Run, _) => self.unknown(delivery).await,
        }
    }

    /// A task that this worker does not know: back to who does, else to the dead letters.
    async fn unknown(&mut self, delivery: Delivery) {
        let (task, queue) = (delivery.message.task.clone(), Arc::clone(&delivery.queue));
        let asked = self
            .peers
            .somebody_knows(&self.broker, &self.shared.worker, &queue, &task);
        let Some(is_known) = self.quiet.run_until_cancelled(asked).await else {
            self.shared.leases.remove(std::iter::once(&delivery.lease.lid));
            return self.reserver.forget();
        };
        if is_known {
            match self.broker.count_hand_back(&delivery.message.id).await {
                Ok(times) if times <= HAND_BACKS => {
                    let due = self.shared.clock.now() + 1.0;
                    self.shared.due.within(Duration::from_secs(1));
                    tracing::info!(task.name = %task, queue = %queue, times, "unknown here, handed back to others on the queue");
                    return self
                        .shared
                        .end(delivery, End::Park { due }, None, "", "handed_back")
                        .await;
                }
                Ok(_) => {}
                // Not counted is not used up: what others know is not buried for a hiccup of Redis.
                Err(err) => {
                    tracing::debug!(error = %chain(&err), "hand-back not counted");
                    let due = self.shared.clock.now() + 1.0;
                    return self
                        .shared
                        .end(delivery, End::Park { due }, None, "", "handed_back")
                        .await;
                }
            }
        }
        let failure = Failure {
            exc_module: "celery.exceptions".into(),
            ..Failure::permanent("NotRegistered", format!("'{task}'"))
        };
        self.shared
            .bury(delivery, &failure, format!("unknown task {task:?}"))
            .await;
    }

    async fn reject(&self, lid: Arc<str>, queue: Arc<str>, malformed: &Malformed) {
        let reason = malformed.to_string();
        tracing::error!(queue = %queue, task.id = malformed.id.as_deref().unwrap_or(""), reason = %reason, "message put in the quarantine");
        self.shared.metrics.ended(&queue, "", "quarantined");
        let result = malformed.id.as_deref().map(|id| {
            let failure = result::Failure::new("kombu.exceptions", "DecodeError", &reason);
            let meta = result::Meta {
                done_at: self.shared.clock.timestamp(),
                ..result::Meta::default()
            };
            self.shared
                .stored(id, result::failure(id, &failure, None, &meta), false)
        });
        let settlement = Settlement {
            lid,
            id: malformed.id.clone().unwrap_or_default(),
            task: malformed.task.clone().unwrap_or_default(),
            end: End::Quarantine { reason },
            result,
            run: None,
            outcome: "failed",
            follow_ups: Vec::new(),
        };
        self.shared.send(Ended { queue, settlement }).await;
    }

    async fn spawn(&self, delivery: Delivery, job: Arc<dyn Job>) {
        // Never waits: only this loop takes slots, and it asked for no more messages than were free.
        let Ok(slot) = Arc::clone(&self.shared.slots).acquire_owned().await else {
            return;
        };
        let shared = Arc::clone(&self.shared);
        shared.started.fetch_add(1, Ordering::Relaxed);
        shared.metrics.started.inc();
        tokio::spawn(async move {
            run(&shared, delivery, job).await;
            shared.finished.fetch_add(1, Ordering::Relaxed);
            shared.metrics.finished.inc();
            drop(slot); // After the settlement is on its way: a slow Redis slows the taking down.
        });
    }
}

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

/// What a result document is made of.
pub(crate) struct ResultContext<'a> {
    pub(crate) id: &'a str,
    pub(crate) meta: result::Meta<'a>,
}

async fn run(shared: &Arc<Shared>, delivery: Delivery, job: Arc<dyn Job>) {
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

fn failure_of(failure: &Failure) -> result::Failure {
    let Failure {
        exc_type,
        exc_module,
        message,
        is_retryable: _,
    } = failure;
    result::Failure::new(exc_module, exc_type, message)
}

impl Shared {
    /// Waits for what may rightly take long, a free slot or the end of runs: the process counts as alive meanwhile.
    pub(crate) async fn while_alive<T>(&self, waited_for: impl Future<Output = T>) -> T {
        tokio::pin!(waited_for);
        loop {
            self.readiness.progress();
            if let Ok(done) = tokio::time::timeout(Duration::from_secs(30), &mut waited_for).await {
                return done;
            }
        }
    }

    /// Hands an end to the settler; waits while it has many.
    pub(crate) async fn send(&self, ended: Ended) {
        let lid = Arc::clone(&ended.settlement.lid);
        if self.ended.send(ended).await.is_err() {
            tracing::error!("nobody settles any more: the lease will");
            self.leases.remove(std::iter::once(&lid));
        }
    }

    /// A result document for the message, unless nobody wants one.
    pub(crate) fn document(
        &self,
        message: &TaskMessage,
        is_success: bool,
        trail: &[Json],
        make: impl FnOnce(&ResultContext) -> Vec<u8>,
    ) -> Option<StoredResult> {
        if message.ignore_result == Some(true) {
            return None;
        }
        let meta = result::Meta {
            done_at: self.clock.timestamp(),
            group_id: message.group.as_deref(),
            parent_id: message.parent_id.as_deref(),
            trail,
            ..result::Meta::default()
        };
        let document = make(&ResultContext { id: &message.id, meta });
        Some(self.stored(&message.id, document, is_success))
    }

    pub(crate) fn stored(&self, id: &str, document: Vec<u8>, is_success: bool) -> StoredResult {
        let key = self
            .results
            .as_ref()
            .map_or_else(|| self.broker.result_key(id), |results| results.key(id));
        StoredResult {
            key,
            ttl: self.config.policy.result_ttl,
            document,
            is_success,
        }
    }

    /// Ends a delivery that nothing follows.
    pub(crate) async fn end(
        &self,
        delivery: Delivery,
        end: End,
        result: Option<StoredResult>,
        outcome: &'static str,
        state: &'static str,
    ) {
        self.end_with(delivery, end, result, Vec::new(), (outcome, state)).await;
    }

    /// Ends a delivery with all that follows in its workflow. `words` are the run's outcome and the metric's state.
    async fn end_workflow(
        self: &Arc<Self>,
        delivery: Delivery,
        end: End,
        result: Option<StoredResult>,
        aftermath: Aftermath,
        words: (&'static str, &'static str),
    ) {
        match canvas::resolve(self, &delivery.message, aftermath).await {
            Ok(follow_ups) => self.end_with(delivery, end, result, follow_ups, words).await,
            Err(err) => {
                tracing::error!(task.id = %delivery.message.id, error = %chain(&err), "what follows could not be prepared: the message will be delivered again");
                self.leases.remove(std::iter::once(&delivery.lease.lid));
            }
        }
    }

    async fn end_with(
        &self,
        delivery: Delivery,
        end: End,
        result: Option<StoredResult>,
        follow_ups: Vec<FollowUp>,
        (outcome, state): (&'static str, &'static str),
    ) {
        let Delivery {
            lease, queue, message, ..
        } = delivery;
        let run = message.header("umbel_run").and_then(|run| run.to().ok());
        let is_known = self.tasks.get(&message.task).is_some();
        self.metrics
            .ended(&queue, if is_known { &message.task } else { "" }, state);
        let settlement = Settlement {
            lid: lease.lid,
            id: message.id,
            task: message.task,
            end,
            result,
            run,
            outcome,
            follow_ups,
        };
        self.send(Ended { queue, settlement }).await;
    }

    /// Ends a delivery that is not to run, or not any longer. `why` is `revoked`, `expired` or `terminated`.
    pub(crate) async fn revoke(self: &Arc<Self>, delivery: Delivery, why: &'static str) {
        self.events.task(|| Event::TaskRevoked {
            uuid: delivery.message.id.clone(),
            terminated: why == "terminated",
            signum: (why == "terminated").then(|| Json::of(&15)), // What Celery sends, unless told otherwise.
            expired: why == "expired",
        });
        let result = self.document(&delivery.message, false, &[], |ctx| {
            result::revoked(ctx.id, why, &ctx.meta)
        });
        let aftermath = after_revoked(&delivery.message, why);
        let word = if why == "expired" { "expired" } else { "revoked" };
        self.end_workflow(delivery, End::Ack, result, aftermath, (word, word))
            .await;
    }

    /// Tasks that run.
    pub(crate) fn busy(&self) -> usize {
        let finished = self.finished.load(Ordering::Relaxed);
        let started = self.started.load(Ordering::Relaxed);
        usize::try_from(started.saturating_sub(finished)).unwrap_or(usize::MAX)
    }

    /// Ends a delivery as a failure: result for the caller, message to the dead letters, the rest of its workflow failed.
    pub(crate) async fn bury(self: &Arc<Self>, delivery: Delivery, failure: &Failure, reason: String) {
        tracing::warn!(
            task.id = %delivery.message.id, task.name = %delivery.message.task, queue = %delivery.queue, reason = %reason,
            "task failed: dead letter"
        );
        let document = failure_of(failure);
        let text = failure.to_string();
        self.events.task(|| Event::TaskFailed {
            uuid: delivery.message.id.clone(),
            exception: document.repr(),
            traceback: Some(text.clone()),
        });
        let aftermath = canvas::after_failure(self, &delivery.message, &document, &text);
        let trail: Vec<Json> = aftermath.children.iter().map(ResultTuple::to_json).collect();
        let result = self.document(&delivery.message, false, &trail, |ctx| {
            result::failure(ctx.id, &document, Some(&text), &ctx.meta)
        });
        self.end_workflow(delivery, End::Bury { reason }, result, aftermath, ("failed", "failed"))
            .await;
    }
}

/// Faults of lists, told once a minute each: one line, not one a reserve.
#[derive(Default)]
pub(crate) struct Faults {
    told: std::sync::Mutex<HashMap<String, Instant>>,
}

impl Faults {
    fn report(&self, key: &str, reason: &str) {
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_news = told.get(key).is_none_or(|at| at.elapsed() > Duration::from_secs(60));
        if is_news {
            tracing::error!(key, reason, "cannot take from this list");
            told.insert(key.to_owned(), Instant::now());
        }
    }
}
