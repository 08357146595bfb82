//! How a server is named on a command line and in environments, by all programs alike.

use std::path::PathBuf;

use crate::address::Place as Where;
use crate::{Config, Error, Pem, Sentinel, Tls};

/// Where servers are and how they are reached. Empty texts count as absent: environments have them.
#[derive(Clone, Default)]
pub struct ServerOptions {
    /// Address; [`Config::url`].
    pub url: Option<String>,
    /// A file with the address; counts before `url`.
    pub url_file: Option<PathBuf>,
    /// Authorities that are trusted, PEM.
    pub ca_file: Option<PathBuf>,
    /// Our certificate with its chain, PEM.
    pub cert_file: Option<PathBuf>,
    /// Its key, PEM; in the certificate's file if absent.
    pub key_file: Option<PathBuf>,
    /// The name that the server's certificate must be for.
    pub server_name: Option<String>,
    /// TLS and nothing else, with Sentinels too; implied by the files above.
    pub is_tls: bool,
    /// What Sentinels call the primary.
    pub sentinel_master: Option<String>,
    /// User at the Sentinels.
    pub sentinel_user: Option<String>,
    /// Password at the Sentinels.
    pub sentinel_password: Option<String>,
}

fn given(text: Option<&String>) -> Option<String> {
    text.filter(|text| !text.is_empty()).cloned()
}

fn file(path: Option<&PathBuf>) -> Option<PathBuf> {
    path.filter(|path| !path.as_os_str().is_empty()).cloned()
}

impl ServerOptions {
    /// The broker's configuration.
    ///
    /// # Errors
    /// [`Error::Address`].
    pub fn config(&self) -> Result<Config, Error> {
        let mut config = address(given(self.url.as_ref()), file(self.url_file.as_ref())).ok_or(Error::Address {
            reason: "there is none: give an address or a file with it".into(),
        })?;
        config.tls = self.tls()?;
        config.sentinel = self.sentinel();
        config.check()?;
        Ok(config)
    }

    /// That of another server, with the same certificates where its address asks for TLS; `None` without an address.
    ///
    /// # Errors
    /// [`Error::Address`].
    pub fn beside(&self, url: Option<&String>, url_file: Option<&PathBuf>) -> Result<Option<Config>, Error> {
        let Some(mut config) = address(given(url), file(url_file)) else {
            return Ok(None);
        };
        let is_clear = config
            .address()
            .is_ok_and(|address| !address.is_tls && !matches!(address.place, Where::Sentinels(_)));
        if !is_clear {
            config.tls = self.tls()?;
            if let Some(tls) = &mut config.tls {
                tls.server_name = None; // The broker's, not this one's.
            }
        }
        config.sentinel = self.sentinel();
        config.check()?;
        Ok(Some(config))
    }

    fn sentinel(&self) -> Sentinel {
        Sentinel {
            master: given(self.sentinel_master.as_ref()).unwrap_or_default(),
            user: given(self.sentinel_user.as_ref()),
            password: given(self.sentinel_password.as_ref()),
        }
    }

    fn tls(&self) -> Result<Option<Tls>, Error> {
        let certificate = match (file(self.cert_file.as_ref()), file(self.key_file.as_ref())) {
            (None, None) => None,
            (Some(certificate), key) => {
                let key = key.unwrap_or_else(|| certificate.clone());
                Some((Pem::File(certificate), Pem::File(key)))
            }
            (None, Some(_)) => {
                return Err(Error::Address {
                    reason: "a client key is given, but no certificate for it".into(),
                });
            }
        };
        let tls = Tls {
            authorities: file(self.ca_file.as_ref()).map(Pem::File),
            certificate,
            server_name: given(self.server_name.as_ref()),
        };
        Ok((self.is_tls || tls != Tls::default()).then_some(tls))
    }
}

fn address(url: Option<String>, url_file: Option<PathBuf>) -> Option<Config> {
    match (url, url_file) {
        (_, Some(path)) => Some(Config::in_file(path)),
        (Some(url), None) => Some(Config::new(&url)),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::unnecessary_wraps, reason = "what the fields hold")]
    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let cases = [
            (ServerOptions::default(), "there is none"),
            (
                ServerOptions {
                    url: some("redis://h"),
                    ca_file: Some("/ca".into()),
                    ..ServerOptions::default()
                },
                "rediss://",
            ),
            (
                ServerOptions {
                    url: some("unix:///s"),
                    server_name: some("h"),
                    ..ServerOptions::default()
                },
                "socket",
            ),
            (
                ServerOptions {
                    url: some("rediss://h"),
                    key_file: Some("/key".into()),
                    ..ServerOptions::default()
                },
                "no certificate",
            ),
            (
                ServerOptions {
                    url: some("sentinel://h"),
                    ..ServerOptions::default()
                },
                "master name",
            ),
        ];
        for (options, part) in cases {
            let err = options.config().expect_err(part).to_string();
            assert!(err.contains(part), "{err}");
        }
    }

    #[test]
    fn empty_texts_are_absent_and_results_share_the_certificates() {
        let options = ServerOptions {
            url: some("rediss://broker"),
            url_file: Some(PathBuf::new()),
            ca_file: Some("/ca.pem".into()),
            server_name: some("broker.example"),
            sentinel_master: some(""),
            ..ServerOptions::default()
        };
        let tls = options.config().unwrap().tls.unwrap();
        assert_eq!(tls.server_name.as_deref(), Some("broker.example"));
        let beside = |url: &str| options.beside(some(url).as_ref(), None).unwrap().unwrap();
        assert_eq!(beside("redis://results").tls, None);
        let tls = beside("rediss://results").tls.unwrap();
        assert_eq!(
            (tls.authorities, tls.server_name),
            (Some(Pem::File("/ca.pem".into())), None)
        );
        assert!(options.beside(some("").as_ref(), None).unwrap().is_none());
    }
}
