//! What can go wrong between us and Redis.

use crate::trouble::Trouble;

/// A call to Redis that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not one that Redis clients understand.
    #[error("the redis address is not valid: {reason}")]
    Address {
        /// What is wrong with it; never contains the password.
        reason: String,
    },
    /// A setting that no broker can have.
    #[error("{name}: {reason}")]
    Setting {
        /// Which.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection, or the server refused us.
    #[error("connect to redis at {server}")]
    Connect {
        /// Host, port and database; never the password.
        server: String,
        /// Why.
        #[source]
        source: redis::RedisError,
    },
    /// A script or command failed or its reply did not arrive.
    #[error("redis call {call}")]
    Call {
        /// Script or command.
        call: &'static str,
        /// Why.
        #[source]
        source: redis::RedisError,
    },
    /// The reply is not of the shape the call returns.
    #[error("redis call {call} answered {what}")]
    Reply {
        /// Script or command.
        call: &'static str,
        /// What came instead.
        what: String,
    },
    /// A newer leader has announced a higher term; nothing was written.
    #[error("a leader of term {stored} is in charge")]
    Stale {
        /// The term stored on the broker.
        stored: u64,
    },
    /// A queue is bound by a pattern that cannot be used.
    #[error("the pattern that binds queue {queue}: {reason}")]
    Pattern {
        /// The queue.
        queue: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The server has it, but too few replicas do: it could be lost in a failover.
    #[error("{have} of {wanted} replicas have it")]
    Replicas {
        /// How many should.
        wanted: u32,
        /// How many do.
        have: u32,
    },
    /// The server has it, but not on its disk yet.
    #[error("it is not on the server's disk yet")]
    NotOnDisk,
    /// The queue takes no more: so many may wait there at most. Nothing was written.
    #[error("the queue {queue} is full: {most} messages may wait there")]
    QueueFull {
        /// The queue.
        queue: String,
        /// The most that may wait.
        most: u64,
    },
    /// A server that we cannot work with.
    #[error("the server at {server} cannot be used: {reason}")]
    Unsupported {
        /// Host, port and database; never the password.
        server: String,
        /// Why not.
        reason: String,
    },
    /// A key that we need holds another type than ours.
    #[error("key {key} has another type: {reason}")]
    WrongType {
        /// The key.
        key: String,
        /// The server's words.
        reason: String,
    },
}

impl Error {
    /// Is a key of another type than the call needs? Calling again does not mend it.
    pub fn is_wrong_type(&self) -> bool {
        match self {
            Error::WrongType { .. } => true,
            Error::Call { source, .. } => source.code() == Some("WRONGTYPE"),
            _ => false,
        }
    }

    /// Did the connection fail, so that the command may or may not have been carried out? Or is it one to a server
    /// that is no primary any more?
    pub fn is_connection(&self) -> bool {
        match self {
            Error::Connect { .. } => true,
            Error::Call { source, .. } => {
                source.is_io_error()
                    || source.is_timeout()
                    || source.is_connection_dropped()
                    || source.is_connection_refusal()
                    || source.is_unrecoverable_error()
                    // Demoted: the primary is elsewhere by now, and only a new connection finds it.
                    || source.code().is_some_and(Trouble::ends_connection)
            }
            Error::Address { .. }
            | Error::Setting { .. }
            | Error::Pattern { .. }
            | Error::QueueFull { .. }
            | Error::NotOnDisk
            | Error::Replicas { .. }
            | Error::Reply { .. }
            | Error::Stale { .. }
            | Error::Unsupported { .. }
            | Error::WrongType { .. } => false,
        }
    }

    /// What kind of trouble this is: for a metric's label, and for how long to leave the server alone.
    pub fn trouble(&self) -> Trouble {
        match self {
            Error::Connect { source, .. } | Error::Call { source, .. } => Trouble::of(source),
            Error::WrongType { .. } => Trouble::WrongType,
            Error::Replicas { .. } | Error::NotOnDisk => Trouble::NoReplicas,
            Error::Address { .. }
            | Error::Setting { .. }
            | Error::Pattern { .. }
            | Error::QueueFull { .. }
            | Error::Reply { .. }
            | Error::Stale { .. }
            | Error::Unsupported { .. } => Trouble::Other,
        }
    }

    /// May the call have been carried out all the same? No after a refusal, by the server or of the connection.
    pub fn may_have_happened(&self) -> bool {
        match self {
            Error::Call { source, .. } => source.code().is_none() && !source.is_connection_refusal(),
            Error::Reply { .. } | Error::Replicas { .. } | Error::NotOnDisk => true,
            Error::Connect { .. }
            | Error::Address { .. }
            | Error::Setting { .. }
            | Error::Pattern { .. }
            | Error::QueueFull { .. }
            | Error::Stale { .. }
            | Error::Unsupported { .. }
            | Error::WrongType { .. } => false,
        }
    }

    /// The server's error code, e.g. `NOPERM`, where it answered with one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Error::Connect { source, .. } | Error::Call { source, .. } => source.code(),
            Error::Address { .. }
            | Error::Setting { .. }
            | Error::Pattern { .. }
            | Error::QueueFull { .. }
            | Error::NotOnDisk
            | Error::Replicas { .. }
            | Error::Reply { .. }
            | Error::Stale { .. }
            | Error::Unsupported { .. }
            | Error::WrongType { .. } => None,
        }
    }
}
