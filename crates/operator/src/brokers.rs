//! The brokers that queues name: where they are, and the latest that was seen of each.
//!
//! A broker's address and its credentials come from one and the same Secret, so
//! an object can never send one Secret's password to another host. The bundled
//! default broker serves the release's own namespace and no other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt};
use tokio::sync::broadcast;
use umbel_api::TaskQueue;
use umbel_broker::{Broker, Pem, QueueDepth, QueueFault, Survey, Tls, WorkerRecord};
use umbel_plan::flow::Flow;
use umbel_plan::scaling::Pace;
use umbel_telemetry::chain;

use crate::args::Release;

/// Wakes kept for a slow reader; one that lags further takes it that everything changed.
const WAKES: usize = 256;

/// Where a queue's broker is described: one key of one Secret, and a key prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// Namespace of the Secret and of the queues.
    pub namespace: String,
    /// Name of the Secret.
    pub secret: String,
    /// Key of the URL in it.
    pub key: String,
    /// kombu's `global_keyprefix`.
    pub prefix: String,
    /// What Sentinels call the primary; empty without them.
    pub master: String,
    /// What TLS needs to know, where the queue says so.
    pub tls: Option<TlsSource>,
}

/// Where certificates are described: Secrets of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TlsSource {
    /// Secret and key of the authorities.
    pub ca: Option<(String, String)>,
    /// Secret with `tls.crt` and `tls.key`.
    pub client: Option<String>,
    /// The name that the server's certificate must be for.
    pub server_name: Option<String>,
}

impl Source {
    /// The Secrets that say how the broker is reached.
    pub(crate) fn secrets(&self) -> BTreeSet<&str> {
        let tls = self.tls.iter();
        let certificates = tls.flat_map(|tls| {
            let ca = tls.ca.iter().map(|(secret, _)| secret.as_str());
            ca.chain(tls.client.as_deref())
        });
        std::iter::once(self.secret.as_str()).chain(certificates).collect()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            namespace,
            secret,
            key,
            prefix: _,
            master: _,
            tls: _,
        } = self;
        write!(out, "Secret {namespace}/{secret}, key {key}")
    }
}

/// Why a broker gives no sample.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The queue names no Secret and its namespace has no default broker.
    #[error("spec.broker.redis.urlSecretRef is required: only the release's namespace has a default broker")]
    NoBroker,
    /// The Secret, or the key in it, is not there or not readable.
    #[error("{from}: {why}")]
    Secret {
        /// Which Secret.
        from: String,
        /// What is wrong with it.
        why: String,
    },
    /// The broker does not answer, or refuses.
    #[error("{server}: {why}")]
    Unreachable {
        /// Host, port and database.
        server: String,
        /// What it said.
        why: String,
        /// It answers, and takes no writes.
        is_refusal: bool,
    },
    /// Another term stands there; ours is being told anew or raised.
    #[error("the broker has the term {term}, which is not ours")]
    Term {
        /// That term.
        term: u64,
    },
}

impl Fault {
    /// The fault as a condition's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoBroker => "NoBroker",
            Self::Secret { .. } => "SecretNotUsable",
            Self::Unreachable { .. } => "BrokerUnreachable",
            Self::Term { .. } => "OtherTerm",
        }
    }
}

/// The reason by which something waits for a broker that takes no writes.
pub const BROKER_REFUSES: &str = "BrokerRefuses";

/// What something waits for that needs a broker.
#[derive(Clone, Debug)]
pub struct Awaited {
    /// A condition's reason.
    pub reason: &'static str,
    /// How a sentence goes on behind "the broker".
    pub words: String,
}

impl Awaited {
    /// The end of a fault.
    pub fn end_of(fault: &Fault) -> Self {
        match fault {
            Fault::Unreachable { is_refusal: true, .. } => Self::writes(fault),
            fault => Self {
                reason: fault.reason(),
                words: format!(": {fault}"),
            },
        }
    }

    /// That it takes writes again, where this error is of that kind.
    pub fn after(error: &umbel_broker::Error) -> Option<Self> {
        error.trouble().is_refusal().then(|| Self::writes(chain(error)))
    }

    fn writes(said: impl fmt::Display) -> Self {
        Self {
            reason: BROKER_REFUSES,
            words: format!(", which takes no writes: {said}"),
        }
    }
}

/// A broker of which something changed.
#[derive(Clone, Debug)]
pub struct Wake {
    /// Which one.
    pub source: Source,
    /// What of it.
    pub changed: Arc<Changed>,
}

