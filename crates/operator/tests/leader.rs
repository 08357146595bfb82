//! Leaders that are stopped, killed and restarted; Redis emptied and away in the middle of a step.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::{Kubelet, LONG, NAMESPACE, Stage};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use umbel_api::names::{MANAGER, MANAGER_SCALE};
use umbel_broker::Gate;
use umbel_testkit::{Process, Signal, eventually, send_signal};

async fn manual(stage: &Stage, pool: &str, replicas: u32) {
    let spec = json!({ "queues": [{ "name": pool }], "concurrency": 1, "replicas": replicas, "scaling": { "mode": "Manual" } });
    stage.pool_of(pool, spec).await;
}

/// Whether the process is stopped by a signal.
fn is_stopped(process: &Process) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| rest.trim_start().starts_with('T'))
}

async fn open_workers(stage: &Stage) -> usize {
    // Nobody is known to be open while Redis is away.
    let records = stage.broker.workers().await.unwrap_or_default();
    records
        .iter()
        .filter(|record| record.gate == Gate::Open && record.heartbeat.is_some())
        .count()
}

/// A leader that trusts itself for a minute, looks at its Lease seldom, and stops at a failpoint: what it sends afterwards
/// is refused by preconditions, and not because it noticed first.
fn trusting(stage: &Stage, failpoint: &str) -> Process {
    let flags = [
        "--id",
        "first",
        "--lease-duration",
        "60s",
        "--renew-deadline",
        "50s",
        "--retry-period",
        "8s",
    ];
    stage.operator(&flags, &[("UMBEL_FAILPOINT", failpoint)])
}

/// Takes the Lease from its holder by hand. What the holder still sends is then refused by preconditions alone.
async fn depose(stage: &Stage) {
    let api: Api<Lease> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let body = json!({ "spec": { "holderIdentity": "" } });
    api.patch("umbel-operator", &PatchParams::default(), &Patch::Merge(body))
        .await
        .expect("the Lease is written");
}

/// A leader is stopped right before its DELETE. The next one opens that pod again; when the first goes on, still sure of
/// its Lease, its request meets another resourceVersion.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k08_k09_a_leader_stopped_before_its_delete_removes_nothing() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let mut first = trusting(&stage, "before-delete:stop");
    stage.queue("jobs").await;
    manual(&stage, "jobs", 2).await;
    stage.ready("jobs", 2).await;
    let before: Vec<String> = stage.pods_of("jobs").await.iter().map(ResourceExt::name_any).collect();

    manual(&stage, "jobs", 1).await;
    eventually(LONG, "the first leader is stopped", async || is_stopped(&first)).await;
    assert_eq!(open_workers(&stage).await, 1, "the victim is drained");
    depose(&stage).await;
    manual(&stage, "jobs", 2).await;
    let second = stage.operator(&["--id", "second"], &[]);
    eventually(LONG, "the second leader opens the gate again", async || {
        open_workers(&stage).await == 2
    })
    .await;
    // Work that the reopened pod may be in the middle of.
    stage.send_sleeps("jobs", 2, 5.0).await;
    eventually(LONG, "both pods hold a task", async || {
        stage
            .broker
            .workers()
            .await
            .expect("it answers")
            .iter()
            .filter(|record| record.held > 0)
            .count()
            == 2
    })
    .await;

    first.signal(Signal::Cont);
    let ended = first.wait(LONG).await;
    assert!(!ended.success(), "a leader that lost its lease ends with an error");
    assert!(
        first.log().contains("deletion refused by its precondition"),
        "{}",
        first.log()
    );
    let after: Vec<String> = stage.pods_of("jobs").await.iter().map(ResourceExt::name_any).collect();
    assert_eq!(before, after, "{}", second.log());
    assert!(kubelet.removals().is_empty());
    stage.drained("jobs", LONG).await;
}

