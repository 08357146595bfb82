//! Credentials that end, change, or stand for somebody else.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use umbel_testkit::{Authority, Pipe, Process, Signal, eventually};

use crate::stage::{SOON, Scene, program, target, write};
use crate::stub::{Reply, Stub, status};

#[tokio::test]
async fn t04_a_token_that_ends_in_the_middle_of_a_task_is_read_again_once() {
    let scene = Scene::new("t04").await;
    let (home, is_ready) = (scene.home.clone(), Arc::new(tokio::sync::OnceCell::<String>::new()));
    let new = is_ready.clone();
    // The moment that nodes are asked for by the old token, it has ended and the Secret holds another one.
    let stub = Stub::thinking(Arc::new(Authority::new("stub")), &target().await, move |asked| {
        let (home, new) = (home.clone(), new.clone());
        Box::pin(async move {
            if asked.token() == "old" && asked.is("/api/v1/nodes") {
                write(&home, "t04", "c", new.get().unwrap()).await;
                return status(401, "Unauthorized", "Unauthorized");
            }
            Reply::Pass
        })
    })
    .await;
    is_ready.set(stub.kubeconfig("new")).unwrap();
    scene.secret("c", &stub.kubeconfig("old")).await;
    let _worker = scene.worker(&[("c", json!({}))], &[]).await;
    let id = scene.sync("c").await;
    let seen = scene.result(&id).await.unwrap();
    assert_eq!(seen["nodes"]["total"], 0, "{seen}");
    let tokens: Vec<String> = stub
        .seen()
        .iter()
        .filter(|asked| asked.is("/api/v1/nodes"))
        .map(|asked| asked.token().to_owned())
        .collect();
    assert_eq!(tokens, ["old", "new"]);
}

#[tokio::test]
async fn t04_a_credential_that_is_refused_for_good_is_a_clear_failure_after_one_retry() {
    let scene = Scene::new("t04-for-good").await;
    let stub = Stub::before(&target().await, |asked| {
        if asked.is("/version") {
            status(401, "Unauthorized", "Unauthorized")
        } else {
            Reply::Pass
        }
    })
    .await;
    scene.secret("c", &stub.kubeconfig("t")).await;
    let _worker = scene.worker(&[("c", json!({}))], &[]).await;
    let id = scene.sync("c").await;
    let failed = scene.result(&id).await.unwrap_err();
    assert_eq!(
        failed,
        "cluster `c`: read its version: it refuses the credential, which was read from its Secret again: Unauthorized (401)"
    );
    let asked = stub.seen().iter().filter(|asked| asked.is("/version")).count();
    assert_eq!(asked, 2, "once, and once more");
    let report = scene.report("c").await;
    assert!(report.reachable && report.refused.unwrap()[0].starts_with("everything: "));
}

