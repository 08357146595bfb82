//! A client for one target, from its accepted kubeconfig and nothing else.

use std::time::Duration;

use http::{Method, Request, Response};
use http_body_util::Limited;
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use secrecy::{ExposeSecret as _, SecretString};
use tower::util::MapResponseLayer;

use crate::kubeconfig::{Accepted, Login, Refused};

/// A healthy API server accepts in milliseconds, over an ocean in half a second.
const CONNECT: Duration = Duration::from_secs(5);
/// Silence before and within an answer. Longer than the API server's own slowest lists, shorter than any job's deadline.
pub(crate) const SILENCE: Duration = Duration::from_secs(20);

/// Builds the client. Opens no connection yet. What bounds its requests and answers is [`crate::stay`]: a read timeout
/// of the connection itself would also count while it rests, and end it under a request that came at that moment.
///
/// Redirects are not followed and no proxy is used: the connector has neither, whatever the environment says. What
/// fails is repeated by [`send`] alone, so that a deadline means what it says.
pub(crate) fn build(accepted: &Accepted) -> Result<Client, Refused> {
    let config = config(accepted);
    Ok(ClientBuilder::try_from(config).map_err(unusable)?.build())
}

/// The same, with answers of at most so many bytes: for few requests and no watch.
pub(crate) fn build_within(accepted: &Accepted, max_answer: usize) -> Result<Client, Refused> {
    let limit =
        MapResponseLayer::new(move |answer: http::Response<_>| answer.map(|body| Limited::new(body, max_answer)));
    let mut config = config(accepted);
    config.read_timeout = Some(SILENCE);
    let builder = ClientBuilder::try_from(config).map_err(unusable)?;
    Ok(builder.with_layer(&limit).build())
}

/// Sends a request. A read whose connection ended before an answer is sent once more: servers end kept connections when
/// they like, also while a request is on its way. One that found no connection at all is not.
///
/// # Cancellation
/// Safe for reads. A write that was sent may still happen.
pub(crate) async fn send(client: &Client, request: Request<Body>) -> Result<Response<Body>, kube::Error> {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let spare = if is_read { copy(&request) } else { None };
    let sending = async {
        match (client.send(request).await, spare) {
            (Err(err), Some(spare)) if was_connected(&err) => client.send(spare).await,
            (answer, _) => answer,
        }
    };
    let silent = |_| kube::Error::Service(format!("no answer within {} s", SILENCE.as_secs()).into());
    tokio::time::timeout(SILENCE, sending).await.map_err(silent)?
}

/// The request once more, if its body is at hand.
pub(crate) fn copy(request: &Request<Body>) -> Option<Request<Body>> {
    let mut copy = Request::new(request.body().try_clone()?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// Was there a connection, and did it end before an answer?
fn was_connected(err: &kube::Error) -> bool {
    let kube::Error::Service(inner) = err else { return false };
    let inner = inner.downcast_ref::<hyper_util::client::legacy::Error>();
    inner.is_some_and(|err| !err.is_connect())
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
