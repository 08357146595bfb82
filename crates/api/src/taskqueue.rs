//! `TaskQueue`: a queue on a broker, and its policies.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    refs::{NameRef, SecretKeyRef},
    span::Span,
};

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

    /// Nothing of the queue is consumed by any worker of Umbel's; producing goes on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,

    /// What the queue allows all its workers together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,

    /// What becomes of messages that nobody will run.
    #[serde(default)]
    pub dead_letter: DeadLetter,

    /// What becomes of the queue's messages when this object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

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

    /// After this a message that was not started is not run any more, where it names no expiry and says when it was sent
    /// (Celery's own clients do not say that).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_after: Option<Span>,

    /// What is kept of a task's result.
    #[serde(default)]
    pub results: Results,

    /// Steps that message priorities are sorted into, as the producers have them (`priority_steps`).
    #[serde(default = "priority_steps")]
    #[schemars(length(min = 1, max = 10), inner(range(min = 0, max = 9)))]
    #[x_kube(validation = Rule::new("self.isSorted() && self.all(one, self.exists_one(other, other == one))").message("steps rise"))]
    pub priority_steps: Vec<u8>,

    /// Serializers whose messages are read; pickle never is.
    #[serde(default = "accept")]
    #[schemars(length(min = 1, max = 4))]
    #[x_kube(validation = Rule::new("self.all(one, self.exists_one(other, other == one))").message("name each serializer once"))]
    pub accept: Vec<Serializer>,

    /// Zone of times in messages that name none: an IANA name, e.g. `Europe/Berlin`.
    #[serde(default = "time_zone")]
    #[schemars(length(min = 1, max = 64), pattern(r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$"))]
    pub time_zone: String,

    /// When a message is acknowledged, where its task does not say.
    #[serde(default)]
    pub ack: Ack,

    /// Tasks that may run, as globs (`*` stands for anything). Absent: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 200), pattern(r"^[^\s,]+$")))]
    pub allowed_tasks: Vec<String>,

    /// What happens to a task that the worker does not know.
    #[serde(default)]
    pub on_unknown_task: OnUnknownTask,
}

/// What becomes of messages that nobody will run: that failed for good, that nobody knows, that killed their workers.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.retention) >= duration('1m') && duration(self.retention) <= duration('87840h')").message("dead letters are kept for 1m to 87840h").field_path(".retention"))]
pub struct DeadLetter {
    /// Whether they are kept. Otherwise they are gone, and only counted; those that are there stay until they are too old.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// So many are kept, the newest; as many of those that could not be read.
    #[serde(default = "dead_kept")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_length: u64,
    /// For so long.
    #[serde(default = "dead_retention")]
    pub retention: Span,
}

/// What becomes of a queue's messages when its object is deleted.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum DeletionPolicy {
    /// They stay where they are.
    #[default]
    Retain,
    /// Those that wait, are delayed, are dead letters or could not be read are removed, before the object is gone. What runs
    /// goes on.
    Purge,
}

/// How a message's body is written.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Serializer {
    /// JSON, Celery's default.
    Json,
    /// MessagePack.
    Msgpack,
    /// YAML, without tags.
    Yaml,
    /// Signed messages. The pool's template brings the certificates (`UMBEL_SECURITY_CERTIFICATES`).
    Auth,
}

/// When a message is acknowledged.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Ack {
    /// After the run: at least once.
    #[default]
    Late,
    /// Before the run: at most once.
    Early,
}

/// What happens to a task that the worker does not know.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum OnUnknownTask {
    /// Back to the queue while other workers there know it, up to 30 times; to the dead letters otherwise.
    #[default]
    HandBack,
    /// To the dead letters at once.
    DeadLetter,
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
    /// The Secret that holds the URL: `redis://`, `rediss://` for TLS, or `sentinel://host;sentinel://host`. Required
    /// outside the release's namespace. The Secret may change at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_secret_ref: Option<SecretKeyRef>,

    /// What Sentinels need to know, where the URL names some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentinel: Option<Sentinel>,

    /// What TLS needs to know. Where this is set, a URL without TLS is refused. Certificates and names are always checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,

    /// Prefix of every key, as kombu's `global_keyprefix`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 100), pattern(r"^[!-~]*$"))]
    pub key_prefix: String,
}

