//! What the operator counts.

use std::time::Duration;

use umbel_telemetry::metrics::encoding::EncodeLabelSet;
use umbel_telemetry::metrics::{
    Registry, SECONDS, counter::Counter, family::Family, gauge::Gauge, histogram::Histogram,
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reconcile {
    controller: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Result {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Verb {
    verb: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Pool {
    namespace: String,
    pool: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Turned {
    namespace: String,
    pool: String,
    action: &'static str,
    reason: &'static str,
}

#[allow(clippy::struct_field_names, reason = "the fields are the labels' names")]
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Queue {
    namespace: String,
    queue: String,
    state: &'static str,
}

#[allow(clippy::struct_field_names, reason = "the fields are the labels' names")]
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Schedule {
    namespace: String,
    schedule: String,
    result: &'static str,
}

/// Handles to all metrics; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    reconciles: Family<Reconcile, Counter>,
    reconcile_time: Histogram,
    samples: Family<Result, Counter>,
    sample_time: Histogram,
    writes: Family<Verb, Counter>,
    leading: Gauge,
    desired: Family<Pool, Gauge>,
    size: Family<Pool, Gauge>,
    busy: Family<Pool, Gauge>,
    turns: Family<Turned, Counter>,
    wrong_victims: Family<Pool, Counter>,
    busy_stopped: Family<Pool, Counter>,
    messages: Family<Queue, Gauge>,
    slots: Family<Schedule, Counter>,
    lateness: Histogram,
}

impl Metrics {
    /// Registers everything.
    pub fn new(registry: &mut Registry) -> Self {
        let seconds = || Histogram::new(SECONDS);
        Self {
            reconciles: registry.add("reconcile", "Reconciles by controller and result", Family::default()),
            reconcile_time: registry.add("reconcile_time_seconds", "Duration of a reconcile", seconds()),
            samples: registry.add("broker_samples", "Samples of brokers by result", Family::default()),
            sample_time: registry.add("broker_sample_seconds", "Duration of a sample", seconds()),
            writes: registry.add("kubernetes_writes", "Writes to the Kubernetes API", Family::default()),
            leading: registry.add(
                "leader_election_master_status",
                "1 while this operator leads",
                Gauge::default(),
            ),
            desired: registry.add(
                "pool_desired_replicas",
                "Size that the decision wants",
                Family::default(),
            ),
            size: registry.add("pool_replicas", "Size of the Deployment", Family::default()),
            busy: registry.add("pool_busy_replicas", "Pods that hold a task", Family::default()),
            turns: registry.add("pool_actions", "Actions on a pool by reason", Family::default()),
            wrong_victims: registry.add(
                "pool_wrong_victims",
                "Pods lost to a step that did not choose them",
                Family::default(),
            ),
            busy_stopped: registry.add(
                "pool_busy_stopped",
                "Pods that held a task when a step removed them",
                Family::default(),
            ),
            messages: registry.add("queue_messages", "Messages of a queue by state", Family::default()),
            slots: registry.add("schedule_slots", "Slots of schedules by result", Family::default()),
            lateness: registry.add("schedule_lateness_seconds", "Time from a slot to its fire", seconds()),
        }
    }

    /// A reconcile ended.
    pub fn reconciled(&self, controller: &'static str, took: Duration, good: bool) {
        let result = if good { "success" } else { "error" };
        self.reconciles.get_or_create(&Reconcile { controller, result }).inc();
        self.reconcile_time.observe(took.as_secs_f64());
    }

    /// A broker was sampled.
    pub fn sampled(&self, took: Duration, good: bool) {
        self.samples
            .get_or_create(&Result {
                result: if good { "success" } else { "error" },
            })
            .inc();
        self.sample_time.observe(took.as_secs_f64());
    }

    /// Something was written to the Kubernetes API.
    pub fn wrote(&self, verb: &'static str, kind: &'static str) {
        self.writes.get_or_create(&Verb { verb, kind }).inc();
    }

    /// Whether this process leads.
    pub fn leads(&self, leads: bool) {
        self.leading.set(i64::from(leads));
    }

    /// A pool's numbers.
    pub fn pool(&self, namespace: &str, pool: &str, desired: u32, size: u32, busy: u32) {
        let labels = Pool {
            namespace: namespace.to_owned(),
            pool: pool.to_owned(),
        };
        self.desired.get_or_create(&labels).set(i64::from(desired));
        self.size.get_or_create(&labels).set(i64::from(size));
        self.busy.get_or_create(&labels).set(i64::from(busy));
    }

    /// A queue's depth.
    pub fn queue(&self, namespace: &str, queue: &str, depth: &umbel_api::taskqueue::Depth) {
        for (state, number) in states(depth) {
            let labels = Queue {
                namespace: namespace.to_owned(),
                queue: queue.to_owned(),
                state,
            };
            self.messages
                .get_or_create(&labels)
                .set(i64::try_from(number).unwrap_or(i64::MAX));
        }
    }

    /// A queue is gone.
    pub fn forget_queue(&self, namespace: &str, queue: &str) {
        for (state, _) in states(&umbel_api::taskqueue::Depth::default()) {
            self.messages.remove(&Queue {
                namespace: namespace.to_owned(),
                queue: queue.to_owned(),
                state,
            });
        }
    }

    /// A slot was fired, so long after its time.
    pub fn fired(&self, namespace: &str, schedule: &str, late: Duration) {
        self.slots(namespace, schedule, "fired", 1);
        self.lateness.observe(late.as_secs_f64());
    }

    /// Slots came and were not fired.
    pub fn missed(&self, namespace: &str, schedule: &str, count: u64) {
        self.slots(namespace, schedule, "missed", count);
    }

    fn slots(&self, namespace: &str, schedule: &str, result: &'static str, count: u64) {
        let labels = Schedule {
            namespace: namespace.to_owned(),
            schedule: schedule.to_owned(),
            result,
        };
        self.slots.get_or_create(&labels).inc_by(count);
    }

    /// An action on a pool was carried out.
    pub fn turned(&self, namespace: &str, pool: &str, action: &'static str, reason: &'static str) {
        let labels = Turned {
            namespace: namespace.to_owned(),
            pool: pool.to_owned(),
            action,
            reason,
        };
        self.turns.get_or_create(&labels).inc();
    }

    /// A step lost pods that it had not chosen; so many of them held a task.
    pub fn missing(&self, namespace: &str, pool: &str, wrong: u64, busy: u64) {
        let labels = Pool {
            namespace: namespace.to_owned(),
            pool: pool.to_owned(),
        };
        self.wrong_victims.get_or_create(&labels).inc_by(wrong);
        self.busy_stopped.get_or_create(&labels).inc_by(busy);
    }
}

fn states(depth: &umbel_api::taskqueue::Depth) -> [(&'static str, u64); 5] {
    let umbel_api::taskqueue::Depth {
        waiting,
        by_priority: _,
        in_flight,
        delayed,
        dead,
        quarantined,
    } = depth;
    [
        ("waiting", *waiting),
        ("in_flight", *in_flight),
        ("delayed", *delayed),
        ("dead", *dead),
        ("quarantined", *quarantined),
    ]
}
