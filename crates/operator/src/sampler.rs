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
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use umbel_broker::{Broker, Config, DepthSample, QueueDepth, QueueFault, Survey, TermAnswer};
use umbel_telemetry::chain;

use crate::brokers::{Access, Fault, Sample, Source, View};
use crate::context::Context;
use crate::{demand, flow};

/// How often a Secret is read again, so that a new address or password is used within 30 s.
const SECRET_AGE: Duration = Duration::from_secs(10);
/// How often a server's settings are looked at.
const SURVEY_AGE: Duration = Duration::from_secs(15);
/// How often the leader says that it lives; workers take it for gone after 30 s.
const BEAT: Duration = Duration::from_secs(5);
/// A sample is one round trip; a broker that needs longer is not reachable for us.
const PATIENCE: Duration = Duration::from_secs(5);

/// Samples all brokers until `stop`.
pub async fn run(context: Arc<Context>, interval: Duration, stop: CancellationToken) {
    let mut tasks: HashMap<Source, CancellationToken> = HashMap::new();
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
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
                tokio::spawn(watch(context.clone(), source, interval, stop.clone()));
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
}

async fn watch(context: Arc<Context>, source: Source, interval: Duration, stop: CancellationToken) {
    let mut link = Link::new(source);
    let mut meters = demand::Meters::default();
    let mut flows = flow::Meters::default();
    let mut due = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(due) => {}
        }
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
            })
        });
        if let Ok(sample) = &mut seen {
            sample.paces = meters.measure(&context, &link.source, sample);
            sample.flows = flows.measure(sample);
        }
        context.metrics.sampled(started.elapsed(), seen.is_ok());
        publish(&context, &mut link, seen);
    }
}

/// The most eager pool of the namespace says how often, where that is oftener than the operator does by itself.
fn period(context: &Context, source: &Source, interval: Duration) -> Duration {
    let pools = context.pools();
    let asked = pools
        .iter()
        .filter(|pool| pool.namespace().as_deref() == Some(&source.namespace))
        .filter_map(|pool| pool.spec.scaling.interval.map(umbel_api::Span::get));
    asked.min().map_or(interval, |asked| asked.min(interval))
}

