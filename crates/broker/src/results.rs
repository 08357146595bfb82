//! Results under Celery's keys.

use std::time::Duration;

use futures::StreamExt;

use crate::call::{Args, STORE_RESULT};
use crate::control::failed;
use crate::{Broker, Config, Error};

/// The prefix of result keys that Celery makes of `global_keyprefix`: set off by an underscore, unless it ends in
/// something that sets it off.
pub fn result_prefix(global_keyprefix: &str) -> String {
    match global_keyprefix.chars().last() {
        None | Some(':' | '_' | '-' | '.') => global_keyprefix.to_owned(),
        Some(_) => format!("{global_keyprefix}_"),
    }
}

/// A result document on its way into Redis.
#[derive(Debug, Clone)]
pub struct StoredResult {
    /// Key, also the channel that wakes waiting clients.
    pub key: String,
    /// Seconds to live; 0 = for ever.
    pub ttl: u64,
    /// Celery's document.
    pub document: Vec<u8>,
    /// SUCCESS is final: nothing else overwrites it.
    pub is_success: bool,
}

/// A result backend: the broker's database, or another one.
#[derive(Clone)]
pub struct ResultStore {
    pub(crate) broker: Broker,
}

impl ResultStore {
    /// Connects to another database than the broker's.
    ///
    /// # Errors
    /// [`Error::Address`], [`Error::Connect`].
    pub async fn connect(config: &Config) -> Result<ResultStore, Error> {
        Ok(ResultStore {
            broker: Broker::connect(config).await?,
        })
    }

    /// The broker's own database as the place of results.
    pub fn of(broker: &Broker) -> ResultStore {
        ResultStore { broker: broker.clone() }
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.broker.config.result_prefix
    }

    pub(crate) fn scope(&self) -> &str {
        self.broker.keys.scope()
    }

    pub(crate) fn connection(&self) -> crate::link::Link {
        self.broker.connection.clone()
    }

    /// Key of a task's document.
    pub fn key(&self, id: &str) -> String {
        self.broker.result_key(id)
    }

    /// Stores documents and wakes who waits for them.
    ///
    /// # Errors
    /// [`Error::Call`]: repeat it.
    pub async fn store(&self, results: &[StoredResult]) -> Result<(), Error> {
        let mut args = Args::new(&STORE_RESULT, self.scope());
        for StoredResult {
            key,
            ttl,
            document,
            is_success,
        } in results
        {
            args.push(key);
            args.push(*ttl);
            args.push(document.as_slice());
            args.push(i32::from(*is_success));
        }
        args.call(&mut self.broker.connection.clone())
            .await?
            .count()
            .map(|_| ())
    }
}

impl Broker {
    /// Key of a task's result document on this database.
    pub fn result_key(&self, id: &str) -> String {
        format!("{}celery-task-meta-{id}", self.config.result_prefix)
    }

    /// The result document of a task, if there is one.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn result(&self, id: &str) -> Result<Option<Vec<u8>>, Error> {
        redis::cmd("GET")
            .arg(self.result_key(id))
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed("GET result"))
    }

    /// Waits for a document in a final state (SUCCESS, FAILURE, REVOKED); `None` when the time is over.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Call`].
    ///
    /// # Cancellation
    /// Safe.
    pub async fn wait_result(&self, id: &str, timeout: Duration) -> Result<Option<Vec<u8>>, Error> {
        let wait = async {
            let failed = |source| Error::Call {
                call: "SUBSCRIBE result",
                source,
            };
            let (mut pubsub, _) = self.config.pubsub().await?;
            pubsub.subscribe(self.result_key(id)).await.map_err(failed)?;
            // Subscribed first, looked after: a result stored in between is seen either way.
            if let Some(document) = self.result(id).await?
                && is_final(&document)
            {
                return Ok(Some(document));
            }
            let mut messages = pubsub.on_message();
            while let Some(message) = messages.next().await {
                if is_final(message.get_payload_bytes()) {
                    return Ok(Some(message.get_payload_bytes().to_vec()));
                }
            }
            Ok(None)
        };
        tokio::time::timeout(timeout, wait).await.unwrap_or(Ok(None))
    }
}

fn is_final(document: &[u8]) -> bool {
    umbel_protocol::result::parse(document)
        .is_ok_and(|doc| matches!(doc.status.as_str(), "SUCCESS" | "FAILURE" | "REVOKED"))
}
