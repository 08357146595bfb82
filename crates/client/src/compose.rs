//! Workflows: calls combined, as Celery's canvas does.

use serde::Serialize;
use umbel_protocol::canvas::Signature;
use umbel_protocol::json::Json;

/// One after the other, each with the result of the one before in front of its own arguments.
///
/// A group with a step behind it becomes a chord, as with Celery.
pub fn chain<T: Into<Signature>>(steps: impl IntoIterator<Item = T>) -> Signature {
    let steps: Vec<Signature> = steps.into_iter().map(Into::into).collect();
    Signature::chain(&steps)
}

/// Side by side.
pub fn group<T: Into<Signature>>(members: impl IntoIterator<Item = T>) -> Signature {
    let members: Vec<Signature> = members.into_iter().map(Into::into).collect();
    Signature::group(&members)
}

/// The header side by side, then the body with the list of their results.
pub fn chord<T: Into<Signature>>(header: impl IntoIterator<Item = T>, body: impl Into<Signature>) -> Signature {
    Signature::chord(&group(header), &body.into())
}

/// One message that runs the task for each item, one after the other; the result is the list of results.
pub fn map<T: Serialize>(task: impl Into<Signature>, items: &[T]) -> Signature {
    let items: Vec<Json> = items.iter().map(Json::of).collect();
    Signature::map(&task.into(), &items)
}

/// One message that runs the task for each list of arguments, one after the other.
pub fn starmap<T: Serialize>(task: impl Into<Signature>, items: &[T]) -> Signature {
    let items: Vec<Json> = items.iter().map(Json::of).collect();
    Signature::starmap(&task.into(), &items)
}

/// Lists of arguments, `size` of them to a message: a group of [`starmap`]s.
pub fn chunks<T: Serialize>(task: impl Into<Signature>, items: &[T], size: usize) -> Signature {
    let task = task.into();
    let items: Vec<Json> = items.iter().map(Json::of).collect();
    let parts: Vec<Signature> = items
        .chunks(size.max(1))
        .map(|items| Signature::starmap(&task, items))
        .collect();
    Signature::group(&parts)
}
