//! From a new task to the bytes that Celery's producer would push.

use std::borrow::Cow;

use jiff::Timestamp;

use super::{Body, TaskMessage, TaskParts, TimeLimit};
use crate::json::Json;
use crate::time;

/// How a body becomes the text that stands in the envelope (kombu's transport option `body_encoding`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BodyEncoding {
    /// Any bytes.
    #[default]
    Base64,
    /// The text itself. A body that is no text (msgpack, compressed) is sent as base64 all the same, and says so.
    Utf8,
}

/// A task to send: fill in what matters, leave the rest to `..NewTask::default()`.
///
/// ```
/// use umbel_protocol::json::Json;
/// use umbel_protocol::message::NewTask;
///
/// let task = NewTask {
///     id: "056e3c31-7ef8-4b3e-a69c-115d9413cefc".into(),
///     task: "proj.add".into(),
///     args: Json::of(&(2, 3)),
///     queue: "celery".into(),
///     ..NewTask::default()
/// };
/// assert!(task.encode().starts_with(br#"{"body": "W1syLCAzXSwge30s"#));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct NewTask {
    /// Task id, normally a v4 UUID. Must not be empty.
    pub id: String,
    /// Task name.
    pub task: String,
    /// Positional arguments: an array.
    pub args: Json,
    /// Keyword arguments: an object.
    pub kwargs: Json,
    /// Callbacks, errbacks, chain, chord; `None` writes the object with four nulls.
    pub embed: Option<Json>,
    /// The queue, which becomes the routing key of the anonymous exchange.
    pub queue: String,
    /// The exchange that the message says it was sent to; empty: the anonymous one.
    pub exchange: String,
    /// The routing key that the message says, where it is not the queue.
    pub routing_key: Option<String>,
    /// 0 (first) to 9; the caller pushes to that step's list.
    pub priority: u8,
    /// The priority as it is written, where the caller gave one beyond 0 to 9.
    pub priority_written: Option<i64>,
    /// Earlier tries.
    pub retries: u32,
    /// Not before.
    pub eta: Option<Timestamp>,
    /// How `eta` is written, where that is not in UTC: in an offset of the caller's, or in none.
    pub eta_text: Option<String>,
    /// Not after.
    pub expires: Option<Timestamp>,
    /// How `expires` is written, likewise.
    pub expires_text: Option<String>,
    /// When it is sent; only to state the time left in the property `expiration`, which nobody on Redis reads.
    pub sent_at: Option<Timestamp>,
    /// Seconds that a run may take.
    pub time_limit: TimeLimit,
    /// Display name in logs and events.
    pub shadow: Option<String>,
    /// First task of the workflow; `None`: this one.
    pub root_id: Option<String>,
    /// The task that sends this one.
    pub parent_id: Option<String>,
    /// Group id.
    pub group: Option<String>,
    /// Position in the group.
    pub group_index: Option<i64>,
    /// `Some(true)`: store no result. `None`: the worker decides.
    pub ignore_result: Option<bool>,
    /// Shown instead of the arguments; `None`: their repr. Set it where arguments are secret.
    pub argsrepr: Option<String>,
    /// Likewise for the keyword arguments.
    pub kwargsrepr: Option<String>,
    /// `gen<pid>@<host>` of the sender.
    pub origin: String,
    /// Names the sender for the rpc backend, which is not ours; may be empty.
    pub reply_to: String,
    /// Key of kombu's delivery record, unique for each copy that is pushed; empty: the id serves.
    pub delivery_tag: String,
    /// How often the task was replaced by another under its id.
    pub replaced_task_nesting: u32,
    /// Stamps, by which tasks can be revoked: name and value.
    pub stamps: Vec<(String, Json)>,
    /// Further headers, appended in this order; `replaced_task_nesting`, `stamped_headers` and `stamps` where Celery
    /// writes them.
    pub headers: Vec<(String, Json)>,
    /// Further properties, behind `reply_to`, where Celery puts send options that it does not know.
    pub properties: Vec<(String, Json)>,
    /// 2 (persistent) or 1; no effect on Redis.
    pub delivery_mode: u8,
    /// How the body stands in the envelope.
    pub body_encoding: BodyEncoding,
}

