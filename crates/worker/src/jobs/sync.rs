//! `umbel.cluster.sync`: what a cluster looks like now, as the task's result and for the TargetCluster's status.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use kube::api::{ListParams, Request};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use umbel_clusters::{Error, Registry, Target};

use super::{quantity, target};
use crate::job::{Arguments, Failure, Job, JobContext, Outcome};

/// A whole look. A healthy cluster of 5,000 pods takes under two seconds; a dead one must not hold a slot for long.
const DEADLINE: Duration = Duration::from_secs(15);
/// One page of a list: some 5 MB of pods.
const PAGE: u32 = 500;

/// The job. It never asks for a retry: the next sync sees more than a repetition of this one.
pub(super) struct Sync {
    clusters: Registry,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keywords {
    cluster: Option<String>,
}

/// What was seen; the operator reads it under the same names.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Observation {
    at: String,
    reachable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    kubeconfig_accepted: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_latency_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<Nodes>,
    capacity: BTreeMap<&'static str, String>,
    allocatable: BTreeMap<&'static str, String>,
    pods: BTreeMap<String, u64>,
}

#[derive(Debug, Default, Serialize)]
struct Nodes {
    total: u64,
    ready: u64,
}

impl Sync {
    pub(super) fn new(clusters: Registry) -> Sync {
        Sync { clusters }
    }

    async fn sync(&self, ctx: &JobContext, arguments: &Arguments) -> Result<Outcome, Failure> {
        let Keywords { cluster } = target::keywords(self.name(), arguments)?;
        let cluster = target::cluster(ctx, cluster)?
            .ok_or_else(|| Failure::type_error("umbel.cluster.sync needs a cluster: keyword `cluster` or a fan-out"))?;
        let at = jiff::Timestamp::now().to_string();
        match self.look(&cluster).await {
            Ok(seen) => {
                let seen = Observation { at, ..seen };
                report(ctx, &cluster, &seen);
                Ok(Outcome::done(&seen))
            }
            Err(err) => {
                let kubeconfig_accepted = match err {
                    Error::RefusedKubeconfig { .. } => Some(false),
                    Error::Silent { .. } | Error::Unreachable { .. } | Error::Answer { .. } => Some(true),
                    Error::UnknownCluster { .. }
                    | Error::ReadSecret { .. }
                    | Error::CircuitOpen { .. }
                    | Error::Busy { .. } => None,
                };
                let reachable = matches!(err, Error::Answer { .. });
                let error = Some(err.to_string());
                // A turn that was not to be had says nothing about the cluster.
                if !matches!(err, Error::Busy { .. }) {
                    report(
                        ctx,
                        &cluster,
                        &Observation {
                            at,
                            reachable,
                            kubeconfig_accepted,
                            error,
                            ..Default::default()
                        },
                    );
                }
                tracing::warn!(cluster, error = %err, "sync failed");
                Err(Failure {
                    is_retryable: false,
                    ..target::failure(&err)
                })
            }
        }
    }

    async fn look(&self, cluster: &str) -> Result<Observation, Error> {
        let until = Instant::now() + DEADLINE;
        let target = self.clusters.target(cluster).await?;
        // The first question also pays for the connection; the second one shows how quick the API server is.
        let version = target
            .ask("read its version", left(until), target.client().apiserver_version())
            .await?;
        let asked = Instant::now();
        target
            .ask("read its version", left(until), target.client().apiserver_version())
            .await?;
        let latency = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);

        let mut seen = Observation {
            reachable: true,
            kubeconfig_accepted: Some(true),
            version: Some(version.git_version),
            api_latency_ms: Some(latency.max(1)),
            ..Observation::default()
        };
        // A credential without these rights still shows that the cluster is there.
        match list::<Node>(&target, "list its nodes", "/api/v1/nodes", until).await {
            Ok(nodes) => add_nodes(&mut seen, &nodes),
            Err(err) if err.code() == Some(403) => seen.error = Some(err.to_string()),
            Err(err) => return Err(err),
        }
        match list::<Pod>(&target, "list its pods", "/api/v1/pods", until).await {
            Ok(pods) => {
                for pod in pods {
                    *seen
                        .pods
                        .entry(pod.status.phase.unwrap_or_else(|| "Unknown".to_owned()))
                        .or_default() += 1;
                }
            }
            Err(err) if err.code() == Some(403) => seen.error = Some(err.to_string()),
            Err(err) => return Err(err),
        }
        Ok(seen)
    }
}

