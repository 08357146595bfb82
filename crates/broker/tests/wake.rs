//! Waking a worker: what it costs to watch, and that nothing is missed.

#![allow(clippy::unwrap_used)] // Tests stop at what they did not expect.

use std::time::{Duration, Instant};

use umbel_broker::{Broker, Config, QueueLists, Waker};
use umbel_testkit::{Redis, within};

const SOON: Duration = Duration::from_secs(20);

/// With declared keys, a look at so many takes Redis 7.0 more than ten seconds, in which it answers nobody.
#[tokio::test]
async fn a_thousand_queues_are_watched_at_little_cost() {
    let redis = Redis::start().await;
    let config = Config::new(&redis.url());
    let broker = Broker::connect(&config).await.unwrap();
    let queues: Vec<QueueLists> = (0..1_000)
        .map(|n| QueueLists::new(broker.keys(), &format!("q{n}")))
        .collect();
    let mut waker = Waker::new(config, "w/1", queues);
    let begin = Instant::now();
    for (round, queue) in ["q0", "q500", "q999", "q999"].into_iter().enumerate() {
        assert_eq!(waker.look().await.unwrap().waiting, round as u64);
        broker.publish(queue, 0, &[b"{}".to_vec()]).await.unwrap();
        within(SOON, "the push is reported", waker.changed()).await;
    }
    assert_eq!(waker.look().await.unwrap().waiting, 4);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}
