//! Errbacks: sent as tasks that take the failed id, or called where the failure is noticed.

use super::FollowUp;
use super::plan::{Call, Plan};
use super::signature::{Kind, Options, Signature};
use crate::json::Json;
use crate::message::Reason;
use crate::result::Failure;
use crate::write;

/// In the error object of a chord's part: which errbacks of the chord have been called for it. Celery reads past it.
const CALLED: &str = "umbel_errbacks";

/// An errback that is a function of this process ([`super::Sender::is_function`]), and what it is told.
///
/// Celery calls its errbacks of more than one parameter so, with request, exception and traceback.
#[derive(Debug, Clone, PartialEq)]
pub struct Errback {
    /// Its name, and arguments of its own, which come behind what it is told.
    pub signature: Signature,
    /// The failed task.
    pub id: String,
    /// The first task of its workflow.
    pub root_id: String,
    /// The name of the failed task.
    pub task: String,
    /// Its error.
    pub failure: Failure,
    /// Where that was raised; none of a chord that fails before its body is sent.
    pub traceback: Option<String>,
}

/// A failed task, as its errbacks are told of it.
#[derive(Clone, Copy)]
pub(super) struct Failed<'a> {
    pub(super) id: &'a str,
    pub(super) root: &'a str,
    pub(super) task: &'a str,
    pub(super) failure: &'a Failure,
    pub(super) traceback: Option<&'a str>,
}

/// Errbacks that are functions here are called; the others are sent, as one group of tasks that take the failed id.
pub(super) fn call_errbacks(errbacks: &[Json], failed: Failed<'_>, plan: &mut Plan<'_, '_>) -> Result<(), Reason> {
    let mut sent = Vec::with_capacity(errbacks.len());
    for errback in errbacks {
        let signature = Signature::parse(errback)?;
        if signature.kind != Kind::Task || !(plan.sender.is_function)(&signature.task) {
            sent.push(signature);
            continue;
        }
        plan.steps.push(FollowUp::Call(Box::new(Errback {
            signature,
            id: failed.id.to_owned(),
            root_id: failed.root.to_owned(),
            task: failed.task.to_owned(),
            failure: failed.failure.clone(),
            traceback: failed.traceback.map(str::to_owned),
        })));
    }
    if sent.is_empty() {
        return Ok(());
    }
    let id = Json::string(failed.id);
    let mut over = Options::default();
    over.set("parent_id", id.clone());
    over.set("root_id", Json::string(failed.root));
    plan.spawn(&Signature::group(&sent), Call::with(&[id]), &over)
}

/// Notes at the parts among `steps` which errbacks of their chords were called. Celery links those of a chord to the
/// chords in its header as well: when one of these fails they are called, and not again for the chord around it.
pub(super) fn note_called(called: &[Json], steps: &mut [FollowUp]) {
    if called.is_empty() {
        return;
    }
    let marks = write::array(called.iter().map(|errback| Json::string(&mark(errback))));
    for step in steps {
        let FollowUp::Part(part) = step else { continue };
        let Some([tag, id, state, error]) = part.json.elements().and_then(|parts| <[Json; 4]>::try_from(parts).ok())
        else {
            continue;
        };
        let mut error = Options::of(&error);
        error.set(CALLED, marks.clone());
        part.json = write::array([tag, id, state, error.to_json()]);
    }
}

/// The marks that [`note_called`] left at the error of a part.
pub(super) fn called(error: &Json) -> Vec<String> {
    let marks = error.get(CALLED).and_then(|marks| marks.elements());
    marks.unwrap_or_default().iter().filter_map(Json::text).collect()
}

/// Those that are still to be called.
pub(super) fn uncalled(mut errbacks: Vec<Json>, called: &[String]) -> Vec<Json> {
    if !called.is_empty() {
        errbacks.retain(|errback| !called.contains(&mark(errback)));
    }
    errbacks
}

/// What an errback is known by: FNV-1a of its text. Two workers of one chord have the same text from its sender.
fn mark(errback: &Json) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in errback.as_str().bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}
