//! A wire between a client and Redis that breaks where a test wants it to: after an exact reply, in one direction,
//! for new connections, for all.
//!
//! It knows where commands and replies begin and end and which reply answers which command. Rules look at commands
//! on their way to the server; each acts once.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::{Redis, resp, within};

/// A command on its way to the server.
#[derive(Debug)]
pub struct Command {
    /// Its words; the first is the name.
    pub parts: Vec<Vec<u8>>,
    /// Name of the script of ours that it calls.
    pub script: Option<String>,
}

impl Command {
    /// Is this its name, in any case?
    pub fn is(&self, name: &str) -> bool {
        self.parts
            .first()
            .is_some_and(|first| first.eq_ignore_ascii_case(name.as_bytes()))
    }

    /// Is one of its arguments exactly this?
    pub fn has(&self, argument: &str) -> bool {
        self.parts.iter().skip(1).any(|part| part == argument.as_bytes())
    }
}

/// Matches calls of one of the broker's scripts, by hash as well as with its text.
pub fn script(name: &'static str) -> impl Fn(&Command) -> bool + Send + 'static {
    move |command| command.script.as_deref() == Some(name)
}

/// The name in the comment with which each script of ours begins: `-- reserve: takes up to …`.
fn name_of(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let mut names = text
        .lines()
        .filter_map(|line| line.strip_prefix("-- ")?.split_once(": "));
    let (name, _) = names.find(|(name, _)| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))?;
    Some(name.to_owned())
}

/// One direction of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Requests,
    /// From the server to the client.
    Replies,
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    requests: bool,
    replies: bool,
    /// New connections are accepted.
    open: bool,
    /// Connections of an older generation end.
    generation: u64,
    latency: Duration,
}

type Matcher = Box<dyn Fn(&Command) -> bool + Send>;

struct Rule {
    matches: Matcher,
    /// Matching commands that pass before it acts.
    skip: usize,
    action: Action,
}

enum Action {
    /// Passes the command on, swallows its reply and ends the connection.
    CutReply(oneshot::Sender<()>),
    /// Answers in the server's place; the command does not reach it. Acts as often as it is told to.
    Answer(Vec<u8>, usize),
    /// Keeps the command back and ends the connection on the client's side only.
    Hold(oneshot::Sender<oneshot::Sender<oneshot::Sender<Vec<u8>>>>),
}

struct Shared {
    server: u16,
    flow: watch::Sender<Flow>,
    rules: Mutex<Vec<Rule>>,
    connections: Mutex<usize>,
    /// Scripts by hash, learned when their text passes, as it must before a fresh server knows the hash.
    scripts: Mutex<HashMap<Vec<u8>, String>>,
}

