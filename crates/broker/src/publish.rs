//! Putting messages where their consumers find them.
//!
//! # Guarantees
//! Publications are carried out in their order. When something goes wrong, [`Undelivered`] says of each one whether it
//! is in Redis, is not, or may be: a reply that did not arrive says nothing about its command.

use std::time::Duration;

use redis::Pipeline;

use crate::call::PUSH;
use crate::{Broker, Error};

/// Commands that travel together: enough that the way to the server and back does not count, few enough that a reply
/// is soon there.
const TOGETHER: usize = 256;
/// Bytes of one command or pipeline, about; a server closes a connection whose request is too long.
const BYTES: usize = 1 << 20;

/// One message on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publication<'a> {
    /// Into a queue's list.
    Push {
        /// The queue.
        queue: &'a str,
        /// As the caller gave it; decides which of the queue's lists.
        priority: i64,
        /// The message.
        raw: &'a [u8],
        /// The queue's `x-expires`: its lists go when nobody has pushed or consumed for so long.
        expires: Option<Duration>,
    },
    /// To everybody who listens.
    Broadcast {
        /// The exchange.
        exchange: &'a str,
        /// The routing key; may be empty.
        routing_key: &'a str,
        /// The message.
        raw: &'a [u8],
    },
}

impl<'a> Publication<'a> {
    fn raw(&self) -> &'a [u8] {
        match self {
            Publication::Push { raw, .. } | Publication::Broadcast { raw, .. } => raw,
        }
    }
}

/// What is known of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Redis has answered.
    Sent,
    /// Redis does not have it.
    NotSent,
    /// The command was on its way when the connection ended or the time was over.
    Unknown,
}

/// How many replicas must have a message before it counts as sent, and how long to wait for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replicas {
    /// How many.
    pub count: u32,
    /// How long, for each round trip; shorter than [`crate::Config::response_timeout`].
    pub patience: Duration,
    /// Not before it lies on disk, here and with the replicas: `WAITAOF`, of Redis 7.2 and Valkey, where the server has an
    /// append-only file.
    pub is_on_disk: bool,
}

impl Replicas {
    /// What asks for it.
    pub(crate) fn command(self) -> redis::Cmd {
        let Replicas {
            count,
            patience,
            is_on_disk,
        } = self;
        let mut wait = redis::cmd(if is_on_disk { "WAITAOF" } else { "WAIT" });
        if is_on_disk {
            wait.arg(1);
        }
        wait.arg(count).arg(milliseconds(patience).max(1));
        wait
    }

    /// Whether the answer says so.
    pub(crate) fn judge(self, answer: redis::RedisResult<redis::Value>) -> Result<(), Error> {
        let call = if self.is_on_disk { "WAITAOF" } else { "WAIT" };
        let failed = |source| Error::Call { call, source };
        let answer = answer.and_then(redis::Value::extract_error).map_err(failed)?;
        let (here, have) = if self.is_on_disk {
            redis::from_redis_value::<(u32, u32)>(answer).map_err(|err| failed(err.into()))?
        } else {
            (
                1,
                redis::from_redis_value::<u32>(answer).map_err(|err| failed(err.into()))?,
            )
        };
        if have < self.count {
            return Err(Error::Replicas {
                wanted: self.count,
                have,
            });
        }
        if here == 0 {
            return Err(Error::NotOnDisk);
        }
        Ok(())
    }
}

/// Publications that did not all succeed.
#[derive(Debug)]
pub struct Undelivered {
    /// What became of each, in order.
    pub fates: Vec<Fate>,
    /// What went wrong first.
    pub error: Error,
}

impl Broker {
    /// Enqueues messages, in order, with one command.
    ///
    /// # Errors
    /// [`Error::WrongType`] where the queue's key is no list, [`Error::Call`] otherwise. After a connection error the
    /// messages may or may not be in the queue: [`Error::may_have_happened`].
    ///
    /// # Cancellation
    /// As a connection error.
    pub async fn publish(&self, queue: &str, priority: impl Into<i64>, messages: &[Vec<u8>]) -> Result<(), Error> {
        if messages.is_empty() {
            return Ok(());
        }
        let list = self.keys.list(queue, priority);
        let mut push = redis::cmd("LPUSH");
        push.arg(&list);
        for message in messages {
            push.arg(message.as_slice());
        }
        push.query_async::<()>(&mut self.connection.clone())
            .await
            .map_err(|source| wrong_type(source, &list))
    }

