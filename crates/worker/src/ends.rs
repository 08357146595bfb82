//! The ends of a delivery, on their way to the settler with result, event and what follows in its workflow.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use umbel_broker::{End, FollowUp, Settlement, StoredResult};
use umbel_protocol::canvas::{Aftermath, after_revoked};
use umbel_protocol::event::Event;
use umbel_protocol::json::Json;
use umbel_protocol::message::TaskMessage;
use umbel_protocol::result;
use umbel_telemetry::chain;

use crate::app::Shared;
use crate::canvas;
use crate::job::Failure;
use crate::run::Delivery;
use crate::settle::Ended;

/// What a result document is made of.
pub(crate) struct ResultContext<'a> {
    pub(crate) id: &'a str,
    pub(crate) meta: result::Meta<'a>,
}

pub(crate) fn failure_of(failure: &Failure) -> result::Failure {
    let Failure {
        exc_type,
        exc_module,
        message,
        is_retryable: _,
    } = failure;
    result::Failure::new(exc_module, exc_type, message)
}

impl Shared {
    /// Waits for what may rightly take long, a free slot or the end of runs: the process counts as alive meanwhile.
    pub(crate) async fn while_alive<T>(&self, waited_for: impl Future<Output = T>) -> T {
        tokio::pin!(waited_for);
        loop {
            self.readiness.progress();
            if let Ok(done) = tokio::time::timeout(Duration::from_secs(30), &mut waited_for).await {
                return done;
            }
        }
    }

    /// Hands an end to the settler; waits while it has many.
    pub(crate) async fn send(&self, ended: Ended) {
        let lid = Arc::clone(&ended.settlement.lid);
        if self.ended.send(ended).await.is_err() {
            tracing::error!("nobody settles any more: the lease will");
            self.leases.remove(std::iter::once(&lid));
        }
    }

    /// A result document for the message, unless nobody wants one.
    pub(crate) fn document(
        &self,
        message: &TaskMessage,
        is_success: bool,
        trail: &[Json],
        make: impl FnOnce(&ResultContext) -> Vec<u8>,
    ) -> Option<StoredResult> {
        if message.ignore_result == Some(true) {
            return None;
        }
        let meta = result::Meta {
            done_at: self.clock.timestamp(),
            group_id: message.group.as_deref(),
            parent_id: message.parent_id.as_deref(),
            trail,
            ..result::Meta::default()
        };
        let document = make(&ResultContext { id: &message.id, meta });
        Some(self.stored(&message.id, document, is_success))
    }

    pub(crate) fn stored(&self, id: &str, document: Vec<u8>, is_success: bool) -> StoredResult {
        let key = self
            .results
            .as_ref()
            .map_or_else(|| self.broker.result_key(id), |results| results.key(id));
        StoredResult {
            key,
            ttl: self.config.policy.result_ttl,
            document,
            is_success,
        }
    }

    /// Ends a delivery that nothing follows.
    pub(crate) async fn end(
        &self,
        delivery: Delivery,
        end: End,
        result: Option<StoredResult>,
        outcome: &'static str,
        state: &'static str,
    ) {
        self.end_with(delivery, end, result, Vec::new(), (outcome, state)).await;
    }

    /// Ends a delivery with all that follows in its workflow. `words` are the run's outcome and the metric's state.
    pub(crate) async fn end_workflow(
        self: &Arc<Self>,
        delivery: Delivery,
        end: End,
        result: Option<StoredResult>,
        aftermath: Aftermath,
        words: (&'static str, &'static str),
    ) {
        match canvas::resolve(self, &delivery.message, aftermath).await {
            Ok(follow_ups) => self.end_with(delivery, end, result, follow_ups, words).await,
            Err(err) => {
                tracing::error!(task.id = %delivery.message.id, error = %chain(&err), "what follows could not be prepared: the message will be delivered again");
                self.leases.remove(std::iter::once(&delivery.lease.lid));
            }
        }
    }

    async fn end_with(
        &self,
        delivery: Delivery,
        end: End,
        result: Option<StoredResult>,
        follow_ups: Vec<FollowUp>,
        (outcome, state): (&'static str, &'static str),
    ) {
        let Delivery {
            lease, queue, message, ..
        } = delivery;
        let run = message.header("umbel_run").and_then(|run| run.to().ok());
        let is_known = self.tasks.get(&message.task).is_some();
        self.metrics
            .ended(&queue, if is_known { &message.task } else { "" }, state);
        let settlement = Settlement {
            lid: lease.lid,
            id: message.id,
            task: message.task,
            end,
            result,
            run,
            outcome,
            follow_ups,
        };
        self.send(Ended { queue, settlement }).await;
    }

    /// Ends a delivery that is not to run, or not any longer. `why` is `revoked`, `expired` or `terminated`.
    pub(crate) async fn revoke(self: &Arc<Self>, delivery: Delivery, why: &'static str) {
        self.events.task(|| Event::TaskRevoked {
            uuid: delivery.message.id.clone(),
            terminated: why == "terminated",
            signum: (why == "terminated").then(|| Json::of(&15)), // What Celery sends, unless told otherwise.
            expired: why == "expired",
        });
        let result = self.document(&delivery.message, false, &[], |ctx| {
            result::revoked(ctx.id, why, &ctx.meta)
        });
        let aftermath = after_revoked(&delivery.message, why);
        let word = if why == "expired" { "expired" } else { "revoked" };
        self.end_workflow(delivery, End::Ack, result, aftermath, (word, word))
            .await;
    }

    /// Tasks that run.
    pub(crate) fn busy(&self) -> usize {
        let finished = self.finished.load(Ordering::Relaxed);
        let started = self.started.load(Ordering::Relaxed);
        usize::try_from(started.saturating_sub(finished)).unwrap_or(usize::MAX)
    }

    /// Ends a delivery as a failure: result for the caller, message to the dead letters, the rest of its workflow failed.
    pub(crate) async fn bury(self: &Arc<Self>, delivery: Delivery, failure: &Failure, reason: String) {
        tracing::warn!(
            task.id = %delivery.message.id, task.name = %delivery.message.task, queue = %delivery.queue, reason = %reason,
            "task failed: dead letter"
        );
        let document = failure_of(failure);
        let text = failure.to_string();
        self.events.task(|| Event::TaskFailed {
            uuid: delivery.message.id.clone(),
            exception: document.repr(),
            traceback: Some(text.clone()),
        });
        let aftermath = canvas::after_failure(self, &delivery.message, &document, &text);
        // Celery stores it before it sends errbacks: they are no children.
        let result = self.document(&delivery.message, false, &[], |ctx| {
            result::failure(ctx.id, &document, Some(&text), &ctx.meta)
        });
        self.end_workflow(delivery, End::Bury { reason }, result, aftermath, ("failed", "failed"))
            .await;
    }
}
