//! Real workers, a leader and producers on a real Redis, beside the model.

mod compare;
mod deliveries;
mod gates;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::sample::Index;
use redis::aio::MultiplexedConnection;
use umbel_broker::{Broker, Config, Fence, Policy, QueueLists, Reserver, TermAnswer, WorkerIdentity};
use umbel_testkit::Redis;

use crate::model::{Gate, LARGEST, Model, QUEUES, Raw};

/// Longer than any case runs.
const LEASE: Duration = Duration::from_mins(10);
const INSTALL: &str = "install";

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Publish {
        queue: usize,
        priority: u8,
        is_oversized: bool,
    },
    Reserve {
        worker: usize,
        count: usize,
    },
    CancelledReserve {
        worker: usize,
        count: usize,
        micros: u64,
    },
    ReserveSuspect(usize),
    Ack {
        worker: usize,
        leases: Vec<Index>,
    },
    End {
        lease: Index,
        end: u8,
    },
    LateEnd(u8),
    LateAck(usize),
    Overdue(Index),
    Renew(Index),
    Sweep,
    /// Its worker dies: overdue, and swept.
    Death(Index),
    Promote,
    Janitor(bool),
    Reconnect {
        worker: usize,
        forgotten: Index,
    },
    OldReserve(usize),
    Open(usize),
    Drain(usize),
    StaleOpen(usize),
    NewLeader,
    Step(usize),
    AdmitSelf(usize),
}

pub(crate) struct World {
    broker: Broker,
    redis: MultiplexedConnection,
    config: Config,
    queues: Vec<QueueLists>,
    reservers: [Reserver; 2],
    old: [Option<Reserver>; 2],
    gates: [Gate; 2],
    fence: Fence,
    has_step: [bool; 2],
    model: Model,
    /// Every lease id there ever was, with its message.
    seen: BTreeMap<String, Raw>,
    last_token: u64,
    counter: u64,
}

fn name(worker: usize) -> String {
    format!("host/{worker}:7")
}

fn reserver(config: &Config, worker: usize) -> Reserver {
    let identity = WorkerIdentity {
        worker: name(worker),
        install: INSTALL.into(),
        is_standalone: false,
    };
    let policies = QUEUES
        .iter()
        .map(|queue| ((*queue).to_owned(), Policy::default()))
        .collect();
    Reserver::new(config.clone(), identity, policies, LEASE, LARGEST)
}

/// The task id of a message here: its number.
fn id(raw: &[u8]) -> String {
    String::from_utf8_lossy(raw.split(|byte| *byte == b':').next().unwrap_or_default()).into_owned()
}

impl World {
    pub(crate) async fn new(server: &Redis) -> World {
        let mut redis = server.connection().await;
        redis::cmd("FLUSHALL")
            .query_async::<()>(&mut redis)
            .await
            .expect("a server to empty");
        let config = Config::new(&server.url());
        let broker = Broker::connect(&config).await.expect("a server to connect to");
        let queues = QUEUES
            .iter()
            .map(|queue| QueueLists::new(broker.keys(), queue))
            .collect();
        let fence = Fence {
            install: INSTALL.into(),
            term: 1,
            n: 0,
        };
        let claimed = broker
            .claim_term(INSTALL, 1, "leader 1")
            .await
            .expect("the server answers");
        assert_eq!(claimed, TermAnswer::Accepted);
        World {
            broker,
            redis,
            queues,
            reservers: [reserver(&config, 0), reserver(&config, 1)],
            config,
            old: [None, None],
            gates: [Gate::Unknown; 2],
            fence,
            has_step: [false; 2],
            model: Model::default(),
            seen: BTreeMap::new(),
            last_token: 0,
            counter: 0,
        }
    }

    /// Messages that died so often that they were buried.
    pub(crate) fn buried(&self) -> usize {
        self.model.buried
    }

    fn next(&mut self) -> u32 {
        self.counter += 1;
        u32::try_from(self.counter).expect("a case is short")
    }

    /// A message that no other equals, with bytes that a careless script would trip over.
    fn raw(&mut self, is_oversized: bool) -> Raw {
        let mut raw = format!("{}:|\u{6}\u{16}", self.next()).into_bytes();
        raw.extend_from_slice(&[0, 0xff, b'\r', b'\n', b'"']);
        if is_oversized {
            raw.resize(LARGEST + 1, b'x');
        }
        raw
    }

    fn held(&self, worker: usize) -> Vec<Arc<str>> {
        let own = self.model.leases.iter().filter(|(_, lease)| lease.worker == worker);
        own.map(|(lid, _)| lid.as_str().into()).collect()
    }

    fn pick(&self, index: &Index) -> Option<String> {
        let count = self.model.leases.len();
        (count > 0)
            .then(|| index.index(count))
            .and_then(|at| self.model.leases.keys().nth(at).cloned())
    }

    /// A lease id that existed and does not any more.
    fn lost_lid(&self) -> Option<String> {
        self.seen
            .keys()
            .find(|lid| !self.model.leases.contains_key(*lid))
            .cloned()
    }

    pub(crate) async fn step(&mut self, op: &Op) {
        match op {
            Op::Publish {
                queue,
                priority,
                is_oversized,
            } => self.publish(*queue, *priority, *is_oversized).await,
            Op::Reserve { worker, count } => self.reserve(*worker, *count).await,
            Op::CancelledReserve { worker, count, micros } => self.cancelled_reserve(*worker, *count, *micros).await,
            Op::ReserveSuspect(worker) => self.reserve_suspect(*worker).await,
            Op::Ack { worker, leases } => self.ack(*worker, leases).await,
            Op::End { lease, end } => {
                if let Some(lid) = self.pick(lease) {
                    self.end(&lid, *end).await;
                }
            }
            Op::LateEnd(end) => {
                if let Some(lid) = self.lost_lid() {
                    self.end(&lid, *end).await;
                }
            }
            Op::LateAck(worker) => self.late_ack(*worker).await,
            Op::Overdue(lease) => self.overdue(lease).await,
            Op::Renew(lease) => self.renew(lease).await,
            Op::Sweep => self.sweep().await,
            Op::Death(lease) => {
                self.overdue(lease).await;
                self.sweep().await;
            }
            Op::Promote => self.promote().await,
            Op::Janitor(is_thorough) => {
                let report = self
                    .broker
                    .janitor(*is_thorough, Duration::ZERO)
                    .await
                    .expect("the server answers");
                assert_eq!(
                    report,
                    umbel_broker::JanitorReport::default(),
                    "nothing of ours needs repair"
                );
            }
            Op::Reconnect { worker, forgotten } => self.reconnect(*worker, forgotten).await,
            Op::OldReserve(worker) => self.old_reserve(*worker).await,
            Op::Open(worker) => self.gate(*worker, true).await,
            Op::Drain(worker) => self.gate(*worker, false).await,
            Op::StaleOpen(worker) => self.stale_open(*worker).await,
            Op::NewLeader => self.new_leader().await,
            Op::Step(worker) => self.scale_down_step(*worker).await,
            Op::AdmitSelf(worker) => self.admit_self(*worker).await,
        }
        self.compare(op).await;
    }
}
