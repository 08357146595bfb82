//! What a pool's spec says about its size, from the object to the decision: targets, speed, calendar, pauses, outages.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "helpers of tests")]

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use umbel_api::WorkerPool;
use umbel_api::workerpool::{Calendar, Paused};
use umbel_plan::drain;
use umbel_plan::explain::Story;
use umbel_plan::rollout::Rolling;
use umbel_plan::scaling::calendar::{self, Window};
use umbel_plan::scaling::pace::{Beat, Meter};
use umbel_plan::scaling::{Basis, Bound, Decision, Demand, History, Limits, Pace, Reading, Reason, Scale, decide};

const T0: Timestamp = Timestamp::constant(1_800_000_000, 0);

fn at(second: i64) -> Timestamp {
    T0 + SignedDuration::from_secs(second)
}

/// Limits of a pool with ten slots a pod and this `scaling`.
fn limits(scaling: Value) -> Limits {
    with(json!({ "scaling": scaling }))
}

fn with(more: Value) -> Limits {
    let mut spec = json!({ "queues": [{ "name": "q" }] });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let pool: WorkerPool = serde_json::from_value(
        json!({ "apiVersion": "umbel.dev/v1alpha1", "kind": "WorkerPool", "metadata": { "name": "p" }, "spec": spec }),
    )
    .unwrap();
    Limits::from(&pool.spec)
}

fn sample(second: i64, waiting: u64, in_flight: u64, pace: Option<Pace>) -> Reading {
    Reading::Sample {
        at: at(second),
        demand: Demand {
            waiting,
            in_flight,
            due_soon: 0,
        },
        pace,
    }
}

fn outage() -> Reading {
    Reading::Unreadable {
        why: "connection refused".into(),
    }
}

fn once(limits: &Limits, reading: &Reading, replicas: u32) -> Decision {
    let history = History::begin(replicas, at(-3600));
    decide(limits, reading, Scale { replicas, busy: 0 }, &history, T0)
}

/// A pool under one reading a second; the size follows each decision at once.
struct Run {
    limits: Limits,
    history: History,
    size: u32,
    second: i64,
}

impl Run {
    fn new(limits: Limits, size: u32) -> Self {
        Self {
            limits,
            history: History::begin(size, T0),
            size,
            second: 0,
        }
    }

    fn tick(&mut self, reading: Reading) -> Decision {
        let now = at(self.second);
        self.history.see(self.size, now);
        let scale = Scale {
            replicas: self.size,
            busy: 0,
        };
        let decision = decide(&self.limits, &reading, scale, &self.history, now);
        self.history.note(&decision, &self.limits.patience, now);
        self.size = decision.replicas;
        self.second += 1;
        decision
    }

    /// The seconds at which the size changed, and the size then.
    fn changes(&mut self, waiting: u64, seconds: i64) -> Vec<(i64, u32)> {
        let mut changes = Vec::new();
        for _ in 0..seconds {
            let (before, second) = (self.size, self.second);
            self.tick(sample(second, waiting, 0, None));
            if self.size != before {
                changes.push((second, self.size));
            }
        }
        changes
    }
}

fn pace(task_millis: u64, arrivals_milli: u64) -> Pace {
    Pace {
        task: Duration::from_millis(task_millis),
        arrivals_milli,
    }
}

