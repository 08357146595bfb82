//! What somebody does to a pool's children, and what keeps them from being made: each is set right, or said, with few writes.
//!
//! The fields are those that the operator owns on the live objects (`managedFields`), so a new one is tried without a word here.

#![allow(clippy::panic, reason = "a failure here is the failure of the test")]

mod common;
#[path = "k_faults/gateway.rs"]
mod gateway;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use common::{Kubelet, LONG, LONG_LEASES, NAMESPACE, Stage, clocks};
use gateway::Gateway;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Map, Value, json};
use umbel_testkit::eventually;

const OURS: &str = "umbel.dev/v1alpha1";
/// Writes of a child that one change of it may cost.
const MOST_WRITES: usize = 3;
/// Version, kind and plural of a kind.
type Kind = (&'static str, &'static str, &'static str);
const DEPLOYMENT: Kind = ("apps/v1", "Deployment", "deployments");
/// The label of the leader's term.
const TERM: &str = "umbel.dev/term";
/// What is made beside a pool's Deployments. It is not watched, but looked at every few minutes.
const BESIDE: [Kind; 4] = [
    ("v1", "ServiceAccount", "serviceaccounts"),
    ("rbac.authorization.k8s.io/v1", "Role", "roles"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings"),
    ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
];

fn of_kind(stage: &Stage, (version, kind, plural): Kind) -> Api<DynamicObject> {
    stage.objects(version, kind, plural)
}

/// The children of a pool that are of this kind, by name.
async fn children(stage: &Stage, kind: Kind, pool: &str) -> BTreeMap<String, DynamicObject> {
    let all = of_kind(stage, kind).list(&ListParams::default()).await;
    let all = all.expect("a list").items.into_iter();
    let is_child = |one: &DynamicObject| one.owner_references().iter().any(|owner| owner.name == pool);
    all.filter(is_child).map(|one| (one.name_any(), one)).collect()
}

/// One step down into an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Field(String),
    /// The item with these keys.
    Item(String),
    /// The item that is this.
    Value(String),
    /// The item at this place.
    Index(usize),
}

/// The way to a field.
type Way = Vec<Step>;

/// All fields that the operator owns on this object, and items of lists as a whole.
fn owned(object: &DynamicObject) -> BTreeSet<Way> {
    let mut ways = BTreeSet::new();
    for entry in object.managed_fields() {
        let is_ours = entry
            .manager
            .as_deref()
            .is_some_and(|name| name.starts_with("umbel-operator"));
        if let Some(fields) = entry
            .fields_v1
            .as_ref()
            .filter(|_| is_ours && entry.subresource.as_deref() != Some("status"))
        {
            walk(&fields.0, &mut Vec::new(), &mut ways);
        }
    }
    // What is owned as a whole has fields of its own.
    let whole = serde_json::to_value(object).expect("plain data");
    for way in ways.clone() {
        let below = place(&whole, &way).and_then(|place| whole.pointer(&place));
        let is_map = matches!(way.last(), Some(Step::Item(_)))
            && ways
                .iter()
                .any(|other| other.len() > way.len() && other.starts_with(&way));
        if let Some(below) = below.filter(|_| !is_map) {
            deepen(below, &mut way.clone(), &mut ways);
        }
    }
    ways
}

fn deepen(node: &Value, way: &mut Way, ways: &mut BTreeSet<Way>) {
    let below: Vec<(Step, &Value)> = match node {
        Value::Object(fields) => fields
            .iter()
            .map(|(key, node)| (Step::Field(key.clone()), node))
            .collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(at, node)| (Step::Index(at), node))
            .collect(),
        _ => Vec::new(),
    };
    for (step, node) in below {
        way.push(step);
        ways.insert(way.clone());
        deepen(node, way, ways);
        way.pop();
    }
}

fn walk(node: &Value, way: &mut Way, ways: &mut BTreeSet<Way>) {
    let below = || node.as_object().into_iter().flatten().filter(|(key, _)| *key != ".");
    let is_item = matches!(way.last(), Some(Step::Item(_) | Step::Value(_)));
    if !way.is_empty() && (is_item || below().next().is_none()) {
        ways.insert(way.clone());
    }
    for (key, node) in below() {
        let (kind, name) = key.split_once(':').expect("fieldsV1 has no other keys");
        let step = match kind {
            "f" => Step::Field(name.into()),
            "k" => Step::Item(name.into()),
            "v" => Step::Value(name.into()),
            _ => panic!("{key}: a list that is not a map"),
        };
        way.push(step);
        walk(node, way, ways);
        way.pop();
    }
}

