//! Writes JSON byte for byte as Python's `json.dumps` does: ASCII only, `", "` and `": "`, floats by `repr`.

use std::fmt::Write as _;
use std::io;

use serde_json::ser::Formatter;

use crate::json::Json;

/// Appends `text` as a string literal.
pub(crate) fn string(out: &mut String, text: &str) {
    out.push('"');
    if text
        .bytes()
        .all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'))
    {
        // Nothing to escape: nearly every text.
        out.push_str(text);
        out.push('"');
        return;
    }
    let mut rest = text;
    loop {
        // Most texts are plain: copied whole.
        let plain = rest
            .bytes()
            .position(|byte| !matches!(byte, b' '..=b'~') || byte == b'"' || byte == b'\\');
        let (copied, special) = rest.split_at(plain.unwrap_or(rest.len()));
        out.push_str(copied);
        let Some(ch) = special.chars().next() else { break };
        rest = &special[ch.len_utf8()..];
        match ch {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            _ => {
                for unit in ch.encode_utf16(&mut [0; 2]) {
                    // Writing to a String cannot fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
}

/// Appends `null` or `text` as a string literal.
pub(crate) fn optional(out: &mut String, text: Option<&str>) {
    match text {
        Some(text) => string(out, text),
        None => out.push_str("null"),
    }
}

/// Python's `repr` of a float: the shortest digits that read back, `1e-07` and `1e+16` beyond sixteen places.
pub(crate) fn float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 {
            "Infinity".into()
        } else {
            "-Infinity".into()
        };
    }
    // Rust's Debug changes to exponents at the same magnitudes as Python, but writes them shorter.
    let text = format!("{value:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
    }
}

/// Seconds as Celery's callers mostly write them: whole ones as an integer.
pub(crate) fn seconds(value: f64) -> String {
    let text = float(value);
    match text.strip_suffix(".0") {
        Some(whole) => whole.to_owned(),
        None => text,
    }
}

/// Makes `serde_json` write as Python does.
pub(crate) struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float(value).as_bytes())
    }

    fn write_f32<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f32) -> io::Result<()> {
        self.write_f64(writer, f64::from(value))
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if fragment.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut quoted = String::with_capacity(fragment.len() + 16);
        string(&mut quoted, fragment);
        writer.write_all(&quoted.as_bytes()[1..quoted.len() - 1])
    }
}

/// An array of these values.
pub(crate) fn array<T: std::borrow::Borrow<Json>>(values: impl IntoIterator<Item = T>) -> Json {
    let mut out = String::from("[");
    for (index, value) in values.into_iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        out.push_str(value.borrow().as_str());
    }
    out.push(']');
    Json::trusted(out)
}

/// An object of these entries.
pub(crate) fn object<'a>(entries: impl IntoIterator<Item = (&'a str, &'a Json)>) -> Json {
    let mut out = String::from("{");
    for (index, (name, value)) in entries.into_iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        string(&mut out, name);
        out.push_str(": ");
        out.push_str(value.as_str());
    }
    out.push('}');
    Json::trusted(out)
}
