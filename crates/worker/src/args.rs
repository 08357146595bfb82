//! Flags and environment of a worker, and the configuration they become.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use umbel_broker::{Policy, Rate};

use crate::admit::UnknownTask;
use crate::autoscale::Bounds;
use crate::budget::RetryBudget;
use crate::keyed::KeyRule;
use crate::limits::{Named, SharedLimits};
use crate::options::Ack;
use crate::recycle::RecycleLimits;
use crate::results::{Results, StoreResults};
use crate::retry::RetryPolicy;
use crate::shares::Consumption;

/// Runs tasks from Celery queues on Redis.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[derive(Debug, Parser)]
#[command(name = "umbel-worker", version, about)]
pub struct Args {
    #[command(flatten)]
    servers: crate::server::ServerArgs,
    /// Prefix of result keys: global_keyprefix of Celery's result_backend_transport_options
    #[arg(long, env = "UMBEL_RESULT_KEY_PREFIX", default_value = "")]
    result_key_prefix: String,
    /// Which results are stored
    #[arg(long, env = "UMBEL_RESULTS", value_enum, ignore_case = true, default_value_t)]
    results: StoreResults,
    /// Results name task, arguments, worker, tries, queue and stamps: Celery's result_extended
    #[arg(long, env = "UMBEL_RESULT_EXTENDED")]
    result_extended: bool,
    /// How results are written: json, msgpack or yaml; Celery's result_serializer
    #[arg(long, env = "UMBEL_RESULT_SERIALIZER", default_value = "json", value_parser = parse_result_serializer)]
    result_serializer: umbel_codec::Serializer,
    /// Compress results: zlib, bzip2, lzma, brotli or zstd; Celery's result_compression, from 5.7 on
    #[arg(long, env = "UMBEL_RESULT_COMPRESSION")]
    result_compression: Option<String>,
    /// Largest result in bytes; a task that returns more fails
    #[arg(long, env = "UMBEL_RESULT_MAX_BYTES", default_value_t = 262_144)]
    result_max_bytes: usize,
    /// Store STARTED when a task starts
    #[arg(long, env = "UMBEL_TRACK_STARTED")]
    track_started: bool,
    /// When messages are acknowledged: late (at least once) or early (at most once)
    #[arg(long, env = "UMBEL_ACK", value_enum, ignore_case = true, default_value_t)]
    ack: Ack,
    /// What a task sends has its priority, unless it names one: Celery's task_inherit_parent_priority
    #[arg(long, env = "UMBEL_INHERIT_PRIORITY")]
    inherit_priority: bool,
    /// Tasks that may run here, as globs; all if absent. Others count as unknown
    #[arg(long, env = "UMBEL_ALLOWED_TASKS", value_delimiter = ',')]
    allowed_tasks: Vec<String>,
    /// What becomes of a message whose task is not known here
    #[arg(long, env = "UMBEL_ON_UNKNOWN_TASK", value_enum, ignore_case = true, default_value_t)]
    on_unknown_task: UnknownTask,
    /// kombu's global_keyprefix
    #[arg(long, env = "UMBEL_KEY_PREFIX", default_value = "")]
    key_prefix: String,
    /// kombu's priority_steps, ascending
    #[arg(long, env = "UMBEL_PRIORITY_STEPS", default_value = "0,3,6,9")]
    priority_steps: String,
    /// kombu's sep, between a queue and its step; default the two bytes 06 16
    #[arg(long, env = "UMBEL_SEPARATOR")]
    separator: Option<String>,
    /// kombu's fanout_prefix: what channels of remote control, events and broadcasts begin with; empty where it is off
    #[arg(long, env = "UMBEL_FANOUT_PREFIX", default_value = umbel_broker::FANOUT_PREFIX)]
    fanout_prefix: String,
    /// kombu's fanout_patterns is off
    #[arg(long, env = "UMBEL_NO_FANOUT_PATTERNS")]
    no_fanout_patterns: bool,
    /// Queues to serve, with their weights if these differ: NAME or NAME=WEIGHT
    #[arg(long, env = "UMBEL_QUEUE", value_delimiter = ',', default_value = "celery")]
    queue: Vec<String>,
    /// How several queues share the worker: by weights (NAME=WEIGHT in --queue, 1 if absent), or strictly in their order
    #[arg(long, env = "UMBEL_CONSUMPTION", value_enum, ignore_case = true, default_value_t)]
    consumption: Consumption,
    /// Messages a queue gives to all its workers together, QUEUE=COUNT/PERIOD[/BURST] as in mail=100/s or 10/1m/5; without
    /// QUEUE= for each queue served. Kept in Redis; the last worker that names one sets it for all
    #[arg(long, env = "UMBEL_QUEUE_RATE", value_delimiter = ',')]
    queue_rate: Vec<Named<Rate>>,
    /// Messages of a queue that all its workers together hold at a time, QUEUE=COUNT or COUNT; as --queue-rate
    #[arg(long, env = "UMBEL_QUEUE_MAX_IN_FLIGHT", value_delimiter = ',')]
    queue_max_in_flight: Vec<Named<std::num::NonZeroU64>>,
    /// Queues that were declared with x-expires, QUEUE=DURATION or DURATION: their lists are kept while they are served
    #[arg(long, env = "UMBEL_QUEUE_EXPIRES", value_delimiter = ',')]
    queue_expires: Vec<Named<crate::expiring::Span>>,
    /// Starts of a task on all workers together, GLOB=COUNT/PERIOD[/BURST]; more wait in Redis
    #[arg(long, env = "UMBEL_TASK_RATE", value_delimiter = ',')]
    task_rate: Vec<Named<Rate>>,
    /// Messages that do not run at the same time on any worker: GLOB=KEY or GLOB=KEY=COUNT, KEY a text with {task}, {queue},
    /// {args.0}, {kwargs.name} or {header.name} in it
    #[arg(long, env = "UMBEL_PER_KEY", value_delimiter = ';')]
    per_key: Vec<KeyRule>,
    /// Run copies of a message (the same id and try) that come within this time once
    #[arg(long, env = "UMBEL_DEDUPLICATE", value_parser = parse_duration)]
    deduplicate: Option<Duration>,
    /// End in order after so many tasks, up to a tenth fewer
    #[arg(long, env = "UMBEL_MAX_TASKS", value_parser = clap::value_parser!(u64).range(1..))]
    max_tasks: Option<u64>,
    /// End in order when more memory is resident, as in 512Mi
    #[arg(long, env = "UMBEL_MAX_MEMORY", value_parser = crate::recycle::parse_bytes)]
    max_memory: Option<u64>,
    /// End in order after this time, up to a tenth earlier
    #[arg(long, env = "UMBEL_MAX_AGE", value_parser = parse_duration)]
    max_age: Option<Duration>,
    /// Serve the worker's own queue as well, `<node name>.dq2`: Celery's worker_direct
    #[arg(long, env = "UMBEL_WORKER_DIRECT")]
    worker_direct: bool,
    /// Fanout exchanges to hear, each with a queue of this worker's own: Celery's Broadcast queues
    #[arg(long, env = "UMBEL_BROADCAST", value_delimiter = ',')]
    broadcast: Vec<String>,
    /// Tasks at the same time
    #[arg(long, env = "UMBEL_CONCURRENCY", default_value_t = 10, value_parser = parse_concurrency)]
    concurrency: usize,
    /// As many slots as there is work for, from MIN to MAX, instead of a fixed number: MAX,MIN as with Celery
    #[arg(long, env = "UMBEL_AUTOSCALE", value_parser = parse_bounds, conflicts_with = "concurrency")]
    autoscale: Option<Bounds>,
    /// Needs no operator: take messages at once
    #[arg(long, env = "UMBEL_STANDALONE")]
    standalone: bool,
    /// How long a message stays ours without a renewal
    #[arg(long, env = "UMBEL_LEASE", default_value = "60s", value_parser = parse_duration)]
    lease: Duration,
    /// Interval of renewals
    #[arg(long, env = "UMBEL_RENEW_EVERY", default_value = "20s", value_parser = parse_duration)]
    renew_every: Duration,
    /// Interval of sweeps; at most a quarter of the lease
    #[arg(long, env = "UMBEL_SWEEP", default_value = "5s", value_parser = parse_duration)]
    sweep: Duration,
    /// Time to stop in after SIGTERM
    #[arg(long, env = "UMBEL_GRACE", default_value = "30s", value_parser = parse_duration)]
    grace: Duration,
    /// Percent of that time after which runs are asked to stop and handed back
    #[arg(long, env = "UMBEL_HAND_BACK_AT", default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=95))]
    hand_back_at: u32,
    /// Count what is handed back so as a delivery that ended without result
    #[arg(long, env = "UMBEL_COUNTS_AS_ATTEMPT")]
    counts_as_attempt: bool,
    /// Node name, NAME@HOST
    #[arg(long, env = "UMBEL_NAME")]
    name: Option<String>,
    /// Hard limit of a run whose message names none
    #[arg(long, env = "UMBEL_TIME_LIMIT", default_value = "1h", value_parser = parse_duration)]
    time_limit: Duration,
    /// Slots stuck in tasks that ignore their hard limit, at which the worker ends, to be started anew; default half of them
    #[arg(long, env = "UMBEL_STUCK_SLOTS", value_parser = parse_concurrency)]
    stuck_slots: Option<usize>,
    /// How often a message is left to others on its queue whose task, or whose version of it, is not known here
    #[arg(long, env = "UMBEL_HAND_BACKS", default_value_t = 30)]
    hand_backs: u64,
    /// Soft limit of a run whose message names none
    #[arg(long, env = "UMBEL_SOFT_TIME_LIMIT", value_parser = parse_duration)]
    soft_time_limit: Option<Duration>,
    /// Expiry of messages that name none, counted from when they were sent; those of Celery's own clients do not say that
    #[arg(long, env = "UMBEL_EXPIRES_AFTER", value_parser = parse_duration)]
    expires_after: Option<Duration>,
    /// Runs of a failing task, the first included
    #[arg(long, env = "UMBEL_RETRY_MAX_ATTEMPTS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    retry_max_attempts: u32,
    /// Wait after the first failure
    #[arg(long, env = "UMBEL_RETRY_INITIAL_BACKOFF", default_value = "1s", value_parser = parse_duration)]
    retry_initial_backoff: Duration,
    /// Longest wait between two runs
    #[arg(long, env = "UMBEL_RETRY_MAX_BACKOFF", default_value = "10m", value_parser = parse_duration)]
    retry_max_backoff: Duration,
    /// Each wait is so many times the one before
    #[arg(long, env = "UMBEL_RETRY_FACTOR", default_value_t = 2.0)]
    retry_factor: f64,
    /// Share by which waits vary, 0 to 1: at 1 anything from none to twice the wait (full jitter)
    #[arg(long, env = "UMBEL_RETRY_JITTER", default_value_t = 0.2)]
    retry_jitter: f64,
    /// Retries that first runs allow: this share of a retry for each, a queue
    #[arg(long, env = "UMBEL_RETRY_BUDGET", default_value_t = 0.2)]
    retry_budget: f64,
    /// Retries a second that are allowed in any case, a queue; what is over the budget waits longer
    #[arg(long, env = "UMBEL_RETRY_BUDGET_MIN", default_value_t = 100.0)]
    retry_budget_min: f64,
    /// The so manieth delivery that kills its worker goes to the dead letters
    #[arg(long, env = "UMBEL_MAX_DELIVERIES", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    max_deliveries: u32,
    /// Time to live of results; 0s keeps them for ever
    #[arg(long, env = "UMBEL_RESULT_TTL", default_value = "24h", value_parser = parse_duration)]
    result_ttl: Duration,
    /// Time to live of results that are failures; that of results if absent. Celery's result_failure_expires
    #[arg(long, env = "UMBEL_RESULT_FAILURE_TTL", value_parser = parse_duration)]
    result_failure_ttl: Option<Duration>,
    /// Tell of tasks from the start on, not only while somebody has asked for it: -E of Celery's worker
    #[arg(short = 'E', long, env = "UMBEL_TASK_EVENTS")]
    task_events: bool,
    /// Tell of what tasks send as well: Celery's task_send_sent_event
    #[arg(long, env = "UMBEL_TASK_SENT_EVENTS")]
    task_sent_events: bool,
    /// A chord fails with its first member that fails, and not when all have ended
    #[arg(long, env = "UMBEL_CHORD_FAIL_FAST")]
    chord_fail_fast: bool,
    /// Exchange of events: Celery's event_exchange
    #[arg(long, env = "UMBEL_EVENT_EXCHANGE", default_value = umbel_protocol::event::EXCHANGE, value_parser = parse_exchange)]
    event_exchange: String,
    /// What the exchanges of remote control are named after: Celery's control_exchange
    #[arg(long, env = "UMBEL_CONTROL_EXCHANGE", default_value = "celery", value_parser = parse_exchange)]
    control_exchange: String,
    /// Dead letters kept, a queue; as many messages in its quarantine
    #[arg(long, env = "UMBEL_DEAD_KEPT", default_value_t = 10_000)]
    dead_kept: u64,
    /// Bytes of them kept, each; 0 = no limit
    #[arg(long, env = "UMBEL_DEAD_MAX_BYTES", default_value_t = 268_435_456)]
    dead_max_bytes: u64,
    /// Time for which each of them is kept; 0s = for ever
    #[arg(long, env = "UMBEL_DEAD_RETENTION", default_value = "336h", value_parser = parse_duration)]
    dead_retention: Duration,
    /// Largest message in bytes; larger ones go to the quarantine unread
    #[arg(long, env = "UMBEL_MAX_MESSAGE", default_value_t = 16_777_216)]
    max_message: usize,
    #[command(flatten)]
    bodies: crate::bodies::Bodies,
    /// Zone of ETAs that name none
    #[arg(long, env = "UMBEL_TIME_ZONE", default_value = "UTC")]
    time_zone: String,
    /// Address of /livez, /readyz and /metrics
    #[arg(long, env = "UMBEL_ADMIN_ADDR")]
    admin_addr: Option<SocketAddr>,
    /// Install id of the operator
    #[arg(long, env = "UMBEL_INSTALL", default_value = "", hide = true)]
    install: String,
    #[arg(long, env = "UMBEL_POOL_UID", default_value = "", hide = true)]
    pool_uid: String,
    #[arg(long, env = "UMBEL_NAMESPACE", default_value = "", hide = true)]
    namespace: String,
    #[arg(long, env = "UMBEL_POD_NAME", default_value = "", hide = true)]
    pod_name: String,
    #[arg(long, env = "UMBEL_POD_UID", default_value = "", hide = true)]
    pod_uid: String,
    #[arg(long, env = "UMBEL_REVISION", default_value = "", hide = true)]
    revision: String,
    /// Target clusters that built-in jobs may touch, as JSON
    #[arg(long, env = "UMBEL_CLUSTERS", default_value = "", hide = true)]
    clusters: String,
    /// What built-in jobs may do, as JSON
    #[arg(long, env = "UMBEL_JOBS", default_value = "", hide = true)]
    jobs: String,
    /// Folder of the Secrets whose values tasks may get as arguments: a folder each, a file each key
    #[arg(
        long,
        env = "UMBEL_SECRETS_DIR",
        default_value = "/var/run/umbel/secrets",
        hide = true
    )]
    secrets_dir: PathBuf,
    /// Folder of the ConfigMaps and Secrets that manifests may come from: `configmaps` and `secrets`, a folder each
    #[arg(
        long,
        env = "UMBEL_SOURCES_DIR",
        default_value = "/var/run/umbel/sources",
        hide = true
    )]
    sources_dir: PathBuf,
}