#[test]
fn each_target_asks_for_its_size() {
    // Ten slots a pod. (target, waiting, in flight, pace, wanted)
    let slow = Some(pace(2_000, 0));
    let busy = Some(pace(2_000, 20_000));
    let table = [
        (json!({}), 80, 0, slow, 10),
        (json!({ "value": 50 }), 80, 0, None, 16),
        (json!({ "type": "BacklogPerReplica", "value": 20 }), 80, 40, slow, 4),
        (json!({ "type": "BacklogPerReplica", "value": 20 }), 81, 0, None, 5),
        // Nothing waits, but something is in flight: the pool is not idle.
        (json!({ "type": "BacklogPerReplica", "value": 20 }), 0, 3, None, 1),
        // 1200 tasks of 2 s are 2400 s of work: eight slots do them in 300 s, 80 in 30 s, 240 in 10 s.
        (json!({ "type": "DrainTime", "value": "5m" }), 1200, 0, slow, 1),
        (json!({ "type": "DrainTime", "value": "30s" }), 1200, 0, slow, 8),
        (json!({ "type": "DrainTime", "value": "30s" }), 1190, 11, slow, 9),
        (json!({ "type": "DrainTime", "value": "10s" }), 1200, 0, slow, 24),
        // 20 a second of 2 s each keep 40 slots busy, whatever waits.
        (json!({ "type": "Latency", "value": "30s" }), 0, 40, busy, 4),
        (json!({ "type": "Latency", "value": "30s" }), 600, 40, busy, 8),
        (json!({ "type": "Latency", "value": "30s" }), 600, 40, slow, 4),
        (json!({ "type": "Latency", "value": "1m" }), 600, 40, slow, 2),
        // Without a rate: Utilization of 80 %.
        (json!({ "type": "DrainTime", "value": "30s" }), 80, 0, None, 10),
        (json!({ "type": "Latency", "value": "30s" }), 81, 0, None, 11),
        // Nothing at all: nothing.
        (json!({ "type": "DrainTime", "value": "30s" }), 0, 0, slow, 0),
        (json!({ "type": "BacklogPerReplica", "value": 1 }), 0, 0, slow, 0),
    ];
    for (target, waiting, in_flight, pace, wanted) in table {
        let limits = limits(json!({ "maxReplicas": 100, "target": target }));
        let decision = once(&limits, &sample(0, waiting, in_flight, pace), 0);
        assert_eq!(
            (decision.recommended, decision.replicas),
            (wanted, wanted),
            "{target} with {waiting} waiting, {in_flight} in flight, {pace:?}"
        );
    }
}

#[test]
fn a_target_without_a_rate_says_what_it_does_instead() {
    let limits = limits(json!({ "target": { "type": "DrainTime", "value": "5m" } }));
    let decision = once(&limits, &sample(0, 16, 0, None), 0);
    assert_eq!(decision.basis, Basis::NoPace("DrainTime"));
    assert_eq!(
        decision.to_string(),
        "0 to 2: demand asks for 2 by Utilization, because no rate was measured yet for DrainTime (16 waiting, 0 in flight, 0 due soon)"
    );
    let decision = once(&limits, &sample(0, 1500, 10, Some(pace(4_000, 2_500))), 0);
    assert_eq!(
        decision.to_string(),
        "0 to 3: demand asks for 3 to be done within 5m, at 4.00 s a task and 2.50 new ones a second (1500 waiting, 10 in flight, 0 due soon)"
    );
}

#[test]
fn free_slots_come_on_top_of_every_target() {
    let spare = json!({ "minIdleSlots": 25, "target": { "type": "BacklogPerReplica", "value": 1000 } });
    assert_eq!(once(&limits(spare), &sample(0, 0, 10, None), 0).recommended, 4);
}

#[test]
fn policies_slow_growth_as_an_hpa_counts() {
    let grow = |policies: Value| limits(json!({ "maxReplicas": 100, "up": policies }));
    // (policies, from, sizes by second)
    let pods = json!({ "policies": [{ "type": "Pods", "value": 2, "periodSeconds": 10 }] });
    assert_eq!(
        Run::new(grow(pods), 0).changes(800, 31),
        [(0, 2), (11, 4), (22, 6)],
        "a change of second 0 is seen in second 1, and counts for ten seconds from there"
    );
    let double = json!({ "policies": [{ "type": "Percent", "value": 100, "periodSeconds": 10 }] });
    assert_eq!(
        Run::new(grow(double), 0).changes(800, 34),
        [(0, 1), (11, 2), (22, 4), (33, 8)],
        "of nothing one pod, then twice the size"
    );
    let both = |select: &str| {
        json!({ "selectPolicy": select, "policies": [
            { "type": "Percent", "value": 50, "periodSeconds": 10 }, { "type": "Pods", "value": 1, "periodSeconds": 10 },
        ]})
    };
    assert_eq!(Run::new(grow(both("Max")), 10).changes(800, 12), [(0, 15), (11, 23)]);
    assert_eq!(Run::new(grow(both("Min")), 10).changes(800, 12), [(0, 11), (11, 12)]);
    assert_eq!(Run::new(grow(both("Disabled")), 10).changes(800, 60), []);
}

