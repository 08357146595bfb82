//! `umbel.cluster.apply`: manifests to clusters, by server-side apply, fenced. And `umbel.cluster.prune`: what left an apply
//! set.
//!
//! # Guarantees
//! * Nothing is written to a cluster before every object was read, held against the fence and dry-run there; but for
//!   objects whose namespace or kind comes with the same message, which are looked at once those are there.
//! * An object that a newer run wrote is not overwritten: [`super::writer`].
//! * Of an apply set, what is in place is not written at all: [`super::inventory`].
//! * A run that died half-way is finished by its next delivery: same field manager, same objects, same inventory.
//! * Only what the inventory lists, what carries the set's label and was written by us is ever removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::api::{Api, DynamicObject, ListParams};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use umbel_clusters::Registry;

use super::inventory::{self, Inventory, Member};
use super::manifest::Manifest;
use super::rules::{Allow, ObjectRules};
use super::set::{Removed, SetRef};
use super::site::{self, Fault, REQUEST, Served, Site};
use super::sources::{Source, Sources};
use super::target;
use super::writer::{Manner, Planned, same};
use crate::job::{Arguments, Failure, Job, JobContext, Outcome};

/// Clusters of one message at a time; a message for more than a few should have been a fan-out.
const PARALLEL: usize = 4;
/// Clusters of one message.
const MAX_CLUSTERS: usize = 100;
/// Questions to one cluster at a time. Writes go one by one, in their order.
const QUESTIONS: usize = 4;
/// From so many members of one kind and namespace on they are read by one list.
const WORTH_A_LIST: usize = 3;
/// Objects of one page.
const PAGE: u32 = 200;
/// A definition is served within a second or two of its creation.
const ESTABLISHED: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The job.
pub(super) struct Apply {
    clusters: Registry,
    rules: ObjectRules,
    /// Those of prune, where the pool has it.
    prune: Option<ObjectRules>,
    sources: Arc<Sources>,
}

