//! Arguments from Secrets: in the task's hands, and nowhere else.

use std::fmt::Write as _;

use serde_json::{Value, json};
use umbel_protocol::json::Json;
use umbel_testkit::redis::{self, AsyncCommands, cmd};
use umbel_testkit::{Process, Redis, TempDir, eventually};

use crate::stage::{SOON, admitted, failure, new, push, value, worker};

/// What must be nowhere.
const CANARY: &str = "hunter2-\u{fc}\"\n-canary";

struct Stage {
    redis: Redis,
    folder: TempDir,
    worker: Process,
}

impl Stage {
    async fn start() -> Stage {
        let (redis, folder) = (Redis::start().await, TempDir::new("secrets"));
        for (secret, key, text) in [("db", "password", CANARY), ("other", "password", "not yours")] {
            std::fs::create_dir(folder.path().join(secret)).expect("a folder");
            std::fs::write(folder.path().join(secret).join(key), text).expect("a file");
        }
        let jobs = json!({"secrets": {"names": ["db", "late"]}});
        let dir = folder.path().to_str().expect("a text");
        let worker = worker(&redis, &jobs, &[("UMBEL_SECRETS_DIR", dir)]);
        admitted(&redis, 1).await;
        Stage { redis, folder, worker }
    }

    async fn send(&self, task: &str, kwargs: &str, from: &Value) -> String {
        let mut task = new(task, "[]", kwargs);
        task.headers.push(("umbel_args_from".into(), Json::of(from)));
        push(&self.redis, &task).await
    }

    /// Everything that the server holds, as one text.
    async fn contents(&self) -> String {
        let mut connection = self.redis.connection().await;
        let keys: Vec<String> = connection.keys("*").await.expect("answered");
        let mut all = String::new();
        for key in keys {
            let kind: String = cmd("TYPE")
                .arg(&key)
                .query_async(&mut connection)
                .await
                .expect("answered");
            let command: &[&str] = match kind.as_str() {
                "string" => &["GET"],
                "list" => &["LRANGE", "0", "-1"],
                "hash" => &["HGETALL"],
                "set" => &["SMEMBERS"],
                "zset" => &["ZRANGE", "0", "-1"],
                _ => &["XRANGE", "-", "+"],
            };
            let mut read = cmd(command[0]);
            read.arg(&key).arg(&command[1..]);
            let found: redis::Value = read.query_async(&mut connection).await.expect("answered");
            writeln!(all, "{key} {found:?}").expect("a text grows");
        }
        all
    }
}

#[tokio::test]
async fn a_task_gets_what_its_pool_allows_as_it_is_then() {
    let stage = Stage::start().await;
    let from = json!([{"arg": "token", "secret": "db", "key": "password"}]);
    let id = stage
        .send("umbel.echo", r#"{"n": 1, "token": "in its place"}"#, &from)
        .await;
    let told = value(&stage.redis, &id).await;
    assert_eq!(told["kwargs"], json!({"n": 1, "token": CANARY}), "{told}");
    // The Secret changes, the worker does not.
    std::fs::write(stage.folder.path().join("db/password"), "next").expect("written");
    let id = stage.send("umbel.echo", "{}", &from).await;
    assert_eq!(value(&stage.redis, &id).await["kwargs"], json!({"token": "next"}));

    for (from, why) in [
        (
            json!([{"arg": "a", "secret": "other", "key": "password"}]),
            "does not let tasks have",
        ),
        (
            json!([{"arg": "a", "secret": "db", "key": "../other/password"}]),
            "is no key",
        ),
        (
            json!([{"arg": "a", "secret": "../secrets/other", "key": "password"}]),
            "does not let tasks have",
        ),
        (json!([{"arg": "a", "secret": "db", "key": "..data"}]), "is no key"),
        (json!({"arg": "a"}), "is no list"),
    ] {
        let id = stage.send("umbel.echo", "{}", &from).await;
        let (class, words) = failure(&stage.redis, &id).await;
        assert_eq!(class, "ArgumentRefused", "{from}");
        assert!(words.to_string().contains(why), "{from}: {words}");
    }
}

#[tokio::test]
async fn c05_a_value_that_is_not_there_yet_is_waited_for_and_is_in_no_message() {
    let stage = Stage::start().await;
    let late =
        json!([{"arg": "token", "secret": "db", "key": "password"}, {"arg": "late", "secret": "late", "key": "key"}]);
    let id = stage.send("umbel.echo", "{}", &late).await;
    // Tasks that fail with it, at once and after their tries: it is in none of what is kept of them.
    let from = json!([{"arg": "token", "secret": "db", "key": "password"}]);
    let fails = stage.send("umbel.sleep", "{}", &from).await;
    failure(&stage.redis, &fails).await;
    let (_, words) = failure(&stage.redis, &id).await;
    assert!(words.to_string().contains("late"), "{words}");
    let mut seen = String::new();
    eventually(SOON, "both are dead letters", async || {
        seen = stage.contents().await;
        let dead = seen
            .lines()
            .find(|line| line.starts_with("umbel:dead:celery"))
            .unwrap_or_default();
        dead.contains(&id) && dead.contains(&fails)
    })
    .await;
    let tries = r#"\"retries\": 1"#;
    assert!(
        seen.contains("umbel_args_from") && seen.contains(tries),
        "one was tried again: {seen}"
    );
    for text in [&seen, &stage.worker.log()] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    std::fs::create_dir(stage.folder.path().join("late")).expect("a folder");
    std::fs::write(stage.folder.path().join("late/key"), "here").expect("a file");
    let id = stage.send("umbel.echo", "{}", &late).await;
    let told = value(&stage.redis, &id).await;
    assert_eq!(told["kwargs"], json!({"token": CANARY, "late": "here"}));
}
