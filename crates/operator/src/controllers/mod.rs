//! One file a kind. Each reads `observe → validate → plan → apply → report`;
//! what wakes it carries no input, so restart and steady state share one path.

pub mod periodictask;
mod queue_purge;
pub mod targetcluster;
pub mod task;
pub mod taskqueue;
pub mod workerpool;

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryFuture};
use kube::Resource;
use kube::runtime::controller::{self, Action, Config, applier};
use kube::runtime::reflector::{ObjectRef, Store};
use tokio_util::sync::CancellationToken;
use umbel_telemetry::chain;

use crate::context::Context;

/// Reconciles at a time and kind: enough to keep an API server on the same machine busy, few enough for a weak one.
const CONCURRENCY: u16 = 16;
/// The first wait after an error, doubled by each further one of the same object …
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// … up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Reconciles the objects of `store` whenever `wakes` names one, until `stop`.
///
/// An error of one object delays that object alone: 0.5 s, doubled each time, at most a minute.
pub async fn drive<K, F, R>(
    name: &'static str,
    store: Store<K>,
    wakes: BoxStream<'static, ObjectRef<K>>,
    context: Arc<Context>,
    reconcile: R,
    stop: CancellationToken,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    R: Fn(Arc<K>, Arc<Context>) -> F + Send + Sync + 'static,
    F: TryFuture<Ok = Action> + Future<Output = Result<Action, <F as TryFuture>::Error>> + Send + 'static,
    <F as TryFuture>::Error: std::error::Error + Send + 'static,
    ObjectRef<K>: Hash + Eq,
{
    let failures: Arc<Mutex<HashMap<ObjectRef<K>, u32>>> = Arc::default();
    let forgive = failures.clone();
    let metrics = context.metrics.clone();
    let counted = move |object: Arc<K>, context: Arc<Context>| {
        let (metrics, forgive) = (metrics.clone(), forgive.clone());
        let reference = ObjectRef::from_obj(object.as_ref());
        let namespace = object.meta().namespace.as_deref().unwrap_or_default();
        if let Some(rest) = context.claims.rest(namespace) {
            // Another install's, or not known yet.
            return std::future::ready(Ok(Action::requeue(rest))).boxed();
        }
        let run = reconcile(object, context);
        async move {
            let started = Instant::now();
            let result = run.await;
            metrics.reconciled(name, started.elapsed(), result.is_ok());
            if result.is_ok() {
                forgive
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&reference);
            }
            result
        }
        .boxed()
    };
    let policy = move |object: Arc<K>, error: &<F as TryFuture>::Error, _| {
        let reference = ObjectRef::from_obj(object.as_ref());
        let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(reference.clone()).or_default();
        *count += 1;
        let wait = LONGEST_WAIT.min(FIRST_WAIT * 2u32.saturating_pow(*count - 1));
        tracing::warn!(controller = name, object = %reference, error = %chain(error), retry_ms = wait.as_millis(), "reconcile failed");
        Action::requeue(wait)
    };
    let queue = wakes
        .take_until(stop.cancelled_owned())
        .map(Ok::<_, std::convert::Infallible>);
    applier(
        counted,
        policy,
        context,
        store,
        queue,
        Config::default().concurrency(CONCURRENCY),
    )
    .for_each(|result| {
        if let Err(controller::Error::RunnerError(error)) = result {
            tracing::error!(controller = name, error = %chain(&error), "controller runner failed");
        }
        std::future::ready(())
    })
    .await;
}
