//! Real parts for tests, each private to the test that starts it and gone when it ends.
//!
//! * [`Redis`]: a server, Redis or Valkey, on a free port; [`Relay`]: a wire in front of it that can be cut at an exact reply;
//!   [`Pipe`]: one that knows nothing of what passes; [`Sentinels`], [`Authority`]: what a server can have around it.
//! * [`Process`]: a program of ours under a leash; [`Celery`], [`CeleryWorker`]: real Celery of three versions;
//!   [`CeleryNode`]: Celery for Node.
//! * [`History`]: what processes say they did, merged, with a verdict: lost, run again, stale.
//! * [`ControlPlane`]: a real Kubernetes API server with its controllers.
//! * [`canaries`]: kubeconfigs that hold what must show nowhere else.
//! * [`Chance`]: random numbers by a seed, for campaigns.
//! * [`eventually`]: waiting for a condition, never for time to pass.
//!
//! Nothing here imitates a part; what is missing on the machine is an error that says how to get it.

#![allow(clippy::panic, reason = "a failure here is the failure of the test that uses it")]

mod authority;
mod canaries;
mod celery;
mod celery_worker;
mod certificate;
mod chance;
mod cluster;
mod dir;
mod history;
mod leash;
mod node;
mod peer;
mod pipe;
mod port;
mod process;
mod relay;
mod resp;
mod sentinel;
mod server;
mod setup;
mod wait;

/// The client by which tests look into a server.
pub use ::redis;
pub use authority::{Authority, Issued};
pub use canaries::canaries;
pub use celery::{App, Celery, Raised, Sent, celery_command, celery_process};
pub use celery_worker::{CeleryWorker, Options as CeleryOptions};
pub use certificate::Signer;
pub use chance::Chance;
pub use cluster::{ControlPlane, Target};
pub use dir::TempDir;
pub use history::{Event, History, Log, Verdict};
pub use node::{CeleryNode, celery_node_worker};
pub use pipe::{Flow, Pipe};
pub use port::free_port;
pub use process::{Process, Signal, kill_child, send_signal};
pub use relay::{Command, Cut, Direction, Held, Late, Relay, script};
pub use sentinel::Sentinels;
pub use server::{Redis, ServerKind};
pub use setup::CeleryVersion;
pub use wait::{eventually, eventually_some, within};

/// The root of the checkout: of the tests that run, and else the one that this crate was built from. These differ where
/// several share a target folder.
///
/// # Panics
/// When it is gone.
pub fn repository() -> std::path::PathBuf {
    let built = || env!("CARGO_MANIFEST_DIR").into();
    let own = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(built);
    std::path::Path::new(&own)
        .join("../..")
        .canonicalize()
        .expect("the checkout still exists")
}
