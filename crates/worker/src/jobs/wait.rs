//! `umbel.cluster.wait`: until a rollout is complete, a condition is met, a field has a value, an object is gone.
//!
//! # Guarantees
//! * All waits for objects of one kind in one namespace of one cluster share one watch, and none of them holds a turn at the
//!   cluster while it waits: thousands fit into one worker.
//! * A watch that ends, for whatever reason, goes on where it was, or begins anew with a list. A cluster that is away is
//!   waited for, like the rest, until the timeout.
//! * A wait that ran out says what was still missing.
//!
//! A wait parks as one entry of a table with its goal and what it lacks; the objects themselves are kept nowhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use kube::api::{Api, DynamicObject, ListParams, WatchEvent, WatchParams};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use umbel_clusters::{Error, Registry, Target};

use super::get::without_values;
use super::goal::{Goal, Progress};
use super::manifest::Manifest;
use super::rules::{Allow, ObjectRules};
use super::site::{self, Gvk, REQUEST, Reference, Served};
use crate::job::{Arguments, Failure, Job, JobContext, Outcome};

/// Where the message does not say.
const TIMEOUT: f64 = 300.0;
const MAX_TIMEOUT: f64 = 7.0 * 24.0 * 3600.0;
/// The server ends a watch after this, and it goes on with the next: less than the silence that clients take for a dead
/// connection, so that a quiet watch is not one.
const WATCH_SECONDS: u32 = 15;
/// Longer than that, a watch was cut off without a word.
const SILENCE: Duration = Duration::from_secs(20);
/// Waits that came meanwhile are looked up one by one up to so many, and by a list from there on.
const WORTH_A_LIST: usize = 3;
const PAGE: u32 = 500;
/// Between attempts at a watch that fails, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// The job.
pub(super) struct Wait {
    rules: ObjectRules,
    hub: Arc<Hub>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Keywords {
    cluster: Option<String>,
    #[serde(alias = "api_version")]
    api_version: String,
    kind: String,
    namespace: Option<String>,
    name: String,
    #[serde(rename = "for")]
    goal: String,
    timeout: Option<f64>,
}

/// The watches of a worker.
pub(super) struct Hub {
    clusters: Registry,
    watches: Mutex<HashMap<Key, Arc<Watched>>>,
}

/// What one watch sees.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    cluster: String,
    gvk: Gvk,
    /// Empty: of a kind without.
    namespace: String,
    /// Is the kind one that may be without?
    may_have_none: bool,
}

/// One watch and who waits on it.
#[derive(Default)]
struct Watched {
    waiters: Mutex<Waiters>,
    /// Somebody came, or the last one went.
    changed: Notify,
}

#[derive(Default)]
struct Waiters {
    by_name: HashMap<Box<str>, Vec<Waiter>>,
    /// How many were not looked up yet.
    new: usize,
    next: u64,
}

struct Waiter {
    id: u64,
    goal: Goal,
    is_new: bool,
    /// The version that it saw last: what is older says nothing.
    seen: u64,
    /// What is missing.
    missing: Box<str>,
    done: Option<oneshot::Sender<Result<(), Failure>>>,
}

/// A place in the table; left when dropped.
struct Place {
    watched: Arc<Watched>,
    name: Box<str>,
    id: u64,
}

impl Wait {
    pub(super) fn new(clusters: Registry, rules: ObjectRules) -> Wait {
        Wait {
            rules,
            hub: Arc::new(Hub {
                clusters,
                watches: Mutex::default(),
            }),
        }
    }

