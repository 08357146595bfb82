//! Manifests from elsewhere than the message: `manifestsFrom`.
//!
//! ConfigMaps and Secrets are files that follow them, as those of arguments are; only those that the pool names are there,
//! and only those are looked for. URLs go through the machinery of `umbel.http`, with hosts of their own.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use super::SettingsError;
use super::http::{Http, HttpRules};
use super::manifest::{self, Input, MAX_BYTES, Manifest};
use super::rules::{Allow, SourceRules};
use super::site;
use crate::job::{Failure, JobContext};

/// Sources of one message: more is a mistake.
const MOST: usize = 20;

/// What `manifestsFrom` of a message may name.
pub(super) struct Sources {
    rules: SourceRules,
    folder: PathBuf,
    http: Http,
}

/// One source, as a message names it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Source {
    config_map: Option<KeyOf>,
    secret: Option<KeyOf>,
    url: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyOf {
    name: String,
    key: String,
}

impl Sources {
    pub(super) fn new(rules: SourceRules, folder: PathBuf) -> Result<Sources, SettingsError> {
        let hosts = rules.hosts.clone();
        Ok(Sources {
            rules,
            folder,
            http: Http::new(&HttpRules { hosts })?,
        })
    }

    /// The manifests of a message in the order in which they are applied: its own and those of its sources, held against the
    /// rules. `namespace` is for objects that name none.
    pub(super) async fn read(
        &self,
        ctx: &JobContext,
        manifests: Option<Value>,
        from: &[Source],
        namespace: Option<&str>,
        allow: Allow<'_>,
    ) -> Result<Vec<Manifest>, Failure> {
        let inputs = self.gather(ctx, manifests, from).await?;
        manifest::read(&inputs, namespace, allow).map_err(|why| site::rejected(&why))
    }

    async fn gather(&self, ctx: &JobContext, manifests: Option<Value>, from: &[Source]) -> Result<Vec<Input>, Failure> {
        if from.len() > MOST {
            return Err(Failure::type_error(format!("manifestsFrom: more than {MOST} sources")));
        }
        if manifests.is_none() && from.is_empty() {
            return Err(Failure::type_error(
                "keyword arguments: missing field `manifests`, and there is no `manifestsFrom`",
            ));
        }
        let mut inputs: Vec<Input> = manifests.into_iter().map(Input::of_message).collect();
        for one in from {
            let (from, text) = self.one(ctx, one).await?;
            inputs.push(Input {
                from,
                value: Value::String(text),
            });
        }
        Ok(inputs)
    }

    async fn one(&self, ctx: &JobContext, from: &Source) -> Result<(String, String), Failure> {
        match from {
            Source {
                config_map: Some(of),
                secret: None,
                url: None,
            } => {
                self.file("ConfigMap", "configmaps", "configMaps", &self.rules.config_maps, of)
                    .await
            }
            Source {
                config_map: None,
                secret: Some(of),
                url: None,
            } => self.file("Secret", "secrets", "secrets", &self.rules.secrets, of).await,
            Source {
                config_map: None,
                secret: None,
                url: Some(url),
            } => {
                let text = self.http.text(ctx, url).await.map_err(|why| Failure {
                    message: format!("manifestsFrom: {}", why.message),
                    ..why
                })?;
                // Path and query may hold a credential.
                let host = url::Url::parse(url).map(|url| url.origin().ascii_serialization());
                Ok((host.unwrap_or_default(), text))
            }
            _ => Err(Failure::type_error(
                "manifestsFrom: each source is one of configMap, secret and url",
            )),
        }
    }

    async fn file(
        &self,
        kind: &str,
        folder: &str,
        rule: &str,
        allowed: &[String],
        KeyOf { name, key }: &KeyOf,
    ) -> Result<(String, String), Failure> {
        if !allowed.contains(name) {
            return Err(Failure::permanent(
                "PermissionError",
                format!("this pool does not let manifests come from {kind} {name:?} (spec.jobs.apply.sources.{rule})"),
            ));
        }
        // As the API server has them; a folder's own names are none.
        let is_key = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if key.is_empty() || key.starts_with("..") || key == "." || !key.chars().all(is_key) {
            return Err(Failure::permanent(
                "ValueError",
                format!("{key:?} is no key of a {kind}"),
            ));
        }
        let what = format!("{kind} {name}, key {key}");
        // It may be on its way: kubelets follow changes within a minute or two.
        let absent = |err: std::io::Error| Failure::transient(format!("{what}: {}", err.kind()));
        let path = self.folder.join(folder).join(name).join(key);
        let size = tokio::fs::metadata(&path).await.map_err(absent)?.len();
        if size > MAX_BYTES as u64 {
            let text = format!("{what}: the manifests have {size} bytes, more than {MAX_BYTES}");
            return Err(Failure::permanent("ValueError", text));
        }
        let bytes = tokio::fs::read(&path).await.map_err(absent)?;
        let text =
            String::from_utf8(bytes).map_err(|_| Failure::permanent("ValueError", format!("{what}: it is no text")))?;
        Ok((what, text))
    }
}
