//! Recovery when something is in its way: keys of another type, a restart that nobody noticed, a clock that went back.

#![allow(clippy::panic)] // Tests stop at what they did not expect.

use std::time::Duration;

use umbel_broker::{
    Admission, Broker, Config, End, FollowUp, Policy, QueueLists, Reclaim, Reserved, Reserver, Settlement, SweepAnswer,
    Sweeper, WorkerIdentity,
};
use umbel_protocol::control::Answered;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::redis::aio::MultiplexedConnection;
use umbel_testkit::{Redis, eventually, eventually_some};

const SOON: Duration = Duration::from_secs(20);
const LARGEST: usize = 100;

fn reserver(redis: &Redis, worker: &str, lease: Duration) -> Reserver {
    let identity = WorkerIdentity {
        worker: worker.into(),
        install: String::new(),
        is_standalone: true,
    };
    Reserver::new(
        Config::new(&redis.url()),
        identity,
        vec![("q".into(), Policy::default())],
        lease,
        LARGEST,
    )
}

fn queues(broker: &Broker, names: &[&str]) -> Vec<QueueLists> {
    names.iter().map(|name| QueueLists::new(broker.keys(), name)).collect()
}

async fn take(reserver: &mut Reserver, count: usize, queues: &[QueueLists]) -> umbel_broker::Batch {
    match reserver
        .reserve(count, queues, Vec::new)
        .await
        .expect("the server answers")
    {
        Reserved::Batch(batch) => batch,
        other => panic!("not admitted: {other:?}"),
    }
}

async fn parts(redis: &Redis) -> (Broker, MultiplexedConnection) {
    (
        Broker::connect(&Config::new(&redis.url()))
            .await
            .expect("the server runs"),
        redis.connection().await,
    )
}

fn overdue(lid: &str) -> Reclaim {
    Reclaim {
        lid: lid.into(),
        counted_as: lid.into(),
        is_served: true,
    }
}

#[tokio::test]
async fn a_restart_that_one_sweeper_missed_does_not_keep_the_grace_up() {
    let mut redis = Redis::durable().await;
    let (first, _) = parts(&redis).await;
    first.publish("q", 0, &[b"m".to_vec()]).await.expect("published");
    let lease = Duration::from_millis(300);
    take(&mut reserver(&redis, "w", lease), 1, &queues(&first, &["q"])).await;
    let mut one = Sweeper::new(lease, Duration::ZERO, Duration::ZERO);
    let mut two = Sweeper::new(lease, Duration::ZERO, Duration::ZERO);
    one.sweep(&first, 10, false).await.expect("swept");
    redis.kill();
    redis.start_again().await;
    // Another call of the same process notices, and connects again.
    eventually(SOON, "the first is connected again", async || {
        first.time().await.is_ok()
    })
    .await;
    let (second, _) = parts(&redis).await;
    eventually(SOON, "the lease is found", async || {
        let mut is_found = false;
        for (sweeper, broker) in [(&mut two, &second), (&mut one, &first)] {
            let answer = sweeper.sweep(broker, 10, false).await;
            is_found |= matches!(answer, Ok(SweepAnswer::Overdue(found)) if found.len() == 1);
        }
        is_found
    })
    .await;
}

