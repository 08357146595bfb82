//! From a template to messages and through a run, for whoever sends: a schedule or a Task.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::events::EventType;
use kube::{Api, Resource, ResourceExt};
use serde_json::{Map, Value, json};
use umbel_api::condition::find;
use umbel_api::names::cluster_condition::REACHABLE;
use umbel_api::names::queue_condition::READY;
use umbel_api::periodictask::{ArgFrom, ClusterProgress, TaskRetry, TaskTemplate};
use umbel_api::refs::ConfigMapKeyRef;
use umbel_broker::{AdvanceAnswer, Broker, CancelAnswer, RunEnd, RunPlan, RunState, SlotMessage, Until};
use umbel_plan::cron::ScheduleFault;
use umbel_plan::fanout::{Candidate, Occasion, choose};
use umbel_plan::workflow::{Plan, State, StepFault, dependencies, steps};
use umbel_protocol::control::Call;
use umbel_protocol::json::Json;
use umbel_protocol::message::{NewTask, OWN_HEADERS, TimeLimit};

use crate::brokers::{Fault, Source};
use crate::context::Context;
use crate::failpoint;

/// For so long a unique key is kept for a message that does not expire, and the time that its task may take beyond.
const UNIQUE_KEPT: Duration = Duration::from_secs(86_400);
/// For so long workers know that a task is cancelled: longer than backlogs last.
const CANCELLED: f64 = 7.0 * 86_400.0;
/// A run that is over stays on the broker for so long, for people.
const KEPT: Duration = Duration::from_secs(3600);

/// Who sends.
pub(crate) struct Sender<'a> {
    pub(crate) ctx: &'a Context,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    /// Where messages come from, as they say it.
    pub(crate) origin: String,
    pub(crate) term: u64,
    pub(crate) broker: Broker,
}

/// Where messages go.
pub(crate) struct Address {
    pub(crate) queue: String,
    /// The time limit of tasks that name none.
    pub(crate) time_limit: Duration,
    /// Priority steps of the queue.
    pub(crate) steps: Vec<u8>,
    pub(crate) source: Source,
}

/// Why nothing can be sent until a person repairs something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stall {
    #[error(transparent)]
    Schedule(ScheduleFault),
    #[error("there is no TaskQueue {0} in this namespace")]
    UnknownQueue(String),
    #[error("TaskQueue {name}: {why}")]
    QueueNotOurs { name: String, why: String },
    #[error("TaskQueue {0} does not accept json, which is sent")]
    NotAccepted(String),
    #[error("the header {0:?} belongs to the message format")]
    ReservedHeader(String),
    #[error("TaskQueue {0}: {1}")]
    Broker(String, Fault),
    #[error("the key {0:?} on the broker is no queue")]
    WrongKeyType(String),
    #[error("argsFrom: the argument {0:?} is in kwargs, too")]
    ArgumentTwice(String),
    #[error("argsFrom: there is no key {key} in a ConfigMap {name} of this namespace")]
    NoConfigMapKey { name: String, key: String },
    #[error("spec.taskTemplate: with steps, each step has its own args and kwargs")]
    ArgumentsBesideSteps,
    #[error(transparent)]
    Steps(#[from] StepFault),
}

impl Stall {
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Schedule(fault) => fault.word(),
            Self::UnknownQueue(_) => "UnknownQueue",
            Self::QueueNotOurs { .. } => "QueueOwnedElsewhere",
            Self::NotAccepted(_) => "JsonNotAccepted",
            Self::ReservedHeader(_) => "ReservedHeader",
            Self::Broker(_, fault) => fault.reason(),
            Self::WrongKeyType(_) => "WrongKeyType",
            Self::ArgumentTwice(_) => "ArgumentTwice",
            Self::NoConfigMapKey { .. } => "NoConfigMapKey",
            Self::ArgumentsBesideSteps => "ArgumentsBesideSteps",
            Self::Steps(StepFault::Cycle(_)) => "StepsInCycle",
            Self::Steps(StepFault::Unknown { .. }) => "UnknownStep",
        }
    }
}

