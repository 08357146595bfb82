//! WorkerPool → its children, its size, and who may work.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use umbel_api::workerpool::{LastScale, RevisionStatus, Runtime};
use umbel_api::{TargetCluster, TaskQueue, WorkerPool, condition};
use umbel_plan::deployment::Revision;
use umbel_plan::drain::{self, Rules, Turn};
use umbel_plan::pool::{Defaults, Pool, QueueFacts, Referred, validate};
use umbel_plan::scaling::{self, History, Limits, Reading, Scale, calendar};
use umbel_plan::{explain, grace, rollout, shield};

use crate::brokers::{Changed, Sample, Source, View, Wake};
use crate::carry::{self, Done, Pass};
use crate::children::{self, Applied, Outcome};
use crate::context::Context;
use crate::demand;
use crate::observe::{self, Fleet, Fleets, Workers, watched};
use crate::report::{self, Found, News};
use crate::watch::pool_of;

/// After an action the next look follows soon: the API server has answered, only the watches lag.
const SOON: Duration = Duration::from_millis(100);
/// A pass that waits for others (controllers, tasks) looks again after this, should no watch wake it.
const AGAIN: Duration = Duration::from_secs(1);
/// A steady pool is looked at this often, should a change ever be missed.
const RARELY: Duration = Duration::from_secs(300);

/// A size that somebody else wrote is set right so many times …
const CORRECTIONS: usize = 3;
/// … within this time; then we yield until it has passed.
const YIELD: Duration = Duration::from_secs(600);

/// What the leader remembers of each pool, by uid.
type Memories = Mutex<HashMap<String, Arc<tokio::sync::Mutex<Memory>>>>;

struct Memory {
    /// By the uid of the Deployment.
    fleets: BTreeMap<String, Watch>,
    /// What is remembered of the template's revisions.
    rollout: Option<rollout::Memory>,
    /// The size decided last.
    desired: Option<u32>,
    history: Option<History>,
    /// The reading that counts until `scaling.interval` has passed, the generation that it was made for, and when.
    reading: Option<(Instant, Option<i64>, Reading)>,
    /// When the calendar changes the bounds next.
    calendar: Option<Timestamp>,
    applied: Applied,
    news: News,
    /// What pods work on, by uid.
    work: HashMap<String, shield::Work>,
    told: Option<String>,
    /// The latest decision in words.
    sentence: String,
    /// When a size that somebody else had written was set right.
    corrections: Vec<Instant>,
    /// Hand-backs as they were counted at the broker last.
    hand_backs: Option<u64>,
}

/// What the leader remembers of one Deployment.
#[derive(Default)]
struct Watch {
    drain: drain::Memory,
    /// Pods that were deleted by name since its size was lowered last.
    victims: Vec<String>,
    /// Sizes that were sent and not answered.
    doubts: u32,
    /// The live pods of the latest pass.
    live: BTreeSet<String>,
}

/// One revision's pods, what they should become, and by which rules.
struct Part<'a> {
    fleet: &'a Fleet,
    world: drain::World,
    rules: Rules,
    /// Of an older revision.
    share: Option<rollout::Share>,
}

impl Part<'_> {
    fn uid(&self) -> String {
        self.fleet.deployment.uid().unwrap_or_default()
    }

    /// Whether it is an older revision's Deployment that is not needed any more.
    fn is_spent(&self) -> bool {
        let retires = self.share.is_some_and(|share| share.retires);
        retires && self.fleet.size() == 0 && self.fleet.is_empty() && self.world.is_settled()
    }
}

/// What is asked of a pool in one pass.
struct Wanted<'a> {
    revision: &'a Revision,
    desired: u32,
    rules: Rules,
    rollout: rollout::Settings,
}

impl Wanted<'_> {
    /// Shares the size between the revisions. While the broker does not answer, all stay as they are.
    fn parts<'a>(&self, fleets: &'a Fleets, workers: Option<&Workers>, notes: &rollout::Memory) -> Vec<Part<'a>> {
        let counted = |fleet: &Fleet| (rollout::Fleet::of(&fleet.world(workers, 0)), notes.of(&fleet.name()));
        let older: Vec<_> = fleets.older.iter().map(counted).collect();
        let (present, note) = fleets.present.as_ref().map(counted).unwrap_or_default();
        let shares = rollout::share(self.desired, (&present, note), &older, &self.rollout);
        let holds = workers.is_none() && !older.is_empty();
        let part = |fleet: &'a Fleet, desired: u32, share: Option<rollout::Share>| Part {
            fleet,
            world: fleet.world(workers, if holds { fleet.size() } else { desired }),
            rules: share.map_or(self.rules, |share| share.rules(&self.rules)),
            share,
        };
        let first = fleets.present.iter().map(|fleet| part(fleet, shares.present, None));
        let rest = fleets.older.iter().zip(&shares.older);
        first
            .chain(rest.map(|(fleet, share)| part(fleet, share.desired, Some(*share))))
            .collect()
    }
}

