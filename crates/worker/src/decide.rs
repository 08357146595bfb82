//! What becomes of each message that was taken: it runs, or it is parked, handed back, buried or put in the quarantine
//! with a reason. A message that cannot be read ends nobody.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::OwnedSemaphorePermit;
use umbel_broker::{Batch, End, Taken};
use umbel_protocol::canvas::Aftermath;
use umbel_protocol::message::Limits;
use umbel_telemetry::{chain, task};

use crate::admit::{Admission, UnknownTask, admit};
use crate::app::Shared;
use crate::args::Config;
use crate::canvas;
use crate::consume::{Decider, Held};
use crate::facts;
use crate::job::{Failure, Job};
use crate::lease::{Cut, Lease};
use crate::limits::Asking;
use crate::lost::{Unread, quarantine};
use crate::rates::Turn;
use crate::run::{Delivery, begin, run};
use crate::runners::give_back;
use crate::skew;

/// Messages that are handed to the runners together: the first start while the last are read.
const TOGETHER: usize = 32;
/// A batch that takes longer had to ask somebody, or is huge.
const SLOW: Duration = Duration::from_millis(20);
/// A message that is handed back is not taken again for so long: others get their chance.
const HAND_BACK: Duration = Duration::from_secs(1);

/// A message that is to run: its slot, itself, its task.
pub(crate) type Start = (OwnedSemaphorePermit, Delivery, Arc<dyn Job>);

impl Decider {
    /// Decides on each message and starts what can run. Told to be quiet, it leaves the rest to the last hello, which
    /// hands back what is not named.
    pub(crate) async fn start(&mut self, held: Held) {
        let began = Instant::now();
        self.deciding.send_replace(true);
        self.permits = held.permits;
        self.decide_all(held.batch, held.leases).await;
        self.take_turns().await;
        self.start_gathered();
        self.permits = None;
        self.deciding.send_replace(false);
        self.is_slow = began.elapsed() > SLOW;
    }

