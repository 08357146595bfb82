//! What a pool looks like: from the watched stores, or read consistently before something is written.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Resource, ResourceExt};
use umbel_api::WorkerPool;
use umbel_api::names::{
    ANNOTATION_BUSY_SINCE, ANNOTATION_DELETION_COST, ANNOTATION_DO_NOT_DISRUPT, ANNOTATION_GATE,
    ANNOTATION_SAFE_TO_EVICT, LABEL_BUSY, MANAGER, MANAGER_SCALE,
};
use umbel_broker::{Gate, WorkerRecord};
use umbel_plan::{deployment, drain, shield};

use crate::context::Context;

/// A pool's children, read in this order: Deployment, ReplicaSets, pods.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// The Deployment.
    pub deployment: Deployment,
    /// Its ReplicaSets that have or shall have pods.
    pub sets: Vec<ReplicaSet>,
    /// Pods of its ReplicaSets.
    pub pods: Vec<Pod>,
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

/// The children as the watches have them; nothing while there is no Deployment.
pub fn watched(context: &Context, pool: &WorkerPool) -> Option<Fleet> {
    let (namespace, name) = (pool.namespace()?, pool.name_any());
    let scope = context.scope(&namespace)?;
    let deployment = scope.deployments.get(&namespace, &name)?;
    let sets = scope
        .sets
        .store
        .state_filter(|set: &ReplicaSet| set.namespace().as_deref() == Some(&namespace));
    let pods = scope
        .pods
        .store
        .state_filter(|pod: &Pod| pod.namespace().as_deref() == Some(&namespace));
    Some(Fleet::new(
        deployment.as_ref().clone(),
        sets.iter().map(|set| set.as_ref().clone()).collect(),
        pods.iter().map(|pod| pod.as_ref().clone()).collect(),
    ))
}

/// The children as the API server has them now; nothing while there is no Deployment.
pub async fn read(context: &Context, pool: &WorkerPool) -> Result<Option<Fleet>, Error> {
    let (namespace, name) = (pool.namespace().unwrap_or_default(), pool.name_any());
    let deployments: Api<Deployment> = Api::namespaced(context.client.clone(), &namespace);
    let sets: Api<ReplicaSet> = Api::namespaced(context.client.clone(), &namespace);
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    // Without a resourceVersion these are quorum reads.
    let ours = ListParams::default().labels(&deployment::selector(&name));
    let found = deployments
        .get_opt(&name)
        .await
        .map_err(|source| Error::Read("deployment", source))?;
    let Some(deployment) = found else { return Ok(None) };
    let sets = sets
        .list(&ours)
        .await
        .map_err(|source| Error::Read("replicasets", source))?;
    let pods = pods.list(&ours).await.map_err(|source| Error::Read("pods", source))?;
    Ok(Some(Fleet::new(deployment, sets.items, pods.items)))
}

impl Fleet {
    fn new(deployment: Deployment, sets: Vec<ReplicaSet>, pods: Vec<Pod>) -> Self {
        let uid = deployment.uid().unwrap_or_default();
        let sets: Vec<ReplicaSet> = sets.into_iter().filter(|set| is_child(set, &uid)).collect();
        let pods: Vec<Pod> = pods
            .into_iter()
            .filter(|pod| {
                sets.iter()
                    .any(|set| is_child(pod, set.uid().as_deref().unwrap_or_default()))
            })
            .collect();
        let needed = |set: &ReplicaSet| {
            let uid = set.uid().unwrap_or_default();
            numbers(set) != (0, 0) || pods.iter().any(|pod| is_child(pod, &uid) && !is_ending(pod))
        };
        let sets = sets.iter().filter(|set| needed(set)).cloned().collect();
        Self { deployment, sets, pods }
    }

    /// `spec.replicas` of the Deployment.
    pub fn size(&self) -> u32 {
        count(self.deployment.spec.replicas)
    }

    /// Who else wrote the Deployment's size last, if anybody did.
    pub fn foreign_scaler(&self) -> Option<String> {
        let owners = self
            .deployment
            .metadata
            .managed_fields
            .iter()
            .flatten()
            .filter(|entry| {
                let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
                fields.is_some_and(|fields| fields.pointer("/f:spec/f:replicas").is_some())
            });
        let managers = owners.filter_map(|entry| entry.manager.as_deref());
        managers
            .filter(|manager| ![MANAGER, MANAGER_SCALE].contains(manager))
            .map(str::to_owned)
            .next()
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
        ending: is_ending(pod),
        marked: gate_mark(pod).is_some(),
        worker,
        uid,
    }
}

/// How a pod is marked, beside how it works.
pub fn marks(pod: &Pod, busy: bool) -> shield::Seen {
    let note = |name: &str| pod.annotations().get(name);
    let raised = note(ANNOTATION_DELETION_COST) == Some(&deployment::COST_BUSY.to_string());
    let shielded = pod.labels().contains_key(LABEL_BUSY)
        || note(ANNOTATION_SAFE_TO_EVICT).is_some_and(|value| value == "false")
        || note(ANNOTATION_DO_NOT_DISRUPT).is_some_and(|value| value == "true");
    shield::Seen {
        busy,
        raised,
        differs_for: Duration::ZERO,
        since: note(ANNOTATION_BUSY_SINCE).and_then(|text| text.parse().ok()),
        shielded,
    }
}

/// The admission mark: `<term>.<n>`.
pub fn gate_mark(pod: &Pod) -> Option<&String> {
    pod.annotations().get(ANNOTATION_GATE)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

fn is_ending(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed"))
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
