//! Signatures that prove nothing.

use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use umbel_codec::{Codec, Digest, Keyring, Options, Serializer, Signer};
use umbel_protocol::json::Json;
use umbel_protocol::message::{self, Body, NewTask};
use umbel_testkit::{Signer as Keys, TempDir};

use super::{Stage, envelope};
use crate::support::SOON;

const SEPARATOR: &[u8] = &[0, 1];
const PAYLOAD: &[u8] = br#"[[0.0], {"a": 1, "b": 2}, null]"#;

/// The five fields of a signed body.
#[derive(Clone)]
struct Fields {
    signer: String,
    signature: Vec<u8>,
    content_type: &'static str,
    payload: Vec<u8>,
}

impl Fields {
    /// As Celery 5.5 and later wrap them.
    fn body(&self) -> Vec<u8> {
        self.join(&[
            STANDARD.encode(&self.signer).as_bytes(),
            STANDARD.encode(&self.signature).as_bytes(),
        ])
    }

    /// As Celery 5.2 does.
    fn raw_body(&self) -> Vec<u8> {
        self.join(&[self.signer.as_bytes(), &self.signature])
    }

    fn join(&self, first: &[&[u8]]) -> Vec<u8> {
        let fields = [first, &[self.content_type.as_bytes(), b"utf-8", &self.payload]].concat();
        STANDARD.encode(fields.join(SEPARATOR)).into_bytes()
    }

    fn with(&self, change: impl FnOnce(&mut Fields)) -> Vec<u8> {
        let mut fields = self.clone();
        change(&mut fields);
        fields.body()
    }
}

/// A task message around a body of this content type.
fn around(content_type: &str, body: &[u8]) -> Vec<u8> {
    envelope(|message| {
        message["content-type"] = json!(content_type);
        message["body"] = json!(STANDARD.encode(body));
    })
}

/// A signature by openssl, with these options.
fn openssl(key: &Path, payload: &[u8], options: &[&str]) -> Vec<u8> {
    let folder = TempDir::new("openssl");
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    std::fs::write(&input, payload).expect("the folder is ours");
    let done = Command::new("openssl")
        .arg("dgst")
        .args(options)
        .arg("-sign")
        .arg(key)
        .arg("-out")
        .arg(&output)
        .arg(&input)
        .status();
    assert!(
        done.is_ok_and(|status| status.success()),
        "openssl signs with {options:?}"
    );
    std::fs::read(output).expect("it was written")
}

const PSS: &[&str] = &[
    "-sha256",
    "-sigopt",
    "rsa_padding_mode:pss",
    "-sigopt",
    "rsa_pss_saltlen:max",
];

/// A certificate that was good until yesterday.
fn expired(folder: &Path) -> (std::path::PathBuf, std::path::PathBuf) {
    let [key, request, certificate] = ["old.key", "old.csr", "old.pem"].map(|name| folder.join(name));
    let run = |args: &[&str]| {
        let done = Command::new("openssl").args(args).current_dir(folder).output();
        assert!(done.is_ok_and(|done| done.status.success()), "openssl {args:?}");
    };
    run(&[
        "req",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "old.key",
        "-out",
        "old.csr",
        "-subj",
        "/O=Umbel/CN=old",
    ]);
    run(&[
        "x509", "-req", "-in", "old.csr", "-signkey", "old.key", "-days", "-1", "-out", "old.pem",
    ]);
    drop(request);
    (key, certificate)
}

/// The name by which a certificate is known.
fn id_of(certificate: &Path) -> String {
    let mut keyring = Keyring::new(Digest::Sha256, jiff::Timestamp::now);
    let pem = std::fs::read(certificate).expect("it was just made");
    keyring.add(&pem).expect("a certificate").remove(0)
}

fn signed_by(keys: &Keys) -> Codec {
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).expect("it was just made");
    let signer = Signer::new(&read(keys.key()), read(keys.certificate()).as_bytes(), Digest::Sha256);
    Codec::new(Options {
        signer: Some(signer.expect("a pair")),
        ..Options::default()
    })
}