#[tokio::test]
async fn a_sweeper_that_dies_with_what_it_was_given_leaves_it_to_the_next() {
    let redis = Redis::start().await;
    let (broker, mut raw) = parts(&redis).await;
    broker.publish("q", 0, &[b"m".to_vec()]).await.expect("published");
    let moment = Duration::from_millis(1);
    let mut worker = reserver(&redis, "w", moment);
    let taken = take(&mut worker, 1, &queues(&broker, &["q"])).await.taken.remove(0);
    // It has killed two workers before.
    let _: () = raw.hset("umbel:att", "m", 2).await.expect("set");
    let mut held = taken.lid.to_string();
    for _ in 0..3 {
        let given = eventually_some(SOON, "the lease is overdue", async || {
            let asked = Reclaim {
                lid: held.clone(),
                counted_as: "m".into(),
                is_served: true,
            };
            let mut done = broker.reclaim(moment, &[asked]).await.expect("reclaimed");
            done.given_up.pop()
        })
        .await;
        assert_eq!(
            (given.at, given.deaths),
            (0, 3),
            "a sweeper's death is not the message's"
        );
        assert_eq!(raw.hget("umbel:held", "q:q").await, Ok(1));
        assert_eq!(raw.hget("umbel:held", "w:w").await, Ok(0), "no worker is held up by it");
        // Not named at the next hello, and not handed back to be run once more.
        worker.forget();
        worker.ensure(Vec::new).await.expect("hello");
        assert_eq!(raw.llen("q").await, Ok(0));
        held = given.lid.to_string();
    }
    let bury = |lid: &str| Settlement {
        end: End::Bury { reason: "why".into() },
        ..end(&lid.into(), Vec::new())
    };
    let stale = broker.settle(10, &[bury(&taken.lid)]).await.expect("settled");
    assert_eq!(stale.len(), 1, "who held it before can no longer end it");
    for lost in [0, 1] {
        assert_eq!(broker.settle(10, &[bury(&held)]).await.expect("settled").len(), lost);
    }
    assert_eq!(raw.xlen("umbel:dead:q").await, Ok(1), "one dead letter");
    assert_eq!(raw.hexists("umbel:att", "m").await, Ok(false));
}

#[tokio::test]
async fn what_is_given_up_is_left_to_who_serves_its_queue_for_a_lease() {
    let redis = Redis::start().await;
    let (broker, mut raw) = parts(&redis).await;
    let (moment, lease) = (Duration::from_millis(1), Duration::from_secs(1));
    broker.publish("q", 0, &[b"m".to_vec()]).await.expect("published");
    let _: () = raw.hset("umbel:att", "m", 2).await.expect("set");
    let taken = take(&mut reserver(&redis, "w", moment), 1, &queues(&broker, &["q"]))
        .await
        .taken;
    let asked = |is_served| Reclaim {
        lid: taken[0].lid.to_string(),
        counted_as: "m".into(),
        is_served,
    };
    let mut others = Sweeper::new(lease, Duration::ZERO, SOON);
    let mut own = Sweeper::new(lease, Duration::ZERO, SOON);
    eventually(SOON, "the grace ends, and the lease is found", async || {
        let found = others.sweep(&broker, 10, true).await.expect("swept");
        matches!(found, SweepAnswer::Overdue(found) if found.len() == 1)
    })
    .await;
    let skipped = own.sweep(&broker, 10, false).await.expect("swept");
    assert!(
        matches!(skipped, SweepAnswer::Skipped),
        "another has just swept: {skipped:?}"
    );
    // Set back, as if it had run out just now.
    let now = broker.time().await.expect("time") as f64 / 1000.0;
    let _: () = raw.zadd("umbel:lease", &*taken[0].lid, now - 0.1).await.expect("set");
    let done = broker.reclaim(lease, &[asked(false)]).await.expect("reclaimed");
    assert_eq!(done, umbel_broker::Reclaimed::default(), "left");
    assert_eq!(raw.hget("umbel:att", "m").await, Ok(2), "and not counted");
    let found = own.sweep(&broker, 10, false).await.expect("swept");
    assert!(
        matches!(found, SweepAnswer::Overdue(_)),
        "its own come without a pause: {found:?}"
    );
    eventually(SOON, "nobody came for a lease", async || {
        let done = broker.reclaim(lease, &[asked(false)]).await.expect("reclaimed");
        done.given_up.len() == 1
    })
    .await;
}

