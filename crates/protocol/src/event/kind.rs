//! The kinds of events and their fields.

use std::fmt::Write as _;

use crate::json::Json;
use crate::message::TaskMessage;
use crate::write;

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
            // Looked for only where it is known to be there: each look reads all headers.
            eta: message.eta.and_then(|_| header("eta")),
            expires: message.expires.and_then(|_| header("expires")),
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

    /// Writes the fields of this kind, in Celery's order.
    pub(super) fn write(&self, fields: &mut Fields<'_>) {
        match self {
            Event::WorkerOnline(beat) | Event::WorkerHeartbeat(beat) | Event::WorkerOffline(beat) => {
                fields.float("freq", beat.freq);
                fields.number("active", beat.active);
                fields.number("processed", beat.processed);
                fields.value("loadavg", &Json::of(&beat.loadavg));
                fields.text("sw_ident", &beat.sw_ident);
                fields.text("sw_ver", &beat.sw_ver);
                fields.text("sw_sys", &beat.sw_sys);
            }
            Event::TaskSent {
                task,
                queue,
                exchange,
                routing_key,
            } => {
                task.write_sent(fields);
                fields.text("queue", queue);
                fields.text("exchange", exchange);
                fields.text("routing_key", routing_key);
            }
            Event::TaskReceived(task) => task.write_received(fields),
            Event::TaskStarted { uuid } | Event::TaskCancelled { uuid } => fields.text("uuid", uuid),
            Event::TaskSucceeded { uuid, result, runtime } => {
                fields.text("uuid", uuid);
                fields.text("result", result);
                fields.float("runtime", *runtime);
            }
            Event::TaskFailed {
                uuid,
                exception,
                traceback,
            }
            | Event::TaskRetried {
                uuid,
                exception,
                traceback,
            } => {
                fields.text("uuid", uuid);
                fields.text("exception", exception);
                fields.optional("traceback", traceback.as_deref());
            }
            Event::TaskRejected { uuid, requeue } => {
                fields.text("uuid", uuid);
                fields.number("requeue", requeue);
            }
            Event::TaskRevoked {
                uuid,
                terminated,
                signum,
                expired,
            } => {
                fields.text("uuid", uuid);
                fields.number("terminated", terminated);
                fields.value("signum", signum.as_ref().unwrap_or(&Json::null()));
                fields.number("expired", expired);
            }
            Event::WorkerElectAck { id } => fields.text("id", id),
        }
    }
}

/// An object that is being written; there is at least one field before these.
pub(super) struct Fields<'a>(pub(super) &'a mut String);

impl Fields<'_> {
    fn name(&mut self, name: &'static str) {
        self.0.push_str(", \"");
        self.0.push_str(name);
        self.0.push_str("\": ");
    }

    pub(super) fn text(&mut self, name: &'static str, text: &str) {
        self.name(name);
        write::string(self.0, text);
    }

    fn optional(&mut self, name: &'static str, text: Option<&str>) {
        self.name(name);
        write::optional(self.0, text);
    }

    /// A whole number, or a boolean.
    pub(super) fn number(&mut self, name: &'static str, number: impl std::fmt::Display) {
        self.name(name);
        let _ = write!(self.0, "{number}"); // Writing to a String cannot fail.
    }

    pub(super) fn float(&mut self, name: &'static str, number: f64) {
        self.name(name);
        write::float_to(self.0, number);
    }

    fn value(&mut self, name: &'static str, value: &Json) {
        self.name(name);
        self.0.push_str(value.as_str());
    }
}

impl TaskInfo {
    fn write_sent(&self, fields: &mut Fields<'_>) {
        fields.text("uuid", &self.uuid);
        fields.optional("root_id", self.root_id.as_deref());
        fields.optional("parent_id", self.parent_id.as_deref());
        self.write_call(fields);
        self.write_times(fields);
    }

    fn write_received(&self, fields: &mut Fields<'_>) {
        fields.text("uuid", &self.uuid);
        self.write_call(fields);
        fields.optional("root_id", self.root_id.as_deref());
        fields.optional("parent_id", self.parent_id.as_deref());
        self.write_times(fields);
    }

    fn write_call(&self, fields: &mut Fields<'_>) {
        fields.text("name", &self.name);
        fields.text("args", &self.args);
        fields.text("kwargs", &self.kwargs);
    }

    fn write_times(&self, fields: &mut Fields<'_>) {
        fields.number("retries", self.retries);
        fields.optional("eta", self.eta.as_deref());
        fields.optional("expires", self.expires.as_deref());
    }
}
