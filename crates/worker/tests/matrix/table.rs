//! The big table: every case by every producer with every worker.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use umbel_client::Handle;
use umbel_testkit::{App, CeleryVersion, Sent, ServerKind};

use crate::cases::{CORE, cases};
use crate::cell::{Case, Expected, Outcome, Producer, Runner};
use crate::ours::Ours;
use crate::report::Report;
use crate::stage::{Client, Setup, Stage};
use crate::support::SOON;

/// A cell on its way.
enum Cell {
    Gap(&'static str),
    Umbel {
        handle: Handle,
        sent: f64,
        expected: Expected,
    },
    Celery {
        handle: Sent,
        sent: f64,
        expected: Expected,
    },
    Node {
        id: String,
        sent: f64,
        expected: Expected,
    },
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64() * 1e6)
}

async fn send(case: &Case, producer: Producer, client: &mut Client, runner: Runner, app: &App) -> Cell {
    if let Some((_, _, reason)) = case.gaps.iter().find(|(by, at, _)| (*by, *at) == (producer, runner)) {
        return Cell::Gap(reason);
    }
    let (sent, mut expected) = (now(), case.expected);
    match client {
        Client::Umbel(ours) => match case.ours {
            Err(reason) => Cell::Gap(reason),
            Ok(what) => Cell::Umbel {
                handle: ours.send(app, what()).await,
                sent,
                expected: case.ours_expects.unwrap_or(expected),
            },
        },
        Client::Celery(celery) => {
            let mut python = case.python;
            if let (Producer::Celery(CeleryVersion::V5_2), Some((text, value))) = (producer, case.python52) {
                (python, expected) = (text, Expected::Value(value));
            }
            Cell::Celery {
                handle: celery.apply(python, Some(app)).await,
                sent,
                expected,
            }
        }
        Client::Node(node) => match case.node {
            Err(reason) => Cell::Gap(reason),
            Ok(call) => {
                let parse = |text| serde_json::from_str(text).expect("the table has JSON");
                let id = node
                    .send(app, call.protocol, call.task, &parse(call.args), &parse(call.kwargs))
                    .await;
                Cell::Node { id, sent, expected }
            }
        },
    }
}

async fn judge(cell: Cell, client: &mut Client, patience: Duration) -> Outcome {
    match (cell, client) {
        (Cell::Gap(reason), _) => Outcome::Gap(reason),
        (Cell::Umbel { handle, sent, expected }, _) => expected.judge(sent, &Ours::result(&handle, patience).await),
        (Cell::Celery { handle, sent, expected }, Client::Celery(celery)) => {
            expected.judge(sent, &celery.result(&handle, patience).await)
        }
        (Cell::Node { id, sent, expected }, Client::Node(node)) => expected.judge(sent, &node.get(&id, patience).await),
        (Cell::Celery { .. } | Cell::Node { .. }, _) => unreachable!("a cell is judged by who sent it"),
    }
}

/// All cells of one producer, by worker and case: everything is sent before anything is read.
async fn column(producer: Producer, client: &mut Client, apps: &[(Runner, App)], cases: &[Case]) -> Vec<Vec<Outcome>> {
    let mut sent = Vec::new();
    for (runner, app) in apps {
        for case in cases {
            let mut app = app.clone();
            let more: serde_json::Map<String, Value> = serde_json::from_str(case.settings).expect("the table has JSON");
            app.settings
                .as_object_mut()
                .expect("settings are an object")
                .extend(more);
            sent.push(send(case, producer, client, *runner, &app).await);
        }
    }
    let mut sent = sent.into_iter();
    let mut outcomes = Vec::new();
    let mut patience = SOON;
    for _ in apps {
        let mut found = Vec::new();
        for cell in sent.by_ref().take(cases.len()) {
            found.push(judge(cell, client, patience).await);
            // All were sent long ago: where one is wrong, others are not waited for again and again.
            if matches!(found.last(), Some(Outcome::Wrong(_))) {
                patience = Duration::from_secs(2);
            }
        }
        outcomes.push(found);
    }
    outcomes
}

/// Runs a table, prints it, and fails when a cell is wrong.
pub(crate) async fn run(title: &str, setup: Setup, cases: &[Case]) {
    let mut stage = Stage::start(&setup).await;
    let (clients, apps) = stage.parts();
    let columns = clients
        .iter_mut()
        .map(|(producer, client)| column(*producer, client, apps, cases));
    let columns = futures::future::join_all(columns).await;
    let mut reports = Vec::new();
    for (at, (runner, _)) in apps.iter().enumerate() {
        let mut report = Report::new(
            format!("{title}, run by {runner} on {:?}, sent by:", setup.kind),
            &Producer::ALL,
        );
        for (number, case) in cases.iter().enumerate() {
            let outcomes = columns.iter().map(|column| column[at][number].clone()).collect();
            report.line(case.name, outcomes);
        }
        reports.push(report);
    }
    reports.iter().for_each(Report::show);
    reports.iter().for_each(Report::check);
}

/// Some of the rows.
pub(crate) fn rows(names: &[&str]) -> Vec<Case> {
    let found: Vec<Case> = cases().into_iter().filter(|case| names.contains(&case.name)).collect();
    assert_eq!(found.len(), names.len(), "each row is in the table");
    found
}

#[tokio::test]
async fn every_producer_with_every_worker() {
    run("everything", Setup::plain(ServerKind::Redis, &Runner::ALL), &cases()).await;
}

#[tokio::test]
async fn every_producer_on_valkey() {
    run("the core", Setup::plain(ServerKind::Valkey, &Runner::ALL), &rows(&CORE)).await;
}
