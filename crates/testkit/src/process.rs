//! Programs under test as processes: started with flags, watched, stopped, killed.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::leash::Leash;
use crate::wait::patient;
use crate::{TempDir, eventually, eventually_some};

/// A signal that tests send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// End now, without a word.
    Kill,
    /// End in order.
    Term,
    /// As from a keyboard.
    Int,
    /// Freeze.
    Stop,
    /// Go on.
    Cont,
    /// Crash, with a core file where that is allowed.
    Abort,
}

/// Sends a signal to any process of ours.
///
/// # Panics
/// When there is no such process.
pub fn send_signal(pid: u32, signal: Signal) {
    let name = match signal {
        Signal::Kill => "KILL",
        Signal::Term => "TERM",
        Signal::Int => "INT",
        Signal::Stop => "STOP",
        Signal::Cont => "CONT",
        Signal::Abort => "ABRT",
    };
    let sent = Command::new("/bin/sh")
        .args(["-c", "kill -$0 $1", name, &pid.to_string()])
        .status();
    assert!(
        sent.is_ok_and(|status| status.success()),
        "send SIG{name} to process {pid}"
    );
}

/// Kills a process that this one started, if it is still there: whoever waits for it may have seen its end already.
pub fn kill_child(pid: u32) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name, which may hold anything: the state and the parent.
    let parent = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(1));
    if parent == Some(&*std::process::id().to_string()) {
        let _ = Command::new("/bin/sh")
            .args(["-c", "kill -KILL $0 2>/dev/null", &pid.to_string()])
            .status();
    }
}

/// A running program with its output in a file; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    leash: Option<Leash>,
    log: PathBuf,
    name: String,
    _folder: TempDir,
}

impl Process {
    /// Starts `program`. The environment is inherited, with `env` on top.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start<A, I>(program: &Path, args: I, env: &[(&str, &str)]) -> Process
    where
        A: AsRef<OsStr>,
        I: IntoIterator<Item = A>,
    {
        let folder = TempDir::new("process");
        let log = folder.path().join("log");
        let out = File::create(&log).expect("the log can be made");
        let err = out.try_clone().expect("the log can be shared");
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let child = Command::new(program)
            .args(args)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|err| panic!("start {}: {err}", program.display()));
        let leash = Some(Leash::on(child.id(), None));
        Process {
            child,
            leash,
            log,
            name,
            _folder: folder,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When the process has ended.
    pub fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&mut self) {
        self.leash = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How it ended, if it has.
    pub fn exit(&mut self) -> Option<ExitStatus> {
        let ended = self.child.try_wait().ok().flatten();
        if ended.is_some() {
            self.leash = None; // Its id may be another's from now on.
        }
        ended
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it is still there after `deadline`; the message holds the end of its log.
    pub async fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let (begin, deadline) = (std::time::Instant::now(), patient(deadline));
        let mut late = false;
        let status = eventually_some(deadline + Duration::from_secs(1), "a process ends", async || {
            late = begin.elapsed() > deadline;
            if late { Some(None) } else { self.exit().map(Some) }
        })
        .await;
        status.unwrap_or_else(|| panic!("{} has not ended within {deadline:?}:\n{}", self.name, self.tail()))
    }

    /// Waits until its log contains `text`.
    ///
    /// # Panics
    /// When it does not within `deadline`, or the process ends before; the message holds the end of the log.
    pub async fn says(&mut self, deadline: Duration, text: &str) {
        let (begin, deadline) = (std::time::Instant::now(), patient(deadline));
        eventually(deadline + Duration::from_secs(1), text, async || {
            if self.log().contains(text) {
                return true;
            }
            let ended = self.exit();
            assert!(
                ended.is_none(),
                "{} ended ({ended:?}) before it said {text:?}:\n{}",
                self.name,
                self.tail()
            );
            assert!(
                begin.elapsed() < deadline,
                "{} did not say {text:?} within {deadline:?}:\n{}",
                self.name,
                self.tail()
            );
            false
        })
        .await;
    }

    /// The end of its log.
    pub fn tail(&self) -> String {
        let log = self.log();
        let from = log.char_indices().rev().nth(6000).map_or(0, |(at, _)| at);
        log[from..].to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- {} ({}):\n{}", self.name, self.child.id(), self.tail());
        }
    }
}
