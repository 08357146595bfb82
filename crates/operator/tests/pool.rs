//! A pool from nothing to work and back, on a real control plane with real workers.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Kubelet, LONG, Stage};
use kube::ResourceExt;
use serde_json::json;
use umbel_broker::{Broker, Config, Gate};
use umbel_testkit::{Redis, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_follows_demand_from_zero_and_back_to_zero() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let operator = stage.operator(&[], &[]);
    stage.queue("mail").await;
    stage
        .pool(
            "mail",
            2,
            json!({ "maxReplicas": 3, "down": { "stabilization": "1s", "cooldownToZero": "1s" } }),
        )
        .await;
    eventually(LONG, "the Deployment is made with size 0", async || {
        stage.size("mail").await == Some(0)
    })
    .await;

    stage.send_sleeps("mail", 40, 0.3).await;
    stage.ready("mail", 3).await;
    stage.drained("mail", LONG).await;
    eventually(LONG, "size 0 again", async || stage.size("mail").await == Some(0)).await;
    eventually(LONG, "no pod is left", async || stage.pods_of("mail").await.is_empty()).await;
    eventually(LONG, "the last change is shown", async || {
        let last = stage.status("mail").await.last_scale;
        last.is_some_and(|last| last.to == 0)
    })
    .await;

    let status = stage.status("mail").await;
    let removals = kubelet.removals();
    assert!(
        removals.iter().all(|removal| removal.held == 0 && !removal.open),
        "{removals:#?}\n{}",
        operator.log()
    );
    let counters = status.counters.expect("counters are shown");
    assert_eq!(
        (counters.busy_stopped, counters.wrong_victims),
        (0, 0),
        "{}",
        operator.log()
    );
    assert!(
        stage
            .events()
            .await
            .iter()
            .any(|event| event.starts_with("ScaledDown") && event.contains("removed mail-"))
    );
}

/// A new template: pods are admitted as they start, there are never fewer open gates than before, and every task is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s07_a_rollout_under_load_keeps_its_slots_and_its_tasks() {
    let stage = Arc::new(Stage::start().await);
    let _kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    let spec = |version: &str| {
        let template = json!({ "spec": { "containers": [{
            "name": "worker", "image": "w", "env": [{ "name": "VERSION", "value": version }],
        }] } });
        json!({ "spec": {
            "queues": [{ "name": "jobs" }], "concurrency": 2, "replicas": 3, "template": template, "scaling": { "mode": "Manual" },
        } })
    };
    stage
        .apply("umbel.dev/v1alpha1", "WorkerPool", "workerpools", "jobs", spec("1"))
        .await;
    stage.ready("jobs", 3).await;
    let old: BTreeSet<String> = stage
        .pods_of("jobs")
        .await
        .iter()
        .map(|pod| pod.uid().unwrap_or_default())
        .collect();
    stage.send_sleeps("jobs", 60, 0.5).await;

    let (watched, stop) = (stage.clone(), Arc::new(AtomicBool::new(false)));
    let quit = stop.clone();
    let fewest = tokio::spawn(async move {
        let mut fewest = usize::MAX;
        while !quit.load(Ordering::Relaxed) {
            let records = watched.broker.workers().await.expect("the broker answers");
            fewest = fewest.min(records.iter().filter(|record| record.gate == Gate::Open).count());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        fewest
    });
    stage
        .apply("umbel.dev/v1alpha1", "WorkerPool", "workerpools", "jobs", spec("2"))
        .await;
    eventually(LONG * 2, "three new pods and no old one", async || {
        let pods = stage.pods_of("jobs").await;
        pods.len() == 3 && pods.iter().all(|pod| !old.contains(&pod.uid().unwrap_or_default()))
    })
    .await;
    stage.ready("jobs", 3).await;
    stop.store(true, Ordering::Relaxed);
    assert!(fewest.await.unwrap() >= 3, "{}", operator.log());
    stage.drained("jobs", LONG).await;
    let sample = stage
        .broker
        .depths(&["jobs".to_owned()])
        .await
        .expect("the broker answers");
    assert_eq!(sample.queues[0].as_ref().unwrap().dead, 0);
    assert_eq!(stage.size("jobs").await, Some(3));
}

/// Namespaces by name, and a Secret that is changed while all runs: the operator follows within its reading interval.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_secret_is_followed() {
    let stage = Stage::start().await;
    let _operator = stage.operator(&["--watch-namespaces", "default,kube-public"], &[]);
    stage.queue("mail").await;
    let waiting = async || {
        stage
            .queues()
            .get("mail")
            .await
            .ok()?
            .status?
            .depth
            .map(|depth| depth.waiting)
    };
    eventually(LONG, "the first server is read", async || waiting().await == Some(0)).await;
    let other = Redis::start().await;
    let broker = Broker::connect(&Config::new(&other.url()))
        .await
        .expect("the other one answers");
    broker
        .publish("mail", 0, &[b"{}".to_vec(), b"{}".to_vec()])
        .await
        .expect("it accepts");
    stage.secret("redis", &other.url()).await;
    eventually(LONG, "the second server is read", async || waiting().await == Some(2)).await;
}
