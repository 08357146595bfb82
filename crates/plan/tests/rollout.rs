//! A template that replaces another: how the size is shared, case by case and in any order of events, by the real decisions.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]
#![allow(clippy::panic, clippy::type_complexity, reason = "helpers of tests")]
#![allow(clippy::cast_possible_truncation, reason = "a handful of pods")]

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::json;
use umbel_api::workerpool::{Amount, Rollout, Victims};
use umbel_plan::drain::{self, Action, Broker, Gate, Pod, Rules, Set, Worker, World};
use umbel_plan::rollout::{Fleet, Memory, Note, Settings, Share, Shares, share};

const T0: Timestamp = Timestamp::constant(1_800_000_000, 0);
const HOUR: Duration = Duration::from_hours(1);
const RULES: Rules = Rules {
    victims: Victims::IdleOnly,
    confirm: Duration::from_secs(15),
    wait: None,
    longest: HOUR,
    leaves: false,
};

fn settings(rollout: serde_json::Value) -> Settings {
    let rollout: Rollout = serde_json::from_value(rollout).unwrap();
    Settings::new(&rollout, HOUR)
}

/// So many pods, all at work.
fn serving(pods: u32) -> Fleet {
    Fleet {
        size: pods,
        live: pods,
        open: pods,
        serving: pods,
        able: pods,
        ready: pods,
        ..Fleet::default()
    }
}

/// So many pods, none of them ready.
fn starting(pods: u32) -> Fleet {
    Fleet {
        size: pods,
        live: pods,
        ..Fleet::default()
    }
}

fn proven(seconds: i64) -> Note {
    Note {
        proven: true,
        replaced_at: Some(T0 - SignedDuration::from_secs(seconds)),
    }
}

fn unproven(seconds: i64) -> Note {
    Note {
        proven: false,
        ..proven(seconds)
    }
}

#[test]
fn an_amount_of_pods_is_rounded_up() {
    for (amount, whole, pods) in [
        ("25%", 4, 1),
        ("25%", 5, 2),
        ("200%", 3, 6),
        ("1%", 1, 1),
        ("25%", 0, 0),
    ] {
        assert_eq!(Amount::Percent(amount.into()).of(whole), pods, "{amount} of {whole}");
    }
    assert_eq!(Amount::Count(3).of(100), 3);
}

#[test]
fn the_size_is_shared() {
    let now = Note::default();
    let is_proven = Note {
        proven: true,
        replaced_at: None,
    };
    let by_default = settings(json!({}));
    let wide = settings(json!({ "maxSurge": 3 }));
    // (what, wanted, present, older, settings, present's size, older sizes)
    let table: Vec<(&str, u32, (Fleet, Note), Vec<(Fleet, Note)>, &Settings, u32, Vec<u32>)> = vec![
        ("no rollout", 4, (serving(2), now), vec![], &by_default, 4, vec![]),
        (
            "it begins",
            4,
            (starting(0), now),
            vec![(serving(4), proven(0))],
            &by_default,
            1,
            vec![4],
        ),
        (
            "with more surge",
            4,
            (starting(0), now),
            vec![(serving(4), proven(0))],
            &wide,
            3,
            vec![4],
        ),
        (
            "nothing is ready",
            4,
            (starting(1), now),
            vec![(serving(4), proven(0))],
            &by_default,
            1,
            vec![4],
        ),
        (
            "one is ready",
            4,
            (serving(1), now),
            vec![(serving(4), proven(0))],
            &by_default,
            1,
            vec![3],
        ),
        (
            "one old one is closed",
            4,
            (serving(1), is_proven),
            vec![(serving(3), proven(0))],
            &by_default,
            2,
            vec![3],
        ),
        (
            "the present one lost all",
            4,
            (starting(2), is_proven),
            vec![(serving(2), proven(0))],
            &by_default,
            3,
            vec![2],
        ),
        (
            "all serve",
            4,
            (serving(4), is_proven),
            vec![(serving(1), proven(0))],
            &by_default,
            4,
            vec![0],
        ),
        (
            "demand grows",
            9,
            (serving(2), is_proven),
            vec![(serving(2), proven(0))],
            &by_default,
            9,
            vec![2],
        ),
        (
            "demand grows, untested",
            9,
            (starting(1), now),
            vec![(serving(4), proven(0))],
            &by_default,
            3,
            vec![9],
        ),
        (
            "demand falls",
            2,
            (serving(1), is_proven),
            vec![(serving(3), proven(0))],
            &by_default,
            1,
            vec![1],
        ),
        (
            "demand falls below",
            1,
            (serving(3), is_proven),
            vec![(serving(2), proven(0))],
            &by_default,
            1,
            vec![0],
        ),
        (
            "demand ends",
            0,
            (starting(1), now),
            vec![(serving(3), proven(0))],
            &by_default,
            0,
            vec![0],
        ),
        (
            "nothing to fall back to",
            4,
            (starting(1), now),
            vec![(starting(1), unproven(0))],
            &by_default,
            4,
            vec![0],
        ),
        (
            "a fix after a broken one",
            4,
            (starting(0), now),
            vec![(starting(1), unproven(5)), (serving(4), proven(60))],
            &by_default,
            1,
            vec![0, 4],
        ),
        (
            "the latest are kept first",
            4,
            (serving(1), is_proven),
            vec![(serving(2), proven(5)), (serving(2), proven(60))],
            &by_default,
            1,
            vec![2, 1],
        ),
        (
            "back to a proven one",
            4,
            (starting(0), is_proven),
            vec![(starting(1), unproven(5))],
            &by_default,
            4,
            vec![0],
        ),
    ];
    for (what, desired, (present, note), older, settings, first, rest) in table {
        let shares = share(desired, (&present, note), &older, settings);
        let sizes: Vec<u32> = shares.older.iter().map(|share| share.desired).collect();
        assert_eq!((shares.present, sizes), (first, rest), "{what}");
    }
}

