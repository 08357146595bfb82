//! Result documents: the captured task runs under its captured id, and its document is Celery's.

use serde_json::{Value, json};
use umbel_protocol::json::Json;
use umbel_protocol::message::{NewTask, TimeLimit};
use umbel_testkit::redis::AsyncCommands;

use crate::capture::Capture;
use crate::compare::{Names, compare, match_all};
use crate::effects::Effects;
use crate::stage::{SOON, Stage, start};

/// The id whose result a capture holds.
pub(crate) fn id_of(capture: &Capture) -> String {
    let results = Effects::of(&capture.commands, &[]);
    let first = results
        .published
        .first()
        .or(results.documents.first())
        .expect("a result");
    first["document"]["task_id"].as_str().expect("an id").to_owned()
}

/// A call as the client of the captures made it.
pub(crate) fn call(id: &str, task: &str, args: &Value) -> NewTask {
    NewTask {
        id: id.to_owned(),
        task: task.to_owned(),
        args: Json::of(args),
        delivery_tag: format!("tag-{id}"),
        ..NewTask::default()
    }
}

/// Sends a task, and compares what is stored with the capture.
async fn runs(stage: &mut Stage, name: &str, task: NewTask) -> Result<(), String> {
    let mut theirs = Effects::of(&Capture::of(name).commands, &[]);
    theirs.messages.clear();
    // Celery's parent process stores a hard time limit twice.
    let exception = |stored: &Value| stored["document"]["result"]["exc_type"].clone();
    theirs
        .documents
        .dedup_by(|second, first| exception(first) == "TimeLimitExceeded" && exception(second) == exception(first));
    stage.forget();
    let raw = task.encode();
    stage.send(&[b"LPUSH".to_vec(), b"celery".to_vec(), raw.clone()]).await;
    let mut ours = stage
        .until(name, &[raw], |ours| ours.documents.len() >= theirs.documents.len())
        .await;
    ours.messages.clear(); // These captures hold results only.
    compare(&ours, &theirs).map_err(|differs| format!("{name}: {differs}"))
}

async fn all_run(flags: &[&str], calls: Vec<(&str, NewTask)>) {
    let mut stage = Stage::with(flags).await;
    let mut differ = Vec::new();
    for (name, task) in calls {
        differ.extend(runs(&mut stage, name, task).await.err());
    }
    assert!(differ.is_empty(), "{}", differ.join("\n\n"));
}

fn of(name: &'static str, task: &str, args: &Value) -> (&'static str, NewTask) {
    (name, call(&id_of(&Capture::of(name)), task, args))
}

#[tokio::test]
async fn documents_are_celerys() {
    let mut hard = of("result-10-hard-time-limit", "proj.hardie", &json!([]));
    hard.1.time_limit = TimeLimit {
        hard: Some(1.0),
        soft: None,
    };
    let mut expired = of("result-07-revoked-expired", "proj.add", &json!([1, 2]));
    expired.1.expires = Some(jiff::Timestamp::UNIX_EPOCH);
    let mut special = of("result-09-returns-special-types", "proj.echo", &json!([]));
    let (args, kwargs) = (
        r#"[null, "\u00e9\ud83d\ude00", [1, {"k": 2.5}]]"#,
        r#"{"big": 12345678901234567890123}"#,
    );
    special.1.args = Json::parse(args).expect("JSON");
    special.1.kwargs = Json::parse(kwargs).expect("JSON");
    let calls = vec![
        of("result-01-success", "proj.add", &json!([2, 3])),
        of("result-02-failure-builtin", "proj.fail", &json!(["boom"])),
        of("result-13-get-waits-with-subscribe", "proj.late", &json!([0, "v"])),
        expired,
        special,
        hard,
    ];
    all_run(&[], calls).await;
}

#[tokio::test]
async fn states_on_the_way_are_celerys() {
    let calls = vec![
        of("result-03-failure-custom-args", "proj.failmy", &json!([])),
        of("result-04-retry-then-failure", "proj.retryer", &json!([])),
        of("result-05-started-then-success", "proj.started", &json!([])),
        of("result-06-custom-state", "proj.progress", &json!([])),
    ];
    all_run(&[], calls).await;
}

/// The ids in the value are those in `children`, and the tasks behind them run.
#[tokio::test]
async fn children_are_the_tasks_that_it_sent() {
    let (name, task) = of("result-08-children", "proj.spawn", &json!([2]));
    let theirs = Effects::of(&Capture::of(name).commands, &[]);
    let mut stage = Stage::with(&[]).await;
    stage.forget();
    let raw = task.encode();
    stage.send(&[b"LPUSH".to_vec(), b"celery".to_vec(), raw.clone()]).await;
    let ours = stage.until(name, &[raw], |ours| ours.documents.len() == 3).await;
    let own: Vec<Value> = ours
        .documents
        .iter()
        .filter(|stored| stored["key"] == theirs.documents[0]["key"])
        .cloned()
        .collect();
    assert_eq!(match_all(name, &own, &theirs.documents, &mut Names::new()), Ok(()));
}

#[tokio::test]
async fn extended_results_tell_of_the_task_as_celerys_do() {
    let mut stamped = of("result-18-extended-stamped", "proj.add", &json!([1, 1]));
    stamped.1.stamps = vec![("tenant".into(), Json::string("acme"))];
    let mut echo = of("result-16-extended", "proj.echo", &json!([1, "x"]));
    echo.1.kwargs = Json::of(&json!({"k": null}));
    let mut chain = of("result-17-extended-chain-parent-children", "proj.add", &json!([1, 2]));
    let next = json!({"task": "proj.add", "args": [10], "kwargs": {}, "subtask_type": null, "immutable": false,
        "options": {"task_id": "a334da2a-c863-4dad-bcbf-73c9384ac00c"}});
    chain.1.embed = Some(Json::of(
        &json!({"callbacks": null, "errbacks": null, "chain": [next], "chord": null}),
    ));
    all_run(&["--result-extended", "--track-started"], vec![echo, chain, stamped]).await;
}

