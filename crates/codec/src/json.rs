//! JSON text in kombu's dialect, written piece by piece under a limit.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use umbel_protocol::json::Json;
use umbel_protocol::message::Reason;

/// A JSON text that grows to a limit.
pub(crate) struct Writer {
    text: String,
    limit: usize,
}

impl Writer {
    pub(crate) fn new(limit: usize) -> Writer {
        Writer {
            text: String::new(),
            limit,
        }
    }

    pub(crate) fn finish(self) -> String {
        self.text
    }

    /// Bytes so far.
    pub(crate) fn at(&self) -> usize {
        self.text.len()
    }

    /// Appends what is JSON already.
    pub(crate) fn raw(&mut self, piece: &str) -> Result<(), Reason> {
        if self.text.len() + piece.len() > self.limit {
            return Err(Reason::Unpacked { limit: self.limit });
        }
        self.text.push_str(piece);
        Ok(())
    }

    /// Appends once more what stands at `span`.
    pub(crate) fn again(&mut self, span: std::ops::Range<usize>) -> Result<(), Reason> {
        if self.text.len() + span.len() > self.limit {
            return Err(Reason::Unpacked { limit: self.limit });
        }
        self.text.extend_from_within(span);
        Ok(())
    }

    /// A string.
    pub(crate) fn string(&mut self, text: &str) -> Result<(), Reason> {
        self.raw(Json::string(text).as_str())
    }

    /// A float as Python writes it.
    pub(crate) fn float(&mut self, value: f64) -> Result<(), Reason> {
        if value.is_finite() {
            self.raw(Json::of(&value).as_str())
        } else if value.is_nan() {
            self.raw("NaN")
        } else {
            self.raw(if value > 0.0 { "Infinity" } else { "-Infinity" })
        }
    }

    /// Bytes, as kombu wraps them: as text where they are text.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Reason> {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.special("bytes", text),
            Err(_) => self.special("base64", &STANDARD.encode(bytes)),
        }
    }

    /// One of kombu's special types.
    pub(crate) fn special(&mut self, kind: &str, value: &str) -> Result<(), Reason> {
        self.raw("{\"__type__\": \"")?;
        self.raw(kind)?;
        self.raw("\", \"__value__\": ")?;
        self.string(value)?;
        self.raw("}")
    }
}

/// A JSON value taken apart one level, for writers of other formats.
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// Digits, perhaps with a sign.
    Integer(String),
    Float(f64),
    Text(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
    /// Bytes in kombu's wrapping.
    Bytes(Vec<u8>),
    /// Another of kombu's special types: its name and its value.
    Special(String, Json),
}

/// Takes a value apart.
///
/// # Errors
/// What no other format can say: a lone surrogate, a number beyond a float, bytes that are no base64.
pub(crate) fn take(json: &Json) -> Result<Value, String> {
    let text = json.as_str();
    match text.as_bytes().first() {
        Some(b'n') => Ok(Value::Null),
        Some(b't') => Ok(Value::Bool(true)),
        Some(b'f') => Ok(Value::Bool(false)),
        Some(b'"') => string(json).map(Value::Text),
        Some(b'[') => Ok(Value::Array(json.elements().unwrap_or_default())),
        Some(b'{') => object(json),
        Some(b'N') => Ok(Value::Float(f64::NAN)),
        Some(b'I') => Ok(Value::Float(f64::INFINITY)),
        _ if text == "-Infinity" => Ok(Value::Float(f64::NEG_INFINITY)),
        _ if text.contains(['.', 'e', 'E']) => match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(Value::Float(value)),
            _ => Err("a number is beyond what a float can say".into()),
        },
        _ => Ok(Value::Integer(text.to_owned())),
    }
}

fn string(json: &Json) -> Result<String, String> {
    if has_lone_surrogate(json.as_str()) {
        return Err("a text has a lone surrogate".into());
    }
    Ok(json.text().unwrap_or_default())
}

/// Does a JSON string have an escape of half a character?
fn has_lone_surrogate(literal: &str) -> bool {
    let mut rest = literal;
    let mut is_open = false;
    while let Some(at) = rest.find('\\') {
        let unit = rest
            .get(at + 1..at + 6)
            .and_then(|escape| u32::from_str_radix(escape.strip_prefix('u')?, 16).ok());
        let is_low = matches!(unit, Some(0xdc00..0xe000));
        if (is_open && at > 0) || is_open != is_low {
            return true;
        }
        is_open = matches!(unit, Some(0xd800..0xdc00));
        // Every escape but `\u` has two characters, both ASCII.
        rest = rest.get(at + if unit.is_some() { 6 } else { 2 }..).unwrap_or_default();
    }
    is_open
}

fn object(json: &Json) -> Result<Value, String> {
    let entries = json.entries();
    let [(first, one), (second, two)] = entries.as_slice() else {
        return Ok(Value::Object(entries));
    };
    let (kind, value) = match (first.as_str(), second.as_str()) {
        ("__type__", "__value__") => (one, two),
        ("__value__", "__type__") => (two, one),
        _ => return Ok(Value::Object(entries)),
    };
    let Some(kind) = kind.text() else {
        return Ok(Value::Object(entries));
    };
    match kind.as_str() {
        "bytes" => Ok(Value::Bytes(string(value)?.into_bytes())),
        "base64" => STANDARD
            .decode(string(value)?)
            .map(Value::Bytes)
            .map_err(|_| "bytes are no base64".into()),
        _ => Ok(Value::Special(kind, value.clone())),
    }
}
