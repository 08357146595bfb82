//! Scripts by content hash, and readers for their replies.

use std::sync::LazyLock;

use redis::{Cmd, Value};
use sha1::{Digest, Sha1};

use crate::Error;
use crate::link::{Line, Link};

/// A script of ours: the prelude and its text, called by the hash of both.
pub(crate) struct Script {
    pub(crate) name: &'static str,
    body: String,
    hash: String,
}

/// Scripts that a server also runs when its memory is full: they free memory in the end, as a backlog that fills it can
/// only be worked off, or keep what is held from being taken for abandoned. The others are refused then.
const WITHOUT_MEMORY: [&str; 18] = [
    "ack",
    "close_self",
    "early",
    "gate",
    "goodbye",
    "heartbeat",
    "hello",
    "promote",
    "reclaim",
    "renew",
    "reserve",
    "reserve_suspect",
    "settle",
    "step",
    "store_result",
    "sweep",
    "taker",
    "turns",
];

impl Script {
    fn new(name: &'static str, text: &str) -> Script {
        // Read by servers as the first line of a script; the newline keeps it apart.
        let flags = if WITHOUT_MEMORY.contains(&name) {
            "#!lua flags=allow-oom\n"
        } else {
            ""
        };
        let body = format!("{flags}{}{text}", needed(text));
        let hash = Sha1::digest(body.as_bytes())
            .iter()
            .fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        Script { name, body, hash }
    }
}

/// Of the prelude what a script uses, directly or by way of another part of it: a part begins in its first column with
/// `local` and is defined after all that it uses. Making a function that nobody calls costs as much as a command.
fn needed(text: &str) -> String {
    let prelude = include_str!("scripts/prelude.lua");
    let is_start = |at: &usize| prelude[*at..].starts_with("local ") && (*at == 0 || prelude[..*at].ends_with('\n'));
    let starts: Vec<usize> = prelude
        .match_indices("local ")
        .map(|(at, _)| at)
        .filter(is_start)
        .collect();
    let mut kept: Vec<&str> = Vec::new();
    let mut end = prelude.len();
    for start in starts.into_iter().rev() {
        let part = &prelude[start..end];
        end = start;
        let heading = part.trim_start_matches("local ").trim_start_matches("function ");
        let heading = &heading[..heading.find(['(', '=', '\n']).unwrap_or(heading.len())];
        let is_used = |name: &str| std::iter::once(&text).chain(&kept).any(|user| has_word(user, name));
        if heading.split(',').any(|name| is_used(name.trim())) {
            kept.push(part);
        }
    }
    kept.reverse();
    kept.concat()
}

/// Is the name in a text, not only as a part of a longer one?
fn has_word(text: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(name)
        .any(|(at, _)| !text[..at].ends_with(is_part) && !text[at + name.len()..].starts_with(is_part))
}

macro_rules! scripts {
    ($($constant:ident = $name:literal;)*) => {
        $(pub(crate) static $constant: LazyLock<Script> =
            LazyLock::new(|| Script::new($name, include_str!(concat!("scripts/", $name, ".lua"))));)*
    };
}

scripts! {
    ACK = "ack";
    ADMIT_SELF = "admit_self";
    ADVANCE = "advance";
    ASIDE = "aside";
    CANCEL = "cancel";
    CLOSE_SELF = "close_self";
    DEPTH = "depth";
    DISCARD = "discard";
    EARLY = "early";
    FIRE = "fire";
    FOLLOW = "follow";
    GATE = "gate";
    GOODBYE = "goodbye";
    HELD = "held";
    HEARTBEAT = "heartbeat";
    HELLO = "hello";
    JANITOR = "janitor";
    LEAD = "lead";
    LOOK = "look";
    OVERFLOW = "overflow";
    PARKED = "parked";
    PART = "part";
    PROMOTE = "promote";
    PUBLISH_UNIQUE = "publish_unique";
    PUSH = "push";
    QUEUE_POLICY = "queue_policy";
    PURGE = "purge";
    RECLAIM = "reclaim";
    RECOVER = "recover";
    RELEASE_UNIQUE = "release_unique";
    RENEW = "renew";
    REPLAY = "replay";
    RESERVE = "reserve";
    RESERVE_SUSPECT = "reserve_suspect";
    REVOKE_RESULT = "revoke_result";
    SETTLE = "settle";
    STEP = "step";
    STORE_RESULT = "store_result";
    SWEEP = "sweep";
    TAKER = "taker";
    TARGET = "target";
    TERM = "term";
    TURNS = "turns";
    TRIM = "trim";
}

