//! Which cluster it is.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use serde_json::json;
use umbel_broker::TargetSaid;
use umbel_testkit::{Authority, Pipe, eventually};

use crate::stage::{SOON, Scene, another, client, namespace, target, uid};
use crate::stub::{Asked, Reply, Stub, status};

fn writes(stub: &Stub) -> Vec<Asked> {
    stub.seen().into_iter().filter(|asked| asked.method != "GET").collect()
}

#[tokio::test]
async fn t09_another_cluster_at_the_same_address_is_not_written_to() {
    let scene = Scene::new("t09").await;
    let (mine, other) = (target().await, another().await);
    namespace(&client(&mine).await, "t09").await;
    let (mine_uid, other_uid) = (uid(&mine).await, uid(&other).await);
    let authority = Arc::new(Authority::new("stub"));
    let right = Stub::with(authority.clone(), &mine, |_| Reply::Pass).await;
    let wrong = Stub::with(authority, &other, |_| Reply::Pass).await;
    let pipe = Pipe::to(right.port).await;
    scene.secret("c", &right.kubeconfig_at(pipe.port(), "t")).await;
    let first = scene.worker(&[("c", json!({}))], &[]).await;
    let id = scene.sync("c").await;
    let seen = scene.result(&id).await.unwrap();
    assert_eq!(seen["uid"], mine_uid);
    let pin = TargetSaid::Pinned(mine_uid.clone());
    scene.broker.say_target("t09", "c", Some(&pin)).await.unwrap();
    let id = scene.apply("c", "m1").await;
    scene.result(&id).await.unwrap();
    drop(first);

    pipe.lead_to(wrong.port);
    let _second = scene.worker(&[("c", json!({}))], &[]).await;
    let id = scene.apply("c", "m2").await;
    let failed = scene.result(&id).await.unwrap_err();
    assert!(
        failed.contains("it is another cluster than before")
            && failed.contains(&mine_uid)
            && failed.contains(&other_uid),
        "{failed}"
    );
    let id = scene.sync("c").await;
    scene.result(&id).await.unwrap_err();
    eventually(SOON, "it is reported", async || {
        let report = scene.report("c").await;
        let error = report.error.unwrap_or_default();
        !report.reachable
            && report.reason.as_deref() == Some("IdentityChanged")
            && error.contains(&mine_uid)
            && error.contains(&other_uid)
    })
    .await;
    assert!(writes(&wrong).is_empty(), "{:?}", writes(&wrong));
    let maps = Api::<ConfigMap>::namespaced(client(&other).await, "t09");
    assert!(maps.get_opt("m2").await.unwrap().is_none());

    // An administrator accepts it.
    let pin = TargetSaid::Pinned(other_uid);
    scene.broker.say_target("t09", "c", Some(&pin)).await.unwrap();
    let id = scene.apply("c", "m2").await;
    scene.result(&id).await.unwrap();
    assert!(maps.get_opt("m2").await.unwrap().is_some());
}

#[tokio::test]
async fn d05_a_cluster_that_cannot_be_recognised_is_read_and_written_only_without_a_pin() {
    let scene = Scene::new("d05").await;
    let mine = target().await;
    namespace(&client(&mine).await, "d05").await;
    let stub = Stub::before(&mine, |asked| {
        if asked.is("/api/v1/namespaces/kube-system") {
            status(403, "Forbidden", "namespaces \"kube-system\" is forbidden")
        } else {
            Reply::Pass
        }
    })
    .await;
    scene.secret("c", &stub.kubeconfig("t")).await;
    let _worker = scene.worker(&[("c", json!({}))], &[]).await;
    let id = scene.apply("c", "m1").await;
    scene.result(&id).await.unwrap();
    let written = writes(&stub).len();
    assert!(written > 0);

    let pin = TargetSaid::Pinned(uid(&mine).await);
    scene.broker.say_target("d05", "c", Some(&pin)).await.unwrap();
    let id = scene.apply("c", "m2").await;
    let failed = scene.result(&id).await.unwrap_err();
    assert!(
        failed.contains("nothing is written: it was the cluster with the kube-system uid"),
        "{failed}"
    );
    assert_eq!(writes(&stub).len(), written);
    let id = scene.sync("c").await;
    let seen = scene.result(&id).await.unwrap();
    assert_eq!(
        (seen["reachable"].as_bool(), seen["uidUnknown"].as_str()),
        (Some(true), Some("namespaces \"kube-system\" is forbidden"))
    );
}