/// Where this is in the object, as a JSON pointer.
fn place(object: &Value, way: &[Step]) -> Option<String> {
    let (mut node, mut pointer) = (object, String::new());
    for step in way {
        let key = match step {
            Step::Field(name) => name.replace('~', "~0").replace('/', "~1"),
            Step::Item(keys) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).expect("keys are JSON");
                let has = |item: &Value| keys.iter().all(|(key, value)| item[key] == *value);
                node.as_array()?.iter().position(has)?.to_string()
            }
            Step::Value(value) => {
                let value: Value = serde_json::from_str(value).expect("a value is JSON");
                node.as_array()?.iter().position(|item| *item == value)?.to_string()
            }
            Step::Index(at) => at.to_string(),
        };
        pointer = format!("{pointer}/{key}");
        node = object.pointer(&pointer)?;
    }
    Some(pointer)
}

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Deed {
    Changed,
    Removed,
}

/// The object with this field changed or removed; nothing where that is no change.
fn corrupted(object: &DynamicObject, way: &[Step], deed: Deed) -> Option<DynamicObject> {
    // An item with another key is one that was removed, and one of somebody else's beside ours.
    let is_key = match way {
        [.., Step::Item(_)] => true,
        [.., Step::Item(keys), Step::Field(field)] => keys.contains(&format!("\"{field}\":")),
        _ => false,
    };
    if is_key && deed == Deed::Changed {
        return None;
    }
    let mut whole = serde_json::to_value(object).expect("plain data");
    let pointer = place(&whole, way)?;
    let wrong = wrong(whole.pointer(&pointer)?).filter(|_| deed == Deed::Changed);
    match (deed, wrong) {
        (Deed::Changed, None) => return None,
        (_, Some(wrong)) => *whole.pointer_mut(&pointer)? = wrong,
        (Deed::Removed, None) => {
            let (parent, last) = pointer.rsplit_once('/')?;
            match whole.pointer_mut(parent)? {
                Value::Object(fields) => drop(fields.remove(&last.replace("~1", "/").replace("~0", "~"))),
                Value::Array(items) => drop(items.remove(last.parse().ok()?)),
                _ => return None,
            }
        }
    }
    whole["metadata"]["managedFields"] = Value::Null;
    serde_json::from_value(whole).ok()
}

/// Another value of the same type.
fn wrong(value: &Value) -> Option<Value> {
    Some(match value {
        Value::String(text) => json!(format!("{text}x")),
        Value::Number(number) => json!(number.as_i64()? + 1),
        Value::Bool(is) => json!(!is),
        Value::Array(items) => items.iter().map(wrong).collect::<Option<Vec<_>>>()?.into(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| Some((key.clone(), wrong(value)?)));
            fields.collect::<Option<Map<_, _>>>()?.into()
        }
        Value::Null => return None,
    })
}

/// What an object says, without what differs from one write to the next, and without the leader's term: that is set right
/// before it counts.
fn essence(object: &DynamicObject) -> Value {
    let without = |all: &BTreeMap<String, String>, key: &str| -> BTreeMap<String, String> {
        let rest = all.iter().filter(|(one, _)| *one != key);
        rest.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    let mut whole = serde_json::to_value(object).expect("plain data");
    whole["metadata"] = json!({
        "labels": without(object.labels(), TERM),
        "annotations": without(object.annotations(), "deployment.kubernetes.io/revision"),
        "finalizers": object.finalizers(), "ownerReferences": object.metadata.owner_references,
    });
    // Items of a list do not say what they are.
    for field in ["status", "apiVersion", "kind"] {
        whole[field] = Value::Null;
    }
    sort(&mut whole);
    whole
}

/// Items that have keys come in any order.
fn sort(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(sort),
        Value::Array(items) => {
            items.iter_mut().for_each(sort);
            if items.iter().all(Value::is_object) {
                items.sort_by_key(Value::to_string);
            }
        }
        _ => {}
    }
}

