//! `umbel queue dead …` and `umbel queue quarantine …`: what nobody will run.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};
use umbel_broker::{Aside, AsideFilter, AsideKind, Broker, Place, Replayed};
use umbel_protocol::control::glob;

use super::queue_peek::{Reader, time};
use crate::args::{AsideCommand, AsideLs, AsidePurge, AsideReplay, Format, Global, Which};
use crate::broker::{self, Way};
use crate::confirm::{INTERRUPTED, Interrupt, is_confirmed, progress};
use crate::output::{self, Column, Row, ago, cut};
use crate::usage;

/// Entries read or moved in one call.
const TOGETHER: usize = 100;
/// Bytes moved in one call: Redis is busy for about a millisecond with so many.
const BYTES: u64 = 256 * 1024;
/// Characters of a reason in a table.
const SHORT: usize = 70;

pub(crate) async fn run(global: &Global, kind: AsideKind, command: &AsideCommand) -> anyhow::Result<ExitCode> {
    match command {
        AsideCommand::Ls(ls) => list(global, kind, ls).await.map(|()| ExitCode::SUCCESS),
        AsideCommand::Replay(replay) => put_back(global, kind, replay).await,
        AsideCommand::Purge(purge) => remove(global, kind, purge).await,
    }
}

impl Which {
    fn is_everything(&self) -> bool {
        let Which { ids, task, reason } = self;
        ids.is_empty() && task.is_none() && reason.is_none()
    }

    fn is_meant(&self, aside: &Aside) -> bool {
        let Which { ids, task, reason } = self;
        let has_reason = |pattern: &String| {
            if pattern.contains(['*', '?', '[']) {
                glob(&aside.reason, pattern)
            } else {
                aside.reason.contains(pattern.as_str())
            }
        };
        (ids.is_empty() || ids.iter().any(|id| *id == aside.id || *id == aside.entry))
            && task.as_ref().is_none_or(|pattern| glob(&aside.task, pattern))
            && reason.as_ref().is_none_or(has_reason)
    }
}

async fn list(global: &Global, kind: AsideKind, ls: &AsideLs) -> anyhow::Result<()> {
    let AsideLs { name, which, limit } = ls;
    let Way { broker, queue, .. } = broker::of_queue(global, Some(name)).await?;
    let now = broker.time().await?;
    let reader = Reader::new(now);
    let (mut rows, limit) = (Vec::new(), usize::try_from(*limit)?);
    let mut next = Some(AsideFilter {
        is_reverse: true,
        has_raw: true,
        ..AsideFilter::default()
    });
    while let Some(filter) = next.filter(|_| rows.len() < limit) {
        let page = broker.aside(kind, &queue, filter, TOGETHER as u64).await?;
        let meant = page.entries.iter().filter(|aside| which.is_meant(aside));
        rows.extend(meant.map(|aside| row(&reader, aside, now)).take(limit - rows.len()));
        next = page.next;
    }
    let columns = [
        Column("ID", false),
        Column("TASK", false),
        Column("ATTEMPTS", false),
        Column("SINCE", false),
        Column("REASON", false),
        Column("SENT", true),
        Column("LAID-ASIDE", true),
        Column("ENTRY", true),
        Column("BYTES", true),
    ];
    output::list(global.output, &columns, rows)?;
    if global.output == Format::Table || global.output == Format::Wide {
        let evicted = broker.evicted().await?;
        let mine = evicted
            .iter()
            .filter(|one| one.queue == queue && one.kind == kind.word());
        for one in mine {
            output::say(&format!("{} more were evicted: bound by {}", one.messages, one.cause));
        }
    }
    Ok(())
}

