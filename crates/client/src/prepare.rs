//! From a call to what is published: the message, and where it goes.

use std::collections::HashMap;

use umbel_broker::{Binding, ExchangeKind, Publication, route};
use umbel_codec::{Compression, Serializer, UnknownName};
use umbel_protocol::canvas::Signature;
use umbel_protocol::event::{Event, TaskInfo};
use umbel_protocol::json::Json;
use umbel_protocol::message::NewTask;

use crate::client::Options;
use crate::task::{TaskOptions, check_depth, kind_name};
use crate::{Client, Exchange, SendError, Task};

/// A task that is ready to be published.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) task: NewTask,
    pub(crate) target: Target,
    pub(crate) idempotent: bool,
    pub(crate) serializer: Serializer,
    pub(crate) compression: Option<Compression>,
}

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// Straight to a queue.
    Queue,
    /// Through an exchange of this type.
    Exchange(ExchangeKind),
}

/// Bindings of exchanges, read once for all messages of a call.
pub(crate) type Bindings = HashMap<String, Vec<Binding>>;

impl Client {
    /// Looks at a call. Is it plain: JSON for a queue, of which no message can fail to be made?
    pub(crate) fn check(&self, task: &Task) -> Result<bool, SendError> {
        let (name, options) = (&task.name, &task.options);
        if let Some(problem) = &options.problem {
            return Err(refused(name, problem.clone()));
        }
        if name.is_empty() {
            return Err(refused(name, "the name is empty".into()));
        }
        if options.id.as_deref() == Some("") {
            return Err(refused(name, "the id is empty".into()));
        }
        for (what, json) in [("arguments", &task.args), ("keyword arguments", &task.kwargs)] {
            // The body is one level around them.
            check_depth(json, self.inner.options.max_depth.saturating_sub(1))
                .map_err(|reason| refused(name, format!("the {what}: {reason}")))?;
        }
        let limits = [options.time_limit.hard, options.time_limit.soft];
        if let Some(limit) = limits.into_iter().flatten().find(|limit| *limit <= 0.0) {
            return Err(refused(name, format!("a time limit of {limit} s")));
        }
        let form = self.form(name, options.serializer.as_deref(), options.compression.as_deref())?;
        if let Some(exchange) = options.exchange.as_ref().filter(|exchange| !exchange.name.is_empty()) {
            kind_of(&self.inner.options, &exchange.name, exchange.kind)?;
            return Ok(false);
        }
        Ok(form == (Serializer::Json, None))
    }

    /// The message of a call that was looked at.
    pub(crate) fn ready<C>(&self, task: Task<C>) -> Result<Ready, SendError> {
        let Task {
            name,
            args,
            kwargs,
            options,
            ..
        } = task;
        let settings = &self.inner.options;
        let now = self.now();
        let TaskOptions {
            id,
            queue,
            exchange,
            routing_key,
            priority,
            eta,
            expires,
            retries,
            time_limit,
            serializer,
            compression,
            headers,
            stamps,
            shadow,
            reply_to,
            ignore_result,
            argsrepr,
            kwargsrepr,
            root_id,
            parent_id,
            links,
            errbacks,
            is_transient,
            immutable: _,
            idempotent,
            problem: _,
        } = *options;
        let (eta, eta_text) = eta.map(|eta| eta.resolve(now)).unzip();
        let (expires, expires_text) = expires.map(|expires| expires.resolve(now)).unzip();
        let given = |name: &str, value: &Option<String>| Some((name.to_owned(), Json::string(value.as_ref()?)));
        // Where Celery writes send options that the message has no place for.
        let properties = [given("argsrepr", &argsrepr), given("kwargsrepr", &kwargsrepr)];
        let (serializer, compression) = self.form(&name, serializer.as_deref(), compression.as_deref())?;
        let (exchange, target, queue) = self.target(exchange, queue, routing_key)?;
        // As Celery's send_task, which is given lists, shows them; where none is given it has an empty tuple.
        let argsrepr = argsrepr.or_else(|| (args.as_str() != "[]").then(|| args.repr()));
        let id = id.unwrap_or_else(|| self.new_id());
        let task = NewTask {
            task: name,
            args,
            kwargs,
            embed: embed(&links, &errbacks),
            queue,
            exchange,
            priority: clamped(priority.unwrap_or(0)),
            priority_written: priority,
            retries,
            eta,
            eta_text: eta_text.flatten(),
            expires,
            expires_text: expires_text.flatten(),
            sent_at: Some(now),
            time_limit,
            shadow,
            root_id,
            parent_id,
            ignore_result,
            argsrepr,
            kwargsrepr,
            origin: self.inner.origin.clone(),
            reply_to: reply_to.unwrap_or_else(|| self.inner.reply_to.clone()),
            delivery_tag: self.new_id(),
            stamps,
            headers,
            delivery_mode: if is_transient { 1 } else { 2 },
            body_encoding: settings.body_encoding,
            properties: properties.into_iter().flatten().collect(),
            id,
            ..NewTask::default()
        };
        Ok(Ready {
            task,
            target,
            idempotent,
            serializer,
            compression,
        })
    }

