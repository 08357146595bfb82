//! Where tasks go by their names: Celery's `task_routes`.

use std::collections::HashMap;
use std::str::FromStr;

use regex::{Regex, RegexBuilder};
use serde::Serialize;
use umbel_broker::ExchangeKind;
use umbel_protocol::canvas::{Kind, Options, Signature};
use umbel_protocol::control::glob;
use umbel_protocol::json::Json;
use umbel_protocol::message::Reason;

use crate::{Exchange, Task};

/// In front of a name that is a regular expression, which JSON has no type for.
const EXPRESSION: &str = "re:";
/// The options that a route may have: those that Celery's `send_task` takes from one. Of the others it raises a
/// `TypeError` or makes a property that nobody reads.
const OPTIONS: [&str; 11] = [
    "argsrepr",
    "compression",
    "delivery_mode",
    "exchange",
    "exchange_type",
    "headers",
    "kwargsrepr",
    "priority",
    "queue",
    "routing_key",
    "serializer",
];

/// Routes that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct RouteError {
    /// The name or pattern; `routes` where it is none of these.
    pub place: String,
    /// What is wrong.
    pub reason: String,
}

/// Where tasks go by their names, and other options of theirs: Celery's `task_routes`.
///
/// A task's own options go before those of its route. An exact name goes before patterns, and of these the first that
/// matches counts; of several routers the first that knows the task. `*`, `?` and `[…]` match in names that have a `*`,
/// as with Celery; `re:` before a name says that it is a regular expression, which matches from the beginning of the
/// task's name, but need not reach its end.
///
/// Tasks of workflows get the options of their routes with them: whatever worker sends a later step, it goes where
/// these routes say. `celery.map` and its kin go where the task goes that they call.
#[derive(Debug, Clone, Default)]
pub struct Routes(Vec<Router>);

/// One of several sets of routes.
#[derive(Debug, Clone, Default)]
struct Router {
    names: HashMap<String, Options>,
    patterns: Vec<(Pattern, Options)>,
}

#[derive(Debug, Clone)]
enum Pattern {
    Glob(String),
    Expression(Box<Regex>),
}

impl Pattern {
    fn matches(&self, name: &str) -> bool {
        match self {
            Pattern::Glob(pattern) => glob(name, pattern),
            Pattern::Expression(regex) => regex.is_match(name),
        }
    }

    fn is(&self, other: &Pattern) -> bool {
        match (self, other) {
            (Pattern::Glob(one), Pattern::Glob(other)) => one == other,
            (Pattern::Expression(one), Pattern::Expression(other)) => one.as_str() == other.as_str(),
            _ => false,
        }
    }
}

impl Routes {
    /// These, and a further one: a queue's name, or options by Celery's names. It counts after the patterns before it.
    ///
    /// # Errors
    /// [`RouteError`].
    pub fn route<T: Serialize + ?Sized>(mut self, name: &str, to: &T) -> Result<Routes, RouteError> {
        if self.0.is_empty() {
            self.0.push(Router::default());
        }
        if let Some(router) = self.0.last_mut() {
            router.add(name, &Json::of(to))?;
        }
        Ok(self)
    }

