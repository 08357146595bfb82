//! Who else works on a queue: other Umbel workers by their heartbeats, Celery's by remote control.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use umbel_broker::{Broker, WorkerRecord};
use umbel_telemetry::chain;

use crate::heartbeat::NAMES;

/// For so long an answer is believed.
const BELIEVED: Duration = Duration::from_secs(5);
/// Celery's own patience with remote control.
const ASKED: Duration = Duration::from_secs(1);

/// What is known about others.
#[derive(Default)]
pub(crate) struct Peers {
    ours: Option<(Instant, Vec<WorkerRecord>)>,
    celery: HashMap<String, (Instant, bool)>,
}

impl Peers {
    /// Does another consumer of the queue know the task, or might it, being a Celery worker?
    pub(crate) async fn somebody_knows(&mut self, broker: &Broker, me: &str, queue: &str, task: &str) -> bool {
        self.ours_know(broker, me, queue, task).await || self.celery_consumes(broker, queue).await
    }

    async fn ours_know(&mut self, broker: &Broker, me: &str, queue: &str, task: &str) -> bool {
        if self.ours.as_ref().is_none_or(|(at, _)| at.elapsed() > BELIEVED) {
            match broker.workers().await {
                Ok(workers) => self.ours = Some((Instant::now(), workers)),
                Err(err) => tracing::debug!(error = %chain(&err), "asking for other workers again"),
            }
        }
        let workers = self
            .ours
            .as_ref()
            .map_or(&[] as &[WorkerRecord], |(_, workers)| workers);
        workers
            .iter()
            .filter(|record| record.worker != me)
            .filter_map(|record| record.heartbeat.as_ref())
            .filter(|beat| beat.queues.iter().any(|name| name == queue))
            .any(|beat| beat.tasks.len() >= NAMES || beat.tasks.iter().any(|name| name == task))
    }

    async fn celery_consumes(&mut self, broker: &Broker, queue: &str) -> bool {
        if let Some((at, answer)) = self.celery.get(queue)
            && at.elapsed() < BELIEVED
        {
            return *answer;
        }
        let answer = match broker.celery_consumes(queue, ASKED).await {
            Ok(answer) => answer,
            Err(err) => {
                tracing::debug!(error = %chain(&err), "asking Celery's workers again");
                // Unknown is not no: hand it back rather than bury what a Celery worker would run.
                true
            }
        };
        self.celery.insert(queue.to_owned(), (Instant::now(), answer));
        answer
    }
}
