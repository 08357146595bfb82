//! From the end of a run to Redis: result first, then the acknowledgement, in one script where both share a database.
//!
//! # Guarantees
//! A settlement is repeated until Redis answers it; one that Redis itself refuses, for a whole lease. Then the lease is
//! let go and the message will be delivered again. Nothing is acknowledged whose result could not be stored.
//!
//! Ends are gathered: what has arrived while the last call was on its way goes with the next one.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use tokio::sync::{Semaphore, mpsc};
use umbel_broker::{AckGroup, Acks, Broker, Counted, End, Error, FollowUp, Part, ResultStore, Settlement, Trouble};
use umbel_telemetry::chain;

use crate::app::Shared;
use crate::canvas::Member;
use crate::lease::Leases;
use crate::metrics::Metrics;
use crate::results;
use crate::sweep::DueSoon;

/// A settlement with the queue that its lease belongs to.
pub(crate) struct Ended {
    pub(crate) queue: Arc<str>,
    pub(crate) settlement: Settlement,
    /// A chord's member: its part is counted first.
    pub(crate) member: Option<Box<Member>>,
}

impl Ended {
    /// One that owes no part to a chord.
    pub(crate) fn of(queue: Arc<str>, settlement: Settlement) -> Ended {
        Ended {
            queue,
            settlement,
            member: None,
        }
    }
}

/// Ends in one call: Redis is busy for about a millisecond with so many.
const BATCH: usize = 256;
/// Pause after the first failed attempt; doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause while the server is away: slots wait for what cannot be settled, so it is seen soon that it is back.
const AWAY: Duration = Duration::from_millis(200);
/// Longest pause between two attempts that it refuses.
const REFUSING: Duration = Duration::from_secs(1);
/// Ends that the server refuses (a key of another type) and that are tried again beside all others.
const REFUSED: usize = 64;

pub(crate) struct Settler {
    pub(crate) broker: Broker,
    pub(crate) acks: Acks,
    pub(crate) results: Option<ResultStore>,
    pub(crate) store: ResultStore,
    /// Are documents compressed? Then the scripts cannot see which are final.
    pub(crate) is_compressed: bool,
    /// Does a chord fail with its first failed member?
    pub(crate) is_chord_fast: bool,
    pub(crate) worker: String,
    pub(crate) leases: Arc<Leases>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) due: Arc<DueSoon>,
    pub(crate) lease: Duration,
    pub(crate) dead_kept: u64,
    pub(crate) result_ttl: u64,
    /// Are there messages anywhere whose deliveries were counted? As the last reserve saw it.
    pub(crate) has_counted: Arc<AtomicBool>,
}

impl Settler {
    /// Settles until all senders are gone and everything is answered.
    pub(crate) async fn run(self, mut ended: mpsc::Receiver<Ended>) {
        let (this, refused) = (Arc::new(self), Arc::new(Semaphore::new(REFUSED)));
        let mut batch = Vec::with_capacity(BATCH);
        while ended.recv_many(&mut batch, BATCH).await > 0 {
            if batch.iter().any(|ended| ended.member.is_some()) {
                this.count(&mut batch, &refused).await;
            }
            let (plain, rest): (Vec<Ended>, Vec<Ended>) = batch.drain(..).partition(|ended| this.is_plain(ended));
            tokio::join!(this.acknowledge(plain), this.settle(rest, &refused));
        }
    }

