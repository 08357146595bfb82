//! The clusters that this worker's pool may touch, and the clients that are open now.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use http::Request;
use http::header::HeaderValue;
use k8s_openapi::api::core::v1::Secret;
use kube::client::Body;
use kube::{Api, Client};
use moka::future::Cache;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};

use crate::board::{Admission, Board, Bucket, Facts, Grant, Limits};
use crate::circuit::{Circuit, State};
use crate::error::Error;
use crate::secret::{self, Fault, Freshness};
use crate::stay::{Dress, Identity, Stay, Target, lock, put_on};
use crate::{client, kubeconfig};

/// Open clients. One costs some 100 KB with its connection; a worker rarely serves more targets at a time.
const MAX_CLIENTS: u64 = 512;
/// A client that nobody used for this long is closed, with its watch at home.
const IDLE: Duration = Duration::from_mins(10);
/// A probe is waited for in the slot of the task that sent it for so long: most that live answer sooner.
const GRACE: Duration = Duration::from_millis(250);

/// One entry of `UMBEL_CLUSTERS`: a cluster that the pool may touch, the Secret with its kubeconfig, and how it may be used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// Name of the TargetCluster.
    pub name: String,
    /// Name of the Secret, in the worker's own namespace.
    pub secret: String,
    /// Key in the Secret; `kubeconfig` where the TargetCluster does not say.
    #[serde(default = "default_key")]
    pub key: String,
    /// What it is asked at most.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// Whom requests are made as, where it is not the credential's own user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impersonate: Option<Impersonate>,
}

/// Whom requests are made as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Impersonate {
    /// The user.
    pub user: String,
    /// Their groups.
    #[serde(default)]
    pub groups: Vec<String>,
}

impl Impersonate {
    /// As headers, if nobody can become somebody else by them than the names say: an empty user is the credential's own.
    fn dress(&self) -> Result<(HeaderValue, Vec<HeaderValue>), &'static str> {
        let plain = |text: &str| !text.is_empty() && text.trim() == text && !text.chars().any(char::is_control);
        let header = |text: &str| HeaderValue::from_str(text).map_err(|_| "a name cannot be sent as a header");
        if !plain(&self.user) {
            return Err("the user is empty, or has blanks around it");
        }
        if self.user.starts_with("system:") {
            return Err("a user whose name begins with `system:` is not allowed");
        }
        if !self.groups.iter().all(|group| plain(group)) {
            return Err("a group is empty, or has blanks around it");
        }
        if self.groups.iter().any(|group| group == "system:masters") {
            return Err("the group `system:masters` is not allowed");
        }
        let groups = self
            .groups
            .iter()
            .map(|group| header(group))
            .collect::<Result<_, _>>()?;
        Ok((header(&self.user)?, groups))
    }

    /// A client whose every request is made as this user, as a worker makes them.
    ///
    /// # Errors
    /// Why no request may be made as this user.
    pub fn client(&self, own: &Client) -> Result<Client, &'static str> {
        let (own, dress) = (own.clone(), Some(self.dress()?));
        let service = tower::service_fn(move |mut request: Request<Body>| {
            put_on(&dress, request.headers_mut());
            let own = own.clone();
            async move { own.send(request).await }
        });
        Ok(Client::new(service, "default"))
    }
}

fn default_key() -> String {
    "kubeconfig".to_owned()
}

