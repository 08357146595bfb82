//! Results as real Celery clients read them: which are stored, compressed, under a prefix, too large.

use futures::StreamExt as _;
use serde_json::{Value, json};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{App, Celery, CeleryOptions, CeleryVersion, CeleryWorker, History, Redis, eventually, within};

use crate::support::{LATER, SOON, broker, depth, laid_aside, test_worker, umbel_worker};

const META: &str = "celery-task-meta-";

#[tokio::test]
async fn a_queue_stores_all_results_or_failures_or_none() {
    for (policy, stored) in [
        ("All", [true, true]),
        ("failures", [false, true]),
        ("None", [false, false]),
    ] {
        let redis = Redis::start().await;
        let _worker = umbel_worker(&redis.url(), &["--results", policy]);
        let mut celery = Celery::client(&redis.url()).await;
        let good = celery.send("umbel.echo", json!([1]), json!({})).await;
        let bad = celery.send("umbel.sleep", json!(["x"]), json!({})).await;
        let ignored = json!({"ignore_result": true});
        let ignored = celery.send("umbel.sleep", json!(["x"]), ignored).await;
        let broker = broker(&redis.url()).await;
        eventually(SOON, "both have ended", async || {
            laid_aside(&redis, "dead", "celery").await.len() == 2 && depth(&broker, "celery").await.in_flight == 0
        })
        .await;
        let mut connection = redis.connection().await;
        let mut found = Vec::new();
        for id in [&good, &bad, &ignored] {
            let is_there: bool = connection
                .exists(format!("{META}{id}"))
                .await
                .expect("the server answers");
            found.push(is_there);
        }
        assert_eq!(found, [stored[0], stored[1], false], "{policy}");
    }
}

#[tokio::test]
async fn compressed_results_are_read_by_celery_and_success_stays() {
    for compression in ["zlib", "bzip2", "lzma", "brotli", "zstd"] {
        let redis = Redis::start().await;
        let _worker = umbel_worker(
            &redis.url(),
            &["--result-compression", compression, "--retry-max-attempts", "1"],
        );
        let mut celery = Celery::client(&redis.url()).await;
        let id = celery.send("umbel.echo", json!(["x".repeat(1000)]), json!({})).await;
        let expected = json!({"args": ["x".repeat(1000)], "kwargs": {}});
        assert_eq!(celery.get(&id, SOON).await, Ok(expected.clone()), "{compression}");
        let mut connection = redis.connection().await;
        let raw: Vec<u8> = connection.get(format!("{META}{id}")).await.expect("the server answers");
        assert!(raw.starts_with(b"\0celery-compressed\0application/"), "{compression}");
        assert!(raw.len() < 500, "{compression}: {} bytes", raw.len());
        // The same id once more, failing: the SUCCESS is not overwritten, a failure of another id is stored.
        let again = json!({"task_id": id});
        celery.send("umbel.sleep", json!(["x"]), again).await;
        let other = celery.send("umbel.sleep", json!(["x"]), json!({})).await;
        let raised = celery.get(&other, SOON).await.expect_err("it fails");
        assert_eq!(raised.exc_type, "TypeError", "{compression}");
        eventually(SOON, "both have ended", async || {
            laid_aside(&redis, "dead", "celery").await.len() == 2
        })
        .await;
        assert_eq!(celery.get(&id, SOON).await, Ok(expected), "{compression}");
    }
}

