//! Taking messages.
//!
//! # Guarantees
//! A message is taken and remembered under a lease in one step, so it is in a list or in `umbel:unacked`, never in
//! neither. When a reply is lost, or the future is dropped, the connection is given up; the next one says hello, which
//! raises this worker's epoch and hands back every lease that the worker does not name. A reserve that was still on
//! its way then meets a newer epoch and takes nothing.
//!
//! # Assumptions
//! One `Reserver` a process, under a worker name that is never used again.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::call::{Answer, Args, HELLO, RESERVE, RESERVE_SUSPECT, Reply, TAKER};
use crate::direct::Direct;
use crate::{Config, Error, Keys};

/// Who reserves.
#[derive(Debug, Clone)]
pub struct WorkerIdentity {
    /// Name in Redis: new for every process.
    pub worker: String,
    /// Install id of the operator; empty without one.
    pub install: String,
    /// No operator: the gate opens itself.
    pub is_standalone: bool,
}

/// Limits of a queue that whoever recovers its messages must know.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// The so manieth delivery that ends without settlement goes to the dead letters.
    pub max_deliveries: u32,
    /// Time to live of results, in seconds; 0 = for ever.
    pub result_ttl: u64,
    /// Dead letters kept, and as many messages in the quarantine.
    pub dead_kept: u64,
    /// Bytes of them kept, each; 0 = no limit.
    pub dead_bytes: u64,
    /// Seconds for which each of them is kept; 0 = for ever.
    pub dead_age: u64,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            max_deliveries: 3,
            result_ttl: 86_400,
            dead_kept: 10_000,
            dead_bytes: 256 << 20,
            dead_age: 14 * 86_400,
        }
    }
}

/// A queue to take from: its lists, the most urgent first.
#[derive(Debug, Clone)]
pub struct QueueLists {
    /// Name.
    pub queue: Arc<str>,
    /// Keys.
    pub lists: Vec<Arc<str>>,
    /// Messages of a reserve that are its own share, 0 for an equal one; what others leave of theirs is free for all.
    pub share: usize,
}

impl QueueLists {
    /// The lists of a queue.
    pub fn new(keys: &Keys, queue: &str) -> QueueLists {
        QueueLists {
            queue: queue.into(),
            lists: keys.lists(queue).into_iter().map(Into::into).collect(),
            share: 0,
        }
    }
}

/// One message that this worker holds now.
#[derive(Debug)]
pub struct Taken {
    /// Lease id.
    pub lid: Arc<str>,
    /// Fencing token: microseconds of Redis time, growing.
    pub micros: u64,
    /// Queue it came from.
    pub queue: Arc<str>,
    /// The message, byte for byte.
    pub raw: Vec<u8>,
    /// It has killed its workers before and runs alone.
    pub is_suspect: bool,
}

/// What a reserve brought.
#[derive(Debug)]
pub struct Batch {
    /// Term of the operator; 0 without one.
    pub term: u64,
    /// When the call was sent: the leases' trust windows start here.
    pub sent: Instant,
    /// Redis time in seconds when they were taken. Not the tokens: those stay ahead after its clock went back.
    pub now: Option<f64>,
    /// Messages, in the order in which they were taken.
    pub taken: Vec<Taken>,
    /// Are there messages anywhere whose deliveries were counted? Then acknowledgements name their ids.
    pub has_counted: bool,
    /// Lists that could not be read, with the server's reason; and messages put in the quarantine.
    pub faults: Vec<(String, String)>,
    /// A limit of a queue kept messages from being taken: for so long, or until `umbel:freed:Q` changes.
    pub blocked: Option<Blocked>,
}

/// Why a reserve brought less than there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocked {
    /// A rate allows more after so long.
    For(Duration),
    /// A queue is paused, or as many of its messages are held as may be.
    UntilFreed,
}

/// The answer to a reserve.
#[derive(Debug)]
pub enum Reserved {
    /// Messages, possibly none.
    Batch(Batch),
    /// The gate is not open: its state.
    Gate(String),
    /// This worker holds leases, so it may not take a suspect.
    Busy,
}

/// The state after a hello.
#[derive(Debug, Clone)]
pub struct Hello {
    /// State of the gate.
    pub gate: String,
    /// Id of the data set.
    pub generation: String,
    /// Leases handed back because this worker did not name them.
    pub handed_back: u64,
    /// Why nobody is woken by results, if the server refuses that: clients that wait for one would wait in vain.
    pub unpublished: Option<String>,
}

/// Messages in one call: Lua unpacks two values for each onto a stack of 8,000.
const MOST: usize = 1000;

/// A connection that has said hello, and the epoch that it got.
type Session = (Direct, i64);

/// Calls by a session, and answers with it what the server says. Where it refuses, nothing was done: the session goes back
/// to its `place`. One whose connection has failed is given up.
async fn ask(
    place: &mut Option<Session>,
    (mut connection, epoch): Session,
    args: &Args<'_>,
) -> Result<(Answer, Session), Error> {
    match args.call(&mut connection).await {
        Ok(answer) => Ok((answer, (connection, epoch))),
        Err(err) => {
            if !err.is_connection() {
                *place = Some((connection, epoch));
            }
            Err(err)
        }
    }
}

