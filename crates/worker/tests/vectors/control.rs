//! Remote control: each captured request is published verbatim, and our answer is Celery's.

use serde_json::{Value, json};
use umbel_protocol::message::NewTask;
use umbel_testkit::eventually;
use umbel_testkit::redis::AsyncCommands;

use crate::capture::Capture;
use crate::compare::{Names, same};
use crate::effects::Effects;
use crate::results::call;
use crate::stage::{SOON, Stage};

/// Binding of the client and its request, which expires later than now.
fn request(capture: &Capture) -> Vec<Vec<Vec<u8>>> {
    let publish = capture
        .commands
        .iter()
        .find(|command| command.text(0) == "PUBLISH" && command.text(1).ends_with(".pidbox"))
        .expect("a request");
    let envelope: Value = serde_json::from_slice(&publish.parts[2]).expect("JSON");
    let body = crate::effects::body(&envelope);
    let mut commands = Vec::new();
    if let Some(client) = body["reply_to"]["routing_key"].as_str() {
        let member = format!("{client}\u{6}\u{16}\u{6}\u{16}{client}.reply.celery.pidbox");
        let key = b"_kombu.binding.reply.celery.pidbox".to_vec();
        commands.push(vec![b"SADD".to_vec(), key, member.into_bytes()]);
    }
    let expires = envelope["headers"]["expires"].to_string();
    let now = jiff::Timestamp::now().as_second() + 60;
    let payload = publish.text(2).replace(&expires, &now.to_string());
    commands.push(vec![
        b"PUBLISH".to_vec(),
        publish.parts[1].clone(),
        payload.into_bytes(),
    ]);
    commands
}

/// Plays a request; answers ours and theirs, or nothing where Celery did not answer.
async fn ask(stage: &mut Stage, name: &str) -> (Option<Value>, Option<Value>) {
    let capture = Capture::of(name);
    let theirs = Effects::of(&capture.commands, &[]).answers;
    stage.forget();
    for command in request(&capture) {
        stage.send(&command).await;
    }
    if theirs.is_empty() {
        // Whatever it would have said comes before the answer to the next question.
        for command in request(&Capture::of("control-16-clock")) {
            stage.send(&command).await;
        }
        let answers = stage.answers(name, 1).await;
        let own = answers.iter().find(|answer| !is_clock(answer)).cloned();
        return (own, None);
    }
    let ours = stage.answers(name, 1).await.remove(0);
    (Some(ours), Some(theirs[0].clone()))
}

fn is_clock(answer: &Value) -> bool {
    let body = answer["body"].as_object().expect("an object");
    body.values().all(|answer| answer.get("clock").is_some())
}

impl Stage {
    /// Waits for so many answers.
    async fn answers(&self, what: &str, count: usize) -> Vec<Value> {
        let mut answers = Vec::new();
        eventually(SOON, what, async || {
            answers = self.effects(&[]).answers;
            answers.len() >= count
        })
        .await;
        answers
    }

    /// What a node said.
    pub(crate) async fn said(&mut self, name: &str) -> Value {
        let (ours, _) = ask(self, name).await;
        let ours = ours.unwrap_or_else(|| panic!("{name} is answered"));
        let body = ours["body"].as_object().expect("an object");
        body.values().next().expect("a node").clone()
    }
}

