//! Just enough of a kubelet: it binds pods to its node, runs each one's worker as a process with the environment that
//! the template says, shows Running and what the readiness probe says, and ends it with SIGTERM when the pod is deleted.
//! It also keeps the books: at the instant when a pod's deletion is seen, did its worker hold a task, was its gate open?

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec, Secret};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use umbel_api::names::{ANNOTATION_BROKER, WORKER_CONTAINER};
use umbel_broker::{Broker, Gate};
use umbel_testkit::{Process, Signal, TempDir, free_port};

use super::{NAMESPACE, worker};

/// A variable of pods whose worker, once it has ended, ends again whenever it is started.
pub const CRASHES: &str = "UMBEL_TEST_CRASHES";

/// An image that cannot be pulled.
pub const MISSING: &str = "registry.example/missing:1";

/// What was seen of a removed pod at the instant when its deletion showed.
#[derive(Clone, Debug)]
pub struct Removal {
    pub pod: String,
    pub pool: String,
    /// Leases that its worker held.
    pub held: u64,
    /// Its gate was open: it could have begun a task at any moment.
    pub open: bool,
    /// It had been admitted at any time.
    pub admitted: bool,
    /// Its worker ran.
    pub running: bool,
}

type Books = Arc<Mutex<Vec<Removal>>>;

pub struct Kubelet {
    removals: Books,
    pids: Arc<Mutex<HashMap<String, u32>>>,
    unready: Arc<Mutex<HashSet<String>>>,
    lost: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Kubelet {
    /// Starts a node of this name.
    pub async fn start(client: &Client, broker: &Broker, node: &str) -> Kubelet {
        Kubelet::start_for(client, broker, node, "umbel.dev/pool").await
    }

    /// Starts a node for the pods with these labels; all others stay Pending.
    pub async fn start_for(client: &Client, broker: &Broker, node: &str, labels: &str) -> Kubelet {
        let removals = Books::default();
        let pids = Arc::<Mutex<HashMap<String, u32>>>::default();
        let unready = Arc::<Mutex<HashSet<String>>>::default();
        let lost = Arc::<AtomicBool>::default();
        join(client, node).await;
        let beat = tokio::spawn(beat(client.clone(), node.to_owned()));
        let state = State {
            client: client.clone(),
            broker: broker.clone(),
            node: node.to_owned(),
            removals: removals.clone(),
            labels: labels.to_owned(),
            pids: pids.clone(),
            unready: unready.clone(),
            lost: lost.clone(),
            files: Arc::new(TempDir::new("kubelet")),
        };
        let run = tokio::spawn(run(state));
        Kubelet {
            removals,
            pids,
            unready,
            lost,
            tasks: vec![beat, run],
        }
    }

    pub fn removals(&self) -> Vec<Removal> {
        self.removals.lock().expect("books").clone()
    }

    /// The process of a pod's worker.
    pub fn pid(&self, pod: &str) -> Option<u32> {
        self.pids.lock().expect("pids").get(pod).copied()
    }

    /// The node is cut off: it tells nothing any more and hears nothing. Its processes are there still.
    pub fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
        for task in &self.tasks {
            task.abort();
        }
    }

    /// Shows a pod as not Ready whatever its worker says, or no longer.
    pub fn show_unready(&self, pod: &str, is_unready: bool) {
        let mut unready = self.unready.lock().expect("pods");
        if is_unready {
            unready.insert(pod.to_owned());
        } else {
            unready.remove(pod);
        }
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        // Whoever runs one pod runs on; a campaign has many nodes after each other.
        let pids = self.pids.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for pid in pids.values() {
            umbel_testkit::kill_child(*pid);
        }
    }
}

#[derive(Clone)]
struct State {
    client: Client,
    broker: Broker,
    node: String,
    removals: Books,
    labels: String,
    pids: Arc<Mutex<HashMap<String, u32>>>,
    unready: Arc<Mutex<HashSet<String>>>,
    lost: Arc<AtomicBool>,
    /// What the pods' volumes hold.
    files: Arc<TempDir>,
}

async fn join(client: &Client, name: &str) {
    let nodes: Api<Node> = Api::all(client.clone());
    let node: Node = serde_json::from_value(json!({ "metadata": { "name": name }, "spec": {} })).expect("a node");
    nodes
        .create(&PostParams::default(), &node)
        .await
        .expect("the node is made");
    ready(client, name).await;
}

async fn ready(client: &Client, name: &str) {
    let nodes: Api<Node> = Api::all(client.clone());
    let now = k8s_openapi::jiff::Timestamp::now();
    let status = json!({ "status": { "conditions": [{
        "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "", "lastHeartbeatTime": now.to_string(),
        "lastTransitionTime": now.to_string(),
    }]}});
    let _ = nodes
        .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
        .await;
}

