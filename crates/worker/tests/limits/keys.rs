//! Concurrency keys: at most so many at a time for each key, on all workers together.

use std::time::{Duration, Instant};

use serde_json::json;
use umbel_client::Task;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Event, eventually};

use crate::stage::{Stage, results};
use crate::support::{LATER, SOON, broker, depth, laid_aside};

/// `test.exclusive` has the key `key`, one at a time.
fn exclusive(key: &str, seconds: f64) -> Task {
    Task::new("test.exclusive").kwargs(&json!({"name": key, "seconds": seconds, "key": key}))
}

#[tokio::test]
async fn messages_of_one_key_never_run_at_the_same_time() {
    let stage = Stage::new(3, &["--concurrency", "16"]).await;
    let began = Instant::now();
    let names: Vec<String> = (0..200).map(|at| format!("k{}", at % 5)).collect();
    let handles = stage
        .send(names.iter().map(|name| exclusive(name, 0.02)).collect())
        .await;
    results::<i64>(&handles).await;
    let took = began.elapsed();
    for key in 0..5 {
        assert_eq!(stage.number(&format!("most:k{key}")).await, 1, "key {key}");
        // First come, first served.
        let sent: Vec<&str> = handles
            .iter()
            .skip(key)
            .step_by(5)
            .map(umbel_client::Handle::id)
            .collect();
        let mut connection = stage.redis.connection().await;
        let ran: Vec<String> = connection.lrange(format!("ran:k{key}"), 0, -1).await.unwrap();
        let place = |id: &String| sent.iter().position(|sent| sent == id).expect("it was sent");
        let furthest = ran.iter().enumerate().map(|(at, id)| at.abs_diff(place(id))).max();
        // Workers take several at a time and ask for them one after the other.
        assert!(
            furthest.is_some_and(|furthest| furthest <= 10),
            "key {key}: one ran {furthest:?} places off"
        );
    }
    assert_eq!(
        stage.number("most:every").await.max(2),
        5,
        "the five keys run beside each other"
    );
    assert!(
        took < Duration::from_secs(10),
        "40 of 20 ms behind each other took {took:?}"
    );
    assert_clean(&stage).await;
}

/// Nothing of the keys is left when nobody holds or waits for one.
async fn assert_clean(stage: &Stage) {
    let mut connection = stage.redis.connection().await;
    eventually(SOON, "no key is left", async || {
        let left: Vec<String> = connection.keys("umbel:key*").await.expect("the server answers");
        left.is_empty()
    })
    .await;
}

#[tokio::test]
async fn messages_that_wait_for_a_key_take_no_slot() {
    let stage = Stage::new(1, &["--concurrency", "2"]).await;
    let slow = stage.send((0..10).map(|_| exclusive("slow", 0.3)).collect()).await;
    let began = Instant::now();
    let others = stage
        .send((0..10).map(|at| exclusive(&at.to_string(), 0.01)).collect())
        .await;
    results::<i64>(&others).await;
    assert!(
        began.elapsed() < Duration::from_millis(1500),
        "took {:?}: they waited behind the key",
        began.elapsed()
    );
    let broker = broker(&stage.redis.url()).await;
    assert!(depth(&broker, "celery").await.delayed > 0, "the others wait in Redis");
    results::<i64>(&slow).await;
    assert_eq!(stage.number("most:slow").await, 1);
}

#[tokio::test]
async fn the_key_of_a_killed_worker_is_free_when_its_lease_ends() {
    let mut stage = Stage::new(2, &["--concurrency", "4"]).await;
    stage
        .send(vec![
            Task::new("test.work")
                .args(&(120.0,))
                .header("umbel_concurrency_key", "k"),
        ])
        .await;
    eventually(SOON, "it runs", async || stage.history.total(Event::Started) == 1).await;
    let next = stage
        .send(vec![
            Task::new("test.work")
                .args(&(0.0,))
                .header("umbel_concurrency_key", "k"),
        ])
        .await;
    let broker = broker(&stage.redis.url()).await;
    eventually(SOON, "the next waits", async || {
        depth(&broker, "celery").await.delayed == 1
    })
    .await;
    let holder = *stage.history.processes(Event::Started).keys().next().unwrap();
    let victim = stage.workers.iter().position(|worker| worker.pid() == holder).unwrap();
    let killed = Instant::now();
    stage.workers[victim].kill();
    results::<f64>(&next).await;
    assert!(
        killed.elapsed() > Duration::from_millis(900),
        "before its lease could have ended: {:?}",
        killed.elapsed()
    );
    assert!(killed.elapsed() < LATER);
}

