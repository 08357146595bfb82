//! How large a pool should be, and why.
//!
//! [`decide`] is a function of limits, the latest reading, the present scale, what was recommended before, and `now`. How
//! a smaller size is brought about without stopping a busy pod is the business of `drain`.
//!
//! Neighbours: `target` turns demand into a size, `history` holds patience and speed, `calendar` other bounds at certain
//! times, `pace` measures how fast work is done, and `words` says it all in a sentence.

pub mod calendar;
mod history;
pub mod pace;
mod target;
mod words;

use std::{iter::Sum, ops::Add, time::Duration};

use jiff::{SignedDuration, Timestamp};
use umbel_api::workerpool::{BrokerPolicy, Mode, Paused, Scaling, WorkerPoolSpec};

pub use history::{History, Speed};
pub use pace::Pace;
pub use target::{Aim, Basis};

/// A sample older than this says nothing about now: ten of the sampler's intervals, and well above a slow round trip.
pub const SAMPLE_MAX_AGE: Duration = Duration::from_secs(10);

/// What there is to do for a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Ready to be taken, suspects included.
    pub waiting: u64,
    /// Held by our workers.
    pub in_flight: u64,
    /// Parked and due within 30 s.
    pub due_soon: u64,
}

impl Demand {
    /// All of it.
    pub fn total(self) -> u64 {
        self.waiting
            .saturating_add(self.in_flight)
            .saturating_add(self.due_soon)
    }

    /// The part of a pool that brings `mine` of the `all` slots which the pools of the queue can have together.
    ///
    /// Rounded up: the parts may sum to more than the whole, never to less, so no message is nobody's.
    #[must_use]
    pub fn share(self, mine: u64, all: u64) -> Self {
        let part = |whole: u64| match all {
            0 => 0,
            all => u64::try_from((u128::from(whole) * u128::from(mine)).div_ceil(u128::from(all))).unwrap_or(u64::MAX),
        };
        Self {
            waiting: part(self.waiting),
            in_flight: part(self.in_flight),
            due_soon: part(self.due_soon),
        }
    }
}

impl Add for Demand {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            waiting: self.waiting.saturating_add(other.waiting),
            in_flight: self.in_flight.saturating_add(other.in_flight),
            due_soon: self.due_soon.saturating_add(other.due_soon),
        }
    }
}

impl Sum for Demand {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), Add::add)
    }
}

/// What a user set for a pool's size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Who says the size.
    pub source: Source,
    /// Which changes are held.
    pub paused: Paused,
    /// The smallest size.
    pub min: u32,
    /// The largest size.
    pub max: u32,
    /// The schedule that set the smallest size, if one did.
    pub min_by: Option<String>,
    /// The schedule that set the largest size, if one did.
    pub max_by: Option<String>,
    /// Slots of a pod.
    pub concurrency: u32,
    /// What the size aims at.
    pub aim: Aim,
    /// Slots that stay free beyond demand.
    pub min_idle_slots: u32,
    /// A pool of size zero starts when demand is larger than this.
    pub activation_threshold: u32,
    /// How patient it is.
    pub patience: Patience,
    /// How fast it may grow.
    pub up: Speed,
    /// How fast it may shrink.
    pub down: Speed,
    /// The size that it has at least while the broker can't be asked.
    pub fallback: Option<u32>,
    /// A sample older than this says nothing about now.
    pub sample_max_age: Duration,
}

/// Who says a pool's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Demand does.
    Demand,
    /// `spec.replicas` does, whatever the bounds.
    Manual(u32),
    /// `spec.replicas` does, within the bounds: another scaler writes it.
    External(u32),
    /// Nobody: the pool is suspended.
    Suspended,
}

/// How long a recommendation must hold before it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Before the fleet grows.
    pub up: Duration,
    /// Before it shrinks.
    pub down: Duration,
    /// Without any demand, before the last pods go.
    pub to_zero: Duration,
}

