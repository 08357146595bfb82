//! `umbel pool drain` and `umbel pool resume`: a pool is emptied, and started again.

use std::process::ExitCode;
use std::time::Duration;

use kube::Api;
use kube::api::Patch;
use serde_json::json;
use tokio::time::Instant;
use umbel_api::WorkerPool;
use umbel_api::names::pool_condition;

use crate::args::{Global, PoolDrain};
use crate::home::{Home, manager, said};
use crate::output;

/// The pool is looked at this often: its status is written as things change.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) async fn run(global: &Global, drain: &PoolDrain) -> anyhow::Result<ExitCode> {
    let PoolDrain { name, timeout } = drain;
    let Home { client, namespace } = Home::open(global).await?;
    let api = Api::<WorkerPool>::namespaced(client, &namespace);
    let pool = suspend(&api, &namespace, name, true).await?;
    if timeout.is_zero() {
        output::say(&format!("WorkerPool {namespace}/{name} takes no more work"));
        return Ok(ExitCode::SUCCESS);
    }
    let (deadline, mut told) = (Instant::now() + *timeout, String::new());
    loop {
        let now = api
            .get(name)
            .await
            .map_err(|err| said(err, format!("read WorkerPool {namespace}/{name}")))?;
        let status = now.status.clone().unwrap_or_default();
        // A status from before says nothing of this.
        if status.observed_generation >= pool.metadata.generation {
            if status.replicas == 0 {
                output::say(&format!("WorkerPool {namespace}/{name} is empty"));
                return Ok(ExitCode::SUCCESS);
            }
            let sentence = status
                .conditions
                .iter()
                .find(|condition| condition.type_ == pool_condition::SCALING_ACTIVE);
            let sentence = sentence.map(|condition| condition.message.clone()).unwrap_or_default();
            if sentence != told {
                output::say(&sentence);
                told = sentence;
            }
        }
        if Instant::now() >= deadline {
            output::say(&format!(
                "WorkerPool {namespace}/{name} has {} pods after {}; it goes on to empty itself",
                status.replicas,
                umbel_api::Span::from(*timeout)
            ));
            return Ok(ExitCode::FAILURE);
        }
        tokio::time::sleep_until((Instant::now() + LOOK).min(deadline)).await;
    }
}

pub(crate) async fn resume(global: &Global, name: &str) -> anyhow::Result<()> {
    let Home { client, namespace } = Home::open(global).await?;
    suspend(&Api::namespaced(client, &namespace), &namespace, name, false).await?;
    output::say(&format!("WorkerPool {namespace}/{name} follows its spec again"));
    Ok(())
}

async fn suspend(api: &Api<WorkerPool>, namespace: &str, name: &str, is_suspended: bool) -> anyhow::Result<WorkerPool> {
    let patch = json!({ "spec": { "suspend": is_suspended } });
    api.patch(name, &manager(), &Patch::Merge(patch))
        .await
        .map_err(|err| said(err, format!("write WorkerPool {namespace}/{name}")))
}
