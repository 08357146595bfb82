//! The words that cross a boundary: group, labels, annotations, field managers.

/// The API group of every kind.
pub const GROUP: &str = "umbel.dev";
/// The version served and stored.
pub const VERSION: &str = "v1alpha1";

/// Label on a pool's Deployment and pods: the name of the WorkerPool.
pub const LABEL_POOL: &str = "umbel.dev/pool";
/// Label on a pool's Deployments and their pods: the revision of the template.
pub const LABEL_REVISION: &str = "umbel.dev/revision";
/// Label on a pool's Deployment: the term of the leader that decides over it. A label moves the resource version and
/// nothing else, so a predecessor's write meets a conflict while the Deployment's generation stays.
pub const LABEL_TERM: &str = "umbel.dev/term";
/// Recommended label: who manages an object.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Recommended label: the application's name.
pub const LABEL_NAME: &str = "app.kubernetes.io/name";
/// Recommended label: the application's instance.
pub const LABEL_INSTANCE: &str = "app.kubernetes.io/instance";
/// Recommended label: the role within the application.
pub const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
/// Recommended label: the larger whole.
pub const LABEL_PART_OF: &str = "app.kubernetes.io/part-of";

/// Annotation on a worker pod: `<term>.<n>` of the admission, a new value each time.
pub const ANNOTATION_GATE: &str = "umbel.dev/gate";
/// Annotation on a worker pod that the ReplicaSet controller reads when it chooses whom to delete.
pub const ANNOTATION_DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Label on a worker pod that works and is shielded: what a pool's disruption budget selects.
pub const LABEL_BUSY: &str = "umbel.dev/busy";
/// Annotation on a worker pod: since when it has worked and been shielded.
pub const ANNOTATION_BUSY_SINCE: &str = "umbel.dev/busy-since";
/// Annotation on a worker pod: which address and certificates of its broker were seen last. Its change makes the kubelet look
/// after the pod's mounts at once, and not within a minute or two.
pub const ANNOTATION_BROKER: &str = "umbel.dev/broker";
/// Annotation in the template of a Deployment that was stopped in the middle of a rollout of its own.
pub const ANNOTATION_FROZEN: &str = "umbel.dev/frozen";
/// Annotation that the cluster autoscaler reads.
pub const ANNOTATION_SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";
/// Annotation that Karpenter reads.
pub const ANNOTATION_DO_NOT_DISRUPT: &str = "karpenter.sh/do-not-disrupt";
/// Annotation on objects applied at a target cluster: `<run order>/<token>`.
pub const ANNOTATION_FENCE: &str = "umbel.dev/fence";
/// Annotation on a TargetCluster: the uid of the kube-system namespace that it may have from now on.
pub const ANNOTATION_ACCEPT_IDENTITY: &str = "umbel.dev/accept-identity";
/// The Lease in each namespace with objects of ours that says whose install works there.
pub const LEASE_OF_NAMESPACE: &str = "umbel.dev";
/// Annotation on the leader's Lease: the term of the holder.
pub const ANNOTATION_TERM: &str = "umbel.dev/term";

/// Annotation on a Secret with a kubeconfig: the account at the target whose token the operator renews, as JSON.
pub const ANNOTATION_RENEW: &str = "umbel.dev/renew";
/// Annotation beside it: what the account may touch besides what syncs read, as `umbel cluster join --allow` takes it.
pub const ANNOTATION_ALLOW: &str = "umbel.dev/allow";
/// Label on the objects at a target that make an account: its name.
pub const LABEL_ACCOUNT: &str = "umbel.dev/account";
/// Annotation on an account at a target: the uid of the namespace at home that it was made for.
pub const ANNOTATION_HOME: &str = "umbel.dev/home";
/// Label on a Secret that discovery takes for a target's kubeconfig, where it is `true`.
pub const LABEL_CLUSTER: &str = "umbel.dev/cluster";
/// Label on such a Secret: the name of the TargetCluster, where it is not the Secret's.
pub const LABEL_CLUSTER_NAME: &str = "umbel.dev/cluster-name";
/// Annotation on such a Secret: the key of the kubeconfig.
pub const ANNOTATION_CLUSTER_KEY: &str = "umbel.dev/cluster-key";
/// What labels of such a Secret begin with that go on, without it, to the TargetCluster.
pub const LABEL_PREFIX: &str = "label.umbel.dev/";
/// Annotation on a TargetCluster that discovery made: the keys of the labels that came from its Secret.
pub const ANNOTATION_DISCOVERED_LABELS: &str = "umbel.dev/discovered-labels";
/// Label on a TargetCluster that discovery made.
pub const LABEL_DISCOVERED: &str = "umbel.dev/discovered";

