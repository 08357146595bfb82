//! When a schedule's slots are.
//!
//! A [`Timetable`] is a schedule that was understood: `cron` in a zone, `every`, `at` or `solar`, within `startTime` and
//! `endTime` and never before the object existed. Slots are instants in whole seconds.
//!
//! Clock changes: what becomes of a time of day that is skipped or repeated says `dst`; patterns that run every hour or
//! oftener follow elapsed time through both.

use std::sync::Arc;

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{
    SignedDuration, Timestamp, Zoned,
    civil::DateTime,
    tz::{AmbiguousOffset, TimeZone},
};
use umbel_api::{
    PeriodicTaskSpec,
    periodictask::{Dst, RepeatedTime, Schedule, SkippedTime, Solar},
};

/// Longer than any clock change: a country that crossed the date line changed by 24 hours.
const LONGEST_CHANGE: SignedDuration = SignedDuration::from_hours(26);

/// A schedule that was understood.
#[derive(Clone, Debug)]
pub struct Timetable {
    rule: Rule,
    /// A slot before all others: the creation of the object.
    first: Option<Timestamp>,
    /// Slots are after this.
    after: Timestamp,
    /// Slots are not after this.
    end: Timestamp,
}

#[derive(Clone, Debug)]
enum Rule {
    Cron(Pattern),
    Every { anchor: Timestamp, step: i64 },
    At(Timestamp),
    Solar(Solar),
}

/// A cron text in a zone.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    cron: Arc<Cron>,
    zone: TimeZone,
    dst: Dst,
    /// It names times of day, and does not run every hour or oftener.
    is_of_the_day: bool,
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
    /// None or several of the kinds were given.
    #[error("spec.schedule must have exactly one of cron, every, at and solar")]
    Kinds,
    /// There is no such place.
    #[error("spec.schedule.solar: latitude must be between -90 and 90, longitude between -180 and 180")]
    Place,
    /// The sun never does that there.
    #[error("spec.schedule.solar names no time that ever comes")]
    NeverSolar,
}

impl ScheduleFault {
    /// The word for a condition's reason.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Cron { .. } | Self::Never { .. } => "BadCron",
            Self::Zone { .. } => "BadTimeZone",
            Self::Every | Self::Kinds | Self::Place | Self::NeverSolar => "BadSchedule",
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
                solar: None,
            } => Rule::Cron(Pattern::of(parse(text)?, zone, spec.dst)),
            Schedule {
                cron: None,
                every: Some(every),
                at: None,
                solar: None,
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
                solar: None,
            } => Rule::At(whole(at.0)),
            Schedule {
                cron: None,
                every: None,
                at: None,
                solar: Some(solar),
            } => {
                if !(solar.latitude.abs() <= 90.0 && solar.longitude.abs() <= 180.0) {
                    return Err(ScheduleFault::Place);
                }
                Rule::Solar(*solar)
            }
            Schedule { .. } => return Err(ScheduleFault::Kinds),
        };
        let first = spec
            .run_on_create
            .then(|| start.map_or(created, |start| created.max(whole(start))));
        let timetable = Self {
            rule,
            first,
            after: first.unwrap_or(after),
            end,
        };
        match (&timetable.rule, &spec.schedule.cron) {
            (Rule::Cron(..), Some(text)) if timetable.unbounded(created).is_none() => {
                Err(ScheduleFault::Never { text: text.clone() })
            }
            (Rule::Solar(_), _) if timetable.unbounded(created).is_none() => Err(ScheduleFault::NeverSolar),
            _ => Ok(timetable),
        }
    }

    /// The first slot after `after`.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let first = self.first.filter(|first| *first > after);
        first
            .or_else(|| self.unbounded(after.max(self.after)))
            .filter(|slot| *slot <= self.end)
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
        let first = self
            .first
            .filter(|first| *first > after && *first <= until.min(self.end));
        let others = u64::try_from(to - from).unwrap_or(0);
        others.saturating_add(u64::from(first.is_some())).min(limit)
    }

    /// The last slot after `after` and not after `until`.
    pub fn latest(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        if let Rule::Every { anchor, step } = &self.rule {
            let until = until.min(self.end);
            let elapsed = until.as_second().checked_sub(anchor.as_second())?;
            let slot = Timestamp::from_second(anchor.as_second() + elapsed.div_euclid(*step) * step).ok()?;
            let first = self.first.filter(|first| *first > after && *first <= until);
            return Some(slot).filter(|slot| *slot > after.max(self.after)).or(first);
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
            Rule::Cron(pattern) => pattern.next(after),
            Rule::Solar(solar) => crate::sun::next(solar, after),
            Rule::Every { anchor, step } => {
                let elapsed = after.as_second().checked_sub(anchor.as_second())?;
                let index = elapsed.div_euclid(*step).checked_add(1)?.max(0);
                Timestamp::from_second(anchor.as_second().checked_add(index.checked_mul(*step)?)?).ok()
            }
            Rule::At(at) => Some(*at).filter(|at| *at > after),
        }
    }
}

/// A text that stays the same while the slots do; a change of it is a change of the schedule. `is_paused`: too many runs
/// failed.
pub fn fingerprint(spec: &PeriodicTaskSpec, is_paused: bool) -> String {
    let Schedule { cron, every, at, solar } = &spec.schedule;
    let rule = match (cron, every, at, solar) {
        (Some(cron), ..) => format!("cron {cron} {}{}", spec.time_zone, changes(spec.dst)),
        (_, Some(every), ..) => format!("every {every}"),
        (_, _, Some(at), _) => format!("at {}", at.0),
        (.., Some(solar)) => format!("{:?} at {} {}", solar.event, solar.latitude, solar.longitude),
        (None, None, None, None) => "nothing".to_owned(),
    };
    let start = spec
        .start_time
        .as_ref()
        .map(|start| format!(" from {}", start.0))
        .unwrap_or_default();
    let held = match (spec.suspend, is_paused) {
        (true, _) => ", suspended",
        (false, true) => ", paused",
        (false, false) => "",
    };
    format!("{rule}{start}{held}")
}

