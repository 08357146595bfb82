//! What a pool looks like: from the watched stores, or read consistently before something is written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::api::ListParams;
use kube::{Api, Resource, ResourceExt};
use umbel_api::WorkerPool;
use umbel_api::names::{
    ANNOTATION_BUSY_SINCE, ANNOTATION_DELETION_COST, ANNOTATION_DO_NOT_DISRUPT, ANNOTATION_GATE,
    ANNOTATION_SAFE_TO_EVICT, LABEL_BUSY, MANAGER, MANAGER_SCALE,
};
use umbel_broker::{Gate, WorkerRecord};
use umbel_plan::deployment::Revision;
use umbel_plan::{deployment, drain, rollout, shield};

use crate::context::Context;
use crate::owners::{holds, holds_annotation};

/// The pods of one revision of a pool's template, read in this order: Deployment, ReplicaSets, pods.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// The Deployment.
    pub deployment: Deployment,
    /// Its ReplicaSets that have or shall have pods.
    pub sets: Vec<ReplicaSet>,
    /// Pods of its ReplicaSets.
    pub pods: Vec<Pod>,
}

/// All pods of a pool, by the revision of the template that they were made from.
#[derive(Clone, Debug, Default)]
pub struct Fleets {
    /// Those of the present one, if it has a Deployment.
    pub present: Option<Fleet>,
    /// Those of older ones, the latest first.
    pub older: Vec<Fleet>,
}

impl Fleets {
    /// Sorts fleets by what is remembered of them, and takes note of what is seen.
    pub fn new(
        all: Vec<Fleet>,
        revision: &Revision,
        workers: Option<&Workers>,
        memory: &mut rollout::Memory,
        now: jiff::Timestamp,
    ) -> Self {
        let (mut present, mut older): (Vec<Fleet>, Vec<Fleet>) =
            all.into_iter().partition(|fleet| fleet.name() == revision.deployment);
        let present = present.pop();
        let counted = |fleet: &Fleet| (fleet.name(), rollout::Fleet::of(&fleet.world(workers, 0)));
        let first = present.as_ref().map(counted);
        let rest: Vec<_> = older.iter().map(counted).collect();
        memory.see(
            first.as_ref().map(|(name, fleet)| (name.as_str(), fleet)),
            rest.iter().map(|(name, fleet)| (name.as_str(), fleet)),
            now,
        );
        older.sort_by_key(|fleet| {
            let replaced = memory.of(&fleet.name()).replaced_at;
            std::cmp::Reverse((replaced, fleet.deployment.creation_timestamp().map(|made| made.0)))
        });
        Self { present, older }
    }

    /// All of them, the present one first.
    pub fn all(&self) -> impl Iterator<Item = &Fleet> {
        self.present.iter().chain(&self.older)
    }
}

/// What Redis says of a pool's workers.
#[derive(Clone, Debug)]
pub struct Workers {
    /// Id of the data set.
    pub generation: String,
    /// Records by the uid of their pod: a pod whose container restarted has several.
    pub by_pod: BTreeMap<String, Vec<WorkerRecord>>,
    /// The broker's clock, in Unix seconds: gates say by it since when they are closed.
    pub clock: f64,
}

impl Workers {
    /// Sorts records by the pod they run in; `clock` is the broker's.
    pub fn new(generation: String, records: &[WorkerRecord], clock: f64) -> Self {
        let mut by_pod: BTreeMap<String, Vec<WorkerRecord>> = BTreeMap::new();
        for record in records {
            by_pod
                .entry(pod_uid(record).to_owned())
                .or_default()
                .push(record.clone());
        }
        Self {
            generation,
            by_pod,
            clock,
        }
    }

    /// The names of all workers of a pod.
    pub fn names(&self, pod_uid: &str) -> Vec<String> {
        self.by_pod
            .get(pod_uid)
            .into_iter()
            .flatten()
            .map(|record| record.worker.clone())
            .collect()
    }

