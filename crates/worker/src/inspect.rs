//! What the worker shows of itself. Messages of what waits are read from Redis when somebody asks; those of runs are
//! in memory anyway.

use std::time::Duration;

use umbel_broker::Error;
use umbel_protocol::control::{Autoscaler, Broker, Configuration, Consumed, Pool, Stats, TaskRequest, Usage, answer};
use umbel_protocol::json::Json;
use umbel_protocol::message::{Limits, TaskMessage};

use crate::app::Shared;
use crate::options::Ack;

/// Tasks in one answer.
const MOST: usize = 500;
/// Messages read at once: each may be as large as `--max-message`.
const CHUNK: usize = 4;
/// Bytes of messages in one answer, or one chunk more: a page that polls must not fill the memory.
const BYTES: usize = 4 * 1024 * 1024;

/// Tasks that run.
pub(crate) fn active(shared: &Shared, safe: bool) -> Json {
    answer::tasks(&running(shared, None), safe)
}

/// Of these ids those that run.
pub(crate) async fn query(shared: &Shared, ids: &[String]) -> Result<Json, Error> {
    let active = running(shared, Some(ids));
    let mut tasks: Vec<(&str, TaskRequest)> = active.into_iter().map(|task| ("active", task)).collect();
    let mut add = |state, found: Vec<TaskRequest>| {
        for task in found {
            if ids.contains(&task.id) && tasks.iter().all(|(_, known)| known.id != task.id) {
                tasks.push((state, task));
            }
        }
    };
    add("reserved", waiting(shared).await?);
    let scheduled = delayed(shared).await?;
    add("scheduled", scheduled.into_iter().map(|(_, task)| task).collect());
    Ok(answer::query_task(tasks.iter().map(|(state, task)| (*state, task))))
}

/// Tasks that were taken and wait for their turn by their rate limit. Others are never taken before they can run.
pub(crate) async fn reserved(shared: &Shared) -> Result<Json, Error> {
    Ok(answer::tasks(&waiting(shared).await?, false))
}

async fn waiting(shared: &Shared) -> Result<Vec<TaskRequest>, Error> {
    let (mut tasks, mut bytes) = (Vec::new(), 0);
    let mut lids = shared.rates.waiting();
    lids.truncate(MOST);
    for chunk in lids.chunks(CHUNK) {
        if bytes > BYTES {
            break;
        }
        for (_, raw) in shared.broker.held(chunk).await? {
            bytes += raw.len();
            tasks.extend(read(shared, &raw).map(|message| TaskRequest::waiting(&message, &shared.config.name)));
        }
    }
    Ok(tasks)
}

/// Ids of the runs that have one of these stamps, and the stamps by which they were found.
pub(crate) fn stamped(shared: &Shared, wanted: &[(String, Json)]) -> (Vec<String>, Vec<(String, Vec<Json>)>) {
    let (mut ids, mut found): (Vec<String>, Vec<(String, Vec<Json>)>) = Default::default();
    for run in shared.leases.runs() {
        let mut is_meant = false;
        for (name, values) in crate::revoked::stamps(&run.message) {
            let hits = values
                .into_iter()
                .filter(|value| wanted.iter().any(|(stamp, asked)| *stamp == name && asked == value));
            for value in hits {
                is_meant = true;
                let at = found.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
                    found.push((name.clone(), Vec::new()));
                    found.len() - 1
                });
                if !found[at].1.contains(&value) {
                    found[at].1.push(value);
                }
            }
        }
        if is_meant {
            ids.push(run.message.id.clone());
        }
    }
    (ids, found)
}

/// Tasks that this worker knows, with those of these attributes that are set; asked for none: with Celery's choice.
pub(crate) fn registered(shared: &Shared, items: &[String]) -> Json {
    let items: Vec<&str> = if items.is_empty() {
        vec!["rate_limit"]
    } else {
        items.iter().map(String::as_str).collect()
    };
    answer::names(shared.tasks.names().into_iter().map(|name| {
        let values = items
            .iter()
            .filter_map(|item| Some((*item, attribute(shared, &name, item)?)));
        let values: Vec<(&str, String)> = values.collect();
        let shown: Vec<(&str, &str)> = values.iter().map(|(item, value)| (*item, value.as_str())).collect();
        answer::registered(&name, &shown)
    }))
}

