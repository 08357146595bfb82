//! `umbel.cluster.label-nodes`: labels of nodes, set and removed, by name or by selector.
//!
//! Each label has a fence of its own: two schedules that set different ones do not stand in each other's way.

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use umbel_clusters::Registry;

use super::fence::Fence;
use super::manifest::Manifest;
use super::rules::{Allow, ObjectRules};
use super::site::{self, Fault, REQUEST, Reference, STEPS, Site};
use crate::job::{Arguments, Failure, Job, JobContext, Outcome};

/// A JSON object: label to fence.
const FENCES: &str = "umbel.dev/label-fences";
const MANAGER: &str = "umbel-label-nodes";
const MOST_LABELS: usize = 50;
const MOST_NODES: usize = 5000;
const PAGE: u32 = 200;
/// What belongs to Kubernetes: domains and whatever ends in them.
const RESERVED: [&str; 2] = ["kubernetes.io", "k8s.io"];

/// Labels that a pool lets messages set and remove.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelRules {
    /// How their keys begin.
    pub prefixes: Vec<String>,
}

/// The job.
pub(super) struct LabelNodes {
    clusters: Registry,
    rules: LabelRules,
    nodes: ObjectRules,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keywords {
    cluster: Option<String>,
    #[serde(default)]
    nodes: Vec<String>,
    selector: Option<String>,
    #[serde(default)]
    set: BTreeMap<String, String>,
    #[serde(default)]
    remove: Vec<String>,
}

/// What became of one node.
#[derive(Serialize)]
struct Labelled {
    node: String,
    action: &'static str,
}

impl LabelRules {
    /// May this label be touched?
    fn admit(&self, key: &str) -> Result<(), String> {
        let domain = key.split_once('/').map(|(domain, _)| domain);
        let is_reserved = domain.is_some_and(|domain| {
            let mut reserved = RESERVED.iter();
            reserved.any(|reserved| domain == *reserved || domain.ends_with(&format!(".{reserved}")))
        });
        let is_named = |prefix: &String| {
            key.starts_with(prefix.as_str())
                && (!is_reserved || prefix.split_once('/').map(|(domain, _)| domain) == domain)
        };
        if self.prefixes.iter().any(is_named) {
            return Ok(());
        }
        Err(format!(
            "the label {key} is not allowed by this pool (spec.jobs.labelNodes.prefixes: {})",
            self.prefixes.join(", ")
        ))
    }
}

/// Is it a label's key, so that the API server takes it?
fn is_key(key: &str) -> bool {
    let (domain, name) = key.split_once('/').unwrap_or(("a", key));
    let is_name = |text: &str, most: usize, others: &[u8]| {
        (1..=most).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || others.contains(&byte))
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    is_name(domain, 253, b"-.") && is_name(name, 63, b"-._")
}

impl LabelNodes {
    pub(super) fn new(clusters: Registry, rules: LabelRules) -> LabelNodes {
        LabelNodes {
            clusters,
            rules,
            nodes: ObjectRules {
                cluster_kinds: vec!["Node".to_owned()],
                ..ObjectRules::default()
            },
        }
    }

    async fn label(&self, ctx: &JobContext, arguments: &Arguments) -> Result<Outcome, Failure> {
        let (keywords, cluster) = site::one_cluster(self.name(), ctx, arguments, |keywords: &mut Keywords| {
            keywords.cluster.take()
        })?;
        let Keywords {
            cluster: _,
            nodes,
            selector,
            set,
            remove,
        } = keywords;
        if nodes.is_empty() == selector.is_none() {
            return Err(Failure::type_error(
                "umbel.cluster.label-nodes takes nodes or a selector",
            ));
        }
        let labels: BTreeMap<String, Option<String>> = set
            .into_iter()
            .map(|(key, value)| (key, Some(value)))
            .chain(remove.into_iter().map(|key| (key, None)))
            .collect();
        if labels.is_empty() || labels.len() > MOST_LABELS || nodes.len() > MOST_NODES {
            let text = format!("1 to {MOST_LABELS} labels to set or remove, at most {MOST_NODES} nodes");
            return Err(Failure::permanent("ValueError", text));
        }
        for (key, value) in &labels {
            if !is_key(key)
                || value
                    .as_ref()
                    .is_some_and(|value| !(value.is_empty() || is_key(value)) || value.contains('/'))
            {
                return Err(Failure::permanent(
                    "ValueError",
                    format!("{key:?}: no label, or no value of one"),
                ));
            }
            self.rules
                .admit(key)
                .map_err(|why| Failure::permanent("PermissionError", why))?;
        }
        let allow = Allow {
            job: "labelNodes",
            rules: &self.nodes,
        };
        let node = |name: &str| {
            let reference = Reference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                namespace: None,
                name: name.to_owned(),
            };
            reference.read(allow)
        };
        let named = nodes.iter().map(|name| node(name)).collect::<Result<Vec<_>, _>>()?;
        let mut any = node("any")?;
        let fence = site::fence(ctx)?;
        let run = async {
            let site = Site::enter(&self.clusters, &cluster, ctx, fence).await?;
            let api = site.place(&mut any, allow).await?;
            let mut named = named;
            if let Some(selector) = &selector {
                for name in select(&site, &api, selector).await? {
                    let mut one = any.clone();
                    one.name = name;
                    named.push(one);
                }
            }
            let mut done = Vec::with_capacity(named.len());
            for one in named {
                let action = label_one(&site, &one, &api, &labels).await?;
                done.push(Labelled { node: one.name, action });
            }
            Ok::<_, Fault>(done)
        };
        Ok(match Box::pin(run).await {
            Ok(nodes) => Outcome::done(&json!({ "cluster": cluster, "nodes": nodes })),
            Err(fault) => fault.outcome(),
        })
    }
}

