//! Concurrency keys: what a message must share its turn by. Pure.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use umbel_protocol::json::Json;
use umbel_protocol::message::TaskMessage;

use crate::arguments::Arguments;
use crate::execute::panicked;
use crate::job::Failure;

/// Longer keys are replaced by a hash: they become key names of Redis.
const LONGEST: usize = 200;

/// A program's own way to make a key.
pub(crate) type KeyFunction = Arc<dyn Fn(&Arguments) -> Option<String> + Send + Sync>;

/// Where a task's key comes from.
#[derive(Clone)]
pub(crate) enum KeyOf {
    /// The value of an argument, by its name.
    Argument(String),
    /// A text with places for arguments and headers.
    Template(KeyTemplate),
    /// Whatever the program says; `None`: no key.
    Function(KeyFunction),
}

impl fmt::Debug for KeyOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyOf::Argument(name) => write!(f, "argument {name}"),
            KeyOf::Template(template) => write!(f, "{template:?}"),
            KeyOf::Function(_) => f.write_str("a function"),
        }
    }
}

impl KeyOf {
    /// The key of a message, or nothing where it has no such argument or header: then it runs without one.
    /// `parameters` are the names of the positional arguments.
    ///
    /// # Errors
    /// The program's function panicked: the message is at fault, or the function, but not the worker.
    pub(crate) fn key(&self, message: &TaskMessage, parameters: &[&str]) -> Result<Option<String>, Failure> {
        let of_task = |key: String| bounded(format!("{}:{key}", message.task));
        match self {
            KeyOf::Argument(name) => Ok(argument(message, name, parameters).map(of_task)),
            KeyOf::Template(template) => Ok(template.fill(message, parameters).map(bounded)),
            KeyOf::Function(key) => {
                let arguments = Arguments::of(message);
                let key = catch_unwind(AssertUnwindSafe(|| key(&arguments)));
                match key {
                    Ok(key) => Ok(key.map(of_task)),
                    Err(panic) => Err(Failure::permanent(
                        "RuntimeError",
                        format!("no concurrency key: {}", panicked(&*panic)),
                    )),
                }
            }
        }
    }
}

/// A key name that is not too long.
pub(crate) fn bounded(key: String) -> String {
    if key.len() <= LONGEST {
        return key;
    }
    format!(
        "hash:{}",
        uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, key.as_bytes())
    )
}

fn argument(message: &TaskMessage, name: &str, parameters: &[&str]) -> Option<String> {
    let named = message.kwargs.get(name);
    let value = named.or_else(|| {
        let place = parameters.iter().position(|known| *known == name)?;
        message.args.elements()?.into_iter().nth(place)
    })?;
    shown(&value)
}

/// A text as it is, anything else as JSON; null counts as absent.
fn shown(value: &Json) -> Option<String> {
    if let Some(text) = value.text() {
        return Some(text);
    }
    Some(value.as_str().to_owned()).filter(|text| text != "null")
}

/// A text with `{task}`, `{queue}`, `{args.0}`, `{kwargs.name}` and `{header.name}` in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyTemplate(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Task,
    Queue,
    Positional(usize),
    Named(String),
    Header(String),
}

impl KeyTemplate {
    pub(crate) fn parse(text: &str) -> Result<KeyTemplate, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (place, behind) = after
                .split_once('}')
                .ok_or_else(|| format!("{text:?} has a brace that is not closed"))?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(match place.split_once('.') {
                None if place == "task" => Part::Task,
                None if place == "queue" => Part::Queue,
                Some(("args", at)) => {
                    Part::Positional(at.parse().map_err(|_| format!("{{{place}}} names no position"))?)
                }
                Some(("kwargs", name)) if !name.is_empty() => Part::Named(name.to_owned()),
                Some(("header", name)) if !name.is_empty() => Part::Header(name.to_owned()),
                Some(_) | None => {
                    return Err(format!(
                        "{{{place}}} is none of {{task}}, {{queue}}, {{args.0}}, {{kwargs.name}} and {{header.name}}"
                    ));
                }
            });
            rest = behind;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        if parts.is_empty() {
            return Err("a key must not be empty".into());
        }
        Ok(KeyTemplate(parts))
    }

    fn fill(&self, message: &TaskMessage, parameters: &[&str]) -> Option<String> {
        let mut key = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => key.push_str(text),
                Part::Task => key.push_str(&message.task),
                Part::Queue => key.push_str(&message.queue),
                Part::Positional(at) => key.push_str(&shown(message.args.elements()?.get(*at)?)?),
                Part::Named(name) => key.push_str(&argument(message, name, parameters)?),
                Part::Header(name) => key.push_str(&shown(&message.header(name)?)?),
            }
        }
        Some(key)
    }
}