/// Who the operator says we are; empty outside Kubernetes.
#[derive(Debug, Clone, Default)]
pub struct Pod {
    /// Install id of the operator.
    pub install: String,
    /// Uid of the WorkerPool.
    pub pool_uid: String,
    /// Namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Pod uid.
    pub uid: String,
    /// Template revision.
    pub revision: String,
}

/// A worker's configuration, checked.
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[derive(Debug, Clone)]
pub struct Config {
    /// The broker.
    pub broker: umbel_broker::Config,
    /// Take nothing from a broker that evicts?
    pub refuse_eviction: bool,
    /// Results: where, which and how.
    pub results: Results,
    /// When messages are acknowledged whose task does not say.
    pub ack: Ack,
    /// Globs of the tasks that may run here; empty: all.
    pub allowed_tasks: Vec<String>,
    /// What becomes of unknown tasks.
    pub on_unknown_task: UnknownTask,
    /// Does what a task sends have its priority, unless it names one?
    pub inherit_priority: bool,
    /// Queues, each once.
    pub queues: Vec<String>,
    /// Weights of queues that have one; 1 for all others.
    pub weights: Vec<(String, u32)>,
    /// How several queues share the worker.
    pub consumption: Consumption,
    /// Limits that all workers keep together.
    pub limits: SharedLimits,
    /// After how long unused queues go, where they were declared so.
    pub queue_expires: Vec<Named<crate::expiring::Span>>,
    /// When the worker ends by itself.
    pub recycle: RecycleLimits,
    /// Is the worker's own queue served as well?
    pub is_direct: bool,
    /// Fanout exchanges of which the worker gets copies.
    pub broadcast: Vec<String>,
    /// Slots.
    pub concurrency: usize,
    /// Bounds between which their number follows the work, instead.
    pub autoscale: Option<Bounds>,
    /// No operator.
    pub is_standalone: bool,
    /// Length of a lease.
    pub lease: Duration,
    /// Interval of renewals.
    pub renew_every: Duration,
    /// Interval of sweeps.
    pub sweep: Duration,
    /// Time to stop in.
    pub grace: Duration,
    /// Percent of it after which runs are handed back.
    pub hand_back_at: u32,
    /// Whether what is handed back so counts as a delivery.
    pub counts_as_attempt: bool,
    /// Celery node name.
    pub name: String,
    /// Hard limit of a run.
    pub time_limit: Duration,
    /// How often a message is left to others that is not known here.
    pub hand_backs: u64,
    /// Slots stuck in tasks that ignore their hard limit, at which the worker ends; at least 1.
    pub stuck_slots: usize,
    /// Soft limit of a run.
    pub soft_time_limit: Option<Duration>,
    /// Expiry of messages that name none.
    pub expires_after: Option<Duration>,
    /// Retries of failed runs.
    pub retry: RetryPolicy,
    /// How many runs may be retries.
    pub retry_budget: RetryBudget,
    /// Limits that whoever recovers our messages must know.
    pub policy: Policy,
    /// Time to live of failures in seconds; 0 for ever.
    pub failure_ttl: u64,
    /// Are task events on from the start?
    pub task_events: bool,
    /// Is told of what tasks send?
    pub task_sent_events: bool,
    /// The exchange of events.
    pub event_exchange: String,
    /// Does a chord fail with its first failed member?
    pub is_chord_fast: bool,
    /// Largest message in bytes.
    pub max_message: usize,
    /// Which bodies are read, and how.
    pub codec: umbel_codec::Codec,
    /// Zone of naive ETAs.
    pub zone: jiff::tz::TimeZone,
    /// Admin address.
    pub admin: Option<SocketAddr>,
    /// Pod identity.
    pub pod: Pod,
    /// `UMBEL_CLUSTERS`.
    pub clusters: String,
    /// `UMBEL_JOBS`.
    pub jobs: String,
    /// `UMBEL_SECRETS_DIR`.
    pub secrets_dir: PathBuf,
    /// Where the ConfigMaps and Secrets are that manifests may come from.
    pub sources_dir: PathBuf,
}