/// Why something was not done. It stays to be done.
pub(crate) enum Halt {
    Broker(umbel_broker::Error),
    Api(kube::Error),
    Again(Duration),
    Stall(Stall),
    Full { queue: String, most: u64 },
}

impl From<umbel_broker::Error> for Halt {
    fn from(error: umbel_broker::Error) -> Self {
        Self::Broker(error)
    }
}

/// Where a template's messages go, with the queue as it is now; a template that can't be sent says why.
pub(crate) fn address(ctx: &Context, namespace: &str, template: &TaskTemplate) -> Result<Address, Stall> {
    let is_reserved = |name: &&String| OWN_HEADERS.contains(&name.as_str()) || name.starts_with("umbel_");
    if let Some(name) = template.headers.keys().find(is_reserved) {
        return Err(Stall::ReservedHeader(name.clone()));
    }
    // The schema's rules cannot see what may be anything.
    if template.task.is_none() && !(template.args.is_empty() && template.kwargs.is_empty()) {
        return Err(Stall::ArgumentsBesideSteps);
    }
    let steps = steps(template);
    dependencies(&steps)?;
    for step in &steps {
        let mut others = step.args_from.iter().map(|from| &from.name);
        if let Some(name) = others.find(|name| step.kwargs.contains_key(*name)) {
            return Err(Stall::ArgumentTwice(name.clone()));
        }
    }
    let name = &template.queue_ref.name;
    let queue = ctx
        .queue(namespace, name)
        .ok_or_else(|| Stall::UnknownQueue(name.clone()))?;
    if !queue.spec.accept.contains(&umbel_api::taskqueue::Serializer::Json) {
        return Err(Stall::NotAccepted(name.clone()));
    }
    let ready = queue.status.as_ref().and_then(|status| find(&status.conditions, READY));
    if let Some(ready) = ready.filter(|ready| ready.reason == "QueueOwnedElsewhere") {
        return Err(Stall::QueueNotOurs {
            name: name.clone(),
            why: ready.message.clone(),
        });
    }
    let source = ctx
        .brokers
        .source(&queue)
        .map_err(|fault| Stall::Broker(name.clone(), fault))?;
    Ok(Address {
        queue: queue.queue_name(),
        time_limit: queue.spec.time_limit.get(),
        steps: queue.spec.priority_steps.clone(),
        source,
    })
}

/// A run that is to begin.
pub(crate) struct Beginning {
    pub(crate) plan: Plan,
    /// Named, but there is no such TargetCluster.
    pub(crate) unknown: Vec<String>,
    /// Left out, as they can't be reached.
    pub(crate) unreachable: Vec<String>,
    /// Left out, as somebody has suspended them.
    pub(crate) suspended: Vec<String>,
}

impl Beginning {
    /// Events about `object` of clusters that are named in vain and of those that are left out, in the words of `left_out`
    /// for their names and the cause.
    pub(crate) async fn tell<K>(&self, ctx: &Context, object: &K, left_out: impl Fn(&str, &str) -> String)
    where
        K: Resource<DynamicType = ()>,
    {
        if !self.unknown.is_empty() {
            let note = format!("no TargetCluster {} in this namespace", self.unknown.join(", "));
            ctx.event(object, EventType::Warning, "UnknownCluster", note).await;
        }
        if !self.unreachable.is_empty() {
            let note = left_out(&self.unreachable.join(", "), "not reachable (unreachable: Skip)");
            ctx.event(object, EventType::Warning, "ClustersLeftOut", note).await;
        }
        if !self.suspended.is_empty() {
            let note = left_out(&self.suspended.join(", "), "suspended");
            ctx.event(object, EventType::Normal, "ClustersSuspended", note).await;
        }
    }
}

/// A run of which nothing is sent.
pub(crate) struct NothingToSend {
    pub(crate) why: &'static str,
    pub(crate) clusters: ClusterProgress,
}

/// A run that goes on, or has ended.
pub(crate) struct Progress {
    pub(crate) run: RunState,
    /// How far its clusters are, where it is for clusters.
    pub(crate) clusters: Option<ClusterProgress>,
    /// It goes on by a plan: the next task of it may be sent at any end.
    pub(crate) has_plan: bool,
}