fn row(reader: &Reader, aside: &Aside, now: i64) -> Row {
    let message = reader.read(&aside.raw).ok();
    let retries = message.as_ref().map(|message| message.retries);
    // Each retry was a run, and each death; a message that came and failed at once had one.
    let attempts = u64::from(retries.unwrap_or(0)) + aside.attempts.max(1);
    let at = |ms: Option<i64>| ms.and_then(|ms| time(ms as f64)).map(|at| at.to_string());
    let (sent, died) = (at(message.as_ref().and_then(Reader::sent_at)), at(Some(aside.at_ms())));
    let since = (now - aside.at_ms()).max(0) / 1000;
    let value: Value = json!({"id": aside.id, "task": aside.task, "attempts": attempts, "retries": retries,
        "deaths": aside.attempts, "sinceSeconds": since, "laidAsideAt": died, "sentAt": sent, "reason": aside.reason,
        "entry": aside.entry, "list": aside.list, "bytes": aside.bytes});
    Row {
        name: format!("task/{}", aside.id),
        cells: vec![
            aside.id.clone(),
            aside.task.clone(),
            attempts.to_string(),
            ago(since),
            cut(&aside.reason, SHORT),
            sent.unwrap_or_else(|| "-".to_owned()),
            died.unwrap_or_default(),
            aside.entry.clone(),
            aside.bytes.to_string(),
        ],
        value,
    }
}

/// What a pass did.
#[derive(Default)]
struct Done {
    matched: u64,
    moved: Vec<String>,
    count: u64,
    refused: Vec<String>,
}

/// What a pass does to what it meets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Count,
    Replay,
    Discard,
}

/// Once over what there is now: what comes meanwhile is left alone, also what was just put back and failed again.
struct Pass<'a> {
    broker: &'a Broker,
    kind: AsideKind,
    queue: &'a str,
    which: &'a Which,
    act: Act,
    rate: Option<f64>,
}

impl Pass<'_> {
    async fn run(&self, interrupt: &Interrupt) -> anyhow::Result<Done> {
        let mut done = Done::default();
        let Some(newest) = self.broker.newest_aside(self.kind, self.queue).await? else {
            return Ok(done);
        };
        let place = match self.kind {
            AsideKind::Dead => Place::Dead,
            AsideKind::Quarantine => Place::Quarantine,
        };
        let bar = progress(self.broker.length(self.queue, place).await?, "looked at");
        let mut next = Some(AsideFilter {
            last: newest.entry,
            ..AsideFilter::default()
        });
        let begin = Instant::now();
        while let Some(filter) = next.filter(|_| !interrupt.is_asked()) {
            let page = self
                .broker
                .aside(self.kind, self.queue, filter, TOGETHER as u64)
                .await?;
            let meant: Vec<&Aside> = page.entries.iter().filter(|one| self.which.is_meant(one)).collect();
            let mut rest = meant.as_slice();
            while !rest.is_empty() && !interrupt.is_asked() {
                let batch;
                (batch, rest) = rest.split_at(self.batch(rest));
                self.act_on(batch, &mut done)
                    .await
                    .with_context(|| format!("{} messages of queue {} were done before", done.count, self.queue))?;
                self.keep_pace(begin, done.count, interrupt).await;
            }
            bar.inc(page.entries.len() as u64);
            next = page.next;
        }
        bar.finish_and_clear();
        Ok(done)
    }

    /// How many of these go together.
    fn batch(&self, entries: &[&Aside]) -> usize {
        let mut bytes = 0;
        let fits = entries.iter().take_while(|one| {
            bytes += one.bytes;
            bytes <= BYTES
        });
        // At a rate, about ten batches a second.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Clamped.
        let most = self
            .rate
            .map_or(TOGETHER, |rate| (rate / 10.0).clamp(1.0, TOGETHER as f64) as usize);
        fits.count().clamp(1, most)
    }

    async fn act_on(&self, batch: &[&Aside], done: &mut Done) -> anyhow::Result<()> {
        let entries: Vec<String> = batch.iter().map(|one| one.entry.clone()).collect();
        done.matched += batch.len() as u64;
        match self.act {
            Act::Count => {
                done.count += batch.len() as u64;
                done.moved.extend(batch.iter().map(|one| one.id.clone()));
            }
            Act::Discard => done.count += self.broker.discard(self.kind, self.queue, &entries).await?,
            Act::Replay => {
                let fates = self.broker.replay(self.kind, self.queue, &entries).await?;
                for (one, fate) in batch.iter().zip(fates) {
                    match fate {
                        Replayed::Back => {
                            done.count += 1;
                            done.moved.push(one.id.clone());
                        }
                        Replayed::Gone => {}
                        Replayed::WrongType { key } if done.refused.contains(&key) => {}
                        Replayed::WrongType { key } => done.refused.push(key),
                    }
                }
            }
        }
        Ok(())
    }

    async fn keep_pace(&self, begin: Instant, count: u64, interrupt: &Interrupt) {
        if let Some(rate) = self.rate.filter(|_| self.act == Act::Replay) {
            let due = Duration::try_from_secs_f64(count as f64 / rate).unwrap_or(Duration::MAX);
            interrupt.pause(due.saturating_sub(begin.elapsed())).await;
        }
    }
}

