//! Which results are stored, and how. Pure.

use umbel_codec::{Compression, compress, decompress};
use umbel_protocol::result;

use crate::options::TaskOptions;

/// What stands before a compressed document: then its content type, a zero byte, the bytes. Celery 5.7 and later.
const COMPRESSED: &[u8] = b"\0celery-compressed\0";
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
    /// Are they compressed: Celery's `result_compression`?
    pub compression: Option<Compression>,
    /// Largest document of a success in bytes; what is larger fails.
    pub max_bytes: usize,
}

impl Results {
    /// The document as it is stored.
    pub(crate) fn packed(&self, document: Vec<u8>) -> Vec<u8> {
        let Some(compression) = self.compression else {
            return document;
        };
        let mut packed = COMPRESSED.to_vec();
        packed.extend(compression.content_type().bytes());
        packed.push(0);
        packed.extend(compress(compression, &document));
        packed
    }
}

/// Does a stored document, compressed or not, say SUCCESS? One that cannot be read says nothing.
pub(crate) fn is_success(stored: &[u8]) -> bool {
    let is = |document: &[u8]| result::parse(document).is_ok_and(|document| document.status == "SUCCESS");
    let Some(rest) = stored.strip_prefix(COMPRESSED) else {
        return is(stored);
    };
    let Some(end) = rest.iter().position(|byte| *byte == 0) else {
        return false;
    };
    let compression = std::str::from_utf8(&rest[..end]).ok().and_then(Compression::named);
    compression
        .and_then(|compression| decompress(compression, &rest[end + 1..], UNPACKED).ok())
        .is_some_and(|document| is(&document))
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
    fn compressed_documents_are_celerys() {
        let document = result::success("id", &umbel_protocol::json::Json::of(&5), &result::Meta::default());
        let failure = result::failure(
            "id",
            &result::Failure::new("builtins", "ValueError", "x"),
            None,
            &result::Meta::default(),
        );
        for compression in Compression::ALL {
            let results = Results {
                backend: None,
                store: StoreResults::All,
                is_extended: false,
                track_started: false,
                compression: Some(compression),
                max_bytes: 1,
            };
            let packed = results.packed(document.clone());
            let head = format!("\0celery-compressed\0{}\0", compression.content_type());
            assert!(packed.starts_with(head.as_bytes()));
            assert!(is_success(&packed), "{compression:?}");
            assert!(!is_success(&results.packed(failure.clone())), "{compression:?}");
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