/// What changed at a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Something that concerns all of it.
    Everything,
    /// These, and nothing else.
    These(Parts),
}

/// Parts of a broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Queues, by their names there.
    pub queues: BTreeSet<String>,
    /// Pools, by uid.
    pub pools: BTreeSet<String>,
    /// Pods of workers that have not told their pool, by uid.
    pub pods: BTreeSet<String>,
}

impl Changed {
    /// Whether this queue is concerned.
    pub fn has_queue(&self, name: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::These(parts) => parts.queues.contains(name),
        }
    }
}

/// What one round trip saw of a broker.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When, by Redis.
    pub taken_at: Timestamp,
    /// When it arrived, by our monotonic clock.
    pub seen: Instant,
    /// Id of the data set; it changes when data was lost.
    pub generation: String,
    /// What the server is; `None` where it has not been looked at yet.
    pub survey: Option<Survey>,
    /// The last token that was given out there.
    pub token: u64,
    /// Messages held by Celery's own workers.
    pub foreign_unacked: u64,
    /// By queue name on the broker.
    pub queues: BTreeMap<String, Result<QueueDepth, QueueFault>>,
    /// Every worker that has an entry.
    pub workers: Vec<WorkerRecord>,
    /// Runs that workers have handed back because they stopped, by the uid of their pool.
    pub hand_backs: BTreeMap<String, u64>,
    /// The pace of each pool that aims at a time, by the pool's uid.
    pub paces: BTreeMap<String, Pace>,
    /// How each queue fares, by its name on the broker.
    pub flows: BTreeMap<String, Flow>,
    /// Celery's own workers on each queue that has any; `None` where they could not be asked.
    pub foreign: Option<BTreeMap<String, u32>>,
}

impl Sample {
    /// The broker's clock now, in Unix seconds, as far as this sample tells.
    #[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit")]
    pub fn clock(&self) -> f64 {
        self.taken_at.as_millisecond() as f64 / 1000.0 + self.seen.elapsed().as_secs_f64()
    }
}

/// The latest knowledge of one broker.
#[derive(Clone, Default)]
pub struct View {
    /// A connection, once there was one, even if the latest call failed.
    pub broker: Option<Broker>,
    /// The latest sample, however old.
    pub sample: Option<Arc<Sample>>,
    /// Why the latest attempt failed; `None` after a success.
    pub fault: Option<Fault>,
    /// Failures in a row.
    pub failures: u32,
    /// The term that the broker accepted from this leader. Without it nothing may be written there.
    pub term: Option<u64>,
    /// When it was seen last that its data had gone back to an earlier state.
    pub went_back: Option<Timestamp>,
    /// How often this leader saw that by itself.
    pub losses: u32,
}

impl View {
    /// The broker's time, as far as the latest sample and our monotonic clock can tell.
    pub fn now(&self) -> Option<Timestamp> {
        let sample = self.sample.as_ref()?;
        sample.taken_at.checked_add(sample.seen.elapsed()).ok()
    }

    /// What tells one state of the data from others: an emptied one has another id, an earlier one has the same.
    pub fn data(&self) -> String {
        let generation = self.sample.as_ref().map(|sample| sample.generation.as_str());
        format!("{}#{}", generation.unwrap_or_default(), self.losses)
    }
}

/// How a broker is reached, as its Secrets said last.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) url: String,
    pub(crate) tls: Option<Tls>,
}

fn unusable(source: &Source, secret: &str, key: &str, why: String) -> Fault {
    Fault::Secret {
        from: format!("Secret {}/{secret}, key {key}", source.namespace),
        why,
    }
}

/// All brokers; shared by the sampler, the controllers and the beat.
pub struct Brokers {
    client: Client,
    release: Release,
    views: Mutex<HashMap<Source, View>>,
    wakes: broadcast::Sender<Wake>,
}

impl Brokers {
    /// None known yet.
    pub fn new(client: Client, release: Release) -> Self {
        Self {
            client,
            release,
            views: Mutex::default(),
            wakes: broadcast::channel(WAKES).0,
        }
    }