#[test]
fn what_is_needed_no_more_has_its_time() {
    let at = |rollout: serde_json::Value, older: u32| -> Vec<u64> {
        // When their templates were replaced does not count.
        let older: Vec<_> = (0..older).map(|_| (serving(1), proven(86_400))).collect();
        let shares = share(2, (&serving(2), Note::default()), &older, &settings(rollout));
        shares.older.iter().map(|share| share.patience.as_secs()).collect()
    };
    let (six, limit) = (6 * 3600, 3600);
    assert_eq!(at(json!({}), 1), [six], "six hours by default");
    assert_eq!(at(json!({ "drainTimeout": "10s" }), 1), [10]);
    assert_eq!(at(json!({}), 4), [six, six, six, limit], "the fourth has its timeLimit");
    assert_eq!(at(json!({ "keepDraining": 0 }), 1), [limit]);
    assert_eq!(at(json!({ "keepDraining": 1, "drainTimeout": "1m" }), 2), [60, 60]);

    let share = Share {
        desired: 0,
        patience: HOUR,
        retires: true,
    };
    let rules = share.rules(&RULES);
    assert_eq!((rules.victims, rules.wait), (Victims::Drained, Some(HOUR)));
}

/// A broken template left the older one in charge for a night; then a good one is ready.
#[test]
fn what_was_needed_until_now_has_its_whole_time() {
    let mut pool = Pool::new(1, false);
    let night = SignedDuration::from_hours(12);
    pool.notes = Memory::recall([
        ("old".to_owned(), proven(night.as_secs())),
        (
            "new".to_owned(),
            Note {
                proven: true,
                replaced_at: None,
            },
        ),
    ]);
    pool.make(1);
    let crew = &mut pool.crews[1];
    (crew.size, crew.set_size) = (1, 1);
    for pod in &mut crew.pods {
        (pod.running, pod.ready, pod.marked) = (true, true, true);
        pod.worker = Some(worker(&pod.uid, Gate::Open));
    }
    crew.tell();
    pool.crews[0].pods[0].holds(1);
    pool.pass();
    assert!(pool.crews[0].pods[0].gate_is(Gate::Closed));
    let next = |pool: &mut Pool, closed_for: Duration| {
        pool.crews[0].pods[0].worker.as_mut().unwrap().closed_for = closed_for;
        let rules = pool.shares().older[0].rules(&RULES);
        drain::next(&pool.crews[0].world(0), &drain::Memory::default(), &rules, T0).action
    };
    let six = 6 * HOUR;
    assert_eq!(next(&mut pool, Duration::from_secs(1)), Action::Wait);
    assert_eq!(next(&mut pool, Duration::from_secs(6 * 3600 - 1)), Action::Wait);
    assert!(matches!(next(&mut pool, six), Action::Stop { .. }));
}

