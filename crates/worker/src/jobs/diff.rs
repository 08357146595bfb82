//! `umbel.cluster.diff`: what an apply of the same manifests would change, by server dry runs. Writes nothing.
//!
//! It lists fields by their paths, never values: a result is read by more people than a cluster's Secrets.

use std::sync::Arc;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use umbel_clusters::Registry;

use super::inventory::{self, Member};
use super::manifest::Manifest;
use super::rules::{Allow, ObjectRules};
use super::set::SetRef;
use super::site::{self, Fault, Site};
use super::sources::{Source, Sources};
use super::writer::{Manner, essence};
use crate::job::{Arguments, Failure, Job, JobContext, Outcome};

/// Fields of one object that a result lists.
const LISTED: usize = 100;

/// The job.
pub(super) struct Diff {
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
    namespace: Option<String>,
    #[serde(alias = "apply_set")]
    apply_set: Option<String>,
}

/// What would become of one object.
#[derive(Debug, Serialize)]
struct Change {
    #[serde(flatten)]
    member: Member,
    action: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fields: Vec<String>,
    /// Of other managers, each with its field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    conflicts: Vec<String>,
}

impl Diff {
    pub(super) fn new(clusters: Registry, rules: ObjectRules, sources: Arc<Sources>) -> Diff {
        Diff {
            clusters,
            rules,
            sources,
        }
    }

    async fn diff(&self, ctx: &JobContext, arguments: &Arguments) -> Result<Outcome, Failure> {
        let (keywords, cluster) = site::one_cluster(self.name(), ctx, arguments, |keywords: &mut Keywords| {
            keywords.cluster.take()
        })?;
        let allow = Allow {
            job: "diff",
            rules: &self.rules,
        };
        let namespace = keywords.namespace.as_deref();
        let set = match keywords.apply_set {
            Some(name) if inventory::name(&name).is_some() => {
                let namespace = namespace.ok_or_else(|| Failure::type_error("an applySet needs a `namespace`"))?;
                Some(SetRef {
                    name,
                    namespace: namespace.to_owned(),
                })
            }
            Some(_) => return Err(Failure::permanent("ValueError", "applySet: no name of a set")),
            None => None,
        };
        let manifests = self
            .sources
            .read(ctx, keywords.manifests, &keywords.manifests_from, namespace, allow)
            .await?;
        let fence = site::fence(ctx)?;
        let manner = Manner {
            force: false,
            set: set.as_ref(),
        };
        let run = async {
            let site = Site::enter(&self.clusters, &cluster, ctx, fence).await?;
            let mut changes = Vec::with_capacity(manifests.len());
            for manifest in manifests {
                changes.push(change(&site, manifest, allow, manner).await?);
            }
            Ok::<_, Fault>(changes)
        };
        Ok(match Box::pin(run).await {
            Ok(changes) => Outcome::done(&json!({ "cluster": cluster, "objects": changes })),
            Err(fault) => fault.outcome(),
        })
    }
}

async fn change(
    site: &Site<'_>,
    mut manifest: Manifest,
    allow: Allow<'_>,
    manner: Manner<'_>,
) -> Result<Change, Fault> {
    let said = |manifest: &Manifest, action, fields, conflicts| Change {
        member: Member::of(manifest),
        action,
        fields,
        conflicts,
    };
    let api = match site.place(&mut manifest, allow).await {
        Ok(api) => api,
        Err(fault @ Fault::NoKind { .. }) => {
            return match site.find(&mut manifest, allow).await {
                // Its definition may come with it.
                Err(Fault::NoKind { .. }) => Ok(said(&manifest, "create, its kind is not there yet", vec![], vec![])),
                // There in other versions only: an apply fails.
                Ok(_) => Err(fault),
                Err(fault) => Err(fault),
            };
        }
        Err(fault) => return Err(fault),
    };
    let current = site.read(&manifest, &api).await?;
    match site.write(&manifest, &api, current.as_ref(), manner, true).await {
        Ok(_) if current.is_none() => Ok(said(&manifest, "create", vec![], vec![])),
        Ok(after) => {
            let mut fields = Vec::new();
            let before = essence(current.as_ref()).unwrap_or_default();
            compare(&before, &essence(Some(&after)).unwrap_or_default(), "", &mut fields);
            let action = if fields.is_empty() { "unchanged" } else { "configure" };
            if fields.len() > LISTED {
                let more = fields.len() - LISTED;
                fields.truncate(LISTED);
                fields.push(format!("and {more} more"));
            }
            Ok(said(&manifest, action, fields, vec![]))
        }
        Err(err) if site::is_field_conflict(&err) => Ok(said(&manifest, "conflict", vec![], site::conflicts(&err))),
        Err(err) if site::is_absent(&err, &manifest.namespace) && current.is_none() => Ok(said(
            &manifest,
            "create, its namespace is not there yet",
            vec![],
            vec![],
        )),
        Err(source) => Err(site.about(&manifest, source)),
    }
}

/// The paths of what differs: `+` comes, `-` goes, `~` changes.
fn compare(before: &Value, after: &Value, path: &str, found: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (name, old) in before {
                let path = format!("{path}{}", step(name));
                match after.get(name) {
                    Some(new) => compare(old, new, &path, found),
                    None => found.push(format!("- {path}")),
                }
            }
            let added = after.keys().filter(|name| !before.contains_key(*name));
            found.extend(added.map(|name| format!("+ {path}{}", step(name))));
        }
        (Value::Array(before), Value::Array(after)) => {
            for (index, (old, new)) in before.iter().zip(after).enumerate() {
                compare(old, new, &format!("{path}[{index}]"), found);
            }
            found.extend((after.len()..before.len()).map(|index| format!("- {path}[{index}]")));
            found.extend((before.len()..after.len()).map(|index| format!("+ {path}[{index}]")));
        }
        (before, after) if before == after => {}
        _ => found.push(format!("~ {path}")),
    }
}

fn step(name: &str) -> String {
    let is_plain = !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if is_plain {
        format!(".{name}")
    } else {
        format!("['{name}']")
    }
}

impl Job for Diff {
    fn name(&self) -> &'static str {
        "umbel.cluster.diff"
    }

    fn run<'a>(&'a self, ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome> {
        Box::pin(async move { self.diff(ctx, &args).await.unwrap_or_else(Outcome::Failed) })
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn differences_are_paths_and_hold_no_value() {
        let before =
            json!({"data": {"a": "secret1", "b.c/d": "x", "gone": "secret2"}, "list": [1, 2, 3], "same": {"x": 1}});
        let after = json!({"data": {"a": "secret3", "b.c/d": "y", "new": "secret4"}, "list": [1, 5], "same": {"x": 1}});
        let mut found = Vec::new();
        compare(&before, &after, "", &mut found);
        assert_eq!(
            found,
            [
                "~ .data.a",
                "~ .data['b.c/d']",
                "- .data.gone",
                "+ .data.new",
                "~ .list[1]",
                "- .list[2]"
            ]
        );
    }
}
