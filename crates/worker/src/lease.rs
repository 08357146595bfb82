//! Held leases: what a running task sees of its own, and the table of all.
//!
//! A trust window ends `lease - margin` after the last successful renewal was *sent*, on this process's monotonic
//! clock. Outside of it no side effect may start. Not an abort but a wait: after an outage of Redis the lease normally
//! still exists, and the next renewal says so.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use umbel_protocol::message::TaskMessage;

/// Instants are kept as nanoseconds since the process first asked, so that they fit an atomic.
static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);

fn nanos(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*BASE).as_nanos()).unwrap_or(u64::MAX)
}

/// Why a run may not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The lease expired and was taken away: another worker has the message.
    #[error("the lease on the message was lost")]
    Lease,
    /// The run was cancelled: time limit or drain deadline.
    #[error("the run was cancelled")]
    Cancelled,
}

/// The state of one lease, shared by the table of all and the task.
pub(crate) struct Cell {
    until: AtomicU64,
    is_lost: AtomicBool,
    /// The signal of who asked for its end; 0: nobody has.
    signum: AtomicU8,
    changed: Notify,
    /// What runs under it.
    run: Mutex<Option<Run>>,
}

impl Cell {
    fn new(until: Instant) -> Cell {
        Cell {
            until: AtomicU64::new(nanos(until)),
            is_lost: AtomicBool::new(false),
            signum: AtomicU8::new(0),
            changed: Notify::new(),
            run: Mutex::new(None),
        }
    }

    fn run(&self) -> std::sync::MutexGuard<'_, Option<Run>> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner) // It is whole after any panic.
    }

    fn is_stuck(&self, now: Instant) -> bool {
        self.run()
            .as_ref()
            .and_then(|run| run.stuck_at)
            .is_some_and(|at| at < now)
    }

    fn renewed(&self, until: Instant) {
        self.until.store(nanos(until), Ordering::Release);
        self.changed.notify_waiters();
    }

    fn terminate(&self, signum: u8) {
        self.signum.store(signum, Ordering::Release);
        self.changed.notify_waiters();
    }

    fn lose(&self) {
        self.is_lost.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }
}

/// Why a run ends before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The lease is gone.
    Lost,
    /// Revoked while it ran, by remote control.
    Terminated,
}

/// The task's side of its lease.
#[derive(Clone)]
pub(crate) struct Lease {
    pub(crate) lid: Arc<str>,
    pub(crate) term: u64,
    pub(crate) micros: u64,
    cell: Arc<Cell>,
}

impl Lease {
    pub(crate) fn token(&self) -> String {
        format!("{}.{}", self.term, self.micros)
    }

    /// The signal by which somebody asked for the end of the run; 0: nobody has.
    pub(crate) fn signum(&self) -> u8 {
        self.cell.signum.load(Ordering::Acquire)
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.cell.is_lost.load(Ordering::Acquire)
    }

    /// A task runs under the lease from now on.
    pub(crate) fn running(&self, run: Run) {
        *self.cell.run() = Some(run);
    }

    /// Redis has no longer the message of what runs.
    pub(crate) fn keep(&self) {
        if let Some(run) = self.cell.run().as_mut() {
            run.is_early = true;
        }
    }

    /// The task has ended.
    pub(crate) fn stopped(&self) {
        drop(self.cell.run().take()); // The guard goes first: the message may be large.
    }

    /// Resolves inside the window, and as `Lost` once the lease is gone.
    pub(crate) async fn trusted(&self) -> Result<(), Lost> {
        loop {
            let changed = self.cell.changed.notified(); // Created before the look, so that no change is missed.
            if self.is_lost() {
                return Err(Lost::Lease);
            }
            if nanos(Instant::now()) < self.cell.until.load(Ordering::Acquire) {
                return Ok(());
            }
            changed.await;
        }
    }

    /// Resolves when the run must end before its time: the lease is lost, or somebody asked for its end.
    pub(crate) async fn cut_short(&self) -> Cut {
        loop {
            let changed = self.cell.changed.notified();
            if self.is_lost() {
                return Cut::Lost;
            }
            if self.signum() > 0 {
                return Cut::Terminated;
            }
            changed.await;
        }
    }
}

