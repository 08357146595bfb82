//! Opening connections: to a server, a socket, or the primary that Sentinels name; TLS around it where wished.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use redis::aio::{AsyncPushSender, MultiplexedConnection};
use redis::{AsyncConnectionConfig, ProtocolVersion, RedisConnectionInfo, RedisError, RedisResult};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::address::{Address, Place as Where};
use crate::direct::{Direct, Lent};
use crate::link::{Connection, Driver};
use crate::place::{Primary, State};
use crate::tls::{self, Pem, Tls};
use crate::trouble::{Refusal, Trouble};
use crate::{Config, Error, sentinel};

trait Wire: AsyncRead + AsyncWrite + Send + Sync {}
impl<T: AsyncRead + AsyncWrite + Send + Sync> Wire for T {}

/// The bytes between us and a server.
pub(crate) struct Stream(Pin<Box<dyn Wire>>);

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        self.0.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        self.0.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        self.0.as_mut().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> std::task::Poll<io::Result<usize>> {
        self.0.as_mut().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

/// What TLS knows here: what the configuration says, then what the address names.
pub(crate) fn tls_of(config: &Config, address: &Address) -> Result<Option<Tls>, String> {
    let is_clear = matches!(address.place, Where::Tcp(..)) && !address.is_tls;
    if config.tls.is_some() && is_clear {
        return Err("TLS is asked for, but the address is redis://: write rediss://".into());
    }
    if config.tls.is_some() && matches!(address.place, Where::Socket(_)) {
        return Err("TLS is asked for, but the address is a socket".into());
    }
    if config.tls.is_none() && !address.is_tls {
        return Ok(None);
    }
    let mut tls = config.tls.clone().unwrap_or_default();
    let file = |path: &std::path::PathBuf| Pem::File(path.clone());
    tls.authorities = tls.authorities.or_else(|| address.authorities.as_ref().map(file));
    if tls.certificate.is_none()
        && let Some(certificate) = &address.certificate
    {
        // A key may lie in the certificate's file, as OpenSSL's programs have it.
        tls.certificate = Some((file(certificate), file(address.key.as_ref().unwrap_or(certificate))));
    }
    Ok(Some(tls))
}

/// A TCP connection, to any of the addresses that the name has, and TLS on it where wished.
pub(crate) async fn tcp(config: &Config, address: &Address, host: &str, port: u16) -> RedisResult<Stream> {
    let refused = |reason: String| Refusal::error(Trouble::Tls, reason);
    let tls = tls_of(config, address).map_err(refused)?;
    let resolved: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    if resolved.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("the name {host} has no address")).into());
    }
    let attempts = resolved.into_iter().map(|to| Box::pin(TcpStream::connect(to)));
    let (tcp, _) = futures::future::select_ok(attempts).await?;
    tcp.set_nodelay(true)?;
    // A peer that vanished without a word (its node died) ends the connection when it has not confirmed for as long as
    // we wait for a reply; the kernel would repeat its packets for a quarter of an hour.
    let patience = u32::try_from(config.response_timeout.as_millis()).unwrap_or(u32::MAX);
    rustix::net::sockopt::set_tcp_user_timeout(&tcp, patience).map_err(io::Error::from)?;
    // What rests for long is not to be forgotten by a router in between, and its end is noticed before it is needed.
    rustix::net::sockopt::set_socket_keepalive(&tcp, true).map_err(io::Error::from)?;
    rustix::net::sockopt::set_tcp_keepidle(&tcp, KEEPALIVE).map_err(io::Error::from)?;
    let Some(tls) = tls else {
        return Ok(Stream(Box::pin(tcp)));
    };
    let name = tls.server_name.as_deref().unwrap_or(host);
    let server = ServerName::try_from(name.to_owned())
        .map_err(|_| refused(format!("{name:?} is no name that a certificate can have")))?;
    let connector = TlsConnector::from(tls.client()?);
    let secured = tokio::time::timeout(config.connect_timeout, connector.connect(server, tcp)).await;
    match secured {
        Ok(Ok(secured)) => Ok(Stream(Box::pin(secured))),
        Ok(Err(err)) => Err(match tls::reason_of(&err, name) {
            Some(reason) => refused(format!("TLS: {reason}")),
            None if err.kind() == io::ErrorKind::UnexpectedEof || err.kind() == io::ErrorKind::ConnectionReset => {
                refused("TLS: the server ended the connection at our greeting; does it speak TLS?".into())
            }
            None => err.into(),
        }),
        Err(_) => Err(refused(format!(
            "TLS: no answer to our greeting within {:?}; does the server speak TLS?",
            config.connect_timeout
        ))),
    }
}

