//! `umbel.cluster.apply`: manifests to clusters, by server-side apply, fenced.
//!
//! # Guarantees
//! * Nothing is written to a cluster before every object was read, held against the fence and dry-run there.
//! * An object that a newer run wrote is not overwritten: each write carries the fence and the resourceVersion that it
//!   was decided on, and a first write is a create, which fails if somebody was faster.
//! * A run that died half-way is finished by its next delivery: same field manager, same objects.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt as _, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::discovery::{self, Scope};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use umbel_clusters::{Error, Registry, Target};

use super::fence::Fence;
use super::manifest::{self, Manifest};
use super::{ApplyRules, target};
use crate::job::{Arguments, Failure, Job, JobContext, Outcome};
use crate::lease::Lost;

const ANNOTATION: &str = "umbel.dev/fence";
const MANAGER: &str = "umbel-apply";
/// One request. The API server's own limit is a minute; a healthy one answers in a tenth of a second.
const REQUEST: Duration = Duration::from_secs(15);
/// Clusters of one message at a time; a message for more than a few should have been a fan-out.
const PARALLEL: usize = 4;
/// Clusters of one message.
const MAX_CLUSTERS: usize = 100;
/// Requests for one object: a create takes three, and each time that it changes between our read and our write one more.
const STEPS: usize = 8;

/// The job.
pub(super) struct Apply {
    clusters: Registry,
    rules: ApplyRules,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keywords {
    cluster: Option<String>,
    #[serde(default)]
    clusters: Vec<String>,
    manifests: Value,
    /// For objects that name none.
    namespace: Option<String>,
    /// Take fields over from other field managers.
    #[serde(default)]
    force: bool,
}

/// One object as the result lists it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Applied {
    api_version: String,
    kind: String,
    namespace: String,
    name: String,
    action: &'static str,
}

/// Why a cluster's part ended early.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Target(#[from] Error),
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error("cluster `{cluster}`: {object}: {source}")]
    Object {
        cluster: String,
        object: String,
        source: Error,
    },
    #[error("cluster `{cluster}`: {object}: the cluster has no kind {kind}")]
    NoKind {
        cluster: String,
        object: String,
        kind: String,
    },
    #[error("cluster `{cluster}`: {object}: {kind} is cluster-scoped, and only namespaced kinds are applied")]
    NotNamespaced {
        cluster: String,
        object: String,
        kind: String,
    },
    #[error("cluster `{cluster}`: {object}: {stored} wrote it, which is newer than this run ({ours})")]
    Newer {
        cluster: String,
        object: String,
        stored: String,
        ours: Fence,
    },
    #[error(
        "cluster `{cluster}`: {object}: its annotation {ANNOTATION} is `{stored}`, which is no fence; remove it to go on"
    )]
    NoFence {
        cluster: String,
        object: String,
        stored: String,
    },
    #[error("cluster `{cluster}`: {object}: it kept changing while it was written")]
    Restless { cluster: String, object: String },
}

impl Fault {
    fn failure(&self) -> Failure {
        match self {
            Fault::Target(source) | Fault::Object { source, .. } => {
                // A conflict with another field manager stays until a person decides.
                let is_retryable = !source.is_permanent() && !is_field_conflict(source);
                Failure {
                    is_retryable,
                    ..Failure::permanent(&target::failure(source).exc_type, self.to_string())
                }
            }
            Fault::Lost(_) | Fault::Restless { .. } => Failure::transient(self.to_string()),
            Fault::NoKind { .. } => Failure::permanent("LookupError", self.to_string()),
            Fault::NotNamespaced { .. } => Failure::permanent("PermissionError", self.to_string()),
            Fault::Newer { .. } | Fault::NoFence { .. } => Failure::permanent("RuntimeError", self.to_string()),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Fault::Target(source) | Fault::Object { source, .. } => source.retry_after(),
            _ => None,
        }
    }
}

/// A manifest with what its cluster says about it.
struct Planned<'a> {
    manifest: &'a Manifest,
    api: Api<DynamicObject>,
    /// As it was read; `None` if it was not there.
    current: Option<DynamicObject>,
}

/// One cluster's part of a run.
struct Run<'a> {
    ctx: &'a JobContext,
    target: Target,
    fence: Fence,
    force: bool,
}

impl Apply {
    pub(super) fn new(clusters: Registry, rules: ApplyRules) -> Apply {
        Apply { clusters, rules }
    }

