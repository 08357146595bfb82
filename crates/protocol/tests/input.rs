//! Hostile and careless senders: every message runs under stated defaults or is refused with its reason.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use jiff::Timestamp;
use jiff::tz::TimeZone;
use umbel_protocol::json::{Json, JsonError};
use umbel_protocol::message::{Limits, MAX_TIME_LIMIT, Malformed, TaskMessage, TimeLimit, decode};

fn read(raw: &[u8]) -> Result<TaskMessage, Malformed> {
    decode(raw, &Limits::default(), &TimeZone::UTC)
}

/// A message with these further headers and properties; the body is plain text.
fn message(body: &str, headers: &str, properties: &str) -> Vec<u8> {
    let body = Json::string(body);
    format!(
        r#"{{"content-type": "application/json", "headers": {{"id": "i", "task": "t"{headers}}}, "properties": {{"a": 1{properties}}}, "body": {body}}}"#
    )
    .into_bytes()
}

fn with_headers(headers: &str) -> Result<TaskMessage, Malformed> {
    read(&message("[[], {}, null]", &format!(", {headers}"), ""))
}

fn with_properties(properties: &str) -> TaskMessage {
    read(&message("[[], {}, null]", "", &format!(", {properties}"))).unwrap()
}

fn with_body(body: &str) -> Result<TaskMessage, Malformed> {
    read(&message(body, "", ""))
}

#[test]
fn what_is_no_json_text_is_refused_where_it_breaks() {
    let valid = message("[[], {}, null]", "", "");
    let utf16: Vec<u8> = String::from_utf8_lossy(&valid)
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let mut nul = valid.clone();
    nul.insert(5, 0);
    let cases: [(&[u8], &str, &str); 12] = [
        (
            b"",
            "json",
            "message is not acceptable JSON: expected an object at byte 0",
        ),
        (
            b"\0",
            "json",
            "message is not acceptable JSON: expected an object at byte 0",
        ),
        (
            b"this is not json",
            "json",
            "message is not acceptable JSON: expected an object at byte 0",
        ),
        (
            b"[1, 2]",
            "json",
            "message is not acceptable JSON: expected an object at byte 0",
        ),
        (
            b"{\"body\"",
            "json",
            "message is not acceptable JSON: expected `:` at byte 7",
        ),
        (
            b"{\"body\": \"W1",
            "json",
            "message is not acceptable JSON: expected a closing quote at byte 12",
        ),
        (
            b"{\"a\": \"\x01\"}",
            "json",
            "message is not acceptable JSON: expected no control character in a string at byte 7",
        ),
        (
            b"{} {}",
            "json",
            "message is not acceptable JSON: expected end of text at byte 3",
        ),
        (b"\xef\xbb\xbf{}", "text", "message is not UTF-8 text from byte 0 on"),
        (b"{\"a\": \"\xff\"}", "text", "message is not UTF-8 text from byte 7 on"),
        (
            &utf16,
            "json",
            "message is not acceptable JSON: expected a key in quotes at byte 1",
        ),
        (
            &nul,
            "json",
            "message is not acceptable JSON: expected no control character in a string at byte 5",
        ),
    ];
    for (raw, label, text) in cases {
        let refused = read(raw).unwrap_err();
        assert_eq!(
            (refused.reason.label(), refused.to_string().as_str()),
            (label, text),
            "{raw:?}"
        );
        assert_eq!((refused.id, refused.task), (None, None));
    }
}

#[test]
fn a_cut_message_is_named_when_its_headers_came_through() {
    let valid = r#"{"content-type": "application/json", "headers": {"id": "i", "task": "t"}, "body": "W1"#;
    let refused = read(valid.as_bytes()).unwrap_err();
    assert_eq!(refused.id.as_deref(), Some("i"));
    assert_eq!(refused.task.as_deref(), Some("t"));
    assert_eq!(refused.reason.label(), "json");
}

