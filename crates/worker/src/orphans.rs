//! The first process of a container inherits all orphans in it. Nobody else waits for them: without this each stays in
//! the table of processes for ever.

use std::collections::HashSet;
use std::time::Duration;

use rustix::process::{Pid, WaitOptions};

/// Interval of looks. Children of our own are waited for at once when they end, so what has ended and is there at two
/// looks is an orphan.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Waits for orphans, for ever, where this process is the first of its container.
pub(crate) fn attend() {
    if std::process::id() != 1 {
        return;
    }
    let started = std::thread::Builder::new()
        .name("orphans".into())
        .stack_size(128 * 1024)
        .spawn(|| {
            let mut ended = HashSet::new();
            loop {
                std::thread::sleep(LOOK_EVERY);
                let now = zombies();
                for pid in now.intersection(&ended) {
                    let _ = Pid::from_raw(*pid).map(|pid| rustix::process::waitpid(Some(pid), WaitOptions::NOHANG));
                }
                ended = now;
            }
        });
    if let Err(err) = started {
        tracing::warn!(error = %err, "orphans of this container are not waited for");
    }
}

/// Children that have ended and that nobody has waited for.
fn zombies() -> HashSet<i32> {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return HashSet::new();
    };
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| is_ours_and_ended(&stat))
        })
        .collect()
}

/// By a line of `/proc/<pid>/stat`: its state and its parent stand behind the name, which may hold anything.
fn is_ours_and_ended(stat: &str) -> bool {
    let mut fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    fields.next() == Some("Z") && fields.next() == Some("1")
}

#[cfg(test)]
mod tests {
    use super::is_ours_and_ended;

    #[test]
    fn what_has_ended_is_known_by_its_line() {
        assert!(is_ours_and_ended("7 (a) R 1 (b)) Z 1 7 7"));
        assert!(!is_ours_and_ended("7 (sh) S 1 7 7"));
        assert!(!is_ours_and_ended("7 (sh) Z 12 7 7"));
        assert!(!is_ours_and_ended(""));
    }
}
