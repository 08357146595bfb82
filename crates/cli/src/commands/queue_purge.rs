//! `umbel queue purge`.

use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::json;
use umbel_broker::{Place, Purged};

use crate::args::{Global, Purge};
use crate::broker::{self, Way};
use crate::confirm::{INTERRUPTED, Interrupt, is_confirmed, progress};
use crate::output::{self, Column, Row};

/// Messages in one call: Redis is busy for about a millisecond with so many.
const TOGETHER: u64 = 500;

/// What there was, and what went.
struct Removed {
    place: Place,
    found: u64,
    purged: Purged,
}

pub(crate) async fn run(global: &Global, purge: &Purge) -> anyhow::Result<ExitCode> {
    let ways = broker::of_queues(global, &purge.names).await?;
    let mut all: Vec<(&str, &Way, Vec<Removed>)> = Vec::new();
    for (name, way) in &ways {
        let mut places = Vec::new();
        // What is delayed first: it comes back into the lists when it is due, or when its key is free.
        for place in [Place::Delayed, Place::Waiting, Place::Suspect] {
            if purge.places.iter().any(|asked| asked.place() == place) {
                places.push(Removed {
                    place,
                    found: way.broker.length(&way.queue, place).await?,
                    purged: Purged::default(),
                });
            }
        }
        all.push((name, way, places));
    }
    let total: u64 = all.iter().flat_map(|(_, _, places)| places).map(|one| one.found).sum();
    let mut is_whole = true;
    if !purge.care.dry_run {
        let question = format!("Remove {total} messages from {}, for good?", purge.names.join(", "));
        if !is_confirmed(purge.care.yes, &question)? {
            return Ok(ExitCode::FAILURE);
        }
        let (interrupt, bar) = (Interrupt::listen()?, progress(total, "removed"));
        for (name, way, places) in &mut all {
            for one in places {
                // As many as there were: producers and retries may go on meanwhile, and this ends all the same.
                while one.purged.messages < one.found && !interrupt.is_asked() {
                    let most = (one.found - one.purged.messages).min(TOGETHER);
                    let purged = way.broker.purge(&way.queue, one.place, most).await.with_context(|| {
                        format!("{} messages of queue {name} were removed before", one.purged.messages)
                    })?;
                    if purged.messages == 0 {
                        break;
                    }
                    one.purged.messages += purged.messages;
                    one.purged.settled += purged.settled;
                    bar.inc(purged.messages);
                }
            }
        }
        bar.finish_and_clear();
        is_whole = !interrupt.is_asked();
    }
    let columns = [
        Column("QUEUE", false),
        Column(if purge.care.dry_run { "WOULD-PURGE" } else { "PURGED" }, false),
        Column("WAITING", false),
        Column("DELAYED", false),
        Column("SUSPECT", false),
        Column("RUNS-SETTLED", true),
    ];
    let rows = all
        .iter()
        .map(|(name, _, places)| row(name, places, purge.care.dry_run));
    output::list(global.output, &columns, rows.collect())?;
    if !is_whole {
        output::say("interrupted: the rest is where it was");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(ExitCode::SUCCESS)
}

fn row(name: &str, places: &[Removed], is_dry: bool) -> Row {
    let count = |place: Place| {
        let one = places.iter().find(|one| one.place == place)?;
        Some(if is_dry { one.found } else { one.purged.messages })
    };
    let parts = [Place::Waiting, Place::Delayed, Place::Suspect].map(count);
    let sum: u64 = parts.iter().flatten().sum();
    let settled: u64 = places.iter().map(|one| one.purged.settled).sum();
    let shown = |part: Option<u64>| part.map_or_else(|| "-".to_owned(), |part| part.to_string());
    let [waiting, delayed, suspect] = parts;
    Row {
        name: format!("taskqueue.umbel.dev/{name}"),
        cells: vec![
            name.to_owned(),
            sum.to_string(),
            shown(waiting),
            shown(delayed),
            shown(suspect),
            settled.to_string(),
        ],
        value: json!({"queue": name, "purged": sum, "waiting": waiting, "delayed": delayed, "suspect": suspect,
            "runsSettled": settled, "dryRun": is_dry}),
    }
}
