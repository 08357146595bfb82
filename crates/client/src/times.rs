//! Times as callers give them, and as they stand in a message.

use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};

/// A moment, with the way in which it is written.
#[derive(Debug, Clone, PartialEq)]
pub enum When {
    /// So long after the task is sent; written in UTC.
    In(SignedDuration),
    /// An instant; written in UTC.
    At(Timestamp),
    /// A time in a zone; written with its offset.
    Zoned(Zoned),
    /// A time without a zone: the consumer reads it in its own, which is UTC unless configured.
    Local(DateTime),
}

impl From<std::time::Duration> for When {
    fn from(after: std::time::Duration) -> When {
        When::In(SignedDuration::try_from(after).unwrap_or(SignedDuration::MAX))
    }
}

impl From<SignedDuration> for When {
    fn from(after: SignedDuration) -> When {
        When::In(after)
    }
}

impl From<Timestamp> for When {
    fn from(at: Timestamp) -> When {
        When::At(at)
    }
}

impl From<Zoned> for When {
    fn from(at: Zoned) -> When {
        When::Zoned(at)
    }
}

impl From<DateTime> for When {
    fn from(at: DateTime) -> When {
        When::Local(at)
    }
}

impl When {
    /// The instant, and its text where that is not the usual one.
    pub(crate) fn resolve(&self, now: Timestamp) -> (Timestamp, Option<String>) {
        match self {
            When::In(after) => {
                let end = if after.is_negative() {
                    Timestamp::MIN
                } else {
                    Timestamp::MAX
                };
                (now.saturating_add(*after).unwrap_or(end), None)
            }
            When::At(at) => (*at, None),
            When::Zoned(at) => {
                let text = format!("{}{}", local(at.datetime()), offset(at.offset()));
                (at.timestamp(), (at.offset() != Offset::UTC).then_some(text))
            }
            When::Local(at) => {
                let instant = TimeZone::UTC.to_timestamp(*at).unwrap_or(Timestamp::MAX);
                (instant, Some(local(*at)))
            }
        }
    }
}

/// Python's `isoformat` of a time without an offset.
fn local(at: DateTime) -> String {
    let whole = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        at.year(),
        at.month(),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    );
    match at.subsec_nanosecond() / 1_000 {
        0 => whole,
        micros => format!("{whole}.{micros:06}"),
    }
}

fn offset(offset: Offset) -> String {
    let seconds = offset.seconds();
    let sign = if seconds < 0 { '-' } else { '+' };
    let seconds = seconds.unsigned_abs();
    let text = format!("{sign}{:02}:{:02}", seconds / 3600, seconds / 60 % 60);
    match seconds % 60 {
        0 => text,
        rest => format!("{text}:{rest:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_they_were_given() {
        let now: Timestamp = "2026-11-20T11:48:22.692885Z".parse().unwrap();
        let zoned: Zoned = "2031-02-03T04:05:06.789012+05:30[+05:30]".parse().unwrap();
        let (at, text) = When::from(zoned).resolve(now);
        assert_eq!(text.as_deref(), Some("2031-02-03T04:05:06.789012+05:30"));
        assert_eq!(at, "2031-02-02T22:35:06.789012Z".parse::<Timestamp>().unwrap());
        let naive: DateTime = "2031-02-03T04:05:06".parse().unwrap();
        assert_eq!(When::from(naive).resolve(now).1.as_deref(), Some("2031-02-03T04:05:06"));
        assert_eq!(When::from(now).resolve(now), (now, None));
        let past = When::from(SignedDuration::from_secs(-5)).resolve(now).0;
        assert_eq!(past, "2026-11-20T11:48:17.692885Z".parse::<Timestamp>().unwrap());
        assert_eq!(When::from(std::time::Duration::MAX).resolve(now).0, Timestamp::MAX);
    }
}