/// Why a pool could not be reconciled.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("observe the pool")]
    Observe(#[source] observe::Error),
    #[error("apply the pool's children")]
    Apply(#[source] children::Error),
    #[error("act on the pool")]
    Act(#[source] carry::Error),
    #[error("report on the pool")]
    Report(#[source] kube::Error),
}

/// Reconciles the pools of one scope until `stop`.
pub async fn run(context: Arc<Context>, scope: usize, stop: CancellationToken) {
    let memories: Arc<Memories> = Arc::default();
    let here = &context.scopes[scope];
    let (all, near) = (context.clone(), here.pools.store.clone());
    let concerned = move |is_so: &dyn Fn(&WorkerPool) -> bool| -> Vec<ObjectRef<WorkerPool>> {
        let pools = near.state_filter(is_so);
        pools.iter().map(|pool| ObjectRef::from_obj(pool.as_ref())).collect()
    };
    let (by_pool, by_queue, by_cluster, by_sample) =
        (concerned.clone(), concerned.clone(), concerned.clone(), concerned);
    let samples = context.brokers.wakes();
    let sampled = stream::unfold(samples, |mut samples| async move {
        match samples.recv().await {
            Ok(wake) => Some((Some(wake), samples)),
            Err(RecvError::Lagged(_)) => Some((None, samples)),
            Err(RecvError::Closed) => None,
        }
    })
    .flat_map(move |wake: Option<Wake>| stream::iter(by_sample(&*concerns(&all, scope, wake))));
    let wakes = stream::select_all([
        // Pools of one queue share its work by what each may have.
        here.pools.wakes(move |changed: &WorkerPool| {
            by_pool(&|pool| pool.metadata.uid == changed.metadata.uid || shares_queue(pool, changed))
        }),
        here.queues.wakes(move |queue: &TaskQueue| {
            let (namespace, name) = (queue.namespace(), queue.name_any());
            by_queue(&|pool| pool.metadata.namespace == namespace && serves(pool, &name))
        }),
        here.clusters.wakes(move |cluster: &TargetCluster| {
            let namespace = cluster.namespace();
            by_cluster(&|pool| pool.metadata.namespace == namespace)
        }),
        here.deployments.wakes(pool_of),
        here.sets.wakes(pool_of),
        here.pods.wakes(pool_of),
        sampled.boxed(),
    ]);
    let store = here.pools.store.clone();
    let reconcile = move |pool: Arc<WorkerPool>, context: Arc<Context>| {
        let memories = memories.clone();
        async move {
            let uid = pool.uid().unwrap_or_default();
            let memory = {
                let mut all = memories.lock().unwrap_or_else(PoisonError::into_inner);
                if !all.contains_key(&uid) {
                    let known: BTreeSet<String> = context.pools().iter().filter_map(|pool| pool.uid()).collect();
                    all.retain(|uid, _| known.contains(uid));
                }
                all.entry(uid)
                    .or_insert_with(|| Arc::new(tokio::sync::Mutex::new(Memory::new())))
                    .clone()
            };
            let mut memory = memory.lock().await;
            let done = Box::pin(reconcile(&pool, &context, &mut memory)).await;
            if let Err(error) = &done
                && let Some(why) = refused(error)
            {
                // It is tried again all the same: the cause may be elsewhere, and end there.
                let told = invalid(&pool, &context, &mut memory, "WriteRefused", why).await;
                if let Err(error) = told {
                    tracing::warn!(pool = pool.name_any(), error = %umbel_telemetry::chain(&error), "refusal not told");
                }
            }
            done
        }
    };
    super::drive("workerpool", store, wakes.boxed(), context.clone(), reconcile, stop).await;
}

/// The API server's words, where it would not do something: a right is missing, or an admission says no.
fn refused(error: &Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(one) = cause {
        if let Some(error) = one.downcast_ref::<kube::Error>() {
            return crate::apply::is_refused(error).then(|| crate::apply::words(error));
        }
        cause = one.source();
    }
    None
}

fn serves(pool: &WorkerPool, queue: &str) -> bool {
    pool.spec.queues.iter().any(|share| share.name == queue)
}

fn shares_queue(one: &WorkerPool, other: &WorkerPool) -> bool {
    one.metadata.namespace == other.metadata.namespace && other.spec.queues.iter().any(|share| serves(one, &share.name))
}

/// The pools that a change at a broker concerns; `None`: nobody can tell what changed.
fn concerns(context: &Context, scope: usize, wake: Option<Wake>) -> Box<dyn Fn(&WorkerPool) -> bool> {
    let Some(Wake { source, changed }) = wake else {
        return Box::new(|_| true);
    };
    let namespace = source.namespace.clone();
    let Changed::These(parts) = changed.as_ref() else {
        return Box::new(move |pool| pool.metadata.namespace.as_ref() == Some(&namespace));
    };
    let here = &context.scopes[scope];
    let is_named = |queue: &TaskQueue| {
        parts.queues.contains(&queue.queue_name()) && context.brokers.source(queue).as_ref() == Ok(&source)
    };
    let queues = here.queues.store.state_filter(is_named);
    let queues: BTreeSet<String> = queues.iter().map(|queue| queue.name_any()).collect();
    let uids = parts.pools.clone();
    let mut pools: HashSet<ObjectRef<WorkerPool>> = HashSet::new();
    if !parts.pods.is_empty() {
        let pods = here
            .pods
            .store
            .state_filter(|pod| pod.metadata.uid.as_ref().is_some_and(|uid| parts.pods.contains(uid)));
        pools.extend(pods.iter().flat_map(|pod| pool_of(pod.as_ref())));
    }
    Box::new(move |pool| {
        let is_here = pool.metadata.namespace.as_ref() == Some(&namespace);
        let is_served = is_here && pool.spec.queues.iter().any(|share| queues.contains(&share.name));
        is_served
            || pool.metadata.uid.as_ref().is_some_and(|uid| uids.contains(uid))
            || (!pools.is_empty() && pools.contains(&ObjectRef::from_obj(pool)))
    })
}

async fn reconcile(pool: &WorkerPool, context: &Context, memory: &mut Memory) -> Result<Action, Error> {
    if pool.metadata.deletion_timestamp.is_some() || context.leader.term().is_none() {
        return Ok(Action::requeue(AGAIN));
    }
    let (now, clock) = (Timestamp::now(), Instant::now());
    let refers = Refers::of(context, pool);
    let defaults = Defaults {
        image: &context.release.worker_image,
        pull_policy: &context.release.worker_pull_policy,
        install: context.leader.install(),
        level: context.release.pod_templates,
    };
    let valid = match validate(pool, &refers.referred(), &defaults) {
        Ok(valid) => valid,
        Err(fault) => return invalid(pool, context, memory, fault.reason(), fault.to_string()).await,
    };
    let all = watched(context, pool);
    let revision = memory.applied.revision(context, &valid, &all).await;
    let revision = revision.map_err(Error::Apply)?;
    if children::freeze(context, &revision, &all).await.map_err(Error::Apply)? {
        return Ok(Action::requeue(SOON));
    }
    let stored = all.iter().find(|fleet| fleet.name() == revision.deployment);
    let stored = stored.map(|fleet| &fleet.deployment);
    let refused = match memory
        .applied
        .bring(context, &valid, &revision, stored)
        .await
        .map_err(Error::Apply)?
    {
        Outcome::Good { wrote } if wrote => return Ok(Action::requeue(SOON)),
        Outcome::Good { wrote: _ } => None,
        Outcome::Refused { reason, why } => Some((reason, why)),
    };
    if all.is_empty() {
        let (reason, why) = refused.unwrap_or(("Progressing", "the Deployment is being made".into()));
        return invalid(pool, context, memory, reason, why).await;
    }

    let view = refers.view();
    let workers = view.as_ref().and_then(workers_of);
    let workers = workers.map(|workers| refers.of_runtime(pool, context, workers, &all));
    memory.count_hand_backs(pool, view.as_ref());
    let fleets = Fleets::new(all, &revision, workers.as_ref(), memory.revisions(pool), now);
    let decision = memory.decide(pool, &valid, context, &refers, &fleets, workers.as_ref(), now);
    let time_limit = valid.policy.time_limit.get();
    let wanted = Wanted {
        revision: &revision,
        desired: decision.replicas,
        rules: Rules::new(&pool.spec.scaling.down, time_limit),
        rollout: rollout::Settings::new(&pool.spec.rollout, time_limit),
    };
    let parts = wanted.parts(&fleets, workers.as_ref(), memory.revisions(pool));
    let mut turns: Vec<Turn> = parts.iter().map(|part| memory.next(part, now)).collect();
    let mut acted = false;
    if turns.iter().any(|turn| turn.action != drain::Action::Wait) || parts.iter().any(Part::is_spent) {
        let sights = turns.iter().zip(&parts).map(|(turn, part)| Sight::of(turn, part));
        let sight = sights.max().unwrap_or(Sight::Fresh);
        let fresh = act(pool, context, memory, &refers, &wanted, sight).await?;
        for (part, turn) in parts.iter().zip(&mut turns) {
            if let Some(other) = fresh.get(&part.uid()) {
                *turn = other.clone();
            }
        }
        acted = true;
    }
    let mut shield_ends = None;
    if !acted {
        let costs = memory.costs(pool, context, &parts, workers.as_ref());
        shield_ends = costs.await.map_err(Error::Act)?;
    }
    let fault = view
        .as_ref()
        .and_then(|view| view.fault.as_ref())
        .map(|fault| (fault.reason(), fault.to_string()));
    let revisions = revisions(&revision, &parts, memory.revisions(pool));
    let asks_again = refused.as_ref().map(|_| children::REFUSAL_LASTS);
    let rolling = rolling(&revision, &fleets, &parts, decision.replicas, now);
    let foreign_scaler = fleets.all().find_map(Fleet::foreign_scaler);
    let pods = || {
        parts
            .iter()
            .flat_map(|part| part.world.live().filter_map(|pod| part.fleet.pod(&pod.uid)))
    };
    let found = Found {
        pods: parts.iter().flat_map(|part| part.world.live()).collect(),
        size: memory.size(pool, &fleets),
        workers: workers.as_ref(),
        decision: &decision,
        turn: told(&parts, &turns),
        is_blocked: blocked(&parts, &turns).is_some(),
        revisions,
        rolling,
        refused,
        replica_failure: fleets.all().find_map(Fleet::refusal),
        trouble: fleets.present.as_ref().and_then(|fleet| fleet.trouble(now)),
        broker_fault: fault,
        foreign_scaler: foreign_scaler.map(|manager| (manager, memory.yields())),
        foreign_cost_writer: pods().find_map(observe::foreign_cost_writer),
        remote_control: refers
            .celery(pool)
            .zip(workers.as_ref())
            .map(|((source, _), workers)| context.celery.finding(source, workers)),
        grace: grace::finding(valid.grace, pods().filter_map(observe::grace).min(), time_limit),
        absent: &valid.absent,
    };
    let status = report::status(pool, &found, &memory.news, now);
    context.metrics.pool(
        &valid.namespace,
        &valid.name,
        decision.replicas,
        fleets.all().map(Fleet::size).sum(),
        status.busy_replicas,
    );
    let look = memory.tell(pool, context, &status, clock).await?;
    let by_turn = match () {
        () if acted => SOON,
        () if found.rolling.is_none() && turns.iter().all(|turn| turn.reason == drain::Reason::Steady) => RARELY,
        () => AGAIN,
    };
    let looks = [
        Some(by_turn),
        look,
        asks_again,
        shield_ends,
        memory.rests(pool, clock),
        memory.calendar.map(|at| until(at, now)),
        decision.reason.until().map(|at| until(at, now)),
    ];
    Ok(Action::requeue(looks.into_iter().flatten().min().unwrap_or(RARELY)))
}

/// Why a part that shall be smaller does not become so, if anything keeps it.
fn blocked<'a>(parts: &[Part<'_>], turns: &'a [Turn]) -> Option<&'a Turn> {
    let waits = parts
        .iter()
        .zip(turns)
        .find(|(part, turn)| part.world.desired < part.world.deployment.size && turn.reason.blocks());
    waits.map(|(_, turn)| turn)
}

/// The turn that people are told of: the one that holds something up, otherwise one that waits for tasks.
fn told<'a>(parts: &[Part<'_>], turns: &'a [Turn]) -> &'a drain::Reason {
    let drains = || {
        let mut turns = turns.iter();
        turns.find(|turn| matches!(turn.reason, drain::Reason::Draining { .. }))
    };
    let turn = blocked(parts, turns).or_else(drains).or_else(|| turns.first());
    turn.map_or(&drain::Reason::Steady, |turn| &turn.reason)
}

/// What status says of each revision.
fn revisions(present: &Revision, parts: &[Part<'_>], notes: &rollout::Memory) -> Vec<RevisionStatus> {
    let one = |part: &Part<'_>| {
        let (name, fleet) = (part.fleet.name(), rollout::Fleet::of(&part.world));
        let note = notes.of(&name);
        RevisionStatus {
            name: if name == present.deployment {
                present.name.clone()
            } else {
                Revision::of(&part.fleet.deployment).name
            },
            deployment: name,
            replicas: fleet.live,
            ready_replicas: fleet.ready,
            busy_replicas: fleet.busy,
            draining_replicas: fleet.closed,
            proven: note.proven,
            replaced_at: note.replaced_at.map(|at| Time(condition::whole_seconds(at))),
        }
    };
    parts.iter().map(one).collect()
}

/// The rollout under way, if there is one.
fn rolling(
    revision: &Revision,
    fleets: &Fleets,
    parts: &[Part<'_>],
    desired: u32,
    now: Timestamp,
) -> Option<rollout::Rolling> {
    let (present, older): (Vec<_>, Vec<_>) = parts.iter().partition(|part| part.share.is_none());
    if older.is_empty() {
        return None;
    }
    let older: Vec<_> = older.iter().map(|part| rollout::Fleet::of(&part.world)).collect();
    let present = present
        .first()
        .map(|part| rollout::Fleet::of(&part.world))
        .unwrap_or_default();
    let is_short = present.serving < present.live;
    Some(rollout::Rolling {
        revision: revision.name.clone(),
        serving: present.serving,
        wanted: desired,
        older: older.iter().map(|fleet| fleet.live).sum(),
        busy: older.iter().map(|fleet| fleet.busy).sum(),
        trouble: fleets
            .present
            .as_ref()
            .filter(|_| is_short || present.live == 0)
            .and_then(|fleet| fleet.trouble(now)),
    })
}

/// How long until `at`.
fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or(SOON).max(SOON)
}

/// What an action is decided on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sight {
    /// What the watches show. Enough to raise a size: that stops nobody, and meets another resourceVersion where the
    /// Deployment has changed since.
    Watched,
    /// What is there now: what the watches show was enough to think of something.
    Fresh,
}

