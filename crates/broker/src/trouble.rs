//! What kind of trouble a failed call is, and how long to leave the server alone after it.

use std::time::Duration;

use redis::{ErrorKind, RedisError};

/// Kinds of trouble between us and a server. None of them is a task's failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Trouble {
    /// No connection, or it ended.
    Connection,
    /// No reply in time.
    Timeout,
    /// The server's certificate, or ours, is refused.
    Tls,
    /// User or password are wrong, or missing.
    Credentials,
    /// The user may not use this command or this key.
    NoPermission,
    /// It reads its data from disk.
    Loading,
    /// A replica whose primary is away.
    MasterDown,
    /// A replica: the primary is elsewhere.
    ReadOnly,
    /// Too few replicas follow, so it takes no writes.
    NoReplicas,
    /// It asks to be asked again.
    TryAgain,
    /// Somebody's script keeps it busy.
    Busy,
    /// It cannot write to its disk.
    Misconfigured,
    /// Its memory is full.
    OutOfMemory,
    /// A key of ours has another type.
    WrongType,
    /// It has as many clients as it may have.
    MaxClients,
    /// Anything else.
    Other,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Trouble; 16] = [
        Trouble::Connection,
        Trouble::Timeout,
        Trouble::Tls,
        Trouble::Credentials,
        Trouble::NoPermission,
        Trouble::Loading,
        Trouble::MasterDown,
        Trouble::ReadOnly,
        Trouble::NoReplicas,
        Trouble::TryAgain,
        Trouble::Busy,
        Trouble::Misconfigured,
        Trouble::OutOfMemory,
        Trouble::WrongType,
        Trouble::MaxClients,
        Trouble::Other,
    ];

    /// Its name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Trouble::Connection => "connection",
            Trouble::Timeout => "timeout",
            Trouble::Tls => "tls",
            Trouble::Credentials => "credentials",
            Trouble::NoPermission => "no_permission",
            Trouble::Loading => "loading",
            Trouble::MasterDown => "master_down",
            Trouble::ReadOnly => "read_only",
            Trouble::NoReplicas => "no_replicas",
            Trouble::TryAgain => "try_again",
            Trouble::Busy => "busy",
            Trouble::Misconfigured => "misconfigured",
            Trouble::OutOfMemory => "out_of_memory",
            Trouble::WrongType => "wrong_type",
            Trouble::MaxClients => "max_clients",
            Trouble::Other => "other",
        }
    }

    /// The server answers, and takes no writes: no later answer is to be expected until somebody has acted.
    pub fn is_refusal(self) -> bool {
        matches!(
            self,
            Trouble::OutOfMemory | Trouble::Misconfigured | Trouble::NoReplicas | Trouble::NoPermission
        )
    }

    /// First and longest pause before the next try.
    fn pauses(self) -> (Duration, Duration) {
        let (first, longest) = match self {
            // Over in a moment, or another server is to be found.
            Trouble::TryAgain => (20, 250),
            Trouble::ReadOnly => (50, 500),
            Trouble::Loading | Trouble::MasterDown => (100, 1_000),
            // The server works at what ails it; asking adds to it.
            Trouble::Busy | Trouble::NoReplicas => (200, 1_000),
            Trouble::OutOfMemory => (200, 2_000),
            Trouble::Connection | Trouble::Timeout | Trouble::Other => (50, 5_000),
            // Somebody must act. Many who wait for that must not use up the server's connections.
            Trouble::Tls
            | Trouble::Credentials
            | Trouble::NoPermission
            | Trouble::Misconfigured
            | Trouble::WrongType
            | Trouble::MaxClients => (500, 5_000),
        };
        (Duration::from_millis(first), Duration::from_millis(longest))
    }

    /// The pause after so many failures in a row (1, 2, …), doubled each time; `luck` in 0..1 spreads those who failed
    /// at one moment over its second half.
    pub fn pause(self, failures: u32, luck: f64) -> Duration {
        let (first, longest) = self.pauses();
        let pause = first.saturating_mul(2_u32.saturating_pow(failures.clamp(1, 16) - 1));
        pause.min(longest).mul_f64(0.5 + 0.5 * luck.clamp(0.0, 1.0))
    }

    /// The kind of an error of the client library.
    pub(crate) fn of(err: &RedisError) -> Trouble {
        if let Some(refusal) = refusal(err) {
            return refusal.trouble;
        }
        match err.code() {
            Some("LOADING") => return Trouble::Loading,
            Some("MASTERDOWN") => return Trouble::MasterDown,
            Some("READONLY") => return Trouble::ReadOnly,
            Some("NOREPLICAS") => return Trouble::NoReplicas,
            Some("TRYAGAIN") => return Trouble::TryAgain,
            Some("BUSY" | "UNKILLABLE") => return Trouble::Busy,
            Some("MISCONF") => return Trouble::Misconfigured,
            Some("OOM") => return Trouble::OutOfMemory,
            Some("WRONGTYPE") => return Trouble::WrongType,
            Some("NOPERM") => return Trouble::NoPermission,
            Some("NOAUTH" | "WRONGPASS") => return Trouble::Credentials,
            Some("ERR") if err.detail().is_some_and(|text| text.contains("max number of clients")) => {
                return Trouble::MaxClients;
            }
            // What a script may not do is told in words, with another code in each version.
            _ if err
                .detail()
                .is_some_and(|text| SCRIPT_REFUSED.iter().any(|words| text.contains(words))) =>
            {
                return Trouble::NoPermission;
            }
            _ => {}
        }
        match err.kind() {
            ErrorKind::AuthenticationFailed => Trouble::Credentials,
            _ if err.is_timeout() => Trouble::Timeout,
            _ if err.is_io_error() || err.is_connection_dropped() || err.is_connection_refusal() => Trouble::Connection,
            _ => Trouble::Other,
        }
    }

    /// Is a connection that answered this of no use any more? Another one may lead elsewhere, or say another password.
    pub(crate) fn ends_connection(code: &str) -> bool {
        matches!(code, "READONLY" | "MASTERDOWN" | "NOAUTH")
    }
}

