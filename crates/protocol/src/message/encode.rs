//! From a new task to the bytes that Celery's producer would push.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use super::{Body, TaskMessage, TimeLimit};
use crate::json::Json;
use crate::{time, write};

/// What Celery writes when a task has no callbacks, chain or chord.
const NO_EMBED: &str = r#"{"callbacks": null, "errbacks": null, "chain": null, "chord": null}"#;

/// Headers with a place of their own; one that is given among [`NewTask::headers`] goes there and wins over the field.
const LATE_HEADERS: [&str; 3] = ["replaced_task_nesting", "stamped_headers", "stamps"];

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
        self.encode_with(&Body::json(self.body().as_bytes()))
    }

    /// The body's value as JSON text: `[args, kwargs, embed]`.
    pub fn body(&self) -> String {
        let embed = self.embed.as_ref().map_or(NO_EMBED, Json::as_str);
        format!("[{}, {}, {embed}]", self.args, self.kwargs)
    }

    /// The list element around a body that was serialised, compressed or signed elsewhere.
    pub fn encode_with(&self, body: &Body<'_>) -> Vec<u8> {
        let Body {
            content_type,
            content_encoding,
            compression,
            bytes,
        } = body;
        let text = match self.body_encoding {
            BodyEncoding::Utf8 => std::str::from_utf8(bytes).ok(),
            BodyEncoding::Base64 => None,
        };
        let mut out = String::with_capacity(1024 + bytes.len() * 2);
        out.push_str("{\"body\": ");
        match text {
            Some(text) => write::string(&mut out, text),
            None => {
                out.push('"');
                STANDARD.encode_string(bytes, &mut out);
                out.push('"');
            }
        }
        out.push_str(", \"content-encoding\": ");
        write::optional(&mut out, content_encoding.as_deref());
        out.push_str(", \"content-type\": ");
        write::string(&mut out, content_type);
        out.push_str(", \"headers\": ");
        self.write_headers(&mut out, compression.as_deref());
        out.push_str(", \"properties\": ");
        self.write_properties(&mut out, if text.is_some() { "utf-8" } else { "base64" });
        out.push('}');
        out.into_bytes()
    }

    fn write_headers(&self, out: &mut String, compression: Option<&str>) {
        // Consumers do not check it. The text inside the body is Python's dialect of JSON, so that is what we say.
        out.push_str("{\"lang\": \"py\"");
        text(out, "task", &self.task);
        text(out, "id", &self.id);
        optional(out, "shadow", self.shadow.as_deref());
        let iso = |text: &Option<String>, at: Option<Timestamp>| text.clone().or_else(|| at.map(time::iso));
        optional(out, "eta", iso(&self.eta_text, self.eta).as_deref());
        optional(out, "expires", iso(&self.expires_text, self.expires).as_deref());
        optional(out, "group", self.group.as_deref());
        bare(
            out,
            "group_index",
            &self
                .group_index
                .map_or_else(|| "null".into(), |index| index.to_string()),
        );
        bare(out, "retries", &self.retries.to_string());
        let [hard, soft] = [self.time_limit.hard, self.time_limit.soft]
            .map(|limit| limit.map_or_else(|| "null".into(), write::seconds));
        bare(out, "timelimit", &format!("[{hard}, {soft}]"));
        text(out, "root_id", self.root_id.as_deref().unwrap_or(&self.id));
        optional(out, "parent_id", self.parent_id.as_deref());
        let argsrepr = self.argsrepr.clone().unwrap_or_else(|| self.args.repr_as_arguments());
        let kwargsrepr = self.kwargsrepr.clone().unwrap_or_else(|| self.kwargs.repr());
        text(out, "argsrepr", &argsrepr);
        text(out, "kwargsrepr", &kwargsrepr);
        text(out, "origin", &self.origin);
        bare(
            out,
            "ignore_result",
            match self.ignore_result {
                Some(true) => "true",
                Some(false) => "false",
                None => "null",
            },
        );
        let [nesting, stamped_headers, stamps] = LATE_HEADERS;
        self.late(out, nesting, || Json::of(&self.replaced_task_nesting));
        self.late(out, stamped_headers, || {
            if self.stamps.is_empty() {
                return Json::null();
            }
            write::array(self.stamps.iter().map(|(name, _)| Json::string(name)))
        });
        self.late(out, stamps, || {
            write::object(self.stamps.iter().map(|(name, value)| (name.as_str(), value)))
        });
        for (name, value) in &self.headers {
            if !LATE_HEADERS.contains(&name.as_str()) {
                entry(out, name, value);
            }
        }
        if let Some(compression) = compression {
            text(out, "compression", compression);
        }
        out.push('}');
    }

    fn late(&self, out: &mut String, name: &str, field: impl FnOnce() -> Json) {
        match self.headers.iter().rev().find(|(given, _)| given == name) {
            Some((_, given)) => bare(out, name, given.as_str()),
            None => bare(out, name, field().as_str()),
        }
    }

    fn write_properties(&self, out: &mut String, body_encoding: &str) {
        out.push_str("{\"correlation_id\": ");
        write::string(out, &self.id);
        text(out, "reply_to", &self.reply_to);
        for (name, value) in &self.properties {
            entry(out, name, value);
        }
        bare(out, "delivery_mode", &self.delivery_mode.to_string());
        if let (Some(expires), Some(now)) = (self.expires, self.sent_at) {
            text(out, "expiration", &expiration(expires, now));
        }
        out.push_str(", \"delivery_info\": {\"exchange\": ");
        write::string(out, &self.exchange);
        text(out, "routing_key", self.routing_key.as_ref().unwrap_or(&self.queue));
        out.push('}');
        let priority = self.priority_written.unwrap_or(self.priority.into());
        bare(out, "priority", &priority.to_string());
        text(out, "body_encoding", body_encoding);
        text(
            out,
            "delivery_tag",
            if self.delivery_tag.is_empty() {
                &self.id
            } else {
                &self.delivery_tag
            },
        );
        out.push('}');
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

/// Milliseconds left, as text; `0` when none are.
pub(super) fn expiration(expires: Timestamp, now: Timestamp) -> String {
    (expires.as_microsecond().saturating_sub(now.as_microsecond()) / 1_000)
        .max(0)
        .to_string()
}

fn entry(out: &mut String, name: &str, value: &Json) {
    out.push_str(", ");
    write::string(out, name);
    out.push_str(": ");
    out.push_str(value.as_str());
}

fn text(out: &mut String, name: &str, value: &str) {
    optional(out, name, Some(value));
}

fn optional(out: &mut String, name: &str, value: Option<&str>) {
    bare(out, name, "");
    write::optional(out, value);
}

fn bare(out: &mut String, name: &str, value: &str) {
    for part in [", \"", name, "\": ", value] {
        out.push_str(part);
    }
}
