//! Messages that travel together: written one behind the other into one buffer, which is used again and again.

use std::borrow::Cow;
use std::ops::Range;
use std::time::Duration;

use umbel_broker::{ExchangeKind, Publication, route};

use crate::prepare::{Bindings, Call, Sendable, Target, refused};
use crate::task::kind_name;
use crate::{Client, SendError};

/// Tasks of a batch, and bytes after which none is added: what a cache holds, and the server reads in the time in which
/// the next batch is written.
const TASKS: usize = 512;
const BYTES: usize = 256 << 10;
/// Bytes that are written between two looks at what else is to be done.
const STRETCH: usize = 64 << 10;

/// Tasks and their messages.
#[derive(Debug)]
pub(crate) struct Batch<'a, T> {
    /// The tasks.
    pub(crate) items: &'a [T],
    bytes: Vec<u8>,
    copies: Vec<Copy<'a>>,
    /// Where the copies of each task end.
    ends: Vec<usize>,
}

/// One message: where it stands in the buffer, and where it goes.
#[derive(Debug)]
struct Copy<'a> {
    at: Range<usize>,
    to: Place<'a>,
}

#[derive(Debug)]
enum Place<'a> {
    List {
        queue: Cow<'a, str>,
        priority: i64,
        expires: Option<Duration>,
    },
    Channel {
        exchange: &'a str,
        routing_key: &'a str,
    },
}

impl<T> Batch<'_, T> {
    /// What is to be published, in order.
    pub(crate) fn publications(&self) -> Vec<Publication<'_>> {
        self.copies.iter().map(|copy| self.publication(copy)).collect()
    }

    fn publication<'b>(&'b self, copy: &'b Copy<'_>) -> Publication<'b> {
        let raw = &self.bytes[copy.at.clone()];
        match &copy.to {
            Place::List {
                queue,
                priority,
                expires,
            } => Publication::Push {
                queue,
                priority: *priority,
                raw,
                expires: *expires,
            },
            Place::Channel { exchange, routing_key } => Publication::Broadcast {
                exchange,
                routing_key,
                raw,
            },
        }
    }

    /// Each task, and which of the publications are its own.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&T, Range<usize>)> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        let of = begins.zip(&self.ends).map(|(begin, end)| begin..*end);
        self.items.iter().zip(of)
    }

    /// The buffer, for the next one.
    pub(crate) fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

impl Client {
    /// Writes the first of these tasks, as many as travel together; none where there are none. Lets others on this thread
    /// go first again and again, above all the connection that has a batch to send.
    ///
    /// # Errors
    /// As [`Client::call`], and where nobody is bound to an exchange.
    pub(crate) async fn write<'a, T: Sendable>(
        &'a self,
        items: &'a [T],
        bindings: &Bindings,
        mut buffer: Vec<u8>,
    ) -> Result<Batch<'a, T>, SendError> {
        buffer.clear();
        let most = items.len().min(TASKS);
        let mut batch = Batch {
            items: &[],
            bytes: buffer,
            copies: Vec::with_capacity(most),
            ends: Vec::with_capacity(most),
        };
        let mut stretch = 0;
        for item in &items[..most] {
            if batch.bytes.len() >= stretch && !(batch.ends.is_empty() && items.len() == 1) {
                tokio::task::yield_now().await;
                stretch = batch.bytes.len() + STRETCH;
            }
            if batch.bytes.len() >= BYTES {
                break;
            }
            self.add(&mut batch, item, bindings)?;
            batch.ends.push(batch.copies.len());
        }
        batch.items = &items[..batch.ends.len()];
        Ok(batch)
    }

    /// One copy for each queue, each under a delivery tag of its own. kombu's copies share one, and the acknowledgement of
    /// the first loses the others.
    fn add<'a, T: Sendable>(
        &'a self,
        batch: &mut Batch<'a, T>,
        item: &'a T,
        bindings: &Bindings,
    ) -> Result<(), SendError> {
        let call = item.call(self)?;
        let expires = |queue: &str| self.inner.options.expiring_queues.get(queue).copied();
        let kind = match call.target {
            Target::Queue => {
                let to = Place::List {
                    queue: Cow::Borrowed(call.queue),
                    priority: call.parts.priority,
                    expires: expires(call.queue),
                };
                return self.add_copy(batch, &call, item.delivery_tag(), to);
            }
            Target::Exchange(ExchangeKind::Fanout) => {
                let to = Place::Channel {
                    exchange: call.parts.exchange,
                    routing_key: call.queue,
                };
                return self.add_copy(batch, &call, item.delivery_tag(), to);
            }
            Target::Exchange(kind) => kind,
        };
        let exchange = call.parts.exchange;
        let bound = bindings.get(exchange).map_or(&[][..], Vec::as_slice);
        let queues = route(bound, kind, call.queue).map_err(|err| refused(call.parts.task, err.to_string()))?;
        if queues.is_empty() {
            return Err(SendError::NoRoute {
                exchange: exchange.to_owned(),
                kind: kind_name(kind),
                routing_key: call.queue.to_owned(),
                bound: bound.len(),
            });
        }
        for (index, queue) in queues.into_iter().enumerate() {
            let tag = if index == 0 { item.delivery_tag() } else { None };
            let to = Place::List {
                priority: call.parts.priority,
                expires: expires(&queue),
                queue: Cow::Owned(queue),
            };
            self.add_copy(batch, &call, tag, to)?;
        }
        Ok(())
    }

    fn add_copy<'a, T>(
        &self,
        batch: &mut Batch<'a, T>,
        call: &Call<'_>,
        tag: Option<&str>,
        to: Place<'a>,
    ) -> Result<(), SendError> {
        let begin = batch.bytes.len();
        let tag = tag.map_or_else(|| Cow::Owned(self.new_id()), Cow::Borrowed);
        let codec = &self.inner.options.codec;
        codec
            .write(&call.parts, &tag, call.serializer, call.compression, &mut batch.bytes)
            .map_err(|err| refused(call.parts.task, err.why))?;
        let at = begin..batch.bytes.len();
        batch.copies.push(Copy { at, to });
        Ok(())
    }
}