    /// Counts the parts of a batch in one call. Takes out of it those that something else follows.
    async fn count(&self, batch: &mut Vec<Ended>, refused: &Arc<Semaphore>) {
        let members = || batch.iter().filter_map(|ended| ended.member.as_deref());
        let written: Vec<Vec<u8>> = members().map(Member::written).collect();
        let parts: Vec<Part<'_>> = members()
            .zip(&written)
            .map(|(member, written)| Part {
                part: &member.part,
                written,
            })
            .collect();
        let mut pause = FIRST_PAUSE;
        let counted = loop {
            match self.store.count_parts(&parts, self.is_chord_fast).await {
                Ok(counted) => break Ok(counted),
                Err(err) if is_refused(&err) => break Err(err),
                Err(err) => {
                    tracing::debug!(error = %chain(&err), "counting parts of chords again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(AWAY);
                }
            }
        };
        let mut counted = match counted {
            Ok(counted) => Some(counted.into_iter()),
            Err(err) => {
                // A chord that the server refuses (a key of another type) must not hold up the others.
                tracing::debug!(error = %chain(&err), "counting each part by itself");
                None
            }
        };
        for mut ended in std::mem::take(batch) {
            let Some(member) = ended.member.take() else {
                batch.push(ended);
                continue;
            };
            match counted.as_mut().map(Iterator::next) {
                Some(Some(Counted::Claimed { structure, parts })) => {
                    tokio::spawn(async move {
                        go_on(&member.shared, ended, member.complete(structure.as_deref(), &parts)).await;
                    });
                }
                Some(Some(Counted::Open | Counted::Done) | None) => batch.push(ended),
                None => {
                    let Ok(permit) = Arc::clone(refused).try_acquire_owned() else {
                        // So many are refused already; nobody else's end waits for them. The message comes again.
                        self.leases.remove(std::iter::once(&ended.settlement.lid));
                        continue;
                    };
                    tokio::spawn(async move {
                        let count = async {
                            let follow_ups = member.count().await;
                            drop(permit); // Before the end has its turn: who waits for this one is who takes ends.
                            follow_ups
                        };
                        go_on(&member.shared, ended, count).await;
                    });
                }
            }
        }
    }

    fn is_plain(&self, ended: &Ended) -> bool {
        let Settlement {
            lid: _,
            id: _,
            task: _,
            end,
            result,
            run,
            outcome,
            follow_ups,
        } = &ended.settlement;
        let is_cheap = result
            .as_ref()
            .is_none_or(|result| result.is_success && self.results.is_none());
        // Not run, it may have been called by a concurrency key, whose turn then goes on.
        let is_run = !matches!(*outcome, "revoked" | "expired");
        *end == End::Ack && is_run && is_cheap && run.is_none() && follow_ups.is_empty()
    }

    /// Ends that need no more than a result beside them: the cheap script.
    async fn acknowledge(&self, plain: Vec<Ended>) {
        if plain.is_empty() {
            return;
        }
        let has_counted = self.has_counted.load(Ordering::Relaxed);
        // By queue and by whether there is a result: a handful of groups.
        let mut groups: Vec<AckGroup> = Vec::new();
        for Ended {
            queue,
            settlement,
            member: _,
        } in plain
        {
            let has_result = settlement.result.is_some();
            let group = groups
                .iter()
                .position(|group| group.queue == queue && group.results.is_empty() != has_result);
            let group = group.unwrap_or_else(|| {
                groups.push(AckGroup {
                    queue,
                    ..AckGroup::default()
                });
                groups.len() - 1
            });
            groups[group].leases.push((settlement.lid, settlement.id));
            groups[group]
                .results
                .extend(settlement.result.map(|result| (result.key, result.document)));
        }
        let lost = self
            .repeat("ack", || {
                self.acks.ack(&self.worker, self.result_ttl, has_counted, &groups)
            })
            .await;
        self.finish(groups.iter().flat_map(|group| &group.leases).map(|(lid, _)| lid), lost);
    }

    async fn settle(self: &Arc<Self>, ended: Vec<Ended>, refused: &Arc<Semaphore>) {
        if ended.is_empty() {
            return;
        }
        let mut later = Vec::new();
        let mut settlements: Vec<Settlement> = ended.into_iter().map(|ended| ended.settlement).collect();
        if self.is_compressed
            && self
                .repeat("MGET", || self.finished(&settlements))
                .await
                .map(|(done, _)| {
                    overruled(&mut settlements, &done);
                })
                .is_none()
        {
            return self.let_go(&settlements);
        }
        // What is handed back goes to the head of its list: the oldest last, so that it is taken first again.
        settlements.sort_by_key(|settlement| std::cmp::Reverse(release_order(settlement)));
        if let Some(store) = &self.results {
            let documents: Vec<_> = settlements
                .iter_mut()
                .filter_map(|settlement| settlement.result.take())
                .collect();
            if !documents.is_empty() && self.repeat("store_result", || store.store(&documents)).await.is_none() {
                // Not acknowledged without its result: the lease runs out and the message comes again.
                return self.let_go(&settlements);
            }
            let (before, after) = elsewhere(&mut settlements);
            if !before.is_empty() && self.repeat("follow", || store.follow(&before)).await.is_none() {
                return self.let_go(&settlements);
            }
            later = after;
        }
        self.settle_all(settlements, refused).await;
        if let Some(store) = self.results.as_ref().filter(|_| !later.is_empty()) {
            // What tidies up after a chord: repeated for a lease at most, and its keys expire by themselves.
            let _ = self.repeat("follow", || store.follow(&later)).await;
        }
    }

    /// Keys of results that are a SUCCESS already, among those that are about to be something else.
    async fn finished(&self, settlements: &[Settlement]) -> Result<HashSet<String>, Error> {
        let mut keys = Vec::new();
        for settlement in settlements {
            keys.extend(
                settlement
                    .result
                    .iter()
                    .filter(|result| !result.is_success)
                    .map(|result| result.key.clone()),
            );
            settlement
                .follow_ups
                .iter()
                .for_each(|follow_up| stored_keys(follow_up, &mut keys));
        }
        if keys.is_empty() {
            return Ok(HashSet::new());
        }
        let prefix = self.store.key("");
        let ids: Vec<String> = keys
            .iter()
            .map(|key| key.trim_start_matches(&prefix).to_owned())
            .collect();
        let documents = self.store.documents(&ids).await?;
        let is_done = |document: &Option<Vec<u8>>| document.as_deref().is_some_and(results::is_success);
        Ok(keys
            .into_iter()
            .zip(&documents)
            .filter(|(_, document)| is_done(document))
            .map(|(key, _)| key)
            .collect())
    }

    async fn settle_all(self: &Arc<Self>, settlements: Vec<Settlement>, refused: &Arc<Semaphore>) {
        let whole = self.broker.settle(self.dead_kept, &settlements).await;
        if let Ok(lost) = whole {
            if settlements
                .iter()
                .any(|settlement| matches!(settlement.end, End::Later { .. } | End::Park { .. }))
            {
                self.due.within(Duration::ZERO); // Who was told before it was in Redis may have looked too early.
            }
            return self.finish(
                settlements.iter().map(|settlement| &settlement.lid),
                Some((lost.len() as u64, false)),
            );
        }
        // One that the server refuses (a key of another type) must not hold up its neighbours: one at a time, and what
        // is refused again waits beside them.
        for settlement in settlements {
            match self
                .broker
                .settle(self.dead_kept, std::slice::from_ref(&settlement))
                .await
            {
                Ok(lost) => self.finish(std::iter::once(&settlement.lid), Some((lost.len() as u64, true))),
                Err(err) if !err.is_connection() => {
                    let Ok(permit) = Arc::clone(refused).acquire_owned().await else {
                        return;
                    };
                    let this = Arc::clone(self);
                    tokio::spawn(async move {
                        this.again(&settlement).await;
                        drop(permit);
                    });
                }
                Err(_) => self.again(&settlement).await,
            }
        }
        self.due.within(Duration::ZERO);
    }

    async fn again(&self, settlement: &Settlement) {
        let one = std::slice::from_ref(settlement);
        let answer = self.repeat("settle", || self.broker.settle(self.dead_kept, one)).await;
        self.finish(
            std::iter::once(&settlement.lid),
            answer.map(|(lost, _)| (lost.len() as u64, true)),
        );
    }

    /// Calls until there is an answer; answers it with whether the call was repeated. `None` after a whole lease of
    /// refusals. A server that is away is waited for: however long that takes, the lease may be ours when it is back.
    async fn repeat<T, F: Future<Output = Result<T, Error>>>(
        &self,
        what: &'static str,
        call: impl Fn() -> F,
    ) -> Option<(T, bool)> {
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut is_repeated = false;
        loop {
            match call().await {
                Ok(answer) => return Some((answer, is_repeated)),
                Err(err) if is_refused(&err) && began.elapsed() > self.lease => {
                    tracing::error!(call = what, error = %chain(&err), "given up: the message will be delivered again");
                    return None;
                }
                Err(err) => {
                    if !is_repeated {
                        tracing::warn!(call = what, error = %chain(&err), "settling again");
                    }
                    is_repeated = true;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(if is_refused(&err) { REFUSING } else { AWAY });
                }
            }
        }
    }

    fn finish<'a>(&self, lids: impl Iterator<Item = &'a Arc<str>>, answer: Option<(u64, bool)>) {
        if let Some((lost, is_repeated)) = answer
            && lost > 0
        {
            if is_repeated {
                // The first attempt most likely arrived and only its reply was lost.
                self.metrics.ack_unknown.inc_by(lost);
            } else {
                self.metrics.lost.inc_by(lost);
                tracing::warn!(count = lost, "leases were lost before they were settled");
            }
        }
        self.leases.remove(lids);
    }

