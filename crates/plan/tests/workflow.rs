//! How runs go on: steps, waves, bounds.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};
use umbel_api::periodictask::TaskTemplate;
use umbel_plan::fanout::{Candidate, Occasion};
use umbel_plan::workflow::{Plan, State, StepFault, Verdict, dependencies, steps};

fn template(patch: &Value) -> TaskTemplate {
    let mut whole = json!({ "queueRef": { "name": "q" } });
    for (key, value) in patch.as_object().expect("an object") {
        whole[key] = value.clone();
    }
    serde_json::from_value(whole).expect("a template")
}

fn step(name: &str, after: Option<&[&str]>) -> Value {
    let mut step = json!({ "name": name, "task": "t" });
    if let Some(after) = after {
        step["dependsOn"] = json!(after);
    }
    step
}

fn clusters(names: &[(&str, &str)]) -> Vec<Candidate> {
    let one = |(name, ring): &(&str, &str)| Candidate {
        name: (*name).into(),
        labels: BTreeMap::from([("ring".into(), (*ring).into())]),
        is_suspended: false,
        is_unreachable: false,
    };
    names.iter().map(one).collect()
}

/// A run that is carried out by hand.
struct Run {
    plan: Plan,
    states: Vec<Vec<State>>,
    now: Timestamp,
}

impl Run {
    fn new(patch: &Value, names: &[(&str, &str)], given_up: &[&str]) -> Run {
        let all = clusters(names);
        let given_up: BTreeSet<String> = given_up.iter().map(ToString::to_string).collect();
        let plan = Plan::new(template(patch), &all.iter().collect::<Vec<_>>(), &given_up).expect("a plan");
        Run {
            states: vec![vec![State::Later; plan.after.len()]; plan.members.len()],
            plan,
            now: "2026-01-01T00:00:00Z".parse().expect("a time"),
        }
    }

    fn look(&mut self) -> Verdict {
        let verdict = self.plan.next(&self.states, self.now);
        for (member, step) in &verdict.start {
            assert_eq!(self.states[*member][*step], State::Later, "sent once");
            self.states[*member][*step] = State::Open(self.now);
        }
        for (member, step) in &verdict.skip {
            assert_eq!(self.states[*member][*step], State::Later, "dropped once");
            self.states[*member][*step] = State::Skipped;
        }
        let again = self.plan.next(&self.states, self.now);
        assert!(
            again.start.is_empty() && again.skip.is_empty(),
            "nothing new without an end: {again:?}"
        );
        assert_eq!(again.clusters, verdict.clusters);
        verdict
    }

    /// Names of clusters with tasks under way.
    fn open(&self) -> Vec<String> {
        let open = |member: &usize| self.states[*member].iter().any(|state| matches!(state, State::Open(_)));
        (0..self.states.len())
            .filter(open)
            .map(|member| self.name(member))
            .collect()
    }

    fn name(&self, member: usize) -> String {
        self.plan.members[member].cluster.clone().unwrap_or_default()
    }

    fn end(&mut self, cluster: &str, is_good: bool) {
        let member = (0..self.states.len())
            .find(|member| self.name(*member) == cluster)
            .expect("a cluster");
        for state in &mut self.states[member] {
            if let State::Open(sent) = *state {
                let (sent, ended) = (sent, self.now);
                *state = if is_good {
                    State::Succeeded { sent, ended }
                } else {
                    State::Failed
                };
            }
        }
    }

    fn wait(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }
}

#[test]
fn steps_follow_each_other_or_what_they_name() {
    let places = |all: &[Value]| dependencies(&steps(&template(&json!({ "steps": all }))));
    assert_eq!(places(&[step("a", None), step("b", None)]), Ok(vec![vec![], vec![0]]));
    assert_eq!(
        places(&[
            step("d", Some(&["b", "c"])),
            step("b", Some(&["a"])),
            step("c", Some(&["a"])),
            step("a", Some(&[]))
        ]),
        Ok(vec![vec![1, 2], vec![3], vec![3], vec![]])
    );
    assert_eq!(
        places(&[
            step("a", Some(&["c"])),
            step("b", None),
            step("c", Some(&["b"])),
            step("z", Some(&[]))
        ]),
        Err(StepFault::Cycle("a → b → c → a".into()))
    );
    assert_eq!(
        places(&[step("a", Some(&["a"]))]),
        Err(StepFault::Cycle("a → a".into()))
    );
    let missing = places(&[step("a", Some(&["gone"]))]);
    assert_eq!(
        missing.expect_err("no such step").to_string(),
        "spec.taskTemplate.steps: a depends on gone, and there is no such step"
    );
}

