//! `umbel.cluster.sync`: what a cluster looks like now, as the task's result and for the TargetCluster's status.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use umbel_clusters::circuit::{Circuit, State};
use umbel_clusters::{Error, Identity, Mistaken, Registry, Target};

use super::{quantity, target};
use crate::job::{Arguments, Failure, Job, JobContext, Outcome};

/// A whole look. A healthy cluster of 5,000 pods takes under four seconds, most of them for the budget of requests; a dead
/// one must not hold a slot for long.
const DEADLINE: Duration = Duration::from_secs(15);
/// One page of a list: a pod is some 10 KB, and a page is in memory twice.
const PAGE: u32 = 100;
/// A list whose continue token expired begins anew, so often: a cluster that changes faster is not counted.
const RESTARTS: u32 = 3;
/// Names of nodes that are not ready, in words.
const NAMED: usize = 5;

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
    /// One word for the error, where there is a better one than that the sync failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_latency_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<Nodes>,
    capacity: BTreeMap<&'static str, String>,
    allocatable: BTreeMap<&'static str, String>,
    usage: BTreeMap<&'static str, String>,
    pods: BTreeMap<String, u64>,
    /// Uid of kube-system.
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    /// Why it could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    uid_unknown: Option<String>,
    /// Reads that were refused, each with the target's words; absent when none was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    healthy: Option<bool>,
    /// What `healthy` is taken from.
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    circuit: Option<Breaker>,
}

#[derive(Debug, Default, Serialize)]
struct Nodes {
    total: u64,
    ready: u64,
}

#[derive(Debug, Serialize)]
struct Breaker {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

/// The circuit by the calendar.
fn breaker(circuit: &Circuit, now: Instant, today: jiff::Timestamp) -> Breaker {
    let ago = |since: Instant| today - now.saturating_duration_since(since);
    let ahead = |until: Instant| today + until.saturating_duration_since(now);
    Breaker {
        state: circuit.state.word(),
        since: circuit.since.map(|since| ago(since).to_string()),
        until: circuit
            .until
            .filter(|_| circuit.state != State::Closed)
            .map(|until| ahead(until).to_string()),
    }
}

impl Sync {
    pub(super) fn new(clusters: Registry) -> Sync {
        Sync { clusters }
    }

