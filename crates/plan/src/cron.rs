//! When a schedule's slots are.
//!
//! A [`Timetable`] is a schedule that was understood: `cron` in a zone, `every`, or `at`, within `startTime` and `endTime`
//! and never before the object existed. Slots are instants in whole seconds.
//!
//! Clock changes: a time of day that is skipped fires at the first valid time after the gap, one that is repeated fires
//! at its first pass; patterns that run every hour or oftener follow elapsed time through both.

use std::sync::Arc;

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use umbel_api::{PeriodicTaskSpec, periodictask::Schedule};

/// A schedule that was understood.
#[derive(Clone, Debug)]
pub struct Timetable {
    rule: Rule,
    /// Slots are after this.
    after: Timestamp,
    /// Slots are not after this.
    end: Timestamp,
}

#[derive(Clone, Debug)]
enum Rule {
    Cron(Arc<Cron>, TimeZone),
    Every { anchor: Timestamp, step: i64 },
    At(Timestamp),
}

/// Why a schedule can't be understood. Its words go into a condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleFault {
    /// The cron text is none.
    #[error("spec.schedule.cron {text:?} can't be read: {why}")]
    Cron {
        /// What was given.
        text: String,
        /// What the parser says.
        why: String,
    },
    /// The cron text never comes true.
    #[error("spec.schedule.cron {text:?} names no time that ever comes")]
    Never {
        /// What was given.
        text: String,
    },
    /// The zone is not in the time zone database.
    #[error("spec.timeZone {name:?} is not a time zone")]
    Zone {
        /// What was given.
        name: String,
    },
    /// The distance is no whole number of seconds, or none.
    #[error("spec.schedule.every must be at least 1s and whole seconds")]
    Every,
    /// None or several of the three were given.
    #[error("spec.schedule must have exactly one of cron, every and at")]
    Kinds,
}

impl ScheduleFault {
    /// The word for a condition's reason.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Cron { .. } | Self::Never { .. } => "BadCron",
            Self::Zone { .. } => "BadTimeZone",
            Self::Every | Self::Kinds => "BadSchedule",
        }
    }
}

impl Timetable {
    /// Understands the schedule of an object that exists since `created`.
    ///
    /// # Errors
    /// What the API server could not check, or an object from before it checked.
    pub fn of(spec: &PeriodicTaskSpec, created: Timestamp) -> Result<Self, ScheduleFault> {
        let created = whole(created);
        let start = spec.start_time.as_ref().map(|start| start.0);
        let end = spec.end_time.as_ref().map_or(Timestamp::MAX, |end| end.0);
        // A slot at `startTime` itself counts.
        let after = start.map_or(created, |start| created.max(before(start)));
        let zone = TimeZone::get(&spec.time_zone).map_err(|_| ScheduleFault::Zone {
            name: spec.time_zone.clone(),
        })?;
        let rule = match &spec.schedule {
            Schedule {
                cron: Some(text),
                every: None,
                at: None,
            } => Rule::Cron(Arc::new(parse(text)?), zone),
            Schedule {
                cron: None,
                every: Some(every),
                at: None,
            } => {
                let step = i64::try_from(every.get().as_secs()).map_err(|_| ScheduleFault::Every)?;
                if step < 1 || every.get().subsec_nanos() != 0 {
                    return Err(ScheduleFault::Every);
                }
                Rule::Every {
                    anchor: whole(start.unwrap_or(created)),
                    step,
                }
            }
            Schedule {
                cron: None,
                every: None,
                at: Some(at),
            } => Rule::At(whole(at.0)),
            Schedule { .. } => return Err(ScheduleFault::Kinds),
        };
        let timetable = Self { rule, after, end };
        match (&timetable.rule, &spec.schedule.cron) {
            (Rule::Cron(..), Some(text)) if timetable.unbounded(created).is_none() => {
                Err(ScheduleFault::Never { text: text.clone() })
            }
            _ => Ok(timetable),
        }
    }

