//! A worker that has run enough tasks, lived long enough or grown too large ends in order, so that its supervisor starts
//! a fresh one: it takes no more, finishes what runs, whatever time that takes, and exits with 0.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use umbel_telemetry::chain;

use crate::app::Shared;

/// How often age and memory are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// Limits are up to so much lower in each process, so that those that started together do not end together.
const SPREAD: f64 = 0.1;

/// When a worker ends by itself; all off by default.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RecycleLimits {
    /// Tasks it starts at most, 1 or more.
    pub tasks: Option<u64>,
    /// Resident memory, in bytes.
    pub memory: Option<u64>,
    /// Time since its start.
    pub age: Option<Duration>,
}

/// What is left of a worker's life.
pub(crate) struct Recycle {
    limits: RecycleLimits,
    /// Messages that have started, or wait here for their turn.
    taken: AtomicU64,
    started: AtomicU64,
    told: CancellationToken,
    due: CancellationToken,
}

impl Recycle {
    /// The limits of one process: `random`, in `0.0..1.0`, says how much lower they are.
    /// `told` is cancelled when the worker is told to take no more.
    pub(crate) fn new(limits: RecycleLimits, random: f64, told: CancellationToken) -> Recycle {
        Recycle {
            limits: spread(limits, random),
            taken: AtomicU64::new(0),
            started: AtomicU64::new(0),
            due: told.child_token(),
            told,
        }
    }

    /// So many messages may still be taken, at most `count`.
    pub(crate) fn room(&self, count: usize) -> usize {
        let Some(most) = self.limits.tasks else {
            return count;
        };
        let left = most.saturating_sub(self.taken.load(Ordering::Relaxed));
        count.min(usize::try_from(left).unwrap_or(usize::MAX))
    }

    /// Is there a bound to how many may be taken?
    pub(crate) fn is_counting(&self) -> bool {
        self.limits.tasks.is_some()
    }

    /// A message is to start, now or when its turn comes.
    pub(crate) fn takes(&self) {
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    /// One that was to start does not: another may.
    pub(crate) fn gives_back(&self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }

    /// A task starts. One that only waits for its turn does not count: the worker would end without having run it.
    pub(crate) fn started(&self) {
        let started = self.started.fetch_add(1, Ordering::Relaxed) + 1;
        if self.limits.tasks == Some(started) {
            tracing::info!(tasks = started, "recycling: ran as many tasks as it may; takes no more");
            self.due.cancel();
        }
    }

    /// Is cancelled when the worker is to take no more, for this or for another reason.
    pub(crate) fn due(&self) -> &CancellationToken {
        &self.due
    }

    /// Is cancelled when the worker is told to take no more; a worker that recycles still runs what it has taken.
    pub(crate) fn told(&self) -> &CancellationToken {
        &self.told
    }
}

fn spread(limits: RecycleLimits, random: f64) -> RecycleLimits {
    let share = 1.0 - SPREAD * random;
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    let less = |limit: u64| ((limit as f64 * share).ceil() as u64).clamp(1, limit.max(1));
    RecycleLimits {
        tasks: limits.tasks.map(less),
        memory: limits.memory, // Memory grows unlike in each process; a limit that no idle worker can keep must not sink.
        age: limits.age.map(|age| age.mul_f64(share)),
    }
}

/// Watches age and memory until one is beyond its limit.
pub(crate) async fn run(shared: Arc<Shared>) {
    let RecycleLimits { tasks: _, memory, age } = shared.recycle.limits;
    if memory.is_none() && age.is_none() {
        return;
    }
    let born = Instant::now();
    loop {
        let until_old = age.map_or(EVERY, |age| age.saturating_sub(born.elapsed()));
        tokio::time::sleep(until_old.clamp(Duration::from_millis(10), EVERY)).await;
        if age.is_some_and(|age| born.elapsed() >= age) {
            tracing::info!(age = ?born.elapsed(), "recycling: old enough; takes no more");
            return shared.recycle.due.cancel();
        }
        if let Some(most) = memory
            && let Some(used) = resident()
            && used > most
        {
            tracing::info!(used, most, "recycling: uses more memory than it may; takes no more");
            return shared.recycle.due.cancel();
        }
    }
}

/// Lets all runs of a worker that recycles end, whatever time they take, unless it is told to stop meanwhile. Answers when
/// it was told to be quiet.
pub(crate) async fn finish(shared: &Arc<Shared>, told: Instant, stop: &CancellationToken) -> Instant {
    if stop.is_cancelled() {
        return told;
    }
    if let Err(err) = shared.broker.close_self(&shared.worker).await {
        tracing::warn!(error = %chain(&err), "gate not closed; nothing is taken all the same");
    }
    *shared.gate.lock().unwrap_or_else(PoisonError::into_inner) = "closed".into();
    shared.beat_now.notify_one();
    tokio::select! {
        () = shared.while_alive(shared.leases.ended()) => tracing::info!("recycling: all runs have ended; exits"),
        () = stop.cancelled() => {}
    }
    Instant::now()
}

/// Resident memory of this process in bytes.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Reads bytes as Kubernetes writes them: `512Mi`, `1Gi`, `300M`, `1000000`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size such as 512Mi, 1G or 1000000");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit = match unit {
        "" => 1,
        "k" => 1000,
        "Ki" => 1 << 10,
        "M" => 1_000_000,
        "Mi" => 1 << 20,
        "G" => 1_000_000_000,
        "Gi" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_takes_no_more_than_its_tasks() {
        let limits = RecycleLimits {
            tasks: Some(3),
            ..RecycleLimits::default()
        };
        let recycle = Recycle::new(limits, 0.0, CancellationToken::new());
        assert_eq!(recycle.room(10), 3);
        for left in [2, 1, 0] {
            recycle.takes();
            assert_eq!(recycle.room(10), left);
        }
        recycle.gives_back();
        assert_eq!(recycle.room(10), 1);
        recycle.takes();
        for _ in 0..3 {
            assert!(!recycle.due().is_cancelled(), "those that wait have not started");
            recycle.started();
        }
        assert!(recycle.due().is_cancelled() && !recycle.told().is_cancelled());
        assert_eq!(
            Recycle::new(RecycleLimits::default(), 0.5, CancellationToken::new()).room(10),
            10
        );
    }

    #[test]
    fn limits_differ_from_process_to_process_and_are_never_exceeded() {
        let limits = RecycleLimits {
            tasks: Some(1000),
            memory: Some(1 << 30),
            age: Some(Duration::from_secs(100)),
        };
        assert_eq!(spread(limits, 0.0), limits);
        let lower = spread(limits, 0.5);
        assert_eq!((lower.tasks, lower.memory), (Some(950), Some(1 << 30)));
        assert_eq!(lower.age, Some(Duration::from_secs(95)));
        assert_eq!(
            spread(
                RecycleLimits {
                    tasks: Some(1),
                    ..limits
                },
                0.99
            )
            .tasks,
            Some(1)
        );
    }

    #[test]
    fn sizes_are_those_of_kubernetes() {
        assert_eq!(parse_bytes("512Mi"), Ok(512 << 20));
        assert_eq!(parse_bytes("1G"), Ok(1_000_000_000));
        assert_eq!(parse_bytes("77"), Ok(77));
        for bad in ["", "Mi", "0", "1T", "-1", "1.5Gi", "99999999999Gi"] {
            assert!(parse_bytes(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn this_process_has_a_size() {
        assert!(resident().is_some_and(|bytes| bytes > 1 << 20));
    }
}
