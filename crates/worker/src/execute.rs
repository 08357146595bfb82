//! One run of one task: limits, cancellation, panics, outcome.
//!
//! # Guarantees
//! Whatever the task does (return, panic, also while it is dropped, run too long), exactly one [`Ending`] comes out and
//! the worker lives. When the lease is lost the future is dropped and nothing is settled: another worker has the message.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::job::{Arguments, Failure, Job, JobContext, Outcome};
use crate::lease::{Cut, Lease};

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
            Ending::Outcome(Outcome::Parked { .. }) => "parked",
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

/// A run of a task.
pub(crate) struct Attempt {
    work: Pin<Box<dyn Future<Output = Outcome> + Send>>,
    lease: Lease,
    cancel: CancellationToken,
    soft_limit: CancellationToken,
}

impl Attempt {
    /// Nothing runs before it is polled.
    pub(crate) fn new(job: Arc<dyn Job>, ctx: JobContext, args: Arguments) -> Attempt {
        let lease = ctx.lease.clone();
        let (cancel, soft_limit) = (ctx.cancel.clone(), ctx.soft_limit.clone());
        Attempt {
            work: Box::pin(async move { job.run(&ctx, args).await }),
            lease,
            cancel,
            soft_limit,
        }
    }

    /// Lets the task go as far as it goes; a panic is its end.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| self.work.as_mut().poll(cx)));
        polled.unwrap_or_else(|panic| Poll::Ready(Outcome::Failed(panicked(&*panic))))
    }

    /// Runs the task to its end. `abandon` is cancelled when the worker will not wait for it any longer.
    pub(crate) async fn end(&mut self, limits: RunLimits, abandon: &CancellationToken) -> Ending {
        let (lease, soft_limit) = (self.lease.clone(), self.soft_limit.clone());
        let soft = async {
            after(limits.soft).await;
            soft_limit.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            outcome = std::future::poll_fn(|cx| self.poll(cx)) => Ending::Outcome(outcome),
            cut = lease.cut_short() => match cut {
                Cut::Lost => Ending::Lost,
                Cut::Terminated => Ending::Terminated,
            },
            () = abandon.cancelled() => Ending::HandBack,
            () = after(limits.hard) => Ending::TimedOut(limits.hard.unwrap_or_default()),
            () = soft => Ending::HandBack, // Never: the future above does not end.
        }
    }

    /// The run is over: whatever it spawned and told of its token ends too, and what is left of it is dropped.
    pub(crate) fn over(self, ending: Ending) -> Ending {
        let Attempt {
            work, lease, cancel, ..
        } = self;
        cancel.cancel();
        // Its words may hold arguments.
        if std::panic::catch_unwind(AssertUnwindSafe(|| drop(work))).is_err() {
            tracing::warn!("task panicked while it was dropped");
        }
        // A task that saw its lease go may well have returned something: it does not count.
        if lease.is_lost() { Ending::Lost } else { ending }
    }
}

pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Failure {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Failure::transient(format!("task panicked: {}", text.unwrap_or("no message")))
}
