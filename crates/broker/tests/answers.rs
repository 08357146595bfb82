//! Answers of another shape than the call returns: an error, and never a connection on which the next call could read
//! what belongs to its neighbour.

use std::time::{Duration, Instant};

use umbel_broker::{Broker, Config, Error};
use umbel_testkit::{Redis, Relay, script};

/// Far less than the time after which a call gives up waiting for its answer.
const AT_ONCE: Duration = Duration::from_secs(3);

#[tokio::test]
async fn an_answer_of_another_shape_ends_its_connection() {
    let server = Redis::start().await;
    let relay = Relay::before(&server).await;
    let broker = Broker::connect(&Config::new(&relay.url()))
        .await
        .expect("the server runs");
    // Until the server knows them, calls are made twice.
    broker.close_self("nobody").await.expect("the server answers");
    broker.goodbye("nobody").await.expect("the server answers");
    for lie in [
        "*0\r\n",
        "+OK\r\n",
        "$-1\r\n",
        "$3\r\nfoo\r\n",
        "*1\r\n:1\r\n",
        ",3.14\r\n",
    ] {
        // Two calls on their way, one answer: from here on all that come by this connection belong to the call before.
        relay.answer(lie, 1, script("goodbye"));
        relay.answer("", 1, script("close_self"));
        let lost = broker.clone();
        let lost = tokio::spawn(async move { lost.close_self("nobody").await });
        let told = broker.goodbye("nobody").await;
        assert!(
            matches!(told, Err(Error::Reply { call: "goodbye", .. })),
            "{lie:?}: {told:?}"
        );
        let asked = Instant::now();
        for _ in 0..3 {
            assert!(broker.goodbye("nobody").await.expect("the server answers"), "{lie:?}");
        }
        assert!(asked.elapsed() < AT_ONCE, "{lie:?}: {:?}", asked.elapsed());
        lost.abort();
    }
}
