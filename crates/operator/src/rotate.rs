//! A Secret of a broker has changed: its workers are to have the new one soon.
//!
//! The files of a pod's Secrets are renewed when the kubelet looks after the pod: within a minute or two by itself, at once when
//! the pod has changed. So the pods get an annotation. Workers read their files every five seconds.

use std::sync::Arc;

use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use umbel_api::names::{ANNOTATION_BROKER, LABEL_POOL, MANAGER};

use crate::apply;
use crate::brokers::Source;
use crate::context::Context;
use crate::failpoint;

/// Touches the pods of all pools on this broker. What fails is left to the kubelet.
pub(crate) async fn touch(context: Arc<Context>, source: Source) {
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(context.client.clone(), &source.namespace);
    let seen = jiff::Timestamp::now().to_string();
    let serves = |pool: &umbel_api::WorkerPool| {
        let queue = |name: &str| context.queue(&source.namespace, name);
        pool.namespace().as_deref() == Some(&source.namespace)
            && pool.spec.queues.iter().any(|share| {
                queue(&share.name).is_some_and(|queue| context.brokers.source(&queue).as_ref() == Ok(&source))
            })
    };
    for pool in context.pools().iter().filter(|pool| serves(pool)) {
        let of_pool = ListParams::default().labels(&format!("{LABEL_POOL}={}", pool.name_any()));
        let found = match pods.list(&of_pool).await {
            Ok(found) => found.items,
            Err(error) => {
                tracing::warn!(
                    pool = pool.name_any(),
                    error = apply::words(&error),
                    "pods not told of a changed Secret"
                );
                continue;
            }
        };
        tracing::info!(pool = pool.name_any(), pods = found.len(), %source, "a Secret has changed: its pods renew their files");
        for pod in found {
            let change = json!({ "metadata": { "uid": pod.uid(), "annotations": { ANNOTATION_BROKER: seen } } });
            let params = PatchParams {
                field_manager: Some(MANAGER.to_owned()),
                ..PatchParams::default()
            };
            let told = failpoint::around("rotate", pods.patch(&pod.name_any(), &params, &Patch::Merge(change))).await;
            match told {
                Ok(_) => context.metrics.wrote("patch", "pods"),
                // It goes, or went.
                Err(error) => tracing::debug!(pod = pod.name_any(), error = apply::words(&error), "pod not told"),
            }
        }
    }
}