    /// Reads what `task_routes` may be, but for functions: an object of names and routes, or a list of such objects and of
    /// lists of pairs.
    ///
    /// # Errors
    /// [`RouteError`].
    pub fn read(json: &Json) -> Result<Routes, RouteError> {
        if json.is_null() {
            return Ok(Routes::default());
        }
        let routers = if json.is_object() {
            vec![json.clone()]
        } else {
            let list = json.elements();
            list.ok_or_else(|| wrong("routes", "neither an object of names and routes nor a list of these"))?
        };
        let routers = routers.iter().map(Router::read);
        Ok(Routes(routers.collect::<Result<_, _>>()?))
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The options of a task's route, if it has one.
    pub fn of(&self, name: &str) -> Option<&Options> {
        self.0.iter().find_map(|router| router.of(name))
    }

    /// Gives a task the options of its route that it has not, and those that it makes workers send.
    pub(crate) fn lead<C>(&self, task: &mut Task<C>) -> Result<(), Reason> {
        let linked = !(task.options.links.is_empty() && task.options.errbacks.is_empty());
        if linked {
            let options = &mut *task.options;
            for list in [&mut options.links, &mut options.errbacks] {
                let routed = std::mem::take(list).into_iter().map(|one| self.lead_all(one));
                *list = routed.collect::<Result<_, _>>()?;
            }
        }
        let Some(route) = self.of(&task.name) else {
            return Ok(());
        };
        if ["queue", "exchange", "exchange_type", "routing_key"]
            .iter()
            .any(|name| route.has(name))
        {
            let mut own = Options::default();
            let mut set = |name: &str, value: Option<&str>| {
                if let Some(value) = value {
                    own.set(name, Json::string(value));
                }
            };
            let exchange = task.options.exchange.as_ref();
            let kind = exchange.and_then(|exchange| exchange.kind).map(crate::task::kind_name);
            set("queue", task.queue.as_deref());
            set("exchange", exchange.map(|exchange| exchange.name.as_str()));
            set("exchange_type", kind);
            set(
                "routing_key",
                task.options.routing_key.as_deref().filter(|key| !key.is_empty()),
            );
            fill(&mut own, route);
            settle(&mut own);
            task.queue = own.text("queue");
            let kind = own
                .text("exchange_type")
                .and_then(|kind| kind.parse::<ExchangeKind>().ok());
            let exchange = own.text("exchange").map(|name| Exchange { name, kind });
            if exchange.is_some() || task.options.exchange.is_some() {
                task.options.routing_key = exchange.is_some().then(|| own.text("routing_key").unwrap_or_default());
                task.options.exchange = exchange;
            }
        }
        for (name, value) in route.entries() {
            match name {
                "priority" if task.options.priority.is_none() => task.options.priority = value.to().ok(),
                "serializer" if task.options.serializer.is_none() => task.options.serializer = value.text(),
                "compression" if task.options.compression.is_none() => task.options.compression = value.text(),
                "argsrepr" if task.options.argsrepr.is_none() => task.options.argsrepr = value.text(),
                "kwargsrepr" if task.options.kwargsrepr.is_none() => task.options.kwargsrepr = value.text(),
                "headers" if task.options.headers.is_empty() => task.options.headers = value.entries(),
                "delivery_mode" => task.options.is_transient |= value.as_str() == "1",
                _ => {}
            }
        }
        Ok(())
    }

    /// Likewise for each task of a workflow.
    pub(crate) fn lead_all(&self, workflow: Signature) -> Result<Signature, Reason> {
        workflow.with_each(&mut |task| {
            let called = task
                .kwargs
                .get("task")
                .and_then(|called| Signature::parse(&called).ok());
            let name = match (task.task.as_str(), &called) {
                ("celery.map" | "celery.starmap" | "celery.chunks", Some(called)) => &called.task,
                _ => &task.task,
            };
            if let Some(route) = self.of(name).filter(|_| task.kind == Kind::Task) {
                fill(&mut task.options, route);
                settle(&mut task.options);
            }
        })
    }
}

impl FromStr for Routes {
    type Err = RouteError;

    fn from_str(text: &str) -> Result<Routes, RouteError> {
        let json = Json::parse(text.trim()).map_err(|err| wrong("routes", &format!("no JSON: {err}")))?;
        Routes::read(&json)
    }
}

impl Router {
    fn read(json: &Json) -> Result<Router, RouteError> {
        let mut router = Router::default();
        if json.is_object() {
            for (name, route) in json.entries() {
                router.add(&name, &route)?;
            }
            return Ok(router);
        }
        let pairs = json.elements();
        for pair in pairs.ok_or_else(|| wrong("routes", "in the list is neither an object nor a list of pairs"))? {
            let pair = pair.elements().map(<[Json; 2]>::try_from);
            let Some(Ok([name, route])) = pair else {
                return Err(wrong(
                    "routes",
                    "in a list of pairs is one that is not a name and its route",
                ));
            };
            let name = name.text().ok_or_else(|| wrong("routes", "a name is no text"))?;
            router.add(&name, &route)?;
        }
        Ok(router)
    }

