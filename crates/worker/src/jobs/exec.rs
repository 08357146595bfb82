//! `umbel.exec`: a program in a child process, arguments as JSON on standard input, result from standard output.
//!
//! Called like a Python function `exec(program, *args, **kwargs)`. The pool says which programs there are; a message
//! only names one and brings data, which never becomes part of a command line, and no shell is involved.
//!
//! # Guarantees
//! * The program sees of the worker's environment only [`PASSED_ON`] and what the pool names.
//! * At the soft limit its process group gets SIGTERM. When the run ends for any reason (hard limit, revoked, lease
//!   lost, drain, death of the worker), the program and all its descendants are killed: [`super::leash`]. The same when
//!   the worker was frozen for so long that another one may have the message.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use rustix::process::{DumpableBehavior, Pid, Signal};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use umbel_protocol::json::Json;

use super::SettingsError;
use super::leash::{self, Word};
use super::pulse::Pulse;
use crate::job::{Arguments, Failure, Job, JobContext, Outcome};

/// Variables that every program gets where the worker has them; also those that start with `LC_`.
const PASSED_ON: [&str; 8] = ["HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER"];
/// Most that a program may write to its standard output, as a message may have.
const MAX_OUTPUT: u64 = 1 << 20;
/// What is kept of its standard error: the end, where the reason is.
const KEPT_ERRORS: usize = 4096;
/// Exit code of a program that failed for now: `EX_TEMPFAIL` of sysexits.h.
const TEMPORARY: i32 = 75;

/// What `umbel.exec` may run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecRules {
    /// Each with a name of its own.
    pub programs: Vec<Program>,
}

/// A program that messages may name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Name in messages.
    pub name: String,
    /// Absolute path of the executable.
    pub path: String,
    /// Its arguments, always the same.
    #[serde(default)]
    pub args: Vec<String>,
    /// Variables of the worker's environment that it gets besides the usual ones.
    #[serde(default)]
    pub env: Vec<String>,
}

/// The job.
pub(super) struct Exec {
    programs: BTreeMap<String, Program>,
    pulse: Pulse,
}

/// How far the standard output of a program went.
#[derive(Debug, PartialEq, Eq)]
enum Output {
    Whole(Vec<u8>),
    TooLong,
}

impl Exec {
    /// Checks the rules. From here on the worker's memory and environment are closed to other processes of its user.
    pub(super) fn new(rules: ExecRules, lease: Duration, renewal: Duration) -> Result<Exec, SettingsError> {
        let mut programs = BTreeMap::new();
        for program in rules.programs {
            let wrong = |reason: String| SettingsError::Program {
                name: program.name.clone(),
                reason,
            };
            if !program.path.starts_with('/') {
                return Err(wrong(format!("its path `{}` is not absolute", program.path)));
            }
            if let Some(name) = program.env.iter().find(|name| name.starts_with("UMBEL_")) {
                return Err(wrong(format!("variable {name} is the worker's own")));
            }
            if programs.contains_key(&program.name) {
                return Err(wrong("the name is given twice".to_owned()));
            }
            programs.insert(program.name.clone(), program);
        }
        if let Err(err) = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable) {
            tracing::warn!(error = %err, "programs can read the worker's environment");
        }
        let pulse = Pulse::new(lease, renewal).map_err(SettingsError::Thread)?;
        Ok(Exec { programs, pulse })
    }

    async fn exec(&self, ctx: &JobContext, arguments: &Arguments) -> Result<Outcome, Failure> {
        let call = Call::read(arguments)?;
        let program = self.programs.get(&call.program).ok_or_else(|| {
            Failure::permanent(
                "PermissionError",
                format!("the pool allows no program `{}`", shown(&call.program)),
            )
        })?;
        let request = leash::Request {
            path: program.path.clone(),
            args: program.args.clone(),
            input: call.input(ctx),
            silence: u64::try_from(self.pulse.silence().as_millis()).unwrap_or(u64::MAX),
        };
        let frame = leash::framed(&request).map_err(|err| unstarted(&program.name, &err))?;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(|err| unstarted(&program.name, &err))?;
        ours.set_nonblocking(true)
            .map_err(|err| unstarted(&program.name, &err))?;
        let pulsed = ours.try_clone().map_err(|err| unstarted(&program.name, &err))?;
        let ours = UnixStream::from_std(ours).map_err(|err| unstarted(&program.name, &err))?;
        ctx.checkpoint().await?;
        let mut leash = Command::new("/proc/self/exe")
            .arg0("umbel-exec")
            .arg(leash::ARGUMENT)
            .env_clear()
            .envs(environment(program, std::env::vars_os()))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|err| unstarted(&program.name, &err))?;
        let (Some(stdout), Some(stderr)) = (leash.stdout.take(), leash.stderr.take()) else {
            return Err(Failure::transient("a child process without its pipes"));
        };
        let (words, mut orders) = ours.into_split();
        if orders.write_all(&frame).await.is_err() {
            return Err(Failure::transient(format!(
                "`{}`: its watcher died at once",
                program.name
            )));
        }
        let _calm = self.pulse.keep(pulsed);
        let is_enough = CancellationToken::new();
        let ended = async {
            let output = async {
                let output = read_output(stdout).await;
                if output == Output::TooLong {
                    is_enough.cancel();
                }
                output
            };
            tokio::join!(output, read_end(stderr), last_word(words))
        };
        let (output, errors, word) = tokio::select! {
            ended = ended => ended,
            never = steer(orders, &ctx.soft_limit, &is_enough) => match never {},
        };
        let _ = leash.wait().await; // Reaped; what it had to say is said.
        let errors = String::from_utf8_lossy(&errors).into_owned();
        tracing::debug!(task.id = %ctx.id, program = %program.name, ended = ?word, "program ended");
        Ok(outcome(
            &program.name,
            word,
            output,
            &errors,
            ctx.soft_limit.is_cancelled(),
        ))
    }
}

