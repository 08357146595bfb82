//! A WorkerPool and what it refers to, checked: the one place where a pool's faults get their words.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde_json::{Value, json};
use umbel_api::condition;
use umbel_api::names::queue_condition;
use umbel_api::targetcluster::{self, Impersonate};
use umbel_api::taskqueue::{DeletionPolicy, Limits, OnFull, Redis};
use umbel_api::workerpool::{Budget, Consumption, Jobs, Protection, Recycle, Runtime, WorkerPoolSpec};
use umbel_api::{TargetCluster, TaskQueue, TaskQueueSpec, WorkerPool};

use crate::narrow::{self, Level};
use crate::scaling::calendar::{CalendarFault, Window};

/// What a pool gets beyond the longest task, to hand back and exit.
const GRACE_MARGIN: Duration = Duration::from_secs(30);
/// The reason by which the queue's controller says that another object owns the queue.
const OWNED_ELSEWHERE: &str = "QueueOwnedElsewhere";

/// What the release gives to every pool.
#[derive(Clone, Copy, Debug)]
pub struct Defaults<'a> {
    /// Image of pools without a template.
    pub image: &'a str,
    /// Its pull policy.
    pub pull_policy: &'a str,
    /// The install id, under which workers find the leader's heartbeat.
    pub install: &'a str,
    /// What the administrator lets templates ask for.
    pub level: Level,
}

/// A queue that the pool names, with what is known of its broker.
#[derive(Clone, Debug)]
pub struct QueueFacts<'a> {
    /// The object.
    pub queue: &'a TaskQueue,
    /// Secret and key of the broker's URL, or why there are none.
    pub secret: Result<(String, String), String>,
    /// The id of the broker's data, once it answered and holds any.
    pub generation: Option<&'a str>,
}

/// What a pool refers to, as it is now.
#[derive(Clone, Debug, Default)]
pub struct Referred<'a> {
    /// The TaskQueues of the pool's namespace that it names and that exist, by name.
    pub queues: BTreeMap<String, QueueFacts<'a>>,
    /// The TargetClusters of the pool's namespace.
    pub clusters: Vec<&'a TargetCluster>,
}

/// Why a pool cannot run as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// `minReplicas` above `maxReplicas`.
    #[error("scaling.minReplicas ({min}) is larger than scaling.maxReplicas ({max})")]
    Bounds {
        /// `minReplicas`.
        min: u32,
        /// `maxReplicas`.
        max: u32,
    },
    /// It serves no queue.
    #[error("spec.queues is empty")]
    NoQueue,
    /// A queue does not exist.
    #[error("there is no TaskQueue {name} in this namespace")]
    UnknownQueue {
        /// Its name.
        name: String,
    },
    /// A queue belongs to another object.
    #[error("TaskQueue {name} does not own its queue: {why}")]
    QueueOwnedElsewhere {
        /// Its name.
        name: String,
        /// In the words of its condition.
        why: String,
    },
    /// A queue has no usable broker.
    #[error("TaskQueue {name}: {why}")]
    NoBroker {
        /// Its name.
        name: String,
        /// Why not.
        why: String,
    },
    /// The queues lie on more than one broker.
    #[error("TaskQueues {one} and {other} are not on the same server, database and prefix")]
    QueuesOnSeveralBrokers {
        /// One queue.
        one: String,
        /// Another.
        other: String,
    },
    /// A worker process has one policy for all its queues.
    #[error("TaskQueues {one} and {other} differ in their lease, retry, limits or results: they need a pool each")]
    QueuesDiffer {
        /// One queue.
        one: String,
        /// Another.
        other: String,
    },
    /// A queue's time zone is none.
    #[error("TaskQueue {name}: spec.timeZone {zone:?} is not in the time zone database")]
    TimeZone {
        /// The queue.
        name: String,
        /// What it names.
        zone: String,
    },
    /// A schedule can't be understood.
    #[error("spec.{0}")]
    Schedule(CalendarFault),
    /// A Secret that no task may read.
    #[error("spec.jobs.{list}: tasks may not get values of Secret {name}: it is that of {whose}")]
    SecretRefused {
        /// The list that names it.
        list: &'static str,
        /// The Secret.
        name: String,
        /// What it belongs to.
        whose: String,
    },
    /// The template is no pod template.
    #[error("spec.template: {why}")]
    Template {
        /// What is wrong with it.
        why: String,
    },
}

impl Fault {
    /// The fault as a condition's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Bounds { .. } => "MinAboveMax",
            Self::NoQueue => "NoQueue",
            Self::UnknownQueue { .. } => "UnknownQueue",
            Self::QueueOwnedElsewhere { .. } => OWNED_ELSEWHERE,
            Self::NoBroker { .. } => "NoBroker",
            Self::QueuesOnSeveralBrokers { .. } => "QueuesOnSeveralBrokers",
            Self::QueuesDiffer { .. } => "QueuesDiffer",
            Self::TimeZone { .. } => "UnknownTimeZone",
            Self::Schedule(_) => "BadSchedule",
            Self::SecretRefused { .. } => "SecretRefused",
            Self::Template { .. } => "TemplateRefused",
        }
    }
}

