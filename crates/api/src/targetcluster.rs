//! `TargetCluster`: a cluster that jobs may touch.

use std::collections::BTreeMap;

use k8s_openapi::{
    apimachinery::pkg::api::resource::Quantity,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::CustomResource;
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
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.total"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.nodes.ready"),
    printcolumn(name = "Latency-ms", type_ = "integer", json_path = ".status.apiLatencyMs"),
    printcolumn(name = "Synced", type_ = "date", json_path = ".status.lastSyncTime"),
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
    /// Pods by phase.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pods: BTreeMap<String, u64>,
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
    /// Pods by phase.
    pub pods: BTreeMap<String, u64>,
}
