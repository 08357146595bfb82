//! `umbel cluster rotate`: a new token into the Secret of a joined cluster.

use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::Value;
use umbel_api::TargetCluster;
use umbel_clusters::credential::{Account, of_token, renewed};

use super::cluster_join::{renewed_account, token};
use crate::account;
use crate::args::{Global, Rotate};
use crate::home::{Home, said};
use crate::{output, target};

/// Of one answer of the target.
const ANSWER: Duration = Duration::from_secs(10);

pub(crate) async fn run(global: &Global, rotate: &Rotate) -> anyhow::Result<()> {
    let Rotate { name, key, from } = rotate;
    let home = Home::open(global).await?;
    let (cluster, secret) = joined(&home, name).await?;
    let reference = &cluster.spec.kubeconfig_secret_ref;
    let title = format!("Secret {}/{}", home.namespace, reference.name);
    let Some(account) = renewed_account(&secret) else {
        bail!("{title} holds no token that can be renewed; `umbel cluster join {name}` makes an account with one");
    };
    let old = secret.data.as_ref().and_then(|data| data.get(&reference.key)).cloned();
    let old = old.with_context(|| format!("{title} has no key {}", reference.key))?;
    let text = if let Some(context) = &from.from_context {
        let source = target::read(from.from_kubeconfig.as_deref().or(global.kubeconfig.as_deref()))?;
        let client = target::client(&source, context).await?;
        if *key {
            end_tokens(&client, &account).await?;
        }
        token(&source, context, &client, &account).await?
    } else {
        renewed(&old.0, &account, ANSWER)
            .await
            .context("its own token makes no new one (--from-context does)")?
    };
    let mut secret = secret;
    let data = secret.data.get_or_insert_default();
    data.insert(reference.key.clone(), ByteString(text.into_bytes()));
    let secrets = Api::<Secret>::namespaced(home.client.clone(), &home.namespace);
    // With the version that was read: what the operator or somebody else wrote meanwhile wins.
    let written = secrets.replace(&reference.name, &PostParams::default(), &secret).await;
    written.map_err(|err| said(err, format!("write {title}")))?;
    output::say(&format!("{title} holds a new token; workers use it within 30 s"));
    output::say(&if *key {
        "every earlier token of the account is worth nothing now".to_owned()
    } else {
        let until = token_of(&old.0).and_then(|token| of_token(&token).1);
        let until = until.map_or_else(|| "its end".to_owned(), |until| until.to_string());
        format!("the old token is used no more; it would be accepted until {until} (--key ends it now)")
    });
    output::line(&format!("targetcluster.umbel.dev/{name}"))
}

/// The TargetCluster and its Secret.
pub(super) async fn joined(home: &Home, name: &str) -> anyhow::Result<(TargetCluster, Secret)> {
    let namespace = &home.namespace;
    let clusters = Api::<TargetCluster>::namespaced(home.client.clone(), namespace);
    let cluster = clusters.get(name).await;
    let cluster = cluster.map_err(|err| said(err, format!("read TargetCluster {namespace}/{name}")))?;
    let reference = &cluster.spec.kubeconfig_secret_ref.name;
    let secrets = Api::<Secret>::namespaced(home.client.clone(), namespace);
    let secret = secrets.get(reference).await;
    let secret = secret.map_err(|err| said(err, format!("read Secret {namespace}/{reference}")))?;
    Ok((cluster, secret))
}

/// Tokens are bound to a Secret of the account: with another one they are no tokens any more.
async fn end_tokens(client: &kube::Client, account: &Account) -> anyhow::Result<()> {
    let Some(bound) = &account.bound_to else {
        bail!("the account's tokens are bound to nothing; `umbel cluster join` again binds them");
    };
    let secrets = Api::<Secret>::namespaced(client.clone(), &account.namespace);
    let title = format!("Secret {}/{bound}", account.namespace);
    let mut next = match secrets.get(bound).await {
        Ok(secret) => {
            let labels = secret.metadata.labels.as_ref();
            let of = labels.and_then(|labels| labels.get(umbel_api::names::LABEL_ACCOUNT));
            if of != Some(&account.service_account) {
                bail!("{title} at the target is not the account's; it is left as it is");
            }
            let deleted = secrets.delete(bound, &DeleteParams::default()).await;
            deleted.map_err(|err| said(err, format!("delete {title} at the target")))?;
            secret
        }
        Err(kube::Error::Api(status)) if status.code == 404 => {
            bail!("{title} is not at the target; `umbel cluster join` again makes it")
        }
        Err(err) => return Err(said(err, format!("read {title} at the target"))),
    };
    let metadata = std::mem::take(&mut next.metadata);
    next.metadata.name = metadata.name;
    next.metadata.namespace = metadata.namespace;
    next.metadata.labels = metadata.labels;
    next.metadata.annotations = metadata.annotations;
    let params = PostParams {
        field_manager: Some(account::MANAGER.to_owned()),
        ..PostParams::default()
    };
    let made = secrets.create(&params, &next).await;
    made.map_err(|err| said(err, format!("write {title} at the target")))?;
    output::say(&format!("at the target: made {title} anew"));
    Ok(())
}

/// The token of a kubeconfig, to see how long it lasts; it is shown nowhere.
fn token_of(kubeconfig: &[u8]) -> Option<String> {
    let root: Value = serde_saphyr::from_slice(kubeconfig).ok()?;
    root.pointer("/users/0/user/token")?.as_str().map(str::to_owned)
}