    async fn sync(&self, ctx: &JobContext, arguments: &Arguments) -> Result<Outcome, Failure> {
        let Keywords { cluster } = target::keywords(self.name(), arguments)?;
        let cluster = target::cluster(ctx, cluster)?
            .ok_or_else(|| Failure::type_error("umbel.cluster.sync needs a cluster: keyword `cluster` or a fan-out"))?;
        let looked = self.look(&cluster).await;
        let today = jiff::Timestamp::now();
        let circuit = self.clusters.circuit(&cluster);
        let common = Observation {
            at: today.to_string(),
            circuit: circuit.map(|circuit| breaker(&circuit, Instant::now(), today)),
            ..Observation::default()
        };
        match looked {
            Ok(seen) => {
                let Observation { at, circuit, .. } = common;
                let seen = Observation { at, circuit, ..seen };
                report(ctx, &cluster, &seen);
                Ok(Outcome::done(&seen))
            }
            Err(err) => {
                // A turn that was not to be had says nothing about the cluster.
                if err.is_busy()
                    && let Some(parked) = target::parked(&err)
                {
                    return Ok(parked);
                }
                report(ctx, &cluster, &failure(&err, common));
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
        let identity = target.identity().await?;
        // The first question also pays for the connection; the second one shows how quick the API server is.
        let attempt = "read its version";
        target.get(attempt, "/version", left(until)).await?;
        let asked = Instant::now();
        let version: Version = read(&target, attempt, "/version", until, &mut Vec::new()).await?;
        let latency = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);

        let mut seen = Observation {
            reachable: true,
            kubeconfig_accepted: Some(true),
            version: Some(version.git_version),
            api_latency_ms: Some(latency.max(1)),
            ..Observation::default()
        };
        match identity {
            Identity::Known(uid) => seen.uid = Some(uid),
            Identity::Unknown(why) => seen.uid_unknown = Some(why),
        }
        let mut refused = Vec::new();
        let ready = readyz(&target, until).await?;
        // A credential without these rights still shows that the cluster is there.
        let nodes = list(&target, "list its nodes", "/api/v1/nodes", until, Counted::node).await;
        let nodes = allowed(nodes, "list nodes", &mut refused)?;
        let pods = list(&target, "list its pods", "/api/v1/pods", until, count_pod).await;
        seen.pods = allowed(pods, "list pods", &mut refused)?.unwrap_or_default();
        seen.usage = usage(&target, until).await?;
        seen.error = refused.first().cloned();
        seen.refused = Some(refused);
        (seen.healthy, seen.health) = health(ready, nodes.as_ref());
        if let Some(nodes) = nodes {
            nodes.write(&mut seen);
        }
        Ok(seen)
    }
}

/// What a failed look says.
fn failure(err: &Error, common: Observation) -> Observation {
    let kubeconfig_accepted = match err {
        Error::RefusedKubeconfig { .. } => Some(false),
        Error::Silent { .. } | Error::Unreachable { .. } | Error::Answer { .. } | Error::Identity { .. } => Some(true),
        Error::UnknownCluster { .. }
        | Error::Gone { .. }
        | Error::ReadSecret { .. }
        | Error::Impersonation { .. }
        | Error::CircuitOpen { .. }
        | Error::Busy { .. }
        | Error::Throttled { .. } => None,
    };
    let reason = match err {
        Error::Identity {
            why: Mistaken::Changed { .. },
            ..
        } => Some("IdentityChanged"),
        Error::CircuitOpen { .. } => Some("CircuitOpen"),
        Error::Impersonation { .. } => Some("ImpersonationRefused"),
        _ => None,
    };
    let is_refused = err.code() == Some(401);
    Observation {
        reachable: matches!(err, Error::Answer { .. }),
        kubeconfig_accepted,
        error: Some(err.to_string()),
        reason,
        refused: is_refused.then(|| vec![format!("everything: {err}")]),
        ..common
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

/// What was read, or nothing where it was refused, which is noted.
fn allowed<T>(read: Result<T, Error>, what: &str, refused: &mut Vec<String>) -> Result<Option<T>, Error> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(err) if err.code() == Some(403) => {
            refused.push(format!("{what}: {err}"));
            Ok(None)
        }
        Err(err) => Err(err),
    }
}

/// What the API server says of itself: nothing where the credential may not ask, else what is wrong, if anything.
async fn readyz(target: &Target, until: Instant) -> Result<Option<Option<String>>, Error> {
    match target.get("ask whether it is ready", "/readyz", left(until)).await {
        Ok(_) => Ok(Some(None)),
        Err(err) if matches!(err.code(), Some(401 | 403 | 404)) => Ok(None),
        Err(err) => match err.status() {
            Some(status) => {
                let failed: Vec<&str> = status.message.lines().filter(|line| line.starts_with("[-]")).collect();
                Ok(Some(Some(if failed.is_empty() {
                    format!("status {}", status.code)
                } else {
                    failed.join(", ")
                })))
            }
            None => Err(err),
        },
    }
}

/// In words, and as a yes or no where anything is known.
fn health(ready: Option<Option<String>>, nodes: Option<&Counted>) -> (Option<bool>, Option<String>) {
    let mut words = Vec::new();
    let mut healthy = None;
    if let Some(fault) = ready {
        healthy = Some(fault.is_none());
        words.push(match fault {
            None => "the API server is ready".to_owned(),
            Some(fault) => format!("the API server is not ready: {fault}"),
        });
    }
    if let Some(Counted {
        total, ready, unready, ..
    }) = nodes
    {
        let away = total - ready;
        healthy = Some(healthy.unwrap_or(true) && away == 0);
        words.push(if away == 0 {
            format!("all {total} nodes are ready")
        } else {
            let more = if away > unready.len() as u64 { ", …" } else { "" };
            format!("{away} of {total} nodes not ready: {}{more}", unready.join(", "))
        });
    }
    (healthy, (!words.is_empty()).then(|| words.join("; ")))
}

/// What nodes use now; nothing where nobody measures or the credential may not ask.
async fn usage(target: &Target, until: Instant) -> Result<BTreeMap<&'static str, String>, Error> {
    let add = |sum: &mut [i128; 3], node: Usage| {
        sum[2] += 1;
        node.usage.add(&mut sum[..2]);
    };
    let path = "/apis/metrics.k8s.io/v1beta1/nodes";
    match list::<_, [i128; 3]>(target, "read its metrics", path, until, add).await {
        Ok([_, _, 0]) => Ok(BTreeMap::new()),
        Ok([cpu, memory, _]) => Ok(written([cpu, memory])),
        Err(err) if matches!(err.code(), Some(403 | 404 | 429 | 500 | 503)) => Ok(BTreeMap::new()),
        Err(err) => Err(err),
    }
}

fn written([cpu, memory]: [i128; 2]) -> BTreeMap<&'static str, String> {
    BTreeMap::from([("cpu", quantity::cores(cpu)), ("memory", quantity::bytes(memory))])
}

