//! One call of a task, with its options.

use jiff::Timestamp;
use serde::Serialize;
use std::ops::{Deref, DerefMut};
use std::sync::LazyLock;
use std::time::Duration;
use umbel_broker::ExchangeKind;
use umbel_protocol::canvas::Signature;
use umbel_protocol::json::{Json, JsonError, MAX_DEPTH};
use umbel_protocol::message::TimeLimit;

use crate::unique::Unique;
use crate::{Client, Handle, SendError, When};

/// A named exchange, and what it does, if that is known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    pub(crate) name: String,
    pub(crate) kind: Option<ExchangeKind>,
}

impl Exchange {
    /// An exchange of this type.
    pub fn new(name: &str, kind: ExchangeKind) -> Exchange {
        Exchange {
            name: name.to_owned(),
            kind: Some(kind),
        }
    }

    /// An exchange whose type is in [`crate::Options::exchanges`].
    pub fn named(name: &str) -> Exchange {
        Exchange {
            name: name.to_owned(),
            kind: None,
        }
    }
}

/// A call of a task. `Task<&Client>`, made by [`Client::task`], can send itself; `Task` alone is for workflows and for
/// sending in bulk.
///
/// Values that cannot be a message (arguments that are no list, nesting that no consumer reads) are told by sending.
#[derive(Debug, Clone)]
#[must_use = "a task does nothing until it is sent"]
pub struct Task<C = ()> {
    client: C,
    pub(crate) name: String,
    /// `None`: there are none.
    args: Option<Json>,
    kwargs: Option<Json>,
    pub(crate) id: Option<String>,
    pub(crate) queue: Option<String>,
    pub(crate) ignore_result: Option<bool>,
    pub(crate) options: Seldom,
}

/// Options that most calls do not have: tasks are held by the thousand, and what is not there costs nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seldom(Option<Box<TaskOptions>>);

impl Deref for Seldom {
    type Target = TaskOptions;

    fn deref(&self) -> &TaskOptions {
        static NONE: LazyLock<TaskOptions> = LazyLock::new(TaskOptions::default);
        self.0.as_deref().unwrap_or_else(|| &NONE)
    }
}

impl DerefMut for Seldom {
    fn deref_mut(&mut self) -> &mut TaskOptions {
        self.0.get_or_insert_default()
    }
}

/// What a call says beside its name and arguments.
#[derive(Debug, Clone, Default)]
pub(crate) struct TaskOptions {
    pub(crate) exchange: Option<Exchange>,
    pub(crate) routing_key: Option<String>,
    pub(crate) priority: Option<i64>,
    pub(crate) eta: Option<When>,
    pub(crate) expires: Option<When>,
    pub(crate) retries: u32,
    pub(crate) time_limit: TimeLimit,
    pub(crate) serializer: Option<String>,
    pub(crate) compression: Option<String>,
    pub(crate) headers: Vec<(String, Json)>,
    pub(crate) stamps: Vec<(String, Json)>,
    pub(crate) shadow: Option<String>,
    pub(crate) reply_to: Option<String>,
    pub(crate) argsrepr: Option<String>,
    pub(crate) kwargsrepr: Option<String>,
    pub(crate) root_id: Option<String>,
    pub(crate) parent_id: Option<String>,
    pub(crate) links: Vec<Signature>,
    pub(crate) errbacks: Vec<Signature>,
    pub(crate) is_transient: bool,
    pub(crate) immutable: bool,
    pub(crate) idempotent: bool,
    pub(crate) unique: Option<Unique>,
    pub(crate) problem: Option<String>,
}

impl Task {
    /// A call without arguments.
    pub fn new(name: &str) -> Task {
        Task::by((), name)
    }
}

impl<C> Task<C> {
    pub(crate) fn by(client: C, name: &str) -> Task<C> {
        Task {
            client,
            name: name.to_owned(),
            args: None,
            kwargs: None,
            id: None,
            queue: None,
            ignore_result: None,
            options: Seldom::default(),
        }
    }

    /// Without the client.
    pub fn detached(self) -> Task {
        Task {
            client: (),
            name: self.name,
            args: self.args,
            kwargs: self.kwargs,
            id: self.id,
            queue: self.queue,
            ignore_result: self.ignore_result,
            options: self.options,
        }
    }

    pub(crate) fn positional(&self) -> &Json {
        static NONE: LazyLock<Json> = LazyLock::new(Json::empty_array);
        self.args.as_ref().unwrap_or_else(|| &NONE)
    }

