//! A kubeconfig, read as a stranger's file: it may name a server and hold one credential, and nothing else.
//!
//! A kubeconfig can start programs, read files and send credentials through proxies. Whoever may write a Secret must
//! not get that from a worker, so the text is read into a type of our own that has no place for any of it, and each
//! refusal says which field it met. Nothing here touches the network, the file system or the clock.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::SecretString;
use serde_json::{Map, Value};

/// Larger kubeconfigs are refused unread: a Secret holds at most 1 MiB anyway.
pub const MAX_BYTES: usize = 1024 * 1024;

/// A kubeconfig that a worker may use. No `Debug`: it holds a credential.
pub struct Accepted {
    pub(crate) server: Uri,
    pub(crate) server_name: Option<String>,
    pub(crate) authority: Vec<CertificateDer<'static>>,
    pub(crate) login: Login,
}

impl Accepted {
    /// The API server's address.
    pub fn server(&self) -> String {
        self.server.to_string()
    }
}

/// The one credential of a kubeconfig.
pub(crate) enum Login {
    Token(SecretString),
    /// Both as base64 of PEM, the form in which the client library takes them.
    Certificate {
        chain: String,
        key: SecretString,
    },
}

/// Why a kubeconfig may not be used. Holds names of fields, never their content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Over [`MAX_BYTES`].
    #[error("the kubeconfig has {bytes} bytes, more than {MAX_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The text is not one YAML document without anchors.
    #[error("the kubeconfig is not plain YAML{at}")]
    NotYaml {
        /// ` (line L, column C)`, where known. The parser's own message would quote the text.
        at: String,
    },
    /// A field is absent or has the wrong type.
    #[error("{owner}: `{field}` {fault}")]
    Field {
        /// `kubeconfig`, `cluster`, `user` or `context`.
        owner: &'static str,
        /// The field.
        field: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// Not exactly one of them, or they do not name each other.
    #[error("the kubeconfig must hold exactly one {what}, which its current context uses; it holds {found}")]
    NotOne {
        /// `context`, `cluster` or `user`.
        what: &'static str,
        /// How many.
        found: usize,
    },
    /// `current-context`, or what the context names, is not in the file.
    #[error("the kubeconfig's {from} names a {what} that it does not hold")]
    Dangling {
        /// `current-context` or `context`.
        from: &'static str,
        /// `context`, `cluster` or `user`.
        what: &'static str,
    },
    /// A field that is never allowed.
    #[error("{owner}: `{field}` is not allowed: {why}")]
    Forbidden {
        /// `cluster` or `user`.
        owner: &'static str,
        /// The field.
        field: String,
        /// What it would do.
        why: &'static str,
    },
    /// The server's address.
    #[error("cluster: `server` {0}")]
    Server(&'static str),
    /// The credential.
    #[error("user: {0}")]
    Login(&'static str),
}

/// Reads a kubeconfig.
///
/// # Errors
/// [`Refused`] with the first reason met.
pub fn parse(bytes: &[u8]) -> Result<Accepted, Refused> {
    if bytes.len() > MAX_BYTES {
        return Err(Refused::TooLarge { bytes: bytes.len() });
    }
    let root = yaml(bytes)?;
    let root = root
        .as_object()
        .ok_or_else(|| field("kubeconfig", "", "is not a mapping"))?;

    let (context_name, context) = only(root, "contexts", "context")?;
    match text(root, "kubeconfig", "current-context")? {
        None => return Err(field("kubeconfig", "current-context", "is missing")),
        Some(current) if current != context_name => {
            return Err(Refused::Dangling {
                from: "current-context",
                what: "context",
            });
        }
        Some(_) => {}
    }
    let (cluster_name, cluster) = only(root, "clusters", "cluster")?;
    let (user_name, user) = only(root, "users", "user")?;
    for (what, name) in [("cluster", cluster_name), ("user", user_name)] {
        if text(context, "context", what)? != Some(name) {
            return Err(Refused::Dangling { from: "context", what });
        }
    }

    known(cluster, "cluster", CLUSTER_FIELDS, CLUSTER_FORBIDDEN)?;
    known(user, "user", USER_FIELDS, USER_FORBIDDEN)?;
    Ok(Accepted {
        server: server(text(cluster, "cluster", "server")?)?,
        server_name: text(cluster, "cluster", "tls-server-name")?.map(str::to_owned),
        authority: authority(cluster)?,
        login: login(user)?,
    })
}

/// The same kubeconfig with another token, as text.
///
/// # Errors
/// [`Refused`], also where its credential is no token.
pub fn with_token(bytes: &[u8], token: &str) -> Result<String, Refused> {
    if !matches!(parse(bytes)?.login, Login::Token(_)) {
        return Err(Refused::Login("has a client certificate, which no token replaces"));
    }
    let mut root = yaml(bytes)?;
    let user = root
        .pointer_mut("/users/0/user")
        .ok_or_else(|| field("user", "user", "is missing"))?;
    user["token"] = Value::String(token.to_owned());
    let text = serde_saphyr::to_string(&root).map_err(|_| Refused::NotYaml { at: String::new() })?;
    parse(text.as_bytes())?;
    Ok(text)
}

const FILE: &str = "a worker reads no file that a kubeconfig names; put the content inline";
const IMPERSONATION: &str = "a target's user is who the credential says";
const PASSWORD: &str = "passwords are not accepted; use a token or a client certificate";

const CLUSTER_FIELDS: &[&str] = &[
    "server",
    "certificate-authority-data",
    "tls-server-name",
    "disable-compression",
    "extensions",
];
const CLUSTER_FORBIDDEN: &[(&str, &str)] = &[
    (
        "insecure-skip-tls-verify",
        "the server's certificate is always verified",
    ),
    ("certificate-authority", FILE),
    ("proxy-url", "a proxy would see where the credential goes"),
];
const USER_FIELDS: &[&str] = &["token", "client-certificate-data", "client-key-data", "extensions"];
const USER_FORBIDDEN: &[(&str, &str)] = &[
    ("exec", "a worker starts no program that a kubeconfig names"),
    ("auth-provider", "a worker runs no login plugin"),
    ("tokenFile", FILE),
    ("client-certificate", FILE),
    ("client-key", FILE),
    ("as", IMPERSONATION),
    ("as-uid", IMPERSONATION),
    ("as-groups", IMPERSONATION),
    ("as-user-extra", IMPERSONATION),
    ("username", PASSWORD),
    ("password", PASSWORD),
];

/// One YAML document as a tree. Anchors are refused: a kubeconfig has no use for them, a bomb has.
fn yaml(bytes: &[u8]) -> Result<Value, Refused> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_aliases: 0, max_anchors: 0, max_depth: 32, max_nodes: 10_000, max_documents: 1 },
        with_snippet: false,
        strict_booleans: true,
    };
    serde_saphyr::from_slice_with_options(bytes, options).map_err(|err| {
        let at = err
            .location()
            .map(|at| format!(" (line {}, column {})", at.line(), at.column()));
        Refused::NotYaml {
            at: at.unwrap_or_default(),
        }
    })
}

