//! The cluster jobs in a whole worker: real Redis, real Celery client, real API servers.

#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::Client;
use kube::api::{Api, ListParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use umbel_api::targetcluster::ClusterObservation;
use umbel_broker::{Broker, Config};
use umbel_protocol::json::Json;
use umbel_protocol::message::NewTask;
use umbel_testkit::{Celery, ControlPlane, Process, Redis, Signal, Target, eventually};

const SOON: Duration = Duration::from_secs(30);

struct Stage {
    home: ControlPlane,
    target: Target,
}

static STAGE: OnceCell<Stage> = OnceCell::const_new();

async fn stage() -> &'static Stage {
    STAGE
        .get_or_init(|| async {
            let home = ControlPlane::start().await;
            let target = home.target("c2").await;
            Stage { home, target }
        })
        .await
}

async fn namespace(client: &Client, name: &str) {
    let object = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    Api::<Namespace>::all(client.clone())
        .create(&PostParams::default(), &object)
        .await
        .unwrap();
}

/// A namespace of this name at home, with the target's Secret, and one at the target.
async fn place(name: &str) -> Client {
    let Stage { home, target } = stage().await;
    let home = home.client().await;
    namespace(&home, name).await;
    let kubeconfig = std::fs::read_to_string(&target.kubeconfig).unwrap();
    let secret = json!({"metadata": {"name": "access"}, "stringData": {"kubeconfig": kubeconfig}});
    let secret = serde_json::from_value(secret).unwrap();
    Api::<Secret>::namespaced(home, name)
        .create(&PostParams::default(), &secret)
        .await
        .unwrap();
    let target = target.client().await;
    namespace(&target, name).await;
    target
}

/// A worker as the operator's pods are, but for its gate; it serves the queue `q`.
fn worker(redis: &Redis, namespace: &str, flags: &[&str]) -> Process {
    worker_of(redis, namespace, &["c2"], flags)
}

/// One whose pool may touch these clusters; all have the same Secret.
fn worker_of(redis: &Redis, namespace: &str, clusters: &[&str], flags: &[&str]) -> Process {
    let home = STAGE.get().unwrap().home.kubeconfig().display().to_string();
    let access = |name: &&str| json!({"name": name, "secret": "access", "key": "kubeconfig"});
    let clusters = json!(clusters.iter().map(access).collect::<Vec<_>>()).to_string();
    let rules = json!({"namespaces": [namespace], "kinds": ["ConfigMap"]});
    let jobs = json!({"apply": rules, "prune": rules, "wait": rules}).to_string();
    let url = redis.url();
    let args = ["--standalone", "--redis-url", &url, "--queue", "q"]
        .into_iter()
        .chain(flags.iter().copied());
    let env = [
        ("KUBECONFIG", home.as_str()),
        ("UMBEL_NAMESPACE", namespace),
        ("UMBEL_CLUSTERS", &clusters),
        ("UMBEL_JOBS", &jobs),
        ("RUST_LOG", "umbel_worker=debug,umbel_clusters=debug"),
    ];
    Process::start(Path::new(env!("CARGO_BIN_EXE_umbel-worker")), args, &env)
}

const SHORT: &[&str] = &[
    "--lease",
    "2s",
    "--renew-every",
    "500ms",
    "--sweep",
    "500ms",
    "--concurrency",
    "1",
];

/// An apply of so many ConfigMaps with this value, as the run of a slot.
fn run(namespace: &str, id: &str, order: i64, objects: usize, value: &str) -> Vec<u8> {
    run_of(namespace, id, order, objects, value, None)
}

fn run_of(namespace: &str, id: &str, order: i64, objects: usize, value: &str, set: Option<&str>) -> Vec<u8> {
    let manifests: Vec<Value> = (0..objects)
        .map(|n| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("m{n}"), "namespace": namespace},
                   "data": {"run": value}})
        })
        .collect();
    let task = NewTask {
        id: id.into(),
        task: "umbel.cluster.apply".into(),
        queue: "q".into(),
        kwargs: Json::of(
            &json!({"manifests": manifests, "namespace": namespace, "applySet": set, "prune": set.is_some()}),
        ),
        headers: vec![
            ("umbel_order".into(), Json::of(&order)),
            ("umbel_cluster".into(), Json::string("c2")),
        ],
        ..NewTask::default()
    };
    task.encode()
}

async fn runs(maps: &Api<ConfigMap>) -> Vec<String> {
    let maps = maps.list(&ListParams::default()).await.unwrap();
    let is_inventory = |map: &ConfigMap| map.metadata.name.as_ref().unwrap().starts_with("umbel-applyset-");
    maps.items
        .into_iter()
        .filter(|map| !is_inventory(map))
        .map(|map| map.data.unwrap().remove("run").unwrap())
        .collect()
}

