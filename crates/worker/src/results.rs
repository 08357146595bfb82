//! Which results are stored, and how. Pure.

use umbel_codec::{Compression, Serializer, compress_document, read_document, write_any_document, write_document};
use umbel_protocol::json::Json;
use umbel_protocol::result;

use crate::options::TaskOptions;

/// No document that we would have written is larger, unpacked.
const UNPACKED: usize = 32 << 20;

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
    /// How they are written: Celery's `result_serializer`.
    pub serializer: Serializer,
    /// Are they compressed: Celery's `result_compression`?
    pub compression: Option<Compression>,
    /// Largest document of a success in bytes; what is larger fails.
    pub max_bytes: usize,
}

impl Results {
    /// Are they what the scripts can read: plain JSON, which says at its beginning whether it is final?
    pub(crate) fn is_plain(&self) -> bool {
        self.serializer == Serializer::Json && self.compression.is_none()
    }

    /// The document as it is stored. What its serializer has not is text in it; of a result that is to come back as it
    /// was, see [`Results::refuses`].
    pub(crate) fn packed(&self, document: Vec<u8>) -> Vec<u8> {
        if self.is_plain() {
            return document;
        }
        let document = match (self.serializer, std::str::from_utf8(&document)) {
            (Serializer::Json, _) | (_, Err(_)) => document,
            (serializer, Ok(text)) => write_any_document(text, serializer),
        };
        match self.compression {
            Some(compression) => compress_document(&document, compression),
            None => document,
        }
    }

    /// A chord's part or a group's structure as it is stored. Celery before 5.7 reads nothing compressed there.
    pub(crate) fn written(&self, value: &Json) -> Vec<u8> {
        match self.serializer {
            Serializer::Json => value.as_str().as_bytes().to_vec(),
            serializer => write_any_document(value.as_str(), serializer),
        }
    }

    /// Why a value cannot be a result: its serializer has no such.
    pub(crate) fn refuses(&self, value: &Json) -> Option<String> {
        match self.serializer {
            Serializer::Json => None,
            serializer => write_document(value.as_str(), serializer).err(),
        }
    }
}

/// The JSON of what another worker may have written: a document, a part, a structure.
pub(crate) fn read(stored: &[u8]) -> Option<Json> {
    Json::parse(&read_document(stored, UNPACKED).ok()?).ok()
}

/// The state that a stored document names.
pub(crate) fn state(stored: &[u8]) -> Option<String> {
    read(stored)?.get("status")?.text()
}

/// Does a stored document, of whatever serializer and compression, say SUCCESS? One that cannot be read says nothing.
pub(crate) fn is_success(stored: &[u8]) -> bool {
    let text = read_document(stored, UNPACKED);
    text.is_ok_and(|text| result::parse(text.as_bytes()).is_ok_and(|document| document.status == "SUCCESS"))
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
pub(crate) fn is_wanted(
    policy: StoreResults,
    options: Option<&TaskOptions>,
    ignore_result: Option<bool>,
    kind: Kind,
) -> bool {
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
    fn documents_of_every_form_say_whether_they_are_final() {
        let document = result::success("id", &umbel_protocol::json::Json::of(&5), &result::Meta::default());
        let failure = result::failure(
            "id",
            &result::Failure::new("builtins", "ValueError", "x"),
            None,
            &result::Meta::default(),
        );
        for compression in Compression::ALL.into_iter().map(Some).chain([None]) {
            for serializer in [Serializer::Json, Serializer::Msgpack, Serializer::Yaml] {
                let results = Results {
                    backend: None,
                    store: StoreResults::All,
                    is_extended: false,
                    track_started: false,
                    serializer,
                    compression,
                    max_bytes: 1,
                };
                let packed = results.packed(document.clone());
                if let Some(compression) = compression {
                    let head = format!("\0celery-compressed\0{}\0", compression.content_type());
                    assert!(packed.starts_with(head.as_bytes()));
                }
                assert!(is_success(&packed), "{compression:?} {serializer:?}");
                assert!(
                    !is_success(&results.packed(failure.clone())),
                    "{compression:?} {serializer:?}"
                );
                let big = Json::parse(r#"{"__type__": "uuid", "__value__": {"hex": "0"}}"#).unwrap();
                assert_eq!(results.refuses(&big).is_some(), serializer != Serializer::Json);
                assert_eq!(results.refuses(&Json::of(&5)), None);
            }
        }
        assert!(is_success(&document) && !is_success(&failure));
    }

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
