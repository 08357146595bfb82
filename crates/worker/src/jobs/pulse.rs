//! Tells watchers of programs that their worker is not frozen.
//!
//! A worker that is stopped for longer than its lease has lost its messages without knowing it, and another worker may
//! have begun. What it started itself stands still with it; a program would go on. So each watcher expects a byte now
//! and then, and kills when it has waited for too long. The bytes come from a thread, as the renewals of leases do: a
//! runtime that is held up must not cost a run.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::leash;

/// Bytes that may be late or lost before a watcher gives up.
const SPARE: u32 = 8;

/// The watchers of all programs that run. Its thread ends with it.
pub(super) struct Pulse {
    watchers: Arc<Mutex<Vec<Weak<UnixStream>>>>,
    silence: Duration,
}

impl Pulse {
    /// A watcher gives up before the lease of its run can end: that is renewed at least every `renewal`.
    pub(super) fn new(lease: Duration, renewal: Duration) -> std::io::Result<Pulse> {
        let silence = lease.saturating_sub(renewal).max(lease / 2) * 9 / 10;
        let watchers: Arc<Mutex<Vec<Weak<UnixStream>>>> = Arc::default();
        let all = Arc::downgrade(&watchers);
        std::thread::Builder::new().name("pulse".to_owned()).spawn(move || {
            while let Some(watchers) = all.upgrade() {
                beat(&mut watchers.lock().unwrap_or_else(PoisonError::into_inner));
                drop(watchers);
                std::thread::sleep(silence / SPARE);
            }
        })?;
        Ok(Pulse { watchers, silence })
    }

    /// How long a watcher may hear nothing.
    pub(super) fn silence(&self) -> Duration {
        self.silence
    }

    /// Keeps a watcher calm until what this returns is dropped. The socket does not block.
    pub(super) fn keep(&self, watcher: UnixStream) -> Arc<UnixStream> {
        let watcher = Arc::new(watcher);
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.push(Arc::downgrade(&watcher));
        watcher
    }
}

/// Sends each a byte and forgets those that are gone. One that does not read has enough of them.
fn beat(watchers: &mut Vec<Weak<UnixStream>>) {
    watchers.retain(|watcher| {
        let Some(watcher) = watcher.upgrade() else {
            return false;
        };
        let _ = (&*watcher).write(&[leash::ALIVE]);
        true
    });
}