/// The relay; all its connections end when it is dropped.
pub struct Relay {
    port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

/// A cut that was asked for.
pub struct Cut(oneshot::Receiver<()>);

impl Cut {
    /// Waits until the reply has been swallowed: the server has carried the command out, the client will not learn it.
    ///
    /// # Panics
    /// When that does not happen within `deadline`.
    pub async fn happened(self, deadline: Duration) {
        within(deadline, "a reply to cut", self.0)
            .await
            .expect("the relay is still there");
    }
}

/// A command that was kept back.
pub struct Held(oneshot::Receiver<oneshot::Sender<oneshot::Sender<Vec<u8>>>>);

/// A command that the client has sent and the server not yet seen.
pub struct Late(oneshot::Sender<oneshot::Sender<Vec<u8>>>);

impl Held {
    /// Waits until such a command was sent; the client's connection has ended then.
    ///
    /// # Panics
    /// When none is within `deadline`.
    pub async fn sent(self, deadline: Duration) -> Late {
        Late(
            within(deadline, "a command to hold back", self.0)
                .await
                .expect("the relay is still there"),
        )
    }
}

impl Late {
    /// Delivers the command on the old connection; returns the bytes of the server's reply.
    ///
    /// # Panics
    /// When the server has closed that connection.
    pub async fn deliver(self) -> Vec<u8> {
        let (reply, answer) = oneshot::channel();
        self.0.send(reply).expect("the old connection is still there");
        answer.await.expect("the server answers on the old connection")
    }
}

impl Relay {
    /// Starts a relay in front of a server.
    ///
    /// # Panics
    /// When loopback cannot be listened on.
    pub async fn before(server: &Redis) -> Relay {
        let port = crate::free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the port was free");
        let flow = Flow {
            requests: true,
            replies: true,
            open: true,
            generation: 0,
            latency: Duration::ZERO,
        };
        let shared = Arc::new(Shared {
            server: server.port(),
            flow: watch::Sender::new(flow),
            rules: Mutex::default(),
            connections: Mutex::default(),
            scripts: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Relay {
            port,
            shared,
            accepting,
        }
    }

    /// Its own port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Address of database 0 through the relay.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// The server carries out the next command that matches, the client never learns the reply: the connection ends.
    pub fn cut_reply(&self, matches: impl Fn(&Command) -> bool + Send + 'static) -> Cut {
        self.cut_reply_after(0, matches)
    }

    /// As [`Relay::cut_reply`] after `skip` matching commands.
    pub fn cut_reply_after(&self, skip: usize, matches: impl Fn(&Command) -> bool + Send + 'static) -> Cut {
        let (happened, cut) = oneshot::channel();
        self.rule(Rule {
            matches: Box::new(matches),
            skip,
            action: Action::CutReply(happened),
        });
        Cut(cut)
    }

    /// The next command that matches stays in the wire while its client's connection ends; it can be delivered later.
    pub fn hold(&self, matches: impl Fn(&Command) -> bool + Send + 'static) -> Held {
        let (sent, held) = oneshot::channel();
        self.rule(Rule {
            matches: Box::new(matches),
            skip: 0,
            action: Action::Hold(sent),
        });
        Held(held)
    }

    /// The next `times` commands that match are not carried out: the client gets these bytes for a reply, e.g.
    /// `-LOADING Redis is loading the dataset in memory\r\n`.
    pub fn answer(&self, reply: &str, times: usize, matches: impl Fn(&Command) -> bool + Send + 'static) {
        self.rule(Rule {
            matches: Box::new(matches),
            skip: 0,
            action: Action::Answer(reply.as_bytes().to_vec(), times),
        });
    }

    fn rule(&self, rule: Rule) {
        self.shared
            .rules
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(rule);
    }

    /// Nothing passes in this direction any more; connections stay open. Both directions: a half-open connection.
    pub fn stop(&self, direction: Direction) {
        self.shared.flow.send_modify(|flow| match direction {
            Direction::Requests => flow.requests = false,
            Direction::Replies => flow.replies = false,
        });
    }

    /// Everything passes again, what was stopped included; new connections too.
    pub fn resume(&self) {
        self.shared
            .flow
            .send_modify(|flow| (flow.requests, flow.replies, flow.open) = (true, true, true));
    }

    /// Ends all connections.
    pub fn sever(&self) {
        self.shared.flow.send_modify(|flow| flow.generation += 1);
    }

    /// Ends all connections and each new one at once, until [`Relay::resume`].
    pub fn close(&self) {
        self.shared
            .flow
            .send_modify(|flow| (flow.open, flow.generation) = (false, flow.generation + 1));
    }

    /// Everything that was read at once is passed on this much later, in both directions.
    pub fn delay(&self, latency: Duration) {
        self.shared.flow.send_modify(|flow| flow.latency = latency);
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        *self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
        self.close();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        if !shared.flow.borrow().open {
            continue; // Dropped: the client sees the end of the connection.
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            count(&shared, 1);
            let _ = connection(client, &shared).await; // Its end is the clients' matter, not ours.
            count(&shared, -1);
        });
    }
}

fn count(shared: &Shared, by: isize) {
    let mut connections = shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
    *connections = connections.saturating_add_signed(by);
}

/// What becomes of the reply to a command that was passed on.
enum Fate {
    Pass,
    Cut(oneshot::Sender<()>),
    Replace(Vec<u8>),
}

/// Goes to the server in place of a command that is answered otherwise, so that replies keep their order.
const HARMLESS: &[u8] = b"*1\r\n$4\r\nPING\r\n";

enum End {
    Closed,
    Held {
        bytes: Vec<u8>,
        sent: oneshot::Sender<oneshot::Sender<oneshot::Sender<Vec<u8>>>>,
    },
}

async fn connection(client: TcpStream, shared: &Shared) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", shared.server)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let fates = Mutex::new(VecDeque::new());
    let mut flow = shared.flow.subscribe();
    let born = flow.borrow().generation;
    let end = tokio::select! {
        end = requests(&mut from_client, &mut to_server, &fates, shared) => end?,
        end = replies(&mut from_server, &mut to_client, &fates, shared) => end?,
        _ = flow.wait_for(|flow| flow.generation != born) => End::Closed,
    };
    if let End::Held { bytes, sent } = end {
        drop((from_client, to_client));
        let (deliver, delivery) = oneshot::channel();
        if sent.send(deliver).is_ok()
            && let Ok(answer) = delivery.await
        {
            to_server.write_all(&bytes).await?;
            let _ = answer.send(next_reply(&mut from_server).await?);
        }
    }
    Ok(())
}

async fn next_reply(server: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let mut buffer = Vec::new();
    loop {
        while let Some(length) = resp::reply(&buffer) {
            let frame: Vec<u8> = buffer.drain(..length).collect();
            if !resp::is_push(&frame) {
                return Ok(frame);
            }
        }
        if server.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn requests(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    fates: &Mutex<VecDeque<Fate>>,
    shared: &Shared,
) -> io::Result<End> {
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(End::Closed);
        }
        let (mut pass, mut out) = (0, Vec::with_capacity(buffer.len()));
        while let Some((parts, length)) = resp::command(&buffer[pass..]) {
            let script = called(shared, &parts);
            let command = Command { parts, script };
            let fate = match due(shared, &command) {
                None => Fate::Pass,
                Some(Action::CutReply(happened)) => Fate::Cut(happened),
                Some(Action::Answer(reply, _)) => Fate::Replace(reply),
                Some(Action::Hold(sent)) => {
                    to.write_all(&out).await?;
                    return Ok(End::Held {
                        bytes: buffer[pass..pass + length].to_vec(),
                        sent,
                    });
                }
            };
            out.extend_from_slice(match fate {
                Fate::Replace(_) => HARMLESS,
                Fate::Pass | Fate::Cut(_) => &buffer[pass..pass + length],
            });
            fates.lock().unwrap_or_else(PoisonError::into_inner).push_back(fate);
            pass += length;
        }
        gate(shared, |flow| flow.requests).await;
        to.write_all(&out).await?;
        buffer.drain(..pass);
    }
}

async fn replies(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    fates: &Mutex<VecDeque<Fate>>,
    shared: &Shared,
) -> io::Result<End> {
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(End::Closed);
        }
        let (mut pass, mut cut, mut out) = (0, None, Vec::with_capacity(buffer.len()));
        while cut.is_none()
            && let Some(length) = resp::reply(&buffer[pass..])
        {
            let fate = if resp::is_push(&buffer[pass..]) {
                None
            } else {
                fates.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
            };
            match fate {
                Some(Fate::Cut(happened)) => {
                    cut = Some(happened);
                    continue;
                }
                Some(Fate::Replace(reply)) => out.extend_from_slice(&reply),
                Some(Fate::Pass) | None => out.extend_from_slice(&buffer[pass..pass + length]),
            }
            pass += length;
        }
        gate(shared, |flow| flow.replies).await;
        to.write_all(&out).await?;
        buffer.drain(..pass);
        if let Some(happened) = cut {
            let _ = happened.send(());
            return Ok(End::Closed);
        }
    }
}

