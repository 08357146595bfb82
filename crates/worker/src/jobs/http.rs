//! `umbel.http`: calls an address that the pool allows, and returns what it answers.
//!
//! Takes `url` (also as the one positional argument), `method` (GET, with a body POST), `headers`, a body as `json` or
//! `text`, and `timeout` in seconds. Returns `{"status", "headers", "json"}`, or `text` for what is no JSON.
//!
//! # Guarantees
//! * No request leaves for a host that the pool's list has not: [`super::hosts`]. A name is resolved once, and the
//!   connection goes to the address that was checked. Each redirect is checked in the same way. Proxies of the
//!   environment are not used.
//! * Every attempt carries the same `Idempotency-Key`, the task id.
//! * Logs and reasons name the host, never the path, the headers or a body.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, FusedFuture as _};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use umbel_protocol::json::Json;
use url::{Host, Position, Url};

use super::SettingsError;
use super::hosts::{Hosts, Trust};
use crate::job::{Arguments, Failure, Job, JobContext, Outcome};
use crate::lease::Lost;

/// Largest body, there and back: as a message may have.
const MAX_BODY: usize = 1 << 20;
/// Header fields of a request, and the bytes of all of them: half of what common servers take.
const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 8 << 10;
/// As many redirects as any honest service needs.
const MAX_REDIRECTS: usize = 5;
/// For the whole exchange, redirects included.
const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_TIMEOUT: f64 = 3600.0;
/// One attempt to connect, of several where a name has several addresses.
const CONNECT: Duration = Duration::from_secs(10);
/// A longer `Retry-After` is taken for this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// What is kept of the body of a refusal.
const EXCERPT: usize = 1024;
/// Fields of an answer that results show.
const SHOWN: [HeaderName; 7] = [
    header::CONTENT_TYPE,
    header::ETAG,
    header::LAST_MODIFIED,
    header::LINK,
    header::LOCATION,
    header::RETRY_AFTER,
    HeaderName::from_static("x-request-id"),
];
/// Fields that belong to the connection, or to us.
const OWN: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "idempotency-key",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// What `umbel.http` may call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpRules {
    /// `[scheme://]host[:port]`, with `*` for any characters of the host.
    pub hosts: Vec<String>,
}

/// The job.
pub(super) struct Http {
    hosts: Hosts,
    tls: OnceCell<Arc<ClientConfig>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keywords {
    url: String,
    method: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    json: Option<Json>,
    text: Option<String>,
    timeout: Option<f64>,
}

/// A request on its way from redirect to redirect.
struct Request {
    url: Url,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
    timeout: Duration,
}

/// What came back.
struct Answer {
    host: String,
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("the pool allows no request to {0}")]
    NotAllowed(String),
    #[error("{0} has an address that the pool does not allow")]
    Inside(String),
    #[error("{0} is not found")]
    Unknown(String),
    #[error("{host}: {reason}")]
    Broken { host: String, reason: String },
    #[error("{host} did not answer within {} s", .after.as_secs_f64())]
    Silent { host: String, after: Duration },
    #[error("{0} answered with more than {MAX_BODY} bytes")]
    TooLarge(String),
    #[error("{0} redirects in circles, or without an address")]
    Redirects(String),
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl Fault {
    fn failure(&self) -> Failure {
        let text = self.to_string();
        match self {
            Fault::NotAllowed(_) | Fault::Inside(_) => Failure::permanent("PermissionError", text),
            Fault::TooLarge(_) | Fault::Redirects(_) => Failure::permanent("ValueError", text),
            Fault::Unknown(_) | Fault::Broken { .. } => temporary("ConnectionError", text),
            Fault::Silent { .. } => temporary("TimeoutError", text),
            Fault::Lost(lost) => (*lost).into(),
        }
    }
}

fn temporary(exc_type: &str, text: String) -> Failure {
    Failure {
        is_retryable: true,
        ..Failure::permanent(exc_type, text)
    }
}

fn value_error(text: impl Into<String>) -> Failure {
    Failure::permanent("ValueError", text)
}

impl Http {
    pub(super) fn new(rules: &HttpRules) -> Result<Http, SettingsError> {
        Ok(Http {
            hosts: Hosts::parse(&rules.hosts)?,
            tls: OnceCell::new(),
        })
    }

