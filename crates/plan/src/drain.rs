//! Scale-down by name: what to do next so that no pod that works is removed.
//!
//! The ReplicaSet controller removes pods by its own, possibly old, view of
//! them. So a pod that shall go is first drained (its gate in Redis is closed
//! and it holds nothing), then deleted *by name*; the controller replaces it by
//! a pod that nobody admitted, which may take no work and ranks before every
//! admitted one. Only then is the size lowered, and what the controller takes
//! is such a replacement, however old its view is.
//!
//! This module is the whole decision: [`next`] maps the observed world to one
//! [`Action`] and the reason for it. It reads no clock and calls nobody; the
//! operator executes the action and comes back with a new world. What it
//! remembers between two passes ([`Memory`]) only makes it more careful: a new
//! leader that remembers nothing continues from the world alone.
//!
//! # Assumptions
//! The world's Deployment was read before its ReplicaSets, and these before the
//! pods, so that "observed" speaks of a size whose pods are in the list.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use umbel_api::workerpool::{Down, Victims};

/// How long a step waits for replacements before the refusal is taken as final.
///
/// A ReplicaSet creates within a second; a quota or a webhook that refuses is
/// retried by it with a back-off of minutes. One minute tells the two apart.
pub const REPLACEMENT_WAIT: SignedDuration = SignedDuration::from_secs(60);

/// How long a pod that leaves with its template may be without Ready and without a live worker before it goes as an idle
/// one does.
///
/// A process that was killed is back within seconds; one that ends again and again waits longer each time. Who waits a
/// minute longer than needed for a pod that leaves anyway loses nothing.
pub const BROKEN_AFTER: SignedDuration = SignedDuration::from_secs(60);

/// What was seen of one pool, in one pass.
#[derive(Clone, Debug)]
pub struct World {
    /// The size that the scaling decision wants.
    pub desired: u32,
    /// The pool's Deployment.
    pub deployment: Fleet,
    /// The Deployment's ReplicaSets, without those that are empty and wanted empty.
    pub sets: Vec<Set>,
    /// Every pod of these ReplicaSets, the ending ones included.
    pub pods: Vec<Pod>,
    /// What Redis said of the workers; `None` while the broker does not answer.
    pub broker: Option<Broker>,
}

/// The Deployment's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fleet {
    /// `spec.replicas`.
    pub size: u32,
    /// Whether the Deployment controller saw the present spec.
    pub observed: bool,
    /// `status.replicas`.
    pub live: u32,
    /// `status.updatedReplicas`.
    pub updated: u32,
    /// `spec.paused`: it does not roll from one template to another, and each of its ReplicaSets keeps its size until the
    /// Deployment's changes.
    pub paused: bool,
}

/// One ReplicaSet's numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Set {
    /// Its uid, as the pods' owner references name it.
    pub uid: String,
    /// `spec.replicas`.
    pub size: u32,
    /// Whether the ReplicaSet controller saw the present spec.
    pub observed: bool,
    /// `status.replicas`.
    pub live: u32,
    /// `status.readyReplicas`: so many pods had become Ready in the view of the ReplicaSet controller.
    pub ready: u32,
}

/// What identifies the data that the workers' states were read from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Broker {
    /// The random id of the data set; another one means that states were lost.
    pub generation: String,
}

/// One pod, with the worker that runs in it.
#[allow(clippy::struct_excessive_bools, reason = "facts that are independent of each other")]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The uid of the ReplicaSet that made it.
    pub set: String,
    /// When it was created.
    pub created: Timestamp,
    /// Whether its containers run.
    pub running: bool,
    /// Its Ready condition.
    pub ready: bool,
    /// Since when it is not Ready, where it says so.
    pub unready_since: Option<Timestamp>,
    /// Whether it is being deleted, or has ended.
    pub ending: bool,
    /// Whether it carries the admission mark.
    pub marked: bool,
    /// The worker process in it, as Redis knows it.
    pub worker: Option<Worker>,
}

/// A worker's entry in Redis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Worker {
    /// Its name in Redis.
    pub name: String,
    /// Its gate.
    pub gate: Gate,
    /// Leases that it holds, those of earlier processes of the same pod included.
    pub held: u64,
    /// Whether its heartbeat is fresh.
    pub alive: bool,
    /// How long its gate has been closed, by the broker's clock; zero while it is not, or that is not known.
    pub closed_for: Duration,
}

