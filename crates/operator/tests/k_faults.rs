//! What a controller must stand of Kubernetes, each injected: stale and stirred watches, restarts, refusals, clocks, slow
//! answers, foreign hands.

mod common;
#[path = "k_faults/gateway.rs"]
mod gateway;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use common::{Kubelet, LONG, LONG_LEASES, NAMESPACE, Stage, clocks};
use futures::StreamExt as _;
use gateway::{Asked, Fate, Gateway, refusal};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::rbac::v1::{ClusterRole, Role};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use umbel_testkit::{Process, Signal, eventually, send_signal};

const OURS: &str = "umbel.dev/v1alpha1";

async fn manual(stage: &Stage, pool: &str, replicas: u32) {
    let spec = json!({ "queues": [{ "name": pool }], "concurrency": 1, "replicas": replicas, "scaling": { "mode": "Manual" } });
    stage.pool_of(pool, spec).await;
}

/// An operator that asks through a gateway.
fn through(gateway: &Gateway, stage: &Stage, flags: &[&str]) -> Process {
    stage.operator(flags, &[("KUBECONFIG", &gateway.kubeconfig())])
}

async fn leads(operator: &mut Process) {
    operator.says(LONG, "\"leading\"").await;
}

async fn uids(stage: &Stage, pool: &str) -> BTreeSet<String> {
    let pods = stage.pods_of(pool).await;
    pods.iter().map(|pod| pod.uid().unwrap_or_default()).collect()
}

/// What the API server answers to this path.
async fn raw(stage: &Stage, path: &str) -> String {
    let request = http::Request::get(path).body(Vec::new()).expect("a request");
    stage.client.request_text(request).await.expect("an answer")
}

/// Nobody that worked, or could have, was removed.
fn assert_no_wrong_removal(kubelet: &Kubelet, operator: &Process) {
    let removals = kubelet.removals();
    let wrong = removals.iter().any(|one| one.held > 0 || (one.admitted && one.open));
    assert!(!wrong, "{removals:#?}\n{}", operator.tail());
}

fn leases(stage: &Stage) -> Api<Lease> {
    Api::namespaced(stage.client.clone(), NAMESPACE)
}

async fn holder(stage: &Stage) -> Option<String> {
    let lease = leases(stage).get_opt("umbel-operator").await.expect("an answer")?;
    lease.spec?.holder_identity.filter(|name| !name.is_empty())
}

/// Lists of children from before a rise, and then from before a fall, and watches that tell nothing: what is done on that
/// meets newer objects, is refused, and is right once the watches go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k02_stale_lists_after_a_restart_contradict_no_newer_write() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let gateway = Gateway::to(&stage.plane).await;
    let mut operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    manual(&stage, "jobs", 1).await;
    stage.ready("jobs", 1).await;
    for next in [3, 1] {
        let mut old = Vec::new();
        for path in ["/api/v1/pods", "/apis/apps/v1/deployments", "/apis/apps/v1/replicasets"] {
            let list: Value =
                serde_json::from_str(&raw(&stage, &format!("{path}?labelSelector=umbel.dev%2Fpool")).await)
                    .expect("a list");
            old.push((path, list));
        }
        manual(&stage, "jobs", next).await;
        stage.ready("jobs", next).await;
        eventually(LONG, "no other pod is left", async || {
            stage.pods_of("jobs").await.len() == next as usize
        })
        .await;
        let count = usize::try_from(next).expect("small");
        stage.send_sleeps("jobs", count, 4.0).await;
        let (before, removed) = (uids(&stage, "jobs").await, kubelet.removals().len());
        drop(operator);

        gateway.set_silent(true);
        gateway.rule(
            move |asked: &Asked| match old.iter().find(|(path, _)| *path == asked.path) {
                Some(_) if asked.is_watch() => Fate::Silent,
                Some((_, list)) => Fate::Answer(200, list.clone()),
                None => Fate::Pass,
            },
        );
        let begin = Instant::now();
        operator = through(&gateway, &stage, &[]);
        leads(&mut operator).await;
        eventually(LONG, "it has tried, or looked again", async || {
            let seen = gateway.seen(begin);
            let tried = seen
                .iter()
                .filter(|(asked, code)| asked.is_write() && *code == 409)
                .count();
            let looked = seen
                .iter()
                .filter(|(asked, _)| asked.path.contains("/namespaces/default/pods"))
                .count();
            tried + looked >= 3
        })
        .await;
        assert_eq!(
            stage.size("jobs").await,
            Some(count.try_into().expect("small")),
            "{}",
            operator.tail()
        );
        assert_eq!(stage.deployments_of("jobs").await.len(), 1);
        gateway.no_rule();
        gateway.set_silent(false);
        stage.ready("jobs", next).await;
        stage.drained("jobs", LONG).await;
        assert_eq!(uids(&stage, "jobs").await, before, "{}", operator.tail());
        assert_eq!(kubelet.removals().len(), removed);
    }
    // It acts again.
    manual(&stage, "jobs", 2).await;
    stage.ready("jobs", 2).await;
}

/// Of each object only the latest change, twice, and each kind's at times of its own: the end is the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k03_changes_that_are_merged_doubled_and_in_another_order_come_to_the_same_end() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let gateway = Gateway::to(&stage.plane).await;
    gateway.stir();
    let operator = through(&gateway, &stage, &[]);
    stage.queue("jobs").await;
    for size in [3, 1, 2] {
        manual(&stage, "jobs", size).await;
        stage.send_sleeps("jobs", 6, 0.2).await;
        stage.ready("jobs", size).await;
        stage.drained("jobs", LONG).await;
    }
    eventually(LONG, "all is at rest", async || {
        let status = stage.status("jobs").await;
        let is_still = gateway
            .writes(Instant::now().checked_sub(Duration::from_secs(3)).expect("a time"))
            .is_empty();
        is_still
            && stage.pods_of("jobs").await.len() == 2
            && stage.size("jobs").await == Some(2)
            && (status.replicas, status.ready_replicas, status.draining_replicas) == (2, 2, 0)
    })
    .await;
    assert_eq!(stage.deployments_of("jobs").await.len(), 1);
    assert_no_wrong_removal(&kubelet, &operator);
}

