//! `umbel task send`.

use std::process::ExitCode;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use umbel_protocol::json::Json;
use umbel_protocol::message::{Limits, NewTask, decode};
use uuid::Uuid;

use super::task_get;
use crate::args::{Format, Global, Send, duration};
use crate::{broker, output, usage};

pub(crate) async fn run(global: &Global, send: &Send) -> anyhow::Result<ExitCode> {
    let mut task = task(send, Timestamp::now())?;
    let way = broker::of_queue(global, send.queue.as_deref()).await?;
    task.queue.clone_from(&way.queue);
    // By the broker's clock, as every order is: a run that is delivered again stays where it was in the order of runs.
    let order = way.broker.time().await?;
    task.headers.push(("umbel_order".to_owned(), Json::of(&order)));
    task.headers
        .push(("umbel_sent_at".to_owned(), Json::of(&(order as f64 / 1000.0))));
    let raw = task.encode();
    // What no worker would take is refused here, where somebody reads the reason.
    if let Err(malformed) = decode(&raw, &Limits::default(), &jiff::tz::TimeZone::UTC) {
        return usage(format!("no worker would take this message: {}", malformed.reason));
    }
    way.broker.publish(&way.queue, task.priority, &[raw]).await?;
    if send.wait.wait {
        output::say(&format!("task {} sent to queue {}", task.id, way.queue));
        let results = match &global.result_url {
            Some(url) => broker::connect(url, &global.key_prefix).await?,
            None => way.broker,
        };
        return task_get::wait(global.output, &results, &task.id, send.wait.timeout).await;
    }
    match global.output {
        Format::Table | Format::Wide | Format::Name => output::line(&task.id)?,
        Format::Json | Format::Yaml => {
            output::value(
                global.output,
                &json!({"id": task.id, "task": task.task, "queue": way.queue}),
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The message, all of it but its queue.
fn task(send: &Send, now: Timestamp) -> anyhow::Result<NewTask> {
    let Send {
        name,
        queue: _,
        args,
        kwargs,
        eta,
        countdown,
        expires,
        priority,
        wait: _,
    } = send;
    let args = json("--args", args.as_deref(), Json::empty_array())?;
    if !args.is_array() {
        return usage("--args is not a JSON array; for one argument write '[1]'");
    }
    let kwargs = json("--kwargs", kwargs.as_deref(), Json::empty_object())?;
    if !kwargs.is_object() {
        return usage("--kwargs is not a JSON object");
    }
    let later = |span: std::time::Duration| {
        SignedDuration::try_from(span)
            .ok()
            .and_then(|span| now.checked_add(span).ok())
    };
    let eta = match countdown {
        None => *eta,
        Some(countdown) => match later(*countdown) {
            Some(eta) => Some(eta),
            None => return usage("--countdown ends after the end of time"),
        },
    };
    let expires = match expires.as_deref() {
        None => None,
        Some(text) => {
            let at = text.parse().ok().or_else(|| duration(text).ok().and_then(later));
            if at.is_none() {
                return usage("--expires is neither a duration such as 90s nor a time such as 2026-01-31T12:00:00Z");
            }
            at
        }
    };
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "umbel".to_owned());
    Ok(NewTask {
        id: Uuid::new_v4().to_string(),
        task: name.clone(),
        args,
        kwargs,
        eta,
        expires,
        sent_at: Some(now),
        priority: *priority,
        origin: format!("umbel{}@{host}", std::process::id()),
        reply_to: Uuid::new_v4().to_string(),
        delivery_tag: Uuid::new_v4().to_string(),
        ..NewTask::default()
    })
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
            Command::Task(TaskCommand::Send(send)) => send,
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
        assert_eq!(task.eta, Some("2026-01-31T12:01:30Z".parse().unwrap()));
        assert_eq!(task.expires, Some("2026-01-31T13:00:00Z".parse().unwrap()));
        assert_eq!((task.priority, task.sent_at), (3, Some(now)));
        assert_eq!(send(&[]).wait.timeout, Duration::from_mins(1));
    }

    #[test]
    fn big_numbers_are_sent_as_they_are_written() {
        let task = task(
            &send(&["--args", "[123456789012345678901234567890, 1e400]"]),
            Timestamp::UNIX_EPOCH,
        )
        .unwrap();
        assert_eq!(task.args.as_str(), "[123456789012345678901234567890, 1e400]");
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
