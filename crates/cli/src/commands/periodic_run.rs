//! `umbel periodic run`, `umbel periodic pause`, `umbel periodic resume`.

use std::process::ExitCode;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::api::{Patch, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::time::Instant;
use umbel_api::names::{RUN_NOW, RUN_NOW_BY};
use umbel_api::periodictask::{Outcome, PastRun, Request};
use umbel_api::{PeriodicTask, PeriodicTaskStatus, condition::whole_seconds};

use crate::args::{Global, PeriodicRun};
use crate::home::{Home, manager, said};
use crate::output::{self, Column, Row};

/// Pause between two looks at the status.
const LOOK: Duration = Duration::from_millis(250);

pub(crate) async fn run(global: &Global, run: &PeriodicRun) -> anyhow::Result<ExitCode> {
    let PeriodicRun { name, wait, timeout } = run;
    let home = Home::open(global).await?;
    let api: Api<PeriodicTask> = Api::namespaced(home.client.clone(), &home.namespace);
    let before = api
        .get(name)
        .await
        .map_err(|err| said(err, format!("read PeriodicTask {name}")))?;
    let before = before.annotations().get(RUN_NOW);
    // Each text begins one run, and a second has one text.
    let mut at = whole_seconds(Timestamp::now());
    while before.is_some_and(|before| *before == at.to_string()) {
        at += SignedDuration::from_secs(1);
    }
    let asked = at.to_string();
    let annotations = json!({ RUN_NOW: asked, RUN_NOW_BY: who(&home).await });
    let change = Patch::Merge(json!({ "metadata": { "annotations": annotations } }));
    api.patch(name, &manager(), &change)
        .await
        .map_err(|err| said(err, format!("ask PeriodicTask {name} to run")))?;
    let deadline = Instant::now() + *timeout;
    let (answer, ended) = loop {
        let status = api
            .get(name)
            .await
            .map_err(|err| said(err, format!("read PeriodicTask {name}")))?
            .status
            .unwrap_or_default();
        let answer = status.last_request.clone().filter(|last| last.asked == asked);
        let ended = of_request(&status, at);
        let is_over = match &answer {
            Some(answer) if *wait && is_fired(answer) => ended.is_some(),
            Some(_) => true,
            None => false,
        };
        if is_over || Instant::now() >= deadline {
            break (answer, ended);
        }
        tokio::time::sleep(LOOK).await;
    };
    let is_good = match (&answer, &ended) {
        (_, Some(ended)) => ended.outcome == Outcome::Succeeded,
        (Some(answer), None) => is_fired(answer) && !wait,
        (None, None) => false,
    };
    let said = answer
        .as_ref()
        .map_or("not answered yet", |answer| answer.answer.as_str());
    let outcome = ended
        .as_ref()
        .map_or_else(|| "-".to_owned(), |run| format!("{:?}", run.outcome));
    let columns = [
        Column("NAME", false),
        Column("ASKED", false),
        Column("OUTCOME", false),
        Column("ANSWER", false),
    ];
    let row = Row {
        name: format!("periodictask.umbel.dev/{name}"),
        cells: vec![name.clone(), asked.clone(), outcome, said.to_owned()],
        value: json!({"name": name, "asked": asked, "answer": answer, "run": ended}),
    };
    output::list(global.output, &columns, vec![row])?;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn is_fired(answer: &Request) -> bool {
    answer.answer.starts_with("fired")
}

fn of_request(status: &PeriodicTaskStatus, at: Timestamp) -> Option<PastRun> {
    let is_it = |run: &&PastRun| run.is_request && run.slot.0 == at;
    status.recent.iter().find(is_it).cloned()
}

/// The user as the API server knows him.
async fn who(home: &Home) -> Option<String> {
    let api: Api<SelfSubjectReview> = Api::all(home.client.clone());
    // An old server, or no right to ask: the field manager is recorded then.
    let review = api
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .ok()?;
    review.status?.user_info?.username
}

pub(crate) async fn suspend(global: &Global, names: &[String], is_suspended: bool) -> anyhow::Result<()> {
    let home = Home::open(global).await?;
    let api: Api<PeriodicTask> = Api::namespaced(home.client.clone(), &home.namespace);
    let mut rows = Vec::new();
    for name in names {
        let was = api
            .get(name)
            .await
            .map_err(|err| said(err, format!("read PeriodicTask {name}")))?
            .spec
            .suspend;
        if was != is_suspended {
            let change = Patch::Merge(json!({ "spec": { "suspend": is_suspended } }));
            api.patch(name, &manager(), &change)
                .await
                .map_err(|err| said(err, format!("change PeriodicTask {name}")))?;
        }
        let changed = if was == is_suspended { "no" } else { "yes" };
        rows.push(Row {
            name: format!("periodictask.umbel.dev/{name}"),
            cells: vec![name.clone(), is_suspended.to_string(), changed.to_owned()],
            value: json!({"name": name, "suspend": is_suspended, "changed": was != is_suspended}),
        });
    }
    let columns = [
        Column("NAME", false),
        Column("SUSPENDED", false),
        Column("CHANGED", false),
    ];
    output::list(global.output, &columns, rows)
}
