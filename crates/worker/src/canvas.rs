//! What follows a task's end: callbacks, the next step of a chain, the parts and the body of a chord.
//!
//! # Guarantees
//! All of it happens in the script that acknowledges, so a workflow neither stops nor doubles when this worker dies in
//! between. A chord's part is counted before, which may be repeated: whoever counts last holds a claim that guards the
//! body. A worker that dies with the claim leaves its message to the lease, and the next run claims anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use umbel_broker::{Counted, Error, FollowUp, Part, ResultStore, claim_token};
use umbel_codec::TooLarge;
use umbel_protocol::canvas::{self, Aftermath, Builtin, ChordEnd, ChordPart, Outgoing, Sender, Signature, timings};
use umbel_protocol::json::Json;
use umbel_protocol::message::{Malformed, NO_EMBED, NewTask, TaskMessage};
use umbel_protocol::result;
use umbel_telemetry::chain;

use crate::app::Shared;
use crate::errback;
use crate::job::{Arguments, Failure, Job, JobContext, Outcome};
use crate::results::{self, Kind, is_wanted};
use crate::settle::is_refused;

/// Pause between two attempts to count a part.
const AGAIN: Duration = Duration::from_millis(100);

/// Calls `make` with somebody who sends now for the message's task, under fresh ids.
pub(crate) fn with_sender<T>(shared: &Shared, message: &TaskMessage, make: impl FnOnce(&mut Sender<'_>) -> T) -> T {
    let mut ids = || uuid::Uuid::new_v4().to_string();
    make(&mut Sender {
        now: shared.clock.timestamp(),
        origin: &shared.config.name,
        reply_to: "",
        priority: if shared.config.inherit_priority {
            message.priority
        } else {
            0
        },
        ids: &mut ids,
        is_function: &|name| shared.tasks.errback(name).is_some(),
    })
}

/// Does nothing hang on the message? Celery writes the same text for most of them.
pub(crate) fn is_alone(message: &TaskMessage) -> bool {
    message.embed.as_ref().is_none_or(|embed| embed.as_str() == NO_EMBED)
}

/// What follows when another task takes the place of this one, or why that cannot be.
pub(crate) fn replacement(shared: &Shared, message: &TaskMessage, with: &Signature) -> Result<Aftermath, Malformed> {
    with_sender(shared, message, |sender| canvas::replace(message, with, sender))
}

/// What follows a success: the aftermath, or why its workflow cannot be read.
pub(crate) fn after_success(shared: &Shared, message: &TaskMessage, result: &Json) -> Result<Aftermath, Malformed> {
    if is_alone(message) {
        return Ok(Aftermath::default());
    }
    with_sender(shared, message, |sender| canvas::after_success(message, result, sender))
}

/// What follows a failure. A workflow that cannot be read loses its rest, said in the log, but never its end.
pub(crate) fn after_failure(
    shared: &Shared,
    message: &TaskMessage,
    failure: &umbel_protocol::result::Failure,
    traceback: Option<&str>,
) -> Aftermath {
    if is_alone(message) {
        return Aftermath::default();
    }
    with_sender(shared, message, |sender| {
        canvas::after_failure(message, failure, traceback, sender)
    })
    .unwrap_or_else(|malformed| {
        tracing::error!(task.id = %message.id, reason = %malformed, "the rest of the workflow cannot be read");
        Aftermath::default()
    })
}

/// Turns an aftermath into operations on Redis. Counts chord parts on the way, again and again until Redis answers.
///
/// # Errors
/// Redis refused it for a whole lease: do not settle, the message will be delivered again.
pub(crate) async fn resolve(
    shared: &Arc<Shared>,
    message: &TaskMessage,
    aftermath: Aftermath,
) -> Result<Vec<FollowUp>, Error> {
    if aftermath.steps.is_empty() {
        return Ok(Vec::new());
    }
    steps(shared, &shared.store, message, aftermath).await
}

/// Boxed, for a chord's end may complete the chord around it.
fn steps<'a>(
    shared: &'a Arc<Shared>,
    store: &'a ResultStore,
    message: &'a TaskMessage,
    aftermath: Aftermath,
) -> BoxFuture<'a, Result<Vec<FollowUp>, Error>> {
    async move {
        let mut follow_ups = Vec::with_capacity(aftermath.steps.len());
        for step in aftermath.steps {
            match step {
                canvas::FollowUp::Send(outgoing) => follow_ups.extend(send(shared, message, &outgoing).await?),
                canvas::FollowUp::Call(called) => errback::call(shared, message, *called).await,
                canvas::FollowUp::Store(failure) => follow_ups.extend(
                    is_wanted(shared.config.results.store, None, None, Kind::Failure).then(|| FollowUp::Store {
                        key: store.key(&failure.id),
                        ttl: shared.config.failure_ttl,
                        document: shared.config.results.packed(failure.document),
                    }),
                ),
                canvas::FollowUp::Part(part) => follow_ups.extend(count(shared, store, message, &part).await?),
                canvas::FollowUp::ChordSize { group, size } => {
                    let keys = store.chord_keys(&group);
                    follow_ups.push(FollowUp::Delete { key: keys.claim });
                    follow_ups.push(FollowUp::Set {
                        key: keys.size,
                        ttl: timings::PARTS,
                        value: size.to_string().into_bytes(),
                    });
                }
                canvas::FollowUp::SaveGroup { group, document } => follow_ups.push(FollowUp::Set {
                    key: store.chord_keys(&group).group,
                    ttl: timings::PARTS,
                    value: shared.config.results.written(&document),
                }),
                canvas::FollowUp::Extend { group, by } => {
                    follow_ups.push(FollowUp::Extend {
                        key: store.chord_keys(&group).extra,
                        ttl: timings::PARTS,
                        by,
                        once: uuid::Uuid::new_v4().to_string(),
                    });
                }
            }
        }
        Ok(follow_ups)
    }
    .boxed()
}