/// What is counted of nodes.
#[derive(Default)]
struct Counted {
    total: u64,
    ready: u64,
    unready: Vec<String>,
    capacity: [i128; 2],
    allocatable: [i128; 2],
}

impl Counted {
    fn node(&mut self, node: Node) {
        let Node { metadata, status } = node;
        let is_ready = |condition: &Condition| condition.kind == "Ready" && condition.status == "True";
        self.total += 1;
        if status.conditions.iter().any(is_ready) {
            self.ready += 1;
        } else if self.unready.len() < NAMED {
            self.unready.push(metadata.name);
        }
        status.capacity.add(&mut self.capacity);
        status.allocatable.add(&mut self.allocatable);
    }

    fn write(self, seen: &mut Observation) {
        seen.nodes = Some(Nodes {
            total: self.total,
            ready: self.ready,
        });
        [seen.capacity, seen.allocatable] = [self.capacity, self.allocatable].map(written);
    }
}

fn count_pod(phases: &mut BTreeMap<String, u64>, pod: Pod) {
    // There are five; whoever answers with thousands is no API server.
    let phase = pod.status.phase.filter(|phase| phase.len() <= 63 && phases.len() < 16);
    *phases.entry(phase.unwrap_or_else(|| "Unknown".to_owned())).or_default() += 1;
}

async fn read<T: DeserializeOwned>(
    target: &Target,
    attempt: &'static str,
    path: &str,
    until: Instant,
    body: &mut Vec<u8>,
) -> Result<T, Error> {
    target.get_into(attempt, path, left(until), body).await?;
    serde_json::from_slice(body).map_err(|source| Error::Answer {
        cluster: target.name().to_owned(),
        attempt,
        source: Box::new(kube::Error::SerdeError(source)),
    })
}

/// A page's path: the first one, or that of a continue token.
fn of_page(path: &str, token: Option<&str>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(format!("{path}?limit={PAGE}"));
    if let Some(token) = token {
        query.append_pair("continue", token);
    }
    query.finish()
}

/// Counts all items of a list, page by page; no item outlives its page. An expired continue token starts the list again.
async fn list<T: DeserializeOwned, A: Default>(
    target: &Target,
    attempt: &'static str,
    path: &str,
    until: Instant,
    add: impl Fn(&mut A, T),
) -> Result<A, Error> {
    let mut sum = A::default();
    let mut token: Option<String> = None;
    let mut restarts = 0;
    // One place for all pages: what grows anew with each is what a sync of many pods takes most of.
    let mut body = Vec::new();
    loop {
        let path = of_page(path, token.as_deref());
        let page = read::<Page<T>>(target, attempt, &path, until, &mut body).await;
        match page {
            Ok(Page { metadata, items }) => {
                items.into_iter().for_each(|item| add(&mut sum, item));
                match metadata.next.filter(|next| !next.is_empty()) {
                    Some(next) => token = Some(next),
                    None => return Ok(sum),
                }
            }
            Err(err) if err.code() == Some(410) && restarts < RESTARTS => {
                restarts += 1;
                sum = A::default();
                token = None;
            }
            Err(err) => return Err(err),
        }
    }
}

// Only what is counted is kept of each object: a page of pods is a megabyte.

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    git_version: String,
}

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
    metadata: Named,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Deserialize, Default)]
struct Named {
    #[serde(default)]
    name: String,
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
struct Usage {
    #[serde(default)]
    usage: Resources,
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

impl Resources {
    fn add(&self, sum: &mut [i128]) {
        for (sum, text) in sum.iter_mut().zip([&self.cpu, &self.memory]) {
            *sum += text.as_deref().and_then(quantity::millis).unwrap_or_default();
        }
    }
}
