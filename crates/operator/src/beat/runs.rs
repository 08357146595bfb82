//! Runs that have begun: which go on, how they ended, and cancelling them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::events::EventType;
use umbel_api::PeriodicTaskStatus;
use umbel_api::periodictask::{Outcome, PastRun};
use umbel_broker::RunState;
use umbel_plan::fanout::Occasion;

use super::{Beat, FOLLOW, LOOK};
use crate::controllers::periodictask::{count_active, note_ended, uid};
use crate::send::Halt;

/// Why a run was cancelled, in its record.
const REPLACED: &str = "replaced";

impl Beat<'_> {
    /// Whether a run goes on. One of which nothing is left on the broker is closed as lost.
    pub(super) async fn is_active(&self, status: &mut PeriodicTaskStatus) -> Result<bool, Halt> {
        if open_runs(status).is_empty() {
            return Ok(false);
        }
        self.follow(status).await?;
        if open_runs(status).is_empty() {
            return Ok(false);
        }
        let is_empty = self.sender.is_empty(&self.understood.address.queue).await?;
        // What ended between the two questions is seen as ended by the second look.
        self.follow(status).await?;
        let open = open_runs(status);
        if !is_empty || open.is_empty() {
            return Ok(!open.is_empty());
        }
        for occasion in &open {
            let run = self
                .sender
                .broker
                .run(&occasion.run_id(&uid(self.task)).to_string())
                .await?;
            if run.is_some_and(|run| run.open.is_empty() && !run.later.is_empty()) {
                return Ok(true); // Its next tasks have not had their turn.
            }
        }
        let slots: Vec<String> = open.iter().map(|occasion| occasion.at().to_string()).collect();
        let note = format!(
            "the runs of {} have open tasks, but the queue holds none: closed as lost",
            slots.join(", ")
        );
        self.ctx.event(self.task, EventType::Warning, "RunLost", note).await;
        if let Some(run) = status.last_run.as_mut().filter(|run| status.active.contains(&run.slot)) {
            run.failed = run.total.saturating_sub(run.succeeded);
        }
        for occasion in open {
            let run = self
                .sender
                .broker
                .run(&occasion.run_id(&uid(self.task)).to_string())
                .await?;
            self.close(status, occasion, Outcome::Lost, &run.unwrap_or_default());
        }
        Ok(false)
    }

    /// Drops runs that have ended from the open ones, and notes how they fared.
    pub(super) async fn follow(&self, status: &mut PeriodicTaskStatus) -> Result<(), Halt> {
        for occasion in open_runs(status) {
            let at = occasion.at();
            let Some(progress) = self.sender.advance(occasion, self.now()).await? else {
                // Without a record nothing can be said; the data is lost or very old.
                drop_open(status, occasion);
                continue;
            };
            let is_good = progress.is_good();
            let run = progress.run;
            let latest = status.last_run.as_mut();
            if let Some(latest) = latest.filter(|latest| occasion == Occasion::Slot(latest.slot.0))
                && (progress.has_plan || run.is_over())
            {
                latest.total = u32::try_from(run.total).unwrap_or(u32::MAX);
                latest.succeeded = u32::try_from(run.succeeded).unwrap_or(u32::MAX);
                latest.failed = u32::try_from(run.failed).unwrap_or(u32::MAX);
                latest.clusters = progress.clusters;
            }
            if !run.is_over() && is_replaced(&run) {
                // A leader has begun to, and may not have told those that run.
                self.replace_one(status, occasion).await?;
                continue;
            }
            if !run.is_over() {
                self.has_plans.fetch_or(progress.has_plan, Ordering::Relaxed);
                continue;
            }
            let outcome = match is_good {
                true => Outcome::Succeeded,
                // By a leader that could not write so in the status.
                false if is_replaced(&run) => Outcome::Replaced,
                false => Outcome::Failed,
            };
            if outcome == Outcome::Failed {
                let skipped = match run.skipped {
                    0 => String::new(),
                    skipped => format!("; {skipped} more were not sent"),
                };
                let note = format!(
                    "{} of {} tasks of the slot {at} did not succeed{skipped}",
                    run.failed, run.total
                );
                self.ctx.event(self.task, EventType::Warning, "RunFailed", note).await;
            }
            self.close(status, occasion, outcome, &run);
            self.sender.close(occasion).await?;
        }
        Ok(())
    }

    /// Redis's time, as far as it is known.
    fn now(&self) -> Timestamp {
        let view = self.ctx.brokers.view(&self.understood.address.source);
        view.now().unwrap_or_else(Timestamp::now)
    }

    /// Cancels all tasks of the open runs: what waits is dropped when its turn comes, what runs is stopped.
    pub(super) async fn replace(&self, status: &mut PeriodicTaskStatus) -> Result<(), Halt> {
        for occasion in open_runs(status) {
            self.replace_one(status, occasion).await?;
        }
        // Those that were over by then ended by themselves.
        self.follow(status).await
    }

    async fn replace_one(&self, status: &mut PeriodicTaskStatus, occasion: Occasion) -> Result<(), Halt> {
        let run = self.sender.cancel(occasion, REPLACED).await?;
        if run.is_over() {
            return Ok(());
        }
        let note = format!(
            "{} tasks of the run of {} were cancelled for the next slot (overlap: Replace)",
            run.open.len(),
            occasion.at()
        );
        self.ctx.event(self.task, EventType::Normal, "RunReplaced", note).await;
        self.close(status, occasion, Outcome::Replaced, &run);
        Ok(())
    }

    fn close(&self, status: &mut PeriodicTaskStatus, occasion: Occasion, outcome: Outcome, run: &RunState) {
        let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let past = PastRun {
            slot: Time(occasion.at()),
            outcome,
            total: count(run.total),
            succeeded: count(run.succeeded),
            failed: count(run.failed),
            is_request: matches!(occasion, Occasion::Request(_)),
        };
        note_ended(self.task, status, past);
        drop_open(status, occasion);
    }
}

/// Its tasks were cancelled for a later slot, whatever its status says.
fn is_replaced(run: &RunState) -> bool {
    run.cancelled.as_deref() == Some(REPLACED)
}

/// Runs that have not ended, as far as the status names them, oldest first.
fn open_runs(status: &PeriodicTaskStatus) -> Vec<Occasion> {
    let slots = status.active.iter().map(|slot| Occasion::Slot(slot.0));
    let requests = status.active_requests.iter().map(|at| Occasion::Request(at.0));
    let mut open: Vec<Occasion> = slots.chain(requests).collect();
    open.sort_by_key(Occasion::at);
    open
}

fn drop_open(status: &mut PeriodicTaskStatus, occasion: Occasion) {
    let open = match occasion {
        Occasion::Slot(_) => &mut status.active,
        Occasion::Request(_) => &mut status.active_requests,
    };
    open.retain(|at| at.0 != occasion.at());
    count_active(status);
}

/// How long open runs may go unwatched: a short one is seen to end soon, a long one costs little.
pub(super) fn pace(status: &PeriodicTaskStatus, has_plans: bool, now: Timestamp) -> Duration {
    if has_plans && !open_runs(status).is_empty() {
        return FOLLOW;
    }
    let latest = open_runs(status).last().map(Occasion::at);
    let age = latest.map(|at| Duration::try_from(now.duration_since(at)).unwrap_or_default());
    age.map_or(LOOK, |age| (age / 4).clamp(FOLLOW, LOOK))
}
