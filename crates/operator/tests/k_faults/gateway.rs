//! What stands between an operator and its API server where a test wants to see and to change what passes. It speaks plain
//! HTTP to the operator, and passes each request on as an administrator, or as somebody else.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::missing_panics_doc,
    reason = "each test uses a part"
)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{AsyncBufReadExt, AsyncReadExt as _, StreamExt};
use kube::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use umbel_testkit::{ControlPlane, TempDir, free_port};

/// A request on its way to the API server.
#[derive(Clone, Debug)]
pub struct Asked {
    pub at: Instant,
    pub method: String,
    pub path: String,
    pub query: String,
    headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn is_watch(&self) -> bool {
        self.query.contains("watch=true") || self.query.contains("watch=1")
    }

    /// A list of everything, or the next page of one.
    pub fn is_list_of(&self, plural: &str) -> bool {
        self.method == "GET" && !self.is_watch() && self.path.ends_with(&format!("/{plural}"))
    }

    /// Changes something; the Lease and Events apart.
    pub fn is_write(&self) -> bool {
        self.method != "GET" && !self.path.contains("/leases") && !self.path.contains("/events")
    }

    pub fn is_dry(&self) -> bool {
        self.query.contains("dryRun")
    }
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Fate {
    Pass,
    /// It is passed on later.
    Late(Duration),
    /// It is passed on with another query.
    Ask(String),
    /// This is the answer.
    Answer(u16, Value),
    /// A watch of which nothing is told until the gateway says otherwise.
    Silent,
}

/// A refusal in the API server's form.
pub fn refusal(code: u16, reason: &str, message: &str, retry: Option<u32>) -> Fate {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
        "message": message, "details": retry.map(|seconds| json!({ "retryAfterSeconds": seconds })),
    });
    Fate::Answer(code, body)
}

type Rule = Box<dyn FnMut(&Asked) -> Fate + Send>;

struct Shared {
    client: Client,
    user: Mutex<Option<String>>,
    rule: Mutex<Option<Rule>>,
    seen: Mutex<Vec<(Asked, u16)>>,
    /// Changes of each kind come in heaps, each kind's at times of its own; of an object in a heap the latest only, and twice.
    is_stirred: AtomicBool,
    /// Watches with a number below are silent for ever.
    silenced: AtomicUsize,
    watches: AtomicUsize,
    is_silent: watch::Sender<bool>,
    ended: watch::Sender<usize>,
}

