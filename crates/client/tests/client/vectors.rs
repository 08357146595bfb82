//! What Celery's producers were seen to send, sent by this library: byte for byte.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use umbel_client::{BodyEncoding, Client, Config, Exchange, ExchangeKind, Json, Options, SendError, Task};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Redis, repository, within};

use crate::support::SOON;

struct Vector {
    /// Key and message of each push or publication, in order.
    sent: Vec<(String, String)>,
    pushes: usize,
}

impl Vector {
    fn read(name: &str) -> Vector {
        let path = repository().join(format!("crates/protocol/tests/golden/{name}.json"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
        let vector: Value = serde_json::from_str(&text).unwrap();
        let commands = vector["redis"].as_array().unwrap().iter();
        let of = |name: &str| -> Vec<(String, String)> {
            commands
                .clone()
                .filter_map(|entry| entry["cmd"].as_array())
                .filter(|cmd| cmd[0] == name)
                .map(|cmd| (cmd[1].as_str().unwrap().into(), cmd[2].as_str().unwrap().into()))
                .collect()
        };
        let mut sent = of("LPUSH");
        let pushes = sent.len();
        sent.extend(of("PUBLISH"));
        Vector { sent, pushes }
    }

    fn message(&self, at: usize) -> Value {
        serde_json::from_str(&self.sent[at].1).unwrap()
    }

    /// A client that makes the ids, and has the clock, of whoever made the capture.
    async fn client(&self, redis: &Redis, now: Option<Timestamp>, mut options: Options) -> Client {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let first = self.message(0);
        options.origin = Some(text(&first["headers"]["origin"]));
        options.reply_to = Some(text(&first["properties"]["reply_to"]));
        let tags = (0..self.sent.len()).map(|at| text(&self.message(at)["properties"]["delivery_tag"]));
        let tags: Arc<Mutex<VecDeque<String>>> = Arc::new(Mutex::new(tags.collect()));
        options.ids = Arc::new(move || tags.lock().unwrap().pop_front().unwrap_or_default());
        if let Some(now) = now {
            options.now = Arc::new(move || now);
        }
        Client::connect(Config::new(&redis.url()), options).await.unwrap()
    }

    fn task(&self, at: usize) -> Task {
        let headers = &self.message(at)["headers"];
        Task::new(headers["task"].as_str().unwrap()).id(headers["id"].as_str().unwrap())
    }

    fn header_time(&self, name: &str) -> Timestamp {
        self.message(0)["headers"][name].as_str().unwrap().parse().unwrap()
    }
}

fn json(text: &str) -> Json {
    Json::parse(text).unwrap()
}

fn none() -> Json {
    Json::empty_object()
}

/// Sends the tasks, and compares the lists.
async fn check(
    redis: &Redis,
    name: &str,
    now: Option<Timestamp>,
    options: Options,
    tasks: impl Fn(&Vector) -> Vec<Task>,
) {
    let vector = Vector::read(name);
    let client = vector.client(redis, now, options).await;
    for task in tasks(&vector) {
        client.send(task).await.unwrap_or_else(|err| panic!("{name}: {err}"));
    }
    compare(redis, name, &vector).await;
}

/// Where the texts that people are shown differ: ours escapes what could move a cursor, shows a special type as the JSON
/// that it is, and cuts at a character more or less.
const SHOWN_OTHERWISE: [&str; 4] = [
    "publish-18-msgpack",
    "publish-21-json-special-types",
    "publish-22-unicode",
    "publish-43-long-args-repr",
];

fn without_reprs(text: &str) -> Value {
    let mut message: Value = serde_json::from_str(text).unwrap();
    message["headers"]["argsrepr"].take();
    message["headers"]["kwargsrepr"].take();
    message
}

async fn compare(redis: &Redis, name: &str, vector: &Vector) {
    let mut connection = redis.connection().await;
    let mut keys: Vec<&String> = vector.sent[..vector.pushes].iter().map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    assert!(!keys.is_empty(), "{name} has pushes");
    for key in keys {
        let mut stored: Vec<String> = connection.lrange(key, 0, -1).await.unwrap();
        stored.reverse();
        let pushed = vector.sent[..vector.pushes].iter().filter(|(to, _)| to == key);
        let expected: Vec<String> = pushed.map(|(_, message)| message.clone()).collect();
        if SHOWN_OTHERWISE.contains(&name) {
            let bare = |texts: &[String]| texts.iter().map(|text| without_reprs(text)).collect::<Vec<Value>>();
            assert_eq!(bare(&stored), bare(&expected), "{name}: {key}");
        } else {
            assert_eq!(stored, expected, "{name}: {key}");
        }
    }
    let _: () = connection.flushdb().await.unwrap();
}

#[tokio::test]
async fn arguments_and_options_are_written_as_celery_writes_them() {
    let redis = Redis::start().await;
    let plain = Options::default;
    check(&redis, "publish-02-send-task-by-name", None, plain(), |vector| {
        vec![vector.task(0).json(json("[2]"), json(r#"{"y": 40}"#))]
    })
    .await;
    check(&redis, "publish-03-zero-args", None, plain(), |vector| {
        vec![vector.task(0)]
    })
    .await;
    check(&redis, "publish-06-priority-null", None, plain(), |vector| {
        vec![vector.task(0)]
    })
    .await;
    let special = |vector: &Vector| {
        let body = vector.message(0)["body"].as_str().unwrap().to_owned();
        let body = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body).unwrap();
        let body = json(&String::from_utf8(body).unwrap());
        body.elements().unwrap()
    };
    for name in [
        "publish-22-unicode",
        "publish-43-long-args-repr",
        "publish-44-nan-infinity-bigint",
        "publish-21-json-special-types",
    ] {
        check(&redis, name, None, plain(), |vector| {
            let [args, kwargs, _] = <[Json; 3]>::try_from(special(vector)).unwrap();
            vec![vector.task(0).json(args, kwargs)]
        })
        .await;
    }
    check(&redis, "publish-23-queue", None, plain(), |vector| {
        vec![vector.task(0).queue("images")]
    })
    .await;
    check(&redis, "publish-31-options", None, plain(), |vector| {
        let task = vector.task(0).args(&[1]).time_limit(Duration::from_secs(30));
        let task = task
            .soft_time_limit(Duration::from_millis(25_500))
            .shadow("shadow.name");
        let task = task
            .ignore_result(true)
            .reply_to("my-reply")
            .transient()
            .argsrepr("(hidden)")
            .kwargsrepr("{}");
        vec![task.header("x-trace", "abc").header("n", &5)]
    })
    .await;
    let utf8 = Options {
        body_encoding: BodyEncoding::Utf8,
        ..plain()
    };
    check(&redis, "publish-32-body-encoding-utf8", None, utf8, |vector| {
        vec![vector.task(0).args(&["é"])]
    })
    .await;
    check(&redis, "publish-35-link-and-link-error", None, plain(), |vector| {
        let embed = special(vector).remove(2);
        let linked = |name: &str| -> Vec<umbel_client::Signature> {
            let list = embed.get(name).unwrap().elements().unwrap();
            list.iter()
                .map(|json| umbel_client::Signature::parse(json).unwrap())
                .collect()
        };
        let task = linked("callbacks")
            .into_iter()
            .fold(vector.task(0).args(&[1]), Task::link);
        vec![linked("errbacks").into_iter().fold(task, Task::link_error)]
    })
    .await;
    check(&redis, "publish-18-msgpack", None, plain(), |vector| {
        let bytes = r#"{"b": {"__type__": "base64", "__value__": "AP/+"}, "n": {"k": [true, false]}}"#;
        let task = vector.task(0).json(json(r#"[1, 2.5, null, "\u00e9"]"#), json(bytes));
        vec![task.serializer("msgpack")]
    })
    .await;
    check(&redis, "publish-19-yaml", None, plain(), |vector| {
        vec![
            vector
                .task(0)
                .json(json(r#"[1, "two", null]"#), json(r#"{"k": [1, 2]}"#))
                .serializer("yaml"),
        ]
    })
    .await;
}

#[tokio::test]
async fn stamps_are_written_as_celery_writes_them() {
    let redis = Redis::start().await;
    let mut vector = Vector::read("publish-42-stamps");
    // Celery was given a tuple there, which JSON does not tell from a list.
    vector.sent[0].1 = vector.sent[0]
        .1
        .replace(r#""argsrepr": "(1,)""#, r#""argsrepr": "[1]""#);
    let client = vector.client(&redis, None, Options::default()).await;
    let task = vector
        .task(0)
        .args(&[1])
        .stamp("tenant", "acme")
        .stamp("run", &["r1", "r2"]);
    client.send(task).await.unwrap();
    compare(&redis, "publish-42-stamps", &vector).await;
}

#[tokio::test]
async fn times_are_written_as_celery_writes_them() {
    let redis = Redis::start().await;
    let at = |name: &str, header: &str, seconds: i64| {
        Some(Vector::read(name).header_time(header) - SignedDuration::from_secs(seconds))
    };
    let name = "publish-07-countdown";
    check(&redis, name, at(name, "eta", 10), Options::default(), |vector| {
        vec![vector.task(0).countdown(Duration::from_secs(10))]
    })
    .await;
    let zoned: jiff::Zoned = "2031-02-03T04:05:06.789012+05:30[+05:30]".parse().unwrap();
    check(
        &redis,
        "publish-08-eta-aware-offset",
        None,
        Options::default(),
        |vector| vec![vector.task(0).eta(zoned.clone())],
    )
    .await;
    let naive: jiff::civil::DateTime = "2031-02-03T04:05:06".parse().unwrap();
    check(&redis, "publish-09-eta-naive", None, Options::default(), |vector| {
        vec![vector.task(0).eta(naive)]
    })
    .await;
    let name = "publish-10-expires-seconds";
    check(&redis, name, at(name, "expires", 120), Options::default(), |vector| {
        vec![vector.task(0).expires(Duration::from_secs(120))]
    })
    .await;
    let name = "publish-11-expires-datetime";
    let expires: Timestamp = "2032-01-01T00:00:00Z".parse().unwrap();
    // The message says how long it had left.
    let now = expires - SignedDuration::from_millis(161_352_697_104);
    check(&redis, name, Some(now), Options::default(), |vector| {
        vec![vector.task(0).expires(expires)]
    })
    .await;
    let name = "publish-12-expires-in-the-past";
    check(&redis, name, at(name, "expires", -5), Options::default(), |vector| {
        vec![vector.task(0).expires(SignedDuration::from_secs(-5))]
    })
    .await;
}

#[tokio::test]
async fn priorities_go_to_the_lists_of_any_steps() {
    let redis = Redis::start().await;
    let args = |at: usize, priority: i64, vector: &Vector| vector.task(at).args(&[priority]).priority(priority);
    check(
        &redis,
        "publish-04-priority-0-to-9",
        None,
        Options::default(),
        |vector| (0..10).map(|at| args(at, i64::try_from(at).unwrap(), vector)).collect(),
    )
    .await;
    let name = "publish-05-priority-custom-steps-sep";
    let vector = Vector::read(name);
    let mut config = Config::new(&redis.url());
    config.priority_steps = (0..10).collect();
    config.separator = ":".into();
    let template = vector.client(&redis, None, Options::default()).await;
    drop(template);
    let tags = (0..6).map(|at| {
        vector.message(at)["properties"]["delivery_tag"]
            .as_str()
            .unwrap()
            .to_owned()
    });
    let tags: Arc<Mutex<VecDeque<String>>> = Arc::new(Mutex::new(tags.collect()));
    let options = Options {
        origin: vector.message(0)["headers"]["origin"].as_str().map(Into::into),
        reply_to: vector.message(0)["properties"]["reply_to"].as_str().map(Into::into),
        ids: Arc::new(move || tags.lock().unwrap().pop_front().unwrap()),
        ..Options::default()
    };
    let client = Client::connect(config, options).await.unwrap();
    for (at, priority) in [0, 1, 5, 9, 12, -3].into_iter().enumerate() {
        client.send(args(at, priority, &vector)).await.unwrap();
    }
    compare(&redis, name, &vector).await;
}

#[tokio::test]
async fn a_prefix_stands_before_every_key() {
    let redis = Redis::start().await;
    let name = "publish-29-global-keyprefix";
    let mut vector = Vector::read(name);
    let mut config = Config::new(&redis.url());
    config.key_prefix = "pfx:".into();
    config.result_prefix = umbel_client::result_prefix("rpfx");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let first = vector.message(0);
    let tag = text(&first["properties"]["delivery_tag"]).unwrap();
    let options = Options {
        origin: text(&first["headers"]["origin"]),
        reply_to: text(&first["properties"]["reply_to"]),
        ids: Arc::new(move || tag.clone()),
        ..Options::default()
    };
    let client = Client::connect(config, options).await.unwrap();
    let is_tuple = first["headers"]["argsrepr"] == "(1,)";
    if is_tuple {
        vector.sent[0].1 = vector.sent[0]
            .1
            .replace(r#""argsrepr": "(1,)""#, r#""argsrepr": "[1]""#);
    }
    let ignored = first["headers"]["ignore_result"].as_bool();
    let task = vector.task(0).args(&[1]);
    let task = match ignored {
        Some(ignored) => task.ignore_result(ignored),
        None => task,
    };
    let handle = client.send(task).await.unwrap();
    let key = format!("rpfx_celery-task-meta-{}", handle.id());
    let mut connection = redis.connection().await;
    let document = format!(r#"{{"status": "SUCCESS", "result": 7, "task_id": "{}"}}"#, handle.id());
    let _: () = connection.set(&key, document).await.unwrap();
    assert_eq!(handle.get_as::<i64>(SOON).await.unwrap(), 7);
    assert_eq!(handle.forget().await.unwrap(), 1);
    compare(&redis, name, &vector).await;
}

#[tokio::test]
async fn exchanges_deliver_what_kombus_producer_delivered() {
    let redis = Redis::start().await;
    let mut connection = redis.connection().await;
    let bindings = [
        ("feeds", "feed.#\u{6}\u{16}^feed\\..*?$\u{6}\u{16}feed"),
        (
            "feeds",
            "feed.*.important\u{6}\u{16}^feed\\.[^\\.]+\\.important$\u{6}\u{16}feed_imp",
        ),
        ("dx", "k1\u{6}\u{16}\u{6}\u{16}d1"),
        ("dx", "k1\u{6}\u{16}\u{6}\u{16}d2"),
        ("dx", "k3\u{6}\u{16}\u{6}\u{16}d3"),
    ];
    let cases = [
        ("publish-25-topic-exchange", Exchange::new("feeds", ExchangeKind::Topic)),
        ("publish-26-direct-exchange", Exchange::new("dx", ExchangeKind::Direct)),
    ];
    for (name, exchange) in cases {
        for (exchange, member) in bindings {
            let _: () = connection
                .sadd(format!("_kombu.binding.{exchange}"), member)
                .await
                .unwrap();
        }
        let vector = Vector::read(name);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let options = Options {
            origin: text(&vector.message(0)["headers"]["origin"]),
            reply_to: text(&vector.message(0)["properties"]["reply_to"]),
            ..Options::default()
        };
        let client = crate::support::client_with(&redis, options).await;
        let mut ids: Vec<String> = Vec::new();
        for at in 0..vector.sent.len() {
            let message = vector.message(at);
            let id = message["headers"]["id"].as_str().unwrap().to_owned();
            if !ids.contains(&id) {
                let key = message["properties"]["delivery_info"]["routing_key"].as_str().unwrap();
                client
                    .send(vector.task(at).exchange(exchange.clone(), key))
                    .await
                    .unwrap();
                ids.push(id);
            }
        }
        // Each copy has a tag of its own here; kombu's share one, and lose each other's acknowledgements.
        let mut tags = Vec::new();
        let mut without_tag = |text: &str| {
            let mut message: Value = serde_json::from_str(text).unwrap();
            tags.push(message["properties"]["delivery_tag"].take());
            message
        };
        let mut keys: Vec<&String> = vector.sent.iter().map(|(key, _)| key).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let mut stored: Vec<String> = connection.lrange(key, 0, -1).await.unwrap();
            stored.reverse();
            let stored: Vec<Value> = stored.iter().map(|text| without_tag(text)).collect();
            let expected = vector.sent.iter().filter(|(to, _)| to == key);
            let expected: Vec<Value> = expected
                .map(|(_, text)| {
                    let mut message: Value = serde_json::from_str(text).unwrap();
                    message["properties"]["delivery_tag"].take();
                    message
                })
                .collect();
            assert_eq!(stored, expected, "{name}: {key}");
        }
        let count = tags.len();
        tags.sort_by_key(ToString::to_string);
        tags.dedup();
        assert_eq!(tags.len(), count, "{name}");
        let _: () = connection.flushdb().await.unwrap();
    }
}

#[tokio::test]
async fn what_has_no_route_is_an_error_and_not_silence() {
    let redis = Redis::start().await;
    let mut connection = redis.connection().await;
    let member = "k1\u{6}\u{16}\u{6}\u{16}d1";
    let _: () = connection.sadd("_kombu.binding.dx", member).await.unwrap();
    let client = crate::support::client(&redis).await;
    let sent = client
        .task("t")
        .exchange(Exchange::new("dx", ExchangeKind::Direct), "nobody")
        .send()
        .await;
    let err = sent.unwrap_err();
    assert_eq!(
        err.to_string(),
        r#"no queue is bound to direct exchange "dx" by routing key "nobody"; 1 bindings in all"#
    );
    assert!(!err.may_have_been_sent());
    let err = client
        .task("t")
        .exchange(Exchange::named("dx"), "k1")
        .send()
        .await
        .unwrap_err();
    assert!(matches!(err, SendError::UnknownExchange { .. }), "{err}");
    let _: () = connection
        .sadd("_kombu.binding.bad", "k\u{6}\u{16}(\u{6}\u{16}q")
        .await
        .unwrap();
    let err = client
        .task("t")
        .exchange(Exchange::new("bad", ExchangeKind::Topic), "k")
        .send()
        .await
        .unwrap_err();
    assert!(err.to_string().contains("queue q"), "{err}");
    // Nothing else is in the database: neither message nor list.
    let keys: Vec<String> = connection.keys("*").await.unwrap();
    assert_eq!(keys.len(), 2, "{keys:?}");
}

#[tokio::test]
async fn fanout_and_events_are_published_as_celery_publishes_them() {
    let redis = Redis::start().await;
    let exchange = Exchange::new("bcast", ExchangeKind::Fanout);
    for name in [
        "publish-28-fanout-exchange",
        "publish-28b-fanout-exchange-with-key",
        "publish-34-task-sent-event",
    ] {
        let vector = Vector::read(name);
        let server = umbel_testkit::redis::Client::open(redis.url()).unwrap();
        let mut pubsub = server.get_async_pubsub().await.unwrap();
        pubsub.psubscribe("*").await.unwrap();
        let is_event = name.contains("event");
        let (channel, expected) = vector.sent.last().unwrap();
        let now = is_event.then(|| {
            let message = vector.message(vector.sent.len() - 1);
            let body = message["body"].as_str().unwrap();
            let body = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body).unwrap();
            let event: Value = serde_json::from_slice(&body).unwrap();
            let micros = (event["timestamp"].as_f64().unwrap() * 1e6).floor();
            #[allow(clippy::cast_possible_truncation)]
            Timestamp::from_microsecond(micros as i64).unwrap()
        });
        let options = Options {
            events: is_event,
            ..Options::default()
        };
        let client = vector.client(&redis, now, options).await;
        if is_event {
            let task = vector
                .task(0)
                .json(json("[1, 2]"), json(r#"{"z": 3}"#))
                .root_id("r-1")
                .parent_id("p-1");
            client.send(task).await.unwrap();
        } else {
            let key = vector.message(0)["properties"]["delivery_info"]["routing_key"].clone();
            let task = vector.task(0).json(Json::empty_array(), none());
            client
                .send(task.exchange(exchange.clone(), key.as_str().unwrap()))
                .await
                .unwrap();
        }
        let next = within(SOON, "a publication", async {
            use futures::StreamExt as _;
            pubsub.on_message().next().await
        });
        let heard = next.await.unwrap();
        assert_eq!(heard.get_channel_name(), channel, "{name}");
        let payload: String = heard.get_payload().unwrap();
        if is_event {
            compare_event(&payload, expected);
            compare(&redis, name, &vector).await;
        } else {
            assert_eq!(&payload, expected, "{name}");
        }
    }
}

/// Ours has our process id, and whole microseconds; all else is the same.
fn compare_event(ours: &str, theirs: &str) {
    let [ours, theirs] = [ours, theirs].map(|text| {
        let mut message: Value = serde_json::from_str(text).unwrap();
        let body = message["body"].take();
        let body = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body.as_str().unwrap()).unwrap();
        let mut body: Value = serde_json::from_slice(&body).unwrap();
        body["pid"].take();
        // Python's clock has digits behind the microsecond.
        let micros = (body["timestamp"].as_f64().unwrap() * 1e6).floor();
        body["timestamp"] = micros.into();
        let keys: Vec<String> = body.as_object().unwrap().keys().cloned().collect();
        (message, body, keys)
    });
    assert_eq!(ours, theirs);
}

#[tokio::test]
async fn lists_of_an_expiring_queue_are_given_their_time() {
    let redis = Redis::start().await;
    let name = "publish-33-queue-x-expires";
    let mut options = Options::default();
    options.expiring_queues.insert("celery".into(), Duration::from_secs(30));
    let vector = Vector::read(name);
    let client = vector.client(&redis, None, options).await;
    let ignored = vector.message(0)["headers"]["ignore_result"].as_bool();
    let task = vector.task(0);
    let task = ignored.map_or(task.clone(), |ignored| task.ignore_result(ignored));
    client.send(task).await.unwrap();
    client
        .send_all([Task::new("t").priority(9), Task::new("t")])
        .await
        .unwrap();
    let mut connection = redis.connection().await;
    for (list, length) in [("celery", 2), ("celery\u{6}\u{16}9", 1)] {
        assert_eq!(connection.llen::<_, usize>(list).await.unwrap(), length);
        let left: i64 = connection.pttl(list).await.unwrap();
        assert!((1..=30_000).contains(&left), "{list}: {left}");
    }
    let _: () = connection.ltrim("celery", -1, -1).await.unwrap();
    compare(&redis, name, &vector).await;
}
