//! All that touches Redis: the only crate that knows its keys, scripts and connections.
//!
//! What Redis holds for us, key by key (`P` is kombu's `global_keyprefix`, `W` a worker process, `Q` a queue):
//!
//! | Key | Content |
//! |---|---|
//! | `PQ`, `PQ\x06\x163` … | kombu's own lists: LPUSH in, taken from the right |
//! | `Punacked` | kombu's, only counted |
//! | `Pumbel:unacked`, `Pumbel:lease` | lease id → source list and raw message; lease id → deadline |
//! | `Pumbel:workers`, `Pumbel:held` | `W` → gate, epoch, last fence; leases held per worker and per queue |
//! | `Pumbel:handed-back` | pool uid → runs that its workers handed back because they stopped |
//! | `Pumbel:att` | task id → deliveries that ended without settlement |
//! | `Pumbel:delayed:Q`, `Pumbel:suspect:Q` | ETA and retries by due time; messages that killed a worker twice |
//! | `Pumbel:dead:Q`, `Pumbel:quarantine:Q` | streams of raw messages with the reason |
//! | `Pumbel:aside`, `Pumbel:keep`, `Pumbel:evicted`, `Pumbel:died` | their bytes; their bounds; what the bounds have cost, by cause; when the last dead letter of a queue came |
//! | `Pumbel:hb:worker:W`, `Pumbel:hb:operator:I` | heartbeats |
//! | `Pumbel:term:I`, `Pumbel:slot:I:<uid>`, `Pumbel:run:<id>`, `Pumbel:step:<pool>` | leadership, schedules, scale-down |
//! | `Pumbel:queue:Q`, `Pumbel:limited`, `Pumbel:freed:Q` | what a queue allows (paused, max_in_flight, rate, max_length, on_full); queues that have such a hash; wake-up |
//! | `Pumbel:rate:<name>`, `Pumbel:lined:<name>` | a rate shared by all workers; task ids whose turn is promised |
//! | `Pumbel:key:*:<key>`, `Pumbel:key:most`, `Pumbel:keyed` | concurrency keys: who holds, who waits, who was woken; lease id → key |
//! | `Pumbel:unique:<key>`, `Pumbel:copy:<id>:<try>` | the task that has a unique key; lease id of who runs it, or `done` |
//! | `Pumbel:revoked`, `Pumbel:revoked-stamps` | task ids and stamps that are not to run, by the time until which that holds |
//! | `Pumbel:revocations` | how often something was revoked |
//! | `Pumbel:clusters:<namespace>`, `Pumbel:targets:<namespace>` | target cluster → its last report; what the operator says of it: the uid that it must have, or that it is gone |
//! | `Pumbel:target:<namespace>/<cluster>`, `Pumbel:target:turns:…` | budget and circuit of a target cluster; tasks at work on it |
//! | `Pumbel:fence`, `Pumbel:gen`, `Pumbel:sweep`, `Pumbel:policy` | last token, id of this data set, sweeps, queue limits |
//!
//! The scripts in `scripts/` say for each what it reads, writes and returns. They pop and remove **last**: an error
//! anywhere earlier leaves the message where it was, at worst twice.

mod address;
mod admin;
mod bind;
mod bounds;
mod call;
mod chord;
mod connect;
mod control;
mod dead;
mod depth;
mod direct;
mod documents;
mod elsewhere;
mod error;
mod events;
mod fanout;
mod fire;
mod gate;
mod keys;
mod limits;
mod link;
mod lookout;
mod open;
mod options;
mod peek;
mod peers;
mod place;
mod publish;
mod registry;
mod reports;
mod reserve;
mod results;
mod revoke;
mod rights;
mod route;
mod sentinel;
mod settle;
mod survey;
mod sweep;
mod targets;
mod tls;
mod trouble;
mod turns;
mod unique;
mod wake;
mod watch;

pub use admin::{Purged, Recovered};
pub use chord::{Counted, Part, claim_token};
pub use connect::{Broker, Config, Endpoint, FANOUT_PREFIX, Sentinel};
pub use control::{ControlChannel, is_own_question};
pub use dead::{Aside, AsideFilter, AsideKind, AsidePage, Evicted, Replayed};
pub use depth::{BrokerSample, DepthSample, QueueDepth, QueueFault};
pub use elsewhere::Elsewhere;
pub use error::Error;
pub use fanout::{FanoutBinding, FanoutChannel};
pub use fire::{AdvanceAnswer, CancelAnswer, FireAnswer, LastSlot, RunEnd, RunPlan, RunState, Slot, SlotMessage};
pub use gate::{Admission, Fence, Gate, GateAnswer, StepAnswer, TermAnswer};
pub use keys::{Keys, PRIORITY_STEPS, SEPARATOR, parse_separator, parse_steps};
pub use limits::{Bound, OnFull, QueuePolicy, Rate, Relieved};
pub use lookout::Lookout;
pub use options::ServerOptions;
pub use peek::{Leased, Peeked, Place};
pub use publish::{Fate, Publication, Replicas, Undelivered};
pub use registry::{Done, Heartbeat, Running, WorkerRecord};
pub use reports::ClusterReport;
pub use reserve::{Batch, Blocked, Hello, Policy, QueueLists, Reserved, Reserver, Taken, WorkerIdentity};
pub use results::{ResultStore, StoredResult, result_prefix};
pub use revoke::{REVOKED_KEPT, Revocations};
pub use route::{Binding, ExchangeKind, route};
pub use settle::{AckGroup, Acks, End, FollowUp, Settlement};
pub use survey::{Durability, Survey};
pub use sweep::{GivenUp, JanitorReport, Overdue, Promoted, Reclaim, Reclaimed, SweepAnswer, Sweeper};
pub use targets::{TargetCall, TargetLimits, TargetRules, TargetSaid, TargetState, TargetWord};
pub use tls::{Pem, Tls};
pub use trouble::Trouble;
pub use turns::{Ask, Once, Turn};
pub use unique::Until;
pub use wake::{Look, Waker};
pub use watch::{Watch, Watcher};
