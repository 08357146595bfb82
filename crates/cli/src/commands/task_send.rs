//! `umbel task send`: one task, many alike, or one for each line of a file.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use umbel_client::{Client, Exchange, Handle, Json, Options, Routes, Task, Until};
use umbel_protocol::message::{Limits, NewTask, decode};

use super::{task_canvas, task_get};
use crate::args::{Confirmed, Format, Global, Send, duration};
use crate::confirm::progress;
use crate::{broker, output, short, usage};

/// Tasks made and sent at a time; what is told when something goes wrong is told between two of these.
const TOGETHER: usize = 5_000;

pub(crate) async fn run(global: &Global, send: &Send) -> anyhow::Result<ExitCode> {
    // What is wrong with the call is told before any server is asked.
    let template = task(send, Timestamp::now())?;
    let lines = match &send.from {
        Some(file) => Some((file, task_canvas::read(file)?)),
        None => None,
    };
    let options = Options {
        routes: routes(send.routes.as_deref())?,
        replicas: send.durability.map(Confirmed::replicas),
        ..send.signing.options(send.serializer.as_deref())?
    };
    let is_routed = !options.routes.is_empty();
    let (client, queue) = broker::sender(global, send.queue.as_deref(), options).await?;
    // A queue that was asked for goes before that of a route.
    let template = match (&send.exchange, &send.queue) {
        (None, Some(_)) => template.queue(&queue),
        _ => template,
    };
    let place = client.destination(&template)?;
    // By the broker's clock, as every order is: a run that is delivered again stays where it was in the order of runs.
    let order = client.time().await?;
    let template = template.header("umbel_order", &order);
    let template = template.header("umbel_sent_at", &(order as f64 / 1000.0));
    if let Some((file, lines)) = lines {
        let made = lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let tasks = made.map(|(at, line)| {
            from_line(&template, line)
                .map_err(|reason| format!("{}: line {}: {reason}", task_canvas::named(file), at + 1))
        });
        let count = lines.lines().filter(|line| !line.trim().is_empty()).count();
        let place = if is_routed {
            "where their routes lead".to_owned()
        } else {
            format!("to {place}")
        };
        return many(global, send, &client, &place, tasks, count).await;
    }
    if let Some(count) = send.count {
        let count = usize::try_from(count)?;
        return many(
            global,
            send,
            &client,
            &format!("to {place}"),
            (0..count).map(|_| Ok(template.clone())),
            count,
        )
        .await;
    }
    let sent = client.send(template).await?;
    if send.wait.wait {
        output::say(&format!("task {} sent to {place}", sent.id()));
        return task_get::wait(global.output, &sent, send.wait.timeout).await;
    }
    match global.output {
        Format::Table | Format::Wide | Format::Name => output::line(sent.id())?,
        Format::Json | Format::Yaml => {
            output::value(
                global.output,
                &json!({"id": sent.id(), "task": send.name, "queue": place.name()}),
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The routes of a file.
pub(super) fn routes(file: Option<&std::path::Path>) -> anyhow::Result<Routes> {
    let Some(file) = file else { return Ok(Routes::default()) };
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    match text.parse() {
        Ok(routes) => Ok(routes),
        Err(err) => usage(format!("--routes: {}: {err}", file.display())),
    }
}

/// Sends many, and says how far it is and how fast it goes: to people only.
async fn many(
    global: &Global,
    send: &Send,
    client: &Client,
    place: &str,
    tasks: impl Iterator<Item = Result<Task, String>>,
    count: usize,
) -> anyhow::Result<ExitCode> {
    let bar = progress(count as u64, "sent");
    let (mut sent, mut handles, begin) = (0_usize, Vec::new(), Instant::now());
    let mut tasks = tasks.peekable();
    while tasks.peek().is_some() {
        let batch: Result<Vec<Task>, String> = tasks.by_ref().take(TOGETHER).collect();
        let batch = match batch {
            Ok(batch) => batch,
            Err(reason) => return usage(format!("{reason}; {sent} tasks were sent before")),
        };
        let these = client
            .send_all(batch)
            .await
            .map_err(|err| anyhow::Error::new(err).context(format!("{sent} tasks were sent before")))?;
        sent += these.len();
        if send.wait.wait || global.output == Format::Name {
            handles.extend(these);
        }
        bar.set_position(sent as u64);
    }
    bar.finish_and_clear();
    let seconds = begin.elapsed().as_secs_f64();
    let rate = (sent as f64 / seconds.max(1e-9)).round();
    if send.wait.wait {
        output::say(&format!("{sent} tasks sent {place}, {rate:.0} a second"));
        return all_end(global, send, &handles).await;
    }
    match global.output {
        Format::Table | Format::Wide => output::line(&format!("{sent} tasks sent {place}, {rate:.0} a second"))?,
        Format::Name => handles.iter().try_for_each(|handle| output::line(handle.id()))?,
        Format::Json | Format::Yaml => {
            let value = json!({"sent": sent, "task": send.name, "to": place.trim_start_matches("to "), "seconds": seconds, "perSecond": rate});
            output::value(global.output, &value)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for all; fails if one fails or is late.
async fn all_end(global: &Global, send: &Send, handles: &[Handle]) -> anyhow::Result<ExitCode> {
    let bar = progress(handles.len() as u64, "ended");
    let deadline = Instant::now() + send.wait.timeout;
    let (mut succeeded, mut failed, mut late) = (0_usize, Vec::new(), 0_usize);
    for handle in handles {
        match handle.get(deadline.saturating_duration_since(Instant::now())).await {
            Ok(_) => succeeded += 1,
            Err(umbel_client::ResultError::Timeout { .. }) => late += 1,
            Err(umbel_client::ResultError::Remote(err)) => failed.push(err.to_string()),
            Err(err) => return Err(err.into()),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    match global.output {
        Format::Table | Format::Wide | Format::Name => {
            output::line(&format!(
                "{succeeded} succeeded, {} failed, {late} did not end",
                failed.len()
            ))?;
        }
        Format::Json | Format::Yaml => {
            let value = json!({"succeeded": succeeded, "failed": failed.len(), "late": late});
            output::value(global.output, &value)?;
        }
    }
    if let Some(first) = failed.first() {
        anyhow::bail!("{} of {} tasks failed, the first: {first}", failed.len(), handles.len());
    }
    anyhow::ensure!(late == 0, "{late} of {} tasks did not end in time", handles.len());
    Ok(ExitCode::SUCCESS)
}

/// The call, but for its queue.
fn task(send: &Send, now: Timestamp) -> anyhow::Result<Task> {
    let Send {
        name,
        queue: _,
        routes: _,
        args,
        kwargs,
        eta,
        countdown,
        expires,
        priority,
        id,
        unique,
        unique_until,
        unique_ttl,
        exchange,
        exchange_type,
        routing_key,
        serializer,
        signing: _,
        compression,
        headers,
        stamps,
        link,
        link_error,
        time_limit,
        soft_time_limit,
        shadow,
        ignore_result,
        hide_arguments,
        count: _,
        from: _,
        wait: _,
        durability: _,
    } = send;
    let args = json("--args", args.as_deref(), Json::empty_array())?;
    if !args.is_array() {
        return usage("--args is not a JSON array; for one argument write '[1]'");
    }
    let kwargs = json("--kwargs", kwargs.as_deref(), Json::empty_object())?;
    if !kwargs.is_object() {
        return usage("--kwargs is not a JSON object");
    }
    // What no worker would take is refused here, where somebody reads the reason.
    if let Err(reason) = acceptable(name, &args, &kwargs) {
        return usage(format!("no worker would take this message: {reason}"));
    }
    let later = |span: std::time::Duration| {
        SignedDuration::try_from(span)
            .ok()
            .and_then(|span| now.checked_add(span).ok())
    };
    let mut task = Task::new(name).json(args, kwargs);
    if let Some(priority) = priority {
        task = task.priority(i64::from(*priority));
    }
    match countdown {
        Some(countdown) => match later(*countdown) {
            Some(eta) => task = task.eta(eta),
            None => return usage("--countdown ends after the end of time"),
        },
        None => {
            if let Some(eta) = eta {
                task = task.eta(*eta);
            }
        }
    }
    if let Some(text) = expires.as_deref() {
        let at: Option<Timestamp> = text.parse().ok().or_else(|| duration(text).ok().and_then(later));
        match at {
            Some(at) => task = task.expires(at),
            None => {
                return usage("--expires is neither a duration such as 90s nor a time such as 2026-01-31T12:00:00Z");
            }
        }
    }
    if let Some(id) = id {
        task = task.id(id);
    }
    if let Some(key) = unique {
        task = task.unique(key, Until::named(unique_until).unwrap_or_default(), *unique_ttl);
    }
    if let (Some(exchange), Some(kind)) = (exchange, exchange_type) {
        let kind = kind
            .parse()
            .map_err(|err| crate::Usage(format!("--exchange-type: {err}")))?;
        task = task.exchange(Exchange::new(exchange, kind), routing_key);
    }
    if let Some(serializer) = serializer {
        task = task.serializer(serializer);
    }
    if let Some(compression) = compression {
        task = task.compression(compression);
    }
    for (name, value) in headers {
        task = task.header_json(name, loose(value));
    }
    for (name, value) in stamps {
        task = task.stamp_json(name, loose(value));
    }
    for text in link {
        task = task.link(linked("--link", text)?);
    }
    for text in link_error {
        task = task.link_error(linked("--link-error", text)?);
    }
    if let Some(limit) = time_limit {
        task = task.time_limit(*limit);
    }
    if let Some(limit) = soft_time_limit {
        task = task.soft_time_limit(*limit);
    }
    if let Some(shadow) = shadow {
        task = task.shadow(shadow);
    }
    if *ignore_result {
        task = task.ignore_result(true);
    }
    if *hide_arguments {
        task = task.hide_arguments();
    }
    Ok(task)
}

/// The message as a worker would read it.
fn acceptable(name: &str, args: &Json, kwargs: &Json) -> Result<(), String> {
    let message = NewTask {
        id: "id".into(),
        task: name.to_owned(),
        args: args.clone(),
        kwargs: kwargs.clone(),
        ..NewTask::default()
    };
    match decode(&message.encode(), &Limits::default(), &TimeZone::UTC) {
        Ok(_) => Ok(()),
        Err(malformed) => Err(malformed.reason.to_string()),
    }
}

/// A line of `--from`: arguments alone, or a signature whose options a line may have.
fn from_line(template: &Task, line: &str) -> Result<Task, String> {
    let json = Json::parse(line.trim()).map_err(|err| format!("no JSON: {err}"))?;
    if json.is_array() {
        acceptable("task", &json, &Json::empty_object())?;
        return Ok(template.clone().json(json, Json::empty_object()));
    }
    if !json.is_object() {
        return Err("neither an array of arguments nor an object".into());
    }
    let mut task = template.clone();
    let (mut args, mut kwargs) = (Json::empty_array(), Json::empty_object());
    for (name, value) in json.entries() {
        match name.as_str() {
            "task" => task = task.named(&value.text().ok_or("\"task\" is no text")?),
            "args" if value.is_array() => args = value,
            "kwargs" if value.is_object() => kwargs = value,
            "args" => return Err("\"args\" is no array".into()),
            "kwargs" => return Err("\"kwargs\" is no object".into()),
            "options" if value.is_object() => {
                for (option, value) in value.entries() {
                    task = with_option(task, &option, &value)?;
                }
            }
            other => return Err(format!("{other:?} is none of task, args, kwargs and options")),
        }
    }
    acceptable("task", &args, &kwargs)?;
    Ok(task.json(args, kwargs))
}

fn with_option(task: Task, option: &str, value: &Json) -> Result<Task, String> {
    let text = || value.text().ok_or_else(|| format!("option {option} is no text"));
    Ok(match option {
        "task_id" => task.id(&text()?),
        "queue" => task.queue(&text()?),
        "shadow" => task.shadow(&text()?),
        "priority" => task.priority(value.to().map_err(|_| "option priority is no whole number")?),
        "countdown" => {
            let seconds: f64 = value.to().map_err(|_| "option countdown is no number")?;
            let wait = std::time::Duration::try_from_secs_f64(seconds);
            task.countdown(wait.map_err(|err| format!("option countdown: {err}"))?)
        }
        "headers" if value.is_object() => {
            let headers = value.entries();
            headers
                .into_iter()
                .fold(task, |task, (name, value)| task.header_json(&name, value))
        }
        other => {
            return Err(format!(
                "option {other:?} is none of task_id, queue, shadow, priority, countdown and headers"
            ));
        }
    })
}

/// JSON, or the text itself.
fn loose(text: &str) -> Json {
    Json::parse(text).unwrap_or_else(|_| Json::string(text))
}

/// A task's name, or a workflow in JSON.
fn linked(flag: &str, text: &str) -> anyhow::Result<umbel_client::Signature> {
    let is_json = text.trim_start().starts_with(['{', '"']);
    let json = if is_json {
        Json::parse(text.trim())
    } else {
        Ok(Json::string(text))
    };
    match json.map_err(|err| err.to_string()).and_then(|json| short::parse(&json)) {
        Ok(signature) => Ok(signature),
        Err(err) => usage(format!("{flag}: {err}")),
    }
}

fn json(flag: &str, text: Option<&str>, default: Json) -> anyhow::Result<Json> {
    match text.map(Json::parse) {
        None => Ok(default),
        Some(Ok(json)) => Ok(json),
        Some(Err(err)) => usage(format!("{flag} is not JSON: {err}")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command, TaskCommand};

    fn send(flags: &[&str]) -> Send {
        let line = ["umbel", "task", "send", "proj.add"]
            .into_iter()
            .chain(flags.iter().copied());
        match Cli::parse_from(line).command {
            Command::Task(TaskCommand::Send(send)) => *send,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn times_are_counted_from_now() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        let task = task(
            &send(&["--countdown", "90s", "--expires", "1h", "--priority", "3"]),
            now,
        )
        .unwrap();
        let signature = task.signature().to_json();
        let options = signature.get("options").unwrap();
        let text = |name: &str| options.get(name).unwrap().to_string();
        assert_eq!(text("eta"), "\"2026-01-31T12:01:30Z\"");
        assert_eq!(text("expires"), "\"2026-01-31T13:00:00Z\"");
        assert_eq!(text("priority"), "3");
        assert_eq!(send(&[]).wait.timeout, Duration::from_mins(1));
    }

    #[test]
    fn big_numbers_are_sent_as_they_are_written() {
        let task = task(
            &send(&["--args", "[123456789012345678901234567890, 1e400]"]),
            Timestamp::UNIX_EPOCH,
        )
        .unwrap();
        let args = task.signature().args;
        assert_eq!(args.as_str(), "[123456789012345678901234567890, 1e400]");
    }

    #[test]
    fn what_is_wrong_is_named_by_its_flag() {
        let cases = [
            (
                ["--args", "{}"],
                "--args is not a JSON array; for one argument write '[1]'",
            ),
            (["--args", "[1"], "--args is not JSON: "),
            (["--kwargs", "[]"], "--kwargs is not a JSON object"),
            (["--expires", "soon"], "--expires is neither a duration"),
        ];
        for (flags, words) in cases {
            let err = task(&send(&flags), Timestamp::UNIX_EPOCH).unwrap_err();
            assert!(err.to_string().starts_with(words) && err.is::<crate::Usage>(), "{err}");
        }
    }
}
