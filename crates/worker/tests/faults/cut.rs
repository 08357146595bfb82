//! Replies and commands that do not arrive.

use std::time::Duration;

use serde_json::json;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, Command, Event, History, Process, Redis, Relay, Signal, eventually, script};

use crate::support::{LATER, SOON, admitted, borrowed, broker, depth, test_worker};

struct Stage {
    redis: Redis,
    relay: Relay,
    history: History,
    celery: Celery,
    worker: Process,
}

/// A worker behind the relay whose leases do not run out during the test: whatever comes back, comes back otherwise.
async fn stage(flags: &[&str]) -> Stage {
    let redis = Redis::start().await;
    let relay = Relay::before(&redis).await;
    let history = History::new();
    let lease = ["--lease", "60s", "--renew-every", "20s", "--sweep", "5s"];
    let worker = test_worker(&relay.url(), &history, &[&lease, flags].concat());
    admitted(&redis, 1).await;
    let celery = Celery::client(&redis.url()).await;
    Stage {
        redis,
        relay,
        history,
        celery,
        worker,
    }
}

async fn settled(stage: &Stage) {
    let broker = broker(&stage.redis.url()).await;
    eventually(SOON, "nothing waits or is held", async || {
        let depth = depth(&broker, "celery").await;
        depth.waiting + depth.in_flight == 0
    })
    .await;
}

#[tokio::test]
async fn w02_the_reply_of_a_reserve_is_lost() {
    let mut stage = stage(&[]).await;
    for round in 1..=5 {
        let cut = stage.relay.cut_reply(script("reserve"));
        let ids = stage
            .celery
            .send_all("test.work", vec![json!([0.0]); 3], json!({}))
            .await;
        stage.history.enqueued(borrowed(&ids));
        cut.happened(SOON).await;
        let states = stage.celery.wait_all(&ids, SOON).await;
        assert_eq!(states.get("SUCCESS"), Some(&3), "round {round}");
    }
    settled(&stage).await;
    let verdict = stage.history.verdict(&[]);
    assert_eq!(
        (verdict.done, verdict.rerun, verdict.lost.len()),
        (15, 0, 0),
        "{verdict}"
    );
    let mut connection = stage.redis.connection().await;
    assert_eq!(connection.hlen("umbel:att").await, Ok(0), "nobody is charged for it");
}

#[tokio::test]
async fn w04_the_reply_of_an_ack_is_lost() {
    let mut stage = stage(&["--retry-initial-backoff", "200ms"]).await;
    for options in [json!({"ignore_result": true}), json!({})] {
        let cut = stage.relay.cut_reply(script("ack"));
        let id = stage.celery.send("test.work", json!([0.0]), options).await;
        stage.history.enqueued([id.as_str()]);
        cut.happened(SOON).await;
        settled(&stage).await;
        eventually(SOON, "it is done", async || stage.history.count(Event::Done, &id) == 1).await;
    }
    // A retry: the new message takes the old one's place once, however often that is said.
    let cut = stage.relay.cut_reply(script("settle"));
    let retried = stage.celery.send("test.flaky", json!([1]), json!({})).await;
    cut.happened(SOON).await;
    assert_eq!(stage.celery.get(&retried, SOON).await, Ok(json!(1)));
    assert_eq!(stage.history.count(Event::Started, &retried), 2);
    let after = stage.celery.send("test.work", json!([0.0]), json!({})).await;
    stage.history.enqueued([after.as_str()]);
    assert_eq!(
        stage.celery.get(&after, SOON).await,
        Ok(json!(0.0)),
        "the worker goes on"
    );
    stage.history.enqueued([retried.as_str()]);
    settled(&stage).await;
    let verdict = stage.history.verdict(&[]);
    assert_eq!(
        (verdict.done, verdict.rerun, verdict.lost.len()),
        (4, 1, 0),
        "only the retry ran twice: {verdict}"
    );
}

#[tokio::test]
async fn w03_a_reserve_arrives_late_on_an_old_connection() {
    let mut stage = stage(&[]).await;
    let held = stage.relay.hold(script("reserve"));
    let first = stage.celery.send("test.work", json!([0.0]), json!({})).await;
    let late = held.sent(SOON).await;
    assert_eq!(
        stage.celery.get(&first, SOON).await,
        Ok(json!(0.0)),
        "a new connection takes it"
    );
    // With the worker asleep, whatever is taken from now on is taken by the late command.
    stage.worker.signal(Signal::Stop);
    let second = stage.celery.send("test.work", json!([0.0]), json!({})).await;
    let reply = late.deliver().await;
    assert!(
        String::from_utf8_lossy(&reply).contains("epoch"),
        "{}",
        String::from_utf8_lossy(&reply)
    );
    let mut connection = stage.redis.connection().await;
    assert_eq!(connection.llen("celery").await, Ok(1), "the message stays where it is");
    assert_eq!(connection.hlen("umbel:unacked").await, Ok(0));
    stage.worker.signal(Signal::Cont);
    assert_eq!(stage.celery.get(&second, SOON).await, Ok(json!(0.0)));
    assert_eq!(stage.history.count(Event::Started, &second), 1);
}

