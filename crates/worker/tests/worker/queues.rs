//! Queues added to a worker that runs, and taken from it.

use serde_json::{Value, json};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, Process, Redis, eventually};

use crate::support::{SOON, admitted, umbel_worker};

const NODE: &str = "w1@lab";

async fn stage(flags: &[&str]) -> (Redis, Process, Celery) {
    let redis = Redis::start().await;
    let mut all = vec!["--name", NODE];
    all.extend(flags);
    let worker = umbel_worker(&redis.url(), &all);
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    eventually(SOON, "the worker answers", async || {
        celery.inspect(&[NODE], "ping", json!([])).await[NODE].is_object()
    })
    .await;
    (redis, worker, celery)
}

async fn add(celery: &mut Celery, arguments: Value) -> Value {
    celery.control(&[NODE], "add_consumer", arguments).await[NODE].clone()
}

async fn cancel(celery: &mut Celery, queue: &str) {
    let said = celery
        .control(&[NODE], "cancel_consumer", json!({"queue": queue}))
        .await;
    assert_eq!(said[NODE]["ok"], json!(format!("no longer consuming from {queue}")));
}

async fn served(celery: &mut Celery) -> Vec<String> {
    let queues = celery.inspect(&[NODE], "active_queues", json!([])).await;
    let queues = queues[NODE].as_array().expect("a list");
    queues
        .iter()
        .map(|queue| queue["name"].as_str().expect("a name").to_owned())
        .collect()
}

#[tokio::test]
async fn a_queue_is_served_while_it_is_a_workers() {
    let (redis, worker, mut celery) = stage(&["--concurrency", "2"]).await;
    let mut connection = redis.connection().await;
    let early = celery.send("umbel.echo", json!([1]), json!({"queue": "mail"})).await;
    let due = celery
        .send("umbel.echo", json!([2]), json!({"queue": "mail", "countdown": 2}))
        .await;
    assert_eq!(
        add(&mut celery, json!({"queue": "mail"})).await["ok"],
        json!("add consumer mail")
    );
    assert!(celery.get(&early, SOON).await.is_ok(), "what waited before");
    assert!(celery.get(&due, SOON).await.is_ok(), "what was due later");
    let urgent = celery
        .send("umbel.echo", json!([3]), json!({"queue": "mail", "priority": 9}))
        .await;
    assert!(
        celery.get(&urgent, SOON).await.is_ok(),
        "each list of it wakes the worker"
    );
    assert_eq!(served(&mut celery).await, ["celery", "mail"]);
    let bound: Vec<String> = connection.smembers("_kombu.binding.mail").await.unwrap();
    assert!(
        bound.contains(&"mail\u{6}\u{16}\u{6}\u{16}mail".to_owned()),
        "{bound:?}"
    );
    eventually(SOON, "its heartbeat names the queue", async || {
        let keys: Vec<String> = connection.keys("umbel:hb:worker:*").await.unwrap();
        let beat: String = connection.get(&keys[0]).await.unwrap();
        beat.contains("\"mail\"")
    })
    .await;
    let policies: Vec<String> = connection.hkeys("umbel:policy").await.unwrap();
    assert!(policies.contains(&"mail".to_owned()), "{policies:?}");

    // What runs when its queue is taken away runs to its end, and what comes later stays.
    let runs = celery.send("umbel.sleep", json!([1.5]), json!({"queue": "mail"})).await;
    eventually(SOON, "it runs", async || {
        let active = celery.inspect(&[NODE], "active", json!([])).await;
        active[NODE].as_array().is_some_and(|tasks| tasks.len() == 1)
    })
    .await;
    cancel(&mut celery, "mail").await;
    assert_eq!(served(&mut celery).await, ["celery"]);
    let parked = celery
        .send("umbel.echo", json!([4]), json!({"queue": "mail", "countdown": 1}))
        .await;
    assert_eq!(celery.get(&runs, SOON).await, Ok(json!(1.5)));
    let other = celery.send("umbel.echo", json!([]), json!({})).await;
    assert!(celery.get(&other, SOON).await.is_ok());
    assert_eq!(connection.llen("mail").await, Ok(1), "{}", worker.tail());
    // Another worker that serves it gets all.
    let _heir = umbel_worker(&redis.url(), &["--name", "w2@lab", "--queue", "mail"]);
    assert!(celery.get(&parked, SOON).await.is_ok());
}

