//! Remote control: requests come by pub/sub, answers go to the list of whoever asked.
//!
//! Nothing here is needed to run tasks: when the connection is away, requests are missed and nothing else.

use std::time::Duration;

use futures::StreamExt;
use redis::aio::{PubSubSink, PubSubStream};
use umbel_protocol::control::{Answered, Fanout, Names};
use umbel_protocol::json::Json;

use crate::place::State;
use crate::{Broker, Config, Error, Keys};

/// An answer that nobody fetches is forgotten after so many seconds; clients wait for about one.
const ANSWER_TTL: u64 = 60;
/// A silent connection is asked whether it is there so often: a subscriber sends nothing by itself, so it would never
/// learn that its server has vanished.
const ALIVE_ASKED: Duration = Duration::from_secs(60);

/// A connection that listens, and notices when its server has vanished.
pub(crate) struct Subscription {
    sink: PubSubSink,
    stream: PubSubStream,
    config: Config,
    born: State,
}

impl Subscription {
    /// Connects and subscribes to channels and to patterns; `call` names it in errors.
    pub(crate) async fn connect(
        config: &Config,
        channels: &[&str],
        patterns: &[&str],
        call: &'static str,
    ) -> Result<Subscription, Error> {
        let attempt = async {
            let (connection, born) = config.pubsub().await?;
            let (mut sink, stream) = connection.split();
            for channel in channels {
                sink.subscribe(channel).await.map_err(failed(call))?;
            }
            for pattern in patterns {
                sink.psubscribe(pattern).await.map_err(failed(call))?;
            }
            Ok(Subscription {
                sink,
                stream,
                config: config.clone(),
                born,
            })
        };
        let patience = config.connect_timeout + config.response_timeout;
        tokio::time::timeout(patience, attempt)
            .await
            .unwrap_or_else(|_| Err(timed_out(call)))
    }

    /// The next message. `None`: the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<redis::Msg> {
        loop {
            tokio::select! {
                message = self.stream.next() => return message,
                // The primary is elsewhere, or the credentials are others: a new connection knows.
                () = self.config.place.left(&self.born) => return None,
                () = tokio::time::sleep(ALIVE_ASKED) => {}
            }
            let alive = self.sink.ping::<redis::Value>();
            if !matches!(
                tokio::time::timeout(self.config.response_timeout, alive).await,
                Ok(Ok(_))
            ) {
                return None;
            }
        }
    }
}

/// The subscription to a database's requests.
pub struct ControlChannel(Subscription);

impl ControlChannel {
    /// Connects and subscribes.
    ///
    /// # Errors
    /// [`Error::Address`], [`Error::Connect`], [`Error::Call`].
    ///
    /// # Cancellation
    /// Safe.
    pub async fn connect(config: &Config) -> Result<ControlChannel, Error> {
        let channel = config.channel(&config.control.exchange(), "");
        Subscription::connect(config, &[&channel], &[], "SUBSCRIBE pidbox")
            .await
            .map(ControlChannel)
    }

    /// The next request, unread. `None`: the connection has ended.
    ///
    /// # Cancellation
    /// Safe.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        let message = self.0.next().await?;
        Some(message.get_payload_bytes().to_vec())
    }
}

impl Config {
    /// The channel of a fanout exchange in this database. kombu puts its prefix in front of channels, too.
    pub(crate) fn channel(&self, exchange: &str, routing_key: &str) -> String {
        let fanout = Fanout {
            prefix: self.fanout_prefix.replace("{db}", &self.database().to_string()),
            with_keys: self.fanout_patterns,
        };
        format!("{}{}", self.key_prefix, fanout.channel(exchange, routing_key))
    }
}

impl Keys {
    /// The set of those who wait for what goes through an exchange.
    pub(crate) fn binding(&self, exchange: &str) -> String {
        format!("{}_kombu.binding.{exchange}", self.prefix())
    }
}

impl Broker {
    /// The names of remote control on this database.
    pub fn control(&self) -> &Names {
        &self.config.control
    }

