//! A decision in a sentence.

use std::fmt;

use umbel_api::Span;

use super::{Basis, Bound, Decision, Demand, Pace, Reason};

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} waiting, {} in flight, {} due soon",
            self.waiting, self.in_flight, self.due_soon
        )
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { task, arrivals_milli } = self;
        let seconds = task.as_secs_f64();
        let places = if seconds < 10.0 { 2 } else { 0 };
        write!(f, "{seconds:.places$} s a task")?;
        write!(
            f,
            " and {}.{:02} new ones a second",
            arrivals_milli / 1000,
            arrivals_milli % 1000 / 10
        )
    }
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slots => Ok(()),
            Self::Backlog(each) => write!(f, ", one for each {each} that wait"),
            Self::DrainTime(within, pace) => write!(f, " to be done within {}, at {pace}", Span::from(*within)),
            Self::Latency(within, pace) => write!(f, " to start within {}, at {pace}", Span::from(*within)),
            Self::NoPace(target) => write!(f, " by Utilization, because no rate was measured yet for {target}"),
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Maximum(max) => write!(f, "maxReplicas is {max}"),
            Self::Minimum(min) => write!(f, "minReplicas is {min}"),
            Self::ScheduledMaximum(schedule, max) => write!(f, "maxReplicas of schedule {schedule} is {max}"),
            Self::ScheduledMinimum(schedule, min) => write!(f, "minReplicas of schedule {schedule} is {min}"),
            Self::Growth(to) => write!(f, "up.policies allow {to} now"),
            Self::Shrinkage(to) => write!(f, "down.policies allow {to} now"),
            Self::Paused(paused) => write!(f, "scaling.paused is {paused:?}"),
        }
    }
}

impl Decision {
    /// Why, without the sizes: for where these are said already.
    pub fn why(&self) -> impl fmt::Display + '_ {
        Why(self)
    }
}

/// The sizes and why.
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
            basis,
            bound,
            reason,
        } = self.0;
        let asked = format_args!("demand asks for {recommended}{basis}");
        match reason {
            Reason::Suspended => f.write_str("the pool is suspended")?,
            Reason::Manual => f.write_str("spec.replicas says so")?,
            Reason::External => write!(f, "spec.replicas, which another scaler writes, is {recommended}")?,
            Reason::Paused if demand.is_some() => write!(f, "scaling is paused; {asked}")?,
            Reason::Paused => f.write_str("scaling is paused")?,
            Reason::NoSample => f.write_str("the queues were not sampled yet")?,
            Reason::Unreadable { why } => write!(
                f,
                "the broker can't be asked ({why}), and an outage is not an empty queue"
            )?,
            Reason::Fallback { why } => write!(
                f,
                "the broker can't be asked ({why}); onBrokerError asks for at least {recommended} meanwhile"
            )?,
            Reason::SampleTooOld { seconds } => write!(f, "the latest sample is {seconds} s old")?,
            Reason::Demand if bound.is_none() && replicas < recommended => {
                write!(f, "{asked}, and for at least {replicas} for long enough")?;
            }
            Reason::Demand | Reason::Steady => write!(f, "{asked}")?,
            Reason::LessDemand if bound.is_none() && replicas > recommended => {
                write!(f, "{asked}, and for no more than {replicas} for long enough")?;
            }
            Reason::LessDemand => write!(f, "{asked}, and for no more for long enough")?,
            Reason::BelowMinimum => f.write_str("it was below minReplicas")?,
            Reason::AboveMaximum => f.write_str("it was above maxReplicas")?,
            Reason::Stabilizing { until } => write!(f, "{asked}, which counts from {until:.0} on if it lasts")?,
            Reason::Limited { until: Some(until) } => write!(f, "{asked}; the next step may be at {until:.0}")?,
            Reason::Limited { until: None } => write!(f, "{asked}, and no step is allowed in that direction")?,
            Reason::CoolingDown { until } => {
                write!(f, "nothing is to do; the last pods go at {until:.0} if that lasts")?;
            }
            Reason::BusyPods { busy } => write!(f, "{asked}, but {busy} pods hold a task")?,
            Reason::BelowActivation => f.write_str("demand is not above activationThreshold")?,
        }
        if let Some(demand) = demand {
            write!(f, " ({demand})")?;
        }
        match bound {
            Some(bound) => write!(f, "; {bound}"),
            None => Ok(()),
        }
    }
}
