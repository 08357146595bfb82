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
fn reach(name: std::fmt::Arguments<'_>) {
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
        tracing::info!(point = %name, "failpoint");
        return;
    }
    let which = words.next().and_then(|number| number.parse().ok()).unwrap_or(1);
    if point != name.to_string() || TIMES.fetch_add(1, Ordering::AcqRel) + 1 != which {
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
fn reach(_: std::fmt::Arguments<'_>) {}

/// Does a write between its points `before-NAME` and `after-NAME`.
pub(crate) async fn around<T>(name: &str, write: impl Future<Output = T>) -> T {
    reach(format_args!("before-{name}"));
    let done = write.await;
    reach(format_args!("after-{name}"));
    done
}

/// The same for objects of this kind, or in this way.
pub(crate) async fn around_of<T>(name: &str, kind: &str, write: impl Future<Output = T>) -> T {
    around(&format!("{name}.{kind}"), write).await
}
