//! How a process learns that it shall stop: first quietly, then at once.
//!
//! The first SIGTERM, SIGINT or SIGHUP asks for quiet: take nothing new, finish
//! what runs. The second one says that waiting is over: hand back and exit. Any
//! further signal changes nothing. Under `nohup` a SIGHUP stays ignored.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
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
    let mut hangup = (!ignores_hangup()).then(|| signal(SignalKind::hangup())).transpose()?;
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
                () = next(hangup.as_mut()) => "SIGHUP",
            };
            tracing::info!(signal = name, phase, "asked to stop");
            token.cancel();
        }
    });
    Ok(tokens)
}

/// The next signal of those that are listened for; never one of others.
async fn next(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Was this process started to outlive its terminal? To listen for the signal would end that.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 == 1)
}

/// The token that the first SIGTERM, SIGINT or SIGHUP cancels, where the second word does not matter.
pub fn token() -> io::Result<CancellationToken> {
    Ok(signals()?.quiet)
}