/// What Celery calls this attribute of a task, as Python shows it; `None` for those that only Python's have.
fn attribute(shared: &Shared, task: &str, item: &str) -> Option<String> {
    let options = shared.tasks.options(task)?;
    let truth = |is: bool| if is { "True" } else { "False" }.to_owned();
    let seconds = |limit: Option<Duration>| Some(Json::of(&limit?.as_secs_f64()).to_string());
    match item {
        "name" => Some(task.to_owned()),
        "rate_limit" => shared.rates.of(task),
        "max_retries" => {
            let policy = options.retry(&shared.config.retry);
            Some(policy.max_attempts.saturating_sub(1).to_string())
        }
        "time_limit" => seconds(options.time_limit.or(Some(shared.config.time_limit))),
        "soft_time_limit" => seconds(options.soft_time_limit.or(shared.config.soft_time_limit)),
        "ignore_result" => Some(truth(options.ignore_result)),
        "track_started" => Some(truth(options.track_started || shared.config.results.track_started)),
        "acks_late" => Some(truth(options.ack.unwrap_or(shared.config.ack) == Ack::Late)),
        _ => None,
    }
}

fn running(shared: &Shared, ids: Option<&[String]>) -> Vec<TaskRequest> {
    let mut bytes = 0;
    shared
        .leases
        .runs()
        .iter()
        .filter(|run| ids.is_none_or(|ids| ids.contains(&run.message.id)))
        .take(MOST)
        .take_while(|run| {
            let fits = bytes <= BYTES;
            bytes += run.message.args.as_str().len() + run.message.kwargs.as_str().len();
            fits
        })
        .map(|run| TaskRequest {
            time_start: Some(run.since),
            worker_pid: Some(std::process::id()),
            ..TaskRequest::waiting(&run.message, &shared.config.name)
        })
        .collect()
}

/// Tasks that wait for their time in the queues of this worker; any worker of the queue may get them.
pub(crate) async fn scheduled(shared: &Shared) -> Result<Json, Error> {
    let tasks = delayed(shared).await?;
    Ok(answer::scheduled(tasks.iter().map(|(eta, task)| (eta.as_str(), task))))
}

/// The next 100 of each queue, as far as the answer may grow.
async fn delayed(shared: &Shared) -> Result<Vec<(String, TaskRequest)>, Error> {
    const OF_A_QUEUE: usize = 100;
    let (mut tasks, mut bytes) = (Vec::new(), 0);
    for queue in &shared.queues.names() {
        let (mut skip, most) = (0, MOST.saturating_sub(tasks.len()).min(OF_A_QUEUE));
        while skip < most && bytes <= BYTES {
            let found = shared.broker.delayed(queue, skip, CHUNK.min(most - skip)).await?;
            let is_last = found.len() < CHUNK;
            skip += CHUNK;
            for (due, raw) in found {
                bytes += raw.len();
                #[allow(clippy::cast_possible_truncation)] // Microseconds since 1970 fit.
                let eta = jiff::Timestamp::from_microsecond((due * 1e6) as i64).unwrap_or_default();
                if let Some(message) = read(shared, &raw) {
                    let task = TaskRequest::waiting(&message, &shared.config.name);
                    tasks.push((eta.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string(), task));
                }
            }
            if is_last {
                break;
            }
        }
    }
    Ok(tasks)
}

fn read(shared: &Shared, raw: &[u8]) -> Option<TaskMessage> {
    let limits = Limits {
        bytes: shared.config.max_message,
        ..Limits::default()
    };
    shared.config.codec.decode(raw, &limits, &shared.config.zone).ok()
}

/// Queues, as a bare name in Celery's settings makes them.
pub(crate) fn queues(shared: &Shared) -> Json {
    let queues: Vec<Json> = shared.queues.all().iter().map(Consumed::to_json).collect();
    Json::of(&queues)
}