/// The one connection of a worker that takes messages.
pub struct Reserver {
    config: Config,
    keys: Keys,
    identity: WorkerIdentity,
    policies: Vec<(String, Policy)>,
    lease: Duration,
    largest: usize,
    dead_kept: u64,
    session: Option<Session>,
    hello: Option<Hello>,
}

impl Reserver {
    /// Prepares; the first call connects.
    pub fn new(
        config: Config,
        identity: WorkerIdentity,
        policies: Vec<(String, Policy)>,
        lease: Duration,
        largest: usize,
    ) -> Reserver {
        let dead_kept = policies
            .iter()
            .map(|(_, policy)| policy.dead_kept)
            .max()
            .unwrap_or(10_000);
        let keys = Keys::of(&config);
        Reserver {
            config,
            keys,
            identity,
            policies,
            lease,
            largest,
            dead_kept,
            session: None,
            hello: None,
        }
    }

    /// Another queue to take from. The next hello, which comes before the next reserve, tells its policy to whoever
    /// recovers our messages.
    pub fn register(&mut self, queue: &str, policy: Policy) {
        if self.policies.iter().all(|(known, _)| known != queue) {
            self.policies.push((queue.to_owned(), policy));
            self.forget();
        }
    }

    /// What the last hello said; taken once.
    pub fn take_hello(&mut self) -> Option<Hello> {
        self.hello.take()
    }

    /// Gives the connection up: the next call says hello again.
    pub fn forget(&mut self) {
        self.session = None;
    }

    /// Is there a connection that has said hello?
    pub fn is_connected(&self) -> bool {
        self.session.is_some()
    }

    /// Connects and says hello, unless that is done. `held` names the leases that this process holds: every other one
    /// of its name is handed back, uncharged.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Call`].
    ///
    /// # Cancellation
    /// Safe: the next call starts over.
    pub async fn ensure(&mut self, held: impl FnOnce() -> Vec<Arc<str>>) -> Result<(), Error> {
        // A server that went away while nothing was asked of it: found out here, nothing has to fail first.
        if let Some((connection, _)) = &mut self.session {
            if !connection.is_over() {
                return Ok(());
            }
            self.session = None;
        }
        let mut connection = self.config.direct().await?;
        let mut args = Args::new(&HELLO, self.keys.scope())
            .arg(&self.identity.worker)
            .arg(i32::from(self.identity.is_standalone))
            .arg(uuid::Uuid::new_v4().simple().to_string())
            .arg(self.policies.len());
        for (queue, policy) in &self.policies {
            args.push(queue);
            args.push(format!(
                "{}|{}|{};{}|{}",
                policy.max_deliveries, policy.result_ttl, policy.dead_kept, policy.dead_bytes, policy.dead_age
            ));
        }
        for lid in held() {
            args.push(&*lid);
        }
        let mut reply = args.call(&mut connection).await?.reply()?;
        let epoch = reply.number()?;
        let gate = reply.text()?;
        let generation = reply.text()?;
        let handed_back = reply.count()?;
        let _micros = reply.count()?;
        let unpublished = Some(reply.text()?).filter(|reason| !reason.is_empty());
        self.session = Some((connection, epoch));
        self.hello = Some(Hello {
            gate,
            generation,
            handed_back,
            unpublished,
        });
        Ok(())
    }

    /// Takes up to `count` messages, never more than 1,000, from the queues, those of the first queue first within equal shares.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Call`]: nothing was taken, or what was taken comes back with the next hello.
    ///
    /// # Cancellation
    /// Safe: the connection is given up, see the module's guarantees.
    pub async fn reserve(
        &mut self,
        count: usize,
        queues: &[QueueLists],
        held: impl FnOnce() -> Vec<Arc<str>>,
    ) -> Result<Reserved, Error> {
        self.ensure(held).await?;
        // Taken out while the call is on its way: a dropped future leaves no session behind.
        let Some((connection, epoch)) = self.session.take() else {
            return Ok(Reserved::Busy);
        };
        let mut args = Args::new(&RESERVE, self.keys.scope())
            .arg(&self.identity.worker)
            .arg(epoch)
            .arg(count.min(MOST))
            .arg(self.lease.as_secs_f64())
            .arg(self.largest)
            .arg(&self.identity.install)
            .arg(self.dead_kept);
        for queue in queues {
            args.push(queue.share);
            args.push(queue.lists.len());
            for list in &queue.lists {
                args.push(&**list);
            }
        }
        let sent = Instant::now();
        let (value, session) = ask(&mut self.session, (connection, epoch), &args).await?;
        let mut reply = value.reply()?;
        match reply.text()?.as_str() {
            "ok" => {}
            "gate" => {
                self.session = Some(session);
                return Ok(Reserved::Gate(reply.text()?));
            }
            // Unknown here, or a newer epoch: say hello again.
            _ => return Ok(Reserved::Gate("new".into())),
        }
        let batch = self.read_batch(&mut reply, sent, queues)?;
        self.session = Some(session);
        Ok(Reserved::Batch(batch))
    }

