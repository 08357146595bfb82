//! A new task as its parts, written straight into a buffer: what a producer of thousands a second needs.

use std::borrow::Cow;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Body, BodyEncoding, TimeLimit};
use crate::json::Json;
use crate::write::{self, Sink as _};

/// What Celery writes when a task has no callbacks, chain or chord.
pub const NO_EMBED: &str = r#"{"callbacks": null, "errbacks": null, "chain": null, "chord": null}"#;

/// What Celery writes when a call names neither times nor limits.
const UNCONDITIONAL: &str = concat!(
    r#", "shadow": null, "eta": null, "expires": null, "group": null, "group_index": null"#,
    r#", "retries": 0, "timelimit": [null, null]"#
);

/// Headers with a place of their own; one that is given among [`TaskParts::headers`] goes there and wins over the field.
const LATE_HEADERS: [&str; 3] = ["replaced_task_nesting", "stamped_headers", "stamps"];
/// Bytes that a message has beside its body and its texts, about.
const FRAME: usize = 1024;

/// A task to send, in parts that somebody else holds: as [`super::NewTask`], field by field.
#[derive(Debug, Clone)]
pub struct TaskParts<'a> {
    /// Task id; must not be empty.
    pub id: &'a str,
    /// Task name.
    pub task: &'a str,
    /// Positional arguments: an array.
    pub args: &'a Json,
    /// Keyword arguments: an object.
    pub kwargs: &'a Json,
    /// Callbacks, errbacks, chain, chord; `None` writes the object with four nulls.
    pub embed: Option<Cow<'a, Json>>,
    /// The routing key: for the anonymous exchange, the queue.
    pub routing_key: &'a str,
    /// The exchange; empty: the anonymous one.
    pub exchange: &'a str,
    /// The priority as it is written; may be beyond 0 to 9.
    pub priority: i64,
    /// Earlier tries.
    pub retries: u32,
    /// Not before, as it is written.
    pub eta: Option<Cow<'a, str>>,
    /// Not after, likewise.
    pub expires: Option<Cow<'a, str>>,
    /// The property `expiration`: milliseconds left until then.
    pub expiration: Option<i64>,
    /// Seconds that a run may take.
    pub time_limit: TimeLimit,
    /// Display name in logs and events.
    pub shadow: Option<&'a str>,
    /// First task of the workflow; `None`: this one.
    pub root_id: Option<&'a str>,
    /// The task that sends this one.
    pub parent_id: Option<&'a str>,
    /// Group id.
    pub group: Option<&'a str>,
    /// Position in the group.
    pub group_index: Option<i64>,
    /// `Some(true)`: store no result. `None`: the worker decides.
    pub ignore_result: Option<bool>,
    /// Shown instead of the arguments; `None`: their repr, as of a tuple.
    pub argsrepr: Option<Cow<'a, str>>,
    /// Likewise for the keyword arguments.
    pub kwargsrepr: Option<&'a str>,
    /// `gen<pid>@<host>` of the sender.
    pub origin: &'a str,
    /// Names the sender for the rpc backend; may be empty.
    pub reply_to: &'a str,
    /// How often the task was replaced by another under its id.
    pub replaced_task_nesting: u32,
    /// Stamps: name and value.
    pub stamps: &'a [(String, Json)],
    /// Further headers, appended in this order.
    pub headers: &'a [(String, Json)],
    /// Further properties, behind `reply_to`.
    pub properties: Cow<'a, [(String, Json)]>,
    /// 2 (persistent) or 1.
    pub delivery_mode: u8,
    /// How the body stands in the envelope.
    pub body_encoding: BodyEncoding,
}

