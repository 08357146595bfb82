//! How large a pool should be, and why.
//!
//! [`decide`] is a function of limits, the latest reading, the present scale, what was recommended before, and `now`. How
//! a smaller size is brought about without stopping a busy pod is the business of `drain`.

use std::{fmt, iter::Sum, ops::Add, time::Duration};

use jiff::{SignedDuration, Timestamp};
use umbel_api::workerpool::{Mode, WorkerPoolSpec};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `Some`: this size, whatever the demand.
    pub manual: Option<u32>,
    /// The smallest size.
    pub min: u32,
    /// The largest size.
    pub max: u32,
    /// Slots of a pod.
    pub concurrency: u32,
    /// Percent of the slots that should be in use.
    pub utilization: u32,
    /// Slots that stay free beyond demand.
    pub min_idle_slots: u32,
    /// A pool of size zero starts when demand is larger than this.
    pub activation_threshold: u32,
    /// How patient it is.
    pub patience: Patience,
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
        let scaling = &spec.scaling;
        Self {
            manual: match scaling.mode {
                Mode::Auto => None,
                Mode::Manual => Some(spec.replicas),
            },
            min: scaling.min_replicas,
            max: scaling.max_replicas,
            concurrency: spec.concurrency,
            utilization: scaling.target.value,
            min_idle_slots: scaling.min_idle_slots,
            activation_threshold: scaling.activation_threshold,
            patience: Patience {
                up: scaling.up.stabilization.get(),
                down: scaling.down.stabilization.get(),
                to_zero: scaling.down.cooldown_to_zero.get(),
            },
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
    /// The bound that demand or patience met.
    pub bound: Option<Bound>,
    /// Why.
    pub reason: Reason,
}

/// A bound of the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// `minReplicas`.
    Minimum(u32),
    /// `maxReplicas`.
    Maximum(u32),
}

/// Why a pool has the size it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `spec.replicas` says so.
    Manual,
    /// Nothing was sampled yet.
    NoSample,
    /// The broker could not be asked.
    Unreadable {
        /// Why, in a few words.
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
            Self::Manual => "Manual",
            Self::NoSample => "NoSample",
            Self::Unreadable { .. } => "BrokerUnreadable",
            Self::SampleTooOld { .. } => "SampleTooOld",
            Self::Demand => "Demand",
            Self::LessDemand => "LessDemand",
            Self::BelowMinimum => "BelowMinimum",
            Self::AboveMaximum => "AboveMaximum",
            Self::Stabilizing { .. } => "Stabilizing",
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
            Self::NoSample | Self::Unreadable { .. } | Self::SampleTooOld { .. }
        )
    }

    /// When time alone can change the decision.
    pub const fn until(&self) -> Option<Timestamp> {
        match self {
            Self::Stabilizing { until } | Self::CoolingDown { until } => Some(*until),
            _ => None,
        }
    }
}

/// What was recommended lately: memory of a leader, begun anew by the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Recommendations, each in force until the next one; never empty, oldest first.
    steps: Vec<(Timestamp, u32)>,
    /// Since when nothing is to do, without a gap in what is known.
    idle_since: Option<Timestamp>,
}

impl History {
    /// Begins with the size that is set, so that a new leader does not shrink what the old one had reason to keep.
    pub fn begin(replicas: u32, now: Timestamp) -> Self {
        Self {
            steps: vec![(now, replicas)],
            idle_since: None,
        }
    }

    /// Takes a decision in. An uninformed one counts as a recommendation to stay.
    pub fn note(&mut self, decision: &Decision, patience: &Patience, now: Timestamp) {
        let idle = decision.reason.is_informed() && decision.demand.is_some_and(|demand| demand.total() == 0);
        self.idle_since = idle.then(|| self.idle_since.unwrap_or(now));
        if self
            .steps
            .last()
            .is_none_or(|&(_, replicas)| replicas != decision.recommended)
        {
            self.steps.push((now, decision.recommended));
        }
        let oldest = now - signed(patience.up.max(patience.down));
        // A step ends where the next begins.
        let ended = self.steps.windows(2).take_while(|pair| pair[1].0 <= oldest).count();
        self.steps.drain(..ended);
    }

