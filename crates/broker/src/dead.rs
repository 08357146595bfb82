//! What nobody will run: dead letters and the quarantine. Looked at, put back byte for byte, removed, bounded.

use crate::admin::typed;
use crate::call::{ASIDE, Args, DISCARD, REPLAY, TRIM};
use crate::{Broker, Error};

/// Evictions in one call: Redis is busy for about a millisecond with so many.
const EVICTED: u32 = 500;

/// The two places for messages that nobody will run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AsideKind {
    /// Failed for good, or unknown, or killed its workers.
    Dead,
    /// Could not be read, or was too large.
    Quarantine,
}

impl AsideKind {
    /// As it stands in the key.
    pub fn word(self) -> &'static str {
        match self {
            AsideKind::Dead => "dead",
            AsideKind::Quarantine => "quarantine",
        }
    }
}

/// A message that nobody will run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// Id of the entry: the milliseconds of Redis time when it was laid aside, and a number.
    pub entry: String,
    /// Why.
    pub reason: String,
    /// Task id; empty where it could not be read.
    pub id: String,
    /// Task name, likewise.
    pub task: String,
    /// Deliveries that ended without settlement before.
    pub attempts: u64,
    /// The list that it came from, and goes back to.
    pub list: String,
    /// Bytes of the message.
    pub bytes: u64,
    /// The message, where it was asked for.
    pub raw: Vec<u8>,
}

impl Aside {
    /// When it was laid aside: milliseconds since 1970 by Redis' clock.
    pub fn at_ms(&self) -> i64 {
        let time = self.entry.split('-').next();
        time.and_then(|time| time.parse().ok()).unwrap_or(0)
    }
}

/// Which entries, and in which order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AsideFilter {
    /// First entry; `-` for the oldest.
    pub first: String,
    /// Last entry; `+` for the newest.
    pub last: String,
    /// The newest first.
    pub is_reverse: bool,
    /// Only of this task id.
    pub id: Option<String>,
    /// With the messages themselves.
    pub has_raw: bool,
}

impl Default for AsideFilter {
    fn default() -> AsideFilter {
        AsideFilter {
            first: "-".into(),
            last: "+".into(),
            is_reverse: false,
            id: None,
            has_raw: false,
        }
    }
}

/// Some entries, and how to read on.
#[derive(Debug, Default)]
pub struct AsidePage {
    /// The entries.
    pub entries: Vec<Aside>,
    /// The filter for the next page; `None` at the end.
    pub next: Option<AsideFilter>,
}

/// What became of an entry that was to be put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replayed {
    /// It is in its list.
    Back,
    /// It was there no longer.
    Gone,
    /// The key of its list holds another type; the entry stays.
    WrongType {
        /// The key.
        key: String,
    },
}

/// Messages that a bound has cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evicted {
    /// `dead` or `quarantine`.
    pub kind: String,
    /// `count`, `bytes` or `age`.
    pub cause: String,
    /// The queue.
    pub queue: String,
    /// How many since the data set began.
    pub messages: u64,
}

impl Broker {
    /// A page of at most `most` entries. It may hold fewer, even none, while there are more: see [`AsidePage::next`].
    ///
    /// # Errors
    /// [`Error::WrongType`], [`Error::Call`].
    pub async fn aside(&self, kind: AsideKind, queue: &str, which: AsideFilter, most: u64) -> Result<AsidePage, Error> {
        let args = Args::new(&ASIDE, self.keys.scope())
            .arg(kind.word())
            .arg(queue)
            .arg(&which.first)
            .arg(&which.last)
            .arg(i32::from(which.is_reverse))
            .arg(most.clamp(1, 1000))
            .arg(i32::from(which.has_raw))
            .arg(which.id.as_deref().unwrap_or(""));
        let key = self.keys.umbel(&format!("{}:{queue}", kind.word()));
        let value = typed(args.call(&mut self.connection.clone()).await, &key)?;
        let mut reply = value.reply()?;
        let from = reply.text()?;
        let mut entries = Vec::new();
        while !reply.is_done() {
            entries.push(Aside {
                entry: reply.text()?,
                reason: reply.text()?,
                id: reply.text()?,
                task: reply.text()?,
                attempts: reply.text()?.parse().unwrap_or(0),
                list: reply.text()?,
                bytes: reply.count()?,
                raw: reply.bytes()?,
            });
        }
        let next = match (from.is_empty(), which.is_reverse) {
            (true, _) => None,
            (false, true) => Some(AsideFilter { last: from, ..which }),
            (false, false) => Some(AsideFilter { first: from, ..which }),
        };
        Ok(AsidePage { entries, next })
    }

    /// The newest entry: where a pass ends that is not to meet what it has put back itself.
    ///
    /// # Errors
    /// As [`Broker::aside`].
    pub async fn newest_aside(&self, kind: AsideKind, queue: &str) -> Result<Option<Aside>, Error> {
        let which = AsideFilter {
            is_reverse: true,
            ..AsideFilter::default()
        };
        Ok(self.aside(kind, queue, which, 1).await?.entries.pop())
    }

    /// Puts entries back at the end of their lists, each in one step with its removal: never lost, never twice. Their
    /// deaths are forgotten.
    ///
    /// # Errors
    /// [`Error::Call`]. After a connection error they may have been put back: whoever is gone was.
    ///
    /// # Cancellation
    /// As a connection error.
    pub async fn replay(&self, kind: AsideKind, queue: &str, entries: &[String]) -> Result<Vec<Replayed>, Error> {
        let mut args = Args::new(&REPLAY, self.keys.scope()).arg(kind.word()).arg(queue);
        for entry in entries {
            args.push(entry);
        }
        let mut reply = args.call(&mut self.connection.clone()).await?.reply()?;
        let mut fates = Vec::with_capacity(entries.len());
        while !reply.is_done() {
            let (word, key) = (reply.text()?, reply.text()?);
            fates.push(match word.as_str() {
                "ok" => Replayed::Back,
                "gone" => Replayed::Gone,
                _ => Replayed::WrongType { key },
            });
        }
        Ok(fates)
    }

    /// Removes entries for good; answers how many were there.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn discard(&self, kind: AsideKind, queue: &str, entries: &[String]) -> Result<u64, Error> {
        let mut args = Args::new(&DISCARD, self.keys.scope()).arg(kind.word()).arg(queue);
        for entry in entries {
            args.push(entry);
        }
        args.call(&mut self.connection.clone()).await?.count()
    }

    /// Evicts what is beyond the bounds of these queues by now; answers how many, at most a few hundred a call.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn trim_aside(&self, queues: &[&str]) -> Result<u64, Error> {
        let mut args = Args::new(&TRIM, self.keys.scope()).arg(EVICTED);
        for queue in queues {
            args.push(*queue);
        }
        args.call(&mut self.connection.clone()).await?.count()
    }

    /// What the bounds have cost so far, of all queues.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn evicted(&self) -> Result<Vec<Evicted>, Error> {
        let fields = self
            .fields(&self.keys.umbel("evicted"), "HGETALL umbel:evicted")
            .await?;
        let mut evicted: Vec<Evicted> = fields
            .into_iter()
            .filter_map(|(field, count)| {
                let mut parts = field.splitn(3, '|').map(str::to_owned);
                Some(Evicted {
                    kind: parts.next()?,
                    cause: parts.next()?,
                    queue: parts.next()?,
                    messages: count.parse().ok()?,
                })
            })
            .collect();
        evicted.sort_by(|a, b| (&a.queue, &a.kind, &a.cause).cmp(&(&b.queue, &b.kind, &b.cause)));
        Ok(evicted)
    }
}
