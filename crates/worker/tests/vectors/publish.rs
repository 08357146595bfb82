//! Messages of real producers, pushed verbatim: each runs with the arguments that its producer gave, or ends as it must.

use serde_json::{Value, json};
use umbel_testkit::eventually;
use umbel_testkit::redis::AsyncCommands;

use crate::capture::Capture;
use crate::effects::{Effects, body};
use crate::stage::{SOON, Stage};

/// Pushes what the client pushed, all at once, and answers what came of it.
async fn push(stage: &mut Stage, name: &str, documents: usize) -> (Vec<Value>, Effects) {
    let capture = Capture::of(name);
    stage.forget();
    let mut own = Vec::new();
    for (_, command) in capture.by_client() {
        if command.text(0) == "LPUSH" {
            own.push(command.parts[2].clone());
        }
        stage.send(&command.parts).await;
    }
    let messages = own.iter().map(|raw| serde_json::from_slice(raw).unwrap()).collect();
    let effects = stage.until(name, &own, |ours| ours.documents.len() >= documents).await;
    (messages, effects)
}

/// Each message's task answers `[args, kwargs]`, so the result shows what it was called with.
fn assert_ran(name: &str, messages: &[Value], ours: &Effects) {
    for message in messages {
        let called = body(message);
        let id = message["headers"]["id"].as_str().or(called["id"].as_str()).unwrap();
        let key = format!("celery-task-meta-{id}");
        let stored = ours
            .documents
            .iter()
            .find(|stored| stored["key"].as_str().is_some_and(|stored| stored.ends_with(&key)))
            .unwrap_or_else(|| panic!("{name}: {id} has a result"));
        let document = &stored["document"];
        let expected = if called.is_array() {
            json!([called[0], called[1]])
        } else {
            json!([called["args"], called["kwargs"]]) // Protocol 1.
        };
        assert_eq!(document["status"], "SUCCESS", "{name}: {document}");
        assert_eq!(document["result"], expected, "{name}");
    }
}

async fn all_run(flags: &[&str], names: &[&str]) {
    let mut stage = Stage::with(flags).await;
    for name in names {
        let count = Capture::of(name).by_client().len();
        let (messages, ours) = push(&mut stage, name, count).await;
        assert_eq!(messages.len(), count, "{name}");
        assert_ran(name, &messages, &ours);
    }
}

#[tokio::test]
async fn every_producers_message_runs_with_its_arguments() {
    all_run(
        &[],
        &[
            "publish-01-delay-full-trace",
            "publish-02-send-task-by-name",
            "publish-03-zero-args",
            "publish-04-priority-0-to-9",
            "publish-06-priority-null",
            "publish-07-countdown",
            "publish-10-expires-seconds",
            "publish-11-expires-datetime",
            "publish-21-json-special-types",
            "publish-22-unicode",
            "publish-30-protocol-1",
            "publish-32-body-encoding-utf8",
            "publish-33-queue-x-expires",
            "publish-34-task-sent-event",
            "publish-37-group",
            "publish-42-stamps",
            "publish-43-long-args-repr",
            "compat-02-publish-celery-5.2",
            "beat-01-interval",
            "beat-03-crontab",
            "beat-04-two-beats-duplicate",
        ],
    )
    .await;
}

#[tokio::test]
async fn queues_steps_and_prefixes_are_the_producers() {
    all_run(&["--queue", "images"], &["publish-23-queue"]).await;
    all_run(&["--queue", "beatq"], &["beat-02-interval-options"]).await;
    let steps = ["--priority-steps", "0,1,2,3,4,5,6,7,8,9", "--separator", ":"];
    all_run(&steps, &["publish-05-priority-custom-steps-sep"]).await;
    all_run(&["--key-prefix", "pfx:"], &["publish-29-global-keyprefix"]).await;
}

/// Lower numbers first: all ten wait before the first is taken.
#[tokio::test]
async fn the_lowest_step_is_served_first() {
    let mut stage = Stage::with(&[]).await;
    let (ours, _) = stage.play(&Capture::of("publish-04-priority-0-to-9")).await;
    let ran: Vec<&str> = ours
        .documents
        .iter()
        .map(|stored| stored["key"].as_str().unwrap())
        .collect();
    let steps: Vec<u32> = ran
        .iter()
        .map(|key| key[key.len() - 1..].parse::<u32>().unwrap() / 3)
        .collect();
    assert_eq!(ran.len(), 10);
    assert!(steps.is_sorted(), "{ran:?}");
}