/// Asks etcd, which speaks JSON as well.
async fn etcd(stage: &Stage, way: &str, body: &Value) -> Value {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let line = std::fs::read(format!("/proc/{}/cmdline", stage.plane.pid("etcd"))).expect("it runs");
    let line = String::from_utf8_lossy(&line).into_owned();
    let address = line
        .split('\0')
        .find_map(|flag| flag.strip_prefix("--listen-client-urls=http://"))
        .expect("its address");
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
    let body = body.to_string();
    let asked = format!(
        "POST /v3/kv/{way} HTTP/1.1\r\nHost: e\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(asked.as_bytes()).await.expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.contains(" 200 "), "{answer}");
    let body = body
        .find('{')
        .and_then(|from| Some(&body[from..=body.rfind('}')?]))
        .expect("JSON");
    serde_json::from_str(body).expect("JSON")
}

/// The API server with all that it was started with, to be started again.
struct ApiServer {
    program: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    pid: u32,
}

impl ApiServer {
    fn of(stage: &Stage) -> ApiServer {
        let pid = stage.plane.pid("kube-apiserver");
        let words = |file: &str| -> Vec<String> {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).expect("it runs");
            let text = String::from_utf8_lossy(&text).into_owned();
            text.split('\0')
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let mut args = words("cmdline");
        let env = words("environ");
        ApiServer {
            program: args.remove(0),
            args,
            env: env
                .iter()
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            pid,
        }
    }

    fn kill(&self) {
        send_signal(self.pid, Signal::Kill);
    }

    async fn start(&self, stage: &Stage) -> Process {
        let env: Vec<(&str, &str)> = self.env.iter().map(|(name, value)| (&**name, &**value)).collect();
        let process = Process::start(std::path::Path::new(&self.program), &self.args, &env);
        eventually(LONG, "the API server answers again", async || {
            let request = http::Request::get("/readyz").body(Vec::new()).expect("a request");
            stage.client.request_text(request).await.is_ok()
        })
        .await;
        process
    }
}

/// The API server is killed; while it is away etcd forgets the past, so no watch can go on from where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k04_k06_an_api_server_that_comes_back_without_a_past_costs_nothing() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let times = ["--lease-duration", "120s", "--renew-deadline", "110s"];
    let mut operator = stage.operator(&times, &[]);
    stage.queue("jobs").await;
    manual(&stage, "jobs", 2).await;
    stage.ready("jobs", 2).await;
    let before = uids(&stage, "jobs").await;
    let server = ApiServer::of(&stage);
    server.kill();
    operator.says(LONG, "watch interrupted").await;
    // What waits is done meanwhile.
    stage.send_sleeps("jobs", 6, 0.1).await;
    stage.drained("jobs", LONG).await;
    let revision = etcd(&stage, "range", &json!({ "key": "YQ==" })).await["header"]["revision"].clone();
    etcd(&stage, "compaction", &json!({ "revision": revision })).await;
    let _server = server.start(&stage).await;
    // The node of a test ends with its watch.
    let _next = Kubelet::start(&stage.client, &stage.broker, "node-2").await;
    let back = Instant::now();
    manual(&stage, "jobs", 3).await;
    stage.ready("jobs", 3).await;
    println!("a third pod works {:?} after the API server answered", back.elapsed());
    operator.says(LONG, "too old resource version").await;
    assert!(operator.exit().is_none());
    let after = uids(&stage, "jobs").await;
    assert!(
        before.is_subset(&after) && after.len() == 3,
        "{before:?} {after:?}\n{}",
        operator.tail()
    );
    assert!(kubelet.removals().is_empty());
    let warnings: Vec<String> = stage
        .events()
        .await
        .into_iter()
        .filter(|event| event.contains("Unreachable"))
        .collect();
    assert!(warnings.is_empty(), "{warnings:?}");
}

/// 410 in a watch, and in the middle of a list of many pages: what is known stays until all of it is listed anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k04_a_past_that_is_gone_in_the_middle_of_a_list_deletes_nothing() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let gateway = Gateway::to(&stage.plane).await;
    let operator = through(&gateway, &stage, &[]);
    stage.queue("jobs").await;
    manual(&stage, "jobs", 3).await;
    stage.ready("jobs", 3).await;
    let before = uids(&stage, "jobs").await;
    let expired = || refusal(410, "Expired", "The provided continue parameter is too old", None);
    let (mut watches, mut pages) = (0, 0);
    let begin = Instant::now();
    gateway.rule(move |asked: &Asked| {
        let is_all = asked.path == "/api/v1/pods" || asked.path == "/apis/apps/v1/deployments";
        if !is_all {
            return Fate::Pass;
        }
        if asked.is_watch() {
            watches += 1;
            // Its answer begins well, as an API server's does.
            let Fate::Answer(_, gone) = expired() else {
                return Fate::Pass;
            };
            return if watches <= 2 {
                Fate::Answer(200, json!({ "type": "ERROR", "object": gone }))
            } else {
                Fate::Pass
            };
        }
        if asked.query.contains("continue=") {
            pages += 1;
            if pages <= 3 {
                return expired();
            }
        }
        // A page holds one object.
        Fate::Ask(asked.query.replace("limit=500", "limit=1"))
    });
    // Those that are open end.
    gateway.end_watches();
    eventually(LONG, "all is listed again, page by page", async || {
        let seen = gateway.seen(begin);
        let gone = seen.iter().filter(|(_, code)| *code == 410).count();
        let last = seen.iter().rposition(|(_, code)| *code == 410);
        let is_pods = |asked: &Asked| asked.path == "/api/v1/pods" && asked.is_watch();
        let watched = seen.iter().rposition(|(asked, code)| is_pods(asked) && *code == 200);
        gone >= 3 && watched > last
    })
    .await;
    manual(&stage, "jobs", 4).await;
    stage.ready("jobs", 4).await;
    let after = uids(&stage, "jobs").await;
    assert!(before.is_subset(&after), "{before:?} {after:?}\n{}", operator.tail());
    assert!(kubelet.removals().is_empty());
    assert_eq!(stage.deployments_of("jobs").await.len(), 1);
}

/// Watches stay open and tell nothing any more. The operator's clocks run twenty times as fast as they should: a minute
/// lasts three seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k05_a_silent_watch_is_noticed_within_a_minute() {
    const TIMES: u32 = 20;
    let stage = Stage::start().await;
    let _kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let gateway = Gateway::to(&stage.plane).await;
    let mut operator = stage.operator(
        &LONG_LEASES,
        &[
            &[("KUBECONFIG", gateway.kubeconfig().as_str())],
            clocks(&format!("+0 x{TIMES}")).as_slice(),
        ]
        .concat(),
    );
    stage.queue("jobs").await;
    manual(&stage, "jobs", 1).await;
    stage.ready("jobs", 1).await;
    leads(&mut operator).await;
    eventually(LONG, "its watches are open", async || gateway.watches() >= 8).await;
    let open = gateway.silence_open_watches();
    let begin = Instant::now();
    manual(&stage, "jobs", 2).await;
    eventually(LONG, "the change is seen", async || stage.size("jobs").await == Some(2)).await;
    let felt = begin.elapsed() * TIMES;
    println!(
        "a change was seen after {:?}, as the operator's clock goes {felt:?}",
        begin.elapsed()
    );
    assert!(gateway.watches() > open, "new watches");
    // A machine that is busy takes its own time beyond.
    assert!(
        felt < Duration::from_secs(60) + Duration::from_secs(5) * TIMES,
        "{felt:?}"
    );
}

/// A leader is frozen for longer than its Lease. What it sends when it goes on is a look at the Lease and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k09_a_leader_that_was_frozen_looks_at_its_lease_before_it_writes() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let gateway = Gateway::to(&stage.plane).await;
    let mut first = through(&gateway, &stage, &["--id", "first"]);
    stage.queue("jobs").await;
    manual(&stage, "jobs", 2).await;
    stage.ready("jobs", 2).await;
    first.signal(Signal::Stop);
    let mut second = stage.operator(&["--id", "second"], &[]);
    leads(&mut second).await;
    // Something to do, which the first one finds when it goes on.
    manual(&stage, "jobs", 3).await;
    stage.ready("jobs", 3).await;
    manual(&stage, "jobs", 2).await;
    let resumed = Instant::now();
    first.signal(Signal::Cont);
    assert!(!first.wait(LONG).await.success());
    // What lay on the wire when it froze came before.
    let writes = gateway.writes(resumed);
    assert!(writes.is_empty(), "{writes:?}\n{}", first.tail());
    stage.ready("jobs", 2).await;
    assert_no_wrong_removal(&kubelet, &second);
}

/// The Lease is deleted under its holder: who led does nothing more, and who leads next exceeds its term at the broker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k10_a_deleted_lease_ends_the_leader_and_the_next_one_works() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let mut first = stage.operator(&["--id", "first"], &[]);
    stage.queue("jobs").await;
    manual(&stage, "jobs", 1).await;
    stage.ready("jobs", 1).await;
    let begin = Instant::now();
    leases(&stage)
        .delete("umbel-operator", &DeleteParams::default())
        .await
        .expect("deleted");
    assert!(!first.wait(LONG).await.success(), "{}", first.tail());
    println!("it ended after {:?}", begin.elapsed());
    assert!(first.log().contains("the lease was lost"), "{}", first.tail());
    let mut second = stage.operator(&["--id", "second"], &[]);
    leads(&mut second).await;
    manual(&stage, "jobs", 2).await;
    stage.ready("jobs", 2).await;
    manual(&stage, "jobs", 1).await;
    stage.ready("jobs", 1).await;
    assert_no_wrong_removal(&kubelet, &second);
}

