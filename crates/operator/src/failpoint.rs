//! Points at which a test stops or kills the operator. Absent from release builds.
//!
//! `UMBEL_FAILPOINT=NAME:stop` stops the process (SIGSTOP) the first time it
//! comes to the point NAME; `NAME:abort` ends it there; `NAME:abort:3` does so
//! the third time. `*:note` only logs each point that it comes to.
//!
//! Every write has a point `before-…` and a point `after-…`; that of a status is
//! `before-status.KIND`.

/// Comes to the point `name`.
#[cfg(debug_assertions)]
pub(crate) fn reach(name: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static TIMES: AtomicU32 = AtomicU32::new(0);
    let Ok(wanted) = std::env::var("UMBEL_FAILPOINT") else {
        return;
    };
    let mut words = wanted.split(':');
    let (Some(point), Some(deed)) = (words.next(), words.next()) else {
        return;
    };
    if deed == "note" {
        tracing::info!(point = name, "failpoint");
        return;
    }
    let which = words.next().and_then(|number| number.parse().ok()).unwrap_or(1);
    if point != name || TIMES.fetch_add(1, Ordering::AcqRel) + 1 != which {
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

/// Comes to the point `name` of objects of this kind.
#[cfg(debug_assertions)]
pub(crate) fn reach_of(name: &str, kind: &str) {
    reach(&format!("{name}.{kind}"));
}

/// Nothing, in a release build.
#[cfg(not(debug_assertions))]
pub(crate) fn reach(_name: &str) {}

/// Nothing, in a release build.
#[cfg(not(debug_assertions))]
pub(crate) fn reach_of(_name: &str, _kind: &str) {}
