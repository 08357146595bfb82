//! Tokens of joined clusters are renewed at four fifths of their life: the one thing for which the operator connects to a
//! target.
//!
//! A Secret says by its annotation `umbel.dev/renew` whose token it holds. The account may make tokens for itself alone, so
//! nothing else than the Secret is needed. It is written with the resourceVersion that was read: what a person wrote
//! meanwhile wins.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use umbel_api::TargetCluster;
use umbel_api::names::ANNOTATION_RENEW;
use umbel_clusters::Accepted;
use umbel_clusters::credential::{Account, Kind, renewed};
use umbel_plan::credential::{Credential, Failure, wait};

use crate::apply;
use crate::context::Context;
use crate::failpoint;

/// Renewals at a time: targets that do not answer hold up few others, and answers are bounded at a megabyte each.
const AT_A_TIME: usize = 8;
/// Of one answer of a target, from the first byte to the last.
const ANSWER: Duration = Duration::from_secs(10);
/// A credential that is looked at because it turns is not looked at more often than this.
const SHORTEST: Duration = Duration::from_secs(1);

/// Namespace and name of a TargetCluster.
type Key = (String, String);

/// What a Secret held when it was read, without the secret.
#[derive(Clone, Debug)]
pub struct Held {
    /// How long it lasts, and whether it is renewed.
    pub credential: Credential,
    account: Option<Account>,
    version: Option<String>,
    seed: u64,
}

/// What is to be known of a Secret with this kubeconfig.
pub fn held(ctx: &Context, secret: &Secret, accepted: &Accepted) -> Held {
    let lifetime = accepted.lifetime();
    let account = account(secret).filter(|_| ctx.release.renews_tokens && lifetime.kind == Kind::Token);
    let mut hasher = DefaultHasher::new();
    (secret.uid(), lifetime.until.map(Timestamp::as_second)).hash(&mut hasher);
    Held {
        credential: Credential {
            what: match lifetime.kind {
                Kind::Token => "token",
                Kind::Certificate => "client certificate",
            },
            from: lifetime.from,
            until: lifetime.until,
            is_renewed: account.is_some(),
        },
        account,
        version: secret.resource_version(),
        seed: hasher.finish(),
    }
}

fn account(secret: &Secret) -> Option<Account> {
    serde_json::from_str(secret.annotations().get(ANNOTATION_RENEW)?).ok()
}

/// The renewals of one scope. Cheap to clone; all of it can be lost.
#[derive(Clone)]
pub struct Renewals {
    shared: Arc<Shared>,
}

struct Shared {
    attempts: Mutex<Attempts>,
    turns: Semaphore,
    wakes: mpsc::Sender<ObjectRef<TargetCluster>>,
    stop: CancellationToken,
}

#[derive(Default)]
struct Attempts {
    /// By cluster; one that succeeded is forgotten.
    of: HashMap<Key, Attempt>,
    /// Clusters whose Secret was written since they were looked at.
    renewed: HashSet<Key>,
}

struct Attempt {
    /// Of the Secret that could not be renewed: another one begins anew.
    version: Option<String>,
    is_running: bool,
    failures: u32,
    failure: Option<Failure>,
    next: Instant,
}

/// How an attempt ended.
enum End {
    /// The Secret is another one now, by us or by somebody else.
    Changed,
    /// This process does not lead, or ends.
    Stopped,
    Failed(String),
}

impl Renewals {
    /// None yet; clusters are woken through `wakes` when one has ended.
    pub fn new(wakes: mpsc::Sender<ObjectRef<TargetCluster>>, stop: CancellationToken) -> Self {
        Self {
            shared: Arc::new(Shared {
                attempts: Mutex::default(),
                turns: Semaphore::new(AT_A_TIME),
                wakes,
                stop,
            }),
        }
    }

    /// Whether the Secret of a cluster was written since this was last asked.
    pub fn has_renewed(&self, cluster: &Key) -> bool {
        self.attempts().renewed.remove(cluster)
    }

