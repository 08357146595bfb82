//! What can go wrong between a cluster's name and an answer of its API server.

use std::time::Duration;

use crate::kubeconfig::Refused;
use crate::secret::Fault;

/// One attempt at a target that failed. Messages name the cluster and the Secret, never what is in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pool has no access to a cluster of this name.
    #[error("this pool may not touch a cluster named `{cluster}` (spec.clusterAccess of the pool decides)")]
    UnknownCluster {
        /// The name that was asked for.
        cluster: String,
    },
    /// Its TargetCluster was deleted.
    #[error("target gone: there is no TargetCluster `{cluster}` any more")]
    Gone {
        /// The name that was asked for.
        cluster: String,
    },
    /// The Secret cannot be read.
    #[error("cluster `{cluster}`: Secret `{secret}`: {fault}")]
    ReadSecret {
        /// The cluster.
        cluster: String,
        /// The Secret's name.
        secret: String,
        /// What happened.
        fault: Fault,
    },
    /// The Secret holds a kubeconfig that is not accepted.
    #[error("cluster `{cluster}`: Secret `{secret}`: {why}")]
    RefusedKubeconfig {
        /// The cluster.
        cluster: String,
        /// The Secret's name.
        secret: String,
        /// The refusal.
        why: Refused,
    },
    /// Who the requests are to be made as is no one whom a target's user may be.
    #[error("cluster `{cluster}`: impersonate: {why}")]
    Impersonation {
        /// The cluster.
        cluster: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The target is not the cluster that it was, or nobody can tell.
    #[error("cluster `{cluster}`: {why}")]
    Identity {
        /// The cluster.
        cluster: String,
        /// What is wrong.
        why: Mistaken,
    },
    /// The target did not answer lately and is left alone for a while.
    #[error("cluster `{cluster}` did not answer lately; the next try is due in {} s", wait.as_secs() + 1)]
    CircuitOpen {
        /// The cluster.
        cluster: String,
        /// Until the next try.
        wait: Duration,
    },
    /// As many tasks as allowed are at work on the target.
    #[error("cluster `{cluster}` is busy: {limit} tasks are at work on it (spec.limits.maxConcurrentTasks)")]
    Busy {
        /// The cluster.
        cluster: String,
        /// The limit.
        limit: u32,
    },
    /// The target is asked as often as it may be.
    #[error("cluster `{cluster}` may be asked again in {} s (spec.limits, or its own 429)", wait.as_secs() + 1)]
    Throttled {
        /// The cluster.
        cluster: String,
        /// Until then.
        wait: Duration,
    },
    /// No answer within the time of the request.
    #[error("cluster `{cluster}`: {attempt}: no answer within {} s", limit.as_secs_f32())]
    Silent {
        /// The cluster.
        cluster: String,
        /// What was asked.
        attempt: &'static str,
        /// How long.
        limit: Duration,
    },
    /// No connection, or it broke.
    #[error("cluster `{cluster}`: {attempt}: {}", chain(source))]
    Unreachable {
        /// The cluster.
        cluster: String,
        /// What was asked.
        attempt: &'static str,
        /// Why.
        source: Box<kube::Error>,
    },
    /// The API server answered with an error.
    #[error("cluster `{cluster}`: {attempt}: {}", answer(source))]
    Answer {
        /// The cluster.
        cluster: String,
        /// What was asked.
        attempt: &'static str,
        /// Its answer.
        source: Box<kube::Error>,
    },
}

/// Why a target may not be worked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mistaken {
    /// It is another cluster.
    #[error(
        "it is another cluster than before: its kube-system namespace has the uid {found}, and it was {pinned}; \
         if that is meant, annotate the TargetCluster with umbel.dev/accept-identity: {found}"
    )]
    Changed {
        /// The uid that it had.
        pinned: String,
        /// The uid that it has.
        found: String,
    },
    /// Nobody can tell.
    #[error(
        "nothing is written: it was the cluster with the kube-system uid {pinned}, and that cannot be checked now ({why})"
    )]
    Unverified {
        /// The uid that it had.
        pinned: String,
        /// Why it cannot be read.
        why: String,
    },
}

