//! Other serializers, compressions and signatures, between real Celery and our worker, both ways.

use serde_json::{Value, json};
use umbel_codec::{Codec, Compression, Digest, Keyring, Options, Serializer, Signer};
use umbel_protocol::json::Json;
use umbel_protocol::message::{self, NewTask, Retry};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, CeleryOptions, CeleryWorker, History, Redis, Signer as Keys, eventually};

use crate::support::{SOON, laid_aside, test_worker, umbel_worker};

/// Texts that a careless writer or reader takes for something else.
fn tricky() -> Value {
    json!([
        1,
        -7,
        2.5,
        null,
        true,
        "zwölf ☂ 😀",
        "",
        "yes",
        "012",
        "1e3",
        "~",
        "a: b # c",
        "- x",
        "line\nbreak\t",
        "\u{0}\u{1f}\u{85}\u{2028}",
        {"k": [[], {}, [{"n": null}]], "": "null"},
        18_446_744_073_709_551_615_u64,
        1e-7,
    ])
}

#[tokio::test]
async fn celerys_messages_in_every_serializer_and_compression_run_here() {
    let redis = Redis::start().await;
    let _worker = umbel_worker(&redis.url(), &["--accept", "json,msgpack,application/x-yaml"]);
    let mut celery = Celery::client(&redis.url()).await;
    let mut sent = Vec::new();
    for serializer in ["json", "msgpack", "yaml"] {
        for compression in [
            None,
            Some("zlib"),
            Some("bzip2"),
            Some("lzma"),
            Some("brotli"),
            Some("zstd"),
        ] {
            let options = json!({"serializer": serializer, "compression": compression, "kwargs": {"a": tricky()}});
            let id = celery.send("umbel.echo", tricky(), options).await;
            sent.push((serializer, compression, id));
        }
    }
    for (serializer, compression, id) in sent {
        assert_eq!(
            celery.get(&id, SOON).await,
            Ok(json!({"args": tricky(), "kwargs": {"a": tricky()}})),
            "{serializer}, {compression:?}"
        );
    }
    // What only some of them have: Python's own types, and the old protocol.
    let written = "sig('umbel.echo', [datetime(2024, 5, 6, 7, 8, 9, 10, tzinfo=utc), date(2024, 5, 6), b'abc', b'\\xff\\x00', nan, -inf, 10**40])";
    let handle = celery.apply(&format!("{written}.set(serializer='yaml')"), None).await;
    let answer = celery.result(&handle, SOON).await.expect("it ran");
    let plain = celery.apply(written, None).await;
    assert_eq!(
        answer,
        celery.result(&plain, SOON).await.expect("it ran"),
        "as the same in JSON"
    );
    assert!(answer.contains(&format!("1{}", "0".repeat(40))), "{answer}");
}

#[tokio::test]
async fn protocol_1_in_every_serializer_runs_here() {
    let redis = Redis::start().await;
    let _worker = umbel_worker(&redis.url(), &["--accept", "json,msgpack,yaml"]);
    let mut celery = Celery::client_with(&redis.url(), &redis.url(), &json!({"task_protocol": 1})).await;
    for serializer in ["json", "msgpack", "yaml"] {
        let options = json!({"serializer": serializer, "compression": "zstd", "kwargs": {"k": "v"}});
        let id = celery.send("umbel.echo", json!([serializer]), options).await;
        assert_eq!(
            celery.get(&id, SOON).await,
            Ok(json!({"args": [serializer], "kwargs": {"k": "v"}}))
        );
    }
}

fn task(id: &str, args: &Value) -> NewTask {
    NewTask {
        id: id.to_owned(),
        task: "umbel.echo".into(),
        args: Json::of(args),
        ..NewTask::default()
    }
}