/// What became of the corruptions of a kind.
#[derive(Debug, Default)]
struct Outcome {
    fields: usize,
    repaired: usize,
    /// A condition says so, until it is as it was again.
    reported: Vec<String>,
    /// The API server does not let it happen.
    refused: usize,
    /// The API server writes it as it was.
    same: usize,
    most: usize,
    slowest: Duration,
}

/// Corrupts a field by hand: whether there is anything to set right now.
async fn corrupt(api: &Api<DynamicObject>, name: &str, way: &[Step], deed: Deed, outcome: &mut Outcome) -> bool {
    let by_hand = PostParams {
        field_manager: Some("vandal".into()),
        ..PostParams::default()
    };
    loop {
        let now = api.get(name).await.expect("it is there");
        let Some(wrong) = corrupted(&now, way, deed) else {
            outcome.same += 1;
            return false;
        };
        match api.replace(name, &by_hand, &wrong).await {
            Ok(after) if essence(&after) == essence(&now) => outcome.same += 1,
            Ok(_) => return true,
            // Its controller wrote in between.
            Err(kube::Error::Api(status)) if status.code == 409 => continue,
            Err(kube::Error::Api(status)) if (400..500).contains(&status.code) => outcome.refused += 1,
            Err(error) => panic!("{name} {way:?} {deed:?}: {error}"),
        }
        return false;
    }
}

/// A pool with all that makes children, and fields in them: cluster rights, a budget, Secrets, volumes of sources.
async fn rich(stage: &Stage, name: &str, shields: bool, replicas: u32) {
    let template = json!({
        "metadata": { "annotations": { "test.dev/note": "a" } },
        "spec": {
            "containers": [{
                "name": "worker", "image": "w", "resources": { "requests": { "cpu": "10m" } },
                "env": [{ "name": "VERSION", "value": "1" }],
            }],
            "nodeSelector": { "kubernetes.io/os": "linux" },
        },
    });
    let mut spec = json!({
        "queues": [{ "name": "jobs" }], "concurrency": 1, "replicas": replicas, "scaling": { "mode": "Manual" },
        "clusterAccess": { "names": ["target"] }, "template": template, "jobs": { "secrets": { "names": ["one"] } },
    });
    if shields {
        spec["protection"] = json!({ "onEviction": ["DisruptionBudget"] });
    } else {
        spec["podDisruptionBudget"] = json!({ "minAvailable": 1 });
    }
    stage.pool_of(name, spec).await;
}

async fn target(stage: &Stage) {
    stage.secret("target", "x").await;
    let cluster = json!({ "spec": { "kubeconfigSecretRef": { "name": "target", "key": "url" } } });
    stage
        .apply(OURS, "TargetCluster", "targetclusters", "target", cluster)
        .await;
}

/// Whether the pool says of this child that something is wrong with it.
async fn complains(stage: &Stage, pool: &str, child: &str) -> bool {
    let found = stage.condition(pool, "Ready").await;
    found.is_some_and(|(status, _, message)| status == "False" && message.contains(child))
}

async fn is_ready(stage: &Stage, pool: &str) -> bool {
    let found = stage.condition(pool, "Ready").await;
    found.is_some_and(|(status, _, _)| status == "True")
}

/// Whether the child is as it was.
async fn is_right(api: &Api<DynamicObject>, before: &DynamicObject) -> bool {
    let now = api.get_opt(&before.name_any()).await.expect("an answer");
    now.is_some_and(|now| now.metadata.deletion_timestamp.is_none() && essence(&now) == essence(before))
}

