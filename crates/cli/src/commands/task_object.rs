//! Objects of kind Task: `umbel task ls`, and `get` and `cancel` where a name is that of one.

use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use kube::api::Patch;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::time::Instant;
use umbel_api::Task;
use umbel_api::condition::find;
use umbel_api::names::task_condition::STALLED;
use umbel_api::task::Phase;

use crate::args::{Cancel, Get, Global, TaskLs};
use crate::home::{Home, manager, objects, said};
use crate::output::{self, Column, Row, ago, cut};
use crate::usage;

/// As `-o name` writes it.
const PREFIX: &str = "task.umbel.dev/";
/// Pause between two looks at the status.
const LOOK: Duration = Duration::from_millis(250);
/// Characters of a result in a table.
const SHORT: usize = 60;

pub(crate) async fn ls(global: &Global, ls: &TaskLs) -> anyhow::Result<()> {
    let home = Home::open(global).await?;
    let tasks: Vec<Task> = objects(&home, &ls.names, ls.all_namespaces).await?;
    print(global, &tasks, ls.all_namespaces)
}

/// Where the objects are that these words name; nothing where they are ids of tasks on a broker.
///
/// `task.umbel.dev/NAME` is always an object. A name alone is one where no broker was given, it is no id as Celery makes
/// them, and there is an object of this name.
///
/// # Errors
/// Some are objects and some are not.
pub(crate) async fn named(global: &Global, words: &[String]) -> anyhow::Result<Option<(Api<Task>, Vec<String>)>> {
    let is_plain = |word: &String| !word.starts_with(PREFIX);
    let is_id = |word: &String| uuid::Uuid::parse_str(word).is_ok();
    if words.iter().all(is_plain) && (global.server.is_given() || words.iter().all(is_id)) {
        return Ok(None);
    }
    let home = match Home::open(global).await {
        Ok(home) => home,
        // Without a cluster there are no objects; whoever names one is told so.
        Err(_) if words.iter().all(is_plain) => return Ok(None),
        Err(err) => return Err(err),
    };
    let api: Api<Task> = Api::namespaced(home.client, &home.namespace);
    let mut found = Vec::new();
    for word in words {
        match word.strip_prefix(PREFIX) {
            Some(name) => found.push(name.to_owned()),
            None if is_id(word) => {}
            None if matches!(api.get_metadata_opt(word).await, Ok(Some(_))) => found.push(word.clone()),
            None => {}
        }
    }
    if found.is_empty() {
        return Ok(None);
    }
    if found.len() < words.len() {
        return usage("some of these are Tasks and some are ids on a broker: name them apart");
    }
    Ok(Some((api, found)))
}

/// `umbel task get` of an object.
pub(crate) async fn get(global: &Global, api: &Api<Task>, name: &str, get: &Get) -> anyhow::Result<ExitCode> {
    let deadline = Instant::now() + get.wait.timeout;
    loop {
        let task = read(api, name).await?;
        let phase = phase(&task);
        if !get.wait.wait || phase.is_final() {
            print(global, std::slice::from_ref(&task), false)?;
            let is_good = !get.wait.wait || phase == Phase::Succeeded;
            return Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        if Instant::now() >= deadline {
            anyhow::bail!("Task {name} did not end within {} s", get.wait.timeout.as_secs_f32());
        }
        tokio::time::sleep_until((Instant::now() + LOOK).min(deadline)).await;
    }
}

/// `umbel task cancel` of objects: exit code 1 where one runs on.
pub(crate) async fn cancel(
    global: &Global,
    api: &Api<Task>,
    names: &[String],
    cancel: &Cancel,
) -> anyhow::Result<ExitCode> {
    let deadline = Instant::now() + cancel.timeout;
    let mut rows = Vec::new();
    let mut is_good = true;
    for name in names {
        if !cancel.dry_run && !phase(&read(api, name).await?).is_final() {
            let patch = json!({ "spec": { "cancel": true } });
            let written = api.patch(name, &manager(), &Patch::Merge(patch)).await;
            written.map_err(|err| said(err, format!("cancel Task {name}")))?;
        }
    }
    for name in names {
        let mut phase = phase(&read(api, name).await?);
        while !cancel.dry_run && !phase.is_final() && Instant::now() < deadline {
            tokio::time::sleep_until((Instant::now() + LOOK).min(deadline)).await;
            phase = self::phase(&read(api, name).await?);
        }
        let note = match phase {
            Phase::Cancelled => "cancelled",
            Phase::Succeeded | Phase::Failed | Phase::Lost => "had ended before",
            Phase::Pending | Phase::Running if cancel.dry_run => "would be cancelled",
            Phase::Pending | Phase::Running => "is being cancelled",
        };
        is_good &= cancel.dry_run || phase.is_final();
        let state = format!("{phase:?}");
        rows.push(Row {
            name: format!("{PREFIX}{name}"),
            value: json!({ "name": name, "phase": phase, "note": note, "dryRun": cancel.dry_run }),
            cells: vec![name.clone(), state, note.to_owned()],
        });
    }
    let columns = [Column("NAME", false), Column("PHASE", false), Column("NOTE", false)];
    output::list(global.output, &columns, rows)?;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn read(api: &Api<Task>, name: &str) -> anyhow::Result<Task> {
    api.get(name)
        .await
        .map_err(|err| said(err, format!("read Task {name}")))
}

fn phase(task: &Task) -> Phase {
    task.status.as_ref().map(|status| status.phase).unwrap_or_default()
}

fn print(global: &Global, tasks: &[Task], everywhere: bool) -> anyhow::Result<()> {
    let columns = [
        Column("NAMESPACE", !everywhere),
        Column("NAME", false),
        Column("TASK", true),
        Column("PHASE", false),
        Column("ATTEMPTS", false),
        Column("CLUSTERS", false),
        Column("FAILED", false),
        Column("STARTED", false),
        Column("FINISHED", false),
        Column("ID", true),
        Column("RESULT", false),
    ];
    let now = Timestamp::now();
    output::list(
        global.output,
        &columns,
        tasks.iter().map(|task| row(task, now)).collect(),
    )
}

fn row(task: &Task, now: Timestamp) -> Row {
    let (namespace, name) = (task.namespace().unwrap_or_default(), task.name_any());
    let status = task.status.clone().unwrap_or_default();
    let template = serde_json::to_value(&task.spec.task_template).unwrap_or_default();
    let none = || "-".to_owned();
    let since = |time: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
        time.as_ref()
            .map_or_else(none, |time| ago(now.duration_since(time.0).as_secs()))
    };
    let stalled = find(&status.conditions, STALLED).filter(|found| found.status == "True");
    let result = status
        .result_preview
        .clone()
        .or_else(|| stalled.map(|found| found.message.clone()));
    let clusters = status.clusters.as_ref();
    Row {
        name: format!("{PREFIX}{name}"),
        cells: vec![
            namespace.clone(),
            name.clone(),
            template["task"].as_str().map_or_else(none, str::to_owned),
            format!("{:?}", status.phase),
            status.attempts.to_string(),
            clusters.map_or_else(none, |of| format!("{}/{}", of.succeeded, of.total)),
            clusters.map_or_else(none, |of| of.failed.to_string()),
            since(&status.start_time),
            since(&status.finish_time),
            status.task_id.clone().unwrap_or_else(none),
            cut(&result.unwrap_or_default(), SHORT),
        ],
        value: json!({ "namespace": namespace, "name": name, "spec": task.spec, "status": task.status }),
    }
}