async fn put_back(global: &Global, kind: AsideKind, replay: &AsideReplay) -> anyhow::Result<ExitCode> {
    let AsideReplay {
        name,
        which,
        all,
        rate,
        dry_run,
    } = replay;
    if which.is_everything() && !all {
        return usage("say which messages to put back: --id, --task, --reason or --all");
    }
    let Way { broker, queue, .. } = broker::of_queue(global, Some(name)).await?;
    let interrupt = Interrupt::listen()?;
    let pass = Pass {
        broker: &broker,
        kind,
        queue: &queue,
        which,
        act: if *dry_run { Act::Count } else { Act::Replay },
        rate: *rate,
    };
    let done = pass.run(&interrupt).await?;
    let what = if *dry_run { "would be put back" } else { "put back" };
    match global.output {
        Format::Table | Format::Wide => output::line(&format!("{} messages {what} into queue {name}", done.count))?,
        Format::Name => done
            .moved
            .iter()
            .try_for_each(|id| output::line(&format!("task/{id}")))?,
        Format::Json | Format::Yaml => {
            let value = json!({"queue": name, "from": kind.word(), "matched": done.matched, "replayed": done.count,
                "ids": done.moved, "refused": done.refused, "dryRun": dry_run});
            output::value(global.output, &value)?;
        }
    }
    for key in &done.refused {
        output::say(&format!(
            "key {key} holds another type: messages for it were left where they are"
        ));
    }
    if interrupt.is_asked() {
        output::say("interrupted: the rest is where it was");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    // Somebody named messages, and there are none: a typing mistake should not look like success.
    let is_found = done.matched > 0 || which.ids.is_empty();
    if !is_found {
        output::say("no such message");
    }
    let is_good = is_found && done.refused.is_empty();
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn remove(global: &Global, kind: AsideKind, purge: &AsidePurge) -> anyhow::Result<ExitCode> {
    let AsidePurge { name, which, all, care } = purge;
    if which.is_everything() && !all {
        return usage("say which messages to remove: --id, --task, --reason or --all");
    }
    let Way { broker, queue, .. } = broker::of_queue(global, Some(name)).await?;
    let pass = |act| Pass {
        broker: &broker,
        kind,
        queue: &queue,
        which,
        act,
        rate: None,
    };
    let mut interrupt = Interrupt::never();
    let mut done = Done::default();
    if care.dry_run || !care.yes {
        done = pass(Act::Count).run(&interrupt).await?;
    }
    if !care.dry_run {
        let question = format!(
            "Remove {} messages from {} of queue {name}, for good?",
            done.count,
            kind.word()
        );
        if !is_confirmed(care.yes, &question)? {
            return Ok(ExitCode::FAILURE);
        }
        interrupt = Interrupt::listen()?; // Not while somebody is asked.
        done = pass(Act::Discard).run(&interrupt).await?;
    }
    let what = if care.dry_run { "would be removed" } else { "removed" };
    match global.output {
        Format::Table | Format::Wide => output::line(&format!("{} messages {what} from queue {name}", done.count))?,
        Format::Name => output::line(&format!("taskqueue.umbel.dev/{name}"))?,
        Format::Json | Format::Yaml => {
            let value = json!({"queue": name, "from": kind.word(), "removed": done.count, "dryRun": care.dry_run});
            output::value(global.output, &value)?;
        }
    }
    Ok(if interrupt.is_asked() {
        ExitCode::from(INTERRUPTED)
    } else {
        ExitCode::SUCCESS
    })
}
