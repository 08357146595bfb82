//! The kinds of events and their fields.

use crate::json::Json;
use crate::message::TaskMessage;

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// `worker-online`: a worker starts.
    WorkerOnline(Heartbeat),
    /// `worker-heartbeat`: it lives; counts for twice [`Heartbeat::freq`].
    WorkerHeartbeat(Heartbeat),
    /// `worker-offline`: it stops.
    WorkerOffline(Heartbeat),
    /// `task-sent`, by a producer.
    TaskSent {
        /// The task.
        task: TaskInfo,
        /// Its queue.
        queue: String,
        /// The exchange; empty for the anonymous one.
        exchange: String,
        /// The routing key; the queue's name for the anonymous exchange.
        routing_key: String,
    },
    /// `task-received`: a worker took it. Not for one that came expired.
    TaskReceived(TaskInfo),
    /// `task-started`.
    TaskStarted {
        /// Task id.
        uuid: String,
    },
    /// `task-succeeded`.
    TaskSucceeded {
        /// Task id.
        uuid: String,
        /// Python's repr of the result: [`Json::repr`].
        result: String,
        /// Seconds that it took.
        runtime: f64,
    },
    /// `task-failed`.
    TaskFailed {
        /// Task id.
        uuid: String,
        /// Python's repr of the error: [`crate::result::Failure::repr`].
        exception: String,
        /// Traceback text.
        traceback: Option<String>,
    },
    /// `task-retried`.
    TaskRetried {
        /// Task id.
        uuid: String,
        /// Python's repr of the error.
        exception: String,
        /// Traceback text.
        traceback: Option<String>,
    },
    /// `task-rejected`.
    TaskRejected {
        /// Task id.
        uuid: String,
        /// Was it put back?
        requeue: bool,
    },
    /// `task-revoked`.
    TaskRevoked {
        /// Task id.
        uuid: String,
        /// Was it running?
        terminated: bool,
        /// The signal that ended it: a number, or a name as in the request.
        signum: Option<Json>,
        /// Was it too late, rather than revoked?
        expired: bool,
    },
    /// `task-cancelled` (5.7).
    TaskCancelled {
        /// Task id.
        uuid: String,
    },
    /// `worker-elect-ack`: agrees to an election.
    WorkerElectAck {
        /// The election.
        id: String,
    },
}

/// The state of a worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Heartbeat {
    /// Seconds between two of them.
    pub freq: f64,
    /// Tasks that run now.
    pub active: u64,
    /// Tasks since it started.
    pub processed: u64,
    /// Load of the host over 1, 5 and 15 minutes.
    pub loadavg: [f64; 3],
    /// The program: `py-celery` for Celery's.
    pub sw_ident: String,
    /// Its version.
    pub sw_ver: String,
    /// Operating system: `Linux`.
    pub sw_sys: String,
}

/// A task as `task-sent` and `task-received` show it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TaskInfo {
    /// Task id.
    pub uuid: String,
    /// Display name: the header `shadow`, if there is one.
    pub name: String,
    /// Python's repr of the positional arguments.
    pub args: String,
    /// Python's repr of the keyword arguments.
    pub kwargs: String,
    /// First task of the workflow.
    pub root_id: Option<String>,
    /// The task that sent it.
    pub parent_id: Option<String>,
    /// Tries before this one.
    pub retries: u32,
    /// Not before: as the message has it.
    pub eta: Option<String>,
    /// Not after.
    pub expires: Option<String>,
}

impl From<&TaskMessage> for TaskInfo {
    fn from(message: &TaskMessage) -> TaskInfo {
        let header = |name| message.header(name).and_then(|value| value.text());
        TaskInfo {
            uuid: message.id.clone(),
            name: header("shadow").unwrap_or_else(|| message.task.clone()),
            args: message
                .argsrepr
                .clone()
                .unwrap_or_else(|| message.args.repr_as_arguments()),
            kwargs: message.kwargsrepr.clone().unwrap_or_else(|| message.kwargs.repr()),
            root_id: message.root_id.clone(),
            parent_id: message.parent_id.clone(),
            retries: message.retries,
            eta: header("eta"),
            expires: header("expires"),
        }
    }
}

