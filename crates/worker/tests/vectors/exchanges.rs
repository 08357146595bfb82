//! Exchanges: what kombu's programs declare and publish, with our workers and our producer at the other end.

use serde_json::{Value, json};
use umbel_broker::{Config, ExchangeKind};
use umbel_client::{Client, Exchange, Options};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::redis::aio::MultiplexedConnection;
use umbel_testkit::{Process, eventually};

use crate::capture::Capture;
use crate::effects::Effects;
use crate::monitor::Command;
use crate::stage::{SOON, Stage, start};

/// The commands of a capture with this name and, in front of its key, this.
fn of(capture: &Capture, name: &str, key: &str) -> Vec<Command> {
    let mut commands = capture.commands.clone();
    commands.retain(|command| command.text(0) == name && command.text(1).starts_with(key));
    commands
}

/// How many connections hear a fanout exchange.
async fn listeners(connection: &mut MultiplexedConnection) -> usize {
    let mut list = umbel_testkit::redis::cmd("CLIENT");
    list.arg("LIST").arg("TYPE").arg("PUBSUB");
    let clients: String = list.query_async(connection).await.unwrap();
    clients.lines().filter(|line| !line.contains(" psub=0 ")).count()
}

async fn producer(stage: &Stage) -> Client {
    let config = Config::new(&stage.redis.url());
    Client::connect(config, Options::default()).await.unwrap()
}

/// Ids and values that were stored, sorted.
fn results(effects: &Effects) -> Vec<(String, Value)> {
    let documents = effects.documents.iter().map(|stored| &stored["document"]);
    let mut results: Vec<(String, Value)> = documents
        .map(|document| (document["task_id"].to_string(), document["result"].clone()))
        .collect();
    results.sort_by_key(|(id, _)| id.clone());
    results
}

/// One publication, a copy for each worker, both under one id; Celery's two workers overwrote each other's record of it.
#[tokio::test]
async fn a_broadcast_runs_once_in_each_worker() {
    let capture = Capture::of("consume-13-broadcast-queue");
    let broadcast = ["--broadcast", "all_nodes"];
    let mut stage = Stage::with(&broadcast).await;
    let mut second = start(&stage.redis.url(), &["--name", "w2@lab", "--broadcast", "all_nodes"]);
    let mut quiet = stage.connection.clone();
    eventually(SOON, "both listen", async || listeners(&mut quiet).await == 2).await;
    let publication = of(&capture, "PUBLISH", "/0.all_nodes").remove(0);
    let heard = stage.send(&publication.parts).await;
    assert_eq!(heard, umbel_testkit::redis::Value::Int(2), "each worker once");
    let ours = stage
        .until(&capture.name, &[publication.parts[2].clone()], |ours| {
            ours.documents.len() >= 2
        })
        .await;
    let theirs = Effects::of(&capture.commands, &[]);
    // The second SUCCESS stores the same; Celery's workers each published it, too.
    let (id, value) = (
        &theirs.documents[0]["document"]["task_id"],
        &theirs.documents[0]["document"]["result"],
    );
    assert_eq!(results(&ours), vec![(id.to_string(), value.clone()); 2]);
    for worker in [&mut stage.worker, &mut second] {
        ran_once(worker, id.as_str().unwrap()).await;
    }
}

/// The log of a worker has one start of the task.
async fn ran_once(worker: &mut Process, id: &str) {
    let said = format!("\"message\":\"started\",\"task.id\":\"{id}\"");
    worker.says(SOON, &said).await;
    let log = worker.log();
    let starts = log.lines().filter(|line| line.contains(&said));
    assert_eq!(starts.count(), 1, "{log}");
}

/// Bindings of all three kinds, as kombu's program declared them; its publications and ours go where they lead.
#[tokio::test]
async fn what_kombu_declared_is_what_ours_binds_and_follows() {
    let capture = Capture::of("publish-24-bindings-declared");
    let mut stage = Stage::with(&["--queue", "none"]).await;
    // Told by remote control, our worker adds what kombu had added, but for fanout, of which it keeps no list.
    let config = Config::new(&stage.redis.url());
    let broker = umbel_broker::Broker::connect(&config).await.unwrap();
    for (exchange, kind, key, queue) in [
        ("celery", "direct", "celery", "celery"),
        ("feeds", "topic", "feed.#", "feed"),
        ("feeds", "topic", "feed.*.important", "feed_imp"),
        ("dx", "direct", "k1", "d1"),
        ("dx", "direct", "k1", "d2"),
        ("dx", "direct", "k3", "d3"),
    ] {
        let request = umbel_protocol::control::Call::new(
            "add_consumer",
            umbel_protocol::json::Json::of(
                &json!({"queue": queue, "exchange": exchange, "exchange_type": kind, "routing_key": key}),
            ),
        );
        broker
            .request(&request.publication(broker.control(), queue))
            .await
            .unwrap();
    }
    let declared = of(&capture, "SADD", "_kombu.binding.");
    let mut connection = stage.connection.clone();
    for command in declared
        .iter()
        .filter(|command| command.text(1) != "_kombu.binding.bcast")
    {
        eventually(SOON, &command.text(2), async || {
            connection
                .sismember::<_, _, bool>(command.text(1), command.text(2))
                .await
                .unwrap()
        })
        .await;
    }
    // A producer of ours finds them, whoever has declared them.
    let producer = producer(&stage).await;
    stage.forget();
    let sent = |exchange: &str, kind, key: &str| {
        let task = producer.task("demo.add").args(&(key,));
        task.exchange(Exchange::new(exchange, kind), key).send()
    };
    sent("feeds", ExchangeKind::Topic, "feed.sport.important")
        .await
        .unwrap();
    sent("dx", ExchangeKind::Direct, "k1").await.unwrap();
    sent("dx", ExchangeKind::Direct, "k3").await.unwrap();
    let ours = stage.until("copies", &[], |ours| ours.documents.len() >= 5).await;
    assert_eq!(ours.documents.len(), 5, "two of feeds, two of k1, one of k3");
}

