//! A real Celery client sends; our worker runs; `AsyncResult` reads.

use std::time::{Duration, Instant};

use serde_json::json;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, Event, History, Process, Redis, eventually};

use crate::support::{SOON, borrowed, broker, depth, laid_aside, test_worker, umbel_worker};

struct Stage {
    redis: Redis,
    celery: Celery,
    history: History,
    _worker: Process,
}

async fn stage(flags: &[&str]) -> Stage {
    let redis = Redis::start().await;
    let history = History::new();
    let worker = test_worker(&redis.url(), &history, flags);
    let celery = Celery::client(&redis.url()).await;
    Stage {
        redis,
        celery,
        history,
        _worker: worker,
    }
}

#[tokio::test]
async fn the_binary_echoes_and_sleeps() {
    let redis = Redis::start().await;
    let _worker = umbel_worker(&redis.url(), &[]);
    let mut celery = Celery::client(&redis.url()).await;
    let echo = celery
        .send(
            "umbel.echo",
            json!([1, "zwölf ☂", [null, 2.5]]),
            json!({"kwargs": {"a": {"b": []}}}),
        )
        .await;
    let answer = celery.get(&echo, SOON).await;
    assert_eq!(
        answer,
        Ok(json!({"args": [1, "zwölf ☂", [null, 2.5]], "kwargs": {"a": {"b": []}}}))
    );
    let begin = Instant::now();
    let sleep = celery.send("umbel.sleep", json!([0.3]), json!({})).await;
    assert_eq!(celery.get(&sleep, SOON).await, Ok(json!(0.3)));
    assert!(begin.elapsed() >= Duration::from_millis(300));
    let wrong = celery.send("umbel.sleep", json!(["long"]), json!({})).await;
    let raised = celery.get(&wrong, SOON).await.expect_err("no number");
    assert_eq!(
        (raised.module.as_str(), raised.exc_type.as_str()),
        ("builtins", "TypeError")
    );
}

