//! Runs that end badly: by a panic, by a crash at the worst moment, by the end of their worker.

use std::time::{Duration, Instant};

use serde_json::json;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, Event, History, Redis, Relay, Signal, eventually, script};

use crate::support::{LATER, SOON, admitted, borrowed, test_worker};

#[tokio::test]
async fn w08_tasks_panic_also_while_they_are_dropped() {
    let redis = Redis::start().await;
    let history = History::new();
    let flags = ["--concurrency", "8", "--retry-max-attempts", "1"];
    let mut worker = test_worker(&redis.url(), &history, &flags);
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    let work = celery.send_all("test.work", vec![json!([0.01]); 150], json!({})).await;
    let now = celery.send_all("test.panic", vec![json!([]); 4], json!({})).await;
    // A panic whose value panics again as the stack unwinds would abort: this one waits until it is dropped.
    let late = celery
        .send_all("test.shatter", vec![json!([true]); 3], json!({"time_limit": 0.3}))
        .await;
    let more = celery.send_all("test.work", vec![json!([0.01]); 150], json!({})).await;
    history.enqueued(borrowed(&work).chain(borrowed(&more)));
    for id in &now {
        let raised = celery.get(id, SOON).await.expect_err("it panics");
        assert_eq!(raised.exc_type, "RuntimeError");
        assert!(raised.message.contains("panicked: on purpose"), "{raised:?}");
    }
    for id in &late {
        let raised = celery.get(id, SOON).await.expect_err("it is stopped, and panics");
        assert_eq!(raised.exc_type, "TimeLimitExceeded");
    }
    let all = [work, more].concat();
    assert_eq!(celery.wait_all(&all, LATER).await.get("SUCCESS"), Some(&300));
    assert_eq!(worker.exit(), None, "the process lives");
    let verdict = history.verdict(&[]);
    assert_eq!((verdict.lost.len(), verdict.rerun), (0, 0), "{verdict}");
}

#[tokio::test]
async fn w11_a_worker_dies_between_the_effect_and_the_acknowledgement() {
    let redis = Redis::start().await;
    let relay = Relay::before(&redis).await;
    let history = History::new();
    let mut first = test_worker(&relay.url(), &history, &[]);
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    // The acknowledgement stays in the wire: the effect is there, and nobody knows.
    let held = relay.hold(script("ack"));
    let id = celery
        .send("test.fenced", json!([]), json!({"headers": {"umbel_order": 7}}))
        .await;
    history.enqueued([id.as_str()]);
    let late = held.sent(SOON).await;
    let mut connection = redis.connection().await;
    assert_eq!(connection.hget("target", "effects").await, Ok(1));
    first.kill();
    let _second = test_worker(&redis.url(), &history, &[]);
    eventually(LATER, "it runs again", async || history.count(Event::Done, &id) == 2).await;
    assert_eq!(
        celery.get(&id, SOON).await,
        Ok(json!(0)),
        "the target has seen this order before"
    );
    assert_eq!(
        connection.hget("target", "effects").await,
        Ok(1),
        "one effect of two runs"
    );
    late.deliver().await;
    assert_eq!(
        celery.get(&id, SOON).await,
        Ok(json!(0)),
        "a late acknowledgement changes nothing"
    );
    let verdict = history.verdict(&[]);
    assert_eq!((verdict.lost.len(), verdict.rerun), (0, 1), "{verdict}");
}

#[tokio::test]
async fn w15_s09_what_cannot_end_goes_back_to_the_head_of_its_list_uncharged() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut worker = test_worker(&redis.url(), &history, &["--grace", "3s", "--concurrency", "3"]);
    let mut celery = Celery::client(&redis.url()).await;
    let ids = celery.send_all("test.work", vec![json!([600.0]); 6], json!({})).await;
    eventually(SOON, "three run", async || history.total(Event::Started) == 3).await;
    let begin = Instant::now();
    worker.signal(Signal::Term);
    assert!(worker.wait(SOON).await.success());
    let took = begin.elapsed();
    assert!(
        took < Duration::from_secs(4),
        "it exits before the grace ends, not after {took:?}"
    );
    let mut connection = redis.connection().await;
    let mut waiting: Vec<String> = connection.lrange("celery", 0, -1).await.expect("the server answers");
    waiting.reverse();
    let found: Vec<String> = waiting
        .iter()
        .map(|raw| serde_json::from_str::<serde_json::Value>(raw).expect("as it was sent")["headers"]["id"].clone())
        .filter_map(|id| id.as_str().map(str::to_owned))
        .collect();
    assert_eq!(found[3..], ids[3..], "those that were never taken keep their places");
    let mut head = found[..3].to_vec();
    head.sort();
    let mut taken = ids[..3].to_vec();
    taken.sort();
    assert_eq!(head, taken, "those that ran are before them");
    assert_eq!(connection.hlen("umbel:att").await, Ok(0), "nobody is charged");
    assert_eq!(connection.hlen("umbel:unacked").await, Ok(0));
}

#[tokio::test]
async fn w15_when_runs_are_handed_back_is_said_by_hand_back_at() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut worker = test_worker(&redis.url(), &history, &["--grace", "10m", "--hand-back-at", "1"]);
    let mut celery = Celery::client(&redis.url()).await;
    celery.send_all("test.work", vec![json!([600.0])], json!({})).await;
    eventually(SOON, "it runs", async || history.total(Event::Started) == 1).await;
    let begin = Instant::now();
    worker.signal(Signal::Term);
    assert!(worker.wait(SOON).await.success());
    let took = begin.elapsed();
    assert!(took >= Duration::from_secs(6), "not before its time: after {took:?}");
    let mut connection = redis.connection().await;
    assert_eq!(connection.llen("celery").await, Ok(1), "it is handed back");
    assert_eq!(connection.hlen("umbel:att").await, Ok(0), "and nobody is charged");
}

#[tokio::test]
async fn w15_what_is_handed_back_is_charged_where_that_is_asked_for() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut celery = Celery::client(&redis.url()).await;
    let id = celery.send("test.work", json!([600.0]), json!({})).await;
    let mut connection = redis.connection().await;
    let flags = [
        "--grace",
        "2s",
        "--hand-back-at",
        "1",
        "--counts-as-attempt",
        "--max-deliveries",
        "3",
    ];
    for delivery in 1..=3 {
        let mut worker = test_worker(&redis.url(), &history, &flags);
        eventually(SOON, "it runs", async || history.total(Event::Started) == delivery).await;
        worker.signal(Signal::Term);
        assert!(worker.wait(SOON).await.success(), "{}", worker.log());
        let charged: Option<usize> = connection.hget("umbel:att", &id).await.expect("the server answers");
        let waiting: usize = connection.llen("celery").await.expect("the server answers");
        let expected = if delivery < 3 { (Some(delivery), 1) } else { (None, 0) };
        assert_eq!((charged, waiting), expected, "after delivery {delivery}");
    }
    let raised = celery.get(&id, SOON).await.expect_err("it has failed");
    assert!(
        format!("{raised:?}").contains("its workers stopped before the task had ended, in delivery 3"),
        "{raised:?}"
    );
}
