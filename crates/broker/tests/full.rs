//! Queues that may hold so many messages and no more: refused where we are asked, moved to the dead letters where not.

#![allow(clippy::panic)] // Tests stop at what they did not expect.

use std::time::Duration;

use umbel_broker::{
    AsideFilter, AsideKind, Ask, Bound, Broker, Config, End, Error, Fate, FireAnswer, OnFull, Place, Policy,
    Publication, QueueLists, QueuePolicy, Relieved, Replicas, Reserved, Reserver, Settlement, Slot, SlotMessage, Turn,
    WorkerIdentity,
};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::redis::aio::MultiplexedConnection;
use umbel_testkit::{Redis, ServerKind, Signal, send_signal};

async fn parts(redis: &Redis) -> (Broker, MultiplexedConnection) {
    let broker = Broker::connect(&Config::new(&redis.url()))
        .await
        .expect("the server runs");
    (broker, redis.connection().await)
}

async fn bound(broker: &Broker, most: u64, on_full: OnFull) {
    let policy = QueuePolicy {
        bound: Some(Bound { most, on_full }),
        ..QueuePolicy::default()
    };
    assert!(
        broker
            .apply_queue_policy("q", &policy)
            .await
            .expect("the server answers")
    );
    let read = broker.queue_policy("q").await.expect("the server answers");
    assert_eq!(read, policy);
}

fn message(id: &str, headers: &str) -> Vec<u8> {
    format!(r#"{{"body": "W10=", "headers": {{"id": "{id}", "task": "t"{headers}}}, "properties": {{}}}}"#).into_bytes()
}

fn push(priority: i64, raw: &[u8]) -> Publication<'_> {
    Publication::Push {
        queue: "q",
        priority,
        raw,
        expires: None,
    }
}

async fn ids(connection: &mut MultiplexedConnection, list: &str) -> Vec<String> {
    let raws: Vec<String> = connection.lrange(list, 0, -1).await.expect("a list");
    let id = |raw: &String| {
        raw.split("\"id\": \"")
            .nth(1)
            .and_then(|rest| rest.split('"').next())
            .map(str::to_owned)
    };
    raws.iter().rev().filter_map(id).collect()
}

async fn dead(broker: &Broker) -> Vec<(String, String)> {
    let page = broker
        .aside(AsideKind::Dead, "q", AsideFilter::default(), 100)
        .await
        .expect("the server answers");
    page.entries.into_iter().map(|entry| (entry.id, entry.reason)).collect()
}

#[tokio::test]
async fn a_full_queue_refuses_what_it_has_no_room_for() {
    let redis = Redis::start().await;
    let (broker, mut connection) = parts(&redis).await;
    bound(&broker, 3, OnFull::Refuse).await;
    let raws: Vec<Vec<u8>> = (0..6).map(|at| message(&at.to_string(), "")).collect();
    // Two lists of one queue, and one with its own life: they count together.
    let mut sent = vec![push(0, &raws[0]), push(9, &raws[1])];
    sent.push(Publication::Push {
        queue: "q",
        priority: 0,
        raw: &raws[2],
        expires: Some(Duration::from_secs(600)),
    });
    sent.extend([push(0, &raws[3]), push(0, &raws[4])]);
    sent.push(Publication::Push {
        queue: "other",
        priority: 0,
        raw: &raws[5],
        expires: None,
    });
    let refused = broker
        .publish_all(&sent, None)
        .await
        .expect_err("there is room for three");
    let (yes, no) = (Fate::Sent, Fate::NotSent);
    assert_eq!(refused.fates, [yes, yes, yes, no, no, yes]);
    assert!(
        matches!(&refused.error, Error::QueueFull { queue, most: 3 } if queue == "q"),
        "{}",
        refused.error
    );
    assert!(!refused.error.may_have_happened());
    assert_eq!(ids(&mut connection, "q").await, ["0", "2"]);
    let lives: i64 = connection.ttl("q").await.expect("answered");
    assert!(lives > 500, "its expiry was set: {lives}");
    let unique = broker
        .publish_unique("q", 0, &raws[3], ("key", "3", Duration::from_secs(60)))
        .await;
    assert!(matches!(unique, Err(Error::QueueFull { most: 3, .. })), "{unique:?}");
    let taken: bool = connection.exists("umbel:unique:key").await.expect("answered");
    assert!(!taken, "who was refused has no key");

    // Room for one: of a batch the first goes through.
    let _: () = connection.rpop("q", None).await.expect("taken");
    let refused = broker.publish_all(&[push(0, &raws[3]), push(0, &raws[4])], None).await;
    assert_eq!(refused.expect_err("there is room for one").fates, [yes, no]);
    assert_eq!(ids(&mut connection, "q").await, ["2", "3"]);
}