/// The other job.
pub(super) struct Prune {
    clusters: Registry,
    rules: ObjectRules,
    sources: Arc<Sources>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Keywords {
    cluster: Option<String>,
    #[serde(default)]
    clusters: Vec<String>,
    manifests: Option<Value>,
    #[serde(default, alias = "manifests_from")]
    manifests_from: Vec<Source>,
    /// For objects that name none, and for the inventory.
    namespace: Option<String>,
    #[serde(alias = "apply_set")]
    apply_set: Option<String>,
    /// Remove what left the set, once the rest is in place.
    #[serde(default)]
    prune: bool,
    /// Take fields over from other field managers.
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PruneKeywords {
    cluster: Option<String>,
    manifests: Option<Value>,
    #[serde(default, alias = "manifests_from")]
    manifests_from: Vec<Source>,
    namespace: Option<String>,
    #[serde(alias = "apply_set")]
    apply_set: String,
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

/// What a run does at each cluster.
struct Order<'a> {
    allow: Allow<'a>,
    /// Rules for what is removed; `None` removes nothing.
    prune: Option<Allow<'a>>,
    set: Option<SetRef>,
    force: bool,
}

/// What was done at one cluster.
struct Part {
    applied: Vec<Applied>,
    pruned: Option<Vec<Removed>>,
}

impl Apply {
    pub(super) fn new(
        clusters: Registry,
        rules: ObjectRules,
        prune: Option<ObjectRules>,
        sources: Arc<Sources>,
    ) -> Apply {
        Apply {
            clusters,
            rules,
            prune,
            sources,
        }
    }

    async fn apply(&self, ctx: &JobContext, arguments: &Arguments) -> Result<Outcome, Failure> {
        let Keywords {
            cluster,
            clusters,
            manifests,
            manifests_from,
            namespace,
            apply_set,
            prune,
            force,
        } = target::keywords(self.name(), arguments)?;
        let names = clusters_of(ctx, cluster, clusters)?;
        let allow = Allow {
            job: "apply",
            rules: &self.rules,
        };
        if force && !self.rules.force {
            return Err(Failure::permanent(
                "PermissionError",
                "this pool does not let messages take over fields of other managers (spec.jobs.apply.force)",
            ));
        }
        let set = apply_set
            .map(|set| set_of(set, namespace.as_deref(), allow))
            .transpose()?;
        let prune = match (prune, &self.prune, &set) {
            (false, ..) => None,
            (true, _, None) => return Err(Failure::type_error("prune needs an applySet")),
            (true, None, _) => {
                return Err(Failure::permanent(
                    "PermissionError",
                    "this pool does not prune (spec.jobs.prune)",
                ));
            }
            (true, Some(rules), _) => Some(Allow { job: "prune", rules }),
        };
        let manifests = self
            .sources
            .read(ctx, manifests, &manifests_from, namespace.as_deref(), allow)
            .await?;
        let fence = site::fence(ctx)?;
        let order = &Order {
            allow,
            prune,
            set,
            force,
        };
        let manifests = manifests.as_slice();
        let parts: Vec<(String, Result<Part, Fault>)> = stream::iter(names)
            .map(|name| async move {
                let part = match Site::enter(&self.clusters, &name, ctx, fence).await {
                    Ok(site) => Box::pin(apply_at(&site, manifests, order)).await,
                    Err(err) => Err(err.into()),
                };
                (name, part)
            })
            .buffered(PARALLEL)
            .collect()
            .await;
        Ok(outcome(parts))
    }
}

impl Prune {
    pub(super) fn new(clusters: Registry, rules: ObjectRules, sources: Arc<Sources>) -> Prune {
        Prune {
            clusters,
            rules,
            sources,
        }
    }

    async fn prune(&self, ctx: &JobContext, arguments: &Arguments) -> Result<Outcome, Failure> {
        let (keywords, cluster) = site::one_cluster(self.name(), ctx, arguments, |keywords: &mut PruneKeywords| {
            keywords.cluster.take()
        })?;
        let PruneKeywords {
            cluster: _,
            manifests,
            manifests_from,
            namespace,
            apply_set,
        } = keywords;
        let allow = Allow {
            job: "prune",
            rules: &self.rules,
        };
        let set = set_of(apply_set, namespace.as_deref(), allow)?;
        let manifests = self
            .sources
            .read(ctx, manifests, &manifests_from, namespace.as_deref(), allow)
            .await?;
        let fence = site::fence(ctx)?;
        Ok(
            match Box::pin(self.prune_at(ctx, &cluster, manifests, &set, allow, fence)).await {
                Ok(pruned) => Outcome::done(&json!({ "cluster": cluster, "pruned": pruned })),
                Err(fault) => fault.outcome(),
            },
        )
    }

    async fn prune_at(
        &self,
        ctx: &JobContext,
        cluster: &str,
        manifests: Vec<Manifest>,
        set: &SetRef,
        allow: Allow<'_>,
        fence: super::fence::Fence,
    ) -> Result<Vec<Removed>, Fault> {
        let site = Site::enter(&self.clusters, cluster, ctx, fence).await?;
        let mut members = Vec::with_capacity(manifests.len());
        for mut manifest in manifests {
            match site.find(&mut manifest, allow).await {
                // A kind that is not there has no objects; they stay in the inventory.
                Ok(_) | Err(Fault::NoKind { .. }) => members.push(Member::of(&manifest)),
                Err(fault) => return Err(fault),
            }
        }
        let had = set.read(&site).await?;
        let left = had.left(&members);
        if left.is_empty() {
            return Ok(Vec::new());
        }
        set.admit(&site, &left, allow)?;
        let is_unsettled = had.is_open;
        let open = set.write(&site, &had, true, &had.members).await?;
        let (pruned, kept) = remove_all(&site, set, &left, allow, is_unsettled).await?;
        let stay = |member: &&Member| !left.contains(member) || kept.contains(member);
        let stay: Vec<Member> = had.members.iter().filter(stay).cloned().collect();
        // What an unfinished apply left half-way is still to be written over: only an apply closes that.
        set.write(&site, &open, is_unsettled, &stay).await?;
        Ok(pruned)
    }
}

/// The clusters of a message, each once.
fn clusters_of(ctx: &JobContext, cluster: Option<String>, clusters: Vec<String>) -> Result<Vec<String>, Failure> {
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
    Ok(names)
}

fn set_of(name: String, namespace: Option<&str>, allow: Allow<'_>) -> Result<SetRef, Failure> {
    if inventory::name(&name).is_none() {
        return Err(Failure::permanent(
            "ValueError",
            "applySet: 1 to 63 of a-z, 0-9 and -, the last not at the ends",
        ));
    }
    let namespace =
        namespace.ok_or_else(|| Failure::type_error("an applySet needs a `namespace`: there is its inventory"))?;
    allow
        .namespace(namespace)
        .map_err(|why| Failure::permanent("PermissionError", format!("apply set {namespace}/{name}: {why}")))?;
    Ok(SetRef {
        name,
        namespace: namespace.to_owned(),
    })
}

async fn apply_at(site: &Site<'_>, manifests: &[Manifest], order: &Order<'_>) -> Result<Part, Fault> {
    let manner = Manner {
        force: order.force,
        set: order.set.as_ref(),
    };
    let had = match &order.set {
        Some(set) => Some(set.read(site).await?),
        None => None,
    };
    let (placed, later) = place(site, manifests, order.allow).await?;
    let mut planned = look(site, placed, had.as_ref(), manner).await?;
    // Namespaces that come with the message: what is in them can be looked at when they are there.
    let coming: BTreeSet<String> = planned
        .iter()
        .filter(|one| one.manifest.kind == "Namespace" && one.manifest.group.is_empty() && one.current.is_none())
        .map(|one| one.manifest.name.clone())
        .collect();
    let mut waiting = Vec::new();
    if !coming.is_empty() {
        let (inside, rest) = planned
            .into_iter()
            .partition(|one| coming.contains(&one.manifest.namespace));
        planned = rest;
        waiting = inside;
    }
    rehearse(site, &mut planned, had.as_ref(), manner).await?;

    let members: Vec<Member> = planned
        .iter()
        .chain(&waiting)
        .map(|one| Member::of(&one.manifest))
        .collect();
    let mut members: Vec<Member> = members.into_iter().chain(later.iter().map(Member::of)).collect();
    members.sort();
    let left = had.as_ref().map(|had| had.left(&members)).unwrap_or_default();
    let doomed = if order.prune.is_some() { left.as_slice() } else { &[] };
    if let (Some(set), Some(allow)) = (&order.set, order.prune) {
        set.admit(site, doomed, allow)?;
    }
    let is_quiet =
        planned.iter().all(|one| one.is_settled) && waiting.is_empty() && later.is_empty() && doomed.is_empty();
    let is_unsettled = had.as_ref().is_some_and(|had| had.is_open);
    let mut inventory = had.clone();
    if let (Some(set), Some(had), false) = (&order.set, &had, is_quiet) {
        inventory = Some(set.write(site, had, true, &had.with(&members)).await?);
    }

    let mut applied = Vec::with_capacity(manifests.len());
    write_all(site, &planned, manner, &mut applied).await?;
    if !(waiting.is_empty() && later.is_empty()) {
        site.forget_missing_kinds().await;
        let manifests: Vec<Manifest> = waiting.into_iter().map(|one| one.manifest).chain(later).collect();
        let mut placed = Vec::with_capacity(manifests.len());
        for mut manifest in manifests {
            let api = site.place(&mut manifest, order.allow).await?;
            placed.push((manifest, api));
        }
        let mut planned = look(site, placed, had.as_ref(), manner).await?;
        rehearse(site, &mut planned, had.as_ref(), manner).await?;
        write_all(site, &planned, manner, &mut applied).await?;
    }

    let Some((set, inventory)) = order.set.as_ref().zip(inventory) else {
        return Ok(Part { applied, pruned: None });
    };
    let (pruned, kept) = match order.prune {
        Some(allow) => {
            let (pruned, kept) = remove_all(site, set, doomed, allow, is_unsettled).await?;
            (Some(pruned), kept)
        }
        None => (None, left),
    };
    let members: Vec<Member> = members.into_iter().chain(kept).collect();
    set.write(site, &inventory, false, &members).await?;
    Ok(Part { applied, pruned })
}

/// Where each object is; what is of kinds that definitions of the same message bring comes apart.
async fn place(
    site: &Site<'_>,
    manifests: &[Manifest],
    allow: Allow<'_>,
) -> Result<(Vec<(Manifest, Api<DynamicObject>)>, Vec<Manifest>), Fault> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let defined: BTreeMap<(String, String), bool> = manifests
        .iter()
        .filter(|one| is_definition(one))
        .map(|one| {
            let spec = &one.object["spec"];
            let kind = (text(&spec["group"]), text(&spec["names"]["kind"]));
            (kind, spec["scope"] == "Namespaced")
        })
        .collect();
    let (mut placed, mut later) = (Vec::new(), Vec::new());
    for manifest in manifests {
        let mut manifest = manifest.clone();
        match site.place(&mut manifest, allow).await {
            Ok(api) => placed.push((manifest, api)),
            Err(fault @ Fault::NoKind { .. }) => match defined.get(&(manifest.group.clone(), manifest.kind.clone())) {
                Some(true) => later.push(manifest),
                Some(false) => {
                    if allow.is_cluster_kind(&manifest.group, &manifest.kind) {
                        manifest.without_namespace();
                    }
                    later.push(manifest);
                }
                None => return Err(fault),
            },
            Err(fault) => return Err(fault),
        }
    }
    Ok((placed, later))
}

fn is_definition(manifest: &Manifest) -> bool {
    manifest.kind == "CustomResourceDefinition" && manifest.group == "apiextensions.k8s.io"
}

/// Reads every object and refuses those of newer runs. Members of a set are read by lists where there are several.
async fn look(
    site: &Site<'_>,
    placed: Vec<(Manifest, Api<DynamicObject>)>,
    had: Option<&Inventory>,
    manner: Manner<'_>,
) -> Result<Vec<Planned>, Fault> {
    let mut known = BTreeMap::new();
    if let (Some(had), Some(set)) = (had, manner.set) {
        known = members_at(site, &placed, had, &set.name).await?;
    }
    let known = &known;
    let planned: Vec<Planned> = stream::iter(placed)
        .map(|(manifest, api)| async move {
            let current = match known.get(&key(&manifest)) {
                Some(current) => Some(current.clone()),
                None => site.read(&manifest, &api).await?,
            };
            site.applied(&manifest, current.as_ref())?;
            site.belongs(&manifest, current.as_ref(), manner)?;
            Ok::<_, Fault>(Planned {
                manifest,
                api,
                current,
                is_settled: false,
            })
        })
        .buffered(QUESTIONS)
        .try_collect()
        .await?;
    Ok(planned)
}

/// Which object: group, version, kind, namespace, name.
type Key = (site::Gvk, String, String);

fn key(manifest: &Manifest) -> Key {
    (site::gvk(manifest), manifest.namespace.clone(), manifest.name.clone())
}

/// The members of a set that are there, by one list for each kind and namespace that has several.
async fn members_at(
    site: &Site<'_>,
    placed: &[(Manifest, Api<DynamicObject>)],
    had: &Inventory,
    set: &str,
) -> Result<BTreeMap<Key, DynamicObject>, Fault> {
    let mut groups: BTreeMap<(site::Gvk, &str), (usize, &Api<DynamicObject>)> = BTreeMap::new();
    for (manifest, api) in placed {
        let member = Member::of(manifest);
        if had.members.iter().any(|one| one.is_same_object(&member)) {
            let group = groups
                .entry((site::gvk(manifest), &manifest.namespace))
                .or_insert((0, api));
            group.0 += 1;
        }
    }
    let mut known = BTreeMap::new();
    for ((gvk, namespace), (count, api)) in groups {
        if count < WORTH_A_LIST {
            continue;
        }
        let mut params = ListParams::default()
            .labels(&format!("{}={set}", inventory::LABEL))
            .limit(PAGE);
        loop {
            let page = match site.target.ask("list the set", REQUEST, api.list(&params)).await {
                Ok(page) => page,
                // Without the right to list, or with a list that expired: one by one.
                Err(err) if matches!(err.code(), Some(403 | 410)) => break,
                Err(err) => return Err(err.into()),
            };
            for mut object in page.items {
                let name = object.metadata.name.clone().unwrap_or_default();
                // Items of a list do not say what they are.
                object.types = Some(kube::api::TypeMeta {
                    api_version: if gvk.0.is_empty() {
                        gvk.1.clone()
                    } else {
                        format!("{}/{}", gvk.0, gvk.1)
                    },
                    kind: gvk.2.clone(),
                });
                known.insert((gvk.clone(), namespace.to_owned(), name), object);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break,
            }
        }
    }
    Ok(known)
}

/// Dry-runs every object: finds all conflicts before anything is written, and what is in place already.
async fn rehearse(
    site: &Site<'_>,
    planned: &mut [Planned],
    had: Option<&Inventory>,
    manner: Manner<'_>,
) -> Result<(), Fault> {
    let all = &*planned;
    let said: Vec<_> = stream::iter(0..all.len())
        .map(|at| async move {
            let one = &all[at];
            site.write(&one.manifest, &one.api, one.current.as_ref(), manner, true)
                .await
        })
        .buffered(QUESTIONS)
        .collect()
        .await;
    let mut conflicts = Vec::new();
    let mut settled = Vec::with_capacity(said.len());
    for (one, said) in all.iter().zip(said) {
        match said {
            Ok(said) => settled.push(is_settled(site, one, &said, had)?),
            Err(err) if site::is_field_conflict(&err) => {
                let found = site::conflicts(&err);
                conflicts.extend(found.iter().map(|conflict| format!("{}: {conflict}", one.manifest)));
                settled.push(false);
            }
            // Somebody was faster: it is read again when it is written.
            Err(err) if err.code() == Some(409) => settled.push(false),
            Err(source) => return Err(site.about(&one.manifest, source)),
        }
    }
    if !conflicts.is_empty() {
        return Err(Fault::Conflicts {
            cluster: site.cluster(),
            conflicts,
        });
    }
    for (one, settled) in planned.iter_mut().zip(settled) {
        one.is_settled = settled;
    }
    Ok(())
}

/// Is there nothing to write? The object is as it will be, and older runs are held off: by the set, which was closed after
/// it wrote the object, or because this same run wrote it.
fn is_settled(site: &Site<'_>, one: &Planned, said: &DynamicObject, had: Option<&Inventory>) -> Result<bool, Fault> {
    let Some(current) = &one.current else { return Ok(false) };
    if super::writer::created_by_us(current) || !same(Some(current), Some(said)) {
        return Ok(false);
    }
    let Some(fence) = site.applied(&one.manifest, Some(current))? else {
        return Ok(false);
    };
    if !fence.is_of_earlier_run(site.fence) {
        return Ok(true);
    }
    let member = Member::of(&one.manifest);
    Ok(had.is_some_and(|had| !had.is_open && had.members.iter().any(|other| other.is_same_object(&member))))
}

async fn write_all(
    site: &Site<'_>,
    planned: &[Planned],
    manner: Manner<'_>,
    applied: &mut Vec<Applied>,
) -> Result<(), Fault> {
    for one in planned {
        let action = site.settle(one, manner).await?;
        let Manifest {
            kind, namespace, name, ..
        } = &one.manifest;
        tracing::info!(cluster = site.target.name(), object = %one.manifest, action, "applied");
        applied.push(Applied {
            api_version: one.manifest.api_version().to_owned(),
            kind: kind.clone(),
            namespace: namespace.clone(),
            name: name.clone(),
            action,
        });
    }
    for one in planned.iter().filter(|one| is_definition(&one.manifest)) {
        established(site, one).await?;
    }
    Ok(())
}

/// Waits until the cluster serves a definition's kinds.
async fn established(site: &Site<'_>, definition: &Planned) -> Result<(), Fault> {
    let until = Instant::now() + ESTABLISHED;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let spec = &definition.manifest.object["spec"];
    let served: Vec<site::Gvk> = spec["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|version| version["served"] == true)
        .map(|version| {
            let (group, kind) = (text(&spec["group"]), text(&spec["names"]["kind"]));
            (group, text(&version["name"]), kind)
        })
        .collect();
    loop {
        let object = site.read(&definition.manifest, &definition.api).await?;
        let is_established = object.as_ref().is_some_and(|object| {
            let conditions = object.data["status"]["conditions"].as_array();
            let mut conditions = conditions.into_iter().flatten();
            conditions.any(|one| one["type"] == "Established" && one["status"] == "True")
        });
        if is_established {
            let mut missing = 0;
            for gvk in &served {
                let found: Option<Served> = site::look_up(&site.target, gvk).await?;
                missing += usize::from(found.is_none());
            }
            if missing == 0 {
                return Ok(());
            }
        }
        if Instant::now() > until {
            return Err(Fault::Late {
                cluster: site.cluster(),
                object: definition.manifest.to_string(),
                why: format!("not established within {} s", ESTABLISHED.as_secs()),
            });
        }
        site.ctx.checkpoint().await?;
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Removes what left a set. Also: what stays in its inventory, because an older run may yet create it.
async fn remove_all(
    site: &Site<'_>,
    set: &SetRef,
    left: &[Member],
    allow: Allow<'_>,
    is_unsettled: bool,
) -> Result<(Vec<Removed>, Vec<Member>), Fault> {
    let (mut removed, mut kept) = (Vec::with_capacity(left.len()), Vec::new());
    for member in left {
        let action = set.remove(site, member, allow).await?;
        tracing::info!(
            cluster = site.target.name(),
            kind = member.kind,
            name = member.name,
            action,
            "pruned"
        );
        if action == "absent" && is_unsettled {
            kept.push(member.clone());
        }
        removed.push(Removed {
            member: member.clone(),
            action,
        });
    }
    Ok((removed, kept))
}

impl Job for Apply {
    fn name(&self) -> &'static str {
        "umbel.cluster.apply"
    }

    fn run<'a>(&'a self, ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome> {
        Box::pin(async move { self.apply(ctx, &args).await.unwrap_or_else(Outcome::Failed) })
    }
}

impl Job for Prune {
    fn name(&self) -> &'static str {
        "umbel.cluster.prune"
    }

    fn run<'a>(&'a self, ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome> {
        Box::pin(async move { self.prune(ctx, &args).await.unwrap_or_else(Outcome::Failed) })
    }
}

/// Done when every cluster is; failed for good as soon as one cannot be helped; else again, later.
fn outcome(parts: Vec<(String, Result<Part, Fault>)>) -> Outcome {
    let total = parts.len();
    let mut done = BTreeMap::new();
    let mut pruned = BTreeMap::new();
    let mut failed = Vec::new();
    for (name, part) in parts {
        match part {
            Ok(part) => {
                pruned.extend(part.pruned.map(|removed| (name.clone(), removed)));
                done.insert(name, part.applied);
            }
            Err(fault) => failed.push(fault),
        }
    }
    if failed.is_empty() {
        let mut result = json!({ "clusters": done });
        if !pruned.is_empty() {
            result["pruned"] = json!(pruned);
        }
        return Outcome::done(&result);
    }
    if let Some(lost) = failed.iter().find_map(|fault| match fault {
        Fault::Lost(lost) => Some(*lost),
        _ => None,
    }) {
        return lost.into();
    }
    if let ([fault], 1) = (failed.as_slice(), total) {
        return fault.outcome();
    }
    let failures: Vec<Failure> = failed.iter().map(Fault::failure).collect();
    let worst = failures
        .iter()
        .find(|failure| !failure.is_retryable)
        .unwrap_or(&failures[0]);
    let messages: Vec<&str> = failures.iter().map(|failure| failure.message.as_str()).collect();
    let why = Failure {
        message: format!("{} of {total} clusters failed: {}", failed.len(), messages.join("; ")),
        ..worst.clone()
    };
    if why.is_retryable {
        let after = failed.iter().filter_map(Fault::retry_after).max();
        Outcome::Retry { after, why }
    } else {
        Outcome::Failed(why)
    }
}
