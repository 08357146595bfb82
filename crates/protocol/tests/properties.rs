//! Properties of the codec over generated messages.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use jiff::Timestamp;
use jiff::tz::TimeZone;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use umbel_protocol::json::Json;
use umbel_protocol::message::{Limits, NewTask, Retry, TaskMessage, TimeLimit, decode, retry, with_headers};
use umbel_protocol::result;

fn read(raw: &[u8]) -> TaskMessage {
    decode(raw, &Limits::default(), &TimeZone::UTC).unwrap()
}

/// Any JSON that a strict writer could produce, in no particular style.
fn json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("NaN".to_owned()),
        Just("-Infinity".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        any::<i128>().prop_map(|value| value.to_string()),
        any::<f64>()
            .prop_filter("finite", |value| value.is_finite())
            .prop_map(|value| format!("{value:e}")),
        any::<String>().prop_map(|text| Json::string(&text).to_string()),
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(|items| format!("[{}]", items.join(" , "))),
            vec((any::<String>(), inner), 0..5).prop_map(|items| {
                let items: Vec<String> = items
                    .iter()
                    .map(|(key, value)| format!("{}:{value}", Json::string(key)))
                    .collect();
                format!("{{ {} }}", items.join(","))
            }),
        ]
    })
    .prop_map(|text| Json::parse(&text).unwrap())
}

fn array() -> impl Strategy<Value = Json> {
    vec(json(), 0..4).prop_map(|items| {
        let items: Vec<&str> = items.iter().map(Json::as_str).collect();
        Json::parse(&format!("[{}]", items.join(","))).unwrap()
    })
}

fn object() -> impl Strategy<Value = Json> {
    vec((any::<String>(), json()), 0..4).prop_map(|items| {
        let items: Vec<String> = items
            .iter()
            .map(|(key, value)| format!("{}:{value}", Json::string(key)))
            .collect();
        Json::parse(&format!("{{{}}}", items.join(","))).unwrap()
    })
}

fn instant() -> impl Strategy<Value = Timestamp> {
    // Years 1 to 9999: what Python's datetime holds.
    (-62_135_596_800_000_000_i64..253_402_207_200_000_000)
        .prop_map(|micros| Timestamp::from_microsecond(micros).unwrap())
}

fn name() -> impl Strategy<Value = String> {
    any::<String>().prop_filter("1 to 1,024 bytes", |text| (1..=1024).contains(&text.len()))
}

prop_compose! {
    fn task()(
        (id, task, queue) in (name(), name(), name()),
        (args, kwargs, embed) in (array(), object(), of(object())),
        (retries, priority, group_index, ignore_result) in (any::<u32>(), 0..=9_u8, of(any::<i64>()), of(any::<bool>())),
        (eta, expires) in (of(instant()), of(instant())),
        (hard, soft) in (of(0.001..1e7), of(0.001..1e7)),
        (root_id, parent_id, group) in (of(name()), of(name()), of(name())),
        (argsrepr, origin, reply_to) in (of(any::<String>()), name(), name()),
        headers in vec(("x-[a-z]{1,8}", json()), 0..4),
    ) -> NewTask {
        NewTask {
            id, task, queue, args, kwargs, embed, retries, priority, group_index, ignore_result, eta, expires,
            root_id, parent_id, group, argsrepr, origin, reply_to, headers,
            time_limit: TimeLimit { hard, soft },
            ..NewTask::default()
        }
    }
}

/// The entries of a message's object `part`, without those that a retry may change.
fn kept(raw: &[u8], part: &str, changed: &[&str]) -> Vec<(String, Json)> {
    let envelope = Json::parse(std::str::from_utf8(raw).unwrap()).unwrap();
    let mut entries = envelope.get(part).unwrap().entries();
    entries.retain(|(name, _)| !changed.contains(&name.as_str()));
    entries
}

