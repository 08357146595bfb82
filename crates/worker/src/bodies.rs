//! Flags that say which bodies of messages are read, and whose signatures count.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use umbel_codec::{Codec, DEFAULT_MAX_INFLATED, Digest, Keyring, MOST_INFLATED, Options, Serializer, Signer};

use crate::args::{ConfigError, wrong};

/// Of [`crate::Args`].
#[derive(Debug, Args)]
pub(crate) struct Bodies {
    /// Serializers that are read: json, msgpack, yaml, auth (signed); Celery's accept_content
    #[arg(long, env = "UMBEL_ACCEPT", value_delimiter = ',', default_value = "json")]
    accept: Vec<String>,
    /// Largest body in bytes after unpacking, at most 32 MiB
    #[arg(long, env = "UMBEL_MAX_INFLATED", default_value_t = DEFAULT_MAX_INFLATED)]
    max_inflated: usize,
    /// Certificates that may sign messages: a folder, or a file in PEM
    #[arg(long, env = "UMBEL_SECURITY_CERTIFICATES")]
    security_certificates: Option<PathBuf>,
    /// Private key that signs what this worker sends, in PEM, without a password
    #[arg(long, env = "UMBEL_SECURITY_KEY")]
    security_key: Option<PathBuf>,
    /// Certificate of that key, in PEM
    #[arg(long, env = "UMBEL_SECURITY_CERTIFICATE")]
    security_certificate: Option<PathBuf>,
    /// Digest of signatures: sha256, sha384 or sha512
    #[arg(long, env = "UMBEL_SECURITY_DIGEST", default_value = "sha256")]
    security_digest: String,
}

impl Bodies {
    /// The codec by these flags.
    ///
    /// # Errors
    /// The flag, and what is wrong: an unknown name, `auth` without certificates or certificates without it, a key
    /// without its certificate, a file that cannot be read.
    pub(crate) fn codec(self) -> Result<Codec, ConfigError> {
        let Bodies {
            accept,
            max_inflated,
            security_certificates,
            security_key,
            security_certificate,
            security_digest,
        } = self;
        let accept = accepted(&accept)?;
        if max_inflated == 0 || max_inflated > MOST_INFLATED {
            return Err(wrong("--max-inflated", format!("must be from 1 to {MOST_INFLATED}")));
        }
        let digest: Digest = security_digest
            .parse()
            .map_err(|err| wrong("--security-digest", format!("{err}")))?;
        let certificates = security_certificates.filter(|path| !path.as_os_str().is_empty());
        let keyring = match (accept.contains(&Serializer::Auth), certificates) {
            (true, Some(path)) => Some(keyring(&path, digest)?),
            (true, None) => {
                return Err(wrong(
                    "--security-certificates",
                    "must name the certificates that may sign, because --accept has auth",
                ));
            }
            (false, Some(_)) => {
                return Err(wrong(
                    "--security-certificates",
                    "is of no use without auth in --accept",
                ));
            }
            (false, None) => None,
        };
        let is_given = |path: &PathBuf| !path.as_os_str().is_empty();
        let signer = match (security_key.filter(is_given), security_certificate.filter(is_given)) {
            (Some(key), Some(certificate)) => Some(signer(&key, &certificate, digest)?),
            (None, None) => None,
            (Some(_), None) => return Err(wrong("--security-certificate", "must name the certificate of the key")),
            (None, Some(_)) => return Err(wrong("--security-key", "must name the key of the certificate")),
        };
        Ok(Codec::new(Options {
            accept,
            max_inflated,
            keyring,
            signer,
        }))
    }
}

fn accepted(names: &[String]) -> Result<Vec<Serializer>, ConfigError> {
    let mut accept = Vec::new();
    for name in names.iter().filter(|name| !name.trim().is_empty()) {
        let serializer: Serializer = name.parse().map_err(|err| wrong("--accept", format!("{err}")))?;
        if !accept.contains(&serializer) {
            accept.push(serializer);
        }
    }
    if accept.is_empty() {
        return Err(wrong("--accept", "must name at least one serializer"));
    }
    Ok(accept)
}

fn keyring(path: &Path, digest: Digest) -> Result<Keyring, ConfigError> {
    const FLAG: &str = "--security-certificates";
    let unreadable = |path: &Path, why: &dyn std::fmt::Display| wrong(FLAG, format!("{}: {why}", path.display()));
    let mut keyring = Keyring::new(digest, jiff::Timestamp::now);
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        let entries = fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        files = entries
            .map_err(|err| unreadable(path, &err))?
            .iter()
            .map(fs::DirEntry::path)
            // A mounted Secret has folders and links of its own, whose names begin with dots.
            .filter(|file| file.is_file() && !file.file_name().is_some_and(is_hidden))
            .collect();
        files.sort();
    }
    for file in &files {
        let pem = fs::read(file).map_err(|err| unreadable(file, &err))?;
        keyring.add(&pem).map_err(|err| unreadable(file, &err))?;
    }
    if keyring.certificates().next().is_none() {
        return Err(unreadable(path, &"no certificate in it"));
    }
    Ok(keyring)
}

fn is_hidden(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

fn signer(key: &Path, certificate: &Path, digest: Digest) -> Result<Signer, ConfigError> {
    let pem = fs::read_to_string(key).map_err(|err| wrong("--security-key", format!("{}: {err}", key.display())))?;
    let of = fs::read(certificate)
        .map_err(|err| wrong("--security-certificate", format!("{}: {err}", certificate.display())))?;
    Signer::new(&pem, &of, digest).map_err(|err| wrong("--security-key", format!("{}: {err}", key.display())))
}
