//! Every decision of the operator, pure: values in, values and reasons out, `now` given.

pub mod access;
pub mod cluster;
pub mod credential;
pub mod cron;
pub mod deployment;
pub mod drain;
pub mod explain;
pub mod fanout;
pub mod flow;
pub mod grace;
pub mod narrow;
pub mod periodic;
pub mod pool;
pub mod queue;
pub mod rollout;
pub mod scaling;
pub mod shield;
mod sun;
pub mod workflow;