    async fn apply(&self, ctx: &JobContext, arguments: &Arguments) -> Result<Outcome, Failure> {
        let Keywords {
            cluster,
            clusters,
            manifests,
            namespace,
            force,
        } = target::keywords(self.name(), arguments)?;
        let mut names = clusters;
        if let Some(name) = target::cluster(ctx, cluster)? {
            if !names.is_empty() {
                return Err(Failure::type_error(
                    "umbel.cluster.apply takes one cluster or several, not both",
                ));
            }
            names.push(name);
        }
        names.sort();
        names.dedup();
        if names.is_empty() || names.len() > MAX_CLUSTERS {
            let text =
                format!("umbel.cluster.apply needs 1 to {MAX_CLUSTERS} clusters: `cluster`, `clusters` or a fan-out");
            return Err(Failure::type_error(text));
        }
        let manifests = manifest::read(&manifests, namespace.as_deref(), &self.rules).map_err(|rejected| {
            let exc_type = match rejected {
                manifest::Rejected::NotAllowed { .. } => "PermissionError",
                manifest::Rejected::TooLarge(_)
                | manifest::Rejected::TooMany
                | manifest::Rejected::NotYaml(_)
                | manifest::Rejected::Shape(_)
                | manifest::Rejected::Document { .. } => "ValueError",
            };
            Failure::permanent(exc_type, rejected.to_string())
        })?;
        let fence = Fence::of(ctx.order, &ctx.token())
            .ok_or_else(|| Failure::permanent("RuntimeError", "the delivery carries no fencing token"))?;

        let manifests = manifests.as_slice();
        let parts: Vec<(String, Result<Vec<Applied>, Fault>)> = stream::iter(names)
            .map(|name| async move {
                let part = self.apply_at(ctx, &name, manifests, fence, force).await;
                (name, part)
            })
            .buffered(PARALLEL)
            .collect()
            .await;
        Ok(outcome(parts))
    }

    async fn apply_at(
        &self,
        ctx: &JobContext,
        cluster: &str,
        manifests: &[Manifest],
        fence: Fence,
        force: bool,
    ) -> Result<Vec<Applied>, Fault> {
        let run = Run {
            ctx,
            target: self.clusters.target(cluster).await?,
            fence,
            force,
        };
        let kinds = run.kinds(manifests).await?;
        let mut planned = Vec::with_capacity(manifests.len());
        for manifest in manifests {
            let kind = &kinds[&(
                manifest.group.as_str(),
                manifest.version.as_str(),
                manifest.kind.as_str(),
            )];
            let api = Api::namespaced_with(run.target.client(), &manifest.namespace, kind);
            let current = run.read(manifest, &api).await?;
            planned.push(Planned { manifest, api, current });
        }
        for one in &planned {
            run.write(one, one.current.as_ref(), true)
                .await
                .map_err(|source| run.about(one.manifest, source))?;
        }
        let mut applied = Vec::with_capacity(planned.len());
        for one in planned {
            let action = run.settle(&one).await?;
            let Manifest {
                kind,
                namespace,
                name,
                object,
                ..
            } = one.manifest;
            tracing::info!(cluster, object = %one.manifest, action, "applied");
            applied.push(Applied {
                api_version: object["apiVersion"].as_str().unwrap_or_default().to_owned(),
                kind: kind.clone(),
                namespace: namespace.clone(),
                name: name.clone(),
                action,
            });
        }
        Ok(applied)
    }
}