    /// Leaves messages to the next hello.
    pub(crate) fn leave<'a>(&mut self, lids: impl Iterator<Item = &'a Arc<str>>) {
        self.shared.leases.remove(lids);
        self.has_left = true;
    }

    async fn decide_all(&mut self, batch: Batch, leases: Vec<Lease>) {
        let Batch {
            term: _,
            sent: _,
            now,
            taken,
            has_counted,
            faults,
            blocked: _,
        } = batch;
        self.shared.has_counted.store(has_counted, Ordering::Relaxed);
        for (key, reason) in faults {
            self.shared.faults.report(&key, &reason);
        }
        if let Some(now) = now {
            self.shared.clock.observe(now);
        }
        let now = self.shared.clock.now();
        let mut taken = leases.into_iter().zip(taken);
        while let Some((lease, one)) = taken.next() {
            let Taken {
                lid,
                queue,
                raw,
                is_suspect,
                ..
            } = one;
            if self.quiet.is_cancelled() {
                let rest = taken.map(|(_, one)| one.lid);
                let asking = self.asking.drain(..).map(|one| one.ask.lid);
                let lids: Vec<_> = std::iter::once(lid).chain(rest).chain(asking).collect();
                return self.leave(lids.iter());
            }
            let limits = Limits {
                bytes: self.shared.config.max_message,
                ..Limits::default()
            };
            let Config { codec, zone, .. } = &self.shared.config;
            match self.reader.decode(&raw, &limits, zone, codec) {
                Ok(message) => {
                    let message = Arc::new(message);
                    let delivery = Delivery {
                        lease,
                        queue: Arc::clone(&queue),
                        raw: Arc::new(raw),
                        message: Arc::clone(&message),
                        is_suspect,
                        is_early: false,
                        sends: Aftermath::default(),
                    };
                    if let Some(delivery) = self.start_plain(delivery, now) {
                        facts::within(&message, &queue, self.decide(delivery, now)).await;
                    }
                }
                Err(malformed) => {
                    let raw = Arc::new(raw);
                    quarantine(&self.shared, Unread { lease, queue, raw }, &malformed).await;
                }
            }
        }
    }

    /// Starts a message of which nothing is to be asked, as most are; else it is back, to be decided on.
    fn start_plain(&mut self, delivery: Delivery, now: f64) -> Option<Delivery> {
        let Shared {
            revoked,
            tasks,
            rates,
            limits,
            budget,
            config,
            ..
        } = &*self.shared;
        let message = &*delivery.message;
        let Some(job) = tasks.get(&message.task) else {
            return Some(delivery);
        };
        let is_plain = message.retries == 0
            && !rates.are_any()
            && !revoked.contains(message, now)
            && admit(message, true, now, config.expires_after) == Admission::Run
            && skew::too_new(message, tasks.options(&message.task)).is_none()
            && matches!(limits.ask(&delivery, &**job), Ok(None))
            && budget.wait(&delivery.queue, 0).is_none();
        if !is_plain {
            return Some(delivery);
        }
        let Some(slot) = self.permits.as_mut().and_then(|permits| permits.split(1)) else {
            return Some(delivery);
        };
        let job = Arc::clone(job);
        self.takes(&delivery);
        self.starting.push((slot, delivery, job));
        if self.starting.len() >= TOGETHER {
            self.start_gathered();
        }
        None
    }

    /// A message starts, or waits here for its turn.
    fn takes(&self, delivery: &Delivery) {
        self.shared.events.received(&delivery.message, false);
        self.shared.recycle.takes();
    }

    async fn decide(&mut self, mut delivery: Delivery, now: f64) {
        if self.shared.revoked.contains(&delivery.message, now) {
            return self.shared.revoke(delivery, "revoked").await;
        }
        let mut job = self.shared.tasks.get(&delivery.message.task).cloned();
        if job.is_none()
            && let Some((builtin, sends)) = canvas::builtin(&self.shared, &delivery.message)
        {
            delivery.sends = sends;
            job = Some(builtin);
        }
        match (
            admit(&delivery.message, job.is_some(), now, self.shared.config.expires_after),
            job,
        ) {
            (Admission::Run, Some(job)) => {
                let options = self.shared.tasks.options(&delivery.message.task);
                if let Some(version) = skew::too_new(&delivery.message, options) {
                    return self.too_new(delivery, version).await;
                }
                if let Some(wait) = self.shared.budget.wait(&delivery.queue, delivery.message.retries) {
                    return self.park(delivery, now + wait.as_secs_f64(), wait).await;
                }
                match self.shared.limits.ask(&delivery, &*job) {
                    Ok(None) => self.begin(delivery, job, Duration::ZERO).await,
                    Ok(Some(ask)) => self.asking.push(Asking { delivery, job, ask }),
                    Err(failure) => {
                        let reason = format!("failed before its run: {failure}");
                        self.shared.bury(delivery, &failure, reason).await;
                    }
                }
            }
            (Admission::Later(due), _) => {
                let wait = Duration::try_from_secs_f64(due - now).unwrap_or_default();
                self.park(delivery, due, wait).await;
            }
            (Admission::Expired, _) => self.shared.revoke(delivery, "expired").await,
            (Admission::Unknown | Admission::Run, _) => self.unknown(delivery).await,
        }
    }

    /// Starts a message, after `wait` at the earliest; the limit of this worker alone may want more.
    pub(crate) async fn begin(&mut self, delivery: Delivery, job: Arc<dyn Job>, wait: Duration) {
        match self.shared.rates.turn(job.name(), Instant::now(), crate::random()) {
            Turn::After(own) => {
                self.takes(&delivery);
                match wait.max(own) {
                    Duration::ZERO => self.spawn(delivery, job).await,
                    wait => self.hold(delivery, job, wait),
                }
            }
            Turn::Away(wait) => {
                let due = self.shared.clock.now() + wait.as_secs_f64();
                self.park(delivery, due, wait).await;
            }
        }
    }

    /// Puts a message aside until its time.
    async fn park(&self, delivery: Delivery, due: f64, wait: Duration) {
        self.shared.events.received(&delivery.message, true);
        self.shared.due.within(wait);
        self.shared.end(delivery, End::Park { due }, None, "", "parked").await;
    }

    /// A task that this worker does not know: back to who does, else to the dead letters.
    async fn unknown(&mut self, mut delivery: Delivery) {
        let (task, queue) = (delivery.message.task.clone(), Arc::clone(&delivery.queue));
        let is_hand_back = self.shared.config.on_unknown_task == UnknownTask::HandBack;
        let (peers, me) = (&mut self.peers, &self.shared.worker);
        let asked = async { is_hand_back && peers.somebody_knows(&self.broker, me, &queue, &task).await };
        let Some(is_known) = self.quiet.run_until_cancelled(asked).await else {
            return self.leave(std::iter::once(&delivery.lease.lid));
        };
        if is_known {
            match self.leave_to_others(delivery).await {
                Some(left) => delivery = left,
                None => return,
            }
        }
        let failure = Failure {
            exc_module: "celery.exceptions".into(),
            ..Failure::permanent("NotRegistered", task.clone())
        };
        self.shared
            .bury(delivery, &failure, format!("unknown task {task:?}"))
            .await;
    }

    /// A message whose arguments are newer than what its task reads here: to a newer release, else to the dead letters.
    async fn too_new(&self, delivery: Delivery, version: u32) {
        if let Some(delivery) = self.leave_to_others(delivery).await {
            let (failure, reason) = (skew::failure(version), skew::reason(version));
            self.shared.bury(delivery, &failure, reason).await;
        }
    }

    /// Hands a message back to its queue for others, unless that was done too often: then here it is again.
    async fn leave_to_others(&self, delivery: Delivery) -> Option<Delivery> {
        match self.broker.count_hand_back(&delivery.message.id).await {
            Ok(times) if times > self.shared.config.hand_backs => return Some(delivery),
            Ok(times) => {
                let (task, queue) = (&delivery.message.task, &delivery.queue);
                tracing::info!(task.name = %task, queue = %queue, times, "not for this worker, handed back to others on the queue");
            }
            // Not counted is not used up: what others know is not buried for a hiccup of Redis.
            Err(err) => tracing::debug!(error = %chain(&err), "hand-back not counted"),
        }
        let due = self.shared.clock.now() + HAND_BACK.as_secs_f64();
        self.shared.due.within(HAND_BACK);
        self.shared
            .end(delivery, End::Park { due }, None, "", "handed_back")
            .await;
        None
    }

    async fn spawn(&mut self, delivery: Delivery, job: Arc<dyn Job>) {
        let slot = match self.permits.as_mut().and_then(|permits| permits.split(1)) {
            Some(slot) => slot,
            // A suspect, taken by a worker that runs nothing else.
            None => match Arc::clone(self.shared.slots.free()).acquire_owned().await {
                Ok(slot) => slot,
                Err(_) => return,
            },
        };
        self.starting.push((slot, delivery, job));
        if self.starting.len() >= TOGETHER {
            self.start_gathered();
        }
    }

    /// Hands what was decided on to the runners.
    fn start_gathered(&mut self) {
        if !self.starting.is_empty() {
            let these = std::mem::take(&mut self.starting);
            self.runners
                .start(&self.shared, these, |shared, (slot, delivery, job), cx| {
                    begin_in(shared, slot, delivery, job, cx)
                });
        }
    }

    /// Waits for the message's turn under its lease, without a slot, and then for a slot. The turn is spent, so a worker
    /// that only recycles waits as well.
    fn hold(&self, delivery: Delivery, job: Arc<dyn Job>, wait: Duration) {
        let (shared, quiet) = (Arc::clone(&self.shared), self.shared.recycle.told().clone());
        let lid = Arc::clone(&delivery.lease.lid);
        shared.rates.waits(&lid);
        tokio::spawn(async move {
            let turn = async {
                tokio::time::sleep(wait).await;
                Arc::clone(shared.slots.free()).acquire_owned().await
            };
            let lease = delivery.lease.clone();
            let slot = tokio::select! {
                biased;
                cut = lease.cut_short() => Err(Some(cut)),
                () = quiet.cancelled() => Err(None),
                slot = turn => slot.map_err(|_| None),
            };
            shared.rates.waits_no_more(&lid);
            match slot {
                Ok(slot) => match admit(&delivery.message, true, shared.clock.now(), shared.config.expires_after) {
                    Admission::Expired => {
                        shared.recycle.gives_back();
                        shared.revoke(delivery, "expired").await;
                    }
                    Admission::Run | Admission::Later(_) | Admission::Unknown => {
                        run_in(shared, slot, delivery, job).await;
                    }
                },
                Err(cut) => {
                    shared.recycle.gives_back();
                    not_begun(&shared, delivery, cut).await;
                }
            }
        });
    }
}

