//! Every key name, in one place, pure.

use std::sync::Arc;

/// kombu's default priority steps; step 0 is the list of the queue's own name.
pub const PRIORITY_STEPS: [u8; 4] = [0, 3, 6, 9];
/// kombu's separator between a queue and its priority step.
pub(crate) const SEPARATOR: &str = "\u{6}\u{16}";

/// Makes key names under one prefix.
#[derive(Debug, Clone)]
pub struct Keys {
    prefix: Arc<str>,
}

impl Keys {
    /// Names under kombu's `global_keyprefix`; an empty prefix is the usual case.
    pub fn new(prefix: &str) -> Keys {
        Keys { prefix: prefix.into() }
    }

    /// The prefix itself.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The list that takes messages of this priority: the greatest step at or below it, as kombu chooses.
    pub fn list(&self, queue: &str, priority: u8) -> String {
        let step = PRIORITY_STEPS
            .iter()
            .rev()
            .find(|step| **step <= priority.min(9))
            .copied()
            .unwrap_or(0);
        self.step_list(queue, step)
    }

    /// All lists of a queue, the most urgent first: with Celery on Redis the lowest number is served first.
    pub fn lists(&self, queue: &str) -> Vec<String> {
        PRIORITY_STEPS.iter().map(|step| self.step_list(queue, *step)).collect()
    }

    fn step_list(&self, queue: &str, step: u8) -> String {
        if step == 0 {
            format!("{}{queue}", self.prefix)
        } else {
            format!("{}{queue}{SEPARATOR}{step}", self.prefix)
        }
    }

    /// The queue that a list of ours or kombu's belongs to.
    pub fn queue_of<'a>(&self, list: &'a str) -> &'a str {
        let name = list.strip_prefix(&*self.prefix).unwrap_or(list);
        name.split_once(SEPARATOR).map_or(name, |(queue, _)| queue)
    }

    /// One of Umbel's own keys.
    pub fn umbel(&self, rest: &str) -> String {
        format!("{}umbel:{rest}", self.prefix)
    }
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
    fn queue_of_undoes_prefix_and_step() {
        let keys = Keys::new("app.");
        assert_eq!(keys.queue_of(&keys.list("q", 9)), "q");
        assert_eq!(keys.queue_of(&keys.list("q", 0)), "q");
    }
}