/// Whether a worker may reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gate {
    /// Never admitted: reserves nothing.
    New,
    /// Admitted: reserves.
    Open,
    /// Drained: reserves nothing more.
    Closed,
}

/// Which pods a scale-down takes, and for how long it waits for those that work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Which pods.
    pub victims: Victims,
    /// How long a pod that shall be idle may hold something after its gate was closed.
    pub confirm: Duration,
    /// How long a busy pod is waited for before it is stopped with its tasks; `None`: until they end.
    pub wait: Option<Duration>,
    /// No task should run for longer; who waits longer says so.
    pub longest: Duration,
    /// Whether a pod that was chosen stays so though another is idle: none of them is to come back.
    pub leaves: bool,
}

impl Rules {
    /// As the object says it; `time_limit` is that of the pool's queues.
    pub fn new(down: &Down, time_limit: Duration) -> Self {
        Self {
            victims: down.victims,
            confirm: down.confirm_timeout.get(),
            wait: down.drain_wait.map(umbel_api::Span::get),
            longest: time_limit,
            leaves: false,
        }
    }

    /// How long a chosen pod may go on with its tasks.
    fn patience(&self) -> Option<Duration> {
        match self.victims {
            Victims::Drained => self.wait,
            // Who holds something for longer is not chosen any more.
            Victims::IdleOnly => None,
            Victims::IdleFirst => Some(self.confirm),
        }
    }
}

/// What a leader remembers of a pool between two passes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Memory {
    /// Pods were deleted by name; their replacements are awaited.
    pub replacing: Option<Replacing>,
    /// The size was lowered; what became of it is not verified yet.
    pub lowering: Option<Lowering>,
    /// Since when a step or a wanted scale-down waits for the sizes to settle.
    pub unsettled_since: Option<Timestamp>,
}

/// A step between its deletions and its lowering.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Replacing {
    /// How many pods were deleted by name.
    pub deleted: u32,
    /// The data set in which they were drained.
    pub generation: String,
}

/// A step between its lowering and its verification.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lowering {
    /// The new size.
    pub to: u32,
    /// Uids of the admitted pods that must still be there afterwards.
    pub survivors: BTreeSet<String>,
}

/// The one thing to do now. Pods are named by uid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Nothing.
    Wait,
    /// Raise the size.
    Raise {
        /// The new size.
        to: u32,
    },
    /// Mark these pods and open their gates: first admissions.
    Admit {
        /// Uids.
        pods: Vec<String>,
    },
    /// Mark these pods again and open their gates: they were admitted before.
    Reopen {
        /// Uids.
        pods: Vec<String>,
    },
    /// Close the gates of these pods.
    Drain {
        /// Uids.
        pods: Vec<String>,
    },
    /// Delete these pods by name, if Redis confirms that they are closed and empty.
    Delete {
        /// Uids.
        pods: Vec<String>,
    },
    /// Delete these pods by name although they hold tasks, if Redis confirms that they are closed: their time is over.
    Stop {
        /// Uids.
        pods: Vec<String>,
    },
    /// Lower the size by as many of these pods as Redis confirms to be unadmitted.
    Lower {
        /// Uids of the unadmitted pods, at most as many as the size may fall.
        takes: Vec<String>,
    },
    /// Set the size to the pods that exist, or to what is wanted if that is more,
    /// because no more can be made: no pod is removed by it.
    SettleForLive {
        /// The new size.
        to: u32,
    },
    /// Set the size to zero, if Redis confirms that every pod is closed and empty, or was never admitted. So ends a
    /// Deployment that stopped in the middle of a rollout of its own: of any other size nobody can say which of its
    /// ReplicaSets would lose pods.
    Clear,
    /// The lowering is verified; `missing` names admitted pods that should still be there.
    Verified {
        /// Uids.
        missing: Vec<String>,
    },
}

