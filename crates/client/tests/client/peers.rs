//! Sent by this library, run by a real Celery worker and by ours.

use std::time::Duration;

use jiff::SignedDuration;
use serde_json::{Value, json};
use umbel_client::{
    Client, Config, Exchange, ExchangeKind, Handle, Json, Options, ResultError, Signature, Task, chain, chord, chunks,
    group, map, result_prefix, starmap,
};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, CeleryOptions, CeleryWorker, Process, Redis, eventually};

use crate::support::{SOON, client, client_with, umbel_worker};

/// Whoever runs the tasks.
enum Runs {
    Celery(CeleryWorker),
    Umbel(Process),
}

const KINDS: [&str; 2] = ["celery", "umbel"];

impl Runs {
    async fn start(kind: &str, redis: &Redis) -> Runs {
        if kind == "celery" {
            let options = CeleryOptions {
                settings: json!({"accept_content": ["json", "msgpack", "yaml"]}),
                ..CeleryOptions::default()
            };
            Runs::Celery(CeleryWorker::start(&redis.url(), &options).await)
        } else {
            Runs::Umbel(umbel_worker(
                redis,
                &["--accept", "json,msgpack,yaml", "--concurrency", "1"],
            ))
        }
    }

    fn stop(self) {
        match self {
            Runs::Celery(worker) => drop(worker),
            Runs::Umbel(worker) => drop(worker),
        }
    }
}

fn echo(args: &Value) -> Value {
    json!({"args": args, "kwargs": {}})
}

fn e(args: &Value) -> Task {
    Task::new("umbel.echo").args(args)
}

async fn value(handle: &Handle) -> Value {
    let value = handle
        .get(SOON)
        .await
        .unwrap_or_else(|err| panic!("{}: {err}", handle.id()));
    value.to().unwrap()
}

#[tokio::test]
async fn calls_run_with_every_option() {
    for kind in KINDS {
        let redis = Redis::start().await;
        let _worker = Runs::start(kind, &redis).await;
        let client = client(&redis).await;
        let call = client
            .task("umbel.echo")
            .args(&(1, "ä"))
            .kwargs(&json!({"k": [null, 1.5]}));
        let call = call
            .header("x-trace", "abc")
            .stamp("tenant", "acme")
            .shadow("shown")
            .hide_arguments();
        let call = call.time_limit(Duration::from_secs(60)).retries(1).priority(5);
        let sent = call.expires(Duration::from_mins(5)).send().await.unwrap();
        assert_eq!(
            value(&sent).await,
            json!({"args": [1, "ä"], "kwargs": {"k": [null, 1.5]}}),
            "{kind}"
        );
        assert_eq!(sent.state().await.unwrap().name, "SUCCESS");

        let formats = [
            ("json", None),
            ("msgpack", None),
            ("yaml", None),
            ("json", Some("zlib")),
            ("json", Some("bzip2")),
            ("json", Some("lzma")),
            ("json", Some("brotli")),
            ("msgpack", Some("zstd")),
        ];
        for (serializer, compression) in formats {
            let task = e(&json!(["x".repeat(300), 7])).serializer(serializer);
            let task = match compression {
                Some(compression) => task.compression(compression),
                None => task,
            };
            let sent = client.send(task).await.unwrap();
            let what = format!("{kind}: {serializer} {compression:?}");
            assert_eq!(value(&sent).await, echo(&json!(["x".repeat(300), 7])), "{what}");
        }

        let expired = client
            .task("umbel.echo")
            .expires(SignedDuration::from_secs(-5))
            .send()
            .await
            .unwrap();
        match expired.get(SOON).await {
            Err(ResultError::Remote(err)) => {
                assert!(err.is_revoked(), "{kind}: {err}");
                assert_eq!(
                    (err.exc_type.as_str(), err.message().as_str()),
                    ("TaskRevokedError", "expired")
                );
            }
            other => panic!("{kind}: {other:?}"),
        }

        let begin = std::time::Instant::now();
        let later = client
            .send(e(&json!([2])).countdown(Duration::from_secs(1)))
            .await
            .unwrap();
        assert_eq!(value(&later).await, echo(&json!([2])), "{kind}");
        assert!(
            begin.elapsed() >= Duration::from_millis(950),
            "{kind}: {:?}",
            begin.elapsed()
        );

        let failed = client.task("umbel.sleep").args(&("x",)).send().await.unwrap();
        match failed.get(SOON).await {
            Err(ResultError::Remote(err)) => {
                assert_eq!(
                    (err.state.as_str(), err.exc_type.as_str()),
                    ("FAILURE", "TypeError"),
                    "{kind}"
                );
                assert!(!err.args.is_empty(), "{kind}: {err:?}");
            }
            other => panic!("{kind}: {other:?}"),
        }
    }
}

