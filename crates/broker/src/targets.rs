//! What all workers know of target clusters together: budget, turns, circuits; and what the operator says of them.
//!
//! The rules are the caller's, who also keeps them where Redis is away; this is where the state lives.

use std::collections::HashMap;
use std::time::Duration;

use crate::call::{Args, TARGET};
use crate::control::failed;
use crate::{Broker, Error};

/// The rules of budgets and circuits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TargetRules {
    /// A longer wait for a token is none at all.
    pub longest_wait: Duration,
    /// A turn ends after this unless it is renewed.
    pub turn: Duration,
    /// Several 429s within this time are one.
    pub same: Duration,
    /// The longest pause that a target may ask for.
    pub longest_pause: Duration,
    /// Share of the rate after a 429, the least there is, and what comes back of it each second.
    pub halved: f64,
    /// The least.
    pub least: f64,
    /// What comes back each second.
    pub recovery: f64,
    /// Silent calls before a circuit opens.
    pub threshold: u32,
    /// Its first pause.
    pub first: Duration,
    /// Its longest pause.
    pub longest: Duration,
    /// How long a probe that never reports blocks the next one.
    pub probe: Duration,
}

/// What a target is asked at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TargetLimits {
    /// Requests a second.
    pub qps: u32,
    /// Requests at once.
    pub burst: u32,
    /// Tasks at a time.
    pub tasks: u32,
}

/// What happens at a target. A turn is one task's stay there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetCall<'a> {
    /// A task wants to work there, with so many tokens at once.
    Begin {
        /// Its turn.
        turn: &'a str,
        /// What is allowed.
        limits: TargetLimits,
        /// Tokens.
        want: u32,
    },
    /// It wants more tokens.
    Take {
        /// Its turn.
        turn: &'a str,
        /// What is allowed.
        limits: TargetLimits,
        /// Tokens.
        want: u32,
    },
    /// It is still at work.
    Renew {
        /// Its turn.
        turn: &'a str,
    },
    /// It is done.
    End {
        /// Its turn.
        turn: &'a str,
        /// What is allowed.
        limits: TargetLimits,
        /// Tokens that were not used.
        unused: u32,
    },
    /// The target said 429.
    Slow {
        /// What is allowed.
        limits: TargetLimits,
        /// It wants to be left alone for so long.
        pause: Duration,
    },
    /// It answered.
    Answered,
    /// It did not.
    Silent,
    /// Only what stands there.
    Facts,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetWord {
    /// Go on; or it was noted.
    Go,
    /// Not now, for the rate.
    Wait,
    /// Not now, for the tasks.
    Busy,
    /// Not now, for the circuit.
    Open,
    /// Never again.
    Gone,
    /// This silence opened the circuit.
    Opened,
}

/// What stands about a target after a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetState {
    /// How the call ended.
    pub word: TargetWord,
    /// Tokens that were granted.
    pub tokens: u32,
    /// The first of them after this, or come again after this.
    pub wait: Duration,
    /// `Closed`, `Open` or `HalfOpen`.
    pub circuit: String,
    /// Silent calls since the last answer.
    pub failures: u32,
    /// For so long it is in this state, where it ever changed.
    pub since: Option<Duration>,
    /// Until a probe may go, where it is not closed.
    pub until: Option<Duration>,
    /// The circuit's present pause.
    pub pause: Duration,
    /// What the operator says.
    pub said: Option<TargetSaid>,
}

/// What the operator says of a target to all workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetSaid {
    /// It is there; nobody knows yet which cluster it is.
    Known,
    /// Its kube-system namespace must have this uid.
    Pinned(String),
    /// Its object was deleted, in this second of Unix time.
    Gone(i64),
}

impl TargetSaid {
    fn text(&self) -> String {
        match self {
            TargetSaid::Known => "-".to_owned(),
            TargetSaid::Pinned(uid) => uid.clone(),
            TargetSaid::Gone(since) => format!("!{since}"),
        }
    }

    fn read(text: &str) -> Option<TargetSaid> {
        match text.strip_prefix('!') {
            Some(since) => Some(TargetSaid::Gone(since.parse().unwrap_or(0))),
            None if text.is_empty() => None,
            None if text == "-" => Some(TargetSaid::Known),
            None => Some(TargetSaid::Pinned(text.to_owned())),
        }
    }
}

