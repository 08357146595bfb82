//! Values through every serializer, and what each of them cannot say.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{codec, everything, message, read};
use proptest::collection::vec;
use proptest::prelude::*;
use umbel_codec::{Compression, Serializer};
use umbel_protocol::json::Json;
use umbel_protocol::message::NewTask;

fn task(args: &str) -> NewTask {
    NewTask {
        id: "i".into(),
        task: "t".into(),
        args: Json::parse(args).unwrap(),
        ..NewTask::default()
    }
}

fn through(serializer: Serializer, args: &str) -> Result<String, String> {
    let codec = everything();
    let raw = codec.encode(&task(args), serializer, None).map_err(|err| err.why)?;
    Ok(read(&codec, &raw).map_err(|err| err.to_string())?.args.to_string())
}

#[test]
fn values_come_through_every_serializer_as_they_were() {
    let both = [
        "[]",
        "[null, true, false]",
        "[0, -1, 127, 128, -32, -33, 65536, 18446744073709551615, -9223372036854775808]",
        "[0.0, -0.0, 1.5, 1e-07, 1e+16, 1.7976931348623157e+308, NaN, Infinity, -Infinity]",
        r#"["", " ", "two", "null", "yes", "012", "1e3", "12:30:45", "~", "0x1F", ".5", "2024-05-06", "<<", "=", "- x", "a: b"]"#,
        r##"["#", "a #b", "*a", "&a", "!t", "%", "@", "`", "'", "\"", "\\", "a\nb", "\ta ", "a\r", "---", "...", "?", "|", ">", "[", "{", ","]"##,
        r#"["\u00e9", "\ud83d\ude00", "\u0000\u001f\u007f\u0085\u00a0\u2028\ufeff", "\ufffd", "\ufffe"]"#,
        r#"[{"a": {"b": [[], {}, [{}]]}}, [[1, [2, [3]]], {"c": [1]}]]"#,
        r#"[{"": 1, "null": 2, "1": 3, "a b": 4, "\u00e9": 5, "x: y": 6}]"#,
        r#"[{"__type__": "bytes", "__value__": "abc"}, {"__type__": "base64", "__value__": "AP/+"}, {"__type__": "bytes", "__value__": ""}]"#,
    ];
    for args in both {
        assert_eq!(through(Serializer::Msgpack, args).as_deref(), Ok(args), "msgpack");
        assert_eq!(
            sorted(&through(Serializer::Yaml, args).unwrap_or_else(|err| panic!("{args}: {err}"))),
            sorted(args),
            "yaml"
        );
    }
    let yaml = [
        "[1606938044258990275541962092341162602522202993782792835301376, -18446744073709551616]",
        r#"[{"__type__": "datetime", "__value__": "2024-05-06T07:08:09.000010+00:00"}]"#,
        r#"[{"__type__": "datetime", "__value__": "2024-05-06T07:08:09-05:30"}, {"__type__": "date", "__value__": "2024-05-06"}]"#,
    ];
    for args in yaml {
        assert_eq!(through(Serializer::Yaml, args).as_deref(), Ok(args));
    }
}

/// PyYAML sorts the keys of what it writes.
#[test]
fn what_a_worker_sends_is_what_its_queue_accepts() {
    let sent = |accept: &[Serializer], asked: Option<&str>, compression: Option<&str>| {
        let codec = codec(accept);
        let raw = codec.outgoing(&task("[1]"), asked, compression, 1 << 20).unwrap();
        let body = umbel_protocol::message::body(&raw).unwrap();
        (body.content_type.into_owned(), read(&codec, &raw).is_ok())
    };
    let (json, msgpack, yaml) = (Serializer::Json, Serializer::Msgpack, Serializer::Yaml);
    let name = |serializer: Serializer| serializer.content_type().to_owned();
    assert_eq!(sent(&[json, msgpack], None, None), (name(json), true));
    assert_eq!(sent(&[msgpack, yaml], None, None), (name(msgpack), true));
    assert_eq!(sent(&[yaml], None, None), (name(yaml), true));
    assert_eq!(sent(&[json, yaml], Some("yaml"), Some("zlib")), (name(yaml), true));
    assert_eq!(sent(&[json], Some("pickle"), Some("unheard")), (name(json), true));
}

