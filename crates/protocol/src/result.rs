//! Result documents: what a worker stores under `celery-task-meta-<id>` and publishes on the channel of that name.
//!
//! Key order and spacing are Celery's, so the bytes are those that a Celery worker would have stored.

use jiff::Timestamp;

use crate::json::Json;
use crate::message::TaskMessage;
use crate::{time, write};

/// What every document says beside its state and value.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Meta<'a> {
    /// When the task ended; written for the final states only.
    pub done_at: Timestamp,
    /// Ids of the tasks that this one sent.
    pub children: &'a [String],
    /// What it sent beside those, as result tuples ([`crate::canvas::ResultTuple`]): groups, and tasks with parents.
    pub trail: &'a [Json],
    /// The task's group.
    pub group_id: Option<&'a str>,
    /// The task that sent this one.
    pub parent_id: Option<&'a str>,
    /// Further keys: those of [`extended`], where `result_extended` is on.
    pub extra: &'a [(String, Json)],
}

/// What a document says in addition under `result_extended`: name, arguments, worker, tries, queue, stamps.
pub fn extended(message: &TaskMessage, worker: &str) -> Vec<(String, Json)> {
    let mut extra: Vec<(String, Json)> = vec![
        ("name".into(), Json::string(&message.task)),
        ("args".into(), message.args.clone()),
        ("kwargs".into(), message.kwargs.clone()),
        ("worker".into(), Json::string(worker)),
        ("retries".into(), Json::of(&message.retries)),
        ("queue".into(), Json::string(&message.queue)),
    ];
    let names = message.header("stamped_headers").filter(Json::is_array);
    if let Some(names) = names {
        extra.push(("stamped_headers".into(), names));
        extra.extend(
            message
                .header("stamps")
                .map_or_else(Vec::new, |stamps| stamps.entries()),
        );
    }
    extra
}

/// An error as Celery's client raises it again.
///
/// A client that does not know the class makes one up under this name, so any name will do; but it must be a text, and
/// the message a list, or the client cannot even read the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Exception class, e.g. `ValueError`.
    pub exc_type: String,
    /// Its Python module, e.g. `builtins`.
    pub exc_module: String,
    /// The arguments of the exception's constructor.
    pub message: Vec<Json>,
}

impl Failure {
    /// An error with one text as its message.
    pub fn new(exc_module: &str, exc_type: &str, message: &str) -> Failure {
        Failure {
            exc_type: exc_type.into(),
            exc_module: exc_module.into(),
            message: vec![Json::string(message)],
        }
    }

    /// Python's repr of the exception: `ValueError('boom')`. For people only.
    pub fn repr(&self) -> String {
        let arguments: Vec<String> = self.message.iter().map(Json::repr).collect();
        format!("{}({})", self.exc_type, arguments.join(", "))
    }

    /// The error object: `{"exc_type", "exc_message", "exc_module"}`.
    pub fn to_json(&self) -> Json {
        Json::trusted(self.write())
    }

    /// Reads an error object. A message that is no list counts as its one argument; `None` without a class name.
    pub fn parse(object: &Json) -> Option<Failure> {
        let message = object.get("exc_message");
        Some(Failure {
            exc_type: object.get("exc_type")?.text()?,
            exc_module: object
                .get("exc_module")
                .and_then(|module| module.text())
                .unwrap_or_default(),
            message: message.map_or_else(Vec::new, |message| message.elements().unwrap_or_else(|| vec![message])),
        })
    }

    fn write(&self) -> String {
        let Failure {
            exc_type,
            exc_module,
            message,
        } = self;
        let mut out = String::with_capacity(128);
        out.push_str("{\"exc_type\": ");
        write::string(&mut out, exc_type);
        out.push_str(", \"exc_message\": ");
        list(&mut out, message.iter().map(Json::as_str));
        out.push_str(", \"exc_module\": ");
        write::string(&mut out, exc_module);
        out.push('}');
        out
    }
}

/// The task returned `value`.
pub fn success(id: &str, value: &Json, meta: &Meta<'_>) -> Vec<u8> {
    document("SUCCESS", value.as_str(), None, Some(meta.done_at), id, meta)
}

/// The task failed for good.
pub fn failure(id: &str, failure: &Failure, traceback: Option<&str>, meta: &Meta<'_>) -> Vec<u8> {
    document("FAILURE", &failure.write(), traceback, Some(meta.done_at), id, meta)
}

/// The task will be tried again because of `cause`. The document lists the task as its own child, as Celery's does.
pub fn retry(id: &str, cause: &Failure, traceback: Option<&str>, meta: &Meta<'_>) -> Vec<u8> {
    let mut children = meta.children.to_vec();
    children.push(id.to_owned());
    document(
        "RETRY",
        &cause.write(),
        traceback,
        None,
        id,
        &Meta {
            children: &children,
            ..*meta
        },
    )
}

/// The task will be tried again because it asked for that, and not because of an error.
pub fn retry_without_cause(id: &str, meta: &Meta<'_>) -> Vec<u8> {
    let mut children = meta.children.to_vec();
    children.push(id.to_owned());
    let meta = Meta {
        children: &children,
        ..*meta
    };
    document("RETRY", "null", None, None, id, &meta)
}

