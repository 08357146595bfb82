//! Sending: one task, many, and workflows.
//!
//! # Guarantees
//! Tasks that one call sends to one queue under one priority stand there in the order of the call. A chord's size is
//! known to Redis before its last member is.

use std::ops::Range;
use std::time::Duration;

use umbel_broker::{Fate, Publication, Undelivered};
use umbel_protocol::canvas::{self, FollowUp, ResultTuple, Sender, Signature};
use umbel_protocol::json::Json;

use crate::prepare::{Bindings, Ready, Target, kind_of};
use crate::{Client, Handle, SendError, Task};

/// Tasks that are encoded while the ones before are on their way.
const BATCH: usize = 512;
/// A server that has not answered for so long is asked first.
const IDLE: Duration = Duration::from_millis(20);
/// An event that takes longer is not worth the wait.
const EVENTS: Duration = Duration::from_secs(5);
/// Events sent in one round trip.
const EVENTS_TOGETHER: usize = 256;

/// A batch, ready to be published.
struct Batch {
    ready: Vec<Ready>,
    publications: Vec<Publication>,
    /// The publications of each task.
    of: Vec<Range<usize>>,
}

/// What became of the tasks of a call.
#[derive(Default)]
struct Done {
    sent: Vec<String>,
    unknown: Vec<String>,
    unsent: Vec<String>,
}

impl Client {
    /// Sends a task.
    ///
    /// # Errors
    /// [`SendError`]; [`SendError::may_have_been_sent`] says whether it can be repeated without doing work twice.
    ///
    /// # Cancellation
    /// The task may have been sent.
    pub async fn send<C>(&self, task: Task<C>) -> Result<Handle, SendError> {
        let is_ignored = task.options.ignore_result == Some(true);
        let task = task.detached();
        self.check(&task)?;
        let ready = self.ready(task)?;
        let handle = Handle::new(self, ResultTuple::task(&ready.task.id), is_ignored);
        let mut bindings = Bindings::new();
        let batch = self.batch(vec![ready], &mut bindings).await?;
        let mut done = Done::default();
        self.publish(&batch, &mut done).await?;
        Ok(handle)
    }

    /// Sends tasks in their order, many to a round trip. All are looked at before the first is sent, so they are held in
    /// memory: for millions, call it for some ten thousand at a time.
    ///
    /// # Errors
    /// [`SendError::Undelivered`] names the tasks that were sent, that may have been, and that were not; others mean that
    /// nothing was sent.
    ///
    /// # Cancellation
    /// Some tasks may have been sent.
    pub async fn send_all<C>(&self, tasks: impl IntoIterator<Item = Task<C>>) -> Result<Vec<Handle>, SendError> {
        let tasks = tasks.into_iter();
        let mut handles = Vec::with_capacity(tasks.size_hint().0);
        let mut waiting: Vec<Task> = Vec::with_capacity(tasks.size_hint().0);
        let mut is_plain = true;
        for task in tasks {
            let mut task = task.detached();
            is_plain &= self.check(&task)?;
            let id = task.options.id.get_or_insert_with(|| self.new_id());
            let is_ignored = task.options.ignore_result == Some(true);
            handles.push(Handle::new(self, ResultTuple::task(id), is_ignored));
            waiting.push(task);
        }
        let mut done = Done::default();
        if !is_plain {
            // What may still be found wrong with one is found before the first is sent.
            let ready = waiting.into_iter().map(|task| self.ready(task));
            let ready: Vec<Ready> = ready.collect::<Result<_, _>>()?;
            let mut bindings = Bindings::new();
            self.bindings(&ready, &mut bindings).await.map_err(unprepared)?;
            let mut batches = Vec::new();
            let mut ready = ready.into_iter();
            while let Some(batch) = self.encode_next(&mut ready, &bindings).await? {
                batches.push(batch);
            }
            let mut batches = batches.into_iter();
            while let Some(batch) = batches.next() {
                if let Err(err) = self.publish(&batch, &mut done).await {
                    let left = batches.flat_map(|batch| batch.ready).map(|ready| ready.task.id);
                    return Err(with_rest(err, left.collect()));
                }
            }
            return Ok(handles);
        }
        let mut waiting = waiting.into_iter();
        let mut batch = self.make_next(&mut waiting).await?;
        while let Some(now) = batch.take() {
            // The next batch is made on another thread while this one travels.
            let (next, published) = tokio::join!(self.make_next(&mut waiting), self.publish(&now, &mut done));
            let next = next?;
            if let Err(err) = published {
                let made = next.into_iter().flat_map(|next| next.ready);
                let mut left: Vec<String> = made.map(|ready| ready.task.id).collect();
                left.extend(waiting.filter_map(|task| task.options.id));
                return Err(with_rest(err, left));
            }
            batch = next;
        }
        Ok(handles)
    }

