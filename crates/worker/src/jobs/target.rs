//! Which cluster a message names, and what its failures mean to the task.

use crate::job::{Arguments, Failure, JobContext, Outcome};

/// Header with which a fan-out names the cluster of each message.
const HEADER: &str = "umbel_cluster";

/// The cluster that the header names, else the one of the keyword argument.
///
/// A header that contradicts the argument is refused: one of the two was not written by who thinks so.
pub(super) fn cluster(ctx: &JobContext, argument: Option<String>) -> Result<Option<String>, Failure> {
    match (ctx.header::<String>(HEADER), argument) {
        (Some(header), Some(argument)) if header != argument => Err(Failure::permanent(
            "ValueError",
            format!("the message is for cluster `{header}`, its argument says `{argument}`"),
        )),
        (Some(name), _) | (None, Some(name)) => Ok(Some(name)),
        (None, None) => Ok(None),
    }
}

/// Keyword arguments as one type; positional ones are refused, because adding a parameter would change their meaning.
pub(super) fn keywords<T: serde::de::DeserializeOwned>(task: &str, arguments: &Arguments) -> Result<T, Failure> {
    if arguments.args.elements().is_some_and(|elements| !elements.is_empty()) {
        return Err(Failure::type_error(format!("{task} takes keyword arguments only")));
    }
    arguments.keywords()
}

/// The Python exception that says what kind of failure it was.
pub(super) fn failure(err: &umbel_clusters::Error) -> Failure {
    use umbel_clusters::Error;
    let exc_type = match err {
        Error::Gone { .. } => "LookupError",
        Error::UnknownCluster { .. }
        | Error::RefusedKubeconfig { .. }
        | Error::ReadSecret { .. }
        | Error::Impersonation { .. }
        | Error::Identity { .. } => "PermissionError",
        Error::Silent { .. } => "TimeoutError",
        Error::CircuitOpen { .. } | Error::Busy { .. } | Error::Throttled { .. } | Error::Unreachable { .. } => {
            "ConnectionError"
        }
        Error::Answer { .. } => match err.code() {
            Some(401 | 403) => "PermissionError",
            Some(_) | None => "RuntimeError",
        },
    };
    Failure {
        is_retryable: !err.is_permanent(),
        ..Failure::permanent(exc_type, err.to_string())
    }
}

/// A task whose only target nobody calls for now waits in its queue, and that is no attempt; `None` for any other failure.
pub(super) fn parked(err: &umbel_clusters::Error) -> Option<Outcome> {
    let waits = err.is_busy() || matches!(err, umbel_clusters::Error::CircuitOpen { .. });
    let after = err.retry_after().filter(|_| waits)?;
    Some(Outcome::Parked {
        after,
        why: failure(err),
    })
}