fn parse(text: &str) -> Result<Cron, ScheduleFault> {
    pattern(text).map_err(|why| ScheduleFault::Cron {
        text: text.to_owned(),
        why,
    })
}

/// Clock changes in words, where they are not dealt with as usual.
fn changes(dst: Dst) -> String {
    let skipped = match dst.skipped {
        SkippedTime::RunAtNextValid => "",
        SkippedTime::Skip => ", not where skipped",
    };
    let repeated = match dst.repeated {
        RepeatedTime::Once => "",
        RepeatedTime::Twice => ", twice where repeated",
    };
    format!("{skipped}{repeated}")
}

/// A cron text of five or six fields, or what the parser says of it.
pub(crate) fn pattern(text: &str) -> Result<Cron, String> {
    CronParser::builder()
        .seconds(Seconds::Optional)
        .year(Year::Disallowed)
        .build()
        .parse(text)
        .map_err(|fault| fault.to_string())
}

impl Pattern {
    pub(crate) fn of(cron: Cron, zone: TimeZone, dst: Dst) -> Self {
        let is_of_the_day = (0..24).any(|hour| !cron.pattern.hour_match(hour).unwrap_or(true));
        Self {
            cron: Arc::new(cron),
            zone,
            dst,
            is_of_the_day,
        }
    }

    /// The first slot after `after`, in whole seconds.
    pub(crate) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let after = whole(after);
        if !self.is_of_the_day {
            let zoned = after.to_zoned(self.zone.clone());
            let slot = self.cron.find_next_occurrence(&zoned, false).ok()?;
            return Some(whole(slot.timestamp()));
        }
        // What the clock on the wall shows, from before the longest change; each time of day is looked up in the zone.
        let shown = after.to_zoned(self.zone.clone()).datetime();
        let from = shown.saturating_sub(LONGEST_CHANGE).to_zoned(TimeZone::UTC).ok()?;
        let mut shown = self.cron.find_next_occurrence(&from, false).ok();
        let mut second: Option<Timestamp> = None;
        while let Some(time) = shown {
            let [first, again] = self.instants(time.datetime());
            second = [second, again.filter(|again| *again > after)]
                .into_iter()
                .flatten()
                .min();
            // Later times of day come no earlier, so this is the first.
            if let Some(first) = first.filter(|first| *first > after) {
                return [Some(first), second].into_iter().flatten().min();
            }
            shown = self.cron.find_next_occurrence(&time, false).ok();
        }
        second
    }

    /// The last slot that is not after `until`. Forward from ever further back, as clock changes are judged forwards; the
    /// rarest slot is that of a 29th of February beside a year 2100.
    pub(crate) fn latest(&self, until: Timestamp) -> Option<Timestamp> {
        [
            SignedDuration::from_mins(1),
            SignedDuration::from_hours(1),
            SignedDuration::from_hours(48),
            SignedDuration::from_hours(24 * 62),
            SignedDuration::from_hours(24 * 366 * 8),
        ]
        .into_iter()
        .find_map(|back| {
            let from = until.checked_sub(back).unwrap_or(Timestamp::MIN);
            std::iter::successors(self.next(from), |slot| self.next(*slot))
                .take_while(|slot| *slot <= until)
                .last()
        })
    }

    /// When the clock shows this time: never, once or twice, as `dst` has it.
    fn instants(&self, shown: DateTime) -> [Option<Timestamp>; 2] {
        let ambiguous = self.zone.to_ambiguous_zoned(shown);
        match ambiguous.offset() {
            AmbiguousOffset::Unambiguous { .. } => [instant(ambiguous.unambiguous()), None],
            AmbiguousOffset::Gap { before, after } => match self.dst.skipped {
                SkippedTime::Skip => [None, None],
                // Where a country left out a whole day, its times are left out with it.
                SkippedTime::RunAtNextValid if after.seconds() - before.seconds() >= 86_400 => [None, None],
                SkippedTime::RunAtNextValid => {
                    // Read with the old offset the time lies after the gap, and its end is the change before that.
                    let past = instant(ambiguous.compatible());
                    let change = past.and_then(|past| self.zone.preceding(just_after(past)).next());
                    [change.map(|change| change.timestamp()), None]
                }
            },
            AmbiguousOffset::Fold { .. } => {
                let later = match self.dst.repeated {
                    RepeatedTime::Once => None,
                    RepeatedTime::Twice => instant(ambiguous.clone().later()),
                };
                [instant(ambiguous.earlier()), later]
            }
        }
    }
}

fn instant(zoned: Result<Zoned, jiff::Error>) -> Option<Timestamp> {
    zoned.ok().map(|zoned| zoned.timestamp())
}

fn just_after(at: Timestamp) -> Timestamp {
    at.checked_add(SignedDuration::from_nanos(1)).unwrap_or(at)
}

fn whole(at: Timestamp) -> Timestamp {
    umbel_api::condition::whole_seconds(at)
}

fn before(at: Timestamp) -> Timestamp {
    at.checked_sub(SignedDuration::from_nanos(1)).unwrap_or(Timestamp::MIN)
}
