//! The cluster that Umbel runs in.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::Context as _;
use kube::api::{ListParams, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Config, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

use crate::args::Global;
use crate::target::{self, unquoted};
use crate::{output, usage};

/// A person waits: three seconds of silence before the handshake are enough to say so.
const CONNECT: Duration = Duration::from_secs(5);

/// A client and the namespace that was meant.
pub(crate) struct Home {
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

impl Home {
    /// From the flags, else as kubectl finds it, else from the pod that this runs in.
    pub(crate) async fn open(global: &Global) -> anyhow::Result<Home> {
        let options = KubeConfigOptions {
            context: global.context.clone(),
            ..KubeConfigOptions::default()
        };
        let mut config = match &global.kubeconfig {
            Some(file) => Config::from_custom_kubeconfig(target::read(Some(file))?, &options)
                .await
                .context("use the kubeconfig")?,
            None if global.context.is_some() => {
                let config = Config::from_kubeconfig(&options).await.map_err(unquoted);
                config.context("use the kubeconfig")?
            }
            None => match Config::infer().await {
                Ok(config) => config,
                Err(err) => match Kubeconfig::read() {
                    Err(err @ KubeconfigError::Parse(_)) => {
                        return Err(unquoted(err)).context("use the kubeconfig");
                    }
                    Ok(_) | Err(_) => return Err(err).context("find a cluster: no kubeconfig, and not in a pod"),
                },
            },
        };
        config.connect_timeout = Some(CONNECT);
        config.default_retry = false;
        let namespace = global
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).with_context(|| format!("use the credential for {server}"))?;
        Ok(Home { client, namespace })
    }
}

/// The objects of a kind in the namespace that was meant, or in all: those with these names, or all where there are none.
///
/// # Errors
/// The call; a name that no object has.
pub(crate) async fn objects<K>(home: &Home, names: &[String], everywhere: bool) -> anyhow::Result<Vec<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let kind = K::kind(&());
    let api: Api<K> = if everywhere {
        Api::all(home.client.clone())
    } else {
        Api::namespaced(home.client.clone(), &home.namespace)
    };
    let mut found = api
        .list(&ListParams::default())
        .await
        .map_err(|err| said(err, format!("list {kind}s")))?
        .items;
    if let Some(absent) = names
        .iter()
        .find(|name| found.iter().all(|object| object.name_any() != **name))
    {
        return usage(format!("there is no {kind} {absent}"));
    }
    if !names.is_empty() {
        found.retain(|object| names.contains(&object.name_any()));
    }
    if found.is_empty() {
        let place = if everywhere {
            "the cluster".to_owned()
        } else {
            format!("namespace {}", home.namespace)
        };
        output::say(&format!("{place} has no {kind}"));
    }
    Ok(found)
}

/// As whom this program changes objects.
pub(crate) fn manager() -> PatchParams {
    PatchParams {
        field_manager: Some("umbel-cli".to_owned()),
        ..PatchParams::default()
    }
}

/// What the API server said, without the client library's own words.
pub(crate) fn said(err: kube::Error, attempt: impl std::fmt::Display) -> anyhow::Error {
    match err {
        kube::Error::Api(status) => anyhow::anyhow!("{attempt}: {}", status.message),
        kube::Error::Service(cause) => anyhow::Error::from_boxed(cause).context(format!("{attempt}: not reachable")),
        other => anyhow::Error::new(other).context(attempt.to_string()),
    }
}