impl Job for Exec {
    fn name(&self) -> &'static str {
        "umbel.exec"
    }

    fn run<'a>(&'a self, ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome> {
        async move { self.exec(ctx, &args).await.unwrap_or_else(failed) }.boxed()
    }
}

fn failed(failure: Failure) -> Outcome {
    if failure.is_retryable {
        Outcome::Retry {
            after: None,
            why: failure,
        }
    } else {
        Outcome::Failed(failure)
    }
}

/// What a message asks for.
#[derive(Debug, PartialEq)]
struct Call {
    program: String,
    args: Vec<Json>,
    kwargs: Vec<(String, Json)>,
}

impl Call {
    fn read(arguments: &Arguments) -> Result<Call, Failure> {
        let mut args = arguments.args.elements().unwrap_or_default();
        let mut kwargs = arguments.kwargs.entries();
        let named = kwargs.iter().position(|(name, _)| name == "program");
        let program = match (args.is_empty(), named) {
            (true, Some(at)) => kwargs.remove(at).1,
            (false, None) => args.remove(0),
            (true, None) => return Err(Failure::type_error("umbel.exec needs a program")),
            (false, Some(_)) => {
                return Err(Failure::type_error(
                    "umbel.exec got multiple values for argument 'program'",
                ));
            }
        };
        Ok(Call {
            program: program
                .text()
                .ok_or_else(|| Failure::type_error("umbel.exec: the program's name is no text"))?,
            args,
            kwargs,
        })
    }

    /// One line of JSON. Arguments are as the sender wrote them, to the last digit.
    fn input(&self, ctx: &JobContext) -> String {
        let args: Vec<&str> = self.args.iter().map(Json::as_str).collect();
        let kwargs: Vec<String> = self
            .kwargs
            .iter()
            .map(|(name, value)| format!("{}: {value}", Json::string(name)))
            .collect();
        format!(
            "{{\"id\": {}, \"task\": {}, \"queue\": {}, \"retries\": {}, \"program\": {}, \"args\": [{}], \"kwargs\": {{{}}}}}\n",
            Json::string(&ctx.id),
            Json::string(&ctx.task),
            Json::string(&ctx.queue),
            ctx.retries,
            Json::string(&self.program),
            args.join(", "),
            kwargs.join(", "),
        )
    }
}

/// A name from a message, as errors repeat it.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(64).collect()
}

/// The part of an environment that a program gets.
fn environment<S: AsRef<std::ffi::OsStr>>(
    program: &Program,
    all: impl Iterator<Item = (S, S)>,
) -> impl Iterator<Item = (S, S)> {
    all.filter(|(name, _)| {
        name.as_ref().to_str().is_some_and(|name| {
            PASSED_ON.contains(&name) || name.starts_with("LC_") || program.env.iter().any(|passed| passed == name)
        })
    })
}

async fn read_output(from: impl AsyncRead + Unpin) -> Output {
    let mut output = Vec::new();
    // A pipe does not fail; if it did, what follows is the end.
    let _ = from.take(MAX_OUTPUT + 1).read_to_end(&mut output).await;
    if output.len() as u64 > MAX_OUTPUT {
        Output::TooLong
    } else {
        Output::Whole(output)
    }
}

/// Reads all of it, so that the program never waits, and keeps the end.
async fn read_end(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = vec![0; KEPT_ERRORS];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..read]);
        kept.drain(..kept.len().saturating_sub(KEPT_ERRORS));
    }
    kept
}

