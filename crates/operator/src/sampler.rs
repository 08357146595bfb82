//! Looks at every broker, once an interval, and keeps only the latest answer.
//!
//! The leader runs it. One task a broker: a slow one does not delay the others.
//! A sample carries nothing to anybody: it *wakes* the reconciles of pools and
//! queues when something changed, and these read the latest.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::ResourceExt;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use umbel_api::WorkerPool;
use umbel_broker::{Broker, BrokerSample, Config, Lookout, Survey, TermAnswer, WorkerRecord};
use umbel_plan::scaling::Pace;
use umbel_telemetry::chain;

use crate::brokers::{Access, Changed, Fault, Parts, Sample, Source, View};
use crate::context::Context;
use crate::secrets::{Secrets, Watch};
use crate::{demand, failpoint, flow};

/// How often a Secret is read again, so that a new address or password is used within 30 s even where no watch tells of it.
const SECRET_AGE: Duration = Duration::from_secs(10);
/// How often a server's settings are looked at.
const SURVEY_AGE: Duration = Duration::from_secs(15);
/// How often the leader says that it lives; workers take it for gone after 30 s.
const BEAT: Duration = Duration::from_secs(5);
/// Time between two looks at queues into which something came, so that many messages are not many looks.
const GLANCE: Duration = Duration::from_millis(200);
/// A server that does not tell what comes is asked to again after this.
const REFUSAL_LASTS: Duration = Duration::from_secs(60);
/// A sample is one round trip; a broker that needs longer is not reachable for us.
const PATIENCE: Duration = Duration::from_secs(5);

/// Samples all brokers until `stop`.
pub(crate) async fn run(context: Arc<Context>, secrets: Secrets, interval: Duration, stop: CancellationToken) {
    let mut tasks: HashMap<Source, CancellationToken> = HashMap::new();
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut claims = context.claims.changes();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
            // Its sender is in the context.
            Ok(()) = claims.changed() => {}
        }
        let wanted: BTreeSet<Source> = context
            .queues()
            .iter()
            .filter_map(|queue| context.brokers.source(queue).ok())
            .collect();
        tasks.retain(|source, task| {
            let keep = wanted.contains(source);
            if !keep {
                task.cancel();
                context.brokers.forget(source);
            }
            keep
        });
        for source in wanted {
            tasks.entry(source.clone()).or_insert_with(|| {
                let stop = stop.child_token();
                let changed = Arc::new(Notify::new());
                let watches = source
                    .secrets()
                    .into_iter()
                    .filter_map(|name| secrets.watch(&source.namespace, name, changed.clone()));
                let news = (watches.collect(), changed);
                tokio::spawn(watch(context.clone(), source, news, interval, stop.clone()));
                stop
            });
        }
    }
}

/// What one sampling task keeps between two samples.
struct Link {
    source: Source,
    access: Option<Access>,
    survey: Option<Survey>,
    surveyed_at: Option<Instant>,
    read_at: Option<Instant>,
    broker: Option<Broker>,
    term: Option<u64>,
    beat_at: Option<Instant>,
    generation: String,
    /// The highest token seen in this data set.
    token: u64,
    /// The broker had accepted our term and has another one.
    has_forgotten_term: bool,
    /// The data went back to an earlier state, and nobody was told yet.
    is_back: bool,
    foreign: flow::Foreign,
    /// The queues of the latest sample with their priority steps.
    steps: BTreeMap<String, Vec<u8>>,
    /// Tells what comes into queues that were empty then.
    lookout: Option<Lookout>,
    /// When the server refused to tell.
    refused_at: Option<Instant>,
}

