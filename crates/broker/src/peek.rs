//! Looking at messages without taking them.

use redis::Cmd;

use crate::admin::typed;
use crate::call::{Args, HELD};
use crate::{Aside, AsideFilter, AsideKind, Broker, Error};

/// Most messages in one reply.
const CHUNK: usize = 64;
/// Behind one that is larger, the next reply has one message.
const LARGE: usize = 16 * 1024;
/// Lease ids in one call.
const LEASES: usize = 200;

/// Where messages of a queue are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// In its lists.
    Waiting,
    /// Not yet due.
    Delayed,
    /// Have killed a worker twice; wait for one of their own.
    Suspect,
    /// With a worker of ours.
    InFlight,
    /// Dead letters.
    Dead,
    /// Could not be read.
    Quarantine,
}

/// The worker that has a message.
#[derive(Debug, Clone, PartialEq)]
pub struct Leased {
    /// The worker's name in Redis.
    pub worker: String,
    /// Lease id.
    pub lid: String,
    /// When the lease ends (Redis time in seconds).
    pub deadline: f64,
}

/// A message where it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Peeked {
    /// The list that it is in, or came from.
    pub list: String,
    /// The message, byte for byte. Behind a zero byte: what names one that was acknowledged before its run.
    pub raw: Vec<u8>,
    /// Delayed: when it is due (Redis time in seconds).
    pub due: Option<f64>,
    /// In flight: with whom.
    pub lease: Option<Leased>,
    /// Laid aside: why.
    pub aside: Option<Aside>,
}

/// How many to read next: one at first and behind a large one, twice as many each time.
struct Chunk(usize);

impl Chunk {
    fn want(&self, left: usize) -> usize {
        self.0.min(left)
    }

    fn got<'a>(&mut self, mut messages: impl Iterator<Item = &'a [u8]>) {
        self.0 = if messages.any(|raw| raw.len() > LARGE) {
            1
        } else {
            (2 * self.0).min(CHUNK)
        };
    }
}

impl Broker {
    /// The next messages of a place, at most `most`: in the order in which they will be taken, come due or were laid
    /// aside (the newest first). They go on moving meanwhile.
    ///
    /// # Errors
    /// [`Error::WrongType`], [`Error::Call`].
    pub async fn peek(&self, queue: &str, place: Place, most: usize) -> Result<Vec<Peeked>, Error> {
        match place {
            Place::Waiting => {
                let mut found = Vec::new();
                for list in self.keys.lists(queue) {
                    let left = most - found.len();
                    let raws = self.tail(&list, left).await?;
                    found.extend(raws.into_iter().map(|raw| peeked(list.clone(), raw)));
                }
                Ok(found)
            }
            Place::Suspect => {
                let records = self.tail(&self.keys.umbel(&format!("suspect:{queue}")), most).await?;
                Ok(records.iter().map(|record| of_record(record)).collect())
            }
            Place::Delayed => self.peek_delayed(queue, most).await,
            Place::InFlight => self.peek_in_flight(queue, most).await,
            Place::Dead => self.peek_aside(AsideKind::Dead, queue, most).await,
            Place::Quarantine => self.peek_aside(AsideKind::Quarantine, queue, most).await,
        }
    }

    /// The last elements of a list, the very last first.
    async fn tail(&self, list: &str, most: usize) -> Result<Vec<Vec<u8>>, Error> {
        let (mut found, mut chunk) = (Vec::<Vec<u8>>::new(), Chunk(1));
        while found.len() < most {
            let want = chunk.want(most - found.len());
            let mut range = Cmd::new();
            range.arg("LRANGE").arg(list);
            range.arg(format!("-{}", found.len() + want));
            range.arg(format!("-{}", found.len() + 1));
            let page: Vec<Vec<u8>> = typed(self.ask("LRANGE", &range).await, list)?;
            chunk.got(page.iter().map(Vec::as_slice));
            let is_end = page.len() < want;
            found.extend(page.into_iter().rev());
            if is_end {
                break;
            }
        }
        Ok(found)
    }

