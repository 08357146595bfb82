//! The loop of a worker: a free slot first, then a message for it, then its run, then its settlement.
//!
//! While a batch is decided on, the next is on its way, so that neither Redis nor the worker waits for the other.
//!
//! # Guarantees
//! Never more messages are held than there are slots, and each is decided on the moment it was taken, or when the batch
//! before it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use umbel_broker::{Admission as SelfAdmission, Batch, Blocked, Broker, QueueLists, Reserved, Reserver, Waker};
use umbel_protocol::control::Consumed;
use umbel_protocol::message::Reader;
use umbel_telemetry::chain;

use crate::app::Shared;
use crate::decide::Start;
use crate::lease::Lease;
use crate::limits::Asking;
use crate::peers::Peers;
use crate::runners::Runners;
use crate::shares::{Quota, Shares};

/// Messages in one reserve: Redis is busy for less than a millisecond with so many.
const BATCH: usize = 256;
/// With so many slots a batch has half of them at most: while it is decided on, the next one is on its way.
const MANY: usize = 64;
/// Longest time without a look in a backlog: a suspect must not wait for its end.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest wait between two looks where Redis reports changes: with all else that an idle worker asks, it asks no more
/// often than Celery's.
const IDLE: Duration = Duration::from_millis(2500);
/// The pause before a hello to a server that does not know us any more.
const FORGOTTEN: Duration = Duration::from_millis(50);
/// Shortest and longest wait where it does not.
const POLL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));
/// Shortest time between two reserves while a limit of a queue keeps messages from being taken.
const BLOCKED: Duration = Duration::from_millis(10);
/// A leader whose heartbeat is older does not count, and a worker waits as long for one before it admits itself.
const LEADER_PATIENCE: Duration = Duration::from_secs(30);
/// How often a worker that is not admitted asks for the leader.
const LEADER_ASKED: Duration = Duration::from_secs(5);
/// For so long a busy worker first stops taking messages to be free for a suspect; its claim lasts as long unless it is
/// repeated.
const TAKER: Duration = Duration::from_secs(30);

pub(crate) struct Consumer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) broker: Broker,
    pub(crate) reserver: Reserver,
    pub(crate) waker: Waker,
    pub(crate) queues: Vec<QueueLists>,
    /// What remote control makes of the queues.
    pub(crate) served: watch::Receiver<Vec<Consumed>>,
    pub(crate) quiet: CancellationToken,
    pub(crate) backoff: Duration,
    pub(crate) aside: Aside,
    /// Whose turn it is.
    pub(crate) shares: Shares,
    /// A limit of a queue keeps messages from being taken.
    pub(crate) blocked: Option<Blocked>,
    /// Was the gate open at the last look?
    pub(crate) is_open: bool,
    /// Did the last reserve bring nothing?
    pub(crate) in_vain: bool,
    pub(crate) decider: Decider,
    /// Taken, and to be decided on while the next batch is on its way.
    pub(crate) ahead: Option<Held>,
}

/// Messages that were taken, with their leases and their slots.
pub(crate) struct Held {
    pub(crate) batch: Batch,
    pub(crate) leases: Vec<Lease>,
    /// None for a suspect, which runs alone.
    pub(crate) permits: Option<OwnedSemaphorePermit>,
}