#[test]
fn policies_slow_shrinking() {
    let shrink = |mut down: Value| {
        down["stabilization"] = json!("0s");
        limits(json!({ "maxReplicas": 100, "down": down }))
    };
    let pods = json!({ "policies": [{ "type": "Pods", "value": 3, "periodSeconds": 10 }] });
    assert_eq!(
        Run::new(shrink(pods), 20).changes(80, 23),
        [(0, 17), (11, 14), (22, 11)]
    );
    let tenth = json!({ "policies": [{ "type": "Percent", "value": 10, "periodSeconds": 10 }] });
    assert_eq!(Run::new(shrink(tenth), 15).changes(80, 12), [(0, 13), (11, 11)]);
    let disabled = json!({ "selectPolicy": "Disabled" });
    let mut run = Run::new(shrink(disabled), 15);
    assert_eq!(run.changes(80, 60), []);
    let decision = run.tick(sample(60, 80, 0, None));
    assert_eq!(
        (decision.reason.clone(), decision.bound.clone()),
        (Reason::Limited { until: None }, Some(Bound::Shrinkage(15)))
    );
    assert_eq!(
        decision.to_string(),
        "stays at 15: demand asks for 10, and no step is allowed in that direction (80 waiting, 0 in flight, 0 due soon); \
         down.policies allow 15 now"
    );
}

#[test]
fn a_policy_never_keeps_a_pool_outside_its_bounds() {
    let slow = json!({ "policies": [{ "type": "Pods", "value": 1, "periodSeconds": 1800 }], "stabilization": "0s" });
    let limits = limits(json!({ "minReplicas": 4, "maxReplicas": 8, "up": slow, "down": slow }));
    for (size, wanted, reason) in [(0, 4, Reason::BelowMinimum), (20, 8, Reason::AboveMaximum)] {
        let decision = once(&limits, &sample(0, 48, 0, None), size);
        assert_eq!((decision.replicas, decision.reason), (wanted, reason));
    }
}

#[test]
fn the_next_leader_knows_the_latest_step() {
    let slow = json!({ "policies": [{ "type": "Pods", "value": 2, "periodSeconds": 60 }] });
    let limits = limits(json!({ "up": slow }));
    let history = History::begin(4, T0).after(at(-20), 2, 4);
    let scale = Scale { replicas: 4, busy: 0 };
    let decision = decide(&limits, &sample(0, 80, 0, None), scale, &history, T0);
    assert_eq!(
        (decision.replicas, decision.reason),
        (4, Reason::Limited { until: Some(at(40)) })
    );
}

