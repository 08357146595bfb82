//! One operator leads: a Kubernetes Lease, judged by what this process sees change.
//!
//! Another candidate's times are never compared to a clock: a Lease is expired
//! when nothing about it has changed for its own duration *as watched from
//! here*. Every write carries the resourceVersion that it was decided on.
//!
//! The *term* orders leaders. It is written to the Lease together with the
//! holder, and told to each broker at first contact; what carries a lower term
//! is refused from then on.
//!
//! # Guarantees
//! [`Leader::term`] answers a term only within `renew-deadline` of the moment at
//! which the last successful renewal was *sent*; that is shorter than the Lease,
//! so nobody else leads then. A process that loses the Lease never leads again:
//! its token is cancelled, and the program ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;
use umbel_api::names::ANNOTATION_TERM;
use umbel_broker::Fence;
use umbel_telemetry::chain;

use crate::args::Election;
use crate::failpoint;

/// What may be done about a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is none: make it.
    Create,
    /// Nobody holds it, or its holder was silent for its whole duration.
    Take,
    /// We hold it.
    Renew,
    /// Somebody else holds it.
    Wait,
}

/// The last change of a Lease that this process saw, and when.
#[derive(Clone, Debug)]
pub struct Seen {
    version: Option<String>,
    at: Instant,
}

impl Seen {
    /// Nothing seen yet.
    pub fn new(now: Instant) -> Self {
        Self { version: None, at: now }
    }

    /// Takes note of a Lease; any change of it starts the watch anew.
    pub fn note(&mut self, lease: &Lease, now: Instant) {
        if self.version.is_none() || self.version != lease.metadata.resource_version {
            self.version.clone_from(&lease.metadata.resource_version);
            self.at = now;
        }
    }
}

/// What candidate `me` may do about `lease`, which it last saw change at `seen`.
pub fn evaluate(lease: Option<&Lease>, me: &str, seen: &Seen, now: Instant) -> Verdict {
    let Some(lease) = lease else { return Verdict::Create };
    let spec = lease.spec.as_ref();
    match spec.and_then(|spec| spec.holder_identity.as_deref()) {
        None | Some("") => Verdict::Take,
        Some(holder) if holder == me => Verdict::Renew,
        Some(_) => {
            let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or(15);
            let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or(15));
            if now.duration_since(seen.at) >= duration {
                Verdict::Take
            } else {
                Verdict::Wait
            }
        }
    }
}

/// The term that a holder of this Lease may take: above everything that was ever seen.
pub fn next_term(lease: Option<&Lease>, at_least: u64) -> u64 {
    let transitions = lease
        .and_then(|lease| lease.spec.as_ref()?.lease_transitions)
        .unwrap_or(0);
    let written = lease.map_or(0, term_of);
    u64::try_from(transitions).unwrap_or(0).max(written).max(at_least) + 1
}