/// Why the action is what it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Size and demand agree, all pods are admitted.
    Steady,
    /// More pods are wanted.
    Demand,
    /// Pods started that nobody admitted yet.
    Started,
    /// Pods start, and cannot be admitted before the last size was processed.
    NotProcessed,
    /// Demand returned, or Redis lost the entries.
    WantedAgain,
    /// Fewer pods are wanted; these go.
    Surplus,
    /// The chosen pods still work.
    Draining {
        /// Names of pods that are closed and hold tasks.
        busy: Vec<String>,
    },
    /// The chosen pods still work, for longer than a task may run.
    DrainOverdue {
        /// Names of pods that are closed and hold tasks.
        busy: Vec<String>,
    },
    /// The chosen pods still work, and their time is over.
    TimeOver,
    /// Drained pods were deleted; as many unadmitted ones are awaited.
    Replacing,
    /// The sizes are not settled.
    Settling,
    /// A rollout is under way inside the Deployment.
    Rollout,
    /// An admitted pod is not Ready.
    NotReady {
        /// Its name.
        pod: String,
    },
    /// No pod can be chosen: the rest is busy or silent.
    NoCandidate,
    /// No replacement could be made within [`REPLACEMENT_WAIT`].
    ReplacementRefused,
    /// The broker does not answer.
    BrokerUnreachable,
}

impl Reason {
    /// The reason as a word for conditions, Events and metric labels.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Steady => "Steady",
            Self::Demand => "Demand",
            Self::Started => "Started",
            Self::NotProcessed => "NotProcessed",
            Self::WantedAgain => "WantedAgain",
            Self::Surplus => "Surplus",
            Self::Draining { .. } => "Draining",
            Self::DrainOverdue { .. } => "DrainOverdue",
            Self::TimeOver => "DrainTimeOver",
            Self::Replacing => "Replacing",
            Self::Settling => "Settling",
            Self::Rollout => "RolloutInProgress",
            Self::NotReady { .. } => "AdmittedPodNotReady",
            Self::NoCandidate => "NoCandidate",
            Self::ReplacementRefused => "ReplacementRefused",
            Self::BrokerUnreachable => "BrokerUnreachable",
        }
    }

    /// Whether this reason keeps a wanted scale-down from going on, beyond its ordinary steps.
    pub fn blocks(&self) -> bool {
        match self {
            Self::Rollout
            | Self::NotReady { .. }
            | Self::NoCandidate
            | Self::DrainOverdue { .. }
            | Self::ReplacementRefused
            | Self::BrokerUnreachable => true,
            Self::Steady
            | Self::Demand
            | Self::Started
            | Self::NotProcessed
            | Self::WantedAgain
            | Self::Surplus
            | Self::Draining { .. }
            | Self::TimeOver
            | Self::Replacing
            | Self::Settling => false,
        }
    }
}

/// An action with its reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Turn {
    /// What to do.
    pub action: Action,
    /// Why.
    pub reason: Reason,
}

impl Turn {
    fn new(action: Action, reason: Reason) -> Self {
        Self { action, reason }
    }

    fn wait(reason: Reason) -> Self {
        Self::new(Action::Wait, reason)
    }
}

impl Pod {
    /// Whether somebody admitted it: by the mark, or by an open gate (self-admission).
    pub fn is_admitted(&self) -> bool {
        self.marked || self.worker.as_ref().is_some_and(|worker| worker.gate == Gate::Open)
    }

    fn gate(&self) -> Option<Gate> {
        self.worker.as_ref().map(|worker| worker.gate)
    }

    fn held(&self) -> u64 {
        self.worker.as_ref().map_or(0, |worker| worker.held)
    }

    fn closed_for(&self) -> Duration {
        self.worker
            .as_ref()
            .filter(|worker| worker.gate == Gate::Closed)
            .map_or(Duration::ZERO, |worker| worker.closed_for)
    }

    fn has_live_worker(&self) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.alive)
    }

    /// Whether it has not been Ready for a while, nothing lives in it, and nothing is held there: it cannot run, or crashes
    /// again and again. A worker that comes up in it after all takes nothing before its gate is opened.
    fn is_broken(&self, now: Timestamp) -> bool {
        let lasts = |since: Timestamp| now.duration_since(since) >= BROKEN_AFTER;
        !self.ready && self.held() == 0 && !self.has_live_worker() && self.unready_since.is_some_and(lasts)
    }
}

impl World {
    /// Pods that count: not deleted, not ended.
    pub fn live(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(|pod| !pod.ending)
    }

