//! Sending: one task, many, and workflows.
//!
//! # Guarantees
//! Tasks that one call sends to one queue under one priority stand there in the order of the call. A chord's size is
//! known to Redis before its last member is.

use std::time::Duration;

use umbel_broker::{Fate, Undelivered};
use umbel_protocol::canvas::{self, FollowUp, ResultTuple, Sender, Signature};
use umbel_protocol::json::Json;

use crate::batch::Batch;
use crate::prepare::{Bindings, Ready, Sendable, Target, kind_of};
use crate::{Client, Handle, SendError, Task};

/// A server that has not answered for so long is asked first.
const IDLE: Duration = Duration::from_millis(20);
/// An event that takes longer is not worth the wait.
const EVENTS: Duration = Duration::from_secs(5);
/// Events sent in one round trip.
const EVENTS_TOGETHER: usize = 256;

/// What became of the tasks of a batch that did not go through.
struct Stuck {
    sent: Vec<String>,
    unknown: Vec<String>,
    unsent: Vec<String>,
    source: umbel_broker::Error,
}

impl Stuck {
    /// Between those that were sent before it and those that were not tried.
    fn between<'a>(self, before: impl Iterator<Item = &'a str>, behind: impl Iterator<Item = &'a str>) -> SendError {
        let mut sent: Vec<String> = before.map(str::to_owned).collect();
        sent.extend(self.sent);
        let mut unsent = self.unsent;
        unsent.extend(behind.map(str::to_owned));
        SendError::Undelivered {
            sent,
            unknown: self.unknown,
            unsent,
            source: self.source,
        }
    }
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
        let mut task = task.detached();
        let is_plain = self.accept(&mut task)?;
        if let Some(unique) = &task.options.unique {
            return self.send_unique(&task, unique).await;
        }
        let task = [task];
        self.send_accepted(&task, is_plain).await?;
        Ok(self.handle_of(&task[0]))
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
        let mut accepted: Vec<Task> = Vec::with_capacity(tasks.size_hint().0);
        let mut is_plain = true;
        for task in tasks {
            let mut task = task.detached();
            is_plain &= self.accept(&mut task)?;
            handles.push(self.handle_of(&task));
            accepted.push(task);
        }
        if accepted.iter().any(|task| task.options.unique.is_some()) {
            return self.send_each(&accepted).await;
        }
        self.send_accepted(&accepted, is_plain).await?;
        Ok(handles)
    }

    /// One at a time, for tasks among which some are unique: the handle of such a one is known when it was sent.
    async fn send_each(&self, tasks: &[Task]) -> Result<Vec<Handle>, SendError> {
        let mut handles = Vec::with_capacity(tasks.len());
        for (at, task) in tasks.iter().enumerate() {
            let sent = match &task.options.unique {
                Some(unique) => self.send_unique(task, unique).await,
                None => {
                    let sent = self.send_accepted(std::slice::from_ref(task), false).await;
                    sent.map(|()| self.handle_of(task))
                }
            };
            handles.push(sent.map_err(|err| err.around(ids(&tasks[..at]), ids(&tasks[at + 1..])))?);
        }
        Ok(handles)
    }

    fn handle_of(&self, task: &Task) -> Handle {
        let is_ignored = task.ignore_result == Some(true);
        Handle::new(self, ResultTuple::task(task.id()), is_ignored)
    }

    async fn send_accepted(&self, tasks: &[Task], is_plain: bool) -> Result<(), SendError> {
        let mut bindings = Bindings::new();
        if !is_plain {
            self.bindings(tasks, &mut bindings).await?;
            if tasks.len() > 1 {
                // What may still be found wrong with one is found before the first is sent.
                return self.send_written(tasks, &bindings).await;
            }
        }
        self.send_writing(tasks, &bindings).await
    }

    /// Writes the next batch while one travels.
    async fn send_writing<T: Sendable>(&self, items: &[T], bindings: &Bindings) -> Result<(), SendError> {
        let mut batch = self.write(items, bindings, Vec::new()).await?;
        let (mut begin, mut end) = (0, batch.items.len());
        let mut buffer = Vec::new();
        while begin < end {
            // The connection gets its batch first.
            let (published, next) = tokio::join!(
                biased;
                self.publish(&batch),
                self.write(&items[end..], bindings, std::mem::take(&mut buffer))
            );
            if let Err(stuck) = published {
                return Err(stuck.between(ids(&items[..begin]), ids(&items[end..])));
            }
            buffer = std::mem::replace(&mut batch, next?).into_buffer();
            (begin, end) = (end, end + batch.items.len());
        }
        Ok(())
    }

    /// Writes all batches, then sends them.
    async fn send_written<T: Sendable>(&self, items: &[T], bindings: &Bindings) -> Result<(), SendError> {
        let (mut batches, mut end) = (Vec::new(), 0);
        while end < items.len() {
            let batch = self.write(&items[end..], bindings, Vec::new()).await?;
            end += batch.items.len();
            batches.push(batch);
        }
        let mut begin = 0;
        for batch in batches {
            let end = begin + batch.items.len();
            if let Err(stuck) = self.publish(&batch).await {
                return Err(stuck.between(ids(&items[..begin]), ids(&items[end..])));
            }
            begin = end;
        }
        Ok(())
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
        let mut signature = workflow.into();
        if let Some(reason) = problem_in(&signature) {
            return Err(SendError::Call {
                task: signature.task,
                reason,
            });
        }
        if !self.inner.options.routes.is_empty() {
            signature = self
                .inner
                .options
                .routes
                .lead_all(signature)
                .map_err(SendError::Workflow)?;
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
        self.bindings(&messages, &mut bindings).await?;
        // The steps send them in their order: these wait for the next step that has to come first, those are sent.
        let (mut waiting, mut sent) = (0, 0);
        let ttl = self.inner.options.chord_ttl;
        let results = &self.inner.results;
        for step in steps {
            match step {
                FollowUp::Send(_) => waiting += 1,
                FollowUp::ChordSize { group, size } => {
                    self.flush(&messages, &mut sent, waiting, &bindings).await?;
                    self.prepare(&messages[..sent], "open the chord", async || {
                        results.open_chord(&group, size, ttl).await
                    })
                    .await?;
                }
                FollowUp::SaveGroup { group, document } => {
                    self.flush(&messages, &mut sent, waiting, &bindings).await?;
                    self.prepare(&messages[..sent], "keep the chord's structure", async || {
                        results.keep_structure(&group, &self.written(&document), ttl).await
                    })
                    .await?;
                }
                // What ends or grows a running workflow does not come of sending one.
                FollowUp::Store(_) | FollowUp::Part(_) | FollowUp::Call(_) | FollowUp::Extend { .. } => {}
            }
        }
        self.flush(&messages, &mut sent, waiting, &bindings).await
    }

    /// Sends what waits.
    async fn flush(
        &self,
        messages: &[Ready],
        sent: &mut usize,
        waiting: usize,
        bindings: &Bindings,
    ) -> Result<(), SendError> {
        let result = self.send_writing(&messages[*sent..waiting], bindings).await;
        let result = result.map_err(|err| err.around(ids(&messages[..*sent]), ids(&messages[waiting..])));
        *sent = waiting;
        result
    }

    /// Writes a chord's records; doing that twice does no harm.
    async fn prepare(
        &self,
        sent: &[Ready],
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
                        sent: ids(sent).map(str::to_owned).collect(),
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
            serializer,
            compression,
        })
    }

    /// Publishes a batch, again where that is allowed, and tells of it.
    async fn publish<T: Sendable>(&self, batch: &Batch<'_, T>) -> Result<(), Stuck> {
        let replicas = self.inner.options.replicas;
        let publications = batch.publications();
        let first = match self.awake().await {
            Ok(()) => self.inner.broker.publish_all(&publications, replicas).await,
            // Nothing was on its way: the question went in front.
            Err(error) => Err(Undelivered {
                fates: vec![Fate::NotSent; publications.len()],
                error,
            }),
        };
        match first {
            Ok(()) => self.inner.answered.now(),
            Err(undelivered) => self.publish_again(batch, undelivered).await?,
        }
        if self.inner.options.events {
            self.tell(batch.items).await;
        }
        Ok(())
    }

    async fn publish_again<T: Sendable>(&self, batch: &Batch<'_, T>, first: Undelivered) -> Result<(), Stuck> {
        let settings = &self.inner.options;
        let publications = batch.publications();
        let may_repeat: Vec<bool> = batch
            .each()
            .flat_map(|(item, of)| std::iter::repeat_n(item.is_idempotent(), of.len()))
            .collect();
        let mut pause = settings.retry.pause;
        let Undelivered { mut fates, mut error } = first;
        for _ in 1..settings.retry.attempts.max(1) {
            self.inner.answered.never();
            // A refusal for good is not repeated: a key of another type, a right that is missing, a full server.
            let is_passing = error.is_connection() || matches!(error.code(), Some("LOADING" | "BUSY" | "MASTERDOWN"));
            let is_unknown = (0..fates.len()).any(|at| fates[at] == Fate::Unknown && !may_repeat[at]);
            if !is_passing || is_unknown {
                break;
            }
            tracing::debug!(error = %error, "sending once more");
            tokio::time::sleep(pause).await;
            pause *= 2;
            let open: Vec<usize> = (0..fates.len()).filter(|at| fates[*at] != Fate::Sent).collect();
            if let Err(err) = self.awake().await {
                error = err;
                continue;
            }
            let again: Vec<_> = open.iter().map(|at| publications[*at]).collect();
            match self.inner.broker.publish_all(&again, settings.replicas).await {
                Ok(()) => {
                    self.inner.answered.now();
                    return Ok(());
                }
                Err(undelivered) => {
                    for (at, fate) in open.into_iter().zip(undelivered.fates) {
                        fates[at] = fate;
                    }
                    error = undelivered.error;
                }
            }
        }
        self.inner.answered.never();
        Err(stuck(batch, &fates, error))
    }

    /// Asks whether the server is there, unless it has answered a moment ago. A connection that was lost while nothing was
    /// sent is noticed here, by a question that can be repeated, and not by a message of which nobody knows.
    async fn awake(&self) -> Result<(), umbel_broker::Error> {
        if self.inner.answered.elapsed() > IDLE {
            self.time().await?;
        }
        Ok(())
    }

    /// Events are told when they can be: a task is sent with or without.
    pub(crate) async fn tell<T: Sendable>(&self, items: &[T]) {
        for items in items.chunks(EVENTS_TOGETHER) {
            let calls = items.iter().filter_map(|item| item.call(self).ok());
            let events: Vec<_> = calls.map(|call| self.sent_event(&call)).collect();
            if let Err(err) = self.inner.broker.publish_events(&events, EVENTS).await {
                tracing::debug!(error = %err, "task-sent is lost");
                return;
            }
        }
    }
}

fn ids<T: Sendable>(items: &[T]) -> impl Iterator<Item = &str> {
    items.iter().map(Sendable::id)
}

/// Counts a task as sent when all its copies are, as not sent when none is.
fn stuck<T: Sendable>(batch: &Batch<'_, T>, fates: &[Fate], source: umbel_broker::Error) -> Stuck {
    let mut stuck = Stuck {
        sent: Vec::new(),
        unknown: Vec::new(),
        unsent: Vec::new(),
        source,
    };
    for (item, of) in batch.each() {
        let fates = &fates[of];
        let all = |fate| fates.iter().all(|known| *known == fate);
        let list = if all(Fate::Sent) {
            &mut stuck.sent
        } else if all(Fate::NotSent) {
            &mut stuck.unsent
        } else {
            &mut stuck.unknown
        };
        list.push(item.id().to_owned());
    }
    stuck
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