impl Sight {
    /// What a turn needs.
    fn of(turn: &Turn, part: &Part<'_>) -> Self {
        match turn.action {
            drain::Action::Wait | drain::Action::Raise { .. } if !part.is_spent() => Self::Watched,
            _ => Self::Fresh,
        }
    }

    /// An API server with thousands of Deployments takes long to look for those of one pool.
    async fn fleets(self, context: &Context, pool: &WorkerPool) -> Result<Vec<Fleet>, Error> {
        match self {
            Self::Watched => Ok(watched(context, pool)),
            Self::Fresh => observe::read(context, pool).await.map_err(Error::Observe),
        }
    }
}

/// Looks at everything again, decides again, and carries that out; the turns by the uid of the Deployment.
async fn act(
    pool: &WorkerPool,
    context: &Context,
    memory: &mut Memory,
    refers: &Refers,
    wanted: &Wanted<'_>,
    sight: Sight,
) -> Result<BTreeMap<String, Turn>, Error> {
    let all = sight.fleets(context, pool).await?;
    let broker = match (&refers.source, context.leader.term()) {
        (Some(source), Some(term)) => context.brokers.writable(source, term).ok(),
        _ => None,
    };
    let celery = refers.celery(pool);
    if sight == Sight::Fresh
        && let (Some((source, _)), Some(broker)) = (&celery, &broker)
        && let Err(error) = context.celery.look(source, broker).await
    {
        tracing::warn!(pool = pool.name_any(), error = %umbel_telemetry::chain(&error), "Celery's workers were not asked");
    }
    let workers = match &broker {
        _ if sight == Sight::Watched => refers.view().as_ref().and_then(workers_of),
        Some(broker) => match tokio::try_join!(broker.generation(), broker.workers()) {
            // Of a broker that was never sampled the clock is not known: its gates are closed since now.
            Ok((generation, records)) => {
                let clock = refers
                    .view()
                    .and_then(|view| view.sample)
                    .map_or(0.0, |sample| sample.clock());
                Some(Workers::new(generation, &records, clock))
            }
            Err(_) => None,
        },
        None => None,
    };
    let workers = workers.map(|workers| refers.of_runtime(pool, context, workers, &all));
    let now = Timestamp::now();
    let fleets = Fleets::new(all, wanted.revision, workers.as_ref(), memory.revisions(pool), now);
    let parts = wanted.parts(&fleets, workers.as_ref(), memory.revisions(pool));
    let is_rolling = !fleets.older.is_empty();
    let nobody = Workers::new(String::new(), &[], 0.0);
    let mut turns = BTreeMap::new();
    for part in &parts {
        let turn = memory.next(part, now);
        if Sight::of(&turn, part) > sight {
            continue; // They show something else by now: the next pass reads it.
        }
        let pass = Pass {
            context,
            pool,
            fleet: part.fleet,
            workers: workers.as_ref().unwrap_or(&nobody),
            world: &part.world,
            doubts: memory.watch(&part.uid()).doubts,
            broker: broker.as_ref(),
            celery: celery.as_ref().map(|(source, queues)| (*source, queues.as_slice())),
        };
        if turn.action == drain::Action::Wait && part.is_spent() {
            if pass.retire().await.map_err(Error::Act)? {
                let note = format!(
                    "Deployment {} of an older template is empty and was deleted",
                    part.fleet.name()
                );
                context.fact(pool, EventType::Normal, "RevisionRetired", note).await;
            }
            continue;
        }
        let done = pass.carry_out(&turn.action).await.map_err(|error| {
            memory.watch(&part.uid()).doubts += u32::from(error.leaves_doubt());
            Error::Act(error)
        })?;
        if matches!(done, Done::Scaled { .. }) && part.fleet.foreign_scaler().is_some() {
            memory.corrections.push(Instant::now());
        }
        memory.note(pool, context, part, &turn, &done, is_rolling).await;
        turns.insert(part.uid(), turn);
    }
    Ok(turns)
}

