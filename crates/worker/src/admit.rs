//! What to do with a message that was taken. Pure.

use umbel_protocol::message::TaskMessage;

use crate::clock::seconds_of;

/// What becomes of a message whose task this worker does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum UnknownTask {
    /// Back to its queue while others consume it that know the task; then to the dead letters.
    #[default]
    HandBack,
    /// To the dead letters at once.
    DeadLetter,
}

/// What happens to a message before anything runs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Admission {
    /// Run it now.
    Run,
    /// It is not due yet: keep it until then (Redis time in seconds).
    Later(f64),
    /// Its time is over.
    Expired,
    /// This worker knows no task of that name.
    Unknown,
}

/// ETAs closer than this are run at once: parking costs about as much.
const ETA_SLACK: f64 = 0.001;

/// Decides by Redis time `now` in seconds.
pub(crate) fn admit(message: &TaskMessage, is_known: bool, now: f64) -> Admission {
    if message.expires.is_some_and(|expires| seconds_of(expires) <= now) {
        return Admission::Expired;
    }
    if !is_known {
        return Admission::Unknown;
    }
    match message.eta.map(seconds_of) {
        Some(due) if due > now + ETA_SLACK => Admission::Later(due),
        _ => Admission::Run,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbel_protocol::message::{Limits, NewTask, decode};

    fn message(change: impl FnOnce(&mut NewTask)) -> TaskMessage {
        let mut task = NewTask {
            id: "1".into(),
            task: "t".into(),
            queue: "q".into(),
            ..NewTask::default()
        };
        change(&mut task);
        decode(&task.encode(), &Limits::default(), &jiff::tz::TimeZone::UTC).unwrap()
    }

    #[allow(clippy::unnecessary_wraps)] // As the fields take it.
    fn at(seconds: i64) -> Option<jiff::Timestamp> {
        Some(jiff::Timestamp::from_second(seconds).unwrap())
    }

    #[test]
    fn a_message_runs_is_kept_or_ends() {
        let cases: [(&str, TaskMessage, bool, Admission); 7] = [
            ("plain", message(|_| ()), true, Admission::Run),
            ("unknown", message(|_| ()), false, Admission::Unknown),
            ("due", message(|task| task.eta = at(99)), true, Admission::Run),
            (
                "later",
                message(|task| task.eta = at(101)),
                true,
                Admission::Later(101.0),
            ),
            (
                "expired",
                message(|task| task.expires = at(100)),
                true,
                Admission::Expired,
            ),
            (
                "expired and unknown",
                message(|task| task.expires = at(1)),
                false,
                Admission::Expired,
            ),
            (
                "expires later",
                message(|task| task.expires = at(101)),
                true,
                Admission::Run,
            ),
        ];
        for (name, message, is_known, expected) in cases {
            assert_eq!(admit(&message, is_known, 100.0), expected, "{name}");
        }
    }
}
