//! Which results are stored, and how. Pure.

use crate::options::TaskOptions;

/// A worker's settings for results.
#[derive(Debug, Clone)]
pub struct Results {
    /// The result database, where it is not the broker's.
    pub backend: Option<umbel_broker::Config>,
    /// Which are stored.
    pub store: StoreResults,
    /// Do they name task, arguments, worker, tries, queue and stamps: Celery's `result_extended`?
    pub is_extended: bool,
    /// Is STARTED stored?
    pub track_started: bool,
    /// Largest document of a success in bytes; what is larger fails.
    pub max_bytes: usize,
}

impl Results {
    /// The document as it is stored.
    pub(crate) fn packed(&self, document: Vec<u8>) -> Vec<u8> {
        document
    }
}

/// What a document says, for those who want only some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// SUCCESS.
    Success,
    /// FAILURE and REVOKED.
    Failure,
    /// RETRY.
    Retry,
    /// STARTED and states of the task's own.
    State,
}

/// Which results are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum StoreResults {
    /// Every one that its message and its task do not refuse.
    #[default]
    All,
    /// Only those of failed tasks.
    Failures,
    /// None; chords still count.
    None,
}

/// Is a document of this kind stored? A message's own word goes before the task's.
pub(crate) fn is_wanted(policy: StoreResults, options: Option<&TaskOptions>, ignore_result: Option<bool>, kind: Kind) -> bool {
    let is_ignored = ignore_result.unwrap_or_else(|| options.is_some_and(|options| options.ignore_result));
    let is_error = matches!(kind, Kind::Failure | Kind::Retry);
    let keeps_errors = options.is_some_and(|options| options.store_errors_even_if_ignored);
    let by_task = !is_ignored || (is_error && keeps_errors);
    let by_queue = match policy {
        StoreResults::All => true,
        StoreResults::Failures => kind == Kind::Failure,
        StoreResults::None => false,
    };
    by_task && by_queue
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_task_and_queue_say_what_is_stored() {
        use StoreResults::{All, Failures, None as Nothing};
        let plain = TaskOptions::new();
        let ignoring = TaskOptions::new().ignore_result();
        let keeping = TaskOptions::new().ignore_result().store_errors_even_if_ignored();
        for (policy, options, said, stored) in [
            (All, &plain, None, "success failure retry state"),
            (All, &plain, Some(true), ""),
            (All, &ignoring, None, ""),
            (All, &ignoring, Some(false), "success failure retry state"),
            (All, &keeping, None, "failure retry"),
            (All, &keeping, Some(true), "failure retry"),
            (Failures, &plain, Some(false), "failure"),
            (Failures, &keeping, None, "failure"),
            (Nothing, &plain, Some(false), ""),
        ] {
            let kinds = [
                (Kind::Success, "success"),
                (Kind::Failure, "failure"),
                (Kind::Retry, "retry"),
                (Kind::State, "state"),
            ];
            let found: Vec<&str> = kinds
                .iter()
                .filter(|(kind, _)| is_wanted(policy, Some(options), said, *kind))
                .map(|(_, name)| *name)
                .collect();
            assert_eq!(found.join(" "), stored, "{policy:?} {options:?} {said:?}");
        }
    }
}
