//! What a queue allows all its workers together: whether it is consumed at all, how many of its messages run at a time,
//! how often one starts, how many may wait.
//!
//! The hash `umbel:queue:Q` holds it: `paused` (`1`), `max_in_flight` (a number), `rate` (`count/period in ms/burst`),
//! `max_length` (a number), `on_full` (`oldest`, or nothing), `steps` (those of the queue's lists, where it is bounded).
//! Every reserve honours the first three. The others hold for producers of ours, as far as they ask; what others send all
//! the same is moved to the dead letters by [`Broker::relieve`].

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::call::{Args, OVERFLOW, QUEUE_POLICY};
use crate::control::failed;
use crate::{Broker, Error};

/// Most starts of a rate, and the longest period: far beyond any use, and exact in Lua's numbers.
const MOST: u32 = 1_000_000_000;
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// How often something may start: `count` in each `period`, evenly spread, with up to `burst` at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    count: u32,
    period: Duration,
    burst: u32,
}

impl Rate {
    /// A rate. `count` and `burst` are 1 to 1,000,000,000, `period` is 1 ms to 366 days.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn new(count: u32, period: Duration, burst: u32) -> Result<Rate, Error> {
        let wrong = |reason: String| Error::Setting { name: "rate", reason };
        if count == 0 || count > MOST || burst == 0 || burst > MOST {
            return Err(wrong(format!("count and burst must be 1 to {MOST}")));
        }
        if period < Duration::from_millis(1) || period > LONGEST {
            return Err(wrong("the period must be 1 ms to 366 days".into()));
        }
        Ok(Rate { count, period, burst })
    }

    /// A rate with the usual burst: what may start within a tenth of a second, at least one.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn even(count: u32, period: Duration) -> Result<Rate, Error> {
        let tenth = f64::from(count) * 0.1 / period.as_secs_f64().max(0.001);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Clamped.
        let burst = tenth.clamp(1.0, f64::from(MOST)) as u32;
        Rate::new(count, period, burst)
    }

    /// Starts in each period.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The period.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// Starts at once after a pause.
    pub fn burst(&self) -> u32 {
        self.burst
    }

    /// Microseconds between two starts.
    pub fn interval_micros(&self) -> f64 {
        self.period.as_secs_f64() * 1e6 / f64::from(self.count)
    }
}

/// As Redis keeps it, and as it is read back.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.count, self.period.as_millis(), self.burst)
    }
}

/// Reads `COUNT/PERIOD[/BURST]`. The period is `s`, `m`, `h` or `d`, a number with one of these or `ms`, or a bare
/// number of milliseconds.
impl FromStr for Rate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Rate, Error> {
        let wrong = || Error::Setting {
            name: "rate",
            reason: format!("{text:?} is no rate such as 100/s, 10/1m or 100/s/20"),
        };
        let mut parts = text.trim().splitn(3, '/').map(str::trim);
        let number = |part: &str| part.parse::<u32>().map_err(|_| wrong());
        let count = number(parts.next().unwrap_or_default())?;
        let period = period(parts.next().ok_or_else(wrong)?).ok_or_else(wrong)?;
        match parts.next() {
            Some(burst) => Rate::new(count, period, number(burst)?),
            None => Rate::even(count, period),
        }
    }
}

fn period(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit {
        "" | "ms" if !number.is_empty() => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let number: u64 = if number.is_empty() { 1 } else { number.parse().ok()? };
    Some(Duration::from_millis(number.checked_mul(unit)?))
}

/// What a queue allows all its workers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueuePolicy {
    /// Nothing of it is consumed anywhere; producing goes on.
    pub is_paused: bool,
    /// So many of its messages are held by workers at a time, at most; 1 or more.
    pub max_in_flight: Option<u64>,
    /// So often one of its messages is taken, at most.
    pub rate: Option<Rate>,
    /// So many of its messages may wait, and what happens to more.
    pub bound: Option<Bound>,
}

/// How many messages of a queue may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// So many; 1 or more.
    pub most: u64,
    /// What happens to more.
    pub on_full: OnFull,
}

/// What happens to a message beyond those that may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFull {
    /// It is refused. One that was sent by others all the same goes to the dead letters, the newest first.
    #[default]
    Refuse,
    /// It is taken, and the oldest of those that wait goes to the dead letters.
    DropOldest,
}

/// What [`Broker::relieve`] did to a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Relieved {
    /// Messages that went to the dead letters.
    pub moved: u64,
    /// Messages that are beyond the bound still.
    pub beyond: u64,
}