    /// Puts an answer into the list of whoever asked. False: nobody waits any more.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn answer(&self, answer: &Answered) -> Result<bool, Error> {
        let mut connection = self.connection.clone();
        let members: Vec<String> = redis::cmd("SMEMBERS")
            .arg(self.keys.binding(&answer.exchange))
            .query_async(&mut connection)
            .await
            .map_err(failed("SMEMBERS binding"))?;
        let Some(queue) = answer.queue(members.iter().map(String::as_str), self.keys.separator()) else {
            return Ok(false);
        };
        // Whoever may publish names this list. It gets an answer and an end of life: never a queue of tasks.
        let replies = self.config.control.reply_exchange();
        let is_of_a_client = queue.strip_suffix(&replies).is_some_and(|oid| oid.ends_with('.'));
        if answer.exchange != replies || !is_of_a_client {
            return Ok(false);
        }
        let list = format!("{}{queue}", self.keys.prefix());
        redis::pipe()
            .cmd("LPUSH")
            .arg(&list)
            .arg(&answer.payload)
            .ignore()
            .cmd("EXPIRE")
            .arg(&list)
            .arg(ANSWER_TTL)
            .ignore()
            .query_async::<()>(&mut connection)
            .await
            .map_err(failed("LPUSH answer"))?;
        Ok(true)
    }

    /// The raw messages under these leases; what is gone meanwhile is left out.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn held(&self, lids: &[std::sync::Arc<str>]) -> Result<Vec<(std::sync::Arc<str>, Vec<u8>)>, Error> {
        if lids.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("HMGET");
        command.arg(self.keys.umbel("unacked"));
        for lid in lids {
            command.arg(&**lid);
        }
        let records: Vec<Option<Vec<u8>>> = command
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed("HMGET unacked"))?;
        let found = lids.iter().cloned().zip(records);
        Ok(found
            .filter_map(|(lid, record)| Some((lid.clone(), crate::sweep::held(&lid, &record?).1.to_vec())))
            .collect())
    }

    /// The messages of a queue that wait for their time, the next ones first, with that time in seconds: at most so
    /// many, after the first `skip`.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn delayed(&self, queue: &str, skip: usize, most: usize) -> Result<Vec<(f64, Vec<u8>)>, Error> {
        if most == 0 {
            return Ok(Vec::new());
        }
        let members: Vec<(Vec<u8>, f64)> = redis::cmd("ZRANGE")
            .arg(self.keys.umbel(&format!("delayed:{queue}")))
            .arg(skip)
            .arg(skip + most - 1)
            .arg("WITHSCORES")
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed("ZRANGE delayed"))?;
        let raw = |member: &[u8]| crate::sweep::raw_of(crate::sweep::raw_of(member)).to_vec();
        Ok(members.iter().map(|(member, due)| (*due, raw(member))).collect())
    }
}

/// A question of ours carries this in front of its ticket. Our workers answer it with nothing: it is about Celery's.
const OWN_TICKET: &str = "umbel:";

/// Is the request a question of an Umbel worker for Celery's?
pub fn is_own_question(ticket: &str) -> bool {
    ticket.starts_with(OWN_TICKET)
}

/// The ticket of such a question.
pub(crate) fn own_ticket(oid: &str) -> String {
    format!("{OWN_TICKET}{oid}")
}

/// Does an answer to `active_queues` name the queue?
pub(crate) fn names_queue(answer: &Json, queue: &str) -> bool {
    queues_of(answer).any(|name| name == queue)
}

/// The queues that an answer to `active_queues` names.
pub(crate) fn queues_of(answer: &Json) -> impl Iterator<Item = String> {
    let entries = answer.elements().unwrap_or_default();
    entries.into_iter().filter_map(|entry| entry.get("name")?.text())
}

pub(crate) fn failed(call: &'static str) -> impl FnOnce(redis::RedisError) -> Error {
    move |source| Error::Call { call, source }
}

pub(crate) fn timed_out(call: &'static str) -> Error {
    Error::Call {
        call,
        source: std::io::Error::from(std::io::ErrorKind::TimedOut).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_queues() {
        let answer = Json::parse(r#"[{"name": "celery", "exclusive": false}]"#).unwrap();
        assert!(names_queue(&answer, "celery"));
        assert!(!names_queue(&answer, "other"));
        assert!(!names_queue(&Json::parse(r#"{"error": "celery"}"#).unwrap(), "celery"));
        assert!(is_own_question(&own_ticket("x")) && !is_own_question("x"));
    }

    #[test]
    fn channels_are_under_the_prefix_and_name_their_database() {
        let mut config = Config::new("redis://127.0.0.1:6379/3");
        assert_eq!(config.channel("celery.pidbox", ""), "/3.celery.pidbox");
        config.key_prefix = "app:".into();
        assert_eq!(
            config.channel("celeryev", "worker.online"),
            "app:/3.celeryev/worker.online"
        );
    }
}
