//! One task's stay at a target: its turn, its tokens, and the client through which every request of it goes.
//!
//! # Guarantees
//! * No request is sent without a token of the target's budget, none with another credential than the Secret has
//!   (≤ 30 s), and none that writes before the cluster was recognised in the last half minute.
//! * Every answer ends: by its size, and by its time unless it is a watch.
//! * A watch ends within 30 s when its credential was replaced or its turn is over.
//! * The turn is given back when the [`Target`] is dropped, also when its task is cancelled.

use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyStream, StreamBody};
use hyper::body::{Bytes, Frame};
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;

use crate::board::{Grant, TURN};
use crate::circuit::Circuit;
use crate::client::{self, SILENCE};
use crate::error::{Error, Mistaken};
use crate::registry::{Connection, Entry, Shared};

/// Longest time of an answer that is no watch, from request to last byte: what no deadline of a job bounds.
const ANSWER: Duration = Duration::from_secs(60);
/// Largest answer, and largest line of a watch.
const MAX_ANSWER: usize = 32 * 1024 * 1024;
/// Largest answer of [`Target::get`]: a page of 100 pods is about 1 MB.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// Longest words of a refusal, in characters, and most of its causes.
const MAX_WORDS: usize = 4000;
const MAX_CAUSES: usize = 200;
/// Who a cluster is, is read again before a write when it was read longer ago than this.
const RECOGNISED: Duration = Duration::from_secs(30);
/// One that was not to be read is asked for again after this: a right comes back, often a moment later.
const UNKNOWN: Duration = Duration::from_secs(3);
/// That read.
const IDENTIFY: Duration = Duration::from_secs(10);

/// A watch is as old as its credential: that is looked at so often, half of the 30 s in which a rotated one is to be used.
const WATCHED: Duration = Duration::from_secs(15);
const OVER: &str = "the task's turn at the target is over";

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Who a target says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The uid of its kube-system namespace.
    Known(String),
    /// The credential may not read it, for this reason.
    Unknown(String),
}

/// May a target of this identity be worked at?
pub(crate) fn recognise(pin: Option<&str>, identity: &Identity, is_write: bool) -> Result<(), Mistaken> {
    match (pin, identity) {
        (Some(pin), Identity::Known(uid)) if pin == uid => Ok(()),
        (Some(pin), Identity::Known(uid)) => Err(Mistaken::Changed {
            pinned: pin.to_owned(),
            found: uid.clone(),
        }),
        (Some(pin), Identity::Unknown(why)) if is_write => Err(Mistaken::Unverified {
            pinned: pin.to_owned(),
            why: why.clone(),
        }),
        (None, _) | (Some(_), Identity::Unknown(_)) => Ok(()),
    }
}

#[derive(Deserialize)]
struct Named {
    metadata: Uid,
}

#[derive(Deserialize)]
struct Uid {
    uid: String,
}

/// Tokens at hand, usable from then on.
#[derive(Default)]
struct Tokens {
    count: u32,
    from: Option<Instant>,
}

/// What a task holds while it is at a target.
pub(crate) struct Stay {
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    turn: String,
    tokens: tokio::sync::Mutex<Tokens>,
    /// Requests that wait for a token now.
    queued: AtomicU32,
    renewal: Option<AbortHandle>,
    _permit: OwnedSemaphorePermit,
}

