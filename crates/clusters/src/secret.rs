//! One Secret at home, by name: read, and watched from the version that was read.
//!
//! A raw watch with a field selector on the name is all that `get, watch` with a resource name allows; a reflector
//! would list first, and be refused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{WatchEvent, WatchParams};
use tokio::task::AbortHandle;

/// Without a living watch a Secret is read again when it is used and this old: half of the 30 s in which a rotated
/// credential is to be picked up.
const UNWATCHED: Duration = Duration::from_secs(15);
/// The client at home has no read timeout, because it holds watches; an answer to a read is waited for this long.
const ANSWER: Duration = Duration::from_secs(10);
/// The server ends a watch after this; below the 295 s that older servers allow.
const WATCH_SECONDS: u32 = 240;

/// Why a Secret could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The worker has no Kubernetes of its own, so it has no Secrets.
    #[error("this worker runs outside of a cluster and reads no Secrets")]
    NoHome,
    /// 404.
    #[error("it does not exist")]
    Missing,
    /// 403 or 401.
    #[error("the worker may not read it: {0}")]
    Forbidden(String),
    /// The Secret has no such key.
    #[error("it has no key `{0}`")]
    NoKey(String),
    /// The home API server did not answer, or with something else.
    #[error("the home cluster did not answer: {0}")]
    Home(String),
}

fn silence() -> kube::Error {
    kube::Error::Service(format!("no answer within {} s", ANSWER.as_secs()).into())
}

/// What was read.
pub(crate) struct Reading {
    pub(crate) version: String,
    pub(crate) kubeconfig: Vec<u8>,
}

/// Reads one key of a Secret.
pub(crate) async fn read(api: &Api<Secret>, name: &str, key: &str) -> Result<Reading, Fault> {
    let get = tokio::time::timeout(ANSWER, api.get(name)).await;
    let secret = get.unwrap_or_else(|_| Err(silence())).map_err(|err| match err {
        kube::Error::Api(status) if status.code == 404 => Fault::Missing,
        kube::Error::Api(status) if status.code == 403 || status.code == 401 => {
            Fault::Forbidden(status.message.clone())
        }
        other => Fault::Home(crate::error::chain(&other)),
    })?;
    let kubeconfig = secret
        .data
        .and_then(|mut data| data.remove(key))
        .ok_or_else(|| Fault::NoKey(key.to_owned()))?;
    Ok(Reading {
        version: secret.metadata.resource_version.unwrap_or_default(),
        kubeconfig: kubeconfig.0,
    })
}

/// Whether what was read still holds. Ends its watch when dropped.
pub(crate) struct Freshness {
    state: Arc<State>,
    watch: AbortHandle,
}

struct State {
    is_stale: AtomicBool,
    is_watched: AtomicBool,
    checked: Mutex<Instant>,
}

impl Freshness {
    /// Starts to watch from `version` on.
    pub(crate) fn watch(api: Api<Secret>, name: String, version: String, now: Instant) -> Freshness {
        let state = Arc::new(State {
            is_stale: AtomicBool::new(false),
            is_watched: AtomicBool::new(true),
            checked: Mutex::new(now),
        });
        let seen = state.clone();
        let watch = tokio::spawn(async move {
            if changed(&api, &name, &version).await {
                seen.is_stale.store(true, Ordering::Release);
            }
            seen.is_watched.store(false, Ordering::Release);
        });
        Freshness {
            state,
            watch: watch.abort_handle(),
        }
    }

    /// May what was read be used without another look?
    pub(crate) fn holds(&self, now: Instant) -> bool {
        let checked = *self.state.checked.lock().unwrap_or_else(PoisonError::into_inner);
        !self.state.is_stale.load(Ordering::Acquire)
            && (self.state.is_watched.load(Ordering::Acquire) || now.duration_since(checked) < UNWATCHED)
    }

    /// Lets what was read hold for another while although it could not be looked at: an outage at home must not stop
    /// the work at targets. False when it is known to have changed, or was refused.
    pub(crate) fn carry_over(&self, now: Instant) -> bool {
        if self.state.is_stale.load(Ordering::Acquire) {
            return false;
        }
        *self.state.checked.lock().unwrap_or_else(PoisonError::into_inner) = now;
        true
    }

    /// Forces another look at the next use, e.g. when the target refused the credential.
    pub(crate) fn doubt(&self) {
        self.state.is_stale.store(true, Ordering::Release);
    }
}

impl Drop for Freshness {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// True when the Secret changed or went; false when the watch ended without saying so.
async fn changed(api: &Api<Secret>, name: &str, version: &str) -> bool {
    let params = WatchParams::default()
        .fields(&format!("metadata.name={name}"))
        .timeout(WATCH_SECONDS)
        .disable_bookmarks();
    let begin = tokio::time::timeout(ANSWER, api.watch(&params, version)).await;
    let Ok(Ok(events)) = begin else { return false };
    let mut events = std::pin::pin!(events);
    // A little longer than the server promises to hold it: a watch that was cut off silently ends here.
    let until = tokio::time::Instant::now() + Duration::from_secs(u64::from(WATCH_SECONDS)) + ANSWER;
    while let Ok(Some(event)) = tokio::time::timeout_at(until, events.next()).await {
        match event {
            Ok(WatchEvent::Added(_) | WatchEvent::Modified(_) | WatchEvent::Deleted(_)) => return true,
            Ok(WatchEvent::Bookmark(_)) => {}
            Ok(WatchEvent::Error(_)) | Err(_) => return false,
        }
    }
    false
}