impl Event {
    /// The field `type`; with dots for dashes, the routing key.
    pub fn kind(&self) -> &'static str {
        match self {
            Event::WorkerOnline(_) => "worker-online",
            Event::WorkerHeartbeat(_) => "worker-heartbeat",
            Event::WorkerOffline(_) => "worker-offline",
            Event::TaskSent { .. } => "task-sent",
            Event::TaskReceived(_) => "task-received",
            Event::TaskStarted { .. } => "task-started",
            Event::TaskSucceeded { .. } => "task-succeeded",
            Event::TaskFailed { .. } => "task-failed",
            Event::TaskRetried { .. } => "task-retried",
            Event::TaskRejected { .. } => "task-rejected",
            Event::TaskRevoked { .. } => "task-revoked",
            Event::TaskCancelled { .. } => "task-cancelled",
            Event::WorkerElectAck { .. } => "worker-elect-ack",
        }
    }

    /// The fields of this kind, in Celery's order.
    pub(super) fn fields(&self) -> Vec<(&'static str, Json)> {
        let text = Json::string;
        match self {
            Event::WorkerOnline(beat) | Event::WorkerHeartbeat(beat) | Event::WorkerOffline(beat) => vec![
                ("freq", Json::of(&beat.freq)),
                ("active", Json::of(&beat.active)),
                ("processed", Json::of(&beat.processed)),
                ("loadavg", Json::of(&beat.loadavg)),
                ("sw_ident", text(&beat.sw_ident)),
                ("sw_ver", text(&beat.sw_ver)),
                ("sw_sys", text(&beat.sw_sys)),
            ],
            Event::TaskSent {
                task,
                queue,
                exchange,
                routing_key,
            } => {
                let mut fields = task.sent();
                fields.push(("queue", text(queue)));
                fields.push(("exchange", text(exchange)));
                fields.push(("routing_key", text(routing_key)));
                fields
            }
            Event::TaskReceived(task) => task.received(),
            Event::TaskStarted { uuid } | Event::TaskCancelled { uuid } => vec![("uuid", text(uuid))],
            Event::TaskSucceeded { uuid, result, runtime } => vec![
                ("uuid", text(uuid)),
                ("result", text(result)),
                ("runtime", Json::of(runtime)),
            ],
            Event::TaskFailed {
                uuid,
                exception,
                traceback,
            }
            | Event::TaskRetried {
                uuid,
                exception,
                traceback,
            } => vec![
                ("uuid", text(uuid)),
                ("exception", text(exception)),
                ("traceback", Json::of(traceback)),
            ],
            Event::TaskRejected { uuid, requeue } => vec![("uuid", text(uuid)), ("requeue", Json::of(requeue))],
            Event::TaskRevoked {
                uuid,
                terminated,
                signum,
                expired,
            } => vec![
                ("uuid", text(uuid)),
                ("terminated", Json::of(terminated)),
                ("signum", signum.clone().unwrap_or_else(Json::null)),
                ("expired", Json::of(expired)),
            ],
            Event::WorkerElectAck { id } => vec![("id", text(id))],
        }
    }
}

impl TaskInfo {
    fn sent(&self) -> Vec<(&'static str, Json)> {
        vec![
            ("uuid", Json::string(&self.uuid)),
            ("root_id", Json::of(&self.root_id)),
            ("parent_id", Json::of(&self.parent_id)),
            ("name", Json::string(&self.name)),
            ("args", Json::string(&self.args)),
            ("kwargs", Json::string(&self.kwargs)),
            ("retries", Json::of(&self.retries)),
            ("eta", Json::of(&self.eta)),
            ("expires", Json::of(&self.expires)),
        ]
    }

    fn received(&self) -> Vec<(&'static str, Json)> {
        vec![
            ("uuid", Json::string(&self.uuid)),
            ("name", Json::string(&self.name)),
            ("args", Json::string(&self.args)),
            ("kwargs", Json::string(&self.kwargs)),
            ("root_id", Json::of(&self.root_id)),
            ("parent_id", Json::of(&self.parent_id)),
            ("retries", Json::of(&self.retries)),
            ("eta", Json::of(&self.eta)),
            ("expires", Json::of(&self.expires)),
        ]
    }
}
