//! Campaigns: what the other tests show a few times, counted by the thousand, by a seed, with a verdict. Those that take
//! long are ignored here and run by `make campaign-…`; their quick forms are part of the suite.

#![allow(clippy::panic, reason = "a failure here is the failure of the test")]
#![allow(clippy::large_futures, reason = "there is one of each")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../credentials/token.rs"]
mod token;

use std::time::{Duration, Instant};

mod changes;
mod crash;
mod scaling;
mod schema;

/// A number of this run, as `make` hands it on.
fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// When a campaign begins nothing more.
fn minutes() -> Instant {
    Instant::now() + Duration::from_secs(60 * number("MINUTES", 24 * 60))
}
