//! What can go wrong.

use std::time::Duration;

use umbel_protocol::json::Json;
use umbel_protocol::message::Reason;

/// A task that was not sent, or not surely.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// A call that cannot be a message.
    #[error("task {task}: {reason}")]
    Call {
        /// Its name.
        task: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A workflow that cannot be sent.
    #[error("the workflow cannot be sent: {0}")]
    Workflow(#[source] Reason),
    /// The type of the exchange is not known, and Redis does not say it.
    #[error("the type of exchange {exchange:?} is not known: name it with the task or in the options")]
    UnknownExchange {
        /// The exchange.
        exchange: String,
    },
    /// No queue would get the message. Celery would lose it without a word.
    #[error(
        "no queue is bound to {kind} exchange {exchange:?} by routing key {routing_key:?}; {bound} bindings in all"
    )]
    NoRoute {
        /// The exchange.
        exchange: String,
        /// Its type.
        kind: &'static str,
        /// The routing key.
        routing_key: String,
        /// Bindings that the exchange has.
        bound: usize,
    },
    /// Bindings could not be read, or a chord not be opened. Nothing behind it was sent.
    #[error("{what}")]
    Prepare {
        /// What was tried.
        what: &'static str,
        /// Tasks that had been sent before.
        sent: Vec<String>,
        /// Why.
        #[source]
        source: umbel_broker::Error,
    },
    /// Redis did not take everything, or did not say so.
    #[error("{}", undelivered(sent, unknown, unsent))]
    Undelivered {
        /// Ids of tasks that are sent.
        sent: Vec<String>,
        /// Ids of tasks that may be sent: the answer did not arrive.
        unknown: Vec<String>,
        /// Ids of tasks that are not sent.
        unsent: Vec<String>,
        /// Why.
        #[source]
        source: umbel_broker::Error,
    },
}

impl SendError {
    /// Is any task of this call in Redis, or may one be? If not, the call can be repeated without doing work twice.
    pub fn may_have_been_sent(&self) -> bool {
        match self {
            SendError::Undelivered { sent, unknown, .. } => !(sent.is_empty() && unknown.is_empty()),
            SendError::Prepare { sent, .. } => !sent.is_empty(),
            SendError::Call { .. }
            | SendError::Workflow(_)
            | SendError::UnknownExchange { .. }
            | SendError::NoRoute { .. } => false,
        }
    }
}

impl SendError {
    /// The error, with the tasks that were sent before and those that were not tried.
    pub(crate) fn around<'a>(
        self,
        before: impl Iterator<Item = &'a str>,
        behind: impl Iterator<Item = &'a str>,
    ) -> SendError {
        match self {
            SendError::Undelivered {
                sent,
                unknown,
                mut unsent,
                source,
            } => {
                unsent.extend(behind.map(str::to_owned));
                SendError::Undelivered {
                    sent: before.map(str::to_owned).chain(sent).collect(),
                    unknown,
                    unsent,
                    source,
                }
            }
            other => other,
        }
    }
}

fn undelivered(sent: &[String], unknown: &[String], unsent: &[String]) -> String {
    match (sent, unknown, unsent) {
        ([], [one], []) => format!("task {one} may have been sent, or not"),
        ([], [], [one]) => format!("task {one} was not sent"),
        ([one], [], []) => format!("task {one} was sent"),
        _ => format!(
            "{} tasks were sent, {} may have been, {} were not",
            sent.len(),
            unknown.len(),
            unsent.len()
        ),
    }
}

/// A result that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// The task failed, or was revoked.
    #[error(transparent)]
    Remote(#[from] Box<RemoteError>),
    /// It did not end in time.
    #[error("task {id} has not ended within {after:?}")]
    Timeout {
        /// The task.
        id: String,
        /// How long was waited.
        after: Duration,
    },
    /// The task stores no result, so none will come.
    #[error("task {id} was sent with ignore_result: it has no result")]
    Ignored {
        /// The task.
        id: String,
    },
    /// The result is not of the type asked for.
    #[error("the result of task {id} has another type")]
    Type {
        /// The task.
        id: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What is stored is no result document.
    #[error("what is stored for {id} is no result: {reason}")]
    Document {
        /// The task or group.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Redis did not answer.
    #[error("read or write the result of {id}")]
    Store {
        /// The task or group.
        id: String,
        /// Why.
        #[source]
        source: umbel_broker::Error,
    },
}

/// The exception that a task ended with.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("task {id}: {exc_module}.{exc_type}: {}", self.message())]
pub struct RemoteError {
    /// The task.
    pub id: String,
    /// `FAILURE` or `REVOKED`.
    pub state: String,
    /// Class of the exception.
    pub exc_type: String,
    /// Module of the class.
    pub exc_module: String,
    /// What it was raised with.
    pub args: Vec<Json>,
    /// Python's traceback, or what the worker wrote for one.
    pub traceback: Option<String>,
}

impl RemoteError {
    /// Was the task revoked, or did it expire, rather than fail?
    pub fn is_revoked(&self) -> bool {
        self.state == "REVOKED"
    }

    /// `str(exception)`, nearly: the only argument as text, or all of them.
    pub fn message(&self) -> String {
        match self.args.as_slice() {
            [] => String::new(),
            [one] => one.text().unwrap_or_else(|| one.to_string()),
            several => {
                let texts: Vec<&str> = several.iter().map(Json::as_str).collect();
                texts.join(", ")
            }
        }
    }
}
