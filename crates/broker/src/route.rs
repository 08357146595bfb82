//! Which queues an exchange delivers to: bindings as kombu keeps them, and their matching, which is pure.
//!
//! kombu's publishers do the routing, from a set per exchange with members `routing_key SEP pattern SEP queue` and from
//! their own knowledge of the exchange's type, which Redis does not have.

use regex::RegexBuilder;

use crate::control::failed;
use crate::{Broker, Error};

/// What an exchange does with a message. Redis does not know it: the sender must.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ExchangeKind {
    /// To the queues that are bound by exactly the routing key.
    #[default]
    Direct,
    /// To the queues whose pattern matches the routing key.
    Topic,
    /// To everybody who listens; nothing is kept.
    Fanout,
}

impl std::str::FromStr for ExchangeKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<ExchangeKind, Error> {
        match text {
            "direct" => Ok(ExchangeKind::Direct),
            "topic" => Ok(ExchangeKind::Topic),
            "fanout" => Ok(ExchangeKind::Fanout),
            other => Err(Error::Setting {
                name: "exchange type",
                reason: format!("{other:?} is none of direct, topic and fanout"),
            }),
        }
    }
}

/// The longest pattern that is compiled. Routing keys of AMQP have 255 bytes, and a pattern some more.
const PATTERN: usize = 4096;
/// Memory that a compiled pattern may take. Matching takes time in proportion to the key, whatever the pattern.
const COMPILED: usize = 1 << 20;

/// A queue that is bound to an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The routing key, or the pattern as its author wrote it.
    pub routing_key: String,
    /// A regular expression, for topic exchanges.
    pub pattern: String,
    /// The queue.
    pub queue: String,
}

impl Binding {
    /// Reads a member of a binding set; `None` if it has not three parts.
    fn parse(member: &str, separator: &str) -> Option<Binding> {
        let mut parts = member.split(separator);
        let binding = Binding {
            routing_key: parts.next()?.to_owned(),
            pattern: parts.next()?.to_owned(),
            queue: parts.next()?.to_owned(),
        };
        (parts.next().is_none() && !binding.queue.is_empty()).then_some(binding)
    }

    /// Does a message with this routing key go to the queue?
    ///
    /// # Errors
    /// [`Error::Pattern`]: of a topic exchange, when the pattern cannot be used.
    pub fn takes(&self, kind: ExchangeKind, routing_key: &str) -> Result<bool, Error> {
        match kind {
            ExchangeKind::Direct => Ok(self.routing_key == routing_key),
            ExchangeKind::Fanout => Ok(true),
            ExchangeKind::Topic => {
                let failed = |reason: String| Error::Pattern {
                    queue: self.queue.clone(),
                    reason,
                };
                if self.pattern.len() > PATTERN {
                    return Err(failed(format!("longer than {PATTERN} bytes")));
                }
                // `^(?:` … as Python's match, which is anchored at the front whatever the pattern says.
                let regex = RegexBuilder::new(&format!("^(?:{})", self.pattern))
                    .size_limit(COMPILED)
                    .build()
                    .map_err(|err| failed(err.to_string()))?;
                Ok(regex.is_match(routing_key))
            }
        }
    }
}

/// The queues that take a message with this routing key, each once, by name.
///
/// # Errors
/// [`Error::Pattern`].
pub fn route(bindings: &[Binding], kind: ExchangeKind, routing_key: &str) -> Result<Vec<String>, Error> {
    let mut queues = Vec::new();
    for binding in bindings {
        if binding.takes(kind, routing_key)? {
            queues.push(binding.queue.clone());
        }
    }
    queues.sort();
    queues.dedup();
    Ok(queues)
}

impl Broker {
    /// The bindings of an exchange. Members that are none are left out.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn bindings(&self, exchange: &str) -> Result<Vec<Binding>, Error> {
        let members: Vec<Vec<u8>> = redis::cmd("SMEMBERS")
            .arg(self.keys.binding(exchange))
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed("SMEMBERS binding"))?;
        let text = |member: &Vec<u8>| String::from_utf8(member.clone()).ok();
        let bindings = members.iter().filter_map(text);
        Ok(bindings
            .filter_map(|member| Binding::parse(&member, self.keys.separator()))
            .collect())
    }

    /// Queues that are bound to a direct exchange by a routing key, as kombu's producers find them.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn bound_queues(&self, exchange: &str, routing_key: &str) -> Result<Vec<String>, Error> {
        route(&self.bindings(exchange).await?, ExchangeKind::Direct, routing_key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(members: &[&str]) -> Vec<Binding> {
        let parse = |member: &&str| Binding::parse(member, "|");
        members.iter().filter_map(parse).collect()
    }

    #[test]
    fn a_direct_exchange_compares_keys() {
        let bindings = bound(&["k1||d2", "k1||d1", "k1||d1", "k3||d3", "no binding"]);
        assert_eq!(bindings.len(), 4);
        assert_eq!(route(&bindings, ExchangeKind::Direct, "k1").unwrap(), ["d1", "d2"]);
        assert_eq!(
            route(&bindings, ExchangeKind::Direct, "k").unwrap(),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_topic_exchange_matches_what_kombu_stored() {
        let bindings = bound(&[
            r"feed.#|^feed\..*?$|all",
            r"feed.*.important|^feed\.[^\.]+\.important$|imp",
        ]);
        let cases = [
            ("feed.sport.important", vec!["all", "imp"]),
            ("feed.sport", vec!["all"]),
            ("feed", vec![]),
            ("x.feed.sport", vec![]),
            ("feed.a.b.important", vec!["all"]),
        ];
        for (key, queues) in cases {
            assert_eq!(route(&bindings, ExchangeKind::Topic, key).unwrap(), queues, "{key}");
        }
    }

    #[test]
    fn a_pattern_that_cannot_be_used_is_named_and_a_nasty_one_is_harmless() {
        for bad in ["(", &"a".repeat(5000), "(a{1000}){1000}"] {
            let err = route(&bound(&[&format!("k|{bad}|q")]), ExchangeKind::Topic, "k").unwrap_err();
            assert!(err.to_string().contains("queue q"), "{err}");
        }
        let nasty = bound(&["k|^(a+)+$|q"]);
        let key = format!("{}b", "a".repeat(100_000));
        assert!(route(&nasty, ExchangeKind::Topic, &key).unwrap().is_empty());
    }
}