#[tokio::test]
async fn an_extension_of_a_chord_counts_once_however_often_it_is_said() {
    let redis = Redis::start().await;
    let (broker, mut raw) = parts(&redis).await;
    let _: () = raw.set("text", "no list").await.expect("set");
    let extend = FollowUp::Extend {
        key: "chord.t".into(),
        ttl: 100,
        by: 1,
        once: "a name".into(),
    };
    // Redis refuses the member that the chord is to wait for: it does not wait for it either.
    let refused = broker.follow(&[extend.clone(), push("text")]).await;
    assert!(refused.is_err_and(|err| err.is_wrong_type()));
    assert_eq!(raw.get("chord.t").await, Ok(None::<i64>));
    // An answer that nobody heard: said again.
    for _ in 0..2 {
        broker.follow(std::slice::from_ref(&extend)).await.expect("followed");
    }
    assert_eq!(raw.get("chord.t").await, Ok(1));
    let ttl: i64 = raw.ttl("umbel:once:a name").await.expect("read");
    assert!(
        (1..=100).contains(&ttl),
        "and the memory of it goes with the chord: {ttl}"
    );
}

#[tokio::test]
async fn a_queue_of_another_type_holds_up_nobody_elses_recovery() {
    let redis = Redis::start().await;
    let (broker, mut raw) = parts(&redis).await;
    broker.publish("bad", 0, &[b"1".to_vec()]).await.expect("published");
    broker
        .publish("good", 0, &[b"2".to_vec(), b"3".to_vec()])
        .await
        .expect("published");
    let both = queues(&broker, &["bad", "good"]);
    let mut worker = reserver(&redis, "w", Duration::from_millis(1));
    let batch = take(&mut worker, 3, &both).await;
    assert_eq!(batch.taken.len(), 3);
    let _: () = raw.set("bad", "a string").await.expect("set");
    let lid = |index: usize| batch.taken[index].lid.to_string();
    let bad = batch
        .taken
        .iter()
        .position(|taken| &*taken.queue == "bad")
        .expect("one of it");
    let good = usize::from(bad == 0);

    // Swept by others: what can go back goes back, and the other one is out of the way of the next sweep.
    eventually(SOON, "the leases are overdue", async || {
        let done = broker
            .reclaim(SOON, &[overdue(&lid(bad)), overdue(&lid(good))])
            .await
            .expect("not refused as a whole");
        done.back == 1
    })
    .await;
    let score: f64 = raw.zscore("umbel:lease", lid(bad)).await.expect("still leased");
    assert!(
        score > broker.time().await.expect("time") as f64 / 1000.0 + 30.0,
        "put off"
    );
    let counted: Option<String> = raw.hget("umbel:att", lid(bad)).await.expect("read");
    assert_eq!(counted, None, "it has not died once more");

    // Named by nobody at the next hello: the worker gets its connection all the same.
    worker.forget();
    worker.ensure(Vec::new).await.expect("hello is not refused");
    assert_eq!(raw.llen::<_, usize>("good").await.expect("read"), 2);
    assert_eq!(raw.hlen::<_, usize>("umbel:unacked").await.expect("read"), 1);
}

#[tokio::test]
async fn without_a_quarantine_an_oversized_message_stays_and_its_neighbours_are_taken() {
    let redis = Redis::start().await;
    let (broker, mut raw) = parts(&redis).await;
    let _: () = raw.set("umbel:quarantine:q", "a string").await.expect("set");
    broker
        .publish("q", 0, &[b"small".to_vec(), vec![b'x'; LARGEST + 1]])
        .await
        .expect("published");
    let batch = take(&mut reserver(&redis, "w", SOON), 5, &queues(&broker, &["q"])).await;
    assert_eq!(
        batch.taken.iter().map(|taken| &taken.raw[..]).collect::<Vec<_>>(),
        [b"small"]
    );
    assert!(
        batch
            .faults
            .iter()
            .any(|(list, reason)| list == "q" && reason.contains("WRONGTYPE")),
        "{:?}",
        batch.faults
    );
    assert_eq!(raw.llen::<_, usize>("q").await.expect("read"), 1);
}

#[tokio::test]
async fn what_cannot_be_promoted_is_not_tried_again_at_once() {
    let redis = Redis::start().await;
    let (broker, mut raw) = parts(&redis).await;
    let _: () = raw.set("q", "a string").await.expect("set");
    let _: () = raw.zadd("umbel:delayed:q", "1:q1:tm", 1).await.expect("added");
    let promoted = broker.promote(10, &["q"]).await.expect("promoted");
    assert_eq!(promoted.moved, 0);
    assert!(
        promoted.due_in.is_some_and(|due_in| due_in > Duration::from_secs(3)),
        "{promoted:?}"
    );
}

