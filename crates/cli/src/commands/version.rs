//! `umbel version`.

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, ListParams};
use serde_json::json;

use crate::args::{Format, Global};
use crate::home::{Home, said};
use crate::output;

const OPERATOR: &str = "app.kubernetes.io/part-of=umbel,app.kubernetes.io/component=operator";

pub(crate) async fn run(global: &Global, is_client_only: bool) -> anyhow::Result<()> {
    let client = env!("CARGO_PKG_VERSION");
    let mut lines = vec![("umbel", client.to_owned())];
    if !is_client_only {
        match cluster(global).await {
            Ok(mut cluster) => lines.append(&mut cluster),
            Err(err) => output::say(&format!("the cluster does not say its version: {err:#}")),
        }
    }
    match global.output {
        Format::Json | Format::Yaml => {
            let value: serde_json::Map<_, _> = lines
                .into_iter()
                .map(|(what, version)| (what.into(), json!(version)))
                .collect();
            output::value(global.output, &value.into())
        }
        Format::Table | Format::Wide | Format::Name => lines
            .iter()
            .try_for_each(|(what, version)| output::line(&format!("{what} {}", output::plain(version)))),
    }
}

async fn cluster(global: &Global) -> anyhow::Result<Vec<(&'static str, String)>> {
    let home = Home::open(global).await?;
    let server = home
        .client
        .apiserver_version()
        .await
        .map_err(|err| said(err, "read the version"))?;
    let mut lines = vec![("kubernetes", server.git_version)];
    // Not everybody may look for the operator, and it need not be in this namespace.
    let deployments = Api::<Deployment>::namespaced(home.client, &home.namespace);
    let found = deployments.list(&ListParams::default().labels(OPERATOR).limit(1)).await;
    let labels = found
        .ok()
        .and_then(|found| found.items.into_iter().next())
        .and_then(|one| one.metadata.labels);
    if let Some(version) = labels.and_then(|mut labels| labels.remove("app.kubernetes.io/version")) {
        lines.push(("operator", version));
    }
    Ok(lines)
}