async fn succeeded(broker: &Broker, id: &str, workers: &[&Process]) {
    let result = broker.wait_result(id, Duration::from_mins(1)).await.unwrap();
    let result = String::from_utf8(result.unwrap_or_default()).unwrap();
    let logs = || {
        workers
            .iter()
            .map(|worker| worker.tail())
            .collect::<Vec<_>>()
            .join("\n--\n")
    };
    assert!(result.contains("\"SUCCESS\""), "{result}\n{}", logs());
}

#[tokio::test]
async fn a_celery_program_reads_what_the_jobs_saw_and_no_credential_leaks() {
    let target = place("celery").await;
    let redis = Redis::start_with(&["--rdbcompression", "no"]).await;
    let worker = worker(&redis, "celery", &[]);
    let mut celery = Celery::client(&redis.url()).await;
    let kwargs = |kwargs: Value| json!({"queue": "q", "kwargs": kwargs});

    let id = celery
        .send("umbel.cluster.sync", json!([]), kwargs(json!({"cluster": "c2"})))
        .await;
    let seen = celery.get(&id, SOON).await.unwrap();
    let seen: ClusterObservation = serde_json::from_value(seen).unwrap();
    assert!(
        seen.reachable && seen.version.as_ref().unwrap().starts_with("v1."),
        "{seen:?}"
    );
    let broker = Broker::connect(&Config::new(&redis.url())).await.unwrap();
    eventually(SOON, "the report is there", async || {
        let reports = broker.cluster_reports("celery").await.unwrap();
        reports.iter().any(|report| {
            let body: ClusterObservation = serde_json::from_value(report.body.clone()).unwrap();
            report.name == "c2" && body == seen
        })
    })
    .await;

    let manifests = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: b}\n";
    let apply = json!({"cluster": "c2", "manifests": manifests, "namespace": "celery"});
    let id = celery.send("umbel.cluster.apply", json!([]), kwargs(apply)).await;
    let applied = celery.get(&id, SOON).await.unwrap();
    assert_eq!(
        applied["clusters"]["c2"],
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "namespace": "celery", "name": "m", "action": "created"}])
    );
    assert!(
        Api::<ConfigMap>::namespaced(target, "celery")
            .get_opt("m")
            .await
            .unwrap()
            .is_some()
    );

    let forbidden = json!({"cluster": "c2", "manifests": manifests, "namespace": "kube-system"});
    let id = celery.send("umbel.cluster.apply", json!([]), kwargs(forbidden)).await;
    let raised = celery.get(&id, SOON).await.unwrap_err();
    assert_eq!(
        (raised.exc_type.as_str(), raised.message.as_str()),
        (
            "PermissionError",
            "ConfigMap kube-system/m: the namespace kube-system is not allowed by this pool (spec.jobs.apply.namespaces: celery)"
        )
    );
    let id = celery
        .send("umbel.cluster.sync", json!([]), kwargs(json!({"cluster": "prod"})))
        .await;
    let raised = celery.get(&id, SOON).await.unwrap_err();
    assert!(
        raised
            .message
            .starts_with("this pool may not touch a cluster named `prod`"),
        "{raised:?}"
    );

    // The private key, as the file holds it and as it is inside.
    let kubeconfig = std::fs::read_to_string(&stage().await.target.kubeconfig).unwrap();
    let line = kubeconfig
        .lines()
        .find(|line| line.contains("client-key-data:"))
        .unwrap();
    let encoded = line.split(": ").nth(1).unwrap().trim();
    let decoded: k8s_openapi::ByteString = serde_json::from_value(json!(encoded)).unwrap();
    let decoded = String::from_utf8(decoded.0).unwrap();
    let secrets = [&encoded[100..140], decoded.lines().nth(2).unwrap()];
    let mut raw = redis.connection().await;
    let dir: Vec<String> = umbel_testkit::redis::cmd("CONFIG")
        .arg("GET")
        .arg("dir")
        .query_async(&mut raw)
        .await
        .unwrap();
    let _: String = umbel_testkit::redis::cmd("SAVE").query_async(&mut raw).await.unwrap();
    let dump = std::fs::read(Path::new(&dir[1]).join("dump.rdb")).unwrap();
    let dump = String::from_utf8_lossy(&dump);
    assert!(dump.contains("umbel:clusters:celery"), "the dump is readable");
    for secret in secrets {
        assert!(!dump.contains(secret), "in Redis");
        assert!(!worker.log().contains(secret), "in the log");
    }
}

