//! A hundred thousand leases and a million messages: what a server needs for one call.

use std::sync::Arc;
use std::time::{Duration, Instant};

use umbel_broker::{Config, Policy, QueueLists, Reserved, Reserver, WorkerIdentity};
use umbel_testkit::redis::{self, AsyncCommands};
use umbel_testkit::{Redis, ServerKind};

use crate::stage::message;

/// Milliseconds below which half of the calls of a command stayed, as the server itself measured them. Of the slowest one
/// of a hundred the machine has its part: other tests run beside this one.
async fn median(connection: &mut redis::aio::MultiplexedConnection, command: &str) -> f64 {
    let info: String = redis::cmd("INFO")
        .arg("latencystats")
        .query_async(connection)
        .await
        .expect("it answers");
    let line = info
        .lines()
        .find(|line| line.starts_with(&format!("latency_percentiles_usec_{command}:")))
        .unwrap_or_else(|| panic!("no figures of {command} in {info}"));
    let value = line
        .split("p50=")
        .nth(1)
        .and_then(|rest| rest.split(',').next())
        .expect("a figure");
    value.trim().parse::<f64>().expect("a number") / 1000.0
}

#[tokio::test]
async fn r27_a_hundred_thousand_leases_and_a_million_messages_slow_no_call_down() {
    for kind in [ServerKind::Redis, ServerKind::Valkey] {
        let redis = Redis::start_kind(kind, &["--latency-tracking", "yes"]).await;
        let mut connection = redis.connection().await;
        let raw = message("test.work", "one-of-many", "[0.0]");
        // Filled by the server itself: a million of ours over the wire would take longer than the test.
        let fill = "for i = 1, tonumber(ARGV[2]) do redis.call('LPUSH', 'celery', ARGV[1], ARGV[1], ARGV[1], ARGV[1], ARGV[1]) end";
        for _ in 0..20 {
            redis::cmd("EVAL")
                .arg(fill)
                .arg(0)
                .arg(&raw)
                .arg(10_000)
                .query_async::<()>(&mut connection)
                .await
                .expect("filled");
        }
        let config = Config::new(&redis.url());
        let identity = WorkerIdentity {
            worker: "w".into(),
            install: String::new(),
            is_standalone: true,
        };
        let keys = umbel_broker::Keys::of(&config);
        let queues = [QueueLists::new(&keys, "celery")];
        let policies = vec![("celery".to_owned(), Policy::default())];
        let lease = Duration::from_secs(600);
        let mut reserver = Reserver::new(config.clone(), identity, policies, lease, 1 << 20);
        let mut held: Vec<Arc<str>> = Vec::new();
        while held.len() < 100_000 {
            let nothing = Vec::new;
            let Reserved::Batch(batch) = reserver.reserve(1000, &queues, nothing).await.expect("it answers") else {
                panic!("the gate is open")
            };
            assert!(!batch.taken.is_empty());
            held.extend(batch.taken.into_iter().map(|taken| taken.lid));
        }
        assert_eq!(connection.zcard("umbel:lease").await, Ok(held.len()));
        assert!(connection.llen("celery").await.unwrap_or(0) >= 900_000);
        // What a worker of sixteen slots does, again and again, beside all that.
        redis::cmd("CONFIG")
            .arg("RESETSTAT")
            .query_async::<()>(&mut connection)
            .await
            .expect("reset");
        for _ in 0..500 {
            reserver.reserve(16, &queues, Vec::new).await.expect("it answers");
        }
        let reserve = median(&mut connection, "evalsha").await;
        assert!(
            reserve <= 2.0,
            "{kind:?}: half of the reserves within 2 ms, not {reserve} ms"
        );
        let broker = umbel_broker::Broker::connect(&config).await.expect("it runs");
        redis::cmd("CONFIG")
            .arg("RESETSTAT")
            .query_async::<()>(&mut connection)
            .await
            .expect("reset");
        for part in held.chunks(1000) {
            broker.renew(lease, part).await.expect("it answers");
        }
        let mut sweeper = umbel_broker::Sweeper::new(lease, Duration::from_secs(5), Duration::from_secs(5));
        let begin = Instant::now();
        sweeper.sweep(&broker, 100, false).await.expect("it answers");
        let took = begin.elapsed();
        let renew = median(&mut connection, "evalsha").await;
        assert!(renew <= 5.0 * 2.0, "{kind:?}: a thousand renewals in {renew} ms");
        assert!(took <= Duration::from_millis(100), "{kind:?}: a sweep took {took:?}");
    }
}