async fn watch(
    context: Arc<Context>,
    source: Source,
    (_watches, changed): (Vec<Watch>, Arc<Notify>),
    interval: Duration,
    stop: CancellationToken,
) {
    let mut link = Link::new(source);
    let mut meters = demand::Meters::default();
    let mut flows = flow::Meters::default();
    let mut due = tokio::time::Instant::now();
    // Queues into which something came, and when they are looked at.
    let mut came = BTreeSet::new();
    let mut glance = due;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(due) => {}
            () = changed.notified() => {
                // Many changes are not many looks.
                link.read_at = None;
                due = due.min(tokio::time::Instant::now() + GLANCE);
                continue;
            }
            queues = link.came() => {
                came.extend(queues);
                continue;
            }
            () = tokio::time::sleep_until(glance), if !came.is_empty() => {
                link.glance(&context, &std::mem::take(&mut came)).await;
                glance = tokio::time::Instant::now() + GLANCE;
                continue;
            }
        }
        came.clear();
        due = tokio::time::Instant::now() + period(&context, &link.source, interval);
        let Some(term) = context.leader.term() else { continue };
        let started = Instant::now();
        let seen = tokio::select! {
            () = stop.cancelled() => return,
            seen = tokio::time::timeout(PATIENCE, link.sample(&context, term)) => seen,
        };
        let mut seen = seen.unwrap_or_else(|_| {
            Err(Fault::Unreachable {
                server: link.server(),
                why: format!("no answer within {PATIENCE:?}"),
                is_refusal: false,
            })
        });
        if let Ok(sample) = &mut seen {
            sample.paces = meters.measure(&context, &link.source, sample);
            sample.flows = flows.measure(sample);
        }
        context.metrics.sampled(started.elapsed(), seen.is_ok());
        let is_seen = seen.is_ok();
        publish(&context, &mut link, seen);
        if is_seen {
            link.look_out(&context).await;
        }
    }
}

/// The most eager pool of the namespace says how often, where that is oftener than the operator does by itself.
fn period(context: &Context, source: &Source, interval: Duration) -> Duration {
    let pools = context.pools();
    let asked = pools
        .iter()
        .filter(|pool| pool.metadata.namespace.as_deref() == Some(&source.namespace))
        .filter_map(|pool| pool.spec.scaling.interval.map(umbel_api::Span::get));
    asked.min().map_or(interval, |asked| asked.min(interval))
}

fn publish(context: &Context, link: &mut Link, seen: Result<Sample, Fault>) {
    let mut changed = None;
    let source = link.source.clone();
    let pools = if seen.is_err() { context.pools() } else { Vec::new() };
    let is_awaited = |failures: u32| {
        let threshold = |pool: &WorkerPool| pool.spec.scaling.on_broker_error.failure_threshold;
        pools.iter().any(|pool| threshold(pool) == failures)
    };
    context.brokers.update(&source, |view: &mut View| {
        changed = match &seen {
            Ok(sample) => match view.sample.as_deref().filter(|_| view.fault.is_none()) {
                Some(old) => changes(old, sample),
                None => Some(Changed::Everything),
            },
            Err(fault) => {
                let is_news = view.fault.as_ref() != Some(fault) || view.failures < 10;
                (is_news || is_awaited(view.failures.saturating_add(1))).then_some(Changed::Everything)
            }
        };
        view.broker.clone_from(&link.broker);
        view.term = link.term;
        if std::mem::take(&mut link.is_back) {
            view.losses += 1;
            view.went_back = Some(Timestamp::now());
            changed = Some(Changed::Everything);
        }
        match seen {
            Ok(sample) => {
                view.sample = Some(Arc::new(sample));
                view.fault = None;
                view.failures = 0;
            }
            Err(fault) => {
                if view.fault.as_ref() != Some(&fault) {
                    tracing::warn!(source = %source, error = %fault, "broker not sampled");
                }
                view.fault = Some(fault);
                view.failures = view.failures.saturating_add(1);
            }
        }
    });
    if let Some(changed) = changed {
        context.brokers.tell(&source, changed);
    }
}

/// What changed of that which a decision looks at. Heartbeats differ every time; what matters in them does not.
fn changes(old: &Sample, new: &Sample) -> Option<Changed> {
    if old.generation != new.generation || old.survey != new.survey {
        return Some(Changed::Everything);
    }
    let mut parts = Parts {
        queues: differing(&old.queues, &new.queues, PartialEq::eq),
        pools: differing(&old.hand_backs, &new.hand_backs, PartialEq::eq),
        pods: BTreeSet::new(),
    };
    let is_same_pace = |old: &Pace, new: &Pace| demand::coarse(old) == demand::coarse(new);
    parts.pools.extend(differing(&old.paces, &new.paces, is_same_pace));
    let (before, now) = (by_name(&old.workers), by_name(&new.workers));
    for worker in differing(&before, &now, |old, new| fact(old) == fact(new)) {
        let beats = [&before, &now]
            .into_iter()
            .filter_map(|all| all.get(&worker)?.heartbeat.as_ref());
        let mut is_known = false;
        for beat in beats {
            parts.queues.extend(beat.queues.iter().cloned());
            parts
                .pools
                .extend(Some(beat.pool.clone()).filter(|pool| !pool.is_empty()));
            is_known = true;
        }
        if !is_known {
            // It begins with the uid of its pod.
            parts.pods.extend(worker.split('/').next().map(str::to_owned));
        }
    }
    (parts != Parts::default()).then_some(Changed::These(parts))
}

