//! The size of a pool: tables for each rule, properties for what holds always.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use umbel_api::workerpool::{Paused, Policy, PolicyKind, Select};
use umbel_plan::scaling::{
    Aim, Bound, Decision, Demand, History, Limits, Patience, Reading, Reason, Scale, Source, Speed, decide,
};

const T0: Timestamp = Timestamp::constant(1_800_000_000, 0);

fn at(second: i64) -> Timestamp {
    T0 + SignedDuration::from_secs(second)
}

fn limits() -> Limits {
    Limits {
        source: Source::Demand,
        paused: Paused::None,
        min: 0,
        max: 10,
        min_by: None,
        max_by: None,
        concurrency: 10,
        aim: Aim::Utilization(80),
        min_idle_slots: 0,
        activation_threshold: 0,
        patience: Patience {
            up: Duration::ZERO,
            down: Duration::from_mins(1),
            to_zero: Duration::from_mins(1),
        },
        up: Speed::default(),
        down: Speed::default(),
        fallback: None,
        sample_max_age: Duration::from_secs(10),
    }
}

fn sample(second: i64, waiting: u64, in_flight: u64, due_soon: u64) -> Reading {
    Reading::Sample {
        at: at(second),
        demand: Demand {
            waiting,
            in_flight,
            due_soon,
        },
        pace: None,
    }
}

fn scale(replicas: u32, busy: u32) -> Scale {
    Scale { replicas, busy }
}

/// A pool under one reading a second; the size follows each decision at once.
struct Run {
    limits: Limits,
    history: History,
    size: u32,
    busy: u32,
    second: i64,
}

impl Run {
    fn new(limits: Limits, size: u32) -> Self {
        Self {
            limits,
            history: History::begin(size, T0),
            size,
            busy: 0,
            second: 0,
        }
    }

    fn tick(&mut self, reading: &Reading) -> Decision {
        self.history.see(self.size, at(self.second));
        let decision = decide(
            &self.limits,
            reading,
            scale(self.size, self.busy),
            &self.history,
            at(self.second),
        );
        self.history.note(&decision, &self.limits.patience, at(self.second));
        self.size = decision.replicas;
        self.second += 1;
        decision
    }

    fn demand(&mut self, waiting: u64) -> Decision {
        let reading = sample(self.second, waiting, 0, 0);
        self.tick(&reading)
    }

    /// Seconds until the size is this, or `None` within ten minutes.
    fn until(&mut self, size: u32, waiting: u64) -> Option<i64> {
        let began = self.second;
        (0..600).find_map(|_| (self.demand(waiting).replicas == size).then_some(self.second - 1 - began))
    }
}

#[test]
fn size_follows_waiting_in_flight_and_due_soon() {
    // concurrency 10 at 80 %: eight tasks a pod.
    let table = [
        ((0, 0, 0), 0),
        ((1, 0, 0), 1),
        ((8, 0, 0), 1),
        ((9, 0, 0), 2),
        ((0, 9, 0), 2),
        ((0, 0, 9), 2),
        ((3, 3, 3), 2),
        ((64, 0, 0), 8),
        ((65, 0, 0), 9),
        ((1_000_000, 0, 0), 10),
        ((u64::MAX, u64::MAX, u64::MAX), 10),
    ];
    for ((waiting, in_flight, due_soon), expected) in table {
        let reading = sample(0, waiting, in_flight, due_soon);
        let decision = decide(&limits(), &reading, scale(0, 0), &History::begin(0, T0), T0);
        assert_eq!(decision.replicas, expected, "{reading:?}");
    }
}

#[test]
fn a_busy_fleet_with_an_empty_queue_is_not_idle() {
    let mut run = Run::new(limits(), 4);
    run.busy = 4;
    for second in 0..600 {
        let decision = run.tick(&sample(second, 0, 32, 0));
        assert_eq!((decision.replicas, decision.reason), (4, Reason::Steady));
    }
}