#[tokio::test]
async fn a_celery_worker_runs_what_we_write_and_what_we_retry() {
    let redis = Redis::start().await;
    let settings = json!({"accept_content": ["json", "msgpack", "yaml"]});
    let options = CeleryOptions {
        settings,
        ..CeleryOptions::default()
    };
    let _worker = CeleryWorker::start(&redis.url(), &options).await;
    let mut celery = Celery::client(&redis.url()).await;
    let mut connection = redis.connection().await;
    let codec = Codec::default();
    let mut ids = Vec::new();
    for serializer in [Serializer::Json, Serializer::Msgpack, Serializer::Yaml] {
        for compression in std::iter::once(None).chain(Compression::ALL.map(Some)) {
            let id = format!("{serializer}-{}", compression.map_or("plain", Compression::name));
            let raw = codec
                .encode(&task(&id, &tricky()), serializer, compression)
                .expect("every serializer has these");
            let change = Retry {
                retries: 1,
                delivery_tag: format!("{id}-again"),
                ..Retry::default()
            };
            let again = codec
                .retry(&raw, &change, &jiff::tz::TimeZone::UTC)
                .expect("we wrote it");
            let body = |raw: &[u8]| message::body(raw).expect("we wrote it").bytes.into_owned();
            assert_eq!(body(&again), body(&raw), "{id}: the body is not touched");
            let again = String::from_utf8(again)
                .expect("it is text")
                .replace(&id, &format!("{id}-again"));
            for raw in [raw, again.into_bytes()] {
                connection
                    .lpush::<_, _, ()>("celery", raw)
                    .await
                    .expect("the server answers");
            }
            ids.extend([id.clone(), format!("{id}-again")]);
        }
    }
    for id in ids {
        assert_eq!(
            celery.get(&id, SOON).await,
            Ok(json!({"args": tricky(), "kwargs": {}})),
            "{id}"
        );
    }
}

#[tokio::test]
async fn what_is_retried_here_keeps_its_bytes() {
    let redis = Redis::start().await;
    let history = History::new();
    let flags = ["--accept", "json,msgpack,yaml", "--retry-initial-backoff", "1h"];
    let _worker = test_worker(&redis.url(), &history, &flags);
    let mut connection = redis.connection().await;
    let codec = Codec::default();
    let kept = r#", "x-nan": NaN, "x-big": 123456789012345678901234567890, "x-new": {"deep": [1e400]}}, "properties": {"unknown": -Infinity, "#;
    for (serializer, compression) in [
        (Serializer::Json, None),
        (Serializer::Msgpack, Some(Compression::Zstd)),
        (Serializer::Yaml, Some(Compression::Bzip2)),
    ] {
        let flaky = NewTask {
            task: "test.flaky".into(),
            args: Json::of(&(1,)),
            ..task(&format!("id-{serializer}"), &json!([]))
        };
        let raw = codec.encode(&flaky, serializer, compression).expect("a number");
        let raw = String::from_utf8(raw).expect("it is text");
        let raw = raw.replace("}, \"properties\": {", kept);
        connection
            .lpush::<_, _, ()>("celery", &raw)
            .await
            .expect("the server answers");
        let body = |raw: &[u8]| message::body(raw).expect("a message").bytes.into_owned();
        eventually(SOON, "its retry waits", async || {
            let waiting: Vec<Vec<u8>> = connection
                .zrange("umbel:delayed:celery", 0, -1)
                .await
                .expect("the server answers");
            waiting.iter().any(|member| {
                let begin = member.iter().position(|byte| *byte == b'{').unwrap_or(0);
                let text = String::from_utf8_lossy(&member[begin..]).into_owned();
                text.contains(&format!("id-{serializer}"))
                    && text.contains("\"retries\": 1")
                    && text.contains(
                        "\"x-nan\": NaN, \"x-big\": 123456789012345678901234567890, \"x-new\": {\"deep\": [1e400]}",
                    )
                    && text.contains("\"unknown\": -Infinity")
                    && body(text.as_bytes()) == body(raw.as_bytes())
            })
        })
        .await;
    }
}

struct Signed {
    redis: Redis,
    celerys: Keys,
    ours: Keys,
    trusted: umbel_testkit::TempDir,
}

impl Signed {
    async fn new() -> Signed {
        let (celerys, ours) = (Keys::new("celery"), Keys::new("umbel"));
        let trusted = umbel_testkit::TempDir::new("trusted");
        for (keys, name) in [(&celerys, "celery.pem"), (&ours, "umbel.pem")] {
            std::fs::copy(keys.certificate(), trusted.path().join(name)).expect("the folder is ours");
        }
        Signed {
            redis: Redis::start().await,
            celerys,
            ours,
            trusted,
        }
    }

