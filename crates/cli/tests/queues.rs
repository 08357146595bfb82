//! `umbel queue …`, `umbel task cancel|retry` against real servers, as people call them.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests fail as tests do.

mod support;

use serde_json::{Value, json};
use support::{Done, SOON, command, good, umbel, umbel_with, umbel_worker, value};
use umbel_testkit::redis::aio::MultiplexedConnection;
use umbel_testkit::redis::{self, AsyncCommands};
use umbel_testkit::{Redis, Signer, eventually};

const SHORT: [&str; 8] = [
    "--lease",
    "2s",
    "--renew-every",
    "600ms",
    "--sweep",
    "500ms",
    "--grace",
    "2s",
];

async fn send(url: &str, more: &[&str]) -> String {
    let flags = [&["task", "send", "umbel.echo"][..], more].concat();
    good(umbel(url, &flags).await).trim().to_owned()
}

async fn state(url: &str, id: &str) -> String {
    let got = value(umbel(url, &["task", "get", id, "-o", "json"]).await);
    got["status"].as_str().unwrap().to_owned()
}

async fn until_state(url: &str, id: &str, wanted: &str) {
    eventually(SOON, &format!("{id} is {wanted}"), async || {
        state(url, id).await == wanted
    })
    .await;
}

fn items(done: Done) -> Vec<Value> {
    value(done)["items"].as_array().unwrap().clone()
}

fn texts(items: &[Value], field: &str) -> Vec<String> {
    let text = |item: &Value| item[field].as_str().unwrap_or("-").to_owned();
    items.iter().map(text).collect()
}

async fn depth(url: &str, queue: &str) -> Value {
    items(umbel(url, &["queue", "ls", queue, "-o", "json"]).await)[0]["depth"].clone()
}

/// A lease on a message, as a worker leaves it that was killed. It is charged to nobody.
async fn lease(redis: &mut MultiplexedConnection, lid: &str, list: &str, raw: &[u8], seconds: f64) {
    let (now, _): (f64, f64) = redis::cmd("TIME").query_async(redis).await.unwrap();
    let record = [format!("{}:{list}", list.len()).as_bytes(), raw].concat();
    let worker = lid.rsplit_once(':').unwrap().0;
    let () = redis.hset("umbel:unacked", lid, record).await.unwrap();
    let () = redis.zadd("umbel:lease", lid, now + seconds).await.unwrap();
    let () = redis.hincr("umbel:held", format!("w:{worker}"), 1).await.unwrap();
    let () = redis.hincr("umbel:held", format!("q:{list}"), 1).await.unwrap();
}

#[tokio::test]
async fn a_purge_removes_what_waits_everywhere_and_settles_its_runs() {
    let server = Redis::start().await;
    let url = server.url();
    let mut redis = server.connection().await;
    send(&url, &["--count", "700"]).await;
    let member = send(&url, &["--priority", "9", "--header", "umbel_run=r1"]).await;
    let parked = send(&url, &["--header", "umbel_run=\"r1\"", "--queue", "other"]).await;
    send(
        &url,
        &["--args", "[\"\\\"umbel_run\\\": \\\"r1\\\"\"]", "--id", "mentions"],
    )
    .await;
    for id in [member.as_str(), &parked, "mentions", "elsewhere"] {
        let () = redis.hset("umbel:run:r1", format!("i:{id}"), "").await.unwrap();
    }
    // A delayed one and a suspect as our scripts keep them, and one that runs.
    let raw: Vec<u8> = redis.rpop("other", None).await.unwrap();
    let inner = [b"3:tag".as_slice(), &raw].concat();
    let () = redis
        .zadd("umbel:delayed:celery", [b"6:celery".as_slice(), &inner].concat(), 4e9)
        .await
        .unwrap();
    let () = redis
        .lpush("umbel:suspect:celery", b"6:celery{}".as_slice())
        .await
        .unwrap();
    lease(&mut redis, "w/1/a:7", "celery", b"{}", 60.0).await;

    let dry = items(umbel(&url, &["queue", "purge", "celery", "--dry-run", "-o", "json"]).await);
    assert_eq!(
        dry,
        [
            json!({"queue": "celery", "purged": 704, "waiting": 702, "delayed": 1, "suspect": 1, "runsSettled": 0, "dryRun": true})
        ]
    );
    let unasked = umbel(&url, &["queue", "purge", "celery"]).await;
    assert_eq!((unasked.code, unasked.out.as_str()), (2, ""), "{}", unasked.err);
    assert!(
        unasked.err.contains("Remove 704 messages") && unasked.err.contains("--yes"),
        "{}",
        unasked.err
    );
    assert_eq!(depth(&url, "celery").await["waiting"], 703, "nothing has happened yet");

    let only = items(
        umbel(
            &url,
            &["queue", "purge", "celery", "--in", "suspect", "--yes", "-o", "json"],
        )
        .await,
    );
    assert_eq!((&only[0]["purged"], &only[0]["waiting"]), (&json!(1), &json!(null)));
    let table = good(umbel(&url, &["queue", "purge", "celery", "--yes", "-o", "wide"]).await);
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row, ["celery", "703", "702", "1", "0", "2"], "{table}");
    let mut left = depth(&url, "celery").await;
    left.as_object_mut().unwrap().remove("byPriority");
    assert_eq!(
        left,
        json!({"waiting": 0, "inFlight": 1, "delayed": 0, "dead": 0, "quarantined": 0})
    );
    let run: std::collections::HashMap<String, String> = redis.hgetall("umbel:run:r1").await.unwrap();
    assert_eq!(run["revoked"], "2", "{run:?}");
    assert!(
        run.contains_key("i:mentions") && run.contains_key("i:elsewhere"),
        "{run:?}"
    );
    let results: Vec<String> = redis.keys("celery-task-meta-*").await.unwrap();
    assert!(results.is_empty(), "a purge stores nothing: {results:?}");
    let empty = items(umbel(&url, &["queue", "purge", "celery", "none", "--yes", "-o", "json"]).await);
    assert_eq!((empty.len(), &empty[1]["purged"]), (2, &json!(0)));
    // A key of another type is named.
    let () = redis.set("wrong", "x").await.unwrap();
    let wrong = umbel(&url, &["queue", "purge", "wrong", "--yes"]).await;
    assert_eq!(wrong.code, 1);
    assert!(wrong.err.contains("key wrong has another type"), "{}", wrong.err);
}

