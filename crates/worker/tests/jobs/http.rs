//! `umbel.http` against a server of the test's, over plain and TLS connections.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, Uri};
use serde_json::{Value, json};
use umbel_protocol::message::TimeLimit;
use umbel_testkit::{Process, Redis, TempDir, eventually, free_port};

use crate::stage::{SOON, document, failure, send, send_limited, value, worker};

/// A request that arrived.
#[derive(Debug, Clone)]
struct Seen {
    method: Method,
    target: String,
    headers: BTreeMap<String, String>,
    body: String,
}

type Log = Arc<Mutex<Vec<Seen>>>;

/// A server that does what the path says.
struct Server {
    port: u16,
    log: Log,
}

impl Server {
    async fn start() -> Server {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let log = Log::default();
        let app = Router::new().fallback(answer).with_state(Arc::clone(&log));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Server { port, log }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Requests for this path, whatever their query.
    fn seen(&self, path: &str) -> Vec<Seen> {
        let log = self.log.lock().expect("no test panics with it");
        log.iter()
            .filter(|seen| seen.target.split('?').next() == Some(path))
            .cloned()
            .collect()
    }
}

async fn answer(State(log): State<Log>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let seen = Seen {
        method: method.clone(),
        target: uri.to_string(),
        headers: headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect(),
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    let earlier = {
        let mut log = log.lock().expect("no test panics with it");
        let earlier = log.iter().filter(|other| other.target == seen.target).count();
        log.push(seen);
        earlier
    };
    let to = uri.query().unwrap_or_default().to_owned();
    let status = |status: u16| Response::builder().status(status);
    let plain = |status: u16, text: &'static str| Response::builder().status(status).body(Body::from(text));
    match uri.path() {
        "/json" => status(201)
            .header("content-type", "application/json")
            .header("etag", "\"7\"")
            .header("set-cookie", "session=hidden")
            .body(Body::from(r#"{"n": 12345678901234567890123, "x": [1.50]}"#)),
        "/half" => status(200)
            .header("content-type", "application/json")
            .body(Body::from(r#"{"n": 1"#)),
        "/bytes" => status(200).body(Body::from(vec![b'a', 0xff, b'b'])),
        "/missing" => plain(404, "nothing here"),
        "/busy-once" if earlier == 0 => status(503).header("retry-after", "1").body(Body::from("later")),
        "/busy" => plain(429, "never"),
        "/broken" => plain(500, "oops"),
        "/flood" => {
            let endless =
                futures::stream::repeat_with(|| Ok::<_, std::convert::Infallible>(Bytes::from(vec![b'x'; 65536])));
            status(200).body(Body::from_stream(endless))
        }
        "/hang" => std::future::pending().await,
        "/found" => status(302).header("location", to).body(Body::empty()),
        "/same-method" => status(307).header("location", to).body(Body::empty()),
        "/loop" => status(302).header("location", "/loop").body(Body::empty()),
        "/lost" => status(302).body(Body::empty()),
        _ => plain(200, "ok"),
    }
    .expect("a response")
}

/// A worker that may call these hosts.
fn caller(redis: &Redis, hosts: &Value, env: &[(&str, &str)]) -> Process {
    worker(redis, &json!({"http": {"hosts": hosts}}), env)
}

#[tokio::test]
async fn what_a_server_answers_is_the_result() {
    let redis = Redis::start().await;
    let server = Server::start().await;
    let _worker = caller(
        &redis,
        &json!([server.url("")]),
        &[
            ("HTTP_PROXY", "http://127.0.0.1:9"),
            ("http_proxy", "http://127.0.0.1:9"),
        ],
    );
    let kwargs = json!({
        "url": server.url("/json?a=b%20c#part"), "method": "put", "json": {"pay": ["load", 1.5]},
        "headers": {"X-Trace": "t"},
    });
    let id = send(&redis, "umbel.http", "[]", &kwargs.to_string()).await;
    let text = send(
        &redis,
        "umbel.http",
        &json!([server.url("/plain")]).to_string(),
        r#"{"text": "zażółć"}"#,
    )
    .await;
    let half = send(&redis, "umbel.http", &json!([server.url("/half")]).to_string(), "{}").await;
    let bytes = send(&redis, "umbel.http", &json!([server.url("/bytes")]).to_string(), "{}").await;
    assert_eq!(
        value(&redis, &id).await,
        json!({"status": 201, "headers": {"content-type": "application/json", "etag": "\"7\""},
            "json": {"n": 12_345_678_901_234_567_890_123_f64, "x": [1.5]}}),
    );
    let seen = server.seen("/json").remove(0);
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("PUT", "/json?a=b%20c"));
    assert_eq!(seen.body, r#"{"pay":["load",1.5]}"#);
    let host = format!("127.0.0.1:{}", server.port);
    for (name, expected) in [
        ("idempotency-key", id.as_str()),
        ("content-type", "application/json"),
        ("x-trace", "t"),
        ("host", &host),
        ("content-length", "20"),
    ] {
        assert_eq!(seen.headers.get(name).map(String::as_str), Some(expected), "{name}");
    }
    assert_eq!(
        value(&redis, &text).await,
        json!({"status": 200, "headers": {}, "text": "ok"})
    );
    let seen = server.seen("/plain").remove(0);
    assert_eq!((seen.method.as_str(), seen.body.as_str()), ("POST", "zażółć"));
    assert_eq!(value(&redis, &half).await["text"], "{\"n\": 1");
    assert_eq!(value(&redis, &bytes).await["text"], "a\u{fffd}b");
}

#[tokio::test]
async fn refusals_are_final_and_troubles_are_tried_again_under_the_same_key() {
    let redis = Redis::start().await;
    let server = Server::start().await;
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let mut worker = caller(&redis, &json!([server.url(""), nobody]), &[]);
    let run = async |url: String, kwargs: &str| send(&redis, "umbel.http", &json!([url]).to_string(), kwargs).await;
    let later = run(server.url("/busy-once"), "{}").await;
    let cases = [
        (
            run(server.url("/missing?secret"), "{}").await,
            "umbel.HTTPError",
            "404 Not Found",
        ),
        (
            run(server.url("/busy"), "{}").await,
            "umbel.HTTPError",
            "429 Too Many Requests",
        ),
        (
            run(server.url("/broken"), r#"{"text": "secret"}"#).await,
            "umbel.HTTPError",
            "500 Internal Server Error",
        ),
        (
            run(server.url("/hang?secret"), r#"{"timeout": 0.3}"#).await,
            "TimeoutError",
            "did not answer within 0.3 s",
        ),
        (
            run(format!("{nobody}/secret"), "{}").await,
            "ConnectionError",
            "connection refused",
        ),
        (
            run(server.url("/flood"), "{}").await,
            "ValueError",
            "more than 1048576 bytes",
        ),
        (
            run(server.url("/loop"), "{}").await,
            "ValueError",
            "redirects in circles",
        ),
        (
            run(server.url("/lost"), "{}").await,
            "ValueError",
            "redirects in circles",
        ),
    ];
    for (id, class, word) in &cases {
        let (found, args) = failure(&redis, id).await;
        assert_eq!(&found, class, "{word}: {args}");
        assert!(
            args[0].as_str().is_some_and(|text| text.contains(word)),
            "{word}: {args}"
        );
    }
    let (_, args) = failure(&redis, &cases[0].0).await;
    assert_eq!(
        (&args[1], &args[2]),
        (&json!(404), &json!("nothing here")),
        "for who asked"
    );
    assert_eq!(value(&redis, &later).await["text"], "ok");
    for (path, id, attempts) in [
        ("/missing", &cases[0].0, 1),
        ("/busy", &cases[1].0, 2),
        ("/broken", &cases[2].0, 2),
        ("/hang", &cases[3].0, 2),
        ("/flood", &cases[5].0, 1),
        ("/busy-once", &later, 2),
        ("/loop", &cases[6].0, 6),
    ] {
        let seen = server.seen(path);
        assert_eq!(seen.len(), attempts, "{path}");
        assert!(seen.iter().all(|one| one.headers["idempotency-key"] == **id), "{path}");
    }
    worker.says(SOON, "dead letter").await;
    assert!(
        !worker.log().contains("secret"),
        "no argument gets into the log: {}",
        worker.log()
    );
}

#[tokio::test]
async fn nothing_is_sent_to_a_host_that_the_pool_does_not_name() {
    let redis = Redis::start().await;
    let server = Server::start().await;
    let other = Server::start().await;
    // By name only the first server. Patterns cover all, but do not reach inside.
    let hosts = json!([
        format!("http://127.0.0.1:{}", server.port),
        format!("http://*:{}", other.port),
        format!("http://local*:{}", server.port),
        "https://*",
        "http://*"
    ]);
    let _worker = caller(&redis, &hosts, &[]);
    let (port, known) = (other.port, server.port);
    let refused = [
        format!("http://127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        format!("http://localhost:{known}/"),
        format!("http://2130706433:{port}/"),
        format!("http://0177.0.0.1:{port}/"),
        format!("http://0x7f000001:{port}/"),
        format!("http://127.1:{port}/"),
        format!("http://[::1]:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://[::ffff:7f00:1]:{port}/"),
        format!("http://[64:ff9b::7f00:1]:{port}/"),
        format!("http://0.0.0.0:{port}/"),
        format!("http://[::]:{port}/"),
        format!("http://127.0.0.1.:{port}/"),
        format!("http://１２７.0.0.1:{port}/"),
        format!("https://127.0.0.1:{known}/"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://[fd00:ec2::254]/latest/meta-data/".to_owned(),
        "http://[fe80::1]/".to_owned(),
        "http://10.0.0.1/".to_owned(),
        "https://192.168.0.1/".to_owned(),
        "http://172.16.0.1/".to_owned(),
        "http://100.100.100.200/".to_owned(),
        "https://a.example:8443/".to_owned(),
        "ftp://a.example/".to_owned(),
        "file:///etc/passwd".to_owned(),
        format!("http://user:pass@127.0.0.1:{known}/"),
        // An allowed server that sends us elsewhere.
        server.url(&format!("/found?http://127.0.0.1:{port}/")),
        server.url(&format!("/same-method?http://localhost:{known}/")),
        server.url("/found?http://169.254.169.254/"),
        server.url("/found?file:///etc/passwd"),
    ];
    let mut ids = Vec::new();
    for url in &refused {
        ids.push(send(&redis, "umbel.http", &json!([url]).to_string(), "{}").await);
    }
    for (url, id) in refused.iter().zip(&ids) {
        let (class, args) = failure(&redis, id).await;
        let is_malformed = url.starts_with("file:") || url.contains('@');
        assert_eq!(
            class,
            if is_malformed { "ValueError" } else { "PermissionError" },
            "{url}: {args}"
        );
    }
    assert!(
        other.log.lock().expect("no test panics with it").is_empty(),
        "nothing arrived"
    );
    assert!(server.seen("/").is_empty());
}

#[tokio::test]
async fn redirects_are_followed_where_they_may_lead() {
    let redis = Redis::start().await;
    let (server, other) = (Server::start().await, Server::start().await);
    let _worker = caller(&redis, &json!([server.url(""), other.url("")]), &[]);
    let kwargs = json!({"json": 1, "headers": {"Authorization": "Bearer x"}}).to_string();
    let found = json!([server.url("/found?/landed")]).to_string();
    let same = json!([server.url(&format!("/same-method?{}", other.url("/elsewhere")))]).to_string();
    let found = send(&redis, "umbel.http", &found, &kwargs).await;
    let same = send(&redis, "umbel.http", &same, &kwargs).await;
    for id in [&found, &same] {
        assert_eq!(value(&redis, id).await["text"], "ok");
    }
    let landed = server.seen("/landed").remove(0);
    assert_eq!((landed.method.as_str(), landed.body.as_str()), ("GET", ""));
    assert_eq!(
        landed.headers.get("authorization").map(String::as_str),
        Some("Bearer x")
    );
    let elsewhere = other.seen("/elsewhere").remove(0);
    assert_eq!((elsewhere.method.as_str(), elsewhere.body.as_str()), ("POST", "1"));
    assert_eq!(elsewhere.headers.get("authorization"), None, "meant for the first host");
    assert_eq!(elsewhere.headers["idempotency-key"], same);
}

#[tokio::test]
async fn limits_end_a_call() {
    let redis = Redis::start().await;
    let server = Server::start().await;
    let _worker = caller(&redis, &json!([server.url("")]), &[]);
    let args = json!([server.url("/hang")]).to_string();
    let limit = |hard, soft| TimeLimit { hard: Some(hard), soft };
    let soft = send_limited(&redis, "umbel.http", &args, "{}", limit(60.0, Some(0.3))).await;
    let hard = send_limited(&redis, "umbel.http", &args, "{}", limit(0.5, None)).await;
    assert_eq!(
        failure(&redis, &soft).await.0,
        "billiard.exceptions.SoftTimeLimitExceeded"
    );
    assert_eq!(failure(&redis, &hard).await.0, "billiard.exceptions.TimeLimitExceeded");
}

/// A server with a certificate for `localhost` that answers every request with `secure`.
async fn secure_server(folder: &TempDir) -> u16 {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let (key, certificate) = (folder.path().join("key.pem"), folder.path().join("certificate.pem"));
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "30",
        ])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl is installed: `make setup`");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let certificates = CertificateDer::pem_file_iter(&certificate).expect("a file of ours");
    let certificates = certificates.collect::<Result<Vec<_>, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(&key).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .expect("a pair");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    // Of both families, as `localhost` may be either first.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.is_ok_and(|read| read > 0) {}
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecure")
                .await;
            let _ = stream.shutdown().await;
        }
    });
    port
}

#[tokio::test]
async fn https_needs_a_certificate_that_the_machine_trusts() {
    let folder = TempDir::new("certificates");
    let port = secure_server(&folder).await;
    let certificate = folder.path().join("certificate.pem");
    let certificate = certificate.to_str().expect("a plain name");
    for (trusted, expected) in [(Some(certificate), "secure"), (None, "ConnectionError")] {
        let redis = Redis::start().await;
        let env = trusted.map(|file| ("SSL_CERT_FILE", file));
        let _worker = caller(&redis, &json!([format!("localhost:{port}")]), env.as_slice());
        let id = send(
            &redis,
            "umbel.http",
            &json!([format!("https://localhost:{port}/")]).to_string(),
            "{}",
        )
        .await;
        let document = document(&redis, &id, &["SUCCESS", "FAILURE"]).await;
        let result = &document["result"];
        let found = if trusted.is_some() {
            &result["text"]
        } else {
            &result["exc_type"]
        };
        assert_eq!(found, expected, "{document}");
    }
}

#[tokio::test]
async fn a_call_ends_with_its_worker() {
    let redis = Redis::start().await;
    let server = Server::start().await;
    let mut worker = caller(&redis, &json!([server.url("")]), &[]);
    send(&redis, "umbel.http", &json!([server.url("/hang")]).to_string(), "{}").await;
    eventually(SOON, "the request arrives", async || !server.seen("/hang").is_empty()).await;
    worker.signal(umbel_testkit::Signal::Term);
    worker.signal(umbel_testkit::Signal::Term);
    assert!(worker.wait(Duration::from_secs(5)).await.success());
}