impl From<&WorkerPoolSpec> for Limits {
    fn from(spec: &WorkerPoolSpec) -> Self {
        let Scaling {
            mode,
            min_replicas,
            max_replicas,
            min_idle_slots,
            activation_threshold,
            interval,
            target,
            up,
            down,
            schedules: _,
            on_broker_error,
            paused,
        } = &spec.scaling;
        Self {
            source: match mode {
                _ if spec.suspend => Source::Suspended,
                Mode::Auto => Source::Demand,
                Mode::Manual => Source::Manual(spec.replicas),
                Mode::External => Source::External(spec.replicas),
            },
            paused: *paused,
            min: *min_replicas,
            max: *max_replicas,
            min_by: None,
            max_by: None,
            concurrency: spec.concurrency,
            aim: Aim::from(target),
            min_idle_slots: *min_idle_slots,
            activation_threshold: *activation_threshold,
            patience: Patience {
                up: up.stabilization.get(),
                down: down.stabilization.get(),
                to_zero: down.cooldown_to_zero.get(),
            },
            up: Speed::new(&up.policies, up.select_policy),
            down: Speed::new(&down.policies, down.select_policy),
            fallback: match on_broker_error.policy {
                BrokerPolicy::Hold => None,
                BrokerPolicy::Fallback => on_broker_error.replicas,
            },
            sample_max_age: SAMPLE_MAX_AGE.max(interval.map_or(Duration::ZERO, |interval| interval.get() * 3)),
        }
    }
}

/// What is known of the demand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// No sample was taken yet.
    None,
    /// The latest sample, and when it came, by the clock that `now` is from.
    Sample {
        /// When it came.
        at: Timestamp,
        /// What it says.
        demand: Demand,
        /// How fast work is done and comes, once that was measured.
        pace: Option<Pace>,
    },
    /// The latest attempt failed. An outage is not an empty queue.
    Unreadable {
        /// Why, in a few words.
        why: String,
    },
}

/// The pool as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// The size that is set.
    pub replicas: u32,
    /// Pods that hold a task.
    pub busy: u32,
}

/// How large the pool should be, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The size to bring about.
    pub replicas: u32,
    /// The size that demand asks for, before bounds and patience; the present size where demand is unknown.
    pub recommended: u32,
    /// The size it was decided on.
    pub from: u32,
    /// The demand, where it is known.
    pub demand: Option<Demand>,
    /// What demand was held against.
    pub basis: Basis,
    /// The bound that demand or patience met.
    pub bound: Option<Bound>,
    /// Why.
    pub reason: Reason,
}

/// A bound of the size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// `minReplicas`.
    Minimum(u32),
    /// `maxReplicas`.
    Maximum(u32),
    /// `minReplicas` of the schedule of that name.
    ScheduledMinimum(String, u32),
    /// `maxReplicas` of the schedule of that name.
    ScheduledMaximum(String, u32),
    /// `up.policies`: it may grow to this now.
    Growth(u32),
    /// `down.policies`: it may shrink to this now.
    Shrinkage(u32),
    /// `paused`.
    Paused(Paused),
}

impl Bound {
    /// The word for a condition's reason.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Minimum(_) => "AtMinimum",
            Self::Maximum(_) => "AtMaximum",
            Self::ScheduledMinimum(..) => "AtScheduledMinimum",
            Self::ScheduledMaximum(..) => "AtScheduledMaximum",
            Self::Growth(_) => "ScaleUpLimit",
            Self::Shrinkage(_) => "ScaleDownLimit",
            Self::Paused(_) => "Paused",
        }
    }
}

/// Why a pool has the size it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `spec.suspend` is set.
    Suspended,
    /// `spec.replicas` says so.
    Manual,
    /// `spec.replicas` says so, which another scaler writes.
    External,
    /// A change is wanted, but `paused` holds it; or it holds all.
    Paused,
    /// Nothing was sampled yet.
    NoSample,
    /// The broker could not be asked.
    Unreadable {
        /// Why, in a few words.
        why: String,
    },
    /// The broker could not be asked, and the pool has the size for that.
    Fallback {
        /// Why it could not, in a few words.
        why: String,
    },
    /// The latest sample is too old.
    SampleTooOld {
        /// Its age in seconds.
        seconds: i64,
    },
    /// Demand asks for more.
    Demand,
    /// Demand asks for less, for long enough.
    LessDemand,
    /// The pool is smaller than its bound.
    BelowMinimum,
    /// The pool is larger than its bound.
    AboveMaximum,
    /// Another size is wanted, but not for long enough.
    Stabilizing {
        /// When it counts at the earliest.
        until: Timestamp,
    },
    /// Another size is wanted, but the policies allow no change now.
    Limited {
        /// When they may; never, if they are disabled.
        until: Option<Timestamp>,
    },
    /// Nothing is to do, but not for long enough to let the last pods go.
    CoolingDown {
        /// When they may go at the earliest.
        until: Timestamp,
    },
    /// Fewer are wanted, but so many hold a task.
    BusyPods {
        /// How many.
        busy: u32,
    },
    /// There is something to do, but too little to start the pool.
    BelowActivation,
    /// The size is what demand asks for.
    Steady,
}

