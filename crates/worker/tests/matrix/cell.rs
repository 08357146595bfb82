//! The two sides of the table, and what is expected where they meet.

use std::fmt;

use umbel_testkit::{CeleryVersion, Raised};

use crate::ours::Sends;

/// Who sends and reads the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Producer {
    Umbel,
    Celery(CeleryVersion),
    Node,
}

impl Producer {
    pub(crate) const ALL: [Producer; 5] = [
        Producer::Umbel,
        Producer::Celery(CeleryVersion::V5_2),
        Producer::Celery(CeleryVersion::V5_6),
        Producer::Celery(CeleryVersion::V5_7),
        Producer::Node,
    ];
}

impl fmt::Display for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Producer::Umbel => "umbel",
            Producer::Celery(CeleryVersion::V5_2) => "celery 5.2",
            Producer::Celery(CeleryVersion::V5_6) => "celery 5.6",
            Producer::Celery(CeleryVersion::V5_7) => "celery 5.7",
            Producer::Node => "celery-node",
        })
    }
}

/// Who runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runner {
    Umbel,
    Celery57,
}

impl Runner {
    pub(crate) const ALL: [Runner; 2] = [Runner::Umbel, Runner::Celery57];
}

impl fmt::Display for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Runner::Umbel => "umbel",
            Runner::Celery57 => "celery 5.7",
        })
    }
}

/// One row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// What a Python program writes.
    pub(crate) python: &'static str,
    /// Celery 5.2, where it writes or gets something else.
    pub(crate) python52: Option<(&'static str, &'static str)>,
    /// Settings of the Python program, as JSON.
    pub(crate) settings: &'static str,
    /// What a Node program sends, or why it cannot.
    pub(crate) node: Result<Node, &'static str>,
    /// What ours sends, or why it cannot.
    pub(crate) ours: Result<fn() -> Sends, &'static str>,
    pub(crate) expected: Expected,
    /// What ours reads, where that is something else.
    pub(crate) ours_expects: Option<Expected>,
    /// Cells that these two do not have, and why.
    pub(crate) gaps: &'static [(Producer, Runner, &'static str)],
}

/// `createTask("umbel.echo").applyAsync(args, kwargs)` with celery-node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    pub(crate) protocol: u8,
    pub(crate) task: &'static str,
    pub(crate) args: &'static str,
    pub(crate) kwargs: &'static str,
}

/// What the producer's own client must read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Expected {
    /// This value, as JSON text without blanks.
    Value(&'static str),
    /// The time it ran at, in microseconds, so many seconds after it was sent.
    After(f64),
    /// An exception of this class.
    Raises(&'static str),
}

/// What came of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Right,
    Wrong(String),
    Gap(&'static str),
}

impl Expected {
    /// Compares; `sent` is when the task was sent, in microseconds since 1970.
    pub(crate) fn judge(self, sent: f64, found: &Result<String, Raised>) -> Outcome {
        let right = match (self, found) {
            (Expected::Value(value), Ok(found)) => value == found,
            (Expected::After(seconds), Ok(found)) => found.parse().is_ok_and(|ran: f64| ran >= sent + seconds * 1e6),
            (Expected::Raises(class), Err(raised)) => raised.exc_type == class,
            (Expected::Value(_) | Expected::After(_), Err(_)) | (Expected::Raises(_), Ok(_)) => false,
        };
        if right {
            Outcome::Right
        } else {
            Outcome::Wrong(format!("{self:?} expected, not {found:?}"))
        }
    }
}
