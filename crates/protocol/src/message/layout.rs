//! Messages one after the other: those that are laid out like an earlier one are read several times as fast.
//!
//! A producer writes all its messages alike: between two of them only some texts and numbers differ, and what stands
//! around these is the same, byte for byte. Such a message is compared with what stood around them before and only the
//! texts and numbers are read. It is taken for nothing else than before: same keys, same nesting, same kinds of values.

use std::ops::Range;

use jiff::tz::TimeZone;

use super::decode::{Envelope, SPANS, decode_by, envelope_bounds, split};
use super::{Bodies, Limits, Malformed, TaskMessage, may_have_own};
use crate::json::JsonError;
use crate::scan::{Scanner, number_end, plain_run};

/// Layouts that are known at a time: a queue's messages come from a few kinds of producers.
const KNOWN: usize = 4;
/// Texts and numbers of a layout; Celery writes some thirty.
const VARIABLES: usize = 64;
/// Bytes around them; Celery writes less than a thousand.
const AROUND: usize = 16 << 10;
/// Most messages between two that are learnt from.
const PAUSE: u32 = 64;

/// Reads messages, and remembers how the last ones were laid out.
#[derive(Debug, Default)]
pub struct Reader {
    /// The last one that fitted first.
    layouts: Vec<Layout>,
    /// So many messages that fit nowhere are not learnt from.
    waits: u32,
    /// As many the next time: doubles where layouts go unused.
    pause: u32,
}

impl Reader {
    /// Reads one list element, as [`super::decode_with`]: the same answer to the same message, whatever came before.
    ///
    /// # Errors
    /// As there.
    pub fn decode(
        &mut self,
        raw: &[u8],
        limits: &Limits,
        zone: &TimeZone,
        bodies: &dyn Bodies,
    ) -> Result<TaskMessage, Malformed> {
        decode_by(raw, limits, zone, bodies, |message, limits, envelope| {
            self.split(message, limits, envelope)
        })
    }

    fn split<'a>(&mut self, message: &'a str, limits: &Limits, envelope: &mut Envelope<'a>) -> Result<(), JsonError> {
        if let Some(at) = self.layouts.iter().position(|one| one.read(message, limits, envelope)) {
            self.layouts[at].is_used = true;
            self.layouts[..=at].rotate_right(1);
            return Ok(());
        }
        split(message, limits, envelope)?;
        if self.waits > 0 {
            self.waits -= 1;
        } else if let Some(layout) = Layout::of(message, limits, envelope) {
            let gone = (self.layouts.len() == KNOWN).then(|| self.layouts.pop()).flatten();
            let is_in_vain = gone.is_some_and(|gone| !gone.is_used);
            self.pause = if is_in_vain {
                (2 * self.pause).clamp(1, PAUSE)
            } else {
                0
            };
            self.waits = self.pause;
            self.layouts.insert(0, layout);
        }
        Ok(())
    }
}

/// What stands around the texts and numbers of a message.
#[derive(Debug)]
struct Layout {
    around: Box<[u8]>,
    variables: Box<[Variable]>,
    /// Where the values that count begin and end.
    spans: [Option<(Place, Place)>; SPANS],
    may_have_own: bool,
    limits: Limits,
    /// Has a message fitted?
    is_used: bool,
}

/// A text without its quotes, or a number: it stands before this byte of what is around.
#[derive(Debug)]
struct Variable {
    before: usize,
    is_text: bool,
}

/// A position: so many bytes of what is around, and so many variables.
#[derive(Debug, Clone, Copy)]
struct Place {
    around: usize,
    variables: usize,
}

impl Layout {
    /// The layout of a message that was divided; `None` where there is too much of anything.
    fn of(message: &str, limits: &Limits, envelope: &mut Envelope<'_>) -> Option<Layout> {
        let offset = |part: &str| part.as_ptr() as usize - message.as_ptr() as usize;
        let mut found: Vec<(Range<usize>, bool)> = Vec::new();
        let mut scanner = Scanner::new(message, envelope_bounds(limits));
        collect(&mut scanner, &mut |value| {
            let (at, is_text) = (offset(value), value.starts_with('"'));
            let quote = usize::from(is_text);
            found.push((at + quote..at + value.len() - quote, is_text));
        })
        .ok()?;
        let inside: usize = found.iter().map(|(span, _)| span.len()).sum();
        if found.len() > VARIABLES || message.len() - inside > AROUND {
            return None;
        }
        let place = |at: usize| {
            let before = found.iter().take_while(|(span, _)| span.end <= at);
            let (variables, length) =
                before.fold((0, 0), |(count, length), (span, _)| (count + 1, length + span.len()));
            Place {
                around: at - length,
                variables,
            }
        };
        let spans = envelope.spans().map(|span| {
            let span = (*span)?;
            let at = offset(span);
            Some((place(at), place(at + span.len())))
        });
        let mut around = Vec::with_capacity(message.len() - inside);
        let mut from = 0;
        let variables = found.iter().map(|(span, is_text)| {
            around.extend_from_slice(&message.as_bytes()[from..span.start]);
            from = span.end;
            Variable {
                before: around.len(),
                is_text: *is_text,
            }
        });
        let variables = variables.collect();
        around.extend_from_slice(&message.as_bytes()[from..]);
        Some(Layout {
            around: around.into(),
            variables,
            spans,
            may_have_own: envelope.all_headers().is_some_and(may_have_own),
            limits: *limits,
            is_used: false,
        })
    }

