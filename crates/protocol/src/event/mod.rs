//! Events: what workers and producers tell about themselves and their tasks, over pub/sub.
//!
//! ```text
//! PUBLISH /<db>.celeryev/worker.heartbeat  envelope of  {"hostname": "w1@lab", "utcoffset": 0.0, "pid": 27085,
//!         "clock": 2, "freq": 2.0, …, "timestamp": 1795176024.6437852, "type": "worker-heartbeat"}
//! PUBLISH /<db>.celeryev/task.multi        envelope of  [{…, "type": "task-received"}, {…, "type": "task-started"}]
//! ```
//!
//! [`Source::single`] makes the first kind, for `worker-*` and for a producer's `task-sent`; [`Source::batch`] the second,
//! which is how a worker sends `task-*`: up to [`MAX_BATCH`] at a time, gathered in a [`Batch`]. [`parse`] reads both.
//!
//! A receiver shifts timestamps by the difference of the offsets, although they are absolute. Zero is written here, which
//! is right for receivers in UTC.

mod kind;
mod read;

use jiff::Timestamp;

pub use crate::envelope::Fanout;
pub use kind::{Event, Heartbeat, TaskInfo};
pub use read::{Received, parse};

use crate::envelope::{Head, seal};
use crate::json::Json;
use crate::write;
use kind::Fields;

/// The exchange, unless `event_exchange` names another.
pub const EXCHANGE: &str = "celeryev";

/// The routing key of batches of task events.
pub const MULTI: &str = "task.multi";

/// The most events that Celery puts into one message.
pub const MAX_BATCH: usize = 24;

/// Who tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Node name: `name@host`.
    pub hostname: String,
    /// The exchange.
    pub exchange: String,
    /// How each of its events begins: events are many.
    begin: String,
}

/// When, by the clock and by Lamport's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stamp {
    /// Lamport clock: one more with each event; after a control message `max(own, its) + 1`.
    pub clock: u64,
    /// Unix time in seconds.
    pub timestamp: f64,
}

impl Stamp {
    /// At this time.
    pub fn at(clock: u64, now: Timestamp) -> Stamp {
        Stamp {
            clock,
            timestamp: now.as_microsecond() as f64 / 1e6,
        }
    }
}

/// Something to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// The exchange.
    pub exchange: String,
    /// The routing key; [`Fanout::channel`] makes a channel of the two.
    pub routing_key: String,
    /// The bytes.
    pub payload: Vec<u8>,
}

/// Task events that go out together: text already, as nobody looks at them again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    text: String,
    len: usize,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch {
            text: "[".to_owned(),
            len: 0,
        }
    }
}

impl Batch {
    /// Adds one.
    pub fn push(&mut self, source: &Source, event: &Event, stamp: Stamp) {
        if self.len > 0 {
            self.text.push_str(", ");
        }
        source.write(&mut self.text, event, stamp);
        self.len += 1;
    }

    /// Is it as large as Celery makes one?
    pub fn is_full(&self) -> bool {
        self.len >= MAX_BATCH
    }
}

impl Source {
    /// A worker or producer on the usual exchange.
    pub fn new(hostname: &str, pid: u32) -> Source {
        Source::on(EXCHANGE, hostname, pid)
    }

    /// A worker or producer on another exchange.
    pub fn on(exchange: &str, hostname: &str, pid: u32) -> Source {
        let mut begin = "{\"hostname\": ".to_owned();
        write::string(&mut begin, hostname);
        let mut fields = Fields(&mut begin);
        fields.float("utcoffset", 0.0);
        fields.number("pid", pid);
        Source {
            hostname: hostname.to_owned(),
            exchange: exchange.to_owned(),
            begin,
        }
    }

    fn write(&self, out: &mut String, event: &Event, stamp: Stamp) {
        out.push_str(&self.begin);
        let mut fields = Fields(out);
        fields.number("clock", stamp.clock);
        event.write(&mut fields);
        fields.float("timestamp", stamp.timestamp);
        fields.text("type", event.kind());
        out.push('}');
    }

    /// The message of one event.
    pub fn single(&self, event: &Event, stamp: Stamp, delivery_tag: &str) -> Publication {
        let routing_key = event.kind().replace('-', ".");
        let mut body = String::new();
        self.write(&mut body, event, stamp);
        self.publication(&body, routing_key, delivery_tag)
    }

    /// The message of several task events, in their order.
    pub fn batch(&self, mut events: Batch, delivery_tag: &str) -> Publication {
        events.text.push(']');
        self.publication(&events.text, MULTI.to_owned(), delivery_tag)
    }

    fn publication(&self, body: &str, routing_key: String, delivery_tag: &str) -> Publication {
        let head = Head {
            headers: write::object([("hostname", &Json::string(&self.hostname))]),
            delivery_mode: 1,
            exchange: &self.exchange,
            routing_key: &routing_key,
            delivery_tag,
        };
        Publication {
            payload: seal(body, &head),
            exchange: self.exchange.clone(),
            routing_key,
        }
    }
}