fn term_of(lease: &Lease) -> u64 {
    let text = lease
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(ANNOTATION_TERM));
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// What went wrong with the Lease.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Lease could not be read.
    #[error("read lease {0}")]
    Read(String, #[source] kube::Error),
    /// The Lease could not be written.
    #[error("write lease {0}")]
    Write(String, #[source] kube::Error),
}

/// A handle on our leadership; cheap to clone.
#[derive(Clone)]
pub struct Leader {
    inner: Arc<Inner>,
}

struct Inner {
    install: String,
    holder: String,
    /// The present term; zero while we do not lead.
    term: AtomicU64,
    /// A term of a broker that we must exceed; zero if none.
    exceed: AtomicU64,
    wake: tokio::sync::Notify,
    started: Instant,
    /// Until when, in milliseconds after `started`, the term may be used.
    valid_until: AtomicU64,
    calls: AtomicU64,
    lost: CancellationToken,
}

impl Leader {
    /// Nobody yet. `install` names this install in every broker.
    pub fn new(install: String, holder: String) -> Self {
        let inner = Inner {
            install,
            holder,
            term: AtomicU64::new(0),
            exceed: AtomicU64::new(0),
            wake: tokio::sync::Notify::new(),
            started: Instant::now(),
            valid_until: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            lost: CancellationToken::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The install id: the same for every operator of this release.
    pub fn install(&self) -> &str {
        &self.inner.install
    }

    /// The name under which this process holds the Lease.
    pub fn holder(&self) -> &str {
        &self.inner.holder
    }

    /// The present term, while this process certainly leads.
    pub fn term(&self) -> Option<u64> {
        let now = millis(self.inner.started.elapsed());
        let term = self.inner.term.load(Ordering::Acquire);
        (term > 0 && now < self.inner.valid_until.load(Ordering::Acquire)).then_some(term)
    }

    /// A fence for one gate call: each is above all earlier ones of this process.
    pub fn fence(&self) -> Option<Fence> {
        let term = self.term()?;
        let n = self.inner.calls.fetch_add(1, Ordering::AcqRel) + 1;
        Some(Fence {
            install: self.inner.install.clone(),
            term,
            n,
        })
    }

    /// A broker knows a higher term (a restored dump): take one above it, through the Lease.
    pub fn exceed(&self, term: u64) {
        self.inner.exceed.fetch_max(term, Ordering::AcqRel);
        self.inner.wake.notify_one();
    }

    /// Cancelled once the Lease is lost.
    pub fn lost(&self) -> &CancellationToken {
        &self.inner.lost
    }

    fn lead(&self, term: u64, sent: Instant, deadline: Duration) {
        let until = sent.duration_since(self.inner.started) + deadline;
        self.inner.valid_until.store(millis(until), Ordering::Release);
        self.inner.term.store(term, Ordering::Release);
    }

    fn lose(&self) {
        self.inner.term.store(0, Ordering::Release);
        self.inner.lost.cancel();
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The Lease and this process's part in it.
pub struct Campaign {
    api: Api<Lease>,
    election: Election,
    leader: Leader,
    seen: Seen,
    held: Option<Lease>,
}

impl Campaign {
    /// A candidate that has not looked yet.
    pub fn new(client: Client, election: Election, leader: Leader) -> Self {
        let api = Api::namespaced(client, &election.namespace);
        Self {
            api,
            election,
            leader,
            seen: Seen::new(Instant::now()),
            held: None,
        }
    }

    /// Waits until this process leads; `false` if `stop` came first.
    pub async fn win(&mut self, stop: &CancellationToken) -> bool {
        let mut last_fault = None;
        loop {
            match self.attempt().await {
                Ok(true) => return true,
                Ok(false) => last_fault = None,
                Err(error) => {
                    // The same fault every two seconds says nothing new.
                    let text = chain(&error).to_string();
                    if last_fault.as_ref() != Some(&text) {
                        tracing::warn!(error = text, "cannot campaign for the lease");
                    }
                    last_fault = Some(text);
                }
            }
            tokio::select! {
                () = stop.cancelled() => return false,
                () = tokio::time::sleep(jittered(self.election.retry)) => {}
            }
        }
    }

    /// Renews until the Lease is lost (the leader's token is then cancelled) or `stop` comes.
    pub async fn hold(&mut self, stop: &CancellationToken) {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.leader.inner.wake.notified() => {}
                () = tokio::time::sleep(self.election.retry) => {}
            }
            let left = self.election.deadline.saturating_sub(renewed.elapsed());
            let sent = Instant::now();
            match tokio::time::timeout(left, self.renew(sent)).await {
                Ok(Ok(true)) => renewed = sent,
                Ok(Ok(false)) => {
                    tracing::error!(
                        lease = self.election.name,
                        "this operator does not hold the lease any more"
                    );
                    return self.leader.lose();
                }
                Ok(Err(error)) => tracing::warn!(error = %chain(&error), "lease not renewed"),
                Err(_) => {}
            }
            if renewed.elapsed() >= self.election.deadline {
                tracing::error!(lease = self.election.name, "lease not renewed in time");
                return self.leader.lose();
            }
        }
    }

    /// Gives the Lease back, so that the next one need not wait.
    pub async fn release(&mut self) {
        self.leader.lose();
        let Some(mut lease) = self.held.take() else { return };
        if let Some(spec) = lease.spec.as_mut() {
            spec.holder_identity = Some(String::new());
        }
        let released = failpoint::around_of(
            "lease",
            "release",
            self.api.replace(&self.election.name, &PostParams::default(), &lease),
        )
        .await;
        if let Err(error) = released {
            tracing::warn!(error = %chain(&error), "lease not given back");
        }
    }

    async fn attempt(&mut self) -> Result<bool, Error> {
        let name = &self.election.name;
        let found = self
            .api
            .get_opt(name)
            .await
            .map_err(|source| Error::Read(name.clone(), source))?;
        let now = Instant::now();
        if let Some(lease) = &found {
            self.seen.note(lease, now);
        }
        let term = next_term(found.as_ref(), 0);
        let sent = Instant::now();
        let written = match evaluate(found.as_ref(), &self.election.holder, &self.seen, now) {
            Verdict::Wait => return Ok(false),
            Verdict::Create => {
                failpoint::around_of(
                    "lease",
                    "create",
                    self.api.create(&PostParams::default(), &self.lease(None, term, true)),
                )
                .await
            }
            Verdict::Take => self.replace(found.as_ref(), term, true).await,
            // Only after an answer that was lost: the write was ours.
            Verdict::Renew => self.replace(found.as_ref(), term, false).await,
        };
        match written {
            Ok(lease) => {
                self.held = Some(lease);
                self.leader.lead(term, sent, self.election.deadline);
                tracing::info!(lease = name, term, holder = self.election.holder, "leading");
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(source) => Err(Error::Write(name.clone(), source)),
        }
    }

    /// One renewal; `false` when somebody else holds the Lease.
    async fn renew(&mut self, sent: Instant) -> Result<bool, Error> {
        let name = self.election.name.clone();
        let exceed = self.leader.inner.exceed.load(Ordering::Acquire);
        let present = self.leader.inner.term.load(Ordering::Acquire);
        let term = if exceed >= present {
            next_term(self.held.as_ref(), exceed)
        } else {
            present
        };
        match self.replace(self.held.as_ref(), term, false).await {
            Ok(lease) => {
                self.held = Some(lease);
                self.leader.lead(term, sent, self.election.deadline);
                if term != present {
                    tracing::warn!(term, met = exceed, "took a higher term than a broker's");
                }
                Ok(true)
            }
            // Our own write whose answer was lost, an edit by hand, or another holder: look.
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => {
                let found = self
                    .api
                    .get_opt(&name)
                    .await
                    .map_err(|source| Error::Read(name.clone(), source))?;
                let holder = found
                    .as_ref()
                    .and_then(|lease| lease.spec.as_ref()?.holder_identity.as_deref());
                if holder != Some(self.election.holder.as_str()) {
                    if found.is_none() {
                        tracing::error!(lease = name, "the lease was deleted");
                    }
                    return Ok(false);
                }
                self.held = found;
                Ok(true)
            }
            Err(source) => Err(Error::Write(name, source)),
        }
    }

    async fn replace(&self, old: Option<&Lease>, term: u64, take: bool) -> Result<Lease, kube::Error> {
        let way = if take { "take" } else { "renew" };
        failpoint::around_of(
            "lease",
            way,
            self.api.replace(
                &self.election.name,
                &PostParams::default(),
                &self.lease(old, term, take),
            ),
        )
        .await
    }

    fn lease(&self, old: Option<&Lease>, term: u64, take: bool) -> Lease {
        let Election {
            namespace,
            name,
            holder,
            duration,
            ..
        } = &self.election;
        let taken = take.then(|| i32::from(old.is_some()));
        let mut lease = write_over(old, (namespace, name), holder, *duration, taken);
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(ANNOTATION_TERM.to_owned(), term.to_string());
        lease
    }
}

/// A Lease as its holder writes it over the one that stood there: renewed, or taken, which counts as so many transitions.
pub(crate) fn write_over(
    old: Option<&Lease>,
    (namespace, name): (&str, &str),
    holder: &str,
    duration: Duration,
    taken: Option<i32>,
) -> Lease {
    let now = MicroTime(Timestamp::now());
    let spec = old.and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let mut metadata = match old {
        Some(lease) => lease.metadata.clone(),
        None => ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
    };
    metadata.managed_fields = None;
    let transitions = spec.lease_transitions.unwrap_or(0);
    Lease {
        metadata,
        spec: Some(LeaseSpec {
            acquire_time: taken.map(|_| now.clone()).or_else(|| spec.acquire_time.clone()),
            renew_time: Some(now),
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(i32::try_from(duration.as_secs().max(1)).unwrap_or(i32::MAX)),
            lease_transitions: Some(transitions.saturating_add(taken.unwrap_or(0))),
            ..spec
        }),
    }
}

/// client-go's jitter: up to a fifth more, so that candidates do not march in step.
fn jittered(retry: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_bytes()[0];
    retry.mul_f64(1.0 + 0.2 * f64::from(random) / 255.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, version: &str, transitions: i32, term: &str) -> Lease {
        let mut lease = Lease::default();
        lease.metadata.resource_version = Some(version.into());
        lease.metadata.annotations = Some([(ANNOTATION_TERM.to_owned(), term.to_owned())].into());
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(transitions),
            // Far in the past: nobody may look at it.
            renew_time: Some(MicroTime(Timestamp::UNIX_EPOCH)),
            ..LeaseSpec::default()
        });
        lease
    }

    #[test]
    fn a_lease_expires_by_what_we_saw_and_not_by_its_times() {
        let start = Instant::now();
        let mut seen = Seen::new(start);
        let old = lease("b", "1", 0, "1");
        seen.note(&old, start);
        let later = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(evaluate(Some(&old), "a", &seen, later(14)), Verdict::Wait);
        seen.note(&old, later(14));
        assert_eq!(evaluate(Some(&old), "a", &seen, later(15)), Verdict::Take);
        let renewed = lease("b", "2", 0, "1");
        seen.note(&renewed, later(15));
        assert_eq!(evaluate(Some(&renewed), "a", &seen, later(29)), Verdict::Wait);
        assert_eq!(evaluate(Some(&renewed), "a", &seen, later(30)), Verdict::Take);
    }

    #[test]
    fn an_empty_holder_is_free_and_our_own_is_ours() {
        let now = Instant::now();
        let seen = Seen::new(now);
        assert_eq!(evaluate(None, "a", &seen, now), Verdict::Create);
        assert_eq!(evaluate(Some(&lease("", "1", 0, "1")), "a", &seen, now), Verdict::Take);
        assert_eq!(
            evaluate(Some(&lease("a", "1", 0, "1")), "a", &seen, now),
            Verdict::Renew
        );
    }

    #[test]
    fn a_term_exceeds_everything_seen() {
        assert_eq!(next_term(None, 0), 1);
        assert_eq!(next_term(Some(&lease("b", "1", 7, "3")), 0), 8);
        assert_eq!(next_term(Some(&lease("b", "1", 2, "9")), 0), 10);
        assert_eq!(next_term(Some(&lease("b", "1", 2, "9")), 41), 42);
    }

    #[test]
    fn fences_grow_and_end_with_the_trust() {
        let leader = Leader::new("i".into(), "me".into());
        assert_eq!(leader.fence(), None);
        leader.lead(4, Instant::now(), Duration::from_secs(10));
        let (first, second) = (leader.fence().unwrap(), leader.fence().unwrap());
        assert_eq!((first.term, first.n, second.n), (4, 1, 2));
        leader.lead(4, Instant::now(), Duration::ZERO);
        assert_eq!(leader.fence(), None);
    }
}