#[test]
fn structure_beyond_the_limits_is_refused() {
    let nested = |levels: usize| format!("[[{}{}], {{}}, null]", "[".repeat(levels), "]".repeat(levels));
    // The triple and `args` are two of the 64 levels.
    assert!(with_body(&nested(62)).is_ok());
    assert_eq!(
        with_body(&nested(63)).unwrap_err().to_string(),
        "body is not acceptable JSON: nested deeper than 64 levels"
    );
    assert_eq!(with_body(&nested(1_000)).unwrap_err().reason.label(), "limit");
    assert_eq!(Json::parse(&"[".repeat(100_000)), Err(JsonError::Depth { limit: 64 }));

    let keys = |count: usize| {
        let entries: Vec<String> = (0..count).map(|key| format!("\"{key}\":0")).collect();
        format!("[[], {{{}}}, null]", entries.join(","))
    };
    assert!(with_body(&keys(500_000)).is_ok());
    assert_eq!(
        with_body(&keys(500_001)).unwrap_err().to_string(),
        "body is not acceptable JSON: more than 500000 keys"
    );

    let large = message(&format!("[[\"{}\"], {{}}, null]", "x".repeat(16 << 20)), "", "");
    let refused = read(&large).unwrap_err();
    assert_eq!(refused.reason.label(), "size");
    assert_eq!(
        refused.to_string(),
        format!("message of {} bytes is larger than 16777216", large.len())
    );
}

