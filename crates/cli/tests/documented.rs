//! The examples of docs/cli.md, one after the other, as they stand there.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests fail as tests do.

mod support;

use support::{SOON, umbel, umbel_worker};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Redis, eventually};

/// Words of a line as a shell reads them: single quotes only.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut is_quoted) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        match c {
            '\'' => is_quoted = !is_quoted,
            ' ' if !is_quoted => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words
}

#[tokio::test]
async fn the_examples_of_the_documentation_work() {
    let server = Redis::start().await;
    let url = server.url();
    let _worker = umbel_worker(&server, &["--lease", "2s", "--renew-every", "600ms"]);
    let mut redis = server.connection().await;
    let document = include_str!("../../../docs/cli.md");
    let examples: Vec<&str> = document
        .lines()
        .filter_map(|line| line.strip_prefix("$ umbel "))
        .collect();
    assert!(examples.len() > 20, "{examples:?}");
    for example in examples {
        if example.contains("dead replay") || example.starts_with("task retry") {
            eventually(SOON, "there is a dead letter", async || {
                redis.xlen::<_, u64>("umbel:dead:celery").await.unwrap() > 0
            })
            .await;
        }
        let words = words(example);
        let done = umbel(&url, &words.iter().map(String::as_str).collect::<Vec<_>>()).await;
        assert_eq!(done.code, 0, "{example}: {}{}", done.out, done.err);
        let expected = match example {
            "task send umbel.echo --args '[2, 3]' --wait" => "[2, 3]",
            "queue peek celery --in delayed --args -o json" => "later",
            "queue purge idle --dry-run" | "queue purge idle --in waiting --yes" => "1000",
            "queue dead replay celery --all --rate 100" => "1 messages put back",
            "task cancel far" => "REVOKED",
            "task retry again" => "put back",
            _ => "",
        };
        assert!(done.out.contains(expected), "{example}: {}", done.out);
    }
}