/// How servers say that a script of a user went beyond the user's rights.
const SCRIPT_REFUSED: [&str; 2] = ["user executing the script can't", "ACL failure in script"];

/// A connection that we gave up ourselves, with the reason in words.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct Refusal {
    pub(crate) trouble: Trouble,
    pub(crate) reason: String,
}

impl Refusal {
    /// As the client library's error; it counts as a connection's.
    pub(crate) fn error(trouble: Trouble, reason: impl Into<String>) -> RedisError {
        std::io::Error::other(Refusal {
            trouble,
            reason: reason.into(),
        })
        .into()
    }
}

/// The refusal of ours inside an error.
fn refusal(err: &RedisError) -> Option<&Refusal> {
    io_error(err)?.get_ref()?.downcast_ref::<Refusal>()
}

/// The operating system's error, or what was put into one, inside an error.
pub(crate) fn io_error(err: &RedisError) -> Option<&std::io::Error> {
    let mut source = std::error::Error::source(err);
    while let Some(err) = source {
        // The client library keeps it behind an Arc, which is an error of its own.
        if let Some(err) = err.downcast_ref::<std::io::Error>() {
            return Some(err);
        }
        if let Some(err) = err.downcast_ref::<std::sync::Arc<dyn std::error::Error + Send + Sync>>() {
            return (**err).downcast_ref::<std::io::Error>();
        }
        source = err.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_ours_is_found_again() {
        let err = Refusal::error(Trouble::Tls, "expired");
        assert_eq!(Trouble::of(&err), Trouble::Tls);
        assert!(err.is_io_error());
        assert_eq!(err.to_string(), "expired");
    }

    #[test]
    fn pauses_grow_to_their_bound_and_keep_within_the_promise_to_consume_again() {
        for trouble in Trouble::ALL {
            let (first, longest) = trouble.pauses();
            assert_eq!(trouble.pause(1, 1.0), first, "{trouble:?}");
            assert_eq!(trouble.pause(99, 1.0), longest, "{trouble:?}");
            assert_eq!(trouble.pause(99, 0.0), longest / 2, "{trouble:?}");
            assert!(longest <= Duration::from_secs(5), "{trouble:?}");
        }
    }

    #[test]
    fn names_are_each_ones_own() {
        let mut labels: Vec<_> = Trouble::ALL.iter().map(|trouble| trouble.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Trouble::ALL.len());
    }
}