    async fn call(&self, ctx: &JobContext, arguments: &Arguments) -> Result<Outcome, Failure> {
        let request = Request::read(arguments, &ctx.id)?;
        let (host, timeout) = (origin(&request.url), request.timeout);
        let exchange = tokio::time::timeout(timeout, self.follow(ctx, request));
        let answer = ctx.until_soft_limit(Box::pin(exchange)).await?;
        let answer = answer
            .unwrap_or(Err(Fault::Silent { host, after: timeout }))
            .map_err(|fault| fault.failure())?;
        tracing::debug!(task.id = %ctx.id, host = %answer.host, status = answer.status.as_u16(), "answered");
        Ok(outcome(&answer))
    }

    /// The text at an address that the list allows.
    pub(super) async fn text(&self, ctx: &JobContext, url: &str) -> Result<String, Failure> {
        let kwargs = Json::of(&serde_json::json!({ "url": url }));
        let arguments = Arguments {
            args: Json::empty_array(),
            kwargs,
        };
        let request = Request::read(&arguments, &ctx.id)?;
        let (host, timeout) = (origin(&request.url), request.timeout);
        let exchange = tokio::time::timeout(timeout, self.follow(ctx, request)).await;
        let answer = exchange
            .unwrap_or(Err(Fault::Silent { host, after: timeout }))
            .map_err(|fault| fault.failure())?;
        if answer.status != StatusCode::OK {
            return Err(match outcome(&answer) {
                Outcome::Retry { why, .. } | Outcome::Failed(why) => why,
                _ => value_error(format!("{} answered {}", answer.host, answer.status)),
            });
        }
        String::from_utf8(answer.body.into())
            .map_err(|_| value_error(format!("{} answered with what is no text", answer.host)))
    }

    /// Sends the request, and again where it is sent to.
    async fn follow(&self, ctx: &JobContext, mut request: Request) -> Result<Answer, Fault> {
        for _ in 0..=MAX_REDIRECTS {
            let trust = self
                .hosts
                .trust(&request.url)
                .ok_or_else(|| Fault::NotAllowed(origin(&request.url)))?;
            let addresses = resolve(&request.url, trust).await?;
            ctx.checkpoint().await?;
            let answer = self.send(&request, &addresses).await?;
            match redirected(&request.url, &answer)? {
                None => return Ok(answer),
                Some(url) => request.redirect(url, answer.status),
            }
        }
        Err(Fault::Redirects(origin(&request.url)))
    }

    async fn send(&self, request: &Request, addresses: &[SocketAddr]) -> Result<Answer, Fault> {
        let host = origin(&request.url);
        let broken = |reason: String| Fault::Broken {
            host: host.clone(),
            reason,
        };
        let stream = connect(addresses).await.map_err(broken)?;
        if request.url.scheme() != "https" {
            return exchange(stream, request).await;
        }
        let name = match request.url.host() {
            Some(Host::Ipv4(address)) => Ok(ServerName::from(IpAddr::V4(address))),
            Some(Host::Ipv6(address)) => Ok(ServerName::from(IpAddr::V6(address))),
            Some(Host::Domain(name)) => {
                ServerName::try_from(name.trim_end_matches('.').to_owned()).map_err(|err| broken(err.to_string()))
            }
            None => return Err(Fault::Unknown(host)),
        };
        let tls = self.tls.get_or_try_init(trusting).await.map_err(broken)?;
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name?, stream).await;
        exchange(stream.map_err(|err| broken(err.to_string()))?, request).await
    }
}

impl Job for Http {
    fn name(&self) -> &'static str {
        "umbel.http"
    }

    fn run<'a>(&'a self, ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome> {
        async move {
            match self.call(ctx, &args).await {
                Ok(outcome) => outcome,
                Err(why) if why.is_retryable => Outcome::Retry { after: None, why },
                Err(why) => Outcome::Failed(why),
            }
        }
        .boxed()
    }
}

