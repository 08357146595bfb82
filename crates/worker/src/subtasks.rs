//! What a running task does through Redis: sends other tasks, tells its state.

use std::sync::{Arc, PoisonError};

use serde::Serialize;
use umbel_protocol::canvas::{self, Aftermath, ResultTuple, Sender, Signature};
use umbel_protocol::json::Json;
use umbel_protocol::message::{Malformed, Reason};
use umbel_protocol::result;

use crate::app::Shared;
use crate::failure::Failure;
use crate::job::JobContext;
use crate::lease::Lost;
use crate::results::Kind;
use crate::stop::Stop;

/// Why a running task could not send or tell something.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The lease is gone: start nothing more.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// The signature cannot be sent.
    #[error("signature cannot be sent: {0}")]
    Signature(#[source] Reason),
    /// The task is no member of a chord, or its message is otherwise not what it takes.
    #[error("{0}")]
    Message(#[source] Malformed),
    /// A state that only the worker sets.
    #[error("state {0:?} needs a result of its own: return it")]
    State(String),
    /// Redis did not answer. The tasks may or may not have been sent.
    #[error("the broker did not take it: {0}")]
    Broker(#[source] umbel_broker::Error),
    /// There is no worker around this context.
    #[error("no worker runs this task")]
    Detached,
}

impl From<SendError> for Failure {
    fn from(err: SendError) -> Failure {
        let text = err.to_string();
        match err {
            SendError::Lost(lost) => lost.into(),
            SendError::Broker(_) => Failure {
                exc_module: "kombu.exceptions".into(),
                ..Failure::permanent("OperationalError", text)
            }
            .retryable(),
            SendError::Signature(_) | SendError::Message(_) | SendError::State(_) | SendError::Detached => {
                Failure::permanent("ValueError", text)
            }
        }
    }
}

impl JobContext {
    /// Sends a task, chain, group or chord now. It inherits the root, has this task as its parent and is named among the
    /// children in this task's result. The answer is the result to wait for: of a chain that of its last step.
    ///
    /// # Errors
    /// [`SendError`]. After [`SendError::Broker`] the tasks may have been sent all the same.
    ///
    /// # Cancellation
    /// As [`SendError::Broker`].
    pub async fn send(&self, signature: &Signature) -> Result<ResultTuple, SendError> {
        let planned = |sender: &mut Sender<'_>| {
            canvas::spawn(&self.request.message, signature, sender).map_err(SendError::Signature)
        };
        self.carry_out(planned).await
    }

    /// Sends one more member of the chord that this task is a member of: the body waits for it, too.
    ///
    /// # Errors
    /// As [`JobContext::send`]; [`SendError::Message`] when there is no chord.
    ///
    /// # Cancellation
    /// As [`JobContext::send`].
    pub async fn add_to_chord(&self, signature: &Signature) -> Result<ResultTuple, SendError> {
        let planned = |sender: &mut Sender<'_>| {
            let extra = canvas::add_to_chord(&self.request.message, signature, sender).map_err(SendError::Message)?;
            let result = extra.children.first().cloned().ok_or(SendError::Detached)?;
            Ok((extra, result))
        };
        self.carry_out(planned).await
    }

    async fn carry_out(
        &self,
        plan: impl FnOnce(&mut Sender<'_>) -> Result<(Aftermath, ResultTuple), SendError>,
    ) -> Result<ResultTuple, SendError> {
        let shared = self.shared()?;
        self.checkpoint().await?;
        let (Aftermath { steps, children }, result) = crate::canvas::with_sender(shared, &self.request.message, plan)?;
        let steps = Aftermath {
            steps,
            children: Vec::new(),
        };
        let follow_ups = crate::canvas::resolve(shared, &self.request.message, steps)
            .await
            .map_err(SendError::Broker)?;
        crate::settle::follow_now(&shared.broker, shared.elsewhere(), follow_ups)
            .await
            .map_err(SendError::Broker)?;
        let mut sent = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        sent.extend(children);
        Ok(result)
    }

    /// Tells a state of the task's own, e.g. `PROGRESS`, with anything that clients may want to know about it.
    ///
    /// `SUCCESS` stores a result that nothing but another SUCCESS replaces.
    ///
    /// # Errors
    /// [`SendError::State`] for the states that hold an error, [`SendError::Broker`] when Redis does not answer.
    ///
    /// # Cancellation
    /// It may or may not have been stored.
    pub async fn update_state<M: Serialize + ?Sized>(&self, state: &str, meta: &M) -> Result<(), SendError> {
        let shared = self.shared()?;
        if matches!(state, "FAILURE" | "REVOKED" | "RETRY" | "PENDING") {
            return Err(SendError::State(state.to_owned()));
        }
        self.checkpoint().await?;
        let meta = Json::of(meta);
        let is_success = state == "SUCCESS";
        let kind = if is_success { Kind::Success } else { Kind::State };
        let stored = shared.document(&self.request.message, kind, &self.trail(), |ctx| {
            if is_success {
                result::success(ctx.id, &meta, &ctx.meta)
            } else {
                result::custom(ctx.id, state, &meta, &ctx.meta)
            }
        });
        let Some(stored) = stored else {
            return Ok(());
        };
        shared
            .store
            .store(std::slice::from_ref(&stored))
            .await
            .map_err(SendError::Broker)
    }

    /// Ends the task with another in its place: `return Err(ctx.replace(signature))`.
    ///
    /// The other one goes on under this task's id, with its group, chord, callbacks, errbacks and rest of the chain.
    pub fn replace(&self, signature: Signature) -> Stop {
        Stop::Replace(Box::new(signature))
    }

    /// Was the message delivered before: handed back by a rejection, or by the end of a worker that held it?
    ///
    /// # Errors
    /// [`SendError::Broker`] when Redis does not answer.
    pub async fn is_redelivered(&self) -> Result<bool, SendError> {
        if self.request.is_marked_redelivered() {
            return Ok(true);
        }
        let shared = self.shared()?;
        shared.broker.was_delivered(&self.id).await.map_err(SendError::Broker)
    }

    /// The results of what this task has sent so far, as its own result names them.
    pub(crate) fn trail(&self) -> Vec<Json> {
        let sent = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        sent.iter().map(ResultTuple::to_json).collect()
    }

    fn shared(&self) -> Result<&Arc<Shared>, SendError> {
        self.shared.as_ref().ok_or(SendError::Detached)
    }
}
