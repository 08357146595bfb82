//! Credentials show nowhere.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DynamicObject, ListParams};
use kube::discovery::{Discovery, verbs};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use umbel_testkit::{canaries, eventually, free_port};

use crate::stage::{SOON, Scene, target};
use crate::stub::{Reply, Stub, status};

#[tokio::test]
async fn c05_twenty_five_canaries_show_neither_in_redis_nor_in_logs_metrics_or_objects() {
    let scene = Scene::new("c05").await;
    scene.redis.set("rdbcompression", "no").await;
    let good = Stub::before(&target().await, |_| Reply::Pass).await;
    let refuses = Stub::before(&target().await, |_| status(401, "Unauthorized", "no such token")).await;
    let address = |port| format!("127.0.0.1:{port}");
    let all = canaries(
        &address(good.port),
        &address(refuses.port),
        &address(free_port()),
        &good.authority(),
    );
    assert_eq!(all.len(), 25);
    let mut clusters = Vec::new();
    for (number, (_, text)) in all.iter().enumerate() {
        let name = format!("c{number}");
        scene.secret(&name, text).await;
        clusters.push((name, json!({})));
    }
    let clusters: Vec<_> = clusters
        .iter()
        .map(|(name, more)| (name.as_str(), more.clone()))
        .collect();
    let admin = format!("127.0.0.1:{}", free_port());
    let worker = scene.worker(&clusters, &["--admin-addr", &admin]).await;
    let mut ids = Vec::new();
    for (name, _) in &clusters {
        ids.extend([scene.sync(name).await, scene.apply(name, "m").await]);
    }
    // Some jobs wait for their cluster, and that says enough, too.
    let patience = std::time::Duration::from_secs(15);
    let ended = ids.iter().map(|id| tokio::time::timeout(patience, scene.result(id)));
    let ended = futures::future::join_all(ended).await;
    let succeeded = ended.iter().filter(|result| matches!(result, Ok(Ok(_)))).count();
    assert!(succeeded >= 2, "the good one was used\n{}", worker.tail());
    eventually(SOON, "all were tried", async || {
        clusters
            .iter()
            .all(|(name, _)| worker.log().contains(&format!("\"{name}\"")))
    })
    .await;

    let mut raw = scene.redis.connection().await;
    let _: String = umbel_testkit::redis::cmd("SAVE").query_async(&mut raw).await.unwrap();
    let dump = std::fs::read(scene.redis.folder().join("dump.rdb")).unwrap();
    let mut places = vec![
        ("Redis", String::from_utf8_lossy(&dump).into_owned()),
        ("the log", worker.log()),
        ("the metrics", metrics(&admin).await),
        ("the objects at home", objects(&scene.home).await),
    ];
    assert!(places[0].1.contains("umbel:clusters:c05"), "the dump is readable");
    assert!(places[2].1.contains("umbel_"), "there are metrics");
    assert!(places[3].1.contains("kube-root-ca.crt"), "there are objects");
    let target = crate::stage::client(&target().await).await;
    places.push(("the objects at the target", objects(&target).await));
    for (number, (canary, _)) in all.iter().enumerate() {
        for (place, text) in &places {
            for form in [canary.clone(), STANDARD.encode(canary)] {
                assert!(!text.contains(&form), "the canary of c{number} is in {place}");
            }
        }
    }
}

async fn metrics(address: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// All objects but Secrets, as JSON.
async fn objects(client: &kube::Client) -> String {
    let mut text = String::new();
    let discovery = Discovery::new(client.clone()).run().await.unwrap();
    for group in discovery.groups() {
        for (resource, can) in group.recommended_resources() {
            if !can.supports_operation(verbs::LIST) || resource.kind == "Secret" {
                continue;
            }
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            let list = api.list(&ListParams::default()).await.unwrap();
            text.push_str(&serde_json::to_string(&list.items).unwrap());
        }
    }
    // They were there to be seen.
    let secrets: Api<Secret> = Api::all(client.clone());
    assert!(secrets.list(&ListParams::default()).await.is_ok());
    text
}