/// Finalizer of a TaskQueue whose messages go with it.
pub const FINALIZER_QUEUE: &str = "umbel.dev/queue";

/// Field manager of the operator's own objects and of status.
pub const MANAGER: &str = "umbel-operator";
/// Field manager of a pool's size.
pub const MANAGER_SCALE: &str = "umbel-operator-scale";
/// Field manager of the term label.
pub const MANAGER_TERM: &str = "umbel-operator-term";
/// Field manager of objects applied at target clusters.
pub const MANAGER_APPLY: &str = "umbel-apply";

/// Name of the container that runs the worker inside a pool's template; otherwise the first one is it.
pub const WORKER_CONTAINER: &str = "worker";

/// The `TaskQueue` condition types.
pub mod queue_condition {
    /// The queue is owned by this object and can be consumed.
    pub const READY: &str = "Ready";
    /// The broker answered the latest question.
    pub const BROKER_REACHABLE: &str = "BrokerReachable";
    /// The broker throws keys away when its memory is full.
    pub const EVICTION_RISK: &str = "EvictionRisk";
    /// The broker has come back with other data than it had, with older data, or with none.
    pub const BROKER_DATA_LOST: &str = "BrokerDataLost";
    /// Nothing of the queue is consumed.
    pub const PAUSED: &str = "Paused";
    /// Work waits for longer than it should, or there is more of it than may wait.
    pub const BACKLOGGED: &str = "Backlogged";
    /// Dead letters have come lately.
    pub const DEAD_LETTER_GROWING: &str = "DeadLetterGrowing";
}

/// The `WorkerPool` condition types.
pub mod pool_condition {
    /// The pool is valid and its Deployment has the pods it wants.
    pub const READY: &str = "Ready";
    /// The size follows demand; the message explains the latest decision.
    pub const SCALING_ACTIVE: &str = "ScalingActive";
    /// A bound keeps the size from what demand asks for.
    pub const SCALING_LIMITED: &str = "ScalingLimited";
    /// A smaller size is wanted and a precondition of the scale-down does not hold.
    pub const SCALE_DOWN_BLOCKED: &str = "ScaleDownBlocked";
    /// The broker of the pool's queues answered the latest question.
    pub const BROKER_REACHABLE: &str = "BrokerReachable";
    /// Somebody else writes the size of one of the pool's Deployments.
    pub const FOREIGN_SCALER: &str = "ForeignScaler";
    /// A template replaces another.
    pub const ROLLOUT_PROGRESSING: &str = "RolloutProgressing";
    /// Somebody else writes the deletion costs of the pool's pods.
    pub const FOREIGN_COST_WRITER: &str = "ForeignCostWriter";
    /// With runtime Celery: the workers answer to remote control, so that they stop taking work before they go.
    pub const REMOTE_CONTROL: &str = "RemoteControl";
    /// A task may run for longer than a stopping pod has.
    pub const GRACE_TOO_SHORT: &str = "GraceTooShort";
}

/// Annotation by which a PeriodicTask is asked to run now: the time of the request.
pub const RUN_NOW: &str = "umbel.dev/run-now";
/// Annotation beside it: who asked.
pub const RUN_NOW_BY: &str = "umbel.dev/run-now-by";

/// The `PeriodicTask` condition types.
pub mod periodic_condition {
    /// The next slot is known and will fire.
    pub const SCHEDULED: &str = "Scheduled";
    /// `spec.suspend` holds the schedule.
    pub const SUSPENDED: &str = "Suspended";
    /// Something is wrong that a person must repair.
    pub const STALLED: &str = "Stalled";
    /// The latest run that ended did not succeed.
    pub const FAILING: &str = "Failing";
}

/// The `Task` condition types.
pub mod task_condition {
    /// All its tasks have succeeded.
    pub const SUCCEEDED: &str = "Succeeded";
    /// Something is wrong that a person must repair.
    pub const STALLED: &str = "Stalled";
}

/// The `TargetCluster` condition types.
pub mod cluster_condition {
    /// The kubeconfig keeps to the rules.
    pub const KUBECONFIG_ACCEPTED: &str = "KubeconfigAccepted";
    /// The latest sync reached the API server.
    pub const REACHABLE: &str = "Reachable";
    /// The credential may read what a sync needs.
    pub const AUTHORIZED: &str = "Authorized";
    /// The API server is ready, and so are all nodes.
    pub const HEALTHY: &str = "Healthy";
    /// The credential ends soon and nobody has renewed it.
    pub const CREDENTIALS_EXPIRING: &str = "CredentialsExpiring";
}