#[tokio::test]
async fn i13_forged_signatures_are_refused_put_aside_and_told() {
    let (trusted, stranger, store) = (Keys::new("trusted"), Keys::new("stranger"), TempDir::new("store"));
    let (old_key, old) = expired(store.path());
    let folder = TempDir::new("certificates");
    std::fs::copy(trusted.certificate(), folder.path().join("a.pem")).expect("the folder is ours");
    std::fs::copy(&old, folder.path().join("b.pem")).expect("the folder is ours");
    let flags = [
        "--accept",
        "auth",
        "--security-certificates",
        folder.path().to_str().expect("ours"),
    ];
    let mut stage = Stage::start(&flags).await;

    let good = Fields {
        signer: id_of(&trusted.certificate()),
        signature: openssl(&trusted.key(), PAYLOAD, PSS),
        content_type: "application/json",
        payload: PAYLOAD.to_vec(),
    };
    let strangers = Fields {
        signer: id_of(&stranger.certificate()),
        signature: openssl(&stranger.key(), PAYLOAD, PSS),
        ..good.clone()
    };
    let expired = Fields {
        signer: id_of(&old),
        signature: openssl(&old_key, PAYLOAD, PSS),
        ..good.clone()
    };
    let other = |payload: &str| good.with(|fields| fields.payload = payload.as_bytes().to_vec());
    let with_signature = |signature: Vec<u8>| good.with(|fields| fields.signature = signature);
    let with_signer = |signer: String| good.with(|fields| fields.signer = signer);
    let inner = |content_type, payload: &[u8]| {
        good.with(|fields| {
            (fields.content_type, fields.payload) = (content_type, payload.to_vec());
            fields.signature = openssl(&trusted.key(), payload, PSS);
        })
    };
    let flipped = |at: usize| {
        let mut signature = good.signature.clone();
        signature[at] ^= 1;
        signature
    };
    let auth = |body: Vec<u8>| around("application/data", &body);
    let four = STANDARD.encode([b"YQ==".as_slice(), b"YQ==", b"application/json", b"utf-8"].join(SEPARATOR));
    let corpus: Vec<(&str, Vec<u8>)> = vec![
        ("unsigned JSON", around("application/json", PAYLOAD)),
        (
            "unsigned msgpack",
            around("application/x-msgpack", &[0x93, 0x90, 0x80, 0xc0]),
        ),
        ("a pickle", around("application/x-python-serialize", b"\x80\x04N.")),
        ("plain JSON that says it is signed", auth(PAYLOAD.to_vec())),
        ("an empty body", auth(Vec::new())),
        ("no base64", auth(b"***".to_vec())),
        ("base64 of nothing", auth(STANDARD.encode(b"").into_bytes())),
        ("four fields", auth(four.into_bytes())),
        (
            "fields with other separators",
            auth(
                STANDARD
                    .encode(b"YQ==\x01\x00YQ==\x01\x00t\x01\x00e\x01\x00p")
                    .into_bytes(),
            ),
        ),
        ("no signature", auth(with_signature(Vec::new()))),
        ("a signature of zeros", auth(with_signature(vec![0; 256]))),
        ("a signature of ones", auth(with_signature(vec![0xff; 256]))),
        (
            "a signature without its last byte",
            auth(with_signature(good.signature[..255].to_vec())),
        ),
        (
            "a signature and a byte",
            auth(with_signature([&good.signature[..], &[0]].concat())),
        ),
        ("its first bit", auth(with_signature(flipped(0)))),
        ("its last bit", auth(with_signature(flipped(255)))),
        (
            "the signature of another body",
            auth(with_signature(openssl(&trusted.key(), b"[[], {}, null]", PSS))),
        ),
        ("a stranger's", auth(strangers.body())),
        (
            "a stranger's under a known name",
            auth(with_signature(strangers.signature.clone())),
        ),
        (
            "a known one under a stranger's name",
            auth(with_signer(strangers.signer.clone())),
        ),
        ("no signer", auth(with_signer(String::new()))),
        ("a name with a blank", auth(with_signer(format!("{} ", good.signer)))),
        ("a name in capitals", auth(with_signer(good.signer.to_uppercase()))),
        ("another serial number", auth(with_signer(format!("{}0", good.signer)))),
        ("another argument", auth(other(r#"[[9.0], {"a": 1, "b": 2}, null]"#))),
        ("reordered JSON", auth(other(r#"[[0.0], {"b": 2, "a": 1}, null]"#))),
        ("other blanks", auth(other(r#"[[0.0],{"a":1,"b":2},null]"#))),
        ("a blank at the end", auth(other(r#"[[0.0], {"a": 1, "b": 2}, null] "#))),
        ("a body cut short", auth(other("[[0.0]"))),
        ("an empty payload", auth(other(""))),
        (
            "the old padding",
            auth(with_signature(openssl(&trusted.key(), PAYLOAD, &["-sha256"]))),
        ),
        (
            "a shorter salt",
            auth(with_signature(openssl(
                &trusted.key(),
                PAYLOAD,
                &[
                    "-sha256",
                    "-sigopt",
                    "rsa_padding_mode:pss",
                    "-sigopt",
                    "rsa_pss_saltlen:32",
                ],
            ))),
        ),
        (
            "another digest",
            auth(with_signature(openssl(
                &trusted.key(),
                PAYLOAD,
                &[
                    "-sha512",
                    "-sigopt",
                    "rsa_padding_mode:pss",
                    "-sigopt",
                    "rsa_pss_saltlen:max",
                ],
            ))),
        ),
        ("an expired certificate", auth(expired.body())),
        (
            "a pickle, well signed",
            auth(inner("application/x-python-serialize", b"\x80\x04N.")),
        ),
        (
            "a signed body in a signed body",
            auth(inner("application/data", &good.body())),
        ),
        (
            "JSON with a trailing comma, well signed",
            auth(inner("application/json", b"[[], {}, null,]")),
        ),
        (
            "5.2's layout, another body",
            auth(
                Fields {
                    payload: b"[[], {}, null]".to_vec(),
                    ..good.clone()
                }
                .raw_body(),
            ),
        ),
        ("5.2's layout, a stranger's", auth(strangers.raw_body())),
        (
            "5.2's layout, cut short",
            auth(
                STANDARD
                    .encode([good.signer.as_bytes(), &[0, 1, 7]].concat())
                    .into_bytes(),
            ),
        ),
    ];
    assert!(corpus.len() >= 30);
    let kept = stage.refused(&corpus).await;
    let signature = kept
        .iter()
        .filter(|(reason, _)| reason.starts_with("signature refused: "));
    assert!(signature.count() >= 30, "{kept:#?}");
    assert_eq!(
        kept.iter()
            .filter(|(reason, _)| reason.ends_with("has expired"))
            .count(),
        1,
        "{kept:#?}"
    );
    let raised = stage.celery.get("the-id", SOON).await.expect_err("none of them ran");
    assert_eq!(raised.exc_type, "DecodeError", "{raised:?}");

    // The good one runs, in both layouts. It does so again, and under another id: only the body is signed, not who may
    // do what with it, and no receiver can see that. docs/compatibility.md says so.
    for (id, body) in [
        ("first", good.body()),
        ("replayed", good.body()),
        ("5.2", good.raw_body()),
    ] {
        let task = NewTask {
            id: id.into(),
            task: "umbel.echo".into(),
            ..NewTask::default()
        };
        let raw = task.encode_with(&Body {
            content_type: "application/data".into(),
            ..Body::json(&body)
        });
        stage.push(&raw).await;
        assert_eq!(
            stage.celery.get(id, SOON).await,
            Ok(json!({"args": [0.0], "kwargs": {"a": 1, "b": 2}})),
            "{id}"
        );
    }
}

/// What our own signer makes is what openssl verifies by Celery's rules.
#[test]
fn our_signature_has_the_longest_salt() {
    let keys = Keys::new("ours");
    let task = NewTask {
        id: "i".into(),
        task: "t".into(),
        args: Json::of(&(1,)),
        ..NewTask::default()
    };
    let raw = signed_by(&keys)
        .encode(&task, Serializer::Auth, None)
        .expect("there is a key");
    let body = message::body(&raw).expect("we wrote it").bytes.into_owned();
    let fields = STANDARD.decode(body).expect("base64");
    let mut parts = fields
        .splitn(3, |byte| *byte == 0)
        .map(|part| part.strip_prefix(&[1]).unwrap_or(part));
    let (_, signature) = (
        parts.next(),
        STANDARD.decode(parts.next().expect("two fields")).expect("base64"),
    );
    let payload = fields
        .windows(7)
        .position(|window| window == b"utf-8\0\x01")
        .expect("its encoding")
        + 7;
    let folder = TempDir::new("verify");
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("the folder is ours");
        path
    };
    let (signature, payload) = (write("signature", &signature), write("payload", &fields[payload..]));
    let done = Command::new("openssl")
        .args([
            "dgst",
            "-sha256",
            "-sigopt",
            "rsa_padding_mode:pss",
            "-sigopt",
            "rsa_pss_saltlen:222",
            "-prverify",
        ])
        .arg(keys.key())
        .arg("-signature")
        .arg(signature)
        .arg(payload)
        .output()
        .expect("openssl is installed");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}
