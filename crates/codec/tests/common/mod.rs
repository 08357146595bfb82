//! Messages of real Celery, and codecs to read them with.

#![allow(dead_code)]

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;
use umbel_codec::{Codec, Digest, Keyring, Options, Serializer};
use umbel_protocol::json::Json;
use umbel_protocol::message::{Limits, Malformed, NewTask, TaskMessage};

pub(crate) const LIMITS: Limits = Limits {
    bytes: 1 << 20,
    depth: 64,
    keys: 10_000,
    id_bytes: 1024,
};

/// The message that a capture pushes, and what it says of it.
pub(crate) fn golden(name: &str) -> (Vec<u8>, Value) {
    let path = Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join("../protocol/tests/golden")
        .join(format!("{name}.json"));
    let vector: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let push = vector["redis"]
        .as_array()
        .unwrap()
        .iter()
        .find(|event| event["cmd"][0] == "LPUSH")
        .unwrap();
    (
        push["cmd"][2].as_str().unwrap().as_bytes().to_vec(),
        vector["expect"].clone(),
    )
}

/// A moment at which the captured certificates are good.
pub(crate) fn then() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

pub(crate) fn codec(accept: &[Serializer]) -> Codec {
    Codec::new(Options {
        accept: accept.to_vec(),
        ..Options::default()
    })
}

pub(crate) fn everything() -> Codec {
    Codec::new(Options {
        accept: Serializer::ALL.to_vec(),
        keyring: Some(Keyring::new(Digest::Sha256, then)),
        ..Options::default()
    })
}

pub(crate) fn read(codec: &Codec, raw: &[u8]) -> Result<TaskMessage, Malformed> {
    codec.decode(raw, &LIMITS, &TimeZone::UTC)
}

/// The task that a message was made of; its delivery tag is the one thing that a decoded message does not keep.
pub(crate) fn task_of(raw: &[u8], message: &TaskMessage) -> NewTask {
    let envelope: Value = serde_json::from_slice(raw).unwrap();
    NewTask {
        delivery_tag: envelope["properties"]["delivery_tag"].as_str().unwrap().to_owned(),
        ..NewTask::from(message)
    }
}

/// The same signed message with its fields changed, before they are wrapped in base64 twice.
pub(crate) fn with_signed_fields(raw: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let message: Value = serde_json::from_slice(raw).unwrap();
    let body = STANDARD.decode(message["body"].as_str().unwrap()).unwrap();
    let mut fields = STANDARD.decode(body).unwrap();
    change(&mut fields);
    with_body(raw, STANDARD.encode(fields).as_bytes())
}

/// The same message around another body.
pub(crate) fn with_body(raw: &[u8], body: &[u8]) -> Vec<u8> {
    let mut message: Value = serde_json::from_slice(raw).unwrap();
    message["body"] = Value::String(STANDARD.encode(body));
    message["properties"]["body_encoding"] = Value::String("base64".into());
    message.to_string().into_bytes()
}

/// A message of this content type around this body.
pub(crate) fn message(content_type: &str, compression: Option<&str>, body: &[u8]) -> Vec<u8> {
    let compression = compression.map_or(String::new(), |name| {
        format!(", \"compression\": {}", Json::string(name))
    });
    format!(
        r#"{{"body": "{}", "content-type": {}, "content-encoding": "utf-8", "headers": {{"task": "t", "id": "i"{compression}}}, "properties": {{"body_encoding": "base64"}}}}"#,
        STANDARD.encode(body),
        Json::string(content_type)
    )
    .into_bytes()
}