/// An object of any kind, in any namespace.
async fn apply_in(stage: &Stage, namespace: &str, kind: (&str, &str, &str), name: &str, fields: Value) {
    let (version, kind, plural) = kind;
    let api = anything(stage, namespace, (version, kind, plural));
    let mut body = json!({ "apiVersion": version, "kind": kind, "metadata": { "name": name } });
    for (key, value) in fields.as_object().expect("an object") {
        if key == "metadata" {
            for (key, value) in value.as_object().expect("an object") {
                body["metadata"][key] = value.clone();
            }
        } else {
            body[key] = value.clone();
        }
    }
    api.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(body))
        .await
        .expect("it is accepted");
}

fn anything(stage: &Stage, namespace: &str, (version, kind, plural): (&str, &str, &str)) -> Api<DynamicObject> {
    let (group, short) = version.split_once('/').unwrap_or(("", version));
    let resource = kube::api::ApiResource {
        group: group.into(),
        version: short.into(),
        api_version: version.into(),
        kind: kind.into(),
        plural: plural.into(),
    };
    if namespace.is_empty() {
        return Api::all_with(stage.client.clone(), &resource);
    }
    Api::namespaced_with(stage.client.clone(), namespace, &resource)
}

const DEPLOYMENT: (&str, &str, &str) = ("apps/v1", "Deployment", "deployments");
const ACCOUNT: (&str, &str, &str) = ("v1", "ServiceAccount", "serviceaccounts");
const ROLE: (&str, &str, &str) = ("rbac.authorization.k8s.io/v1", "Role", "roles");
const BINDING: (&str, &str, &str) = ("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings");
const BUDGET: (&str, &str, &str) = ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets");
const NAMESPACES: (&str, &str, &str) = ("v1", "Namespace", "namespaces");
const POOL: (&str, &str, &str) = (OURS, "WorkerPool", "workerpools");
const QUEUE: (&str, &str, &str) = (OURS, "TaskQueue", "taskqueues");

async fn shows(stage: &Stage, pool: &str, part: &str) {
    eventually(LONG, &format!("{pool} says …{part}…"), async || {
        let found = stage.condition(pool, "Ready").await;
        found.is_some_and(|(status, _, message)| status == "False" && message.contains(part))
    })
    .await;
}

/// Every write is refused for a while: 429 with Retry-After, 500 of an etcd that is slow, 503.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k06_an_api_server_that_refuses_for_a_while_is_asked_seldom_and_then_all_is_done() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let gateway = Gateway::to(&stage.plane).await;
    let mut operator = through(&gateway, &stage, &[]);
    stage.queue("jobs").await;
    manual(&stage, "jobs", 1).await;
    stage.ready("jobs", 1).await;
    let mut size = 1;
    for (code, reason, message, retry) in [
        (429, "TooManyRequests", "too many requests", Some(2)),
        (500, "InternalError", "etcdserver: request timed out", None),
        (
            503,
            "ServiceUnavailable",
            "the server is currently unable to handle the request",
            None,
        ),
    ] {
        let begin = Instant::now();
        gateway.rule(move |asked: &Asked| {
            let is_ours = asked.is_write() && begin.elapsed() < Duration::from_secs(5);
            if is_ours {
                refusal(code, reason, message, retry)
            } else {
                Fate::Pass
            }
        });
        size = 3 - size;
        manual(&stage, "jobs", size).await;
        stage.ready("jobs", size).await;
        let refused = gateway
            .writes(begin)
            .iter()
            .filter(|(_, refused)| *refused == code)
            .count();
        println!(
            "{code}: {refused} writes refused in 5 s, done after {:?}",
            begin.elapsed()
        );
        assert!(refused > 0, "nothing was refused");
        assert!(refused <= 60, "{code}: {refused} writes in 5 s\n{}", operator.tail());
        // A size, a gate, a status: each on its own is told when to come again.
        assert!(
            code != 429 || refused <= 15,
            "{refused} writes in 5 s though they were asked to wait for 2 s"
        );
    }
    assert!(operator.exit().is_none());
    assert_no_wrong_removal(&kubelet, &operator);
    let mut told = std::collections::BTreeMap::<String, u32>::new();
    for event in stage.events().await {
        *told
            .entry(event.split(' ').next().unwrap_or_default().to_owned())
            .or_default() += 1;
    }
    told.retain(|reason, _| {
        !reason.starts_with("Scaled") && !reason.contains("Replica") && !reason.contains("Successful")
    });
    println!("{told:?}");
}

/// Somebody writes the pool and its Deployment fifty times a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k07_a_storm_of_conflicts_costs_at_most_twice_the_writes() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let gateway = Gateway::to(&stage.plane).await;
    let operator = through(&gateway, &stage, &[]);
    stage.queue("jobs").await;
    manual(&stage, "jobs", 1).await;
    stage.ready("jobs", 1).await;
    let mut counts = Vec::new();
    for is_stormy in [false, true] {
        let storm = is_stormy.then(|| {
            let (pools, deployments) = (stage.pools(), stage.deployments());
            tokio::spawn(async move {
                let ours = kube::api::ListParams::default().labels("umbel.dev/pool=jobs");
                let mut tick = tokio::time::interval(Duration::from_millis(20));
                for round in 0.. {
                    tick.tick().await;
                    let note = Patch::Merge(json!({ "metadata": { "annotations": { "storm": round.to_string() } } }));
                    let _ = pools.patch("jobs", &PatchParams::default(), &note).await;
                    // An annotation makes a new generation of a Deployment: its controller in Kubernetes, which waits longer
                    // after each conflict, must come to see one of them before anything is taken away.
                    if round % 10 != 0 {
                        continue;
                    }
                    for one in deployments.list(&ours).await.map(|list| list.items).unwrap_or_default() {
                        let _ = deployments.patch(&one.name_any(), &PatchParams::default(), &note).await;
                    }
                }
            })
        });
        let begin = Instant::now();
        for size in [3, 1] {
            manual(&stage, "jobs", size).await;
            stage.ready("jobs", size).await;
        }
        eventually(LONG, "no other pod is left", async || {
            stage.pods_of("jobs").await.len() == 1
        })
        .await;
        let writes = gateway.writes(begin);
        let accepted = writes.iter().filter(|(_, code)| *code == 200);
        counts.push((accepted.count(), writes.len(), begin.elapsed()));
        if let Some(storm) = storm {
            storm.abort();
        }
    }
    println!("accepted, sent, time: calm {:?}, stormy {:?}", counts[0], counts[1]);
    assert!(counts[1].0 <= 2 * counts[0].0, "{counts:?}");
    assert_no_wrong_removal(&kubelet, &operator);
}

/// The chart's objects, and a gateway that speaks as its operator.
async fn with_chart_rights(stage: &Stage) -> Gateway {
    apply_in(stage, "", NAMESPACES, "umbel-system", json!({})).await;
    let kubectl = std::env::var("KUBECTL").expect("hack/env.sh names kubectl");
    let chart = umbel_testkit::repository().join("charts/golden/default.yaml");
    let kubeconfig = stage.plane.kubeconfig();
    let args = [
        "--kubeconfig",
        kubeconfig.to_str().expect("text"),
        "apply",
        "--server-side",
        "-f",
    ];
    let mut apply = Process::start(
        std::path::Path::new(&kubectl),
        args.into_iter().chain([chart.to_str().expect("text")]),
        &[],
    );
    // All but the Secret of which the file shows no content.
    apply.wait(LONG).await;
    assert!(
        apply
            .log()
            .contains("rolebinding.rbac.authorization.k8s.io/umbel-operator-leader"),
        "{}",
        apply.tail()
    );
    let gateway = Gateway::to(&stage.plane).await;
    gateway.speak_as("system:serviceaccount:umbel-system:umbel");
    gateway
}