    /// Carries publications out, in order, several to a round trip. A queue that is full and refuses more takes those for
    /// which it has room.
    ///
    /// # Errors
    /// [`Undelivered`]; with [`Error::QueueFull`] where a queue had no room.
    ///
    /// # Cancellation
    /// What was on its way may have been sent.
    pub async fn publish_all(
        &self,
        publications: &[Publication<'_>],
        durability: Option<Replicas>,
    ) -> Result<(), Undelivered> {
        let queues = publications.iter().filter_map(|publication| match publication {
            Publication::Push { queue, .. } => Some(*queue),
            Publication::Broadcast { .. } => None,
        });
        if let Err(error) = self.learn_bounds(queues).await {
            // Nothing was on its way.
            let fates = vec![Fate::NotSent; publications.len()];
            return Err(Undelivered { fates, error });
        }
        let mut done = 0;
        while done < publications.len() {
            let group = self.group(&publications[done..]);
            let count: usize = group.iter().map(|command| command.messages.len()).sum();
            if let Err((fates, error)) = self.carry_out(&group, durability).await {
                let mut all = vec![Fate::Sent; done];
                all.extend(fates);
                all.resize(publications.len(), Fate::NotSent);
                return Err(Undelivered { fates: all, error });
            }
            done += count;
        }
        Ok(())
    }

    /// The next commands: neighbours for one list share an LPUSH.
    fn group<'a>(&self, publications: &[Publication<'a>]) -> Vec<Command<'a>> {
        let mut commands: Vec<Command<'a>> = Vec::new();
        let mut bytes = 0;
        // Where the last command pushes to, as its publications say it.
        let mut last_place = None;
        for publication in publications {
            bytes += publication.raw().len();
            if !commands.is_empty() && bytes > BYTES {
                break;
            }
            match *publication {
                Publication::Push {
                    queue,
                    priority,
                    raw,
                    expires,
                } => {
                    let place = expires.is_none().then_some((queue, priority));
                    let list = match commands.last_mut() {
                        Some(last) if place.is_some() && place == last_place => {
                            last.add(raw);
                            continue;
                        }
                        _ => self.keys.list(queue, priority),
                    };
                    let is_open = last_place.is_some() && place.is_some();
                    last_place = place;
                    match commands.last_mut() {
                        Some(last) if is_open && last.to == list => last.add(raw),
                        _ => commands.push(Command {
                            name: "LPUSH",
                            bounded: self.bounds.has(queue).then_some(queue),
                            to: list,
                            messages: vec![raw],
                            bytes: raw.len(),
                            expires: expires.map(|expires| (self.keys.lists(queue), expires)),
                        }),
                    }
                }
                Publication::Broadcast {
                    exchange,
                    routing_key,
                    raw,
                } => {
                    last_place = None;
                    commands.push(Command {
                        name: "PUBLISH",
                        bounded: None,
                        to: self.config.channel(exchange, routing_key),
                        messages: vec![raw],
                        bytes: raw.len(),
                        expires: None,
                    });
                }
            }
            if commands.len() >= TOGETHER {
                break;
            }
        }
        commands
    }

    async fn carry_out(
        &self,
        commands: &[Command<'_>],
        durability: Option<Replicas>,
    ) -> Result<(), (Vec<Fate>, Error)> {
        let mut connection = self.connection.clone();
        if let ([command], None) = (commands, durability)
            && command.expires.is_none()
            && command.bounded.is_none()
        {
            return command
                .alone()
                .query_async::<()>(&mut connection)
                .await
                .map_err(|source| {
                    let error = wrong_type(source, &command.to);
                    (vec![fate_after(&error); command.messages.len()], error)
                });
        }
        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        for command in commands {
            command.enter(&mut pipe, self.keys.scope());
        }
        if let Some(replicas) = durability {
            // On the same connection and right behind: it answers for what this connection has written.
            pipe.add_command(replicas.command());
        }
        let all = |fate| {
            let each = |command: &Command<'_>| std::iter::repeat_n(fate, command.messages.len());
            commands.iter().flat_map(each).collect::<Vec<Fate>>()
        };
        let replies: Vec<redis::RedisResult<redis::Value>> =
            pipe.query_async(&mut connection).await.map_err(|source| {
                let error = Error::Call {
                    call: "publish",
                    source,
                };
                (all(fate_after(&error)), error)
            })?;
        let mut replies = replies.into_iter();
        let (mut fates, mut first) = (Vec::new(), None);
        for command in commands {
            let mut fate = Fate::Sent;
            let mut own = replies.by_ref().take(command.replies());
            if let Some(queue) = command.bounded
                && let Some(reply) = own.next()
            {
                // The first ones found room.
                let answer =
                    reply.and_then(|reply| Ok(redis::from_redis_value::<(usize, u64)>(reply.extract_error()?)?));
                let taken = match answer {
                    Ok((taken, most)) if taken < command.messages.len() => {
                        first.get_or_insert(Error::QueueFull {
                            queue: queue.to_owned(),
                            most,
                        });
                        taken
                    }
                    Ok((taken, _)) => taken,
                    Err(source) => {
                        first.get_or_insert(wrong_type(source, &command.to));
                        0
                    }
                };
                own.by_ref().for_each(drop); // How long its lists live.
                fates.extend(std::iter::repeat_n(Fate::Sent, taken));
                fates.extend(std::iter::repeat_n(Fate::NotSent, command.messages.len() - taken));
                continue;
            }
            for reply in own {
                // Only the push decides; MULTI and PEXPIRE beside it fail with it or not at all.
                if let Err(source) = reply.and_then(redis::Value::extract_error) {
                    fate = Fate::NotSent;
                    first.get_or_insert(wrong_type(source, &command.to));
                }
            }
            fates.extend(std::iter::repeat_n(fate, command.messages.len()));
        }
        if let (None, Some(replicas), Some(reply)) = (&first, durability, replies.next()) {
            first = replicas.judge(reply).err();
        }
        first.map_or(Ok(()), |error| Err((fates, error)))
    }
}

