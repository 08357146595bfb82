//! `umbel cluster join`: a context of a kubeconfig becomes a Secret and a TargetCluster.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams};
use kube::config::Kubeconfig;
use serde_json::{Map, Value, json};
use umbel_api::TargetCluster;
use umbel_clusters::kubeconfig;

use crate::args::{Format, Global, Join};
use crate::home::{Home, said};
use crate::output;

/// Key of the Secret.
const KEY: &str = "kubeconfig";
/// Field manager of what this program writes.
const MANAGER: &str = "umbel-cli";
/// Says that a Secret is ours to write again.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

pub(crate) async fn run(global: &Global, join: &Join) -> anyhow::Result<()> {
    let Join {
        name,
        from_context,
        from_kubeconfig,
        labels,
    } = join;
    let source = read(from_kubeconfig.as_deref().or(global.kubeconfig.as_deref()))?;
    let text = extract(source, from_context)?;
    // Refused here with the words that the worker and the operator would use later.
    let accepted = kubeconfig::parse(text.as_bytes())
        .with_context(|| format!("context {from_context} can't be used by workers"))?;

    let Home { client, namespace } = Home::open(global).await?;
    let secret_name = format!("umbel-cluster-{name}");
    let secrets = Api::<Secret>::namespaced(client.clone(), &namespace);
    let there = secrets
        .get_metadata_opt(&secret_name)
        .await
        .map_err(|err| said(err, format!("look for Secret {namespace}/{secret_name}")))?;
    if let Some(there) = there
        && there
            .metadata
            .labels
            .unwrap_or_default()
            .get(MANAGED_BY)
            .map(String::as_str)
            != Some("umbel")
    {
        bail!("Secret {namespace}/{secret_name} exists and is not Umbel's; it is left as it is");
    }

    let params = PatchParams::apply(MANAGER).force();
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(secret_name.clone()),
            namespace: Some(namespace.clone()),
            labels: Some(BTreeMap::from([(MANAGED_BY.to_owned(), "umbel".to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(KEY.to_owned(), ByteString(text.into_bytes()))])),
        ..Secret::default()
    };
    let written = secrets.patch(&secret_name, &params, &Patch::Apply(&secret)).await;
    written.map_err(|err| said(err, format!("write Secret {namespace}/{secret_name}")))?;

    let labels: BTreeMap<&str, &str> = labels
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let target = json!({
        "apiVersion": "umbel.dev/v1alpha1", "kind": "TargetCluster",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"kubeconfigSecretRef": {"name": secret_name, "key": KEY}},
    });
    let targets = Api::<TargetCluster>::namespaced(client, &namespace);
    let target = targets
        .patch(name, &params, &Patch::Apply(&target))
        .await
        .map_err(|err| said(err, format!("write TargetCluster {namespace}/{name}")))?;

    output::say(&format!(
        "TargetCluster {namespace}/{name} leads to {} by Secret {secret_name}",
        accepted.server()
    ));
    match global.output {
        Format::Json | Format::Yaml => output::value(global.output, &serde_json::to_value(&target)?),
        Format::Table | Format::Wide | Format::Name => output::line(&format!("targetcluster.umbel.dev/{name}")),
    }
}

fn read(file: Option<&Path>) -> anyhow::Result<Kubeconfig> {
    match file {
        Some(file) => Kubeconfig::read_from(file).with_context(|| format!("read {}", file.display())),
        None => Kubeconfig::read().context("read the kubeconfig"),
    }
}

/// One context as a kubeconfig of its own, with the content of the certificate files that it names.
///
/// Whatever else it names stays in, so that it is refused by name and not silently left out.
fn extract(source: Kubeconfig, context: &str) -> anyhow::Result<String> {
    let names: Vec<String> = source.contexts.iter().map(|named| named.name.clone()).collect();
    let found = source
        .contexts
        .into_iter()
        .find(|named| named.name == context)
        .and_then(|named| named.context);
    let found = found.with_context(|| format!("no context {context}; there are: {}", names.join(", ")))?;
    let cluster = source.clusters.into_iter().find(|named| named.name == found.cluster);
    let cluster = cluster.and_then(|named| named.cluster);
    let cluster = cluster.with_context(|| format!("context {context} names a cluster that is not there"))?;
    let user = source
        .auth_infos
        .into_iter()
        .find(|named| Some(&named.name) == found.user.as_ref());
    let user = user.and_then(|named| named.auth_info);
    let user = user.with_context(|| format!("context {context} names a user that is not there"))?;

    let mut cluster = object(serde_json::to_value(&cluster)?);
    inline(&mut cluster, "certificate-authority")?;
    let mut user = object(serde_json::to_value(&user)?);
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