fn roles(stage: &Stage) -> Api<ClusterRole> {
    Api::all(stage.client.clone())
}

/// Takes a verb from the operator's role, and gives the role as it was.
async fn revoke(stage: &Stage, resource: &str, verb: &str) -> ClusterRole {
    let whole = roles(stage).get("umbel-operator").await.expect("the chart's role");
    let mut less = whole.clone();
    let mut taken = 0;
    for rule in less.rules.iter_mut().flatten() {
        if rule.resources.iter().flatten().any(|one| one == resource) {
            let before = rule.verbs.len();
            rule.verbs.retain(|one| one != verb);
            taken += before - rule.verbs.len();
        }
    }
    assert!(taken > 0, "{verb} {resource} is a right");
    less.metadata.managed_fields = None;
    less.metadata.resource_version = None;
    roles(stage)
        .replace(
            "umbel-operator",
            &kube::api::PostParams::default(),
            &with_version(&less, &whole),
        )
        .await
        .expect("changed");
    whole
}

fn with_version(role: &ClusterRole, of: &ClusterRole) -> ClusterRole {
    let mut role = role.clone();
    role.metadata.resource_version = of.resource_version();
    role.metadata.managed_fields = None;
    role
}

async fn give_back(stage: &Stage, whole: &ClusterRole) {
    let now = roles(stage).get("umbel-operator").await.expect("it is there");
    roles(stage)
        .replace(
            "umbel-operator",
            &kube::api::PostParams::default(),
            &with_version(whole, &now),
        )
        .await
        .expect("changed");
}

/// One right after the other is taken away: the pool says which is missing, a queue beside it does not suffer, and all goes
/// on when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k11_a_right_that_is_missing_is_named_and_comes_back_by_itself() {
    let stage = Stage::start().await;
    let _kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let gateway = with_chart_rights(&stage).await;
    let mut operator = stage.operator(
        &[],
        &[
            ("KUBECONFIG", &gateway.kubeconfig()),
            ("UMBEL_NAMESPACE", "umbel-system"),
        ],
    );
    stage.queue("jobs").await;
    leads(&mut operator).await;
    for (number, (resource, verb)) in [
        ("serviceaccounts", "create"),
        ("deployments", "create"),
        ("deployments", "patch"),
        ("deployments/scale", "update"),
        ("pods", "patch"),
    ]
    .into_iter()
    .enumerate()
    {
        let pool = format!("pool-{number}");
        let whole = revoke(&stage, resource, verb).await;
        let spec =
            json!({ "queues": [{ "name": "jobs" }], "concurrency": 1, "replicas": 1, "scaling": { "mode": "Manual" } });
        stage.pool_of(&pool, spec).await;
        let (thing, sub) = resource.split_once('/').unwrap_or((resource, ""));
        let named = format!(
            "cannot {verb} resource \"{thing}{}{sub}\"",
            if sub.is_empty() { "" } else { "/" }
        );
        shows(&stage, &pool, &named).await;
        let beside = format!("beside-{number}");
        stage.queue(&beside).await;
        eventually(LONG, "a queue is served", async || {
            let status = stage.queues().get(&beside).await.expect("there").status;
            status.is_some_and(|status| umbel_api::condition::holds(&status.conditions, "Ready"))
        })
        .await;
        give_back(&stage, &whole).await;
        stage.ready(&pool, 1).await;
        stage
            .pools()
            .delete(&pool, &DeleteParams::default())
            .await
            .expect("deleted");
    }
    assert!(operator.exit().is_none());
}

/// The rights on the Lease are taken away: the leader steps down and says why, and leads again when they are back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k10_a_leader_that_may_not_write_its_lease_steps_down() {
    let stage = Stage::start().await;
    let gateway = with_chart_rights(&stage).await;
    let env = [
        ("KUBECONFIG", &*gateway.kubeconfig()),
        ("UMBEL_NAMESPACE", "umbel-system"),
    ];
    let mut first = stage.operator(&["--id", "first"], &env);
    stage.queue("jobs").await;
    leads(&mut first).await;
    let rights: Api<Role> = Api::namespaced(stage.client.clone(), "umbel-system");
    let whole = rights.get("umbel-operator-leader").await.expect("the chart's role");
    let only = |verbs: Value| {
        let rules = json!([
            { "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": verbs },
            whole.rules.as_ref().expect("rules")[1],
        ]);
        Patch::Merge(json!({ "rules": rules }))
    };
    let params = PatchParams::default();
    rights
        .patch("umbel-operator-leader", &params, &only(json!(["get"])))
        .await
        .expect("changed");
    assert!(!first.wait(LONG).await.success());
    let log = first.log();
    assert!(
        log.contains("cannot update resource") && log.contains("the lease was lost"),
        "{log}"
    );
    let begin = Instant::now();
    let mut second = stage.operator(&["--id", "second"], &env);
    second.says(LONG, "cannot campaign for the lease").await;
    stage.pool("jobs", 1, json!({ "maxReplicas": 0 })).await;
    eventually(LONG, "it tries again and again", async || {
        let seen = gateway.seen(begin);
        seen.iter()
            .filter(|(asked, code)| asked.path.contains("/leases") && *code == 403)
            .count()
            >= 4
    })
    .await;
    let writes = gateway.writes(begin);
    assert!(writes.is_empty(), "{writes:?}");
    rights
        .patch(
            "umbel-operator-leader",
            &params,
            &only(json!(["get", "create", "update", "patch"])),
        )
        .await
        .expect("changed");
    leads(&mut second).await;
    eventually(LONG, "it works", async || stage.size("jobs").await == Some(0)).await;
}

