//! A reader that remembers layouts answers as one that does not, whatever came before.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::Path;

use jiff::tz::TimeZone;
use proptest::collection::vec;
use proptest::prelude::*;
use umbel_protocol::json::Json;
use umbel_protocol::message::{Limits, Malformed, NewTask, OnlyJson, Reader, TaskMessage, decode};

fn both(reader: &mut Reader, raw: &[u8], limits: &Limits) -> Result<TaskMessage, Malformed> {
    let plain = decode(raw, limits, &TimeZone::UTC);
    let read = reader.decode(raw, limits, &TimeZone::UTC, &OnlyJson);
    match (&plain, &read) {
        (Ok(plain), Ok(read)) => {
            // That is a guess, and only one side of it may be wrong.
            assert!(
                read.has_own_headers
                    || plain
                        .headers
                        .entries()
                        .iter()
                        .all(|(key, _)| !key.starts_with("umbel_"))
            );
            let has_own_headers = plain.has_own_headers;
            let read = TaskMessage {
                has_own_headers,
                ..read.clone()
            };
            assert_eq!(&read, plain, "{}", String::from_utf8_lossy(raw));
        }
        _ => assert_eq!(
            format!("{read:?}"),
            format!("{plain:?}"),
            "{}",
            String::from_utf8_lossy(raw)
        ),
    }
    plain
}

/// Every message that real Celery wrote, three times: new, known, and after all others.
#[test]
fn captured_messages_are_read_alike() {
    let folder = Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("tests/golden");
    let mut messages = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let vector: serde_json::Value = serde_json::from_str(&text).unwrap();
        for event in vector["redis"].as_array().into_iter().flatten() {
            let command = event["cmd"].as_array().into_iter().flatten();
            messages.extend(
                command
                    .filter_map(|part| part.as_str())
                    .filter(|part| part.contains("\"body\""))
                    .map(str::to_owned),
            );
        }
    }
    assert!(messages.len() > 200, "{}", messages.len());
    let (mut reader, limits) = (Reader::default(), Limits::default());
    for raw in &messages {
        let first = both(&mut reader, raw.as_bytes(), &limits);
        assert_eq!(both(&mut reader, raw.as_bytes(), &limits).is_ok(), first.is_ok());
    }
    let good = messages
        .iter()
        .filter(|raw| both(&mut reader, raw.as_bytes(), &limits).is_ok());
    assert!(good.count() > 100);
}

fn message(id: &str, argument: &str, retries: u32, header: Option<&str>) -> Vec<u8> {
    let task = NewTask {
        id: id.into(),
        task: "reports.build".into(),
        args: Json::array([Json::string(argument)]),
        retries,
        headers: header
            .map(|text| ("note".into(), Json::string(text)))
            .into_iter()
            .collect(),
        ..NewTask::default()
    };
    task.encode()
}

/// What stands between the values is compared, too: a message that differs there is read anew.
#[test]
fn a_message_with_other_keys_is_not_taken_for_a_known_one() {
    let (mut reader, limits) = (Reader::default(), Limits::default());
    let plain = message("one", "x", 0, None);
    both(&mut reader, &plain, &limits).unwrap();
    let text = String::from_utf8(plain).unwrap();
    for (from, to) in [
        ("\"task\"", "\"tusk\""),
        ("\"id\": \"one\"", "\"id\": null"),
        ("\"id\": \"one\"", "\"id\": \"one\", \"id\": \"two\""),
        ("\"retries\": 0", "\"retries\": 7"),
        ("\"retries\": 0", "\"retries\": 07"),
        ("\"retries\": 0", "\"retries\": \"0\""),
        ("\"id\": \"one\"", "\"id\": \"o\\u006ee\""),
        ("\"id\": \"one\"", "\"id\": \"o\nne\""),
        ("\"id\": \"one\"", "\"id\": \"one"),
        ("\"eta\": null", "\"eta\": \"2026-12-01T00:00:00\""),
        ("\"headers\": {", "\"headers\": {\"umbel_run\": \"r\", "),
        ("base64", "base46"),
    ] {
        assert!(text.contains(from), "{from} in {text}");
        for _ in 0..2 {
            let _ = both(&mut reader, text.replacen(from, to, 1).as_bytes(), &limits);
            let _ = both(&mut reader, text.as_bytes(), &limits);
        }
    }
    for cut in 0..text.len() {
        let _ = both(&mut reader, &text.as_bytes()[..cut], &limits);
    }
    let _ = both(&mut reader, format!("{text} ").as_bytes(), &limits);
    let _ = both(&mut reader, format!("{text}x").as_bytes(), &limits);
    let few = Limits { keys: 3, ..limits };
    assert!(both(&mut reader, text.as_bytes(), &few).is_err(), "limits of its own");
}

proptest! {
    #[test]
    fn damaged_messages_are_read_alike(
        ids in vec("[a-z0-9\"\\\\ é]{1,40}", 2..8),
        arguments in vec(any::<String>(), 2..8),
        (retries, header) in (vec(0..3_u32, 2..8), proptest::option::of(any::<String>())),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let (mut reader, limits) = (Reader::default(), Limits::default());
        for ((id, argument), retries) in ids.iter().zip(&arguments).zip(&retries) {
            let whole = message(id, argument, *retries, header.as_deref());
            both(&mut reader, &whole, &limits).unwrap();
            let mut raw = whole;
            for (at, byte) in &damage {
                let at = at.index(raw.len());
                raw[at] = *byte;
            }
            let _ = both(&mut reader, &raw, &limits);
        }
    }
}