#[test]
fn pauses_hold_what_they_name() {
    // (paused, from, waiting, wanted)
    let table = [
        ("None", 3, 80, 10),
        ("None", 3, 8, 1),
        ("All", 3, 80, 3),
        ("All", 3, 8, 3),
        ("In", 3, 80, 10),
        ("In", 3, 8, 3),
        ("Out", 3, 80, 3),
        ("Out", 3, 8, 1),
    ];
    for (paused, from, waiting, wanted) in table {
        let limits = limits(json!({ "paused": paused, "down": { "stabilization": "0s" } }));
        let decision = once(&limits, &sample(0, waiting, 0, None), from);
        assert_eq!(decision.replicas, wanted, "{paused}, {waiting} waiting");
        let is_held = wanted == from;
        assert_eq!(decision.reason == Reason::Paused, is_held, "{decision:?}");
        assert_eq!(!decision.reason.is_active(), is_held);
    }
    // Bounds and a size that somebody sets are held as well.
    for scaling in [
        json!({ "paused": "Out", "minReplicas": 5 }),
        json!({ "paused": "All", "mode": "Manual" }),
        json!({ "paused": "Out", "mode": "External" }),
    ] {
        let decision = once(&with(json!({ "replicas": 7, "scaling": scaling })), &Reading::None, 2);
        assert_eq!(
            (decision.replicas, decision.bound.is_some()),
            (2, true),
            "{scaling}: {decision:?}"
        );
    }
    let limits = limits(json!({ "paused": "In", "down": { "stabilization": "0s" } }));
    let decision = once(&limits, &sample(0, 8, 0, None), 3);
    assert_eq!(decision.bound, Some(Bound::Paused(Paused::In)));
    assert_eq!(
        decision.to_string(),
        "stays at 3: scaling is paused; demand asks for 1 (8 waiting, 0 in flight, 0 due soon); scaling.paused is In"
    );
}

#[test]
fn a_suspended_pool_is_empty_whatever_else_is_said() {
    for scaling in [
        json!({}),
        json!({ "minReplicas": 3 }),
        json!({ "paused": "All" }),
        json!({ "mode": "Manual" }),
        json!({ "onBrokerError": { "policy": "Fallback", "replicas": 5 } }),
    ] {
        for reading in [sample(0, 80, 0, None), Reading::None, outage()] {
            let limits = with(json!({ "suspend": true, "replicas": 4, "scaling": scaling }));
            let decision = once(&limits, &reading, 4);
            assert_eq!(
                (decision.replicas, decision.reason),
                (0, Reason::Suspended),
                "{scaling}"
            );
        }
    }
}

#[test]
fn another_scaler_is_followed_within_the_bounds() {
    let external = json!({ "mode": "External", "minReplicas": 2, "maxReplicas": 6 });
    for (replicas, wanted, bound) in [
        (0, 2, Some(Bound::Minimum(2))),
        (4, 4, None),
        (9, 6, Some(Bound::Maximum(6))),
    ] {
        let limits = with(json!({ "replicas": replicas, "scaling": external }));
        for reading in [sample(0, 1000, 0, None), Reading::None, outage()] {
            let decision = once(&limits, &reading, 3);
            assert_eq!(
                (decision.replicas, &decision.bound, decision.reason),
                (wanted, &bound, Reason::External)
            );
        }
    }
}

#[test]
fn an_outage_holds_the_size_or_raises_it() {
    let fallback = json!({ "onBrokerError": { "policy": "Fallback", "replicas": 5 } });
    let table = [
        (json!({}), 0, 0),
        (json!({}), 7, 7),
        (fallback.clone(), 0, 5),
        (fallback.clone(), 5, 5),
        (fallback.clone(), 7, 7),
        (
            json!({ "maxReplicas": 3, "onBrokerError": fallback["onBrokerError"] }),
            1,
            3,
        ),
    ];
    for (scaling, from, wanted) in table {
        let decision = once(&limits(scaling.clone()), &outage(), from);
        assert_eq!(decision.replicas, wanted, "{scaling} from {from}");
        assert!(!decision.reason.is_informed());
    }
    assert_eq!(
        once(&limits(fallback), &outage(), 1).to_string(),
        "1 to 5: the broker can't be asked (connection refused); onBrokerError asks for at least 5 meanwhile"
    );
}

#[test]
fn a_slow_look_lets_samples_live_longer() {
    for (interval, is_known) in [(None, false), (Some("3s"), false), (Some("10s"), true)] {
        let scaling = interval.map_or(json!({}), |interval| json!({ "interval": interval }));
        let decision = once(&limits(scaling), &sample(-25, 80, 0, None), 1);
        assert_eq!(decision.reason.is_informed(), is_known, "{interval:?}");
    }
}

