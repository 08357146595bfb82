//! Remote control and events, from Celery's own client, command line and event receiver.

use std::time::Duration;

use serde_json::{Value, json};
use umbel_broker::{Broker, Config};
use umbel_testkit::redis::{self, AsyncCommands};
use umbel_testkit::{
    App, Celery, CeleryVersion, Event, History, Process, Redis, celery_command, celery_process, eventually,
};

use crate::support::{SOON, admitted, test_worker, umbel_worker};

const NODE: &str = "w1@lab";

async fn stage(flags: &[&str]) -> (Redis, Process, Celery) {
    let redis = Redis::start().await;
    let mut all = vec!["--name", NODE];
    all.extend(flags);
    let worker = umbel_worker(&redis.url(), &all);
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    answers(&mut celery, NODE).await;
    (redis, worker, celery)
}

async fn answers(celery: &mut Celery, node: &str) {
    eventually(SOON, "the worker answers", async || {
        celery.inspect(&[node], "ping", json!([])).await[node] == json!({"ok": "pong"})
    })
    .await;
}

/// Waits until a task is active.
async fn runs(celery: &mut Celery, id: &str) {
    eventually(SOON, "the task runs", async || {
        let active = celery.inspect(&[NODE], "active", json!([])).await;
        active[NODE]
            .as_array()
            .is_some_and(|tasks| tasks.iter().any(|task| task["id"] == id))
    })
    .await;
}

#[tokio::test]
async fn celerys_command_line_inspects_and_controls() {
    let (redis, mut worker, _celery) = stage(&["--queue", "celery,mail"]).await;
    let url = redis.url();
    for (command, expected) in [
        ("inspect ping", "pong"),
        ("inspect active", "- empty -"),
        ("inspect reserved", "- empty -"),
        ("inspect scheduled", "- empty -"),
        ("inspect revoked", "- empty -"),
        ("inspect registered", "umbel.echo"),
        ("inspect stats", "\"transport\": \"redis\""),
        ("inspect active_queues", "'name': 'mail'"),
        ("inspect report", "software -> umbel:"),
        ("inspect conf", "\"worker_concurrency\": 10"),
        ("inspect query_task nobody", "w1@lab: OK"),
        ("inspect clock", "\"clock\""),
        ("control enable_events", "task events enabled"),
        ("control disable_events", "task events disabled"),
        ("control pool_grow 2", "pool will grow"),
        ("control pool_shrink 1", "pool will shrink"),
        ("control time_limit umbel.echo 10 20", "time limits set successfully"),
        ("control heartbeat", ""),
        ("control rate_limit umbel.echo 10/m", "new rate limit set successfully"),
        ("control rate_limit umbel.echo often", "Invalid rate limit string"),
        ("control rate_limit no.task 10/m", "unknown task"),
        ("inspect registered", "umbel.echo [rate_limit=10/m]"),
        ("control autoscale 5 2", "Autoscale not enabled"),
        ("control add_consumer other", "add consumer other"),
        ("control cancel_consumer other", "no longer consuming from other"),
        ("control add_consumer unacked", "key of the broker"),
        ("inspect memsample", "not available"),
        ("status", "1 node online"),
    ] {
        let args: Vec<&str> = command.split(' ').collect();
        let (_, said) = celery_command(&url, &args).await;
        assert!(said.contains(expected), "celery {command}: {said}");
        assert!(!said.contains("Traceback"), "celery {command}: {said}");
    }
    celery_command(&url, &["control", "shutdown"]).await;
    assert!(worker.wait(SOON).await.success(), "{}", worker.tail());
}

#[tokio::test]
async fn a_request_goes_to_whom_it_names() {
    let (redis, _worker, mut celery) = stage(&[]).await;
    let _other = umbel_worker(&redis.url(), &["--name", "w2@lab"]);
    answers(&mut celery, "w2@lab").await;
    let stats = celery.inspect(&[NODE], "stats", json!([])).await;
    assert_eq!(stats.as_object().map(serde_json::Map::len), Some(1), "{stats}");
    assert_eq!(stats[NODE]["pool"]["max-concurrency"], json!(10));
    let both = celery.inspect(&[], "ping", json!([])).await;
    assert_eq!(both, json!({NODE: {"ok": "pong"}, "w2@lab": {"ok": "pong"}}));
    assert_eq!(celery.inspect(&["w3@lab"], "ping", json!([])).await, Value::Null);
    let refused = celery.control(&[NODE], "no_such_thing", json!({})).await;
    assert_eq!(refused[NODE]["error"], json!("KeyError('no_such_thing')"));
}

