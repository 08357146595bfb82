//! Random changes of every property that the schemas of our kinds know, to what is allowed and to what is not. Whatever the
//! API server lets through, the operator must survive, answer in status, and bring about with few writes; and nobody else
//! may be disturbed.
//!
//! The properties are those of the definitions, so a new field is changed without a word here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use umbel_testkit::{Chance, Process, TempDir, eventually};

use crate::common::{Kubelet, LONG, NAMESPACE, Stage};
use crate::number;
use crate::schema::{self, Way};

const OURS: &str = "umbel.dev/v1alpha1";
/// The name of each object that is changed.
const MUTANT: &str = "mutant";
/// An object that has not answered by then has not converged.
const PATIENT: Duration = Duration::from_secs(45);
/// Writes of a child that one generation of a pool may cost, its size apart.
const MOST_WRITES: usize = 3;

/// One of our kinds, with an object that works.
struct Kind {
    resource: ApiResource,
    schema: Value,
    ways: Vec<Way>,
    base: Value,
    other: Option<Value>,
    /// The condition that says whether it works, and why not.
    condition: &'static str,
}

fn kinds() -> Vec<Kind> {
    let of = |(_, definition): (
        &str,
        k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    )| {
        let whole = serde_json::to_value(&definition).expect("plain data");
        let version = &whole["spec"]["versions"][0];
        let schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"].clone();
        let names = &whole["spec"]["names"];
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let (base, condition) = base(&text(&names["kind"]));
        Kind {
            resource: ApiResource {
                group: text(&whole["spec"]["group"]),
                version: text(&version["name"]),
                api_version: OURS.into(),
                kind: text(&names["kind"]),
                plural: text(&names["plural"]),
            },
            ways: schema::ways(&schema),
            other: other(&text(&names["kind"])),
            schema,
            base,
            condition,
        }
    };
    umbel_api::definitions().into_iter().map(of).collect()
}

fn base(kind: &str) -> (Value, &'static str) {
    match kind {
        "TaskQueue" => (
            json!({ "broker": { "redis": { "urlSecretRef": { "name": "redis", "key": "url" } } } }),
            "Ready",
        ),
        "WorkerPool" => (
            json!({ "queues": [{ "name": "jobs" }], "concurrency": 1, "replicas": 2, "scaling": { "mode": "Manual" } }),
            "Ready",
        ),
        "PeriodicTask" => (
            json!({ "schedule": { "cron": "0 0 1 1 *" }, "taskTemplate": { "queueRef": { "name": "jobs" }, "task": "umbel.echo" } }),
            "Scheduled",
        ),
        "TargetCluster" => (
            json!({ "kubeconfigSecretRef": { "name": "target", "key": "kubeconfig" } }),
            "KubeconfigAccepted",
        ),
        "Task" => (
            json!({ "taskTemplate": { "queueRef": { "name": "jobs" }, "task": "umbel.echo" } }),
            "Succeeded",
        ),
        other => panic!("{other} has no object to begin with"),
    }
}

impl Kind {
    /// What is changed: where one thing excludes another, each of them in turn.
    fn base_of(&self, round: usize) -> &Value {
        match &self.other {
            Some(other) if (round / self.ways.len()) % 2 == 1 => other,
            Some(_) | None => &self.base,
        }
    }
}

/// A template of steps, for some clusters at a time.
fn other(kind: &str) -> Option<Value> {
    let template = json!({
        "queueRef": { "name": "jobs" },
        "steps": [{ "name": "a", "task": "umbel.echo" }, { "name": "b", "task": "umbel.echo", "dependsOn": ["a"] }],
        "targets": { "selector": {}, "rollout": {
            "type": "ProgressivePerGroup", "maxConcurrency": 1, "groups": [{ "name": "all", "selector": {} }],
        } },
    });
    match kind {
        "PeriodicTask" => Some(json!({ "schedule": { "every": "1h" }, "runOnCreate": true, "taskTemplate": template })),
        "Task" => Some(json!({ "taskTemplate": template })),
        _ => None,
    }
}