/// The object as it was before, by hand.
async fn put_back(api: &Api<DynamicObject>, before: &DynamicObject) {
    let name = before.name_any();
    loop {
        let Some(now) = api.get_opt(&name).await.expect("an answer") else {
            return; // The garbage collector takes what has no owner.
        };
        let mut whole = before.clone();
        whole.metadata.managed_fields = None;
        whole.metadata.resource_version = now.resource_version();
        whole.metadata.uid = now.uid();
        match api.replace(&name, &PostParams::default(), &whole).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => {}
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

/// Accepted writes of this child since then.
fn writes_of(gateway: &Gateway, kind: Kind, name: &str, since: Instant) -> usize {
    let path = format!("/{}/{name}", kind.2);
    let all = gateway.writes(since);
    let is_of = |asked: &gateway::Asked| {
        let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
        let is_made = asked.method == "POST" && asked.path.ends_with(&format!("/{}", kind.2));
        asked.path.ends_with(&path)
            || asked.path.ends_with(&format!("{path}/scale"))
            || (is_made && body["metadata"]["name"] == name)
    };
    all.iter().filter(|(asked, code)| *code < 300 && is_of(asked)).count()
}

/// Nothing is written for a while from now on.
async fn is_quiet(gateway: &Gateway) {
    const WHILE: Duration = Duration::from_secs(3);
    let begin = Instant::now();
    eventually(LONG, "nothing is written any more", async || {
        let last = gateway.writes(begin).last().map_or(begin, |(asked, _)| asked.at);
        last.elapsed() > WHILE
    })
    .await;
}

/// Every field of a Deployment, one at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k27_every_field_of_a_deployment_that_is_corrupted_is_set_right_or_reported() {
    let stage = Stage::start().await;
    let gateway = Gateway::to(&stage.plane).await;
    let mut operator = stage.operator(&[], &[("KUBECONFIG", &gateway.kubeconfig())]);
    stage.queue("jobs").await;
    target(&stage).await;
    let sizes = async || {
        for size in [1, 0] {
            rich(&stage, "pool", false, size).await;
            let wanted = i32::try_from(size).ok();
            eventually(LONG, "its size", async || stage.size("pool").await == wanted).await;
        }
    };
    // It is stepped down, so a leader's term stands on it.
    sizes().await;
    eventually(LONG, "it is ready", async || is_ready(&stage, "pool").await).await;
    is_quiet(&gateway).await;
    let api = of_kind(&stage, DEPLOYMENT);
    let before = children(&stage, DEPLOYMENT, "pool").await;
    assert_eq!(before.len(), 1);
    let (name, before) = before.into_iter().next().expect("one");
    let ways = owned(&before);
    let mut outcome = Outcome {
        fields: ways.len(),
        ..Outcome::default()
    };
    for (way, deed) in ways.iter().flat_map(|way| [(way, Deed::Changed), (way, Deed::Removed)]) {
        let begin = Instant::now();
        if !corrupt(&api, &name, way, deed, &mut outcome).await {
            continue;
        }
        let what = format!("{way:?} {deed:?}");
        if way.last() == Some(&Step::Field(TERM.into())) {
            sizes().await;
            let term = |one: &DynamicObject| one.labels().get(TERM).cloned();
            let now = api.get(&name).await.expect("it is there");
            assert!(term(&now).is_some() && term(&now) == term(&before), "{now:?}");
        }
        eventually(LONG, &format!("{what} is set right or reported"), async || {
            is_right(&api, &before).await || complains(&stage, "pool", &name).await
        })
        .await;
        if is_right(&api, &before).await {
            outcome.repaired += 1;
        } else {
            outcome.reported.push(what.clone());
            put_back(&api, &before).await;
        }
        eventually(LONG, &format!("{what} leaves nothing behind"), async || {
            is_right(&api, &before).await && is_ready(&stage, "pool").await
        })
        .await;
        let count = writes_of(&gateway, DEPLOYMENT, &name, begin);
        let all = gateway.writes(begin);
        assert!(
            count <= MOST_WRITES || what.contains(TERM),
            "{what}: {count} writes\n{all:#?}\n{}",
            operator.tail()
        );
        outcome.most = outcome.most.max(count);
        outcome.slowest = outcome.slowest.max(begin.elapsed());
    }
    is_quiet(&gateway).await;
    println!("Deployment: {outcome:#?}");
    assert!(outcome.repaired > 100 && operator.exit().is_none(), "{outcome:?}");
}

/// Every field of each child beside the Deployment, each at a pool of its own. These are looked at every five minutes at
/// least: the operator's clocks run twenty times as fast as they should.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k27_every_field_of_what_is_beside_a_deployment_is_set_right_or_reported() {
    let stage = Stage::start().await;
    let gateway = Gateway::to(&stage.plane).await;
    let mut operator = stage.operator(
        &[LONG_LEASES.as_slice(), &["--sample-interval", "40s"]].concat(),
        &[
            &[("KUBECONFIG", gateway.kubeconfig().as_str())],
            clocks("+0 x20").as_slice(),
        ]
        .concat(),
    );
    stage.queue("jobs").await;
    target(&stage).await;
    let all = async |pool: &str| {
        let mut all = Vec::new();
        for kind in BESIDE {
            let found = children(&stage, kind, pool).await;
            all.extend(found.into_values().map(|one| (kind, one)));
        }
        all
    };
    let mut count = 2;
    let mut pools: Vec<(String, Vec<(Kind, DynamicObject)>)> = Vec::new();
    while pools.len() < count {
        let (made, until) = (pools.len(), count);
        // Some of one kind of budget, some of the other.
        for number in made..until {
            rich(&stage, &format!("pool-{number}"), number % 2 == 1, 0).await;
        }
        for number in made..until {
            let name = format!("pool-{number}");
            eventually(LONG, "it is ready, with a child of each kind", async || {
                is_ready(&stage, &name).await && all(&name).await.len() == BESIDE.len()
            })
            .await;
            let children = all(&name).await;
            let fields = children.iter().map(|(_, child)| owned(child).len()).max();
            // Each field twice, and each kind of budget.
            count = count.max(4 * fields.unwrap_or(0));
            pools.push((name, children));
        }
    }
    is_quiet(&gateway).await;

    let begin = Instant::now();
    let mut outcomes: BTreeMap<&str, Outcome> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (number, (pool, children)) in pools.iter().enumerate() {
        for (kind, child) in children {
            let ways = owned(child);
            let outcome = outcomes.entry(kind.1).or_default();
            outcome.fields = outcome.fields.max(ways.len());
            let mut deeds = ways.iter().flat_map(|way| [(way, Deed::Changed), (way, Deed::Removed)]);
            // Both pools of a pair, but for budgets, which differ.
            if number % 2 == 1 && kind.1 != "PodDisruptionBudget" {
                continue;
            }
            let Some((way, deed)) = deeds.nth(number / 2) else {
                continue;
            };
            let api = of_kind(&stage, *kind);
            if corrupt(&api, &child.name_any(), way, deed, outcome).await {
                wrong.push((pool, *kind, child, format!("{way:?} {deed:?}")));
            }
        }
    }
    for (pool, kind, child, what) in &wrong {
        let (api, name) = (of_kind(&stage, *kind), child.name_any());
        let what = format!("{} of {pool}: {what}", kind.1);
        eventually(LONG * 2, &format!("{what} is set right or reported"), async || {
            is_right(&api, child).await || complains(&stage, pool, &name).await
        })
        .await;
        let outcome = outcomes.get_mut(kind.1).expect("counted above");
        outcome.slowest = begin.elapsed();
        if is_right(&api, child).await {
            outcome.repaired += 1;
        } else {
            outcome.reported.push(what);
            put_back(&api, child).await;
        }
    }
    for (pool, kind, child, what) in &wrong {
        let api = of_kind(&stage, *kind);
        eventually(LONG * 2, &format!("{what} leaves nothing behind"), async || {
            is_right(&api, child).await && is_ready(&stage, pool).await
        })
        .await;
    }
    is_quiet(&gateway).await;
    for (_, kind, child, what) in &wrong {
        let count = writes_of(&gateway, *kind, &child.name_any(), begin);
        assert!(
            count <= MOST_WRITES,
            "{} {what}: {count} writes\n{}",
            kind.1,
            operator.tail()
        );
        let outcome = outcomes.get_mut(kind.1).expect("counted above");
        outcome.most = outcome.most.max(count);
    }
    println!("{} pools: {outcomes:#?}", pools.len());
    for (kind, outcome) in &outcomes {
        // Each field was changed and removed. What a field of owners or an immutable one gives, is the API server's.
        let dealt_with = outcome.repaired + outcome.reported.len() + outcome.refused + outcome.same;
        assert!(dealt_with >= 2 * outcome.fields, "{kind}: {outcome:?}");
        assert!(outcome.repaired > outcome.reported.len(), "{kind}: {outcome:?}");
    }
    assert!(operator.exit().is_none());
}

