//! Points at which a test stops or kills the operator. Absent from release builds.
//!
//! `UMBEL_FAILPOINT=NAME:stop` stops the process (SIGSTOP) the first time it
//! comes to the point NAME; `NAME:abort` ends it there.

/// Comes to the point `name`.
#[cfg(debug_assertions)]
pub(crate) fn reach(name: &str) {
    use std::sync::atomic::{AtomicBool, Ordering};
    static DONE: AtomicBool = AtomicBool::new(false);
    let Ok(wanted) = std::env::var("UMBEL_FAILPOINT") else {
        return;
    };
    let Some((point, deed)) = wanted.split_once(':') else {
        return;
    };
    if point != name || DONE.swap(true, Ordering::AcqRel) {
        return;
    }
    tracing::warn!(point, deed, "failpoint");
    match deed {
        "stop" => {
            let id = std::process::id().to_string();
            let kill = std::process::Command::new("kill").args(["-STOP", &id]).spawn();
            // The signal is delivered to one thread first; this one goes on only when it was stopped itself, which it
            // sees from the time that is missing.
            let short = std::time::Duration::from_millis(5);
            for _ in 0..400 {
                let before = std::time::Instant::now();
                std::thread::park_timeout(short);
                if before.elapsed() > short * 20 {
                    break;
                }
            }
            let _ = kill.map(|mut kill| kill.wait());
        }
        _ => std::process::abort(),
    }
}

/// Nothing, in a release build.
#[cfg(not(debug_assertions))]
pub(crate) fn reach(_name: &str) {}
