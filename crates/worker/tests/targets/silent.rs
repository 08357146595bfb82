//! Targets that do not answer, or not to an end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpListener;
use umbel_api::targetcluster::CircuitState;
use umbel_testkit::{eventually, free_port};

use crate::stage::{SOON, Scene, target};
use crate::stub::{Asked, Reply, Stub};

fn plain() -> serde_json::Value {
    json!({})
}

/// The target's kubeconfig with another address.
async fn at(server: &str) -> String {
    let good = std::fs::read_to_string(target().await).unwrap();
    let line = good.lines().find(|line| line.contains("server:")).unwrap().trim();
    good.replace(line, &format!("server: {server}"))
}

/// Connections are taken by the kernel, and nobody says a word.
async fn black_hole() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, at(&format!("https://127.0.0.1:{port}")).await)
}

/// How long these syncs take together.
async fn time(scene: &Scene, clusters: &[&str]) -> Duration {
    let begin = Instant::now();
    let mut ids = Vec::new();
    for cluster in clusters {
        ids.push((cluster, scene.sync(cluster).await));
    }
    for (cluster, id) in ids {
        let result = scene.result(&id).await;
        assert_eq!(result.is_ok(), *cluster == "alive", "{cluster}: {result:?}");
    }
    begin.elapsed()
}

#[tokio::test]
async fn t01_a_dead_target_is_left_alone_and_its_neighbour_is_not_slower() {
    let scene = Scene::new("t01").await;
    let (_held, silent) = black_hole().await;
    scene.secret("silent", &silent).await;
    scene
        .secret("closed", &at(&format!("https://127.0.0.1:{}", free_port())).await)
        .await;
    scene
        .secret("nowhere", &at("https://no-such-host.invalid:6443").await)
        .await;
    scene
        .secret("alive", &std::fs::read_to_string(target().await).unwrap())
        .await;
    let fast = json!({"limits": {"qps": 1000, "burst": 2000, "maxConcurrentTasks": 50}});
    let clusters = [
        ("silent", plain()),
        ("closed", plain()),
        ("nowhere", plain()),
        ("alive", fast),
    ];
    let worker = scene.worker(&clusters, &["--concurrency", "8"]).await;
    let begin = Instant::now();
    for cluster in ["silent", "closed", "nowhere"] {
        for _ in 0..3 {
            let id = scene.sync(cluster).await;
            let failed = scene.result(&id).await.unwrap_err();
            assert!(
                failed.starts_with(&format!("cluster `{cluster}`")),
                "{failed}\n{}",
                worker.tail()
            );
            if cluster == "silent" {
                break; // Each costs its time; that of three is in the test of T03.
            }
        }
    }
    assert!(
        begin.elapsed() < Duration::from_secs(12),
        "none takes long: {:?}",
        begin.elapsed()
    );
    for cluster in ["closed", "nowhere"] {
        // A report may be written a little after the result.
        eventually(SOON, "it says that the circuit is open", async || {
            let report = scene.report(cluster).await;
            let circuit = report.circuit.unwrap();
            assert!(!report.reachable, "{cluster}");
            let until = circuit.until.map(|until| until.0);
            circuit.state == CircuitState::Open && circuit.since.unwrap().0 < until.unwrap()
        })
        .await;
    }

    let alone = time(&scene, &["alive"; 40]).await;
    let mut mixed = vec!["alive"; 40];
    mixed.extend(["closed", "nowhere"].repeat(10));
    let beside = time(&scene, &mixed).await;
    println!("40 syncs of a living target: {alone:?}; beside 20 of dead ones: {beside:?}");
    assert!(
        beside < alone * 2 + Duration::from_secs(1),
        "alone {alone:?}, beside dead ones {beside:?}"
    );
}