/// Tasks by a glob, their key, and how many may hold one: `GLOB=TEMPLATE` or `GLOB=TEMPLATE=COUNT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRule {
    pub(crate) tasks: String,
    pub(crate) template: KeyTemplate,
    pub(crate) most: u32,
}

impl std::str::FromStr for KeyRule {
    type Err = String;

    fn from_str(text: &str) -> Result<KeyRule, String> {
        let mut parts = text.splitn(3, '=').map(str::trim);
        let tasks = parts.next().filter(|glob| !glob.is_empty());
        let (Some(tasks), Some(template)) = (tasks, parts.next()) else {
            return Err(format!(
                "{text:?} is not of the form GLOB=TEMPLATE or GLOB=TEMPLATE=COUNT"
            ));
        };
        let most = match parts.next() {
            None => 1,
            Some(count) => count
                .parse()
                .ok()
                .filter(|count| *count > 0)
                .ok_or_else(|| format!("{count:?} is no number of 1 or more"))?,
        };
        Ok(KeyRule {
            tasks: tasks.to_owned(),
            template: KeyTemplate::parse(template)?,
            most,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbel_protocol::message::{Limits, NewTask, decode};

    fn message(args: &str, kwargs: &str) -> TaskMessage {
        let task = NewTask {
            id: "1".into(),
            task: "bill.pay".into(),
            queue: "q".into(),
            args: Json::parse(args).unwrap(),
            kwargs: Json::parse(kwargs).unwrap(),
            headers: vec![("tenant".into(), Json::string("acme"))],
            ..NewTask::default()
        };
        decode(&task.encode(), &Limits::default(), &jiff::tz::TimeZone::UTC).unwrap()
    }

    #[test]
    fn a_key_comes_from_an_argument_a_header_or_a_function() {
        let parameters = ["account", "amount"];
        let argument = |name: &str| KeyOf::Argument(name.into());
        let template = |text: &str| KeyOf::Template(KeyTemplate::parse(text).unwrap());
        for (rule, args, kwargs, expected) in [
            (argument("account"), "[7, 1]", "{}", Some("bill.pay:7")),
            (argument("account"), "[]", r#"{"account": "x"}"#, Some("bill.pay:x")),
            (argument("account"), "[]", r#"{"account": null}"#, None),
            (argument("other"), "[7]", "{}", None),
            (template("acct-{args.0}"), "[7]", "{}", Some("acct-7")),
            (
                template("{header.tenant}/{kwargs.account}"),
                "[5]",
                "{}",
                Some("acme/5"),
            ),
            (template("{task}{queue}"), "[]", "{}", Some("bill.payq")),
            (template("{header.none}"), "[]", "{}", None),
            (template("all"), "[]", "{}", Some("all")),
        ] {
            let key = rule.key(&message(args, kwargs), &parameters).unwrap();
            assert_eq!(key.as_deref(), expected, "{rule:?} {args} {kwargs}");
        }
        let by = KeyOf::Function(Arc::new(|arguments| Some(arguments.args.as_str().to_owned())));
        let key = by.key(&message("[1]", "{}"), &[]).unwrap();
        assert_eq!(key.as_deref(), Some("bill.pay:[1]"));
        let by = KeyOf::Function(Arc::new(|_| panic!("no such account")));
        let failure = by.key(&message("[1]", "{}"), &[]).unwrap_err();
        assert!(failure.to_string().contains("no such account"), "{failure}");
        assert!(bounded("x".repeat(201)).len() < 60);
    }

    #[test]
    fn rules_are_read_and_refused() {
        let rule: KeyRule = "bill.*=acct-{kwargs.account}=3".parse().unwrap();
        assert_eq!((rule.tasks.as_str(), rule.most), ("bill.*", 3));
        assert_eq!("*={task}".parse::<KeyRule>().unwrap().most, 1);
        for bad in [
            "",
            "x",
            "=k",
            "x=",
            "x={",
            "x={args.a}",
            "x={kwargs.}",
            "x={foo}",
            "x=k=0",
            "x=k=y",
        ] {
            assert!(bad.parse::<KeyRule>().is_err(), "{bad:?}");
        }
    }
}
