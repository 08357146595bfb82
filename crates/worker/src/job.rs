//! What a task is to the worker: a name, a function of arguments, an outcome that is a value.
//!
//! User tasks are plain async functions ([`crate::Builder::task`]); built-in jobs implement [`Job`] themselves.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use umbel_protocol::canvas::{ResultTuple, Signature};
use umbel_protocol::json::Json;

use crate::app::Shared;
pub use crate::arguments::Arguments;
pub use crate::failure::Failure;
use crate::lease::{Lease, Lost};
use crate::options::TaskOptions;
use crate::request::Request;
use crate::stop::Retry;

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
    /// The task found no turn at what it wants to work on: it waits in its queue, as it is and uncharged, and leaves its
    /// slot to others.
    Parked {
        /// Time until it is tried again.
        after: Duration,
        /// Why.
        why: Failure,
    },
    /// The task asks to be run again, with what it wants changed.
    Again(Box<Retry>),
    /// The task failed and must not be run again, unless the failure is retryable and the policy allows it.
    Failed(Failure),
    /// The task ends without a result.
    Ignored,
    /// The task refuses its message: [`crate::Stop::Reject`].
    Rejected {
        /// Why.
        reason: Option<String>,
        /// Back to the end of its queue?
        requeue: bool,
    },
    /// This goes on in its place.
    Replaced(Box<Signature>),
}

impl Outcome {
    /// A finished run with any serialisable value.
    pub fn done<T: Serialize>(value: &T) -> Outcome {
        Outcome::Done(Json::of(value))
    }
}

impl From<Lost> for Outcome {
    fn from(lost: Lost) -> Outcome {
        Outcome::Failed(lost.into())
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
    /// Everything else that the message says.
    pub request: Request,
    /// Cancelled when the run must end: hard limit, drain deadline, lease lost.
    pub cancel: CancellationToken,
    /// Set when the soft time limit has passed: finish what you are at.
    pub soft_limit: CancellationToken,
    pub(crate) lease: Lease,
    pub(crate) reports: tokio::sync::mpsc::Sender<Report>,
    /// What it has sent.
    pub(crate) children: Arc<Mutex<Vec<ResultTuple>>>,
    /// The worker; none in tests of a job by itself.
    pub(crate) shared: Option<Arc<Shared>>,
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

    /// Waits for `work`, until the soft time limit has passed: then the future is dropped and the answer is Celery's
    /// `SoftTimeLimitExceeded`, which `?` makes the task's failure.
    ///
    /// # Errors
    /// That failure.
    ///
    /// # Cancellation
    /// That of `work`.
    pub async fn until_soft_limit<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let done = self.soft_limit.run_until_cancelled(work).await;
        done.ok_or_else(|| Failure::raise("billiard.exceptions", "SoftTimeLimitExceeded", &()))
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

    /// What it wants that differs from the worker's flags. Asked for once, when it is registered.
    fn options(&self) -> TaskOptions {
        TaskOptions::default()
    }

    /// The names of its parameters in their order: [`crate::FromArguments::parameters`].
    fn parameters(&self) -> &'static [&'static str] {
        &[]
    }

    /// Runs the task once.
    ///
    /// # Cancellation
    /// The future is dropped at the hard time limit and when the lease is lost. Await [`JobContext::checkpoint`]
    /// before each side effect.
    fn run<'a>(&'a self, ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome>;
}
