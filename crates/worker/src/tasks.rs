//! The table of tasks that a worker knows, and plain async functions as tasks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Serialize;
use umbel_protocol::control::glob;
use umbel_protocol::json::Json;

use crate::arguments::{Arguments, FromArguments};
use crate::command;
use crate::errback;
use crate::job::{Failure, Job, JobContext, Outcome};
use crate::options::TaskOptions;
use crate::stop::Stop;

/// Tasks by name.
#[derive(Default)]
pub(crate) struct Tasks {
    by_name: BTreeMap<String, Arc<Entry>>,
    errbacks: BTreeMap<String, errback::Function>,
    commands: BTreeMap<String, command::Function>,
    /// Did remote control set limits for any?
    has_limits: AtomicBool,
}

struct Entry {
    job: Arc<dyn Job>,
    options: TaskOptions,
    taken: AtomicU64,
    limits: Mutex<Limits>,
}

/// Time limits of a task whose message names none: hard, soft.
pub(crate) type Limits = (Option<Duration>, Option<Duration>);

impl Tasks {
    pub(crate) fn add(&mut self, job: Arc<dyn Job>) {
        let entry = Arc::new(Entry {
            taken: AtomicU64::new(0),
            limits: Mutex::default(),
            options: job.options(),
            job,
        });
        for alias in &entry.options.aliases {
            self.by_name.insert(alias.clone(), Arc::clone(&entry));
        }
        self.by_name.insert(entry.job.name().to_owned(), entry);
    }

    /// Adds an errback, which others may send as a task.
    pub(crate) fn add_errback(&mut self, name: &str, function: errback::Function) {
        self.add(Arc::new(errback::Sent {
            name: name.to_owned(),
            function: Arc::clone(&function),
        }));
        self.errbacks.insert(name.to_owned(), function);
    }

    /// Keeps the tasks whose name one of the globs matches; without globs all.
    pub(crate) fn keep(&mut self, allowed: &[String]) {
        if !allowed.is_empty() {
            let is_allowed = |name: &str| allowed.iter().any(|pattern| glob(name, pattern));
            self.by_name.retain(|name, _| is_allowed(name));
            self.errbacks.retain(|name, _| is_allowed(name));
        }
    }

    /// What a task wants; `None` for one that is not known.
    pub(crate) fn options(&self, name: &str) -> Option<&TaskOptions> {
        self.by_name.get(name).map(|entry| &entry.options)
    }

    pub(crate) fn add_command(&mut self, name: &str, function: command::Function) {
        self.commands.insert(name.to_owned(), function);
    }

    /// A command of the application's own.
    pub(crate) fn command(&self, name: &str) -> Option<command::Function> {
        self.commands.get(name).map(Arc::clone)
    }

    pub(crate) fn errback(&self, name: &str) -> Option<&errback::Function> {
        self.errbacks.get(name)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<dyn Job>> {
        self.by_name.get(name).map(|entry| &entry.job)
    }

    /// Counts that a task is run, and answers the limits that remote control has set for it.
    pub(crate) fn taken(&self, name: &str) -> Limits {
        let Some(entry) = self.by_name.get(name) else {
            return Limits::default();
        };
        entry.taken.fetch_add(1, Ordering::Relaxed);
        if self.has_limits.load(Ordering::Relaxed) {
            *entry.limits.lock().unwrap_or_else(PoisonError::into_inner)
        } else {
            Limits::default()
        }
    }

    /// Sets time limits in seconds; `None` or zero: those of the worker. False: no such task.
    pub(crate) fn set_limits(&self, name: &str, hard: Option<f64>, soft: Option<f64>) -> bool {
        let Some(entry) = self.by_name.get(name) else {
            return false;
        };
        let limit = |seconds: Option<f64>| {
            let seconds = seconds.filter(|seconds| *seconds > 0.0)?;
            Duration::try_from_secs_f64(seconds).ok()
        };
        *entry.limits.lock().unwrap_or_else(PoisonError::into_inner) = (limit(hard), limit(soft));
        self.has_limits.store(true, Ordering::Relaxed);
        true
    }

    /// How often each task was run.
    pub(crate) fn counts(&self) -> Vec<(String, u64)> {
        let counts = self.by_name.iter();
        counts
            .filter(|(name, entry)| entry.job.name() == *name) // Aliases share a count.
            .map(|(name, entry)| (name.clone(), entry.taken.load(Ordering::Relaxed)))
            .filter(|(_, taken)| *taken > 0)
            .collect()
    }

    /// Tasks that were registered with a rate limit, and that.
    pub(crate) fn rates(&self) -> impl Iterator<Item = (&str, &str)> {
        let entries = self.by_name.values();
        entries.filter_map(|entry| Some((entry.job.name(), entry.options.rate_limit.as_deref()?)))
    }

    /// Every name, the task's own name and what it wants.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &str, &TaskOptions)> {
        let entries = self.by_name.iter();
        entries.map(|(name, entry)| (name.as_str(), entry.job.name(), &entry.options))
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.by_name.keys().cloned().collect()
    }
}

