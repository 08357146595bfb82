//! The built-in jobs: some work at target clusters, some run programs or call addresses.
//!
//! They know [`crate::job`] and [`umbel_clusters`], not Redis. What they may touch comes from the pool (its environment),
//! never from a message: a message names a cluster, a program or an address, and what to do there.

mod apply;
pub(crate) mod echo;
mod exec;
mod fence;
mod hosts;
mod http;
pub(crate) mod leash;
mod manifest;
mod pulse;
mod quantity;
pub(crate) mod sleep;
mod sync;
mod target;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::Deserialize;
use umbel_clusters::Registry;

pub use exec::{ExecRules, Program};
pub use http::HttpRules;

use crate::job::Job;

/// What a pool lets its built-in jobs do, as `UMBEL_JOBS` says it. A job that is not named is an unknown task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `umbel.cluster.apply`, if the pool runs it.
    #[serde(default)]
    pub apply: Option<ApplyRules>,
    /// `umbel.exec`, if the pool runs it.
    #[serde(default)]
    pub exec: Option<ExecRules>,
    /// `umbel.http`, if the pool runs it.
    #[serde(default)]
    pub http: Option<HttpRules>,
    /// Secrets whose values tasks may get as arguments.
    #[serde(default)]
    pub secrets: Option<SecretRules>,
}

/// Secrets whose values tasks may get as arguments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretRules {
    /// Their names.
    pub names: Vec<String>,
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

/// Settings that no worker can run with.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// No JSON of these settings.
    #[error("not the settings of built-in jobs")]
    Json(#[source] serde_json::Error),
    /// A program that cannot be allowed.
    #[error("exec: program `{name}`: {reason}")]
    Program {
        /// Its name.
        name: String,
        /// Why not.
        reason: String,
    },
    /// A host that cannot be allowed.
    #[error("http: host `{host}`: {reason}")]
    Host {
        /// As the pool names it.
        host: String,
        /// Why not.
        reason: String,
    },
    /// No thread to watch over programs.
    #[error("exec: start a thread")]
    Thread(#[source] std::io::Error),
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
    let Settings {
        apply,
        exec: _,
        http: _,
        secrets: _,
    } = settings;
    let mut jobs: Vec<Box<dyn Job>> = vec![Box::new(sync::Sync::new(clusters.clone()))];
    if let Some(rules) = apply {
        jobs.push(Box::new(apply::Apply::new(clusters.clone(), rules)));
    }
    jobs
}

/// The jobs that a pool with these settings (`UMBEL_JOBS`) runs without any cluster. Leases have this length and are
/// renewed that often.
///
/// # Errors
/// [`SettingsError`] names what cannot be allowed.
pub fn local(json: &str, lease: Duration, renewal: Duration) -> Result<Vec<Box<dyn Job>>, SettingsError> {
    let Settings {
        apply: _,
        exec,
        http,
        secrets: _,
    } = Settings::parse(json).map_err(SettingsError::Json)?;
    let mut jobs: Vec<Box<dyn Job>> = Vec::new();
    if let Some(rules) = exec {
        jobs.push(Box::new(exec::Exec::new(rules, lease, renewal)?));
    }
    if let Some(rules) = http {
        jobs.push(Box::new(http::Http::new(&rules)?));
    }
    Ok(jobs)
}

#[cfg(test)]
mod settings {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_pool_says_is_what_its_worker_reads() {
        let pool: umbel_api::workerpool::Jobs = serde_json::from_value(json!({
            "apply": {"namespaces": ["shop"], "kinds": ["ConfigMap"]},
            "exec": {"programs": [
                {"name": "resize", "path": "/usr/bin/resize", "args": ["--fast"], "env": ["S3_BUCKET"]},
                {"name": "plain", "path": "/usr/bin/plain"},
            ]},
            "http": {"hosts": ["api.example.com"]},
            "secrets": {"names": ["smtp"]},
        }))
        .unwrap();
        let program = |name: &str, args: &[&str], env: &[&str]| Program {
            name: name.into(),
            path: format!("/usr/bin/{name}"),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            env: env.iter().map(|&name| name.to_owned()).collect(),
        };
        let read = Settings::parse(&json!(pool).to_string()).unwrap();
        assert_eq!(
            read,
            Settings {
                apply: Some(ApplyRules {
                    namespaces: vec!["shop".into()],
                    kinds: vec!["ConfigMap".into()],
                }),
                exec: Some(ExecRules {
                    programs: vec![
                        program("resize", &["--fast"], &["S3_BUCKET"]),
                        program("plain", &[], &[])
                    ],
                }),
                http: Some(HttpRules {
                    hosts: vec!["api.example.com".into()],
                }),
                secrets: Some(SecretRules {
                    names: vec!["smtp".into()],
                }),
            }
        );
        let none = json!(umbel_api::workerpool::Jobs::default()).to_string();
        assert_eq!(Settings::parse(&none).unwrap(), Settings::default());
    }
}
