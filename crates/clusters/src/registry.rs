//! The clusters that this worker's pool may touch, and the clients that are open now.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use moka::future::Cache;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::circuit::Circuit;
use crate::error::Error;
use crate::secret::{self, Fault, Freshness};
use crate::{client, kubeconfig};

/// Tasks of one worker at work on one target: a target's API server serves many workers.
const CONCURRENT: usize = 5;
/// A task waits this long for its turn at a target before it gives its slot back.
const PATIENCE: Duration = Duration::from_secs(10);
/// Open clients. One costs some 100 KB with its connection; a worker rarely serves more targets at a time.
const MAX_CLIENTS: u64 = 256;
/// A client that nobody used for this long is closed, with its watch at home.
const IDLE: Duration = Duration::from_mins(10);

/// One entry of `UMBEL_CLUSTERS`: a cluster that the pool may touch, and the Secret with its kubeconfig.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// Name of the TargetCluster.
    pub name: String,
    /// Name of the Secret, in the worker's own namespace.
    pub secret: String,
    /// Key in the Secret; `kubeconfig` where the TargetCluster does not say.
    #[serde(default = "default_key")]
    pub key: String,
}

fn default_key() -> String {
    "kubeconfig".to_owned()
}

/// Reads `UMBEL_CLUSTERS`; empty text is an empty list.
///
/// # Errors
/// The JSON parser's message.
pub fn accesses(json: &str) -> Result<Vec<Access>, serde_json::Error> {
    if json.trim().is_empty() {
        Ok(Vec::new())
    } else {
        serde_json::from_str(json)
    }
}

/// Where the worker's own Secrets are.
struct Home {
    client: Client,
    namespace: String,
}

/// The targets of one worker. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    home: Option<Home>,
    entries: BTreeMap<String, Arc<Entry>>,
    connections: Cache<String, Arc<Connection>>,
}

struct Entry {
    access: Access,
    turns: Arc<Semaphore>,
    circuit: Mutex<Circuit>,
    /// Held while the Secret is read, so that a burst of tasks reads it once.
    reading: tokio::sync::Mutex<()>,
}

struct Connection {
    version: String,
    client: Client,
    freshness: Freshness,
}

impl Registry {
    /// A worker without clusters: every name is unknown.
    pub fn none() -> Registry {
        Registry::build(None, Vec::new())
    }

    /// The given clusters, with their Secrets in `namespace` of the cluster that `client` reaches.
    ///
    /// The client should have a connect timeout and no read timeout: it holds watches.
    pub fn new(client: Client, namespace: impl Into<String>, clusters: Vec<Access>) -> Registry {
        Registry::build(
            Some(Home {
                client,
                namespace: namespace.into(),
            }),
            clusters,
        )
    }

    fn build(home: Option<Home>, clusters: Vec<Access>) -> Registry {
        let entry = |access: Access| {
            let entry = Entry {
                access,
                turns: Arc::new(Semaphore::new(CONCURRENT)),
                circuit: Mutex::default(),
                reading: tokio::sync::Mutex::default(),
            };
            (entry.access.name.clone(), Arc::new(entry))
        };
        let connections = Cache::builder().max_capacity(MAX_CLIENTS).time_to_idle(IDLE).build();
        let entries = clusters.into_iter().map(entry).collect();
        Registry {
            shared: Arc::new(Shared {
                home,
                entries,
                connections,
            }),
        }
    }

