//! What a request asks for.

use super::{Request, answer};
use crate::json::Json;

/// A command, with its arguments read.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Is anybody there? [`answer::pong`].
    Ping,
    /// Tasks that run: a list of [`super::TaskRequest`].
    Active {
        /// Arguments as their repr.
        safe: bool,
    },
    /// Tasks that were taken and do not run yet: likewise.
    Reserved,
    /// Tasks that wait for their time: [`answer::scheduled`].
    Scheduled,
    /// Ids that are not to run: [`answer::names`].
    Revoked,
    /// Tasks that this worker knows: [`answer::names`], with attributes behind them.
    Registered {
        /// Attributes that are wanted beside the name; empty: the rate limit.
        items: Vec<String>,
    },
    /// Figures: [`super::Stats`].
    Stats,
    /// Settings: [`super::Configuration`].
    Conf {
        /// Those that nobody set, too.
        with_defaults: bool,
    },
    /// Queues that are consumed: a list of [`super::Consumed`].
    ActiveQueues,
    /// What is known of these tasks: [`answer::query_task`].
    QueryTask {
        /// Their ids.
        ids: Vec<String>,
    },
    /// A text for people: [`answer::ok`].
    Report,
    /// The Lamport clock: [`answer::clock`].
    Clock,
    /// Do not run these tasks: [`answer::flagged`], [`answer::terminated`].
    Revoke {
        /// Their ids.
        ids: Vec<String>,
        /// Stop those that run.
        terminate: bool,
        /// With this signal; of old a number.
        signal: Option<String>,
    },
    /// Do not run tasks with one of these stamps: [`answer::flagged_stamps`].
    RevokeByStamps {
        /// Stamps and the values that count.
        stamps: Vec<(String, Vec<Json>)>,
        /// Stop those that run.
        terminate: bool,
        /// With this signal.
        signal: Option<String>,
    },
    /// Change a rate limit: [`answer::rate_limit_set`].
    RateLimit {
        /// The task.
        task: String,
        /// As [`super::per_second`] reads it; nothing, or zero, lifts the limit.
        rate: String,
    },
    /// Change time limits: [`answer::time_limit_set`].
    TimeLimit {
        /// The task.
        task: String,
        /// Seconds.
        hard: Option<f64>,
        /// Seconds.
        soft: Option<f64>,
    },
    /// More slots: [`answer::pool_grows`].
    PoolGrow {
        /// How many.
        by: u32,
    },
    /// Fewer slots: [`answer::pool_shrinks`].
    PoolShrink {
        /// How many.
        by: u32,
    },
    /// Bounds of the number of slots: [`answer::autoscaled`].
    Autoscale {
        /// At most.
        max: Option<u32>,
        /// At least.
        min: Option<u32>,
    },
    /// Restart the pool's processes.
    PoolRestart,
    /// Consume this queue, too: [`answer::consumer_added`].
    AddConsumer {
        /// Its name.
        queue: String,
        /// The exchange to bind it to; `None`: one of the same name.
        exchange: Option<String>,
        /// `direct`, `topic` or `fanout`.
        exchange_type: Option<String>,
        /// The routing key; `None`: the queue's name.
        routing_key: Option<String>,
    },
    /// Consume this queue no more: [`answer::consumer_cancelled`].
    CancelConsumer {
        /// Its name.
        queue: String,
    },
    /// Send task events: [`answer::events_enabled`].
    EnableEvents,
    /// Send none: [`answer::events_disabled`].
    DisableEvents,
    /// Another worker starts and shares what it knows: [`answer::hello`]. Not to be answered when it is this node's own.
    Hello {
        /// Its name.
        from_node: String,
        /// Ids that it knows to be revoked.
        revoked: Vec<String>,
    },
    /// Send a worker-heartbeat at once. No answer.
    Heartbeat,
    /// Elect one worker to do something. Better ignored: it ends workers of Celery 5.7. No answer.
    Election,
    /// Stop when what runs has ended. No answer.
    Shutdown,
}

