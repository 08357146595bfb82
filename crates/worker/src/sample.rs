//! What is measured when somebody reads the metrics: the queues of this worker in Redis, and its slots.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use umbel_broker::{DepthSample, Evicted, QueueDepth};
use umbel_telemetry::chain;
use umbel_telemetry::metrics::Registry;
use umbel_telemetry::metrics::counter::Counter;
use umbel_telemetry::metrics::encoding::EncodeLabelSet;
use umbel_telemetry::metrics::family::Family;
use umbel_telemetry::metrics::gauge::Gauge;

use crate::app::Shared;
use crate::metrics::{QueueLabels, StateLabels};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PriorityLabels {
    queue: String,
    priority: u8,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EvictedLabels {
    queue: String,
    kind: String,
    cause: String,
}

type PerQueue = Family<QueueLabels, Gauge>;

/// Gauges of queues. An outage is not an empty queue: what could not be read is not there.
pub(crate) struct Sample {
    depth: Family<PriorityLabels, Gauge>,
    in_flight: PerQueue,
    delayed: PerQueue,
    suspect: PerQueue,
    dead: PerQueue,
    quarantine: PerQueue,
    paused: PerQueue,
    oldest: Family<QueueLabels, Gauge<f64, AtomicU64>>,
    evicted: Family<EvictedLabels, Counter>,
    unacked: Gauge,
    /// The next message of each queue by its hash, and when it was seen first (ms).
    next: Mutex<HashMap<String, (String, i64)>>,
}

impl Sample {
    pub(crate) fn new(registry: &mut Registry) -> Sample {
        let mut per_queue = |name, help| registry.add(name, help, PerQueue::default());
        let in_flight = per_queue("queue_in_flight", "Messages of the queue that workers of ours hold");
        let delayed = per_queue("queue_delayed", "Messages that are not due yet");
        let suspect = per_queue(
            "queue_suspect",
            "Messages that killed a worker twice and wait for one of their own",
        );
        let dead = per_queue("queue_dead", "Dead letters");
        let quarantine = per_queue("queue_quarantine", "Messages that could not be read");
        let paused = per_queue("queue_paused", "1 while nothing of the queue is consumed");
        Sample {
            in_flight,
            delayed,
            suspect,
            dead,
            quarantine,
            paused,
            depth: registry.add("queue_depth", "Messages that wait, by priority", Family::default()),
            oldest: registry.add(
                "queue_oldest_age_seconds",
                "Age of the next message; since it was seen first, where its sender does not say when it was sent",
                Family::default(),
            ),
            evicted: registry.add(
                "queue_evicted",
                "Dead letters and quarantined messages that a bound has cost",
                Family::default(),
            ),
            next: Mutex::default(),
            unacked: registry.add(
                "unacked",
                "Messages that Celery's own workers on the database hold",
                Gauge::default(),
            ),
        }
    }

    fn clear(&self) {
        self.depth.clear();
        self.oldest.clear();
        for gauges in [
            &self.in_flight,
            &self.delayed,
            &self.suspect,
            &self.dead,
            &self.quarantine,
            &self.paused,
        ] {
            gauges.clear();
        }
    }

    fn fill(&self, queues: &[String], sample: &DepthSample, paused: &[bool]) {
        self.clear();
        let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.unacked.set(gauge(sample.foreign_unacked));
        for ((queue, depth), is_paused) in queues.iter().zip(&sample.queues).zip(paused) {
            let Ok(depth) = depth else { continue };
            let QueueDepth {
                waiting: _,
                by_priority,
                in_flight,
                delayed,
                due_soon: _,
                suspect,
                dead,
                quarantine,
                tail,
                tail_sent_at,
                ..
            } = depth;
            let labels = QueueLabels { queue: queue.clone() };
            for (priority, count) in by_priority {
                let labels = PriorityLabels {
                    queue: queue.clone(),
                    priority: *priority,
                };
                self.depth.get_or_create(&labels).set(gauge(*count));
            }
            for (gauges, count) in [
                (&self.in_flight, *in_flight),
                (&self.delayed, *delayed),
                (&self.suspect, *suspect),
                (&self.dead, *dead),
                (&self.quarantine, *quarantine),
                (&self.paused, u64::from(*is_paused)),
            ] {
                gauges.get_or_create(&labels).set(gauge(count));
            }
            let seen = self.seen(queue, tail.as_deref(), sample.taken_at_ms);
            let age = match (tail, tail_sent_at) {
                (None, _) => 0.0,
                (Some(_), Some(sent)) => sample.taken_at_ms as f64 / 1000.0 - sent,
                (Some(_), None) => (sample.taken_at_ms - seen) as f64 / 1000.0,
            };
            self.oldest.get_or_create(&labels).set(age.max(0.0));
        }
    }

    /// When the next message was seen first.
    fn seen(&self, queue: &str, tail: Option<&str>, now: i64) -> i64 {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        match (next.get(queue), tail) {
            (Some((known, at)), Some(tail)) if known == tail => *at,
            (_, Some(tail)) => {
                next.insert(queue.to_owned(), (tail.to_owned(), now));
                now
            }
            (_, None) => {
                next.remove(queue);
                now
            }
        }
    }

    fn count_evicted(&self, queues: &[String], evicted: Vec<Evicted>) {
        for Evicted {
            kind,
            cause,
            queue,
            messages,
        } in evicted
        {
            if queues.contains(&queue) {
                let counter = self.evicted.get_or_create(&EvictedLabels { queue, kind, cause });
                counter.inner().store(messages, Ordering::Relaxed);
            }
        }
    }
}

/// From now on reading the metrics brings these up to date.
pub(crate) fn attach(shared: &Arc<Shared>, sample: Sample, registry: &Registry) {
    let (shared, sample) = (Arc::downgrade(shared), Arc::new(sample));
    registry.refresh_by(move || {
        let (shared, sample) = (shared.upgrade(), Arc::clone(&sample));
        async move {
            if let Some(shared) = shared {
                refresh(&shared, &sample).await;
            }
        }
    });
}

async fn refresh(shared: &Shared, sample: &Sample) {
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let slots = [
        ("total", shared.slots.total()),
        ("busy", shared.busy()),
        ("stuck", shared.leases.stuck(Instant::now()).len()),
    ];
    for (state, slots) in slots {
        let gauge = shared.metrics.slots.get_or_create(&StateLabels { state });
        gauge.set(count(slots));
    }
    sample.clear(); // Whoever waits for an answer in vain, and is cut off, leaves nothing old behind.
    let queues = shared.queues.names();
    let read = async {
        let depths = shared.broker.depths(&queues).await?;
        let mut paused = Vec::with_capacity(queues.len());
        for queue in &queues {
            paused.push(shared.broker.queue_policy(queue).await?.is_paused);
        }
        Ok::<_, umbel_broker::Error>((depths, paused, shared.broker.evicted().await?))
    };
    match read.await {
        Ok((depths, paused, evicted)) => {
            sample.fill(&queues, &depths, &paused);
            sample.count_evicted(&queues, evicted);
        }
        Err(err) => {
            shared.metrics.broker_failed(&err);
            tracing::debug!(error = %chain(&err), "queues are not measured");
        }
    }
}