/// Ends a message that waited here in vain.
async fn not_begun(shared: &Arc<Shared>, delivery: Delivery, cut: Option<Cut>) {
    match cut {
        Some(Cut::Lost) => shared.leases.remove(std::iter::once(&delivery.lease.lid)),
        Some(Cut::Terminated) => shared.revoke(delivery, "terminated").await,
        // The worker stops: what has not begun goes back at once.
        None => shared.end(delivery, End::Release, None, "", "handed_back").await,
    }
}

/// Begins a message in a slot; what is left of it, where it has to wait.
fn begin_in(
    shared: &Arc<Shared>,
    slot: OwnedSemaphorePermit,
    delivery: Delivery,
    job: Arc<dyn Job>,
    cx: &mut Context<'_>,
) -> Option<BoxFuture<'static, ()>> {
    shared.recycle.started();
    let running = Running::new(shared, &delivery.lease.lid);
    let facts = facts::of(&delivery.message, &delivery.queue);
    let Some(rest) = task::within_call(Arc::clone(&facts), || begin(shared, delivery, job, cx)) else {
        drop(running);
        give_back(slot);
        return None;
    };
    let rest = async move {
        rest.await;
        drop(running);
        drop(slot); // After the settlement is on its way: a slow Redis slows the taking down.
    };
    Some(task::within(facts, rest).boxed())
}

