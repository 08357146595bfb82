//! Breadth-first search over everything that can happen. Each state is kept once.

use std::hash::{Hash, Hasher};

use crate::mind::{Mind, Off};
use crate::state::{Doing, Event, Pods, State};
use crate::{cluster, operator};

/// What brought one state to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Start,
    OperatorReads,
    OperatorDecides(Doing, Pods),
    Operator(Doing, Pods),
    Ghost(Doing, Pods),
    GhostEnds,
    DeploymentControllerScales,
    DeploymentControllerTells,
    SizeSeen,
    PodSeen(Event),
    SetControllerMakes(u8),
    SetControllerRemoves(Pods),
    SetControllerCounts,
    SetControllerTells,
    Starts(u8),
    BecomesReady(u8),
    Reserves(u8),
    Finishes(u8),
    MinutePasses,
    StepExpires,
    AdmitsItself(u8),
    QuotaBegins,
    QuotaEnds,
    Demand(u8),
    Lost(u8),
    RedisLosesAll,
    Crashes,
    Stopped,
    GivesUpRequest,
}

/// What can happen next in one state.
#[derive(Default)]
pub(crate) struct Found {
    next: Vec<(Step, State, bool)>,
    violation: Option<(Step, State, &'static str)>,
}

impl Found {
    /// This follows by itself, sooner or later.
    pub(crate) fn follows(&mut self, step: Step, state: State) {
        self.next.push((step, state.normal(), true));
    }

    /// This may happen.
    pub(crate) fn happens(&mut self, step: Step, state: State) {
        self.next.push((step, state.normal(), false));
    }

    /// This must never happen.
    pub(crate) fn violation(&mut self, step: Step, state: State, what: &'static str) {
        self.violation.get_or_insert((step, state, what));
    }
}

/// What is searched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scene {
    pub(crate) start: State,
    /// The largest demand.
    pub(crate) most: u8,
    /// Whether time passes between the operator's reading of sizes and of pods.
    pub(crate) reads_apart: bool,
    /// Whether the ReplicaSet controller is never late by a minute.
    pub(crate) prompt: bool,
    /// The guard that is switched off.
    pub(crate) off: Off,
}

/// What a search found.
pub(crate) enum Verdict {
    /// Nothing, in so many states and transitions.
    Clean {
        states: usize,
        transitions: usize,
        depth: u32,
    },
    /// This, by these steps.
    Violated {
        what: &'static str,
        way: Vec<Step>,
        states: usize,
        last: Box<State>,
    },
}

#[derive(Default)]
pub(crate) struct Fold(u64);

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }
    fn write_isize(&mut self, value: isize) {
        self.write_u64(value.unsigned_abs() as u64);
    }
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

pub(crate) fn hash<T: Hash>(value: &T) -> u64 {
    let mut fold = Fold(0);
    value.hash(&mut fold);
    fold.finish()
}

/// Each value once, in the order of arrival.
struct Store {
    states: Vec<State>,
    slots: Vec<u32>,
}

impl Store {
    fn new() -> Self {
        Store {
            states: Vec::new(),
            slots: vec![u32::MAX; 1 << 12],
        }
    }

