//! Canvas: what follows a task's end, as values.
//!
//! A message carries its future in the third part of its body, the embed:
//!
//! ```text
//! {"callbacks": [signature…],   sent when it succeeds, the result before their own arguments
//!  "errbacks":  [signature…],   sent when it fails, the failed id before their own arguments
//!  "chain":     [signature…],   the rest of the chain, the next step LAST
//!  "chord":     signature}      the body of the chord that this task is a header member of
//! ```
//!
//! A worker asks one of three functions what a task's end entails, and puts the answer into the same transaction as the
//! acknowledgement:
//!
//! | end | function | what comes of it |
//! |---|---|---|
//! | success | [`after_success`] | callbacks, the next step of the chain, the chord part |
//! | failure | [`after_failure`] | the chord part, FAILURE for the rest of the chain and its chord parts, errbacks |
//! | revoked or expired | [`after_revoked`] | the chord part |
//!
//! Each answers an [`Aftermath`]: effects in Celery's order, and the children to name in the task's result document.
//! When an effect is a [`FollowUp::Part`], the chord part is counted in Redis under [`ChordKeys`]; whoever completes the
//! chord calls [`complete_chord`] with all parts and carries out what that answers.
//!
//! ```
//! # use umbel_protocol::json::Json;
//! # use umbel_protocol::message::{Limits, NewTask, decode};
//! use umbel_protocol::canvas::{FollowUp, Sender, after_success};
//!
//! # let embed = r#"{"callbacks": null, "errbacks": null, "chain": [{"task": "proj.mul", "args": [2], "kwargs": {},
//! #     "options": {"task_id": "next"}, "subtask_type": null, "immutable": false}], "chord": null}"#;
//! # let task = NewTask { id: "this".into(), task: "proj.add".into(), embed: Json::parse(embed).ok(), ..NewTask::default() };
//! # let message = decode(&task.encode(), &Limits::default(), &jiff::tz::TimeZone::UTC)?;
//! let mut last = 0;
//! let mut ids = || {
//!     last += 1; // A v4 UUID in earnest.
//!     format!("id-{last}")
//! };
//! let mut sender = Sender { now: jiff::Timestamp::now(), origin: "gen1@host", reply_to: "", priority: 0, ids: &mut ids,
//!     is_function: &|_| false };
//! // `message` is the first step of add(…) | mul(2), and has returned 5.
//! let aftermath = after_success(&message, &Json::of(&5), &mut sender)?;
//! let FollowUp::Send(next) = &aftermath.steps[0] else { unreachable!() };
//! assert_eq!((next.task.task.as_str(), next.task.args.as_str()), ("proj.mul", "[5, 2]"));
//! assert_eq!(next.task.parent_id.as_deref(), Some("this"));
//! assert_eq!(aftermath.children[0].to_json().as_str(), r#"[["next", null], null]"#);
//! # Ok::<(), umbel_protocol::message::Malformed>(())
//! ```
//!
//! A task that sends tasks itself uses [`send`]; one that ends with another task in its place, [`replace`]; one that
//! enlarges its chord, [`add_to_chord`]. The tasks that Celery has built in are planned by [`builtin`].
//!
//! # What differs from a Python worker
//! - A signature that names no queue goes to the queue of the running task: routes and queues that Celery's
//!   configuration gives to a task name are unknown here. So are its default options.
//! - Celery calls an errback in its own process when it takes more than one argument; here those that
//!   [`Sender::is_function`] names. All others are sent as tasks.
//! - `ignore_result` is `null` unless the signature says otherwise, so the worker that runs the task decides.
//! - Everything is sent as JSON, whatever `serializer` and `compression` say.
//! - When a chain fails, the members of a group among its steps are failed one by one. Celery fails the group as a
//!   whole, which leaves the members and the chord that waits for them without an end.
//! - When a chord fails whose body is a member of another chord, the outer chord is told. Errbacks of the outer one
//!   that Celery had linked to the inner one as well are called once, with the id of the inner body, as there.

