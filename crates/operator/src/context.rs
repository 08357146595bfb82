//! What every controller gets to see.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Client, Resource, ResourceExt};
use umbel_api::{PeriodicTask, TargetCluster, TaskQueue, WorkerPool};
use umbel_plan::shield;
use umbel_telemetry::chain;

use crate::args::Release;
use crate::brokers::{Brokers, Source};
use crate::celery::Celery;
use crate::claims::Claims;
use crate::failpoint;
use crate::leader::Leader;
use crate::metrics::Metrics;
use crate::watch::{Scope, Watched};

/// Shared by all controllers, the sampler and the beat.
pub struct Context {
    /// The home cluster.
    pub client: Client,
    /// What is watched: one scope for all namespaces, or one for each that was named.
    pub scopes: Vec<Scope>,
    /// Brokers and the latest samples.
    pub brokers: Brokers,
    /// Celery's workers.
    pub celery: Celery,
    /// Our term; no term, no write.
    pub leader: Leader,
    /// The namespaces that are this install's.
    pub claims: Claims,
    /// Events.
    pub recorder: Recorder,
    /// Counters.
    pub metrics: Metrics,
    /// The release we belong to.
    pub release: Release,
    /// When pods may be marked as busy or idle.
    pub marks: Mutex<shield::Turns>,
}

impl Context {
    /// Whether a pod may be marked now.
    ///
    /// # Errors
    /// When to ask again.
    pub fn turn_to_mark(&self, now: Instant) -> Result<(), Duration> {
        // Nothing that can panic runs under this lock.
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).take(now)
    }

    /// All queues in namespaces of ours.
    pub fn queues(&self) -> Vec<Arc<TaskQueue>> {
        self.claims.ours(self.all_queues())
    }

    /// All queues that are watched.
    pub fn all_queues(&self) -> Vec<Arc<TaskQueue>> {
        let scopes = self.scopes.iter();
        scopes.flat_map(|scope| scope.queues.store.state()).collect()
    }

    /// All pools in namespaces of ours.
    pub fn pools(&self) -> Vec<Arc<WorkerPool>> {
        let scopes = self.scopes.iter();
        self.claims.ours(scopes.flat_map(|scope| scope.pools.store.state()))
    }

    /// All schedules in namespaces of ours.
    pub fn periodic(&self) -> Vec<Arc<PeriodicTask>> {
        let scopes = self.scopes.iter();
        self.claims.ours(scopes.flat_map(|scope| scope.periodic.store.state()))
    }

    /// One schedule, in a namespace of ours.
    pub fn schedule(&self, namespace: &str, name: &str) -> Option<Arc<PeriodicTask>> {
        let found = self.scope(namespace)?.periodic.get(namespace, name)?;
        self.claims.holds(namespace).then_some(found)
    }

    /// One queue.
    pub fn queue(&self, namespace: &str, name: &str) -> Option<Arc<TaskQueue>> {
        self.scope(namespace)?.queues.get(namespace, name)
    }

    /// Where the broker of a pool is described: that of its first queue, as all its queues lie on one.
    pub fn source(&self, pool: &WorkerPool) -> Option<Source> {
        let first = pool.spec.queues.first()?;
        let queue = self.queue(&pool.namespace()?, &first.name)?;
        self.brokers.source(&queue).ok()
    }

    /// All target clusters of a namespace.
    pub fn clusters(&self, namespace: &str) -> Vec<Arc<TargetCluster>> {
        self.scope(namespace)
            .map(|scope| &scope.clusters)
            .map(|all: &Watched<_>| all.within(namespace))
            .unwrap_or_default()
    }

    /// The scope that covers a namespace.
    pub fn scope(&self, namespace: &str) -> Option<&Scope> {
        self.scopes.iter().find(|scope| scope.covers(namespace))
    }

    /// Publishes an Event about `object`; the same reason again within some minutes is counted, not repeated.
    pub async fn event<K>(&self, object: &K, kind: EventType, reason: &str, note: String)
    where
        K: Resource<DynamicType = ()>,
    {
        self.publish(object, kind, reason, reason, note).await;
    }

    /// Publishes an Event that stands for itself: another note is another Event.
    pub async fn fact<K>(&self, object: &K, kind: EventType, reason: &str, note: String)
    where
        K: Resource<DynamicType = ()>,
    {
        // Events are merged by everything but their note; the action is what tells them apart.
        let action: String = note.chars().take(100).collect();
        self.publish(object, kind, reason, &action, note).await;
    }

    /// A failure is logged: an Event is a courtesy.
    async fn publish<K>(&self, object: &K, kind: EventType, reason: &str, action: &str, note: String)
    where
        K: Resource<DynamicType = ()>,
    {
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: Some(note.chars().take(1000).collect()),
            action: action.to_owned(),
            secondary: None,
        };
        let published = failpoint::around("event", self.recorder.publish(&event, &object.object_ref(&()))).await;
        if let Err(error) = published {
            tracing::warn!(object = object.name_any(), reason, error = %chain(&error), "event not published");
        }
    }
}