/// See above. Connections end when it is dropped.
pub struct Gateway {
    folder: TempDir,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Gateway {
    pub async fn to(plane: &ControlPlane) -> Gateway {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the port was free");
        let shared = Arc::new(Shared {
            client: plane.client().await,
            user: Mutex::default(),
            rule: Mutex::default(),
            seen: Mutex::default(),
            is_stirred: AtomicBool::new(false),
            silenced: AtomicUsize::new(0),
            watches: AtomicUsize::new(0),
            is_silent: watch::Sender::new(false),
            ended: watch::Sender::new(0),
        });
        let folder = TempDir::new("gateway");
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: g\ncontexts: [{{name: g, context: {{cluster: g, user: g}}}}]\n\
             clusters: [{{name: g, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\nusers: [{{name: g, user: {{}}}}]\n"
        );
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig).expect("the folder is ours");
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Gateway {
            folder,
            shared,
            accepting,
        }
    }

    /// The way in.
    pub fn kubeconfig(&self) -> String {
        let path = self.folder.path().join("kubeconfig");
        path.to_str().expect("a path of text").to_owned()
    }

    /// All requests are made as this user.
    pub fn speak_as(&self, user: &str) {
        *self.shared.user.lock().expect("ours") = Some(user.to_owned());
    }

    /// From now on this decides over each request.
    pub fn rule(&self, rule: impl FnMut(&Asked) -> Fate + Send + 'static) {
        *self.shared.rule.lock().expect("ours") = Some(Box::new(rule));
    }

    /// Everything passes.
    pub fn no_rule(&self) {
        *self.shared.rule.lock().expect("ours") = None;
    }

    /// Changes are merged, doubled, and come in another order than they were made, across kinds.
    pub fn stir(&self) {
        self.shared.is_stirred.store(true, Ordering::Release);
    }

    /// Of the watches that are open nothing passes any more; they stay open.
    pub fn silence_open_watches(&self) -> usize {
        let count = self.shared.watches.load(Ordering::Acquire);
        self.shared.silenced.store(count, Ordering::Release);
        count
    }

    /// Ends the watches that are open.
    pub fn end_watches(&self) {
        self.shared.ended.send_replace(self.watches());
    }

    /// Whether watches that are to be [`Fate::Silent`] tell nothing for now.
    pub fn set_silent(&self, is_silent: bool) {
        self.shared.is_silent.send_replace(is_silent);
    }

    /// How many watches have begun.
    pub fn watches(&self) -> usize {
        self.shared.watches.load(Ordering::Acquire)
    }

    /// Requests that came since `then`, and the codes of their answers.
    pub fn seen(&self, then: Instant) -> Vec<(Asked, u16)> {
        let all = self.shared.seen.lock().expect("ours");
        all.iter().filter(|(asked, _)| asked.at >= then).cloned().collect()
    }

    /// Writes since `then` that were not tried out only.
    pub fn writes(&self, then: Instant) -> Vec<(Asked, u16)> {
        let mut all = self.seen(then);
        all.retain(|(asked, _)| asked.is_write() && !asked.is_dry());
        all
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut open = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while open.try_join_next().is_some() {}
        let shared = shared.clone();
        open.spawn(async move {
            let _ = serve(stream, &shared).await; // Its end is the matter of whoever asked.
        });
    }
}

/// One request on each connection.
async fn serve(mut stream: TcpStream, shared: &Shared) -> Option<()> {
    let asked = read(&mut stream).await?;
    let fate = {
        let mut rule = shared.rule.lock().expect("ours");
        rule.as_mut().map_or(Fate::Pass, |rule| rule(&asked))
    };
    let note = |code: u16| shared.seen.lock().expect("ours").push((asked.clone(), code));
    let mut query = asked.query.clone();
    match &fate {
        Fate::Late(time) => tokio::time::sleep(*time).await,
        Fate::Ask(other) => query.clone_from(other),
        Fate::Answer(code, body) => {
            note(*code);
            return reply(&mut stream, *code, body.to_string().as_bytes()).await;
        }
        Fate::Pass | Fate::Silent => {}
    }
    let uri = if query.is_empty() {
        asked.path.clone()
    } else {
        format!("{}?{query}", asked.path)
    };
    let mut request = http::Request::builder().method(asked.method.as_str()).uri(uri);
    for name in ["content-type", "accept"] {
        if let Some(value) = asked.headers.get(name) {
            request = request.header(name, value);
        }
    }
    if let Some(user) = shared.user.lock().expect("ours").as_ref() {
        request = request.header("Impersonate-User", user);
    }
    let request = request.body(asked.body.clone()).expect("a request");
    match shared.client.request_stream(request).await {
        Ok(body) => {
            note(200);
            if asked.is_watch() {
                let number = shared.watches.fetch_add(1, Ordering::AcqRel);
                return pass(body, &mut stream, shared, &asked, number, matches!(fate, Fate::Silent)).await;
            }
            let mut all = Vec::new();
            let mut body = std::pin::pin!(body);
            body.read_to_end(&mut all).await.ok()?;
            reply(&mut stream, 200, &all).await
        }
        Err(kube::Error::Api(status)) => {
            note(status.code);
            let body = serde_json::to_vec(&status).expect("plain data");
            reply(&mut stream, status.code, &body).await
        }
        // The connection ends without an answer, as there was none.
        Err(_) => {
            note(0);
            None
        }
    }
}

async fn read(stream: &mut TcpStream) -> Option<Asked> {
    let mut buffer = Vec::new();
    let head = loop {
        if stream.read_buf(&mut buffer).await.ok()? == 0 {
            return None;
        }
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
    };
    let text = String::from_utf8_lossy(&buffer[..head]).into_owned();
    let mut lines = text.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, uri) = (first.next()?.to_owned(), first.next()?);
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length: usize = headers
        .get("content-length")
        .map_or(0, |text| text.parse().expect("a length"));
    let mut body = buffer.split_off(head + 4);
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Asked {
        at: Instant::now(),
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body,
    })
}

