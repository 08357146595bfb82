//! Python Celery workers of pools with `runtime: Celery`: watched by their events, steered by Celery's remote control.
//!
//! A node's name ends in its pod's name, which is how the two are brought together. There is no gate: a worker whose
//! consumers were cancelled takes nothing more, and stays so until one is added again; that is what counts as closed here.
//! One that does not answer to remote control cannot be closed. It is put aside in this process alone, and goes when its
//! heartbeat says that nothing runs: between the two it may begin a task.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio_util::sync::CancellationToken;
use umbel_api::workerpool::Runtime;
use umbel_api::{WorkerPool, condition::Finding, condition::Status, names::pool_condition::REMOTE_CONTROL};
use umbel_broker::{Broker, Gate, Heartbeat, WorkerRecord};
use umbel_protocol::event;
use umbel_protocol::json::Json;
use umbel_telemetry::chain;

use crate::brokers::Source;
use crate::context::Context;
use crate::observe::{Fleet, Workers, gate_mark};

/// Workers are asked this often what they do, for those that send no heartbeats, and for what heartbeats do not say.
const LOOK: Duration = Duration::from_secs(5);
/// A worker answers within milliseconds; one that is busy in a single thread not at all.
const PATIENCE: Duration = Duration::from_secs(1);
/// Celery's heartbeats come every two seconds; a worker of which nothing was heard for so long is not seen as alive.
const ALIVE: Duration = Duration::from_secs(15);
/// One that has not answered for so long does not answer: three looks, and a slow one.
const ANSWERS: Duration = Duration::from_secs(17);
/// Pause before another attempt to listen.
const AGAIN: Duration = Duration::from_secs(2);

/// A Celery worker, as far as it was heard of.
#[derive(Clone, Debug)]
pub struct Node {
    /// When it was first heard of.
    first: Instant,
    /// When it was heard of last, in whatever way.
    heard: Instant,
    /// When it answered last.
    answered: Option<Instant>,
    /// The queues that it consumes.
    queues: Vec<String>,
    /// Those that it consumed when it was closed.
    cancelled: Vec<String>,
    /// Tasks that run.
    active: u64,
    /// Tasks that it has fetched.
    reserved: u64,
    /// Since when it takes nothing more, if it does not.
    closed: Option<Instant>,
    /// The same, of one that does not answer.
    aside: Option<Instant>,
    /// What was told of it last.
    told: Option<Facts>,
}

/// What a decision looks at: whether it lives, whether it takes nothing more, what it holds, whether it answers.
type Facts = (bool, bool, u64, Option<bool>);

impl Node {
    fn new(now: Instant) -> Self {
        Self {
            first: now,
            heard: now,
            answered: None,
            queues: Vec::new(),
            cancelled: Vec::new(),
            active: 0,
            reserved: 0,
            closed: None,
            aside: None,
            told: None,
        }
    }

    /// The queues that it is to consume again: its pool's, and what else it was told to leave.
    fn to_add(&self, pool: &[String]) -> Vec<String> {
        let others = self.cancelled.iter().filter(|queue| !pool.contains(queue));
        pool.iter().chain(others).cloned().collect()
    }

    /// Whether it answers to remote control; nothing while nobody can tell.
    fn answers(&self, now: Instant) -> Option<bool> {
        match self.answered {
            Some(at) => Some(now.duration_since(at) < ANSWERS),
            None => (now.duration_since(self.first) >= ANSWERS).then_some(false),
        }
    }

    fn closed_since(&self, now: Instant) -> Option<Instant> {
        match self.answers(now) {
            Some(false) => self.aside,
            Some(true) | None => self.closed,
        }
    }

    /// Whether there is something new to tell; time alone can make it so.
    fn is_news(&mut self, now: Instant) -> bool {
        let is_alive = now.duration_since(self.heard) < ALIVE;
        let held = self.active + self.reserved;
        let facts = (is_alive, self.closed.is_some(), held, self.answers(now));
        self.told.replace(facts) != Some(facts)
    }
}

type Nodes = BTreeMap<String, Node>;

/// The Celery workers of all brokers that have pools of them.
#[derive(Default)]
pub struct Celery {
    nodes: Mutex<HashMap<Source, Nodes>>,
}

/// Watches the Celery workers of every broker that has pools of them, until `stop`.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut watches: HashMap<Source, CancellationToken> = HashMap::new();
    let mut ticks = tokio::time::interval(AGAIN / 2);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let pools = context.pools();
        let wanted: Vec<Source> = pools
            .iter()
            .filter(|pool| pool.spec.runtime == Runtime::Celery)
            .filter_map(|pool| context.source(pool))
            .collect();
        watches.retain(|source, watch| {
            let keep = wanted.contains(source);
            if !keep {
                watch.cancel();
                context.celery.lock().remove(source);
            }
            keep
        });
        for source in wanted {
            if watches.contains_key(&source) {
                continue;
            }
            let watch = stop.child_token();
            watches.insert(source.clone(), watch.clone());
            let context = context.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = watch.cancelled() => {}
                    () = listen(&context, &source) => {}
                }
            });
        }
    }
}