#[tokio::test]
async fn a_batch_tells_the_servers_time_though_its_tokens_are_ahead() {
    let redis = Redis::start().await;
    let (broker, mut raw) = parts(&redis).await;
    let now = broker.time().await.expect("time");
    // An hour ahead, as after a clock that was wrong for a while.
    let _: () = raw.set("umbel:fence", (now + 3_600_000) * 1000).await.expect("set");
    broker.publish("q", 0, &[b"m".to_vec()]).await.expect("published");
    let batch = take(&mut reserver(&redis, "w", SOON), 1, &queues(&broker, &["q"])).await;
    assert!(
        batch.taken[0].micros > (now.unsigned_abs() + 3_600_000) * 1000,
        "tokens only grow"
    );
    let told = batch.now.expect("a time");
    assert!((told - now as f64 / 1000.0).abs() < 60.0, "{told} is not about {now}");
}

#[tokio::test]
async fn a_leader_from_before_the_clock_went_back_is_none() {
    let redis = Redis::with_clock(&[]).await;
    redis.set_clock(3600);
    let (broker, _) = parts(&redis).await;
    broker.claim_term("i", 1, "one").await.expect("the server answers");
    broker
        .operator_heartbeat("i", 1, "{}")
        .await
        .expect("the server answers");
    let identity = WorkerIdentity {
        worker: "w".into(),
        install: "i".into(),
        is_standalone: false,
    };
    let mut worker = Reserver::new(Config::new(&redis.url()), identity, Vec::new(), SOON, LARGEST);
    let lists = queues(&broker, &["q"]);
    let gate = worker.reserve(1, &lists, Vec::new).await.expect("the server answers");
    assert!(!matches!(gate, Reserved::Batch(_)), "nobody has admitted it");
    let admit = async || {
        broker
            .admit_self("i", "w", "pool", 30)
            .await
            .expect("the server answers")
    };
    assert_eq!(admit().await, Admission::Leader);
    assert!(broker.leader_age("i").await.expect("the server answers").is_some());
    redis.set_clock(0);
    assert_eq!(broker.leader_age("i").await.expect("the server answers"), None);
    assert_eq!(admit().await, Admission::Open, "or nobody were admitted for an hour");
}

#[tokio::test]
async fn a_server_that_was_demoted_is_left() {
    let redis = Redis::start().await;
    let (broker, mut raw) = parts(&redis).await;
    let lists = queues(&broker, &["q"]);
    let mut worker = reserver(&redis, "w", SOON);
    take(&mut worker, 1, &lists).await;
    broker.publish("q", 0, &[b"m".to_vec()]).await.expect("published");
    let demote = async |of: [&str; 2], raw: &mut MultiplexedConnection| {
        let _: () = umbel_testkit::redis::cmd("REPLICAOF")
            .arg(&of)
            .query_async(raw)
            .await
            .expect("told");
    };
    demote(["127.0.0.1", "1"], &mut raw).await;
    assert!(worker.reserve(1, &lists, Vec::new).await.is_err());
    assert!(!worker.is_connected(), "it stays with a server that takes no writes");
    demote(["NO", "ONE"], &mut raw).await;
    assert_eq!(take(&mut worker, 1, &lists).await.taken.len(), 1);
}

fn end(lid: &std::sync::Arc<str>, follow_ups: Vec<FollowUp>) -> Settlement {
    Settlement {
        lid: std::sync::Arc::clone(lid),
        id: "m".into(),
        task: "t".into(),
        end: End::Ack,
        result: None,
        run: None,
        outcome: "succeeded",
        follow_ups,
    }
}

fn push(list: &str) -> FollowUp {
    FollowUp::Push {
        list: list.into(),
        raw: b"next".to_vec(),
    }
}

