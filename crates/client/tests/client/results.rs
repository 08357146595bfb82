//! Results, saved groups, revoking and events, with Celery on the other side.

use std::time::Duration;

use serde_json::json;
use umbel_client::{Config, Json, Options, ResultError, Revoke, Task, chain, group};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, Redis, eventually_some};

use crate::support::{SOON, client, client_with, umbel_worker};

fn echo(n: i64) -> Task {
    Task::new("umbel.echo").args(&(n,))
}

#[tokio::test]
async fn groups_are_saved_for_celery_and_read_from_it() {
    let redis = Redis::start().await;
    let _worker = umbel_worker(&redis, &[]);
    let client = client(&redis).await;
    let mut celery = Celery::client(&redis.url()).await;
    let ours = client
        .apply(group([chain([echo(1), echo(2)]), echo(3).into()]))
        .await
        .unwrap();
    ours.save().await.unwrap();
    let read = format!(
        "from celery.result import GroupResult\nr = GroupResult.restore({:?}, app=app)\nanswer = r.get(timeout=30)",
        ours.id()
    );
    let (expected, seen) = (ours.get(SOON).await.unwrap(), celery.script(&read, SOON).await.unwrap());
    assert_eq!(expected.to::<serde_json::Value>().unwrap(), seen);
    assert!(ours.unsave().await.unwrap() && !ours.unsave().await.unwrap());
    assert!(client.saved(ours.id()).await.unwrap().is_none());

    let save =
        "g = group(app.signature('umbel.echo', args=(n,)) for n in (7, 8)).apply_async()\ng.save()\nanswer = g.id";
    let id = celery.script(save, SOON).await.unwrap();
    let theirs = client.saved(id.as_str().unwrap()).await.unwrap().unwrap();
    assert_eq!(theirs.members().len(), 2);
    let values: serde_json::Value = theirs.get_as(SOON).await.unwrap();
    assert_eq!(
        values,
        json!([{"args": [7], "kwargs": {}}, {"args": [8], "kwargs": {}}])
    );
    assert_eq!(theirs.state().await.unwrap().name, "SUCCESS");
    assert_eq!(theirs.forget().await.unwrap(), 2);
    assert_eq!(theirs.state().await.unwrap().name, "PENDING");
}

