//! A pool in a sentence: current, wanted, why, what holds it back, and what happens next.
//!
//! The condition `ScalingActive` carries it, and `umbel pool explain` prints it word by word.

use std::cmp::Ordering;
use std::fmt;

use crate::drain;
use crate::rollout::Rolling;
use crate::scaling::{Decision, Reason};

/// Everything that the sentence speaks of.
#[derive(Clone, Debug)]
pub struct Story<'a> {
    /// Pods that live.
    pub live: u32,
    /// Admitted and Ready ones.
    pub ready: u32,
    /// Those that hold a task.
    pub busy: u32,
    /// Those that take no more.
    pub draining: u32,
    /// The size decision.
    pub decision: &'a Decision,
    /// What a step down is about.
    pub turn: &'a drain::Reason,
    /// A template that replaces another.
    pub rollout: Option<&'a Rolling>,
    /// Whatever else keeps pods from coming or going, each in its own words.
    pub obstacles: Vec<String>,
}

impl fmt::Display for Story<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            live,
            ready,
            busy,
            draining,
            decision,
            turn: _,
            rollout,
            obstacles: _,
        } = self;
        let held = self.held();
        let held = if held.is_empty() {
            "nothing".to_owned()
        } else {
            held.join("; ")
        };
        write!(
            f,
            "{} ({ready} ready, {busy} busy, {draining} draining), {} wanted: {}. ",
            pods(*live),
            decision.replicas,
            decision.why(),
        )?;
        if let Some(rollout) = rollout {
            write!(f, "Rollout: {rollout}. ")?;
        }
        write!(f, "Held back by {held}. Next: {}.", self.next())
    }
}

impl Story<'_> {
    /// What keeps the pool from the size that is asked for, each in a few words.
    fn held(&self) -> Vec<String> {
        let Decision {
            replicas,
            reason,
            bound,
            ..
        } = self.decision;
        let bound = bound.as_ref().map(ToString::to_string);
        let by_reason = match reason {
            Reason::Stabilizing { until } => Some(format!("stabilization until {until:.0}")),
            Reason::CoolingDown { until } => Some(format!("cooldownToZero until {until:.0}")),
            Reason::BusyPods { busy } => Some(format!("{} with tasks", pods(*busy))),
            Reason::BelowActivation => Some("activationThreshold".to_owned()),
            Reason::Suspended
            | Reason::Manual
            | Reason::External
            | Reason::Paused
            | Reason::NoSample
            | Reason::Unreadable { .. }
            | Reason::Fallback { .. }
            | Reason::SampleTooOld { .. }
            | Reason::Demand
            | Reason::LessDemand
            | Reason::BelowMinimum
            | Reason::AboveMaximum
            | Reason::Limited { .. }
            | Reason::Steady => None,
        };
        let waits = self.turn.blocks() || matches!(self.turn, drain::Reason::Draining { .. });
        let by_step = (*replicas < self.live && waits).then(|| step(self.turn));
        let mut held: Vec<String> = bound.into_iter().chain(by_reason).chain(by_step).collect();
        for obstacle in &self.obstacles {
            if !held.contains(obstacle) {
                held.push(obstacle.clone());
            }
        }
        held
    }

    fn next(&self) -> String {
        if let Some(rollout) = self.rollout {
            return rollout.next().to_owned();
        }
        let (now, then) = (self.live, self.decision.replicas);
        match now.cmp(&then) {
            Ordering::Less => match then - now {
                1 => "1 pod more starts".to_owned(),
                more => format!("{more} pods more start"),
            },
            Ordering::Greater if self.turn.blocks() => "nothing, until what holds it back is gone".to_owned(),
            Ordering::Greater => match now - then {
                1 => "1 pod goes when it is idle".to_owned(),
                less => format!("{less} pods go, each when it is idle"),
            },
            Ordering::Equal => match &self.decision.reason {
                Reason::Stabilizing { until } => format!("another size at {until:.0}, if demand stays as it is"),
                Reason::CoolingDown { until } => format!("the last pods go at {until:.0}, if nothing comes"),
                Reason::Limited { until: Some(until) } => format!("another step at {until:.0}"),
                Reason::BusyPods { .. } => "fewer pods, as their tasks end".to_owned(),
                Reason::NoSample
                | Reason::Unreadable { .. }
                | Reason::Fallback { .. }
                | Reason::SampleTooOld { .. } => "the size stays until the broker answers".to_owned(),
                Reason::Suspended => "it stays at zero until suspend is taken back".to_owned(),
                Reason::Manual | Reason::External => "the size stays until spec.replicas changes".to_owned(),
                Reason::Paused => "the size stays until scaling.paused changes".to_owned(),
                Reason::Limited { until: None }
                | Reason::Demand
                | Reason::LessDemand
                | Reason::BelowMinimum
                | Reason::AboveMaximum
                | Reason::BelowActivation
                | Reason::Steady => "the size stays until demand changes".to_owned(),
            },
        }
    }
}

/// A step down's reason in words.
pub fn step(reason: &drain::Reason) -> String {
    use drain::Reason;
    match reason {
        Reason::Steady => "size and demand agree".into(),
        Reason::Demand => "more pods are wanted".into(),
        Reason::Started => "pods started".into(),
        Reason::NotProcessed => "the last size was not processed yet".into(),
        Reason::WantedAgain => "pods are wanted again".into(),
        Reason::Surplus => "fewer pods are wanted".into(),
        Reason::Draining { busy } => format!("waiting for the tasks of {}", busy.join(", ")),
        Reason::DrainOverdue { busy } => format!(
            "the tasks of {} run for longer than their queue's timeLimit; set scaling.down.drainWait to stop them",
            busy.join(", ")
        ),
        Reason::TimeOver => "pods that were to go still work, and their time is over".into(),
        Reason::Replacing => "waiting for replacements of the deleted pods".into(),
        Reason::Settling => "waiting until Deployment and ReplicaSet agree on the size".into(),
        Reason::Rollout => "a rollout of the Deployment is under way".into(),
        Reason::NotReady { pod } => format!("admitted pod {pod} is not Ready"),
        Reason::NoCandidate => "no pod can be chosen: those left are busy, silent or not Ready".into(),
        Reason::ReplacementRefused => {
            format!(
                "no replacement could be made within {} s",
                drain::REPLACEMENT_WAIT.as_secs()
            )
        }
        Reason::BrokerUnreachable => "the broker does not answer".into(),
    }
}

fn pods(count: u32) -> String {
    format!("{count} {}", if count == 1 { "pod" } else { "pods" })
}