/// An open connection, not yet greeted.
struct Opened {
    stream: Stream,
    info: RedisConnectionInfo,
    /// The name that TLS checks, for messages.
    name: String,
}

/// What a new connection rests on.
enum Born {
    /// What was known before it was made.
    In(State),
    /// The primary to which it leads, if that turns out to be one.
    At(Primary),
}

impl Config {
    fn settings(address: &Address) -> RedisConnectionInfo {
        let mut info = RedisConnectionInfo::default().set_db(address.database);
        if let Some(user) = &address.user {
            info = info.set_username(user);
        }
        if let Some(password) = &address.password {
            info = info.set_password(password);
        }
        info
    }

    /// Takes notice of what the configuration rests on, before it is read.
    fn prepare(&self) -> RedisResult<(Address, State)> {
        let refused = |reason| Refusal::error(Trouble::Other, reason);
        let state = self.place.state();
        let address = self.address().map_err(refused)?;
        let tls = tls_of(self, &address).map_err(|reason| Refusal::error(Trouble::Tls, reason))?;
        let files = tls.iter().flat_map(Tls::files).map(std::path::Path::to_owned);
        self.place.reads(self.url_file.iter().cloned().chain(files).collect());
        if matches!(address.place, Where::Sentinels(_)) {
            self.place.has_sentinels();
        }
        Ok((address, state))
    }

    async fn dial(&self, address: &Address, host: &str, port: u16) -> RedisResult<Opened> {
        let server_name = self.tls.as_ref().and_then(|tls| tls.server_name.clone());
        Ok(Opened {
            stream: tcp(self, address, host, port).await?,
            info: Config::settings(address),
            name: server_name.unwrap_or_else(|| host.to_owned()),
        })
    }

    /// Greets a server and checks that it takes writes.
    async fn greet(
        &self,
        opened: Opened,
        options: &AsyncConnectionConfig,
        is_resp3: bool,
        born: Born,
        lent: Option<&Lent>,
    ) -> RedisResult<Connection> {
        let Opened { stream, mut info, name } = opened;
        let stream = match lent {
            Some(lent) => Stream(Box::pin(lent.lend(stream))),
            None => stream,
        };
        if is_resp3 {
            info = info.set_protocol(ProtocolVersion::RESP3);
        }
        let explained = |err| explained(err, &name);
        let (mut inner, driver) = MultiplexedConnection::new_with_config(&info, stream, options.clone())
            .await
            .map_err(explained)?;
        let driver = Driver::new(driver);
        check_role(&mut inner).await.map_err(explained)?;
        let born = match born {
            Born::In(state) => state,
            Born::At(primary) => self.place.found(&primary),
        };
        Ok(Connection::new(inner, driver, &self.place, born))
    }