fn is_default(limits: &Limits) -> bool {
    *limits == Limits::default()
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

pub(crate) struct Shared {
    home: Option<Home>,
    entries: BTreeMap<String, Arc<Entry>>,
    connections: Cache<String, Arc<Connection>>,
    pub(crate) board: Option<Arc<dyn Board>>,
    /// Of the names of turns: of this process, and counted.
    process: u64,
    turns: AtomicU64,
}

pub(crate) struct Entry {
    pub(crate) access: Access,
    pub(crate) limits: Limits,
    pub(crate) dress: Dress,
    mistake: Option<&'static str>,
    turns: Arc<Semaphore>,
    circuit: Mutex<Circuit>,
    /// Changes when the circuit opens: who waits for an answer then waits in vain.
    pub(crate) opened: watch::Sender<u64>,
    bucket: Mutex<Bucket>,
    facts: Mutex<Facts>,
    /// Held while the Secret is read, so that a burst of tasks reads it once.
    reading: tokio::sync::Mutex<()>,
}

pub(crate) struct Connection {
    pub(crate) version: String,
    pub(crate) link: Arc<Link>,
    pub(crate) freshness: Freshness,
}

/// A client, and who was at its other end, and when.
pub(crate) struct Link {
    pub(crate) client: Client,
    pub(crate) identity: tokio::sync::Mutex<Option<(Identity, Instant)>>,
}

impl Registry {
    /// A worker without clusters: every name is unknown.
    pub fn none() -> Registry {
        Registry::build(None, Vec::new(), None)
    }

    /// The given clusters, with their Secrets in `namespace` of the cluster that `client` reaches; the worker knows their
    /// limits and circuits by itself.
    ///
    /// The client should have a connect timeout and no read timeout: it holds watches.
    pub fn new(client: Client, namespace: impl Into<String>, clusters: Vec<Access>) -> Registry {
        let namespace = namespace.into();
        Registry::build(Some(Home { client, namespace }), clusters, None)
    }

    /// As [`Registry::new`], with limits and circuits that are one for all who use the same board.
    pub fn with_board(
        client: Client,
        namespace: impl Into<String>,
        clusters: Vec<Access>,
        board: Arc<dyn Board>,
    ) -> Registry {
        let namespace = namespace.into();
        Registry::build(Some(Home { client, namespace }), clusters, Some(board))
    }

    fn build(home: Option<Home>, clusters: Vec<Access>, board: Option<Arc<dyn Board>>) -> Registry {
        let entry = |access: Access| {
            let limits = access.limits.sane();
            let (dress, mistake) = match access.impersonate.as_ref().map(Impersonate::dress) {
                None => (None, None),
                Some(Ok(dress)) => (Some(dress), None),
                Some(Err(why)) => (None, Some(why)),
            };
            let entry = Entry {
                turns: Arc::new(Semaphore::new(limits.tasks as usize)),
                bucket: Mutex::new(Bucket::new(limits, Instant::now())),
                circuit: Mutex::default(),
                opened: watch::Sender::default(),
                facts: Mutex::default(),
                reading: tokio::sync::Mutex::default(),
                access,
                limits,
                dress,
                mistake,
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
                board,
                process: RandomState::new().hash_one(std::process::id()),
                turns: AtomicU64::new(0),
            }),
        }
    }

    /// Names of the clusters that may be touched, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.shared.entries.keys().map(String::as_str)
    }

    /// The circuit of a cluster, as this worker knows it.
    pub fn circuit(&self, cluster: &str) -> Option<Circuit> {
        self.shared.entries.get(cluster).map(|entry| *entry.circuit())
    }

    /// A turn at a target, with a client whose credential is at most 30 s older than the Secret. Waits for none: who finds
    /// no turn comes again later and leaves its slot to others.
    ///
    /// # Errors
    /// [`Error::UnknownCluster`], [`Error::Gone`], [`Error::ReadSecret`], [`Error::RefusedKubeconfig`],
    /// [`Error::Impersonation`]; without a call to the target [`Error::CircuitOpen`], [`Error::Busy`] or
    /// [`Error::Throttled`]; [`Error::Identity`], and how that could not be read.
    ///
    /// # Cancellation
    /// Safe: nothing is kept but a client that the next call uses.
    pub async fn target(&self, cluster: &str) -> Result<Target, Error> {
        let shared = &self.shared;
        let name = || cluster.to_owned();
        let Some(entry) = shared.entries.get(cluster) else {
            let facts = match &shared.board {
                Some(board) => board.facts(cluster).await.unwrap_or_default(),
                None => Facts::default(),
            };
            return Err(if facts.is_gone {
                Error::Gone { cluster: name() }
            } else {
                Error::UnknownCluster { cluster: name() }
            });
        };
        if let Some(why) = entry.mistake {
            return Err(Error::Impersonation { cluster: name(), why });
        }
        let waits = entry.circuit().wait(Instant::now());
        if let Some(wait) = waits
            && !shared.has_new_credential(entry).await
        {
            return Err(Error::CircuitOpen { cluster: name(), wait });
        }
        let busy = || Error::Busy {
            cluster: name(),
            limit: entry.limits.tasks,
        };
        let permit = entry.turns.clone().try_acquire_owned().map_err(|_| busy())?;
        let turn = format!(
            "{:016x}:{}",
            shared.process,
            shared.turns.fetch_add(1, Ordering::Relaxed)
        );
        let admission = match &shared.board {
            Some(board) => board.begin(cluster, &turn, entry.limits).await.ok(),
            None => None,
        };
        let grant = match admission {
            Some(Admission::Go { grant, circuit, facts }) => {
                entry.sees(circuit);
                *entry.facts() = facts;
                grant
            }
            Some(Admission::Busy) => return Err(busy()),
            Some(Admission::Gone) => return Err(Error::Gone { cluster: name() }),
            Some(Admission::Open(circuit)) => {
                entry.sees(circuit);
                let wait = circuit.wait(Instant::now()).unwrap_or_default();
                return Err(Error::CircuitOpen { cluster: name(), wait });
            }
            None => {
                let now = Instant::now();
                let open = |wait| Error::CircuitOpen { cluster: name(), wait };
                entry.circuit().admit(now).map_err(open)?;
                entry.bucket().take(entry.limits, entry.limits.batch(), now)
            }
        };
        let Grant { tokens, wait } = grant;
        let stay = Arc::new(Stay::new(shared, entry, turn, grant, permit));
        if tokens == 0 {
            return Err(Error::Throttled { cluster: name(), wait });
        }
        if entry.circuit().state == State::HalfOpen {
            // It goes on when this task does not wait for it any longer: a dead target holds no slot.
            let probing = stay.clone();
            let probe = tokio::spawn(async move { probing.probe().await });
            match tokio::time::timeout(GRACE, probe).await {
                Ok(Ok(answer)) => answer?,
                Ok(Err(_)) | Err(_) => {
                    let wait = entry.circuit().wait(Instant::now()).unwrap_or_default();
                    return Err(Error::CircuitOpen { cluster: name(), wait });
                }
            }
        }
        Target::arrive(stay).await
    }
}

