//! Learning that there is work, without asking all the time.
//!
//! kombu's producers only LPUSH. A connection with `CLIENT TRACKING` looks at every list once; Redis then reports the
//! next change of any of them, without its payload and to everybody who looked. After a report, or after `patience`,
//! look again. Where tracking is refused (old proxies, an ACL), looking gets more frequent instead.

use std::sync::Arc;
use std::time::Duration;

use redis::{PushInfo, PushKind};
use tokio::sync::Notify;

use crate::call::{Args, LOOK};
use crate::control::failed;
use crate::link::Connection;
use crate::{Config, Error, Keys, QueueLists, Trouble};

/// What a look has seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    /// Messages in the lists.
    pub waiting: u64,
    /// Messages that wait for a worker of their own.
    pub suspects: u64,
    /// Seconds until the next delayed message is due; zero if it is.
    pub due_in: Option<Duration>,
    /// Redis time in seconds.
    pub now: f64,
    /// State of this worker's gate; empty if Redis does not know the worker.
    pub gate: String,
    /// Workers of this database; those that ended lately may still count.
    pub workers: u64,
}

/// The connection that wakes a worker.
pub struct Waker {
    config: Config,
    keys: Keys,
    worker: String,
    queues: Vec<QueueLists>,
    connection: Option<Connection>,
    changed: Arc<Notify>,
    is_tracking: bool,
    is_open: bool,
    is_blocked: bool,
}

struct OnPush(Arc<Notify>);

impl redis::aio::AsyncPushSender for OnPush {
    fn send(&self, info: PushInfo) -> Result<(), redis::aio::SendError> {
        if matches!(info.kind, PushKind::Invalidate | PushKind::Disconnection) {
            self.0.notify_one();
        }
        Ok(())
    }
}

impl Waker {
    /// Prepares; the first look connects.
    pub fn new(config: Config, worker: &str, queues: Vec<QueueLists>) -> Waker {
        let keys = Keys::of(&config);
        let changed = Arc::new(Notify::new());
        Waker {
            config,
            keys,
            worker: worker.to_owned(),
            queues,
            connection: None,
            changed,
            is_tracking: false,
            is_open: false,
            is_blocked: false,
        }
    }

    /// Looks at these queues from the next look on.
    pub fn watch(&mut self, queues: Vec<QueueLists>) {
        self.queues = queues;
    }

    /// Says whether a limit keeps messages from being taken: then it is reported when it does so no longer.
    pub fn blocked(&mut self, is_blocked: bool) {
        self.is_blocked = is_blocked;
    }

    /// Does Redis report changes? Otherwise look every few milliseconds.
    pub fn is_tracking(&self) -> bool {
        self.is_tracking
    }

    /// Resolves on the next reported change since the last look, and when reports come from the wrong server.
    ///
    /// # Cancellation
    /// Safe: a report that nobody awaited is kept.
    pub async fn changed(&self) {
        let left = async {
            match &self.connection {
                Some(connection) => connection.left().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.changed.notified() => {}
            () = left => {}
        }
    }

    async fn connect(&mut self) -> Result<Connection, Error> {
        match self.config.reporting(OnPush(Arc::clone(&self.changed))).await {
            Ok(mut connection) => {
                let tracking: redis::RedisResult<()> = redis::cmd("CLIENT")
                    .arg("TRACKING")
                    .arg("ON")
                    .query_async(&mut connection)
                    .await;
                if tracking.is_ok() {
                    self.is_tracking = true;
                    return Ok(connection);
                }
            }
            // Only a server that does not know RESP3 is tried once more without.
            Err(err) if err.trouble() != Trouble::Other => return Err(err),
            Err(_) => {}
        }
        self.is_tracking = false;
        self.config.connection().await
    }

    /// Looks at all lists, suspects and delayed messages, and arms the wake-up for their next change.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Call`]; the next look connects anew.
    ///
    /// # Cancellation
    /// Safe.
    pub async fn look(&mut self) -> Result<Look, Error> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let mut args = Args::new(&LOOK, self.keys.scope())
            .arg(&self.worker)
            .arg(self.queues.len());
        for queue in &self.queues {
            args.push(&*queue.queue);
        }
        for list in self.queues.iter().flat_map(|queue| &queue.lists) {
            args.push(&**list);
        }
        // Armed first, looked second, so that nothing is missed between: reading a key on this connection, also a missing
        // one, has Redis report its next change. Both travel together.
        let mut arm = redis::cmd("EXISTS");
        arm.arg(self.watched());
        let mut same = connection.clone();
        let (armed, value) = tokio::join!(
            biased;
            arm.query_async::<()>(&mut same),
            args.call(&mut connection)
        );
        armed.map_err(failed("EXISTS"))?;
        let value = value?;
        let mut reply = value.reply()?;
        let waiting = reply.count()?;
        let suspects = reply.count()?;
        let due = reply.seconds()?;
        let now = reply.seconds()?.unwrap_or(0.0);
        let due_in = due.map(|due| Duration::try_from_secs_f64(due - now).unwrap_or(Duration::ZERO));
        let gate = reply.text()?;
        let workers = reply.count()?;
        self.is_open = gate == "open";
        self.connection = Some(connection); // Not before its answer was understood.
        Ok(Look {
            waiting,
            suspects,
            due_in,
            now,
            gate,
            workers,
        })
    }

    /// Keys whose change is worth a look.
    fn watched(&self) -> Vec<String> {
        let mut keys = Vec::new();
        for queue in &self.queues {
            keys.extend(queue.lists.iter().map(ToString::to_string));
            keys.push(self.keys.umbel(&format!("suspect:{}", queue.queue)));
            keys.push(self.keys.umbel(&format!("delayed:{}", queue.queue)));
            if self.is_blocked {
                keys.push(self.keys.umbel(&format!("freed:{}", queue.queue)));
            }
        }
        if !self.is_open {
            // Every worker's entry lies in this key: whoever is open need not hear of the others.
            keys.push(self.keys.umbel("workers"));
        }
        if keys.is_empty() {
            // Of a worker without queues: EXISTS wants one, and who loses this one has lost its data.
            keys.push(self.keys.umbel("gen"));
        }
        keys
    }
}
