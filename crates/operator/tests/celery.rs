//! Pools of Python Celery workers on a real control plane: sized by what they hold, and taken away only when they hold
//! nothing.

mod common;

use std::time::Duration;

use common::{Kubelet, LONG, Stage};
use kube::ResourceExt;
use redis::AsyncCommands;
use serde_json::{Value, json};
use umbel_testkit::{CeleryVersion, Event, History, Process, Redis, eventually, repository};

/// Celery takes seconds to start, and a second to answer.
const PATIENT: Duration = Duration::from_secs(120);

/// A pool of real Celery workers, one thread each, that write what they do into `history`.
async fn pool(stage: &Stage, history: &History, settings: Value, more: Value) {
    let env = |name: &str, value: &str| json!({ "name": name, "value": value });
    let peers = repository().join("e2e/peers");
    let mut all = json!({ "worker_prefetch_multiplier": 1, "task_acks_late": true });
    all.as_object_mut()
        .expect("an object")
        .extend(settings.as_object().expect("an object").clone());
    let python = CeleryVersion::V5_7.python();
    let command = [
        python.to_str().expect("a path of text"),
        "-m",
        "celery",
        "-A",
        "tasks",
        "worker",
        "-Q",
        "py",
        "-P",
        "threads",
        "-c",
        "1",
        "--without-gossip",
        "--without-mingle",
        "-l",
        "INFO",
    ];
    let template = json!({ "spec": { "containers": [{
        "name": "worker", "image": "python", "command": command, "env": [
            env("UMBEL_PEER_BROKER", &stage.redis.url()), env("UMBEL_PEER_RESULTS", &stage.redis.url()),
            env("UMBEL_PEER_SETTINGS", &all.to_string()), env("PYTHONDONTWRITEBYTECODE", "1"),
            env("PYTHONPATH", peers.to_str().expect("a path of text")),
            env("UMBEL_TEST_HISTORY", history.environment().1),
        ],
    }] } });
    let mut spec = json!({
        "queues": [{ "name": "py" }], "runtime": "Celery", "concurrency": 1, "template": template,
        "scaling": { "mode": "Manual" },
    });
    spec.as_object_mut()
        .expect("an object")
        .extend(more.as_object().expect("an object").clone());
    stage.pool_of("py", spec).await;
}

