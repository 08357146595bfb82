//! The captures of real Celery, played against our worker on a real Redis: what its client did is sent verbatim, and what
//! our worker does is compared with what Celery's worker did, field by field.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod canvas;
mod capture;
mod compare;
mod consume;
mod control;
mod effects;
mod events;
mod exchanges;
mod monitor;
mod pitfalls;
mod publish;
mod reading;
mod results;
mod stage;