#[tokio::test]
async fn a_worker_without_queues_waits_for_the_next() {
    let (redis, worker, mut celery) = stage(&["--concurrency", "1"]).await;
    cancel(&mut celery, "celery").await;
    let waits = celery.send("umbel.echo", json!([1]), json!({})).await;
    assert_eq!(
        celery.inspect(&[NODE], "active_queues", json!([])).await[NODE],
        json!([])
    );
    // Also when Redis has forgotten everybody: the worker makes itself known again.
    let mut connection = redis.connection().await;
    let _: () = connection.del("umbel:workers").await.unwrap();
    admitted(&redis, 1).await;
    assert_eq!(connection.llen("celery").await, Ok(1), "{}", worker.tail());
    add(&mut celery, json!({"queue": "celery"})).await;
    assert!(celery.get(&waits, SOON).await.is_ok());
}

#[tokio::test]
async fn a_queue_is_bound_as_kombu_binds_it() {
    let (redis, _worker, mut celery) = stage(&[]).await;
    let said = add(
        &mut celery,
        json!({"queue": "feed", "exchange": "feeds", "exchange_type": "topic", "routing_key": "feed.*.important"}),
    )
    .await;
    assert_eq!(said["ok"], json!("add consumer feed"));
    let mut connection = redis.connection().await;
    for set in ["_kombu.binding.feeds", "_kombu.binding_permanent.feeds"] {
        let members: Vec<String> = connection.smembers(set).await.unwrap();
        assert_eq!(
            members,
            ["feed.*.important\u{6}\u{16}^feed\\.[^\\.]+\\.important$\u{6}\u{16}feed"],
            "{set}"
        );
    }
    let queues = celery.inspect(&[NODE], "active_queues", json!([])).await;
    let feed = &queues[NODE][1];
    assert_eq!(
        (
            &feed["exchange"]["name"],
            &feed["exchange"]["type"],
            &feed["routing_key"]
        ),
        (&json!("feeds"), &json!("topic"), &json!("feed.*.important"))
    );
    let sent = celery
        .send(
            "umbel.echo",
            json!(["news"]),
            json!({"exchange": "feeds", "routing_key": "feed.x.important"}),
        )
        .await;
    // A client that does not know the exchange takes it for a direct one, and that has no such key.
    assert_eq!(celery.state(&sent).await.0, "PENDING");
    add(
        &mut celery,
        json!({"queue": "jobs", "exchange": "dx", "exchange_type": "direct", "routing_key": "k1"}),
    )
    .await;
    let sent = celery
        .send("umbel.echo", json!([1]), json!({"exchange": "dx", "routing_key": "k1"}))
        .await;
    assert!(
        celery.get(&sent, SOON).await.is_ok(),
        "through the exchange to the queue"
    );
}

#[tokio::test]
async fn a_queue_that_cannot_be_served_is_refused() {
    let (_redis, _worker, mut celery) = stage(&[]).await;
    for (arguments, reason) in [
        (json!({"queue": "unacked"}), "a key of the broker"),
        (json!({"queue": "umbel:lease"}), "a key of the broker"),
        (json!({"queue": "x".repeat(600)}), "1 to 512 bytes"),
        (json!({"queue": "q\u{6}\u{16}3"}), "a key of the broker"),
        (
            json!({"queue": "q", "exchange_type": "headers"}),
            "none of direct, topic and fanout",
        ),
        (json!({}), "missing 1 required positional argument: 'queue'"),
    ] {
        let said = add(&mut celery, arguments.clone()).await;
        let error = said["error"].as_str().unwrap_or_default();
        assert!(error.contains(reason), "{arguments}: {said}");
    }
    assert_eq!(served(&mut celery).await, ["celery"]);
}

