//! Taking messages: what Celery's worker did with them, and where it lost or broke, what ours does instead.

use serde_json::{Value, json};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::redis::streams::StreamRangeReply;
use umbel_testkit::{Signal, eventually};

use crate::capture::Capture;
use crate::compare::{Names, match_all};
use crate::stage::{NODE, SOON, Stage, play, start};

/// Messages that wait in the queue, the next one first.
async fn waiting(stage: &mut Stage, queue: &str) -> Vec<Vec<u8>> {
    let mut messages: Vec<Vec<u8>> = stage.connection.lrange(queue, 0, -1).await.unwrap();
    messages.reverse();
    messages
}

/// What kombu keeps of messages that it has delivered.
async fn unacked(stage: &mut Stage) -> (Vec<(String, String)>, Vec<(String, f64)>) {
    let held = stage.connection.hgetall("unacked").await.unwrap();
    let index = stage
        .connection
        .zrange_withscores("unacked_index", 0, -1)
        .await
        .unwrap();
    (held, index)
}

/// Raw message and reason of what was laid aside.
async fn laid_aside(stage: &mut Stage, kind: &str) -> Vec<(Vec<u8>, String)> {
    let key = format!("umbel:{kind}:celery");
    let entries: StreamRangeReply = stage.connection.xrange_all(key).await.unwrap();
    let entries = entries.ids.iter();
    entries
        .map(|entry| {
            (
                entry.get("raw").unwrap_or_default(),
                entry.get("reason").unwrap_or_default(),
            )
        })
        .collect()
}

#[tokio::test]
async fn messages_run_and_their_results_are_celerys() {
    play(
        &[],
        &[
            "consume-02-early-ack",
            "consume-03-late-ack",
            "consume-10-unknown-task",
            "consume-12-minimal-accepted-message",
        ],
    )
    .await;
    // Acknowledged early, as in that capture, it ends alike.
    play(&["--ack", "early"], &["consume-02-early-ack"]).await;
    play(&["--worker-direct"], &["consume-14-worker-direct"]).await;
}

#[tokio::test]
async fn a_rejected_message_goes_back_or_fails_as_with_celery() {
    play(&[], &["consume-06-reject-drop"]).await;
    // Back to the end of its queue; Celery marks it, ours keeps its bytes and knows from Redis that it was here.
    let capture = Capture::of("consume-05-reject-requeue");
    let mut stage = Stage::with(&[]).await;
    let (ours, theirs) = stage.play(&capture).await;
    assert_eq!(
        match_all("results", &ours.documents, &theirs.documents, &mut Names::new()),
        Ok(())
    );
    let (_, pushed) = capture.by_client().remove(0);
    let back = |command: &&crate::monitor::Command| command.text(0) == "LPUSH" && command.text(1) == "celery";
    let back: Vec<_> = stage
        .done()
        .iter()
        .filter(back)
        .map(|command| command.parts[2].clone())
        .collect();
    assert_eq!(back, [pushed.parts[2].clone()]);
}

/// Celery holds it in memory, where a restart after an hour doubles it; ours parks it in Redis, held by nobody.
#[tokio::test]
async fn b1_a_message_for_later_is_parked_and_runs_once() {
    let capture = Capture::of("consume-09-eta-held-in-worker");
    let mut stage = Stage::with(&[]).await;
    let (_, pushed) = capture.by_client().remove(0);
    let mut envelope: Value = serde_json::from_slice(&pushed.parts[2]).unwrap();
    let eta = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(1500);
    envelope["headers"]["eta"] = json!(eta.to_string());
    let raw = envelope.to_string().into_bytes();
    stage.send(&[b"LPUSH".to_vec(), b"celery".to_vec(), raw.clone()]).await;
    let parked = eventually_parked(&mut stage).await;
    assert!(parked.ends_with(&raw), "byte for byte what came");
    assert_eq!(
        unacked(&mut stage).await,
        (vec![], vec![]),
        "nothing for kombu's sweepers"
    );
    let ours = stage
        .until("eta", std::slice::from_ref(&raw), |ours| !ours.documents.is_empty())
        .await;
    assert!(jiff::Timestamp::now() >= eta, "not before its time");
    let theirs = crate::effects::Effects::of(&capture.by_worker(), &[]);
    match_all("results", &ours.documents, &theirs.documents, &mut Names::new()).unwrap();
}

async fn eventually_parked(stage: &mut Stage) -> Vec<u8> {
    let mut connection = stage.connection.clone();
    umbel_testkit::eventually_some(SOON, "it is parked", async || {
        let members: Vec<Vec<u8>> = connection.zrange("umbel:delayed:celery", 0, -1).await.unwrap();
        members.into_iter().next()
    })
    .await
}

