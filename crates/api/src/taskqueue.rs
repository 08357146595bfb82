//! `TaskQueue`: a queue on a broker, and its policies.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{refs::SecretKeyRef, span::Span};

/// A queue on a broker, and what happens to its messages.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "umbel.dev",
    version = "v1alpha1",
    kind = "TaskQueue",
    namespaced,
    status = "TaskQueueStatus",
    derive = "PartialEq",
    shortname = "tq",
    category = "umbel",
    doc = "A queue on a broker, and what happens to its messages.",
    validation = Rule::new("has(self.spec.queueName) || self.metadata.name != 'unacked'").message("this queue name belongs to the transport").field_path(".spec.queueName"),
    printcolumn(name = "Queue", type_ = "string", json_path = ".spec.queueName", priority = 1),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Waiting", type_ = "integer", json_path = ".status.depth.waiting"),
    printcolumn(name = "In-Flight", type_ = "integer", json_path = ".status.depth.inFlight"),
    printcolumn(name = "Delayed", type_ = "integer", json_path = ".status.depth.delayed"),
    printcolumn(name = "Dead", type_ = "integer", json_path = ".status.depth.dead"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.queueName) == has(oldSelf.queueName) && (!has(self.queueName) || self.queueName == oldSelf.queueName)").message("queueName can't be changed").field_path(".queueName"),
    validation = Rule::new("!has(self.softTimeLimit) || duration(self.softTimeLimit) < duration(self.timeLimit)").message("softTimeLimit must be shorter than timeLimit").field_path(".softTimeLimit"),
    validation = Rule::new("duration(self.timeLimit) > duration('0s')").message("timeLimit must be longer than zero").field_path(".timeLimit")
)]
pub struct TaskQueueSpec {
    /// Where the queue lives. Without it: the Redis that came with the release, in the release's namespace only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<Broker>,

    /// Name of the queue as producers say it. Without it: the name of this object. Can't be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200), pattern(r"^[A-Za-z0-9][A-Za-z0-9_.@:/#+-]*$"))]
    #[x_kube(validation = Rule::new("!(self in ['unacked', 'unacked_index', 'unacked_mutex']) && !self.startsWith('umbel:')").message("this queue name belongs to the transport"))]
    pub queue_name: Option<String>,

    /// How long a worker holds a message without saying so again.
    #[serde(default)]
    pub lease: Lease,

    /// What happens to a task that asks for a retry, where its message does not say.
    #[serde(default)]
    pub retry: Retry,

    /// The delivery that ends without settlement after which a message goes to the dead letters.
    #[serde(default = "max_deliveries")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_deliveries: u32,

    /// After this a task is stopped and fails, where its message does not say.
    #[serde(default = "time_limit")]
    pub time_limit: Span,

    /// After this a task is asked to stop, where its message does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft_time_limit: Option<Span>,

    /// What is kept of a task's result.
    #[serde(default)]
    pub results: Results,
}

/// Where a queue lives.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Broker {
    /// A Redis server.
    pub redis: Redis,
}

/// A Redis server, or one database of it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Redis {
    /// The Secret that holds the URL, `redis://` or `rediss://`. Required outside the release's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_secret_ref: Option<SecretKeyRef>,

    /// Prefix of every key, as kombu's `global_keyprefix`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 100), pattern(r"^[!-~]*$"))]
    pub key_prefix: String,
}

/// How long a worker holds a message without saying so again.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("duration(self.duration) >= duration('1s') && duration(self.duration) <= duration('24h')").message("a lease lasts from 1s to 24h").field_path(".duration"),
    validation = Rule::new("duration(self.renewEvery) > duration('0s') && duration(self.renewEvery) + duration(self.renewEvery) <= duration(self.duration)").message("renewEvery must fit twice into the lease").field_path(".renewEvery")
)]
pub struct Lease {
    /// A message whose holder was silent for this long goes back to its queue.
    #[serde(default = "lease_duration")]
    pub duration: Span,
    /// How often a holder says that it still works.
    #[serde(default = "renew_every")]
    pub renew_every: Span,
}

/// What happens to a task that asks for a retry.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.initialBackoff) <= duration(self.maxBackoff)").message("initialBackoff must not be longer than maxBackoff").field_path(".initialBackoff"))]
pub struct Retry {
    /// Attempts in all, the first one included.
    #[serde(default = "max_attempts")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_attempts: u32,
    /// Wait before the second attempt.
    #[serde(default = "initial_backoff")]
    pub initial_backoff: Span,
    /// The longest wait.
    #[serde(default = "max_backoff")]
    pub max_backoff: Span,
    /// By how much each wait is longer than the one before.
    #[serde(default = "factor")]
    #[schemars(range(min = 1.0, max = 100.0))]
    pub factor: f64,
    /// The part of each wait that is random.
    #[serde(default = "jitter")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub jitter: f64,
}

/// What is kept of a task's result.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.ttl) >= duration('1s')").message("a result is kept for at least 1s").field_path(".ttl"))]
pub struct Results {
    /// How long a result is kept.
    #[serde(default = "result_ttl")]
    pub ttl: Span,
}

fn max_deliveries() -> u32 {
    3
}
fn time_limit() -> Span {
    Span::secs(3600)
}
fn lease_duration() -> Span {
    Span::secs(60)
}
fn renew_every() -> Span {
    Span::secs(20)
}
fn max_attempts() -> u32 {
    5
}
fn initial_backoff() -> Span {
    Span::secs(1)
}
fn max_backoff() -> Span {
    Span::secs(600)
}
fn factor() -> f64 {
    2.0
}
fn jitter() -> f64 {
    0.2
}
fn result_ttl() -> Span {
    Span::secs(86_400)
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            duration: lease_duration(),
            renew_every: renew_every(),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: max_attempts(),
            initial_backoff: initial_backoff(),
            max_backoff: max_backoff(),
            factor: factor(),
            jitter: jitter(),
        }
    }
}

impl Default for Results {
    fn default() -> Self {
        Self { ttl: result_ttl() }
    }
}

impl TaskQueue {
    /// Name of the queue on the broker.
    pub fn queue_name(&self) -> String {
        self.spec.queue_name.clone().unwrap_or_else(|| self.name_any())
    }

    /// Prefix of every key on the broker.
    pub fn key_prefix(&self) -> &str {
        self.spec.broker.as_ref().map_or("", |broker| &broker.redis.key_prefix)
    }

    /// The Secret with the broker's URL, unless the queue lives on the release's own Redis.
    pub fn url_secret(&self) -> Option<&SecretKeyRef> {
        self.spec
            .broker
            .as_ref()
            .and_then(|broker| broker.redis.url_secret_ref.as_ref())
    }
}

/// What was seen of a queue. Metrics are the live source; this is written seldom.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskQueueStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many messages are where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<Depth>,
    /// When the depth was taken, by the broker's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sample_time: Option<Time>,
    /// What holds and what does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// How many messages are where.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Depth {
    /// Ready to be taken, suspects included.
    pub waiting: u64,
    /// Held by workers.
    pub in_flight: u64,
    /// Parked until a time.
    pub delayed: u64,
    /// In the dead letters.
    pub dead: u64,
    /// Not readable as a message and set aside.
    #[serde(default)]
    pub quarantined: u64,
}
