//! From the bytes in a list to a [`TaskMessage`].

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use jiff::tz::TimeZone;

use super::body::JSON;
use super::field::{
    count, instant, is_name, named, optional_name, present, priority, required, shaped, text, time_limit,
};
use super::parts::NO_EMBED;
use super::reason::quoted;
use super::{Bodies, Body, Limits, Malformed, OnlyJson, Reason, TaskMessage, legacy};
use crate::json::{Json, JsonError};
use crate::scan::{Bounds, Scanner};

/// Padding may be left out: Python always writes it, other senders do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Keys of an envelope: Celery writes about forty, and users add headers.
const ENVELOPE_KEYS: u32 = 10_000;

/// Reads one list element. `zone` reads times that have no offset (Celery's `timezone` setting; UTC by default).
///
/// Only JSON is read: another content type or a compressed body is refused before the body is touched;
/// [`decode_with`] takes somebody who reads those.
///
/// Required: `content-type`, `body`, `headers.task`, `headers.id`; a protocol 1 message has the last two in its body.
/// `delivery_tag`, `delivery_info` and every other field may be missing, and get the defaults that [`TaskMessage`]
/// states. `null` counts as missing. `priority`, `retries` and the time limits are clamped; a time that is no ISO 8601
/// text, a `timelimit` that is no pair, or arguments of the wrong type make the message malformed.
///
/// # Errors
/// [`Malformed`], with id and task name if they came before the fault.
pub fn decode(raw: &[u8], limits: &Limits, zone: &TimeZone) -> Result<TaskMessage, Malformed> {
    decode_with(raw, limits, zone, &OnlyJson)
}

/// As [`decode`], with somebody who reads the bodies that are not plain JSON. Plain JSON costs no more than there.
///
/// # Errors
/// [`Malformed`], as [`decode`]; or as `bodies` say.
pub fn decode_with(
    raw: &[u8],
    limits: &Limits,
    zone: &TimeZone,
    bodies: &dyn Bodies,
) -> Result<TaskMessage, Malformed> {
    decode_by(raw, limits, zone, bodies, split)
}

/// As [`decode_with`], by this division of the envelope.
pub(super) fn decode_by<'a>(
    raw: &'a [u8],
    limits: &Limits,
    zone: &TimeZone,
    bodies: &dyn Bodies,
    split: impl FnOnce(&'a str, &Limits, &mut Envelope<'a>) -> Result<(), JsonError>,
) -> Result<TaskMessage, Malformed> {
    let mut envelope = Envelope::default();
    read(raw, limits, zone, bodies, &mut envelope, split).map_err(|reason| envelope.malformed(reason, limits))
}

/// What a message that [`decode_with`] refuses says of itself: who it is, its place in a workflow, and what hangs on it.
///
/// It is not to be run: arguments, times and limits are not read. But whoever waits for it can be told how it ended.
/// Of a body that is refused (a format or a signature that does not count, no JSON) nothing is believed; the headers
/// name it all the same. `None` without an acceptable id and task name.
pub fn salvage(raw: &[u8], limits: &Limits, bodies: &dyn Bodies) -> Option<TaskMessage> {
    if raw.len() > limits.bytes {
        return None;
    }
    let mut envelope = Envelope::default();
    split(utf8(raw, "message").ok()?, limits, &mut envelope).ok()?;
    let opened = || -> Result<Cow<'_, [u8]>, Reason> {
        match kind(&envelope, bodies)? {
            Kind::Json => undo_encoding(&envelope),
            Kind::Sealed(labels) => {
                let bytes = undo_encoding(&envelope)?;
                Ok(Cow::Owned(bodies.open(Body { bytes, ..labels })?.into_bytes()))
            }
        }
    };
    let opened = opened();
    let body = opened.as_deref().ok().and_then(|body| utf8(body, "body").ok());
    let (headers, embed) = match body {
        Some(body) if present(envelope.headers.task).is_none() && body.trim_start().starts_with('{') => {
            let (headers, call) = legacy::split(body, bounds(limits)).ok()?;
            (headers, call.embed)
        }
        Some(body) => (
            envelope.headers,
            split_body(body, limits).ok().and_then(|call| call.embed),
        ),
        None => (envelope.headers, None),
    };
    let named = |value| optional_name(value, "", limits).ok().and(value);
    let headers = Headers {
        eta: None,
        expires: None,
        timelimit: None,
        root_id: named(headers.root_id),
        parent_id: named(headers.parent_id),
        group: named(headers.group),
        origin: named(headers.origin),
        ..headers
    };
    let properties = Properties {
        correlation_id: named(envelope.properties.correlation_id),
        reply_to: named(envelope.properties.reply_to),
        routing_key: named(envelope.properties.routing_key),
        exchange: named(envelope.properties.exchange),
        ..envelope.properties
    };
    let call = Call {
        args: Cow::Borrowed("[]"),
        kwargs: Cow::Borrowed("{}"),
        embed: embed.filter(|embed| embed.starts_with('{')),
    };
    assemble(
        &headers,
        &properties,
        (envelope.all_headers, envelope.may_have_own),
        &call,
        limits,
        &TimeZone::UTC,
    )
    .ok()
}