impl Broker {
    /// What a queue allows; a field that cannot be read counts as absent.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn queue_policy(&self, queue: &str) -> Result<QueuePolicy, Error> {
        self.change_policy(queue, &[]).await
    }

    /// Sets the limits of a queue, for all workers from their next reserve on; `None` lifts one. Whether it is paused
    /// stays as it is.
    ///
    /// # Errors
    /// [`Error::Call`].
    ///
    /// # Cancellation
    /// It may or may not have happened; repeat it.
    pub async fn set_queue_policy(
        &self,
        queue: &str,
        max_in_flight: Option<u64>,
        rate: Option<Rate>,
    ) -> Result<QueuePolicy, Error> {
        let most = max_in_flight.map_or_else(String::new, |most| most.max(1).to_string());
        let rate = rate.map_or_else(String::new, |rate| rate.to_string());
        self.change_policy(queue, &[("max_in_flight", most), ("rate", rate)])
            .await
    }

    /// Sets the most messages of a queue that are held at a time; `None` lifts the limit. All else stays as it is.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn set_max_in_flight(&self, queue: &str, most: Option<u64>) -> Result<QueuePolicy, Error> {
        let most = most.map_or_else(String::new, |most| most.max(1).to_string());
        self.change_policy(queue, &[("max_in_flight", most)]).await
    }

    /// Sets the rate of a queue; `None` lifts the limit. All else stays as it is.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn set_queue_rate(&self, queue: &str, rate: Option<Rate>) -> Result<QueuePolicy, Error> {
        let rate = rate.map_or_else(String::new, |rate| rate.to_string());
        self.change_policy(queue, &[("rate", rate)]).await
    }

    /// From now on nothing of the queue is consumed; what runs goes on, and so does producing.
    ///
    /// # Errors
    /// [`Error::Call`].
    ///
    /// # Cancellation
    /// It may or may not have happened; repeat it.
    pub async fn pause(&self, queue: &str) -> Result<QueuePolicy, Error> {
        self.change_policy(queue, &[("paused", "1".into())]).await
    }

    /// The queue is consumed again; its workers hear of it at once.
    ///
    /// # Errors
    /// [`Error::Call`].
    ///
    /// # Cancellation
    /// It may or may not have happened; repeat it.
    pub async fn resume(&self, queue: &str) -> Result<QueuePolicy, Error> {
        self.change_policy(queue, &[("paused", String::new())]).await
    }

    /// Makes a queue allow what its object says, when the object has changed or Redis has lost what it said: in between,
    /// what people do by hand stays. True: something was written.
    ///
    /// # Errors
    /// [`Error::Call`].
    ///
    /// # Cancellation
    /// It may or may not have happened; repeat it.
    pub async fn apply_queue_policy(&self, queue: &str, policy: &QueuePolicy) -> Result<bool, Error> {
        let said: Option<String> = redis::cmd("HGET")
            .arg(self.keys.umbel(&format!("queue:{queue}")))
            .arg("said")
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed("HGET umbel:queue"))?;
        if self.has_said(policy, said.as_deref()) {
            return Ok(false);
        }
        self.change_policy(queue, &self.changes(policy)).await.map(|_| true)
    }

    /// Whether this is what the queue's object said last; `said` is what a sample of the queue shows of that.
    pub fn has_said(&self, policy: &QueuePolicy, said: Option<&str>) -> bool {
        let changes = self.changes(policy);
        let now = changes.last().map_or("", |(_, now)| now.as_str());
        said.unwrap_or_default() == now
    }

    /// The fields of a queue's hash that say so, what the object said in one as the last.
    fn changes(&self, policy: &QueuePolicy) -> [(&'static str, String); 7] {
        let QueuePolicy {
            is_paused,
            max_in_flight,
            rate,
            bound,
        } = policy;
        let paused = if *is_paused { "1" } else { "" };
        let most = max_in_flight.map_or_else(String::new, |most| most.to_string());
        let rate = rate.map_or_else(String::new, |rate| rate.to_string());
        let (length, on_full, steps) = match bound {
            Some(Bound { most, on_full }) => {
                let steps: Vec<String> = self.keys.steps().iter().map(u8::to_string).collect();
                let on_full = match on_full {
                    OnFull::Refuse => "",
                    OnFull::DropOldest => "oldest",
                };
                (most.to_string(), on_full.to_owned(), steps.join(","))
            }
            None => Default::default(),
        };
        let mut said = format!("{paused}|{most}|{rate}");
        if bound.is_some() {
            said = format!("{said}|{length}|{on_full}|{steps}");
        }
        if *policy == QueuePolicy::default() {
            said.clear();
        }
        [
            ("paused", paused.to_owned()),
            ("max_in_flight", most),
            ("rate", rate),
            ("max_length", length),
            ("on_full", on_full),
            ("steps", steps),
            ("said", said),
        ]
    }

    /// Lifts what a queue's object said, when the object is gone: what people or workers have set since stays. True:
    /// something was written.
    ///
    /// # Errors
    /// [`Error::Call`].
    ///
    /// # Cancellation
    /// It may or may not have happened; repeat it.
    pub async fn lift_queue_policy(&self, queue: &str) -> Result<bool, Error> {
        const FIELDS: [&str; 6] = ["paused", "max_in_flight", "rate", "max_length", "on_full", "steps"];
        let fields = self
            .fields(&self.keys.umbel(&format!("queue:{queue}")), "HGETALL umbel:queue")
            .await?;
        let Some(said) = fields.get("said") else {
            return Ok(false);
        };
        let mut changes = vec![("said", String::new())];
        for (field, said) in FIELDS.into_iter().zip(said.split('|')) {
            if fields.get(field).is_some_and(|now| now == said) {
                changes.push((field, String::new()));
            }
        }
        self.change_policy(queue, &changes).await.map(|_| true)
    }

    async fn change_policy(&self, queue: &str, changes: &[(&str, String)]) -> Result<QueuePolicy, Error> {
        let mut args = Args::new(&QUEUE_POLICY, self.keys.scope()).arg(queue);
        for (field, value) in changes {
            args.push(*field);
            args.push(value);
        }
        let mut reply = args.call(&mut self.connection.clone()).await?.reply()?;
        let mut policy = QueuePolicy::default();
        let (mut most, mut on_full) = (None, OnFull::default());
        while !reply.is_done() {
            let (field, value) = (reply.text()?, reply.text()?);
            match field.as_str() {
                "paused" => policy.is_paused = value == "1",
                "max_in_flight" => policy.max_in_flight = value.parse().ok(),
                "rate" => policy.rate = value.parse().ok(),
                "max_length" => most = value.parse().ok(),
                "on_full" if value == "oldest" => on_full = OnFull::DropOldest,
                _ => {}
            }
        }
        policy.bound = most.map(|most| Bound { most, on_full });
        Ok(policy)
    }

    /// Moves what waits beyond the bounds of these queues to their dead letters, each with the reason: of the least urgent
    /// step first, the newest or the oldest as the queue says. `kept` dead letters are kept, if it is said; otherwise as many as
    /// the queue's workers say. A bounded part; call it again while something is beyond.
    ///
    /// # Errors
    /// [`Error::Call`].
    ///
    /// # Cancellation
    /// It may or may not have happened; repeat it.
    pub async fn relieve(&self, queues: &[&str], kept: Option<u64>) -> Result<Vec<Relieved>, Error> {
        let kept = kept.map_or_else(String::new, |kept| kept.to_string());
        let mut args = Args::new(&OVERFLOW, self.keys.scope()).arg(kept);
        for queue in queues {
            args.push(*queue);
        }
        let mut reply = args.call(&mut self.connection.clone()).await?.reply()?;
        let mut relieved = Vec::with_capacity(queues.len());
        while !reply.is_done() {
            relieved.push(Relieved {
                moved: reply.count()?,
                beyond: reply.count()?,
            });
        }
        Ok(relieved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_shown_and_refused() {
        for (text, shown) in [
            ("100/s", "100/1000/10"),
            ("10/m", "10/60000/1"),
            ("10/1m/3", "10/60000/3"),
            ("5/250ms", "5/250/2"),
            ("100/1000/10", "100/1000/10"),
            (" 2 / 1h / 1 ", "2/3600000/1"),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(rate.to_string(), shown, "{text}");
            assert_eq!(shown.parse::<Rate>().unwrap(), rate);
        }
        for bad in [
            "",
            "10",
            "0/s",
            "10/",
            "10/0s",
            "10/y",
            "10/s/0",
            "-1/s",
            "10/s/1/1",
            "9/999d",
            "9999999999/s",
        ] {
            assert!(bad.parse::<Rate>().is_err(), "{bad:?}");
        }
    }
}