    async fn wait(&self, ctx: &JobContext, arguments: &Arguments) -> Result<Outcome, Failure> {
        let (cluster, manifest, goal, timeout) = self.read(ctx, arguments)?;
        let allow = Allow {
            job: "wait",
            rules: &self.rules,
        };
        let key = Key {
            gvk: site::gvk(&manifest),
            namespace: manifest.namespace.clone(),
            may_have_none: allow.is_cluster_kind(&manifest.group, &manifest.kind),
            cluster,
        };
        // Unknown names are refused at once.
        if !self.hub.clusters.names().any(|name| name == key.cluster) {
            let cluster = key.cluster.clone();
            return Err(super::target::failure(&Error::UnknownCluster { cluster }));
        }
        let began = Instant::now();
        let (place, done) = self.hub.join(&key, &manifest.name, goal);
        drop(key.gvk);
        let ended = ctx.until_soft_limit(tokio::time::timeout(timeout, done)).await?;
        match ended {
            Ok(Ok(Ok(()))) => Ok(Outcome::done(&json!({
                "cluster": key.cluster,
                "object": manifest.to_string(),
                "waited": (began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
            }))),
            Ok(Ok(Err(why))) => Err(Failure {
                message: format!("cluster `{}`: {manifest}: {}", key.cluster, why.message),
                ..why
            }),
            Ok(Err(_)) => Err(Failure::transient("the watch of this wait ended")),
            Err(_) => Err(Failure::permanent(
                "TimeoutError",
                format!(
                    "cluster `{}`: {manifest}: not there after {} s; still waiting for {}",
                    key.cluster,
                    timeout.as_secs_f64(),
                    place.missing()
                ),
            )),
        }
    }

    fn read(&self, ctx: &JobContext, arguments: &Arguments) -> Result<(String, Manifest, Goal, Duration), Failure> {
        let (keywords, cluster) = site::one_cluster(self.name(), ctx, arguments, |keywords: &mut Keywords| {
            keywords.cluster.take()
        })?;
        let Keywords {
            cluster: _,
            api_version,
            kind,
            namespace,
            name,
            goal,
            timeout,
        } = keywords;
        let value_error = |text: String| Failure::permanent("ValueError", text);
        let goal = Goal::parse(&goal).map_err(value_error)?;
        let timeout = timeout.unwrap_or(TIMEOUT);
        if !(timeout > 0.0 && timeout <= MAX_TIMEOUT) {
            return Err(value_error(format!(
                "timeout: more than 0 and at most {MAX_TIMEOUT} seconds"
            )));
        }
        let reference = Reference {
            api_version,
            kind,
            namespace,
            name,
        };
        let manifest = reference.read(Allow {
            job: "wait",
            rules: &self.rules,
        })?;
        Ok((cluster, manifest, goal, Duration::from_secs_f64(timeout)))
    }
}

impl Job for Wait {
    fn name(&self) -> &'static str {
        "umbel.cluster.wait"
    }

    fn run<'a>(&'a self, ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome> {
        Box::pin(async move { self.wait(ctx, &args).await.unwrap_or_else(Outcome::Failed) })
    }
}

impl Hub {
    fn watches(&self) -> MutexGuard<'_, HashMap<Key, Arc<Watched>>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place at the watch, and starts that where there is none.
    fn join(self: &Arc<Hub>, key: &Key, name: &str, goal: Goal) -> (Place, oneshot::Receiver<Result<(), Failure>>) {
        let (sender, done) = oneshot::channel();
        let mut watches = self.watches();
        let watched = watches.get(key).cloned();
        let is_first = watched.is_none();
        let watched = watched.unwrap_or_default();
        let id = watched.waiters().add(name, goal, sender);
        if is_first {
            watches.insert(key.clone(), Arc::clone(&watched));
            tokio::spawn(tend(Arc::clone(self), key.clone(), Arc::clone(&watched), None));
        } else {
            watched.changed.notify_one();
        }
        let place = Place {
            watched,
            name: name.into(),
            id,
        };
        (place, done)
    }

    /// Gives the watch up, if nobody waits on it any more.
    fn retire(&self, key: &Key, watched: &Watched) -> bool {
        let mut watches = self.watches();
        let is_over = watched.waiters().by_name.is_empty();
        if is_over {
            watches.remove(key);
        }
        is_over
    }
}

impl Place {
    fn missing(&self) -> String {
        let waiters = self.watched.waiters();
        let here = waiters.by_name.get(&self.name).into_iter().flatten();
        let mut here = here.filter(|waiter| waiter.id == self.id);
        let missing = here.next().map(|waiter| waiter.missing.to_string());
        missing.unwrap_or_default()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiters = self.watched.waiters();
        waiters.leave(&self.name, self.id);
        if waiters.by_name.is_empty() {
            self.watched.changed.notify_one();
        }
    }
}

