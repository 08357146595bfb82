//! How long a credential lasts, and how a token is renewed.
//!
//! A token is renewed by itself: its account may create tokens for itself at its target, and for nobody else. The API
//! server there is a stranger: its answer is bounded in time and size, and a token is taken only when a kubeconfig with
//! it is accepted and it lasts longer than the one before.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use x509_cert::der::Decode as _;

use crate::client;
use crate::error::chain;
use crate::kubeconfig::{self, Accepted, Login, Refused};

/// Longest life of a token that is asked for.
pub const LONGEST: u32 = 3600;
/// Shortest one that an API server gives.
pub const SHORTEST: u32 = 600;
/// A token has a kilobyte or two; nothing that is asked here has a long answer.
const MAX_ANSWER: usize = 1024 * 1024;

/// What a credential is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A bearer token.
    Token,
    /// A client certificate with its key.
    Certificate,
}

/// From when until when a credential is good, as far as it says so itself. Nothing here is verified: it is a matter of
/// when to renew, never of whom to trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// What it is.
    pub kind: Kind,
    /// When it began.
    pub from: Option<Timestamp>,
    /// When it ends.
    pub until: Option<Timestamp>,
}

impl Accepted {
    /// How long its credential lasts.
    pub fn lifetime(&self) -> Lifetime {
        match &self.login {
            Login::Token(token) => {
                let (from, until) = of_token(token.expose_secret());
                Lifetime {
                    kind: Kind::Token,
                    from,
                    until,
                }
            }
            Login::Certificate { chain, .. } => {
                let (from, until) = of_certificate(chain).unwrap_or_default();
                Lifetime {
                    kind: Kind::Certificate,
                    from,
                    until,
                }
            }
        }
    }

    /// A client for small questions: answers are bounded at a megabyte. Opens no connection yet.
    ///
    /// # Errors
    /// [`Refused::Login`] where certificate and key do not belong together.
    pub fn client(&self) -> Result<Client, Refused> {
        client::build_within(self, MAX_ANSWER)
    }
}

/// `iat` (or `nbf`) and `exp` of a JSON web token; a token of another form says nothing.
pub fn of_token(token: &str) -> (Option<Timestamp>, Option<Timestamp>) {
    let payload = || -> Option<Value> {
        let mut parts = token.split('.');
        let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
        let bytes = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
        serde_json::from_slice(&bytes).ok()
    };
    let Some(payload) = payload() else {
        return (None, None);
    };
    let at = |name: &str| {
        let number = payload.get(name)?;
        let seconds = number.as_i64().or_else(|| {
            // Some issuers write broken seconds.
            let text = number.as_f64()?.trunc().to_string();
            text.parse().ok()
        })?;
        Timestamp::from_second(seconds).ok()
    };
    (at("iat").or_else(|| at("nbf")), at("exp"))
}

/// Validity of the first certificate of a chain, in base64 of PEM.
fn of_certificate(chain: &str) -> Option<(Option<Timestamp>, Option<Timestamp>)> {
    let pem = STANDARD.decode(chain).ok()?;
    let der = CertificateDer::from_pem_slice(&pem).ok()?;
    let validity = x509_cert::Certificate::from_der(&der).ok()?.tbs_certificate.validity;
    let at = |time: x509_cert::time::Time| {
        let seconds = i64::try_from(time.to_unix_duration().as_secs()).ok()?;
        Timestamp::from_second(seconds).ok()
    };
    Some((at(validity.not_before), at(validity.not_after)))
}

/// An account at a target whose token is renewed: what the annotation `umbel.dev/renew` of a Secret holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Account {
    /// Namespace at the target.
    pub namespace: String,
    /// Name of the ServiceAccount.
    pub service_account: String,
    /// Secret beside it that its tokens are bound to: when that is deleted they are worth nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_to: Option<String>,
    /// Life of a new token; an hour at most.
    #[serde(default = "longest")]
    pub seconds: u32,
}

fn longest() -> u32 {
    LONGEST
}

