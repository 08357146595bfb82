//! Secrets that become target clusters, in the namespaces that were named for it and nowhere else.
//!
//! A Secret is one if it is labelled `umbel.dev/cluster: "true"`, or if Cluster API made it: `<name>-kubeconfig` with the
//! label `cluster.x-k8s.io/cluster-name: <name>`. Only names and labels of Secrets are watched; what is in one is read by
//! the controller of target clusters, as with every other. A TargetCluster that somebody else made is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, future, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::runtime::events::EventType;
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, reflector};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use umbel_api::TargetCluster;
use umbel_api::names::{
    ANNOTATION_CLUSTER_KEY, ANNOTATION_DISCOVERED_LABELS, LABEL_CLUSTER, LABEL_CLUSTER_NAME, LABEL_DISCOVERED,
    LABEL_MANAGED_BY, LABEL_PREFIX, MANAGER,
};
use umbel_telemetry::chain;

use crate::apply;
use crate::context::Context;
use crate::failpoint;
use crate::watch::WATCH_LASTS;

/// Cluster API's label on what belongs to a cluster.
const CAPI_CLUSTER: &str = "cluster.x-k8s.io/cluster-name";
/// Cluster API's key of the kubeconfig.
const CAPI_KEY: &str = "value";
/// What failed is tried again after this; nothing is written where nothing differs.
const AGAIN: Duration = Duration::from_secs(15);
/// Changes that come together are looked at together.
const TOGETHER: Duration = Duration::from_millis(200);

/// Reasons that were told are not told again, as long as there are no more of them than this.
const MOST_TOLD: usize = 1000;

type Meta = PartialObjectMeta<Secret>;

/// A TargetCluster that should be, from a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    name: String,
    secret: String,
    uid: String,
    key: String,
    labels: BTreeMap<String, String>,
}

/// What a Secret asks for; nothing where it is none of ours.
fn wanted(secret: &Meta) -> Option<Wanted> {
    let own = secret.name_any();
    let labels = secret.labels();
    // A Secret that goes is gone.
    if secret.meta().deletion_timestamp.is_some() {
        return None;
    }
    let (name, key) = if labels.get(LABEL_CLUSTER).is_some_and(|is| is == "true") {
        let key = secret.annotations().get(ANNOTATION_CLUSTER_KEY);
        let key = key.cloned().unwrap_or_else(|| "kubeconfig".to_owned());
        (
            labels.get(LABEL_CLUSTER_NAME).cloned().unwrap_or_else(|| own.clone()),
            key,
        )
    } else {
        let name = labels.get(CAPI_CLUSTER)?;
        (own == format!("{name}-kubeconfig")).then(|| (name.clone(), CAPI_KEY.to_owned()))?
    };
    let mut copied: BTreeMap<String, String> = labels
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(LABEL_PREFIX)?.to_owned(), value.clone())))
        .chain(
            labels
                .get_key_value(CAPI_CLUSTER)
                .map(|(key, value)| (key.clone(), value.clone())),
        )
        .collect();
    copied.insert(LABEL_DISCOVERED.to_owned(), "true".to_owned());
    copied.insert(LABEL_MANAGED_BY.to_owned(), "umbel".to_owned());
    Some(Wanted {
        name,
        secret: own,
        uid: secret.uid()?,
        key,
        labels: copied,
    })
}

impl Wanted {
    fn object(&self, namespace: &str, at: Option<&TargetCluster>) -> Value {
        let Wanted {
            name,
            secret,
            uid,
            key,
            labels,
        } = self;
        let mut object = json!({
            "apiVersion": TargetCluster::api_version(&()), "kind": TargetCluster::kind(&()),
            "metadata": {
                "name": name, "namespace": namespace, "labels": labels,
                "annotations": { ANNOTATION_DISCOVERED_LABELS: self.keys() },
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Secret", "name": secret, "uid": uid, "controller": true,
                }],
            },
            "spec": { "kubeconfigSecretRef": { "name": secret, "key": key } },
        });
        if let Some(at) = at {
            object["metadata"]["uid"] = json!(at.uid());
            object["metadata"]["resourceVersion"] = json!(at.resource_version());
            // What left the Secret leaves the TargetCluster: a label may be what lets pools in.
            let before = at
                .annotations()
                .get(ANNOTATION_DISCOVERED_LABELS)
                .map_or("", String::as_str);
            for key in before
                .split(',')
                .filter(|key| !key.is_empty() && !labels.contains_key(*key))
            {
                object["metadata"]["labels"][key] = Value::Null;
            }
        }
        object
    }

    fn keys(&self) -> String {
        self.labels.keys().map(String::as_str).collect::<Vec<_>>().join(",")
    }

    fn is_met_by(&self, cluster: &TargetCluster) -> bool {
        let reference = &cluster.spec.kubeconfig_secret_ref;
        let has = cluster.labels();
        reference.name == self.secret
            && reference.key == self.key
            && self.labels.iter().all(|(key, value)| has.get(key) == Some(value))
            && cluster.annotations().get(ANNOTATION_DISCOVERED_LABELS) == Some(&self.keys())
    }
}