/// A message into its list; through a named exchange, a copy into each queue that is bound.
async fn send(shared: &Shared, message: &TaskMessage, outgoing: &Outgoing) -> Result<Vec<FollowUp>, Error> {
    let task = &outgoing.task;
    let queues = match &outgoing.exchange {
        None => vec![task.queue.clone()],
        Some(exchange) => {
            let bound = shared.broker.bound_queues(exchange, &task.queue).await?;
            if bound.is_empty() {
                tracing::error!(task.id = %task.id, task.name = %task.task, exchange, routing_key = %task.queue, "no queue is bound: sent to the queue of that name");
                vec![task.queue.clone()]
            } else {
                bound
            }
        }
    };
    if shared.config.task_sent_events {
        shared.events.always(|| crate::events::sent(outgoing));
    }
    Ok(queues
        .iter()
        .filter_map(|queue| {
            let mut copy = task.clone();
            crate::facts::pass_trace_on(message, &mut copy.headers);
            copy.delivery_tag = uuid::Uuid::new_v4().to_string(); // One of its own: kombu keeps messages by it.
            let (serializer, compression) = (outgoing.serializer.as_deref(), outgoing.compression.as_deref());
            let (codec, most) = (&shared.config.codec, shared.config.max_message);
            let raw = match codec.outgoing(&copy, serializer, compression, most) {
                Ok(raw) => raw,
                Err(TooLarge { bytes }) => return too_large(shared, task, bytes),
            };
            Some(FollowUp::Push {
                list: shared.broker.keys().list(queue, task.priority),
                raw,
            })
        })
        .collect())
}

/// Workers would put such a message away unread (the body of a chord holds all results): whoever waits for it is told.
fn too_large(shared: &Shared, task: &NewTask, bytes: usize) -> Option<FollowUp> {
    let most = shared.config.max_message;
    let why = format!("the message of {bytes} bytes is larger than the limit of {most}: it was not sent");
    tracing::error!(task.id = %task.id, task.name = %task.task, bytes, most, "not sent: larger than --max-message");
    let options = shared.tasks.options(&task.task);
    if !is_wanted(shared.config.results.store, options, task.ignore_result, Kind::Failure) {
        return None;
    }
    let failure = result::Failure::new("builtins", "ValueError", &why);
    let meta = result::Meta {
        done_at: shared.clock.timestamp(),
        group_id: task.group.as_deref(),
        ..result::Meta::default()
    };
    Some(FollowUp::Store {
        key: shared.store.key(&task.id),
        ttl: shared.config.failure_ttl,
        document: shared
            .config
            .results
            .packed(result::failure(&task.id, &failure, None, &meta)),
    })
}

