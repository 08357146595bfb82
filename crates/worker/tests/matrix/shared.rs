//! Chords whose members are run by our worker and by two versions of Celery's at once: everybody counts, one dispatches.

use std::collections::BTreeSet;

use serde_json::json;
use umbel_client::{Options, Task, chord};
use umbel_testkit::{App, CeleryOptions, CeleryVersion, CeleryWorker, Event, History, Redis};

use crate::cell::Producer;
use crate::ours::{Ours, Sends};
use crate::stage::{Client, client};
use crate::support::{LATER, admitted, test_worker};

const MEMBERS: usize = 45;
const SENDERS: [Producer; 3] = [
    Producer::Umbel,
    Producer::Celery(CeleryVersion::V5_6),
    Producer::Celery(CeleryVersion::V5_7),
];

/// Its value, and the id of its body.
async fn run(client: &mut Client, app: &App) -> (String, String) {
    match client {
        Client::Umbel(ours) => {
            let id = uuid::Uuid::new_v4().to_string();
            let members = (0..MEMBERS).map(|_| Task::new("test.work").args(&[0.02]));
            let body = Task::new("test.work").args(&[0.0]).immutable().id(&id);
            let handle = ours.send(app, Sends::Workflow(chord(members, body))).await;
            let value = Ours::result(&handle, LATER).await.expect("it succeeds");
            (value, id)
        }
        Client::Celery(celery) => {
            let text =
                format!("chord([sig('test.work', 0.02)] * {MEMBERS}, sig('test.work', 0.0).set(immutable=True))");
            let sent = celery.apply(&text, Some(app)).await;
            (celery.result(&sent, LATER).await.expect("it succeeds"), sent.id)
        }
        Client::Node(_) => unreachable!("it has no workflows"),
    }
}

#[tokio::test]
async fn a_chord_is_counted_by_three_kinds_of_workers() {
    let redis = Redis::start().await;
    let history = History::new();
    let app = App::at(&redis.url());
    let options = |version| CeleryOptions {
        version,
        settings: json!({"worker_prefetch_multiplier": 1}),
        environment: vec![history.environment()],
        ..CeleryOptions::default()
    };
    let (newer, older) = (options(CeleryVersion::V5_7), options(CeleryVersion::V5_6));
    let ours = test_worker(&app.broker, &history, &["--concurrency", "1"]);
    let (newer, older, ()) = tokio::join!(
        CeleryWorker::start(&app.broker, &newer),
        CeleryWorker::start(&app.broker, &older),
        admitted(&redis, 1)
    );
    let runners = [ours.pid(), newer.process.pid(), older.process.pid()];
    let mut sent = 0;
    for sender in SENDERS {
        let mut client = client(sender, &app, &Options::default()).await;
        for round in 0..4 {
            let (value, body) = run(&mut client, &app).await;
            sent += MEMBERS + 1;
            assert_eq!(value, "0.0", "{sender}, round {round}");
            assert_eq!(
                history.count(Event::Started, &body),
                1,
                "{sender}, round {round}: the body runs once"
            );
        }
    }
    assert_eq!(history.total(Event::Started), sent, "no member runs twice");
    let took: BTreeSet<u32> = history.processes(Event::Started).into_keys().collect();
    assert_eq!(took, BTreeSet::from(runners), "all three took part");
}
