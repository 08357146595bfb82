//! From a call to what is published: the message, and where it goes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use jiff::Timestamp;
use umbel_broker::{Binding, ExchangeKind};
use umbel_codec::{Compression, Serializer, UnknownName};
use umbel_protocol::canvas::Signature;
use umbel_protocol::event::{Event, TaskInfo};
use umbel_protocol::json::Json;
use umbel_protocol::message::{NewTask, TaskParts, expiration};

use crate::client::Options;
use crate::task::check_depth;
use crate::{Client, Exchange, SendError, Task, When};

/// What can be sent: a call, or a part of a workflow.
pub(crate) trait Sendable: Send + Sync {
    /// The task's id.
    fn id(&self) -> &str;
    /// May it be sent again when nobody knows whether it was?
    fn is_idempotent(&self) -> bool;
    /// The delivery tag of its first copy, where it has one already.
    fn delivery_tag(&self) -> Option<&str>;
    /// What its message says, and where it goes.
    ///
    /// # Errors
    /// None for one that was accepted.
    fn call<'a>(&'a self, client: &'a Client) -> Result<Call<'a>, SendError>;
}

/// What a message says, and where it goes.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) parts: TaskParts<'a>,
    pub(crate) target: Target,
    /// The queue; for a named exchange the key by which it finds queues.
    pub(crate) queue: &'a str,
    pub(crate) serializer: Serializer,
    pub(crate) compression: Option<Compression>,
}

/// A part of a workflow.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) task: NewTask,
    pub(crate) target: Target,
    pub(crate) serializer: Serializer,
    pub(crate) compression: Option<Compression>,
}

impl Sendable for Ready {
    fn id(&self) -> &str {
        &self.task.id
    }

    fn is_idempotent(&self) -> bool {
        false
    }

    fn delivery_tag(&self) -> Option<&str> {
        Some(&self.task.delivery_tag)
    }

    fn call<'a>(&'a self, _client: &'a Client) -> Result<Call<'a>, SendError> {
        Ok(Call {
            parts: self.task.parts(),
            target: self.target,
            queue: &self.task.queue,
            serializer: self.serializer,
            compression: self.compression,
        })
    }
}

impl Sendable for Task {
    fn id(&self) -> &str {
        self.id.as_deref().unwrap_or_default()
    }

    fn is_idempotent(&self) -> bool {
        self.options.idempotent
    }

    fn delivery_tag(&self) -> Option<&str> {
        None
    }

    fn call<'a>(&'a self, client: &'a Client) -> Result<Call<'a>, SendError> {
        client.call(self)
    }
}

/// Where a task goes, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Straight to a queue.
    Queue(String),
    /// Through a named exchange.
    Exchange(String),
}

impl Destination {
    /// The name of the queue or the exchange.
    pub fn name(&self) -> &str {
        match self {
            Destination::Queue(name) | Destination::Exchange(name) => name,
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Queue(name) => write!(f, "queue {name}"),
            Destination::Exchange(name) => write!(f, "exchange {name}"),
        }
    }
}

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Straight to a queue.
    Queue,
    /// Through an exchange of this type.
    Exchange(ExchangeKind),
}

/// Bindings of exchanges, read once for all messages of a call.
pub(crate) type Bindings = HashMap<String, Vec<Binding>>;

impl Client {
    /// Looks at a call, gives it an id, and fixes its times. Is it plain: JSON for a queue, of which no message can fail to
    /// be made?
    pub(crate) fn accept(&self, task: &mut Task) -> Result<bool, SendError> {
        if !self.inner.options.routes.is_empty() {
            self.inner.options.routes.lead(task).map_err(SendError::Workflow)?;
        }
        let is_plain = self.check(task)?;
        if task.id.is_none() {
            task.id = Some(self.new_id());
        }
        if task.options.eta.is_some() || task.options.expires.is_some() {
            let options = &mut *task.options;
            for when in [&mut options.eta, &mut options.expires].into_iter().flatten() {
                if matches!(when, When::In(_)) {
                    *when = When::At(when.resolve(self.now()).0);
                }
            }
        }
        Ok(is_plain)
    }

    /// Where a task would go, by what it says itself and by its route.
    ///
    /// # Errors
    /// [`SendError::Workflow`]: a callback is no signature.
    pub fn destination(&self, task: &Task) -> Result<Destination, SendError> {
        let mut task = task.clone();
        self.inner.options.routes.lead(&mut task).map_err(SendError::Workflow)?;
        let exchange = task
            .options
            .exchange
            .as_ref()
            .filter(|exchange| !exchange.name.is_empty());
        Ok(match exchange {
            Some(exchange) => Destination::Exchange(exchange.name.clone()),
            None => {
                let queue = task.queue.as_ref().or(task.options.routing_key.as_ref());
                Destination::Queue(queue.unwrap_or(&self.inner.options.queue).clone())
            }
        })
    }

