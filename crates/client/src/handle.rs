//! What became of a task, or of a workflow.

use std::fmt;
use std::time::Duration;

use futures::future::join_all;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use umbel_broker::Watch;
use umbel_codec::{MOST_INFLATED, read_document, write_any_document};
use umbel_protocol::canvas::ResultTuple;
use umbel_protocol::json::{Json, MAX_DEPTH};
use umbel_protocol::result::Failure;

use crate::{Client, RemoteError, ResultError};

/// Keys that a result may have: those of a message would not do for the list that a large chord returns.
const KEYS: u32 = 4_000_000;
/// Longest wait for the confirmation of a subscription; without it, looking again finds the result.
const CONFIRMED: Duration = Duration::from_secs(2);
/// Who waits looks again so often, should nobody have been woken: an ACL may refuse the channel to the worker.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Tasks that are looked at together.
const TOGETHER: usize = 500;

/// The state of a task as its result document has it.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// `PENDING` where nothing is stored, `STARTED`, `RETRY`, `SUCCESS`, `FAILURE`, `REVOKED`, or the task's own.
    pub name: String,
    /// The value; the error object of a failure; what a state of the task's own tells.
    pub result: Json,
    /// Traceback text.
    pub traceback: Option<String>,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// The tasks that it sent.
    pub children: Vec<ResultTuple>,
    /// The whole document; `null` where nothing is stored.
    pub document: Json,
}

impl State {
    /// Will it not change any more?
    pub fn is_ready(&self) -> bool {
        matches!(self.name.as_str(), "SUCCESS" | "FAILURE" | "REVOKED")
    }

    fn pending() -> State {
        State {
            name: "PENDING".into(),
            result: Json::null(),
            traceback: None,
            ended: None,
            children: Vec::new(),
            document: Json::null(),
        }
    }

    /// The value of a success; the error of an end of another kind.
    fn outcome(self, id: &str) -> Result<Json, ResultError> {
        if self.name == "SUCCESS" {
            return Ok(self.result);
        }
        let failure = Failure::parse(&self.result).unwrap_or_else(|| Failure {
            exc_type: "Exception".into(),
            exc_module: "builtins".into(),
            message: vec![self.result.clone()],
        });
        Err(Box::new(RemoteError {
            id: id.to_owned(),
            state: self.name,
            exc_type: failure.exc_type,
            exc_module: failure.exc_module,
            args: failure.message,
            traceback: self.traceback,
        })
        .into())
    }
}

/// A task or workflow that was sent. Of a workflow it is the end: the last step of a chain, the body of a chord, the
/// members of a group.
#[derive(Clone)]
pub struct Handle {
    client: Client,
    result: ResultTuple,
    is_ignored: bool,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("result", &self.result)
            .finish_non_exhaustive()
    }
}

impl Handle {
    pub(crate) fn new(client: &Client, result: ResultTuple, is_ignored: bool) -> Handle {
        Handle {
            client: client.clone(),
            result,
            is_ignored,
        }
    }

    /// The client by which it asks.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Id of the task or group.
    pub fn id(&self) -> &str {
        &self.result.id
    }

    /// As Celery's `as_tuple`: id, what came before it, members.
    pub fn tuple(&self) -> &ResultTuple {
        &self.result
    }

    /// What comes before it in its workflow.
    pub fn parent(&self) -> Option<Handle> {
        let parent = self.result.parent.as_deref()?;
        Some(Handle::new(&self.client, parent.clone(), false))
    }

    /// The members of a group; empty for a task.
    pub fn members(&self) -> Vec<Handle> {
        let members = self.result.members.iter().flatten();
        members
            .map(|member| Handle::new(&self.client, member.clone(), self.is_ignored))
            .collect()
    }

    /// Is it a group?
    pub fn is_group(&self) -> bool {
        self.result.members.is_some()
    }

    /// The state now. Of a group that of all its tasks: the first failure, else the first that has not ended, else
    /// SUCCESS with the list of results.
    ///
    /// # Errors
    /// [`ResultError::Store`], [`ResultError::Document`].
    pub async fn state(&self) -> Result<State, ResultError> {
        let ids = leaves(&self.result);
        let mut states = self.client.states(&ids).await?;
        if !self.is_group() {
            return Ok(states.pop().unwrap_or_else(State::pending));
        }
        let failed = |state: &State| state.is_ready() && state.name != "SUCCESS";
        if let Some(at) = states.iter().position(failed) {
            return Ok(states.swap_remove(at));
        }
        if let Some(at) = states.iter().position(|state| !state.is_ready()) {
            return Ok(states.swap_remove(at));
        }
        let mut values = states.into_iter().map(|state| state.result);
        Ok(State {
            name: "SUCCESS".into(),
            result: shaped(&self.result, &mut values),
            ..State::pending()
        })
    }