impl Request {
    fn read(arguments: &Arguments, id: &str) -> Result<Request, Failure> {
        let Keywords {
            url,
            method,
            headers: given,
            json,
            text,
            timeout,
        } = keywords(arguments)?;
        let url = Url::parse(&url).map_err(|err| value_error(format!("url: {err}")))?;
        if url.host().is_none() || !url.username().is_empty() || url.password().is_some() {
            return Err(value_error("url: it must name a host and hold no credentials"));
        }
        let mut headers = fields(&given)?;
        let has_body = json.is_some() || text.is_some();
        let (body, kind) = match (json, text) {
            (Some(_), Some(_)) => return Err(Failure::type_error("umbel.http takes json or text, not both")),
            (Some(json), None) => (Bytes::from(json.as_str().to_owned()), "application/json"),
            (None, Some(text)) => (Bytes::from(text), "text/plain; charset=utf-8"),
            (None, None) => (Bytes::new(), ""),
        };
        if body.len() > MAX_BODY {
            return Err(value_error(format!("the body has more than {MAX_BODY} bytes")));
        }
        let method = match method.as_deref().map(str::to_ascii_uppercase).as_deref() {
            None if has_body => Method::POST,
            None | Some("GET") => Method::GET,
            Some("HEAD") => Method::HEAD,
            Some("POST") => Method::POST,
            Some("PUT") => Method::PUT,
            Some("PATCH") => Method::PATCH,
            Some("DELETE") => Method::DELETE,
            Some("OPTIONS") => Method::OPTIONS,
            Some(_) => {
                return Err(value_error(
                    "method: none of GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
                ));
            }
        };
        if has_body && !headers.contains_key(header::CONTENT_TYPE) {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        let mut default = |name, value| {
            if !headers.contains_key(&name) {
                headers.insert(name, HeaderValue::from_static(value));
            }
        };
        default(header::USER_AGENT, concat!("umbel/", env!("CARGO_PKG_VERSION")));
        default(header::ACCEPT, "*/*");
        let key =
            HeaderValue::from_str(id).map_err(|_| value_error("the task id has letters that no header may have"))?;
        headers.insert("idempotency-key", key);
        let timeout = match timeout {
            None => TIMEOUT,
            Some(seconds) if seconds > 0.0 && seconds <= MAX_TIMEOUT => Duration::from_secs_f64(seconds),
            Some(_) => {
                return Err(value_error(format!(
                    "timeout: more than 0 and at most {MAX_TIMEOUT} seconds"
                )));
            }
        };
        Ok(Request {
            url,
            method,
            headers,
            body,
            timeout,
        })
    }

    /// Turns to another address, as browsers do.
    fn redirect(&mut self, url: Url, status: StatusCode) {
        let becomes_get = match status {
            StatusCode::SEE_OTHER => self.method != Method::HEAD,
            StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => self.method == Method::POST,
            _ => false,
        };
        if becomes_get {
            self.method = Method::GET;
            self.body = Bytes::new();
            self.headers.remove(header::CONTENT_TYPE);
        }
        if url.origin() != self.url.origin() {
            // Meant for the first host only.
            self.headers.remove(header::AUTHORIZATION);
            self.headers.remove(header::COOKIE);
        }
        self.url = url;
    }
}

/// The keyword arguments, of which the first may be positional.
fn keywords(arguments: &Arguments) -> Result<Keywords, Failure> {
    let positional = arguments.args.elements().unwrap_or_default();
    let [url] = positional.as_slice() else {
        if positional.is_empty() {
            return arguments.keywords();
        }
        return Err(Failure::type_error("umbel.http takes one positional argument: url"));
    };
    let given = arguments.kwargs.entries();
    if given.iter().any(|(name, _)| name == "url") {
        return Err(Failure::type_error("umbel.http got multiple values for argument 'url'"));
    }
    let given = given
        .iter()
        .map(|(name, value)| format!(", {}: {value}", Json::string(name)));
    let all = format!("{{\"url\": {url}{}}}", given.collect::<String>());
    let all = Json::parse(&all).map_err(|err| Failure::type_error(format!("arguments: {err}")))?;
    Arguments {
        args: Json::empty_array(),
        kwargs: all,
    }
    .keywords()
}

fn fields(given: &BTreeMap<String, String>) -> Result<HeaderMap, Failure> {
    let bytes: usize = given.iter().map(|(name, value)| name.len() + value.len()).sum();
    if given.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
        return Err(value_error(format!(
            "headers: more than {MAX_HEADERS} fields or {MAX_HEADER_BYTES} bytes"
        )));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| value_error("headers: a name that is none"))?;
        if OWN.contains(&name.as_str()) || name.as_str().starts_with("proxy-") {
            return Err(value_error(format!("headers: {name} is not the message's to set")));
        }
        let value = HeaderValue::from_str(value)
            .map_err(|_| value_error(format!("headers: {name} has letters that no header may have")))?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// Scheme, host and port: what errors and logs say of an address.
fn origin(url: &Url) -> String {
    url[..Position::BeforePath].to_owned()
}

/// The addresses of the URL's host, all of which may be called.
async fn resolve(url: &Url, trust: Trust) -> Result<Vec<SocketAddr>, Fault> {
    let unknown = || Fault::Unknown(origin(url));
    let port = url.port_or_known_default().ok_or_else(unknown)?;
    let addresses: Vec<SocketAddr> = match url.host().ok_or_else(unknown)? {
        Host::Ipv4(address) => vec![(address, port).into()],
        Host::Ipv6(address) => vec![(address, port).into()],
        Host::Domain(name) => tokio::net::lookup_host((name, port))
            .await
            .map_err(|_| unknown())?
            .collect(),
    };
    if addresses.is_empty() {
        return Err(unknown());
    }
    // One that is refused taints the others: whoever mixes them wants us to try them all.
    if !addresses.iter().all(|address| trust.permits(address.ip())) {
        return Err(Fault::Inside(origin(url)));
    }
    Ok(addresses)
}

/// Connects to the first that answers.
async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, String> {
    let mut why = "no address".to_owned();
    for address in addresses {
        match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true); // Only slower without.
                return Ok(stream);
            }
            Ok(Err(err)) => why = format!("connect: {}", err.kind()),
            Err(_) => why = format!("connect: no answer within {} s", CONNECT.as_secs()),
        }
    }
    Err(why)
}

