//! From JSON text to YAML, in the style of PyYAML's `safe_dump`: block collections, sorted keys. Long lines are not
//! folded, which reads the same.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use umbel_protocol::json::Json;

use super::plain::{Plain, meaning};
use crate::json::{Value, take};

/// The value as YAML.
///
/// # Errors
/// What `safe_dump` refuses, too: decimals, UUIDs, times of day.
pub(crate) fn write(json: &Json) -> Result<String, String> {
    let mut out = String::with_capacity(json.as_str().len() * 2);
    put(&mut out, json, 0, false)?;
    if !out.ends_with('\n') {
        out.push('\n');
    }
    Ok(out)
}

/// Writes a value whose lines are indented by `indent`. `is_begun`: its first line has an indicator already.
fn put(out: &mut String, json: &Json, indent: usize, is_begun: bool) -> Result<(), String> {
    match take(json)? {
        Value::Array(elements) if !elements.is_empty() => {
            for (index, element) in elements.iter().enumerate() {
                if index > 0 || !is_begun {
                    spaces(out, indent);
                }
                out.push_str("- ");
                put(out, element, indent + 2, true)?;
                end(out);
            }
        }
        Value::Object(mut entries) if !entries.is_empty() => {
            // Of doubled keys the last one counts, as in Python.
            let mut seen = std::collections::HashSet::new();
            entries.reverse();
            entries.retain(|(key, _)| seen.insert(key.clone()));
            entries.sort_by(|(one, _), (two, _)| one.cmp(two));
            for (index, (key, value)) in entries.iter().enumerate() {
                if index > 0 || !is_begun {
                    spaces(out, indent);
                }
                if key.len() > 120 || key.contains('\n') {
                    // A long key is no simple key.
                    out.push_str("? ");
                    text(out, key);
                    out.push('\n');
                    spaces(out, indent);
                } else {
                    text(out, key);
                }
                out.push(':');
                match take(value)? {
                    Value::Array(elements) if !elements.is_empty() => {
                        out.push('\n');
                        put(out, value, indent, false)?;
                    }
                    Value::Object(entries) if !entries.is_empty() => {
                        out.push('\n');
                        put(out, value, indent + 2, false)?;
                    }
                    _ => {
                        out.push(' ');
                        put(out, value, indent, true)?;
                    }
                }
                end(out);
            }
        }
        Value::Array(_) => out.push_str("[]"),
        Value::Object(_) => out.push_str("{}"),
        Value::Null => out.push_str("null"),
        Value::Bool(value) => out.push_str(if value { "true" } else { "false" }),
        Value::Integer(digits) => out.push_str(&digits),
        Value::Float(value) => out.push_str(&float(value)),
        Value::Text(value) => text(out, &value),
        Value::Bytes(bytes) => {
            out.push_str("!!binary ");
            text(out, &STANDARD.encode(bytes));
        }
        Value::Special(kind, value) => match (kind.as_str(), value.text()) {
            ("datetime", Some(time)) => {
                let time = time.replacen('T', " ", 1);
                match meaning(&time) {
                    Some(Plain::DateTime(_)) => out.push_str(&time),
                    _ => return Err("a datetime is no ISO 8601 time".into()),
                }
            }
            ("date", Some(date)) => match meaning(&date) {
                Some(Plain::Date(_)) => out.push_str(&date),
                _ => return Err("a date is no ISO 8601 date".into()),
            },
            _ => return Err(format!("a value of type {kind} is nothing that yaml has")),
        },
    }
    Ok(())
}

fn spaces(out: &mut String, count: usize) {
    out.extend(std::iter::repeat_n(' ', count));
}

fn end(out: &mut String) {
    if !out.ends_with('\n') {
        out.push('\n');
    }
}

/// Python's `repr`, with the dot that YAML wants before an exponent.
fn float(value: f64) -> String {
    if value.is_nan() {
        return ".nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { ".inf" } else { "-.inf" }.into();
    }
    let text = Json::of(&value).to_string();
    match text.split_once('e') {
        Some((digits, exponent)) if !digits.contains('.') => format!("{digits}.0e{exponent}"),
        _ => text,
    }
}

/// Plain where it can be nothing but text, in single quotes where it is printable, else with escapes.
fn text(out: &mut String, value: &str) {
    if is_plain(value) {
        out.push_str(value);
        return;
    }
    if value.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        out.push('\'');
        out.push_str(&value.replace('\'', "''"));
        out.push('\'');
        return;
    }
    out.push('"');
    for ch in value.chars() {
        match ch {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(ch),
            // Writing to a String cannot fail.
            _ => {
                let code = u32::from(ch);
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02X}"),
                    0x100..=0xffff => write!(out, "\\u{code:04X}"),
                    _ => write!(out, "\\U{code:08X}"),
                };
            }
        }
    }
    out.push('"');
}

/// Narrower than what YAML allows: nothing here can be mistaken, at any place.
fn is_plain(value: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'/' | b'-' | b' ' | b'+');
    value.starts_with(|first: char| first.is_ascii_alphanumeric() || matches!(first, '_' | '/'))
        && !value.ends_with(' ')
        && value.bytes().all(is_word)
        && meaning(value) == Some(Plain::Text)
}
