//! A leader that dies before or after any of its writes, and another one that goes on: the same end as without.
//!
//! One story comes to every write: a pool is made, works, shrinks, changes its template and rights, is suspended; a slot
//! fires; a queue overflows and goes with its messages; Secrets change, and a token is renewed. The points that it comes
//! to are read from a run without a crash, so a point that is added to the operator and met by the story is part of the
//! campaign.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams};
use kube::config::Kubeconfig;
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet, LocalSet};
use umbel_api::names::{ANNOTATION_BROKER, ANNOTATION_RENEW};
use umbel_api::task::Phase;
use umbel_api::{PeriodicTask, TargetCluster, Task, TaskQueue, WorkerPool};
use umbel_testkit::{Chance, Process, eventually};

use crate::common::{Kubelet, NAMESPACE, Stage};
use crate::token::Issuer;
use crate::{minutes, number};

const OURS: &str = "umbel.dev/v1alpha1";
/// A crash costs a lease of three seconds, and a machine may be slow.
const PATIENT: Duration = Duration::from_secs(120);

/// What Redis still has of the queue that went.
const LEFT_BEHIND: &str = "keys of the queue that went";
/// What a deleted queue allowed its workers is lifted at once or not at all: docs/limits.md.
const KNOWN: &[(&str, &str)] = &[("before-lift", LEFT_BEHIND)];

/// Counts of steps, what is measured, and times inside of words.
const NUMBERS: [&str; 10] = [
    "/status/counters",
    "/status/lastScale",
    "/status/broker",
    "/status/consumers",
    "/status/rates",
    // Written every 15 s at most: of any moment since.
    "/status/depth",
    "/status/estimatedDrainSeconds",
    "/status/oldestWaitingSeconds",
    "/status/oldestWaitingIsLowerBound",
    "/status/effective",
];

/// Operators, one after the other: the next one starts when the one before has ended.
struct Leaders {
    all: Arc<Mutex<Vec<Process>>>,
    watch: JoinHandle<()>,
}

impl Leaders {
    fn start(stage: &Arc<Stage>, failpoint: &str) -> Leaders {
        let discovers = ("UMBEL_DISCOVER_NAMESPACES", NAMESPACE);
        let first = stage.operator(&["--id", "first"], &[("UMBEL_FAILPOINT", failpoint), discovers]);
        let all = Arc::new(Mutex::new(vec![first]));
        let (stage, mine) = (stage.clone(), all.clone());
        let watch = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let mut all = mine.lock().expect("one at a time");
                if all.last_mut().is_some_and(|last| last.exit().is_some()) {
                    all.push(stage.operator(&["--id", "next"], &[discovers]));
                }
            }
        });
        Leaders { all, watch }
    }

    fn count(&self) -> usize {
        self.all.lock().expect("one at a time").len()
    }

    fn log(&self) -> String {
        let all = self.all.lock().expect("one at a time");
        all.iter()
            .map(Process::log)
            .collect::<Vec<_>>()
            .join("\n-- the next one\n")
    }
}