    /// Whether the last size and template have been seen by both controllers, and no ReplicaSet has more pods than it
    /// shall have: nobody is about to be removed for a size. The pods are counted here as well, because a ReplicaSet's
    /// status may leave out pods that its controller made and has not seen yet.
    pub fn is_processed(&self) -> bool {
        let fits = |set: &Set| self.live().filter(|pod| pod.set == set.uid).count() <= set.size as usize;
        self.deployment.observed
            && self
                .sets
                .iter()
                .all(|set| set.observed && set.live <= set.size && fits(set))
    }

    /// Whether everything agrees on one size and there is no rollout.
    ///
    /// The pods themselves are counted, too: a status is a snapshot. And the ReplicaSet controller must have seen who is
    /// Ready: to one that has not, a pod admitted a moment ago ranks like one that nobody admitted.
    pub fn is_settled(&self) -> bool {
        let size = self.deployment.size;
        let count = |pods: usize| u32::try_from(pods).unwrap_or(u32::MAX);
        let (live, ready) = (
            count(self.live().count()),
            count(self.live().filter(|pod| pod.ready).count()),
        );
        let sets: u32 = self.sets.iter().map(|set| set.size).sum();
        self.is_processed()
            && !self.is_rolling()
            && self.deployment.live == size
            && sets == size
            && self.sets.iter().all(|set| set.live == set.size)
            && live == size
            && self.sets.iter().map(|set| set.ready).sum::<u32>() == ready
    }

    /// Whether pods of more than one template revision exist or shall exist.
    pub fn is_rolling(&self) -> bool {
        self.sets.len() > 1 || self.deployment.updated != self.deployment.live
    }

    /// Whether it stopped in the middle of a rollout: nobody takes a pod of it away while its size stays.
    pub fn is_frozen(&self) -> bool {
        self.deployment.paused && self.is_rolling()
    }

    /// As settled as a frozen Deployment can be: its ReplicaSets have what they shall have, whatever that is in all.
    fn stands_still(&self) -> bool {
        let count = |pods: usize| u32::try_from(pods).unwrap_or(u32::MAX);
        let live = count(self.live().count());
        self.is_processed()
            && self.deployment.live == live
            && self.sets.iter().all(|set| set.live == set.size)
            && self.sets.iter().map(|set| set.size).sum::<u32>() == live
    }
}

impl Memory {
    /// Takes note of what a world shows, before [`next`] is asked.
    pub fn observe(&mut self, world: &World, now: Timestamp) {
        let waits = self.lowering.is_some() || (world.desired < world.deployment.size && !world.is_rolling());
        if waits && !world.is_settled() {
            self.unsettled_since.get_or_insert(now);
        } else {
            self.unsettled_since = None;
        }
        if world.desired >= world.deployment.size {
            self.replacing = None;
        }
        let lost = |replacing: &Replacing| {
            world
                .broker
                .as_ref()
                .is_some_and(|broker| broker.generation != replacing.generation)
        };
        if self.replacing.as_ref().is_some_and(lost) {
            self.replacing = None;
        }
    }

    /// Pods were deleted by name.
    pub fn deleted(&mut self, pods: u32, broker: &Broker) {
        let before = self.replacing.as_ref().map_or(0, |replacing| replacing.deleted);
        self.replacing = Some(Replacing {
            deleted: before + pods,
            generation: broker.generation.clone(),
        });
        self.unsettled_since = None;
    }

    /// The size was lowered (or set to what lives), with these pods to stay.
    pub fn lowered(&mut self, to: u32, survivors: BTreeSet<String>) {
        self.replacing = None;
        self.lowering = Some(Lowering { to, survivors });
        self.unsettled_since = None;
    }

    /// The lowering was verified.
    pub fn verified(&mut self) {
        self.lowering = None;
        self.unsettled_since = None;
    }

    fn waited_in_vain(&self, now: Timestamp) -> bool {
        self.unsettled_since
            .is_some_and(|since| now.duration_since(since) >= REPLACEMENT_WAIT)
    }
}

