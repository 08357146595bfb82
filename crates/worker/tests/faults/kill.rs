//! Workers that are killed while they work.

use std::time::Duration;

use serde_json::json;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, Event, History, Process, Redis, Signal, eventually};

use crate::support::{LATER, SOON, admitted, borrowed, broker, depth, laid_aside, test_worker};

const CONCURRENCY: usize = 8;
const TASKS: usize = 480;

fn start(redis: &Redis, history: &History, name: &str) -> Process {
    test_worker(&redis.url(), history, &["--concurrency", "8", "--name", name])
}

#[tokio::test]
async fn w01_workers_are_killed_under_load() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut workers: Vec<Process> = (0..3).map(|_| start(&redis, &history, "w@test")).collect();
    admitted(&redis, 3).await;
    let mut celery = Celery::client(&redis.url()).await;
    let ids = celery
        .send_all("test.work", vec![json!([0.25]); TASKS], json!({}))
        .await;
    history.enqueued(borrowed(&ids));
    let mut kills = 0;
    for round in 1..=10 {
        let goal = round * TASKS / 20;
        eventually(LATER, "work goes on", async || history.total(Event::Done) >= goal).await;
        let victim = round % workers.len();
        workers[victim].kill();
        kills += 1;
        workers[victim] = start(&redis, &history, "w@test");
    }
    assert_eq!(
        celery
            .wait_all(&ids, Duration::from_mins(1))
            .await
            .values()
            .sum::<usize>(),
        TASKS
    );
    let dead: Vec<String> = laid_aside(&redis, "dead", "celery")
        .await
        .into_iter()
        .map(|(_, id)| id)
        .collect();
    let verdict = history.verdict(&dead);
    assert!(
        verdict.lost.is_empty() && verdict.unknown.is_empty() && verdict.stale.is_empty(),
        "{verdict}"
    );
    assert!(verdict.rerun <= kills * CONCURRENCY, "{kills} kills: {verdict}");
    assert!(
        verdict.rerun > 0,
        "kills hit no running task, so this proved nothing: {verdict}"
    );
    let broker = broker(&redis.url()).await;
    eventually(SOON, "nothing is held any more", async || {
        depth(&broker, "celery").await.in_flight == 0
    })
    .await;
    assert!(dead.len() < 3, "hardly any task is unlucky three times: {dead:?}");
}

#[tokio::test]
async fn w26_a_neighbour_of_the_same_name_restarts_again_and_again() {
    let redis = Redis::start().await;
    let history = History::new();
    // One host, one node name, and more slots than tasks: nobody waits.
    let steady = start(&redis, &history, "same@host");
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    let long = celery
        .send_all("test.work", vec![json!([12.0]); CONCURRENCY], json!({}))
        .await;
    history.enqueued(borrowed(&long));
    eventually(SOON, "the steady one is full", async || {
        history.total(Event::Started) == CONCURRENCY
    })
    .await;
    let mut connection = redis.connection().await;
    for round in 0..6 {
        let mut restless = start(&redis, &history, "same@host");
        let short = celery.send_all("test.work", vec![json!([0.3]); 4], json!({})).await;
        history.enqueued(borrowed(&short));
        let started = CONCURRENCY + 4 * (round + 1);
        eventually(SOON, "the restless one works", async || {
            history.order(Event::Started).len() == started
        })
        .await;
        if round % 2 == 0 {
            restless.kill();
        } else {
            restless.signal(Signal::Term);
            assert!(restless.wait(SOON).await.success());
        }
        let held: usize = connection.hlen("umbel:unacked").await.expect("the server answers");
        assert!(held >= CONCURRENCY, "the steady one still holds its work");
    }
    let _last = start(&redis, &history, "same@host");
    eventually(LATER, "all is done", async || history.verdict(&[]).lost.is_empty()).await;
    for id in &long {
        assert_eq!(history.count(Event::Started, id), 1, "a neighbour touched {id}");
    }
    assert!(history.verdict(&[]).rerun <= 3 * 4, "{}", history.verdict(&[]));
    drop(steady);
}
