//! How a task ends other than with a value: what stands behind the `Err` of its function.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use umbel_protocol::canvas::Signature;
use umbel_protocol::json::Json;

use crate::failure::Failure;
use crate::job::Outcome;
use crate::lease::Lost;
use crate::subtasks::SendError;

/// Why a task ends without a value.
#[derive(Debug, Clone)]
pub enum Stop {
    /// It failed; a failure that is retryable runs again by the retry policy.
    Failed(Failure),
    /// It asks to be run again.
    Retry(Box<Retry>),
    /// It ends without a result: the state stays what [`crate::JobContext::update_state`] made it.
    Ignore,
    /// It refuses its message.
    Reject {
        /// Why; the first argument of the exception that clients see.
        reason: Option<String>,
        /// Back to the end of its queue, or else to the dead letters with a FAILURE.
        requeue: bool,
    },
    /// This goes on in its place, under its id.
    Replace(Box<Signature>),
}

impl Stop {
    /// Refuses the message for good: a FAILURE `Reject` for who waits, the message to the dead letters.
    pub fn reject(reason: impl Into<String>) -> Stop {
        Stop::Reject {
            reason: Some(reason.into()),
            requeue: false,
        }
    }

    /// Puts the message back to the end of its queue, byte for byte.
    pub fn requeue() -> Stop {
        Stop::Reject {
            reason: None,
            requeue: true,
        }
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failed(failure)
    }
}

impl From<Retry> for Stop {
    fn from(retry: Retry) -> Stop {
        Stop::Retry(Box::new(retry))
    }
}

impl From<Lost> for Stop {
    fn from(lost: Lost) -> Stop {
        Stop::Failed(lost.into())
    }
}

impl From<SendError> for Stop {
    fn from(err: SendError) -> Stop {
        Stop::Failed(err.into())
    }
}

impl From<Stop> for Outcome {
    fn from(stop: Stop) -> Outcome {
        match stop {
            Stop::Failed(failure) if failure.is_retryable => Outcome::Retry {
                after: None,
                why: failure,
            },
            Stop::Failed(failure) => Outcome::Failed(failure),
            Stop::Retry(retry) => Outcome::Again(retry),
            Stop::Ignore => Outcome::Ignored,
            Stop::Reject { reason, requeue } => Outcome::Rejected { reason, requeue },
            Stop::Replace(signature) => Outcome::Replaced(signature),
        }
    }
}

/// Another run of a task, with what differs in it: Celery's `self.retry(…)`.
///
/// What it does not set stays as it is; without a time the retry policy of the task or the queue decides.
#[derive(Debug, Clone, Default)]
pub struct Retry {
    pub(crate) when: Option<When>,
    pub(crate) because: Option<Failure>,
    pub(crate) max_retries: Option<u32>,
    pub(crate) args: Option<Json>,
    pub(crate) kwargs: Option<Json>,
    pub(crate) queue: Option<String>,
    pub(crate) priority: Option<u8>,
    pub(crate) expires: Option<Duration>,
    pub(crate) headers: Vec<(String, Json)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum When {
    In(Duration),
    At(Timestamp),
}

impl Retry {
    /// Runs it again as it is.
    pub fn new() -> Retry {
        Retry::default()
    }

    /// After this time: `countdown`.
    #[must_use]
    pub fn after(mut self, wait: Duration) -> Retry {
        self.when = Some(When::In(wait));
        self
    }

    /// At this time: `eta`.
    #[must_use]
    pub fn at(mut self, eta: Timestamp) -> Retry {
        self.when = Some(When::At(eta));
        self
    }

    /// Because of this. It is shown in state RETRY, and is the task's failure when no retry is left.
    #[must_use]
    pub fn because(mut self, why: Failure) -> Retry {
        self.because = Some(why);
        self
    }

    /// At most so many retries of the task in all; what an earlier run said does not count.
    #[must_use]
    pub fn max_retries(mut self, retries: u32) -> Retry {
        self.max_retries = Some(retries);
        self
    }

    /// With other positional arguments, as a tuple or a list.
    #[must_use]
    pub fn args<A: Serialize + ?Sized>(mut self, args: &A) -> Retry {
        self.args = Some(Json::of(args));
        self
    }

    /// With other keyword arguments, as a struct or a map.
    #[must_use]
    pub fn kwargs<A: Serialize + ?Sized>(mut self, kwargs: &A) -> Retry {
        self.kwargs = Some(Json::of(kwargs));
        self
    }

    /// In another queue.
    #[must_use]
    pub fn queue(mut self, queue: &str) -> Retry {
        self.queue = Some(queue.to_owned());
        self
    }

    /// With another priority, 0 (first) to 9.
    #[must_use]
    pub fn priority(mut self, priority: u8) -> Retry {
        self.priority = Some(priority);
        self
    }

    /// Not to be run any more after this time from now.
    #[must_use]
    pub fn expires(mut self, after: Duration) -> Retry {
        self.expires = Some(after);
        self
    }

    /// With a header set or replaced.
    #[must_use]
    pub fn header<A: Serialize + ?Sized>(mut self, name: &str, value: &A) -> Retry {
        self.headers.push((name.to_owned(), Json::of(value)));
        self
    }
}
