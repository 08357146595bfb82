//! Slots of schedules: clock changes, odd calendars, missed slots, and the messages of a slot.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use proptest::prelude::*;
use serde_json::{Value, json};
use umbel_api::{
    PeriodicTaskSpec,
    periodictask::{MissedRuns, Overlap, Targets},
    refs::Selector,
};
use umbel_plan::{
    cron::{ScheduleFault, Timetable, fingerprint},
    fanout::{Candidate, dispatches, run_id},
    periodic::{Due, MOST_AT_ONCE, Policy, due, may_fire, next_wake},
};

fn spec(patch: &Value) -> PeriodicTaskSpec {
    let mut whole = json!({"schedule": {}, "taskTemplate": {"queueRef": {"name": "q"}, "task": "t"}});
    for (key, value) in patch.as_object().expect("an object") {
        whole[key] = value.clone();
    }
    serde_json::from_value(whole).expect("a spec")
}

fn time(text: &str) -> Timestamp {
    text.parse().expect(text)
}

fn cron(text: &str, zone: &str) -> PeriodicTaskSpec {
    spec(&json!({"schedule": {"cron": text}, "timeZone": zone}))
}

fn every(text: &str) -> PeriodicTaskSpec {
    spec(&json!({"schedule": {"every": text}}))
}

fn table(spec: &PeriodicTaskSpec, created: &str) -> Timetable {
    Timetable::of(spec, time(created)).expect("a schedule")
}

fn slots(spec: &PeriodicTaskSpec, created: &str, after: &str, until: &str) -> Vec<String> {
    let slots = table(spec, created).between(time(after), time(until), 100);
    slots.iter().map(ToString::to_string).collect()
}

const OLD: &str = "2020-01-01T00:00:00Z";

#[test]
fn a_skipped_time_fires_after_the_gap_and_a_repeated_one_once() {
    let nightly = cron("30 2 * * *", "Europe/Berlin");
    assert_eq!(
        slots(&nightly, OLD, "2026-03-28T12:00:00Z", "2026-03-30T12:00:00Z"),
        ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
        "02:30 does not exist on the 29th: 03:00 summer time it is"
    );
    assert_eq!(
        slots(&nightly, OLD, "2026-10-24T12:00:00Z", "2026-10-26T12:00:00Z"),
        ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
        "02:30 comes twice on the 25th: the first one fires"
    );
    let hourly = cron("30 * * * *", "Europe/Berlin");
    assert_eq!(
        slots(&hourly, OLD, "2026-10-25T00:00:00Z", "2026-10-25T03:00:00Z"),
        ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"],
        "an hour is an hour"
    );
}

#[test]
fn a_daily_slot_comes_once_a_day_in_every_zone() {
    // Days that a zone skips altogether (Samoa in 2011) lie before these years.
    for name in jiff::tz::db().available() {
        let Ok(zone) = TimeZone::get(name.as_str()) else {
            continue;
        };
        let Ok(timetable) = Timetable::of(&cron("30 2 * * *", name.as_str()), time(OLD)) else {
            continue;
        };
        let (from, until) = (time("2024-12-31T23:59:59Z"), time("2026-12-31T23:59:59Z"));
        let mut days: BTreeMap<jiff::civil::Date, u32> = BTreeMap::new();
        let mut previous = from;
        for slot in timetable.between(from, until, 2000) {
            assert!(slot > previous, "{}: slots only grow", name.as_str());
            previous = slot;
            *days.entry(slot.to_zoned(zone.clone()).date()).or_default() += 1;
        }
        assert!(
            (729..=731).contains(&days.len()),
            "{}: {} days",
            name.as_str(),
            days.len()
        );
        assert!(days.values().all(|count| *count == 1), "{}", name.as_str());
    }
}