fn workflows() -> Vec<(&'static str, Signature, Value)> {
    let s = |seconds: f64| Task::new("umbel.sleep").args(&(seconds,));
    let one = |n: i64| echo(&json!([n]));
    vec![
        (
            "chain",
            chain([e(&json!([1])), e(&json!([2])), e(&json!([3]))]),
            echo(&json!([echo(&json!([one(1), 2])), 3])),
        ),
        (
            "immutable",
            chain([s(0.0), s(0.01).immutable(), e(&json!([9]))]),
            echo(&json!([0.01, 9])),
        ),
        (
            "group",
            group((0..3).map(|n| e(&json!([n])))),
            json!([one(0), one(1), one(2)]),
        ),
        (
            "chord",
            chord([e(&json!([1])), e(&json!([2]))], e(&json!(["body"]))),
            echo(&json!([[one(1), one(2)], "body"])),
        ),
        (
            "a group in a chain",
            chain([
                Signature::from(e(&json!([1]))),
                group([e(&json!([2])), e(&json!([3]))]),
                e(&json!(["end"])).into(),
            ]),
            echo(&json!([[echo(&json!([one(1), 2])), echo(&json!([one(1), 3]))], "end"])),
        ),
        (
            "a chord in a chord",
            chord(
                [
                    chord([e(&json!([1])), e(&json!([2]))], e(&json!(["in"]))),
                    e(&json!([3])).into(),
                ],
                e(&json!(["out"])),
            ),
            echo(&json!([[echo(&json!([[one(1), one(2)], "in"])), one(3)], "out"])),
        ),
        (
            "chains in a chord",
            chord(
                [
                    chain([e(&json!([1])), e(&json!([2]))]),
                    chain([e(&json!([3])), e(&json!([4]))]),
                ],
                e(&json!([])),
            ),
            echo(&json!([[echo(&json!([one(1), 2])), echo(&json!([one(3), 4]))]])),
        ),
        (
            "an empty chord",
            chord(Vec::<Task>::new(), e(&json!(["empty"]))),
            echo(&json!([[], "empty"])),
        ),
        ("map", map(Task::new("umbel.sleep"), &[0.0, 0.01]), json!([0.0, 0.01])),
        (
            "starmap",
            starmap(Task::new("umbel.echo"), &[vec![1, 2], vec![3]]),
            json!([echo(&json!([1, 2])), one(3)]),
        ),
        (
            "chunks",
            chunks(Task::new("umbel.echo"), &[[1], [2], [3]], 2),
            json!([[one(1), one(2)], [one(3)]]),
        ),
        (
            "a large chord",
            chord((0..200).map(|_| s(0.0)), e(&json!([]))),
            echo(&json!([vec![0.0; 200]])),
        ),
    ]
}

#[tokio::test]
async fn workflows_run_to_their_end() {
    for kind in KINDS {
        let redis = Redis::start().await;
        let _worker = Runs::start(kind, &redis).await;
        let client = client(&redis).await;
        for (name, workflow, expected) in workflows() {
            let sent = client.apply(workflow).await.unwrap();
            assert_eq!(value(&sent).await, expected, "{kind}: {name}");
        }
        // Callbacks run under ids that were given here.
        let done = Task::new("umbel.echo").args(&("linked",)).id("callback");
        let sent = client.send(e(&json!([1])).link(done)).await.unwrap();
        assert_eq!(
            value(&client.handle("callback")).await,
            echo(&json!([echo(&json!([1])), "linked"])),
            "{kind}"
        );
        let children = sent.children().await.unwrap();
        assert_eq!(
            children.iter().map(Handle::id).collect::<Vec<_>>(),
            ["callback"],
            "{kind}"
        );
        // Celery calls an errback that takes several arguments in its own process; one that takes one is sent as a task.
        let errback = Task::new("umbel.sleep").id("errback");
        let failed = Task::new("umbel.sleep").args(&("x",)).link_error(errback);
        client.send(failed).await.unwrap();
        let ended = client.handle("errback").get(SOON).await;
        assert!(
            matches!(ended, Err(ResultError::Remote(err)) if err.exc_type == "TypeError"),
            "{kind}"
        );
        // What fails in the middle is told at the end, and by what it waited for.
        let broken = chain([e(&json!([1])), Task::new("umbel.sleep"), e(&json!([2]))]);
        let sent = client.apply(broken).await.unwrap();
        assert!(
            matches!(sent.get(SOON).await, Err(ResultError::Remote(err)) if err.exc_type == "TypeError"),
            "{kind}"
        );
        let step = sent.parent().unwrap();
        assert!(matches!(step.get(SOON).await, Err(ResultError::Remote(_))), "{kind}");
    }
}