    fn let_go(&self, settlements: &[Settlement]) {
        self.leases.remove(settlements.iter().map(|settlement| &settlement.lid));
    }
}

/// An end with what follows the part of its chord. Where that could not be prepared the message comes again.
async fn go_on(shared: &Shared, mut ended: Ended, follow_ups: impl Future<Output = Result<Vec<FollowUp>, Error>>) {
    let why = match AssertUnwindSafe(follow_ups).catch_unwind().await {
        Ok(Ok(follow_ups)) => {
            ended.settlement.follow_ups.splice(0..0, follow_ups);
            return shared.send(ended).await;
        }
        Ok(Err(err)) => chain(&err).to_string(),
        Err(_) => "a panic".to_owned(),
    };
    tracing::error!(task.id = %ended.settlement.id, error = %why, "what follows could not be prepared: the message will be delivered again");
    shared.leases.remove(std::iter::once(&ended.settlement.lid));
}

/// Does the server refuse this very call? Otherwise it is away or in trouble, and will take the call one day.
pub(crate) fn is_refused(err: &Error) -> bool {
    match err.trouble() {
        Trouble::NoPermission | Trouble::WrongType | Trouble::Other => !err.is_connection(),
        Trouble::Connection
        | Trouble::Timeout
        | Trouble::Tls
        | Trouble::Credentials
        | Trouble::Loading
        | Trouble::MasterDown
        | Trouble::ReadOnly
        | Trouble::NoReplicas
        | Trouble::TryAgain
        | Trouble::Busy
        | Trouble::Misconfigured
        | Trouble::OutOfMemory
        | Trouble::MaxClients => false,
    }
}

