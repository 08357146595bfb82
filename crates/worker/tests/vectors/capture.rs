//! The captures of real Celery, split into what the client did and what the worker did.

use std::path::Path;

use serde_json::Value;
use umbel_testkit::repository;

use crate::monitor::Command;

/// A capture.
pub(crate) struct Capture {
    pub(crate) name: String,
    /// What the capture says of itself.
    pub(crate) expect: Value,
    /// Commands in their order.
    pub(crate) commands: Vec<Command>,
}

fn bytes(part: &Value) -> Vec<u8> {
    use base64::Engine as _;
    match part {
        Value::String(text) => text.clone().into_bytes(),
        other => {
            let text = other["b64"].as_str().expect("text, or bytes in base64");
            base64::engine::general_purpose::STANDARD.decode(text).expect("base64")
        }
    }
}

impl Capture {
    pub(crate) fn of(name: &str) -> Capture {
        let path = repository().join(Path::new("crates/protocol/tests/golden").join(format!("{name}.json")));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
        let vector: Value = serde_json::from_str(&text).expect("JSON");
        let events = vector["redis"].as_array().expect("a list").iter();
        let commands = events.filter_map(|event| {
            let parts = event["cmd"].as_array()?;
            let is_script = event["in_lua"] == Value::Bool(true);
            Some(Command {
                client: if is_script { "lua" } else { "celery" }.to_owned(),
                parts: parts.iter().map(bytes).collect(),
            })
        });
        Capture {
            name: name.to_owned(),
            expect: vector["expect"].clone(),
            commands: commands.collect(),
        }
    }

    /// The messages that were pushed to queues: key and element.
    pub(crate) fn pushed(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let pushes = self
            .commands
            .iter()
            .filter(|command| command.text(0) == "LPUSH" && !command.text(1).contains(".reply."));
        pushes
            .map(|command| (command.parts[1].clone(), command.parts[2].clone()))
            .collect()
    }

    /// What the client did, verbatim: the messages that follow from no other, and the sizes of their chords. `0` is the
    /// number of the command.
    pub(crate) fn by_client(&self) -> Vec<(usize, Command)> {
        let is_first = |command: &Command| {
            let envelope: Value = serde_json::from_slice(&command.parts[2]).unwrap_or_default();
            let headers = &envelope["headers"];
            headers["parent_id"].is_null()
                && headers["retries"].as_u64().unwrap_or(0) == 0
                && headers["redelivered"].is_null()
        };
        let mut out = Vec::new();
        // A chord belongs to who pushes its last member, which follows its size.
        let mut held: Vec<(usize, Command)> = Vec::new();
        for (number, command) in self.commands.iter().enumerate() {
            let key = command.text(1);
            match command.text(0).as_str() {
                "LPUSH" if !key.contains(".reply.") && is_first(command) => {
                    let groups = group_of(command);
                    let is_its = |held: &(usize, Command)| {
                        let key = held.1.text(1);
                        groups.iter().any(|group| key.contains(group.as_str()))
                    };
                    let (its, others): (Vec<_>, Vec<_>) = held.drain(..).partition(is_its);
                    held = others;
                    out.extend(its);
                    out.push((number, fresh(command)));
                }
                "SET" | "SETEX" | "DEL" if key.starts_with("celery-taskset-meta-") && command.client != "lua" => {
                    let is_start = match key.rsplit_once('.') {
                        Some((_, "s")) => command.text(0) != "DEL",
                        Some((_, "c")) => command.text(0) == "DEL",
                        Some(_) => false,
                        None => command.text(0) == "SET",
                    };
                    if is_start {
                        held.push((number, command.clone()));
                    }
                }
                _ => {}
            }
        }
        out
    }

    /// What remains: the worker's part.
    pub(crate) fn by_worker(&self) -> Vec<Command> {
        let client: Vec<usize> = self.by_client().into_iter().map(|(number, _)| number).collect();
        let commands = self.commands.iter().enumerate();
        commands
            .filter(|(number, _)| !client.contains(number))
            .map(|(_, command)| command.clone())
            .collect()
    }
}

/// The message as it would be sent now: what expired since the capture was made ends as long after now as it did then.
fn fresh(command: &Command) -> Command {
    let mut command = command.clone();
    let envelope: Value = serde_json::from_slice(&command.parts[2]).unwrap_or_default();
    let left = envelope["properties"]["expiration"]
        .as_str()
        .and_then(|left| left.parse().ok());
    if let (Some(expires), Some(left @ 1..)) = (envelope["headers"]["expires"].as_str(), left) {
        let now = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(left);
        let text = command
            .text(2)
            .replace(expires, &now.strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00").to_string());
        command.parts[2] = text.into_bytes();
    }
    command
}

/// Groups whose member this message, or a step that follows from it, is.
fn group_of(command: &Command) -> Vec<String> {
    let envelope: Value = serde_json::from_slice(&command.parts[2]).unwrap_or_default();
    let mut groups = Vec::new();
    if let Some(group) = envelope["headers"]["group"].as_str() {
        groups.push(group.to_owned());
    }
    collect_groups(&crate::effects::body(&envelope), &mut groups);
    groups
}

fn collect_groups(value: &Value, groups: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect_groups(item, groups)),
        Value::Object(fields) => {
            if let Some(group) = fields.get("group_id").and_then(Value::as_str) {
                groups.push(group.to_owned());
            }
            fields.values().for_each(|value| collect_groups(value, groups));
        }
        _ => {}
    }
}
