//! Target clusters that fail, lie, change and are busy: workers as processes, real Redis, real API servers, and in front of
//! these a server that does what a test says.

#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

mod canaries;
mod credentials;
mod gone;
mod identity;
mod limits;
mod listing;
mod silent;
mod stage;
mod strange;
mod stub;