#[tokio::test]
async fn clients_of_older_versions_inspect_and_control() {
    let (redis, _worker, _celery) = stage(&[]).await;
    for version in [CeleryVersion::V5_6, CeleryVersion::V5_2] {
        let mut celery = Celery::client_of(version, &App::at(&redis.url())).await;
        answers(&mut celery, NODE).await;
        for method in [
            "stats",
            "active",
            "reserved",
            "scheduled",
            "revoked",
            "registered",
            "active_queues",
            "conf",
        ] {
            let said = celery.inspect(&[NODE], method, json!([])).await;
            assert!(
                said[NODE].is_object() || said[NODE].is_array(),
                "{version:?} {method}: {said}"
            );
            assert!(said[NODE]["error"].is_null(), "{version:?} {method}: {said}");
        }
        for (method, arguments, answer) in [
            ("add_consumer", json!({"queue": "more"}), "add consumer more"),
            (
                "cancel_consumer",
                json!({"queue": "more"}),
                "no longer consuming from more",
            ),
            (
                "rate_limit",
                json!({"task_name": "umbel.echo", "rate_limit": "100/s"}),
                "new rate limit set successfully",
            ),
            (
                "rate_limit",
                json!({"task_name": "umbel.echo", "rate_limit": 0}),
                "rate limit disabled successfully",
            ),
            ("pool_grow", json!({"n": 1}), "pool will grow"),
        ] {
            let said = celery.control(&[NODE], method, arguments).await;
            assert_eq!(said[NODE]["ok"], json!(answer), "{version:?} {method}: {said}");
        }
        let id = celery.send("umbel.echo", json!([]), json!({"countdown": 600})).await;
        celery.control(&[NODE], "revoke", json!({"task_id": id})).await;
        let raised = celery.get(&id, SOON).await.expect_err("it was revoked");
        assert_eq!(raised.exc_type, "TaskRevokedError");
    }
}

#[tokio::test]
async fn workers_of_one_name_both_work_and_answer() {
    let (redis, _worker, mut celery) = stage(&["--concurrency", "1"]).await;
    let _twin = umbel_worker(&redis.url(), &["--name", NODE, "--concurrency", "1"]);
    admitted(&redis, 2).await;
    let ids = celery.send_all("umbel.sleep", vec![json!([60]); 2], json!({})).await;
    let mut connection = redis.connection().await;
    eventually(SOON, "each runs one", async || {
        connection.hlen("umbel:unacked").await == Ok::<i64, _>(2)
    })
    .await;
    celery
        .control(&[NODE], "revoke", json!({"task_id": ids, "terminate": true}))
        .await;
    let mut ends = Vec::new();
    for id in &ids {
        ends.push(celery.get(id, SOON).await.expect_err("it was terminated").message);
    }
    // On a busy machine one may be taken and not begun yet.
    assert!(
        ends.iter().all(|end| end == "terminated" || end == "revoked"),
        "{ends:?}"
    );
    assert!(ends.iter().any(|end| end == "terminated"), "{ends:?}");
}

#[tokio::test]
async fn requests_under_a_key_prefix() {
    let redis = Redis::start().await;
    let _worker = umbel_worker(&redis.url(), &["--name", NODE, "--key-prefix", "app:"]);
    let settings = json!({"broker_transport_options": {"global_keyprefix": "app:"}});
    let mut celery = Celery::client_with(&redis.url(), &redis.url(), &settings).await;
    answers(&mut celery, NODE).await;
    celery.watch().await;
    eventually(SOON, "a heartbeat", async || {
        celery.seen().await["workers"][NODE] == json!(true)
    })
    .await;
}

