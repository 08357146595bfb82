//! How a process learns that it shall stop: first quietly, then at once.
//!
//! The first SIGTERM or SIGINT asks for quiet: take nothing new, finish what
//! runs. The second one says that waiting is over: hand back and exit. Any
//! further signal changes nothing.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The two words of a shutdown.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// Cancelled by the first signal: take nothing new, finish what runs.
    pub quiet: CancellationToken,
    /// Cancelled by the second signal: stop waiting.
    pub now: CancellationToken,
}

/// Listens for signals from here on and answers the tokens that they cancel.
///
/// Must be called inside a tokio runtime.
pub fn signals() -> io::Result<Shutdown> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let tokens = Shutdown {
        quiet: CancellationToken::new(),
        now: CancellationToken::new(),
    };
    let cancelled = tokens.clone();
    tokio::spawn(async move {
        for (token, phase) in [(&cancelled.quiet, "quiet"), (&cancelled.now, "now")] {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            tracing::info!(signal = name, phase, "asked to stop");
            token.cancel();
        }
    });
    Ok(tokens)
}

/// The token that the first SIGTERM or SIGINT cancels, where the second word does not matter.
pub fn token() -> io::Result<CancellationToken> {
    Ok(signals()?.quiet)
}