#[test]
fn an_empty_deployment_goes_unless_it_is_what_there_is_to_fall_back_to() {
    let retires = |present: Fleet, older: Note| {
        let shares = share(
            0,
            (&present, Note::default()),
            &[(starting(0), older)],
            &settings(json!({})),
        );
        shares.older[0].retires
    };
    assert!(!retires(starting(0), proven(0)), "the present one never was ready");
    assert!(retires(serving(1), proven(0)));
    assert!(retires(starting(0), unproven(0)));

    // A pool that slept when its template changed does not go back to the old one.
    let mut memory = Memory::recall([(
        "a".to_owned(),
        Note {
            proven: true,
            replaced_at: None,
        },
    )]);
    memory.see(None, [("a", &starting(0))].into_iter(), T0);
    assert_eq!(memory.of("a"), unproven(0));
    let mut memory = Memory::recall([(
        "a".to_owned(),
        Note {
            proven: true,
            replaced_at: None,
        },
    )]);
    memory.see(None, [("a", &serving(2))].into_iter(), T0);
    memory.see(
        None,
        [("a", &starting(0))].into_iter(),
        T0 + SignedDuration::from_secs(9),
    );
    assert_eq!(memory.of("a"), proven(0), "and the time is that of the change");
}

/// One Deployment, with controllers that act and tell when they are asked to.
#[derive(Clone, Debug, Default)]
struct Crew {
    name: String,
    size: u32,
    set_size: u32,
    told_live: u32,
    told_ready: u32,
    told_size: u32,
    /// Its pods never start.
    broken: bool,
    pods: Vec<Pod>,
    memory: drain::Memory,
    /// Without pods, and deleted.
    gone: bool,
}

impl Crew {
    fn world(&self, desired: u32) -> World {
        let set = Set {
            uid: self.name.clone(),
            size: self.set_size,
            observed: self.told_size == self.set_size,
            live: self.told_live,
            ready: self.told_ready,
        };
        let is_needed = (self.set_size, self.told_live) != (0, 0) || !self.pods.is_empty();
        World {
            desired,
            deployment: drain::Fleet {
                size: self.size,
                observed: self.set_size == self.size,
                live: self.told_live,
                updated: self.told_live,
                paused: false,
            },
            sets: if is_needed { vec![set] } else { Vec::new() },
            pods: self.pods.clone(),
            broker: Some(Broker { generation: "g".into() }),
        }
    }

    fn tell(&mut self) {
        self.told_live = self.pods.len() as u32;
        self.told_ready = self.pods.iter().filter(|pod| pod.ready).count() as u32;
        self.told_size = self.set_size;
    }
}

/// A pool whose template changes from one to another.
struct Pool {
    desired: u32,
    settings: Settings,
    /// The present one last.
    crews: Vec<Crew>,
    notes: Memory,
    made: u32,
}

impl Pool {
    fn new(size: u32, broken: bool) -> Self {
        let crew = |name: &str| Crew {
            name: name.into(),
            ..Crew::default()
        };
        let mut pool = Pool {
            desired: size,
            settings: settings(json!({})),
            crews: vec![crew("old"), crew("new")],
            notes: Memory::default(),
            made: 0,
        };
        pool.crews[0].size = size;
        pool.crews[0].set_size = size;
        for _ in 0..size {
            pool.make(0);
        }
        for pod in &mut pool.crews[0].pods {
            (pod.running, pod.ready, pod.marked) = (true, true, true);
            pod.worker = Some(worker(&pod.uid, Gate::Open));
        }
        pool.crews[0].tell();
        pool.crews[1].broken = broken;
        pool
    }

    fn make(&mut self, crew: usize) {
        self.made += 1;
        let uid = format!("{}-{}", self.crews[crew].name, self.made);
        let set = self.crews[crew].name.clone();
        self.crews[crew].pods.push(Pod {
            name: uid.clone(),
            uid,
            set,
            created: T0 + SignedDuration::from_secs(i64::from(self.made)),
            running: false,
            ready: false,
            unready_since: None,
            ending: false,
            marked: false,
            worker: None,
        });
    }

    fn fleets(&self) -> Vec<Fleet> {
        self.crews.iter().map(|crew| Fleet::of(&crew.world(0))).collect()
    }

