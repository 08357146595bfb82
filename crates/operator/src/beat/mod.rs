//! The beat: fires the slots of schedules.
//!
//! Only the leader runs it. It decides nothing by itself: which slots are due is [`umbel_plan::periodic`]'s answer, and
//! whether a slot was fired before is Redis's.
//!
//! # Guarantees
//! Each slot enqueues exactly one message (one a cluster) as long as the broker keeps its acknowledged writes; if it loses
//! some, the latest slot is enqueued again under the same ids. A slot that falls into a change of leader is fired by the
//! next one, merged or skipped as `missedRuns` says, and counted; never dropped in silence.
//!
//! # What a crash leaves
//! Before `fire`: nothing; the next leader fires. After `fire`, before status: the mark in Redis; the next leader reads it
//! and repairs the status. After status: both agree. Due time is judged by Redis's clock.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::runtime::events::EventType;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use umbel_api::condition::find;
use umbel_api::names::RUN_NOW;
use umbel_api::names::periodic_condition::{SCHEDULED, STALLED};
use umbel_api::periodictask::{MissedRuns, Overlap};
use umbel_api::{PeriodicTask, PeriodicTaskStatus};
use umbel_broker::{Durability, FireAnswer, Replicas, Slot};
use umbel_plan::fanout::Occasion;
use umbel_plan::periodic::{MOST_AT_ONCE, PUNCTUAL, Verdict, due, last_due, next_wake, overlap};
use umbel_telemetry::chain;

use crate::brokers::{Awaited, BROKER_REFUSES, Source, View};
use crate::context::Context;
use crate::controllers::periodictask::{
    QUEUE_FULL, Standing, Understood, in_force, is_paused, note_dealt_with, note_fired, note_over, runs_left, stand,
    uid, understand, write,
};
use crate::failpoint;
use crate::send::{Halt, Sender, Stall};
use crate::watch::Change;

mod agenda;
mod request;
mod runs;
mod writes;

use agenda::Agenda;
use runs::pace;
use writes::{Allowance, is_news};

/// Where writes wait for replicas, a slot counts as fired once one of them has it.
const CONFIRMED: Replicas = Replicas {
    count: 1,
    patience: Duration::from_secs(1),
    is_on_disk: false,
};

/// Schedules looked at at a time: slots of one second do not wait for each other's status writes.
const CONCURRENCY: usize = 64;
/// A look at least this often: Redis's clock may jump, queues and clusters come and go.
const LOOK: Duration = Duration::from_secs(10);
/// … and at one that waits for a repair, so that it goes on within 5 s.
const LOOK_STALLED: Duration = Duration::from_secs(3);
/// Slots of a long absence come in parts, one in so long: whoever works on them, and beside them, is not flooded.
const CATCH_UP: Duration = Duration::from_secs(1);
/// Wait after something did not work that may work at once.
const SOON: Duration = Duration::from_millis(250);
/// Open runs are looked after when they are older by a quarter, but not oftener than this.
const FOLLOW: Duration = Duration::from_millis(500);
/// Changes that come together are dealt with together; short against any slot.
const TOGETHER: Duration = Duration::from_millis(20);

/// What the beat remembers of a schedule; all of it can be lost.
#[derive(Default)]
struct Entry {
    /// The generation last looked at, and the request.
    seen: Option<(Option<i64>, Option<String>)>,
    /// When to look again.
    wake: Option<Instant>,
    /// What Redis knew when it was last asked.
    mark: Option<Mark>,
    /// When the open runs were last looked after.
    followed: Option<Instant>,
    /// A run goes on by a plan: whatever ends may be followed by something.
    has_plans: bool,
    /// A run was asked for, by a clock that is ahead: it begins then.
    asked: Option<Timestamp>,
    /// The status as it should be, written or not.
    status: Option<PeriodicTaskStatus>,
    /// Whether it was told that the replicas' disks cannot be waited for.
    told_of_disks: bool,
    /// When the status was last written.
    wrote: Option<Instant>,
    /// Our latest write, for as long as the watch has not brought it back.
    written: Option<Written>,
}

