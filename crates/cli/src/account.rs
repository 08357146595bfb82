//! An account at a target: what it is made of, and what it may do.
//!
//! It may do what `umbel.cluster.sync` does, renew its own token, and touch what an administrator has named; nothing by
//! wildcard, and nothing of others.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions};
use kube::core::discovery::{ApiResource, Scope};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use umbel_api::names::{ANNOTATION_HOME, LABEL_ACCOUNT, LABEL_MANAGED_BY};
use umbel_clusters::credential::Account;

use crate::home::said;
use crate::target::{Kinds, named};

/// Where accounts are made unless told otherwise.
pub(crate) const NAMESPACE: &str = "umbel-system";
/// Field manager of what this program writes.
pub(crate) const MANAGER: &str = "umbel-cli";
/// What jobs do with an object.
const VERBS: [&str; 7] = ["get", "list", "watch", "create", "update", "patch", "delete"];
/// Nodes are neither made nor deleted by jobs.
const NODE_VERBS: [&str; 4] = ["get", "list", "watch", "patch"];
/// Kinds with a size that jobs set through a subresource.
const SCALED: [&str; 4] = ["deployments", "statefulsets", "replicasets", "replicationcontrollers"];
/// A label's value is no longer.
const LONGEST: usize = 63;

/// What `umbel.cluster.sync` asks a target for, as rules of a ClusterRole.
pub(crate) fn sync_rules() -> Vec<Value> {
    vec![
        json!({ "apiGroups": [""], "resources": ["namespaces"], "resourceNames": ["kube-system"], "verbs": ["get"] }),
        json!({ "apiGroups": [""], "resources": ["nodes", "pods"], "verbs": ["list"] }),
        json!({ "apiGroups": ["metrics.k8s.io"], "resources": ["nodes"], "verbs": ["list"] }),
        json!({ "nonResourceURLs": ["/readyz", "/version"], "verbs": ["get"] }),
    ]
}

/// The name of the account for a TargetCluster.
pub(crate) fn name(namespace: &str, cluster: &str) -> String {
    let whole = format!("umbel-{namespace}-{cluster}").replace('.', "-");
    if whole.len() <= LONGEST {
        return whole;
    }
    let hash = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, whole.as_bytes())
        .simple()
        .to_string();
    format!("{}-{}", whole[..LONGEST - 9].trim_end_matches('-'), &hash[..8])
}

/// What jobs may touch: resources as `deployments.apps`, by namespace; the empty one is of cluster-scoped kinds.
pub(crate) type Allowed = BTreeMap<String, Vec<String>>;

/// Reads `NAMESPACE:KIND[,KIND]`s, with kinds as the target serves them.
pub(crate) fn allowed(texts: &[String], kinds: &Kinds) -> anyhow::Result<Allowed> {
    let mut allowed = Allowed::new();
    for text in texts {
        let (namespace, names) = text.split_once(':').context("not of the form NAMESPACE:KIND[,KIND]")?;
        for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let (resource, scope) = kinds.find(name).with_context(|| format!("--allow {text}"))?;
            match (namespace.is_empty(), scope) {
                (false, Scope::Namespaced) | (true, Scope::Cluster) => {}
                (false, Scope::Cluster) => bail!("--allow {text}: {name} is in no namespace; say :{name}"),
                (true, Scope::Namespaced) => bail!("--allow {text}: {name} is in namespaces; say NAMESPACE:{name}"),
            }
            let of = allowed.entry(namespace.to_owned()).or_default();
            let resource = named(resource);
            if !of.contains(&resource) {
                of.push(resource);
            }
        }
    }
    for of in allowed.values_mut() {
        of.sort();
    }
    Ok(allowed)
}

/// Rules for what was allowed, one a group.
pub(crate) fn rules(resources: &[String]) -> Vec<Value> {
    let mut rules = Vec::new();
    let mut groups: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for resource in resources {
        let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
        if plural == "nodes" && group.is_empty() {
            rules.push(json!({ "apiGroups": [""], "resources": ["nodes"], "verbs": NODE_VERBS }));
            continue;
        }
        groups.entry(group).or_default().push(plural.to_owned());
        if SCALED.contains(&plural) {
            let scale = [format!("{plural}/scale")];
            rules.push(json!({ "apiGroups": [group], "resources": scale, "verbs": ["get", "patch", "update"] }));
        }
    }
    let whole = groups
        .into_iter()
        .map(|(group, plurals)| json!({ "apiGroups": [group], "resources": plurals, "verbs": VERBS }));
    whole.chain(rules).collect()
}

