//! A length of time as Go writes it.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time in a custom resource: `90s`, `1h30m`, `250ms`. Never negative.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(Duration);

/// The text is not a length of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotASpan;

/// The longest text: too short for what overflows a sum.
pub(crate) const MAX_LENGTH: usize = 32;
/// What the schema asks for. Bounded digits keep the sum far from overflow, also in the rules, whose durations end at 292 years.
pub(crate) const PATTERN: &str = r"^([0-9]{1,5}(\.[0-9]{1,3})?h|[0-9]{1,7}(\.[0-9]{1,3})?(m|s|ms))+$";

impl Span {
    /// A span of whole seconds.
    pub const fn secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The same as the standard library has it.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

impl FromStr for Span {
    type Err = NotASpan;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // kube's parser multiplies as it goes and panics on overflow, so numbers are bounded here first.
        let bounded = !text.is_empty()
            && text.len() <= MAX_LENGTH
            && text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || b".hms".contains(&byte))
            && text
                .split(|c: char| !c.is_ascii_digit())
                .all(|digits| digits.len() <= 7);
        if !bounded {
            return Err(NotASpan);
        }
        let parsed: kube::core::Duration = text.parse().map_err(|_| NotASpan)?;
        Ok(Self(parsed.into()))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanos) = (self.0.as_secs(), self.0.subsec_nanos());
        if nanos != 0 {
            return fmt::Debug::fmt(&self.0, f);
        }
        let (hours, minutes, rest) = (seconds / 3600, seconds % 3600 / 60, seconds % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        if rest > 0 || seconds == 0 {
            write!(f, "{rest}s")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for NotASpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a duration such as 30s, 1h30m or 250ms")
    }
}

impl std::error::Error for NotASpan {}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl schemars::JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": PATTERN, "maxLength": MAX_LENGTH})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_go_durations() {
        let table = [
            ("0s", Duration::ZERO, "0s"),
            ("30s", Duration::from_secs(30), "30s"),
            ("90s", Duration::from_secs(90), "1m30s"),
            ("1h", Duration::from_hours(1), "1h"),
            ("1h30m", Duration::from_mins(90), "1h30m"),
            ("1.5h", Duration::from_mins(90), "1h30m"),
            ("250ms", Duration::from_millis(250), "250ms"),
            ("1.25s", Duration::from_millis(1250), "1.25s"),
            ("336h", Duration::from_hours(336), "336h"),
        ];
        for (text, duration, written) in table {
            let span: Span = text.parse().expect(text);
            assert_eq!(span.get(), duration, "{text}");
            assert_eq!(span.to_string(), written, "{text}");
            assert_eq!(written.parse::<Span>().expect(written), span);
        }
    }

    #[test]
    fn refuses_what_is_no_duration_without_a_panic() {
        for text in [
            "",
            "5",
            "-5s",
            "+5s",
            "1y",
            "1d",
            "s",
            "1.2.3s",
            "99999999999999999999h",
            "1e9h",
            "10 s",
            "٣s",
            "1h-2m",
        ] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