async fn invalid(
    pool: &WorkerPool,
    context: &Context,
    memory: &mut Memory,
    reason: &'static str,
    why: String,
) -> Result<Action, Error> {
    let status = report::invalid(pool, reason, why.clone(), Timestamp::now());
    if memory.told.as_deref() != Some(why.as_str()) && reason != "Progressing" {
        context.event(pool, EventType::Warning, reason, why.clone()).await;
        memory.told = Some(why);
    }
    memory.tell(pool, context, &status, Instant::now()).await?;
    Ok(Action::requeue(if reason == "Progressing" {
        SOON
    } else {
        RARELY.min(Duration::from_secs(30))
    }))
}

/// The objects that a pool refers to, and what is known of their broker.
struct Refers {
    queues: Vec<(Arc<TaskQueue>, Result<Source, String>, View)>,
    clusters: Vec<Arc<TargetCluster>>,
    source: Option<Source>,
}

impl Refers {
    fn of(context: &Context, pool: &WorkerPool) -> Self {
        let namespace = pool.namespace().unwrap_or_default();
        let queues: Vec<_> = pool
            .spec
            .queues
            .iter()
            .filter_map(|share| context.queue(&namespace, &share.name))
            .map(|queue| {
                let source = context.brokers.source(&queue).map_err(|fault| fault.to_string());
                let view = source
                    .as_ref()
                    .map(|source| context.brokers.view(source))
                    .unwrap_or_default();
                (queue, source, view)
            })
            .collect();
        let source = queues.first().and_then(|(_, source, _)| source.clone().ok());
        // Their Secrets are no pool's, also of those that it does not reach.
        let spec = &pool.spec;
        let sources = spec.jobs.apply.as_ref().and_then(|apply| apply.sources.as_ref());
        let names_secrets = spec.template.is_some() || spec.jobs.secrets.is_some() || sources.is_some();
        let clusters = if spec.cluster_access.is_some() || names_secrets {
            context.clusters(&namespace)
        } else {
            Vec::new()
        };
        Self {
            queues,
            clusters,
            source,
        }
    }

