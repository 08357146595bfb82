//! What a pool lets its cluster jobs touch: kinds and namespaces. Pure.
//!
//! One shape for all of them. The rules come from the pool, never from a message.

use serde::Deserialize;

/// Groups whose objects grant rights, or change what the API server does with other objects.
const STRONG_GROUPS: &[&str] = &[
    "rbac.authorization.k8s.io",
    "authorization.k8s.io",
    "authentication.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "certificates.k8s.io",
];

/// What one cluster job may touch at a target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ObjectRules {
    /// Namespaces, by name.
    pub namespaces: Vec<String>,
    /// Namespaced kinds: `Kind` of the core group, `group/Kind` of another.
    pub kinds: Vec<String>,
    /// Cluster-scoped kinds, and those of groups that grant rights.
    pub cluster_kinds: Vec<String>,
    /// Apply: may a message take fields over?
    pub force: bool,
    /// Delete: may a message delete what no apply wrote?
    pub any_owner: bool,
    /// Apply: where manifests may come from besides the message.
    pub sources: Option<SourceRules>,
}

/// Where manifests may come from besides the message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct SourceRules {
    /// ConfigMaps that the worker has as files.
    pub config_maps: Vec<String>,
    /// Secrets that the worker has as files.
    pub secrets: Vec<String>,
    /// `[scheme://]host[:port]`, with `*` for any characters of the host.
    pub hosts: Vec<String>,
}

/// The rules of one job, and its name in `spec.jobs`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allow<'a> {
    pub(super) job: &'static str,
    pub(super) rules: &'a ObjectRules,
}

impl Allow<'_> {
    /// Is the kind one of those that are named for being cluster-scoped or strong?
    pub(super) fn is_cluster_kind(self, group: &str, kind: &str) -> bool {
        self.rules.cluster_kinds.contains(&qualified(group, kind))
    }

    /// May objects of this kind be touched at all?
    pub(super) fn kind(self, group: &str, kind: &str) -> Result<(), String> {
        let qualified = qualified(group, kind);
        if self.rules.cluster_kinds.contains(&qualified) {
            return Ok(());
        }
        let Allow { job, rules } = self;
        if STRONG_GROUPS.contains(&group) {
            return Err(format!(
                "objects of the group {group} grant rights; the kind {qualified} is not allowed by this pool \
                 (spec.jobs.{job}.clusterKinds: {})",
                list(&rules.cluster_kinds)
            ));
        }
        if rules.kinds.contains(&qualified) {
            return Ok(());
        }
        Err(format!(
            "the kind {qualified} is not allowed by this pool (spec.jobs.{job}.kinds: {})",
            list(&rules.kinds)
        ))
    }

    /// May objects of this namespace be touched?
    pub(super) fn namespace(self, namespace: &str) -> Result<(), String> {
        let Allow { job, rules } = self;
        if rules.namespaces.iter().any(|allowed| allowed == namespace) {
            return Ok(());
        }
        Err(format!(
            "the namespace {namespace} is not allowed by this pool (spec.jobs.{job}.namespaces: {})",
            list(&rules.namespaces)
        ))
    }
}

/// A kind as pools name it.
pub(super) fn qualified(group: &str, kind: &str) -> String {
    if group.is_empty() {
        kind.to_owned()
    } else {
        format!("{group}/{kind}")
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().take(20).map(String::as_str).collect::<Vec<_>>().join(", ")
}