/// Figures.
pub(crate) fn stats(shared: &Shared) -> Stats {
    let endpoint = shared.config.broker.endpoint();
    let slots = shared.slots.total();
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let whole = |limit: std::time::Duration| limit.as_secs();
    Stats {
        total: shared.tasks.counts(),
        pid: std::process::id(),
        clock: shared.events.lamport(),
        uptime: shared.since.elapsed().as_secs(),
        pool: Pool {
            implementation: "umbel:tokio".into(),
            max_concurrency: count(slots),
            processes: vec![std::process::id()],
            max_tasks_per_child: Json::string("N/A"),
            put_guarded_by_semaphore: false,
            timeouts: [
                shared.config.soft_time_limit.map_or(0, whole),
                whole(shared.config.time_limit),
            ],
        },
        broker: Broker {
            hostname: endpoint.host,
            userid: endpoint.user,
            virtual_host: endpoint.database.to_string(),
            port: endpoint.port,
            ssl: endpoint.is_tls,
            transport: "redis".into(),
        },
        prefetch_count: slots as u64,
        rusage: usage(),
        autoscaler: shared.autoscale.bounds().map(|bounds| Autoscaler {
            max: count(bounds.max),
            min: count(bounds.min),
            current: count(slots),
            qty: count(shared.rates.waiting().len()),
        }),
    }
}

/// What the kernel tells without a system call of its own; the rest is zero.
fn usage() -> Usage {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields are counted from behind the program's name, which may hold anything.
    let fields: Vec<f64> = stat
        .rsplit_once(") ")
        .map_or("", |(_, rest)| rest)
        .split(' ')
        .map(|field| field.parse().unwrap_or(0.0))
        .collect();
    let field = |at: usize| fields.get(at).copied().unwrap_or(0.0);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let figure = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Counts, small and positive.
    Usage {
        utime: field(11) / 100.0, // The kernel shows hundredths on every architecture.
        stime: field(12) / 100.0,
        maxrss: figure("VmHWM").unwrap_or(0),
        minflt: field(7) as u64,
        majflt: field(9) as u64,
        nvcsw: figure("voluntary_ctxt_switches").unwrap_or(0),
        nivcsw: figure("nonvoluntary_ctxt_switches").unwrap_or(0),
        ..Usage::default()
    }
}

/// Settings, under Celery's names where it has one.
pub(crate) fn conf(shared: &Shared) -> Configuration {
    let config = &shared.config;
    let results = config.results.backend.as_ref().unwrap_or(&config.broker);
    let seconds = |time: std::time::Duration| Json::of(&time.as_secs_f64());
    let text = Json::string;
    let accepted: Vec<&str> = config.codec.accept().iter().map(|kind| kind.name()).collect();
    let entries = [
        ("broker_url", text(&format!("redis://{}", config.broker.server()))),
        ("result_backend", text(&format!("redis://{}", results.server()))),
        ("result_expires", Json::of(&config.policy.result_ttl)),
        ("task_default_queue", Json::of(&config.queues.first())),
        ("task_queues", Json::of(&shared.queues.names())),
        ("worker_concurrency", Json::of(&shared.slots.total())),
        ("task_time_limit", seconds(config.time_limit)),
        (
            "task_soft_time_limit",
            config.soft_time_limit.map_or_else(Json::null, seconds),
        ),
        ("task_acks_late", Json::of(&true)),
        ("timezone", Json::of(&config.zone.iana_name())),
        ("accept_content", Json::of(&accepted)),
        ("umbel_lease", seconds(config.lease)),
        ("umbel_max_message", Json::of(&config.max_message)),
        ("umbel_retry_max_attempts", Json::of(&config.retry.max_attempts)),
        ("umbel_max_deliveries", Json::of(&config.policy.max_deliveries)),
    ];
    Configuration(entries.map(|(name, value)| (name.to_owned(), value)).into())
}

/// A text for people.
pub(crate) fn report(shared: &Shared) -> String {
    let settings = conf(shared).0;
    let settings: Vec<String> = settings
        .iter()
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    format!(
        "\nsoftware -> umbel:{} \nplatform -> system:Linux arch:{}\nnode -> {} worker:{}\ntransport -> redis at {}\n\n{}\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        shared.config.name,
        shared.worker,
        shared.broker.server(),
        settings.join("\n")
    )
}
