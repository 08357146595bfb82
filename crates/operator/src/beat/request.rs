//! Runs that somebody asks for by the annotation `umbel.dev/run-now`.
//!
//! The annotation's text is the time of the request; each second begins one run at most, by a mark of its own on the broker,
//! however often it is seen and by whatever leader.

use std::time::Duration;

use jiff::Timestamp;
use kube::runtime::events::EventType;
use kube::{Api, ResourceExt};
use umbel_api::condition::whole_seconds;
use umbel_api::names::{RUN_NOW, RUN_NOW_BY};
use umbel_api::periodictask::{Overlap, Request};
use umbel_api::{PeriodicTask, PeriodicTaskStatus};
use umbel_plan::fanout::Occasion;
use umbel_plan::periodic::{Verdict, overlap};

use super::{Beat, Entry};
use crate::context::Context;
use crate::owners::holds_annotation;
use crate::send::Halt;

/// A request that could not be fired for so long is given up.
const KEPT: Duration = Duration::from_secs(600);
/// The clocks of people differ from Redis's by no more than this.
const AHEAD: Duration = Duration::from_secs(60);
/// Characters of the annotation and of names that are kept.
const MOST: usize = 100;

impl Beat<'_> {
    /// Begins the run that was asked for last, if it has not been answered yet. Suspended and paused schedules answer, too.
    pub(super) async fn answer_request(
        &self,
        now: Timestamp,
        entry: &mut Entry,
        status: &mut PeriodicTaskStatus,
    ) -> Result<(), Halt> {
        entry.asked = None;
        let Some(asked) = self.task.annotations().get(RUN_NOW) else {
            return Ok(());
        };
        let asked: String = asked.chars().take(MOST).collect();
        if status.last_request.as_ref().is_some_and(|last| last.asked == asked) {
            return Ok(());
        }
        let at = match judge(&asked, now) {
            Ok(at) => at,
            Err(why) => {
                self.refuse(status, asked, why).await;
                return Ok(());
            }
        };
        // Slots do not wait for it.
        entry.asked = Some(at).filter(|at| *at > now);
        if entry.asked.is_some() {
            return Ok(());
        }
        let policy = self.understood.policy.overlap;
        let is_active = policy != Overlap::Allow && self.is_active(status).await?;
        match overlap(policy, is_active, false) {
            Verdict::Fire => {}
            Verdict::Replace => self.replace(status).await?,
            // It is looked at again until it may begin, or is too old.
            Verdict::Keep => return Ok(()),
            Verdict::Skip => {
                let why = format!("an earlier run has not ended (overlap: {policy:?})");
                self.refuse(status, asked, why).await;
                return Ok(());
            }
        }
        let before = status.active_requests.len();
        self.fire(Occasion::Request(at), now, entry, status).await?;
        let answer = if status.active_requests.len() > before {
            format!("fired at {now}")
        } else {
            format!("looked at {now}: it had begun before, or no message was to be sent")
        };
        let by = who(self.ctx, self.task).await;
        let asker = by.as_deref().unwrap_or("somebody");
        let note = format!("{asker} asked for a run at {at}: {answer}");
        self.ctx.event(self.task, EventType::Normal, "RunRequested", note).await;
        status.last_request = Some(Request { asked, by, answer });
        Ok(())
    }

    async fn refuse(&self, status: &mut PeriodicTaskStatus, asked: String, why: String) {
        let by = who(self.ctx, self.task).await;
        let note = format!("{RUN_NOW} {asked:?}: not fired: {why}");
        self.ctx.event(self.task, EventType::Warning, "RunRefused", note).await;
        let answer = format!("not fired: {why}");
        status.last_request = Some(Request { asked, by, answer });
    }
}

/// The time of a request, or why it is not answered by a run.
fn judge(asked: &str, now: Timestamp) -> Result<Timestamp, String> {
    let at: Timestamp = asked
        .parse()
        .map_err(|_| "it must be the time of the request, such as 2026-12-01T09:30:00Z".to_owned())?;
    // As slots: times in the API are whole seconds.
    let at = whole_seconds(at);
    // Of what lies the other way nothing is left.
    let span = |from: Timestamp, to: Timestamp| Duration::try_from(to.duration_since(from)).unwrap_or_default();
    if span(at, now) > KEPT {
        return Err(format!("it is older than {} minutes", KEPT.as_secs() / 60));
    }
    if span(now, at) > AHEAD {
        return Err(format!(
            "it lies more than {} s ahead of the broker's clock",
            AHEAD.as_secs()
        ));
    }
    Ok(at)
}

/// Who asked: the user whom the writer of the request has named beside it, or else the field manager that wrote it. The
/// watch keeps no field managers. Where the API server cannot be asked, nobody is named.
async fn who(ctx: &Context, task: &PeriodicTask) -> Option<String> {
    let api: Api<PeriodicTask> = Api::namespaced(ctx.client.clone(), &task.namespace()?);
    let whole = api.get_metadata(&task.name_any()).await.ok()?;
    let entries = whole.metadata.managed_fields.as_deref().unwrap_or_default();
    let entry = entries.iter().find(|entry| holds_annotation(entry, RUN_NOW))?;
    // A name that stands there from an earlier request is somebody else's.
    let named = whole
        .annotations()
        .get(RUN_NOW_BY)
        .filter(|_| holds_annotation(entry, RUN_NOW_BY));
    let by = named.cloned().or_else(|| entry.manager.clone());
    by.map(|by| by.chars().take(MOST).collect())
}
