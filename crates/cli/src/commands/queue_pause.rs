//! `umbel queue pause`, `umbel queue resume`.

use serde_json::json;

use crate::args::{Format, Global, Names};
use crate::broker;
use crate::output::{self, Column, Row};

pub(crate) async fn run(global: &Global, names: &Names, is_paused: bool) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for (name, way) in broker::of_queues(global, &names.names).await? {
        let was = way.broker.queue_policy(&way.queue).await?.is_paused;
        let now = if is_paused {
            way.broker.pause(&way.queue).await?
        } else {
            way.broker.resume(&way.queue).await?
        };
        rows.push(Row {
            name: format!("taskqueue.umbel.dev/{name}"),
            cells: vec![
                name.clone(),
                now.is_paused.to_string(),
                if was == now.is_paused { "no" } else { "yes" }.to_owned(),
            ],
            value: json!({"queue": name, "paused": now.is_paused, "changed": was != now.is_paused}),
        });
    }
    if is_paused && global.output == Format::Table {
        output::say("tasks that run go on; `umbel queue resume` ends the pause");
    }
    let columns = [
        Column("QUEUE", false),
        Column("PAUSED", false),
        Column("CHANGED", false),
    ];
    output::list(global.output, &columns, rows)
}
