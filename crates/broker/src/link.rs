//! Connections: one that ends when it should lead elsewhere, and one that makes itself anew.

use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, RedisError, RedisFuture, RedisResult, Value};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::Config;
use crate::place::{Place, State};
use crate::trouble::{Refusal, Trouble};

/// What a connection must not outlive: the task that moves its bytes ends with the last of its clones.
pub(crate) struct Driver(JoinHandle<()>);

impl Driver {
    pub(crate) fn new(driver: impl Future<Output = ()> + Send + 'static) -> Driver {
        Driver(tokio::spawn(driver))
    }

    pub(crate) fn is_at_work(&self) -> bool {
        !self.0.is_finished()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where a watched connection was led when it was made.
pub(crate) struct Watch {
    place: Arc<Place>,
    state: watch::Receiver<State>,
    born: State,
}

impl Watch {
    fn stale(&self) -> Option<RedisError> {
        let now = self.state.borrow();
        if now.has_moved(&self.born) {
            return Some(moved());
        }
        (now.credentials != self.born.credentials).then(|| {
            let reason = "address, credentials or certificates have changed: connecting anew";
            Refusal::error(Trouble::Connection, reason)
        })
    }

    /// Is it time for another connection?
    pub(crate) fn is_stale(&self) -> bool {
        self.place.look();
        self.stale().is_some()
    }
}

fn moved() -> RedisError {
    Refusal::error(Trouble::ReadOnly, "the primary has moved: connecting anew")
}

/// Where calls go.
pub(crate) trait Line {
    /// One call and its answer. Errors of the server are values.
    async fn send(&mut self, cmd: &Cmd) -> RedisResult<Value>;

    /// The shared connection behind it: given up when an answer shows that it cannot be trusted any longer.
    fn link(&self) -> Option<Link>;
}

impl Line for Connection {
    async fn send(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        self.req_packed_command(cmd).await
    }

    fn link(&self) -> Option<Link> {
        None
    }
}

impl Line for Link {
    async fn send(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        self.req_packed_command(cmd).await
    }

    fn link(&self) -> Option<Link> {
        Some(self.clone())
    }
}

/// One connection, never made anew behind our back. Where the primary may move (Sentinel) or credentials come from
/// files, its calls fail as those of a lost connection from the moment at which it leads to the wrong place.
#[derive(Clone)]
pub(crate) struct Connection {
    inner: MultiplexedConnection,
    driver: Arc<Driver>,
    watch: Option<Arc<Watch>>,
}

impl Connection {
    pub(crate) fn new(inner: MultiplexedConnection, driver: Driver, place: &Arc<Place>, born: State) -> Connection {
        Connection {
            inner,
            driver: Arc::new(driver),
            watch: place.is_watched().then(|| {
                Arc::new(Watch {
                    place: Arc::clone(place),
                    state: place.follow(),
                    born,
                })
            }),
        }
    }

    /// What it rests on, where that may change.
    pub(crate) fn watch(&self) -> Option<Arc<Watch>> {
        self.watch.clone()
    }

    /// Is it time for another one?
    fn is_stale(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.is_stale())
    }

    /// Resolves when it leads to the wrong place; never, where that cannot be.
    pub(crate) async fn left(&self) {
        match &self.watch {
            Some(watch) => watch.place.left(&watch.born).await,
            None => std::future::pending().await,
        }
    }

    fn is_same(&self, other: &Connection) -> bool {
        Arc::ptr_eq(&self.driver, &other.driver)
    }
}

/// The reply, unless the primary moves before it is there: a server that hangs would keep us waiting.
pub(crate) async fn unless_moved<T>(watch: &Watch, call: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    watch.place.look();
    if let Some(stale) = watch.stale() {
        return Err(stale);
    }
    let mut state = watch.state.clone();
    tokio::select! {
        biased;
        reply = call => reply,
        _ = state.wait_for(|state| state.has_moved(&watch.born)) => Err(moved()),
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self.watch.clone() {
            None => self.inner.req_packed_command(cmd),
            Some(watch) => Box::pin(async move { unless_moved(&watch, self.inner.req_packed_command(cmd)).await }),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self.watch.clone() {
            None => self.inner.req_packed_commands(pipeline, offset, count),
            Some(watch) => {
                Box::pin(
                    async move { unless_moved(&watch, self.inner.req_packed_commands(pipeline, offset, count)).await },
                )
            }
        }
    }

    fn get_db(&self) -> i64 {
        self.inner.get_db()
    }
}

/// A failed attempt to connect: whoever asked before it failed shares its error.
struct Failure {
    at: Instant,
    error: RedisError,
    count: u32,
}

struct Shared {
    /// See [`watching`].
    _watching: Option<Driver>,
    config: Config,
    current: RwLock<Option<Connection>>,
    /// Held while somebody connects.
    connecting: tokio::sync::Mutex<Option<Failure>>,
    luck: Mutex<u64>,
}

/// A connection that makes itself anew, at the primary of the moment and with the credentials of the moment. Calls that
/// were on their way when it was lost fail.
#[derive(Clone)]
pub(crate) struct Link(Arc<Shared>);

impl Link {
    /// Connects, and fails at once where that is not possible.
    pub(crate) async fn connect(config: &Config) -> RedisResult<Link> {
        let first = config.open().await?;
        Ok(Link(Arc::new_cyclic(|shared: &Weak<Shared>| Shared {
            _watching: {
                let shared = Weak::clone(shared);
                watching(&config.place, move || {
                    let Some(shared) = shared.upgrade() else { return false };
                    let mut current = shared.current.write().unwrap_or_else(PoisonError::into_inner);
                    current.take_if(|connection| connection.is_stale());
                    true
                })
            },
            config: config.clone(),
            current: RwLock::new(Some(first)),
            connecting: tokio::sync::Mutex::new(None),
            luck: Mutex::new(uuid::Uuid::new_v4().as_u64_pair().0 | 1),
        })))
    }

    fn current(&self) -> Option<Connection> {
        let current = self.0.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().filter(|connection| !connection.is_stale()).cloned()
    }

    async fn get(&self) -> RedisResult<Connection> {
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        let asked = Instant::now();
        let mut failure = self.0.connecting.lock().await;
        if let Some(connection) = self.current() {
            return Ok(connection); // Somebody else was faster.
        }
        let mut count = 0;
        if let Some(last) = failure.as_ref() {
            if last.at >= asked {
                return Err(last.error.clone());
            }
            // Many who call in a loop must not become a flood of connections.
            count = last.count;
            let pause = Trouble::of(&last.error).pause(count, self.luck()).min(LONGEST);
            tokio::time::sleep_until((last.at + pause).into()).await;
        }
        match self.0.config.open().await {
            Ok(connection) => {
                *failure = None;
                *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = Some(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                *failure = Some(Failure {
                    at: Instant::now(),
                    error: error.clone(),
                    count: count + 1,
                });
                Err(error)
            }
        }
    }

    /// Spreads those who lost their connection at one moment; nothing depends on its quality.
    fn luck(&self) -> f64 {
        let mut state = self.0.luck.lock().unwrap_or_else(PoisonError::into_inner);
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        f64::from(u32::try_from(*state >> 32).unwrap_or(0)) / f64::from(u32::MAX)
    }

    /// The next call goes by a new connection.
    pub(crate) fn give_up(&self) {
        *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn leave(&self, left: &Connection) {
        let mut current = self.0.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|connection| connection.is_same(left)) {
            *current = None;
        }
    }
}

/// Sees to it that a connection which has become stale while nobody calls is given up: an old password is not used any
/// longer. `give_up` does it where there is one; false: nobody is left who could have one.
pub(crate) fn watching(place: &Arc<Place>, give_up: impl Fn() -> bool + Send + 'static) -> Option<Driver> {
    let mut state = place.is_watched().then(|| place.follow())?;
    Some(Driver::new(async move {
        while state.changed().await.is_ok() && give_up() {}
    }))
}

/// Callers have pauses of their own; this one only keeps them from being a flood.
const LONGEST: Duration = Duration::from_secs(1);

/// Does a call's error say that its connection is of no use any more?
fn is_over(err: &RedisError) -> bool {
    err.is_unrecoverable_error()
        || err.is_connection_dropped()
        || err.is_connection_refusal()
        || (err.is_io_error() && !err.is_timeout())
        || err.code().is_some_and(Trouble::ends_connection)
}

fn says_over(value: &Value) -> bool {
    matches!(value, Value::ServerError(err) if Trouble::ends_connection(err.code()))
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let mut connection = self.get().await?;
            let reply = connection.req_packed_command(cmd).await;
            if match &reply {
                Ok(value) => says_over(value),
                Err(err) => is_over(err),
            } {
                self.leave(&connection);
            }
            reply
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let mut connection = self.get().await?;
            let replies = connection.req_packed_commands(pipeline, offset, count).await;
            if match &replies {
                Ok(values) => values.iter().any(says_over),
                Err(err) => is_over(err),
            } {
                self.leave(&connection);
            }
            replies
        })
    }

    fn get_db(&self) -> i64 {
        self.0.config.database()
    }
}