#[tokio::test]
async fn a_large_purge_goes_in_small_steps_and_ends_while_others_send() {
    let server = Redis::start().await;
    let url = server.url();
    let mut redis = server.connection().await;
    for _ in 0..40 {
        let batch: Vec<String> = (0..500)
            .map(|n| format!("{{\"n\": {n}, \"pad\": \"{:900}\"}}", ""))
            .collect();
        let () = redis.lpush("big", batch).await.unwrap();
    }
    let () = redis::cmd("CONFIG")
        .arg(&["RESETSTAT"])
        .query_async(&mut redis)
        .await
        .unwrap();
    let sending = tokio::spawn({
        let mut redis = server.connection().await;
        async move {
            loop {
                let () = redis.lpush("big", "new").await.unwrap();
                tokio::task::yield_now().await;
            }
        }
    });
    let purged = items(umbel(&url, &["queue", "purge", "big", "--yes", "-o", "json"]).await);
    sending.abort();
    let count = purged[0]["purged"].as_u64().unwrap();
    assert!(count >= 20_000, "{count}");
    assert!(redis.llen::<_, u64>("big").await.unwrap() > 0, "what came later stays");
    let stats: String = redis::cmd("INFO")
        .arg("commandstats")
        .query_async(&mut redis)
        .await
        .unwrap();
    let field = |command: &str, field: &str| -> f64 {
        let line = stats
            .lines()
            .find(|line| line.starts_with(&format!("cmdstat_{command}:")));
        let found = line.and_then(|line| {
            line.split([',', ':'])
                .find_map(|part| part.strip_prefix(&format!("{field}=")))
        });
        found.and_then(|text| text.parse().ok()).unwrap_or(0.0)
    };
    assert!(field("evalsha", "calls") >= 60.0, "20,000 KiB in steps of 256: {stats}");
    // On average: one step may meet a busy machine.
    assert!(field("evalsha", "usec_per_call") < 5_000.0, "{stats}");
}