impl Drop for Leaders {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// A pool with this template, and rights where it `may`.
async fn pool(stage: &Stage, replicas: u32, version: &str, may: bool, is_suspended: bool) {
    // Workers with rights at clusters speak to the home cluster themselves.
    let home = stage.plane.kubeconfig();
    let template = json!({ "spec": { "containers": [{
        "name": "worker", "image": "w",
        "env": [{ "name": "VERSION", "value": version }, { "name": "KUBECONFIG", "value": home }],
    }] } });
    let mut spec = json!({
        "queues": [{ "name": "jobs" }], "concurrency": 1, "replicas": replicas, "template": template,
        "scaling": { "mode": "Manual" }, "suspend": is_suspended,
    });
    if may {
        spec["clusterAccess"] = json!({ "names": ["target"] });
        spec["podDisruptionBudget"] = json!({ "minAvailable": 1 });
    }
    stage.pool_of("jobs", spec).await;
}

async fn settles(stage: &Stage, size: u32, what: &str) {
    eventually(PATIENT, what, async || {
        let seen = stage.pools().get("jobs").await.expect("it is there");
        let generation = seen.metadata.generation;
        let Some(status) = seen.status.filter(|status| status.observed_generation == generation) else {
            return false;
        };
        let is_steady = status.ready_replicas == size && status.replicas == size && status.draining_replicas == 0;
        is_steady
            && stage.size("jobs").await == i32::try_from(size).ok()
            && stage.deployments_of("jobs").await.len() == 1
            && stage.pods_of("jobs").await.len() == size as usize
            && status.revisions.len() == 1
    })
    .await;
}

/// Everything that the operator does, once.
async fn story(stage: &Stage, leaders: &Leaders) {
    let kubeconfig = std::fs::read_to_string(stage.plane.kubeconfig()).expect("a kubeconfig");
    let data = json!({ "stringData": { "kubeconfig": kubeconfig } });
    stage.apply("v1", "Secret", "secrets", "target", data).await;
    let cluster = json!({ "spec": { "kubeconfigSecretRef": { "name": "target", "key": "kubeconfig" } } });
    stage
        .apply(OURS, "TargetCluster", "targetclusters", "target", cluster)
        .await;
    stage.queue("jobs").await;
    let redis = json!({ "redis": { "urlSecretRef": { "name": "redis", "key": "url" } } });
    let over = json!({ "spec": {
        "broker": redis, "deletionPolicy": "Purge", "limits": { "maxLength": 5, "onFull": "DropOldest" },
    } });
    stage.apply(OURS, "TaskQueue", "taskqueues", "over", over).await;
    pool(stage, 3, "1", true, false).await;
    settles(stage, 3, "three pods work").await;
    rotate(stage, leaders).await;
    renew(stage).await;

    // A slot of before its schedule was made is the one that fires.
    let at = Timestamp::now() + k8s_openapi::jiff::SignedDuration::from_secs(2);
    let tick = json!({ "spec": {
        "schedule": { "at": at.to_string() }, "taskTemplate": { "queueRef": { "name": "jobs" }, "task": "umbel.echo", "args": ["x"] },
    } });
    stage.apply(OURS, "PeriodicTask", "periodictasks", "tick", tick).await;
    eventually(PATIENT, "the slot has fired", async || {
        let api: Api<PeriodicTask> = Api::namespaced(stage.client.clone(), NAMESPACE);
        let status = api.get("tick").await.expect("it is there").status;
        status.is_some_and(|status| status.runs == 1)
    })
    .await;
    // Two steps, and a task that goes when it has ended.
    let tasks: Api<Task> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let step = |name: &str| json!({ "name": name, "task": "umbel.echo" });
    let chain =
        json!({ "spec": { "taskTemplate": { "queueRef": { "name": "jobs" }, "steps": [step("a"), step("b")] } } });
    stage.apply(OURS, "Task", "tasks", "chain", chain).await;
    eventually(PATIENT, "both steps have run", async || {
        let status = tasks.get("chain").await.expect("it is there").status;
        status.is_some_and(|status| status.phase == Phase::Succeeded && status.attempts == 2)
    })
    .await;
    let short = json!({ "spec": {
        "taskTemplate": { "queueRef": { "name": "jobs" }, "task": "umbel.echo" }, "ttlSecondsAfterFinished": 0,
    } });
    stage.apply(OURS, "Task", "tasks", "short", short).await;
    eventually(PATIENT, "it went", async || {
        tasks.get_opt("short").await.expect("an answer").is_none()
    })
    .await;
    // One that is cancelled while its first step runs: what waits is dropped, what runs is stopped.
    let steps = json!({ "steps": [
        { "name": "a", "task": "umbel.sleep", "args": [600] }, { "name": "b", "task": "umbel.echo", "dependsOn": ["a"] },
    ] });
    let mut endless = json!({ "spec": { "taskTemplate": steps } });
    endless["spec"]["taskTemplate"]["queueRef"] = json!({ "name": "jobs" });
    stage.apply(OURS, "Task", "tasks", "endless", endless.clone()).await;
    eventually(PATIENT, "its first step runs", async || {
        let status = tasks.get("endless").await.expect("it is there").status;
        let names = ["jobs".to_owned()];
        let sample = stage.broker.depths(&names).await.expect("the broker answers");
        let is_held = sample.queues[0].as_ref().is_ok_and(|depth| depth.in_flight == 1);
        is_held && status.is_some_and(|status| status.phase == Phase::Running)
    })
    .await;
    endless["spec"]["cancel"] = json!(true);
    stage.apply(OURS, "Task", "tasks", "endless", endless).await;
    eventually(PATIENT, "it is cancelled", async || {
        let status = tasks.get("endless").await.expect("it is there").status;
        status.is_some_and(|status| status.phase == Phase::Cancelled)
    })
    .await;
    stage.send_sleeps("jobs", 6, 0.1).await;
    stage.drained("jobs", PATIENT).await;
    discover(stage).await;

    stage.send("nobody.takes", "over", 20, 0.0).await;
    eventually(PATIENT, "what is too much is a dead letter", async || {
        let sample = stage
            .broker
            .depths(&["over".to_owned()])
            .await
            .expect("the broker answers");
        sample.queues[0]
            .as_ref()
            .is_ok_and(|depth| depth.waiting == 5 && depth.dead == 15)
    })
    .await;
    let queues = stage.queues();
    queues.delete("over", &DeleteParams::default()).await.expect("it goes");
    eventually(PATIENT, "its messages go with it", async || {
        queues.get_opt("over").await.expect("an answer").is_none()
    })
    .await;

    // Down while one works, and to another template while one works.
    stage.send_sleeps("jobs", 1, 1.5).await;
    pool(stage, 1, "1", true, false).await;
    settles(stage, 1, "one pod is left").await;
    stage.send_sleeps("jobs", 1, 1.5).await;
    pool(stage, 2, "2", false, false).await;
    settles(stage, 2, "two pods of the second template").await;
    pool(stage, 2, "2", false, true).await;
    settles(stage, 0, "nobody while it is suspended").await;
    pool(stage, 1, "2", false, false).await;
    settles(stage, 1, "one pod again").await;
    stage.send_sleeps("jobs", 3, 0.1).await;
    stage.drained("jobs", PATIENT).await;
}

/// The broker's Secret has another address of the same server, and the pods are told. A leader that dies while it tells
/// them leaves it to the kubelet.
async fn rotate(stage: &Stage, leaders: &Leaders) {
    let before = leaders.count();
    stage
        .secret("redis", &stage.redis.url().replace("127.0.0.1", "localhost"))
        .await;
    eventually(PATIENT, "the pods are told of the other Secret", async || {
        let pods = stage.pods_of("jobs").await;
        let is_told = |pod: &Pod| pod.annotations().contains_key(ANNOTATION_BROKER);
        leaders.count() > before || pods.iter().all(is_told)
    })
    .await;
}

/// A target cluster whose token is at its end: it is this cluster itself, by an account of its own.
async fn renew(stage: &Stage) {
    const NAME: &str = "renewed";
    let rules = json!([{
        "apiGroups": [""], "resources": ["serviceaccounts/token"], "resourceNames": [NAME], "verbs": ["create"],
    }]);
    let group = "rbac.authorization.k8s.io";
    let binding = json!({
        "roleRef": { "apiGroup": group, "kind": "Role", "name": NAME },
        "subjects": [{ "kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE }],
    });
    let rbac = "rbac.authorization.k8s.io/v1";
    stage
        .apply("v1", "ServiceAccount", "serviceaccounts", NAME, json!({}))
        .await;
    stage
        .apply(rbac, "Role", "roles", NAME, json!({ "rules": rules }))
        .await;
    stage.apply(rbac, "RoleBinding", "rolebindings", NAME, binding).await;

    let accounts: Api<ServiceAccount> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let uid = accounts.get(NAME).await.expect("it is there").uid().expect("a uid");
    let file = stage.plane.kubeconfig();
    let (issuer, now) = (
        Issuer::new(&file.with_file_name("pki/service-account.key")),
        Timestamp::now().as_second(),
    );
    // Four fifths of its life are over, and the rest outlasts a crash.
    let old = issuer.token(NAMESPACE, NAME, &uid, now - 3600, now + 600);
    let text = std::fs::read_to_string(file).expect("a kubeconfig");
    let mut root = serde_json::to_value(Kubeconfig::from_yaml(&text).expect("it is one")).expect("plain data");
    root["users"][0]["user"] = json!({ "token": old });
    root.as_object_mut()
        .expect("a mapping")
        .retain(|_, value| !value.is_null());
    let account = json!({ "namespace": NAMESPACE, "serviceAccount": NAME, "seconds": 3600 }).to_string();
    let secret = json!({
        "metadata": { "name": NAME, "annotations": { ANNOTATION_RENEW: account } },
        "stringData": { "kubeconfig": root.to_string() },
    });
    stage.apply("v1", "Secret", "secrets", NAME, secret).await;
    let cluster = json!({ "spec": { "kubeconfigSecretRef": { "name": NAME, "key": "kubeconfig" } } });
    stage
        .apply(OURS, "TargetCluster", "targetclusters", NAME, cluster)
        .await;
    let secrets: Api<Secret> = Api::namespaced(stage.client.clone(), NAMESPACE);
    eventually(PATIENT, "its token is another one", async || {
        let data = secrets.get(NAME).await.expect("it is there").data.unwrap_or_default();
        let held = data
            .get("kubeconfig")
            .map(|held| String::from_utf8_lossy(&held.0).into_owned());
        held.is_some_and(|held| !held.contains(&old))
    })
    .await;
}

/// A Secret becomes a target cluster, is another one, and none any more.
async fn discover(stage: &Stage) {
    let clusters: Api<TargetCluster> = Api::namespaced(stage.client.clone(), NAMESPACE);
    for (value, label) in [("true", Some("a")), ("true", Some("b")), ("false", None)] {
        let mut labels = json!({ "umbel.dev/cluster": value });
        if let Some(label) = label {
            labels["label.umbel.dev/of"] = json!(label);
        }
        let secret =
            json!({ "metadata": { "name": "found", "labels": labels }, "stringData": { "kubeconfig": "none" } });
        stage.apply("v1", "Secret", "secrets", "found", secret).await;
        eventually(PATIENT, "the target cluster is as its Secret says", async || {
            let found = clusters.get_opt("found").await.expect("an answer");
            found.and_then(|found| found.labels().get("of").cloned()).as_deref() == label
        })
        .await;
    }
}

/// The end state: what is there, as it is said, without times, ids and counts of steps.
async fn state(stage: &Stage) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    add::<WorkerPool>(stage, &mut all).await;
    add::<TaskQueue>(stage, &mut all).await;
    add::<TargetCluster>(stage, &mut all).await;
    add::<PeriodicTask>(stage, &mut all).await;
    add::<Task>(stage, &mut all).await;
    add::<k8s_openapi::api::apps::v1::Deployment>(stage, &mut all).await;
    add::<ServiceAccount>(stage, &mut all).await;
    add::<Role>(stage, &mut all).await;
    add::<RoleBinding>(stage, &mut all).await;
    add::<PodDisruptionBudget>(stage, &mut all).await;
    for (number, pod) in stage.pods_of("jobs").await.iter().enumerate() {
        let marks: Vec<String> = pod.annotations().keys().cloned().collect();
        all.insert(format!("Pod {number}"), json!(marks));
    }
    let mut connection = stage.redis.connection().await;
    let keys: BTreeSet<String> = redis::cmd("KEYS")
        .arg("*over*")
        .query_async(&mut connection)
        .await
        .expect("an answer");
    all.insert(LEFT_BEHIND.into(), json!(keys));
    all
}

async fn add<K>(stage: &Stage, all: &mut BTreeMap<String, Value>)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Serialize,
{
    let api: Api<K> = Api::namespaced(stage.client.clone(), NAMESPACE);
    for one in api.list(&ListParams::default()).await.expect("an answer").items {
        let name = without_ids(&one.name_any());
        let mut shown = serde_json::to_value(&one).expect("plain data");
        let labels = shown.pointer("/metadata/labels").cloned().unwrap_or_default();
        shown["metadata"] = json!({ "labels": labels, "finalizers": one.finalizers() });
        for way in NUMBERS {
            if let Some(found) = shown.pointer_mut(way) {
                *found = Value::Null;
            }
        }
        all.insert(format!("{} {name}", K::kind(&())), plain(&shown));
    }
}

/// The same value without what no two runs share.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let keep = |name: &str| {
                ![
                    "umbel.dev/term",
                    "message",
                    "resourceVersion",
                    "uid",
                    "observedGeneration",
                ]
                .contains(&name)
            };
            let fields = fields.iter().filter(|(name, _)| keep(name));
            fields.map(|(name, value)| (name.clone(), plain(value))).collect()
        }
        // Conditions of a Deployment come in any order.
        Value::Array(items) => {
            let mut items: Vec<Value> = items.iter().map(plain).collect();
            items.sort_by_key(Value::to_string);
            items.into()
        }
        Value::String(text) => json!(without_ids(text)),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// Revisions, uids and times become words.
