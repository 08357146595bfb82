//! The tasks that every Celery worker has.

use super::outcome::{malformed, running};
use super::plan::{Call, Plan};
use super::signature::{Options, Signature, wrong};
use super::{Aftermath, Sender};
use crate::json::Json;
use crate::message::{Malformed, Reason, TaskMessage};
use crate::write;

/// The names of the tasks that [`builtin`] plans.
pub const BUILTINS: [&str; 6] = [
    "celery.map",
    "celery.starmap",
    "celery.chunks",
    "celery.accumulate",
    "celery.chord_unlock",
    "celery.backend_cleanup",
];

/// What a built-in task does.
#[derive(Debug, Clone, PartialEq)]
pub enum Builtin {
    /// Run `task` here for each of these argument lists, one after the other; the result is the list of results, and
    /// the first error is the task's (`celery.map`, `celery.starmap`).
    Calls {
        /// The task to run. The options and arguments of its signature play no part.
        task: String,
        /// An array of positional arguments for each run.
        args: Vec<Json>,
    },
    /// Send these and return that (`celery.chunks`: the result tuple of the group that is sent).
    Sends {
        /// What to send.
        aftermath: Aftermath,
        /// The result.
        result: Json,
    },
    /// Return this (`celery.accumulate`; `null` for tasks that have nothing to do with a Redis backend).
    Returns(Json),
}

/// Plans a built-in task; `None` if the message is for no such task.
///
/// # Errors
/// [`Malformed`]: its arguments are not those of the task. It is to fail with that as its reason.
pub fn builtin(message: &TaskMessage, sender: &mut Sender<'_>) -> Result<Option<Builtin>, Malformed> {
    let planned = match message.task.as_str() {
        "celery.map" => calls(message, |item| Ok(write::array([item]))),
        "celery.starmap" => calls(message, |item| {
            let is_list = item.is_array();
            is_list.then_some(item).ok_or(wrong("kwargs.it", "an array of arrays"))
        }),
        "celery.chunks" => chunks(message, sender),
        "celery.accumulate" => accumulate(message),
        "celery.chord_unlock" | "celery.backend_cleanup" => Ok(Builtin::Returns(Json::null())),
        _ => return Ok(None),
    };
    planned.map(Some).map_err(|reason| malformed(message, reason))
}

/// An argument by name, or by its place.
fn argument(message: &TaskMessage, name: &str, place: usize) -> Option<Json> {
    message
        .kwargs
        .get(name)
        .or_else(|| message.args.elements()?.get(place).cloned())
}

fn target(message: &TaskMessage) -> Result<Signature, Reason> {
    Signature::parse(&argument(message, "task", 0).ok_or(Reason::Missing("kwargs.task"))?)
}

fn items(message: &TaskMessage) -> Result<Vec<Json>, Reason> {
    let items = argument(message, "it", 1).ok_or(Reason::Missing("kwargs.it"))?;
    items.elements().ok_or(wrong("kwargs.it", "an array"))
}

fn calls(message: &TaskMessage, args: impl Fn(Json) -> Result<Json, Reason>) -> Result<Builtin, Reason> {
    Ok(Builtin::Calls {
        task: target(message)?.task,
        args: items(message)?.into_iter().map(args).collect::<Result<_, _>>()?,
    })
}

fn chunks(message: &TaskMessage, sender: &mut Sender<'_>) -> Result<Builtin, Reason> {
    const SIZE: Reason = wrong("kwargs.n", "a whole number above zero");
    let size = argument(message, "n", 2).and_then(|size| size.as_str().parse::<usize>().ok());
    let size = size.filter(|size| *size > 0).ok_or(SIZE)?;
    let task = target(message)?;
    let parts: Vec<Signature> = items(message)?
        .chunks(size)
        .map(|part| Signature::starmap(&task, part))
        .collect();
    let mut plan = Plan::new(running(message), sender);
    plan.spawn(&Signature::group(&parts), Call::default(), &Options::default())?;
    let aftermath = plan.done();
    let result = aftermath
        .children
        .first()
        .map_or_else(Json::null, super::ResultTuple::to_json);
    Ok(Builtin::Sends { aftermath, result })
}

fn accumulate(message: &TaskMessage) -> Result<Builtin, Reason> {
    let index = message.kwargs.get("index").filter(|index| !index.is_null());
    let Some(index) = index else {
        return Ok(Builtin::Returns(message.args.clone()));
    };
    let args = message.args.elements().unwrap_or_default();
    let index: i64 = index
        .as_str()
        .parse()
        .map_err(|_| wrong("kwargs.index", "a whole number"))?;
    let place = if index < 0 {
        index + i64::try_from(args.len()).unwrap_or(0)
    } else {
        index
    };
    let found = usize::try_from(place).ok().and_then(|place| args.get(place).cloned());
    found
        .map(Builtin::Returns)
        .ok_or(wrong("kwargs.index", "the index of an argument"))
}