    /// A server that has no room says so and hangs up before it has read anything, and our own words on their way make
    /// the wire forget what it said. So after such an end it is listened to once more, in silence.
    async fn with_parting_words<T>(
        &self,
        greeted: RedisResult<T>,
        address: &Address,
        host: &str,
        port: u16,
    ) -> RedisResult<T> {
        let err = match greeted {
            Err(err) if Trouble::of(&err) == Trouble::Connection => err,
            other => return other,
        };
        let Ok(mut stream) = tcp(self, address, host, port).await else {
            return Err(err);
        };
        let mut words = [0; 256];
        let heard = tokio::time::timeout(PARTING, stream.read(&mut words)).await;
        let Ok(Ok(length @ 1..)) = heard else { return Err(err) };
        let words = String::from_utf8_lossy(&words[..length]);
        let Some(words) = words.strip_prefix('-').and_then(|words| words.lines().next()) else {
            return Err(err);
        };
        let trouble = if words.contains("max number of clients") {
            Trouble::MaxClients
        } else {
            Trouble::Connection
        };
        Err(Refusal::error(trouble, format!("the server says: {words}")))
    }

    /// What the client library speaks by is left in `lent`.
    async fn open_as(
        &self,
        options: AsyncConnectionConfig,
        is_resp3: bool,
        lent: Option<&Lent>,
    ) -> RedisResult<Connection> {
        let options = options
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(self.response_timeout));
        let (address, state) = self.prepare()?;
        let places = match &address.place {
            Where::Tcp(host, port) => {
                let attempt = async {
                    let opened = self.dial(&address, host, *port).await?;
                    let greeted = self.greet(opened, &options, is_resp3, Born::In(state), lent).await;
                    self.with_parting_words(greeted, &address, host, *port).await
                };
                return self.in_time(attempt).await;
            }
            Where::Socket(path) => {
                let attempt = async {
                    let opened = Opened {
                        stream: Stream(Box::pin(UnixStream::connect(path).await?)),
                        info: Config::settings(&address),
                        name: String::new(),
                    };
                    self.greet(opened, &options, is_resp3, Born::In(state), lent).await
                };
                return self.in_time(attempt).await;
            }
            Where::Sentinels(_) => sentinel::candidates(self, &address).await?,
        };
        sentinel::follow(self);
        let mut refused = None;
        for primary in places {
            let attempt = async {
                let opened = self.dial(&address, &primary.host, primary.port).await?;
                let greeted = self
                    .greet(opened, &options, is_resp3, Born::At(primary.clone()), lent)
                    .await;
                self.with_parting_words(greeted, &address, &primary.host, primary.port)
                    .await
            };
            match self.in_time(attempt).await {
                Ok(connection) => return Ok(connection),
                Err(err) => {
                    let reason = format!("primary {}:{}: {err}", primary.host, primary.port);
                    refused = Some(Refusal::error(Trouble::of(&err), reason));
                }
            }
        }
        Err(refused.unwrap_or_else(|| Refusal::error(Trouble::Connection, "no sentinel names a primary")))
    }

    async fn in_time<T>(&self, attempt: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        let patience: Duration = self.connect_timeout + TLS_MARGIN;
        tokio::time::timeout(patience, attempt).await.unwrap_or_else(|_| {
            let reason = format!("no connection within {patience:?}");
            Err(Refusal::error(Trouble::Timeout, reason))
        })
    }

    /// One plain connection, with the client library's errors.
    pub(crate) async fn open(&self) -> RedisResult<Connection> {
        self.open_as(AsyncConnectionConfig::new(), false, None).await
    }

    /// The same with one owner, who sends one call after the other.
    pub(crate) async fn direct(&self) -> Result<Direct, Error> {
        let lent = Lent::default();
        let greeted = self.open_as(AsyncConnectionConfig::new(), false, Some(&lent)).await;
        let greeted = greeted.map_err(|source| self.unconnected(source))?;
        // Before the library lets go of it.
        let stream = lent.take_back().ok_or_else(|| {
            let source = Refusal::error(Trouble::Connection, "the connection ended with its greeting");
            self.unconnected(source)
        })?;
        let watch = greeted.watch();
        Ok(Direct::new(stream, watch, self.response_timeout))
    }

    /// One plain connection that is never re-established behind our back.
    pub(crate) async fn connection(&self) -> Result<Connection, Error> {
        self.open().await.map_err(|source| self.unconnected(source))
    }

    /// The same in RESP3, where the server reports by itself.
    pub(crate) async fn reporting(&self, push: impl AsyncPushSender) -> Result<Connection, Error> {
        let options = AsyncConnectionConfig::new().set_push_sender(push);
        self.open_as(options, true, None)
            .await
            .map_err(|source| self.unconnected(source))
    }

    /// A connection for subscriptions, and what it rests on.
    pub(crate) async fn pubsub(&self) -> Result<(redis::aio::PubSub, State), Error> {
        let attempt = async {
            let (address, mut state) = self.prepare()?;
            let opened = match &address.place {
                Where::Tcp(host, port) => self.dial(&address, host, *port).await?,
                Where::Socket(path) => Opened {
                    stream: Stream(Box::pin(UnixStream::connect(path).await?)),
                    info: Config::settings(&address),
                    name: String::new(),
                },
                Where::Sentinels(_) => {
                    // Finds the primary and asks it for its role.
                    drop(self.open().await?);
                    state = self.place.state();
                    let primary = state.primary.clone();
                    let primary =
                        primary.ok_or_else(|| Refusal::error(Trouble::Connection, "no sentinel names a primary"))?;
                    self.dial(&address, &primary.host, primary.port).await?
                }
            };
            let pubsub = redis::aio::PubSub::new(&opened.info, opened.stream)
                .await
                .map_err(|err| explained(err, &opened.name))?;
            RedisResult::Ok((pubsub, state))
        };
        self.in_time(attempt).await.map_err(|source| self.unconnected(source))
    }

    pub(crate) fn unconnected(&self, source: RedisError) -> Error {
        Error::Connect {
            server: self.server(),
            source,
        }
    }
}