impl Script {
    /// A call with the whole text, for a pipeline: there nothing can be sent after an answer that it is not known.
    pub(crate) fn whole(&self, prefix: &str) -> Cmd {
        let mut cmd = Cmd::new();
        cmd.arg("EVAL").arg(&self.body).arg(0).arg(prefix);
        cmd
    }
}

/// A call under construction: arguments of any kind, in order.
pub(crate) struct Args<'a> {
    script: &'a Script,
    cmd: Cmd,
}

impl<'a> Args<'a> {
    pub(crate) fn new(script: &'a Script, prefix: &str) -> Args<'a> {
        // No keys are declared: a cluster is not served, and on a connection with CLIENT TRACKING Redis 7.0 would remember
        // all of them again with each read of the script.
        let mut cmd = Cmd::new();
        cmd.arg("EVALSHA").arg(&script.hash).arg(0);
        Args { script, cmd }.arg(prefix)
    }

    pub(crate) fn arg<T: redis::ToRedisArgs>(mut self, value: T) -> Args<'a> {
        self.push(value);
        self
    }

    pub(crate) fn push<T: redis::ToRedisArgs>(&mut self, value: T) {
        self.cmd.arg(value);
    }

    /// Runs the script. A server that does not know it (restart, SCRIPT FLUSH) is sent its text once.
    pub(crate) async fn call(&self, connection: &mut impl Line) -> Result<Answer, Error> {
        let failed = |source| Error::Call {
            call: self.script.name,
            source,
        };
        // Errors arrive inside the value, as any other reply.
        let value = match connection.send(&self.cmd).await.and_then(Value::extract_error) {
            Err(err) if err.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript) => {
                let mut whole = Cmd::new();
                whole.arg("EVAL").arg(&self.script.body);
                // EVALSHA and the hash are the two arguments that differ.
                for arg in self.cmd.args_iter().skip(2) {
                    if let redis::Arg::Simple(bytes) = arg {
                        whole.arg(bytes);
                    }
                }
                connection.send(&whole).await.and_then(Value::extract_error)
            }
            other => other,
        }
        .map_err(failed)?;
        let source = Source {
            call: self.script.name,
            link: connection.link(),
        };
        Ok(Answer { source, value })
    }
}

/// Whose answer it is.
#[derive(Clone)]
struct Source {
    call: &'static str,
    /// The shared connection that it came by. One connection has one owner, who gives it up after any error of ours.
    link: Option<Link>,
}

impl Source {
    /// It is of another shape than the call returns. Most likely it belongs to another call of the same connection, as
    /// then do all that come after it.
    fn wrong(&self, what: String) -> Error {
        if let Some(link) = &self.link {
            link.give_up();
        }
        Error::Reply { call: self.call, what }
    }
}

/// What a script returned. Whatever does not have the shape that is asked for is an [`Error::Reply`], and ends the
/// connection.
pub(crate) struct Answer {
    source: Source,
    value: Value,
}

impl Answer {
    pub(crate) fn value(&self) -> &Value {
        &self.value
    }

    pub(crate) fn reply(self) -> Result<Reply, Error> {
        let Answer { source, value } = self;
        match value {
            Value::Array(items) => Ok(Reply {
                source,
                items: items.into_iter(),
            }),
            other => Err(source.wrong(shape(&other))),
        }
    }

    fn only(self) -> Reply {
        Reply {
            source: self.source,
            items: vec![self.value].into_iter(),
        }
    }