/// All objects of an account, in the order in which they are made. `home` is the uid of the namespace that it is for.
pub(crate) fn objects(account: &Account, of: &str, home: Option<&str>, allowed: &Allowed) -> Vec<Value> {
    const RBAC: &str = "rbac.authorization.k8s.io/v1";
    let Account {
        namespace,
        service_account: name,
        bound_to,
        seconds: _,
    } = account;
    let metadata = |name: &str, namespace: Option<&str>| {
        let mut annotations = json!({ "umbel.dev/cluster": of });
        if let Some(home) = home {
            annotations[ANNOTATION_HOME] = json!(home);
        }
        let mut metadata = json!({
            "name": name, "annotations": annotations,
            "labels": { LABEL_MANAGED_BY: "umbel", LABEL_ACCOUNT: account.service_account },
        });
        if let Some(namespace) = namespace {
            metadata["namespace"] = json!(namespace);
        }
        metadata
    };
    let subjects = json!([{ "kind": "ServiceAccount", "name": name, "namespace": namespace }]);
    let binding = |kind: &str, role: &str, name: &str, within: Option<&str>| {
        json!({
            "apiVersion": RBAC, "kind": kind, "metadata": metadata(name, within), "subjects": subjects,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": name },
        })
    };
    let mut all = vec![json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(name, Some(namespace)),
        "automountServiceAccountToken": false,
    })];
    if let Some(bound) = bound_to {
        // Holds nothing: tokens die with it.
        all.push(json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata(bound, Some(namespace)), "type": "Opaque" }));
    }
    let mut sync = sync_rules();
    sync.extend(rules(allowed.get("").map(Vec::as_slice).unwrap_or_default()));
    all.push(json!({ "apiVersion": RBAC, "kind": "ClusterRole", "metadata": metadata(name, None), "rules": sync }));
    all.push(binding("ClusterRoleBinding", "ClusterRole", name, None));
    let own = format!("{name}-token");
    all.push(
        json!({ "apiVersion": RBAC, "kind": "Role", "metadata": metadata(&own, Some(namespace)), "rules": [{
        "apiGroups": [""], "resources": ["serviceaccounts/token"], "resourceNames": [name], "verbs": ["create"],
    }] }),
    );
    all.push(binding("RoleBinding", "Role", &own, Some(namespace)));
    for (within, resources) in allowed.iter().filter(|(within, _)| !within.is_empty()) {
        let role = json!({ "apiVersion": RBAC, "kind": "Role", "metadata": metadata(name, Some(within)), "rules": rules(resources) });
        all.extend([role, binding("RoleBinding", "Role", name, Some(within))]);
    }
    all
}

/// What writing an object came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Created,
    Changed,
    AsItIs,
}

/// `Kind namespace/name`.
pub(crate) fn title(object: &Value) -> String {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
    match text("/metadata/namespace") {
        "" => format!("{} {}", text("/kind"), text("/metadata/name")),
        namespace => format!("{} {namespace}/{}", text("/kind"), text("/metadata/name")),
    }
}

fn resource(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        plural: format!("{}s", kind.to_lowercase()),
    }
}

