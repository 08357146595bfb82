//! `umbel task …` against real servers, a real Celery worker and ours.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests fail as tests do.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, CeleryOptions, CeleryWorker, Process, Redis, TempDir, repository};

struct Done {
    code: i32,
    out: String,
    err: String,
}

async fn umbel_with(url: &str, args: &[&str], input: &str) -> Done {
    let mut command = Command::new(env!("CARGO_BIN_EXE_umbel"));
    for name in ["UMBEL_REDIS_URL", "UMBEL_KEY_PREFIX", "UMBEL_RESULT_URL", "KUBECONFIG"] {
        command.env_remove(name);
    }
    let mut child = command
        .args(args)
        .args(["--redis-url", url])
        .env("HOME", "/nonexistent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let _ = stdin.write_all(input.as_bytes()).await; // A call that is refused reads nothing.
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Done {
        code: output.status.code().unwrap(),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

async fn umbel(url: &str, args: &[&str]) -> Done {
    umbel_with(url, args, "").await
}

#[track_caller]
fn good(done: Done) -> String {
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    done.out
}

#[track_caller]
fn value(done: Done) -> Value {
    let out = good(done);
    serde_json::from_str(&out).unwrap_or_else(|err| panic!("{out}: {err}"))
}

fn umbel_worker(redis: &Redis) -> Process {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let path = Path::new(env!("CARGO_BIN_EXE_umbel")).with_file_name("umbel-worker");
        let build = ["build", "--quiet", "-p", "umbel-worker", "--bin", "umbel-worker"];
        let done = std::process::Command::new(env!("CARGO"))
            .current_dir(repository())
            .args(build)
            .status();
        assert!(done.is_ok_and(|status| status.success()), "build umbel-worker");
        path
    });
    let url = redis.url();
    Process::start(
        path,
        ["--redis-url", &url, "--standalone", "--accept", "json,msgpack,yaml"],
        &[],
    )
}

/// A worker of either kind.
async fn workers(kind: &str, redis: &Redis) -> (Option<CeleryWorker>, Option<Process>) {
    if kind == "celery" {
        let options = CeleryOptions {
            settings: json!({"accept_content": ["json", "msgpack", "yaml"]}),
            ..CeleryOptions::default()
        };
        (Some(CeleryWorker::start(&redis.url(), &options).await), None)
    } else {
        (None, Some(umbel_worker(redis)))
    }
}

fn echo(args: &Value) -> Value {
    json!({"args": args, "kwargs": {}})
}

#[tokio::test]
async fn both_workers_run_what_is_sent_with_every_flag() {
    for kind in ["celery", "umbel"] {
        let redis = Redis::start().await;
        let url = redis.url();
        let _worker = workers(kind, &redis).await;
        let flags = [
            &["task", "send", "umbel.echo", "--args", "[1]", "--wait"][..],
            &[
                "--serializer",
                "msgpack",
                "--compression",
                "zstd",
                "--header",
                "x-trace=abc",
                "--stamp",
                "tenant=acme",
            ],
            &[
                "--shadow",
                "shown",
                "--hide-arguments",
                "--time-limit",
                "1m",
                "--priority",
                "6",
                "--expires",
                "5m",
            ],
            &["--id", "my-id", "--link", "umbel.echo"],
        ]
        .concat();
        assert_eq!(value(umbel(&url, &flags).await), echo(&json!([1])), "{kind}");
        assert_eq!(
            value(umbel(&url, &["task", "get", "my-id", "-o", "json"]).await)["status"],
            "SUCCESS"
        );
        let forgotten = good(umbel(&url, &["task", "forget", "my-id", "never-was"]).await);
        assert_eq!(forgotten, "1 of 2 had a result, which is deleted\n");
        assert_eq!(
            value(umbel(&url, &["task", "get", "my-id", "-o", "json"]).await)["status"],
            "PENDING"
        );

        let workflow = r#"{"chain": [{"task": "umbel.echo", "args": [1]},
            {"group": [{"task": "umbel.echo", "args": [2]}, "umbel.echo"]}, {"task": "umbel.echo", "args": ["end"]}]}"#;
        let one = echo(&json!([1]));
        let expected = echo(&json!([[echo(&json!([one, 2])), echo(&json!([one]))], "end"]));
        let ran = umbel_with(&url, &["task", "canvas", "-", "--wait"], workflow).await;
        assert_eq!(value(ran), expected, "{kind}");

        let group = r#"{"group": [{"task": "umbel.echo", "args": [1]}, {"task": "umbel.echo", "args": [2]}]}"#;
        let sent = value(umbel_with(&url, &["task", "canvas", "-", "--save", "-o", "json"], group).await);
        assert_eq!(
            (&sent["kind"], sent["ids"].as_array().unwrap().len()),
            (&json!("group"), 2)
        );
        let id = sent["id"].as_str().unwrap();
        let got = umbel(&url, &["task", "get", id, "--wait"]).await;
        assert_eq!(value(got), json!([echo(&json!([1])), echo(&json!([2]))]), "{kind}");

        let failed = umbel_with(
            &url,
            &["task", "canvas", "-", "--wait"],
            r#"{"chain": ["umbel.sleep", "umbel.echo"]}"#,
        )
        .await;
        assert_eq!((failed.code, failed.out.as_str()), (1, ""), "{kind}");
        assert!(failed.err.contains("ended as FAILURE: TypeError"), "{}", failed.err);
    }
}

