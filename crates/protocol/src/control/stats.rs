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

impl Stats {
    /// As Celery writes it, without fields that speak of Python's pool or kombu's connection only.
    pub fn to_json(&self) -> Json {
        let total: Vec<(&str, Json)> = self
            .total
            .iter()
            .map(|(task, count)| (task.as_str(), Json::of(count)))
            .collect();
        write::object([
            (
                "total",
                &write::object(total.iter().map(|(task, count)| (*task, count))),
            ),
            ("pid", &Json::of(&self.pid)),
            ("clock", &Json::string(&self.clock.to_string())),
            ("uptime", &Json::of(&self.uptime)),
            ("pool", &Json::of(&self.pool)),
            ("broker", &Json::of(&self.broker)),
            ("prefetch_count", &Json::of(&self.prefetch_count)),
            ("rusage", &Json::of(&self.rusage)),
        ])
    }
}
