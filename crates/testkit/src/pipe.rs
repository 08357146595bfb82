//! A wire that knows nothing of what passes: for replication, TLS, and anything that is to come late, in pieces or not
//! at all.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How bytes pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flow {
    /// Nothing passes; connections stay open.
    pub is_stopped: bool,
    /// New connections are ended at once.
    pub is_closed: bool,
    /// What was read is written in pieces of at most so many bytes; 0: whole.
    pub piece: usize,
    /// Each read is passed on later by something between these two.
    pub delay: (Duration, Duration),
    /// One read in so many ends the connection; 0: none.
    pub cuts: u64,
}

struct Shared {
    to: AtomicU16,
    flow: watch::Sender<(Flow, u64)>,
    reads: AtomicU64,
}

/// A wire to a port of loopback; all its connections end when it is dropped.
pub struct Pipe {
    port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Pipe {
    /// Lays a wire to a port.
    ///
    /// # Panics
    /// When loopback cannot be listened on.
    pub async fn to(port: u16) -> Pipe {
        let own = crate::free_port();
        let listener = TcpListener::bind(("127.0.0.1", own)).await.expect("the port was free");
        let shared = Arc::new(Shared {
            to: AtomicU16::new(port),
            flow: watch::Sender::default(),
            reads: AtomicU64::new(1),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Pipe {
            port: own,
            shared,
            accepting,
        }
    }

    /// Its own port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Address of database 0 of a server behind it.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// From now on bytes pass in this way.
    pub fn set(&self, flow: Flow) {
        self.shared.flow.send_modify(|(now, _)| *now = flow);
    }

    /// New connections lead to another port; those that are there stay.
    pub fn lead_to(&self, port: u16) {
        self.shared.to.store(port, Ordering::Relaxed);
    }

    /// Ends all connections.
    pub fn sever(&self) {
        self.shared.flow.send_modify(|(_, generation)| *generation += 1);
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.accepting.abort();
        self.sever();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        if shared.flow.borrow().0.is_closed {
            continue;
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let _ = connection(client, &shared).await; // Its end is the matter of those at its ends.
        });
    }
}

async fn connection(client: TcpStream, shared: &Shared) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", shared.to.load(Ordering::Relaxed))).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut flow = shared.flow.subscribe();
    let born = flow.borrow().1;
    tokio::select! {
        end = carry(from_client, to_server, shared) => end,
        end = carry(from_server, to_client, shared) => end,
        _ = flow.wait_for(|(_, generation)| *generation != born) => Ok(()),
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    shared: &Shared,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut flow = shared.flow.subscribe();
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let (now, _) = match flow.wait_for(|(flow, _)| !flow.is_stopped).await {
            Ok(now) => *now,
            Err(_) => return Ok(()),
        };
        let nth = shared.reads.fetch_add(1, Ordering::Relaxed);
        if now.cuts > 0 && nth.is_multiple_of(now.cuts) {
            return Ok(());
        }
        let (least, most) = now.delay;
        if !most.is_zero() {
            // Uneven, and the same in each run: a sixteenth of the span at a time, in an order that jumps.
            let share = u32::try_from(nth * 7 % 16).expect("below sixteen");
            tokio::time::sleep(least + (most.saturating_sub(least)) * share / 16).await;
        }
        let piece = if now.piece == 0 { length } else { now.piece };
        for part in buffer[..length].chunks(piece) {
            to.write_all(part).await?;
            if now.piece > 0 {
                tokio::task::yield_now().await;
            }
        }
    }
}
