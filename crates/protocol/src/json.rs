//! [`Json`]: a JSON text in Python's dialect, kept verbatim.
//!
//! Arguments and results pass through a worker byte for byte: numbers beyond 64 bits, `NaN`, `1.0` against `1`, the
//! order and doubling of keys all survive, because nothing is decoded until a task asks for a type ([`Json::to`]).

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use serde_json::value::RawValue;

use crate::repr;
use crate::scan::{Bounds, Scanner, Text};
use crate::write::{self, Python};

/// Deepest nesting that [`Json::parse`] takes.
///
/// Far above what tasks send, far below what a recursive reader's stack bears.
pub const MAX_DEPTH: u32 = 64;
/// Most object keys that [`Json::parse`] takes, over the whole text: a chord of 10,000 members has some thirty for each.
pub const MAX_KEYS: u32 = 500_000;

/// Bytes of memory that a thread keeps to write values into.
const KEPT: usize = 64 << 10;

/// Why a text is not acceptable JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// The grammar is broken; at the end of the text when that was cut off.
    #[error("expected {expected} at byte {at}")]
    Syntax {
        /// Offset of the byte that does not fit.
        at: usize,
        /// What would have fitted.
        expected: &'static str,
    },
    /// Too deep.
    #[error("nested deeper than {limit} levels")]
    Depth {
        /// The limit.
        limit: u32,
    },
    /// Too many keys.
    #[error("more than {limit} keys")]
    Keys {
        /// The limit.
        limit: u32,
    },
}

/// A valid JSON text of one value, without blanks around it. A clone shares the text.
///
/// Equality is that of the bytes: `1` and `1.0` differ.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Json(Arc<str>);

impl Json {
    /// Checks a text and keeps it.
    ///
    /// # Errors
    /// [`JsonError`]: not Python's JSON, deeper than [`MAX_DEPTH`] or more than [`MAX_KEYS`] keys.
    pub fn parse(text: &str) -> Result<Json, JsonError> {
        let mut scanner = Scanner::new(
            text,
            Bounds {
                depth: MAX_DEPTH,
                keys: MAX_KEYS,
            },
        );
        let value = scanner.value()?;
        scanner.end()?;
        Ok(Json::trusted(value))
    }

    /// As [`Json::parse`], under other limits.
    ///
    /// # Errors
    /// [`JsonError`].
    pub fn parse_within(text: &str, depth: u32, keys: u32) -> Result<Json, JsonError> {
        let mut scanner = Scanner::new(text, Bounds { depth, keys });
        let value = scanner.value()?;
        scanner.end()?;
        Ok(Json::trusted(value))
    }

    /// A span that a [`Scanner`] has accepted, or a text that this crate wrote.
    pub(crate) fn trusted(text: impl Into<Arc<str>>) -> Json {
        Json(text.into())
    }