    fn referred(&self) -> Referred<'_> {
        let mut queues = BTreeMap::new();
        for (queue, source, view) in &self.queues {
            let secret = source
                .as_ref()
                .map(|source| (source.secret.clone(), source.key.clone()))
                .map_err(Clone::clone);
            let generation = view
                .sample
                .as_ref()
                .map(|sample| sample.generation.as_str())
                .filter(|id| !id.is_empty());
            queues.insert(
                queue.name_any(),
                QueueFacts {
                    queue,
                    secret,
                    generation,
                },
            );
        }
        Referred {
            queues,
            clusters: self.clusters.iter().map(AsRef::as_ref).collect(),
        }
    }

    /// Where the pool's workers are Celery's: their broker, and the names of their queues.
    fn celery(&self, pool: &WorkerPool) -> Option<(&Source, Vec<String>)> {
        let queues = self.queues.iter().map(|(queue, _, _)| queue.queue_name()).collect();
        let source = self.source.as_ref().filter(|_| pool.spec.runtime == Runtime::Celery)?;
        Some((source, queues))
    }

    /// The workers of the pool's own kind: where they are Celery's, in place of those that Redis knows.
    fn of_runtime(&self, pool: &WorkerPool, context: &Context, workers: Workers, fleets: &[Fleet]) -> Workers {
        match self.celery(pool) {
            Some((source, _)) => context.celery.workers(pool, source, workers.generation, fleets),
            None => workers,
        }
    }

    /// The view of the pool's broker: that of its first queue.
    fn view(&self) -> Option<View> {
        self.queues.first().map(|(_, _, view)| view.clone())
    }
}