impl Watched {
    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiters {
    fn add(&mut self, name: &str, goal: Goal, done: oneshot::Sender<Result<(), Failure>>) -> u64 {
        self.next += 1;
        self.new += 1;
        let waiter = Waiter {
            id: self.next,
            goal,
            is_new: true,
            seen: 0,
            missing: "the cluster's first answer".into(),
            done: Some(done),
        };
        self.by_name.entry(name.into()).or_default().push(waiter);
        self.next
    }

    fn leave(&mut self, name: &str, id: u64) {
        if let Some(here) = self.by_name.get_mut(name) {
            let new = &mut self.new;
            here.retain(|waiter| {
                let stays = waiter.id != id;
                *new -= usize::from(!stays && waiter.is_new);
                stays
            });
            if here.is_empty() {
                self.by_name.remove(name);
            }
        }
    }

    /// An object of this name looks so now.
    fn show(&mut self, kind: &str, name: &str, version: u64, object: Option<&serde_json::Value>) {
        for waiter in self.by_name.get_mut(name).into_iter().flatten() {
            // A wait that was not looked up is looked up soon, and an older event may not be the present state.
            if waiter.is_new || (version != 0 && version < waiter.seen) {
                continue;
            }
            waiter.show(kind, version, object);
        }
    }

    /// Names that were not looked up yet.
    fn unseen(&self) -> Vec<Box<str>> {
        let is_new = |here: &Vec<Waiter>| here.iter().any(|waiter| waiter.is_new);
        let names = self.by_name.iter().filter(|(_, here)| is_new(here));
        names.map(|(name, _)| name.clone()).collect()
    }

    /// This name was looked up.
    fn look(&mut self, kind: &str, name: &str, version: u64, object: Option<&serde_json::Value>) {
        for waiter in self.by_name.get_mut(name).into_iter().flatten() {
            self.new -= usize::from(waiter.is_new);
            waiter.is_new = false;
            waiter.show(kind, version, object);
        }
    }

    /// All end with this.
    fn fail(&mut self, why: &Failure) {
        for waiter in self.by_name.values_mut().flatten() {
            waiter.end(Err(why.clone()));
        }
    }

    /// All wait for this as well.
    fn trouble(&mut self, why: &str) {
        for waiter in self.by_name.values_mut().flatten() {
            let before = waiter.missing.split(" (the watch failed: ").next().unwrap_or_default();
            waiter.missing = format!("{before} (the watch failed: {why})").into();
        }
    }
}

impl Waiter {
    fn show(&mut self, kind: &str, version: u64, object: Option<&serde_json::Value>) {
        self.seen = self.seen.max(version);
        match self.goal.progress(kind, object) {
            Progress::Met => self.end(Ok(())),
            Progress::Missing(missing) => self.missing = missing.into(),
            Progress::Hopeless(why) => self.end(Err(Failure::permanent("RuntimeError", why))),
        }
    }