/// A task that runs.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) message: Arc<TaskMessage>,
    pub(crate) queue: Arc<str>,
    pub(crate) since: f64,
    /// Was it acknowledged before its run? Then Redis has the message no longer.
    pub(crate) is_early: bool,
    /// After this the run is stuck: it should have been stopped and could not be.
    pub(crate) stuck_at: Option<Instant>,
}

/// Lease ids are our own: nobody can choose them so that they collide.
type Held = HashMap<Arc<str>, Arc<Cell>, foldhash::fast::RandomState>;

/// All leases of this process, from the reserve until the settlement was answered.
#[derive(Default)]
pub(crate) struct Leases {
    held: Mutex<Held>,
    freed: Notify,
}

impl Leases {
    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner) // A map is whole after any panic.
    }

    /// Remembers leases, each with its fencing token, that were taken by a call sent at `sent`.
    pub(crate) fn insert<'a>(
        &self,
        lids: impl Iterator<Item = (&'a Arc<str>, u64)>,
        term: u64,
        sent: Instant,
        length: Duration,
    ) -> Vec<Lease> {
        let until = until(sent, length);
        let mut held = self.lock();
        lids.map(|(lid, micros)| {
            let cell = Arc::new(Cell::new(until));
            held.insert(Arc::clone(lid), Arc::clone(&cell));
            let lid = Arc::clone(lid);
            Lease {
                lid,
                term,
                micros,
                cell,
            }
        })
        .collect()
    }

    /// As [`Leases::insert`], of one.
    pub(crate) fn insert_one(
        &self,
        lid: &Arc<str>,
        (term, micros): (u64, u64),
        sent: Instant,
        length: Duration,
    ) -> Lease {
        let cell = Arc::new(Cell::new(until(sent, length)));
        self.lock().insert(Arc::clone(lid), Arc::clone(&cell));
        let lid = Arc::clone(lid);
        Lease {
            lid,
            term,
            micros,
            cell,
        }
    }

    /// Names of runs that should have ended before `now` and have not.
    pub(crate) fn stuck(&self, now: Instant) -> Vec<String> {
        let held = self.lock();
        let stuck = held.values().filter(|cell| cell.is_stuck(now));
        let name = |run: &Run| format!("{}[{}]", run.message.task, run.message.id);
        stuck.filter_map(|cell| cell.run().as_ref().map(name)).collect()
    }

    /// Wakes who waits for the end of runs: one of them is not waited for any more.
    pub(crate) fn told(&self) {
        self.freed.notify_waiters();
    }

    /// Resolves when nothing is held but by runs that are stuck.
    pub(crate) async fn ended(&self) {
        loop {
            let freed = self.freed.notified();
            if self.is_idle() {
                return;
            }
            freed.await;
        }
    }

    pub(crate) fn remove<'a>(&self, lids: impl Iterator<Item = &'a Arc<str>>) {
        let mut held = self.lock();
        for lid in lids {
            held.remove(lid);
        }
        // Most of the time there is one that is not stuck, and it is found at once.
        let now = Instant::now();
        if held.values().all(|cell| cell.is_stuck(now)) {
            self.freed.notify_waiters();
        }
    }

    pub(crate) fn lids(&self) -> Vec<Arc<str>> {
        self.lock().keys().cloned().collect()
    }

    /// Leases to renew: all but those of runs that are stuck, which others may have when they run out.
    pub(crate) fn renewable(&self, now: Instant) -> Vec<Arc<str>> {
        let held = self.lock();
        held.iter()
            .filter(|(_, cell)| !cell.is_stuck(now))
            .map(|(lid, _)| Arc::clone(lid))
            .collect()
    }

    /// Is nothing held but by runs that are stuck?
    pub(crate) fn is_idle(&self) -> bool {
        let now = Instant::now();
        self.lock().values().all(|cell| cell.is_stuck(now))
    }

    /// Ends the runs of these tasks, as by this signal; the ids of those that ran.
    pub(crate) fn terminate(&self, ids: &[String], signum: u8) -> Vec<String> {
        let held = self.lock();
        let running = held.values().filter_map(|cell| {
            let id = cell.run().as_ref().map(|run| run.message.id.clone())?;
            Some((cell, id))
        });
        let asked = running.filter(|(_, id)| ids.contains(id));
        asked
            .map(|(cell, id)| {
                cell.terminate(signum);
                id
            })
            .collect()
    }

    /// The ids of what runs and nobody has asked to end.
    pub(crate) fn wanted(&self) -> Vec<String> {
        let held = self.lock();
        let wanted = held.values().filter(|cell| cell.signum.load(Ordering::Acquire) == 0);
        wanted
            .filter_map(|cell| cell.run().as_ref().map(|run| run.message.id.clone()))
            .collect()
    }

    /// What runs.
    pub(crate) fn runs(&self) -> Vec<Run> {
        self.lock().values().filter_map(|cell| cell.run().clone()).collect()
    }

    /// A renewal of `lids`, sent at `sent`, has answered: all but `lost` are ours for another `length`.
    pub(crate) fn renewed(&self, lids: &[Arc<str>], lost: &[String], sent: Instant, length: Duration) {
        let held = self.lock();
        for lid in lids {
            let Some(cell) = held.get(lid) else { continue };
            if lost.iter().any(|gone| **gone == **lid) {
                cell.lose();
            } else {
                cell.renewed(until(sent, length));
            }
        }
    }
}