    pub(crate) fn keywords(&self) -> &Json {
        static NONE: LazyLock<Json> = LazyLock::new(Json::empty_object);
        self.kwargs.as_ref().unwrap_or_else(|| &NONE)
    }

    fn problem(&mut self, what: impl Into<String>) {
        self.options.problem.get_or_insert(what.into());
    }

    /// Positional arguments: anything that is an array in JSON, such as `&(2, 3)` or `&["one"]`.
    pub fn args<T: Serialize + ?Sized>(mut self, args: &T) -> Task<C> {
        match typed(args) {
            Ok(args) if args.is_array() => self.args = Some(args),
            Ok(_) => self.problem("the positional arguments are no array: one of them is `&(1,)` or `&[1]`"),
            Err(reason) => self.problem(format!("the positional arguments: {reason}")),
        }
        self
    }

    /// Keyword arguments: anything that is an object in JSON.
    pub fn kwargs<T: Serialize + ?Sized>(mut self, kwargs: &T) -> Task<C> {
        match typed(kwargs) {
            Ok(kwargs) if kwargs.is_object() => self.kwargs = Some(kwargs),
            Ok(_) => self.problem("the keyword arguments are no object"),
            Err(reason) => self.problem(format!("the keyword arguments: {reason}")),
        }
        self
    }

    /// Arguments as JSON text, which may hold what Rust has no type for: `NaN`, integers of any size.
    pub fn json(mut self, args: Json, kwargs: Json) -> Task<C> {
        if !(args.is_array() && kwargs.is_object()) {
            self.problem("the arguments are no array, or the keyword arguments no object");
        }
        (self.args, self.kwargs) = (Some(args), Some(kwargs));
        self
    }

    /// The task's id; a v4 UUID otherwise. A task that is sent again under its id can run twice, but has one result.
    pub fn id(mut self, id: &str) -> Task<C> {
        self.id = Some(id.to_owned());
        self
    }

    /// The queue; [`crate::Options::queue`] otherwise.
    pub fn queue(mut self, queue: &str) -> Task<C> {
        self.queue = Some(queue.to_owned());
        self
    }

    /// A named exchange instead of a queue, with this routing key.
    pub fn exchange(mut self, exchange: Exchange, routing_key: &str) -> Task<C> {
        self.options.exchange = Some(exchange);
        self.options.routing_key = Some(routing_key.to_owned());
        self
    }

    /// 0 is first, 9 is last; others count as the nearest of these.
    pub fn priority(mut self, priority: i64) -> Task<C> {
        self.options.priority = Some(priority);
        self
    }

    /// Not before so long after it is sent.
    pub fn countdown(mut self, after: Duration) -> Task<C> {
        self.options.eta = Some(after.into());
        self
    }

    /// Not before.
    pub fn eta(mut self, eta: impl Into<When>) -> Task<C> {
        self.options.eta = Some(eta.into());
        self
    }

    /// Not after: a time, or a duration from when it is sent.
    pub fn expires(mut self, expires: impl Into<When>) -> Task<C> {
        self.options.expires = Some(expires.into());
        self
    }

    /// Earlier tries, if this is not the first.
    pub fn retries(mut self, retries: u32) -> Task<C> {
        self.options.retries = retries;
        self
    }

    /// After this the run is stopped.
    pub fn time_limit(mut self, hard: Duration) -> Task<C> {
        self.options.time_limit.hard = Some(hard.as_secs_f64());
        self
    }

    /// After this the run is asked to stop.
    pub fn soft_time_limit(mut self, soft: Duration) -> Task<C> {
        self.options.time_limit.soft = Some(soft.as_secs_f64());
        self
    }

    /// The serializer by kombu's name: `json`, `msgpack`, `yaml`, `auth`.
    pub fn serializer(mut self, name: &str) -> Task<C> {
        self.options.serializer = Some(name.to_owned());
        self
    }

    /// The compression by kombu's name: `zlib`, `bzip2`, `lzma`, `brotli`, `zstd`.
    pub fn compression(mut self, name: &str) -> Task<C> {
        self.options.compression = Some(name.to_owned());
        self
    }

    /// A header of your own; the task sees it, and retries keep it.
    pub fn header<T: Serialize + ?Sized>(mut self, name: &str, value: &T) -> Task<C> {
        match typed(value) {
            Ok(value) => self.options.headers.push((name.to_owned(), value)),
            Err(reason) => self.problem(format!("header {name}: {reason}")),
        }
        self
    }