    fn settings(&self) -> Value {
        let mut settings = self.celerys.settings();
        settings["security_cert_store"] = json!(self.trusted.path().join("*.pem").to_str());
        settings["task_serializer"] = json!("auth");
        settings["accept_content"] = json!(["auth"]);
        settings["result_accept_content"] = json!(["json"]);
        settings
    }

    fn worker(&self, more: &[&str]) -> umbel_testkit::Process {
        let path = |path: std::path::PathBuf| path.to_str().expect("ours").to_owned();
        let folder = path(self.trusted.path().to_owned());
        let (key, certificate) = (path(self.ours.key()), path(self.ours.certificate()));
        let mut flags = vec!["--security-certificates", &folder, "--security-key", &key];
        flags.extend(["--security-certificate", &certificate]);
        flags.extend(more);
        umbel_worker(&self.redis.url(), &flags)
    }
}

#[tokio::test]
async fn signed_messages_go_both_ways_and_unsigned_ones_are_refused() {
    let stage = Signed::new().await;
    let mut worker = stage.worker(&["--accept", "auth"]);
    let options = CeleryOptions {
        queues: "python",
        settings: stage.settings(),
        ..CeleryOptions::default()
    };
    let url = stage.redis.url();
    let _python = CeleryWorker::start(&url, &options).await;
    let mut celery = Celery::client_with(&url, &url, &stage.settings()).await;
    for compression in [None, Some("zlib"), Some("zstd")] {
        let id = celery
            .send("umbel.echo", tricky(), json!({"compression": compression}))
            .await;
        assert_eq!(
            celery.get(&id, SOON).await,
            Ok(json!({"args": tricky(), "kwargs": {}})),
            "Celery signs, we verify; {compression:?}"
        );
    }
    // Our worker sends the second step, to a Celery worker that accepts nothing unsigned, and that one the third.
    let chain = "chain(e(1), e().set(queue='python'), e().set(queue='celery'))";
    let answer = celery.canvas(chain, SOON).await.expect("all three ran");
    assert_eq!(
        answer,
        json!({"args": [{"args": [{"args": [1], "kwargs": {}}], "kwargs": {}}], "kwargs": {}}),
    );
    // Without a signature, or with that of somebody unknown.
    let mut careless = Celery::client(&url).await;
    let unsigned = careless.send("umbel.echo", json!([1]), json!({})).await;
    let raised = careless.get(&unsigned, SOON).await.expect_err("it is not signed");
    assert_eq!(raised.message, "content type `application/json` is not accepted");
    let stranger = Keys::new("stranger");
    let mut settings = stage.settings();
    for (name, value) in stranger.settings().as_object().expect("settings") {
        settings[name] = value.clone();
    }
    let mut unknown = Celery::client_with(&url, &url, &settings).await;
    let forged = unknown.send("umbel.echo", json!([1]), json!({})).await;
    let raised = unknown.get(&forged, SOON).await.expect_err("nobody knows the signer");
    assert!(
        raised.message.starts_with("signature refused: signer `Umbel stranger ")
            && raised.message.ends_with("is not known"),
        "{}",
        raised.message
    );
    let kept = laid_aside(&stage.redis, "quarantine", "celery").await;
    assert_eq!(kept.len(), 2, "{kept:?}");
    assert!(worker.exit().is_none());
}

/// A retry with other arguments is another message: it is not sent unsigned in the place of a signed one.
#[tokio::test]
async fn a_retry_of_a_signed_message_with_other_arguments_needs_a_key() {
    let stage = Signed::new().await;
    let history = History::new();
    let folder = stage.trusted.path().to_str().expect("ours").to_owned();
    let flags = ["--accept", "auth", "--security-certificates", &folder];
    let url = stage.redis.url();
    let mut worker = test_worker(&url, &history, &flags);
    worker.says(SOON, "what this worker sends is not signed").await;
    let mut celery = Celery::client_with(&url, &url, &stage.settings()).await;
    let id = celery.send("test.again", json!([0]), json!({})).await;
    celery.get(&id, SOON).await.expect_err("it cannot be sent again");
    let dead = laid_aside(&stage.redis, "dead", "celery").await;
    let reason = &dead[0].0;
    assert!(
        reason.contains("no retry could be made of it") && reason.contains("there is no key to sign with"),
        "{reason}"
    );
    let mut connection = stage.redis.connection().await;
    let sent: usize = connection.llen("other\u{6}\u{16}6").await.expect("the server answers");
    assert_eq!(sent, 0);
}

