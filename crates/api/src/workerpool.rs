//! `WorkerPool`: a fleet of workers.
#![allow(clippy::struct_field_names, reason = "they are those of the object")]

mod protection;
mod rollout;
mod scaling;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use protection::{Protection, Shield};
pub use rollout::{Amount, Budget, Rollout, RolloutKind};
pub use scaling::{
    BrokerPolicy, Calendar, Down, Goal, Mode, OnBrokerError, Paused, Policy, PolicyKind, Scaling, Select, Target,
    TargetKind, Up, Victims,
};

use crate::{refs::Selector, span::Span};

/// A fleet of workers that serves queues, sized by demand.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "umbel.dev",
    version = "v1alpha1",
    kind = "WorkerPool",
    namespaced,
    status = "WorkerPoolStatus",
    derive = "PartialEq",
    shortname = "wp",
    category = "umbel",
    doc = "A fleet of workers that serves queues, sized by demand.",
    // A Deployment's name is this and a dash and ten characters, and a pod's name and labels are made from it.
    validation = Rule::new("size(self.metadata.name) <= 52").message("a pool's name has at most 52 characters"),
    validation = Rule::new("self.spec.runtime != 'Celery' || has(self.spec.template)").message("runtime Celery needs a template"),
    validation = Rule::new("self.spec.runtime != 'Celery' || (!has(self.spec.clusterAccess) && !has(self.spec.recycle) && (!has(self.spec.jobs) || (!has(self.spec.jobs.apply) && !has(self.spec.jobs.prune) && !has(self.spec.jobs.delete) && !has(self.spec.jobs.diff) && !has(self.spec.jobs.get) && !has(self.spec.jobs.labelNodes) && !has(self.spec.jobs.restart) && !has(self.spec.jobs.scale) && !has(self.spec.jobs.wait) && !has(self.spec.jobs.exec) && !has(self.spec.jobs.http) && !has(self.spec.jobs.secrets))))").message("clusterAccess, jobs and recycle are for runtime Umbel: Celery has flags of its own"),
    validation = Rule::new("!has(self.spec.podDisruptionBudget) || !has(self.spec.protection) || !has(self.spec.protection.onEviction) || !self.spec.protection.onEviction.exists(one, one == 'DisruptionBudget')").message("a pod has one budget: podDisruptionBudget and DisruptionBudget in protection.onEviction exclude each other"),
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".status.desiredReplicas"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "Busy", type_ = "integer", json_path = ".status.busyReplicas"),
    printcolumn(name = "Draining", type_ = "integer", json_path = ".status.drainingReplicas"),
    printcolumn(name = "Waiting", type_ = "integer", json_path = ".status.demand.waiting"),
    printcolumn(name = "In-Flight", type_ = "integer", json_path = ".status.demand.inFlight"),
    printcolumn(name = "Blocked", type_ = "string", json_path = ".status.blockedReason", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct WorkerPoolSpec {
    /// The queues it serves: TaskQueues of this namespace, all on one broker, the first ones first.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub queues: Vec<QueueShare>,

    /// What runs in the pods.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a pool keeps its runtime"))]
    pub runtime: Runtime,

    /// The pods' template, a PodTemplateSpec. Without it: the release's worker image. The worker is the container named
    /// `worker`, otherwise the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::opaque_object")]
    pub template: Option<serde_json::Value>,

    /// How several queues share a pod.
    #[serde(default)]
    pub consumption: Consumption,

    /// When a worker ends by itself and is started anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recycle: Option<Recycle>,

    /// Tasks that a pod runs at a time.
    #[serde(default = "concurrency")]
    #[schemars(range(min = 1, max = 10_000))]
    pub concurrency: u32,

    /// Size of the fleet while `scaling.mode` is Manual or External: what `kubectl scale`, an HPA or KEDA write.
    #[serde(default = "replicas")]
    #[schemars(range(min = 0, max = 10_000))]
    pub replicas: u32,

    /// How the fleet gets its size.
    #[serde(default)]
    pub scaling: Scaling,

    /// Takes the fleet to zero, each pod when it is idle, and keeps it there whatever the rest says.
    #[serde(default)]
    pub suspend: bool,

    /// What a stopping pod may take.
    #[serde(default)]
    pub drain: Drain,

    /// How a new template replaces the old one.
    #[serde(default)]
    pub rollout: Rollout,

    /// How few pods voluntary disruptions may leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_disruption_budget: Option<Budget>,

    /// How busy pods are shielded from drains and consolidation.
    #[serde(default)]
    pub protection: Protection,

    /// TargetClusters of this namespace that the pool's jobs may touch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_access: Option<ClusterAccess>,

    /// Built-in jobs that the pool runs; one that is not named here is an unknown task.
    #[serde(default)]
    pub jobs: Jobs,
}

/// A queue that a pool serves.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueueShare {
    /// Name of the TaskQueue.
    #[schemars(length(min = 1, max = 253), pattern(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Its share of what a pod takes, beside those of the other queues, while all have messages.
    #[serde(default = "weight", skip_serializing_if = "is_one")]
    #[schemars(range(min = 1, max = 1000))]
    pub weight: u32,
}