#[tokio::test]
async fn a_result_elsewhere_is_waited_for_there() {
    let redis = Redis::start().await;
    let elsewhere = Redis::start().await;
    let results = elsewhere.database(3);
    let _worker = umbel_worker(&redis, &["--result-url", &results, "--result-key-prefix", "far"]);
    let mut place = Config::new(&results);
    place.result_prefix = umbel_client::result_prefix("far");
    let client = client_with(
        &redis,
        Options {
            results: Some(place),
            ..Options::default()
        },
    )
    .await;
    let sent = client.send(echo(1)).await.unwrap();
    assert_eq!(sent.get(SOON).await.unwrap().as_str(), r#"{"args": [1], "kwargs": {}}"#);
    let chord = umbel_client::chord([echo(1), echo(2)], Task::new("umbel.echo"));
    assert!(client.apply(chord).await.unwrap().get(SOON).await.is_ok());
    let mut connection = elsewhere.connection_to(3).await;
    assert!(
        connection
            .exists::<_, bool>(format!("far_celery-task-meta-{}", sent.id()))
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn documents_of_every_kind_are_read() {
    let redis = Redis::start().await;
    let client = client(&redis).await;
    let mut connection = redis.connection().await;
    let mut store = async |id: &str, document: Vec<u8>| {
        let _: () = connection
            .set(format!("celery-task-meta-{id}"), document)
            .await
            .unwrap();
    };
    store(
        "own",
        br#"{"status": "PROGRESS", "result": {"done": 3}, "children": [], "task_id": "own"}"#.to_vec(),
    )
    .await;
    let state = client.handle("own").state().await.unwrap();
    assert_eq!(
        (state.name.as_str(), state.result.as_str()),
        ("PROGRESS", r#"{"done": 3}"#)
    );
    assert!(!state.is_ready());

    let error = r#"{"exc_type": "Custom", "exc_message": ["a", 2, {"k": null}], "exc_module": "shop.errors"}"#;
    let failed = format!(r#"{{"status": "FAILURE", "result": {error}, "traceback": "Traceback …", "task_id": "bad"}}"#);
    store("bad", failed.into_bytes()).await;
    let Err(ResultError::Remote(err)) = client.handle("bad").get(SOON).await else {
        panic!("a failure is an error")
    };
    assert_eq!(
        (err.exc_module.as_str(), err.exc_type.as_str()),
        ("shop.errors", "Custom")
    );
    assert_eq!(
        err.args,
        [Json::of("a"), Json::of(&2), Json::parse(r#"{"k": null}"#).unwrap()]
    );
    assert_eq!(err.traceback.as_deref(), Some("Traceback …"));

    let document = br#"{"status": "SUCCESS", "result": [NaN, 123456789012345678901234567890], "task_id": "odd"}"#;
    store("odd", document.to_vec()).await;
    let odd = client.handle("odd");
    assert_eq!(
        odd.get(SOON).await.unwrap().as_str(),
        "[NaN, 123456789012345678901234567890]"
    );
    assert!(matches!(
        odd.get_as::<Vec<i64>>(SOON).await,
        Err(ResultError::Type { .. })
    ));

    let packed = umbel_codec::compress(umbel_client::Compression::Zlib, document);
    let mut whole = b"\0celery-compressed\0application/x-gzip\0".to_vec();
    whole.extend(packed);
    store("packed", whole).await;
    assert_eq!(
        client.handle("packed").get(SOON).await.unwrap().as_str(),
        "[NaN, 123456789012345678901234567890]"
    );
    let large = format!(
        r#"{{"status": "SUCCESS", "result": [{}], "task_id": "large"}}"#,
        vec![r#"{"a": 1}"#; 50_000].join(", ")
    );
    store("large", large.into_bytes()).await;
    assert_eq!(
        client
            .handle("large")
            .get(SOON)
            .await
            .unwrap()
            .elements()
            .unwrap()
            .len(),
        50_000
    );

    store("broken", b"\xff".to_vec()).await;
    assert!(matches!(
        client.handle("broken").state().await,
        Err(ResultError::Document { .. })
    ));
    let begin = std::time::Instant::now();
    let err = client
        .handle("nobody")
        .get(Duration::from_millis(150))
        .await
        .unwrap_err();
    assert!(
        matches!(err, ResultError::Timeout { .. }) && begin.elapsed() < SOON,
        "{err}"
    );
    let ignored = client.send(echo(1).ignore_result(true)).await.unwrap();
    assert!(matches!(ignored.get(SOON).await, Err(ResultError::Ignored { .. })));
}

#[tokio::test]
async fn a_result_wakes_who_waits_for_it() {
    let redis = Redis::start().await;
    let client = client(&redis).await;
    let handle = client.handle("slow");
    let waiting = tokio::spawn({
        let handle = handle.clone();
        async move { handle.get(SOON).await }
    });
    let mut connection = redis.connection().await;
    let key = "celery-task-meta-slow";
    // There is a subscriber before there is a result.
    eventually_some(SOON, "a subscription", async || {
        let count: (String, u64) = umbel_testkit::redis::cmd("PUBSUB")
            .arg("NUMSUB")
            .arg(key)
            .query_async(&mut connection)
            .await
            .unwrap();
        (count.1 == 1).then_some(())
    })
    .await;
    let document = r#"{"status": "SUCCESS", "result": 1, "task_id": "slow"}"#;
    let began = std::time::Instant::now();
    let _: () = umbel_testkit::redis::pipe()
        .set(key, document)
        .publish(key, document)
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().as_str(), "1");
    // Not by looking again, which happens every two seconds.
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
}

/// Celery's `GroupResult.get` raises as soon as any member has failed; none of the others ever ends here.
#[tokio::test]
async fn a_group_ends_with_the_first_failure_whichever_member_it_is() {
    let redis = Redis::start().await;
    let client = client(&redis).await;
    let mut connection = redis.connection().await;
    for (failing, is_waited_for) in [(0, true), (1, true), (2, true), (2, false)] {
        let sent = client.apply(group([echo(1), echo(2), echo(3)])).await.unwrap();
        let ids = sent.ids();
        let key = format!("celery-task-meta-{}", ids[failing]);
        let document = json!({"status": "FAILURE", "task_id": ids[failing], "result": {
            "exc_type": "ValueError", "exc_module": "builtins", "exc_message": [failing]}});
        let store = {
            let mut pipe = umbel_testkit::redis::pipe();
            pipe.set(&key, document.to_string()).publish(&key, document.to_string());
            pipe
        };
        let waiting = tokio::spawn(async move { sent.get(SOON).await });
        if is_waited_for {
            eventually_some(SOON, "subscriptions to all members", async || {
                let mut asked = umbel_testkit::redis::cmd("PUBSUB");
                asked.arg("NUMSUB").arg(
                    ids.iter()
                        .map(|id| format!("celery-task-meta-{id}"))
                        .collect::<Vec<_>>(),
                );
                let counts: Vec<(String, u64)> = asked.query_async(&mut connection).await.unwrap();
                counts.iter().all(|(_, count)| *count == 1).then_some(())
            })
            .await;
        }
        let began = std::time::Instant::now();
        let _: () = store.query_async(&mut connection).await.unwrap();
        let Err(ResultError::Remote(err)) = waiting.await.unwrap() else {
            panic!("member {failing} has failed")
        };
        assert_eq!(
            (err.id.as_str(), err.exc_type.as_str()),
            (ids[failing].as_str(), "ValueError")
        );
        // Not by looking again, which happens every two seconds.
        assert!(
            began.elapsed() < Duration::from_millis(1500),
            "{failing}: {:?}",
            began.elapsed()
        );
    }
}

#[tokio::test]
async fn a_revoked_task_does_not_run_although_no_worker_was_there_to_hear_it() {
    let redis = Redis::start().await;
    let client = client(&redis).await;
    let sent = client.send(echo(1)).await.unwrap();
    assert_eq!(sent.revoke(&Revoke::default()).await.unwrap(), 0);
    let _worker = umbel_worker(&redis, &[]);
    let Err(ResultError::Remote(err)) = sent.get(SOON).await else {
        panic!("it is revoked")
    };
    assert!(err.is_revoked(), "{err}");
    let running = client.task("umbel.sleep").args(&(60,)).send().await.unwrap();
    let mut connection = redis.connection().await;
    eventually_some(SOON, "it runs", async || {
        let held: usize = connection.hlen("umbel:unacked").await.unwrap();
        (held == 1).then_some(())
    })
    .await;
    let stop = Revoke {
        terminate: true,
        ..Revoke::default()
    };
    assert!(running.revoke(&stop).await.unwrap() > 0);
    let Err(ResultError::Remote(err)) = running.get(SOON).await else {
        panic!("it is terminated")
    };
    assert!(err.is_revoked(), "{err}");
}

#[tokio::test]
async fn celerys_receiver_sees_what_was_sent() {
    let redis = Redis::start().await;
    let mut celery = Celery::client(&redis.url()).await;
    celery.watch().await;
    let mut connection = redis.connection().await;
    // Celery says that it watches before it has subscribed.
    eventually_some(SOON, "the receiver's subscription", async || {
        let patterns: u64 = umbel_testkit::redis::cmd("PUBSUB")
            .arg("NUMPAT")
            .query_async(&mut connection)
            .await
            .unwrap();
        (patterns > 0).then_some(())
    })
    .await;
    let client = client_with(
        &redis,
        Options {
            events: true,
            ..Options::default()
        },
    )
    .await;
    let sent = client.send(echo(1)).await.unwrap();
    client.send_all((0..30).map(echo)).await.unwrap();
    let seen = eventually_some(SOON, "the events", async || {
        let seen = celery.seen().await;
        (seen["events"].as_array().unwrap().len() >= 31).then_some(seen)
    })
    .await;
    let first = &seen["events"][0];
    assert_eq!(
        (&first["type"], &first["uuid"]),
        (&json!("task-sent"), &json!(sent.id()))
    );
    assert_eq!((&first["args"], &first["queue"]), (&json!("[1]"), &json!("celery")));
}