/// A command, which carries out as many publications as it has messages.
struct Command<'a> {
    name: &'static str,
    /// The queue, where that may refuse messages.
    bounded: Option<&'a str>,
    to: String,
    messages: Vec<&'a [u8]>,
    /// Of all messages.
    bytes: usize,
    /// The lists that expire, and when.
    expires: Option<(Vec<String>, Duration)>,
}

impl<'a> Command<'a> {
    fn add(&mut self, raw: &'a [u8]) {
        self.messages.push(raw);
        self.bytes += raw.len();
    }

    /// Without what belongs to lists that expire.
    fn alone(&self) -> redis::Cmd {
        let size = self.name.len() + self.to.len() + self.bytes;
        let mut command = redis::Cmd::with_capacity(self.messages.len() + 2, size);
        command.arg(self.name).arg(&self.to);
        for message in &self.messages {
            command.arg(*message);
        }
        command
    }

    fn enter(&self, pipe: &mut Pipeline, scope: &str) {
        let is_whole = self.expires.is_some() && self.bounded.is_none();
        if is_whole {
            pipe.cmd("MULTI");
        }
        pipe.add_command(match self.bounded {
            None => self.alone(),
            Some(_) => {
                let mut push = PUSH.whole(scope);
                push.arg(&self.to);
                for message in &self.messages {
                    push.arg(*message);
                }
                push
            }
        });
        if let Some((lists, after)) = &self.expires {
            let after = milliseconds(*after);
            for list in lists {
                pipe.cmd("PEXPIRE").arg(list).arg(after);
            }
            if is_whole {
                pipe.cmd("EXEC");
            }
        }
    }

    fn replies(&self) -> usize {
        let around = if self.bounded.is_some() { 0 } else { 2 };
        1 + self.expires.as_ref().map_or(0, |(lists, _)| lists.len() + around)
    }
}

fn fate_after(error: &Error) -> Fate {
    if error.may_have_happened() {
        Fate::Unknown
    } else {
        Fate::NotSent
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn wrong_type(source: redis::RedisError, list: &str) -> Error {
    if source.code() == Some("WRONGTYPE") {
        Error::WrongType {
            key: list.to_owned(),
            reason: source.to_string(),
        }
    } else {
        Error::Call { call: "LPUSH", source }
    }
}