#[tokio::test]
async fn peek_shows_messages_of_every_place_and_hides_arguments() {
    let server = Redis::start().await;
    let url = server.url();
    let mut redis = server.connection().await;
    let secret = ["--args", "[\"canary\"]"];
    let last = send(&url, &[&secret[..], &["--priority", "6"]].concat()).await;
    let first = send(&url, &secret).await;
    send(
        &url,
        &[&secret[..], &["--serializer", "msgpack", "--id", "packed"]].concat(),
    )
    .await;
    let () = redis.lpush("celery", "no message").await.unwrap();
    let () = redis.lpush("celery", vec![0xff_u8, 0xfe]).await.unwrap();
    let table = good(umbel(&url, &["queue", "peek", "celery"]).await);
    assert!(!table.contains("canary"), "{table}");
    assert!(table.contains("malformed: "), "{table}");
    let seen = items(umbel(&url, &["queue", "peek", "celery", "-o", "json"]).await);
    assert_eq!(texts(&seen, "id"), [first.as_str(), "packed", "", "", &last]);
    assert_eq!((&seen[0]["priority"], &seen[4]["priority"]), (&json!(0), &json!(6)));
    assert!(
        seen[2]["malformed"].is_string() && seen[3]["malformed"].is_string(),
        "{seen:?}"
    );
    assert!(seen[0]["ageSeconds"].as_i64().unwrap() < 60);
    assert!(!format!("{seen:?}").contains("canary"));
    for format in ["table", "json"] {
        let shown = good(umbel(&url, &["queue", "peek", "celery", "--args", "-o", format]).await);
        assert_eq!(shown.matches("canary").count(), 3, "{shown}");
    }
    let names = good(umbel(&url, &["queue", "peek", "celery", "--limit", "1", "-o", "name"]).await);
    assert_eq!(names, format!("task/{first}\n"));
    // Nothing was taken.
    assert_eq!(depth(&url, "celery").await["waiting"], 5);

    let raw: Vec<u8> = redis.rpop("celery", None).await.unwrap();
    let inner = [b"3:tag".as_slice(), &raw].concat();
    let delayed = [b"6:celery".as_slice(), &inner].concat();
    let () = redis
        .zadd("umbel:delayed:celery", delayed, 4_000_000_000.5)
        .await
        .unwrap();
    let suspect = [b"6:celery".as_slice(), &raw].concat();
    let () = redis.lpush("umbel:suspect:celery", suspect).await.unwrap();
    lease(&mut redis, "host/1/a:7", "celery", &raw, 60.0).await;
    lease(&mut redis, "host/1/a:8", "other", &raw, 60.0).await;
    let dead = [
        ("reason", b"because".as_slice()),
        ("id", first.as_bytes()),
        ("task", b"umbel.echo"),
        ("raw", &raw),
    ];
    let () = redis.xadd("umbel:dead:celery", "*", &dead).await.unwrap();
    let () = redis
        .xadd("umbel:quarantine:celery", "*", &[("reason", "bad"), ("raw", "{")])
        .await
        .unwrap();
    for (place, ids, field, expected) in [
        ("delayed", vec![first.as_str()], "due", "2096-10-02T07:06:40.5Z"),
        ("suspect", vec![&first], "task", "umbel.echo"),
        ("in-flight", vec![&first], "worker", "host/1/a"),
        ("dead", vec![&first], "reason", "because"),
        ("quarantine", vec![""], "reason", "bad"),
    ] {
        let seen = items(umbel(&url, &["queue", "peek", "celery", "--in", place, "-o", "json"]).await);
        assert_eq!(texts(&seen, "id"), ids, "{place}");
        assert_eq!(texts(&seen, field), [expected], "{place}");
        let wide = good(umbel(&url, &["queue", "peek", "celery", "--in", place, "-o", "wide"]).await);
        assert!(!wide.contains("canary"), "{place}: {wide}");
    }
}

#[tokio::test]
async fn a_pause_holds_a_queue_and_no_other() {
    let server = Redis::start().await;
    let url = server.url();
    let _worker = umbel_worker(&server, &["--queue", "held,free"]);
    let paused = items(umbel(&url, &["queue", "pause", "held", "-o", "json"]).await);
    assert_eq!(paused, [json!({"queue": "held", "paused": true, "changed": true})]);
    let held = send(&url, &["--queue", "held"]).await;
    good(umbel(&url, &["task", "send", "umbel.echo", "--queue", "free", "--wait"]).await);
    assert_eq!(
        (state(&url, &held).await.as_str(), &depth(&url, "held").await["waiting"]),
        ("PENDING", &json!(1))
    );
    let listed = items(umbel(&url, &["queue", "ls", "held", "free", "-o", "json"]).await);
    assert_eq!(
        (&listed[0]["paused"], &listed[1]["paused"]),
        (&json!(true), &json!(false))
    );
    good(umbel(&url, &["queue", "resume", "held", "free"]).await);
    good(umbel(&url, &["task", "get", &held, "--wait"]).await);
    assert_eq!(
        items(umbel(&url, &["queue", "ls", "held", "-o", "json"]).await)[0]["paused"],
        false
    );
}

