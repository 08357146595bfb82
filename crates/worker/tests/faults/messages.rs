//! Messages that cannot run here, results that cannot be stored, two messages that look like one.

use serde_json::{Value, json};
use umbel_testkit::redis::{self, AsyncCommands};
use umbel_testkit::{Celery, Event, History, Process, Redis, eventually};

use crate::support::{LATER, SOON, admitted, borrowed, broker, depth, laid_aside, start, test_tasks, test_worker};

struct Stage {
    redis: Redis,
    celery: Celery,
    history: History,
    _worker: Process,
}

async fn stage(flags: &[&str]) -> Stage {
    let redis = Redis::start().await;
    let history = History::new();
    let worker = test_worker(&redis.url(), &history, flags);
    let celery = Celery::client(&redis.url()).await;
    Stage {
        redis,
        celery,
        history,
        _worker: worker,
    }
}

#[tokio::test]
async fn w16_an_unknown_task_fails_at_its_caller_and_is_kept() {
    let mut stage = stage(&[]).await;
    let id = stage.celery.send("nobody.knows", json!([1]), json!({})).await;
    let raised = stage.celery.get(&id, SOON).await.expect_err("nobody knows it");
    assert_eq!(
        (raised.module.as_str(), raised.exc_type.as_str()),
        ("celery.exceptions", "NotRegistered")
    );
    let dead = laid_aside(&stage.redis, "dead", "celery").await;
    assert_eq!(dead.len(), 1);
    assert!(dead[0].0.contains("nobody.knows") && dead[0].1 == id, "{dead:?}");
}

#[tokio::test]
async fn w17_a_worker_of_an_older_release_leaves_newer_messages_to_others() {
    let redis = Redis::start().await;
    let history = History::new();
    let release = |newest: &'static str, hand_backs: &str| {
        let flags = ["--hand-backs", hand_backs, "--concurrency", "2"];
        let env = [("UMBEL_TEST_RELEASE", newest), history.environment()];
        start(test_tasks(), &redis.url(), &flags, &env)
    };
    let old = release("1", "3");
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    let version = |version: u32| json!({"headers": {"umbel_version": version}});
    // Nobody reads it: handed on three times, and then it is somebody's failure and kept.
    let nobody = celery.send("test.release", json!([]), version(3)).await;
    let raised = celery.get(&nobody, SOON).await.expect_err("nobody reads it");
    assert_eq!(
        (
            raised.module.as_str(),
            raised.exc_type.as_str(),
            raised.message.as_str()
        ),
        (
            "celery.exceptions",
            "InvalidTaskError",
            "no worker understands version 3"
        )
    );
    let dead = laid_aside(&redis, "dead", "celery").await;
    assert_eq!(dead, [("no worker understands version 3".to_owned(), nobody.clone())]);
    let mut connection = redis.connection().await;
    let times: u32 = connection.get(format!("umbel:handed:{nobody}")).await.expect("counted");
    assert_eq!(times, 4, "three times, and the look after the last");
    // Beside a newer release each of them runs, the new ones only there: as often as it takes, the older one may be the
    // quicker one many times in a row.
    drop(old);
    let _old = release("1", "30");
    let _new = release("2", "30");
    admitted(&redis, 3).await;
    for (asked, runs) in [(1, [1, 2].as_slice()), (2, [2].as_slice())] {
        for _ in 0..4 {
            let id = celery.send("test.release", json!([]), version(asked)).await;
            let ran = celery.get(&id, SOON).await.expect("it runs");
            assert!(runs.iter().any(|release| ran == json!(release)), "{asked} ran at {ran}");
        }
    }
    assert_eq!(history.count(Event::Started, &nobody), 0);
}