    fn add(&mut self, name: &str, to: &Json) -> Result<(), RouteError> {
        let options = options(to).map_err(|reason| wrong(name, &reason))?;
        let pattern = if let Some(expression) = name.strip_prefix(EXPRESSION) {
            // As Python's `match`, which is anchored at the front whatever the pattern says.
            let regex = RegexBuilder::new(&format!("^(?:{expression})"))
                .size_limit(1 << 20)
                .build();
            Pattern::Expression(Box::new(regex.map_err(|err| wrong(name, &err.to_string()))?))
        } else if name.contains('*') {
            Pattern::Glob(name.to_owned())
        } else {
            self.names.insert(name.to_owned(), options);
            return Ok(());
        };
        // Said twice it counts as said last, where it stood first.
        match self.patterns.iter_mut().find(|(known, _)| known.is(&pattern)) {
            Some((_, known)) => *known = options,
            None => self.patterns.push((pattern, options)),
        }
        Ok(())
    }

    fn of(&self, name: &str) -> Option<&Options> {
        let pattern = || self.patterns.iter().find(|(pattern, _)| pattern.matches(name));
        self.names.get(name).or_else(|| pattern().map(|(_, options)| options))
    }
}

fn wrong(place: &str, reason: &str) -> RouteError {
    RouteError {
        place: place.to_owned(),
        reason: reason.to_owned(),
    }
}

/// A route: a queue's name, or options. What nobody could send by it is refused.
fn options(to: &Json) -> Result<Options, String> {
    let mut options = Options::default();
    if let Some(queue) = to.text() {
        options.set("queue", Json::string(&queue));
    } else if to.is_object() {
        for (name, value) in to.entries().into_iter().filter(|(_, value)| !value.is_null()) {
            check(&name, &value)?;
            options.set(&name, value);
        }
    } else {
        return Err("a route is neither a queue's name nor an object of options".into());
    }
    let is_direct = options.text("exchange_type").is_none_or(|kind| kind == "direct");
    if options.has("exchange") && is_direct && options.text("routing_key").is_none() && !options.has("queue") {
        return Err(
            "an exchange without a routing_key leads nowhere, unless its exchange_type is topic or fanout".into(),
        );
    }
    Ok(options)
}

fn check(name: &str, value: &Json) -> Result<(), String> {
    if !OPTIONS.contains(&name) {
        return Err(format!(
            "option {name:?} is none that a route may have: {}",
            OPTIONS.join(", ")
        ));
    }
    let is_right = match name {
        "priority" => value.to::<i64>().is_ok(),
        "delivery_mode" => matches!(value.as_str(), "1" | "2"),
        "headers" => value.is_object(),
        _ => value.text().is_some(),
    };
    if !is_right {
        return Err(format!("option {name} has a value of another type: {value}"));
    }
    let known = |err: &dyn std::fmt::Display| format!("option {name}: {err}");
    let text = value.text().unwrap_or_default();
    match name {
        "exchange_type" => text.parse::<ExchangeKind>().map(drop).map_err(|err| known(&err)),
        "serializer" => text
            .parse::<umbel_codec::Serializer>()
            .map(drop)
            .map_err(|err| known(&err)),
        "compression" => text
            .parse::<umbel_codec::Compression>()
            .map(drop)
            .map_err(|err| known(&err)),
        _ => Ok(()),
    }
}

/// The options of a route where there are none.
fn fill(own: &mut Options, route: &Options) {
    for (name, value) in route.entries() {
        if own.get(name).is_none() {
            own.set(name, value.clone());
        }
    }
}

/// A message goes through an exchange or to a queue. As with Celery, through the exchange unless that is a direct one
/// without a routing key.
fn settle(own: &mut Options) {
    let has_exchange = own.text("exchange").is_some();
    let is_direct = own.text("exchange_type").is_none_or(|kind| kind == "direct");
    let gone: &[&str] = if has_exchange && !(is_direct && own.text("routing_key").is_none()) {
        &["queue"]
    } else if own.text("queue").is_some() {
        &["exchange", "exchange_type", "routing_key"]
    } else {
        // A routing key alone, or a type: to the default queue.
        &["exchange_type", "routing_key"]
    };
    for name in gone {
        own.take(name);
    }
}
