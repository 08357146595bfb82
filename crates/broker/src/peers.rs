//! Celery's own workers on the same database, asked by its remote control.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use umbel_protocol::control::{Call, Reply};
use umbel_protocol::json::Json;

use crate::control::{failed, names_queue, own_ticket, queues_of};
use crate::{Broker, Error, FanoutBinding, FanoutChannel};

/// The exchange of Celery's events, unless it is configured otherwise.
const EVENTS: &str = "celeryev";

impl Broker {
    /// What Celery workers of this database answer to a command of their remote control, by node: those named, or all. Waits up
    /// to `patience`, and no longer than until everybody has answered.
    ///
    /// Name them wherever the command does something: Umbel workers take it, too.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Call`].
    ///
    /// # Cancellation
    /// Leaves a reply list behind that expires after a minute.
    pub async fn ask_celery(
        &self,
        method: &str,
        arguments: &Json,
        nodes: Option<&[String]>,
        patience: Duration,
    ) -> Result<Vec<(String, Json)>, Error> {
        if nodes.is_some_and(<[String]>::is_empty) {
            return Ok(Vec::new());
        }
        let names = &self.config.control;
        let oid = uuid::Uuid::new_v4().to_string();
        let binding = self.keys.binding(&names.reply_exchange());
        let list = format!("{}{}", self.keys.prefix(), names.reply_queue(&oid));
        let member = names.binding(&oid, self.keys.separator());
        let mut call = Call::new(method, arguments.clone());
        call.reply = Some((own_ticket(&oid), oid.clone()));
        call.destination = nodes.map(<[String]>::to_vec);
        let request = call.publication(names, &oid);
        let mut config = self.config.clone();
        config.response_timeout = patience + Duration::from_secs(2);
        let mut connection = config.connection().await?;
        let listeners: usize = redis::pipe()
            .cmd("SADD")
            .arg(&binding)
            .arg(&member)
            .ignore()
            .cmd("PUBLISH")
            .arg(self.config.channel(&request.exchange, &request.routing_key))
            .arg(&request.payload)
            .query_async::<(usize,)>(&mut connection)
            .await
            .map_err(failed("remote control"))?
            .0;
        let most = nodes.map_or(listeners, <[String]>::len).min(listeners);
        let mut answers = Vec::new();
        let deadline = tokio::time::Instant::now() + patience;
        while answers.len() < most {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            if left.is_zero() {
                break;
            }
            let reply: Option<(String, Vec<u8>)> = redis::cmd("BRPOP")
                .arg(&list)
                .arg(left.as_secs_f64())
                .query_async(&mut connection)
                .await
                .map_err(failed("remote control"))?;
            let Some((_, reply)) = reply else { break };
            answers.extend(Reply::parse(&reply).ok().map(|reply| (reply.node, reply.answer)));
        }
        redis::pipe()
            .cmd("SREM")
            .arg(&binding)
            .arg(&member)
            .ignore()
            .cmd("DEL")
            .arg(&list)
            .ignore()
            .query_async::<()>(&mut connection)
            .await
            .map_err(failed("remote control"))?;
        Ok(answers)
    }

    /// Listens to what Celery workers of this database say of themselves: that they come, live and go.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Call`].
    ///
    /// # Cancellation
    /// Safe.
    pub async fn celery_events(&self) -> Result<FanoutChannel, Error> {
        let workers = FanoutBinding {
            exchange: EVENTS.to_owned(),
            routing_key: "worker.#".to_owned(),
            queue: String::new(),
        };
        FanoutChannel::connect(&self.config, &[workers]).await
    }

    /// Does any Celery worker of this database answer that it consumes the queue? Waits up to `patience` for answers,
    /// and no longer than the first yes.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Call`].
    ///
    /// # Cancellation
    /// Leaves a reply list behind that expires after a minute.
    pub async fn celery_consumes(&self, queue: &str, patience: Duration) -> Result<bool, Error> {
        let mut answer = false;
        self.ask_queues(patience, |reply| {
            answer = names_queue(&reply.answer, queue);
            answer
        })
        .await?;
        Ok(answer)
    }