    fn shares(&mut self) -> Shares {
        let (fleets, note) = (self.fleets(), Memory::of);
        let last = self.crews.len() - 1;
        let names: Vec<String> = self.crews.iter().map(|crew| crew.name.clone()).collect();
        let is_left = |number: &usize| !self.crews[*number].gone;
        let older: Vec<usize> = (0..last).rev().filter(is_left).collect();
        self.notes.see(
            Some((&names[last], &fleets[last])),
            older.iter().map(|number| (names[*number].as_str(), &fleets[*number])),
            T0,
        );
        let rest: Vec<_> = older
            .iter()
            .map(|number| (fleets[*number], note(&self.notes, &names[*number])))
            .collect();
        share(
            self.desired,
            (&fleets[last], note(&self.notes, &names[last])),
            &rest,
            &self.settings,
        )
    }

    /// One pass of the operator; which deeds were done.
    fn pass(&mut self) {
        let shares = self.shares();
        let last = self.crews.len() - 1;
        let sizes: Vec<(usize, u32, Option<Share>)> = {
            let older = (0..last).rev().filter(|number| !self.crews[*number].gone);
            let rest = older
                .zip(&shares.older)
                .map(|(number, share)| (number, share.desired, Some(*share)));
            [(last, shares.present, None)].into_iter().chain(rest).collect()
        };
        for (number, desired, share) in sizes {
            let crew = &mut self.crews[number];
            let rules = share.map_or(RULES, |share| share.rules(&RULES));
            let world = crew.world(desired);
            crew.memory.observe(&world, T0);
            let turn = drain::next(&world, &crew.memory, &rules, T0);
            if turn.action == Action::Wait && share.is_some_and(|share| share.retires) {
                crew.gone = crew.size == 0 && crew.pods.is_empty() && world.is_settled();
            }
            crew.carry_out(&turn.action);
        }
    }

    /// What may happen next, by number: controllers, workers, time, and the operator.
    fn happens(&mut self, event: u8) {
        let number = usize::from(event / 16) % self.crews.len();
        let pick = usize::from(event / 32);
        match event % 16 {
            0..=4 => self.pass(),
            5 | 6 => {
                let crew = &mut self.crews[number];
                if crew.set_size != crew.size {
                    crew.set_size = crew.size;
                }
            }
            7 | 8 => self.sync(number, pick),
            9 => self.crews[number].tell(),
            10 | 11 => self.start(number),
            12 => self.crews[number].each(pick, |pod| pod.gate_is(Gate::Open), |pod| pod.ready = true),
            13 => self.crews[number].each(pick, |pod| pod.gate_is(Gate::Open), |pod| pod.holds(1)),
            14 => self.crews[number].each(pick, |_| true, |pod| pod.holds(0)),
            _ => {
                // Another leader, which knows of the revisions what status says.
                self.crews
                    .iter_mut()
                    .for_each(|crew| crew.memory = drain::Memory::default());
                let notes: Vec<_> = self
                    .crews
                    .iter()
                    .map(|crew| (crew.name.clone(), self.notes.of(&crew.name)))
                    .collect();
                self.notes = Memory::recall(notes);
            }
        }
    }

    /// The ReplicaSet controller: pods that do not run first, then unready ones; among equals any.
    fn sync(&mut self, number: usize, pick: usize) {
        let crew = &mut self.crews[number];
        let (live, wanted) = (crew.pods.len(), crew.set_size as usize);
        if live < wanted {
            for _ in live..wanted {
                self.make(number);
            }
        }
        let crew = &mut self.crews[number];
        while crew.pods.len() > wanted {
            let rank = |pod: &Pod| (pod.running, pod.ready);
            let lowest = crew.pods.iter().map(rank).min().unwrap();
            let equals: Vec<usize> = (0..crew.pods.len())
                .filter(|at| rank(&crew.pods[*at]) == lowest)
                .collect();
            let victim = crew.pods.remove(equals[pick % equals.len()]);
            assert!(!victim.works(), "{} was removed for a size, and works", victim.name);
        }
    }

    fn start(&mut self, number: usize) {
        let crew = &mut self.crews[number];
        if crew.broken {
            return;
        }
        if let Some(pod) = crew.pods.iter_mut().find(|pod| !pod.running) {
            pod.running = true;
            pod.worker = Some(worker(&pod.uid, Gate::New));
        }
    }

    fn serving(&self) -> u32 {
        self.fleets().iter().map(|fleet| fleet.serving).sum()
    }