impl Run<'_> {
    fn about(&self, manifest: &Manifest, source: Error) -> Fault {
        Fault::Object {
            cluster: self.target.name().to_owned(),
            object: manifest.to_string(),
            source,
        }
    }

    /// How the cluster serves each kind; refuses what is not namespaced there.
    async fn kinds<'m>(
        &self,
        manifests: &'m [Manifest],
    ) -> Result<BTreeMap<(&'m str, &'m str, &'m str), ApiResource>, Fault> {
        let mut kinds = BTreeMap::new();
        for manifest in manifests {
            let key = (
                manifest.group.as_str(),
                manifest.version.as_str(),
                manifest.kind.as_str(),
            );
            if kinds.contains_key(&key) {
                continue;
            }
            let gvk = GroupVersionKind::gvk(key.0, key.1, key.2);
            let cluster = self.target.name().to_owned();
            let (object, kind) = (manifest.to_string(), format!("{} {}", gvk.api_version(), gvk.kind));
            let client = self.target.client();
            let served = self
                .target
                .ask("look up a kind", REQUEST, discovery::pinned_kind(&client, &gvk))
                .await;
            match served {
                Ok((resource, capabilities)) if capabilities.scope == Scope::Namespaced => {
                    kinds.insert(key, resource);
                }
                Ok(_) => return Err(Fault::NotNamespaced { cluster, object, kind }),
                // A missing group is a 404; a missing kind in it is found by the client library.
                Err(err)
                    if err.code() == Some(404) || matches!(&err, Error::Answer { .. } if err.status().is_none()) =>
                {
                    return Err(Fault::NoKind { cluster, object, kind });
                }
                Err(err) => return Err(err.into()),
            }
        }
        Ok(kinds)
    }

    /// Reads the object and refuses it if a newer run wrote it.
    async fn read(&self, manifest: &Manifest, api: &Api<DynamicObject>) -> Result<Option<DynamicObject>, Fault> {
        let current = self
            .target
            .ask("read it", REQUEST, api.get_opt(&manifest.name))
            .await
            .map_err(|source| self.about(manifest, source))?;
        let annotations = current.as_ref().and_then(|object| object.metadata.annotations.as_ref());
        if let Some(stored) = annotations.and_then(|annotations| annotations.get(ANNOTATION)) {
            let (cluster, object, stored) = (self.target.name().to_owned(), manifest.to_string(), stored.clone());
            match Fence::parse(&stored) {
                Some(newer) if newer > self.fence => {
                    return Err(Fault::Newer {
                        cluster,
                        object,
                        stored,
                        ours: self.fence,
                    });
                }
                Some(_) => {}
                None => {
                    let stored = stored.chars().take(64).collect();
                    return Err(Fault::NoFence {
                        cluster,
                        object,
                        stored,
                    });
                }
            }
        }
        Ok(current)
    }

    /// Writes the object for good, reading it again as often as somebody else was faster.
    async fn settle(&self, planned: &Planned<'_>) -> Result<&'static str, Fault> {
        let Planned { manifest, api, current } = planned;
        let mut current = current.clone();
        let mut is_new = false;
        for _ in 0..STEPS {
            self.ctx.checkpoint().await?;
            let written = match &current {
                None => self.create(planned).await,
                Some(object) if created_by_us(object) => self.adopt(planned, object).await,
                Some(_) => self.write(planned, current.as_ref(), false).await,
            };
            match written {
                Ok(written) => {
                    let had = current.replace(written);
                    match had {
                        None => is_new = true,
                        Some(had) if created_by_us(&had) => {}
                        Some(_) if is_new => return Ok("created"),
                        Some(had) if same(Some(&had), current.as_ref()) => return Ok("unchanged"),
                        Some(_) => return Ok("configured"),
                    }
                }
                Err(err) if err.code() == Some(409) && !is_field_conflict(&err) => {
                    current = self.read(manifest, api).await?;
                }
                // Deleted since it was read.
                Err(err) if err.code() == Some(404) && current.is_some() => current = self.read(manifest, api).await?,
                Err(source) => return Err(self.about(manifest, source)),
            }
        }
        Err(Fault::Restless {
            cluster: self.target.name().to_owned(),
            object: manifest.to_string(),
        })
    }

    /// The object as it is sent: with the fence, and with the version that it was decided on.
    fn body(&self, manifest: &Manifest, current: Option<&DynamicObject>) -> Value {
        let mut object = manifest.object.clone();
        object["metadata"]["annotations"][ANNOTATION] = json!(self.fence.to_string());
        if let Some(version) = current.and_then(|object| object.metadata.resource_version.as_ref()) {
            object["metadata"]["resourceVersion"] = json!(version);
        }
        object
    }

    /// A first write. An apply would overwrite what a newer run created in between; a create meets a conflict.
    async fn create(&self, planned: &Planned<'_>) -> Result<DynamicObject, Error> {
        let Planned { manifest, api, .. } = planned;
        let params = PostParams {
            dry_run: false,
            field_manager: Some(MANAGER.to_owned()),
        };
        let create = async {
            let object = serde_json::from_value(self.body(manifest, None)).map_err(kube::Error::SerdeError)?;
            api.create(&params, &object).await
        };
        self.target.ask("create it", REQUEST, create).await
    }

    /// Makes the fields of a create of ours those of an apply of ours. Otherwise they would have two owners, and what a
    /// later manifest leaves out would stay.
    async fn adopt(&self, planned: &Planned<'_>, object: &DynamicObject) -> Result<DynamicObject, Error> {
        let metadata = &object.metadata;
        let mut fields = metadata.managed_fields.clone().unwrap_or_default();
        let is_applied = fields.iter().any(|entry| is_ours(entry, "Apply"));
        if is_applied {
            fields.retain(|entry| !is_ours(entry, "Update"));
        }
        for entry in &mut fields {
            if is_ours(entry, "Update") {
                entry.operation = Some("Apply".to_owned());
            }
        }
        let body = json!({"metadata": {"resourceVersion": metadata.resource_version, "managedFields": fields}});
        let (params, patch) = (PatchParams::default(), Patch::Merge(&body));
        let request = planned.api.patch(&planned.manifest.name, &params, &patch);
        self.target.ask("own it by apply", REQUEST, request).await
    }

    /// A server-side apply, or its dry run.
    async fn write(
        &self,
        planned: &Planned<'_>,
        current: Option<&DynamicObject>,
        dry_run: bool,
    ) -> Result<DynamicObject, Error> {
        let Planned { manifest, api, .. } = planned;
        // Before `adopt`, our own create would be a conflict; a dry run takes nothing over.
        let force = self.force || (dry_run && current.is_some_and(created_by_us));
        let params = PatchParams {
            dry_run,
            force,
            ..PatchParams::apply(MANAGER)
        };
        let patch = Patch::Apply(self.body(manifest, current));
        self.target
            .ask("apply it", REQUEST, api.patch(&manifest.name, &params, &patch))
            .await
    }
}