    /// The next batch of tasks in which nothing can be wrong any more.
    async fn make_next(&self, waiting: &mut std::vec::IntoIter<Task>) -> Result<Option<Batch>, SendError> {
        let tasks: Vec<Task> = waiting.by_ref().take(BATCH).collect();
        if tasks.is_empty() {
            return Ok(None);
        }
        let is_small = tasks.len() < BATCH / 4;
        let client = self.clone();
        let make = move || {
            let ready = tasks.into_iter().map(|task| client.ready(task));
            let ready: Vec<Ready> = ready.collect::<Result<_, _>>()?;
            client.encoded(ready, &Bindings::new())
        };
        if is_small {
            return make().map(Some);
        }
        elsewhere(make).await
    }

    async fn encode_next(
        &self,
        waiting: &mut std::vec::IntoIter<Ready>,
        bindings: &Bindings,
    ) -> Result<Option<Batch>, SendError> {
        let ready: Vec<Ready> = waiting.by_ref().take(BATCH).collect();
        if ready.is_empty() {
            return Ok(None);
        }
        if ready.len() < BATCH / 4 {
            return self.encoded(ready, bindings).map(Some);
        }
        let (client, bindings) = (self.clone(), bindings.clone());
        elsewhere(move || client.encoded(ready, &bindings)).await
    }

    /// Sends a workflow. The handle is that of its end: the last step of a chain, the body of a chord, all members of a
    /// group.
    ///
    /// # Errors
    /// [`SendError`].
    ///
    /// # Cancellation
    /// Parts of it may have been sent.
    pub async fn apply(&self, workflow: impl Into<Signature>) -> Result<Handle, SendError> {
        let signature = workflow.into();
        if let Some(reason) = problem_in(&signature) {
            return Err(SendError::Call {
                task: signature.task,
                reason,
            });
        }
        let is_ignored = signature
            .options
            .get("ignore_result")
            .is_some_and(|ignore| ignore.as_str() == "true");
        let mut ids = || self.new_id();
        let mut sender = Sender {
            now: self.now(),
            origin: &self.inner.origin,
            reply_to: &self.inner.reply_to,
            priority: 0,
            ids: &mut ids,
            is_function: &|_| false,
        };
        let (aftermath, result) =
            canvas::apply(&signature, &self.inner.options.queue, &mut sender).map_err(SendError::Workflow)?;
        self.follow(aftermath.steps).await?;
        Ok(Handle::new(self, result, is_ignored))
    }

    /// Carries out what sending a workflow entails, in order.
    async fn follow(&self, steps: Vec<FollowUp>) -> Result<(), SendError> {
        let mut messages = Vec::new();
        for step in &steps {
            if let FollowUp::Send(outgoing) = step {
                messages.push(self.outgoing(outgoing)?);
            }
        }
        let mut bindings = Bindings::new();
        self.bindings(&messages, &mut bindings).await.map_err(unprepared)?;
        let mut messages = messages.into_iter();
        let (mut waiting, mut done) = (Vec::new(), Done::default());
        let ttl = self.inner.options.chord_ttl;
        let results = &self.inner.results;
        for step in steps {
            match step {
                FollowUp::Send(_) => waiting.extend(messages.next()),
                FollowUp::ChordSize { group, size } => {
                    self.flush(&mut waiting, &bindings, &mut done).await?;
                    self.prepare(&mut done, "open the chord", async || {
                        results.open_chord(&group, size, ttl).await
                    })
                    .await?;
                }
                FollowUp::SaveGroup { group, document } => {
                    self.flush(&mut waiting, &bindings, &mut done).await?;
                    self.prepare(&mut done, "keep the chord's structure", async || {
                        results.keep_structure(&group, document.as_str().as_bytes(), ttl).await
                    })
                    .await?;
                }
                // What ends or grows a running workflow does not come of sending one.
                FollowUp::Store(_) | FollowUp::Part(_) | FollowUp::Call(_) | FollowUp::Extend { .. } => {}
            }
        }
        self.flush(&mut waiting, &bindings, &mut done).await
    }

