//! Lists, and what a sync sees beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Api, PostParams};
use serde_json::{Value, json};

use crate::stage::{Scene, client, namespace, target};
use crate::stub::{Reply, Stub, status};

fn page(phases: &[&str], next: &str) -> Reply {
    let items: Vec<Value> = phases.iter().map(|phase| json!({"status": {"phase": phase}})).collect();
    let body = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"continue": next}, "items": items});
    Reply::Json(200, "", body.to_string())
}

#[tokio::test]
async fn t12_an_expired_list_begins_again_and_counts_nothing_twice() {
    let scene = Scene::new("t12").await;
    let expired = Arc::new(AtomicUsize::new(0));
    let times = expired.clone();
    let stub = Stub::before(&target().await, move |asked| {
        if !asked.is("/api/v1/pods") {
            return Reply::Pass;
        }
        if !asked.path.contains("continue=") {
            return page(&["Running", "Pending"], "next");
        }
        if times.fetch_add(1, Ordering::Relaxed) < 2 {
            return status(410, "Expired", "The provided continue parameter is too old");
        }
        page(&["Running"], "")
    })
    .await;
    scene.secret("c", &stub.kubeconfig("t")).await;
    let _worker = scene.worker(&[("c", json!({}))], &[]).await;
    let id = scene.sync("c").await;
    let seen = scene.result(&id).await.unwrap();
    assert_eq!(seen["pods"], json!({"Running": 2, "Pending": 1}));
    assert_eq!(expired.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn t12_a_list_that_expires_each_time_is_given_up() {
    let scene = Scene::new("t12-always").await;
    let stub = Stub::before(&target().await, |asked| {
        if !asked.is("/api/v1/pods") {
            return Reply::Pass;
        }
        if asked.path.contains("continue=") {
            return status(410, "Expired", "too old");
        }
        page(&["Running"], "next")
    })
    .await;
    scene.secret("c", &stub.kubeconfig("t")).await;
    let _worker = scene.worker(&[("c", json!({}))], &[]).await;
    let id = scene.sync("c").await;
    let failed = scene.result(&id).await.unwrap_err();
    assert_eq!(failed, "cluster `c`: list its pods: too old (410)");
    let begun = stub
        .seen()
        .iter()
        .filter(|asked| asked.is("/api/v1/pods") && !asked.path.contains("continue="))
        .count();
    assert_eq!(begun, 4);
}

#[tokio::test]
async fn a_sync_says_what_is_used_what_is_not_well_and_what_it_may_not_read() {
    let scene = Scene::new("seen").await;
    let stub = Stub::before(&target().await, |asked| {
        if asked.is("/apis/metrics.k8s.io/v1beta1/nodes") {
            let node = |cpu: &str| json!({"metadata": {"name": "n"}, "usage": {"cpu": cpu, "memory": "1Gi"}});
            let body = json!({"kind": "NodeMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": [node("250m"), node("1500m")]});
            return Reply::Json(200, "", body.to_string());
        }
        if asked.is("/api/v1/nodes") {
            let node = |name: &str, ready: &str| json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": ready}]}});
            let body = json!({"kind": "NodeList", "apiVersion": "v1", "metadata": {}, "items": [node("n1", "True"), node("n2", "Unknown")]});
            return Reply::Json(200, "", body.to_string());
        }
        if asked.is("/readyz") {
            return Reply::Json(500, "", "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n".into());
        }
        if asked.is("/api/v1/pods") {
            return status(403, "Forbidden", "pods is forbidden");
        }
        Reply::Pass
    })
    .await;
    scene.secret("c", &stub.kubeconfig("t")).await;
    let _worker = scene.worker(&[("c", json!({}))], &[]).await;
    let id = scene.sync("c").await;
    let seen = scene.result(&id).await.unwrap();
    assert_eq!(seen["usage"], json!({"cpu": "1750m", "memory": "2Gi"}));
    assert_eq!(seen["healthy"], false);
    assert_eq!(
        seen["health"],
        "the API server is not ready: [-]etcd failed: reason withheld; 1 of 2 nodes not ready: n2"
    );
    assert_eq!(
        seen["refused"],
        json!(["list pods: cluster `c`: list its pods: pods is forbidden (403)"])
    );
    assert_eq!(seen["circuit"], json!({"state": "Closed"}));
}

/// A line of a process's status, in KiB.
fn memory(pid: u32, line: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let found = status.lines().find(|one| one.starts_with(line)).unwrap();
    found.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A measurement: build the worker for release and name it in `UMBEL_TEST_WORKER`.
#[tokio::test]
#[ignore = "makes 5,000 pods of 8 KiB; for figures"]
async fn a_sync_of_5000_pods_takes_little_memory() {
    let scene = Scene::new("many").await;
    let admin = client(&target().await).await;
    namespace(&admin, "many").await;
    let post = PostParams::default();
    let account = json!({"metadata": {"name": "default"}});
    Api::<ServiceAccount>::namespaced(admin.clone(), "many")
        .create(&post, &serde_json::from_value(account).unwrap())
        .await
        .unwrap();
    let pods = Api::<Pod>::namespaced(admin, "many");
    stream::iter(0..5000)
        .map(|n| {
            let note = "n".repeat(6 * 1024);
            let pod = json!({"metadata": {"name": format!("p{n}"), "annotations": {"note": note}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
            let (pods, post) = (&pods, &post);
            async move { pods.create(post, &serde_json::from_value(pod).unwrap()).await }
        })
        .buffer_unordered(16)
        .try_for_each(async |_| Ok(()))
        .await
        .unwrap();
    scene
        .secret("c", &std::fs::read_to_string(target().await).unwrap())
        .await;
    scene
        .secret(
            "small",
            &std::fs::read_to_string(crate::stage::another().await).unwrap(),
        )
        .await;
    let clusters = [("c", json!({})), ("small", json!({}))];
    let mut worker = scene.worker(&clusters, &[]).await;
    worker.says(crate::stage::SOON, "worker starts").await;
    let echo = scene.send("umbel.echo", &json!({})).await;
    scene.result(&echo).await.unwrap();
    let fresh = memory(worker.pid(), "VmRSS:");
    // What a first sync of anything costs: two clients, and the program's own text as far as it is used.
    let id = scene.sync("small").await;
    scene.result(&id).await.unwrap();
    let idle = memory(worker.pid(), "VmRSS:");
    let mut grown = Vec::new();
    for _ in 0..3 {
        std::fs::write(format!("/proc/{}/clear_refs", worker.pid()), "5").unwrap(); // The peak is that from here on.
        let begin = std::time::Instant::now();
        let id = scene.sync("c").await;
        let seen = scene.result(&id).await.unwrap();
        assert_eq!(seen["pods"]["Pending"], 5000, "{seen}");
        let took = begin.elapsed();
        let pid = worker.pid();
        let (peak, anon) = (memory(pid, "VmHWM:").saturating_sub(idle), memory(pid, "RssAnon:"));
        grown.push((peak, anon, took));
    }
    println!("before any sync {fresh} KiB, after a small one {idle}; peak above that, RssAnon, time: {grown:?}");
    assert!(grown.iter().all(|(grown, _, _)| *grown <= 16 * 1024), "{grown:?}");
}