/// Flags that contradict each other.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that no worker can run with.
    #[error("{flag}: {reason}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// What is wrong.
        reason: String,
    },
}

pub(crate) fn wrong(flag: &'static str, reason: impl Into<String>) -> ConfigError {
    ConfigError::Value {
        flag,
        reason: reason.into(),
    }
}

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Config, ConfigError> {
        let (mut broker, results) = args.servers.configs()?;
        broker.key_prefix = args.key_prefix;
        broker.priority_steps = umbel_broker::parse_steps(&args.priority_steps)
            .map_err(|err| wrong("--priority-steps", err.to_string()))?;
        if let Some(separator) = args.separator.filter(|separator| !separator.is_empty()) {
            broker.separator =
                umbel_broker::parse_separator(&separator).map_err(|err| wrong("--separator", err.to_string()))?;
        }
        let keys = umbel_broker::Keys::of(&broker);
        let mut queues: Vec<String> = Vec::new();
        let mut weights = Vec::new();
        for queue in args.queue.iter().map(|queue| queue.trim()) {
            let (queue, weight) = weighted(queue)?;
            weights.extend(weight.map(|weight| (queue.to_owned(), weight)));
            check_queue(queue)?;
            if keys.queue_of(&format!("{}{queue}", keys.prefix())) != queue {
                return Err(wrong("--queue", format!("{queue:?} ends like a list of priority")));
            }
            if !queues.iter().any(|known| known == queue) {
                queues.push(queue.to_owned());
            }
        }
        if args.lease < Duration::from_millis(200) {
            return Err(wrong("--lease", "must be at least 200ms"));
        }
        if args.renew_every.is_zero() || args.renew_every > args.lease / 2 {
            return Err(wrong("--renew-every", "must be above zero and at most half of --lease"));
        }
        if args.sweep.is_zero() {
            return Err(wrong("--sweep", "must be above zero"));
        }
        if !(args.retry_factor.is_finite() && args.retry_factor >= 1.0) {
            return Err(wrong("--retry-factor", "must be at least 1"));
        }
        if !(0.0..=1.0).contains(&args.retry_jitter) {
            return Err(wrong("--retry-jitter", "must be between 0 and 1"));
        }
        if !(0.0..=1000.0).contains(&args.retry_budget) {
            return Err(wrong("--retry-budget", "must be between 0 and 1000"));
        }
        if !(0.01..=1e6).contains(&args.retry_budget_min) {
            return Err(wrong("--retry-budget-min", "must be between 0.01 and 1000000"));
        }
        if args.time_limit.is_zero() {
            return Err(wrong("--time-limit", "must be above zero"));
        }
        let zone = jiff::tz::TimeZone::get(&args.time_zone).map_err(|err| wrong("--time-zone", err.to_string()))?;
        let compression = match args.result_compression.as_deref().filter(|name| !name.is_empty()) {
            None => None,
            Some(name) => Some(
                umbel_codec::Compression::named(name)
                    .ok_or_else(|| wrong("--result-compression", format!("{name:?} is not known")))?,
            ),
        };
        broker.control.namespace = args.control_exchange;
        broker.fanout_prefix = args.fanout_prefix;
        broker.fanout_patterns = !args.no_fanout_patterns;
        broker.result_prefix = umbel_broker::result_prefix(&args.result_key_prefix);
        let results = results.map(|mut results| {
            results.result_prefix.clone_from(&broker.result_prefix);
            results
        });
        Ok(Config {
            refuse_eviction: args.servers.refuse_eviction,
            results: Results {
                backend: results,
                store: args.results,
                is_extended: args.result_extended,
                track_started: args.track_started,
                serializer: args.result_serializer,
                compression,
                max_bytes: args.result_max_bytes,
            },
            ack: args.ack,
            allowed_tasks: args
                .allowed_tasks
                .iter()
                .map(|glob| glob.trim().to_owned())
                .filter(|glob| !glob.is_empty())
                .collect(),
            on_unknown_task: args.on_unknown_task,
            inherit_priority: args.inherit_priority,
            broker,
            queues,
            weights,
            consumption: args.consumption,
            limits: SharedLimits {
                queue_rates: args.queue_rate,
                queue_in_flight: args.queue_max_in_flight,
                task_rates: args.task_rate,
                keys: args.per_key,
                deduplicate: args.deduplicate.filter(|kept| !kept.is_zero()),
            },
            queue_expires: args.queue_expires,
            recycle: RecycleLimits {
                tasks: args.max_tasks,
                memory: args.max_memory,
                age: args.max_age.filter(|age| !age.is_zero()),
            },
            is_direct: args.worker_direct,
            broadcast: args.broadcast.into_iter().filter(|name| !name.is_empty()).collect(),
            concurrency: args.concurrency,
            autoscale: args.autoscale,
            is_standalone: args.standalone,
            lease: args.lease,
            renew_every: args.renew_every,
            sweep: args.sweep.min(args.lease / 4),
            grace: args.grace,
            hand_back_at: args.hand_back_at,
            counts_as_attempt: args.counts_as_attempt,
            name: args.name.unwrap_or_else(|| format!("umbel@{}", hostname())),
            time_limit: args.time_limit,
            hand_backs: args.hand_backs,
            stuck_slots: args.stuck_slots.unwrap_or_else(|| {
                let slots = args.autoscale.map_or(args.concurrency, |bounds| bounds.max);
                (slots / 2).max(1)
            }),
            soft_time_limit: args.soft_time_limit,
            expires_after: args.expires_after.filter(|after| !after.is_zero()),
            retry: RetryPolicy {
                max_attempts: args.retry_max_attempts,
                initial_backoff: args.retry_initial_backoff,
                max_backoff: args.retry_max_backoff,
                factor: args.retry_factor,
                jitter: args.retry_jitter,
            },
            retry_budget: RetryBudget {
                ratio: args.retry_budget,
                least: args.retry_budget_min,
            },
            policy: Policy {
                max_deliveries: args.max_deliveries,
                result_ttl: args.result_ttl.as_secs(),
                dead_kept: args.dead_kept,
                dead_bytes: args.dead_max_bytes,
                dead_age: args.dead_retention.as_secs(),
            },
            failure_ttl: args.result_failure_ttl.unwrap_or(args.result_ttl).as_secs(),
            task_events: args.task_events,
            task_sent_events: args.task_sent_events,
            event_exchange: args.event_exchange,
            is_chord_fast: args.chord_fail_fast,
            max_message: args.max_message,
            codec: args.bodies.codec()?,
            zone,
            admin: args.admin_addr,
            pod: Pod {
                install: args.install,
                pool_uid: args.pool_uid,
                namespace: args.namespace,
                name: args.pod_name,
                uid: args.pod_uid,
                revision: args.revision,
            },
            clusters: args.clusters,
            jobs: args.jobs,
            secrets_dir: args.secrets_dir,
            sources_dir: args.sources_dir,
        })
    }
}

