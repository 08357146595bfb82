//! Keys and certificates for signed messages.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::TempDir;

/// A key with a self-signed certificate, in a folder of trusted ones.
#[derive(Debug)]
pub struct Signer {
    folder: TempDir,
}

impl Signer {
    /// Makes one; `name` is the common name in its certificate.
    ///
    /// # Panics
    /// When openssl is missing.
    pub fn new(name: &str) -> Signer {
        let signer = Signer {
            folder: TempDir::new("signer"),
        };
        std::fs::create_dir(signer.trusted()).expect("the folder is ours");
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj"])
            .arg(format!("/O=Umbel/CN={name}"))
            .arg("-keyout")
            .arg(signer.key())
            .arg("-out")
            .arg(signer.certificate())
            .output()
            .expect("openssl is installed: `make setup`");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        signer
    }

    /// The private key.
    pub fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    /// The certificate.
    pub fn certificate(&self) -> PathBuf {
        self.trusted().join("certificate.pem")
    }

    /// A folder with the certificate and nothing else.
    pub fn trusted(&self) -> PathBuf {
        self.folder.path().join("trusted")
    }

    /// What Celery's settings call these.
    pub fn settings(&self) -> Value {
        let text = |path: &Path| path.to_str().expect("the folder's name is ours").to_owned();
        json!({
            "security_key": text(&self.key()),
            "security_certificate": text(&self.certificate()),
            "security_cert_store": text(&self.trusted().join("*.pem")),
        })
    }
}
