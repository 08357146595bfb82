//! How a fleet gets its size: what a user can say about it.

use std::time::Duration;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::span::Span;

/// How a fleet gets its size.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.minReplicas <= self.maxReplicas").message("minReplicas must not be larger than maxReplicas").field_path(".minReplicas"))]
#[x_kube(validation = Rule::new("!has(self.interval) || (duration(self.interval) >= duration('1s') && duration(self.interval) <= duration('5m'))").message("an interval lasts from 1s to 5m").field_path(".interval"))]
pub struct Scaling {
    /// Who decides the size.
    #[serde(default)]
    pub mode: Mode,
    /// The smallest size.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10_000))]
    pub min_replicas: u32,
    /// The largest size.
    #[serde(default = "max_replicas")]
    #[schemars(range(min = 0, max = 10_000))]
    pub max_replicas: u32,
    /// Slots that stay free beyond demand.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100_000))]
    pub min_idle_slots: u32,
    /// A pool of size zero starts when demand is larger than this.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub activation_threshold: u32,
    /// Demand is looked at this often, from 1s to 5m. Without it: as often as the operator samples brokers, each second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
    /// What the size aims at.
    #[serde(default)]
    pub target: Target,
    /// How the fleet grows.
    #[serde(default)]
    pub up: Up,
    /// How the fleet shrinks.
    #[serde(default)]
    pub down: Down,
    /// Other bounds at certain times.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub schedules: Vec<Calendar>,
    /// What the size is while the broker can't be asked.
    #[serde(default)]
    pub on_broker_error: OnBrokerError,
    /// Which changes of size are held, whatever asks for them but `suspend`.
    #[serde(default)]
    pub paused: Paused,
}

/// Who decides a fleet's size.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Mode {
    /// Demand does.
    #[default]
    Auto,
    /// `spec.replicas` does, whatever the bounds.
    Manual,
    /// `spec.replicas` does, within the bounds and schedules: an HPA or KEDA writes it through the scale subresource.
    External,
}

/// What the size aims at.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.type != 'Utilization' || (type(self.value) == int && self.value >= 1 && self.value <= 100)").message("Utilization is a number of percent from 1 to 100").field_path(".value"))]
#[x_kube(validation = Rule::new("self.type != 'BacklogPerReplica' || (type(self.value) == int && self.value >= 1 && self.value <= 1000000000)").message("BacklogPerReplica is a number of messages from 1 to 1000000000").field_path(".value"))]
#[x_kube(validation = Rule::new("self.type == 'Utilization' || self.type == 'BacklogPerReplica' || (type(self.value) == string && string(self.value).matches('^([0-9]{1,5}([.][0-9]{1,3})?h|[0-9]{1,7}([.][0-9]{1,3})?(m|s|ms)){1,4}$') && duration(string(self.value)) >= duration('1s') && duration(string(self.value)) <= duration('168h'))").message("DrainTime and Latency are durations from 1s to 168h, such as 5m").field_path(".value"))]
pub struct Target {
    /// What is measured.
    #[serde(default, rename = "type")]
    pub kind: TargetKind,
    /// Utilization: percent, 80 if absent. BacklogPerReplica: messages. DrainTime and Latency: a duration such as 5m.
    #[serde(default = "utilization")]
    #[schemars(schema_with = "crate::schema::int_or_string")]
    pub value: Goal,
}

/// What a target measures.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum TargetKind {
    /// The part of all slots that is in use, in percent.
    #[default]
    Utilization,
    /// Messages that wait or are due soon, for each pod.
    BacklogPerReplica,
    /// Time until everything that is there now is done, at the measured rate. Until there is one: Utilization of 80 %.
    DrainTime,
    /// Time until a message that comes now is started, at the measured rates. Until there is one: Utilization of 80 %.
    Latency,
}

/// A target's value.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(untagged)]
pub enum Goal {
    /// Percent, or messages.
    Count(u32),
    /// A time.
    Time(Span),
}

impl Goal {
    /// The number; nothing where a time was given.
    pub const fn count(self) -> Option<u32> {
        match self {
            Self::Count(count) => Some(count),
            Self::Time(_) => None,
        }
    }

    /// The time; nothing where a number was given.
    pub const fn time(self) -> Option<Duration> {
        match self {
            Self::Count(_) => None,
            Self::Time(span) => Some(span.get()),
        }
    }
}

/// How a fleet grows.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.stabilization) <= duration('24h')").message("stabilization lasts at most 24h").field_path(".stabilization"))]
pub struct Up {
    /// The smallest size asked for within this time counts.
    #[serde(default)]
    pub stabilization: Span,
    /// How fast it may grow. Without any: at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), extend("x-kubernetes-list-type" = "atomic"))]
    pub policies: Vec<Policy>,
    /// Which of the policies counts; Disabled: it never grows on demand.
    #[serde(default)]
    pub select_policy: Select,
}