/// Does the object carry fields of a create of ours that no apply owns yet?
fn created_by_us(object: &DynamicObject) -> bool {
    object
        .metadata
        .managed_fields
        .iter()
        .flatten()
        .any(|entry| is_ours(entry, "Update"))
}

fn is_ours(entry: &ManagedFieldsEntry, operation: &str) -> bool {
    entry.manager.as_deref() == Some(MANAGER)
        && entry.operation.as_deref() == Some(operation)
        && entry.subresource.as_deref().unwrap_or_default().is_empty()
}

impl Job for Apply {
    fn name(&self) -> &'static str {
        "umbel.cluster.apply"
    }

    fn run<'a>(&'a self, ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome> {
        Box::pin(async move { self.apply(ctx, &args).await.unwrap_or_else(Outcome::Failed) })
    }
}

/// Is the 409 about fields of another manager, rather than about a version?
fn is_field_conflict(err: &Error) -> bool {
    let causes = err
        .status()
        .and_then(|status| status.details.as_ref())
        .map(|details| details.causes.as_slice());
    causes
        .unwrap_or_default()
        .iter()
        .any(|cause| cause.reason == "FieldManagerConflict")
}

/// Are two versions of an object the same but for what every write changes?
fn same(before: Option<&DynamicObject>, after: Option<&DynamicObject>) -> bool {
    let essence = |object: Option<&DynamicObject>| {
        let mut object = object.cloned()?;
        object.metadata.managed_fields = None;
        object.metadata.resource_version = None;
        object.metadata.generation = None;
        if let Some(annotations) = &mut object.metadata.annotations {
            annotations.remove(ANNOTATION);
        }
        object.metadata.annotations = object
            .metadata
            .annotations
            .filter(|annotations| !annotations.is_empty());
        let mut object = serde_json::to_value(object).ok()?;
        if let Some(object) = object.as_object_mut() {
            object.remove("status");
        }
        Some(object)
    };
    essence(before) == essence(after)
}

/// Done when every cluster is; failed for good as soon as one cannot be helped; else again, later.
fn outcome(parts: Vec<(String, Result<Vec<Applied>, Fault>)>) -> Outcome {
    let total = parts.len();
    let mut done = BTreeMap::new();
    let mut failed = Vec::new();
    for (name, part) in parts {
        match part {
            Ok(applied) => {
                done.insert(name, applied);
            }
            Err(fault) => failed.push(fault),
        }
    }
    if failed.is_empty() {
        return Outcome::done(&json!({ "clusters": done }));
    }
    if let Some(lost) = failed.iter().find_map(|fault| match fault {
        Fault::Lost(lost) => Some(*lost),
        _ => None,
    }) {
        return lost.into();
    }
    if let ([Fault::Target(source) | Fault::Object { source, .. }], 1) = (failed.as_slice(), total)
        && let Some(parked) = target::parked(source)
    {
        return parked;
    }
    let failures: Vec<Failure> = failed.iter().map(Fault::failure).collect();
    let worst = failures
        .iter()
        .find(|failure| !failure.is_retryable)
        .unwrap_or(&failures[0]);
    let mut message = failures
        .iter()
        .map(|failure| failure.message.as_str())
        .collect::<Vec<_>>()
        .join("; ");
    if total > 1 {
        message = format!("{} of {total} clusters failed: {message}", failed.len());
    }
    let why = Failure {
        message,
        ..worst.clone()
    };
    if why.is_retryable {
        let after = failed.iter().filter_map(Fault::retry_after).max();
        Outcome::Retry { after, why }
    } else {
        Outcome::Failed(why)
    }
}
