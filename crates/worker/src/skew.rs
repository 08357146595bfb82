//! Versions of a task's arguments, where workers of two releases serve one queue.
//!
//! A message says in its header `umbel_version` which version its arguments have (1 where it says none), and a task
//! which is the newest that it reads. A message that is too new here goes back to its queue for others, a few times; then
//! nobody is left who reads it, and it is a dead letter with a failure for who waits.

use umbel_protocol::message::TaskMessage;

use crate::failure::Failure;
use crate::options::TaskOptions;

/// The header.
const HEADER: &str = "umbel_version";

/// The version of the message's arguments, where it is newer than what its task reads here.
pub(crate) fn too_new(message: &TaskMessage, options: Option<&TaskOptions>) -> Option<u32> {
    let asked: u32 = message.own_header(HEADER)?.to().ok()?;
    (asked > options.and_then(|options| options.version).unwrap_or(1)).then_some(asked)
}

/// What who waits is told when nobody reads it.
pub(crate) fn failure(version: u32) -> Failure {
    Failure {
        exc_module: "celery.exceptions".into(),
        ..Failure::permanent("InvalidTaskError", reason(version))
    }
}

pub(crate) fn reason(version: u32) -> String {
    format!("no worker understands version {version}")
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use umbel_protocol::json::Json;
    use umbel_protocol::message::{Limits, NewTask, decode};

    use super::*;

    #[test]
    fn a_message_is_too_new_beyond_what_its_task_reads() {
        let reads = |version| TaskOptions::new().version(version);
        for (header, options, expected) in [
            (None, reads(1), None),
            (Some("1"), reads(1), None),
            (Some("3"), reads(1), Some(3)),
            (Some("3"), reads(3), None),
            (Some("2"), reads(3), None),
            (Some("\"two\""), reads(1), None),
            (Some("-1"), reads(1), None),
        ] {
            let headers = header.map(|text| (HEADER.to_owned(), Json::parse(text).expect("JSON")));
            let task = NewTask {
                id: "i".into(),
                task: "t".into(),
                headers: headers.into_iter().collect(),
                ..NewTask::default()
            };
            let message = decode(&task.encode(), &Limits::default(), &TimeZone::UTC).expect("a message");
            assert_eq!(too_new(&message, Some(&options)), expected, "{header:?}");
        }
    }
}
