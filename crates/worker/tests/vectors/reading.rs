//! What our client makes of results that others have stored, and others of ours.

use std::time::Duration;

use serde_json::{Value, json};
use umbel_broker::Config;
use umbel_client::{Client, Options, ResultError};
use umbel_protocol::canvas::ResultTuple;
use umbel_protocol::json::Json;
use umbel_testkit::redis::AsyncCommands;

use crate::capture::Capture;
use crate::results::call;
use crate::stage::{SOON, Stage};

async fn client(stage: &Stage) -> Client {
    Client::connect(Config::new(&stage.redis.url()), Options::default())
        .await
        .unwrap()
}

/// A group that Celery's client saved is found by ours, with its members' results; saved by ours, it is where Celery's
/// looks for it, byte for byte.
#[tokio::test]
async fn a_group_that_celery_saved_is_restored_and_one_of_ours_is_celerys() {
    let capture = Capture::of("result-15-group-save-restore-delete");
    let saved = capture
        .commands
        .iter()
        .find(|command| command.text(0) == "SETEX")
        .unwrap();
    let group = saved.text(1).replace("celery-taskset-meta-", "");
    let members: Vec<String> = serde_json::from_value(capture.expect["members"].clone()).unwrap();
    let mut stage = Stage::with(&[]).await;
    let mut own = Vec::new();
    for (number, id) in members.iter().enumerate() {
        own.push(call(id, "proj.add", &json!([number, 10])).encode());
        stage
            .send(&[b"LPUSH".to_vec(), b"celery".to_vec(), own[number].clone()])
            .await;
    }
    stage.until("the members", &own, |ours| ours.documents.len() == 3).await;
    let client = client(&stage).await;
    assert!(client.saved(&group).await.unwrap().is_none(), "not yet");
    stage.send(&saved.parts).await;
    let restored = client.saved(&group).await.unwrap().expect("it is saved");
    assert_eq!(restored.ids(), members);
    assert_eq!(restored.get(SOON).await.unwrap(), Json::of(&json!([10, 11, 12])));

    // Deleted as Celery deletes it, and saved anew by ours.
    let deleted = capture
        .commands
        .iter()
        .find(|command| command.text(0) == "DEL")
        .unwrap();
    assert_eq!(stage.send(&deleted.parts).await, umbel_testkit::redis::Value::Int(1));
    restored.save().await.unwrap();
    let stored: Vec<u8> = stage.connection.get(saved.text(1)).await.unwrap();
    assert_eq!(String::from_utf8(stored).unwrap(), saved.text(3));
    let left: i64 = stage.connection.ttl(saved.text(1)).await.unwrap();
    let theirs: i64 = saved.text(2).parse().unwrap();
    assert!((theirs - 60..=theirs).contains(&left), "{left} s");
    assert!(restored.unsave().await.unwrap());
    assert_eq!(stage.connection.exists(saved.text(1)).await, Ok(false));
    let tuple = ResultTuple::parse(&Json::of(&capture.expect["document"]["result"])).unwrap();
    assert_eq!(*restored.tuple(), tuple);
}

/// A worker of another `result_serializer`: what it stored is read, and its SUCCESS is final.
#[tokio::test]
async fn a_result_in_another_serializer_is_read_and_stays() {
    let capture = Capture::of("result-21-msgpack");
    let mut stage = Stage::with(&[]).await;
    let stored = capture
        .commands
        .iter()
        .find(|command| command.text(0) == "SETEX")
        .unwrap();
    stage.send(&stored.parts).await;
    let id = capture.expect["document"]["task_id"].as_str().unwrap();
    let client = client(&stage).await;
    let read = client.handle(id).state().await.unwrap();
    assert_eq!(read.document.to::<Value>().unwrap(), capture.expect["document"]);
    // A run that fails under its id does not overwrite it, in whatever form ours would be.
    let again = call(id, "proj.fail", &json!(["late"])).encode();
    let other = call("other", "proj.add", &json!([1, 1])).encode();
    for message in [&again, &other] {
        stage
            .send(&[b"LPUSH".to_vec(), b"celery".to_vec(), message.clone()])
            .await;
    }
    stage
        .until("both", &[again, other], |ours| !ours.documents.is_empty())
        .await;
    let kept: Vec<u8> = stage.connection.get(stored.text(1)).await.unwrap();
    assert_eq!(kept, stored.parts[3]);
}

/// Documents as a foreign worker might write them: ours makes of each what Celery's client makes of it, or says that it
/// cannot be read; none of them ends who asks.
#[tokio::test]
async fn documents_of_foreign_workers_are_read_as_celerys_client_reads_them() {
    let name = "result-25-client-reading-rules";
    let path = umbel_testkit::repository().join(format!("crates/protocol/tests/golden/{name}.json"));
    let vector: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let stage = Stage::with(&[]).await;
    let client = client(&stage).await;
    let mut connection = stage.connection.clone();
    let mut read = Vec::new();
    for dump in vector["redis"].as_array().unwrap() {
        let _: () = connection
            .set(dump["key"].as_str().unwrap(), dump["value"].as_str().unwrap())
            .await
            .unwrap();
        let got = client.handle("x").get(Duration::from_millis(300)).await;
        read.push(match got {
            Ok(value) => value.to_string(),
            Err(ResultError::Remote(error)) => error.to_string(),
            Err(ResultError::Timeout { .. }) => "waits".to_owned(),
            Err(other) => format!("unreadable: {other}"),
        });
    }
    // Celery's client needs the id in the document; ours knows whose it has asked for.
    assert_eq!((read[0].as_str(), read[1].as_str()), ("1", "1"));
    assert!(
        read[2].contains("RustError") && read[2].contains("boom") && read[2].contains('7'),
        "{}",
        read[2]
    );
    assert!(read[3].contains("RustError"), "{}", read[3]);
    assert!(
        read[4].contains("ValueError") && read[4].contains("plain"),
        "{}",
        read[4]
    );
    assert!(read[9].contains("TaskRevokedError"), "{}", read[9]);
    assert_eq!(read[10], "waits", "a state of its own is no end");
    // Celery's client raises an error of its own at these: so is ours told that it failed, or that it cannot be read.
    for odd in [5, 6, 7, 8] {
        assert!(
            !read[odd].is_empty() && read[odd] != "waits" && read[odd] != "1",
            "{odd}: {}",
            read[odd]
        );
    }
    assert_eq!(stage.effects(&[]).documents, Vec::<Value>::new(), "nothing was written");
}
