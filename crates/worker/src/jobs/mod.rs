//! The built-in jobs that work at target clusters.
//!
//! They know [`crate::job`] and [`umbel_clusters`], not Redis. What they may touch comes from the pool (its environment),
//! never from a message: a message names a cluster and what to do there.

mod apply;
pub(crate) mod echo;
mod fence;
mod manifest;
mod quantity;
pub(crate) mod sleep;
mod sync;
mod target;
#[cfg(test)]
mod tests;

use serde::Deserialize;
use umbel_clusters::Registry;

use crate::job::Job;

/// What a pool lets its built-in jobs do, as `UMBEL_JOBS` says it. A job that is not named is an unknown task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `umbel.cluster.apply`, if the pool runs it.
    #[serde(default)]
    pub apply: Option<ApplyRules>,
}

/// What `umbel.cluster.apply` may write at a target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyRules {
    /// Namespaces, by name.
    pub namespaces: Vec<String>,
    /// Kinds: `Kind` of the core group, `group/Kind` of another.
    pub kinds: Vec<String>,
}

impl Settings {
    /// Reads `UMBEL_JOBS`; empty text enables nothing.
    ///
    /// # Errors
    /// The JSON parser's message.
    pub fn parse(json: &str) -> Result<Settings, serde_json::Error> {
        if json.trim().is_empty() {
            Ok(Settings::default())
        } else {
            serde_json::from_str(json)
        }
    }
}

/// The jobs that a pool with these clusters and settings runs.
pub fn builtin(clusters: &Registry, settings: Settings) -> Vec<Box<dyn Job>> {
    let Settings { apply } = settings;
    let mut jobs: Vec<Box<dyn Job>> = vec![Box::new(sync::Sync::new(clusters.clone()))];
    if let Some(rules) = apply {
        jobs.push(Box::new(apply::Apply::new(clusters.clone(), rules)));
    }
    jobs
}
