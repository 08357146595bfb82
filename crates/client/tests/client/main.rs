//! The library against real servers and real peers.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests fail as tests do.

mod peers;
mod results;
mod routes;
mod support;
mod trouble;
mod vectors;
