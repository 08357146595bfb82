//! `Task`: one run, from a manifest.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::periodictask::{ClusterProgress, TaskTemplate};

/// A task that is sent once. For GitOps and CI; many tasks go through a client: etcd is not a queue.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "umbel.dev",
    version = "v1alpha1",
    kind = "Task",
    namespaced,
    status = "TaskStatus",
    derive = "PartialEq",
    category = "umbel",
    doc = "A task that is sent once.",
    selectable = ".spec.taskTemplate.queueRef.name",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Attempts", type_ = "integer", json_path = ".status.attempts"),
    printcolumn(name = "Clusters", type_ = "integer", json_path = ".status.clusters.total"),
    printcolumn(name = "Done", type_ = "integer", json_path = ".status.clusters.succeeded"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.clusters.failed"),
    printcolumn(name = "Started", type_ = "date", json_path = ".status.startTime"),
    printcolumn(name = "Finished", type_ = "date", json_path = ".status.finishTime"),
    printcolumn(name = "Result", type_ = "string", json_path = ".status.resultPreview", priority = 1),
    printcolumn(
        name = "Stalled",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Stalled\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.taskTemplate == oldSelf.taskTemplate").message("taskTemplate cannot be changed: make another Task").field_path(".taskTemplate"),
    validation = Rule::new("self.cancel || !oldSelf.cancel").message("what was cancelled stays cancelled: make another Task").field_path(".cancel")
)]
pub struct TaskSpec {
    /// What is sent, once.
    pub task_template: TaskTemplate,

    /// So many seconds after its end the object is deleted. Without it, it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 315_360_000))]
    pub ttl_seconds_after_finished: Option<u32>,

    /// Once true, what was not sent is not sent, what waits is dropped and what runs is stopped.
    #[serde(default)]
    pub cancel: bool,
}

/// How far a task is.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Id of the task, as clients and results know it: where it is one message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    /// How far it is.
    #[serde(default)]
    pub phase: Phase,
    /// Messages that were sent, and retries of them.
    #[serde(default)]
    pub attempts: u32,
    /// When its first messages were sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When its last task ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_time: Option<Time>,
    /// The beginning of the result, or of the error, of a task that is one message, as JSON; at most 1,024 characters. Nothing
    /// where results are not kept beside the queue, or not as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_preview: Option<String>,
    /// How far its clusters are, where it is for clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clusters: Option<ClusterProgress>,
    /// What holds and what does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// How far a task is.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Phase {
    /// Nothing was sent yet.
    #[default]
    Pending,
    /// It was sent and has not ended.
    Running,
    /// All its tasks succeeded.
    Succeeded,
    /// Some did not.
    Failed,
    /// It was cancelled (`spec.cancel`).
    Cancelled,
    /// The broker holds nothing of it any more, and it is not known how it ended.
    Lost,
}

impl Phase {
    /// Whether nothing comes after it.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Pending | Self::Running => false,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Lost => true,
        }
    }
}