/// The workers of the latest sample, unless the broker stopped answering.
fn workers_of(view: &View) -> Option<Workers> {
    let sample: &Sample = view
        .sample
        .as_deref()
        .filter(|_| view.fault.is_none() && view.term.is_some())?;
    Some(Workers::new(sample.generation.clone(), &sample.workers, sample.clock()))
}

impl Watch {
    fn deleted(&mut self, pods: &[String], world: &drain::World) {
        if let Some(broker) = &world.broker {
            self.drain
                .deleted(u32::try_from(pods.len()).unwrap_or(u32::MAX), broker);
        }
        self.victims.extend(pods.iter().cloned());
    }
}

impl Memory {
    fn new() -> Self {
        Self {
            fleets: BTreeMap::new(),
            rollout: None,
            desired: None,
            history: None,
            reading: None,
            calendar: None,
            applied: Applied::default(),
            news: News::default(),
            work: HashMap::new(),
            told: None,
            sentence: String::new(),
            corrections: Vec::new(),
            hand_backs: None,
        }
    }

    /// Adds what has been handed back since the last look. What the broker had counted for an earlier leader is in status.
    fn count_hand_backs(&mut self, pool: &WorkerPool, view: Option<&View>) {
        let Some(sample) = view.and_then(|view| view.sample.as_deref()) else {
            return;
        };
        let counted = sample
            .hand_backs
            .get(&pool.uid().unwrap_or_default())
            .copied()
            .unwrap_or(0);
        let told = pool
            .status
            .as_ref()
            .and_then(|status| status.counters)
            .unwrap_or_default();
        let known = self.hand_backs.replace(counted);
        self.news.counters.handed_back += report::counted_since(known, told.handed_back, counted);
    }

    fn watch(&mut self, uid: &str) -> &mut Watch {
        self.fleets.entry(uid.to_owned()).or_default()
    }

    /// What is remembered of the template's revisions; at first what an earlier leader left in status.
    fn revisions(&mut self, pool: &WorkerPool) -> &mut rollout::Memory {
        self.rollout.get_or_insert_with(|| {
            let left = pool.status.iter().flat_map(|status| &status.revisions);
            rollout::Memory::recall(left.map(|revision| {
                let note = rollout::Note {
                    proven: revision.proven,
                    replaced_at: revision.replaced_at.as_ref().map(|at| at.0),
                };
                (revision.deployment.clone(), note)
            }))
        })
    }

    /// The pool's size: that of its Deployment, and while there are several the one decided last, which they share.
    fn size(&self, pool: &WorkerPool, fleets: &Fleets) -> u32 {
        match &fleets.present {
            Some(present) if fleets.older.is_empty() => return present.size(),
            _ => {}
        }
        let left = pool.status.as_ref().filter(|status| !status.revisions.is_empty());
        let all = fleets.all().map(Fleet::size).sum();
        self.desired
            .or(left.map(|status| status.desired_replicas))
            .unwrap_or(all)
    }

    fn next(&mut self, part: &Part<'_>, now: Timestamp) -> Turn {
        let world = &part.world;
        let watch = self.watch(&part.uid());
        let live: BTreeSet<String> = world.live().map(|pod| pod.uid.clone()).collect();
        if live != watch.live {
            // A pod came or went: what the controllers count may be of before, so their time to settle begins anew.
            watch.drain.unsettled_since = None;
            watch.live = live;
        }
        watch.drain.observe(world, now);
        let turn = drain::next(world, &watch.drain, &part.rules, now);
        let sizes = matches!(
            turn.action,
            drain::Action::Raise { .. }
                | drain::Action::Lower { .. }
                | drain::Action::SettleForLive { .. }
                | drain::Action::Clear
        );
        if sizes && self.yields() {
            return Turn {
                action: drain::Action::Wait,
                reason: drain::Reason::Settling,
            };
        }
        turn
    }

