//! What follows when nobody runs a message any more: its workflow ends, as after any failure.

use std::time::Duration;

use serde_json::{Value, json};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, Event, History, Process, Redis, eventually};

use crate::support::{LATER, SOON, admitted, broker, depth, laid_aside, test_worker};

/// A worker that gives a message up when it has killed once, and a neighbour that never runs the killer: it serves
/// another queue, and sweeps for all.
async fn stage(ack: &str) -> (Redis, History, Celery, Process, Process) {
    let redis = Redis::start().await;
    let history = History::new();
    let flags = ["--max-deliveries", "1", "--ack", ack];
    let victim = test_worker(&redis.url(), &history, &flags);
    let other = test_worker(&redis.url(), &history, &[&flags[..], &["--queue", "other"]].concat());
    admitted(&redis, 2).await;
    let celery = Celery::client(&redis.url()).await;
    (redis, history, celery, victim, other)
}

/// Types of the failures of these tasks, once each has one.
async fn failures(celery: &mut Celery, ids: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for id in ids {
        let raised = celery.get(id, LATER).await.expect_err("it was given up");
        found.push(raised.exc_type);
    }
    found
}

fn script(lines: &str) -> String {
    format!("call = lambda name, *args: app.signature(name, args=args, immutable=True)\n{lines}")
}

fn ids(value: &Value) -> Vec<String> {
    let ids = value.as_array().expect("a list").iter();
    ids.map(|id| id.as_str().expect("an id").to_owned()).collect()
}

