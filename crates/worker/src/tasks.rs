//! The table of tasks that a worker knows, and plain async functions as tasks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use umbel_protocol::json::Json;

use crate::job::{Arguments, Failure, Job, JobContext, Outcome};

/// Tasks by name.
#[derive(Default)]
pub(crate) struct Tasks {
    by_name: BTreeMap<String, Entry>,
    /// Did remote control set limits for any?
    has_limits: AtomicBool,
}

struct Entry {
    job: Arc<dyn Job>,
    taken: AtomicU64,
    limits: Mutex<Limits>,
}

/// Time limits of a task whose message names none: hard, soft.
pub(crate) type Limits = (Option<Duration>, Option<Duration>);

impl Tasks {
    pub(crate) fn add(&mut self, job: Arc<dyn Job>) {
        let entry = Entry {
            taken: AtomicU64::new(0),
            limits: Mutex::default(),
            job,
        };
        self.by_name.insert(entry.job.name().to_owned(), entry);
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
            .map(|(name, entry)| (name.clone(), entry.taken.load(Ordering::Relaxed)))
            .filter(|(_, taken)| *taken > 0)
            .collect()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.by_name.keys().cloned().collect()
    }
}

/// An async function as a job.
pub(crate) struct Function<F> {
    pub(crate) name: String,
    pub(crate) call: F,
}

impl<F> Job for Function<F>
where
    F: Fn(JobContext, Arguments) -> BoxFuture<'static, Outcome> + Send + Sync,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn run<'a>(&'a self, ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome> {
        (self.call)(ctx.clone(), args)
    }
}

/// Makes a job of an async function with typed arguments.
pub(crate) fn function<A, R, F, Fut>(name: &str, call: F) -> impl Job + use<A, R, F, Fut>
where
    A: DeserializeOwned + Send + 'static,
    R: Serialize + 'static,
    F: Fn(JobContext, A) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = Result<R, Failure>> + Send + 'static,
{
    Function {
        name: name.to_owned(),
        call: move |ctx: JobContext, args: Arguments| {
            let call = call.clone();
            async move {
                match typed(&args) {
                    Ok(args) => match call(ctx, args).await {
                        Ok(value) => done(&value),
                        Err(failure) if failure.is_retryable => Outcome::Retry {
                            after: None,
                            why: failure,
                        },
                        Err(failure) => Outcome::Failed(failure),
                    },
                    Err(failure) => Outcome::Failed(failure),
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

/// Arguments as one type: a tuple or a struct from positional ones, a struct from keywords.
fn typed<A: DeserializeOwned>(args: &Arguments) -> Result<A, Failure> {
    let has_args = args.args.as_str() != "[]";
    let has_kwargs = args.kwargs.as_str() != "{}";
    match (has_args, has_kwargs) {
        (true, true) => Err(Failure::type_error("takes positional or keyword arguments, not both")),
        (true, false) => args.positional(),
        (false, true) => args.keywords(),
        (false, false) => Json::null()
            .to()
            .or_else(|_| args.keywords())
            .or_else(|failure| args.positional().map_err(|_| failure)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Resize {
        url: String,
        #[serde(default)]
        width: u32,
    }

    fn arguments(args: &str, kwargs: &str) -> Arguments {
        Arguments {
            args: Json::parse(args).unwrap(),
            kwargs: Json::parse(kwargs).unwrap(),
        }
    }

    #[test]
    fn arguments_by_position_and_by_name() {
        let expected = Resize {
            url: "u".into(),
            width: 3,
        };
        assert_eq!(typed::<Resize>(&arguments(r#"["u", 3]"#, "{}")).unwrap(), expected);
        assert_eq!(
            typed::<Resize>(&arguments("[]", r#"{"url": "u", "width": 3}"#)).unwrap(),
            expected
        );
        assert_eq!(typed::<(i64, i64)>(&arguments("[2, 3]", "{}")).unwrap(), (2, 3));
        assert!(matches!(typed::<()>(&arguments("[]", "{}")), Ok(())));
        let wrong = typed::<(i64, i64)>(&arguments("[2]", "{}")).unwrap_err();
        assert_eq!((wrong.exc_type.as_str(), wrong.is_retryable), ("TypeError", false));
        assert!(typed::<Resize>(&arguments("[1]", r#"{"width": 3}"#)).is_err());
    }
}
