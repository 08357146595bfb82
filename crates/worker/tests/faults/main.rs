//! Faults of workers and of their messages, each brought about, with what must be observed.
//!
//! Unless a test says otherwise: nothing is lost, nothing runs more often than faults were brought about, and what was
//! held comes back within a lease and two sweeps.

mod clocks;
mod cut;
mod ends;
mod given_up;
mod host;
mod kill;
mod messages;
mod poison;
mod stops;
mod stuck;
#[path = "../worker/support.rs"]
mod support;
mod zombie;
