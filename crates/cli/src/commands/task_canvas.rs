//! `umbel task canvas`.

use std::io::Read as _;
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::json;
use umbel_client::{Json, Options, Serializer};

use super::{task_get, task_send};
use crate::args::{Canvas, Confirmed, Format, Global};
use crate::{broker, output, short, usage};

/// Largest workflow that is read: more would not be messages.
const LARGEST: u64 = 64 << 20;

pub(crate) async fn run(global: &Global, canvas: &Canvas) -> anyhow::Result<ExitCode> {
    let text = read(&canvas.file)?;
    let workflow = Json::parse(text.trim()).map_err(|err| err.to_string());
    let workflow = match workflow.and_then(|json| short::parse(&json)) {
        Ok(workflow) => workflow,
        Err(err) => return usage(format!("{}: {err}", named(&canvas.file))),
    };
    let options = Options {
        routes: task_send::routes(canvas.routes.as_deref())?,
        result_serializer: canvas.result_serializer.parse().unwrap_or(Serializer::Json),
        replicas: canvas.durability.map(Confirmed::replicas),
        ..canvas.signing.options(canvas.serializer.as_deref())?
    };
    let is_routed = !options.routes.is_empty();
    let (client, queue) = broker::sender(global, canvas.queue.as_deref(), options).await?;
    let sent = client.apply(workflow).await?;
    if canvas.save {
        if sent.is_group() {
            sent.save().await?;
        } else {
            output::say("only a group can be saved; this workflow ends in a task");
        }
    }
    if canvas.wait.wait {
        let place = if is_routed {
            "where its routes lead".to_owned()
        } else {
            format!("to queue {queue}")
        };
        output::say(&format!("workflow {} sent {place}", sent.id()));
        return task_get::wait(global.output, &sent, canvas.wait.timeout).await;
    }
    match global.output {
        Format::Table | Format::Wide | Format::Name => output::line(sent.id())?,
        Format::Json | Format::Yaml => {
            let tuple: serde_json::Value = sent.tuple().to_json().to()?;
            let kind = if sent.is_group() { "group" } else { "task" };
            let value = json!({"id": sent.id(), "kind": kind, "ids": sent.ids(), "tuple": tuple, "queue": queue});
            output::value(global.output, &value)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A file's text, or what comes on standard input.
pub(crate) fn read(file: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = if file == "-" {
        std::io::stdin().lock().take(LARGEST + 1).read_to_string(&mut text)
    } else {
        let opened = std::fs::File::open(file).with_context(|| format!("open {file}"))?;
        opened.take(LARGEST + 1).read_to_string(&mut text)
    };
    let length = read.with_context(|| format!("read {}", named(file)))?;
    anyhow::ensure!(length as u64 <= LARGEST, "{} is larger than 64 MiB", named(file));
    Ok(text)
}

pub(crate) fn named(file: &str) -> &str {
    if file == "-" { "standard input" } else { file }
}