#[test]
fn numbers_of_any_size_and_lone_surrogates_pass_verbatim() {
    let args = r#"[1e400, NaN, -Infinity, 9223372036854775809, 1.0, "\ud800", "\uDC00\ud83d\ude00"]"#;
    let message = with_body(&format!("[{args}, {{\"a\": 1, \"a\": 2}}, {{}}]")).unwrap();
    assert_eq!(message.args.as_str(), args);
    assert_eq!(message.kwargs.as_str(), r#"{"a": 1, "a": 2}"#);
    assert_eq!(message.kwargs.get("a"), Some(Json::of(&2)));
    let strings = message.args.elements().unwrap();
    assert_eq!(strings[5].text().as_deref(), Some("\u{fffd}"));
    assert_eq!(strings[6].text().as_deref(), Some("\u{fffd}😀"));
}

#[derive(serde::Deserialize)]
struct Options {
    n: u8,
}

#[test]
fn of_doubled_keys_the_last_counts() {
    let raw = br#"{"body": "x", "headers": {"id": "a", "task": "a"}, "headers": {"id": "b", "id": "c", "task": "t"},
        "content-type": "application/json", "body": "[[],{},{}]"}"#;
    assert_eq!(read(raw).unwrap().id, "c");

    assert_eq!(
        Json::parse(r#"{"n": 1, "n": 2}"#).unwrap().to::<Options>().unwrap().n,
        2
    );
}

#[test]
fn wrong_fields_are_refused_by_name() {
    let long = "x".repeat(1_025);
    let cases = [
        (r#""id": 7"#.to_owned(), "headers.id is not a text of acceptable length"),
        (
            r#""id": """#.to_owned(),
            "headers.id is not a text of acceptable length",
        ),
        (
            format!("\"id\": \"{long}\""),
            "headers.id is not a text of acceptable length",
        ),
        (r#""id": null"#.to_owned(), "headers.id is missing"),
        (
            r#""task": ["t"]"#.to_owned(),
            "headers.task is not a text of acceptable length",
        ),
        (r#""task": null"#.to_owned(), "headers.task is missing"),
        (
            format!("\"root_id\": \"{long}\""),
            "headers.root_id is not a text of acceptable length",
        ),
        (r#""eta": 1700000000"#.to_owned(), "headers.eta is not an ISO 8601 time"),
        (r#""eta": "tomorrow""#.to_owned(), "headers.eta is not an ISO 8601 time"),
        (
            r#""eta": "2026-02-30T00:00:00Z""#.to_owned(),
            "headers.eta is not an ISO 8601 time",
        ),
        (
            r#""eta": "2026-01-01T00:00:00[Europe/Rome]""#.to_owned(),
            "headers.eta is not an ISO 8601 time",
        ),
        (r#""expires": """#.to_owned(), "headers.expires is not an ISO 8601 time"),
        (
            r#""timelimit": 30"#.to_owned(),
            "headers.timelimit is not [hard, soft] in seconds",
        ),
        (
            r#""timelimit": ["30", null]"#.to_owned(),
            "headers.timelimit is not [hard, soft] in seconds",
        ),
        (
            r#""compression": "application/x-gzip""#.to_owned(),
            "compression `application/x-gzip` is not accepted",
        ),
    ];
    for (header, text) in cases {
        assert_eq!(with_headers(&header).unwrap_err().to_string(), text, "{header}");
    }
}

#[test]
fn wrong_bodies_are_refused_by_name() {
    let cases = [
        ("", "body is not acceptable JSON: expected a value at byte 0"),
        ("7", "body is not [args, kwargs, embed]"),
        ("[]", "body is not [args, kwargs, embed]"),
        ("[[], {}]", "body is not [args, kwargs, embed]"),
        ("[[], {}, {}, {}]", "body is not [args, kwargs, embed]"),
        (
            "[[], {}, {}] x",
            "body is not acceptable JSON: expected end of text at byte 13",
        ),
        ("[[], {}, ", "body is not acceptable JSON: expected a value at byte 9"),
        ("[{}, {}, {}]", "args is not an array"),
        ("[[], null, {}]", "kwargs is not an object"),
        ("[[], {}, []]", "embed is not an object or null"),
        (
            "[[01], {}, {}]",
            "body is not acceptable JSON: expected `,` or `]` at byte 3",
        ),
    ];
    for (body, text) in cases {
        let refused = with_body(body).unwrap_err();
        assert_eq!(refused.to_string(), text, "{body}");
        assert_eq!((refused.id.as_deref(), refused.task.as_deref()), (Some("i"), Some("t")));
    }
}

#[test]
fn wrong_labels_are_refused_before_the_body_is_read() {
    let labelled = |kind: &str, encoding: &str, properties: &str| {
        let raw = format!(
            r#"{{"content-type": {kind}, "content-encoding": {encoding}, "headers": {{"id": "i", "task": "t"}}, "properties": {properties}, "body": "!"}}"#
        );
        read(raw.as_bytes()).unwrap_err().to_string()
    };
    assert_eq!(
        labelled("\"application/x-yaml\"", "\"utf-8\"", "{}"),
        "content type `application/x-yaml` is not accepted"
    );
    assert_eq!(labelled("null", "\"utf-8\"", "{}"), "content-type is missing");
    assert_eq!(
        labelled(r#""a\nb\u001b[31m""#, "\"utf-8\"", "{}"),
        r"content type `a\nb\u{1b}[31m` is not accepted",
        "a reason must be safe to print"
    );
    assert_eq!(
        labelled("\"application/json\"", "\"latin-1\"", "{}"),
        "content-encoding `latin-1` cannot be decoded"
    );
    let base64 = r#"{"body_encoding": "base64"}"#;
    assert_eq!(
        labelled("\"application/json\"", "\"utf-8\"", base64),
        "body_encoding `base64` cannot be decoded"
    );
    let rot13 = r#"{"body_encoding": "rot13"}"#;
    assert_eq!(
        labelled("\"application/json\"", "\"utf-8\"", rot13),
        "body_encoding `rot13` cannot be decoded"
    );
    let long = format!("\"{}\"", "k".repeat(65));
    assert_eq!(
        labelled(&long, "null", "{}"),
        format!("content type `{}...` is not accepted", "k".repeat(64))
    );
}

#[test]
fn numbers_out_of_range_are_clamped() {
    for (priority, expect) in [
        ("12", 9),
        ("-3", 0),
        ("3.9", 3),
        ("1000000000", 9),
        ("\"7\"", 7),
        ("\"high\"", 0),
        ("null", 0),
        ("[]", 0),
        ("NaN", 0),
    ] {
        assert_eq!(
            with_properties(&format!("\"priority\": {priority}")).priority,
            expect,
            "{priority}"
        );
    }
    for (retries, expect) in [
        ("2", 2),
        ("-1", 0),
        ("1e30", u32::MAX),
        ("\"x\"", 0),
        ("null", 0),
        ("{}", 0),
    ] {
        assert_eq!(
            with_headers(&format!("\"retries\": {retries}")).unwrap().retries,
            expect,
            "{retries}"
        );
    }
    let limit = |hard, soft| TimeLimit { hard, soft };
    for (timelimit, expect) in [
        ("null", limit(None, None)),
        ("[]", limit(None, None)),
        ("[30, 25.5]", limit(Some(30.0), Some(25.5))),
        ("[1e9, null]", limit(Some(MAX_TIME_LIMIT), None)),
        ("[0, -5]", limit(None, None)),
        ("[NaN, Infinity]", limit(None, None)),
        ("[1e400, 1]", limit(None, Some(1.0))),
    ] {
        assert_eq!(
            with_headers(&format!("\"timelimit\": {timelimit}")).unwrap().time_limit,
            expect,
            "{timelimit}"
        );
    }
}

#[test]
fn missing_or_forged_delivery_facts_harm_nothing() {
    let none = with_body("[[], {}, null]").unwrap();
    assert_eq!((none.queue.as_str(), none.redelivered, none.priority), ("", false, 0));
    let odd = with_properties(r#""delivery_info": "celery", "delivery_tag": {}"#);
    assert_eq!((odd.queue.as_str(), odd.redelivered), ("", false));
    assert!(with_properties(r#""delivery_info": {"routing_key": "q", "redelivered": true}"#).redelivered);
    let no_properties =
        br#"{"content-type": "application/json", "headers": {"id": "i", "task": "t"}, "body": "[[],{},{}]"}"#;
    assert_eq!(read(no_properties).unwrap().queue, "");
}

#[test]
fn any_text_is_an_id() {
    for id in [
        "../../etc/passwd",
        "a\nb",
        "\u{1b}[31mred",
        "\0",
        "ключ",
        &"x".repeat(1_024),
    ] {
        let header = format!("\"id\": {}", Json::string(id));
        assert_eq!(with_headers(&header).unwrap().id, id);
    }
}

#[test]
fn every_written_form_of_a_time_is_read() {
    let eta = |text: &str, zone: &str| {
        let raw = message("[[], {}, null]", &format!(", \"eta\": \"{text}\""), "");
        decode(&raw, &Limits::default(), &TimeZone::get(zone).unwrap())
            .unwrap()
            .eta
            .unwrap()
    };
    let expect: Timestamp = "2026-03-04T05:06:07Z".parse().unwrap();
    for text in [
        "2026-03-04T05:06:07Z",
        "2026-03-04T05:06:07+00:00",
        "2026-03-04T05:06:07.000000+00:00",
        "2026-03-04T10:36:07+05:30",
        "2026-03-04T10:36:07+0530",
        "2026-03-04 05:06:07",
        "2026-03-04 05:06:07+00:00",
        "20260304T050607",
        "20260304T050607Z",
    ] {
        assert_eq!(eta(text, "UTC"), expect, "{text}");
    }
    let day: Timestamp = "2026-03-03T15:00:00Z".parse().unwrap();
    assert_eq!(eta("2026-03-04", "Asia/Tokyo"), day);
    assert_eq!(eta("2026-03-04T00:00", "Asia/Tokyo"), day);
    // An hour that the clock skipped, and one that it showed twice.
    assert_eq!(
        eta("2026-03-29T02:30:00", "Europe/Rome"),
        "2026-03-29T01:30:00Z".parse().unwrap()
    );
    assert_eq!(
        eta("2026-10-25T02:30:00", "Europe/Rome"),
        "2026-10-25T00:30:00Z".parse().unwrap()
    );
    // "Never", as Python programs write it.
    assert_eq!(eta("9999-12-31T23:59:59.999999", "UTC"), Timestamp::MAX);
    assert_eq!(eta("9999-12-31T23:59:59.999999+00:00", "UTC"), Timestamp::MAX);
    assert_eq!(
        eta("0001-01-01T00:00:00", "Asia/Tokyo"),
        "0000-12-31T14:41:01Z".parse().unwrap()
    );
}