    /// Waits for the end and returns the result; of a group the list of its members' results, in their order, as soon as
    /// all have ended or one has failed. Subscribes before it looks, so no end is missed.
    ///
    /// # Errors
    /// [`ResultError::Remote`] with the exception of a task that failed or was revoked; [`ResultError::Timeout`].
    ///
    /// # Cancellation
    /// Safe.
    pub async fn get(&self, timeout: Duration) -> Result<Json, ResultError> {
        if self.is_ignored {
            return Err(ResultError::Ignored {
                id: self.result.id.clone(),
            });
        }
        let waiting = self.client.wait(&self.result);
        tokio::time::timeout(timeout, waiting).await.unwrap_or_else(|_| {
            Err(ResultError::Timeout {
                id: self.result.id.clone(),
                after: timeout,
            })
        })
    }

    /// As [`Handle::get`], as a Rust type.
    ///
    /// # Errors
    /// As there, and [`ResultError::Type`].
    pub async fn get_as<T: DeserializeOwned>(&self, timeout: Duration) -> Result<T, ResultError> {
        let value = self.get(timeout).await?;
        value.to().map_err(|err| ResultError::Type {
            id: self.result.id.clone(),
            source: err.into(),
        })
    }

    /// The tasks that this one sent, once it has ended.
    ///
    /// # Errors
    /// As [`Handle::state`].
    pub async fn children(&self) -> Result<Vec<Handle>, ResultError> {
        let children = self.state().await?.children;
        Ok(children
            .into_iter()
            .map(|child| Handle::new(&self.client, child, false))
            .collect())
    }

    /// Deletes the results of the task, of a group's members, and of what came before them; returns how many there were.
    ///
    /// # Errors
    /// [`ResultError::Store`].
    pub async fn forget(&self) -> Result<u64, ResultError> {
        let mut ids = Vec::new();
        let mut at = Some(&self.result);
        while let Some(result) = at {
            ids.extend(leaves(result));
            at = result.parent.as_deref();
        }
        let forgotten = self.client.inner.results.forget(&ids).await;
        forgotten.map_err(|source| self.client.unread(&self.result.id, source))
    }

    /// Saves the structure of a group, as `GroupResult.save` does: Celery restores it by its id, and so does
    /// [`Client::saved`].
    ///
    /// # Errors
    /// [`ResultError::Store`].
    pub async fn save(&self) -> Result<(), ResultError> {
        let document = Json::object([("result", &self.result.to_json())]);
        let results = &self.client.inner.results;
        let ttl = self.client.inner.options.chord_ttl;
        let saved = results
            .save_group(&self.result.id, &self.client.written(&document), ttl)
            .await;
        saved.map_err(|source| self.client.unread(&self.result.id, source))
    }

    /// Deletes the saved structure, not the results; whether there was one.
    ///
    /// # Errors
    /// [`ResultError::Store`].
    pub async fn unsave(&self) -> Result<bool, ResultError> {
        let deleted = self.client.inner.results.delete_group(&self.result.id).await;
        deleted.map_err(|source| self.client.unread(&self.result.id, source))
    }

    /// The ids of all its tasks.
    pub fn ids(&self) -> Vec<String> {
        leaves(&self.result)
    }
}

impl Client {
    /// A group that was saved, by us or by Celery's `GroupResult.save`.
    ///
    /// # Errors
    /// [`ResultError::Store`], [`ResultError::Document`].
    pub async fn saved(&self, group: &str) -> Result<Option<Handle>, ResultError> {
        let saved = self.inner.results.saved_group(group).await;
        let Some(raw) = saved.map_err(|source| self.unread(group, source))? else {
            return Ok(None);
        };
        let document = self.read(group, &raw)?;
        let tuple = document.get("result").and_then(|tuple| ResultTuple::parse(&tuple));
        let tuple = tuple.ok_or_else(|| ResultError::Document {
            id: group.to_owned(),
            reason: "it has no result tuple".into(),
        })?;
        Ok(Some(Handle::new(self, tuple, false)))
    }

    /// Waits for all tasks, or for the first that fails, whichever it is.
    async fn wait(&self, result: &ResultTuple) -> Result<Json, ResultError> {
        let ids = leaves(result);
        let mut values: Vec<Option<Json>> = vec![None; ids.len()];
        let open =
            |values: &[Option<Json>]| -> Vec<usize> { (0..values.len()).filter(|at| values[*at].is_none()).collect() };
        self.look(&ids, &open(&values), &mut values, false).await?;
        let missing = open(&values);
        let watches = missing.iter().map(|at| async {
            let key = self.inner.results.key(&ids[*at]);
            (*at, self.inner.watcher.watch(&key, CONFIRMED).await)
        });
        let mut changes: FuturesUnordered<_> = join_all(watches).await.into_iter().map(changed).collect();
        // Whoever subscribes first and looks second misses nothing.
        let mut asked = missing;
        loop {
            self.look(&ids, &asked, &mut values, true).await?;
            if values.iter().all(Option::is_some) {
                return Ok(shaped(result, &mut values.into_iter().flatten()));
            }
            asked.clear();
            match tokio::time::timeout(LOOK_AGAIN, changes.next()).await {
                Ok(first) => {
                    let mut next = first;
                    while let Some((at, watch)) = next {
                        if values[at].is_none() {
                            asked.push(at);
                            changes.push(changed((at, watch)));
                        }
                        next = if asked.len() < TOGETHER {
                            changes.next().now_or_never().flatten()
                        } else {
                            None
                        };
                    }
                }
                Err(_) => asked = open(&values),
            }
        }
    }

