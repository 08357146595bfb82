//! `umbel.cluster.delete`: objects, as manifests describe them or as the message names them.
//!
//! # Guarantees
//! * Nothing is deleted before every object was read and held against the rules and the fence.
//! * Exactly the object that was read is deleted: its uid and its version are preconditions.
//! * Only what an apply job wrote, unless the pool and the message say `anyOwner`.
//! * Of an apply set: its inventory is opened first, as an apply does it, so that a newer apply is not undone.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use kube::api::{Api, DynamicObject, PropagationPolicy};
use serde::Deserialize;
use serde_json::{Value, json};
use umbel_clusters::Registry;

use super::inventory::{Inventory, Member};
use super::manifest::{self, Manifest, rank};
use super::rules::{Allow, ObjectRules};
use super::set::{self, Removed, SetRef};
use super::site::{self, Fault, Reference, Site};
use super::sources::{Source, Sources};
use super::writer::is_written_by_us;
use crate::job::{Arguments, Failure, Job, JobContext, Outcome};

/// The job.
pub(super) struct Delete {
    clusters: Registry,
    rules: ObjectRules,
    sources: Arc<Sources>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Keywords {
    cluster: Option<String>,
    manifests: Option<Value>,
    #[serde(default, alias = "manifests_from")]
    manifests_from: Vec<Source>,
    #[serde(default)]
    objects: Vec<Reference>,
    namespace: Option<String>,
    #[serde(default)]
    propagation: Propagation,
    #[serde(default, alias = "any_owner")]
    any_owner: bool,
}

#[derive(Deserialize, Clone, Copy, Default)]
enum Propagation {
    #[default]
    Background,
    Foreground,
    Orphan,
}

impl Propagation {
    fn policy(self) -> PropagationPolicy {
        match self {
            Propagation::Background => PropagationPolicy::Background,
            Propagation::Foreground => PropagationPolicy::Foreground,
            Propagation::Orphan => PropagationPolicy::Orphan,
        }
    }
}

/// An object that is to go, and where it is; no place where its kind is served in no version.
type Doomed = (Manifest, Option<Api<DynamicObject>>);

impl Delete {
    pub(super) fn new(clusters: Registry, rules: ObjectRules, sources: Arc<Sources>) -> Delete {
        Delete {
            clusters,
            rules,
            sources,
        }
    }