#[tokio::test]
async fn recover_hands_back_what_the_dead_hold_and_with_all_what_the_living_do() {
    let server = Redis::start().await;
    let url = server.url();
    let mut redis = server.connection().await;
    let () = redis.set("umbel:hb:worker:living", "{}").await.unwrap();
    for (lid, raw) in [
        ("dead:11", "first"),
        ("dead:12", "second"),
        ("living:13", "third"),
        ("dead:14", "\0stub"),
    ] {
        lease(&mut redis, lid, "q", raw.as_bytes(), 60.0).await;
    }
    lease(&mut redis, "dead:15", "other", b"not asked for", 60.0).await;
    let () = redis.lpush("q", "waits").await.unwrap();
    let dry = items(umbel(&url, &["queue", "recover", "q", "--dry-run", "-o", "json"]).await);
    assert_eq!(
        dry,
        [json!({"queue": "q", "recovered": 2, "alive": 1, "acknowledged": 1, "stuck": 0, "dryRun": true})]
    );
    assert_eq!(redis.llen::<_, u64>("q").await.unwrap(), 1);
    let done = items(umbel(&url, &["queue", "recover", "q", "-o", "json"]).await);
    assert_eq!((&done[0]["recovered"], &done[0]["alive"]), (&json!(2), &json!(1)));
    // The oldest is next, before what waited.
    let all: Vec<String> = redis.lrange("q", 0, -1).await.unwrap();
    assert_eq!(all, ["waits", "second", "first"]);
    let held: std::collections::HashMap<String, i64> = redis.hgetall("umbel:held").await.unwrap();
    assert_eq!((held["q:q"], held["w:dead"], held["q:other"]), (2, 2, 1), "{held:?}");
    let deaths: u64 = redis.hlen("umbel:att").await.unwrap();
    assert_eq!(deaths, 0, "uncharged");

    let unasked = umbel(&url, &["queue", "recover", "q", "--all"]).await;
    assert_eq!(unasked.code, 2, "{}", unasked.err);
    assert!(
        unasked.err.contains("a second time") && unasked.err.contains("--yes"),
        "{}",
        unasked.err
    );
    let all = umbel(&url, &["queue", "recover", "q", "--all", "--yes", "-o", "json"]).await;
    assert!(all.err.contains("warning"), "{}", all.err);
    assert_eq!(items(all)[0]["recovered"], 1);
    // A list of another type keeps its message leased.
    let () = redis.set("odd", "x").await.unwrap();
    lease(&mut redis, "dead:16", "odd", b"kept", 60.0).await;
    let odd = umbel(&url, &["queue", "recover", "odd", "-o", "json"]).await;
    assert!(odd.code == 1 && odd.err.contains("another type"), "{}", odd.err);
    assert!(redis.hexists::<_, _, bool>("umbel:unacked", "dead:16").await.unwrap());
}

#[tokio::test]
async fn a_killed_workers_task_runs_at_once_after_a_recover() {
    let server = Redis::start().await;
    let url = server.url();
    let mut redis = server.connection().await;
    let mut worker = umbel_worker(&server, &["--lease", "10m"]);
    let id = good(umbel(&url, &["task", "send", "umbel.sleep", "--args", "[0.4]"]).await);
    eventually(SOON, "it is taken", async || {
        redis.zcard::<_, u64>("umbel:lease").await.unwrap() == 1
    })
    .await;
    let live = items(umbel(&url, &["queue", "recover", "celery", "-o", "json"]).await);
    assert_eq!((&live[0]["recovered"], &live[0]["alive"]), (&json!(0), &json!(1)));
    worker.kill();
    let beats: Vec<String> = redis.keys("umbel:hb:worker:*").await.unwrap();
    let () = redis.del(beats).await.unwrap(); // As 15 s later.
    let done = items(umbel(&url, &["queue", "recover", "celery", "-o", "json"]).await);
    assert_eq!(done[0]["recovered"], 1);
    let _worker = umbel_worker(&server, &[]);
    good(umbel(&url, &["task", "get", id.trim(), "--wait"]).await);
}

/// Messages in the dead letters of a queue, made by a worker: unknown tasks, and one that fails.
async fn buried(url: &str, server: &Redis) -> Vec<String> {
    let worker = umbel_worker(server, &SHORT);
    for (task, id) in [("mail.send", "m1"), ("mail.send", "m2"), ("report", "r1")] {
        good(
            umbel(
                url,
                &["task", "send", task, "--id", id, "--args", "[\"canary\", 1e400]"],
            )
            .await,
        );
    }
    good(umbel(url, &["task", "send", "umbel.sleep", "--id", "s1", "--args", "[\"x\"]"]).await);
    for id in ["m1", "m2", "r1", "s1"] {
        until_state(url, id, "FAILURE").await;
    }
    drop(worker);
    let ids = ["s1", "r1", "m2", "m1"];
    ids.map(str::to_owned).to_vec()
}

