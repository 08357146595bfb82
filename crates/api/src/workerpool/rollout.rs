//! How a new template replaces the old one, and how few pods of a pool may be there.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::span::Span;

/// How a new template replaces the old one.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("type(self.maxSurge) == int ? self.maxSurge >= 1 && self.maxSurge <= 10000 : string(self.maxSurge).matches('^([1-9][0-9]?|1[0-9]{2}|200)%$')").message("maxSurge is a number of pods from 1 on, or from 1% to 200%").field_path(".maxSurge"))]
#[x_kube(validation = Rule::new("duration(self.drainTimeout) <= duration('720h')").message("drainTimeout lasts at most 720h").field_path(".drainTimeout"))]
pub struct Rollout {
    /// What happens to the pods of older templates.
    #[serde(default, rename = "type")]
    pub kind: RolloutKind,
    /// So many pods more than the pool's size may work or start while a template replaces another: a number, or percent of
    /// the size, rounded up. Pods that take no more work do not count.
    #[serde(default = "max_surge")]
    #[schemars(schema_with = "crate::schema::int_or_string")]
    pub max_surge: Amount,
    /// A pod of an older template that is not needed takes no more work. If it still works so long after that, it is
    /// stopped, and its tasks have `drain.gracePeriod` to end.
    #[serde(default = "drain_timeout")]
    pub drain_timeout: Span,
    /// So many older templates may have pods at a time. Those of still older ones have their queues' `timeLimit` to end
    /// their tasks, if that is shorter.
    #[serde(default = "keep_draining")]
    #[schemars(range(min = 0, max = 20))]
    pub keep_draining: u32,
}

/// What happens to the pods of older templates.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum RolloutKind {
    /// Each template has a Deployment of its own. As pods of the new one become ready, as many of the old ones take no
    /// more work, and go when they are idle.
    #[default]
    Drain,
}

/// So many, or so many percent.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(untagged)]
pub enum Amount {
    /// A number.
    Count(u32),
    /// Percent, such as `25%`.
    Percent(String),
}

impl Amount {
    /// What it is of `whole`, rounded up.
    pub fn of(&self, whole: u32) -> u32 {
        match self {
            Self::Count(count) => *count,
            Self::Percent(text) => {
                let percent: u64 = text.trim_end_matches('%').parse().unwrap_or(0);
                u32::try_from((u64::from(whole) * percent).div_ceil(100)).unwrap_or(u32::MAX)
            }
        }
    }
}

/// How few pods of a pool voluntary disruptions may leave: exactly one of the two.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.minAvailable) != has(self.maxUnavailable)").message("give minAvailable or maxUnavailable"))]
#[x_kube(validation = Rule::new("!has(self.minAvailable) || (type(self.minAvailable) == int ? self.minAvailable >= 0 && self.minAvailable <= 10000 : string(self.minAvailable).matches('^([0-9]{1,2}|100)%$'))").message("minAvailable is a number of pods, or from 0% to 100%").field_path(".minAvailable"))]
#[x_kube(validation = Rule::new("!has(self.maxUnavailable) || (type(self.maxUnavailable) == int ? self.maxUnavailable >= 0 && self.maxUnavailable <= 10000 : string(self.maxUnavailable).matches('^([0-9]{1,2}|100)%$'))").message("maxUnavailable is a number of pods, or from 0% to 100%").field_path(".maxUnavailable"))]
pub struct Budget {
    /// So many stay: a number, or percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::int_or_string")]
    pub min_available: Option<Amount>,
    /// So many may be away: a number, or percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::int_or_string")]
    pub max_unavailable: Option<Amount>,
}

fn max_surge() -> Amount {
    Amount::Percent("25%".to_owned())
}
fn drain_timeout() -> Span {
    Span::secs(6 * 3600)
}
const fn keep_draining() -> u32 {
    3
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            kind: RolloutKind::default(),
            max_surge: max_surge(),
            drain_timeout: drain_timeout(),
            keep_draining: keep_draining(),
        }
    }
}