#[tokio::test]
async fn what_celery_serialises_is_a_workflow() {
    let redis = Redis::start().await;
    let url = redis.url();
    let _worker = umbel_worker(&redis);
    let mut celery = Celery::client(&url).await;
    let lines = "import json\ne = lambda *a: app.signature('umbel.echo', args=a)\n\
                 answer = [json.dumps(s) for s in (chain(e(1), e(2)), chord([e(1), e(2)], e('body')), group(e(1), e(2)))]";
    let written = celery.script(lines, std::time::Duration::from_secs(30)).await.unwrap();
    let expected = [
        echo(&json!([echo(&json!([1])), 2])),
        echo(&json!([[echo(&json!([1])), echo(&json!([2]))], "body"])),
        json!([echo(&json!([1])), echo(&json!([2]))]),
    ];
    for (workflow, expected) in written.as_array().unwrap().iter().zip(expected) {
        let ran = umbel_with(&url, &["task", "canvas", "-", "--wait"], workflow.as_str().unwrap()).await;
        assert_eq!(value(ran), expected, "{workflow}");
    }
}

#[tokio::test]
async fn many_are_sent_from_lines_or_by_count() {
    let redis = Redis::start().await;
    let url = redis.url();
    let _worker = umbel_worker(&redis);
    let folder = TempDir::new("lines");
    let file = folder.path().join("calls.jsonl");
    let mut lines: Vec<String> = (0..6_000).map(|n| format!("[{n}]")).collect();
    lines.push(r#"{"args": ["last"], "options": {"task_id": "last", "priority": 9, "headers": {"a": 1}}}"#.into());
    lines.push(String::new());
    std::fs::write(&file, lines.join("\n")).unwrap();
    let file = file.to_str().unwrap();
    let sent = value(
        umbel(
            &url,
            &[
                "task",
                "send",
                "umbel.echo",
                "--from",
                file,
                "-o",
                "json",
                "--queue",
                "idle",
            ],
        )
        .await,
    );
    assert_eq!(sent["sent"], 6_001);
    assert!(sent["perSecond"].as_f64().unwrap() > 0.0);
    let mut connection = redis.connection().await;
    assert_eq!(connection.llen::<_, usize>("idle").await.unwrap(), 6_000);
    assert_eq!(connection.llen::<_, usize>("idle\u{6}\u{16}9").await.unwrap(), 1);

    let done = umbel(&url, &["task", "send", "umbel.echo", "--count", "40", "--wait"]).await;
    // No bar where nobody looks.
    assert!(
        done.err.starts_with("40 tasks sent to queue celery, ") && done.err.lines().count() == 1,
        "{}",
        done.err
    );
    assert_eq!(good(done), "40 succeeded, 0 failed, 0 did not end\n");
    let done = umbel_with(
        &url,
        &["task", "send", "umbel.sleep", "--from", "-", "--wait"],
        "[0]\n[\"x\"]\n",
    )
    .await;
    assert_eq!(
        (done.code, done.out.as_str()),
        (1, "1 succeeded, 1 failed, 0 did not end\n")
    );
    assert!(
        done.err.contains("1 of 2 tasks failed, the first: task "),
        "{}",
        done.err
    );
    let ids = good(umbel(&url, &["task", "send", "umbel.echo", "--count", "3", "-o", "name"]).await);
    assert_eq!(ids.lines().count(), 3);
    let bad = umbel_with(&url, &["task", "send", "t", "--from", "-"], "[1]\n{\"arg\": []}\n").await;
    assert_eq!(bad.code, 2);
    assert!(
        bad.err.contains("standard input: line 2: \"arg\" is none of"),
        "{}",
        bad.err
    );
}

#[tokio::test]
async fn exchanges_steps_and_prefixes_are_those_of_the_producers() {
    let redis = Redis::start().await;
    let url = redis.url();
    let mut connection = redis.connection().await;
    let member = r"feed.#|^feed\..*?$|all";
    let _: () = connection.sadd("app:_kombu.binding.feeds", member).await.unwrap();
    let company = [
        "--key-prefix",
        "app:",
        "--separator",
        "|",
        "--priority-steps",
        "0,2,5,8",
    ];
    let through = [
        &["task", "send", "t", "--exchange", "feeds", "--exchange-type", "topic"][..],
        &company,
    ]
    .concat();
    let sent = umbel(
        &url,
        &[&through[..], &["--routing-key", "feed.a", "--priority", "6"]].concat(),
    )
    .await;
    good(sent);
    assert_eq!(connection.llen::<_, usize>("app:all|5").await.unwrap(), 1);
    let lost = umbel(&url, &[&through[..], &["--routing-key", "other"]].concat()).await;
    assert_eq!(lost.code, 1);
    assert!(
        lost.err.contains("no queue is bound to topic exchange \"feeds\""),
        "{}",
        lost.err
    );
    let listed = value(umbel(&url, &[&["queue", "ls", "all", "-o", "json"][..], &company].concat()).await);
    assert_eq!(listed["items"][0]["depth"]["waiting"], 1);
    let wrong = umbel(&url, &["queue", "ls", "--priority-steps", "3,2"]).await;
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains("--priority-steps"), "{}", wrong.err);
}