/// The same before a lowering: the replacement is admitted by the next leader, and the old one's size is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k08_k09_a_leader_stopped_before_its_lowering_lowers_nothing() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let mut first = trusting(&stage, "before-lower:stop");
    stage.queue("jobs").await;
    manual(&stage, "jobs", 2).await;
    stage.ready("jobs", 2).await;

    manual(&stage, "jobs", 1).await;
    eventually(LONG, "the first leader is stopped", async || is_stopped(&first)).await;
    depose(&stage).await;
    manual(&stage, "jobs", 2).await;
    let second = stage.operator(&["--id", "second"], &[]);
    eventually(LONG, "the second leader admits the replacement", async || {
        open_workers(&stage).await == 2
    })
    .await;
    let removed = kubelet.removals().len();

    first.signal(Signal::Cont);
    first.wait(LONG).await;
    // Where the machine is slow it ends before it hears the answer, or before it asks: the broker knows of another term.
    let ends = [
        "size refused by its precondition",
        "buffer's worker closed unexpectedly",
        "does not hold the lease any more",
    ];
    assert!(ends.iter().any(|words| first.log().contains(words)), "{}", first.log());
    assert_eq!(stage.size("jobs").await, Some(2), "{}\n{}", first.log(), second.log());
    stage.ready("jobs", 2).await;
    assert_eq!(kubelet.removals().len(), removed, "nobody else was removed");
    assert!(
        kubelet
            .removals()
            .iter()
            .all(|removal| removal.held == 0 && !removal.open)
    );
}