    /// Names of the clusters that may be touched, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.shared.entries.keys().map(String::as_str)
    }

    /// A turn at a target, with a client whose credential is at most 30 s older than the Secret.
    ///
    /// # Errors
    /// [`Error::UnknownCluster`], [`Error::ReadSecret`], [`Error::RefusedKubeconfig`], and without a call to the
    /// target [`Error::CircuitOpen`] or [`Error::Busy`].
    ///
    /// # Cancellation
    /// Safe: nothing is kept but a client that the next call uses.
    pub async fn target(&self, cluster: &str) -> Result<Target, Error> {
        let entry = self.shared.entries.get(cluster).ok_or_else(|| Error::UnknownCluster {
            cluster: cluster.to_owned(),
        })?;
        let open = |wait| Error::CircuitOpen {
            cluster: cluster.to_owned(),
            wait,
        };
        if let Some(wait) = entry.circuit().wait(Instant::now()) {
            return Err(open(wait));
        }
        let turn = tokio::time::timeout(PATIENCE, entry.turns.clone().acquire_owned())
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or_else(|| Error::Busy {
                cluster: cluster.to_owned(),
                limit: CONCURRENT,
            })?;
        let connection = self.connection(entry).await?;
        // Last, because it may take the one probe of a half-open circuit.
        entry.circuit().admit(Instant::now()).map_err(open)?;
        Ok(Target {
            entry: entry.clone(),
            connection,
            _turn: turn,
        })
    }

    /// The open connection of a cluster, or a new one when there is none or its Secret changed.
    async fn connection(&self, entry: &Entry) -> Result<Arc<Connection>, Error> {
        let Access { name, secret, key } = &entry.access;
        let held = |connection: &Arc<Connection>| connection.freshness.holds(Instant::now());
        if let Some(connection) = self.shared.connections.get(name).await.filter(held) {
            return Ok(connection);
        }
        let _reading = entry.reading.lock().await;
        let old = self.shared.connections.get(name).await;
        if let Some(connection) = old.clone().filter(held) {
            return Ok(connection);
        }

        let unreadable = |fault| Error::ReadSecret {
            cluster: name.clone(),
            secret: secret.clone(),
            fault,
        };
        let home = self.shared.home.as_ref().ok_or_else(|| unreadable(Fault::NoHome))?;
        let api: Api<Secret> = Api::namespaced(home.client.clone(), &home.namespace);
        let reading = match secret::read(&api, secret, key).await {
            Ok(reading) => reading,
            Err(Fault::Home(why)) if old.as_ref().is_some_and(|old| old.freshness.carry_over(Instant::now())) => {
                tracing::warn!(
                    cluster = name,
                    error = why,
                    "credential not checked, the last one is used"
                );
                return old.ok_or_else(|| unreadable(Fault::Home(why)));
            }
            Err(fault) => {
                // A credential that was taken away is not used again, even when the reason is a lost right.
                self.shared.connections.invalidate(name).await;
                return Err(unreadable(fault));
            }
        };
        let refused = |why| Error::RefusedKubeconfig {
            cluster: name.clone(),
            secret: secret.clone(),
            why,
        };
        let client = if let Some(old) = old.filter(|old| old.version == reading.version) {
            old.client.clone()
        } else {
            let accepted = kubeconfig::parse(&reading.kubeconfig).map_err(refused)?;
            tracing::info!(cluster = name, server = accepted.server(), "credential read");
            client::build(&accepted).map_err(refused)?
        };
        let freshness = Freshness::watch(api, secret.clone(), reading.version.clone(), Instant::now());
        let connection = Arc::new(Connection {
            version: reading.version,
            client,
            freshness,
        });
        self.shared.connections.insert(name.clone(), connection.clone()).await;
        Ok(connection)
    }
}

impl Entry {
    fn circuit(&self) -> std::sync::MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn at a target cluster. Give it back (drop it) when the work there is done.
pub struct Target {
    entry: Arc<Entry>,
    connection: Arc<Connection>,
    _turn: OwnedSemaphorePermit,
}

impl Target {
    /// Name of the cluster.
    pub fn name(&self) -> &str {
        &self.entry.access.name
    }

    /// The client. Send requests through [`Target::ask`], which bounds them and tells the circuit.
    pub fn client(&self) -> Client {
        self.connection.client.clone()
    }

    /// Awaits one request for at most `limit`.
    ///
    /// # Errors
    /// [`Error::Silent`], [`Error::Unreachable`] or [`Error::Answer`], with `attempt` saying what was asked.
    ///
    /// # Cancellation
    /// Safe for reads. A write that was sent may still happen.
    pub async fn ask<T>(
        &self,
        attempt: &'static str,
        limit: Duration,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Error> {
        let cluster = self.name().to_owned();
        let err = match tokio::time::timeout(limit, request).await {
            Err(_) => Error::Silent {
                cluster,
                attempt,
                limit,
            },
            Ok(Ok(answer)) => {
                self.entry.circuit().answered();
                return Ok(answer);
            }
            Ok(Err(source)) if is_transport(&source) => Error::Unreachable {
                cluster,
                attempt,
                source: Box::new(source),
            },
            Ok(Err(source)) => Error::Answer {
                cluster,
                attempt,
                source: Box::new(source),
            },
        };
        if let Error::Answer { .. } = err {
            self.entry.circuit().answered();
            if err.code() == Some(401) {
                self.connection.freshness.doubt();
            }
        } else if self.entry.circuit().silent(Instant::now()) {
            tracing::warn!(cluster = self.name(), error = %err, "target left alone for a while");
        }
        Err(err)
    }
}

/// Did the request fail before an API server answered it?
fn is_transport(err: &kube::Error) -> bool {
    matches!(
        err,
        kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) | kube::Error::RustlsTls(_)
    )
}