async fn pods(stage: &Stage, wanted: usize, operator: &Process) {
    let seen = std::sync::Mutex::new(String::new());
    let what = || {
        format!(
            "{wanted} pods, at rest: {}\n{}",
            seen.lock().expect("one at a time"),
            operator.log()
        )
    };
    let is_so = async || {
        let status = stage.status("py").await;
        let live = stage.pods_of("py").await.len();
        *seen.lock().expect("one at a time") = format!("{live} live, {status:?}");
        live == wanted
            && status.ready_replicas as usize == wanted
            && stage.size("py").await == i32::try_from(wanted).ok()
    };
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENT, wait).await.is_ok(), "{}", what());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s01_a_celery_worker_that_works_is_not_stopped() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let history = History::new();
    let operator = stage.operator(&[], &[]);
    stage.queue("py").await;
    let manual = |replicas: u32| json!({ "replicas": replicas });
    pool(&stage, &history, json!({}), manual(3)).await;
    pods(&stage, 3, &operator).await;
    eventually(LONG, "they are steered", async || {
        let found = stage.condition("py", "RemoteControl").await;
        found.is_some_and(|(status, reason, words)| {
            status == "True" && reason == "Steered" && words.contains("can be stopped while it works")
        })
    })
    .await;

    // One is idle, two work: the idle one goes, and then one that works when its task has ended.
    stage.send("test.work", "py", 2, 25.0).await;
    eventually(LONG, "both run", async || history.total(Event::Started) == 2).await;
    eventually(LONG, "two are busy", async || {
        stage.status("py").await.busy_replicas == 2
    })
    .await;
    pool(&stage, &history, json!({}), manual(1)).await;
    eventually(LONG, "one waits for its task, closed", async || {
        let status = stage.status("py").await;
        let (_, _, says) = stage.condition("py", "ScalingActive").await.unwrap_or_default();
        status.draining_replicas == 1 && status.replicas == 2 && says.contains("waiting for the tasks of py-")
    })
    .await;
    assert_eq!(history.total(Event::Done), 0, "it was shown before any task had ended");
    pods(&stage, 1, &operator).await;
    let removals = kubelet.removals();
    let wrong: Vec<_> = removals.iter().filter(|removal| removal.held > 0).collect();
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", operator.log());
    assert_eq!(removals.iter().filter(|removal| removal.admitted).count(), 2);
    eventually(LONG, "both are done", async || history.total(Event::Done) == 2).await;
    assert_eq!(history.total(Event::Started), 2, "each ran once");

    // Demand counts what kombu holds: with nothing waiting, the pool does not fall below what runs. And who is left works.
    let auto = json!({ "mode": "Auto", "minReplicas": 0, "maxReplicas": 2, "down": { "stabilization": "0s", "cooldownToZero": "2s" } });
    pool(&stage, &history, json!({}), json!({ "scaling": auto })).await;
    stage.send("test.work", "py", 2, 15.0).await;
    eventually(PATIENT, "both run, and are counted", async || {
        let demand = stage.status("py").await.demand.unwrap_or_default();
        history.total(Event::Started) == 4 && (demand.waiting, demand.in_flight) == (0, 2)
    })
    .await;
    assert_eq!(stage.status("py").await.desired_replicas, 2);
    eventually(PATIENT, "nothing is to do, and nobody is there", async || {
        stage.pods_of("py").await.is_empty()
    })
    .await;
    assert_eq!(history.total(Event::Done), 4);
    assert!(
        kubelet.removals().iter().all(|removal| removal.held == 0),
        "{}",
        operator.log()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_celery_worker_without_remote_control_goes_when_it_is_idle() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let history = History::new();
    let operator = stage.operator(&[], &[]);
    stage.queue("py").await;
    let deaf = || json!({ "worker_enable_remote_control": false });
    pool(&stage, &history, deaf(), json!({ "replicas": 2 })).await;
    pods(&stage, 2, &operator).await;
    eventually(LONG, "it says so", async || {
        let found = stage.condition("py", "RemoteControl").await;
        found.is_some_and(|(status, reason, words)| {
            status == "False" && reason == "Off" && words.contains("idle ones go first")
        })
    })
    .await;
    stage.send("test.work", "py", 1, 40.0).await;
    eventually(LONG, "one is busy", async || {
        stage.status("py").await.busy_replicas == 1
    })
    .await;
    let before: Vec<String> = stage.pods_of("py").await.iter().map(ResourceExt::name_any).collect();
    pool(&stage, &history, deaf(), json!({ "replicas": 1 })).await;
    pods(&stage, 1, &operator).await;
    assert_eq!(history.total(Event::Done), 0, "its task goes on");
    let left = stage.pods_of("py").await;
    assert!(
        before.contains(&left[0].name_any()),
        "it is no other one: {before:?}, {:?}",
        left[0].name_any()
    );
    assert!(
        kubelet.removals().iter().all(|removal| removal.held == 0),
        "{:#?}",
        kubelet.removals()
    );
    eventually(PATIENT, "it is done", async || history.total(Event::Done) == 1).await;
    assert_eq!(history.total(Event::Started), 1);
}

/// Celery does not tell which queue a message that it holds is from; it tells which broker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_celery_holds_counts_for_pools_of_its_broker_only() {
    let stage = Stage::start().await;
    let other = Redis::start().await;
    stage.secret("other", &other.url()).await;
    let operator = stage.operator(&[], &[]);
    let template = json!({ "spec": { "containers": [{ "name": "worker", "image": "python" }] } });
    for (name, secret) in [("here", "redis"), ("there", "other")] {
        let broker = json!({ "redis": { "urlSecretRef": { "name": secret, "key": "url" } } });
        let spec = json!({ "spec": { "broker": broker } });
        stage
            .apply("umbel.dev/v1alpha1", "TaskQueue", "taskqueues", name, spec)
            .await;
        let scaling = json!({ "mode": "Auto", "minReplicas": 0, "maxReplicas": 4 });
        let spec = json!({ "queues": [{ "name": name }], "runtime": "Celery", "concurrency": 1, "template": template, "scaling": scaling });
        stage.pool_of(name, spec).await;
    }
    let held: Vec<(String, &str)> = (0..4).map(|tag| (tag.to_string(), "[]")).collect();
    let _: () = stage
        .redis
        .connection()
        .await
        .hset_multiple("unacked", &held)
        .await
        .expect("set");
    let in_flight = async |pool: &str| stage.status(pool).await.demand.map(|demand| demand.in_flight);
    eventually(LONG, &format!("both know it\n{}", operator.log()), async || {
        (in_flight("here").await, in_flight("there").await) == (Some(4), Some(0))
    })
    .await;
}