    /// Somebody else writes the size again and again: two writers that correct each other help nobody.
    fn yields(&self) -> bool {
        self.corrections.iter().filter(|at| at.elapsed() < YIELD).count() >= CORRECTIONS
    }

    #[expect(clippy::too_many_arguments, reason = "everything that one pass saw")]
    fn decide(
        &mut self,
        pool: &WorkerPool,
        valid: &Pool,
        context: &Context,
        refers: &Refers,
        fleets: &Fleets,
        workers: Option<&Workers>,
        now: Timestamp,
    ) -> scaling::Decision {
        let known: BTreeSet<String> = fleets.all().filter_map(|fleet| fleet.deployment.uid()).collect();
        self.fleets.retain(|uid, _| known.contains(uid));
        let (limits, changes) = calendar::apply(Limits::from(&pool.spec), &valid.windows, now);
        self.calendar = changes;
        let reading = self.read(pool, context, refers, now);
        let counted = |fleet: &Fleet| rollout::Fleet::of(&fleet.world(workers, 0));
        // Who leaves with an older template needs no place.
        let staying = fleets.older.iter().map(counted).map(|fleet| fleet.busy - fleet.leaving);
        let scale = Scale {
            replicas: self.size(pool, fleets),
            busy: fleets
                .present
                .iter()
                .map(counted)
                .map(|fleet| fleet.busy)
                .chain(staying)
                .sum(),
        };
        let history = self.history.get_or_insert_with(|| {
            let begun = History::begin(scale.replicas, now);
            match pool.status.as_ref().and_then(|status| status.last_scale.as_ref()) {
                Some(last) => begun.after(last.time.0, last.from, last.to),
                None => begun,
            }
        });
        history.see(scale.replicas, now);
        let decision = scaling::decide(&limits, &reading, scale, history, now);
        history.note(&decision, &limits.patience, now);
        self.sentence = decision.why().to_string();
        if !fleets.older.is_empty() && decision.replicas != scale.replicas {
            // The Deployments change for the rollout as well; the pool's size does here.
            self.news.last_scale = Some(LastScale {
                time: Time(condition::whole_seconds(now)),
                from: scale.replicas,
                to: decision.replicas,
                reason: self.sentence.clone(),
                victims: Vec::new(),
            });
        }
        self.desired = Some(decision.replicas);
        decision
    }

    /// What there is to do, looked at once an interval.
    fn read(&mut self, pool: &WorkerPool, context: &Context, refers: &Refers, now: Timestamp) -> Reading {
        let clock = Instant::now();
        let generation = pool.metadata.generation;
        if self.rests(pool, clock).is_some()
            && let Some((_, of, reading)) = &self.reading
            && *of == generation
        {
            return reading.clone();
        }
        let reading = match refers.view() {
            Some(view) => demand::reading(pool, context, &view, now),
            None => Reading::None,
        };
        self.reading = Some((clock, generation, reading.clone()));
        reading
    }

    /// How long the latest reading still counts, where the pool asks for an interval of its own.
    fn rests(&self, pool: &WorkerPool, clock: Instant) -> Option<Duration> {
        let interval = pool.spec.scaling.interval?.get();
        // What is not known yet is not kept: the first sample counts at once.
        let (at, _, Reading::Sample { .. }) = self.reading.as_ref()? else {
            return None;
        };
        let left = interval.saturating_sub(clock.duration_since(*at));
        (!left.is_zero()).then_some(left)
    }