/// Why a request is not served. [`Refusal::answer`] is what Celery would say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such command.
    #[error("unknown command {0:?}")]
    Unknown(String),
    /// A command of Celery's that means nothing here.
    #[error("command {0:?} is not available in this worker")]
    Unavailable(&'static str),
    /// Arguments are missing, or of another type.
    #[error("command {method:?} lacks arguments {missing:?}")]
    Arguments {
        /// The command.
        method: String,
        /// Their names.
        missing: Vec<&'static str>,
    },
}

impl Refusal {
    /// The answer: `{"error": text}`.
    pub fn answer(&self) -> Json {
        match self {
            Refusal::Unknown(method) => answer::error(&format!("KeyError({})", Json::string(method).repr())),
            Refusal::Unavailable(_) => answer::error(&self.to_string()),
            Refusal::Arguments { method, missing } => {
                let plural = if missing.len() == 1 { "" } else { "s" };
                let names: Vec<String> = missing.iter().map(|name| format!("'{name}'")).collect();
                let said = format!(
                    "{method}() missing {} required positional argument{plural}: {}",
                    missing.len(),
                    names.join(" and ")
                );
                answer::error(&format!("TypeError({})", Json::string(&said).repr()))
            }
        }
    }
}

impl Command {
    /// What the request asks for.
    ///
    /// # Errors
    /// [`Refusal`]; its answer is to be sent, if one is wanted.
    pub fn of(request: &Request) -> Result<Command, Refusal> {
        let given = Arguments(request);
        Ok(match request.method.as_str() {
            "ping" => Command::Ping,
            "active" => Command::Active { safe: given.is("safe") },
            "reserved" => Command::Reserved,
            "scheduled" => Command::Scheduled,
            "revoked" => Command::Revoked,
            "registered" => Command::Registered {
                items: given.texts("taskinfoitems"),
            },
            "stats" => Command::Stats,
            "conf" => Command::Conf {
                with_defaults: given.is("with_defaults"),
            },
            "active_queues" => Command::ActiveQueues,
            "query_task" => {
                given.need(&["ids"])?;
                Command::QueryTask {
                    ids: given.texts("ids"),
                }
            }
            "report" => Command::Report,
            "clock" => Command::Clock,
            "revoke" | "terminate" => {
                given.need(&["task_id"])?;
                Command::Revoke {
                    ids: given.texts("task_id"),
                    terminate: request.method == "terminate" || given.is("terminate"),
                    signal: given.text("signal"),
                }
            }
            "revoke_by_stamped_headers" => {
                given.need(&["headers"])?;
                Command::RevokeByStamps {
                    stamps: given.stamps(),
                    terminate: given.is("terminate"),
                    signal: given.text("signal"),
                }
            }
            "rate_limit" => {
                given.need(&["task_name", "rate_limit"])?;
                // No text, but 0 or null: no limit, and said so. The text "0" is a rate like any other.
                let rate = given.get("rate_limit").filter(is_true);
                Command::RateLimit {
                    task: given.text("task_name").unwrap_or_default(),
                    rate: rate.and_then(|_| given.text("rate_limit")).unwrap_or_default(),
                }
            }
            "time_limit" => {
                given.need(&["task_name"])?;
                Command::TimeLimit {
                    task: given.text("task_name").unwrap_or_default(),
                    hard: given.number("hard"),
                    soft: given.number("soft"),
                }
            }
            "pool_grow" => Command::PoolGrow {
                by: given.count("n").unwrap_or(1),
            },
            "pool_shrink" => Command::PoolShrink {
                by: given.count("n").unwrap_or(1),
            },
            "autoscale" => Command::Autoscale {
                max: given.count("max"),
                min: given.count("min"),
            },
            "pool_restart" => Command::PoolRestart,
            "add_consumer" => {
                given.need(&["queue"])?;
                Command::AddConsumer {
                    queue: given.text("queue").unwrap_or_default(),
                    exchange: given.text("exchange"),
                    exchange_type: given.text("exchange_type"),
                    routing_key: given.text("routing_key"),
                }
            }
            "cancel_consumer" => {
                given.need(&["queue"])?;
                Command::CancelConsumer {
                    queue: given.text("queue").unwrap_or_default(),
                }
            }
            "enable_events" => Command::EnableEvents,
            "disable_events" => Command::DisableEvents,
            "hello" => {
                given.need(&["from_node"])?;
                Command::Hello {
                    from_node: given.text("from_node").unwrap_or_default(),
                    revoked: given.texts("revoked"),
                }
            }
            "heartbeat" => Command::Heartbeat,
            "election" => Command::Election,
            "shutdown" => Command::Shutdown,
            "memsample" => return Err(Refusal::Unavailable("memsample")),
            "memdump" => return Err(Refusal::Unavailable("memdump")),
            "objgraph" => return Err(Refusal::Unavailable("objgraph")),
            other => return Err(Refusal::Unknown(other.chars().take(64).collect())),
        })
    }