    /// A stamp, by which tasks can be found and revoked.
    pub fn stamp<T: Serialize + ?Sized>(mut self, name: &str, value: &T) -> Task<C> {
        match typed(value) {
            Ok(value) => self.options.stamps.push((name.to_owned(), value)),
            Err(reason) => self.problem(format!("stamp {name}: {reason}")),
        }
        self
    }

    /// A header as JSON text.
    pub fn header_json(mut self, name: &str, value: Json) -> Task<C> {
        self.options.headers.push((name.to_owned(), value));
        self
    }

    /// A stamp as JSON text.
    pub fn stamp_json(mut self, name: &str, value: Json) -> Task<C> {
        self.options.stamps.push((name.to_owned(), value));
        self
    }

    /// The same call of another task.
    pub fn named(mut self, name: &str) -> Task<C> {
        name.clone_into(&mut self.name);
        self
    }

    /// The name to show in logs and events.
    pub fn shadow(mut self, name: &str) -> Task<C> {
        self.options.shadow = Some(name.to_owned());
        self
    }

    /// Says that the message need not survive a restart of the broker (`delivery_mode` 1). Redis does not look at it.
    pub fn transient(mut self) -> Task<C> {
        self.options.is_transient = true;
        self
    }

    /// Who wants the answer; read by Celery's rpc backend only.
    pub fn reply_to(mut self, name: &str) -> Task<C> {
        self.options.reply_to = Some(name.to_owned());
        self
    }

    /// Store no result (`true`), or one whatever the worker's setting (`false`).
    pub fn ignore_result(mut self, ignore: bool) -> Task<C> {
        self.ignore_result = Some(ignore);
        self
    }

    /// What events, logs and `inspect` show instead of the positional arguments. The message itself still has them.
    pub fn argsrepr(mut self, text: &str) -> Task<C> {
        self.options.argsrepr = Some(text.to_owned());
        self
    }

    /// Likewise for the keyword arguments.
    pub fn kwargsrepr(mut self, text: &str) -> Task<C> {
        self.options.kwargsrepr = Some(text.to_owned());
        self
    }

    /// Shows no arguments in events, logs and `inspect`.
    pub fn hide_arguments(self) -> Task<C> {
        self.argsrepr("(hidden)").kwargsrepr("{hidden}")
    }

    /// The first task of the workflow that this one belongs to; itself otherwise.
    pub fn root_id(mut self, id: &str) -> Task<C> {
        self.options.root_id = Some(id.to_owned());
        self
    }

    /// The task that sends this one.
    pub fn parent_id(mut self, id: &str) -> Task<C> {
        self.options.parent_id = Some(id.to_owned());
        self
    }

    /// Sent when the task succeeds, with its result before the own arguments.
    pub fn link(mut self, next: impl Into<Signature>) -> Task<C> {
        self.options.links.push(next.into());
        self
    }

    /// Sent when the task fails, with its id before the own arguments.
    pub fn link_error(mut self, errback: impl Into<Signature>) -> Task<C> {
        self.options.errbacks.push(errback.into());
        self
    }

    /// In a workflow: takes no result of the task before it.
    pub fn immutable(mut self) -> Task<C> {
        self.options.immutable = true;
        self
    }

    /// Running it twice does no harm: it may be sent again when nobody knows whether it was.
    pub fn idempotent(mut self) -> Task<C> {
        self.options.idempotent = true;
        self
    }

    /// As part of a workflow.
    pub fn signature(self) -> Signature {
        self.signature_at(Timestamp::now())
    }

