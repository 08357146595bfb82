//! Conditions: built once, compared without their times, written only when they differ.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// Longest message that a condition carries; the API server's limit is 32,768 bytes and people read a line.
const MESSAGE_LIMIT: usize = 1024;

/// What is known of one condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The condition's type.
    pub kind: &'static str,
    /// Whether it holds.
    pub status: Status,
    /// One word in PascalCase, never empty.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody can tell now.
    Unknown,
}

impl Status {
    /// As the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Status {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

impl Finding {
    /// A finding; `status` may be a `bool`.
    pub fn new(
        kind: &'static str,
        status: impl Into<Status>,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            status: status.into(),
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// The conditions after `findings`: others stay, and one that says the same as before is kept as it was, times included.
///
/// # Guarantees
/// Called with what it returned, it returns the same. `lastTransitionTime` moves only when the status does.
pub fn merge(old: &[Condition], findings: &[Finding], generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    let mut merged = old.to_vec();
    for Finding {
        kind,
        status,
        reason,
        message,
    } in findings
    {
        let before = merged.iter_mut().find(|condition| condition.type_ == *kind);
        let unchanged_since = before
            .as_ref()
            .filter(|old| old.status == status.as_str())
            .map(|old| old.last_transition_time.clone());
        let condition = Condition {
            type_: (*kind).to_owned(),
            status: status.as_str().to_owned(),
            reason: reason.clone(),
            message: cut(message),
            observed_generation: generation,
            last_transition_time: unchanged_since.unwrap_or(Time(whole_seconds(now))),
        };
        match before {
            Some(slot) => *slot = condition,
            None => merged.push(condition),
        }
    }
    merged
}

/// The condition of this type.
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Whether the condition of this type is `True`.
pub fn holds(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == "True")
}

/// What the API server keeps of a time: without this, what comes back differs from what was sent.
pub fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn cut(message: &str) -> String {
    match message.char_indices().nth(MESSAGE_LIMIT) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a valid second")
    }

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let first = merge(
            &[],
            &[Finding::new("Ready", true, "Fine", "all is well")],
            Some(1),
            at(10),
        );
        assert_eq!(
            merge(
                &first,
                &[Finding::new("Ready", true, "Fine", "all is well")],
                Some(1),
                at(20)
            ),
            first
        );

        let reworded = merge(
            &first,
            &[Finding::new("Ready", true, "Better", "even better")],
            Some(2),
            at(30),
        );
        assert_eq!(reworded[0].last_transition_time, Time(at(10)));
        assert_eq!(
            (reworded[0].reason.as_str(), reworded[0].observed_generation),
            ("Better", Some(2))
        );

        let turned = merge(
            &reworded,
            &[Finding::new("Ready", Status::Unknown, "Lost", "")],
            Some(2),
            at(40),
        );
        assert_eq!(turned[0].last_transition_time, Time(at(40)));
    }

    #[test]
    fn others_stay() {
        let old = merge(
            &[],
            &[Finding::new("A", true, "X", ""), Finding::new("B", false, "Y", "")],
            None,
            at(1),
        );
        let new = merge(&old, &[Finding::new("B", true, "Z", "")], None, at(2));
        assert_eq!(new[0], old[0]);
        assert!(holds(&new, "B") && !holds(&old, "B"));
    }
}
