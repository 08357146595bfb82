//! What a task's end entails.

use std::collections::VecDeque;

use jiff::Timestamp;

use super::chord::{ChordPart, PartState};
use super::errback::{Failed, call_errbacks};
use super::plan::{Call, Plan};
use super::signature::{Kind, Options, Signature, list, wrong};
use super::task::Origin;
use super::tuple::ResultTuple;
use super::{Aftermath, FollowUp, Sender, StoredFailure};
use crate::json::Json;
use crate::message::{Malformed, Reason, TaskMessage};
use crate::result::{Failure, Meta, failure};
use crate::write;

/// The task returned `result`: its callbacks, the next step of its chain, its chord part.
///
/// One callback is sent by itself; of several the plain ones are sent as one group, groups each by themselves.
///
/// # Errors
/// [`Malformed`]: the embed holds something that is no signature, or asks for more than
/// [`super::MAX_EXPANSION`]. Nothing is to be sent then, and the task counts as failed.
pub fn after_success(message: &TaskMessage, result: &Json, sender: &mut Sender<'_>) -> Result<Aftermath, Malformed> {
    let mut plan = Plan::new(running(message), sender);
    success(message, result, &mut plan).map_err(|reason| malformed(message, reason))?;
    let mut done = plan.done();
    done.steps.extend(own_part(message, PartState::Success, result));
    Ok(done)
}

fn success(message: &TaskMessage, result: &Json, plan: &mut Plan<'_, '_>) -> Result<(), Reason> {
    let args = [result.clone()];
    let call = Call::with(&args);
    let mut over = Options::default();
    over.set("parent_id", Json::string(&message.id));
    over.set("root_id", Json::string(root(message)));
    let callbacks = signatures(message, "callbacks", "embed.callbacks")?;
    match callbacks.as_slice() {
        [] => {}
        [one] => plan.spawn(&Signature::parse(one)?, call, &over)?,
        several => {
            let mut plain = Vec::with_capacity(several.len());
            for callback in several {
                let callback = Signature::parse(callback)?;
                if callback.kind == Kind::Group {
                    plan.spawn(&callback, call, &over)?;
                } else {
                    plain.push(callback);
                }
            }
            if !plain.is_empty() {
                plan.spawn(&Signature::group(&plain), call, &over)?;
            }
        }
    }
    let mut chain = signatures(message, "chain", "embed.chain")?;
    if let Some(next) = chain.pop() {
        over.set("chain", write::array(&chain));
        plan.spawn(&Signature::parse(&next)?, call, &over)?;
    }
    Ok(())
}

/// The task failed for good: its chord part, the same failure for every task that will not run now, its errbacks.
///
/// # Errors
/// [`Malformed`], as [`after_success`]. The task's own failure is to be stored all the same; the chord part is
/// [`ChordPart::of`].
pub fn after_failure(
    message: &TaskMessage,
    cause: &Failure,
    traceback: Option<&str>,
    sender: &mut Sender<'_>,
) -> Result<Aftermath, Malformed> {
    let now = sender.now;
    let mut plan = Plan::new(running(message), sender);
    plan.steps
        .extend(own_part(message, PartState::Failure, &cause.to_json()));
    let rest = || -> Result<(), Reason> {
        let chain = signatures(message, "chain", "embed.chain")?;
        fail_all(&chain, cause, traceback, now, &mut plan.steps)?;
        let errbacks = signatures(message, "errbacks", "embed.errbacks")?;
        let failed = Failed {
            id: &message.id,
            root: root(message),
            task: &message.task,
            failure: cause,
            traceback,
        };
        call_errbacks(&errbacks, failed, &mut plan)
    }();
    rest.map_err(|reason| malformed(message, reason))?;
    Ok(plan.done())
}

/// The task was revoked, or had expired: its chord part. `why` is `revoked`, `expired` or `terminated`.
///
/// As with Celery the rest of its chain stays without a result.
pub fn after_revoked(message: &TaskMessage, why: &str) -> Aftermath {
    let error = Failure::new("celery.exceptions", "TaskRevokedError", why);
    Aftermath {
        steps: own_part(message, PartState::Revoked, &error.to_json())
            .into_iter()
            .collect(),
        children: Vec::new(),
    }
}

/// Sends a signature from a running task: it inherits root and parent, and becomes a child.
///
/// # Errors
/// [`Reason`]: no acceptable signature.
pub fn send(message: &TaskMessage, signature: &Signature, sender: &mut Sender<'_>) -> Result<Aftermath, Reason> {
    Ok(spawn(message, signature, sender)?.0)
}