/// A cluster that the pool's jobs may touch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterGrant {
    /// Name of the TargetCluster.
    pub name: String,
    /// Secret with its kubeconfig.
    pub secret: String,
    /// Key in that Secret.
    pub key: String,
    /// What it is asked at most. The default is not said, as another environment is another revision.
    #[serde(skip_serializing_if = "is_default")]
    pub limits: targetcluster::Limits,
    /// Whom requests are made as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impersonate: Option<Impersonate>,
}

fn is_default(limits: &targetcluster::Limits) -> bool {
    *limits == targetcluster::Limits::default()
}

/// A pool that can run.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
    /// How its children name it.
    pub owner: OwnerReference,
    /// Secret and key of the broker's URL.
    pub secret: (String, String),
    /// How it is reached beyond that.
    pub redis: Redis,
    /// Prefix of every key there.
    pub key_prefix: String,
    /// The queues' names on the broker, in their order.
    pub queues: Vec<String>,
    /// Their weights, in the same order.
    pub weights: Vec<u32>,
    /// How they share a pod.
    pub consumption: Consumption,
    /// When a worker ends by itself.
    pub recycle: Recycle,
    /// What its queues ask of whoever runs their messages; they agree on it.
    pub policy: TaskQueueSpec,
    /// Slots of a pod.
    pub concurrency: u32,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// Percent of that after which tasks are handed back.
    pub hand_back_at: u32,
    /// Whether they are charged for it.
    pub counts_as_attempt: bool,
    /// What runs in the pods.
    pub runtime: Runtime,
    /// The pods' template, as it was given.
    pub template: Value,
    /// Clusters that its jobs may touch, by name.
    pub clusters: Vec<ClusterGrant>,
    /// Names in `clusterAccess.names` of which there is no TargetCluster.
    pub absent: Vec<String>,
    /// Jobs that are enabled.
    pub jobs: Jobs,
    /// Its schedules.
    pub windows: Vec<Window>,
    /// How its busy pods are shielded.
    pub protection: Protection,
    /// How few pods disruptions may leave.
    pub budget: Option<Budget>,
    /// The install id.
    pub install: String,
}

/// The pool, if everything that it says and refers to fits together.
pub fn validate(pool: &WorkerPool, referred: &Referred<'_>, defaults: &Defaults<'_>) -> Result<Pool, Fault> {
    let WorkerPoolSpec {
        queues: named,
        template,
        concurrency,
        replicas: _,
        scaling,
        drain,
        cluster_access,
        jobs,
        consumption,
        recycle,
        suspend: _,
        protection,
        rollout: _,
        runtime,
        pod_disruption_budget,
    } = &pool.spec;
    if scaling.min_replicas > scaling.max_replicas {
        return Err(Fault::Bounds {
            min: scaling.min_replicas,
            max: scaling.max_replicas,
        });
    }
    let windows = scaling.schedules.iter().map(Window::of).collect::<Result<_, _>>();
    let windows = windows.map_err(Fault::Schedule)?;
    let mut queues = Vec::new();
    for share in named {
        let name = share.name.clone();
        let facts = referred.queues.get(&name).ok_or(Fault::UnknownQueue { name })?;
        owned(facts.queue)?;
        queues.push(facts);
    }
    let secret = one_broker(&queues)?;
    let first = queues[0].queue;
    if let Some(other) = queues.iter().find(|facts| policy(facts.queue) != policy(first)) {
        return Err(Fault::QueuesDiffer {
            one: first.name_any(),
            other: other.queue.name_any(),
        });
    }
    let zone = &first.spec.time_zone;
    if jiff::tz::TimeZone::get(zone).is_err() {
        return Err(Fault::TimeZone {
            name: first.name_any(),
            zone: zone.clone(),
        });
    }
    let mut clusters: Vec<ClusterGrant> = referred
        .clusters
        .iter()
        .filter(|cluster| {
            cluster_access
                .as_ref()
                .is_some_and(|access| access.covers(&cluster.name_any(), cluster.labels()))
        })
        .map(|cluster| ClusterGrant {
            name: cluster.name_any(),
            secret: cluster.spec.kubeconfig_secret_ref.name.clone(),
            key: cluster.spec.kubeconfig_secret_ref.key.clone(),
            limits: cluster.spec.limits.clone(),
            impersonate: cluster.spec.impersonate.clone(),
        })
        .collect();
    clusters.sort_by(|a, b| a.name.cmp(&b.name));
    let granted = |name: &&String| clusters.iter().any(|cluster| cluster.name == **name);
    let names = cluster_access.iter().flat_map(|access| &access.names);
    let absent = names.filter(|name| !granted(name)).cloned().collect();
    let arguments = jobs.secrets.iter().flat_map(|secrets| &secrets.names);
    let sources = jobs.apply.iter().filter_map(|apply| apply.sources.as_ref());
    let sources = sources.flat_map(|sources| &sources.secrets);
    let sources = sources.map(|name| ("apply.sources.secrets", name));
    for (list, name) in arguments.map(|name| ("secrets", name)).chain(sources) {
        // Of any cluster of the namespace, whether this pool reaches it or not.
        let cluster = referred
            .clusters
            .iter()
            .find(|cluster| cluster.spec.kubeconfig_secret_ref.name == *name);
        let whose = cluster.map(|cluster| format!("TargetCluster {}", cluster.name_any()));
        if let Some(whose) = whose.or_else(|| (secret.0 == *name).then(|| "the broker".to_owned())) {
            return Err(Fault::SecretRefused {
                list,
                name: name.clone(),
                whose,
            });
        }
    }
    Ok(Pool {
        name: pool.name_any(),
        namespace: pool.namespace().unwrap_or_default(),
        uid: pool.uid().unwrap_or_default(),
        owner: pool.controller_owner_ref(&()).unwrap_or_default(),
        secret,
        redis: first.redis().cloned().unwrap_or_default(),
        key_prefix: first.key_prefix().to_owned(),
        queues: queues.iter().map(|facts| facts.queue.queue_name()).collect(),
        weights: named.iter().map(|share| share.weight).collect(),
        consumption: *consumption,
        recycle: recycle.clone().unwrap_or_default(),
        policy: policy(first),
        concurrency: *concurrency,
        hand_back_at: drain.hand_back_at,
        counts_as_attempt: drain.counts_as_attempt,
        grace: drain
            .grace_period
            .map_or(first.spec.time_limit.get() + GRACE_MARGIN, umbel_api::Span::get),
        runtime: *runtime,
        template: template_of(template.as_ref(), referred, defaults)?,
        clusters,
        absent,
        jobs: jobs.clone(),
        windows,
        protection: protection.clone(),
        budget: pod_disruption_budget.clone(),
        install: defaults.install.to_owned(),
    })
}

