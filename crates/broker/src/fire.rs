//! Slots of schedules: all messages and the mark in one script.

use std::collections::HashMap;
use std::time::Duration;

use crate::call::{Args, FIRE};
use crate::control::failed;
use crate::{Broker, Error, Replicas};

/// A slot that is due.
#[derive(Debug, Clone)]
pub struct Slot {
    /// Install id.
    pub install: String,
    /// The leader's term.
    pub term: u64,
    /// Uid of the PeriodicTask.
    pub uid: String,
    /// Slot time in milliseconds since 1970.
    pub at_ms: i64,
    /// Generation of the object that made it.
    pub generation: i64,
    /// Id of the run to record; `None` where nobody asks whether it is over.
    pub run: Option<String>,
    /// Slots that were fired and that were missed before this one: a status may lag, the mark does not.
    pub counts: (u64, u64),
}

/// One message of a slot.
#[derive(Debug, Clone)]
pub struct SlotMessage {
    /// Queue.
    pub queue: String,
    /// Priority.
    pub priority: u8,
    /// Task id.
    pub id: String,
    /// The message.
    pub raw: Vec<u8>,
    /// A unique key that it takes, and for how long at most: the message is left out while another task has the key.
    pub unique: Option<(String, Duration)>,
}

/// The answer to a fire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FireAnswer {
    /// All messages are in their queues and the mark has moved.
    Fired {
        /// Messages that were left out: another task has their unique key.
        left_out: usize,
    },
    /// This slot, or a later one, was fired before.
    Duplicate {
        /// Ids of the last slot fired.
        ids: Vec<String>,
        /// That slot's time in milliseconds.
        last_ms: i64,
    },
    /// A newer leader is in charge; nothing was written.
    Stale {
        /// Stored term.
        term: u64,
    },
    /// Redis' clock says that it is not due yet.
    NotYet {
        /// Redis time in milliseconds.
        now_ms: i64,
    },
    /// A queue's key is no list; nothing was written.
    WrongType {
        /// The key.
        key: String,
    },
    /// A queue has no room for all of them; nothing was written.
    Full {
        /// The queue.
        queue: String,
        /// The most that may wait there.
        most: u64,
    },
}

/// The last slot fired of a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastSlot {
    /// Slot time in milliseconds.
    pub at_ms: i64,
    /// Ids of its messages.
    pub ids: Vec<String>,
    /// Generation of the object at that time.
    pub generation: i64,
    /// Its run, if recorded.
    pub run: Option<String>,
    /// Slots that were fired and that were missed, with this one; `None` from a version that kept no counts.
    pub counts: Option<(u64, u64)>,
}

/// How far a run is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunState {
    /// Slot time in milliseconds.
    pub slot_ms: i64,
    /// Messages it began with.
    pub total: u64,
    /// Ended well.
    pub succeeded: u64,
    /// Ended badly: failed, expired or revoked.
    pub failed: u64,
    /// Ids that have not ended.
    pub open: Vec<String>,
    /// Redis time in seconds of the last end.
    pub settled_at: Option<f64>,
}

fn ids_of(text: &str) -> Vec<String> {
    text.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect()
}

impl Broker {
    /// Fires a slot: exactly once for each (schedule, slot), whoever asks how often.
    ///
    /// # Errors
    /// [`Error::Call`]: ask again, the mark tells.
    pub async fn fire(&self, slot: &Slot, messages: &[SlotMessage]) -> Result<FireAnswer, Error> {
        let mut args = Args::new(&FIRE, self.keys.scope())
            .arg(&slot.install)
            .arg(slot.term)
            .arg(&slot.uid)
            .arg(slot.at_ms)
            .arg(slot.generation)
            .arg(slot.run.as_deref().unwrap_or(""))
            .arg(slot.counts.0)
            .arg(slot.counts.1);
        for message in messages {
            args.push(self.keys.list(&message.queue, message.priority));
            args.push(&message.id);
            args.push(message.raw.as_slice());
            let unique = message.unique.as_ref();
            args.push(unique.map_or("", |(key, _)| key));
            args.push(unique.map_or(1, |(_, kept)| kept.as_secs().max(1)));
        }
        let mut reply = args.call(&mut self.connection.clone()).await?.reply()?;
        Ok(match reply.text()?.as_str() {
            "fired" => FireAnswer::Fired {
                left_out: usize::try_from(reply.count()?).unwrap_or(0),
            },
            "full" => FireAnswer::Full {
                queue: self.keys.queue_of(&reply.text()?).to_owned(),
                most: reply.count()?,
            },
            "dup" => FireAnswer::Duplicate {
                ids: ids_of(&reply.text()?),
                last_ms: reply.number()?,
            },
            "stale" => FireAnswer::Stale { term: reply.count()? },
            "notyet" => FireAnswer::NotYet {
                now_ms: reply.number()?,
            },
            _ => FireAnswer::WrongType { key: reply.text()? },
        })
    }

    /// Waits until so many replicas have what this connection has written: a slot that was fired then outlives a failover.
    ///
    /// # Errors
    /// [`Error::Replicas`]; [`Error::NotOnDisk`]; [`Error::Call`].
    ///
    /// # Cancellation
    /// Safe.
    pub async fn confirmed(&self, replicas: Replicas) -> Result<(), Error> {
        let answer = replicas.command().query_async(&mut self.connection.clone()).await;
        replicas.judge(answer)
    }

    /// The last slot that was fired of a schedule, as Redis remembers it.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn last_slot(&self, install: &str, uid: &str) -> Result<Option<LastSlot>, Error> {
        let fields = self
            .fields(&self.keys.umbel(&format!("slot:{install}:{uid}")), "HGETALL umbel:slot")
            .await?;
        let Some(at_ms) = fields.get("last").and_then(|last| last.parse().ok()) else {
            return Ok(None);
        };
        Ok(Some(LastSlot {
            at_ms,
            ids: fields.get("ids").map(|ids| ids_of(ids)).unwrap_or_default(),
            generation: fields.get("generation").and_then(|text| text.parse().ok()).unwrap_or(0),
            run: fields.get("run").filter(|run| !run.is_empty()).cloned(),
            counts: fields
                .get("runs")
                .and_then(|runs| runs.parse().ok())
                .zip(fields.get("missed").and_then(|missed| missed.parse().ok())),
        }))
    }

    /// How far a run is; `None` where Redis has no record of it.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn run(&self, run: &str) -> Result<Option<RunState>, Error> {
        let fields = self
            .fields(&self.keys.umbel(&format!("run:{run}")), "HGETALL umbel:run")
            .await?;
        if fields.is_empty() {
            return Ok(None);
        }
        let number = |name: &str| fields.get(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let mut open: Vec<String> = fields
            .keys()
            .filter_map(|key| key.strip_prefix("i:"))
            .map(str::to_owned)
            .collect();
        open.sort();
        Ok(Some(RunState {
            slot_ms: fields.get("slot").and_then(|text| text.parse().ok()).unwrap_or(0),
            total: number("total"),
            succeeded: number("succeeded"),
            failed: number("failed") + number("expired") + number("revoked"),
            open,
            settled_at: fields.get("settled_at").and_then(|text| text.parse().ok()),
        }))
    }

    pub(crate) async fn fields(&self, key: &str, call: &'static str) -> Result<HashMap<String, String>, Error> {
        redis::cmd("HGETALL")
            .arg(key)
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed(call))
    }
}