/// Can a worker serve a queue of this name? The answer says why not.
pub(crate) fn check_queue_name(queue: &str, keys: &umbel_broker::Keys) -> Result<(), String> {
    check_queue(queue).map_err(|ConfigError::Value { reason, .. }| reason)?;
    if keys.queue_of(&format!("{}{queue}", keys.prefix())) != queue {
        return Err(format!("{queue:?} ends like a list of priority"));
    }
    Ok(())
}

/// A queue and the weight behind its last `=`, if that is a number: a name may hold the sign, too.
fn weighted(text: &str) -> Result<(&str, Option<u32>), ConfigError> {
    let Some((queue, weight)) = text.rsplit_once('=') else {
        return Ok((text, None));
    };
    match weight.trim().parse::<u32>() {
        Ok(weight @ 1..=1000) => Ok((queue.trim(), Some(weight))),
        Ok(_) => Err(wrong("--queue", format!("{text:?}: a weight is 1 to 1000"))),
        Err(_) => Ok((text, None)),
    }
}

/// A queue's key must not be one of ours or kombu's own.
fn check_queue(queue: &str) -> Result<(), ConfigError> {
    let is_reserved =
        queue.starts_with("umbel:") || queue.starts_with("_kombu.") || queue.starts_with("celery-task-meta-");
    if queue.is_empty() || queue.len() > 512 {
        return Err(wrong("--queue", "names have 1 to 512 bytes"));
    }
    if is_reserved || ["unacked", "unacked_index", "unacked_mutex"].contains(&queue) || queue.contains('\u{16}') {
        return Err(wrong("--queue", format!("{queue:?} is a key of the broker's own")));
    }
    Ok(())
}