#[tokio::test]
async fn dead_letters_are_listed_and_put_back_byte_for_byte() {
    let server = Redis::start().await;
    let url = server.url();
    let mut redis = server.connection().await;
    buried(&url, &server).await;
    let all = items(umbel(&url, &["queue", "dead", "ls", "celery", "-o", "json"]).await);
    let mut ids = texts(&all, "id");
    ids.sort();
    assert_eq!(ids, ["m1", "m2", "r1", "s1"]);
    assert!(
        all.iter()
            .all(|one| one["laidAsideAt"].is_string() && one["sentAt"].is_string()),
        "{all:?}"
    );
    assert!(
        all.iter()
            .all(|one| one["attempts"] == 1 && one["bytes"].as_u64().unwrap() > 100),
        "{all:?}"
    );
    let table = good(umbel(&url, &["queue", "dead", "ls", "celery"]).await);
    assert!(
        table.contains("unknown task \"report\"") && !table.contains("canary"),
        "{table}"
    );
    for (flags, expected) in [
        (&["--task", "mail.*"][..], vec!["m1", "m2"]),
        (&["--reason", "TypeError"], vec!["s1"]),
        (&["--reason", "unknown task*"], vec!["m1", "m2", "r1"]),
        (&["--id", "m2", "--id", "r1"], vec!["m2", "r1"]),
        (&["--limit", "1", "--task", "report"], vec!["r1"]),
        (&["--task", "none"], vec![]),
    ] {
        let listed = umbel(
            &url,
            &[&["queue", "dead", "ls", "celery", "-o", "json"][..], flags].concat(),
        )
        .await;
        let mut ids = texts(&items(listed), "id");
        ids.sort();
        assert_eq!(ids, expected, "{flags:?}");
    }

    let key = "umbel:dead:celery";
    let kept: redis::streams::StreamRangeReply = redis.xrange_all(key).await.unwrap();
    let bytes = |id: &str| -> Vec<u8> {
        let entry = kept
            .ids
            .iter()
            .find(|entry| entry.get::<String>("id").unwrap() == id)
            .unwrap();
        entry.get("raw").unwrap()
    };
    let () = redis.hset("umbel:att", "m1", 2).await.unwrap();
    let replay = ["queue", "dead", "replay", "celery"];
    let dry = good(umbel(&url, &[&replay[..], &["--all", "--dry-run"]].concat()).await);
    assert_eq!(dry, "4 messages would be put back into queue celery\n");
    let unsaid = umbel(&url, &replay).await;
    assert!(unsaid.code == 2 && unsaid.err.contains("--all"), "{}", unsaid.err);
    let none = umbel(&url, &[&replay[..], &["--id", "nobody"]].concat()).await;
    assert_eq!(
        (none.code, none.out.as_str()),
        (1, "0 messages put back into queue celery\n")
    );
    assert_eq!(redis.xlen::<_, u64>(key).await.unwrap(), 4);
    let one = value(umbel(&url, &[&replay[..], &["--id", "m1", "-o", "json"]].concat()).await);
    assert_eq!((&one["replayed"], &one["ids"]), (&json!(1), &json!(["m1"])));
    assert!(
        !redis.hexists::<_, _, bool>("umbel:att", "m1").await.unwrap(),
        "attempts begin anew"
    );
    // An entry's own id does as well.
    let entry = all.iter().find(|one| one["id"] == "r1").unwrap()["entry"]
        .as_str()
        .unwrap();
    let names = good(umbel(&url, &[&replay[..], &["--id", entry, "-o", "name"]].concat()).await);
    assert_eq!(names, "task/r1\n");
    let waiting: Vec<Vec<u8>> = redis.lrange("celery", 0, -1).await.unwrap();
    assert_eq!(
        waiting,
        [bytes("r1"), bytes("m1")],
        "byte for byte, at the end of the line"
    );
    let removed = good(
        umbel(
            &url,
            &["queue", "dead", "purge", "celery", "--reason", "TypeError", "--yes"],
        )
        .await,
    );
    assert_eq!(removed, "1 messages removed from queue celery\n");
    assert_eq!(redis.xlen::<_, u64>(key).await.unwrap(), 1);
    good(umbel(&url, &["queue", "dead", "purge", "celery", "--all", "--yes"]).await);
    let counted: bool = redis.hexists("umbel:aside", "dead:celery").await.unwrap();
    assert!(!counted, "the bytes of nothing are not kept");

    // A list that holds another type refuses, and the message stays.
    let () = redis.set("odd", "x").await.unwrap();
    let () = redis
        .xadd("umbel:dead:odd", "*", &[("list", "odd"), ("raw", "{}"), ("id", "o")])
        .await
        .unwrap();
    let odd = umbel(&url, &["queue", "dead", "replay", "odd", "--all"]).await;
    assert!(
        odd.code == 1 && odd.err.contains("key odd holds another type"),
        "{}",
        odd.err
    );
    assert_eq!(redis.xlen::<_, u64>("umbel:dead:odd").await.unwrap(), 1);
}