/// Two queues bound to one key get copies with one id and one delivery tag. In kombu's record the second overwrites the
/// first, and the first acknowledgement removes both; here each is held by itself.
#[tokio::test]
async fn a5_copies_of_one_publication_run_each_by_itself() {
    for (name, queues) in [
        ("publish-25-topic-exchange", "feed,feed_imp"),
        ("publish-26-direct-exchange", "d1,d2"),
    ] {
        let mut stage = Stage::with(&["--queue", queues]).await;
        let (messages, ours) = push(&mut stage, name, 1).await;
        assert_eq!(messages.len(), 2);
        assert_ran(name, &messages, &ours);
        let task = messages[0]["headers"]["task"].as_str().unwrap();
        let stats = stage.said("control-10-stats").await;
        assert_eq!(stats["total"][task], json!(2), "{name}");
    }
}

#[tokio::test]
async fn times_are_kept() {
    let mut stage = Stage::with(&[]).await;
    for (name, due) in [
        ("publish-08-eta-aware-offset", 1_927_838_106.789_012),
        ("publish-09-eta-naive", 1_927_857_906.0),
    ] {
        let (_, pushed) = Capture::of(name).by_client().remove(0);
        stage.send(&pushed.parts).await;
        let mut connection = stage.connection.clone();
        eventually(SOON, name, async || {
            let parked: Vec<(Vec<u8>, f64)> = connection
                .zrange_withscores("umbel:delayed:celery", 0, -1)
                .await
                .unwrap();
            let is_kept =
                |(member, score): &(Vec<u8>, f64)| member.ends_with(&pushed.parts[2]) && (score - due).abs() < 1e-3;
            parked.iter().any(is_kept)
        })
        .await;
    }
}

#[tokio::test]
async fn what_came_too_late_is_revoked() {
    let mut stage = Stage::with(&[]).await;
    let (messages, ours) = push(&mut stage, "publish-12-expires-in-the-past", 1).await;
    let document = &ours.documents[0]["document"];
    assert_eq!(document["task_id"], messages[0]["headers"]["id"]);
    assert_eq!(
        (&document["status"], &document["result"]["exc_message"]),
        (&json!("REVOKED"), &json!(["expired"]))
    );
}

#[tokio::test]
async fn options_of_the_caller_are_obeyed() {
    let mut stage = Stage::with(&[]).await;
    // `ignore_result`, limits, a name for show: it runs and leaves no result.
    push(&mut stage, "publish-31-options", 0).await;
    assert_eq!(stage.said("control-10-stats").await["total"]["demo.o"], json!(1));
    assert_eq!(stage.effects(&[]).documents, Vec::<Value>::new());
}

/// Pickle can run any program, so it is not even decoded: kept, with a reason, and who waits learns it.
#[tokio::test]
async fn pickle_is_refused_unread() {
    let mut stage = Stage::with(&[]).await;
    let (messages, ours) = push(&mut stage, "publish-20-pickle", 1).await;
    let document = &ours.documents[0]["document"];
    assert_eq!(
        (&document["status"], &document["task_id"]),
        (&json!("FAILURE"), &messages[0]["headers"]["id"])
    );
    assert!(
        document["result"]
            .to_string()
            .contains("application/x-python-serialize"),
        "{document}"
    );
    let kept: u64 = stage.connection.xlen("umbel:quarantine:celery").await.unwrap();
    assert_eq!(kept, 1);
}

/// Each with the arguments that its capture was made from.
async fn runs_as_told(flags: &[&str], names: &[&str]) {
    let mut stage = Stage::with(flags).await;
    for name in names {
        let expect = Capture::of(name).expect;
        let (messages, ours) = push(&mut stage, name, 1).await;
        let document = &ours.documents[0]["document"];
        assert_eq!(document["task_id"], messages[0]["headers"]["id"], "{name}");
        let called = match &expect["payload"] {
            Value::Array(payload) => json!([payload[0], payload[1]]),
            _ => json!([expect["args"], bytes_as_kombu(expect["kwargs"].clone())]),
        };
        let (status, result) = (&document["status"], &document["result"]);
        assert_eq!((status, result), (&json!("SUCCESS"), &called), "{name}: {document}");
    }
}

/// Bytes as kombu's JSON has them; captures have them shorter.
fn bytes_as_kombu(mut value: Value) -> Value {
    if let Some(bytes) = value.get("b64").cloned() {
        return json!({"__type__": "base64", "__value__": bytes});
    }
    if let Some(fields) = value.as_object_mut() {
        fields
            .values_mut()
            .for_each(|field| *field = bytes_as_kombu(field.take()));
    }
    value
}