    async fn flush(&self, waiting: &mut Vec<Ready>, bindings: &Bindings, done: &mut Done) -> Result<(), SendError> {
        let mut all = std::mem::take(waiting).into_iter();
        while let Some(batch) = self.encode_next(&mut all, bindings).await? {
            if let Err(err) = self.publish(&batch, done).await {
                return Err(with_rest(err, all.map(|ready| ready.task.id).collect()));
            }
        }
        Ok(())
    }

    /// Writes a chord's records; doing that twice does no harm.
    async fn prepare(
        &self,
        done: &mut Done,
        what: &'static str,
        attempt: impl AsyncFn() -> Result<(), umbel_broker::Error>,
    ) -> Result<(), SendError> {
        let retry = self.inner.options.retry;
        let mut pause = retry.pause;
        for left in (0..retry.attempts.max(1)).rev() {
            match attempt().await {
                Ok(()) => return Ok(()),
                Err(err) if left > 0 && err.is_connection() => {
                    tracing::debug!(error = %err, what, "once more");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(source) => {
                    return Err(SendError::Prepare {
                        what,
                        sent: std::mem::take(&mut done.sent),
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    fn outgoing(&self, outgoing: &canvas::Outgoing) -> Result<Ready, SendError> {
        let canvas::Outgoing {
            task,
            exchange,
            exchange_type,
            serializer,
            compression,
        } = outgoing;
        let mut task = task.clone();
        let target = match exchange {
            Some(name) if !name.is_empty() => {
                task.exchange.clone_from(name);
                let kind = match exchange_type {
                    Some(kind) => Some(kind.parse().map_err(|err: umbel_broker::Error| SendError::Call {
                        task: task.task.clone(),
                        reason: err.to_string(),
                    })?),
                    None => None,
                };
                Target::Exchange(kind_of(&self.inner.options, name, kind)?)
            }
            Some(_) | None => Target::Queue,
        };
        let (serializer, compression) = self.form(&task.task, serializer.as_deref(), compression.as_deref())?;
        Ok(Ready {
            task,
            target,
            idempotent: false,
            serializer,
            compression,
        })
    }

    async fn batch(&self, ready: Vec<Ready>, bindings: &mut Bindings) -> Result<Batch, SendError> {
        self.bindings(&ready, bindings).await.map_err(unprepared)?;
        self.encoded(ready, bindings)
    }

    fn encoded(&self, ready: Vec<Ready>, bindings: &Bindings) -> Result<Batch, SendError> {
        let mut publications = Vec::with_capacity(ready.len());
        let mut of = Vec::with_capacity(ready.len());
        for one in &ready {
            let start = publications.len();
            self.publications(one, bindings, &mut publications)?;
            of.push(start..publications.len());
        }
        Ok(Batch {
            ready,
            publications,
            of,
        })
    }

    /// Publishes a batch, again where that is allowed, and tells of it.
    async fn publish(&self, batch: &Batch, done: &mut Done) -> Result<(), SendError> {
        let settings = &self.inner.options;
        let mut pause = settings.retry.pause;
        let mut fates = vec![Fate::NotSent; batch.publications.len()];
        let may_repeat: Vec<bool> = batch
            .ready
            .iter()
            .zip(&batch.of)
            .flat_map(|(ready, of)| std::iter::repeat_n(ready.idempotent, of.len()))
            .collect();
        for left in (0..settings.retry.attempts.max(1)).rev() {
            let is_open = |at: &usize| fates[*at] == Fate::NotSent || (fates[*at] == Fate::Unknown && may_repeat[*at]);
            let open: Vec<usize> = (0..fates.len()).filter(is_open).collect();
            let whole = open.len() == fates.len();
            let attempt = if let Err(error) = self.awake().await {
                // Nothing was on its way: the question went in front.
                Err(Undelivered {
                    fates: open.iter().map(|at| fates[*at]).collect(),
                    error,
                })
            } else if whole {
                self.inner
                    .broker
                    .publish_all(&batch.publications, settings.replicas)
                    .await
            } else {
                let again: Vec<Publication> = open.iter().map(|at| batch.publications[*at].clone()).collect();
                self.inner.broker.publish_all(&again, settings.replicas).await
            };
            let Err(Undelivered { fates: known, error }) = attempt else {
                for at in open {
                    fates[at] = Fate::Sent;
                }
                self.inner.answered.now();
                break;
            };
            self.inner.answered.never();
            for (at, fate) in open.iter().zip(known) {
                fates[*at] = fate;
            }
            // A refusal for good is not repeated: a key of another type, a right that is missing, a full server.
            let is_passing = error.is_connection() || matches!(error.code(), Some("LOADING" | "BUSY" | "MASTERDOWN"));
            let is_unknown = (0..fates.len()).any(|at| fates[at] == Fate::Unknown && !may_repeat[at]);
            if left == 0 || !is_passing || is_unknown {
                self.note(batch, &fates, done);
                return Err(SendError::Undelivered {
                    sent: std::mem::take(&mut done.sent),
                    unknown: std::mem::take(&mut done.unknown),
                    unsent: std::mem::take(&mut done.unsent),
                    source: error,
                });
            }
            tracing::debug!(error = %error, "sending once more");
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.note(batch, &fates, done);
        if settings.events {
            self.tell(&batch.ready).await;
        }
        Ok(())
    }

    /// Asks whether the server is there, unless it has answered a moment ago. A connection that was lost while nothing was
    /// sent is noticed here, by a question that can be repeated, and not by a message of which nobody knows.
    async fn awake(&self) -> Result<(), umbel_broker::Error> {
        if self.inner.answered.elapsed() > IDLE {
            self.inner.broker.time().await?;
            self.inner.answered.now();
        }
        Ok(())
    }

    /// Counts a task as sent when all its copies are, as not sent when none is.
    fn note(&self, batch: &Batch, fates: &[Fate], done: &mut Done) {
        let _ = self;
        for (ready, of) in batch.ready.iter().zip(&batch.of) {
            let fates = &fates[of.clone()];
            let all = |fate| fates.iter().all(|known| *known == fate);
            let list = if all(Fate::Sent) {
                &mut done.sent
            } else if all(Fate::NotSent) {
                &mut done.unsent
            } else {
                &mut done.unknown
            };
            list.push(ready.task.id.clone());
        }
    }

    /// Events are told when they can be: a task is sent with or without.
    async fn tell(&self, ready: &[Ready]) {
        for ready in ready.chunks(EVENTS_TOGETHER) {
            let events: Vec<_> = ready.iter().map(|ready| self.sent_event(ready)).collect();
            if let Err(err) = self.inner.broker.publish_events(&events, EVENTS).await {
                tracing::debug!(error = %err, "task-sent is lost");
                return;
            }
        }
    }
}

/// Does work on a thread where it holds up nobody.
async fn elsewhere<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SendError> + Send + 'static,
) -> Result<Option<T>, SendError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map(Some),
        Err(stopped) => match stopped.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Ok(None), // The runtime is shutting down, and this future with it.
        },
    }
}

fn unprepared(source: umbel_broker::Error) -> SendError {
    SendError::Prepare {
        what: "read the bindings of an exchange",
        sent: Vec::new(),
        source,
    }
}

/// The error, with the tasks that were not even tried.
fn with_rest(err: SendError, left: Vec<String>) -> SendError {
    match err {
        SendError::Undelivered {
            sent,
            unknown,
            mut unsent,
            source,
        } => {
            unsent.extend(left);
            SendError::Undelivered {
                sent,
                unknown,
                unsent,
                source,
            }
        }
        other => other,
    }
}

/// The option by which a [`Task`] tells a workflow what is wrong with it.
pub(crate) const PROBLEM: &str = "umbel_problem";

/// What a task in the workflow says is wrong with it.
fn problem_in(signature: &Signature) -> Option<String> {
    let json = signature.to_json();
    let (_, after) = json.as_str().split_once(&format!("\"{PROBLEM}\": \""))?;
    let mut escaped = false;
    let end = after.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })?;
    Json::parse(&format!("\"{}\"", after.get(..end)?)).ok()?.text()
}