/// The only entry of one of the named lists, with its name.
fn only<'a>(
    root: &'a Map<String, Value>,
    list: &str,
    what: &'static str,
) -> Result<(&'a str, &'a Map<String, Value>), Refused> {
    let entries = match root.get(list) {
        None | Some(Value::Null) => &[][..],
        Some(Value::Array(entries)) => entries,
        Some(_) => return Err(field("kubeconfig", list, "is not a list")),
    };
    let [entry] = entries else {
        return Err(Refused::NotOne {
            what,
            found: entries.len(),
        });
    };
    let entry = entry
        .as_object()
        .ok_or_else(|| field("kubeconfig", list, "holds something else than mappings"))?;
    let name = text(entry, what, "name")?.ok_or_else(|| field(what, "name", "is missing"))?;
    let body = entry
        .get(what)
        .and_then(Value::as_object)
        .ok_or_else(|| field(what, what, "is not a mapping"))?;
    Ok((name, body))
}

/// Refuses what is forbidden with its reason, and what is unknown because it may become an instruction one day.
fn known(
    map: &Map<String, Value>,
    owner: &'static str,
    allowed: &[&str],
    forbidden: &[(&str, &'static str)],
) -> Result<(), Refused> {
    for (name, value) in map {
        if is_empty(value) || allowed.contains(&name.as_str()) {
            continue;
        }
        let why = forbidden
            .iter()
            .find(|(field, _)| field == name)
            .map_or("it is not known", |(_, why)| *why);
        return Err(Refused::Forbidden {
            owner,
            field: name.chars().take(64).collect(),
            why,
        });
    }
    Ok(())
}

/// Absent in all but name, as some tools write it.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::Array(_) | Value::Object(_) => false,
    }
}

