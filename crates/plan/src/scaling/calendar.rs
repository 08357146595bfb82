//! Other bounds at certain times of the calendar.
//!
//! A schedule is in force from each `start` to the next `end`. At the instant of a start it begins, at that of an end it
//! is over; where both come at one instant it goes on. Clock changes follow the rules of [`crate::cron`].

use jiff::{Timestamp, tz::TimeZone};
use umbel_api::{periodictask::Dst, workerpool::Calendar};

use super::Limits;
use crate::cron::{self, Pattern};

/// A schedule that was understood.
#[derive(Clone, Debug)]
pub struct Window {
    name: String,
    start: Pattern,
    end: Pattern,
    min: Option<u32>,
    max: Option<u32>,
}

/// Why a schedule can't be understood. Its words go into a condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CalendarFault {
    /// A cron text is none.
    #[error("scaling.schedules[{name}].{field} {text:?} can't be read: {why}")]
    Cron {
        /// The schedule.
        name: String,
        /// `start` or `end`.
        field: &'static str,
        /// What was given.
        text: String,
        /// What the parser says.
        why: String,
    },
    /// A cron text never comes true.
    #[error("scaling.schedules[{name}].{field} {text:?} names no time that ever comes")]
    Never {
        /// The schedule.
        name: String,
        /// `start` or `end`.
        field: &'static str,
        /// What was given.
        text: String,
    },
    /// The zone is not in the time zone database.
    #[error("scaling.schedules[{name}].timeZone {zone:?} is not in the time zone database")]
    Zone {
        /// The schedule.
        name: String,
        /// What was given.
        zone: String,
    },
}

impl Window {
    /// Understands a schedule.
    ///
    /// # Errors
    /// What the API server could not check.
    pub fn of(calendar: &Calendar) -> Result<Self, CalendarFault> {
        let Calendar {
            name,
            start,
            end,
            time_zone,
            min_replicas,
            max_replicas,
        } = calendar;
        let zone = TimeZone::get(time_zone).map_err(|_| CalendarFault::Zone {
            name: name.clone(),
            zone: time_zone.clone(),
        })?;
        let read = |field: &'static str, text: &String| {
            let cron = cron::pattern(text).map_err(|why| CalendarFault::Cron {
                name: name.clone(),
                field,
                text: text.clone(),
                why,
            })?;
            let pattern = Pattern::of(cron, zone.clone(), Dst::default());
            match pattern.next(Timestamp::UNIX_EPOCH) {
                Some(_) => Ok(pattern),
                None => Err(CalendarFault::Never {
                    name: name.clone(),
                    field,
                    text: text.clone(),
                }),
            }
        };
        Ok(Self {
            start: read("start", start)?,
            end: read("end", end)?,
            name: name.clone(),
            min: *min_replicas,
            max: *max_replicas,
        })
    }

    /// Whether it is in force, and when that may change.
    pub fn at(&self, now: Timestamp) -> (bool, Option<Timestamp>) {
        let end = |start: Timestamp| self.end.next(start);
        let is_active = self
            .start
            .latest(now)
            .is_some_and(|start| end(start).is_none_or(|end| end > now));
        (is_active, if is_active { end(now) } else { self.start.next(now) })
    }
}

/// The limits at this time, and when the calendar changes them next.
pub fn apply(limits: Limits, windows: &[Window], now: Timestamp) -> (Limits, Option<Timestamp>) {
    let mut limits = limits;
    let mut changes = None;
    let mut min: Option<(u32, &str)> = None;
    let mut max: Option<(u32, &str)> = None;
    for window in windows {
        let (is_active, until) = window.at(now);
        changes = [changes, until].into_iter().flatten().min();
        if !is_active {
            continue;
        }
        if let Some(floor) = window.min.filter(|floor| min.is_none_or(|(other, _)| *floor > other)) {
            min = Some((floor, &window.name));
        }
        if let Some(ceiling) = window
            .max
            .filter(|ceiling| max.is_none_or(|(other, _)| *ceiling < other))
        {
            max = Some((ceiling, &window.name));
        }
    }
    if let Some((ceiling, by)) = max {
        (limits.max, limits.max_by) = (ceiling, Some(by.to_owned()));
    }
    if let Some((floor, by)) = min {
        // Above the ceiling, the ceiling counts.
        (limits.min, limits.min_by) = (floor, Some(by.to_owned()));
    }
    (limits, changes)
}