/// Waits until the direction is open, and for the latency of the wire.
async fn gate(shared: &Shared, is_open: impl Fn(&Flow) -> bool) {
    let mut flow = shared.flow.subscribe();
    let latency = flow
        .wait_for(|flow| is_open(flow))
        .await
        .map_or(Duration::ZERO, |flow| flow.latency);
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
}

/// The script of ours that a command calls.
fn called(shared: &Shared, parts: &[Vec<u8>]) -> Option<String> {
    let [name, script, ..] = parts else { return None };
    let mut scripts = shared.scripts.lock().unwrap_or_else(PoisonError::into_inner);
    if name.eq_ignore_ascii_case(b"EVALSHA") {
        return scripts.get(script).cloned();
    }
    if !name.eq_ignore_ascii_case(b"EVAL") {
        return None;
    }
    let found = name_of(script)?;
    let hash = redis::Script::new(&String::from_utf8_lossy(script))
        .get_hash()
        .as_bytes()
        .to_vec();
    scripts.insert(hash, found.clone());
    Some(found)
}

/// The action of the first rule that this command sets off.
fn due(shared: &Shared, command: &Command) -> Option<Action> {
    let mut rules = shared.rules.lock().unwrap_or_else(PoisonError::into_inner);
    let mut hit = None;
    for (at, rule) in rules.iter_mut().enumerate() {
        if (rule.matches)(command) {
            if rule.skip == 0 {
                hit = Some(at);
                break;
            }
            rule.skip -= 1;
        }
    }
    let at = hit?;
    if let Action::Answer(reply, times) = &mut rules[at].action
        && *times > 1
    {
        *times -= 1;
        return Some(Action::Answer(reply.clone(), 1));
    }
    Some(rules.remove(at).action)
}