/// Margin of a lease: a tenth, at least two seconds, at most a quarter of it.
pub(crate) fn margin(lease: Duration) -> Duration {
    (lease / 10).max(Duration::from_secs(2)).min(lease / 4)
}

/// End of the trust window for a call that was sent at `sent`.
fn until(sent: Instant, lease: Duration) -> Instant {
    sent + lease.saturating_sub(margin(lease))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_by_length() {
        for (lease, expected) in [(60, 6.0), (10, 2.0), (4, 1.0), (600, 60.0)] {
            assert!(
                (margin(Duration::from_secs(lease)).as_secs_f64() - expected).abs() < 1e-9,
                "lease {lease}"
            );
        }
    }

    #[test]
    fn a_run_that_does_not_end_at_its_limit_is_not_renewed() {
        let leases = Leases::default();
        let now = Instant::now();
        let message = Arc::clone(&crate::request::Request::of_nobody().message);
        let lids: [Arc<str>; 3] = ["a", "b", "c"].map(Into::into);
        let held = leases.insert(lids.iter().map(|lid| (lid, 1)), 0, now, Duration::from_secs(60));
        for (lease, stuck_at) in held.iter().zip([None, Some(now), Some(now + Duration::from_secs(9))]) {
            lease.running(Run {
                message: Arc::clone(&message),
                queue: "q".into(),
                since: 0.0,
                is_early: false,
                stuck_at,
            });
        }
        let renewable = |after: u64| {
            let mut lids = leases.renewable(now + Duration::from_secs(after));
            lids.sort();
            lids.join(" ")
        };
        assert_eq!(renewable(0), "a b c");
        assert_eq!(renewable(1), "a c");
        assert_eq!(renewable(10), "a");
        held[1].stopped(); // Its end is on its way: renewed until that is settled.
        assert_eq!(renewable(10), "a b");
        assert_eq!(leases.lids().len(), 3, "all of them are named at a hello");
    }

    #[tokio::test]
    async fn outside_of_the_window_a_checkpoint_waits_for_a_renewal() {
        let leases = Leases::default();
        let lid: Arc<str> = "w:1".into();
        let length = Duration::from_secs(4);
        let old = Instant::now();
        let lease = leases.insert_one(&lid, (0, 1), old, Duration::ZERO);
        let waiting = tokio::spawn({
            let lease = lease.clone();
            async move { lease.trusted().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        leases.renewed(&[Arc::clone(&lid)], &[], Instant::now(), length);
        assert_eq!(waiting.await.unwrap(), Ok(()));
        leases.renewed(&[lid], &["w:1".into()], Instant::now(), length);
        assert_eq!(lease.trusted().await, Err(Lost::Lease));
    }
}