#[test]
fn months_end_where_they_end() {
    let table = [
        (
            "0 0 31 * *",
            "2026-01-31T12:00:00Z",
            vec!["2026-03-31T00:00:00Z", "2026-05-31T00:00:00Z"],
        ),
        (
            "0 0 29 2 *",
            "2026-01-01T00:00:00Z",
            vec!["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"],
        ),
        (
            "0 0 L * *",
            "2026-01-31T12:00:00Z",
            vec!["2026-02-28T00:00:00Z", "2026-03-31T00:00:00Z"],
        ),
        (
            "0 0 * * 7",
            "2026-01-01T00:00:00Z",
            vec!["2026-01-04T00:00:00Z", "2026-01-11T00:00:00Z"],
        ),
        (
            "0 0 * * SUN",
            "2026-01-01T00:00:00Z",
            vec!["2026-01-04T00:00:00Z", "2026-01-11T00:00:00Z"],
        ),
        (
            "*/20 9-10 * * MON-FRI",
            "2026-01-02T09:30:00Z",
            vec!["2026-01-02T09:40:00Z", "2026-01-02T10:00:00Z"],
        ),
        (
            "0 0 13 * 5",
            "2026-01-01T00:00:00Z",
            vec!["2026-01-02T00:00:00Z", "2026-01-09T00:00:00Z"],
        ),
    ];
    for (text, after, expected) in table {
        let first: Vec<String> = slots(&cron(text, "UTC"), OLD, after, "2099-01-01T00:00:00Z");
        assert_eq!(first[..2], expected[..], "{text}");
    }
}

#[test]
fn what_is_no_schedule_is_refused_with_its_reason() {
    let fault = |spec: &PeriodicTaskSpec| Timetable::of(spec, time(OLD)).expect_err("a fault");
    for text in [
        "61 * * * *",
        "* * * * * *",
        "* * * *",
        "a b c d e",
        "0 0 0 * *",
        "@@@ * * * *",
        "*/0 * * * *",
        "5-1 * * * *",
    ] {
        assert_eq!(fault(&cron(text, "UTC")).word(), "BadCron", "{text}");
    }
    assert!(matches!(fault(&cron("0 0 31 2 *", "UTC")), ScheduleFault::Never { .. }));
    assert_eq!(
        fault(&cron("0 0 * * *", "Mars/Olympus")).to_string(),
        r#"spec.timeZone "Mars/Olympus" is not a time zone"#
    );
    assert_eq!(fault(&every("0s")), ScheduleFault::Every);
    assert_eq!(fault(&every("1ms")), ScheduleFault::Every);
    assert_eq!(fault(&spec(&json!({}))), ScheduleFault::Kinds);
    assert_eq!(
        fault(&spec(&json!({"schedule": {"every": "1s", "cron": "* * * * *"}}))),
        ScheduleFault::Kinds
    );
}

#[test]
fn every_counts_from_the_start_or_from_creation() {
    let created = "2026-01-01T00:00:05.7Z";
    assert_eq!(
        slots(&every("10s"), created, OLD, "2026-01-01T00:00:30Z"),
        ["2026-01-01T00:00:15Z", "2026-01-01T00:00:25Z"]
    );
    let started = spec(
        &json!({"schedule": {"every": "10s"}, "startTime": "2026-01-01T00:01:00Z", "endTime": "2026-01-01T00:01:20Z"}),
    );
    assert_eq!(
        slots(&started, created, OLD, "2027-01-01T00:00:00Z"),
        ["2026-01-01T00:01:00Z", "2026-01-01T00:01:10Z", "2026-01-01T00:01:20Z"]
    );
    let old_start = spec(&json!({"schedule": {"every": "1h"}, "startTime": "2025-12-31T00:30:00Z"}));
    assert_eq!(
        slots(&old_start, created, OLD, "2026-01-01T01:00:00Z"),
        ["2026-01-01T00:30:00Z"]
    );
}

#[test]
fn at_fires_once_and_never_before_creation() {
    let once = spec(&json!({"schedule": {"at": "2026-05-01T12:00:00Z"}}));
    let timetable = table(&once, "2026-01-01T00:00:00Z");
    assert_eq!(timetable.next_after(time(OLD)), Some(time("2026-05-01T12:00:00Z")));
    assert_eq!(timetable.next_after(time("2026-05-01T12:00:00Z")), None);
    assert_eq!(table(&once, "2026-06-01T00:00:00Z").next_after(time(OLD)), None);
}

fn policy(missed_runs: MissedRuns, catch_up: u64) -> Policy {
    Policy {
        missed_runs,
        catch_up: Duration::from_secs(catch_up),
        overlap: Overlap::Forbid,
    }
}

fn due_at(policy: &Policy, floor: &str, now: &str) -> (Vec<String>, u64) {
    let Due { fire, missed } = due(&table(&cron("* * * * *", "UTC"), OLD), policy, time(floor), time(now));
    (fire.iter().map(ToString::to_string).collect(), missed)
}

