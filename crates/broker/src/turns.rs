//! May a message that was taken run now? Rates, concurrency keys and what is to run once, over all workers.
//!
//! # Guarantees
//! A message that may not run now is back in Redis in the same step, uncharged, and no worker holds it. Whoever holds a
//! key holds it by its lease: when that ends, in whatever way, the next one that waits for the key is put at the head of
//! its list.

use std::sync::Arc;
use std::time::Duration;

use crate::call::{Args, Reply, TURNS};
use crate::{Broker, Error, Rate};

/// So far ahead of its start a worker may hold a message: what a promotion and a reserve take is hidden by that.
const HOLD: Duration = Duration::from_millis(400);
/// Messages in one call.
const MOST: usize = 500;

/// What is to run once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Once {
    /// The same for all copies of one message.
    pub name: String,
    /// For so long another copy is known as one.
    pub kept: Duration,
}

impl Once {
    /// The key that says that it has run.
    pub fn key(&self, broker: &Broker) -> String {
        broker.keys().umbel(&format!("copy:{}", self.name))
    }
}

/// A message that asks for its turn.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Lease id.
    pub lid: Arc<str>,
    /// Task id.
    pub id: String,
    /// What it must be the only run of.
    pub once: Option<Once>,
    /// Concurrency key and how many may hold it.
    pub key: Option<(String, u32)>,
    /// Name of a rate, and the rate.
    pub rate: Option<(String, Rate)>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Turn {
    /// It may start in so long; its turn is taken.
    Go(Duration),
    /// It is in Redis until it is due, or until its key is free.
    Parked(Duration),
    /// A copy of it runs or has run.
    Duplicate,
    /// The lease was lost; after a call that was repeated: or it is parked.
    Lost,
    /// The server refused; its words.
    Fault(String),
}

impl Broker {
    /// Asks for the turns of messages of this worker, in their order. One call for all.
    ///
    /// # Errors
    /// [`Error::Call`]: ask again.
    ///
    /// # Cancellation
    /// As an error.
    pub async fn turns(&self, asks: &[Ask]) -> Result<Vec<Turn>, Error> {
        let mut turns = Vec::with_capacity(asks.len());
        for asks in asks.chunks(MOST) {
            let mut args = Args::new(&TURNS, self.keys.scope()).arg(HOLD.as_micros().to_string());
            for Ask {
                lid,
                id,
                once,
                key,
                rate,
            } in asks
            {
                args.push(&**lid);
                args.push(id);
                args.push(once.as_ref().map_or("", |once| &once.name));
                args.push(once.as_ref().map_or(1, |once| once.kept.as_secs().max(1)));
                args.push(key.as_ref().map_or("", |(key, _)| key));
                args.push(key.as_ref().map_or(1, |(_, most)| (*most).max(1)));
                args.push(rate.as_ref().map_or("", |(name, _)| name));
                args.push(rate.as_ref().map_or(0.0, |(_, rate)| rate.interval_micros()));
                args.push(rate.as_ref().map_or(1, |(_, rate)| rate.burst()));
            }
            let mut reply = args.call(&mut self.connection.clone()).await?.reply()?;
            while !reply.is_done() {
                turns.push(turn(&mut reply.array()?)?);
            }
        }
        Ok(turns)
    }
}

fn turn(answer: &mut Reply) -> Result<Turn, Error> {
    Ok(match answer.text()?.as_str() {
        "go" => Turn::Go(Duration::from_micros(answer.count()?)),
        "parked" => {
            let seconds = answer.seconds()?.unwrap_or(0.0);
            Turn::Parked(Duration::try_from_secs_f64(seconds).unwrap_or_default())
        }
        "duplicate" => Turn::Duplicate,
        "lost" => Turn::Lost,
        _ => Turn::Fault(answer.text()?),
    })
}
