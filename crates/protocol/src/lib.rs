//! The wire format of Celery on Redis, as values: no connection, no clock, no runtime.
//!
//! Everything here is a function of its arguments. The bytes come from and go to `umbel-broker`; what to do with a
//! message is decided in `umbel-worker`.
//!
//! # A task message
//!
//! A queue is a Redis list (one for each priority step), a message is one element of it: a JSON object that Celery's
//! producers push on the left and consumers take from the right. `add(2, 3)` looks like this, in one line:
//!
//! ```text
//! {"body": "W1syLCAzXSwge30sIHsiY2Fs…",              base64 of  [[2, 3], {}, {"callbacks": null, "errbacks": null,
//!                                                               "chain": null, "chord": null}]
//!                                                    = positional arguments, keyword arguments, what comes after
//!  "content-encoding": "utf-8",
//!  "content-type": "application/json",               the only one that is read here
//!  "headers": {
//!    "lang": "py",
//!    "task": "proj.add",                             required
//!    "id": "056e3c31-7ef8-4b3e-a69c-115d9413cefc",   required; any text; a retry keeps it
//!    "shadow": null,                                 display name
//!    "eta": null, "expires": null,                   ISO 8601: not before, not after
//!    "group": null, "group_index": null,             member of a group, and which
//!    "retries": 0,                                   tries before this one
//!    "timelimit": [null, null],                      seconds: hard first, then soft
//!    "root_id": "056e3c31-…", "parent_id": null,     first task of the workflow; the task that sent this one
//!    "argsrepr": "(2, 3)", "kwargsrepr": "{}",       for people only
//!    "origin": "gen27801@vm",                        sender
//!    "ignore_result": false,
//!    "replaced_task_nesting": 0, "stamped_headers": null, "stamps": {}},
//!  "properties": {
//!    "correlation_id": "056e3c31-…",                 the task id again
//!    "reply_to": "42db90c4-…",
//!    "delivery_mode": 2,
//!    "delivery_info": {"exchange": "", "routing_key": "celery"},   the queue; `"redelivered": true` after a restore
//!    "priority": 0,                                  as the caller gave it; 0 is served first
//!    "body_encoding": "base64",                      or "utf-8": the body is the text itself
//!    "delivery_tag": "65de1fdf-…"}}                  names this copy in kombu's own bookkeeping
//! ```
//!
//! Further headers are the user's, and are kept by retries; those of Umbel begin with `umbel_`. A message of the old
//! protocol 1 has no headers; its body is one object with the same names.
//!
//! - [`message::decode`] reads such an element. Id, names and times become values; arguments stay the text they are.
//! - [`message::NewTask::encode`] writes one, byte for byte as Celery does.
//! - [`message::retry`] makes the next try of one: a few spans replaced, all other bytes kept.
//!
//! # A result
//!
//! One JSON object under `celery-task-meta-<id>`, and the same bytes published on the channel of that name:
//!
//! ```text
//! {"status": "SUCCESS", "result": 5, "traceback": null, "children": [],
//!  "date_done": "2026-11-20T11:47:39.662290+00:00", "task_id": "2987af90-…"}
//! ```
//!
//! A client raises the `result` of a FAILURE again; it must be `{"exc_type": …, "exc_message": […], "exc_module": …}`.
//! See [`result`].
//!
//! # Around a task
//!
//! - [`canvas`]: what a task's end entails: callbacks, chains, groups, chords, errbacks, and how a task sends tasks.
//! - [`event`]: what a worker tells about itself and its tasks, for Flower and `celery events`.
//! - [`control`]: requests to workers and their answers, for `celery inspect` and `celery control`.
//!
//! # JSON
//!
//! Python's dialect: `NaN`, `Infinity`, `-Infinity`, integers of any size, escapes of lone surrogates; written in ASCII
//! with `", "` and `": "`. [`json::Json`] keeps such a text verbatim, so values that Rust has no type for pass through
//! a worker unchanged. Texts are scanned under limits of depth, keys and size ([`message::Limits`]).

pub mod canvas;
pub mod control;
pub mod event;
pub mod json;
pub mod message;
pub mod result;

mod envelope;
mod repr;
mod scan;
mod time;
mod write;

pub use time::iso;
