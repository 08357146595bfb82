//! `umbel task cancel`: revoked wherever it is, and what became of it.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use umbel_broker::Broker;
use umbel_client::{Client, Options};

use super::{task_object, task_retry};
use crate::args::{Cancel, Global};
use crate::broker;
use crate::output::{self, Column, Row};

/// For so long a task that waits is dropped when its turn comes: longer than backlogs last.
const WEEK: f64 = 7.0 * 86_400.0;
/// And a delayed one for so long after it is due.
const BEHIND: f64 = 3.0 * 3600.0;
/// Pause between two looks at the results.
const LOOK: Duration = Duration::from_millis(100);
/// States that nothing changes any more.
const FINAL: [&str; 3] = ["SUCCESS", "FAILURE", "REVOKED"];

/// What is known of a task.
struct Seen {
    id: String,
    state: String,
    note: String,
    runs_on: bool,
}

pub(crate) async fn run(global: &Global, cancel: &Cancel) -> anyhow::Result<ExitCode> {
    if let Some((api, names)) = task_object::named(global, &cancel.ids).await? {
        return task_object::cancel(global, &api, &names, cancel).await;
    }
    let Cancel {
        ids,
        terminate,
        signal,
        queue,
        timeout,
        dry_run,
    } = cancel;
    let way = broker::of_queue(global, queue.as_deref()).await?;
    let queues = task_retry::queues(global, &way, queue.as_deref(), &["delayed"]).await?;
    let broker = way.broker.clone();
    let client = way.client(global, Options::default()).await?;

    let mut open = Vec::new();
    let mut seen: HashMap<String, Seen> = HashMap::new();
    for id in ids {
        let state = client.handle(id).state().await?.name;
        if FINAL.contains(&state.as_str()) {
            let note = "had ended before".to_owned();
            seen.insert(
                id.clone(),
                Seen {
                    id: id.clone(),
                    state,
                    note,
                    runs_on: false,
                },
            );
        } else {
            open.push(id.clone());
        }
    }
    if *dry_run {
        let running = running(&broker).await?;
        for id in open {
            let state = client.handle(&id).state().await?.name;
            let note = running
                .get(&id)
                .map_or_else(|| "waits, or is not known".to_owned(), |node| format!("runs on {node}"));
            seen.insert(
                id.clone(),
                Seen {
                    id,
                    state,
                    note,
                    runs_on: false,
                },
            );
        }
    } else if !open.is_empty() {
        let how = umbel_client::Revoke {
            terminate: *terminate,
            signal: signal.clone(),
            ..umbel_client::Revoke::default()
        };
        let heard = client.revoke(&open, &how).await?;
        #[allow(clippy::cast_precision_loss)] // Milliseconds since 1970.
        let now = broker.time().await? as f64 / 1000.0;
        for id in &open {
            let mut until = now + WEEK;
            for queue in &queues {
                if let Some(due) = broker.parked_until(queue, id).await? {
                    until = until.max(due + BEHIND);
                }
            }
            broker.revoke(std::slice::from_ref(id), now, until).await?;
        }
        for one in ends(&client, &broker, &open, heard, *terminate, *timeout).await? {
            seen.insert(one.id.clone(), one);
        }
    }
    let is_good = seen.values().all(|one| !one.runs_on);
    let rows = ids.iter().filter_map(|id| seen.remove(id)).map(|one| Row {
        name: format!("task/{}", one.id),
        value: json!({"id": one.id, "state": one.state, "note": one.note, "dryRun": dry_run}),
        cells: vec![one.id, one.state, one.note],
    });
    let columns = [Column("ID", false), Column("STATE", false), Column("NOTE", false)];
    output::list(global.output, &columns, rows.collect())?;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Node names by the ids of the tasks that run there now.
async fn running(broker: &Broker) -> anyhow::Result<HashMap<String, String>> {
    let workers = broker.workers().await?;
    let beats = workers.into_iter().filter_map(|worker| worker.heartbeat);
    Ok(beats
        .flat_map(|beat| {
            let node = beat.node;
            beat.running.into_iter().map(move |run| (run.id, node.clone()))
        })
        .collect())
}

/// Waits for the ends of revoked tasks, as long as an end can be expected.
async fn ends(
    client: &Client,
    broker: &Broker,
    ids: &[String],
    heard: u64,
    is_terminated: bool,
    timeout: Duration,
) -> anyhow::Result<Vec<Seen>> {
    let deadline = Instant::now() + timeout;
    loop {
        let running = running(broker).await?;
        let mut seen = Vec::with_capacity(ids.len());
        let mut is_expected = false;
        for id in ids {
            let state = client.handle(id).state().await?.name;
            let node = running.get(id).filter(|_| !FINAL.contains(&state.as_str()));
            let (note, runs_on) = match (state.as_str(), node) {
                ("REVOKED", _) => ("cancelled".to_owned(), false),
                (last, _) if FINAL.contains(&last) => ("ended before it was stopped".to_owned(), false),
                (_, Some(node)) if is_terminated => (format!("is being stopped on {node}"), true),
                (_, Some(node)) => (format!("runs on {node}; --terminate stops it"), true),
                _ if heard == 0 => ("no worker listens: dropped when one takes it".to_owned(), false),
                _ => ("dropped when its turn comes".to_owned(), false),
            };
            let is_final = FINAL.contains(&state.as_str());
            is_expected |= !is_final && heard > 0 && (!runs_on || is_terminated);
            seen.push(Seen {
                id: id.clone(),
                state,
                note,
                runs_on,
            });
        }
        if !is_expected || Instant::now() >= deadline {
            return Ok(seen);
        }
        tokio::time::sleep(LOOK).await;
    }
}