impl Error {
    /// Is it a matter of turns and rates only? Then the task did not begin in earnest and loses nothing by waiting in its
    /// queue.
    pub fn is_busy(&self) -> bool {
        matches!(self, Error::Busy { .. } | Error::Throttled { .. })
    }

    /// Will the same call fail again until somebody changes an object?
    pub fn is_permanent(&self) -> bool {
        match self {
            Error::UnknownCluster { .. }
            | Error::Gone { .. }
            | Error::RefusedKubeconfig { .. }
            | Error::Impersonation { .. }
            | Error::Identity {
                why: Mistaken::Changed { .. },
                ..
            } => true,
            // The Secret and the right to read it are written by others, often a moment later.
            Error::ReadSecret { .. }
            | Error::Identity {
                why: Mistaken::Unverified { .. },
                ..
            }
            | Error::CircuitOpen { .. }
            | Error::Busy { .. }
            | Error::Throttled { .. }
            | Error::Silent { .. }
            | Error::Unreachable { .. } => false,
            // 401 and 403 mend when a credential or a Role is renewed; 404, 409 and 429 are a matter of time.
            Error::Answer { .. } => matches!(self.code(), Some(400 | 405 | 406 | 413 | 415 | 422)),
        }
    }

    /// When it makes sense to try again, if that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::CircuitOpen { wait, .. } | Error::Throttled { wait, .. } => Some(*wait + Duration::from_secs(1)),
            Error::Busy { .. } => Some(Duration::from_secs(2)),
            Error::Answer { source, .. } => match &**source {
                kube::Error::Api(status) if status.code == 429 => {
                    let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
                    Some(Duration::from_secs(u64::from(seconds.clamp(1, 60))))
                }
                _ => None,
            },
            Error::UnknownCluster { .. }
            | Error::Gone { .. }
            | Error::Impersonation { .. }
            | Error::Identity { .. }
            | Error::ReadSecret { .. }
            | Error::RefusedKubeconfig { .. }
            | Error::Silent { .. }
            | Error::Unreachable { .. } => None,
        }
    }

    /// The same without the target's own words, where these may repeat what was sent: fields and reasons stay.
    #[must_use]
    pub fn without_words(mut self) -> Error {
        if let Error::Answer { source, .. } = &mut self
            && let kube::Error::Api(status) = &mut **source
            && matches!(status.code, 400 | 422 | 500)
        {
            let causes = status.details.iter_mut().flat_map(|details| &mut details.causes);
            let mut fields: Vec<&str> = Vec::new();
            for cause in causes {
                cause.message.clear();
                fields.push(&cause.field);
            }
            let fields = fields.join(", ");
            status.message = format!(
                "refused, reason {:?}, fields [{fields}]; its words may hold values",
                status.reason
            );
        }
        self
    }

    /// The HTTP status of the target's answer, if it answered.
    pub fn code(&self) -> Option<u16> {
        self.status().map(|status| status.code)
    }

    /// The target's answer as it wrote it.
    pub fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Error::Answer { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            _ => None,
        }
    }
}

/// A chain of errors on one line. The client library prints no cause of its own.
pub(crate) fn chain(err: &kube::Error) -> String {
    let mut text = match err {
        kube::Error::Service(_) | kube::Error::HyperError(_) => "not reachable".to_owned(),
        other => other.to_string(),
    };
    let mut source = std::error::Error::source(err);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn answer(err: &kube::Error) -> String {
    match err {
        kube::Error::Api(status) if status.code == 401 => format!(
            "it refuses the credential, which was read from its Secret again: {} (401)",
            status.message
        ),
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => chain(other),
    }
}
