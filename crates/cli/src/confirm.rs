//! What cannot be undone is asked for, and what takes long can be interrupted between two steps.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use crate::{output, usage};

/// The exit code of what was interrupted, as shells have it.
pub(crate) const INTERRUPTED: u8 = 130;

/// May it be done? Asks, unless told not to; where nobody can be asked, the call is wrong.
pub(crate) fn is_confirmed(is_yes: bool, question: &str) -> anyhow::Result<bool> {
    if is_yes {
        return Ok(true);
    }
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return usage(format!("{question} Nobody can be asked here: say --yes"));
    }
    let mut err = std::io::stderr();
    write!(err, "{} [y/N] ", output::plain(question))
        .and_then(|()| err.flush())
        .context("ask")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("read the answer")?;
    let is_good = matches!(answer.trim().to_lowercase().as_str(), "y" | "yes");
    if !is_good {
        output::say("nothing was done");
    }
    Ok(is_good)
}

/// Ctrl-C or SIGTERM: the step that is under way ends, the next one does not begin.
#[derive(Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on.
    pub(crate) fn listen() -> anyhow::Result<Interrupt> {
        use tokio::signal::unix::{SignalKind, signal};
        let interrupt = Interrupt(Arc::new(AtomicBool::new(false)));
        let asked = interrupt.clone();
        let mut int = signal(SignalKind::interrupt()).context("listen for signals")?;
        let mut term = signal(SignalKind::terminate()).context("listen for signals")?;
        tokio::spawn(async move {
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
            }
            asked.0.store(true, Ordering::Relaxed);
        });
        Ok(interrupt)
    }

    /// Of what may end in the middle: signals do what they always do.
    pub(crate) fn never() -> Interrupt {
        Interrupt(Arc::default())
    }

    /// Was it asked to end?
    pub(crate) fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Waits, no longer than until it is asked to end.
    pub(crate) async fn pause(&self, wait: Duration) {
        let end = tokio::time::Instant::now() + wait;
        while !self.is_asked() && tokio::time::Instant::now() < end {
            tokio::time::sleep_until(end.min(tokio::time::Instant::now() + Duration::from_millis(50))).await;
        }
    }
}

/// A bar on a terminal, nothing elsewhere.
pub(crate) fn progress(count: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(count);
    let style = ProgressStyle::with_template(&format!("{{bar:40}} {{pos}}/{{len}} {what}, {{per_sec}}, {{eta}} left"));
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}