    fn end(&mut self, how: Result<(), Failure>) {
        if let Some(done) = self.done.take() {
            let _ = done.send(how); // It left in the same moment.
        }
    }
}

/// Why a watch did not go on.
enum Trouble {
    /// What it wanted to go on from is no longer known.
    Gone,
    /// For good.
    Hopeless(Failure),
    /// For a while.
    Away(Error),
}

impl From<Error> for Trouble {
    fn from(err: Error) -> Trouble {
        match err.code() {
            Some(410) => Trouble::Gone,
            // Without the right to watch there is nothing to wait for. A credential that is refused is read again.
            Some(403) => Trouble::Hopeless(super::target::failure(&err)),
            _ if err.is_permanent() => Trouble::Hopeless(super::target::failure(&err)),
            _ => Trouble::Away(err),
        }
    }
}

/// Watches as long as anybody waits, from this version on.
async fn tend(hub: Arc<Hub>, key: Key, watched: Arc<Watched>, version: Option<String>) {
    let mut watch = Watch {
        hub: &hub,
        key: &key,
        watched: &watched,
        served: None,
        version,
    };
    let mut pause = FIRST_PAUSE;
    while !hub.retire(&key, &watched) {
        let began = Instant::now();
        let ended = watch.hold().await;
        let wait = match ended {
            Ok(()) if began.elapsed() > Duration::from_secs(1) => {
                pause = FIRST_PAUSE;
                continue;
            }
            Ok(()) => pause,
            Err(Trouble::Gone) => {
                tracing::debug!(cluster = key.cluster, kind = key.gvk.2, "the watch begins anew");
                watch.version = None;
                continue;
            }
            Err(Trouble::Hopeless(why)) => {
                watched.waiters().fail(&why);
                pause
            }
            Err(Trouble::Away(err)) => {
                tracing::debug!(cluster = key.cluster, kind = key.gvk.2, error = %err, "the watch failed");
                watched.waiters().trouble(&err.to_string());
                err.retry_after().unwrap_or(pause)
            }
        };
        // Whoever has its end leaves in the meantime.
        let over = async {
            while !watched.waiters().by_name.is_empty() {
                watched.changed.notified().await;
            }
        };
        let _ = tokio::time::timeout(wait, over).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One watch, from connection to connection.
struct Watch<'a> {
    hub: &'a Hub,
    key: &'a Key,
    watched: &'a Watched,
    served: Option<Served>,
    /// Where it goes on.
    version: Option<String>,
}

impl Watch<'_> {
    /// Looks up who is new, and watches until the watch ends or nobody waits.
    async fn hold(&mut self) -> Result<(), Trouble> {
        let mut events = {
            let target = self.hub.clusters.target(&self.key.cluster).await?;
            let api = self.api(&target).await?;
            if self.version.is_none() {
                self.list(&target, &api, true).await?;
            } else {
                self.meet(&target, &api).await?;
            }
            let params = WatchParams::default().timeout(WATCH_SECONDS);
            let version = self.version.clone().unwrap_or_default();
            let events = target.ask("watch", REQUEST, api.watch(&params, &version)).await?;
            Box::pin(events)
            // The turn is given back here.
        };
        loop {
            {
                let waiters = self.watched.waiters();
                if waiters.by_name.is_empty() {
                    return Ok(());
                }
            }
            let event = tokio::select! {
                event = tokio::time::timeout(SILENCE, events.next()) => event,
                () = self.watched.changed.notified() => {
                    if self.watched.waiters().new > 0 {
                        let target = self.hub.clusters.target(&self.key.cluster).await?;
                        let api = self.api(&target).await?;
                        self.meet(&target, &api).await?;
                    }
                    continue;
                }
            };
            match event {
                Ok(Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => self.show(object, true),
                Ok(Some(Ok(WatchEvent::Deleted(object)))) => self.show(object, false),
                Ok(Some(Ok(WatchEvent::Bookmark(mark)))) => self.version = Some(mark.metadata.resource_version),
                Ok(Some(Ok(WatchEvent::Error(status)))) if status.code == 410 => return Err(Trouble::Gone),
                // Its end, or that of the connection: it goes on from where it was.
                Ok(Some(Ok(WatchEvent::Error(_)) | Err(_)) | None) | Err(_) => return Ok(()),
            }
        }
    }

    async fn api(&mut self, target: &Target) -> Result<Api<DynamicObject>, Trouble> {
        let kind = || format!("{} of {:?} {}", self.key.gvk.2, self.key.gvk.0, self.key.gvk.1);
        if self.served.is_none() {
            self.served = site::look_up(target, &self.key.gvk).await?;
        }
        let Some(served) = &self.served else {
            let text = format!("the cluster has no kind {}", kind());
            return Err(Trouble::Hopeless(Failure::permanent("LookupError", text)));
        };
        if served.is_namespaced && !self.key.namespace.is_empty() {
            return Ok(Api::namespaced_with(
                target.client(),
                &self.key.namespace,
                &served.resource,
            ));
        }
        if !served.is_namespaced && self.key.may_have_none {
            return Ok(Api::all_with(target.client(), &served.resource));
        }
        let text = if served.is_namespaced {
            format!("{} needs a namespace", kind())
        } else {
            format!(
                "{} is cluster-scoped, and the pool does not name it (spec.jobs.wait.clusterKinds)",
                kind()
            )
        };
        Err(Trouble::Hopeless(Failure::permanent("PermissionError", text)))
    }

    /// Looks up who is new.
    async fn meet(&mut self, target: &Target, api: &Api<DynamicObject>) -> Result<(), Trouble> {
        let names = self.watched.waiters().unseen();
        if names.len() > WORTH_A_LIST {
            return self.list(target, api, false).await;
        }
        for name in names {
            let read = target.ask("read it", REQUEST, site::get(api, &name)).await;
            let object = site::if_there(read, &name)?;
            let object = object.map(|object| self.value(object));
            let (version, object) = object.map_or((0, None), |(version, object)| (version, Some(object)));
            self.watched
                .waiters()
                .look(&self.key.gvk.2, &name, version, object.as_ref());
        }
        Ok(())
    }

    /// Looks at all objects: for those who are new, or for all, when the watch begins with it.
    async fn list(&mut self, target: &Target, api: &Api<DynamicObject>, is_begin: bool) -> Result<(), Trouble> {
        let kind = &self.key.gvk.2;
        let mut names: std::collections::HashSet<Box<str>> = {
            let waiters = self.watched.waiters();
            if is_begin {
                waiters.by_name.keys().cloned().collect()
            } else {
                waiters.unseen().into_iter().collect()
            }
        };
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = target.ask("list them", REQUEST, api.list(&params)).await?;
            for object in page.items {
                let name: Box<str> = object.metadata.name.clone().unwrap_or_default().into();
                if names.remove(&name) {
                    let (version, object) = self.value(object);
                    self.watched.waiters().look(kind, &name, version, Some(&object));
                }
            }
            let at = page.metadata.resource_version.unwrap_or_default();
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => {
                    let version = number(&at);
                    for name in names {
                        self.watched.waiters().look(kind, &name, version, None);
                    }
                    if is_begin {
                        self.version = Some(at);
                    }
                    return Ok(());
                }
            }
        }
    }