/// Every field of the answer: list, ticket, reply address, node, words.
#[tokio::test]
async fn answers_are_celerys() {
    let mut stage = Stage::with(&["--concurrency", "2", "--queue", "celery,extra"]).await;
    let mut differ = Vec::new();
    for name in [
        "control-01-ping-full-trace",
        "control-02-ping-destination",
        "control-03-ping-pattern",
        "control-04-ping-pcre",
        "control-05-no-match",
        "control-12-active-queues",
        "control-16-clock",
        "control-17-revoke",
        "control-18-revoke-list-reply",
        "control-22-rate-limit",
        "control-23-rate-limit-unknown",
        "control-24-time-limit",
        "control-25-pool-grow",
        "control-26-pool-shrink",
        "control-27-autoscale-off",
        "control-28-add-consumer",
        "control-29-cancel-consumer",
        "control-34-heartbeat",
        "control-35-unknown-command",
        "control-36-bad-arguments",
        "control-37-pool-restart",
        "control-38-revoke-by-stamped-headers",
        "control-45-cast-not-for-us",
        "compat-04-mingle-hello-celery-5.6",
    ] {
        let (mut ours, mut theirs) = ask(&mut stage, name).await;
        for answer in [&mut ours, &mut theirs].into_iter().flatten() {
            as_sets(answer);
        }
        let differs = match (&ours, &theirs) {
            (Some(ours), Some(theirs)) => same(ours, theirs, "", &mut Names::new()).err(),
            (None, None) => None,
            _ => Some(format!("ours {ours:?}, Celery's {theirs:?}")),
        };
        differ.extend(differs.map(|differs| format!("{name}: {differs}")));
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

/// Ids of which neither side says an order.
fn as_sets(answer: &mut Value) {
    let Some(body) = answer["body"].as_object_mut() else {
        return;
    };
    for said in body.values_mut() {
        if let Some(ok) = said["ok"].as_str()
            && let (Some(open), Some(close)) = (ok.find('{'), ok.find('}'))
            && ok.starts_with("tasks ")
        {
            let mut ids: Vec<&str> = ok[open + 1..close].split(", ").collect();
            ids.sort_unstable();
            said["ok"] = json!(format!("tasks {{{}}}{}", ids.join(", "), &ok[close + 1..]));
        }
        // 5.6 sends when each was revoked, which nobody needs; 5.7 sends ids alone.
        if let Some(revoked) = said["revoked"].as_object() {
            said["revoked"] = json!(revoked.keys().collect::<Vec<_>>());
        }
        if said["revoked"].is_array() {
            said["revoked"] = json!([]); // Compared in its own test: each capture had other revokes before.
        }
    }
}

/// The captured worker ran two tasks, had a third in its memory and a fourth for later; ours leaves the third in Redis.
#[tokio::test]
async fn tasks_are_shown_as_celery_shows_them() {
    let mut stage = Stage::with(&["--concurrency", "2", "--queue", "celery,extra"]).await;
    let active = answer("control-06-active");
    let reserved = answer("control-08-reserved")[0].clone();
    let scheduled = answer("control-09-scheduled")[0].clone();
    let mut connection = stage.connection.clone();
    for task in [&active[0], &active[1], &reserved, &scheduled["request"]] {
        let (id, name) = (task["id"].as_str().unwrap(), task["name"].as_str().unwrap());
        let is_later = scheduled["request"]["id"] == id;
        let eta = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3600);
        let message = NewTask {
            eta: is_later.then_some(eta),
            ..call(id, name, &task["args"])
        };
        stage
            .send(&[b"LPUSH".to_vec(), b"celery".to_vec(), message.encode()])
            .await;
        eventually(SOON, "it is taken, or both slots are", async || {
            connection.llen::<_, u64>("celery").await.unwrap() == 0
                || connection.hlen::<_, u64>("umbel:unacked").await.unwrap() == 2
        })
        .await;
    }
    for name in ["control-06-active", "control-07-active-safe"] {
        let (ours, theirs) = (by_id(stage.said(name).await), by_id(late(answer(name))));
        assert_eq!(same(&ours, &theirs, name, &mut Names::new()), Ok(()));
    }
    assert_eq!(
        stage.said("control-08-reserved").await,
        json!([]),
        "it waits in the list"
    );
    // What waits behind a full worker is not taken, and so not known to be for later.
    let known = stage.said("control-13-query-task").await;
    let theirs = late(answer("control-13-query-task"));
    let running = active[0]["id"].as_str().unwrap();
    assert_eq!(
        same(&known[running], &theirs[running], "query_task", &mut Names::new()),
        Ok(())
    );
    assert!(known["nope"].is_null());
    for name in ["control-20-revoke-terminate", "control-21-terminate"] {
        assert_eq!(stage.said(name).await, answer(name));
    }
    // Both have ended, the third runs, the fourth is put aside.
    eventually(SOON, "the fourth is parked", async || {
        connection.zcard::<_, u64>("umbel:delayed:celery").await.unwrap() == 1
    })
    .await;
    let ours = stage.said("control-09-scheduled").await;
    let theirs = json!([scheduled]);
    assert_eq!(same(&ours, &theirs, "scheduled", &mut Names::new()), Ok(()));
}

/// What the node of a capture answered.
fn answer(name: &str) -> Value {
    let answers = Effects::of(&Capture::of(name).commands, &[]).answers;
    let body = answers[0]["body"].as_object().expect("an object").clone();
    body.values().next().expect("a node").clone()
}

/// Ours acknowledges when a task has ended, Celery's when it begins.
fn late(mut answer: Value) -> Value {
    match &mut answer {
        Value::Array(items) => items.iter_mut().for_each(|item| *item = late(item.take())),
        Value::Object(fields) => {
            for (key, value) in fields.iter_mut() {
                *value = if key == "acknowledged" {
                    Value::Bool(false)
                } else {
                    late(value.take())
                };
            }
        }
        _ => {}
    }
    answer
}

fn by_id(mut tasks: Value) -> Value {
    if let Some(tasks) = tasks.as_array_mut() {
        tasks.sort_by_key(|task| task["id"].to_string());
    }
    tasks
}

#[tokio::test]
async fn revoked_ids_are_told_to_who_asks() {
    let mut stage = Stage::with(&[]).await;
    let ids = |answer: &Value| {
        let mut ids: Vec<String> = answer.as_array().unwrap().iter().map(Value::to_string).collect();
        ids.sort_unstable();
        ids
    };
    ask(&mut stage, "control-17-revoke").await;
    ask(&mut stage, "control-18-revoke-list-reply").await;
    let ours = stage.said("control-19-revoked").await;
    assert_eq!(ids(&ours), ids(&answer("control-19-revoked")));
    ask(&mut stage, "control-20-revoke-terminate").await;
    ask(&mut stage, "control-21-terminate").await;
    let (ours, theirs) = (stage.said("control-33-hello").await, answer("control-33-hello"));
    assert_eq!(ids(&ours["revoked"]), ids(&theirs["revoked"]));
    assert!(ours["clock"].is_u64());
}

#[tokio::test]
async fn e5_task_events_are_switched() {
    let mut stage = Stage::with(&["--name", "w2@lab"]).await;
    for name in [
        "control-41-enable-events-off-to-on",
        "control-42-disable-events-on-to-off",
    ] {
        assert_eq!(stage.said(name).await, answer(name), "{name}");
    }
    stage.said("control-41-enable-events-off-to-on").await;
    // On a worker with -E Celery knows of no switch, and answers of both that nothing was to do. Ours obeys.
    assert_eq!(
        stage.said("control-30-enable-events").await,
        answer("control-30-enable-events")
    );
    let off = stage.said("control-31-disable-events").await;
    assert_eq!(off, json!({"ok": "task events disabled"}));
    assert_ne!(off, answer("control-31-disable-events"));
    let on = stage.said("control-32-enable-events-again").await;
    assert_eq!(on, json!({"ok": "task events enabled"}));
}

/// Facts about processes differ by nature; names and types of what both say are the same.
#[tokio::test]
async fn facts_about_the_worker_have_celerys_names() {
    let mut stage = Stage::with(&["--concurrency", "2"]).await;
    let (ours, theirs) = (stage.said("control-10-stats").await, answer("control-10-stats"));
    for key in theirs.as_object().unwrap().keys() {
        assert_eq!(
            std::mem::discriminant(&ours[key]),
            std::mem::discriminant(&theirs[key]),
            "stats.{key}: {ours}"
        );
    }
    for part in ["broker", "rusage"] {
        for (key, value) in ours[part].as_object().unwrap() {
            assert!(
                value.is_null() || std::mem::discriminant(value) == std::mem::discriminant(&theirs[part][key]),
                "stats.{part}.{key}: {value}"
            );
        }
    }
    assert_eq!(ours["pool"]["max-concurrency"], json!(2));
    let (ours, theirs) = (
        stage.said("control-11-registered").await,
        answer("control-11-registered"),
    );
    for name in ["proj.add", "proj.echo", "proj.fail", "proj.late", "proj.tsum"] {
        assert!(ours.as_array().unwrap().contains(&json!(name)), "{ours}");
        assert!(theirs.as_array().unwrap().contains(&json!(name)));
    }
    let (ours, theirs) = (stage.said("control-14-conf").await, answer("control-14-conf"));
    assert!(ours["broker_url"].as_str().unwrap().starts_with("redis://"), "{ours}");
    assert!(theirs["broker_url"].is_string());
    let (ours, theirs) = (stage.said("control-15-report").await, answer("control-15-report"));
    for answer in [ours, theirs] {
        assert!(answer["ok"].as_str().unwrap().contains("software -> "), "{answer}");
    }
}

#[tokio::test]
async fn a_heartbeat_is_sent_when_asked_for() {
    let mut stage = Stage::with(&[]).await;
    ask(&mut stage, "control-34-heartbeat").await;
    eventually(SOON, "a heartbeat", async || {
        let events = stage.effects(&[]).events;
        events.iter().any(|event| event["body"]["type"] == "worker-heartbeat")
    })
    .await;
}

/// Two Celery workers of 5.7 both ended with an `IndexError`.
#[tokio::test]
async fn d6_an_election_ends_nobody() {
    let mut stage = Stage::with(&[]).await;
    let (ours, _) = ask(&mut stage, "control-46-election-two-workers").await;
    assert_eq!(ours, None);
    assert!(stage.worker.exit().is_none(), "the worker lives");
}

#[tokio::test]
async fn a_worker_that_scales_says_so() {
    let mut stage = Stage::with(&["--name", "w2@lab", "--autoscale", "4,1"]).await;
    for name in ["control-43-autoscale", "control-44-pool-grow-with-autoscale"] {
        assert_eq!(stage.said(name).await, answer(name), "{name}");
    }
}

/// Asked by Celery's client; wrong arguments and a failure are answered as such, and so is what nobody knows.
#[tokio::test]
async fn commands_of_the_application_are_answered() {
    let stage = Stage::with(&[]).await;
    let mut celery = umbel_testkit::Celery::client(&stage.redis.url()).await;
    let mut said = Vec::new();
    for (method, arguments) in [
        ("doubled", json!({"number": 21})),
        ("doubled", json!({"number": -1})),
        ("doubled", json!({})),
        ("halved", json!({"number": 21})),
    ] {
        let answer = celery.control(&[crate::stage::NODE], method, arguments).await;
        said.push(answer[crate::stage::NODE].clone());
    }
    assert_eq!(said[0], json!({"ok": 42}));
    assert_eq!(said[1], json!({"error": "ValueError('below zero')"}));
    assert!(said[2]["error"].as_str().unwrap().contains("number"), "{}", said[2]);
    assert_eq!(said[3], json!({"error": "KeyError('halved')"}));
}

#[tokio::test]
async fn d7_a_shutdown_is_obeyed_unless_it_comes_too_late() {
    let mut stage = Stage::with(&[]).await;
    let capture = Capture::of("control-40-shutdown");
    let verbatim = capture
        .commands
        .iter()
        .find(|command| command.text(0) == "PUBLISH" && command.text(1).ends_with(".pidbox"))
        .unwrap();
    // Its `expires` is in the past: Celery's worker ended, ours answers the next question and takes the next message.
    stage.send(&verbatim.parts).await;
    assert_eq!(stage.said("control-01-ping-full-trace").await, json!({"ok": "pong"}));
    let next = call("next", "proj.add", &json!([1, 1])).encode();
    stage.send(&[b"LPUSH".to_vec(), b"celery".to_vec(), next.clone()]).await;
    stage
        .until("the next runs", &[next], |ours| !ours.documents.is_empty())
        .await;
    for command in request(&capture) {
        stage.send(&command).await;
    }
    assert!(stage.worker.wait(SOON).await.success(), "{}", stage.worker.tail());
}
