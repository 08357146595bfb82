//! Waiting for results: one subscription connection for all who wait.
//!
//! A stored document is published on the channel of its key's name. Who waits subscribes first and looks second, so a
//! result that comes in between is seen either way. When the connection is lost, everybody looks again once it is back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{Config, Error};

/// Subscriptions on their way to the connection; more wait for their turn.
const ASKED: usize = 1024;
/// The wait after a lost connection, doubled up to the longest.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A silent connection is asked whether it is there so often.
const ALIVE_ASKED: Duration = Duration::from_secs(30);

type Watched = Arc<Mutex<HashMap<String, (usize, watch::Sender<()>)>>>;

enum Ask {
    Subscribe(String, oneshot::Sender<()>),
    Unsubscribe(String),
}

/// Wakes those who wait for keys to change.
#[derive(Clone)]
pub struct Watcher {
    asks: mpsc::Sender<Ask>,
    watched: Watched,
}

/// A subscription to one key; ends when dropped.
pub struct Watch {
    watcher: Watcher,
    key: String,
    changed: watch::Receiver<()>,
}

impl Watcher {
    /// Prepares; the first watch connects. Needs a runtime.
    pub fn new(config: Config) -> Watcher {
        let (asks, asked) = mpsc::channel(ASKED);
        let watched = Watched::default();
        tokio::spawn(run(config, asked, Arc::clone(&watched)));
        Watcher { asks, watched }
    }

    /// Subscribes; returns when Redis has confirmed it, or after `patience` all the same: then the watch works as soon
    /// as there is a connection.
    ///
    /// # Cancellation
    /// Safe.
    pub async fn watch(&self, key: &str, patience: Duration) -> Watch {
        let changed = {
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            let entry = watched
                .entry(key.to_owned())
                .or_insert_with(|| (0, watch::Sender::default()));
            entry.0 += 1;
            entry.1.subscribe()
        };
        let watch = Watch {
            watcher: self.clone(),
            key: key.to_owned(),
            changed,
        };
        // A second watch of a key asks again: the first may not be confirmed yet.
        let (done, confirmed) = oneshot::channel();
        let asked = async {
            if self.asks.send(Ask::Subscribe(key.to_owned(), done)).await.is_ok() {
                let _ = confirmed.await; // An error: the connection was lost, and will subscribe by itself.
            }
        };
        let _ = tokio::time::timeout(patience, asked).await;
        watch
    }
}

impl Watch {
    /// Resolves when the key has changed since the last call, or may have.
    ///
    /// # Cancellation
    /// Safe: a change that nobody awaited is kept.
    pub async fn changed(&mut self) {
        // An error would say that nobody watches the key, which we do.
        let _ = self.changed.changed().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = self.watcher.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = watched.get_mut(&self.key) else {
            return;
        };
        entry.0 -= 1;
        if entry.0 == 0 {
            watched.remove(&self.key);
            // A full channel leaves a subscription behind; its messages wake nobody.
            let _ = self.watcher.asks.try_send(Ask::Unsubscribe(self.key.clone()));
        }
    }
}

/// Keeps one connection while there is anybody to ask for it.
async fn run(config: Config, mut asked: mpsc::Receiver<Ask>, watched: Watched) {
    let mut pause = AGAIN.0;
    let mut first = None;
    loop {
        // Nobody waits: no connection is needed until somebody does.
        if first.is_none() && watched.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            match asked.recv().await {
                Some(ask) => first = Some(ask),
                None => return,
            }
        }
        match serve(&config, &mut asked, &watched, first.take()).await {
            Ok(()) => return,
            Err(err) => {
                tracing::debug!(error = %err, server = %config.server(), "the subscription to results is lost");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(AGAIN.1);
            }
        }
        // Whoever waits looks again: something may have been published meanwhile.
        wake_all(&watched);
    }
}

fn wake_all(watched: &Watched) {
    let watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
    for (_, changed) in watched.values() {
        changed.send_replace(());
    }
}

async fn serve(
    config: &Config,
    asked: &mut mpsc::Receiver<Ask>,
    watched: &Watched,
    first: Option<Ask>,
) -> Result<(), Error> {
    let failed = |source| Error::Call {
        call: "SUBSCRIBE result",
        source,
    };
    let (pubsub, born) = config.pubsub().await?;
    let (mut sink, mut stream) = pubsub.split();
    let known: Vec<String> = {
        let watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.keys().cloned().collect()
    };
    if !known.is_empty() {
        sink.subscribe(known.as_slice()).await.map_err(failed)?;
        wake_all(watched);
    }
    let mut next = first;
    loop {
        let ask = match next.take() {
            Some(ask) => Some(ask),
            None => tokio::select! {
                ask = asked.recv() => match ask {
                    Some(ask) => Some(ask),
                    None => return Ok(()),
                },
                message = stream.next() => match message {
                    Some(message) => {
                        wake(watched, message.get_channel_name());
                        None
                    }
                    None => return Err(crate::control::timed_out("SUBSCRIBE result")),
                },
                () = config.place.left(&born) => return Err(crate::control::timed_out("SUBSCRIBE result")),
                () = tokio::time::sleep(ALIVE_ASKED) => {
                    let alive = tokio::time::timeout(config.response_timeout, sink.ping::<redis::Value>());
                    alive.await.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into())).map_err(failed)?;
                    None
                }
            },
        };
        let Some(ask) = ask else { continue };
        // What else has been asked meanwhile goes along: thousands of watches would wait for one reply each.
        let (mut wanted, mut confirms, mut unwanted) = (Vec::new(), Vec::new(), Vec::new());
        let mut more = Some(ask);
        while let Some(ask) = more {
            match ask {
                Ask::Subscribe(key, done) => {
                    wanted.push(key);
                    confirms.push(done);
                }
                Ask::Unsubscribe(key) => unwanted.push(key),
            }
            more = asked.try_recv().ok();
        }
        unwanted.retain(|key| {
            let watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
            !watched.contains_key(key)
        });
        if !unwanted.is_empty() {
            sink.unsubscribe(unwanted.as_slice()).await.map_err(failed)?;
        }
        if !wanted.is_empty() {
            sink.subscribe(wanted.as_slice()).await.map_err(failed)?;
        }
        for done in confirms {
            let _ = done.send(()); // Who asked may have given up.
        }
    }
}

fn wake(watched: &Watched, key: &str) {
    let watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, changed)) = watched.get(key) {
        changed.send_replace(());
    }
}
