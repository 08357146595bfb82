//! Task messages: [`decode`] what Celery queues, [`NewTask::encode`] what it would queue, [`retry`] what it queues again.

mod body;
mod decode;
mod encode;
mod field;
mod layout;
mod legacy;
mod names;
mod parts;
mod reason;
mod retry;

use jiff::Timestamp;

use crate::json::Json;

pub use body::{Bodies, Body, OnlyJson};
pub use decode::{body, decode, decode_with, header, salvage};
pub use encode::{BodyEncoding, NewTask, expiration};
pub use layout::Reader;
pub use names::OWN_HEADERS;
pub use parts::{NO_EMBED, TaskParts};
pub use reason::{Malformed, Reason, quoted};
pub use retry::{Retry, next_try, retry, with_headers};

/// The longest time limit that a message may ask for; a longer one becomes this.
///
/// A year is beyond any task, and small enough that adding it to a clock never overflows.
pub const MAX_TIME_LIMIT: f64 = 365.0 * 24.0 * 3600.0;

/// The lowest and the highest priority step; Celery serves 0 first.
pub const MAX_PRIORITY: u8 = 9;

/// How the names of Umbel's own headers begin.
const OWN: &str = "umbel_";

/// May a text of headers have such names? A name may be written with escapes.
fn may_have_own(headers: &str) -> bool {
    headers.contains(OWN) || headers.contains("\\u")
}

/// How large a message may be, and how much structure it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the whole message.
    pub bytes: usize,
    /// Levels of nesting, in the envelope and in the body each.
    pub depth: u32,
    /// Object keys in the body; the envelope may have 10,000 at most.
    pub keys: u32,
    /// Bytes of an id or a task name. They become keys, labels and log fields.
    pub id_bytes: usize,
}

impl Default for Limits {
    /// 16 MiB, 64 levels, 500,000 keys, 1,024 bytes: room for a chain with a chord of 10,000 members in it.
    fn default() -> Limits {
        Limits {
            bytes: 16 << 20,
            depth: crate::json::MAX_DEPTH,
            keys: crate::json::MAX_KEYS,
            id_bytes: 1024,
        }
    }
}

/// Seconds that a run may take. `None` leaves it to the worker.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TimeLimit {
    /// After this the run is stopped.
    pub hard: Option<f64>,
    /// After this the run is asked to stop.
    pub soft: Option<f64>,
}

/// A task message, decoded. It borrows nothing and forgets nothing: [`TaskMessage::headers`] holds every header as it
/// came.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskMessage {
    /// Task id: any text of 1 to [`Limits::id_bytes`] bytes. Retries keep it. Escape it before you show it.
    pub id: String,
    /// Task name, bounded like the id.
    pub task: String,
    /// Positional arguments: an array.
    pub args: Json,
    /// Keyword arguments: an object.
    pub kwargs: Json,
    /// Callbacks, errbacks, rest of the chain, chord: an object.
    pub embed: Option<Json>,
    /// Earlier tries, as the sender counts them. Absent, negative or no number: 0.
    pub retries: u32,
    /// Not before.
    pub eta: Option<Timestamp>,
    /// Not after.
    pub expires: Option<Timestamp>,
    /// Each finite, above zero, at most [`MAX_TIME_LIMIT`].
    pub time_limit: TimeLimit,
    /// Id of the first task of the workflow.
    pub root_id: Option<String>,
    /// Id of the task that sent this one.
    pub parent_id: Option<String>,
    /// Group id; the chord's id, too.
    pub group: Option<String>,
    /// Position in the group.
    pub group_index: Option<i64>,
    /// `Some(true)`: store no result. `None`: the worker's setting for the task decides.
    pub ignore_result: Option<bool>,
    /// Normally the task id again.
    pub correlation_id: Option<String>,
    /// The sender's name for itself; may be empty.
    pub reply_to: Option<String>,
    /// `gen<pid>@<host>` of the sender.
    pub origin: Option<String>,
    /// Python's repr of the arguments, for display only.
    pub argsrepr: Option<String>,
    /// Python's repr of the keyword arguments, for display only.
    pub kwargsrepr: Option<String>,
    /// 0 (first) to [`MAX_PRIORITY`]: clamped as kombu does when it chooses the list; 0 if it is no number.
    pub priority: u8,
    /// The routing key: the queue's name for a message sent to a queue, empty if the message has none.
    pub queue: String,
    /// The exchange that it was sent to; empty for a message sent to a queue.
    pub exchange: String,
    /// The message says that it was delivered before. Anyone can write that: display only.
    pub redelivered: bool,
    /// All headers, verbatim: an object.
    pub headers: Json,
    /// May there be headers of Umbel's own, `umbel_…`? Most messages have none, and then nobody looks for one.
    pub has_own_headers: bool,
}

impl TaskMessage {
    /// The header `name`, whatever it holds; `None` if there is none.
    pub fn header(&self, name: &str) -> Option<Json> {
        self.headers.get(name)
    }

    /// As [`TaskMessage::header`], of a name that begins with `umbel_`.
    pub fn own_header(&self, name: &str) -> Option<Json> {
        debug_assert!(name.starts_with(OWN));
        self.has_own_headers.then(|| self.headers.get(name)).flatten()
    }
}