fn text<'a>(map: &'a Map<String, Value>, owner: &'static str, name: &str) -> Result<Option<&'a str>, Refused> {
    match map.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(field(owner, name, "is not text")),
    }
}

fn field(owner: &'static str, name: &str, fault: &'static str) -> Refused {
    Refused::Field {
        owner,
        field: name.to_owned(),
        fault,
    }
}

fn server(address: Option<&str>) -> Result<Uri, Refused> {
    let address = address.ok_or(Refused::Server("is missing"))?;
    let uri: Uri = address.parse().map_err(|_| Refused::Server("is not a URL"))?;
    if uri.scheme_str() != Some("https") {
        return Err(Refused::Server("is not https"));
    }
    let authority = uri.authority().ok_or(Refused::Server("has no host"))?;
    if authority.as_str().contains('@') {
        return Err(Refused::Server("holds credentials"));
    }
    if address.contains(['?', '#']) {
        return Err(Refused::Server("has a query or a fragment"));
    }
    host(authority.host())?;
    Ok(uri)
}

/// Link-local addresses are where clouds keep their metadata; the others are no address of a server.
fn host(host: &str) -> Result<(), Refused> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        let is_link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        return if is_link_local || ip.is_unspecified() || ip.is_multicast() {
            Err(Refused::Server("is a link-local, multicast or unspecified address"))
        } else {
            Ok(())
        };
    }
    // Resolvers read `0x7f.1`, `2130706433` and the like as IPv4 addresses, so a last label that is a number is one.
    let last = bare.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    let is_number = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X")).map_or_else(
        || !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()),
        |hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()),
    );
    if is_number || last.is_empty() {
        Err(Refused::Server("is an address in disguise"))
    } else {
        Ok(())
    }
}

fn authority(cluster: &Map<String, Value>) -> Result<Vec<CertificateDer<'static>>, Refused> {
    const NAME: &str = "certificate-authority-data";
    let data =
        text(cluster, "cluster", NAME)?.ok_or_else(|| field("cluster", NAME, "is missing: the CA must be inline"))?;
    let pem = STANDARD
        .decode(data)
        .map_err(|_| field("cluster", NAME, "is not base64"))?;
    let mut roots = rustls::RootCertStore::empty();
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| field("cluster", NAME, "is not PEM"))?;
        roots
            .add(certificate.clone())
            .map_err(|_| field("cluster", NAME, "holds what is no certificate"))?;
        found.push(certificate);
    }
    if found.is_empty() {
        Err(field("cluster", NAME, "holds no certificate"))
    } else {
        Ok(found)
    }
}

fn login(user: &Map<String, Value>) -> Result<Login, Refused> {
    let token = text(user, "user", "token")?;
    let chain = text(user, "user", "client-certificate-data")?;
    let key = text(user, "user", "client-key-data")?;
    match (token, chain, key) {
        (Some(token), None, None) => {
            if token.bytes().all(|byte| byte.is_ascii_graphic()) {
                Ok(Login::Token(SecretString::from(token)))
            } else {
                Err(Refused::Login("`token` holds characters that no token has"))
            }
        }
        (None, Some(chain), Some(key)) => {
            let pem = STANDARD
                .decode(chain)
                .map_err(|_| Refused::Login("`client-certificate-data` is not base64"))?;
            CertificateDer::from_pem_slice(&pem)
                .map_err(|_| Refused::Login("`client-certificate-data` holds no PEM certificate"))?;
            let pem = STANDARD
                .decode(key)
                .map_err(|_| Refused::Login("`client-key-data` is not base64"))?;
            PrivateKeyDer::from_pem_slice(&pem)
                .map_err(|_| Refused::Login("`client-key-data` holds no PEM private key"))?;
            Ok(Login::Certificate {
                chain: chain.to_owned(),
                key: SecretString::from(key),
            })
        }
        (None, None, None) => Err(Refused::Login(
            "has no credential: a token, or an inline client certificate and key",
        )),
        (Some(_), _, _) => Err(Refused::Login("has a token and a client certificate: one of them")),
        (None, Some(_), None) => Err(Refused::Login("`client-key-data` is missing")),
        (None, None, Some(_)) => Err(Refused::Login("`client-certificate-data` is missing")),
    }
}