#[tokio::test]
async fn t01_a_target_that_came_back_is_found_by_one_probe() {
    let scene = Scene::new("t01-back").await;
    let pipe = umbel_testkit::Pipe::to(free_port()).await;
    scene
        .secret("c", &at(&format!("https://127.0.0.1:{}", pipe.port())).await)
        .await;
    let _worker = scene.worker(&[("c", plain())], &[]).await;
    for _ in 0..3 {
        let id = scene.sync("c").await;
        scene.result(&id).await.unwrap_err();
    }
    let id = scene.sync("c").await;
    let failed = scene.result(&id).await.unwrap_err();
    assert!(failed.contains("did not answer lately"), "{failed}");
    let server = std::fs::read_to_string(target().await).unwrap();
    let port = server.lines().find(|line| line.contains("server:")).unwrap();
    let port = port.trim_end_matches(['"', '/']).rsplit(':').next().unwrap();
    pipe.lead_to(port.parse().unwrap());
    eventually(SOON, "a probe finds it", async || {
        let id = scene.sync("c").await;
        scene.result(&id).await.is_ok()
    })
    .await;
    eventually(SOON, "and says so", async || {
        let report = scene.report("c").await;
        report.reachable && report.circuit.unwrap().state == CircuitState::Closed
    })
    .await;
}

#[tokio::test]
async fn t01_who_waits_for_a_dead_target_is_let_go_when_its_circuit_opens() {
    let scene = Scene::new("t01-waits").await;
    let stub = Stub::before(&target().await, |asked| match asked.path.as_str() {
        "/version" => Reply::Never,
        "/api/v1" => Reply::HangUp,
        _ => Reply::Pass,
    })
    .await;
    scene.secret("c", &stub.kubeconfig("t")).await;
    let _worker = scene.worker(&[("c", plain())], &[]).await;
    let waiting = scene.sync("c").await;
    eventually(SOON, "it waits", async || {
        stub.seen().iter().any(|asked| asked.is("/version"))
    })
    .await;
    let begin = Instant::now();
    for name in ["a", "b", "c"] {
        scene.apply("c", name).await;
    }
    let failed = scene.result(&waiting).await.unwrap_err();
    assert!(failed.contains("did not answer lately"), "{failed}");
    let taken = begin.elapsed();
    println!("let go after {taken:?}, of the 15 s that it would have waited");
    assert!(taken < Duration::from_secs(8), "{taken:?}");
}

#[tokio::test]
async fn t01_the_probe_of_a_dead_target_holds_no_slot() {
    let scene = Scene::new("t01-probe").await;
    let stub = Stub::before(&target().await, |_| Reply::Never).await;
    scene.secret("dead", &stub.kubeconfig("t")).await;
    let good = std::fs::read_to_string(target().await).unwrap();
    scene.secret("alive", &good).await;
    let worker = scene
        .worker(&[("dead", plain()), ("alive", plain())], &["--concurrency", "3"])
        .await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(scene.sync("dead").await);
    }
    for id in ids {
        scene.result(&id).await.unwrap_err();
    }
    let opened = stub.seen().len();
    let mut slowest = Duration::ZERO;
    eventually(SOON, "a probe is sent", async || {
        let begin = Instant::now();
        let dead = [
            scene.sync("dead").await,
            scene.sync("dead").await,
            scene.sync("dead").await,
        ];
        let alive = scene.sync("alive").await;
        scene.result(&alive).await.unwrap();
        for id in dead {
            let failed = scene.result(&id).await.unwrap_err();
            assert!(failed.contains("did not answer lately"), "{failed}\n{}", worker.tail());
        }
        slowest = slowest.max(begin.elapsed());
        stub.seen().len() > opened
    })
    .await;
    println!("beside a probe: {slowest:?}, of the 10 s that it takes");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    assert_eq!(
        scene.report("dead").await.circuit.unwrap().state,
        CircuitState::HalfOpen
    );
}

/// Servers end kept connections when they like: a request that was on its way then says nothing about the target.
#[tokio::test]
async fn t01_a_read_whose_connection_ends_is_sent_once_more() {
    let scene = Scene::new("t01-again").await;
    let hang_ups = Arc::new(AtomicU32::new(1));
    let left = hang_ups.clone();
    let stub = Stub::before(&target().await, move |asked| {
        let take = |left: u32| left.checked_sub(1);
        if asked.is("/readyz") && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
            Reply::HangUp
        } else {
            Reply::Pass
        }
    })
    .await;
    let asked = || stub.seen().iter().filter(|asked| asked.is("/readyz")).count();
    scene.secret("c", &stub.kubeconfig("t")).await;
    let _worker = scene.worker(&[("c", plain())], &[]).await;
    let id = scene.sync("c").await;
    scene.result(&id).await.unwrap();
    assert_eq!(asked(), 2);

    hang_ups.store(2, Ordering::SeqCst);
    let id = scene.sync("c").await;
    let failed = scene.result(&id).await.unwrap_err();
    assert!(failed.contains("not reachable"), "once is enough: {failed}");
    assert_eq!(asked(), 4);
}

