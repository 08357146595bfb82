//! Which namespaces are this install's: of two installs that cover one namespace only one works there.
//!
//! A Lease in each namespace with objects of ours names the install whose it is. It is judged as the leader's own Lease is,
//! by what this process sees change, and lasts for minutes: a renewal is a write, and there may be many namespaces. The
//! other install looks now and then, and takes over once nothing was renewed for the Lease's whole duration.
//!
//! # Guarantees
//! [`Claims::holds`] says so only for two thirds of that duration after the moment at which the last successful renewal was
//! *sent*. Two installs are told apart by their ids; leaders of one install, by their terms.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::PostParams;
use kube::runtime::events::EventType;
use kube::{Api, Resource};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use umbel_api::names::LEASE_OF_NAMESPACE;
use umbel_telemetry::chain;

use crate::apply::{code, words};
use crate::context::Context;
use crate::failpoint;
use crate::leader::{Seen, Verdict, evaluate, write_over};

/// Another install's Lease is looked at this often.
const LOOK: Duration = Duration::from_secs(10);
/// After a fault or a conflict.
const AGAIN: Duration = Duration::from_secs(1);
/// Namespaces at a time.
const AT_A_TIME: usize = 16;
/// Nothing is renewed oftener.
const SHORTEST: Duration = Duration::from_millis(100);

/// Until when each namespace is certainly ours.
type Held = HashMap<String, Instant>;

/// The namespaces of this install.
pub struct Claims {
    duration: Duration,
    /// Those that are worked in without any object of ours.
    wanted: HashSet<String>,
    held: RwLock<Arc<Held>>,
    /// Asked about and not looked at yet.
    asked: Mutex<HashSet<String>>,
    news: Notify,
    changes: watch::Sender<()>,
}

impl Claims {
    /// None yet. After `duration` without renewal another install may take a namespace; `wanted` are held without any object
    /// of ours, too.
    pub fn new(duration: Duration, wanted: impl IntoIterator<Item = String>) -> Self {
        Self {
            duration,
            wanted: wanted.into_iter().collect(),
            held: RwLock::default(),
            asked: Mutex::default(),
            news: Notify::new(),
            changes: watch::Sender::new(()),
        }
    }

    /// Whether this namespace is ours now; one that was never asked about is looked at.
    pub fn holds(&self, namespace: &str) -> bool {
        self.is_held(&self.snapshot(), namespace, Instant::now())
    }

    /// When to ask again whether this namespace is ours; nothing where it is.
    pub fn rest(&self, namespace: &str) -> Option<Duration> {
        let held = self.snapshot();
        let is_known = held.contains_key(namespace);
        let rest = if is_known { LOOK } else { SHORTEST };
        (!self.is_held(&held, namespace, Instant::now())).then_some(rest)
    }

    /// Those of these objects that lie in namespaces of ours.
    pub fn ours<K: Resource>(&self, objects: impl IntoIterator<Item = Arc<K>>) -> Vec<Arc<K>> {
        let (held, now) = (self.snapshot(), Instant::now());
        let is_ours = |object: &Arc<K>| {
            let namespace = object.meta().namespace.as_deref().unwrap_or_default();
            self.is_held(&held, namespace, now)
        };
        objects.into_iter().filter(is_ours).collect()
    }

    /// Namespaces that come and go, from here on.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn is_held(&self, held: &Held, namespace: &str, now: Instant) -> bool {
        match held.get(namespace) {
            Some(until) => now < *until,
            None => {
                if self.lock().insert(namespace.to_owned()) {
                    self.news.notify_one();
                }
                false
            }
        }
    }

    fn snapshot(&self) -> Arc<Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says until when a namespace is ours; the past, where it is not.
    fn tell(&self, namespace: &str, until: Option<Instant>) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = Held::clone(&held);
        let before = match until {
            Some(until) => next.insert(namespace.to_owned(), until),
            None => next.remove(namespace),
        };
        *held = Arc::new(next);
        drop(held);
        let is = |until: Option<Instant>| until.is_some_and(|until| Instant::now() < until);
        if is(before) != is(until) {
            self.changes.send_replace(());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        // Nothing that can panic runs under this lock.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of one namespace's Lease.
struct Claim {
    seen: Seen,
    /// The Lease as we wrote it last.
    lease: Option<Lease>,
    next: Instant,
    /// What was told of it last.
    told: Option<String>,
}

/// How an attempt ended.
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
enum End {
    /// The namespace is ours from when that was sent.
    Ours(Option<Lease>),
    /// It is another install's.
    Theirs(Box<Lease>),
    /// Nobody has objects here any more.
    Released,
    /// Somebody was faster, or something failed.
    Again(Option<kube::Error>),
}

/// Takes and renews the namespaces that are asked about, until `stop`.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut claims: HashMap<String, Claim> = HashMap::new();
    loop {
        let now = Instant::now();
        for namespace in std::mem::take(&mut *context.claims.lock()) {
            claims.entry(namespace).or_insert_with(|| Claim::new(now));
        }
        let due: Vec<(String, Claim)> = claims.extract_if(|_, claim| claim.next <= now).collect();
        let attempts = due
            .into_iter()
            .map(|(namespace, claim)| look(context.clone(), namespace, claim));
        let attempts = stream::iter(attempts).buffer_unordered(AT_A_TIME);
        let kept: Vec<Option<(String, Claim)>> = tokio::select! {
            () = stop.cancelled() => return,
            kept = attempts.collect() => kept,
        };
        claims.extend(kept.into_iter().flatten());
        let soonest = claims.values().map(|claim| claim.next).min();
        let soonest = soonest.unwrap_or_else(|| Instant::now() + LOOK);
        tokio::select! {
            () = stop.cancelled() => return,
            () = context.claims.news.notified() => {}
            () = tokio::time::sleep_until(soonest.into()) => {}
        }
    }
}

