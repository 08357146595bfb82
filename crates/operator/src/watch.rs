//! One watch per kind, shared by all controllers.
//!
//! The runtime's own shared streams block their reflector when a subscriber
//! does not read, and a candidate's controllers do not read before they lead.
//! So changes go through a lossy broadcast instead: whoever lags, or begins,
//! looks at everything once. The store is the truth; a change only wakes.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt, TryStreamExt, future};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, reflector::Lookup};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use umbel_api::names::{ANNOTATION_DELETION_COST, LABEL_POOL, MANAGER_SCALE};
use umbel_api::{PeriodicTask, TargetCluster, Task, TaskQueue, WorkerPool};
use umbel_telemetry::chain;

use crate::owners::holds;

/// Changes kept for a reader that is busy; one that lags further looks at everything,
/// so this only has to cover an ordinary burst (a fleet of some hundred pods that starts).
const CHANGES: usize = 1024;

/// The API server ends a watch after so many seconds, right after a bookmark; the runtime gives it five more. So a watch
/// that tells nothing because nothing reaches us is begun anew within a minute.
pub(crate) const WATCH_LASTS: u32 = 50;

/// What a watch tells its readers.
#[derive(Clone, Debug)]
pub enum Change<K> {
    /// This object was added, changed or deleted.
    One(Arc<K>),
    /// Anything may have changed: look at the store.
    All,
}

/// The watched objects of one kind in one scope.
pub struct Watched<K: Lookup + Clone + 'static>
where
    K::DynamicType: Eq + std::hash::Hash + Clone,
{
    /// What is there now.
    pub store: Store<K>,
    changes: broadcast::Sender<Change<K>>,
    of_pools: Arc<Mutex<OfPools>>,
}

/// Names by the namespace and the pool that their objects are labelled with: among those of thousands of pools nobody
/// finds his own by looking at each.
#[derive(Default)]
struct OfPools {
    names: HashMap<(String, String), BTreeSet<String>>,
    /// What was listed anew so far.
    listed: HashMap<(String, String), BTreeSet<String>>,
}

impl OfPools {
    /// Takes an event in. A name may stay where it does not belong any more: the store tells.
    fn see<K: Resource>(&mut self, event: &Event<K>) {
        let place = |object: &K| {
            let pool = object.labels().get(LABEL_POOL)?;
            let place = (ResourceExt::namespace(object)?, pool.clone());
            Some((place, object.name_any()))
        };
        match event {
            Event::Apply(object) => {
                if let Some((place, name)) = place(object) {
                    self.names.entry(place).or_default().insert(name);
                }
            }
            Event::Delete(object) => {
                if let Some((place, name)) = place(object)
                    && let Entry::Occupied(mut known) = self.names.entry(place)
                {
                    known.get_mut().remove(&name);
                    if known.get().is_empty() {
                        known.remove();
                    }
                }
            }
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => {
                if let Some((place, name)) = place(object) {
                    self.listed.entry(place).or_default().insert(name);
                }
            }
            Event::InitDone => self.names = std::mem::take(&mut self.listed),
        }
    }
}

