//! The message of the next try: the old one with a few values replaced, everything else byte for byte.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::ops::Range;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::decode::{Heading, heading};
use super::encode::expiration;
use super::{Limits, Malformed, NewTask, Reason, TaskMessage, decode};
use crate::json::{Json, JsonError};
use crate::scan::{Bounds, Scanner};
use crate::{time, write};

/// What the next try changes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Retry {
    /// Tries so far, this one included: 1 after the first run.
    pub retries: u32,
    /// When to run it; `None`: at once.
    pub eta: Option<Timestamp>,
    /// A fresh one for the new copy; empty keeps the old.
    pub delivery_tag: String,
    /// To bring the property `expiration` up to date, if the message has one.
    pub now: Option<Timestamp>,
    /// Headers to set or replace.
    pub headers: Vec<(String, Json)>,
}

/// The message of the next try, as Celery's worker would publish it.
///
/// # Guarantees
/// `retries`, `eta`, `parent_id` (the task's own id, if there was none), `delivery_tag`, `expiration`, `origin` among the
/// properties, and a `redelivered` mark (back to false) are as Celery sets them; the given headers are set. All other
/// bytes, the body among them, are those of `raw`: the body is not even read, so that serializer, compression and
/// signature stay. A protocol 1 message, whose body is all it has, comes out as protocol 2, as from Celery; if its
/// body is not plain JSON, whoever read it makes [`next_try`] of it.
///
/// # Errors
/// [`Malformed`]: no message, or of protocol 1 and not to be read.
pub fn retry(raw: &[u8], retry: &Retry) -> Result<Vec<u8>, Malformed> {
    let heading = heading(raw)?;
    if heading.has_task {
        return changes(retry, &heading).apply(raw, &heading);
    }
    let limits = Limits {
        bytes: usize::MAX, // It was read before, under whatever limit.
        ..Limits::default()
    };
    let message = decode(raw, &limits, &TimeZone::UTC)?;
    Ok(next_try(&message, retry).encode())
}

fn changes(retry: &Retry, heading: &Heading) -> Edit {
    let Retry {
        retries,
        eta,
        delivery_tag,
        now,
        headers,
    } = retry;
    let mut edit = Edit::default();
    edit.header("eta", eta.map_or_else(Json::null, |eta| Json::string(&time::iso(eta))));
    edit.header("retries", Json::of(retries));
    if heading.parent_id.as_deref().is_none_or(str::is_empty)
        && let Some(id) = &heading.id
    {
        edit.header("parent_id", Json::string(id));
    }
    for (name, value) in headers {
        edit.header(name, value.clone());
    }
    if !delivery_tag.is_empty() {
        edit.properties
            .push(("delivery_tag".into(), Json::string(delivery_tag)));
    }
    if let (Some(expires), Some(now)) = (heading.expires, *now) {
        edit.expiration = Some(Json::string(&expiration(expires, now).to_string()));
    }
    edit.origin.clone_from(&heading.origin);
    edit.clear_redelivered = true;
    edit
}

/// The same message with these headers set or replaced, everything else byte for byte.
///
/// # Errors
/// [`Malformed`]: no message.
pub fn with_headers(raw: &[u8], headers: &[(&str, Json)]) -> Result<Vec<u8>, Malformed> {
    let heading = heading(raw)?;
    let mut edit = Edit::default();
    for (name, value) in headers {
        edit.header(name, value.clone());
    }
    edit.apply(raw, &heading)
}

/// The next try of a message as one of its own, for a protocol 1 message, which cannot be changed in place.
pub fn next_try(message: &TaskMessage, retry: &Retry) -> NewTask {
    let Retry {
        retries,
        eta,
        delivery_tag,
        now,
        headers,
    } = retry.clone();
    NewTask {
        retries,
        eta,
        delivery_tag,
        sent_at: now,
        headers,
        parent_id: message.parent_id.clone().or_else(|| Some(message.id.clone())),
        ..NewTask::from(message)
    }
}

/// The changes to one message: spans are replaced where a key is there already, else text goes to the object's end.
#[derive(Default)]
struct Edit {
    headers: Vec<(String, Json)>,
    properties: Vec<(String, Json)>,
    /// Written only over an `expiration` that is there.
    expiration: Option<Json>,
    /// Written only where the properties have none; Celery puts it behind `reply_to`.
    origin: Option<Json>,
    clear_redelivered: bool,
}

/// Text to put in place of a span.
struct Splice {
    span: Range<usize>,
    text: String,
}