fn by_name(workers: &[WorkerRecord]) -> BTreeMap<String, &WorkerRecord> {
    workers.iter().map(|record| (record.worker.clone(), record)).collect()
}

/// What matters of a worker.
fn fact(record: &WorkerRecord) -> (&'static str, u64, bool, u32) {
    let slots = record.heartbeat.as_ref().map_or(0, |beat| beat.slots);
    let gate = match record.gate {
        umbel_broker::Gate::New => "new",
        umbel_broker::Gate::Open => "open",
        umbel_broker::Gate::Closed { .. } => "closed",
    };
    (gate, record.held, record.heartbeat.is_some(), slots)
}

/// The names that came, went, or stand for something else.
fn differing<V>(
    old: &BTreeMap<String, V>,
    new: &BTreeMap<String, V>,
    is_same: impl Fn(&V, &V) -> bool,
) -> BTreeSet<String> {
    let differs = |(name, value): &(&String, &V)| old.get(*name).is_none_or(|before| !is_same(before, value));
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    let others = new.iter().filter(differs).map(|(name, _)| name);
    others.chain(gone).cloned().collect()
}

impl Link {
    fn new(source: Source) -> Self {
        Self {
            source,
            access: None,
            survey: None,
            surveyed_at: None,
            read_at: None,
            broker: None,
            term: None,
            beat_at: None,
            generation: String::new(),
            token: 0,
            has_forgotten_term: false,
            is_back: false,
            foreign: flow::Foreign::default(),
            steps: BTreeMap::new(),
            lookout: None,
            refused_at: None,
        }
    }

    /// The queues into which something came that were empty.
    async fn came(&mut self) -> BTreeSet<String> {
        match &mut self.lookout {
            Some(lookout) => lookout.came().await,
            None => std::future::pending().await,
        }
    }

