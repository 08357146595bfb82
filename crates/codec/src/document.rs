//! What a result backend holds (documents, parts of chords, structures of groups), in any serializer and compression that
//! Celery's have but pickle.

use std::borrow::Cow;

use umbel_protocol::json::{Json, MAX_DEPTH, MAX_KEYS};
use umbel_protocol::message::{Reason, quoted};

use crate::json::{Value, take};
use crate::{Compression, Serializer, compress, decompress, msgpack, yaml};

/// What stands before a compressed document: then its content type, a zero byte, the bytes. Celery 5.7 and later.
const COMPRESSED: &[u8] = b"\0celery-compressed\0";

/// The JSON text of what a backend holds. Its serializer shows in its first byte: what is neither JSON nor msgpack is YAML.
/// At most `limit` bytes, unpacked and as JSON.
///
/// # Errors
/// [`Reason`]: pickle, which is never read; a compression that nobody knows; broken.
pub fn read_document(stored: &[u8], limit: usize) -> Result<Cow<'_, str>, Reason> {
    let bytes = match stored.strip_prefix(COMPRESSED) {
        None => Cow::Borrowed(stored),
        Some(rest) => {
            let end = rest.iter().position(|byte| *byte == 0);
            let (name, packed) = rest.split_at(end.unwrap_or(rest.len()));
            let name = String::from_utf8_lossy(name);
            let compression = Compression::named(&name).ok_or_else(|| Reason::Compression(quoted(&name)))?;
            Cow::Owned(decompress(compression, packed.get(1..).unwrap_or_default(), limit)?)
        }
    };
    match bytes.first() {
        // A pickle says its protocol; a map of no entries has nothing behind it.
        Some(0x80) if matches!(bytes.get(1), Some(2..=5)) => {
            Err(Reason::ContentType(quoted("application/x-python-serialize")))
        }
        // Of maps and arrays. Celery's documents and parts begin with ASCII where they are text.
        Some(0x80..=0x9f | 0xdc..=0xdf) => msgpack::read(&bytes, limit).map(Cow::Owned),
        Some(b'{' | b'[') => text(bytes),
        _ => yaml::read(&text(bytes)?, limit).map(Cow::Owned),
    }
}

/// Writes JSON text in a serializer, [`Serializer::Auth`] as plain JSON: results are never signed.
///
/// # Errors
/// What the serializer cannot say.
pub fn write_document(json: &str, serializer: Serializer) -> Result<Vec<u8>, String> {
    if matches!(serializer, Serializer::Json | Serializer::Auth) {
        return Ok(json.as_bytes().to_vec());
    }
    let json = Json::parse_within(json, MAX_DEPTH + 8, MAX_KEYS.saturating_mul(8)).map_err(|err| err.to_string())?;
    write(&json, serializer)
}

/// As [`write_document`]; what the serializer cannot say is written as text. For what has to be told in any case.
pub fn write_any_document(json: &str, serializer: Serializer) -> Vec<u8> {
    write_document(json, serializer).unwrap_or_else(|_| {
        let parsed = Json::parse_within(json, MAX_DEPTH + 8, MAX_KEYS.saturating_mul(8));
        parsed
            .map_err(|err| err.to_string())
            .and_then(|json| write(&plain(&json), serializer))
            .unwrap_or_else(|_| json.as_bytes().to_vec())
    })
}

/// A document as it is compressed.
pub fn compress_document(document: &[u8], compression: Compression) -> Vec<u8> {
    let mut packed = COMPRESSED.to_vec();
    packed.extend(compression.content_type().bytes());
    packed.push(0);
    packed.extend(compress(compression, document));
    packed
}

fn write(json: &Json, serializer: Serializer) -> Result<Vec<u8>, String> {
    match serializer {
        Serializer::Json | Serializer::Auth => Ok(json.as_str().as_bytes().to_vec()),
        Serializer::Msgpack => msgpack::write(json),
        Serializer::Yaml => yaml::write(json).map(String::into_bytes),
    }
}

/// The value with nothing in it but what every serializer has.
fn plain(json: &Json) -> Json {
    match take(json) {
        Ok(Value::Array(elements)) => Json::array(elements.iter().map(plain)),
        Ok(Value::Object(entries)) => {
            let entries: Vec<(String, Json)> = entries
                .iter()
                .map(|(name, value)| (name.clone(), plain(value)))
                .collect();
            Json::object(entries.iter().map(|(name, value)| (name.as_str(), value)))
        }
        Ok(Value::Special(_, value)) => Json::string(&value.text().unwrap_or_else(|| value.to_string())),
        Ok(Value::Integer(digits)) if digits.parse::<i64>().is_err() => Json::string(&digits),
        Ok(_) => json.clone(),
        Err(_) => Json::string(&json.repr()),
    }
}

fn text(bytes: Cow<'_, [u8]>) -> Result<Cow<'_, str>, Reason> {
    let broken = |at: usize| Reason::Text { part: "body", at };
    match bytes {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes)
            .map(Cow::Borrowed)
            .map_err(|err| broken(err.valid_up_to())),
        Cow::Owned(bytes) => String::from_utf8(bytes)
            .map(Cow::Owned)
            .map_err(|err| broken(err.utf8_error().valid_up_to())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1 << 20;

    #[test]
    fn documents_come_back_in_every_serializer_and_compression() {
        let document = r#"{"status": "SUCCESS", "result": [1, -1.5, "x", null, true], "traceback": null, "children": [], "date_done": "2026-11-20T11:56:47.847881+00:00", "task_id": "1"}"#;
        for serializer in [Serializer::Json, Serializer::Msgpack, Serializer::Yaml] {
            let written = write_document(document, serializer).unwrap();
            let same = |read: Cow<'_, str>| {
                let fields = |text: &str| {
                    let mut entries = Json::parse(text).unwrap().entries();
                    entries.sort_by(|one, other| one.0.cmp(&other.0));
                    entries
                };
                assert_eq!(fields(&read), fields(document), "{serializer:?}");
            };
            same(read_document(&written, LIMIT).unwrap());
            for compression in Compression::ALL {
                same(read_document(&compress_document(&written, compression), LIMIT).unwrap());
            }
        }
        let part = write_document(r#"[1, "id", "SUCCESS", 7]"#, Serializer::Msgpack).unwrap();
        assert_eq!(read_document(&part, LIMIT).unwrap(), r#"[1, "id", "SUCCESS", 7]"#);
    }

    #[test]
    fn what_a_serializer_has_not_is_told_as_text() {
        let document = r#"{"big": 123456789012345678901234567890, "at": {"__type__": "decimal", "__value__": "1.5"}, "t": "\ud800"}"#;
        for serializer in [Serializer::Msgpack, Serializer::Yaml] {
            assert!(write_document(document, serializer).is_err(), "{serializer:?}");
            let read = write_any_document(document, serializer);
            let read = Json::parse(&read_document(&read, LIMIT).unwrap()).unwrap();
            assert_eq!(read.get("at").unwrap().text().as_deref(), Some("1.5"));
        }
    }

    #[test]
    fn what_is_no_document_is_refused_with_its_reason() {
        for (stored, words) in [
            (&b"\x80\x05\x95\x10"[..], "x-python-serialize"),
            (b"\x82\xa6status", "broken off"),
            (b"\0celery-compressed\0application/x-nothing\0xx", "x-nothing"),
            (b"\0celery-compressed\0application/zstd", ""),
            (b"\xff\xfe", ""),
        ] {
            let refused = read_document(stored, LIMIT).unwrap_err().to_string();
            assert!(refused.contains(words), "{refused}");
        }
    }
}