    fn read_batch(&self, reply: &mut Reply, sent: Instant, queues: &[QueueLists]) -> Result<Batch, Error> {
        let term = reply.count()?;
        let first = reply.count()?;
        let has_counted = reply.count()? > 0;
        let mut raws = reply.array()?;
        let mut runs = reply.array()?;
        let mut faults = reply.array()?;
        let origin = |index: usize| {
            let mut lists = queues
                .iter()
                .flat_map(|queue| queue.lists.iter().map(move |list| (&queue.queue, list)));
            lists.nth(index.wrapping_sub(1)).ok_or(Error::Reply {
                call: "reserve",
                what: format!("list {index}"),
            })
        };
        let mut taken = Vec::with_capacity(raws.len());
        let mut micros = first;
        let mut lid = String::new();
        while !runs.is_done() {
            let (queue, list) = origin(usize::try_from(runs.number()?).unwrap_or(0))?;
            lid.clear();
            lid.push_str(&self.identity.worker);
            lid.push('|');
            lid.push_str(list);
            lid.push(':');
            let length = lid.len();
            for _ in 0..runs.count()? {
                lid.truncate(length);
                let _ = write!(lid, "{micros}"); // To a string: cannot fail.
                taken.push(Taken {
                    lid: lid.as_str().into(),
                    micros,
                    queue: Arc::clone(queue),
                    raw: raws.bytes()?,
                    is_suspect: false,
                });
                micros += 1;
            }
        }
        let mut list_faults = Vec::new();
        while !faults.is_done() {
            list_faults.push((faults.text()?, faults.text()?));
        }
        let now = reply.seconds()?;
        let blocked = reply.seconds()?.map(|wait| match Duration::try_from_secs_f64(wait) {
            Ok(wait) if !wait.is_zero() => Blocked::For(wait),
            Ok(_) | Err(_) => Blocked::UntilFreed,
        });
        Ok(Batch {
            term,
            sent,
            now,
            taken,
            has_counted,
            faults: list_faults,
            blocked,
        })
    }

    /// Takes one message that killed its workers before; only a worker that holds nothing gets one.
    ///
    /// # Errors
    /// As [`Reserver::reserve`].
    ///
    /// # Cancellation
    /// As [`Reserver::reserve`].
    pub async fn reserve_suspect(
        &mut self,
        queues: &[QueueLists],
        held: impl FnOnce() -> Vec<Arc<str>>,
    ) -> Result<Reserved, Error> {
        self.ensure(held).await?;
        let Some((connection, epoch)) = self.session.take() else {
            return Ok(Reserved::Busy);
        };
        let mut args = Args::new(&RESERVE_SUSPECT, self.keys.scope())
            .arg(&self.identity.worker)
            .arg(epoch)
            .arg(self.lease.as_secs_f64())
            .arg(&self.identity.install);
        for queue in queues {
            args.push(&*queue.queue);
        }
        let sent = Instant::now();
        let (value, session) = ask(&mut self.session, (connection, epoch), &args).await?;
        let mut reply = value.reply()?;
        let mut taken = Vec::new();
        let (mut term, mut now) = (0, None);
        match reply.text()?.as_str() {
            "ok" => {
                term = reply.count()?;
                let micros = reply.count()?;
                let list = reply.text()?;
                let queue = self.keys.queue_of(&list).into();
                let lid = format!("{}:{micros}", self.identity.worker).into();
                taken.push(Taken {
                    lid,
                    micros,
                    queue,
                    raw: reply.bytes()?,
                    is_suspect: true,
                });
                now = reply.seconds()?;
            }
            "none" => {}
            "busy" => {
                self.session = Some(session);
                return Ok(Reserved::Busy);
            }
            "gate" => {
                self.session = Some(session);
                return Ok(Reserved::Gate("closed".into()));
            }
            _ => return Ok(Reserved::Gate("new".into())),
        }
        self.session = Some(session);
        Ok(Reserved::Batch(Batch {
            term,
            sent,
            now,
            taken,
            has_counted: true,
            faults: Vec::new(),
            blocked: None,
        }))
    }

    /// Is this worker, busy now, the one that takes the queue's next suspect when its last task ends?
    ///
    /// # Errors
    /// As [`Reserver::reserve`].
    pub async fn becomes_taker(&mut self, queue: &str, seconds: u64) -> Result<bool, Error> {
        // As above: a dropped future leaves no session behind.
        let Some((connection, epoch)) = self.session.take() else {
            return Ok(false);
        };
        let args = Args::new(&TAKER, self.keys.scope())
            .arg(&self.identity.worker)
            .arg(queue)
            .arg(seconds);
        let (answer, session) = ask(&mut self.session, (connection, epoch), &args).await?;
        let is_taker = answer.count()? == 1;
        self.session = Some(session);
        Ok(is_taker)
    }
}