/// A definition goes, with all its objects, and comes again; then it has a version more, with fields and values that this
/// operator does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k12_k21_definitions_that_go_come_again_and_grow_stop_nobody() {
    let stage = Stage::start().await;
    let _kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let mut operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    manual(&stage, "jobs", 1).await;
    stage.ready("jobs", 1).await;
    let api: Api<CustomResourceDefinition> = Api::all(stage.client.clone());
    let mut whole = api.get("workerpools.umbel.dev").await.expect("there");
    api.delete("workerpools.umbel.dev", &DeleteParams::default())
        .await
        .expect("deleted");
    eventually(LONG, "it is gone", async || {
        api.get_opt("workerpools.umbel.dev").await.expect("answered").is_none()
    })
    .await;
    operator.says(LONG, "watch interrupted").await;
    // All others work.
    stage.queue("other").await;
    eventually(LONG, "a queue is served", async || {
        let status = stage.queues().get("other").await.expect("there").status;
        status.is_some_and(|status| umbel_api::condition::holds(&status.conditions, "Ready"))
    })
    .await;

    whole.metadata = kube::api::ObjectMeta {
        name: whole.metadata.name,
        ..kube::api::ObjectMeta::default()
    };
    whole.status = None;
    // The next version knows more.
    let mut next = whole.spec.versions[0].clone();
    next.name = "v1beta1".into();
    (whole.spec.versions[0].storage, next.storage) = (false, true);
    whole.spec.versions.push(next);
    for version in &mut whole.spec.versions {
        let schema = version
            .schema
            .as_mut()
            .and_then(|schema| schema.open_api_v3_schema.as_mut())
            .expect("a schema");
        let spec = schema
            .properties
            .as_mut()
            .and_then(|all| all.get_mut("spec"))
            .expect("a spec");
        let fields = spec.properties.as_mut().expect("fields");
        let runtime = fields.get_mut("runtime").expect("a runtime");
        let mut value: Value = serde_json::to_value(&*runtime).expect("plain data");
        value["enum"].as_array_mut().expect("an enum").push(json!("Wasm"));
        *runtime = serde_json::from_value(value).expect("a schema");
        fields.insert(
            "novelty".into(),
            serde_json::from_value(json!({ "type": "string" })).expect("a schema"),
        );
    }
    api.create(&kube::api::PostParams::default(), &whole)
        .await
        .expect("made anew");
    let of = |name: &str, more: Value| {
        let mut spec =
            json!({ "queues": [{ "name": "jobs" }], "concurrency": 1, "replicas": 1, "scaling": { "mode": "Manual" } });
        spec.as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("an object").clone());
        (name.to_owned(), json!({ "spec": spec }))
    };
    let next = ("umbel.dev/v1beta1", "WorkerPool", "workerpools");
    eventually(LONG, "the version is served", async || {
        anything(&stage, NAMESPACE, next)
            .list(&kube::api::ListParams::default())
            .await
            .is_ok()
    })
    .await;
    for (name, body) in [
        of("new", json!({ "novelty": "kept", "replicas": 0 })),
        of("odd", json!({ "runtime": "Wasm" })),
        of("again", json!({})),
    ] {
        apply_in(&stage, NAMESPACE, next, &name, body).await;
    }
    let begin = Instant::now();
    stage.ready("again", 1).await;
    println!("the pool of the definition made anew works after {:?}", begin.elapsed());
    operator.says(LONG, "object cannot be read").await;
    eventually(LONG, "the pool with a new field is looked at", async || {
        let status = stage.status("new").await;
        status.observed_generation.is_some() && stage.size("new").await == Some(0)
    })
    .await;
    let kept = anything(&stage, NAMESPACE, next).get("new").await.expect("there");
    assert_eq!(kept.data["spec"]["novelty"], "kept");
    assert!(stage.deployments_of("odd").await.is_empty());
    assert!(operator.exit().is_none());
}

/// A pool is deleted while its pod works; another one while nobody controls; and a queue that is to be purged waits for who
/// purges it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k13_what_is_deleted_in_the_middle_of_a_drain_or_without_a_controller_goes_in_order() {
    let stage = Stage::start().await;
    let _kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let mut operator = stage.operator(&[], &[]);
    for name in ["jobs", "idle"] {
        stage.queue(name).await;
        manual(&stage, name, 2).await;
    }
    stage.ready("jobs", 2).await;
    stage.ready("idle", 2).await;
    stage.send_sleeps("jobs", 2, 6.0).await;
    eventually(LONG, "both work", async || {
        stage.status("jobs").await.busy_replicas == 2
    })
    .await;
    manual(&stage, "jobs", 1).await;
    eventually(LONG, "one is drained", async || {
        stage.status("jobs").await.draining_replicas == 1
    })
    .await;
    stage
        .pools()
        .delete("jobs", &DeleteParams::default())
        .await
        .expect("deleted");
    eventually(LONG, "nothing is left of it", async || {
        stage.pods_of("jobs").await.is_empty() && stage.deployments_of("jobs").await.is_empty()
    })
    .await;
    // Its workers have ended what they held, or handed it back.
    let sample = stage
        .broker
        .depths(&["jobs".to_owned()])
        .await
        .expect("the broker answers");
    let depth = sample.queues[0].clone().expect("readable");
    assert_eq!((depth.in_flight, depth.dead), (0, 0), "{depth:?}");
    assert!(operator.exit().is_none());

    let purge = json!({ "spec": {
        "broker": { "redis": { "urlSecretRef": { "name": "redis", "key": "url" } } }, "deletionPolicy": "Purge",
    } });
    apply_in(&stage, NAMESPACE, QUEUE, "purged", purge).await;
    eventually(LONG, "its finalizer is set", async || {
        stage.queues().get("purged").await.expect("there").finalizers() == ["umbel.dev/queue"]
    })
    .await;
    drop(operator);
    stage
        .pools()
        .delete("idle", &DeleteParams::default())
        .await
        .expect("deleted");
    stage
        .queues()
        .delete("purged", &DeleteParams::default())
        .await
        .expect("deleted");
    eventually(LONG, "the pool goes without a controller", async || {
        stage.pods_of("idle").await.is_empty() && stage.deployments_of("idle").await.is_empty()
    })
    .await;
    let waits = stage.queues().get("purged").await.expect("it waits");
    assert!(waits.metadata.deletion_timestamp.is_some());
    let _operator = stage.operator(&[], &[]);
    eventually(LONG, "the queue goes", async || {
        stage.queues().get_opt("purged").await.expect("answered").is_none()
    })
    .await;
}

/// A namespace that is being deleted takes nothing new: what is missing there is not tried again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k14_in_a_namespace_that_goes_nothing_is_made_again_and_again() {
    let stage = Stage::start().await;
    let gateway = Gateway::to(&stage.plane).await;
    let mut operator = through(&gateway, &stage, &[]);
    apply_in(&stage, "", NAMESPACES, "going", json!({})).await;
    let held = json!({ "metadata": { "finalizers": ["test.dev/held"] } });
    apply_in(&stage, "going", ("v1", "ConfigMap", "configmaps"), "held", held).await;
    apply_in(
        &stage,
        "going",
        ("v1", "Secret", "secrets"),
        "redis",
        json!({ "stringData": { "url": stage.redis.url() } }),
    )
    .await;
    let broker = json!({ "broker": { "redis": { "urlSecretRef": { "name": "redis", "key": "url" } } } });
    apply_in(&stage, "going", QUEUE, "jobs", json!({ "spec": broker })).await;
    let spec = json!({ "queues": [{ "name": "jobs" }], "suspend": true });
    apply_in(&stage, "going", POOL, "jobs", json!({ "spec": spec })).await;
    let deployments = anything(&stage, "going", DEPLOYMENT);
    let all = kube::api::ListParams::default();
    eventually(LONG, "it has a Deployment", async || {
        !deployments.list(&all).await.expect("a list").items.is_empty()
    })
    .await;
    let begin = Instant::now();
    anything(&stage, "", NAMESPACES)
        .delete("going", &DeleteParams::default())
        .await
        .expect("deleted");
    eventually(LONG, "the pool is gone", async || {
        anything(&stage, "going", POOL)
            .list(&all)
            .await
            .expect("a list")
            .items
            .is_empty()
    })
    .await;
    // Elsewhere work goes on; who loops here has the time for it.
    stage.queue("mail").await;
    eventually(LONG, "five seconds more", async || {
        begin.elapsed() > Duration::from_secs(5)
    })
    .await;
    let writes = gateway.writes(begin);
    let made: Vec<&(Asked, u16)> = writes
        .iter()
        .filter(|(asked, _)| asked.path.contains("/namespaces/going/"))
        .collect();
    println!("{} writes in it since it was deleted", made.len());
    assert!(made.len() <= 10, "{made:?}");
    assert!(operator.exit().is_none());
    apply_in(
        &stage,
        "going",
        ("v1", "ConfigMap", "configmaps"),
        "held",
        json!({ "metadata": { "finalizers": [] } }),
    )
    .await;
}

