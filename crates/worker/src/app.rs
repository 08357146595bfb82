//! Wiring: start, quiet, stop.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use umbel_broker::{Broker, ClusterReport, QueueLists, Reserver, ResultStore, Waker, WorkerIdentity};
use umbel_protocol::message::Reader;
use umbel_telemetry::admin::Readiness;
use umbel_telemetry::chain;
use umbel_telemetry::metrics::Registry;
use umbel_telemetry::shutdown::Shutdown;

use crate::args::Config;
use crate::autoscale::Autoscale;
use crate::budget::Budget;
use crate::causes::Causes;
use crate::clock::RedisClock;
use crate::consume::{Aside, Consumer, Decider};
use crate::decide::Faults;
use crate::events::{self, Events};
use crate::fleet::Fleet;
use crate::job::Report;
use crate::lease::Leases;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::queues::Queues;
use crate::rates::Rates;
use crate::recycle::{self, Recycle};
use crate::renew::Renewal;
use crate::revoked::Revoked;
use crate::secrets::Secrets;
use crate::settle::{Ended, Settler};
use crate::shares::Shares;
use crate::slots::Slots;
use crate::stuck::{self, Strays};
use crate::sweep::{DueSoon, Recovery};
use crate::tasks::Tasks;

/// Ends on their way to the settler: four batches, then runs wait before they free their slot.
const ENDED: usize = 1024;
/// Cluster reports on their way: more than any pool runs at once.
const REPORTS: usize = 64;
/// A worker whose loop has not turned for so long is not alive. Longer than any lease or outage that it should ride out.
const STUCK: Duration = Duration::from_secs(600);

/// A goodbye that takes longer is not worth the grace period.
const GOODBYE: Duration = Duration::from_millis(500);

/// What the parts of a worker share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) worker: String,
    pub(crate) broker: Broker,
    /// Where results go, when that is not the broker's database.
    pub(crate) results: Option<ResultStore>,
    /// Where results go.
    pub(crate) store: ResultStore,
    /// Node name, as results and requests name it.
    pub(crate) hostname: Arc<str>,
    pub(crate) tasks: Tasks,
    pub(crate) secrets: Secrets,
    pub(crate) leases: Arc<Leases>,
    /// Threads of blocking tasks that outlive their runs.
    pub(crate) strays: Arc<Strays>,
    pub(crate) slots: Slots,
    pub(crate) autoscale: Autoscale,
    pub(crate) queues: Arc<Queues>,
    pub(crate) rates: Rates,
    pub(crate) limits: Limits,
    pub(crate) budget: Budget,
    pub(crate) recycle: Recycle,
    pub(crate) clock: Arc<RedisClock>,
    pub(crate) due: Arc<DueSoon>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) readiness: Arc<Readiness>,
    /// To who settles.
    pub(crate) settler: mpsc::Sender<Ended>,
    pub(crate) reports: mpsc::Sender<Report>,
    pub(crate) abandon: CancellationToken,
    pub(crate) gate: Mutex<String>,
    pub(crate) generation: Mutex<Option<String>>,
    pub(crate) beat_now: Notify,
    pub(crate) has_counted: Arc<AtomicBool>,
    pub(crate) fleet: Fleet,
    pub(crate) started: AtomicU64,
    pub(crate) finished: AtomicU64,
    pub(crate) faults: Faults,
    pub(crate) causes: Causes,
    pub(crate) events: Events,
    pub(crate) revoked: Revoked,
    pub(crate) since: Instant,
}