impl Stay {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        entry: &Arc<Entry>,
        turn: String,
        grant: Grant,
        permit: OwnedSemaphorePermit,
    ) -> Stay {
        let renewal = shared.board.clone().map(|board| {
            let (cluster, turn) = (entry.access.name.clone(), turn.clone());
            let renewing = tokio::spawn(async move {
                let mut ticks = tokio::time::interval(TURN / 3);
                ticks.tick().await;
                loop {
                    ticks.tick().await;
                    let _ = board.renew(&cluster, &turn).await; // The next one comes.
                }
            });
            renewing.abort_handle()
        });
        Stay {
            shared: shared.clone(),
            entry: entry.clone(),
            turn,
            tokens: tokio::sync::Mutex::new(Tokens {
                count: grant.tokens,
                from: Some(Instant::now() + grant.wait),
            }),
            queued: AtomicU32::new(0),
            renewal,
            _permit: permit,
        }
    }

    fn name(&self) -> String {
        self.entry.access.name.clone()
    }

    /// A token, after the wait that it takes. Requests of one stay come in turn.
    async fn token(&self) -> Result<(), Error> {
        let _queued = Queued::new(&self.queued);
        let mut tokens = self.tokens.lock().await;
        if tokens.count == 0 {
            let limits = self.entry.limits;
            let grant = match &self.shared.board {
                Some(board) => board.take(&self.entry.access.name, &self.turn, limits).await.ok(),
                None => None,
            };
            let grant = grant.unwrap_or_else(|| self.entry.bucket().take(limits, limits.batch(), Instant::now()));
            if grant.tokens == 0 {
                return Err(Error::Throttled {
                    cluster: self.name(),
                    wait: grant.wait,
                });
            }
            *tokens = Tokens {
                count: grant.tokens,
                from: Some(Instant::now() + grant.wait),
            };
        }
        if let Some(from) = tokens.from {
            tokio::time::sleep_until(from.into()).await;
            tokens.from = None;
        }
        tokens.count -= 1;
        Ok(())
    }

    /// The connection with the present credential.
    async fn connection(&self) -> Result<Arc<Connection>, Error> {
        self.shared.connection(&self.entry).await
    }

    /// Refuses a target that is not the cluster that it was.
    pub(crate) async fn recognise(&self, connection: &Connection, is_write: bool) -> Result<(), Error> {
        let pin = self.entry.facts().pin.clone();
        let identity = self.identity(connection).await?;
        recognise(pin.as_deref(), &identity, is_write).map_err(|why| Error::Identity {
            cluster: self.name(),
            why,
        })
    }

    /// Asks a target whose circuit is half open who it is, whatever is known of it.
    pub(crate) async fn probe(&self) -> Result<(), Error> {
        let connection = self.connection().await?;
        *connection.link.identity.lock().await = None;
        self.recognise(&connection, false).await
    }

    /// Who the target is, read half a minute ago at most.
    async fn identity(&self, connection: &Connection) -> Result<Identity, Error> {
        let mut known = connection.link.identity.lock().await;
        if let Some((identity, at)) = &*known
            && at.elapsed()
                < match identity {
                    Identity::Known(_) => RECOGNISED,
                    Identity::Unknown(_) => UNKNOWN,
                }
        {
            return Ok(identity.clone());
        }
        self.token().await?;
        let mut request = Request::get("/api/v1/namespaces/kube-system")
            .body(Body::empty())
            .map_err(|_| self.strange())?;
        put_on(&self.entry.dress, request.headers_mut());
        let attempt = "read who it is";
        let asked = async {
            let mut body = Vec::new();
            read(client::send(&connection.link.client, request).await?, &mut body).await?;
            serde_json::from_slice::<Named>(&body).map_err(kube::Error::SerdeError)
        };
        let identity = match tokio::time::timeout(IDENTIFY, asked).await {
            Ok(Ok(named)) => Identity::Known(named.metadata.uid),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 403 | 404) => {
                Identity::Unknown(status.message.chars().take(200).collect())
            }
            Ok(Err(source)) => {
                let err = failed(self.name(), attempt, source);
                if err.code() == Some(401) {
                    connection.freshness.doubt();
                }
                self.heard(&err).await;
                return Err(err);
            }
            Err(_) => {
                let err = Error::Silent {
                    cluster: self.name(),
                    attempt,
                    limit: IDENTIFY,
                };
                self.heard(&err).await;
                return Err(err);
            }
        };
        self.answered().await;
        *known = Some((identity.clone(), Instant::now()));
        Ok(identity)
    }

    fn strange(&self) -> Error {
        Error::Impersonation {
            cluster: self.name(),
            why: "it cannot be sent as a header",
        }
    }

    /// What a failure says about the target.
    async fn heard(&self, err: &Error) {
        match err {
            Error::Answer { .. } => self.answered().await,
            Error::Silent { .. } | Error::Unreachable { .. } => {
                let now = Instant::now();
                let told = match &self.shared.board {
                    Some(board) => board.silent(&self.entry.access.name).await.ok(),
                    None => None,
                };
                let has_opened = match told {
                    Some((circuit, has_opened)) => {
                        self.entry.sees(circuit);
                        has_opened
                    }
                    None => self.entry.circuit().silent(now),
                };
                if has_opened {
                    tracing::warn!(cluster = self.entry.access.name, error = %err, "target left alone for a while");
                    self.entry.opened.send_modify(|times| *times += 1);
                }
            }
            _ => {}
        }
    }

    async fn answered(&self) {
        if self.entry.circuit().is_clean() {
            return;
        }
        self.shared.closed(&self.entry).await;
    }

    /// The target wants to be asked less.
    async fn slow(&self, headers: &http::HeaderMap) {
        let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let pause = Duration::from_secs(seconds.and_then(|value| value.trim().parse().ok()).unwrap_or(1));
        tracing::debug!(
            cluster = self.entry.access.name,
            pause_s = pause.as_secs(),
            "target says 429"
        );
        let limits = self.entry.limits;
        // What is at hand was taken at the old rate.
        let mut tokens = self.tokens.lock().await;
        let unused = std::mem::take(&mut tokens.count);
        drop(tokens);
        let told = match &self.shared.board {
            Some(board) => board.slow(&self.entry.access.name, limits, pause).await.ok(),
            None => None,
        };
        if told.is_none() {
            let mut bucket = self.entry.bucket();
            bucket.give_back(limits, unused);
            bucket.slow(limits, pause, Instant::now());
        }
    }

    /// The answer, and the version of the Secret whose credential it was asked with.
    async fn send(&self, mut request: Request<Body>) -> Result<(Response<Body>, String), BoxError> {
        put_on(&self.entry.dress, request.headers_mut());
        let is_write = !matches!(*request.method(), Method::GET | Method::HEAD);
        self.token().await?;
        let mut connection = self.connection().await?;
        self.recognise(&connection, is_write).await?;
        let spare = client::copy(&request);
        let answer = client::send(&connection.link.client, request).await?;
        let answer = match spare {
            Some(spare) if answer.status() == StatusCode::UNAUTHORIZED => {
                // Tokens end and are replaced while tasks run: once more, with what the Secret holds now.
                connection.freshness.doubt();
                connection = self.connection().await?;
                self.token().await?;
                self.recognise(&connection, is_write).await?;
                client::send(&connection.link.client, spare).await?
            }
            _ => answer,
        };
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            let headers = answer.headers().clone();
            self.slow(&headers).await;
        }
        Ok((answer, connection.version.clone()))
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        if let Some(renewal) = &self.renewal {
            renewal.abort();
        }
        let unused = self.tokens.get_mut().count;
        let limits = self.entry.limits;
        let Some(board) = self.shared.board.clone() else {
            self.entry.bucket().give_back(limits, unused);
            return;
        };
        let (cluster, turn) = (self.name(), std::mem::take(&mut self.turn));
        // Without a runtime the process ends, and the turn by itself.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = board.end(&cluster, &turn, limits, unused).await; // Else it ends by itself.
            });
        }
    }
}

