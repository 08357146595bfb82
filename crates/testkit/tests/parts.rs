//! The parts are real and end with the test.

use std::path::Path;
use std::time::Duration;

use redis::AsyncCommands;
use serde_json::json;
use umbel_testkit::{
    App, Celery, CeleryNode, CeleryOptions, CeleryVersion, CeleryWorker, ControlPlane, History, Process, Redis,
    ServerKind, Signal, celery_node_worker,
};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_durable_server_keeps_what_it_answered_and_another_forgets() {
    for (mut server, kept) in [(Redis::durable().await, Some(1)), (Redis::start().await, None)] {
        let set: Result<(), _> = server.connection().await.set("k", 1).await;
        assert!(set.is_ok());
        let port = server.port();
        server.start_again().await;
        assert_eq!(server.port(), port);
        assert_eq!(
            server.connection().await.get::<_, Option<i64>>("k").await.ok(),
            Some(kept)
        );
    }
}

#[tokio::test]
async fn a_process_is_watched_stopped_and_killed() {
    let script = "trap 'echo in order; exit 3' TERM; echo up; while :; do read -r -t 1 _ || sleep 0.05; done";
    let mut process = Process::start(Path::new("/bin/bash"), ["-c", script], &[]);
    process.says(SOON, "up").await;
    process.signal(Signal::Stop);
    process.signal(Signal::Term);
    assert!(process.exit().is_none(), "a stopped process does not see the signal");
    process.signal(Signal::Cont);
    assert_eq!(process.wait(SOON).await.code(), Some(3));
    assert!(process.log().contains("in order"));
}

#[tokio::test]
async fn celery_client_and_worker_speak_through_redis() {
    let server = Redis::start().await;
    let history = History::new();
    let options = CeleryOptions {
        environment: vec![history.environment()],
        ..CeleryOptions::default()
    };
    let _worker = CeleryWorker::start(&server.url(), &options).await;
    let mut client = Celery::client(&server.url()).await;
    let echo = client
        .send("umbel.echo", json!([1, "é"]), json!({"kwargs": {"a": null}}))
        .await;
    assert_eq!(
        client.get(&echo, SOON).await,
        Ok(json!({"args": [1, "é"], "kwargs": {"a": null}}))
    );
    let fails = client.send("umbel.sleep", json!(["no number"]), json!({})).await;
    let raised = client.get(&fails, SOON).await.expect_err("the task raises");
    assert_eq!(
        (raised.module.as_str(), raised.exc_type.as_str()),
        ("builtins", "TypeError")
    );
    let ids = client.send_all("test.work", vec![json!([]); 20], json!({})).await;
    history.enqueued(ids.iter().map(String::as_str));
    assert_eq!(client.wait_all(&ids, SOON).await.get("SUCCESS"), Some(&20));
    let verdict = history.verdict(&[]);
    assert_eq!(
        (verdict.enqueued, verdict.done, verdict.lost.len()),
        (20, 20, 0),
        "{verdict}"
    );
}

#[tokio::test]
async fn every_peer_is_of_its_version_and_speaks() {
    let server = Redis::start_kind(ServerKind::Valkey, &[]).await;
    let info: String = redis::cmd("INFO")
        .arg("server")
        .query_async(&mut server.connection().await)
        .await
        .expect("it answers");
    assert!(info.contains("valkey_version:8."), "{info}");
    for (number, version, named) in [
        (1, CeleryVersion::V5_2, "v5.2."),
        (2, CeleryVersion::V5_6, "v5.6."),
        (3, CeleryVersion::V5_7, "v5.7."),
    ] {
        let app = App::at(&server.database(number));
        let options = CeleryOptions {
            version,
            ..CeleryOptions::default()
        };
        let (worker, mut client) = tokio::join!(
            CeleryWorker::start(&app.broker, &options),
            Celery::client_of(version, &app)
        );
        assert!(worker.process.log().contains(named), "{}", worker.process.log());
        let sent = client.apply("chord([e(1, b=nan), s(0)], e())", None).await;
        let found = client.result(&sent, SOON).await;
        assert_eq!(
            found.as_deref(),
            Ok(r#"{"args":[[{"args":[1],"kwargs":{"b":NaN}},0]],"kwargs":{}}"#)
        );
    }
    let app = App::at(&server.url());
    let _worker = celery_node_worker(&app.broker, &app.results).await;
    let mut client = CeleryNode::client().await;
    for protocol in [1, 2] {
        let id = client
            .send(&app, protocol, "umbel.echo", &json!(["é"]), &json!({"b": null}))
            .await;
        assert_eq!(
            client.get(&id, SOON).await.as_deref(),
            Ok(r#"{"args":["é"],"kwargs":{"b":null}}"#)
        );
    }
}

#[tokio::test]
async fn a_control_plane_has_controllers_and_targets() {
    use k8s_openapi::api::core::v1::ServiceAccount;
    let plane = ControlPlane::start().await;
    let accounts: kube::Api<ServiceAccount> = kube::Api::namespaced(plane.client().await, "default");
    umbel_testkit::eventually(SOON, "a controller makes the default account", async || {
        accounts.get_opt("default").await.is_ok_and(|found| found.is_some())
    })
    .await;
    let target = plane.target("east").await;
    let version = target
        .client()
        .await
        .apiserver_version()
        .await
        .expect("the target answers");
    assert_eq!(version.major, "1");
    assert!(plane.pid("kube-controller-manager") > 1);
}