/// Runs a worker until it is told to stop, and stops it.
pub(crate) async fn run(
    config: Config,
    mut tasks: Tasks,
    targets: Arc<crate::targets::Targets>,
    stop: Shutdown,
) -> anyhow::Result<()> {
    tasks.keep(&config.allowed_tasks);
    let mut registry = Registry::new("worker");
    let metrics = Arc::new(Metrics::new(&mut registry));
    let sample = crate::sample::Sample::new(&mut registry);
    let registry = registry.done();
    let readiness = Readiness::new();
    readiness.alive_within(STUCK);
    let admin = CancellationToken::new();
    if let Some(addr) = config.admin {
        umbel_telemetry::admin::serve(addr, Arc::clone(&readiness), Arc::clone(&registry), admin.clone())
            .await
            .context("serve the admin port")?;
    }
    let backoff = Duration::from_secs(5).min(config.lease / 2);
    let attach = |broker| crate::server::attach(broker, config.refuse_eviction);
    let Some((broker, survey)) = connect(&config.broker, backoff, &stop.quiet, attach)
        .await
        .context("--redis-url")?
    else {
        return Ok(());
    };
    targets.connected(&broker);
    crate::server::tell(&broker, &survey, &metrics);
    let results = match &config.results.backend {
        Some(results) => match connect(results, backoff, &stop.quiet, ResultStore::connect)
            .await
            .context("--result-url")?
        {
            Some(results) => Some(results),
            None => return Ok(()),
        },
        None => None,
    };
    let worker = worker_name(&config);
    let (settler_tx, ended_rx) = mpsc::channel(ENDED);
    let (reports, reports_rx) = mpsc::channel(REPORTS);
    let clock = Arc::new(RedisClock::new());
    let jobs = crate::jobs::Settings::parse(&config.jobs).context("UMBEL_JOBS")?;
    let secrets = jobs.secrets.unwrap_or_default().names;
    let shared = Arc::new(Shared {
        secrets: Secrets::new(secrets, config.secrets_dir.clone()),
        rates: Rates::of_tasks(&tasks),
        limits: Limits::new(&tasks, &config.limits),
        budget: Budget::new(config.retry_budget),
        recycle: Recycle::new(config.recycle, crate::random(), stop.quiet.clone()),
        worker,
        store: results.clone().unwrap_or_else(|| ResultStore::of(&broker)),
        hostname: config.name.as_str().into(),
        broker,
        results,
        tasks,
        leases: Arc::new(Leases::default()),
        strays: Arc::new(Strays::default()),
        slots: Slots::new(config.autoscale.map_or(config.concurrency, |bounds| bounds.min)),
        autoscale: Autoscale::new(config.autoscale),
        queues: Arc::new(Queues::of(&config)),
        events: Events::new(
            &config.name,
            &config.event_exchange,
            config.task_events,
            Arc::clone(&clock),
        ),
        revoked: Revoked::default(),
        since: Instant::now(),
        clock,
        due: Arc::new(DueSoon::default()),
        metrics,
        readiness,
        settler: settler_tx,
        reports,
        abandon: CancellationToken::new(),
        gate: Mutex::new(String::new()),
        generation: Mutex::new(None),
        beat_now: Notify::new(),
        has_counted: Arc::new(AtomicBool::new(false)),
        fleet: Fleet::default(),
        started: AtomicU64::new(0),
        finished: AtomicU64::new(0),
        faults: Faults::default(),
        causes: Causes::default(),
        config,
    });
    crate::sample::attach(&shared, sample, &registry);
    tracing::info!(
        worker = %shared.worker, node = %shared.config.name, queues = ?shared.config.queues,
        slots = shared.slots.total(), server = %shared.broker.server(), "worker starts"
    );
    let codec = &shared.config.codec;
    if codec.accept().contains(&umbel_codec::Serializer::Auth) && !codec.signs() {
        tracing::warn!("signed messages are accepted, but what this worker sends is not signed: no --security-key");
    }
    // What was revoked while no worker was there is known before the first message is taken.
    if let Err(err) = shared.revoked.refresh(&shared.broker, shared.clock.now()).await {
        tracing::debug!(error = %chain(&err), "revoked ids are asked for again");
    }
    let settler = tokio::spawn(settler(&shared).run(ended_rx));
    let renewing = CancellationToken::new();
    let renewal = Renewal {
        config: shared.config.broker.clone(),
        leases: Arc::clone(&shared.leases),
        lease: shared.config.lease,
        every: shared.config.renew_every,
    };
    let renewal = renewal.start(renewing.clone()).context("start the renewal thread")?;
    let background = CancellationToken::new();
    spawn_background(&shared, reports_rx, backoff, &background);
    spawn_until(&background, crate::server::watch(Arc::clone(&shared), survey));
    let watch = stuck::watch(&shared, stop.quiet.clone()).context("start the thread that watches for stuck slots")?;
    let told = stop.quiet.clone();
    spawn_until(&background, crate::control::run(Arc::clone(&shared), told, backoff));

    let told = Box::pin(consumer(&shared, shared.recycle.due().clone(), backoff).run()).await;
    let told = recycle::finish(&shared, told, &stop.quiet).await;
    drain(&shared, told, &stop.now).await;
    // Three things follow that a server which is away does not answer, and all must be over within the grace.
    let grace = shared.config.grace;
    let goodbye = GOODBYE.min((grace.saturating_sub(told.elapsed()) / 8).max(grace / 100));
    let _ = tokio::time::timeout(goodbye, events::goodbye(&shared)).await;
    // Only now is nothing held any more, or nobody waits for it: the rest may go.
    background.cancel();
    settler.abort();
    renewing.cancel();
    admin.cancel();
    // Bounded: a look-up of a name that nobody answers cannot be called off.
    let _ = tokio::time::timeout(goodbye, tokio::task::spawn_blocking(move || renewal.join())).await;
    match tokio::time::timeout(goodbye, shared.broker.goodbye(&shared.worker)).await {
        Ok(Ok(_)) => tracing::info!("worker has stopped"),
        Ok(Err(err)) => {
            tracing::warn!(error = %chain(&err), "stopped without a goodbye; the lease returns what is held");
        }
        Err(_) => tracing::warn!("stopped without a goodbye; the lease returns what is held"),
    }
    anyhow::ensure!(
        !watch.has_given_up(),
        "too many slots were stuck in tasks that ignored their hard limit"
    );
    Ok(())
}

