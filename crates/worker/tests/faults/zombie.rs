//! Workers that freeze for longer than their leases and come back.

use serde_json::json;
use umbel_testkit::{Celery, Event, History, Redis, Signal, eventually};

use crate::support::{LATER, SOON, admitted, borrowed, broker, depth, test_worker};

#[tokio::test]
async fn w05_a_worker_is_frozen_for_longer_than_its_lease() {
    let redis = Redis::start().await;
    let history = History::new();
    let flags = ["--concurrency", "4"];
    let workers = [
        test_worker(&redis.url(), &history, &flags),
        test_worker(&redis.url(), &history, &flags),
    ];
    admitted(&redis, 2).await;
    let mut celery = Celery::client(&redis.url()).await;
    let broker = broker(&redis.url()).await;
    for frozen in &workers {
        let before = history.total(Event::Started);
        let ids = celery.send_all("test.effects", vec![json!([1.0]); 8], json!({})).await;
        history.enqueued(borrowed(&ids));
        eventually(SOON, "all run", async || history.total(Event::Started) >= before + 8).await;
        frozen.signal(Signal::Stop);
        eventually(LATER, "the other one takes over and ends them", async || {
            ids.iter().all(|id| history.count(Event::Done, id) > 0)
        })
        .await;
        frozen.signal(Signal::Cont);
        let states = celery.wait_all(&ids, LATER).await;
        assert_eq!(states.get("SUCCESS"), Some(&8), "{states:?}");
        let probe = celery.send_all("test.work", vec![json!([0.0]); 20], json!({})).await;
        history.enqueued(borrowed(&probe));
        celery.wait_all(&probe, SOON).await;
        eventually(SOON, "nothing is held", async || {
            depth(&broker, "celery").await.in_flight == 0
        })
        .await;
    }
    let verdict = history.verdict(&[]);
    assert!(
        verdict.rerun >= 2,
        "nothing was taken over, so this proved nothing: {verdict}"
    );
    assert!(verdict.lost.is_empty() && verdict.stale.is_empty(), "{verdict}");
}

#[tokio::test]
async fn w07_tasks_keep_every_core_busy() {
    let redis = Redis::start().await;
    let history = History::new();
    let _worker = test_worker(&redis.url(), &history, &["--concurrency", "8"]);
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    let ids = celery.send_all("test.spin", vec![json!([1.2]); 8], json!({})).await;
    history.enqueued(borrowed(&ids));
    // Four rounds of two on two cores: longer than two leases in which the runtime hardly gets to run.
    eventually(LATER, "all are done", async || history.total(Event::Done) >= 8).await;
    let verdict = history.verdict(&[]);
    assert_eq!((verdict.rerun, verdict.stale.len()), (0, 0), "{verdict}");
}