/// How the program ended; `None` when nobody is left to say it.
async fn last_word(from: impl AsyncRead + Unpin) -> Option<Word> {
    let mut lines = BufReader::new(from).lines();
    let mut group = None;
    while let Ok(Some(line)) = lines.next_line().await {
        match leash::word(&line) {
            Some(Word::Runs(pid)) => group = Pid::from_raw(pid),
            Some(ended) => return Some(ended),
            None => break,
        }
    }
    if let Some(group) = group {
        // Its watcher was killed, by hand or for want of memory. The program must not go on without.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    None
}

/// Passes the soft limit on, and ends the run when it is enough. Dropped, it does the latter, too.
async fn steer(
    mut orders: OwnedWriteHalf,
    soft_limit: &CancellationToken,
    is_enough: &CancellationToken,
) -> std::convert::Infallible {
    tokio::select! {
        () = soft_limit.cancelled() => {
            let _ = orders.write_all(&[leash::TERM]).await;
            is_enough.cancelled().await;
        }
        () = is_enough.cancelled() => {}
    }
    drop(orders);
    std::future::pending().await
}

fn unstarted(program: &str, err: &std::io::Error) -> Failure {
    Failure::transient(format!("start `{program}`: {err}"))
}

/// What became of the run.
fn outcome(program: &str, word: Option<Word>, output: Output, errors: &str, is_asked_to_end: bool) -> Outcome {
    let output = match output {
        Output::Whole(output) => String::from_utf8_lossy(&output).into_owned(),
        Output::TooLong => {
            return Outcome::Failed(Failure::permanent(
                "ValueError",
                format!("`{program}` wrote more than {MAX_OUTPUT} bytes to its standard output"),
            ));
        }
    };
    let (code, text) = match word {
        Some(Word::Exited(0)) => return Outcome::Done(value(&output)),
        Some(Word::Exited(code)) => (code, format!("`{program}` exited with status {code}")),
        Some(Word::Killed(signal)) => (-signal, format!("`{program}` was ended by signal {signal}")),
        Some(Word::Unstarted(code, why)) => return failed(not_started(program, code, &why)),
        Some(Word::Abandoned) => {
            let why = format!("the worker was frozen for so long that `{program}` was killed");
            return failed(Failure::transient(why));
        }
        Some(Word::Runs(_)) | None => {
            return failed(Failure::transient(format!(
                "the watcher of `{program}` was killed, and it with it"
            )));
        }
    };
    if is_asked_to_end {
        return Outcome::Failed(Failure::raise("billiard.exceptions", "SoftTimeLimitExceeded", &()));
    }
    // As Python's subprocess.run(check=True) raises it. What the program wrote is for the caller and not for logs, so
    // the text that logs show is without it.
    let mut failure = Failure::raise(
        "subprocess",
        "CalledProcessError",
        &(code, program, head(&output), errors),
    );
    failure.message = text;
    failure.is_retryable = code == TEMPORARY;
    failed(failure)
}

/// JSON if it is some, nothing at all as null, else the text without its last line end.
fn value(output: &str) -> Json {
    let text = output.trim();
    if text.is_empty() {
        return Json::null();
    }
    Json::parse(text).unwrap_or_else(|_| {
        let line = output.strip_suffix('\n').unwrap_or(output);
        Json::string(line.strip_suffix('\r').unwrap_or(line))
    })
}

fn head(text: &str) -> &str {
    &text[..text.floor_char_boundary(KEPT_ERRORS)]
}

fn not_started(program: &str, code: i32, why: &str) -> Failure {
    use rustix::io::Errno;
    let text = format!("start `{program}`: {why}");
    match Errno::from_raw_os_error(code) {
        Errno::NOENT => Failure::permanent("FileNotFoundError", text),
        Errno::ACCESS | Errno::PERM => Failure::permanent("PermissionError", text),
        Errno::NOEXEC | Errno::ISDIR | Errno::NOTDIR | Errno::TOOBIG | Errno::INVAL => {
            Failure::permanent("OSError", text)
        }
        _ => Failure::transient(text), // No memory, no process left, busy.
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn call(args: &str, kwargs: &str) -> Result<Call, Failure> {
        Call::read(&Arguments {
            args: Json::parse(args).unwrap(),
            kwargs: Json::parse(kwargs).unwrap(),
        })
    }

    #[test]
    fn a_program_is_called_like_a_python_function() {
        let expected = |args: &[&str], kwargs: &[(&str, &str)]| Call {
            program: "p".into(),
            args: args.iter().map(|text| Json::parse(text).unwrap()).collect(),
            kwargs: kwargs
                .iter()
                .map(|(name, text)| ((*name).to_owned(), Json::parse(text).unwrap()))
                .collect(),
        };
        for (args, kwargs, read) in [
            (r#"["p"]"#, "{}", expected(&[], &[])),
            (
                r#"["p", 1, NaN]"#,
                r#"{"a": 2}"#,
                expected(&["1", "NaN"], &[("a", "2")]),
            ),
            ("[]", r#"{"a": 2, "program": "p"}"#, expected(&[], &[("a", "2")])),
        ] {
            assert_eq!(call(args, kwargs).unwrap(), read, "{args} {kwargs}");
        }
        for (args, kwargs) in [
            ("[]", "{}"),
            (r#"["p"]"#, r#"{"program": "q"}"#),
            ("[1]", "{}"),
            ("[[\"p\"]]", "{}"),
        ] {
            assert_eq!(call(args, kwargs).unwrap_err().exc_type, "TypeError", "{args} {kwargs}");
        }
    }

    #[test]
    fn of_the_environment_only_the_harmless_part_is_passed_on() {
        let program = Program {
            env: vec!["S3_BUCKET".into()],
            ..Program::default()
        };
        let all = [
            "PATH",
            "UMBEL_REDIS_URL",
            "LC_TIME",
            "S3_BUCKET",
            "S3_SECRET",
            "KUBERNETES_SERVICE_HOST",
            "LD_PRELOAD",
        ];
        let passed: Vec<&str> = environment(&program, all.into_iter().map(|name| (name, "")))
            .map(|(name, _)| name)
            .collect();
        assert_eq!(passed, ["PATH", "LC_TIME", "S3_BUCKET"]);
    }

    #[test]
    fn rules_that_would_not_work_are_refused_at_the_start() {
        let program = |path: &str, env: &[&str]| Program {
            name: "p".into(),
            path: path.into(),
            args: Vec::new(),
            env: env.iter().map(|&name| name.to_owned()).collect(),
        };
        for (programs, word) in [
            (vec![program("sh", &[])], "not absolute"),
            (vec![program("/bin/sh", &["UMBEL_REDIS_URL"])], "UMBEL_REDIS_URL"),
            (vec![program("/bin/sh", &[]), program("/bin/ls", &[])], "twice"),
        ] {
            let lease = Duration::from_secs(60);
            let refused = Exec::new(ExecRules { programs }, lease, lease / 3)
                .err()
                .unwrap()
                .to_string();
            assert!(refused.contains("`p`") && refused.contains(word), "{refused}");
        }
    }

    #[test]
    fn standard_output_is_json_or_text() {
        for (output, expected) in [
            ("", "null"),
            ("\n", "null"),
            ("{\"a\": [1, NaN]}\n", "{\"a\": [1, NaN]}"),
            ("12345678901234567890123\n", "12345678901234567890123"),
            ("{\"a\": [1,", r#""{\"a\": [1,""#),
            (" two words \r\n", r#"" two words ""#),
            ("{} {}", r#""{} {}""#),
        ] {
            assert_eq!(value(output).as_str(), expected, "{output:?}");
        }
    }

    #[test]
    fn each_end_has_its_meaning() {
        let end = |word, is_asked| match outcome("p", word, Output::Whole(b"out".to_vec()), "err", is_asked) {
            Outcome::Done(_) => "done".to_owned(),
            Outcome::Retry { why, .. } => format!("retry {why}"),
            Outcome::Failed(why) => format!("failed {why}"),
            other => format!("{other:?}"),
        };
        for (word, is_asked, expected) in [
            (Some(Word::Exited(0)), false, "done"),
            (Some(Word::Exited(0)), true, "done"),
            (
                Some(Word::Exited(3)),
                false,
                "failed CalledProcessError: `p` exited with status 3",
            ),
            (
                Some(Word::Exited(75)),
                false,
                "retry CalledProcessError: `p` exited with status 75",
            ),
            (
                Some(Word::Killed(9)),
                false,
                "failed CalledProcessError: `p` was ended by signal 9",
            ),
            (Some(Word::Killed(15)), true, "failed SoftTimeLimitExceeded"),
            (Some(Word::Exited(1)), true, "failed SoftTimeLimitExceeded"),
            (
                Some(Word::Unstarted(2, "gone".into())),
                false,
                "failed FileNotFoundError: start `p`: gone",
            ),
            (
                Some(Word::Unstarted(11, "later".into())),
                false,
                "retry RuntimeError: start `p`: later",
            ),
            (
                None,
                false,
                "retry RuntimeError: the watcher of `p` was killed, and it with it",
            ),
        ] {
            assert_eq!(end(word.clone(), is_asked), expected, "{word:?} {is_asked}");
        }
    }
}
