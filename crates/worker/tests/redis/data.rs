//! Data that is not as we left it: clocks that jump, halves of records, keys that are gone, the wrong database.

use std::time::Duration;

use umbel_testkit::redis::{self, AsyncCommands};
use umbel_testkit::{Event, History, Redis, eventually};

use crate::stage::{Admin, all_done, goes_through, ids, message, send, settled, told};
use crate::support::{LATER, SOON, admitted, broker, laid_aside, test_worker};

#[tokio::test]
async fn r21_a_server_whose_clock_jumps_takes_no_lease_back_and_freezes_none() {
    let redis = Redis::with_clock(&[]).await;
    let (history, admin) = (History::new(), Admin::new());
    let mut worker = test_worker(
        &redis.url(),
        &history,
        &["--concurrency", "6", "--admin-addr", admin.address()],
    );
    admitted(&redis, 1).await;
    // A jump is one between two sweeps.
    worker.says(SOON, "first sweep of this data set").await;
    let mut connection = redis.connection().await;
    for (name, offset, words) in [
        ("ahead", 3600, "clock of the server jumped"),
        ("back", -3600, "clock of the server went back"),
    ] {
        send(&mut connection, &history, &ids(name, 6), 4.0).await.expect("sent");
        let begun = history.total(Event::Started);
        eventually(SOON, "they run", async || {
            history.total(Event::Started) >= begun + 6 || history.verdict(&[]).lost.is_empty()
        })
        .await;
        redis.set_clock(offset);
        worker.says(SOON, words).await;
        let verdict = all_done(&history, LATER).await;
        assert_eq!((verdict.rerun, verdict.repeated_effects), (0, 0), "{name}: {verdict}");
        settled(&mut connection).await;
    }
    assert!(
        admin.metric("umbel_lease_reclaimed_total", "").await < 0.5,
        "no lease was taken back"
    );
    // And none is frozen: one whose worker dies after the jump comes back.
    send(&mut connection, &history, &["orphan".to_owned()], 30.0)
        .await
        .expect("sent");
    eventually(SOON, "it runs", async || history.count(Event::Started, "orphan") == 1).await;
    worker.kill();
    let _next = test_worker(&redis.url(), &history, &[]);
    eventually(LATER, "it runs again", async || {
        history.count(Event::Started, "orphan") == 2
    })
    .await;
}

/// A lease that was given before the server's clock went back ends later than any may, by as much. Its worker died: the
/// message must not wait for that.
#[tokio::test]
async fn r21_a_lease_from_before_the_clock_went_back_does_not_outlive_its_worker() {
    let redis = Redis::with_clock(&[]).await;
    let history = History::new();
    let mut worker = test_worker(&redis.url(), &history, &[]);
    // Holds a lease across the jump as well, and lives: nobody takes it away.
    let mut other = test_worker(&redis.url(), &history, &["--queue", "other"]);
    admitted(&redis, 2).await;
    let mut connection = redis.connection().await;
    eventually(SOON, "one of them has swept", async || {
        let swept: bool = connection.clone().exists("umbel:sweep").await.expect("answers");
        swept
    })
    .await;
    send(&mut connection, &history, &["orphan".to_owned()], 60.0)
        .await
        .expect("sent");
    let long: Vec<u8> = message("test.work", "long", "[22.0]");
    let _: () = connection.lpush("other", long).await.expect("sent");
    eventually(SOON, "both run", async || history.total(Event::Started) == 2).await;
    worker.kill();
    redis.set_clock(-3600);
    other.says(SOON, "clock of the server went back").await;
    let _next = test_worker(&redis.url(), &history, &[]);
    // Its heartbeat counts for 15 s, then its lease ends.
    eventually(LATER * 2, "it runs again", async || {
        history.count(Event::Started, "orphan") == 2
    })
    .await;
    eventually(LATER, "the other ends", async || {
        history.count(Event::Done, "long") == 1
    })
    .await;
    assert_eq!(
        history.count(Event::Started, "long"),
        1,
        "who lives keeps what it holds"
    );
}

