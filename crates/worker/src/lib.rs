//! Umbel's worker: takes Celery messages from Redis and runs them.

pub mod job;
pub mod jobs;
mod lease;
