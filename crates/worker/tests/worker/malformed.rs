//! What is no task message, or in no list: kept with a reason, and nobody else is disturbed.

mod bombs;
mod forged;
mod scrambled;

use serde_json::{Value, json};
use umbel_testkit::redis::{self, AsyncCommands};
use umbel_testkit::{Celery, History, Process, Redis, eventually};

use crate::support::{SOON, admitted, borrowed, broker, depth, laid_aside, test_worker};

/// An envelope as Celery sends it, with one thing changed.
fn envelope(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let mut message = json!({
        "body": "W1swLjBdLCB7fSwgeyJjYWxsYmFja3MiOiBudWxsLCAiZXJyYmFja3MiOiBudWxsLCAiY2hhaW4iOiBudWxsLCAiY2hvcmQiOiBudWxsfV0=",
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py", "task": "test.work", "id": "the-id", "eta": null, "expires": null, "retries": 0,
            "timelimit": [null, null], "root_id": "the-id", "argsrepr": "()", "kwargsrepr": "{}",
        },
        "properties": {
            "correlation_id": "the-id", "delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": "celery"},
            "priority": 0, "body_encoding": "base64", "delivery_tag": "the-tag",
        },
    });
    change(&mut message);
    message.to_string().into_bytes()
}

/// A message whose body is this text.
fn with_body(text: &str) -> Vec<u8> {
    envelope(|message| {
        message["body"] = json!(text);
        message["properties"]["body_encoding"] = json!("utf-8");
    })
}

/// A message with this under a path of its own.
fn with(path: &[&str], value: Value) -> Vec<u8> {
    envelope(|message| {
        let mut place = message;
        for name in path {
            place = &mut place[*name];
        }
        *place = value;
    })
}

/// A worker, a client and a history; messages are pushed by hand.
pub(super) struct Stage {
    pub(super) redis: Redis,
    pub(super) worker: Process,
    pub(super) celery: Celery,
    history: History,
}

/// What became of a corpus: reason and task id of each message that was put aside.
pub(super) type Kept = Vec<(String, String)>;

impl Stage {
    pub(super) async fn start(flags: &[&str]) -> Stage {
        let redis = Redis::start().await;
        let history = History::new();
        let flags: Vec<&str> = ["--concurrency", "4"].iter().chain(flags).copied().collect();
        let worker = test_worker(&redis.url(), &history, &flags);
        admitted(&redis, 1).await;
        let celery = Celery::client(&redis.url()).await;
        Stage {
            redis,
            worker,
            celery,
            history,
        }
    }

    /// Pushes these among good messages, and waits until all the good ones have run and none of these is left.
    ///
    /// # Panics
    /// When a neighbour did not run, one of these is gone without a trace or stuck, or the worker has ended.
    pub(super) async fn put_aside(&mut self, corpus: &[(&str, Vec<u8>)]) -> Kept {
        let neighbours = self.run_beside(corpus).await;
        self.all_ran(&neighbours).await;
        let mut raws = raws(&self.redis, "umbel:quarantine:celery").await;
        raws.extend(self::raws(&self.redis, "umbel:dead:celery").await);
        let gone: Vec<&str> = corpus
            .iter()
            .filter(|(_, raw)| !raws.contains(raw))
            .map(|(name, _)| *name)
            .collect();
        let kept = self.kept().await;
        let reasons: Vec<&String> = kept.iter().map(|(reason, _)| reason).collect();
        assert!(gone.is_empty(), "not kept byte for byte: {gone:?}; kept: {reasons:#?}");
        assert!(
            reasons.iter().all(|reason| !reason.is_empty()),
            "with a reason: {reasons:#?}"
        );
        kept
    }

    /// Pushes these among good messages; the ids of the good ones.
    pub(super) async fn run_beside(&mut self, corpus: &[(&str, Vec<u8>)]) -> Vec<String> {
        let mut connection = self.redis.connection().await;
        let calls = vec![json!([0.0]); corpus.len().clamp(2, 20)];
        let mut neighbours = self.celery.send_all("test.work", calls.clone(), json!({})).await;
        for (name, raw) in corpus {
            connection.lpush::<_, _, ()>("celery", raw).await.expect(name);
        }
        neighbours.extend(self.celery.send_all("test.work", calls, json!({})).await);
        self.history.enqueued(borrowed(&neighbours));
        neighbours
    }

