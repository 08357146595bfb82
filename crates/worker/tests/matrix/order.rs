//! Priorities: a worker that finds everything waiting takes it in the order that the producers asked for.

use serde_json::json;
use umbel_client::{Options, Task};
use umbel_testkit::{App, CeleryOptions, CeleryWorker, Event, History, Redis, eventually};

use crate::cell::{Outcome, Producer, Runner};
use crate::ours::Sends;
use crate::report::Report;
use crate::stage::{Client, client, database};
use crate::support::{LATER, test_worker};

/// As they are sent; between equal ones the order stays. 1 and 2 share their list with 0, 8 with 6.
const PRIORITIES: [u8; 8] = [9, 4, 0, 6, 2, 0, 8, 9];
/// Their places in that list, in the order in which they must run.
const ORDER: [usize; 8] = [2, 4, 5, 1, 3, 6, 0, 7];

#[tokio::test]
async fn urgent_ones_first_whoever_sends_and_runs() {
    let redis = Redis::start().await;
    let history = History::new();
    let app = App::at(&redis.url());
    let mut reports = Vec::new();
    let mut clients = Vec::new();
    for producer in Producer::ALL {
        clients.push((producer, client(producer, &app, &Options::default()).await));
    }
    for runner in Runner::ALL {
        // One list of ids a producer, each on a queue of its own.
        let mut sent: Vec<Vec<String>> = Vec::new();
        for (producer, client) in &mut clients {
            let queue = format!("of {producer}").replace(' ', "-");
            let app = App::at(&database(&redis, runner));
            sent.push(send(client, &app, &queue).await);
        }
        let queues: Vec<String> = Producer::ALL
            .iter()
            .map(|by| format!("of {by}").replace(' ', "-"))
            .collect();
        let _worker = worker(runner, &redis, &queues.join(","), &history).await;
        let all: usize = sent.iter().map(Vec::len).sum();
        eventually(LATER, "all have run", async || {
            let order = history.order(Event::Done);
            sent.iter().flatten().filter(|id| order.contains(id)).count() == all
        })
        .await;
        let order = history.order(Event::Started);
        let mut report = Report::new(format!("order, run by {runner}, sent by:"), &Producer::ALL);
        let outcomes = sent.iter().map(|ids| judge(ids, &order)).collect();
        report.line("priorities", outcomes);
        reports.push(report);
    }
    reports.iter().for_each(Report::show);
    reports.iter().for_each(Report::check);
}

async fn send(client: &mut Client, app: &App, queue: &str) -> Vec<String> {
    let mut ids = Vec::new();
    for priority in PRIORITIES {
        match client {
            Client::Umbel(ours) => {
                let task = Task::new("test.work")
                    .args(&[0.0])
                    .queue(queue)
                    .priority(priority.into());
                ids.push(ours.send(app, Sends::Task(task)).await.id().to_owned());
            }
            Client::Celery(celery) => {
                let text = format!("sig('test.work', 0.0).set(queue='{queue}', priority={priority})");
                ids.push(celery.apply(&text, Some(app)).await.id);
            }
            Client::Node(_) => {}
        }
    }
    ids
}

fn judge(ids: &[String], order: &[String]) -> Outcome {
    if ids.is_empty() {
        return Outcome::Gap("celery-node sends a name and arguments, no options");
    }
    let ran: Vec<usize> = order
        .iter()
        .filter_map(|id| ids.iter().position(|sent| sent == id))
        .collect();
    if ran == ORDER {
        Outcome::Right
    } else {
        Outcome::Wrong(format!("ran in the order {ran:?}, not {ORDER:?}"))
    }
}

/// One slot, so that one runs after the other.
async fn worker(runner: Runner, redis: &Redis, queues: &str, history: &History) -> Box<dyn std::any::Any> {
    match runner {
        Runner::Umbel => {
            let flags = ["--concurrency", "1", "--queue", queues];
            Box::new(test_worker(&database(redis, runner), history, &flags))
        }
        Runner::Celery57 => {
            let options = CeleryOptions {
                queues,
                settings: json!({"worker_prefetch_multiplier": 1}),
                environment: vec![history.environment()],
                ..CeleryOptions::default()
            };
            Box::new(CeleryWorker::start(&database(redis, runner), &options).await)
        }
    }
}