impl Account {
    /// As an annotation has it.
    pub fn to_annotation(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Asks for a new token of this account.
    ///
    /// # Errors
    /// The call; nothing of a token is in them.
    pub async fn token(&self, client: &Client) -> Result<String, kube::Error> {
        let bound = self.bound_to.as_ref().map(|name| BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Secret".into()),
            name: Some(name.clone()),
            uid: None,
        });
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                // None: the API server's own audience.
                audiences: None,
                bound_object_ref: bound,
                expiration_seconds: Some(i64::from(self.seconds.clamp(SHORTEST, LONGEST))),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &self.namespace);
        let answer = accounts
            .create_token_request(&self.service_account, &PostParams::default(), &request)
            .await?;
        Ok(answer.status.and_then(|status| status.token).unwrap_or_default())
    }
}

/// Why a token was not renewed. Nothing in it is secret.
#[derive(Debug, thiserror::Error)]
pub enum NotRenewed {
    /// The kubeconfig is not accepted, before or with the new token.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// No answer in time.
    #[error("the target gave no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// No connection, or a refusal.
    #[error("the target: {0}")]
    Answer(String),
    /// What came is no better than what is there.
    #[error("the target gave a token that does not last longer than the present one")]
    NoLonger,
}

/// The kubeconfig with a new token of the account that it logs in as.
///
/// # Errors
/// [`NotRenewed`].
///
/// # Cancellation
/// Safe: the target may have made a token that nobody has.
pub async fn renewed(bytes: &[u8], account: &Account, limit: Duration) -> Result<String, NotRenewed> {
    let accepted = kubeconfig::parse(bytes)?;
    let before = accepted.lifetime();
    let client = accepted.client()?;
    let token = tokio::time::timeout(limit, account.token(&client))
        .await
        .map_err(|_| NotRenewed::Silent(limit))?
        .map_err(|error| {
            NotRenewed::Answer(match &error {
                kube::Error::Api(status) => status.message.chars().filter(|c| !c.is_control()).take(500).collect(),
                other => chain(other),
            })
        })?;
    let (_, until) = of_token(&token);
    if before
        .until
        .is_some_and(|before| until.is_some_and(|until| until <= before))
    {
        return Err(NotRenewed::NoLonger);
    }
    Ok(kubeconfig::with_token(bytes, &token)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(payload: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload))
    }

    #[allow(clippy::unnecessary_wraps, reason = "as the fields that it is held against")]
    fn at(second: i64) -> Option<Timestamp> {
        Some(Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn a_token_says_when_it_ends_if_it_is_one_that_does() {
        let table = [
            (token(r#"{"iat": 100, "exp": 3700}"#), (at(100), at(3700))),
            (token(r#"{"nbf": 90, "exp": 3700.9}"#), (at(90), at(3700))),
            (token(r#"{"sub": "me"}"#), (None, None)),
            (token(r#"{"exp": "soon"}"#), (None, None)),
            (token(r#"{"exp": 1e300}"#), (None, None)),
            (token("[]"), (None, None)),
            ("plain-token".to_owned(), (None, None)),
            ("a.%%%.c".to_owned(), (None, None)),
        ];
        for (token, expected) in table {
            assert_eq!(of_token(&token), expected, "{token}");
        }
    }

    #[test]
    fn an_account_is_read_as_it_is_written_and_nothing_else_is() {
        let account = Account {
            namespace: "umbel-system".into(),
            service_account: "umbel-eu".into(),
            bound_to: Some("umbel-eu".into()),
            seconds: 3600,
        };
        let text = account.to_annotation();
        assert_eq!(serde_json::from_str::<Account>(&text).unwrap(), account);
        let short: Account = serde_json::from_str(r#"{"namespace": "n", "serviceAccount": "s"}"#).unwrap();
        assert_eq!((short.bound_to, short.seconds), (None, 3600));
        for bad in [
            "{}",
            "true",
            r#"{"namespace": "n", "serviceAccount": "s", "audience": "x"}"#,
        ] {
            assert!(serde_json::from_str::<Account>(bad).is_err(), "{bad}");
        }
    }
}
