//! How much there is to do, and who does it: one round trip for all queues and workers of a broker.

use std::collections::BTreeMap;

use crate::call::{Args, DEPTH};
use crate::registry::parse_entry;
use crate::{Broker, Error, Keys, WorkerRecord};

/// Messages due within so many seconds count as due soon.
const DUE_SOON: u64 = 30;

/// A queue at one instant.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QueueDepth {
    /// Messages in its lists.
    pub waiting: u64,
    /// The same by priority step.
    pub by_priority: Vec<(u8, u64)>,
    /// Leases of ours on its messages.
    pub in_flight: u64,
    /// Delayed messages, due or not.
    pub delayed: u64,
    /// Delayed messages due within 30 s.
    pub due_soon: u64,
    /// Messages kept apart for a worker of their own: they count as waiting.
    pub suspect: u64,
    /// Dead letters.
    pub dead: u64,
    /// Messages in the quarantine.
    pub quarantine: u64,
    /// Hash of the element at the tail, to see how long it has been there.
    pub tail: Option<String>,
    /// When the tail element was sent (Unix seconds), where its producer says so.
    pub tail_sent_at: Option<f64>,
    /// Whether nothing of it is consumed, whoever said so.
    pub is_paused: bool,
    /// What its object has said of it: [`Broker::has_said`].
    pub said: Option<String>,
    /// When its last dead letter came, by Redis' clock (Unix seconds).
    pub died_at: Option<f64>,
}

/// A queue of which a key has another type than it must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueFault {
    /// The key.
    pub key: String,
    /// The server's words.
    pub reason: String,
}

/// All queues of a broker at one instant.
#[derive(Debug, Clone, PartialEq)]
pub struct DepthSample {
    /// Redis time in milliseconds.
    pub taken_at_ms: i64,
    /// Id of the data set; empty before any worker said hello.
    pub generation: String,
    /// Messages in Celery's own workers, all queues together.
    pub foreign_unacked: u64,
    /// The last token that was given out: it only grows, unless data is lost.
    pub fence: u64,
    /// In the order asked.
    pub queues: Vec<Result<QueueDepth, QueueFault>>,
}

/// A broker at one instant.
#[derive(Debug, Clone, PartialEq)]
pub struct BrokerSample {
    /// Its queues.
    pub depths: DepthSample,
    /// Every worker that has a gate entry which is ours to read, with its heartbeat while that is fresh.
    pub workers: Vec<WorkerRecord>,
    /// Runs that workers have handed back because they stopped, by the uid of their pool. It begins anew when nothing was
    /// counted for a week.
    pub hand_backs: BTreeMap<String, u64>,
}

impl Broker {
    /// Samples queues.
    ///
    /// # Errors
    /// [`Error::Call`]: an outage is not an empty queue.
    pub async fn depths(&self, queues: &[String]) -> Result<DepthSample, Error> {
        let rows: Vec<_> = queues.iter().map(|queue| (queue.as_str(), self.keys.clone())).collect();
        Ok(self.look_at(&rows, false).await?.depths)
    }

    /// Samples queues, each with its priority steps, and all workers.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn sample(&self, queues: &[(&str, &[u8])]) -> Result<BrokerSample, Error> {
        self.look_at(&self.rows(queues), true).await
    }

    fn rows<'a>(&self, queues: &[(&'a str, &'a [u8])]) -> Vec<(&'a str, Keys)> {
        // Nearly all have the same steps.
        let mut keys: BTreeMap<&[u8], Keys> = BTreeMap::new();
        let mut of = |steps| keys.entry(steps).or_insert_with(|| self.keys.with_steps(steps)).clone();
        queues.iter().map(|(queue, steps)| (*queue, of(steps))).collect()
    }

    /// Samples queues, each with its priority steps, and no workers.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn glance(&self, queues: &[(&str, &[u8])]) -> Result<DepthSample, Error> {
        Ok(self.look_at(&self.rows(queues), false).await?.depths)
    }

    async fn look_at(&self, queues: &[(&str, Keys)], with_workers: bool) -> Result<BrokerSample, Error> {
        let mut args = Args::new(&DEPTH, self.keys.scope())
            .arg(DUE_SOON)
            .arg(u8::from(with_workers));
        for (queue, keys) in queues {
            let lists = keys.lists(queue);
            args.push(queue);
            args.push(lists.len());
            for list in lists {
                args.push(list);
            }
        }
        let mut reply = args.call(&mut self.connection.clone()).await?.reply()?;
        #[allow(clippy::cast_possible_truncation)] // Milliseconds since 1970 fit for longer than the sun lives.
        let taken_at_ms = (reply.seconds()?.unwrap_or(0.0) * 1000.0) as i64;
        let generation = reply.text()?;
        let foreign_unacked = reply.count()?;
        let fence = reply.count()?;
        let (mut entries, mut workers) = (reply.array()?, Vec::new());
        while !entries.is_done() {
            let (worker, entry, held) = (entries.text()?, entries.text()?, entries.number()?);
            let beat = entries.bytes()?;
            if let Some(mut record) = parse_entry(&worker, &entry, held) {
                record.heartbeat = serde_json::from_slice(&beat).ok();
                workers.push(record);
            }
        }
        workers.sort_by(|one, other| one.worker.cmp(&other.worker));
        let (mut counted, mut hand_backs) = (reply.array()?, BTreeMap::new());
        while !counted.is_done() {
            let (pool, count) = (counted.text()?, counted.text()?);
            hand_backs.extend(count.parse().ok().map(|count| (pool, count)));
        }
        let mut rows = Vec::with_capacity(queues.len());
        for (_, keys) in queues {
            let mut row = reply.array()?;
            if row.text()? == "fault" {
                rows.push(Err(QueueFault {
                    key: row.text()?,
                    reason: row.text()?,
                }));
                continue;
            }
            let mut depth = QueueDepth {
                in_flight: row.count()?,
                delayed: row.count()?,
                due_soon: row.count()?,
                suspect: row.count()?,
                dead: row.count()?,
                quarantine: row.count()?,
                tail: Some(row.text()?).filter(|tail| !tail.is_empty()),
                tail_sent_at: row.seconds()?,
                ..QueueDepth::default()
            };
            let mut lengths = row.array()?;
            for &step in keys.steps() {
                let length = lengths.count()?;
                depth.waiting += length;
                depth.by_priority.push((step, length));
            }
            depth.is_paused = row.text()? == "1";
            depth.said = Some(row.text()?).filter(|said| !said.is_empty());
            depth.died_at = row.seconds()?;
            rows.push(Ok(depth));
        }
        let depths = DepthSample {
            taken_at_ms,
            generation,
            foreign_unacked,
            fence,
            queues: rows,
        };
        Ok(BrokerSample {
            depths,
            workers,
            hand_backs,
        })
    }
}
