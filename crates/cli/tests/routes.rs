//! Where calls go: tasks by routes, requests by the exchange of remote control.

#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

mod support;

use support::{SOON, good, umbel, umbel_with, umbel_worker, value};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Redis, TempDir, eventually};

#[tokio::test]
async fn tasks_go_where_the_routes_of_a_file_lead() {
    let redis = Redis::start().await;
    let url = redis.url();
    let folder = TempDir::new("routes");
    let file = folder.path().join("routes.json");
    let routes = r#"{"proj.add": "sums", "proj.*": {"queue": "rest", "priority": 6}, "re:shop": {"queue": "shop"}}"#;
    std::fs::write(&file, routes).unwrap();
    let file = file.to_str().unwrap();
    let send = async |args: &[&str]| {
        let mut all = vec!["task", "send"];
        all.extend(args);
        all.extend(["--routes", file, "-o", "json"]);
        value(umbel(&url, &all).await)
    };
    assert_eq!(send(&["proj.add"]).await["queue"], "sums");
    assert_eq!(send(&["proj.mail"]).await["queue"], "rest");
    assert_eq!(send(&["proj.mail", "--priority", "0"]).await["queue"], "rest");
    assert_eq!(send(&["proj.add", "--queue", "mine"]).await["queue"], "mine");
    assert_eq!(send(&["nobody"]).await["queue"], "celery");
    assert_eq!(send(&["shop.order", "--count", "2"]).await["to"], "queue shop");
    let lines = "[1]\n{\"task\": \"proj.add\"}\n";
    let sent = umbel_with(
        &url,
        &["task", "send", "nobody", "--from", "-", "--routes", file],
        lines,
    )
    .await;
    assert!(good(sent).starts_with("2 tasks sent where their routes lead, "));
    let workflow = r#"{"chain": ["proj.add", "shop.order"]}"#;
    good(umbel_with(&url, &["task", "canvas", "-", "--routes", file], workflow).await);
    let mut connection = redis.connection().await;
    for (list, length) in [
        ("sums", 3),
        ("rest\u{6}\u{16}6", 1),
        ("rest", 1),
        ("mine", 1),
        ("celery", 2),
        ("shop", 2),
    ] {
        assert_eq!(connection.llen::<_, usize>(list).await.unwrap(), length, "{list:?}");
    }
    std::fs::write(file, r#"{"a": {"expires": 5}}"#).unwrap();
    let bad = umbel(&url, &["task", "send", "a", "--routes", file]).await;
    assert_eq!(bad.code, 2);
    assert!(
        bad.err.contains("a: option \"expires\" is none that a route may have"),
        "{}",
        bad.err
    );
}

#[tokio::test]
async fn requests_go_by_the_control_exchange_of_the_workers() {
    let redis = Redis::start().await;
    let url = redis.url();
    let _worker = umbel_worker(&redis, &["--control-exchange", "jobs"]);
    eventually(SOON, "the worker hears", async || {
        let heard = umbel(
            &url,
            &["task", "revoke", "x", "--control-exchange", "jobs", "-o", "json"],
        )
        .await;
        value(heard)["listeners"] == 1
    })
    .await;
    let unheard = value(umbel(&url, &["task", "revoke", "y", "-o", "json"]).await);
    assert_eq!(unheard["listeners"], 0);
}

#[tokio::test]
async fn structures_are_kept_as_the_workers_read_them() {
    let redis = Redis::start().await;
    let url = redis.url();
    let _worker = umbel_worker(&redis, &["--result-serializer", "msgpack"]);
    let nested = r#"{"chord": {"header": [{"chain": ["umbel.echo", {"group": ["umbel.echo", "umbel.echo"]}]}, "umbel.echo"],
                     "body": {"task": "umbel.echo", "immutable": true}}}"#;
    let flags = ["task", "canvas", "-", "--wait", "--result-serializer", "msgpack"];
    let done = good(umbel_with(&url, &flags, nested).await);
    assert!(done.contains("\"args\": []"), "{done}");
    let group = r#"{"group": ["umbel.echo", "umbel.echo"]}"#;
    let id = good(
        umbel_with(
            &url,
            &["task", "canvas", "-", "--save", "--result-serializer", "yaml"],
            group,
        )
        .await,
    );
    let mut connection = redis.connection().await;
    let saved: String = connection
        .get(format!("celery-taskset-meta-{}", id.trim()))
        .await
        .unwrap();
    assert!(saved.starts_with("result:"), "{saved}");
    let results = good(umbel(&url, &["task", "get", id.trim(), "--wait"]).await);
    assert_eq!(results.matches("kwargs").count(), 2, "{results}");
}