impl TaskParts<'_> {
    /// The body's value as JSON text: `[args, kwargs, embed]`.
    pub fn body(&self) -> String {
        let embed = self.embed.as_deref().map_or(NO_EMBED, Json::as_str);
        let (args, kwargs) = (self.args.as_str(), self.kwargs.as_str());
        let mut body = String::with_capacity(args.len() + kwargs.len() + embed.len() + 6);
        for part in ["[", args, ", ", kwargs, ", ", embed, "]"] {
            body.push_str(part);
        }
        body
    }

    /// What the list element has at least, in bytes, if its body is plain JSON: known before anything is written.
    pub fn least_bytes(&self) -> usize {
        let embed = self.embed.as_deref().map_or(NO_EMBED, Json::as_str);
        let body = self.args.as_str().len() + self.kwargs.as_str().len() + embed.len() + 6;
        match self.body_encoding {
            BodyEncoding::Base64 => body.div_ceil(3) * 4,
            BodyEncoding::Utf8 => body,
        }
    }

    /// Appends the list element with a JSON body, byte for byte as Celery 5.7 writes it: task protocol 2. The tag is the
    /// key of kombu's delivery record, unique for each copy that is pushed.
    pub fn write(&self, delivery_tag: &str, out: &mut Vec<u8>) {
        self.write_with(&Body::json(self.body().as_bytes()), delivery_tag, out);
    }

    /// Appends the list element around a body that was serialised, compressed or signed elsewhere.
    pub fn write_with(&self, body: &Body<'_>, delivery_tag: &str, out: &mut Vec<u8>) {
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
        out.reserve(FRAME + bytes.len() / 3 * 4);
        out.push_str("{\"body\": ");
        match text {
            Some(text) => write::string(out, text),
            None => {
                out.push_str("\"");
                base64(bytes, out);
                out.push_str("\"");
            }
        }
        out.push_str(", \"content-encoding\": ");
        write::optional(out, content_encoding.as_deref());
        out.push_str(", \"content-type\": ");
        write::string(out, content_type);
        out.push_str(", \"headers\": ");
        let id = self.write_headers(out, compression.as_deref());
        out.push_str(", \"properties\": ");
        let body_encoding = if text.is_some() { "utf-8" } else { "base64" };
        self.write_properties(out, id, body_encoding, delivery_tag);
        out.push_str("}");
    }

    /// Returns where the id stands, as a string literal.
    fn write_headers(&self, out: &mut Vec<u8>, compression: Option<&str>) -> Range<usize> {
        // Consumers do not check it. The text inside the body is Python's dialect of JSON, so that is what we say.
        out.push_str("{\"lang\": \"py\", \"task\": ");
        write::string(out, self.task);
        out.push_str(", \"id\": ");
        let begin = out.len();
        write::string(out, self.id);
        let id = begin..out.len();
        self.write_conditions(out);
        out.push_str(", \"root_id\": ");
        match self.root_id {
            Some(root) => write::string(out, root),
            None => out.extend_from_within(id.clone()),
        }
        out.push_str(", \"parent_id\": ");
        write::optional(out, self.parent_id);
        out.push_str(", \"argsrepr\": ");
        match &self.argsrepr {
            Some(text) => write::string(out, text),
            None if self.args.as_str() == "[]" => out.push_str("\"()\""),
            None => write::string(out, &self.args.repr_as_arguments()),
        }
        out.push_str(", \"kwargsrepr\": ");
        match self.kwargsrepr {
            Some(text) => write::string(out, text),
            None if self.kwargs.as_str() == "{}" => out.push_str("\"{}\""),
            None => write::string(out, &self.kwargs.repr()),
        }
        out.push_str(", \"origin\": ");
        write::string(out, self.origin);
        out.push_str(", \"ignore_result\": ");
        out.push_str(match self.ignore_result {
            Some(true) => "true",
            Some(false) => "false",
            None => "null",
        });
        self.write_late_headers(out);
        for (name, value) in self.headers {
            if !LATE_HEADERS.contains(&name.as_str()) {
                entry(out, name, value);
            }
        }
        if let Some(compression) = compression {
            out.push_str(", \"compression\": ");
            write::string(out, compression);
        }
        out.push_str("}");
        id
    }

    /// When and how it shall run; most calls say nothing of it.
    fn write_conditions(&self, out: &mut Vec<u8>) {
        let says_nothing = self.shadow.is_none()
            && self.eta.is_none()
            && self.expires.is_none()
            && self.group.is_none()
            && self.group_index.is_none()
            && self.retries == 0
            && self.time_limit == TimeLimit::default();
        if says_nothing {
            out.push_str(UNCONDITIONAL);
            return;
        }
        out.push_str(", \"shadow\": ");
        write::optional(out, self.shadow);
        out.push_str(", \"eta\": ");
        write::optional(out, self.eta.as_deref());
        out.push_str(", \"expires\": ");
        write::optional(out, self.expires.as_deref());
        out.push_str(", \"group\": ");
        write::optional(out, self.group);
        out.push_str(", \"group_index\": ");
        match self.group_index {
            Some(index) => write::integer(out, index),
            None => out.push_str("null"),
        }
        out.push_str(", \"retries\": ");
        write::integer(out, self.retries.into());
        self.write_time_limit(out);
    }

    fn write_time_limit(&self, out: &mut Vec<u8>) {
        let TimeLimit { hard, soft } = self.time_limit;
        if (hard, soft) == (None, None) {
            out.push_str(", \"timelimit\": [null, null]");
            return;
        }
        let [hard, soft] = [hard, soft].map(|limit| limit.map_or_else(|| "null".into(), write::seconds));
        for part in [", \"timelimit\": [", &hard, ", ", &soft, "]"] {
            out.push_str(part);
        }
    }

    fn write_late_headers(&self, out: &mut Vec<u8>) {
        if self.headers.is_empty() && self.stamps.is_empty() && self.replaced_task_nesting == 0 {
            out.push_str(r#", "replaced_task_nesting": 0, "stamped_headers": null, "stamps": {}"#);
            return;
        }
        let given = |name: &str| self.headers.iter().rev().find(|(given, _)| given == name);
        out.push_str(", \"replaced_task_nesting\": ");
        match given("replaced_task_nesting") {
            Some((_, given)) => out.push_str(given.as_str()),
            None => write::integer(out, self.replaced_task_nesting.into()),
        }
        out.push_str(", \"stamped_headers\": ");
        match given("stamped_headers") {
            Some((_, given)) => out.push_str(given.as_str()),
            None if self.stamps.is_empty() => out.push_str("null"),
            None => {
                let names = write::array(self.stamps.iter().map(|(name, _)| Json::string(name)));
                out.push_str(names.as_str());
            }
        }
        out.push_str(", \"stamps\": ");
        match given("stamps") {
            Some((_, given)) => out.push_str(given.as_str()),
            None if self.stamps.is_empty() => out.push_str("{}"),
            None => {
                let stamps = write::object(self.stamps.iter().map(|(name, value)| (name.as_str(), value)));
                out.push_str(stamps.as_str());
            }
        }
    }

    fn write_properties(&self, out: &mut Vec<u8>, id: Range<usize>, body_encoding: &str, delivery_tag: &str) {
        out.push_str("{\"correlation_id\": ");
        out.extend_from_within(id);
        out.push_str(", \"reply_to\": ");
        write::string(out, self.reply_to);
        for (name, value) in self.properties.iter() {
            entry(out, name, value);
        }
        out.push_str(", \"delivery_mode\": ");
        write::integer(out, self.delivery_mode.into());
        if let Some(left) = self.expiration {
            out.push_str(", \"expiration\": \"");
            write::integer(out, left);
            out.push_str("\"");
        }
        out.push_str(", \"delivery_info\": {\"exchange\": ");
        write::string(out, self.exchange);
        out.push_str(", \"routing_key\": ");
        write::string(out, self.routing_key);
        out.push_str("}, \"priority\": ");
        write::integer(out, self.priority);
        out.push_str(", \"body_encoding\": ");
        write::string(out, body_encoding);
        out.push_str(", \"delivery_tag\": ");
        write::string(out, if delivery_tag.is_empty() { self.id } else { delivery_tag });
        out.push_str("}");
    }
}

fn entry(out: &mut Vec<u8>, name: &str, value: &Json) {
    out.push_str(", ");
    write::string(out, name);
    out.push_str(": ");
    out.push_str(value.as_str());
}

fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(bytes, &mut out[start..]).unwrap_or_default(); // The room is exact.
    out.truncate(start + written);
}