#[tokio::test]
async fn a_celery_worker_verifies_what_we_sign() {
    let stage = Signed::new().await;
    let url = stage.redis.url();
    let options = CeleryOptions {
        settings: stage.settings(),
        ..CeleryOptions::default()
    };
    let _python = CeleryWorker::start(&url, &options).await;
    let mut celery = Celery::client_with(&url, &url, &stage.settings()).await;
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).expect("it was just made");
    let certificate = read(stage.ours.certificate());
    let signer = Signer::new(&read(stage.ours.key()), certificate.as_bytes(), Digest::Sha256).expect("a pair");
    let mut keyring = Keyring::new(Digest::Sha256, jiff::Timestamp::now);
    keyring.add(certificate.as_bytes()).expect("a certificate");
    let codec = Codec::new(Options {
        accept: vec![Serializer::Auth],
        keyring: Some(keyring),
        signer: Some(signer),
        ..Options::default()
    });
    let mut connection = stage.redis.connection().await;
    for compression in [None, Some(Compression::Brotli)] {
        let id = format!("signed-{compression:?}");
        let raw = codec
            .encode(&task(&id, &tricky()), Serializer::Auth, compression)
            .expect("there is a key");
        let change = Retry {
            retries: 1,
            delivery_tag: "another".into(),
            ..Retry::default()
        };
        let again = codec
            .retry(&raw, &change, &jiff::tz::TimeZone::UTC)
            .expect("we wrote it");
        connection
            .lpush::<_, _, ()>("celery", again)
            .await
            .expect("the server answers");
        assert_eq!(
            celery.get(&id, SOON).await,
            Ok(json!({"args": tricky(), "kwargs": {}})),
            "a retry keeps its signature"
        );
    }
}

#[tokio::test]
async fn flags_that_contradict_each_other_end_the_worker_with_their_names() {
    let (keys, others) = (Keys::new("ours"), Keys::new("other"));
    let path = |path: std::path::PathBuf| path.to_str().expect("ours").to_owned();
    let (key, other) = (path(keys.key()), path(others.certificate()));
    let (own, folder) = (path(keys.certificate()), path(keys.trusted()));
    let cases: [(&[&str], &str); 9] = [
        (&["--accept", "pickle"], "--accept: serializer \"pickle\" is not known"),
        (&["--accept", ""], "--accept: must name at least one serializer"),
        (
            &["--accept", "auth"],
            "--security-certificates: must name the certificates",
        ),
        (
            &["--security-certificates", &folder],
            "--security-certificates: is of no use",
        ),
        (&["--security-key", &key], "--security-certificate: must name"),
        (&["--security-certificate", &own], "--security-key: must name"),
        (
            &["--accept", "auth", "--security-certificates", &key],
            "no PEM certificate",
        ),
        (
            &["--max-inflated", "33554433"],
            "--max-inflated: must be from 1 to 33554432",
        ),
        (
            &["--security-digest", "md5"],
            "--security-digest: digest \"md5\" is not one of sha256, sha384 and sha512",
        ),
    ];
    for (flags, text) in cases {
        let mut worker = umbel_worker("redis://127.0.0.1:1/0", flags);
        let status = worker.wait(SOON).await;
        assert!(
            !status.success() && worker.log().contains(text),
            "{flags:?}:\n{}",
            worker.log()
        );
    }
    let mixed = ["--security-key", key.as_str(), "--security-certificate", other.as_str()];
    let mut worker = umbel_worker("redis://127.0.0.1:1/0", &mixed);
    worker.wait(SOON).await;
    assert!(
        worker.log().contains("the private key is not that of the certificate") && !worker.log().contains("PRIVATE"),
        "{}",
        worker.log()
    );
}