#[tokio::test]
async fn t06_a_worker_that_dies_half_way_is_followed_by_one_that_finishes() {
    let target = place("half").await;
    let redis = Redis::start().await;
    let broker = Broker::connect(&Config::new(&redis.url())).await.unwrap();
    let maps = Api::<ConfigMap>::namespaced(target, "half");
    broker
        .publish("q", 0, &[run("half", "run-1", 1, 40, "one")])
        .await
        .unwrap();
    let mut first = worker(&redis, "half", SHORT);
    eventually(SOON, "it has begun", async || !runs(&maps).await.is_empty()).await;
    first.kill();
    let written = runs(&maps).await.len();
    assert!(written < 40, "it was killed half way");

    let second = worker(&redis, "half", SHORT);
    succeeded(&broker, "run-1", &[&second]).await;
    let all = maps.list(&ListParams::default()).await.unwrap().items;
    assert_eq!(all.len(), 40);
    for map in all {
        // Also where the first one died between its create and its apply.
        let owners: Vec<_> = map
            .metadata
            .managed_fields
            .unwrap()
            .into_iter()
            .map(|entry| entry.operation.unwrap())
            .collect();
        assert_eq!(owners, ["Apply"], "{:?}", map.metadata.name);
    }
}

#[tokio::test]
async fn t07_a_worker_that_wakes_up_late_overwrites_nothing_of_a_newer_run() {
    wake_up_late("zombie", None).await;
}

#[tokio::test]
async fn t07_nor_does_it_touch_a_set_that_a_newer_run_closed() {
    let target = wake_up_late("zombieset", Some("shop")).await;
    let maps = Api::<ConfigMap>::namespaced(target, "zombieset");
    let inventory = maps.get("umbel-applyset-shop").await.unwrap();
    assert_eq!(inventory.data.unwrap()["state"], "closed");
    let fence = &inventory.metadata.annotations.unwrap()["umbel.dev/fence"];
    assert!(fence.starts_with("2/"), "{fence}");
}

async fn wake_up_late(namespace: &str, set: Option<&str>) -> Client {
    let target = place(namespace).await;
    let redis = Redis::start().await;
    let broker = Broker::connect(&Config::new(&redis.url())).await.unwrap();
    let maps = Api::<ConfigMap>::namespaced(target.clone(), namespace);
    broker
        .publish("q", 0, &[run_of(namespace, "run-1", 1, 40, "one", set)])
        .await
        .unwrap();
    let zombie = worker(&redis, namespace, SHORT);
    eventually(SOON, "it has begun", async || !runs(&maps).await.is_empty()).await;
    zombie.signal(Signal::Stop);
    assert!(runs(&maps).await.len() < 40, "it was stopped half way");

    let other = worker(&redis, namespace, SHORT);
    succeeded(&broker, "run-1", &[&other]).await;
    broker
        .publish("q", 0, &[run_of(namespace, "run-2", 2, 40, "two", set)])
        .await
        .unwrap();
    succeeded(&broker, "run-2", &[&other]).await;
    assert_eq!(runs(&maps).await, vec!["two"; 40]);

    zombie.signal(Signal::Cont);
    // It notices, and goes on to other work; by then what it was about to write is written or refused.
    let probe = NewTask {
        id: "probe".into(),
        task: "umbel.echo".into(),
        queue: "q".into(),
        ..NewTask::default()
    };
    other.signal(Signal::Stop);
    broker.publish("q", 0, &[probe.encode()]).await.unwrap();
    succeeded(&broker, "probe", &[&zombie]).await;
    assert_eq!(runs(&maps).await, vec!["two"; 40], "{}", zombie.log());
    other.signal(Signal::Cont);
    target
}

#[tokio::test]
async fn t06_a_worker_that_dies_half_way_through_a_set_is_followed_by_one_that_finishes_it_and_prunes() {
    let target = place("halfset").await;
    let redis = Redis::start().await;
    let broker = Broker::connect(&Config::new(&redis.url())).await.unwrap();
    let maps = Api::<ConfigMap>::namespaced(target, "halfset");
    let publish = async |id: &str, order: i64, objects: usize, value: &str| {
        let message = run_of("halfset", id, order, objects, value, Some("shop"));
        broker.publish("q", 0, &[message]).await.unwrap();
    };
    let first = worker(&redis, "halfset", SHORT);
    publish("run-1", 1, 60, "one").await;
    succeeded(&broker, "run-1", &[&first]).await;
    publish("run-2", 2, 40, "two").await;
    let mut first = first;
    eventually(SOON, "it has begun", async || {
        runs(&maps).await.contains(&"two".to_owned())
    })
    .await;
    first.kill();
    assert!(runs(&maps).await.len() == 60, "it was killed half way");
    let state = async || {
        maps.get("umbel-applyset-shop")
            .await
            .unwrap()
            .data
            .unwrap()
            .remove("state")
            .unwrap()
    };
    assert_eq!(state().await, "open");

    let second = worker(&redis, "halfset", SHORT);
    succeeded(&broker, "run-2", &[&second]).await;
    assert_eq!(runs(&maps).await, vec!["two"; 40]);
    assert_eq!(state().await, "closed");
}

