//! From a new task to the bytes that Celery's producer would push.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use super::{TaskMessage, TimeLimit};
use crate::json::Json;
use crate::{time, write};

/// What Celery writes when a task has no callbacks, chain or chord.
const NO_EMBED: &str = r#"{"callbacks": null, "errbacks": null, "chain": null, "chord": null}"#;

/// Headers that seldom differ from these; given among [`NewTask::headers`], a value goes to its usual place.
const LATE_HEADERS: [(&str, &str); 3] = [
    ("replaced_task_nesting", "0"),
    ("stamped_headers", "null"),
    ("stamps", "{}"),
];

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
    /// 0 (first) to 9; the caller pushes to that step's list.
    pub priority: u8,
    /// Earlier tries.
    pub retries: u32,
    /// Not before.
    pub eta: Option<Timestamp>,
    /// Not after.
    pub expires: Option<Timestamp>,
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
    /// Further headers, appended in this order; `replaced_task_nesting`, `stamped_headers` and `stamps` where Celery
    /// writes them.
    pub headers: Vec<(String, Json)>,
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
            priority: 0,
            retries: 0,
            eta: None,
            expires: None,
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
            headers: Vec::new(),
        }
    }
}

impl NewTask {
    /// The list element, byte for byte as Celery 5.7 writes it: task protocol 2, JSON body in base64.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = String::with_capacity(1024 + self.args.as_str().len() * 2 + self.kwargs.as_str().len() * 2);
        let embed = self.embed.as_ref().map_or(NO_EMBED, Json::as_str);
        let body = format!("[{}, {}, {embed}]", self.args, self.kwargs);
        out.push_str("{\"body\": \"");
        STANDARD.encode_string(body, &mut out);
        out.push_str("\", \"content-encoding\": \"utf-8\", \"content-type\": \"application/json\", \"headers\": ");
        self.write_headers(&mut out);
        out.push_str(", \"properties\": ");
        self.write_properties(&mut out);
        out.push('}');
        out.into_bytes()
    }

    fn write_headers(&self, out: &mut String) {
        // Consumers do not check it. The text inside the body is Python's dialect of JSON, so that is what we say.
        out.push_str("{\"lang\": \"py\"");
        text(out, "task", &self.task);
        text(out, "id", &self.id);
        optional(out, "shadow", self.shadow.as_deref());
        optional(out, "eta", self.eta.map(time::iso).as_deref());
        optional(out, "expires", self.expires.map(time::iso).as_deref());
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
        for (name, default) in LATE_HEADERS {
            let given = self.headers.iter().rev().find(|(given, _)| given == name);
            bare(out, name, given.map_or(default, |(_, value)| value.as_str()));
        }
        let is_late = |name: &str| LATE_HEADERS.iter().any(|(late, _)| *late == name);
        for (name, value) in self.headers.iter().filter(|(name, _)| !is_late(name)) {
            out.push_str(", ");
            write::string(out, name);
            // Writing to a String cannot fail.
            let _ = write!(out, ": {value}");
        }
        out.push('}');
    }

    fn write_properties(&self, out: &mut String) {
        out.push_str("{\"correlation_id\": ");
        write::string(out, &self.id);
        text(out, "reply_to", &self.reply_to);
        out.push_str(", \"delivery_mode\": 2");
        if let (Some(expires), Some(now)) = (self.expires, self.sent_at) {
            text(out, "expiration", &expiration(expires, now));
        }
        out.push_str(", \"delivery_info\": {\"exchange\": \"\", \"routing_key\": ");
        write::string(out, &self.queue);
        out.push('}');
        bare(out, "priority", &self.priority.to_string());
        out.push_str(", \"body_encoding\": \"base64\"");
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
            headers: Vec::new(),
        }
    }
}

/// Milliseconds left, as text; `0` when none are.
pub(super) fn expiration(expires: Timestamp, now: Timestamp) -> String {
    (expires.as_microsecond().saturating_sub(now.as_microsecond()) / 1_000)
        .max(0)
        .to_string()
}

fn text(out: &mut String, name: &str, value: &str) {
    optional(out, name, Some(value));
}

fn optional(out: &mut String, name: &str, value: Option<&str>) {
    bare(out, name, "");
    write::optional(out, value);
}

fn bare(out: &mut String, name: &str, value: &str) {
    // Writing to a String cannot fail.
    let _ = write!(out, ", \"{name}\": {value}");
}
