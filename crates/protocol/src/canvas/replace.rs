//! A task that ends with another in its place, and one that enlarges its chord.

use super::outcome::{malformed, root, running, signatures};
use super::plan::{Call, Plan, link_error};
use super::signature::{Kind, Options, Signature, wrong};
use super::{Aftermath, FollowUp, Sender};
use crate::json::Json;
use crate::message::{Malformed, Reason, TaskMessage};
use crate::write;

/// The header of a task that nobody sends again while it is on its way.
const UNIQUE_HEADER: &str = "umbel_unique";

/// The task ends, and `with` goes on under its id: same root, group, chord, callbacks, errbacks and rest of the chain,
/// one level of replacement deeper. Nothing is stored for the task itself. A group is collected by `celery.accumulate`.
///
/// # Errors
/// [`Malformed`]: `with` is a chord's member already, an empty chain or no acceptable signature.
pub fn replace(message: &TaskMessage, with: &Signature, sender: &mut Sender<'_>) -> Result<Aftermath, Malformed> {
    let plan = Plan::new(running(message), sender);
    replaced(message, with.clone(), plan).map_err(|reason| malformed(message, reason))
}

fn replaced(message: &TaskMessage, mut with: Signature, mut plan: Plan<'_, '_>) -> Result<Aftermath, Reason> {
    if with.options.get("chord").is_some() {
        return Err(wrong("signature.options.chord", "absent from a replacement"));
    }
    if with.kind == Kind::Group {
        with = collected(&with);
    }
    let nesting = message
        .header("replaced_task_nesting")
        .and_then(|depth| depth.to::<u32>().ok());
    let nesting = Json::of(&nesting.unwrap_or(0).saturating_add(1));
    if with.kind == Kind::Chain {
        let mut tasks = with.tasks()?;
        match tasks.last_mut() {
            Some(last) if last.kind == Kind::Group => *last = collected(last),
            Some(_) => {}
            None => return Err(Reason::Missing("a task in the chain")),
        }
        for task in &mut tasks {
            task.options.set("replaced_task_nesting", nesting.clone());
        }
        with.set_tasks(&tasks);
    }
    if let Some(unique) = message.header(UNIQUE_HEADER) {
        keep(&mut with, &unique)?;
    }
    for callback in signatures(message, "callbacks", "embed.callbacks")? {
        with.append("link", &callback);
    }
    for errback in signatures(message, "errbacks", "embed.errbacks")? {
        link_error(&mut with, &errback)?;
    }
    let text = |value: Option<&str>| value.map_or_else(Json::null, Json::string);
    if with.kind == Kind::Chord {
        // The options of a chord go to its body; the id of the chord itself is its header's.
        let mut body = with.body()?;
        body.options.set("task_id", Json::string(&message.id));
        with.set_kwarg("body", &body.to_json());
    } else {
        with.options.set("task_id", Json::string(&message.id));
    }
    let chord = message.embed.as_ref().and_then(|embed| embed.get("chord"));
    with.options.set("chord", chord.unwrap_or_else(Json::null));
    with.options.set("group_id", text(message.group.as_deref()));
    with.options.set(
        "group_index",
        message.group_index.map_or_else(Json::null, |index| Json::of(&index)),
    );
    with.options.set("root_id", Json::string(root(message)));
    with.options.set("replaced_task_nesting", nesting.clone());

    let mut over = Options::default();
    let mut rest = Vec::new();
    for step in signatures(message, "chain", "embed.chain")? {
        let mut step = Signature::parse(&step)?;
        step.options.set("replaced_task_nesting", nesting.clone());
        rest.push(step.to_json());
    }
    if !rest.is_empty() {
        over.set("chain", write::array(&rest));
    }
    plan.spawn(&with, Call::default(), &over)?;
    Ok(plan.done())
}

/// The unique key of a task is that of the one which ends under its id: its end lets go of it.
fn keep(with: &mut Signature, unique: &Json) -> Result<(), Reason> {
    match with.kind {
        Kind::Chain => {
            let mut tasks = with.tasks()?;
            if let Some(last) = tasks.last_mut() {
                keep(last, unique)?;
            }
            with.set_tasks(&tasks);
        }
        Kind::Chord => {
            let mut body = with.body()?;
            keep(&mut body, unique)?;
            with.set_kwarg("body", &body.to_json());
        }
        Kind::Task | Kind::Group => {
            let mut headers = with.options.get("headers").map_or_else(Vec::new, Json::entries);
            headers.retain(|(name, _)| name != UNIQUE_HEADER);
            headers.push((UNIQUE_HEADER.into(), unique.clone()));
            let headers = headers.iter().map(|(name, value)| (name.as_str(), value));
            with.options.set("headers", write::object(headers));
        }
    }
    Ok(())
}

/// A group as a chord that answers the list of its results.
fn collected(group: &Signature) -> Signature {
    let kwargs = write::object([("index", &Json::of(&0))]);
    let mut chord = Signature::chord(
        group,
        &Signature::task("celery.accumulate", Json::empty_array(), kwargs),
    );
    if let Some(id) = group.id() {
        chord.options.set("task_id", Json::string(&id));
    }
    chord
}

/// Adds `extra` to the chord that the task is a member of: the chord waits for it, too.
///
/// # Errors
/// [`Malformed`]: the task is no member of a chord, or `extra` is no acceptable signature.
pub fn add_to_chord(message: &TaskMessage, extra: &Signature, sender: &mut Sender<'_>) -> Result<Aftermath, Malformed> {
    let plan = Plan::new(running(message), sender);
    added(message, extra.clone(), plan).map_err(|reason| malformed(message, reason))
}

fn added(message: &TaskMessage, mut extra: Signature, mut plan: Plan<'_, '_>) -> Result<Aftermath, Reason> {
    let chord = message.embed.as_ref().and_then(|embed| embed.get("chord"));
    let chord = chord
        .filter(|chord| !chord.is_null())
        .ok_or(Reason::Missing("embed.chord"))?;
    let group = message.group.clone().ok_or(Reason::Missing("headers.group"))?;
    let by = extra.size()?;
    extra.options.set("group_id", Json::string(&group));
    if let Some(index) = message.group_index {
        extra.options.set("group_index", Json::of(&index));
    }
    extra.options.set("chord", chord);
    extra.options.set("root_id", Json::string(root(message)));
    // First, or the chord could be complete without it.
    plan.steps.push(FollowUp::Extend { group, by });
    plan.spawn(&extra, Call::default(), &Options::default())?;
    Ok(plan.done())
}