/// The next action for this pool, and why.
///
/// # Guarantees
/// A pod is named in `Delete` only if it is admitted, closed and empty, or
/// leaves for good, holds nothing and has not been Ready for [`BROKEN_AFTER`];
/// in `Lower` only if nobody admitted it; in `Stop` only if it is admitted, has
/// been closed for as long as the rules let it go on, and they set such a time.
/// `Delete`, `Stop` and `Lower` happen only in a settled world, `Admit` of a
/// new pod only when the last size was processed. `Clear` happens only where
/// what leaves was stopped in the middle of a rollout of its own, when each
/// admitted pod is closed and empty. In a steady world the answer is `Wait`.
pub fn next(world: &World, memory: &Memory, rules: &Rules, now: Timestamp) -> Turn {
    let size = world.deployment.size;
    if world.broker.is_none() {
        return if world.desired > size {
            Turn::new(Action::Raise { to: world.desired }, Reason::Demand)
        } else {
            Turn::wait(Reason::BrokerUnreachable)
        };
    }
    if let Some(lowering) = &memory.lowering
        && let Some(turn) = verify(world, lowering, memory.waited_in_vain(now))
    {
        return turn;
    }
    let chosen = choose(world, rules, now);
    if let Some(turn) = reopen(world, memory, &chosen) {
        return turn;
    }
    if world.desired > size {
        return Turn::new(Action::Raise { to: world.desired }, Reason::Demand);
    }
    if memory.lowering.is_some() {
        return Turn::wait(Reason::Settling);
    }
    if let Some(turn) = admit(world, memory) {
        return turn;
    }
    if world.desired < size {
        return step(world, memory, rules, &chosen, now);
    }
    Turn::wait(Reason::Steady)
}

/// The lowering is over when all is settled. Sometimes that moment never comes: a rollout
/// began, the size was raised again, or a quota refuses a pod; and the pods that start
/// meanwhile need admission. Then it is over when the size was processed, which is what
/// admission asks for.
fn verify(world: &World, lowering: &Lowering, late: bool) -> Option<Turn> {
    let rolling = world.is_rolling();
    let moved_on = rolling || world.deployment.size != lowering.to || late;
    if !(world.is_settled() || (world.is_processed() && moved_on)) {
        return None;
    }
    if rolling {
        // The rollout removes pods, too: who is gone by whom cannot be told.
        return Some(Turn::new(Action::Verified { missing: Vec::new() }, Reason::Rollout));
    }
    let live: BTreeSet<&str> = world.live().map(|pod| pod.uid.as_str()).collect();
    let missing = lowering
        .survivors
        .iter()
        .filter(|uid| !live.contains(uid.as_str()))
        .cloned()
        .collect();
    Some(Turn::new(Action::Verified { missing }, Reason::Settling))
}

/// The admitted pods that a scale-down takes, in their order; empty if nothing is surplus.
///
/// What counts is how many admitted pods are there, not how far the size is away: pods that are missing (a replacement
/// on its way) come unadmitted and are taken instead.
fn choose<'a>(world: &'a World, rules: &Rules, now: Timestamp) -> Vec<&'a Pod> {
    let admitted = world.live().filter(|pod| pod.is_admitted()).count();
    let wanted = admitted.saturating_sub(world.desired as usize);
    // A rollout replaces the pods anyway; what it leaves is chosen afterwards.
    let is_rolling = world.is_rolling() && !(rules.leaves && world.is_frozen());
    if wanted == 0 || world.desired >= world.deployment.size || is_rolling {
        return Vec::new();
    }
    let is_broken = |pod: &Pod| rules.leaves && pod.is_broken(now);
    let works = |pod: &Pod| pod.ready && pod.has_live_worker() && pod.gate() != Some(Gate::New);
    let mut candidates: Vec<&Pod> = world
        .live()
        .filter(|pod| pod.marked && (works(pod) || is_broken(pod)))
        .filter(|pod| match rules.victims {
            Victims::Drained | Victims::IdleFirst => true,
            // One that was idle when it was chosen may have to hand back what it fetched ahead.
            Victims::IdleOnly => {
                pod.held() == 0 || (pod.gate() == Some(Gate::Closed) && pod.closed_for() < rules.confirm)
            }
        })
        .collect();
    let is_gone = |pod: &Pod| rules.leaves && pod.gate() == Some(Gate::Closed);
    // Who serves nobody first. Idle before busy; among the idle and among the equally busy, those closed already,
    // so that a choice stands; then the newest, which have the least in their caches.
    candidates.sort_by(|a, b| {
        is_broken(b)
            .cmp(&is_broken(a))
            .then_with(|| is_gone(b).cmp(&is_gone(a)))
            .then_with(|| a.held().cmp(&b.held()))
            .then_with(|| (a.gate() != Some(Gate::Closed)).cmp(&(b.gate() != Some(Gate::Closed))))
            .then_with(|| b.created.cmp(&a.created))
            .then_with(|| a.uid.cmp(&b.uid))
    });
    candidates.truncate(wanted);
    candidates
}