    async fn peek_delayed(&self, queue: &str, most: usize) -> Result<Vec<Peeked>, Error> {
        let key = self.keys.umbel(&format!("delayed:{queue}"));
        let (mut found, mut chunk) = (Vec::new(), Chunk(1));
        while found.len() < most {
            let want = chunk.want(most - found.len());
            let mut range = redis::cmd("ZRANGE");
            range.arg(&key).arg(found.len()).arg(found.len() + want - 1);
            range.arg("WITHSCORES");
            let page: Vec<(Vec<u8>, f64)> = typed(self.ask("ZRANGE", &range).await, &key)?;
            chunk.got(page.iter().map(|(member, _)| member.as_slice()));
            let is_end = page.len() < want;
            found.extend(page.into_iter().map(|(member, due)| {
                // Behind the list stands a tag, by which equal messages stay two.
                let Peeked { list, raw, .. } = of_record(&member);
                Peeked {
                    due: Some(due),
                    ..peeked(list, split(&raw).map_or(raw.clone(), |(_, raw)| raw.to_vec()))
                }
            }));
            if is_end {
                break;
            }
        }
        Ok(found)
    }

    async fn peek_in_flight(&self, queue: &str, most: usize) -> Result<Vec<Peeked>, Error> {
        let mut found = Vec::new();
        let lids = self.leases().await?;
        let mut lids = lids.as_slice();
        while !lids.is_empty() && found.len() < most {
            let mut args = Args::new(&HELD, self.keys.scope()).arg(queue);
            for lid in &lids[..lids.len().min(LEASES)] {
                args.push(lid);
            }
            let mut reply = args.call(&mut self.connection.clone()).await?.reply()?;
            let looked = usize::try_from(reply.count()?).unwrap_or(LEASES).max(1);
            while !reply.is_done() {
                let (lid, deadline) = (reply.text()?, reply.seconds()?.unwrap_or(0.0));
                let (list, raw) = (reply.text()?, reply.bytes()?);
                let worker = lid.split_once('|').or_else(|| lid.rsplit_once(':'));
                let worker = worker.map_or("", |(worker, _)| worker).to_owned();
                found.push(Peeked {
                    lease: Some(Leased { worker, lid, deadline }),
                    ..peeked(list, raw)
                });
            }
            lids = &lids[looked.min(lids.len())..];
        }
        found.truncate(most);
        Ok(found)
    }

    async fn peek_aside(&self, kind: AsideKind, queue: &str, most: usize) -> Result<Vec<Peeked>, Error> {
        let mut found = Vec::new();
        let mut which = Some(AsideFilter {
            is_reverse: true,
            has_raw: true,
            ..AsideFilter::default()
        });
        while let Some(filter) = which.take().filter(|_| found.len() < most) {
            let page = self.aside(kind, queue, filter, (most - found.len()) as u64).await?;
            found.extend(page.entries.into_iter().map(|mut aside| {
                let raw = std::mem::take(&mut aside.raw);
                Peeked {
                    aside: Some(aside),
                    ..peeked(String::new(), raw)
                }
            }));
            which = page.next;
        }
        for one in &mut found {
            one.list = one.aside.as_ref().map(|aside| aside.list.clone()).unwrap_or_default();
        }
        Ok(found)
    }
}

fn peeked(list: String, raw: Vec<u8>) -> Peeked {
    Peeked {
        list,
        raw,
        due: None,
        lease: None,
        aside: None,
    }
}

/// A record `<length>:<list><raw>`; anything else is all raw.
fn of_record(record: &[u8]) -> Peeked {
    match split(record) {
        Some((list, raw)) => peeked(String::from_utf8_lossy(list).into_owned(), raw.to_vec()),
        None => peeked(String::new(), record.to_vec()),
    }
}

fn split(record: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = record.iter().position(|byte| *byte == b':')?;
    let length: usize = std::str::from_utf8(&record[..colon]).ok()?.parse().ok()?;
    record[colon + 1..].split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_apart() {
        assert_eq!(split(b"3:abcrest"), Some((&b"abc"[..], &b"rest"[..])));
        assert_eq!(split(b"99:short"), None);
        assert_eq!(of_record(b"no record").raw, b"no record");
    }
}