/// kombu drops it without a word; our producer says so, and nothing of it is anywhere.
#[tokio::test]
async fn a7_what_has_no_route_is_refused_and_nobody_gets_it() {
    let capture = Capture::of("publish-27-direct-exchange-no-route");
    let mut stage = Stage::with(&["--queue", "d1"]).await;
    for command in of(
        &Capture::of("publish-24-bindings-declared"),
        "SADD",
        "_kombu.binding.dx",
    ) {
        stage.send(&command.parts).await;
    }
    let producer = producer(&stage).await;
    let mut keys: Vec<String> = stage.connection.keys("*").await.unwrap();
    stage.forget();
    let exchange = Exchange::new("dx", ExchangeKind::Direct);
    let refused = producer.task("demo.add").exchange(exchange, "nobody").send().await;
    assert!(refused.unwrap_err().to_string().contains("nobody"));
    let asked: Vec<String> = stage
        .done()
        .iter()
        .filter(|command| command.text(1).starts_with("_kombu"))
        .map(|command| format!("{} {}", command.text(0), command.text(1)))
        .collect();
    let theirs = format!("{} {}", capture.commands[0].text(0), capture.commands[0].text(1));
    assert_eq!(asked, [theirs], "it looked where kombu looks");
    let mut after: Vec<String> = stage.connection.keys("*").await.unwrap();
    keys.sort();
    after.sort();
    assert_eq!(after, keys, "no list, no result");
    assert_eq!(stage.effects(&[]).documents, Vec::<Value>::new());
}

/// Published by Celery's producer, with the usual key and with one of its own: heard, run, answered.
#[tokio::test]
async fn publications_to_a_fanout_exchange_are_run() {
    let mut stage = Stage::with(&["--broadcast", "bcast"]).await;
    for name in ["publish-28-fanout-exchange", "publish-28b-fanout-exchange-with-key"] {
        let capture = Capture::of(name);
        let publication = of(&capture, "PUBLISH", "/0.bcast").remove(0);
        let envelope: Value = serde_json::from_slice(&publication.parts[2]).unwrap();
        stage.forget();
        let mut connection = stage.connection.clone();
        eventually(SOON, "it listens", async || listeners(&mut connection).await == 1).await;
        stage.send(&publication.parts).await;
        let own = [publication.parts[2].clone()];
        let ours = stage.until(name, &own, |ours| !ours.documents.is_empty()).await;
        let document = &ours.documents[0]["document"];
        assert_eq!(document["task_id"], envelope["headers"]["id"], "{name}");
        assert_eq!(document["result"], json!([[], {}]), "{name}");
    }
}

/// A producer that has never declared the exchange: Celery's pushes the message to lists that nobody pops, or nowhere.
#[tokio::test]
async fn a6_a_broadcast_of_a_fresh_producer_is_heard_or_refused() {
    let mut stage = Stage::with(&["--broadcast", "all_nodes"]).await;
    let mut connection = stage.connection.clone();
    eventually(SOON, "it listens", async || listeners(&mut connection).await == 1).await;
    let fresh = producer(&stage).await;
    stage.forget();
    let exchange = Exchange::new("all_nodes", ExchangeKind::Fanout);
    let heard = fresh.task("proj.add").args(&(4, 5)).exchange(exchange, "celery").send();
    let heard = heard.await.unwrap();
    let ours = stage
        .until("the broadcast", &[], |ours| !ours.documents.is_empty())
        .await;
    assert_eq!(results(&ours), [(json!(heard.id()).to_string(), json!(9))]);
    // Of what type the exchange is stands nowhere in Redis: who does not know it is told, instead of guessing.
    let unknown = fresh.task("proj.add").exchange(Exchange::named("all_nodes"), "celery");
    let refused = unknown.send().await.unwrap_err().to_string();
    assert!(refused.contains("all_nodes"), "{refused}");
    let lists: Vec<String> = connection.keys("*bcast*").await.unwrap();
    assert_eq!(lists, Vec::<String>::new());
}
