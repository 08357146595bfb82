//! Messages that kill their worker.

use serde_json::json;
use umbel_testkit::{Celery, Event, History, Process, Redis};

use crate::support::{LATER, admitted, borrowed, broker, depth, flags, laid_aside, test_worker};

#[tokio::test]
async fn w09_a_message_kills_its_worker_again_and_again() {
    let redis = Redis::start().await;
    let history = History::new();
    let start = || test_worker(&redis.url(), &history, &["--concurrency", "4", "--name", "pod@node"]);
    let mut worker = start();
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    let mut neighbours = celery.send_all("test.work", vec![json!([0.2]); 6], json!({})).await;
    let poison = celery.send("test.abort", json!([]), json!({})).await;
    neighbours.extend(celery.send_all("test.work", vec![json!([0.2]); 14], json!({})).await);
    history.enqueued(borrowed(&neighbours));
    history.enqueued([poison.as_str()]);
    let mut deaths = 0;
    // As a kubelet does: the container starts again under the same name, at once.
    let restarts = async |worker: &mut Process| {
        if worker.exit().is_some() {
            deaths += 1;
            *worker = start();
        }
    };
    let mut restarts = restarts;
    umbel_testkit::eventually(LATER, "the poison is buried", async || {
        restarts(&mut worker).await;
        !laid_aside(&redis, "dead", "celery").await.is_empty()
    })
    .await;
    assert_eq!(celery.wait_all(&neighbours, LATER).await.get("SUCCESS"), Some(&20));
    assert_eq!(deaths, 3);
    assert_eq!(history.count(Event::Started, &poison), 3);
    let dead = laid_aside(&redis, "dead", "celery").await;
    assert_eq!(dead, [("killed its worker 3 times".to_owned(), poison.clone())]);
    let raised = celery.get(&poison, LATER).await.expect_err("its caller learns it");
    assert_eq!(
        (raised.module.as_str(), raised.exc_type.as_str()),
        ("billiard.exceptions", "WorkerLostError")
    );
    let verdict = history.verdict(&[poison]);
    assert!(verdict.lost.is_empty(), "{verdict}");
    // Each of the first two deaths takes the neighbours that run and those whose ends Redis had not yet answered, three at
    // most of either; the third was its own affair: by then it ran alone.
    assert!(verdict.rerun <= 2 + 2 * (3 + 3), "{verdict}");
    let broker = broker(&redis.url()).await;
    let left = depth(&broker, "celery").await;
    assert_eq!((left.waiting, left.suspect, left.in_flight), (0, 0, 0));
}

/// Whatever way a program can end in, the message is known that it ran.
#[tokio::test]
async fn w09_stacks_and_memory_run_out() {
    for how in ["stack", "memory"] {
        let redis = Redis::start().await;
        let history = History::new();
        let url = redis.url();
        let start = || {
            let tasks = crate::support::test_tasks()
                .to_str()
                .expect("the checkout's path is text");
            let mut args = vec!["--as=3000000000", tasks];
            args.extend(flags(&url, &["--concurrency", "2", "--max-deliveries", "2"]));
            Process::start(std::path::Path::new("/usr/bin/prlimit"), args, &[history.environment()])
        };
        let mut worker = start();
        // Sweeps in the meantime, so that nobody waits for the grace of the next start.
        let _neighbour = test_worker(&url, &history, &["--queue", "other", "--max-deliveries", "2"]);
        admitted(&redis, 2).await;
        let mut celery = Celery::client(&url).await;
        let poison = celery.send("test.violent", json!([how]), json!({})).await;
        history.enqueued([poison.as_str()]);
        let mut deaths = 0;
        umbel_testkit::eventually(LATER, "the poison is buried", async || {
            if worker.exit().is_some() {
                deaths += 1;
                worker = start();
            }
            !laid_aside(&redis, "dead", "celery").await.is_empty()
        })
        .await;
        assert_eq!(deaths, 2, "{how}");
        let raised = celery.get(&poison, LATER).await.expect_err("its caller learns it");
        assert_eq!(raised.exc_type, "WorkerLostError", "{how}");
        let after = celery.send("test.work", json!([0.0]), json!({})).await;
        assert_eq!(celery.get(&after, LATER).await, Ok(json!(0.0)), "{how}");
    }
}

/// Nobody settles such a run; were its lease renewed, nobody would ever have the message again.
#[tokio::test]
async fn a_panic_outside_of_the_task_lets_its_lease_run_out() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut worker = test_worker(&redis.url(), &history, &["--concurrency", "2", "--max-deliveries", "2"]);
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    // At its first poll, which a runner does, and in a task of its own.
    let mut sent = Vec::new();
    for late in [false, true] {
        sent.push(celery.send("test.outside", json!([late]), json!({})).await);
    }
    for id in &sent {
        let raised = celery.get(id, LATER).await.expect_err("it never ends well");
        assert_eq!(raised.exc_type, "WorkerLostError");
        assert_eq!(
            history.count(Event::Started, id),
            2,
            "delivered again, as often as allowed"
        );
    }
    assert_eq!(worker.exit(), None, "the worker goes on");
    let after = celery.send("test.work", json!([0.0]), json!({})).await;
    assert_eq!(celery.get(&after, LATER).await, Ok(json!(0.0)));
    let broker = broker(&redis.url()).await;
    umbel_testkit::eventually(LATER, "nothing is held", async || {
        let left = depth(&broker, "celery").await;
        (left.waiting, left.suspect, left.in_flight) == (0, 0, 0)
    })
    .await;
}
