//! The built-in jobs: some work at target clusters, some run programs or call addresses.
//!
//! They know [`crate::job`] and [`umbel_clusters`], not Redis. What they may touch comes from the pool (its environment),
//! never from a message: a message names a cluster, a program or an address, and what to do there.

mod apply;
mod delete;
mod diff;
mod discovery;
pub(crate) mod echo;
mod exec;
mod fence;
mod get;
mod goal;
mod hosts;
mod http;
mod inventory;
mod label_nodes;
pub(crate) mod leash;
mod manifest;
mod path;
mod pulse;
mod quantity;
mod restart;
mod rules;
mod scale;
mod set;
mod site;
pub(crate) mod sleep;
mod sources;
mod sync;
mod target;
#[cfg(test)]
mod tests;
mod wait;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use umbel_clusters::Registry;

pub use exec::{ExecRules, Program};
pub use http::HttpRules;
pub use label_nodes::LabelRules;
pub use rules::{ObjectRules, SourceRules};

use crate::job::Job;

/// What a pool lets its built-in jobs do, as `UMBEL_JOBS` says it. A job that is not named is an unknown task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// `umbel.cluster.apply`, if the pool runs it.
    #[serde(default)]
    pub apply: Option<ObjectRules>,
    /// `umbel.cluster.prune`, and `prune` of an apply.
    #[serde(default)]
    pub prune: Option<ObjectRules>,
    /// `umbel.cluster.delete`.
    #[serde(default)]
    pub delete: Option<ObjectRules>,
    /// `umbel.cluster.diff`.
    #[serde(default)]
    pub diff: Option<ObjectRules>,
    /// `umbel.cluster.get`.
    #[serde(default)]
    pub get: Option<ObjectRules>,
    /// `umbel.cluster.label-nodes`.
    #[serde(default)]
    pub label_nodes: Option<LabelRules>,
    /// `umbel.cluster.restart`.
    #[serde(default)]
    pub restart: Option<ObjectRules>,
    /// `umbel.cluster.scale`.
    #[serde(default)]
    pub scale: Option<ObjectRules>,
    /// `umbel.cluster.wait`.
    #[serde(default)]
    pub wait: Option<ObjectRules>,
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
    #[error("host `{host}`: {reason}")]
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

/// The jobs that a pool with these clusters and settings runs; ConfigMaps and Secrets with manifests are in `folder`.
///
/// # Errors
/// [`SettingsError`] names what cannot be allowed.
pub fn builtin(clusters: &Registry, settings: Settings, folder: PathBuf) -> Result<Vec<Box<dyn Job>>, SettingsError> {
    let Settings {
        apply,
        prune,
        delete,
        diff,
        get,
        label_nodes,
        restart,
        scale,
        wait,
        exec: _,
        http: _,
        secrets: _,
    } = settings;
    let sources = apply.as_ref().and_then(|rules| rules.sources.clone());
    let sources = Arc::new(sources::Sources::new(sources.unwrap_or_default(), folder)?);
    let mut jobs: Vec<Box<dyn Job>> = vec![Box::new(sync::Sync::new(clusters.clone()))];
    if let Some(rules) = apply {
        let apply = apply::Apply::new(clusters.clone(), rules, prune.clone(), Arc::clone(&sources));
        jobs.push(Box::new(apply));
    }
    if let Some(rules) = prune {
        jobs.push(Box::new(apply::Prune::new(
            clusters.clone(),
            rules,
            Arc::clone(&sources),
        )));
    }
    if let Some(rules) = delete {
        jobs.push(Box::new(delete::Delete::new(
            clusters.clone(),
            rules,
            Arc::clone(&sources),
        )));
    }
    if let Some(rules) = diff {
        jobs.push(Box::new(diff::Diff::new(clusters.clone(), rules, sources)));
    }
    if let Some(rules) = get {
        jobs.push(Box::new(get::Get::new(clusters.clone(), rules)));
    }
    if let Some(rules) = label_nodes {
        jobs.push(Box::new(label_nodes::LabelNodes::new(clusters.clone(), rules)));
    }
    if let Some(rules) = restart {
        jobs.push(Box::new(restart::Restart::new(clusters.clone(), rules)));
    }
    if let Some(rules) = scale {
        jobs.push(Box::new(scale::Scale::new(clusters.clone(), rules)));
    }
    if let Some(rules) = wait {
        jobs.push(Box::new(wait::Wait::new(clusters.clone(), rules)));
    }
    Ok(jobs)
}

/// The jobs that a pool with these settings (`UMBEL_JOBS`) runs without any cluster. Leases have this length and are
/// renewed that often.
///
/// # Errors
/// [`SettingsError`] names what cannot be allowed.
pub fn local(json: &str, lease: Duration, renewal: Duration) -> Result<Vec<Box<dyn Job>>, SettingsError> {
    let settings = Settings::parse(json).map_err(SettingsError::Json)?;
    let mut jobs: Vec<Box<dyn Job>> = Vec::new();
    if let Some(rules) = settings.exec {
        jobs.push(Box::new(exec::Exec::new(rules, lease, renewal)?));
    }
    if let Some(rules) = settings.http {
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
            "apply": {"namespaces": ["shop"], "kinds": ["ConfigMap"], "clusterKinds": ["Namespace"], "force": true,
                "sources": {"configMaps": ["site"], "secrets": ["keys"], "hosts": ["git.example.com"]}},
            "prune": {"namespaces": ["shop"], "kinds": ["ConfigMap"]},
            "delete": {"namespaces": ["shop"], "kinds": ["ConfigMap"], "anyOwner": true},
            "diff": {"namespaces": ["shop"], "kinds": ["ConfigMap"]},
            "get": {"clusterKinds": ["Node"]},
            "labelNodes": {"prefixes": ["fleet.example.com/"]},
            "restart": {"namespaces": ["shop"], "kinds": ["apps/Deployment"]},
            "scale": {"namespaces": ["shop"], "kinds": ["apps/Deployment"]},
            "wait": {"namespaces": ["shop"], "kinds": ["apps/Deployment"]},
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
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let objects = |kind: &str| {
            Some(ObjectRules {
                namespaces: names(&["shop"]),
                kinds: names(&[kind]),
                ..ObjectRules::default()
            })
        };
        assert_eq!(
            read,
            Settings {
                apply: objects("ConfigMap").map(|rules| ObjectRules {
                    cluster_kinds: names(&["Namespace"]),
                    force: true,
                    sources: Some(SourceRules {
                        config_maps: names(&["site"]),
                        secrets: names(&["keys"]),
                        hosts: names(&["git.example.com"]),
                    }),
                    ..rules
                }),
                prune: objects("ConfigMap"),
                delete: objects("ConfigMap").map(|rules| ObjectRules {
                    any_owner: true,
                    ..rules
                }),
                diff: objects("ConfigMap"),
                get: Some(ObjectRules {
                    cluster_kinds: names(&["Node"]),
                    ..ObjectRules::default()
                }),
                label_nodes: Some(LabelRules {
                    prefixes: names(&["fleet.example.com/"]),
                }),
                restart: objects("apps/Deployment"),
                scale: objects("apps/Deployment"),
                wait: objects("apps/Deployment"),
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
