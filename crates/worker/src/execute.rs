//! One run of one task: limits, cancellation, panics, outcome.
//!
//! # Guarantees
//! Whatever the task does (return, panic, also while it is dropped, run too long), exactly one [`Ending`] comes out and
//! the worker lives. When the lease is lost the future is dropped and nothing is settled: another worker has the message.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::job::{Arguments, Failure, Job, JobContext, Outcome};
use crate::lease::Cut;

/// How a run ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The task itself ended.
    Outcome(Outcome),
    /// It was stopped at the hard limit.
    TimedOut(Duration),
    /// The lease was lost; the run was dropped.
    Lost,
    /// Revoked while it ran; the run was dropped.
    Terminated,
    /// The worker stops: the message goes back, uncharged.
    HandBack,
}

impl Ending {
    /// One word for logs.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Ending::Outcome(Outcome::Done(_)) => "done",
            Ending::Outcome(Outcome::Retry { .. } | Outcome::Again(_)) => "retry",
            Ending::Outcome(Outcome::Failed(_)) => "failed",
            Ending::Outcome(Outcome::Ignored) => "ignored",
            Ending::Outcome(Outcome::Rejected { .. }) => "rejected",
            Ending::Outcome(Outcome::Replaced(_)) => "replaced",
            Ending::TimedOut(_) => "timed_out",
            Ending::Lost => "lost",
            Ending::Terminated => "terminated",
            Ending::HandBack => "handed_back",
        }
    }
}

/// Limits of one run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RunLimits {
    pub(crate) hard: Option<Duration>,
    pub(crate) soft: Option<Duration>,
}

async fn after(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Runs a task to its end. `abandon` is cancelled when the worker will not wait for it any longer.
pub(crate) async fn execute(
    job: Arc<dyn Job>,
    ctx: JobContext,
    args: Arguments,
    limits: RunLimits,
    abandon: &CancellationToken,
) -> Ending {
    let lease = ctx.lease.clone();
    let (cancel, soft_limit) = (ctx.cancel.clone(), ctx.soft_limit.clone());
    let mut run = Box::pin(AssertUnwindSafe(async move { job.run(&ctx, args).await }).catch_unwind());
    let soft = async {
        after(limits.soft).await;
        soft_limit.cancel();
        std::future::pending::<()>().await;
    };
    let ending = tokio::select! {
        biased;
        outcome = &mut run => Ending::Outcome(outcome.unwrap_or_else(|panic| Outcome::Failed(panicked(&*panic)))),
        cut = lease.cut_short() => match cut {
            Cut::Lost => Ending::Lost,
            Cut::Terminated => Ending::Terminated,
        },
        () = abandon.cancelled() => Ending::HandBack,
        () = after(limits.hard) => Ending::TimedOut(limits.hard.unwrap_or_default()),
        () = soft => Ending::HandBack, // Never: the future above does not end.
    };
    cancel.cancel(); // Whatever the task spawned and told of its token ends too.
    // Its words may hold arguments.
    if std::panic::catch_unwind(AssertUnwindSafe(|| drop(run))).is_err() {
        tracing::warn!("task panicked while it was dropped");
    }
    // A task that saw its lease go may well have returned something: it does not count.
    if lease.is_lost() { Ending::Lost } else { ending }
}

pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Failure {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Failure::transient(format!("task panicked: {}", text.unwrap_or("no message")))
}
