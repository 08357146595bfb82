//! The ends of a delivery, on their way to the settler with result, event and what follows in its workflow.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use umbel_broker::{End, FollowUp, ResultStore, Settlement, StoredResult};
use umbel_protocol::canvas::{Aftermath, after_revoked};
use umbel_protocol::event::Event;
use umbel_protocol::json::Json;
use umbel_protocol::message::TaskMessage;
use umbel_protocol::result;
use umbel_telemetry::chain;

use crate::app::Shared;
use crate::canvas::{self, Member};
use crate::job::Failure;
use crate::limits;
use crate::results::{Kind, is_wanted};
use crate::run::Delivery;
use crate::runners::gather;
use crate::settle::Ended;

/// What a result document is made of.
pub(crate) struct ResultContext<'a> {
    pub(crate) id: &'a str,
    pub(crate) meta: result::Meta<'a>,
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

    /// Hands an end to the settler; waits while it has many. Of a run that a runner polls, it goes with others.
    pub(crate) async fn send(&self, ended: Ended) {
        let Some(ended) = gather(ended) else { return };
        let lid = Arc::clone(&ended.settlement.lid);
        if self.settler.send(ended).await.is_err() {
            tracing::error!("nobody settles any more: the lease will");
            self.leases.remove(std::iter::once(&lid));
        }
    }

    /// Hands many ends to the settler, and leaves none.
    pub(crate) async fn send_all(&self, ended: &mut Vec<Ended>) {
        match self.settler.reserve_many(ended.len()).await {
            Ok(places) => places.zip(ended.drain(..)).for_each(|(place, ended)| place.send(ended)),
            Err(_) => {
                tracing::error!("nobody settles any more: the lease will");
                self.leases.remove(
                    ended
                        .drain(..)
                        .map(|ended| ended.settlement.lid)
                        .collect::<Vec<_>>()
                        .iter(),
                );
            }
        }
    }

    /// The result store, when it is not the broker's database.
    pub(crate) fn elsewhere(&self) -> Option<&ResultStore> {
        self.results.as_ref()
    }

    /// A result document for the message, unless nobody wants one.
    pub(crate) fn document(
        &self,
        message: &TaskMessage,
        kind: Kind,
        trail: &[Json],
        make: impl FnOnce(&ResultContext) -> Vec<u8>,
    ) -> Option<StoredResult> {
        let options = self.tasks.options(&message.task);
        if !is_wanted(self.config.results.store, options, message.ignore_result, kind) {
            return None;
        }
        let extra = if self.config.results.is_extended {
            result::extended(message, &self.hostname)
        } else {
            Vec::new()
        };
        let meta = result::Meta {
            done_at: self.clock.timestamp(),
            group_id: message.group.as_deref(),
            parent_id: message.parent_id.as_deref(),
            trail,
            extra: &extra,
            ..result::Meta::default()
        };
        let document = make(&ResultContext { id: &message.id, meta });
        Some(self.stored(&message.id, document, kind == Kind::Success))
    }

    pub(crate) fn stored(&self, id: &str, document: Vec<u8>, is_success: bool) -> StoredResult {
        StoredResult {
            key: self.store.key(id),
            ttl: self.config.policy.result_ttl,
            document: self.config.results.packed(document),
            is_success,
        }
    }

    /// As a failure lives: Celery's `result_failure_expires`.
    fn failed(&self, stored: StoredResult) -> StoredResult {
        StoredResult {
            ttl: self.config.failure_ttl,
            ..stored
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
        mut aftermath: Aftermath,
        words: (&'static str, &'static str),
    ) {
        if let Some(member) = Member::of(self, &delivery.message, &mut aftermath) {
            let mut ended = self.ended(delivery, end, result, Vec::new(), words);
            ended.member = Some(member);
            return self.send(ended).await;
        }
        match canvas::resolve(self, &delivery.message, aftermath).await {
            Ok(follow_ups) => self.end_with(delivery, end, result, follow_ups, words).await,
            Err(err) => {
                tracing::error!(task.id = %delivery.message.id, error = %chain(&err), "what follows could not be prepared: the message will be delivered again");
                self.leases.remove(std::iter::once(&delivery.lease.lid));
            }
        }
    }

    pub(crate) async fn end_with(
        &self,
        delivery: Delivery,
        end: End,
        result: Option<StoredResult>,
        follow_ups: Vec<FollowUp>,
        words: (&'static str, &'static str),
    ) {
        let ended = self.ended(delivery, end, result, follow_ups, words);
        self.send(ended).await;
    }

    /// What the settler is told of an end, which is counted here.
    pub(crate) fn ended(
        &self,
        delivery: Delivery,
        end: End,
        result: Option<StoredResult>,
        mut follow_ups: Vec<FollowUp>,
        (outcome, state): (&'static str, &'static str),
    ) -> Ended {
        follow_ups.extend(limits::at_the_end(self, &delivery.message, &end, state));
        let Delivery {
            lease, queue, message, ..
        } = delivery;
        let run = message.own_header("umbel_run").and_then(|run| run.to().ok());
        let is_known = self.tasks.get(&message.task).is_some();
        self.metrics
            .tasks
            .ended(&queue, if is_known { &message.task } else { "" }, state);
        let settlement = Settlement {
            lid: lease.lid,
            id: message.id.clone(),
            task: message.task.clone(),
            end,
            result,
            run,
            outcome,
            follow_ups,
        };
        Ended::of(queue, settlement)
    }

    /// Ends a delivery that is not to run, or not any longer. `why` is `revoked`, `expired` or `terminated`.
    pub(crate) async fn revoke(self: &Arc<Self>, delivery: Delivery, why: &'static str) {
        self.events.task(|| Event::TaskRevoked {
            uuid: delivery.message.id.clone(),
            terminated: why == "terminated",
            signum: (why == "terminated").then(|| Json::of(&delivery.lease.signum())),
            expired: why == "expired",
        });
        let result = self.document(&delivery.message, Kind::Failure, &[], |ctx| {
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
        self.bury_with(delivery, failure, reason, &[]).await;
    }

    /// As [`Shared::bury`], with the results of what the task had sent.
    pub(crate) async fn bury_with(
        self: &Arc<Self>,
        delivery: Delivery,
        failure: &Failure,
        reason: String,
        trail: &[Json],
    ) {
        match self
            .causes
            .tell(&delivery.message.task, &failure.exc_type, Instant::now())
        {
            Some(untold) => tracing::warn!(
                task.id = %delivery.message.id, task.name = %delivery.message.task, queue = %delivery.queue, untold,
                reason = %loggable(failure, &reason), "task failed: dead letter"
            ),
            None => tracing::debug!(
                task.id = %delivery.message.id, task.name = %delivery.message.task, queue = %delivery.queue,
                reason = %loggable(failure, &reason), "task failed: dead letter"
            ),
        }
        let document = failure.document();
        let text = traceback(failure, &delivery.message.task);
        self.events.task(|| {
            // Of a rejection the document has no traceback, but the event has, and the exception's own words.
            let rejected = failure.is_rejection();
            Event::TaskFailed {
                uuid: delivery.message.id.clone(),
                exception: rejected.clone().unwrap_or_else(|| document.repr()),
                traceback: text
                    .clone()
                    .or_else(|| rejected.map(|_| failure.traceback(&delivery.message.task))),
            }
        });
        let aftermath = canvas::after_failure(self, &delivery.message, &document, text.as_deref());
        // Celery stores it before it sends errbacks: they are no children.
        let result = self.document(&delivery.message, Kind::Failure, trail, |ctx| {
            result::failure(ctx.id, &document, text.as_deref(), &ctx.meta)
        });
        let result = result.map(|stored| self.failed(stored));
        let end = if delivery.is_early {
            // Redis has its bytes no longer.
            let raw = delivery.raw.to_vec();
            End::BuryBytes { reason, raw }
        } else {
            End::Bury { reason }
        };
        self.end_workflow(delivery, end, result, aftermath, ("failed", "failed"))
            .await;
    }
}

/// The reason, where the words are ours; else the class of the exception. The task's own words may hold its arguments:
/// its result and its dead letter have them.
fn loggable<'a>(failure: &'a Failure, reason: &'a str) -> &'a str {
    let is_ours = matches!(
        failure.exc_type.as_str(),
        "NotRegistered" | "TimeLimitExceeded" | "WorkerLostError" | "DecodeError"
    );
    if is_ours { reason } else { &failure.exc_type }
}

/// The traceback of a failure. Those that Celery's own machinery raises have none: nothing of the task's ran then.
fn traceback(failure: &Failure, task: &str) -> Option<String> {
    let is_outside = matches!(
        (failure.exc_module.as_str(), failure.exc_type.as_str()),
        ("celery.exceptions", "NotRegistered" | "Reject")
            | ("billiard.exceptions", "TimeLimitExceeded" | "WorkerLostError")
    );
    (!is_outside).then(|| failure.traceback(task))
}