#[tokio::test]
async fn w09_what_hangs_on_a_message_that_is_given_up_ends_with_it() {
    for ack in ["late", "early"] {
        let (redis, history, mut celery, mut victim, _other) = stage(ack).await;
        // A chord with the killer among its members, a chain with the killer before its end, an errback on both.
        let sent = celery
            .script(
                &script("
member = call('test.abort').set(link_error=call('test.work', 0.0).set(queue='other', task_id='errback-1'))
body = chord([call('test.work', 0.0).set(queue='other'), member], call('test.work', 0.0).set(queue='other')).apply_async()
answer = [body.id]"),
                SOON,
            )
            .await
            .expect("sent");
        let body = ids(&sent);
        let begun = async || history.total(Event::Started) >= 2;
        eventually(SOON, "the member runs and kills its worker", begun).await;
        eventually(SOON, "its worker is dead", async || victim.exit().is_some()).await;
        let found = failures(&mut celery, &body).await;
        assert_eq!(found, ["ChordError"], "{ack}: the body is not left waiting");
        assert_eq!(
            celery.get("errback-1", LATER).await,
            Ok(json!(0.0)),
            "{ack}: the errback runs"
        );

        let mut victim = test_worker(&redis.url(), &history, &["--max-deliveries", "1", "--ack", ack]);
        let sent = celery
            .script(
                &script(
                    "
rest = chain(call('test.abort'), call('test.work', 0.0), call('test.work', 0.0)).apply_async()
answer = [rest.parent.parent.id, rest.parent.id, rest.id]",
                ),
                SOON,
            )
            .await
            .expect("sent");
        eventually(SOON, "its worker is dead", async || victim.exit().is_some()).await;
        let found = failures(&mut celery, &ids(&sent)).await;
        assert_eq!(found, ["WorkerLostError"; 3], "{ack}: each step of the rest fails, too");

        let dead = laid_aside(&redis, "dead", "celery").await;
        let expected = if ack == "late" { 2 } else { 0 }; // Of what was acknowledged early there are no bytes left.
        assert_eq!(dead.len(), expected, "{ack}: {dead:?}");
        let broker = broker(&redis.url()).await;
        eventually(SOON, "nothing is held", async || {
            depth(&broker, "celery").await.in_flight == 0
        })
        .await;
    }
}

#[tokio::test]
async fn w16_what_hangs_on_a_message_that_cannot_be_run_ends_with_it() {
    let redis = Redis::start().await;
    let history = History::new();
    let _worker = test_worker(&redis.url(), &history, &[]);
    let mut celery = Celery::client(&redis.url()).await;
    // A member whose `eta` is none: it cannot be run, but it says what it belongs to.
    let sent = celery
        .script(
            &script(
                "
body = chord([call('test.work', 0.0), call('test.work', 0.0).set(queue='held')], call('test.work', 0.0)).apply_async()
answer = [body.id]",
            ),
            SOON,
        )
        .await
        .expect("sent");
    let mut connection = redis.connection().await;
    let raw: String = connection.rpop("held", None).await.expect("the other member");
    let spoilt = raw.replacen("\"eta\": null", "\"eta\": \"never\"", 1);
    assert_ne!(spoilt, raw);
    let _: () = connection.lpush("celery", spoilt).await.expect("pushed");
    assert_eq!(failures(&mut celery, &ids(&sent)).await, ["ChordError"]);
    assert_eq!(laid_aside(&redis, "quarantine", "celery").await.len(), 1);
}

#[tokio::test]
async fn w18_where_no_results_are_wanted_none_are_stored_of_what_is_given_up() {
    let redis = Redis::start().await;
    let history = History::new();
    let flags = ["--results", "None", "--max-deliveries", "1"];
    let mut victim = test_worker(&redis.url(), &history, &flags);
    let mut celery = Celery::client(&redis.url()).await;
    let mut connection = redis.connection().await;
    let _: () = connection
        .lpush("celery", r#"{"headers": {"id": "unreadable", "task": "t"}, "content-type": "application/x-python-serialize", "body": "x"}"#)
        .await
        .expect("pushed");
    eventually(SOON, "it is put away", async || {
        !laid_aside(&redis, "quarantine", "celery").await.is_empty()
    })
    .await;
    let sent = celery
        .script(
            &script(
                "
rest = chain(call('test.abort'), call('test.work', 0.0)).apply_async()
answer = [rest.parent.id, rest.id]",
            ),
            SOON,
        )
        .await
        .expect("sent");
    eventually(SOON, "its worker is dead", async || victim.exit().is_some()).await;
    let _next = test_worker(&redis.url(), &history, &flags);
    eventually(LATER, "it is given up", async || {
        !laid_aside(&redis, "dead", "celery").await.is_empty()
    })
    .await;
    for id in ids(&sent).iter().map(String::as_str).chain(["unreadable"]) {
        let key = format!("celery-task-meta-{id}");
        assert_eq!(connection.exists(&key).await, Ok(false), "{id}");
    }
}

#[tokio::test]
async fn w09_a_sweeper_that_dies_while_it_ends_a_message_leaves_it_to_the_next() {
    let (redis, history, mut celery, mut victim, mut first) = stage("late").await;
    // Its first attempt stays in the wire, as in a process that dies between taking the message and ending it.
    let relay = umbel_testkit::Relay::before(&redis).await;
    first.kill();
    let held = relay.hold(umbel_testkit::script("settle"));
    let flags = ["--max-deliveries", "1", "--queue", "other"];
    let mut sweeper = test_worker(&relay.url(), &history, &flags);
    admitted(&redis, 2).await;
    let id = celery.send("test.abort", json!([]), json!({})).await;
    eventually(SOON, "its worker is dead", async || victim.exit().is_some()).await;
    let late = held.sent(LATER).await;
    sweeper.kill();
    let _next = test_worker(&redis.url(), &history, &flags);
    let raised = celery.get(&id, LATER).await.expect_err("it was given up");
    assert_eq!(raised.exc_type, "WorkerLostError");
    late.deliver().await;
    let dead = laid_aside(&redis, "dead", "celery").await;
    assert_eq!(
        dead,
        [("killed its worker 1 times".to_owned(), id.clone())],
        "once, and only once"
    );
    assert_eq!(history.count(Event::Started, &id), 1, "and nobody ran it again");
}

#[tokio::test]
async fn inspect_shows_what_was_acknowledged_before_its_run() {
    let redis = Redis::start().await;
    let history = History::new();
    let _worker = test_worker(&redis.url(), &history, &["--ack", "early", "--name", "w1@here"]);
    let mut celery = Celery::client(&redis.url()).await;
    let id = celery.send("test.work", json!([4.0]), json!({})).await;
    eventually(SOON, "it runs", async || history.count(Event::Started, &id) == 1).await;
    let shown = umbel_testkit::within(
        Duration::from_secs(20),
        "an answer",
        celery.inspect(&["w1@here"], "active", json!([])),
    )
    .await;
    let task = &shown["w1@here"][0];
    assert_eq!(
        (&task["id"], &task["name"]),
        (&json!(id), &json!("test.work")),
        "{shown}"
    );
    assert_eq!(task["args"], json!([4.0]), "with its arguments: {shown}");
}
