//! Slots of schedules: clock changes, odd calendars, missed slots, and the messages of a slot.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use proptest::prelude::*;
use serde_json::{Value, json};
use umbel_api::{
    PeriodicTaskSpec,
    periodictask::{MissedRuns, Overlap, Targets, Unreachable},
    refs::Selector,
};
use umbel_plan::{
    cron::{ScheduleFault, Timetable, fingerprint},
    fanout::{Candidate, Occasion, choose},
    periodic::{Due, Jitter, MOST_AT_ONCE, Policy, Verdict, due, next_wake, overlap},
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
fn p15_months_end_where_they_end() {
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
fn p14_what_is_no_schedule_is_refused_with_its_reason() {
    let fault = |spec: &PeriodicTaskSpec| Timetable::of(spec, time(OLD)).expect_err("a fault");
    for text in [
        "61 * * * *",
        "* * * * * * *",
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
        jitter: Jitter::default(),
    }
}

fn due_at(policy: &Policy, floor: &str, now: &str) -> (Vec<String>, u64) {
    let Due { fire, missed } = due(
        &table(&cron("* * * * *", "UTC"), OLD),
        policy,
        time(floor),
        time(now),
        None,
    );
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
    let Due { fire, missed } = due(&timetable, &policy(MissedRuns::RunOnce, 600), floor, now, None);
    assert_eq!((fire, missed), (vec![now], 10_000));
    let Due { fire, missed } = due(&timetable, &policy(MissedRuns::RunAll, 365 * 86_400), floor, now, None);
    assert_eq!((fire.len(), missed), (MOST_AT_ONCE, 0));
    assert_eq!(fire[0], time("2025-01-01T00:00:01Z"));
}

#[test]
fn each_overlap_policy_has_its_way_with_a_run_that_goes_on() {
    for policy in [Overlap::Forbid, Overlap::Allow, Overlap::BufferOne, Overlap::Replace] {
        assert_eq!(
            overlap(policy, false, false),
            Verdict::Fire,
            "{policy:?}: nothing goes on"
        );
    }
    for (policy, is_kept, verdict) in [
        (Overlap::Forbid, false, Verdict::Skip),
        (Overlap::Allow, false, Verdict::Fire),
        (Overlap::BufferOne, false, Verdict::Keep),
        (Overlap::BufferOne, true, Verdict::Skip),
        (Overlap::Replace, false, Verdict::Replace),
    ] {
        assert_eq!(overlap(policy, true, is_kept), verdict, "{policy:?}");
    }
}

#[test]
fn after_the_last_run_slots_are_neither_fired_nor_missed() {
    let timetable = table(&cron("* * * * *", "UTC"), OLD);
    let (floor, now) = (time("2026-01-01T10:00:00Z"), time("2026-01-01T10:04:30Z"));
    let all = policy(MissedRuns::RunAll, 600);
    assert_eq!(due(&timetable, &all, floor, now, Some(2)).fire.len(), 2);
    assert_eq!(due(&timetable, &all, floor, now, Some(0)), Due::default());
    let once = policy(MissedRuns::RunOnce, 600);
    assert_eq!(due(&timetable, &once, floor, now, Some(1)).fire.len(), 1);
    assert_eq!(due(&timetable, &once, floor, now, Some(0)), Due::default());
}

#[test]
fn the_creation_is_a_slot_where_it_is_asked_for() {
    let created = "2026-01-01T10:00:07.9Z";
    for (schedule, second) in [
        (json!({"cron": "0 * * * *"}), "2026-01-01T11:00:00Z"),
        (json!({"every": "10s"}), "2026-01-01T10:00:17Z"),
        (json!({"at": "2026-05-01T12:00:00Z"}), "2026-05-01T12:00:00Z"),
    ] {
        let asked = spec(&json!({"schedule": schedule, "runOnCreate": true}));
        let timetable = table(&asked, created);
        let begin = time("2026-01-01T00:00:00Z");
        let slots = timetable.between(begin, Timestamp::MAX, 2);
        assert_eq!(slots, [time("2026-01-01T10:00:07Z"), time(second)], "{schedule}");
        assert_eq!(timetable.count(begin, time(second), 10), 2, "{schedule}");
        assert_eq!(
            timetable.latest(begin, time("2026-01-01T10:00:08Z")),
            Some(time("2026-01-01T10:00:07Z"))
        );
        assert_eq!(timetable.next_after(time("2026-01-01T10:00:07Z")), Some(time(second)));
    }
    let later = spec(&json!({"schedule": {"every": "1h"}, "runOnCreate": true, "startTime": "2026-02-01T00:00:00Z"}));
    let slots = table(&later, created).between(time(OLD), Timestamp::MAX, 2);
    assert_eq!(slots, [time("2026-02-01T00:00:00Z"), time("2026-02-01T01:00:00Z")]);
}

#[test]
fn a_clock_change_skips_and_repeats_as_it_is_told() {
    let nightly =
        |dst: Value| spec(&json!({"schedule": {"cron": "30 2 * * *"}, "timeZone": "Europe/Berlin", "dst": dst}));
    let skipping = nightly(json!({"skipped": "Skip"}));
    assert_eq!(
        slots(&skipping, OLD, "2026-03-28T00:00:00Z", "2026-03-30T12:00:00Z"),
        ["2026-03-28T01:30:00Z", "2026-03-30T00:30:00Z"]
    );
    let twice = nightly(json!({"repeated": "Twice"}));
    assert_eq!(
        slots(&twice, OLD, "2026-10-24T12:00:00Z", "2026-10-26T12:00:00Z"),
        ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-26T01:30:00Z"]
    );
    let timetable = table(&twice, OLD);
    let between = time("2026-10-25T01:00:00Z");
    assert_eq!(
        timetable.next_after(between),
        Some(time("2026-10-25T01:30:00Z")),
        "the first pass is over"
    );
}

/// Every zone that has rules of its own, around each of its clock changes: what a day's times come to by plain reckoning.
/// `UMBEL_TEST_ALL_YEARS=1` begins in 1970 instead of 2018.
#[test]
fn p06_every_zone_has_each_time_of_day_once() {
    let first: i16 = if std::env::var_os("UMBEL_TEST_ALL_YEARS").is_some() {
        1970
    } else {
        2018
    };
    let begin = jiff::civil::date(first, 1, 1)
        .to_zoned(TimeZone::UTC)
        .expect("a time")
        .timestamp();
    let end = time("2038-01-01T00:00:00Z");
    let (mut seen, mut zones, mut changes) = (std::collections::BTreeSet::new(), 0, 0);
    for name in jiff::tz::db().available() {
        let Ok(zone) = TimeZone::get(name.as_str()) else {
            continue;
        };
        let all: Vec<Timestamp> = zone
            .following(begin)
            .map(|change| change.timestamp())
            .take_while(|change| *change < end)
            .collect();
        let offsets: Vec<_> = all.iter().map(|at| (*at, zone.to_offset(*at))).collect();
        if !seen.insert(format!("{} {offsets:?}", zone.to_offset(begin))) {
            continue; // Another name of one that was seen.
        }
        zones += 1;
        for change in all {
            changes += 1;
            // What runs every hour follows elapsed time: whenever the clock shows that minute.
            if change >= time("2020-01-01T00:00:00Z") {
                let (from, to) = (
                    change - SignedDuration::from_hours(4),
                    change + SignedDuration::from_hours(4),
                );
                let minutes = std::iter::successors(Some(from), |at| Some(*at + SignedDuration::from_mins(1)));
                let shows = |at: &Timestamp| at.to_zoned(zone.clone()).minute() == 15;
                let expected: Vec<Timestamp> = minutes.skip(1).take_while(|at| *at <= to).filter(shows).collect();
                let counted = table(&cron("15 * * * *", name.as_str()), OLD).between(from, to, 100);
                assert_eq!(counted, expected, "each hour, {} around {change}", name.as_str());
            }
            let (from, to) = (
                change - SignedDuration::from_hours(50),
                change + SignedDuration::from_hours(50),
            );
            for (hour, minute) in [(0, 0), (2, 30), (23, 59)] {
                let text = format!("{minute} {hour} * * *");
                let mut expected = [Vec::new(), Vec::new()];
                let mut day = from.to_zoned(zone.clone()).date().yesterday().expect("a day");
                while day <= to.to_zoned(zone.clone()).date() {
                    let at = zone.to_ambiguous_zoned(day.at(hour, minute, 0, 0));
                    let (early, late) = match at.offset() {
                        jiff::tz::AmbiguousOffset::Unambiguous { .. } => {
                            let at = at.unambiguous().expect("one").timestamp();
                            (at, at)
                        }
                        // The change itself is the first valid time; a day that is left out as a whole has none.
                        jiff::tz::AmbiguousOffset::Gap { .. } => {
                            let is_gap = |hour, minute| {
                                let at = zone.to_ambiguous_zoned(day.at(hour, minute, 0, 0)).offset();
                                matches!(at, jiff::tz::AmbiguousOffset::Gap { .. })
                            };
                            if is_gap(0, 0) && is_gap(12, 0) && is_gap(23, 59) {
                                day = day.tomorrow().expect("a day");
                                continue;
                            }
                            let moved = at.later().expect("after").timestamp();
                            let gap = zone
                                .preceding(moved + SignedDuration::from_hours(3))
                                .next()
                                .expect("it");
                            (gap.timestamp(), gap.timestamp())
                        }
                        jiff::tz::AmbiguousOffset::Fold { .. } => (
                            at.clone().earlier().expect("the first").timestamp(),
                            at.later().expect("the second").timestamp(),
                        ),
                    };
                    expected[0].push(early);
                    expected[1].push(early);
                    expected[1].push(late);
                    day = day.tomorrow().expect("a day");
                }
                for (repeated, mut expected) in ["Once", "Twice"].into_iter().zip(expected) {
                    expected.sort();
                    expected.dedup();
                    expected.retain(|at| *at > from && *at <= to);
                    let nightly = spec(&json!({
                        "schedule": {"cron": text}, "timeZone": name.as_str(), "dst": {"repeated": repeated},
                    }));
                    let counted = table(&nightly, "1960-01-01T00:00:00Z").between(from, to, 100);
                    assert_eq!(
                        counted,
                        expected,
                        "{text} {} around {change}, {repeated}",
                        name.as_str()
                    );
                }
            }
        }
    }
    assert!(zones > 80 && changes > 1500, "{zones} zones, {changes} changes");
}

/// Instants that Celery's own `solar` computes with an ephemeris, at six places and over 46 years.
#[test]
fn the_sun_does_what_celerys_does() {
    let expected = include_str!("data/solar.txt");
    for line in expected.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [latitude, longitude, event, after, expected] = words[..] else {
            panic!("{line}")
        };
        let number = |text: &str| text.parse::<f64>().expect("a number");
        let solar = spec(&json!({"schedule": {"solar": {
            "event": event, "latitude": number(latitude), "longitude": number(longitude),
        }}}));
        let found = table(&solar, "1990-01-01T00:00:00Z")
            .next_after(time(after))
            .expect("it comes");
        let off = found.duration_since(time(expected)).as_secs().abs();
        assert!(off <= 60, "{line}: {found}");
    }
    assert_eq!(expected.lines().count(), 322);
    let never = spec(&json!({"schedule": {"solar": {"event": "sunrise", "latitude": 91, "longitude": 0}}}));
    assert_eq!(
        Timetable::of(&never, time(OLD)).expect_err("no place").word(),
        "BadSchedule"
    );
    let pole = spec(&json!({"schedule": {"solar": {"event": "sunrise", "latitude": 90, "longitude": 0}}}));
    assert!(Timetable::of(&pole, time(OLD)).is_ok(), "once a year");
}

#[test]
fn six_fields_begin_with_the_second_and_nicknames_are_known() {
    assert_eq!(
        slots(
            &cron("*/20 59 23 * * *", "UTC"),
            OLD,
            "2026-01-01T23:58:00Z",
            "2026-01-02T00:00:00Z"
        ),
        ["2026-01-01T23:59:00Z", "2026-01-01T23:59:20Z", "2026-01-01T23:59:40Z"]
    );
    for (text, next) in [
        ("@yearly", "2027-01-01T00:00:00Z"),
        ("@monthly", "2026-02-01T00:00:00Z"),
        ("@weekly", "2026-01-18T00:00:00Z"),
        ("@daily", "2026-01-14T00:00:00Z"),
        ("@hourly", "2026-01-13T11:00:00Z"),
        ("0 0 L * *", "2026-01-31T00:00:00Z"),
        ("0 0 17W * *", "2026-01-16T00:00:00Z"),
        ("0 0 * * FRI#3", "2026-01-16T00:00:00Z"),
        ("0 0 * * MON#L", "2026-01-26T00:00:00Z"),
        ("0 0 1 FEB-MAR *", "2026-02-01T00:00:00Z"),
        ("0 12 * * 7", "2026-01-18T12:00:00Z"),
        ("0 0 29 2 *", "2028-02-29T00:00:00Z"),
    ] {
        let found = table(&cron(text, "UTC"), OLD).next_after(time("2026-01-13T10:30:00Z"));
        assert_eq!(found, Some(time(next)), "{text}");
    }
}

proptest! {
    /// The amount is the slot's own, within bounds, and never passes the next slot.
    #[test]
    fn jitter_keeps_the_order_and_deals_with_each_slot_once(
        step in 1u64..90, most in 0u64..200, seed: u64, pauses in prop::collection::vec(1i64..50, 1..60)
    ) {
        let timetable = table(&every(&format!("{step}s")), "2026-01-01T00:00:00Z");
        let jitter = Jitter { most: Duration::from_secs(most), seed };
        let policy = Policy { jitter, ..policy(MissedRuns::RunAll, 100_000) };
        let begin = time("2026-01-01T00:00:00Z");
        let (mut now, mut floor, mut fired) = (begin, begin, Vec::new());
        for pause in pauses {
            now += SignedDuration::from_secs(pause);
            loop {
                let answer = due(&timetable, &policy, floor, now, None);
                prop_assert_eq!(answer.missed, 0);
                let is_full = answer.fire.len() == MOST_AT_ONCE;
                for slot in &answer.fire {
                    let at = jitter.due(&timetable, *slot);
                    prop_assert!(at >= *slot && at <= now && at <= *slot + SignedDuration::from_secs(most.cast_signed()));
                    prop_assert!(timetable.next_after(*slot).is_none_or(|next| at < next));
                }
                floor = answer.fire.last().copied().unwrap_or(floor);
                fired.extend(answer.fire);
                if !is_full { break }
            }
            let wake = next_wake(&timetable, &policy, floor, now).expect("there is always a next");
            prop_assert!(wake > now, "nothing is left to fire at {now}");
        }
        prop_assert_eq!(&fired, &timetable.between(begin, fired.last().copied().unwrap_or(begin), usize::MAX));
    }
}

#[test]
fn wakes_at_the_next_slot_or_at_once_for_a_past_one() {
    let timetable = table(&cron("* * * * *", "UTC"), OLD);
    let now = time("2026-01-01T10:00:30Z");
    assert_eq!(
        next_wake(
            &timetable,
            &policy(MissedRuns::RunOnce, 600),
            time("2026-01-01T10:00:00Z"),
            now
        ),
        Some(time("2026-01-01T10:01:00Z"))
    );
    let past = time("2026-01-01T09:00:00Z");
    assert_eq!(
        next_wake(&timetable, &policy(MissedRuns::RunOnce, 600), past, now),
        Some(now)
    );
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
    assert_eq!(fingerprint(&base, false), fingerprint(&other_message, false));
    assert_ne!(
        fingerprint(&base, false),
        fingerprint(&cron("0 * * * *", "Europe/Berlin"), false)
    );
    assert_ne!(
        fingerprint(&base, false),
        fingerprint(
            &PeriodicTaskSpec {
                suspend: true,
                ..base.clone()
            },
            false
        )
    );
    assert_ne!(fingerprint(&base, false), fingerprint(&base, true));
}

const UID: &str = "5a0b6c1e-8d8f-4d0c-9a52-3f6f0a2f7c11";

fn candidate(name: &str, env: &str) -> Candidate {
    Candidate {
        name: name.into(),
        labels: BTreeMap::from([("env".into(), env.into())]),
        is_suspended: false,
        is_unreachable: false,
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

#[test]
fn clusters_are_chosen_by_label_and_by_name() {
    let prod = Selector {
        match_labels: BTreeMap::from([("env".into(), "prod".into())]),
        ..Selector::default()
    };
    let by_label = Targets {
        selector: Some(prod),
        ..Targets::default()
    };
    let all = clusters();
    let choice = choose(&by_label, &all);
    let names = |choice: &umbel_plan::fanout::Choice<'_>| -> Vec<String> {
        choice.chosen.iter().map(|one| one.name.clone()).collect()
    };
    assert_eq!(names(&choice), ["eu", "us"]);
    assert_eq!(choice.suspended, ["asleep"]);

    let by_name = Targets {
        clusters: vec!["lab".into(), "gone".into()],
        ..Targets::default()
    };
    let choice = choose(&by_name, &all);
    assert_eq!(names(&choice), ["lab"]);
    assert_eq!(choice.unknown, ["gone"]);

    // What is not reachable waits, is left out, or is given up.
    let mut cut = clusters();
    cut[0].is_unreachable = true;
    for (unreachable, chosen, left_out, given_up) in [
        (Unreachable::Wait, vec!["eu", "us"], vec![], vec![]),
        (Unreachable::Skip, vec!["eu"], vec!["us"], vec![]),
        (Unreachable::Fail, vec!["eu", "us"], vec![], vec!["us"]),
    ] {
        let targets = Targets {
            unreachable,
            ..by_label.clone()
        };
        let choice = choose(&targets, &cut);
        assert_eq!(names(&choice), chosen, "{unreachable:?}");
        assert_eq!(choice.unreachable, left_out, "{unreachable:?}");
        assert_eq!(choice.given_up.iter().collect::<Vec<_>>(), given_up, "{unreachable:?}");
    }
}

#[test]
fn ids_depend_on_object_slot_cluster_and_step_alone() {
    let slot = time("2026-01-01T10:00:00Z");
    let later = slot + SignedDuration::from_secs(1);
    let mut all = Vec::new();
    for uid in [UID, "another"] {
        for occasion in [Occasion::Slot(slot), Occasion::Slot(later), Occasion::Request(slot)] {
            all.push(occasion.run_id(uid));
            for cluster in ["", "eu", "us"] {
                for step in [None, Some("apply"), Some("wait")] {
                    all.push(occasion.id(uid, cluster, step));
                    assert_eq!(occasion.id(uid, cluster, step), occasion.id(uid, cluster, step));
                }
            }
        }
    }
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count);
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
                let answer = due(&timetable, &policy, floor, now, None);
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
