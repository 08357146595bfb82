//! `PeriodicTask`: a schedule.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    refs::{ConfigMapKeyRef, NameRef, SecretKeyRef, Selector},
    span::Span,
    workerpool::Amount,
};

/// A task that is sent at given times, once for each slot.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "umbel.dev",
    version = "v1alpha1",
    kind = "PeriodicTask",
    namespaced,
    status = "PeriodicTaskStatus",
    derive = "PartialEq",
    shortname = "pt",
    category = "umbel",
    doc = "A task that is sent at given times, once for each slot.",
    selectable = ".spec.taskTemplate.queueRef.name",
    printcolumn(name = "Cron", type_ = "string", json_path = ".spec.schedule.cron"),
    printcolumn(name = "Every", type_ = "string", json_path = ".spec.schedule.every"),
    printcolumn(name = "Suspend", type_ = "boolean", json_path = ".spec.suspend"),
    printcolumn(name = "Active", type_ = "integer", json_path = ".status.activeRuns"),
    printcolumn(name = "Runs", type_ = "integer", json_path = ".status.runs"),
    printcolumn(name = "Missed", type_ = "integer", json_path = ".status.missed"),
    printcolumn(name = "Last", type_ = "date", json_path = ".status.lastScheduleTime"),
    // A column of type date can't show the future.
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextScheduleTime", priority = 1),
    printcolumn(name = "Stalled", type_ = "string", json_path = ".status.conditions[?(@.type==\"Stalled\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
// The API server takes times that this program could not read.
#[x_kube(
    validation = Rule::new("!has(self.startTime) || !has(self.endTime) || self.startTime < self.endTime").message("startTime must be before endTime").field_path(".startTime"),
    validation = Rule::new("!has(self.startTime) || self.startTime < timestamp('9999-01-01T00:00:00Z')").message("startTime must be before the year 9999").field_path(".startTime"),
    validation = Rule::new("!has(self.endTime) || self.endTime < timestamp('9999-01-01T00:00:00Z')").message("endTime must be before the year 9999").field_path(".endTime")
)]
pub struct PeriodicTaskSpec {
    /// When: exactly one of `cron`, `every`, `at` and `solar`.
    pub schedule: Schedule,

    /// Time zone of `cron`, by its IANA name.
    #[serde(default = "time_zone")]
    #[schemars(length(min = 1, max = 64), pattern(r"^[A-Za-z0-9_+/-]+$"))]
    pub time_zone: String,

    /// What clock changes of the zone do to a `cron` that names times of day. One that runs every hour or oftener follows
    /// elapsed time through them.
    #[serde(default)]
    pub dst: Dst,

    /// No slot before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,

    /// No slot after this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_time: Option<Time>,

    /// After so many runs no slot is left; runs that somebody asked for do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_runs: Option<u64>,

    /// Each slot fires up to this later, by an amount that is its own, and always before the next slot. Whole seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^([0-9]{1,5}(h|m|s))+$"))]
    pub jitter: Option<Span>,

    /// Whether the creation of this object is a slot, too: its first. With a later `startTime`, that time is.
    #[serde(default)]
    pub run_on_create: bool,

    /// What happens to slots that passed while nobody could fire them.
    #[serde(default)]
    pub missed_runs: MissedRuns,

    /// A missed slot older than this is not fired any more.
    #[serde(default = "catch_up_window")]
    pub catch_up_window: Span,

    /// What happens when a slot is due and an earlier run has not ended.
    #[serde(default)]
    pub overlap: Overlap,

    /// While true, nothing fires; slots that pass meanwhile are not made up for.
    #[serde(default)]
    pub suspend: bool,

    /// After so many failed runs in a row nothing fires any more until a run that somebody asked for succeeds, or the spec
    /// changes. Slots that pass meanwhile are not made up for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub pause_after_failures: Option<u32>,

    /// How many runs that have ended `status.recent` shows.
    #[serde(default)]
    pub history: History,

    /// What is sent.
    pub task_template: TaskTemplate,
}