async fn beat(client: Client, name: String) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    loop {
        let now = k8s_openapi::jiff::Timestamp::now();
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": name },
            "spec": { "holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": format!("{now:.6}") },
        });
        let _ = leases
            .patch(&name, &PatchParams::apply("kubelet").force(), &Patch::Apply(lease))
            .await;
        ready(&client, &name).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

async fn run(state: State) {
    let api: Api<Pod> = Api::namespaced(state.client.clone(), NAMESPACE);
    let config = watcher::Config::default().labels(&state.labels);
    let mut pods = watcher::watcher(api, config)
        .default_backoff()
        .applied_objects()
        .boxed();
    let mut known: HashMap<String, tokio::sync::watch::Sender<bool>> = HashMap::new();
    let mut mounts: HashMap<String, Option<String>> = HashMap::new();
    while let Ok(Some(pod)) = pods.try_next().await {
        let uid = pod.uid().unwrap_or_default();
        if pod.metadata.deletion_timestamp.is_some() {
            if let Some(end) = known.get(&uid) {
                end.send_replace(true);
            }
        } else if let Some(mounted) = mounts.get_mut(&uid) {
            // A pod that has changed is looked after, its mounts included. The real one does so for any change.
            let told = pod.annotations().get(ANNOTATION_BROKER).cloned();
            if *mounted != told {
                *mounted = told;
                mount(&state, &pod, &mut BTreeMap::new()).await;
            }
        } else if bind(&state, &pod).await {
            let (end, ended) = tokio::sync::watch::channel(false);
            mounts.insert(uid.clone(), pod.annotations().get(ANNOTATION_BROKER).cloned());
            known.insert(uid, end);
            tokio::spawn(live(state.clone(), pod, ended));
        }
    }
}

async fn bind(state: &State, pod: &Pod) -> bool {
    if let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) {
        return *node == state.node;
    }
    let uri = format!("/api/v1/namespaces/{NAMESPACE}/pods/{}/binding", pod.name_any());
    let body = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": { "name": pod.name_any(), "uid": pod.uid() },
        "target": { "apiVersion": "v1", "kind": "Node", "name": state.node },
    });
    let request = axum_free_request(&uri, &body);
    match state.client.request::<serde_json::Value>(request).await {
        Ok(_) => true,
        Err(error) => {
            eprintln!("kubelet: bind {}: {error}", pod.name_any());
            false
        }
    }
}

fn axum_free_request(uri: &str, body: &serde_json::Value) -> http::Request<Vec<u8>> {
    let bytes = serde_json::to_vec(body).expect("plain data");
    http::Request::post(uri)
        .header("content-type", "application/json")
        .body(bytes)
        .expect("a request")
}

/// The container that is run: others put theirs beside it, or before it.
fn container(spec: &PodSpec) -> Option<&Container> {
    let named = spec.containers.iter().find(|one| one.name == WORKER_CONTAINER);
    named.or_else(|| spec.containers.first())
}