/// How a fleet shrinks.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.stabilization) <= duration('24h')").message("stabilization lasts at most 24h").field_path(".stabilization"))]
#[x_kube(validation = Rule::new("duration(self.cooldownToZero) <= duration('168h')").message("cooldownToZero lasts at most 168h").field_path(".cooldownToZero"))]
#[x_kube(validation = Rule::new("duration(self.confirmTimeout) <= duration('1h')").message("confirmTimeout lasts at most 1h").field_path(".confirmTimeout"))]
#[x_kube(validation = Rule::new("!has(self.drainWait) || (duration(self.drainWait) >= duration('1s') && duration(self.drainWait) <= duration('168h'))").message("drainWait lasts from 1s to 168h").field_path(".drainWait"))]
pub struct Down {
    /// The largest size asked for within this time counts.
    #[serde(default = "minute")]
    pub stabilization: Span,
    /// The last pods go when nothing was to do for this long.
    #[serde(default = "minute")]
    pub cooldown_to_zero: Span,
    /// How fast it may shrink. Without any: at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), extend("x-kubernetes-list-type" = "atomic"))]
    pub policies: Vec<Policy>,
    /// Which of the policies counts; Disabled: it never shrinks on demand.
    #[serde(default)]
    pub select_policy: Select,
    /// Which pods go.
    #[serde(default)]
    pub victims: Victims,
    /// How long a chosen pod may hold something after it stopped to take work: with IdleOnly before it works again, with
    /// IdleFirst before it is stopped.
    #[serde(default = "confirm_timeout")]
    pub confirm_timeout: Span,
    /// With victims Drained: a pod that was to go and still works after this time is stopped, and its tasks have
    /// `drain.gracePeriod`. Without it: nobody is stopped, and what runs for longer than its queue's timeLimit is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_wait: Option<Span>,
}

/// Which pods a step down takes. All take those that nobody admitted first, then idle ones, the newest first.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, JsonSchema)]
pub enum Victims {
    /// Then the least loaded: they take no more work, and go when they are idle.
    #[default]
    Drained,
    /// Nobody else: busy pods work on, and go when they happen to be idle.
    IdleOnly,
    /// Then the least loaded: they take no more work, and are stopped after `confirmTimeout`, their tasks having
    /// `drain.gracePeriod` to end. For who needs the size soon.
    IdleFirst,
}

/// So much in so much time.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Of what `value` is a number.
    #[serde(rename = "type")]
    pub kind: PolicyKind,
    /// So many pods, or percent of the size at the beginning of the period.
    #[schemars(range(min = 1, max = 100_000))]
    pub value: u32,
    /// Length of the period.
    #[schemars(range(min = 1, max = 1800))]
    pub period_seconds: u32,
}

/// What a policy counts.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum PolicyKind {
    /// Pods.
    Pods,
    /// Percent of the size at the beginning of the period; upwards at least one pod.
    Percent,
}

/// Which of several policies counts.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Select {
    /// The one that allows the largest change.
    #[default]
    Max,
    /// The one that allows the smallest change.
    Min,
    /// No change in this direction.
    Disabled,
}

/// Other bounds from one time of the calendar to another.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.minReplicas) || has(self.maxReplicas)").message("minReplicas or maxReplicas must be given"))]
#[x_kube(validation = Rule::new("!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas").message("minReplicas must not be larger than maxReplicas").field_path(".minReplicas"))]
#[x_kube(validation = Rule::new("self.start != self.end").message("start and end must differ").field_path(".end"))]
pub struct Calendar {
    /// Its name.
    #[schemars(length(min = 1, max = 63), pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// When it begins: a cron text of five fields.
    #[schemars(length(min = 1, max = 256))]
    pub start: String,
    /// When it ends, likewise.
    #[schemars(length(min = 1, max = 256))]
    pub end: String,
    /// Zone of both, as IANA names it.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,
    /// The smallest size meanwhile, in place of `scaling.minReplicas`; of several schedules the largest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub min_replicas: Option<u32>,
    /// The largest size meanwhile, in place of `scaling.maxReplicas`; of several schedules the smallest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub max_replicas: Option<u32>,
}

/// What the size is while the broker can't be asked.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.replicas) == (self.policy == 'Fallback')").message("replicas is given with policy Fallback, and only then").field_path(".replicas"))]
pub struct OnBrokerError {
    /// What is done.
    #[serde(default)]
    pub policy: BrokerPolicy,
    /// The size that the pool has at least meanwhile, with policy Fallback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub replicas: Option<u32>,
    /// Samples that fail in a row before it is.
    #[serde(default = "failure_threshold")]
    #[schemars(range(min = 1, max = 1000))]
    pub failure_threshold: u32,
}

/// What is done while the broker can't be asked. An outage is not an empty queue: nothing shrinks.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum BrokerPolicy {
    /// The size stays.
    #[default]
    Hold,
    /// It is raised to `replicas` where it is smaller.
    Fallback,
}

/// Which changes of size are held.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Paused {
    /// None.
    #[default]
    None,
    /// All.
    All,
    /// It does not shrink.
    In,
    /// It does not grow.
    Out,
}

fn max_replicas() -> u32 {
    10
}
fn utilization() -> Goal {
    Goal::Count(80)
}
fn minute() -> Span {
    Span::secs(60)
}
fn confirm_timeout() -> Span {
    Span::secs(15)
}
fn failure_threshold() -> u32 {
    3
}
fn utc() -> String {
    "UTC".to_owned()
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            min_replicas: 0,
            max_replicas: max_replicas(),
            min_idle_slots: 0,
            activation_threshold: 0,
            interval: None,
            target: Target::default(),
            up: Up::default(),
            down: Down::default(),
            schedules: Vec::new(),
            on_broker_error: OnBrokerError::default(),
            paused: Paused::default(),
        }
    }
}

impl Default for Target {
    fn default() -> Self {
        Self {
            kind: TargetKind::default(),
            value: utilization(),
        }
    }
}

impl Default for Down {
    fn default() -> Self {
        Self {
            stabilization: minute(),
            cooldown_to_zero: minute(),
            policies: Vec::new(),
            select_policy: Select::default(),
            victims: Victims::default(),
            confirm_timeout: confirm_timeout(),
            drain_wait: None,
        }
    }
}

impl Default for OnBrokerError {
    fn default() -> Self {
        Self {
            policy: BrokerPolicy::default(),
            replicas: None,
            failure_threshold: failure_threshold(),
        }
    }
}