    /// The worker that runs in a pod now: the one whose heartbeat is fresh, otherwise the latest.
    pub fn present(&self, pod_uid: &str) -> Option<&WorkerRecord> {
        let started = |record: &WorkerRecord| {
            record
                .worker
                .split('/')
                .nth(1)
                .and_then(|text| text.parse::<u64>().ok())
                .unwrap_or(0)
        };
        let records = self.by_pod.get(pod_uid)?;
        records
            .iter()
            .max_by_key(|record| (record.heartbeat.is_some(), started(record)))
    }

    /// Ids of the tasks that a pod works on, as far as its workers name them. Where they name none and hold some, these are
    /// one without an id.
    pub fn running(&self, pod_uid: &str) -> impl Iterator<Item = &str> {
        let beats = self.by_pod.get(pod_uid).into_iter().flatten();
        let ids: Vec<&str> = beats
            .filter_map(|record| record.heartbeat.as_ref())
            .flat_map(|beat| beat.running.iter().map(|running| running.id.as_str()))
            .collect();
        let unnamed = ids.is_empty() && self.held(pod_uid) > 0;
        ids.into_iter().chain(unnamed.then_some(""))
    }

    /// Leases held in a pod, by whichever of its processes.
    pub fn held(&self, pod_uid: &str) -> u64 {
        self.by_pod
            .get(pod_uid)
            .into_iter()
            .flatten()
            .map(|record| record.held)
            .sum()
    }
}

/// A worker's name begins with its pod's uid; the heartbeat says the same while it is fresh.
fn pod_uid(record: &WorkerRecord) -> &str {
    match &record.heartbeat {
        Some(beat) if !beat.pod_uid.is_empty() => &beat.pod_uid,
        _ => record.worker.split('/').next().unwrap_or_default(),
    }
}

/// What went wrong while reading.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A child could not be read.
    #[error("read {0}")]
    Read(&'static str, #[source] kube::Error),
}

/// The pool's fleets as the watches have them, in no order.
pub fn watched(context: &Context, pool: &WorkerPool) -> Vec<Fleet> {
    let (namespace, name) = (pool.namespace().unwrap_or_default(), pool.name_any());
    let Some(scope) = context.scope(&namespace) else {
        return Vec::new();
    };
    let deployments = own(scope.deployments.of_pool(&namespace, &name));
    let (sets, pods) = (
        own(scope.sets.of_pool(&namespace, &name)),
        own(scope.pods.of_pool(&namespace, &name)),
    );
    fleets(pool, deployments, &sets, &pods)
}

fn own<K: Clone>(shared: Vec<Arc<K>>) -> Vec<K> {
    shared.into_iter().map(Arc::unwrap_or_clone).collect()
}

/// The pool's fleets as the API server has them now, in no order.
pub async fn read(context: &Context, pool: &WorkerPool) -> Result<Vec<Fleet>, Error> {
    let (namespace, name) = (pool.namespace().unwrap_or_default(), pool.name_any());
    let deployments: Api<Deployment> = Api::namespaced(context.client.clone(), &namespace);
    let sets: Api<ReplicaSet> = Api::namespaced(context.client.clone(), &namespace);
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    // Without a resourceVersion these are quorum reads.
    let ours = ListParams::default().labels(&deployment::selector(&name));
    let deployments = deployments
        .list(&ours)
        .await
        .map_err(|source| Error::Read("deployments", source))?;
    let sets = sets
        .list(&ours)
        .await
        .map_err(|source| Error::Read("replicasets", source))?;
    let pods = pods.list(&ours).await.map_err(|source| Error::Read("pods", source))?;
    Ok(fleets(pool, deployments.items, &sets.items, &pods.items))
}

/// Somebody else's Deployments are left out, whatever their labels say.
fn fleets(pool: &WorkerPool, deployments: Vec<Deployment>, sets: &[ReplicaSet], pods: &[Pod]) -> Vec<Fleet> {
    let uid = pool.uid().unwrap_or_default();
    deployments
        .into_iter()
        .filter(|deployment| is_child(deployment, &uid) && deployment.metadata.deletion_timestamp.is_none())
        .map(|deployment| Fleet::new(deployment, sets, pods))
        .collect()
}

