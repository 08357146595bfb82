//! One pass of a scale-down, case by case.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::type_complexity,
    reason = "helpers of tests"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use umbel_api::workerpool::Victims;
use umbel_plan::drain::{
    Action, Broker, Fleet, Gate, Lowering, Memory, Pod, REPLACEMENT_WAIT, Reason, Rules, Set, Turn, Worker, World, next,
};

const RULES: Rules = Rules {
    victims: Victims::Drained,
    confirm: Duration::from_secs(15),
    wait: None,
    longest: Duration::from_hours(1),
    leaves: false,
};

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

/// An admitted, ready, idle pod; a larger number is newer.
fn pod(number: u8) -> Pod {
    let name = format!("p{number}");
    Pod {
        name: name.clone(),
        uid: name.clone(),
        set: "set".into(),
        created: Timestamp::from_second(i64::from(number)).unwrap(),
        running: true,
        ready: true,
        unready_since: None,
        ending: false,
        marked: true,
        worker: Some(Worker {
            name,
            gate: Gate::Open,
            held: 0,
            alive: true,
            closed_for: Duration::ZERO,
        }),
    }
}

fn with(pod: Pod, gate: Gate, held: u64) -> Pod {
    Pod {
        worker: pod.worker.clone().map(|worker| Worker { gate, held, ..worker }),
        ..pod
    }
}

/// A pod that nobody admitted.
fn fresh(number: u8) -> Pod {
    Pod {
        marked: false,
        ready: false,
        ..with(pod(number), Gate::New, 0)
    }
}

/// A settled world of these pods.
fn world(pods: Vec<Pod>, desired: u32) -> World {
    let live = u32::try_from(pods.iter().filter(|pod| !pod.ending).count()).unwrap();
    let ready = u32::try_from(pods.iter().filter(|pod| !pod.ending && pod.ready).count()).unwrap();
    let sets = if live == 0 {
        Vec::new()
    } else {
        vec![Set {
            uid: "set".into(),
            size: live,
            observed: true,
            live,
            ready,
        }]
    };
    World {
        desired,
        deployment: Fleet {
            size: live,
            observed: true,
            live,
            updated: live,
            paused: false,
        },
        sets,
        pods,
        broker: Some(Broker { generation: "g".into() }),
    }
}

fn turn(world: &World) -> Turn {
    next(world, &Memory::default(), &RULES, now())
}