#[tokio::test]
async fn what_runs_and_what_waits_is_shown() {
    let (_redis, _worker, mut celery) = stage(&[]).await;
    let runs_now = celery.send("umbel.sleep", json!([60]), json!({})).await;
    let waits = celery.send("umbel.echo", json!([1]), json!({"countdown": 3600})).await;
    runs(&mut celery, &runs_now).await;
    let active = celery.inspect(&[NODE], "active", json!([])).await;
    let task = &active[NODE][0];
    assert_eq!(
        (&task["id"], &task["args"], &task["name"]),
        (&json!(runs_now), &json!([60]), &json!("umbel.sleep"))
    );
    assert!(task["time_start"].as_f64().is_some_and(|at| at > 1e9), "{task}");
    eventually(SOON, "the other is scheduled", async || {
        let scheduled = celery.inspect(&[NODE], "scheduled", json!([])).await;
        scheduled[NODE][0]["request"]["id"] == json!(waits)
    })
    .await;
    let asked = celery.inspect(&[NODE], "query_task", json!([runs_now])).await;
    assert_eq!(asked[NODE][&runs_now][0], json!("active"), "{asked}");
    celery
        .control(&[NODE], "revoke", json!({"task_id": runs_now, "terminate": 1}))
        .await;
    let raised = celery
        .get(&runs_now, SOON)
        .await
        .expect_err("terminated as Flower asks for it");
    assert_eq!(raised.exc_type, "TaskRevokedError");
}

#[tokio::test]
async fn a_running_task_is_terminated() {
    let (_redis, _worker, mut celery) = stage(&["--concurrency", "1"]).await;
    let id = celery.send("umbel.sleep", json!([60]), json!({})).await;
    runs(&mut celery, &id).await;
    let said = celery
        .control(
            &[NODE],
            "revoke",
            json!({"task_id": id, "terminate": true, "signal": "SIGTERM"}),
        )
        .await;
    assert_eq!(said[NODE]["ok"], json!(format!("terminate: {id}")));
    let raised = celery.get(&id, SOON).await.expect_err("it was terminated");
    assert_eq!(
        (raised.exc_type.as_str(), raised.message.as_str()),
        ("TaskRevokedError", "terminated")
    );
    let after = celery.send("umbel.echo", json!([]), json!({})).await;
    assert!(celery.get(&after, SOON).await.is_ok(), "its slot is free again");
    let said = celery
        .control(&[NODE], "revoke", json!({"task_id": id, "terminate": true}))
        .await;
    assert_eq!(said[NODE]["ok"], json!("terminate: tasks unknown"));
}

/// A request is heard by who listens. One that came while the worker connected anew is made up for.
#[tokio::test]
async fn a_running_task_is_terminated_though_the_request_was_not_heard() {
    let (redis, _worker, mut celery) = stage(&["--concurrency", "2"]).await;
    let ids = celery.send_all("umbel.sleep", vec![json!([60]); 2], json!({})).await;
    for id in &ids {
        runs(&mut celery, id).await;
    }
    let broker = Broker::connect(&Config::new(&redis.url())).await.expect("it answers");
    let now = broker.time().await.expect("it answers") as f64 / 1000.0;
    broker.terminate(&ids[..1], now, now + 600.0).await.expect("stored");
    let mut connection = redis.connection().await;
    let cut: i64 = redis::cmd("CLIENT")
        .arg(&["KILL", "TYPE", "pubsub"])
        .query_async(&mut connection)
        .await
        .expect("an answer");
    assert!(cut > 0, "it listened");
    let raised = celery.get(&ids[0], SOON).await.expect_err("it was terminated");
    assert_eq!(
        (raised.exc_type.as_str(), raised.message.as_str()),
        ("TaskRevokedError", "terminated")
    );
    runs(&mut celery, &ids[1]).await;
}