/// An async function as a job.
pub(crate) struct Function<F> {
    pub(crate) name: String,
    pub(crate) options: TaskOptions,
    pub(crate) parameters: &'static [&'static str],
    pub(crate) call: F,
}

impl<F> Job for Function<F>
where
    F: Fn(JobContext, Arguments) -> BoxFuture<'static, Outcome> + Send + Sync,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn options(&self) -> TaskOptions {
        self.options.clone()
    }

    fn parameters(&self) -> &'static [&'static str] {
        self.parameters
    }

    fn run<'a>(&'a self, ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome> {
        (self.call)(ctx.clone(), args)
    }
}

/// Makes a job of an async function.
pub(crate) fn function<A, R, E, F, Fut>(name: &str, options: TaskOptions, call: F) -> impl Job + use<A, R, E, F, Fut>
where
    A: FromArguments + Send + 'static,
    R: Serialize + 'static,
    E: Into<Stop> + 'static,
    F: Fn(JobContext, A) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = Result<R, E>> + Send + 'static,
{
    Function {
        name: name.to_owned(),
        options,
        parameters: A::parameters(),
        call: move |ctx: JobContext, args: Arguments| {
            let call = call.clone();
            async move {
                let args = match A::from_arguments(args) {
                    Ok(args) => args,
                    Err(failure) => return Outcome::Failed(failure),
                };
                match call(ctx, args).await {
                    Ok(value) => done(&value),
                    Err(stop) => stop.into().into(),
                }
            }
            .boxed()
        },
    }
}

fn done<R: Serialize>(value: &R) -> Outcome {
    match Json::try_of(value) {
        Ok(value) => Outcome::Done(value),
        Err(err) => Outcome::Failed(Failure::type_error(format!("the result has no JSON form: {err}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_known_by_its_aliases() {
        let mut tasks = Tasks::default();
        let options = TaskOptions::new().alias("old.add").rate_limit("10/m");
        let add = function("add", options, |_ctx, (a, b): (i64, i64)| async move {
            Ok::<_, Failure>(a + b)
        });
        tasks.add(Arc::new(add));
        assert_eq!(tasks.names(), ["add", "old.add"]);
        assert!(tasks.get("old.add").is_some());
        let options = tasks.options("old.add").unwrap();
        assert_eq!(options.rate_limit.as_deref(), Some("10/m"));
        tasks.taken("old.add");
        assert_eq!(tasks.counts(), [("add".to_owned(), 1)]);
    }

    #[test]
    fn only_allowed_tasks_are_known() {
        let names = |allowed: &[&str]| {
            let mut tasks = Tasks::default();
            for name in ["proj.add", "proj.mul", "other.add"] {
                let task = |_ctx, (): ()| async { Ok::<_, Failure>(()) };
                tasks.add(Arc::new(function(name, TaskOptions::new(), task)));
            }
            tasks.keep(&allowed.iter().map(|glob| (*glob).to_owned()).collect::<Vec<_>>());
            tasks.names()
        };
        assert_eq!(names(&[]).len(), 3);
        assert_eq!(names(&["proj.*"]), ["proj.add", "proj.mul"]);
        assert_eq!(names(&["*.add", "proj.m?l"]).len(), 3);
        assert_eq!(names(&["proj"]), Vec::<String>::new());
    }
}