/// What became of the changes of one kind.
#[derive(Default)]
struct Outcome {
    kind: String,
    properties: usize,
    changes: usize,
    refused: usize,
    /// Accepted, and the same as before.
    same: usize,
    converged: usize,
    works: usize,
    slowest: Duration,
    reasons: BTreeMap<String, usize>,
    silent: Vec<String>,
    /// Properties of which no change was ever accepted.
    untouched: BTreeSet<String>,
    /// When each generation was asked for.
    asked: Vec<Timestamp>,
}

impl Outcome {
    fn is_good(&self) -> bool {
        self.silent.is_empty() && self.refused + self.same + self.converged == self.changes
    }
}

async fn vary(api: &Api<DynamicObject>, kind: &Kind, changes: usize, mut chance: Chance) -> Outcome {
    let mut outcome = Outcome {
        kind: kind.resource.kind.clone(),
        properties: kind.ways.len(),
        changes,
        untouched: kind.ways.iter().map(|way| way.join(".")).collect(),
        ..Outcome::default()
    };
    let mut last = apply(api, kind, &kind.base).await.expect("an object that works");
    for round in 0..changes {
        // What a Task sends is fixed when it is made.
        if kind.resource.kind == "Task" {
            remove(api, kind).await;
            last = None;
        } else if round % 50 == 49 {
            anew(api, kind).await;
            last = None;
        }
        // Each property in turn, and sometimes others with it.
        let mut ways = vec![&kind.ways[round % kind.ways.len()]];
        while chance.one_in(3) {
            ways.push(chance.of(&kind.ways));
        }
        let mut spec = kind.base_of(round).clone();
        for way in ways.iter().rev() {
            schema::change(&mut spec, &kind.schema, way, &mut chance);
        }
        let began = Instant::now();
        let now = Timestamp::try_from(SystemTime::now()).expect("a time of today");
        let Some(generation) = (match apply(api, kind, &spec).await {
            Ok(generation) => generation,
            // Of another type than the schema's it is no patch at all to the API server, which takes that for its own fault.
            Err(kube::Error::Api(status))
                if (400..500).contains(&status.code) || status.message.starts_with("failed to create typed patch") =>
            {
                outcome.refused += 1;
                continue;
            }
            Err(error) => panic!("{spec}: {error}"),
        }) else {
            panic!("an object without a generation");
        };
        if Some(generation) == last {
            outcome.same += 1;
            continue;
        }
        last = Some(generation);
        outcome.asked.push(now);
        outcome.untouched.remove(&ways[0].join("."));
        match answer(api, kind, generation).await {
            Ok((works, reason)) => {
                outcome.converged += 1;
                outcome.works += usize::from(works);
                *outcome.reasons.entry(reason).or_default() += 1;
                outcome.slowest = outcome.slowest.max(began.elapsed());
            }
            Err(seen) => outcome.silent.push(format!("{}: {spec}\n  {seen}", outcome.kind)),
        }
    }
    outcome
}

/// Applies the spec as a whole; the generation that the object has then.
async fn apply(api: &Api<DynamicObject>, kind: &Kind, spec: &Value) -> Result<Option<i64>, kube::Error> {
    let body = json!({
        "apiVersion": OURS, "kind": kind.resource.kind, "metadata": { "name": MUTANT }, "spec": spec,
    });
    let written = api
        .patch(MUTANT, &PatchParams::apply("test").force(), &Patch::Apply(body))
        .await;
    written.map(|after| after.metadata.generation)
}

/// Deletes the object: what is fixed when it is made can be another next time.
async fn anew(api: &Api<DynamicObject>, kind: &Kind) {
    let generation = apply(api, kind, &kind.base).await.expect("an object that works");
    let generation = generation.expect("it has a generation");
    let _ = answer(api, kind, generation).await;
    remove(api, kind).await;
}