/// Connects, again and again: a broker that is away is no reason to end. `None` when told to stop meanwhile.
async fn connect<'a, T, F>(
    config: &'a umbel_broker::Config,
    backoff: Duration,
    quiet: &CancellationToken,
    attempt: impl Fn(&'a umbel_broker::Config) -> F,
) -> Result<Option<T>, umbel_broker::Error>
where
    F: Future<Output = Result<T, umbel_broker::Error>>,
{
    let mut is_told = false;
    loop {
        let Some(connected) = quiet.run_until_cancelled(attempt(config)).await else {
            return Ok(None);
        };
        match connected {
            Ok(connected) => return Ok(Some(connected)),
            Err(err @ umbel_broker::Error::Address { .. }) => return Err(err),
            Err(err) => {
                if !is_told {
                    tracing::warn!(error = %chain(&err), server = %config.server(), "connecting again");
                }
                is_told = true;
            }
        }
        tokio::select! {
            () = quiet.cancelled() => return Ok(None),
            () = tokio::time::sleep(backoff.mul_f64(0.2 + 0.3 * crate::random())) => {}
        }
    }
}

/// New for every process and never used again.
fn worker_name(config: &Config) -> String {
    let home = if config.pod.uid.is_empty() {
        crate::args::hostname()
    } else {
        config.pod.uid.clone()
    };
    let home: String = home
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-._".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    let millis = jiff::Timestamp::now().as_millisecond();
    format!("{home}/{millis}/{:016x}", uuid::Uuid::new_v4().as_u64_pair().0)
}

fn settler(shared: &Arc<Shared>) -> Settler {
    Settler {
        broker: shared.broker.clone(),
        acks: shared.broker.acks(),
        results: shared.results.clone(),
        store: shared.store.clone(),
        is_compressed: shared.config.results.compression.is_some(),
        is_chord_fast: shared.config.is_chord_fast,
        worker: shared.worker.clone(),
        leases: Arc::clone(&shared.leases),
        metrics: Arc::clone(&shared.metrics),
        due: Arc::clone(&shared.due),
        lease: shared.config.lease,
        dead_kept: shared.config.policy.dead_kept,
        result_ttl: shared.config.policy.result_ttl,
        has_counted: Arc::clone(&shared.has_counted),
    }
}

fn consumer(shared: &Arc<Shared>, quiet: CancellationToken, backoff: Duration) -> Consumer {
    let config = &shared.config;
    let queues: Vec<QueueLists> = config
        .queues
        .iter()
        .map(|queue| QueueLists::new(shared.broker.keys(), queue))
        .collect();
    let identity = WorkerIdentity {
        worker: shared.worker.clone(),
        install: config.pod.install.clone(),
        is_standalone: config.is_standalone,
    };
    let policies = config
        .queues
        .iter()
        .map(|queue| (queue.clone(), config.policy))
        .collect();
    let mut served = shared.queues.follow();
    served.mark_changed(); // There may be more than the command line names.
    Consumer {
        shared: Arc::clone(shared),
        broker: shared.broker.clone(),
        reserver: Reserver::new(
            config.broker.clone(),
            identity,
            policies,
            config.lease,
            config.max_message,
        ),
        waker: Waker::new(config.broker.clone(), &shared.worker, queues.clone()),
        queues,
        served,
        decider: Decider {
            shared: Arc::clone(shared),
            broker: shared.broker.clone(),
            permits: None,
            peers: Peers::default(),
            quiet: quiet.clone(),
            deciding: tokio::sync::watch::Sender::new(false),
            runners: Arc::default(),
            starting: Vec::new(),
            asking: Vec::new(),
            reader: Reader::default(),
            has_left: false,
            is_slow: false,
        },
        quiet,
        backoff,
        aside: Aside::default(),
        shares: Shares::new(config.consumption),
        blocked: None,
        is_open: false,
        in_vain: false,
        ahead: None,
    }
}