#[tokio::test]
async fn what_others_send_beyond_the_bound_goes_to_the_dead_letters() {
    let redis = Redis::start().await;
    let (broker, mut connection) = parts(&redis).await;
    bound(&broker, 3, OnFull::Refuse).await;
    let member = r#", "umbel_run": "r", "umbel_unique": {"key": "k", "until": "done"}"#;
    let mut raws: Vec<Vec<u8>> = (0..5).map(|at| message(&at.to_string(), "")).collect();
    raws[4] = message("4", member);
    broker.publish("q", 0, &raws).await.expect("as Celery sends");
    broker
        .publish("q", 9, &[message("late", "")])
        .await
        .expect("as Celery sends");
    let _: () = connection.hset("umbel:run:r", "i:4", "").await.expect("set");
    let _: () = connection.set("umbel:unique:k", "4").await.expect("set");
    let moved = broker.relieve(&["q", "other"], None).await.expect("the server answers");
    assert_eq!(moved, [Relieved { moved: 3, beyond: 0 }, Relieved::default()]);
    assert_eq!(ids(&mut connection, "q").await, ["0", "1", "2"], "the newest went");
    let letters = dead(&broker).await;
    let of: Vec<&str> = letters.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(of, ["late", "3", "4"], "the least urgent first, then as they came");
    assert!(
        letters[0].1.contains("the queue was full: 6 waited, 3 may"),
        "{letters:?}"
    );
    let failed: Option<u64> = connection.hget("umbel:run:r", "failed").await.expect("read");
    let taken: bool = connection.exists("umbel:unique:k").await.expect("answered");
    assert_eq!((failed, taken), (Some(1), false), "its run is told, its key is free");
    let sample = broker.depths(&["q".to_owned()]).await.expect("the server answers");
    let depth = sample.queues[0].as_ref().expect("readable");
    let now = sample.taken_at_ms as f64 / 1000.0;
    assert!(depth.died_at.is_some_and(|died| now - died < 60.0), "{depth:?}");

    bound(&broker, 2, OnFull::DropOldest).await;
    let last = message("5", "");
    broker
        .publish_all(&[push(0, &last)], None)
        .await
        .expect("nobody is refused");
    let moved = broker.relieve(&["q"], None).await.expect("the server answers");
    assert_eq!(moved, [Relieved { moved: 2, beyond: 0 }]);
    assert_eq!(ids(&mut connection, "q").await, ["2", "5"], "the oldest went");

    // Far too much goes in parts.
    let many: Vec<Vec<u8>> = (0..3000)
        .map(|at| [&message(&at.to_string(), "")[..], &[b' '; 300]].concat())
        .collect();
    broker.publish("q", 0, &many).await.expect("as Celery sends");
    let first = broker.relieve(&["q"], None).await.expect("the server answers")[0];
    assert!(first.moved > 100 && first.beyond > 100, "{first:?}");
    while broker.relieve(&["q"], None).await.expect("the server answers")[0].beyond > 0 {}
    assert_eq!(connection.llen("q").await, Ok(2));
    assert_eq!(connection.xlen("umbel:dead:q").await, Ok(3005), "nothing is lost");
}

