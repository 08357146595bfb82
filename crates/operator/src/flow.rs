//! How queues fare: meters of all queues on one broker, and who takes their messages.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::ResourceExt;
use umbel_api::TaskQueue;
use umbel_api::taskqueue::Consumers;
use umbel_broker::Broker;
use umbel_plan::flow::{Done, Flow, Head, Meter};
use umbel_telemetry::chain;

use crate::brokers::Sample;
use crate::context::Context;

/// How often Celery's workers are asked what they consume: each of them answers.
const ASK_EVERY: Duration = Duration::from_secs(30);
/// Celery's own patience with remote control.
const PATIENCE: Duration = Duration::from_secs(1);

/// Meters by queue.
#[derive(Default)]
pub(crate) struct Meters(HashMap<String, Meter>);

impl Meters {
    /// Takes a sample in, and answers how its queues fare.
    pub(crate) fn measure(&mut self, sample: &Sample) -> BTreeMap<String, Flow> {
        self.0.retain(|queue, _| sample.queues.contains_key(queue));
        let mut all: HashMap<&str, Vec<(&str, Done)>> = HashMap::new();
        for record in &sample.workers {
            for (queue, done) in record.heartbeat.iter().flat_map(|beat| &beat.done) {
                let umbel_broker::Done {
                    started,
                    succeeded,
                    failed,
                    gone,
                } = *done;
                let done = Done {
                    started,
                    succeeded,
                    failed,
                    gone,
                };
                all.entry(queue).or_default().push((&record.worker, done));
            }
        }
        let mut flows = BTreeMap::new();
        for (queue, depth) in &sample.queues {
            let Ok(depth) = depth else { continue };
            let done = all.remove(queue.as_str()).unwrap_or_default();
            let head = depth.tail.as_deref().map(|hash| Head {
                hash,
                sent: depth.tail_sent_at,
            });
            let meter = self.0.entry(queue.clone()).or_default();
            meter.see(
                sample.taken_at,
                done,
                depth.waiting + depth.suspect + depth.in_flight,
                head,
            );
            flows.insert(queue.clone(), meter.flow());
        }
        flows
    }
}

/// What Celery's workers of one broker have answered last.
#[derive(Default)]
pub(crate) struct Foreign {
    asked: Option<Instant>,
    answer: Arc<Mutex<Option<BTreeMap<String, u32>>>>,
}

impl Foreign {
    /// The latest answer; asks again beside everything else when that is old.
    pub(crate) fn latest(&mut self, broker: &Broker) -> Option<BTreeMap<String, u32>> {
        if self.asked.is_none_or(|asked| asked.elapsed() >= ASK_EVERY) {
            self.asked = Some(Instant::now());
            let (broker, answer) = (broker.clone(), self.answer.clone());
            tokio::spawn(async move {
                let answered = match broker.celery_consumers(PATIENCE).await {
                    Ok(answered) => Some(answered),
                    Err(error) => {
                        tracing::debug!(error = %chain(&error), "Celery's workers not asked");
                        None
                    }
                };
                *answer.lock().unwrap_or_else(PoisonError::into_inner) = answered;
            });
        }
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Who takes the messages of a queue.
pub(crate) fn consumers(ctx: &Context, queue: &TaskQueue, sample: &Sample) -> Consumers {
    let (name, own) = (queue.queue_name(), queue.name_any());
    let serves = |pool: &umbel_api::WorkerPool| {
        pool.metadata.namespace == queue.metadata.namespace && pool.spec.queues.iter().any(|share| share.name == own)
    };
    let pools: BTreeSet<String> = ctx
        .pools()
        .iter()
        .filter(|pool| serves(pool))
        .map(|pool| pool.name_any())
        .collect();
    let mut consumers = Consumers {
        pools: pools.into_iter().collect(),
        foreign_workers: sample
            .foreign
            .as_ref()
            .map(|foreign| foreign.get(&name).copied().unwrap_or(0)),
        ..Consumers::default()
    };
    let beats = sample.workers.iter().filter_map(|record| record.heartbeat.as_ref());
    for beat in beats.filter(|beat| beat.queues.contains(&name)) {
        consumers.pods += 1;
        consumers.slots = consumers.slots.saturating_add(beat.slots);
        consumers.busy_slots = consumers.busy_slots.saturating_add(beat.busy);
    }
    consumers
}