/// Admitted pods whose gate is not open although nobody wants it closed.
///
/// While a lowering is on its way only its survivors: another pod that carries a mark by now got it from a leader that
/// was stopped, after the lowering was decided, and is perhaps about to be taken.
fn reopen(world: &World, memory: &Memory, chosen: &[&Pod]) -> Option<Turn> {
    let stays = |pod: &Pod| {
        memory
            .lowering
            .as_ref()
            .is_none_or(|lowering| lowering.survivors.contains(&pod.uid))
    };
    let pods: Vec<String> = world
        .live()
        .filter(|pod| stays(pod))
        .filter(|pod| pod.marked && pod.running && pod.has_live_worker() && pod.gate() != Some(Gate::Open))
        .filter(|pod| pod.gate() == Some(Gate::New) || !chosen.iter().any(|victim| victim.uid == pod.uid))
        .map(|pod| pod.uid.clone())
        .collect();
    (!pods.is_empty()).then(|| Turn::new(Action::Reopen { pods }, Reason::WantedAgain))
}

/// First admissions: all who started, or while a scale-down is wanted only so many as shall stay.
fn admit(world: &World, memory: &Memory) -> Option<Turn> {
    let size = world.deployment.size;
    // Who opened its own gate while no leader lived works already; it only lacks the mark.
    let own = world
        .live()
        .filter(|pod| !pod.marked && pod.gate() == Some(Gate::Open))
        .map(|pod| pod.uid.clone());
    let own: Vec<String> = own.collect();
    if !own.is_empty() {
        return Some(Turn::new(Action::Admit { pods: own }, Reason::Started));
    }
    let mut started: Vec<&Pod> = world
        .live()
        .filter(|pod| !pod.is_admitted() && pod.running && pod.has_live_worker())
        .collect();
    if started.is_empty() || memory.replacing.is_some() {
        return None;
    }
    if world.desired < size {
        let admitted = world.live().filter(|pod| pod.is_admitted()).count();
        let missing = (world.desired as usize).saturating_sub(admitted);
        started.sort_by(|a, b| a.created.cmp(&b.created).then_with(|| a.uid.cmp(&b.uid)));
        started.truncate(missing);
        if started.is_empty() {
            return None;
        }
    }
    if !world.is_processed() {
        // A wanted scale-down has its own waiting, with an end.
        return (world.desired >= size).then(|| Turn::wait(Reason::NotProcessed));
    }
    let pods = started.into_iter().map(|pod| pod.uid.clone()).collect();
    Some(Turn::new(Action::Admit { pods }, Reason::Started))
}

