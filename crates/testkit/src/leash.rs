//! Children that cannot outlive the test, even when the test is killed.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A watcher that waits for the end of its input, which comes when this process ends however it ends, and then kills
/// the child and removes its folder.
#[derive(Debug)]
pub(crate) struct Leash {
    watcher: Child,
}

const WATCH: &str = r#"read -r _ ; kill -KILL "$1" 2>/dev/null; [ -z "$2" ] || rm -rf "$2""#;

impl Leash {
    pub(crate) fn on(pid: u32, folder: Option<&Path>) -> Leash {
        let watcher = Command::new("/bin/sh")
            .args(["-c", WATCH, "leash", &pid.to_string()])
            .arg(folder.unwrap_or(Path::new("")))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0) // Ctrl-C at a terminal must not reach it before its work.
            .spawn()
            .expect("a shell can be started");
        Leash { watcher }
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        let _ = self.watcher.kill();
        let _ = self.watcher.wait();
    }
}