fn window(value: Value) -> Window {
    let calendar: Calendar = serde_json::from_value(value).unwrap();
    Window::of(&calendar).unwrap()
}

fn office() -> Value {
    json!({ "name": "office", "start": "0 8 * * MON-FRI", "end": "0 18 * * MON-FRI", "timeZone": "Europe/Berlin", "minReplicas": 4 })
}

#[test]
fn schedules_hold_from_start_to_end_in_their_zone() {
    let office = window(office());
    // Berlin is two hours ahead in summer, one in winter; the last Sunday of March 2026 is the 29th.
    let table = [
        ("2026-03-27T06:59:59Z", false, "2026-03-27T07:00:00Z"),
        ("2026-03-27T07:00:00Z", true, "2026-03-27T17:00:00Z"),
        ("2026-03-27T16:59:59Z", true, "2026-03-27T17:00:00Z"),
        ("2026-03-27T17:00:00Z", false, "2026-03-30T06:00:00Z"),
        ("2026-03-30T05:59:59Z", false, "2026-03-30T06:00:00Z"),
        ("2026-03-30T06:00:00Z", true, "2026-03-30T16:00:00Z"),
    ];
    for (now, is_active, changes) in table {
        let seen = office.at(now.parse().unwrap());
        assert_eq!(seen, (is_active, Some(changes.parse().unwrap())), "{now}");
    }
    // Over midnight, too.
    let night = window(json!({ "name": "night", "start": "0 22 * * *", "end": "0 6 * * *", "maxReplicas": 1 }));
    for (now, is_active) in [
        ("2026-03-27T23:00:00Z", true),
        ("2026-03-28T05:00:00Z", true),
        ("2026-03-28T07:00:00Z", false),
    ] {
        assert_eq!(night.at(now.parse().unwrap()).0, is_active, "{now}");
    }
}

