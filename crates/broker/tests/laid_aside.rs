//! Dead letters and the quarantine have bounds: by number, by bytes, by age. What a bound costs is counted.

#![allow(clippy::panic)] // Tests stop at what they did not expect.

use std::time::Duration;

use umbel_broker::{
    AsideFilter, AsideKind, Broker, Config, End, Policy, QueueLists, Replayed, Reserved, Reserver, Settlement,
    WorkerIdentity,
};
use umbel_testkit::Redis;
use umbel_testkit::redis::aio::MultiplexedConnection;
use umbel_testkit::redis::{self, AsyncCommands};

const DEAD: &str = "umbel:dead:q";

struct Stage {
    redis: MultiplexedConnection,
    broker: Broker,
    reserver: Reserver,
    queues: Vec<QueueLists>,
    kept: u64,
}

async fn stage(server: &Redis, policy: Policy) -> Stage {
    let config = Config::new(&server.url());
    let broker = Broker::connect(&config).await.expect("the server runs");
    let identity = WorkerIdentity {
        worker: uuid(),
        install: String::new(),
        is_standalone: true,
    };
    let reserver = Reserver::new(
        config,
        identity,
        vec![("q".into(), policy)],
        Duration::from_mins(1),
        1000,
    );
    Stage {
        redis: server.connection().await,
        queues: vec![QueueLists::new(broker.keys(), "q")],
        broker,
        reserver,
        kept: policy.dead_kept,
    }
}

fn uuid() -> String {
    format!("w{}", std::process::id())
}

impl Stage {
    /// Takes so many messages of this size and buries them.
    async fn bury(&mut self, count: usize, bytes: usize) {
        let mut left = count;
        while left > 0 {
            let batch = left.min(500);
            let messages: Vec<Vec<u8>> = (0..batch).map(|_| vec![b'x'; bytes]).collect();
            self.broker
                .publish("q", 0, &messages)
                .await
                .expect("the server answers");
            let taken = match self.reserver.reserve(batch, &self.queues, Vec::new).await {
                Ok(Reserved::Batch(batch)) => batch.taken,
                other => panic!("a standalone worker's gate is open: {other:?}"),
            };
            let settlements: Vec<Settlement> = taken
                .into_iter()
                .map(|taken| Settlement {
                    lid: taken.lid,
                    id: "id".into(),
                    task: "task".into(),
                    end: End::Bury {
                        reason: "because".into(),
                    },
                    result: None,
                    run: None,
                    outcome: "failed",
                    follow_ups: Vec::new(),
                })
                .collect();
            assert!(!settlements.is_empty(), "what was published is taken");
            left -= settlements.len();
            for some in settlements.chunks(100) {
                let lost = self.broker.settle(self.kept, some).await.expect("the server answers");
                assert!(lost.is_empty());
            }
        }
    }

    async fn length(&mut self) -> u64 {
        self.redis.xlen(DEAD).await.expect("the server answers")
    }

    async fn bytes(&mut self) -> u64 {
        let bytes: Option<u64> = self
            .redis
            .hget("umbel:aside", "dead:q")
            .await
            .expect("the server answers");
        bytes.unwrap_or(0)
    }

    async fn evicted(&self) -> Vec<(String, u64)> {
        let evicted = self.broker.evicted().await.expect("the server answers");
        evicted.into_iter().map(|one| (one.cause, one.messages)).collect()
    }
}

#[tokio::test]
async fn r26_dead_letters_are_bounded_by_number_and_each_eviction_is_counted() {
    let server = Redis::start().await;
    let policy = Policy {
        dead_kept: 50,
        ..Policy::default()
    };
    let mut stage = stage(&server, policy).await;
    stage.bury(20_000, 100).await;
    assert_eq!(stage.length().await, 50, "exactly: a bound is a bound");
    assert_eq!(stage.evicted().await, [("count".to_owned(), 19_950)]);
    let used: u64 = redis::cmd("MEMORY")
        .arg(&["USAGE", DEAD, "SAMPLES", "0"])
        .query_async(&mut stage.redis)
        .await
        .expect("the server answers");
    assert!(used < 200_000, "what was evicted takes no room: {used}");
    // 100 bytes each, and the names.
    let each = 100 + "because".len() + "id".len() + "task".len() + "0".len() + "q".len();
    assert_eq!(stage.bytes().await, 50 * each as u64);
}

