//! Captures of Celery's canvas, replayed task by task against this crate.

#![allow(clippy::unwrap_used, clippy::panic, dead_code, unreachable_pub, missing_docs)]

use std::collections::HashMap;
use std::path::Path;

use base64::Engine as _;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;
use umbel_protocol::canvas::{
    Aftermath, ChordEnd, ChordKeys, ChordPart, FollowUp, Sender, Signature, after_failure, after_success,
    complete_chord,
};
use umbel_protocol::json::Json;
use umbel_protocol::message::{Limits, NewTask, TaskMessage, decode};
use umbel_protocol::result::Failure;

fn vector(name: &str) -> Value {
    let path = Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join(format!("tests/golden/{name}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn commands(vector: &Value) -> Vec<Vec<String>> {
    let events = vector["redis"].as_array().unwrap().iter();
    let commands = events.filter_map(|event| event["cmd"].as_array());
    commands
        .map(|command| {
            command
                .iter()
                .map(|part| part.as_str().unwrap_or_default().to_owned())
                .collect()
        })
        .collect()
}

pub fn read(raw: &str) -> TaskMessage {
    decode(raw.as_bytes(), &Limits::default(), &TimeZone::UTC).unwrap()
}

pub fn json(value: &Json) -> Value {
    value.to().unwrap()
}

/// Runs `f` with a sender whose ids are `fresh-1`, `fresh-2`...
pub fn with_sender<T>(f: impl FnOnce(&mut Sender<'_>) -> T) -> T {
    let mut count = 0;
    let mut ids = || {
        count += 1;
        format!("fresh-{count}")
    };
    f(&mut Sender {
        now: Timestamp::UNIX_EPOCH,
        origin: "gen1@here",
        reply_to: "fresh-reply",
        priority: 0,
        ids: &mut ids,
        is_function: &|_| false,
    })
}

/// Is `ours` the same as `theirs`, but for `null`s in objects, and ids that we made up?
pub fn same(ours: &Value, theirs: &Value, names: &mut HashMap<String, String>) -> bool {
    match (ours, theirs) {
        (Value::String(ours), Value::String(theirs)) if ours == "fresh-reply" => !theirs.is_empty(),
        (Value::String(ours), Value::String(theirs)) if ours.starts_with("fresh-") => {
            names.entry(ours.clone()).or_insert_with(|| theirs.clone()) == theirs
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(ours, theirs)| same(ours, theirs, names))
        }
        (Value::Object(ours), Value::Object(theirs)) => {
            let keys = ours.keys().chain(theirs.keys());
            let get = |map: &serde_json::Map<String, Value>, key: &str| map.get(key).cloned().unwrap_or(Value::Null);
            keys.into_iter()
                .all(|key| same(&get(ours, key), &get(theirs, key), names))
        }
        _ => ours == theirs,
    }
}

/// Headers, body and properties, without what differs by nature.
pub fn content(raw: &[u8]) -> Value {
    let mut envelope: Value = serde_json::from_slice(raw).unwrap();
    let body = envelope["body"].as_str().unwrap();
    let body = base64::engine::general_purpose::STANDARD.decode(body).unwrap();
    envelope["body"] = serde_json::from_slice(&body).unwrap();
    for header in ["origin", "ignore_result"] {
        envelope["headers"].as_object_mut().unwrap().remove(header);
    }
    envelope["properties"].as_object_mut().unwrap().remove("delivery_tag");
    envelope
}

/// A capture, replayed task by task.
pub struct Replay {
    name: String,
    /// Every task message, in the order of sending.
    pub sent: Vec<String>,
    pub commands: Vec<Vec<String>>,
    chords: HashMap<String, Vec<(String, Json)>>,
    sizes: HashMap<String, i64>,
    names: HashMap<String, String>,
}

impl Replay {
    pub fn of(name: &str) -> Replay {
        let commands = commands(&vector(name));
        let sent = commands
            .iter()
            .filter(|command| command[0] == "LPUSH" && command[2].contains("\"task\""));
        let mut sizes = HashMap::new();
        for command in &commands {
            let key = command.get(1).map_or("", String::as_str);
            let group = |suffix| {
                key.strip_prefix("celery-taskset-meta-")
                    .and_then(|key| key.strip_suffix(suffix))
            };
            let size: Option<i64> = command.iter().skip(2).find_map(|part| part.parse().ok());
            match (command[0].as_str(), group(".s"), group(".t")) {
                // An older version wrote `SETEX key ttl size`.
                ("SETEX", Some(group), _) => drop(sizes.insert(group.to_owned(), command[3].parse().unwrap())),
                ("SET", Some(group), _) | ("INCRBY", _, Some(group)) => {
                    *sizes.entry(group.to_owned()).or_insert(0) += size.unwrap();
                }
                _ => {}
            }
        }
        Replay {
            name: name.to_owned(),
            sent: sent.map(|command| command[2].clone()).collect(),
            commands,
            chords: HashMap::new(),
            sizes,
            names: HashMap::new(),
        }
    }

    pub fn published(&self) -> Vec<Value> {
        let results = self
            .commands
            .iter()
            .filter(|command| command[0] == "PUBLISH" && command[1].starts_with("celery-task-meta-"));
        results
            .map(|command| serde_json::from_str(&command[2]).unwrap())
            .collect()
    }

    /// Ends every task as it ended, and compares. Answers how many messages followed from others.
    pub fn run(&mut self) -> usize {
        let mut followed = 0;
        for document in self.published() {
            let id = document["task_id"].as_str().unwrap().to_owned();
            let runs = self.sent.iter().filter(|raw| read(raw).id == id);
            let Some(raw) = runs.cloned().next_back() else { continue };
            let message = read(&raw);
            let result = Json::of(&document["result"]);
            let (aftermath, children_stored) = match document["status"].as_str().unwrap() {
                "SUCCESS" => (
                    with_sender(|sender| after_success(&message, &result, sender)).unwrap(),
                    true,
                ),
                "FAILURE" => {
                    let cause = Failure::parse(&result).unwrap();
                    let traceback = document["traceback"].as_str();
                    (
                        with_sender(|sender| after_failure(&message, &cause, traceback, sender)).unwrap(),
                        false,
                    )
                }
                _ => continue,
            };
            if children_stored {
                let children = Value::Array(aftermath.children.iter().map(|child| json(&child.to_json())).collect());
                let mut names = HashMap::new();
                assert!(
                    same(&children, &document["children"], &mut names),
                    "{}: {children}",
                    self.name
                );
            }
            let mut messages = self.carry_out(&aftermath, &document, Some(&message));
            let expected: Vec<&String> = self
                .sent
                .iter()
                .filter(|raw| read(raw).parent_id.as_deref() == Some(&*id) && read(raw).id != id)
                .collect();
            followed += expected.len();
            assert_eq!(messages.len(), expected.len(), "{}: {id}: {messages:?}", self.name);
            let mut names = std::mem::take(&mut self.names);
            for (ours, theirs) in messages.drain(..).zip(expected) {
                let (ours, theirs) = (content(&ours.encode()), content(theirs.as_bytes()));
                assert!(
                    same(&ours, &theirs, &mut names),
                    "{}:\nours   {ours}\ntheirs {theirs}",
                    self.name
                );
            }
        }
        followed
    }

    /// Checks what was stored and counted; answers what was sent.
    fn carry_out(&mut self, aftermath: &Aftermath, of: &Value, message: Option<&TaskMessage>) -> Vec<NewTask> {
        let mut sent = Vec::new();
        for step in &aftermath.steps {
            match step {
                FollowUp::Send(out) => sent.push(out.task.clone()),
                FollowUp::Part(part) => sent.extend(self.count(part, message.unwrap())),
                FollowUp::Store(stored) => self.stored(&stored.id, &stored.document),
                FollowUp::ChordSize { group, size } => {
                    assert_eq!(self.sizes[group], i64::try_from(*size).unwrap(), "{}: {of}", self.name);
                }
                FollowUp::Call(_) | FollowUp::SaveGroup { .. } | FollowUp::Extend { .. } => {
                    panic!("{}: {step:?}", self.name)
                }
            }
        }
        sent
    }

    fn stored(&self, id: &str, document: &[u8]) {
        let strip = |mut document: Value| {
            let object = document.as_object_mut().unwrap();
            object.remove("date_done");
            object.remove("traceback");
            document
        };
        let ours = strip(serde_json::from_slice(document).unwrap());
        let mut theirs = self
            .published()
            .into_iter()
            .filter(|document| document["task_id"] == id);
        let theirs = strip(theirs.next().unwrap_or_else(|| panic!("{}: {id}", self.name)));
        assert!(
            same(&ours, &theirs, &mut HashMap::new()),
            "{}:\n{ours}\n{theirs}",
            self.name
        );
    }

    fn count(&mut self, part: &ChordPart, message: &TaskMessage) -> Vec<NewTask> {
        let keys = ChordKeys::of(&part.group);
        let has = |wanted: &[&str]| {
            self.commands
                .iter()
                .any(|command| command.iter().zip(wanted).all(|(ours, theirs)| ours == theirs))
        };
        let text = part.json.as_str();
        assert!(
            has(&["ZADD", &keys.parts, &part.score(), text]) || has(&["RPUSH", &keys.parts, text]),
            "{}: {text}",
            self.name
        );
        assert!(
            has(&["SADD", &keys.counted, &part.member()]) || self.name.starts_with("compat"),
            "{}",
            self.name
        );
        let saved = self
            .commands
            .iter()
            .find(|command| command[0] == "SET" && command[1] == keys.group);
        let saved = saved.map(|command| Json::parse(&command[2]).unwrap());
        let parts = self.chords.entry(part.group.clone()).or_default();
        parts.push((part.score(), part.json.clone()));
        if i64::try_from(parts.len()).unwrap() < self.sizes[&part.group] {
            return Vec::new();
        }
        // As a sorted set: by score, then by the bytes.
        parts.sort_by_key(|(score, json)| (score.parse::<i64>().unwrap_or(i64::MAX), json.to_string()));
        let parts: Vec<Json> = parts.iter().map(|(_, json)| json.clone()).collect();
        let end = with_sender(|sender| complete_chord(message, part, &parts, saved.as_ref(), sender)).unwrap();
        match end {
            ChordEnd::Body(aftermath) => self.carry_out(&aftermath, &Value::Null, None),
            ChordEnd::Failed(aftermath) => {
                // Sent under the body's id, not under the member's.
                let errbacks = self.carry_out(&aftermath, &Value::Null, None);
                for (ours, theirs) in errbacks.iter().zip(self.sent.iter().rev()) {
                    let (ours, theirs) = (content(&ours.encode()), content(theirs.as_bytes()));
                    assert!(
                        same(&ours, &theirs, &mut HashMap::new()),
                        "{}:\n{ours}\n{theirs}",
                        self.name
                    );
                }
                assert_eq!(
                    errbacks.len(),
                    usize::from(self.name.contains("errback")),
                    "{}",
                    self.name
                );
                Vec::new()
            }
        }
    }
}

/// The message with this id, the first of them.
pub fn message(sent: &[String], id: &str) -> TaskMessage {
    sent.iter()
        .map(|raw| read(raw))
        .find(|message| message.id == id)
        .unwrap()
}

pub fn sends(aftermath: &Aftermath) -> Vec<Value> {
    let steps = aftermath.steps.iter();
    let sent = steps.filter_map(|step| match step {
        FollowUp::Send(out) => Some(content(&out.task.encode())),
        _ => None,
    });
    sent.collect()
}

pub fn signature(text: &str) -> Signature {
    Signature::parse(&Json::parse(text).unwrap()).unwrap()
}

pub fn call(task: &str, args: &str) -> Signature {
    Signature::task(task, Json::parse(args).unwrap(), Json::empty_object())
}

pub fn assert_same(ours: &[Value], theirs: &[String]) {
    assert_eq!(ours.len(), theirs.len());
    let mut names = HashMap::new();
    for (ours, theirs) in ours.iter().zip(theirs) {
        let theirs = content(theirs.as_bytes());
        assert!(same(ours, &theirs, &mut names), "\nours   {ours}\ntheirs {theirs}");
    }
}