#[test]
fn outage_is_not_an_empty_queue() {
    for size in [0, 1, 7] {
        let mut run = Run::new(limits(), size);
        for _ in 0..600 {
            let decision = run.tick(&Reading::Unreadable {
                why: "connection refused".into(),
            });
            assert_eq!((decision.replicas, decision.recommended), (size, size));
            assert!(!decision.reason.is_informed());
        }
        assert_eq!(
            run.until(0, 0),
            if size == 0 { Some(0) } else { Some(60) },
            "idle time counts from the end of the outage"
        );
    }
}

#[test]
fn an_outage_starts_the_cooldown_anew() {
    let mut run = Run::new(limits(), 1);
    for _ in 0..59 {
        assert_eq!(run.demand(0).replicas, 1);
    }
    run.tick(&Reading::Unreadable {
        why: "timed out".into(),
    });
    assert_eq!(run.until(0, 0), Some(60));
}

#[test]
fn old_sample_never_scales() {
    let history = History::begin(3, at(-3600));
    for waiting in [0, 1000] {
        let decision = decide(&limits(), &sample(-11, waiting, 0, 0), scale(3, 0), &history, T0);
        assert_eq!(
            (decision.replicas, decision.reason),
            (3, Reason::SampleTooOld { seconds: 11 })
        );
    }
    assert_eq!(
        decide(&limits(), &Reading::None, scale(3, 0), &history, T0).reason,
        Reason::NoSample
    );
}

#[test]
fn bounds_hold_even_without_a_sample() {
    let narrow = Limits {
        min: 2,
        max: 4,
        ..limits()
    };
    let table = [
        (0, 2, Reason::BelowMinimum),
        (3, 3, Reason::NoSample),
        (9, 4, Reason::AboveMaximum),
    ];
    for (size, expected, reason) in table {
        let decision = decide(&narrow, &Reading::None, scale(size, 0), &History::begin(size, T0), T0);
        assert_eq!((decision.replicas, decision.reason), (expected, reason));
    }
}

#[test]
fn shrinking_waits_for_the_window_and_growing_does_not() {
    let mut run = Run::new(limits(), 8);
    let first = run.demand(8);
    assert_eq!(
        (first.replicas, first.recommended, first.reason),
        (8, 1, Reason::Stabilizing { until: at(60) })
    );
    assert_eq!(run.until(1, 8), Some(59));
    assert_eq!(run.demand(80).replicas, 10);
    assert_eq!(run.demand(16).replicas, 10, "the ten counts for a minute");
    assert_eq!(run.until(2, 16), Some(60 - 1));
}

#[test]
fn shrinking_goes_to_the_largest_recommendation_of_the_window() {
    let mut run = Run::new(limits(), 8);
    for second in 0..61 {
        run.demand(if second == 30 { 40 } else { 8 });
    }
    assert_eq!(run.size, 5, "the spike at 30 s still counts");
    let decision = decide(&limits(), &sample(61, 8, 0, 0), scale(8, 0), &run.history, at(61));
    assert_eq!(
        decision.to_string(),
        "8 to 5: demand asks for 1, and for no more than 5 for long enough (8 waiting, 0 in flight, 0 due soon)"
    );
    assert_eq!(run.until(1, 8), Some(30));
}

#[test]
fn growing_waits_where_asked() {
    let patient = Limits {
        patience: Patience {
            up: Duration::from_secs(15),
            ..limits().patience
        },
        ..limits()
    };
    let mut run = Run::new(patient, 1);
    assert_eq!(run.demand(80).reason, Reason::Stabilizing { until: at(15) });
    assert_eq!(run.until(10, 80), Some(14));
    assert_eq!(run.demand(8).replicas, 10);
}

#[test]
fn last_pods_cool_down() {
    let hasty = Limits {
        patience: Patience {
            down: Duration::ZERO,
            ..limits().patience
        },
        ..limits()
    };
    let mut run = Run::new(hasty, 5);
    let decision = run.demand(0);
    assert_eq!(
        (decision.replicas, decision.reason),
        (1, Reason::CoolingDown { until: at(60) })
    );
    assert_eq!(run.until(0, 0), Some(59));
    assert_eq!(run.demand(1).replicas, 1, "and back at once");
}