#[tokio::test]
async fn r26_dead_letters_are_bounded_by_bytes() {
    let server = Redis::start().await;
    let policy = Policy {
        dead_bytes: 20_000,
        ..Policy::default()
    };
    let mut stage = stage(&server, policy).await;
    stage.bury(300, 185).await; // 200 with the names.
    assert_eq!((stage.length().await, stage.bytes().await), (100, 20_000));
    assert_eq!(stage.evicted().await, [("bytes".to_owned(), 200)]);
    // A larger one takes the room of several; one beyond the bound is kept alone.
    stage.bury(1, 985).await;
    assert_eq!((stage.length().await, stage.bytes().await), (96, 20_000));

    // What leaves in another way leaves the count as well.
    let all = stage
        .broker
        .aside(AsideKind::Dead, "q", AsideFilter::default(), 1000)
        .await
        .expect("the server answers");
    let entries: Vec<String> = all.entries.iter().map(|one| one.entry.clone()).collect();
    let gone = stage
        .broker
        .discard(AsideKind::Dead, "q", &entries[..46])
        .await
        .expect("the server answers");
    let fates = stage
        .broker
        .replay(AsideKind::Dead, "q", &entries[40..])
        .await
        .expect("the server answers");
    assert_eq!(
        (gone, fates.iter().filter(|fate| **fate == Replayed::Back).count()),
        (46, 50)
    );
    assert!(fates[..6].iter().all(|fate| *fate == Replayed::Gone), "{fates:?}");
    assert_eq!((stage.length().await, stage.bytes().await), (0, 0));
    assert_eq!(stage.redis.llen::<_, u64>("q").await.expect("the server answers"), 50);

    // A stream that somebody deleted, and one from before its bytes were counted.
    let () = stage
        .redis
        .hset("umbel:aside", "dead:q", 1_000_000)
        .await
        .expect("the server answers");
    let () = stage.redis.del("q").await.expect("the server answers");
    stage.bury(3, 185).await;
    assert_eq!((stage.length().await, stage.bytes().await), (3, 600));
    let () = stage.redis.del("umbel:aside").await.expect("the server answers");
    stage.bury(1, 185).await;
    let bytes = stage.bytes().await;
    assert!((800..20_000).contains(&bytes), "about: {bytes}");
}

#[tokio::test]
async fn r26_dead_letters_grow_old_without_anything_new() {
    let server = Redis::start().await;
    let policy = Policy {
        dead_age: 3600,
        ..Policy::default()
    };
    let mut stage = stage(&server, policy).await;
    let (now, _): (u64, u64) = redis::cmd("TIME")
        .query_async(&mut stage.redis)
        .await
        .expect("the server answers");
    for kind in ["dead", "quarantine"] {
        for (n, age) in [(1, 7200), (2, 3700), (3, 3500), (4, 0)] {
            let id = format!("{}-{n}", (now - age) * 1000);
            let fields = [("reason", "because"), ("raw", "{}")];
            let () = stage
                .redis
                .xadd(format!("umbel:{kind}:q"), id, &fields)
                .await
                .expect("the server answers");
        }
    }
    stage.reserver.ensure(Vec::new).await.expect("the server answers"); // Its hello tells the bounds.
    assert_eq!(stage.broker.trim_aside(&["q"]).await.expect("the server answers"), 4);
    assert_eq!(stage.length().await, 2);
    let evicted = stage.broker.evicted().await.expect("the server answers");
    let seen: Vec<(&str, &str, u64)> = evicted
        .iter()
        .map(|one| (&*one.kind, &*one.cause, one.messages))
        .collect();
    assert_eq!(seen, [("dead", "age", 2), ("quarantine", "age", 2)]);
    assert_eq!(
        stage
            .broker
            .trim_aside(&["q", "other"])
            .await
            .expect("the server answers"),
        0
    );
}
