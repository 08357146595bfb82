//! Wires that are slow, that cut, that deliver in pieces or not at all; servers that are busy or forget scripts.

use std::process::Command;
use std::time::Duration;

use umbel_testkit::redis::{self, AsyncCommands};
use umbel_testkit::{Event, Flow, History, Pipe, Redis, eventually};

use crate::stage::{Admin, all_done, goes_through, ids, send, settled, told};
use crate::support::{LATER, SOON, admitted, test_worker};

const DEFAULTS: [&str; 6] = ["--lease", "60s", "--renew-every", "20s", "--sweep", "5s"];

fn flags<'a>(more: &[&'a str]) -> Vec<&'a str> {
    DEFAULTS.iter().copied().chain(more.iter().copied()).collect()
}

#[tokio::test]
async fn r13_a_slow_wire_that_is_cut_now_and_then_costs_no_lease() {
    let redis = Redis::start().await;
    let wire = Pipe::to(redis.port()).await;
    let (history, admin) = (History::new(), Admin::new());
    let _worker = test_worker(
        &wire.url(),
        &history,
        &flags(&["--concurrency", "20", "--admin-addr", admin.address()]),
    );
    admitted(&redis, 1).await;
    wire.set(Flow {
        delay: (Duration::ZERO, Duration::from_millis(400)),
        cuts: 100,
        ..Flow::default()
    });
    let mut connection = redis.connection().await;
    send(&mut connection, &history, &ids("slow", 200), 0.05)
        .await
        .expect("sent");
    let verdict = all_done(&history, LATER).await;
    settled(&mut connection).await;
    assert_eq!((verdict.lost.len(), verdict.stale.len()), (0, 0), "{verdict}");
    assert!(verdict.rerun <= 20, "no more than what a cut hands back: {verdict}");
    assert!(
        admin.metric("umbel_lease_reclaimed_total", "").await < 0.5,
        "no lease ran out"
    );
}

#[tokio::test]
async fn r14_bytes_that_come_one_by_one_are_read_as_any_others() {
    let redis = Redis::start().await;
    let wire = Pipe::to(redis.port()).await;
    wire.set(Flow {
        piece: 1,
        ..Flow::default()
    });
    let history = History::new();
    let _worker = test_worker(&wire.url(), &history, &flags(&[]));
    admitted(&redis, 1).await;
    let mut connection = redis.connection().await;
    send(&mut connection, &history, &ids("piecemeal", 40), 0.01)
        .await
        .expect("sent");
    let verdict = all_done(&history, SOON).await;
    settled(&mut connection).await;
    assert_eq!((verdict.done, verdict.rerun), (40, 0), "{verdict}");
}

#[tokio::test]
async fn r15_a_long_script_of_somebody_else_is_waited_out() {
    let redis = Redis::start().await;
    let (history, admin) = (History::new(), Admin::new());
    let _worker = test_worker(
        &redis.url(),
        &history,
        &flags(&["--concurrency", "4", "--admin-addr", admin.address()]),
    );
    admitted(&redis, 1).await;
    let mut connection = redis.connection().await;
    send(&mut connection, &history, &ids("around", 60), 0.1)
        .await
        .expect("sent");
    eventually(SOON, "some run", async || history.total(Event::Started) >= 4).await;
    let busy = "local t = redis.call('TIME')[1] + 4 repeat until redis.call('TIME')[1] + 0 >= t return 1";
    // The server's clock stands still within a script: count instead.
    let busy = if redis_counts(&mut connection).await {
        busy
    } else {
        COUNTING
    };
    told(&mut connection, &["EVAL", busy, "0"]).await;
    let verdict = all_done(&history, LATER).await;
    settled(&mut connection).await;
    assert_eq!((verdict.lost.len(), verdict.rerun), (0, 0), "{verdict}");
    assert!(
        admin.metric("umbel_lease_reclaimed_total", "").await < 0.5,
        "no lease ran out"
    );
}

/// About four seconds on any machine of these years.
const COUNTING: &str = "local n = 0 for i = 1, 4e8 do n = n + i end return n";

async fn redis_counts(connection: &mut redis::aio::MultiplexedConnection) -> bool {
    let moves = "local a = redis.call('TIME') for i = 1, 3e6 do end local b = redis.call('TIME') return a[2] == b[2] and 0 or 1";
    let answer: i64 = redis::cmd("EVAL")
        .arg(moves)
        .arg(0)
        .query_async(connection)
        .await
        .unwrap_or(0);
    answer == 1
}