impl Default for NewTask {
    fn default() -> NewTask {
        NewTask {
            id: String::new(),
            task: String::new(),
            args: Json::empty_array(),
            kwargs: Json::empty_object(),
            embed: None,
            queue: "celery".into(),
            exchange: String::new(),
            routing_key: None,
            priority: 0,
            priority_written: None,
            retries: 0,
            eta: None,
            eta_text: None,
            expires: None,
            expires_text: None,
            sent_at: None,
            time_limit: TimeLimit::default(),
            shadow: None,
            root_id: None,
            parent_id: None,
            group: None,
            group_index: None,
            ignore_result: Some(false),
            argsrepr: None,
            kwargsrepr: None,
            origin: String::new(),
            reply_to: String::new(),
            delivery_tag: String::new(),
            replaced_task_nesting: 0,
            stamps: Vec::new(),
            headers: Vec::new(),
            properties: Vec::new(),
            delivery_mode: 2,
            body_encoding: BodyEncoding::Base64,
        }
    }
}

impl NewTask {
    /// The list element, byte for byte as Celery 5.7 writes it: task protocol 2, JSON body in base64.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.parts().write(&self.delivery_tag, &mut out);
        out
    }

    /// The body's value as JSON text: `[args, kwargs, embed]`.
    pub fn body(&self) -> String {
        self.parts().body()
    }

    /// The list element around a body that was serialised, compressed or signed elsewhere.
    pub fn encode_with(&self, body: &Body<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        self.parts().write_with(body, &self.delivery_tag, &mut out);
        out
    }

    /// What its message is made of.
    pub fn parts(&self) -> TaskParts<'_> {
        TaskParts {
            id: &self.id,
            task: &self.task,
            args: &self.args,
            kwargs: &self.kwargs,
            embed: self.embed.as_ref().map(Cow::Borrowed),
            routing_key: self.routing_key.as_ref().unwrap_or(&self.queue),
            exchange: &self.exchange,
            priority: self.priority_written.unwrap_or(self.priority.into()),
            retries: self.retries,
            eta: written(self.eta_text.as_deref(), self.eta),
            expires: written(self.expires_text.as_deref(), self.expires),
            expiration: self
                .expires
                .zip(self.sent_at)
                .map(|(expires, now)| expiration(expires, now)),
            time_limit: self.time_limit,
            shadow: self.shadow.as_deref(),
            root_id: self.root_id.as_deref(),
            parent_id: self.parent_id.as_deref(),
            group: self.group.as_deref(),
            group_index: self.group_index,
            ignore_result: self.ignore_result,
            argsrepr: self.argsrepr.as_deref().map(Cow::Borrowed),
            kwargsrepr: self.kwargsrepr.as_deref(),
            origin: &self.origin,
            reply_to: &self.reply_to,
            replaced_task_nesting: self.replaced_task_nesting,
            stamps: &self.stamps,
            headers: &self.headers,
            properties: Cow::Borrowed(&self.properties),
            delivery_mode: self.delivery_mode,
            body_encoding: self.body_encoding,
        }
    }
}

/// The same task once more, under the same id; without headers of its own, display name and delivery tag.
impl From<&TaskMessage> for NewTask {
    fn from(message: &TaskMessage) -> NewTask {
        let message = message.clone();
        NewTask {
            id: message.id,
            task: message.task,
            args: message.args,
            kwargs: message.kwargs,
            embed: message.embed,
            queue: message.queue,
            priority: message.priority,
            retries: message.retries,
            eta: message.eta,
            expires: message.expires,
            sent_at: None,
            time_limit: message.time_limit,
            exchange: message.exchange,
            routing_key: None,
            shadow: None,
            root_id: message.root_id,
            parent_id: message.parent_id,
            group: message.group,
            group_index: message.group_index,
            ignore_result: message.ignore_result,
            argsrepr: message.argsrepr,
            kwargsrepr: message.kwargsrepr,
            origin: message.origin.unwrap_or_default(),
            reply_to: message.reply_to.unwrap_or_default(),
            delivery_tag: String::new(),
            ..NewTask::default()
        }
    }
}

/// A time as it stands in the message.
fn written(text: Option<&str>, at: Option<Timestamp>) -> Option<Cow<'_, str>> {
    match text {
        Some(text) => Some(Cow::Borrowed(text)),
        None => at.map(|at| Cow::Owned(time::iso(at))),
    }
}

/// The property `expiration`: milliseconds left; 0 when none are.
pub fn expiration(expires: Timestamp, now: Timestamp) -> i64 {
    (expires.as_microsecond().saturating_sub(now.as_microsecond()) / 1_000).max(0)
}