/// Celery's client and ours, each set up as the worker is told.
#[tokio::test]
async fn results_in_other_serializers_are_read_by_celery_and_success_stays() {
    let cases = [
        (CeleryVersion::V5_7, "msgpack", None),
        (CeleryVersion::V5_7, "yaml", None),
        (CeleryVersion::V5_7, "msgpack", Some("zstd")),
        (CeleryVersion::V5_6, "msgpack", None),
        (CeleryVersion::V5_2, "msgpack", None),
        (CeleryVersion::V5_2, "yaml", None),
    ];
    for (version, serializer, compression) in cases {
        let what = format!("{version:?} {serializer} {compression:?}");
        let redis = Redis::start().await;
        let mut flags = vec!["--result-serializer", serializer, "--retry-max-attempts", "1"];
        flags.extend(compression.iter().flat_map(|name| ["--result-compression", name]));
        let _worker = umbel_worker(&redis.url(), &flags);
        let app = App {
            settings: json!({"result_serializer": serializer, "accept_content": ["json", serializer]}),
            ..App::at(&redis.url())
        };
        let mut celery = Celery::client_of(version, &app).await;
        let echo = |args: Value| json!({"args": args, "kwargs": {}});
        let id = celery.send("umbel.echo", json!(["ß", [2.5, null]]), json!({})).await;
        let expected = echo(json!(["ß", [2.5, null]]));
        assert_eq!(celery.get(&id, SOON).await, Ok(expected.clone()), "{what}");
        let mut connection = redis.connection().await;
        let raw: Vec<u8> = connection.get(format!("{META}{id}")).await.expect("the server answers");
        assert!(!raw.starts_with(b"{"), "{what}");
        // The same id once more, failing: the SUCCESS is not overwritten, a failure of another id is stored.
        celery.send("umbel.sleep", json!(["x"]), json!({"task_id": id})).await;
        let other = celery.send("umbel.sleep", json!(["x"]), json!({})).await;
        let raised = celery.get(&other, SOON).await.expect_err("it fails");
        assert_eq!(raised.exc_type, "TypeError", "{what}");
        eventually(SOON, "both have ended", async || {
            laid_aside(&redis, "dead", "celery").await.len() == 2
        })
        .await;
        assert_eq!(celery.get(&id, SOON).await, Ok(expected), "{what}");
        // Parts of chords and structures of their headers, of the producer and of our worker.
        let nested = "chord([chain(s(0), group(e(1), e(2))), s(0)], e())";
        let answer = echo(json!([[[echo(json!([0, 1])), echo(json!([0, 2]))], 0]]));
        assert_eq!(celery.canvas(nested, SOON).await, Ok(answer), "{what}");
        let inside = "chain(s(0), chord([chain(s(0).set(immutable=True), group(e(1), e(2))), e(3)], e('end')))";
        let members = json!([[echo(json!([0, 1])), echo(json!([0, 2]))], echo(json!([0, 3]))]);
        assert_eq!(
            celery.canvas(inside, SOON).await,
            Ok(echo(json!([members, "end"]))),
            "{what}"
        );
        let body = celery.apply("chord([e(1), s('x')], e())", None).await.id;
        let raised = celery.get(&body, SOON).await.expect_err("a member fails");
        assert_eq!(raised.exc_type, "ChordError", "{what}");
        if version == CeleryVersion::V5_2 {
            continue; // Its JSON sends a decimal as text.
        }
        // What a serializer has no form for is an error of the task, as with Celery.
        let handle = celery.apply("sig('umbel.echo', Decimal('1.5'))", None).await;
        let raised = celery.result(&handle, SOON).await.expect_err("it cannot be written");
        assert_eq!(raised.exc_type, "EncodeError", "{what}");
    }
}

/// Celery 5.7 compresses the parts of chords, too.
#[tokio::test]
async fn chords_are_shared_with_celerys_workers_in_another_serializer() {
    let redis = Redis::start().await;
    let settings = json!({
        "result_serializer": "msgpack",
        "accept_content": ["json", "msgpack"],
        "result_compression": "zlib",
    });
    let _ours = umbel_worker(&redis.url(), &["--concurrency", "2", "--result-serializer", "msgpack"]);
    let options = CeleryOptions {
        queues: "celery",
        settings: settings.clone(),
        ..CeleryOptions::default()
    };
    let _theirs = CeleryWorker::start(&redis.url(), &options).await;
    let mut celery = Celery::client_with(&redis.url(), &redis.url(), &settings).await;
    for _ in 0..3 {
        let expected = json!({"args": [vec![json!(0.02); 30]], "kwargs": {}});
        assert_eq!(celery.canvas("chord([s(0.02)] * 30, e())", LATER).await, Ok(expected));
    }
}