struct Queued<'a>(&'a AtomicU32);

impl Queued<'_> {
    fn new(queued: &AtomicU32) -> Queued<'_> {
        queued.fetch_add(1, Ordering::Relaxed);
        Queued(queued)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn is_watch(request: &Request<Body>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query
        .split('&')
        .any(|one| matches!(one, "watch" | "watch=true" | "watch=1" | "follow=true"))
}

/// Why a watch that this stay began, with the credential of this version of its Secret, goes on no longer.
async fn is_over((stay, version): &(Weak<Stay>, String)) -> Option<&'static str> {
    let Some(stay) = stay.upgrade() else {
        return Some(OVER);
    };
    match stay.connection().await {
        Ok(connection) if connection.version == *version => None,
        Ok(_) | Err(_) => Some("the credential of the watch was replaced"),
    }
}

/// The body of an answer, as far as it is taken.
struct Answering {
    frames: BodyStream<Body>,
    /// Bytes so far; of a watch, those of its last line.
    seen: usize,
    /// When to look: at the end of the time, or whether the credential of a watch is still the present one.
    look: tokio::time::Instant,
    is_watch: bool,
    mine: (Weak<Stay>, String),
}

impl Answering {
    async fn next(&mut self) -> Option<Result<Frame<Bytes>, BoxError>> {
        let silent = tokio::time::Instant::now() + SILENCE;
        let next = loop {
            if let Ok(next) = tokio::time::timeout_at(self.look.min(silent), self.frames.next()).await {
                break next;
            }
            let why = if silent < self.look {
                Some("the answer does not go on")
            } else if self.is_watch {
                is_over(&self.mine).await
            } else {
                Some("the answer does not end")
            };
            if let Some(why) = why {
                return Some(Err(why.into()));
            }
            self.look = tokio::time::Instant::now() + WATCHED;
        };
        let frame = match next? {
            Ok(frame) => frame,
            Err(err) => return Some(Err(err.into())),
        };
        let data: &[u8] = frame.data_ref().map_or(&[], |data| data);
        let line = data.iter().rposition(|byte| self.is_watch && *byte == b'\n');
        self.seen = line.map_or(self.seen + data.len(), |at| data.len() - at - 1);
        if self.seen > MAX_ANSWER {
            let err = format!("the answer is larger than {} MiB", MAX_ANSWER >> 20);
            return Some(Err(err.into()));
        }
        Some(Ok(frame))
    }
}

