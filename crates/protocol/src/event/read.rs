//! Reading events.

use super::kind::{Event, Heartbeat, TaskInfo};
use crate::envelope::open;
use crate::json::Json;
use crate::message::Reason;

/// An event, as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    /// The field `type`: `task-started`.
    pub kind: String,
    /// Who sent it: a node name.
    pub hostname: String,
    /// Unix time in seconds, as written.
    pub timestamp: f64,
    /// Lamport clock; 0 if it has none.
    pub clock: u64,
    /// Process id.
    pub pid: Option<u32>,
    /// Hours that the sender's zone is west of UTC.
    pub utcoffset: f64,
    /// All fields, verbatim.
    pub fields: Json,
}

/// The events of one payload: an object or an array of them.
///
/// An element that is no event is left out, so that one bad event does not hide its neighbours.
///
/// # Errors
/// [`Reason`]: no envelope of JSON, or neither an object nor an array in it.
pub fn parse(payload: &[u8]) -> Result<Vec<Received>, Reason> {
    let (_, body) = open(payload)?;
    if let Some(events) = body.elements() {
        return Ok(events.into_iter().filter_map(Received::of).collect());
    }
    let event = Received::of(body).ok_or(Reason::Field {
        field: "body",
        expected: "an event or a list of events",
    })?;
    Ok(vec![event])
}

impl Received {
    fn of(fields: Json) -> Option<Received> {
        let number = |name| fields.get(name).and_then(|value| value.to::<f64>().ok());
        Some(Received {
            kind: fields.get("type")?.text()?,
            hostname: fields.get("hostname")?.text()?,
            timestamp: number("timestamp")?,
            clock: fields.get("clock").and_then(|clock| clock.to().ok()).unwrap_or(0),
            pid: fields.get("pid").and_then(|pid| pid.to().ok()),
            utcoffset: number("utcoffset").unwrap_or(0.0),
            fields,
        })
    }

    /// The task that it is about.
    pub fn uuid(&self) -> Option<String> {
        self.text("uuid")
    }

    /// The event as a value; `None` for a kind that this crate does not know, or one without its fields.
    pub fn event(&self) -> Option<Event> {
        let uuid = || self.text("uuid");
        Some(match self.kind.as_str() {
            "worker-online" => Event::WorkerOnline(self.heartbeat()?),
            "worker-heartbeat" => Event::WorkerHeartbeat(self.heartbeat()?),
            "worker-offline" => Event::WorkerOffline(self.heartbeat()?),
            "task-sent" => Event::TaskSent {
                task: self.task()?,
                queue: self.text("queue").unwrap_or_default(),
                exchange: self.text("exchange").unwrap_or_default(),
                routing_key: self.text("routing_key").unwrap_or_default(),
            },
            "task-received" => Event::TaskReceived(self.task()?),
            "task-started" => Event::TaskStarted { uuid: uuid()? },
            "task-succeeded" => Event::TaskSucceeded {
                uuid: uuid()?,
                result: self.text("result").unwrap_or_default(),
                runtime: self.fields.get("runtime")?.to().ok()?,
            },
            "task-failed" => Event::TaskFailed {
                uuid: uuid()?,
                exception: self.text("exception").unwrap_or_default(),
                traceback: self.text("traceback"),
            },
            "task-retried" => Event::TaskRetried {
                uuid: uuid()?,
                exception: self.text("exception").unwrap_or_default(),
                traceback: self.text("traceback"),
            },
            "task-rejected" => Event::TaskRejected {
                uuid: uuid()?,
                requeue: self.is("requeue"),
            },
            "task-revoked" => Event::TaskRevoked {
                uuid: uuid()?,
                terminated: self.is("terminated"),
                signum: self.fields.get("signum").filter(|signum| !signum.is_null()),
                expired: self.is("expired"),
            },
            "task-cancelled" => Event::TaskCancelled { uuid: uuid()? },
            "worker-elect-ack" => Event::WorkerElectAck { id: self.text("id")? },
            _ => return None,
        })
    }

    fn text(&self, name: &str) -> Option<String> {
        self.fields.get(name)?.text()
    }

    fn is(&self, name: &str) -> bool {
        self.fields.get(name).is_some_and(|value| value.as_str() == "true")
    }

    fn heartbeat(&self) -> Option<Heartbeat> {
        let fields = &self.fields;
        Some(Heartbeat {
            freq: fields.get("freq")?.to().ok()?,
            active: fields.get("active").and_then(|count| count.to().ok()).unwrap_or(0),
            processed: fields.get("processed").and_then(|count| count.to().ok()).unwrap_or(0),
            loadavg: fields
                .get("loadavg")
                .and_then(|load| load.to().ok())
                .unwrap_or_default(),
            sw_ident: self.text("sw_ident").unwrap_or_default(),
            sw_ver: self.text("sw_ver").unwrap_or_default(),
            sw_sys: self.text("sw_sys").unwrap_or_default(),
        })
    }

    fn task(&self) -> Option<TaskInfo> {
        Some(TaskInfo {
            uuid: self.text("uuid")?,
            name: self.text("name").unwrap_or_default(),
            args: self.text("args").unwrap_or_default(),
            kwargs: self.text("kwargs").unwrap_or_default(),
            root_id: self.text("root_id"),
            parent_id: self.text("parent_id"),
            retries: self
                .fields
                .get("retries")
                .and_then(|count| count.to().ok())
                .unwrap_or(0),
            eta: self.text("eta"),
            expires: self.text("expires"),
        })
    }
}