#[tokio::test]
async fn t05_another_authority_is_refused_until_the_secret_is_updated() {
    let scene = Scene::new("t05").await;
    let old = Stub::before(&target().await, |_| Reply::Pass).await;
    let new = Stub::before(&target().await, |_| Reply::Pass).await;
    let pipe = Pipe::to(old.port).await;
    scene.secret("c", &old.kubeconfig_at(pipe.port(), "t")).await;
    let _worker = scene.worker(&[("c", json!({}))], &[]).await;
    let id = scene.sync("c").await;
    scene.result(&id).await.unwrap();

    // The authority is another one, as after a rebuild; connections that were there have ended.
    let pipe_port = pipe.port();
    pipe.lead_to(new.port);
    pipe.sever();
    for _ in 0..4 {
        let id = scene.sync("c").await;
        let failed = scene.result(&id).await.unwrap_err();
        assert!(
            failed.contains("invalid peer certificate") || failed.contains("did not answer lately"),
            "{failed}"
        );
    }
    assert!(new.seen().is_empty(), "no request, and no token, went there");

    scene.secret("c", &new.kubeconfig_at(pipe_port, "t")).await;
    let begin = Instant::now();
    eventually(SOON, "the new authority is trusted", async || {
        let id = scene.sync("c").await;
        scene.result(&id).await.is_ok()
    })
    .await;
    println!("the new authority is trusted after {:?}", begin.elapsed());
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn d08_a_rotated_token_is_used_at_once_and_the_old_one_never_again() {
    let scene = Scene::new("d08").await;
    let stub = Stub::before(&target().await, |_| Reply::Pass).await;
    scene.secret("c", &stub.kubeconfig("old")).await;
    let limits = json!({"limits": {"qps": 1000, "burst": 2000}});
    let _worker = scene.worker(&[("c", limits)], &[]).await;
    let id = scene.sync("c").await;
    scene.result(&id).await.unwrap();
    scene.secret("c", &stub.kubeconfig("new")).await;
    let begin = Instant::now();
    eventually(SOON, "the new token is used", async || {
        let id = scene.sync("c").await;
        scene.result(&id).await.unwrap();
        stub.seen().iter().any(|asked| asked.token() == "new")
    })
    .await;
    let taken = begin.elapsed();
    println!("a new token is used after {taken:?}");
    assert!(taken < Duration::from_secs(10), "by the watch: {taken:?}");
    for _ in 0..5 {
        let id = scene.sync("c").await;
        scene.result(&id).await.unwrap();
    }
    let tokens: Vec<String> = stub.seen().iter().map(|asked| asked.token().to_owned()).collect();
    let first = tokens.iter().position(|token| token == "new").unwrap();
    assert!(tokens[first..].iter().all(|token| token == "new"), "{tokens:?}");
    assert!(tokens.len() > first + 5);
}

#[tokio::test]
async fn d06_impersonation_goes_with_every_request_and_no_empty_or_system_name_does() {
    let scene = Scene::new("d06").await;
    let was_asked_plainly = Arc::new(AtomicBool::new(false));
    let plainly = was_asked_plainly.clone();
    let stub = Stub::before(&target().await, move |asked| {
        if asked.header("impersonate-user") != Some("jane") || asked.header("impersonate-group") != Some("dev") {
            plainly.store(true, Ordering::Relaxed);
        }
        Reply::Pass
    })
    .await;
    let bad = [
        ("empty", json!({"user": "", "groups": []})),
        ("blank", json!({"user": "  ", "groups": []})),
        ("system", json!({"user": "system:admin", "groups": []})),
        ("masters", json!({"user": "jane", "groups": ["dev", "system:masters"]})),
        ("nobody", json!({"user": "jane", "groups": [""]})),
    ];
    let mut clusters = vec![("c", json!({"impersonate": {"user": "jane", "groups": ["dev"]}}))];
    clusters.extend(bad.iter().map(|(name, who)| (*name, json!({"impersonate": who}))));
    for (name, _) in &clusters {
        scene.secret(name, &stub.kubeconfig("t")).await;
    }
    let _worker = scene.worker(&clusters, &[]).await;
    for (name, _) in &bad {
        let id = scene.sync(name).await;
        let failed = scene.result(&id).await.unwrap_err();
        assert!(
            failed.starts_with(&format!("cluster `{name}`: impersonate: ")),
            "{failed}"
        );
    }
    assert!(stub.seen().is_empty(), "refused before any call");

    // The real server sees Jane, who may do nothing.
    let id = scene.sync("c").await;
    let seen = scene.result(&id).await.unwrap();
    let refused = seen["refused"].to_string();
    assert!(
        refused.contains("User \\\"jane\\\" cannot list resource \\\"nodes\\\""),
        "{seen}"
    );
    assert!(seen["uidUnknown"].as_str().unwrap().contains("User \"jane\""), "{seen}");
    assert!(!stub.seen().is_empty() && !was_asked_plainly.load(Ordering::Relaxed));
}

/// A crash writes no core file, though the machine would: it would hold every credential.
#[tokio::test]
async fn d07_a_crash_leaves_no_memory_behind() {
    let crash = async |script: &str| {
        let folder = umbel_testkit::TempDir::new("core");
        let script = format!("ulimit -c unlimited; cd {}; exec {script}", folder.path().display());
        let mut process = Process::start(Path::new("/bin/sh"), ["-c", &script], &[]);
        process.says(SOON, "starts").await;
        process.signal(Signal::Abort);
        process.wait(SOON).await.core_dumped()
    };
    if !crash("sh -c 'echo starts >&2; while :; do sleep 0.1; done'").await {
        println!("this machine writes no core files at all");
        return;
    }
    let redis = umbel_testkit::Redis::start().await;
    let program = program();
    let worker = format!(
        "{} --standalone --redis-url {} --queue q",
        program.display(),
        redis.url()
    );
    assert!(!crash(&worker).await);
}
