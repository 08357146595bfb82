//! Errbacks that are functions of this process: called where the failure is noticed, with what is known of it.
//!
//! # Guarantees
//! Called before the failure is settled, so each is called at least once, and again where a worker dies in between. What
//! an errback does (fail, panic, run too long) changes nothing about the failure.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use umbel_protocol::canvas::Errback;
use umbel_protocol::json::Json;
use umbel_protocol::message::TaskMessage;
use umbel_protocol::result::{self, ResultDoc};

use crate::app::Shared;
use crate::arguments::{Arguments, FromArguments};
use crate::execute::panicked;
use crate::job::{Failure, Job, JobContext, Outcome};
use crate::results;
use crate::stop::Stop;

/// What an errback is told of the task that failed: Celery's request, exception and traceback.
#[derive(Debug, Clone)]
pub struct Failed {
    /// The id of the task.
    pub id: String,
    /// The first task of its workflow.
    pub root_id: String,
    /// Its name; empty where only its id is known.
    pub task: String,
    /// Its error. Of a chord's body, that one of its members raised: `ChordError`.
    pub failure: Failure,
    /// Traceback text; none of a chord that failed before its body was sent.
    pub traceback: Option<String>,
    /// What it was called with; none of a chord's body, which was not called at all.
    pub arguments: Option<Arguments>,
}

/// A registered errback.
pub(crate) type Function = Arc<dyn Fn(Failed, Arguments) -> BoxFuture<'static, Result<(), Stop>> + Send + Sync>;

/// Makes one of an async function.
pub(crate) fn function<A, E, F, Fut>(call: F) -> Function
where
    A: FromArguments + Send + 'static,
    E: Into<Stop> + 'static,
    F: Fn(Failed, A) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = Result<(), E>> + Send + 'static,
{
    Arc::new(move |failed, args| {
        let call = call.clone();
        async move { call(failed, A::from_arguments(args)?).await.map_err(Into::into) }.boxed()
    })
}

/// Calls an errback for `message`, the task that runs here, or for a chord that ended with it.
pub(crate) async fn call(shared: &Shared, message: &TaskMessage, errback: Errback) {
    let Some(function) = shared.tasks.errback(&errback.signature.task) else {
        return;
    };
    let name = errback.signature.task;
    let args = Arguments {
        args: errback.signature.args,
        kwargs: errback.signature.kwargs,
    };
    let failed = Failed {
        arguments: (errback.id == message.id).then(|| Arguments::of(message)),
        id: errback.id,
        root_id: errback.root_id,
        task: errback.task,
        failure: Failure::from(&errback.failure),
        traceback: errback.traceback,
    };
    let id = failed.id.clone();
    let called = AssertUnwindSafe(async move { function(failed, args).await }).catch_unwind();
    let problem = match tokio::time::timeout(shared.config.time_limit, called).await {
        Ok(Ok(Ok(()))) => return,
        Ok(Ok(Err(stop))) => format!("{:?}", Outcome::from(stop)),
        Ok(Err(panic)) => panicked(&*panic).message,
        Err(_) => "it ran longer than the time limit of tasks".to_owned(),
    };
    tracing::error!(task.id = %id, errback = %name, problem, "an errback failed");
}

/// An errback as a task: workers that have no such function send it, with the failed id before its own arguments.
pub(crate) struct Sent {
    pub(crate) name: String,
    pub(crate) function: Function,
}

impl Job for Sent {
    fn name(&self) -> &str {
        &self.name
    }

    fn run<'a>(&'a self, ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome> {
        async move {
            let mut given = args.args.elements().unwrap_or_default().into_iter();
            let Some(id) = given.next().and_then(|id| id.text()) else {
                return Outcome::Failed(Failure::type_error("the id of the failed task is missing"));
            };
            let failed = match told(ctx, id).await {
                Ok(failed) => failed,
                Err(failure) => return Outcome::Failed(failure),
            };
            let rest = Arguments {
                args: Json::of(&given.collect::<Vec<_>>()),
                kwargs: args.kwargs,
            };
            match (self.function)(failed, rest).await {
                Ok(()) => Outcome::Done(Json::null()),
                Err(stop) => stop.into(),
            }
        }
        .boxed()
    }
}

/// What the result of the failed task says.
async fn told(ctx: &JobContext, id: String) -> Result<Failed, Failure> {
    let document = match &ctx.shared {
        None => None,
        Some(shared) => {
            let found = shared.store.documents(std::slice::from_ref(&id)).await;
            found
                .map_err(|err| Failure::transient(umbel_telemetry::chain(&err).to_string()))?
                .pop()
                .flatten()
        }
    };
    let document: Option<ResultDoc> = document
        .and_then(|raw| results::read(&raw))
        .and_then(|json| result::parse(json.as_str().as_bytes()).ok());
    let failure = document.as_ref().and_then(ResultDoc::failure);
    Ok(Failed {
        root_id: ctx.request.root_id().to_owned(),
        task: String::new(),
        failure: failure.map_or_else(
            || Failure::permanent("Exception", format!("task {id} failed; its result is not kept")),
            |failure| Failure::from(&failure),
        ),
        traceback: document.and_then(|document| document.traceback),
        arguments: None,
        id,
    })
}