    /// Recommendations in force within the window, with their ends (`None`: in force still).
    fn within(&self, window: Duration, now: Timestamp) -> impl Iterator<Item = (u32, Option<Timestamp>)> {
        let oldest = now - signed(window);
        let ends = self.steps.iter().skip(1).map(|&(at, _)| Some(at)).chain([None]);
        self.steps
            .iter()
            .zip(ends)
            .map(|(&(_, replicas), end)| (replicas, end))
            .filter(move |(_, end)| end.is_none_or(|end| end > oldest))
    }

    /// The size after patience, and until when patience keeps it from `wanted`.
    fn stabilize(&self, wanted: u32, current: u32, patience: &Patience, now: Timestamp) -> (u32, Option<Timestamp>) {
        let grows = wanted > current;
        let window = if grows { patience.up } else { patience.down };
        let against = |replicas: u32| if grows { replicas < wanted } else { replicas > wanted };
        let mut stabilized = wanted;
        let mut until = None;
        for (replicas, end) in self.within(window, now).filter(|&(replicas, _)| against(replicas)) {
            stabilized = if grows {
                stabilized.min(replicas)
            } else {
                stabilized.max(replicas)
            };
            // What is in force still ends now at the earliest: `wanted` is about to follow it.
            until = until.max(Some(end.unwrap_or(now) + signed(window)));
        }
        if window.is_zero() {
            return (wanted, None);
        }
        let stabilized = if grows {
            stabilized.max(current)
        } else {
            stabilized.min(current)
        };
        (stabilized, until.filter(|_| stabilized != wanted))
    }
}

/// What the pool should run next, and why.
///
/// # Guarantees
/// Unless `manual`, the result lies within the limits. Without a fresh sample nothing else changes the size. Called again
/// with its own answer as `scale`, at the same `now`, it answers the same size. Demand never takes the size below the
/// number of busy pods; a bound may, and then the drain waits for them.
pub fn decide(limits: &Limits, reading: &Reading, scale: Scale, history: &History, now: Timestamp) -> Decision {
    let Scale {
        replicas: current,
        busy,
    } = scale;
    let held = |reason: Reason| bounded(limits, current, current, current, None, reason);
    if let Some(replicas) = limits.manual {
        let demand = match reading {
            Reading::Sample { demand, .. } => Some(*demand),
            Reading::None | Reading::Unreadable { .. } => None,
        };
        return Decision {
            replicas,
            recommended: replicas,
            from: current,
            demand,
            bound: None,
            reason: Reason::Manual,
        };
    }
    let demand = match reading {
        Reading::None => return held(Reason::NoSample),
        Reading::Unreadable { why } => return held(Reason::Unreadable { why: why.clone() }),
        Reading::Sample { at, demand } => {
            let age = now.duration_since(*at);
            if age > signed(SAMPLE_MAX_AGE) {
                return held(Reason::SampleTooOld { seconds: age.as_secs() });
            }
            *demand
        }
    };
    let recommended = recommend(limits, demand);
    if current == 0 && recommended > 0 && demand.total() > 0 && demand.total() <= u64::from(limits.activation_threshold)
    {
        return bounded(limits, 0, 0, current, Some(demand), Reason::BelowActivation);
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
    if wanted == 0 && current > 0 {
        let until = history.idle_since.unwrap_or(now) + signed(limits.patience.to_zero);
        if now < until {
            wanted = 1;
            reason = Reason::CoolingDown { until };
        }
    }
    if wanted < busy.min(current) {
        wanted = busy.min(current);
        reason = Reason::BusyPods { busy };
    }
    bounded(limits, wanted, recommended, current, Some(demand), reason)
}

/// The size at which the given part of the slots is in use, and the free slots asked for are free.
fn recommend(limits: &Limits, demand: Demand) -> u32 {
    let slots = u128::from(limits.concurrency.max(1));
    let total = u128::from(demand.total());
    let by_utilization = (total * 100).div_ceil(slots * u128::from(limits.utilization.clamp(1, 100)));
    let by_idle_slots = (total + u128::from(limits.min_idle_slots)).div_ceil(slots);
    u32::try_from(by_utilization.max(by_idle_slots)).unwrap_or(u32::MAX)
}

fn bounded(
    limits: &Limits,
    wanted: u32,
    recommended: u32,
    from: u32,
    demand: Option<Demand>,
    reason: Reason,
) -> Decision {
    // The schema refuses min > max; should it happen, the smaller one holds.
    let max = limits.max;
    let min = limits.min.min(max);
    let replicas = wanted.clamp(min, max);
    let bound = match () {
        () if recommended > max || wanted > max => Some(Bound::Maximum(max)),
        () if recommended < min || wanted < min => Some(Bound::Minimum(min)),
        () => None,
    };
    let reason = match () {
        () if replicas == wanted => reason,
        () if from < min => Reason::BelowMinimum,
        () if from > max => Reason::AboveMaximum,
        // The bound answered, not patience: nothing is waited for.
        () if replicas == from && reason.is_informed() => Reason::Steady,
        () => reason,
    };
    Decision {
        replicas,
        recommended,
        from,
        demand,
        bound,
        reason,
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} waiting, {} in flight, {} due soon",
            self.waiting, self.in_flight, self.due_soon
        )
    }
}

