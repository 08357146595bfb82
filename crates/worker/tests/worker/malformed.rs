//! What is no task message, or in no list: kept with a reason, and nobody else is disturbed.

use serde_json::json;
use umbel_testkit::redis::{self, AsyncCommands};
use umbel_testkit::{Celery, History, Redis, eventually};

use crate::support::{SOON, admitted, borrowed, broker, depth, laid_aside, test_worker};

/// An envelope as Celery sends it, with one thing changed.
fn envelope(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let mut message = json!({
        "body": "W1tdLCB7fSwgeyJjYWxsYmFja3MiOiBudWxsLCAiZXJyYmFja3MiOiBudWxsLCAiY2hhaW4iOiBudWxsLCAiY2hvcmQiOiBudWxsfV0=",
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py", "task": "test.work", "id": "the-id", "eta": null, "expires": null, "retries": 0,
            "timelimit": [null, null], "root_id": "the-id", "argsrepr": "()", "kwargsrepr": "{}",
        },
        "properties": {
            "correlation_id": "the-id", "delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": "celery"},
            "priority": 0, "body_encoding": "base64", "delivery_tag": "the-tag",
        },
    });
    change(&mut message);
    message.to_string().into_bytes()
}

fn corpus() -> Vec<(&'static str, Vec<u8>)> {
    let whole = envelope(|_| ());
    let deep = |depth: usize| format!("[[{}{}], {{}}, {{}}]", "[".repeat(depth), "]".repeat(depth));
    let body = |text: String| {
        envelope(move |message| {
            message["body"] = json!(text);
            message["properties"]["body_encoding"] = json!("utf-8");
        })
    };
    vec![
        ("empty", Vec::new()),
        ("no JSON", b"hello".to_vec()),
        ("a JSON null", b"null".to_vec()),
        ("an array", b"[]".to_vec()),
        ("an empty object", b"{}".to_vec()),
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("two documents", [whole.clone(), whole].concat()),
        ("no UTF-8", vec![b'{', b'"', 0xff, 0xfe, b'"', b':', b'1', b'}']),
        ("nul bytes", vec![0; 64]),
        ("no headers", envelope(|message| message["headers"] = json!(null))),
        ("no task", envelope(|message| message["headers"]["task"] = json!(null))),
        ("no id", envelope(|message| message["headers"]["id"] = json!(null))),
        (
            "an id that is a number",
            envelope(|message| message["headers"]["id"] = json!(7)),
        ),
        ("no body", envelope(|message| message["body"] = json!(null))),
        (
            "a body that is no base64",
            envelope(|message| message["body"] = json!("***")),
        ),
        ("a body that is no JSON", body("nope".into())),
        ("a body of two", body("[[], {}]".into())),
        ("arguments that are no list", body("[1, {}, {}]".into())),
        ("keywords that are no object", body("[[], 1, {}]".into())),
        ("keywords that are null", body("[[], null, {}]".into())),
        ("arguments nested too deep", body(deep(5000))),
        (
            "pickle",
            envelope(|message| message["content-type"] = json!("application/x-python-serialize")),
        ),
        (
            "an unknown encoding",
            envelope(|message| message["properties"]["body_encoding"] = json!("rot13")),
        ),
        (
            "an ETA that is no time",
            envelope(|message| message["headers"]["eta"] = json!("tomorrow")),
        ),
        (
            "an expiry that is no time",
            envelope(|message| message["headers"]["expires"] = json!({})),
        ),
        (
            "oversized",
            envelope(|message| message["headers"]["argsrepr"] = json!("x".repeat(2 << 20))),
        ),
        ("oversized garbage", vec![b'['; 3 << 20]),
    ]
}

#[tokio::test]
async fn each_malformed_message_is_kept_with_a_reason_and_its_neighbours_run() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut worker = test_worker(&redis.url(), &history, &["--concurrency", "4"]);
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    let mut connection = redis.connection().await;
    let mut neighbours = Vec::new();
    let corpus = corpus();
    for (name, raw) in &corpus {
        connection
            .lpush::<_, _, ()>("celery", raw)
            .await
            .unwrap_or_else(|err| panic!("push {name}: {err}"));
        neighbours.push(celery.send("test.work", json!([0.0]), json!({})).await);
    }
    history.enqueued(borrowed(&neighbours));
    let states = celery.wait_all(&neighbours, SOON).await;
    assert_eq!(states.get("SUCCESS"), Some(&corpus.len()), "{states:?}");
    eventually(SOON, "nothing is left", async || {
        let depth = depth(&broker(&redis.url()).await, "celery").await;
        depth.waiting + depth.in_flight == 0
    })
    .await;
    let mut kept = laid_aside(&redis, "quarantine", "celery").await;
    kept.extend(laid_aside(&redis, "dead", "celery").await);
    let reasons: Vec<&String> = kept.iter().map(|(reason, _)| reason).collect();
    assert_eq!(kept.len(), corpus.len(), "all are kept: {reasons:#?}");
    assert!(
        reasons.iter().all(|reason| !reason.is_empty()),
        "each has a reason: {reasons:#?}"
    );
    assert!(worker.exit().is_none(), "the worker lives");
    let (state, info) = celery.state("the-id").await;
    assert_eq!(state, "FAILURE", "where an id is known, its caller learns it: {info}");
    let raws: Vec<Vec<u8>> = stream(&mut connection, "umbel:quarantine:celery").await;
    for (name, raw) in corpus
        .iter()
        .filter(|(name, _)| name.starts_with("oversized") || *name == "no UTF-8")
    {
        assert!(raws.contains(raw), "{name} is kept byte for byte");
    }
}

async fn stream(connection: &mut redis::aio::MultiplexedConnection, key: &str) -> Vec<Vec<u8>> {
    let entries: redis::streams::StreamRangeReply = connection.xrange_all(key).await.expect("the server answers");
    entries.ids.iter().filter_map(|entry| entry.get("raw")).collect()
}

#[tokio::test]
async fn a_queue_key_of_another_type_is_named_and_the_other_queues_run() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut connection = redis.connection().await;
    connection
        .set::<_, _, ()>("wrong", "a string")
        .await
        .expect("the server answers");
    let mut worker = test_worker(&redis.url(), &history, &["--queue", "wrong,right"]);
    let mut celery = Celery::client(&redis.url()).await;
    let ids = celery
        .send_all("test.work", vec![json!([0.0]); 50], json!({"queue": "right"}))
        .await;
    assert_eq!(celery.wait_all(&ids, SOON).await.get("SUCCESS"), Some(&50));
    worker.says(SOON, "WRONGTYPE").await;
    let lines: Vec<String> = worker
        .log()
        .lines()
        .filter(|line| line.contains("WRONGTYPE"))
        .map(str::to_owned)
        .collect();
    assert!(
        lines.len() <= 2 && lines[0].contains("wrong"),
        "one line that names the key: {lines:#?}"
    );
    connection.del::<_, ()>("wrong").await.expect("the server answers");
    let id = celery.send("test.work", json!([0.0]), json!({"queue": "wrong"})).await;
    assert_eq!(celery.get(&id, SOON).await, Ok(json!(0.0)), "mended, it is served");
}
