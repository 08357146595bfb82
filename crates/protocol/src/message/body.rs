//! Bodies that are not plain JSON: what says how to read one, and the hook by which somebody does.

use std::borrow::Cow;

use super::Reason;

/// A body's bytes, and the labels by which they are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body<'a> {
    /// E.g. `application/json`.
    pub content_type: Cow<'a, str>,
    /// `utf-8` for text, `binary` else; `None` if the message does not say.
    pub content_encoding: Option<Cow<'a, str>>,
    /// E.g. `application/zstd`; `None` if it is not compressed.
    pub compression: Option<Cow<'a, str>>,
    /// The bytes, after `body_encoding` was undone.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> Body<'a> {
    /// Plain JSON.
    pub fn json(bytes: &'a [u8]) -> Body<'a> {
        Body {
            content_type: Cow::Borrowed(JSON),
            content_encoding: Some(Cow::Borrowed("utf-8")),
            compression: None,
            bytes: Cow::Borrowed(bytes),
        }
    }
}

/// The content type that needs no hook.
pub(super) const JSON: &str = "application/json";

/// Who reads bodies, and which ones.
pub trait Bodies {
    /// Is this content type read at all? Asked before a body is touched.
    fn accepts(&self, content_type: &str) -> bool;

    /// The body's value as JSON text in kombu's dialect, which is then read under the same limits as any other. Plain
    /// JSON never comes here.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn open(&self, body: Body<'_>) -> Result<String, Reason>;
}

/// Reads JSON that is not compressed, and nothing else.
#[derive(Debug, Clone, Copy)]
pub struct OnlyJson;

impl Bodies for OnlyJson {
    fn accepts(&self, content_type: &str) -> bool {
        content_type == JSON
    }

    fn open(&self, body: Body<'_>) -> Result<String, Reason> {
        Err(Reason::Compression(super::quoted(
            body.compression.as_deref().unwrap_or_default(),
        )))
    }
}