/// Looks after one namespace; nothing, where it is not to be looked after any more.
async fn look(context: Arc<Context>, namespace: String, mut claim: Claim) -> Option<(String, Claim)> {
    let stays = claim.attempt(&context, &namespace).await;
    stays.then_some((namespace, claim))
}

impl Claim {
    fn new(now: Instant) -> Self {
        Self {
            seen: Seen::new(now),
            lease: None,
            next: now,
            told: None,
        }
    }

    /// Looks after the namespace; whether it is still to be looked after.
    async fn attempt(&mut self, context: &Context, namespace: &str) -> bool {
        let duration = context.claims.duration;
        let sent = Instant::now();
        if context.leader.term().is_none() {
            self.next = sent + AGAIN;
            return true;
        }
        let rest = match self.turn(context, namespace).await {
            End::Ours(lease) => {
                self.lease = lease;
                self.told = None;
                context.claims.tell(namespace, Some(sent + duration * 2 / 3));
                duration / 3
            }
            End::Theirs(lease) => {
                self.lease = None;
                // The past: it is known, and not ours.
                context.claims.tell(namespace, Some(sent));
                let note = "another installation of Umbel works in this namespace; this one leaves it alone";
                if self.told.as_deref() != Some(note) {
                    tracing::warn!(
                        namespace,
                        "another installation works in this namespace: it is left alone"
                    );
                    let event = context.event(lease.as_ref(), EventType::Warning, "OtherInstallation", note.to_owned());
                    event.await;
                    self.told = Some(note.to_owned());
                }
                LOOK.min(duration / 3)
            }
            End::Released => {
                context.claims.tell(namespace, None);
                return false;
            }
            End::Again(error) => {
                self.lease = None;
                if let Some(error) = error {
                    let why = chain(&error).to_string();
                    if self.told.as_ref() != Some(&why) {
                        tracing::warn!(namespace, error = %why, "not known whether this namespace is ours");
                        self.told = Some(why);
                    }
                }
                AGAIN
            }
        };
        self.next = Instant::now() + rest.max(SHORTEST);
        true
    }

    async fn turn(&mut self, context: &Context, namespace: &str) -> End {
        let me = context.leader.install();
        let api: Api<Lease> = Api::namespaced(context.client.clone(), namespace);
        let found = match self.lease.take() {
            Some(lease) => Some(lease),
            None => match api.get_opt(LEASE_OF_NAMESPACE).await {
                Ok(found) => found,
                Err(error) => return unguarded(context, namespace, error),
            },
        };
        let now = Instant::now();
        if let Some(lease) = &found {
            self.seen.note(lease, now);
        }
        let is_empty = !has_objects(context, namespace);
        let params = PostParams::default();
        let written = match evaluate(found.as_ref(), me, &self.seen, now) {
            Verdict::Wait => return End::Theirs(Box::new(found.unwrap_or_default())),
            _ if is_empty && found.is_none() => return End::Released,
            Verdict::Take if is_empty => return End::Released,
            Verdict::Renew if is_empty => {
                let free = lease(found.as_ref(), namespace, "", context.claims.duration);
                let freed =
                    failpoint::around("release-namespace", api.replace(LEASE_OF_NAMESPACE, &params, &free)).await;
                return match freed {
                    Ok(_) => End::Released,
                    Err(error) if matches!(code(&error), Some(404 | 409)) => End::Again(None),
                    Err(error) => End::Again(Some(error)),
                };
            }
            Verdict::Create => {
                let ours = lease(None, namespace, me, context.claims.duration);
                failpoint::around("claim-namespace", api.create(&params, &ours)).await
            }
            Verdict::Take | Verdict::Renew => {
                let ours = lease(found.as_ref(), namespace, me, context.claims.duration);
                failpoint::around("claim-namespace", api.replace(LEASE_OF_NAMESPACE, &params, &ours)).await
            }
        };
        match written {
            Ok(lease) => {
                self.seen.note(&lease, now);
                End::Ours(Some(lease))
            }
            Err(error) => unguarded(context, namespace, error),
        }
    }
}

/// Without the right to its Lease a namespace is ours, as is one that is about to go: there, nothing can be made.
fn unguarded(context: &Context, namespace: &str, error: kube::Error) -> End {
    match code(&error) {
        Some(403) if words(&error).contains("being terminated") => End::Ours(None),
        Some(403) => {
            if !context.claims.holds(namespace) {
                tracing::warn!(
                    namespace, error = %chain(&error),
                    "without this right nobody keeps another installation from working in this namespace, too"
                );
            }
            End::Ours(None)
        }
        Some(404 | 409) => End::Again(None),
        _ => End::Again(Some(error)),
    }
}

/// Whether there is anything to look after.
fn has_objects(context: &Context, namespace: &str) -> bool {
    let Some(scope) = context.scope(namespace) else {
        return false;
    };
    !scope.queues.within(namespace).is_empty()
        || !scope.pools.within(namespace).is_empty()
        || !scope.periodic.within(namespace).is_empty()
        || !scope.tasks.within(namespace).is_empty()
        || !scope.clusters.within(namespace).is_empty()
        || context.claims.wanted.contains(namespace)
}

/// The Lease as it is to stand there.
fn lease(found: Option<&Lease>, namespace: &str, holder: &str, duration: Duration) -> Lease {
    let before = found.and_then(|lease| lease.spec.as_ref()?.holder_identity.as_deref());
    let taken = (before != Some(holder)).then_some(1);
    write_over(found, (namespace, LEASE_OF_NAMESPACE), holder, duration, taken)
}