#[test]
fn minimum_and_idle_slots_keep_pods() {
    let mut run = Run::new(Limits { min: 2, ..limits() }, 6);
    assert_eq!(run.until(2, 0), Some(60));
    let decision = run.demand(0);
    assert_eq!(
        (decision.reason, decision.bound),
        (Reason::Steady, Some(Bound::Minimum(2)))
    );

    let spare = Limits {
        min_idle_slots: 15,
        ..limits()
    };
    for (waiting, expected) in [(0, 2), (5, 2), (6, 3), (64, 8)] {
        let decision = decide(
            &spare,
            &sample(0, waiting, 0, 0),
            scale(0, 0),
            &History::begin(0, T0),
            T0,
        );
        assert_eq!(decision.replicas, expected, "{waiting} waiting");
    }
}

#[test]
fn maximum_is_named() {
    let decision = decide(
        &limits(),
        &sample(0, 400, 0, 0),
        scale(10, 10),
        &History::begin(10, T0),
        T0,
    );
    assert_eq!(
        (decision.replicas, decision.recommended, decision.bound.clone()),
        (10, 50, Some(Bound::Maximum(10)))
    );
    assert_eq!(
        decision.to_string(),
        "stays at 10: demand asks for 50 (400 waiting, 0 in flight, 0 due soon); maxReplicas is 10"
    );
}

#[test]
fn never_below_the_busy_pods() {
    let hasty = Limits {
        patience: Patience {
            down: Duration::ZERO,
            up: Duration::ZERO,
            to_zero: Duration::ZERO,
        },
        ..limits()
    };
    let history = History::begin(6, T0);
    let decision = decide(&hasty, &sample(0, 0, 3, 0), scale(6, 3), &history, T0);
    assert_eq!((decision.replicas, decision.reason), (3, Reason::BusyPods { busy: 3 }));
    // A bound is an order; the drain waits for the busy ones.
    let decision = decide(
        &Limits { max: 2, ..hasty },
        &sample(0, 0, 3, 0),
        scale(6, 3),
        &history,
        T0,
    );
    assert_eq!((decision.replicas, decision.reason), (2, Reason::AboveMaximum));
}

#[test]
fn small_demand_does_not_start_a_pool_with_a_threshold() {
    let lazy = Limits {
        activation_threshold: 5,
        ..limits()
    };
    let history = History::begin(0, T0);
    for (size, waiting, expected) in [(0, 5, 0), (0, 6, 1), (1, 3, 1), (0, 0, 0)] {
        let decision = decide(&lazy, &sample(0, waiting, 0, 0), scale(size, 0), &history, T0);
        assert_eq!(decision.replicas, expected, "{waiting} waiting at size {size}");
    }
    // Slots that stay free are there without any demand, and so with a little.
    let ready = Limits {
        min_idle_slots: 1,
        ..lazy
    };
    for waiting in [0, 3, 6] {
        let decision = decide(&ready, &sample(0, waiting, 0, 0), scale(0, 0), &history, T0);
        assert_eq!(decision.replicas, 1, "{waiting} waiting");
    }
}

#[test]
fn manual_size_is_what_the_spec_says() {
    let manual = Limits {
        source: Source::Manual(7),
        ..limits()
    };
    for reading in [
        Reading::None,
        sample(0, 1000, 0, 0),
        Reading::Unreadable { why: "x".into() },
    ] {
        let decision = decide(&manual, &reading, scale(2, 1), &History::begin(2, T0), T0);
        assert_eq!((decision.replicas, decision.reason), (7, Reason::Manual));
    }
}

#[test]
fn a_new_leader_keeps_the_size_for_a_window() {
    let mut run = Run::new(limits(), 8);
    assert_eq!(run.until(0, 0), Some(60));
}

#[test]
fn shares_leave_nothing_to_nobody() {
    let whole = Demand {
        waiting: 10,
        in_flight: 1,
        due_soon: 0,
    };
    assert_eq!(
        whole.share(1, 3),
        Demand {
            waiting: 4,
            in_flight: 1,
            due_soon: 0
        }
    );
    assert_eq!(
        whole.share(2, 3),
        Demand {
            waiting: 7,
            in_flight: 1,
            due_soon: 0
        }
    );
    assert_eq!(whole.share(3, 3), whole);
    assert_eq!(whole.share(0, 0), Demand::default());
}

