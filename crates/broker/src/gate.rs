//! Gates, terms and steps: what the controller says to workers, fenced by its term.

use crate::call::{ADMIT_SELF, Args, CLOSE_SELF, GATE, GOODBYE, LEAD, STEP, TERM};
use crate::{Broker, Error};

/// May a worker take messages?
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gate {
    /// Nobody has admitted it yet.
    New,
    /// It takes messages.
    Open,
    /// Draining or drained.
    Closed {
        /// Redis time in seconds.
        since: f64,
    },
}

impl Gate {
    pub(crate) fn parse(state: &str) -> Option<Gate> {
        match state {
            "new" => Some(Gate::New),
            "open" => Some(Gate::Open),
            other => other
                .strip_prefix("closed@")
                .and_then(|at| at.parse().ok())
                .map(|since| Gate::Closed { since }),
        }
    }
}

/// Who writes, and which write of his this is: both only grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// Install id.
    pub install: String,
    /// Term of the leader.
    pub term: u64,
    /// Number of the call within the term.
    pub n: u64,
}

/// The answer of a gate call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateAnswer {
    /// Done; the worker holds so many leases. Closed and zero stays idle until the gate is opened again.
    Done {
        /// Leases held.
        held: u64,
    },
    /// Not carried out: a newer leader or a newer call of this one came first.
    Stale {
        /// Stored term.
        term: u64,
    },
    /// Redis does not know this worker.
    Unknown,
}

/// The answer of a step.
#[derive(Debug, Clone, PartialEq)]
pub enum StepAnswer {
    /// Gate (`None`: not admitted, Redis has no entry) and leases held, in the order asked.
    Workers(Vec<(Option<Gate>, u64)>),
    /// Refused, as in [`GateAnswer::Stale`].
    Stale {
        /// Stored term.
        term: u64,
    },
}

/// The answer to a new term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TermAnswer {
    /// The broker refuses lower ones from now on.
    Accepted,
    /// This one is stored already.
    Higher(u64),
}

/// The answer to a worker that would admit itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Its gate is open.
    Open,
    /// A leader is alive: it admits.
    Leader,
    /// A scale-down step is under way.
    Step,
    /// Redis does not know the worker: hello first.
    Unknown,
}

impl Broker {
    /// Opens a worker's gate.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn open(&self, fence: &Fence, worker: &str) -> Result<GateAnswer, Error> {
        self.gate(fence, "open", worker).await
    }

    /// Closes a worker's gate and answers how many leases it holds, in one step.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn drain(&self, fence: &Fence, worker: &str) -> Result<GateAnswer, Error> {
        self.gate(fence, "closed", worker).await
    }

    async fn gate(&self, fence: &Fence, state: &str, worker: &str) -> Result<GateAnswer, Error> {
        let args = Args::new(&GATE, self.keys.scope())
            .arg(&fence.install)
            .arg(fence.term)
            .arg(fence.n)
            .arg(state)
            .arg(worker);
        let mut reply = args.call(&mut self.connection.clone()).await?.reply()?;
        Ok(match reply.text()?.as_str() {
            "done" => GateAnswer::Done { held: reply.count()? },
            "stale" => GateAnswer::Stale { term: reply.count()? },
            _ => GateAnswer::Unknown,
        })
    }

    /// Announces that a scale-down step of the pool is about to write to Kubernetes, for 90 s, and reads the workers'
    /// state in the same instant.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn step(&self, fence: &Fence, pool: &str, workers: &[String]) -> Result<StepAnswer, Error> {
        let mut args = Args::new(&STEP, self.keys.scope())
            .arg(&fence.install)
            .arg(fence.term)
            .arg(fence.n)
            .arg(pool);
        for worker in workers {
            args.push(worker);
        }
        let mut reply = args.call(&mut self.connection.clone()).await?.reply()?;
        if reply.text()? != "ok" {
            return Ok(StepAnswer::Stale { term: reply.count()? });
        }
        let mut states = Vec::with_capacity(workers.len());
        while !reply.is_done() {
            states.push((Gate::parse(&reply.text()?), reply.count()?));
        }
        Ok(StepAnswer::Workers(states))
    }

    /// Announces a leader's term.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn claim_term(&self, install: &str, term: u64, holder: &str) -> Result<TermAnswer, Error> {
        let args = Args::new(&TERM, self.keys.scope()).arg(install).arg(term).arg(holder);
        let mut reply = args.call(&mut self.connection.clone()).await?.reply()?;
        Ok(if reply.text()? == "accepted" {
            TermAnswer::Accepted
        } else {
            TermAnswer::Higher(reply.count()?)
        })
    }

    /// The leader's heartbeat; workers admit themselves when it stays away.
    ///
    /// # Errors
    /// [`Error::Stale`] when another leader is in charge, [`Error::Call`].
    pub async fn operator_heartbeat(&self, install: &str, term: u64, body: &str) -> Result<(), Error> {
        let args = Args::new(&LEAD, self.keys.scope()).arg(install).arg(term).arg(body);
        let mut reply = args.call(&mut self.connection.clone()).await?.reply()?;
        if reply.text()? == "ok" {
            Ok(())
        } else {
            Err(Error::Stale { stored: reply.count()? })
        }
    }

    /// A worker opens its own gate: no leader for `patience` seconds and no step under way.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn admit_self(&self, install: &str, worker: &str, pool: &str, patience: u64) -> Result<Admission, Error> {
        let args = Args::new(&ADMIT_SELF, self.keys.scope())
            .arg(install)
            .arg(worker)
            .arg(pool)
            .arg(patience);
        let answer = args.call(&mut self.connection.clone()).await?;
        Ok(match answer.text()?.as_str() {
            "open" => Admission::Open,
            "leader" => Admission::Leader,
            "step" => Admission::Step,
            _ => Admission::Unknown,
        })
    }

    /// A worker that stops closes its own gate. Returns the leases it holds.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn close_self(&self, worker: &str) -> Result<u64, Error> {
        Args::new(&CLOSE_SELF, self.keys.scope())
            .arg(worker)
            .call(&mut self.connection.clone())
            .await?
            .count()
    }

    /// A worker that holds nothing removes its traces. False while it holds leases.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn goodbye(&self, worker: &str) -> Result<bool, Error> {
        let gone = Args::new(&GOODBYE, self.keys.scope())
            .arg(worker)
            .call(&mut self.connection.clone())
            .await?
            .count()?;
        Ok(gone == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::Gate;

    #[test]
    fn gate_states_parse() {
        assert_eq!(Gate::parse("new"), Some(Gate::New));
        assert_eq!(Gate::parse("open"), Some(Gate::Open));
        assert_eq!(Gate::parse("closed@12.500"), Some(Gate::Closed { since: 12.5 }));
        assert_eq!(Gate::parse(""), None);
    }
}