/// The precise reason of a refused greeting, where there is one.
fn explained(err: RedisError, name: &str) -> RedisError {
    if let Some(reason) = tls::reason(&err, name) {
        return Refusal::error(Trouble::Tls, format!("TLS: {reason}"));
    }
    if err.kind() == redis::ErrorKind::AuthenticationFailed {
        // The client library leaves out what the server said.
        let detail = err.detail().map(|text| format!(": {text}")).unwrap_or_default();
        let reason = format!("WRONGPASS: the server refuses user or password{detail}");
        return Refusal::error(Trouble::Credentials, reason);
    }
    err
}

/// Leaves a server that takes no writes.
async fn check_role(connection: &mut MultiplexedConnection) -> RedisResult<()> {
    let role: RedisResult<Vec<redis::Value>> = redis::cmd("ROLE").query_async(connection).await;
    let role = match role {
        Ok(role) => role,
        // A user without the right to ask, or a server without the command: its refusal of a write will tell.
        Err(err) if err.code().is_some_and(|code| code == "NOPERM" || code == "ERR") => return Ok(()),
        Err(err) => return Err(err),
    };
    let mut words = role.into_iter();
    let mut word = || {
        words
            .next()
            .and_then(|value| redis::from_redis_value::<String>(value).ok())
            .unwrap_or_default()
    };
    match word().as_str() {
        "slave" => {
            let (host, port) = (word(), word());
            let reason = format!("the server is a replica of {host}:{port}; the primary takes the writes");
            Err(Refusal::error(Trouble::ReadOnly, reason))
        }
        "sentinel" => Err(Refusal::error(
            Trouble::Other,
            "this is a Sentinel: write sentinel:// instead of redis://",
        )),
        _ => Ok(()),
    }
}

/// After so long a rest a connection shows the network that it is there.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// For so long a server that has hung up is listened to.
const PARTING: Duration = Duration::from_millis(200);
/// A greeting that fails says why; the whole attempt ends a little later.
const TLS_MARGIN: Duration = Duration::from_millis(500);
