//! `umbel task retry`: failed tasks back into their queues.

use std::process::ExitCode;

use serde_json::json;
use umbel_broker::{Aside, AsideFilter, AsideKind, Broker, Replayed};

use crate::args::{Global, TaskRetry};
use crate::broker::{self, Way};
use crate::output::{self, Column, Row};

/// Entries looked at in one call.
const TOGETHER: u64 = 1000;

pub(crate) async fn run(global: &Global, retry: &TaskRetry) -> anyhow::Result<ExitCode> {
    let TaskRetry { ids, queue, dry_run } = retry;
    let way = broker::of_queue(global, queue.as_deref()).await?;
    let queues = queues(global, &way, queue.as_deref(), &["dead", "quarantine"]).await?;
    let (mut rows, mut is_whole) = (Vec::new(), true);
    for id in ids {
        let (state, from, on) = match find(&way.broker, &queues, id).await? {
            None => ("not found", "", String::new()),
            Some((kind, queue, _)) if *dry_run => ("would be put back", kind.word(), queue),
            Some((kind, queue, aside)) => {
                let fate = way.broker.replay(kind, &queue, &[aside.entry]).await?.pop();
                let state = match fate {
                    Some(Replayed::Back) => "put back",
                    Some(Replayed::WrongType { .. }) => "refused: its list's key holds another type",
                    Some(Replayed::Gone) | None => "gone meanwhile",
                };
                (state, kind.word(), queue)
            }
        };
        is_whole &= matches!(state, "put back" | "would be put back");
        if state == "not found" {
            output::say(&format!(
                "task {id} is not among the dead letters of {}",
                if queues.is_empty() {
                    "any queue".to_owned()
                } else {
                    queues.join(", ")
                }
            ));
        }
        rows.push(Row {
            name: format!("task/{id}"),
            cells: vec![id.clone(), state.to_owned(), on.clone(), from.to_owned()],
            value: json!({"id": id, "state": state, "queue": on, "from": from, "dryRun": dry_run}),
        });
    }
    let columns = [
        Column("ID", false),
        Column("STATE", false),
        Column("QUEUE", false),
        Column("FROM", false),
    ];
    output::list(global.output, &columns, rows)?;
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The queues to look in: the one that was named or is the only one, or with an address all that have such a key.
pub(crate) async fn queues(
    global: &Global,
    way: &Way,
    named: Option<&str>,
    kinds: &[&str],
) -> anyhow::Result<Vec<String>> {
    if named.is_some() || !global.server.is_given() {
        return Ok(vec![way.queue.clone()]);
    }
    Ok(way.broker.queues_with(kinds).await?)
}

/// The newest message of this task that was laid aside.
async fn find(broker: &Broker, queues: &[String], id: &str) -> anyhow::Result<Option<(AsideKind, String, Aside)>> {
    for kind in [AsideKind::Dead, AsideKind::Quarantine] {
        for queue in queues {
            let mut next = Some(AsideFilter {
                is_reverse: true,
                id: Some(id.to_owned()),
                ..AsideFilter::default()
            });
            while let Some(filter) = next {
                let page = broker.aside(kind, queue, filter, TOGETHER).await?;
                if let Some(aside) = page.entries.into_iter().next() {
                    return Ok(Some((kind, queue.clone(), aside)));
                }
                next = page.next;
            }
        }
    }
    Ok(None)
}