/// Decides on messages that were taken.
pub(crate) struct Decider {
    pub(crate) shared: Arc<Shared>,
    pub(crate) broker: Broker,
    /// Slots for what is being decided on.
    pub(crate) permits: Option<OwnedSemaphorePermit>,
    pub(crate) peers: Peers,
    pub(crate) quiet: CancellationToken,
    /// Messages were taken and are not yet decided on: not a moment to drop the loop.
    pub(crate) deciding: watch::Sender<bool>,
    pub(crate) runners: Arc<Runners<Start>>,
    /// Decided on, on their way to the runners.
    pub(crate) starting: Vec<Start>,
    /// Messages of a batch that must ask before they run.
    pub(crate) asking: Vec<Asking>,
    /// Knows how the last messages were laid out.
    pub(crate) reader: Reader,
    /// Messages were left to the next hello, which hands back what is not named.
    pub(crate) has_left: bool,
    /// Did the last batch have to ask somebody? Then the next one stays in Redis, for others, until this one is decided on.
    pub(crate) is_slow: bool,
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
        let (quiet, mut deciding) = (self.quiet.clone(), self.decider.deciding.subscribe());
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
        if let Some(held) = self.ahead.take() {
            self.decider.leave(held.leases.iter().map(|lease| &lease.lid));
        }
        self.forget_left();
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
        let mut explained = crate::server::Explained::default();
        let mut trouble = None;
        let mut fruitless = 0_u32;
        let mut leader_seen = Instant::now();
        let mut leader_asked = Instant::now();
        let mut is_woken = true;
        let mut looked = Instant::now();
        let mut reported = Instant::now();
        loop {
            self.shared.readiness.progress();
            if self.quiet.is_cancelled() {
                return;
            }
            if self.served.has_changed().unwrap_or(false) {
                self.change_queues();
                is_woken = true;
            }
            let free = self.shared.slots.free().available_permits();
            if free == 0 {
                self.start_ahead().await;
                // Wait for a slot; the permit itself is taken when there is a message for it.
                drop(self.shared.while_alive(self.shared.slots.free().acquire()).await);
                continue;
            }
            // Nothing was reported since the last look: another look costs less than a reserve.
            let next = if is_woken {
                self.take(free, &mut fruitless).await
            } else {
                Ok(Next::Wait)
            };
            // However long the backlog: now and then a look, or a suspect would wait for its end.
            let goes_on = matches!(next, Ok(Next::Again)) && looked.elapsed() < PATIENCE;
            if !goes_on {
                self.start_ahead().await; // Nothing that was taken waits for what comes now.
            }
            if self.note_hello() {
                leader_seen = Instant::now(); // After an outage its leader gets as long to come back as we did.
            }
            match next {
                Ok(_) => {
                    (failures, trouble) = (0, None);
                    if goes_on {
                        is_woken = true;
                        continue;
                    }
                }
                Err(err) => {
                    self.shared.metrics.broker_failed(&err);
                    // Each kind once, and then now and then.
                    if trouble.replace(err.trouble()) != Some(err.trouble()) || failures.is_multiple_of(20) {
                        tracing::warn!(error = %chain(&err), server = %self.broker.server(), "taking messages again");
                    }
                    failures += 1;
                    is_woken = true;
                    explained.explain(&self.broker, &self.shared.queues.names(), &err).await;
                    tokio::time::sleep(self.pause(&err, failures)).await;
                    continue;
                }
            }
            self.waker.blocked(self.blocked.is_some());
            let look = match self.waker.look().await {
                Ok(look) => look,
                Err(err) => {
                    self.shared.metrics.broker_failed(&err);
                    tracing::debug!(error = %chain(&err), "looking again");
                    failures += 1;
                    is_woken = true;
                    tokio::time::sleep(self.pause(&err, failures)).await;
                    continue;
                }
            };
            looked = Instant::now();
            self.shared.fleet.met(look.workers);
            self.shared.clock.observe(look.now);
            self.shared.due.looked(look.due_in);
            let is_open = look.gate == "open";
            self.is_open = is_open;
            self.note_gate(&look.gate);
            if look.gate.is_empty() {
                self.reserver.forget(); // Redis has lost us: hello again.
                is_woken = true;
                tokio::time::sleep(FORGOTTEN).await;
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
            if is_open && look.waiting > 0 && fruitless < 3 && self.blocked.is_none() {
                fruitless += 1; // Somebody else may have been faster; do not spin on a list that cannot be read.
                is_woken = true;
                continue;
            }
            fruitless = 0;
            is_woken = self.wait().await;
            // What a limit holds back is not to be seen by a look.
            if is_woken && self.blocked.is_none() {
                let hesitation = self
                    .shared
                    .fleet
                    .hesitate(self.in_vain, reported.elapsed(), crate::random());
                if !hesitation.is_zero() {
                    tokio::time::sleep(hesitation).await;
                    is_woken = false; // A look first: most likely somebody else has it by now.
                }
                reported = Instant::now(); // Who hesitates does not hear of others meanwhile: that is no rest.
            }
        }
    }

