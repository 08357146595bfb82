//! The key by which messages are signed.

use std::path::PathBuf;

use clap::Args;
use umbel_client::Options;
use umbel_codec::{Codec, Digest, Options as CodecOptions, Serializer, Signer};

use crate::usage;

/// Celery's `security_key`, `security_certificate` and `security_digest`.
#[expect(clippy::struct_field_names, reason = "the fields are the flags' names")]
#[derive(Debug, Args)]
pub(crate) struct Signing {
    /// Private key that signs messages (serializer auth), in PEM, without a password
    #[arg(
        long,
        env = "UMBEL_SECURITY_KEY",
        value_name = "FILE",
        requires = "security_certificate"
    )]
    security_key: Option<PathBuf>,
    /// Certificate of that key, in PEM; workers must know it
    #[arg(
        long,
        env = "UMBEL_SECURITY_CERTIFICATE",
        value_name = "FILE",
        requires = "security_key"
    )]
    security_certificate: Option<PathBuf>,
    /// Digest of signatures: sha256, sha384 or sha512
    #[arg(long, env = "UMBEL_SECURITY_DIGEST", value_name = "NAME", default_value = "sha256")]
    security_digest: String,
}

impl Signing {
    /// The options of a client that sends as these flags and `serializer` say.
    pub(crate) fn options(&self, serializer: Option<&str>) -> anyhow::Result<Options> {
        let Signing {
            security_key,
            security_certificate,
            security_digest,
        } = self;
        let mut options = Options::default();
        if let Some(name) = serializer {
            options.serializer = match name.parse() {
                Ok(serializer) => serializer,
                Err(err) => return usage(format!("--serializer: {err}")),
            };
        }
        let digest: Digest = match security_digest.parse() {
            Ok(digest) => digest,
            Err(err) => return usage(format!("--security-digest: {err}")),
        };
        let (Some(key), Some(certificate)) = (security_key, security_certificate) else {
            if options.serializer == Serializer::Auth {
                return usage("--serializer auth needs --security-key and --security-certificate");
            }
            return Ok(options);
        };
        let pem = match std::fs::read_to_string(key) {
            Ok(pem) => pem,
            Err(err) => return usage(format!("--security-key: {}: {err}", key.display())),
        };
        let of = match std::fs::read(certificate) {
            Ok(of) => of,
            Err(err) => return usage(format!("--security-certificate: {}: {err}", certificate.display())),
        };
        let signer = match Signer::new(&pem, &of, digest) {
            Ok(signer) => signer,
            Err(err) => return usage(format!("--security-key: {}: {err}", key.display())),
        };
        options.codec = Codec::new(CodecOptions {
            signer: Some(signer),
            ..CodecOptions::default()
        });
        Ok(options)
    }
}
