//! What a leader does, and workers without one.

use umbel_broker::{Admission, Fence, GateAnswer, StepAnswer, TermAnswer};

use super::{INSTALL, World, name};
use crate::model::Gate;

impl World {
    pub(super) async fn gate(&mut self, worker: usize, is_open: bool) {
        self.fence.n += 1;
        let name = name(worker);
        let answer = match is_open {
            true => self.broker.open(&self.fence, &name).await,
            false => self.broker.drain(&self.fence, &name).await,
        };
        let answer = answer.expect("the server answers");
        if self.gates[worker] == Gate::Unknown {
            assert_eq!(answer, GateAnswer::Unknown);
        } else {
            assert_eq!(
                answer,
                GateAnswer::Done {
                    held: self.model.held_by(worker) as u64
                }
            );
            self.gates[worker] = if is_open { Gate::Open } else { Gate::Closed };
        }
    }

    /// A leader that is no more, and a write of this one that comes late.
    pub(super) async fn stale_open(&mut self, worker: usize) {
        let Fence { install, term, .. } = self.fence.clone();
        let predecessor = Fence {
            install: install.clone(),
            term: term - 1,
            n: u64::from(u32::MAX),
        };
        let answer = self
            .broker
            .open(&predecessor, &name(worker))
            .await
            .expect("the server answers");
        assert_eq!(answer, GateAnswer::Stale { term });
        if self.fence.n > 0 && matches!(self.gates[worker], Gate::Open | Gate::Closed) {
            self.gate(worker, self.gates[worker] == Gate::Open).await;
            let late = Fence {
                install,
                term,
                n: self.fence.n,
            };
            let answer = self
                .broker
                .open(&late, &name(worker))
                .await
                .expect("the server answers");
            assert_eq!(answer, GateAnswer::Stale { term });
        }
    }

    pub(super) async fn new_leader(&mut self) {
        let term = self.fence.term;
        let taken = self
            .broker
            .claim_term(INSTALL, term, "another")
            .await
            .expect("the server answers");
        assert_eq!(taken, TermAnswer::Higher(term));
        self.fence = Fence {
            term: term + 1,
            n: 0,
            ..self.fence.clone()
        };
        let holder = format!("leader {}", self.fence.term);
        let answer = self
            .broker
            .claim_term(INSTALL, self.fence.term, &holder)
            .await
            .expect("the server answers");
        assert_eq!(answer, TermAnswer::Accepted);
    }

    pub(super) async fn scale_down_step(&mut self, worker: usize) {
        self.fence.n += 1;
        let pool = format!("pool {worker}");
        let answer = self
            .broker
            .step(&self.fence, &pool, &[name(worker)])
            .await
            .expect("the server answers");
        let StepAnswer::Workers(states) = answer else {
            panic!("the leader's step is taken: {answer:?}")
        };
        let gate = match states[0].0 {
            None => Gate::Unknown,
            Some(umbel_broker::Gate::New) => Gate::New,
            Some(umbel_broker::Gate::Open) => Gate::Open,
            Some(umbel_broker::Gate::Closed { .. }) => Gate::Closed,
        };
        assert_eq!(
            (gate, states[0].1),
            (self.gates[worker], self.model.held_by(worker) as u64)
        );
        self.has_step[worker] = true;
    }

    pub(super) async fn admit_self(&mut self, worker: usize) {
        let pool = format!("pool {worker}");
        let answer = self
            .broker
            .admit_self(INSTALL, &name(worker), &pool, 30)
            .await
            .expect("the server answers");
        let expected = match (self.has_step[worker], self.gates[worker]) {
            (true, _) => Admission::Step,
            (false, Gate::Unknown) => Admission::Unknown,
            (false, Gate::New | Gate::Open | Gate::Closed) => {
                self.gates[worker] = Gate::Open;
                Admission::Open
            }
        };
        assert_eq!(answer, expected);
    }
}
