//! Carries out one action of a scale-down, an admission or a raise.
//!
//! # Guarantees
//! Every write carries the resourceVersion of the object that the decision was made on, and is sent only while this
//! process certainly leads. A refused precondition is an answer ([`Done::Refused`]), not an error: the next pass reads
//! anew. Before each DELETE and each lowering the broker confirms, under our term, that the workers concerned are still
//! closed and empty, or not admitted. What a decision was made on is read before that confirmation, so a leader that was
//! stopped in between meets either a stale term there or a changed resourceVersion here.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v1::{Scale, ScaleSpec};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;
use umbel_api::WorkerPool;
use umbel_api::names::{ANNOTATION_DELETION_COST, ANNOTATION_GATE, LABEL_TERM, MANAGER, MANAGER_SCALE, MANAGER_TERM};
use umbel_broker::{Broker, Fence, Gate, GateAnswer, StepAnswer};
use umbel_plan::deployment::COST_ADMITTED;
use umbel_plan::drain::{Action, World};

use crate::apply::code;
use crate::brokers::Source;
use crate::context::Context;
use crate::failpoint;
use crate::observe::{Fleet, Workers, gate_mark, is_ready};

/// A request that takes longer is given up: the confirmation behind it is about to be old.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pods written at a time in one pass.
const PARALLEL: usize = 8;

