//! Faults of Redis, and forms in which it comes: each test's name begins with the fault that it injects.
#![allow(clippy::panic)] // Tests stop at what they did not expect.

mod crash;
mod data;
mod failover;
mod forms;
mod load;
mod refusals;
mod stage;
#[path = "../worker/support.rs"]
#[allow(dead_code, reason = "shared with the other tests of the worker")]
mod support;
mod wire;
