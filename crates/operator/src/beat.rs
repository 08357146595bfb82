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
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::runtime::events::EventType;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use umbel_api::condition::find;
use umbel_api::names::periodic_condition::{SCHEDULED, STALLED};
use umbel_api::{PeriodicTask, PeriodicTaskStatus, periodictask::MissedRuns};
use umbel_broker::{Broker, Durability, FireAnswer, Replicas, Slot};
use umbel_plan::fanout::run_id;
use umbel_plan::periodic::{MOST_AT_ONCE, PUNCTUAL, due, may_fire, next_wake};
use umbel_telemetry::chain;

use crate::brokers::{Source, View};
use crate::context::Context;
use crate::controllers::periodictask::{
    QUEUE_FULL, Stall, Standing, Understood, fan_out, in_force, messages, note_dealt_with, note_fired, stand, uid,
    understand, write,
};

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
/// Wait after something did not work that may work at once.
const SOON: Duration = Duration::from_millis(250);
/// Open runs are looked after when they are older by a quarter, but not oftener than this.
const FOLLOW: Duration = Duration::from_millis(500);
/// Changes that come together are dealt with together; short against any slot.
const TOGETHER: Duration = Duration::from_millis(20);

/// What the beat remembers of a schedule; all of it can be lost.
#[derive(Default)]
struct Entry {
    /// The generation last looked at.
    generation: Option<i64>,
    /// When to look again.
    wake: Option<Instant>,
    /// What Redis knew when it was last asked.
    mark: Option<Mark>,
    /// When the open runs were last looked after.
    followed: Option<Instant>,
    /// The status as it should be, written or not.
    status: Option<PeriodicTaskStatus>,
    /// Whether it was told that the replicas' disks cannot be waited for.
    told_of_disks: bool,
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
    let changes = ctx
        .scopes
        .iter()
        .map(|scope| scope.periodic.changes().map(|_| ()).boxed());
    let mut changes = stream::select_all(changes);
    let mut entries: HashMap<String, Entry> = HashMap::new();
    let mut flying: HashSet<String> = HashSet::new();
    let mut work: JoinSet<(String, Entry)> = JoinSet::new();
    let mut watch = Watch::default();
    let mut wakes = ctx.brokers.wakes();
    loop {
        let tasks = ctx.periodic();
        let mut soonest = Instant::now() + LOOK;
        for task in &tasks {
            let uid = uid(task);
            if flying.contains(&uid) {
                continue;
            }
            let entry = entries.entry(uid.clone()).or_default();
            let is_due =
                entry.generation != task.metadata.generation || entry.wake.is_none_or(|wake| wake <= Instant::now());
            match (is_due, entry.wake) {
                (true, _) if work.len() < CONCURRENCY => {
                    let entry = entries.remove(&uid).unwrap_or_default();
                    let (ctx, task, outages) = (ctx.clone(), task.clone(), watch.outages.clone());
                    flying.insert(uid.clone());
                    work.spawn(async move { (uid, look(&ctx, &task, &outages, entry).await) });
                }
                // The next of those at work to end makes room.
                (true, _) => {}
                (false, wake) => soonest = soonest.min(wake.unwrap_or(soonest)),
            }
        }
        let known: HashSet<String> = tasks.iter().map(|task| uid(task)).collect();
        entries.retain(|uid, _| known.contains(uid));
        let mut recovered = false;
        let mut settle = |done: Option<Result<(String, Entry), tokio::task::JoinError>>| match done {
            Some(Ok((uid, entry))) => {
                flying.remove(&uid);
                entries.insert(uid, entry);
            }
            Some(Err(error)) => {
                // A look that panicked; all are looked at anew.
                tracing::error!(%error, "a schedule could not be looked at");
                flying.clear();
            }
            None => {}
        };
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep_until(soonest.into()) => {}
            _ = changes.next() => tokio::time::sleep(TOGETHER).await,
            done = work.join_next(), if !work.is_empty() => settle(done),
            wake = wakes.recv() => match wake {
                Ok(wake) => recovered = watch.note(&wake.source, &ctx.brokers.view(&wake.source)),
                // Too many to tell which.
                Err(RecvError::Lagged(_)) => recovered = true,
                Err(RecvError::Closed) => break,
            },
        }
        while let Some(done) = work.try_join_next() {
            settle(Some(done));
        }
        if recovered {
            for entry in entries.values_mut() {
                entry.wake = None;
            }
        }
    }
    // What was sent to Redis is done there or not; the next leader finds out.
    work.abort_all();
}

