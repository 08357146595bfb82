//! What a task is to the worker: a name, a function of arguments, an outcome that is a value.
//!
//! User tasks are plain async functions ([`crate::Builder::task`]); built-in jobs implement [`Job`] themselves.

use std::time::Duration;

use futures::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use umbel_protocol::json::Json;

use crate::lease::{Lease, Lost};

/// The arguments of a call, verbatim as the producer wrote them.
#[derive(Debug, Clone)]
pub struct Arguments {
    /// A JSON array: the positional arguments.
    pub args: Json,
    /// A JSON object: the keyword arguments.
    pub kwargs: Json,
}

impl Arguments {
    /// The positional arguments as one type, e.g. a tuple.
    ///
    /// # Errors
    /// [`Failure`] of type `TypeError` that says what does not fit: a call with wrong arguments is never retried.
    pub fn positional<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        self.args
            .to()
            .map_err(|err| Failure::type_error(format!("positional arguments: {err}")))
    }

    /// The keyword arguments as one type.
    ///
    /// # Errors
    /// As [`Arguments::positional`].
    pub fn keywords<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        self.kwargs
            .to()
            .map_err(|err| Failure::type_error(format!("keyword arguments: {err}")))
    }
}

/// How a run ended. Settling it (result, acknowledgement, retry) is the worker's work.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The task returned this value.
    Done(Json),
    /// The task asks to be run again, after the given time or the queue's back-off.
    Retry {
        /// Time until the next run; `None` leaves it to the queue's policy.
        after: Option<Duration>,
        /// Why, for the result document of state RETRY and for the last failure.
        why: Failure,
    },
    /// The task failed and must not be run again.
    Failed(Failure),
}

impl Outcome {
    /// A finished run with any serialisable value.
    pub fn done<T: Serialize>(value: &T) -> Outcome {
        Outcome::Done(Json::of(value))
    }
}

/// A failure as Celery's client raises it again: an exception type by module and name, with its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Exception class, e.g. `ValueError`. Clients that do not know it make one up.
    pub exc_type: String,
    /// Its Python module, e.g. `builtins`.
    pub exc_module: String,
    /// Message; the exception's only constructor argument.
    pub message: String,
    /// May the worker's retry policy run the task again?
    pub is_retryable: bool,
}

impl Failure {
    /// A failure that the retry policy of the queue may repeat.
    pub fn transient(message: impl Into<String>) -> Failure {
        Failure {
            exc_type: "RuntimeError".into(),
            exc_module: "builtins".into(),
            message: message.into(),
            is_retryable: true,
        }
    }

    /// A failure that repeating cannot mend.
    pub fn permanent(exc_type: &str, message: impl Into<String>) -> Failure {
        Failure {
            exc_type: exc_type.into(),
            exc_module: "builtins".into(),
            message: message.into(),
            is_retryable: false,
        }
    }

    /// Arguments of the wrong shape.
    pub fn type_error(message: impl Into<String>) -> Failure {
        Failure::permanent("TypeError", message)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.exc_type, self.message)
    }
}

impl std::error::Error for Failure {}

impl From<Lost> for Outcome {
    fn from(lost: Lost) -> Outcome {
        Outcome::Failed(Failure {
            is_retryable: true,
            ..Failure::permanent("WorkerLostError", lost.to_string())
        })
    }
}

/// What a running task may know and ask.
#[derive(Clone)]
pub struct JobContext {
    /// Task id of the message; the same in every retry.
    pub id: String,
    /// Task name.
    pub task: String,
    /// Queue the message came from.
    pub queue: String,
    /// Retries so far; 0 in the first run.
    pub retries: u32,
    /// Run order in milliseconds: slot time, or first enqueue by Redis time. Two runs of one schedule compare by it.
    pub order: i64,
    /// All headers of the message, verbatim: an object. [`JobContext::header`] reads one.
    pub headers: Json,
    /// Cancelled when the run must end: hard limit, drain deadline, lease lost.
    pub cancel: CancellationToken,
    /// Set when the soft time limit has passed: finish what you are at.
    pub soft_limit: CancellationToken,
    pub(crate) lease: Lease,
    pub(crate) reports: tokio::sync::mpsc::Sender<Report>,
}

/// A target cluster's state, on its way to `TargetCluster.status`.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) cluster: String,
    pub(crate) body: serde_json::Value,
}

impl JobContext {
    /// Returns when a side effect may start: at once inside the lease's trust window; outside of it, when a renewal
    /// has succeeded again.
    ///
    /// Call it before every effect that another worker must not repeat (a write at a target cluster, a payment).
    ///
    /// # Errors
    /// [`Lost`]: the lease is gone or the run was cancelled. Start nothing more and return.
    ///
    /// # Cancellation
    /// Safe.
    pub async fn checkpoint(&self) -> Result<(), Lost> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Lost::Cancelled),
            trusted = self.lease.trusted() => trusted,
        }
    }

    /// The fencing token of this delivery as `<term>.<microseconds>`; a later delivery's is larger.
    pub fn token(&self) -> String {
        self.lease.token()
    }

    /// A header by name (Celery's own, a schedule's, the user's), if the message has it and it parses.
    pub fn header<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        self.headers.get(name)?.to().ok()
    }

    /// Hands the state of a target cluster to the operator, through Redis. Reports beyond the buffer are dropped: the
    /// next run makes a newer one.
    pub fn report_cluster(&self, cluster: &str, body: serde_json::Value) {
        if self
            .reports
            .try_send(Report {
                cluster: cluster.to_owned(),
                body,
            })
            .is_err()
        {
            tracing::warn!(cluster, "report dropped");
        }
    }
}

/// A task that the worker can run. The only trait of the workspace: jobs are kept in a table, hence the boxed future.
pub trait Job: Send + Sync {
    /// Task name as producers send it.
    fn name(&self) -> &str;

    /// Runs the task once.
    ///
    /// # Cancellation
    /// The future is dropped at the hard time limit and when the lease is lost. Await [`JobContext::checkpoint`]
    /// before each side effect.
    fn run<'a>(&'a self, ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome>;
}