#[tokio::test]
async fn a_slot_waits_for_room_and_leaves_out_what_has_its_unique_key() {
    let redis = Redis::start().await;
    let (broker, mut connection) = parts(&redis).await;
    broker.claim_term("i", 1, "one").await.expect("the server answers");
    let slot = |at_ms| Slot {
        install: "i".into(),
        term: 1,
        uid: "schedule".into(),
        at_ms,
        generation: 1,
        run: Some("run".into()),
        counts: (0, 0),
        plan: None,
    };
    let messages = |ids: &[&str]| -> Vec<SlotMessage> {
        let of = |id: &&str| SlotMessage {
            queue: "q".into(),
            priority: 0,
            id: (*id).into(),
            raw: message(id, ""),
            unique: Some((format!("key-{}", &id[..1]), Duration::from_secs(60))),
        };
        ids.iter().map(of).collect()
    };
    bound(&broker, 1, OnFull::Refuse).await;
    let full = broker
        .fire(&slot(1000), &messages(&["a1", "b1"]))
        .await
        .expect("answered");
    assert_eq!(
        full,
        FireAnswer::Full {
            queue: "q".into(),
            most: 1
        }
    );
    assert_eq!(connection.llen("q").await, Ok(0), "a slot is one thing");
    assert_eq!(broker.last_slot("i", "schedule").await.expect("answered"), None);
    bound(&broker, 10, OnFull::Refuse).await;
    let fired = broker
        .fire(&slot(1000), &messages(&["a1", "b1"]))
        .await
        .expect("answered");
    assert_eq!(fired, FireAnswer::Fired { left_out: 0 });
    assert!(broker.release_unique("key-a", "a1").await.expect("answered"));
    let fired = broker
        .fire(&slot(2000), &messages(&["a2", "b2"]))
        .await
        .expect("answered");
    assert_eq!(fired, FireAnswer::Fired { left_out: 1 });
    assert_eq!(ids(&mut connection, "q").await, ["a1", "b1", "a2"]);
    let last = broker
        .last_slot("i", "schedule")
        .await
        .expect("answered")
        .expect("a slot");
    assert_eq!((last.at_ms, last.ids), (2000, vec!["a2".to_owned()]));
    let kept: i64 = connection.ttl("umbel:unique:key-a").await.expect("answered");
    assert!((1..=60).contains(&kept), "{kept}");
}

fn reserver(redis: &Redis, policy: Policy) -> Reserver {
    let identity = WorkerIdentity {
        worker: "w".into(),
        install: String::new(),
        is_standalone: true,
    };
    let lease = Duration::from_mins(1);
    Reserver::new(
        Config::new(&redis.url()),
        identity,
        vec![("q".into(), policy)],
        lease,
        1000,
    )
}

async fn take(reserver: &mut Reserver, broker: &Broker, count: usize) -> Vec<umbel_broker::Taken> {
    match reserver
        .reserve(count, &[QueueLists::new(broker.keys(), "q")], Vec::new)
        .await
    {
        Ok(Reserved::Batch(batch)) => batch.taken,
        other => panic!("a standalone worker's gate is open: {other:?}"),
    }
}

fn end(lid: &std::sync::Arc<str>, end: End) -> Settlement {
    Settlement {
        lid: std::sync::Arc::clone(lid),
        id: "id".into(),
        task: "t".into(),
        end,
        result: None,
        run: None,
        outcome: "failed",
        follow_ups: Vec::new(),
    }
}

#[tokio::test]
async fn a_queue_without_dead_letters_counts_what_it_loses() {
    let redis = Redis::start().await;
    let (broker, mut connection) = parts(&redis).await;
    let _: String = connection
        .xadd("umbel:dead:q", "*", &[("raw", "old")])
        .await
        .expect("added");
    let policy = Policy {
        dead_kept: 0,
        ..Policy::default()
    };
    broker
        .publish("q", 0, &[message("1", ""), message("2", ""), vec![b'x'; 2000]])
        .await
        .expect("published");
    let taken = take(&mut reserver(&redis, policy), &broker, 3).await;
    assert_eq!(taken.len(), 2, "the third is too large");
    let bury = End::Bury {
        reason: "failed".into(),
    };
    let quarantine = End::Quarantine {
        reason: "unreadable".into(),
    };
    let ends = [end(&taken[0].lid, bury), end(&taken[1].lid, quarantine)];
    assert!(broker.settle(0, &ends).await.expect("the server answers").is_empty());
    broker.trim_aside(&["q"]).await.expect("the server answers");
    assert_eq!(connection.xlen("umbel:dead:q").await, Ok(1), "what was there stays");
    assert_eq!(
        connection.xlen("umbel:quarantine:q").await,
        Ok(2),
        "nobody knows what it was"
    );
    let evicted = broker.evicted().await.expect("the server answers");
    let told: Vec<_> = evicted
        .iter()
        .map(|one| (one.kind.as_str(), one.cause.as_str(), one.messages))
        .collect();
    assert_eq!(told, [("dead", "disabled", 1)]);
}

async fn ask(broker: &Broker, taken: &[umbel_broker::Taken], ids: &[&str]) -> Vec<Turn> {
    let asks: Vec<Ask> = taken
        .iter()
        .zip(ids)
        .map(|(taken, id)| Ask {
            lid: std::sync::Arc::clone(&taken.lid),
            id: (*id).into(),
            once: None,
            key: Some(("k".into(), 1)),
            rate: None,
        })
        .collect();
    broker.turns(&asks).await.expect("the server answers")
}