    /// The number of a state, and whether it is new.
    fn put(&mut self, state: State) -> (u32, bool) {
        if self.states.len() * 2 > self.slots.len() {
            self.grow();
        }
        let mask = self.slots.len() - 1;
        let mut at = usize::try_from(hash(&state)).expect("64 bits") & mask;
        loop {
            let number = self.slots[at];
            if number == u32::MAX {
                let new = u32::try_from(self.states.len()).expect("few enough");
                self.slots[at] = new;
                self.states.push(state);
                return (new, true);
            }
            if self.states[number as usize] == state {
                return (number, false);
            }
            at = (at + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let mask = self.slots.len() * 4 - 1;
        let mut slots = vec![u32::MAX; mask + 1];
        for (number, state) in self.states.iter().enumerate() {
            let mut at = usize::try_from(hash(state)).expect("64 bits") & mask;
            while slots[at] != u32::MAX {
                at = (at + 1) & mask;
            }
            slots[at] = u32::try_from(number).expect("few enough");
        }
        self.slots = slots;
    }
}

impl Scene {
    /// Searches all of it, at most `limit` states.
    pub(crate) fn search(&self, limit: usize) -> Verdict {
        let mut store = Store::new();
        let mut mind = Mind::new(self.off);
        let mut from: Vec<(u32, Step, u32)> = vec![(0, Step::Start, 0)];
        // Who follows whom by itself, for the way back from the goal.
        let mut follows: Vec<(u32, u32)> = Vec::new();
        let mut transitions = 0;
        store.put(self.start.normal());
        let mut found = Found::default();
        let mut here = 0;
        while here < store.states.len() {
            let state = store.states[here];
            self.expand(&state, &mut mind, &mut found);
            let number = u32::try_from(here).expect("few enough");
            let depth = from[here].2 + 1;
            if let Some((step, last, what)) = found.violation.take() {
                let mut way = way(&from, number);
                way.push(step);
                return Verdict::Violated {
                    what,
                    way,
                    states: store.states.len(),
                    last: Box::new(last),
                };
            }
            transitions += found.next.len();
            for (step, after, by_itself) in found.next.drain(..) {
                let (next, is_new) = store.put(after);
                if is_new {
                    from.push((number, step, depth));
                }
                if by_itself {
                    follows.push((next, number));
                }
            }
            assert!(store.states.len() <= limit, "more than {limit} states");
            here += 1;
        }
        match stuck(&store.states, &follows) {
            None => Verdict::Clean {
                states: store.states.len(),
                transitions,
                depth: from.last().expect("there is a start").2,
            },
            Some(state) => Verdict::Violated {
                what: "from here the wanted size is never reached",
                way: way(&from, state),
                states: store.states.len(),
                last: Box::new(store.states[state as usize]),
            },
        }
    }

    fn expand(&self, state: &State, mind: &mut Mind, found: &mut Found) {
        operator::leader(state, self.reads_apart, mind, found);
        operator::ghost(state, mind, found);
        cluster::deployment_controller(state, found);
        cluster::watches(state, found);
        cluster::set_controller(state, found);
        cluster::workers(state, self.prompt, found);
        cluster::incidents(state, self.most, self.off, found);
    }
}

/// The steps from the start to a state.
fn way(from: &[(u32, Step, u32)], to: u32) -> Vec<Step> {
    let (mut way, mut at) = (Vec::new(), to as usize);
    while at != 0 {
        way.push(from[at].1);
        at = from[at].0 as usize;
    }
    way.reverse();
    way
}

/// The first state from which, without further incidents, no way leads to the goal.
fn stuck(states: &[State], follows: &[(u32, u32)]) -> Option<u32> {
    // Predecessors of each state, one after the other.
    let mut begins = vec![0_u32; states.len() + 1];
    for (next, _) in follows {
        begins[*next as usize + 1] += 1;
    }
    for at in 1..begins.len() {
        begins[at] += begins[at - 1];
    }
    let mut filled = begins.clone();
    let mut before = vec![0_u32; follows.len()];
    for (next, number) in follows {
        before[filled[*next as usize] as usize] = *number;
        filled[*next as usize] += 1;
    }
    let mut reaches = vec![false; states.len()];
    let mut open: Vec<u32> = Vec::new();
    for (number, state) in states.iter().enumerate() {
        if state.is_goal() {
            reaches[number] = true;
            open.push(u32::try_from(number).expect("few enough"));
        }
    }
    while let Some(number) = open.pop() {
        let (begin, end) = (begins[number as usize], begins[number as usize + 1]);
        for one in &before[begin as usize..end as usize] {
            if !reaches[*one as usize] {
                reaches[*one as usize] = true;
                open.push(*one);
            }
        }
    }
    let first = reaches.iter().position(|reached| !reached)?;
    Some(u32::try_from(first).expect("few enough"))
}