impl Broker {
    /// Tells what happens at a target, and hears what stands about it.
    ///
    /// # Errors
    /// [`Error::Call`].
    ///
    /// # Cancellation
    /// It may or may not have happened. A turn that nobody knows of ends by itself.
    pub async fn target(
        &self,
        namespace: &str,
        cluster: &str,
        call: TargetCall<'_>,
        rules: &TargetRules,
    ) -> Result<TargetState, Error> {
        let nothing = TargetLimits::default();
        let (verb, turn, limits, amount) = match call {
            TargetCall::Begin { turn, limits, want } => ("begin", turn, limits, u64::from(want)),
            TargetCall::Take { turn, limits, want } => ("take", turn, limits, u64::from(want)),
            TargetCall::Renew { turn } => ("renew", turn, nothing, 0),
            TargetCall::End { turn, limits, unused } => ("end", turn, limits, u64::from(unused)),
            TargetCall::Slow { limits, pause } => ("slow", "", limits, micros(pause)),
            TargetCall::Answered => ("answered", "", nothing, 0),
            TargetCall::Silent => ("silent", "", nothing, 0),
            TargetCall::Facts => ("facts", "", nothing, 0),
        };
        let TargetRules {
            longest_wait,
            turn: lease,
            same,
            longest_pause,
            halved,
            least,
            recovery,
            threshold,
            first,
            longest,
            probe,
        } = *rules;
        let args = Args::new(&TARGET, self.keys.scope())
            .arg(namespace)
            .arg(cluster)
            .arg(verb)
            .arg(turn)
            .arg(limits.qps)
            .arg(limits.burst)
            .arg(limits.tasks)
            .arg(amount)
            .arg(micros(longest_wait))
            .arg(micros(lease))
            .arg(micros(same))
            .arg(micros(longest_pause))
            .arg(halved)
            .arg(least)
            .arg(recovery)
            .arg(threshold)
            .arg(micros(first))
            .arg(micros(longest))
            .arg(micros(probe));
        let mut reply = args.call(&mut self.connection.clone()).await?.reply()?;
        let word = match reply.text()?.as_str() {
            "go" | "ok" => TargetWord::Go,
            "wait" => TargetWord::Wait,
            "busy" => TargetWord::Busy,
            "open" => TargetWord::Open,
            "gone" => TargetWord::Gone,
            "opened" => TargetWord::Opened,
            other => return Err(reply.wrong(format!("the word {other:?}"))),
        };
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let some = |number: i64| u64::try_from(number).ok().map(Duration::from_micros);
        Ok(TargetState {
            word,
            tokens: small(reply.count()?),
            wait: Duration::from_micros(reply.count()?),
            circuit: reply.text()?,
            failures: small(reply.count()?),
            since: some(reply.number()?),
            until: some(reply.number()?),
            pause: Duration::from_micros(reply.count()?),
            said: TargetSaid::read(&reply.text()?),
        })
    }

    /// What is said of the targets of a namespace.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn targets_said(&self, namespace: &str) -> Result<HashMap<String, TargetSaid>, Error> {
        let fields = self
            .fields(
                &self.keys.umbel(&format!("targets:{namespace}")),
                "HGETALL umbel:targets",
            )
            .await?;
        let read = |(name, text): (String, String)| Some((name, TargetSaid::read(&text)?));
        Ok(fields.into_iter().filter_map(read).collect())
    }

    /// Says something of a target to all workers, or nothing any more.
    ///
    /// # Errors
    /// [`Error::Call`].
    ///
    /// # Cancellation
    /// It may or may not have happened; repeat it.
    pub async fn say_target(&self, namespace: &str, cluster: &str, said: Option<&TargetSaid>) -> Result<(), Error> {
        let key = self.keys.umbel(&format!("targets:{namespace}"));
        let mut command = match said {
            Some(_) => redis::cmd("HSET"),
            None => redis::cmd("HDEL"),
        };
        command.arg(key).arg(cluster);
        if let Some(said) = said {
            command.arg(said.text());
        }
        command
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed("HSET umbel:targets"))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
