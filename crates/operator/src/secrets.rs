//! Tells when a Secret has changed: a watch of it by its name, of names and versions only.
//!
//! It saves waiting and nothing else: whoever has read a Secret reads it again after a while anyway.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{WatchEvent, WatchParams};
use kube::{Api, Client, ResourceExt};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

use crate::apply;
use crate::watch::WATCH_LASTS;

/// Watches of one operator; Secrets beyond that are seen to change when they are read again.
const MOST: usize = 256;
/// Between two watches of one Secret, and between two looks for one that is not there.
const REST: Duration = Duration::from_secs(1);
/// What was refused is tried again after this.
const AGAIN: Duration = Duration::from_secs(30);

/// Watches Secrets, so many at most.
#[derive(Clone)]
pub(crate) struct Secrets {
    client: Client,
    room: Arc<Semaphore>,
}

/// A watch, until it is dropped.
pub(crate) struct Watch(AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Secrets {
    /// With a client that waits for longer than a watch is silent.
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            room: Arc::new(Semaphore::new(MOST)),
        }
    }

    /// Has `changed` told of each change; nothing where too many are watched.
    pub(crate) fn watch(&self, namespace: &str, name: &str, changed: Arc<Notify>) -> Option<Watch> {
        let permit = self.room.clone().try_acquire_owned().ok()?;
        let api = Api::namespaced(self.client.clone(), namespace);
        let run = tokio::spawn(follow(api, name.to_owned(), changed, permit));
        Some(Watch(run.abort_handle()))
    }
}

async fn follow(api: Api<Secret>, name: String, changed: Arc<Notify>, _permit: OwnedSemaphorePermit) {
    // The version that was seen last; nothing while it is not there.
    let mut known: Option<Option<String>> = None;
    loop {
        let rest = match api.get_metadata_opt(&name).await {
            Ok(found) => {
                let version = found.and_then(|secret| secret.resource_version());
                note(&mut known, version.clone(), &changed);
                match version {
                    Some(version) => listen(&api, &name, &version, &mut known, &changed).await,
                    None => {
                        // It may have come and gone again since the last look.
                        changed.notify_one();
                        REST
                    }
                }
            }
            Err(error) => {
                tracing::debug!(secret = name, error = apply::words(&error), "not watched");
                AGAIN
            }
        };
        tokio::time::sleep(rest).await;
    }
}

fn note(known: &mut Option<Option<String>>, version: Option<String>, changed: &Notify) {
    let seen = Some(version);
    if *known != seen {
        *known = seen;
        changed.notify_one();
    }
}

/// Until the watch ends; how long to wait then. A field selector on the name is all that the rights allow: a reflector would
/// list first. And it begins at a version, because not every server takes a watch without one.
async fn listen(
    api: &Api<Secret>,
    name: &str,
    version: &str,
    known: &mut Option<Option<String>>,
    changed: &Notify,
) -> Duration {
    let params = WatchParams::default()
        .fields(&format!("metadata.name={name}"))
        .timeout(WATCH_LASTS);
    let events = match api.watch_metadata(&params, version).await {
        Ok(events) => events,
        Err(error) => {
            tracing::debug!(secret = name, error = apply::words(&error), "not watched");
            return AGAIN;
        }
    };
    let begin = Instant::now();
    let mut events = pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(WatchEvent::Added(secret) | WatchEvent::Modified(secret)) => {
                note(known, secret.resource_version(), changed);
            }
            Ok(WatchEvent::Deleted(_)) => {
                note(known, None, changed);
                return REST;
            }
            Ok(WatchEvent::Bookmark(_)) => {}
            // One that fails at once would do so again.
            Ok(WatchEvent::Error(_)) | Err(_) => return if begin.elapsed() < AGAIN { AGAIN } else { REST },
        }
    }
    REST
}
