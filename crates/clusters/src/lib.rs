//! The target clusters of a worker: who they are, how to log in, a client for each.
//!
//! * [`kubeconfig`] turns the text of a Secret into [`Accepted`] or says why not. Pure.
//! * [`circuit`] decides whether a target may be called now. Pure.
//! * [`board`] is what all workers know of the targets together: budget, turns, circuits, identities. A trait, with the
//!   rules that a worker without it keeps by itself. Pure.
//! * [`registry`] knows the clusters that a pool may touch, reads their Secrets by name and keeps their clients.
//!
//! * [`credential`] says how long a credential lasts, and asks a target for a new token.
//!
//! Which clusters a worker may touch is decided by its pool alone; a message only names one. Nothing else in the
//! workspace opens a connection to a target's API server, but for `umbel cluster` with a person's own access.

pub mod board;
pub mod circuit;
mod client;
pub mod credential;
pub mod error;
pub mod kubeconfig;
pub mod registry;
mod secret;
mod stay;

pub use board::{Board, Limits};
pub use error::{Error, Mistaken};
pub use kubeconfig::{Accepted, Refused};
pub use registry::{Access, Impersonate, Registry};
pub use stay::{Identity, Target};