impl Fleet {
    fn new(deployment: Deployment, sets: &[ReplicaSet], pods: &[Pod]) -> Self {
        let uid = deployment.uid().unwrap_or_default();
        let sets: Vec<ReplicaSet> = sets.iter().filter(|set| is_child(*set, &uid)).cloned().collect();
        let pods: Vec<Pod> = pods
            .iter()
            .filter(|pod| {
                sets.iter()
                    .any(|set| is_child(*pod, set.uid().as_deref().unwrap_or_default()))
            })
            .cloned()
            .collect();
        let needed = |set: &ReplicaSet| {
            let uid = set.uid().unwrap_or_default();
            numbers(set) != (0, 0) || pods.iter().any(|pod| is_child(pod, &uid) && !is_ending(pod))
        };
        let sets = sets.iter().filter(|set| needed(set)).cloned().collect();
        Self { deployment, sets, pods }
    }

    /// The name of the Deployment.
    pub fn name(&self) -> String {
        self.deployment.name_any()
    }

    /// `spec.replicas` of the Deployment.
    pub fn size(&self) -> u32 {
        count(self.deployment.spec.replicas)
    }

    /// `spec.paused` of the Deployment.
    pub fn is_paused(&self) -> bool {
        self.deployment.spec.paused == Some(true)
    }

    /// Whether the Deployment is under way from one template to another, or stopped in the middle of that.
    pub fn is_rolling(&self) -> bool {
        self.world(None, 0).is_rolling()
    }

    /// Who else wrote the Deployment's size last, if anybody did.
    pub fn foreign_scaler(&self) -> Option<String> {
        let owners = self
            .deployment
            .metadata
            .managed_fields
            .iter()
            .flatten()
            .filter(|entry| holds(entry, "/f:spec/f:replicas"));
        let managers = owners.filter_map(|entry| entry.manager.as_deref());
        managers
            .filter(|manager| ![MANAGER, MANAGER_SCALE].contains(manager))
            .map(str::to_owned)
            .next()
    }

    /// Whether nothing runs in it any more. Pods that ended by themselves (an eviction by the node) stay for as long as
    /// their Deployment.
    pub fn is_empty(&self) -> bool {
        self.pods.iter().all(has_ended)
    }

    /// The pod with this uid.
    pub fn pod(&self, uid: &str) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.uid().as_deref() == Some(uid))
    }

    /// Why pods cannot be made, in the words of the ReplicaSet controller.
    pub fn refusal(&self) -> Option<String> {
        let conditions = self
            .sets
            .iter()
            .filter_map(|set| set.status.as_ref()?.conditions.as_ref())
            .flatten();
        conditions
            .filter(|one| one.type_.as_deref() == Some("ReplicaFailure") && one.status.as_deref() == Some("True"))
            .find_map(|condition| condition.message.clone())
    }

    /// Why a pod that nobody admitted does not become ready, in the words of whoever could not run it.
    pub fn trouble(&self, now: jiff::Timestamp) -> Option<String> {
        let unadmitted = self
            .pods
            .iter()
            .filter(|pod| !is_ending(pod) && gate_mark(pod).is_none());
        let named = unadmitted.filter_map(|pod| Some((pod.name_any(), trouble(pod, now)?)));
        let found = named.min().map(|(name, why)| format!("pod {name}: {why}"));
        found.or_else(|| self.refusal())
    }

    /// What the scale-down decides on. Without `workers`, the broker counts as not answering.
    pub fn world(&self, workers: Option<&Workers>, desired: u32) -> drain::World {
        let status = self.deployment.status.as_ref();
        let generation = self.deployment.metadata.generation;
        drain::World {
            desired,
            deployment: drain::Fleet {
                size: self.size(),
                observed: status.and_then(|status| status.observed_generation) >= generation,
                live: count(status.and_then(|status| status.replicas)),
                updated: count(status.and_then(|status| status.updated_replicas)),
                paused: self.is_paused(),
            },
            sets: self.sets.iter().map(set).collect(),
            pods: self.pods.iter().map(|one| pod(one, workers)).collect(),
            broker: workers.map(|workers| drain::Broker {
                generation: workers.generation.clone(),
            }),
        }
    }
}