#[test]
fn missed_slots_follow_the_policy() {
    let (floor, now) = ("2026-01-01T10:00:00Z", "2026-01-01T10:04:30Z");
    let minute = |minute: u32| format!("2026-01-01T10:0{minute}:00Z");

    let all = policy(MissedRuns::RunAll, 600);
    assert_eq!(
        due_at(&all, floor, now),
        (vec![minute(1), minute(2), minute(3), minute(4)], 0)
    );
    let all = policy(MissedRuns::RunAll, 150);
    assert_eq!(
        due_at(&all, floor, now),
        (vec![minute(2), minute(3), minute(4)], 1),
        "10:02:00 is at the edge"
    );

    let once = policy(MissedRuns::RunOnce, 600);
    assert_eq!(due_at(&once, floor, now), (vec![minute(4)], 3));
    let once = policy(MissedRuns::RunOnce, 10);
    assert_eq!(due_at(&once, floor, now), (vec![], 4));

    let skip = policy(MissedRuns::Skip, 600);
    assert_eq!(due_at(&skip, floor, now), (vec![], 4));
    assert_eq!(
        due_at(&skip, floor, "2026-01-01T10:04:02Z"),
        (vec![minute(4)], 3),
        "two seconds late is on time"
    );

    for policy in [all, once, skip] {
        assert_eq!(due_at(&policy, floor, "2026-01-01T10:00:59.9Z"), (vec![], 0));
        assert_eq!(due_at(&policy, floor, "2026-01-01T10:01:00Z"), (vec![minute(1)], 0));
    }
}

#[test]
fn a_year_of_seconds_is_no_burden() {
    let timetable = table(&every("1s"), OLD);
    let (floor, now) = (time("2025-01-01T00:00:00Z"), time("2026-01-01T00:00:00Z"));
    let Due { fire, missed } = due(&timetable, &policy(MissedRuns::RunOnce, 600), floor, now);
    assert_eq!((fire, missed), (vec![now], 10_000));
    let Due { fire, missed } = due(&timetable, &policy(MissedRuns::RunAll, 365 * 86_400), floor, now);
    assert_eq!((fire.len(), missed), (MOST_AT_ONCE, 0));
    assert_eq!(fire[0], time("2025-01-01T00:00:01Z"));
}

#[test]
fn forbid_waits_for_the_run_and_allow_does_not() {
    assert!(!may_fire(Overlap::Forbid, true));
    assert!(may_fire(Overlap::Forbid, false));
    assert!(may_fire(Overlap::Allow, true));
}

#[test]
fn wakes_at_the_next_slot_or_at_once_for_a_past_one() {
    let timetable = table(&cron("* * * * *", "UTC"), OLD);
    let now = time("2026-01-01T10:00:30Z");
    assert_eq!(
        next_wake(&timetable, time("2026-01-01T10:00:00Z"), now),
        Some(time("2026-01-01T10:01:00Z"))
    );
    assert_eq!(next_wake(&timetable, time("2026-01-01T09:00:00Z"), now), Some(now));
}

#[test]
fn fingerprint_tells_a_new_schedule_from_a_new_message() {
    let base = cron("0 * * * *", "UTC");
    let other_message = PeriodicTaskSpec {
        task_template: umbel_api::periodictask::TaskTemplate {
            priority: 3,
            ..base.task_template.clone()
        },
        ..base.clone()
    };
    assert_eq!(fingerprint(&base), fingerprint(&other_message));
    assert_ne!(fingerprint(&base), fingerprint(&cron("0 * * * *", "Europe/Berlin")));
    assert_ne!(
        fingerprint(&base),
        fingerprint(&PeriodicTaskSpec {
            suspend: true,
            ..base.clone()
        })
    );
}

const UID: &str = "5a0b6c1e-8d8f-4d0c-9a52-3f6f0a2f7c11";

fn candidate(name: &str, env: &str) -> Candidate {
    Candidate {
        name: name.into(),
        labels: BTreeMap::from([("env".into(), env.into())]),
        is_suspended: false,
    }
}

fn clusters() -> Vec<Candidate> {
    let asleep = Candidate {
        is_suspended: true,
        ..candidate("asleep", "prod")
    };
    vec![
        candidate("us", "prod"),
        candidate("eu", "prod"),
        candidate("lab", "dev"),
        asleep,
    ]
}

fn names(fanout: &umbel_plan::fanout::Fanout) -> Vec<&str> {
    fanout
        .dispatches
        .iter()
        .filter_map(|dispatch| dispatch.cluster.as_deref())
        .collect()
}

