#![doc = include_str!("../README.md")]
//!
//! # Where things are
//! - [`Client`]: connects, sends, asks for results, revokes.
//! - [`Task`]: one call with its options; [`chain`], [`group`], [`chord`], [`map`], [`starmap`], [`chunks`] combine
//!   calls to a [`Signature`].
//! - [`Routes`]: where tasks go by their names.
//! - [`Handle`]: what became of a task, or of a whole workflow.
//! - [`SendError`], [`ResultError`]: what can go wrong, and whether the message may have been sent all the same.

mod batch;
mod client;
mod compose;
mod error;
mod handle;
mod prepare;
mod remote;
mod routes;
mod send;
mod task;
mod times;
mod unique;

pub use client::{Client, Options, Retry};
pub use compose::{chain, chord, chunks, group, map, starmap};
pub use error::{RemoteError, ResultError, SendError};
pub use handle::{Handle, State};
pub use prepare::Destination;
pub use remote::Revoke;
pub use routes::{RouteError, Routes};
pub use task::{Exchange, Task};
pub use times::When;

pub use umbel_broker::{Config, ExchangeKind, Replicas, Until, result_prefix};
pub use umbel_codec::{Codec, Compression, Serializer};
pub use umbel_protocol::canvas::{ResultTuple, Signature};
pub use umbel_protocol::json::Json;
pub use umbel_protocol::message::BodyEncoding;