#[tokio::test]
async fn an_end_that_redis_refuses_has_sent_nothing() {
    let redis = Redis::start().await;
    let (broker, mut connection) = parts(&redis).await;
    broker.publish("q", 0, &[b"m".to_vec()]).await.expect("published");
    let taken = take(&mut reserver(&redis, "w", SOON), 1, &queues(&broker, &["q"]))
        .await
        .taken;
    let _: () = connection.set("text", "no list").await.expect("set");
    let nested = FollowUp::Guarded {
        key: "claim".into(),
        token: "token".into(),
        then: vec![push("text")],
    };
    for follow_ups in [vec![push("good"), push("text")], vec![push("good"), nested]] {
        let refused = broker.settle(10, &[end(&taken[0].lid, follow_ups)]).await;
        assert!(refused.is_err_and(|err| err.is_wrong_type()));
        assert_eq!(connection.llen("good").await, Ok(0), "nothing was sent");
        assert_eq!(
            connection.zcard("umbel:lease").await,
            Ok(1),
            "and the message is still held"
        );
    }
}

/// What has killed workers runs alone also after it was handed back: by a worker that stops, or at a hello of one that
/// does not know it.
#[tokio::test]
async fn a_suspect_that_is_handed_back_stays_one() {
    let redis = Redis::start().await;
    let (broker, mut raw) = parts(&redis).await;
    let _: () = raw.lpush("umbel:suspect:q", "1:qm").await.expect("pushed");
    let mut worker = reserver(&redis, "w", Duration::from_secs(60));
    let lists = queues(&broker, &["q"]);
    let mut left = Vec::new();
    for by_hello in [false, true] {
        let taken = match worker
            .reserve_suspect(&lists, Vec::new)
            .await
            .expect("the server answers")
        {
            Reserved::Batch(mut batch) => batch.taken.remove(0),
            other => panic!("not taken: {other:?}"),
        };
        if by_hello {
            worker.forget();
            worker.ensure(Vec::new).await.expect("the server answers");
        } else {
            let back = Settlement {
                end: End::Release,
                ..end(&taken.lid, Vec::new())
            };
            assert!(broker.settle(10, &[back]).await.expect("settled").is_empty());
        }
        let waiting: usize = raw.llen("q").await.expect("the server answers");
        let suspects: Vec<String> = raw.lrange("umbel:suspect:q", 0, -1).await.expect("the server answers");
        left.push((waiting, suspects));
    }
    assert_eq!(left, [(0, vec!["1:qm".to_owned()]), (0, vec!["1:qm".to_owned()])]);
}

#[tokio::test]
async fn a_claim_that_ran_out_is_carried_out_and_one_of_somebody_else_is_not() {
    let redis = Redis::start().await;
    let (broker, mut connection) = parts(&redis).await;
    broker
        .publish("q", 0, &[b"m1".to_vec(), b"m2".to_vec()])
        .await
        .expect("published");
    let taken = take(&mut reserver(&redis, "w", SOON), 2, &queues(&broker, &["q"]))
        .await
        .taken;
    let guarded = || {
        vec![FollowUp::Guarded {
            key: "claim".into(),
            token: "mine".into(),
            then: vec![push("body")],
        }]
    };
    let _: () = connection.set("claim", "another's").await.expect("set");
    broker
        .settle(10, &[end(&taken[0].lid, guarded())])
        .await
        .expect("settled");
    assert_eq!(connection.llen("body").await, Ok(0));
    let _: () = connection.del("claim").await.expect("deleted");
    broker
        .settle(10, &[end(&taken[1].lid, guarded())])
        .await
        .expect("settled");
    assert_eq!(connection.llen("body").await, Ok(1));
}

