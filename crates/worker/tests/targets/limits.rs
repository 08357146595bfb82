//! What a target is asked, by all workers together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use umbel_testkit::eventually;

use crate::stage::{SOON, Scene, target};
use crate::stub::{Reply, Stub, headed};

#[tokio::test]
async fn t11_a_429_slows_all_workers_down_and_its_pause_is_kept() {
    let scene = Scene::new("t11").await;
    let asked_before = Arc::new(AtomicUsize::new(0));
    let counter = asked_before.clone();
    let stub = Stub::before(&target().await, move |asked| {
        if asked.is("/version") && counter.fetch_add(1, Ordering::Relaxed) == 8 {
            return headed(
                429,
                "Retry-After: 3\r\n",
                "TooManyRequests",
                "the server has received too many requests",
            );
        }
        Reply::Pass
    })
    .await;
    scene.secret("c", &stub.kubeconfig("t")).await;
    let limits = json!({"limits": {"qps": 20, "burst": 20, "maxConcurrentTasks": 20}});
    let _workers = [
        scene.worker(&[("c", limits.clone())], &[]).await,
        scene.worker(&[("c", limits)], &[]).await,
    ];
    let mut ids = Vec::new();
    for _ in 0..30 {
        ids.push(scene.sync("c").await);
    }
    for id in &ids {
        let _ = scene.result(id).await; // The one that met the 429 has failed.
    }
    let seen = stub.seen();
    let versions: Vec<Instant> = seen
        .iter()
        .filter(|asked| asked.is("/version"))
        .map(|asked| asked.at)
        .collect();
    let refused = versions[8];
    // What was on its way when the 429 came, and what each run had at hand, may still arrive.
    let within = |from: f64, to: f64| {
        let range = refused + Duration::from_secs_f64(from)..refused + Duration::from_secs_f64(to);
        seen.iter().filter(|asked| range.contains(&asked.at)).count()
    };
    let (pause, after) = (within(1.0, 2.9), within(3.2, 6.2));
    println!("in the pause: {pause}; in the three seconds after: {after}");
    assert!(pause <= 3, "the pause is kept: {pause} of {}", seen.len());
    assert!((10..=50).contains(&after), "about half the rate: {after}");
}

#[tokio::test]
async fn the_rate_of_a_target_is_that_of_all_workers_together() {
    let scene = Scene::new("rate").await;
    let stub = Stub::before(&target().await, |_| Reply::Pass).await;
    scene.secret("c", &stub.kubeconfig("t")).await;
    let limits = json!({"limits": {"qps": 10, "burst": 10, "maxConcurrentTasks": 20}});
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(scene.worker(&[("c", limits.clone())], &[]).await);
    }
    let mut ids = Vec::new();
    for _ in 0..14 {
        ids.push(scene.sync("c").await);
    }
    for id in &ids {
        scene.result(id).await.unwrap();
    }
    let seen: Vec<Instant> = stub.seen().iter().map(|asked| asked.at).collect();
    let took = *seen.last().unwrap() - seen[0];
    #[allow(clippy::cast_precision_loss)]
    let rate = (seen.len() - 10) as f64 / took.as_secs_f64();
    println!(
        "{} requests of three workers in {took:?}: {rate:.1} a second",
        seen.len()
    );
    assert!(seen.len() > 80 && (7.0..=11.0).contains(&rate), "{rate}");
}

#[tokio::test]
async fn turns_are_shared_and_who_finds_none_gives_its_slot_back() {
    let scene = Scene::new("turns").await;
    let stub = Stub::before(&target().await, |asked| {
        if asked.is("/version") {
            Reply::Late(Duration::from_secs(1))
        } else {
            Reply::Pass
        }
    })
    .await;
    scene.secret("c", &stub.kubeconfig("t")).await;
    let limits = json!({"limits": {"maxConcurrentTasks": 2, "qps": 100, "burst": 100}});
    let _workers = [
        scene.worker(&[("c", limits.clone())], &["--concurrency", "4"]).await,
        scene.worker(&[("c", limits)], &["--concurrency", "4"]).await,
    ];
    let mut ids = Vec::new();
    for _ in 0..8 {
        ids.push(scene.sync("c").await);
    }
    eventually(SOON, "two are at work", async || {
        stub.seen().iter().any(|asked| asked.is("/version"))
    })
    .await;
    // All slots would be taken, if they waited in them.
    let begin = Instant::now();
    let echo = scene.send("umbel.echo", &json!({})).await;
    scene.result(&echo).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    for id in &ids {
        scene.result(id).await.unwrap();
    }
    // Each asks for the version twice, a second each.
    let mut starts: Vec<Instant> = stub
        .seen()
        .iter()
        .filter(|asked| asked.is("/version"))
        .map(|asked| asked.at)
        .collect();
    starts.sort();
    for window in starts.windows(3) {
        let apart = window[2] - window[0];
        assert!(apart > Duration::from_millis(900), "three at a time: {apart:?}");
    }
}

#[tokio::test]
async fn the_turn_of_a_worker_that_died_comes_free() {
    let scene = Scene::new("died").await;
    let is_stuck = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let stuck = is_stuck.clone();
    let stub = Stub::before(&target().await, move |_| {
        if stuck.load(Ordering::Relaxed) {
            Reply::Never
        } else {
            Reply::Pass
        }
    })
    .await;
    scene.secret("c", &stub.kubeconfig("t")).await;
    let limits = json!({"limits": {"maxConcurrentTasks": 1}});
    let mut first = scene.worker(&[("c", limits.clone())], &[]).await;
    scene.sync("c").await;
    eventually(SOON, "it is at work", async || !stub.seen().is_empty()).await;
    first.kill();
    is_stuck.store(false, Ordering::Relaxed);
    let begin = Instant::now();
    let _second = scene.worker(&[("c", limits)], &[]).await;
    let id = scene.sync("c").await;
    scene.result(&id).await.unwrap();
    println!("the turn of a killed worker is free after {:?}", begin.elapsed());
    assert!(
        begin.elapsed() > Duration::from_secs(5),
        "it was held: {:?}",
        begin.elapsed()
    );
    assert!(begin.elapsed() < Duration::from_secs(25), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn work_at_a_target_goes_on_while_redis_is_away() {
    let mut scene = Scene::new("away").await;
    let stub = Stub::before(&target().await, |asked| {
        if asked.is("/version") {
            Reply::Late(Duration::from_secs(1))
        } else {
            Reply::Pass
        }
    })
    .await;
    scene.secret("c", &stub.kubeconfig("t")).await;
    let _worker = scene.worker(&[("c", json!({}))], &[]).await;
    scene.sync("c").await;
    eventually(SOON, "it is at work", async || {
        stub.seen().iter().any(|asked| asked.is("/version"))
    })
    .await;
    scene.redis.kill();
    // More requests than it had tokens for: from here on it keeps to the limits by itself.
    eventually(SOON, "it has asked for all", async || {
        stub.seen()
            .iter()
            .any(|asked| asked.is("/apis/metrics.k8s.io/v1beta1/nodes"))
    })
    .await;
}
