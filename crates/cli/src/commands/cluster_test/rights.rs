//! Which rights a cluster's credential needs: for syncs, as join was told, for its own renewal, and for the jobs of the
//! pools that cover it. What jobs ask for is the table "Rights at the target" of docs/clusters.md.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};
use kube::core::discovery::{ApiResource, Scope};
use kube::error::DiscoveryError;
use kube::{Client, ResourceExt as _, discovery};
use serde_json::Value;
use umbel_api::WorkerPool;
use umbel_clusters::Impersonate;
use umbel_clusters::credential::Account;

use super::{Fault, within};
use crate::account::{self, Allowed};
use crate::target::named;

/// One right to ask for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Right {
    /// What needs it.
    pub(super) why: String,
    namespace: Option<String>,
    /// `deployments.apps`, `deployments.apps/scale`, or a path.
    resource: String,
    name: Option<String>,
    verb: String,
    pub(super) is_needed: bool,
}

impl Right {
    fn new(why: &str, namespace: Option<&str>, resource: impl Into<String>, verb: &str) -> Right {
        Right {
            why: why.to_owned(),
            namespace: namespace.map(str::to_owned),
            resource: resource.into(),
            name: None,
            verb: verb.to_owned(),
            is_needed: true,
        }
    }

    fn of(self, name: Option<&str>) -> Right {
        Right {
            name: name.map(str::to_owned),
            ..self
        }
    }

    fn needed_if(self, is_needed: bool) -> Right {
        Right { is_needed, ..self }
    }

    pub(super) fn text(&self) -> String {
        let name = self.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
        let within = self
            .namespace
            .as_ref()
            .map(|namespace| format!(" in {namespace}"))
            .unwrap_or_default();
        format!("{}: {} {}{name}{within}", self.why, self.verb, self.resource)
    }

    /// Asks whether whoever the client is may do it.
    pub(super) async fn is_given(&self, client: &Client, limit: Duration) -> Result<bool, Fault> {
        let spec = if self.resource.starts_with('/') {
            SelfSubjectAccessReviewSpec {
                non_resource_attributes: Some(NonResourceAttributes {
                    path: Some(self.resource.clone()),
                    verb: Some(self.verb.clone()),
                }),
                resource_attributes: None,
            }
        } else {
            let (resource, subresource) = self.resource.split_once('/').unwrap_or((&self.resource, ""));
            let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
            SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: Some(group.to_owned()),
                    resource: Some(plural.to_owned()),
                    subresource: (!subresource.is_empty()).then(|| subresource.to_owned()),
                    namespace: self.namespace.clone(),
                    name: self.name.clone(),
                    verb: Some(self.verb.clone()),
                    ..ResourceAttributes::default()
                }),
                non_resource_attributes: None,
            }
        };
        let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
        let review = SelfSubjectAccessReview {
            spec,
            ..SelfSubjectAccessReview::default()
        };
        let answer = within(limit, reviews.create(&PostParams::default(), &review)).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }
}

/// To send `spec.impersonate`: of the credential's own user.
pub(super) fn to_impersonate(who: &Impersonate) -> Vec<Right> {
    let right = |resource, name: &str| Right::new("impersonate", None, resource, "impersonate").of(Some(name));
    let groups = who.groups.iter().map(|group| right("groups", group));
    [right("users", &who.user)].into_iter().chain(groups).collect()
}

/// To renew the token: of the credential's own user, too.
pub(super) fn to_renew(account: &Account) -> Right {
    let name = Some(account.service_account.as_str());
    Right::new("renewal", Some(&account.namespace), "serviceaccounts/token", "create").of(name)
}

/// What syncs ask for.
pub(super) fn to_sync() -> Vec<Right> {
    let rights = account::sync_rules().into_iter().flat_map(|rule| {
        // Where nobody measures there is nothing to read.
        let is_needed = rule["apiGroups"][0] != "metrics.k8s.io";
        of_rule("sync", None, &rule)
            .into_iter()
            .map(move |right| right.needed_if(is_needed))
    });
    rights.collect()
}

