//! The client: what it is made of, and how it is configured.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use umbel_broker::{Broker, Config, Error, ExchangeKind, Replicas, ResultStore, Watcher};
use umbel_codec::{Codec, Compression, Serializer};
use umbel_protocol::canvas::{ResultTuple, timings};
use umbel_protocol::event::Source;
use umbel_protocol::message::BodyEncoding;

use crate::{Handle, Routes, Task};

/// How a client sends. `..Options::default()` is what Celery does.
#[derive(Clone)]
pub struct Options {
    /// Where results are, when that is not the broker's database. With [`Config::result_prefix`], as for the broker.
    pub results: Option<Config>,
    /// The queue of tasks that name none.
    pub queue: String,
    /// Where tasks go by their names, unless they say it themselves.
    pub routes: Routes,
    /// Types of named exchanges: Redis does not know them.
    pub exchanges: HashMap<String, ExchangeKind>,
    /// Queues that were declared with `x-expires`, and how long after the last push their lists go.
    pub expiring_queues: HashMap<String, Duration>,
    /// Writes bodies that are not plain JSON, and reads results that are compressed. A key to sign with is here.
    pub codec: Codec,
    /// The serializer of tasks that name none.
    pub serializer: Serializer,
    /// The compression of tasks that name none.
    pub compression: Option<Compression>,
    /// How the structures of groups are kept: the workers' `result_serializer`. Results are read whatever it is.
    pub result_serializer: Serializer,
    /// How bodies stand in the envelope: kombu's transport option `body_encoding`.
    pub body_encoding: BodyEncoding,
    /// Send `task-sent` events, as Celery does under `task_send_sent_event`.
    pub events: bool,
    /// Count a task as sent only when so many replicas have it.
    pub replicas: Option<Replicas>,
    /// Sending again what surely was not sent, and what is idempotent.
    pub retry: Retry,
    /// Seconds that the records of chords and saved groups live: Celery's `result_expires`.
    pub chord_ttl: u64,
    /// Levels of nesting that arguments may have; consumers refuse more than 64.
    pub max_depth: u32,
    /// `gen<pid>@<host>` unless named.
    pub origin: Option<String>,
    /// Names this client for Celery's rpc backend; a fresh UUID otherwise.
    pub reply_to: Option<String>,
    /// Where new ids come from: v4 UUIDs, unless a test wants to know them.
    pub ids: Arc<dyn Fn() -> String + Send + Sync>,
    /// The clock, likewise.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            results: None,
            queue: "celery".into(),
            routes: Routes::default(),
            exchanges: HashMap::new(),
            expiring_queues: HashMap::new(),
            codec: Codec::default(),
            serializer: Serializer::Json,
            compression: None,
            result_serializer: Serializer::Json,
            body_encoding: BodyEncoding::Base64,
            events: false,
            replicas: None,
            retry: Retry::default(),
            chord_ttl: timings::PARTS,
            max_depth: umbel_protocol::json::MAX_DEPTH,
            origin: None,
            reply_to: None,
            ids: Arc::new(|| {
                let mut text = uuid::Uuid::encode_buffer();
                let text: &str = uuid::Uuid::new_v4().hyphenated().encode_lower(&mut text);
                text.to_owned()
            }),
            now: Arc::new(Timestamp::now),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("queue", &self.queue)
            .field("results", &self.results)
            .finish_non_exhaustive()
    }
}

/// Sending again.
///
/// A message that surely was not sent is always sent again. One that may have been is only when its task says that
/// running it twice does no harm ([`Task::idempotent`]); it keeps its id, so there is one result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all.
    pub attempts: u32,
    /// The wait after the first; doubled each time.
    pub pause: Duration,
}

impl Default for Retry {
    /// Four attempts within 0.7 s: a server that restarts takes no longer.
    fn default() -> Retry {
        Retry {
            attempts: 4,
            pause: Duration::from_millis(100),
        }
    }
}

/// Sends tasks to Celery's workers and to Umbel's, and reads their results. Cheap to clone; clones share connections,
/// which are made anew when they are lost.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) broker: Broker,
    pub(crate) results: ResultStore,
    pub(crate) watcher: Watcher,
    pub(crate) options: Options,
    pub(crate) origin: String,
    pub(crate) reply_to: String,
    pub(crate) source: Source,
    pub(crate) answered: Answered,
    clock: AtomicU64,
}

/// When the server has last answered; milliseconds since the client was made, and one more.
pub(crate) struct Answered {
    since: Instant,
    at: AtomicU64,
}

impl Answered {
    pub(crate) fn now(&self) {
        let at = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.at.store(at + 1, Ordering::Relaxed);
    }

    pub(crate) fn never(&self) {
        self.at.store(0, Ordering::Relaxed);
    }

    pub(crate) fn elapsed(&self) -> Duration {
        match self.at.load(Ordering::Relaxed) {
            0 => Duration::MAX,
            at => self.since.elapsed().saturating_sub(Duration::from_millis(at - 1)),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("broker", &self.inner.broker.server())
            .field("results", &self.inner.results.server())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects, and fails at once where that is not possible. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Address`], [`Error::Connect`].
    ///
    /// # Cancellation
    /// Safe.
    pub async fn connect(config: Config, options: Options) -> Result<Client, Error> {
        let broker = Broker::connect(&config).await?;
        let results = match &options.results {
            Some(results) => ResultStore::connect(results).await?,
            None => ResultStore::of(&broker),
        };
        Ok(Client::over(broker, results, options))
    }

    /// Over connections that exist; [`Options::results`] is not looked at.
    pub fn over(broker: Broker, results: ResultStore, options: Options) -> Client {
        let pid = std::process::id();
        let origin = options
            .origin
            .clone()
            .unwrap_or_else(|| format!("gen{pid}@{}", hostname()));
        let reply_to = options
            .reply_to
            .clone()
            .unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        Client {
            inner: Arc::new(Inner {
                source: Source::new(&origin, pid),
                watcher: results.watcher(),
                broker,
                results,
                origin,
                reply_to,
                options,
                answered: Answered {
                    since: Instant::now(),
                    at: AtomicU64::new(0),
                },
                clock: AtomicU64::new(0),
            }),
        }
    }

    /// A task to be sent by this client.
    pub fn task(&self, name: &str) -> Task<&Client> {
        Task::by(self, name)
    }

    /// A task that was sent before, perhaps by somebody else.
    pub fn handle(&self, id: &str) -> Handle {
        Handle::new(self, ResultTuple::task(id), false)
    }

    /// The broker's time in milliseconds since 1970.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn time(&self) -> Result<i64, Error> {
        let time = self.inner.broker.time().await;
        match &time {
            Ok(_) => self.inner.answered.now(),
            Err(_) => self.inner.answered.never(),
        }
        time
    }

    pub(crate) fn next_clock(&self) -> u64 {
        self.inner.clock.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.inner.options.now)()
    }

    pub(crate) fn new_id(&self) -> String {
        (self.inner.options.ids)()
    }
}

fn hostname() -> String {
    std::env::var("HOSTNAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}
