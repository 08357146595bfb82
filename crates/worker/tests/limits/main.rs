//! Limits that all workers of a queue keep together, shown with several worker processes on one real server.

mod fairness;
mod keys;
mod once;
mod queue;
mod rates;
mod recycle;
mod retries;
mod stage;
#[allow(dead_code, reason = "shared with another target")]
#[path = "../worker/support.rs"]
mod support;
mod unique;