#[test]
fn fan_out_by_label_and_by_name() {
    let slot = time("2026-01-01T10:00:00Z");
    let prod = Selector {
        match_labels: BTreeMap::from([("env".into(), "prod".into())]),
        ..Selector::default()
    };
    let by_label = Targets {
        selector: Some(prod),
        ..Targets::default()
    };
    let fanout = dispatches(UID, slot, Some(&by_label), &clusters());
    assert_eq!(
        (names(&fanout), fanout.suspended.as_slice()),
        (vec!["eu", "us"], ["asleep".to_owned()].as_slice())
    );

    let by_name = Targets {
        clusters: vec!["lab".into(), "gone".into()],
        ..Targets::default()
    };
    let fanout = dispatches(UID, slot, Some(&by_name), &clusters());
    assert_eq!(
        (names(&fanout), fanout.unknown.as_slice()),
        (vec!["lab"], ["gone".to_owned()].as_slice())
    );

    let alone = dispatches(UID, slot, None, &clusters());
    assert_eq!((alone.dispatches.len(), &alone.dispatches[0].cluster), (1, &None));
}

#[test]
fn ids_depend_on_object_slot_and_cluster_alone() {
    let slot = time("2026-01-01T10:00:00Z");
    let later = slot + SignedDuration::from_secs(1);
    let targets = Targets {
        clusters: vec!["eu".into(), "us".into()],
        ..Targets::default()
    };
    let ids = |uid: &str, slot, clusters: &[Candidate]| -> Vec<_> {
        dispatches(uid, slot, Some(&targets), clusters)
            .dispatches
            .into_iter()
            .map(|dispatch| dispatch.id)
            .collect()
    };
    let mut reversed = clusters();
    reversed.reverse();
    assert_eq!(ids(UID, slot, &clusters()), ids(UID, slot, &reversed));
    let mut all = ids(UID, slot, &clusters());
    all.extend(ids(UID, later, &clusters()));
    all.extend(ids("another", slot, &clusters()));
    all.extend([
        run_id(UID, slot),
        run_id(UID, later),
        dispatches(UID, slot, None, &[]).dispatches[0].id,
    ]);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 9);
    assert_eq!(run_id(UID, slot).to_string(), run_id(UID, slot).to_string());
}

proptest! {
    /// However the passes fall, RunAll fires each slot within the window exactly once, and nothing is lost uncounted.
    #[test]
    fn passes_deal_with_each_slot_once(step in 1u64..90, pauses in prop::collection::vec(1i64..200, 1..80), kind in 0usize..3) {
        let timetable = table(&every(&format!("{step}s")), "2026-01-01T00:00:00Z");
        let missed_runs = [MissedRuns::RunAll, MissedRuns::RunOnce, MissedRuns::Skip][kind];
        let policy = policy(missed_runs, 100_000);
        let begin = time("2026-01-01T00:00:00Z");
        let (mut now, mut floor) = (begin, begin);
        let (mut fired, mut missed) = (Vec::new(), 0);
        for pause in pauses {
            now += SignedDuration::from_secs(pause);
            loop {
                let answer = due(&timetable, &policy, floor, now);
                missed += answer.missed;
                let full = answer.fire.len() == MOST_AT_ONCE;
                floor = answer.fire.last().copied().unwrap_or(now);
                fired.extend(answer.fire);
                if !full { break }
            }
        }
        prop_assert!(fired.windows(2).all(|pair| pair[0] < pair[1]));
        prop_assert_eq!(fired.len() as u64 + missed, timetable.count(begin, now, u64::MAX));
        if missed_runs == MissedRuns::RunAll {
            prop_assert_eq!(fired, timetable.between(begin, now, usize::MAX));
        }
    }

    #[test]
    fn latest_and_count_agree_with_the_list(minute in 0u8..60, hours in 1i64..100, zone in 0..4usize, offset in 0i64..8760) {
        let zones = ["UTC", "Europe/Berlin", "America/Santiago", "Australia/Lord_Howe"];
        let timetable = table(&cron(&format!("{minute} */5 * * *"), zones[zone]), OLD);
        let after = time("2026-01-01T00:00:00Z") + SignedDuration::from_hours(offset);
        let until = after + SignedDuration::from_hours(hours);
        let list = timetable.between(after, until, 1000);
        prop_assert_eq!(timetable.latest(after, until), list.last().copied());
        prop_assert_eq!(timetable.count(after, until, 1000), list.len() as u64);
    }
}