impl Job for Sync {
    fn name(&self) -> &'static str {
        "umbel.cluster.sync"
    }

    fn run<'a>(&'a self, ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome> {
        Box::pin(async move { self.sync(ctx, &args).await.unwrap_or_else(Outcome::Failed) })
    }
}

fn report(ctx: &JobContext, cluster: &str, seen: &Observation) {
    match serde_json::to_value(seen) {
        Ok(body) => ctx.report_cluster(cluster, body),
        Err(error) => tracing::error!(cluster, %error, "report not written"),
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

fn add_nodes(seen: &mut Observation, nodes: &[Node]) {
    let mut sums = [[0_i128; 2]; 2];
    let mut ready = 0;
    for Node { status } in nodes {
        let is_ready = |condition: &Condition| condition.kind == "Ready" && condition.status == "True";
        ready += u64::from(status.conditions.iter().any(is_ready));
        for (sum, resources) in sums.iter_mut().zip([&status.capacity, &status.allocatable]) {
            sum[0] += resources.cpu.as_deref().and_then(quantity::millis).unwrap_or_default();
            sum[1] += resources
                .memory
                .as_deref()
                .and_then(quantity::millis)
                .unwrap_or_default();
        }
    }
    let written =
        |[cpu, memory]: [i128; 2]| BTreeMap::from([("cpu", quantity::cores(cpu)), ("memory", quantity::bytes(memory))]);
    seen.nodes = Some(Nodes {
        total: nodes.len() as u64,
        ready,
    });
    [seen.capacity, seen.allocatable] = sums.map(written);
}

/// All items of a list, page by page. An expired continue token starts the list again, once.
async fn list<T: DeserializeOwned>(
    target: &Target,
    attempt: &'static str,
    path: &str,
    until: Instant,
) -> Result<Vec<T>, Error> {
    let mut items = Vec::new();
    let mut token: Option<String> = None;
    let mut has_expired = false;
    loop {
        let mut params = ListParams::default().limit(PAGE);
        params.continue_token.clone_from(&token);
        let page = async {
            let request = Request::new(path).list(&params).map_err(kube::Error::BuildRequest)?;
            target.client().request::<Page<T>>(request).await
        };
        match target.ask(attempt, left(until), page).await {
            Ok(Page { metadata, items: more }) => {
                items.extend(more);
                match metadata.next.filter(|next| !next.is_empty()) {
                    Some(next) => token = Some(next),
                    None => return Ok(items),
                }
            }
            Err(err) if err.code() == Some(410) && !has_expired => {
                has_expired = true;
                items.clear();
                token = None;
            }
            Err(err) => return Err(err),
        }
    }
}

// Only what is counted is kept of each object: a page of pods is megabytes.

#[derive(Deserialize)]
struct Page<T> {
    #[serde(default)]
    metadata: PageMeta,
    items: Vec<T>,
}

#[derive(Deserialize, Default)]
struct PageMeta {
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Pod {
    #[serde(default)]
    status: PodStatus,
}

#[derive(Deserialize, Default)]
struct PodStatus {
    phase: Option<String>,
}

#[derive(Deserialize)]
struct Node {
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Deserialize, Default)]
struct NodeStatus {
    #[serde(default)]
    conditions: Vec<Condition>,
    #[serde(default)]
    capacity: Resources,
    #[serde(default)]
    allocatable: Resources,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

#[derive(Deserialize, Default)]
struct Resources {
    cpu: Option<String>,
    memory: Option<String>,
}