/// A status that was written.
struct Written {
    /// The object's version that it was based on.
    based: String,
    /// The version that it made.
    made: String,
    status: PeriodicTaskStatus,
}

/// The last slot fired, as read under a term from a data set.
struct Mark {
    term: u64,
    data: String,
    read: Instant,
    last: Option<Timestamp>,
    /// A slot that was fired and that the broker has forgotten.
    forgotten: Option<Timestamp>,
}

/// Brokers that could not be reached, and when that was last seen. A mark that was read before may be lost: a server that
/// starts again empty, before any worker has named the data set, shows itself by nothing else.
#[derive(Default)]
struct Outages {
    seen: Mutex<HashMap<Source, Instant>>,
}

impl Outages {
    fn last(&self, source: &Source) -> Option<Instant> {
        self.lock().get(source).copied()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Source, Instant>> {
        // Nothing that can panic runs under this lock.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the loop knows of brokers, so that a recovery or a change of data wakes the schedules at once.
#[derive(Default)]
struct Watch {
    outages: Arc<Outages>,
    away: HashSet<Source>,
    data: HashMap<Source, String>,
}

impl Watch {
    /// Whether the schedules of this broker should look again now.
    fn note(&mut self, source: &Source, view: &View) -> bool {
        if view.fault.is_some() {
            self.outages.lock().insert(source.clone(), Instant::now());
            self.away.insert(source.clone());
            return false;
        }
        if view.sample.is_none() {
            return false;
        }
        let data = view.data();
        let before = self.data.insert(source.clone(), data.clone());
        self.away.remove(source) || before.is_some_and(|before| before != data)
    }
}

/// Fires slots until `stop`.
pub async fn run(ctx: Arc<Context>, stop: CancellationToken) {
    let changes = ctx.scopes.iter().map(|scope| scope.periodic.changes().boxed());
    let mut changes = stream::select_all(changes);
    let mut agenda = Agenda::default();
    let allowance = Arc::new(Allowance::new(Instant::now()));
    let mut work: JoinSet<(Arc<str>, Entry)> = JoinSet::new();
    let mut watch = Watch::default();
    let mut wakes = ctx.brokers.wakes();
    let mut claims = ctx.claims.changes();
    loop {
        while work.len() < CONCURRENCY
            && let Some((uid, task, entry)) = agenda.next(Instant::now())
        {
            let (ctx, outages, allowance) = (ctx.clone(), watch.outages.clone(), allowance.clone());
            let sharers = agenda.len();
            work.spawn(async move { (uid, look(&ctx, &task, &outages, (&allowance, sharers), entry).await) });
        }
        let soonest = agenda.soonest().unwrap_or_else(|| Instant::now() + LOOK);
        let is_full = work.len() == CONCURRENCY;
        tokio::select! {
            () = stop.cancelled() => break,
            // The next of those at work to end makes room.
            () = tokio::time::sleep_until(soonest.into()), if !is_full => {}
            change = changes.next() => {
                if change.is_none() {
                    break;
                }
                tokio::time::sleep(TOGETHER).await;
                let others = std::iter::from_fn(|| changes.next().now_or_never().flatten());
                let all: Vec<Change<PeriodicTask>> = change.into_iter().chain(others).collect();
                note_changes(&ctx, &mut agenda, &all);
            }
            Some(done) = work.join_next() => settle(&mut agenda, done),
            // Its sender is in the context.
            Ok(()) = claims.changed() => agenda.refresh(ctx.periodic(), Instant::now()),
            wake = wakes.recv() => {
                let recovered = match wake {
                    Ok(wake) => watch.note(&wake.source, &ctx.brokers.view(&wake.source)),
                    // Too many to tell which.
                    Err(RecvError::Lagged(_)) => true,
                    Err(RecvError::Closed) => break,
                };
                if recovered {
                    agenda.rush(Instant::now());
                }
            }
        }
        while let Some(done) = work.try_join_next() {
            settle(&mut agenda, done);
        }
    }
    // What was sent to Redis is done there or not; the next leader finds out.
    work.abort_all();
}

/// Takes what the watch tells.
fn note_changes(ctx: &Context, agenda: &mut Agenda, changes: &[Change<PeriodicTask>]) {
    let now = Instant::now();
    if changes.iter().any(|change| matches!(change, Change::All)) {
        return agenda.refresh(ctx.periodic(), now);
    }
    for change in changes {
        let Change::One(task) = change else { continue };
        // As it is now; it may be gone, and another one may have its name.
        let present = ctx.schedule(&task.namespace().unwrap_or_default(), &task.name_any());
        if present.as_ref().is_none_or(|present| present.uid() != task.uid()) {
            agenda.remove(&uid(task));
        }
        if let Some(present) = present {
            agenda.put(present, now);
        }
    }
}

/// Takes back what a look leaves.
fn settle(agenda: &mut Agenda, done: Result<(Arc<str>, Entry), tokio::task::JoinError>) {
    match done {
        Ok((uid, entry)) => agenda.back(&uid, entry, Instant::now()),
        Err(error) => {
            // A look that panicked; all that are out are looked at anew.
            tracing::error!(%error, "a schedule could not be looked at");
            agenda.forget_given(Instant::now());
        }
    }
}

/// Looks at one schedule: fires what is due, and writes what changed.
async fn look(
    ctx: &Context,
    task: &Arc<PeriodicTask>,
    outages: &Outages,
    allowance: (&Allowance, usize),
    mut entry: Entry,
) -> Entry {
    entry.seen = Some(seen(task));
    if task.metadata.deletion_timestamp.is_some() {
        // Somebody's finalizer keeps it: it fires no more.
        return entry.again_in(LOOK);
    }
    let is_ours = ctx.claims.holds(&task.namespace().unwrap_or_default());
    let Some(term) = ctx.leader.term().filter(|_| is_ours) else {
        return entry.again_in(SOON);
    };
    let old = entry.status.take().or_else(|| task.status.clone()).unwrap_or_default();
    let mut status = old.clone();
    let wait = match understand(ctx, task) {
        Ok(understood) => {
            let outage = outages.last(&understood.address.source);
            entry
                .mark
                .take_if(|mark| outage.is_some_and(|outage| mark.read <= outage));
            beat(ctx, task, &understood, term, &mut entry, &mut status).await
        }
        Err(stall) => {
            stand(task, &mut status, &Standing::Stalled(&stall), Timestamp::now());
            LOOK_STALLED
        }
    };
    tell(ctx, task, &old, &status).await;
    let written = entry.write(ctx, task, &status, allowance).await;
    entry.status = Some(status);
    entry.again_in(if written { wait } else { wait.min(SOON) })
}

/// What of an object is looked at anew when it changes.
fn seen(task: &PeriodicTask) -> (Option<i64>, Option<String>) {
    (task.metadata.generation, task.annotations().get(RUN_NOW).cloned())
}

impl Entry {
    fn again_in(mut self, wait: Duration) -> Self {
        self.wake = Some(Instant::now() + wait.min(LOOK));
        self
    }

    /// Writes the status if the object shows another one. False if that must be tried again soon; one that may lag is tried
    /// at the next look.
    async fn write(
        &mut self,
        ctx: &Context,
        task: &Arc<PeriodicTask>,
        status: &PeriodicTaskStatus,
        (allowance, sharers): (&Allowance, usize),
    ) -> bool {
        let shown = task.resource_version().unwrap_or_default();
        let (version, present) = match &self.written {
            Some(Written { based, made, status }) if *based == shown => (made.clone(), Some(status)),
            Some(_) | None => (shown.clone(), task.status.as_ref()),
        };
        if present == Some(status) {
            return true;
        }
        let now = Instant::now();
        if !is_news(present, status) && !allowance.take(self.wrote, sharers, now) {
            return true;
        }
        self.wrote = Some(now);
        match write(ctx, task, &version, status).await {
            Ok(made) => {
                self.written = Some(Written {
                    based: shown,
                    made,
                    status: status.clone(),
                });
                true
            }
            Err(error) => {
                // Somebody else wrote, or the object is gone: the watch will tell.
                tracing::debug!(task = task.name_any(), error = %chain(&error), "status not written");
                self.written = None;
                false
            }
        }
    }
}

/// Fires what is due, follows open runs, and says how it stands; how long nothing will be to do.
async fn beat(
    ctx: &Context,
    task: &PeriodicTask,
    understood: &Understood,
    term: u64,
    entry: &mut Entry,
    status: &mut PeriodicTaskStatus,
) -> Duration {
    let view = ctx.brokers.view(&understood.address.source);
    if let Some(fault) = &view.fault {
        stand(
            task,
            status,
            &Standing::Waiting(&Awaited::end_of(fault)),
            Timestamp::now(),
        );
        return SOON;
    }
    let (Ok(broker), Some(now)) = (ctx.brokers.writable(&understood.address.source, term), view.now()) else {
        // Not contacted yet, or not told our term.
        return SOON;
    };
    let beat = Beat {
        ctx,
        task,
        sender: Sender {
            ctx,
            namespace: task.namespace().unwrap_or_default(),
            uid: uid(task),
            origin: format!("beat@{}", task.name_any()),
            term,
            broker: broker.with_steps(&understood.address.steps),
        },
        understood,
        has_plans: AtomicBool::new(false),
    };
    let (since, edited) = in_force(task, status, now);
    if let Err(error) = beat.run(&view, (since, edited), now, entry, status).await {
        return match error {
            Halt::Broker(error) => {
                tracing::warn!(task = task.name_any(), error = %chain(&error), "slot not fired: the broker did not answer");
                if let Some(awaited) = Awaited::after(&error) {
                    stand(task, status, &Standing::Waiting(&awaited), now);
                }
                SOON
            }
            Halt::Api(error) => {
                tracing::warn!(task = task.name_any(), error = %chain(&error), "slot not fired: its arguments could not be read");
                LOOK_STALLED
            }
            Halt::Again(wait) => wait,
            Halt::Full { queue, most } => {
                stand(task, status, &Standing::Full { queue: &queue, most }, now);
                LOOK_STALLED
            }
            Halt::Stall(stall) => {
                stand(task, status, &Standing::Stalled(&stall), now);
                LOOK_STALLED
            }
        };
    }
    let now = view.now().unwrap_or(now);
    entry.has_plans = beat.has_plans.load(Ordering::Relaxed);
    let follow = pace(status, entry.has_plans, now);
    let follow = entry.asked.map_or(follow, |at| follow.min(until(at, now)));
    if task.spec.suspend {
        stand(task, status, &Standing::Suspended, now);
        return follow;
    }
    if is_paused(task, status) {
        stand(task, status, &Standing::Paused(status.consecutive_failures), now);
        return follow;
    }
    if runs_left(task, status) == Some(0) {
        note_over(task, status, now);
        stand(task, status, &Standing::Scheduled(None), now);
        return follow;
    }
    let floor = entry.floor(status, since);
    if understood.timetable.next_after(floor).is_none() {
        note_over(task, status, now);
    }
    let next = next_wake(&understood.timetable, &understood.policy, floor, now);
    // A slot that is past is shown as it is, not as "now".
    stand(
        task,
        status,
        &Standing::Scheduled(understood.timetable.next_after(floor)),
        now,
    );
    next.map_or(follow, |next| follow.min(until(next, now)))
}

impl Entry {
    /// Everything up to here was dealt with.
    fn floor(&self, status: &PeriodicTaskStatus, since: Timestamp) -> Timestamp {
        let marked = self.mark.as_ref().and_then(|mark| mark.last);
        let written = status.last_schedule_time.as_ref().map(|last| last.0);
        since.max(marked.unwrap_or(since)).max(written.unwrap_or(since))
    }
}

struct Beat<'a> {
    ctx: &'a Context,
    task: &'a PeriodicTask,
    understood: &'a Understood,
    sender: Sender<'a>,
    /// A run goes on by a plan.
    has_plans: AtomicBool,
}

impl Beat<'_> {
    async fn run(
        &self,
        view: &View,
        (since, edited): (Timestamp, Option<Timestamp>),
        now: Timestamp,
        entry: &mut Entry,
        status: &mut PeriodicTaskStatus,
    ) -> Result<(), Halt> {
        let Understood { timetable, policy, .. } = self.understood;
        let data = view.data();
        if entry
            .mark
            .as_ref()
            .is_none_or(|mark| mark.term != self.sender.term || mark.data != data)
        {
            let mark = self.read_mark(data, since, now, status).await?;
            entry.mark = Some(mark);
        }
        if let Some(slot) = edited {
            self.drop_edited(slot, since, now, entry, status).await;
        }
        // Where nothing depends on them, open runs can wait until what is due was sent.
        let may_wait = policy.overlap == Overlap::Allow && self.task.spec.pause_after_failures.is_none();
        let is_due = || next_wake(timetable, policy, entry.floor(status, since), now).is_some_and(|at| at <= now);
        let is_looked_after = entry
            .followed
            .is_some_and(|at| at.elapsed() < pace(status, entry.has_plans, now));
        let waits = is_looked_after || (may_wait && is_due());
        if !waits {
            self.follow(status).await?;
            entry.followed = Some(Instant::now());
        }
        self.answer_request(now, entry, status).await?;
        if self.task.spec.suspend || is_paused(self.task, status) {
            if status.buffered.take().is_some() {
                self.miss(status, 1);
            }
            return Ok(());
        }
        if let Some(slot) = entry.mark.as_ref().and_then(|mark| mark.forgotten) {
            self.fire(Occasion::Slot(slot), now, entry, status).await?;
            // Not before: what could not be fired now is due at the next look.
            if let Some(mark) = &mut entry.mark {
                mark.forgotten = None;
            }
        }
        if let Some(kept) = status.buffered.clone()
            && !self.is_active(status).await?
        {
            self.fire(Occasion::Slot(kept.0), now, entry, status).await?;
            status.buffered = None;
        }
        let floor = entry.floor(status, since);
        let answer = due(timetable, policy, floor, now, runs_left(self.task, status));
        if answer.missed > 0 {
            self.miss(status, answer.missed);
            let note = format!(
                "{} slots after {floor} were missed (missedRuns: {:?})",
                answer.missed, policy.missed_runs
            );
            self.ctx.event(self.task, EventType::Warning, "SlotsMissed", note).await;
            let given_up = answer
                .fire
                .first()
                .map_or_else(|| last_due(timetable, policy, floor, now), |first| before(*first));
            if let Some(last) = timetable.latest(floor, given_up) {
                note_dealt_with(status, last);
            }
        }
        let is_full = answer.fire.len() == MOST_AT_ONCE;
        for slot in answer.fire {
            let is_active = policy.overlap != Overlap::Allow && self.is_active(status).await?;
            match overlap(policy.overlap, is_active, status.buffered.is_some()) {
                Verdict::Fire => {}
                Verdict::Replace => self.replace(status).await?,
                Verdict::Keep => {
                    status.buffered = Some(Time(slot));
                    note_dealt_with(status, slot);
                    let note = format!("the slot {slot} waits for the end of an earlier run (overlap: BufferOne)");
                    self.ctx.event(self.task, EventType::Normal, "SlotKept", note).await;
                    continue;
                }
                Verdict::Skip => {
                    self.miss(status, 1);
                    note_dealt_with(status, slot);
                    let note = format!(
                        "the slot {slot} was skipped: an earlier run has not ended (overlap: {:?})",
                        policy.overlap
                    );
                    self.ctx.event(self.task, EventType::Normal, "SlotSkipped", note).await;
                    continue;
                }
            }
            self.fire(Occasion::Slot(slot), now, entry, status).await?;
        }
        if is_full { Err(Halt::Again(CATCH_UP)) } else { Ok(()) }
    }

    /// A slot was due by the schedule as it was before it changed. If neither that was fired nor a slot of the present one has
    /// come since, it is missed.
    async fn drop_edited(
        &self,
        slot: Timestamp,
        since: Timestamp,
        now: Timestamp,
        entry: &Entry,
        status: &mut PeriodicTaskStatus,
    ) {
        let floor = entry.floor(status, since);
        if floor >= slot
            || self
                .understood
                .timetable
                .next_after(floor)
                .is_some_and(|next| next <= now)
        {
            return;
        }
        self.miss(status, 1);
        let note = format!("the slot {slot} was missed: the schedule was changed before it was fired");
        self.ctx.event(self.task, EventType::Warning, "SlotsMissed", note).await;
    }

    fn miss(&self, status: &mut PeriodicTaskStatus, count: u64) {
        status.missed += count;
        let namespace = self.task.namespace().unwrap_or_default();
        self.ctx.metrics.missed(&namespace, &self.task.name_any(), count);
    }

    /// Reads the mark, and repairs a status that an earlier leader could not write.
    async fn read_mark(
        &self,
        data: String,
        since: Timestamp,
        now: Timestamp,
        status: &mut PeriodicTaskStatus,
    ) -> Result<Mark, Halt> {
        let Understood { timetable, policy, .. } = self.understood;
        let read = Instant::now();
        let found = self
            .sender
            .broker
            .last_slot(self.ctx.leader.install(), &uid(self.task))
            .await?;
        let last = found
            .as_ref()
            .and_then(|found| Timestamp::from_millisecond(found.at_ms).ok());
        let written = status.last_schedule_time.as_ref().map(|last| last.0);
        if let (Some(last), Some(found)) = (
            last.filter(|last| written.is_none_or(|written| *last > written)),
            &found,
        ) {
            if let Some((runs, missed)) = found.counts {
                // This one is counted below.
                let own = u64::from(!found.ids.is_empty());
                status.runs = status.runs.max(runs.saturating_sub(own));
                status.missed = status.missed.max(missed.saturating_sub(1 - own));
            } else {
                // Of a version that kept no counts there.
                let others = timetable.count(written.unwrap_or(since).max(since), before(last), 10_000);
                match policy.missed_runs {
                    MissedRuns::RunAll => status.runs += others,
                    MissedRuns::RunOnce | MissedRuns::Skip => status.missed += others,
                }
            }
            if found.ids.is_empty() {
                // All of them were left out: other tasks have their unique keys.
                status.missed += 1;
                note_dealt_with(status, last);
            } else {
                note_fired(status, Occasion::Slot(last), found.ids.len());
            }
        }
        let fired = status.last_run.as_ref().map(|run| run.slot.0);
        let forgotten = fired.filter(|fired| last.is_none_or(|last| last < *fired));
        if let Some(slot) = forgotten {
            let window = SignedDuration::try_from(policy.catch_up.max(PUNCTUAL)).unwrap_or(SignedDuration::MAX);
            let is_recent = now.duration_since(slot) <= window;
            let deed = if is_recent {
                "it is enqueued again under the same ids"
            } else {
                "it is too old to be enqueued again"
            };
            let note = format!("the broker has lost the slot {slot}; {deed}");
            if found.is_some() {
                // It knows the schedule, as it was earlier: so is all else there.
                self.ctx.brokers.went_back(&self.understood.address.source);
            }
            self.ctx
                .event(self.task, EventType::Warning, "BrokerDataLost", note)
                .await;
            return Ok(Mark {
                term: self.sender.term,
                data,
                read,
                last,
                forgotten: is_recent.then_some(slot),
            });
        }
        Ok(Mark {
            term: self.sender.term,
            data,
            read,
            last,
            forgotten: None,
        })
    }

    /// Begins one run, and notes it.
    async fn fire(
        &self,
        occasion: Occasion,
        now: Timestamp,
        entry: &mut Entry,
        status: &mut PeriodicTaskStatus,
    ) -> Result<(), Halt> {
        let Self {
            ctx,
            task,
            understood,
            sender,
            has_plans: _,
        } = self;
        let Sender { broker, term, .. } = sender;
        let slot = occasion.at();
        let beginning = sender.begin(&task.spec.task_template).await?;
        let left_out = |names: &str, why: &str| format!("the slot {slot} leaves out {names}: {why}");
        beginning.tell(ctx, *task, left_out).await;
        let is_again = entry.mark.as_ref().is_some_and(|mark| mark.forgotten == Some(slot));
        let (messages, plan) = match sender.first(&beginning.plan, &understood.address, occasion, now, is_again) {
            Ok(first) => first,
            Err(nothing) => {
                self.pass_over(occasion, status);
                let note = format!("the slot {slot} was skipped: {}", nothing.why);
                ctx.event(*task, EventType::Warning, "NoClusters", note).await;
                return Ok(());
            }
        };
        if ctx.leader.term() != Some(*term) {
            return Err(Halt::Again(SOON));
        }
        let record = Slot {
            install: ctx.leader.install().to_owned(),
            term: *term,
            uid: mark_of(task, occasion),
            at_ms: slot.as_millisecond(),
            generation: task.metadata.generation.unwrap_or_default(),
            run: Some(occasion.run_id(&uid(task)).to_string()),
            counts: (status.runs.saturating_sub(u64::from(is_again)), status.missed),
            plan,
        };
        let answer = failpoint::around("fire", broker.fire(&record, &messages)).await;
        let answer = answer?;
        // A status never speaks of a slot that a failover can forget; asked again, the slot is a duplicate.
        let survey = ctx
            .brokers
            .view(&understood.address.source)
            .sample
            .and_then(|sample| sample.survey.clone());
        let is_replicated = survey
            .as_ref()
            .and_then(|survey| survey.durability)
            .is_some_and(|level| level >= Durability::Replicated);
        if is_replicated && matches!(answer, FireAnswer::Fired { .. } | FireAnswer::Duplicate { .. }) {
            let is_on_disk =
                survey.is_some_and(|survey| survey.can_wait_for_disk && survey.durability == Some(Durability::Strict));
            let wanted = Replicas {
                is_on_disk,
                ..CONFIRMED
            };
            match broker.confirmed(wanted).await {
                // One without an append-only file, or before Redis 7.2, never says that it has it on its disk.
                Err(umbel_broker::Error::Replicas { .. }) if is_on_disk => {
                    broker.confirmed(CONFIRMED).await?;
                    if !std::mem::replace(&mut entry.told_of_disks, true) {
                        tracing::warn!(
                            task = task.name_any(),
                            "no replica has slots on its disk in time: they count as fired when one has them at all"
                        );
                    }
                }
                answer => answer?,
            }
        }
        let last = match answer {
            FireAnswer::Fired { left_out } if left_out == messages.len() => {
                self.pass_over(occasion, status);
                let note = format!("the slot {slot} was skipped: another task has its unique key");
                ctx.event(*task, EventType::Normal, "SlotSkipped", note).await;
                slot
            }
            FireAnswer::Fired { left_out } => {
                let sent = messages.len() - left_out;
                tracing::info!(task = task.name_any(), %slot, messages = sent, left_out, "slot fired");
                note_fired(status, occasion, sent);
                if left_out > 0 {
                    let note = format!(
                        "of the slot {slot} {left_out} of {} messages were left out: other tasks have their unique keys",
                        messages.len()
                    );
                    ctx.event(*task, EventType::Normal, "MessagesLeftOut", note).await;
                }
                let (namespace, name) = (task.namespace().unwrap_or_default(), task.name_any());
                let late = ctx
                    .brokers
                    .view(&understood.address.source)
                    .now()
                    .unwrap_or(now)
                    .duration_since(slot);
                ctx.metrics
                    .fired(&namespace, &name, Duration::try_from(late).unwrap_or_default());
                slot
            }
            FireAnswer::Duplicate { ids, last_ms } => {
                let last = Timestamp::from_millisecond(last_ms).unwrap_or(slot);
                tracing::info!(task = task.name_any(), %slot, %last, "slot was fired before");
                match occasion {
                    _ if last == slot && !ids.is_empty() => note_fired(status, occasion, ids.len()),
                    Occasion::Slot(_) => note_dealt_with(status, last),
                    Occasion::Request(_) => {}
                }
                last
            }
            FireAnswer::Stale { term: stored } => {
                tracing::warn!(
                    task = task.name_any(),
                    term,
                    stored,
                    "slot not fired: the broker knows another term"
                );
                return Err(Halt::Again(SOON));
            }
            FireAnswer::NotYet { now_ms } => {
                let wait = u64::try_from(slot.as_millisecond() - now_ms).unwrap_or(0);
                return Err(Halt::Again(Duration::from_millis(wait + 1)));
            }
            FireAnswer::WrongType { key } => return Err(Halt::Stall(Stall::WrongKeyType(key))),
            FireAnswer::Full { queue, most } => return Err(Halt::Full { queue, most }),
        };
        if let (Some(mark), Occasion::Slot(_)) = (&mut entry.mark, occasion) {
            mark.last = mark.last.max(Some(last));
        }
        Ok(())
    }

    /// Notes a run that has no message: a slot is missed by that.
    fn pass_over(&self, occasion: Occasion, status: &mut PeriodicTaskStatus) {
        if let Occasion::Slot(slot) = occasion {
            self.miss(status, 1);
            note_dealt_with(status, slot);
        }
    }
}

/// The mark that tells whether a run began: those that are asked for have one of their own, slots go on beside them.
fn mark_of(task: &PeriodicTask, occasion: Occasion) -> String {
    match occasion {
        Occasion::Slot(_) => uid(task),
        Occasion::Request(_) => format!("{}/requests", uid(task)),
    }
}

/// Time until a slot, and a little more: samples are in whole milliseconds, and a slot must not be asked for too early.
fn until(slot: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(slot.duration_since(now)).unwrap_or_default() + Duration::from_millis(2)
}

fn before(slot: Timestamp) -> Timestamp {
    slot.checked_sub(SignedDuration::from_nanos(1)).unwrap_or(slot)
}

/// An Event when a schedule stalls, and when its slots wait for room.
async fn tell(ctx: &Context, task: &PeriodicTask, old: &PeriodicTaskStatus, new: &PeriodicTaskStatus) {
    let waits = |status: &PeriodicTaskStatus| {
        find(&status.conditions, SCHEDULED)
            .filter(|scheduled| [QUEUE_FULL, BROKER_REFUSES].contains(&scheduled.reason.as_str()))
            .map(|scheduled| (scheduled.reason.clone(), scheduled.message.clone()))
    };
    if let (before, Some((reason, message))) = (waits(old), waits(new))
        && before.is_none_or(|(before, _)| before != reason)
    {
        ctx.event(task, EventType::Warning, &reason, message).await;
    }
    let reason = |status: &PeriodicTaskStatus| {
        find(&status.conditions, STALLED)
            .filter(|stalled| stalled.status == "True")
            .map(|stalled| stalled.reason.clone())
    };
    if reason(new).is_some() && reason(old) != reason(new) {
        let message = find(&new.conditions, STALLED)
            .map(|stalled| stalled.message.clone())
            .unwrap_or_default();
        ctx.event(task, EventType::Warning, &reason(new).unwrap_or_default(), message)
            .await;
    }
}