#[tokio::test]
async fn compressed_messages_run() {
    let names = [
        "publish-13-compression-zlib",
        "publish-14-compression-bzip2",
        "publish-15-compression-lzma",
        "publish-16-compression-brotli",
        "publish-17-compression-zstd",
    ];
    runs_as_told(&[], &names).await;
}

#[tokio::test]
async fn other_serializers_run_where_they_are_accepted() {
    let accept = ["--accept", "json,msgpack,yaml"];
    runs_as_told(&accept, &["publish-18-msgpack", "publish-19-yaml"]).await;
    // Elsewhere they are refused like pickle.
    let mut stage = Stage::with(&[]).await;
    for name in ["publish-18-msgpack", "publish-19-yaml"] {
        let (_, ours) = push(&mut stage, name, 1).await;
        assert_eq!(ours.documents[0]["document"]["status"], "FAILURE", "{name}");
    }
}

/// Signed by Celery 5.7 and by 5.2, in its other layout; unsigned messages are refused then.
#[tokio::test]
async fn signed_messages_run_where_their_certificate_counts() {
    let names = ["publish-50-signed-auth", "compat-03-signed-auth-celery-5.2"];
    let folder = umbel_testkit::TempDir::new("certificates");
    // Both were signed with the same key.
    let [pem, other] = names.map(|name| Capture::of(name).expect["certificate_pem"].clone());
    assert_eq!(pem, other);
    std::fs::write(folder.path().join("lab.pem"), pem.as_str().unwrap()).unwrap();
    let path = folder.path().to_str().unwrap();
    let flags = ["--accept", "auth", "--security-certificates", path];
    runs_as_told(&flags, &names).await;
    let mut stage = Stage::with(&flags).await;
    let (_, ours) = push(&mut stage, "publish-01-delay-full-trace", 1).await;
    assert_eq!(ours.documents[0]["document"]["status"], "FAILURE");
}

/// One worker for producers of both: Celery's workers of the one read none of the other.
#[tokio::test]
async fn e9_both_generations_of_signatures_are_read() {
    let names = ["publish-50-signed-auth", "compat-03-signed-auth-celery-5.2"];
    let folder = umbel_testkit::TempDir::new("generations");
    let pem = Capture::of(names[0]).expect["certificate_pem"].clone();
    std::fs::write(folder.path().join("lab.pem"), pem.as_str().unwrap()).unwrap();
    let certificates = folder.path().to_str().unwrap();
    let mut stage = Stage::with(&["--accept", "auth", "--security-certificates", certificates]).await;
    let mut statuses = Vec::new();
    for name in names {
        let (_, ours) = push(&mut stage, name, 1).await;
        statuses.push(ours.documents[0]["document"]["status"].clone());
    }
    assert_eq!(statuses, ["SUCCESS", "SUCCESS"]);
}

/// Integers of any size, NaN and the infinities come back byte for byte.
#[tokio::test]
async fn d8_numbers_that_json_has_not_come_back_as_they_came() {
    let capture = Capture::of("publish-44-nan-infinity-bigint");
    let mut stage = Stage::with(&[]).await;
    let (_, pushed) = capture.by_client().remove(0);
    stage.send(&pushed.parts).await;
    stage.until(&capture.name, &[], |ours| !ours.documents.is_empty()).await;
    let id = "c151027f-829d-4eca-b13d-082cd3a7b245";
    let stored: String = stage.connection.get(format!("celery-task-meta-{id}")).await.unwrap();
    let numbers = "[NaN, Infinity, -Infinity, Infinity, 1606938044258990275541962092341162602522202993782792835301376, \
                   1.0, -0.0, 1e-07]";
    assert!(stored.contains(&format!("\"result\": {numbers}, ")), "{stored}");
}

/// Each task of a workflow runs once, and all succeed.
#[tokio::test]
async fn workflows_of_producers_run_to_their_end() {
    let mut stage = Stage::with(&[]).await;
    for (name, tasks) in [
        ("publish-35-link-and-link-error", 3),
        ("publish-36-chain", 3),
        ("publish-38-chord", 4),
        ("publish-39-map-starmap-chunks", 4),
        ("publish-40-chain-with-group-becomes-chord", 4),
        ("publish-41-nested-chord", 5),
    ] {
        let (_, ours) = push(&mut stage, name, tasks).await;
        let mut ids: Vec<&str> = ours
            .documents
            .iter()
            .map(|stored| stored["key"].as_str().unwrap())
            .collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!((all, ids.len()), (tasks, tasks), "{name}");
        for stored in &ours.documents {
            assert_eq!(stored["document"]["status"], "SUCCESS", "{name}: {stored}");
        }
    }
}
