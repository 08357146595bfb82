//! A TLS server in front of a real API server: answers as a test says, else passes on with an administrator's rights.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use http::{HeaderName, Request};
use kube::Client;
use kube::client::Body;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;
use umbel_testkit::Authority;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) at: Instant,
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    headers: Vec<(String, String)>,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn token(&self) -> &str {
        self.header("authorization")
            .and_then(|value| value.strip_prefix("Bearer "))
            .unwrap_or_default()
    }

    pub(crate) fn is(&self, path: &str) -> bool {
        self.path.split('?').next() == Some(path)
    }
}

/// What becomes of a request.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// The real server answers.
    Pass,
    /// The real server answers, so much later.
    Late(Duration),
    /// This status with these headers and this JSON.
    Json(u16, &'static str, String),
    /// A head, then a byte a second.
    Drip,
    /// A head, then bytes without end.
    Endless,
    /// Nothing, for as long as the client waits.
    Never,
    /// The connection ends.
    HangUp,
}

/// A `Status` as API servers write it.
pub(crate) fn status(code: u16, reason: &str, message: &str) -> Reply {
    headed(code, "", reason, message)
}

/// With one header, as `Name: value\r\n`.
pub(crate) fn headed(code: u16, header: &'static str, reason: &str, message: &str) -> Reply {
    let body = serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code});
    Reply::Json(code, header, body.to_string())
}

type Rule = Arc<dyn Fn(Asked) -> BoxFuture<'static, Reply> + Send + Sync>;

pub(crate) struct Stub {
    pub(crate) port: u16,
    authority: Arc<Authority>,
    seen: Arc<Mutex<Vec<Asked>>>,
    accepting: JoinHandle<()>,
}

impl Stub {
    /// In front of the server of this kubeconfig, with an authority of its own.
    pub(crate) async fn before(kubeconfig: &Path, rule: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Stub {
        let authority = Arc::new(Authority::new("stub"));
        Stub::with(authority, kubeconfig, rule).await
    }

    pub(crate) async fn with(
        authority: Arc<Authority>,
        kubeconfig: &Path,
        rule: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Stub {
        let rule = Arc::new(rule);
        Stub::thinking(authority, kubeconfig, move |asked| {
            let rule = rule.clone();
            Box::pin(async move { rule(&asked) })
        })
        .await
    }

    /// As the others, with a rule that may do something before it answers.
    pub(crate) async fn thinking(
        authority: Arc<Authority>,
        kubeconfig: &Path,
        rule: impl Fn(Asked) -> BoxFuture<'static, Reply> + Send + Sync + 'static,
    ) -> Stub {
        let issued = authority.issue("server", "IP:127.0.0.1,DNS:localhost", true);
        let chain = CertificateDer::pem_file_iter(&issued.certificate).unwrap();
        let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(&issued.key).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let upstream = crate::stage::client(kubeconfig).await;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (rule, notes): (Rule, _) = (Arc::new(rule), seen.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, upstream) = (acceptor.clone(), upstream.clone());
                let (rule, notes) = (rule.clone(), notes.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = serve(stream, &upstream, &rule, &notes).await; // Clients may go.
                    }
                });
            }
        });
        Stub {
            port,
            authority,
            seen,
            accepting,
        }
    }

    /// What came so far.
    pub(crate) fn seen(&self) -> Vec<Asked> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A kubeconfig for it, by a token.
    pub(crate) fn kubeconfig(&self, token: &str) -> String {
        self.kubeconfig_at(self.port, token)
    }

    /// Who signed for it, as PEM.
    pub(crate) fn authority(&self) -> Vec<u8> {
        std::fs::read(self.authority.certificate()).unwrap()
    }

    /// The same through another port.
    pub(crate) fn kubeconfig_at(&self, port: u16, token: &str) -> String {
        use base64::Engine as _;
        let authority = base64::engine::general_purpose::STANDARD.encode(self.authority());
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: 'https://127.0.0.1:{port}', certificate-authority-data: {authority}}}}}]\n\
             users: [{{name: u, user: {{token: {token}}}}}]\n"
        )
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(
    mut stream: TlsStream<TcpStream>,
    upstream: &Client,
    rule: &Rule,
    notes: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        let mut lines = head.lines();
        let mut first = lines.next().unwrap_or_default().split(' ');
        let (method, path) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let asked = Asked {
            at: Instant::now(),
            method: method.to_owned(),
            path: path.to_owned(),
            headers,
        };
        let length: usize = asked
            .header("content-length")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        while buffer.len() < end + length {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        let body = buffer[end..end + length].to_vec();
        buffer.drain(..end + length);
        notes.lock().unwrap_or_else(PoisonError::into_inner).push(asked.clone());
        let reply = rule(asked.clone()).await;
        if let Reply::Late(after) = reply {
            tokio::time::sleep(after).await;
        }
        match reply {
            Reply::Pass | Reply::Late(_) => {
                let (status, kind, body) = pass(upstream, &asked, body).await;
                let head = format!(
                    "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(&body).await?;
            }
            Reply::Json(status, header, body) => {
                let head = format!(
                    "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{header}Content-Length: {}\r\n\r\n",
                    body.len()
                );
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(body.as_bytes()).await?;
            }
            Reply::Drip => {
                head_without_end(&mut stream).await?;
                loop {
                    stream.write_all(b" ").await?;
                    stream.flush().await?;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            Reply::Endless => {
                head_without_end(&mut stream).await?;
                let much = vec![b' '; 64 * 1024];
                loop {
                    stream.write_all(&much).await?;
                }
            }
            Reply::HangUp => return Ok(()),
            Reply::Never => {
                // Until the client goes.
                stream.read_to_end(&mut Vec::new()).await?;
                return Ok(());
            }
        }
        stream.flush().await?;
    }
}

async fn head_without_end(stream: &mut TlsStream<TcpStream>) -> std::io::Result<()> {
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")
        .await
}

async fn pass(upstream: &Client, asked: &Asked, body: Vec<u8>) -> (u16, String, Vec<u8>) {
    let mut request = Request::builder().method(asked.method.as_str()).uri(&asked.path);
    for (name, value) in &asked.headers {
        if matches!(name.as_str(), "accept" | "content-type") || name.starts_with("impersonate-") {
            request = request.header(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
        }
    }
    let answer = upstream.send(request.body(Body::from(body)).unwrap()).await.unwrap();
    let kind = answer
        .headers()
        .get("content-type")
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or("text/plain")
        .to_owned();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect_bytes().await.unwrap();
    (status, kind, body.to_vec())
}
