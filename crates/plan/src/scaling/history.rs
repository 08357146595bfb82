//! Patience and speed: what was recommended and what was done lately.

use std::time::Duration;

use jiff::Timestamp;
use umbel_api::workerpool::{Policy, PolicyKind, Select};

use super::{Decision, Limits, Patience, signed};

/// The longest period of a policy: the schema's bound.
const LONGEST_PERIOD: Duration = Duration::from_mins(30);

/// How fast a size may change in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Speed {
    policies: Vec<Policy>,
    select: Select,
}

impl Speed {
    /// As the object says it.
    pub fn new(policies: &[Policy], select: Select) -> Self {
        Self {
            policies: policies.to_vec(),
            select,
        }
    }
}

/// What was recommended lately, and how the size changed: memory of a leader, begun anew by the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Recommendations, each in force until the next one; never empty, oldest first.
    steps: Vec<(Timestamp, u32)>,
    /// Since when nothing is to do, without a gap in what is known.
    idle_since: Option<Timestamp>,
    /// The size that was seen last.
    size: u32,
    /// Changes of the size, oldest first.
    changes: Vec<Change>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    at: Timestamp,
    from: u32,
    to: u32,
}

impl History {
    /// Begins with the size that is set, so that a new leader does not shrink what the old one had reason to keep.
    pub fn begin(replicas: u32, now: Timestamp) -> Self {
        Self {
            steps: vec![(now, replicas)],
            idle_since: None,
            size: replicas,
            changes: Vec::new(),
        }
    }

    /// Takes in a change from before: the next leader is not faster than the policies allow.
    #[must_use]
    pub fn after(mut self, at: Timestamp, from: u32, to: u32) -> Self {
        self.changes.insert(0, Change { at, from, to });
        self
    }

    /// Takes the present size in.
    pub fn see(&mut self, replicas: u32, now: Timestamp) {
        if replicas != self.size {
            self.changes.push(Change {
                at: now,
                from: self.size,
                to: replicas,
            });
            self.size = replicas;
        }
        let oldest = now - signed(LONGEST_PERIOD);
        self.changes.retain(|change| change.at > oldest);
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

    /// Since when nothing is to do; now, if something is.
    pub(super) fn idle_since(&self, now: Timestamp) -> Timestamp {
        self.idle_since.unwrap_or(now)
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
    pub(super) fn stabilize(
        &self,
        wanted: u32,
        current: u32,
        patience: &Patience,
        now: Timestamp,
    ) -> (u32, Option<Timestamp>) {
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

    /// What the policies make of a change to `wanted`: the size that they allow and when they allow more; nothing where
    /// they allow it all.
    ///
    /// As the HPA counts: a policy allows so much beyond the size at the beginning of its period, whatever changed since.
    pub(super) fn slow(
        &self,
        limits: &Limits,
        wanted: u32,
        current: u32,
        now: Timestamp,
    ) -> Option<(u32, Option<Timestamp>)> {
        let grows = wanted > current;
        let speed = if grows { &limits.up } else { &limits.down };
        if wanted == current || (speed.policies.is_empty() && speed.select != Select::Disabled) {
            return None;
        }
        if speed.select == Select::Disabled {
            return Some((current, None));
        }
        let allowed = speed
            .policies
            .iter()
            .map(|policy| self.allowed(policy, current, grows, now));
        let widest = (speed.select == Select::Max) == grows;
        let allowed = if widest { allowed.max() } else { allowed.min() }?;
        // Changes of the other direction may have moved the beginning: never the wrong way from here.
        let allowed = if grows {
            allowed.max(current)
        } else {
            allowed.min(current)
        };
        let holds = if grows { allowed < wanted } else { allowed > wanted };
        let ends = speed.policies.iter().flat_map(|policy| {
            let period = signed(period(policy));
            self.changes.iter().map(move |change| change.at + period)
        });
        holds.then(|| (allowed, ends.filter(|end| *end > now).min()))
    }

    fn allowed(&self, policy: &Policy, current: u32, grows: bool, now: Timestamp) -> u32 {
        let since = now - signed(period(policy));
        let lately = || self.changes.iter().filter(|change| change.at > since);
        let added: u32 = lately().map(|change| change.to.saturating_sub(change.from)).sum();
        let removed: u32 = lately().map(|change| change.from.saturating_sub(change.to)).sum();
        let begin = current.saturating_add(removed).saturating_sub(added);
        let part = u64::from(begin) * u64::from(policy.value);
        let by = match (policy.kind, grows) {
            (PolicyKind::Pods, _) => policy.value,
            // Of nothing no percent ever comes: one pod at least.
            (PolicyKind::Percent, true) => u32::try_from(part.div_ceil(100)).unwrap_or(u32::MAX).max(1),
            (PolicyKind::Percent, false) => u32::try_from(part.div_ceil(100)).unwrap_or(u32::MAX),
        };
        if grows {
            begin.saturating_add(by)
        } else {
            begin.saturating_sub(by)
        }
    }
}

fn period(policy: &Policy) -> Duration {
    Duration::from_secs(u64::from(policy.period_seconds))
}