fn publish(context: &Context, link: &mut Link, seen: Result<Sample, Fault>) {
    let mut changed = false;
    let source = link.source.clone();
    context.brokers.update(&source, |view: &mut View| {
        changed = match &seen {
            Ok(sample) => view.fault.is_some() || view.sample.as_deref().is_none_or(|old| differs(old, sample)),
            Err(fault) => view.fault.as_ref() != Some(fault) || view.failures < 10,
        };
        view.broker.clone_from(&link.broker);
        view.term = link.term;
        if std::mem::take(&mut link.is_back) {
            view.losses += 1;
            view.went_back = Some(Timestamp::now());
            changed = true;
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
    if changed {
        context.brokers.wake(&source);
    }
}

/// Whether anything that a decision looks at changed. Heartbeats differ every time; what matters in them does not.
fn differs(old: &Sample, new: &Sample) -> bool {
    let facts = |sample: &Sample| -> BTreeMap<String, (String, u64, bool, u32)> {
        let fact = |record: &umbel_broker::WorkerRecord| {
            let slots = record.heartbeat.as_ref().map_or(0, |beat| beat.slots);
            let gate = match record.gate {
                umbel_broker::Gate::New => "new",
                umbel_broker::Gate::Open => "open",
                umbel_broker::Gate::Closed { .. } => "closed",
            };
            (
                record.worker.clone(),
                (gate.to_owned(), record.held, record.heartbeat.is_some(), slots),
            )
        };
        sample.workers.iter().map(fact).collect()
    };
    let paces = |sample: &Sample| -> Vec<(u64, u64)> { sample.paces.values().map(demand::coarse).collect() };
    old.generation != new.generation
        || old.survey != new.survey
        || old.queues != new.queues
        || old.hand_backs != new.hand_backs
        || facts(old) != facts(new)
        || paces(old) != paces(new)
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
        }
    }

    /// What the server is and promises; now and then, for its settings change while it runs.
    async fn look(&mut self, broker: &Broker) -> Result<(), Fault> {
        if self.survey.is_some() && self.surveyed_at.is_some_and(|at| at.elapsed() < SURVEY_AGE) {
            return Ok(());
        }
        let survey = broker.survey().await.map_err(|error| self.unreachable(&error))?;
        if self.survey.as_ref() != Some(&survey) {
            tracing::info!(
                source = %self.source, server = %broker.server(), software = survey.software, version = survey.version,
                durability = survey.durability.map_or("unknown", umbel_broker::Durability::word),
                eviction_risk = survey.eviction_risk().unwrap_or_default(), "broker"
            );
        }
        (self.survey, self.surveyed_at) = (Some(survey), Some(Instant::now()));
        Ok(())
    }

    async fn sample(&mut self, context: &Arc<Context>, term: u64) -> Result<Sample, Fault> {
        self.connect(context).await?;
        let broker = self.broker.clone().expect("connect leaves a broker or fails");
        self.look(&broker).await?;
        self.lead(context, &broker, term).await?;
        let (depths, workers, hand_backs) =
            tokio::try_join!(self.depths(context, &broker), broker.workers(), broker.hand_backs())
                .map_err(|error| self.unreachable(&error))?;
        let (depths, queues) = depths;
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

    /// One call for all queues with the same priority steps, so usually one in all; the first one's facts of the broker.
    async fn depths(
        &self,
        context: &Context,
        broker: &Broker,
    ) -> Result<(DepthSample, BTreeMap<String, Result<QueueDepth, QueueFault>>), umbel_broker::Error> {
        let mut objects: Vec<_> = context
            .queues()
            .into_iter()
            .filter(|queue| context.brokers.source(queue).as_ref() == Ok(&self.source))
            .collect();
        // Of several objects that claim one queue the oldest says how its lists are called.
        objects.sort_by_key(|queue| (queue.creation_timestamp(), queue.namespace(), queue.name_any()));
        let mut steps = BTreeMap::new();
        for queue in &objects {
            steps.entry(queue.queue_name()).or_insert(&queue.spec.priority_steps);
        }
        let mut groups: BTreeMap<&Vec<u8>, Vec<String>> = BTreeMap::new();
        for (name, steps) in steps {
            groups.entry(steps).or_default().push(name);
        }
        let mut sample = None;
        let mut queues = BTreeMap::new();
        for (steps, names) in groups {
            let mut depths = broker.with_steps(steps).depths(&names).await?;
            queues.extend(names.into_iter().zip(std::mem::take(&mut depths.queues)));
            sample.get_or_insert(depths);
        }
        match sample {
            Some(sample) => Ok((sample, queues)),
            None => Ok((broker.depths(&[]).await?, queues)),
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
        let mut config = Config::new(&access.url);
        config.key_prefix.clone_from(&self.source.prefix);
        config.tls.clone_from(&access.tls);
        config.sentinel.master.clone_from(&self.source.master);
        let server = config.server();
        self.access = Some(access);
        let broker = Broker::connect(&config).await.map_err(|error| Fault::Unreachable {
            server,
            why: chain(&error).to_string(),
        })?;
        self.broker = Some(broker);
        Ok(())
    }

    /// Tells the broker our term before anything else is written there, and that we live.
    async fn lead(&mut self, context: &Context, broker: &Broker, term: u64) -> Result<(), Fault> {
        let (install, holder) = (context.leader.install(), context.leader.holder());
        if self.term != Some(term) {
            self.term = None;
            let answer = broker
                .claim_term(install, term, holder)
                .await
                .map_err(|error| self.unreachable(&error))?;
            if let TermAnswer::Higher(met) = answer {
                context.leader.exceed(met);
                return Err(Fault::Term { term: met });
            }
            (self.term, self.beat_at) = (Some(term), None);
        }
        if self.beat_at.is_some_and(|at| at.elapsed() < BEAT) {
            return Ok(());
        }
        let body = serde_json::json!({
            "v": umbel_broker::Heartbeat::CONTRACT, "term": term, "holder": holder, "version": env!("CARGO_PKG_VERSION"),
        });
        match broker.operator_heartbeat(install, term, &body.to_string()).await {
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