/// The end of a chord's member from which nothing follows but its part: counted with those that end beside it.
pub(crate) struct Member {
    pub(crate) shared: Arc<Shared>,
    pub(crate) message: Arc<TaskMessage>,
    pub(crate) part: Box<ChordPart>,
}

impl Member {
    /// Takes the part out of an aftermath that is nothing else.
    pub(crate) fn of(
        shared: &Arc<Shared>,
        message: &Arc<TaskMessage>,
        aftermath: &mut Aftermath,
    ) -> Option<Box<Member>> {
        let [canvas::FollowUp::Part(_)] = aftermath.steps.as_slice() else {
            return None;
        };
        let Some(canvas::FollowUp::Part(part)) = aftermath.steps.pop() else {
            return None;
        };
        Some(Box::new(Member {
            shared: Arc::clone(shared),
            message: Arc::clone(message),
            part,
        }))
    }

    /// The part as it is stored.
    pub(crate) fn written(&self) -> Vec<u8> {
        self.shared.config.results.written(&self.part.json)
    }

    /// Counts the part in a call of its own.
    ///
    /// # Errors
    /// As of [`resolve`].
    pub(crate) async fn count(&self) -> Result<Vec<FollowUp>, Error> {
        count(&self.shared, &self.shared.store, &self.message, &self.part).await
    }

    /// What follows the part, which completed its chord.
    ///
    /// # Errors
    /// As of [`resolve`].
    pub(crate) async fn complete(&self, structure: Option<&[u8]>, parts: &[Vec<u8>]) -> Result<Vec<FollowUp>, Error> {
        let Member { shared, message, part } = self;
        complete(shared, &shared.store, message, part, (structure, parts)).await
    }
}

/// Counts a part; the last one is followed by the chord's body, or by its failure.
async fn count(
    shared: &Arc<Shared>,
    store: &ResultStore,
    message: &TaskMessage,
    part: &ChordPart,
) -> Result<Vec<FollowUp>, Error> {
    let (began, written) = (Instant::now(), shared.config.results.written(&part.json));
    let counted = loop {
        let counted = Part {
            part,
            written: &written,
        };
        match store.count_parts(&[counted], shared.config.is_chord_fast).await {
            Ok(counted) => break counted,
            Err(err) if err.is_wrong_type() => {
                tracing::error!(task.id = %message.id, group = %part.group, error = %chain(&err), "the chord cannot be counted and will not end");
                return Ok(Vec::new());
            }
            Err(err) if is_refused(&err) && began.elapsed() > shared.config.lease => return Err(err),
            Err(err) => {
                tracing::debug!(error = %chain(&err), "counting a chord's part again");
                tokio::time::sleep(AGAIN).await;
            }
        }
    };
    match counted.into_iter().next() {
        Some(Counted::Claimed { structure, parts }) => {
            complete(shared, store, message, part, (structure.as_deref(), &parts)).await
        }
        Some(Counted::Open | Counted::Done) | None => Ok(Vec::new()),
    }
}

/// What follows the part that completed its chord, whose parts these are.
async fn complete(
    shared: &Arc<Shared>,
    store: &ResultStore,
    message: &TaskMessage,
    part: &ChordPart,
    (structure, parts): (Option<&[u8]>, &[Vec<u8>]),
) -> Result<Vec<FollowUp>, Error> {
    let structure = structure.and_then(results::read);
    // What cannot be read is no part: who completes the chord says so.
    let parts: Vec<Json> = parts
        .iter()
        .map(|part| results::read(part).unwrap_or_else(Json::null))
        .collect();
    let end = with_sender(shared, message, |sender| {
        canvas::complete_chord(message, part, &parts, structure.as_ref(), sender)
    });
    let keys = store.chord_keys(&part.group);
    let then = match end {
        Ok(ChordEnd::Body(body)) => {
            let mut then = steps(shared, store, message, body).await?;
            let gone = [keys.parts, keys.extra, keys.size, keys.counted];
            then.extend(gone.into_iter().map(|key| FollowUp::Delete { key }));
            then.push(FollowUp::Set {
                key: keys.claim.clone(),
                ttl: timings::DONE,
                value: b"done".to_vec(),
            });
            then
        }
        Ok(ChordEnd::Failed(failed)) => {
            let mut then = steps(shared, store, message, failed).await?;
            then.push(FollowUp::Delete { key: keys.size });
            if shared.config.is_chord_fast {
                // Parts may be on their way: nobody is to count them any more.
                then.extend([keys.parts, keys.extra, keys.counted].map(|key| FollowUp::Delete { key }));
                then.push(FollowUp::Set {
                    key: keys.claim.clone(),
                    ttl: timings::DONE,
                    value: b"done".to_vec(),
                });
            }
            then
        }
        Err(malformed) => {
            tracing::error!(task.id = %message.id, group = %part.group, reason = %malformed, "the chord's body cannot be sent");
            let why = malformed.to_string();
            let failed = with_sender(shared, message, |sender| {
                canvas::fail_chord(message, part, &why, sender)
            });
            let mut then = match failed {
                Ok(failed) => steps(shared, store, message, failed).await?,
                // The body is no signature: there is nobody to tell.
                Err(_) => Vec::new(),
            };
            then.push(FollowUp::Delete { key: keys.size });
            then
        }
    };
    Ok(vec![FollowUp::Guarded {
        key: keys.claim,
        token: claim_token(part),
        then,
    }])
}

