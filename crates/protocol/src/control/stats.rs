//! Figures of a worker, for `stats`. Flower fails without `broker` and `total`.

use serde::Serialize;

use crate::json::Json;
use crate::write;

/// The answer to `stats`.
#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    /// Tasks that were taken since the start, by name.
    pub total: Vec<(String, u64)>,
    /// Process id.
    pub pid: u32,
    /// Lamport clock.
    pub clock: u64,
    /// Seconds since the start.
    pub uptime: u64,
    /// What runs the tasks.
    pub pool: Pool,
    /// Where messages come from.
    pub broker: Broker,
    /// How many messages the worker takes at most.
    pub prefetch_count: u64,
    /// What the process used.
    pub rusage: Usage,
    /// Bounds of the number of slots, where that follows the work.
    pub autoscaler: Option<Autoscaler>,
}

/// The number of slots and its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Autoscaler {
    /// Slots at most.
    pub max: u32,
    /// Slots at least.
    pub min: u32,
    /// Slots now.
    pub current: u32,
    /// Messages that were taken and wait for a slot.
    pub qty: u32,
}

/// What runs the tasks.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Pool {
    /// A name for it, such as Celery's `celery.concurrency.prefork:TaskPool`.
    pub implementation: String,
    /// Slots.
    pub max_concurrency: u32,
    /// Processes.
    pub processes: Vec<u32>,
    /// Tasks after which a process is replaced: a number, or `N/A`.
    pub max_tasks_per_child: Json,
    /// Celery's; false.
    pub put_guarded_by_semaphore: bool,
    /// Default time limits in seconds, soft first; 0: none.
    pub timeouts: [u64; 2],
}

/// Where messages come from. Never with a password: there is no field for one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Broker {
    /// Host.
    pub hostname: String,
    /// User.
    pub userid: Option<String>,
    /// Database number, as text.
    pub virtual_host: String,
    /// Port.
    pub port: u16,
    /// Encrypted?
    pub ssl: bool,
    /// `redis`.
    pub transport: String,
}

/// What the process used, as `getrusage` tells.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Usage {
    /// Seconds in user mode.
    pub utime: f64,
    /// Seconds in the kernel.
    pub stime: f64,
    /// Most memory, in KiB.
    pub maxrss: u64,
    /// Page faults without reading.
    pub minflt: u64,
    /// Page faults with reading.
    pub majflt: u64,
    /// Blocks read.
    pub inblock: u64,
    /// Blocks written.
    pub oublock: u64,
    /// Voluntary context switches.
    pub nvcsw: u64,
    /// Forced ones.
    pub nivcsw: u64,
}

/// [`Broker`] with what is the same for every worker of ours.
#[derive(Serialize)]
struct WrittenBroker<'a> {
    #[serde(flatten)]
    broker: &'a Broker,
    insist: bool,
    login_method: (),
    uri_prefix: (),
    alternates: [(); 0],
    credential_provider: (),
}

/// [`Usage`] with what Linux leaves at zero.
#[derive(Serialize)]
struct WrittenUsage<'a> {
    #[serde(flatten)]
    usage: &'a Usage,
    ixrss: u8,
    idrss: u8,
    isrss: u8,
    nswap: u8,
    msgsnd: u8,
    msgrcv: u8,
    nsignals: u8,
}

impl Stats {
    /// As Celery writes it, without fields that speak of Python's pool or kombu's connection only.
    pub fn to_json(&self) -> Json {
        let broker = WrittenBroker {
            broker: &self.broker,
            insist: false,
            login_method: (),
            uri_prefix: (),
            alternates: [],
            credential_provider: (),
        };
        let usage = WrittenUsage {
            usage: &self.rusage,
            ixrss: 0,
            idrss: 0,
            isrss: 0,
            nswap: 0,
            msgsnd: 0,
            msgrcv: 0,
            nsignals: 0,
        };
        let total: Vec<(&str, Json)> = self
            .total
            .iter()
            .map(|(task, count)| (task.as_str(), Json::of(count)))
            .collect();
        let mut entries = vec![
            ("total", write::object(total.iter().map(|(task, count)| (*task, count)))),
            ("pid", Json::of(&self.pid)),
            ("clock", Json::string(&self.clock.to_string())),
            ("uptime", Json::of(&self.uptime)),
            ("pool", Json::of(&self.pool)),
            ("broker", Json::of(&broker)),
            ("prefetch_count", Json::of(&self.prefetch_count)),
            ("rusage", Json::of(&usage)),
        ];
        if let Some(autoscaler) = &self.autoscaler {
            entries.push(("autoscaler", Json::of(autoscaler)));
        }
        write::object(entries.iter().map(|(name, value)| (*name, value)))
    }
}