    /// The text of any serialisable value, written as Python writes it. A float that is no number becomes `null`.
    ///
    /// A value whose `Serialize` fails (a map with keys that are no strings) becomes `null`; use [`Json::try_of`] for
    /// types that are not your own.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Json {
        Json::try_of(value).unwrap_or_else(|_| Json::null())
    }

    /// As [`Json::of`].
    ///
    /// # Errors
    /// Whatever the value's `Serialize` answers.
    pub fn try_of<T: Serialize + ?Sized>(value: &T) -> Result<Json, serde_json::Error> {
        thread_local! {
            /// Each value is then as large as it is, and is allocated once.
            static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        // Taken, not borrowed: a `Serialize` may come back here.
        let mut out = SCRATCH.take();
        out.clear();
        let done = value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Python));
        let json = done.and_then(|()| std::str::from_utf8(&out).map(Json::trusted).map_err(ser::Error::custom));
        if out.capacity() <= KEPT {
            SCRATCH.set(out);
        }
        json
    }

    /// A string value.
    pub fn string(text: &str) -> Json {
        let mut out = String::with_capacity(text.len() + 2);
        write::string(&mut out, text);
        Json::trusted(out)
    }

    /// `null`.
    pub fn null() -> Json {
        Json::trusted("null")
    }

    /// `[]`.
    pub fn empty_array() -> Json {
        Json::trusted("[]")
    }

    /// `{}`.
    pub fn empty_object() -> Json {
        Json::trusted("{}")
    }

    /// An array of these values.
    pub fn array<T: std::borrow::Borrow<Json>>(values: impl IntoIterator<Item = T>) -> Json {
        write::array(values)
    }

    /// An object of these entries, in their order.
    pub fn object<'a>(entries: impl IntoIterator<Item = (&'a str, &'a Json)>) -> Json {
        write::object(entries)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Is it `null`?
    pub fn is_null(&self) -> bool {
        &*self.0 == "null"
    }

    /// Is it an array?
    pub fn is_array(&self) -> bool {
        self.0.starts_with('[')
    }

    /// Is it an object?
    pub fn is_object(&self) -> bool {
        self.0.starts_with('{')
    }

    /// The value as a Rust type.
    ///
    /// Of a key that occurs twice the last one counts, as in Python.
    ///
    /// # Errors
    /// The value has another shape; or it holds something that no Rust type has: `NaN`, an infinity, a lone surrogate
    /// in a string, a number beyond the type's range.
    pub fn to<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.0).or_else(|err| {
            // A struct refuses the doubled key that a map takes: once more by way of a map. The first error is the one
            // with a position.
            let value = serde_json::from_str::<serde_json::Value>(&self.0);
            value.and_then(serde_json::from_value).map_err(|_| self.explained(err))
        })
    }

    fn explained(&self, err: serde_json::Error) -> serde_json::Error {
        if self.has_non_finite() {
            return de::Error::custom("NaN and Infinity have no typed form; read the text itself");
        }
        err
    }

    fn has_non_finite(&self) -> bool {
        // Outside of strings these two capitals begin nothing else.
        let mut quoted = false;
        let mut bytes = self.0.bytes();
        while let Some(byte) = bytes.next() {
            match byte {
                b'"' => quoted = !quoted,
                b'\\' if quoted => drop(bytes.next()),
                b'N' | b'I' if !quoted => return true,
                _ => {}
            }
        }
        false
    }

    /// The value under `key`; `None` if there is none or this is no object. Of doubled keys the last one counts.
    pub fn get(&self, key: &str) -> Option<Json> {
        if !self.may_name(key) {
            return None;
        }
        let mut found = None;
        self.scanner()
            .object(|inner, name| {
                let value = inner.value()?;
                if name.unescaped() == key {
                    found = Some(value);
                }
                Ok(())
            })
            .ok()?;
        found.map(Json::trusted)
    }

    /// Most keys that are asked for are not there, and a search for a word is many times faster than a scan. Only `\u`
    /// spells a letter in another way.
    fn may_name(&self, key: &str) -> bool {
        let is_plain = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        !is_plain || self.0.contains(key) || self.0.contains("\\u")
    }

    /// The entries of an object in their order, doubled keys included; empty if this is no object.
    pub fn entries(&self) -> Vec<(String, Json)> {
        let mut entries = Vec::new();
        let read = self.scanner().object(|inner, name| {
            entries.push((name.unescaped().into_owned(), Json::trusted(inner.value()?)));
            Ok(())
        });
        if read.is_ok() { entries } else { Vec::new() }
    }

    /// The elements of an array; `None` if this is no array.
    pub fn elements(&self) -> Option<Vec<Json>> {
        let mut elements = Vec::new();
        self.scanner()
            .array(|inner| {
                elements.push(Json::trusted(inner.value()?));
                Ok(())
            })
            .ok()?;
        Some(elements)
    }

    /// The text of a string value; `None` if this is no string. A lone surrogate reads as U+FFFD.
    pub fn text(&self) -> Option<String> {
        Text::of(&self.0).map(|text| text.unescaped().into_owned())
    }

    /// Python's `repr` of the value, cut at 1,024 characters with `...`: for people only, never to be parsed.
    pub fn repr(&self) -> String {
        repr::of(&self.0)
    }

    /// As [`Json::repr`], with an array as the tuple that Celery shows for positional arguments: `(2, 3)`, `(1,)`.
    pub fn repr_as_arguments(&self) -> String {
        repr::of_arguments(&self.0)
    }

    fn scanner(&self) -> Scanner<'_> {
        // The text was accepted once, under limits that a reader of parts need not repeat.
        Scanner::new(
            &self.0,
            Bounds {
                depth: u32::MAX,
                keys: u32::MAX,
            },
        )
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json({})", self.0)
    }
}

/// Verbatim inside `serde_json`; refused there if the text holds `NaN` or an infinity.
impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.0.to_string())
            .map_err(ser::Error::custom)?
            .serialize(serializer)
    }
}

/// Verbatim from `serde_json`, under the limits of [`Json::parse`].
impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Json::parse(raw.get()).map_err(de::Error::custom)
    }
}
