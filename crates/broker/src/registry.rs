//! Who works here: gate entries and heartbeats.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::call::{Args, HEARTBEAT};
use crate::control::failed;
use crate::gate::Gate;
use crate::{Broker, Error, FollowUp};

/// Version of the contract between operator and worker; an operator serves its own and the one before.
pub(crate) const CONTRACT: u32 = 1;
/// Seconds after the latest hand-back for which they stay counted: pools come and go, and an operator reads them every second.
const HAND_BACKS_KEPT: u64 = 7 * 86_400;

/// A task that runs right now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Running {
    /// Task id.
    pub id: String,
    /// Task name.
    pub task: String,
    /// Queue.
    pub queue: String,
    /// Unix time in seconds of its start, by the worker's clock.
    pub since: f64,
}

/// What a worker says about itself every 5 s.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heartbeat {
    /// Contract version.
    pub v: u32,
    /// Name in Redis, new for every process.
    pub worker: String,
    /// Celery node name.
    pub node: String,
    /// Namespace of the pod; empty outside Kubernetes.
    pub namespace: String,
    /// Uid of the WorkerPool; empty outside Kubernetes.
    pub pool: String,
    /// Pod name.
    pub pod: String,
    /// Pod uid.
    pub pod_uid: String,
    /// Template revision.
    pub revision: String,
    /// Queues it serves.
    pub queues: Vec<String>,
    /// Slots.
    pub slots: u32,
    /// Slots in use.
    pub busy: u32,
    /// Running tasks, at most 100.
    pub running: Vec<Running>,
    /// Gate as the worker last saw it.
    pub gate: String,
    /// Task names it knows, at most 200.
    pub tasks: Vec<String>,
    /// Tasks started since the process began.
    pub started: u64,
    /// Tasks ended since then, in whatever way.
    pub finished: u64,
    /// What it has done for each queue since the process began.
    pub done: BTreeMap<String, Done>,
    /// Program version.
    pub version: String,
}

/// What a worker has done for a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Done {
    /// Runs begun.
    pub started: u64,
    /// Tasks that succeeded.
    pub succeeded: u64,
    /// Tasks that failed for good.
    pub failed: u64,
    /// Messages that it held and that are neither held nor waiting any more, in whatever way.
    pub gone: u64,
}

impl Heartbeat {
    /// The contract version of this build.
    pub const CONTRACT: u32 = CONTRACT;
}

/// A worker as Redis knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerRecord {
    /// Name in Redis.
    pub worker: String,
    /// Its gate.
    pub gate: Gate,
    /// Reconnections of its reserving connection.
    pub epoch: u64,
    /// Term of the last gate call.
    pub term: u64,
    /// Number of that call.
    pub n: u64,
    /// Leases held.
    pub held: u64,
    /// Its last heartbeat, while that is fresh.
    pub heartbeat: Option<Heartbeat>,
}

pub(crate) fn parse_entry(worker: &str, entry: &str, held: i64) -> Option<WorkerRecord> {
    let mut parts = entry.split('|');
    let gate = Gate::parse(parts.next()?)?;
    let epoch = parts.next()?.parse().ok()?;
    let term = parts.next()?.parse().ok()?;
    let n = parts.next()?.parse().ok()?;
    Some(WorkerRecord {
        worker: worker.to_owned(),
        gate,
        epoch,
        term,
        n,
        held: u64::try_from(held).unwrap_or(0),
        heartbeat: None,
    })
}

impl Broker {
    /// Writes a worker's heartbeat; the next one is to come after `every`, and this one expires after three of them.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn heartbeat(&self, heartbeat: &Heartbeat, every: Duration) -> Result<(), Error> {
        let body = serde_json::to_string(heartbeat).unwrap_or_default();
        Args::new(&HEARTBEAT, self.keys.scope())
            .arg(&heartbeat.worker)
            .arg(body)
            .arg((every * 3).as_secs().max(1))
            .call(&mut self.connection.clone())
            .await?
            .text()
            .map(|_| ())
    }

    /// Counts a run that its worker hands back because it stops, for the pool with this uid: with the end of its delivery,
    /// so that it counts though the worker is gone a moment later.
    pub fn hand_back_counted(&self, pool: &str) -> FollowUp {
        FollowUp::Count {
            key: self.keys.umbel("handed-back"),
            ttl: HAND_BACKS_KEPT,
            field: pool.to_owned(),
        }
    }

    /// Runs that workers have handed back because they stopped, by the uid of their pool. It begins anew when nothing was
    /// counted for a week.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn hand_backs(&self) -> Result<BTreeMap<String, u64>, Error> {
        let counted: BTreeMap<String, String> = redis::cmd("HGETALL")
            .arg(self.keys.umbel("handed-back"))
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed("HGETALL umbel:handed-back"))?;
        let numbers = counted.into_iter();
        Ok(numbers
            .filter_map(|(pool, count)| Some((pool, count.parse().ok()?)))
            .collect())
    }

    /// All workers that Redis has a gate entry for, with their heartbeats: two round trips. Entries that are not ours
    /// to read are left out.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn workers(&self) -> Result<Vec<WorkerRecord>, Error> {
        let connection = &mut self.connection.clone();
        let (entries, held) = redis::pipe()
            .hgetall(self.keys.umbel("workers"))
            .hgetall(self.keys.umbel("held"))
            .query_async::<(BTreeMap<String, String>, HashMap<String, i64>)>(connection)
            .await
            .map_err(failed("HGETALL umbel:workers"))?;
        let mut workers: Vec<WorkerRecord> = entries
            .iter()
            .filter_map(|(worker, entry)| {
                parse_entry(worker, entry, held.get(&format!("w:{worker}")).copied().unwrap_or(0))
            })
            .collect();
        if workers.is_empty() {
            return Ok(workers);
        }
        let keys: Vec<String> = workers
            .iter()
            .map(|record| self.keys.umbel(&format!("hb:worker:{}", record.worker)))
            .collect();
        let beats: Vec<Option<Vec<u8>>> = redis::cmd("MGET")
            .arg(keys)
            .query_async(connection)
            .await
            .map_err(failed("MGET heartbeats"))?;
        for (record, beat) in workers.iter_mut().zip(beats) {
            record.heartbeat = beat.and_then(|body| serde_json::from_slice(&body).ok());
        }
        Ok(workers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_parse_and_foreign_ones_are_left_out() {
        let record = parse_entry("w", "closed@5.5|2|7|9", 3).unwrap();
        assert_eq!(
            (record.gate, record.epoch, record.term, record.n, record.held),
            (Gate::Closed { since: 5.5 }, 2, 7, 9, 3)
        );
        assert_eq!(parse_entry("w", "what", 0), None);
        assert_eq!(parse_entry("w", "open|x|1|1", 0), None);
    }
}
