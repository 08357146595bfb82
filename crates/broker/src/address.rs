//! Addresses of brokers, as Celery's programs write them.
//!
//! | Form | Server |
//! |---|---|
//! | `redis://[user:password@]host[:port][/db]` | one server, in the clear; `valkey://` is the same |
//! | `rediss://…` | one server, TLS; `?ssl_ca_certs=`, `ssl_certfile=`, `ssl_keyfile=` name files, as kombu has them |
//! | `unix:///path?db=0&user=&password=` | a socket; also `redis+unix://`, `redis+socket://` with `virtual_host=` |
//! | `sentinel://[user:password@]host[:port];sentinel://…[/db]` | the primary that these Sentinels name; `?master_name=` |
//!
//! Nothing here does I/O, and no message repeats a password.

use std::collections::HashMap;
use std::path::PathBuf;

use url::Url;

/// Default port of a server, and of a Sentinel.
const PORTS: (u16, u16) = (6379, 26379);

/// Where servers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Host and port.
    Tcp(String, u16),
    /// A socket of this machine.
    Socket(PathBuf),
    /// Sentinels that know the primary.
    Sentinels(Vec<(String, u16)>),
}

/// An address, taken apart.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) place: Place,
    pub(crate) is_tls: bool,
    pub(crate) database: i64,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    /// Files named in the address: authorities, certificate, key.
    pub(crate) authorities: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    /// What the Sentinels call the primary.
    pub(crate) master: Option<String>,
    /// User and password at the Sentinels themselves.
    pub(crate) sentinel_user: Option<String>,
    pub(crate) sentinel_password: Option<String>,
}

impl Address {
    /// Reads an address.
    ///
    /// # Errors
    /// What is wrong with it; never its password.
    pub(crate) fn parse(text: &str) -> Result<Address, String> {
        let text = text.trim();
        let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
        match scheme {
            "redis" | "rediss" | "valkey" | "valkeys" => {
                Address::server(text, scheme.ends_with("ss") || scheme == "valkeys")
            }
            "unix" | "redis+unix" | "valkey+unix" | "redis+socket" | "socket" => Address::socket(text),
            "sentinel" => Address::sentinels(text),
            "" => Err("it has no scheme: redis://, rediss://, unix:// or sentinel://".into()),
            other => Err(format!(
                "the scheme {other:?} is not known: redis://, rediss://, unix:// or sentinel://"
            )),
        }
    }

    fn of(place: Place, is_tls: bool, url: &Url) -> Result<Address, String> {
        let query: HashMap<String, String> = url.query_pairs().into_owned().collect();
        let text = |names: &[&str]| {
            names
                .iter()
                .find_map(|name| query.get(*name))
                .filter(|text| !text.is_empty())
                .cloned()
        };
        // Redis refuses what it is not told to do better than we could guess: only a wish for less safety ends here.
        if let Some(wish) = text(&["ssl_cert_reqs"])
            && !["required", "CERT_REQUIRED", "ssl.CERT_REQUIRED"].contains(&wish.as_str())
        {
            return Err("ssl_cert_reqs: certificates are always checked; give ssl_ca_certs".into());
        }
        if text(&["ssl_check_hostname"]).is_some_and(|wish| wish.eq_ignore_ascii_case("false") || wish == "0") {
            return Err("ssl_check_hostname: names are always checked; give the server's name".into());
        }
        let database = match text(&["db", "virtual_host"]) {
            Some(number) => number,
            None if matches!(place, Place::Socket(_)) => String::new(),
            None => url.path().trim_matches('/').to_owned(),
        };
        let database = match database.trim_start_matches('/') {
            "" => 0,
            number => number
                .parse::<u16>()
                .map(i64::from)
                .map_err(|_| "its database is not a number".to_owned())?,
        };
        let of_url = |text: &str| Some(decoded(text)).filter(|text| !text.is_empty());
        Ok(Address {
            place,
            is_tls: is_tls || text(&["ssl"]).is_some_and(|wish| wish.eq_ignore_ascii_case("true") || wish == "1"),
            database,
            user: of_url(url.username()).or_else(|| text(&["user", "username"])),
            password: url.password().and_then(of_url).or_else(|| text(&["pass", "password"])),
            authorities: text(&["ssl_ca_certs"]).map(PathBuf::from),
            certificate: text(&["ssl_certfile"]).map(PathBuf::from),
            key: text(&["ssl_keyfile"]).map(PathBuf::from),
            master: text(&["master_name"]),
            sentinel_user: text(&["sentinel_username"]),
            sentinel_password: text(&["sentinel_password"]),
        })
    }

    fn server(text: &str, is_tls: bool) -> Result<Address, String> {
        let url = parsed(text)?;
        let (host, port) = host_of(&url, PORTS.0)?;
        Address::of(Place::Tcp(host, port), is_tls, &url)
    }

    fn socket(text: &str) -> Result<Address, String> {
        let url = parsed(text)?;
        if url.host_str().is_some_and(|host| !host.is_empty()) {
            return Err("a socket's path begins after three slashes: unix:///path".into());
        }
        let path = decoded(url.path());
        if path.len() < 2 {
            return Err("it has no path of a socket".into());
        }
        Address::of(Place::Socket(path.into()), false, &url)
    }