/// The uid of the Secret that a TargetCluster was made for by discovery.
fn secret_of(cluster: &TargetCluster) -> Option<&str> {
    let ours = cluster.labels().contains_key(LABEL_DISCOVERED);
    let owners = cluster.owner_references().iter();
    let mut of = owners.filter(|owner| owner.kind == "Secret" && owner.controller == Some(true));
    of.next().filter(|_| ours).map(|owner| owner.uid.as_str())
}

/// Makes the target clusters of one namespace follow its Secrets, until `stop`.
pub async fn run(ctx: Arc<Context>, watching: Client, namespace: String, stop: CancellationToken) {
    if ctx.scope(&namespace).is_none() {
        tracing::error!(
            namespace,
            "nothing is discovered: the operator does not work in this namespace"
        );
        return stop.cancelled().await;
    }
    // What is asked for is metadata alone.
    let secrets: Api<Meta> = Api::namespaced(watching, &namespace);
    let (labelled, of_label) = follow(&secrets, &format!("{LABEL_CLUSTER}=true"));
    let (capi, of_capi) = follow(&secrets, CAPI_CLUSTER);
    let mut changes = stream::select(of_label, of_capi).boxed();
    let ready = async {
        // A writer is dropped only with its stream, which is held here.
        let _ = tokio::join!(labelled.wait_until_ready(), capi.wait_until_ready());
    };
    tokio::select! {
        () = stop.cancelled() => return,
        // The streams run only while somebody asks them.
        () = async { while changes.next().await.is_some() {} } => return,
        () = ready => {}
    }
    let mut told = BTreeSet::new();
    let mut claims = ctx.claims.changes();
    loop {
        if told.len() > MOST_TOLD {
            told.clear();
        }
        let all = labelled.state().into_iter().chain(capi.state());
        let mut all: Vec<Arc<Meta>> = all.collect();
        // The older one of two Secrets for one name has it.
        all.sort_by_key(|secret| (secret.creation_timestamp().map(|made| made.0), secret.name_any()));
        let mut clusters: BTreeMap<String, (Wanted, Arc<Meta>)> = BTreeMap::new();
        for secret in all {
            if let Some(wanted) = wanted(&secret) {
                clusters.entry(wanted.name.clone()).or_insert((wanted, secret));
            }
        }
        if ctx.leader.term().is_some() && ctx.claims.holds(&namespace) {
            for (wanted, secret) in clusters.values() {
                if let Err(why) = ensure(&ctx, &namespace, wanted).await
                    && told.insert((wanted.uid.clone(), why.clone()))
                {
                    tracing::warn!(
                        namespace,
                        secret = wanted.secret,
                        error = why,
                        "target cluster not made"
                    );
                    ctx.event(secret.as_ref(), EventType::Warning, "NotDiscovered", why)
                        .await;
                }
            }
            remove(&ctx, &namespace, &clusters).await;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
            // Its sender is in the context.
            Ok(()) = claims.changed() => {}
            change = changes.next() => if change.is_none() { return stop.cancelled().await },
        }
        // With whatever comes right after it.
        let _ = tokio::time::timeout(TOGETHER, async { while changes.next().await.is_some() {} }).await;
    }
}

/// The names and labels of the Secrets that a selector chooses, and that something changed.
fn follow(api: &Api<Meta>, labels: &str) -> (reflector::Store<Meta>, impl Stream<Item = ()> + Send + use<>) {
    let (store, writer) = reflector::store();
    let config = watcher::Config::default().labels(labels).timeout(WATCH_LASTS);
    let events = watcher(api.clone(), config).default_backoff();
    let changes = reflector::reflector(writer, events).filter_map(|event| {
        future::ready(match event {
            Ok(Event::Apply(_) | Event::Delete(_) | Event::InitDone) => Some(()),
            Ok(Event::Init | Event::InitApply(_)) => None,
            Err(error) => {
                tracing::warn!(kind = "Secret", error = %chain(&error), "watch interrupted");
                None
            }
        })
    });
    (store, changes)
}