/// A task that every Celery worker has, as a job, with what it sends.
pub(crate) fn builtin(shared: &Shared, message: &TaskMessage) -> Option<(Arc<dyn Job>, Aftermath)> {
    let planned = with_sender(shared, message, |sender| canvas::builtin(message, sender));
    let fixed = |outcome| Arc::new(Fixed { outcome }) as Arc<dyn Job>;
    Some(match planned {
        Ok(None) => return None,
        Ok(Some(Builtin::Returns(value))) => (fixed(Outcome::Done(value)), Aftermath::default()),
        Ok(Some(Builtin::Sends { aftermath, result })) => (fixed(Outcome::Done(result)), aftermath),
        Ok(Some(Builtin::Calls { task, args })) => {
            if let Some(job) = shared.tasks.get(&task) {
                (
                    Arc::new(Calls {
                        job: Arc::clone(job),
                        args,
                    }),
                    Aftermath::default(),
                )
            } else {
                let failure = Failure {
                    exc_module: "celery.exceptions".into(),
                    ..Failure::permanent("NotRegistered", task.clone())
                };
                (fixed(Outcome::Failed(failure)), Aftermath::default())
            }
        }
        Err(malformed) => (
            fixed(Outcome::Failed(Failure::type_error(malformed.to_string()))),
            Aftermath::default(),
        ),
    })
}

/// A task whose outcome is known.
struct Fixed {
    outcome: Outcome,
}

impl Job for Fixed {
    fn name(&self) -> &'static str {
        "celery"
    }

    fn run<'a>(&'a self, _ctx: &'a JobContext, _args: Arguments) -> BoxFuture<'a, Outcome> {
        std::future::ready(self.outcome.clone()).boxed()
    }
}

/// One task for each of many argument lists, one after the other: `celery.map` and `celery.starmap`.
struct Calls {
    job: Arc<dyn Job>,
    args: Vec<Json>,
}

impl Job for Calls {
    fn name(&self) -> &'static str {
        "celery.starmap"
    }

    fn run<'a>(&'a self, ctx: &'a JobContext, _args: Arguments) -> BoxFuture<'a, Outcome> {
        async move {
            let mut results = Vec::with_capacity(self.args.len());
            for args in &self.args {
                let call = Arguments {
                    args: args.clone(),
                    kwargs: Json::empty_object(),
                };
                match self.job.run(ctx, call).await {
                    Outcome::Done(value) => results.push(value),
                    ended @ (Outcome::Retry { .. }
                    | Outcome::Parked { .. }
                    | Outcome::Again(_)
                    | Outcome::Failed(_)
                    | Outcome::Ignored
                    | Outcome::Rejected { .. }
                    | Outcome::Replaced(_)) => return ended,
                }
            }
            let texts: Vec<&str> = results.iter().map(Json::as_str).collect();
            match Json::parse(&format!("[{}]", texts.join(", "))) {
                Ok(list) => Outcome::Done(list),
                Err(err) => Outcome::Failed(Failure::permanent(
                    "ValueError",
                    format!("too deep to be returned: {err}"),
                )),
            }
        }
        .boxed()
    }
}
