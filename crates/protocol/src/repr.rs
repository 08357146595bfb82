//! Python's `repr` of a JSON value, for the `argsrepr` and `kwargsrepr` headers: shown to people, parsed by nobody.

use std::fmt::Write as _;

use crate::json::JsonError;
use crate::scan::{Bounds, Scanner, Text};
use crate::write;

/// Celery cuts at about this many characters, so events and logs stay small whatever the arguments are.
const LIMIT: usize = 1024;

pub(crate) fn of(value: &str) -> String {
    let mut out = Cut::about(value.len());
    out.finish(|out| whole(out, value, false))
}

pub(crate) fn of_arguments(value: &str) -> String {
    let mut out = Cut::about(value.len());
    out.finish(|out| whole(out, value, true))
}

#[derive(Default)]
struct Cut {
    text: String,
    chars: usize,
    full: bool,
}

impl Cut {
    /// With room for a value of so many bytes.
    fn about(bytes: usize) -> Cut {
        Cut {
            text: String::with_capacity(bytes.min(LIMIT) + 8),
            ..Cut::default()
        }
    }

    fn finish(&mut self, write: impl FnOnce(&mut Cut) -> Result<(), JsonError>) -> String {
        // The value was accepted before; an error here could only leave the text shorter.
        let _ = write(self);
        let mut text = std::mem::take(&mut self.text);
        if self.full {
            text.push_str("...");
        }
        text
    }

    fn push(&mut self, piece: &str) {
        if self.chars + piece.len() <= LIMIT && piece.is_ascii() {
            self.text.push_str(piece);
            self.chars += piece.len();
            return;
        }
        for ch in piece.chars() {
            if self.chars == LIMIT {
                self.full = true;
                return;
            }
            self.text.push(ch);
            self.chars += 1;
        }
    }
}

fn whole(out: &mut Cut, text: &str, as_tuple: bool) -> Result<(), JsonError> {
    let mut scanner = Scanner::new(
        text,
        Bounds {
            depth: u32::MAX,
            keys: u32::MAX,
        },
    );
    if as_tuple && scanner.peek() == Some(b'[') {
        let mut count = 0;
        out.push("(");
        scanner.array(|inner| {
            comma(out, count);
            count += 1;
            value(out, inner)
        })?;
        out.push(if count == 1 { ",)" } else { ")" });
        return Ok(());
    }
    value(out, &mut scanner)
}

fn value(out: &mut Cut, scanner: &mut Scanner<'_>) -> Result<(), JsonError> {
    if out.full {
        return scanner.value().map(drop);
    }
    let mut count = 0;
    match scanner.peek() {
        Some(b'{') => {
            out.push("{");
            scanner.object(|inner, key| {
                comma(out, count);
                count += 1;
                string(out, &key.unescaped());
                out.push(": ");
                value(out, inner)
            })?;
            out.push("}");
        }
        Some(b'[') => {
            out.push("[");
            scanner.array(|inner| {
                comma(out, count);
                count += 1;
                value(out, inner)
            })?;
            out.push("]");
        }
        _ => scalar(out, scanner.value()?),
    }
    Ok(())
}

fn comma(out: &mut Cut, count: usize) {
    if count > 0 {
        out.push(", ");
    }
}

fn scalar(out: &mut Cut, text: &str) {
    match text {
        "null" => out.push("None"),
        "true" => out.push("True"),
        "false" => out.push("False"),
        "NaN" => out.push("nan"),
        "Infinity" => out.push("inf"),
        "-Infinity" => out.push("-inf"),
        _ => match Text::of(text) {
            Some(text) => string(out, &text.unescaped()),
            // An integer has no limit and stays as it is; a float is shown as Python would read it.
            None if text.contains(['.', 'e', 'E']) => match text.parse::<f64>() {
                Ok(number) if number.is_finite() => out.push(&write::float(number)),
                Ok(number) => out.push(if number > 0.0 { "inf" } else { "-inf" }),
                Err(_) => out.push(text),
            },
            None => out.push(text),
        },
    }
}

/// Single quotes, unless the text holds such and no double ones.
fn string(out: &mut Cut, text: &str) {
    if out.chars + text.len() + 2 < LIMIT && write::is_plain(text.as_bytes()) && !text.contains('\'') {
        // Nothing to escape and nothing to cut: nearly every text.
        out.text.push('\'');
        out.text.push_str(text);
        out.text.push('\'');
        out.chars += text.len() + 2;
        return;
    }
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(if quote == '"' { "\"" } else { "'" });
    for ch in text.chars() {
        if out.full {
            return;
        }
        match ch {
            '\\' => out.push("\\\\"),
            '\n' => out.push("\\n"),
            '\r' => out.push("\\r"),
            '\t' => out.push("\\t"),
            _ if ch == quote => out.push("\\'"),
            _ if is_printable(ch) => out.push(ch.encode_utf8(&mut [0; 4])),
            _ => out.push(&escaped(ch)),
        }
    }
    out.push(if quote == '"' { "\"" } else { "'" });
}

fn escaped(ch: char) -> String {
    let code = u32::from(ch);
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = match code {
        0..=0xFF => write!(text, "\\x{code:02x}"),
        0x100..=0xFFFF => write!(text, "\\u{code:04x}"),
        _ => write!(text, "\\U{code:08x}"),
    };
    text
}

/// Near enough to Python's `str.isprintable`: controls, separators, format characters and private use are escaped, so
/// that a hostile argument cannot move a cursor or reverse a line.
fn is_printable(ch: char) -> bool {
    ch == ' '
        || !(ch.is_control()
            || ch.is_whitespace()
            || matches!(ch,
                '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}'
                | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}' | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{10ffff}'))
}