#[tokio::test]
async fn a_revoked_task_does_not_run() {
    let redis = Redis::start().await;
    let url = redis.url();
    let id = good(umbel(&url, &["task", "send", "umbel.echo"]).await);
    let revoked = umbel(&url, &["task", "revoke", id.trim(), "-o", "json"]).await;
    assert!(revoked.err.contains("no worker listens"), "{}", revoked.err);
    assert_eq!(value(revoked)["listeners"], 0);
    let _worker = umbel_worker(&redis);
    let ended = umbel(&url, &["task", "get", id.trim(), "--wait"]).await;
    assert_eq!(ended.code, 1);
    assert!(
        ended.err.contains("ended as REVOKED: TaskRevokedError"),
        "{}",
        ended.err
    );
}

#[tokio::test]
async fn wrong_calls_are_told_before_anything_is_sent() {
    let cases = [
        (&["task", "send", "t", "--exchange", "x"][..], "--exchange-type"),
        (
            &["task", "send", "t", "--link", "{}"],
            "--link: the workflow has none of",
        ),
        (&["task", "send", "t", "--count", "0"], "0"),
        (&["task", "send", "t", "--serializer", "pickle"], "pickle"),
        (&["task", "revoke"], "<IDS>"),
        (&["task", "revoke", "x", "--signal", "HUP"], "--terminate"),
        (&["task", "canvas", "-"], "standard input: "),
    ];
    for (args, words) in cases {
        let done = umbel_with("redis://127.0.0.1:1", args, "{\"chain\": 1}").await;
        assert_eq!((done.code, done.out.as_str()), (2, ""), "{args:?}: {}", done.err);
        assert!(done.err.contains(words), "{args:?}: {}", done.err);
    }
}

#[tokio::test]
async fn a_unique_task_is_on_its_way_once() {
    let redis = Redis::start().await;
    let url = redis.url();
    let mut connection = redis.connection().await;
    let send = async || {
        let args = [
            "task",
            "send",
            "t",
            "--queue",
            "q",
            "--unique",
            "nightly",
            "--unique-ttl",
            "1h",
        ];
        good(umbel(&url, &args).await).trim().to_owned()
    };
    let first = send().await;
    assert_eq!(send().await, first, "the answer is the task that is on its way");
    assert_eq!(connection.llen::<_, u64>("q").await.unwrap(), 1);
    let kept: i64 = connection.ttl("umbel:unique:nightly").await.unwrap();
    assert!((3500..=3600).contains(&kept), "{kept} s");
    let _: () = connection.del("umbel:unique:nightly").await.unwrap();
    assert_ne!(send().await, first);
    assert_eq!(connection.llen::<_, u64>("q").await.unwrap(), 2);
}
