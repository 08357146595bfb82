//! One pass over a JSON text as Python writes it: validates, counts, and hands out spans. It builds no tree.
//!
//! The dialect is that of Python's `json.loads`: RFC 8259 plus the words `NaN`, `Infinity` and `-Infinity`, integers
//! of any size, and escapes of lone surrogates.

use std::borrow::Cow;

use crate::json::JsonError;

/// How much structure a text may have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) depth: u32,
    pub(crate) keys: u32,
}

/// A string literal in the text, without its quotes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text<'a> {
    raw: &'a str,
    escaped: bool,
}

impl<'a> Text<'a> {
    /// The string literal that is all of `value`; `None` if the value is something else.
    pub(crate) fn of(value: &'a str) -> Option<Text<'a>> {
        let raw = value.strip_prefix('"')?.strip_suffix('"')?;
        Some(Text {
            raw,
            escaped: raw.contains('\\'),
        })
    }

    /// What the literal means. A lone surrogate, which Rust's strings cannot hold, reads as U+FFFD.
    pub(crate) fn unescaped(self) -> Cow<'a, str> {
        if self.escaped {
            Cow::Owned(unescape(self.raw))
        } else {
            Cow::Borrowed(self.raw)
        }
    }
}

pub(crate) struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    depth: u32,
    keys: u32,
    bounds: Bounds,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(text: &'a str, bounds: Bounds) -> Scanner<'a> {
        Scanner {
            text,
            bytes: text.as_bytes(),
            at: 0,
            depth: 0,
            keys: 0,
            bounds,
        }
    }

    /// Position of the next byte that was not read yet.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Skips blanks and answers the byte that begins the next value.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.bytes.get(self.at) {
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    /// Nothing but blanks may follow.
    pub(crate) fn end(&mut self) -> Result<(), JsonError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.expected("end of text")),
        }
    }

    /// Reads any one value and answers its span.
    pub(crate) fn value(&mut self) -> Result<&'a str, JsonError> {
        let first = self.peek();
        let start = self.at;
        match first {
            Some(b'"') => {
                self.string()?;
            }
            Some(b'{') => self.object(|inner, _| inner.value().map(drop))?,
            Some(b'[') => self.array(|inner| inner.value().map(drop))?,
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b't') => self.word("true")?,
            Some(b'f') => self.word("false")?,
            Some(b'n') => self.word("null")?,
            Some(b'N') => self.word("NaN")?,
            Some(b'I') => self.word("Infinity")?,
            _ => return Err(self.expected("a value")),
        }
        Ok(&self.text[start..self.at])
    }

    /// Reads an object; `entry` is called after each key and must read exactly the value.
    pub(crate) fn object(
        &mut self,
        mut entry: impl FnMut(&mut Scanner<'a>, Text<'a>) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        self.open(b'{', "an object")?;
        if self.peek() != Some(b'}') {
            loop {
                if self.peek() != Some(b'"') {
                    return Err(self.expected("a key in quotes"));
                }
                self.keys += 1;
                if self.keys > self.bounds.keys {
                    return Err(JsonError::Keys {
                        limit: self.bounds.keys,
                    });
                }
                let key = self.string()?;
                if self.peek() != Some(b':') {
                    return Err(self.expected("`:`"));
                }
                self.at += 1;
                entry(self, key)?;
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b'}') => break,
                    _ => return Err(self.expected("`,` or `}`")),
                }
            }
        }
        self.close();
        Ok(())
    }

    /// Reads an array; `element` must read exactly one value each time.
    pub(crate) fn array(
        &mut self,
        mut element: impl FnMut(&mut Scanner<'a>) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        self.open(b'[', "an array")?;
        if self.peek() != Some(b']') {
            loop {
                element(self)?;
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b']') => break,
                    _ => return Err(self.expected("`,` or `]`")),
                }
            }
        }
        self.close();
        Ok(())
    }

    fn open(&mut self, bracket: u8, expected: &'static str) -> Result<(), JsonError> {
        if self.peek() != Some(bracket) {
            return Err(self.expected(expected));
        }
        self.depth += 1;
        if self.depth > self.bounds.depth {
            return Err(JsonError::Depth {
                limit: self.bounds.depth,
            });
        }
        self.at += 1;
        Ok(())
    }

    fn close(&mut self) {
        self.at += 1;
        self.depth -= 1;
    }

    fn string(&mut self) -> Result<Text<'a>, JsonError> {
        let start = self.at + 1;
        self.at = start;
        let mut escaped = false;
        loop {
            self.at = plain_run(self.bytes, self.at);
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    let raw = &self.text[start..self.at];
                    self.at += 1;
                    return Ok(Text { raw, escaped });
                }
                Some(b'\\') => {
                    escaped = true;
                    match self.bytes.get(self.at + 1) {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
                        Some(b'u')
                            if self
                                .bytes
                                .get(self.at + 2..self.at + 6)
                                .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) =>
                        {
                            self.at += 6;
                        }
                        _ => return Err(self.expected("a known escape")),
                    }
                }
                Some(_) => return Err(self.expected("no control character in a string")),
                None => return Err(self.expected("a closing quote")),
            }
        }
    }

    fn number(&mut self) -> Result<(), JsonError> {
        if self.bytes[self.at] == b'-' {
            self.at += 1;
            if self.bytes.get(self.at) == Some(&b'I') {
                return self.word("Infinity");
            }
        }
        match self.bytes.get(self.at) {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            _ => return Err(self.expected("a digit")),
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.bytes.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.bytes.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        if self.at == start {
            Err(self.expected("a digit"))
        } else {
            Ok(())
        }
    }

    fn word(&mut self, word: &'static str) -> Result<(), JsonError> {
        if !self.bytes[self.at..].starts_with(word.as_bytes()) {
            return Err(self.expected("a value"));
        }
        self.at += word.len();
        Ok(())
    }

    fn expected(&self, expected: &'static str) -> JsonError {
        JsonError::Syntax { at: self.at, expected }
    }
}

