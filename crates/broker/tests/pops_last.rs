//! A script pops last: whatever goes wrong in it earlier, the message stays where it was, at worst it is there twice.

#![allow(clippy::panic)] // Tests stop at what they did not expect.

use std::fmt::Write as _;
use std::time::Duration;

use umbel_broker::{AckGroup, Batch, Broker, Config, End, Policy, QueueLists, Reserved, Reserver, Settlement};
use umbel_broker::{Error, WorkerIdentity};
use umbel_testkit::Redis;
use umbel_testkit::redis::aio::MultiplexedConnection;
use umbel_testkit::redis::{self, AsyncCommands};

const MESSAGES: [&str; 3] = ["the first message", "the second message", "the third message"];

struct Stage {
    redis: MultiplexedConnection,
    broker: Broker,
    reserver: Reserver,
    queues: Vec<QueueLists>,
}

async fn stage(server: &Redis) -> Stage {
    let mut connection = server.connection().await;
    redis::cmd("FLUSHALL")
        .query_async::<()>(&mut connection)
        .await
        .expect("the server answers");
    let config = Config::new(&server.url());
    let broker = Broker::connect(&config).await.expect("the server runs");
    let identity = WorkerIdentity {
        worker: "w".into(),
        install: String::new(),
        is_standalone: true,
    };
    let policies = vec![("q".into(), Policy::default())];
    let mut reserver = Reserver::new(config, identity, policies, Duration::from_mins(1), 1000);
    reserver.ensure(Vec::new).await.expect("the server answers");
    let messages: Vec<Vec<u8>> = MESSAGES.iter().map(|text| text.as_bytes().to_vec()).collect();
    broker.publish("q", 0, &messages).await.expect("the server answers");
    let queues = vec![QueueLists::new(broker.keys(), "q")];
    Stage {
        redis: connection,
        broker,
        reserver,
        queues,
    }
}

impl Stage {
    async fn take(&mut self, count: usize) -> Result<Batch, Error> {
        match self.reserver.reserve(count, &self.queues, Vec::new).await? {
            Reserved::Batch(batch) => Ok(batch),
            other => panic!("a standalone worker's gate is open: {other:?}"),
        }
    }

    /// Every key's whole content as text, whatever its type: good enough to find a message in.
    async fn everything(&mut self) -> String {
        let keys: Vec<String> = self.redis.keys("*").await.expect("the server answers");
        let mut text = String::new();
        for key in keys {
            let dump = redis::cmd("TYPE")
                .arg(&key)
                .query_async::<String>(&mut self.redis)
                .await;
            let read = match dump.expect("the server answers").as_str() {
                "list" => redis::cmd("LRANGE").arg(&key).arg(0).arg(-1).to_owned(),
                "hash" => redis::cmd("HGETALL").arg(&key).to_owned(),
                "zset" => redis::cmd("ZRANGE").arg(&key).arg(0).arg(-1).to_owned(),
                "stream" => redis::cmd("XRANGE").arg(&key).arg("-").arg("+").to_owned(),
                _ => redis::cmd("GET").arg(&key).to_owned(),
            };
            let value: redis::Value = read.query_async(&mut self.redis).await.expect("the server answers");
            writeln!(text, "{value:?}").expect("memory takes it");
        }
        text
    }

    /// Gives a key another type, keeping what it was.
    async fn spoil(&mut self, key: &str) {
        let kept: Result<(), _> = self.redis.rename(key, "kept").await;
        let _ = kept; // It may not exist yet.
        let spoilt: Result<(), _> = match key {
            "umbel:fence" | "umbel:gen" => self.redis.lpush(key, "spoilt").await,
            _ => self.redis.set(key, "spoilt").await,
        };
        spoilt.expect("the server answers");
    }
}