/// Runs a message in a slot.
async fn run_in(shared: Arc<Shared>, slot: OwnedSemaphorePermit, delivery: Delivery, job: Arc<dyn Job>) {
    shared.recycle.started();
    let running = Running::new(&shared, &delivery.lease.lid);
    let (message, queue) = (Arc::clone(&delivery.message), Arc::clone(&delivery.queue));
    facts::within(&message, &queue, run(&shared, delivery, job)).await;
    drop(running);
    drop(slot); // As above.
}

/// Counts a run, from its start to its end. Where that is a panic outside of the task, whoever polled it, nobody settles
/// the message: its lease is renewed no more, and returns it.
struct Running {
    shared: Arc<Shared>,
    lid: Arc<str>,
}

impl Running {
    fn new(shared: &Arc<Shared>, lid: &Arc<str>) -> Running {
        shared.started.fetch_add(1, Ordering::Relaxed);
        shared.metrics.started.inc();
        let (shared, lid) = (Arc::clone(shared), Arc::clone(lid));
        Running { shared, lid }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.finished.fetch_add(1, Ordering::Relaxed);
        self.shared.metrics.finished.inc();
        if std::thread::panicking() {
            tracing::error!(lease = %self.lid, "a run panicked outside of its task: its lease runs out and returns the message");
            self.shared.leases.remove(std::iter::once(&self.lid));
        }
    }
}

/// Faults of lists, told once a minute each: one line, not one a reserve.
#[derive(Default)]
pub(crate) struct Faults {
    told: std::sync::Mutex<HashMap<String, Instant>>,
}

impl Faults {
    pub(crate) fn report(&self, key: &str, reason: &str) {
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_news = told.get(key).is_none_or(|at| at.elapsed() > Duration::from_secs(60));
        if is_news {
            tracing::error!(key, reason, "cannot take from this list");
            told.insert(key.to_owned(), Instant::now());
        }
    }
}
