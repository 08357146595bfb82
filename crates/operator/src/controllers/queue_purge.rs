//! `deletionPolicy: Purge` of a TaskQueue: its messages go before it goes.
//!
//! A finalizer, which only such a queue has, keeps the object until what waits, is delayed or was laid aside has been
//! removed. What runs goes on. While the broker is away the object stays; with `Retain` it may go at any time. Without the
//! Secret nobody knows the broker, and the object goes: a namespace that is deleted would wait for ever.

use kube::api::{Patch, PatchParams};
use kube::runtime::events::EventType;
use kube::{Api, ResourceExt};
use serde_json::json;
use umbel_api::TaskQueue;
use umbel_api::names::{FINALIZER_QUEUE, MANAGER};
use umbel_api::taskqueue::DeletionPolicy;
use umbel_broker::{AsideFilter, AsideKind, Broker, Place};
use umbel_plan::queue::is_serving;

use super::taskqueue::{Error, broker_of};
use crate::context::Context;
use crate::failpoint;

/// Messages in one call.
const TOGETHER: u64 = 500;

/// Sets the finalizer, removes it, or removes the messages of a queue that is being deleted. True: nothing
/// else is to be done for it now.
pub(crate) async fn settle(ctx: &Context, queue: &TaskQueue, is_owned_elsewhere: bool) -> Result<bool, Error> {
    let has = queue.finalizers().iter().any(|one| one == FINALIZER_QUEUE);
    let purges = queue.spec.deletion_policy == DeletionPolicy::Purge;
    if queue.metadata.deletion_timestamp.is_none() {
        if has != purges {
            write(ctx, queue, purges).await?;
        }
        // What was written comes back as a change.
        return Ok(has != purges);
    }
    if !has {
        return Ok(true);
    }
    if !purges || is_owned_elsewhere {
        // Nothing is to go, or it is another object's.
        write(ctx, queue, false).await?;
        return Ok(true);
    }
    let Some(broker) = broker_of(ctx, queue) else {
        let missing = match ctx.brokers.source(queue) {
            Ok(source) => ctx.brokers.missing(&source).await,
            Err(_) => None,
        };
        let Some(secret) = missing else {
            // Its condition says that the broker is away. It is asked again at the next look.
            return Ok(false);
        };
        let note = format!("not purged: there is no Secret {secret}, so nobody knows its broker");
        tracing::warn!(queue = %queue.name_any(), "deleted, but {note}");
        ctx.event(queue, EventType::Warning, "NotPurged", note).await;
        write(ctx, queue, false).await?;
        return Ok(true);
    };
    if !queue.status.as_ref().is_some_and(is_serving) {
        // Nobody has said that these messages are its own: another object's may not be known yet. The status comes first.
        return Ok(false);
    }
    let failed = |error| Error::Purge(queue.name_any(), error);
    let removed = purge(&broker, &queue.queue_name()).await.map_err(failed)?;
    let note = format!("{removed} messages were removed (deletionPolicy: Purge)");
    tracing::info!(queue = %queue.name_any(), removed, "deleted: its messages are removed");
    ctx.event(queue, EventType::Normal, "Purged", note).await;
    write(ctx, queue, false).await?;
    Ok(true)
}

/// Removes what waits, is delayed, or was laid aside.
async fn purge(broker: &Broker, queue: &str) -> Result<u64, umbel_broker::Error> {
    let mut removed = 0;
    // What is delayed first: it would come back into the lists.
    for place in [Place::Delayed, Place::Waiting, Place::Suspect] {
        loop {
            let purged = failpoint::around("purge", broker.purge(queue, place, TOGETHER)).await;
            let purged = purged?;
            if purged.messages == 0 {
                break;
            }
            removed += purged.messages;
        }
    }
    for kind in [AsideKind::Dead, AsideKind::Quarantine] {
        loop {
            let page = broker.aside(kind, queue, AsideFilter::default(), TOGETHER).await?;
            let entries: Vec<String> = page.entries.into_iter().map(|entry| entry.entry).collect();
            if entries.is_empty() {
                break;
            }
            let discarded = failpoint::around("discard", broker.discard(kind, queue, &entries)).await;
            removed += discarded?;
        }
    }
    Ok(removed)
}

async fn write(ctx: &Context, queue: &TaskQueue, has: bool) -> Result<(), Error> {
    let mut finalizers: Vec<String> = queue.finalizers().to_vec();
    finalizers.retain(|one| one != FINALIZER_QUEUE);
    if has {
        finalizers.push(FINALIZER_QUEUE.to_owned());
    }
    let api: Api<TaskQueue> = Api::namespaced(ctx.client.clone(), &queue.namespace().unwrap_or_default());
    let body = json!({ "metadata": { "finalizers": finalizers, "resourceVersion": queue.resource_version() } });
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let written = failpoint::around("finalizers", api.patch(&queue.name_any(), &params, &Patch::Merge(body))).await;
    match written {
        Ok(_) => {
            ctx.metrics.wrote("patch", "taskqueues");
            Ok(())
        }
        // Gone already.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(Error::WriteFinalizers(queue.name_any(), error)),
    }
}
