//! How busy pods are shielded from whoever moves pods around.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::span::Span;

/// How busy pods are shielded from drains and consolidation, for a bounded time.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.maxHold) >= duration('10s') && duration(self.maxHold) <= duration('168h')").message("maxHold lasts from 10s to 168h").field_path(".maxHold"))]
pub struct Protection {
    /// By what a pod is shielded once it has worked for ten seconds. It is shielded until it was idle for a minute.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3), extend("x-kubernetes-list-type" = "set"))]
    pub on_eviction: Vec<Shield>,
    /// A pod that works for longer is shielded no more, until it was idle.
    #[serde(default = "hour")]
    pub max_hold: Span,
}

/// What shields a pod.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum Shield {
    /// A PodDisruptionBudget that allows no eviction of busy pods: `kubectl drain` waits.
    DisruptionBudget,
    /// The annotation `cluster-autoscaler.kubernetes.io/safe-to-evict: "false"`.
    SafeToEvict,
    /// The annotation `karpenter.sh/do-not-disrupt: "true"`.
    DoNotDisrupt,
}

fn hour() -> Span {
    Span::secs(3600)
}

impl Default for Protection {
    fn default() -> Self {
        Self {
            on_eviction: Vec::new(),
            max_hold: hour(),
        }
    }
}
