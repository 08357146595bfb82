//! Recovery by every worker: overdue leases back, due messages promoted, records repaired. No operator is needed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use tokio::sync::Notify;
use umbel_broker::{Broker, Error, Overdue, Reclaim, Reclaimed, SweepAnswer, Sweeper};
use umbel_protocol::message::{self, Limits};
use umbel_telemetry::chain;

use crate::app::Shared;
use crate::clock::RedisClock;
use crate::lost::give_up;
use crate::metrics::Metrics;
use crate::queues::Queues;

/// Leases looked at in one call.
const BATCH: usize = 50;
/// Overdue work comes back at most so fast (leases a second), or a crash of many workers becomes a herd.
const RECLAIM_RATE: f64 = 200.0;
/// Delayed messages moved in one call, a queue.
const PROMOTE: usize = 100;
/// Interval of the janitor; every tenth time it looks at each lease. Half of it after another worker's nothing is done.
const JANITOR_EVERY: Duration = Duration::from_secs(60);

/// Wakes the promotion when something is due sooner than it knows.
#[derive(Default)]
pub(crate) struct DueSoon {
    next: std::sync::Mutex<Option<Instant>>,
    changed: Notify,
    has_looked: AtomicBool,
}

impl DueSoon {
    /// Something is due in so long.
    pub(crate) fn within(&self, wait: Duration) {
        let at = Instant::now() + wait.min(Duration::from_secs(86_400));
        let mut next = self.next.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if next.is_none_or(|known| at < known) {
            *next = Some(at);
            self.changed.notify_one();
        }
    }

    /// The worker has looked what is due next in its queues, in so long if anything.
    pub(crate) fn looked(&self, due_in: Option<Duration>) {
        self.has_looked.store(true, Ordering::Relaxed);
        if let Some(due_in) = due_in {
            self.within(due_in);
        }
    }

    /// Messages parked by a worker that died are promoted at a sweep at the latest, unless a look since the last one knows.
    fn swept(&self) {
        if !self.has_looked.swap(false, Ordering::Relaxed) {
            self.within(Duration::ZERO);
        }
    }

    fn take(&self) -> Option<Instant> {
        self.next
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take()
    }