async fn listen(context: &Context, source: &Source) {
    loop {
        let view = context.brokers.view(source);
        if let Some(broker) = view.broker.filter(|_| view.fault.is_none())
            && let Err(error) = follow(context, source, &broker).await
        {
            tracing::warn!(%source, error = %chain(&error), "Celery's workers are not heard");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Takes in events, and asks now and then, until the connection ends.
async fn follow(context: &Context, source: &Source, broker: &Broker) -> Result<(), umbel_broker::Error> {
    let mut events = broker.celery_events().await?;
    let mut looks = tokio::time::interval(LOOK);
    loop {
        let changed = tokio::select! {
            event = events.next() => match event {
                Some((_, payload)) => context.celery.hear(source, &payload, Instant::now()),
                None => return Ok(()),
            },
            _ = looks.tick() => context.celery.look(source, broker).await?,
        };
        if changed {
            context.brokers.wake(source);
        }
    }
}

impl Celery {
    /// Takes in events; whether anything changed that a decision looks at.
    fn hear(&self, source: &Source, payload: &[u8], now: Instant) -> bool {
        let mut changed = false;
        for event in event::parse(payload).unwrap_or_default() {
            let mut all = self.lock();
            let nodes = all.entry(source.clone()).or_default();
            if event.kind == "worker-offline" {
                changed |= nodes.remove(&event.hostname).is_some();
                continue;
            }
            let node = nodes.entry(event.hostname).or_insert_with(|| Node::new(now));
            node.heard = now;
            if let Some(active) = event.fields.get("active").and_then(|active| active.to().ok()) {
                node.active = active;
            }
            changed |= node.is_news(now);
        }
        changed
    }

    /// Asks all workers what they consume and what they run; whether anything changed that a decision looks at.
    pub async fn look(&self, source: &Source, broker: &Broker) -> Result<bool, umbel_broker::Error> {
        let nothing = Json::empty_object();
        let consume = broker.ask_celery("active_queues", &nothing, None, PATIENCE).await?;
        let names: Vec<String> = consume.iter().map(|(name, _)| name.clone()).collect();
        let (active, reserved) = tokio::try_join!(
            broker.ask_celery("active", &nothing, Some(&names), PATIENCE),
            broker.ask_celery("reserved", &nothing, Some(&names), PATIENCE),
        )?;
        let count = |answers: &[(String, Json)], name: &str| {
            let answer = answers.iter().find(|(node, _)| node == name);
            answer
                .and_then(|(_, tasks)| tasks.elements())
                .map(|tasks| tasks.len() as u64)
        };
        let now = Instant::now();
        let mut all = self.lock();
        let nodes = all.entry(source.clone()).or_default();
        for (name, queues) in &consume {
            let node = nodes.entry(name.clone()).or_insert_with(|| Node::new(now));
            // Whoever says no more than what it consumes says nothing of what it holds.
            let (Some(active), Some(reserved)) = (count(&active, name), count(&reserved, name)) else {
                continue;
            };
            (node.heard, node.answered, node.aside) = (now, Some(now), None);
            (node.active, node.reserved) = (active, reserved);
            node.queues = queues
                .elements()
                .unwrap_or_default()
                .iter()
                .filter_map(|queue| queue.get("name")?.text())
                .collect();
            node.closed = node.queues.is_empty().then(|| node.closed.unwrap_or(now));
        }
        let before = nodes.len();
        nodes.retain(|_, node| now.duration_since(node.heard) < ALIVE * 4);
        let mut changed = nodes.len() != before;
        for node in nodes.values_mut() {
            changed |= node.is_news(now);
        }
        Ok(changed)
    }

    /// A worker takes nothing more; one that does not answer is put aside.
    pub async fn close(&self, source: &Source, broker: &Broker, name: &str) -> Result<(), umbel_broker::Error> {
        let now = Instant::now();
        let (answers, queues) = match self.lock().get(source).and_then(|nodes| nodes.get(name)) {
            Some(node) => (node.answers(now), node.queues.clone()),
            None => return Ok(()),
        };
        for queue in &queues {
            // Noted first: it may do so and its answer be lost.
            if let Some(node) = self.lock().get_mut(source).and_then(|nodes| nodes.get_mut(name))
                && !node.cancelled.contains(queue)
            {
                node.cancelled.push(queue.clone());
            }
            let which = Json::of(&serde_json::json!({ "queue": queue }));
            broker
                .ask_celery("cancel_consumer", &which, Some(&[name.to_owned()]), PATIENCE)
                .await?;
        }
        if answers == Some(false)
            && let Some(node) = self.lock().get_mut(source).and_then(|nodes| nodes.get_mut(name))
        {
            node.aside.get_or_insert(now);
        }
        Ok(())
    }

    /// A worker takes work again, from these queues and those that it was told to leave, if it takes none.
    pub async fn open(
        &self,
        source: &Source,
        broker: &Broker,
        name: &str,
        queues: &[String],
    ) -> Result<(), umbel_broker::Error> {
        let queues = match self.lock().get_mut(source).and_then(|nodes| nodes.get_mut(name)) {
            Some(node) => {
                node.aside = None;
                if node.closed.is_none() {
                    return Ok(());
                }
                node.to_add(queues)
            }
            None => return Ok(()),
        };
        let mut all_answered = true;
        for queue in &queues {
            let which = Json::of(&serde_json::json!({ "queue": queue }));
            let answers = broker
                .ask_celery("add_consumer", &which, Some(&[name.to_owned()]), PATIENCE)
                .await?;
            all_answered &= !answers.is_empty();
        }
        if all_answered && let Some(node) = self.lock().get_mut(source).and_then(|nodes| nodes.get_mut(name)) {
            node.cancelled.clear();
        }
        Ok(())
    }

    /// The workers in the pods of these fleets, as records of a gate that they do not have.
    pub fn workers(&self, pool: &WorkerPool, source: &Source, generation: String, fleets: &[Fleet]) -> Workers {
        let (now, clock) = (Instant::now(), 1e9);
        let all = self.lock();
        let nodes = all.get(source);
        let record = |pod: &Pod| {
            let host = host(pod);
            let (name, node) = nodes?
                .iter()
                .find(|(name, _)| name.split_once('@').is_some_and(|(_, at)| at == host))?;
            let gate = match node.closed_since(now) {
                _ if gate_mark(pod).is_none() => Gate::New,
                Some(since) => Gate::Closed {
                    since: clock - now.duration_since(since).as_secs_f64(),
                },
                None => Gate::Open,
            };
            let is_alive = now.duration_since(node.heard) < ALIVE;
            let beat = Heartbeat {
                worker: name.clone(),
                node: name.clone(),
                pod: pod.name_any(),
                pod_uid: pod.uid().unwrap_or_default(),
                slots: pool.spec.concurrency,
                busy: u32::try_from(node.active).unwrap_or(u32::MAX),
                queues: node.queues.clone(),
                ..Heartbeat::default()
            };
            Some(WorkerRecord {
                worker: name.clone(),
                gate,
                epoch: 0,
                term: 0,
                n: 0,
                held: node.active + node.reserved,
                heartbeat: is_alive.then_some(beat),
            })
        };
        let pods = fleets.iter().flat_map(|fleet| &fleet.pods);
        let by_pod = pods.filter_map(|pod| Some((pod.uid()?, vec![record(pod)?])));
        Workers {
            generation,
            by_pod: by_pod.collect(),
            clock,
        }
    }

    /// Whether these workers take nothing more, and what they hold.
    pub fn states(&self, source: &Source, names: &[String]) -> Vec<(Option<Gate>, u64)> {
        let now = Instant::now();
        let all = self.lock();
        let state = |name: &String| {
            let Some(node) = all.get(source).and_then(|nodes| nodes.get(name)) else {
                return (None, 0);
            };
            // One that did not answer just now may have been started anew, and then it consumes.
            let is_fresh =
                node.aside.is_some() || node.answered.is_some_and(|at| now.duration_since(at) < PATIENCE * 3);
            let gate = match node.closed_since(now) {
                Some(_) if is_fresh => Gate::Closed { since: 0.0 },
                Some(_) | None => Gate::Open,
            };
            (Some(gate), node.active + node.reserved)
        };
        names.iter().map(state).collect()
    }

    /// What is said of these workers' remote control.
    pub fn finding(&self, source: &Source, workers: &Workers) -> Finding {
        let now = Instant::now();
        let all = self.lock();
        let names: Vec<&String> = workers.by_pod.values().flatten().map(|record| &record.worker).collect();
        let silent = |name: &&&String| {
            let node = all.get(source).and_then(|nodes| nodes.get(**name));
            node.is_some_and(|node| node.answers(now) == Some(false))
        };
        let silent: Vec<&str> = names.iter().filter(silent).map(|name| name.as_str()).collect();
        match (names.is_empty(), silent.as_slice()) {
            (true, _) => Finding::new(
                REMOTE_CONTROL,
                Status::Unknown,
                "NoWorkers",
                "no Celery worker was heard of yet",
            ),
            (false, []) => Finding::new(
                REMOTE_CONTROL,
                true,
                "Steered",
                "workers stop taking work before they go; what replaces one in a step down takes work at once, and can be stopped \
                 while it works",
            ),
            (false, silent) => {
                let note = format!(
                    "{} do not answer to remote control, so they cannot be told to take nothing more: idle ones go first, and one that \
                     becomes busy at that moment is stopped while it works",
                    silent.join(", ")
                );
                Finding::new(REMOTE_CONTROL, false, "Off", note)
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Source, Nodes>> {
        // Nothing that can panic runs under this lock.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The host name inside a pod.
fn host(pod: &Pod) -> String {
    let own = pod.spec.as_ref().and_then(|spec| spec.hostname.clone());
    own.unwrap_or_else(|| pod.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opened_worker_consumes_all_that_it_left() {
        let mut node = Node::new(Instant::now());
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(node.to_add(&names(&["py"])), ["py"]);
        node.cancelled = names(&["extra", "py"]);
        assert_eq!(node.to_add(&names(&["py", "new"])), ["py", "new", "extra"]);
    }
}
