//! Addresses and connections.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::address::{Address, Place as Where};
use crate::control::failed;
use crate::keys::{PRIORITY_STEPS, SEPARATOR};
use crate::link::Link;
use crate::place::Place;
use crate::tls::Tls;
use crate::{Error, Keys};

/// What Sentinels need to know that an address does not say.
#[derive(Clone, Default)]
pub struct Sentinel {
    /// The name under which they know the primary; the address's `?master_name=` if empty.
    pub master: String,
    /// User at the Sentinels themselves.
    pub user: Option<String>,
    /// Password at the Sentinels themselves.
    pub password: Option<String>,
}

/// Where a broker is and how patient we are with it.
#[derive(Clone)]
pub struct Config {
    /// `redis://[user:password@]host:port/db`, `rediss://` for TLS, `unix:///path` for a socket,
    /// `sentinel://host;sentinel://host` for the primary that Sentinels name.
    pub url: String,
    /// A file with the address, read anew for each connection; instead of `url`. Connections are made anew within
    /// seconds of its change.
    pub url_file: Option<PathBuf>,
    /// What TLS needs to know. Where it is set, an address without TLS is refused.
    pub tls: Option<Tls>,
    /// What Sentinels need to know.
    pub sentinel: Sentinel,
    /// kombu's `global_keyprefix`; empty for none.
    pub key_prefix: String,
    /// What stands before every key of results: [`crate::result_prefix`] of the `global_keyprefix` in Celery's
    /// `result_backend_transport_options`, which is not the broker's.
    pub result_prefix: String,
    /// kombu's `priority_steps`, ascending; must be the producers'.
    pub priority_steps: Vec<u8>,
    /// kombu's `sep`; must be the producers'.
    pub separator: String,
    /// kombu's `fanout_prefix`: what channels begin with, `{db}` in it for the database; empty where that is off.
    pub fanout_prefix: String,
    /// kombu's `fanout_patterns`: are routing keys part of the names of channels?
    pub fanout_patterns: bool,
    /// What the exchanges of remote control are named after: Celery's `control_exchange`.
    pub control: umbel_protocol::control::Names,
    /// Longest time to wait for a connection.
    pub connect_timeout: Duration,
    /// Longest time to wait for a reply. No call of ours blocks in the server, so a reply that takes longer is lost.
    pub response_timeout: Duration,
    /// What the connections of this configuration know together; the same in its clones.
    pub(crate) place: Arc<Place>,
}

/// kombu's default.
pub const FANOUT_PREFIX: &str = "/{db}.";

impl Config {
    /// The usual patience for an address: 3 s to connect, 10 s for a reply.
    pub fn new(url: &str) -> Config {
        Config {
            url: url.to_owned(),
            url_file: None,
            tls: None,
            sentinel: Sentinel::default(),
            key_prefix: String::new(),
            result_prefix: String::new(),
            priority_steps: PRIORITY_STEPS.to_vec(),
            separator: SEPARATOR.to_owned(),
            fanout_prefix: FANOUT_PREFIX.to_owned(),
            fanout_patterns: true,
            control: umbel_protocol::control::Names::default(),
            connect_timeout: Duration::from_secs(3),
            response_timeout: Duration::from_secs(10),
            place: Arc::default(),
        }
    }

    /// The same for an address in a file.
    pub fn in_file(path: impl Into<PathBuf>) -> Config {
        Config {
            url_file: Some(path.into()),
            ..Config::new("")
        }
    }

    /// Is the configuration one that a connection can be tried with? A file that is not there yet is no fault of it.
    ///
    /// # Errors
    /// [`Error::Address`].
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |reason| Error::Address { reason };
        if self.url_file.as_ref().is_some_and(|path| !path.exists()) {
            return Ok(());
        }
        let address = self.address().map_err(wrong)?;
        crate::open::tls_of(self, &address).map_err(wrong)?;
        if matches!(address.place, Where::Sentinels(_)) {
            crate::sentinel::master(self, &address).map_err(|err| wrong(err.to_string()))?;
        }
        Ok(())
    }

    /// The address of the moment.
    pub(crate) fn address(&self) -> Result<Address, String> {
        let Some(path) = &self.url_file else {
            return Address::parse(&self.url);
        };
        let text = std::fs::read_to_string(path).map_err(|err| format!("{}: {err}", path.display()))?;
        Address::parse(&text).map_err(|reason| format!("in {}: {reason}", path.display()))
    }

    /// Number of the database.
    pub(crate) fn database(&self) -> i64 {
        self.address().map_or(0, |address| address.database)
    }

    /// The parts of the address that may be shown.
    pub fn endpoint(&self) -> Endpoint {
        let mut endpoint = Endpoint {
            host: String::new(),
            port: 0,
            user: None,
            database: 0,
            is_tls: false,
        };
        let Ok(address) = self.address() else {
            return endpoint;
        };
        let primary = self.place.state().primary;
        (endpoint.host, endpoint.port) = match address.place {
            Where::Tcp(host, port) => (host, port),
            Where::Socket(path) => (path.display().to_string(), 0),
            Where::Sentinels(places) => match primary {
                Some(primary) => (primary.host, primary.port),
                None => places.into_iter().next().unwrap_or_default(),
            },
        };
        endpoint.user = address.user;
        endpoint.database = address.database;
        endpoint.is_tls = address.is_tls || self.tls.is_some();
        endpoint
    }

    /// Host, port and database, without user and password.
    pub fn server(&self) -> String {
        let Ok(mut address) = self.address() else {
            return "an address that is not valid".into();
        };
        if !self.sentinel.master.is_empty() {
            address.master = Some(self.sentinel.master.clone());
        }
        address.shown()
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
    pub(crate) connection: Link,
    pub(crate) keys: Keys,
    pub(crate) config: Config,
    pub(crate) bounds: Arc<crate::bounds::Bounds>,
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
        config.check()?;
        let connection = Link::connect(config)
            .await
            .map_err(|source| config.unconnected(source))?;
        Ok(Broker {
            connection,
            keys: Keys::of(config),
            config: config.clone(),
            bounds: Arc::default(),
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
            .map_err(failed("TIME"))?;
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
            .map_err(failed("GET umbel:gen"))?;
        Ok(id.unwrap_or_default())
    }
}