    async fn all_ran(&mut self, neighbours: &[String]) {
        let states = self.celery.wait_all(neighbours, SOON).await;
        assert_eq!(
            states.get("SUCCESS").copied().unwrap_or(0),
            neighbours.len(),
            "{states:?}"
        );
        let broker = broker(&self.redis.url()).await;
        eventually(SOON, "nothing is left", async || {
            let depth = depth(&broker, "celery").await;
            depth.waiting + depth.in_flight == 0
        })
        .await;
        assert!(self.worker.exit().is_none(), "the worker lives");
        assert!(!self.worker.log().contains("panicked"), "{}", self.worker.tail());
    }

    async fn kept(&self) -> Kept {
        let mut kept = laid_aside(&self.redis, "quarantine", "celery").await;
        kept.extend(laid_aside(&self.redis, "dead", "celery").await);
        kept
    }

    /// Pushes these, waits until each has run, and answers what each got as arguments.
    async fn run(&mut self, corpus: &[(&str, Vec<u8>)]) {
        let neighbours = self.run_beside(corpus).await;
        self.all_ran(&neighbours).await;
        let kept = self.kept().await;
        assert!(kept.is_empty(), "nothing was put aside: {kept:#?}");
    }
}

fn utf16(raw: &[u8], unit: fn(u16) -> [u8; 2]) -> Vec<u8> {
    String::from_utf8_lossy(raw).encode_utf16().flat_map(unit).collect()
}

#[tokio::test]
async fn i01_what_is_no_json_text_is_kept_byte_for_byte() {
    let whole = envelope(|_| ());
    let mut nul = whole.clone();
    nul.insert(7, 0);
    let corpus: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("no JSON", b"hello".to_vec()),
        ("a JSON null", b"null".to_vec()),
        ("a number", b"7".to_vec()),
        ("a string", b"\"text\"".to_vec()),
        ("an array", b"[]".to_vec()),
        ("an empty object", b"{}".to_vec()),
        ("truncated by half", whole[..whole.len() / 2].to_vec()),
        ("truncated by a byte", whole[..whole.len() - 1].to_vec()),
        ("two documents", [whole.clone(), whole.clone()].concat()),
        ("no UTF-8", vec![b'{', b'"', 0xff, 0xfe, b'"', b':', b'1', b'}']),
        (
            "half a surrogate pair in UTF-8",
            b"{\"body\": \"\xed\xa0\x80\"}".to_vec(),
        ),
        ("a byte order mark", [b"\xef\xbb\xbf", whole.as_slice()].concat()),
        ("UTF-16, little", utf16(&whole, u16::to_le_bytes)),
        ("UTF-16, big", utf16(&whole, u16::to_be_bytes)),
        ("nul bytes", vec![0; 64]),
        ("a nul byte inside", nul),
        ("a pickle", b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00}.".to_vec()),
        ("a body that is no base64", with(&["body"], json!("***"))),
        ("a body that is no JSON", with_body("nope")),
        ("a body with a byte order mark", with_body("\u{feff}[[], {}, null]")),
        ("single quotes", with_body("[[], {'a': 1}, null]")),
    ];
    let mut stage = Stage::start(&[]).await;
    stage.put_aside(&corpus).await;
    let (state, info) = stage.celery.state("the-id").await;
    assert_eq!(state, "FAILURE", "where an id is known, its caller learns it: {info}");
    // A lone surrogate in an escape is a text that Python has, and runs.
    let id = r#""\ud800-\udc00x""#;
    let odd = String::from_utf8(with_body(&format!("[[0.0], {{}}, {{\"x\": {id}}}]"))).expect("text");
    stage.run_one(&odd).await;
}