    /// Begins a renewal that is due. What kept the latest from succeeding, and when to look again.
    pub fn look(
        &self,
        ctx: &Arc<Context>,
        cluster: &TargetCluster,
        held: Option<&Held>,
    ) -> (Option<Failure>, Option<Duration>) {
        let key = (cluster.namespace().unwrap_or_default(), cluster.name_any());
        let mut attempts = self.attempts();
        let Some(held) = held else {
            attempts.of.remove(&key);
            return (None, None);
        };
        let now = Timestamp::now();
        let until = |at: Timestamp| {
            Duration::try_from(at.duration_since(now))
                .ok()
                .map(|rest| rest.max(SHORTEST))
        };
        let (Some(account), Some(due)) = (&held.account, held.credential.due(held.seed)) else {
            attempts.of.remove(&key);
            let turns = [held.credential.soon(), held.credential.until];
            return (None, turns.into_iter().flatten().find(|at| *at > now).and_then(until));
        };
        if due > now {
            attempts.of.remove(&key);
            return (None, until(due));
        }
        let attempt = attempts.of.entry(key.clone()).or_insert_with(|| Attempt {
            version: held.version.clone(),
            is_running: false,
            failures: 0,
            failure: None,
            next: Instant::now(),
        });
        if attempt.is_running {
            return (attempt.failure.clone(), None);
        }
        if attempt.version != held.version {
            (attempt.failures, attempt.failure, attempt.next) = (0, None, Instant::now());
            attempt.version.clone_from(&held.version);
        }
        let rest = attempt.next.saturating_duration_since(Instant::now());
        if !rest.is_zero() {
            return (attempt.failure.clone(), Some(rest.max(SHORTEST)));
        }
        attempt.is_running = true;
        let failure = attempt.failure.clone();
        drop(attempts);
        let reference = cluster.spec.kubeconfig_secret_ref.clone();
        let (this, ctx, account, seed) = (self.clone(), ctx.clone(), account.clone(), held.seed);
        tokio::spawn(async move {
            let renewal = renew(&this.shared, &ctx, &key, &reference, &account);
            let end = tokio::select! {
                end = renewal => end,
                () = this.shared.stop.cancelled() => End::Stopped,
            };
            this.note(&key, end, seed);
            let _ = this.shared.wakes.send(ObjectRef::new(&key.1).within(&key.0)).await; // Nobody listens at the end.
        });
        (failure, None)
    }

    fn note(&self, key: &Key, end: End, seed: u64) {
        let mut attempts = self.attempts();
        match end {
            End::Changed => {
                attempts.of.remove(key);
                attempts.renewed.insert(key.clone());
            }
            End::Stopped => {
                attempts.of.remove(key);
            }
            End::Failed(why) => {
                let Some(attempt) = attempts.of.get_mut(key) else {
                    return;
                };
                attempt.is_running = false;
                attempt.failures += 1;
                let rest = wait(attempt.failures, seed);
                attempt.next = Instant::now() + rest;
                tracing::warn!(
                    cluster = key.1,
                    namespace = key.0,
                    error = why,
                    retry_ms = u64::try_from(rest.as_millis()).unwrap_or(u64::MAX),
                    "token not renewed"
                );
                attempt.failure = Some(Failure {
                    at: Timestamp::now(),
                    why,
                });
            }
        }
    }

    fn attempts(&self) -> std::sync::MutexGuard<'_, Attempts> {
        // Nothing that can panic runs under this lock.
        self.shared.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn renew(
    shared: &Shared,
    ctx: &Context,
    key: &Key,
    reference: &umbel_api::refs::SecretKeyRef,
    account: &Account,
) -> End {
    let Ok(_turn) = shared.turns.acquire().await else {
        return End::Stopped;
    };
    let secrets: Api<Secret> = Api::namespaced(ctx.client.clone(), &key.0);
    let mut secret = match secrets.get_opt(&reference.name).await {
        Ok(Some(secret)) => secret,
        Ok(None) => return End::Changed,
        Err(error) => return End::Failed(format!("Secret {}: {}", reference.name, apply::words(&error))),
    };
    let bytes = secret.data.as_ref().and_then(|data| data.get(&reference.key)).cloned();
    let (Some(bytes), true) = (bytes, self::account(&secret).as_ref() == Some(account)) else {
        return End::Changed;
    };
    if ctx.leader.term().is_none() {
        return End::Stopped;
    }
    let text = match renewed(&bytes.0, account, ANSWER).await {
        Ok(text) => text,
        Err(error) => return End::Failed(error.to_string()),
    };
    // The answer may have taken longer than the trust of the Lease.
    if ctx.leader.term().is_none() {
        return End::Stopped;
    }
    let data = secret.data.get_or_insert_default();
    data.insert(reference.key.clone(), ByteString(text.into_bytes()));
    let written = failpoint::around_of(
        "renewal",
        &key.1,
        secrets.replace(&reference.name, &PostParams::default(), &secret),
    )
    .await;
    match written {
        Ok(_) => {
            ctx.metrics.wrote("update", "secrets");
            tracing::info!(cluster = key.1, namespace = key.0, "token renewed");
            End::Changed
        }
        // Somebody else has written it: what is there now is looked at.
        Err(error) if matches!(apply::code(&error), Some(404 | 409)) => End::Changed,
        Err(error) if apply::code(&error) == Some(403) => End::Failed(format!(
            "the operator may not update Secret {} (the chart's tokenRenewal.namespaces says where it may): {}",
            reference.name,
            apply::words(&error)
        )),
        Err(error) => End::Failed(format!("Secret {}: {}", reference.name, apply::words(&error))),
    }
}
