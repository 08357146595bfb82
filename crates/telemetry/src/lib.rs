//! What every long-running binary shows of itself: logs, metrics, an admin
//! HTTP server, and how it learns that it shall stop.
//!
//! It knows none of our other crates. What is measured is named by the crate
//! that measures it; only the common prefix and the build facts live here.

pub mod admin;
mod chain;
pub mod cores;
pub mod logs;
mod lossy;
pub mod metrics;
pub mod shutdown;
pub mod task;

pub use admin::Readiness;
pub use chain::{Chain, chain};