/// What somebody adds beside our fields stays, and costs no writes; who takes the owner away is told whose it is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k16_what_others_add_to_a_deployment_stays_and_what_they_take_is_said() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let gateway = Gateway::to(&stage.plane).await;
    let operator = stage.operator(&[], &[("KUBECONFIG", &gateway.kubeconfig())]);
    stage.queue("jobs").await;
    let spec =
        json!({ "queues": [{ "name": "jobs" }], "concurrency": 1, "replicas": 1, "scaling": { "mode": "Manual" } });
    stage.pool_of("jobs", spec).await;
    stage.ready("jobs", 1).await;
    is_quiet(&gateway).await;
    let api = of_kind(&stage, DEPLOYMENT);
    let name = stage.deployment("jobs").await.expect("there").name_any();
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(stage.client.clone());
    let namespace = namespaces.get(NAMESPACE).await.expect("there");
    let owner = json!({ "apiVersion": "v1", "kind": "Namespace", "name": NAMESPACE, "uid": namespace.uid() });
    let sidecar = json!({ "name": "mesh", "image": "mesh:1" });
    let template = |fields: Value| json!({ "spec": { "template": fields } });
    for (what, change, place, pods) in [
        (
            "a label",
            json!({ "metadata": { "labels": { "team": "a" } } }),
            "/metadata/labels/team",
            false,
        ),
        (
            "an annotation",
            json!({ "metadata": { "annotations": { "note": "a" } } }),
            "/metadata/annotations/note",
            false,
        ),
        (
            "another owner",
            json!({ "metadata": { "ownerReferences": [owner] } }),
            "/metadata/ownerReferences/1",
            false,
        ),
        (
            "a pod's label",
            template(json!({ "metadata": { "labels": { "team": "a" } } })),
            "/spec/template/metadata/labels/team",
            true,
        ),
        (
            "a pod's annotation",
            template(json!({ "metadata": { "annotations": { "kubectl.kubernetes.io/restartedAt": "now" } } })),
            "/spec/template/metadata/annotations/kubectl.kubernetes.io~1restartedAt",
            true,
        ),
        (
            "a sidecar",
            template(json!({ "spec": { "containers": [sidecar] } })),
            "/spec/template/spec/containers/1/name",
            true,
        ),
    ] {
        let before = stage.pods_of("jobs").await;
        let begin = Instant::now();
        // Lists are merged by their keys, as `kubectl patch` does.
        let by_hand = PatchParams {
            field_manager: Some("mesh".into()),
            ..PatchParams::default()
        };
        api.patch(&name, &by_hand, &Patch::Strategic(change))
            .await
            .expect("accepted");
        // Pods are replaced by the Deployment itself, one that works only for one that was admitted.
        eventually(LONG, &format!("{what}: a pod works"), async || {
            let now = stage.pods_of("jobs").await;
            let is_new = now
                .iter()
                .all(|pod| before.iter().all(|other| other.uid() != pod.uid()));
            now.len() == 1
                && is_new == pods
                && stage.status("jobs").await.ready_replicas == 1
                && is_ready(&stage, "jobs").await
        })
        .await;
        is_quiet(&gateway).await;
        let now = serde_json::to_value(api.get(&name).await.expect("there")).expect("plain data");
        assert!(now.pointer(place).is_some(), "{what} is gone: {now:#}");
        let writes = writes_of(&gateway, DEPLOYMENT, &name, begin);
        println!("{what}: {writes} writes, {:?}", begin.elapsed());
        assert_eq!(writes, 0, "{what}\n{}", operator.tail());
        stage.send_sleeps("jobs", 3, 0.05).await;
        stage.drained("jobs", LONG).await;
    }
    let before = api.get(&name).await.expect("there");
    let (uids, removed) = (stage.pods_of("jobs").await, kubelet.removals().len());
    let begin = Instant::now();
    let bare = Patch::Merge(json!({ "metadata": { "ownerReferences": null } }));
    api.patch(&name, &PatchParams::default(), &bare)
        .await
        .expect("accepted");
    eventually(LONG, "it says whose it is not", async || {
        complains(&stage, "jobs", &name).await
    })
    .await;
    assert_eq!(stage.condition("jobs", "Ready").await.expect("there").1, "NameTaken");
    is_quiet(&gateway).await;
    // Who works there works on.
    stage.send_sleeps("jobs", 3, 0.05).await;
    stage.drained("jobs", LONG).await;
    assert!(api.get(&name).await.expect("there").owner_references().is_empty());
    put_back(&api, &before).await;
    stage.ready("jobs", 1).await;
    eventually(LONG, "it is its pool's again", async || is_ready(&stage, "jobs").await).await;
    is_quiet(&gateway).await;
    let writes = writes_of(&gateway, DEPLOYMENT, &name, begin);
    assert!(writes <= MOST_WRITES, "{writes} writes\n{}", operator.tail());
    let now = stage.pods_of("jobs").await;
    assert_eq!((now.len(), now[0].uid()), (1, uids[0].uid()), "{}", operator.tail());
    assert_eq!(kubelet.removals().len(), removed);
}