impl Reason {
    /// The word for a condition's or an Event's reason and for a metric's label.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Suspended => "Suspended",
            Self::Manual => "Manual",
            Self::External => "External",
            Self::Paused => "Paused",
            Self::NoSample => "NoSample",
            Self::Unreadable { .. } => "BrokerUnreadable",
            Self::Fallback { .. } => "Fallback",
            Self::SampleTooOld { .. } => "SampleTooOld",
            Self::Demand => "Demand",
            Self::LessDemand => "LessDemand",
            Self::BelowMinimum => "BelowMinimum",
            Self::AboveMaximum => "AboveMaximum",
            Self::Stabilizing { .. } => "Stabilizing",
            Self::Limited { .. } => "Limited",
            Self::CoolingDown { .. } => "CoolingDown",
            Self::BusyPods { .. } => "BusyPods",
            Self::BelowActivation => "BelowActivation",
            Self::Steady => "Steady",
        }
    }

    /// Whether demand is known; where it is not, the size is held.
    pub const fn is_informed(&self) -> bool {
        !matches!(
            self,
            Self::NoSample | Self::Unreadable { .. } | Self::Fallback { .. } | Self::SampleTooOld { .. }
        )
    }

    /// Whether the size follows something now: demand, a person or another scaler.
    pub const fn is_active(&self) -> bool {
        self.is_informed() && !matches!(self, Self::Suspended | Self::Paused)
    }

    /// When time alone can change the decision.
    pub const fn until(&self) -> Option<Timestamp> {
        match self {
            Self::Stabilizing { until } | Self::CoolingDown { until } => Some(*until),
            Self::Limited { until } => *until,
            _ => None,
        }
    }
}

/// What the pool should run next, and why.
///
/// # Guarantees
/// Unless manual, suspended or paused, the result lies within the limits. Without a fresh sample nothing else makes the
/// size smaller. Called again with its own answer as `scale`, at the same `now` and with that size [seen](History::see),
/// it answers the same size. Demand never takes the size below the number of busy pods; a bound may, and then the drain
/// waits for them.
pub fn decide(limits: &Limits, reading: &Reading, scale: Scale, history: &History, now: Timestamp) -> Decision {
    let decision = freely(limits, reading, scale, history, now);
    let holds = match limits.paused {
        _ if limits.source == Source::Suspended => false,
        Paused::None => false,
        Paused::All => true,
        Paused::In => decision.replicas < scale.replicas,
        Paused::Out => decision.replicas > scale.replicas,
    };
    if !holds {
        return decision;
    }
    let changes = decision.replicas != scale.replicas;
    Decision {
        replicas: scale.replicas,
        bound: if changes {
            Some(Bound::Paused(limits.paused))
        } else {
            decision.bound
        },
        reason: if decision.reason.is_informed() || changes {
            Reason::Paused
        } else {
            decision.reason
        },
        ..decision
    }
}

