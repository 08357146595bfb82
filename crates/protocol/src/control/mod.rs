//! Remote control: requests to workers over pub/sub, replies over lists.
//!
//! ```text
//! PUBLISH /<db>.celery.pidbox   headers {"clock": n, "expires": unix time}, body
//!   {"method": "ping", "arguments": {}, "destination": null, "pattern": null, "matcher": null,
//!    "ticket": "<uuid>", "reply_to": {"exchange": "reply.celery.pidbox", "routing_key": "<oid>"}}
//!
//! SMEMBERS _kombu.binding.reply.celery.pidbox      "<oid>" SEP "" SEP "<oid>.reply.celery.pidbox"
//! LPUSH <oid>.reply.celery.pidbox   headers {"ticket": "<uuid>", "clock": n}, body {"w1@lab": {"ok": "pong"}}
//! ```
//!
//! A worker reads a payload with [`Request::parse`], takes it if [`Request::addressed_to`] says so, asks
//! [`Command::of`] what is wanted, and answers with one of the builders in [`answer`] by way of [`Request::reply`].
//! A client makes a request with [`Call::publication`] and reads what comes back with [`Reply::parse`].
//!
//! Nothing here is authenticated: whoever can publish can stop a worker. Celery does not heed `expires` either;
//! [`Request::is_expired`] lets a worker do better.

pub mod answer;
mod call;
mod command;
mod info;
mod matching;
mod rate;
pub mod signal;
mod stats;

use jiff::Timestamp;

pub use crate::envelope::Fanout;
pub use call::{Call, Names, Reply};
pub use command::{Command, Refusal};
pub use info::{Configuration, Consumed, TaskRequest};
pub use matching::{Unmatchable, glob};
pub use rate::per_second;
pub use stats::{Autoscaler, Broker, Pool, Stats, Usage};

use crate::envelope::{Head, open, seal};
use crate::json::Json;
use crate::message::Reason;
use crate::write;

/// Where an answer is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTo {
    /// `reply.celery.pidbox`.
    pub exchange: String,
    /// The client's own id.
    pub routing_key: String,
}

/// A request, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The command.
    pub method: String,
    /// Its arguments: an object.
    pub arguments: Json,
    /// The nodes that it is for; `None` or empty: all.
    pub destination: Option<Vec<String>>,
    /// The nodes that it is for, as a pattern; counts only beside [`Request::matcher`], and without a destination.
    pub pattern: Option<String>,
    /// `glob` or `pcre`.
    pub matcher: Option<String>,
    /// Names the request in its replies.
    pub ticket: Option<String>,
    /// Where an answer is wanted; `None`: nowhere.
    pub reply_to: Option<ReplyTo>,
    /// The sender's Lamport clock: the own one becomes `max(own, this) + 1`.
    pub clock: u64,
    /// Unix time after which the sender does not wait any more; `None` or 0: never.
    pub expires: Option<f64>,
}

/// An answer on its way to the client's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The exchange; its members are in `_kombu.binding.<exchange>`.
    pub exchange: String,
    /// The client.
    pub routing_key: String,
    /// The bytes to push.
    pub payload: Vec<u8>,
}

impl Request {
    /// Reads a payload of the control channel.
    ///
    /// # Errors
    /// [`Reason`]: no envelope of JSON, or no request in it. To be logged and forgotten: anyone can publish.
    pub fn parse(payload: &[u8]) -> Result<Request, Reason> {
        let (headers, body) = open(payload)?;
        let text = |name| {
            body.get(name)
                .and_then(|value| value.text())
                .filter(|text| !text.is_empty())
        };
        let arguments = match body.get("arguments") {
            Some(arguments) if arguments.is_object() => arguments,
            None => Json::empty_object(),
            Some(arguments) if arguments.is_null() => Json::empty_object(),
            Some(_) => {
                return Err(Reason::Field {
                    field: "arguments",
                    expected: "an object",
                });
            }
        };
        let destination = body.get("destination").and_then(|nodes| match nodes.text() {
            Some(node) => Some(vec![node]),
            None => Some(nodes.elements()?.iter().filter_map(Json::text).collect()),
        });
        let reply_to = body.get("reply_to").and_then(|to| {
            Some(ReplyTo {
                exchange: to.get("exchange")?.text()?,
                routing_key: to.get("routing_key")?.text()?,
            })
        });
        Ok(Request {
            method: text("method").ok_or(Reason::Missing("method"))?,
            arguments,
            destination,
            pattern: text("pattern"),
            matcher: text("matcher"),
            ticket: text("ticket"),
            reply_to,
            clock: headers.get("clock").and_then(|clock| clock.to().ok()).unwrap_or(0),
            expires: headers.get("expires").and_then(|expires| expires.to().ok()),
        })
    }

    /// Is this node meant?
    ///
    /// # Errors
    /// [`Unmatchable`]: the pattern cannot be evaluated. Nobody is meant then.
    pub fn addressed_to(&self, node: &str) -> Result<bool, Unmatchable> {
        if let Some(nodes) = self.destination.as_ref().filter(|nodes| !nodes.is_empty()) {
            return Ok(nodes.iter().any(|name| name == node));
        }
        match (&self.pattern, &self.matcher) {
            (Some(pattern), Some(matcher)) => matching::matches(node, pattern, matcher),
            _ => Ok(true),
        }
    }

    /// Has the sender given up?
    pub fn is_expired(&self, now: Timestamp) -> bool {
        let at = self.expires.filter(|at| *at > 0.0);
        at.is_some_and(|at| at < now.as_microsecond() as f64 / 1e6)
    }

    /// This node's answer, if one is wanted. `clock` is the own Lamport clock.
    pub fn reply(&self, node: &str, answer: &Json, clock: u64, delivery_tag: &str) -> Option<Answered> {
        let to = self.reply_to.as_ref()?;
        let ticket = self.ticket.as_deref().map_or_else(Json::null, Json::string);
        let head = Head {
            headers: write::object([("ticket", &ticket), ("clock", &Json::of(&clock))]),
            delivery_mode: 1,
            exchange: &to.exchange,
            routing_key: &to.routing_key,
            delivery_tag,
        };
        Some(Answered {
            payload: seal(write::object([(node, answer)]).as_str(), &head),
            exchange: to.exchange.clone(),
            routing_key: to.routing_key.clone(),
        })
    }
}

impl Answered {
    /// The list to push to, out of the members of `_kombu.binding.<exchange>`; `sep` separates their fields (`06 16`, or
    /// the transport option of that name). `None`: the client is gone, and the answer is to be dropped.
    ///
    /// Let the list expire: Celery does not, so the list of a client that died stays for ever.
    pub fn queue<'a>(&self, members: impl IntoIterator<Item = &'a str>, sep: &str) -> Option<&'a str> {
        members.into_iter().find_map(|member| {
            let (routing_key, rest) = member.split_once(sep)?;
            let (_, queue) = rest.split_once(sep)?;
            (routing_key == self.routing_key).then_some(queue)
        })
    }
}