mod builtin;
mod chord;
mod errback;
mod freeze;
mod outcome;
mod plan;
mod replace;
mod signature;
mod task;
mod tuple;

use jiff::Timestamp;

use crate::message::NewTask;

pub use builtin::{BUILTINS, Builtin, builtin};
pub use chord::{ChordEnd, ChordKeys, ChordPart, PartState, complete_chord, fail_chord, timings};
pub use errback::Errback;
pub use outcome::{after_failure, after_revoked, after_success, apply, send, spawn, start};
pub use replace::{add_to_chord, replace};
pub use signature::{Kind, Options, Signature};
pub use tuple::ResultTuple;

/// The most bytes that the messages of one [`Aftermath`] may have together, before base64.
///
/// A result is copied into each member of a group and a chord's body into each member of its header, so a message of a
/// megabyte could otherwise ask for gigabytes.
pub const MAX_EXPANSION: usize = 64 << 20;

/// Who sends, when, and where new ids come from.
pub struct Sender<'a> {
    /// The time; countdowns count from here.
    pub now: Timestamp,
    /// `gen<pid>@<host>`, for the header of that name.
    pub origin: &'a str,
    /// Written where a signature has no `reply_to`; may be empty. Only Celery's rpc backend reads it.
    pub reply_to: &'a str,
    /// Of what names none; Celery's default is 0, and with `task_inherit_parent_priority` that of the running task.
    pub priority: u8,
    /// A fresh id at each call, normally a v4 UUID: for tasks, groups and delivery tags.
    pub ids: &'a mut dyn FnMut() -> String,
    /// Is an errback of this name a function of this process? Such are called ([`FollowUp::Call`]), others are sent.
    pub is_function: &'a dyn Fn(&str) -> bool,
}

/// Everything that follows, in the order in which Celery does it.
///
/// The task's own result is not among it. Celery stores a SUCCESS behind the messages and before the chord part, a
/// FAILURE before everything.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Aftermath {
    /// What to do.
    pub steps: Vec<FollowUp>,
    /// The children for the result document of the task ([`crate::result::Meta::trail`] takes them as JSON).
    pub children: Vec<ResultTuple>,
}

/// One effect.
#[derive(Debug, Clone, PartialEq)]
pub enum FollowUp {
    /// Push a task message to `task.queue`, at the step of `task.priority`.
    Send(Box<Outgoing>),
    /// Call an errback in this process.
    Call(Box<Errback>),
    /// Store a FAILURE document under a task's result key, unless SUCCESS is there.
    Store(StoredFailure),
    /// Count a part of a chord; whoever completes the chord goes on with [`complete_chord`].
    Part(Box<ChordPart>),
    /// `DEL <group>.c`, then `SET <group>.s <size>`; stands before the last member's [`FollowUp::Send`].
    ChordSize {
        /// The chord.
        group: String,
        /// How many parts it has.
        size: u64,
    },
    /// `SET <group>` to this document: the structure of the results of a chord with groups in its header.
    SaveGroup {
        /// The chord.
        group: String,
        /// What to store.
        document: crate::json::Json,
    },
    /// `INCRBY <group>.t`: the chord waits for so many members more.
    Extend {
        /// The chord.
        group: String,
        /// How many.
        by: u64,
    },
}

/// A task to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    /// The message.
    pub task: NewTask,
    /// A named exchange that the signature asks for. The caller looks up `_kombu.binding.<exchange>` for `task.queue`
    /// as the routing key, and sends one copy to each queue it finds, under a delivery tag of its own. `None`: straight
    /// to the list.
    pub exchange: Option<String>,
    /// The type of the exchange, where the signature says it (`exchange_type`).
    pub exchange_type: Option<String>,
    /// The serializer that the signature asks for, by Celery's name; `None`: the sender's own.
    pub serializer: Option<String>,
    /// The compression that it asks for, likewise.
    pub compression: Option<String>,
}

/// The failure of a task that will never run, because one before it failed.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredFailure {
    /// The task.
    pub id: String,
    /// The result document.
    pub document: Vec<u8>,
}