/// The answer to a request of this stay's.
async fn respond(
    stay: &Arc<Stay>,
    request: Request<Body>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = BoxError> + Send + use<>>, BoxError> {
    let is_watch = is_watch(&request);
    let until = tokio::time::Instant::now() + ANSWER;
    let sending = stay.send(request);
    let (answer, version) = if is_watch {
        sending.await?
    } else {
        tokio::time::timeout_at(until, sending)
            .await
            .map_err(|_| "no answer in time")??
    };
    let stay = Arc::downgrade(stay);
    Ok(answer.map(|body| {
        let look = if is_watch {
            tokio::time::Instant::now() + WATCHED
        } else {
            until
        };
        let answering = Answering {
            frames: BodyStream::new(body),
            seen: 0,
            look,
            is_watch,
            mine: (stay, version),
        };
        StreamBody::new(futures::stream::unfold(answering, |mut answering| async move {
            let frame = answering.next().await?;
            Some((frame, answering))
        }))
    }))
}

/// A client whose every request is one of this stay's.
fn requests(stay: &Arc<Stay>) -> Client {
    let stay: Weak<Stay> = Arc::downgrade(stay);
    let service = tower::service_fn(move |request: Request<Body>| {
        let stay = stay.clone();
        async move {
            let stay = stay.upgrade().ok_or(OVER)?;
            respond(&stay, request).await
        }
    });
    Client::new(service, "default")
}

/// A turn at a target cluster. Give it back (drop it) when the work there is done: its clients end with it.
pub struct Target {
    stay: Arc<Stay>,
    /// Made for those who want one: it has a task of its own.
    client: OnceLock<Client>,
}

impl Target {
    pub(crate) async fn arrive(stay: Arc<Stay>) -> Result<Target, Error> {
        // Those who wait for their turn to ask who it is do not each find out that it is dead.
        let mut opened = stay.entry.opened.subscribe();
        let recognised = async {
            let connection = stay.connection().await?;
            stay.recognise(&connection, false).await
        };
        tokio::select! {
            biased;
            recognised = recognised => recognised?,
            _ = opened.changed() => {
                let wait = stay.entry.circuit().wait(Instant::now()).unwrap_or_default();
                return Err(Error::CircuitOpen { cluster: stay.name(), wait });
            }
        }
        let client = OnceLock::new();
        Ok(Target { stay, client })
    }

    /// Name of the cluster.
    pub fn name(&self) -> &str {
        &self.stay.entry.access.name
    }

    /// The client. Send requests through [`Target::ask`], which bounds them and tells the circuit.
    pub fn client(&self) -> Client {
        self.client.get_or_init(|| requests(&self.stay)).clone()
    }

    /// Who the target says it is, half a minute ago at most.
    ///
    /// # Errors
    /// As those of a request.
    pub async fn identity(&self) -> Result<Identity, Error> {
        let connection = self.stay.connection().await?;
        self.stay.identity(&connection).await
    }

    /// Its circuit.
    pub fn circuit(&self) -> Circuit {
        *self.stay.entry.circuit()
    }

    /// The body of a path's answer, for what has no type in the client library or is too large for its copies.
    ///
    /// # Errors
    /// As [`Target::ask`]; an answer other than a success is [`Error::Answer`].
    ///
    /// # Cancellation
    /// Safe.
    pub async fn get(&self, attempt: &'static str, path: &str, limit: Duration) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        self.get_into(attempt, path, limit, &mut body).await?;
        Ok(body)
    }

    /// As [`Target::get`], in the place of what `body` held: for who reads page after page.
    ///
    /// # Errors
    /// As [`Target::get`].
    ///
    /// # Cancellation
    /// Safe; what is in `body` then is of no use.
    pub async fn get_into(
        &self,
        attempt: &'static str,
        path: &str,
        limit: Duration,
        body: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let answer = async {
            let request = Request::get(path).body(Body::empty());
            let request = request.map_err(|err| kube::Error::Service(err.into()))?;
            read(respond(&self.stay, request).await.map_err(known)?, body).await
        };
        self.ask(attempt, limit, Box::pin(answer)).await
    }

    /// Awaits one request for at most `limit`; less when the target's circuit opens meanwhile.
    ///
    /// # Errors
    /// [`Error::Silent`], [`Error::Unreachable`] or [`Error::Answer`], with `attempt` saying what was asked; and what a
    /// turn can fail by: the credential, the identity and the limits hold for each request.
    ///
    /// # Cancellation
    /// Safe for reads. A write that was sent may still happen.
    pub async fn ask<T>(
        &self,
        attempt: &'static str,
        limit: Duration,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Error> {
        let cluster = self.name().to_owned();
        let mut request = pin!(request);
        let mut opened = self.stay.entry.opened.subscribe();
        let err = tokio::select! {
            biased;
            answer = &mut request => match answer {
                Ok(answer) => {
                    self.stay.answered().await;
                    return Ok(answer);
                }
                Err(source) => failed(cluster, attempt, source),
            },
            _ = opened.changed() => {
                let wait = self.circuit().wait(Instant::now()).unwrap_or_default();
                return Err(Error::CircuitOpen { cluster, wait });
            }
            () = tokio::time::sleep(limit) => if self.stay.queued.load(Ordering::Relaxed) > 0 {
                Error::Throttled { cluster, wait: Duration::from_secs(1) }
            } else {
                Error::Silent { cluster, attempt, limit }
            },
        };
        self.stay.heard(&err).await;
        Err(err)
    }
}

/// As the client library has it.
fn known(err: BoxError) -> kube::Error {
    match err.downcast::<kube::Error>() {
        Ok(err) => *err,
        Err(err) => kube::Error::Service(err),
    }
}

/// The body of a success, or the refusal.
async fn read<B>(answer: Response<B>, body: &mut Vec<u8>) -> Result<(), kube::Error>
where
    B: hyper::body::Body<Data = Bytes, Error: Into<BoxError>>,
{
    let status = answer.status();
    let mut frames = pin!(BodyStream::new(answer.into_body()));
    body.clear();
    while let Some(frame) = frames.next().await {
        let frame = frame.map_err(|err| known(err.into()))?;
        let data: &[u8] = frame.data_ref().map_or(&[], |data| data);
        // Before it is kept: a buffer that doubles holds no more than this, and half of it while it grows.
        if body.len() + data.len() > MAX_BODY {
            let text = format!("the answer is larger than {} MiB", MAX_BODY >> 20);
            return Err(kube::Error::Service(text.into()));
        }
        body.extend_from_slice(data);
    }
    if status.is_success() {
        return Ok(());
    }
    let said = serde_json::from_slice::<kube::core::Status>(body).unwrap_or_else(|_| {
        let text: String = String::from_utf8_lossy(body).chars().take(1000).collect();
        kube::core::Status::failure(&text, "")
    });
    Err(kube::Error::Api(Box::new(said.with_code(status.as_u16()))))
}

/// What a failed request means; errors of ours come through the client library in a box.
fn failed(cluster: String, attempt: &'static str, source: kube::Error) -> Error {
    let source = match source {
        kube::Error::Service(inner) => match inner.downcast::<Error>() {
            Ok(ours) => return *ours,
            Err(inner) => kube::Error::Service(inner),
        },
        other => other,
    };
    let mut source = Box::new(source);
    // Whoever answers may be anybody, and what he says goes into results and logs.
    if let kube::Error::Api(status) = &mut *source {
        if let Some((end, _)) = status.message.char_indices().nth(MAX_WORDS) {
            status.message.truncate(end);
        }
        if let Some(details) = &mut status.details {
            details.causes.truncate(MAX_CAUSES);
        }
    }
    if is_transport(&source) {
        Error::Unreachable {
            cluster,
            attempt,
            source,
        }
    } else {
        Error::Answer {
            cluster,
            attempt,
            source,
        }
    }
}

/// Did the request fail before an API server answered it?
fn is_transport(err: &kube::Error) -> bool {
    matches!(
        err,
        kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) | kube::Error::RustlsTls(_)
    )
}

/// As headers; refused before any of it is sent.
pub(crate) type Dress = Option<(HeaderValue, Vec<HeaderValue>)>;

/// The headers that say whom a request is made as. What a job wrote there itself goes.
pub(crate) fn put_on(dress: &Dress, headers: &mut http::HeaderMap) {
    const USER: HeaderName = HeaderName::from_static("impersonate-user");
    const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
    let theirs: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("impersonate-"))
        .cloned()
        .collect();
    for name in theirs {
        headers.remove(name);
    }
    let Some((user, groups)) = dress else { return };
    headers.insert(USER, user.clone());
    for group in groups {
        headers.append(GROUP, group.clone());
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing that can panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