/// TLS with the certificates of the machine, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`.
async fn trusting() -> Result<Arc<ClientConfig>, String> {
    let loading = tokio::task::spawn_blocking(|| {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err("no certificate authority is known: see SSL_CERT_FILE".to_owned());
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|err| err.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    });
    loading.await.map_err(|err| err.to_string())?
}

/// One request and its answer over a connection of its own.
async fn exchange<S>(stream: S, request: &Request) -> Result<Answer, Fault>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let host = origin(&request.url);
    let broken = |err: hyper::Error| Fault::Broken {
        host: host.clone(),
        reason: umbel_telemetry::chain(&err).to_string(),
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let mut message = http::Request::new(Full::new(request.body.clone()));
    *message.method_mut() = request.method.clone();
    *message.headers_mut() = request.headers.clone();
    let target = &request.url[Position::BeforePath..Position::AfterQuery];
    *message.uri_mut() = target.parse().map_err(|err: http::uri::InvalidUri| Fault::Broken {
        host: host.clone(),
        reason: format!("url: {err}"),
    })?;
    let authority = &request.url[Position::BeforeHost..Position::AfterPort];
    let authority = HeaderValue::from_str(authority).map_err(|_| Fault::Unknown(host.clone()))?;
    message.headers_mut().insert(header::HOST, authority);

    let answer = async {
        let (head, body) = sender.send_request(message).await.map_err(broken)?.into_parts();
        let body = match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(err) if err.is::<LengthLimitError>() => return Err(Fault::TooLarge(host.clone())),
            Err(err) => {
                return Err(Fault::Broken {
                    host: host.clone(),
                    reason: err.to_string(),
                });
            }
        };
        Ok(Answer {
            host: host.clone(),
            status: head.status,
            headers: head.headers,
            body,
        })
    };
    beside(connection, answer).await
}

/// Drives `work` to its end, and `driver` as long as that takes.
async fn beside<T>(driver: impl Future, work: impl Future<Output = T>) -> T {
    let (mut driver, mut work) = (pin!(driver.fuse()), pin!(work));
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            _ = &mut driver, if !driver.is_terminated() => {}
        }
    }
}

/// Where an answer sends us; `None` if it is one to keep.
fn redirected(from: &Url, answer: &Answer) -> Result<Option<Url>, Fault> {
    if !matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = answer
        .headers
        .get(header::LOCATION)
        .and_then(|value| value.to_str().ok());
    let to = location.and_then(|location| from.join(location).ok());
    match to {
        Some(to) if to.username().is_empty() && to.password().is_none() => Ok(Some(to)),
        _ => Err(Fault::Redirects(origin(from))),
    }
}