/// One header of a message, which is not read beyond its headers; `None` if there is none, or no message.
pub fn header(raw: &[u8], name: &str) -> Option<Json> {
    let mut envelope = Envelope::default();
    split(utf8(raw, "message").ok()?, &Limits::default(), &mut envelope).ok()?;
    let headers = Json::trusted(envelope.all_headers?);
    headers.get(name).filter(|value| !value.is_null())
}

/// The labels and the bytes of a message's body, which is not read. Sizes are not limited.
///
/// # Errors
/// [`Malformed`]: no message, or no body.
pub fn body(raw: &[u8]) -> Result<Body<'_>, Malformed> {
    let limits = Limits::default();
    let mut envelope = Envelope::default();
    let body = utf8(raw, "message").and_then(|message| {
        split(message, &limits, &mut envelope).map_err(|source| Reason::Json {
            part: "message",
            source,
        })?;
        Ok(Body {
            content_type: text(envelope.content_type).ok_or(Reason::Missing("content-type"))?,
            content_encoding: text(envelope.content_encoding),
            compression: text(envelope.headers.compression),
            bytes: undo_encoding(&envelope)?,
        })
    });
    body.map_err(|reason| envelope.malformed(reason, &limits))
}

/// What a message says without its body: its labels and the fields of its headers that name it.
pub(super) struct Heading {
    /// Has it a `task` header? Else it is protocol 1, or nothing.
    pub(super) has_task: bool,
    pub(super) id: Option<String>,
    pub(super) task: Option<String>,
    pub(super) parent_id: Option<String>,
    pub(super) expires: Option<jiff::Timestamp>,
    pub(super) origin: Option<Json>,
}

/// Reads a message's headers only. Its size is not limited: it was read before.
pub(super) fn heading(raw: &[u8]) -> Result<Heading, Malformed> {
    let limits = Limits::default();
    let mut envelope = Envelope::default();
    let split = utf8(raw, "message").and_then(|message| {
        split(message, &limits, &mut envelope).map_err(|source| Reason::Json {
            part: "message",
            source,
        })
    });
    split.map_err(|reason| envelope.malformed(reason, &limits))?;
    let headers = &envelope.headers;
    let name = |value| text(value).map(Cow::into_owned);
    Ok(Heading {
        has_task: present(headers.task).is_some(),
        id: name(headers.id),
        task: name(headers.task),
        parent_id: name(headers.parent_id),
        expires: instant(headers.expires, "headers.expires", &TimeZone::UTC).unwrap_or_default(),
        origin: present(headers.origin).map(Json::trusted),
    })
}

/// The spans of the values that count, as they stand in the message.
#[derive(Default)]
pub(super) struct Envelope<'a> {
    body: Option<&'a str>,
    content_type: Option<&'a str>,
    content_encoding: Option<&'a str>,
    all_headers: Option<&'a str>,
    headers: Headers<'a>,
    properties: Properties<'a>,
    /// May there be headers of our own? None: nobody has looked.
    pub(super) may_have_own: Option<bool>,
}