impl<K> Watched<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    /// `trim` takes away what nobody reads: thousands of objects are kept.
    fn start(
        client: &Client,
        namespace: Option<&str>,
        labels: Option<&str>,
        trim: fn(&mut K),
        stop: &CancellationToken,
    ) -> Self {
        let api: Api<DeserializeGuard<K>> = match namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        };
        let config = watcher::Config::default().timeout(WATCH_LASTS);
        let config = match labels {
            Some(labels) => config.labels(labels),
            None => config,
        };
        let (store, writer) = reflector::store();
        let (changes, _) = broadcast::channel(CHANGES);
        let sender = changes.clone();
        let of_pools = Arc::<Mutex<OfPools>>::default();
        let seen = of_pools.clone();
        let events = watcher(api, config)
            .default_backoff()
            .try_filter_map(move |event| future::ready(Ok(guard(event, trim))));
        let run = reflector::reflector(writer, events).for_each(move |event| {
            if let Ok(event) = &event {
                seen.lock().unwrap_or_else(PoisonError::into_inner).see(event);
            }
            match event {
                // Without readers nobody needs to hear of it.
                Ok(Event::Apply(object) | Event::Delete(object)) => drop(sender.send(Change::One(Arc::new(object)))),
                Ok(Event::InitDone) => drop(sender.send(Change::All)),
                Ok(Event::Init | Event::InitApply(_)) => {}
                Err(error) => tracing::warn!(kind = %K::kind(&()), error = %chain(&error), "watch interrupted"),
            }
            future::ready(())
        });
        let stop = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = run => {}
                () = stop.cancelled() => {}
            }
        });
        Self {
            store,
            changes,
            of_pools,
        }
    }

    /// Changes from here on, beginning with a look at everything.
    pub fn changes(&self) -> impl Stream<Item = Change<K>> + Send + use<K> {
        let receiver = self.changes.subscribe();
        let rest = stream::unfold(receiver, |mut receiver| async move {
            match receiver.recv().await {
                Ok(change) => Some((change, receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((Change::All, receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        });
        stream::once(future::ready(Change::All)).chain(rest)
    }

    /// The objects whose reconcile this watch wakes: `map` names those that one object concerns.
    pub fn wakes<T>(&self, map: impl Fn(&K) -> Vec<ObjectRef<T>> + Send + 'static) -> BoxStream<'static, ObjectRef<T>>
    where
        T: Resource<DynamicType = ()> + Send + 'static,
    {
        let store = self.store.clone();
        let wakes = self.changes().flat_map(move |change| {
            let all = match change {
                Change::One(object) => map(&object),
                Change::All => store.state().iter().flat_map(|object| map(object)).collect(),
            };
            stream::iter(all)
        });
        wakes.boxed()
    }

    /// The object of this name.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.store.get(&ObjectRef::new(name).within(namespace))
    }

    /// The objects that are labelled with this pool.
    pub fn of_pool(&self, namespace: &str, pool: &str) -> Vec<Arc<K>> {
        let place = (namespace.to_owned(), pool.to_owned());
        let names = {
            let of_pools = self.of_pools.lock().unwrap_or_else(PoisonError::into_inner);
            of_pools.names.get(&place).cloned().unwrap_or_default()
        };
        let found = names.iter().filter_map(|name| self.get(namespace, name));
        found
            .filter(|object| object.labels().get(LABEL_POOL).is_some_and(|name| name == pool))
            .collect()
    }

    /// All objects in this namespace.
    pub fn within(&self, namespace: &str) -> Vec<Arc<K>> {
        self.store
            .state_filter(|object: &K| object.meta().namespace.as_deref() == Some(namespace))
    }
}

/// One object that cannot be read must not stop the watch of all others: it is
/// said so and left out, and what was known of it before stays.
fn guard<K: Resource<DynamicType = ()>>(event: Event<DeserializeGuard<K>>, trim: fn(&mut K)) -> Option<Event<K>> {
    let readable = |DeserializeGuard(object): DeserializeGuard<K>| match object {
        Ok(mut object) => {
            trim(&mut object);
            Some(object)
        }
        Err(fault) => {
            let (namespace, name) = (
                fault.metadata.namespace.unwrap_or_default(),
                fault.metadata.name.unwrap_or_default(),
            );
            tracing::error!(kind = %K::kind(&()), namespace, name, error = fault.error, "object cannot be read");
            None
        }
    };
    match event {
        Event::Apply(object) => readable(object).map(Event::Apply),
        Event::InitApply(object) => readable(object).map(Event::InitApply),
        Event::Delete(object) => readable(object).map(Event::Delete),
        Event::Init => Some(Event::Init),
        Event::InitDone => Some(Event::InitDone),
    }
}

/// Who wrote what: as large as the rest of an object, and a map for each field. Nobody asks for it here.
fn no_owners<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// A ReplicaSet's template is its Deployment's.
fn no_template(set: &mut ReplicaSet) {
    no_owners(set);
    set.spec.template = None;
}

/// Of a Deployment's owners it is asked who has its size and who its template; and all of it where the size's owner must
/// let go of the template.
fn owners_of_size(deployment: &mut Deployment) {
    const TEMPLATE: &str = "/f:spec/f:template";
    let entries = deployment.metadata.managed_fields.iter_mut().flatten();
    let mut entries: Vec<&mut ManagedFieldsEntry> = entries.collect();
    let is_to_let_go =
        |entry: &&mut ManagedFieldsEntry| entry.manager.as_deref() == Some(MANAGER_SCALE) && holds(entry, TEMPLATE);
    if !entries.iter().any(is_to_let_go) {
        entries
            .iter_mut()
            .for_each(|entry| keep(entry, &["/f:spec/f:replicas", TEMPLATE]));
    }
}

/// Of a pod's owners it is asked who has its deletion cost, and who made it; of what it shall be, its name and its grace.
fn owners_of_cost(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        *spec = PodSpec {
            hostname: spec.hostname.take(),
            termination_grace_period_seconds: spec.termination_grace_period_seconds,
            ..PodSpec::default()
        };
    }
    let cost = format!(
        "/f:metadata/f:annotations/f:{}",
        ANNOTATION_DELETION_COST.replace('/', "~1")
    );
    let entries = pod.metadata.managed_fields.iter_mut().flatten();
    entries.for_each(|entry| keep(entry, &["/f:metadata/f:ownerReferences", &cost]));
}

/// Keeps of what is owned that these fields are, where they are.
fn keep(entry: &mut ManagedFieldsEntry, fields: &[&str]) {
    let mut kept = json!({});
    for field in fields.iter().filter(|field| holds(entry, field)) {
        let mut place = &mut kept;
        for part in field.split('/').skip(1) {
            place = &mut place[part.replace("~1", "/")];
        }
        *place = json!({});
    }
    entry.fields_v1 = Some(FieldsV1(kept));
}

/// Everything that is watched in one namespace, or in all.
pub struct Scope {
    /// Queues.
    pub queues: Watched<TaskQueue>,
    /// Pools.
    pub pools: Watched<WorkerPool>,
    /// Schedules.
    pub periodic: Watched<PeriodicTask>,
    /// Tasks.
    pub tasks: Watched<Task>,
    /// Target clusters.
    pub clusters: Watched<TargetCluster>,
    /// Deployments of pools.
    pub deployments: Watched<Deployment>,
    /// ReplicaSets of pools.
    pub sets: Watched<ReplicaSet>,
    /// Pods of pools.
    pub pods: Watched<Pod>,
    namespace: Option<String>,
}

impl Scope {
    /// Starts to watch; `None` is every namespace.
    pub fn start(client: &Client, namespace: Option<String>, stop: &CancellationToken) -> Self {
        let within = namespace.as_deref();
        let ours = Some(LABEL_POOL);
        Self {
            queues: Watched::start(client, within, None, no_owners, stop),
            pools: Watched::start(client, within, None, no_owners, stop),
            periodic: Watched::start(client, within, None, no_owners, stop),
            tasks: Watched::start(client, within, None, no_owners, stop),
            clusters: Watched::start(client, within, None, no_owners, stop),
            deployments: Watched::start(client, within, ours, owners_of_size, stop),
            sets: Watched::start(client, within, ours, no_template, stop),
            pods: Watched::start(client, within, ours, owners_of_cost, stop),
            namespace,
        }
    }

    /// Whether objects of this namespace are watched here.
    pub fn covers(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|own| own == namespace)
    }

    /// Returns once every kind was listed. But for tasks: nothing else follows from them, and an API server that does not know
    /// the kind yet (definitions are often brought up to date after the program) holds up nobody.
    pub async fn synced(&self) {
        // A writer is dropped only when the process ends; then nobody cares.
        let _ = tokio::join!(
            self.queues.store.wait_until_ready(),
            self.pools.store.wait_until_ready(),
            self.periodic.store.wait_until_ready(),
            self.clusters.store.wait_until_ready(),
            self.deployments.store.wait_until_ready(),
            self.sets.store.wait_until_ready(),
            self.pods.store.wait_until_ready(),
        );
    }
}

/// The pool that a pod, ReplicaSet or Deployment belongs to, by its label.
pub fn pool_of<K: Resource<DynamicType = ()>>(object: &K) -> Vec<ObjectRef<WorkerPool>> {
    let name = object.labels().get(LABEL_POOL);
    let namespace = ResourceExt::namespace(object);
    name.zip(namespace)
        .map(|(name, namespace)| ObjectRef::new(name).within(&namespace))
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(manager: &str, fields: &serde_json::Value) -> serde_json::Value {
        json!({ "manager": manager, "operation": "Update", "fieldsV1": fields })
    }

    fn kept<K: Resource + serde::de::DeserializeOwned>(
        trim: fn(&mut K),
        entries: &[serde_json::Value],
    ) -> Vec<serde_json::Value> {
        let mut object: K =
            serde_json::from_value(json!({ "metadata": { "managedFields": entries } })).expect("an object");
        trim(&mut object);
        let entries = object.meta().managed_fields.iter().flatten();
        entries
            .map(|entry| entry.fields_v1.as_ref().expect("fields").0.clone())
            .collect()
    }

    #[test]
    fn of_owners_stays_what_is_asked_of_them() {
        let whole = json!({ "f:spec": { "f:replicas": {}, "f:template": { "f:spec": { "f:containers": {} } }, "f:paused": {} } });
        let short = json!({ "f:spec": { "f:replicas": {}, "f:template": {} } });
        let (others, none) = (json!({ "f:status": { "f:replicas": {} } }), json!({}));
        let entries = [entry("kubectl", &whole), entry("controller", &others)];
        assert_eq!(kept(owners_of_size, &entries), [short, none]);
        // Its template is to be let go of, by sending all that stands there.
        let entries = [entry(MANAGER_SCALE, &whole), entry("controller", &others)];
        assert_eq!(kept(owners_of_size, &entries), [whole, others]);

        let cost = format!("f:{ANNOTATION_DELETION_COST}");
        let owned = json!({ "f:metadata": {
            "f:ownerReferences": { "k:{}": {} }, "f:annotations": { &cost: {}, "f:other": {} }, "f:labels": {},
        } });
        let short = json!({ "f:metadata": { "f:ownerReferences": {}, "f:annotations": { &cost: {} } } });
        assert_eq!(kept(owners_of_cost, &[entry("k3s", &owned)]), [short]);
    }
}