fn without_ids(text: &str) -> String {
    const UID: usize = 36;
    if text.parse::<Timestamp>().is_ok() {
        return "TIME".into();
    }
    if text.ends_with("/kubeconfig") {
        return "FILE".into();
    }
    let uid = (0..text.len()).find_map(|at| {
        let part = text.get(at..at + UID)?;
        uuid::Uuid::parse_str(part).ok().map(|_| part)
    });
    if let Some(uid) = uid {
        return without_ids(&text.replace(uid, "UID"));
    }
    let is_id = |part: &str| part.len() >= 8 && part.chars().all(|one| one.is_ascii_hexdigit());
    let parts = text.split_inclusive(|one: char| !one.is_ascii_alphanumeric());
    let replaced = parts.map(|part| {
        let word = part.trim_end_matches(|one: char| !one.is_ascii_alphanumeric());
        if is_id(word) {
            part.replacen(word, "ID", 1)
        } else {
            part.to_owned()
        }
    });
    replaced.collect()
}

/// A run of the story by leaders of whom the first one has this failpoint.
struct Run {
    leaders: usize,
    log: String,
    state: BTreeMap<String, Value>,
    /// Pods that were removed though they held a task, or could have taken one.
    wrong: usize,
    made: usize,
    took: Duration,
}