    /// Serves what remote control has left: those of before keep their turns.
    fn change_queues(&mut self) {
        let names: Vec<String> = self
            .served
            .borrow_and_update()
            .iter()
            .map(|queue| queue.name.clone())
            .collect();
        self.queues
            .retain(|queue| names.iter().any(|name| *name == *queue.queue));
        for name in &names {
            if self.queues.iter().all(|known| *known.queue != **name) {
                self.queues.push(QueueLists::new(self.broker.keys(), name));
                self.reserver.register(name, self.shared.config.policy);
            }
        }
        self.waker.watch(self.queues.clone());
        self.share_out();
        self.shared.due.within(Duration::ZERO); // Who serves a queue promotes what is due in it.
        self.shared.beat_now.notify_one();
        tracing::info!(queues = ?names, "queues changed");
    }

    /// Tells the shares which queues there are, in their order.
    fn share_out(&mut self) {
        let weights = &self.shared.config.weights;
        let weighted = self.queues.iter().map(|queue| {
            let weight = weights.iter().find(|(name, _)| **name == *queue.queue);
            (queue.queue.to_string(), weight.map_or(1, |(_, weight)| *weight))
        });
        self.shares.set(&weighted.collect::<Vec<_>>());
    }

    /// One reserve, and everything it brought on its way.
    async fn take(&mut self, free: usize, fruitless: &mut u32) -> Result<Next, umbel_broker::Error> {
        if self.shared.recycle.is_counting() {
            self.start_ahead().await; // What is not decided on is not counted yet.
        }
        let slots = self.shared.slots.total();
        let most = if slots < MANY { BATCH } else { BATCH.min(slots / 2) };
        let asked = self.shared.recycle.room(free.min(most));
        if asked == 0 {
            return Ok(Next::Wait); // It has run as many as it may; the end is on its way.
        }
        let leases = Arc::clone(&self.shared.leases);
        if self.queues.is_empty() {
            // Idle, but known to Redis all the same.
            self.reserver.ensure(|| leases.lids()).await?;
            return Ok(Next::Wait);
        }
        // Taken before the messages: what waits for its turn in here takes slots, too.
        #[allow(clippy::cast_possible_truncation)] // At most a batch.
        let Ok(permits) = Arc::clone(self.shared.slots.free()).try_acquire_many_owned(asked as u32) else {
            return Ok(Next::Again); // There are fewer than a moment ago.
        };
        self.reserve(asked, permits, fruitless).await
    }