/// Done below 400; again later at 429 and from 500 on; else failed.
fn outcome(answer: &Answer) -> Outcome {
    let Answer {
        host,
        status,
        headers,
        body,
    } = answer;
    if status.as_u16() < 400 {
        return Outcome::Done(result(answer));
    }
    let text = format!("{host} answered {status}");
    let excerpt = String::from_utf8_lossy(&body[..body.len().min(EXCERPT)]);
    let mut why = Failure::raise("umbel", "HTTPError", &(&text, status.as_u16(), excerpt));
    why.message = text; // The body is for the caller and not for logs.
    if *status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
        why.is_retryable = true;
        let after = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        Outcome::Retry {
            after: after.and_then(|text| retry_after(text, jiff::Timestamp::now())),
            why,
        }
    } else {
        Outcome::Failed(why)
    }
}

fn result(answer: &Answer) -> Json {
    let shown: BTreeMap<&str, _> = answer
        .headers
        .iter()
        .filter(|(name, _)| SHOWN.contains(name))
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
        .collect();
    let shown = Json::of(&shown);
    let text = String::from_utf8_lossy(&answer.body);
    let kind = answer
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let parsed = kind
        .is_some_and(is_json)
        .then(|| Json::parse(text.trim()).ok())
        .flatten();
    let (field, body) = match parsed {
        Some(json) => ("json", json),
        None => ("text", Json::string(&text)),
    };
    let status = answer.status.as_u16();
    let whole = format!("{{\"status\": {status}, \"headers\": {shown}, \"{field}\": {body}}}");
    // Only what is one level too deep now does not parse.
    Json::parse(&whole).unwrap_or_else(|_| Json::of(&serde_json::json!({"status": status, "text": text})))
}

/// `application/json`, `application/problem+json; charset=utf-8` and the like.
fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || kind == "text/json" || kind.ends_with("+json")
}

