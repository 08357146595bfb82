//! Writes JSON byte for byte as Python's `json.dumps` does: ASCII only, `", "` and `": "`, floats by `repr`.

use std::fmt::Write as _;
use std::io;

use serde_json::ser::Formatter;

use crate::json::Json;

/// What JSON text is appended to.
pub(crate) trait Sink {
    /// Appends.
    fn push_str(&mut self, text: &str);
}

impl Sink for String {
    fn push_str(&mut self, text: &str) {
        String::push_str(self, text);
    }
}

/// For those who put other bytes beside the text.
impl Sink for Vec<u8> {
    fn push_str(&mut self, text: &str) {
        self.extend_from_slice(text.as_bytes());
    }
}

const HEX: &str = "0123456789abcdef";
/// Bytes that are looked at together, without a branch between them.
const TOGETHER: usize = 16;

/// Is there nothing to escape in it?
pub(crate) fn is_plain(bytes: &[u8]) -> bool {
    let special = |byte: &u8| {
        u8::from(byte.wrapping_sub(b' ') > b'~' - b' ') | u8::from(*byte == b'"') | u8::from(*byte == b'\\')
    };
    let any = |bytes: &[u8]| bytes.iter().fold(0, |any, byte| any | special(byte)) != 0;
    // The rest once more with bytes in front of it, where there are any: one by one they would take longest.
    let (whole, rest) = bytes.as_chunks::<TOGETHER>();
    let rest = bytes.last_chunk::<TOGETHER>().map_or(rest, |last| last);
    !whole.iter().any(|chunk| any(chunk)) && !any(rest)
}

/// Appends `text` as a string literal.
pub(crate) fn string(out: &mut impl Sink, text: &str) {
    out.push_str("\"");
    if is_plain(text.as_bytes()) {
        // Nearly every text.
        out.push_str(text);
        out.push_str("\"");
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
                    out.push_str("\\u");
                    for shift in [12, 8, 4, 0] {
                        let digit = usize::from(*unit >> shift & 15);
                        out.push_str(&HEX[digit..=digit]);
                    }
                }
            }
        }
    }
    out.push_str("\"");
}

/// Appends `null` or `text` as a string literal.
pub(crate) fn optional(out: &mut impl Sink, text: Option<&str>) {
    match text {
        Some(text) => string(out, text),
        None => out.push_str("null"),
    }
}

/// Appends an integer: mostly one digit.
pub(crate) fn integer(out: &mut impl Sink, value: i64) {
    const DIGITS: &str = "0123456789";
    match usize::try_from(value) {
        Ok(digit @ 0..=9) => out.push_str(&DIGITS[digit..=digit]),
        _ => out.push_str(&value.to_string()),
    }
}

/// Python's `repr` of a float: the shortest digits that read back, `1e-07` and `1e+16` beyond sixteen places.
pub(crate) fn float(value: f64) -> String {
    let mut out = String::new();
    float_to(&mut out, value);
    out
}

/// Appends what [`float`] returns.
pub(crate) fn float_to(out: &mut String, value: f64) {
    if value.is_nan() {
        return out.push_str("NaN");
    }
    if value.is_infinite() {
        return out.push_str(if value > 0.0 { "Infinity" } else { "-Infinity" });
    }
    // Rust's Debug changes to exponents at the same magnitudes as Python, but writes them shorter.
    let start = out.len();
    let _ = write!(out, "{value:?}"); // Writing to a String cannot fail.
    let Some(at) = out[start..].find('e') else { return };
    let mut at = start + at + 1;
    if out[at..].starts_with('-') {
        at += 1;
    } else {
        out.insert(at, '+');
        at += 1;
    }
    if out.len() - at < 2 {
        out.insert(at, '0');
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
        if is_plain(fragment.as_bytes()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_special_is_found_wherever_it_stands() {
        for length in 0..50 {
            assert!(is_plain(&vec![b'~'; length]), "{length}");
            for at in 0..length {
                for special in [b'"', b'\\', b'\n', 0x7f, 0x80, 0xff] {
                    let mut bytes = vec![b' '; length];
                    bytes[at] = special;
                    assert!(!is_plain(&bytes), "{special} at {at} of {length}");
                }
            }
        }
    }
}