const fn weight() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // As serde asks.
const fn is_one(weight: &u32) -> bool {
    *weight == 1
}

/// What runs in a pool's pods.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Runtime {
    /// Umbel's worker, or a program made with its library.
    #[default]
    Umbel,
    /// A Python Celery worker, as the template starts it: watched by its events, steered by Celery's remote control. Its
    /// node name must end in the pod's name, as it does unless it is set otherwise.
    Celery,
}

/// How several queues share a pool's pods.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Consumption {
    /// Each gets the share of its weight, as long as it has messages.
    #[default]
    Weighted,
    /// The first that has messages is served first; those behind it get a twentieth.
    Strict,
}

/// When a pod's worker ends by itself, in order and with nothing running, and is started anew.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.maxAge) || duration(self.maxAge) >= duration('1s')").message("maxAge is at least 1s").field_path(".maxAge"))]
pub struct Recycle {
    /// After so many tasks, up to a tenth fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_tasks: Option<u64>,
    /// After this time, up to a tenth earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
    /// When more memory is resident: bytes, or with Ki, Mi, Gi, k, M or G.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 14), pattern(r"^[1-9][0-9]{0,10}(Ki|Mi|Gi|k|M|G)?$"))]
    pub max_memory: Option<String>,
}

/// What a stopping pod may take.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.gracePeriod) || (duration(self.gracePeriod) >= duration('1s') && duration(self.gracePeriod) <= duration('24h'))").message("a grace period lasts from 1s to 24h").field_path(".gracePeriod"))]
pub struct Drain {
    /// Time from SIGTERM until the pod is killed. Without it: the longest time limit of the queues and 30 s more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_period: Option<Span>,
    /// Percent of the grace period after which tasks that still run are asked to stop and handed back to their queue,
    /// uncharged.
    #[serde(default = "hand_back_at")]
    #[schemars(range(min = 1, max = 95))]
    pub hand_back_at: u32,
    /// Whether what is handed back counts as a delivery that ended without result: after the queue's `maxDeliveries` of
    /// them it goes to the dead letters.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub counts_as_attempt: bool,
}

fn hand_back_at() -> u32 {
    90
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            grace_period: None,
            hand_back_at: hand_back_at(),
            counts_as_attempt: false,
        }
    }
}

/// TargetClusters that a pool's jobs may touch.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.selector) || has(self.names)").message("selector or names must be given"))]
pub struct ClusterAccess {
    /// Those with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Those with these names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 1000), inner(length(min = 1, max = 253)), extend("x-kubernetes-list-type" = "set"))]
    pub names: Vec<String>,
}

impl ClusterAccess {
    /// Whether a TargetCluster with this name and these labels is covered.
    pub fn covers(&self, name: &str, labels: &std::collections::BTreeMap<String, String>) -> bool {
        let Self { selector, names } = self;
        names.iter().any(|named| named == name) || selector.as_ref().is_some_and(|selector| selector.matches(labels))
    }
}

