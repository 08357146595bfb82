//! `umbel pool ls`.

use kube::ResourceExt as _;
use serde_json::json;
use umbel_api::WorkerPool;
use umbel_api::names::pool_condition;

use crate::args::{Global, PoolLs};
use crate::home::{Home, objects};
use crate::output::{self, Column, Row};

pub(crate) async fn run(global: &Global, ls: &PoolLs) -> anyhow::Result<()> {
    let home = Home::open(global).await?;
    let pools: Vec<WorkerPool> = objects(&home, &ls.names, ls.all_namespaces).await?;
    let columns = [
        Column("NAMESPACE", !ls.all_namespaces),
        Column("NAME", false),
        Column("QUEUES", true),
        Column("READY", false),
        Column("PODS", false),
        Column("WANTED", false),
        Column("BUSY", false),
        Column("DRAINING", false),
        Column("SLOTS", false),
        Column("WAITING", false),
        Column("IN-FLIGHT", false),
        Column("WHY", false),
        Column("MESSAGE", true),
    ];
    output::list(global.output, &columns, pools.iter().map(row).collect())
}

fn row(pool: &WorkerPool) -> Row {
    let (namespace, name) = (pool.namespace().unwrap_or_default(), pool.name_any());
    let queues: Vec<&str> = pool.spec.queues.iter().map(|share| share.name.as_str()).collect();
    let none = || "-".to_owned();
    let Some(status) = &pool.status else {
        let mut cells = vec![namespace.clone(), name.clone(), queues.join(",")];
        cells.resize_with(12, none);
        cells.push("no operator has seen this pool".to_owned());
        return Row {
            name: format!("workerpool.umbel.dev/{name}"),
            cells,
            value: json!({"namespace": namespace, "name": name, "queues": queues}),
        };
    };
    let find = |kind: &str| status.conditions.iter().find(|condition| condition.type_ == kind);
    let (ready, active) = (find(pool_condition::READY), find(pool_condition::SCALING_ACTIVE));
    // What is wrong comes first; otherwise why the size is what it is.
    let wrong = [ready, find(pool_condition::BROKER_REACHABLE)].into_iter().flatten();
    let wrong = wrong
        .filter(|condition| condition.status == "False")
        .map(|condition| &condition.message);
    let message = wrong.chain(active.map(|condition| &condition.message)).next();
    let demand = status.demand.as_ref();
    let cells = vec![
        namespace.clone(),
        name.clone(),
        queues.join(","),
        ready.map_or_else(none, |condition| condition.status.clone()),
        status.replicas.to_string(),
        status.desired_replicas.to_string(),
        status.busy_replicas.to_string(),
        status.draining_replicas.to_string(),
        status
            .slots
            .map_or_else(none, |slots| format!("{}/{}", slots.busy, slots.total)),
        demand.map_or_else(none, |demand| demand.waiting.to_string()),
        demand.map_or_else(none, |demand| demand.in_flight.to_string()),
        status
            .blocked_reason
            .clone()
            .or_else(|| active.map(|condition| condition.reason.clone()))
            .unwrap_or_else(none),
        message.cloned().unwrap_or_default(),
    ];
    let value = json!({"namespace": namespace, "name": name, "queues": queues,
        "ready": ready.map(|condition| &condition.status), "replicas": status.replicas,
        "desiredReplicas": status.desired_replicas, "busyReplicas": status.busy_replicas,
        "drainingReplicas": status.draining_replicas, "slots": status.slots, "demand": status.demand,
        "reason": active.map(|condition| &condition.reason), "blockedReason": status.blocked_reason, "message": message});
    Row {
        name: format!("workerpool.umbel.dev/{name}"),
        cells,
        value,
    }
}
