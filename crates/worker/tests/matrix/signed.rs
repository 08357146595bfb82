//! Signed messages: nobody accepts anything else, and everybody knows both signers.

use jiff::Timestamp;
use serde_json::json;
use umbel_client::Options;
use umbel_codec::{Codec, Digest, Keyring, Options as CodecOptions, Serializer, Signer as Signs};
use umbel_testkit::{CeleryVersion, ServerKind, Signer, TempDir};

use crate::cell::{Case, Producer, Runner};
use crate::stage::Setup;
use crate::table::{rows, run};

const V52: Producer = Producer::Celery(CeleryVersion::V5_2);
const LAYOUT: &str =
    "Celery 5.5 changed the layout of signed messages: those of 5.2 and of later ones cannot read each other";
const NODE: &str = "celery-node cannot sign";

/// A key, as our client has it.
fn codec(signer: &Signer, trusted: &TempDir) -> Codec {
    let read = |path: std::path::PathBuf| std::fs::read(path).expect("it was just made");
    let key = String::from_utf8(read(signer.key())).expect("PEM is text");
    let mut keyring = Keyring::new(Digest::Sha256, Timestamp::now);
    for file in std::fs::read_dir(trusted.path()).expect("it was just made").flatten() {
        keyring.add(&read(file.path())).expect("a certificate");
    }
    Codec::new(CodecOptions {
        accept: vec![Serializer::Auth],
        keyring: Some(keyring),
        signer: Some(Signs::new(&key, &read(signer.certificate()), Digest::Sha256).expect("a pair")),
        ..CodecOptions::default()
    })
}

#[tokio::test]
async fn signed_by_every_producer_for_every_worker() {
    let (python, rust) = (Signer::new("python"), Signer::new("rust"));
    let trusted = TempDir::new("trusted");
    for (signer, name) in [(&python, "python.pem"), (&rust, "rust.pem")] {
        std::fs::copy(signer.certificate(), trusted.path().join(name)).expect("the folder is ours");
    }
    let text = |path: std::path::PathBuf| path.to_str().expect("the folder's name is ours").to_owned();
    let mut settings = python.settings();
    settings["security_cert_store"] = json!(trusted.path().join("*.pem").to_str());
    settings["task_serializer"] = json!("auth");
    settings["accept_content"] = json!(["auth"]);
    settings["result_accept_content"] = json!(["json"]);
    let flags = [
        ("--accept", "auth".to_owned()),
        ("--security-certificates", text(trusted.path().to_owned())),
        ("--security-key", text(rust.key())),
        ("--security-certificate", text(rust.certificate())),
    ];
    let setup = Setup {
        flags: flags
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect(),
        worker: settings.clone(),
        client: settings,
        options: Options {
            codec: codec(&rust, &trusted),
            serializer: Serializer::Auth,
            ..Options::default()
        },
        ..Setup::plain(ServerKind::of_this_run(), &Runner::ALL)
    };
    const NAMES: [&str; 8] = [
        "plain", "kwargs", "numbers", "failure", "chain", "chord", "link", "zstd",
    ];
    let mut cases: Vec<Case> = rows(&NAMES);
    for case in &mut cases {
        case.node = Err(NODE);
        case.gaps = &[(V52, Runner::Celery57, LAYOUT)];
    }
    run("signed", setup, &cases).await;
}
