//! What is written on busy pods, and when.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::unnecessary_wraps,
    reason = "helpers of tests"
)]

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use umbel_api::workerpool::Protection;
use umbel_plan::shield::{Mark, Seen, Turns, Work, decide, look, metadata};

const T0: Timestamp = Timestamp::constant(1_800_000_000, 0);

fn protection(value: Value) -> Protection {
    serde_json::from_value(value).unwrap()
}

fn ago(seconds: i64) -> Option<Timestamp> {
    Some(T0 - SignedDuration::from_secs(seconds))
}

#[test]
fn marks_follow_work_slowly_and_shields_end() {
    let none = protection(json!({}));
    let some = protection(json!({ "onEviction": ["DisruptionBudget"], "maxHold": "5m" }));
    let seen = |busy, raised, differs_for, since, shielded| Seen {
        busy,
        raised,
        differs_for: Duration::from_secs(differs_for),
        since,
        shielded,
    };
    let table = [
        (&none, seen(true, false, 9, None, false), Mark::Keep),
        (&none, seen(true, false, 10, None, false), Mark::Raise),
        (&none, seen(false, true, 59, None, false), Mark::Keep),
        (&none, seen(false, true, 60, None, false), Mark::Lower),
        (&none, seen(true, true, 0, None, false), Mark::Keep),
        (&some, seen(true, false, 10, None, false), Mark::Raise),
        (&some, seen(true, true, 0, ago(299), true), Mark::Keep),
        (&some, seen(true, true, 0, ago(300), true), Mark::Unshield),
        // It is not shielded again before it was idle.
        (&some, seen(true, true, 0, ago(300), false), Mark::Keep),
        (&some, seen(false, true, 60, ago(300), false), Mark::Lower),
        // The shield ends in time in the minute of idleness, too.
        (&some, seen(false, true, 30, ago(300), true), Mark::Unshield),
        // The pool began to ask for a shield while the pod worked, or ceased to.
        (&some, seen(true, true, 0, None, false), Mark::Raise),
        (&none, seen(true, true, 0, ago(5), true), Mark::Unshield),
        (&some, seen(false, false, 0, None, false), Mark::Keep),
    ];
    for (protection, seen, mark) in table {
        assert_eq!(decide(protection, &seen, T0), mark, "{seen:?} {protection:?}");
    }
    let held = seen(true, true, 0, ago(100), true);
    assert_eq!(look(&some, &held, T0), Some(Duration::from_secs(200)));
    let waits = seen(true, false, 4, None, false);
    assert_eq!(look(&some, &waits, T0), Some(Duration::from_secs(6)));
    assert_eq!(
        look(&some, &seen(false, true, 20, ago(290), true), T0),
        Some(Duration::from_secs(10))
    );
    assert_eq!(look(&none, &seen(true, true, 0, None, false), T0), None);
}

#[test]
fn short_tasks_are_no_work_that_is_marked() {
    let begin = Instant::now();
    let at = |second: u64| begin + Duration::from_secs(second);
    let seconds = Duration::from_secs;
    // One after the other, none longer than eight seconds.
    let mut work = Work::default();
    for second in 0..600 {
        let id = (second / 8).to_string();
        let (busy, age) = work.see([id.as_str()], false, at(second));
        assert!(busy && age < seconds(10), "{second}: {age:?}");
    }
    // A long one among them, then short ones again.
    let (busy, age) = work.see(["long", "a"], false, at(600));
    assert_eq!((busy, age), (true, Duration::ZERO));
    assert_eq!(work.see(["long", "b"], false, at(610)), (true, seconds(10)));
    assert_eq!(work.see(["long"], true, at(700)), (true, seconds(100)));
    assert_eq!(work.see(["c"], true, at(705)), (false, Duration::ZERO));
    assert_eq!(work.see(["d"], true, at(765)), (false, seconds(60)), "the mark goes");
    assert_eq!(work.see(["d"], false, at(766)), (true, seconds(1)));
    assert!(!work.see([], false, at(767)).0);
}

#[test]
fn ten_marks_in_any_second() {
    let begin = Instant::now();
    let mut turns = Turns::new(begin);
    let mut taken = Vec::new();
    for milli in 0..30_000 {
        let now = begin + Duration::from_millis(milli);
        // A rest in the middle saves up no more than a few.
        if !(10_000..15_000).contains(&milli) && turns.take(now).is_ok() {
            taken.push(milli);
        }
    }
    assert!(taken.len() > 160, "{}", taken.len());
    let most = taken
        .iter()
        .map(|from| taken.iter().filter(|at| (*from..from + 1000).contains(*at)).count())
        .max();
    assert!(most.unwrap() <= 10, "{most:?}");
    let mut fresh = Turns::new(begin);
    let few: Vec<bool> = (0..6).map(|_| fresh.take(begin).is_ok()).collect();
    assert_eq!(few, [true, true, true, true, false, false]);
}

#[test]
fn each_shield_writes_its_mark_and_all_are_taken_off() {
    let labels = |value: &Value| value["labels"]["umbel.dev/busy"].clone();
    let notes = |value: &Value| {
        let note = |name: &str| value["annotations"].get(name).cloned();
        [
            note("cluster-autoscaler.kubernetes.io/safe-to-evict"),
            note("karpenter.sh/do-not-disrupt"),
            note("controller.kubernetes.io/pod-deletion-cost"),
            note("umbel.dev/busy-since"),
        ]
    };
    let since = Some(json!("2027-01-15T08:00:00Z"));
    let table = [
        (json!([]), Value::Null, [None, None, Some(json!("1000")), None]),
        (
            json!(["DisruptionBudget"]),
            json!("true"),
            [Some(Value::Null), Some(Value::Null), Some(json!("1000")), since.clone()],
        ),
        (
            json!(["SafeToEvict", "DoNotDisrupt"]),
            Value::Null,
            [Some(json!("false")), Some(json!("true")), Some(json!("1000")), since],
        ),
    ];
    for (shields, label, annotations) in table {
        let asked = protection(json!({ "onEviction": shields }));
        let written = metadata(Mark::Raise, &asked, T0).unwrap();
        assert_eq!((labels(&written), notes(&written)), (label, annotations), "{shields}");
        let gone = [
            Some(Value::Null),
            Some(Value::Null),
            Some(json!("0")),
            Some(Value::Null),
        ];
        assert_eq!(notes(&metadata(Mark::Lower, &asked, T0).unwrap()), gone);
        assert_eq!(
            notes(&metadata(Mark::Unshield, &asked, T0).unwrap()),
            [Some(Value::Null), Some(Value::Null), None, None]
        );
        assert_eq!(metadata(Mark::Keep, &asked, T0), None);
    }
}