async fn remove(api: &Api<DynamicObject>, kind: &Kind) {
    match api.delete(MUTANT, &DeleteParams::default()).await {
        Ok(_) => {}
        // A change that made none, or one whose time was over.
        Err(kube::Error::Api(status)) if status.code == 404 => return,
        Err(error) => panic!("it goes: {error}"),
    }
    let accounts: Api<ServiceAccount> = Api::namespaced(api.clone().into_client(), NAMESPACE);
    eventually(LONG, "it is gone, and its children with it", async || {
        let account = accounts
            .get_opt(&format!("umbel-pool-{MUTANT}"))
            .await
            .expect("an answer");
        let is_gone = api.get_opt(MUTANT).await.expect("an answer").is_none();
        // Children of another object of this name are in the way for 20 s.
        is_gone && (account.is_none() || kind.resource.kind != "WorkerPool")
    })
    .await;
}

/// Waits until status speaks of this generation: whether the object works, and the reason. Or what it says instead.
async fn answer(api: &Api<DynamicObject>, kind: &Kind, generation: i64) -> Result<(bool, String), String> {
    let begin = Instant::now();
    loop {
        let seen = api.get_opt(MUTANT).await.expect("an answer");
        let Some(seen) = seen else {
            assert_eq!(kind.resource.kind, "Task", "it is there");
            return Ok((true, "Expired".into()));
        };
        let status = &seen.data["status"];
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let found = conditions.into_iter().find(|one| one["type"] == kind.condition);
        let is_about_this = status["observedGeneration"] == json!(generation);
        if let Some(found) = found.filter(|_| is_about_this) {
            let word = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
            let (says, reason, message) = (word("status"), word("reason"), word("message"));
            let is_told =
                ["True", "False", "Unknown"].contains(&says.as_str()) && !reason.is_empty() && !message.is_empty();
            let is_under_way = message == "the Deployment is being made" || reason == "NotAskedYet";
            if is_told && !is_under_way && found["observedGeneration"] == json!(generation) {
                return Ok((says == "True", reason));
            }
        }
        if begin.elapsed() > PATIENT {
            return Err(format!("generation {generation}, status {status}"));
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

/// The API server's own account of who wrote what.
struct Audit {
    folder: TempDir,
}

impl Audit {
    fn new() -> Audit {
        let folder = TempDir::new("audit");
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [
                { "level": "Metadata", "namespaces": [NAMESPACE], "verbs": ["create", "update", "patch", "delete"], "resources": [
                    { "group": "apps", "resources": ["deployments", "deployments/scale"] },
                    { "group": "", "resources": ["serviceaccounts"] },
                    { "group": "rbac.authorization.k8s.io", "resources": ["roles", "rolebindings"] },
                    { "group": "policy", "resources": ["poddisruptionbudgets"] },
                ] },
                { "level": "None" },
            ],
        });
        std::fs::write(folder.path().join("policy"), policy.to_string()).expect("the policy is written");
        Audit { folder }
    }

    fn flags(&self) -> [String; 2] {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        [
            format!("--apiserver-arg=--audit-policy-file={}", path("policy")),
            format!("--apiserver-arg=--audit-log-path={}", path("log")),
        ]
    }

    /// What the operator wrote of the changed pool's children.
    fn writes(&self) -> Vec<Write> {
        let text = std::fs::read_to_string(self.folder.path().join("log")).expect("the API server writes it");
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter_map(|line| Write::of(&line)).collect()
    }
}

#[derive(Debug)]
struct Write {
    at: Timestamp,
    child: String,
    what: What,
    is_done: bool,
    /// It was a deletion.
    is_end: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Object,
    /// The size of a Deployment, which follows the pods.
    Size,
    /// A leader's term on a Deployment, before its first step.
    Term,
}

impl Write {
    fn of(line: &Value) -> Option<Write> {
        let text = |pointer: &str| line.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (uri, name) = (text("/requestURI"), text("/objectRef/name"));
        let is_ours = !text("/userAgent").starts_with("kube-");
        if !is_ours || !name.contains(MUTANT) || uri.contains("dryRun=") {
            return None;
        }
        let what = match text("/objectRef/subresource") {
            "scale" => What::Size,
            _ if uri.contains("fieldManager=umbel-operator-term") => What::Term,
            _ => What::Object,
        };
        Some(Write {
            at: text("/requestReceivedTimestamp").parse().ok()?,
            child: format!("{} {name}", text("/objectRef/resource")),
            what,
            is_end: text("/verb") == "delete",
            is_done: line.pointer("/responseStatus/code").and_then(Value::as_u64)? < 300,
        })
    }
}

/// Writes of one child within one generation: most, and how many of all.
#[derive(Debug, Default)]
struct Written {
    most: usize,
    whose: String,
    all: usize,
    refused: usize,
}

fn count(writes: &[Write], asked: &[Timestamp], what: What) -> Written {
    // By change, by child, and by how often a child of this name had been deleted: what is made anew is another one.
    let mut counts: BTreeMap<((usize, usize), &str), usize> = BTreeMap::new();
    let mut deleted: BTreeMap<&str, usize> = BTreeMap::new();
    let mine = || writes.iter().filter(|one| one.what == what);
    for one in mine().filter(|one| one.is_done) {
        let change = asked.partition_point(|at| *at <= one.at);
        let life = deleted.entry(&one.child).or_default();
        *counts.entry(((change, *life), &one.child)).or_default() += 1;
        *life += usize::from(one.is_end);
    }
    let most = counts.iter().max_by_key(|(_, count)| **count);
    Written {
        most: most.map_or(0, |(_, count)| *count),
        whose: most
            .map(|(((change, _), child), _)| format!("{child} at change {change}"))
            .unwrap_or_default(),
        all: mine().filter(|one| one.is_done).count(),
        refused: mine().filter(|one| !one.is_done).count(),
    }
}

/// Objects of each kind that nobody changes, with pods that work.
struct Calm {
    kubelet: Kubelet,
    before: BTreeMap<String, String>,
}

impl Calm {
    async fn start(stage: &Stage, kinds: &[Kind]) -> Calm {
        let kubelet = Kubelet::start_for(&stage.client, &stage.broker, "node-1", "umbel.dev/pool=calm").await;
        for kind in kinds {
            let (mut spec, ApiResource { kind, plural, .. }) = (kind.base.clone(), &kind.resource);
            if kind == "WorkerPool" {
                spec["queues"] = json!([{ "name": "calm" }]);
            }
            let fields = json!({ "spec": spec });
            stage.apply(OURS, kind, plural, "calm", fields).await;
        }
        stage.ready("calm", 2).await;
        let mut calm = Calm {
            kubelet,
            before: BTreeMap::new(),
        };
        // Who is steady is written by nobody; numbers in status apart.
        let mut since = Instant::now();
        eventually(LONG, "they are at rest", async || {
            let now = Calm::look(stage, kinds).await;
            if now != calm.before {
                (calm.before, since) = (now, Instant::now());
            }
            since.elapsed() > Duration::from_secs(5)
        })
        .await;
        calm
    }

    async fn look(stage: &Stage, kinds: &[Kind]) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for kind in kinds {
            let api: Api<DynamicObject> = Api::namespaced_with(stage.client.clone(), NAMESPACE, &kind.resource);
            let one = api.get("calm").await.expect("it is there");
            let conditions = one.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let say = |one: Value| format!("{}={} {}", one["type"], one["status"], one["reason"]);
            let said: Vec<String> = conditions.into_iter().map(say).collect();
            all.insert(
                kind.resource.kind.clone(),
                format!("{:?} {said:?}", one.metadata.generation),
            );
        }
        for one in stage.deployments_of("calm").await {
            all.insert(one.name_any(), one.resource_version().unwrap_or_default());
        }
        for one in stage.pods_of("calm").await {
            all.insert(one.name_any(), one.resource_version().unwrap_or_default());
        }
        all
    }

    /// Nobody was touched, and they work.
    async fn is_undisturbed(&self, stage: &Stage, kinds: &[Kind]) {
        assert_eq!(Calm::look(stage, kinds).await, self.before);
        assert!(self.kubelet.removals().is_empty());
        stage.send_sleeps("calm", 20, 0.01).await;
        stage.drained("calm", LONG).await;
    }
}