/// How many spans an [`Envelope`] has.
pub(super) const SPANS: usize = 26;

impl<'a> Envelope<'a> {
    /// All spans, always in this order.
    pub(super) fn spans(&mut self) -> [&mut Option<&'a str>; SPANS] {
        let (headers, properties) = (&mut self.headers, &mut self.properties);
        [
            &mut self.body,
            &mut self.content_type,
            &mut self.content_encoding,
            &mut self.all_headers,
            &mut headers.task,
            &mut headers.id,
            &mut headers.eta,
            &mut headers.expires,
            &mut headers.group,
            &mut headers.group_index,
            &mut headers.retries,
            &mut headers.timelimit,
            &mut headers.root_id,
            &mut headers.parent_id,
            &mut headers.argsrepr,
            &mut headers.kwargsrepr,
            &mut headers.origin,
            &mut headers.ignore_result,
            &mut headers.compression,
            &mut properties.correlation_id,
            &mut properties.reply_to,
            &mut properties.priority,
            &mut properties.body_encoding,
            &mut properties.exchange,
            &mut properties.routing_key,
            &mut properties.redelivered,
        ]
    }

    /// All headers, as they stand in the message.
    pub(super) fn all_headers(&self) -> Option<&'a str> {
        self.all_headers
    }

    fn malformed(&self, reason: Reason, limits: &Limits) -> Malformed {
        let known = |value| text(value).filter(|text| is_name(text, limits)).map(Cow::into_owned);
        Malformed {
            reason,
            id: known(self.headers.id),
            task: known(self.headers.task),
        }
    }
}

/// Headers of protocol 2; the fields of the body in protocol 1.
#[derive(Default)]
pub(super) struct Headers<'a> {
    pub(super) task: Option<&'a str>,
    pub(super) id: Option<&'a str>,
    eta: Option<&'a str>,
    expires: Option<&'a str>,
    group: Option<&'a str>,
    group_index: Option<&'a str>,
    retries: Option<&'a str>,
    timelimit: Option<&'a str>,
    root_id: Option<&'a str>,
    parent_id: Option<&'a str>,
    argsrepr: Option<&'a str>,
    kwargsrepr: Option<&'a str>,
    origin: Option<&'a str>,
    ignore_result: Option<&'a str>,
    compression: Option<&'a str>,
}

#[derive(Default)]
struct Properties<'a> {
    correlation_id: Option<&'a str>,
    reply_to: Option<&'a str>,
    priority: Option<&'a str>,
    body_encoding: Option<&'a str>,
    exchange: Option<&'a str>,
    routing_key: Option<&'a str>,
    redelivered: Option<&'a str>,
}

/// The body, split.
pub(super) struct Call<'a> {
    pub(super) args: Cow<'a, str>,
    pub(super) kwargs: Cow<'a, str>,
    pub(super) embed: Option<Cow<'a, str>>,
}

fn read<'a>(
    raw: &'a [u8],
    limits: &Limits,
    zone: &TimeZone,
    bodies: &dyn Bodies,
    envelope: &mut Envelope<'a>,
    split: impl FnOnce(&'a str, &Limits, &mut Envelope<'a>) -> Result<(), JsonError>,
) -> Result<TaskMessage, Reason> {
    if raw.len() > limits.bytes {
        return Err(Reason::Size {
            bytes: raw.len(),
            limit: limits.bytes,
        });
    }
    let message = utf8(raw, "message")?;
    split(message, limits, envelope).map_err(|source| Reason::Json {
        part: "message",
        source,
    })?;
    let decoded = match kind(envelope, bodies)? {
        Kind::Json => undo_encoding(envelope)?,
        Kind::Sealed(labels) => {
            let body = Body {
                bytes: undo_encoding(envelope)?,
                ..labels
            };
            Cow::Owned(bodies.open(body)?.into_bytes())
        }
    };
    let body = utf8(&decoded, "body")?;

    if present(envelope.headers.task).is_none() && body.trim_start().starts_with('{') {
        let (headers, call) = legacy::split(body, bounds(limits))?;
        return assemble(
            &headers,
            &envelope.properties,
            (envelope.all_headers, envelope.may_have_own),
            &call,
            limits,
            zone,
        );
    }
    // Before the body, so that the sender's omission is named and not the consequence.
    required(envelope.headers.task, "headers.task", limits)?;
    let call = split_body(body, limits)?;
    assemble(
        &envelope.headers,
        &envelope.properties,
        (envelope.all_headers, envelope.may_have_own),
        &call,
        limits,
        zone,
    )
}