/// What a worker must know of a queue: everything but where it is, how it is called, and what every worker reads at the
/// broker.
fn policy(queue: &TaskQueue) -> TaskQueueSpec {
    let keys = |limits: Limits| Limits {
        max_in_flight: None,
        rate: None,
        max_length: None,
        on_full: OnFull::default(),
        per_key: limits.per_key,
    };
    let limits = queue.spec.limits.clone().map(keys);
    TaskQueueSpec {
        broker: None,
        queue_name: None,
        paused: false,
        deletion_policy: DeletionPolicy::default(),
        limits: limits.filter(|limits| !limits.per_key.is_empty()),
        ..queue.spec.clone()
    }
}

fn owned(queue: &TaskQueue) -> Result<(), Fault> {
    let conditions = queue
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    match condition::find(conditions, queue_condition::READY) {
        Some(ready) if ready.status == "False" && ready.reason == OWNED_ELSEWHERE => Err(Fault::QueueOwnedElsewhere {
            name: queue.name_any(),
            why: ready.message.clone(),
        }),
        _ => Ok(()),
    }
}

/// All queues must lie on one broker, or a drain would be no single instant. Two Secrets
/// may name one broker: the id of its data tells.
fn one_broker(queues: &[&QueueFacts<'_>]) -> Result<(String, String), Fault> {
    let first = queues.first().ok_or(Fault::NoQueue)?;
    for facts in queues {
        let name = facts.queue.name_any();
        let secret = facts.secret.as_ref().map_err(|why| Fault::NoBroker {
            name: name.clone(),
            why: why.clone(),
        })?;
        let same_source = Ok(secret) == first.secret.as_ref() && facts.queue.key_prefix() == first.queue.key_prefix();
        let same_data = facts.generation.is_some() && facts.generation == first.generation;
        if !same_source && !same_data {
            return Err(Fault::QueuesOnSeveralBrokers {
                one: first.queue.name_any(),
                other: name,
            });
        }
    }
    first.secret.clone().map_err(|why| Fault::NoBroker {
        name: first.queue.name_any(),
        why,
    })
}

fn template_of(given: Option<&Value>, referred: &Referred<'_>, defaults: &Defaults<'_>) -> Result<Value, Fault> {
    let fault = |why: &str| Fault::Template { why: why.into() };
    let Some(template) = given else {
        return Ok(json!({ "spec": {
            "securityContext": { "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": umbel_api::names::WORKER_CONTAINER,
                "image": defaults.image,
                "imagePullPolicy": defaults.pull_policy,
                "command": ["umbel-worker"],
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": { "drop": ["ALL"] },
                },
            }],
        }}));
    };
    let containers = template
        .pointer("/spec/containers")
        .ok_or_else(|| fault("spec.containers is missing"))?;
    let containers = containers
        .as_array()
        .ok_or_else(|| fault("spec.containers is not a list"))?;
    if containers.is_empty() || !containers.iter().all(Value::is_object) {
        return Err(fault("spec.containers holds no container"));
    }
    let clusters = referred.clusters.iter();
    let secrets = clusters.map(|cluster| cluster.spec.kubeconfig_secret_ref.name.as_str());
    let refused = narrow::refused(template, defaults.level, &secrets.collect());
    if refused.is_empty() {
        return Ok(template.clone());
    }
    let level = defaults.level;
    Err(Fault::Template {
        why: format!("{} (the administrator's level is {level})", refused.join("; ")),
    })
}