    /// Divides a message that is laid out like this. False: it is not, and nothing has changed.
    fn read<'a>(&self, message: &'a str, limits: &Limits, envelope: &mut Envelope<'a>) -> bool {
        let Some(lengths) = self.lengths(message, limits) else {
            return false;
        };
        let at = |place: &Place| place.around + lengths[place.variables];
        for (span, known) in envelope.spans().into_iter().zip(&self.spans) {
            *span = known.as_ref().and_then(|(start, end)| message.get(at(start)..at(end)));
        }
        envelope.may_have_own = Some(self.may_have_own);
        true
    }

    /// How long the first so many variables of a message are together, if it is laid out like this.
    fn lengths(&self, message: &str, limits: &Limits) -> Option<[usize; VARIABLES + 1]> {
        if *limits != self.limits {
            return None;
        }
        let bytes = message.as_bytes();
        let mut lengths = [0; VARIABLES + 1];
        let (mut at, mut from) = (0, 0);
        for (n, Variable { before, is_text }) in self.variables.iter().enumerate() {
            let around = &self.around[from..*before];
            if !bytes[at..].starts_with(around) {
                return None;
            }
            at += around.len();
            at = if *is_text {
                Some(plain_run(bytes, at)).filter(|end| bytes.get(*end) == Some(&b'"'))?
            } else {
                number_end(message, at)?
            };
            from = *before;
            lengths[n + 1] = at - from;
        }
        (bytes[at..] == self.around[from..]).then_some(lengths)
    }
}

/// All texts and numbers, but no keys.
fn collect<'a>(scanner: &mut Scanner<'a>, found: &mut dyn FnMut(&'a str)) -> Result<(), JsonError> {
    match scanner.peek() {
        Some(b'{') => scanner.object(|inner, _| collect(inner, found)),
        Some(b'[') => scanner.array(|inner| collect(inner, found)),
        Some(b'"' | b'-' | b'0'..=b'9') => scanner.value().map(found),
        _ => scanner.value().map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: &str, retries: &str, keyed: &str) -> String {
        format!(
            r#"{{"body": "W10=", "headers": {{"id": "{id}", "task": "t", "retries": {retries}{keyed}}}, "a": [1, "x"]}}"#
        )
    }

    /// What a known layout makes of a message.
    fn read(layout: &Layout, message: &str) -> Option<[Option<String>; SPANS]> {
        let mut envelope = Envelope::default();
        let is_known = layout.read(message, &Limits::default(), &mut envelope);
        is_known.then(|| envelope.spans().map(|span| span.map(str::to_owned)))
    }

    #[test]
    fn texts_and_numbers_may_differ_and_nothing_else() {
        let (first, limits) = (message("one", "0", ""), Limits::default());
        let mut envelope = Envelope::default();
        split(&first, &limits, &mut envelope).unwrap();
        let layout = Layout::of(&first, &limits, &mut envelope).unwrap();
        for (id, retries) in [("one", "0"), ("", "17"), (&"x".repeat(500), "-1"), ("é", "1.5e3")] {
            let other = message(id, retries, "");
            let mut plain = Envelope::default();
            split(&other, &limits, &mut plain).unwrap();
            assert_eq!(
                read(&layout, &other),
                Some(plain.spans().map(|span| span.map(str::to_owned))),
                "{other}"
            );
        }
        for other in [
            message("one", "null", ""),
            message("one", "\"0\"", ""),
            message("one", "00", ""),
            message("one", "", ""),
            message("o\\u006ee", "0", ""),
            message("o\ne", "0", ""),
            message("one", "0", r#", "umbel_run": "r""#),
            message("one", "0", "").replace("\"a\"", "\"b\""),
            format!("{first} "),
            first[..first.len() - 1].to_owned(),
        ] {
            assert_eq!(read(&layout, &other), None, "{other}");
        }
        let narrow = Limits { depth: 3, ..limits };
        assert!(!layout.read(&first, &narrow, &mut Envelope::default()), "other limits");
    }

    /// Producers by turns, more kinds than are known: those that come again are known again, and what never comes again
    /// does not push them out.
    #[test]
    fn layouts_that_come_again_stay() {
        let (mut reader, limits) = (Reader::default(), Limits::default());
        let mut split = |text: &str| {
            let before = reader.layouts.first().map(|layout| layout.around.clone());
            reader.split(text, &limits, &mut Envelope::default()).unwrap();
            before != reader.layouts.first().map(|layout| layout.around.clone())
        };
        assert!(split(&message("a", "0", "")), "learnt");
        assert!(!split(&message("b", "1", "")), "known");
        for n in 0..1000 {
            split(&message("c", "0", &format!(", \"h{n}\": 0")));
        }
        assert!(
            reader.pause > 1,
            "what never came again makes it wait: {}",
            reader.pause
        );
    }
}
