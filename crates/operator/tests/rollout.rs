//! A template that replaces another, on a real control plane with real workers: no pod that works is stopped for it, and
//! one that never becomes ready takes nothing down.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::kubelet::{CRASHES, MISSING};
use common::{Kubelet, LONG, Stage};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v1::Scale;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use umbel_testkit::{Process, Signal, eventually};

/// A pool of one slot a pod on the queue of the same name, with a template that says its version.
async fn pool(stage: &Stage, name: &str, replicas: u32, version: &str, more: Value) {
    let image = if version == "broken" { MISSING } else { "w" };
    let template = json!({ "spec": { "containers": [{
        "name": "worker", "image": image, "env": [{ "name": "VERSION", "value": version }],
    }] } });
    let mut spec = json!({
        "queues": [{ "name": name }], "concurrency": 1, "replicas": replicas, "template": template,
        "scaling": { "mode": "Manual" },
    });
    spec.as_object_mut()
        .expect("an object")
        .extend(more.as_object().expect("an object").clone());
    stage.pool_of(name, spec).await;
}

async fn uids(stage: &Stage, pool: &str) -> BTreeSet<String> {
    let pods = stage.pods_of(pool).await;
    pods.iter().filter_map(ResourceExt::uid).collect()
}

async fn in_flight(stage: &Stage, queue: &str) -> u64 {
    let sample = stage.broker.depths(&[queue.to_owned()]).await;
    let sample = sample.expect("the broker answers");
    sample.queues[0].as_ref().expect("the queue is readable").in_flight
}

async fn works(stage: &Stage, queue: &str, tasks: u64) {
    eventually(LONG, &format!("{tasks} tasks run"), async || {
        in_flight(stage, queue).await == tasks
    })
    .await;
}

/// The condition about rollouts: its reason and its words.
async fn progress(stage: &Stage, pool: &str) -> (String, String) {
    let found = stage.condition(pool, "RolloutProgressing").await;
    found.map(|(_, reason, message)| (reason, message)).unwrap_or_default()
}

async fn is_over(stage: &Stage, pool: &str, pods: usize, operator: &Process) {
    let what = format!("{pool} has {pods} pods of one template\n{}", operator.log());
    eventually(LONG * 2, &what, async || {
        let seen = stage.pools().get(pool).await.expect("it is there");
        if seen.status.and_then(|status| status.observed_generation) != seen.metadata.generation {
            return false;
        }
        let whole = progress(stage, pool).await.0 == "Complete" && stage.deployments_of(pool).await.len() == 1;
        whole && stage.pods_of(pool).await.len() == pods && stage.status(pool).await.ready_replicas as usize == pods
    })
    .await;
}