/// Built-in jobs that a pool runs.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Jobs {
    /// Apply manifests at target clusters: `umbel.cluster.apply`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apply: Option<ApplyJob>,
    /// Remove what left an apply set: `umbel.cluster.prune`, and `prune` of an apply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prune: Option<ObjectsJob>,
    /// Delete objects: `umbel.cluster.delete`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete: Option<DeleteJob>,
    /// Say what an apply would change: `umbel.cluster.diff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff: Option<ObjectsJob>,
    /// Read fields of objects: `umbel.cluster.get`. Of Secrets never the values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub get: Option<ObjectsJob>,
    /// Set and remove labels of nodes: `umbel.cluster.label-nodes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_nodes: Option<LabelNodesJob>,
    /// Restart Deployments, StatefulSets and DaemonSets: `umbel.cluster.restart`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<ObjectsJob>,
    /// Set sizes by the scale subresource: `umbel.cluster.scale`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<ObjectsJob>,
    /// Wait for rollouts, conditions, fields and deletions: `umbel.cluster.wait`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<ObjectsJob>,
    /// Run programs of the worker's image: `umbel.exec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecJob>,
    /// Call addresses: `umbel.http`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpJob>,
    /// Secrets of which tasks of any name may get values as arguments (`argsFrom`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<SecretArgs>,
}

/// Secrets for arguments.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretArgs {
    /// Their names, in the pool's namespace. Workers have them as files and follow their changes; those of clusters and of the
    /// pool's broker are refused.
    #[schemars(length(min = 1, max = 20), inner(length(min = 1, max = 253), pattern(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")), extend("x-kubernetes-list-type" = "set"))]
    pub names: Vec<String>,
}

/// What the apply job may touch at a target.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApplyJob {
    /// Namespaces at the target.
    #[schemars(length(min = 1, max = 100), inner(length(min = 1, max = 63), pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")), extend("x-kubernetes-list-type" = "set"))]
    pub namespaces: Vec<String>,
    /// Namespaced kinds, such as `ConfigMap` or `apps/Deployment`. Kinds that grant rights are refused here in any case.
    #[schemars(length(min = 1, max = 100), inner(length(min = 1, max = 253), pattern(r"^([a-z0-9][a-z0-9.-]*/)?[A-Z][A-Za-z0-9]*$")), extend("x-kubernetes-list-type" = "set"))]
    pub kinds: Vec<String>,
    /// Cluster-scoped kinds, such as `Namespace`, and those whose objects grant rights or change the API server, such as
    /// `rbac.authorization.k8s.io/Role` or `apiextensions.k8s.io/CustomResourceDefinition`: only what is named here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 253), pattern(r"^([a-z0-9][a-z0-9.-]*/)?[A-Z][A-Za-z0-9]*$")), extend("x-kubernetes-list-type" = "set"))]
    pub cluster_kinds: Vec<String>,
    /// Whether messages may take fields over from other field managers (`force`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// Where manifests may come from besides the message: `manifestsFrom` of every job that takes manifests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<ManifestSources>,
}

/// Where manifests may come from.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ManifestSources {
    /// ConfigMaps of the pool's namespace. Workers have them as files and follow their changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), inner(length(min = 1, max = 253), pattern(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")), extend("x-kubernetes-list-type" = "set"))]
    pub config_maps: Vec<String>,
    /// Secrets of the pool's namespace, in the same way; those of clusters and of the pool's broker are refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), inner(length(min = 1, max = 253), pattern(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")), extend("x-kubernetes-list-type" = "set"))]
    pub secrets: Vec<String>,
    /// Hosts, as `jobs.http.hosts` has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 300), pattern(r"^(https?://)?([A-Za-z0-9_*]([A-Za-z0-9_.*-]*[A-Za-z0-9_*])?|\[[0-9A-Fa-f:.]+\])(:[1-9][0-9]{0,4})?$")), extend("x-kubernetes-list-type" = "set"))]
    pub hosts: Vec<String>,
}