    /// Takes note of what an action brought about.
    async fn note(
        &mut self,
        pool: &WorkerPool,
        context: &Context,
        part: &Part<'_>,
        turn: &Turn,
        done: &Done,
        is_rolling: bool,
    ) {
        let (namespace, name) = (pool.namespace().unwrap_or_default(), pool.name_any());
        let (uid, world) = (part.uid(), &part.world);
        let word = match done {
            Done::Nothing => return,
            Done::Stamped => "stamp",
            Done::Refused => "refused",
            Done::Gates(_) => match turn.action {
                drain::Action::Drain { .. } => "drain",
                drain::Action::Admit { .. } => "admit",
                _ => "reopen",
            },
            Done::Deleted(_) => "delete",
            Done::Stopped { .. } => "stop",
            Done::Scaled { .. } => "scale",
            Done::Verified { .. } => "verify",
        };
        context.metrics.turned(&namespace, &name, word, turn.reason.word());
        tracing::info!(
            namespace, pool = name, deployment = part.fleet.name(), action = ?turn.action, done = ?done,
            reason = turn.reason.word(), "acted"
        );
        match done {
            Done::Nothing | Done::Stamped | Done::Gates(_) | Done::Refused => {}
            Done::Deleted(pods) => self.watch(&uid).deleted(pods, world),
            Done::Stopped { pods, busy } => {
                self.watch(&uid).deleted(pods, world);
                self.news.counters.busy_stopped += busy;
                let why = if part.share.is_some() {
                    "they belong to an older template, and still worked when rollout.drainTimeout had passed".to_owned()
                } else {
                    explain::step(&turn.reason)
                };
                let note = format!("{why}: {}", pods.join(", "));
                context.fact(pool, EventType::Warning, "StoppedBusy", note).await;
            }
            Done::Scaled { from, to, survivors } => {
                let watch = self.watch(&uid);
                let victims = if to < from {
                    std::mem::take(&mut watch.victims)
                } else {
                    Vec::new()
                };
                if let Some(survivors) = survivors {
                    watch.drain.lowered(*to, survivors.clone());
                }
                let pods = if victims.is_empty() {
                    String::new()
                } else {
                    format!("; removed {}", victims.join(", "))
                };
                if is_rolling {
                    let note = format!("Deployment {}: {from} to {to}{pods}", part.fleet.name());
                    context.fact(pool, EventType::Normal, "RolledOut", note).await;
                    return;
                }
                let why = match &turn.reason {
                    drain::Reason::ReplacementRefused => explain::step(&turn.reason),
                    _ => self.sentence.clone(),
                };
                let kind = if to < from { "ScaledDown" } else { "ScaledUp" };
                self.news.last_scale = Some(LastScale {
                    time: Time(condition::whole_seconds(Timestamp::now())),
                    from: *from,
                    to: *to,
                    reason: why.clone(),
                    victims: report::some_of(victims),
                });
                context
                    .fact(pool, EventType::Normal, kind, format!("{from} to {to}: {why}{pods}"))
                    .await;
            }
            Done::Verified { missing, busy } => {
                self.watch(&uid).drain.verified();
                self.news.counters.scale_downs += 1;
                if !missing.is_empty() {
                    let wrong = missing.len() as u64;
                    self.news.counters.wrong_victims += wrong;
                    self.news.counters.busy_stopped += busy;
                    context.metrics.missing(&namespace, &name, wrong, *busy);
                    let note = format!("a step down lost {} though it had not chosen them", missing.join(", "));
                    context.fact(pool, EventType::Warning, "WrongVictim", note).await;
                }
            }
        }
    }

    /// Deletion costs follow who is busy, slowly and all pods together ten times in a second at most: the second line,
    /// should somebody else lower the Deployment. So do the shields; answers when to look again.
    async fn costs<'a>(
        &mut self,
        pool: &WorkerPool,
        context: &Context,
        parts: &'a [Part<'a>],
        workers: Option<&Workers>,
    ) -> Result<Option<Duration>, carry::Error> {
        let Some(workers) = workers else { return Ok(None) };
        let clock = Instant::now();
        let (protection, now) = (&pool.spec.protection, Timestamp::now());
        let marked = |part: &'a Part<'a>| part.world.live().filter(|pod| pod.marked).map(move |pod| (part, pod));
        let live: Vec<(&Part<'_>, &drain::Pod)> = parts.iter().flat_map(marked).collect();
        self.work.retain(|uid, _| live.iter().any(|(_, pod)| pod.uid == *uid));
        let mut next: Option<Duration> = None;
        for (part, pod) in live {
            let pass = Pass {
                context,
                pool,
                fleet: part.fleet,
                workers,
                world: &part.world,
                doubts: self.watch(&part.uid()).doubts,
                broker: None,
                celery: None,
            };
            let Some(object) = part.fleet.pod(&pod.uid) else {
                continue;
            };
            // Two writers that correct each other help nobody, and no step down relies on costs.
            if protection.on_eviction.is_empty() && observe::foreign_cost_writer(object).is_some() {
                continue;
            }
            let work = self.work.entry(pod.uid.clone()).or_default();
            let seen = observe::marks(object, |raised| work.see(workers.running(&pod.uid), raised, clock));
            let mark = shield::decide(protection, &seen, now);
            let left = match shield::metadata(mark, protection, now) {
                Some(metadata) => match context.turn_to_mark(clock) {
                    Ok(()) => {
                        pass.mark(object, metadata).await?;
                        continue;
                    }
                    Err(again) => Some(again),
                },
                None => shield::look(protection, &seen, now).map(|left| left.max(SOON)),
            };
            next = next.into_iter().chain(left).min();
        }
        Ok(next)
    }

    /// Writes status if it is time; otherwise answers when to look again.
    async fn tell(
        &mut self,
        pool: &WorkerPool,
        context: &Context,
        status: &umbel_api::WorkerPoolStatus,
        clock: Instant,
    ) -> Result<Option<Duration>, Error> {
        if let Err(later) = self.news.due(pool.status.as_ref(), status, clock) {
            return Ok(later);
        }
        match crate::apply::status(&context.client, pool, pool.status.as_ref(), status).await {
            Ok(_) => {
                context.metrics.wrote("patch", "workerpools/status");
                self.news.told(clock);
                Ok(None)
            }
            // The object changed since: the watch brings it, and then it is written.
            Err(error) if matches!(crate::apply::code(&error), Some(404 | 409)) => Ok(Some(SOON)),
            Err(error) => Err(Error::Report(error)),
        }
    }
}