async fn reply(stream: &mut TcpStream, code: u16, body: &[u8]) -> Option<()> {
    let retry = serde_json::from_slice::<Value>(body).ok().filter(|_| code == 429);
    let retry = retry.and_then(|status| status["details"]["retryAfterSeconds"].as_u64());
    let retry = retry.map_or_else(String::new, |seconds| format!("Retry-After: {seconds}\r\n"));
    let head = format!(
        "HTTP/1.1 {code} So\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{retry}Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.ok()?;
    stream.write_all(body).await.ok()?;
    stream.shutdown().await.ok()
}

async fn pass(
    body: impl futures::AsyncBufRead,
    stream: &mut TcpStream,
    shared: &Shared,
    asked: &Asked,
    number: usize,
    may_be_silent: bool,
) -> Option<()> {
    let head = "HTTP/1.1 200 So\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.ok()?;
    let kind = asked.path.rsplit('/').next().unwrap_or_default().to_owned();
    let body = std::pin::pin!(body);
    let mut lines = body.lines();
    let (mut silent, mut gone) = (shared.is_silent.subscribe(), [0; 1]);
    let mut ended = shared.ended.subscribe();
    loop {
        // Who asked may go while nothing changes.
        let line = tokio::select! {
            line = lines.next() => line,
            _ = stream.read(&mut gone) => return None,
            _ = ended.wait_for(|ended| number < *ended) => return None,
        };
        let Some(Ok(line)) = line else { break };
        let mut heap = vec![line];
        if shared.is_stirred.load(Ordering::Acquire) {
            let time = Duration::from_millis(50 + 97 * (kind.len() as u64 * 7 % 8));
            let until = tokio::time::Instant::now() + time;
            while let Ok(Some(Ok(line))) = tokio::time::timeout_at(until, lines.next()).await {
                heap.push(line);
            }
            heap = merged(heap);
        }
        if may_be_silent {
            silent.wait_for(|is_silent| !is_silent).await.ok()?;
        }
        if number < shared.silenced.load(Ordering::Acquire) {
            // Until whoever asked has had enough.
            let _ = stream.read(&mut gone).await;
            return None;
        }
        for line in heap {
            stream.write_all(line.as_bytes()).await.ok()?;
            stream.write_all(b"\n").await.ok()?;
        }
    }
    stream.shutdown().await.ok()
}

/// Of each object the latest change, twice; what came or went stays.
fn merged(heap: Vec<String>) -> Vec<String> {
    let key = |line: &String| {
        let event: Value = serde_json::from_str(line).expect("an event");
        let uid = event["object"]["metadata"]["uid"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        (event["type"].as_str().unwrap_or_default().to_owned(), uid)
    };
    let keys: Vec<(String, String)> = heap.iter().map(key).collect();
    let mut all = Vec::new();
    for (at, line) in heap.into_iter().enumerate() {
        let is_replaced = keys[at].0 == "MODIFIED" && keys[at + 1..].iter().any(|later| *later == keys[at]);
        if is_replaced {
            continue;
        }
        let is_twice = keys[at].0 == "MODIFIED";
        all.push(line.clone());
        if is_twice {
            all.push(line);
        }
    }
    all
}