/// What clock changes do to times of day.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dst {
    /// A time that a change skips.
    #[serde(default)]
    pub skipped: SkippedTime,
    /// A time that a change repeats.
    #[serde(default)]
    pub repeated: RepeatedTime,
}

/// What becomes of a time of day that a clock change skips.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum SkippedTime {
    /// It fires at the first valid time after the gap.
    #[default]
    RunAtNextValid,
    /// It is no slot on that day.
    Skip,
}

/// What becomes of a time of day that a clock change repeats.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum RepeatedTime {
    /// It fires at its first pass.
    #[default]
    Once,
    /// It fires at both.
    Twice,
}

/// How many runs that have ended are shown.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// Of those that succeeded.
    #[serde(default = "history_succeeded")]
    #[schemars(range(min = 0, max = 20))]
    pub succeeded: u8,
    /// Of all others.
    #[serde(default = "history_failed")]
    #[schemars(range(min = 0, max = 20))]
    pub failed: u8,
}

impl Default for History {
    fn default() -> Self {
        Self {
            succeeded: history_succeeded(),
            failed: history_failed(),
        }
    }
}

/// When a task is sent.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.cron), has(self.every), has(self.at), has(self.solar)].filter(given, given).size() == 1").message("exactly one of cron, every, at and solar must be given"),
    validation = Rule::new("!has(self.every) || duration(self.every) >= duration('1s')").message("every must be at least 1s").field_path(".every"),
    validation = Rule::new("!has(self.at) || self.at < timestamp('9999-01-01T00:00:00Z')").message("at must be before the year 9999").field_path(".at")
)]
pub struct Schedule {
    /// Five fields as crontab(5) has them: minute, hour, day of month, month, day of week (0 and 7 are Sunday); or six, with
    /// the second before them; or one of @yearly, @monthly, @weekly, @daily and @hourly. Names of months and days, lists,
    /// ranges and steps; `L` for the last day of a month, `15W` for the weekday nearest the 15th, `FRI#2` for the second
    /// Friday, `FRI#L` for the last. Where day of month and day of week are both given, either will do; with `+` before the
    /// day of week both must hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 6, max = 200),
        pattern(r"^([^\s@]+( +[^\s@]+){4,5}|@(yearly|annually|monthly|weekly|daily|hourly))$")
    )]
    pub cron: Option<String>,
    /// A fixed distance, counted from `startTime` or else from the creation of this object. Whole seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^([0-9]{1,5}h|[0-9]{1,7}(m|s))+$"))]
    pub every: Option<Span>,
    /// One time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// What the sun does at a place, each day that it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solar: Option<Solar>,
}

/// An event of the sun, as Celery's `solar` has them.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Solar {
    /// What it does.
    pub event: SolarEvent,
    /// Degrees north of the equator; south is negative.
    #[schemars(range(min = -90, max = 90))]
    pub latitude: f64,
    /// Degrees east of Greenwich; west is negative.
    #[schemars(range(min = -180, max = 180))]
    pub longitude: f64,
}

/// What the sun does, by Celery's names.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SolarEvent {
    /// Its centre comes up to 18° below the horizon.
    DawnAstronomical,
    /// … to 12° below.
    DawnNautical,
    /// … to 6° below.
    DawnCivil,
    /// Its upper edge comes over the horizon.
    Sunrise,
    /// It is as high as it gets.
    SolarNoon,
    /// Its upper edge goes below the horizon.
    Sunset,
    /// Its centre goes down to 6° below.
    DuskCivil,
    /// … to 12° below.
    DuskNautical,
    /// … to 18° below the horizon.
    DuskAstronomical,
}

/// What happens to slots that passed while nobody could fire them.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum MissedRuns {
    /// The latest one is fired, the others are counted as missed.
    #[default]
    RunOnce,
    /// None is fired; all are counted as missed.
    Skip,
    /// All are fired, oldest first.
    RunAll,
}