    /// Does the command answer at all?
    pub fn has_answer(&self) -> bool {
        !matches!(self, Command::Heartbeat | Command::Election | Command::Shutdown)
    }
}

/// Would Python take it for true?
fn is_true(value: &Json) -> bool {
    if let Some(text) = value.text() {
        return !text.is_empty();
    }
    if value.is_null() || value.as_str() == "false" {
        return false;
    }
    match value.to::<f64>() {
        Ok(number) => number != 0.0,
        Err(_) => value.elements().is_none_or(|elements| !elements.is_empty()),
    }
}

/// The arguments of a request.
struct Arguments<'a>(&'a Request);

impl Arguments<'_> {
    fn get(&self, name: &str) -> Option<Json> {
        self.0.arguments.get(name).filter(|value| !value.is_null())
    }

    fn need(&self, names: &[&'static str]) -> Result<(), Refusal> {
        let is_missing = |name: &str| match self.0.arguments.get(name) {
            None => true,
            Some(value) => value.is_null() && name != "rate_limit",
        };
        let missing: Vec<_> = names.iter().copied().filter(|name| is_missing(name)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Refusal::Arguments {
            method: self.0.method.clone(),
            missing,
        })
    }

    /// True as Python has it: Flower writes 1.
    fn is(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| is_true(&value))
    }

    /// A text; a number as its digits.
    fn text(&self, name: &str) -> Option<String> {
        let value = self.get(name)?;
        let text = value.text().unwrap_or_else(|| value.to_string());
        Some(text).filter(|text| !text.is_empty())
    }

    /// One text or several; the keys of an object, as Celery before 5.7 sends revoked ids.
    fn texts(&self, name: &str) -> Vec<String> {
        match self.get(name) {
            None => Vec::new(),
            Some(value) => match (value.text(), value.elements()) {
                (Some(one), _) => vec![one],
                (None, Some(several)) => several.iter().filter_map(Json::text).collect(),
                (None, None) => value.entries().into_iter().map(|(key, _)| key).collect(),
            },
        }
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.text(name)?.parse().ok().filter(|number: &f64| number.is_finite())
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to the type's range"
    )]
    fn count(&self, name: &str) -> Option<u32> {
        self.number(name)
            .map(|number| number.clamp(0.0, f64::from(u32::MAX)) as u32)
    }

    /// `{"stamp": value or [values]}`, or `["stamp=value"]`.
    fn stamps(&self) -> Vec<(String, Vec<Json>)> {
        let Some(headers) = self.get("headers") else {
            return Vec::new();
        };
        if let Some(pairs) = headers.elements() {
            let pairs = pairs.iter().filter_map(Json::text);
            return pairs
                .filter_map(|pair| {
                    let (name, value) = pair.split_once('=')?;
                    Some((name.to_owned(), vec![Json::string(value)]))
                })
                .collect();
        }
        let entries = headers.entries().into_iter();
        entries
            .map(|(name, value)| {
                let values = value.elements().unwrap_or_else(|| vec![value]);
                (name, values)
            })
            .collect()
    }
}
