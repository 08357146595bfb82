//! Everything fails at once.

use std::time::{Duration, Instant};

use umbel_client::Task;
use umbel_testkit::{Event, eventually};

use crate::stage::Stage;
use crate::support::{LATER, broker, depth, laid_aside};

/// Messages that always fail, three runs each, retries with full jitter and within a budget. A campaign has more of them:
/// `UMBEL_TEST_FAILURES=100000`.
#[tokio::test]
async fn w12_everything_fails_at_once() {
    let messages: usize = std::env::var("UMBEL_TEST_FAILURES").map_or(3000, |count| count.parse().expect("a number"));
    let flags = [
        "--concurrency",
        "64",
        "--retry-max-attempts",
        "3",
        "--retry-initial-backoff",
        "500ms",
        "--retry-max-backoff",
        "1s",
        "--retry-jitter",
        "1",
        "--retry-budget",
        "0.2",
        "--retry-budget-min",
        "2000",
        "--dead-kept",
        "200000",
    ];
    let stage = Stage::new(2, &flags).await;
    let began = Instant::now();
    for _ in 0..10 {
        stage
            .send(
                (0..messages / 10)
                    .map(|_| Task::new("test.flaky").args(&(99,)).ignore_result(true))
                    .collect(),
            )
            .await;
    }
    let broker = broker(&stage.redis.url()).await;
    eventually(LATER, "all have run once", async || {
        stage.history.total(Event::Started) >= messages
    })
    .await;
    let cpu = (stage.cpu().await, Instant::now());
    eventually(LATER * 2, "all attempts have ended", async || {
        let depth = depth(&broker, "celery").await;
        depth.waiting + depth.in_flight + depth.delayed == 0
    })
    .await;
    let took = began.elapsed();
    // Nothing is lost, and attempts end: three runs each, all in the dead letters.
    assert_eq!(laid_aside(&stage.redis, "dead", "celery").await.len(), messages);
    assert_eq!(stage.history.total(Event::Started), 3 * messages);
    let busy = (stage.cpu().await - cpu.0) / cpu.1.elapsed().as_secs_f64().max(0.1);
    assert!(busy < 0.9, "the server was busy for {busy} of the time");
    for worker in &stage.workers {
        let log = worker.log();
        let is_told = |line: &&str| line.contains("dead letter") && line.contains("WARN");
        let told = log.lines().filter(is_told).count();
        let most = usize::try_from(took.as_secs()).unwrap() + 3;
        assert!(told >= 1 && told <= most, "{told} lines in {took:?} for one cause");
    }
}

/// With a small budget retries are put off, and none is lost.
#[tokio::test]
async fn w12_retries_over_the_budget_wait_and_are_not_lost() {
    let flags = [
        "--concurrency",
        "64",
        "--retry-max-attempts",
        "2",
        "--retry-initial-backoff",
        "10ms",
        "--retry-jitter",
        "0",
        "--retry-budget",
        "0",
        "--retry-budget-min",
        "20",
        "--dead-kept",
        "2000",
    ];
    let mut stage = Stage::new(1, &flags).await;
    let began = Instant::now();
    stage
        .send(
            (0..280)
                .map(|_| Task::new("test.flaky").args(&(99,)).ignore_result(true))
                .collect(),
        )
        .await;
    stage.workers[0].says(LATER, "the retry budget is spent").await;
    // A first run does not wait for them.
    let asked = Instant::now();
    let echo = stage.client.send(Task::new("umbel.echo").args(&(1,))).await.unwrap();
    echo.get_as::<serde_json::Value>(LATER).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(2));
    eventually(LATER, "all attempts have ended", async || {
        laid_aside(&stage.redis, "dead", "celery").await.len() == 280
    })
    .await;
    // 200 are saved up; the other 80 at 20 a second.
    assert!(began.elapsed() > Duration::from_secs(3), "took {:?}", began.elapsed());
    assert_eq!(stage.history.total(Event::Started), 560);
}