#[tokio::test]
async fn a_key_of_another_type_costs_no_message() {
    let server = Redis::start().await;
    let keys = [
        "unacked",
        "lease",
        "held",
        "fence",
        "workers",
        "att",
        "policy",
        "gen",
        "dead:q",
        "delayed:q",
    ];
    for key in keys.map(|key| format!("umbel:{key}")) {
        for spoilt_before_taking in [true, false] {
            let mut stage = stage(&server).await;
            let mut batch = None;
            if spoilt_before_taking {
                stage.spoil(&key).await;
                drop(stage.take(2).await);
            } else {
                batch = stage.take(2).await.ok();
                stage.spoil(&key).await;
            }
            for taken in batch.iter().flat_map(|batch| &batch.taken) {
                for end in [End::Park { due: 1.0 }, End::Bury { reason: "why".into() }, End::Release] {
                    let settlement = Settlement {
                        lid: taken.lid.clone(),
                        id: "id".into(),
                        task: "t".into(),
                        end,
                        result: None,
                        run: None,
                        outcome: "failed",
                        follow_ups: Vec::new(),
                    };
                    drop(stage.broker.settle(10, &[settlement]).await);
                }
            }
            drop(stage.broker.janitor(true, Duration::ZERO).await);
            let everything = stage.everything().await;
            for message in MESSAGES {
                assert!(
                    everything.contains(message),
                    "{message} is lost with {key} spoilt:\n{everything}"
                );
            }
        }
    }
}

#[tokio::test]
async fn without_memory_what_waits_is_taken_and_acknowledged_and_nothing_new_is_accepted() {
    let server = Redis::start().await;
    let mut stage = stage(&server).await;
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("maxmemory").arg("1");
    set.query_async::<()>(&mut stage.redis)
        .await
        .expect("the server answers");
    let refused = stage
        .redis
        .lpush::<_, _, ()>("q", "more")
        .await
        .expect_err("there is no memory");
    assert_eq!(refused.code(), Some("OOM"), "{refused:?}");
    // A backlog that fills the memory would stay for ever otherwise.
    let batch = stage.take(5).await.expect("what waits is taken");
    assert_eq!(batch.taken.len(), 3);
    let leases = batch
        .taken
        .iter()
        .map(|one| (one.lid.clone(), "id".to_owned()))
        .collect();
    let group = AckGroup {
        queue: "q".into(),
        leases,
        results: Vec::new(),
    };
    let lost = stage
        .broker
        .ack("w", 0, false, &[group])
        .await
        .expect("an acknowledgement frees memory");
    assert_eq!(lost, 0);
    assert_eq!(stage.redis.hlen("umbel:unacked").await, Ok(0));
    assert_eq!(stage.redis.llen("q").await, Ok(0));
}

#[tokio::test]
async fn a_right_that_is_missing_multiplies_and_hides_no_message() {
    let server = Redis::start().await;
    let commands = [
        "ltrim", "hlen", "lrange", "hset", "zadd", "hincrby", "set", "get", "hget", "time", "exists",
    ];
    for command in commands {
        let mut stage = stage(&server).await;
        // The connection is there already: its user changes under it, as when somebody edits the ACL.
        redis::cmd("ACL")
            .arg("SETUSER")
            .arg("default")
            .arg(format!("-{command}"))
            .query_async::<()>(&mut stage.redis)
            .await
            .expect("the server answers");
        let mut taken = 0;
        for _ in 0..3 {
            taken += stage.take(2).await.map_or(0, |batch| batch.taken.len());
        }
        redis::cmd("ACL")
            .arg("SETUSER")
            .arg("default")
            .arg(format!("+{command}"))
            .query_async::<()>(&mut stage.redis)
            .await
            .expect("the server answers");
        let waiting: usize = stage.redis.llen("q").await.expect("the server answers");
        let held: usize = stage.redis.hlen("umbel:unacked").await.expect("the server answers");
        assert_eq!((waiting, held), (3 - taken, taken), "without {command}");
    }
}
