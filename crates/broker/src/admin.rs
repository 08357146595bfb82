//! What people do to queues: purge, pause, recover. Each call does a bounded part, so that nobody who works waits for it;
//! the caller repeats it until nothing is left.

use std::collections::HashSet;

use redis::Cmd;

use crate::call::{Args, PARKED, PURGE, RECOVER};
use crate::control::failed;
use crate::peek::Place;
use crate::{Broker, Error};

/// Lease ids in one call.
const LEASES: usize = 200;
/// Messages that one call may remove.
const PURGED: u64 = 1000;
/// Members that a scan looks at in one call.
const SCANNED: usize = 500;

/// What a call of [`Broker::purge`] removed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Purged {
    /// Messages.
    pub messages: u64,
    /// Of these, members of a schedule's run, which are settled now.
    pub settled: u64,
}

/// What became of leases.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// Handed back to their lists.
    pub back: u64,
    /// Left with workers that live.
    pub alive: u64,
    /// Left to end by themselves: acknowledged before their run, so they are not run again.
    pub early: u64,
    /// Left because the key of their list holds another type.
    pub stuck: u64,
}

impl std::ops::AddAssign for Recovered {
    fn add_assign(&mut self, more: Recovered) {
        let Recovered {
            back,
            alive,
            early,
            stuck,
        } = more;
        self.back += back;
        self.alive += alive;
        self.early += early;
        self.stuck += stuck;
    }
}