/// Heartbeat, recovery, reports: everything that goes on until the very end.
fn spawn_background(
    shared: &Arc<Shared>,
    mut reports: mpsc::Receiver<Report>,
    backoff: Duration,
    stop: &CancellationToken,
) {
    let recovery = Arc::new(Recovery {
        broker: shared.broker.clone(),
        shared: Arc::clone(shared),
        queues: Arc::clone(&shared.queues),
        lease: shared.config.lease,
        every: shared.config.sweep,
        backoff,
        clock: Arc::clone(&shared.clock),
        due: Arc::clone(&shared.due),
        metrics: Arc::clone(&shared.metrics),
    });
    let sweeping = Arc::clone(&recovery);
    spawn_until(stop, async move { sweeping.sweep().await });
    spawn_until(stop, async move { recovery.promote().await });
    spawn_until(stop, crate::broadcast::run(Arc::clone(shared), backoff));
    spawn_until(stop, events::publish(Arc::clone(shared)));
    spawn_until(stop, events::beat(Arc::clone(shared)));
    spawn_until(stop, crate::autoscale::run(Arc::clone(shared)));
    spawn_until(stop, recycle::run(Arc::clone(shared)));
    spawn_until(stop, crate::expiring::run(Arc::clone(shared)));
    spawn_until(stop, crate::limits::write_queue_limits(Arc::clone(shared)));
    spawn_until(stop, crate::heartbeat::run(shared.broker.clone(), Arc::clone(shared)));
    let reporting = Arc::clone(shared);
    spawn_until(stop, async move {
        while let Some(Report { cluster, body }) = reports.recv().await {
            let report = ClusterReport {
                namespace: reporting.config.pod.namespace.clone(),
                name: cluster,
                pool: reporting.config.pod.pool_uid.clone(),
                worker: reporting.worker.clone(),
                body,
            };
            if let Err(err) = reporting.broker.report_cluster(&report).await {
                tracing::warn!(cluster = %report.name, error = %chain(&err), "report not stored");
            }
        }
    });
}

fn spawn_until(stop: &CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    });
}

/// Quiet now: nothing is taken any more. Lets runs end until so many percent of the grace have passed or a second signal
/// comes; then asks them to stop, and after half of what is left hands back what still runs, uncharged.
async fn drain(shared: &Arc<Shared>, began: Instant, now: &CancellationToken) {
    let grace = shared.config.grace;
    let closing = tokio::time::timeout(
        Duration::from_secs(2).min(grace / 10),
        shared.broker.close_self(&shared.worker),
    );
    match closing.await {
        Ok(Ok(held)) => tracing::info!(held, "gate closed, finishing what runs"),
        Ok(Err(err)) => tracing::warn!(error = %chain(&err), "gate not closed; nothing is taken all the same"),
        Err(_) => tracing::warn!("gate not closed in time; nothing is taken all the same"),
    }
    *shared.gate.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = "closed".into();
    shared.beat_now.notify_one();
    tokio::select! {
        () = shared.while_alive(shared.leases.ended()) => return,
        () = tokio::time::sleep((grace * shared.config.hand_back_at / 100).saturating_sub(began.elapsed())) => {}
        () = now.cancelled() => {}
    }
    tracing::warn!(runs = shared.leases.runs().len(), "handing back what still runs");
    shared.abandon.cancel();
    let left = grace.saturating_sub(began.elapsed()).max(Duration::from_millis(500)) / 2;
    if tokio::time::timeout(left, shared.leases.ended()).await.is_err() {
        tracing::warn!("not everything could be handed back; the lease returns it");
    }
}
