//! Chords: the parts that members return, and what follows the last one.

use std::collections::HashMap;

use super::errback::{Failed, call_errbacks, called, note_called, uncalled};
use super::outcome::{fail_all, malformed, part_of, running};
use super::plan::{Call, Plan};
use super::signature::{Kind, Options, Signature};
use super::tuple::ResultTuple;
use super::{Aftermath, FollowUp, Sender, StoredFailure};
use crate::json::Json;
use crate::message::{Malformed, Reason, TaskMessage};
use crate::result::{Failure, Meta, failure};
use crate::write;

/// Times to live of a chord's keys, in seconds.
pub mod timings {
    /// `.j .t .s .d`, and the group's own key: from the last part.
    pub const PARTS: u64 = 86_400;
    /// `.c`, while one worker reads the parts: `max(5, 2 × result_chord_join_timeout)`.
    pub const CLAIM: u64 = 6;
    /// `.c`, while it sends the body.
    pub const PUBLISH: u64 = 21;
    /// `.c`, when it says `done`.
    pub const DONE: u64 = 300;
}

/// The names of a chord's keys, without any prefix of the result backend.
///
/// Counting a part means, in one script (Celery 5.7; older versions find what they need):
///
/// 1. `GET .c`: `done` means a late duplicate, nothing changes;
/// 2. unless `SISMEMBER .d` has [`ChordPart::member`]: `ZADD .j` [`ChordPart::score`] [`ChordPart::json`], `SADD .d`;
/// 3. `EXPIRE .j .t .s .d` and the group's key by [`timings::PARTS`];
/// 4. when `ZCARD .j` = `GET .s` + `GET .t` and `.s` exists: `SET .c <token> NX EX` [`timings::CLAIM`]; who gets it reads
///    `ZRANGE .j 0 -1` and the group's key, and calls [`complete_chord`].
///
/// Afterwards, if `.c` still holds the token: for [`ChordEnd::Body`] `DEL .j .t .s .d` and `SET .c done EX`
/// [`timings::DONE`]; for [`ChordEnd::Failed`] `DEL .s`. With `result_chord_ordered` off `.j` is a list: `RPUSH`,
/// `LLEN`, `LRANGE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChordKeys {
    /// The saved structure of a header with groups in it.
    pub group: String,
    /// `.j`: the parts.
    pub parts: String,
    /// `.t`: members added at run time.
    pub extra: String,
    /// `.s`: how many parts there will be.
    pub size: String,
    /// `.d`: which parts were counted.
    pub counted: String,
    /// `.c`: who dispatches the body; `done` when somebody has.
    pub claim: String,
}

impl ChordKeys {
    /// The keys of the chord with this group id.
    pub fn of(group: &str) -> ChordKeys {
        let key = |suffix: &str| format!("celery-taskset-meta-{group}{suffix}");
        ChordKeys {
            group: key(""),
            parts: key(".j"),
            extra: key(".t"),
            size: key(".s"),
            counted: key(".d"),
            claim: key(".c"),
        }
    }
}

/// How a member ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartState {
    /// With a result.
    Success,
    /// With an error.
    Failure,
    /// Not at all.
    Revoked,
}

impl PartState {
    /// Celery's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            PartState::Success => "SUCCESS",
            PartState::Failure => "FAILURE",
            PartState::Revoked => "REVOKED",
        }
    }
}

/// What a member returns to its chord.
#[derive(Debug, Clone, PartialEq)]
pub struct ChordPart {
    /// The chord.
    pub group: String,
    /// The member.
    pub id: String,
    /// Its position.
    pub index: Option<i64>,
    /// How it ended.
    pub state: PartState,
    /// The member of `.j`: `[1, id, state, value or error object]`.
    pub json: Json,
    /// The signature of the chord's body.
    pub body: Json,
}

impl ChordPart {
    /// The part that `message` owes; `None` if it is no member of a chord. `value` is its result or error object.
    pub fn of(message: &TaskMessage, state: PartState, value: &Json) -> Option<ChordPart> {
        let body = message.embed.as_ref()?.get("chord")?;
        if body.is_null() {
            return None;
        }
        let group = message.group.as_deref().filter(|group| !group.is_empty())?;
        Some(ChordPart::new(
            group,
            &message.id,
            message.group_index,
            state,
            value,
            body,
        ))
    }

    pub(super) fn new(
        group: &str,
        id: &str,
        index: Option<i64>,
        state: PartState,
        value: &Json,
        body: Json,
    ) -> ChordPart {
        let (tag, state_text) = (Json::of(&1), Json::string(state.as_str()));
        ChordPart {
            group: group.to_owned(),
            id: id.to_owned(),
            index,
            state,
            json: write::array([&tag, &Json::string(id), &state_text, value]),
            body,
        }
    }