impl Broker {
    pub(crate) async fn ask<T: redis::FromRedisValue>(&self, call: &'static str, command: &Cmd) -> Result<T, Error> {
        command
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed(call))
    }

    /// Messages in a place of a queue. Those in flight are not counted here.
    ///
    /// # Errors
    /// [`Error::WrongType`], [`Error::Call`].
    pub async fn length(&self, queue: &str, place: Place) -> Result<u64, Error> {
        let mut count = 0;
        for (command, key) in self.keys_of(queue, place) {
            let mut length = Cmd::new();
            length.arg(command).arg(&key);
            count += typed(self.ask::<u64>("length", &length).await, &key)?;
        }
        Ok(count)
    }

    fn keys_of(&self, queue: &str, place: Place) -> Vec<(&'static str, String)> {
        match place {
            Place::Waiting => self.keys.lists(queue).into_iter().map(|list| ("LLEN", list)).collect(),
            Place::Delayed => vec![("ZCARD", self.keys.umbel(&format!("delayed:{queue}")))],
            Place::Suspect => vec![("LLEN", self.keys.umbel(&format!("suspect:{queue}")))],
            Place::InFlight => Vec::new(),
            Place::Dead => vec![("XLEN", self.keys.umbel(&format!("dead:{queue}")))],
            Place::Quarantine => vec![("XLEN", self.keys.umbel(&format!("quarantine:{queue}")))],
        }
    }

    /// Removes some of what waits, is delayed or is a suspect: at most `most`, the oldest first, settled for their runs.
    /// Nothing removed means that nothing is left. What is in flight stays.
    ///
    /// # Errors
    /// [`Error::WrongType`], [`Error::Call`]. After a connection error a part may have been removed.
    ///
    /// # Cancellation
    /// As a connection error.
    pub async fn purge(&self, queue: &str, place: Place, most: u64) -> Result<Purged, Error> {
        let kind = match place {
            Place::Waiting => "list",
            Place::Delayed => "delayed",
            Place::Suspect => "suspect",
            Place::InFlight | Place::Dead | Place::Quarantine => return Ok(Purged::default()),
        };
        let mut purged = Purged::default();
        for (_, key) in self.keys_of(queue, place) {
            let left = most.min(PURGED).saturating_sub(purged.messages);
            if left == 0 {
                break;
            }
            let args = Args::new(&PURGE, self.keys.scope()).arg(kind).arg(&key).arg(left);
            let value = typed(args.call(&mut self.connection.clone()).await, &key)?;
            let mut reply = value.reply()?;
            purged.messages += reply.count()?;
            purged.settled += reply.count()?;
            if purged.messages > 0 {
                break; // One list a call: the part is bounded.
            }
        }
        Ok(purged)
    }

    /// All leases on the messages of every queue, those to be taken first last.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn leases(&self) -> Result<Vec<String>, Error> {
        let key = self.keys.umbel("lease");
        let (mut cursor, mut lids) = (0_u64, HashSet::new());
        loop {
            let mut scan = redis::cmd("ZSCAN");
            scan.arg(&key).arg(cursor).arg("COUNT").arg(SCANNED);
            let (next, page): (u64, Vec<(String, f64)>) = self.ask("ZSCAN umbel:lease", &scan).await?;
            lids.extend(page.into_iter().map(|(lid, _)| lid));
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        let mut lids: Vec<String> = lids.into_iter().collect();
        let token = |lid: &String| lid.rsplit(':').next().and_then(|token| token.parse::<u64>().ok());
        lids.sort_by_key(|lid| std::cmp::Reverse(token(lid)));
        Ok(lids)
    }

    /// Hands leases on a queue's messages back to the head of their lists, uncharged: those of workers without a
    /// heartbeat, or with `is_all` those of all workers, which then run what somebody else may take, too. Looks at the
    /// first of `lids`; answers at how many, to go on behind them.
    ///
    /// # Errors
    /// [`Error::Call`]; after a connection error some may have been handed back.
    ///
    /// # Cancellation
    /// As a connection error.
    pub async fn recover(
        &self,
        queue: &str,
        is_all: bool,
        is_dry: bool,
        lids: &[String],
    ) -> Result<(usize, Recovered), Error> {
        let mut args = Args::new(&RECOVER, self.keys.scope())
            .arg(queue)
            .arg(i32::from(is_all))
            .arg(i32::from(is_dry));
        let lids = &lids[..lids.len().min(LEASES)];
        for lid in lids {
            args.push(lid);
        }
        let mut reply = args.call(&mut self.connection.clone()).await?.reply()?;
        let looked = usize::try_from(reply.count()?).unwrap_or(lids.len());
        Ok((
            looked,
            Recovered {
                back: reply.count()?,
                alive: reply.count()?,
                early: reply.count()?,
                stuck: reply.count()?,
            },
        ))
    }

    /// When the delayed messages of a queue are due that name this task id (Redis time in seconds); the latest of them.
    /// The id may stand anywhere in the message: a message that only mentions it counts, too.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn parked_until(&self, queue: &str, id: &str) -> Result<Option<f64>, Error> {
        let written = umbel_protocol::json::Json::string(id).to_string();
        let (mut from, mut latest) = ("0".to_owned(), None::<f64>);
        while !from.is_empty() {
            let args = Args::new(&PARKED, self.keys.scope())
                .arg(queue)
                .arg(&from)
                .arg(&written);
            let mut reply = args.call(&mut self.connection.clone()).await?.reply()?;
            from = reply.text()?;
            while !reply.is_done() {
                if let Some(due) = reply.seconds()? {
                    latest = Some(latest.map_or(due, |latest| latest.max(due)));
                }
            }
        }
        Ok(latest)
    }

    /// Queues with a key of this kind on the broker (`dead`, `quarantine`, `delayed`), by name. Looks at all keys, a few at a
    /// time.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn queues_with(&self, kinds: &[&str]) -> Result<Vec<String>, Error> {
        let mut found: HashSet<String> = HashSet::new();
        for kind in kinds {
            let before = self.keys.umbel(&format!("{kind}:"));
            let mut cursor = 0_u64;
            loop {
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(format!("{}*", escaped(&before)));
                scan.arg("COUNT").arg(SCANNED);
                let (next, keys): (u64, Vec<String>) = self.ask("SCAN", &scan).await?;
                let names = keys.iter().filter_map(|key| key.strip_prefix(&before));
                found.extend(names.map(str::to_owned));
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        let mut names: Vec<String> = found.into_iter().collect();
        names.sort();
        Ok(names)
    }
}

/// A prefix may hold what a pattern reads as its own.
fn escaped(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            ['[', ']', '*', '?', '\\', '^']
                .contains(&c)
                .then_some('\\')
                .into_iter()
                .chain([c])
        })
        .collect()
}

pub(crate) fn typed<T>(answer: Result<T, Error>, key: &str) -> Result<T, Error> {
    answer.map_err(|err| match err {
        Error::Call { source, .. } if source.code() == Some("WRONGTYPE") => Error::WrongType {
            key: key.to_owned(),
            reason: source.to_string(),
        },
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn a_prefix_is_no_pattern() {
        assert_eq!(escaped("app[1]*:"), "app\\[1\\]\\*:");
    }
}
