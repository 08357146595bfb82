//! `umbel pool`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::duration;

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// List pools: sizes, what their workers do, what there is to do, and what holds them
    #[command(after_help = "Example:\n  umbel pool ls -o wide")]
    Ls(PoolLs),
    /// Say how large a pool is, how large it wants to be, why, what holds it back, and what happens next
    Explain {
        /// Name of the WorkerPool
        name: String,
    },
    /// Empty a pool: its workers take no more, and go when their tasks have ended; exit code 1 if not in time
    #[command(
        after_help = "It sets spec.suspend. What waits in the queues stays there. `umbel pool resume` takes it back.\n\n\
                      Example:\n  umbel pool drain mail --timeout 30m"
    )]
    Drain(PoolDrain),
    /// Start a pool again that was drained
    Resume {
        /// Name of the WorkerPool
        name: String,
    },
}

/// Pools to list.
#[derive(Debug, Args)]
pub(crate) struct PoolLs {
    /// Names of WorkerPools; all if absent
    pub(crate) names: Vec<String>,
    /// In all namespaces
    #[arg(short = 'A', long, conflicts_with = "names")]
    pub(crate) all_namespaces: bool,
}

/// A pool to empty.
#[derive(Debug, Args)]
pub(crate) struct PoolDrain {
    /// Name of the WorkerPool
    pub(crate) name: String,
    /// Longest time to wait until its last worker is gone; 0s waits for nothing
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10m")]
    pub(crate) timeout: Duration,
}