#[tokio::test]
async fn r16_scripts_that_the_server_forgot_are_loaded_again_by_themselves() {
    let mut redis = Redis::durable().await;
    let history = History::new();
    let worker = test_worker(&redis.url(), &history, &["--concurrency", "4"]);
    admitted(&redis, 1).await;
    let mut connection = redis.connection().await;
    send(&mut connection, &history, &ids("first", 80), 0.02)
        .await
        .expect("sent");
    for _ in 0..5 {
        let done = history.total(Event::Done);
        told(&mut connection, &["SCRIPT", "FLUSH"]).await;
        eventually(SOON, "it goes on", async || history.total(Event::Done) > done + 4).await;
    }
    redis.start_again().await;
    let mut connection = redis.connection().await;
    goes_through(&mut connection, &history, "after-a-restart").await;
    let verdict = all_done(&history, SOON).await;
    settled(&mut connection).await;
    assert!(verdict.rerun <= 4, "{verdict}");
    assert!(!worker.log().contains("NOSCRIPT"), "{}", worker.tail());
}

/// A namespace of the network in which a server runs; whatever passes between it and us can be dropped.
struct Island(String);

impl Island {
    fn new(subnet: u8) -> Island {
        let name = format!("umbel-{}", std::process::id());
        let island = Island(name.clone());
        let (ours, theirs) = (
            format!("uo{}", std::process::id() % 100_000),
            format!("ut{}", std::process::id() % 100_000),
        );
        for line in [
            format!("ip netns add {name}"),
            format!("ip link add {ours} type veth peer name {theirs}"),
            format!("ip link set {theirs} netns {name}"),
            format!("ip addr add 10.213.{subnet}.1/24 dev {ours}"),
            format!("ip link set {ours} up"),
            format!("ip -n {name} addr add 10.213.{subnet}.2/24 dev {theirs}"),
            format!("ip -n {name} link set {theirs} up"),
            format!("ip -n {name} link set lo up"),
        ] {
            run(&line);
        }
        island
    }

    fn inside(&self, line: &str) {
        run(&format!("ip netns exec {} {line}", self.0));
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        // The pair of devices goes with it.
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).output();
    }
}

fn run(line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let done = Command::new(words[0])
        .args(&words[1..])
        .output()
        .expect("it can be started");
    assert!(
        done.status.success(),
        "{line} (network namespaces need root): {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

#[tokio::test]
async fn r12_a_half_open_connection_is_noticed_within_a_third_of_a_lease() {
    let subnet = u8::try_from(std::process::id() % 250).expect("below 250");
    let island = Island::new(subnet);
    let server = format!("10.213.{subnet}.2");
    let redis = Redis::start_in(&island.0, &server).await;
    let history = History::new();
    let url = format!("redis://{server}:{}/0", redis.port());
    // The lease decides: 30 s, so 10 s to notice and a new connection as soon as packets pass again.
    let lease = [
        "--lease",
        "30s",
        "--renew-every",
        "5s",
        "--sweep",
        "1s",
        "--concurrency",
        "4",
    ];
    let mut worker = test_worker(&url, &history, &lease);
    let client = redis::Client::open(url).expect("an address");
    let mut connection = client.get_multiplexed_async_connection().await.expect("it runs");
    goes_through(&mut connection, &history, "before").await;
    send(&mut connection, &history, &ids("running", 4), 6.0)
        .await
        .expect("sent");
    eventually(SOON, "they run", async || history.total(Event::Started) == 5).await;
    drop(connection);
    island.inside("nft add table ip lost");
    island.inside("nft add chain ip lost in { type filter hook input priority 0 ; policy drop ; }");
    let begin = std::time::Instant::now();
    worker.says(Duration::from_secs(10), "again").await;
    eventually(SOON, "the tasks have ended meanwhile", async || {
        begin.elapsed() > Duration::from_secs(5)
    })
    .await;
    island.inside("nft delete table ip lost");
    let mut connection = client.get_multiplexed_async_connection().await.expect("it runs");
    let took = goes_through(&mut connection, &history, "after").await;
    assert!(took < Duration::from_secs(10), "{took:?}\n{}", worker.tail());
    eventually(SOON, "all are settled", async || {
        connection.hlen("umbel:unacked").await == Ok(0)
    })
    .await;
    let verdict = history.verdict(&[]);
    assert_eq!((verdict.lost.len(), verdict.rerun), (0, 0), "{verdict}");
}
