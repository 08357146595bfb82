//! What all connections of one configuration know together: where the primary was found last, and which files their
//! credentials came from.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Files with credentials are read again so often: a new password is in use within a few seconds of being there.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A primary that Sentinels name, with the epoch of that: the higher one knows better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Primary {
    pub(crate) epoch: u64,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// What a connection rests on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// With Sentinels only.
    pub(crate) primary: Option<Primary>,
    /// How often what is in the files changed.
    pub(crate) credentials: u64,
}

impl State {
    /// Does a connection made in the state `born` lead to the wrong server now?
    pub(crate) fn has_moved(&self, born: &State) -> bool {
        let server = |state: &State| {
            state
                .primary
                .as_ref()
                .map(|primary| (primary.host.clone(), primary.port))
        };
        server(self) != server(born)
    }
}

#[derive(Default)]
struct Files {
    paths: Vec<PathBuf>,
    looked: Option<Instant>,
    seen: Option<u64>,
}

/// Shared by all connections of one configuration, and by its clones.
#[derive(Default)]
pub(crate) struct Place {
    state: watch::Sender<State>,
    has_sentinels: AtomicBool,
    has_files: AtomicBool,
    /// Somebody listens to the Sentinels.
    pub(crate) is_followed: AtomicBool,
    files: Mutex<Files>,
}

impl Place {
    /// Can a connection come to lead to the wrong place?
    pub(crate) fn is_watched(&self) -> bool {
        self.has_sentinels.load(Ordering::Relaxed) || self.has_files.load(Ordering::Relaxed)
    }

    pub(crate) fn has_sentinels(&self) {
        self.has_sentinels.store(true, Ordering::Relaxed);
    }

    pub(crate) fn follow(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Resolves when a connection that was made at `born` leads to the wrong place.
    pub(crate) async fn left(&self, born: &State) {
        let is_left = |now: &State| now.has_moved(born) || now.credentials != born.credentials;
        // An error would say that this place is gone, which we hold.
        let _ = self.follow().wait_for(is_left).await;
    }

    /// Says which files the credentials come from; read on the next look.
    pub(crate) fn reads(&self, paths: Vec<PathBuf>) {
        if paths.is_empty() {
            return;
        }
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if files.paths != paths {
            let seen = fingerprint(&paths);
            *files = Files {
                paths,
                looked: Some(Instant::now()),
                seen: Some(seen),
            };
        }
        self.has_files.store(true, Ordering::Relaxed);
    }

    /// Reads the files again, now and then, and tells the connections when something else is in them.
    pub(crate) fn look(&self) {
        if !self.has_files.load(Ordering::Relaxed) {
            return;
        }
        // Somebody else is looking: that will do.
        let Ok(mut files) = self.files.try_lock() else { return };
        if files.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return;
        }
        files.looked = Some(Instant::now());
        let now = fingerprint(&files.paths);
        if files.seen.replace(now).is_some_and(|before| before != now) {
            self.state.send_modify(|state| state.credentials += 1);
        }
    }

    /// Takes notice of where the primary was found: connections to another one end. Returns what a connection to it
    /// rests on.
    pub(crate) fn found(&self, primary: &Primary) -> State {
        let mut found = State::default();
        self.state.send_if_modified(|state| {
            let is_new = state.primary.as_ref() != Some(primary);
            state.primary = Some(primary.clone());
            found = state.clone();
            is_new
        });
        found
    }

    /// A Sentinel names a primary. Connections to another one end, unless that is older news than what is known.
    pub(crate) fn told(&self, primary: &Primary) {
        self.state.send_if_modified(|state| {
            let is_news = state.primary.as_ref().is_some_and(|known| known.epoch < primary.epoch);
            if is_news {
                state.primary = Some(primary.clone());
            }
            is_news
        });
    }
}

/// A hash of what is in the files; one that cannot be read counts as another content.
fn fingerprint(paths: &[PathBuf]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for path in paths {
        std::fs::read(path).ok().hash(&mut hasher);
    }
    hasher.finish()
}
