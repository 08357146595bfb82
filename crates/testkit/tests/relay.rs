//! The relay breaks the wire exactly where it says.

use std::time::Duration;

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use umbel_testkit::{Direction, Redis, Relay, eventually, within};

const SOON: Duration = Duration::from_secs(10);

async fn through(relay: &Relay) -> MultiplexedConnection {
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(SOON));
    let client = redis::Client::open(relay.url()).expect("an address");
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .expect("the relay accepts")
}

#[tokio::test]
async fn a_cut_reply_leaves_the_command_done_and_the_client_without_answer() {
    let server = Redis::start().await;
    let relay = Relay::before(&server).await;
    let mut client = through(&relay).await;
    let cut = relay.cut_reply_after(1, |command| command.is("INCRBY"));
    assert_eq!(
        client.incr::<_, _, i64>("n", 1).await.ok(),
        Some(1),
        "the first is let through"
    );
    assert!(
        client
            .incr::<_, _, i64>("n", 1)
            .await
            .is_err_and(|err| !err.is_timeout())
    );
    cut.happened(SOON).await;
    assert_eq!(server.connection().await.get::<_, i64>("n").await.ok(), Some(2));
    assert_eq!(
        through(&relay).await.incr::<_, _, i64>("n", 1).await.ok(),
        Some(3),
        "a rule acts once"
    );
}

#[tokio::test]
async fn a_late_command_arrives_on_the_old_connection() {
    let server = Redis::start().await;
    let relay = Relay::before(&server).await;
    let mut old = through(&relay).await;
    let held = relay.hold(|command| command.is("RPUSH") && command.has("late"));
    let sent: Result<i64, _> = old.rpush("list", "late").await;
    assert!(sent.is_err(), "the client's connection ends");
    let late = held.sent(SOON).await;
    let mut new = through(&relay).await;
    assert_eq!(new.rpush::<_, _, i64>("list", "first").await.ok(), Some(1));
    assert_eq!(late.deliver().await, b":2\r\n");
    assert_eq!(
        new.lrange::<_, Vec<String>>("list", 0, -1).await.ok(),
        Some(vec!["first".into(), "late".into()])
    );
}

#[tokio::test]
async fn a_stopped_direction_keeps_what_was_sent_until_it_resumes() {
    let server = Redis::start().await;
    let relay = Relay::before(&server).await;
    let mut client = through(&relay).await;
    relay.stop(Direction::Replies);
    let waiting = tokio::spawn(async move { client.incr::<_, _, i64>("n", 1).await });
    let mut direct = server.connection().await;
    eventually(SOON, "the command arrives", async || {
        direct.get::<_, Option<i64>>("n").await.ok().flatten() == Some(1)
    })
    .await;
    assert!(!waiting.is_finished(), "the reply does not");
    relay.resume();
    let answer = within(SOON, "the reply", waiting)
        .await
        .expect("the client did not panic");
    assert_eq!(answer.ok(), Some(1));
}

#[tokio::test]
async fn severed_and_refused_connections_end_at_once() {
    let server = Redis::start().await;
    let relay = Relay::before(&server).await;
    let mut client = through(&relay).await;
    assert_eq!(relay.connections(), 1);
    relay.close();
    assert!(client.incr::<_, _, i64>("n", 1).await.is_err());
    eventually(SOON, "no connection is left", async || relay.connections() == 0).await;
    let refused = redis::Client::open(relay.url())
        .expect("an address")
        .get_multiplexed_async_connection()
        .await;
    assert!(refused.is_err());
    relay.resume();
    assert_eq!(through(&relay).await.incr::<_, _, i64>("n", 1).await.ok(), Some(1));
}
