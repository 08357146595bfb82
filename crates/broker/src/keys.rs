//! Every key name, in one place, pure.

use std::sync::Arc;

use crate::{Config, Error};

/// kombu's default priority steps; step 0 is the list of the queue's own name.
pub const PRIORITY_STEPS: [u8; 4] = [0, 3, 6, 9];
/// kombu's default separator between a queue and its priority step, and between the fields of a binding.
pub const SEPARATOR: &str = "\u{6}\u{16}";
/// The highest priority that kombu tells from the others.
const MAX_PRIORITY: i64 = 9;

/// Makes key names under one prefix.
#[derive(Debug, Clone)]
pub struct Keys {
    prefix: Arc<str>,
    separator: Arc<str>,
    /// The prefix as the scripts take it: with the separator, where that is not the usual one.
    scope: Arc<str>,
    steps: Arc<[u8]>,
}

impl Keys {
    /// Names under kombu's `global_keyprefix` with its usual steps; an empty prefix is the usual case.
    pub fn new(prefix: &str) -> Keys {
        Keys::with(prefix, &PRIORITY_STEPS, SEPARATOR)
    }

    /// Names as a configuration has them.
    pub fn of(config: &Config) -> Keys {
        Keys::with(&config.key_prefix, &config.priority_steps, &config.separator)
    }

    fn with(prefix: &str, steps: &[u8], separator: &str) -> Keys {
        let scope = if separator == SEPARATOR {
            prefix.to_owned()
        } else {
            format!("{prefix}\0{separator}")
        };
        Keys {
            prefix: prefix.into(),
            separator: separator.into(),
            scope: scope.into(),
            steps: if steps.is_empty() { &PRIORITY_STEPS } else { steps }.into(),
        }
    }

    /// The same names with other priority steps; none: kombu's.
    pub(crate) fn with_steps(&self, steps: &[u8]) -> Keys {
        Keys::with(&self.prefix, steps, &self.separator)
    }

    /// The prefix itself.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// kombu's `sep`.
    pub fn separator(&self) -> &str {
        &self.separator
    }

    /// The first argument of every script.
    pub(crate) fn scope(&self) -> &str {
        &self.scope
    }

    /// The priority steps, ascending.
    pub fn steps(&self) -> &[u8] {
        &self.steps
    }

    /// The list that takes messages of this priority: the greatest step at or below it, as kombu chooses. Priorities
    /// beyond 0 to 9 count as the nearest of these; one below all steps goes to the last, as with kombu.
    pub fn list(&self, queue: &str, priority: impl Into<i64>) -> String {
        let priority = priority.into().clamp(0, MAX_PRIORITY);
        let below = self.steps.iter().rev().find(|step| i64::from(**step) <= priority);
        self.step_list(queue, below.or(self.steps.last()).copied().unwrap_or(0))
    }

    /// All lists of a queue, the most urgent first: with Celery on Redis the lowest number is served first.
    pub fn lists(&self, queue: &str) -> Vec<String> {
        self.steps.iter().map(|step| self.step_list(queue, *step)).collect()
    }

    fn step_list(&self, queue: &str, step: u8) -> String {
        if step == 0 {
            format!("{}{queue}", self.prefix)
        } else {
            format!("{}{queue}{}{step}", self.prefix, self.separator)
        }
    }

    /// The queue that a list of ours or kombu's belongs to.
    pub fn queue_of<'a>(&self, list: &'a str) -> &'a str {
        let name = list.strip_prefix(&*self.prefix).unwrap_or(list);
        match name.rsplit_once(&*self.separator) {
            Some((queue, step)) if is_step(step) => queue,
            Some(_) | None => name,
        }
    }

    /// One of Umbel's own keys.
    pub fn umbel(&self, rest: &str) -> String {
        format!("{}umbel:{rest}", self.prefix)
    }
}

fn is_step(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Reads priority steps from text: numbers from 0 to 9 in ascending order, separated by commas.
///
/// # Errors
/// [`Error::Setting`].
pub fn parse_steps(text: &str) -> Result<Vec<u8>, Error> {
    let wrong = |reason: String| Error::Setting {
        name: "priority steps",
        reason,
    };
    let mut steps: Vec<u8> = Vec::new();
    for part in text.split(',').map(str::trim) {
        let step = part
            .parse()
            .ok()
            .filter(|step| i64::from(*step) <= MAX_PRIORITY)
            .ok_or_else(|| wrong(format!("{part:?} is no number from 0 to {MAX_PRIORITY}")))?;
        if steps.last().is_some_and(|last| *last >= step) {
            return Err(wrong(format!("{step} does not come after {:?}", steps.last())));
        }
        steps.push(step);
    }
    Ok(steps)
}

/// Takes a text for kombu's `sep`: anything that does not end like a step and can be told from the prefix.
///
/// # Errors
/// [`Error::Setting`].
pub fn parse_separator(text: &str) -> Result<String, Error> {
    let wrong = |reason: &str| Error::Setting {
        name: "separator",
        reason: reason.into(),
    };
    if text.is_empty() {
        return Err(wrong("it is empty"));
    }
    if text.contains('\0') || text.ends_with(|last: char| last.is_ascii_digit()) {
        return Err(wrong("it has a zero byte or ends in a digit"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_map_to_kombus_steps() {
        let keys = Keys::new("");
        let names: Vec<String> = (0..=12).map(|priority| keys.list("q", priority)).collect();
        let expected = [
            "q",
            "q",
            "q",
            "q\x06\x163",
            "q\x06\x163",
            "q\x06\x163",
            "q\x06\x166",
            "q\x06\x166",
            "q\x06\x166",
            "q\x06\x169",
        ];
        assert_eq!(names[..10], expected);
        assert_eq!(names[12], "q\x06\x169");
    }

    #[test]
    fn steps_and_separator_are_the_producers() {
        let mut config = Config::new("redis://127.0.0.1/0");
        config.priority_steps = (0..10).collect();
        config.separator = ":".into();
        let keys = Keys::of(&config);
        let lists = [0, 1, 5, 9, 12, -3].map(|priority: i64| keys.list("celery", priority));
        assert_eq!(
            lists,
            ["celery", "celery:1", "celery:5", "celery:9", "celery:9", "celery"]
        );
        assert_eq!(keys.lists("q").len(), 10);
        assert_eq!((keys.queue_of("a:b:7"), keys.queue_of("a:b")), ("a:b", "a:b"));
        config.priority_steps = vec![3, 6];
        // kombu's bisect finds nothing below the first step, and index -1 is Python's last.
        assert_eq!(Keys::of(&config).list("q", 0), "q:6");
    }

    #[test]
    fn queue_of_undoes_prefix_and_step() {
        let keys = Keys::new("app.");
        assert_eq!(keys.queue_of(&keys.list("q", 9)), "q");
        assert_eq!(keys.queue_of(&keys.list("q", 0)), "q");
    }

    #[test]
    fn steps_are_read_and_refused() {
        assert_eq!(parse_steps("0, 5,9").unwrap(), [0, 5, 9]);
        for bad in ["", "0,10", "3,3", "6,3", "a", "-1", "0,,3"] {
            assert!(parse_steps(bad).is_err(), "{bad:?}");
        }
        assert!(parse_separator("").is_err() && parse_separator("q1").is_err());
        assert_eq!(parse_separator("|").unwrap(), "|");
    }
}