/// Where the entries of an object are.
struct Entry<'a> {
    key: Cow<'a, str>,
    value: Range<usize>,
}

impl Edit {
    /// A second value for a name replaces the first: one span cannot be spliced twice.
    fn header(&mut self, name: &str, value: Json) {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value));
    }

    fn apply(&self, raw: &[u8], heading: &Heading) -> Result<Vec<u8>, Malformed> {
        let malformed = |reason| Malformed {
            reason,
            id: heading.id.clone(),
            task: heading.task.clone(),
        };
        let text = std::str::from_utf8(raw).map_err(|err| {
            malformed(Reason::Text {
                part: "message",
                at: err.valid_up_to(),
            })
        })?;
        let mut splices = self.splices(text).map_err(|source| {
            malformed(Reason::Json {
                part: "message",
                source,
            })
        })?;
        splices.sort_by_key(|splice| splice.span.start);
        let mut out = String::with_capacity(text.len() + 128);
        let mut at = 0;
        for Splice { span, text: new } in splices {
            out.push_str(&text[at..span.start]);
            out.push_str(&new);
            at = span.end;
        }
        out.push_str(&text[at..]);
        Ok(out.into_bytes())
    }

    fn splices(&self, text: &str) -> Result<Vec<Splice>, JsonError> {
        let mut splices = Vec::new();
        for Entry { key, value } in entries(text, 0..text.len())? {
            match &*key {
                "headers" => set(text, value, &self.headers, &mut splices)?,
                "properties" => self.splice_properties(text, value, &mut splices)?,
                _ => {}
            }
        }
        Ok(splices)
    }

    fn splice_properties(&self, text: &str, object: Range<usize>, splices: &mut Vec<Splice>) -> Result<(), JsonError> {
        let entries = entries(text, object.clone())?;
        let mut properties = self.properties.clone();
        let has = |name: &str| entries.iter().any(|entry| entry.key == name);
        if let Some(expiration) = self.expiration.clone().filter(|_| has("expiration")) {
            properties.push(("expiration".into(), expiration));
        }
        if let Some(origin) = self.origin.clone().filter(|_| !has("origin")) {
            match entries.iter().rev().find(|entry| entry.key == "reply_to") {
                Some(before) => splices.push(Splice {
                    span: before.value.end..before.value.end,
                    text: format!(", \"origin\": {origin}"),
                }),
                None => properties.push(("origin".into(), origin)),
            }
        }
        if self.clear_redelivered {
            for info in entries.iter().filter(|entry| entry.key == "delivery_info") {
                let marks = self::entries(text, info.value.clone())?;
                splices.extend(
                    marks
                        .into_iter()
                        .filter(|mark| mark.key == "redelivered")
                        .map(|mark| Splice {
                            span: mark.value,
                            text: "false".into(),
                        }),
                );
            }
        }
        set(text, object, &properties, splices)
    }
}

/// The entries of the object at `span`; none if something else is there.
fn entries(text: &str, span: Range<usize>) -> Result<Vec<Entry<'_>>, JsonError> {
    let mut entries = Vec::new();
    let mut scanner = Scanner::new(
        &text[span.clone()],
        Bounds {
            depth: u32::MAX,
            keys: u32::MAX,
        },
    );
    if scanner.peek() == Some(b'{') {
        scanner.object(|inner, key| {
            let value = inner.value()?;
            let end = span.start + inner.at();
            entries.push(Entry {
                key: key.unescaped(),
                value: end - value.len()..end,
            });
            Ok(())
        })?;
    }
    Ok(entries)
}

/// Replaces the values of these keys in the object at `span`, or adds the keys at its end.
fn set(text: &str, span: Range<usize>, values: &[(String, Json)], splices: &mut Vec<Splice>) -> Result<(), JsonError> {
    if !text[span.clone()].starts_with('{') {
        return Ok(());
    }
    let entries = entries(text, span.clone())?;
    let mut added = String::new();
    for (name, value) in values {
        let mut places = entries.iter().filter(|entry| entry.key == *name).peekable();
        if places.peek().is_none() {
            if !(entries.is_empty() && added.is_empty()) {
                added.push_str(", ");
            }
            write::string(&mut added, name);
            // Writing to a String cannot fail.
            let _ = write!(added, ": {value}");
        }
        // A doubled key is replaced each time: its last value counts, whatever the reader does.
        splices.extend(places.map(|entry| Splice {
            span: entry.value.clone(),
            text: value.to_string(),
        }));
    }
    let brace = span.end - 1;
    splices.push(Splice {
        span: brace..brace,
        text: added,
    });
    Ok(())
}
