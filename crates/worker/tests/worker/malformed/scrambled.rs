//! Random bytes in the keys that workers read, and replies that Redis does not give.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use umbel_testkit::redis::{self, AsyncCommands};
use umbel_testkit::{Celery, History, Redis, eventually};

use super::{Stage, envelope};
use crate::support::{LATER, SOON, admitted, broker, depth, test_worker};

/// Bytes that look like nothing; the same in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        // Knuth's constants.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = self.next() % 64;
        (0..length).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// Something like what belongs there, with a part that does not.
fn almost(noise: &mut Noise) -> Vec<u8> {
    let forms: [&[u8]; 10] = [
        b"",
        b"nan",
        b"-1",
        b"1e999",
        b"open",
        b"open|x|y|z",
        b"{\"worker\": 7}",
        b"celery|99|{}",
        b"\0\0\0",
        b"9223372036854775808",
    ];
    let form = forms[usize::try_from(noise.next()).expect("it fits") % forms.len()];
    if noise.next().is_multiple_of(2) {
        noise.bytes()
    } else {
        form.to_vec()
    }
}

async fn scramble(connection: &mut redis::aio::MultiplexedConnection, noise: &mut Noise) {
    let mut pipe = redis::pipe();
    for key in [
        "unacked", "workers", "held", "att", "policy", "clusters", "run:x", "slot:x:y",
    ] {
        pipe.hset(format!("umbel:{key}"), almost(noise), almost(noise)).ignore();
    }
    // Leases without bodies, bodies without leases, and both with nothing in them that has a meaning.
    let both = [b"z".as_slice(), &noise.bytes()].concat();
    pipe.zadd("umbel:lease", almost(noise), 1).ignore();
    pipe.zadd("umbel:lease", &both, 2).ignore();
    pipe.hset("umbel:unacked", &both, almost(noise)).ignore();
    for key in ["delayed:celery", "revoked", "revoked-stamps"] {
        pipe.zadd(format!("umbel:{key}"), almost(noise), 3).ignore();
    }
    pipe.zadd("umbel:revoked", almost(noise), 9e15).ignore();
    pipe.lpush("umbel:suspect:celery", almost(noise)).ignore();
    for key in [
        "hb:worker:x",
        "hb:operator:x",
        "term:x",
        "step:x",
        "fence",
        "revocations",
    ] {
        pipe.set(format!("umbel:{key}"), almost(noise)).ignore();
    }
    pipe.hset("umbel:sweep", "last", almost(noise)).ignore();
    for key in ["dead", "quarantine"] {
        let fields = [(b"reason".to_vec(), almost(noise)), (noise.bytes(), almost(noise))];
        pipe.cmd("XADD")
            .arg(format!("umbel:{key}:celery"))
            .arg("*")
            .arg(&fields[0].0)
            .arg(&fields[0].1)
            .arg(&fields[1].0)
            .arg(&fields[1].1)
            .ignore();
    }
    // Another type in one of them is another fault, and named as such; here each has its own.
    let done: Result<(), _> = pipe.query_async(connection).await;
    if let Err(err) = done {
        assert!(err.to_string().contains("WRONGTYPE"), "{err}");
    }
}

#[tokio::test]
async fn i14_random_bytes_in_our_keys_stop_nobody() {
    let mut stage = Stage::start(&[]).await;
    let mut connection = stage.redis.connection().await;
    let mut noise = Noise(14);
    let mut ids = Vec::new();
    for round in 0..20 {
        scramble(&mut connection, &mut noise).await;
        let calls = vec![json!([0.0]); 3];
        ids.extend(stage.celery.send_all("test.work", calls, json!({})).await);
        let options = json!({"countdown": 0.2});
        ids.push(stage.celery.send("test.work", json!([0.0]), options).await);
        assert!(
            stage.worker.exit().is_none(),
            "round {round}: the worker lives:\n{}",
            stage.worker.tail()
        );
    }
    let states = stage.celery.wait_all(&ids, LATER).await;
    assert_eq!(states.get("SUCCESS"), Some(&ids.len()), "{states:?}");
    assert!(!stage.worker.log().contains("panicked"), "{}", stage.worker.tail());
    // A worker that starts among all this works, too.
    let history = History::new();
    let mut second = test_worker(&stage.redis.url(), &history, &["--queue", "second"]);
    let options = json!({"queue": "second"});
    let id = stage.celery.send("test.work", json!([0.0]), options).await;
    assert_eq!(stage.celery.get(&id, SOON).await, Ok(json!(0.0)));
    // What was put into the lists, or under overdue leases, is put aside; the janitor repairs the rest within a minute.
    eventually(LATER, "what was no record is in the quarantine", async || {
        let kept: u64 = connection
            .xlen("umbel:quarantine:umbel:unreadable")
            .await
            .expect("the server answers");
        kept > 0
    })
    .await;
    assert!(
        second.exit().is_none() && !second.log().contains("panicked"),
        "{}",
        second.tail()
    );
}