/// What happens when a slot is due and an earlier run has not ended.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Overlap {
    /// The slot is skipped and counted as missed.
    #[default]
    Forbid,
    /// The slot is fired.
    Allow,
    /// The slot is kept, and fired when no run goes on; others that come while one is kept are skipped and counted as missed.
    BufferOne,
    /// The tasks of the earlier run are cancelled, then the slot is fired.
    Replace,
}

/// What is sent: one task, or several steps.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.task) != has(self.steps)").message("exactly one of task and steps must be given"),
    validation = Rule::new("!has(self.steps) || !has(self.argsFrom)").message("with steps, each step has its own args, kwargs and argsFrom").field_path(".steps"),
    validation = Rule::new("!has(self.steps) || self.steps.all(step, !has(step.dependsOn) || step.dependsOn.all(name, name != step.name && self.steps.exists(other, other.name == name)))").message("dependsOn names other steps of the same template").field_path(".steps")
)]
pub struct TaskTemplate {
    /// The TaskQueue it goes to.
    pub queue_ref: NameRef,
    /// Name of the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), pattern(r"^[!-~]+$"))]
    pub task: Option<String>,
    /// Positional arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::opaque_list")]
    pub args: Vec<serde_json::Value>,
    /// Named arguments.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    #[schemars(schema_with = "crate::schema::opaque_object")]
    pub kwargs: serde_json::Map<String, serde_json::Value>,
    /// Named arguments whose values stand elsewhere. One of a ConfigMap is read when the slot is fired; one of a Secret by the
    /// worker that runs the task, whose pool must allow it (`jobs.secrets`): it is in no message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub args_from: Vec<ArgFrom>,
    /// Tasks that are sent one after the other: each when those that it depends on have succeeded. With `targets`, all of them
    /// for each cluster, and a cluster where one fails does not touch the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 20), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub steps: Vec<Step>,
    /// Priority from 0, taken first, to 9.
    #[serde(default)]
    #[schemars(range(min = 0, max = 9))]
    pub priority: u8,
    /// A message that was not started for this long after its slot is dropped. That of a later step or wave counts from the time
    /// at which it is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_after: Option<Span>,
    /// After this the task is stopped and fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_limit: Option<Span>,
    /// What happens when the task asks for a retry; what is not given here is as the queue has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<TaskRetry>,
    /// More headers of the message. Names that begin with `umbel_` and those of the message format are taken.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// A key of which only one task is on its way at a time, of this schedule or of any: a slot that comes while another task
    /// has the key is skipped. With `targets` each cluster has its own, with `steps` each step. It is free when the task has
    /// ended, retries included, or after `expiresAfter` (24h if absent) and the time limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub unique_key: Option<String>,
    /// Clusters that the task is sent for, one message each. Without it: one message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<Targets>,
}

/// One of several tasks.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Its name among the steps.
    #[schemars(length(min = 1, max = 63), pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Name of the task.
    #[schemars(length(min = 1, max = 255), pattern(r"^[!-~]+$"))]
    pub task: String,
    /// Positional arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::opaque_list")]
    pub args: Vec<serde_json::Value>,
    /// Named arguments.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    #[schemars(schema_with = "crate::schema::opaque_object")]
    pub kwargs: serde_json::Map<String, serde_json::Value>,
    /// Named arguments whose values stand elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub args_from: Vec<ArgFrom>,
    /// After this the task is stopped and fails; without it, the template's time limit counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_limit: Option<Span>,
    /// What happens when it asks for a retry; what is not given here is as the template has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<TaskRetry>,
    /// Steps that must have succeeded before. Without this: the step before it; an empty list: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub depends_on: Option<Vec<String>>,
}

/// What happens to a task that asks for a retry, where it differs from what its queue says.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.initialBackoff) || !has(self.maxBackoff) || duration(self.initialBackoff) <= duration(self.maxBackoff)").message("initialBackoff must not be longer than maxBackoff").field_path(".initialBackoff"))]
pub struct TaskRetry {
    /// Attempts in all, the first one included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_attempts: Option<u32>,
    /// Wait before the second attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_backoff: Option<Span>,
    /// The longest wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_backoff: Option<Span>,
    /// By how much each wait is longer than the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.0, max = 100.0))]
    pub factor: Option<f64>,
    /// The part of each wait that is random.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub jitter: Option<f64>,
}