impl Shared {
    /// Has the Secret of a target that does not answer changed since it was read? Then the reason may be gone.
    async fn has_new_credential(&self, entry: &Arc<Entry>) -> bool {
        let Some(old) = self.connections.get(&entry.access.name).await else {
            return false;
        };
        if old.freshness.holds(Instant::now()) {
            return false;
        }
        let is_new = self.connection(entry).await.is_ok_and(|new| new.version != old.version);
        if is_new {
            self.closed(entry).await;
        }
        is_new
    }

    /// The target answered, or there is reason to try it anew.
    pub(crate) async fn closed(&self, entry: &Entry) {
        entry.circuit().answered(Instant::now());
        if let Some(board) = &self.board
            && let Ok(circuit) = board.answered(&entry.access.name).await
        {
            entry.sees(circuit);
        }
    }

    /// The open connection of a cluster, or a new one when there is none or its Secret changed.
    pub(crate) async fn connection(&self, entry: &Entry) -> Result<Arc<Connection>, Error> {
        let Access { name, secret, key, .. } = &entry.access;
        let held = |connection: &Arc<Connection>| connection.freshness.holds(Instant::now());
        if let Some(connection) = self.connections.get(name).await.filter(held) {
            return Ok(connection);
        }
        let _reading = entry.reading.lock().await;
        let old = self.connections.get(name).await;
        if let Some(connection) = old.clone().filter(held) {
            return Ok(connection);
        }

        let unreadable = |fault| Error::ReadSecret {
            cluster: name.clone(),
            secret: secret.clone(),
            fault,
        };
        let home = self.home.as_ref().ok_or_else(|| unreadable(Fault::NoHome))?;
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
                self.connections.invalidate(name).await;
                return Err(unreadable(fault));
            }
        };
        let refused = |why| Error::RefusedKubeconfig {
            cluster: name.clone(),
            secret: secret.clone(),
            why,
        };
        let link = if let Some(old) = old.filter(|old| old.version == reading.version) {
            old.link.clone()
        } else {
            let accepted = match kubeconfig::parse(&reading.kubeconfig) {
                Ok(accepted) => accepted,
                Err(why) => {
                    // The old credential is not used once the Secret holds something else.
                    self.connections.invalidate(name).await;
                    return Err(refused(why));
                }
            };
            tracing::info!(cluster = name, server = accepted.server(), "credential read");
            Arc::new(Link {
                client: client::build(&accepted).map_err(refused)?,
                identity: tokio::sync::Mutex::default(),
            })
        };
        let freshness = Freshness::watch(api, secret.clone(), reading.version.clone(), Instant::now());
        let connection = Arc::new(Connection {
            version: reading.version,
            link,
            freshness,
        });
        self.connections.insert(name.clone(), connection.clone()).await;
        Ok(connection)
    }
}

impl Entry {
    pub(crate) fn circuit(&self) -> MutexGuard<'_, Circuit> {
        lock(&self.circuit)
    }

    pub(crate) fn bucket(&self) -> MutexGuard<'_, Bucket> {
        lock(&self.bucket)
    }

    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        lock(&self.facts)
    }

    /// What the board says of the circuit.
    pub(crate) fn sees(&self, circuit: Circuit) {
        *self.circuit() = circuit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn as_user(user: &str, groups: &[&str]) -> Result<(HeaderValue, Vec<HeaderValue>), &'static str> {
        let groups = groups.iter().map(|&group| group.to_owned()).collect();
        Impersonate {
            user: user.to_owned(),
            groups,
        }
        .dress()
    }

    #[test]
    fn d06_nobody_becomes_somebody_by_an_empty_or_a_system_name() {
        for user in [
            "",
            " ",
            "\t",
            " jane",
            "jane ",
            "ja\nne",
            "system:admin",
            "system:serviceaccount:a:b",
        ] {
            assert!(as_user(user, &[]).is_err(), "{user:?}");
        }
        for group in [
            "",
            "  ",
            "a\r\nImpersonate-User: b",
            "system:masters",
            " system:masters",
        ] {
            assert!(as_user("jane", &["dev", group]).is_err(), "{group:?}");
        }
        let (user, groups) = as_user("jane", &["dev", "ops"]).unwrap();
        assert_eq!((user, groups.len()), (HeaderValue::from_static("jane"), 2));
    }
}