/// What became of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// There was nothing to do.
    Nothing,
    /// The Deployment now carries our term; the action itself is for the next pass.
    Stamped,
    /// Gates were opened or closed, for so many pods.
    Gates(usize),
    /// These pods were deleted by name.
    Deleted(Vec<String>),
    /// These pods were deleted by name though so many of them held tasks: their time was over.
    Stopped {
        /// Names.
        pods: Vec<String>,
        /// Those that held tasks a moment before.
        busy: u64,
    },
    /// The size was changed.
    Scaled {
        /// The size before.
        from: u32,
        /// The size after.
        to: u32,
        /// After a lowering: uids of the admitted pods that must stay.
        survivors: Option<BTreeSet<String>>,
    },
    /// A lowering was verified; names of pods that are missing, and how many of them hold tasks.
    Verified {
        /// Names or uids.
        missing: Vec<String>,
        /// So many of them hold leases still.
        busy: u64,
    },
    /// A precondition did not hold, or the broker did not confirm.
    Refused,
}

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// We do not lead, or not certainly.
    #[error("this operator does not lead")]
    NotLeading,
    /// A broker refused our term.
    #[error("the broker has the term {0}, which is not ours, or a later call of ours")]
    Stale(u64),
    /// A gate call failed.
    #[error("set the gate of a worker")]
    Gate(#[source] umbel_broker::Error),
    /// The step was not confirmed.
    #[error("announce a step")]
    Step(#[source] umbel_broker::Error),
    /// A pod could not be written.
    #[error("write pod {0}")]
    Pod(String, #[source] kube::Error),
    /// The Deployment could not be written.
    #[error("write deployment {0}")]
    Deployment(String, #[source] kube::Error),
    /// The API server did not answer in time.
    #[error("no answer of the API server within {PATIENCE:?}")]
    Slow,
}

impl Error {
    /// Whether a size was sent of which nobody knows if it was, or will be, applied.
    pub fn leaves_doubt(&self) -> bool {
        match self {
            Self::Slow => true,
            Self::Deployment(_, source) => code(source).is_none(),
            Self::NotLeading | Self::Stale(_) | Self::Gate(_) | Self::Step(_) | Self::Pod(..) => false,
        }
    }
}

/// One pass over one pool: everything as it was read, and where to write.
pub struct Pass<'a> {
    /// Shared handles.
    pub context: &'a Context,
    /// The pool.
    pub pool: &'a WorkerPool,
    /// Its pods of one revision, read consistently.
    pub fleet: &'a Fleet,
    /// Its workers, read after them.
    pub workers: &'a Workers,
    /// The world made of both.
    pub world: &'a World,
    /// Sizes of ours without an answer, so far: one may still be applied. Each makes another stamp, which refuses it.
    pub doubts: u32,
    /// A broker that accepted our term; without one only raises are possible.
    pub broker: Option<&'a Broker>,
    /// Where the workers are Celery's, and the queues that they take work from.
    pub celery: Option<(&'a Source, &'a [String])>,
}

impl Pass<'_> {
    /// Carries out `action`.
    pub async fn carry_out(&self, action: &Action) -> Result<Done, Error> {
        let term = self.context.leader.term().ok_or(Error::NotLeading)?;
        if matches!(action, Action::Wait) {
            return Ok(Done::Nothing);
        }
        let stamp = match self.doubts {
            0 => term.to_string(),
            doubts => format!("{term}.{doubts}"),
        };
        if self.fleet.deployment.labels().get(LABEL_TERM) != Some(&stamp) {
            return self.stamp(&stamp).await;
        }
        match action {
            Action::Wait => Ok(Done::Nothing),
            Action::Raise { to } => self.scale(*to, None).await,
            Action::Admit { pods } => self.open(pods, true).await,
            Action::Reopen { pods } => self.open(pods, false).await,
            Action::Drain { pods } => self.drain(pods).await,
            Action::Delete { pods } => self.delete(pods).await,
            Action::Stop { pods } => self.stop(pods).await,
            Action::Lower { takes } => self.lower(takes).await,
            Action::SettleForLive { to } => {
                self.confirm(&[]).await?;
                self.scale(*to, Some(self.admitted())).await
            }
            Action::Clear => self.clear().await,
            Action::Verified { missing } => Ok(self.verified(missing)),
        }
    }

    /// Writes our term on the Deployment, so that a predecessor's late write meets another resourceVersion.
    async fn stamp(&self, stamp: &str) -> Result<Done, Error> {
        let name = self.fleet.name();
        let body = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "name": name,
                "resourceVersion": self.fleet.deployment.resource_version(),
                "labels": { LABEL_TERM: stamp },
            },
        });
        let params = PatchParams::apply(MANAGER_TERM).force();
        let written = failpoint::around("stamp", self.deployments().patch(&name, &params, &Patch::Apply(body))).await;
        self.context.metrics.wrote("patch", "deployments");
        match written {
            Ok(_) => Ok(Done::Stamped),
            Err(error) if is_refusal(&error) => Ok(Done::Refused),
            Err(source) => Err(Error::Deployment(name, source)),
        }
    }

    /// The pod first, always with a new value: whoever decided on the old one meets another resourceVersion. Then the gate.
    async fn open(&self, pods: &[String], first: bool) -> Result<Done, Error> {
        let broker = self.broker.ok_or(Error::NotLeading)?;
        let mut opened = 0;
        for some in pods.chunks(PARALLEL) {
            let answers = join_all(some.iter().map(|uid| self.open_one(broker, uid, first))).await;
            for answer in answers {
                opened += usize::from(answer?);
            }
        }
        if opened == 0 {
            Ok(Done::Refused)
        } else {
            Ok(Done::Gates(opened))
        }
    }

    async fn open_one(&self, broker: &Broker, uid: &str, first: bool) -> Result<bool, Error> {
        let (Some(pod), Some(worker)) = (self.fleet.pod(uid), self.workers.present(uid)) else {
            return Ok(false);
        };
        let fence = self.fence()?;
        let mut annotations = json!({ ANNOTATION_GATE: format!("{}.{}", fence.term, fence.n) });
        if first {
            annotations[ANNOTATION_DELETION_COST] = json!(COST_ADMITTED.to_string());
        }
        if !self.annotate(pod, annotations).await? {
            return Ok(false);
        }
        if let Some((source, queues)) = self.celery {
            let opened = self.context.celery.open(source, broker, &worker.worker, queues);
            opened.await.map_err(Error::Gate)?;
            return Ok(true);
        }
        let answer = failpoint::around("open", broker.open(&fence, &worker.worker)).await;
        match answer.map_err(Error::Gate)? {
            GateAnswer::Done { held: _ } => Ok(true),
            GateAnswer::Unknown => Ok(false),
            GateAnswer::Stale { term } => Err(self.stale(&fence, term)),
        }
    }

    /// Writes annotations on a pod as it was read; `false` when it changed since.
    async fn annotate(&self, pod: &Pod, annotations: serde_json::Value) -> Result<bool, Error> {
        self.mark(pod, json!({ "annotations": annotations })).await
    }

    /// Merges metadata into that of a pod as it was read; `false` when it changed since.
    pub async fn mark(&self, pod: &Pod, metadata: serde_json::Value) -> Result<bool, Error> {
        self.context.leader.term().ok_or(Error::NotLeading)?;
        let name = pod.name_any();
        let mut body = json!({ "metadata": metadata });
        body["metadata"]["uid"] = json!(pod.uid());
        body["metadata"]["resourceVersion"] = json!(pod.resource_version());
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let written = failpoint::around("mark", self.pods().patch_metadata(&name, &params, &Patch::Merge(body))).await;
        self.context.metrics.wrote("patch", "pods");
        match written {
            Ok(_) => Ok(true),
            Err(error) if is_refusal(&error) => Ok(false),
            Err(source) => Err(Error::Pod(name, source)),
        }
    }

    async fn drain(&self, pods: &[String]) -> Result<Done, Error> {
        let broker = self.broker.ok_or(Error::NotLeading)?;
        for worker in pods.iter().flat_map(|uid| self.workers.names(uid)) {
            let fence = self.fence()?;
            if let Some((source, _)) = self.celery {
                let closed = self.context.celery.close(source, broker, &worker);
                closed.await.map_err(Error::Gate)?;
                continue;
            }
            let answer = failpoint::around("drain", broker.drain(&fence, &worker)).await;
            if let GateAnswer::Stale { term } = answer.map_err(Error::Gate)? {
                return Err(self.stale(&fence, term));
            }
        }
        Ok(Done::Gates(pods.len()))
    }

    async fn delete(&self, pods: &[String]) -> Result<Done, Error> {
        let (deleted, _) = self.delete_where(pods, is_drained).await?;
        if deleted.is_empty() {
            Ok(Done::Refused)
        } else {
            Ok(Done::Deleted(deleted))
        }
    }

    /// As a deletion, but who still holds tasks goes, too: it gets SIGTERM and has its grace period.
    async fn stop(&self, pods: &[String]) -> Result<Done, Error> {
        let (pods, busy) = self.delete_where(pods, is_closed).await?;
        if pods.is_empty() {
            Ok(Done::Refused)
        } else {
            Ok(Done::Stopped { pods, busy })
        }
    }

    /// Deletes those whose every worker the broker confirms; answers their names and how many of them hold tasks.
    async fn delete_where(
        &self,
        pods: &[String],
        may: fn(&(Option<Gate>, u64)) -> bool,
    ) -> Result<(Vec<String>, u64), Error> {
        let names: Vec<Vec<String>> = pods.iter().map(|uid| self.workers.names(uid)).collect();
        let states = self.confirm(&names.concat()).await?;
        let mut states = states.into_iter();
        let (mut deleted, mut busy) = (Vec::new(), 0);
        for (uid, names) in pods.iter().zip(&names) {
            let states: Vec<_> = states.by_ref().take(names.len()).collect();
            let Some(pod) = self.fleet.pod(uid) else { continue };
            // Without any entry it was chosen because it cannot run; one that is Ready by now came up after all.
            let is_unknown = states.is_empty() && is_ready(pod);
            if is_unknown || !states.iter().all(may) || gate_mark(pod).is_none() {
                continue;
            }
            if self.delete_one(pod).await? {
                deleted.push(pod.name_any());
                busy += u64::from(states.iter().any(|(_, held)| *held > 0));
            }
        }
        Ok((deleted, busy))
    }

    async fn delete_one(&self, pod: &Pod) -> Result<bool, Error> {
        // The term may have ended since the confirmation; a stopped process finds that out here or at the precondition.
        self.context.leader.term().ok_or(Error::NotLeading)?;
        let name = pod.name_any();
        let preconditions = Preconditions {
            uid: pod.uid(),
            resource_version: pod.resource_version(),
        };
        let params = DeleteParams {
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        let api = self.pods();
        let deleted = failpoint::around("delete", tokio::time::timeout(PATIENCE, api.delete(&name, &params))).await;
        let deleted = deleted.map_err(|_| Error::Slow)?;
        self.context.metrics.wrote("delete", "pods");
        match deleted {
            Ok(_) => Ok(true),
            Err(error) if is_refusal(&error) => {
                tracing::info!(
                    pod = name,
                    error = crate::apply::words(&error),
                    "deletion refused by its precondition"
                );
                Ok(false)
            }
            Err(source) => Err(Error::Pod(name, source)),
        }
    }

    async fn lower(&self, takes: &[String]) -> Result<Done, Error> {
        // All that nobody admitted, not only those to be taken: the controller chooses among them. One that opened its
        // own gate meanwhile would be among equals to it, so then nothing is lowered, and the next pass marks it.
        let unadmitted = self.world.live().filter(|pod| !pod.is_admitted());
        let names: Vec<String> = unadmitted.flat_map(|pod| self.workers.names(&pod.uid)).collect();
        let states = self.confirm(&names).await?;
        if self.celery.is_none() && states.iter().any(|(gate, _)| *gate == Some(Gate::Open)) {
            return Ok(Done::Refused);
        }
        let by = u32::try_from(takes.len()).unwrap_or(u32::MAX);
        self.scale(self.fleet.size().saturating_sub(by), Some(self.admitted()))
            .await
    }

    /// All pods at once, if nobody in them works or may begin to.
    async fn clear(&self) -> Result<Done, Error> {
        let names: Vec<Vec<String>> = self.world.live().map(|pod| self.workers.names(&pod.uid)).collect();
        let mut states = self.confirm(&names.concat()).await?.into_iter();
        for (pod, names) in self.world.live().zip(&names) {
            let states: Vec<_> = states.by_ref().take(names.len()).collect();
            let is_idle = if pod.marked {
                (!states.is_empty() || !pod.ready) && states.iter().all(is_drained)
            } else {
                // Celery's workers have no gate to be admitted by.
                let is_open = |gate: &Option<Gate>| self.celery.is_none() && *gate == Some(Gate::Open);
                states.iter().all(|(gate, held)| *held == 0 && !is_open(gate))
            };
            if !is_idle {
                return Ok(Done::Refused);
            }
        }
        self.scale(0, Some(BTreeSet::new())).await
    }

    /// Announces the step and reads the workers' state under our term, in their order.
    async fn confirm(&self, workers: &[String]) -> Result<Vec<(Option<Gate>, u64)>, Error> {
        let broker = self.broker.ok_or(Error::NotLeading)?;
        let fence = self.fence()?;
        let uid = self.pool.uid().unwrap_or_default();
        if let Some((source, _)) = self.celery {
            // They have no gate in Redis: our term is confirmed there, and they are asked themselves.
            let answer = failpoint::around("step", broker.step(&fence, &uid, &[])).await;
            if let StepAnswer::Stale { term } = answer.map_err(Error::Step)? {
                return Err(self.stale(&fence, term));
            }
            self.context.celery.look(source, broker).await.map_err(Error::Gate)?;
            return Ok(self.context.celery.states(source, workers));
        }
        let answer = failpoint::around("step", broker.step(&fence, &uid, workers)).await;
        match answer.map_err(Error::Step)? {
            StepAnswer::Workers(states) => Ok(states),
            StepAnswer::Stale { term } => Err(self.stale(&fence, term)),
        }
    }

    /// Sets the size through `/scale`, on the Deployment as it was read.
    async fn scale(&self, to: u32, survivors: Option<BTreeSet<String>>) -> Result<Done, Error> {
        self.context.leader.term().ok_or(Error::NotLeading)?;
        let (name, from) = (self.fleet.name(), self.fleet.size());
        let scale = Scale {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: self.pool.namespace(),
                uid: self.fleet.deployment.uid(),
                resource_version: self.fleet.deployment.resource_version(),
                ..ObjectMeta::default()
            },
            spec: Some(ScaleSpec {
                replicas: Some(i32::try_from(to).unwrap_or(i32::MAX)),
            }),
            status: None,
        };
        let params = PostParams {
            field_manager: Some(MANAGER_SCALE.to_owned()),
            ..PostParams::default()
        };
        let api = self.deployments();
        let way = if to < from { "lower" } else { "raise" };
        let write = tokio::time::timeout(PATIENCE, api.replace_scale(&name, &params, &scale));
        let written = failpoint::around(way, write).await.map_err(|_| Error::Slow)?;
        self.context.metrics.wrote("update", "deployments/scale");
        match written {
            Ok(_) => Ok(Done::Scaled { from, to, survivors }),
            Err(error) if is_refusal(&error) => {
                tracing::info!(
                    pool = name,
                    error = crate::apply::words(&error),
                    "size refused by its precondition"
                );
                Ok(Done::Refused)
            }
            Err(source) => Err(Error::Deployment(name, source)),
        }
    }

    /// Deletes the Deployment as it was read: an older revision's, without pods. Whether it did.
    pub async fn retire(&self) -> Result<bool, Error> {
        self.context.leader.term().ok_or(Error::NotLeading)?;
        let name = self.fleet.name();
        let preconditions = Preconditions {
            uid: self.fleet.deployment.uid(),
            resource_version: self.fleet.deployment.resource_version(),
        };
        let params = DeleteParams {
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        let api = self.deployments();
        let deleted = failpoint::around("retire", tokio::time::timeout(PATIENCE, api.delete(&name, &params))).await;
        let deleted = deleted.map_err(|_| Error::Slow)?;
        self.context.metrics.wrote("delete", "deployments");
        match deleted {
            Ok(_) => Ok(true),
            Err(error) if is_refusal(&error) => Ok(false),
            Err(source) => Err(Error::Deployment(name, source)),
        }
    }

    fn verified(&self, missing: &[String]) -> Done {
        let busy = missing.iter().filter(|uid| self.workers.held(uid) > 0).count() as u64;
        let name = |uid: &String| {
            let beat = self.workers.present(uid).and_then(|record| record.heartbeat.as_ref());
            self.fleet
                .pod(uid)
                .map(ResourceExt::name_any)
                .or_else(|| beat.map(|beat| beat.pod.clone()))
                .unwrap_or_else(|| uid.clone())
        };
        Done::Verified {
            missing: missing.iter().map(name).collect(),
            busy,
        }
    }

    fn admitted(&self) -> BTreeSet<String> {
        self.world
            .live()
            .filter(|pod| pod.is_admitted())
            .map(|pod| pod.uid.clone())
            .collect()
    }

    fn fence(&self) -> Result<Fence, Error> {
        self.context.leader.fence().ok_or(Error::NotLeading)
    }

    fn stale(&self, fence: &Fence, term: u64) -> Error {
        if term > fence.term {
            self.context.leader.exceed(term);
        }
        Error::Stale(term)
    }

    fn deployments(&self) -> Api<Deployment> {
        Api::namespaced(self.context.client.clone(), &self.pool.namespace().unwrap_or_default())
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.context.client.clone(), &self.pool.namespace().unwrap_or_default())
    }
}

/// Closed and empty: it stays idle until somebody opens it.
fn is_drained(state: &(Option<Gate>, u64)) -> bool {
    is_closed(state) && state.1 == 0
}

/// It takes nothing more. An entry that is gone is not known to be closed.
fn is_closed((gate, _): &(Option<Gate>, u64)) -> bool {
    matches!(gate, Some(Gate::Closed { since: _ }))
}

/// The object is gone, or not as it was read.
fn is_refusal(error: &kube::Error) -> bool {
    matches!(code(error), Some(404 | 409))
}
