//! What real Celery wrote in other serializers, compressed and signed: read, and written again.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{LIMITS, codec, everything, golden, read, task_of};
use serde_json::Value;
use umbel_codec::{Codec, Compression, Digest, Keyring, Options, Serializer};
use umbel_protocol::json::Json;
use umbel_protocol::message::{BodyEncoding, NewTask};

const COMPRESSED: [(&str, Compression); 5] = [
    ("publish-13-compression-zlib", Compression::Zlib),
    ("publish-14-compression-bzip2", Compression::Bzip2),
    ("publish-15-compression-lzma", Compression::Lzma),
    ("publish-16-compression-brotli", Compression::Brotli),
    ("publish-17-compression-zstd", Compression::Zstd),
];

fn value(json: &Json) -> Value {
    json.to().unwrap()
}

#[test]
fn every_compression_of_kombu_is_read() {
    for (name, compression) in COMPRESSED {
        let (raw, expect) = golden(name);
        let message = read(&codec(&[Serializer::Json]), &raw).unwrap_or_else(|err| panic!("{name}: {err}"));
        assert_eq!(value(&message.args), expect["args"], "{name}");
        assert_eq!(value(&message.kwargs), expect["kwargs"], "{name}");
        assert_eq!(value(&message.embed.clone().unwrap()), expect["embed"], "{name}");
        assert_eq!(
            message.header("compression").unwrap().text().unwrap(),
            compression.content_type()
        );
    }
}

/// What a compressor makes of a body is its own affair; everything around it is Celery's, byte for byte.
#[test]
fn a_compressed_message_is_written_as_celery_writes_it() {
    for (name, compression) in COMPRESSED {
        let (raw, _) = golden(name);
        let codec = codec(&[Serializer::Json]);
        let message = read(&codec, &raw).unwrap();
        let written = codec
            .encode(&task_of(&raw, &message), Serializer::Json, Some(compression))
            .unwrap();
        assert_eq!(without_body(&written), without_body(&raw), "{name}");
        assert_eq!(read(&codec, &written).unwrap(), message, "{name}");
    }
}

/// All but the value of the first key.
fn without_body(raw: &[u8]) -> String {
    let text = String::from_utf8(raw.to_vec()).unwrap();
    text.split_once("\", \"content-encoding\"").unwrap().1.to_owned()
}

#[test]
fn msgpack_is_read_and_written_byte_for_byte() {
    let (raw, _) = golden("publish-18-msgpack");
    let codec = codec(&[Serializer::Msgpack]);
    let message = read(&codec, &raw).unwrap();
    assert_eq!(message.args.as_str(), r#"[1, 2.5, null, "\u00e9"]"#);
    assert_eq!(
        message.kwargs.as_str(),
        r#"{"b": {"__type__": "base64", "__value__": "AP/+"}, "n": {"k": [true, false]}}"#
    );
    let written = codec
        .encode(&task_of(&raw, &message), Serializer::Msgpack, None)
        .unwrap();
    assert_eq!(String::from_utf8(written).unwrap(), String::from_utf8(raw).unwrap());
}

#[test]
fn yaml_is_read_and_written_byte_for_byte() {
    let (raw, _) = golden("publish-19-yaml");
    let codec = codec(&[Serializer::Yaml]);
    let message = read(&codec, &raw).unwrap();
    assert_eq!(message.args.as_str(), r#"[1, "two", null]"#);
    assert_eq!(message.kwargs.as_str(), r#"{"k": [1, 2]}"#);
    let written = codec.encode(&task_of(&raw, &message), Serializer::Yaml, None).unwrap();
    assert_eq!(String::from_utf8(written).unwrap(), String::from_utf8(raw).unwrap());
}

#[test]
fn pickle_is_refused_whatever_is_accepted() {
    let (raw, _) = golden("publish-20-pickle");
    let refused = read(&everything(), &raw).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "content type `application/x-python-serialize` is not accepted"
    );
    assert!(refused.id.is_some() && refused.task.is_some(), "{refused:?}");
}

#[test]
fn a_signed_message_of_celery_5_7_is_verified() {
    let (raw, expect) = golden("publish-50-signed-auth");
    let codec = believing(&expect);
    let message = read(&codec, &raw).unwrap();
    assert_eq!(message.args.as_str(), r#"[1, "\u00e9"]"#);
    assert_eq!(message.kwargs.as_str(), r#"{"k": null}"#);
}

#[test]
fn a_signed_message_of_celery_5_2_is_verified() {
    let (raw, expect) = golden("compat-03-signed-auth-celery-5.2");
    let message = read(&believing(&expect), &raw).unwrap();
    assert_eq!((message.args.as_str(), message.kwargs.as_str()), ("[1]", "{}"));
    // Any other body under this signature is refused in this layout, too.
    let forged = common::with_signed_fields(&raw, |fields| {
        let at = fields.len() - 1;
        fields[at] = b' ';
    });
    assert_eq!(
        read(&believing(&expect), &forged).unwrap_err().reason.label(),
        "signature"
    );
}

fn believing(expect: &Value) -> Codec {
    let mut keyring = Keyring::new(Digest::Sha256, common::then);
    let ids = keyring
        .add(expect["certificate_pem"].as_str().unwrap().as_bytes())
        .unwrap();
    assert_eq!(ids, [expect["signer"].as_str().unwrap()]);
    Codec::new(Options {
        accept: vec![Serializer::Auth],
        keyring: Some(keyring),
        ..Options::default()
    })
}

#[test]
fn text_bodies_stand_in_the_envelope_as_they_are() {
    let (raw, _) = golden("publish-32-body-encoding-utf8");
    let codec = codec(&[Serializer::Json]);
    let message = read(&codec, &raw).unwrap();
    let task = NewTask {
        body_encoding: BodyEncoding::Utf8,
        ..task_of(&raw, &message)
    };
    let written = codec.encode(&task, Serializer::Json, None).unwrap();
    assert_eq!(String::from_utf8(written).unwrap(), String::from_utf8(raw).unwrap());
    let packed = codec.encode(&task, Serializer::Json, Some(Compression::Zlib)).unwrap();
    assert_eq!(
        read(&codec, &packed).unwrap().args,
        message.args,
        "bytes that are no text are sent as base64"
    );
}

#[test]
fn what_is_not_accepted_is_refused_before_its_body_is_read() {
    for (name, accept, label) in [
        (
            "publish-18-msgpack",
            Serializer::Json,
            "content type `application/x-msgpack` is not accepted",
        ),
        (
            "publish-19-yaml",
            Serializer::Json,
            "content type `application/x-yaml` is not accepted",
        ),
        (
            "publish-50-signed-auth",
            Serializer::Json,
            "content type `application/data` is not accepted",
        ),
        (
            "publish-13-compression-zlib",
            Serializer::Auth,
            "content type `application/json` is not accepted",
        ),
        (
            "publish-21-json-special-types",
            Serializer::Yaml,
            "content type `application/json` is not accepted",
        ),
    ] {
        let (raw, _) = golden(name);
        let codec = codec(&[accept]);
        let text = String::from_utf8(raw).unwrap();
        // A body that nobody could read makes no difference.
        let (_, rest) = text.split_once("\", \"content-encoding\"").unwrap();
        let unreadable = format!("{{\"body\": \"!!!!\", \"content-encoding\"{rest}");
        let refused = codec
            .decode(unreadable.as_bytes(), &LIMITS, &jiff::tz::TimeZone::UTC)
            .unwrap_err();
        assert_eq!(refused.to_string(), label, "{name}");
    }
}