    fn check(&self, task: &Task) -> Result<bool, SendError> {
        let (name, options) = (&task.name, &*task.options);
        if let Some(problem) = &options.problem {
            return Err(refused(name, problem.clone()));
        }
        if name.is_empty() {
            return Err(refused(name, "the name is empty".into()));
        }
        if task.id.as_deref() == Some("") {
            return Err(refused(name, "the id is empty".into()));
        }
        for (what, json) in [("arguments", task.positional()), ("keyword arguments", task.keywords())] {
            // The body is one level around them.
            check_depth(json, self.inner.options.max_depth.saturating_sub(1))
                .map_err(|reason| refused(name, format!("the {what}: {reason}")))?;
        }
        let limits = [options.time_limit.hard, options.time_limit.soft];
        if let Some(limit) = limits.into_iter().flatten().find(|limit| *limit <= 0.0) {
            return Err(refused(name, format!("a time limit of {limit} s")));
        }
        let form = self.form(name, options.serializer.as_deref(), options.compression.as_deref())?;
        let (_, target, _) = self.target(task)?;
        Ok(target == Target::Queue && form == (Serializer::Json, None))
    }

    /// What the message of a call says that was accepted.
    ///
    /// # Errors
    /// None for one that was.
    fn call<'a>(&'a self, task: &'a Task) -> Result<Call<'a>, SendError> {
        let (name, args) = (&task.name, task.positional());
        let options = &*task.options;
        let settings = &self.inner.options;
        let (serializer, compression) =
            self.form(name, options.serializer.as_deref(), options.compression.as_deref())?;
        let (exchange, target, queue) = self.target(task)?;
        // Of the clock only what is left until a task expires.
        let now = || self.now();
        let (eta, _) = options.eta.as_ref().map(|eta| written(eta, now)).unzip();
        let (expires, expires_at) = options.expires.as_ref().map(|expires| written(expires, now)).unzip();
        let given = |name: &str, value: &Option<String>| Some((name.to_owned(), Json::string(value.as_ref()?)));
        // Where Celery writes send options that the message has no place for.
        let properties = [
            given("argsrepr", &options.argsrepr),
            given("kwargsrepr", &options.kwargsrepr),
        ];
        // As Celery's send_task, which is given lists, shows them; where none is given it has an empty tuple.
        let argsrepr = match &options.argsrepr {
            Some(text) => Some(Cow::Borrowed(text.as_str())),
            None if args.as_str() == "[]" => None,
            None => Some(Cow::Owned(args.repr())),
        };
        let parts = TaskParts {
            id: task.id(),
            task: name,
            args,
            kwargs: task.keywords(),
            embed: embed(&options.links, &options.errbacks).map(Cow::Owned),
            routing_key: queue,
            exchange,
            priority: options.priority.unwrap_or(0),
            retries: options.retries,
            eta,
            expires,
            expiration: expires_at.map(|at| expiration(at, now())),
            time_limit: options.time_limit,
            shadow: options.shadow.as_deref(),
            root_id: options.root_id.as_deref(),
            parent_id: options.parent_id.as_deref(),
            group: None,
            group_index: None,
            ignore_result: task.ignore_result,
            argsrepr,
            kwargsrepr: options.kwargsrepr.as_deref(),
            origin: &self.inner.origin,
            reply_to: options.reply_to.as_ref().unwrap_or(&self.inner.reply_to),
            replaced_task_nesting: 0,
            stamps: &options.stamps,
            headers: &options.headers,
            properties: properties.into_iter().flatten().collect(),
            delivery_mode: if options.is_transient { 1 } else { 2 },
            body_encoding: settings.body_encoding,
        };
        Ok(Call {
            parts,
            target,
            queue,
            serializer,
            compression,
        })
    }

