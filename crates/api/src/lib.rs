//! The kinds of the API group `umbel.dev`, as Rust types.
//!
//! This crate compiles without a client and knows nobody. A field is here only when the program honours it; what a field
//! may hold is said in the schema (patterns, bounds, CEL rules), so that the API server refuses nonsense by itself.
//! `crdgen` prints the definitions that are kept in `crds/`; [`definitions`] is what programs install.

// The derive of KubeSchema repeats each struct inside a function, `pub` included.
#![allow(unreachable_pub)]
// It also takes the parts of one printer column for repetitions of another's.
#![allow(clippy::duplicated_attributes)]

pub mod condition;
mod definition;
pub mod names;
pub mod periodictask;
pub mod refs;
mod schema;
pub mod span;
pub mod targetcluster;
pub mod task;
pub mod taskqueue;
pub mod workerpool;

pub use definition::{definitions, to_yaml};
pub use periodictask::{PeriodicTask, PeriodicTaskSpec, PeriodicTaskStatus};
pub use span::Span;
pub use targetcluster::{TargetCluster, TargetClusterSpec, TargetClusterStatus};
pub use task::{Task, TaskSpec, TaskStatus};
pub use taskqueue::{TaskQueue, TaskQueueSpec, TaskQueueStatus};
pub use workerpool::{WorkerPool, WorkerPoolSpec, WorkerPoolStatus};
