//! TLS towards a server: what we trust, who we are, and why a server was refused.
//!
//! TLS 1.2 is the least; certificates and names are always checked, and there is no way back to plaintext.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use redis::RedisError;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};

use crate::trouble::{Refusal, Trouble, io_error};

/// A certificate or key: in a file that is read anew for each connection, or here.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    /// PEM in a file.
    File(PathBuf),
    /// PEM.
    Text(Vec<u8>),
}

impl Pem {
    fn read(&self, what: &str) -> Result<Vec<u8>, RedisError> {
        match self {
            Pem::Text(text) => Ok(text.clone()),
            Pem::File(path) => std::fs::read(path)
                .map_err(|err| Refusal::error(Trouble::Tls, format!("{what} {}: {err}", path.display()))),
        }
    }

    fn shown(&self) -> String {
        match self {
            Pem::File(path) => format!(" in {}", path.display()),
            Pem::Text(_) => String::new(),
        }
    }

    pub(crate) fn file(&self) -> Option<&Path> {
        match self {
            Pem::File(path) => Some(path),
            Pem::Text(_) => None,
        }
    }
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Pem::File(path) => f.debug_tuple("File").field(path).finish(),
            Pem::Text(text) => write!(f, "Text({} bytes)", text.len()),
        }
    }
}

/// What TLS needs to know. An address that is not one of TLS is refused together with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Authorities whose certificates are trusted; those of the machine if absent.
    pub authorities: Option<Pem>,
    /// Our certificate with its chain, and its key.
    pub certificate: Option<(Pem, Pem)>,
    /// The name that the server's certificate must be for; the address's host if absent.
    pub server_name: Option<String>,
}

impl Tls {
    /// Files that it names.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        let pair = self
            .certificate
            .iter()
            .flat_map(|(certificate, key)| [certificate, key]);
        self.authorities.iter().chain(pair).filter_map(Pem::file)
    }

    /// What a connection is made with.
    pub(crate) fn client(&self) -> Result<Arc<ClientConfig>, RedisError> {
        let refused = |reason: String| Refusal::error(Trouble::Tls, reason);
        let mut roots = RootCertStore::empty();
        if let Some(pem) = &self.authorities {
            let text = pem.read("the CA")?;
            for certificate in CertificateDer::pem_slice_iter(&text) {
                let certificate =
                    certificate.map_err(|err| refused(format!("the CA{} is not PEM: {err}", pem.shown())))?;
                roots
                    .add(certificate)
                    .map_err(|err| refused(format!("the CA{} is no certificate: {err}", pem.shown())))?;
            }
            if roots.is_empty() {
                return Err(refused(format!("the CA{} holds no certificate", pem.shown())));
            }
        } else {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                return Err(refused("this machine trusts no authority: give a CA".into()));
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|err| refused(err.to_string()))?
            .with_root_certificates(roots);
        let config = match &self.certificate {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain: Vec<_> = CertificateDer::pem_slice_iter(&certificate.read("the client certificate")?)
                    .collect::<Result<_, _>>()
                    .map_err(|err| {
                        refused(format!(
                            "the client certificate{} is not PEM: {err}",
                            certificate.shown()
                        ))
                    })?;
                let key_text = key.read("the client key")?;
                let secret = PrivateKeyDer::from_pem_slice(&key_text)
                    .map_err(|err| refused(format!("the client key{} is not PEM: {err}", key.shown())))?;
                builder
                    .with_client_auth_cert(chain, secret)
                    .map_err(|err| refused(format!("the client certificate cannot be used: {err}")))?
            }
        };
        Ok(Arc::new(config))
    }
}

/// The precise reason for which TLS failed; `None` where it was not TLS that failed.
pub(crate) fn reason(err: &RedisError, name: &str) -> Option<String> {
    reason_of(io_error(err)?, name)
}

/// As [`reason`], of an error of the wire.
pub(crate) fn reason_of(err: &std::io::Error, name: &str) -> Option<String> {
    let err = err.get_ref()?.downcast_ref::<rustls::Error>()?;
    let server = "the server's certificate";
    Some(match err {
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => format!("{server} has expired"),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                format!("{server} is not valid yet")
            }
            CertificateError::UnknownIssuer => {
                format!("{server} is signed by an authority that is not trusted (wrong CA?)")
            }
            CertificateError::NotValidForName => format!("{server} is not for the name {name}"),
            CertificateError::NotValidForNameContext { presented, .. } => {
                format!("{server} is not for the name {name} but for {}", presented.join(", "))
            }
            CertificateError::Revoked => format!("{server} is revoked"),
            other => format!("{server} is not valid: {other}"),
        },
        rustls::Error::InvalidMessage(_) => "the server does not speak TLS".into(),
        rustls::Error::PeerIncompatible(why) => format!("the server offers no TLS 1.2 or newer that we share: {why:?}"),
        rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            "the server offers no TLS 1.2 or newer".into()
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "the server asks for a client certificate".into()
        }
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied),
        ) => format!("the server refuses our client certificate: {alert:?}"),
        other => other.to_string(),
    })
}
