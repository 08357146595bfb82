//! Counts of tasks by queue, name and end, and how long they waited and ran.
//!
//! Names come from whoever sends messages, so their number is bounded here: names that this worker does not know count
//! as one, and so do those beyond the first few hundred. Each count is looked up by a hash of two texts and added to; no
//! text is copied once it was seen.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use umbel_broker::Done;
use umbel_telemetry::metrics::counter::Counter;
use umbel_telemetry::metrics::encoding::EncodeLabelSet;
use umbel_telemetry::metrics::family::Family;
use umbel_telemetry::metrics::histogram::Histogram;
use umbel_telemetry::metrics::{Registry, SECONDS};

use crate::metrics::QueueLabels;

/// Pairs of queue and task name that are told apart: with their ends a few thousand series, what a scraper takes easily.
const MOST: usize = 500;
/// Queues that are told apart.
const MOST_QUEUES: usize = 1000;
/// All that is not told apart.
const OTHER: &str = "(other)";
/// Tasks that this worker does not know, and messages that cannot be read.
const UNKNOWN: &str = "(unknown)";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TaskLabels {
    queue: String,
    task: String,
    state: &'static str,
}

type Histograms = Family<QueueLabels, Histogram, fn() -> Histogram>;

pub(crate) struct Counts {
    tasks: Family<TaskLabels, Counter>,
    runtime: Histograms,
    wait: Histograms,
    known: RwLock<Known>,
}

/// Bounded in size, so nobody slows it down by the names that he chooses.
type Map<T> = HashMap<String, T, foldhash::fast::RandomState>;

#[derive(Default)]
struct Known {
    queues: Map<Queue>,
    /// Task names in all queues.
    names: usize,
}

struct Queue {
    runtime: Histogram,
    wait: Histogram,
    done: Sums,
    tasks: Map<Vec<(&'static str, Counter)>>,
}

/// As [`Done`].
#[derive(Default)]
struct Sums {
    started: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    gone: AtomicU64,
}

impl Sums {
    fn ended(&self, state: &str) {
        let add = |count: &AtomicU64| count.fetch_add(1, Ordering::Relaxed);
        match state {
            // It waits as before.
            "handed_back" | "requeued" => return,
            "succeeded" => add(&self.succeeded),
            "failed" => add(&self.failed),
            _ => 0,
        };
        add(&self.gone);
    }

    fn sum(&self) -> Done {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Done {
            started: read(&self.started),
            succeeded: read(&self.succeeded),
            failed: read(&self.failed),
            gone: read(&self.gone),
        }
    }
}

impl Counts {
    pub(crate) fn new(registry: &mut Registry) -> Counts {
        let seconds = || Family::new_with_constructor((|| Histogram::new(SECONDS)) as fn() -> Histogram);
        Counts {
            tasks: registry.add("task", "Tasks that ended, by how", Family::default()),
            runtime: registry.add("task_runtime_seconds", "Time that tasks ran", seconds()),
            wait: registry.add(
                "task_wait_seconds",
                "Time from when a message was sent, or could run first, or was seen first where neither is known, to its run",
                seconds(),
            ),
            known: RwLock::default(),
        }
    }

    /// A run ended after this time.
    pub(crate) fn ran(&self, queue: &str, took: Duration) {
        self.with_queue(queue, |known| known.runtime.observe(took.as_secs_f64()));
    }

    /// A run began after this time.
    pub(crate) fn waited(&self, queue: &str, seconds: f64) {
        self.with_queue(queue, |known| {
            known.done.started.fetch_add(1, Ordering::Relaxed);
            known.wait.observe(seconds.max(0.0));
        });
    }

    /// What was done for a queue; nothing where it is not told apart.
    pub(crate) fn done(&self, queue: &str) -> Option<Done> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.queues.get(queue).map(|queue| queue.done.sum())
    }

    /// A delivery ended. A task without a name is not known here.
    pub(crate) fn ended(&self, queue: &str, task: &str, state: &'static str) {
        let task = if task.is_empty() { UNKNOWN } else { task };
        let is_counted = self.with_queue(queue, |known| {
            known.done.ended(state);
            let counters = known.tasks.get(task)?;
            let (_, counter) = counters.iter().find(|(known, _)| *known == state)?;
            counter.inc();
            Some(())
        });
        if is_counted.is_none() {
            self.new_end(queue, task, state);
        }
    }

    fn with_queue<T>(&self, queue: &str, what: impl FnOnce(&Queue) -> T) -> T {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = known.queues.get(queue) {
            return what(queue);
        }
        drop(known);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let name = if known.queues.len() < MOST_QUEUES { queue } else { OTHER };
        let queue = known.queues.entry(name.to_owned()).or_insert_with(|| {
            let labels = QueueLabels { queue: name.to_owned() };
            Queue {
                runtime: self.runtime.get_or_create(&labels).clone(),
                wait: self.wait.get_or_create(&labels).clone(),
                done: Sums::default(),
                tasks: Map::default(),
            }
        });
        what(queue)
    }

    /// The first end of its kind, or one of a task that is not told apart.
    fn new_end(&self, queue: &str, task: &str, state: &'static str) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let Known { queues, names } = &mut *known;
        let queue_name = if queues.contains_key(queue) { queue } else { OTHER };
        let Some(queue) = queues.get_mut(queue_name) else {
            return; // It was made a moment ago.
        };
        let is_new = !queue.tasks.contains_key(task);
        let task = if is_new && *names >= MOST { OTHER } else { task };
        let counters = queue.tasks.entry(task.to_owned()).or_insert_with(|| {
            *names += 1;
            Vec::new()
        });
        let counter = match counters.iter().position(|(known, _)| *known == state) {
            Some(at) => &counters[at].1,
            None => {
                let labels = TaskLabels {
                    queue: queue_name.to_owned(),
                    task: task.to_owned(),
                    state,
                };
                counters.push((state, self.tasks.get_or_create(&labels).clone()));
                &counters[counters.len() - 1].1
            }
        };
        counter.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_thousand_names_are_a_few_hundred_series() {
        let mut registry = Registry::new("test");
        let counts = Counts::new(&mut registry);
        for n in 0..100_000 {
            counts.ended("q", &format!("task-{n}"), "succeeded");
            counts.ended("q", &format!("task-{n}"), "succeeded");
        }
        counts.ended("q", "", "quarantined");
        counts.ended("q", "task-0", "handed_back");
        let done = counts.done("q").unwrap();
        assert_eq!((done.succeeded, done.failed, done.gone), (200_000, 0, 200_001));
        for n in 0..3_000 {
            counts.ran(&format!("queue-{n}"), Duration::from_millis(3));
            counts.ended(&format!("queue-{n}"), "task-0", "failed");
        }
        let text = registry.text().unwrap();
        let series: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("umbel_task_total{"))
            .collect();
        assert!(series.len() < 2 * MOST + 2 * MOST_QUEUES + 10, "{}", series.len());
        let sum: u64 = series
            .iter()
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum();
        assert_eq!(sum, 203_002, "nothing is left out");
        assert!(
            text.contains("umbel_task_total{queue=\"q\",task=\"task-0\",state=\"succeeded\"} 2"),
            "{}",
            series[0]
        );
        assert!(text.contains("task=\"(other)\""));
    }
}