/// The decision as if nothing were paused.
fn freely(limits: &Limits, reading: &Reading, scale: Scale, history: &History, now: Timestamp) -> Decision {
    let Scale {
        replicas: current,
        busy,
    } = scale;
    let proposal = |wanted: u32, recommended: u32, reason: Reason| Decision {
        replicas: wanted,
        recommended,
        from: current,
        demand: match reading {
            Reading::Sample { demand, .. } => Some(*demand),
            Reading::None | Reading::Unreadable { .. } => None,
        },
        basis: Basis::Slots,
        bound: None,
        reason,
    };
    let unknown = |wanted: u32, reason: Reason| {
        let held = Decision {
            demand: None,
            ..proposal(wanted, wanted, reason)
        };
        bounded(limits, held)
    };
    match limits.source {
        Source::Suspended => return proposal(0, 0, Reason::Suspended),
        Source::Manual(replicas) => return proposal(replicas, replicas, Reason::Manual),
        Source::External(replicas) => return bounded(limits, proposal(replicas, replicas, Reason::External)),
        Source::Demand => {}
    }
    let (demand, pace) = match reading {
        Reading::None => return unknown(current, Reason::NoSample),
        Reading::Unreadable { why } => {
            let why = why.clone();
            return match limits.fallback {
                // An outage is not an empty queue: it never makes the pool smaller.
                Some(replicas) if replicas >= current => unknown(replicas, Reason::Fallback { why }),
                _ => unknown(current, Reason::Unreadable { why }),
            };
        }
        Reading::Sample { at, demand, pace } => {
            let age = now.duration_since(*at);
            if age > signed(limits.sample_max_age) {
                return unknown(current, Reason::SampleTooOld { seconds: age.as_secs() });
            }
            (*demand, *pace)
        }
    };
    let (recommended, basis) = target::recommend(limits, demand, pace);
    let proposal = |wanted: u32, bound: Option<Bound>, reason: Reason| Decision {
        basis,
        bound,
        ..proposal(wanted, recommended, reason)
    };
    // A pool that keeps slots free never sleeps.
    let sleeps = current == 0 && limits.min_idle_slots == 0;
    if sleeps && demand.total() > 0 && demand.total() <= u64::from(limits.activation_threshold) {
        return bounded(limits, proposal(0, None, Reason::BelowActivation));
    }
    let (mut wanted, until) = if recommended == current {
        (current, None)
    } else {
        history.stabilize(recommended, current, &limits.patience, now)
    };
    let mut reason = match until {
        Some(until) if wanted == current => Reason::Stabilizing { until },
        _ if wanted > current => Reason::Demand,
        _ if wanted < current => Reason::LessDemand,
        _ => Reason::Steady,
    };
    let mut bound = None;
    // The policies speak of changes that demand asks for; a bound that is not kept is repaired at once.
    let within = wanted.clamp(limits.min.min(limits.max), limits.max);
    if let Some((allowed, until)) = history.slow(limits, within, current, now) {
        wanted = allowed;
        bound = Some(if within > current {
            Bound::Growth(allowed)
        } else {
            Bound::Shrinkage(allowed)
        });
        if allowed == current {
            reason = Reason::Limited { until };
        }
    }
    if wanted == 0 && current > 0 {
        let until = history.idle_since(now) + signed(limits.patience.to_zero);
        if now < until {
            wanted = 1;
            reason = Reason::CoolingDown { until };
        }
    }
    if wanted < busy.min(current) {
        wanted = busy.min(current);
        reason = Reason::BusyPods { busy };
    }
    bounded(limits, proposal(wanted, bound, reason))
}

/// The proposal within the bounds.
fn bounded(limits: &Limits, proposal: Decision) -> Decision {
    // The schema refuses min > max; should it happen, the smaller one holds.
    let max = limits.max;
    let min = limits.min.min(max);
    let Decision {
        replicas: wanted,
        recommended,
        from,
        ..
    } = proposal;
    let replicas = wanted.clamp(min, max);
    let highest = || match &limits.max_by {
        Some(schedule) => Bound::ScheduledMaximum(schedule.clone(), max),
        None => Bound::Maximum(max),
    };
    let lowest = || match &limits.min_by {
        Some(schedule) => Bound::ScheduledMinimum(schedule.clone(), min),
        None => Bound::Minimum(min),
    };
    let bound = match () {
        () if proposal.bound.is_some() && replicas == wanted => proposal.bound,
        () if recommended > max || wanted > max => Some(highest()),
        () if recommended < min || wanted < min => Some(lowest()),
        () => None,
    };
    let reason = match () {
        () if replicas == wanted => proposal.reason,
        () if matches!(proposal.reason, Reason::External) => proposal.reason,
        () if from < min => Reason::BelowMinimum,
        () if from > max => Reason::AboveMaximum,
        // The bound answered, not patience: nothing is waited for.
        () if replicas == from && proposal.reason.is_informed() => Reason::Steady,
        () => proposal.reason,
    };
    Decision {
        replicas,
        bound,
        reason,
        ..proposal
    }
}

pub(crate) fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}
