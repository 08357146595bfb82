//! Bindings that kombu's programs declared, and what our producer makes of them.

#![allow(clippy::unwrap_used, missing_docs)]

use serde_json::Value;
use umbel_broker::{Config, ExchangeKind};
use umbel_client::{Client, Exchange, Options};
use umbel_testkit::redis::{self, AsyncCommands};
use umbel_testkit::{Redis, repository};

/// The commands of a capture.
fn commands(name: &str) -> Vec<Vec<String>> {
    let path = repository().join(format!("crates/protocol/tests/golden/{name}.json"));
    let vector: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let events = vector["redis"].as_array().unwrap().iter();
    let commands = events.filter_map(|event| event["cmd"].as_array());
    let text = |part: &Value| part.as_str().unwrap_or_default().to_owned();
    commands.map(|command| command.iter().map(text).collect()).collect()
}

#[tokio::test]
async fn bindings_that_kombu_declared_lead_to_its_queues() {
    let redis = Redis::start().await;
    let mut connection = redis.connection().await;
    for command in commands("publish-24-bindings-declared") {
        if command[0] == "SADD" {
            let mut sent = redis::cmd(&command[0]);
            let () = sent.arg(&command[1..]).query_async(&mut connection).await.unwrap();
        }
    }
    let client = Client::connect(Config::new(&redis.url()), Options::default())
        .await
        .unwrap();
    let topic = || Exchange::new("feeds", ExchangeKind::Topic);
    let direct = || Exchange::new("dx", ExchangeKind::Direct);
    for (name, exchange, key) in [
        ("publish-25-topic-exchange", topic(), "feed.sport.important"),
        ("publish-26-direct-exchange", direct(), "k1"),
    ] {
        client.task("demo").exchange(exchange, key).send().await.unwrap();
        for command in commands(name).iter().filter(|command| command[0] == "LPUSH") {
            let copies: u64 = connection.llen(&command[1]).await.unwrap();
            assert_eq!(copies, 1, "{name}: {}", command[1]);
        }
    }
    let others: u64 = connection.llen("d3").await.unwrap();
    assert_eq!(others, 0);
}

/// kombu looks into the same set, finds nobody, and drops the message without a word.
#[tokio::test]
async fn a7_a_message_that_nobody_would_get_is_an_error() {
    let redis = Redis::start().await;
    let mut connection = redis.connection().await;
    let looked_up = &commands("publish-27-direct-exchange-no-route")[0];
    assert_eq!(looked_up[..], ["SMEMBERS", "_kombu.binding.dx"]);
    let () = connection
        .sadd(&looked_up[1], "k1\u{6}\u{16}\u{6}\u{16}d1")
        .await
        .unwrap();
    let client = Client::connect(Config::new(&redis.url()), Options::default())
        .await
        .unwrap();
    let exchange = Exchange::new("dx", ExchangeKind::Direct);
    let refused = client
        .task("demo")
        .exchange(exchange, "nobody")
        .send()
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("nobody"), "{refused}");
    let keys: Vec<String> = connection.keys("*").await.unwrap();
    assert_eq!(keys, [looked_up[1].clone()], "no list");
}
