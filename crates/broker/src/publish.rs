//! Putting messages where their consumers find them.
//!
//! # Guarantees
//! Publications are carried out in their order. When something goes wrong, [`Undelivered`] says of each one whether it
//! is in Redis, is not, or may be: a reply that did not arrive says nothing about its command.

use std::time::Duration;

use redis::Pipeline;

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

    /// Carries publications out, in order, several to a round trip.
    ///
    /// # Errors
    /// [`Undelivered`].
    ///
    /// # Cancellation
    /// What was on its way may have been sent.
    pub async fn publish_all(
        &self,
        publications: &[Publication<'_>],
        durability: Option<Replicas>,
    ) -> Result<(), Undelivered> {
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
            command.enter(&mut pipe);
        }
        if let Some(Replicas { count, patience }) = durability {
            // On the same connection and right behind: it answers for what this connection has written.
            pipe.cmd("WAIT").arg(count).arg(milliseconds(patience).max(1));
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
            for reply in replies.by_ref().take(command.replies()) {
                // Only the push decides; MULTI and PEXPIRE beside it fail with it or not at all.
                if let Err(source) = reply.and_then(redis::Value::extract_error) {
                    fate = Fate::NotSent;
                    first.get_or_insert(wrong_type(source, &command.to));
                }
            }
            fates.extend(std::iter::repeat_n(fate, command.messages.len()));
        }
        if let (None, Some(Replicas { count, .. }), Some(reply)) = (&first, durability, replies.next()) {
            match reply.and_then(|reply| Ok(redis::from_redis_value::<u32>(reply)?)) {
                Ok(have) if have >= count => {}
                Ok(have) => first = Some(Error::Replicas { wanted: count, have }),
                Err(source) => first = Some(Error::Call { call: "WAIT", source }),
            }
        }
        first.map_or(Ok(()), |error| Err((fates, error)))
    }
}

/// A command, which carries out as many publications as it has messages.
struct Command<'a> {
    name: &'static str,
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

    fn enter(&self, pipe: &mut Pipeline) {
        if self.expires.is_some() {
            pipe.cmd("MULTI");
        }
        pipe.add_command(self.alone());
        if let Some((lists, after)) = &self.expires {
            let after = milliseconds(*after);
            for list in lists {
                pipe.cmd("PEXPIRE").arg(list).arg(after);
            }
            pipe.cmd("EXEC");
        }
    }

    fn replies(&self) -> usize {
        1 + self.expires.as_ref().map_or(0, |(lists, _)| lists.len() + 2)
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
