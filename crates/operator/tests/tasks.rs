//! Tasks as objects, steps and waves, on a real API server and a real Redis, run by a real worker.

#[allow(unused_imports, reason = "no pool here")]
mod common;
#[path = "tasks/waves.rs"]
mod waves;

use common::{LONG, NAMESPACE, Stage};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use redis::AsyncCommands;
use serde_json::{Value, json};
use umbel_api::condition::find;
use umbel_api::task::Phase;
use umbel_api::{PeriodicTask, Task, TaskStatus};
use umbel_protocol::message::{Limits, TaskMessage, decode};
use umbel_testkit::{Process, eventually, eventually_some};

const OURS: &str = "umbel.dev/v1alpha1";

struct Board {
    stage: Stage,
}

impl Board {
    async fn start() -> Board {
        let stage = Stage::start().await;
        stage.queue("jobs").await;
        Board { stage }
    }

    fn api(&self) -> Api<Task> {
        Api::namespaced(self.stage.client.clone(), NAMESPACE)
    }

    async fn task(&self, name: &str, template: Value, more: Value) {
        let mut spec = json!({ "taskTemplate": { "queueRef": { "name": "jobs" } } });
        for (key, value) in template.as_object().expect("an object") {
            spec["taskTemplate"][key] = value.clone();
        }
        for (key, value) in more.as_object().expect("an object") {
            spec[key] = value.clone();
        }
        self.stage
            .apply(OURS, "Task", "tasks", name, json!({ "spec": spec }))
            .await;
    }

    async fn change(&self, name: &str, spec: Value) -> Result<Task, kube::Error> {
        let change = Patch::Merge(json!({ "spec": spec }));
        self.api().patch(name, &PatchParams::default(), &change).await
    }

    async fn status(&self, name: &str) -> TaskStatus {
        let found = self.api().get_opt(name).await.expect("an answer");
        found.and_then(|task| task.status).unwrap_or_default()
    }

    /// The status once it is in this phase.
    async fn comes_to(&self, name: &str, phase: Phase) -> TaskStatus {
        eventually_some(LONG, &format!("{name} is {phase:?}"), async || {
            Some(self.status(name).await).filter(|status| status.phase == phase)
        })
        .await
    }

    async fn clusters(&self, named: &[(&str, &str)]) {
        for (name, ring) in named {
            let body = json!({
                "metadata": { "name": name, "labels": { "ring": ring } },
                "spec": { "kubeconfigSecretRef": { "name": name, "key": "kubeconfig" } },
            });
            self.stage
                .apply(OURS, "TargetCluster", "targetclusters", name, body)
                .await;
        }
    }

    /// What waits in the queue, oldest first.
    async fn waiting(&self) -> Vec<TaskMessage> {
        let mut connection = self.stage.redis.connection().await;
        let mut all: Vec<Vec<u8>> = connection.lrange("jobs", 0, -1).await.expect("a list");
        all.reverse();
        let limits = Limits::default();
        let read = |raw: &Vec<u8>| decode(raw, &limits, &jiff::tz::TimeZone::UTC).expect("a task");
        all.iter().map(read).collect()
    }

    async fn result(&self, id: &str) -> Option<Value> {
        let mut connection = self.stage.redis.connection().await;
        let document: Option<Vec<u8>> = connection
            .get(format!("celery-task-meta-{id}"))
            .await
            .expect("an answer");
        document.and_then(|document| serde_json::from_slice(&document).ok())
    }

    fn worker(&self) -> Process {
        let url = self.stage.redis.url();
        let admin = format!("127.0.0.1:{}", umbel_testkit::free_port());
        let args = [
            "--redis-url",
            &url,
            "--queue",
            "jobs",
            "--concurrency",
            "4",
            "--standalone",
        ];
        let jobs = r#"{"http": {"hosts": ["http://127.0.0.1:1"]}}"#;
        let env = [("UMBEL_ADMIN_ADDR", admin.as_str()), ("UMBEL_JOBS", jobs)];
        Process::start(&common::worker(), args, &env)
    }
}

fn condition(status: &TaskStatus, kind: &str) -> Option<(String, String)> {
    find(&status.conditions, kind).map(|found| (found.status.clone(), found.reason.clone()))
}