/// What Sentinels need to know.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sentinel {
    /// The name under which they know the primary: kombu's `master_name`.
    #[schemars(length(min = 1, max = 253), pattern(r"^[A-Za-z0-9._:-]+$"))]
    pub master_name: String,
}

/// What TLS needs to know.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// The authorities that are trusted, PEM. Absent: those of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
    /// A Secret of the type `kubernetes.io/tls` with the client's certificate, where the server asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_cert_secret_ref: Option<NameRef>,
    /// The name that the server's certificate must be for. Absent: the URL's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), pattern(r"^[A-Za-z0-9._:-]+$"))]
    pub server_name: Option<String>,
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

/// What a queue allows all its workers together.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Messages that are held at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_in_flight: Option<u64>,
    /// How often one is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<QueueRate>,
    /// Messages that do not run at the same time as others with the same key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["tasks"]))]
    pub per_key: Vec<KeyLimit>,
    /// Messages that may wait. Those that are delayed do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_length: Option<u64>,
    /// What happens to more.
    #[serde(default)]
    pub on_full: OnFull,
}

/// What happens to a message beyond those that may wait. Celery's own clients ask nobody: what they send all the same is
/// moved to the dead letters a moment later.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum OnFull {
    /// Umbel's own producers are refused, schedules wait for room; of what others send the newest goes to the dead letters.
    #[default]
    Refuse,
    /// It is taken, and the oldest that waits goes to the dead letters.
    DropOldest,
}

/// How often a message of a queue is taken.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.period) >= duration('1ms') && duration(self.period) <= duration('8784h')").message("a period lasts from 1ms to 8784h").field_path(".period"))]
pub struct QueueRate {
    /// Messages in each period.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub count: u32,
    /// The period.
    #[serde(default = "rate_period")]
    pub period: Span,
    /// Messages at once after a pause. Absent: those of a tenth of a second, at least one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub burst: Option<u32>,
}

/// Messages of some tasks that share turns by a key.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyLimit {
    /// The tasks, as a glob.
    #[schemars(length(min = 1, max = 200), pattern(r"^[^\s,;=]+$"))]
    pub tasks: String,
    /// The key: a text with `{task}`, `{queue}`, `{args.0}`, `{kwargs.name}` or `{header.name}` in it.
    #[schemars(
        length(min = 1, max = 200),
        pattern(r"^([^\s{};=]|\{(task|queue|args\.[0-9]{1,3}|(kwargs|header)\.[A-Za-z0-9_.-]+)\})+$")
    )]
    pub key: String,
    /// Messages of one key that run at a time.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub limit: u32,
}

fn yes() -> bool {
    true
}

fn dead_kept() -> u64 {
    10_000
}

fn dead_retention() -> Span {
    Span::secs(14 * 86_400)
}

fn rate_period() -> Span {
    Duration::from_secs(1).into()
}

const fn one() -> u32 {
    1
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
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.ttl) >= duration('1s')").message("a result is kept for at least 1s").field_path(".ttl"))]
pub struct Results {
    /// Which results are stored.
    #[serde(default)]
    pub store: Store,
    /// For how long.
    #[serde(default = "result_ttl")]
    pub ttl: Span,
    /// A larger result is not stored, and its task counts as failed: bytes, or with Ki or Mi.
    #[serde(default = "max_bytes")]
    #[schemars(length(max = 12), pattern(r"^[1-9][0-9]{0,8}(Ki|Mi)?$"))]
    #[x_kube(validation = Rule::new("quantity(self).compareTo(quantity('64Mi')) <= 0").message("a result has at most 64Mi"))]
    pub max_bytes: String,
    /// Another place than the broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Backend>,
}

