//! What people and programs read.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write as _};

use anyhow::Context as _;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use crate::args::Format;

/// One thing in a listing.
pub(crate) struct Row {
    /// As `kind/name`.
    pub(crate) name: String,
    /// One per column.
    pub(crate) cells: Vec<String>,
    /// All of it.
    pub(crate) value: Value,
}

/// A column, and whether only `-o wide` shows it.
pub(crate) struct Column(pub(crate) &'static str, pub(crate) bool);

/// Prints a listing.
pub(crate) fn list(format: Format, columns: &[Column], rows: Vec<Row>) -> anyhow::Result<()> {
    match format {
        Format::Json | Format::Yaml => {
            let items: Vec<Value> = rows.into_iter().map(|row| row.value).collect();
            value(format, &json!({ "items": items }))
        }
        Format::Name => rows.iter().try_for_each(|row| line(&row.name)),
        Format::Table | Format::Wide => {
            let is_shown = |at: usize| format == Format::Wide || !columns[at].1;
            let mut table = Table::new();
            table.load_style(presets::NOTHING);
            table.set_header(
                columns
                    .iter()
                    .filter(|column| format == Format::Wide || !column.1)
                    .map(|column| column.0),
            );
            for row in &rows {
                let cells = row.cells.iter().enumerate().filter(|(at, _)| is_shown(*at));
                table.add_row(cells.map(|(_, cell)| plain(cell).into_owned()));
            }
            for column in table.column_iter_mut() {
                column.set_padding((0, 3));
            }
            let text = table.to_string();
            text.lines().try_for_each(|text| line(text.trim_end()))
        }
    }
}

/// Prints a value as JSON or YAML; tables do not come here.
pub(crate) fn value(format: Format, value: &Value) -> anyhow::Result<()> {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(value).context("write YAML")?,
        Format::Json | Format::Table | Format::Wide | Format::Name => {
            serde_json::to_string_pretty(value).context("write JSON")?
        }
    };
    line(&inert(text.trim_end()))
}

/// Prints a line of data.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Says something to the person, not to the program behind the pipe.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{}", plain(text)); // Nobody there to read it is no failure.
}

/// Text from elsewhere without what a terminal would obey.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) {
        text.chars()
            .flat_map(|c| {
                if c.is_control() {
                    c.escape_default().collect()
                } else {
                    vec![c]
                }
            })
            .collect::<String>()
            .into()
    } else {
        Cow::Borrowed(text)
    }
}

/// JSON or YAML with the control characters that both allow in strings escaped; line ends stay.
pub(crate) fn inert(text: &str) -> Cow<'_, str> {
    let is_active = |c: char| c.is_control() && c != '\n';
    if !text.contains(is_active) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_active(c) {
            let _ = write!(safe, "\\u{:04x}", u32::from(c)); // Into a String: never fails.
        } else {
            safe.push(c);
        }
    }
    safe.into()
}

/// The first `length` characters, with a mark if there are more.
pub(crate) fn cut(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        text.to_owned()
    } else {
        text.chars().take(length - 1).chain(['…']).collect()
    }
}

/// Time since, as kubectl writes it.
pub(crate) fn ago(seconds: i64) -> String {
    match seconds {
        ..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_gets_through() {
        assert_eq!(plain("a\u{1b}[2Jb\nc\u{9b}"), "a\\u{1b}[2Jb\\nc\\u{9b}");
        assert_eq!(inert("{\n\"a\": \"\u{9b}\u{7f}\"}"), "{\n\"a\": \"\\u009b\\u007f\"}");
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(cut("äöü", 3), "äöü");
        assert_eq!(cut("äöüß", 3), "äö…");
    }
}