#[tokio::test]
async fn results_are_under_the_prefix_of_the_backend() {
    let call = of("result-22-global-keyprefix", "proj.add", &json!([2, 3]));
    all_run(&["--result-key-prefix", "acme"], vec![call]).await;
}

/// Magic, content type, and the document in Celery's compression.
#[tokio::test]
async fn compressed_results_are_celerys() {
    let capture = Capture::of("result-20-compressed");
    let stored = capture
        .commands
        .iter()
        .find(|command| command.text(0) == "SETEX")
        .expect("a result");
    let magic = b"\0celery-compressed\0application/x-gzip\0";
    let document = |bytes: &[u8]| -> Value {
        let packed = bytes.strip_prefix(magic).expect("magic and content type");
        let plain = umbel_codec::decompress(umbel_codec::Compression::Zlib, packed, 4096).expect("a zlib stream");
        serde_json::from_slice(&plain).expect("JSON")
    };
    let theirs = document(&stored.parts[3]);
    let mut stage = Stage::with(&["--result-compression", "zlib"]).await;
    let raw = call(theirs["task_id"].as_str().expect("an id"), "proj.add", &json!([2, 3])).encode();
    stage.send(&[b"LPUSH".to_vec(), b"celery".to_vec(), raw.clone()]).await;
    stage
        .until(&capture.name, &[raw], |ours| !ours.documents.is_empty())
        .await;
    let ours: Vec<u8> = stage.connection.get(stored.text(1)).await.expect("a result");
    let (ours, theirs) = ([document(&ours)], [theirs]);
    assert_eq!(match_all("document", &ours, &theirs, &mut Names::new()), Ok(()));
}

/// What Celery's client deletes to forget a result is where ours is.
#[tokio::test]
async fn a_forgotten_result_is_gone() {
    let capture = Capture::of("result-14-forget");
    let forget = capture
        .commands
        .iter()
        .find(|command| command.text(0) == "DEL")
        .expect("a DEL");
    let mut stage = Stage::with(&[]).await;
    let (name, task) = of("result-13-get-waits-with-subscribe", "proj.late", &json!([0, "v"]));
    runs(&mut stage, name, task).await.expect("it is Celery's");
    assert_eq!(stage.send(&forget.parts).await, umbel_testkit::redis::Value::Int(1));
}

#[tokio::test]
async fn results_live_as_long_as_they_are_told_to() {
    let forever = of("result-19-expires-none", "proj.add", &json!([2, 3]));
    all_run(&["--result-ttl", "0s"], vec![forever]).await;
    let short = of("result-24-expires-short", "proj.add", &json!([2, 3]));
    all_run(&["--result-ttl", "10s"], vec![short]).await;
    let failure = of("result-23-failure-expires", "proj.fail", &json!(["x"]));
    all_run(&["--result-failure-ttl", "60s"], vec![failure]).await;
}

/// Celery's worker outlives its pool process and tells at once. Ours is the process: whoever finds its lease tells, and
/// the message is kept.
#[tokio::test]
async fn a_task_that_kills_its_worker_fails_as_with_celery() {
    let (name, task) = of("result-11-worker-lost", "proj.suicide", &json!([]));
    let theirs = Effects::of(&Capture::of(name).commands, &[]).documents.remove(0);
    let flags = ["--max-deliveries", "1"];
    let mut stage = Stage::with(&flags).await;
    stage.forget();
    let raw = task.encode();
    stage.send(&[b"LPUSH".to_vec(), b"celery".to_vec(), raw.clone()]).await;
    stage.worker.wait(SOON).await;
    stage.worker = start(&stage.redis.url(), &["--name", "w2@lab", "--max-deliveries", "1"]);
    let ours = stage
        .until(name, &[raw], |ours| !ours.documents.is_empty())
        .await
        .documents
        .remove(0);
    assert_eq!((&ours["key"], &ours["ttl"]), (&theirs["key"], &theirs["ttl"]));
    for field in ["status", "traceback", "children"] {
        assert_eq!(ours["document"][field], theirs["document"][field], "{field}");
    }
    for field in ["exc_type", "exc_module"] {
        assert_eq!(
            ours["document"]["result"][field], theirs["document"]["result"][field],
            "{field}"
        );
    }
}

#[tokio::test]
async fn an_ignored_result_is_not_stored() {
    let capture = Capture::of("result-12-ignored");
    let mut stage = Stage::with(&[]).await;
    stage.forget();
    let (key, raw) = capture.pushed().remove(0);
    stage.send(&[b"LPUSH".to_vec(), key, raw.clone()]).await;
    // The next one's result comes after it.
    let next = call("next", "proj.add", &json!([1, 1])).encode();
    stage.send(&[b"LPUSH".to_vec(), b"celery".to_vec(), next.clone()]).await;
    let ours = stage
        .until("ignored", &[raw, next], |ours| !ours.documents.is_empty())
        .await;
    let keys: Vec<&Value> = ours.documents.iter().map(|document| &document["key"]).collect();
    assert_eq!(keys, ["celery-task-meta-next"]);
    assert_eq!(
        Effects::of(&capture.commands, &[]).documents,
        Vec::<Value>::new(),
        "nor does Celery"
    );
}
