//! `umbel.exec`: what a program gets, what becomes of what it says, and that nothing of it is left.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use umbel_protocol::message::TimeLimit;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, Redis, Signal, TempDir, eventually, eventually_some};

use crate::stage::{SOON, admitted, document, document_text, failure, send, send_limited, value, worker};

/// Programs in a folder, as the pool allows them: each under its name.
struct Programs {
    folder: TempDir,
    allowed: Vec<Value>,
}

impl Programs {
    fn new() -> Programs {
        Programs {
            folder: TempDir::new("programs"),
            allowed: Vec::new(),
        }
    }

    fn script(mut self, name: &str, text: &str) -> Programs {
        let path = self.folder.path().join(name);
        fs::write(&path, text).expect("the folder is ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the file is ours");
        self.allowed.push(json!({"name": name, "path": path}));
        self
    }

    fn program(mut self, rule: Value) -> Programs {
        self.allowed.push(rule);
        self
    }

    fn jobs(&self) -> Value {
        json!({"exec": {"programs": self.allowed}})
    }

    /// Where the scripts below write the processes that they have started, one id a line.
    fn pids(&self) -> String {
        self.folder
            .path()
            .join("pids")
            .to_str()
            .expect("a plain name")
            .to_owned()
    }
}

/// Ignores SIGTERM, as do its child in its own group and its grandchild in a session of its own, which nobody waits for.
/// All three write their process ids to the file of their first argument.
const STUBBORN: &str = r#"#!/bin/sh
trap '' TERM
file=$(sed 's/.*"args": \["\([^"]*\)".*/\1/')
echo $$ >> "$file"
sh -c 'trap "" TERM; echo $$ >> "$0"; while :; do sleep 600; done' "$file" &
(setsid sh -c 'trap "" TERM; echo $$ >> "$0"; while :; do sleep 600; done' "$file" &)
while :; do sleep 600; done
"#;

async fn started(file: &str, count: usize) -> Vec<u32> {
    eventually_some(SOON, "the program and its descendants run", async || {
        let text = fs::read_to_string(file).ok()?;
        let pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        (pids.len() >= count).then_some(pids)
    })
    .await
}

/// Waits until none of them is there any more, not even as a zombie.
async fn gone(pids: &[u32]) {
    eventually(Duration::from_secs(5), "no process is left", async || {
        pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    })
    .await;
}

fn seconds(hard: Option<f64>, soft: Option<f64>) -> TimeLimit {
    TimeLimit { hard, soft }
}