impl Progress {
    /// Whether all of it succeeded, once it is over.
    pub(crate) fn is_good(&self) -> bool {
        let is_complete = self.run.failed + self.run.skipped == 0;
        is_complete && self.clusters.as_ref().is_none_or(|clusters| clusters.failed == 0)
    }
}

impl Sender<'_> {
    /// What a run of this template is that begins now, with the clusters and the arguments as they are now.
    pub(crate) async fn begin(&self, template: &TaskTemplate) -> Result<Beginning, Halt> {
        let template = self.resolve(template).await?;
        let candidates = match &template.targets {
            None => Vec::new(),
            Some(_) => candidates(self.ctx, &self.namespace),
        };
        let mut beginning = Beginning {
            plan: Plan {
                template: template.clone(),
                members: Vec::new(),
                after: Vec::new(),
                bounds: None,
            },
            unknown: Vec::new(),
            unreachable: Vec::new(),
            suspended: Vec::new(),
        };
        let choice = template.targets.as_ref().map(|targets| choose(targets, &candidates));
        let choice = choice.unwrap_or_default();
        beginning.plan =
            Plan::new(template, &choice.chosen, &choice.given_up).map_err(|fault| Halt::Stall(fault.into()))?;
        beginning.unknown = choice.unknown;
        beginning.unreachable = choice.unreachable;
        beginning.suspended = choice.suspended;
        Ok(beginning)
    }

    /// The template with the named arguments that stand in ConfigMaps as they are now.
    async fn resolve(&self, template: &TaskTemplate) -> Result<TaskTemplate, Halt> {
        let mut template = template.clone();
        self.fill(&mut template.args_from, &mut template.kwargs).await?;
        for step in &mut template.steps {
            self.fill(&mut step.args_from, &mut step.kwargs).await?;
        }
        Ok(template)
    }

    async fn fill(&self, args_from: &mut Vec<ArgFrom>, kwargs: &mut Map<String, Value>) -> Result<(), Halt> {
        let api: Api<ConfigMap> = Api::namespaced(self.ctx.client.clone(), &self.namespace);
        let mut secrets = Vec::new();
        for from in std::mem::take(args_from) {
            let Some(ConfigMapKeyRef { name: map, key }) = &from.config_map_key_ref else {
                secrets.push(from); // The worker's.
                continue;
            };
            let found = api.get_opt(map).await.map_err(Halt::Api)?;
            let data = found.and_then(|found| found.data).unwrap_or_default();
            let Some(value) = data.get(key) else {
                return Err(Halt::Stall(Stall::NoConfigMapKey {
                    name: map.clone(),
                    key: key.clone(),
                }));
            };
            kwargs.insert(from.name.clone(), Value::String(value.clone()));
        }
        *args_from = secrets;
        Ok(())
    }

    /// The first messages of a run, and what is kept of it for the others. Without a message, why. `is_again`: the broker has
    /// lost that it was sent before; who has run it by then does not run it again.
    pub(crate) fn first(
        &self,
        plan: &Plan,
        address: &Address,
        occasion: Occasion,
        now: Timestamp,
        is_again: bool,
    ) -> Result<(Vec<SlotMessage>, Option<RunPlan>), NothingToSend> {
        let verdict = plan.next(&vec![vec![State::Later; plan.after.len()]; plan.members.len()], now);
        if verdict.start.is_empty() {
            let why = match (plan.members.is_empty(), verdict.is_halted) {
                (true, _) => "no TargetCluster is chosen",
                (false, true) => "more of the chosen TargetClusters can't be reached than may fail (maxFailures)",
                (false, false) => "none of the chosen TargetClusters can be reached",
            };
            return Err(NothingToSend {
                why,
                clusters: verdict.clusters,
            });
        }
        let messages = self.messages(plan, address, occasion, &verdict.start, (occasion.at(), now, is_again));
        if plan.is_plain() {
            return Ok((messages, None));
        }
        let decided: BTreeSet<_> = verdict.start.iter().chain(&verdict.skip).copied().collect();
        let id = |task| plan.id(&self.uid, occasion, task);
        let kept = RunPlan {
            text: serde_json::to_string(plan).unwrap_or_default(),
            later: plan.all().filter(|task| !decided.contains(task)).map(id).collect(),
            dropped: verdict.skip.iter().copied().map(id).collect(),
        };
        Ok((messages, Some(kept)))
    }

    /// Looks at a run, sends what has its turn and drops what never will; `None` where the broker has no record of it.
    pub(crate) async fn advance(&self, occasion: Occasion, now: Timestamp) -> Result<Option<Progress>, Halt> {
        let id = occasion.run_id(&self.uid).to_string();
        let Some(mut run) = self.broker.run(&id).await? else {
            return Ok(None);
        };
        let plan: Option<Plan> = run.plan.as_deref().and_then(|text| serde_json::from_str(text).ok());
        let Some(plan) = plan else {
            return Ok(Some(Progress {
                run,
                clusters: None,
                has_plan: false,
            }));
        };
        let mut verdict = plan.next(&states(&plan, &self.uid, occasion, &run), now);
        if !(verdict.start.is_empty() && verdict.skip.is_empty()) {
            let address = address(self.ctx, &self.namespace, &plan.template).map_err(Halt::Stall)?;
            let messages = self.messages(&plan, &address, occasion, &verdict.start, (now, now, false));
            let dropped: Vec<String> = verdict
                .skip
                .iter()
                .map(|task| plan.id(&self.uid, occasion, *task))
                .collect();
            self.send(&address, &id, &dropped, &messages).await?;
            run = self.broker.run(&id).await?.unwrap_or_default();
            verdict = plan.next(&states(&plan, &self.uid, occasion, &run), now);
        }
        Ok(Some(Progress {
            run,
            clusters: plan.template.targets.is_some().then_some(verdict.clusters),
            has_plan: true,
        }))
    }

    async fn send(
        &self,
        address: &Address,
        run: &str,
        dropped: &[String],
        messages: &[SlotMessage],
    ) -> Result<(), Halt> {
        if self.ctx.leader.term() != Some(self.term) {
            return Err(Halt::Again(Duration::from_millis(250)));
        }
        let broker = self.broker.with_steps(&address.steps);
        let answer = failpoint::around(
            "advance",
            broker.advance((self.ctx.leader.install(), self.term), run, dropped, messages),
        )
        .await;
        match answer? {
            AdvanceAnswer::Done { sent: _ } => Ok(()),
            AdvanceAnswer::Stale { term: _ } => Err(Halt::Again(Duration::from_millis(250))),
            AdvanceAnswer::WrongType { key } => Err(Halt::Stall(Stall::WrongKeyType(key))),
            AdvanceAnswer::Full { queue, most } => Err(Halt::Full { queue, most }),
        }
    }

    /// Cancels all tasks of a run: what was not sent is dropped, what waits is dropped when its turn comes, what runs is
    /// stopped. Answers the run as it was; one that is over is left as it is. `why` stands in its record.
    pub(crate) async fn cancel(&self, occasion: Occasion, why: &str) -> Result<RunState, Halt> {
        let id = occasion.run_id(&self.uid).to_string();
        let run = self.broker.run(&id).await?.unwrap_or_default();
        if run.is_over() {
            return Ok(run);
        }
        let term = (self.ctx.leader.install(), self.term);
        let answer = failpoint::around("cancel", self.broker.cancel_run(term, &id, why)).await;
        let open = match answer? {
            CancelAnswer::Done { open, dropped } if open.is_empty() && dropped == 0 => {
                return Ok(self.broker.run(&id).await?.unwrap_or_default());
            }
            CancelAnswer::Done { open, dropped: _ } => open,
            CancelAnswer::Stale { term: _ } => return Err(Halt::Again(Duration::from_millis(250))),
        };
        if !open.is_empty() {
            #[allow(clippy::cast_precision_loss)] // Milliseconds since 1970.
            let now = self.broker.time().await? as f64 / 1000.0;
            let revoked = failpoint::around("revoke", self.broker.terminate(&open, now, now + CANCELLED)).await;
            revoked?;
            let request = Call::revoke(&open, true, "SIGTERM").publication(self.broker.control(), &id);
            let asked = failpoint::around("request", self.broker.request(&request)).await;
            asked?;
        }
        Ok(run)
    }

    /// A run is over, and its end was noted.
    pub(crate) async fn close(&self, occasion: Occasion) -> Result<(), Halt> {
        let id = occasion.run_id(&self.uid).to_string();
        let closed = failpoint::around("close-run", self.broker.close_run(&id, KEPT)).await;
        Ok(closed?)
    }

    /// Whether nothing is left of a queue's messages anywhere on the broker.
    pub(crate) async fn is_empty(&self, queue: &str) -> Result<bool, Halt> {
        let sample = self.broker.depths(&[queue.to_owned()]).await?;
        Ok(sample.foreign_unacked == 0
            && sample.queues.iter().all(|depth| {
                depth.as_ref().is_ok_and(|depth| {
                    depth.waiting == 0 && depth.in_flight == 0 && depth.delayed == 0 && depth.suspect == 0
                })
            }))
    }

    /// The messages of these tasks of a run; what expires does so by `since`.
    fn messages(
        &self,
        plan: &Plan,
        address: &Address,
        occasion: Occasion,
        which: &[(usize, usize)],
        (since, now, is_again): (Timestamp, Timestamp, bool),
    ) -> Vec<SlotMessage> {
        let template = &plan.template;
        let steps = steps(template);
        let expires = template
            .expires_after
            .and_then(|after| since.checked_add(after.get()).ok());
        let run = occasion.run_id(&self.uid).to_string();
        let own: Vec<(String, Json)> = template
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), Json::string(value)))
            .chain([
                ("umbel_run".into(), Json::string(&run)),
                ("umbel_order".into(), Json::of(&occasion.at().as_millisecond())),
                (
                    "umbel_sent_at".into(),
                    Json::of(&(now.as_millisecond() as f64 / 1000.0)),
                ),
            ])
            .collect();
        let prepared: Vec<(Json, Json, Option<Json>)> = steps
            .iter()
            .map(|step| {
                (
                    Json::of(&step.args),
                    Json::of(&step.kwargs),
                    from_secrets(&step.args_from),
                )
            })
            .collect();
        which
            .iter()
            .map(|&(member, at)| {
                let (step, (args, kwargs, secrets)) = (&steps[at], &prepared[at]);
                let cluster = plan.members[member].cluster.as_ref();
                let limit = step.time_limit.or(template.time_limit);
                let kept = template.expires_after.map_or(UNIQUE_KEPT, umbel_api::Span::get)
                    + limit.map_or(address.time_limit, umbel_api::Span::get);
                let mut headers = own.clone();
                headers.extend(secrets.iter().map(|from| ("umbel_args_from".into(), from.clone())));
                let retry = step.retry.unwrap_or_default().or(template.retry.unwrap_or_default());
                headers.extend(retry_header(&retry).map(|header| ("umbel_retry".into(), header)));
                headers.extend(
                    cluster
                        .iter()
                        .map(|cluster| ("umbel_cluster".into(), Json::string(cluster))),
                );
                let parts = [
                    template.unique_key.as_ref(),
                    cluster,
                    Some(&step.name).filter(|name| !name.is_empty()),
                ];
                let unique = template.unique_key.is_some().then(|| {
                    parts
                        .into_iter()
                        .flatten()
                        .map(String::as_str)
                        .collect::<Vec<_>>()
                        .join("/")
                });
                headers.extend(unique.iter().map(|key| {
                    let header = BTreeMap::from([("key", key.as_str()), ("until", Until::Done.name())]);
                    ("umbel_unique".into(), Json::of(&header))
                }));
                headers.extend(is_again.then(|| ("umbel_again".into(), Json::of(&true))));
                let id = plan.id(&self.uid, occasion, (member, at));
                let message = NewTask {
                    id: id.clone(),
                    task: step.task.clone(),
                    args: args.clone(),
                    kwargs: kwargs.clone(),
                    queue: address.queue.clone(),
                    priority: template.priority,
                    expires,
                    sent_at: Some(now),
                    time_limit: TimeLimit {
                        hard: limit.map(|limit| limit.get().as_secs_f64()),
                        soft: None,
                    },
                    origin: self.origin.clone(),
                    headers,
                    ..NewTask::default()
                };
                SlotMessage {
                    queue: address.queue.clone(),
                    priority: template.priority,
                    id,
                    raw: message.encode(),
                    unique: unique.map(|key| (key, kept)),
                }
            })
            .collect()
    }
}

