//! Tasks, queues and settings, as a worker shows them.

use serde::Serialize;

use crate::json::Json;
use crate::message::TaskMessage;
use crate::write;

/// A task that a worker holds.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskRequest {
    /// Task id.
    pub id: String,
    /// Display name: the header `shadow`, if there is one.
    pub name: String,
    /// Task name.
    pub task: String,
    /// Positional arguments.
    pub args: Json,
    /// Keyword arguments.
    pub kwargs: Json,
    /// How the sender shows the positional arguments, and the keyword arguments.
    pub shown: (Option<String>, Option<String>),
    /// This node.
    pub hostname: String,
    /// Unix time of its start.
    pub time_start: Option<f64>,
    /// Is the message gone from the broker?
    pub acknowledged: bool,
    /// The exchange; empty for a message sent to a queue.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// 0 (first) to 9.
    pub priority: u8,
    /// Delivered before?
    pub redelivered: bool,
    /// The process that runs it.
    pub worker_pid: Option<u32>,
}

impl TaskRequest {
    /// A message that waits in the node `hostname`.
    pub fn waiting(message: &TaskMessage, hostname: &str) -> TaskRequest {
        let shadow = message.header("shadow").and_then(|shadow| shadow.text());
        TaskRequest {
            id: message.id.clone(),
            name: shadow.unwrap_or_else(|| message.task.clone()),
            task: message.task.clone(),
            args: message.args.clone(),
            kwargs: message.kwargs.clone(),
            shown: (message.argsrepr.clone(), message.kwargsrepr.clone()),
            hostname: hostname.to_owned(),
            time_start: None,
            acknowledged: false,
            exchange: String::new(),
            routing_key: message.queue.clone(),
            priority: message.priority,
            redelivered: message.redelivered,
            worker_pid: None,
        }
    }

    /// As Celery writes it; `safe` shows the arguments as their sender does, or as their repr.
    pub fn to_json(&self, safe: bool) -> Json {
        let (args, kwargs) = if safe {
            let (args, kwargs) = self.shown.clone();
            (
                Json::string(&args.unwrap_or_else(|| self.args.repr_as_arguments())),
                Json::string(&kwargs.unwrap_or_else(|| self.kwargs.repr())),
            )
        } else {
            (self.args.clone(), self.kwargs.clone())
        };
        let info = write::object([
            ("exchange", &Json::string(&self.exchange)),
            ("routing_key", &Json::string(&self.routing_key)),
            ("priority", &Json::of(&self.priority)),
            ("redelivered", &Json::of(&self.redelivered)),
        ]);
        write::object([
            ("id", &Json::string(&self.id)),
            ("name", &Json::string(&self.name)),
            ("args", &args),
            ("kwargs", &kwargs),
            ("type", &Json::string(&self.task)),
            ("hostname", &Json::string(&self.hostname)),
            ("time_start", &Json::of(&self.time_start)),
            ("acknowledged", &Json::of(&self.acknowledged)),
            ("delivery_info", &info),
            ("worker_pid", &Json::of(&self.worker_pid)),
        ])
    }
}

/// A queue that a worker consumes, for `active_queues`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumed {
    /// Its name.
    pub name: String,
    /// The exchange that it is bound to.
    pub exchange: String,
    /// `direct`, `topic` or `fanout`.
    pub exchange_type: String,
    /// The routing key.
    pub routing_key: String,
}

/// Celery's order and words; what is the same for every queue on Redis is fixed.
#[expect(clippy::struct_excessive_bools, reason = "the shape is Celery's")]
#[derive(Serialize)]
struct Written<'a> {
    name: &'a str,
    exchange: Exchange<'a>,
    routing_key: &'a str,
    queue_arguments: (),
    binding_arguments: (),
    consumer_arguments: (),
    durable: bool,
    exclusive: bool,
    auto_delete: bool,
    no_ack: bool,
    alias: (),
    bindings: [(); 0],
    no_declare: (),
    expires: (),
    message_ttl: (),
    max_length: (),
    max_length_bytes: (),
    max_priority: (),
}

#[expect(clippy::struct_excessive_bools, reason = "the shape is Celery's")]
#[derive(Serialize)]
struct Exchange<'a> {
    name: &'a str,
    r#type: &'a str,
    arguments: (),
    durable: bool,
    passive: bool,
    auto_delete: bool,
    delivery_mode: (),
    no_declare: bool,
}

impl Consumed {
    /// A queue with an exchange of its own name, as Celery makes one for a bare name.
    pub fn named(name: &str) -> Consumed {
        Consumed {
            name: name.to_owned(),
            exchange: name.to_owned(),
            exchange_type: "direct".to_owned(),
            routing_key: name.to_owned(),
        }
    }

    /// As Celery writes it.
    pub fn to_json(&self) -> Json {
        Json::of(&Written {
            name: &self.name,
            exchange: Exchange {
                name: &self.exchange,
                r#type: &self.exchange_type,
                arguments: (),
                durable: true,
                passive: false,
                auto_delete: false,
                delivery_mode: (),
                no_declare: false,
            },
            routing_key: &self.routing_key,
            queue_arguments: (),
            binding_arguments: (),
            consumer_arguments: (),
            durable: true,
            exclusive: false,
            auto_delete: false,
            no_ack: false,
            alias: (),
            bindings: [],
            no_declare: (),
            expires: (),
            message_ttl: (),
            max_length: (),
            max_length_bytes: (),
            max_priority: (),
        })
    }
}

/// What stands for a secret.
const MASK: &str = "********";

/// Parts of names whose values are secret, as in Celery.
const SECRET: [&str; 7] = ["API", "TOKEN", "KEY", "SECRET", "PASS", "SIGNATURE", "DATABASE"];

/// Settings, for `conf`, with secrets masked.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Configuration(pub Vec<(String, Json)>);

impl Configuration {
    /// The object. Values under names that speak of secrets are masked, and passwords in URLs.
    pub fn to_json(&self) -> Json {
        let masked: Vec<(&str, Json)> = self
            .0
            .iter()
            .map(|(name, value)| {
                let upper = name.to_uppercase();
                if SECRET.iter().any(|part| upper.contains(part)) && !value.is_null() {
                    (name.as_str(), Json::string(MASK))
                } else {
                    (
                        name.as_str(),
                        value
                            .text()
                            .map_or_else(|| value.clone(), |text| Json::string(&masked_url(&text))),
                    )
                }
            })
            .collect();
        write::object(masked.iter().map(|(name, value)| (*name, value)))
    }
}

/// A URL with its password masked; another text as it is.
fn masked_url(text: &str) -> String {
    let masked = || {
        let (scheme, rest) = text.split_once("://")?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (login, host) = authority.rsplit_once('@')?;
        let (user, _) = login.split_once(':')?;
        Some(format!("{scheme}://{user}:{MASK}@{host}{path}"))
    };
    masked().unwrap_or_else(|| text.to_owned())
}