    fn signature_at(self, now: Timestamp) -> Signature {
        let Task {
            client: _,
            name,
            args,
            kwargs,
            id,
            queue,
            ignore_result,
            options,
        } = self;
        let args = args.unwrap_or_else(Json::empty_array);
        let mut signature = Signature::task(&name, args, kwargs.unwrap_or_else(Json::empty_object));
        let TaskOptions {
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
            argsrepr,
            kwargsrepr,
            root_id,
            parent_id,
            links,
            errbacks,
            is_transient,
            immutable,
            idempotent: _,
            unique: _, // Its header goes along.
            problem,
        } = options.0.map(|options| *options).unwrap_or_default();
        signature.immutable = immutable;
        let texts = [
            ("task_id", id),
            ("queue", queue),
            ("routing_key", routing_key),
            ("serializer", serializer),
            ("compression", compression),
            ("shadow", shadow),
            ("reply_to", reply_to),
            ("argsrepr", argsrepr),
            ("kwargsrepr", kwargsrepr),
            ("root_id", root_id),
            ("parent_id", parent_id),
            (crate::send::PROBLEM, problem),
        ];
        let mut set = |name: &str, value: Json| signature.options.set(name, value);
        for (name, value) in texts {
            if let Some(value) = value {
                set(name, Json::string(&value));
            }
        }
        if let Some(exchange) = exchange {
            set("exchange", Json::string(&exchange.name));
            let kind = exchange.kind.map(kind_name);
            if let Some(kind) = kind {
                set("exchange_type", Json::string(kind));
            }
        }
        if let Some(priority) = priority {
            set("priority", Json::of(&priority));
        }
        match &eta {
            // Counted from when the task is sent, which in a workflow may be much later.
            Some(When::In(after)) => set("countdown", Json::of(&after.as_secs_f64())),
            Some(at) => set("eta", Json::string(&text_of(at, now))),
            None => {}
        }
        match &expires {
            Some(When::In(after)) => set("expires", Json::of(&after.as_secs_f64())),
            Some(at) => set("expires", Json::string(&text_of(at, now))),
            None => {}
        }
        if retries > 0 {
            set("retries", Json::of(&retries));
        }
        if let Some(hard) = time_limit.hard {
            set("time_limit", Json::of(&hard));
        }
        if let Some(soft) = time_limit.soft {
            set("soft_time_limit", Json::of(&soft));
        }
        if is_transient {
            set("delivery_mode", Json::of(&1));
        }
        if let Some(ignore) = ignore_result {
            set("ignore_result", Json::of(&ignore));
        }
        if !headers.is_empty() {
            set(
                "headers",
                Json::object(headers.iter().map(|(name, value)| (name.as_str(), value))),
            );
        }
        if !stamps.is_empty() {
            let names: Vec<&str> = stamps.iter().map(|(name, _)| name.as_str()).collect();
            set("stamped_headers", Json::of(&names));
            for (name, value) in &stamps {
                set(name, value.clone());
            }
        }
        // Neither fails for a single task.
        for link in &links {
            signature = signature.clone().link(link).unwrap_or(signature);
        }
        for errback in &errbacks {
            signature = signature.clone().link_error(errback).unwrap_or(signature);
        }
        signature
    }
}

impl Task<&Client> {
    /// Sends it.
    ///
    /// # Errors
    /// [`SendError`]; [`SendError::may_have_been_sent`] says whether it can be repeated without doing work twice.
    ///
    /// # Cancellation
    /// The task may have been sent.
    pub async fn send(self) -> Result<Handle, SendError> {
        let client = self.client;
        client.send(self).await
    }
}

impl<C> From<Task<C>> for Signature {
    fn from(task: Task<C>) -> Signature {
        task.signature()
    }
}

pub(crate) fn kind_name(kind: ExchangeKind) -> &'static str {
    match kind {
        ExchangeKind::Direct => "direct",
        ExchangeKind::Topic => "topic",
        ExchangeKind::Fanout => "fanout",
    }
}

fn text_of(when: &When, now: Timestamp) -> String {
    let (at, text) = when.resolve(now);
    text.unwrap_or_else(|| at.to_string())
}

fn typed<T: Serialize + ?Sized>(value: &T) -> Result<Json, String> {
    let json = Json::try_of(value).map_err(|err| err.to_string())?;
    check_depth(&json, MAX_DEPTH)?;
    Ok(json)
}

/// Refuses what consumers would refuse.
pub(crate) fn check_depth(json: &Json, limit: u32) -> Result<(), String> {
    // Nothing is deeper than it has brackets, and counting them costs nothing.
    let opening = |count, byte: &u8| count + u8::from(matches!(byte, b'[' | b'{'));
    let stretches = json.as_str().as_bytes().chunks(usize::from(u8::MAX));
    if stretches
        .map(|bytes| usize::from(bytes.iter().fold(0, opening)))
        .sum::<usize>()
        <= limit as usize
    {
        return Ok(());
    }
    let (mut depth, mut quoted) = (0_u32, false);
    let mut bytes = json.as_str().bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => quoted = !quoted,
            b'\\' if quoted => drop(bytes.next()),
            b'[' | b'{' if !quoted => {
                depth += 1;
                if depth > limit {
                    return Err(JsonError::Depth { limit }.to_string());
                }
            }
            b']' | b'}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}