async fn run(changes: usize, seed: u64) -> (Vec<Outcome>, Vec<(What, Written)>, Process) {
    let mut chance = Chance::new(seed);
    let (audit, kinds) = (Audit::new(), kinds());
    let flags = audit.flags();
    let stage = Stage::start_with(&flags.each_ref().map(String::as_str)).await;
    // The controller-manager makes no more pods than this, whatever size is asked for.
    stage.quota("few", json!({ "pods": "12" })).await;
    let kubeconfig = std::fs::read_to_string(stage.plane.kubeconfig()).expect("a kubeconfig");
    let data = json!({ "stringData": { "kubeconfig": kubeconfig } });
    stage.apply("v1", "Secret", "secrets", "target", data).await;
    // Schedules of every second since 1970 find room for so many messages.
    let jobs = json!({
        "broker": { "redis": { "urlSecretRef": { "name": "redis", "key": "url" } } }, "limits": { "maxLength": 2000 },
    });
    stage
        .apply(OURS, "TaskQueue", "taskqueues", "jobs", json!({ "spec": jobs }))
        .await;
    let mut operator = stage.operator(&[], &[]);
    let calm = Calm::start(&stage, &kinds).await;
    let mut writes = Vec::new();

    // The children of a pool follow its clusters and queues as well, so nobody else changes while pools do.
    let (pools, others): (Vec<&Kind>, Vec<&Kind>) = kinds.iter().partition(|kind| kind.resource.kind == "WorkerPool");
    let mut outcomes = Vec::new();
    for together in [pools, others] {
        let mut running = Vec::new();
        for kind in together {
            let api: Api<DynamicObject> = Api::namespaced_with(stage.client.clone(), NAMESPACE, &kind.resource);
            let branch = chance.branch();
            running.push(async move { vary(&api, kind, changes, branch).await });
        }
        outcomes.extend(futures::future::join_all(running).await);
        if outcomes.len() == 1 {
            // What is written later is for the changes of others.
            writes = audit.writes();
        }
    }
    calm.is_undisturbed(&stage, &kinds).await;
    assert!(operator.exit().is_none(), "the operator ended\n{}", operator.tail());
    assert!(!operator.log().contains("panicked"), "{}", operator.tail());
    let asked = &outcomes
        .iter()
        .find(|one| one.kind == "WorkerPool")
        .expect("a pool")
        .asked;
    let written = [What::Object, What::Size, What::Term].map(|what| (what, count(&writes, asked, what)));
    (outcomes, written.into(), operator)
}