#[tokio::test]
async fn t02_an_answer_of_one_byte_a_second_ends_at_its_deadline() {
    let scene = Scene::new("t02-slow").await;
    let rule = |reply: Reply| {
        move |asked: &Asked| {
            if asked.is("/api/v1/namespaces/kube-system") {
                reply.clone()
            } else {
                Reply::Pass
            }
        }
    };
    let drips = Stub::before(&target().await, rule(Reply::Drip)).await;
    let never = Stub::before(&target().await, rule(Reply::Never)).await;
    scene.secret("drips", &drips.kubeconfig("t")).await;
    scene.secret("never", &never.kubeconfig("t")).await;
    let worker = scene.worker(&[("drips", plain()), ("never", plain())], &[]).await;
    let begin = Instant::now();
    let ids = [scene.sync("drips").await, scene.sync("never").await];
    for id in ids {
        let failed = scene.result(&id).await.unwrap_err();
        assert!(
            failed.ends_with("read who it is: no answer within 10 s"),
            "{failed}\n{}",
            worker.tail()
        );
    }
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    assert!(!drips.seen().is_empty() && !never.seen().is_empty());
}

/// Most memory that a process ever held, in KiB.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn t02_an_answer_without_end_ends_at_its_size_and_takes_no_memory() {
    let scene = Scene::new("t02-endless").await;
    let stub = Stub::before(&target().await, |asked| {
        if asked.is("/api/v1/pods") {
            Reply::Endless
        } else {
            Reply::Pass
        }
    })
    .await;
    scene.secret("c", &stub.kubeconfig("t")).await;
    let good = std::fs::read_to_string(target().await).unwrap();
    scene.secret("good", &good).await;
    let worker = scene.worker(&[("c", plain()), ("good", plain())], &[]).await;
    let id = scene.sync("good").await;
    scene.result(&id).await.unwrap();
    let before = peak(worker.pid());
    for _ in 0..2 {
        let id = scene.sync("c").await;
        let failed = scene.result(&id).await.unwrap_err();
        assert!(failed.contains("the answer is larger than 8 MiB"), "{failed}");
    }
    let grown = peak(worker.pid()) - before;
    println!("an answer without end: {grown} KiB at the most");
    // On a busy machine what was read and what is freed overlap.
    assert!(grown < 64 * 1024, "{grown} KiB");
}

#[tokio::test]
async fn t03_ten_dead_targets_of_500_cost_their_own_tasks_only() {
    let scene = Scene::new("t03").await;
    let (_held, silent) = black_hole().await;
    scene.secret("dead", &silent).await;
    scene
        .secret("alive", &std::fs::read_to_string(target().await).unwrap())
        .await;
    let names: Vec<(String, bool)> = (0..500).map(|n| (format!("c{n}"), n % 50 != 7)).collect();
    let clusters: Vec<serde_json::Value> = names
        .iter()
        .map(|(name, is_alive)| json!({"name": name, "secret": if *is_alive { "alive" } else { "dead" }}))
        .collect();
    let worker = scene.worker_with(&json!(clusters), &["--concurrency", "30"]).await;
    let begin = Instant::now();
    let mut ids = Vec::new();
    for (name, is_alive) in &names {
        ids.push((name, *is_alive, scene.sync(name).await));
    }
    for (name, is_alive, id) in &ids {
        let result = scene.result(id).await;
        assert_eq!(result.is_ok(), *is_alive, "{name}: {result:?}\n{}", worker.tail());
    }
    println!("500 targets, 10 of them dead: {:?}", begin.elapsed());
    // Their circuits open; from then on they cost nothing.
    let dead: Vec<&String> = names
        .iter()
        .filter(|(_, is_alive)| !is_alive)
        .map(|(name, _)| name)
        .collect();
    for _ in 0..2 {
        let mut ids = Vec::new();
        for name in &dead {
            ids.push(scene.sync(name).await);
        }
        for id in ids {
            scene.result(&id).await.unwrap_err();
        }
    }
    let begin = Instant::now();
    for name in dead {
        let id = scene.sync(name).await;
        let failed = scene.result(&id).await.unwrap_err();
        assert!(failed.contains("did not answer lately"), "{failed}");
    }
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
}
