//! Recovery: overdue leases, due messages, repairs. Every worker does it, and so does the operator's leader.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::call::{Args, JANITOR, PROMOTE, RECLAIM, SWEEP};
use crate::{Broker, Error};

/// A lease whose holder did not renew it.
#[derive(Debug)]
pub struct Overdue {
    /// Lease id.
    pub lid: String,
    /// Key of the list that it was taken from.
    pub list: String,
    /// The raw message; nothing where the body is missing, is no record, or is an empty message.
    pub raw: Vec<u8>,
}

/// The answer to a sweep.
#[derive(Debug)]
pub enum SweepAnswer {
    /// Somebody else swept a moment ago.
    Skipped,
    /// Holders may be alive that could not renew: nothing is reclaimed until then (Redis time in seconds).
    Grace {
        /// End of the grace.
        until: f64,
        /// Why it began, if it began now.
        reason: Option<String>,
    },
    /// These are overdue.
    Overdue(Vec<Overdue>),
}

/// An overdue lease whose message has been read.
#[derive(Debug, Clone)]
pub struct Reclaim {
    /// Lease id.
    pub lid: String,
    /// Key under which its deaths are counted: the task id, or a hash of a message that cannot be read.
    pub counted_as: String,
    /// Does the sweeper serve its queue? Otherwise it is given it, where it is to be given up, only after another lease:
    /// who serves it knows where its results go.
    pub is_served: bool,
}

/// A message that nobody is to run any more, under a lease of the sweeper's own: to be ended as a failed run is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenUp {
    /// Which of the leases that were asked for, from 0.
    pub at: usize,
    /// The sweeper's lease id.
    pub lid: Arc<str>,
    /// The token in it.
    pub micros: u64,
    /// Deliveries that ended without settlement. 0: it was acknowledged before its run, and its worker died.
    pub deaths: u64,
}

/// What came of it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Reclaimed {
    /// Back in their lists.
    pub back: u64,
    /// Kept apart for a worker of their own.
    pub suspected: u64,
    /// Given up.
    pub given_up: Vec<GivenUp>,
}

/// What a promotion did.
#[derive(Debug, Clone, PartialEq)]
pub struct Promoted {
    /// Messages that were due and are in their lists now.
    pub moved: u64,
    /// Time until the next one is due.
    pub due_in: Option<Duration>,
}

/// Repairs by the janitor.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct JanitorReport {
    /// Bodies without a lease that got an expired one.
    pub leases_given: u64,
    /// Leases without a body that were removed.
    pub leases_removed: u64,
    /// Counts corrected.
    pub counts_corrected: u64,
    /// Entries of long gone workers removed.
    pub workers_forgotten: u64,
}

/// One sweeper's memory: what it knows of Redis' clock against its own.
pub struct Sweeper {
    lease: Duration,
    backoff: Duration,
    least_gap: Duration,
    last: Option<(f64, Instant)>,
}

impl Sweeper {
    /// A sweeper for leases of this length; `backoff` is the longest pause of a worker that reconnects, `every` the
    /// interval between two sweeps.
    pub fn new(lease: Duration, backoff: Duration, every: Duration) -> Sweeper {
        Sweeper {
            lease,
            backoff,
            least_gap: every / 2,
            last: None,
        }
    }

    /// Looks for overdue leases, at most `limit`. `goes_on` says that this continues a sweep that found as many as it
    /// asked for: it is not skipped because somebody, this sweeper, has just swept.
    ///
    /// # Errors
    /// [`Error::Call`].
    ///
    /// # Cancellation
    /// Safe.
    pub async fn sweep(&mut self, broker: &Broker, limit: usize, goes_on: bool) -> Result<SweepAnswer, Error> {
        let sent = Instant::now();
        let mut args = Args::new(&SWEEP, broker.keys.scope())
            .arg(self.lease.as_secs_f64())
            .arg(self.backoff.as_secs_f64())
            .arg(if goes_on { 0.0 } else { self.least_gap.as_secs_f64() })
            .arg(limit);
        let (last, since) = self.last.map_or((String::new(), 0.0), |(time, at)| {
            (format!("{time:.6}"), sent.duration_since(at).as_secs_f64())
        });
        args.push(last);
        args.push(format!("{since:.6}"));
        let mut reply = args.call(&mut broker.connection.clone()).await?.reply()?;
        match reply.text()?.as_str() {
            "skip" => Ok(SweepAnswer::Skipped),
            "grace" => {
                let until = reply.seconds()?.unwrap_or(0.0);
                let reason = Some(reply.text()?).filter(|reason| !reason.is_empty());
                self.last = reply.seconds()?.map(|now| (now, sent));
                Ok(SweepAnswer::Grace { until, reason })
            }
            _ => {
                self.last = reply.seconds()?.map(|now| (now, sent));
                let mut overdue = Vec::new();
                while !reply.is_done() {
                    let lid = reply.text()?;
                    let value = reply.bytes()?;
                    let (list, raw) = held(&lid, &value);
                    let (list, raw) = (String::from_utf8_lossy(list).into_owned(), raw.to_vec());
                    overdue.push(Overdue { lid, list, raw });
                }
                Ok(SweepAnswer::Overdue(overdue))
            }
        }
    }
}