    /// Has the broker tell when something comes into the queues that the latest sample showed empty, where it does so.
    async fn look_out(&mut self, context: &Context) {
        if self.refused_at.is_some_and(|at| at.elapsed() < REFUSAL_LASTS) {
            return;
        }
        let (Some(lookout), Some(sample)) = (&mut self.lookout, context.brokers.view(&self.source).sample) else {
            return;
        };
        let is_empty = |queue: &&String| {
            let depth = sample.queues.get(*queue).and_then(|depth| depth.as_ref().ok());
            depth.is_some_and(|depth| depth.waiting + depth.in_flight == 0)
        };
        let steps = self.steps.iter();
        let empty: Vec<(&str, &[u8])> = steps
            .filter(|(queue, _)| is_empty(queue))
            .map(|(queue, steps)| (queue.as_str(), steps.as_slice()))
            .collect();
        let watched = tokio::time::timeout(PATIENCE, lookout.watch(&empty)).await;
        let why = match watched {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error).to_string(),
            Err(_) => format!("no answer within {PATIENCE:?}"),
        };
        tracing::debug!(source = %self.source, error = why, "new messages are seen by samples only");
        self.refused_at = Some(Instant::now());
    }

    /// Looks at some queues between two samples, and puts what it sees into the latest one.
    async fn glance(&self, context: &Context, queues: &BTreeSet<String>) {
        let Some(broker) = self.broker.as_ref().filter(|_| context.leader.term().is_some()) else {
            return;
        };
        let known = queues.iter().filter_map(|queue| self.steps.get_key_value(queue));
        let asked: Vec<(&str, &[u8])> = known.map(|(queue, steps)| (queue.as_str(), steps.as_slice())).collect();
        let Ok(Ok(seen)) = tokio::time::timeout(PATIENCE, broker.glance(&asked)).await else {
            // The next sample says why.
            return;
        };
        let mut changed = None;
        context.brokers.update(&self.source, |view| {
            let latest = view.sample.as_ref().filter(|_| view.fault.is_none());
            let Some(old) = latest.filter(|old| old.generation == seen.generation && old.token <= seen.fence) else {
                return;
            };
            let mut new = Sample::clone(old);
            let rows = asked.iter().map(|(queue, _)| (*queue).to_owned()).zip(seen.queues);
            new.queues.extend(rows);
            changed = changes(old, &new);
            view.sample = Some(Arc::new(new));
        });
        if let Some(changed) = changed {
            context.brokers.tell(&self.source, changed);
        }
    }

    fn server(&self) -> String {
        self.broker
            .as_ref()
            .map_or_else(|| self.source.to_string(), Broker::server)
    }

    fn unreachable(&self, error: &umbel_broker::Error) -> Fault {
        Fault::Unreachable {
            server: self.server(),
            why: chain(error).to_string(),
            is_refusal: error.trouble().is_refusal(),
        }
    }

    /// Takes note of what the server is and promises.
    fn surveyed(&mut self, broker: &Broker, survey: Survey) {
        if self.survey.as_ref() != Some(&survey) {
            tracing::info!(
                source = %self.source, server = %broker.server(), software = survey.software, version = survey.version,
                durability = survey.durability.map_or("unknown", umbel_broker::Durability::word),
                eviction_risk = survey.eviction_risk().unwrap_or_default(), "broker"
            );
        }
        (self.survey, self.surveyed_at) = (Some(survey), Some(Instant::now()));
    }

    async fn sample(&mut self, context: &Arc<Context>, term: u64) -> Result<Sample, Fault> {
        self.connect(context).await?;
        let broker = self.broker.clone().expect("connect leaves a broker or fails");
        if self.survey.is_none() {
            // Before anything is written there.
            let survey = broker.survey().await.map_err(|error| self.unreachable(&error))?;
            self.surveyed(&broker, survey);
        }
        self.claim(context, &broker, term).await?;
        // Settings change while a server runs.
        let is_survey_old = self.surveyed_at.is_none_or(|at| at.elapsed() >= SURVEY_AGE);
        let is_beat_due = self.is_beat_due();
        self.list(context);
        let all = self.steps.iter();
        let asked: Vec<(&str, &[u8])> = all.map(|(name, steps)| (name.as_str(), steps.as_slice())).collect();
        // All on their way at the same time: one round trip.
        let (seen, beat, survey) = tokio::join!(
            biased;
            broker.sample(&asked),
            when(is_beat_due, beat(context, &broker, term)),
            when(is_survey_old, broker.survey()),
        );
        if let Some(beat) = beat {
            self.heard(context, term, beat)?;
        }
        if let Some(survey) = survey {
            let survey = survey.map_err(|error| self.unreachable(&error))?;
            self.surveyed(&broker, survey);
        }
        let BrokerSample {
            mut depths,
            workers,
            hand_backs,
        } = seen.map_err(|error| self.unreachable(&error))?;
        let rows = std::mem::take(&mut depths.queues);
        let queues = self.steps.keys().cloned().zip(rows).collect();
        if depths.generation != self.generation {
            // Another data set, perhaps an emptied one: it may not know our term.
            self.generation.clone_from(&depths.generation);
            (self.term, self.token) = (None, depths.fence);
            self.lead(context, &broker, term).await?;
        } else if depths.fence < self.token || self.has_forgotten_term {
            tracing::warn!(
                source = %self.source, server = %broker.server(), token = depths.fence, before = self.token,
                "the broker's data went back to an earlier state"
            );
            // A dump was restored, or a failover went to a replica that lagged: what was known of it counts no more.
            (self.term, self.is_back) = (None, true);
            self.lead(context, &broker, term).await?;
        }
        self.has_forgotten_term = false;
        self.token = depths.fence;
        Ok(Sample {
            taken_at: Timestamp::from_millisecond(depths.taken_at_ms).unwrap_or(Timestamp::UNIX_EPOCH),
            seen: Instant::now(),
            generation: depths.generation,
            survey: self.survey.clone(),
            foreign_unacked: depths.foreign_unacked,
            token: depths.fence,
            queues,
            workers,
            hand_backs,
            paces: BTreeMap::new(),
            flows: BTreeMap::new(),
            foreign: self.foreign.latest(&broker),
        })
    }

    /// The queues that lie there, with their priority steps.
    fn list(&mut self, context: &Context) {
        let mut objects: Vec<_> = context
            .queues()
            .into_iter()
            .filter(|queue| context.brokers.source(queue).as_ref() == Ok(&self.source))
            .collect();
        // Of several objects that claim one queue the oldest says how its lists are called.
        objects.sort_by_cached_key(|queue| (queue.creation_timestamp(), queue.namespace(), queue.name_any()));
        self.steps.clear();
        for queue in &objects {
            let steps = self.steps.entry(queue.queue_name());
            steps.or_insert_with(|| queue.spec.priority_steps.clone());
        }
    }

    /// Follows the Secret: a new URL means a new connection, and the term is told anew.
    async fn connect(&mut self, context: &Arc<Context>) -> Result<(), Fault> {
        let fresh = self.broker.is_some() && self.read_at.is_some_and(|at| at.elapsed() < SECRET_AGE);
        if fresh {
            return Ok(());
        }
        let access = context.brokers.access(&self.source).await?;
        self.read_at = Some(Instant::now());
        if self.broker.is_some() && self.access.as_ref() == Some(&access) {
            return Ok(());
        }
        if self.access.as_ref().is_some_and(|before| *before != access) {
            tokio::spawn(crate::rotate::touch(context.clone(), self.source.clone()));
        }
        (self.broker, self.term, self.beat_at, self.survey) = (None, None, None, None);
        self.lookout = None;
        let mut config = Config::new(&access.url);
        config.key_prefix.clone_from(&self.source.prefix);
        config.tls.clone_from(&access.tls);
        config.sentinel.master.clone_from(&self.source.master);
        let server = config.server();
        self.access = Some(access);
        let broker = Broker::connect(&config).await.map_err(|error| Fault::Unreachable {
            server,
            why: chain(&error).to_string(),
            is_refusal: false,
        })?;
        self.broker = Some(broker);
        (self.lookout, self.refused_at) = (Some(Lookout::new(config)), None);
        Ok(())
    }

    /// Tells the broker our term before anything else is written there, and that we live.
    async fn lead(&mut self, context: &Context, broker: &Broker, term: u64) -> Result<(), Fault> {
        self.claim(context, broker, term).await?;
        if self.is_beat_due() {
            let answer = beat(context, broker, term).await;
            self.heard(context, term, answer)?;
        }
        Ok(())
    }

    async fn claim(&mut self, context: &Context, broker: &Broker, term: u64) -> Result<(), Fault> {
        if self.term == Some(term) {
            return Ok(());
        }
        self.term = None;
        let (install, holder) = (context.leader.install(), context.leader.holder());
        let answer = failpoint::around("claim", broker.claim_term(install, term, holder)).await;
        let answer = answer.map_err(|error| self.unreachable(&error))?;
        if let TermAnswer::Higher(met) = answer {
            context.leader.exceed(met);
            return Err(Fault::Term { term: met });
        }
        (self.term, self.beat_at) = (Some(term), None);
        Ok(())
    }

    fn is_beat_due(&self) -> bool {
        self.beat_at.is_none_or(|at| at.elapsed() >= BEAT)
    }

    /// Takes in what the broker has answered to a sign of life.
    fn heard(&mut self, context: &Context, term: u64, answer: Result<(), umbel_broker::Error>) -> Result<(), Fault> {
        match answer {
            Ok(()) => self.beat_at = Some(Instant::now()),
            Err(umbel_broker::Error::Stale { stored }) => {
                self.term = None;
                self.has_forgotten_term = stored < term;
                if stored > term {
                    context.leader.exceed(stored);
                }
                return Err(Fault::Term { term: stored });
            }
            Err(error) => return Err(self.unreachable(&error)),
        }
        Ok(())
    }
}

/// Says that the leader lives.
async fn beat(context: &Context, broker: &Broker, term: u64) -> Result<(), umbel_broker::Error> {
    let (install, holder) = (context.leader.install(), context.leader.holder());
    let body = serde_json::json!({
        "v": umbel_broker::Heartbeat::CONTRACT, "term": term, "holder": holder, "version": env!("CARGO_PKG_VERSION"),
    });
    failpoint::around("beat", broker.operator_heartbeat(install, term, &body.to_string())).await
}

async fn when<T>(is_so: bool, work: impl Future<Output = T>) -> Option<T> {
    if is_so { Some(work.await) } else { None }
}