    /// The exchange, how it delivers, and the routing key (for the anonymous exchange, the queue).
    fn target<'a>(&'a self, task: &'a Task) -> Result<(&'a str, Target, &'a str), SendError> {
        let options = &*task.options;
        let (queue, routing_key) = (task.queue.as_ref(), options.routing_key.as_ref());
        let settings = &self.inner.options;
        match options.exchange.as_ref().filter(|exchange| !exchange.name.is_empty()) {
            Some(Exchange { name, kind }) => {
                let kind = kind_of(settings, name, *kind)?;
                let key = routing_key.or(queue).unwrap_or(&settings.queue);
                Ok((name, Target::Exchange(kind), key))
            }
            None => Ok(("", Target::Queue, queue.or(routing_key).unwrap_or(&settings.queue))),
        }
    }

    /// Reads the bindings that these messages need and that are not known yet.
    pub(crate) async fn bindings<T: Sendable>(&self, items: &[T], known: &mut Bindings) -> Result<(), SendError> {
        for item in items {
            let call = item.call(self)?;
            let exchange = call.parts.exchange;
            let is_bound = matches!(
                call.target,
                Target::Exchange(ExchangeKind::Direct | ExchangeKind::Topic)
            );
            if is_bound && !known.contains_key(exchange) {
                let bindings = self.inner.broker.bindings(exchange).await;
                let bindings = bindings.map_err(|source| SendError::Prepare {
                    what: "read the bindings of an exchange",
                    sent: Vec::new(),
                    source,
                })?;
                known.insert(exchange.to_owned(), bindings);
            }
        }
        Ok(())
    }

    /// Serializer and compression by kombu's names; the options' where none is given.
    pub(crate) fn form(
        &self,
        task: &str,
        serializer: Option<&str>,
        compression: Option<&str>,
    ) -> Result<(Serializer, Option<Compression>), SendError> {
        let settings = &self.inner.options;
        let serializer = match serializer {
            Some(name) => name
                .parse()
                .map_err(|err: UnknownName| refused(task, err.to_string()))?,
            None => settings.serializer,
        };
        let compression = match compression {
            Some(name) => Some(
                name.parse()
                    .map_err(|err: UnknownName| refused(task, err.to_string()))?,
            ),
            None => settings.compression,
        };
        Ok((serializer, compression))
    }

    /// `task-sent`.
    pub(crate) fn sent_event(&self, call: &Call<'_>) -> umbel_protocol::event::Publication {
        let task = &call.parts;
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let event = Event::TaskSent {
            task: TaskInfo {
                uuid: task.id.to_owned(),
                name: task.task.to_owned(),
                args: owned(task.argsrepr.as_deref()).unwrap_or_else(|| task.args.repr_as_arguments()),
                kwargs: owned(task.kwargsrepr).unwrap_or_else(|| task.kwargs.repr()),
                root_id: owned(task.root_id.or(Some(task.id))),
                parent_id: owned(task.parent_id),
                retries: task.retries,
                eta: owned(task.eta.as_deref()),
                expires: owned(task.expires.as_deref()),
            },
            queue: match call.target {
                Target::Queue => call.queue.to_owned(),
                Target::Exchange(_) => String::new(),
            },
            exchange: task.exchange.to_owned(),
            routing_key: call.queue.to_owned(),
        };
        let stamp = umbel_protocol::event::Stamp::at(self.next_clock(), self.now());
        self.inner.source.single(&event, stamp, &self.new_id())
    }
}

/// The type of an exchange: the caller's, else the options'.
pub(crate) fn kind_of(settings: &Options, name: &str, given: Option<ExchangeKind>) -> Result<ExchangeKind, SendError> {
    given
        .or_else(|| settings.exchanges.get(name).copied())
        .ok_or_else(|| SendError::UnknownExchange {
            exchange: name.to_owned(),
        })
}

pub(crate) fn refused(task: &str, reason: String) -> SendError {
    SendError::Call {
        task: task.to_owned(),
        reason,
    }
}

/// A time as it stands in the message, and the instant that it means.
fn written(when: &When, now: impl Fn() -> Timestamp) -> (Cow<'static, str>, Timestamp) {
    let (at, text) = match when {
        When::At(at) => (*at, None),
        _ => when.resolve(now()),
    };
    (Cow::Owned(text.unwrap_or_else(|| umbel_protocol::iso(at))), at)
}

/// Callbacks and errbacks, where there are any.
fn embed(links: &[Signature], errbacks: &[Signature]) -> Option<Json> {
    if links.is_empty() && errbacks.is_empty() {
        return None;
    }
    let list = |signatures: &[Signature]| {
        if signatures.is_empty() {
            return Json::null();
        }
        Json::array(signatures.iter().map(Signature::to_json))
    };
    Some(Json::object([
        ("callbacks", &list(links)),
        ("errbacks", &list(errbacks)),
        ("chain", &Json::null()),
        ("chord", &Json::null()),
    ]))
}
