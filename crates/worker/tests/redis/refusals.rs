//! Servers that are there and do not want: errors of every kind, no memory, no connections, keys of other types.

use std::time::Duration;

use umbel_testkit::redis::{self, AsyncCommands};
use umbel_testkit::{History, Redis, Relay, eventually};

use crate::stage::{Admin, all_done, goes_through, ids, message, send, settled, told};
use crate::support::{LATER, SOON, admitted, laid_aside, test_worker};

#[tokio::test]
async fn r08_every_kind_of_refusal_is_waited_out_and_reaches_no_task() {
    let redis = Redis::start().await;
    let relay = Relay::before(&redis).await;
    let history = History::new();
    let admin = Admin::new();
    let mut worker = test_worker(
        &relay.url(),
        &history,
        &["--concurrency", "4", "--admin-addr", admin.address()],
    );
    admitted(&redis, 1).await;
    let mut connection = redis.connection().await;
    let table = [
        ("loading", "-LOADING Redis is loading the dataset in memory\r\n"),
        (
            "master_down",
            "-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
        ),
        (
            "read_only",
            "-READONLY You can't write against a read only replica.\r\n",
        ),
        (
            "try_again",
            "-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
        ),
        (
            "busy",
            "-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.\r\n",
        ),
        (
            "misconfigured",
            "-MISCONF Redis is configured to save RDB snapshots, but it's unable to persist to disk.\r\n",
        ),
        (
            "out_of_memory",
            "-OOM command not allowed when used memory > 'maxmemory'.\r\n",
        ),
        ("no_replicas", "-NOREPLICAS Not enough good replicas to write.\r\n"),
        (
            "no_permission",
            "-NOPERM this user has no permissions to run the 'evalsha' command\r\n",
        ),
    ];
    for (label, reply) in table {
        let before = admin.metric("umbel_broker_errors_total", label).await;
        // Whatever is called next: taking, looking, settling, renewing.
        relay.answer(reply, 4, |command| command.is("EVALSHA") || command.is("EVAL"));
        send(&mut connection, &history, &ids(label, 8), 0.05)
            .await
            .expect("sent");
        let verdict = all_done(&history, SOON).await;
        assert_eq!(verdict.rerun, 0, "{label}: {verdict}");
        eventually(SOON, "it is counted under its name", async || {
            admin.metric("umbel_broker_errors_total", label).await > before
        })
        .await;
        settled(&mut connection).await;
    }
    assert_eq!(connection.hlen("umbel:att").await, Ok(0), "nobody is charged");
    assert!(laid_aside(&redis, "dead", "celery").await.is_empty());
    let mut states = Vec::new();
    for (label, _) in table {
        for id in ids(label, 8) {
            let document: String = connection
                .get(format!("celery-task-meta-{id}"))
                .await
                .expect("a result");
            states.push(document.contains("\"SUCCESS\""));
        }
    }
    assert!(states.iter().all(|is_success| *is_success), "none is a task's failure");
    assert!(worker.exit().is_none());
}

#[tokio::test]
async fn r09_out_of_memory_loses_nothing() {
    let redis = Redis::start().await;
    let history = History::new();
    let worker = test_worker(&redis.url(), &history, &["--concurrency", "8"]);
    admitted(&redis, 1).await;
    let mut connection = redis.connection().await;
    let mut refused = 0;
    for round in 0..5 {
        let some = ids(&format!("round{round}"), 100);
        send(&mut connection, &history, &some[..80], 0.01).await.expect("sent");
        redis.set("maxmemory", "1mb").await;
        // A producer is told so, and nothing of its message is there.
        if let Err(err) = send(&mut connection, &history, &some[80..81], 0.01).await {
            assert_eq!(err.code(), Some("OOM"), "{err}");
            refused += 1;
        }
        // The backlog is worked off all the same: that frees memory.
        eventually(SOON, "what waits and what runs ends", async || {
            let held: usize = connection.hlen("umbel:unacked").await.unwrap_or(usize::MAX);
            let waiting: usize = connection.llen("celery").await.unwrap_or(usize::MAX);
            held == 0 && waiting == 0
        })
        .await;
        redis.set("maxmemory", "0").await;
        send(&mut connection, &history, &some[81..], 0.0)
            .await
            .expect("sent again");
        let took = goes_through(&mut connection, &history, &format!("back-{round}")).await;
        assert!(took < Duration::from_secs(5), "{took:?}\n{}", worker.tail());
    }
    assert_eq!(refused, 5, "one megabyte is less than an empty server has");
    let verdict = all_done(&history, LATER).await;
    settled(&mut connection).await;
    assert_eq!((verdict.lost.len(), verdict.rerun), (0, 0), "{verdict}");
    assert_eq!(connection.hlen("umbel:att").await, Ok(0), "nobody is charged");
}