fn set(set: &ReplicaSet) -> drain::Set {
    let (size, live) = numbers(set);
    let seen = set.status.as_ref().and_then(|status| status.observed_generation);
    let ready = count(set.status.as_ref().and_then(|status| status.ready_replicas));
    drain::Set {
        uid: set.uid().unwrap_or_default(),
        size,
        observed: seen >= set.metadata.generation,
        live,
        ready,
    }
}

fn pod(pod: &Pod, workers: Option<&Workers>) -> drain::Pod {
    let uid = pod.uid().unwrap_or_default();
    let owner = pod
        .owner_references()
        .iter()
        .find(|owner| owner.controller == Some(true));
    let worker = workers.and_then(|workers| {
        let record = workers.present(&uid)?;
        let gate = match record.gate {
            Gate::New => drain::Gate::New,
            Gate::Open => drain::Gate::Open,
            Gate::Closed { since: _ } => drain::Gate::Closed,
        };
        let (held, alive) = (workers.held(&uid), record.heartbeat.is_some());
        let closed_for = match record.gate {
            Gate::Closed { since } => Duration::try_from_secs_f64(workers.clock - since).unwrap_or_default(),
            Gate::New | Gate::Open => Duration::ZERO,
        };
        Some(drain::Worker {
            name: record.worker.clone(),
            gate,
            held,
            alive,
            closed_for,
        })
    });
    drain::Pod {
        name: pod.name_any(),
        set: owner.map(|owner| owner.uid.clone()).unwrap_or_default(),
        created: pod
            .creation_timestamp()
            .map_or(jiff::Timestamp::UNIX_EPOCH, |time| time.0),
        running: pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running"),
        ready: is_ready(pod),
        unready_since: unready_since(pod),
        ending: is_ending(pod),
        marked: gate_mark(pod).is_some(),
        worker,
        uid,
    }
}

/// How a pod is marked, beside how it works: whether it is busy, for a mark that is raised or not, and since how long.
pub fn marks(pod: &Pod, work: impl FnOnce(bool) -> (bool, Duration)) -> shield::Seen {
    let note = |name: &str| pod.annotations().get(name);
    let raised = note(ANNOTATION_DELETION_COST) == Some(&deployment::COST_BUSY.to_string());
    let shielded = pod.labels().contains_key(LABEL_BUSY)
        || note(ANNOTATION_SAFE_TO_EVICT).is_some_and(|value| value == "false")
        || note(ANNOTATION_DO_NOT_DISRUPT).is_some_and(|value| value == "true");
    let (busy, for_long) = work(raised);
    shield::Seen {
        busy,
        raised,
        differs_for: if busy == raised { Duration::ZERO } else { for_long },
        since: note(ANNOTATION_BUSY_SINCE).and_then(|text| text.parse().ok()),
        shielded,
    }
}

/// A pod that was made so long ago and is not admitted has some trouble, whatever it is.
const STARTS_WITHIN: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);

/// Why a pod does not run, or does not become ready.
fn trouble(pod: &Pod, now: jiff::Timestamp) -> Option<String> {
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter().flatten();
    let waiting = containers
        .filter_map(|container| container.state.as_ref()?.waiting.as_ref())
        .find(|waiting| {
            let reason = waiting.reason.as_deref().unwrap_or_default();
            // "ContainerCreating" and "PodInitializing" are none.
            reason.contains("BackOff") || reason.contains("Err") || reason.contains("Invalid")
        });
    if let Some(waiting) = waiting {
        let words = [waiting.reason.as_deref(), waiting.message.as_deref()];
        return Some(words.into_iter().flatten().collect::<Vec<_>>().join(": "));
    }
    let conditions = status.conditions.iter().flatten();
    let unscheduled = conditions
        .filter(|one| one.type_ == "PodScheduled" && one.reason.as_deref() == Some("Unschedulable"))
        .find_map(|one| one.message.clone());
    if unscheduled.is_some() {
        return unscheduled;
    }
    let is_late = pod
        .creation_timestamp()
        .is_some_and(|made| now.duration_since(made.0) >= STARTS_WITHIN);
    is_late.then(|| format!("not ready {} s after it was made", STARTS_WITHIN.as_secs()))
}