    /// Pods that work or could: the closed ones leave.
    fn at_work(&self) -> u32 {
        let fleets = self.fleets();
        let present = fleets.last().unwrap();
        fleets[..fleets.len() - 1].iter().map(|fleet| fleet.open).sum::<u32>() + present.live
    }
}

trait Does {
    fn gate_is(&self, gate: Gate) -> bool;
    fn works(&self) -> bool;
    fn holds(&mut self, held: u64);
}

impl Does for Pod {
    fn gate_is(&self, gate: Gate) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.gate == gate)
    }

    fn works(&self) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.held > 0)
    }

    fn holds(&mut self, held: u64) {
        if let Some(worker) = &mut self.worker {
            worker.held = held;
        }
    }
}

fn worker(uid: &str, gate: Gate) -> Worker {
    Worker {
        name: uid.into(),
        gate,
        held: 0,
        alive: true,
        closed_for: Duration::ZERO,
    }
}

impl Crew {
    fn each(&mut self, pick: usize, may: impl Fn(&Pod) -> bool, does: impl Fn(&mut Pod)) {
        let count = self.pods.len().max(1);
        if let Some(pod) = self.pods.get_mut(pick % count).filter(|pod| may(pod)) {
            does(pod);
        }
    }

    fn carry_out(&mut self, action: &Action) {
        let set = |pods: &mut Vec<Pod>, uids: &[String], gate: Gate| {
            for pod in pods.iter_mut().filter(|pod| uids.contains(&pod.uid)) {
                pod.marked |= gate == Gate::Open;
                if let Some(worker) = &mut pod.worker {
                    worker.gate = gate;
                }
            }
        };
        match action {
            Action::Wait => {}
            Action::Raise { to } => self.size = *to,
            Action::Admit { pods } | Action::Reopen { pods } => set(&mut self.pods, pods, Gate::Open),
            Action::Drain { pods } => set(&mut self.pods, pods, Gate::Closed),
            Action::Delete { pods } => {
                let goes = |pod: &Pod| pods.contains(&pod.uid) && pod.gate_is(Gate::Closed) && !pod.works();
                let before = self.pods.len();
                self.pods.retain(|pod| !goes(pod));
                self.memory
                    .deleted((before - self.pods.len()) as u32, &Broker { generation: "g".into() });
            }
            Action::Stop { .. } => panic!("nobody's time is over"),
            Action::Clear => panic!("nobody is paused"),
            Action::Lower { takes } => {
                let stay = self
                    .pods
                    .iter()
                    .filter(|pod| pod.is_admitted())
                    .map(|pod| pod.uid.clone());
                let (stay, to) = (stay.collect(), self.size - takes.len() as u32);
                self.size = to;
                self.memory.lowered(to, stay);
            }
            Action::SettleForLive { .. } => panic!("no minute passes here"),
            Action::Verified { missing } => {
                assert!(missing.is_empty(), "{missing:?}");
                self.memory.verified();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn in_any_order_no_slot_is_missed_no_task_is_stopped_and_the_surge_is_kept(
        size in 1_u32..6, broken: bool, events in prop::collection::vec(any::<u8>(), 0..500),
    ) {
        let mut pool = Pool::new(size, broken);
        let most = size + size.div_ceil(4);
        for event in events {
            pool.happens(event);
            prop_assert!(pool.serving() >= size, "{} of {size} serve: {:#?}", pool.serving(), pool.crews);
            prop_assert!(pool.at_work() <= most, "{} work, {most} may: {:#?}", pool.at_work(), pool.crews);
        }
        // Left alone, it ends: tasks end, controllers and pods do what they do.
        for round in 0..80_u8 {
            for number in 0..2 {
                pool.crews[number].set_size = pool.crews[number].size;
                pool.sync(number, usize::from(round));
                pool.crews[number].tell();
                for _ in 0..size { pool.start(number); }
                for pod in &mut pool.crews[number].pods {
                    pod.ready |= pod.gate_is(Gate::Open);
                    pod.holds(0);
                }
                pool.crews[number].tell();
            }
            pool.pass();
        }
        let [old, new] = &pool.fleets()[..] else { unreachable!() };
        if broken {
            prop_assert_eq!((old.serving, old.size, new.serving), (size, size, 0));
        } else {
            prop_assert_eq!((old.live, new.serving, new.size), (0, size, size));
            prop_assert!(pool.crews[0].gone);
        }
    }
}
