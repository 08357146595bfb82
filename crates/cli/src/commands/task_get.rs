//! `umbel task get`, and the end of `umbel task send --wait`.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use umbel_client::{Handle, ResultError, State};
use umbel_protocol::result::ResultDoc;

use super::task_object;
use crate::args::{Format, Get, Global};
use crate::broker;
use crate::output::{self, Column, Row, cut};

/// Characters of a result in a table.
const SHORT: usize = 80;

pub(crate) async fn run(global: &Global, get: &Get) -> anyhow::Result<ExitCode> {
    if let Some((api, names)) = task_object::named(global, std::slice::from_ref(&get.id)).await? {
        return task_object::get(global, &api, &names[0], get).await;
    }
    let client = broker::reader(global, get.queue.as_deref()).await?;
    let task = client.handle(&get.id);
    // An id is that of a task, unless there is a saved group under it.
    let handle = client.saved(&get.id).await?.unwrap_or(task);
    if get.wait.wait {
        return wait(global.output, &handle, get.wait.timeout).await;
    }
    // Celery's word for a task of which nothing is known is PENDING: it waits, or it never was.
    print(global.output, &document(handle.id(), handle.state().await?))?;
    Ok(ExitCode::SUCCESS)
}

fn document(id: &str, state: State) -> ResultDoc {
    ResultDoc {
        status: state.name,
        result: state.result,
        traceback: state.traceback,
        date_done: state.ended,
        task_id: id.to_owned(),
    }
}

/// Waits for the end of a task or workflow and prints its value: alone where no format was asked for.
pub(crate) async fn wait(format: Format, handle: &Handle, timeout: Duration) -> anyhow::Result<ExitCode> {
    let id = handle.id();
    match handle.get(timeout).await {
        Ok(value) if format == Format::Table => {
            output::line(&output::inert(value.as_str()))?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(_) => {
            print(format, &document(id, handle.state().await?))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(ResultError::Timeout { .. }) => {
            anyhow::bail!("task {id} did not end within {} s", timeout.as_secs_f32())
        }
        Err(ResultError::Remote(err)) => {
            let state = handle.client().handle(&err.id).state().await?;
            let document = document(&err.id, state);
            if format != Format::Table {
                print(format, &document)?;
            }
            anyhow::bail!("task {} ended as {}: {}", err.id, document.status, short(&document))
        }
        Err(err) => Err(err.into()),
    }
}

fn print(format: Format, document: &ResultDoc) -> anyhow::Result<()> {
    let ResultDoc {
        status,
        result,
        traceback,
        date_done,
        task_id,
    } = document;
    let done = date_done.map(|time| time.to_string());
    if format == Format::Json {
        // The result as it is: it may hold numbers that no JSON library keeps.
        let quoted = |text: &Option<String>| {
            text.as_ref()
                .map_or_else(|| "null".to_owned(), |text| json!(text).to_string())
        };
        let text = format!(
            "{{\n  \"id\": {},\n  \"status\": {},\n  \"result\": {},\n  \"traceback\": {},\n  \"dateDone\": {}\n}}",
            json!(task_id),
            json!(status),
            result.as_str(),
            quoted(traceback),
            quoted(&done),
        );
        return output::line(&output::inert(&text));
    }
    let columns = [
        Column("ID", false),
        Column("STATUS", false),
        Column("RESULT", false),
        Column("DONE", false),
        Column("TRACEBACK", true),
    ];
    let shown = short(document);
    let last_line = traceback
        .as_deref()
        .and_then(|text| text.lines().last())
        .unwrap_or_default();
    let row = Row {
        name: format!("task/{task_id}"),
        cells: vec![
            task_id.clone(),
            status.clone(),
            if format == Format::Wide {
                shown
            } else {
                cut(&shown, SHORT)
            },
            done.clone().unwrap_or_default(),
            last_line.to_owned(),
        ],
        value: Value::Null,
    };
    if format == Format::Yaml {
        let result = result.to::<Value>().unwrap_or_else(|_| json!(result.as_str()));
        let document =
            json!({"id": task_id, "status": status, "result": result, "traceback": traceback, "dateDone": done});
        return output::value(format, &document);
    }
    output::list(format, &columns, vec![row])
}

/// The value, or what failed.
fn short(document: &ResultDoc) -> String {
    match document.failure() {
        None if document.result.is_null() && document.date_done.is_none() => String::new(),
        None => document.result.as_str().to_owned(),
        Some(failure) => {
            let words = failure
                .message
                .iter()
                .map(|part| part.text().unwrap_or_else(|| part.as_str().to_owned()));
            format!("{}: {}", failure.exc_type, words.collect::<Vec<_>>().join(", "))
        }
    }
}
