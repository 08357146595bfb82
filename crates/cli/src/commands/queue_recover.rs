//! `umbel queue recover`.

use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::json;
use umbel_broker::{Broker, Recovered};

use crate::args::{Global, Recover};
use crate::broker;
use crate::confirm::{INTERRUPTED, Interrupt, is_confirmed, progress};
use crate::output::{self, Column, Row};

pub(crate) async fn run(global: &Global, recover: &Recover) -> anyhow::Result<ExitCode> {
    let ways = broker::of_queues(global, &recover.names).await?;
    let mut rows = Vec::new();
    let mut is_stuck = false;
    if recover.all && !recover.care.dry_run {
        let mut back = 0;
        for (_, way) in &ways {
            back += pass(&way.broker, &way.queue, true, true, &Interrupt::never())
                .await?
                .back;
        }
        output::say("warning: with --all, tasks that run now go on and are run a second time");
        let question = format!(
            "Hand back {back} messages of {}, also of workers that live?",
            recover.names.join(", ")
        );
        if !is_confirmed(recover.care.yes, &question)? {
            return Ok(ExitCode::FAILURE);
        }
    }
    let interrupt = Interrupt::listen()?; // Not while somebody is asked.
    for (name, way) in &ways {
        let done = pass(&way.broker, &way.queue, recover.all, recover.care.dry_run, &interrupt)
            .await
            .with_context(|| format!("recover queue {name}"))?;
        let Recovered {
            back,
            alive,
            early,
            stuck,
        } = done;
        is_stuck |= stuck > 0;
        rows.push(Row {
            name: format!("taskqueue.umbel.dev/{name}"),
            cells: vec![
                name.clone(),
                back.to_string(),
                alive.to_string(),
                early.to_string(),
                stuck.to_string(),
            ],
            value: json!({"queue": name, "recovered": back, "alive": alive, "acknowledged": early, "stuck": stuck,
                "dryRun": recover.care.dry_run}),
        });
    }
    let columns = [
        Column("QUEUE", false),
        Column(
            if recover.care.dry_run {
                "WOULD-RECOVER"
            } else {
                "RECOVERED"
            },
            false,
        ),
        Column("WITH-LIVE-WORKERS", false),
        Column("ACKNOWLEDGED", true),
        Column("STUCK", true),
    ];
    output::list(global.output, &columns, rows)?;
    if is_stuck {
        output::say("a list's key holds another type: its messages stay under their leases");
    }
    Ok(if interrupt.is_asked() {
        ExitCode::from(INTERRUPTED)
    } else if is_stuck {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// All leases of now, once.
async fn pass(
    broker: &Broker,
    queue: &str,
    is_all: bool,
    is_dry: bool,
    interrupt: &Interrupt,
) -> anyhow::Result<Recovered> {
    let lids = broker.leases().await?;
    let bar = progress(lids.len() as u64, "leases looked at");
    let (mut rest, mut sum) = (lids.as_slice(), Recovered::default());
    while !rest.is_empty() && !interrupt.is_asked() {
        let (looked, done) = broker.recover(queue, is_all, is_dry, rest).await?;
        sum += done;
        rest = &rest[looked.clamp(1, rest.len())..];
        bar.inc(looked as u64);
    }
    bar.finish_and_clear();
    Ok(sum)
}
