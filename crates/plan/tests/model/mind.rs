//! The real decision, asked about states of the model; and what operators would decide that lack a guard.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use umbel_api::workerpool::Victims;
use umbel_plan::drain::{self, Action, Broker, Fleet, Gate, REPLACEMENT_WAIT, Rules, Turn, World};

use crate::search::Fold;
use crate::state::{Doing, Memory, Numbers, Pods, Since, State, each};

/// A guard that a control leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Off {
    /// None: this is the protocol.
    #[default]
    Nothing,
    /// The size is lowered as soon as there are unadmitted pods, settled or not.
    SettledToLower,
    /// The next step begins although the last lowering has not settled.
    SettledToStep,
    /// Pods are admitted before the last size was processed.
    Processed,
    /// Drained pods count as those to take: none is deleted by name.
    UnadmittedOnly,
    /// The size is lowered directly after the deletion by name.
    Replacement,
    /// Instead of being deleted, drained pods turn NotReady, and the size is lowered.
    DeleteByName,
    /// It is not asked whether the ReplicaSet controller has seen who is Ready.
    ReadySeen,
    /// A late write of a predecessor is not refused for its resourceVersion.
    Versions,
    /// A gate is opened without a new mark on the pod.
    MarkFirst,
    /// Redis is not asked again before a pod is deleted.
    Confirm,
    /// After a size without an answer, no other stamp is written.
    StampInDoubt,
    /// A lowering is never verified.
    Verification,
}

/// What the decision looks at.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct View {
    numbers: Numbers,
    desired: u8,
    alive: Pods,
    running: Pods,
    ready: Pods,
    marked: Pods,
    open: Pods,
    closed: Pods,
    held: Pods,
    memory: Memory,
}

/// What it says.
#[derive(Clone, Copy)]
pub(crate) struct Decision {
    pub(crate) doing: Doing,
    pub(crate) pods: Pods,
    pub(crate) to: u8,
    pub(crate) verified: bool,
    pub(crate) memory: Memory,
}

/// The real decision. It is a function, so each answer is kept.
pub(crate) struct Mind {
    pub(crate) off: Off,
    known: HashMap<View, Decision, BuildHasherDefault<Fold>>,
}

impl Mind {
    pub(crate) fn new(off: Off) -> Self {
        Mind {
            off,
            known: HashMap::default(),
        }
    }

    pub(crate) fn decide(&mut self, state: &State, numbers: Numbers) -> Decision {
        let view = View {
            numbers,
            desired: state.desired,
            alive: state.alive,
            running: state.running,
            ready: state.ready,
            marked: state.marked,
            open: state.open,
            closed: state.closed,
            held: state.held,
            memory: state.memory,
        };
        if let Some(decision) = self.known.get(&view) {
            return *decision;
        }
        let decision = decide(&view, self.off);
        self.known.insert(view, decision);
        decision
    }
}

const SET: &str = "set";
const NOW: &str = "now";
const BEFORE: &str = "before";

fn begin() -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1)
}

fn clock(memory: &Memory) -> Timestamp {
    match memory.unsettled {
        Since::Never | Since::Now => begin(),
        Since::Long => begin() + REPLACEMENT_WAIT,
    }
}

pub(crate) fn broker() -> Broker {
    Broker {
        generation: NOW.to_owned(),
    }
}

impl Memory {
    fn real(&self) -> drain::Memory {
        drain::Memory {
            replacing: self.replacing.map(|(deleted, current)| drain::Replacing {
                deleted: deleted.into(),
                generation: if current { NOW } else { BEFORE }.to_owned(),
            }),
            lowering: self.lowering.map(|(to, survivors)| drain::Lowering {
                to: to.into(),
                survivors: each(survivors).map(|pod| pod.to_string()).collect(),
            }),
            unsettled_since: (self.unsettled != Since::Never).then(begin),
        }
    }

    fn of(real: &drain::Memory, now: Timestamp) -> Memory {
        let drain::Memory {
            replacing,
            lowering,
            unsettled_since,
        } = real;
        Memory {
            replacing: replacing
                .as_ref()
                .map(|one| (small(one.deleted), one.generation == NOW)),
            lowering: lowering.as_ref().map(|one| (small(one.to), pods(one.survivors.iter()))),
            unsettled: match unsettled_since {
                None => Since::Never,
                Some(since) if now.duration_since(*since) >= REPLACEMENT_WAIT => Since::Long,
                Some(_) => Since::Now,
            },
        }
    }

    /// Takes a note as the real one does.
    pub(crate) fn note(&mut self, take: impl FnOnce(&mut drain::Memory)) {
        let mut real = self.real();
        take(&mut real);
        *self = Memory::of(&real, clock(self));
    }
}

fn small(number: u32) -> u8 {
    u8::try_from(number).expect("a small number")
}

fn pods<'a>(uids: impl Iterator<Item = &'a String>) -> Pods {
    uids.fold(0, |pods, uid| pods | 1 << uid.parse::<u8>().expect("a pod's number"))
}