impl TaskRetry {
    /// This, and of `other` what is not given here.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            max_attempts: self.max_attempts.or(other.max_attempts),
            initial_backoff: self.initial_backoff.or(other.initial_backoff),
            max_backoff: self.max_backoff.or(other.max_backoff),
            factor: self.factor.or(other.factor),
            jitter: self.jitter.or(other.jitter),
        }
    }
}

/// A named argument whose value, a text, stands elsewhere: exactly one of the two says where.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.configMapKeyRef) != has(self.secretKeyRef)").message("exactly one of configMapKeyRef and secretKeyRef must be given"))]
pub struct ArgFrom {
    /// The argument's name.
    #[schemars(length(min = 1, max = 255))]
    pub name: String,
    /// A key of a ConfigMap of this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<ConfigMapKeyRef>,
    /// A key of a Secret of the worker's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKeyRef>,
}

/// TargetClusters of this namespace: exactly one of `clusters` and `selector`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.clusters) != has(self.selector)").message("exactly one of clusters and selector must be given"))]
pub struct Targets {
    /// By name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 1000), inner(length(min = 1, max = 253)), extend("x-kubernetes-list-type" = "set"))]
    pub clusters: Vec<String>,
    /// By label, chosen anew at each slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// What happens to a cluster that is not reachable when the run begins (condition `Reachable` is False).
    #[serde(default)]
    pub unreachable: Unreachable,
    /// How many clusters at a time, and when to stop. Without it: all at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Waves>,
}

/// What happens to a cluster that is not reachable.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Unreachable {
    /// Its tasks are sent like all others, and wait.
    #[default]
    Wait,
    /// It is left out.
    Skip,
    /// It counts as failed, and nothing is sent for it.
    Fail,
}

/// Waves: which clusters begin when.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.maxConcurrency) || (type(self.maxConcurrency) == int ? self.maxConcurrency >= 1 && self.maxConcurrency <= 100000 : string(self.maxConcurrency).matches('^([1-9][0-9]?|100)%$'))").message("maxConcurrency is a number of clusters from 1 on, or from 1% to 100%").field_path(".maxConcurrency"),
    validation = Rule::new("!has(self.maxFailures) || (type(self.maxFailures) == int ? self.maxFailures >= 0 && self.maxFailures <= 100000 : string(self.maxFailures).matches('^([0-9]{1,2}|100)%$'))").message("maxFailures is a number of clusters, or from 0% to 100%").field_path(".maxFailures"),
    validation = Rule::new("self.type != 'ProgressivePerGroup' || has(self.groups)").message("ProgressivePerGroup needs groups").field_path(".groups"),
    validation = Rule::new("self.type != 'All' || !(has(self.groups) || has(self.maxConcurrency))").message("with type All there are neither groups nor maxConcurrency").field_path(".type")
)]
pub struct Waves {
    /// Which clusters may be under way together.
    #[serde(default, rename = "type")]
    pub kind: WavesKind,
    /// So many clusters at a time: a number, or percent of all, rounded up. Without it, any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::int_or_string")]
    pub max_concurrency: Option<Amount>,
    /// When more clusters than this have failed, no other one begins: a number, or percent of all, rounded up. 0 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::int_or_string")]
    pub max_failures: Option<Amount>,
    /// A cluster makes room for another this long after its last task has succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_success_time: Option<Span>,
    /// A cluster that has not succeeded this long after it began counts as failed; what it has not begun is not sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_deadline: Option<Span>,
    /// Groups of clusters, in this order; a cluster belongs to the first that it matches, and those of none come last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 50), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub groups: Vec<ClusterGroup>,
}

/// Which clusters may be under way together.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum WavesKind {
    /// All of them.
    #[default]
    All,
    /// As many as `maxConcurrency` says, those of earlier groups first.
    Progressive,
    /// Those of one group; the next one begins when all of a group have ended, within the bound of failures.
    ProgressivePerGroup,
}