impl Decision {
    /// Why, without the sizes: for where these are said already.
    pub fn why(&self) -> impl fmt::Display + '_ {
        Why(self)
    }
}

/// The sentence for a condition and `umbel pool explain`.
impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { replicas, from, .. } = self;
        if replicas == from {
            write!(f, "stays at {replicas}: {}", self.why())
        } else {
            write!(f, "{from} to {replicas}: {}", self.why())
        }
    }
}

struct Why<'a>(&'a Decision);

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Decision {
            replicas,
            recommended,
            from: _,
            demand,
            bound,
            reason,
        } = self.0;
        match reason {
            Reason::Manual => f.write_str("spec.replicas says so")?,
            Reason::NoSample => f.write_str("the queues were not sampled yet")?,
            Reason::Unreadable { why } => write!(
                f,
                "the broker can't be asked ({why}), and an outage is not an empty queue"
            )?,
            Reason::SampleTooOld { seconds } => write!(f, "the latest sample is {seconds} s old")?,
            Reason::Demand if bound.is_none() && replicas < recommended => {
                write!(
                    f,
                    "demand asks for {recommended}, and for at least {replicas} for long enough"
                )?;
            }
            Reason::Demand | Reason::Steady => write!(f, "demand asks for {recommended}")?,
            Reason::LessDemand if bound.is_none() && replicas > recommended => {
                write!(
                    f,
                    "demand asks for {recommended}, and for no more than {replicas} for long enough"
                )?;
            }
            Reason::LessDemand => write!(f, "demand asks for {recommended}, and for no more for long enough")?,
            Reason::BelowMinimum => f.write_str("it was below minReplicas")?,
            Reason::AboveMaximum => f.write_str("it was above maxReplicas")?,
            Reason::Stabilizing { until } => write!(
                f,
                "demand asks for {recommended}, which counts from {until:.0} on if it lasts"
            )?,
            Reason::CoolingDown { until } => {
                write!(f, "nothing is to do; the last pods go at {until:.0} if that lasts")?;
            }
            Reason::BusyPods { busy } => write!(f, "demand asks for {recommended}, but {busy} pods hold a task")?,
            Reason::BelowActivation => f.write_str("demand is not above activationThreshold")?,
        }
        if let Some(demand) = demand {
            write!(f, " ({demand})")?;
        }
        match bound {
            Some(Bound::Maximum(max)) => write!(f, "; maxReplicas is {max}"),
            Some(Bound::Minimum(min)) => write!(f, "; minReplicas is {min}"),
            None => Ok(()),
        }
    }
}