    pub(crate) fn count(self) -> Result<u64, Error> {
        self.only().count()
    }

    pub(crate) fn text(self) -> Result<String, Error> {
        self.only().text()
    }

    pub(crate) fn texts(self) -> Result<Vec<String>, Error> {
        let mut reply = self.reply()?;
        let mut texts = Vec::with_capacity(reply.len());
        while !reply.is_done() {
            texts.push(reply.text()?);
        }
        Ok(texts)
    }
}

/// Reads one reply from front to back; anything unexpected is an [`Error::Reply`].
pub(crate) struct Reply {
    source: Source,
    items: std::vec::IntoIter<Value>,
}

impl Reply {
    /// The error of an answer that cannot be what the call returns.
    pub(crate) fn wrong(&self, what: String) -> Error {
        self.source.wrong(what)
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn is_done(&self) -> bool {
        self.items.len() == 0
    }

    pub(crate) fn value(&mut self) -> Result<Value, Error> {
        self.items
            .next()
            .ok_or_else(|| self.source.wrong("too few items".into()))
    }

    pub(crate) fn array(&mut self) -> Result<Reply, Error> {
        let (source, value) = (self.source.clone(), self.value()?);
        Answer { source, value }.reply()
    }

    pub(crate) fn bytes(&mut self) -> Result<Vec<u8>, Error> {
        match self.value()? {
            Value::BulkString(bytes) => Ok(bytes),
            Value::SimpleString(text) => Ok(text.into_bytes()),
            Value::Nil => Ok(Vec::new()),
            other => Err(self.wrong(shape(&other))),
        }
    }

    pub(crate) fn text(&mut self) -> Result<String, Error> {
        match self.value()? {
            Value::Int(number) => Ok(number.to_string()),
            Value::BulkString(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Value::SimpleString(text) => Ok(text),
            Value::Okay => Ok("OK".into()),
            Value::Nil => Ok(String::new()),
            other => Err(self.wrong(shape(&other))),
        }
    }

    pub(crate) fn number(&mut self) -> Result<i64, Error> {
        let value = self.value()?;
        match &value {
            Value::Int(number) => Ok(*number),
            Value::BulkString(bytes) => std::str::from_utf8(bytes)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| self.wrong(shape(&value))),
            _ => Err(self.wrong(shape(&value))),
        }
    }

    pub(crate) fn count(&mut self) -> Result<u64, Error> {
        Ok(u64::try_from(self.number()?).unwrap_or(0)) // A negative count is a fault that the janitor repairs.
    }

    /// Seconds as text; empty for none.
    pub(crate) fn seconds(&mut self) -> Result<Option<f64>, Error> {
        let text = self.text()?;
        if text.is_empty() {
            return Ok(None);
        }
        text.parse()
            .map(Some)
            .map_err(|_| self.wrong(format!("{text:?} for seconds")))
    }
}

fn shape(value: &Value) -> String {
    match value {
        Value::Nil => "nil".into(),
        Value::Int(_) => "an integer".into(),
        Value::BulkString(bytes) => format!("a string of {} bytes", bytes.len()),
        Value::Array(items) => format!("an array of {}", items.len()),
        _ => "another type".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_carries_what_it_uses_of_the_prelude() {
        for (script, has, has_not) in [
            (
                &ACK,
                &["local function let_go", "local function unrecord"][..],
                "local function lay_aside",
            ),
            (
                &RESERVE,
                &["local function lay_aside", "local STEP", "local P, SEP"],
                "local function let_go",
            ),
            (&RENEW, &["local function micros", "local U"], "local function gate"),
            (
                &SETTLE,
                &["local function follow", "local function end_lease"],
                "local function set_gate",
            ),
        ] {
            for part in has {
                assert!(script.body.contains(part), "{}: {part}", script.name);
            }
            assert!(!script.body.contains(has_not), "{}: {has_not}", script.name);
        }
        assert!(has_word("a = gate(w)", "gate") && !has_word("a = set_gate(w)", "gate"));
    }
}