#[test]
fn schedules_hold_also_where_a_start_comes_before_or_with_the_next_end() {
    let at = |start: &str, end: &str, zone: &str, now: &str| {
        let one = json!({ "name": "a", "start": start, "end": end, "timeZone": zone, "minReplicas": 1 });
        let (is_active, changes) = window(one).at(now.parse().unwrap());
        (is_active, changes.map(|at| at.to_string()).unwrap_or_default())
    };
    // 2026-03-28 is a Saturday. (start, end, zone, now, in force, changes)
    let table = [
        // Whole days: each ends where the next begins.
        (
            "0 0 * * MON-FRI",
            "0 0 * * TUE-SAT",
            "UTC",
            "2026-03-25T12:00:00Z",
            true,
            "2026-03-26T00:00:00Z",
        ),
        (
            "0 0 * * MON-FRI",
            "0 0 * * TUE-SAT",
            "UTC",
            "2026-03-26T00:00:00Z",
            true,
            "2026-03-27T00:00:00Z",
        ),
        (
            "0 0 * * MON-FRI",
            "0 0 * * TUE-SAT",
            "UTC",
            "2026-03-27T23:59:59.9Z",
            true,
            "2026-03-28T00:00:00Z",
        ),
        (
            "0 0 * * MON-FRI",
            "0 0 * * TUE-SAT",
            "UTC",
            "2026-03-28T00:00:00Z",
            false,
            "2026-03-30T00:00:00Z",
        ),
        (
            "0 0 * * MON-FRI",
            "0 0 * * *",
            "UTC",
            "2026-03-25T12:00:00Z",
            true,
            "2026-03-26T00:00:00Z",
        ),
        // A second start changes nothing.
        (
            "0 8,12 * * *",
            "0 18 * * *",
            "UTC",
            "2026-03-25T09:00:00Z",
            true,
            "2026-03-25T18:00:00Z",
        ),
        (
            "0 8,12 * * *",
            "0 18 * * *",
            "UTC",
            "2026-03-25T12:00:00Z",
            true,
            "2026-03-25T18:00:00Z",
        ),
        (
            "0 8,12 * * *",
            "0 18 * * *",
            "UTC",
            "2026-03-25T18:00:00Z",
            false,
            "2026-03-26T08:00:00Z",
        ),
        // Over a weekend, and over a new year.
        (
            "0 18 * * FRI",
            "0 6 * * MON",
            "UTC",
            "2026-03-29T12:00:00Z",
            true,
            "2026-03-30T06:00:00Z",
        ),
        (
            "0 18 * * FRI",
            "0 6 * * MON",
            "UTC",
            "2026-03-30T06:00:00Z",
            false,
            "2026-04-03T18:00:00Z",
        ),
        (
            "0 0 20 12 *",
            "0 0 7 1 *",
            "UTC",
            "2026-01-03T00:00:00Z",
            true,
            "2026-01-07T00:00:00Z",
        ),
        (
            "0 0 20 12 *",
            "0 0 7 1 *",
            "UTC",
            "2026-06-01T00:00:00Z",
            false,
            "2026-12-20T00:00:00Z",
        ),
        (
            "0 0 29 2 *",
            "0 0 1 3 *",
            "UTC",
            "2027-06-01T00:00:00Z",
            false,
            "2028-02-29T00:00:00Z",
        ),
        // The clock jumps from 2:00 to 3:00 in Berlin on the 29th of March, and is at 2:00 twice on the 25th of October.
        (
            "30 2 * * *",
            "0 4 * * *",
            "Europe/Berlin",
            "2026-03-29T00:59:59Z",
            false,
            "2026-03-29T01:00:00Z",
        ),
        (
            "30 2 * * *",
            "0 4 * * *",
            "Europe/Berlin",
            "2026-03-29T01:00:00Z",
            true,
            "2026-03-29T02:00:00Z",
        ),
        (
            "0 22 * * *",
            "30 2 * * *",
            "Europe/Berlin",
            "2026-03-29T00:59:59Z",
            true,
            "2026-03-29T01:00:00Z",
        ),
        (
            "0 22 * * *",
            "30 2 * * *",
            "Europe/Berlin",
            "2026-03-29T01:00:00Z",
            false,
            "2026-03-29T20:00:00Z",
        ),
        (
            "0 22 * * *",
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-25T00:29:59Z",
            true,
            "2026-10-25T00:30:00Z",
        ),
        (
            "0 22 * * *",
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-25T01:30:00Z",
            false,
            "2026-10-25T21:00:00Z",
        ),
    ];
    for (start, end, zone, now, is_active, changes) in table {
        let seen = at(start, end, zone, now);
        assert_eq!(
            seen,
            (is_active, changes.to_owned()),
            "{start} to {end} in {zone} at {now}"
        );
    }
}

