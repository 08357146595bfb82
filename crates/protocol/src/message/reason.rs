//! Why a message cannot be run.

use crate::json::JsonError;

/// A message that is no task message for us, with as much of its identity as could be read.
///
/// With an id the sender can be told by a FAILURE result; without one the message can only be set aside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Malformed {
    /// What is wrong.
    #[source]
    pub reason: Reason,
    /// Task id, if one of acceptable length came before the fault.
    pub id: Option<String>,
    /// Task name, likewise.
    pub task: Option<String>,
}

/// What is wrong with a message. The text names the field; it quotes at most 64 characters of foreign text, escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Larger than [`super::Limits::bytes`].
    #[error("message of {bytes} bytes is larger than {limit}")]
    Size {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Bytes that are no UTF-8 (UTF-16, binary), or text that begins with a byte order mark.
    #[error("{part} is not UTF-8 text from byte {at} on")]
    Text {
        /// `message` or `body`.
        part: &'static str,
        /// Offset of the first such byte.
        at: usize,
    },
    /// No JSON, or more of it than the limits allow.
    #[error("{part} is not acceptable JSON: {source}")]
    Json {
        /// `message` or `body`.
        part: &'static str,
        /// Where and why.
        source: JsonError,
    },
    /// A serializer other than JSON. The body was not looked at.
    #[error("content type {0} is not accepted")]
    ContentType(String),
    /// A compression that is not read. The body was not looked at.
    #[error("compression {0} is not accepted")]
    Compression(String),
    /// A body that is not what its labels say: broken off, followed by something else, or of another format.
    #[error("body is not acceptable {format}: {why}")]
    Format {
        /// E.g. `zstd`, `msgpack`.
        format: &'static str,
        /// What is wrong; without foreign text.
        why: String,
    },
    /// A body that grows beyond the limit when it is unpacked. Unpacking ended there.
    #[error("body is larger than {limit} bytes when unpacked")]
    Unpacked {
        /// The limit.
        limit: usize,
    },
    /// A signature that proves nothing.
    #[error("signature refused: {0}")]
    Signature(String),
    /// A character set or transfer encoding that we do not read, or a body that is not what it says.
    #[error("{field} {found} cannot be decoded")]
    Encoding {
        /// `content-encoding` or `body_encoding`.
        field: &'static str,
        /// Its value.
        found: String,
    },
    /// Something that a task message must have.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A value that means nothing in its place.
    #[error("{field} is not {expected}")]
    Field {
        /// Where.
        field: &'static str,
        /// What belongs there.
        expected: &'static str,
    },
}

impl Reason {
    /// One short word for metrics and records; it never changes.
    pub fn label(&self) -> &'static str {
        match self {
            Reason::Size { .. } | Reason::Unpacked { .. } => "size",
            Reason::Format { .. } => "format",
            Reason::Signature(_) => "signature",
            Reason::Text { .. } => "text",
            Reason::Json {
                source: JsonError::Syntax { .. },
                ..
            } => "json",
            Reason::Json {
                source: JsonError::Depth { .. } | JsonError::Keys { .. },
                ..
            } => "limit",
            Reason::ContentType(_) => "content-type",
            Reason::Compression(_) => "compression",
            Reason::Encoding { .. } => "encoding",
            Reason::Missing(_) => "missing",
            Reason::Field { .. } => "field",
        }
    }
}

/// Foreign text for a reason: escaped and short.
pub fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(64).flat_map(char::escape_debug).collect();
    if text.chars().nth(64).is_some() {
        shown.push_str("...");
    }
    format!("`{shown}`")
}