/// The clusters of a namespace, as a choice sees them.
fn candidates(ctx: &Context, namespace: &str) -> Vec<Candidate> {
    let is_unreachable = |status: &umbel_api::TargetClusterStatus| {
        find(&status.conditions, REACHABLE).is_some_and(|reachable| reachable.status == "False")
    };
    ctx.clusters(namespace)
        .iter()
        .map(|cluster| Candidate {
            name: cluster.name_any(),
            labels: cluster.labels().clone(),
            is_suspended: cluster.spec.suspend,
            is_unreachable: cluster.status.as_ref().is_some_and(is_unreachable),
        })
        .collect()
}

/// Which arguments the worker takes from Secrets.
fn from_secrets(args_from: &[ArgFrom]) -> Option<Json> {
    let named = args_from.iter().filter_map(|from| {
        let secret = from.secret_key_ref.as_ref()?;
        Some(json!({ "arg": from.name, "secret": secret.name, "key": secret.key }))
    });
    let named: Vec<Value> = named.collect();
    (!named.is_empty()).then(|| Json::of(&named))
}

/// What the worker does at a retry, where it is not what the queue says; times in seconds.
fn retry_header(retry: &TaskRetry) -> Option<Json> {
    let seconds = |span: umbel_api::Span| Json::of(&span.get().as_secs_f64());
    let given = [
        ("max_attempts", retry.max_attempts.map(|most| Json::of(&most))),
        ("initial_backoff", retry.initial_backoff.map(seconds)),
        ("max_backoff", retry.max_backoff.map(seconds)),
        ("factor", retry.factor.map(|factor| Json::of(&factor))),
        ("jitter", retry.jitter.map(|jitter| Json::of(&jitter))),
    ];
    let given = given.iter().filter_map(|(name, value)| Some((*name, value.as_ref()?)));
    let header = Json::object(given);
    (header.as_str() != "{}").then_some(header)
}