    /// The exchange, how it delivers, and the routing key (for the anonymous exchange, the queue).
    fn target(
        &self,
        exchange: Option<Exchange>,
        queue: Option<String>,
        routing_key: Option<String>,
    ) -> Result<(String, Target, String), SendError> {
        let default = || self.inner.options.queue.clone();
        match exchange.filter(|exchange| !exchange.name.is_empty()) {
            Some(Exchange { name, kind }) => {
                let kind = kind_of(&self.inner.options, &name, kind)?;
                let key = routing_key.or(queue).unwrap_or_else(default);
                Ok((name, Target::Exchange(kind), key))
            }
            None => Ok((
                String::new(),
                Target::Queue,
                queue.or(routing_key).unwrap_or_else(default),
            )),
        }
    }

    /// Reads the bindings that these messages need and that are not known yet.
    pub(crate) async fn bindings(&self, ready: &[Ready], known: &mut Bindings) -> Result<(), umbel_broker::Error> {
        for Ready { task, target, .. } in ready {
            let is_bound = matches!(target, Target::Exchange(ExchangeKind::Direct | ExchangeKind::Topic));
            if is_bound && !known.contains_key(&task.exchange) {
                let bindings = self.inner.broker.bindings(&task.exchange).await?;
                known.insert(task.exchange.clone(), bindings);
            }
        }
        Ok(())
    }

    /// What to publish: one copy for each queue, each under a delivery tag of its own. kombu's copies share one, and the
    /// acknowledgement of the first loses the others.
    pub(crate) fn publications(
        &self,
        ready: &Ready,
        bindings: &Bindings,
        out: &mut Vec<Publication>,
    ) -> Result<(), SendError> {
        let task = &ready.task;
        let push = |queue: &str, raw| Publication::Push {
            queue: queue.to_owned(),
            priority: task.priority_written.unwrap_or(task.priority.into()),
            raw,
            expires: self.inner.options.expiring_queues.get(queue).copied(),
        };
        let kind = match ready.target {
            Target::Queue => {
                out.push(push(&task.queue, self.encode(ready, task)?));
                return Ok(());
            }
            Target::Exchange(kind) => kind,
        };
        if kind == ExchangeKind::Fanout {
            out.push(Publication::Broadcast {
                exchange: task.exchange.clone(),
                routing_key: task.queue.clone(),
                raw: self.encode(ready, task)?,
            });
            return Ok(());
        }
        let bound = bindings.get(&task.exchange).map_or(&[][..], Vec::as_slice);
        let queues = route(bound, kind, &task.queue).map_err(|err| refused(&task.task, err.to_string()))?;
        if queues.is_empty() {
            return Err(SendError::NoRoute {
                exchange: task.exchange.clone(),
                kind: kind_name(kind),
                routing_key: task.queue.clone(),
                bound: bound.len(),
            });
        }
        for (index, queue) in queues.iter().enumerate() {
            if index == 0 {
                out.push(push(queue, self.encode(ready, task)?));
            } else {
                let mut copy = task.clone();
                copy.delivery_tag = self.new_id();
                out.push(push(queue, self.encode(ready, &copy)?));
            }
        }
        Ok(())
    }

    fn encode(&self, ready: &Ready, task: &NewTask) -> Result<Vec<u8>, SendError> {
        let codec = &self.inner.options.codec;
        codec
            .encode(task, ready.serializer, ready.compression)
            .map_err(|err| refused(&task.task, err.why))
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
    pub(crate) fn sent_event(&self, ready: &Ready) -> umbel_protocol::event::Publication {
        let task = &ready.task;
        let is_queue = ready.target == Target::Queue;
        let text =
            |text: &Option<String>, at: Option<jiff::Timestamp>| text.clone().or_else(|| at.map(umbel_protocol::iso));
        let event = Event::TaskSent {
            task: TaskInfo {
                uuid: task.id.clone(),
                name: task.task.clone(),
                args: task.argsrepr.clone().unwrap_or_else(|| task.args.repr_as_arguments()),
                kwargs: task.kwargsrepr.clone().unwrap_or_else(|| task.kwargs.repr()),
                root_id: Some(task.root_id.clone().unwrap_or_else(|| task.id.clone())),
                parent_id: task.parent_id.clone(),
                retries: task.retries,
                eta: text(&task.eta_text, task.eta),
                expires: text(&task.expires_text, task.expires),
            },
            queue: if is_queue { task.queue.clone() } else { String::new() },
            exchange: task.exchange.clone(),
            routing_key: task.queue.clone(),
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

fn refused(task: &str, reason: String) -> SendError {
    SendError::Call {
        task: task.to_owned(),
        reason,
    }
}

fn clamped(priority: i64) -> u8 {
    u8::try_from(priority.clamp(0, 9)).unwrap_or(0)
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