    /// How many Celery workers of this database answer that they consume a queue, for each queue that any does. Waits up to
    /// `patience` for their answers.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Call`].
    ///
    /// # Cancellation
    /// As [`Broker::celery_consumes`].
    pub async fn celery_consumers(&self, patience: Duration) -> Result<BTreeMap<String, u32>, Error> {
        let mut consumers: BTreeMap<String, u32> = BTreeMap::new();
        self.ask_queues(patience, |reply| {
            // A worker may name a queue twice: once for each of its bindings.
            for queue in queues_of(&reply.answer).collect::<BTreeSet<_>>() {
                *consumers.entry(queue).or_default() += 1;
            }
            false
        })
        .await?;
        Ok(consumers)
    }

    /// Asks all workers which queues they consume, until one answer is enough.
    async fn ask_queues(&self, patience: Duration, mut is_enough: impl FnMut(&Reply) -> bool) -> Result<(), Error> {
        let names = &self.config.control;
        let oid = uuid::Uuid::new_v4().to_string();
        let binding = self.keys.binding(&names.reply_exchange());
        let list = format!("{}{}", self.keys.prefix(), names.reply_queue(&oid));
        let member = names.binding(&oid, self.keys.separator());
        let mut call = Call::new("active_queues", Json::empty_object());
        call.reply = Some((own_ticket(&oid), oid.clone()));
        let request = call.publication(names, &oid);
        // A connection of its own: a blocking pop must not hold up everybody else's calls.
        let mut config = self.config.clone();
        config.response_timeout = patience + Duration::from_secs(2);
        let mut connection = config.connection().await?;
        let listeners: i64 = redis::pipe()
            .cmd("SADD")
            .arg(&binding)
            .arg(&member)
            .ignore()
            .cmd("PUBLISH")
            .arg(self.config.channel(&request.exchange, &request.routing_key))
            .arg(&request.payload)
            .query_async::<(i64,)>(&mut connection)
            .await
            .map_err(failed("active_queues"))?
            .0;
        let deadline = tokio::time::Instant::now() + patience;
        let mut replies = 0;
        while replies < listeners {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            if left.is_zero() {
                break;
            }
            let reply: Option<(String, Vec<u8>)> = redis::cmd("BRPOP")
                .arg(&list)
                .arg(left.as_secs_f64())
                .query_async(&mut connection)
                .await
                .map_err(failed("active_queues"))?;
            let Some((_, reply)) = reply else { break };
            replies += 1;
            if Reply::parse(&reply).is_ok_and(|reply| is_enough(&reply)) {
                break;
            }
        }
        redis::pipe()
            .cmd("SREM")
            .arg(&binding)
            .arg(&member)
            .ignore()
            .cmd("DEL")
            .arg(&list)
            .ignore()
            .query_async::<()>(&mut connection)
            .await
            .map_err(failed("active_queues"))
    }

    /// Counts that a message was handed back as unknown. The count is forgotten ten minutes after the last time.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn count_hand_back(&self, id: &str) -> Result<u64, Error> {
        let key = self.keys.umbel(&format!("handed:{id}"));
        let (times,): (u64,) = redis::pipe()
            .cmd("INCR")
            .arg(&key)
            .cmd("EXPIRE")
            .arg(&key)
            .arg(600)
            .ignore()
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed("INCR handed"))?;
        Ok(times)
    }

    /// How old the leader's last heartbeat is by Redis' clock; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn leader_age(&self, install: &str) -> Result<Option<Duration>, Error> {
        let (beat, (seconds, micros)): (Option<String>, (f64, f64)) = redis::pipe()
            .get(self.keys.umbel(&format!("hb:operator:{install}")))
            .cmd("TIME")
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed("GET heartbeat"))?;
        let at = beat
            .as_deref()
            .and_then(|beat| beat.split_once('|'))
            .and_then(|(at, _)| at.parse::<f64>().ok());
        let age = at.map(|at| seconds + micros / 1e6 - at);
        // One that is ahead by more than clocks are read apart is from before the server's clock went back.
        Ok(age
            .filter(|age| *age > -2.0)
            .map(|age| Duration::try_from_secs_f64(age).unwrap_or_default()))
    }
}