fn table(outcomes: &[Outcome], written: &[(What, Written)], seed: u64) {
    println!(
        "\nseed {seed}\n{:<14} {:>10} {:>8} {:>8} {:>6} {:>10} {:>6} {:>11}",
        "kind", "properties", "changes", "refused", "same", "converged", "works", "slowest, ms"
    );
    for one in outcomes {
        println!(
            "{:<14} {:>10} {:>8} {:>8} {:>6} {:>10} {:>6} {:>11}{}",
            one.kind,
            one.properties,
            one.changes,
            one.refused,
            one.same,
            one.converged,
            one.works,
            one.slowest.as_millis(),
            if one.is_good() { "" } else { "  BAD" }
        );
        println!("  reasons: {:?}", one.reasons);
        if !one.untouched.is_empty() {
            println!("  never accepted: {:?}", one.untouched);
        }
        for silent in &one.silent {
            println!("  no answer: {silent}");
        }
    }
    for (
        what,
        Written {
            most,
            whose,
            all,
            refused,
        },
    ) in written
    {
        println!(
            "writes of children, {what:?}: {all}, {refused} refused; most for one child and generation: {most} ({whose})"
        );
    }
}

async fn judge(changes: usize, seed: u64) {
    let (outcomes, written, operator) = run(changes, seed).await;
    table(&outcomes, &written, seed);
    assert!(outcomes.iter().all(Outcome::is_good), "BAD\n{}", operator.tail());
    let most = written[0].1.most;
    assert!(written[0].1.all > 0, "the API server's account is empty");
    assert!(most <= MOST_WRITES, "{most} writes of one child in one generation");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k27_some_random_changes_disturb_nobody() {
    judge(25, 1).await;
}

/// `CHANGES` of each kind by the `SEED`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make campaign-changes"]
async fn k27_random_changes_disturb_nobody() {
    judge(
        usize::try_from(number("CHANGES", 1000)).expect("a number"),
        number("SEED", 1),
    )
    .await;
}
