//! Functions that block (files, C libraries, long sums) as tasks, each run on a thread of its own.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::Worker;
use crate::arguments::FromArguments;
use crate::failure::Failure;
use crate::job::JobContext;
use crate::lease::Lost;
use crate::options::TaskOptions;
use crate::stop::Stop;
use crate::stuck::Strays;

impl Worker {
    /// Adds a function that blocks, under a task name; otherwise as [`Worker::task`].
    ///
    /// It runs on a thread of its own, so it holds up neither other tasks nor the renewal of its lease. A thread cannot
    /// be stopped from outside: at the hard limit, and whenever else the run must end, the message is settled and
    /// `ctx.cancel` is set, which the function should look at now and then ([`JobContext::blocking_checkpoint`] does). One
    /// that does not goes on, beside whatever its slot runs next, until it returns or the process ends; too many of them
    /// end it (`--stuck-slots`).
    ///
    /// ```no_run
    /// # use umbel_worker::{Failure, JobContext, Worker};
    /// fn digest(ctx: JobContext, (path,): (String,)) -> Result<u64, Failure> {
    ///     let text = std::fs::read(&path).map_err(|err| Failure::transient(err.to_string()))?;
    ///     ctx.blocking_checkpoint()?;
    ///     Ok(text.iter().map(|byte| u64::from(*byte)).sum())
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// Worker::builder().blocking_task("demo.digest", digest).run()
    /// # }
    /// ```
    #[must_use]
    pub fn blocking_task<A, R, E, F>(self, name: &str, call: F) -> Worker
    where
        A: FromArguments + Send + 'static,
        R: Serialize + Send + 'static,
        E: Into<Stop> + Send + 'static,
        F: Fn(JobContext, A) -> Result<R, E> + Send + Sync + 'static,
    {
        self.blocking_task_with(name, TaskOptions::default(), call)
    }

    /// Adds a function that blocks as [`Worker::blocking_task`] does, with options of its own.
    #[must_use]
    pub fn blocking_task_with<A, R, E, F>(self, name: &str, options: TaskOptions, call: F) -> Worker
    where
        A: FromArguments + Send + 'static,
        R: Serialize + Send + 'static,
        E: Into<Stop> + Send + 'static,
        F: Fn(JobContext, A) -> Result<R, E> + Send + Sync + 'static,
    {
        let call = Arc::new(call);
        self.task_with(name, options, move |ctx, args| {
            on_a_thread(Arc::clone(&call), ctx, args)
        })
    }
}

impl JobContext {
    /// [`JobContext::checkpoint`] for functions that block.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// In an async function, which must await the other one.
    pub fn blocking_checkpoint(&self) -> Result<(), Lost> {
        Handle::current().block_on(self.checkpoint())
    }
}

/// Says so when a run ends before its thread.
struct Thread {
    task: String,
    id: String,
    has_ended: bool,
    /// Set by the thread itself.
    has_returned: Arc<AtomicBool>,
    strays: Option<Arc<Strays>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        if !self.has_ended {
            tracing::warn!(task.name = %self.task, task.id = %self.id, "the run is over, its thread was told and goes on until it returns");
            if let Some(strays) = &self.strays {
                strays.add(&self.task, &self.id, Arc::clone(&self.has_returned));
            }
        }
    }
}

/// Not of the runtime's pool: that is bounded, and looking up the broker's address needs it too.
async fn on_a_thread<A, R, E, F>(call: Arc<F>, ctx: JobContext, args: A) -> Result<R, Stop>
where
    A: Send + 'static,
    R: Send + 'static,
    E: Into<Stop> + Send + 'static,
    F: Fn(JobContext, A) -> Result<R, E> + Send + Sync + 'static,
{
    let (tell, told) = oneshot::channel();
    let mut watch = Thread {
        task: ctx.task.clone(),
        id: ctx.id.clone(),
        has_ended: false,
        has_returned: Arc::default(),
        strays: ctx.shared.as_ref().map(|shared| Arc::clone(&shared.strays)),
    };
    let has_returned = Arc::clone(&watch.has_returned);
    let runtime = Handle::current();
    let work = move || {
        let _inside = runtime.enter();
        let ended = catch_unwind(AssertUnwindSafe(|| call(ctx, args)));
        has_returned.store(true, Ordering::Release);
        drop(tell.send(ended)); // Nobody listens when the run is over.
    };
    let started = std::thread::Builder::new().name("task".to_owned()).spawn(work);
    let ended = match started {
        Ok(_) => told.await,
        Err(err) => {
            watch.has_ended = true;
            return Err(Failure::transient(format!("start a thread: {err}")).into());
        }
    };
    watch.has_ended = true;
    match ended {
        Ok(Ok(done)) => done.map_err(Into::into),
        Ok(Err(panic)) => resume_unwind(panic), // Whoever runs tasks makes a failure of it.
        Err(_) => Err(Failure::transient("its thread ended without a word").into()),
    }
}
