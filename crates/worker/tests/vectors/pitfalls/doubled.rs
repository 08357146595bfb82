//! B: where Celery runs work twice.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use umbel_broker::{Broker, Config, FireAnswer, Slot, SlotMessage};
use umbel_protocol::message::NewTask;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Process, Signal, TempDir, eventually};

use super::{holds, push};
use crate::results::call;
use crate::stage::{SOON, Stage, program, start};

/// Two schedulers send the same slot; Celery's beat sends it twice, under two ids.
#[tokio::test]
async fn b4_a_slot_that_two_schedulers_send_runs_once() {
    let mut stage = Stage::with(&[]).await;
    let mut answers = Vec::new();
    for leader in ["one", "two"] {
        let broker = Broker::connect(&Config::new(&stage.redis.url())).await.unwrap();
        broker.claim_term("i", 1, "one").await.unwrap();
        let slot = Slot {
            install: "i".into(),
            term: 1,
            uid: "schedule".into(),
            at_ms: 1_795_000_000_000,
            generation: 1,
            run: None,
            counts: (0, 0),
            plan: None,
        };
        let task = call(leader, "proj.add", &json!([1, 1]));
        let message = SlotMessage {
            queue: "celery".into(),
            priority: 0,
            id: leader.into(),
            raw: task.encode(),
            unique: None,
        };
        answers.push(broker.fire(&slot, &[message]).await.unwrap());
    }
    assert_eq!(answers[0], FireAnswer::Fired { left_out: 0 });
    assert!(
        matches!(&answers[1], FireAnswer::Duplicate { ids, .. } if ids == &["one"]),
        "{answers:?}"
    );
    let ours = stage.until("the slot", &[], |ours| !ours.documents.is_empty()).await;
    let ids: Vec<&Value> = ours
        .documents
        .iter()
        .map(|stored| &stored["document"]["task_id"])
        .collect();
    assert_eq!(ids, [&json!("one")]);
}

/// A library that shifts the clock of whoever loads it by two hours.
fn shifted_clock(folder: &Path) -> PathBuf {
    let source = "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <time.h>\n\
        int clock_gettime(clockid_t which, struct timespec *now) {\n\
          static int (*real)(clockid_t, struct timespec *);\n\
          if (!real) real = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, \"clock_gettime\");\n\
          int failed = real(which, now);\n\
          if (!failed && which == CLOCK_REALTIME) now->tv_sec += 7200;\n\
          return failed;\n}\n";
    let (file, library) = (folder.join("shift.c"), folder.join("shift.so"));
    std::fs::write(&file, source).unwrap();
    let mut compiler = std::process::Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&file)
        .arg("-ldl");
    assert!(compiler.status().unwrap().success());
    library
}

/// A worker whose clock is two hours ahead: it takes nobody's message, and judges no time by its own.
#[tokio::test]
async fn b5_a_worker_with_a_wrong_clock_takes_nothing_and_is_early_for_nothing() {
    let folder = TempDir::new("clock");
    let library = shifted_clock(folder.path());
    let mut stage = Stage::with(&["--lease", "20s", "--renew-every", "5s"]).await;
    let long = push(&mut stage, "celery", &call("long", "proj.sleeps", &json!([3, "once"]))).await;
    holds(&stage, 1).await;
    let url = stage.redis.url();
    let flags = [
        "--redis-url",
        &url,
        "--standalone",
        "--name",
        "ahead@lab",
        "--sweep",
        "200ms",
    ];
    let mut ahead = Process::start(
        program(),
        flags,
        &[
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("UMBEL_LOG", "info,umbel=debug"),
        ],
    );
    let hour = |sign: i64| Some(jiff::Timestamp::now() + jiff::SignedDuration::from_hours(sign));
    let later = NewTask {
        eta: hour(1),
        ..call("later", "proj.add", &json!([1, 1]))
    };
    let in_time = NewTask {
        expires: hour(1),
        ..call("in-time", "proj.add", &json!([2, 2]))
    };
    push(&mut stage, "celery", &later).await;
    let in_time = push(&mut stage, "celery", &in_time).await;
    let mut connection = stage.connection.clone();
    eventually(SOON, "one is parked, two have ended", async || {
        let parked: u64 = connection.zcard("umbel:delayed:celery").await.unwrap();
        parked == 1 && stage.effects(&[long.clone(), in_time.clone()]).documents.len() == 2
    })
    .await;
    let log = ahead.log();
    let at = log
        .find("\"timestamp\":\"")
        .map(|at| log[at + 13..at + 29].to_owned())
        .unwrap();
    let now = jiff::Timestamp::now().to_string();
    assert_ne!(at[..13], now[..13], "its clock is another: {at}, {now}");
    assert!(ahead.exit().is_none(), "{}", ahead.tail());
    let ours = stage.effects(&[long, in_time]);
    let mut results: Vec<&Value> = ours
        .documents
        .iter()
        .map(|stored| &stored["document"]["result"])
        .collect();
    results.sort_by_key(ToString::to_string);
    assert_eq!(results, [&json!("once"), &json!(4)]);
    assert_eq!(ours.messages, Vec::<Value>::new(), "nothing was put back");
}

/// With `reject_on_worker_lost` Celery sends it back for ever; here it goes to the dead letters with its third death.
#[tokio::test]
async fn b7_a_task_that_kills_its_worker_ends_with_the_third_death() {
    let mut stage = Stage::with(&[]).await;
    push(&mut stage, "celery", &call("poison", "proj.suicide", &json!([]))).await;
    for death in 1..=3 {
        stage.worker.wait(SOON).await;
        stage.worker = start(&stage.redis.url(), &["--name", &format!("w{}@lab", death + 1)]);
    }
    let innocent = call("innocent", "proj.add", &json!([1, 1]));
    push(&mut stage, "celery", &innocent).await;
    let ours = stage.until("both", &[], |ours| ours.documents.len() >= 2).await;
    let status = |id: &str| {
        let found = ours.documents.iter().find(|stored| stored["document"]["task_id"] == id);
        found.map(|stored| stored["document"]["status"].clone())
    };
    assert_eq!(
        (status("poison"), status("innocent")),
        (Some(json!("FAILURE")), Some(json!("SUCCESS")))
    );
    assert_eq!(stage.connection.xlen("umbel:dead:celery").await, Ok(1));
    assert!(stage.worker.exit().is_none(), "the fourth worker lives");
    stage.worker.signal(Signal::Term);
}