/// The token of what is handed back; nothing for all other ends, which keep their order.
fn release_order(settlement: &Settlement) -> Option<u64> {
    let is_release = matches!(settlement.end, End::Release | End::Charge);
    is_release.then(|| settlement.lid.rsplit(':').next().and_then(|token| token.parse().ok()))?
}

/// Takes out of settlements what belongs into a result database of its own: what comes before the messages are pushed,
/// and what tidies up afterwards. The pushes themselves stay, without their guard: that database cannot ask another one.
fn elsewhere(settlements: &mut [Settlement]) -> (Vec<FollowUp>, Vec<FollowUp>) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for settlement in settlements {
        let mut pushes = Vec::new();
        for follow_up in std::mem::take(&mut settlement.follow_ups) {
            let is_guarded = matches!(follow_up, FollowUp::Guarded { .. });
            let rest = without_pushes(follow_up, &mut pushes);
            if is_guarded { &mut after } else { &mut before }.extend(rest);
        }
        settlement.follow_ups = pushes;
    }
    (before, after)
}

/// The keys of the documents that a follow-up stores, at any depth.
fn stored_keys(follow_up: &FollowUp, keys: &mut Vec<String>) {
    match follow_up {
        FollowUp::Store { key, .. } => keys.push(key.clone()),
        FollowUp::Guarded { then, .. } => then.iter().for_each(|one| stored_keys(one, keys)),
        FollowUp::Push { .. }
        | FollowUp::Set { .. }
        | FollowUp::Delete { .. }
        | FollowUp::Extend { .. }
        | FollowUp::Mark { .. }
        | FollowUp::Count { .. }
        | FollowUp::LetGo { .. } => {}
    }
}

/// Takes out what would overwrite a SUCCESS.
fn overruled(settlements: &mut [Settlement], done: &HashSet<String>) {
    for settlement in settlements {
        if settlement
            .result
            .as_ref()
            .is_some_and(|result| !result.is_success && done.contains(&result.key))
        {
            settlement.result = None;
        }
        without_stores(&mut settlement.follow_ups, done);
    }
}

fn without_stores(follow_ups: &mut Vec<FollowUp>, done: &HashSet<String>) {
    follow_ups.retain(|one| !matches!(one, FollowUp::Store { key, .. } if done.contains(key)));
    for follow_up in follow_ups {
        if let FollowUp::Guarded { then, .. } = follow_up {
            without_stores(then, done);
        }
    }
}

/// Carries out what a task sends while it runs: first what belongs to results, so that nobody can be faster than it.
///
/// # Errors
/// The broker did not answer.
pub(crate) async fn follow_now(
    broker: &Broker,
    elsewhere: Option<&ResultStore>,
    follow_ups: Vec<FollowUp>,
) -> Result<(), Error> {
    let Some(store) = elsewhere else {
        return broker.follow(&follow_ups).await;
    };
    let mut pushes = Vec::new();
    let before: Vec<FollowUp> = follow_ups
        .into_iter()
        .filter_map(|follow_up| without_pushes(follow_up, &mut pushes))
        .collect();
    if !before.is_empty() {
        store.follow(&before).await?;
    }
    broker.follow(&pushes).await
}

/// The follow-up without the pushes and the marks of the broker's own in it, at any depth; these go to `pushes`.
fn without_pushes(follow_up: FollowUp, pushes: &mut Vec<FollowUp>) -> Option<FollowUp> {
    match follow_up {
        FollowUp::Push { .. } | FollowUp::Mark { .. } | FollowUp::Count { .. } | FollowUp::LetGo { .. } => {
            pushes.push(follow_up);
            None
        }
        FollowUp::Guarded { key, token, then } => {
            let then = then.into_iter().filter_map(|one| without_pushes(one, pushes)).collect();
            Some(FollowUp::Guarded { key, token, then })
        }
        FollowUp::Store { .. } | FollowUp::Set { .. } | FollowUp::Delete { .. } | FollowUp::Extend { .. } => {
            Some(follow_up)
        }
    }
}