/// A time of Redis, in seconds.
pub(crate) fn redis_time(seconds: f64) -> Option<Timestamp> {
    let since = SignedDuration::try_from_secs_f64(seconds).ok()?;
    Timestamp::from_duration(since).ok()
}

/// How far the tasks of a run are, by its record.
fn states(plan: &Plan, uid: &str, occasion: Occasion, run: &RunState) -> Vec<Vec<State>> {
    let time = |seconds| redis_time(seconds).unwrap_or_default();
    let is_failed = |end: &&RunEnd| ["failed", "expired", "revoked"].contains(&&*end.outcome);
    let noted = run.ended.values().filter(is_failed).count() as u64;
    let state = |task: (usize, usize)| {
        let id = plan.id(uid, occasion, task);
        if let Some(sent) = run.open.get(&id) {
            return State::Open(time(*sent));
        }
        if run.later.contains(&id) {
            return State::Later;
        }
        match run.ended.get(&id) {
            Some(end) if end.outcome == "succeeded" => State::Succeeded {
                sent: time(end.sent_at.unwrap_or_default()),
                ended: time(end.ended_at.unwrap_or_default()),
            },
            Some(end) if ["skipped", "left_out"].contains(&&*end.outcome) => State::Skipped,
            // Ended by a worker of a version that counts only.
            None if run.failed == noted => State::Succeeded {
                sent: time(run.slot_ms as f64 / 1000.0),
                ended: time(run.settled_at.unwrap_or_default()),
            },
            Some(_) | None => State::Failed,
        }
    };
    let row = |member| (0..plan.after.len()).map(|step| state((member, step))).collect();
    (0..plan.members.len()).map(row).collect()
}
