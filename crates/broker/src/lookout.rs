//! Learning that something came into a list that was empty, without asking for it.
//!
//! A connection with `CLIENT TRACKING` that has read a key, also a missing one, is told of its next change by Redis, and of
//! no other. So empty lists are armed once, and nothing is sent while they stay so. What could not be armed is seen by
//! the next sample.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use redis::{PushInfo, PushKind, Value};
use tokio::sync::Notify;

use crate::control::failed;
use crate::link::Connection;
use crate::{Config, Error, Keys};

/// Keys of one command: few enough that it takes Redis well below a millisecond.
const TOGETHER: usize = 1_000;

/// Watches empty queues of one broker.
pub struct Lookout {
    config: Config,
    keys: Keys,
    connection: Option<Connection>,
    /// Lists of each queue that is watched.
    armed: BTreeMap<String, Vec<String>>,
    reports: Arc<Reports>,
}

#[derive(Default)]
struct Reports {
    lists: Mutex<Reported>,
    came: Notify,
}

#[derive(Default)]
struct Reported {
    lists: HashSet<String>,
    /// Any list may have changed, or the connection is gone: none is armed any more.
    all: bool,
}

struct OnPush(Arc<Reports>);

impl redis::aio::AsyncPushSender for OnPush {
    fn send(&self, info: PushInfo) -> Result<(), redis::aio::SendError> {
        let mut reported = self.0.lists.lock().unwrap_or_else(PoisonError::into_inner);
        match info.kind {
            PushKind::Disconnection => reported.all = true,
            PushKind::Invalidate => match info.data.into_iter().next() {
                Some(Value::Array(keys)) => {
                    let texts = keys.into_iter().filter_map(|key| match key {
                        Value::BulkString(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
                        _ => None,
                    });
                    reported.lists.extend(texts);
                }
                // FLUSHALL names no key.
                _ => reported.all = true,
            },
            _ => return Ok(()),
        }
        self.0.came.notify_one();
        Ok(())
    }
}

impl Lookout {
    /// Prepares; the first queues to watch connect.
    pub fn new(config: Config) -> Lookout {
        let keys = Keys::of(&config);
        Lookout {
            config,
            keys,
            connection: None,
            armed: BTreeMap::new(),
            reports: Arc::default(),
        }
    }

    /// Watches these queues with their priority steps, which were seen empty, and no others. Those into which something came
    /// meanwhile are reported at once.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Call`], also where the server does not report changes: nothing is watched.
    ///
    /// # Cancellation
    /// Nothing is watched until the next call.
    pub async fn watch(&mut self, empty: &[(&str, &[u8])]) -> Result<(), Error> {
        let Lookout { connection, armed, .. } = self;
        let (taken, known) = (connection.take(), std::mem::take(armed));
        let mut connection = match taken {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let mut fresh: Vec<(&str, Vec<String>)> = Vec::new();
        let mut armed = BTreeMap::new();
        for (queue, steps) in empty {
            match known.get(*queue) {
                Some(lists) => drop(armed.insert((*queue).to_owned(), lists.clone())),
                None => fresh.push((queue, self.keys.with_steps(steps).lists(queue))),
            }
        }
        for some in fresh.chunks(TOGETHER / 4) {
            let lists: Vec<&String> = some.iter().flat_map(|(_, lists)| lists).collect();
            let there: usize = redis::cmd("EXISTS")
                .arg(&lists)
                .query_async(&mut connection)
                .await
                .map_err(failed("EXISTS"))?;
            if there > 0 {
                let mut reported = self.reports.lists.lock().unwrap_or_else(PoisonError::into_inner);
                reported.lists.extend(lists.into_iter().cloned());
                self.reports.came.notify_one();
            }
            armed.extend(some.iter().map(|(queue, lists)| ((*queue).to_owned(), lists.clone())));
        }
        self.armed = armed;
        self.connection = Some(connection);
        Ok(())
    }

    /// The queues into which something came, or may have come, once there is one. They are watched no more.
    ///
    /// # Cancellation
    /// Safe: a report that nobody awaited is kept.
    pub async fn came(&mut self) -> BTreeSet<String> {
        loop {
            let left = async {
                match &self.connection {
                    Some(connection) => connection.left().await,
                    None => std::future::pending().await,
                }
            };
            let is_lost = tokio::select! {
                () = self.reports.came.notified() => false,
                () = left => true,
            };
            let reported = std::mem::take(&mut *self.reports.lists.lock().unwrap_or_else(PoisonError::into_inner));
            let came: BTreeSet<String> = if reported.all || is_lost {
                self.connection = None;
                self.armed.keys().cloned().collect()
            } else {
                let queues = reported.lists.iter().map(|list| self.keys.queue_of(list));
                queues
                    .filter(|queue| self.armed.contains_key(*queue))
                    .map(str::to_owned)
                    .collect()
            };
            self.armed.retain(|queue, _| !came.contains(queue));
            if !came.is_empty() {
                return came;
            }
        }
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let mut connection = self.config.reporting(OnPush(Arc::clone(&self.reports))).await?;
        redis::cmd("CLIENT")
            .arg("TRACKING")
            .arg("ON")
            .query_async::<()>(&mut connection)
            .await
            .map_err(failed("CLIENT TRACKING"))?;
        *self.reports.lists.lock().unwrap_or_else(PoisonError::into_inner) = Reported::default();
        Ok(connection)
    }
}