async fn run(failpoint: &str) -> Run {
    let began = Instant::now();
    let stage = Arc::new(Stage::start().await);
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let leaders = Leaders::start(&stage, failpoint);
    story(&stage, &leaders).await;
    // What a status says last comes with the next look.
    let mut last = BTreeMap::new();
    let mut since = Instant::now();
    eventually(PATIENT, "all is at rest", async || {
        let now = state(&stage).await;
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_secs(3)
    })
    .await;
    let removals = kubelet.removals();
    let wrong = removals
        .iter()
        .filter(|one| one.held > 0 || (one.admitted && one.open))
        .count();
    Run {
        leaders: leaders.count(),
        log: leaders.log(),
        state: last,
        wrong,
        made: removals.len() + stage.pods_of("jobs").await.len(),
        took: began.elapsed(),
    }
}

/// How often a run came to each point.
fn points(log: &str) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    for line in lines {
        let text = line.to_string();
        if !text.contains("\"failpoint\"") {
            continue;
        }
        if let Some(point) = find(&line, "point") {
            *all.entry(point).or_default() += 1;
        }
    }
    all
}

fn find(value: &Value, name: &str) -> Option<String> {
    let fields = value.as_object()?;
    match fields.get(name) {
        Some(Value::String(found)) => Some(found.clone()),
        _ => fields.values().find_map(|below| find(below, name)),
    }
}