fn world(view: &View) -> World {
    let pod = |pod: u8| {
        let has = |pods: Pods| pods & (1 << pod) != 0;
        let gate = match (has(view.open), has(view.closed)) {
            (true, _) => Gate::Open,
            (false, true) => Gate::Closed,
            (false, false) => Gate::New,
        };
        let worker = drain::Worker {
            name: pod.to_string(),
            gate,
            held: has(view.held).into(),
            alive: true,
            closed_for: Duration::ZERO,
        };
        drain::Pod {
            name: pod.to_string(),
            uid: pod.to_string(),
            set: SET.to_owned(),
            created: Timestamp::UNIX_EPOCH + SignedDuration::from_secs(pod.into()),
            running: has(view.running),
            ready: has(view.ready),
            unready_since: None,
            ending: false,
            marked: has(view.marked),
            worker: has(view.running).then_some(worker),
        }
    };
    let Numbers {
        size,
        observed,
        live,
        set_size,
        set_observed,
        set_live,
        set_ready,
    } = view.numbers;
    World {
        desired: view.desired.into(),
        deployment: Fleet {
            size: size.into(),
            observed,
            live: live.into(),
            updated: live.into(),
            paused: false,
        },
        // As the operator reads it: without one that is empty and wanted empty.
        sets: if (set_size, set_live, view.alive) == (0, 0, 0) {
            Vec::new()
        } else {
            vec![drain::Set {
                uid: SET.to_owned(),
                size: set_size.into(),
                observed: set_observed,
                live: set_live.into(),
                ready: set_ready.into(),
            }]
        },
        pods: each(view.alive).map(pod).collect(),
        broker: Some(broker()),
    }
}

fn decide(view: &View, off: Off) -> Decision {
    let (world, now) = (world(view), clock(&view.memory));
    let mut memory = view.memory.real();
    memory.observe(&world, now);
    let turn = turn(&world, &memory, now, off);
    let size = view.numbers.size;
    let (doing, pods, to) = match &turn.action {
        Action::Wait | Action::Verified { .. } => (Doing::Nothing, 0, 0),
        Action::Stop { .. } => unreachable!("the rules never let a busy pod be stopped"),
        Action::Clear => unreachable!("nobody pauses it"),
        Action::Raise { to } => (Doing::Resize, 0, small(*to)),
        Action::Admit { pods: uids } | Action::Reopen { pods: uids } => (Doing::Mark, pods(uids.iter()), 0),
        Action::Drain { pods: uids } => (Doing::Drain, pods(uids.iter()), 0),
        Action::Delete { pods: uids } if off == Off::DeleteByName => (
            Doing::Unready,
            pods(uids.iter()),
            size - small(u32::try_from(uids.len()).expect("few")),
        ),
        Action::Delete { pods: uids } => (Doing::ConfirmDelete, pods(uids.iter()), 0),
        Action::Lower { takes } => (
            // Redis is asked for all that the controller may choose from.
            Doing::ConfirmLower,
            view.alive & !(view.marked | view.open),
            size - small(u32::try_from(takes.len()).expect("few")),
        ),
        Action::SettleForLive { to } => (Doing::ConfirmSettle, 0, small(*to)),
    };
    let verified = matches!(turn.action, Action::Verified { .. });
    Decision {
        doing,
        pods,
        to,
        verified,
        memory: Memory::of(&memory, now),
    }
}

/// The default: whoever works is waited for.
const RULES: Rules = Rules {
    victims: Victims::Drained,
    confirm: Duration::from_secs(15),
    wait: None,
    longest: Duration::from_hours(1),
    leaves: false,
};

/// The real turn, or what an operator without a guard would do instead.
fn turn(world: &World, memory: &drain::Memory, now: Timestamp, off: Off) -> Turn {
    let real = drain::next(world, memory, &RULES, now);
    let careless = |accepts: fn(&Action) -> bool| {
        let forgetful = drain::Memory {
            lowering: None,
            ..memory.clone()
        };
        let turn = drain::next(&believed(world), &forgetful, &RULES, now);
        if real.action == Action::Wait && accepts(&turn.action) {
            turn
        } else {
            real.clone()
        }
    };
    match (off, &real.action) {
        (Off::SettledToLower, _) if memory.lowering.is_none() => {
            careless(|action| matches!(action, Action::Lower { .. }))
        }
        (Off::SettledToStep, _) if memory.lowering.is_some() => careless(|action| {
            matches!(
                action,
                Action::Delete { .. } | Action::Drain { .. } | Action::Lower { .. }
            )
        }),
        (Off::Processed, _) => careless(|action| matches!(action, Action::Admit { .. })),
        (Off::UnadmittedOnly, Action::Delete { pods }) => Turn {
            action: Action::Lower { takes: pods.clone() },
            reason: real.reason,
        },
        (Off::Replacement, Action::Wait) => match &memory.replacing {
            Some(replacing) if memory.lowering.is_none() => {
                // The broker is asked for nobody, as nobody was waited for.
                let takes = (0..replacing.deleted).map(|_| "7".to_owned()).collect();
                Turn {
                    action: Action::Lower { takes },
                    reason: real.reason,
                }
            }
            _ => real,
        },
        (Off::ReadySeen, _) => {
            let mut blind = world.clone();
            let ready = u32::try_from(world.pods.iter().filter(|pod| pod.ready).count()).expect("few");
            blind.sets.iter_mut().for_each(|set| set.ready = ready);
            drain::next(&blind, memory, &RULES, now)
        }
        _ => real,
    }
}

/// What an operator sees that takes the pods for the size, and believes that everybody agrees.
fn believed(world: &World) -> World {
    let live = u32::try_from(world.pods.len()).expect("few");
    let ready = u32::try_from(world.pods.iter().filter(|pod| pod.ready).count()).expect("few");
    let mut believed = world.clone();
    believed.desired = (world.desired + live).saturating_sub(world.deployment.size);
    believed.deployment = Fleet {
        size: live,
        observed: true,
        live,
        updated: live,
        paused: false,
    };
    believed.sets = vec![drain::Set {
        uid: SET.to_owned(),
        size: live,
        observed: true,
        live,
        ready,
    }];
    believed
}