#[tokio::test]
async fn an_answer_goes_to_who_asked_and_never_into_a_queue() {
    let redis = Redis::start().await;
    let (broker, mut connection) = parts(&redis).await;
    broker.bind("hold", "direct", "hold", "hold").await.expect("bound");
    broker.publish("hold", 0, &[b"m".to_vec()]).await.expect("published");
    let answer = |exchange: &str, routing_key: &str| Answered {
        exchange: exchange.into(),
        routing_key: routing_key.into(),
        payload: b"answer".to_vec(),
    };
    let is_sent = broker.answer(&answer("hold", "hold")).await.expect("answered");
    assert!(!is_sent);
    let replies = "reply.celery.pidbox";
    broker.bind(replies, "direct", "hold", "hold").await.expect("bound");
    let is_sent = broker.answer(&answer(replies, "hold")).await.expect("answered");
    assert!(!is_sent);
    assert_eq!(connection.llen("hold").await, Ok(1), "as it was");
    assert_eq!(connection.ttl("hold").await, Ok(-1), "and for ever");

    let client = "c1.reply.celery.pidbox";
    broker.bind(replies, "direct", "c1", client).await.expect("bound");
    assert!(broker.answer(&answer(replies, "c1")).await.expect("answered"));
    assert_eq!(connection.llen(client).await, Ok(1));
}

#[tokio::test]
async fn what_was_taken_unheard_comes_back_although_as_much_was_settled_unheard() {
    let redis = Redis::start().await;
    let (broker, mut connection) = parts(&redis).await;
    let queues = queues(&broker, &["q"]);
    let mut reserver = reserver(&redis, "w", Duration::from_mins(1));
    reserver.ensure(Vec::new).await.expect("the server answers");
    let messages = vec![b"first".to_vec(), b"second".to_vec()];
    broker.publish("q", 0, &messages).await.expect("the server answers");
    let first = take(&mut reserver, 1, &queues).await.taken[0].lid.clone();
    broker
        .settle(10, &[end(&first, Vec::new())])
        .await
        .expect("the server answers");
    drop(take(&mut reserver, 1, &queues).await);
    // The answers to both were lost on the way: the worker still names the first and knows of no second.
    reserver.forget();
    reserver
        .ensure(|| vec![first.clone()])
        .await
        .expect("the server answers");
    assert_eq!(reserver.take_hello().map(|hello| hello.handed_back), Some(1));
    assert_eq!(connection.lpop("q", None).await, Ok("second".to_owned()));
    assert_eq!(connection.hlen("umbel:unacked").await, Ok(0));
}

#[tokio::test]
async fn an_end_whose_follow_up_is_refused_leaves_no_dead_letter_however_often_it_is_said() {
    let redis = Redis::start().await;
    let (broker, mut connection) = parts(&redis).await;
    broker.publish("q", 0, &[b"m".to_vec()]).await.expect("published");
    let taken = take(&mut reserver(&redis, "w", SOON), 1, &queues(&broker, &["q"]))
        .await
        .taken;
    let _: () = connection.rpush("list", "no text").await.expect("set");
    let _: () = connection.set("text", "no number").await.expect("set");
    let (list, text) = (|| "list".to_owned(), || "text".to_owned());
    let store = FollowUp::Store {
        key: list(),
        ttl: 9,
        document: b"{}".to_vec(),
    };
    let extend = |key| FollowUp::Extend {
        key,
        ttl: 9,
        by: 1,
        once: "once".into(),
    };
    let free = FollowUp::LetGo {
        key: list(),
        token: "t".into(),
    };
    let guard = |key, then| FollowUp::Guarded {
        key,
        token: "t".into(),
        then,
    };
    let count = FollowUp::Count {
        key: list(),
        ttl: 9,
        field: "f".into(),
    };
    let refused = [
        store.clone(),
        extend(list()),
        extend(text()),
        free,
        count,
        guard(list(), vec![push("next")]),
        guard("claim".into(), vec![store.clone()]),
    ];
    let bury = || End::Bury { reason: "why".into() };
    for refused in refused {
        for of in [bury(), End::Quarantine { reason: "why".into() }, End::Requeue] {
            let settlement = Settlement {
                end: of.clone(),
                ..end(&taken[0].lid, vec![push("next"), refused.clone()])
            };
            let answer = broker.settle(10, &[settlement]).await;
            assert!(answer.is_err(), "{refused:?}");
            for stream in ["umbel:dead:q", "umbel:quarantine:q"] {
                assert_eq!(connection.xlen(stream).await, Ok(0), "{of:?} {refused:?}");
            }
            for key in ["q", "next"] {
                assert_eq!(connection.llen(key).await, Ok(0), "{of:?} {refused:?}");
            }
            assert_eq!(connection.zcard("umbel:lease").await, Ok(1), "still held");
        }
    }
    assert_eq!(connection.get("text").await, Ok("no number".to_owned()));
    // What is replaced before may have been of any type.
    let set = FollowUp::Set {
        key: list(),
        ttl: 9,
        value: b"1".to_vec(),
    };
    let buried = Settlement {
        end: bury(),
        ..end(&taken[0].lid, vec![set, extend(list()), push("next")])
    };
    assert!(broker.settle(10, &[buried]).await.expect("settled").is_empty());
    assert_eq!(connection.get("list").await, Ok(2));
    assert_eq!(connection.xlen("umbel:dead:q").await, Ok(1));
    assert_eq!(connection.llen("next").await, Ok(1));
}

