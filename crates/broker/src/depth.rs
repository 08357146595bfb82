//! How much there is to do: one round trip for all queues of a broker.

use crate::call::{Args, DEPTH};
use crate::{Broker, Error};

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

impl Broker {
    /// Samples queues.
    ///
    /// # Errors
    /// [`Error::Call`]: an outage is not an empty queue.
    pub async fn depths(&self, queues: &[String]) -> Result<DepthSample, Error> {
        let mut args = Args::new(&DEPTH, self.keys.scope()).arg(DUE_SOON);
        for queue in queues {
            let lists = self.keys.lists(queue);
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
        let mut rows = Vec::with_capacity(queues.len());
        while !reply.is_done() {
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
            for &step in self.keys.steps() {
                let length = lengths.count()?;
                depth.waiting += length;
                depth.by_priority.push((step, length));
            }
            depth.is_paused = row.text()? == "1";
            depth.died_at = row.seconds()?;
            rows.push(Ok(depth));
        }
        Ok(DepthSample {
            taken_at_ms,
            generation,
            foreign_unacked,
            fence,
            queues: rows,
        })
    }
}