/// The task was not run; `why` is `expired`, `revoked` or `terminated`.
pub fn revoked(id: &str, why: &str, meta: &Meta<'_>) -> Vec<u8> {
    let error = Failure::new("celery.exceptions", "TaskRevokedError", why);
    document("REVOKED", &error.write(), None, Some(meta.done_at), id, meta)
}

/// The task is in a state of its own, such as `PROGRESS`, about which it says `about`.
///
/// The states above are not for this: clients stop waiting at some of them, and read error objects out of others.
pub fn custom(id: &str, state: &str, about: &Json, meta: &Meta<'_>) -> Vec<u8> {
    document(state, about.as_str(), None, None, id, meta)
}

/// The task runs in process `pid` of the node `hostname` (`name@host`).
pub fn started(id: &str, pid: u32, hostname: &str, meta: &Meta<'_>) -> Vec<u8> {
    let mut value = format!("{{\"pid\": {pid}, \"hostname\": ");
    write::string(&mut value, hostname);
    value.push('}');
    document("STARTED", &value, None, None, id, meta)
}

fn document(
    status: &str,
    result: &str,
    traceback: Option<&str>,
    done_at: Option<Timestamp>,
    id: &str,
    meta: &Meta<'_>,
) -> Vec<u8> {
    let Meta {
        done_at: _,
        children,
        trail,
        group_id,
        parent_id,
        extra,
    } = *meta;
    let mut out = String::with_capacity(192 + result.len() + traceback.map_or(0, str::len));
    out.push_str("{\"status\": ");
    write::string(&mut out, status);
    out.push_str(", \"result\": ");
    out.push_str(result);
    out.push_str(", \"traceback\": ");
    write::optional(&mut out, traceback);
    out.push_str(", \"children\": ");
    // A result tuple of a task: its id and its parent, and no members.
    list(
        &mut out,
        children
            .iter()
            .map(|child| format!("[[{}, null], null]", Json::string(child)))
            .chain(trail.iter().map(Json::to_string)),
    );
    out.push_str(", \"date_done\": ");
    write::optional(&mut out, done_at.map(time::iso).as_deref());
    for (name, value) in [("group_id", group_id), ("parent_id", parent_id)] {
        if let Some(value) = value {
            out.push_str(", \"");
            out.push_str(name);
            out.push_str("\": ");
            write::string(&mut out, value);
        }
    }
    for (name, value) in extra {
        out.push_str(", ");
        write::string(&mut out, name);
        out.push_str(": ");
        out.push_str(value.as_str());
    }
    out.push_str(", \"task_id\": ");
    write::string(&mut out, id);
    out.push('}');
    out.into_bytes()
}

fn list<T: AsRef<str>>(out: &mut String, items: impl Iterator<Item = T>) {
    out.push('[');
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        out.push_str(item.as_ref());
    }
    out.push(']');
}

/// A stored result, read.
#[derive(Debug, Clone, PartialEq)]
pub struct ResultDoc {
    /// `SUCCESS`, `FAILURE`, `REVOKED`, `RETRY`, `STARTED` or a state of the task's own.
    pub status: String,
    /// The value; the error object for FAILURE, REVOKED and RETRY.
    pub result: Json,
    /// Traceback text.
    pub traceback: Option<String>,
    /// When the task ended.
    pub date_done: Option<Timestamp>,
    /// The task.
    pub task_id: String,
}

impl ResultDoc {
    /// Will the state not change any more?
    pub fn is_ready(&self) -> bool {
        matches!(self.status.as_str(), "SUCCESS" | "FAILURE" | "REVOKED")
    }

    /// The error of a FAILURE, REVOKED or RETRY; `None` for other states and for a malformed error object.
    ///
    /// A message that is no list counts as its one argument.
    pub fn failure(&self) -> Option<Failure> {
        if !matches!(self.status.as_str(), "FAILURE" | "REVOKED" | "RETRY") {
            return None;
        }
        Failure::parse(&self.result)
    }
}

/// Why a stored result cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResultError {
    /// Not UTF-8: compressed, or of another serializer.
    #[error("result is not text; compressed results and serializers other than JSON are not read")]
    Text,
    /// Not JSON.
    #[error("result is not acceptable JSON: {0}")]
    Json(#[source] crate::json::JsonError),
    /// Without something that every result has.
    #[error("result has no {0}")]
    Missing(&'static str),
}

/// Reads a stored or published result.
///
/// # Errors
/// [`ResultError`]: not a result document in JSON with `status` and `task_id`.
pub fn parse(raw: &[u8]) -> Result<ResultDoc, ResultError> {
    let text = std::str::from_utf8(raw).map_err(|_| ResultError::Text)?;
    let document = Json::parse(text).map_err(ResultError::Json)?;
    let text = |key| document.get(key).and_then(|value| value.text());
    Ok(ResultDoc {
        status: text("status").ok_or(ResultError::Missing("status"))?,
        task_id: text("task_id").ok_or(ResultError::Missing("task_id"))?,
        result: document.get("result").unwrap_or_else(Json::null),
        traceback: text("traceback"),
        // Celery 5.2 wrote it without an offset, in UTC.
        date_done: text("date_done").and_then(|time| time::parse(&time, &jiff::tz::TimeZone::UTC)),
    })
}