/// A worker that repeats itself, for it heard no answer, and one whose lease is gone.
#[tokio::test]
async fn a_run_that_is_handed_back_counts_once_for_its_pool() {
    let redis = Redis::start().await;
    let (broker, _) = parts(&redis).await;
    assert!(broker.hand_backs().await.expect("read").is_empty());
    let mut counts = Vec::new();
    for (pool, repeated) in [("one", true), ("other", false), ("one", false)] {
        broker.publish("q", 0, &[b"m".to_vec()]).await.expect("published");
        let taken = take(&mut reserver(&redis, "w", SOON), 1, &queues(&broker, &["q"]))
            .await
            .taken;
        let back = Settlement {
            end: End::Release,
            ..end(&taken[0].lid, vec![broker.hand_back_counted(pool)])
        };
        assert!(
            broker
                .settle(10, std::slice::from_ref(&back))
                .await
                .expect("settled")
                .is_empty()
        );
        if repeated {
            let lost = broker.settle(10, &[back]).await.expect("settled");
            assert_eq!(lost, [taken[0].lid.to_string()]);
        }
        counts.push(broker.hand_backs().await.expect("read"));
    }
    let counted = |pools: &[(&str, u64)]| pools.iter().map(|(pool, count)| ((*pool).to_owned(), *count)).collect();
    let expected: [std::collections::BTreeMap<String, u64>; 3] = [
        counted(&[("one", 1)]),
        counted(&[("one", 1), ("other", 1)]),
        counted(&[("one", 2), ("other", 1)]),
    ];
    assert_eq!(counts, expected);
}

#[tokio::test]
async fn a_unique_task_is_enqueued_once_under_its_id_also_after_it_has_ended() {
    let redis = Redis::start().await;
    let (broker, mut connection) = parts(&redis).await;
    let publish = async |queue: &str, key: &str, id: &str| {
        let taken = (key, id, Duration::from_mins(1));
        broker.publish_unique(queue, 0, b"m", taken).await
    };
    // Refused: nobody has the key, and nothing is remembered.
    let _: () = connection.set("text", "no list").await.expect("set");
    assert!(publish("text", "k", "id-0").await.is_err_and(|err| err.is_wrong_type()));
    for key in ["umbel:unique:k", "umbel:sent:id-0"] {
        assert_eq!(connection.exists(key).await, Ok(false), "{key}");
    }
    assert_eq!(
        publish("q", "k", "id-0").await.expect("published"),
        "id-0",
        "and then it is sent"
    );
    assert_eq!(
        publish("q", "k", "id-1").await.expect("published"),
        "id-0",
        "one is on its way"
    );
    // It has run, and its sender, whom no answer reached, says it again.
    assert!(broker.release_unique("k", "id-0").await.expect("released"));
    assert_eq!(publish("q", "k", "id-0").await.expect("published"), "id-0");
    assert_eq!(connection.llen("q").await, Ok(1), "sent once");
    // Another is sent; the first is still known.
    assert_eq!(publish("q", "k", "id-1").await.expect("published"), "id-1");
    assert_eq!(publish("q", "k", "id-0").await.expect("published"), "id-0");
    assert_eq!(connection.llen("q").await, Ok(2));
    let kept: i64 = connection.ttl("umbel:sent:id-1").await.expect("read");
    assert!((500..=600).contains(&kept), "{kept} s");
}