#[tokio::test]
async fn many_are_sent_at_once_and_all_run() {
    for kind in KINDS {
        let redis = Redis::start().await;
        let _worker = Runs::start(kind, &redis).await;
        let client = client(&redis).await;
        let handles = client.send_all((0..600).map(|n| e(&json!([n])))).await.unwrap();
        assert_eq!(handles.len(), 600);
        for (n, handle) in handles.iter().enumerate() {
            assert_eq!(value(handle).await, echo(&json!([n])), "{kind}");
        }
    }
}

#[tokio::test]
async fn the_lowest_priority_number_runs_first() {
    for kind in KINDS {
        let redis = Redis::start().await;
        let client = client(&redis).await;
        let priorities = [9, 4, 0, 6, 0, 9, 12, -1];
        let mut sent = Vec::new();
        for priority in priorities {
            sent.push((
                priority,
                client.send(e(&json!([priority])).priority(priority)).await.unwrap(),
            ));
        }
        let worker = Runs::start(kind, &redis).await;
        let mut ended = Vec::new();
        for (place, (priority, handle)) in sent.iter().enumerate() {
            value(handle).await;
            let step = priority.clamp(&0, &9) / 3;
            ended.push((handle.state().await.unwrap().ended.unwrap(), step, place));
        }
        ended.sort();
        let order: Vec<(i64, usize)> = ended.into_iter().map(|(_, step, place)| (step, place)).collect();
        let mut expected = order.clone();
        expected.sort_unstable();
        assert_eq!(order, expected, "{kind}");
        worker.stop();
    }
}

/// A Celery worker that binds queues to exchanges of each type.
async fn bound_worker(redis: &Redis) -> CeleryWorker {
    let options = CeleryOptions {
        queues: "celery,feed,imp,d1,d2,bc",
        settings: json!({"task_queues": {
            "celery": {"exchange": "celery", "routing_key": "celery"},
            "feed": {"exchange": "feeds", "exchange_type": "topic", "routing_key": "feed.#"},
            "imp": {"exchange": "feeds", "exchange_type": "topic", "routing_key": "feed.*.important"},
            "d1": {"exchange": "dx", "exchange_type": "direct", "routing_key": "k1"},
            "d2": {"exchange": "dx", "exchange_type": "direct", "routing_key": "k2"},
            "bc": {"exchange": "bcast", "exchange_type": "fanout", "routing_key": "celery"},
        }}),
        ..CeleryOptions::default()
    };
    CeleryWorker::start(&redis.url(), &options).await
}

#[tokio::test]
async fn every_exchange_type_reaches_a_celery_worker() {
    let redis = Redis::start().await;
    let _worker = bound_worker(&redis).await;
    let mut options = Options::default();
    options.exchanges.insert("feeds".into(), ExchangeKind::Topic);
    let client = client_with(&redis, options).await;
    let cases = [
        (Exchange::named("feeds"), "feed.sport.important"),
        (Exchange::new("dx", ExchangeKind::Direct), "k2"),
        (Exchange::new("bcast", ExchangeKind::Fanout), "celery"),
    ];
    for (exchange, key) in cases {
        let task = e(&json!([key])).exchange(exchange.clone(), key);
        let sent = client.send(task).await.unwrap();
        assert_eq!(value(&sent).await, echo(&json!([key])), "{exchange:?}");
    }
    // In a workflow, too: a step names its exchange.
    let step = e(&json!(["step"])).exchange(Exchange::new("dx", ExchangeKind::Direct), "k1");
    let sent = client.apply(group([step, e(&json!(["plain"]))])).await.unwrap();
    assert_eq!(
        value(&sent).await,
        json!([echo(&json!(["step"])), echo(&json!(["plain"]))])
    );
}

#[tokio::test]
async fn what_celery_bound_our_worker_runs_one_copy_for_each_queue() {
    let redis = Redis::start().await;
    drop(bound_worker(&redis).await); // The bindings stay.
    let client = client(&redis).await;
    let topic = Exchange::new("feeds", ExchangeKind::Topic);
    let sent = client
        .send(e(&json!([1])).exchange(topic, "feed.a.important"))
        .await
        .unwrap();
    let mut connection = redis.connection().await;
    for queue in ["feed", "imp"] {
        assert_eq!(connection.llen::<_, usize>(queue).await.unwrap(), 1, "{queue}");
    }
    let _worker = umbel_worker(&redis, &["--queue", "feed,imp"]);
    assert_eq!(value(&sent).await, echo(&json!([1])));
    eventually(SOON, "both copies are run", async || {
        let lists: (usize, usize, usize) = umbel_testkit::redis::pipe()
            .llen("feed")
            .llen("imp")
            .hlen("umbel:unacked")
            .query_async(&mut connection)
            .await
            .unwrap();
        lists == (0, 0, 0)
    })
    .await;
}