/// First position from `at` whose byte ends a run of plain string bytes: quote, backslash or control character.
///
/// Eight bytes a step, as most strings are short. The lowest marked byte of a word is exact; the borrows of the
/// subtractions only ever disturb higher ones.
pub(crate) fn plain_run(bytes: &[u8], mut at: usize) -> usize {
    let short = at.saturating_add(SHORT);
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*chunk);
        let quote = word ^ (ONES * u64::from(b'"'));
        let slash = word ^ (ONES * u64::from(b'\\'));
        let found = (quote.wrapping_sub(ONES) & !quote)
            | (slash.wrapping_sub(ONES) & !slash)
            | (word.wrapping_sub(ONES * 0x20) & !word);
        let found = found & HIGH;
        if found != 0 {
            return at + (found.trailing_zeros() / 8) as usize;
        }
        at += 8;
        if at >= short {
            return at + long_run(&bytes[at..]);
        }
    }
    while bytes
        .get(at)
        .is_some_and(|byte| !matches!(byte, b'"' | b'\\' | 0..0x20))
    {
        at += 1;
    }
    at
}

/// A string that goes on after so many bytes is long.
const SHORT: usize = 64;

/// As [`plain_run`], from the beginning of these bytes, of a string that is long.
fn long_run(bytes: &[u8]) -> usize {
    let end = memchr::memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
    let run = &bytes[..end];
    // Without a way out of the loop, so that it is done many bytes at a time; as a rule there is none.
    if run.iter().fold(0, |any, byte| any | u8::from(*byte < 0x20)) > 0 {
        return run.iter().position(|byte| *byte < 0x20).unwrap_or(end);
    }
    end
}

/// Where the number ends that begins at `at`; `None` if none does.
pub(crate) fn number_end(text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let bounds = Bounds { depth: 0, keys: 0 };
    let mut scanner = Scanner {
        at,
        ..Scanner::new(text, bounds)
    };
    let is_number = matches!(bytes.get(at), Some(b'-' | b'0'..=b'9'));
    (is_number && scanner.number().is_ok()).then_some(scanner.at)
}

fn unescape(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(slash) = rest.find('\\') {
        out.push_str(&rest[..slash]);
        let escape = rest.as_bytes().get(slash + 1).copied();
        rest = &rest[(slash + 2).min(rest.len())..];
        match escape {
            Some(b'b') => out.push('\u{8}'),
            Some(b'f') => out.push('\u{c}'),
            Some(b'n') => out.push('\n'),
            Some(b'r') => out.push('\r'),
            Some(b't') => out.push('\t'),
            Some(b'u') => {
                let (unit, after) = hex_unit(rest);
                rest = after;
                let pair = (0xD800..0xDC00)
                    .contains(&unit)
                    .then(|| rest.strip_prefix("\\u").map(hex_unit))
                    .flatten();
                match pair {
                    Some((low @ 0xDC00..0xE000, after)) => {
                        rest = after;
                        let scalar = 0x1_0000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
                        out.push(char::from_u32(scalar).unwrap_or(char::REPLACEMENT_CHARACTER));
                    }
                    _ => out.push(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER)),
                }
            }
            Some(byte) => out.push(char::from(byte)),
            None => {}
        }
    }
    out.push_str(rest);
    out
}

/// The UTF-16 unit written by the first four digits, and what follows them.
fn hex_unit(text: &str) -> (u32, &str) {
    let digits = text.get(..4).unwrap_or_default();
    (u32::from_str_radix(digits, 16).unwrap_or(0xFFFD), &text[digits.len()..])
}