#[tokio::test]
async fn r22_halves_of_records_are_repaired_and_counted() {
    let redis = Redis::start().await;
    let history = History::new();
    let _worker = test_worker(&redis.url(), &history, &[]);
    admitted(&redis, 1).await;
    let mut connection = redis.connection().await;
    goes_through(&mut connection, &history, "before").await;
    // A body without a lease, a lease without a body, counts that are wrong: as if somebody had deleted halves by hand.
    let raw = message("test.work", "half", "[0.0]");
    let record = [b"6:celery".as_slice(), &raw].concat();
    let _: () = connection.hset("umbel:unacked", "nobody:1", record).await.expect("set");
    let _: () = connection.zadd("umbel:lease", "nobody:2", 1).await.expect("set");
    let _: () = connection.hset("umbel:held", "q:celery", -5).await.expect("set");
    history.enqueued(["half"]);
    // The janitor of the workers comes once a minute; this is what it does.
    let broker = broker(&redis.url()).await;
    let report = broker.janitor(true, Duration::ZERO).await.expect("it answers");
    assert_eq!((report.leases_given, report.leases_removed), (1, 1));
    assert!(report.counts_corrected >= 1);
    eventually(LATER, "the message runs", async || {
        history.count(Event::Done, "half") == 1
    })
    .await;
    eventually(SOON, "nothing is left of it", async || {
        let (bodies, leases): (usize, usize) = (
            connection.hlen("umbel:unacked").await.unwrap_or(9),
            connection.zcard("umbel:lease").await.unwrap_or(9),
        );
        let held: i64 = connection.hget("umbel:held", "q:celery").await.unwrap_or(0);
        (bodies, leases, held) == (0, 0, 0)
    })
    .await;
}

#[tokio::test]
async fn r24_a_queue_that_is_deleted_under_way_costs_no_running_task() {
    let redis = Redis::start().await;
    let history = History::new();
    let _worker = test_worker(&redis.url(), &history, &["--concurrency", "4"]);
    admitted(&redis, 1).await;
    let mut connection = redis.connection().await;
    let some = ids("m", 40);
    send(&mut connection, &history, &some[..4], 1.0).await.expect("sent");
    eventually(SOON, "four run", async || history.total(Event::Started) == 4).await;
    // What waits is not noted: it is about to be deleted.
    let waiting: Vec<Vec<u8>> = some[4..].iter().map(|id| message("test.work", id, "[0.0]")).collect();
    redis::pipe()
        .atomic()
        .lpush("celery", waiting)
        .del("celery")
        .exec_async(&mut connection)
        .await
        .expect("deleted");
    let verdict = all_done(&history, SOON).await;
    assert_eq!((verdict.done, verdict.rerun), (4, 0), "{verdict}");
    settled(&mut connection).await;
    let counted: i64 = connection.hget("umbel:held", "q:celery").await.unwrap_or(0);
    assert_eq!(counted, 0, "counts are right");
    goes_through(&mut connection, &history, "after").await;
}

#[tokio::test]
async fn r26_what_fails_for_good_is_kept_within_bounds_and_what_goes_is_counted() {
    let redis = Redis::start().await;
    let (history, admin) = (History::new(), Admin::new());
    let flags = [
        "--dead-kept",
        "20",
        "--retry-max-attempts",
        "1",
        "--result-ttl",
        "60s",
        "--admin-addr",
        admin.address(),
    ];
    let _worker = test_worker(&redis.url(), &history, &flags);
    admitted(&redis, 1).await;
    let mut connection = redis.connection().await;
    let messages: Vec<Vec<u8>> = ids("f", 300)
        .iter()
        .map(|id| message("test.fail", id, "[\"x\"]"))
        .collect();
    let _: () = connection.lpush("celery", messages).await.expect("sent");
    settled(&mut connection).await;
    assert_eq!(
        laid_aside(&redis, "dead", "celery").await.len(),
        20,
        "bounded by their number"
    );
    let evicted: i64 = connection
        .hget("umbel:evicted", "dead|count|celery")
        .await
        .unwrap_or(-1);
    assert_eq!(evicted, 280, "none goes in silence");
    let ttl: i64 = connection.ttl("celery-task-meta-f-00000").await.expect("read");
    assert!((1..=60).contains(&ttl), "results end by themselves: {ttl}");
}

#[tokio::test]
async fn r29_a_wrong_database_or_prefix_is_hinted_at_and_nothing_is_made_elsewhere() {
    let redis = Redis::start().await;
    let mut there = redis.connection_to(5).await;
    let _: () = there
        .lpush("celery", message("test.work", "far", "[0.0]"))
        .await
        .expect("sent");
    let mut here = redis.connection().await;
    let _: () = here
        .lpush("app:celery", message("test.work", "prefixed", "[0.0]"))
        .await
        .expect("sent");
    let history = History::new();
    let mut worker = test_worker(&redis.url(), &history, &[]);
    worker.says(Duration::from_secs(25), "database 5").await;
    worker.says(SOON, "prefix \\\"app:\\\"").await;
    assert_eq!(there.llen("celery").await, Ok(1));
    let keys: Vec<String> = there.keys("*").await.expect("read");
    assert_eq!(keys, ["celery"], "nothing is made elsewhere");
    assert_eq!(here.llen("app:celery").await, Ok(1));
    assert_eq!(history.total(Event::Started), 0);
    told(&mut here, &["PING"]).await;
}
