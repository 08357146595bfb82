//! Everybody but the operator: controllers with old pictures, workers, and what may go wrong.

use crate::mind::Off;
use crate::search::{Found, Step};
use crate::state::{Doing, Event, Memory, Process, Since, State, Status, Term, count, each};

/// The Deployment controller. It sees each size late, and the ReplicaSet's status at once; its own status is old anyway.
pub(crate) fn deployment_controller(state: &State, found: &mut Found) {
    let mut after = *state;
    let numbers = &mut after.numbers;
    if numbers.set_size != numbers.size {
        numbers.set_size = numbers.size;
        numbers.set_observed = false;
        after.sizes[usize::from(after.sizes_left)] = numbers.size;
        after.sizes_left += 1;
        if let Some(status) = &mut after.status {
            status.fresh = false;
        }
        found.follows(Step::DeploymentControllerScales, after);
    } else if !numbers.observed || numbers.live != numbers.set_live {
        numbers.observed = true;
        numbers.live = numbers.set_live;
        after.touch_deployment();
        found.follows(Step::DeploymentControllerTells, after);
    }
}

/// The watches of the ReplicaSet controller: sizes and pods come on their own streams, each in order.
pub(crate) fn watches(state: &State, found: &mut Found) {
    if state.sizes_left > 0 {
        let mut after = *state;
        after.cached_size = after.sizes[0];
        after.sizes.rotate_left(1);
        after.sizes_left -= 1;
        after.sizes[usize::from(after.sizes_left)..].fill(0);
        found.follows(Step::SizeSeen, after);
    }
    let mut after = *state;
    let event = after.next_event();
    match event {
        Event::None => return,
        Event::Added(pod) => {
            after.cached |= 1 << pod;
            after.awaits_new = after.awaits_new.saturating_sub(1);
        }
        Event::Ready(pod) => after.cached_ready |= after.cached & (1 << pod),
        Event::Unready(pod) => after.cached_ready &= !(1 << pod),
        Event::Gone(pod) => {
            after.cached &= !(1 << pod);
            after.cached_ready &= !(1 << pod);
            after.awaits_gone &= !(1 << pod);
        }
    }
    found.follows(Step::PodSeen(event), after);
}

/// The ReplicaSet controller: one sync at a time, first the pods, then the status with what it counted before.
/// It makes and removes nothing before it has seen what it made and removed the last time.
pub(crate) fn set_controller(state: &State, found: &mut Found) {
    if let Some(status) = state.status {
        let mut after = *state;
        after.status = None;
        after.numbers.set_live = status.live;
        after.numbers.set_ready = status.ready;
        after.numbers.set_observed = status.fresh;
        found.follows(Step::SetControllerTells, after);
        return;
    }
    let (live, size) = (count(state.cached), state.cached_size);
    let acts = state.awaits_new == 0 && state.awaits_gone == 0;
    let status = Status {
        live,
        ready: count(state.cached_ready),
        fresh: state.sizes_left == 0,
    };
    let told = Status {
        live: state.numbers.set_live,
        ready: state.numbers.set_ready,
        fresh: state.numbers.set_observed,
    };
    let mut base = *state;
    base.status = (status != told).then_some(status);
    if acts && live < size && !state.quota {
        let mut after = base;
        for _ in live..size {
            after.make();
        }
        after.awaits_new = size - live;
        found.follows(Step::SetControllerMakes(size - live), after);
    } else if acts && live > size {
        remove(state, &base, live - size, found);
    } else if base != *state {
        found.follows(Step::SetControllerCounts, base);
    }
}

/// Every choice that it may make. Those that it takes for NotReady come first; among equals it may take any, because
/// costs and ages are not to be relied on.
fn remove(state: &State, base: &State, by: u8, found: &mut Found) {
    let unready = state.cached & !state.cached_ready;
    for victims in 1..=state.cached {
        let taken_ready = victims & state.cached_ready != 0;
        let is_choice =
            victims & !state.cached == 0 && count(victims) == by && (!taken_ready || victims & unready == unready);
        if !is_choice {
            continue;
        }
        // Somebody has marked it and goes on to open it, perhaps before the worker hears of its end.
        let opening = |process: &Process, accepted| match process.doing {
            Doing::Open if accepted => process.pods,
            _ => 0,
        };
        let opened =
            opening(&state.leader, state.term == Term::Ours) | opening(&state.ghost, state.term == Term::Predecessors);
        let mut after = *base;
        after.awaits_gone = victims;
        for pod in each(victims & state.alive) {
            after.remove(pod);
        }
        // One with an open gate could take a task at this very moment; only one that has is counted.
        let wrong = victims & state.alive & (state.held | opened);
        if wrong == 0 {
            found.follows(Step::SetControllerRemoves(victims), after);
        } else {
            found.violation(
                Step::SetControllerRemoves(victims),
                after,
                "a pod was removed for a size, and holds a task",
            );
        }
    }
}

