//! Commands of the application's own for remote control: Celery's `@control_command` and `@inspect_command`.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Serialize;
use umbel_protocol::control::answer;
use umbel_protocol::json::Json;

use crate::arguments::{Arguments, FromArguments};
use crate::execute::panicked;
use crate::failure::Failure;

/// Nobody waits longer for an answer: Celery's clients give up after a second, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(10);

/// A registered command.
pub(crate) type Function = Arc<dyn Fn(Arguments) -> BoxFuture<'static, Result<Json, Failure>> + Send + Sync>;

/// Makes one of an async function.
pub(crate) fn function<A, R, F, Fut>(call: F) -> Function
where
    A: FromArguments + Send + 'static,
    R: Serialize + 'static,
    F: Fn(A) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = Result<R, Failure>> + Send + 'static,
{
    Arc::new(move |args| {
        let call = call.clone();
        async move { Ok(Json::of(&call(A::from_arguments(args)?).await?)) }.boxed()
    })
}

/// What the command answers to these arguments, whatever comes of it.
pub(crate) async fn run(command: Function, kwargs: Json) -> Json {
    let args = Arguments {
        args: Json::empty_array(),
        kwargs,
    };
    let called = AssertUnwindSafe(async move { command(args).await }).catch_unwind();
    match tokio::time::timeout(PATIENCE, called).await {
        Ok(Ok(Ok(said))) => said,
        Ok(Ok(Err(failure))) => answer::error(&failure.document().repr()),
        Ok(Err(panic)) => answer::error(&panicked(&*panic).message),
        Err(_) => answer::error(&format!("no answer within {} s", PATIENCE.as_secs())),
    }
}