fn nobody_was_stopped(kubelet: &Kubelet, operator: &Process) {
    let removals = kubelet.removals();
    let wrong: Vec<_> = removals
        .iter()
        .filter(|removal| removal.held > 0 || (removal.admitted && removal.open))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", operator.log());
    assert!(
        removals.iter().any(|removal| removal.admitted),
        "nobody was removed at all"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s07_a_pod_of_the_old_template_works_until_its_task_ends() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    pool(&stage, "jobs", 3, "1", json!({})).await;
    stage.ready("jobs", 3).await;
    let (old, first) = (
        uids(&stage, "jobs").await,
        stage.deployment("jobs").await.expect("it is there"),
    );
    stage.send_sleeps("jobs", 2, 20.0).await;
    works(&stage, "jobs", 2).await;

    pool(&stage, "jobs", 3, "2", json!({})).await;
    // The two that work are left over: they need no place, so all three of the new template serve beside them.
    eventually(
        LONG,
        &format!("three new pods and two old ones\n{}", operator.log()),
        async || {
            let pods = uids(&stage, "jobs").await;
            let status = stage.status("jobs").await;
            let draining = status
                .revisions
                .iter()
                .map(|revision| revision.draining_replicas)
                .collect::<Vec<_>>();
            pods.intersection(&old).count() == 2 && pods.len() == 5 && draining == [0, 2] && status.ready_replicas == 5
        },
    )
    .await;
    assert_eq!(in_flight(&stage, "jobs").await, 2);
    let (status, scale) = (
        stage.status("jobs").await,
        stage.pools().get_scale("jobs").await.expect("it has a scale"),
    );
    let Scale {
        spec, status: of_scale, ..
    } = scale;
    assert_eq!(
        (
            spec.unwrap().replicas,
            of_scale.as_ref().unwrap().replicas,
            status.replicas
        ),
        (Some(3), 5, 5)
    );
    assert_eq!(of_scale.unwrap().selector.as_deref(), Some("umbel.dev/pool=jobs"));
    let shown: Vec<_> = status
        .revisions
        .iter()
        .map(|one| {
            (
                one.replicas,
                one.ready_replicas,
                one.draining_replicas,
                one.proven,
                one.replaced_at.is_some(),
            )
        })
        .collect();
    assert_eq!(shown, [(3, 3, 0, true, false), (2, 2, 2, true, true)]);
    assert_eq!(status.revisions[1].deployment, first.name_any());
    let (reason, words) = progress(&stage, "jobs").await;
    let expected = format!(
        "3 of 3 pods serve with revision {}, 2 of older ones are left, 2 with tasks",
        status.revisions[0].name
    );
    assert_eq!((reason.as_str(), words.as_str()), ("Progressing", expected.as_str()));
    let (_, _, says) = stage.condition("jobs", "ScalingActive").await.expect("it is there");
    assert!(says.contains(&format!("Rollout: {expected}. ")), "{says}");
    assert!(
        says.ends_with("Next: the older pods go, each when it is idle."),
        "{says}"
    );

    is_over(&stage, "jobs", 3, &operator).await;
    assert_eq!(uids(&stage, "jobs").await.intersection(&old).count(), 0);
    assert_ne!(
        stage.deployment("jobs").await.map(|one| one.name_any()),
        Some(first.name_any())
    );
    stage.drained("jobs", LONG).await;
    nobody_was_stopped(&kubelet, &operator);
    let counters = stage.status("jobs").await.counters.unwrap_or_default();
    assert_eq!((counters.busy_stopped, counters.wrong_victims), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s19_a_template_that_never_becomes_ready_takes_nothing_down() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    pool(&stage, "jobs", 2, "1", json!({})).await;
    stage.ready("jobs", 2).await;
    let old = uids(&stage, "jobs").await;

    pool(&stage, "jobs", 2, "broken", json!({})).await;
    eventually(LONG, &format!("it says so\n{}", operator.log()), async || {
        let (reason, words) = progress(&stage, "jobs").await;
        reason == "NewRevisionNotReady" && words.contains("ImagePullBackOff: Back-off pulling image")
    })
    .await;
    let (_, _, says) = stage.condition("jobs", "ScalingActive").await.expect("it is there");
    assert!(says.contains("ImagePullBackOff"), "{says}");
    assert!(
        says.ends_with("the older pods stay until one of the new revision is ready."),
        "{says}"
    );
    // The old ones work, and there are as many of them as the pool should have: also when it should have more.
    pool(&stage, "jobs", 4, "broken", json!({})).await;
    stage.ready("jobs", 4).await;
    stage.send_sleeps("jobs", 8, 0.3).await;
    stage.drained("jobs", LONG).await;
    assert_eq!(uids(&stage, "jobs").await.intersection(&old).count(), 2);
    assert_eq!(stage.pods_of("jobs").await.len(), 5, "one beyond the size is tried");

    pool(&stage, "jobs", 4, "3", json!({})).await;
    is_over(&stage, "jobs", 4, &operator).await;
    assert_eq!(uids(&stage, "jobs").await.intersection(&old).count(), 0);
    nobody_was_stopped(&kubelet, &operator);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_a_pod_that_works_after_its_drain_timeout_is_stopped_and_its_task_handed_back() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    let rules = || json!({ "rollout": { "drainTimeout": "4s" }, "drain": { "gracePeriod": "4s" } });
    pool(&stage, "jobs", 1, "1", rules()).await;
    stage.ready("jobs", 1).await;
    stage.send_sleeps("jobs", 1, 30.0).await;
    works(&stage, "jobs", 1).await;
    let begun = std::time::Instant::now();
    pool(&stage, "jobs", 1, "2", rules()).await;
    is_over(&stage, "jobs", 1, &operator).await;
    assert!(begun.elapsed() >= Duration::from_secs(4), "{:?}", begun.elapsed());
    let stopped: Vec<_> = kubelet
        .removals()
        .into_iter()
        .filter(|removal| removal.held > 0)
        .collect();
    assert_eq!(stopped.len(), 1, "{stopped:#?}");
    let counters = stage.status("jobs").await.counters.unwrap_or_default();
    assert_eq!(counters.busy_stopped, 1);
    let events = stage.events().await;
    assert!(
        events
            .iter()
            .any(|event| event.starts_with("StoppedBusy") && event.contains("rollout.drainTimeout")),
        "{events:#?}"
    );
    // Handed back to the new one, which begins it anew. That worker is gone, and is counted all the same.
    works(&stage, "jobs", 1).await;
    eventually(
        LONG,
        &format!("the hand-back is counted\n{}", operator.log()),
        async || {
            let counters = stage.status("jobs").await.counters.unwrap_or_default();
            counters.handed_back == 1
        },
    )
    .await;
    stage.drained("jobs", LONG * 2).await;
    // Another leader counts on from there.
    operator.signal(Signal::Term);
    let _next = stage.operator(&[], &[]);
    pool(&stage, "jobs", 2, "2", rules()).await;
    stage.ready("jobs", 2).await;
    let counters = stage.status("jobs").await.counters.unwrap_or_default();
    assert_eq!(counters.handed_back, 1);
}

/// Each leader ends at another point of the way; the next one goes on from what is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s15_leaders_that_end_in_the_middle_of_a_rollout_cost_nothing() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let first = stage.operator(&["--id", "first"], &[]);
    stage.queue("jobs").await;
    pool(&stage, "jobs", 2, "1", json!({})).await;
    stage.ready("jobs", 2).await;
    let old = uids(&stage, "jobs").await;
    stage.send_sleeps("jobs", 1, 12.0).await;
    works(&stage, "jobs", 1).await;
    first.signal(Signal::Term);
    pool(&stage, "jobs", 2, "2", json!({})).await;
    let points = ["before-raise", "before-delete", "before-lower", "before-retire"];
    let mut since = None;
    for point in points {
        let mut leader = stage.operator(&["--id", point], &[("UMBEL_FAILPOINT", &format!("{point}:abort"))]);
        let ended = tokio::time::timeout(LONG, leader.wait(LONG)).await;
        assert!(ended.is_ok_and(|status| !status.success()), "{point}: {}", leader.log());
        let status = stage.status("jobs").await;
        let replaced = status
            .revisions
            .iter()
            .find_map(|revision| revision.replaced_at.clone());
        assert!(
            since.is_none() || replaced == since,
            "the time of the change is kept: {since:?}, {replaced:?}"
        );
        since = since.or(replaced);
    }
    assert!(since.is_some());
    let last = stage.operator(&["--id", "last"], &[]);
    is_over(&stage, "jobs", 2, &last).await;
    assert_eq!(uids(&stage, "jobs").await.intersection(&old).count(), 0);
    stage.drained("jobs", LONG).await;
    nobody_was_stopped(&kubelet, &last);
}

/// A Deployment as it was made when a pool had but one.
fn of_before(made: &Deployment, pool: &str) -> Value {
    let mut one = serde_json::to_value(made).expect("plain data");
    let metadata = &one["metadata"];
    let (owners, mut labels) = (metadata["ownerReferences"].clone(), metadata["labels"].clone());
    labels.as_object_mut().expect("labels").remove("umbel.dev/revision");
    labels.as_object_mut().expect("labels").remove("umbel.dev/term");
    one["metadata"] = json!({ "name": pool, "labels": labels, "ownerReferences": owners });
    one["spec"]["selector"]["matchLabels"] = json!({ "umbel.dev/pool": pool });
    let labels = one["spec"]["template"]["metadata"]["labels"].as_object_mut();
    labels.expect("labels").remove("umbel.dev/revision");
    let env = one["spec"]["template"]["spec"]["containers"][0]["env"].as_array_mut();
    let told = env
        .expect("variables")
        .iter_mut()
        .find(|one| one["name"] == "UMBEL_REVISION");
    told.expect("it is told")["value"] = json!("0123456789");
    one["spec"].as_object_mut().expect("a spec").remove("replicas");
    one.as_object_mut().expect("an object").remove("status");
    (one["apiVersion"], one["kind"]) = (json!("apps/v1"), json!("Deployment"));
    one
}

/// A pool of this template whose one Deployment was made when pools had but one, with a size and without an operator;
/// what was applied.
async fn pool_of_before(stage: &Stage, replicas: u32) -> Value {
    let mut first = stage.operator(&["--id", "first"], &[]);
    stage.queue("jobs").await;
    pool(stage, "jobs", replicas, "1", json!({ "suspend": true })).await;
    eventually(LONG, "its Deployment is made", async || {
        stage.size("jobs").await == Some(0)
    })
    .await;
    first.kill();
    let made = stage.deployment("jobs").await.expect("it is there");
    stage
        .deployments()
        .delete(&made.name_any(), &DeleteParams::default())
        .await
        .expect("it goes");
    eventually(LONG, "it is gone", async || stage.deployment("jobs").await.is_none()).await;
    let before = of_before(&made, "jobs");
    apply_as(stage, "umbel-operator", before.clone()).await;
    let size = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "jobs" }, "spec": { "replicas": replicas },
    });
    apply_as(stage, "umbel-operator-scale", size).await;
    eventually(LONG, "its pods run", async || {
        stage.pods_of("jobs").await.len() == replicas as usize
    })
    .await;
    before
}

