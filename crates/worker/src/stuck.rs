//! Slots whose task never gives way: it neither returns nor heeds its hard limit. Nobody can stop it but the end of the
//! process.
//!
//! # Guarantees
//! A run that has not ended a margin after its hard limit is stuck: its lease is renewed no longer, so the message comes
//! back by it and counts as a death. A thread of a blocking task that goes on as long after its run has ended is stuck,
//! too. The queue moves on in the other slots. Once so many are stuck (`--stuck-slots`), or the stuck ones have left the
//! runtime no thread to run on, the worker drains and ends with an error, and whoever started it starts it anew.
//!
//! The watch is kept by a thread of its own, which no task can keep from running.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::app::Shared;
use crate::lease::{Leases, margin};
use crate::metrics::Metrics;

/// Longest pause between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After the grace the process ends even if its drain does not.
const LAST: Duration = Duration::from_secs(2);

/// Threads of blocking tasks whose runs are over.
#[derive(Default)]
pub(crate) struct Strays {
    threads: Mutex<Vec<Stray>>,
}

struct Stray {
    name: String,
    since: Instant,
    has_ended: Arc<AtomicBool>,
}

impl Strays {
    /// The run of a task is over and its thread goes on, until `has_ended`.
    pub(crate) fn add(&self, task: &str, id: &str, has_ended: Arc<AtomicBool>) {
        self.lock().push(Stray {
            name: format!("{task}[{id}] (its thread)"),
            since: Instant::now(),
            has_ended,
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Stray>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that were there before `then` and still are.
    fn since(&self, then: Instant) -> Vec<String> {
        let mut threads = self.lock();
        threads.retain(|stray| !stray.has_ended.load(Ordering::Acquire));
        let old = threads.iter().filter(|stray| stray.since <= then);
        old.map(|stray| stray.name.clone()).collect()
    }
}

/// The watch; it ends when this is dropped.
pub(crate) struct Watch {
    has_given_up: Arc<AtomicBool>,
    _ends: mpsc::Sender<()>,
}

impl Watch {
    /// Does the worker stop because its slots are stuck?
    pub(crate) fn has_given_up(&self) -> bool {
        self.has_given_up.load(Ordering::Acquire)
    }
}

/// Watches until the answer is dropped; cancels `quiet` when too many slots are stuck.
///
/// # Errors
/// No thread.
pub(crate) fn watch(shared: &Shared, quiet: CancellationToken) -> std::io::Result<Watch> {
    let (ends, ended) = mpsc::channel();
    let has_given_up = Arc::new(AtomicBool::new(false));
    let beat = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let lease = shared.config.lease;
    let every = LOOK_EVERY.min(lease / 10);
    let beating = Arc::clone(&beat);
    // On the runtime: it stops when stuck tasks have taken all its threads.
    tokio::spawn(async move {
        loop {
            beating.store(millis(began.elapsed()), Ordering::Release);
            tokio::time::sleep(every).await;
            if Arc::strong_count(&beating) == 1 {
                return; // Nobody watches any more.
            }
        }
    });
    let watcher = Watcher {
        leases: Arc::clone(&shared.leases),
        strays: Arc::clone(&shared.strays),
        metrics: Arc::clone(&shared.metrics),
        most: shared.config.stuck_slots,
        lease,
        grace: shared.config.grace,
        began,
        beat,
        quiet,
        has_given_up: Arc::clone(&has_given_up),
    };
    std::thread::Builder::new()
        .name("watch".into())
        .stack_size(256 * 1024)
        .spawn(move || watcher.run(&ended, every))?;
    Ok(Watch {
        has_given_up,
        _ends: ends,
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

struct Watcher {
    leases: Arc<Leases>,
    strays: Arc<Strays>,
    metrics: Arc<Metrics>,
    most: usize,
    lease: Duration,
    grace: Duration,
    began: Instant,
    /// When the runtime last turned, in milliseconds since `began`.
    beat: Arc<AtomicU64>,
    quiet: CancellationToken,
    has_given_up: Arc<AtomicBool>,
}

impl Watcher {
    fn run(self, ended: &mpsc::Receiver<()>, every: Duration) {
        let mut known = HashSet::new();
        let mut given_up: Option<Instant> = None;
        while ended.recv_timeout(every) == Err(mpsc::RecvTimeoutError::Timeout) {
            let now = Instant::now();
            let stuck = self.stuck(now, &mut known);
            let silent = self
                .began
                .elapsed()
                .saturating_sub(Duration::from_millis(self.beat.load(Ordering::Acquire)));
            let is_starved = stuck > 0 && silent > self.lease / 2;
            let is_over = stuck > 0 && (stuck >= self.most || is_starved);
            if is_over && given_up.is_none() {
                tracing::error!(
                    stuck,
                    most = self.most,
                    is_starved,
                    "too many slots are stuck: the worker drains, and ends with an error"
                );
                given_up = Some(now);
                self.has_given_up.store(true, Ordering::Release);
                self.quiet.cancel();
            }
            if let Some(at) = given_up
                && (is_starved || at.elapsed() > self.grace + LAST)
            {
                tracing::error!("the drain cannot end: the leases return what is held");
                end();
            }
        }
    }

    /// How many are stuck. New ones are told.
    fn stuck(&self, now: Instant, known: &mut HashSet<String>) -> usize {
        let mut names = self.leases.stuck(now);
        names.extend(
            now.checked_sub(margin(self.lease))
                .map(|then| self.strays.since(then))
                .unwrap_or_default(),
        );
        for name in &names {
            if known.insert(name.clone()) {
                tracing::error!(task = %name, "ignores its hard limit: its slot is stuck");
                self.metrics.stuck_total.inc();
                self.leases.told();
            }
        }
        known.retain(|name| names.contains(name));
        self.metrics.stuck.set(i64::try_from(names.len()).unwrap_or(i64::MAX));
        names.len()
    }
}

#[allow(clippy::disallowed_methods)] // Nothing can be handed back: there is no thread left to do it, or no time.
fn end() {
    std::process::exit(1)
}
