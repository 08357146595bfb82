//! `TargetCluster`: a cluster that jobs may touch.

use std::collections::BTreeMap;

use k8s_openapi::{
    apimachinery::pkg::api::resource::Quantity,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::refs::SecretKeyRef;

/// A cluster that jobs may touch. Labels on it choose it for fan-out.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[kube(
    group = "umbel.dev",
    version = "v1alpha1",
    kind = "TargetCluster",
    namespaced,
    status = "TargetClusterStatus",
    derive = "PartialEq",
    shortname = "tc",
    category = "umbel",
    doc = "A cluster that jobs may touch. Labels on it choose it for fan-out.",
    printcolumn(
        name = "Reachable",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Reachable\")].status"
    ),
    printcolumn(
        name = "Healthy",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Healthy\")].status"
    ),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.total"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.nodes.ready"),
    printcolumn(name = "Latency-ms", type_ = "integer", json_path = ".status.apiLatencyMs"),
    printcolumn(name = "Synced", type_ = "date", json_path = ".status.lastSyncTime"),
    printcolumn(
        name = "Circuit",
        type_ = "string",
        json_path = ".status.circuit.state",
        priority = 1
    ),
    printcolumn(name = "Error", type_ = "string", json_path = ".status.lastError", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct TargetClusterSpec {
    /// The Secret that holds the kubeconfig. It may name https servers with inline certificates and tokens only.
    pub kubeconfig_secret_ref: SecretKeyRef,

    /// While true, schedules choose the cluster no more.
    #[serde(default)]
    pub suspend: bool,

    /// What the cluster is asked at most, by all workers of its namespace's pools on one broker together.
    #[serde(default)]
    pub limits: Limits,

    /// Whom requests are made as, where it is not the kubeconfig's own user: `Impersonate-User` and `Impersonate-Group` on
    /// every request. The kubeconfig's user needs the right to `impersonate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impersonate: Option<Impersonate>,
}

/// What a cluster is asked at most.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Requests a second, on average. A cluster that answers 429 is asked half as often, and slowly more again.
    #[schemars(range(min = 1, max = 1000))]
    pub qps: u32,
    /// Requests at once after a pause.
    #[schemars(range(min = 1, max = 2000))]
    pub burst: u32,
    /// Tasks at work on it at a time. Others wait in their queue, in no slot.
    #[schemars(range(min = 1, max = 1000))]
    pub max_concurrent_tasks: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            qps: 20,
            burst: 40,
            max_concurrent_tasks: 5,
        }
    }
}

/// Whom requests are made as.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Impersonate {
    /// The user. Not empty, which would be the kubeconfig's own, and no name of the system.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new("self.matches('^[!-~]([ -~]*[!-~])?$')").message("impersonate.user must not be empty, begin or end with a blank or hold other than printable ASCII characters"),
        validation = Rule::new("!self.startsWith('system:')").message("impersonate.user must not begin with system:")
    )]
    pub user: String,
    /// Their groups; none if absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 253)))]
    #[x_kube(
        validation = Rule::new("self.all(group, group.matches('^[!-~]([ -~]*[!-~])?$'))").message("impersonate.groups must not be empty, begin or end with a blank or hold other than printable ASCII characters"),
        validation = Rule::new("self.all(group, group != 'system:masters')").message("impersonate.groups must not name system:masters")
    )]
    pub groups: Vec<String>,
}

/// What the latest sync job saw.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetClusterStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Version of the cluster's API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How long the API server took to answer a small question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_latency_ms: Option<u64>,
    /// The cluster's nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Nodes>,
    /// Sum of the nodes' capacity.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::quantities")]
    pub capacity: BTreeMap<String, Quantity>,
    /// Sum of what the nodes offer to pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::quantities")]
    pub allocatable: BTreeMap<String, Quantity>,
    /// Sum of what the nodes use, where the cluster serves `metrics.k8s.io`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::quantities")]
    pub usage: BTreeMap<String, Quantity>,
    /// Pods by phase.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pods: BTreeMap<String, u64>,
    /// The uid of the cluster's kube-system namespace, which tells it from all others. Jobs refuse a cluster with another
    /// one. The first sync that could read it sets it; the annotation `umbel.dev/accept-identity` changes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_uid: Option<String>,
    /// Whether the cluster is called at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit: Option<Circuit>,
    /// When a sync last succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sync_time: Option<Time>,
    /// Why the latest sync failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When the token or the client certificate ends, where it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_expire_time: Option<Time>,
    /// What holds and what does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Whether a cluster is called.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Circuit {
    /// The state.
    pub state: CircuitState,
    /// Since when it is in this state; absent if it never was in another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// When it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
}

/// State of a circuit.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum CircuitState {
    /// Calls go through.
    #[default]
    Closed,
    /// It did not answer several times in a row: nothing is sent until `until`.
    Open,
    /// One task tries whether it answers again.
    HalfOpen,
}

/// Nodes of a cluster.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Nodes {
    /// All of them.
    pub total: u64,
    /// Those that are Ready.
    pub ready: u64,
}

/// What a sync job reports through the broker, as JSON. A success carries what was seen, a failure its reason.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterObservation {
    /// When it was seen, RFC 3339.
    pub at: Option<Time>,
    /// Whether the API server answered.
    pub reachable: bool,
    /// Whether the kubeconfig kept to the rules; absent when that was not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubeconfig_accepted: Option<bool>,
    /// Why it failed, if it did: one sentence without secrets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// One word for the error, where there is a better one than that the sync failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Version of the API server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How long a small question took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_latency_ms: Option<u64>,
    /// The nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Nodes>,
    /// Sum of capacities.
    pub capacity: BTreeMap<String, Quantity>,
    /// Sum of what is offered to pods.
    pub allocatable: BTreeMap<String, Quantity>,
    /// Sum of what is used.
    pub usage: BTreeMap<String, Quantity>,
    /// Pods by phase.
    pub pods: BTreeMap<String, u64>,
    /// Uid of the kube-system namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Why that could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid_unknown: Option<String>,
    /// Reads that were refused; absent when none was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<Vec<String>>,
    /// Whether all is well there; absent when nobody can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy: Option<bool>,
    /// The same in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    /// The circuit, as the worker knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit: Option<Circuit>,
}
