//! Rates of tasks, shared by all workers.

use std::time::{Duration, Instant};

use umbel_client::Task;
use umbel_testkit::Event;

use crate::stage::{Stage, most_within, results};
use crate::support::SOON;

/// 50 a second: 150 of them take three seconds, whatever the number of workers.
#[tokio::test]
async fn a_tasks_rate_is_one_for_all_workers_and_holds_up_nobody() {
    // One slot each: a message that waited in it would hold up everything.
    let stage = Stage::new(3, &["--concurrency", "1", "--task-rate", "bench.stamp=50/s/1"]).await;
    let began = Instant::now();
    let limited = stage.send((0..150).map(|_| Task::new("bench.stamp")).collect()).await;
    let other = stage.send(vec![Task::new("umbel.echo").args(&(1,))]).await;
    let _: Vec<serde_json::Value> = results(&other).await;
    assert!(
        began.elapsed() < Duration::from_millis(1500),
        "the other task waited for all that came before it"
    );
    let starts: Vec<f64> = results(&limited).await;
    let took = began.elapsed();
    let most = most_within(&starts, Duration::from_secs(1));
    assert!(most <= 60, "{most} starts within a second");
    assert!(took >= Duration::from_millis(2900), "150 at 50/s took {took:?}");
    assert!(
        took < Duration::from_secs(6),
        "150 at 50/s took {took:?}: turns are wasted"
    );
    // Roughly in the order in which they were sent.
    let mean = |part: &[f64]| part.iter().sum::<f64>() / 50.0;
    assert!(mean(&starts[..50]) < mean(&starts[50..100]) && mean(&starts[50..100]) < mean(&starts[100..]));
}

#[tokio::test]
async fn a_rate_that_the_program_gives_its_task_saves_up_a_burst_and_no_more() {
    let stage = Stage::new(2, &["--concurrency", "40"]).await;
    // test.rated has 10/s/20.
    let began = Instant::now();
    let handles = stage.send((0..35).map(|_| Task::new("test.rated")).collect()).await;
    let starts: Vec<f64> = results(&handles).await;
    let first = most_within(&starts, Duration::from_millis(500));
    assert!((20..=27).contains(&first), "{first} at once: the burst is 20");
    assert!(
        began.elapsed() >= Duration::from_millis(1300),
        "15 more at 10/s took {:?}",
        began.elapsed()
    );
}

/// While 400 messages wait for a slow rate, workers and Redis have hardly anything to do.
#[tokio::test]
async fn what_waits_for_its_turn_is_not_asked_about_all_the_time() {
    let mut stage = Stage::new(2, &["--task-rate", "test.work=1/s/1"]).await;
    stage
        .send((0..400).map(|_| Task::new("test.work").args(&(0.0,))).collect())
        .await;
    umbel_testkit::eventually(SOON, "all others wait", async || {
        let depth = crate::support::depth(&crate::support::broker(&stage.redis.url()).await, "celery").await;
        depth.delayed >= 390 && depth.waiting == 0
    })
    .await;
    let (before, began) = (stage.commands().await, Instant::now());
    let done = stage.history.total(Event::Done);
    umbel_testkit::eventually(SOON, "two more run", async || {
        stage.history.total(Event::Done) >= done + 2
    })
    .await;
    let seconds = began.elapsed().as_secs_f64();
    // Commands inside of scripts count as well.
    let rate = (stage.commands().await - before) / seconds;
    assert!(rate < 400.0, "{rate} commands a second while all wait");
    let depth = crate::support::depth(&crate::support::broker(&stage.redis.url()).await, "celery").await;
    assert!(depth.in_flight <= 2, "what waits is held by no worker: {depth:?}");
    for worker in &mut stage.workers {
        worker.kill();
    }
}

/// Without limits nobody asks.
#[tokio::test]
async fn a_task_without_limits_costs_no_call() {
    let stage = Stage::new(1, &["--task-rate", "test.work=100/s"]).await;
    let count = async || {
        let mut connection = stage.redis.connection().await;
        let stats: String = umbel_testkit::redis::cmd("INFO")
            .arg("commandstats")
            .query_async(&mut connection)
            .await
            .expect("the server answers");
        // The one script of ours that asks with ZCARD of the delayed set and stores the rate.
        stats.contains("cmdstat_pexpire")
    };
    results::<f64>(&stage.send(vec![Task::new("bench.stamp")]).await).await;
    assert!(!count().await, "a task without limit was asked for");
    results::<f64>(&stage.send(vec![Task::new("test.work").args(&(0.0,))]).await).await;
    assert!(count().await, "the limited one was not");
}