    /// Where this queue's broker is described.
    pub fn source(&self, queue: &TaskQueue) -> Result<Source, Fault> {
        let namespace = queue.namespace().unwrap_or_default();
        let default = self
            .release
            .default_broker
            .as_ref()
            .filter(|_| namespace == self.release.namespace);
        let (secret, key) = match queue.url_secret() {
            Some(reference) => (reference.name.clone(), reference.key.clone()),
            None => default.cloned().ok_or(Fault::NoBroker)?,
        };
        let redis = queue.redis().cloned().unwrap_or_default();
        Ok(Source {
            namespace,
            secret,
            key,
            prefix: queue.key_prefix().to_owned(),
            master: redis.sentinel.map(|sentinel| sentinel.master_name).unwrap_or_default(),
            tls: redis.tls.map(|tls| TlsSource {
                ca: tls.ca_secret_ref.map(|ca| (ca.name, ca.key)),
                client: tls.client_cert_secret_ref.map(|client| client.name),
                server_name: tls.server_name,
            }),
        })
    }

    /// The latest knowledge of a broker; nothing before the sampler's first attempt.
    pub fn view(&self, source: &Source) -> View {
        self.lock().get(source).cloned().unwrap_or_default()
    }

    /// A connection to which our present `term` may be written; an error says why there is none.
    pub fn writable(&self, source: &Source, term: u64) -> Result<Broker, Fault> {
        let view = self.view(source);
        match (view.broker, view.fault) {
            (Some(broker), _) if view.term == Some(term) => Ok(broker),
            (_, Some(fault)) => Err(fault),
            _ => Err(Fault::Unreachable {
                server: source.to_string(),
                why: "not contacted yet".into(),
                is_refusal: false,
            }),
        }
    }

    /// Brokers of which something changed, from here on.
    pub fn wakes(&self) -> broadcast::Receiver<Wake> {
        self.wakes.subscribe()
    }

    pub(crate) fn update(&self, source: &Source, change: impl FnOnce(&mut View)) {
        change(self.lock().entry(source.clone()).or_default());
    }

    /// Notes that the data of a broker went back to an earlier state.
    pub(crate) fn went_back(&self, source: &Source) {
        self.update(source, |view| view.went_back = Some(Timestamp::now()));
        self.wake(source);
    }

    pub(crate) fn forget(&self, source: &Source) {
        self.lock().remove(source);
        self.wake(source);
    }

    pub(crate) fn wake(&self, source: &Source) {
        self.tell(source, Changed::Everything);
    }

    pub(crate) fn tell(&self, source: &Source, changed: Changed) {
        let wake = Wake {
            source: source.clone(),
            changed: Arc::new(changed),
        };
        // Without readers nobody needs to hear of it.
        let _ = self.wakes.send(wake);
    }

    /// Reads how a broker is reached: its URL and its certificates.
    pub(crate) async fn access(&self, source: &Source) -> Result<Access, Fault> {
        let url = self.text(source, &source.secret, &source.key).await?;
        let url = String::from_utf8(url)
            .map_err(|_| unusable(source, &source.secret, &source.key, "the value is not text".into()))?;
        let mut tls = None;
        if let Some(TlsSource {
            ca,
            client,
            server_name,
        }) = &source.tls
        {
            let authorities = match ca {
                Some((secret, key)) => Some(Pem::Text(self.text(source, secret, key).await?)),
                None => None,
            };
            let certificate = match client {
                Some(secret) => Some((
                    Pem::Text(self.text(source, secret, "tls.crt").await?),
                    Pem::Text(self.text(source, secret, "tls.key").await?),
                )),
                None => None,
            };
            tls = Some(Tls {
                authorities,
                certificate,
                server_name: server_name.clone(),
            });
        }
        Ok(Access {
            url: url.trim().to_owned(),
            tls,
        })
    }

    /// The Secret that is not there of those that say how a broker is reached.
    pub(crate) async fn missing(&self, source: &Source) -> Option<String> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &source.namespace);
        for name in source.secrets() {
            // Nobody knows of one that could not be asked for.
            if let Ok(None) = api.get_opt(name).await {
                return Some(name.to_owned());
            }
        }
        None
    }

    async fn text(&self, source: &Source, name: &str, key: &str) -> Result<Vec<u8>, Fault> {
        let fault = |why: String| unusable(source, name, key, why);
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &source.namespace);
        let secret = api
            .get_opt(name)
            .await
            .map_err(|error| fault(crate::apply::words(&error)))?;
        let data = secret
            .ok_or_else(|| fault("there is no such Secret".into()))?
            .data
            .unwrap_or_default();
        let value = data.get(key).ok_or_else(|| fault("there is no such key".into()))?;
        Ok(value.0.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Source, View>> {
        // No code that can panic runs under this lock.
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
