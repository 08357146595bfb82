//! Workflows of a real Celery client, run by our workers, also beside Celery's.

use std::time::Duration;

use serde_json::{Value, json};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, CeleryOptions, CeleryWorker, Process, Redis, eventually};

use crate::support::{LATER, SOON, umbel_worker};

#[allow(clippy::needless_pass_by_value)] // Called with literals.
fn echo(args: Value) -> Value {
    json!({"args": args, "kwargs": {}})
}

/// Workflows with what their last task returns.
fn workflows() -> Vec<(&'static str, Value)> {
    vec![
        (
            "chain(e(1), e(2), e(3))",
            echo(json!([echo(json!([echo(json!([1])), 2])), 3])),
        ),
        (
            "chain(s(0.05), s(0.1).set(immutable=True), e(9))",
            echo(json!([0.1, 9])),
        ),
        (
            "group(e(i) for i in range(3))",
            json!([echo(json!([0])), echo(json!([1])), echo(json!([2]))]),
        ),
        (
            "chord([e(1), s(0.1), e(2)], e('body'))",
            echo(json!([[echo(json!([1])), 0.1, echo(json!([2]))], "body"])),
        ),
        (
            "chain(e(1), group(e(2), e(3)), e('end'))",
            echo(json!([
                [echo(json!([echo(json!([1])), 2])), echo(json!([echo(json!([1])), 3]))],
                "end"
            ])),
        ),
        (
            "chord([chord([e(1), e(2)], e('in')), e(3)], e('out'))",
            echo(json!([
                [
                    echo(json!([[echo(json!([1])), echo(json!([2]))], "in"])),
                    echo(json!([3]))
                ],
                "out"
            ])),
        ),
        (
            "chord([chain(e(1), e(2)), chain(e(3), e(4))], e())",
            echo(json!([[
                echo(json!([echo(json!([1])), 2])),
                echo(json!([echo(json!([3])), 4]))
            ]])),
        ),
        ("chord([], e('empty'))", echo(json!([[], "empty"]))),
        ("task('celery.map', task=s(0), it=[0, 0.05])", json!([0, 0.05])),
        (
            "task('celery.starmap', task=e(), it=[[1, 2], [3]])",
            json!([echo(json!([1, 2])), echo(json!([3]))]),
        ),
        ("chord([s(0)] * 200, e())", echo(json!([vec![0; 200]]))),
        // Chains and groups in a header, a group as a body, a chord in a chain in a chord.
        (
            "chord([chain(s(0), group(e(1), e(2))), s(0)], e())",
            echo(json!([[[echo(json!([0, 1])), echo(json!([0, 2]))], 0]])),
        ),
        (
            "chord([e(1), e(2)], group(e('a'), e('b')))",
            json!([
                echo(json!([[echo(json!([1])), echo(json!([2]))], "a"])),
                echo(json!([[echo(json!([1])), echo(json!([2]))], "b"]))
            ]),
        ),
        (
            "chord([chain(s(0), chord([s(0).set(immutable=True)] * 2, e('in')), e('then')), s(0)], e('out'))",
            echo(json!([[echo(json!([echo(json!([[0, 0], "in"])), "then"])), 0], "out"])),
        ),
        (
            "chord([s(0).set(immutable=True), e()], e().set(immutable=True))",
            echo(json!([])),
        ),
        ("chain(s(0), chord([], e('empty')))", echo(json!([[], "empty"]))),
        (
            "chunks(e(), [[1], [2], [3]], 2)",
            json!([[echo(json!([1])), echo(json!([2]))], [echo(json!([3]))]]),
        ),
    ]
}

async fn all_run(celery: &mut Celery) {
    for (workflow, expected) in workflows() {
        assert_eq!(celery.canvas(workflow, SOON).await, Ok(expected), "{workflow}");
    }
}

#[tokio::test]
async fn workflows_run_to_their_end_and_leave_nothing() {
    let redis = Redis::start().await;
    let _worker = umbel_worker(&redis.url(), &[]);
    let mut celery = Celery::client(&redis.url()).await;
    all_run(&mut celery).await;
    let mut connection = redis.connection().await;
    for suffix in ["j", "s", "t", "d"] {
        let left: Vec<String> = connection
            .keys(format!("celery-taskset-meta-*.{suffix}"))
            .await
            .expect("the server answers");
        assert_eq!(left, Vec::<String>::new());
    }
}

#[tokio::test]
async fn workflows_run_with_results_in_another_database() {
    let redis = Redis::start().await;
    let results = redis.url().replace("/0", "/1");
    let _worker = umbel_worker(&redis.url(), &["--result-url", &results]);
    let mut celery = Celery::client_with(&redis.url(), &results, &json!({})).await;
    all_run(&mut celery).await;
}

#[tokio::test]
async fn celerys_workers_and_ours_share_chords() {
    let redis = Redis::start().await;
    let _ours = umbel_worker(&redis.url(), &["--concurrency", "2"]);
    let options = CeleryOptions {
        queues: "celery",
        ..CeleryOptions::default()
    };
    let _theirs = CeleryWorker::start(&redis.url(), &options).await;
    let mut celery = Celery::client(&redis.url()).await;
    for _ in 0..3 {
        let expected = echo(json!([vec![json!(0.02); 30]]));
        assert_eq!(celery.canvas("chord([s(0.02)] * 30, e())", LATER).await, Ok(expected));
    }
}

