//! `umbel queue peek`.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::json;
use umbel_broker::Peeked;
use umbel_codec::{Codec, Options, Serializer};
use umbel_protocol::message::{Limits, TaskMessage};

use crate::args::{Global, Peek};
use crate::broker;
use crate::output::{self, Column, Row, ago, cut};

/// Characters of arguments and reasons in a table.
const SHORT: usize = 60;

pub(crate) async fn run(global: &Global, peek: &Peek) -> anyhow::Result<()> {
    let Peek {
        name,
        place,
        limit,
        args,
    } = peek;
    let way = broker::of_queue(global, Some(name)).await?;
    let now = way.broker.time().await?;
    let messages = way
        .broker
        .peek(&way.queue, place.place(), usize::try_from(*limit)?)
        .await?;
    let reader = Reader::new(now);
    let columns = columns(*args);
    let rows = messages.iter().map(|message| reader.row(message, *args)).collect();
    output::list(global.output, &columns, rows)
}

fn columns(has_args: bool) -> Vec<Column> {
    let mut columns = vec![
        Column("ID", false),
        Column("TASK", false),
        Column("PRIORITY", false),
        Column("RETRIES", false),
        Column("ETA", false),
        Column("AGE", false),
        Column("NOTE", false),
        Column("LIST", true),
        Column("BYTES", true),
    ];
    if has_args {
        columns.insert(6, Column("ARGS", false));
        columns.insert(7, Column("KWARGS", false));
    }
    columns
}

/// Reads messages as a worker that accepts everything would.
pub(crate) struct Reader {
    codec: Codec,
    now_ms: i64,
}

impl Reader {
    pub(crate) fn new(now_ms: i64) -> Reader {
        let codec = Codec::new(Options {
            accept: vec![Serializer::Json, Serializer::Msgpack, Serializer::Yaml],
            ..Options::default()
        });
        Reader { codec, now_ms }
    }

    /// The message, or id, task name and why it cannot be read.
    pub(crate) fn read(&self, raw: &[u8]) -> Result<TaskMessage, (String, String, String)> {
        let limits = Limits {
            bytes: usize::MAX, // It is in Redis; how large workers let it be is theirs.
            ..Limits::default()
        };
        self.codec.decode(raw, &limits, &TimeZone::UTC).map_err(|malformed| {
            (
                malformed.id.unwrap_or_default(),
                malformed.task.unwrap_or_default(),
                malformed.reason.to_string(),
            )
        })
    }

    /// When it was sent, where its producer says so: milliseconds since 1970.
    pub(crate) fn sent_at(message: &TaskMessage) -> Option<i64> {
        let seconds: f64 = message.header("umbel_sent_at")?.to().ok()?;
        #[allow(clippy::cast_possible_truncation)] // Saturates: a header may hold anything.
        Some((seconds * 1000.0) as i64)
    }

    fn row(&self, peeked: &Peeked, has_args: bool) -> Row {
        let Peeked {
            list,
            raw,
            due,
            lease,
            aside,
        } = peeked;
        let (is_early, raw) = match raw.strip_prefix(b"\0") {
            Some(stub) if lease.is_some() => (true, stub),
            _ => (false, raw.as_slice()),
        };
        let mut notes = Vec::new();
        let mut value = json!({"list": list, "bytes": raw.len()});
        let (mut priority, mut retries) = ("-".to_owned(), "-".to_owned());
        let (mut eta, mut sent, mut args, mut kwargs) = (None, None, String::new(), String::new());
        let (id, task) = match self.read(raw) {
            Ok(message) => {
                sent = Self::sent_at(&message);
                (priority, retries) = (message.priority.to_string(), message.retries.to_string());
                eta = message.eta;
                value["priority"] = json!(message.priority);
                value["retries"] = json!(message.retries);
                if has_args {
                    args = message.argsrepr.clone().unwrap_or_else(|| message.args.repr());
                    kwargs = message.kwargsrepr.clone().unwrap_or_else(|| message.kwargs.repr());
                    value["args"] = json!(args);
                    value["kwargs"] = json!(kwargs);
                }
                (message.id, message.task)
            }
            Err((its_id, its_task, reason)) => {
                notes.push(format!("malformed: {reason}"));
                value["malformed"] = json!(reason);
                (its_id, its_task)
            }
        };
        if is_early {
            notes.push("acknowledged before its run".to_owned());
        }
        if let Some(due) = due {
            let due = time(due * 1000.0);
            value["due"] = json!(due.map(|due| due.to_string()));
            eta = due.or(eta);
        }
        if let Some(lease) = lease {
            let left = lease.deadline - self.now_ms as f64 / 1000.0;
            notes.push(if left < 0.0 {
                format!("lease of {} is overdue", lease.worker)
            } else {
                format!("with {}", lease.worker)
            });
            value["worker"] = json!(lease.worker);
            value["leaseEndsInSeconds"] = json!((left * 1000.0).round() / 1000.0);
        }
        if let Some(aside) = aside {
            notes.push(aside.reason.clone());
            value["reason"] = json!(aside.reason);
            value["entry"] = json!(aside.entry);
        }
        let age = sent.map(|sent| (self.now_ms - sent).max(0) / 1000);
        value["id"] = json!(id);
        value["task"] = json!(task);
        value["eta"] = json!(eta.map(|eta| eta.to_string()));
        value["ageSeconds"] = json!(age);
        let note = notes.join("; ");
        let mut cells = vec![
            id.clone(),
            task,
            priority,
            retries,
            eta.map_or_else(|| "-".to_owned(), |eta| eta.to_string()),
            age.map_or_else(|| "-".to_owned(), ago),
            cut(&note, SHORT + SHORT),
            list.clone(),
            raw.len().to_string(),
        ];
        if has_args {
            cells.insert(6, cut(&args, SHORT));
            cells.insert(7, cut(&kwargs, SHORT));
        }
        Row {
            name: format!("task/{id}"),
            cells,
            value,
        }
    }
}

/// A time of Redis' clock.
pub(crate) fn time(milliseconds: f64) -> Option<Timestamp> {
    #[allow(clippy::cast_possible_truncation)] // Saturates, and is then no time.
    Timestamp::from_millisecond(milliseconds as i64).ok()
}