proptest! {
    #[test]
    fn what_is_written_is_read(task in task()) {
        let message = read(&task.encode());
        let argsrepr = task.argsrepr.clone().unwrap_or_else(|| task.args.repr_as_arguments());
        prop_assert_eq!(&message.argsrepr, &Some(argsrepr));
        prop_assert_eq!(&message.kwargsrepr, &Some(task.kwargs.repr()));
        prop_assert_eq!(&message.correlation_id, &Some(task.id.clone()));
        for (name, value) in &task.headers {
            let last = task.headers.iter().rfind(|(other, _)| other == name).map(|(_, value)| value.clone());
            prop_assert!(last.is_some_and(|last| message.header(name) == Some(last)), "{} {}", name, value);
        }
        let root_id = Some(task.root_id.clone().unwrap_or_else(|| task.id.clone()));
        let embed = task.embed.clone().or_else(|| message.embed.clone());
        let (argsrepr, kwargsrepr) = (message.argsrepr.clone(), message.kwargsrepr.clone());
        let written = NewTask { root_id, embed, argsrepr, kwargsrepr, headers: Vec::new(), ..task };
        prop_assert_eq!(NewTask::from(&message), written);
    }

    #[test]
    fn a_retry_changes_what_it_says_and_nothing_else(
        task in task(), retries in any::<u32>(), eta in of(instant()), own in json(),
    ) {
        let raw = task.encode();
        let own = ("umbel_order".to_owned(), own);
        let change = Retry { retries, eta, delivery_tag: "new".into(), now: None, headers: vec![own.clone()] };
        let again = retry(&raw, &change).unwrap();
        let headers = ["retries", "eta", "parent_id", "umbel_order"];
        prop_assert_eq!(kept(&raw, "headers", &headers), kept(&again, "headers", &headers));
        let properties = ["delivery_tag", "origin"];
        prop_assert_eq!(kept(&raw, "properties", &properties), kept(&again, "properties", &properties));
        let (first, second) = (read(&raw), read(&again));
        prop_assert_eq!(second.header(&own.0), Some(own.1));
        let parent_id = first.parent_id.clone().or_else(|| Some(first.id.clone()));
        let headers = second.headers.clone();
        prop_assert_eq!(second, TaskMessage { retries, eta, parent_id, headers, ..first });
        prop_assert_eq!(retry(&again, &change).unwrap(), again);
    }

    #[test]
    fn setting_a_header_touches_no_other_byte(task in task(), first in json(), second in json()) {
        let raw = String::from_utf8(task.encode()).unwrap();
        let set = |raw: &str, value: &Json| {
            String::from_utf8(with_headers(raw.as_bytes(), &[("umbel_run", value.clone())]).unwrap()).unwrap()
        };
        let with = set(&raw, &first);
        prop_assert_eq!(with.replacen(&format!(", \"umbel_run\": {first}"), "", 1), raw.as_str());
        prop_assert_eq!(set(&with, &second), set(&raw, &second));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes, &Limits::default(), &TimeZone::UTC);
        let _ = retry(&bytes, &Retry::default());
        let _ = result::parse(&bytes).map(|document| document.failure());
    }

    #[test]
    fn no_damage_to_a_message_makes_it_panic(
        task in task(), damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>(),
    ) {
        let mut raw = task.encode();
        raw.truncate(cut.index(raw.len() * 2));
        for (place, byte) in damage {
            if !raw.is_empty() {
                let place = place.index(raw.len());
                raw[place] = byte;
            }
        }
        let change = Retry { now: Some(Timestamp::UNIX_EPOCH), delivery_tag: "t".into(), ..Retry::default() };
        if decode(&raw, &Limits::default(), &TimeZone::UTC).is_ok() {
            let again = retry(&raw, &change).unwrap();
            prop_assert!(decode(&again, &Limits::default(), &TimeZone::UTC).is_ok());
        }
    }

    #[test]
    fn what_is_kept_verbatim_reads_as_itself(value in json()) {
        prop_assert_eq!(Json::parse(value.as_str()).unwrap(), value.clone());
        if let Some(elements) = value.elements() {
            let elements: Vec<&str> = elements.iter().map(Json::as_str).collect();
            prop_assert_eq!(format!("[{}]", elements.join(" , ")), value.as_str());
        }
        prop_assert!(value.repr().chars().count() <= 1027);
    }
}