/// In a chain, where one message carries all of it: 3 MiB and 120,000 keys.
#[tokio::test]
async fn a_chord_of_ten_thousand_inside_a_chain_completes() {
    let redis = Redis::start().await;
    let _worker = umbel_worker(&redis.url(), &["--concurrency", "64"]);
    let mut celery = Celery::client(&redis.url()).await;
    let workflow = "chain(s(0), chord([s(0).set(immutable=True)] * 10000, e()), e('end'))";
    let expected = echo(json!([echo(json!([vec![0; 10_000]])), "end"]));
    let sent = celery.apply(workflow, None).await;
    // By the id alone: with the chain's own result Celery's client looks at all ten thousand parents time and again.
    let answer = celery.get(&sent.id, Duration::from_mins(2)).await;
    assert_eq!(answer, Ok(expected));
}

/// Members that end together are counted in one call, and one chord that cannot be counted holds up no other.
#[tokio::test]
async fn parts_of_members_that_end_together_are_counted_together() {
    let redis = Redis::start().await;
    let mut celery = Celery::client(&redis.url()).await;
    let broken = celery
        .apply("chord([e(i) for i in range(20)], e('broken'))", None)
        .await;
    let mut connection = redis.connection().await;
    let waiting: Vec<String> = connection.lrange("celery", 0, 0).await.expect("the server answers");
    let message: Value = serde_json::from_str(&waiting[0]).expect("it is JSON");
    let group = message["headers"]["group"].as_str().expect("it is a member").to_owned();
    let _: () = connection
        .set(format!("celery-taskset-meta-{group}.j"), "no set")
        .await
        .expect("the server answers");
    let mut worker = umbel_worker(&redis.url(), &["--concurrency", "64"]);
    worker.says(SOON, "cannot be counted and will not end").await;
    eventually(SOON, "all members of the broken one have ended", async || {
        connection.hlen::<_, usize>("umbel:unacked").await.unwrap_or(1) == 0
    })
    .await;
    drop(worker);
    let sent = celery.apply("chord([e(i) for i in range(500)], e('body'))", None).await;
    let before = calls(&redis, "sadd").await;
    let _worker = umbel_worker(&redis.url(), &["--concurrency", "64"]);
    let members: Vec<Value> = (0..500).map(|index| echo(json!([index]))).collect();
    assert_eq!(celery.get(&sent.id, SOON).await, Ok(echo(json!([members, "body"]))));
    // Each call that counts parts of a chord notes them by one SADD.
    let used = calls(&redis, "sadd").await - before;
    assert!((1..250).contains(&used), "{used} calls for 500 members");
    assert_eq!(celery.state(&broken.id).await.0, "PENDING");
}

/// How often a command was called, in scripts as well.
async fn calls(redis: &Redis, command: &str) -> u64 {
    let info: String = umbel_testkit::redis::cmd("INFO")
        .arg("commandstats")
        .query_async(&mut redis.connection().await)
        .await
        .expect("the server answers");
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
}

/// A part that is no JSON, and a body that asks for more than a worker may make: who waits for the body is told.
#[tokio::test]
async fn a_chord_that_cannot_be_completed_fails() {
    let redis = Redis::start().await;
    let mut celery = Celery::client(&redis.url()).await;
    let sent = celery.apply("chord([s(0), s(0.3)], e())", None).await;
    // A foreign worker has written a part of another shape.
    let mut connection = redis.connection().await;
    let waiting: Vec<String> = connection.lrange("celery", 0, -1).await.expect("the server answers");
    let message: Value = serde_json::from_str(&waiting[0]).expect("it is JSON");
    let group = message["headers"]["group"].as_str().expect("it is a member").to_owned();
    let key = format!("celery-taskset-meta-{group}");
    let _: usize = connection
        .zadd(format!("{key}.j"), "[1]", 7)
        .await
        .expect("the server answers");
    let _: usize = connection
        .incr(format!("{key}.s"), 1)
        .await
        .expect("the server answers");
    let _worker = umbel_worker(&redis.url(), &[]);
    let raised = celery.result(&sent, SOON).await.expect_err("no body can be sent");
    assert_eq!(raised.exc_type, "ChordError");
    assert!(raised.message.contains("chord part"), "{}", raised.message);
}

#[tokio::test]
async fn a_failed_step_fails_what_would_have_followed() {
    let redis = Redis::start().await;
    let _worker = umbel_worker(&redis.url(), &[]);
    let mut celery = Celery::client(&redis.url()).await;
    for workflow in ["chain(s('x'), e(1))", "chain(e(1), s('x'), e(2), e(3))"] {
        let raised = celery.canvas(workflow, SOON).await.expect_err(workflow);
        assert_eq!(raised.exc_type, "TypeError", "{workflow}");
    }
    assert!(celery.canvas("chord([e(1), s('x')], e())", SOON).await.is_err());
}

#[tokio::test]
async fn a_chord_ends_although_its_workers_are_killed() {
    let redis = Redis::start().await;
    let start = || umbel_worker(&redis.url(), &["--concurrency", "4"]);
    let mut workers: Vec<Process> = vec![start(), start()];
    let mut celery = Celery::client(&redis.url()).await;
    let killing = async {
        let mut connection = redis.connection().await;
        for round in 0..6 {
            // A part more each time: the kills fall into the middle of the chord.
            eventually(LATER, "parts come in", async || {
                let keys: Vec<String> = connection.keys("celery-taskset-meta-*.d").await.unwrap_or_default();
                let Some(key) = keys.first() else { return false };
                let parts: usize = connection.scard(key).await.unwrap_or(0);
                parts > round * 4
            })
            .await;
            let victim = round % 2;
            workers[victim].kill();
            workers[victim] = start();
        }
    };
    let expected = echo(json!([vec![json!(0.05); 60]]));
    let workflow = celery.canvas("chord([s(0.05)] * 60, e())", Duration::from_mins(1));
    let (answer, ()) = tokio::join!(workflow, killing);
    assert_eq!(answer, Ok(expected));
}
