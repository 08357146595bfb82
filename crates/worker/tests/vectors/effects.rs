//! What commands amount to, whoever sent them: pushed messages, result documents, chord keys, events, answers.

use base64::Engine as _;
use serde_json::{Value, json};

use crate::monitor::Command;

/// The effects of a worker, each kind in its order.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Task messages: list and envelope, the body decoded.
    pub(crate) messages: Vec<Value>,
    /// Result documents: key, TTL in seconds, document.
    pub(crate) documents: Vec<Value>,
    /// What was published under the keys of results.
    pub(crate) published: Vec<Value>,
    /// Chords: sizes, parts, saved groups.
    pub(crate) chords: Vec<Value>,
    /// Events, each by itself, with channel and envelope.
    pub(crate) events: Vec<Value>,
    /// Answers to remote control.
    pub(crate) answers: Vec<Value>,
}

impl Effects {
    /// `own` are task messages that were there before: one that goes back to its list is no new one.
    pub(crate) fn of(commands: &[Command], own: &[Vec<u8>]) -> Effects {
        let mut effects = Effects::default();
        for command in commands {
            effects.add(command, own);
        }
        effects
    }

    fn add(&mut self, command: &Command, own: &[Vec<u8>]) {
        let (name, key) = (command.text(0).to_uppercase(), command.text(1));
        let last = command.parts.last().map_or(&[][..], Vec::as_slice);
        match name.as_str() {
            "LPUSH" | "RPUSH" if key.contains(".reply.") => self.answers.push(sealed(&key, last)),
            // Parts that end together are counted together.
            "RPUSH" if key.starts_with("celery-taskset-meta-") => {
                let parts = command.parts.iter().skip(2);
                self.chords
                    .extend(parts.map(|part| json!({"part": key, "score": null, "value": value(part)})));
            }
            "LPUSH" | "RPUSH" if !key.contains("umbel:") && !own.iter().any(|raw| raw == last) => {
                self.messages.push(sealed(&key, last));
            }
            "SET" | "SETEX" if key.contains("celery-task-meta-") => {
                let (ttl, document) = stored(command);
                self.documents
                    .push(json!({"key": key, "ttl": ttl, "document": value(document)}));
            }
            "PUBLISH" if key.contains("celery-task-meta-") => {
                self.published.push(json!({"key": key, "document": value(last)}));
            }
            "PUBLISH" if key.contains("celeryev") => self.add_events(&key, last),
            "SET" | "SETEX" if key.contains("celery-taskset-meta-") && !is_claim(&key) => {
                let (ttl, stored) = stored(command);
                self.chords
                    .push(json!({"set": key, "ttl": ttl, "value": value(stored)}));
            }
            "SET" if is_claim(&key) && command.text(2) == "done" => {
                self.chords.push(json!({"done": key, "ttl": command.text(4)}));
            }
            "ZADD" if key.contains("celery-taskset-meta-") => {
                let parts = command.parts[2..].chunks_exact(2);
                self.chords.extend(parts.map(
                    |pair| json!({"part": key, "score": String::from_utf8_lossy(&pair[0]), "value": value(&pair[1])}),
                ));
            }
            "INCRBY" if key.contains("celery-taskset-meta-") => {
                self.chords.push(json!({"extra": key, "by": command.text(2)}));
            }
            _ => {}
        }
    }

    fn add_events(&mut self, channel: &str, payload: &[u8]) {
        let envelope = sealed(channel, payload);
        let events = match &envelope["body"] {
            Value::Array(events) => events.clone(),
            event => vec![event.clone()],
        };
        for event in events {
            let mut envelope = envelope.clone();
            envelope["body"] = event;
            self.events.push(envelope);
        }
    }
}

/// Who dispatches a chord's body, and later that it was dispatched.
fn is_claim(key: &str) -> bool {
    key.rsplit_once('.').is_some_and(|(_, part)| part == "c")
}

/// Time to live and value of `SET key value [EX ttl]` and `SETEX key ttl value`.
fn stored(command: &Command) -> (Option<u64>, &[u8]) {
    if command.text(0).eq_ignore_ascii_case("SETEX") {
        return (command.text(2).parse().ok(), &command.parts[3]);
    }
    let parts = &command.parts;
    let ex = parts.iter().position(|part| part.eq_ignore_ascii_case(b"EX"));
    let ttl = ex.and_then(|at| command.text(at + 1).parse().ok());
    (ttl, &parts[2])
}

/// JSON where it is JSON, else the text.
fn value(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(bytes)))
}

/// An envelope with its body decoded and the list or channel it went to.
fn sealed(to: &str, payload: &[u8]) -> Value {
    let mut envelope = value(payload);
    if envelope.is_object() {
        envelope["body"] = body(&envelope);
        envelope["to"] = json!(to);
        return envelope;
    }
    json!({"to": to, "text": envelope})
}

/// The body of an envelope; as text where it is not plain JSON.
pub(crate) fn body(envelope: &Value) -> Value {
    let text = envelope["body"].as_str().unwrap_or_default();
    let bytes = match envelope["properties"]["body_encoding"].as_str() {
        Some("base64") => base64::engine::general_purpose::STANDARD
            .decode(text)
            .unwrap_or_else(|_| text.as_bytes().to_vec()),
        _ => text.as_bytes().to_vec(),
    };
    // NaN has no typed form; none of the bodies that are compared has one.
    value(&bytes)
}