/// Celery sets the prefix of results off by an underscore, unless it ends in something that does; the broker's prefix
/// is another matter.
#[tokio::test]
async fn results_lie_under_their_own_prefix() {
    for (prefix, key) in [("app", "app_"), ("app:", "app:"), ("", "")] {
        let redis = Redis::start().await;
        let _worker = umbel_worker(&redis.url(), &["--result-key-prefix", prefix, "--key-prefix", "jobs."]);
        let settings = json!({
            "broker_transport_options": {"global_keyprefix": "jobs."},
            "result_backend_transport_options": {"global_keyprefix": prefix},
        });
        let mut celery = Celery::client_with(&redis.url(), &redis.url(), &settings).await;
        let workflow = "chord([s(0), s(0)], e())";
        let expected = json!({"args": [[0, 0]], "kwargs": {}});
        assert_eq!(celery.canvas(workflow, SOON).await, Ok(expected), "{prefix:?}");
        let mut connection = redis.connection().await;
        let found: Vec<String> = connection
            .keys(format!("{key}{META}*"))
            .await
            .expect("the server answers");
        assert_eq!(found.len(), 3, "{prefix:?}: {found:?}");
    }
}

#[tokio::test]
async fn a_result_that_is_too_large_fails_and_its_message_is_kept() {
    let redis = Redis::start().await;
    let _worker = umbel_worker(&redis.url(), &["--result-max-bytes", "1000"]);
    let mut celery = Celery::client(&redis.url()).await;
    let raised = celery
        .canvas(&format!("chain(e('{}'), e('next'))", "x".repeat(2000)), SOON)
        .await
        .expect_err("too large");
    assert_eq!(raised.exc_type, "ValueError");
    assert!(
        raised.message.contains("more than the limit of 1000"),
        "{}",
        raised.message
    );
    let dead = laid_aside(&redis, "dead", "celery").await;
    assert_eq!(dead.len(), 1);
    assert!(dead[0].0.starts_with("ran, but the result has"), "{dead:?}");
}

/// Which documents are stored, in which order, and with which fields: those of the captures.
#[tokio::test]
async fn documents_have_the_fields_of_celerys() {
    let redis = Redis::start().await;
    let history = History::new();
    let flags = [
        "--track-started",
        "--result-extended",
        "--name",
        "w1@lab",
        "--retry-initial-backoff",
        "10ms",
    ];
    let worker = test_worker(&redis.url(), &history, &flags);
    let client = umbel_testkit::redis::Client::open(redis.url()).expect("the url is one");
    let mut published = client.get_async_pubsub().await.expect("the server runs");
    published.psubscribe(format!("{META}*")).await.expect("the server runs");
    let mut celery = Celery::client(&redis.url()).await;
    let options = json!({"stamped_headers": ["tenant"], "tenant": "acme"});
    let id = celery.send("test.flaky", json!([1]), options).await;
    // A worker that connects tries whether it may publish, with nothing.
    let payloads = published
        .on_message()
        .map(|message| message.get_payload_bytes().to_vec());
    let four = payloads
        .filter(|payload| std::future::ready(!payload.is_empty()))
        .take(4);
    let documents: Vec<Vec<u8>> = within(SOON, "four documents", four.collect()).await;
    let extended = |retries: u32| {
        json!({"name": "test.flaky", "args": [1], "kwargs": {}, "worker": "w1@lab", "retries": retries, "queue": "celery",
               "stamped_headers": ["tenant"], "tenant": "acme", "task_id": id})
    };
    let started = json!({"pid": worker.pid(), "hostname": "w1@lab"});
    let cause = json!({"exc_type": "RuntimeError", "exc_message": ["not yet"], "exc_module": "builtins"});
    let expected = [
        ("STARTED", started.clone(), json!([]), 0),
        ("RETRY", cause, json!([[[id, null], null]]), 0),
        ("STARTED", started, json!([]), 1),
        ("SUCCESS", json!(1), json!([]), 1),
    ];
    for (document, (status, result, children, retries)) in documents.iter().zip(expected) {
        let mut document: Value = serde_json::from_slice(document).expect("it is JSON");
        let fields = document.as_object_mut().expect("it is an object");
        let traceback = fields.remove("traceback").expect("always there");
        assert_eq!(traceback.is_string(), status == "RETRY", "{status}");
        let done = fields.remove("date_done").expect("always there");
        assert_eq!(done.is_string(), status == "SUCCESS", "{status}");
        assert_eq!(fields.remove("parent_id"), (retries > 0).then(|| json!(id)), "{status}");
        let mut whole = extended(retries);
        whole["status"] = json!(status);
        whole["result"] = result;
        whole["children"] = children;
        assert_eq!(document, whole);
    }
}