/// `Retry-After` as a time from now: seconds or a date. `None` for no time at all, which leaves it to the policy.
fn retry_after(text: &str, now: jiff::Timestamp) -> Option<Duration> {
    let text = text.trim();
    let wait = if text.bytes().all(|letter| letter.is_ascii_digit()) {
        Duration::from_secs(text.parse().ok()?)
    } else {
        let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
        Duration::try_from(at.duration_since(now)).ok()?
    };
    (!wait.is_zero()).then_some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod unit {
    use super::*;

    fn read(args: &str, kwargs: &str) -> Result<Request, Failure> {
        let arguments = Arguments {
            args: Json::parse(args).unwrap(),
            kwargs: Json::parse(kwargs).unwrap(),
        };
        Request::read(&arguments, "id-1")
    }

    #[test]
    fn a_request_is_made_of_the_arguments() {
        let request = read(
            r#"["https://a.example/x?y=1#z"]"#,
            r#"{"json": {"n": 1e400}, "headers": {"X-A": "b"}}"#,
        )
        .unwrap();
        let field = |name: &str| request.headers.get(name).unwrap().to_str().unwrap();
        assert_eq!(
            (request.method.as_str(), &*request.body),
            ("POST", b"{\"n\": 1e400}".as_slice())
        );
        assert_eq!(
            ["content-type", "idempotency-key", "x-a"].map(field),
            ["application/json", "id-1", "b"]
        );
        assert_eq!(read(r#"["https://a.example"]"#, "{}").unwrap().method, Method::GET);
        let put = read(
            "[]",
            r#"{"url": "https://a.example", "text": "t", "method": "put", "timeout": 0.5}"#,
        )
        .unwrap();
        assert_eq!((put.method, put.timeout), (Method::PUT, Duration::from_millis(500)));
    }

    #[test]
    fn arguments_that_cannot_be_sent_say_so_without_repeating_themselves() {
        let long = format!(r#"{{"text": "{}"}}"#, "x".repeat(MAX_BODY + 1));
        for (args, kwargs, word) in [
            ("[]", "{}", "url"),
            (r#"["secret"]"#, "{}", "url"),
            (r#"["https://secret@a.example"]"#, "{}", "credentials"),
            (r#"["https://a.example", "GET"]"#, "{}", "one positional"),
            (
                r#"["https://a.example"]"#,
                r#"{"url": "https://b.example"}"#,
                "multiple values",
            ),
            (r#"["https://a.example"]"#, r#"{"method": "secret"}"#, "method"),
            (
                r#"["https://a.example"]"#,
                r#"{"json": 1, "text": "secret"}"#,
                "not both",
            ),
            (r#"["https://a.example"]"#, r#"{"headers": {"Host": "secret"}}"#, "host"),
            (
                r#"["https://a.example"]"#,
                r#"{"headers": {"Idempotency-Key": "secret"}}"#,
                "idempotency-key",
            ),
            (
                r#"["https://a.example"]"#,
                r#"{"headers": {"X": "secret\r\nY: z"}}"#,
                "letters",
            ),
            (r#"["https://a.example"]"#, r#"{"timeout": 0}"#, "timeout"),
            (r#"["https://a.example"]"#, &long, "bytes"),
        ] {
            let failure = read(args, kwargs).err().unwrap();
            assert!(failure.message.contains(word), "{kwargs:.60}: {failure}");
            assert!(!failure.message.contains("secret"), "{failure}");
            assert!(!failure.is_retryable);
        }
    }

    #[test]
    fn a_redirect_takes_along_what_it_should() {
        for (method, status, to, becomes, keeps_secret) in [
            ("POST", 302, "https://a.example/2", "GET", true),
            ("POST", 307, "https://b.example", "POST", false),
            ("PUT", 301, "https://a.example/2", "PUT", true),
            ("PUT", 303, "https://a.example:444", "GET", false),
            ("HEAD", 303, "https://a.example/2", "HEAD", true),
        ] {
            let kwargs = format!(r#"{{"text": "b", "method": "{method}", "headers": {{"Authorization": "x"}}}}"#);
            let mut request = read(r#"["https://a.example/1"]"#, &kwargs).unwrap();
            request.redirect(Url::parse(to).unwrap(), StatusCode::from_u16(status).unwrap());
            let case = format!("{method} {status} {to}");
            assert_eq!(request.method.as_str(), becomes, "{case}");
            assert_eq!(request.body.is_empty(), becomes == "GET", "{case}");
            assert_eq!(request.headers.contains_key("authorization"), keeps_secret, "{case}");
            assert!(request.headers.contains_key("idempotency-key"), "{case}");
        }
    }

    #[test]
    fn a_status_decides() {
        let outcome = |status: u16, fields: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.insert(*name, HeaderValue::from_static(value));
            }
            let answer = Answer {
                host: "https://a.example".into(),
                status: StatusCode::from_u16(status).unwrap(),
                headers,
                body: Bytes::from_static(b"{\"n\": 1.50}"),
            };
            match super::outcome(&answer) {
                Outcome::Done(value) => value.to_string(),
                Outcome::Retry { after, why } => format!("retry {after:?} {why}"),
                Outcome::Failed(why) => format!("failed {why}"),
                other => format!("{other:?}"),
            }
        };
        let json = ("content-type", "application/problem+json; charset=utf-8");
        for (status, fields, expected) in [
            (
                200,
                vec![json, ("set-cookie", "s")],
                r#"{"status": 200, "headers": {"content-type": "application/problem+json; charset=utf-8"}, "json": {"n": 1.50}}"#,
            ),
            (
                204,
                vec![],
                r#"{"status": 204, "headers": {}, "text": "{\"n\": 1.50}"}"#,
            ),
            (
                404,
                vec![json],
                "failed HTTPError: https://a.example answered 404 Not Found",
            ),
            (
                429,
                vec![("retry-after", "7")],
                "retry Some(7s) HTTPError: https://a.example answered 429 Too Many Requests",
            ),
            (
                503,
                vec![],
                "retry None HTTPError: https://a.example answered 503 Service Unavailable",
            ),
        ] {
            assert_eq!(outcome(status, &fields), expected, "{status}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: jiff::Timestamp = "2015-10-21T07:28:00Z".parse().unwrap();
        for (text, expected) in [
            ("120", Some(120)),
            ("0", None),
            ("Wed, 21 Oct 2015 07:28:09 GMT", Some(9)),
            ("Wed, 21 Oct 2015 07:27:00 GMT", None),
            ("999999", Some(3600)),
            ("99999999999999999999999", None),
            ("-1", None),
            ("soon", None),
        ] {
            assert_eq!(retry_after(text, now).map(|wait| wait.as_secs()), expected, "{text}");
        }
    }
}
