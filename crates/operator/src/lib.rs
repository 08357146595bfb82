//! The operator: I/O around the decisions of `umbel-plan`.
//!
//! ```text
//! watch ──┐                     ┌─ controllers/*: observe → validate → plan → apply → report
//! sampler ┼─ wakes ─────────────┤
//! leader ─┴─ term (or nothing) ─┴─ beat: due slots → fire
//! ```
//!
//! Nothing is written, to Kubernetes or to a broker, without the leader's term.

pub mod app;
pub mod apply;
pub mod args;
pub mod beat;
pub mod brokers;
pub mod carry;
pub mod celery;
pub mod children;
pub mod claims;
pub mod context;
pub mod controllers;
pub mod demand;
pub mod discovery;
mod failpoint;
mod flow;
pub mod leader;
pub mod metrics;
pub mod observe;
mod owners;
pub mod renewal;
pub mod report;
mod rotate;
pub mod sampler;
mod secrets;
mod send;
pub mod watch;