/// Objects of the names that a pool's children would have: none is adopted, changed or deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k17_objects_of_our_names_that_are_not_ours_are_left_alone() {
    let stage = Stage::start().await;
    let mut operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    stage.secret("target", "x").await;
    let cluster = json!({ "spec": { "kubeconfigSecretRef": { "name": "target", "key": "url" } } });
    stage
        .apply(OURS, "TargetCluster", "targetclusters", "target", cluster)
        .await;
    // The name of a Deployment is that of its template, which has the clusters and the queues that are known.
    let clusters = anything(&stage, NAMESPACE, (OURS, "TargetCluster", "targetclusters"));
    let queues = anything(&stage, NAMESPACE, (OURS, "TaskQueue", "taskqueues"));
    eventually(LONG, "queue and cluster are known", async || {
        let mut known = true;
        for (api, name) in [(&queues, "jobs"), (&clusters, "target")] {
            let one = api.get(name).await.expect("there");
            known &= one.data.pointer("/status/observedGeneration").is_some();
        }
        known
    })
    .await;
    let spec = json!({
        "queues": [{ "name": "jobs" }], "suspend": true, "clusterAccess": { "names": ["target"] },
        "podDisruptionBudget": { "minAvailable": 1 },
    });
    stage.pool_of("taken", spec.clone()).await;
    let all = kube::api::ListParams::default();
    let mut names = Vec::new();
    eventually(LONG, "it has a child of each kind", async || {
        names.clear();
        for kind in [ACCOUNT, ROLE, BINDING, BUDGET, DEPLOYMENT] {
            let items = anything(&stage, NAMESPACE, kind)
                .list(&all)
                .await
                .expect("a list")
                .items;
            let ours = items
                .iter()
                .filter(|one| one.owner_references().iter().any(|owner| owner.name == "taken"));
            names.extend(ours.map(|one| (kind, one.name_any())));
        }
        names.len() >= 5
    })
    .await;
    stage
        .pools()
        .delete("taken", &DeleteParams::default())
        .await
        .expect("deleted");
    for (kind, name) in &names {
        let api = anything(&stage, NAMESPACE, *kind);
        eventually(LONG, "the child is gone", async || {
            api.get_opt(name).await.expect("answered").is_none()
        })
        .await;
    }
    for (kind, name) in names {
        let api = anything(&stage, NAMESPACE, kind);
        // Even with our label.
        let labels = json!({ "labels": { "umbel.dev/pool": "taken" } });
        let mut fields = match kind.1 {
            "Role" => json!({ "rules": [] }),
            "RoleBinding" => {
                json!({ "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "none" } })
            }
            "PodDisruptionBudget" => {
                json!({ "spec": { "minAvailable": 7, "selector": { "matchLabels": { "a": "b" } } } })
            }
            "Deployment" => json!({ "spec": { "replicas": 0, "selector": { "matchLabels": { "a": "b" } }, "template": {
                "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "x" }] } } } }),
            _ => json!({}),
        };
        fields["metadata"] = labels;
        apply_in(&stage, NAMESPACE, kind, &name, fields).await;
        let before = api.get(&name).await.expect("there");
        stage.pool_of("taken", spec.clone()).await;
        shows(&stage, "taken", &format!("{} {name}", kind.1)).await;
        let condition = stage.condition("taken", "Ready").await.expect("it is there");
        assert_eq!(condition.1, "NameTaken", "{condition:?}");
        stage
            .pools()
            .delete("taken", &DeleteParams::default())
            .await
            .expect("deleted");
        eventually(LONG, "the pool is gone", async || {
            stage.pools().get_opt("taken").await.expect("answered").is_none()
        })
        .await;
        // Its other children go with it, which takes the controllers a while; this one stays as it was.
        eventually(LONG, "no child of it is left", async || {
            let mut left = 0;
            for kind in [ACCOUNT, ROLE, BINDING, BUDGET, DEPLOYMENT] {
                let items = anything(&stage, NAMESPACE, kind)
                    .list(&all)
                    .await
                    .expect("a list")
                    .items;
                left += items.iter().filter(|one| !one.owner_references().is_empty()).count();
            }
            left == 0
        })
        .await;
        let after = api.get(&name).await.expect("it is still there");
        assert_eq!(
            (&after.metadata.uid, &after.data["spec"]),
            (&before.metadata.uid, &before.data["spec"])
        );
        assert!(after.owner_references().is_empty());
        api.delete(&name, &DeleteParams::default()).await.expect("deleted");
    }
    assert!(operator.exit().is_none());
}

/// A pool is deleted, and its children are left. A pool of that name made later is another one: it does not take them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k18_orphans_are_not_adopted_by_a_pool_of_the_same_name() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    manual(&stage, "jobs", 1).await;
    stage.ready("jobs", 1).await;
    let before = uids(&stage, "jobs").await;
    let name = stage.deployment("jobs").await.expect("there").name_any();
    let orphan = DeleteParams {
        propagation_policy: Some(kube::api::PropagationPolicy::Orphan),
        ..DeleteParams::default()
    };
    stage.pools().delete("jobs", &orphan).await.expect("deleted");
    eventually(LONG, "the pool is gone, and the Deployment nobody's", async || {
        stage.pools().get_opt("jobs").await.expect("answered").is_none()
            && stage
                .deployments()
                .get(&name)
                .await
                .expect("it stays")
                .owner_references()
                .is_empty()
    })
    .await;
    manual(&stage, "jobs", 2).await;
    eventually(LONG, "it says whose name it meets", async || {
        let found = stage.condition("jobs", "Ready").await;
        found.is_some_and(|(_, reason, _)| reason == "NameTaken")
    })
    .await;
    let left = stage.deployments().get(&name).await.expect("it stays");
    assert!(left.owner_references().is_empty());
    assert_eq!(left.spec.replicas, Some(1), "{}", operator.tail());
    assert_eq!(uids(&stage, "jobs").await, before);
    assert!(kubelet.removals().is_empty());
    // Whoever has left them takes them away; then it works.
    for kind in [DEPLOYMENT, ACCOUNT] {
        let api = anything(&stage, NAMESPACE, kind);
        for one in api.list(&kube::api::ListParams::default()).await.expect("a list").items {
            if one.labels().get("umbel.dev/pool").is_some() || one.name_any().contains("jobs") {
                api.delete(&one.name_any(), &DeleteParams::default())
                    .await
                    .expect("deleted");
            }
        }
    }
    stage.ready("jobs", 2).await;
}

/// Each call takes two seconds: nobody loses the Lease, and children are made once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k22_a_slow_api_server_costs_no_lease_and_makes_no_child_twice() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let gateway = Gateway::to(&stage.plane).await;
    gateway.rule(|_: &Asked| Fate::Late(Duration::from_secs(2)));
    let usual = |id| {
        [
            "--id",
            id,
            "--lease-duration",
            "15s",
            "--renew-deadline",
            "10s",
            "--retry-period",
            "2s",
        ]
    };
    let mut first = through(&gateway, &stage, &usual("first"));
    stage.queue("jobs").await;
    manual(&stage, "jobs", 1).await;
    leads(&mut first).await;
    let leader = holder(&stage).await;
    let mut second = through(&gateway, &stage, &usual("second"));
    stage.ready("jobs", 1).await;
    assert_eq!(stage.deployments_of("jobs").await.len(), 1);
    assert_eq!(stage.pods_of("jobs").await.len(), 1);
    assert_eq!(holder(&stage).await, leader);
    assert!(first.exit().is_none() && second.exit().is_none());
    assert!(!second.log().contains("\"leading\""));
    assert!(kubelet.removals().is_empty());
}

/// An operator an hour ahead of the API server and of its leader waits as long as any other; so does one an hour behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k25_clocks_an_hour_apart_make_no_second_leader() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let mut leader = stage.operator(&["--id", "first"], &[]);
    stage.queue("jobs").await;
    manual(&stage, "jobs", 1).await;
    stage.ready("jobs", 1).await;
    let mut size = 1;
    for (id, clock) in [("ahead", "+3600s"), ("behind", "-3600s")] {
        let gateway = Gateway::to(&stage.plane).await;
        let begin = Instant::now();
        let mut next = stage.operator(
            &["--id", id],
            &[
                &[
                    ("KUBECONFIG", gateway.kubeconfig().as_str()),
                    ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
                ],
                clocks(clock).as_slice(),
            ]
            .concat(),
        );
        let held = holder(&stage).await;
        eventually(LONG, "it has looked for longer than two Leases last", async || {
            let seen = gateway.seen(begin);
            let mut looks = seen.iter().filter(|(asked, _)| asked.path.contains("/leases/"));
            let first = looks.next().map(|(asked, _)| asked.at);
            first.is_some_and(|first| first.elapsed() > Duration::from_secs(7)) && looks.count() > 8
        })
        .await;
        assert!(!next.log().contains("\"leading\""), "{}", next.tail());
        assert!(leader.exit().is_none(), "{}", leader.tail());
        assert_eq!(holder(&stage).await, held);
        leader.kill();
        leads(&mut next).await;
        let there = holder(&stage).await.expect("a holder");
        assert!(there.starts_with(id), "{there}");
        size = 3 - size;
        manual(&stage, "jobs", size).await;
        stage.ready("jobs", size).await;
        leader = next;
        // The gateway of this leader stays until the end.
        std::mem::forget(gateway);
    }
    eventually(LONG, "no other pod is left", async || {
        stage.pods_of("jobs").await.len() == 1
    })
    .await;
    assert_no_wrong_removal(&kubelet, &leader);
}

/// What a webhook says no to, and one that never answers: both are quoted, and asked again seldom.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k15_what_a_webhook_says_or_does_not_say_is_quoted() {
    let stage = Stage::start().await;
    let _kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let gateway = Gateway::to(&stage.plane).await;
    let mut operator = through(&gateway, &stage, &[]);
    stage.queue("jobs").await;
    // It takes connections and says nothing.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = deaf.local_addr().expect("an address").port();
    let webhook = |plural: &str, groups: &str, operation: &str| {
        json!({ "webhooks": [{
            "name": "deaf.test.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None", "timeoutSeconds": 2,
            "failurePolicy": "Fail", "clientConfig": { "url": format!("https://127.0.0.1:{port}/") },
            "rules": [{ "apiGroups": [groups], "apiVersions": ["*"], "operations": [operation], "resources": [plural] }],
        }] })
    };
    let hooks = (
        "admissionregistration.k8s.io/v1",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
    );
    for (pool, plural, group, operation) in [
        ("made", "deployments", "apps", "CREATE"),
        ("sized", "deployments/scale", "apps", "UPDATE"),
        ("marked", "pods", "", "UPDATE"),
    ] {
        apply_in(&stage, "", hooks, "deaf", webhook(plural, group, operation)).await;
        // Until it is in force.
        let begin = Instant::now();
        let spec =
            json!({ "queues": [{ "name": "jobs" }], "concurrency": 1, "replicas": 0, "scaling": { "mode": "Manual" } });
        let probe = format!("{pool}-probe");
        if operation == "CREATE" {
            let bare = json!({ "spec": { "replicas": 0, "selector": { "matchLabels": { "a": "b" } }, "template": {
                "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "x" }] } } } });
            eventually(LONG, "the webhook is asked", async || {
                stage
                    .try_apply("apps/v1", "Deployment", "deployments", &probe, bare.clone())
                    .await
                    .is_err()
            })
            .await;
        } else {
            eventually(LONG, "the configuration is known", async || {
                begin.elapsed() > Duration::from_secs(2)
            })
            .await;
        }
        let mut spec = spec;
        spec["replicas"] = json!(1);
        stage.pool_of(pool, spec).await;
        shows(&stage, pool, "failed calling webhook \"deaf.test.dev\"").await;
        let since = Instant::now();
        eventually(LONG, "it has had time to ask again", async || {
            since.elapsed() > Duration::from_secs(6)
        })
        .await;
        let asked = gateway
            .writes(since)
            .iter()
            .filter(|(asked, code)| *code == 500 && !asked.path.contains("status"))
            .count();
        println!("{pool}: {asked} times in 6 s");
        assert!(asked <= 6, "{asked} times in 6 s");
        anything(&stage, "", hooks)
            .delete("deaf", &DeleteParams::default())
            .await
            .expect("deleted");
        stage.ready(pool, 1).await;
    }
    assert!(operator.exit().is_none());
}

/// Ten thousand pods of somebody's pools in a cluster, as an API server tells of them page by page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k24_ten_thousand_pods_take_less_than_128_mib() {
    const PODS: usize = 10_000;
    let stage = Stage::start().await;
    let gateway = Gateway::to(&stage.plane).await;
    let pod = |number: usize| {
        let variables: Vec<Value> = (0..30)
            .map(|at| json!({ "name": format!("VARIABLE_{at}"), "value": "some text of usual length" }))
            .collect();
        let owned: serde_json::Map<String, Value> = (0..60).map(|at| (format!("f:field-{at}"), json!({}))).collect();
        json!({
            "metadata": {
                "name": format!("pod-{number}"), "namespace": "elsewhere", "uid": format!("uid-{number}"), "resourceVersion": "1",
                "labels": { "umbel.dev/pool": format!("pool-{}", number % 500), "app.kubernetes.io/name": "umbel-worker" },
                "managedFields": [{ "manager": "kubelet", "operation": "Update", "fieldsV1": { "f:status": owned } }],
            },
            "spec": { "containers": [{ "name": "worker", "image": "umbel:dev", "env": variables }] },
            "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] },
        })
    };
    gateway.rule(move |asked: &Asked| {
        if asked.path != "/api/v1/pods" {
            return Fate::Pass;
        }
        if asked.is_watch() {
            return Fate::Ask(asked.query.replace("resourceVersion=1&", "resourceVersion=0&"));
        }
        let value = |name: &str| asked.query.split('&').find_map(|pair| pair.strip_prefix(name)?.parse::<usize>().ok());
        let (from, limit) = (value("continue=").unwrap_or(0), value("limit=").unwrap_or(500));
        let until = (from + limit).min(PODS);
        let next = (until < PODS).then(|| until.to_string());
        let items: Vec<Value> = (from..until).map(pod).collect();
        Fate::Answer(200, json!({
            "kind": "PodList", "apiVersion": "v1", "metadata": { "resourceVersion": "1", "continue": next }, "items": items,
        }))
    });
    let begin = Instant::now();
    let mut operator = through(&gateway, &stage, &[]);
    leads(&mut operator).await;
    stage.queue("jobs").await;
    stage.pool("jobs", 1, json!({ "maxReplicas": 0 })).await;
    eventually(LONG, "it works", async || stage.size("jobs").await == Some(0)).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", operator.pid())).expect("it runs");
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("a figure")
        .trim();
    let kib: u64 = peak.trim_end_matches(" kB").trim().parse().expect("a number");
    println!("{PODS} pods: {} MiB at most", kib / 1024);
    assert!(kib < 128 * 1024, "{} MiB", kib / 1024);
    let pages = gateway
        .seen(begin)
        .iter()
        .filter(|(asked, _)| asked.is_list_of("pods"))
        .count();
    assert!(pages >= PODS / 500, "{pages} pages");
}

/// A pool, its queue and that one's Secret in each order: what came last is noticed soon; so are its end and its return.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k26_what_is_referred_to_may_come_later_in_any_order_and_go() {
    let stage = Stage::start().await;
    let _operator = stage.operator(&[], &[]);
    stage.queue("mark").await;
    eventually(LONG, "the operator works", async || {
        let status = stage.queues().get("mark").await.expect("there").status;
        status.is_some_and(|status| umbel_api::condition::holds(&status.conditions, "Ready"))
    })
    .await;
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let make = async |what: usize, name: &str| match what {
        0 => stage.secret(name, &stage.redis.url()).await,
        1 => {
            let spec = json!({ "broker": { "redis": { "urlSecretRef": { "name": name, "key": "url" } } } });
            stage
                .apply(OURS, "TaskQueue", "taskqueues", name, json!({ "spec": spec }))
                .await;
        }
        _ => stage.pool(name, 1, json!({ "maxReplicas": 0 })).await,
    };
    let serves = async |name: &str| {
        let reachable = stage.condition(name, "BrokerReachable").await;
        stage.size(name).await == Some(0) && reachable.is_some_and(|(status, _, _)| status == "True")
    };
    let mut worst = Duration::ZERO;
    for order in orders {
        let name = format!("n{}{}{}", order[0], order[1], order[2]);
        for (at, what) in order.into_iter().enumerate() {
            if at == 2 && order[..2].contains(&2) {
                // It has found that something is missing.
                eventually(LONG, "the pool complains", async || {
                    let status = stage.status(&name).await;
                    status.conditions.iter().any(|one| one.status == "False")
                })
                .await;
            }
            make(what, &name).await;
        }
        let begin = Instant::now();
        eventually(LONG, &format!("{name} works"), async || serves(&name).await).await;
        println!("{name}: {:?}", begin.elapsed());
        worst = worst.max(begin.elapsed());
    }
    // It goes and comes, more than once: a leader that only reads it again takes ten seconds to see that.
    let name = "n012";
    let secrets: Api<k8s_openapi::api::core::v1::Secret> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let (mut gone, mut again) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        secrets.delete(name, &DeleteParams::default()).await.expect("deleted");
        let begin = Instant::now();
        eventually(LONG, "the queue says so", async || {
            let status = stage.queues().get(name).await.expect("there").status;
            let conditions = status.unwrap_or_default().conditions;
            umbel_api::condition::find(&conditions, "Ready").is_some_and(|ready| ready.reason == "SecretNotUsable")
        })
        .await;
        gone.push(begin.elapsed());
        make(0, name).await;
        let begin = Instant::now();
        eventually(LONG, "the queue works again", async || {
            let status = stage.queues().get(name).await.expect("there").status;
            umbel_api::condition::holds(&status.unwrap_or_default().conditions, "Ready")
        })
        .await;
        again.push(begin.elapsed());
    }
    println!("a deleted Secret: {gone:?}; made again: {again:?}");
    let (soonest, gone) = (
        gone.iter().min().copied().expect("three"),
        gone.iter().max().copied().expect("three"),
    );
    let again = again.iter().max().copied().expect("three");
    stage
        .queues()
        .delete(name, &DeleteParams::default())
        .await
        .expect("deleted");
    let begin = Instant::now();
    shows(&stage, name, "TaskQueue n012").await;
    println!("a deleted queue: {:?}", begin.elapsed());
    make(1, name).await;
    eventually(LONG, "the pool works again", async || {
        let found = stage.condition(name, "Ready").await;
        found.is_none_or(|(_, reason, _)| reason != "UnknownQueue")
    })
    .await;
    // Five seconds, and what a busy machine takes beyond.
    let most = Duration::from_secs(15);
    assert!(
        worst < most && gone < most && again < most && soonest < Duration::from_secs(5),
        "{worst:?} {soonest:?} {gone:?} {again:?}"
    );
}

/// Hundreds of objects change at the same instant: all are answered, one that changes in the middle of it soon, and memory
/// stays small.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k19_hundreds_of_changes_at_once_are_all_answered() {
    const ALL: usize = 400;
    let stage = Stage::start().await;
    let mut operator = stage.operator(&[], &[]);
    leads(&mut operator).await;
    let queues = stage.queues();
    let spec = |name: &str, limit: &str| {
        json!({ "apiVersion": OURS, "kind": "TaskQueue", "metadata": { "name": name }, "spec": {
            "broker": { "redis": { "urlSecretRef": { "name": "redis", "key": "url" } } }, "timeLimit": limit,
        } })
    };
    let params = PatchParams::apply("test").force();
    for (limit, generation) in [("1h", 1), ("2h", 2)] {
        let begin = Instant::now();
        let send = (0..ALL).map(|number| {
            let name = format!("q{number}");
            let (queues, params, body) = (queues.clone(), params.clone(), Patch::Apply(spec(&name, limit)));
            async move { queues.patch(&name, &params, &body).await.map(|_| ()) }
        });
        let sent: Vec<Result<(), kube::Error>> = futures::stream::iter(send).buffer_unordered(32).collect().await;
        let refused: Vec<_> = sent.into_iter().filter_map(Result::err).collect();
        assert!(refused.is_empty(), "{:?}", refused.first());
        let sent = begin.elapsed();
        let late = format!("late-{generation}");
        stage.queue(&late).await;
        let is_answered = |queue: &umbel_api::TaskQueue| {
            let status = queue.status.as_ref();
            status.is_some_and(|status| {
                status.observed_generation == queue.metadata.generation
                    && umbel_api::condition::holds(&status.conditions, "Ready")
            })
        };
        eventually(LONG, "who came in the middle of it is served", async || {
            is_answered(&queues.get(&late).await.expect("there"))
        })
        .await;
        let middle = begin.elapsed();
        eventually(LONG * 2, "all are answered", async || {
            let all = queues
                .list(&kube::api::ListParams::default())
                .await
                .expect("a list")
                .items;
            let rest = all.iter().filter(|queue| queue.metadata.generation == Some(generation));
            let answered = rest.filter(|queue| is_answered(queue)).count();
            answered >= ALL
        })
        .await;
        println!(
            "{ALL} objects: sent in {sent:?}, one more served after {middle:?}, all answered after {:?}",
            begin.elapsed()
        );
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", operator.pid())).expect("it runs");
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("a figure")
        .trim();
    let kib: u64 = peak.trim_end_matches(" kB").trim().parse().expect("a number");
    println!("{} MiB at most", kib / 1024);
    assert!(kib < 128 * 1024, "{peak}");
}

/// A pool whose fault comes and goes again and again: its Events are counted, not repeated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k23_a_fault_that_comes_and_goes_makes_one_event() {
    let stage = Stage::start().await;
    let gateway = Gateway::to(&stage.plane).await;
    let _operator = through(&gateway, &stage, &[]);
    stage.queue("jobs").await;
    let begin = Instant::now();
    let spec = |queue: &str| json!({ "queues": [{ "name": queue }], "suspend": true });
    for round in 0..20 {
        // Each time in the same words.
        stage
            .pool_of("jobs", spec(if round % 2 == 0 { "nowhere" } else { "jobs" }))
            .await;
        eventually(LONG, "it is looked at", async || {
            let pool = stage.pools().get("jobs").await.expect("there");
            let generation = pool.metadata.generation;
            pool.status
                .is_some_and(|status| status.observed_generation == generation)
        })
        .await;
    }
    let events: Api<k8s_openapi::api::core::v1::Event> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let all = events
        .list(&kube::api::ListParams::default())
        .await
        .expect("a list")
        .items;
    let told: Vec<_> = all
        .iter()
        .filter(|event| event.reason.as_deref() == Some("UnknownQueue"))
        .collect();
    let sent = gateway
        .seen(begin)
        .iter()
        .filter(|(asked, _)| asked.path.contains("/events"))
        .count();
    println!("{} objects of {} Events, {sent} requests", told.len(), all.len());
    assert_eq!(told.len(), 1, "{told:#?}");
}
