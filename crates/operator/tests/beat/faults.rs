//! What a scheduler must stand, each injected: clocks, downtime, edits, refusals.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use redis::AsyncCommands;
use serde_json::{Value, json};
use umbel_api::periodictask::Outcome;
use umbel_protocol::message::TaskMessage;
use umbel_testkit::{Process, Redis, TempDir, eventually, eventually_some, free_port};

use crate::common::{LONG, NAMESPACE, Stage};
use crate::{Beat, assert_each_once, order, sent_at};

/// The broker forgets that a slot was sent, and its result is still there: it is sent again, and nobody runs it twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p04_a_slot_whose_mark_was_lost_after_it_was_run_has_no_second_effect() {
    let beat = Beat::start().await;
    let operator = beat.stage.operator(&[], &[]);
    let mut worker = beat.worker();
    beat.schedule(
        "once",
        json!({ "every": "1h" }),
        json!({ "runOnCreate": true, "task": "umbel.sleep", "args": [0.0] }),
    )
    .await;
    let ended = eventually_some(LONG, "it has run", async || {
        beat.status("once").await.recent.first().cloned()
    })
    .await;
    let task = beat.get("once").await;
    let uid = task.uid().expect("a uid");
    let id = umbel_plan::fanout::Occasion::Slot(ended.slot.0)
        .id(&uid, "", None)
        .to_string();
    let mut connection = beat.stage.redis.connection().await;
    let key = format!("celery-task-meta-{id}");
    let before: String = connection.get(&key).await.expect("a result");
    drop(operator);
    worker.signal(umbel_testkit::Signal::Term);
    worker.wait(LONG).await;

    let marks: Vec<String> = connection.keys("umbel:slot:*").await.expect("an answer");
    let _: () = connection.del(marks).await.expect("forgotten");
    let _operator = beat.stage.operator(&[], &[]);
    beat.sends("once", 1, LONG).await;
    let again = beat.sent("once").await;
    assert_eq!(
        again.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(),
        [id.as_str()],
        "the same id"
    );
    let mut worker = beat.worker();
    worker.says(LONG, "had succeeded before").await;
    eventually(LONG, "nothing is left of it", async || {
        let (waiting, held): (usize, usize) = redis::pipe()
            .llen("beats")
            .hlen("umbel:unacked")
            .query_async(&mut connection)
            .await
            .expect("an answer");
        waiting + held == 0
    })
    .await;
    let after: String = connection.get(&key).await.expect("a result");
    assert_eq!(before, after, "it has the result of its only run");
}

/// The API server takes no status for a while: slots come all the same, and status catches up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p05_refused_statuses_neither_lose_nor_double_a_slot() {
    let beat = Beat::start().await;
    let policies: Api<k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy> =
        Api::all(beat.stage.client.clone());
    let bindings: Api<k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding> =
        Api::all(beat.stage.client.clone());
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": { "name": "silence" },
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": { "resourceRules": [{
                "apiGroups": ["umbel.dev"], "apiVersions": ["*"], "operations": ["*"], "resources": ["periodictasks/status"],
            }] },
            "validations": [{ "expression": "false", "message": "nobody writes a status" }],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": { "name": "silence" }, "spec": { "policyName": "silence", "validationActions": ["Deny"] },
    });
    let params = PatchParams::apply("test").force();
    policies
        .patch("silence", &params, &Patch::Apply(&policy))
        .await
        .expect("accepted");
    bindings
        .patch("silence", &params, &Patch::Apply(&binding))
        .await
        .expect("accepted");
    // Until it is in force.
    let probe = json!({ "status": { "runs": 0 } });
    beat.schedule("probe", json!({ "every": "1h" }), json!({})).await;
    eventually(LONG, "statuses are refused", async || {
        let written = beat
            .api()
            .patch_status("probe", &PatchParams::default(), &Patch::Merge(&probe))
            .await;
        written.is_err_and(|error| error.to_string().contains("nobody writes a status"))
    })
    .await;

    let first = beat.stage.operator(&["--id", "one"], &[]);
    beat.schedule(
        "tick",
        json!({ "every": "1s" }),
        json!({ "missedRuns": "RunAll", "overlap": "Allow" }),
    )
    .await;
    beat.sends("tick", 4, LONG).await;
    assert_eq!(beat.status("tick").await.runs, 0, "nothing is written");
    // A leader that knows nothing but the mark.
    drop(first);
    let _second = beat.stage.operator(&["--id", "two"], &[]);
    let before = beat.sent("tick").await.len();
    beat.sends("tick", before + 3, LONG).await;
    bindings
        .delete("silence", &DeleteParams::default())
        .await
        .expect("gone");
    policies
        .delete("silence", &DeleteParams::default())
        .await
        .expect("gone");
    eventually(LONG, "the status is written", async || {
        beat.status("tick").await.runs > 0
    })
    .await;
    beat.suspend("tick").await;
    let sent = beat.sent("tick").await;
    assert_each_once(&beat.get("tick").await, &sent);
    assert_eq!(beat.status("tick").await.runs, sent.len() as u64);
}