#[tokio::test]
async fn w04_any_reply_is_lost_under_load() {
    let mut stage = stage(&["--concurrency", "4"]).await;
    let ids = stage
        .celery
        .send_all("test.work", vec![json!([0.01]); 600], json!({}))
        .await;
    stage.history.enqueued(borrowed(&ids));
    for round in 0..20_usize {
        let is_script = |command: &Command| command.is("EVALSHA");
        stage.relay.cut_reply_after(round % 7, is_script).happened(SOON).await;
    }
    let states = stage.celery.wait_all(&ids, LATER).await;
    assert_eq!(states.get("SUCCESS"), Some(&600), "{states:?}");
    settled(&stage).await;
    let verdict = stage.history.verdict(&[]);
    assert_eq!(
        (verdict.done, verdict.rerun, verdict.lost.len()),
        (600, 0, 0),
        "{verdict}"
    );
}

#[tokio::test]
async fn w27_a_storm_of_short_drops() {
    let mut stage = stage(&[]).await;
    for _ in 0..5 {
        stage.relay.sever();
        eventually(SOON, "it is back", async || stage.relay.connections() > 0).await;
    }
    let ids = stage
        .celery
        .send_all("test.work", vec![json!([0.0]); 10], json!({}))
        .await;
    let states = stage.celery.wait_all(&ids, Duration::from_secs(6)).await;
    assert_eq!(states.get("SUCCESS"), Some(&10), "{states:?}");
}

/// Every second call of one that takes messages is given up after 0 to 5 ms, most of these before their answer.
#[tokio::test]
async fn w03_reserves_are_cancelled_at_any_moment() {
    use umbel_broker::{AckGroup, QueueLists, Reserved, Reserver, WorkerIdentity};
    const MESSAGES: usize = 300;
    let redis = Redis::start().await;
    let relay = Relay::before(&redis).await;
    relay.delay(Duration::from_micros(400));
    let broker = broker(&relay.url()).await;
    let raws: Vec<Vec<u8>> = (0..MESSAGES).map(|n| format!("message {n}").into_bytes()).collect();
    broker.publish("q", 0, &raws).await.expect("published");
    let identity = WorkerIdentity {
        worker: "w".into(),
        install: String::new(),
        is_standalone: true,
    };
    let policies = vec![("q".into(), umbel_broker::Policy::default())];
    let config = umbel_broker::Config::new(&relay.url());
    let mut reserver = Reserver::new(config, identity, policies, Duration::from_secs(60), 1000);
    let lists = [QueueLists::new(broker.keys(), "q")];
    let (mut seen, mut cancelled) = (Vec::new(), 0);
    let mut chance = 7_u64; // A line of numbers that is the same in each run.
    eventually(LATER, "each message was taken", async || {
        chance = chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let patience = if chance >> 63 == 0 {
            Duration::from_micros((chance >> 33) % 5000)
        } else {
            SOON
        };
        let asked = tokio::time::timeout(patience, reserver.reserve(4, &lists, Vec::new)).await;
        let Ok(answer) = asked else {
            cancelled += 1;
            return false;
        };
        let Ok(Reserved::Batch(batch)) = answer else {
            return false;
        };
        let groups = [AckGroup {
            queue: "q".into(),
            leases: batch.taken.iter().map(|one| (one.lid.clone(), String::new())).collect(),
            ..AckGroup::default()
        }];
        seen.extend(batch.taken.into_iter().map(|one| one.raw));
        if !groups[0].leases.is_empty() {
            broker.ack("w", 0, false, &groups).await.expect("acknowledged");
        }
        seen.len() >= MESSAGES
    })
    .await;
    assert!(cancelled >= 20, "{cancelled} cancelled: this proved nothing");
    seen.sort();
    let mut expected = raws;
    expected.sort();
    assert!(seen == expected, "each of them once");
    reserver.forget();
    reserver.ensure(Vec::new).await.expect("hello");
    let mut connection = redis.connection().await;
    for key in ["umbel:unacked", "umbel:att"] {
        assert_eq!(
            connection.hlen(key).await,
            Ok(0),
            "{key}: nothing is left behind, and nobody charged"
        );
    }
}