#[tokio::test]
async fn a_rule_gives_keys_to_tasks_and_lets_several_hold_one() {
    let flags = [
        "--concurrency",
        "12",
        "--per-key",
        "test.exclusive=tenant-{header.tenant}=3",
    ];
    let stage = Stage::new(2, &flags).await;
    let work = |at: usize| exclusive(&at.to_string(), 0.05).header("tenant", "acme");
    let handles = stage.send((0..40).map(work).collect()).await;
    results::<i64>(&handles).await;
    assert_eq!(
        stage.number("most:every").await,
        3,
        "three at a time, no more and no fewer"
    );
    // Without the header there is no key.
    let handles = stage
        .send((0..40).map(|at| exclusive(&at.to_string(), 0.1)).collect())
        .await;
    results::<i64>(&handles).await;
    assert!(stage.number("most:every").await > 3);
}

/// Nobody wakes it (the record of who waits is gone): it comes back by itself, and its turn is not lost.
#[tokio::test]
async fn a_message_that_is_not_woken_comes_back_by_itself() {
    let stage = Stage::new(1, &[]).await;
    let first = stage.send(vec![exclusive("k", 1.0)]).await;
    eventually(SOON, "it runs", async || stage.number("running:k").await == 1).await;
    let next = stage.send(vec![exclusive("k", 0.0)]).await;
    let mut connection = stage.redis.connection().await;
    eventually(SOON, "the next waits", async || {
        connection.zcard::<_, u64>("umbel:delayed:celery").await.unwrap() == 1
    })
    .await;
    let _: () = connection
        .del(&["umbel:key:wait:k", "umbel:key:at:k"][..])
        .await
        .unwrap();
    let names: Vec<String> = connection.keys("umbel:key:wait:*").await.unwrap();
    for name in &names {
        let _: () = connection.del(name).await.unwrap();
    }
    // What would take a minute: its time has come.
    let members: Vec<(String, f64)> = connection
        .zrange_withscores("umbel:delayed:celery", 0, -1)
        .await
        .unwrap();
    let (member, due) = &members[0];
    assert!(*due > 0.0);
    results::<i64>(&first).await;
    let _: () = connection.zadd("umbel:delayed:celery", member, 1).await.unwrap();
    results::<i64>(&next).await;
}

/// Those that are called by the key do not ask for it any more: the one behind them is called at once, not after the minute
/// in which it comes back by itself.
#[tokio::test]
async fn a_turn_that_a_revoked_message_does_not_use_is_the_next_ones() {
    let stage = Stage::new(1, &[]).await;
    let holder = stage.send(vec![exclusive("k", 3.0)]).await;
    eventually(SOON, "it runs", async || stage.number("running:k").await == 1).await;
    let idle = || exclusive("k", 0.0);
    let waiting = stage.send(vec![idle(), idle().ignore_result(true), idle()]).await;
    let broker = broker(&stage.redis.url()).await;
    eventually(SOON, "three wait", async || depth(&broker, "celery").await.delayed == 3).await;
    let revoked: Vec<String> = waiting[..2].iter().map(|handle| handle.id().to_owned()).collect();
    stage
        .client
        .revoke(&revoked, &umbel_client::Revoke::default())
        .await
        .unwrap();
    assert_eq!(
        stage.number("running:k").await,
        1,
        "they were revoked while they waited"
    );
    results::<i64>(&holder).await;
    results::<i64>(&waiting[2..]).await;
    let mut connection = stage.redis.connection().await;
    let ran: Vec<String> = connection.lrange("ran:k", 0, -1).await.unwrap();
    assert_eq!(ran, [holder[0].id(), waiting[2].id()]);
    assert_clean(&stage).await;
}

#[tokio::test]
async fn a_key_function_that_panics_costs_its_message_and_not_the_worker() {
    let mut stage = Stage::new(1, &[]).await;
    let keyed = |seconds: f64| Task::new("test.keyed").args(&(seconds,));
    let bad = stage.send(vec![keyed(-1.0)]).await;
    let good = stage.send(vec![keyed(0.0)]).await;
    results::<f64>(&good).await;
    let dead = laid_aside(&stage.redis, "dead", "celery").await;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0].1, bad[0].id());
    assert!(dead[0].0.contains("no key for -1"), "{dead:?}");
    assert!(stage.workers[0].exit().is_none(), "the worker lives");
}
