//! The wire format of Celery on Redis, as values: no connection, no clock, no runtime.
pub mod json;
pub mod message;
pub mod result;

mod repr;
mod scan;
mod time;
mod write;
