//! What there is to do for a pool: its part of each of its queues, and how fast work is done and comes.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use kube::ResourceExt;
use umbel_api::WorkerPool;
use umbel_api::workerpool::{Mode, Runtime, TargetKind, WorkerPoolSpec};
use umbel_plan::scaling::pace::{Beat, Meter};
use umbel_plan::scaling::{Demand, Pace, Reading};

use crate::brokers::{Sample, Source, View};
use crate::context::Context;

/// What is known of the demand, now.
pub fn reading(pool: &WorkerPool, context: &Context, view: &View, now: Timestamp) -> Reading {
    let threshold = pool.spec.scaling.on_broker_error.failure_threshold;
    if let Some(fault) = view.fault.as_ref().filter(|_| view.failures >= threshold) {
        return Reading::Unreadable { why: fault.to_string() };
    }
    let Some(sample) = &view.sample else {
        return Reading::None;
    };
    let demand = match of(pool, context, sample) {
        Ok(Some(demand)) => demand,
        Ok(None) => return Reading::None,
        Err(why) => return Reading::Unreadable { why },
    };
    let age = jiff::SignedDuration::try_from(sample.seen.elapsed()).unwrap_or(jiff::SignedDuration::MAX);
    let uid = pool.uid().unwrap_or_default();
    Reading::Sample {
        at: now.checked_sub(age).unwrap_or(now),
        demand,
        pace: sample.paces.get(&uid).copied(),
    }
}

/// The pool's part of its queues in a sample; nothing while one was not sampled, an error where one can't be read.
fn of(pool: &WorkerPool, context: &Context, sample: &Sample) -> Result<Option<Demand>, String> {
    let namespace = pool.namespace().unwrap_or_default();
    let mut sum = Demand::default();
    for share in &pool.spec.queues {
        let Some(queue) = context.queue(&namespace, &share.name) else {
            return Ok(None);
        };
        let depth = match sample.queues.get(&queue.queue_name()) {
            None => return Ok(None),
            Some(Err(fault)) => return Err(format!("key {}: {}", fault.key, fault.reason)),
            Some(Ok(depth)) => depth,
        };
        let whole = Demand {
            waiting: depth.waiting.saturating_add(depth.suspect),
            in_flight: depth.in_flight,
            due_soon: depth.due_soon,
        };
        let (mine, all) = slots(pool, context, &share.name);
        sum = sum + whole.share(mine, all);
    }
    if pool.spec.runtime == Runtime::Celery {
        // What Celery's workers hold is not told by queue: each pool of them on this data has the part of its slots.
        let own = context.source(pool);
        let is_here = |other: &WorkerPool| {
            let theirs = context.source(other);
            // By another Secret, or in another namespace, it may be the same data: its id tells, once it has one.
            let seen = || context.brokers.view(theirs.as_ref()?).sample;
            let is_data = || seen().is_some_and(|seen| seen.generation == sample.generation);
            theirs == own || (!sample.generation.is_empty() && is_data())
        };
        let pools = context.pools();
        let same = |other: &WorkerPool| other.spec.runtime == Runtime::Celery && is_here(other);
        let most = |pool: &WorkerPool| most(&pool.spec);
        let others = pools.iter().filter(|other| same(other) && other.uid() != pool.uid());
        let all = others.map(|other| most(other)).sum::<u64>() + most(pool);
        let held = Demand {
            in_flight: sample.foreign_unacked,
            ..Demand::default()
        };
        sum = sum + held.share(most(pool), all);
    }
    Ok(Some(sum))
}

/// The slots that this pool, and all pools of the queue, can have at most.
fn slots(pool: &WorkerPool, context: &Context, queue: &str) -> (u64, u64) {
    let serves = |other: &WorkerPool| {
        other.metadata.namespace == pool.metadata.namespace
            && other.metadata.uid != pool.metadata.uid
            && other.spec.queues.iter().any(|share| share.name == queue)
    };
    // By itself, whether it is listed or not: a pool that was just deleted has no more than its part.
    let (mine, pools) = (most(&pool.spec), context.pools());
    let others: u64 = pools
        .iter()
        .filter(|other| serves(other))
        .map(|other| most(&other.spec))
        .sum();
    (mine, mine + others)
}

/// The slots that a pool can have at most.
fn most(spec: &WorkerPoolSpec) -> u64 {
    let pods = match spec.scaling.mode {
        // Who takes nothing has no part: it would be nobody's.
        _ if spec.suspend => 0,
        Mode::Manual => spec.replicas,
        Mode::Auto | Mode::External => spec.scaling.max_replicas.max(1),
    };
    u64::from(pods) * u64::from(spec.concurrency)
}

/// Meters of the pools on one broker, by uid.
#[derive(Default)]
pub struct Meters(HashMap<String, Meter>);

impl Meters {
    /// Takes a sample in, and answers the pace of each pool that aims at a time.
    pub fn measure(&mut self, context: &Context, source: &Source, sample: &Sample) -> BTreeMap<String, Pace> {
        let measured = |pool: &WorkerPool| {
            let kind = pool.spec.scaling.target.kind;
            matches!(kind, TargetKind::DrainTime | TargetKind::Latency) && context.source(pool).as_ref() == Some(source)
        };
        let pools: Vec<_> = context.pools().into_iter().filter(|pool| measured(pool)).collect();
        let mut paces = BTreeMap::new();
        self.0
            .retain(|uid, _| pools.iter().any(|pool| pool.uid().as_ref() == Some(uid)));
        for pool in pools {
            let uid = pool.uid().unwrap_or_default();
            let Ok(Some(demand)) = of(&pool, context, sample) else {
                continue;
            };
            let beats = sample.workers.iter().filter_map(|record| {
                let beat = record.heartbeat.as_ref().filter(|beat| beat.pool == uid)?;
                let (busy, finished) = (beat.busy, beat.finished);
                Some((record.worker.as_str(), Beat { busy, finished }))
            });
            let meter = self.0.entry(uid.clone()).or_default();
            meter.see(sample.taken_at, beats, demand.total());
            paces.extend(meter.pace().map(|pace| (uid, pace)));
        }
        paces
    }
}

/// A pace without what changes with every sample.
pub fn coarse(pace: &Pace) -> (u64, u64) {
    // The four leading bits: steps of about a tenth.
    let round = |number: u64| {
        let shift = (u64::BITS - number.leading_zeros()).saturating_sub(4);
        (number >> shift) << shift
    };
    let millis = u64::try_from(pace.task.as_millis()).unwrap_or(u64::MAX);
    (round(millis), round(pace.arrivals_milli))
}