/// One pass of a scale-down, with everything reopened and admitted that shall stay.
fn step(world: &World, memory: &Memory, rules: &Rules, chosen: &[&Pod], now: Timestamp) -> Turn {
    let size = world.deployment.size;
    let is_frozen = rules.leaves && world.is_frozen();
    if world.is_rolling() && !is_frozen {
        return Turn::wait(Reason::Rollout);
    }
    let is_open = |pod: &Pod| pod.gate() == Some(Gate::Open);
    // Of a broken one also the gate that a process of a moment ago left as it was.
    let takes_more = |pod: &Pod| is_open(pod) || (pod.is_broken(now) && pod.gate() == Some(Gate::New));
    let mut fresh: Vec<String> = chosen
        .iter()
        .filter(|pod| takes_more(pod))
        .map(|pod| pod.uid.clone())
        .collect();
    let is_leaving = |pod: &Pod| !pod.ready && chosen.iter().any(|one| one.uid == pod.uid);
    if let Some(pod) = world
        .live()
        .find(|pod| pod.is_admitted() && !pod.ready && !is_leaving(pod))
    {
        // No pod is removed beside it. Who leaves for good takes no more work all the same, while enough others do.
        let serves = |pod: &&Pod| pod.ready && is_open(pod) && pod.has_live_worker();
        let spare = world
            .live()
            .filter(serves)
            .count()
            .saturating_sub(world.desired as usize);
        fresh.truncate(if rules.leaves { spare } else { 0 });
        if fresh.is_empty() {
            return Turn::wait(Reason::NotReady { pod: pod.name.clone() });
        }
    }
    if !fresh.is_empty() {
        return Turn::new(Action::Drain { pods: fresh }, Reason::Surplus);
    }
    if is_frozen {
        return clear(world, rules, chosen);
    }
    if !world.is_settled() {
        return unsettled(world, memory, now);
    }
    let surplus = (size - world.desired) as usize;
    let mut takes: Vec<&Pod> = world.live().filter(|pod| !pod.is_admitted()).collect();
    // Settled with the pods counted: whatever was deleted by name has its replacement.
    if !takes.is_empty() {
        takes.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.uid.cmp(&b.uid)));
        takes.truncate(surplus);
        let takes = takes.into_iter().map(|pod| pod.uid.clone()).collect();
        return Turn::new(Action::Lower { takes }, Reason::Surplus);
    }
    let idle: Vec<String> = chosen
        .iter()
        .filter(|pod| pod.held() == 0)
        .map(|pod| pod.uid.clone())
        .collect();
    if !idle.is_empty() {
        return Turn::new(Action::Delete { pods: idle }, Reason::Surplus);
    }
    wait_for(rules, chosen)
}

/// A frozen Deployment: its pods take no more work, and stay until all of them can go at once.
fn clear(world: &World, rules: &Rules, chosen: &[&Pod]) -> Turn {
    if !world.stands_still() {
        return Turn::wait(Reason::Settling);
    }
    let is_idle = |pod: &Pod| pod.held() == 0 && chosen.iter().any(|one| one.uid == pod.uid);
    if world.desired == 0 && world.live().all(|pod| !pod.is_admitted() || is_idle(pod)) {
        return Turn::new(Action::Clear, Reason::Surplus);
    }
    let busy: Vec<&Pod> = chosen.iter().copied().filter(|pod| pod.held() > 0).collect();
    if busy.is_empty() && !chosen.is_empty() {
        // Those that are closed wait for the others.
        return Turn::wait(Reason::Settling);
    }
    wait_for(rules, &busy)
}

/// Chosen pods that hold something: they are waited for, or stopped when their time is over.
fn wait_for(rules: &Rules, chosen: &[&Pod]) -> Turn {
    if let Some(patience) = rules.patience() {
        let over = chosen.iter().filter(|pod| pod.closed_for() >= patience);
        let pods: Vec<String> = over.map(|pod| pod.uid.clone()).collect();
        if !pods.is_empty() {
            return Turn::new(Action::Stop { pods }, Reason::TimeOver);
        }
    }
    let busy: Vec<String> = chosen.iter().map(|pod| pod.name.clone()).collect();
    let is_overdue = chosen.iter().any(|pod| pod.closed_for() >= rules.longest);
    if busy.is_empty() {
        Turn::wait(Reason::NoCandidate)
    } else if is_overdue && rules.patience().is_none() {
        Turn::wait(Reason::DrainOverdue { busy })
    } else {
        Turn::wait(Reason::Draining { busy })
    }
}

/// Waits for the sizes to agree, and gives up on pods that cannot be made.
fn unsettled(world: &World, memory: &Memory, now: Timestamp) -> Turn {
    if !memory.waited_in_vain(now) {
        return Turn::wait(if memory.replacing.is_some() {
            Reason::Replacing
        } else {
            Reason::Settling
        });
    }
    let live = u32::try_from(world.live().count()).unwrap_or(u32::MAX);
    // Only when the controllers count exactly the pods that live: then the new size removes nobody.
    let agreed = world.is_processed() && world.deployment.live == live && world.sets.iter().all(|set| set.live == live);
    let to = live.max(world.desired);
    if agreed && to < world.deployment.size {
        Turn::new(Action::SettleForLive { to }, Reason::ReplacementRefused)
    } else {
        Turn::wait(Reason::ReplacementRefused)
    }
}