/// Objects at a target that a job may touch.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.clusterKinds) || (has(self.kinds) && has(self.namespaces))").message("kinds with namespaces, or clusterKinds, must be given"))]
pub struct ObjectsJob {
    /// Namespaces at the target.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 63), pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")), extend("x-kubernetes-list-type" = "set"))]
    pub namespaces: Vec<String>,
    /// Namespaced kinds, such as `ConfigMap` or `apps/Deployment`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 253), pattern(r"^([a-z0-9][a-z0-9.-]*/)?[A-Z][A-Za-z0-9]*$")), extend("x-kubernetes-list-type" = "set"))]
    pub kinds: Vec<String>,
    /// Cluster-scoped kinds, such as `Namespace`, and those whose objects grant rights or change the API server, such as
    /// `rbac.authorization.k8s.io/Role` or `apiextensions.k8s.io/CustomResourceDefinition`: only what is named here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 253), pattern(r"^([a-z0-9][a-z0-9.-]*/)?[A-Z][A-Za-z0-9]*$")), extend("x-kubernetes-list-type" = "set"))]
    pub cluster_kinds: Vec<String>,
}

/// What the delete job may delete at a target.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.clusterKinds) || (has(self.kinds) && has(self.namespaces))").message("kinds with namespaces, or clusterKinds, must be given"))]
pub struct DeleteJob {
    /// Namespaces at the target.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 63), pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")), extend("x-kubernetes-list-type" = "set"))]
    pub namespaces: Vec<String>,
    /// Namespaced kinds, such as `ConfigMap` or `apps/Deployment`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 253), pattern(r"^([a-z0-9][a-z0-9.-]*/)?[A-Z][A-Za-z0-9]*$")), extend("x-kubernetes-list-type" = "set"))]
    pub kinds: Vec<String>,
    /// Cluster-scoped kinds, such as `Namespace`, and those whose objects grant rights or change the API server, such as
    /// `rbac.authorization.k8s.io/Role` or `apiextensions.k8s.io/CustomResourceDefinition`: only what is named here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 253), pattern(r"^([a-z0-9][a-z0-9.-]*/)?[A-Z][A-Za-z0-9]*$")), extend("x-kubernetes-list-type" = "set"))]
    pub cluster_kinds: Vec<String>,
    /// Whether messages may delete what no apply job wrote (`anyOwner`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub any_owner: bool,
}

/// Labels that the label-nodes job may set and remove.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LabelNodesJob {
    /// How their keys begin, such as `fleet.example.com/`. Keys of kubernetes.io and k8s.io only with their whole domain, such
    /// as `node-role.kubernetes.io/`.
    #[schemars(length(min = 1, max = 100), inner(length(min = 1, max = 317), pattern(r"^[A-Za-z0-9][A-Za-z0-9./_-]*$")), extend("x-kubernetes-list-type" = "set"))]
    pub prefixes: Vec<String>,
}

/// What the exec job may run.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecJob {
    /// The programs. A message names one of them and brings data for its standard input, nothing else.
    #[schemars(length(min = 1, max = 50), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub programs: Vec<Program>,
}

/// A program that messages may name.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Program {
    /// Name in messages.
    #[schemars(length(min = 1, max = 63), pattern(r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"))]
    pub name: String,
    /// Absolute path of the executable in the worker's image.
    #[schemars(length(min = 2, max = 1024), pattern(r"^/[^\x00]+$"))]
    pub path: String,
    /// Its arguments, the same in every run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 1024)))]
    pub args: Vec<String>,
    /// Variables of the worker's environment that it gets besides PATH, HOME, TZ and the like. Those of the worker itself,
    /// `UMBEL_*`, it cannot get.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 128), pattern(r"^[A-Za-z_][A-Za-z0-9_]*$")), extend("x-kubernetes-list-type" = "set"))]
    #[x_kube(validation = Rule::new("!self.exists(one, one.startsWith('UMBEL_'))").message("the worker's own variables stay with it"))]
    pub env: Vec<String>,
}

