//! `umbel cluster join`: a cluster of a kubeconfig becomes a target of jobs.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams};
use kube::config::Kubeconfig;
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use umbel_api::TargetCluster;
use umbel_api::names::{ANNOTATION_ALLOW, ANNOTATION_RENEW, LABEL_MANAGED_BY};
use umbel_clusters::credential::Account;
use umbel_clusters::kubeconfig;

use crate::account::{self, Allowed, Done, MANAGER};
use crate::args::{Format, Global, Join};
use crate::home::{Home, said};
use crate::output;
use crate::target::{self, Kinds};

/// Key of the Secret.
pub(super) const KEY: &str = "kubeconfig";

/// The Secret of a cluster that joined.
pub(super) fn secret_name(cluster: &str) -> String {
    format!("umbel-cluster-{cluster}")
}

pub(crate) async fn run(global: &Global, join: &Join) -> anyhow::Result<()> {
    let source = target::read(join.from_kubeconfig.as_deref().or(global.kubeconfig.as_deref()))?;
    let context = &join.from_context;
    // Refused here with the words that the worker and the operator would use later, and before anything is made.
    let text = target::extract(&source, context, (!join.as_is).then_some("not-made-yet"))?;
    let accepted =
        kubeconfig::parse(text.as_bytes()).with_context(|| format!("context {context} can't be used by workers"))?;

    let home = Home::open(global).await?;
    let there = ours(&home, &join.name).await?;
    free(&home, &join.name).await?;
    if join.as_is {
        if let Some(account) = there.as_ref().and_then(renewed_account) {
            output::say(&format!(
                "ServiceAccount {}/{} of an earlier join stays at the target",
                account.namespace, account.service_account
            ));
        }
        return write(global, &home, join, &text, BTreeMap::new(), &accepted.server()).await;
    }

    let client = target::client(&source, context).await?;
    let allowed = if join.allow.is_empty() {
        Allowed::new()
    } else {
        account::allowed(&join.allow, &Kinds::of(&client).await?)?
    };
    let name = join
        .account
        .clone()
        .unwrap_or_else(|| account::name(&home.namespace, &join.name));
    let account = Account {
        namespace: join.target_namespace.clone(),
        bound_to: Some(name.clone()),
        service_account: name,
        seconds: u32::try_from(join.token_life.as_secs()).unwrap_or(umbel_clusters::credential::LONGEST),
    };
    let of = format!("{}/{}", home.namespace, join.name);
    let at_home = uid(&home).await;
    let objects = account::objects(&account, &of, at_home.as_deref(), &allowed);
    make(&client, &account, at_home.as_deref(), &objects, join.dry_run).await?;
    let annotations = BTreeMap::from([
        (ANNOTATION_RENEW.to_owned(), account.to_annotation()),
        (ANNOTATION_ALLOW.to_owned(), serde_json::to_string(&allowed)?),
    ]);
    if join.dry_run {
        let at_home = [
            json!({
                "apiVersion": "v1", "kind": "Secret",
                "metadata": { "name": secret_name(&join.name), "namespace": home.namespace, "annotations": annotations },
            }),
            target_cluster(&home, join),
        ];
        for object in &at_home {
            output::say(&format!("at home: would write {}", account::title(object)));
        }
        return manifests(global.output, &json!({ "target": objects, "home": at_home }));
    }
    let text = token(&source, context, &client, &account).await?;
    write(global, &home, join, &text, annotations, &accepted.server()).await
}

/// Prints objects; as YAML where no form was asked for.
fn manifests(format: Format, value: &Value) -> anyhow::Result<()> {
    match format {
        Format::Json => output::value(format, value),
        Format::Name => {
            let all = ["target", "home"]
                .iter()
                .filter_map(|place| value[place].as_array())
                .flatten();
            all.map(account::title).try_for_each(|title| output::line(&title))
        }
        Format::Table | Format::Wide | Format::Yaml => output::value(Format::Yaml, value),
    }
}

/// A kubeconfig with a new token of the account, which the context made.
pub(super) async fn token(
    source: &Kubeconfig,
    context: &str,
    client: &Client,
    account: &Account,
) -> anyhow::Result<String> {
    let token = account.token(client).await;
    let token = token.map_err(|err| said(err, "ask the target for a token"))?;
    let text = target::extract(source, context, Some(&token))?;
    let accepted = kubeconfig::parse(text.as_bytes()).context("the target's token can't be used by workers")?;
    let until = accepted.lifetime().until;
    output::say(&format!(
        "at the target: token of {}/{}, good until {}",
        account.namespace,
        account.service_account,
        until.map_or_else(|| "nobody knows when".to_owned(), |until| until.to_string())
    ));
    Ok(text)
}