#[test]
fn what_nobody_would_take_is_not_written() {
    let codec = codec(&[Serializer::Json]);
    let long = task(&format!("[\"{}\"]", "x".repeat(3_000)));
    let whole = codec.outgoing(&long, None, None, usize::MAX).unwrap().len();
    assert_eq!(codec.outgoing(&long, None, None, whole).unwrap().len(), whole);
    assert_eq!(
        codec.outgoing(&long, None, None, whole - 1).unwrap_err().bytes,
        whole,
        "written, and found too long"
    );
    let known = codec.outgoing(&long, None, None, 4_000).unwrap_err().bytes;
    assert!((4_001..whole).contains(&known), "{known}: known without writing it");
    // Packed it is small, which only packing tells.
    assert!(codec.outgoing(&long, None, Some("zlib"), 3_000).is_ok());
}

fn sorted(text: &str) -> String {
    fn value(json: &Json) -> String {
        if json.is_object() {
            let mut entries = json.entries();
            entries.sort_by(|(one, _), (two, _)| one.cmp(two));
            let entries: Vec<String> = entries
                .iter()
                .map(|(key, entry)| format!("{}: {}", Json::string(key), value(entry)))
                .collect();
            return format!("{{{}}}", entries.join(", "));
        }
        match json.elements() {
            Some(elements) => format!("[{}]", elements.iter().map(value).collect::<Vec<_>>().join(", ")),
            None => json.to_string(),
        }
    }
    value(&Json::parse(text).unwrap())
}