/// Looks at one schedule: fires what is due, and writes what changed.
async fn look(ctx: &Context, task: &Arc<PeriodicTask>, outages: &Outages, mut entry: Entry) -> Entry {
    entry.generation = task.metadata.generation;
    let Some(term) = ctx.leader.term() else {
        return entry.again_in(SOON);
    };
    let old = entry.status.take().or_else(|| task.status.clone()).unwrap_or_default();
    let mut status = old.clone();
    let wait = match understand(ctx, task) {
        Ok(understood) => {
            let outage = outages.last(&understood.source);
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
    let written = entry.write(ctx, task, &status).await;
    entry.status = Some(status);
    entry.again_in(if written { wait } else { wait.min(SOON) })
}

impl Entry {
    fn again_in(mut self, wait: Duration) -> Self {
        self.wake = Some(Instant::now() + wait.min(LOOK));
        self
    }

    /// Writes the status if the object shows another one; whether nothing is left to write.
    async fn write(&mut self, ctx: &Context, task: &Arc<PeriodicTask>, status: &PeriodicTaskStatus) -> bool {
        let shown = task.resource_version().unwrap_or_default();
        let (version, present) = match &self.written {
            Some(Written { based, made, status }) if *based == shown => (made.clone(), Some(status)),
            Some(_) | None => (shown.clone(), task.status.as_ref()),
        };
        if present == Some(status) {
            return true;
        }
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
    let view = ctx.brokers.view(&understood.source);
    if let Some(fault) = &view.fault {
        stand(task, status, &Standing::Waiting(fault), Timestamp::now());
        return SOON;
    }
    let (Ok(broker), Some(now)) = (ctx.brokers.writable(&understood.source, term), redis_now(&view)) else {
        // Not contacted yet, or not told our term.
        return SOON;
    };
    let beat = Beat {
        ctx,
        task,
        broker: broker.with_steps(&understood.steps),
        understood,
        term,
    };
    let since = in_force(task, status, now);
    if let Err(error) = beat.run(&view, since, now, entry, status).await {
        return match error {
            Halt::Broker(error) => {
                tracing::warn!(task = task.name_any(), error = %chain(&error), "slot not fired: the broker did not answer");
                SOON
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
    let now = redis_now(&view).unwrap_or(now);
    let follow = pace(status, now);
    if task.spec.suspend {
        stand(task, status, &Standing::Suspended, now);
        return follow;
    }
    let floor = entry.floor(status, since);
    let next = next_wake(&understood.timetable, floor, now);
    // A slot that is past is shown as it is, not as "now".
    stand(
        task,
        status,
        &Standing::Scheduled(understood.timetable.next_after(floor)),
        now,
    );
    next.map_or(follow, |next| follow.min(until(next, now)))
}

/// Why a beat ended before its end. What is due stays due.
enum Halt {
    Broker(umbel_broker::Error),
    Again(Duration),
    Stall(Stall),
    Full { queue: String, most: u64 },
}

impl From<umbel_broker::Error> for Halt {
    fn from(error: umbel_broker::Error) -> Self {
        Self::Broker(error)
    }
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
    term: u64,
    broker: Broker,
}

impl Beat<'_> {
    async fn run(
        &self,
        view: &View,
        since: Timestamp,
        now: Timestamp,
        entry: &mut Entry,
        status: &mut PeriodicTaskStatus,
    ) -> Result<(), Halt> {
        let Understood { timetable, policy, .. } = self.understood;
        let data = view.data();
        if entry
            .mark
            .as_ref()
            .is_none_or(|mark| mark.term != self.term || mark.data != data)
        {
            let mark = self.read_mark(data, since, now, status).await?;
            entry.mark = Some(mark);
        }
        if entry.followed.is_none_or(|at| at.elapsed() >= pace(status, now)) {
            self.follow(status).await?;
            entry.followed = Some(Instant::now());
        }
        if self.task.spec.suspend {
            return Ok(());
        }
        if let Some(slot) = entry.mark.as_ref().and_then(|mark| mark.forgotten) {
            self.fire(slot, now, entry, status).await?;
            // Not before: what could not be fired now is due at the next look.
            if let Some(mark) = &mut entry.mark {
                mark.forgotten = None;
            }
        }
        let floor = entry.floor(status, since);
        let answer = due(timetable, policy, floor, now);
        if answer.missed > 0 {
            self.miss(status, answer.missed);
            let note = format!(
                "{} slots after {floor} were missed (missedRuns: {:?})",
                answer.missed, policy.missed_runs
            );
            self.ctx.event(self.task, EventType::Warning, "SlotsMissed", note).await;
            let given_up = answer.fire.first().map_or(now, |first| before(*first));
            if let Some(last) = timetable.latest(floor, given_up) {
                note_dealt_with(status, last);
            }
        }
        let is_full = answer.fire.len() == MOST_AT_ONCE;
        for slot in answer.fire {
            if !may_fire(policy.overlap, self.is_active(status, policy.overlap).await?) {
                self.miss(status, 1);
                note_dealt_with(status, slot);
                let note = format!(
                    "the slot {slot} was skipped: an earlier run has not ended (overlap: {:?})",
                    policy.overlap
                );
                self.ctx.event(self.task, EventType::Normal, "SlotSkipped", note).await;
                continue;
            }
            self.fire(slot, now, entry, status).await?;
        }
        if is_full {
            Err(Halt::Again(Duration::ZERO))
        } else {
            Ok(())
        }
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
            let others = timetable.count(written.unwrap_or(since).max(since), before(last), 10_000);
            match policy.missed_runs {
                MissedRuns::RunAll => status.runs += others,
                MissedRuns::RunOnce | MissedRuns::Skip => status.missed += others,
            }
            if found.ids.is_empty() {
                // All of them were left out: other tasks have their unique keys.
                status.missed += 1;
                note_dealt_with(status, last);
            } else {
                note_fired(status, last, found.ids.len());
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
                self.ctx.brokers.went_back(&self.understood.source);
            }
            self.ctx
                .event(self.task, EventType::Warning, "BrokerDataLost", note)
                .await;
            return Ok(Mark {
                term: self.term,
                data,
                read,
                last,
                forgotten: is_recent.then_some(slot),
            });
        }
        Ok(Mark {
            term: self.term,
            data,
            read,
            last,
            forgotten: None,
        })
    }

    /// Fires one slot, and notes it.
    async fn fire(
        &self,
        slot: Timestamp,
        now: Timestamp,
        entry: &mut Entry,
        status: &mut PeriodicTaskStatus,
    ) -> Result<(), Halt> {
        let Self {
            ctx,
            task,
            understood,
            term,
            broker,
        } = self;
        let fanout = fan_out(ctx, task, slot);
        if !fanout.unknown.is_empty() {
            let note = format!("no TargetCluster {} in this namespace", fanout.unknown.join(", "));
            ctx.event(*task, EventType::Warning, "UnknownCluster", note).await;
        }
        if fanout.dispatches.is_empty() {
            self.miss(status, 1);
            note_dealt_with(status, slot);
            let note = format!("the slot {slot} was skipped: no TargetCluster is chosen");
            ctx.event(*task, EventType::Warning, "NoClusters", note).await;
            return Ok(());
        }
        if ctx.leader.term() != Some(*term) {
            return Err(Halt::Again(SOON));
        }
        let record = Slot {
            install: ctx.leader.install().to_owned(),
            term: *term,
            uid: uid(task),
            at_ms: slot.as_millisecond(),
            generation: task.metadata.generation.unwrap_or_default(),
            run: Some(run_id(&uid(task), slot).to_string()),
        };
        let messages = messages(task, understood, slot, &fanout.dispatches, now);
        crate::failpoint::reach("beat.fire");
        let answer = broker.fire(&record, &messages).await?;
        crate::failpoint::reach("beat.fired");
        // A status never speaks of a slot that a failover can forget; asked again, the slot is a duplicate.
        let survey = ctx
            .brokers
            .view(&understood.source)
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
                self.miss(status, 1);
                note_dealt_with(status, slot);
                let note = format!("the slot {slot} was skipped: another task has its unique key");
                ctx.event(*task, EventType::Normal, "SlotSkipped", note).await;
                slot
            }
            FireAnswer::Fired { left_out } => {
                let sent = messages.len() - left_out;
                tracing::info!(task = task.name_any(), %slot, messages = sent, left_out, "slot fired");
                note_fired(status, slot, sent);
                if left_out > 0 {
                    let note = format!(
                        "of the slot {slot} {left_out} of {} messages were left out: other tasks have their unique keys",
                        messages.len()
                    );
                    ctx.event(*task, EventType::Normal, "MessagesLeftOut", note).await;
                }
                let (namespace, name) = (task.namespace().unwrap_or_default(), task.name_any());
                let late = redis_now(&ctx.brokers.view(&understood.source))
                    .unwrap_or(now)
                    .duration_since(slot);
                ctx.metrics
                    .fired(&namespace, &name, Duration::try_from(late).unwrap_or_default());
                slot
            }
            FireAnswer::Duplicate { ids, last_ms } => {
                let last = Timestamp::from_millisecond(last_ms).unwrap_or(slot);
                tracing::info!(task = task.name_any(), %slot, %last, "slot was fired before");
                if last == slot && !ids.is_empty() {
                    note_fired(status, slot, ids.len());
                } else {
                    note_dealt_with(status, last);
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
        if let Some(mark) = &mut entry.mark {
            mark.last = mark.last.max(Some(last));
        }
        Ok(())
    }

    /// Whether a run goes on that the policy asks about. One of which nothing is left on the broker is closed as lost.
    async fn is_active(
        &self,
        status: &mut PeriodicTaskStatus,
        overlap: umbel_api::periodictask::Overlap,
    ) -> Result<bool, Halt> {
        if may_fire(overlap, true) || status.active.is_empty() {
            return Ok(false);
        }
        self.follow(status).await?;
        if status.active.is_empty() {
            return Ok(false);
        }
        let sample = self.broker.depths(std::slice::from_ref(&self.understood.queue)).await?;
        let is_empty = sample.foreign_unacked == 0
            && sample.queues.iter().all(|depth| {
                depth.as_ref().is_ok_and(|depth| {
                    depth.waiting == 0 && depth.in_flight == 0 && depth.delayed == 0 && depth.suspect == 0
                })
            });
        // What ended between the two questions is seen as ended by the second look.
        self.follow(status).await?;
        if !is_empty || status.active.is_empty() {
            return Ok(!status.active.is_empty());
        }
        let slots: Vec<String> = status.active.iter().map(|slot| slot.0.to_string()).collect();
        let note = format!(
            "the runs of {} have open tasks, but the queue holds none: closed as lost",
            slots.join(", ")
        );
        self.ctx.event(self.task, EventType::Warning, "RunLost", note).await;
        if let Some(run) = status.last_run.as_mut().filter(|run| status.active.contains(&run.slot)) {
            run.failed = run.total.saturating_sub(run.succeeded);
        }
        status.active.clear();
        status.active_runs = 0;
        Ok(false)
    }

    /// Drops runs that have ended from the open ones, and notes how the latest fared.
    async fn follow(&self, status: &mut PeriodicTaskStatus) -> Result<(), Halt> {
        let uid = uid(self.task);
        let mut open = Vec::with_capacity(status.active.len());
        for Time(slot) in std::mem::take(&mut status.active) {
            let id = run_id(&uid, slot).to_string();
            let run = match self.broker.run(&id).await {
                Ok(run) => run,
                Err(error) => {
                    open.push(Time(slot));
                    status.active = open;
                    return Err(error.into());
                }
            };
            // Without a record nothing can be said; the data is lost or very old.
            let Some(run) = run else { continue };
            if !run.open.is_empty() {
                open.push(Time(slot));
                continue;
            }
            if let Some(latest) = status.last_run.as_mut().filter(|latest| latest.slot.0 == slot) {
                latest.succeeded = u32::try_from(run.succeeded).unwrap_or(u32::MAX);
                latest.failed = u32::try_from(run.failed).unwrap_or(u32::MAX);
            }
            match run.failed {
                0 => status.last_successful_time = status.last_successful_time.take().max(Some(Time(slot))),
                failed => {
                    let note = format!("{failed} of {} tasks of the slot {slot} did not succeed", run.total);
                    self.ctx.event(self.task, EventType::Warning, "RunFailed", note).await;
                }
            }
        }
        status.active_runs = u32::try_from(open.len()).unwrap_or(u32::MAX);
        status.active = open;
        Ok(())
    }
}

/// How long open runs may go unwatched: a short one is seen to end soon, a long one costs little.
fn pace(status: &PeriodicTaskStatus, now: Timestamp) -> Duration {
    let latest = status.active.last();
    let age = latest.map(|slot| Duration::try_from(now.duration_since(slot.0)).unwrap_or_default());
    age.map_or(LOOK, |age| (age / 4).clamp(FOLLOW, LOOK))
}

/// Redis's time, as far as the latest sample and our monotonic clock can tell.
fn redis_now(view: &View) -> Option<Timestamp> {
    let sample = view.sample.as_ref()?;
    sample.taken_at.checked_add(sample.seen.elapsed()).ok()
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
    let full = |status: &PeriodicTaskStatus| {
        find(&status.conditions, SCHEDULED)
            .filter(|scheduled| scheduled.reason == QUEUE_FULL)
            .map(|scheduled| scheduled.message.clone())
    };
    if let (None, Some(message)) = (full(old), full(new)) {
        ctx.event(task, EventType::Warning, QUEUE_FULL, message).await;
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