#[tokio::test]
async fn r10_an_evicting_server_is_told_and_refused_where_that_is_asked_for() {
    let redis = Redis::start_with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]).await;
    let (history, admin) = (History::new(), Admin::new());
    let mut lax = test_worker(&redis.url(), &history, &["--admin-addr", admin.address()]);
    lax.says(SOON, "maxmemory-policy is allkeys-lru").await;
    admitted(&redis, 1).await;
    assert!((admin.metric("umbel_broker_eviction_risk", "").await - 1.0).abs() < 0.1);
    lax.kill();
    let mut connection = redis.connection().await;
    told(&mut connection, &["FLUSHALL"]).await;
    let mut strict = test_worker(&redis.url(), &history, &["--refuse-eviction"]);
    strict.says(SOON, "must be noeviction").await;
    assert_eq!(connection.exists("umbel:workers").await, Ok(false), "it takes nothing");
    assert!(strict.exit().is_none(), "it waits");
    redis.set("maxmemory-policy", "noeviction").await;
    goes_through(&mut connection, &history, "mended").await;
}

#[tokio::test]
async fn r11_without_a_free_connection_it_waits_and_never_needs_more_than_a_few() {
    let redis = Redis::start_with(&["--maxclients", "20"]).await;
    let history = History::new();
    let mut ours = redis.connection().await;
    let connected = async |connection: &mut redis::aio::MultiplexedConnection| {
        let info: String = redis::cmd("INFO")
            .arg("clients")
            .query_async(connection)
            .await
            .unwrap_or_default();
        let line = info.lines().find_map(|line| line.strip_prefix("connected_clients:"));
        line.and_then(|number| number.trim().parse::<usize>().ok()).unwrap_or(0)
    };
    let mut crowd = Vec::new();
    while let Ok(client) = redis::Client::open(redis.url()) {
        let Ok(connection) = client.get_multiplexed_async_connection().await else {
            break;
        };
        crowd.push(connection);
    }
    let mut worker = test_worker(&redis.url(), &history, &[]);
    worker.says(SOON, "max number of clients").await;
    assert!(worker.exit().is_none());
    crowd.clear();
    let took = goes_through(&mut ours, &history, "room").await;
    assert!(took < Duration::from_secs(6), "{took:?}");
    // Calls, acknowledgements, reserves, wake-ups and remote control have one each.
    eventually(SOON, "five connections", async || connected(&mut ours).await - 1 == 5).await;
    for round in 0..4 {
        told(&mut ours, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
        goes_through(&mut ours, &history, &format!("again-{round}")).await;
    }
    eventually(SOON, "as many connections as before", async || {
        connected(&mut ours).await - 1 <= 5
    })
    .await;
}

#[tokio::test]
async fn r20_keys_of_another_type_are_named_and_hold_up_nobody_else() {
    let redis = Redis::start().await;
    let mut connection = redis.connection().await;
    let _: () = connection.set("unacked", "x").await.expect("set");
    let _: () = connection.set("spoiled", "x").await.expect("set");
    let history = History::new();
    let mut worker = test_worker(&redis.url(), &history, &["--queue", "celery,spoiled"]);
    goes_through(&mut connection, &history, "beside").await;
    worker.says(SOON, "spoiled").await;
    settled(&mut connection).await;
    // A key of ours: nothing can be taken, it is said which, and it is over when the key is gone.
    let _: () = connection.del("umbel:lease").await.expect("deleted");
    let _: () = connection.set("umbel:lease", "x").await.expect("set");
    send(&mut connection, &history, &ids("held-up", 5), 0.0)
        .await
        .expect("sent");
    worker.says(SOON, "WRONGTYPE").await;
    let waiting: usize = connection.llen("celery").await.expect("read");
    assert_eq!(waiting, 5, "nothing is popped");
    let _: () = connection.del("umbel:lease").await.expect("deleted");
    all_done(&history, SOON).await;
    settled(&mut connection).await;
    assert_eq!(
        connection.get("unacked").await,
        Ok("x".to_owned()),
        "what is not ours is left alone"
    );
    assert!(!message("x", "y", "[]").is_empty());
}