#[tokio::test]
async fn a_worker_serves_a_queue_of_its_own() {
    let (redis, _worker, mut celery) = stage(&["--worker-direct"]).await;
    let _other = umbel_worker(&redis.url(), &["--name", "w2@lab", "--worker-direct"]);
    admitted(&redis, 2).await;
    assert_eq!(served(&mut celery).await, ["celery", "w1@lab.dq2"]);
    let mut connection = redis.connection().await;
    eventually(SOON, "both are bound", async || {
        let mut bound: Vec<String> = connection.smembers("_kombu.binding.C.dq2").await.unwrap();
        bound.sort();
        bound
            == [
                "w1@lab\u{6}\u{16}\u{6}\u{16}w1@lab.dq2",
                "w2@lab\u{6}\u{16}\u{6}\u{16}w2@lab.dq2",
            ]
    })
    .await;
    // As Celery sends to one worker: its queue through the exchange of all such queues.
    let routed = json!({"exchange": "C.dq2", "routing_key": "w2@lab"});
    let id = celery.send("umbel.sleep", json!([60]), routed).await;
    eventually(SOON, "the other has it", async || {
        let active = celery.inspect(&["w2@lab"], "active", json!([])).await;
        active["w2@lab"][0]["id"] == json!(id)
    })
    .await;
}

/// How often each of these workers has run `umbel.echo`.
async fn echoes(celery: &mut Celery, nodes: &[&str]) -> Vec<u64> {
    let stats = celery.inspect(nodes, "stats", json!([])).await;
    let total = |node: &&str| stats[*node]["total"]["umbel.echo"].as_u64().unwrap_or_default();
    nodes.iter().map(total).collect()
}

#[tokio::test]
async fn each_worker_gets_its_own_copy_of_a_broadcast() {
    let (redis, _one, mut celery) = stage(&["--broadcast", "news", "--concurrency", "1"]).await;
    let _two = umbel_worker(&redis.url(), &["--name", "w2@lab", "--broadcast", "news"]);
    admitted(&redis, 2).await;
    let mut connection = redis.connection().await;
    let listeners = async |connection: &mut umbel_testkit::redis::aio::MultiplexedConnection| -> usize {
        let channels: Vec<String> = umbel_testkit::redis::cmd("CLIENT")
            .arg("LIST")
            .arg("TYPE")
            .arg("PUBSUB")
            .query_async::<String>(connection)
            .await
            .map(|text| text.lines().map(str::to_owned).collect())
            .unwrap_or_default();
        channels.iter().filter(|line| line.contains(" psub=2")).count()
    };
    eventually(SOON, "both listen", async || listeners(&mut connection).await == 2).await;
    let nodes = [NODE, "w2@lab"];
    // As a program with `Broadcast("news")` among its queues sends it: it declares the exchange, or it would be a direct one.
    let send = "from kombu import Exchange\n\
                def send(name, key):\n    \
                    exchange = Exchange(name, type='fanout')\n    \
                    return app.send_task('umbel.echo', ('hello',), exchange=exchange, routing_key=key, declare=[exchange]).id\n";
    celery
        .script(
            &format!("{send}answer = [send('news', key) for key in ['celery', 'celery', 'other']]"),
            SOON,
        )
        .await
        .expect("sent");
    eventually(SOON, "each has run each", async || {
        echoes(&mut celery, &nodes).await == [3, 3]
    })
    .await;

    // Another exchange, heard for a while.
    let added = add(
        &mut celery,
        json!({"queue": "alarm", "exchange": "alarms", "exchange_type": "fanout", "routing_key": "red.#"}),
    )
    .await;
    assert_eq!(added["ok"], json!("add consumer alarm"));
    assert!(served(&mut celery).await.contains(&format!("alarm.{NODE}")));
    let alarm = format!("{send}answer = send('alarms', 'red.now'); send('alarms', 'green.now')");
    eventually(SOON, "the first worker hears it", async || {
        let sent = celery.script(&alarm, SOON).await.is_ok();
        sent && echoes(&mut celery, &nodes).await[0] > 3
    })
    .await;
    assert_eq!(echoes(&mut celery, &nodes).await[1], 3, "the other one does not");
    cancel(&mut celery, "alarm").await;
    eventually(SOON, "it hears the first exchange alone", async || {
        listeners(&mut connection).await == 2
    })
    .await;
    assert_eq!(served(&mut celery).await.len(), 2);
    let lists: Vec<String> = connection.keys("bcast.*").await.unwrap();
    assert_eq!(lists, [] as [&str; 0], "everything was taken");
}