/// What the http job may call.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpJob {
    /// Hosts as `[scheme://]host[:port]`: https unless `http://` is written, the scheme's port unless one is, and in names
    /// `*` for any characters. A pattern reaches public addresses only; a host that is written out may be an inner one.
    #[schemars(length(min = 1, max = 100), inner(length(min = 1, max = 300), pattern(r"^(https?://)?([A-Za-z0-9_*]([A-Za-z0-9_.*-]*[A-Za-z0-9_*])?|\[[0-9A-Fa-f:.]+\])(:[1-9][0-9]{0,4})?$")), extend("x-kubernetes-list-type" = "set"))]
    pub hosts: Vec<String>,
}

fn concurrency() -> u32 {
    10
}
fn replicas() -> u32 {
    1
}

/// What was seen of a fleet, and what was done.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkerPoolStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Pods of the fleet.
    #[serde(default)]
    pub replicas: u32,
    /// Pods that are admitted and Ready.
    #[serde(default)]
    pub ready_replicas: u32,
    /// The size that is being brought about.
    #[serde(default)]
    pub desired_replicas: u32,
    /// The size that demand asks for, before bounds and stabilization.
    #[serde(default)]
    pub recommended_replicas: u32,
    /// Pods that hold a task.
    #[serde(default)]
    pub busy_replicas: u32,
    /// Admitted pods that hold none.
    #[serde(default)]
    pub idle_replicas: u32,
    /// Pods that take no more work because they are to go.
    #[serde(default)]
    pub draining_replicas: u32,
    /// Slots of the whole fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<Slots>,
    /// Label selector of the pods, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// What there is to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demand: Option<DemandStatus>,
    /// The latest change of size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scale: Option<LastScale>,
    /// Why a smaller size is wanted but not being brought about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_reason: Option<String>,
    /// What happened since the pool exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<Counters>,
    /// The template's revisions that have a Deployment: the present one first, then the older ones, the latest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub revisions: Vec<RevisionStatus>,
    /// What holds and what does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// One revision of a pool's template.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionStatus {
    /// Its name, made from the template.
    pub name: String,
    /// Its Deployment.
    pub deployment: String,
    /// Its pods.
    #[serde(default)]
    pub replicas: u32,
    /// Those that are admitted and Ready.
    #[serde(default)]
    pub ready_replicas: u32,
    /// Those that hold a task.
    #[serde(default)]
    pub busy_replicas: u32,
    /// Those that take no more work.
    #[serde(default)]
    pub draining_replicas: u32,
    /// Whether a pod of it was ever admitted and Ready.
    #[serde(default)]
    pub proven: bool,
    /// When another template replaced it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_at: Option<Time>,
}

/// Slots of a fleet.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Slots {
    /// All of them.
    pub total: u64,
    /// Those in which a task runs.
    pub busy: u64,
}

/// What there is to do for a fleet.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DemandStatus {
    /// Ready to be taken.
    pub waiting: u64,
    /// Held by workers.
    pub in_flight: u64,
    /// Parked and due soon.
    pub delayed_soon: u64,
}

/// A change of size.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastScale {
    /// When it was done.
    pub time: Time,
    /// The size before.
    pub from: u32,
    /// The size after.
    pub to: u32,
    /// Why, in a sentence.
    pub reason: String,
    /// Pods that were removed by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub victims: Vec<String>,
}

/// What happened since a pool exists.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Steps down that were completed.
    #[serde(default)]
    pub scale_downs: u64,
    /// Pods that held a task when a step down removed them. Stays zero unless the pool says how long such pods are
    /// waited for.
    #[serde(default)]
    pub busy_stopped: u64,
    /// Pods that a step down lost though it had not chosen them.
    #[serde(default)]
    pub wrong_victims: u64,
    /// Runs that were ended early and handed back to their queue, because their worker had to stop and its grace period
    /// was nearly over.
    #[serde(default)]
    pub handed_back: u64,
}