/// Three messages of one key: the first has run, the second is called, the third waits.
async fn called(redis: &Redis, broker: &Broker, connection: &mut MultiplexedConnection) {
    let raws: Vec<Vec<u8>> = ["1", "2", "3"].map(|id| message(id, "")).to_vec();
    broker.publish("q", 0, &raws).await.expect("published");
    let taken = take(&mut reserver(redis, Policy::default()), broker, 3).await;
    let turns = ask(broker, &taken, &["1", "2", "3"]).await;
    assert!(
        matches!(turns[..], [Turn::Go(_), Turn::Parked(_), Turn::Parked(_)]),
        "{turns:?}"
    );
    let lost = broker.settle(10, &[end(&taken[0].lid, End::Ack)]).await;
    assert!(lost.expect("the server answers").is_empty());
    assert_eq!(ids(connection, "q").await, ["2"], "it is its turn");
}

#[tokio::test]
async fn purge_passes_the_turn_at_a_concurrency_key_on() {
    let redis = Redis::start().await;
    let (broker, mut connection) = parts(&redis).await;
    called(&redis, &broker, &mut connection).await;
    let purged = broker.purge("q", Place::Waiting, 1).await.expect("the server answers");
    assert_eq!(purged.messages, 1);
    assert_eq!(
        ids(&mut connection, "q").await,
        ["3"],
        "at once, and it was not purged itself"
    );
}

#[tokio::test]
async fn a_turn_from_before_the_clock_went_back_is_kept_for_nobody() {
    let redis = Redis::with_clock(&[]).await;
    let (broker, mut connection) = parts(&redis).await;
    redis.set_clock(3600);
    called(&redis, &broker, &mut connection).await;
    // Gone by hand: only time ends its turn, and that went back.
    let _: () = connection.del("q").await.expect("deleted");
    redis.set_clock(0);
    broker.publish("q", 0, &[message("4", "")]).await.expect("published");
    let taken = take(&mut reserver(&redis, Policy::default()), &broker, 1).await;
    let turns = ask(&broker, &taken, &["4"]).await;
    assert!(matches!(turns[..], [Turn::Parked(_)]), "{turns:?}");
    assert_eq!(ids(&mut connection, "q").await, ["3"], "it has waited for longer");
}

#[tokio::test]
async fn the_disk_is_waited_for_where_the_server_can() {
    let settings = [
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
        "--min-replicas-to-write",
        "1",
    ];
    let primary = Redis::start_kind(ServerKind::Valkey, &settings).await;
    let port = primary.port().to_string();
    let replica = Redis::start_kind(
        ServerKind::Valkey,
        &[
            "--replicaof",
            "127.0.0.1",
            &port,
            "--appendonly",
            "yes",
            "--repl-diskless-sync-delay",
            "0",
        ],
    )
    .await;
    let (broker, _) = parts(&primary).await;
    let wanted = Replicas {
        count: 1,
        patience: Duration::from_secs(1),
        is_on_disk: true,
    };
    let raw = message("1", "");
    umbel_testkit::eventually(Duration::from_secs(30), "both have it on disk", async || {
        broker.publish_all(&[push(0, &raw)], Some(wanted)).await.is_ok()
    })
    .await;
    broker.confirmed(wanted).await.expect("both have it on disk");
    let survey = broker.survey().await.expect("the server answers");
    assert!(survey.can_wait_for_disk && survey.durability == Some(umbel_broker::Durability::Strict));

    send_signal(replica.pid(), Signal::Stop);
    let missed = broker
        .publish_all(&[push(0, &raw)], Some(wanted))
        .await
        .expect_err("the replica is silent");
    assert_eq!(missed.fates, [Fate::Sent]);
    assert!(
        matches!(missed.error, Error::Replicas { wanted: 1, have: 0 }),
        "{}",
        missed.error
    );
    send_signal(replica.pid(), Signal::Cont);
    umbel_testkit::eventually(Duration::from_secs(30), "and again", async || {
        broker.confirmed(wanted).await.is_ok()
    })
    .await;

    // Without an append-only file the server says that there is nothing to wait for.
    let server = Redis::start_kind(ServerKind::Valkey, &[]).await;
    let (plain, _) = parts(&server).await;
    let nowhere = Replicas { count: 0, ..wanted };
    assert!(matches!(
        plain.confirmed(nowhere).await,
        Err(Error::Call { call: "WAITAOF", .. })
    ));
}
