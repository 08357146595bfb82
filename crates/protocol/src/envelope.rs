//! The envelope of events and control messages: a message that is broadcast, and carries one JSON value.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::json::{Json, MAX_DEPTH};
use crate::message::Reason;
use crate::write;

/// Bytes of an envelope. A worker of Celery's that starts sends all ids that it knows to be revoked: at most 50,000 of
/// about 40 bytes, a third more as base64.
const LARGEST: usize = 8 << 20;
/// Object keys of an envelope and of its body, each; these ids are keys with Celery before 5.7.
const MOST_KEYS: u32 = 100_000;

/// What an envelope says beside its body.
pub(crate) struct Head<'a> {
    pub(crate) headers: Json,
    pub(crate) delivery_mode: u8,
    pub(crate) exchange: &'a str,
    pub(crate) routing_key: &'a str,
    pub(crate) delivery_tag: &'a str,
}

/// The bytes, as kombu writes them.
pub(crate) fn seal(body: &str, head: &Head<'_>) -> Vec<u8> {
    let info = write::object([
        ("exchange", &Json::string(head.exchange)),
        ("routing_key", &Json::string(head.routing_key)),
    ]);
    let properties = write::object([
        ("delivery_mode", &Json::of(&head.delivery_mode)),
        ("delivery_info", &info),
        ("priority", &Json::of(&0)),
        ("body_encoding", &Json::string("base64")),
        ("delivery_tag", &Json::string(head.delivery_tag)),
    ]);
    // Written in one go: base64 has nothing to escape, and events are many.
    let mut out = String::with_capacity(body.len() * 4 / 3 + 512);
    out.push_str("{\"body\": \"");
    STANDARD.encode_string(body, &mut out);
    out.push_str("\", \"content-encoding\": \"utf-8\", \"content-type\": \"application/json\", \"headers\": ");
    out.push_str(head.headers.as_str());
    out.push_str(", \"properties\": ");
    out.push_str(properties.as_str());
    out.push('}');
    out.into_bytes()
}

/// An envelope's headers and body.
///
/// # Errors
/// [`Reason`]: too large, no JSON, or in an encoding that is not read.
pub(crate) fn open(raw: &[u8]) -> Result<(Json, Json), Reason> {
    if raw.len() > LARGEST {
        return Err(Reason::Size {
            bytes: raw.len(),
            limit: LARGEST,
        });
    }
    let envelope = parse(raw, "message")?;
    let content_type = envelope.get("content-type").and_then(|kind| kind.text());
    match content_type.as_deref() {
        Some("application/json") => {}
        Some(other) => return Err(Reason::ContentType(crate::message::quoted(other))),
        None => return Err(Reason::Missing("content-type")),
    }
    let body = envelope
        .get("body")
        .and_then(|body| body.text())
        .ok_or(Reason::Missing("body"))?;
    let encoding = envelope
        .get("properties")
        .and_then(|properties| properties.get("body_encoding"));
    let body = match encoding.and_then(|encoding| encoding.text()).as_deref() {
        None | Some("utf-8") => body.into_bytes(),
        Some("base64") => STANDARD.decode(body).map_err(|_| Reason::Encoding {
            field: "body_encoding",
            found: crate::message::quoted("base64"),
        })?,
        Some(other) => {
            return Err(Reason::Encoding {
                field: "body_encoding",
                found: crate::message::quoted(other),
            });
        }
    };
    let headers = envelope.get("headers").unwrap_or_else(Json::empty_object);
    Ok((headers, parse(&body, "body")?))
}

fn parse(raw: &[u8], part: &'static str) -> Result<Json, Reason> {
    let text = std::str::from_utf8(raw).map_err(|err| Reason::Text {
        part,
        at: err.valid_up_to(),
    })?;
    Json::parse_within(text.trim(), MAX_DEPTH, MOST_KEYS).map_err(|source| Reason::Json { part, source })
}

/// Names of fanout channels.
///
/// Pub/sub does not know databases, so the number in the name is what keeps them apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fanout {
    /// In front of the exchange: `/<db>.`; empty when the transport option `fanout_prefix` is off.
    pub prefix: String,
    /// Is the routing key part of the name (`fanout_patterns`)?
    pub with_keys: bool,
}

impl Fanout {
    /// The names in this database, under kombu's defaults.
    pub fn database(number: u32) -> Fanout {
        Fanout {
            prefix: format!("/{number}."),
            with_keys: true,
        }
    }

    /// The channel to publish to.
    pub fn channel(&self, exchange: &str, routing_key: &str) -> String {
        if self.with_keys && !routing_key.is_empty() {
            format!("{}{exchange}/{routing_key}", self.prefix)
        } else {
            format!("{}{exchange}", self.prefix)
        }
    }

    /// The pattern to subscribe to for `binding_key`, which may have `#` for "anything".
    pub fn pattern(&self, exchange: &str, binding_key: &str) -> String {
        self.channel(exchange, &binding_key.replace('#', "*"))
    }
}