/// An operator whose wall clock is as the file says, at any time.
fn operator_with_clock(beat: &Beat, clock: &std::path::Path) -> Process {
    let admin = format!("127.0.0.1:{}", free_port());
    let kubeconfig = beat.stage.plane.kubeconfig();
    let file = format!("FAKETIME_TIMESTAMP_FILE={}", clock.display());
    let args = [
        "LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
        "FAKETIME_DISABLE_SHM=1",
        "FAKETIME_NO_CACHE=1",
        &file,
        env!("CARGO_BIN_EXE_umbel-operator"),
    ];
    let vars = [
        ("KUBECONFIG", kubeconfig.to_str().expect("a path of text")),
        ("UMBEL_LOG", "info,kube=warn,tower=warn"),
        ("UMBEL_ADMIN_ADDR", &*admin),
        ("UMBEL_NAMESPACE", NAMESPACE),
        ("UMBEL_SAMPLE_INTERVAL", "200ms"),
    ];
    Process::start(std::path::Path::new("/usr/bin/env"), args, &vars)
}

/// Slots are judged by Redis's clock. An hour behind from the start is not to be had here: the API server's certificate is
/// younger.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p08_the_clock_of_the_scheduler_is_an_hour_ahead_steps_back_or_runs() {
    let beat = Beat::start().await;
    beat.schedule(
        "tick",
        json!({ "every": "1s" }),
        json!({ "missedRuns": "RunAll", "overlap": "Allow" }),
    )
    .await;
    let folder = TempDir::new("umbel-clock");
    let clock = folder.path().join("clock");
    let set = |text: &str| {
        let next = folder.path().join("next");
        std::fs::write(&next, text).expect("written");
        std::fs::rename(next, &clock).expect("the folder is ours");
    };
    set("+3600s");
    let mut operator = operator_with_clock(&beat, &clock);
    for step in ["an hour ahead", "+0s", "+0 x30", "-30s"] {
        if step.starts_with(['+', '-']) {
            set(step);
        }
        let before = beat.sent("tick").await.len();
        eventually(LONG, &format!("it sends: {step}"), async || {
            assert!(operator.exit().is_none(), "{}", operator.tail());
            beat.sent("tick").await.len() >= before + 4
        })
        .await;
    }
    let now = Timestamp::now();
    let sent = beat.sent("tick").await;
    assert!(sent.iter().all(|message| order(message) <= now), "none before its time");
    assert_each_once(&beat.get("tick").await, &sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p09_after_a_day_of_downtime_slots_are_made_up_for_as_the_policy_says() {
    let beat = Beat::on(Stage::start_on(&[], Redis::with_clock(&[])).await).await;
    let operator = beat.stage.operator(&["--id", "one"], &[]);
    let all = [("once", "RunOnce"), ("skip", "Skip"), ("all", "RunAll")];
    for (name, policy) in all {
        let more = json!({ "missedRuns": policy, "overlap": "Allow", "catchUpWindow": "10m" });
        beat.schedule(name, json!({ "every": "1m" }), more).await;
        eventually(LONG, "it is understood", async || {
            beat.condition(name, "Scheduled")
                .await
                .is_some_and(|(status, _)| status == "True")
        })
        .await;
    }
    // Twenty and more runs at a time are all followed.
    let more = json!({ "missedRuns": "RunAll", "overlap": "Allow", "catchUpWindow": "10m" });
    beat.schedule("many", json!({ "every": "15s" }), more.clone()).await;
    beat.schedule("flood", json!({ "every": "5s" }), more).await;
    eventually(LONG, "it is understood", async || {
        beat.condition("many", "Scheduled").await.is_some()
    })
    .await;
    drop(operator);
    let mut before = Vec::new();
    for (name, _) in all {
        before.push((beat.status(name).await, beat.sent(name).await.len()));
    }
    beat.stage.redis.set_clock(86_400);
    let _operator = beat.stage.operator(&["--id", "two"], &[]);
    for ((name, policy), (status, sent_before)) in all.into_iter().zip(before) {
        // Of a day's 1,440 slots, and one or two while this goes on.
        let (sent, missed) = match policy {
            "RunOnce" => (1..=3, 1437..=1442),
            "Skip" => (0..=2, 1438..=1443),
            _ => (9..=13, 1427..=1433),
        };
        eventually(LONG, &format!("{name} has dealt with the day"), async || {
            let now = beat.status(name).await;
            now.missed - status.missed >= *missed.start() && beat.sent(name).await.len() - sent_before >= *sent.start()
        })
        .await;
        let (now, count) = (beat.status(name).await, beat.sent(name).await.len() - sent_before);
        let misses = now.missed - status.missed;
        assert!(missed.contains(&misses), "{name}: missed {misses}");
        assert!(sent.contains(&count), "{name}: sent {count}");
    }
    eventually(LONG, "40 runs are open", async || {
        let status = beat.status("many").await;
        status.active_runs >= 40 && status.active.len() >= 40
    })
    .await;
    // 120 slots of the window come in parts.
    let mut times = Vec::new();
    eventually(LONG, "the flood is sent", async || {
        let sent: Vec<_> = beat.sent("flood").await.iter().map(sent_at).collect();
        let latest = *sent.last().expect("some");
        let is_made_up_for = |at: &Timestamp| latest.duration_since(*at) < SignedDuration::from_hours(1);
        times = sent.into_iter().filter(is_made_up_for).collect();
        times.len() >= 110
    })
    .await;
    let first = times.partition_point(|at| at.duration_since(times[0]) < SignedDuration::from_millis(900));
    assert!(first <= 51, "{first} slots at once");
}

/// Makes the schedule `edited`, with a slot a second, and edits it around twelve of them: some milliseconds before each, at
/// it, after it. Each slot was sent once; answers all that was.
async fn edit_around_slots(beat: &Beat, schedule: Value, edit: impl Fn(i64) -> Value) -> Vec<TaskMessage> {
    let more = json!({ "missedRuns": "RunAll", "overlap": "Allow" });
    beat.schedule("edited", schedule, more).await;
    beat.sends("edited", 1, LONG).await;
    let first = order(&beat.sent("edited").await[0]);
    for round in 0..24_i64 {
        let at = first + SignedDuration::from_secs(round / 2 + 2) + SignedDuration::from_millis(round * 3 - 36);
        let wait = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
        tokio::time::sleep(wait).await;
        beat.change("edited", edit(round)).await;
    }
    let before = beat.sent("edited").await.len();
    beat.sends("edited", before + 2, LONG).await;
    beat.suspend("edited").await;
    let sent = beat.sent("edited").await;
    assert_each_once(&beat.get("edited").await, &sent);
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_an_edit_at_the_instant_of_a_slot_sends_the_old_or_the_new_and_never_both() {
    let beat = Beat::start().await;
    let _operator = beat.stage.operator(&[], &[]);
    let edit = |round| json!({ "taskTemplate": { "kwargs": { "of": "edited", "version": round } } });
    let sent = edit_around_slots(&beat, json!({ "every": "1s" }), edit).await;
    let last = sent.last().expect("a message");
    assert!(
        last.kwargs.as_str().contains("\"version\": 23") || last.kwargs.as_str().contains("\"version\":23"),
        "{}",
        last.kwargs.as_str()
    );
}

/// The schedule itself changes, and its slots stay what they are: none is lost between the old and the new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_a_schedule_that_changes_at_the_instant_of_a_slot_loses_none() {
    let beat = Beat::start().await;
    let operator = beat.stage.operator(&[], &[]);
    let edit = |round| json!({ "timeZone": if round % 2 == 0 { "Etc/UTC" } else { "UTC" } });
    edit_around_slots(&beat, json!({ "cron": "* * * * * *" }), edit).await;

    // Nobody leads while a slot comes and the schedule is changed: that slot is counted.
    let soon = Timestamp::from_second(Timestamp::now().as_second() + 8).expect("a time");
    beat.schedule("moved", json!({ "at": soon.to_string() }), json!({}))
        .await;
    eventually(LONG, "it is understood", async || {
        beat.status("moved").await.next_schedule_time.is_some()
    })
    .await;
    drop(operator);
    let wait = Duration::try_from(soon.duration_since(Timestamp::now())).unwrap_or_default();
    tokio::time::sleep(wait).await;
    beat.change("moved", json!({ "schedule": { "at": "2099-01-01T00:00:00Z" } }))
        .await;
    let _operator = beat.stage.operator(&[], &[]);
    eventually(LONG, "the slot is missed", async || {
        beat.status("moved").await.missed == 1
    })
    .await;
    assert_eq!(beat.sent("moved").await.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_a_schedule_made_anew_under_its_name_has_no_past() {
    let beat = Beat::start().await;
    let _operator = beat.stage.operator(&[], &[]);
    let spec = json!({ "missedRuns": "RunAll", "overlap": "Allow" });
    beat.schedule("again", json!({ "every": "1s" }), spec.clone()).await;
    beat.sends("again", 2, LONG).await;
    // Held, nothing is made up for.
    beat.suspend("again").await;
    let held = beat.sent("again").await;
    let resumed = held.last().map(order).expect("a slot") + SignedDuration::from_secs(4);
    let wait = Duration::try_from(resumed.duration_since(Timestamp::now())).unwrap_or_default();
    tokio::time::sleep(wait).await;
    beat.change("again", json!({ "suspend": false })).await;
    beat.sends("again", held.len() + 1, LONG).await;
    let next = order(&beat.sent("again").await[held.len()]);
    assert!(
        next > resumed - SignedDuration::from_secs(1),
        "{next}: slots of the time when it was held are not sent"
    );

    let old = beat.get("again").await.uid();
    beat.api()
        .delete("again", &DeleteParams::default())
        .await
        .expect("deleted");
    eventually(LONG, "it is gone", async || {
        beat.api().get_opt("again").await.expect("an answer").is_none()
    })
    .await;
    let before = beat.sent("again").await.len();
    beat.schedule("again", json!({ "every": "1s" }), spec).await;
    beat.sends("again", before + 2, LONG).await;
    let task = beat.get("again").await;
    assert_ne!(task.uid(), old);
    let created = task.creation_timestamp().expect("a time").0;
    let new: Vec<_> = beat
        .sent("again")
        .await
        .into_iter()
        .filter(|one| order(one) > created)
        .collect();
    assert_each_once(&task, &new);
}

/// A schedule that is deleted fires no more, also while somebody's finalizer keeps it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_what_is_being_deleted_fires_no_more() {
    let beat = Beat::start().await;
    let _operator = beat.stage.operator(&[], &[]);
    let spec = json!({ "missedRuns": "RunAll", "overlap": "Allow" });
    beat.schedule("kept", json!({ "every": "1s" }), spec.clone()).await;
    beat.schedule("other", json!({ "every": "1s" }), spec).await;
    let finalizers = |names: Value| Patch::Merge(json!({ "metadata": { "finalizers": names } }));
    let params = PatchParams::default();
    beat.api()
        .patch("kept", &params, &finalizers(json!(["example.com/keeps"])))
        .await
        .expect("accepted");
    beat.sends("kept", 2, LONG).await;
    beat.api()
        .delete("kept", &DeleteParams::default())
        .await
        .expect("deleted");
    let gone = Timestamp::now();
    let others = beat.sent("other").await.len();
    beat.sends("other", others + 4, LONG).await;
    let last = beat.sent("kept").await.iter().map(order).max().expect("a slot");
    assert!(last <= gone + SignedDuration::from_secs(1), "{last} after {gone}");
    beat.api()
        .patch("kept", &params, &finalizers(json!([])))
        .await
        .expect("accepted");
}

/// A run goes on while its leader dies: the next one knows of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_what_overlaps_is_known_to_the_next_leader() {
    let beat = Beat::start().await;
    for (name, overlap) in [("forbid", "Forbid"), ("allow", "Allow")] {
        let more = json!({ "overlap": overlap, "missedRuns": "RunAll" });
        beat.schedule(name, json!({ "every": "1s" }), more).await;
    }
    // Nobody runs them. The first leader dies after its first slot, before that is in a status.
    let mut first = beat
        .stage
        .operator(&["--id", "one"], &[("UMBEL_FAILPOINT", "after-fire:abort:2")]);
    assert!(!first.wait(LONG).await.success(), "it died after the script");
    let _second = beat.stage.operator(&["--id", "two"], &[]);
    beat.sends("allow", 4, LONG).await;
    beat.sends("forbid", 1, LONG).await;
    eventually(LONG, "slots are missed", async || {
        beat.status("forbid").await.missed >= 3
    })
    .await;
    assert_eq!(beat.sent("forbid").await.len(), 1, "one at a time, whoever leads");
}

/// A leader dies while it replaces a run: that run was replaced, whoever writes it down, and did not fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_a_run_that_is_replaced_by_a_leader_that_dies_has_not_failed() {
    let beat = Beat::start().await;
    let _worker = beat.worker_with("8");
    let more = json!({
        "overlap": "Replace", "task": "umbel.sleep", "args": [300], "runOnCreate": true, "maxRuns": 2, "pauseAfterFailures": 1,
    });
    for point in [
        "after-request",
        "after-revoke",
        "after-cancel",
        "before-cancel",
        "before-fire:2",
        "after-fire:2",
    ] {
        let (point, which) = point.split_once(':').unwrap_or((point, "1"));
        let failpoint = format!("{point}:abort:{which}");
        let mut first = beat
            .stage
            .operator(&["--id", "one"], &[("UMBEL_FAILPOINT", &failpoint)]);
        let name = &format!("by-{point}");
        beat.schedule(name, json!({ "every": "4s" }), more.clone()).await;
        assert!(!first.wait(LONG).await.success(), "it died at {point}");
        let second = beat.stage.operator(&["--id", "two"], &[]);
        eventually(LONG, &format!("{point}: the first run has ended"), async || {
            let status = beat.status(name).await;
            status.runs == 2 && !status.recent.is_empty()
        })
        .await;
        let status = beat.status(name).await;
        let outcomes: Vec<Outcome> = status.recent.iter().map(|run| run.outcome).collect();
        assert_eq!(outcomes, [Outcome::Replaced], "{point}: {status:?}\n{}", second.log());
        assert_eq!(
            (status.active.len(), status.consecutive_failures),
            (1, 0),
            "{point}: {status:?}"
        );
        // Stopped, whatever the first leader had come to.
        let task = beat.get(name).await;
        let slot = status.recent[0].slot.0;
        let id = umbel_plan::fanout::Occasion::Slot(slot).id(&task.uid().expect("a uid"), "", None);
        let mut connection = beat.stage.redis.connection().await;
        eventually(LONG, &format!("{point}: its task was stopped"), async || {
            let stored: Option<String> = connection
                .get(format!("celery-task-meta-{id}"))
                .await
                .expect("answered");
            stored.is_some_and(|stored| stored.contains("REVOKED"))
        })
        .await;
        // Its second run goes on; no later leader is to look at it.
        beat.api()
            .delete(name, &DeleteParams::default())
            .await
            .expect("deleted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p13_hundreds_of_slots_of_one_second_are_each_sent_once() {
    const COUNT: usize = 300;
    let beat = Beat::start().await;
    let _operator = beat.stage.operator(&[], &[]);
    let start = Timestamp::now() + SignedDuration::from_secs(25);
    let start = Timestamp::from_second(start.as_second()).expect("a time");
    let more = json!({ "startTime": start.to_string(), "overlap": "Allow", "missedRuns": "RunAll" });
    let names: Vec<String> = (0..COUNT).map(|number| format!("s{number}")).collect();
    for name in &names {
        beat.schedule(name, json!({ "every": "5s" }), more.clone()).await;
    }
    let mut connection = beat.stage.redis.connection().await;
    eventually(LONG, "three slots of each", async || {
        let waiting: usize = connection.llen("beats").await.expect("a count");
        waiting >= 3 * COUNT
    })
    .await;
    let mut slots: std::collections::BTreeMap<(String, Timestamp), usize> = std::collections::BTreeMap::new();
    for message in beat.sent("of").await {
        let kwargs: Value = serde_json::from_str(message.kwargs.as_str()).expect("JSON");
        let name = kwargs["of"].as_str().expect("a name").to_owned();
        *slots.entry((name, order(&message))).or_default() += 1;
    }
    assert!(slots.values().all(|count| *count == 1), "none twice");
    let first = slots.keys().map(|(_, slot)| *slot).min().expect("a slot");
    for name in &names {
        for number in 0..2 {
            let slot = first + SignedDuration::from_secs(5 * number);
            assert!(slots.contains_key(&(name.clone(), slot)), "{name} at {slot}");
        }
    }
}

/// A server without memory, and a queue without room: the slot stays due and comes when it can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p16_a_slot_that_is_refused_stays_due() {
    let beat = Beat::start().await;
    let _operator = beat.stage.operator(&[], &[]);
    let mut connection = beat.stage.redis.connection().await;
    let soon = Timestamp::now() + SignedDuration::from_secs(4);
    let soon = Timestamp::from_second(soon.as_second()).expect("a time");
    beat.schedule("once", json!({ "at": soon.to_string() }), json!({}))
        .await;
    eventually(LONG, "it is understood", async || {
        beat.condition("once", "Scheduled")
            .await
            .is_some_and(|(status, _)| status == "True")
    })
    .await;
    let set = async |connection: &mut redis::aio::MultiplexedConnection, memory: &str| {
        let _: () = redis::cmd("CONFIG")
            .arg("SET")
            .arg("maxmemory")
            .arg(memory)
            .query_async(connection)
            .await
            .expect("set");
    };
    set(&mut connection, "1").await;
    let wait = Duration::try_from(soon.duration_since(Timestamp::now())).unwrap_or_default() + Duration::from_secs(2);
    tokio::time::sleep(wait).await;
    let waiting: usize = connection.llen("beats").await.expect("a count");
    assert_eq!(waiting, 0, "the server has no memory for it");
    beat.has_event("BrokerRefuses").await;
    assert_eq!(
        beat.condition("once", "Scheduled").await,
        Some(("Unknown".into(), "BrokerRefuses".into()))
    );
    let task = json!({ "spec": { "taskTemplate": { "queueRef": { "name": "beats" }, "task": "umbel.echo" } } });
    beat.stage
        .apply("umbel.dev/v1alpha1", "Task", "tasks", "refused", task)
        .await;
    let tasks: Api<umbel_api::Task> = Api::namespaced(beat.stage.client.clone(), NAMESPACE);
    eventually(LONG, "a Task says so, too", async || {
        let status = tasks.get("refused").await.expect("it is there").status;
        let stalled = status.and_then(|status| umbel_api::condition::find(&status.conditions, "Stalled").cloned());
        stalled.is_some_and(|stalled| (&*stalled.status, &*stalled.reason) == ("False", "BrokerRefuses"))
    })
    .await;
    tasks
        .delete("refused", &DeleteParams::default())
        .await
        .expect("deleted");
    set(&mut connection, "0").await;
    beat.sends("once", 1, LONG).await;
    assert_eq!(order(&beat.sent("once").await[0]), soon);

    let queue = json!({ "spec": {
        "broker": { "redis": { "urlSecretRef": { "name": "redis", "key": "url" } } }, "limits": { "maxLength": 1 },
    } });
    beat.stage
        .apply("umbel.dev/v1alpha1", "TaskQueue", "taskqueues", "beats", queue)
        .await;
    eventually(LONG, "the broker knows the limit", async || {
        let limited: usize = connection.hlen("umbel:queue:beats").await.expect("a count");
        limited > 0
    })
    .await;
    beat.schedule("waits", json!({ "every": "1h" }), json!({ "runOnCreate": true }))
        .await;
    beat.has_event("QueueFull").await;
    assert_eq!(beat.sent("waits").await.len(), 0, "one waits there, and no more may");
    let _: () = connection.del("beats").await.expect("emptied");
    beat.sends("waits", 1, LONG).await;
}