#[tokio::test]
async fn a_revoked_task_does_not_run_not_even_after_a_restart() {
    let redis = Redis::start().await;
    let history = History::new();
    let flags = ["--name", NODE, "--concurrency", "1"];
    let mut worker = test_worker(&redis.url(), &history, &flags);
    let mut celery = Celery::client(&redis.url()).await;
    answers(&mut celery, NODE).await;
    let revoked = celery.send("test.work", json!([0.0]), json!({"countdown": 2})).await;
    let said = celery.control(&[NODE], "revoke", json!({"task_id": [revoked]})).await;
    assert_eq!(
        said[NODE]["ok"],
        json!(format!("tasks {{'{revoked}'}} flagged as revoked"))
    );
    worker.kill();
    let mut connection = redis.connection().await;
    assert_eq!(connection.zcard("umbel:revoked").await, Ok(1));
    let _again = test_worker(&redis.url(), &history, &flags);
    answers(&mut celery, NODE).await;
    eventually(SOON, "its message is gone when its time has come", async || {
        let left: i64 = connection.zcard("umbel:delayed:celery").await.unwrap();
        let waiting: i64 = connection.llen("celery").await.unwrap();
        let held: i64 = connection.hlen("umbel:unacked").await.unwrap();
        left + waiting + held == 0
    })
    .await;
    let raised = celery.get(&revoked, SOON).await.expect_err("it was revoked");
    assert_eq!(
        (raised.exc_type.as_str(), raised.message.as_str()),
        ("TaskRevokedError", "revoked")
    );
    assert_eq!(
        celery.inspect(&[NODE], "revoked", json!([])).await[NODE],
        json!([revoked])
    );
    assert_eq!(history.count(Event::Started, &revoked), 0);
}