#[tokio::test]
async fn i14_random_bytes_in_celerys_keys_stop_nobody() {
    let mut stage = Stage::start(&[]).await;
    let mut connection = stage.redis.connection().await;
    let mut noise = Noise(15);
    let mut corpus = Vec::new();
    for round in 0..10 {
        let (group, id) = (format!("g{round}"), format!("member{round}"));
        let set = format!("celery-taskset-meta-{group}");
        let size = almost(&mut noise);
        let () = connection
            .set(format!("{set}.s"), size)
            .await
            .expect("the server answers");
        let () = connection
            .zadd(format!("{set}.j"), almost(&mut noise), 0)
            .await
            .expect("the server answers");
        for key in ["t", "c"] {
            let () = connection
                .set(format!("{set}.{key}"), almost(&mut noise))
                .await
                .expect("the server answers");
        }
        let () = connection
            .sadd(format!("{set}.d"), almost(&mut noise))
            .await
            .expect("the server answers");
        let () = connection
            .set(format!("celery-task-meta-{id}"), almost(&mut noise))
            .await
            .expect("the server answers");
        let chord = json!([[0.0], {}, {"chord": {"task": "umbel.echo", "args": [], "kwargs": {}, "options": {"task_id": format!("body{round}")}, "chord_size": 1}}]);
        corpus.push((
            "a member of a scrambled chord",
            envelope(|message| {
                message["headers"]["id"] = json!(id);
                message["headers"]["group"] = json!(group);
                message["headers"]["group_index"] = json!(0);
                message["body"] = json!(chord.to_string());
                message["properties"]["body_encoding"] = json!("utf-8");
            }),
        ));
    }
    for (_, raw) in &corpus {
        stage.push(raw).await;
    }
    let ids = stage
        .celery
        .send_all("test.work", vec![json!([0.0]); 10], json!({}))
        .await;
    let states = stage.celery.wait_all(&ids, LATER).await;
    assert_eq!(states.get("SUCCESS"), Some(&ids.len()), "neighbours run: {states:?}");
    let broker = broker(&stage.redis.url()).await;
    eventually(LATER, "every member is settled", async || {
        let depth = depth(&broker, "celery").await;
        depth.waiting + depth.in_flight == 0
    })
    .await;
    assert!(
        stage.worker.exit().is_none() && !stage.worker.log().contains("panicked"),
        "{}",
        stage.worker.tail()
    );
}

/// A wire that now and then gives the client another reply than the server's.
struct Liar {
    port: u16,
    told: Arc<AtomicUsize>,
}

impl Liar {
    /// After every `each` replies to a script, one of these instead.
    async fn before(server: &Redis, each: usize) -> Liar {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("loopback");
        let (port, server) = (listener.local_addr().expect("it is bound").port(), server.port());
        let (told, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&told);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (told, seen) = (Arc::clone(&count), Arc::clone(&seen));
                tokio::spawn(async move {
                    let upstream = TcpStream::connect(("127.0.0.1", server)).await?;
                    relay(client, upstream, each, &told, &seen).await
                });
            }
        });
        Liar { port, told }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }
}

const LIES: [&[u8]; 12] = [
    b"+OK\r\n",
    b":42\r\n",
    b"$-1\r\n",
    b"*0\r\n",
    b"*1\r\n$5\r\nhello\r\n",
    b"*3\r\n:1\r\n:2\r\n*0\r\n",
    b"-ERR what do you mean?\r\n",
    b"$3\r\n\xff\xfe\xfd\r\n",
    b"*2\r\n$2\r\nok\r\n$3\r\nfoo\r\n",
    b",3.14\r\n",
    b"#t\r\n",
    b"no reply at all\r\n",
];

async fn relay(
    client: TcpStream,
    server: TcpStream,
    each: usize,
    told: &AtomicUsize,
    seen: &AtomicUsize,
) -> std::io::Result<()> {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let (mut requests, mut replies) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut is_script = false;
    loop {
        tokio::select! {
            read = from_client.read(&mut requests) => {
                let read = read?;
                if read == 0 {
                    return Ok(());
                }
                is_script = requests[..read].windows(4).any(|window| window == b"EVAL");
                to_server.write_all(&requests[..read]).await?;
            }
            read = from_server.read(&mut replies) => {
                let read = read?;
                if read == 0 {
                    return Ok(());
                }
                if is_script && (seen.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(each) {
                    is_script = false;
                    let lie = LIES[told.fetch_add(1, Ordering::Relaxed) % LIES.len()];
                    to_client.write_all(lie).await?;
                } else {
                    to_client.write_all(&replies[..read]).await?;
                }
            }
        }
    }
}

#[tokio::test]
async fn i15_a_reply_of_another_type_is_an_error_and_a_new_connection() {
    let redis = Redis::start().await;
    let history = History::new();
    let liar = Liar::before(&redis, 7).await;
    let mut worker = test_worker(&liar.url(), &history, &["--concurrency", "4"]);
    let mut celery = Celery::client(&redis.url()).await;
    admitted(&redis, 1).await;
    let mut ids = Vec::new();
    while liar.told.load(Ordering::Relaxed) < LIES.len() {
        let more = celery.send_all("test.work", vec![json!([0.0]); 10], json!({})).await;
        celery.wait_all(&more, LATER).await;
        ids.extend(more);
        assert!(
            ids.len() < 2_000,
            "lies are told: {}",
            liar.told.load(Ordering::Relaxed)
        );
    }
    let states = celery.wait_all(&ids, LATER).await;
    assert_eq!(states.get("SUCCESS"), Some(&ids.len()), "{states:?}");
    let broker = broker(&redis.url()).await;
    eventually(LATER, "nothing is left", async || {
        let depth = depth(&broker, "celery").await;
        depth.waiting + depth.in_flight == 0
    })
    .await;
    assert!(
        worker.exit().is_none() && !worker.log().contains("panicked"),
        "{}",
        worker.tail()
    );
}