#[tokio::test]
async fn queues_take_turns() {
    let mut stage = Stage::with(&["--queue", "qa,qb"]).await;
    let capture = Capture::of("consume-04-two-queues-rotation");
    let (ours, _) = stage.play(&capture).await;
    let ran: Vec<i64> = ours
        .documents
        .iter()
        .map(|document| document["document"]["result"].as_i64().unwrap())
        .collect();
    assert_eq!(ran.len(), 3);
    assert_ne!(ran[2], 10, "the one of qb is not the last: {ran:?}");
}

/// Celery puts them back in reverse; ours takes none that it cannot run, so all keep their place and their bytes.
#[tokio::test]
async fn c6_what_waits_at_a_shutdown_keeps_its_order() {
    let capture = Capture::of("consume-07-warm-shutdown-restores-prefetched");
    let mut restored: Vec<Vec<u8>> = Vec::new();
    for command in &capture.commands {
        if command.text(0) == "RPUSH" {
            restored.push(command.parts[2].clone());
        }
    }
    assert_eq!(restored.len(), 4);
    let mut stage = Stage::with(&["--concurrency", "1", "--grace", "20s"]).await;
    for raw in &restored {
        stage.send(&[b"LPUSH".to_vec(), b"celery".to_vec(), raw.clone()]).await;
    }
    let mut connection = stage.connection.clone();
    eventually(SOON, "the first runs", async || {
        connection.hlen::<_, u64>("umbel:unacked").await.unwrap() == 1
    })
    .await;
    stage.worker.signal(Signal::Term);
    assert!(stage.worker.wait(SOON).await.success(), "{}", stage.worker.tail());
    assert_eq!(waiting(&mut stage, "celery").await, restored[1..]);
    assert_eq!(stage.connection.hlen("umbel:unacked").await, Ok(0));
}

/// Entries of Python workers are theirs: ours touches none, and runs what their sweepers put back.
#[tokio::test]
async fn d5_what_kombu_holds_is_left_alone_and_what_it_restores_runs() {
    let mut stage = Stage::with(&[]).await;
    let capture = Capture::of("consume-08-foreign-claim-restored-by-kombu");
    let claim: Vec<_> = capture
        .commands
        .iter()
        .filter(|command| command.client == "lua" && ["HSET", "ZADD"].contains(&command.text(0).as_str()))
        .take(2)
        .collect();
    for command in claim {
        stage.send(&command.parts).await;
    }
    // An overdue entry that is no JSON ends every Celery worker.
    let _: () = stage.connection.hset("unacked", "broken", "{").await.unwrap();
    let _: () = stage.connection.zadd("unacked_index", "broken", 1).await.unwrap();
    let before = unacked(&mut stage).await;
    assert_eq!(before.0.len(), 2);
    for name in [
        "consume-08-foreign-claim-restored-by-kombu",
        "consume-11-killed-worker-late-ack-restored",
    ] {
        let capture = Capture::of(name);
        let restored = capture
            .commands
            .iter()
            .find(|command| command.text(0) == "RPUSH")
            .unwrap();
        stage.forget();
        stage.send(&restored.parts).await;
        let own = std::slice::from_ref(&restored.parts[2]);
        let ours = stage.until(name, own, |ours| !ours.documents.is_empty()).await;
        let theirs = crate::effects::Effects::of(&capture.commands, own);
        match_all(name, &ours.documents, &theirs.documents, &mut Names::new()).unwrap();
    }
    assert_eq!(unacked(&mut stage).await, before);
    assert!(stage.worker.exit().is_none(), "the worker lives");
}

/// With Celery it stays away until the visibility timeout; here until the lease ends.
#[tokio::test]
async fn a2_c4_a_killed_workers_message_runs_again_byte_for_byte() {
    let capture = Capture::of("consume-11-killed-worker-late-ack-restored");
    let restored = capture
        .commands
        .iter()
        .find(|command| command.text(0) == "RPUSH")
        .unwrap();
    let mut stage = Stage::with(&[]).await;
    stage.send(&restored.parts).await;
    let mut connection = stage.connection.clone();
    eventually(SOON, "it runs", async || {
        connection.hlen::<_, u64>("umbel:unacked").await.unwrap() == 1
    })
    .await;
    // A Celery worker that died in the middle of a sweep keeps all of theirs from sweeping for five minutes.
    let _: () = stage.connection.set("unacked_mutex", "a dead worker").await.unwrap();
    stage.worker.kill();
    stage.worker = start(&stage.redis.url(), &["--name", "w2@lab"]);
    stage.forget();
    let ours = stage.until("killed", &[], |ours| !ours.documents.is_empty()).await;
    assert_eq!(ours.documents[0]["document"]["result"], json!("x"));
    let back: Vec<String> = ours.messages.iter().map(|message| message["to"].to_string()).collect();
    let raws: Vec<Vec<u8>> = stage
        .done()
        .iter()
        .filter(|command| {
            ["LPUSH", "RPUSH"].contains(&command.text(0).as_str()) && !command.text(1).contains(".reply.")
        })
        .map(|command| command.parts[2].clone())
        .collect();
    assert!(raws.iter().all(|raw| *raw == restored.parts[2]), "{back:?}");
}