#[tokio::test]
async fn replays_at_the_same_time_put_each_message_back_once() {
    let server = Redis::start().await;
    let url = server.url();
    let mut redis = server.connection().await;
    for batch in 0..10 {
        let mut pipe = redis::pipe();
        for n in 0..300 {
            let raw = format!("{{\"n\": {}}}", batch * 300 + n);
            pipe.xadd("umbel:dead:q", "*", &[("list", "q"), ("raw", &raw), ("id", &raw)])
                .ignore();
        }
        let () = pipe.query_async(&mut redis).await.unwrap();
    }
    let replay = ["queue", "dead", "replay", "q", "--all", "-o", "json"];
    let (one, other, third) = tokio::join!(umbel(&url, &replay), umbel(&url, &replay), umbel(&url, &replay));
    let counts: u64 = [one, other, third]
        .map(|done| value(done)["replayed"].as_u64().unwrap())
        .iter()
        .sum();
    let mut there: Vec<String> = redis.lrange("q", 0, -1).await.unwrap();
    there.sort();
    there.dedup();
    assert_eq!(
        (counts, there.len(), redis.llen::<_, usize>("q").await.unwrap()),
        (3000, 3000, 3000)
    );
    assert_eq!(redis.xlen::<_, u64>("umbel:dead:q").await.unwrap(), 0);

    // At a rate, and what is interrupted has done what it says.
    let mut pipe = redis::pipe();
    for n in 0..200 {
        pipe.xadd(
            "umbel:quarantine:slow",
            "*",
            &[("list", "slow"), ("raw", &n.to_string())],
        )
        .ignore();
    }
    let () = pipe.query_async(&mut redis).await.unwrap();
    let slow = [
        "queue",
        "quarantine",
        "replay",
        "slow",
        "--all",
        "--rate",
        "20",
        "-o",
        "json",
    ];
    let child = command(&url, &slow).spawn().unwrap();
    eventually(SOON, "some are back", async || {
        redis.llen::<_, u64>("slow").await.unwrap() >= 4
    })
    .await;
    umbel_testkit::send_signal(child.id().unwrap(), umbel_testkit::Signal::Int);
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(
        output.status.code(),
        Some(130),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let back = redis.llen::<_, u64>("slow").await.unwrap();
    assert_eq!((said["replayed"].as_u64().unwrap(), back < 150), (back, true), "{said}");
    assert_eq!(redis.xlen::<_, u64>("umbel:quarantine:slow").await.unwrap() + back, 200);
}

#[tokio::test]
async fn what_could_not_be_read_is_put_back_for_a_worker_that_can() {
    let server = Redis::start().await;
    let url = server.url();
    let id = send(&url, &["--serializer", "msgpack", "--args", "[7]"]).await;
    let worker = umbel_worker(&server, &SHORT);
    until_state(&url, &id, "FAILURE").await;
    let listed = items(umbel(&url, &["queue", "quarantine", "ls", "celery", "-o", "json"]).await);
    assert_eq!(texts(&listed, "id"), [id.as_str()]);
    assert!(listed[0]["reason"].as_str().unwrap().contains("msgpack"), "{listed:?}");
    drop(worker);
    let _worker = umbel_worker(&server, &["--accept", "json,msgpack"]);
    good(umbel(&url, &["queue", "quarantine", "replay", "celery", "--all"]).await);
    until_state(&url, &id, "SUCCESS").await;
}

#[tokio::test]
async fn failed_tasks_are_retried_by_their_ids() {
    let server = Redis::start().await;
    let url = server.url();
    buried(&url, &server).await;
    let dry = items(umbel(&url, &["task", "retry", "s1", "--dry-run", "-o", "json"]).await);
    assert_eq!(dry[0]["state"], "would be put back");
    let done = umbel(&url, &["task", "retry", "r1", "nobody", "-o", "json"]).await;
    assert_eq!(done.code, 1);
    assert!(
        done.err.contains("task nobody is not among the dead letters of celery"),
        "{}",
        done.err
    );
    let rows: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(
        (&rows["items"][0]["state"], &rows["items"][0]["queue"]),
        (&json!("put back"), &json!("celery"))
    );
    assert_eq!(rows["items"][1]["state"], "not found");
    let waiting = items(umbel(&url, &["queue", "peek", "celery", "--args", "-o", "json"]).await);
    assert_eq!(
        (texts(&waiting, "id"), texts(&waiting, "args")),
        (vec!["r1".to_owned()], vec!["['canary', inf]".to_owned()])
    );
    // Named or not, the queue is found; another one has it not.
    good(umbel(&url, &["task", "retry", "m1", "--queue", "celery"]).await);
    assert_eq!(umbel(&url, &["task", "retry", "m2", "--queue", "other"]).await.code, 1);
    assert_eq!(depth(&url, "celery").await["dead"], 2);
}

#[tokio::test]
async fn a_cancelled_task_ends_wherever_it_is() {
    let server = Redis::start().await;
    let url = server.url();
    let mut redis = server.connection().await;
    let cancel = |ids: &[&str], more: &[&str]| {
        let args: Vec<String> = ["task", "cancel", "-o", "json"]
            .iter()
            .chain(ids)
            .chain(more)
            .map(|&arg| arg.to_owned())
            .collect();
        let url = url.clone();
        async move { umbel(&url, &args.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    // Nobody is there to hear it: the next worker knows.
    let waiting = send(&url, &[]).await;
    let told = items(cancel(&[&waiting], &[]).await);
    assert_eq!(
        (&told[0]["state"], &told[0]["note"]),
        (
            &json!("PENDING"),
            &json!("no worker listens: dropped when one takes it")
        )
    );

    let _worker = umbel_worker(&server, &SHORT);
    until_state(&url, &waiting, "REVOKED").await;
    let again = items(cancel(&[&waiting], &[]).await);
    assert_eq!(again[0]["note"], "had ended before");

    // Delayed for a month: it is remembered for longer than that.
    let far = send(&url, &["--countdown", "720h"]).await;
    eventually(SOON, "it is parked", async || {
        redis.zcard::<_, u64>("umbel:delayed:celery").await.unwrap() == 1
    })
    .await;
    let cancelled = items(cancel(&[&far], &[]).await);
    assert_eq!(
        (&cancelled[0]["state"], &cancelled[0]["note"]),
        (&json!("REVOKED"), &json!("cancelled"))
    );
    let until: f64 = redis.zscore("umbel:revoked", &far).await.unwrap();
    let due: Vec<(Vec<u8>, f64)> = redis.zrange_withscores("umbel:delayed:celery", 0, 0).await.unwrap();
    assert!(until > due[0].1 + 3600.0, "{until}");

    let slow = good(umbel(&url, &["task", "send", "umbel.sleep", "--args", "[60]"]).await);
    let slow = slow.trim();
    let has_begun = async || {
        let beats: Vec<String> = redis.clone().keys("umbel:hb:worker:*").await.unwrap();
        let beat: String = redis.clone().get(&beats[0]).await.unwrap();
        beat.contains(slow)
    };
    eventually(SOON, "it is known to run", has_begun).await;
    let dry = items(cancel(&[slow], &["--dry-run"]).await);
    assert!(
        dry[0]["note"].as_str().unwrap().starts_with("runs on umbel@"),
        "{dry:?}"
    );
    let runs_on = cancel(&[slow], &[]).await;
    assert_eq!(runs_on.code, 1);
    assert!(runs_on.out.contains("--terminate stops it"), "{}", runs_on.out);
    let stopped = items(cancel(&[slow], &["--terminate"]).await);
    assert_eq!(
        (&stopped[0]["state"], &stopped[0]["note"]),
        (&json!("REVOKED"), &json!("cancelled"))
    );
}

#[tokio::test]
async fn signed_messages_are_sent_to_workers_that_accept_nothing_else() {
    let server = Redis::start().await;
    let url = server.url();
    let (known, unknown) = (Signer::new("known"), Signer::new("unknown"));
    let text = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    let trusted = text(known.trusted());
    let flags = [
        "--accept",
        "auth",
        "--security-certificates",
        &trusted,
        "--security-digest",
        "sha512",
    ];
    let _worker = umbel_worker(&server, &flags);
    let signed = |signer: &Signer| -> Vec<String> {
        let (key, certificate) = (text(signer.key()), text(signer.certificate()));
        [
            "--serializer",
            "auth",
            "--security-key",
            &key,
            "--security-certificate",
            &certificate,
            "--security-digest",
            "sha512",
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let send = async |more: &[String]| {
        let flags = ["task", "send", "umbel.echo", "--args", "[1]", "--wait"].map(str::to_owned);
        let all: Vec<&str> = flags.iter().chain(more).map(String::as_str).collect();
        umbel(&url, &all).await
    };
    assert_eq!(value(send(&signed(&known)).await), json!({"args": [1], "kwargs": {}}));
    let mut gz = signed(&known);
    gz.extend(["--compression".to_owned(), "zlib".to_owned()]);
    good(send(&gz).await);
    for refused in [send(&signed(&unknown)).await, send(&[]).await] {
        assert_eq!(refused.code, 1);
        assert!(refused.err.contains("ended as FAILURE: DecodeError"), "{}", refused.err);
    }
    // A workflow's later steps are signed by the worker, if it has a key: here the group is signed by us.
    let canvas: Vec<String> = ["task", "canvas", "-", "--wait"]
        .map(str::to_owned)
        .into_iter()
        .chain(signed(&known))
        .collect();
    let canvas: Vec<&str> = canvas.iter().map(String::as_str).collect();
    let ran = umbel_with(
        &url,
        &canvas,
        r#"{"group": [{"task": "umbel.echo", "args": [1]}, "umbel.echo"]}"#,
    )
    .await;
    assert_eq!(
        value(ran),
        json!([{"args": [1], "kwargs": {}}, {"args": [], "kwargs": {}}])
    );

    let key = text(known.key());
    for (flags, words) in [
        (vec!["--serializer", "auth"], "needs --security-key"),
        (vec!["--security-key", &key], "--security-certificate"),
        (vec!["--security-digest", "md5"], "md5"),
        (
            vec![
                "--serializer",
                "auth",
                "--security-key",
                "/nonexistent",
                "--security-certificate",
                &key,
            ],
            "/nonexistent",
        ),
        (
            vec![
                "--serializer",
                "auth",
                "--security-key",
                &key,
                "--security-certificate",
                &key,
            ],
            "--security-key",
        ),
    ] {
        let flags: Vec<String> = flags.into_iter().map(str::to_owned).collect();
        let done = send(&flags).await;
        assert_eq!(done.code, 2, "{flags:?}: {}", done.err);
        assert!(done.err.contains(words), "{flags:?}: {}", done.err);
    }
}

#[tokio::test]
async fn on_a_terminal_somebody_is_asked_and_sees_progress() {
    let server = Redis::start().await;
    let url = server.url();
    let mut redis = server.connection().await;
    let on_terminal = async |answer: &str, batch: usize| {
        let messages: Vec<String> = (0..batch).map(|n| n.to_string()).collect();
        for messages in messages.chunks(1000) {
            let () = redis.clone().lpush("q", messages).await.unwrap();
        }
        let line = format!("{} queue purge q --redis-url {url}", env!("CARGO_BIN_EXE_umbel"));
        let mut child = tokio::process::Command::new("script")
            .args(["-qefc", &line, "/dev/null"])
            .env("HOME", "/nonexistent")
            .env("TERM", "xterm")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stdin, answer.as_bytes())
            .await
            .unwrap();
        let output = child.wait_with_output().await.unwrap();
        drop(stdin);
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let (code, shown) = on_terminal("n\n", 3).await;
    assert_eq!(code, Some(1), "{shown}");
    assert!(
        shown.contains("Remove 3 messages from q, for good? [y/N]") && shown.contains("nothing was done"),
        "{shown}"
    );
    let (code, shown) = on_terminal("y\n", 60_000).await;
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("/60003 removed"), "{shown}");
    assert_eq!(redis.llen::<_, u64>("q").await.unwrap(), 0);
}

#[tokio::test]
async fn r24_a_queue_may_vanish_while_its_tasks_run() {
    let server = Redis::start().await;
    let url = server.url();
    let mut redis = server.connection().await;
    let _worker = umbel_worker(&server, &[&SHORT[..], &["--concurrency", "2"]].concat());
    let mut running = Vec::new();
    for round in 0..2 {
        let id = good(umbel(&url, &["task", "send", "umbel.sleep", "--args", "[1]"]).await);
        running.push(id.trim().to_owned());
        eventually(SOON, "it runs", async || {
            redis.clone().zcard::<_, usize>("umbel:lease").await.unwrap() == round + 1
        })
        .await;
    }
    good(umbel(&url, &["task", "send", "umbel.echo", "--count", "50"]).await);
    let () = redis.del("celery").await.unwrap();
    assert_eq!(
        (
            &depth(&url, "celery").await["waiting"],
            &depth(&url, "celery").await["inFlight"]
        ),
        (&json!(0), &json!(2))
    );
    for id in &running {
        good(umbel(&url, &["task", "get", id, "--wait"]).await);
    }
    eventually(SOON, "nothing is held", async || {
        depth(&url, "celery").await["inFlight"] == 0
    })
    .await;
    let held: std::collections::HashMap<String, i64> = redis.hgetall("umbel:held").await.unwrap();
    assert!(held.values().all(|count| *count == 0), "{held:?}");
}

#[tokio::test]
async fn an_address_may_stand_in_a_file_and_a_certificate_is_not_waived() {
    let server = Redis::start().await;
    let folder = umbel_testkit::TempDir::new("address");
    let file = folder.path().join("url");
    std::fs::write(&file, format!("{}\n", server.url())).unwrap();
    let run = async |flags: &[&str]| {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_umbel"))
            .args(["queue", "ls", "q", "-o", "json"])
            .args(flags)
            .env_remove("UMBEL_REDIS_URL")
            .env_remove("UMBEL_REDIS_URL_FILE")
            .env("HOME", "/nonexistent")
            .output()
            .await
            .unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, err) = run(&["--redis-url-file", file.to_str().unwrap()]).await;
    assert_eq!(code, 0, "{err}");
    let (code, err) = run(&["--redis-url-file", "/nonexistent/url"]).await;
    assert!(
        code == 1 && err.contains("/nonexistent/url: No such file"),
        "{code}: {err}"
    );
    // A server that speaks no TLS is refused, not asked in the clear.
    let (code, err) = run(&["--redis-url", &server.url().replace("redis://", "rediss://")]).await;
    assert!(code == 1 && err.contains("connect to redis"), "{code}: {err}");
}