fn bounds(limits: &Limits) -> Bounds {
    Bounds {
        depth: limits.depth,
        keys: limits.keys,
    }
}

pub(super) fn envelope_bounds(limits: &Limits) -> Bounds {
    Bounds {
        depth: limits.depth,
        keys: limits.keys.min(ENVELOPE_KEYS),
    }
}

fn utf8<'a>(bytes: &'a [u8], part: &'static str) -> Result<&'a str, Reason> {
    let text = std::str::from_utf8(bytes).map_err(|err| Reason::Text {
        part,
        at: err.valid_up_to(),
    })?;
    // Python refuses it as well; without this the reason would be a strange syntax error.
    if text.starts_with('\u{feff}') {
        return Err(Reason::Text { part, at: 0 });
    }
    Ok(text)
}

/// One pass over the envelope. On an error `envelope` keeps what was seen, so that the message can be named.
pub(super) fn split<'a>(message: &'a str, limits: &Limits, envelope: &mut Envelope<'a>) -> Result<(), JsonError> {
    let mut scanner = Scanner::new(message, envelope_bounds(limits));
    scanner.object(|inner, key| {
        match &*key.unescaped() {
            "body" => envelope.body = Some(inner.value()?),
            "content-type" => envelope.content_type = Some(inner.value()?),
            "content-encoding" => envelope.content_encoding = Some(inner.value()?),
            "headers" => {
                // A second `headers` replaces the first, as in Python.
                envelope.headers = Headers::default();
                envelope.all_headers = None;
                if inner.peek() == Some(b'{') {
                    let start = inner.at();
                    inner.object(|inner, key| {
                        envelope.headers.take(&key.unescaped(), inner.value()?);
                        Ok(())
                    })?;
                    envelope.all_headers = message.get(start..inner.at());
                } else {
                    inner.value()?;
                }
            }
            "properties" => {
                envelope.properties = Properties::default();
                if inner.peek() == Some(b'{') {
                    inner.object(|inner, key| envelope.properties.take(&key.unescaped(), inner))?;
                } else {
                    inner.value()?;
                }
            }
            _ => drop(inner.value()?),
        }
        Ok(())
    })?;
    scanner.end()
}

impl<'a> Headers<'a> {
    /// Remembers one of the values that count.
    pub(super) fn take(&mut self, name: &str, value: &'a str) {
        let place = match name {
            "task" => &mut self.task,
            "id" => &mut self.id,
            "eta" => &mut self.eta,
            "expires" => &mut self.expires,
            "group" => &mut self.group,
            "group_index" => &mut self.group_index,
            "retries" => &mut self.retries,
            "timelimit" => &mut self.timelimit,
            "root_id" => &mut self.root_id,
            "parent_id" => &mut self.parent_id,
            "argsrepr" => &mut self.argsrepr,
            "kwargsrepr" => &mut self.kwargsrepr,
            "origin" => &mut self.origin,
            "ignore_result" => &mut self.ignore_result,
            "compression" => &mut self.compression,
            _ => return,
        };
        *place = Some(value);
    }
}