/// What join was told.
pub(super) fn allowed(allowed: &Allowed) -> Vec<Right> {
    let rights = allowed.iter().flat_map(|(namespace, resources)| {
        let namespace = (!namespace.is_empty()).then_some(namespace.as_str());
        let rules = account::rules(resources);
        rules
            .iter()
            .flat_map(|rule| of_rule("allowed at join", namespace, rule))
            .collect::<Vec<_>>()
    });
    rights.collect()
}

/// What a rule of a role gives.
fn of_rule(why: &str, namespace: Option<&str>, rule: &Value) -> Vec<Right> {
    let strings = |field: &str| {
        let all = rule[field].as_array().into_iter().flatten();
        all.filter_map(Value::as_str).collect::<Vec<_>>()
    };
    let group = rule["apiGroups"][0].as_str().unwrap_or_default();
    let resources = strings("resources").into_iter().map(|resource| full(resource, group));
    let all = resources.chain(strings("nonResourceURLs").into_iter().map(str::to_owned));
    let name = rule["resourceNames"][0].as_str();
    let all = all.flat_map(|resource| {
        let one = |verb| Right::new(why, namespace, resource.clone(), verb).of(name);
        strings("verbs").into_iter().map(one).collect::<Vec<_>>()
    });
    all.collect()
}

fn full(resource: &str, group: &str) -> String {
    let (plural, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let mut full = plural.to_owned();
    for (mark, part) in [('.', group), ('/', subresource)] {
        if !part.is_empty() {
            full.push(mark);
            full.push_str(part);
        }
    }
    full
}

/// What a job does with the objects of its kinds.
struct Work {
    /// Of subresources with their name: `patch/scale`.
    verbs: &'static [&'static str],
    /// Does without them, only not as well.
    optional: &'static [&'static str],
    /// With the inventories of apply sets, which are ConfigMaps in the namespaces of its rules.
    inventory: &'static [&'static str],
}

/// Nothing for jobs that are at work at home.
fn work(job: &str) -> Option<Work> {
    let (verbs, optional, inventory): (&[&str], &[&str], &[&str]) = match job {
        // Members of a set are read by a list, or else one by one.
        "apply" => (&["get", "create", "patch"], &["list"], &["get", "create", "update"]),
        "prune" | "delete" => (&["get", "delete"], &[], &["get", "update"]),
        "diff" => (&["get", "create", "patch"], &[], &[]),
        "get" => (&["get", "list"], &[], &[]),
        "restart" => (&["get", "patch"], &[], &[]),
        "scale" => (&["get", "patch", "patch/scale"], &[], &[]),
        "wait" => (&["get", "list", "watch"], &[], &[]),
        "labelNodes" => (&["get", "list", "patch"], &[], &[]),
        _ => return None,
    };
    Some(Work {
        verbs,
        optional,
        inventory,
    })
}