/// Which results are stored.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Store {
    /// Every result that its message does not refuse.
    #[default]
    All,
    /// Only those of failed tasks.
    Failures,
    /// None. Chords still count.
    None,
}

/// Where results lie when not at the broker.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// The Secret that holds the URL. Absent: the broker's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_secret_ref: Option<SecretKeyRef>,
    /// Prefix of every key there, as `global_keyprefix` of Celery's `result_backend_transport_options`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 100), pattern(r"^[!-~]*$"))]
    pub key_prefix: String,
}

impl Results {
    /// The largest result in bytes; `None` where the schema was bypassed.
    pub fn max_bytes(&self) -> Option<u64> {
        let digits = self.max_bytes.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = match &self.max_bytes[digits.len()..] {
            "" => 1,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            _ => return None,
        };
        digits.parse::<u64>().ok()?.checked_mul(unit)
    }
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

fn max_bytes() -> String {
    "256Ki".to_owned()
}
fn priority_steps() -> Vec<u8> {
    vec![0, 3, 6, 9]
}
fn accept() -> Vec<Serializer> {
    vec![Serializer::Json]
}
fn time_zone() -> String {
    "UTC".to_owned()
}

impl Default for DeadLetter {
    fn default() -> Self {
        Self {
            enabled: yes(),
            max_length: dead_kept(),
            retention: dead_retention(),
        }
    }
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
        Self {
            store: Store::All,
            ttl: result_ttl(),
            max_bytes: max_bytes(),
            backend: None,
        }
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

    /// How the broker is reached, where the queue says so.
    pub fn redis(&self) -> Option<&Redis> {
        self.spec.broker.as_ref().map(|broker| &broker.redis)
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
    /// For how long the message that is to be taken next has waited, rounded down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_waiting_seconds: Option<u64>,
    /// Whether it may have waited for longer: its sender does not say when it was sent, so it counts from when it was seen
    /// in front first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oldest_waiting_is_lower_bound: bool,
    /// Messages a second, over the last minute, of Umbel's workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
    /// How long it takes until everything is done that waits or runs, if nothing comes and tasks end as now, rounded up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_drain_seconds: Option<u64>,
    /// Who takes its messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumers: Option<Consumers>,
    /// When the depth was taken, by the broker's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sample_time: Option<Time>,
    /// What was learned of the broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<BrokerSeen>,
    /// What holds and what does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// What was learned of a broker.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BrokerSeen {
    /// Host, port and database.
    pub server: String,
    /// Program and version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// What its settings promise: Volatile, Basic, Local, Replicated or Strict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<String>,
    /// Published weaknesses of this version, unless its distributor has mended them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weaknesses: Vec<String>,
    /// Id of its data; another one means that data was lost.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub data_set: String,
    /// A token that was given out there; a lower one means that data was lost. Written along with other news.
    #[serde(default)]
    pub token: u64,
}

/// How many messages are where.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Depth {
    /// Ready to be taken, suspects included.
    pub waiting: u64,
    /// The same without suspects, by step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["step"]))]
    pub by_priority: Vec<Step>,
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

/// What waits in one step of priority.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub struct Step {
    /// The step, as `prioritySteps` has it.
    pub step: u8,
    /// Messages.
    pub waiting: u64,
}

/// Messages a second.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
pub struct Rates {
    /// That came: sent, or due after a delay or a retry. What Celery's own workers end is not known and counts as not come.
    pub enqueued: f64,
    /// Whose run began.
    pub started: f64,
    /// That succeeded.
    pub succeeded: f64,
    /// That failed for good.
    pub failed: f64,
}

/// Who takes a queue's messages.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Consumers {
    /// Names of the WorkerPools that serve it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub pools: Vec<String>,
    /// Umbel's workers that serve it and are alive, one a pod.
    pub pods: u32,
    /// Their slots, those for other queues included.
    pub slots: u32,
    /// Slots in use.
    pub busy_slots: u32,
    /// Celery's own workers that answer that they take its messages. Absent: nobody could be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_workers: Option<u32>,
}