/// Refuses a TargetCluster of this name that no join made: it leads to another Secret.
async fn free(home: &Home, cluster: &str) -> anyhow::Result<()> {
    let (namespace, secret) = (&home.namespace, secret_name(cluster));
    let clusters = Api::<TargetCluster>::namespaced(home.client.clone(), namespace);
    let there = clusters.get_opt(cluster).await;
    let there = there.map_err(|err| said(err, format!("look for TargetCluster {namespace}/{cluster}")))?;
    match there.map(|there| there.spec.kubeconfig_secret_ref.name) {
        Some(other) if other != secret => bail!(
            "TargetCluster {namespace}/{cluster} exists and join did not make it (it leads to Secret {other}); it is left as it is"
        ),
        _ => Ok(()),
    }
}

/// The uid of the namespace at home; nothing where it may not be read.
pub(super) async fn uid(home: &Home) -> Option<String> {
    let namespaces: Api<Namespace> = Api::all(home.client.clone());
    namespaces.get(&home.namespace).await.ok()?.uid()
}

/// The Secret of an earlier join, without what is in it.
///
/// # Errors
/// One of that name which is not Umbel's.
async fn ours(home: &Home, cluster: &str) -> anyhow::Result<Option<kube::core::PartialObjectMeta<Secret>>> {
    let (namespace, name) = (&home.namespace, secret_name(cluster));
    let secrets = Api::<Secret>::namespaced(home.client.clone(), namespace);
    let there = secrets.get_metadata_opt(&name).await;
    let there = there.map_err(|err| said(err, format!("look for Secret {namespace}/{name}")))?;
    if let Some(there) = &there
        && there.labels().get(LABEL_MANAGED_BY).map(String::as_str) != Some("umbel")
    {
        bail!("Secret {namespace}/{name} exists and is not Umbel's; it is left as it is");
    }
    Ok(there)
}

/// The account whose token a Secret holds.
pub(super) fn renewed_account<K: kube::Resource>(secret: &K) -> Option<Account> {
    serde_json::from_str(secret.annotations().get(ANNOTATION_RENEW)?).ok()
}

/// Makes the account, and takes away what an earlier join gave it and this one does not.
async fn make(
    client: &Client,
    account: &Account,
    home: Option<&str>,
    objects: &[Value],
    dry: bool,
) -> anyhow::Result<()> {
    let word = |done| match (done, dry) {
        (Done::Created, false) => "made",
        (Done::Changed, false) => "changed",
        (Done::Created, true) => "would make",
        (Done::Changed, true) => "would change",
        (Done::AsItIs, _) => "as it is",
    };
    let say = |done, title: &str| output::say(&format!("at the target: {} {title}", word(done)));
    let done = account::ensure_namespace(client, &account.namespace, dry).await?;
    say(done, &format!("Namespace {}", account.namespace));
    for object in objects {
        let done = account::put(client, object, dry).await?;
        say(done, &account::title(object));
    }
    let keep: Vec<String> = objects.iter().map(account::title).collect();
    for title in account::remove(client, account, home, &keep, dry).await? {
        let word = if dry { "would remove" } else { "removed" };
        output::say(&format!("at the target: {word} {title}"));
    }
    Ok(())
}

fn target_cluster(home: &Home, join: &Join) -> Value {
    let labels: BTreeMap<&str, &str> = join
        .labels
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    json!({
        "apiVersion": "umbel.dev/v1alpha1", "kind": "TargetCluster",
        "metadata": {"name": join.name, "namespace": home.namespace, "labels": labels},
        "spec": {"kubeconfigSecretRef": {"name": secret_name(&join.name), "key": KEY}},
    })
}

/// Writes both objects at home.
async fn write(
    global: &Global,
    home: &Home,
    join: &Join,
    text: &str,
    annotations: BTreeMap<String, String>,
    server: &str,
) -> anyhow::Result<()> {
    let Home { client, namespace } = home;
    let (name, secret_name) = (&join.name, secret_name(&join.name));
    if join.dry_run {
        output::say(&format!(
            "at home: would write Secret {namespace}/{secret_name} and TargetCluster {namespace}/{name}"
        ));
        return manifests(
            global.output,
            &json!({ "target": [], "home": [target_cluster(home, join)] }),
        );
    }
    let params = PatchParams::apply(MANAGER).force();
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(secret_name.clone()),
            namespace: Some(namespace.clone()),
            labels: Some(BTreeMap::from([(LABEL_MANAGED_BY.to_owned(), "umbel".to_owned())])),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(KEY.to_owned(), ByteString(text.as_bytes().to_vec()))])),
        ..Secret::default()
    };
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let written = secrets.patch(&secret_name, &params, &Patch::Apply(&secret)).await;
    written.map_err(|err| said(err, format!("write Secret {namespace}/{secret_name}")))?;

    let targets = Api::<TargetCluster>::namespaced(client.clone(), namespace);
    let target = targets
        .patch(name, &params, &Patch::Apply(&target_cluster(home, join)))
        .await
        .map_err(|err| said(err, format!("write TargetCluster {namespace}/{name}")))?;
    output::say(&format!(
        "TargetCluster {namespace}/{name} leads to {server} by Secret {secret_name}"
    ));
    match global.output {
        Format::Json | Format::Yaml => output::value(global.output, &serde_json::to_value(&target)?),
        Format::Table | Format::Wide | Format::Name => output::line(&format!("targetcluster.umbel.dev/{name}")),
    }
}