/// Pods that nobody lets be made: the words of whoever says no are in the condition, little is written meanwhile, and it
/// goes on when the cause is gone. A rise stops nobody who works.
async fn no_pod_is_let_in(
    (stage, gateway): (&Stage, &Gateway),
    template: Option<Value>,
    forbid: impl AsyncFn(bool),
    words: &str,
) {
    let spec = |replicas: u32| {
        let mut spec = json!({
            "queues": [{ "name": "jobs" }], "concurrency": 1, "replicas": replicas, "scaling": { "mode": "Manual" },
        });
        if let Some(template) = &template {
            spec["template"] = template.clone();
        }
        spec
    };
    stage.pool_of("jobs", spec(1)).await;
    stage.ready("jobs", 1).await;
    forbid(true).await;
    stage.pool_of("jobs", spec(2)).await;
    eventually(LONG, &format!("it says …{words}…"), async || {
        let found = stage.condition("jobs", "Ready").await;
        found.is_some_and(|(status, reason, message)| {
            status == "False" && reason == "ReplicaFailure" && message.contains(words)
        })
    })
    .await;
    let begin = Instant::now();
    eventually(LONG, "it has had time to try again", async || {
        begin.elapsed() > Duration::from_secs(6)
    })
    .await;
    let writes = gateway.writes(begin);
    println!("{} writes in 6 s", writes.len());
    assert!(writes.len() <= 6, "{writes:?}");
    // The one that is there works.
    stage.send_sleeps("jobs", 3, 0.05).await;
    stage.drained("jobs", LONG).await;
    forbid(false).await;
    stage.ready("jobs", 2).await;
    eventually(LONG, "nothing is said any more", async || is_ready(stage, "jobs").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k15_a_limit_range_is_quoted_and_ends_by_itself() {
    let stage = Stage::start().await;
    let _kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let gateway = Gateway::to(&stage.plane).await;
    let _operator = stage.operator(&[], &[("KUBECONFIG", &gateway.kubeconfig())]);
    stage.queue("jobs").await;
    let limits = ("v1", "LimitRange", "limitranges");
    let forbid = async |is_forbidden: bool| {
        if is_forbidden {
            let spec = json!({ "spec": { "limits": [{ "type": "Container", "max": { "cpu": "100m" } }] } });
            stage.apply(limits.0, limits.1, limits.2, "small", spec).await;
            return;
        }
        let api = of_kind(&stage, limits);
        api.delete("small", &DeleteParams::default()).await.expect("deleted");
    };
    let worker = json!({ "name": "worker", "image": "w", "resources": { "limits": { "cpu": "200m" } } });
    let template = json!({ "spec": { "containers": [worker] } });
    let words = "maximum cpu usage per Container is 100m, but limit is 200m";
    no_pod_is_let_in((&stage, &gateway), Some(template), forbid, words).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k15_pod_security_is_quoted_and_ends_by_itself() {
    let stage = Stage::start().await;
    let _kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let gateway = Gateway::to(&stage.plane).await;
    let _operator = stage.operator(&[], &[("KUBECONFIG", &gateway.kubeconfig())]);
    stage.queue("jobs").await;
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(stage.client.clone());
    let forbid = async |is_forbidden: bool| {
        let level = is_forbidden.then_some("restricted");
        let label = json!({ "metadata": { "labels": { "pod-security.kubernetes.io/enforce": level } } });
        let params = PatchParams::default();
        namespaces
            .patch(NAMESPACE, &params, &Patch::Merge(label))
            .await
            .expect("accepted");
    };
    let template = json!({ "spec": { "containers": [{ "name": "worker", "image": "w" }] } });
    let words = "violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false";
    no_pod_is_let_in((&stage, &gateway), Some(template), forbid, words).await;
    // What a pool brings by itself is within the strictest level.
    forbid(true).await;
    stage.queue("own").await;
    let spec = json!({ "queues": [{ "name": "own" }], "replicas": 1, "scaling": { "mode": "Manual" } });
    stage.pool_of("own", spec).await;
    stage.ready("own", 1).await;
}
