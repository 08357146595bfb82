//! Two installs in one cluster that cover the same namespaces: in each of them one works, and the other one says so.

mod common;

use std::collections::BTreeSet;

use common::{LONG, NAMESPACE, Stage};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, DeleteParams};
use serde_json::{Value, json};
use umbel_testkit::redis::AsyncCommands as _;
use umbel_testkit::{Process, eventually};

const OURS: &str = "umbel.dev/v1alpha1";
/// As short as a Lease can be; the default is five minutes.
const CLAIM: [&str; 2] = ["--claim-duration", "3s"];

fn install(stage: &Stage, name: &str) -> Process {
    stage.operator(&["--lease-name", name, CLAIM[0], CLAIM[1]], &[])
}

/// Whose this namespace is, by its Lease.
async fn holder(stage: &Stage, namespace: &str) -> Option<String> {
    let leases: Api<Lease> = Api::namespaced(stage.client.clone(), namespace);
    let lease = leases.get_opt("umbel.dev").await.expect("it answers")?;
    lease.spec?.holder_identity.filter(|holder| !holder.is_empty())
}

/// The ids of everything that was sent to a queue.
async fn sent(stage: &Stage, queue: &str) -> Vec<String> {
    let mut connection = stage.redis.connection().await;
    let all: Vec<Vec<u8>> = connection.lrange(queue, 0, -1).await.expect("a list");
    let id = |message: &Vec<u8>| {
        let message: Value = serde_json::from_slice(message).expect("JSON");
        message["headers"]["id"].as_str().expect("an id").to_owned()
    };
    all.iter().map(id).collect()
}

async fn resize(stage: &Stage, replicas: u32) {
    let spec = json!({ "queues": [{ "name": "jobs" }], "scaling": { "mode": "Manual" }, "replicas": replicas });
    stage.pool_of("jobs", spec).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h03_of_two_installs_one_works_in_a_namespace_and_the_other_follows_when_it_is_gone() {
    let stage = Stage::start().await;
    let (mut first, mut second) = (install(&stage, "first"), install(&stage, "second"));
    for operator in [&mut first, &mut second] {
        operator.says(LONG, "leading").await;
    }
    stage.queue("jobs").await;
    resize(&stage, 2).await;
    let template = json!({ "queueRef": { "name": "jobs" }, "task": "umbel.echo" });
    let schedule = json!({ "schedule": { "every": "1s" }, "overlap": "Allow", "taskTemplate": template });
    let schedule = json!({ "spec": schedule });
    stage
        .apply(OURS, "PeriodicTask", "periodictasks", "tick", schedule)
        .await;
    eventually(LONG, "the pool has its size", async || {
        stage.size("jobs").await == Some(2)
    })
    .await;
    eventually(LONG, "slots were sent", async || sent(&stage, "jobs").await.len() >= 8).await;

    // Who does not work here says so, to people and in its log, and nothing was sent twice.
    let owner = holder(&stage, NAMESPACE).await.expect("it is somebody's");
    let name = owner.rsplit('.').next().expect("one at least");
    assert!(["first", "second"].contains(&name), "{owner}");
    let is_first = name == "first";
    let (mut working, idle) = if is_first { (first, second) } else { (second, first) };
    let words = "another installation works in this namespace";
    eventually(LONG, "the other one says so", async || {
        let events = stage.events().await;
        idle.log().contains(words) && events.iter().any(|event| event.starts_with("OtherInstallation"))
    })
    .await;
    assert!(!working.log().contains(words), "{}", working.log());
    assert!(
        working.log().contains("acted") && !idle.log().contains("acted"),
        "{}",
        idle.log()
    );
    let ids = sent(&stage, "jobs").await;
    let each: BTreeSet<&String> = ids.iter().collect();
    assert_eq!(each.len(), ids.len(), "a slot was sent twice");

    // It goes without a word, and the other one takes over.
    working.kill();
    let before = ids.len();
    resize(&stage, 3).await;
    eventually(LONG, &format!("the other one works\n{}", idle.log()), async || {
        stage.size("jobs").await == Some(3) && sent(&stage, "jobs").await.len() > before + 3
    })
    .await;
    let now = holder(&stage, NAMESPACE).await.expect("it is somebody's");
    assert_ne!(now, owner);
    // Who comes back leaves it alone.
    let mut back = install(&stage, if is_first { "first" } else { "second" });
    back.says(LONG, words).await;
    assert_eq!(holder(&stage, NAMESPACE).await, Some(now));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h03_a_namespace_without_objects_is_nobodys() {
    let stage = Stage::start().await;
    let operator = install(&stage, "one");
    assert_eq!(holder(&stage, NAMESPACE).await, None);
    stage.queue("jobs").await;
    eventually(LONG, "it is held", async || holder(&stage, NAMESPACE).await.is_some()).await;
    let queues = stage.queues();
    queues.delete("jobs", &DeleteParams::default()).await.expect("deleted");
    eventually(LONG, &format!("it is let go of\n{}", operator.log()), async || {
        holder(&stage, NAMESPACE).await.is_none()
    })
    .await;
    stage.queue("jobs").await;
    eventually(LONG, "it is held again", async || {
        holder(&stage, NAMESPACE).await.is_some()
    })
    .await;
}