#[tokio::test]
async fn i02_structure_has_limits_and_numbers_have_none() {
    let nested = |depth: usize| format!("[[{}{}], {{}}, null]", "[".repeat(depth), "]".repeat(depth));
    let keys = |count: usize| {
        let entries: Vec<String> = (0..count).map(|key| format!("\"{key}\":0")).collect();
        format!("[[], {{{}}}, null]", entries.join(","))
    };
    let corpus = vec![
        ("1,000 levels", with_body(&nested(1_000))),
        ("100,000 levels", with_body(&nested(100_000))),
        ("100,000 levels of envelope", "{\"a\":".repeat(100_000).into_bytes()),
        ("1,000,000 keys", with_body(&keys(1_000_000))),
        (
            "20,000 headers",
            with(
                &["headers"],
                (0..20_000).map(|key| (key.to_string(), json!(0))).collect(),
            ),
        ),
    ];
    let mut stage = Stage::start(&["--max-message", "33554432"]).await;
    let kept = stage.put_aside(&corpus).await;
    let limits = kept.iter().filter(|(reason, _)| {
        reason.contains("nested deeper than 64 levels")
            || reason.contains("more than 10000 keys")
            || reason.contains("more than 500000 keys")
    });
    assert_eq!(limits.count(), corpus.len(), "{kept:#?}");
    // Numbers that nobody has a type for go through the delayed set and a task byte by byte.
    let args = "[NaN, -Infinity, 1e400, 9223372036854775809, 1606938044258990275541962092341162602522202993782792835301376, 1.0, 1]";
    let raw = envelope(|message| {
        message["headers"]["task"] = json!("umbel.echo");
        message["headers"]["eta"] = json!("2099-01-01T00:00:00+00:00");
        message["properties"]["body_encoding"] = json!("utf-8");
    });
    let text = String::from_utf8(raw).expect("text");
    let begin = text.find("\"body\":").expect("it has one") + 7;
    let end = text[begin..].find(",\"").expect("more follows") + begin;
    let body = format!("[{args}, {{\"a\": 1, \"a\": 2}}, null]").replace('"', "\\\"");
    let text = format!("{}\"{body}\"{}", &text[..begin], &text[end..]);
    let mut connection = stage.redis.connection().await;
    connection
        .lpush::<_, _, ()>("celery", &text)
        .await
        .expect("the server answers");
    eventually(SOON, "it waits for its time, byte for byte", async || {
        let waiting: Vec<Vec<u8>> = connection
            .zrange("umbel:delayed:celery", 0, -1)
            .await
            .expect("the server answers");
        waiting.iter().any(|member| member.ends_with(text.as_bytes()))
    })
    .await;
    let now = text.replace("2099-01-01T00:00:00+00:00", "2020-01-01T00:00:00+00:00");
    connection
        .lpush::<_, _, ()>("celery", now)
        .await
        .expect("the server answers");
    eventually(SOON, "its result has the same digits", async || {
        let result: Option<String> = connection
            .get("celery-task-meta-the-id")
            .await
            .expect("the server answers");
        result.is_some_and(|result| result.contains(args) && result.contains(r#"{"a": 1, "a": 2}"#))
    })
    .await;
}

#[tokio::test]
async fn i03_serializers_that_are_not_accepted_are_refused_unread() {
    let mut stage = Stage::start(&[]).await;
    let mut ids = Vec::new();
    for serializer in ["pickle", "yaml", "msgpack"] {
        let options = json!({"serializer": serializer});
        ids.push(stage.celery.send("test.work", json!([0.0]), options).await);
    }
    for id in &ids {
        let raised = stage.celery.get(id, SOON).await.expect_err("it is refused");
        assert!(
            raised.exc_type == "DecodeError" && raised.message.ends_with("is not accepted"),
            "{raised:?}"
        );
    }
    let labelled = |content_type: &str| {
        envelope(|message| {
            message["content-type"] = json!(content_type);
            message["body"] = json!("!"); // Nobody could read it.
        })
    };
    let types = [
        "application/data",
        "application/x-python-serialize",
        "application/x-msgpack",
        "application/x-yaml",
        "text/plain",
        "application/octet-stream",
        "",
        "application/json; charset=utf-8\u{1b}[31m",
    ];
    let corpus: Vec<(&str, Vec<u8>)> = types.iter().map(|name| (*name, labelled(name))).collect();
    let kept = stage.put_aside(&corpus).await;
    assert!(
        kept.iter()
            .all(|(reason, _)| reason.starts_with("content type `") && reason.ends_with("` is not accepted")),
        "{kept:#?}"
    );
    assert!(
        !stage.worker.log().contains('\u{1b}'),
        "nothing foreign reaches a terminal"
    );
}

#[tokio::test]
async fn i06_what_a_message_lacks_is_named_or_has_a_default() {
    let corpus = vec![
        ("no headers", with(&["headers"], json!(null))),
        ("headers that are a list", with(&["headers"], json!([]))),
        ("no task", with(&["headers", "task"], json!(null))),
        ("a task that is a number", with(&["headers", "task"], json!(7))),
        ("an empty task", with(&["headers", "task"], json!(""))),
        ("no id", with(&["headers", "id"], json!(null))),
        ("an id that is a number", with(&["headers", "id"], json!(7))),
        ("an id that is an object", with(&["headers", "id"], json!({}))),
        ("no content type", with(&["content-type"], json!(null))),
        ("a content type that is a list", with(&["content-type"], json!([]))),
        ("an unknown character set", with(&["content-encoding"], json!("utf-7"))),
        ("no body", with(&["body"], json!(null))),
        ("a body that is an object", with(&["body"], json!({}))),
        (
            "an unknown encoding",
            with(&["properties", "body_encoding"], json!("rot13")),
        ),
        ("a body of two", with_body("[[], {}]")),
        ("a body of four", with_body("[[], {}, {}, {}]")),
        ("arguments that are no list", with_body("[1, {}, {}]")),
        ("keywords that are no object", with_body("[[], 1, {}]")),
        ("keywords that are null", with_body("[[], null, {}]")),
        ("an embed that is a list", with_body("[[], {}, []]")),
        ("an ETA that is no time", with(&["headers", "eta"], json!("tomorrow"))),
        (
            "an ETA that is a number",
            with(&["headers", "eta"], json!(1_700_000_000)),
        ),
        ("an expiry that is no time", with(&["headers", "expires"], json!({}))),
        (
            "a time limit that is no pair",
            with(&["headers", "timelimit"], json!(30)),
        ),
        (
            "a compression that is a number",
            with(&["headers", "compression"], json!(7)),
        ),
        (
            "a false compression",
            with(&["headers", "compression"], json!("application/x-gzip")),
        ),
    ];
    let mut stage = Stage::start(&[]).await;
    stage.put_aside(&corpus).await;
    // These have defaults, and run.
    let mut stage = Stage::start(&[]).await;
    let whole = [
        ("priority \"high\"", with(&["properties", "priority"], json!("high"))),
        ("priority -5", with(&["properties", "priority"], json!(-5))),
        ("priority 10⁹", with(&["properties", "priority"], json!(1_000_000_000))),
        ("no delivery_info", with(&["properties", "delivery_info"], json!(null))),
        (
            "a delivery_info that is text",
            with(&["properties", "delivery_info"], json!("celery")),
        ),
        (
            "a routing key that is a number",
            with(&["properties", "delivery_info", "routing_key"], json!(7)),
        ),
        ("no delivery_tag", with(&["properties", "delivery_tag"], json!(null))),
        ("no correlation_id", with(&["properties", "correlation_id"], json!(7))),
        ("no root", with(&["headers", "root_id"], json!(null))),
        ("retries that are text", with(&["headers", "retries"], json!("many"))),
        (
            "a group index that is text",
            with(&["headers", "group_index"], json!("first")),
        ),
        ("a language", with(&["headers", "lang"], json!(null))),
        ("no content encoding", with(&["content-encoding"], json!(null))),
    ];
    stage.run_all(&whole).await;
}

#[tokio::test]
async fn i07_both_protocols_run_and_no_other() {
    let mut stage = Stage::start(&[]).await;
    let old = with_body(
        r#"{"task": "test.work", "id": "old", "args": [0.0], "kwargs": {}, "retries": 0, "eta": null, "expires": null, "utc": true, "callbacks": null, "errbacks": null, "timelimit": [null, null], "taskset": null, "chord": null}"#,
    );
    let mut old: Value = serde_json::from_slice(&old).expect("JSON");
    old["headers"] = json!({});
    stage.run(&[("protocol 1", old.to_string().into_bytes())]).await;
    assert_eq!(stage.celery.get("old", SOON).await, Ok(json!(0.0)));
    let without_headers = |body: &str| {
        let mut message: Value = serde_json::from_slice(&with_body(body)).expect("JSON");
        message["headers"] = json!({});
        message.to_string().into_bytes()
    };
    let corpus = vec![
        ("protocol 2 without its headers", without_headers("[[], {}, {}]")),
        (
            "protocol 3 of a later time",
            without_headers(r#"{"version": 3, "call": {"name": "test.work"}}"#),
        ),
        (
            "protocol 1 without a task",
            without_headers(r#"{"id": "x", "args": [], "kwargs": {}}"#),
        ),
        (
            "protocol 1 without an id",
            without_headers(r#"{"task": "test.work", "args": [], "kwargs": {}}"#),
        ),
        (
            "protocol 1 with arguments of a wrong kind",
            without_headers(r#"{"task": "test.work", "id": "x", "args": {}}"#),
        ),
        (
            "a body of protocol 1 under headers of protocol 2",
            with_body(r#"{"task": "test.work", "id": "x"}"#),
        ),
    ];
    stage.put_aside(&corpus).await;
}

#[tokio::test]
async fn i08_any_text_is_an_id_and_none_is_trusted() {
    let mut stage = Stage::start(&[]).await;
    let forged = "x\n{\"level\":\"ERROR\",\"message\":\"forged\"}";
    let ids = [
        forged,
        "\u{1b}[31mred\u{1b}[0m",
        "../../etc/passwd",
        "a\r\nSET x y",
        "\u{202e}drawkcab",
        "* ? [a-z]",
        "\0",
        &"x".repeat(1_024),
    ];
    let named = |id: &str, root: &str| {
        envelope(|message| {
            message["headers"]["id"] = json!(id);
            message["headers"]["root_id"] = json!(root);
        })
    };
    let corpus: Vec<(&str, Vec<u8>)> = ids.iter().map(|id| (*id, named(id, id))).collect();
    stage.run_all(&corpus).await;
    for id in ids {
        assert_eq!(stage.celery.state(id).await.0, "SUCCESS", "{id:?}");
    }
    let long = "x".repeat(10 << 10);
    let refused = vec![
        ("10 KB", named(&long, "r")),
        ("empty", named("", "r")),
        ("a root of 10 KB", named("i", &long)),
    ];
    stage.put_aside(&refused).await;
    let log = stage.worker.log();
    assert!(
        !log.contains('\u{1b}') && !log.contains('\u{202e}'),
        "escaped in the log"
    );
    assert!(
        log.lines()
            .all(|line| !line.starts_with("{\"level\":\"ERROR\",\"message\":\"forged\"")),
        "no line is forged"
    );
}

#[tokio::test]
async fn i09_what_a_sender_claims_about_deliveries_and_limits_is_clamped() {
    let mut stage = Stage::start(&[]).await;
    let corpus = [
        (
            "redelivered",
            with(&["properties", "delivery_info", "redelivered"], json!(true)),
        ),
        ("retries -1", with(&["headers", "retries"], json!(-1))),
        ("retries 2³³", with(&["headers", "retries"], json!(8_589_934_592_u64))),
        ("retries as a float", with(&["headers", "retries"], json!(1.5))),
        (
            "a limit of 30 years",
            with(&["headers", "timelimit"], json!([1e9, null])),
        ),
        ("limits below zero", with(&["headers", "timelimit"], json!([-1, 0]))),
        (
            "a limit of 10³⁰⁰ s",
            with(&["headers", "timelimit"], json!([1e300, 1e300])),
        ),
        (
            "an expiry in the year 9999",
            with(&["headers", "expires"], json!("9999-12-31T23:59:59.999999")),
        ),
        (
            "an ETA before Christ's time",
            with(&["headers", "eta"], json!("0001-01-01T00:00:00")),
        ),
        ("a header of ours", with(&["headers", "umbel_order"], json!("soon"))),
        ("a run of ours", with(&["headers", "umbel_run"], json!({"id": []}))),
    ];
    stage.run_all(&corpus).await;
}

impl Stage {
    /// Each of these runs `test.work` and is settled; nothing is put aside.
    async fn run_all(&mut self, corpus: &[(&str, Vec<u8>)]) {
        let before = self.kept().await.len();
        let neighbours = self.run_beside(corpus).await;
        self.all_ran(&neighbours).await;
        let kept = self.kept().await;
        assert_eq!(kept.len(), before, "nothing was put aside: {kept:#?}");
        let done = self.worker.log();
        assert!(!done.contains("panicked"), "{}", self.worker.tail());
    }

    async fn run_one(&mut self, raw: &str) {
        let mut connection = self.redis.connection().await;
        connection
            .del::<_, ()>("celery-task-meta-the-id")
            .await
            .expect("the server answers");
        connection
            .lpush::<_, _, ()>("celery", raw)
            .await
            .expect("the server answers");
        assert_eq!(self.celery.get("the-id", SOON).await, Ok(json!(0.0)));
    }
}

/// For a worker that accepts nothing unsigned: neighbours would be refused, too.
impl Stage {
    pub(super) async fn push(&mut self, raw: &[u8]) {
        let mut connection = self.redis.connection().await;
        connection
            .lpush::<_, _, ()>("celery", raw)
            .await
            .expect("the server answers");
    }

    /// Waits until all of these are put aside.
    pub(super) async fn refused(&mut self, corpus: &[(&str, Vec<u8>)]) -> Kept {
        for (_, raw) in corpus {
            self.push(raw).await;
        }
        self.all_ran(&[]).await;
        let kept = self.kept().await;
        assert_eq!(kept.len(), corpus.len(), "each is kept: {kept:#?}");
        kept
    }
}

async fn raws(redis: &Redis, key: &str) -> Vec<Vec<u8>> {
    let mut connection = redis.connection().await;
    stream(&mut connection, key).await
}

async fn stream(connection: &mut redis::aio::MultiplexedConnection, key: &str) -> Vec<Vec<u8>> {
    let entries: redis::streams::StreamRangeReply = connection.xrange_all(key).await.expect("the server answers");
    entries.ids.iter().filter_map(|entry| entry.get("raw")).collect()
}

#[tokio::test]
async fn a_queue_key_of_another_type_is_named_and_the_other_queues_run() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut connection = redis.connection().await;
    connection
        .set::<_, _, ()>("wrong", "a string")
        .await
        .expect("the server answers");
    let mut worker = test_worker(&redis.url(), &history, &["--queue", "wrong,right"]);
    let mut celery = Celery::client(&redis.url()).await;
    let ids = celery
        .send_all("test.work", vec![json!([0.0]); 50], json!({"queue": "right"}))
        .await;
    assert_eq!(celery.wait_all(&ids, SOON).await.get("SUCCESS"), Some(&50));
    worker.says(SOON, "WRONGTYPE").await;
    let lines: Vec<String> = worker
        .log()
        .lines()
        .filter(|line| line.contains("WRONGTYPE"))
        .map(str::to_owned)
        .collect();
    assert!(
        lines.len() <= 2 && lines[0].contains("wrong"),
        "one line that names the key: {lines:#?}"
    );
    connection.del::<_, ()>("wrong").await.expect("the server answers");
    let id = celery.send("test.work", json!([0.0]), json!({"queue": "wrong"})).await;
    assert_eq!(celery.get(&id, SOON).await, Ok(json!(0.0)), "mended, it is served");
}