    async fn delete(&self, ctx: &JobContext, arguments: &Arguments) -> Result<Outcome, Failure> {
        let (keywords, cluster) = site::one_cluster(self.name(), ctx, arguments, |keywords: &mut Keywords| {
            keywords.cluster.take()
        })?;
        let allow = Allow {
            job: "delete",
            rules: &self.rules,
        };
        if keywords.any_owner && !self.rules.any_owner {
            return Err(Failure::permanent(
                "PermissionError",
                "this pool does not let messages delete what no apply wrote (spec.jobs.delete.anyOwner)",
            ));
        }
        let mut manifests = Vec::new();
        if keywords.objects.is_empty() || keywords.manifests.is_some() || !keywords.manifests_from.is_empty() {
            let (from, namespace) = (&keywords.manifests_from, keywords.namespace.as_deref());
            manifests = self
                .sources
                .read(ctx, keywords.manifests, from, namespace, allow)
                .await?;
        }
        if keywords.objects.len() > manifest::MAX_OBJECTS {
            let text = format!("objects: more than {}", manifest::MAX_OBJECTS);
            return Err(Failure::permanent("ValueError", text));
        }
        for mut reference in keywords.objects {
            reference.namespace = reference.namespace.or_else(|| keywords.namespace.clone());
            let manifest = reference.read(allow)?;
            if !manifests.iter().any(|other| other.is_same_object(&manifest)) {
                manifests.push(manifest);
            }
        }
        // The other way round than they are written.
        manifests.sort_by_key(|manifest| std::cmp::Reverse(rank(&manifest.kind)));
        let fence = site::fence(ctx)?;
        let run = async {
            let site = Site::enter(&self.clusters, &cluster, ctx, fence).await?;
            delete_at(
                &site,
                manifests,
                allow,
                keywords.any_owner,
                keywords.propagation.policy(),
            )
            .await
        };
        Ok(match Box::pin(run).await {
            Ok(objects) => Outcome::done(&json!({ "cluster": cluster, "objects": objects })),
            Err(fault) => fault.outcome(),
        })
    }
}

async fn delete_at(
    site: &Site<'_>,
    manifests: Vec<Manifest>,
    allow: Allow<'_>,
    any_owner: bool,
    propagation: PropagationPolicy,
) -> Result<Vec<Removed>, Fault> {
    let mut doomed: Vec<Doomed> = Vec::with_capacity(manifests.len());
    let mut sets: BTreeMap<SetRef, (Inventory, Vec<Member>)> = BTreeMap::new();
    for mut manifest in manifests {
        let api = match site.find(&mut manifest, allow).await {
            Ok(api) => Some(api),
            Err(Fault::NoKind { .. }) => None,
            Err(fault) => return Err(fault),
        };
        let current = match &api {
            Some(api) => site.read(&manifest, api).await?,
            None => None,
        };
        if let Some(object) = &current {
            admit(site, &manifest, object, any_owner)?;
            if let Some(set) = set::of(object) {
                allow.namespace(&set.namespace).map_err(|why| {
                    let why = format!("its {}: {why}", set.title());
                    site.refused(&manifest, why)
                })?;
                let inventory = match sets.remove(&set) {
                    Some((inventory, members)) => (inventory, members),
                    None => (set.read(site).await?, Vec::new()),
                };
                let (inventory, mut members) = inventory;
                members.push(Member::of(&manifest));
                sets.insert(set, (inventory, members));
            }
        }
        doomed.push((manifest, api));
    }
    let mut open = Vec::with_capacity(sets.len());
    for (set, (had, members)) in sets {
        // A set without an inventory has nothing to be undone by.
        if had.version.is_some() {
            let now = set.write(site, &had, true, &had.members).await?;
            open.push((set, had, now, members));
        }
    }
    let mut removed = Vec::with_capacity(doomed.len());
    for (manifest, api) in doomed {
        let action = match &api {
            Some(api) => remove(site, &manifest, api, any_owner, &propagation).await?,
            None => "absent",
        };
        tracing::info!(cluster = site.target.name(), object = %manifest, action, "deleted");
        removed.push(Removed {
            member: Member::of(&manifest),
            action,
        });
    }
    for (set, had, now, members) in open {
        let is_gone = |one: &&Member| !members.iter().any(|other| other.is_same_object(one));
        let stay: Vec<Member> = had.members.iter().filter(is_gone).cloned().collect();
        set.write(site, &now, had.is_open, &stay).await?;
    }
    Ok(removed)
}

/// May this object be deleted by this run?
fn admit(site: &Site<'_>, manifest: &Manifest, object: &DynamicObject, any_owner: bool) -> Result<(), Fault> {
    site.applied(manifest, Some(object))?;
    if any_owner || is_written_by_us(object) {
        return Ok(());
    }
    Err(site.refused(
        manifest,
        "no apply job wrote it; `anyOwner` deletes it all the same, where the pool allows that",
    ))
}

async fn remove(
    site: &Site<'_>,
    manifest: &Manifest,
    api: &Api<DynamicObject>,
    any_owner: bool,
    propagation: &PropagationPolicy,
) -> Result<&'static str, Fault> {
    let admit = |object: &DynamicObject| admit(site, manifest, object, any_owner).map(|()| None);
    set::remove(site, manifest, api, propagation, admit).await
}

impl Job for Delete {
    fn name(&self) -> &'static str {
        "umbel.cluster.delete"
    }

    fn run<'a>(&'a self, ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome> {
        Box::pin(async move { self.delete(ctx, &args).await.unwrap_or_else(Outcome::Failed) })
    }
}
