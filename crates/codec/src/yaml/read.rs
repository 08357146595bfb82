//! From YAML to JSON text.

use std::collections::HashMap;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use granit_parser::{Event, Options, Parser, ScalarStyle, Tag};
use umbel_protocol::json::MAX_DEPTH;
use umbel_protocol::message::{Reason, quoted};

use super::plain::{Plain, meaning};
use crate::json::Writer;

fn broken(why: impl Into<String>) -> Reason {
    Reason::Format {
        format: "yaml",
        why: why.into(),
    }
}

/// The JSON text of the one document; at most `limit` bytes.
///
/// An alias is written out as what it stands for, so the limit bounds what a bomb of aliases can grow to, and one that
/// contains itself is refused.
///
/// # Errors
/// [`Reason`]: the grammar, several documents, tags other than those of plain values and `!!binary`, merge keys, map
/// keys that are no text.
pub(crate) fn read(text: &str, limit: usize) -> Result<String, Reason> {
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.disallow_directives = false;
    options.flow_nesting_limit = MAX_DEPTH as usize;
    options.block_nesting_limit = MAX_DEPTH as usize;
    let mut reader = Reader {
        out: Writer::new(limit),
        anchors: HashMap::new(),
        open: Vec::new(),
        documents: 0,
    };
    for next in Parser::new_from_str_with_options(text, options) {
        let (event, _) = next.map_err(|err| {
            broken(format!(
                "line {}, column {}: {}",
                err.marker().line(),
                err.marker().col() + 1,
                quoted(&err.info())
            ))
        })?;
        reader.event(event)?;
    }
    if reader.documents != 1 {
        return Err(broken(format!("{} documents, not one", reader.documents)));
    }
    Ok(reader.out.finish())
}

/// A collection that is not at its end.
struct Open {
    is_map: bool,
    /// Values so far, keys not counted.
    count: usize,
    /// In a map: the key was written, its value comes next.
    has_key: bool,
    anchor: usize,
    start: usize,
}

struct Reader {
    out: Writer,
    /// Where the value of an anchor stands in the output, once it is whole.
    anchors: HashMap<usize, Range<usize>>,
    open: Vec<Open>,
    documents: usize,
}

impl Reader {
    fn event(&mut self, event: Event<'_>) -> Result<(), Reason> {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(broken("more than one document"));
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => self.scalar(&text, style, anchor, tag.as_deref()),
            Event::SequenceStart(_, anchor, tag) => self.start(false, anchor, tag.as_deref()),
            Event::MappingStart(_, anchor, tag) => self.start(true, anchor, tag.as_deref()),
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => self.alias(anchor),
            _ => Ok(()),
        }
    }

    /// What stands in front of the next node; whether it is a map's key.
    fn before(&mut self) -> Result<bool, Reason> {
        let Some(open) = self.open.last_mut() else {
            return Ok(false);
        };
        if open.is_map && open.has_key {
            open.has_key = false;
            open.count += 1;
            self.out.raw(": ")?;
            return Ok(false);
        }
        let is_key = open.is_map;
        let is_first = open.count == 0;
        if is_key {
            open.has_key = true;
        } else {
            open.count += 1;
        }
        if !is_first {
            self.out.raw(", ")?;
        }
        Ok(is_key)
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, anchor: usize, tag: Option<&Tag>) -> Result<(), Reason> {
        let is_key = self.before()?;
        let start = self.out.at();
        let kind = match tag {
            None => None,
            Some(tag) => Some(core(tag)?),
        };
        let is_text = match kind {
            None => style != ScalarStyle::Plain,
            Some(kind) => kind == "str",
        };
        if is_text {
            self.out.string(text)?;
        } else if kind == Some("binary") {
            if is_key {
                return Err(broken("a map has a key that is no text"));
            }
            let joined: String = text.split_ascii_whitespace().collect();
            let bytes = STANDARD.decode(joined).map_err(|_| broken("!!binary is no base64"))?;
            self.out.bytes(&bytes)?;
        } else {
            let plain =
                meaning(text).ok_or_else(|| broken(format!("{} is no number or time that exists", quoted(text))))?;
            if is_key && plain == Plain::Merge {
                return Err(broken("merge keys are not read"));
            }
            if is_key && plain != Plain::Text {
                return Err(broken("a map has a key that is no text"));
            }
            if kind.is_some_and(|kind| !fits(kind, &plain)) {
                return Err(broken(format!("{} is not what its tag says", quoted(text))));
            }
            self.plain(text, plain)?;
        }
        self.remember(anchor, start);
        Ok(())
    }

    fn plain(&mut self, text: &str, plain: Plain) -> Result<(), Reason> {
        match plain {
            Plain::Null => self.out.raw("null"),
            Plain::Bool(true) => self.out.raw("true"),
            Plain::Bool(false) => self.out.raw("false"),
            Plain::Integer(digits) => self.out.raw(&digits),
            Plain::Float(value) => self.out.float(value),
            Plain::Date(date) => self.out.special("date", &date),
            Plain::DateTime(time) => self.out.special("datetime", &time),
            Plain::Text | Plain::Merge => self.out.string(text),
        }
    }

    fn start(&mut self, is_map: bool, anchor: usize, tag: Option<&Tag>) -> Result<(), Reason> {
        if let Some(tag) = tag {
            let kind = core(tag)?;
            if kind != if is_map { "map" } else { "seq" } {
                return Err(refused(tag));
            }
        }
        if self.before()? {
            return Err(broken("a map has a key that is no text"));
        }
        if self.open.len() >= MAX_DEPTH as usize {
            return Err(broken(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let start = self.out.at();
        self.out.raw(if is_map { "{" } else { "[" })?;
        self.open.push(Open {
            is_map,
            count: 0,
            has_key: false,
            anchor,
            start,
        });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Reason> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        self.out.raw(if open.is_map { "}" } else { "]" })?;
        self.remember(open.anchor, open.start);
        Ok(())
    }

    fn remember(&mut self, anchor: usize, start: usize) {
        if anchor != 0 {
            self.anchors.insert(anchor, start..self.out.at());
        }
    }

    fn alias(&mut self, anchor: usize) -> Result<(), Reason> {
        let is_key = self.before()?;
        // Still open, so not remembered: it contains itself.
        let span = self
            .anchors
            .get(&anchor)
            .cloned()
            .ok_or_else(|| broken("an alias stands inside of what it stands for"))?;
        if is_key {
            return Err(broken("a map has a key that is an alias"));
        }
        self.out.again(span)
    }
}

/// The tag's name among YAML's own, if it is one that is read.
fn core(tag: &Tag) -> Result<&str, Reason> {
    if tag.handle() == "tag:yaml.org,2002:" {
        let known = [
            "str",
            "int",
            "float",
            "bool",
            "null",
            "timestamp",
            "binary",
            "seq",
            "map",
        ];
        if let Some(name) = known.into_iter().find(|name| *name == tag.suffix()) {
            return Ok(name);
        }
    }
    Err(refused(tag))
}

fn refused(tag: &Tag) -> Reason {
    broken(format!("tag {} is not read", quoted(&tag.original())))
}

fn fits(kind: &str, plain: &Plain) -> bool {
    match plain {
        Plain::Null => kind == "null",
        Plain::Bool(_) => kind == "bool",
        Plain::Integer(_) => kind == "int" || kind == "float",
        Plain::Float(_) => kind == "float",
        Plain::Date(_) | Plain::DateTime(_) => kind == "timestamp",
        Plain::Text | Plain::Merge => false,
    }
}