    /// kombu's way: addresses joined by semicolons. User, password and database may stand in any of them.
    fn sentinels(text: &str) -> Result<Address, String> {
        let mut places = Vec::new();
        let mut whole: Option<Address> = None;
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let part = if part.contains("://") {
                part.to_owned()
            } else {
                format!("sentinel://{part}")
            };
            if !part.starts_with("sentinel://") {
                return Err("all of its parts must be sentinel://".into());
            }
            let url = parsed(&part)?;
            places.push(host_of(&url, PORTS.1)?);
            let one = Address::of(Place::Sentinels(Vec::new()), false, &url)?;
            whole = Some(match whole {
                None => one,
                Some(before) => Address {
                    place: before.place,
                    is_tls: before.is_tls || one.is_tls,
                    database: if before.database == 0 {
                        one.database
                    } else {
                        before.database
                    },
                    user: before.user.or(one.user),
                    password: before.password.or(one.password),
                    authorities: before.authorities.or(one.authorities),
                    certificate: before.certificate.or(one.certificate),
                    key: before.key.or(one.key),
                    master: before.master.or(one.master),
                    sentinel_user: before.sentinel_user.or(one.sentinel_user),
                    sentinel_password: before.sentinel_password.or(one.sentinel_password),
                },
            });
        }
        let mut whole = whole.ok_or("it names no sentinel")?;
        whole.place = Place::Sentinels(places);
        Ok(whole)
    }

    /// The parts that may be shown.
    pub(crate) fn shown(&self) -> String {
        let db = self.database;
        match &self.place {
            Place::Tcp(host, port) => format!("{host}:{port}/{db}"),
            Place::Socket(path) => format!("{}?db={db}", path.display()),
            Place::Sentinels(places) => {
                let places: Vec<String> = places.iter().map(|(host, port)| format!("{host}:{port}")).collect();
                let master = self.master.as_deref().unwrap_or("?");
                format!("sentinel {}/{db} ({master})", places.join(";"))
            }
        }
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Address").field(&self.shown()).finish()
    }
}

fn parsed(text: &str) -> Result<Url, String> {
    // The parser's message names what is wrong and quotes nothing.
    Url::parse(text).map_err(|err| err.to_string())
}

fn host_of(url: &Url, port: u16) -> Result<(String, u16), String> {
    let host = url
        .host_str()
        .filter(|host| !host.is_empty())
        .ok_or("it names no host")?;
    let host = decoded(host.trim_start_matches('[').trim_end_matches(']'));
    Ok((host, url.port().unwrap_or(port)))
}

/// Percent signs resolved; what is no escape stays.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = (bytes[at] == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        let value = escape
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(value.unwrap_or(bytes[at]));
        at += if value.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap_or_else(|err| panic!("{text}: {err}"))
    }

    #[test]
    fn servers() {
        let plain = address("redis://redis.example:7000/3");
        assert_eq!(plain.place, Place::Tcp("redis.example".into(), 7000));
        assert_eq!((plain.database, plain.is_tls, plain.user.as_deref()), (3, false, None));
        let full = address("rediss://us%40er:p%3Aw%2F@[::1]/2?ssl_ca_certs=/ca.pem&ssl_cert_reqs=required");
        assert_eq!(full.place, Place::Tcp("::1".into(), 6379));
        assert_eq!(
            (full.user.as_deref(), full.password.as_deref(), full.is_tls),
            (Some("us@er"), Some("p:w/"), true)
        );
        assert_eq!(full.authorities, Some("/ca.pem".into()));
        assert_eq!(address("redis://:pw@h").password.as_deref(), Some("pw"));
        assert_eq!(address("redis://h?db=5").database, 5);
    }

    #[test]
    fn sockets() {
        for text in [
            "unix:///run/r.sock?db=4&pass=x",
            "redis+socket:///run/r.sock?virtual_host=4&password=x",
        ] {
            let socket = address(text);
            assert_eq!(socket.place, Place::Socket("/run/r.sock".into()), "{text}");
            assert_eq!((socket.database, socket.password.as_deref()), (4, Some("x")), "{text}");
        }
        assert_eq!(address("redis+unix:///run/r.sock").database, 0);
    }

    #[test]
    fn sentinels_as_kombu_writes_them() {
        let three = address("sentinel://:pw@a:26380;sentinel://b;c:26381/7?master_name=mymaster");
        assert_eq!(
            three.place,
            Place::Sentinels(vec![("a".into(), 26380), ("b".into(), 26379), ("c".into(), 26381)])
        );
        assert_eq!(
            (three.database, three.password.as_deref(), three.master.as_deref()),
            (7, Some("pw"), Some("mymaster"))
        );
        assert_eq!(three.shown(), "sentinel a:26380;b:26379;c:26381/7 (mymaster)");
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        let cases = [
            ("localhost:6379", "no scheme"),
            ("amqp://u:geheim@h", "not known"),
            ("redis://u:geheim@/0", "host"),
            ("redis://:geheim@h/abc", "not a number"),
            ("redis://:geheim@h:99999/0", "port"),
            ("rediss://:geheim@h?ssl_cert_reqs=none", "always checked"),
            ("rediss://:geheim@h?ssl_cert_reqs=CERT_OPTIONAL", "always checked"),
            ("rediss://:geheim@h?ssl_check_hostname=false", "always checked"),
            ("unix://run/r.sock?pass=geheim", "three slashes"),
            ("sentinel://:geheim@a;redis://b", "sentinel://"),
        ];
        for (text, part) in cases {
            let err = Address::parse(text).expect_err(text);
            assert!(err.contains(part) && !err.contains("geheim"), "{text}: {err}");
        }
        assert!(!format!("{:?}", address("redis://u:geheim@h")).contains("geheim"));
    }
}
