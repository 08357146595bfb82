//! What a worker says about itself every five seconds, or ten where there are very many.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use umbel_broker::{Broker, Heartbeat, Running};
use umbel_telemetry::chain;

use crate::app::Shared;

/// Interval of heartbeats, and that in a crowd; they expire after three.
const EVERY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(10));
/// Running tasks named in one heartbeat.
const RUNNING: usize = 100;
/// Task names in one heartbeat. A worker with more may know any.
pub(crate) const NAMES: usize = 200;

/// Beats for ever; at once when the gate changes.
pub(crate) async fn run(broker: Broker, shared: Arc<Shared>) {
    let mut is_warned = false;
    loop {
        let every = if shared.fleet.is_crowd() { EVERY.1 } else { EVERY.0 };
        let beat = describe(&shared);
        // Both at once: Redis reads them in one go.
        let along = crate::events::beat_along(&shared, every / 2);
        let ((), beaten) = tokio::join!(biased; along, broker.heartbeat(&beat, every));
        match beaten {
            Ok(()) => is_warned = false,
            Err(err) => {
                shared.metrics.broker_failed(&err);
                if !is_warned {
                    tracing::warn!(error = %chain(&err), "heartbeat again");
                }
                is_warned = true;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = shared.beat_now.notified() => {}
        }
    }
}

fn describe(shared: &Shared) -> Heartbeat {
    let config = &shared.config;
    let slots = shared.slots.total();
    let busy = shared.busy();
    shared
        .metrics
        .slots
        .get_or_create(&crate::metrics::StateLabels { state: "busy" })
        .set(i64::try_from(busy).unwrap_or(i64::MAX));
    shared
        .metrics
        .slots
        .get_or_create(&crate::metrics::StateLabels { state: "total" })
        .set(i64::try_from(slots).unwrap_or(i64::MAX));
    let running = shared.leases.runs().into_iter().take(RUNNING);
    Heartbeat {
        v: Heartbeat::CONTRACT,
        worker: shared.worker.clone(),
        node: config.name.clone(),
        namespace: config.pod.namespace.clone(),
        pool: config.pod.pool_uid.clone(),
        pod: config.pod.name.clone(),
        pod_uid: config.pod.uid.clone(),
        revision: config.pod.revision.clone(),
        queues: shared.queues.names(),
        slots: u32::try_from(slots).unwrap_or(u32::MAX),
        busy: u32::try_from(busy).unwrap_or(u32::MAX),
        running: running
            .map(|run| Running {
                id: run.message.id.clone(),
                task: run.message.task.clone(),
                queue: run.queue.to_string(),
                since: run.since,
            })
            .collect(),
        gate: shared
            .gate
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone(),
        tasks: shared.tasks.names().into_iter().take(NAMES).collect(),
        started: shared.started.load(Ordering::Relaxed),
        finished: shared.finished.load(Ordering::Relaxed),
        done: shared
            .queues
            .names()
            .into_iter()
            .filter_map(|queue| {
                let done = shared.metrics.tasks.done(&queue)?;
                Some((queue, done))
            })
            .collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}