async fn apply_as(stage: &Stage, manager: &str, body: Value) {
    let params = PatchParams::apply(manager).force();
    let applied = stage.deployments().patch("jobs", &params, &Patch::Apply(body)).await;
    applied.expect("it is accepted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_one_deployment_of_before_is_adopted_as_it_is() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    pool_of_before(&stage, 2).await;
    let old = uids(&stage, "jobs").await;
    pool(&stage, "jobs", 2, "1", json!({})).await;
    let operator = stage.operator(&["--id", "second"], &[]);
    stage.ready("jobs", 2).await;
    is_over(&stage, "jobs", 2, &operator).await;
    assert_eq!(uids(&stage, "jobs").await, old, "{}", operator.log());
    let status = stage.status("jobs").await;
    assert_eq!(status.revisions[0].deployment, "jobs");
    // The size is brought about in it as in any other.
    pool(&stage, "jobs", 1, "1", json!({})).await;
    eventually(LONG, "one is left", async || stage.size("jobs").await == Some(1)).await;
    pool(&stage, "jobs", 2, "1", json!({})).await;
    stage.ready("jobs", 2).await;

    pool(&stage, "jobs", 2, "2", json!({})).await;
    eventually(LONG, "it goes with its template", async || {
        stage.deployments().get_opt("jobs").await.expect("an answer").is_none()
    })
    .await;
    is_over(&stage, "jobs", 2, &operator).await;
    nobody_was_stopped(&kubelet, &operator);
}

/// Its Deployment of before is under way from one template to another; it is not to go on beside the present revision.
async fn a_rollout_of_before_is_stopped(present: &str) {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let mut before = pool_of_before(&stage, 2).await;
    pool(&stage, "jobs", 2, "1", json!({})).await;
    let mut second = stage.operator(&["--id", "second"], &[]);
    stage.ready("jobs", 2).await;
    let old = uids(&stage, "jobs").await;
    stage.send_sleeps("jobs", 2, 30.0).await;
    works(&stage, "jobs", 2).await;
    second.kill();
    // A pod of the other template starts, and nobody admits it: the rollout is stuck.
    let env = before["spec"]["template"]["spec"]["containers"][0]["env"].as_array_mut();
    let version = env.expect("variables").iter_mut().find(|one| one["name"] == "VERSION");
    version.expect("it is there")["value"] = json!("2");
    apply_as(&stage, "umbel-operator", before).await;
    eventually(LONG, "a pod of the other template runs", async || {
        let pods = stage.pods_of("jobs").await;
        let phase = |pod: &k8s_openapi::api::core::v1::Pod| pod.status.as_ref().and_then(|status| status.phase.clone());
        pods.len() == 3 && pods.iter().all(|pod| phase(pod).as_deref() == Some("Running"))
    })
    .await;
    pool(&stage, "jobs", 2, present, json!({})).await;
    let operator = stage.operator(&["--id", "third"], &[]);
    eventually(
        LONG,
        &format!("both old ones work beside new pods\n{}", operator.log()),
        async || {
            let status = stage.status("jobs").await;
            let serving = status
                .revisions
                .first()
                .map(|one| (one.deployment != "jobs", one.ready_replicas));
            let pods = uids(&stage, "jobs").await;
            serving == Some((true, 2)) && pods.intersection(&old).count() == 2
        },
    )
    .await;
    assert_eq!(in_flight(&stage, "jobs").await, 2);
    let stopped = stage.deployments().get("jobs").await.expect("it is there").spec;
    assert_eq!(stopped.paused, Some(true));
    is_over(&stage, "jobs", 2, &operator).await;
    assert_eq!(uids(&stage, "jobs").await.intersection(&old).count(), 0);
    assert!(stage.deployments().get_opt("jobs").await.expect("an answer").is_none());
    stage.drained("jobs", LONG).await;
    nobody_was_stopped(&kubelet, &operator);
    let counters = stage.status("jobs").await.counters.unwrap_or_default();
    assert_eq!(
        (counters.busy_stopped, counters.wrong_victims, counters.handed_back),
        (0, 0, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_of_before_is_stopped_where_the_template_changes() {
    a_rollout_of_before_is_stopped("3").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_of_before_is_stopped_where_the_template_is_the_one_it_rolls_to() {
    a_rollout_of_before_is_stopped("2").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_crashes_again_and_again_keeps_no_old_deployment() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    let crashes = json!({ "template": { "spec": { "containers": [{
        "name": "worker", "image": "w", "env": [{ "name": CRASHES, "value": "yes" }],
    }] } } });
    pool(&stage, "jobs", 2, "1", crashes).await;
    stage.ready("jobs", 2).await;
    let old = uids(&stage, "jobs").await;
    let victim = stage.pods_of("jobs").await[0].name_any();
    umbel_testkit::send_signal(kubelet.pid(&victim).expect("it runs"), Signal::Kill);
    stage.ready("jobs", 1).await;
    pool(&stage, "jobs", 2, "2", json!({})).await;
    is_over(&stage, "jobs", 2, &operator).await;
    assert_eq!(uids(&stage, "jobs").await.intersection(&old).count(), 0);
    nobody_was_stopped(&kubelet, &operator);
}
