//! `umbel`, and `kubectl umbel`: send tasks, look at queues and pools, join clusters.
//!
//! Data goes to standard output, talk to standard error. Exit codes: 0 good, 1 failure, 2 usage.

mod account;
mod args;
mod beat;
mod broker;
mod commands;
mod confirm;
mod home;
mod output;
mod short;
mod signing;
mod target;
mod tunnel;

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

use crate::args::Cli;

/// The call itself is wrong: exit code 2, as for a flag that clap does not know.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

fn usage<T>(text: impl Into<String>) -> anyhow::Result<T> {
    Err(Usage(text.into()).into())
}

fn main() -> ExitCode {
    let mut command = Cli::command();
    if is_plugin(std::env::args_os().next()) {
        command = command.bin_name("kubectl umbel");
    }
    let cli = match command
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches))
    {
        Ok(cli) => cli,
        Err(err) => {
            let _ = err.print(); // A closed pipe while help is written is no failure.
            return ExitCode::from(if err.use_stderr() { 2 } else { 0 });
        }
    };
    // Kubeconfigs and tokens are in its memory: no core files of that.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    // The only provider that is linked; an error means that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(err) => {
            eprintln!("error: no runtime: {err}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(commands::run(&cli)) {
        Ok(code) => code,
        Err(err) if is_closed_pipe(&err) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("error: {}", output::plain(&chain(&err)));
            ExitCode::from(if err.is::<Usage>() { 2 } else { 1 })
        }
    }
}

/// `kubectl umbel` starts a program of this name.
fn is_plugin(program: Option<OsString>) -> bool {
    program.is_some_and(|program| {
        Path::new(&program)
            .file_stem()
            .is_some_and(|name| name.to_string_lossy().starts_with("kubectl-"))
    })
}

/// Who reads us through `head` has seen enough.
fn is_closed_pipe(err: &anyhow::Error) -> bool {
    err.downcast_ref::<io::Error>()
        .is_some_and(|err| err.kind() == io::ErrorKind::BrokenPipe)
}

/// The error and its causes on one line, without what one of them already said.
fn chain(err: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in err.chain() {
        let cause = cause.to_string();
        if text.contains(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}