/// The names of the nodes with these labels.
async fn select(site: &Site<'_>, api: &Api<DynamicObject>, selector: &str) -> Result<Vec<String>, Fault> {
    let mut names = Vec::new();
    let mut params = ListParams::default().labels(selector).limit(PAGE);
    loop {
        let request = api.list_metadata(&params);
        let page = site.target.ask("list its nodes", REQUEST, request).await?;
        names.extend(page.items.into_iter().filter_map(|node| node.metadata.name));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) if names.len() <= MOST_NODES => params = params.continue_token(&token),
            _ => return Ok(names),
        }
    }
}

async fn label_one(
    site: &Site<'_>,
    node: &Manifest,
    api: &Api<DynamicObject>,
    labels: &BTreeMap<String, Option<String>>,
) -> Result<&'static str, Fault> {
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    for _ in 0..STEPS {
        let Some(object) = site.read(node, api).await? else {
            return Err(site.absent(node));
        };
        let Some((body, action)) = change(site, node, &object, labels)? else {
            return Ok("unchanged");
        };
        site.ctx.checkpoint().await?;
        let patch = Patch::Merge(&body);
        let request = api.patch(&node.name, &params, &patch);
        match site.target.ask("label it", REQUEST, request).await {
            Ok(_) => return Ok(action),
            // Kubelets write to nodes all the time.
            Err(err) if matches!(err.code(), Some(404 | 409)) => {}
            Err(source) => return Err(site.about(node, source)),
        }
    }
    Err(site.restless(node))
}

/// What to write; nothing where this run has written it already.
fn change(
    site: &Site<'_>,
    node: &Manifest,
    object: &DynamicObject,
    labels: &BTreeMap<String, Option<String>>,
) -> Result<Option<(Value, &'static str)>, Fault> {
    let stored = site::annotation(object, FENCES).unwrap_or("{}");
    let mut fences: BTreeMap<String, String> = serde_json::from_str(stored).map_err(|_| Fault::NoFence {
        cluster: site.cluster(),
        object: node.to_string(),
        annotation: FENCES,
        stored: stored.chars().take(64).collect(),
    })?;
    let (mut is_new, mut is_held) = (false, true);
    for (key, value) in labels {
        let about = format!("{node}, label {key}");
        let fence: Option<Fence> = site.held(&about, FENCES, fences.get(key).map(String::as_str))?;
        is_held &= fence.is_some_and(|fence| !fence.is_of_earlier_run(site.fence));
        let current = object.metadata.labels.as_ref().and_then(|labels| labels.get(key));
        is_new |= current != value.as_ref();
        fences.insert(key.clone(), site.fence.to_string());
    }
    if is_held && !is_new {
        return Ok(None);
    }
    // Labels that are gone for long need no fence, but somebody's older run may still come: they stay, and are few.
    let body = json!({"metadata": {
        "resourceVersion": object.metadata.resource_version,
        "labels": labels,
        "annotations": {FENCES: json!(fences).to_string()},
    }});
    Ok(Some((body, if is_new { "labelled" } else { "unchanged" })))
}

impl Job for LabelNodes {
    fn name(&self) -> &'static str {
        "umbel.cluster.label-nodes"
    }

    fn run<'a>(&'a self, ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome> {
        Box::pin(async move { self.label(ctx, &args).await.unwrap_or_else(Outcome::Failed) })
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn labels_are_allowed_by_how_they_begin_and_those_of_kubernetes_by_their_domain() {
        let rules = |prefixes: &[&str]| LabelRules {
            prefixes: prefixes.iter().map(|&prefix| prefix.to_owned()).collect(),
        };
        for (prefixes, key, is_allowed) in [
            (&["fleet.example.com/"][..], "fleet.example.com/role", true),
            (&["fleet.example.com/"], "other.example.com/role", false),
            (&["robot-"], "robot-7", true),
            (&["robot-"], "robots", false),
            (&["node"], "node-role.kubernetes.io/worker", false),
            (&["node-role.kubernetes.io/"], "node-role.kubernetes.io/worker", true),
            (
                &["node-role.kubernetes.io/w"],
                "node-role.kubernetes.io/control-plane",
                false,
            ),
            (&["kubernetes.io/"], "node.kubernetes.io/x", false),
            (&["k"], "kubernetes.io/hostname", false),
            (&["topology.k8s.io"], "topology.k8s.io/zone", false),
            (&["notkubernetes.io/"], "notkubernetes.io/x", true),
        ] {
            assert_eq!(rules(prefixes).admit(key).is_ok(), is_allowed, "{prefixes:?} {key}");
        }
    }

    #[test]
    fn keys_are_what_the_server_takes() {
        for (key, is_one) in [
            ("a", true),
            ("a.b/c_d-e", true),
            ("", false),
            ("/a", false),
            ("a/", false),
            ("a/b/c", false),
            ("-a", false),
            ("a b", false),
        ] {
            assert_eq!(is_key(key), is_one, "{key}");
        }
    }
}