/// Go's notation: 300ms, 1.5h, 2m30s.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let parsed: kube::core::Duration = text.parse().map_err(|err| format!("{err}"))?;
    if parsed.is_negative() {
        Err("must not be negative".into())
    } else {
        Ok(parsed.into())
    }
}

fn parse_concurrency(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(slots @ 1..=100_000) => Ok(slots),
        _ => Err("must be a number from 1 to 100000".into()),
    }
}

/// A name that a channel of Redis and a key can be made of.
fn parse_exchange(text: &str) -> Result<String, String> {
    let is_name =
        (1..=200).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    let name = is_name.then(|| text.to_owned());
    name.ok_or_else(|| "must have 1 to 200 letters, digits, dots, dashes and underscores".into())
}

/// Results are never signed, and pickle is never written.
fn parse_result_serializer(text: &str) -> Result<umbel_codec::Serializer, String> {
    match text {
        "json" => Ok(umbel_codec::Serializer::Json),
        "msgpack" => Ok(umbel_codec::Serializer::Msgpack),
        "yaml" => Ok(umbel_codec::Serializer::Yaml),
        _ => Err("is none of json, msgpack and yaml".into()),
    }
}

/// Celery's notation: the larger first, the smaller may be left out.
fn parse_bounds(text: &str) -> Result<Bounds, String> {
    let (max, min) = text.split_once(',').unwrap_or((text, "1"));
    let (max, min) = (parse_concurrency(max.trim())?, parse_concurrency(min.trim())?);
    if min > max {
        return Err("the first number must not be below the second".into());
    }
    Ok(Bounds { max, min })
}