#[test]
fn a_cluster_that_fails_does_not_touch_the_others() {
    let all = json!({ "steps": [step("apply", None), step("wait", None)], "targets": { "selector": {} } });
    let mut run = Run::new(&all, &[("eu", ""), ("us", "")], &[]);
    assert_eq!(run.look().start, [(0, 0), (1, 0)]);
    run.end("eu", false);
    run.end("us", true);
    let verdict = run.look();
    assert_eq!((verdict.start, verdict.skip), (vec![(1, 1)], vec![(0, 1)]));
    run.end("us", true);
    let progress = run.look().clusters;
    assert_eq!((progress.total, progress.succeeded, progress.failed), (2, 1, 1));
    assert_eq!(progress.failed_names, ["eu"]);
}

#[test]
fn groups_begin_one_after_the_other_and_stop_at_the_bound() {
    let group = |name: &str| json!({ "name": name, "selector": { "matchLabels": { "ring": name } } });
    let waves = json!({
        "task": "t",
        "targets": { "selector": {}, "rollout": {
            "type": "ProgressivePerGroup", "groups": [group("canary"), group("region")],
            "maxConcurrency": 2, "maxFailures": 1, "minSuccessTime": "60s",
        } },
    });
    let names = [
        ("a", "region"),
        ("b", "canary"),
        ("c", "region"),
        ("d", "other"),
        ("e", "region"),
    ];
    let mut run = Run::new(&waves, &names, &[]);
    run.look();
    assert_eq!(run.open(), ["b"], "the canary alone");
    run.end("b", true);
    assert_eq!(run.look().clusters.succeeded, 1);
    assert_eq!(run.open(), Vec::<String>::new(), "it must hold for a minute");
    run.wait(60);
    run.look();
    assert_eq!(run.open(), ["a", "c"], "two at a time");
    run.end("a", false);
    run.look();
    assert_eq!(run.open(), ["c", "e"], "one failure is within the bound");
    run.end("c", false);
    let verdict = run.look();
    assert!(verdict.is_halted);
    assert_eq!(run.open(), ["e"], "what has begun goes on");
    run.end("e", true);
    run.wait(60);
    let progress = run.look().clusters;
    assert_eq!(
        (progress.succeeded, progress.failed, progress.skipped, progress.pending),
        (2, 2, 1, 0)
    );
    assert_eq!(progress.failed_names, ["a", "c"]);
}

#[test]
fn a_cluster_that_takes_too_long_or_was_given_up_counts_as_failed() {
    let waves = json!({
        "steps": [step("apply", None), step("wait", None)],
        "targets": { "selector": {}, "rollout": { "type": "Progressive", "maxConcurrency": 1, "maxFailures": "100%", "progressDeadline": "10s" } },
    });
    let mut run = Run::new(&waves, &[("a", ""), ("b", ""), ("c", "")], &["c"]);
    let verdict = run.look();
    assert_eq!((run.open(), verdict.clusters.failed), (vec!["a".to_owned()], 1));
    run.wait(11);
    let verdict = run.look();
    assert_eq!(verdict.clusters.failed_names, ["a", "c"]);
    assert_eq!(run.open(), ["a", "b"], "it makes room");
    // What ends later changes nothing of that.
    run.end("a", true);
    assert_eq!(run.look().clusters.failed_names, ["a", "c"]);
}

