//! What a running task may know of its message: Celery's `self.request`.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use umbel_protocol::canvas::Signature;
use umbel_protocol::json::Json;
use umbel_protocol::message::{OWN_HEADERS, TaskMessage};

use crate::execute::RunLimits;

/// The facts of a request. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Request {
    pub(crate) message: Arc<TaskMessage>,
    pub(crate) raw: Arc<Vec<u8>>,
    pub(crate) hostname: Arc<str>,
    pub(crate) limits: RunLimits,
}

impl Request {
    /// For tests of a job by itself.
    #[cfg(test)]
    pub(crate) fn of_nobody() -> Request {
        use umbel_protocol::message::{Limits, NewTask, decode};
        let task = NewTask {
            id: "id".into(),
            task: "task".into(),
            ..NewTask::default()
        };
        let raw = task.encode();
        let message = decode(&raw, &Limits::default(), &jiff::tz::TimeZone::UTC).expect("what we wrote");
        Request {
            message: Arc::new(message),
            raw: Arc::new(raw),
            hostname: "w@h".into(),
            limits: RunLimits::default(),
        }
    }

    /// Task id.
    pub fn id(&self) -> &str {
        &self.message.id
    }

    /// Task name.
    pub fn task(&self) -> &str {
        &self.message.task
    }

    /// Name for people, where the sender gave one.
    pub fn shadow(&self) -> Option<String> {
        self.message.header("shadow")?.text()
    }

    /// Positional arguments as they came.
    pub fn args(&self) -> &Json {
        &self.message.args
    }

    /// Keyword arguments as they came.
    pub fn kwargs(&self) -> &Json {
        &self.message.kwargs
    }

    /// Retries before this run.
    pub fn retries(&self) -> u32 {
        self.message.retries
    }

    /// The first task of the workflow; its own id for that one.
    pub fn root_id(&self) -> &str {
        let given = self.message.root_id.as_deref().filter(|root| !root.is_empty());
        given.unwrap_or(&self.message.id)
    }

    /// The task that sent this one.
    pub fn parent_id(&self) -> Option<&str> {
        self.message.parent_id.as_deref()
    }

    /// The group, also the chord's id.
    pub fn group(&self) -> Option<&str> {
        self.message.group.as_deref()
    }

    /// The position in the group.
    pub fn group_index(&self) -> Option<i64> {
        self.message.group_index
    }

    /// Of a chord's member: the body. `None` for all others, and for what is no signature.
    pub fn chord(&self) -> Option<Signature> {
        Signature::parse(&self.embedded("chord")?).ok()
    }

    /// What is sent when it succeeds.
    pub fn callbacks(&self) -> Vec<Signature> {
        self.signatures("callbacks")
    }

    /// What is sent when it fails.
    pub fn errbacks(&self) -> Vec<Signature> {
        self.signatures("errbacks")
    }

    /// The rest of the chain; the next step is the last.
    pub fn chain(&self) -> Vec<Signature> {
        self.signatures("chain")
    }

    fn embedded(&self, name: &str) -> Option<Json> {
        self.message.embed.as_ref()?.get(name).filter(|value| !value.is_null())
    }

    fn signatures(&self, name: &str) -> Vec<Signature> {
        let Some(value) = self.embedded(name) else {
            return Vec::new();
        };
        let list = value.elements().unwrap_or_else(|| vec![value]);
        list.iter().filter_map(|one| Signature::parse(one).ok()).collect()
    }

    /// Not to be run before.
    pub fn eta(&self) -> Option<Timestamp> {
        self.message.eta
    }

    /// Not to be run after.
    pub fn expires(&self) -> Option<Timestamp> {
        self.message.expires
    }

    /// The hard limit of this run, whoever set it.
    pub fn time_limit(&self) -> Option<Duration> {
        self.limits.hard
    }

    /// The soft limit of this run, whoever set it.
    pub fn soft_time_limit(&self) -> Option<Duration> {
        self.limits.soft
    }

    /// Priority, 0 (first) to 9.
    pub fn priority(&self) -> u8 {
        self.message.priority
    }

    /// Routing key: the queue's name, where the message was sent to a queue.
    pub fn routing_key(&self) -> &str {
        &self.message.queue
    }

    /// The exchange that the sender used; empty for a queue.
    pub fn exchange(&self) -> String {
        let info = self.property("delivery_info");
        let exchange = info.and_then(|info| info.get("exchange"));
        exchange.and_then(|exchange| exchange.text()).unwrap_or_default()
    }

    /// The message says that it was delivered before; see [`crate::JobContext::is_redelivered`] for what Redis knows.
    pub fn is_marked_redelivered(&self) -> bool {
        self.message.redelivered
    }

    /// Celery's name for the sender, which only its rpc backend reads.
    pub fn reply_to(&self) -> Option<&str> {
        self.message.reply_to.as_deref()
    }

    /// Normally the task id.
    pub fn correlation_id(&self) -> Option<&str> {
        self.message.correlation_id.as_deref()
    }

    /// `gen<pid>@<host>` of the sender.
    pub fn origin(&self) -> Option<&str> {
        self.message.origin.as_deref()
    }

    /// Stamps by name, as `stamped_headers` lists them.
    pub fn stamps(&self) -> Vec<(String, Json)> {
        let stamps = self.message.header("stamps").unwrap_or_else(Json::null);
        let named = self.stamped_headers();
        named
            .into_iter()
            .filter_map(|name| Some((name.clone(), stamps.get(&name)?)))
            .collect()
    }

    /// The names of the stamps.
    pub fn stamped_headers(&self) -> Vec<String> {
        let names = self
            .message
            .header("stamped_headers")
            .and_then(|names| names.elements());
        names.unwrap_or_default().iter().filter_map(Json::text).collect()
    }

    /// All headers, verbatim: an object.
    pub fn headers(&self) -> &Json {
        &self.message.headers
    }

    /// The headers that the sender added.
    pub fn custom_headers(&self) -> Vec<(String, Json)> {
        custom_headers(&self.message)
    }

    /// All properties of the message, verbatim: an object.
    pub fn properties(&self) -> Json {
        let text = std::str::from_utf8(&self.raw).ok();
        let envelope = text.and_then(|text| Json::parse(text).ok());
        let properties = envelope.and_then(|envelope| envelope.get("properties"));
        properties.unwrap_or_else(Json::empty_object)
    }

    fn property(&self, name: &str) -> Option<Json> {
        self.properties().get(name)
    }

    /// How often it was replaced by another task.
    pub fn replaced_task_nesting(&self) -> u32 {
        let nesting = self.message.header("replaced_task_nesting");
        nesting.and_then(|nesting| nesting.to().ok()).unwrap_or(0)
    }

    /// Does the sender want no result? `None` leaves it to the task.
    pub fn ignore_result(&self) -> Option<bool> {
        self.message.ignore_result
    }

    /// Node name of this worker.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// Never: there is no eager mode.
    pub fn is_eager(&self) -> bool {
        false
    }
}

/// The headers that the sender added, in their order.
pub(crate) fn custom_headers(message: &TaskMessage) -> Vec<(String, Json)> {
    let mut headers = message.headers.entries();
    headers.retain(|(name, _)| !OWN_HEADERS.contains(&name.as_str()));
    headers
}