impl<'a> Properties<'a> {
    fn take(&mut self, name: &str, scanner: &mut Scanner<'a>) -> Result<(), JsonError> {
        let place = match name {
            "correlation_id" => &mut self.correlation_id,
            "reply_to" => &mut self.reply_to,
            "priority" => &mut self.priority,
            "body_encoding" => &mut self.body_encoding,
            "delivery_info" if scanner.peek() == Some(b'{') => {
                (self.exchange, self.routing_key, self.redelivered) = (None, None, None);
                return scanner.object(|inner, key| {
                    let value = inner.value()?;
                    match &*key.unescaped() {
                        "exchange" => self.exchange = Some(value),
                        "routing_key" => self.routing_key = Some(value),
                        "redelivered" => self.redelivered = Some(value),
                        _ => {}
                    }
                    Ok(())
                });
            }
            _ => return scanner.value().map(drop),
        };
        *place = Some(scanner.value()?);
        Ok(())
    }
}

/// What a body is, by its labels.
enum Kind<'a> {
    Json,
    /// Something that has to be opened; without its bytes.
    Sealed(Body<'a>),
}

/// Refuses by its labels alone what nobody reads.
fn kind<'a>(envelope: &Envelope<'a>, bodies: &dyn Bodies) -> Result<Kind<'a>, Reason> {
    let kind = text(envelope.content_type).ok_or(Reason::Missing("content-type"))?;
    if !bodies.accepts(&kind) {
        return Err(Reason::ContentType(quoted(&kind)));
    }
    let content_encoding = present(envelope.content_encoding)
        .map(|value| {
            // `binary` asks for no character decoding, and then a text is UTF-8 all the same.
            text(Some(value))
                .filter(|name| {
                    ["utf-8", "utf8", "us-ascii", "ascii", "binary"]
                        .iter()
                        .any(|known| name.eq_ignore_ascii_case(known))
                })
                .ok_or_else(|| Reason::Encoding {
                    field: "content-encoding",
                    found: named(value),
                })
        })
        .transpose();
    let compression = present(envelope.headers.compression)
        .map(|value| text(Some(value)).ok_or_else(|| Reason::Compression(named(value))))
        .transpose()?;
    let content_encoding = match (content_encoding, &compression) {
        (content_encoding, None) => content_encoding?,
        // Compressed bytes have no character set, whatever the label says of what is inside.
        (content_encoding, Some(_)) => content_encoding.ok().flatten(),
    };
    if kind == JSON && compression.is_none() {
        return Ok(Kind::Json);
    }
    Ok(Kind::Sealed(Body {
        content_type: kind,
        content_encoding,
        compression,
        bytes: Cow::Borrowed(&[]),
    }))
}

/// The body's bytes, after `body_encoding`.
fn undo_encoding<'a>(envelope: &Envelope<'a>) -> Result<Cow<'a, [u8]>, Reason> {
    let body = present(envelope.body).ok_or(Reason::Missing("body"))?;
    let body = text(Some(body)).ok_or(Reason::Field {
        field: "body",
        expected: "text",
    })?;
    let encoding = present(envelope.properties.body_encoding);
    let name = encoding.map(|value| text(Some(value)).unwrap_or_default());
    match name.as_deref() {
        None | Some("utf-8") => Ok(match body {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        }),
        Some("base64") => base64_simd::STANDARD
            .decode_to_vec(body.as_bytes())
            .or_else(|_| BASE64.decode(body.as_bytes()))
            .or_else(|_| {
                // Line breaks, as MIME writers put them.
                let joined: Vec<u8> = body.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
                BASE64.decode(joined)
            })
            .map(Cow::Owned)
            .map_err(|_| Reason::Encoding {
                field: "body_encoding",
                found: quoted("base64"),
            }),
        Some(_) => Err(Reason::Encoding {
            field: "body_encoding",
            found: named(encoding.unwrap_or_default()),
        }),
    }
}

/// The arguments of a body that has nothing else, as most have; `None` where it has, or is broken.
fn only_args<'a>(body: &'a str, limits: &Limits) -> Option<&'a str> {
    let rest = body.strip_suffix(']')?.strip_suffix(NO_EMBED)?;
    let inside = rest.strip_suffix(", {}, ")?.strip_prefix('[')?;
    let bounds = Bounds {
        depth: limits.depth.checked_sub(1)?,
        keys: limits.keys.checked_sub(4)?, // Those of the embed.
    };
    let mut scanner = Scanner::new(inside, bounds);
    let args = scanner.value().ok()?;
    scanner.end().ok()?;
    Some(args)
}

