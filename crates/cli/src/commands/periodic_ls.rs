//! `umbel periodic ls`.

use kube::ResourceExt as _;
use serde_json::json;
use umbel_api::PeriodicTask;
use umbel_api::names::periodic_condition::{FAILING, SCHEDULED, STALLED};
use umbel_api::periodictask::TaskTemplate;

use crate::args::{Global, PeriodicLs};
use crate::home::{Home, objects};
use crate::output::{self, Column, Row};

pub(crate) async fn run(global: &Global, ls: &PeriodicLs) -> anyhow::Result<()> {
    let home = Home::open(global).await?;
    let tasks: Vec<PeriodicTask> = objects(&home, &ls.names, ls.all_namespaces).await?;
    let columns = [
        Column("NAMESPACE", !ls.all_namespaces),
        Column("NAME", false),
        Column("SCHEDULE", false),
        Column("STATE", false),
        Column("LAST", false),
        Column("NEXT", false),
        Column("ACTIVE", false),
        Column("RUNS", false),
        Column("MISSED", false),
        Column("FAILED", false),
        Column("TASK", true),
        Column("MESSAGE", true),
    ];
    output::list(global.output, &columns, tasks.iter().map(row).collect())
}

fn row(task: &PeriodicTask) -> Row {
    let (namespace, name) = (task.namespace().unwrap_or_default(), task.name_any());
    let schedule = schedule(task);
    let status = task.status.clone().unwrap_or_default();
    let find = |kind: &str| status.conditions.iter().find(|condition| condition.type_ == kind);
    let is = |kind: &str| find(kind).is_some_and(|condition| condition.status == "True");
    let scheduled = find(SCHEDULED);
    // What a person must know first.
    let state = if is(STALLED) {
        "Stalled"
    } else {
        scheduled.map_or("-", |condition| condition.reason.as_str())
    };
    let message = [STALLED, FAILING]
        .into_iter()
        .find(|kind| is(kind))
        .and_then(find)
        .or(scheduled)
        .map_or_else(
            || "no operator has seen this schedule".to_owned(),
            |condition| condition.message.clone(),
        );
    let time = |at: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
        at.map_or_else(|| "-".to_owned(), |at| at.0.to_string())
    };
    let cells = vec![
        namespace.clone(),
        name.clone(),
        schedule.clone(),
        state.to_owned(),
        time(status.last_schedule_time.as_ref()),
        time(status.next_schedule_time.as_ref()),
        status.active_runs.to_string(),
        status.runs.to_string(),
        status.missed.to_string(),
        status.consecutive_failures.to_string(),
        sends(&task.spec.task_template),
        message.clone(),
    ];
    let value = json!({"namespace": namespace, "name": name, "schedule": schedule, "state": state,
        "task": task.spec.task_template.task, "suspend": task.spec.suspend,
        "lastScheduleTime": status.last_schedule_time, "nextScheduleTime": status.next_schedule_time,
        "lastSuccessfulTime": status.last_successful_time, "activeRuns": status.active_runs, "runs": status.runs,
        "missed": status.missed, "consecutiveFailures": status.consecutive_failures, "recent": status.recent,
        "message": message});
    Row {
        name: format!("periodictask.umbel.dev/{name}"),
        cells,
        value,
    }
}

fn schedule(task: &PeriodicTask) -> String {
    let schedule = &task.spec.schedule;
    let zone = match task.spec.time_zone.as_str() {
        "UTC" => String::new(),
        zone => format!(" {zone}"),
    };
    match (&schedule.cron, &schedule.every, &schedule.at, &schedule.solar) {
        (Some(cron), ..) => format!("{cron}{zone}"),
        (_, Some(every), ..) => format!("every {every}"),
        (_, _, Some(at), _) => format!("at {}", at.0),
        (.., Some(solar)) => format!("{:?} at {},{}", solar.event, solar.latitude, solar.longitude),
        (None, None, None, None) => "-".to_owned(),
    }
}

/// What a template sends, in a word.
fn sends(template: &TaskTemplate) -> String {
    let steps = template.steps.iter().map(|step| &*step.task);
    template
        .task
        .clone()
        .unwrap_or_else(|| steps.collect::<Vec<_>>().join(", "))
}