fn any_aim() -> impl Strategy<Value = Aim> {
    prop_oneof![
        (1u32..=100).prop_map(Aim::Utilization),
        (1u32..100).prop_map(Aim::Backlog),
        (1u64..600).prop_map(|seconds| Aim::DrainTime(Duration::from_secs(seconds))),
        (1u64..600).prop_map(|seconds| Aim::Latency(Duration::from_secs(seconds))),
    ]
}

fn any_speed() -> impl Strategy<Value = Speed> {
    let kind = prop_oneof![Just(PolicyKind::Pods), Just(PolicyKind::Percent)];
    let policy = (kind, 1u32..150, 1u32..60).prop_map(|(kind, value, period_seconds)| Policy {
        kind,
        value,
        period_seconds,
    });
    let select = prop_oneof![4 => Just(Select::Max), 4 => Just(Select::Min), 1 => Just(Select::Disabled)];
    (prop::collection::vec(policy, 0..3), select).prop_map(|(policies, select)| Speed::new(&policies, select))
}

prop_compose! {
    fn any_limits()(min in 0u32..20, more in 0u32..20, concurrency in 1u32..50, aim in any_aim(),
                    grows in any_speed(), shrinks in any_speed(), min_idle_slots in 0u32..30, activation_threshold in 0u32..30,
                    up in 0u64..100, down in 0u64..100, to_zero in 0u64..100) -> Limits {
        Limits { min, max: min + more, concurrency, aim, min_idle_slots, activation_threshold,
            patience: Patience { up: Duration::from_secs(up), down: Duration::from_secs(down), to_zero: Duration::from_secs(to_zero) },
            up: grows, down: shrinks, ..limits() }
    }
}

fn any_reading() -> impl Strategy<Value = Option<(u64, u64, u64)>> {
    prop_oneof![
        1 => Just(None),
        6 => (0u64..500, 0u64..100, 0u64..50).prop_map(Some),
        2 => Just(Some((0, 0, 0))),
    ]
}

proptest! {
    #[test]
    fn bounds_busy_pods_and_repetition(limits in any_limits(), start in 0u32..50,
                                       steps in prop::collection::vec((any_reading(), 0u32..50, 1i64..40), 1..60)) {
        let mut history = History::begin(start, T0);
        let mut size = start;
        let mut second = 0;
        for (reading, busy, pause) in steps {
            second += pause;
            let now = at(second);
            history.see(size, now);
            let reading = match reading {
                Some((waiting, in_flight, due_soon)) => sample(second, waiting, in_flight, due_soon),
                None => Reading::Unreadable { why: "away".into() },
            };
            let decision = decide(&limits, &reading, scale(size, busy), &history, now);
            prop_assert!((limits.min..=limits.max).contains(&decision.replicas), "{decision:?}");
            if decision.replicas < size {
                prop_assert!(decision.replicas >= busy.min(size).min(limits.max), "{decision:?}");
                prop_assert!(decision.reason.is_informed() || decision.reason == Reason::AboveMaximum);
            }
            if !decision.reason.is_informed() {
                prop_assert_eq!(decision.replicas, size);
            }
            let mut seen = history.clone();
            seen.see(decision.replicas, now);
            let again = decide(&limits, &reading, scale(decision.replicas, busy.min(decision.replicas)), &seen, now);
            prop_assert_eq!(again.replicas, decision.replicas, "{:?} then {:?}", decision, again);
            history.note(&decision, &limits.patience, now);
            size = decision.replicas;
        }
    }

    #[test]
    fn settles_under_constant_demand(limits in any_limits(), start in 0u32..50, waiting in 0u64..500) {
        let mut run = Run::new(limits, start);
        // Policies of one pod a minute need most of an hour.
        for _ in 0..4000 {
            run.demand(waiting);
        }
        let settled = run.size;
        for _ in 0..100 {
            prop_assert_eq!(run.demand(waiting).replicas, settled);
        }
    }
}
