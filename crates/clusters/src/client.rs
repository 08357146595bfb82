//! A client for one target, from its accepted kubeconfig and nothing else.

use std::time::Duration;

use http_body_util::Limited;
use kube::client::ClientBuilder;
use kube::{Client, Config};
use secrecy::{ExposeSecret as _, SecretString};
use tower::util::MapResponseLayer;

use crate::kubeconfig::{Accepted, Login, Refused};

/// A healthy API server accepts in milliseconds, over an ocean in half a second.
const CONNECT: Duration = Duration::from_secs(5);
/// Silence within an answer. Longer than the API server's own slowest lists, shorter than any job's deadline.
const SILENCE: Duration = Duration::from_secs(20);

/// Builds the client. Opens no connection yet. What bounds its requests and answers is [`crate::stay`].
///
/// Redirects are not followed and no proxy is used: the connector has neither, whatever the environment says. Failed
/// requests are not repeated here, so that a deadline means what it says.
pub(crate) fn build(accepted: &Accepted) -> Result<Client, Refused> {
    let config = config(accepted);
    Ok(ClientBuilder::try_from(config).map_err(unusable)?.build())
}

/// The same, with answers of at most so many bytes: for few requests and no watch.
pub(crate) fn build_within(accepted: &Accepted, max_answer: usize) -> Result<Client, Refused> {
    let limit =
        MapResponseLayer::new(move |answer: http::Response<_>| answer.map(|body| Limited::new(body, max_answer)));
    let builder = ClientBuilder::try_from(config(accepted)).map_err(unusable)?;
    Ok(builder.with_layer(&limit).build())
}

/// The library's message could quote what it was given, so it is not passed on.
fn unusable(_: kube::Error) -> Refused {
    Refused::Login("its client certificate and key, or the CA, cannot be used together")
}

fn config(accepted: &Accepted) -> Config {
    let Accepted {
        server,
        server_name,
        authority,
        login,
    } = accepted;
    let mut config = Config::new(server.clone());
    config.root_cert = Some(
        authority
            .iter()
            .map(|certificate| certificate.as_ref().to_vec())
            .collect(),
    );
    config.tls_server_name.clone_from(server_name);
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    config.write_timeout = Some(SILENCE);
    config.default_retry = false;
    match login {
        Login::Token(token) => config.auth_info.token = Some(SecretString::from(token.expose_secret())),
        Login::Certificate { chain, key } => {
            config.auth_info.client_certificate_data = Some(chain.clone());
            config.auth_info.client_key_data = Some(SecretString::from(key.expose_secret()));
        }
    }
    config
}
