//! `umbel cluster ls`.

use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use serde_json::{Value, json};
use umbel_api::TargetCluster;
use umbel_api::names::cluster_condition::{CREDENTIALS_EXPIRING, KUBECONFIG_ACCEPTED, REACHABLE};

use crate::args::{ClusterLs, Global};
use crate::home::{Home, said};
use crate::output::{self, Column, Row, ago, cut};
use crate::usage;

pub(crate) async fn run(global: &Global, ls: &ClusterLs) -> anyhow::Result<()> {
    let home = Home::open(global).await?;
    let clusters = find(&home, &ls.names, ls.selector.as_deref(), ls.all_namespaces).await?;
    let columns = [
        Column("NAMESPACE", !ls.all_namespaces),
        Column("NAME", false),
        Column("REACHABLE", false),
        Column("VERSION", false),
        Column("NODES", false),
        Column("PODS", false),
        Column("LATENCY", false),
        Column("CIRCUIT", false),
        Column("SYNCED", false),
        Column("EXPIRES", true),
        Column("LABELS", true),
        Column("ERROR", false),
    ];
    let is_wide = global.output == crate::args::Format::Wide;
    let now = Timestamp::now();
    let rows = clusters.iter().map(|cluster| row(cluster, is_wide, now)).collect();
    output::list(global.output, &columns, rows)
}

/// TargetClusters, as they stand: fields that this program does not know are shown all the same.
pub(super) async fn find(
    home: &Home,
    names: &[String],
    selector: Option<&str>,
    everywhere: bool,
) -> anyhow::Result<Vec<DynamicObject>> {
    let resource = ApiResource::erase::<TargetCluster>(&());
    let api: Api<DynamicObject> = if everywhere {
        Api::all_with(home.client.clone(), &resource)
    } else {
        Api::namespaced_with(home.client.clone(), &home.namespace, &resource)
    };
    let params = match selector {
        Some(selector) => ListParams::default().labels(selector),
        None => ListParams::default(),
    };
    let found = api
        .list(&params)
        .await
        .map_err(|err| said(err, "list TargetClusters"))?;
    let mut found = found.items;
    if let Some(absent) = names
        .iter()
        .find(|name| found.iter().all(|cluster| cluster.name_any() != **name))
    {
        return usage(format!("there is no TargetCluster {absent}"));
    }
    if !names.is_empty() {
        found.retain(|cluster| names.contains(&cluster.name_any()));
    }
    if found.is_empty() {
        output::say("there is no such TargetCluster");
    }
    Ok(found)
}

fn row(cluster: &DynamicObject, is_wide: bool, now: Timestamp) -> Row {
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    let status = &cluster.data["status"];
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let condition = |kind: &str| {
        let mut all = status["conditions"].as_array().into_iter().flatten();
        all.find(|condition| condition["type"] == kind)
    };
    let nodes = match (&status["nodes"]["ready"], &status["nodes"]["total"]) {
        (Value::Number(ready), Value::Number(total)) => format!("{ready}/{total}"),
        _ => "-".to_owned(),
    };
    let pods = status["pods"].as_object();
    let pods = pods.map(|pods| pods.values().filter_map(Value::as_u64).sum::<u64>().to_string());
    let circuit = match &status["circuit"] {
        Value::Object(circuit) => text(circuit.get("state").unwrap_or(&Value::Null)),
        other => text(other),
    };
    let age = |field: &str| status[field].as_str()?.parse::<Timestamp>().ok();
    let synced = age("lastSyncTime").map(|at| ago(now.duration_since(at).as_secs()));
    let expires = age("credentialsExpireTime").map(|at| match at.duration_since(now).as_secs() {
        ..0 => "ended".to_owned(),
        left => ago(left),
    });
    let reachable = condition(REACHABLE);
    let is = |kind: &str, status: &str| condition(kind).filter(|condition| condition["status"] == status);
    // What is wrong with the kubeconfig comes first: nothing else can be right then.
    let error = is(KUBECONFIG_ACCEPTED, "False").map(|condition| text(&condition["message"]));
    let error = error
        .or_else(|| status["lastError"].as_str().map(str::to_owned))
        .or_else(|| is(CREDENTIALS_EXPIRING, "True").map(|condition| text(&condition["message"])));
    let error = error.unwrap_or_default();
    let labels: Vec<String> = cluster
        .labels()
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let none = || "-".to_owned();
    Row {
        name: format!("targetcluster.umbel.dev/{name}"),
        cells: vec![
            namespace.clone(),
            name.clone(),
            reachable.map_or_else(none, |condition| text(&condition["status"])),
            text(&status["version"]),
            nodes,
            pods.unwrap_or_else(none),
            status["apiLatencyMs"]
                .as_u64()
                .map_or_else(none, |ms| format!("{ms}ms")),
            circuit,
            synced.unwrap_or_else(none),
            expires.unwrap_or_else(none),
            labels.join(","),
            if is_wide { error.clone() } else { cut(&error, 60) },
        ],
        value: json!({
            "namespace": namespace, "name": name, "labels": cluster.labels(), "spec": cluster.data["spec"], "status": status,
        }),
    }
}
