//! What to do with a message that was taken. Pure.

use std::time::Duration;

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

/// Is its time over? Celery's own messages do not say when they were sent: without an expiry they have none.
pub(crate) fn is_expired(message: &TaskMessage, now: f64, expires_after: Option<Duration>) -> bool {
    if let Some(expires) = message.expires {
        return seconds_of(expires) <= now;
    }
    let Some(after) = expires_after else {
        return false;
    };
    let sent_at = message.own_header("umbel_sent_at").and_then(|at| at.to::<f64>().ok());
    sent_at.is_some_and(|at| at + after.as_secs_f64() <= now)
}

/// ETAs closer than this are run at once: parking costs about as much.
const ETA_SLACK: f64 = 0.001;

/// Decides by Redis time `now` in seconds. `expires_after` is for messages that name no expiry but say when they were sent.
pub(crate) fn admit(message: &TaskMessage, is_known: bool, now: f64, expires_after: Option<Duration>) -> Admission {
    if is_expired(message, now, expires_after) {
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
            assert_eq!(admit(&message, is_known, 100.0, None), expected, "{name}");
        }
    }

    #[test]
    fn a_message_without_expiry_has_that_of_its_queue() {
        let sent = |seconds: f64| {
            let header = ("umbel_sent_at".to_owned(), umbel_protocol::json::Json::of(&seconds));
            message(|task| task.headers = vec![header])
        };
        let after = |message: &TaskMessage, after: u64| admit(message, true, 100.0, Some(Duration::from_secs(after)));
        assert_eq!(after(&sent(90.0), 10), Admission::Expired);
        assert_eq!(after(&sent(90.1), 10), Admission::Run);
        assert_eq!(admit(&sent(1.0), true, 100.0, None), Admission::Run);
        assert_eq!(
            after(&message(|_| ()), 10),
            Admission::Run,
            "nobody knows when it was sent"
        );
        assert_eq!(
            after(&message(|task| task.expires = at(101)), 0),
            Admission::Run,
            "its own counts"
        );
    }
}