    /// The score in `.j`: the position, or `+inf`.
    pub fn score(&self) -> String {
        self.index.map_or_else(|| "+inf".into(), |index| index.to_string())
    }

    /// The member of `.d`.
    pub fn member(&self) -> String {
        format!("{}:{}", self.id, self.score())
    }
}

/// What follows a chord's last part.
#[derive(Debug, Clone, PartialEq)]
pub enum ChordEnd {
    /// All members succeeded: the body is sent.
    Body(Aftermath),
    /// One did not: the body fails with `ChordError` and its errbacks are sent.
    Failed(Aftermath),
}

/// Carries on a chord whose last part this was.
///
/// `parts` are the members of `.j` in their order, `structure` the document under the group's key, if there is one;
/// `message` is the task that runs here, whose part, or whose chain's, completed the chord.
///
/// # Errors
/// [`Malformed`]: a part or the body cannot be read, or the results are too large for what the body asks
/// ([`super::MAX_EXPANSION`]). The chord is to fail then: [`fail_chord`].
pub fn complete_chord(
    message: &TaskMessage,
    part: &ChordPart,
    parts: &[Json],
    structure: Option<&Json>,
    sender: &mut Sender<'_>,
) -> Result<ChordEnd, Malformed> {
    let plan = Plan::new(running(message), sender);
    complete(part, parts, structure, plan).map_err(|reason| malformed(message, reason))
}

fn complete(
    part: &ChordPart,
    parts: &[Json],
    structure: Option<&Json>,
    mut plan: Plan<'_, '_>,
) -> Result<ChordEnd, Reason> {
    let parts: Vec<Returned> = parts.iter().map(Returned::parse).collect::<Result<_, _>>()?;
    let body = Signature::parse(&part.body)?;
    if let Some(failed) = parts.iter().find(|part| part.state != "SUCCESS") {
        let cause = failed.cause();
        let error = chord_error(&format!("Dependency {} raised {}", failed.id, cause.repr()));
        let called: Vec<String> = parts.iter().flat_map(|part| called(&part.value)).collect();
        fail_body(&body, &cause, &error, &called, &mut plan)?;
        return Ok(ChordEnd::Failed(plan.done()));
    }
    let saved = structure.map(|document| document.get("result").unwrap_or_else(|| document.clone()));
    let results = match saved
        .as_ref()
        .and_then(ResultTuple::parse)
        .and_then(|saved| saved.members)
    {
        Some(members) => {
            let values = parts.iter().map(|part| (part.id.as_str(), &part.value)).collect();
            write::array(members.iter().map(|member| nested(member, &values)))
        }
        None => write::array(parts.iter().map(|part| &part.value)),
    };
    // Root and parent are those of the task that runs here, unless the body names a root of its own.
    plan.spawn(&body, Call::with(&[results]), &Options::default())?;
    Ok(ChordEnd::Body(plan.done()))
}

/// The results in the shape that the header had. A member without a part (it cannot be, but for a foreign worker's
/// mistake) reads as null.
fn nested(tuple: &ResultTuple, values: &HashMap<&str, &Json>) -> Json {
    if let Some(members) = &tuple.members {
        return write::array(members.iter().map(|member| nested(member, values)));
    }
    values
        .get(tuple.id.as_str())
        .map_or_else(Json::null, |value| (*value).clone())
}

/// A part, read.
struct Returned {
    id: String,
    state: String,
    value: Json,
}

impl Returned {
    fn parse(json: &Json) -> Result<Returned, Reason> {
        const PART: Reason = Reason::Field {
            field: "chord part",
            expected: "[1, id, state, value]",
        };
        let parts = json.elements().ok_or(PART)?;
        let [_, id, state, value] = <[Json; 4]>::try_from(parts).map_err(|_| PART)?;
        Ok(Returned {
            id: id.text().ok_or(PART)?,
            state: state.text().ok_or(PART)?,
            value,
        })
    }

    /// The error of a part that is no success.
    fn cause(&self) -> Failure {
        Failure::parse(&self.value).unwrap_or_else(|| Failure {
            exc_type: "Exception".into(),
            exc_module: "builtins".into(),
            message: vec![self.value.clone()],
        })
    }
}