fn api(client: &Client, object: &Value) -> Api<DynamicObject> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str);
    let resource = resource(
        text("/apiVersion").unwrap_or_default(),
        text("/kind").unwrap_or_default(),
    );
    match text("/metadata/namespace") {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// Makes an object as it should be, or with `dry` only says what that would be. One that is not this account's is refused.
pub(crate) async fn put(client: &Client, object: &Value, dry: bool) -> anyhow::Result<Done> {
    let (api, title) = (api(client, object), title(object));
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let there = api
        .get_opt(name)
        .await
        .map_err(|err| said(err, format!("look for {title}")))?;
    if let Some(there) = &there {
        let ours = &object["metadata"]["labels"];
        let is_ours = there.labels().get(LABEL_ACCOUNT).map(String::as_str) == ours[LABEL_ACCOUNT].as_str();
        let home = |of: Option<&str>| of.map(str::to_owned);
        let (theirs, here) = (
            home(there.annotations().get(ANNOTATION_HOME).map(String::as_str)),
            home(object["metadata"]["annotations"][ANNOTATION_HOME].as_str()),
        );
        if !is_ours || (theirs.is_some() && here.is_some() && theirs != here) {
            bail!(
                "{title} at the target exists and is not this cluster's; it is left as it is (--account names another)"
            );
        }
    } else if dry {
        return Ok(Done::Created);
    }
    let mut params = PatchParams::apply(MANAGER).force();
    if dry {
        params = params.dry_run();
    }
    let written = api.patch(name, &params, &Patch::Apply(object)).await;
    let written = written.map_err(|err| said(err, format!("write {title}")))?;
    Ok(match there {
        None => Done::Created,
        Some(there) if there.data == written.data && same_words(&there, &written) => Done::AsItIs,
        Some(_) => Done::Changed,
    })
}

fn same_words(one: &DynamicObject, other: &DynamicObject) -> bool {
    one.labels() == other.labels() && one.annotations() == other.annotations()
}

/// Makes the namespace of accounts, if it is not there.
pub(crate) async fn ensure_namespace(client: &Client, name: &str, dry: bool) -> anyhow::Result<Done> {
    let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
    let api = api(client, &object);
    let there = api
        .get_opt(name)
        .await
        .map_err(|err| said(err, format!("look for Namespace {name}")))?;
    if there.is_some() {
        return Ok(Done::AsItIs);
    }
    if !dry {
        let params = PatchParams::apply(MANAGER);
        let made = api.patch(name, &params, &Patch::Apply(&object)).await;
        made.map_err(|err| said(err, format!("write Namespace {name}")))?;
    }
    Ok(Done::Created)
}

/// Removes what an account is made of, but for what `keep` names as [`title`] does; what was removed.
///
/// What names another home than ours stays: two installations may give an account the same name.
pub(crate) async fn remove(
    client: &Client,
    account: &Account,
    home: Option<&str>,
    keep: &[String],
    dry: bool,
) -> anyhow::Result<Vec<String>> {
    const RBAC: &str = "rbac.authorization.k8s.io/v1";
    let ours = ListParams::default().labels(&format!("{LABEL_ACCOUNT}={}", account.service_account));
    let mut removed = Vec::new();
    // Rights first: an account without them harms nobody.
    for (version, kind, within) in [
        (RBAC, "ClusterRoleBinding", None),
        (RBAC, "RoleBinding", None),
        (RBAC, "ClusterRole", None),
        (RBAC, "Role", None),
        ("v1", "Secret", Some(&account.namespace)),
        ("v1", "ServiceAccount", Some(&account.namespace)),
    ] {
        let resource = resource(version, kind);
        let all: Api<DynamicObject> = match within {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        let found = all.list(&ours).await;
        let found = found.map_err(|err| said(err, format!("list {kind}s at the target")))?;
        for object in found.items {
            let named = json!({
                "apiVersion": version, "kind": kind,
                "metadata": { "name": object.name_any(), "namespace": object.namespace() },
            });
            let title = title(&named);
            if keep.contains(&title) {
                continue;
            }
            let of = object.annotations().get(ANNOTATION_HOME).map(String::as_str);
            if of.is_some() && of != home {
                crate::output::say(&format!("at the target: {title} stays: it is of another installation"));
                continue;
            }
            if !dry {
                let params = DeleteParams {
                    preconditions: Some(Preconditions {
                        uid: object.uid(),
                        resource_version: None,
                    }),
                    ..DeleteParams::default()
                };
                match api(client, &named).delete(&object.name_any(), &params).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.code == 404 => continue,
                    Err(err) => return Err(said(err, format!("delete {title}"))),
                }
            }
            removed.push(title);
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account {
            namespace: NAMESPACE.into(),
            service_account: "umbel-team-eu".into(),
            bound_to: Some("umbel-team-eu".into()),
            seconds: 3600,
        }
    }

    #[test]
    fn an_account_gets_what_was_named_and_nothing_by_wildcard() {
        let allowed = Allowed::from([
            (String::new(), vec!["nodes".to_owned()]),
            (
                "shop".to_owned(),
                vec!["configmaps".to_owned(), "deployments.apps".to_owned()],
            ),
        ]);
        let all = objects(&account(), "team/eu", Some("uid"), &allowed);
        let text = serde_json::to_string(&all).unwrap();
        for word in ["*", "cluster-admin", "escalate", "impersonate", "\"bind\"", "secrets"] {
            assert!(!text.contains(word), "{word}: {text}");
        }
        let titles: Vec<String> = all.iter().map(title).collect();
        assert_eq!(
            titles,
            [
                "ServiceAccount umbel-system/umbel-team-eu",
                "Secret umbel-system/umbel-team-eu",
                "ClusterRole umbel-team-eu",
                "ClusterRoleBinding umbel-team-eu",
                "Role umbel-system/umbel-team-eu-token",
                "RoleBinding umbel-system/umbel-team-eu-token",
                "Role shop/umbel-team-eu",
                "RoleBinding shop/umbel-team-eu",
            ]
        );
        assert_eq!(
            all[6]["rules"],
            json!([
                { "apiGroups": [""], "resources": ["configmaps"], "verbs": VERBS },
                { "apiGroups": ["apps"], "resources": ["deployments"], "verbs": VERBS },
                { "apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["get", "patch", "update"] },
            ])
        );
        assert_eq!(all[2]["rules"][4]["verbs"], json!(NODE_VERBS));
    }

    #[test]
    fn names_fit_into_labels_and_stay_apart() {
        assert_eq!(name("team", "eu.west"), "umbel-team-eu-west");
        let (one, other) = (
            name(&"n".repeat(40), &"a".repeat(40)),
            name(&"n".repeat(40), &"b".repeat(40)),
        );
        assert!(
            one.len() <= LONGEST && other.len() <= LONGEST && one != other,
            "{one} {other}"
        );
    }
}