/// Separator, steps and prefixes as the transport options of all participants; channels of remote control and events as
/// the prefix says.
#[tokio::test]
async fn names_of_keys_follow_the_options() {
    let custom = ["--priority-steps", "0,5", "--separator", "|"];
    let prefixed = ["--key-prefix", "pfx:", "--result-key-prefix", "rp_"];
    for (name, flags) in [
        ("consume-15-custom-key-names", &custom[..]),
        ("consume-16-global-keyprefix-worker", &prefixed[..]),
        ("consume-17-fanout-no-prefix-no-patterns", &[]),
    ] {
        let capture = Capture::of(name);
        let mut stage = Stage::with(flags).await;
        let (ours, theirs) = stage.play(&capture).await;
        assert_eq!(
            match_all(name, &ours.documents, &theirs.documents, &mut Names::new()),
            Ok(())
        );
        if name == "consume-16-global-keyprefix-worker" {
            let online = |events: &[Value]| -> Vec<Value> {
                let is_online = |event: &&Value| event["body"]["type"] == "worker-online";
                events.iter().filter(is_online).cloned().collect()
            };
            let (ours, theirs) = (online(&stage.all_effects().events), online(&theirs.events));
            assert_eq!(match_all(name, &ours, &theirs, &mut Names::new()), Ok(()));
        }
    }
}

/// All of them stop, loop, lose or are dropped in Celery, or run; `Some` is what ours stores under the id.
#[tokio::test]
async fn a8_d1_to_d4_hostile_elements_harm_nobody_and_are_kept() {
    let capture = Capture::of("consume-18-hostile-and-odd-list-elements");
    let cases = capture.expect["cases"].as_array().unwrap().clone();
    let elements = capture.pushed();
    assert_eq!(elements.len(), cases.len());
    let mut stage = Stage::with(&[]).await;
    for (_, raw) in &elements {
        stage.send(&[b"LPUSH".to_vec(), b"celery".to_vec(), raw.clone()]).await;
    }
    let ours = stage.until("hostile", &[], |ours| ours.documents.len() >= 20).await;
    let mut kept = laid_aside(&mut stage, "quarantine").await;
    kept.extend(laid_aside(&mut stage, "dead").await);
    for ((_, raw), case) in elements.iter().zip(&cases) {
        let envelope: Value = serde_json::from_slice(raw).unwrap_or_default();
        let id = envelope["headers"]["id"].as_str().unwrap_or_default();
        let key = format!("celery-task-meta-{id}");
        let status = ours
            .documents
            .iter()
            .find(|document| document["key"] == key.as_str())
            .map(|document| document["document"]["status"].as_str().unwrap_or_default());
        let reason = kept
            .iter()
            .find(|(bytes, _)| bytes == raw)
            .map(|(_, reason)| reason.as_str());
        match case["class"].as_str().unwrap() {
            "revoked" => assert_eq!((status, reason), (Some("REVOKED"), None), "{case}"),
            // Celery loses some for what ours does not need: the delivery's own facts.
            "runs" | "lost+reconnect" => assert_eq!((status, reason), (Some("SUCCESS"), None), "{case}"),
            _ => {
                assert!(
                    reason.is_some_and(|reason| !reason.is_empty()),
                    "{case}: kept with a reason"
                );
                assert_eq!(
                    status,
                    (!id.is_empty()).then_some("FAILURE"),
                    "{case}: who waits learns it"
                );
            }
        }
    }
    assert!(stage.worker.exit().is_none(), "the worker lives");
    assert!(!stage.worker.log().contains("panicked"), "{}", stage.worker.tail());
}

/// Online at the start, offline at the end, and nothing is left behind but what is kept on purpose.
#[tokio::test]
async fn a_worker_comes_and_goes_as_celerys_does() {
    let capture = Capture::of("consume-01-worker-startup-and-shutdown");
    let mut stage = Stage::with(&[]).await;
    stage.worker.signal(Signal::Term);
    assert!(stage.worker.wait(SOON).await.success(), "{}", stage.worker.tail());
    let mut ours = stage.effects(&[]).events;
    ours.retain(|event| event["body"]["type"] != "worker-heartbeat");
    let theirs = crate::effects::Effects::of(&capture.commands, &[]).events;
    let types: Vec<&Value> = theirs.iter().map(|event| &event["body"]["type"]).collect();
    assert_eq!(types, ["worker-online", "worker-offline"]);
    match_all("events", &ours, &theirs, &mut Names::new()).unwrap();
    let left: Vec<String> = stage.connection.keys("*pidbox*").await.unwrap();
    assert_eq!(left, Vec::<String>::new(), "no list and no binding of {NODE}");
}