#[test]
fn schedules_replace_the_bounds_and_name_themselves() {
    let sales = json!({ "name": "sales", "start": "0 9 * * *", "end": "0 12 * * *", "timeZone": "Europe/Berlin", "minReplicas": 6, "maxReplicas": 20 });
    let quiet = json!({ "name": "quiet", "start": "0 10 * * *", "end": "0 11 * * *", "timeZone": "Europe/Berlin", "maxReplicas": 5 });
    let windows = [window(office()), window(sales), window(quiet)];
    let at = |now: &str| {
        let (limits, changes) = calendar::apply(limits(json!({ "minReplicas": 1 })), &windows, now.parse().unwrap());
        let Limits {
            min,
            max,
            min_by,
            max_by,
            ..
        } = limits;
        (
            min,
            max,
            min_by.unwrap_or_default(),
            max_by.unwrap_or_default(),
            changes.unwrap().to_string(),
        )
    };
    let row = |min: u32, max: u32, min_by: &str, max_by: &str, changes: &str| {
        (min, max, min_by.to_owned(), max_by.to_owned(), changes.to_owned())
    };
    assert_eq!(at("2026-01-07T05:00:00Z"), row(1, 10, "", "", "2026-01-07T07:00:00Z"));
    assert_eq!(
        at("2026-01-07T07:00:00Z"),
        row(4, 10, "office", "", "2026-01-07T08:00:00Z")
    );
    assert_eq!(
        at("2026-01-07T08:30:00Z"),
        row(6, 20, "sales", "sales", "2026-01-07T09:00:00Z")
    );
    assert_eq!(
        at("2026-01-07T09:30:00Z"),
        row(6, 5, "sales", "quiet", "2026-01-07T10:00:00Z")
    );

    let now = "2026-01-07T07:00:00Z".parse().unwrap();
    let (limits, _) = calendar::apply(limits(json!({})), &windows, now);
    let reading = Reading::Sample {
        at: now,
        demand: Demand::default(),
        pace: None,
    };
    let decision = decide(
        &limits,
        &reading,
        Scale { replicas: 0, busy: 0 },
        &History::begin(0, now),
        now,
    );
    assert_eq!(
        decision.to_string(),
        "0 to 4: it was below minReplicas (0 waiting, 0 in flight, 0 due soon); minReplicas of schedule office is 4"
    );
}

#[test]
fn bad_schedules_say_which_and_why() {
    let fault = |change: Value| {
        let mut value = office();
        value
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        Window::of(&serde_json::from_value(value).unwrap())
            .unwrap_err()
            .to_string()
    };
    let why = fault(json!({ "start": "at noon" }));
    assert!(
        why.starts_with("scaling.schedules[office].start \"at noon\" can't be read: "),
        "{why}"
    );
    assert_eq!(
        fault(json!({ "end": "0 0 30 2 *" })),
        "scaling.schedules[office].end \"0 0 30 2 *\" names no time that ever comes"
    );
    assert_eq!(
        fault(json!({ "timeZone": "Mars/Base" })),
        "scaling.schedules[office].timeZone \"Mars/Base\" is not in the time zone database"
    );
}

#[test]
fn the_pace_is_what_workers_did_in_the_last_minutes() {
    let mut meter = Meter::default();
    // Two workers with four busy slots each; a task takes 2 s, so each ends two a second. 5 a second come.
    for second in 0..=60_u64 {
        let beat = Beat {
            busy: 4,
            finished: 1000 + second * 2,
        };
        let work = 500 + second * 5 - second * 4;
        meter.see(at(i64::try_from(second).unwrap()), [("a", beat), ("b", beat)], work);
        let known = meter.pace();
        match second {
            0..10 => assert_eq!(known, None, "too short"),
            _ => assert_eq!(known, Some(pace(2_000, 5_000)), "second {second}"),
        }
    }
    // Everybody goes: how long a task takes stays known, and nothing comes any more.
    for second in 61..=500 {
        meter.see(at(second), [], 0);
    }
    assert_eq!(meter.pace(), Some(pace(2_000, 0)));
}

#[test]
fn the_pace_forgets_what_is_older_than_the_window() {
    let mut meter = Meter::default();
    let mut finished = 0;
    for second in 0..=900_u64 {
        // Ten busy slots: first ten tasks a second, then one.
        finished += if second < 450 { 10 } else { 1 };
        meter.see(
            at(i64::try_from(second).unwrap()),
            [("a", Beat { busy: 10, finished })],
            0,
        );
    }
    assert_eq!(meter.pace(), Some(pace(10_000, 1_000)));
}

#[test]
fn few_tasks_and_restarted_workers_make_no_pace() {
    let mut meter = Meter::default();
    for second in 0..=60_u64 {
        // Four tasks end in all; a new process begins to count at nothing.
        let (name, finished) = if second < 30 {
            ("a", 7_000_000)
        } else {
            ("b", second.min(34) - 30)
        };
        meter.see(
            at(i64::try_from(second).unwrap()),
            [(name, Beat { busy: 1, finished })],
            10,
        );
    }
    assert_eq!(meter.pace(), None);
}

