//! Clusters that are targets: contexts of a kubeconfig, and clients for them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::ByteString;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::discovery::{ApiResource, Scope};
use kube::{Client, Config, Discovery};
use serde_json::{Map, Value, json};

use crate::home::said;

/// A person waits.
const CONNECT: Duration = Duration::from_secs(5);
/// Silence within an answer.
const SILENCE: Duration = Duration::from_secs(20);

/// The kubeconfig that holds contexts of targets.
pub(crate) fn read(file: Option<&Path>) -> anyhow::Result<Kubeconfig> {
    match file {
        Some(file) => Kubeconfig::read_from(file)
            .map_err(unquoted)
            .with_context(|| format!("read {}", file.display())),
        None => Kubeconfig::read().map_err(unquoted).context("read the kubeconfig"),
    }
}

/// What is wrong with a kubeconfig. The parser's own words quote the lines around it, and these hold credentials.
pub(crate) fn unquoted(err: KubeconfigError) -> anyhow::Error {
    match err {
        KubeconfigError::Parse(err) => {
            let at = err
                .location()
                .map(|at| format!(" (line {}, column {})", at.line(), at.column()));
            anyhow::anyhow!("it is no kubeconfig{}", at.unwrap_or_default())
        }
        other => other.into(),
    }
}

/// A client with the rights that a context has, by whatever means it logs in.
pub(crate) async fn client(source: &Kubeconfig, context: &str) -> anyhow::Result<Client> {
    let options = KubeConfigOptions {
        context: Some(context.to_owned()),
        ..KubeConfigOptions::default()
    };
    let config = Config::from_custom_kubeconfig(source.clone(), &options).await;
    let mut config = config.with_context(|| format!("use context {context}"))?;
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    config.write_timeout = Some(SILENCE);
    config.default_retry = false;
    Client::try_from(config).with_context(|| format!("use the credential of context {context}"))
}

/// One context as a kubeconfig of its own, with the content of the files that it names. With a token that is given, the
/// context's own credential stays out of it.
///
/// Whatever else it names stays in, so that it is refused by name and not silently left out.
pub(crate) fn extract(source: &Kubeconfig, context: &str, token: Option<&str>) -> anyhow::Result<String> {
    let names: Vec<&str> = source.contexts.iter().map(|named| named.name.as_str()).collect();
    let found = source.contexts.iter().find(|named| named.name == context);
    let found = found.and_then(|named| named.context.as_ref());
    let found = found.with_context(|| format!("no context {context}; there are: {}", names.join(", ")))?;
    let cluster = source.clusters.iter().find(|named| named.name == found.cluster);
    let cluster = cluster.and_then(|named| named.cluster.as_ref());
    let cluster = cluster.with_context(|| format!("context {context} names a cluster that is not there"))?;
    let mut cluster = object(serde_json::to_value(cluster)?);
    inline(&mut cluster, "certificate-authority")?;

    let user = source
        .auth_infos
        .iter()
        .find(|named| Some(&named.name) == found.user.as_ref());
    let user = user.and_then(|named| named.auth_info.as_ref());
    let user = user.with_context(|| format!("context {context} names a user that is not there"))?;
    let mut user = match token {
        Some(token) => object(json!({ "token": token })),
        None => object(serde_json::to_value(user)?),
    };
    inline(&mut user, "client-certificate")?;
    inline(&mut user, "client-key")?;
    for map in [&mut cluster, &mut user] {
        map.remove("extensions");
        map.retain(|_, value| !value.is_null());
    }
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "target",
        "contexts": [{"name": "target", "context": {"cluster": "target", "user": "target"}}],
        "clusters": [{"name": "target", "cluster": cluster}],
        "users": [{"name": "target", "user": user}],
    });
    serde_saphyr::to_string(&text).context("write the kubeconfig")
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    }
}

/// Replaces `field`, a path, by `field-data`, its content. Content that is there already wins, as with kubectl.
fn inline(map: &mut Map<String, Value>, field: &str) -> anyhow::Result<()> {
    let data = format!("{field}-data");
    let path = map.remove(field);
    if map
        .get(&data)
        .and_then(Value::as_str)
        .is_some_and(|data| !data.is_empty())
    {
        return Ok(());
    }
    if let Some(path) = path.as_ref().and_then(Value::as_str).filter(|path| !path.is_empty()) {
        let content = std::fs::read(path).with_context(|| format!("read {field} from {path}"))?;
        map.insert(data, serde_json::to_value(ByteString(content))?); // Which is base64.
    }
    Ok(())
}

/// The kinds that a cluster serves, each in the version that it prefers.
pub(crate) struct Kinds(Vec<(ApiResource, Scope)>);

impl Kinds {
    /// Asks for them.
    pub(crate) async fn of(client: &Client) -> anyhow::Result<Kinds> {
        // In two questions, and a group of which nobody answers is merely empty. Servers before 1.26 are asked one by one.
        let mut discovery = Discovery::new(client.clone()).run_aggregated().await;
        if discovery.is_err() {
            discovery = Discovery::new(client.clone()).run().await;
        }
        let discovery = discovery.map_err(|err| said(err, "ask the target for its kinds"))?;
        let all = discovery
            .groups()
            .flat_map(kube::discovery::ApiGroup::recommended_resources);
        Ok(Kinds(all.map(|(resource, can)| (resource, can.scope)).collect()))
    }

    /// By `Kind`, `group/Kind`, `plural` or `plural.group`; `group/` and `.group` tell those of one name apart.
    pub(crate) fn find(&self, text: &str) -> anyhow::Result<(&ApiResource, &Scope)> {
        let is_meant = |resource: &ApiResource| {
            let (group, name) = match (text.split_once('/'), text.split_once('.')) {
                (Some((group, kind)), _) => (Some(group), kind),
                (None, Some((plural, group))) => (Some(group), plural),
                (None, None) => (None, text),
            };
            group.is_none_or(|group| resource.group == group) && (resource.kind == name || resource.plural == name)
        };
        let mut found: Vec<&(ApiResource, Scope)> = self.0.iter().filter(|(resource, _)| is_meant(resource)).collect();
        // What has a group beside the core's is meant only with it, as with kubectl.
        if found.len() > 1 && found.iter().any(|(resource, _)| resource.group.is_empty()) {
            found.retain(|(resource, _)| resource.group.is_empty());
        }
        match found[..] {
            [(resource, scope)] => Ok((resource, scope)),
            [] => bail!("the target serves no kind {text}"),
            _ => {
                let names: Vec<String> = found.iter().map(|(resource, _)| named(resource)).collect();
                bail!("kind {text} is one of: {}", names.join(", "))
            }
        }
    }
}

/// As `kubectl` writes a resource: `deployments.apps`.
pub(crate) fn named(resource: &ApiResource) -> String {
    if resource.group.is_empty() {
        resource.plural.clone()
    } else {
        format!("{}.{}", resource.plural, resource.group)
    }
}