    /// The first slot after `after`.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        self.unbounded(after.max(self.after)).filter(|slot| *slot <= self.end)
    }

    /// The slots after `after` and not after `until`, oldest first, at most `limit`.
    pub fn between(&self, after: Timestamp, until: Timestamp, limit: usize) -> Vec<Timestamp> {
        let first = self.next_after(after);
        std::iter::successors(first, |slot| self.next_after(*slot))
            .take_while(|slot| *slot <= until)
            .take(limit)
            .collect()
    }

    /// How many slots are after `after` and not after `until`; at most `limit`, which bounds the work.
    pub fn count(&self, after: Timestamp, until: Timestamp, limit: u64) -> u64 {
        let Rule::Every { anchor, step } = &self.rule else {
            return self
                .between(after, until, usize::try_from(limit).unwrap_or(usize::MAX))
                .len() as u64;
        };
        let index = |at: Timestamp| at.as_second().saturating_sub(anchor.as_second()).div_euclid(*step);
        let (from, to) = (index(after.max(self.after)).max(-1), index(until.min(self.end)));
        u64::try_from(to - from).unwrap_or(0).min(limit)
    }

    /// The last slot after `after` and not after `until`.
    pub fn latest(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        if let Rule::Every { anchor, step } = &self.rule {
            let until = until.min(self.end);
            let elapsed = until.as_second().checked_sub(anchor.as_second())?;
            let slot = Timestamp::from_second(anchor.as_second() + elapsed.div_euclid(*step) * step).ok()?;
            return Some(slot).filter(|slot| *slot > after.max(self.after));
        }
        // Forward from ever further back: a search backward would judge clock changes by other rules.
        [
            SignedDuration::from_hours(1),
            SignedDuration::from_hours(48),
            SignedDuration::from_hours(24 * 62),
            SignedDuration::MAX,
        ]
        .into_iter()
        .find_map(|back| {
            let from = until.checked_sub(back).unwrap_or(Timestamp::MIN).max(after);
            std::iter::successors(self.next_after(from), |slot| self.next_after(*slot))
                .take_while(|slot| *slot <= until)
                .last()
        })
    }

    fn unbounded(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.rule {
            // Slots are whole seconds, so the part of a second does not matter.
            Rule::Cron(cron, zone) => next(cron, zone, after),
            Rule::Every { anchor, step } => {
                let elapsed = after.as_second().checked_sub(anchor.as_second())?;
                let index = elapsed.div_euclid(*step).checked_add(1)?.max(0);
                Timestamp::from_second(anchor.as_second().checked_add(index.checked_mul(*step)?)?).ok()
            }
            Rule::At(at) => Some(*at).filter(|at| *at > after),
        }
    }
}

/// A text that stays the same while the slots do; a change of it is a change of the schedule.
pub fn fingerprint(spec: &PeriodicTaskSpec) -> String {
    let Schedule { cron, every, at } = &spec.schedule;
    let rule = match (cron, every, at) {
        (Some(cron), ..) => format!("cron {cron} {}", spec.time_zone),
        (_, Some(every), _) => format!("every {every}"),
        (.., Some(at)) => format!("at {}", at.0),
        (None, None, None) => "nothing".to_owned(),
    };
    let start = spec
        .start_time
        .as_ref()
        .map(|start| format!(" from {}", start.0))
        .unwrap_or_default();
    let held = if spec.suspend { ", suspended" } else { "" };
    format!("{rule}{start}{held}")
}

fn parse(text: &str) -> Result<Cron, ScheduleFault> {
    pattern(text).map_err(|why| ScheduleFault::Cron {
        text: text.to_owned(),
        why,
    })
}

/// A cron text of five fields, or what the parser says of it.
pub(crate) fn pattern(text: &str) -> Result<Cron, String> {
    CronParser::builder()
        .seconds(Seconds::Disallowed)
        .year(Year::Disallowed)
        .build()
        .parse(text)
        .map_err(|fault| fault.to_string())
}

/// The first time of a pattern after `after`, in whole seconds.
pub(crate) fn next(cron: &Cron, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
    let after = whole(after).to_zoned(zone.clone());
    let slot = cron.find_next_occurrence(&after, false).ok()?;
    Some(whole(slot.timestamp()))
}

fn whole(at: Timestamp) -> Timestamp {
    umbel_api::condition::whole_seconds(at)
}

fn before(at: Timestamp) -> Timestamp {
    at.checked_sub(SignedDuration::from_nanos(1)).unwrap_or(Timestamp::MIN)
}