#[tokio::test]
async fn c04_which_clusters_a_message_may_name_is_decided_where_it_runs() {
    let target = place("rights").await;
    let redis = Redis::start().await;
    let broker = Broker::connect(&Config::new(&redis.url())).await.unwrap();
    let maps = Api::<ConfigMap>::namespaced(target, "rights");
    let publish = async |id: &str, cluster: &str| {
        let manifest =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": id, "namespace": "rights"}});
        let task = NewTask {
            id: id.into(),
            task: "umbel.cluster.apply".into(),
            queue: "q".into(),
            kwargs: Json::of(&json!({"manifests": [manifest], "cluster": cluster})),
            ..NewTask::default()
        };
        broker.publish("q", 0, &[task.encode()]).await.unwrap();
    };
    let refused = async |id: &str, cluster: &str| {
        let result = broker.wait_result(id, Duration::from_mins(1)).await.unwrap().unwrap();
        let result = String::from_utf8(result).unwrap();
        let words = format!("this pool may not touch a cluster named `{cluster}`");
        assert!(
            result.contains("\"FAILURE\"") && result.contains("PermissionError") && result.contains(&words),
            "{result}"
        );
        assert!(maps.get_opt(id).await.unwrap().is_none());
    };
    let old = worker_of(&redis, "rights", &["c2", "leaving"], SHORT);
    publish("foreign", "somebody-elses").await;
    refused("foreign", "somebody-elses").await;
    publish("before", "leaving").await;
    succeeded(&broker, "before", &[&old]).await;
    publish("early", "coming").await;
    refused("early", "coming").await;
    drop(old);
    // Written while a pool had one and not the other; run when it is the other way round.
    publish("late", "leaving").await;
    publish("queued", "coming").await;
    let new = worker_of(&redis, "rights", &["c2", "coming"], SHORT);
    refused("late", "leaving").await;
    succeeded(&broker, "queued", &[&new]).await;
    assert!(maps.get_opt("queued").await.unwrap().is_some());
}

/// Waiting and in flight.
async fn depth(broker: &Broker) -> (u64, u64) {
    let mut sample = broker.depths(&["q".to_owned()]).await.unwrap();
    let depth = sample.queues.remove(0).unwrap();
    (depth.waiting, depth.in_flight)
}

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn five_thousand_waits_fit_into_one_worker_and_cost_little() {
    const WAITS: u64 = 5000;
    let target = place("parked").await;
    let redis = Redis::start().await;
    let broker = Broker::connect(&Config::new(&redis.url())).await.unwrap();
    let maps = Api::<ConfigMap>::namespaced(target, "parked");
    let wait = |id: String, name: &str, goal: &str| {
        let kwargs = json!({"cluster": "c2", "apiVersion": "v1", "kind": "ConfigMap", "namespace": "parked", "name": name,
            "for": goal, "timeout": 600});
        let task = NewTask {
            id,
            task: "umbel.cluster.wait".into(),
            queue: "q".into(),
            kwargs: Json::of(&kwargs),
            ..NewTask::default()
        };
        task.encode()
    };
    let worker = worker(
        &redis,
        "parked",
        &["--concurrency", "5200", "--lease", "60s", "--renew-every", "20s"],
    );
    // One that ends at once: connections are open and tables are there.
    broker
        .publish("q", 0, &[wait("warm".into(), "none", "deleted")])
        .await
        .unwrap();
    succeeded(&broker, "warm", &[&worker]).await;
    let before = resident(worker.pid());
    let all: Vec<Vec<u8>> = (0..WAITS)
        .map(|n| wait(format!("w{n}"), &format!("m{}", n % 100), "jsonpath=.data.v=1"))
        .collect();
    broker.publish("q", 0, &all).await.unwrap();
    eventually(Duration::from_mins(2), "all wait", async || {
        let (waiting, in_flight) = depth(&broker).await;
        waiting == 0 && in_flight == WAITS
    })
    .await;
    // They are parked, and other work goes on.
    broker
        .publish("q", 0, &[wait("beside".into(), "none", "deleted")])
        .await
        .unwrap();
    succeeded(&broker, "beside", &[&worker]).await;
    let each = resident(worker.pid()).saturating_sub(before) / WAITS;
    eprintln!("{each} bytes for each of {WAITS} waits");
    assert!(each <= 20 * 1024, "{each} bytes for each");
    for n in 0..100 {
        let map = json!({"metadata": {"name": format!("m{n}")}, "data": {"v": "1"}});
        maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap())
            .await
            .unwrap();
    }
    eventually(Duration::from_mins(2), "all have ended", async || {
        depth(&broker).await.1 == 0
    })
    .await;
    for id in ["w0", "w4999"] {
        succeeded(&broker, id, &[&worker]).await;
    }
}
