//! The client's side.

use crate::envelope::{Head, open, seal};
use crate::event::Publication;
use crate::json::Json;
use crate::message::Reason;
use crate::write;

/// Names that follow from the control namespace (`control_exchange`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// `celery`, unless configured.
    pub namespace: String,
}

impl Default for Names {
    fn default() -> Names {
        Names {
            namespace: "celery".to_owned(),
        }
    }
}

impl Names {
    /// The fanout exchange of requests.
    pub fn exchange(&self) -> String {
        format!("{}.pidbox", self.namespace)
    }

    /// The direct exchange of replies.
    pub fn reply_exchange(&self) -> String {
        format!("reply.{}.pidbox", self.namespace)
    }

    /// The list on which the client `oid` waits.
    pub fn reply_queue(&self, oid: &str) -> String {
        format!("{oid}.{}", self.reply_exchange())
    }

    /// The member that the client adds to `_kombu.binding.<reply exchange>` before it asks, and removes afterwards.
    pub fn binding(&self, oid: &str, sep: &str) -> String {
        format!("{oid}{sep}{sep}{}", self.reply_queue(oid))
    }
}

/// A request to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// The command.
    pub method: String,
    /// Its arguments: an object.
    pub arguments: Json,
    /// The nodes that it is for; `None`: all.
    pub destination: Option<Vec<String>>,
    /// A pattern of node names, and `glob` or `pcre`.
    pub pattern: Option<(String, String)>,
    /// Ticket and the client's own id, when replies are wanted.
    pub reply: Option<(String, String)>,
    /// The own Lamport clock.
    pub clock: u64,
    /// Unix time after which nobody waits any more.
    pub expires: f64,
}

impl Call {
    /// A request to all workers that wants no reply.
    pub fn new(method: &str, arguments: Json) -> Call {
        Call {
            method: method.to_owned(),
            arguments,
            destination: None,
            pattern: None,
            reply: None,
            clock: 0,
            expires: 0.0,
        }
    }

    /// The request to all workers not to run these tasks, and with `terminate` to stop those that run, by this signal.
    pub fn revoke(ids: &[String], terminate: bool, signal: &str) -> Call {
        let arguments = Json::object([
            ("task_id", &Json::of(ids)),
            ("terminate", &Json::of(&terminate)),
            ("signal", &Json::string(signal)),
        ]);
        Call::new("revoke", arguments)
    }

    /// What to publish.
    pub fn publication(&self, names: &Names, delivery_tag: &str) -> Publication {
        let (pattern, matcher) = match &self.pattern {
            Some((pattern, matcher)) => (Json::string(pattern), Json::string(matcher)),
            None => (Json::null(), Json::null()),
        };
        let mut entries = vec![
            ("method", Json::string(&self.method)),
            ("arguments", self.arguments.clone()),
            ("destination", Json::of(&self.destination)),
            ("pattern", pattern),
            ("matcher", matcher),
        ];
        if let Some((ticket, oid)) = &self.reply {
            let to = write::object([
                ("exchange", &Json::string(&names.reply_exchange())),
                ("routing_key", &Json::string(oid)),
            ]);
            entries.push(("ticket", Json::string(ticket)));
            entries.push(("reply_to", to));
        }
        let body = write::object(entries.iter().map(|(name, value)| (*name, value)));
        let exchange = names.exchange();
        let head = Head {
            headers: write::object([("clock", &Json::of(&self.clock)), ("expires", &Json::of(&self.expires))]),
            delivery_mode: 2,
            exchange: &exchange,
            routing_key: "",
            delivery_tag,
        };
        Publication {
            payload: seal(body.as_str(), &head),
            routing_key: String::new(),
            exchange,
        }
    }
}

/// A reply, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The request that it answers.
    pub ticket: Option<String>,
    /// The worker's Lamport clock.
    pub clock: u64,
    /// The worker that answers.
    pub node: String,
    /// What it says. `{"error": text}` is a refusal.
    pub answer: Json,
}

impl Reply {
    /// Reads an element of the reply list.
    ///
    /// # Errors
    /// [`Reason`]: no envelope of JSON, or no reply in it.
    pub fn parse(payload: &[u8]) -> Result<Reply, Reason> {
        let (headers, body) = open(payload)?;
        let (node, answer) = body.entries().into_iter().next().ok_or(Reason::Field {
            field: "body",
            expected: "an object of one node and its answer",
        })?;
        Ok(Reply {
            ticket: headers.get("ticket").and_then(|ticket| ticket.text()),
            clock: headers.get("clock").and_then(|clock| clock.to().ok()).unwrap_or(0),
            node,
            answer,
        })
    }

    /// Why the worker refused, if it did.
    pub fn error(&self) -> Option<String> {
        self.answer.get("error")?.text()
    }
}