fn story(decision: &Decision, live: u32, turn: drain::Reason) -> String {
    let story = Story {
        live,
        ready: live,
        busy: 1,
        draining: 0,
        decision,
        turn: &turn,
        rollout: None,
        obstacles: Vec::new(),
    };
    story.to_string()
}

#[test]
fn the_sentence_speaks_of_a_rollout() {
    let decision = once(&limits(json!({})), &sample(0, 24, 0, None), 3);
    let rolling = |serving: u32, trouble: Option<&str>| {
        let rolling = Rolling {
            revision: "4f1c0a2b3d".into(),
            serving,
            wanted: 3,
            older: 3,
            busy: 1,
            trouble: trouble.map(str::to_owned),
        };
        let story = Story {
            live: 4,
            ready: 3,
            busy: 1,
            draining: 0,
            decision: &decision,
            turn: &drain::Reason::Steady,
            rollout: Some(&rolling),
            obstacles: Vec::new(),
        };
        story.to_string()
    };
    assert_eq!(
        rolling(1, None),
        "4 pods (3 ready, 1 busy, 0 draining), 3 wanted: demand asks for 3 (24 waiting, 0 in flight, 0 due soon). \
         Rollout: 1 of 3 pods serve with revision 4f1c0a2b3d, 3 of older ones are left, 1 with tasks. Held back by nothing. \
         Next: as pods of the new revision become ready, as many older ones take no more work."
    );
    let stuck = rolling(0, Some("pod w-1: ImagePullBackOff: no such image"));
    assert!(
        stuck.ends_with("1 with tasks; pod w-1: ImagePullBackOff: no such image. Held back by nothing. Next: the older pods stay until one of the new revision is ready."),
        "{stuck}"
    );
    assert!(rolling(3, None).ends_with("Next: the older pods go, each when it is idle."));
}

#[test]
fn the_sentence_says_current_wanted_why_what_holds_and_what_comes() {
    let up = once(&limits(json!({})), &sample(0, 120, 0, None), 2);
    assert_eq!(
        story(&up, 2, drain::Reason::Demand),
        "2 pods (2 ready, 1 busy, 0 draining), 10 wanted: demand asks for 15 (120 waiting, 0 in flight, 0 due soon); \
         maxReplicas is 10. Held back by maxReplicas is 10. Next: 8 pods more start."
    );
    let hasty = json!({ "down": { "stabilization": "0s" } });
    let down = once(&limits(hasty), &sample(0, 8, 0, None), 3);
    assert_eq!(
        story(
            &down,
            3,
            drain::Reason::Draining {
                busy: vec!["w-1".into()]
            }
        ),
        "3 pods (3 ready, 1 busy, 0 draining), 1 wanted: demand asks for 1, and for no more for long enough \
         (8 waiting, 0 in flight, 0 due soon). Held back by waiting for the tasks of w-1. Next: 2 pods go, each when it is idle."
    );
    let blocked = story(&down, 3, drain::Reason::NotReady { pod: "w-2".into() });
    assert!(
        blocked
            .ends_with("Held back by admitted pod w-2 is not Ready. Next: nothing, until what holds it back is gone."),
        "{blocked}"
    );
    let patient = Run::new(limits(json!({})), 3).tick(sample(0, 8, 0, None));
    let waits = story(&patient, 3, drain::Reason::Steady);
    assert!(
        waits.ends_with("Held back by stabilization until 2027-01-15T08:01:00Z. Next: another size at 2027-01-15T08:01:00Z, if demand stays as it is."),
        "{waits}"
    );
    let steady = once(&limits(json!({})), &sample(0, 24, 0, None), 3);
    assert!(
        story(&steady, 3, drain::Reason::Steady)
            .ends_with("Held back by nothing. Next: the size stays until demand changes.")
    );
}
