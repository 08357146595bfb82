//! Standard error that never holds anybody up: what nobody reads, or the disk has no room for, is dropped and counted.
//!
//! # Guarantees
//! Lines are whole and in order. A line is dropped when its reader has not kept up for [`PATIENCE`]; a log is worth no
//! more, and whoever writes may be the thread that renews leases. What was dropped is told as soon as lines pass again.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a line waits for its reader, in milliseconds. Once a line was dropped the next ones wait no more, until one
/// passes: otherwise each would hold up its writer anew.
const PATIENCE: u32 = 20;
/// A pipe that can be written to at all takes so much at once.
const CHUNK: usize = 4096;

static DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);
static STATE: Mutex<State> = Mutex::new(State {
    untold: 0,
    is_broken_off: false,
});

struct State {
    /// Lines dropped since the last one that passed.
    untold: u64,
    /// The last line broke off in its middle.
    is_broken_off: bool,
}

/// Lines that were dropped since the start of the process.
pub fn dropped() -> Counter {
    DROPPED.clone()
}

/// A writer of one line.
#[derive(Debug, Default)]
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        state.line(io::stderr().as_fd(), line);
        Ok(line.len()) // Whoever logs has nothing to do about it.
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl State {
    fn line(&mut self, out: BorrowedFd<'_>, line: &[u8]) {
        let patience = if self.untold > 0 { 0 } else { PATIENCE };
        let mut note = Vec::new();
        if self.is_broken_off {
            note.push(b'\n');
        }
        if self.untold > 0 {
            note.extend(
                format!(
                    "{{\"level\":\"WARN\",\"message\":\"log lines dropped\",\"lines\":{}}}\n",
                    self.untold
                )
                .bytes(),
            );
        }
        let mut rest = note.as_slice();
        if send(out, &mut rest, patience) {
            (self.untold, self.is_broken_off) = (0, false);
            rest = line;
            if send(out, &mut rest, patience) {
                return;
            }
            self.is_broken_off = rest.len() < line.len();
        } else {
            self.is_broken_off |= rest.len() < note.len();
        }
        self.untold += 1;
        DROPPED.inc();
    }
}

/// Writes as long as that does not wait for more than `patience` milliseconds in all; true if nothing is left.
fn send(out: BorrowedFd<'_>, rest: &mut &[u8], patience: u32) -> bool {
    let began = Instant::now();
    while !rest.is_empty() {
        let spent = u32::try_from(began.elapsed().as_millis()).unwrap_or(u32::MAX);
        let left = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(patience.saturating_sub(spent)) * 1_000_000,
        };
        let mut files = [PollFd::new(&out, PollFlags::OUT)];
        let is_ready = matches!(poll(&mut files, Some(&left)), Ok(1..));
        if !is_ready || !files[0].revents().contains(PollFlags::OUT) {
            return false; // Full, or nobody is there to read.
        }
        let chunk = &rest[..rest.len().min(CHUNK)];
        match rustix::io::write(out, chunk) {
            Ok(0) => return false,
            Ok(written) => *rest = &rest[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false, // No room on the disk, or whatever it is: logs are not worth more.
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_full_pipe_drops_lines_and_tells_how_many() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let mut state = State {
            untold: 0,
            is_broken_off: false,
        };
        let line = [[b'x'; 999].as_slice(), b"\n"].concat();
        let began = Instant::now();
        let before = dropped().get();
        for _ in 0..1000 {
            state.line(writer.as_fd(), &line);
        }
        assert!(began.elapsed().as_secs() < 5, "nobody is held up");
        let lost = state.untold;
        assert!(lost > 900, "a pipe holds 64 KiB: {lost}");
        assert!(dropped().get() - before >= lost);
        let mut read = vec![0; 1 << 20];
        let mut got = reader.read(&mut read).expect("read");
        state.line(writer.as_fd(), b"again\n");
        got += reader.read(&mut read[got..]).expect("read");
        let text = String::from_utf8_lossy(&read[..got]).into_owned();
        assert!(
            text.contains(&format!("\"lines\":{lost}")) && text.ends_with("again\n"),
            "{}",
            &text[text.len() - 200..]
        );
        assert_eq!(state.untold, 0);
        let whole = text.lines().filter(|line| line.len() == 999).count();
        assert_eq!(whole as u64 + lost, 1000, "each line is whole or counted");
    }

    #[test]
    fn without_room_on_the_disk_lines_are_dropped() {
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .expect("a full disk");
        let mut state = State {
            untold: 0,
            is_broken_off: false,
        };
        state.line(full.as_fd(), b"line\n");
        assert_eq!(state.untold, 1);
    }
}
