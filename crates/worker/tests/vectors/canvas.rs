//! Workflows, retries: each capture's messages are sent, and what follows is Celery's.

use crate::capture::Capture;
use crate::compare::{Names, compare, match_all};
use crate::effects::Effects;
use crate::results::call;
use crate::stage::{SOON, Stage, play};

#[tokio::test]
async fn chains_and_callbacks_go_on_as_with_celery() {
    play(
        &[],
        &[
            "canvas-01-chain-run",
            "canvas-02-chain-immutable",
            "canvas-03-chain-failure",
            "canvas-04-link-one",
            "canvas-05-link-two",
            "canvas-06-errback-old-style",
            "canvas-08-errback-unregistered",
            "canvas-09-group-then-link-chain-end",
            "canvas-10-map-run",
            "canvas-11-starmap-run",
        ],
    )
    .await;
}

#[tokio::test]
async fn chords_go_on_as_with_celery() {
    play(
        &[],
        &[
            "canvas-20-chord-run",
            "canvas-21-chord-member-fails",
            "canvas-22-chord-body-errback",
            "canvas-23-chord-nested",
            "canvas-24-chord-body-chain",
            "canvas-25-chain-group-chain",
            "canvas-26-group-of-chains-chord",
            "canvas-33-chord-with-group-member",
            "canvas-35-chord-group-body",
            "canvas-37-chord-empty-header",
            "compat-01-chord-celery-5.6",
        ],
    )
    .await;
}

#[tokio::test]
async fn tasks_that_send_and_replace_do_it_as_celerys_do() {
    play(
        &[],
        &[
            "canvas-30-replace",
            "canvas-31-replace-group",
            "canvas-36-task-sends-subtask",
        ],
    )
    .await;
}

/// The client pushes the second member when the first, and what it added, have ended.
#[tokio::test]
async fn a_chord_grows_as_with_celery() {
    let capture = Capture::of("canvas-32-add-to-chord");
    let mut stage = Stage::with(&[]).await;
    let theirs = Effects::of(&capture.by_worker(), &[]);
    stage.forget();
    let mut own = Vec::new();
    for (_, command) in capture.by_client() {
        if command.text(0) == "LPUSH" {
            own.push(command.parts[2].clone());
        }
        stage.send(&command.parts).await;
        stage.until("the members so far", &own, |_| true).await;
    }
    let count = theirs.documents.len();
    let ours = stage
        .until(&capture.name, &own, |ours| ours.documents.len() >= count)
        .await;
    // The two members at index 0 have one score: their order is that of their ids, which are made anew.
    let (ours, theirs) = (sorted(ours), sorted(theirs));
    assert_eq!(compare(&ours, &theirs), Ok(()));
}

fn sorted(mut effects: Effects) -> Effects {
    for message in effects
        .messages
        .iter_mut()
        .filter(|message| message["headers"]["task"] == "proj.tsum")
    {
        let parts = message["body"][0][0].as_array_mut().unwrap();
        parts.sort_by_key(serde_json::Value::as_i64);
        message["headers"]["argsrepr"].take();
    }
    effects
}

/// Python workers with `result_chord_ordered` off keep the parts in a list; ours goes on with what is there.
#[tokio::test]
async fn parts_in_a_list_are_counted_and_read() {
    let capture = Capture::of("canvas-40-chord-unordered-list");
    let mut stage = Stage::with(&[]).await;
    let mut client = capture.by_client();
    let (_, last) = client.pop().unwrap();
    let worker = capture.by_worker();
    let first: Vec<_> = worker.iter().filter(|command| command.client == "lua").collect();
    let of = |name: &str| {
        first
            .iter()
            .find(|command| command.text(0) == name)
            .unwrap()
            .parts
            .clone()
    };
    // The first member has run in a Python worker.
    for command in &client[1..] {
        stage.send(&command.1.parts).await;
    }
    stage.send(&of("RPUSH")).await;
    stage.send(&of("SADD")).await;
    stage.forget();
    stage.send(&last.parts).await;
    let ours = stage
        .until(&capture.name, &[last.parts[2].clone()], |ours| {
            ours.documents.len() == 2
        })
        .await;
    let theirs = Effects::of(&worker, &[]);
    let mut names = Names::new();
    assert_eq!(
        match_all("messages", &ours.messages, &theirs.messages, &mut names),
        Ok(())
    );
    assert_eq!(ours.documents[1]["document"]["result"], serde_json::json!(6));
}

/// Celery calls a function of three arguments in its own process, and so does ours.
#[tokio::test]
async fn an_errback_that_celery_calls_itself_is_called() {
    let capture = Capture::of("canvas-07-errback-new-style");
    let mut stage = Stage::with(&[]).await;
    let (ours, theirs) = stage.play(&capture).await;
    assert_eq!(compare(&ours, &theirs), Ok(()));
    assert_eq!(ours.messages, Vec::<serde_json::Value>::new());
    let id = theirs.documents[0]["document"]["task_id"].as_str().unwrap();
    let told = format!("errback: {id} proj.fail ValueError: x [\"x\"]");
    stage.worker.says(SOON, &told).await;
    // A worker that has no such function sends it: the failed id comes before its own arguments.
    stage.forget();
    let sent = call("sent", "proj.errback_new", &serde_json::json!([id]));
    let raw = sent.encode();
    stage.send(&[b"LPUSH".to_vec(), b"celery".to_vec(), raw.clone()]).await;
    stage
        .until("the errback", &[raw], |ours| ours.documents.len() == 1)
        .await;
    stage
        .worker
        .says(SOON, &format!("errback: {id}  ValueError: x null"))
        .await;
}

#[tokio::test]
async fn a_retry_is_sent_as_celery_sends_it() {
    play(
        &["--retry-initial-backoff", "1s"],
        &[
            "retry-01-republish-early-ack",
            "retry-02-inside-chain",
            "canvas-34-chord-member-retries",
        ],
    )
    .await;
}
