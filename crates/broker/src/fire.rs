//! Slots of schedules: all messages and the mark in one script.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::call::{ADVANCE, Args, CANCEL, FIRE};
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
    /// How the run goes on, where that is not by these messages alone.
    pub plan: Option<RunPlan>,
}

/// How a run goes on after its first messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunPlan {
    /// What its leader must know for that; kept as it is.
    pub text: String,
    /// Ids that are sent later.
    pub later: Vec<String>,
    /// Ids that never are.
    pub dropped: Vec<String>,
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

/// The answer to an advance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdvanceAnswer {
    /// Done; so many messages were sent. Those that were sent or dropped before are not again.
    Done {
        /// Messages.
        sent: usize,
    },
    /// A newer leader is in charge; nothing was written.
    Stale {
        /// Stored term.
        term: u64,
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

/// The answer to a cancel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CancelAnswer {
    /// Done; with neither, the run was over before.
    Done {
        /// Ids that were sent and have not ended: they are the caller's to revoke.
        open: Vec<String>,
        /// Tasks that will never be sent.
        dropped: u64,
    },
    /// A newer leader is in charge; nothing was written.
    Stale {
        /// Stored term.
        term: u64,
    },
}

/// How a task of a run with a plan ended.
#[derive(Debug, Clone, PartialEq)]
pub struct RunEnd {
    /// `succeeded`, `failed`, `expired`, `revoked`, `skipped` (its turn did not come) or `left_out` (another task had its
    /// unique key).
    pub outcome: String,
    /// Redis time in seconds at which it was sent; none, if it was not.
    pub sent_at: Option<f64>,
    /// Redis time in seconds of its end.
    pub ended_at: Option<f64>,
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
    /// Tasks that were never sent, as their turn did not come.
    pub skipped: u64,
    /// Runs of tasks after their first.
    pub retries: u64,
    /// Ids that were sent and have not ended, in order, each with the Redis time in seconds at which it was sent (0 by a
    /// version that did not note it).
    pub open: BTreeMap<String, f64>,
    /// Ids that are sent later.
    pub later: BTreeSet<String>,
    /// How ids of a run with a plan ended.
    pub ended: BTreeMap<String, RunEnd>,
    /// The plan.
    pub plan: Option<String>,
    /// Why it was ended before its time.
    pub cancelled: Option<String>,
    /// Redis time in seconds of the last end.
    pub settled_at: Option<f64>,
}

impl RunState {
    /// Nothing of it goes on, and nothing of it is to come.
    pub fn is_over(&self) -> bool {
        self.open.is_empty() && self.later.is_empty()
    }

    /// Ids that were sent and have not ended.
    pub fn open_ids(&self) -> Vec<String> {
        self.open.keys().cloned().collect()
    }
}

fn push_ids(args: &mut Args<'_>, ids: &[String]) {
    args.push(ids.len());
    for id in ids {
        args.push(id);
    }
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
        let nothing = RunPlan::default();
        let RunPlan { text, later, dropped } = slot.plan.as_ref().unwrap_or(&nothing);
        args.push(text);
        push_ids(&mut args, later);
        push_ids(&mut args, dropped);
        self.push_messages(&mut args, messages);
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

    fn push_messages(&self, args: &mut Args<'_>, messages: &[SlotMessage]) {
        for message in messages {
            args.push(self.keys.list(&message.queue, message.priority));
            args.push(&message.id);
            args.push(message.raw.as_slice());
            let unique = message.unique.as_ref();
            args.push(unique.map_or("", |(key, _)| key));
            args.push(unique.map_or(1, |(_, kept)| kept.as_secs().max(1)));
        }
    }

    /// Sends tasks of a run whose turn has come and drops others: each once, whoever asks how often.
    ///
    /// # Errors
    /// [`Error::Call`]: ask again, the record tells.
    pub async fn advance(
        &self,
        (install, term): (&str, u64),
        run: &str,
        dropped: &[String],
        messages: &[SlotMessage],
    ) -> Result<AdvanceAnswer, Error> {
        let mut args = Args::new(&ADVANCE, self.keys.scope()).arg(install).arg(term).arg(run);
        push_ids(&mut args, dropped);
        self.push_messages(&mut args, messages);
        let mut reply = args.call(&mut self.connection.clone()).await?.reply()?;
        Ok(match reply.text()?.as_str() {
            "ok" => AdvanceAnswer::Done {
                sent: usize::try_from(reply.count()?).unwrap_or(0),
            },
            "full" => AdvanceAnswer::Full {
                queue: self.keys.queue_of(&reply.text()?).to_owned(),
                most: reply.count()?,
            },
            "stale" => AdvanceAnswer::Stale { term: reply.count()? },
            _ => AdvanceAnswer::WrongType { key: reply.text()? },
        })
    }

    /// Ends a run before its time: what was not sent never will be, and `why` stands in its record for whoever looks later.
    ///
    /// # Errors
    /// [`Error::Call`]: ask again, the record tells.
    pub async fn cancel_run(&self, (install, term): (&str, u64), run: &str, why: &str) -> Result<CancelAnswer, Error> {
        let args = Args::new(&CANCEL, self.keys.scope())
            .arg(install)
            .arg(term)
            .arg(run)
            .arg(why);
        let mut reply = args.call(&mut self.connection.clone()).await?.reply()?;
        if reply.text()? == "stale" {
            return Ok(CancelAnswer::Stale { term: reply.count()? });
        }
        let mut ids = reply.array()?;
        let mut open = Vec::with_capacity(ids.len());
        while !ids.is_done() {
            open.push(ids.text()?);
        }
        Ok(CancelAnswer::Done {
            open,
            dropped: reply.count()?,
        })
    }

    /// A run is over and was seen to be: its record is kept for so long, for people.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn close_run(&self, run: &str, kept: Duration) -> Result<(), Error> {
        self.expire(&format!("run:{run}"), kept).await
    }

    /// Nothing of this uid is fired any more: its mark goes after so long.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn close_slots(&self, install: &str, uid: &str, kept: Duration) -> Result<(), Error> {
        self.expire(&format!("slot:{install}:{uid}"), kept).await
    }

    async fn expire(&self, key: &str, kept: Duration) -> Result<(), Error> {
        redis::cmd("EXPIRE")
            .arg(self.keys.umbel(key))
            .arg(kept.as_secs().max(1))
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed("EXPIRE"))
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
        let named = |kind: &'static str| {
            fields
                .iter()
                .filter_map(move |(key, value)| Some((key.strip_prefix(kind)?.to_owned(), value)))
        };
        let end = |(id, text): (String, &String)| {
            let mut parts = text.split('|');
            let outcome = parts.next()?.to_owned();
            let mut time = || parts.next().and_then(|text| text.parse().ok());
            let (sent_at, ended_at) = (time(), time());
            let end = RunEnd {
                outcome,
                sent_at,
                ended_at,
            };
            Some((id, end))
        };
        Ok(Some(RunState {
            slot_ms: fields.get("slot").and_then(|text| text.parse().ok()).unwrap_or(0),
            total: number("total"),
            succeeded: number("succeeded"),
            failed: number("failed") + number("expired") + number("revoked"),
            skipped: number("skipped"),
            retries: number("retries"),
            open: named("i:")
                .map(|(id, sent)| (id, sent.parse().unwrap_or(0.0)))
                .collect(),
            later: named("p:").map(|(id, _)| id).collect(),
            ended: named("e:").filter_map(end).collect(),
            plan: fields.get("plan").cloned(),
            cancelled: fields.get("cancelled").cloned(),
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
