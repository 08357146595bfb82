//! Every command's help, compared with what is committed. `UMBEL_UPDATE=1 cargo test -p umbel-cli --test help` writes it.

#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

use std::path::Path;
use std::process::Command;

const COMMANDS: &[&[&str]] = &[
    &[],
    &["task"],
    &["task", "send"],
    &["task", "ls"],
    &["task", "get"],
    &["task", "canvas"],
    &["task", "revoke"],
    &["task", "cancel"],
    &["task", "retry"],
    &["task", "forget"],
    &["queue"],
    &["queue", "ls"],
    &["queue", "peek"],
    &["queue", "purge"],
    &["queue", "pause"],
    &["queue", "resume"],
    &["queue", "recover"],
    &["queue", "dead"],
    &["queue", "dead", "ls"],
    &["queue", "dead", "replay"],
    &["queue", "dead", "purge"],
    &["queue", "quarantine"],
    &["queue", "quarantine", "replay"],
    &["pool"],
    &["pool", "explain"],
    &["pool", "ls"],
    &["pool", "drain"],
    &["pool", "resume"],
    &["periodic"],
    &["periodic", "ls"],
    &["periodic", "run"],
    &["periodic", "pause"],
    &["periodic", "resume"],
    &["periodic", "import"],
    &["cluster"],
    &["cluster", "ls"],
    &["cluster", "join"],
    &["cluster", "test"],
    &["cluster", "rotate"],
    &["cluster", "leave"],
    &["version"],
    &["completion"],
];

fn umbel(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_umbel"))
        .args(args)
        .env_remove("UMBEL_REDIS_URL")
        .env_remove("UMBEL_KEY_PREFIX")
        .env_remove("UMBEL_RESULT_URL")
        .env("COLUMNS", "100")
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn help_is_as_committed() {
    let folder = Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("tests/snapshots");
    let mut wrong = Vec::new();
    for command in COMMANDS {
        let args: Vec<&str> = command.iter().copied().chain(["--help"]).collect();
        let (code, out, err) = umbel(&args);
        assert_eq!((code, err.as_str()), (0, ""), "{args:?}");
        let name = ["umbel"]
            .iter()
            .chain(command.iter())
            .copied()
            .collect::<Vec<_>>()
            .join("-");
        let file = folder.join(format!("{name}.txt"));
        if std::env::var_os("UMBEL_UPDATE").is_some() {
            std::fs::write(&file, &out).unwrap();
        }
        if std::fs::read_to_string(&file).unwrap_or_default() != out {
            wrong.push(format!("{}:\n{out}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_wrong_call_is_exit_code_2_and_says_so_on_standard_error() {
    let cases: &[&[&str]] = &[
        &[],
        &["tusk"],
        &["task", "send"],
        &["task", "send", "t", "--priority", "10"],
        &["task", "send", "t", "--eta", "soon"],
        &[
            "task",
            "send",
            "t",
            "--eta",
            "2026-01-01T00:00:00Z",
            "--countdown",
            "1s",
        ],
        &["task", "send", "t", "--args", "{", "--redis-url", "redis://127.0.0.1:1"],
        &["queue", "ls", "-o", "xml"],
        &["cluster", "join", "a"],
        &["cluster", "join", "a", "--from-context", "b", "--label", "x"],
        &[
            "cluster",
            "join",
            "a",
            "--from-context",
            "b",
            "--as-is",
            "--allow",
            "n:ConfigMap",
        ],
        &["cluster", "join", "a", "--from-context", "b", "--token-life", "2h"],
        &["cluster", "test"],
        &["cluster", "rotate", "a", "--key"],
    ];
    for args in cases {
        let (code, out, err) = umbel(args);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
        assert!(!err.is_empty(), "{args:?}");
    }
}

#[test]
fn completions_are_scripts_for_each_shell() {
    for (shell, words) in [
        ("bash", "complete -F _umbel"),
        ("zsh", "#compdef umbel"),
        ("fish", "complete -c umbel"),
    ] {
        let (code, out, _) = umbel(&["completion", shell]);
        assert!(code == 0 && out.contains(words), "{shell}");
        for command in [
            "cancel",
            "retry",
            "peek",
            "purge",
            "pause",
            "resume",
            "recover",
            "quarantine",
            "replay",
        ] {
            assert!(out.contains(command), "{shell}: {command}");
        }
    }
}

#[test]
fn the_plugin_calls_itself_by_the_name_that_people_type() {
    let folder = umbel_testkit::TempDir::new("plugin");
    let plugin = folder.path().join("kubectl-umbel");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_umbel"), &plugin).unwrap();
    let output = Command::new(&plugin).args(["task", "send", "--help"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("Usage: kubectl umbel task send"), "{text}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    for args in [
        &["completion", "bash"][..],
        &["task", "send", "--help"],
        &["version", "--client"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_umbel"))
            .args(args)
            .stdout(writer)
            .output()
            .unwrap();
        assert_eq!(
            (output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()),
            (Some(0), ""),
            "{args:?}"
        );
    }
}

#[test]
fn no_cluster_is_a_failure_with_one_line() {
    let folder = umbel_testkit::TempDir::new("no-cluster");
    let file = folder.path().join("kubeconfig");
    let broken = ["queue", "ls", "--kubeconfig", file.to_str().unwrap()];
    let (code, out, err) = umbel(&broken);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.starts_with("error: read ") && err.lines().count() == 1, "{err}");

    std::fs::write(&file, "clusters: [").unwrap();
    let (code, _, err) = umbel(&broken);
    assert!(
        code == 1 && err.starts_with("error: ") && err.lines().count() == 1,
        "{err}"
    );
}