/// As [`send`], with the result of the whole, as [`apply`] answers it.
///
/// # Errors
/// As [`send`].
pub fn spawn(
    message: &TaskMessage,
    signature: &Signature,
    sender: &mut Sender<'_>,
) -> Result<(Aftermath, ResultTuple), Reason> {
    let mut plan = Plan::new(running(message), sender);
    plan.spawn(signature, Call::default(), &Options::default())?;
    let result = plan.result.take().ok_or(Reason::Missing("signature.task"))?;
    Ok((plan.done(), result))
}

/// Sends a signature from outside of any task; `queue` is for those that name none. The child is the result to wait for:
/// that of the first step, when it is a chain.
///
/// # Errors
/// [`Reason`]: no acceptable signature.
pub fn start(signature: &Signature, queue: &str, sender: &mut Sender<'_>) -> Result<Aftermath, Reason> {
    Ok(apply(signature, queue, sender)?.0)
}

/// As [`start`], with the result of the whole: of a chain that of its last step, of a chord that of its body, each with
/// what comes before as parents.
///
/// # Errors
/// As [`start`].
pub fn apply(signature: &Signature, queue: &str, sender: &mut Sender<'_>) -> Result<(Aftermath, ResultTuple), Reason> {
    let origin = Origin {
        queue: queue.to_owned(),
        root: None,
        parent: None,
    };
    let mut plan = Plan::new(origin, sender);
    plan.spawn(signature, Call::default(), &Options::default())?;
    let result = plan.result.take().ok_or(Reason::Missing("signature.task"))?;
    Ok((plan.done(), result))
}

/// FAILURE for each of these tasks and for what they consist of, with the chord parts of those that are members.
pub(super) fn fail_all(
    signatures: &[Json],
    cause: &Failure,
    traceback: Option<&str>,
    now: Timestamp,
    steps: &mut Vec<FollowUp>,
) -> Result<(), Reason> {
    let mut open: VecDeque<Signature> = signatures.iter().map(Signature::parse).collect::<Result<_, _>>()?;
    while let Some(signature) = open.pop_front() {
        let options = &signature.options;
        let (group, parent) = (options.text("group_id"), options.text("parent_id"));
        if let Some(id) = options.text("task_id") {
            let meta = Meta {
                done_at: now,
                group_id: group.as_deref(),
                parent_id: parent.as_deref(),
                ..Meta::default()
            };
            let document = failure(&id, cause, traceback, &meta);
            steps.push(FollowUp::Store(StoredFailure { id, document }));
        }
        match signature.kind {
            Kind::Task => steps.extend(part_of(&signature, cause)),
            Kind::Chord => open.push_back(signature.body()?),
            Kind::Group | Kind::Chain => open.extend(signature.tasks()?),
        }
    }
    Ok(())
}

/// The chord part of a member that failed before it was sent.
pub(super) fn part_of(signature: &Signature, cause: &Failure) -> Option<FollowUp> {
    let options = &signature.options;
    Some(FollowUp::Part(Box::new(ChordPart::new(
        &options.text("group_id")?,
        &options.text("task_id")?,
        options.get("group_index").and_then(|index| index.as_str().parse().ok()),
        PartState::Failure,
        &cause.to_json(),
        options.get("chord")?.clone(),
    ))))
}

fn own_part(message: &TaskMessage, state: PartState, value: &Json) -> Option<FollowUp> {
    ChordPart::of(message, state, value).map(|part| FollowUp::Part(Box::new(part)))
}

/// What tasks inherit that are sent while this one runs.
pub(super) fn running(message: &TaskMessage) -> Origin {
    Origin {
        queue: message.queue.clone(),
        root: Some(root(message).to_owned()),
        parent: Some(message.id.clone()),
    }
}

pub(super) fn root(message: &TaskMessage) -> &str {
    let given = message.root_id.as_deref().filter(|root| !root.is_empty());
    given.unwrap_or(&message.id)
}

/// A list in the embed; one signature by itself counts as a list.
pub(super) fn signatures(message: &TaskMessage, name: &str, field: &'static str) -> Result<Vec<Json>, Reason> {
    let value = message.embed.as_ref().and_then(|embed| embed.get(name));
    match value.filter(|value| !value.is_null()) {
        None => Ok(Vec::new()),
        Some(value) if value.is_array() || value.is_object() => Ok(list(&value)),
        Some(_) => Err(wrong(field, "a list of signatures")),
    }
}

pub(super) fn malformed(message: &TaskMessage, reason: Reason) -> Malformed {
    Malformed {
        reason,
        id: Some(message.id.clone()),
        task: Some(message.task.clone()),
    }
}
