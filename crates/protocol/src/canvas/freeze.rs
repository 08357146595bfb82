//! Freezing: giving ids to a signature and its parts, so that results can be named before anything is sent.

use super::Sender;
use super::signature::{Kind, Signature};
use super::tuple::ResultTuple;
use crate::json::Json;
use crate::message::Reason;

/// Where a signature stands: what it is given when it is frozen.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Place<'a> {
    /// Its id, unless it has one.
    pub(super) id: Option<&'a str>,
    /// Its group, unless it has one.
    pub(super) group: Option<&'a str>,
    /// Its position in the group.
    pub(super) index: Option<i64>,
    /// The body of the chord that it is a member of.
    pub(super) chord: Option<&'a Json>,
    /// The first task of the workflow.
    pub(super) root: Option<&'a str>,
}

impl<'a> Place<'a> {
    pub(super) fn under(root: Option<&'a str>) -> Place<'a> {
        Place {
            root,
            ..Place::default()
        }
    }
}

/// Gives `signature` and its parts what they lack. The result is that of its last task, or of a group.
pub(super) fn freeze(
    signature: &mut Signature,
    place: Place<'_>,
    sender: &mut Sender<'_>,
) -> Result<ResultTuple, Reason> {
    match signature.kind {
        Kind::Task => Ok(task(signature, place, sender)),
        Kind::Group => group(signature, place, sender),
        Kind::Chain => chain(signature, place, sender),
        Kind::Chord => chord(signature, place, sender),
    }
}

fn task(signature: &mut Signature, place: Place<'_>, sender: &mut Sender<'_>) -> ResultTuple {
    let id = identify(signature, place.id, sender);
    let options = &mut signature.options;
    if let Some(root) = place.root {
        options.set("root_id", Json::string(root));
    }
    if !options.has("reply_to") && !sender.reply_to.is_empty() {
        options.set("reply_to", Json::string(sender.reply_to));
    }
    join(signature, place);
    ResultTuple::task(&id)
}

fn group(signature: &mut Signature, place: Place<'_>, sender: &mut Sender<'_>) -> Result<ResultTuple, Reason> {
    let id = identify(signature, None, sender);
    join(signature, place);
    let root = signature.options.text("root_id");
    let mut tasks = flat(signature.tasks()?)?;
    let mut members = Vec::with_capacity(tasks.len());
    for (index, task) in tasks.iter_mut().enumerate() {
        let member = Place {
            id: None,
            index: i64::try_from(index).ok(),
            root: root.as_deref().or(place.root),
            ..place
        };
        members.push(freeze(task, member, sender)?);
    }
    signature.set_tasks(&tasks);
    Ok(ResultTuple::group(&id, members))
}

fn chain(signature: &mut Signature, place: Place<'_>, sender: &mut Sender<'_>) -> Result<ResultTuple, Reason> {
    let mut steps = steps(signature.tasks()?)?;
    let own = signature.id();
    let place = Place {
        id: own.as_deref().or(place.id),
        ..place
    };
    let result = freeze_steps(&mut steps, place, sender)?;
    signature.set_tasks(&steps);
    signature.options.set("task_id", Json::string(&result.id));
    Ok(result)
}

/// Freezes the steps of a chain. The last one takes the chain's place; the result is its own, with the steps before it
/// as its parents.
pub(super) fn freeze_steps(
    steps: &mut [Signature],
    place: Place<'_>,
    sender: &mut Sender<'_>,
) -> Result<ResultTuple, Reason> {
    let mut before: Option<ResultTuple> = None;
    let last = steps.len().saturating_sub(1);
    for (index, step) in steps.iter_mut().enumerate() {
        let here = if index == last { place } else { Place::under(place.root) };
        let mut result = freeze(step, here, sender)?;
        if let Some(before) = before.take() {
            result.set_root(before);
        }
        before = Some(result);
    }
    before.ok_or(Reason::Missing("a task in the chain"))
}

fn chord(signature: &mut Signature, place: Place<'_>, sender: &mut Sender<'_>) -> Result<ResultTuple, Reason> {
    let (mut header, mut body) = (header(signature)?, signature.body()?);
    let header_result = group(&mut header, Place::under(place.root), sender)?;
    let mut result = freeze(&mut body, place, sender)?;
    result.set_root(header_result.clone());
    signature.set_kwarg("header", &header.to_json());
    signature.set_kwarg("body", &body.to_json());
    signature.options.set("task_id", Json::string(&header_result.id));
    Ok(result)
}

/// The header of a chord as a group. A bare list gets the chord's id.
pub(super) fn header(chord: &Signature) -> Result<Signature, Reason> {
    let given = chord.kwargs.get("header").filter(Json::is_object);
    let given = given.map(|header| Signature::parse(&header)).transpose()?;
    match given {
        Some(header) if header.kind == Kind::Group => Ok(header),
        Some(single) => Ok(Signature::group(&[single])),
        None => {
            let mut header = Signature::group(&chord.tasks()?);
            if let Some(id) = chord.id() {
                header.options.set("task_id", Json::string(&id));
            }
            Ok(header)
        }
    }
}

fn identify(signature: &mut Signature, given: Option<&str>, sender: &mut Sender<'_>) -> String {
    signature.id().unwrap_or_else(|| {
        let id = given.map_or_else(&mut *sender.ids, str::to_owned);
        signature.options.set("task_id", Json::string(&id));
        id
    })
}

fn join(signature: &mut Signature, place: Place<'_>) {
    let options = &mut signature.options;
    if let Some(group) = place.group.filter(|_| !options.has("group_id")) {
        options.set("group_id", Json::string(group));
    }
    if let Some(chord) = place.chord {
        options.set("chord", chord.clone());
    }
    if let Some(index) = place.index {
        options.set("group_index", Json::of(&index));
    }
}

/// The members of a group, with those of groups among them in their places. Chains without a task are left out.
pub(super) fn flat(tasks: Vec<Signature>) -> Result<Vec<Signature>, Reason> {
    let mut members = Vec::with_capacity(tasks.len());
    for task in tasks {
        match task.kind {
            Kind::Group => members.extend(flat(task.tasks()?)?),
            Kind::Chain if task.tasks()?.is_empty() => {}
            _ => members.push(task),
        }
    }
    Ok(members)
}

/// The steps of a chain as they are run: chains among them are spliced in, a group of one task is that task, and a group
/// with a step after it becomes the header of a chord with that step as its body.
pub(super) fn steps(tasks: Vec<Signature>) -> Result<Vec<Signature>, Reason> {
    let mut spliced = Vec::with_capacity(tasks.len());
    splice(tasks, &mut spliced)?;
    let mut steps: Vec<Signature> = Vec::with_capacity(spliced.len());
    let mut only_empty = None;
    for step in spliced.into_iter().rev() {
        let step = match step.kind {
            Kind::Group => {
                let mut members = flat(step.tasks()?)?;
                match members.len() {
                    0 => {
                        only_empty = Some(step);
                        continue;
                    }
                    1 => members.remove(0),
                    _ => step,
                }
            }
            _ => step,
        };
        match steps.pop() {
            Some(next) if step.kind == Kind::Group => {
                let mut chord = Signature::chord(&step, &next);
                if let Some(id) = next.id() {
                    chord.options.set("task_id", Json::string(&id));
                }
                steps.push(chord);
            }
            next => {
                steps.extend(next);
                steps.push(step);
            }
        }
    }
    if steps.is_empty() {
        steps.extend(only_empty);
    }
    steps.reverse();
    Ok(steps)
}

fn splice(tasks: Vec<Signature>, into: &mut Vec<Signature>) -> Result<(), Reason> {
    for task in tasks {
        if task.kind == Kind::Chain {
            splice(task.tasks()?, into)?;
        } else {
            into.push(task);
        }
    }
    Ok(())
}
