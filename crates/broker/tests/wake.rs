//! Waking a worker: what it costs to watch, and that nothing is missed.

#![allow(clippy::unwrap_used)] // Tests stop at what they did not expect.

use std::time::{Duration, Instant};

use umbel_broker::{Broker, Config, Lookout, PRIORITY_STEPS, QueueLists, Waker};
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

#[tokio::test]
async fn what_comes_into_an_empty_queue_is_told_once_and_again_when_it_is_watched_again() {
    let redis = Redis::start().await;
    let config = Config::new(&redis.url());
    let broker = Broker::connect(&config).await.unwrap();
    let push = async |queue: &str, priority: i64| broker.publish(queue, priority, &[b"{}".to_vec()]).await.unwrap();
    let names: Vec<String> = (0..300).map(|n| format!("q{n}")).collect();
    let watched = |without: &[&str]| -> Vec<(&str, &[u8])> {
        let some = names.iter().filter(|name| !without.contains(&name.as_str()));
        some.map(|name| (name.as_str(), &PRIORITY_STEPS[..])).collect()
    };
    let mut lookout = Lookout::new(config);
    lookout.watch(&watched(&[])).await.unwrap();
    // By any of its lists, and of others nothing.
    push("other", 0).await;
    push("q7", 9).await;
    assert_eq!(
        within(SOON, "q7 is told", lookout.came()).await,
        ["q7".to_owned()].into()
    );
    push("q7", 9).await;
    push("q299", 0).await;
    assert_eq!(
        within(SOON, "q299 is told", lookout.came()).await,
        ["q299".to_owned()].into()
    );
    // What came before it was watched is told at once, with those that were armed by the same command.
    push("q5", 0).await;
    assert_eq!(
        within(SOON, "q5 is told", lookout.came()).await,
        ["q5".to_owned()].into()
    );
    lookout.watch(&watched(&["q7", "q299"])).await.unwrap();
    assert!(within(SOON, "q5 is told", lookout.came()).await.contains("q5"));
    // Nobody knows what an emptied server had.
    let _: () = redis::cmd("FLUSHALL")
        .query_async(&mut redis.connection().await)
        .await
        .unwrap();
    let came = within(SOON, "all are told", lookout.came()).await;
    assert_eq!(came.len(), names.len() - 3);
}