    fn peek(&self) -> Option<Instant> {
        *self.next.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

pub(crate) struct Recovery {
    pub(crate) broker: Broker,
    /// Who ends what is given up.
    pub(crate) shared: Arc<Shared>,
    pub(crate) queues: Arc<Queues>,
    pub(crate) lease: Duration,
    pub(crate) every: Duration,
    pub(crate) backoff: Duration,
    pub(crate) clock: Arc<RedisClock>,
    pub(crate) due: Arc<DueSoon>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Recovery {
    /// Sweeps for ever.
    pub(crate) async fn sweep(&self) {
        let mut sweeper = Sweeper::new(self.lease, self.backoff, self.every);
        let mut janitor_at = Instant::now() + JANITOR_EVERY;
        let mut rounds = 0_u32;
        let mut is_warned = false;
        loop {
            // Well within the half of a lease after which it looks as if nobody had swept.
            let most = (self.lease / 4).max(self.every);
            tokio::time::sleep(jittered(self.shared.fleet.stretch(self.every).min(most))).await;
            self.due.swept();
            match self.sweep_once(&mut sweeper).await {
                Ok(()) => is_warned = false,
                Err(err) => {
                    self.metrics.broker_failed(&err);
                    if !is_warned {
                        tracing::warn!(error = %chain(&err), "sweeping again");
                    }
                    is_warned = true;
                }
            }
            if Instant::now() >= janitor_at {
                janitor_at = Instant::now() + self.shared.fleet.stretch(JANITOR_EVERY);
                rounds += 1;
                self.tidy(rounds.is_multiple_of(10)).await;
            }
        }
    }

    async fn sweep_once(&self, sweeper: &mut Sweeper) -> Result<(), Error> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A few thousand at most.
        let mut budget = (RECLAIM_RATE * self.every.as_secs_f64()).max(1.0) as usize;
        let mut goes_on = false;
        loop {
            match sweeper.sweep(&self.broker, BATCH.min(budget), goes_on).await? {
                SweepAnswer::Skipped => return Ok(()),
                SweepAnswer::Grace { until, reason } => {
                    if let Some(reason) = reason {
                        tracing::info!(
                            reason,
                            seconds = until - self.clock.now(),
                            "no lease is taken back for a while"
                        );
                    }
                    return Ok(());
                }
                SweepAnswer::Overdue(overdue) => {
                    let full = overdue.len() == BATCH.min(budget);
                    let found = overdue.len();
                    self.take_back(overdue).await?;
                    budget = budget.saturating_sub(found);
                    // The next sweep comes when its time has come; a full batch goes on at once, within the rate.
                    if !full || budget == 0 {
                        return Ok(());
                    }
                    goes_on = true;
                }
            }
        }
    }

    /// Puts back what may run again, and ends what is given up: each by itself, so that a chord whose server is away
    /// holds up no other.
    async fn take_back(&self, overdue: Vec<Overdue>) -> Result<(), Error> {
        // Also those that are empty or no record: left where they are they would fill every batch, and the rest never came
        // back. The script lays them aside.
        let mut overdue: Vec<Option<Overdue>> = overdue.into_iter().map(Some).collect();
        let served = self.queues.names();
        let reclaims: Vec<Reclaim> = overdue
            .iter()
            .flatten()
            .map(|one| Reclaim {
                lid: one.lid.clone(),
                counted_as: counted_as(&one.raw),
                is_served: served
                    .iter()
                    .any(|queue| queue == self.broker.keys().queue_of(&one.list)),
            })
            .collect();
        let sent = Instant::now();
        let Reclaimed {
            back,
            suspected,
            given_up,
        } = self.broker.reclaim(self.lease, &reclaims).await?;
        let count = back + suspected + given_up.len() as u64;
        if count > 0 {
            self.metrics.reclaimed.inc_by(count);
            tracing::info!(back, suspected, given_up = given_up.len(), "took overdue leases back");
        }
        for given in given_up {
            if let Some(one) = overdue.get_mut(given.at).and_then(Option::take) {
                tokio::spawn(give_up(Arc::clone(&self.shared), one, given, sent));
            }
        }
        Ok(())
    }

    async fn tidy(&self, thorough: bool) {
        let queues = self.queues.names();
        let queues: Vec<&str> = queues.iter().map(String::as_str).collect();
        // Dead letters grow old without anything new; more than one call takes go the next time.
        if let Err(err) = self.broker.trim_aside(&queues).await {
            tracing::debug!(error = %chain(&err), "dead letters are bounded later");
        }
        // The operator does it within a second; without one it is done here.
        if let Err(err) = self.broker.relieve(&queues, None).await {
            tracing::debug!(error = %chain(&err), "full queues are relieved later");
        }
        match self.broker.janitor(thorough, JANITOR_EVERY / 2).await {
            Ok(report) => {
                let repairs = report.leases_given + report.leases_removed + report.counts_corrected;
                if repairs > 0 {
                    self.metrics.repaired.inc_by(repairs);
                    tracing::warn!(?report, "repaired records");
                }
            }
            Err(err) => tracing::warn!(error = %chain(&err), "janitor comes again"),
        }
    }

    /// Promotes for ever: at the time the next message is due, and when told that something is due sooner.
    pub(crate) async fn promote(&self) {
        loop {
            match self.due.peek() {
                Some(at) if at > Instant::now() => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at.into()) => {}
                        () = self.due.changed.notified() => continue,
                    }
                }
                Some(_) => {}
                None => {
                    self.due.changed.notified().await;
                    continue;
                }
            }
            self.due.take();
            let queues = self.queues.names();
            let queues: Vec<&str> = queues.iter().map(String::as_str).collect();
            match self.broker.promote(PROMOTE, &queues).await {
                Ok(promoted) => {
                    if let Some(due_in) = promoted.due_in {
                        self.due.within(due_in.max(if promoted.moved == 0 {
                            Duration::from_millis(1)
                        } else {
                            Duration::ZERO
                        }));
                    }
                }
                Err(err) => {
                    self.metrics.broker_failed(&err);
                    tracing::debug!(error = %chain(&err), "promoting again");
                    self.due.within(Duration::from_secs(1));
                }
            }
        }
    }
}

/// Under which name the deaths of a message are counted: its id, or a hash of one that names none.
fn counted_as(raw: &[u8]) -> String {
    let limits = Limits {
        bytes: usize::MAX, // It was taken, so it is as large as it may be.
        ..Limits::default()
    };
    // A body that this reads no further than its label (signed, compressed) says in its headers who it is.
    let id = match message::decode(raw, &limits, &TimeZone::UTC) {
        Ok(message) => message.id,
        Err(malformed) => malformed.id.unwrap_or_default(),
    };
    if id.is_empty() {
        return format!("raw:{}", uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, raw));
    }
    id
}

/// The interval, up to a tenth shorter or longer, so that workers do not march in step.
fn jittered(every: Duration) -> Duration {
    every.mul_f64(0.9 + 0.2 * crate::random())
}