#[tokio::test]
async fn a_program_is_a_function_of_its_input() {
    let redis = Redis::start().await;
    let programs = Programs::new()
        .program(json!({"name": "cat", "path": "/bin/cat"}))
        .program(json!({"name": "fixed", "path": "/bin/echo", "args": ["[1,", "$HOME]"]}))
        .program(json!({"name": "true", "path": "/bin/true"}))
        .program(json!({"name": "missing", "path": "/nowhere/at/all"}))
        .program(json!({"name": "folder", "path": "/tmp"}))
        .script("half", "#!/bin/sh\nprintf '{\"a\": [1, '\n")
        .script("warns", "#!/bin/sh\necho beware >&2\necho 7\n")
        .script("three", "#!/bin/sh\necho out; echo to the error >&2; exit 3\n")
        .script("later", "#!/bin/sh\necho try again >&2; exit 75\n")
        .script("dies", "#!/bin/sh\nkill -9 $$\n")
        .script(
            "flood",
            "#!/bin/sh\ntrap '' PIPE; while :; do echo 0123456789abcdef; done\n",
        )
        .script(
            "wails",
            "#!/bin/sh\nhead -c 5000000 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 1\n",
        );
    let _worker = worker(&redis, &programs.jobs(), &[]);

    // All at once: they are independent, and a slow one must not hold up the others.
    let run = async |args: &str, kwargs: &str| send(&redis, "umbel.exec", args, kwargs).await;
    let large = "x".repeat(500_000);
    let ids = [
        run(
            r#"["cat", 1.50, NaN, "$(id); `id`"]"#,
            r#"{"n": 12345678901234567890123, "args": null}"#,
        )
        .await,
        run("[]", r#"{"program": "cat"}"#).await,
        run(r#"["fixed", "--from-the-message"]"#, "{}").await,
        run(r#"["true"]"#, "{}").await,
        run(r#"["half"]"#, "{}").await,
        run(r#"["warns"]"#, "{}").await,
        run(&format!(r#"["true", "{large}"]"#), "{}").await,
    ];
    let raw = document_text(&redis, &ids[0], &["SUCCESS"]).await;
    let input = format!(
        r#"{{"id": "{}", "task": "umbel.exec", "queue": "celery", "retries": 0, "program": "cat", "args": [1.50, NaN, "$(id); `id`"], "kwargs": {{"n": 12345678901234567890123, "args": null}}}}"#,
        ids[0]
    );
    assert!(raw.contains(&input), "byte for byte: {raw}");
    assert_eq!(value(&redis, &ids[1]).await["args"], json!([]));
    assert_eq!(
        value(&redis, &ids[2]).await,
        "[1, $HOME]",
        "no shell, and nothing from the message"
    );
    assert_eq!(value(&redis, &ids[3]).await, Value::Null);
    assert_eq!(value(&redis, &ids[4]).await, "{\"a\": [1, ");
    assert_eq!(value(&redis, &ids[5]).await, 7);
    assert_eq!(value(&redis, &ids[6]).await, Value::Null, "it need not read");

    let called = "subprocess.CalledProcessError";
    let cases = [
        ("three", called, json!([3, "three", "out\n", "to the error\n"])),
        ("dies", called, json!([-9, "dies", "", ""])),
        ("later", called, json!([75, "later", "", "try again\n"])),
        ("missing", "FileNotFoundError", json!("No such file")),
        ("folder", "PermissionError", json!("Permission denied")),
        ("sh", "PermissionError", json!("allows no program `sh`")),
        ("/bin/cat", "PermissionError", json!("allows no program `/bin/cat`")),
        ("flood", "ValueError", json!("more than 1048576 bytes")),
    ];
    let mut ids = Vec::new();
    for (program, ..) in &cases {
        ids.push(run(&json!([program]).to_string(), "{}").await);
    }
    let wails = run(r#"["wails"]"#, "{}").await;
    for ((program, class, args), id) in cases.iter().zip(&ids) {
        let (found, message) = failure(&redis, id).await;
        assert_eq!(&found, class, "{program}");
        match args.as_str() {
            Some(word) => assert!(
                message[0].as_str().is_some_and(|text| text.contains(word)),
                "{program}: {message}"
            ),
            None => assert_eq!(&message, args, "{program}"),
        }
    }
    let (_, message) = failure(&redis, &wails).await;
    let errors = message[3].as_str().expect("text");
    assert!(
        errors.len() == 4096 && errors.ends_with("xthe end\n"),
        "the end of it: {}",
        errors.len()
    );
}

#[tokio::test]
async fn a_temporary_failure_is_tried_again() {
    let redis = Redis::start().await;
    let programs = Programs::new().script(
        "second",
        "#!/bin/sh\ncase $(cat) in *'\"retries\": 0'*) exit 75;; esac; echo '\"done\"'\n",
    );
    let _worker = worker(&redis, &programs.jobs(), &[]);
    let id = send(&redis, "umbel.exec", r#"["second"]"#, "{}").await;
    assert_eq!(value(&redis, &id).await, "done");
}

#[tokio::test]
async fn python_callers_catch_the_error_of_subprocess() {
    let redis = Redis::start().await;
    let programs = Programs::new().script("three", "#!/bin/sh\nexit 3\n");
    let _worker = worker(&redis, &programs.jobs(), &[]);
    let mut celery = Celery::client(&redis.url()).await;
    let id = celery.send("umbel.exec", json!(["three"]), json!({})).await;
    let raised = celery.get(&id, SOON).await.expect_err("it fails");
    let text = format!("{raised:?}");
    assert!(
        text.contains("CalledProcessError") && text.contains("Command 'three' returned non-zero exit status 3"),
        "{text}"
    );
}

#[tokio::test]
async fn a_program_sees_no_secret_of_its_worker() {
    let redis = Redis::start().await;
    let programs = Programs::new()
        .program(json!({"name": "own", "path": "/usr/bin/env", "env": ["WANTED"]}))
        .script("parents", "#!/bin/sh\nexec tr '\\0' '\\n' < /proc/$PPID/environ\n")
        .script(
            "files",
            "#!/bin/sh\nls -l /proc/$$/fd /proc/$PPID/fd | grep -o 'socket:.*' | sort -u | wc -l\n",
        )
        .script("group", "#!/bin/sh\necho $$ $(cut -d' ' -f5 /proc/$$/stat)\n");
    let env = [
        ("WANTED", "1"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("UMBEL_KEY_PREFIX", ""),
        ("LC_ALL", "C.UTF-8"),
        ("TZ", "UTC"),
    ];
    let _worker = worker(&redis, &programs.jobs(), &env);
    let run = async |program: &str| send(&redis, "umbel.exec", &json!([program]).to_string(), "{}").await;
    let (own, parents, files, group) = (
        run("own").await,
        run("parents").await,
        run("files").await,
        run("group").await,
    );
    let known = [
        "HOME", "LANG", "LANGUAGE", "LC_ALL", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER",
    ];
    for (id, is_own) in [(own, true), (parents, false)] {
        let seen = value(&redis, &id).await;
        let lines = seen.as_str().expect("text").lines();
        let names: Vec<&str> = lines.filter_map(|line| Some(line.split_once('=')?.0)).collect();
        assert!(names.contains(&"LC_ALL") && names.contains(&"TZ"), "{names:?}");
        assert!(
            names
                .iter()
                .all(|name| known.contains(name) || (is_own && *name == "WANTED")),
            "{names:?}"
        );
        assert_eq!(names.contains(&"WANTED"), is_own, "{names:?}");
    }
    // The watcher's end of its pair with the worker, and no connection of the worker's.
    assert_eq!(value(&redis, &files).await, 1);
    let group = value(&redis, &group).await;
    let (pid, leader) = group
        .as_str()
        .and_then(|text| text.split_once(' '))
        .expect("two numbers");
    assert_eq!(pid, leader, "it leads a process group of its own");
}

#[tokio::test]
async fn at_the_hard_limit_a_program_that_ignores_sigterm_is_killed_with_all_its_descendants() {
    let redis = Redis::start().await;
    let programs = Programs::new().script("stubborn", STUBBORN);
    let _worker = worker(&redis, &programs.jobs(), &[]);
    let args = json!(["stubborn", programs.pids()]).to_string();
    let id = send_limited(&redis, "umbel.exec", &args, "{}", seconds(Some(2.0), Some(0.5))).await;
    let pids = started(&programs.pids(), 3).await;
    let (class, _) = failure(&redis, &id).await;
    assert_eq!(class, "billiard.exceptions.TimeLimitExceeded");
    gone(&pids).await;
}

#[tokio::test]
async fn at_the_soft_limit_a_program_may_end_in_its_own_way() {
    let redis = Redis::start().await;
    let programs = Programs::new()
        .script("tidy", "#!/bin/sh\ntrap 'echo 1; exit 0' TERM\nsleep 600 & wait\n")
        .script("plain", "#!/bin/sh\nsleep 600\n");
    let _worker = worker(&redis, &programs.jobs(), &[]);
    let limit = seconds(Some(60.0), Some(0.3));
    let tidy = send_limited(&redis, "umbel.exec", r#"["tidy"]"#, "{}", limit).await;
    let plain = send_limited(&redis, "umbel.exec", r#"["plain"]"#, "{}", limit).await;
    assert_eq!(value(&redis, &tidy).await, 1);
    let (class, args) = failure(&redis, &plain).await;
    assert_eq!(
        (class.as_str(), args),
        ("billiard.exceptions.SoftTimeLimitExceeded", json!([]))
    );
}

#[tokio::test]
async fn what_a_program_leaves_behind_ends_with_its_run() {
    let redis = Redis::start().await;
    // Both hold standard output open, which nobody should wait for.
    let programs = Programs::new().script(
        "leaves",
        "#!/bin/sh\nfile=$(sed 's/.*\"args\": \\[\"\\([^\"]*\\)\".*/\\1/')\nsleep 600 & echo $! >> \"$file\"\nsetsid sh -c 'echo $$ >> \"$0\"; exec sleep 600' \"$file\" &\nwhile [ \"$(wc -l < \"$file\")\" -lt 2 ]; do sleep 0.01; done; echo '\"gone\"'\n",
    );
    let _worker = worker(&redis, &programs.jobs(), &[]);
    let id = send(
        &redis,
        "umbel.exec",
        &json!(["leaves", programs.pids()]).to_string(),
        "{}",
    )
    .await;
    assert_eq!(value(&redis, &id).await, "gone");
    gone(&started(&programs.pids(), 2).await).await;
}

#[tokio::test]
async fn a_program_does_not_outlive_a_killed_worker() {
    let redis = Redis::start().await;
    let programs = Programs::new().script("stubborn", STUBBORN);
    let mut worker = worker(&redis, &programs.jobs(), &[]);
    send(
        &redis,
        "umbel.exec",
        &json!(["stubborn", programs.pids()]).to_string(),
        "{}",
    )
    .await;
    let pids = started(&programs.pids(), 3).await;
    worker.kill();
    gone(&pids).await;
}

#[tokio::test]
async fn a_program_goes_with_its_watcher() {
    let redis = Redis::start().await;
    let programs = Programs::new().script(
        "betrayed",
        "#!/bin/sh\necho $$ >> \"$(sed 's/.*\"args\": \\[\"\\([^\"]*\\)\".*/\\1/')\"\nkill -9 $PPID\nexec sleep 600\n",
    );
    let _worker = worker(&redis, &programs.jobs(), &[]);
    let id = send(
        &redis,
        "umbel.exec",
        &json!(["betrayed", programs.pids()]).to_string(),
        "{}",
    )
    .await;
    let (class, args) = failure(&redis, &id).await;
    assert_eq!(class, "RuntimeError", "{args}");
    let runs = started(&programs.pids(), 2).await; // Tried again once: the watcher may have died for want of memory.
    eventually(SOON, "it is killed", async || {
        // Its new parent reaps it when it likes.
        runs.iter()
            .all(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z ")))
    })
    .await;
}

#[tokio::test]
async fn a_drain_hands_the_message_back_and_ends_the_program() {
    let redis = Redis::start().await;
    let programs = Programs::new().script("stubborn", STUBBORN);
    let mut worker = worker(&redis, &programs.jobs(), &[("UMBEL_GRACE", "5s")]);
    send(
        &redis,
        "umbel.exec",
        &json!(["stubborn", programs.pids()]).to_string(),
        "{}",
    )
    .await;
    let pids = started(&programs.pids(), 3).await;
    let began = Instant::now();
    worker.signal(Signal::Term);
    worker.signal(Signal::Term); // The second one: now.
    assert!(worker.wait(SOON).await.success());
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "within the grace: {:?}",
        began.elapsed()
    );
    gone(&pids).await;
    assert_eq!(redis.connection().await.llen("celery").await, Ok(1), "handed back");
}

#[tokio::test]
async fn a_revoked_program_is_killed() {
    let redis = Redis::start().await;
    let programs = Programs::new().script("stubborn", STUBBORN);
    let _worker = worker(&redis, &programs.jobs(), &[]);
    let id = send(
        &redis,
        "umbel.exec",
        &json!(["stubborn", programs.pids()]).to_string(),
        "{}",
    )
    .await;
    let pids = started(&programs.pids(), 3).await;
    let mut celery = Celery::client(&redis.url()).await;
    let arguments = json!({"task_id": id, "terminate": true, "signal": "SIGTERM"});
    celery.control(&[], "revoke", arguments).await;
    document(&redis, &id, &["REVOKED"]).await;
    gone(&pids).await;
}

#[tokio::test]
async fn a_program_of_a_frozen_worker_ends_before_another_worker_begins() {
    let redis = Redis::start().await;
    let programs = Programs::new().script("stubborn", STUBBORN);
    let mut first = worker(&redis, &programs.jobs(), &[]);
    send(
        &redis,
        "umbel.exec",
        &json!(["stubborn", programs.pids()]).to_string(),
        "{}",
    )
    .await;
    let stale = started(&programs.pids(), 3).await;
    first.signal(Signal::Stop);
    let _second = worker(&redis, &programs.jobs(), &[]);
    let fresh = started(&programs.pids(), 6).await.split_off(3);
    assert!(
        !stale.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists()),
        "the first one ended before, though its worker stands still"
    );
    first.signal(Signal::Cont);
    // By its program, which was abandoned, or by its lease, which is lost: whichever it hears of first.
    first.says(SOON, r#""message":"ended""#).await;
    assert!(!first.log().contains(r#""outcome":"done""#), "{}", first.tail());
    assert!(
        fresh.iter().all(|pid| Path::new(&format!("/proc/{pid}")).exists()),
        "the other worker's goes on"
    );
}

#[tokio::test]
async fn a_pool_without_the_job_does_not_know_it() {
    let redis = Redis::start().await;
    let _worker = worker(&redis, &json!({}), &[]);
    admitted(&redis, 1).await;
    for task in ["umbel.exec", "umbel.http"] {
        let id = send(&redis, task, r#"["cat"]"#, "{}").await;
        let (class, _) = failure(&redis, &id).await;
        assert!(class.ends_with("NotRegistered"), "{task}: {class}");
    }
}

#[tokio::test]
async fn a_worker_with_rules_that_cannot_hold_says_so_and_does_not_start() {
    let redis = Redis::start().await;
    for (jobs, word) in [
        (
            json!({"exec": {"programs": [{"name": "x", "path": "sh"}]}}),
            "program `x`",
        ),
        (
            json!({"exec": {"programs": [{"name": "x", "path": "/bin/sh", "env": ["UMBEL_REDIS_URL"]}]}}),
            "UMBEL_REDIS_URL",
        ),
        (json!({"http": {"hosts": ["ftp://a.example"]}}), "ftp://a.example"),
        (json!({"exec": {"program": []}}), "unknown field"),
    ] {
        let mut worker = worker(&redis, &jobs, &[]);
        assert!(!worker.wait(SOON).await.success(), "{jobs}");
        assert!(worker.log().contains(word), "{jobs}: {}", worker.log());
    }
}