fn differences(expected: &BTreeMap<String, Value>, found: &BTreeMap<String, Value>) -> Vec<String> {
    let names: BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    let differs = names.into_iter().filter(|name| expected.get(*name) != found.get(*name));
    let mut lines = Vec::new();
    for name in differs {
        compare(
            name,
            expected.get(name).unwrap_or(&Value::Null),
            found.get(name).unwrap_or(&Value::Null),
            &mut lines,
        );
    }
    lines
}

fn compare(way: &str, expected: &Value, found: &Value, lines: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(left), Value::Object(right)) => {
            let names: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
            for name in names {
                let (left, right) = (
                    left.get(name).unwrap_or(&Value::Null),
                    right.get(name).unwrap_or(&Value::Null),
                );
                compare(&format!("{way}.{name}"), left, right, lines);
            }
        }
        _ if expected != found => lines.push(format!("{way}: {expected} became {found}")),
        _ => {}
    }
}

/// Crashes at some of the points; each line says where, and what became of it.
async fn judge(chosen: impl Fn(&str, usize) -> Vec<usize>, lanes: usize) {
    LocalSet::new().run_until(walk(chosen, lanes)).await;
}

async fn walk(chosen: impl Fn(&str, usize) -> Vec<usize>, lanes: usize) {
    let calm = run("*:note").await;
    let known = points(&calm.log);
    assert_eq!((calm.leaders, calm.wrong), (1, 0), "{}", calm.log);
    println!(
        "without a crash: {} s, {} pods, {} points: {known:?}",
        calm.took.as_secs(),
        calm.made,
        known.len()
    );
    let crashes: Vec<(String, usize)> = known
        .iter()
        .flat_map(|(point, times)| {
            chosen(point, *times)
                .into_iter()
                .map(move |which| (point.clone(), which))
        })
        .collect();
    assert!(!crashes.is_empty(), "the story came to no point");
    let (total, until) = (crashes.len(), minutes());
    let done = Arc::new(AtomicUsize::new(0));
    let left = Arc::new(Mutex::new(crashes));
    let mut running = JoinSet::new();
    let calm = Arc::new(calm);
    for _ in 0..lanes {
        let (left, calm, done) = (left.clone(), calm.clone(), done.clone());
        running.spawn_local(async move {
            let mut bad = Vec::new();
            loop {
                let next = left.lock().expect("one at a time").pop();
                let Some((point, which)) = next.filter(|_| Instant::now() < until) else {
                    return bad;
                };
                let run = run(&format!("{point}:abort:{which}")).await;
                let mut differs = differences(&calm.state, &run.state);
                let is_known = |line: &String| {
                    let mut known = KNOWN.iter().filter(|(at, _)| *at == point);
                    known.any(|(_, what)| line.starts_with(what))
                };
                differs.retain(|line| !is_known(line));
                // A point that is met less often than in the run without is no crash, and says nothing.
                let crashed = run.leaders > 1;
                println!(
                    "{point} {which}: {} s, {} leaders, {} pods made, {} busy removed, {} differences",
                    run.took.as_secs(),
                    run.leaders,
                    run.made,
                    run.wrong,
                    differs.len()
                );
                for line in &differs {
                    println!("  {line}");
                }
                done.fetch_add(1, Ordering::Relaxed);
                if run.wrong > 0 || !differs.is_empty() || (which == 1 && !crashed) {
                    bad.push(format!("{point} {which}"));
                }
            }
        });
    }
    let mut bad = Vec::new();
    while let Some(some) = running.join_next().await {
        match some {
            Ok(some) => bad.extend(some),
            Err(error) => bad.push(format!("a story did not end: {error}")),
        }
    }
    let done = done.load(Ordering::Relaxed);
    println!(
        "{done} of {total} crashes, {} points, {} with another end: {bad:?}",
        known.len(),
        bad.len()
    );
    assert!(bad.is_empty(), "BAD");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k01_a_crash_at_some_writes_changes_nothing_in_the_end() {
    let some = ["after-raise", "after-delete", "after-request"];
    judge(|point, _| if some.contains(&point) { vec![1] } else { Vec::new() }, 2).await;
}

/// All points, each at its first time and `CRASHES - 1` others of its times, by the `SEED`, or as many as begin
/// within `MINUTES`; `POINTS` names some.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make campaign-crash"]
async fn k01_a_crash_at_any_write_changes_nothing_in_the_end() {
    let (crashes, seed) = (number("CRASHES", 2), number("SEED", 1));
    let only = std::env::var("POINTS").unwrap_or_default();
    let only: Vec<&str> = only.split(',').filter(|point| !point.is_empty()).collect();
    let lanes = usize::try_from(number("LANES", 2)).expect("a number");
    judge(
        |point, times| {
            if !only.is_empty() && !only.contains(&point) {
                return Vec::new();
            }
            let mut chance = Chance::new(seed + point.len() as u64);
            let mut which = vec![1];
            which.extend((1..crashes).filter(|_| times > 1).map(|_| 2 + chance.pick(times - 1)));
            which
        },
        lanes,
    )
    .await;
}
