//! `TargetCluster`: whether its kubeconfig may be used, and what the sync jobs saw.
//!
//! The operator connects to no target, but for the renewal of tokens ([`crate::renewal`]). What is known of one comes from
//! `umbel.cluster.sync` jobs through the broker, and counts only when it comes from a pool whose `clusterAccess` covers the
//! cluster, on that pool's own broker.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use umbel_api::TargetCluster;
use umbel_api::condition::find;
use umbel_api::names::ANNOTATION_ACCEPT_IDENTITY;
use umbel_api::names::cluster_condition::{AUTHORIZED, CREDENTIALS_EXPIRING, HEALTHY, KUBECONFIG_ACCEPTED, REACHABLE};
use umbel_api::targetcluster::{ClusterObservation, TargetClusterStatus};
use umbel_broker::{Broker, ClusterReport, TargetSaid};
use umbel_clusters::kubeconfig;
use umbel_plan::cluster::{Kubeconfig, pin, status, worth};
use umbel_plan::credential;
use umbel_plan::queue::Worth;

use crate::apply;
use crate::brokers::Source;
use crate::context::Context;
use crate::failpoint;
use crate::renewal::{self, Held, Renewals};

/// How often reports are collected: one small read a namespace and broker.
const COLLECT: Duration = Duration::from_secs(2);
/// An accepted kubeconfig is read again after this, …
const RECHECK: Duration = Duration::from_secs(30);
/// … a refused or missing one after this, so that a repair shows within 5 s.
const RECHECK_BAD: Duration = Duration::from_secs(4);
/// That a target is gone is said for so long: longer than a task of it waits anywhere.
const GONE: i64 = 30 * 86_400;
/// Wakes on their way to the controller; the collector waits when it is busy.
const WAKES: usize = 64;

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The status could not be written.
    #[error("write status of targetcluster {0}")]
    WriteStatus(String, #[source] kube::Error),
}

/// Namespace and name.
type Key = (String, String);

/// What this leader remembers between reconciles; all of it can be lost.
#[derive(Default)]
struct Memory {
    /// The latest acceptable report of each cluster, and the broker it came by.
    reports: HashMap<Key, (Source, ClusterObservation)>,
    /// When a kubeconfig was read, of which generation, and what it was worth.
    kubeconfigs: HashMap<Key, (Instant, Option<i64>, Kubeconfig, Option<Held>)>,
    /// When a status was written.
    written: HashMap<Key, Instant>,
}

type Shared = Arc<Mutex<Memory>>;

fn lock(memory: &Shared) -> std::sync::MutexGuard<'_, Memory> {
    // Nothing that can panic runs under this lock.
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reconciles the target clusters of one scope until `stop`.
pub async fn run(ctx: Arc<Context>, scope: usize, stop: CancellationToken) {
    let memory = Shared::default();
    let (reported, wakes) = mpsc::channel(WAKES);
    let renewals = Renewals::new(reported.clone(), stop.clone());
    let collector = collect(ctx.clone(), scope, memory.clone(), reported, stop.clone());
    let watched = &ctx.scopes[scope].clusters;
    let changed = watched.wakes(|cluster: &TargetCluster| vec![ObjectRef::from_obj(cluster)]);
    let reported = stream::unfold(wakes, |mut wakes| async move {
        wakes.recv().await.map(|wake| (wake, wakes))
    });
    let store = watched.store.clone();
    let reconcile = move |cluster, ctx| reconcile(cluster, ctx, memory.clone(), renewals.clone());
    let wakes = stream::select(changed, reported).boxed();
    tokio::join!(
        collector,
        super::drive("targetcluster", store, wakes, ctx.clone(), reconcile, stop)
    );
}