#[tokio::test]
async fn urgent_messages_come_first_and_equal_ones_in_order() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut celery = Celery::client(&redis.url()).await;
    let mut sent = Vec::new();
    for priority in [9, 4, 0, 6, 0, 9] {
        sent.push((
            priority,
            celery
                .send("test.work", json!([0.0]), json!({"priority": priority}))
                .await,
        ));
    }
    let _worker = test_worker(&redis.url(), &history, &["--concurrency", "1"]);
    let ids: Vec<String> = sent.iter().map(|(_, id)| id.clone()).collect();
    celery.wait_all(&ids, SOON).await;
    sent.sort_by_key(|(priority, _)| *priority); // Stable: equal ones keep their order.
    assert_eq!(
        history.order(Event::Started),
        sent.into_iter().map(|(_, id)| id).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_failure_is_raised_as_celery_raises_it_and_the_message_kept() {
    let mut stage = stage(&[]).await;
    let id = stage
        .celery
        .send("test.fail", json!(["nicht möglich"]), json!({}))
        .await;
    let raised = stage.celery.get(&id, SOON).await.expect_err("it fails");
    let found = (
        raised.module.as_str(),
        raised.exc_type.as_str(),
        raised.message.as_str(),
    );
    assert_eq!(found, ("builtins", "ValueError", "nicht möglich"));
    assert_eq!(
        stage.history.count(Event::Started, &id),
        1,
        "a permanent failure is not repeated"
    );
    assert_eq!(laid_aside(&stage.redis, "dead", "celery").await.len(), 1);
    let panics = stage.celery.send("test.panic", json!([]), json!({})).await;
    eventually(SOON, "a panic is a failure that is tried again", async || {
        matches!(stage.celery.state(&panics).await.0.as_str(), "RETRY" | "FAILURE")
    })
    .await;
    let echo = stage.celery.send("umbel.echo", json!([]), json!({})).await;
    assert!(stage.celery.get(&echo, SOON).await.is_ok(), "the worker lives");
}

#[tokio::test]
async fn a_transient_failure_is_tried_again_until_it_succeeds_or_attempts_end() {
    let flags = [
        "--retry-initial-backoff",
        "200ms",
        "--retry-max-attempts",
        "3",
        "--retry-jitter",
        "0",
    ];
    let mut stage = stage(&flags).await;
    let succeeds = stage.celery.send("test.flaky", json!([2]), json!({})).await;
    let fails = stage.celery.send("test.flaky", json!([99]), json!({})).await;
    eventually(SOON, "the state between two runs", async || {
        stage.celery.state(&succeeds).await.0 == "RETRY"
    })
    .await;
    assert_eq!(stage.celery.get(&succeeds, SOON).await, Ok(json!(2)));
    let raised = stage.celery.get(&fails, SOON).await.expect_err("attempts end");
    assert_eq!(
        (raised.exc_type.as_str(), raised.message.as_str()),
        ("RuntimeError", "not yet")
    );
    assert_eq!(stage.history.count(Event::Started, &fails), 3);
    let dead = laid_aside(&stage.redis, "dead", "celery").await;
    assert!(dead.len() == 1 && dead[0].1 == fails, "{dead:?}");
}

#[tokio::test]
async fn limits_end_runs() {
    let mut stage = stage(&[]).await;
    let hard = stage
        .celery
        .send("umbel.sleep", json!([60]), json!({"time_limit": 1}))
        .await;
    let soft = stage
        .celery
        .send("test.soft", json!([]), json!({"soft_time_limit": 1, "time_limit": 30}))
        .await;
    assert_eq!(
        stage.celery.get(&soft, SOON).await,
        Ok(json!("ended at the soft limit"))
    );
    let raised = stage.celery.get(&hard, SOON).await.expect_err("it is stopped");
    assert_eq!(
        (raised.module.as_str(), raised.exc_type.as_str()),
        ("billiard.exceptions", "TimeLimitExceeded")
    );
}

#[tokio::test]
async fn results_go_to_another_database_and_none_where_none_is_wanted() {
    let redis = Redis::start().await;
    let results = redis.database(3);
    let _worker = umbel_worker(&redis.url(), &["--result-url", &results]);
    let mut celery = Celery::client_with(&redis.url(), &results, &json!({})).await;
    let id = celery.send("umbel.echo", json!(["there"]), json!({})).await;
    assert_eq!(
        celery.get(&id, SOON).await,
        Ok(json!({"args": ["there"], "kwargs": {}}))
    );
    let silent = celery
        .send("umbel.echo", json!([]), json!({"ignore_result": true}))
        .await;
    let broker = broker(&redis.url()).await;
    eventually(SOON, "all is settled", async || {
        let depth = depth(&broker, "celery").await;
        depth.waiting + depth.in_flight == 0
    })
    .await;
    let mut here = redis.connection().await;
    let mut there = redis.connection_to(3).await;
    let key = |id: &str| format!("celery-task-meta-{id}");
    assert_eq!(here.exists(key(&id)).await, Ok(false));
    assert_eq!(there.exists(key(&id)).await, Ok(true));
    assert_eq!(there.exists(key(&silent)).await, Ok(false));
    let ttl: i64 = there.ttl(key(&id)).await.expect("the server answers");
    assert!((86_000..=86_400).contains(&ttl), "results live a day, not {ttl} s");
}

#[tokio::test]
async fn two_thousand_tasks_from_two_queues_all_succeed_once() {
    let redis = Redis::start().await;
    let history = History::new();
    let flags = ["--queue", "mail,reports", "--concurrency", "16"];
    let _workers = [
        test_worker(&redis.url(), &history, &flags),
        test_worker(&redis.url(), &history, &flags),
    ];
    let mut celery = Celery::client(&redis.url()).await;
    let mut ids = celery
        .send_all("test.work", vec![json!([0.001]); 1000], json!({"queue": "mail"}))
        .await;
    ids.extend(
        celery
            .send_all("test.work", vec![json!([0.0]); 1000], json!({"queue": "reports"}))
            .await,
    );
    history.enqueued(borrowed(&ids));
    let states = celery.wait_all(&ids, SOON).await;
    assert_eq!(states.get("SUCCESS"), Some(&2000), "{states:?}");
    let verdict = history.verdict(&[]);
    assert_eq!(
        (verdict.done, verdict.rerun, verdict.lost.len()),
        (2000, 0, 0),
        "{verdict}"
    );
}