pub(crate) fn hostname() -> String {
    std::env::var("HOSTNAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(flags: &[&str]) -> Result<Config, ConfigError> {
        let all = ["umbel-worker", "--redis-url", "redis://127.0.0.1/0"]
            .iter()
            .chain(flags);
        Config::try_from(Args::try_parse_from(all).unwrap())
    }

    #[test]
    fn queues_are_taken_once_and_reserved_ones_refused() {
        assert_eq!(config(&["--queue", "a,b,a"]).unwrap().queues, ["a", "b"]);
        for bad in ["unacked", "umbel:lease", "_kombu.binding.x", "", "q\u{6}\u{16}3"] {
            assert!(config(&["--queue", bad]).is_err(), "{bad:?}");
        }
    }

    /// The operator leaves a setting out where a queue has its default (`umbel_plan::deployment`), which is this one.
    #[test]
    fn what_the_operator_leaves_out_is_by_default_what_a_queue_says() {
        let policy = config(&["--queue", "a"]).unwrap().policy;
        assert_eq!((policy.dead_kept, policy.dead_age), (10_000, 14 * 86_400));
    }

    #[test]
    fn queues_have_weights_and_limits() {
        let config = config(&[
            "--queue",
            "a=3,b",
            "--queue-rate",
            "a=10/s,5/1m",
            "--consumption",
            "strict",
        ])
        .unwrap();
        assert_eq!(config.queues, ["a", "b"]);
        assert_eq!(config.weights, [("a".to_owned(), 3)]);
        assert_eq!(config.consumption, Consumption::Strict);
        assert_eq!(config.limits.queue_rates.len(), 2);
        let all = ["umbel-worker", "--redis-url", "redis://127.0.0.1/0"];
        for bad in [
            ["--queue-rate", "a=often"],
            ["--per-key", "x"],
            ["--max-memory", "much"],
            ["--max-tasks", "0"],
            ["--queue-max-in-flight", "0"],
        ] {
            assert!(Args::try_parse_from(all.iter().chain(&bad)).is_err(), "{bad:?}");
        }
        assert!(super::tests::config(&["--queue", "a=0"]).is_err());
        assert_eq!(super::tests::config(&["--queue", "a=b"]).unwrap().queues, ["a=b"]);
    }

    #[test]
    fn priority_steps_are_checked() {
        assert_eq!(
            config(&["--priority-steps", "0,5"]).unwrap().broker.priority_steps,
            [0, 5]
        );
        for bad in ["5,0", "0,12", "low"] {
            assert!(config(&["--priority-steps", bad]).is_err(), "{bad}");
        }
        assert!(config(&["--separator", ":", "--queue", "q:3"]).is_err());
        assert_eq!(config(&["--separator", ":"]).unwrap().broker.separator, ":");
    }

    #[test]
    fn a_sweep_is_at_most_a_quarter_of_the_lease() {
        let config = config(&["--lease", "2s", "--renew-every", "600ms", "--sweep", "5s"]).unwrap();
        assert_eq!(config.sweep, Duration::from_millis(500));
    }

    #[test]
    fn bounds_of_the_autoscaler_are_celerys() {
        let bounds = |text| config(&["--autoscale", text]).unwrap().autoscale;
        assert_eq!(bounds("10,3"), Some(Bounds { max: 10, min: 3 }));
        assert_eq!(bounds("10"), Some(Bounds { max: 10, min: 1 }));
        for bad in ["3,10", "", "0", "a,b", "10,0"] {
            let flags = ["umbel-worker", "--redis-url", "redis://127.0.0.1/0", "--autoscale", bad];
            assert!(Args::try_parse_from(flags).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_renewal_must_fit_the_lease() {
        assert!(config(&["--lease", "2s"]).is_err());
        assert!(config(&["--lease", "2s", "--renew-every", "0s"]).is_err());
    }
}
