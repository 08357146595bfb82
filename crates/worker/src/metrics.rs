//! What a worker counts. Labels are bounded by its configuration: queues and task names that it knows.

use umbel_telemetry::metrics::Registry;
use umbel_telemetry::metrics::counter::Counter;
use umbel_telemetry::metrics::encoding::EncodeLabelSet;
use umbel_telemetry::metrics::family::Family;
use umbel_telemetry::metrics::gauge::Gauge;

use crate::counts::Counts;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct QueueLabels {
    pub(crate) queue: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct StateLabels {
    pub(crate) state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct KindLabels {
    pub(crate) kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct LevelLabels {
    pub(crate) level: &'static str,
}

pub(crate) struct Metrics {
    /// Ends, runtimes and waits.
    pub(crate) tasks: Counts,
    pub(crate) slots: Family<StateLabels, Gauge>,
    pub(crate) stuck: Gauge,
    pub(crate) stuck_total: Counter,
    pub(crate) lost: Counter,
    pub(crate) ack_unknown: Counter,
    pub(crate) reclaimed: Counter,
    pub(crate) repaired: Counter,
    pub(crate) reconnects: Counter,
    broker_errors: Family<KindLabels, Counter>,
    broker_durability: Family<LevelLabels, Gauge>,
    broker_evicts: Gauge,
    pub(crate) started: Counter,
    pub(crate) finished: Counter,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Metrics {
        registry.add(
            "log_dropped",
            "Lines of the log that nobody read in time, or that found no room",
            umbel_telemetry::logs::dropped(),
        );
        Metrics {
            tasks: Counts::new(registry),
            slots: registry.add("worker_slots", "Slots by state", Family::default()),
            stuck: registry.add(
                "worker_stuck_slots",
                "Tasks that ignore their hard limit, threads included",
                Gauge::default(),
            ),
            stuck_total: registry.add(
                "worker_stuck",
                "Tasks that ignored their hard limit, threads included",
                Counter::default(),
            ),
            lost: registry.add(
                "lease_lost",
                "Leases that were lost before they were settled",
                Counter::default(),
            ),
            ack_unknown: registry.add(
                "ack_unknown",
                "Settlements whose first reply was lost",
                Counter::default(),
            ),
            reclaimed: registry.add(
                "lease_reclaimed",
                "Overdue leases that this worker took back",
                Counter::default(),
            ),
            repaired: registry.add(
                "janitor_repaired",
                "Records that this worker's janitor repaired",
                Counter::default(),
            ),
            reconnects: registry.add(
                "broker_reconnects",
                "New connections of the one that takes messages",
                Counter::default(),
            ),
            broker_errors: registry.add(
                "broker_errors",
                "Calls to Redis that failed, by kind",
                Family::default(),
            ),
            broker_durability: registry.add(
                "broker_durability",
                "1 for the level that the server's settings promise",
                Family::default(),
            ),
            broker_evicts: registry.add(
                "broker_eviction_risk",
                "1 where the server would throw keys away when its memory is full",
                Gauge::default(),
            ),
            started: registry.add("task_started", "Tasks that began to run", Counter::default()),
            finished: registry.add("task_finished", "Tasks that ended, in whatever way", Counter::default()),
        }
    }

    /// A call to Redis failed.
    pub(crate) fn broker_failed(&self, err: &umbel_broker::Error) {
        let kind = err.trouble().label();
        self.broker_errors.get_or_create(&KindLabels { kind }).inc();
    }

    /// What is known of the server now.
    pub(crate) fn surveyed(&self, survey: &umbel_broker::Survey) {
        for one in umbel_broker::Durability::ALL {
            let level = self.broker_durability.get_or_create(&LevelLabels { level: one.word() });
            level.set(i64::from(survey.durability == Some(one)));
        }
        self.broker_evicts.set(i64::from(survey.eviction.is_some()));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_documentation_names_exactly_these() {
        let mut registry = Registry::new("worker");
        let _metrics = Metrics::new(&mut registry);
        let _sample = crate::sample::Sample::new(&mut registry);
        let document = include_str!("../../../docs/metrics.md");
        let table = document
            .split("## The worker")
            .nth(1)
            .and_then(|rest| rest.split("\n## ").next());
        let told: BTreeSet<String> = table
            .unwrap()
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .map(|name| name.trim_end_matches("_total").trim_end_matches("_info").to_owned())
            .collect();
        let known: BTreeSet<String> = registry.names().iter().cloned().collect();
        assert_eq!(told, known);
    }
}