/// Fails a chord whose body cannot be sent: because [`complete_chord`] refused it, or because a part will never come.
///
/// What follows is that of [`ChordEnd::Failed`], with `why` as the message of the `ChordError`.
///
/// # Errors
/// [`Malformed`]: the body is no signature. There is nobody to tell then.
pub fn fail_chord(
    message: &TaskMessage,
    part: &ChordPart,
    why: &str,
    sender: &mut Sender<'_>,
) -> Result<Aftermath, Malformed> {
    let mut plan = Plan::new(running(message), sender);
    let error = chord_error(why);
    Signature::parse(&part.body)
        .and_then(|body| fail_body(&body, &error, &error, &[], &mut plan))
        .map_err(|reason| malformed(message, reason))?;
    Ok(plan.done())
}

fn chord_error(why: &str) -> Failure {
    Failure::new("celery.exceptions", "ChordError", why)
}

/// FAILURE for the body and for what would have come after it; its errbacks take its id, but for those that were
/// `called` for a chord in the header. Members of a group fail with the cause, others with the error of the chord.
fn fail_body(
    body: &Signature,
    cause: &Failure,
    error: &Failure,
    called: &[String],
    plan: &mut Plan<'_, '_>,
) -> Result<(), Reason> {
    let now = plan.sender.now;
    let start = plan.steps.len();
    let own = body.options.list("link_error");
    let mut all = own.clone();
    if body.kind == Kind::Group {
        // The members fail with the error itself, and each calls its errbacks and the group's.
        let text = traceback(cause);
        for task in super::freeze::flat(body.tasks()?)? {
            let (id, mut errbacks) = result_errbacks(&task)?;
            errbacks.extend(
                own.iter()
                    .filter(|errback| !errbacks.contains(errback))
                    .cloned()
                    .collect::<Vec<_>>(),
            );
            if let Some(id) = id {
                let failed = noticed(&id, &task, cause);
                call_errbacks(&uncalled(errbacks.clone(), called), failed, plan)?;
            }
            fail_all(&[task.to_json()], cause, Some(&text), now, &mut plan.steps)?;
            all.append(&mut errbacks);
        }
        plan.steps
            .extend(body.id().map(|id| stored(id, cause, &text, &[], now)));
    } else {
        let text = traceback(error);
        if let Some(id) = body.id() {
            call_errbacks(&uncalled(own, called), noticed(&id, body, error), plan)?;
            if body.kind != Kind::Chain {
                let children: Vec<Json> = plan.children.iter().map(ResultTuple::to_json).collect();
                plan.steps.push(stored(id, error, &text, &children, now));
            }
        }
        match body.kind {
            Kind::Chain => fail_all(&[body.to_json()], error, Some(&text), now, &mut plan.steps)?,
            Kind::Chord => fail_all(&[body.body()?.to_json()], error, Some(&text), now, &mut plan.steps)?,
            Kind::Task | Kind::Group => {}
        }
        if body.kind != Kind::Chain {
            plan.steps.extend(part_of(body, error));
        }
    }
    let rest = body.options.list("chain");
    fail_all(&rest, error, Some(&traceback(error)), now, &mut plan.steps)?;
    note_called(&all, &mut plan.steps[start..]);
    Ok(())
}

/// The id of the result of `signature`, and the errbacks that hear of its failure: of a chord those of its body, too, of a
/// group those of its members.
fn result_errbacks(signature: &Signature) -> Result<(Option<String>, Vec<Json>), Reason> {
    let mut errbacks = signature.options.list("link_error");
    let id = match signature.kind {
        Kind::Chord => {
            let (id, of_body) = result_errbacks(&signature.body()?)?;
            errbacks.extend(of_body);
            id
        }
        Kind::Group => {
            for task in signature.tasks()? {
                errbacks.extend(result_errbacks(&task)?.1);
            }
            signature.id()
        }
        Kind::Task | Kind::Chain => signature.id(),
    };
    Ok((id, errbacks))
}

/// The body of a chord, or a member of it, as its errbacks are told of it.
fn noticed<'a>(id: &'a str, signature: &'a Signature, failure: &'a Failure) -> Failed<'a> {
    Failed {
        id,
        root: id,
        task: &signature.task,
        failure,
        traceback: None,
    }
}

fn stored(id: String, error: &Failure, traceback: &str, children: &[Json], done_at: jiff::Timestamp) -> FollowUp {
    let meta = Meta {
        done_at,
        trail: children,
        ..Meta::default()
    };
    let document = failure(&id, error, Some(traceback), &meta);
    FollowUp::Store(StoredFailure { id, document })
}

/// What stands in place of Python's frames: the last line of a traceback.
fn traceback(failure: &Failure) -> String {
    let message: Vec<String> = failure
        .message
        .iter()
        .map(|part| part.text().unwrap_or_else(|| part.to_string()))
        .collect();
    format!("{}.{}: {}", failure.exc_module, failure.exc_type, message.join(", "))
}
