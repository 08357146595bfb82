//! Every order of events in a small pool, searched breadth first: the real decision ([`umbel_plan::drain::next`])
//! against controllers with old pictures, workers, crashes, losses and stopped leaders.
//!
//! # Guarantees
//! In none of the searched orders does the ReplicaSet controller remove a pod that holds a task for a size of ours, nor
//! is one deleted by name; and from every state, if nothing more goes wrong, a way leads to the wanted size with every
//! pod at work. The controls show that the search finds a removal as soon as a guard is left out.
//!
//! # Assumptions
//! One ReplicaSet. Both controllers are late by less than the minute that a step waits (but by any number of events), a
//! leader is stopped for less than a step's announcement lasts. Among pods that look alike to the controller (NotReady,
//! or Ready) it may take any: costs and ages are not relied on.

#![allow(clippy::panic, reason = "a violation is the failure of the test")]
#![allow(
    clippy::trivially_copy_pass_by_ref,
    clippy::match_same_arms,
    clippy::enum_variant_names,
    reason = "the model reads like the protocol, a line for each event"
)]

mod cluster;
mod mind;
mod operator;
mod search;
mod state;

use May::{AdmitItself, Crash, Delay, Demand, Loss, Quota, Wipe};
use mind::Off;
use search::{Scene, Verdict};
use state::{Budget, State};

/// What a test may take before it is called too large.
const LIMIT: usize = 2_000_000;
const REMOVED: &str = "a pod was removed for a size, and holds a task";
const DELETED: &str = "a pod was deleted by name, and holds a task or could take one";
const STUCK: &str = "from here the wanted size is never reached";

/// What may happen once, at any moment.
#[derive(Clone, Copy)]
enum May {
    /// Another size is wanted.
    Demand,
    /// The leader dies, or is stopped and comes back too late.
    Crash,
    /// A request outlives the leader's patience.
    Delay,
    /// A pod is lost with its node, or deleted by somebody else.
    Loss,
    /// Redis loses everything.
    Wipe,
    /// New pods are refused for a while.
    Quota,
    /// A worker that sees no leader opens its own gate.
    AdmitItself,
}

fn scene(pods: u8, desired: u8, may: &[May]) -> Scene {
    let mut budget = Budget::default();
    for one in may {
        let times = match one {
            Demand => &mut budget.demands,
            Crash => &mut budget.crashes,
            Delay => &mut budget.delays,
            Loss => &mut budget.losses,
            Wipe => &mut budget.wipes,
            Quota => &mut budget.quotas,
            AdmitItself => &mut budget.selves,
        };
        *times += 1;
    }
    let mut start = State::at_rest(pods, budget);
    start.desired = desired;
    Scene {
        start,
        most: pods,
        reads_apart: false,
        prompt: true,
        off: Off::Nothing,
    }
}

fn is_clean(name: &str, scene: Scene) {
    match scene.search(LIMIT) {
        Verdict::Clean {
            states,
            transitions,
            depth,
        } => {
            println!("{name}: {states} states, {transitions} transitions, {depth} steps deep");
        }
        Verdict::Violated {
            what,
            way,
            states,
            last,
        } => {
            let steps: Vec<String> = way
                .iter()
                .enumerate()
                .map(|(n, step)| format!("{:3} {step:?}", n + 1))
                .collect();
            let steps = steps.join("\n");
            panic!(
                "{name}: {what}, after {} steps ({states} states)\n{steps}\n{last:#?}",
                way.len()
            );
        }
    }
}

/// A control: without a guard the search finds what must not be.
fn is_found(off: Off, scene: Scene, expected: &str) {
    match (Scene { off, ..scene }).search(LIMIT) {
        Verdict::Clean { states, .. } => panic!("without {off:?} nothing was found in {states} states"),
        Verdict::Violated {
            what,
            way,
            states,
            last: _,
        } => {
            assert_eq!(what, expected, "{way:#?}");
            println!("without {off:?}: found in {} steps, {states} states", way.len());
        }
    }
}

/// A removal is found although no guard is left out.
fn is_limit(scene: Scene) {
    match scene.search(LIMIT) {
        Verdict::Clean { states, .. } => panic!("no longer a limit: clean in {states} states"),
        Verdict::Violated { way, states, .. } => println!("limit: found in {} steps, {states} states", way.len()),
    }
}

#[test]
fn demand_that_comes_and_goes_costs_no_task() {
    is_clean("2 to 1, 2 changes of demand", scene(2, 1, &[Demand, Demand]));
    is_clean("2 at rest, 2 changes of demand", scene(2, 2, &[Demand, Demand]));
    is_clean("3 to 1, demand", scene(3, 1, &[Demand]));
}

