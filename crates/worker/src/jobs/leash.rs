//! The process between a worker and a program that it runs: it ends when its worker does, and takes the program and all
//! of the program's descendants along.
//!
//! The worker starts its own binary once more, with [`ARGUMENT`] and one end of a socket pair as standard input. Over
//! the socket go, worker to leash: a length and a [`Request`], then [`TERM`] for each SIGTERM and [`ALIVE`] all the time;
//! leash to worker: lines of [`Word`]. The end of the stream means: kill. The kernel sends it however the worker ends, so
//! nothing outlives it. Silence means the same: see [`super::pulse`].
//!
//! # Guarantees
//! * The program has a process group of its own; so has the leash, which therefore survives what is sent to the group.
//! * Descendants that leave the group are found all the same: orphans become children of the leash.
//! * The last line is sent, and the leash ends, when no descendant is left; none becomes a zombie.

use std::io::{self, BufReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions};
use serde::{Deserialize, Serialize};

/// The first argument of a leash.
pub(super) const ARGUMENT: &str = "umbel-exec-leash";
/// Ask the program to end.
pub(super) const TERM: u8 = b't';
/// Nothing is asked; the worker is not frozen.
pub(super) const ALIVE: u8 = b'.';
/// A message has at most 32 MiB; more than that is not from a worker of ours.
const MAX_REQUEST: u64 = 64 << 20;
/// Descendants that SIGKILL does not end for so long are in the kernel's hands.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// What to run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) path: String,
    pub(super) args: Vec<String>,
    /// Text for its standard input.
    pub(super) input: String,
    /// Milliseconds without a word from the worker, after which it is taken for frozen.
    pub(super) silence: u64,
}

/// What a leash says of its program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Word {
    /// It runs, as the leader of this process group.
    Runs(i32),
    /// It could not be started: the system's error code, and what that means.
    Unstarted(i32, String),
    /// It has exited with this code.
    Exited(i32),
    /// This signal has ended it.
    Killed(i32),
    /// It was killed because the worker was silent for too long.
    Abandoned,
}

/// Does nothing in a worker; in a leash it never returns.
pub(crate) fn attend() {
    if std::env::args_os().nth(1).is_none_or(|argument| argument != ARGUMENT) {
        return;
    }
    let code = match hold() {
        Ok(()) => 0,
        Err(_) => 1, // Of the connection to the worker: there is nobody to tell.
    };
    #[allow(clippy::disallowed_methods, reason = "a leash is no worker: it holds no messages")]
    std::process::exit(code)
}

/// Writes a request, as [`hold`] reads it.
pub(super) fn framed(request: &Request) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(request)?;
    let mut frame = (body.len() as u64).to_be_bytes().to_vec();
    frame.extend(body);
    Ok(frame)
}

fn read_request(mut from: impl io::Read) -> io::Result<Request> {
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    let length = u64::from_be_bytes(length);
    if length > MAX_REQUEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = Vec::new();
    from.take(length).read_to_end(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

fn say(to: &mut UnixStream, word: &Word) -> io::Result<()> {
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// Reads the next word; `None` at the end.
pub(super) fn word(line: &str) -> Option<Word> {
    serde_json::from_str(line).ok()
}

fn hold() -> io::Result<()> {
    let mut worker = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut orders = BufReader::new(worker.try_clone()?);
    let Request {
        path,
        args,
        input,
        silence,
    } = read_request(&mut orders)?;
    worker.set_read_timeout(Some(Duration::from_millis(silence.max(1))))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let started = Command::new(path)
        .args(args)
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(err) => {
            return say(
                &mut worker,
                &Word::Unstarted(err.raw_os_error().unwrap_or(0), err.to_string()),
            );
        }
    };
    let program = Arc::new(Program::of(&child)?);
    let told = say(&mut worker, &Word::Runs(program.pid.as_raw_nonzero().get()));
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read it all has its reasons.
        std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    }
    let ordered = Arc::clone(&program);
    std::thread::spawn(move || ordered.obey(orders));
    let status = program.wait(&mut child)?;
    end_descendants();
    told?;
    let word = match (status.code(), status.signal()) {
        _ if program.is_abandoned.load(Ordering::Relaxed) => Word::Abandoned,
        (Some(code), _) => Word::Exited(code),
        (None, signal) => Word::Killed(signal.unwrap_or(0)),
    };
    say(&mut worker, &word)
}

/// The program, of which signals may be sent until it is reaped.
struct Program {
    pid: Pid,
    is_reaped: Mutex<bool>,
    is_abandoned: AtomicBool,
}

impl Program {
    fn of(child: &Child) -> io::Result<Program> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(Program {
            pid: pid.ok_or(io::ErrorKind::InvalidData)?,
            is_reaped: Mutex::new(false),
            is_abandoned: AtomicBool::new(false),
        })
    }

    /// Passes on what the worker asks for, and kills when it has no more to say.
    fn obey(&self, mut orders: impl io::BufRead) {
        loop {
            let used = match orders.fill_buf() {
                Ok([]) => break,
                Ok(bytes) => {
                    if bytes.contains(&TERM) {
                        self.send(Signal::TERM);
                    }
                    bytes.len()
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => 0,
                Err(err) => {
                    let is_silent = matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                    self.is_abandoned.store(is_silent, Ordering::Relaxed);
                    break;
                }
            };
            orders.consume(used);
        }
        self.send(Signal::KILL);
    }

    /// To the whole group, and to the program itself if it has left that.
    fn send(&self, signal: Signal) {
        let is_reaped = self.is_reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_reaped {
            let _ = rustix::process::kill_process_group(self.pid, signal);
            if rustix::process::getpgid(Some(self.pid)).is_ok_and(|group| group != self.pid) {
                let _ = rustix::process::kill_process(self.pid, signal);
            }
        }
    }

    /// Waits for its end and kills what is left of its group, before the number can be another's.
    fn wait(&self, child: &mut Child) -> io::Result<ExitStatus> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(err) = rustix::process::waitid(WaitId::Pid(self.pid), options) {
            if err != rustix::io::Errno::INTR {
                return Err(err.into());
            }
        }
        let mut is_reaped = self.is_reaped.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
        *is_reaped = true;
        child.wait()
    }
}

/// Kills and reaps whatever is left; what a dead one leaves comes to us and is next.
fn end_descendants() {
    let began = Instant::now();
    while began.elapsed() < LAST_WAIT {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            Ok(None) => {
                for orphan in children() {
                    let _ = rustix::process::kill_process(orphan, Signal::KILL);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(_) => return, // No children.
        }
    }
}

/// Our children, as /proc has them.
fn children() -> Vec<Pid> {
    let me = rustix::process::getpid();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    pids.filter(|pid| parent(*pid) == Some(me)).collect()
}

fn parent(pid: Pid) -> Option<Pid> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?; // The name may hold anything.
    Pid::from_raw(after_name.split_whitespace().nth(1)?.parse().ok()?)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let request = Request {
            path: "/bin/x".into(),
            args: vec!["-a b".into()],
            input: "{\"args\": [NaN]}".into(),
            silence: 7,
        };
        let frame = framed(&request).unwrap();
        let read = read_request(frame.as_slice()).unwrap();
        assert_eq!(
            (read.path, read.args, read.input),
            (request.path, request.args, request.input)
        );
        assert!(read_request(&frame[..9]).is_err(), "cut short");
        assert!(read_request(u64::MAX.to_be_bytes().as_slice()).is_err(), "not from us");
    }

    #[test]
    fn the_parent_of_a_process_is_found() {
        assert_eq!(parent(rustix::process::getpid()), rustix::process::getppid());
    }
}