    /// Looks at these tasks, and notes the values of those that have ended. Who waits is patient: results outlive a restart
    /// or a failover of their server.
    async fn look(
        &self,
        ids: &[String],
        asked: &[usize],
        values: &mut [Option<Json>],
        is_patient: bool,
    ) -> Result<(), ResultError> {
        let begin = Instant::now();
        for asked in asked.chunks(TOGETHER) {
            let some: Vec<String> = asked.iter().map(|at| ids[*at].clone()).collect();
            let states = loop {
                match self.states(&some).await {
                    Ok(states) => break states,
                    Err(ResultError::Store { id, source }) if is_patient && source.is_connection() => {
                        let waited = begin.elapsed();
                        tracing::debug!(task.id = id, error = %source, ?waited, "the result's database is away");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    Err(err) => return Err(err),
                }
            };
            for (at, state) in asked.iter().zip(states) {
                if state.is_ready() {
                    values[*at] = Some(state.outcome(&ids[*at])?);
                }
            }
        }
        Ok(())
    }

    /// The states of these tasks, in order.
    async fn states(&self, ids: &[String]) -> Result<Vec<State>, ResultError> {
        let first = ids.first().map_or("", String::as_str);
        let documents = self.inner.results.documents(ids).await;
        let documents = documents.map_err(|source| self.unread(first, source))?;
        ids.iter()
            .zip(documents)
            .map(|(id, raw)| match raw {
                Some(raw) => self.state_of(id, &raw),
                None => Ok(State::pending()),
            })
            .collect()
    }

    fn state_of(&self, id: &str, raw: &[u8]) -> Result<State, ResultError> {
        let document = self.read(id, raw)?;
        let text = |key| document.get(key).and_then(|value| value.text());
        let name = text("status").ok_or_else(|| ResultError::Document {
            id: id.to_owned(),
            reason: "it has no status".into(),
        })?;
        let children = document.get("children").and_then(|children| children.elements());
        let children = children.unwrap_or_default();
        Ok(State {
            name,
            result: document.get("result").unwrap_or_else(Json::null),
            traceback: text("traceback"),
            ended: text("date_done").and_then(|at| ended(&at)),
            children: children.iter().filter_map(ResultTuple::parse).collect(),
            document,
        })
    }

    /// A stored document as JSON.
    fn read(&self, id: &str, raw: &[u8]) -> Result<Json, ResultError> {
        let _ = self;
        let wrong = |reason: String| ResultError::Document {
            id: id.to_owned(),
            reason,
        };
        let text = read_document(raw, MOST_INFLATED).map_err(|err| wrong(err.to_string()))?;
        Json::parse_within(text.trim(), MAX_DEPTH, KEYS).map_err(|err| wrong(err.to_string()))
    }

    /// What is kept among results, as their readers expect it.
    pub(crate) fn written(&self, document: &Json) -> Vec<u8> {
        write_any_document(document.as_str(), self.inner.options.result_serializer)
    }

    pub(crate) fn unread(&self, id: &str, source: umbel_broker::Error) -> ResultError {
        let _ = self;
        ResultError::Store {
            id: id.to_owned(),
            source,
        }
    }
}

/// A task whose result has changed, and its watch.
async fn changed((at, mut watch): (usize, Watch)) -> (usize, Watch) {
    watch.changed().await;
    (at, watch)
}

/// A time with its offset; Celery 5.2 wrote none, in UTC.
fn ended(text: &str) -> Option<Timestamp> {
    text.parse()
        .ok()
        .or_else(|| jiff::tz::TimeZone::UTC.to_timestamp(text.parse().ok()?).ok())
}

/// Ids of the tasks, from left to right.
fn leaves(result: &ResultTuple) -> Vec<String> {
    match &result.members {
        None => vec![result.id.clone()],
        Some(members) => members.iter().flat_map(leaves).collect(),
    }
}

/// Values of the tasks in the shape of their groups.
fn shaped(result: &ResultTuple, values: &mut dyn Iterator<Item = Json>) -> Json {
    match &result.members {
        None => values.next().unwrap_or_else(Json::null),
        Some(members) => {
            let shaped: Vec<Json> = members.iter().map(|member| shaped(member, values)).collect();
            Json::array(shaped)
        }
    }
}