/// Clusters that belong together.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterGroup {
    /// Its name, for people.
    #[schemars(length(min = 1, max = 63), pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Its clusters, by label.
    pub selector: Selector,
}

fn time_zone() -> String {
    "UTC".to_owned()
}
fn catch_up_window() -> Span {
    Span::secs(600)
}
const fn history_succeeded() -> u8 {
    3
}
const fn history_failed() -> u8 {
    5
}

/// What a schedule did, and what it will do.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeriodicTaskStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The schedule in force, and since when its slots count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Effective>,
    /// The latest slot that was dealt with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Time>,
    /// The slot to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_schedule_time: Option<Time>,
    /// The latest slot whose tasks all succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_successful_time: Option<Time>,
    /// The latest slot that was fired, and how its tasks fare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<Run>,
    /// The latest runs that have ended, newest first, as `spec.history` says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub recent: Vec<PastRun>,
    /// Failed runs since the last that succeeded, or since the spec changed.
    #[serde(default)]
    pub consecutive_failures: u32,
    /// How many runs have not ended: those that are named below.
    #[serde(default)]
    pub active_runs: u32,
    /// Slots of runs that have not ended, oldest first; at most the latest 100. How an older one ends is not noted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub active: Vec<Time>,
    /// Times of runs that were asked for and have not ended, oldest first; likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub active_requests: Vec<Time>,
    /// The latest run that was asked for by the annotation `umbel.dev/run-now`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_request: Option<Request>,
    /// A slot that waits for the end of an earlier run (`overlap: BufferOne`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffered: Option<Time>,
    /// Slots that were fired.
    #[serde(default)]
    pub runs: u64,
    /// Slots that were not fired though they came: by policy, by overlap or for want of a cluster.
    #[serde(default)]
    pub missed: u64,
    /// What holds and what does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// A schedule in force. A new one, and one that is resumed, makes nothing up for the time before.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Effective {
    /// The schedule in words.
    pub schedule: String,
    /// No slot before this.
    pub since: Time,
}

/// A slot that was fired.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// The slot.
    pub slot: Time,
    /// Messages that were sent for it.
    pub total: u32,
    /// Tasks that succeeded.
    #[serde(default)]
    pub succeeded: u32,
    /// Tasks that failed, expired or were revoked.
    #[serde(default)]
    pub failed: u32,
    /// How far its clusters are, where it is for clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clusters: Option<ClusterProgress>,
}

/// How far the clusters of a run are.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterProgress {
    /// All of them.
    pub total: u32,
    /// Those whose tasks have all succeeded.
    pub succeeded: u32,
    /// Those with a task that did not, or that took too long.
    pub failed: u32,
    /// Those that have begun.
    pub running: u32,
    /// Those of which nothing was sent yet.
    pub pending: u32,
    /// Those that never began: too many others had failed, or the run was cancelled.
    #[serde(default)]
    pub skipped: u32,
    /// Names of those that failed, at most 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub failed_names: Vec<String>,
}

/// A run that has ended.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PastRun {
    /// The slot, or the time for which it was asked.
    pub slot: Time,
    /// How it ended.
    pub outcome: Outcome,
    /// Messages that were sent for it.
    pub total: u32,
    /// Tasks that succeeded.
    #[serde(default)]
    pub succeeded: u32,
    /// Tasks that failed, expired or were revoked.
    #[serde(default)]
    pub failed: u32,
    /// Whether it was asked for, and no slot.
    #[serde(default)]
    pub is_request: bool,
}

/// How a run ended.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum Outcome {
    /// All its tasks succeeded.
    Succeeded,
    /// Some did not.
    Failed,
    /// The broker holds nothing of it any more, and it is not known how it ended.
    Lost,
    /// Its tasks were cancelled for a later slot (`overlap: Replace`).
    Replaced,
}

/// A run that somebody asked for.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// The text of the annotation.
    pub asked: String,
    /// Who asked, as far as is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// What came of it, in words.
    pub answer: String,
}
