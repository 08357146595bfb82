//! The operator: what is decided is carried out in the steps, and with the preconditions, of the real one.

use umbel_plan::drain;

use crate::mind::{Mind, Off, broker};
use crate::search::{Found, Step};
use crate::state::{Doing, Event, Numbers, Process, State, Term, count, each};

/// What the leader can do next.
pub(crate) fn leader(state: &State, reads_apart: bool, mind: &mut Mind, found: &mut Found) {
    match state.leader.doing {
        // Before it reads, it sees to it that the broker has its term.
        Doing::Nothing if reads_apart => {
            let leader = Process {
                doing: Doing::Reading,
                read: state.numbers,
                ..Process::default()
            };
            found.follows(
                Step::OperatorReads,
                State {
                    leader,
                    term: Term::Ours,
                    ..*state
                },
            );
        }
        Doing::Nothing => decided(state, state.numbers, mind, found),
        Doing::Reading => decided(state, state.leader.read, mind, found),
        _ => carry_out(state, false, mind.off, found),
    }
}

/// What a predecessor that does not know it, or a late request, can still do.
pub(crate) fn ghost(state: &State, mind: &Mind, found: &mut Found) {
    if state.ghost.doing != Doing::Nothing {
        found.follows(
            Step::GhostEnds,
            State {
                ghost: Process::default(),
                ..*state
            },
        );
        carry_out(state, true, mind.off, found);
    }
}

fn decided(state: &State, numbers: Numbers, mind: &mut Mind, found: &mut Found) {
    let decision = mind.decide(state, numbers);
    let mut after = State {
        term: Term::Ours,
        memory: decision.memory,
        ..*state
    };
    let acts = decision.doing != Doing::Nothing || decision.verified;
    let stale = state.leader.stale;
    after.leader = if acts && !state.stamped {
        Process {
            doing: Doing::Stamp,
            stale,
            ..Process::default()
        }
    } else {
        if decision.verified && mind.off != Off::Verification {
            after.memory.note(drain::Memory::verified);
        }
        let survivors = match decision.doing {
            Doing::ConfirmLower | Doing::ConfirmSettle => state.alive & (state.marked | state.open),
            _ => 0,
        };
        Process {
            doing: decision.doing,
            pods: decision.pods,
            to: decision.to,
            stale,
            survivors,
            ..Process::default()
        }
    };
    if after != *state {
        found.follows(Step::OperatorDecides(after.leader.doing, after.leader.pods), after);
    }
}

/// One step of an action; what is not accepted ends it.
fn carry_out(state: &State, is_ghost: bool, off: Off, found: &mut Found) {
    let mut process = if is_ghost { state.ghost } else { state.leader };
    let accepted = match (is_ghost, state.term) {
        (false, Term::Ours) | (true, Term::Predecessors) => true,
        (_, Term::Ours | Term::Predecessors | Term::Lost) => false,
    };
    if is_ghost && off == Off::Versions {
        (process.stale, process.touched) = (false, 0);
    }
    let mut after = *state;
    let mut goes_on = Doing::Nothing;
    let mut wrong = false;
    match process.doing {
        Doing::Nothing | Doing::Reading => return,
        Doing::Stamp if !process.stale => {
            after.stamped |= !is_ghost;
            after.touch_deployment();
        }
        Doing::Resize if !process.stale => after.resize(process.to),
        Doing::Mark => {
            process.pods &= !process.touched;
            after.marked |= process.pods;
            if off != Off::MarkFirst {
                after.touch(process.pods);
            }
            goes_on = Doing::Open;
        }
        Doing::Open if accepted => {
            after.open |= process.pods;
            after.closed &= !process.pods;
        }
        Doing::Drain if accepted => {
            after.open &= !process.pods;
            after.closed |= process.pods;
        }
        Doing::ConfirmDelete if accepted => {
            after.step = true;
            if off == Off::Confirm {
                after.step = state.step;
            } else {
                process.pods &= state.closed & !state.held;
            }
            goes_on = Doing::Delete;
        }
        Doing::Delete => {
            let pods = process.pods & !process.touched;
            wrong = pods & (state.held | state.open) != 0;
            for pod in each(pods) {
                after.remove(pod);
            }
            if !is_ghost && pods != 0 {
                after
                    .memory
                    .note(|memory| memory.deleted(count(pods).into(), &broker()));
            }
        }
        Doing::ConfirmLower if accepted => {
            after.step = true;
            if process.pods & state.open == 0 {
                process.pods = 0;
                goes_on = Doing::Lower;
            }
        }
        Doing::ConfirmSettle if accepted => {
            after.step = true;
            goes_on = Doing::Settle;
        }
        Doing::Lower | Doing::Settle if !process.stale && process.to < state.numbers.size => {
            after.resize(process.to);
            if !is_ghost {
                let survivors = each(process.survivors).map(|pod| pod.to_string()).collect();
                after.memory.note(|memory| memory.lowered(process.to.into(), survivors));
            }
        }
        Doing::Unready => {
            after.ready &= !process.pods;
            after.touch(process.pods);
            each(process.pods).for_each(|pod| after.tell(Event::Unready(pod)));
            process.pods = 0;
            goes_on = Doing::Lower;
        }
        Doing::Stamp | Doing::Resize | Doing::Open | Doing::Drain => {}
        Doing::ConfirmDelete | Doing::ConfirmLower | Doing::ConfirmSettle | Doing::Lower | Doing::Settle => {}
    }
    let next = if goes_on == Doing::Nothing {
        Process::default()
    } else {
        Process {
            doing: goes_on,
            ..process
        }
    };
    let place = if is_ghost { &mut after.ghost } else { &mut after.leader };
    // What was written meanwhile (a mark of its own, too) counts on.
    *place = Process {
        touched: 0,
        stale: place.stale,
        ..next
    };
    if goes_on == Doing::Delete {
        place.touched = process.touched;
    }
    let step = if is_ghost {
        Step::Ghost(process.doing, process.pods)
    } else {
        Step::Operator(process.doing, process.pods)
    };
    if wrong {
        found.violation(
            step,
            after,
            "a pod was deleted by name, and holds a task or could take one",
        );
    } else {
        found.follows(step, after);
    }
}
