//! `umbel cluster leave`: a target is one no more.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, Preconditions};
use umbel_api::names::{LABEL_DISCOVERED, LABEL_MANAGED_BY};
use umbel_api::{TargetCluster, WorkerPool};
use umbel_clusters::credential::Account;

use super::cluster_join::{renewed_account, secret_name};
use crate::args::{Global, Leave};
use crate::confirm::is_confirmed;
use crate::home::{Home, said};
use crate::{account, output, target, usage};

pub(crate) async fn run(global: &Global, leave: &Leave) -> anyhow::Result<ExitCode> {
    let Leave { name, from, force, yes } = leave;
    let home = Home::open(global).await?;
    let namespace = &home.namespace;
    let clusters = Api::<TargetCluster>::namespaced(home.client.clone(), namespace);
    let secrets = Api::<Secret>::namespaced(home.client.clone(), namespace);
    let cluster = clusters.get_opt(name).await;
    let cluster = cluster.map_err(|err| said(err, format!("read TargetCluster {namespace}/{name}")))?;
    let made = secret_name(name);
    let secret = secrets.get_metadata_opt(&made).await;
    let secret = secret.map_err(|err| said(err, format!("look for Secret {namespace}/{made}")))?;
    if cluster.is_none() && secret.is_none() {
        return usage(format!("there is no TargetCluster {name}"));
    }
    if cluster
        .as_ref()
        .is_some_and(|cluster| cluster.labels().contains_key(LABEL_DISCOVERED))
    {
        bail!("TargetCluster {namespace}/{name} was discovered: it goes when its Secret goes, or its label");
    }

    let pools = Api::<WorkerPool>::namespaced(home.client.clone(), namespace);
    let pools = pools.list(&ListParams::default()).await;
    let pools = pools.map_err(|err| said(err, "list WorkerPools"))?.items;
    let covering: Vec<String> = pools
        .iter()
        .filter(|pool| {
            let access = pool.spec.cluster_access.as_ref();
            let labels = cluster
                .as_ref()
                .map(|cluster| cluster.labels().clone())
                .unwrap_or_default();
            cluster.is_some() && access.is_some_and(|access| access.covers(name, &labels))
        })
        .map(kube::ResourceExt::name_any)
        .collect();
    let question = format!(
        "WorkerPool {} covers TargetCluster {namespace}/{name}: its jobs there will fail. Take it out?",
        covering.join(", ")
    );
    if !covering.is_empty() && !is_confirmed(*yes, &question)? {
        return Ok(ExitCode::SUCCESS);
    }

    // First what is at the target: while the Secret is here, it is known what that is.
    let ours = secret
        .as_ref()
        .filter(|secret| secret.labels().get(LABEL_MANAGED_BY).map(String::as_str) == Some("umbel"));
    let account = ours.and_then(renewed_account);
    if let Some(context) = &from.from_context {
        let source = target::read(from.from_kubeconfig.as_deref().or(global.kubeconfig.as_deref()))?;
        // Without the Secret its name is the one that join gives.
        let account = account.clone().unwrap_or_else(|| Account {
            namespace: account::NAMESPACE.to_owned(),
            service_account: account::name(namespace, name),
            bound_to: None,
            seconds: umbel_clusters::credential::LONGEST,
        });
        let removed = async {
            let client = target::client(&source, context).await?;
            let at_home = super::cluster_join::uid(&home).await;
            account::remove(&client, &account, at_home.as_deref(), &[], false).await
        };
        match removed.await {
            Ok(removed) => {
                for title in removed {
                    output::say(&format!("at the target: removed {title}"));
                }
                output::say(&format!("at the target: Namespace {} stays", account.namespace));
            }
            Err(err) if *force => {
                output::say(&format!("at the target: {err:#}"));
                stays(&account);
            }
            Err(err) => return Err(err).context("nothing was removed at home (--force goes on)"),
        }
    } else if let Some(account) = &account {
        stays(account);
    }

    if let Some(cluster) = &cluster {
        delete(
            &clusters,
            name,
            cluster.uid(),
            &format!("TargetCluster {namespace}/{name}"),
        )
        .await?;
    }
    match (&secret, ours) {
        (Some(_), Some(ours)) => delete(&secrets, &made, ours.uid(), &format!("Secret {namespace}/{made}")).await?,
        (Some(_), None) => output::say(&format!("at home: Secret {namespace}/{made} stays: it is not Umbel's")),
        (None, _) => {}
    }
    let own = cluster
        .as_ref()
        .map(|cluster| cluster.spec.kubeconfig_secret_ref.name.clone());
    if let Some(own) = own.filter(|own| *own != made) {
        output::say(&format!(
            "at home: Secret {namespace}/{own} stays: join did not make it"
        ));
    }
    output::line(&format!("targetcluster.umbel.dev/{name}"))?;
    Ok(ExitCode::SUCCESS)
}

fn stays(account: &Account) {
    output::say(&format!(
        "at the target: ServiceAccount {}/{} and its roles stay (--from-context removes them); its token ends within an hour, \
         as nobody renews it",
        account.namespace, account.service_account
    ));
}

async fn delete<K>(api: &Api<K>, name: &str, uid: Option<String>, title: &str) -> anyhow::Result<()>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid,
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(name, &params).await {
        Ok(_) => output::say(&format!("at home: removed {title}")),
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(err) => return Err(said(err, format!("delete {title}"))),
    }
    Ok(())
}