/// Whether both controllers know everything, and have done what follows from it.
fn has_caught_up(state: &State) -> bool {
    let scaled = state.numbers.observed && state.numbers.set_size == state.numbers.size;
    let knows = scaled && state.events[0] == Event::None && state.sizes_left == 0 && state.status.is_none();
    let live = count(state.cached);
    knows && (live == state.cached_size || (live < state.cached_size && state.quota))
}

/// Workers, kubelets and time: what takes a minute comes later than a controller that is `prompt`.
pub(crate) fn workers(state: &State, prompt: bool, found: &mut Found) {
    for pod in each(state.alive & !state.running) {
        let mut after = *state;
        after.running |= 1 << pod;
        after.touch(1 << pod);
        found.follows(Step::Starts(pod), after);
    }
    for pod in each(state.open & !state.ready) {
        let mut after = *state;
        after.ready |= 1 << pod;
        after.touch(1 << pod);
        after.tell(Event::Ready(pod));
        found.follows(Step::BecomesReady(pod), after);
    }
    for pod in each(state.held) {
        let mut after = *state;
        after.held &= !(1 << pod);
        found.follows(Step::Finishes(pod), after);
    }
    for pod in each(state.open & !state.held) {
        let mut after = *state;
        after.held |= 1 << pod;
        found.happens(Step::Reserves(pod), after);
    }
    let in_time = !prompt || has_caught_up(state);
    if state.memory.unsettled == Since::Now && in_time {
        let mut after = *state;
        after.memory.unsettled = Since::Long;
        found.follows(Step::MinutePasses, after);
    }
    let confirmed = |process: &Process| matches!(process.doing, Doing::Delete | Doing::Lower | Doing::Settle);
    if state.step && in_time && !confirmed(&state.leader) && !confirmed(&state.ghost) {
        found.follows(Step::StepExpires, State { step: false, ..*state });
    }
    if state.quota {
        found.follows(Step::QuotaEnds, State { quota: false, ..*state });
    }
}

/// What may happen, or not.
pub(crate) fn incidents(state: &State, most: u8, off: Off, found: &mut Found) {
    if state.budget.demands > 0 {
        for desired in (0..=most).filter(|desired| *desired != state.desired) {
            let mut after = State { desired, ..*state };
            after.budget.demands -= 1;
            found.happens(Step::Demand(desired), after);
        }
    }
    if state.budget.losses > 0 {
        for pod in each(state.alive) {
            let mut after = *state;
            after.budget.losses -= 1;
            after.remove(pod);
            found.happens(Step::Lost(pod), after);
        }
    }
    if state.budget.wipes > 0 {
        let mut after = *state;
        after.budget.wipes -= 1;
        (after.open, after.closed, after.held) = (0, 0, 0);
        (after.term, after.step) = (Term::Lost, false);
        if let Some((_, current)) = &mut after.memory.replacing {
            *current = false;
        }
        found.happens(Step::RedisLosesAll, after);
    }
    // Between two leaders, and not while a step is under way.
    let alone = state.term == Term::Predecessors && state.leader.doing == Doing::Nothing && !state.step;
    if state.budget.selves > 0 && alone {
        for pod in each(state.running & !state.open) {
            let mut after = *state;
            after.budget.selves -= 1;
            after.open |= 1 << pod;
            after.closed &= !(1 << pod);
            found.happens(Step::AdmitsItself(pod), after);
        }
    }
    if state.budget.quotas > 0 {
        let mut after = State { quota: true, ..*state };
        after.budget.quotas -= 1;
        found.happens(Step::QuotaBegins, after);
    }
    if state.budget.crashes > 0 {
        let mut after = *state;
        after.budget.crashes -= 1;
        (after.memory, after.leader, after.stamped) = (Memory::default(), Process::default(), false);
        if after.term == Term::Ours {
            after.term = Term::Predecessors;
        }
        found.happens(Step::Crashes, after);
        let halfway = !matches!(state.leader.doing, Doing::Nothing | Doing::Reading);
        if halfway && state.ghost.doing == Doing::Nothing {
            after.ghost = state.leader;
            found.happens(Step::Stopped, after);
        }
    }
    let sent = matches!(
        state.leader.doing,
        Doing::Resize | Doing::Delete | Doing::Lower | Doing::Settle
    );
    if state.budget.delays > 0 && sent && state.ghost.doing == Doing::Nothing {
        let mut after = *state;
        after.budget.delays -= 1;
        (after.ghost, after.leader, after.late) = (state.leader, Process::default(), true);
        // After a size without an answer, another stamp comes first.
        after.stamped &= state.leader.doing == Doing::Delete || off == Off::StampInDoubt;
        found.happens(Step::GivesUpRequest, after);
    }
}