/// `[args, kwargs, embed]`, without decoding any of the three.
fn split_body<'a>(body: &'a str, limits: &Limits) -> Result<Call<'a>, Reason> {
    if let Some(args) = only_args(body, limits) {
        return Ok(Call {
            args: Cow::Borrowed(args),
            kwargs: Cow::Borrowed("{}"),
            embed: Some(Cow::Borrowed(NO_EMBED)),
        });
    }
    let broken = |source| Reason::Json { part: "body", source };
    let mut scanner = Scanner::new(body, bounds(limits));
    let mut parts: [&str; 3] = [""; 3];
    let mut count = 0;
    if scanner.peek() == Some(b'[') {
        scanner
            .array(|inner| {
                let value = inner.value()?;
                if let Some(part) = parts.get_mut(count) {
                    *part = value;
                }
                count += 1;
                Ok(())
            })
            .map_err(broken)?;
    } else {
        scanner.value().map_err(broken)?;
    }
    scanner.end().map_err(broken)?;
    if count != parts.len() {
        return Err(Reason::Field {
            field: "body",
            expected: "[args, kwargs, embed]",
        });
    }
    let [args, kwargs, embed] = parts;
    Ok(Call {
        args: Cow::Borrowed(args),
        kwargs: Cow::Borrowed(kwargs),
        embed: present(Some(embed)).map(Cow::Borrowed),
    })
}

fn assemble(
    headers: &Headers<'_>,
    properties: &Properties<'_>,
    (all_headers, may_have_own): (Option<&str>, Option<bool>),
    call: &Call<'_>,
    limits: &Limits,
    zone: &TimeZone,
) -> Result<TaskMessage, Reason> {
    let name = |value, field| optional_name(value, field, limits);
    let time = |value, field| instant(value, field, zone);
    Ok(TaskMessage {
        task: required(headers.task, "headers.task", limits)?,
        id: required(headers.id, "headers.id", limits)?,
        args: shaped(&call.args, '[', "args", "an array")?,
        kwargs: shaped(&call.kwargs, '{', "kwargs", "an object")?,
        embed: call
            .embed
            .as_deref()
            .map(|embed| shaped(embed, '{', "embed", "an object or null"))
            .transpose()?,
        retries: count(headers.retries),
        eta: time(headers.eta, "headers.eta")?,
        expires: time(headers.expires, "headers.expires")?,
        time_limit: time_limit(headers.timelimit)?,
        root_id: name(headers.root_id, "headers.root_id")?,
        parent_id: name(headers.parent_id, "headers.parent_id")?,
        group: name(headers.group, "headers.group")?,
        group_index: present(headers.group_index).and_then(|value| value.parse().ok()),
        ignore_result: match headers.ignore_result {
            Some("true") => Some(true),
            Some("false") => Some(false),
            _ => None,
        },
        correlation_id: name(properties.correlation_id, "properties.correlation_id")?,
        reply_to: name(properties.reply_to, "properties.reply_to")?,
        origin: name(headers.origin, "headers.origin")?,
        argsrepr: text(headers.argsrepr).map(Cow::into_owned),
        kwargsrepr: text(headers.kwargsrepr).map(Cow::into_owned),
        priority: priority(properties.priority),
        queue: name(properties.routing_key, "properties.delivery_info.routing_key")?.unwrap_or_default(),
        exchange: name(properties.exchange, "properties.delivery_info.exchange")?.unwrap_or_default(),
        redelivered: properties.redelivered == Some("true"),
        has_own_headers: may_have_own.unwrap_or_else(|| all_headers.is_some_and(super::may_have_own)),
        headers: all_headers.map_or_else(Json::empty_object, Json::trusted),
    })
}