/// Key prefix, priority steps, separator and result prefix of a company that has set them all.
fn particular(redis: &Redis) -> (Config, Value, Vec<&'static str>) {
    let mut config = Config::new(&redis.url());
    config.key_prefix = "app:".into();
    config.result_prefix = result_prefix("res");
    config.priority_steps = vec![0, 2, 5, 8];
    config.separator = "|".into();
    let settings = json!({
        "broker_transport_options": {"global_keyprefix": "app:", "priority_steps": [0, 2, 5, 8], "sep": "|"},
        "result_backend_transport_options": {"global_keyprefix": "res"},
    });
    let flags = vec![
        "--key-prefix",
        "app:",
        "--result-key-prefix",
        "res",
        "--priority-steps",
        "0,2,5,8",
        "--separator",
        "|",
        "--concurrency",
        "1",
    ];
    (config, settings, flags)
}

#[tokio::test]
async fn prefixes_steps_and_separator_hold_between_all_parts() {
    let redis = Redis::start().await;
    let (config, settings, flags) = particular(&redis);
    let client = Client::connect(config, Options::default()).await.unwrap();
    let mut celery = Celery::client_with(&redis.url(), &redis.url(), &settings).await;
    for kind in KINDS {
        // Waiting first: each message is in the list that the worker must look into.
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for priority in [8, 5, 4, 2, 0] {
            ours.push(client.send(e(&json!([priority])).priority(priority)).await.unwrap());
            theirs.push(
                celery
                    .send("umbel.echo", json!([priority]), json!({"priority": priority}))
                    .await,
            );
        }
        let mut connection = redis.connection().await;
        for (list, waiting) in [
            ("app:celery", 2),
            ("app:celery|2", 4),
            ("app:celery|5", 2),
            ("app:celery|8", 2),
        ] {
            assert_eq!(
                connection.llen::<_, usize>(list).await.unwrap(),
                waiting,
                "{kind}: {list}"
            );
        }
        let worker = if kind == "celery" {
            let options = CeleryOptions {
                settings: settings.clone(),
                ..CeleryOptions::default()
            };
            Runs::Celery(CeleryWorker::start(&redis.url(), &options).await)
        } else {
            Runs::Umbel(umbel_worker(&redis, &flags))
        };
        for (handle, priority) in ours.iter().zip([8, 5, 4, 2, 0]) {
            assert_eq!(value(handle).await, echo(&json!([priority])), "{kind}");
            assert!(
                connection
                    .exists::<_, bool>(format!("res_celery-task-meta-{}", handle.id()))
                    .await
                    .unwrap()
            );
        }
        for (id, priority) in theirs.iter().zip([8, 5, 4, 2, 0]) {
            assert_eq!(celery.get(id, SOON).await, Ok(echo(&json!([priority]))), "{kind}");
        }
        let sent = client
            .apply(chord([e(&json!([1])), e(&json!([2]))], e(&json!([])).priority(8)))
            .await
            .unwrap();
        assert_eq!(
            value(&sent).await,
            echo(&json!([[echo(&json!([1])), echo(&json!([2]))]])),
            "{kind}"
        );
        let later = client
            .send(e(&json!(["eta"])).priority(5).countdown(Duration::from_millis(200)))
            .await
            .unwrap();
        assert_eq!(value(&later).await, echo(&json!(["eta"])), "{kind}");
        // A retry and what a stopping worker hands back stay in lists that are looked into.
        let nap = Task::new("umbel.sleep").args(&(0.1,)).priority(8);
        let handles = client.send_all((0..5).map(|_| nap.clone())).await.unwrap();
        worker.stop();
        let again = if kind == "celery" {
            None
        } else {
            Some(umbel_worker(&redis, &flags))
        };
        if again.is_some() {
            for handle in &handles {
                assert_eq!(
                    handle.get(Duration::from_mins(3)).await.unwrap(),
                    Json::of(&0.1),
                    "{kind}"
                );
            }
        }
        drop(again);
        let _: () = connection.flushdb().await.unwrap();
    }
    let names: Vec<String> = redis.connection().await.keys("*").await.unwrap();
    assert!(
        names
            .iter()
            .all(|name| name.starts_with("app:") || name.starts_with("res_")),
        "{names:?}"
    );
}