#[test]
fn one_task_is_plain_and_keeps_the_ids_of_before() {
    let run = Run::new(&json!({ "task": "t" }), &[], &[]);
    assert!(run.plan.is_plain());
    let occasion = Occasion::Slot(run.now);
    assert_eq!(
        run.plan.id("uid", occasion, (0, 0)),
        occasion.id("uid", "", None).to_string()
    );
    let text = serde_json::to_string(&run.plan).expect("text");
    assert_eq!(serde_json::from_str::<Plan>(&text).expect("a plan"), run.plan);
}

proptest! {
    /// Whatever fails and however long it takes: each task is sent or dropped once, after what it depends on, never more
    /// clusters at a time than allowed, none begins after too many have failed, and every run ends.
    #[test]
    fn every_run_ends_within_its_bounds(
        count in 1usize..8,
        shape in prop::collection::vec(prop::collection::vec(0usize..4, 0..3), 1..5),
        (most, failures, soak, deadline) in (1usize..4, 0usize..4, 0i64..20, prop::option::of(5i64..40)),
        rings in prop::collection::vec(0usize..3, 8),
        (by_group, has_bounds) in (any::<bool>(), any::<bool>()),
        luck in prop::collection::vec((any::<bool>(), any::<u16>()), 200),
    ) {
        // A step depends on earlier ones only, so there is no cycle.
        let all: Vec<Value> = shape.iter().enumerate().map(|(at, after)| {
            let names: BTreeSet<String> = after.iter().filter(|one| **one < at).map(|one| format!("s{one}")).collect();
            json!({ "name": format!("s{at}"), "task": "t", "dependsOn": names })
        }).collect();
        let names: Vec<(String, String)> = (0..count).map(|at| (format!("c{at}"), format!("r{}", rings[at]))).collect();
        let names: Vec<(&str, &str)> = names.iter().map(|(name, ring)| (&**name, &**ring)).collect();
        let mut targets = json!({ "selector": {} });
        if has_bounds {
            let groups = ["r0", "r1"].map(|ring| json!({ "name": ring, "selector": { "matchLabels": { "ring": ring } } }));
            targets["rollout"] = json!({
                "type": if by_group { "ProgressivePerGroup" } else { "Progressive" },
                "maxConcurrency": most, "maxFailures": failures, "minSuccessTime": format!("{soak}s"),
                "groups": groups,
            });
            if let Some(deadline) = deadline {
                targets["rollout"]["progressDeadline"] = json!(format!("{deadline}s"));
            }
        }
        let mut run = Run::new(&json!({ "steps": all, "targets": targets }), &names, &[]);
        for (is_good, dice) in luck {
            let before: Vec<bool> = run.states.iter().map(|row| row.iter().all(|state| *state == State::Later)).collect();
            let failed = |run: &Run| run.plan.next(&run.states, run.now).clusters.failed as usize;
            let had_failed = failed(&run);
            let verdict = run.look();
            for (member, step) in &verdict.start {
                let has_succeeded = |one: &usize| matches!(run.states[*member][*one], State::Succeeded { .. });
                prop_assert!(run.plan.after[*step].iter().all(has_succeeded), "before what it depends on");
                prop_assert!(!has_bounds || !before[*member] || had_failed <= failures, "none begins beyond the bound");
            }
            if has_bounds {
                prop_assert!(verdict.clusters.running as usize <= most);
            }
            let open: Vec<(usize, usize)> = run.plan.all().filter(|(member, step)| matches!(run.states[*member][*step], State::Open(_))).collect();
            if open.is_empty() {
                run.wait(60); // Only time is waited for.
                continue;
            }
            let (member, step) = open[usize::from(dice) % open.len()];
            run.wait(i64::from(dice % 7));
            if let State::Open(sent) = run.states[member][step] {
                run.states[member][step] = if is_good || dice % 3 > 0 { State::Succeeded { sent, ended: run.now } } else { State::Failed };
            }
        }
        run.wait(3600);
        let progress = run.look().clusters;
        prop_assert_eq!((progress.running, progress.pending), (0, 0), "{:?}", progress);
        prop_assert_eq!(progress.succeeded + progress.failed + progress.skipped, progress.total);
        let is_left = |state: &State| matches!(state, State::Later | State::Open(_));
        prop_assert!(!run.states.iter().flatten().any(is_left), "nothing is left");
    }
}