    fn show(&mut self, object: DynamicObject, is_there: bool) {
        if let Some(version) = &object.metadata.resource_version {
            self.version = Some(version.clone());
        }
        let name = object.metadata.name.clone().unwrap_or_default();
        if !self.watched.waiters().by_name.contains_key(name.as_str()) {
            return;
        }
        let (version, object) = self.value(object);
        let object = is_there.then_some(&object);
        self.watched.waiters().show(&self.key.gvk.2, &name, version, object);
    }

    fn value(&self, mut object: DynamicObject) -> (u64, serde_json::Value) {
        without_values(&self.key.gvk.0, &self.key.gvk.2, &mut object);
        let version = object.metadata.resource_version.as_deref().map_or(0, number);
        (version, serde_json::to_value(object).unwrap_or_default())
    }
}

/// Versions of one kind are numbers that grow; where they are none, nothing is taken for old.
fn number(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}

#[cfg(test)]
impl Wait {
    /// A watch that begins where no server can go on from, and who waits on it for this ConfigMap to have `data.v` = 2.
    pub(super) fn begin_too_late(
        &self,
        cluster: &str,
        namespace: &str,
        name: &str,
    ) -> oneshot::Receiver<Result<(), Failure>> {
        let key = Key {
            cluster: cluster.into(),
            gvk: (String::new(), "v1".into(), "ConfigMap".into()),
            namespace: namespace.into(),
            may_have_none: false,
        };
        let (sender, done) = oneshot::channel();
        let watched = Arc::new(Watched::default());
        let goal = Goal::parse("jsonpath=.data.v=2").unwrap();
        watched.waiters().add(name, goal, sender);
        self.hub.watches().insert(key.clone(), Arc::clone(&watched));
        tokio::spawn(tend(Arc::clone(&self.hub), key, watched, Some("1".into())));
        done
    }

    /// Watches, and who waits on them.
    pub(super) fn counts(&self) -> (usize, usize) {
        let watches = self.hub.watches();
        let waiters = watches
            .values()
            .map(|one| one.waiters().by_name.values().map(Vec::len).sum::<usize>());
        (watches.len(), waiters.sum())
    }
}
