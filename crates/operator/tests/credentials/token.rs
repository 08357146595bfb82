//! Tokens of any life, signed as an API server signs them: it gives none itself that lasts for less than ten minutes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// The key of an API server.
pub(crate) struct Issuer {
    key: PathBuf,
}

impl Issuer {
    pub(crate) fn new(key: &Path) -> Issuer {
        assert!(key.exists(), "{}", key.display());
        Issuer { key: key.to_owned() }
    }

    /// A token of a ServiceAccount.
    pub(crate) fn token(&self, namespace: &str, account: &str, uid: &str, from: i64, until: i64) -> String {
        const ISSUER: &str = "https://kubernetes.default.svc";
        let payload = json!({
            "iss": ISSUER, "aud": [ISSUER], "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "iat": from, "nbf": from, "exp": until,
            "kubernetes.io": { "namespace": namespace, "serviceaccount": { "name": account, "uid": uid } },
        });
        let part = |value: &Value| base64url(value.to_string().as_bytes());
        let signed = format!("{}.{}", part(&json!({ "alg": "ES256", "typ": "JWT" })), part(&payload));
        format!("{signed}.{}", base64url(&self.sign(signed.as_bytes())))
    }

    /// ECDSA over P-256, as the two numbers one after the other.
    fn sign(&self, text: &[u8]) -> Vec<u8> {
        let mut openssl = Command::new("openssl")
            .args(["dgst", "-sha256", "-sign"])
            .arg(&self.key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("openssl runs");
        openssl.stdin.take().expect("a pipe").write_all(text).expect("it reads");
        let der = openssl.wait_with_output().expect("it ends").stdout;
        // SEQUENCE { INTEGER r, INTEGER s }, each with a zero in front where its first bit is set.
        let number = |at: usize| {
            let length = usize::from(der[at + 1]);
            (&der[at + 2..at + 2 + length], at + 2 + length)
        };
        let (r, next) = number(2);
        let (s, _) = number(next);
        let mut raw = Vec::new();
        for part in [r, s] {
            let start = part.iter().position(|byte| *byte != 0).unwrap_or(part.len());
            let part = &part[start..];
            raw.extend(std::iter::repeat_n(0, 32 - part.len()));
            raw.extend_from_slice(part);
        }
        raw
    }
}

fn base64url(bytes: &[u8]) -> String {
    let text = serde_json::to_value(k8s_openapi::ByteString(bytes.to_vec())).expect("base64");
    let text = text.as_str().expect("text").trim_end_matches('=');
    text.replace('+', "-").replace('/', "_")
}