/// Collects reports every two seconds and wakes the clusters that have a new one.
async fn collect(
    ctx: Arc<Context>,
    scope: usize,
    memory: Shared,
    wakes: mpsc::Sender<ObjectRef<TargetCluster>>,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(COLLECT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        for (namespace, source) in sources(&ctx, scope) {
            let Some(broker) = ctx.brokers.view(&source).broker else {
                continue;
            };
            let reports = tokio::select! {
                () = stop.cancelled() => return,
                reports = broker.cluster_reports(&namespace) => reports,
            };
            let reports = match reports {
                Ok(reports) => reports,
                Err(error) => {
                    tracing::warn!(%source, error = %umbel_telemetry::chain(&error), "cluster reports not read");
                    continue;
                }
            };
            if ctx.leader.term().is_some() {
                say(&ctx, scope, &namespace, &broker).await;
            }
            for report in reports {
                let Some(observation) = accepted(&ctx, &namespace, &source, &report) else {
                    continue;
                };
                let key = (namespace.clone(), report.name.clone());
                if !is_news(&mut lock(&memory).reports, &key, &source, observation) {
                    continue;
                }
                if wakes.send(ObjectRef::new(&key.1).within(&key.0)).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Says to the workers of a namespace which cluster each target must be, and which targets are gone.
///
/// It is read each time, so that a broker that lost it has it again two seconds later. A worker that was not told yet works
/// at the target that its Secret names, as it did before there was a pin.
async fn say(ctx: &Context, scope: usize, namespace: &str, broker: &Broker) {
    let said = match broker.targets_said(namespace).await {
        Ok(said) => said,
        Err(error) => {
            tracing::warn!(namespace, error = %umbel_telemetry::chain(&error), "what is said of targets was not read");
            return;
        }
    };
    let clusters = ctx.scopes[scope].clusters.within(namespace);
    for (name, wanted) in changes(&clusters, said, Timestamp::now().as_second()) {
        let told = failpoint::around("say-target", broker.say_target(namespace, &name, wanted.as_ref())).await;
        match told {
            Ok(()) => tracing::info!(cluster = name, ?wanted, "said of a target to its workers"),
            Err(error) => {
                tracing::warn!(cluster = name, error = %umbel_telemetry::chain(&error), "said of a target later");
            }
        }
    }
}

/// What must be said differently.
fn changes(
    clusters: &[Arc<TargetCluster>],
    mut said: HashMap<String, TargetSaid>,
    now: i64,
) -> BTreeMap<String, Option<TargetSaid>> {
    let mut changes = BTreeMap::new();
    for cluster in clusters {
        let name = cluster.name_any();
        let stored = cluster.status.as_ref().and_then(|status| status.cluster_uid.as_deref());
        let wanted = pin(accepts(cluster), stored, None).map_or(TargetSaid::Known, TargetSaid::Pinned);
        if said.remove(&name).as_ref() != Some(&wanted) {
            changes.insert(name, Some(wanted));
        }
    }
    for (name, left) in said {
        match left {
            TargetSaid::Known | TargetSaid::Pinned(_) => {
                changes.insert(name, Some(TargetSaid::Gone(now)));
            }
            TargetSaid::Gone(since) if now - since > GONE => {
                changes.insert(name, None);
            }
            TargetSaid::Gone(_) => {}
        }
    }
    changes
}

/// The uid that an administrator accepts.
fn accepts(cluster: &TargetCluster) -> Option<&str> {
    cluster
        .annotations()
        .get(ANNOTATION_ACCEPT_IDENTITY)
        .map(String::as_str)
}

/// Namespaces with the brokers of those of their pools that may touch clusters; also when the last cluster is gone.
fn sources(ctx: &Context, scope: usize) -> BTreeSet<(String, Source)> {
    let scope = &ctx.scopes[scope];
    let with_access = scope
        .pools
        .store
        .state()
        .into_iter()
        .filter(|pool| pool.spec.cluster_access.is_some());
    with_access
        .filter_map(|pool| Some((pool.namespace()?, ctx.source(&pool)?)))
        .collect()
}

/// The observation in a report, if it comes from a pool that may touch the cluster it speaks of.
fn accepted(ctx: &Context, namespace: &str, source: &Source, report: &ClusterReport) -> Option<ClusterObservation> {
    let scope = ctx.scope(namespace)?;
    let cluster = scope.clusters.get(namespace, &report.name)?;
    let pools = scope.pools.within(namespace);
    let pool = pools
        .iter()
        .find(|pool| pool.uid().as_deref() == Some(report.pool.as_str()));
    let covered = pool.is_some_and(|pool| {
        let access = pool.spec.cluster_access.as_ref();
        access.is_some_and(|access| access.covers(&report.name, cluster.labels()))
            && ctx.source(pool).as_ref() == Some(source)
    });
    if report.namespace != namespace || !covered {
        tracing::debug!(
            cluster = report.name,
            pool = report.pool,
            "report refused: its pool may not touch the cluster"
        );
        return None;
    }
    match serde_json::from_value::<ClusterObservation>(report.body.clone()) {
        Ok(observation) => Some(observation).filter(|seen| is_of(cluster.as_ref(), seen)),
        Err(error) => {
            tracing::warn!(cluster = report.name, pool = report.pool, %error, "report not readable");
            None
        }
    }
}

/// What was said of an earlier object of this name is not about this one.
fn is_of(cluster: &TargetCluster, seen: &ClusterObservation) -> bool {
    seen.at.as_ref().map(|at| at.0) >= cluster.creation_timestamp().map(|created| created.0)
}

/// Keeps the observation if it says something new; whether it did.
///
/// A broker holds the latest report of a cluster, so on one broker any other is later; times, which are the workers', only
/// order what came by several.
fn is_news(
    reports: &mut HashMap<Key, (Source, ClusterObservation)>,
    key: &Key,
    source: &Source,
    observation: ClusterObservation,
) -> bool {
    let time = |observation: &ClusterObservation| observation.at.as_ref().map(|at| at.0);
    let is_news = reports
        .get(key)
        .is_none_or(|(from, known)| *known != observation && (from == source || time(known) < time(&observation)));
    if is_news {
        reports.insert(key.clone(), (source.clone(), observation));
    }
    is_news
}

async fn reconcile(
    cluster: Arc<TargetCluster>,
    ctx: Arc<Context>,
    memory: Shared,
    renewals: Renewals,
) -> Result<Action, Error> {
    let key = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    if ctx.leader.term().is_none() {
        return Ok(Action::requeue(RECHECK));
    }
    if renewals.has_renewed(&key) {
        lock(&memory).kubeconfigs.remove(&key);
    }
    let (kubeconfig, held) = checked(&ctx, &cluster, &memory, &key).await;
    let look = match &kubeconfig {
        Kubeconfig::Accepted { .. } => RECHECK,
        Kubeconfig::Refused { .. } | Kubeconfig::Unknown { .. } => RECHECK_BAD,
    };
    let (failure, next) = renewals.look(&ctx, &cluster, held.as_ref());
    let look = next.map_or(look, |next| look.min(next));
    let (report, since) = {
        let memory = lock(&memory);
        (
            memory
                .reports
                .get(&key)
                .map(|(_, report)| report.clone())
                .filter(|report| is_of(&cluster, report)),
            memory.written.get(&key).map(Instant::elapsed),
        )
    };
    let old = cluster.status.clone().unwrap_or_default();
    let now = Timestamp::now();
    let new = status(
        &old,
        &kubeconfig,
        accepts(&cluster),
        report.as_ref(),
        cluster.metadata.generation,
        now,
    );
    let new = if matches!(kubeconfig, Kubeconfig::Unknown { .. }) {
        new
    } else {
        let credential = held.as_ref().map(|held| &held.credential);
        credential::add(new, credential, failure.as_ref(), cluster.metadata.generation, now)
    };
    match worth(&old, &new, since) {
        Worth::Never => return Ok(Action::requeue(look)),
        Worth::After(rest) => return Ok(Action::requeue(rest.min(look))),
        Worth::Now => {}
    }
    apply::status(&ctx.client, cluster.as_ref(), cluster.status.as_ref(), &new)
        .await
        .map_err(|source| Error::WriteStatus(format!("{}/{}", key.0, key.1), source))?;
    ctx.metrics.wrote("patch", "targetclusters/status");
    lock(&memory).written.insert(key, Instant::now());
    tell(&ctx, &cluster, &old, &new).await;
    Ok(Action::requeue(look))
}

/// What the kubeconfig is worth, read anew when it was long ago or of another generation.
async fn checked(ctx: &Context, cluster: &TargetCluster, memory: &Shared, key: &Key) -> (Kubeconfig, Option<Held>) {
    let generation = cluster.metadata.generation;
    let known = lock(memory).kubeconfigs.get(key).cloned();
    if let Some((at, of, kubeconfig, held)) = known {
        let lasts = match kubeconfig {
            Kubeconfig::Accepted { .. } => RECHECK,
            Kubeconfig::Refused { .. } | Kubeconfig::Unknown { .. } => RECHECK_BAD,
        };
        if of == generation && at.elapsed() < lasts {
            return (kubeconfig, held);
        }
    }
    let (kubeconfig, held) = match read(ctx, cluster, &key.0).await {
        Ok((kubeconfig, held)) => (kubeconfig, Some(held)),
        Err(kubeconfig) => (kubeconfig, None),
    };
    lock(memory).kubeconfigs.insert(
        key.clone(),
        (Instant::now(), generation, kubeconfig.clone(), held.clone()),
    );
    (kubeconfig, held)
}

async fn read(ctx: &Context, cluster: &TargetCluster, namespace: &str) -> Result<(Kubeconfig, Held), Kubeconfig> {
    let reference = &cluster.spec.kubeconfig_secret_ref;
    let secrets: Api<Secret> = Api::namespaced(ctx.client.clone(), namespace);
    let secret = match secrets.get_opt(&reference.name).await {
        Ok(Some(secret)) => secret,
        Ok(None) => {
            return Err(Kubeconfig::Refused {
                reason: "SecretNotFound",
                why: format!("there is no Secret {}", reference.name),
            });
        }
        Err(error) => {
            return Err(Kubeconfig::Unknown {
                why: format!("Secret {}: {}", reference.name, apply::words(&error)),
            });
        }
    };
    let Some(bytes) = secret.data.as_ref().and_then(|data| data.get(&reference.key)) else {
        let why = format!("Secret {} has no key {}", reference.name, reference.key);
        return Err(Kubeconfig::Refused {
            reason: "KeyNotFound",
            why,
        });
    };
    match kubeconfig::parse(&bytes.0) {
        Ok(accepted) => {
            let held = renewal::held(ctx, &secret, &accepted);
            let server = accepted.server();
            Ok((Kubeconfig::Accepted { server }, held))
        }
        Err(refused) => {
            let why = format!("Secret {}, key {}: {refused}", reference.name, reference.key);
            Err(Kubeconfig::Refused {
                reason: "KubeconfigRefused",
                why,
            })
        }
    }
}

/// Events for conditions that turned.
async fn tell(ctx: &Context, cluster: &TargetCluster, old: &TargetClusterStatus, new: &TargetClusterStatus) {
    for kind in [KUBECONFIG_ACCEPTED, REACHABLE, AUTHORIZED, HEALTHY] {
        let (before, now) = (find(&old.conditions, kind), find(&new.conditions, kind));
        let Some(now) = now.filter(|now| before.map(|before| &before.status) != Some(&now.status)) else {
            continue;
        };
        let severity = match (now.status.as_str(), before) {
            ("False", _) => EventType::Warning,
            // The first good news and what is not known yet are no news.
            ("True", Some(_)) => EventType::Normal,
            _ => continue,
        };
        ctx.event(cluster, severity, &now.reason, now.message.clone()).await;
    }
    let turned = |conditions: &[_]| find(conditions, CREDENTIALS_EXPIRING).map(|found| found.status == "True");
    if let (before, Some(true)) = (turned(&old.conditions), turned(&new.conditions))
        && before != Some(true)
        && let Some(now) = find(&new.conditions, CREDENTIALS_EXPIRING)
    {
        ctx.event(cluster, EventType::Warning, &now.reason, now.message.clone())
            .await;
    }
}