/// kombu renews a list's time with each push and nowhere else, so that what waits behind a busy worker of Celery's goes.
#[tokio::test]
async fn an_expiring_queue_is_kept_while_it_is_served() {
    let redis = Redis::start().await;
    let flags = ["--queue", "soon", "--queue-expires", "soon=1s", "--concurrency", "1"];
    let worker = umbel_worker(&redis.url(), &flags);
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    let lines = "from kombu import Exchange, Queue
soon = Queue('soon', Exchange('soon'), routing_key='soon', expires=1)
answer = [app.send_task('umbel.sleep', [3], queue=soon).id, app.send_task('umbel.echo', [1], queue=soon).id]";
    let ids = celery.script(lines, SOON).await.expect("it is sent");
    let mut connection = redis.connection().await;
    let _: () = connection
        .del(&["_kombu.binding.soon", "_kombu.binding_deadlines"])
        .await
        .expect("the server answers");
    for (id, expected) in [(&ids[0], json!(3)), (&ids[1], json!({"args": [1], "kwargs": {}}))] {
        assert_eq!(celery.get(id.as_str().expect("an id"), SOON).await, Ok(expected));
    }
    let bound: Vec<String> = connection
        .smembers("_kombu.binding.soon")
        .await
        .expect("the server answers");
    assert_eq!(bound, ["soon\u{6}\u{16}\u{6}\u{16}soon"]);
    let (seconds, _): (f64, u64) = umbel_testkit::redis::cmd("TIME")
        .query_async(&mut connection)
        .await
        .expect("the server answers");
    let deadline: f64 = connection
        .zscore("_kombu.binding_deadlines", "soon")
        .await
        .expect("there is one");
    let left = deadline / 1000.0 - seconds;
    assert!((3500.0..3700.0).contains(&left), "{left} s");
    // Served by nobody it goes, as it was meant to.
    drop(worker);
    celery.script(lines, SOON).await.expect("it is sent");
    eventually(SOON, "the list has gone", async || {
        connection.exists("soon").await == Ok(false)
    })
    .await;
}

/// Remote control, events and broadcasts on the channels of an application that names them in its own way.
#[tokio::test]
async fn channels_are_those_of_the_transport_options() {
    let cases = [
        (
            &["--fanout-prefix", "/app{db}."][..],
            json!({"fanout_prefix": "/app{db}."}),
            "/app0.news/x",
        ),
        (
            &["--fanout-prefix", "", "--no-fanout-patterns"],
            json!({"fanout_prefix": false, "fanout_patterns": false}),
            "news",
        ),
    ];
    for (flags, options, channel) in cases {
        let redis = Redis::start().await;
        let mut all = vec!["--name", NODE, "--broadcast", "news", "-E"];
        all.extend(flags);
        let _worker = umbel_worker(&redis.url(), &all);
        let settings = json!({"broker_transport_options": options});
        let mut celery = Celery::client_with(&redis.url(), &redis.url(), &settings).await;
        eventually(SOON, "the worker answers", async || {
            celery.inspect(&[], "ping", json!([])).await[NODE].is_object()
        })
        .await;
        celery.watch().await;
        let id = celery.send("umbel.echo", json!([1]), json!({})).await;
        assert!(celery.get(&id, SOON).await.is_ok());
        eventually(SOON, "its events are heard", async || {
            celery.seen().await["tasks"][&id][1] == json!("SUCCESS")
        })
        .await;
        let message = umbel_protocol::message::NewTask {
            id: "copy".into(),
            task: "umbel.echo".into(),
            ..umbel_protocol::message::NewTask::default()
        };
        let mut connection = redis.connection().await;
        let heard: u64 = connection
            .publish(channel, message.encode())
            .await
            .expect("the server answers");
        assert_eq!(heard, 1, "{options}");
        assert!(celery.get("copy", SOON).await.is_ok(), "{options}");
    }
}