/// List and raw message of what stands under a lease id: `<worker>|<list>:<token>` has the message itself, any other id a
/// record.
pub(crate) fn held<'a>(lid: &'a str, value: &'a [u8]) -> (&'a [u8], &'a [u8]) {
    let list = lid
        .split_once('|')
        .and_then(|(_, rest)| rest.rsplit_once(':'))
        .map(|(list, _)| list);
    list.map_or_else(|| parts_of(value), |list| (list.as_bytes(), value))
}

/// The raw message in a record `<length>:<list><raw>`.
pub(crate) fn raw_of(record: &[u8]) -> &[u8] {
    parts_of(record).1
}

/// List and raw message in a record.
fn parts_of(record: &[u8]) -> (&[u8], &[u8]) {
    let parts = || {
        let colon = record.iter().position(|byte| *byte == b':')?;
        let length: usize = std::str::from_utf8(&record[..colon]).ok()?.parse().ok()?;
        record.get(colon + 1..)?.split_at_checked(length)
    };
    parts().unwrap_or_default()
}

impl Broker {
    /// Takes overdue leases back, counted. A lease that was renewed meanwhile is left alone. One that the server does
    /// not let go (a key of another type) is put off for a minute, so that it holds up nobody else's.
    ///
    /// Who calls this ends what is given up, within `lease` or with renewals: otherwise it is given to the next sweeper.
    ///
    /// # Errors
    /// [`Error::Call`]; the next sweep finds them again.
    pub async fn reclaim(&self, lease: Duration, leases: &[Reclaim]) -> Result<Reclaimed, Error> {
        if leases.is_empty() {
            return Ok(Reclaimed::default());
        }
        let mut args = Args::new(&RECLAIM, self.keys.scope()).arg(lease.as_secs_f64());
        for Reclaim {
            lid,
            counted_as,
            is_served,
        } in leases
        {
            args.push(lid);
            args.push(counted_as);
            args.push(i32::from(*is_served));
        }
        let mut reply = args.call(&mut self.connection.clone()).await?.reply()?;
        let (back, suspected) = (reply.count()?, reply.count()?);
        let mut given = reply.array()?;
        let mut given_up = Vec::new();
        while !given.is_done() {
            let place = given.count()?;
            given_up.push(GivenUp {
                at: usize::try_from(place).unwrap_or(usize::MAX).saturating_sub(1),
                lid: given.text()?.into(),
                micros: given.count()?,
                deaths: given.count()?,
            });
        }
        Ok(Reclaimed {
            back,
            suspected,
            given_up,
        })
    }

    /// Moves delayed messages that are due into their lists, at most `limit` a queue.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn promote(&self, limit: usize, queues: &[&str]) -> Result<Promoted, Error> {
        let mut args = Args::new(&PROMOTE, self.keys.scope()).arg(limit);
        for queue in queues {
            args.push(*queue);
        }
        let mut reply = args.call(&mut self.connection.clone()).await?.reply()?;
        let moved = reply.count()?;
        let due = reply.seconds()?;
        let now = reply.seconds()?.unwrap_or(0.0);
        Ok(Promoted {
            moved,
            due_in: due.map(|due| Duration::try_from_secs_f64(due - now).unwrap_or(Duration::ZERO)),
        })
    }

    /// Repairs what no script of ours leaves behind. `thorough` looks at every lease even where the totals agree. Nothing
    /// is done where somebody has done it less than `enough` ago.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn janitor(&self, thorough: bool, enough: Duration) -> Result<JanitorReport, Error> {
        // Ten minutes: longer than any restart of a worker takes to be noticed.
        let args = Args::new(&JANITOR, self.keys.scope())
            .arg(i32::from(thorough))
            .arg(600)
            .arg(enough.as_secs());
        let mut reply = args.call(&mut self.connection.clone()).await?.reply()?;
        Ok(JanitorReport {
            leases_given: reply.count()?,
            leases_removed: reply.count()?,
            counts_corrected: reply.count()?,
            workers_forgotten: reply.count()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{held, raw_of};

    #[test]
    fn a_lease_id_that_names_the_list_has_the_message_itself() {
        assert_eq!(held("w:1", b"3:abcrest"), (&b"abc"[..], &b"rest"[..]));
        assert_eq!(held("w|q:1", b"3:abcrest"), (&b"q"[..], &b"3:abcrest"[..]));
        assert_eq!(held("v:w|a|b:c:1", b"rest"), (&b"a|b:c"[..], &b"rest"[..]));
    }

    #[test]
    fn raw_of_a_record() {
        assert_eq!(raw_of(b"3:abcrest"), b"rest");
        assert_eq!(raw_of(b"4:q:06rest"), b"rest");
        assert_eq!(raw_of(b"broken"), b"");
        assert_eq!(raw_of(b"99:short"), b"");
    }
}