/// What the jobs of these pools ask for, and what no right helps.
pub(super) async fn of_pools(
    client: &Client,
    pools: impl Iterator<Item = &WorkerPool>,
    limit: Duration,
) -> (BTreeSet<Right>, Vec<String>) {
    let (mut wanted, mut faults) = (BTreeSet::new(), Vec::new());
    let mut groups = Groups::default();
    for pool in pools {
        let jobs = serde_json::to_value(&pool.spec.jobs).unwrap_or_default();
        for (job, rules) in jobs.as_object().into_iter().flatten() {
            let Some(work) = work(job) else { continue };
            let why = format!("pool {}, job {job}", pool.name_any());
            if job == "labelNodes" {
                wanted.extend(work.verbs.iter().map(|verb| Right::new(&why, None, "nodes", verb)));
                continue;
            }
            let strings = |field: &str| rules[field].as_array().into_iter().flatten().filter_map(Value::as_str);
            let namespaces: Vec<&str> = strings("namespaces").collect();
            let kinds = strings("kinds").map(|kind| (kind, false));
            for (kind, is_of_cluster) in kinds.chain(strings("clusterKinds").map(|kind| (kind, true))) {
                let (resource, scope) = match groups.find(client, kind, limit).await {
                    Ok(found) => found,
                    Err(err) => {
                        faults.push(format!("{why}: {err}"));
                        continue;
                    }
                };
                let places: Vec<Option<&str>> = match scope {
                    Scope::Namespaced => namespaces.iter().copied().map(Some).collect(),
                    Scope::Cluster if is_of_cluster => vec![None],
                    Scope::Cluster => {
                        faults.push(format!(
                            "{why}: {kind} is cluster-scoped there, and not in clusterKinds"
                        ));
                        continue;
                    }
                };
                for place in places {
                    let right = |verb: &&str| match verb.split_once('/') {
                        Some((verb, sub)) => Right::new(&why, place, format!("{}/{sub}", named(&resource)), verb),
                        None => Right::new(&why, place, named(&resource), verb),
                    };
                    wanted.extend(work.verbs.iter().map(right));
                    wanted.extend(work.optional.iter().map(|verb| right(verb).needed_if(false)));
                }
            }
            let sets = format!("{why}, apply sets");
            for namespace in namespaces {
                let right = |verb: &&str| Right::new(&sets, Some(namespace), "configmaps", verb);
                wanted.extend(work.inventory.iter().map(right));
            }
        }
    }
    (wanted, faults)
}

/// The kinds of API groups that were asked for. One group that does not answer is no matter of the others.
#[derive(Default)]
struct Groups(BTreeMap<String, Result<Vec<(ApiResource, Scope)>, String>>);

impl Groups {
    /// `Kind` or `group/Kind`.
    async fn find(&mut self, client: &Client, text: &str, limit: Duration) -> Result<(ApiResource, Scope), String> {
        let (group, kind) = text.split_once('/').unwrap_or(("", text));
        if !self.0.contains_key(group) {
            let found = within(limit, kinds(client, group)).await;
            let found = found.map_err(|fault| format!("ask for the kinds of {group:?}: {}", fault.words()));
            self.0.insert(group.to_owned(), found);
        }
        let found = self
            .0
            .get(group)
            .map_or(Ok(&[][..]), |found| found.as_deref().map_err(Clone::clone))?;
        let found = found.iter().find(|(resource, _)| resource.kind == kind);
        found
            .cloned()
            .ok_or_else(|| format!("the target serves no kind {text}"))
    }
}

async fn kinds(client: &Client, group: &str) -> Result<Vec<(ApiResource, Scope)>, kube::Error> {
    match discovery::group(client, group).await {
        Ok(group) => Ok(group
            .resources_by_stability()
            .into_iter()
            .map(|(resource, can)| (resource, can.scope))
            .collect()),
        Err(kube::Error::Discovery(DiscoveryError::MissingApiGroup(_))) => Ok(Vec::new()),
        Err(err) => Err(err),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_join_was_told_is_asked_for_whole() {
        let told = Allowed::from([("shop".to_owned(), vec!["deployments.apps".to_owned()])]);
        let texts: Vec<String> = allowed(&told).iter().map(Right::text).collect();
        let of = |verb: &str, what: &str| format!("allowed at join: {verb} deployments.apps{what} in shop");
        let whole = ["get", "list", "watch", "create", "update", "patch", "delete"].map(|verb| of(verb, ""));
        let scale = ["get", "patch", "update"].map(|verb| of(verb, "/scale"));
        assert_eq!(texts, [whole.as_slice(), &scale].concat());
    }

    #[test]
    fn syncs_need_all_but_what_is_measured() {
        let all = to_sync();
        let lacks: Vec<String> = all.iter().filter(|right| !right.is_needed).map(Right::text).collect();
        assert_eq!(lacks, ["sync: list nodes.metrics.k8s.io"]);
        let texts: Vec<String> = all.iter().map(Right::text).collect();
        assert!(
            texts.contains(&"sync: get namespaces kube-system".to_owned()),
            "{texts:?}"
        );
        assert!(texts.contains(&"sync: get /readyz".to_owned()), "{texts:?}");
    }
}