#[test]
fn a_leader_that_dies_or_is_stopped_costs_no_task() {
    is_clean("2 to 1, demand, crash", scene(2, 1, &[Demand, Crash]));
    is_clean("3 to 1, crash", scene(3, 1, &[Crash]));
    // The mark of a stopped leader may arrive after its successor's lowering.
    let Scene { start, .. } = scene(2, 2, &[Demand, Crash]);
    let start = start.with_replacement();
    is_clean(
        "2, one unadmitted, demand, crash",
        Scene {
            start,
            ..scene(2, 2, &[])
        },
    );
}

#[test]
fn replacements_that_admit_themselves_cost_no_task() {
    is_clean(
        "2 to 1, demand, crash, self-admission",
        scene(2, 1, &[Demand, Crash, AdmitItself]),
    );
}

#[test]
fn a_size_that_arrives_late_costs_no_task() {
    is_clean("2 to 1, demand, late request", scene(2, 1, &[Demand, Delay]));
}

#[test]
fn sizes_and_pods_that_are_read_one_after_the_other_cost_no_task() {
    for (name, may) in [("demand", Demand), ("crash", Crash), ("loss", Loss)] {
        let scene = scene(2, 1, &[may]);
        is_clean(
            &format!("2 to 1, {name}, reads apart"),
            Scene {
                reads_apart: true,
                ..scene
            },
        );
    }
}

#[test]
fn a_lost_pod_costs_no_other_pod_its_task() {
    is_clean("2 to 1, demand, loss", scene(2, 1, &[Demand, Loss]));
    is_clean("3 to 1, loss", scene(3, 1, &[Loss]));
}

#[test]
fn a_redis_that_loses_all_costs_no_further_task() {
    is_clean(
        "2 to 1, demand, crash, Redis empty",
        scene(2, 1, &[Demand, Crash, Wipe]),
    );
    is_clean(
        "2 to 1, demand, quota, Redis empty",
        scene(2, 1, &[Demand, Quota, Wipe]),
    );
}

#[test]
fn a_quota_that_refuses_replacements_costs_no_task() {
    is_clean("2 to 1, crash, quota", scene(2, 1, &[Crash, Quota]));
    is_clean("2 to 1, loss, quota", scene(2, 1, &[Loss, Quota]));
}

#[test]
fn without_a_guard_the_search_finds_a_busy_pod_removed() {
    is_found(Off::DeleteByName, scene(2, 1, &[]), REMOVED);
    is_found(Off::UnadmittedOnly, scene(2, 1, &[]), REMOVED);
    is_found(Off::Replacement, scene(2, 1, &[]), REMOVED);
    is_found(Off::Processed, scene(2, 1, &[]), REMOVED);
    is_found(Off::SettledToStep, scene(2, 1, &[Demand]), REMOVED);
    is_found(Off::SettledToLower, scene(3, 1, &[Loss]), REMOVED);
    is_found(Off::ReadySeen, scene(2, 1, &[Demand, Loss]), REMOVED);
}

#[test]
fn without_its_fences_the_search_finds_a_busy_pod_deleted() {
    is_found(Off::Versions, scene(2, 1, &[Demand, Crash]), DELETED);
    is_found(Off::MarkFirst, scene(2, 1, &[Demand, Crash]), DELETED);
    is_found(Off::StampInDoubt, scene(2, 1, &[Demand, Delay]), REMOVED);
    is_found(Off::Confirm, scene(2, 1, &[Crash, AdmitItself]), DELETED);
}

#[test]
fn an_operator_that_never_verifies_is_found_stuck() {
    is_found(Off::Verification, scene(2, 1, &[]), STUCK);
}

#[test]
fn a_late_mark_after_demand_changed_twice_costs_no_task() {
    is_clean(
        "2 to 1, 2 changes of demand, crash",
        scene(2, 1, &[Demand, Demand, Crash]),
    );
}

/// What the protocol does not promise. When one of these is no longer found, a limit is gone: move it up.
#[test]
fn known_limits_are_still_limits() {
    // A controller that is late by more than the minute a step waits.
    let late = scene(2, 1, &[Demand, Loss]);
    is_limit(Scene { prompt: false, ..late });
    // The number of Ready pods in a status that was not written since can be right by chance.
    is_limit(scene(2, 1, &[Crash, Loss]));
    // Two pods lost inside one step.
    is_limit(scene(2, 1, &[Loss, Loss]));
}