#[tokio::test]
async fn what_has_not_begun_is_revoked_at_once() {
    let (redis, _worker, mut celery) = stage(&["--concurrency", "1"]).await;
    let runs_now = celery.send("umbel.sleep", json!([60]), json!({})).await;
    runs(&mut celery, &runs_now).await;
    let done = celery.send("umbel.echo", json!([]), json!({"queue": "other"})).await;
    let mut connection = redis.connection().await;
    let kept =
        format!(r#"{{"status": "SUCCESS", "result": 1, "traceback": null, "children": [], "task_id": "{done}"}}"#);
    let _: () = connection.set(format!("celery-task-meta-{done}"), kept).await.unwrap();
    // Behind the one that runs: its message is not looked at for a minute.
    let waits = celery.send("umbel.echo", json!([]), json!({})).await;
    celery
        .control(&[NODE], "revoke", json!({"task_id": [waits, runs_now, done]}))
        .await;
    let raised = celery.get(&waits, SOON).await.expect_err("it was revoked");
    assert_eq!(
        (raised.exc_type.as_str(), raised.message.as_str()),
        ("TaskRevokedError", "revoked")
    );
    assert_eq!(celery.state(&runs_now).await.0, "PENDING", "what runs goes on");
    assert_eq!(celery.state(&done).await.0, "SUCCESS", "an end stays");
}

#[tokio::test]
async fn tasks_are_revoked_by_their_stamps_also_after_a_restart() {
    let redis = Redis::start().await;
    let history = History::new();
    let flags = ["--name", NODE, "--concurrency", "2"];
    let mut worker = test_worker(&redis.url(), &history, &flags);
    let mut celery = Celery::client(&redis.url()).await;
    answers(&mut celery, NODE).await;
    let stamped = |tenant: &str| json!({"stamped_headers": ["tenant"], "tenant": [tenant]});
    let runs_now = celery.send("test.work", json!([60]), stamped("acme")).await;
    let other = celery.send("test.work", json!([60]), stamped("other")).await;
    runs(&mut celery, &runs_now).await;
    runs(&mut celery, &other).await;
    let headers = json!({"headers": {"tenant": ["acme"]}});
    let said = celery.control(&[NODE], "revoke_by_stamped_headers", headers).await;
    assert_eq!(
        said[NODE]["ok"],
        json!("headers {'tenant': ['acme']} flagged as revoked, but not terminated")
    );
    let active = celery.inspect(&[NODE], "active", json!([])).await;
    assert_eq!(active[NODE].as_array().map(Vec::len), Some(2), "nothing was terminated");
    let headers = json!({"headers": {"tenant": "acme"}, "terminate": true, "signal": "SIGKILL"});
    let said = celery.control(&[NODE], "revoke_by_stamped_headers", headers).await;
    assert_eq!(said[NODE]["ok"], json!("headers {'tenant': ['acme']} revoked"));
    let raised = celery.get(&runs_now, SOON).await.expect_err("it was terminated");
    assert_eq!(raised.message, "terminated");
    worker.kill();
    let _again = test_worker(&redis.url(), &history, &flags);
    answers(&mut celery, NODE).await;
    let late = celery.send("test.work", json!([0]), stamped("acme")).await;
    let raised = celery.get(&late, SOON).await.expect_err("its stamp is remembered");
    assert_eq!(raised.message, "revoked");
    assert_eq!(history.count(Event::Started, &late), 0);
    let free = celery.send("test.work", json!([0]), stamped("third")).await;
    assert!(celery.get(&free, SOON).await.is_ok());
}

#[tokio::test]
async fn the_autoscaler_follows_the_work_between_its_bounds() {
    let (_redis, _worker, mut celery) = stage(&["--autoscale", "3,1"]).await;
    let stats = celery.inspect(&[NODE], "stats", json!([])).await;
    assert_eq!(stats[NODE]["pool"]["max-concurrency"], json!(1));
    assert_eq!(
        stats[NODE]["autoscaler"],
        json!({"max": 3, "min": 1, "current": 1, "qty": 0})
    );
    let ids = celery.send_all("umbel.sleep", vec![json!([60]); 5], json!({})).await;
    let active = async |celery: &mut Celery| {
        let active = celery.inspect(&[NODE], "active", json!([])).await;
        active[NODE].as_array().map_or(0, Vec::len)
    };
    eventually(SOON, "three run", async || active(&mut celery).await == 3).await;
    let said = celery.control(&[NODE], "pool_grow", json!({"n": 1})).await;
    assert_eq!(
        said[NODE]["error"],
        json!("pool_grow is not supported with autoscale. Adjust autoscale range instead.")
    );
    let said = celery.control(&[NODE], "autoscale", json!({"max": 5, "min": 2})).await;
    assert_eq!(said[NODE]["ok"], json!("autoscale now max=5 min=2"));
    eventually(SOON, "all run", async || active(&mut celery).await == 5).await;
    celery.control(&[NODE], "autoscale", json!({"max": 2, "min": 1})).await;
    celery
        .control(&[NODE], "revoke", json!({"task_id": ids, "terminate": true}))
        .await;
    eventually(SOON, "the rest goes as it becomes free", async || {
        let stats = celery.inspect(&[NODE], "stats", json!([])).await;
        stats[NODE]["pool"]["max-concurrency"]
            .as_u64()
            .is_some_and(|slots| slots <= 2)
    })
    .await;
}

#[tokio::test]
async fn odd_requests_harm_nobody() {
    let (redis, worker, mut celery) = stage(&["--lease", "60s", "--renew-every", "20s"]).await;
    let mut connection = redis.connection().await;
    let large = format!(r#"{{"body": "{}"}}"#, "A".repeat(1 << 20));
    let control = |body: Value| {
        let properties =
            json!({"delivery_info": {"exchange": "celery.pidbox", "routing_key": ""}, "body_encoding": "utf-8"});
        json!({"body": body.to_string(), "content-type": "application/json", "content-encoding": "utf-8",
            "headers": {"clock": 1, "expires": 1.5}, "properties": properties})
        .to_string()
    };
    for payload in [
        String::new(),
        "no json".into(),
        "[]".into(),
        large,
        control(json!({"method": 7, "arguments": {}})),
        control(json!({"method": "revoke", "arguments": []})),
        control(json!({"method": "revoke", "arguments": {"task_id": {"a": 1}, "terminate": {}}})),
        control(json!({"method": "shutdown", "arguments": {}, "destination": ["nobody@lab"]})),
        control(json!({"method": "shutdown", "arguments": {}, "pattern": "(", "matcher": "pcre"})),
        control(json!({"method": "shutdown", "arguments": {}, "pattern": "w9*", "matcher": "glob"})),
        control(json!({"method": "election", "arguments": {"id": "1", "topic": "t"}})),
        control(json!({"method": "shutdown", "arguments": {}})), // Expired long ago.
        control(json!({"method": "pool_shrink", "arguments": {"n": -5}})),
        control(json!({"method": "pool_shrink", "arguments": {"n": 1e300}})),
        control(
            json!({"method": "ping", "arguments": {}, "ticket": "t", "reply_to": {"exchange": "gone", "routing_key": "x"}}),
        ),
    ] {
        let _: i64 = connection.publish("/0.celery.pidbox", payload).await.unwrap();
    }
    let filler = "x".repeat(1 << 20);
    let said = celery
        .control(&[NODE], "revoke", json!({"task_id": ["an-id"], "filler": filler}))
        .await;
    assert_eq!(
        said[NODE]["ok"],
        json!("tasks {'an-id'} flagged as revoked"),
        "a request of a megabyte is answered: {}",
        worker.tail()
    );
    // A client that is gone leaves nothing behind that stays.
    let answer = control(json!({"method": "ping", "arguments": {}, "ticket": "t",
        "reply_to": {"exchange": "reply.celery.pidbox", "routing_key": "dead"}}));
    let _: i64 = connection
        .sadd(
            "_kombu.binding.reply.celery.pidbox",
            "dead\u{6}\u{16}\u{6}\u{16}dead.reply.celery.pidbox",
        )
        .await
        .unwrap();
    let _: i64 = connection.publish("/0.celery.pidbox", answer).await.unwrap();
    eventually(SOON, "its answer expires", async || {
        let left: i64 = connection.ttl("dead.reply.celery.pidbox").await.unwrap();
        (1..=60).contains(&left)
    })
    .await;
}

#[tokio::test]
async fn a_new_celery_worker_shares_what_it_knows_to_be_revoked() {
    let (redis, _worker, mut celery) = stage(&[]).await;
    let hello = json!({"from_node": "c1@lab", "revoked": {"an-id": [1.0, "an-id"]}});
    let said = celery.control(&[NODE], "hello", hello).await;
    assert_eq!(said[NODE]["revoked"], json!(["an-id"]), "{said}");
    // The list form of 5.7, and thousands; its own name is not answered.
    let many: Vec<String> = (0..9_999)
        .map(|n| format!("00000000-0000-4000-8000-{n:0>12}"))
        .collect();
    let said = celery
        .control(&[NODE], "hello", json!({"from_node": "c2@lab", "revoked": many}))
        .await;
    assert_eq!(said[NODE]["revoked"].as_array().map(Vec::len), Some(10_000));
    let mut connection = redis.connection().await;
    assert_eq!(connection.zcard("umbel:revoked").await, Ok(10_000));
    let said = celery
        .control(&[NODE], "hello", json!({"from_node": NODE, "revoked": []}))
        .await;
    assert!(said.is_null() || said[NODE].is_null(), "{said}");
    let said = celery
        .control(&[NODE], "hello", json!({"from_node": "c1@lab", "revoked": ["an-id"]}))
        .await;
    assert!(said[NODE]["clock"].as_u64().is_some_and(|clock| clock > 0));
    let _other = umbel_worker(&redis.url(), &["--name", "w2@lab"]);
    eventually(SOON, "the next worker knows it, too", async || {
        let known = celery.inspect(&["w2@lab"], "revoked", json!([])).await;
        known["w2@lab"]
            .as_array()
            .is_some_and(|ids| ids.contains(&json!("an-id")))
    })
    .await;
}

#[tokio::test]
async fn the_pool_grows_and_shrinks() {
    let (_redis, _worker, mut celery) = stage(&["--concurrency", "1"]).await;
    let long = celery.send("umbel.sleep", json!([60]), json!({})).await;
    runs(&mut celery, &long).await;
    celery.control(&[NODE], "pool_grow", json!({"n": 1})).await;
    let beside = celery.send("umbel.echo", json!([]), json!({})).await;
    assert!(celery.get(&beside, SOON).await.is_ok(), "the second slot serves");
    let refused = celery.control(&[NODE], "pool_shrink", json!({"n": 2})).await;
    assert!(refused[NODE]["error"].is_string(), "{refused}");
    celery.control(&[NODE], "pool_shrink", json!({"n": 1})).await;
    let stats = celery.inspect(&[NODE], "stats", json!([])).await;
    assert_eq!(stats[NODE]["pool"]["max-concurrency"], json!(1));
    let waits = celery.send("umbel.echo", json!([]), json!({})).await;
    let raised = celery
        .get(&waits, Duration::from_secs(2))
        .await
        .expect_err("no slot is free");
    assert_eq!(raised.exc_type, "TimeoutError");
    celery
        .control(&[NODE], "revoke", json!({"task_id": long, "terminate": true}))
        .await;
    assert!(celery.get(&waits, SOON).await.is_ok());
}

#[tokio::test]
async fn celerys_receiver_sees_worker_and_tasks() {
    let (_redis, worker, mut celery) = stage(&["--retry-max-attempts", "1"]).await;
    celery.watch().await;
    eventually(SOON, "the worker is seen at once", async || {
        celery.seen().await["workers"][NODE] == json!(true)
    })
    .await;
    let unseen = celery.send("umbel.echo", json!([]), json!({})).await;
    celery.get(&unseen, SOON).await.expect("it echoes");
    celery.control(&[NODE], "enable_events", json!({})).await;
    let good = celery.send("umbel.echo", json!(["a"]), json!({})).await;
    let bad = celery.send("umbel.sleep", json!(["long"]), json!({})).await;
    let late = celery
        .send("umbel.echo", json!([]), json!({"expires": "2001-01-01T00:00:00+00:00"}))
        .await;
    celery.get(&good, SOON).await.expect("it echoes");
    celery.get(&bad, SOON).await.expect_err("that is no number");
    eventually(SOON, "all events", async || {
        let tasks = &celery.seen().await["tasks"];
        tasks[&good] == json!(["umbel.echo", "SUCCESS", NODE])
            && tasks[&bad] == json!(["umbel.sleep", "FAILURE", NODE])
            && tasks[&late][1] == json!("REVOKED")
    })
    .await;
    let seen = celery.seen().await;
    let of = |id: &str| -> Vec<Value> {
        let events = seen["events"].as_array().expect("a list");
        events.iter().filter(|event| event["uuid"] == id).cloned().collect()
    };
    let kinds: Vec<Value> = of(&good).iter().map(|event| event["type"].clone()).collect();
    assert_eq!(kinds, ["task-received", "task-started", "task-succeeded"]);
    let done = &of(&good)[2];
    assert_eq!(done["result"], json!("{'args': ['a'], 'kwargs': {}}"));
    assert!(
        done["runtime"]
            .as_f64()
            .is_some_and(|runtime| (0.0..5.0).contains(&runtime)),
        "{done}"
    );
    assert_eq!(of(&bad)[2]["type"], json!("task-failed"));
    assert!(of(&unseen).is_empty(), "events were off");
    drop(worker);
}

#[tokio::test]
async fn each_change_of_a_task_is_told_once() {
    let redis = Redis::start().await;
    let history = History::new();
    let worker = test_worker(
        &redis.url(),
        &history,
        &["--name", NODE, "--retry-initial-backoff", "1s"],
    );
    let mut celery = Celery::client(&redis.url()).await;
    answers(&mut celery, NODE).await;
    celery.watch().await;
    for (method, said) in [
        ("enable_events", "task events enabled"),
        ("enable_events", "task events already enabled"),
    ] {
        let answer = celery.control(&[NODE], method, json!({})).await;
        assert_eq!(answer[NODE]["ok"], json!(said));
    }
    let later = celery.send("test.work", json!([0.0]), json!({"countdown": 1})).await;
    let again = celery.send("test.flaky", json!([1]), json!({})).await;
    let stopped = celery.send("test.work", json!([60]), json!({})).await;
    let fails = celery.send("test.fail", json!(["boom"]), json!({})).await;
    let revoked = celery.send("test.work", json!([0.0]), json!({"countdown": 2})).await;
    runs(&mut celery, &stopped).await;
    let ended = json!({"task_id": stopped, "terminate": true, "signal": "SIGKILL"});
    celery.control(&[NODE], "revoke", ended).await;
    let nonsense = json!({"task_id": stopped, "terminate": true, "signal": "SIGNONE"});
    let said = celery.control(&[NODE], "revoke", nonsense).await;
    assert!(said[NODE]["error"].is_string(), "{said}");
    celery.control(&[NODE], "revoke", json!({"task_id": revoked})).await;
    for id in [&later, &again] {
        assert!(celery.get(id, SOON).await.is_ok());
    }
    celery.get(&fails, SOON).await.expect_err("it fails");
    let types = async |celery: &mut Celery, id: &str| -> Vec<Value> {
        let seen = celery.seen().await;
        let events = seen["events"].as_array().expect("a list").iter();
        events.filter(|event| event["uuid"] == id).cloned().collect()
    };
    let words = |events: &[Value]| -> Vec<String> {
        let kinds = events.iter().map(|event| event["type"].as_str().unwrap_or_default());
        kinds.map(str::to_owned).collect()
    };
    for (id, expected) in [
        (&later, vec!["task-received", "task-started", "task-succeeded"]),
        (
            &again,
            vec![
                "task-received",
                "task-started",
                "task-retried",
                "task-received",
                "task-started",
                "task-succeeded",
            ],
        ),
        (&stopped, vec!["task-received", "task-started", "task-revoked"]),
        (&fails, vec!["task-received", "task-started", "task-failed"]),
        (&revoked, vec!["task-received", "task-revoked"]),
    ] {
        eventually(SOON, "all its events", async || {
            words(&types(&mut celery, id).await) == expected
        })
        .await;
    }
    let last = types(&mut celery, &stopped).await.remove(2);
    assert_eq!(
        (&last["terminated"], &last["signum"], &last["expired"]),
        (&json!(true), &json!(9), &json!(false))
    );
    let last = types(&mut celery, &revoked).await.remove(1);
    assert_eq!(
        (&last["terminated"], &last["signum"], &last["expired"]),
        (&json!(false), &Value::Null, &json!(false))
    );
    let failed = types(&mut celery, &fails).await.remove(2);
    assert_eq!(failed["exception"], json!("ValueError('boom')"));
    let traceback = failed["traceback"].as_str().unwrap_or_default();
    assert!(traceback.contains("boom"), "{failed}");
    let retried = types(&mut celery, &again).await.remove(2);
    assert!(
        retried["exception"]
            .as_str()
            .is_some_and(|text| text.contains("not yet")),
        "{retried}"
    );

    for (method, said) in [
        ("disable_events", "task events disabled"),
        ("disable_events", "task events already disabled"),
    ] {
        let answer = celery.control(&[NODE], method, json!({})).await;
        assert_eq!(answer[NODE]["ok"], json!(said));
    }
    let unseen = celery.send("test.work", json!([0.0]), json!({})).await;
    assert!(celery.get(&unseen, SOON).await.is_ok());
    assert_eq!(types(&mut celery, &unseen).await, [] as [Value; 0]);
    drop(worker);
}

#[tokio::test]
async fn celery_events_dumps_what_happens() {
    let (redis, _worker, mut celery) = stage(&[]).await;
    let mut dump = celery_process(&redis.url(), &["events", "--dump"], &[]);
    dump.says(SOON, "heartbeat: ").await; // Its first word is a request for them.
    celery.control(&[NODE], "enable_events", json!({})).await;
    let id = celery.send("umbel.echo", json!(["x"]), json!({})).await;
    assert!(celery.get(&id, SOON).await.is_ok());
    for text in [
        "task received: umbel.echo",
        "task started: umbel.echo",
        "task succeeded: umbel.echo",
        &id,
    ] {
        dump.says(SOON, text).await;
    }
}

#[tokio::test]
async fn a_worker_that_stops_says_so() {
    let (_redis, mut worker, mut celery) = stage(&[]).await;
    celery.watch().await;
    celery.control(&[NODE], "enable_events", json!({})).await;
    eventually(SOON, "the worker is seen", async || {
        celery.seen().await["workers"][NODE] == json!(true)
    })
    .await;
    worker.signal(umbel_testkit::Signal::Term);
    assert!(worker.wait(SOON).await.success());
    eventually(SOON, "the worker is gone", async || {
        let seen = celery.seen().await;
        let events = seen["events"].as_array().expect("a list").clone();
        events.iter().any(|event| event["type"] == "worker-offline") && seen["workers"][NODE] == json!(false)
    })
    .await;
}