fn cluster_of(message: &TaskMessage) -> String {
    message
        .header("umbel_cluster")
        .expect("a cluster")
        .to()
        .expect("a text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_sent_once_and_says_how_it_ended() {
    let board = Board::start().await;
    // The first leader dies when it has sent it, and before anybody wrote that down.
    let mut first = board
        .stage
        .operator(&["--id", "one"], &[("UMBEL_FAILPOINT", "after-fire:abort")]);
    board
        .task("hello", json!({ "task": "umbel.echo", "args": ["a", 1] }), json!({}))
        .await;
    assert!(!first.wait(LONG).await.success(), "it died after the script");
    let _operator = board.stage.operator(&["--id", "two"], &[]);
    let running = board.comes_to("hello", Phase::Running).await;
    let id = running.task_id.expect("an id");
    assert_eq!(
        board
            .waiting()
            .await
            .iter()
            .map(|one| one.id.clone())
            .collect::<Vec<_>>(),
        std::slice::from_ref(&id)
    );

    // It is what it was made as, and only that can be changed which ends it.
    let refusal = board
        .change("hello", json!({ "taskTemplate": { "priority": 3 } }))
        .await;
    assert!(
        refusal
            .expect_err("refused")
            .to_string()
            .contains("taskTemplate cannot be changed")
    );
    let refusal = board
        .change("hello", json!({ "taskTemplate": { "kwargs": { "a": null, "b": 2 } } }))
        .await;
    assert!(
        refusal
            .expect_err("refused")
            .to_string()
            .contains("taskTemplate cannot be changed")
    );
    let refusal = board
        .change("hello", json!({ "taskTemplate": { "args": ["b", 1] } }))
        .await;
    assert!(
        refusal
            .expect_err("refused")
            .to_string()
            .contains("taskTemplate cannot be changed")
    );

    let _worker = board.worker();
    let done = board.comes_to("hello", Phase::Succeeded).await;
    assert_eq!((done.task_id.as_deref(), done.attempts), (Some(&*id), 1));
    let shown: Value = serde_json::from_str(done.result_preview.as_deref().expect("a result")).expect("JSON");
    assert_eq!(shown, board.result(&id).await.expect("a document")["result"]);
    assert!(done.finish_time >= done.start_time && done.start_time.is_some());
    assert_eq!(condition(&done, "Succeeded"), Some(("True".into(), "Succeeded".into())));
    assert_eq!(condition(&done, "Stalled"), Some(("False".into(), "Understood".into())));

    // One that fails says so, with its error; one whose time is over is deleted, and nothing else.
    board.task("wrong", json!({ "task": "no.such.task" }), json!({})).await;
    let failed = board.comes_to("wrong", Phase::Failed).await;
    assert!(failed.result_preview.expect("an error").contains("no.such.task"));
    board
        .task(
            "short",
            json!({ "task": "umbel.echo" }),
            json!({ "ttlSecondsAfterFinished": 1 }),
        )
        .await;
    eventually(LONG, "it was deleted", async || {
        board.api().get_opt("short").await.expect("an answer").is_none()
    })
    .await;
    assert_eq!(board.status("hello").await.phase, Phase::Succeeded);

    // Made anew under the same name it is another task.
    board
        .api()
        .delete("hello", &DeleteParams::default())
        .await
        .expect("deleted");
    eventually(LONG, "it is gone", async || {
        board.api().get_opt("hello").await.expect("an answer").is_none()
    })
    .await;
    board
        .task("hello", json!({ "task": "umbel.echo", "args": ["a", 1] }), json!({}))
        .await;
    assert_ne!(board.comes_to("hello", Phase::Succeeded).await.task_id, Some(id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_says_how_often_its_task_is_tried() {
    let board = Board::start().await;
    let _operator = board.stage.operator(&[], &[]);
    // Nobody listens there.
    let call = json!({ "task": "umbel.http", "args": ["http://127.0.0.1:1/"] });
    let retry = json!({ "maxAttempts": 2, "initialBackoff": "50ms" });
    let mut once = call.clone();
    once["retry"] = retry.clone();
    board.task("once", once, json!({})).await;
    board.comes_to("once", Phase::Running).await;
    // A step has its own, and from the template what it does not say.
    let mut step = call.clone();
    step["name"] = json!("call");
    step["retry"] = json!({ "maxAttempts": 3, "maxBackoff": "1.5s", "factor": 1.5, "jitter": 0 });
    board
        .task("step", json!({ "steps": [step], "retry": retry }), json!({}))
        .await;
    board.comes_to("step", Phase::Running).await;
    board.task("plain", json!({ "task": "umbel.echo" }), json!({})).await;
    board.comes_to("plain", Phase::Running).await;
    let policy = |message: &TaskMessage| message.header("umbel_retry").map(|header| header.to::<Value>().ok());
    assert_eq!(
        board.waiting().await.iter().map(policy).collect::<Vec<_>>(),
        [
            Some(Some(json!({ "max_attempts": 2, "initial_backoff": 0.05 }))),
            Some(Some(
                json!({ "max_attempts": 3, "initial_backoff": 0.05, "max_backoff": 1.5, "factor": 1.5, "jitter": 0.0 })
            )),
            None
        ]
    );

    // The queue itself would allow five.
    let _worker = board.worker();
    assert_eq!(board.comes_to("once", Phase::Failed).await.attempts, 2);
    assert_eq!(board.comes_to("step", Phase::Failed).await.attempts, 3);
    assert_eq!(board.comes_to("plain", Phase::Succeeded).await.attempts, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cancelled_neither_begins_nor_goes_on() {
    let board = Board::start().await;
    let _operator = board.stage.operator(&[], &[]);
    // One that was never sent, one that waits, one that runs.
    board
        .task(
            "lost",
            json!({ "queueRef": { "name": "gone" }, "task": "umbel.echo" }),
            json!({}),
        )
        .await;
    eventually(LONG, "it is stalled", async || {
        condition(&board.status("lost").await, "Stalled") == Some(("True".into(), "UnknownQueue".into()))
    })
    .await;
    board.change("lost", json!({ "cancel": true })).await.expect("accepted");
    board.comes_to("lost", Phase::Cancelled).await;
    let refusal = board
        .change("lost", json!({ "cancel": false }))
        .await
        .expect_err("refused");
    assert!(refusal.to_string().contains("stays cancelled"), "{refusal}");

    board.task("waits", json!({ "task": "umbel.echo" }), json!({})).await;
    let waits = board.comes_to("waits", Phase::Running).await.task_id.expect("an id");
    board
        .change("waits", json!({ "cancel": true }))
        .await
        .expect("accepted");
    board.comes_to("waits", Phase::Cancelled).await;

    let _worker = board.worker();
    board
        .task("runs", json!({ "task": "umbel.sleep", "args": [600.0] }), json!({}))
        .await;
    let runs = board.comes_to("runs", Phase::Running).await.task_id.expect("an id");
    let mut connection = board.stage.redis.connection().await;
    eventually(LONG, "it runs", async || {
        let held: usize = connection.hlen("umbel:unacked").await.expect("a count");
        held == 1
    })
    .await;
    board.change("runs", json!({ "cancel": true })).await.expect("accepted");
    board.comes_to("runs", Phase::Cancelled).await;
    for id in [waits, runs] {
        let ended = eventually_some(LONG, "it ended as revoked", async || board.result(&id).await).await;
        assert_eq!(ended["status"], "REVOKED", "{ended}");
    }
    eventually(LONG, "nothing is held", async || {
        let held: usize = connection.hlen("umbel:unacked").await.expect("a count");
        held == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_go_from_cluster_to_cluster_and_stop_at_the_bound() {
    let board = Board::start().await;
    board
        .clusters(&[("eu", "canary"), ("us", "rest"), ("ap", "rest")])
        .await;
    let _operator = board.stage.operator(&[], &[]);
    let echo = |name: &str| json!({ "name": name, "task": "umbel.echo", "args": [name] });
    let waves = json!({ "type": "ProgressivePerGroup", "maxConcurrency": 1,
        "groups": [{ "name": "canary", "selector": { "matchLabels": { "ring": "canary" } } }] });
    let targets = json!({ "selector": {}, "rollout": waves });
    board
        .task(
            "all",
            json!({ "steps": [echo("apply"), echo("wait")], "targets": targets }),
            json!({}),
        )
        .await;
    let running = board.comes_to("all", Phase::Running).await;
    let clusters = running.clusters.expect("clusters");
    assert_eq!((clusters.total, clusters.running, clusters.pending), (3, 1, 2));
    assert_eq!(running.task_id, None, "it is several");
    let first = board.waiting().await;
    assert_eq!(
        first.iter().map(cluster_of).collect::<Vec<_>>(),
        ["eu"],
        "the canary alone, its first step"
    );

    let _worker = board.worker();
    let done = board.comes_to("all", Phase::Succeeded).await;
    let clusters = done.clusters.expect("clusters");
    assert_eq!((clusters.succeeded, clusters.failed, clusters.skipped), (3, 0, 0));
    assert_eq!(done.attempts, 6, "two steps on each of three");

    // The canary fails: the rest never begins, and its own second step neither.
    let wrong = json!({ "name": "apply", "task": "no.such.task" });
    board
        .task(
            "halt",
            json!({ "steps": [wrong, echo("wait")], "targets": targets }),
            json!({}),
        )
        .await;
    let halted = board.comes_to("halt", Phase::Failed).await;
    let clusters = halted.clusters.expect("clusters");
    assert_eq!((clusters.failed, clusters.skipped, halted.attempts), (1, 2, 1));
    assert_eq!(clusters.failed_names, ["eu"]);

    // A cluster that cannot be reached: left out, or failed without a message.
    let status = json!({ "status": { "conditions": [{
        "type": "Reachable", "status": "False", "reason": "Timeout", "message": "no answer",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }] } });
    let api: Api<umbel_api::TargetCluster> = Api::namespaced(board.stage.client.clone(), NAMESPACE);
    api.patch_status("us", &PatchParams::default(), &Patch::Merge(status))
        .await
        .expect("accepted");
    for (unreachable, total, failed, attempts, phase) in [
        ("Skip", 2, 0, 2, Phase::Succeeded),
        ("Fail", 3, 1, 2, Phase::Failed),
        ("Wait", 3, 0, 3, Phase::Succeeded),
    ] {
        let name = unreachable.to_lowercase();
        let template = json!({ "task": "umbel.echo", "targets": { "selector": {}, "unreachable": unreachable } });
        board.task(&name, template, json!({})).await;
        let ended = board.comes_to(&name, phase).await;
        let clusters = ended.clusters.expect("clusters");
        assert_eq!(
            (clusters.total, clusters.failed, ended.attempts),
            (total, failed, attempts),
            "{unreachable}"
        );
    }

    // Steps that wait for each other in a circle say so, and nothing is sent.
    let circle = json!({ "steps": [
        { "name": "a", "task": "umbel.echo", "dependsOn": ["b"] },
        { "name": "b", "task": "umbel.echo", "dependsOn": ["a"] },
    ] });
    board.task("circle", circle, json!({})).await;
    eventually(LONG, "it is stalled", async || {
        let status = board.status("circle").await;
        find(&status.conditions, "Stalled")
            .is_some_and(|stalled| stalled.message.contains("steps: a → b → a is a cycle"))
    })
    .await;
    assert_eq!(board.status("circle").await.phase, Phase::Pending);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_task_has_the_key_of_is_left_out() {
    let board = Board::start().await;
    board.clusters(&[("eu", ""), ("us", "")]).await;
    let _operator = board.stage.operator(&[], &[]);
    let of =
        |clusters: &[&str]| json!({ "task": "umbel.echo", "uniqueKey": "key", "targets": { "clusters": clusters } });
    board.task("first", of(&["eu"]), json!({})).await;
    board.comes_to("first", Phase::Running).await;
    board.task("none", of(&["eu"]), json!({})).await;
    assert_eq!(board.comes_to("none", Phase::Failed).await.attempts, 0);
    board.task("some", of(&["eu", "us"]), json!({})).await;
    board.comes_to("some", Phase::Running).await;
    assert_eq!(
        board.waiting().await.iter().map(cluster_of).collect::<Vec<_>>(),
        ["eu", "us"]
    );
    let _worker = board.worker();
    let done = board.comes_to("some", Phase::Succeeded).await;
    let clusters = done.clusters.expect("clusters");
    assert_eq!((clusters.succeeded, clusters.skipped, done.attempts), (1, 1, 1));
    board.comes_to("first", Phase::Succeeded).await;
}

/// A run keeps to the template that it began with, and the next leader takes it on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_of_steps_goes_on_under_another_leader_and_after_an_edit() {
    let board = Board::start().await;
    board.clusters(&[("eu", ""), ("us", "")]).await;
    let mut first = board
        .stage
        .operator(&["--id", "one"], &[("UMBEL_FAILPOINT", "after-fire:abort")]);
    let step = |name: &str, text: &str| json!({ "name": name, "task": "umbel.echo", "args": [text] });
    let spec = |text: &str| {
        json!({ "spec": { "schedule": { "every": "1h" }, "runOnCreate": true, "taskTemplate": {
            "queueRef": { "name": "jobs" }, "steps": [step("a", text), step("b", text)], "targets": { "selector": {} },
        } } })
    };
    board
        .stage
        .apply(OURS, "PeriodicTask", "periodictasks", "chain", spec("old"))
        .await;
    assert!(!first.wait(LONG).await.success(), "it died after the script");
    assert_eq!(board.waiting().await.len(), 2, "the first step of either cluster");
    board
        .stage
        .apply(OURS, "PeriodicTask", "periodictasks", "chain", spec("new"))
        .await;

    // The second dies when it has sent the next steps.
    let mut second = board
        .stage
        .operator(&["--id", "two"], &[("UMBEL_FAILPOINT", "after-advance:abort")]);
    let _worker = board.worker();
    assert!(!second.wait(LONG).await.success(), "it died after the script");
    let _third = board.stage.operator(&["--id", "three"], &[]);
    let api: Api<PeriodicTask> = Api::namespaced(board.stage.client.clone(), NAMESPACE);
    let run = eventually_some(LONG, "the run has ended", async || {
        let status = api.get("chain").await.expect("it is there").status.unwrap_or_default();
        status.recent.first().cloned().zip(status.last_run)
    })
    .await;
    let (past, last) = run;
    assert_eq!((past.total, past.succeeded, past.failed), (4, 4, 0));
    let clusters = last.clusters.expect("clusters");
    assert_eq!((clusters.total, clusters.succeeded), (2, 2));

    // Each of the four ran once, with the arguments of before the edit.
    let uid = api.get("chain").await.expect("it is there").uid().expect("a uid");
    let slot = umbel_plan::fanout::Occasion::Slot(past.slot.0);
    for cluster in ["eu", "us"] {
        for step in ["a", "b"] {
            let id = slot.id(&uid, cluster, Some(step)).to_string();
            let document = board.result(&id).await.expect("it ran");
            assert!(document["result"].to_string().contains("old"), "{document}");
        }
    }
    assert_eq!(board.waiting().await.len(), 0);
}

/// Whatever an argument is, also nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_argument_may_be_null_in_a_task_and_in_a_step() {
    let board = Board::start().await;
    let _operator = board.stage.operator(&[], &[]);
    let args = json!([null, { "a": null }, [null]]);
    board
        .task(
            "one",
            json!({ "task": "umbel.echo", "args": args, "kwargs": { "b": null } }),
            json!({}),
        )
        .await;
    let steps = json!([{ "name": "a", "task": "umbel.echo", "args": args, "kwargs": { "b": null } }]);
    board.task("steps", json!({ "steps": steps }), json!({})).await;
    eventually(LONG, "both are sent", async || board.waiting().await.len() == 2).await;
    // What stands in a null's place is seen, too.
    for (name, change) in [
        ("one", json!({ "kwargs": { "b": 1 } })),
        ("one", json!({ "args": [1, { "a": null }, [null]] })),
        ("one", json!({ "args": [null, { "a": 1 }, [null]] })),
        (
            "steps",
            json!({ "steps": [{ "name": "a", "task": "umbel.echo", "args": [1] }] }),
        ),
    ] {
        let refusal = board.change(name, json!({ "taskTemplate": change })).await;
        let refusal = refusal.expect_err(&format!("{change} is refused")).to_string();
        assert!(refusal.contains("taskTemplate cannot be changed"), "{refusal}");
    }
    let _worker = board.worker();
    for name in ["one", "steps"] {
        board.comes_to(name, Phase::Succeeded).await;
    }
}