/// The life of one pod.
async fn live(state: State, pod: Pod, mut ended: tokio::sync::watch::Receiver<bool>) {
    let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
    let image = pod.spec.as_ref().and_then(|spec| container(spec)?.image.clone());
    if image.as_deref() == Some(MISSING) {
        cannot_pull(&state, &name).await;
        while !*ended.borrow() && ended.changed().await.is_ok() {}
        note(&state, &pod, None, None).await;
        remove(&state, &name, uid).await;
        return;
    }
    let port = free_port();
    let Some(env) = environment(&state, &pod, port).await else {
        eprintln!("kubelet: no environment for {name}");
        return;
    };
    let vars: Vec<(&str, &str)> = env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let container = pod.spec.as_ref().and_then(container);
    let command = container
        .and_then(|container| container.command.clone())
        .unwrap_or_default();
    let no_args: [&str; 0] = [];
    let mut process = if command.is_empty() || command == ["umbel-worker"] {
        Process::start(&worker(), no_args, &vars)
    } else {
        // Inside a pod the host has its name.
        let inside = [
            "--uts",
            "/bin/sh",
            "-c",
            "hostname \"$0\" && exec \"$@\"",
            name.as_str(),
        ];
        let all: Vec<&str> = inside.into_iter().chain(command.iter().map(String::as_str)).collect();
        Process::start(Path::new("/usr/bin/unshare"), all, &vars)
    };
    let is_probed = container.is_some_and(|container| container.readiness_probe.is_some());
    state.pids.lock().expect("pids").insert(name.clone(), process.pid());
    let started = k8s_openapi::jiff::Timestamp::now().to_string();
    let mut shown = None;
    while !*ended.borrow() {
        if state.lost.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if process.exit().is_some() {
            eprintln!("kubelet: {name} ended: {}", process.log());
            if env.contains_key(CRASHES) {
                crashes(&state, &name).await;
                while !*ended.borrow() && ended.changed().await.is_ok() {}
            }
            break;
        }
        let is_shown_unready = state.unready.lock().expect("pods").contains(&name);
        let ready = !is_shown_unready && (!is_probed || probe(port).await);
        if shown != Some(ready) && show(&state, &name, &uid, ready, &started).await {
            shown = Some(ready);
        }
        tokio::select! {
            _ = ended.changed() => {}
            () = tokio::time::sleep(Duration::from_millis(if shown == Some(true) { 1000 } else { 100 })) => {}
        }
    }
    let history = env
        .get("UMBEL_TEST_HISTORY")
        .map(|folder| Path::new(folder).join(format!("process-{}", process.pid())));
    note(&state, &pod, shown, history.as_deref()).await;
    if shown.is_none() {
        eprintln!("kubelet: {name} never ran: {}", process.log());
    }
    if process.exit().is_none() {
        process.signal(Signal::Term);
    }
    let grace = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.termination_grace_period_seconds)
        .unwrap_or(30);
    let deadline = Instant::now() + Duration::from_secs(u64::try_from(grace).unwrap_or(30));
    while process.exit().is_none() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    process.kill();
    state.pids.lock().expect("pids").remove(&name);
    remove(&state, &name, uid).await;
}

/// The pod's object goes, now that nothing of it runs.
async fn remove(state: &State, name: &str, uid: String) {
    let api: Api<Pod> = Api::namespaced(state.client.clone(), NAMESPACE);
    let now = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    let _ = api
        .delete(
            name,
            &now.preconditions(kube::api::Preconditions {
                uid: Some(uid),
                resource_version: None,
            }),
        )
        .await;
}

/// Shows what a kubelet shows when there is no such image.
async fn cannot_pull(state: &State, name: &str) {
    let waiting = json!({ "reason": "ImagePullBackOff", "message": format!("Back-off pulling image \"{MISSING}\"") });
    let body = json!({ "status": { "phase": "Pending", "containerStatuses": [{
        "name": "worker", "ready": false, "started": false, "restartCount": 0, "image": MISSING, "imageID": "",
        "state": { "waiting": waiting },
    }] } });
    let api: Api<Pod> = Api::namespaced(state.client.clone(), NAMESPACE);
    let shown = api
        .patch_status(name, &PatchParams::default(), &Patch::Merge(body))
        .await;
    if let Err(error) = shown {
        eprintln!("kubelet: show {name}: {error}");
    }
}

/// Shows what a kubelet shows of a container that has been ending at once for ten minutes.
async fn crashes(state: &State, name: &str) {
    let since = k8s_openapi::jiff::Timestamp::now() - k8s_openapi::jiff::SignedDuration::from_mins(10);
    let condition = |kind: &str| json!({ "type": kind, "status": "False", "lastTransitionTime": since.to_string() });
    let waiting = json!({ "reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container" });
    let body = json!({ "status": {
        "phase": "Running",
        "conditions": [condition("ContainersReady"), condition("Ready")],
        "containerStatuses": [{
            "name": "worker", "ready": false, "started": false, "restartCount": 7, "image": "w", "imageID": "w",
            "state": { "waiting": waiting },
        }],
    } });
    let api: Api<Pod> = Api::namespaced(state.client.clone(), NAMESPACE);
    let shown = api
        .patch_status(name, &PatchParams::default(), &Patch::Merge(body))
        .await;
    if let Err(error) = shown {
        eprintln!("kubelet: show {name}: {error}");
    }
}

/// What the removed pod's worker was doing, asked of Redis and not of the operator.
async fn note(state: &State, pod: &Pod, shown: Option<bool>, history: Option<&Path>) {
    let uid = pod.uid().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(state.client.clone(), NAMESPACE);
    let marked = match api.get_opt(&pod.name_any()).await {
        Ok(Some(now)) => now.annotations().contains_key(umbel_api::names::ANNOTATION_GATE),
        _ => pod.annotations().contains_key(umbel_api::names::ANNOTATION_GATE),
    };
    let records = state.broker.workers().await.unwrap_or_default();
    let mine: Vec<_> = records
        .iter()
        .filter(|record| record.worker.starts_with(&uid))
        .collect();
    let removal = Removal {
        pod: pod.name_any(),
        pool: pod.labels().get("umbel.dev/pool").cloned().unwrap_or_default(),
        held: mine.iter().map(|record| record.held).sum::<u64>() + history.map_or(0, running),
        open: mine.iter().any(|record| record.gate == Gate::Open),
        admitted: marked,
        running: shown.is_some(),
    };
    state.removals.lock().expect("books").push(removal);
}