fn uids(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_steady_world_is_left_alone() {
    assert_eq!(
        turn(&world(vec![pod(1), pod(2)], 2)),
        Turn {
            action: Action::Wait,
            reason: Reason::Steady
        }
    );
    assert_eq!(
        turn(&world(vec![], 0)),
        Turn {
            action: Action::Wait,
            reason: Reason::Steady
        }
    );
}

#[test]
fn idle_pods_are_drained_first_and_the_newest_of_them() {
    let pods = vec![pod(1), with(pod(2), Gate::Open, 3), pod(3), with(pod(4), Gate::Open, 1)];
    let drains = |desired| match turn(&world(pods.clone(), desired)).action {
        Action::Drain { pods } => pods,
        other => panic!("{other:?}"),
    };
    assert_eq!(drains(3), uids(&["p3"]));
    assert_eq!(drains(2), uids(&["p3", "p1"]));
    assert_eq!(drains(1), uids(&["p3", "p1", "p4"]));
}

#[test]
fn only_closed_and_empty_pods_are_deleted() {
    let closed = with(pod(2), Gate::Closed, 0);
    assert_eq!(
        turn(&world(vec![pod(1), closed], 1)).action,
        Action::Delete { pods: uids(&["p2"]) }
    );
    let working = with(pod(2), Gate::Closed, 1);
    let busy = with(pod(1), Gate::Open, 2);
    assert_eq!(
        turn(&world(vec![busy, working], 1)),
        Turn {
            action: Action::Wait,
            reason: Reason::Draining {
                busy: vec!["p2".into()]
            }
        }
    );
}

#[test]
fn another_idle_pod_takes_the_place_of_one_that_got_work() {
    let got_work = with(pod(2), Gate::Closed, 1);
    let turn = turn(&world(vec![pod(1), got_work], 1));
    assert_eq!(
        turn,
        Turn {
            action: Action::Reopen { pods: uids(&["p2"]) },
            reason: Reason::WantedAgain
        }
    );
}

#[test]
fn while_a_replacement_is_awaited_nobody_else_is_drained() {
    let mut awaiting = world(vec![pod(1)], 1);
    (awaiting.deployment.size, awaiting.sets[0].size) = (2, 2);
    assert_eq!(
        turn(&awaiting),
        Turn {
            action: Action::Wait,
            reason: Reason::Settling
        }
    );
}

#[test]
fn the_size_falls_only_by_unadmitted_pods_and_only_when_settled() {
    let settled = world(vec![pod(1), fresh(3), fresh(4)], 1);
    assert_eq!(
        turn(&settled).action,
        Action::Lower {
            takes: uids(&["p4", "p3"])
        }
    );
    let waits = |change: &dyn Fn(&mut World)| {
        let mut world = settled.clone();
        change(&mut world);
        turn(&world)
    };
    let waiting = Turn {
        action: Action::Wait,
        reason: Reason::Settling,
    };
    assert_eq!(waits(&|world| world.deployment.observed = false), waiting);
    assert_eq!(waits(&|world| world.sets[0].observed = false), waiting);
    assert_eq!(waits(&|world| world.sets[0].live = 2), waiting);
    assert_eq!(waits(&|world| world.sets[0].size = 2), waiting);
    assert_eq!(
        waits(&|world| world.sets[0].ready = 0),
        waiting,
        "the controller has not seen p1 Ready"
    );
    assert_eq!(
        waits(&|world| world.pods[2].ending = true),
        waiting,
        "its replacement is not there yet"
    );
    assert_eq!(
        waits(&|world| world.pods[0].ready = false).reason,
        Reason::NotReady { pod: "p1".into() }
    );
    assert_eq!(waits(&|world| world.deployment.updated = 1).reason, Reason::Rollout);
    assert_eq!(waits(&|world| world.broker = None).reason, Reason::BrokerUnreachable);
}

#[test]
fn a_pod_that_admitted_itself_is_no_replacement() {
    let own = with(fresh(2), Gate::Open, 0);
    assert_eq!(
        turn(&world(vec![pod(1), own], 1)).action,
        Action::Admit { pods: uids(&["p2"]) }
    );
}

#[test]
fn a_marked_pod_that_redis_forgot_is_opened_again() {
    let forgotten = with(pod(2), Gate::New, 0);
    for desired in [1, 2] {
        let turn = turn(&world(vec![pod(1), forgotten.clone()], desired));
        assert_eq!(turn.action, Action::Reopen { pods: uids(&["p2"]) });
    }
}

#[test]
fn when_demand_returns_gates_open_and_replacements_are_admitted() {
    let closed = with(pod(2), Gate::Closed, 0);
    assert_eq!(
        turn(&world(vec![pod(1), closed], 2)).action,
        Action::Reopen { pods: uids(&["p2"]) }
    );
    assert_eq!(
        turn(&world(vec![pod(1), fresh(2)], 2)).action,
        Action::Admit { pods: uids(&["p2"]) }
    );
    assert_eq!(turn(&world(vec![pod(1)], 3)).action, Action::Raise { to: 3 });
}

#[test]
fn nobody_is_admitted_while_a_size_is_on_its_way() {
    let mut unseen = world(vec![pod(1), fresh(2)], 2);
    unseen.sets[0].observed = false;
    assert_eq!(
        turn(&unseen),
        Turn {
            action: Action::Wait,
            reason: Reason::NotProcessed
        }
    );
    let mut crowded = world(vec![pod(1), fresh(2)], 2);
    crowded.sets[0].size = 1;
    assert_eq!(
        turn(&crowded),
        Turn {
            action: Action::Wait,
            reason: Reason::NotProcessed
        }
    );

    let lowering = Lowering {
        to: 1,
        survivors: BTreeSet::from(["p1".to_owned()]),
    };
    let memory = Memory {
        lowering: Some(lowering),
        ..Memory::default()
    };
    let mut lowered = world(vec![pod(1), fresh(2)], 1);
    (lowered.deployment.size, lowered.deployment.observed) = (1, false);
    assert_eq!(next(&lowered, &memory, &RULES, now()).action, Action::Wait);
}

#[test]
fn a_quota_that_allows_fewer_pods_does_not_stop_admission() {
    let mut short = world(vec![pod(1), fresh(2)], 4);
    (short.deployment.size, short.sets[0].size) = (4, 4);
    assert_eq!(turn(&short).action, Action::Admit { pods: uids(&["p2"]) });
}

#[test]
fn a_rollout_holds_the_step_but_admits_its_pods() {
    let mut rolling = world(
        vec![
            pod(1),
            pod(2),
            Pod {
                set: "new".into(),
                ..fresh(3)
            },
        ],
        1,
    );
    rolling.sets[0] = Set {
        size: 2,
        live: 2,
        ready: 2,
        ..rolling.sets[0].clone()
    };
    rolling.sets.push(Set {
        uid: "new".into(),
        size: 1,
        observed: true,
        live: 1,
        ready: 0,
    });
    (rolling.deployment.size, rolling.deployment.updated) = (2, 1);
    assert_eq!(turn(&rolling).reason, Reason::Rollout);
    rolling.desired = 2;
    assert_eq!(turn(&rolling).action, Action::Admit { pods: uids(&["p3"]) });
}

#[test]
fn a_verified_lowering_names_who_is_missing() {
    let survivors = BTreeSet::from(["p1".to_owned(), "p2".to_owned()]);
    let memory = Memory {
        lowering: Some(Lowering { to: 1, survivors }),
        ..Memory::default()
    };
    let turn = next(&world(vec![pod(1)], 1), &memory, &RULES, now());
    assert_eq!(turn.action, Action::Verified { missing: uids(&["p2"]) });
}

#[test]
fn refused_replacements_end_the_step_after_a_minute_without_removing_anybody() {
    let mut short = world(vec![pod(1), pod(2)], 1);
    (short.deployment.size, short.sets[0].size) = (4, 4);
    let mut memory = Memory::default();
    memory.observe(&short, now());
    let closed = World {
        pods: vec![pod(1), with(pod(2), Gate::Closed, 0)],
        ..short.clone()
    };
    assert_eq!(
        next(&closed, &memory, &RULES, now()),
        Turn {
            action: Action::Wait,
            reason: Reason::Settling
        }
    );
    let later = now() + REPLACEMENT_WAIT;
    let turn = next(&closed, &memory, &RULES, later);
    assert_eq!(
        turn,
        Turn {
            action: Action::SettleForLive { to: 2 },
            reason: Reason::ReplacementRefused
        }
    );

    let mut stale = closed.clone();
    stale.sets[0].live = 3;
    (stale.deployment.live, stale.deployment.updated) = (3, 3);
    assert_eq!(
        next(&stale, &memory, &RULES, later).action,
        Action::Wait,
        "the controller still counts a third pod"
    );
}

/// A closed pod that holds a task, since so many seconds.
fn working(number: u8, seconds: u64) -> Pod {
    let mut pod = with(pod(number), Gate::Closed, 1);
    pod.worker.as_mut().unwrap().closed_for = Duration::from_secs(seconds);
    pod
}

#[test]
fn who_goes_and_who_is_waited_for_is_said_by_the_rules() {
    let wait = Some(Duration::from_secs(600));
    let rules = |victims, wait| Rules { victims, wait, ..RULES };
    let drained = rules(Victims::Drained, None);
    let (idle_only, idle_first) = (rules(Victims::IdleOnly, wait), rules(Victims::IdleFirst, wait));
    let busy = || with(pod(1), Gate::Open, 1);
    let other = || with(pod(2), Gate::Open, 2);
    let drain = |name: &str| Action::Drain { pods: uids(&[name]) };
    let stop = |name: &str| Action::Stop { pods: uids(&[name]) };
    let reopen = |name: &str| Action::Reopen { pods: uids(&[name]) };
    let waits = Action::Wait;
    // (rules, pods of which one is to go, action, reason)
    let table = [
        // An idle one goes before a busy one, whatever the rules.
        (drained, vec![pod(1), other()], drain("p1"), "Surplus"),
        (idle_only, vec![pod(1), other()], drain("p1"), "Surplus"),
        (idle_first, vec![pod(1), other()], drain("p1"), "Surplus"),
        // None is idle.
        (drained, vec![busy(), other()], drain("p1"), "Surplus"),
        (idle_only, vec![busy(), other()], waits.clone(), "NoCandidate"),
        (idle_first, vec![busy(), other()], drain("p1"), "Surplus"),
        // It was closed a moment ago and holds something.
        (drained, vec![working(1, 14), other()], waits.clone(), "Draining"),
        (idle_only, vec![working(1, 14), other()], waits.clone(), "Draining"),
        (idle_first, vec![working(1, 14), other()], waits.clone(), "Draining"),
        // And for longer than confirmTimeout.
        (drained, vec![working(1, 15), other()], waits.clone(), "Draining"),
        (idle_only, vec![working(1, 15), other()], reopen("p1"), "WantedAgain"),
        (idle_first, vec![working(1, 15), other()], stop("p1"), "DrainTimeOver"),
        // Nobody set how long to wait: nobody is stopped, however long it takes.
        (drained, vec![working(1, 3599), other()], waits.clone(), "Draining"),
        (drained, vec![working(1, 3600), other()], waits.clone(), "DrainOverdue"),
        // Somebody did.
        (
            rules(Victims::Drained, wait),
            vec![working(1, 599), other()],
            waits,
            "Draining",
        ),
        (
            rules(Victims::Drained, wait),
            vec![working(1, 600), other()],
            stop("p1"),
            "DrainTimeOver",
        ),
    ];
    for (rules, pods, action, reason) in table {
        let turn = next(&world(pods.clone(), 1), &Memory::default(), &rules, now());
        assert_eq!(
            (&turn.action, turn.reason.word()),
            (&action, reason),
            "{rules:?} {pods:#?}"
        );
    }
}

#[test]
fn a_pod_whose_time_is_over_is_stopped_only_in_a_settled_world() {
    let rules = Rules {
        wait: Some(Duration::from_secs(5)),
        ..RULES
    };
    let pods = || vec![working(1, 60), with(pod(2), Gate::Open, 2)];
    let turn = |world: &World| next(world, &Memory::default(), &rules, now());
    let mut unseen = world(pods(), 1);
    unseen.sets[0].observed = false;
    assert_eq!(turn(&unseen).action, Action::Wait);
    let mut unready = world(pods(), 1);
    unready.pods[1].ready = false;
    assert_eq!(turn(&unready).reason.word(), "AdmittedPodNotReady");
    assert_eq!(
        turn(&world(pods(), 2)).action,
        Action::Reopen { pods: uids(&["p1"]) },
        "it is wanted again"
    );
    // Idle ones are deleted before, and the replacement of one is taken before anybody else goes.
    let idle = world(
        vec![
            working(1, 60),
            with(pod(2), Gate::Closed, 0),
            with(pod(3), Gate::Open, 2),
        ],
        1,
    );
    assert_eq!(turn(&idle).action, Action::Delete { pods: uids(&["p2"]) });
    let replaced = world(vec![working(1, 60), fresh(4), with(pod(3), Gate::Open, 2)], 1);
    assert_eq!(turn(&replaced).action, Action::Lower { takes: uids(&["p4"]) });
}

#[test]
fn beside_a_pod_that_is_not_ready_those_who_leave_take_no_more_work_and_stay() {
    let leave = Rules { leaves: true, ..RULES };
    let broken = || Pod {
        ready: false,
        worker: None,
        ..pod(9)
    };
    let next = |rules: &Rules, pods: Vec<Pod>, desired| {
        let turn = next(&world(pods, desired), &Memory::default(), rules, now());
        (turn.action, turn.reason.word())
    };
    let both = || vec![broken(), pod(1), pod(2)];
    let waits = (Action::Wait, "AdmittedPodNotReady");
    assert_eq!(next(&RULES, both(), 0), waits);
    assert_eq!(
        next(&leave, both(), 0),
        (
            Action::Drain {
                pods: uids(&["p2", "p1"])
            },
            "Surplus"
        )
    );
    // The broken one serves nobody: it does not count among those that are still needed.
    assert_eq!(
        next(&leave, both(), 1),
        (Action::Drain { pods: uids(&["p2"]) }, "Surplus")
    );
    assert_eq!(next(&leave, both(), 2), waits);
    let closed = || vec![broken(), pod(1), with(pod(2), Gate::Closed, 0)];
    assert_eq!(next(&leave, closed(), 1), waits, "and it stays closed");
    let all = vec![broken(), with(pod(1), Gate::Closed, 0), with(pod(2), Gate::Closed, 0)];
    assert_eq!(next(&leave, all, 0), waits);
}

/// An admitted pod that has not been Ready for so many seconds.
fn unready(number: u8, seconds: i64) -> Pod {
    Pod {
        ready: false,
        unready_since: Some(now() - SignedDuration::from_secs(seconds)),
        ..pod(number)
    }
}

#[test]
fn a_pod_that_crashes_again_and_again_leaves_with_its_template() {
    let leave = Rules { leaves: true, ..RULES };
    let next = |rules: &Rules, broken: Pod, desired| {
        let world = world(vec![broken, with(pod(2), Gate::Closed, 1)], desired);
        next(&world, &Memory::default(), rules, now()).action
    };
    let dead = |gate, held, seconds| {
        let mut pod = with(unready(1, seconds), gate, held);
        pod.worker.as_mut().unwrap().alive = false;
        pod
    };
    let nobody = |seconds| Pod {
        worker: None,
        ..unready(1, seconds)
    };
    let deleted = Action::Delete { pods: uids(&["p1"]) };
    let drained = Action::Drain { pods: uids(&["p1"]) };
    // What a process of it has left open is closed first.
    for (pod, action) in [
        (nobody(60), &deleted),
        (dead(Gate::Closed, 0, 60), &deleted),
        (dead(Gate::Open, 0, 60), &drained),
        (dead(Gate::New, 0, 60), &drained),
        (nobody(59), &Action::Wait),
        (dead(Gate::Closed, 0, 59), &Action::Wait),
        (dead(Gate::Closed, 1, 60), &Action::Wait),
    ] {
        assert_eq!(next(&leave, pod.clone(), 0), *action, "{pod:?}");
        assert_eq!(next(&RULES, pod.clone(), 0), Action::Wait, "{pod:?}");
    }
    // It goes first: the other one is still needed.
    let world = world(vec![nobody(60), pod(2)], 1);
    assert_eq!(
        umbel_plan::drain::next(&world, &Memory::default(), &leave, now()).action,
        deleted
    );
}

/// A Deployment of two templates that leaves: paused, with a pod of the newer template.
fn frozen(old: Vec<Pod>, new: Pod, desired: u32) -> World {
    let of_new = Pod {
        set: "new".into(),
        ..new
    };
    let count = |count: usize| u32::try_from(count).unwrap();
    let size = count(old.len());
    let set = |uid: &str, live, ready| Set {
        uid: uid.into(),
        size: live,
        observed: true,
        live,
        ready,
    };
    let sets = vec![
        set("set", size, count(old.iter().filter(|pod| pod.ready).count())),
        set("new", 1, of_new.ready.into()),
    ];
    World {
        desired,
        deployment: Fleet {
            size,
            observed: true,
            live: size + 1,
            updated: 0,
            paused: true,
        },
        sets,
        pods: old.into_iter().chain([of_new]).collect(),
        broker: Some(Broker { generation: "g".into() }),
    }
}

#[test]
fn what_stopped_in_the_middle_of_a_rollout_goes_as_a_whole() {
    let leave = Rules {
        leaves: true,
        wait: Some(Duration::from_secs(100)),
        ..RULES
    };
    let next = |world: &World| next(world, &Memory::default(), &leave, now());
    let closed = |number, held| with(pod(number), Gate::Closed, held);
    // The gates of those that are not needed are closed; nobody is deleted, for nobody could say whom a smaller size takes.
    assert_eq!(
        next(&frozen(vec![pod(1), with(pod(2), Gate::Open, 1)], fresh(3), 1)).action,
        Action::Drain { pods: uids(&["p1"]) }
    );
    assert_eq!(
        next(&frozen(vec![closed(1, 0), with(pod(2), Gate::Open, 1)], fresh(3), 1)),
        Turn {
            action: Action::Wait,
            reason: Reason::Settling
        }
    );
    assert_eq!(
        next(&frozen(vec![closed(1, 0), closed(2, 1)], fresh(3), 0)),
        Turn {
            action: Action::Wait,
            reason: Reason::Draining { busy: uids(&["p2"]) }
        }
    );
    let over = {
        let mut pod = closed(2, 1);
        pod.worker.as_mut().unwrap().closed_for = Duration::from_secs(100);
        pod
    };
    assert_eq!(
        next(&frozen(vec![closed(1, 0), over], fresh(3), 0)).action,
        Action::Stop { pods: uids(&["p2"]) }
    );
    assert_eq!(
        next(&frozen(vec![closed(1, 0), closed(2, 0)], fresh(3), 0)).action,
        Action::Clear
    );
    assert_eq!(
        next(&frozen(vec![closed(1, 0), closed(2, 0)], closed(3, 0), 0)).action,
        Action::Clear
    );
    // Not while a controller is about to do something, and not where it rolls still.
    let mut moving = frozen(vec![closed(1, 0), closed(2, 0)], fresh(3), 0);
    moving.sets[0].observed = false;
    assert_eq!(next(&moving).action, Action::Wait);
    let mut moving = frozen(vec![closed(1, 0), closed(2, 0)], fresh(3), 0);
    moving.sets[1].size = 2;
    assert_eq!(next(&moving).action, Action::Wait);
    let mut rolling = frozen(vec![closed(1, 0), closed(2, 0)], fresh(3), 0);
    rolling.deployment.paused = false;
    assert_eq!(
        next(&rolling).action,
        Action::Reopen {
            pods: uids(&["p1", "p2"])
        }
    );
}

#[test]
fn a_silent_worker_is_not_chosen() {
    let mut silent = pod(2);
    silent.worker.as_mut().unwrap().alive = false;
    assert_eq!(
        turn(&world(vec![with(pod(1), Gate::Open, 1), silent], 1)).action,
        Action::Drain { pods: uids(&["p1"]) }
    );
}

#[test]
fn lost_data_ends_a_step() {
    let mut memory = Memory::default();
    memory.deleted(1, &Broker { generation: "g".into() });
    let mut world = world(vec![pod(1), pod(2)], 1);
    memory.observe(&world, now());
    assert!(memory.replacing.is_some());
    world.broker = Some(Broker {
        generation: "another".into(),
    });
    memory.observe(&world, now() + SignedDuration::from_secs(1));
    assert_eq!(memory.replacing, None);
}