#[tokio::test]
async fn w18_a_result_cannot_be_stored_after_the_effect() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut connection = redis.connection().await;
    let acl = async |rules: &[&str], connection: &mut redis::aio::MultiplexedConnection| {
        let _: () = redis::cmd("ACL")
            .arg("SETUSER")
            .arg("results")
            .arg(rules)
            .query_async(connection)
            .await
            .expect("set");
    };
    acl(&["on", ">secret", "~*", "&*", "+@all"], &mut connection).await;
    let results = format!("redis://results:secret@127.0.0.1:{}/1", redis.port());
    let lease = ["--lease", "20s", "--renew-every", "2s", "--sweep", "1s"];
    let _worker = test_worker(
        &redis.url(),
        &history,
        &[&lease[..], &["--result-url", &results]].concat(),
    );
    admitted(&redis, 1).await;
    let mut celery = Celery::client_with(&redis.url(), &redis.database(1), &json!({})).await;
    acl(&["-set"], &mut connection).await;
    let id = celery.send("test.work", json!([0.0]), json!({})).await;
    history.enqueued([id.as_str()]);
    eventually(SOON, "it is done", async || history.count(Event::Done, &id) == 1).await;
    let broker = broker(&redis.url()).await;
    // As long as it has no result it is not acknowledged.
    let mut refused = 0;
    eventually(SOON, "several attempts were refused", async || {
        assert_eq!(depth(&broker, "celery").await.in_flight, 1);
        let stats: String = redis::cmd("INFO")
            .arg("commandstats")
            .query_async(&mut connection)
            .await
            .expect("told");
        let line = stats.lines().find(|line| line.starts_with("cmdstat_evalsha:"));
        let failed = line.and_then(|line| line.split_once("failed_calls=")?.1.trim().parse::<u32>().ok());
        refused = failed.unwrap_or(0);
        refused >= 3
    })
    .await;
    acl(&["+set"], &mut connection).await;
    assert_eq!(celery.get(&id, SOON).await, Ok(json!(0.0)));
    eventually(SOON, "and it is acknowledged", async || {
        depth(&broker, "celery").await.in_flight == 0
    })
    .await;
    let verdict = history.verdict(&[]);
    assert_eq!((verdict.lost.len(), verdict.rerun), (0, 0), "{verdict}");
}

#[tokio::test]
async fn w19_two_messages_have_the_same_delivery_tag() {
    let mut stage = stage(&["--concurrency", "4"]).await;
    let mut connection = stage.redis.connection().await;
    // Written by Celery, and once more under another id: kombu would keep one of the two.
    let first = stage
        .celery
        .send("test.work", json!([0.3]), json!({"queue": "aside"}))
        .await;
    let raw: String = connection.rpop("aside", None).await.expect("sent");
    let mut second: Value = serde_json::from_str(&raw).expect("JSON");
    second["headers"]["id"] = json!("another-id");
    second["properties"]["correlation_id"] = json!("another-id");
    let ids = [first, "another-id".to_owned()];
    stage.history.enqueued(borrowed(&ids));
    let _: () = connection
        .lpush("celery", &[raw, second.to_string()])
        .await
        .expect("pushed");
    assert_eq!(stage.celery.wait_all(&ids, LATER).await.get("SUCCESS"), Some(&2));
    for id in &ids {
        assert_eq!(stage.history.count(Event::Done, id), 1, "{id}");
    }
}

/// Leases of a worker that was killed, more than one sweep looks at, on what is empty or no record of ours.
#[tokio::test]
async fn overdue_leases_on_nothing_that_can_be_read_hold_up_nobody() {
    let redis = Redis::start().await;
    let mut connection = redis.connection().await;
    let mut celery = Celery::client(&redis.url()).await;
    let id = celery.send("test.work", json!([0.0]), json!({})).await;
    let whole: Vec<u8> = connection.rpop("celery", None).await.expect("it was sent");
    let mut held = redis::pipe();
    for n in 0..30 {
        for (lid, body) in [
            (format!("gone|celery:{n}"), ""),
            (format!("gone:{n}"), "of an older format"),
        ] {
            held.hset("umbel:unacked", &lid, body).zadd("umbel:lease", &lid, 1);
        }
        held.zadd("umbel:lease", format!("gone|other:{n}"), 1); // Its body is lost.
    }
    held.hset("umbel:unacked", "gone|celery:99", whole)
        .zadd("umbel:lease", "gone|celery:99", 2)
        .hset("umbel:held", "w:gone", 61)
        .hset("umbel:held", "q:celery", 31);
    let _: () = held.query_async(&mut connection).await.expect("written");

    let history = History::new();
    let _worker = test_worker(&redis.url(), &history, &[]);
    assert_eq!(
        celery.get(&id, LATER).await,
        Ok(json!(0.0)),
        "what stands behind them is recovered"
    );
    eventually(SOON, "no lease is left", async || {
        let left: usize = connection.zcard("umbel:lease").await.expect("the server answers");
        left == 0
    })
    .await;
    let aside = laid_aside(&redis, "quarantine", "celery").await;
    assert_eq!(aside, vec![("the message is empty".to_owned(), String::new()); 30]);
    let unreadable: usize = connection
        .xlen("umbel:quarantine:umbel:unreadable")
        .await
        .expect("the server answers");
    assert_eq!(unreadable, 30);
    for field in ["w:gone", "q:celery"] {
        assert_eq!(connection.hget("umbel:held", field).await, Ok(Some(0)), "{field}");
    }
}