    async fn reserve(
        &mut self,
        asked: usize,
        mut permits: OwnedSemaphorePermit,
        fruitless: &mut u32,
    ) -> Result<Next, umbel_broker::Error> {
        if self.decider.is_slow {
            self.start_ahead().await;
        }
        let leases = Arc::clone(&self.shared.leases);
        self.blocked = None;
        let plan = self.shares.plan(asked);
        let turns: Vec<QueueLists>;
        let queues = if self.queues.len() == 1 {
            &self.queues
        } else {
            let turn = |quota: &Quota| QueueLists {
                share: quota.count,
                ..self.queues[quota.index].clone()
            };
            turns = plan.iter().map(turn).collect();
            &turns
        };
        let (ahead, decider) = (self.ahead.take(), &mut self.decider);
        let start = async {
            if let Some(held) = ahead {
                Box::pin(decider.start(held)).await;
            }
        };
        let taking = async {
            let reserved = self.reserver.reserve(asked, queues, || leases.lids()).await;
            // At once, however long the batch before takes: from now on all of these are renewed, and named at a hello.
            let held = match &reserved {
                Ok(Reserved::Batch(batch)) => hold(&self.shared, batch),
                _ => Vec::new(),
            };
            (reserved, held)
        };
        let ((reserved, held), ()) = tokio::join!(taking, start);
        self.forget_left();
        match reserved? {
            Reserved::Batch(batch) => {
                let got = batch.taken.len();
                *fruitless = if got > 0 { 0 } else { *fruitless };
                self.in_vain = got == 0;
                self.blocked = batch.blocked;
                let counts = self.shares.counted(batch.taken.iter().map(|one| &*one.queue));
                self.shares.taken(&plan, &counts);
                let used = permits.split(got);
                drop(permits);
                self.ahead = Some(Held {
                    batch,
                    leases: held,
                    permits: used,
                });
                Ok(if got == asked { Next::Again } else { Next::Wait })
            }
            Reserved::Gate(state) => {
                self.note_gate(&state);
                Ok(Next::Wait)
            }
            Reserved::Busy => Ok(Next::Wait),
        }
    }

    /// Decides on what was taken ahead.
    async fn start_ahead(&mut self) {
        if let Some(held) = self.ahead.take() {
            Box::pin(self.decider.start(held)).await;
            self.forget_left();
        }
    }

    /// Says hello again where something was left to it.
    fn forget_left(&mut self) {
        if std::mem::take(&mut self.decider.has_left) {
            self.reserver.forget();
        }
    }

    fn pause(&self, err: &umbel_broker::Error, failures: u32) -> Duration {
        err.trouble().pause(failures, crate::random()).min(self.backoff)
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
        if known.is_some() {
            self.shared.metrics.reconnects.inc();
        }
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
            if tokio::time::timeout(TAKER / 2, self.shared.leases.ended())
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
        if !self.shared.leases.is_idle() && !self.stand_aside().await {
            return false;
        }
        let leases = Arc::clone(&self.shared.leases);
        match self.reserver.reserve_suspect(&self.queues, || leases.lids()).await {
            Ok(Reserved::Batch(batch)) if !batch.taken.is_empty() => {
                self.aside = Aside::default();
                self.ahead = Some(Held {
                    leases: hold(&self.shared, &batch),
                    batch,
                    permits: None,
                });
                self.start_ahead().await;
                self.shared.while_alive(self.shared.leases.ended()).await; // Alone means alone.
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
    async fn wait(&mut self) -> bool {
        let patience = if self.waker.is_tracking() {
            // Until it is admitted it asks for a leader now and then, too.
            if self.is_open {
                self.shared.fleet.looks(IDLE)
            } else {
                IDLE
            }
        } else {
            POLL.0 + POLL.1.mul_f64(crate::random())
        };
        let patience = match self.blocked {
            None | Some(Blocked::UntilFreed) => patience,
            Some(Blocked::For(wait)) => patience.min(wait),
        };
        if self.blocked.is_some() {
            // What is produced into a queue that may not be consumed is reported, too.
            tokio::time::sleep(BLOCKED.min(patience)).await;
        }
        // What is due is promoted by a task of its own, and its push is reported like any other.
        tokio::select! {
            () = self.waker.changed() => true,
            changed = self.served.changed() => {
                if changed.is_ok() {
                    self.served.mark_changed(); // The loop looks at it next.
                }
                true
            }
            () = tokio::time::sleep(patience.saturating_sub(BLOCKED)), if self.blocked.is_some() => true,
            () = tokio::time::sleep(patience) => false,
        }
    }
}

/// Holds the leases of what was taken.
fn hold(shared: &Shared, batch: &Batch) -> Vec<Lease> {
    let lids = batch.taken.iter().map(|one| (&one.lid, one.micros));
    shared.leases.insert(lids, batch.term, batch.sent, shared.config.lease)
}