#[test]
fn what_a_serializer_cannot_say_is_refused_by_name() {
    for (serializer, args, why) in [
        (
            Serializer::Msgpack,
            "[18446744073709551616]",
            "an integer is beyond 64 bits",
        ),
        (
            Serializer::Msgpack,
            "[1e400]",
            "a number is beyond what a float can say",
        ),
        (Serializer::Msgpack, r#"["\ud800"]"#, "a text has a lone surrogate"),
        (
            Serializer::Msgpack,
            r#"[{"__type__": "datetime", "__value__": "2024-05-06"}]"#,
            "a value of type datetime is nothing that msgpack has",
        ),
        (
            Serializer::Yaml,
            r#"[{"__type__": "decimal", "__value__": "1.50"}]"#,
            "a value of type decimal is nothing that yaml has",
        ),
        (Serializer::Yaml, r#"["\udc00"]"#, "a text has a lone surrogate"),
        (Serializer::Auth, "[]", "there is no key to sign with"),
    ] {
        assert_eq!(through(serializer, args), Err(why.to_owned()), "{args}");
    }
}

fn refused(content_type: &str, body: &[u8]) -> String {
    read(&everything(), &message(content_type, None, body))
        .unwrap_err()
        .to_string()
}

#[test]
fn broken_msgpack_is_refused_by_what_is_wrong() {
    let cases: [(&[u8], &str); 14] = [
        (b"", "broken off"),
        (&[0x93, 0x90, 0x80], "broken off"),
        (&[0x93, 0x90, 0x80, 0xc0, 0xc0], "1 bytes follow the value"),
        (&[0x93, 0x91, 0xc1, 0x80, 0xc0], "the byte 0xc1 begins nothing"),
        (&[0x93, 0x91, 0xa2, 0xff, 0xfe, 0x80, 0xc0], "a text is not UTF-8"),
        (&[0x93, 0x90, 0x81, 0x01, 0x01, 0xc0], "a map has a key that is no text"),
        (
            &[0x93, 0x90, 0x81, 0xc4, 0x01, 0x61, 0x01, 0xc0],
            "a map has a key that is no text",
        ),
        (
            &[0x93, 0x91, 0xd6, 0xff, 0, 0, 0, 0, 0x80, 0xc0],
            "extension type -1 has no counterpart in JSON",
        ),
        (
            &[0x93, 0x91, 0xc7, 0x0c, 0xff],
            "extension type -1 has no counterpart in JSON",
        ),
        (
            &[0x93, 0x91, 0xd4, 0x05, 0x00],
            "extension type 5 has no counterpart in JSON",
        ),
        (&[0xdd, 0xff, 0xff, 0xff, 0xff], "broken off"),
        (&[0xdf, 0xff, 0xff, 0xff, 0xff], "broken off"),
        (&[0xdb, 0xff, 0xff, 0xff, 0xff, 0x61], "broken off"),
        (&[0x91; 500], "nested deeper than 64 levels"),
    ];
    for (body, why) in cases {
        assert_eq!(
            refused("application/x-msgpack", body),
            format!("body is not acceptable msgpack: {why}"),
            "{body:x?}"
        );
    }
    let deep = [&[0x93_u8][..], &[0x91; 64], &[0xc0, 0x80, 0xc0]].concat();
    assert!(refused("application/x-msgpack", &deep).contains("nested deeper than 64 levels"));
    assert_eq!(
        refused("application/x-msgpack", &[0x07]),
        "body is not [args, kwargs, embed]"
    );
}

#[test]
fn broken_yaml_is_refused_by_what_is_wrong() {
    let body = |args: &str| format!("- {args}\n- {{}}\n- null\n");
    let cases = [
        (
            body("[!!python/object/apply:os.system [id]]"),
            "tag `!!python/object/apply:os.system` is not read",
        ),
        (body("[!!set {a: null}]"), "tag `!!set` is not read"),
        (body("[!mine x]"), "tag `!mine` is not read"),
        (body("[!!int x]"), "`x` is not what its tag says"),
        (body("[!!binary '***']"), "!!binary is no base64"),
        (body("&a [*a]"), "an alias stands inside of what it stands for"),
        (body("[{1: 2}]"), "a map has a key that is no text"),
        (body("[{yes: 2}]"), "a map has a key that is no text"),
        (body("[{[a]: 2}]"), "a map has a key that is no text"),
        (body("[{<<: {a: 1}}]"), "merge keys are not read"),
        (body("[2024-02-30]"), "`2024-02-30` is no number or time that exists"),
        ("- []\n- {}\n- null\n---\n- []\n".into(), "more than one document"),
        (String::new(), "0 documents, not one"),
    ];
    for (text, why) in cases {
        assert_eq!(
            refused("application/x-yaml", text.as_bytes()),
            format!("body is not acceptable yaml: {why}"),
            "{text:?}"
        );
    }
    for text in ["- [\n", "a: b: c\n", "- 'x\n", "- *nobody\n", "{a"] {
        let refused = refused("application/x-yaml", text.as_bytes());
        assert!(
            refused.starts_with("body is not acceptable yaml: line "),
            "{text:?}: {refused}"
        );
    }
    let deep = body(&format!("{}{}", "[".repeat(100), "]".repeat(100)));
    assert!(refused("application/x-yaml", deep.as_bytes()).starts_with("body is not acceptable yaml"));
    assert_eq!(
        refused("application/x-yaml", &[0xff, 0xfe, b'-', 0]),
        "body is not UTF-8 text from byte 0 on"
    );
}

#[test]
fn aliases_stand_for_what_they_name() {
    let codec = codec(&[Serializer::Yaml]);
    let text = "- - &id001\n    a: [1]\n  - *id001\n  - &s text\n  - *s\n- {}\n- null\n";
    let message = read(&codec, &message("application/x-yaml", None, text.as_bytes())).unwrap();
    assert_eq!(message.args.as_str(), r#"[{"a": [1]}, {"a": [1]}, "text", "text"]"#);
}

/// The whole of a body counts towards the limits, whatever it was written in.
#[test]
fn protocol_1_is_read_in_every_serializer() {
    let codec = everything();
    let yaml = "task: old\nid: o1\nargs: [1]\nkwargs: {a: 2}\nretries: 0\n";
    for (content_type, body) in [
        ("application/x-yaml", yaml.as_bytes().to_vec()),
        (
            "application/x-msgpack",
            [
                &[0x84][..],
                b"\xa4task\xa3old\xa2id\xa2o1\xa4args\x91\x01\xa6kwargs\x81\xa1a\x02",
            ]
            .concat(),
        ),
    ] {
        let text = String::from_utf8(message(content_type, None, &body)).unwrap();
        let raw = text.replace(r#""headers": {"task": "t", "id": "i"}"#, r#""headers": {}"#);
        let message = read(&codec, raw.as_bytes()).unwrap();
        assert_eq!(
            (message.task.as_str(), message.id.as_str()),
            ("old", "o1"),
            "{content_type}"
        );
        assert_eq!((message.args.as_str(), message.kwargs.as_str()), ("[1]", r#"{"a": 2}"#));
        let again = codec
            .retry(
                raw.as_bytes(),
                &umbel_protocol::message::Retry {
                    retries: 1,
                    ..Default::default()
                },
                &jiff::tz::TimeZone::UTC,
            )
            .unwrap();
        let again_read = read(&codec, &again).unwrap();
        assert_eq!((again_read.retries, again_read.args.as_str()), (1, "[1]"));
        assert!(
            String::from_utf8(again).unwrap().contains(content_type),
            "in the same serializer"
        );
    }
}

fn json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        any::<i64>().prop_map(|value| value.to_string()),
        any::<f64>()
            .prop_filter("finite", |value| value.is_finite())
            .prop_map(|value| Json::of(&value).to_string()),
        any::<String>().prop_map(|text| Json::string(&text).to_string()),
        "[ -~]{0,12}".prop_map(|text| Json::string(&text).to_string()),
        "[-+.0-9:eTZx_ ]{0,12}".prop_map(|text| Json::string(&text).to_string()),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(", "))),
            proptest::collection::btree_map("[ -~\u{e9}\n]{0,6}", inner, 0..4).prop_map(|items| {
                let items: Vec<String> = items
                    .iter()
                    .map(|(key, value)| format!("{}: {value}", Json::string(key)))
                    .collect();
                format!("{{{}}}", items.join(", "))
            }),
        ]
    })
    .prop_map(|text| Json::parse(&text).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn every_task_comes_through_every_serializer_and_compression(args in vec(json(), 0..4), pick in any::<usize>()) {
        let args: Vec<&str> = args.iter().map(Json::as_str).collect();
        let args = Json::parse(&format!("[{}]", args.join(", "))).unwrap();
        let task = NewTask { id: "i".into(), task: "t".into(), args: args.clone(), ..NewTask::default() };
        let codec = everything();
        let compression = Compression::ALL.get(pick % 6).copied();
        for serializer in [Serializer::Json, Serializer::Msgpack, Serializer::Yaml] {
            let raw = codec.encode(&task, serializer, compression).unwrap();
            let message = read(&codec, &raw).map_err(|err| TestCaseError::fail(format!("{serializer} {args}: {err}")))?;
            prop_assert_eq!(&message.args, &args, "{}", serializer);
        }
    }

    #[test]
    fn no_body_makes_it_panic(body in vec(any::<u8>(), 0..256), text in "[-\\[\\]{}&*!|>'\",:?#%@` a-c\n\t0-9.]{0,64}") {
        let codec = everything();
        for body in [&body[..], text.as_bytes()] {
            for serializer in Serializer::ALL {
                let _ = read(&codec, &message(serializer.content_type(), None, body));
            }
        }
    }
}