/// Makes or changes one; why not, if not.
async fn ensure(ctx: &Context, namespace: &str, wanted: &Wanted) -> Result<(), String> {
    let clusters: Api<TargetCluster> = Api::namespaced(ctx.client.clone(), namespace);
    let failed = |error: &kube::Error| format!("TargetCluster {}: {}", wanted.name, apply::words(error));
    let there = clusters.get_opt(&wanted.name).await.map_err(|error| failed(&error))?;
    let Some(there) = there else {
        // Made, not applied: what somebody made meanwhile is not taken over.
        let object = serde_json::from_value(wanted.object(namespace, None)).map_err(|error| error.to_string())?;
        let params = PostParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PostParams::default()
        };
        let made = failpoint::around_of("discovery", "create", clusters.create(&params, &object)).await;
        made.map_err(|error| failed(&error))?;
        ctx.metrics.wrote("create", "targetclusters");
        return Ok(());
    };
    match secret_of(&there) {
        Some(uid) if uid == wanted.uid => {}
        Some(_) => return Err(format!("TargetCluster {} belongs to another Secret", wanted.name)),
        None => {
            return Err(format!(
                "TargetCluster {} exists and was made by somebody else",
                wanted.name
            ));
        }
    }
    if wanted.is_met_by(&there) {
        return Ok(());
    }
    // Its own fields only: what people set beside them stays.
    let patch = Patch::Merge(wanted.object(namespace, Some(&there)));
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let written = failpoint::around_of("discovery", "patch", clusters.patch(&wanted.name, &params, &patch)).await;
    written.map_err(|error| failed(&error))?;
    ctx.metrics.wrote("patch", "targetclusters");
    Ok(())
}

/// Removes those whose Secret asks for them no more. One whose Secret is gone would go with it, a little later.
async fn remove(ctx: &Context, namespace: &str, wanted: &BTreeMap<String, (Wanted, Arc<Meta>)>) {
    let clusters: Api<TargetCluster> = Api::namespaced(ctx.client.clone(), namespace);
    for cluster in ctx.clusters(namespace) {
        let Some(uid) = secret_of(&cluster) else { continue };
        let name = cluster.name_any();
        if wanted.get(&name).is_some_and(|(wanted, _)| wanted.uid == uid) {
            continue;
        }
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: cluster.uid(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let removed = failpoint::around_of("discovery", "delete", clusters.delete(&name, &params)).await;
        match removed {
            Ok(_) => ctx.metrics.wrote("delete", "targetclusters"),
            Err(error) if matches!(apply::code(&error), Some(404 | 409)) => {}
            Err(error) => {
                tracing::warn!(namespace, cluster = name, error = %chain(&error), "target cluster not removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, labels: &Value) -> Meta {
        let meta = json!({ "metadata": { "name": name, "namespace": "n", "uid": "u", "labels": labels } });
        serde_json::from_value(meta).expect("metadata")
    }

    #[test]
    fn a_secret_says_by_its_labels_that_it_is_a_cluster() {
        let found = wanted(&secret(
            "eu-admin",
            &json!({ "umbel.dev/cluster": "true", "umbel.dev/cluster-name": "eu", "label.umbel.dev/env": "prod", "team": "a" }),
        ))
        .expect("a cluster");
        assert_eq!(
            (found.name.as_str(), found.secret.as_str(), found.key.as_str()),
            ("eu", "eu-admin", "kubeconfig")
        );
        let labels: Vec<&str> = found.labels.keys().map(String::as_str).collect();
        assert_eq!(labels, ["app.kubernetes.io/managed-by", "env", "umbel.dev/discovered"]);

        let found = wanted(&secret("eu", &json!({ "umbel.dev/cluster": "true" }))).expect("a cluster");
        assert_eq!(found.name, "eu");

        let found = wanted(&secret("eu-kubeconfig", &json!({ CAPI_CLUSTER: "eu" }))).expect("a cluster");
        assert_eq!((found.name.as_str(), found.key.as_str()), ("eu", "value"));
        assert_eq!(found.labels[CAPI_CLUSTER], "eu");
    }

    #[test]
    fn other_secrets_are_none() {
        for (name, labels) in [
            ("eu", json!({})),
            ("eu", json!({ "umbel.dev/cluster": "false" })),
            // Its CA, its etcd, and a kubeconfig of another cluster.
            ("eu-ca", json!({ CAPI_CLUSTER: "eu" })),
            ("us-kubeconfig", json!({ CAPI_CLUSTER: "eu" })),
        ] {
            assert_eq!(wanted(&secret(name, &labels)), None, "{name}");
        }
    }
}