/// A leader is stopped at a point of a Deployment's creation. The next one goes on from there and raises it; what the
/// first one then still sends changes neither its size nor who owns what.
async fn survives_a_creation_stopped(point: &str) {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let mut first = trusting(&stage, &format!("{point}:stop"));
    stage.queue("jobs").await;
    manual(&stage, "jobs", 2).await;
    eventually(LONG, "the first leader is stopped", async || is_stopped(&first)).await;
    depose(&stage).await;
    let second = stage.operator(&["--id", "second"], &[]);
    stage.ready("jobs", 2).await;

    first.signal(Signal::Cont);
    first.wait(LONG).await;
    let deployment = stage.deployment("jobs").await.expect("it is there");
    let size = deployment.spec.replicas;
    assert_eq!(size, Some(2), "{}\n{}", first.log(), second.log());
    assert!(kubelet.removals().is_empty());
    let owners = |field: &str| -> BTreeSet<String> {
        let entries = deployment.metadata.managed_fields.iter().flatten();
        entries
            .filter(|entry| {
                entry
                    .fields_v1
                    .as_ref()
                    .is_some_and(|all| all.0.pointer(field).is_some())
            })
            .filter_map(|entry| entry.manager.clone())
            .collect()
    };
    assert_eq!(owners("/f:spec/f:template"), BTreeSet::from([MANAGER.to_owned()]));
    assert_eq!(owners("/f:spec/f:replicas"), BTreeSet::from([MANAGER_SCALE.to_owned()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k08_k09_a_leader_stopped_before_it_makes_a_deployment_resizes_none() {
    survives_a_creation_stopped("before-create").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k08_k09_a_creation_that_ended_half_way_is_completed() {
    survives_a_creation_stopped("after-create").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k08_k09_a_leader_stopped_before_the_last_step_of_a_creation_takes_nothing_back() {
    survives_a_creation_stopped("before-release").await;
}

/// What comes between a step and Redis.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    /// It forgets everything.
    Emptied,
    /// It is away for so long, and comes back without anything.
    Away(Duration),
    /// It does not answer for so long, and forgets nothing.
    Frozen(Duration),
}

/// A step down from four pods to two, with trouble right after the first deletion: no pod that could work is removed, and
/// afterwards everybody works again.
async fn survives(trouble: Trouble) {
    let mut stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    manual(&stage, "jobs", 4).await;
    stage.ready("jobs", 4).await;
    manual(&stage, "jobs", 2).await;
    eventually(LONG, "a pod is deleted", async || !kubelet.removals().is_empty()).await;
    match trouble {
        Trouble::Emptied => {
            let mut connection = stage.redis.connection().await;
            let _: () = redis::cmd("FLUSHALL")
                .query_async(&mut connection)
                .await
                .expect("it is emptied");
        }
        Trouble::Away(time) => {
            stage.redis.kill();
            tokio::time::sleep(time).await;
            stage.redis.start_again().await;
        }
        Trouble::Frozen(time) => {
            send_signal(stage.redis.pid(), Signal::Stop);
            tokio::time::sleep(time).await;
            send_signal(stage.redis.pid(), Signal::Cont);
        }
    }
    eventually(LONG * 2, "two pods work", async || {
        let sizes = (
            stage.size("jobs").await,
            open_workers(&stage).await,
            stage.status("jobs").await.ready_replicas,
        );
        sizes == (Some(2), 2, 2)
    })
    .await;
    let removals = kubelet.removals();
    let wrong = removals
        .iter()
        .any(|removal| removal.held > 0 || (removal.open && removal.admitted));
    assert!(!wrong, "{removals:#?}\n{}", operator.log());
    manual(&stage, "jobs", 4).await;
    stage.ready("jobs", 4).await;
    stage.send_sleeps("jobs", 12, 0.2).await;
    stage.drained("jobs", LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_emptied_in_the_middle_of_a_step_removes_no_worker() {
    survives(Trouble::Emptied).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_comes_back_empty_in_the_middle_of_a_step_removes_no_worker() {
    // Long enough for the sampler to notice.
    survives(Trouble::Away(Duration::from_secs(6))).await;
}

/// Longer than a step's key and than any heartbeat lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_silent_for_100_s_in_the_middle_of_a_step_removes_no_worker() {
    survives(Trouble::Frozen(Duration::from_secs(100))).await;
}

/// Nothing changes: nobody but the Lease is written. Nor by a new leader, beyond its term on the Deployment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_steady_pool_causes_no_writes_and_a_restart_repairs_nothing() {
    let stage = Stage::start().await;
    let _kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let mut operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    manual(&stage, "jobs", 2).await;
    stage.ready("jobs", 2).await;
    let versions = async || -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        let version = |object: &dyn Fn() -> Option<String>| object().unwrap_or_default();
        for pod in stage.pods_of("jobs").await {
            all.insert(pod.name_any(), version(&|| pod.resource_version()));
        }
        let deployment = stage.deployment("jobs").await.expect("it is there");
        all.insert("deployment".into(), version(&|| deployment.resource_version()));
        let pool = stage.pools().get("jobs").await.expect("it is there");
        all.insert("pool".into(), version(&|| pool.resource_version()));
        let queue = stage.queues().get("jobs").await.expect("it is there");
        all.insert("queue".into(), version(&|| queue.resource_version()));
        all.insert("events".into(), stage.events().await.len().to_string());
        all
    };
    let steady = async |what: &str| {
        let mut last = versions().await;
        let mut since = std::time::Instant::now();
        eventually(LONG, what, async || {
            let now = versions().await;
            if now != last {
                (last, since) = (now, std::time::Instant::now());
            }
            since.elapsed() > Duration::from_secs(8)
        })
        .await;
        last
    };
    steady("eight seconds without a write").await;

    let uids = async || {
        stage
            .pods_of("jobs")
            .await
            .iter()
            .map(|pod| pod.uid().unwrap_or_default())
            .collect::<Vec<_>>()
    };
    let before = uids().await;
    operator.kill();
    let second = stage.operator(&["--id", "second"], &[]);
    eventually(LONG, "the second one leads", async || {
        second.log().contains("\"leading\"")
    })
    .await;
    steady("eight seconds without a write after the restart").await;
    assert_eq!(before, uids().await, "{}", second.log());
    stage.ready("jobs", 2).await;
}

/// A leader that is asked to end gives its Lease back: the next one does not wait for it to expire.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_ends_in_order_hands_over_at_once() {
    let stage = Stage::start().await;
    let mut first = stage.operator(
        &["--id", "first", "--lease-duration", "60s", "--renew-deadline", "50s"],
        &[],
    );
    eventually(LONG, "the first one leads", async || {
        first.log().contains("\"leading\"")
    })
    .await;
    let second = stage.operator(&["--id", "second"], &[]);
    first.signal(Signal::Term);
    assert!(first.wait(LONG).await.success(), "{}", first.log());
    // Far below the minute after which the Lease would expire.
    eventually(Duration::from_secs(20), "the second one leads", async || {
        second.log().contains("\"leading\"")
    })
    .await;
}
