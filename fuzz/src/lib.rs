//! What is done with hostile bytes, for each decoder: by the fuzzer, and by a test that replays the kept corpus.
//!
//! Nothing may panic, and what is accepted must hold what the decoder promises.

#![allow(missing_docs, unreachable_pub)]

use jiff::Timestamp;
use jiff::tz::TimeZone;
use umbel_codec::{Codec, Compression, Digest, Keyring, Options, Serializer};
use umbel_protocol::canvas::{self, Sender};
use umbel_protocol::control::{Command, Request};
use umbel_protocol::json::Json;
use umbel_protocol::message::{self, Limits, NewTask, Retry};
use umbel_protocol::{event, result};

/// A decoder, which must neither panic nor grow.
pub type Target = fn(&[u8]);

/// Each decoder by the name of its folder in the corpus.
pub const TARGETS: [(&str, Target); 6] = [
    ("message", message),
    ("codec", codec),
    ("result", result),
    ("canvas", canvas),
    ("control", control),
    ("events", events),
];

/// Small, so that reaching it takes few steps.
const INFLATED: usize = 64 << 10;

fn everything() -> Codec {
    Codec::new(Options {
        accept: Serializer::ALL.to_vec(),
        max_inflated: INFLATED,
        keyring: Some(Keyring::new(Digest::Sha256, || Timestamp::UNIX_EPOCH)),
        ..Options::default()
    })
}

/// A whole list element: read; if it is a message, its next try has the same body.
pub fn message(raw: &[u8]) {
    let codec = everything();
    let Ok(first) = codec.decode(raw, &Limits::default(), &TimeZone::UTC) else {
        let _ = message::retry(raw, &Retry::default());
        return;
    };
    assert!(first.args.is_array() && first.kwargs.is_object());
    let change = Retry {
        retries: first.retries.saturating_add(1),
        delivery_tag: "tag".into(),
        ..Retry::default()
    };
    let Ok(again) = codec.retry(raw, &change, &TimeZone::UTC) else {
        return;
    };
    let again = codec
        .decode(
            &again,
            &Limits {
                bytes: usize::MAX,
                ..Limits::default()
            },
            &TimeZone::UTC,
        )
        .expect("a retry can be read");
    assert_eq!(
        (again.args, again.kwargs, again.id),
        (first.args, first.kwargs, first.id)
    );
}

/// A body: the first byte says which serializer and which compression it claims.
pub fn codec(data: &[u8]) {
    let Some((first, body)) = data.split_first() else {
        return;
    };
    let serializer = Serializer::ALL[usize::from(first & 3)];
    let compression = Compression::ALL.get(usize::from(first >> 2) % 6).copied();
    let task = NewTask {
        id: "i".into(),
        task: "t".into(),
        ..NewTask::default()
    };
    let raw = task.encode_with(&message::Body {
        content_type: serializer.content_type().into(),
        content_encoding: Some(serializer.content_encoding().into()),
        compression: compression.map(|compression| compression.content_type().into()),
        bytes: body.into(),
    });
    let codec = everything();
    let limits = Limits {
        bytes: usize::MAX,
        ..Limits::default()
    };
    let Ok(read) = codec.decode(&raw, &limits, &TimeZone::UTC) else {
        return;
    };
    // What was read can be written in every serializer that has its values, and means the same there.
    let task = NewTask {
        embed: read.embed.clone(),
        ..NewTask::from(&read)
    };
    for other in [Serializer::Json, Serializer::Msgpack] {
        if let Ok(written) = codec.encode(&task, other, None)
            && let Ok(again) = codec.decode(&written, &limits, &TimeZone::UTC)
            && other == serializer
        {
            assert_eq!(again.args.as_str(), read.args.as_str());
        }
    }
    let _ = codec
        .encode(&task, Serializer::Yaml, None)
        .map(|raw| codec.decode(&raw, &limits, &TimeZone::UTC));
}

/// A result document.
pub fn result(raw: &[u8]) {
    if let Ok(document) = result::parse(raw) {
        let _ = (document.is_ready(), document.failure().map(|failure| failure.repr()));
    }
}

/// Arguments and embed of a task: everything that follows from its end.
pub fn canvas(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(embed) = Json::parse(text) else { return };
    let task = NewTask {
        id: "i".into(),
        task: "celery.chain".into(),
        args: Json::parse(&format!("[{embed}, {embed}]")).unwrap_or_else(|_| Json::empty_array()),
        kwargs: if embed.is_object() {
            embed.clone()
        } else {
            Json::empty_object()
        },
        embed: embed.is_object().then(|| embed.clone()),
        group: Some("g".into()),
        group_index: Some(0),
        ..NewTask::default()
    };
    let limits = Limits {
        bytes: usize::MAX,
        ..Limits::default()
    };
    let Ok(read) = message::decode(&task.encode(), &limits, &TimeZone::UTC) else {
        return;
    };
    let mut last = 0_u32;
    let mut ids = || {
        last += 1;
        last.to_string()
    };
    let mut sender = Sender {
        now: Timestamp::UNIX_EPOCH,
        origin: "o",
        reply_to: "",
        priority: 0,
        ids: &mut ids,
        is_function: &|_| false,
    };
    let _ = canvas::after_success(&read, &Json::of(&5), &mut sender);
    for name in [
        "celery.chain",
        "celery.group",
        "celery.chord",
        "celery.map",
        "celery.starmap",
        "celery.chunks",
    ] {
        let read = umbel_protocol::message::TaskMessage {
            task: name.into(),
            ..read.clone()
        };
        let _ = canvas::builtin(&read, &mut sender);
    }
    if let Ok(signature) = canvas::Signature::parse(&embed) {
        let _ = canvas::start(&signature, "celery", &mut sender);
        let _ = (signature.size(), signature.to_json());
    }
    let _ = canvas::after_revoked(&read, "fuzz");
}

/// A request on the control channel.
pub fn control(payload: &[u8]) {
    if let Ok(request) = Request::parse(payload) {
        let _ = (request.addressed_to("w@h"), request.is_expired(Timestamp::UNIX_EPOCH));
        let _ = request.reply("w@h", &Json::null(), 1, "tag");
        if let Err(refusal) = Command::of(&request) {
            let _ = refusal.answer();
        }
    }
}

/// Events of other nodes.
pub fn events(payload: &[u8]) {
    for received in event::parse(payload).unwrap_or_default() {
        let _ = (received.uuid(), received.event());
    }
}