/// Tasks that a process of Celery has begun and not ended, by the history that it writes.
fn running(history: &Path) -> u64 {
    let lines = std::fs::read_to_string(history).unwrap_or_default();
    let count = |word: &str| {
        lines
            .lines()
            .filter(|line| line.split(' ').nth(2) == Some(word))
            .count() as u64
    };
    count("started").saturating_sub(count("done"))
}

async fn environment(state: &State, pod: &Pod, port: u16) -> Option<BTreeMap<String, String>> {
    let container = container(pod.spec.as_ref()?)?;
    let mut env = BTreeMap::new();
    for variable in container.env.as_ref()? {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => value.clone(),
            (None, Some(from)) => match (&from.field_ref, &from.secret_key_ref) {
                (Some(field), _) => match field.field_path.as_str() {
                    "metadata.name" => pod.name_any(),
                    "metadata.namespace" => NAMESPACE.into(),
                    _ => pod.uid().unwrap_or_default(),
                },
                (None, Some(secret)) => {
                    let api: Api<Secret> = Api::namespaced(state.client.clone(), NAMESPACE);
                    let data = api.get(&secret.name).await.ok()?.data?;
                    String::from_utf8(data.get(&secret.key)?.0.clone()).ok()?
                }
                _ => continue,
            },
            (None, None) => String::new(),
        };
        env.insert(variable.name.clone(), value);
    }
    mount(state, pod, &mut env).await?;
    env.insert("UMBEL_ADMIN_ADDR".into(), format!("127.0.0.1:{port}"));
    env.insert("UMBEL_LOG".into(), "warn,umbel_worker=info".into());
    Some(env)
}

/// Writes the files of projected Secrets, and points variables to them that speak of their mounts.
async fn mount(state: &State, pod: &Pod, env: &mut BTreeMap<String, String>) -> Option<()> {
    let spec = pod.spec.as_ref()?;
    let api: Api<Secret> = Api::namespaced(state.client.clone(), NAMESPACE);
    for mount in container(spec)?.volume_mounts.iter().flatten() {
        let volume = spec.volumes.iter().flatten().find(|volume| volume.name == mount.name)?;
        let folder = state.files.path().join(pod.uid()?).join(&mount.name);
        std::fs::create_dir_all(&folder).ok()?;
        let sources = volume
            .projected
            .iter()
            .flat_map(|projected| projected.sources.iter().flatten());
        for secret in sources.filter_map(|source| source.secret.as_ref()) {
            let data = api.get(&secret.name).await.ok()?.data?;
            for item in secret.items.iter().flatten() {
                std::fs::write(folder.join(&item.path), &data.get(&item.key)?.0).ok()?;
            }
        }
        for value in env.values_mut() {
            if let Some(file) = value.strip_prefix(&mount.mount_path) {
                *value = format!("{}{file}", folder.display());
            }
        }
    }
    Some(())
}

async fn probe(port: u16) -> bool {
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nHost: k\r\nConnection: close\r\n\r\n")
            .await
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer.starts_with("HTTP/1.1 200"))
    };
    tokio::time::timeout(Duration::from_secs(1), ask)
        .await
        .ok()
        .flatten()
        .unwrap_or(false)
}

async fn show(state: &State, name: &str, uid: &str, ready: bool, started: &str) -> bool {
    let word = if ready { "True" } else { "False" };
    let condition = |kind: &str, status: &str| json!({ "type": kind, "status": status, "lastTransitionTime": started });
    let body = json!({
        "metadata": { "uid": uid },
        "status": {
            "phase": "Running", "podIP": "127.0.0.1", "startTime": started,
            "conditions": [condition("PodScheduled", "True"), condition("Initialized", "True"), condition("ContainersReady", word), condition("Ready", word)],
            "containerStatuses": [{
                "name": "worker", "ready": ready, "started": true, "restartCount": 0, "image": "w", "imageID": "w",
                "state": { "running": { "startedAt": started } },
            }],
        },
    });
    let api: Api<Pod> = Api::namespaced(state.client.clone(), NAMESPACE);
    match api
        .patch_status(name, &PatchParams::default(), &Patch::Merge(body))
        .await
    {
        Ok(_) => true,
        Err(error) => {
            eprintln!("kubelet: show {name}: {error}");
            false
        }
    }
}