/// Who else wrote this pod's deletion cost last, if anybody did.
pub fn foreign_cost_writer(pod: &Pod) -> Option<String> {
    // Who owns the owner references is the ReplicaSet controller, whatever its program is called: it made the pod, and the
    // cost is the template's.
    let wrote = |entry: &&ManagedFieldsEntry| {
        !holds(entry, "/f:metadata/f:ownerReferences") && holds_annotation(entry, ANNOTATION_DELETION_COST)
    };
    let owners = pod.metadata.managed_fields.iter().flatten();
    owners
        .filter(wrote)
        .filter_map(|entry| entry.manager.clone())
        .find(|manager| manager != MANAGER)
}

/// How long a pod has from SIGTERM until it is killed.
pub fn grace(pod: &Pod) -> Option<Duration> {
    let seconds = pod.spec.as_ref()?.termination_grace_period_seconds?;
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

/// The admission mark: `<term>.<n>`.
pub fn gate_mark(pod: &Pod) -> Option<&String> {
    pod.annotations().get(ANNOTATION_GATE)
}

fn readiness(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|one| one.type_ == "Ready")
}

/// Whether the pod is Ready.
pub fn is_ready(pod: &Pod) -> bool {
    readiness(pod).is_some_and(|one| one.status == "True")
}

fn unready_since(pod: &Pod) -> Option<jiff::Timestamp> {
    let one = readiness(pod).filter(|one| one.status != "True")?;
    one.last_transition_time.as_ref().map(|at| at.0)
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_ending(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() || has_ended(pod)
}

fn is_child<K: Resource>(object: &K, uid: &str) -> bool {
    !uid.is_empty()
        && object
            .owner_references()
            .iter()
            .any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

fn numbers(set: &ReplicaSet) -> (u32, u32) {
    let size = count(set.spec.replicas);
    (size, count(set.status.as_ref().map(|status| status.replicas)))
}

fn count(number: Option<i32>) -> u32 {
    u32::try_from(number.unwrap_or(0)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodStatus;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;

    fn fleet(phases: &[&str]) -> Fleet {
        let pod = |phase: &&str| Pod {
            status: Some(PodStatus {
                phase: Some((*phase).to_owned()),
                ..PodStatus::default()
            }),
            ..Pod::default()
        };
        Fleet {
            deployment: Deployment::default(),
            sets: Vec::new(),
            pods: phases.iter().map(pod).collect(),
        }
    }

    #[test]
    fn pods_that_have_ended_are_nobody_to_wait_for() {
        assert!(fleet(&[]).is_empty());
        assert!(fleet(&["Failed", "Succeeded"]).is_empty());
        assert!(!fleet(&["Failed", "Running"]).is_empty());
        let mut deleted = fleet(&["Running"]);
        deleted.pods[0].metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        assert!(!deleted.is_empty(), "it may still work");
    }

    /// The program that holds the ReplicaSet controller has many names: `kube-controller-manager`, `k3s`, `kubelite`.
    #[test]
    fn who_made_the_pod_is_no_foreign_cost_writer() {
        let cost = format!("f:{ANNOTATION_DELETION_COST}");
        let entry = |manager: &str, mut metadata: serde_json::Value| {
            metadata["f:annotations"] = json!({ &cost: {} });
            json!({ "manager": manager, "operation": "Update", "fieldsV1": { "f:metadata": metadata } })
        };
        let pod = |entries: &[serde_json::Value]| -> Pod {
            serde_json::from_value(json!({ "metadata": { "managedFields": entries } })).expect("a pod")
        };
        let made = entry("k3s", json!({ "f:ownerReferences": {} }));
        let (ours, theirs) = (entry(MANAGER, json!({})), entry("karpenter", json!({})));
        assert_eq!(foreign_cost_writer(&pod(&[made.clone(), ours.clone()])), None);
        let foreign = foreign_cost_writer(&pod(&[made, ours, theirs]));
        assert_eq!(foreign.as_deref(), Some("karpenter"));
    }
}
