//! Addresses and connections.

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

use crate::keys::{PRIORITY_STEPS, SEPARATOR};
use crate::{Error, Keys};

/// Where a broker is and how patient we are with it.
#[derive(Clone)]
pub struct Config {
    /// `redis://[user:password@]host:port/db`, `rediss://` for TLS, `unix:///path` for a socket.
    pub url: String,
    /// kombu's `global_keyprefix`; empty for none.
    pub key_prefix: String,
    /// What stands before every key of results: [`crate::result_prefix`] of the `global_keyprefix` in Celery's
    /// `result_backend_transport_options`, which is not the broker's.
    pub result_prefix: String,
    /// kombu's `priority_steps`, ascending; must be the producers'.
    pub priority_steps: Vec<u8>,
    /// kombu's `sep`; must be the producers'.
    pub separator: String,
    /// Longest time to wait for a connection.
    pub connect_timeout: Duration,
    /// Longest time to wait for a reply. No call of ours blocks in the server, so a reply that takes longer is lost.
    pub response_timeout: Duration,
}

impl Config {
    /// The usual patience for an address: 3 s to connect, 10 s for a reply.
    pub fn new(url: &str) -> Config {
        Config {
            url: url.to_owned(),
            key_prefix: String::new(),
            result_prefix: String::new(),
            priority_steps: PRIORITY_STEPS.to_vec(),
            separator: SEPARATOR.to_owned(),
            connect_timeout: Duration::from_secs(3),
            response_timeout: Duration::from_secs(10),
        }
    }

    pub(crate) fn client(&self) -> Result<Client, Error> {
        // The client's own message may repeat the address, password included: only its kind is told.
        Client::open(self.info()?).map_err(|err| Error::Address {
            reason: format!("{:?}", err.kind()),
        })
    }

    /// The address with settings for its socket: a peer that vanished without a word (its node died) ends the connection
    /// when it has not confirmed for as long as we wait for a reply. The client itself would go on using it for as long
    /// as the kernel repeats packets, a quarter of an hour: a late reply is no reason for it to connect anew.
    pub(crate) fn info(&self) -> Result<ConnectionInfo, Error> {
        let info = self.url.as_str().into_connection_info().map_err(|err| Error::Address {
            reason: format!("{:?}", err.kind()),
        })?;
        Ok(info.set_tcp_settings(
            TcpSettings::default()
                .set_nodelay(true)
                .set_user_timeout(self.response_timeout),
        ))
    }

    /// Number of the database.
    pub(crate) fn database(&self) -> i64 {
        let info = self.url.as_str().into_connection_info();
        info.map_or(0, |info| info.redis_settings().db())
    }

    /// The parts of the address that may be shown.
    pub fn endpoint(&self) -> Endpoint {
        let mut endpoint = Endpoint {
            host: String::new(),
            port: 0,
            user: None,
            database: self.database(),
            is_tls: false,
        };
        let Ok(info) = self.url.as_str().into_connection_info() else {
            return endpoint;
        };
        endpoint.user = info.redis_settings().username().map(ToOwned::to_owned);
        match info.addr() {
            ConnectionAddr::Tcp(host, port) => (endpoint.host, endpoint.port) = (host.clone(), *port),
            ConnectionAddr::TcpTls { host, port, .. } => {
                (endpoint.host, endpoint.port, endpoint.is_tls) = (host.clone(), *port, true);
            }
            ConnectionAddr::Unix(path) => endpoint.host = path.display().to_string(),
            _ => {}
        }
        endpoint
    }

    /// Host, port and database, without user and password.
    pub fn server(&self) -> String {
        let Ok(info) = self.url.as_str().into_connection_info() else {
            return "an address that is not valid".into();
        };
        let db = info.redis_settings().db();
        match info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                format!("{host}:{port}/{db}")
            }
            ConnectionAddr::Unix(path) => format!("{}?db={db}", path.display()),
            _ => format!("db {db}"),
        }
    }

    /// One plain connection that is never re-established behind our back.
    pub(crate) async fn connection(&self) -> Result<MultiplexedConnection, Error> {
        let options = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(self.response_timeout));
        self.client()?
            .get_multiplexed_async_connection_with_config(&options)
            .await
            .map_err(|source| Error::Connect {
                server: self.server(),
                source,
            })
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("server", &self.server())
            .field("key_prefix", &self.key_prefix)
            .finish_non_exhaustive()
    }
}

/// Where a broker is, without the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host, or the path of a socket.
    pub host: String,
    /// Port; 0 with a socket.
    pub port: u16,
    /// User.
    pub user: Option<String>,
    /// Number of the database.
    pub database: i64,
    /// Encrypted?
    pub is_tls: bool,
}

/// A broker: one connection that re-establishes itself. For everything but reserving, which must know about every
/// reconnection ([`crate::Reserver`]).
#[derive(Clone)]
pub struct Broker {
    pub(crate) connection: ConnectionManager,
    pub(crate) keys: Keys,
    pub(crate) config: Config,
}

impl Broker {
    /// Connects, and fails at once where that is not possible.
    ///
    /// # Errors
    /// [`Error::Address`], [`Error::Connect`].
    ///
    /// # Cancellation
    /// Safe.
    pub async fn connect(config: &Config) -> Result<Broker, Error> {
        let client = config.client()?;
        let options = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(config.connect_timeout))
            .set_response_timeout(Some(config.response_timeout))
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_secs(2));
        let connection = ConnectionManager::new_with_config(client, options)
            .await
            .map_err(|source| Error::Connect {
                server: config.server(),
                source,
            })?;
        Ok(Broker {
            connection,
            keys: Keys::of(config),
            config: config.clone(),
        })
    }

    /// The same connection for queues whose producers have other priority steps.
    #[must_use]
    pub fn with_steps(&self, steps: &[u8]) -> Broker {
        Broker {
            keys: self.keys.with_steps(steps),
            ..self.clone()
        }
    }

    /// Key names of this broker.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Host, port and database, for people.
    pub fn server(&self) -> String {
        self.config.server()
    }

    /// Redis time in milliseconds since 1970.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn time(&self) -> Result<i64, Error> {
        let (seconds, micros): (i64, i64) = redis::cmd("TIME")
            .query_async(&mut self.connection.clone())
            .await
            .map_err(|source| Error::Call { call: "TIME", source })?;
        Ok(seconds * 1000 + micros / 1000)
    }

    /// The id of this data set; empty where no worker has ever said hello. It changes when the data is lost.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn generation(&self) -> Result<String, Error> {
        let id: Option<String> = redis::cmd("GET")
            .arg(self.keys.umbel("gen"))
            .query_async(&mut self.connection.clone())
            .await
            .map_err(|source| Error::Call {
                call: "GET umbel:gen",
                source,
            })?;
        Ok(id.unwrap_or_default())
    }
}
