//! Waves and steps of jobs at clusters: three real API servers, an account of its own at each, a real worker.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt as _};
use redis::AsyncCommands as _;
use serde_json::{Value, json};
use umbel_api::task::Phase;
use umbel_testkit::{Process, Target, eventually, eventually_some, free_port};

use crate::common::{self, LONG, NAMESPACE};
use crate::{Board, OURS};

const SHOP: &str = "shop";

struct Fleet {
    board: Board,
    targets: BTreeMap<&'static str, (Target, Client)>,
    _worker: Process,
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

impl Fleet {
    /// Clusters with their ring. At each there is the namespace `shop`, and an account of jobs without rights.
    async fn start(rings: &[(&'static str, &str)]) -> Fleet {
        let board = Board::start().await;
        let mut targets = BTreeMap::new();
        let mut accesses = Vec::new();
        for (name, ring) in rings {
            let target = board.stage.plane.target(name).await;
            let client = target.client().await;
            let params = PostParams::default();
            let namespaces: Api<Namespace> = Api::all(client.clone());
            let namespace = object(json!({ "metadata": { "name": SHOP } }));
            namespaces.create(&params, &namespace).await.expect("made");
            let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), SHOP);
            let account = object(json!({ "metadata": { "name": "jobs" } }));
            accounts.create(&params, &account).await.expect("made");
            let request = object(json!({ "spec": { "audiences": [] } }));
            let token = accounts.create_token_request("jobs", &params, &request);
            let token = token.await.expect("made").status.expect("a token").token;
            let text = std::fs::read_to_string(&target.kubeconfig).expect("there");
            let file = kube::config::Kubeconfig::from_yaml(&text).expect("a kubeconfig");
            let mut root = serde_json::to_value(file).expect("plain data");
            root["users"][0]["user"] = json!({ "token": token });
            root.as_object_mut()
                .expect("a mapping")
                .retain(|_, value| !value.is_null());
            let secret = json!({ "stringData": { "kubeconfig": root.to_string() } });
            board.stage.apply("v1", "Secret", "secrets", name, secret).await;
            let cluster = json!({ "metadata": { "name": name, "labels": { "ring": ring } },
                "spec": { "kubeconfigSecretRef": { "name": name, "key": "kubeconfig" } } });
            board
                .stage
                .apply(OURS, "TargetCluster", "targetclusters", name, cluster)
                .await;
            accesses.push(json!({ "name": name, "secret": name }));
            targets.insert(*name, (target, client));
        }
        let worker = worker(&board, &json!(accesses));
        Fleet {
            board,
            targets,
            _worker: worker,
        }
    }

    fn client(&self, cluster: &str) -> Client {
        self.targets[cluster].1.clone()
    }

    /// Lets jobs at this cluster do their work.
    async fn allow(&self, cluster: &str) {
        let params = PostParams::default();
        let rules = json!([{ "apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch", "create", "patch"] }]);
        let roles: Api<Role> = Api::namespaced(self.client(cluster), SHOP);
        let role = object(json!({ "metadata": { "name": "jobs" }, "rules": rules }));
        roles.create(&params, &role).await.expect("made");
        let bindings: Api<RoleBinding> = Api::namespaced(self.client(cluster), SHOP);
        let binding = object(json!({ "metadata": { "name": "jobs" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "jobs" },
            "subjects": [{ "kind": "ServiceAccount", "name": "jobs", "namespace": SHOP }] }));
        bindings.create(&params, &binding).await.expect("made");
        // It is in force a moment later.
        let name = format!("system:serviceaccount:{SHOP}:jobs");
        let reviews: Api<k8s_openapi::api::authorization::v1::SubjectAccessReview> = Api::all(self.client(cluster));
        eventually(LONG, "the account may write", async || {
            let review = object(json!({ "spec": { "user": name, "resourceAttributes": {
                "namespace": SHOP, "resource": "configmaps", "verb": "patch" } } }));
            let answer = reviews.create(&params, &review).await.expect("answered");
            answer.status.is_some_and(|status| status.allowed)
        })
        .await;
    }

    fn maps(&self, cluster: &str) -> Api<ConfigMap> {
        Api::namespaced(self.client(cluster), SHOP)
    }

    /// Where this ConfigMap is.
    async fn written(&self, name: &str) -> Vec<&'static str> {
        let mut at = Vec::new();
        for cluster in self.targets.keys() {
            if self.maps(cluster).get_opt(name).await.expect("answered").is_some() {
                at.push(*cluster);
            }
        }
        at
    }

    /// What was returned by the steps of this name, and how they ended, by cluster.
    async fn results(&self, task: &str, step: Option<&str>) -> BTreeMap<&'static str, Value> {
        let object = self.board.api().get(task).await.expect("there");
        let uid = object.uid().expect("a uid");
        let begin = umbel_plan::fanout::Occasion::Slot(object.creation_timestamp().expect("a time").0);
        let mut found = BTreeMap::new();
        for cluster in self.targets.keys() {
            let id = begin.id(&uid, cluster, step).to_string();
            if let Some(document) = self.board.result(&id).await {
                found.insert(*cluster, document);
            }
        }
        found
    }
}

impl Fleet {
    /// Waits until workers hold so many tasks.
    async fn held(&self, count: usize) {
        let mut connection = self.board.stage.redis.connection().await;
        eventually(LONG, &format!("{count} tasks are held"), async || {
            let held: usize = connection.hlen("umbel:unacked").await.expect("a count");
            held == count
        })
        .await;
    }
}

fn worker(board: &Board, clusters: &Value) -> Process {
    let (url, admin) = (board.stage.redis.url(), format!("127.0.0.1:{}", free_port()));
    let args = [
        "--redis-url",
        &url,
        "--queue",
        "jobs",
        "--concurrency",
        "8",
        "--standalone",
        "--retry-max-attempts",
        "1",
    ];
    let rules = json!({ "namespaces": [SHOP], "kinds": ["ConfigMap"] });
    let jobs = json!({ "apply": rules, "wait": rules, "get": rules }).to_string();
    let (home, clusters) = (
        board.stage.plane.kubeconfig().display().to_string(),
        clusters.to_string(),
    );
    let env = [
        ("UMBEL_ADMIN_ADDR", admin.as_str()),
        ("UMBEL_JOBS", &jobs),
        ("KUBECONFIG", &home),
        ("UMBEL_NAMESPACE", NAMESPACE),
        ("UMBEL_CLUSTERS", &clusters),
    ];
    Process::start(&common::worker(), args, &env)
}

fn map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": SHOP }, "data": { "v": "1" } })
}

fn apply(name: &str) -> Value {
    json!({ "task": "umbel.cluster.apply", "kwargs": { "manifests": [map(name)] } })
}

fn waves(more: &Value) -> Value {
    let mut rollout = json!({ "type": "ProgressivePerGroup", "maxConcurrency": 1,
        "groups": [{ "name": "canary", "selector": { "matchLabels": { "ring": "canary" } } }] });
    for (key, value) in more.as_object().expect("an object") {
        rollout[key] = value.clone();
    }
    json!({ "selector": {}, "rollout": rollout })
}

/// Merges two objects.
fn with(mut one: Value, key: &str, value: Value) -> Value {
    one[key] = value;
    one
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wave_of_applies_stops_where_a_cluster_refuses_and_by_a_cancel() {
    let fleet = Fleet::start(&[("ap", "rest"), ("eu", "canary"), ("us", "rest")]).await;
    let _operator = fleet.board.stage.operator(&[], &[]);
    for cluster in ["eu", "us"] {
        fleet.allow(cluster).await;
    }

    // canary, then the others in their order: `ap` refuses, and `us` is never begun.
    fleet
        .board
        .task("halt", with(apply("halt"), "targets", waves(&json!({}))), json!({}))
        .await;
    let status = fleet.board.comes_to("halt", Phase::Failed).await;
    let clusters = status.clusters.expect("clusters");
    assert_eq!(
        (clusters.succeeded, clusters.failed, clusters.skipped, status.attempts),
        (1, 1, 1, 2)
    );
    assert_eq!(clusters.failed_names, ["ap"]);
    assert_eq!(fleet.written("halt").await, ["eu"]);
    let results = fleet.results("halt", None).await;
    assert_eq!(results.keys().collect::<Vec<_>>(), [&"ap", &"eu"], "{results:?}");
    let words = results["ap"]["result"].to_string();
    assert!(
        words.contains("cannot get resource") && words.contains("configmaps"),
        "{words}"
    );

    // The same with a failure to spare goes on to the end.
    let targets = waves(&json!({ "maxFailures": 1 }));
    fleet
        .board
        .task("spare", with(apply("spare"), "targets", targets), json!({}))
        .await;
    let status = fleet.board.comes_to("spare", Phase::Failed).await;
    let clusters = status.clusters.expect("clusters");
    assert_eq!((clusters.succeeded, clusters.failed, clusters.skipped), (2, 1, 0));
    assert_eq!(fleet.written("spare").await, ["eu", "us"]);

    // The canary refuses: nothing else is touched.
    let targets = json!({ "selector": {}, "rollout": { "type": "ProgressivePerGroup", "maxConcurrency": 2,
        "groups": [{ "name": "first", "selector": { "matchExpressions": [{ "key": "ring", "operator": "In", "values": ["rest"] }] } }] } });
    fleet
        .board
        .task("first", with(apply("first"), "targets", targets), json!({}))
        .await;
    let status = fleet.board.comes_to("first", Phase::Failed).await;
    assert_eq!(status.clusters.expect("clusters").failed_names, ["ap"]);
    assert_eq!(
        fleet.written("first").await,
        ["us"],
        "that of the same group had begun; the next group had not"
    );

    // Cancelled while the canary waits: its wait ends, the others never begin.
    let steps = json!([
        with(apply("cancel"), "name", json!("apply")),
        { "name": "wait", "task": "umbel.cluster.wait", "kwargs": { "apiVersion": "v1", "kind": "ConfigMap", "namespace": SHOP,
            "name": "cancel", "for": "jsonpath={.data.v}=2", "timeout": 300 } },
    ]);
    let template = json!({ "steps": steps, "targets": waves(&json!({})) });
    fleet.board.task("cancel", template, json!({})).await;
    eventually(LONG, "the canary has applied", async || {
        fleet.results("cancel", Some("apply")).await.contains_key("eu")
    })
    .await;
    fleet.held(1).await;
    fleet
        .board
        .change("cancel", json!({ "cancel": true }))
        .await
        .expect("accepted");
    let status = fleet.board.comes_to("cancel", Phase::Cancelled).await;
    assert_eq!(status.clusters.map(|clusters| clusters.succeeded), Some(0));
    let ended = eventually_some(LONG, "the wait has ended", async || {
        fleet.results("cancel", Some("wait")).await.remove("eu")
    })
    .await;
    assert_eq!(ended["status"], "REVOKED", "{ended}");
    assert_eq!(fleet.written("cancel").await, ["eu"]);
    assert_eq!(
        fleet.results("cancel", Some("apply")).await.keys().collect::<Vec<_>>(),
        [&"eu"]
    );
}

/// Apply, wait, read back: each cluster goes its own way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_are_one_workflow_a_cluster() {
    let fleet = Fleet::start(&[("ap", ""), ("eu", ""), ("us", "")]).await;
    let _operator = fleet.board.stage.operator(&[], &[]);
    for cluster in ["eu", "us"] {
        fleet.allow(cluster).await;
    }
    let of = json!({ "apiVersion": "v1", "kind": "ConfigMap", "namespace": SHOP, "name": "site" });
    let steps = json!([
        with(apply("site"), "name", json!("apply")),
        { "name": "wait", "task": "umbel.cluster.wait", "dependsOn": ["apply"],
            "kwargs": with(with(of.clone(), "for", json!("jsonpath={.data.ready}=yes")), "timeout", json!(300)) },
        { "name": "get", "task": "umbel.cluster.get", "dependsOn": ["wait"],
            "kwargs": with(of, "fields", json!({ "v": ".data.v", "by": ".data.by" })) },
    ]);
    fleet
        .board
        .task(
            "site",
            json!({ "steps": steps, "targets": { "selector": {} } }),
            json!({}),
        )
        .await;

    // Both wait, and each for its own cluster: one goes on alone.
    eventually(LONG, "all have tried to apply", async || {
        fleet.results("site", Some("apply")).await.len() == 3
    })
    .await;
    fleet.held(2).await;
    let ready = |by: &str| json!({ "data": { "ready": "yes", "by": by } });
    let merge = kube::api::PatchParams::apply("somebody");
    let answer = |cluster: &'static str| {
        let body = with(
            with(ready(cluster), "apiVersion", json!("v1")),
            "kind",
            json!("ConfigMap"),
        );
        let maps = fleet.maps(cluster);
        let merge = merge.clone();
        async move {
            maps.patch("site", &merge, &kube::api::Patch::Apply(body))
                .await
                .expect("written")
        }
    };
    answer("us").await;
    let first = eventually_some(LONG, "us has read it back", async || {
        fleet.results("site", Some("get")).await.remove("us")
    })
    .await;
    assert_eq!(first["result"]["fields"], json!({ "v": "1", "by": "us" }), "{first}");
    assert_eq!(fleet.board.status("site").await.phase, Phase::Running);
    assert!(
        fleet
            .results("site", Some("wait"))
            .await
            .keys()
            .all(|cluster| *cluster == "us")
    );
    answer("eu").await;

    let status = fleet.board.comes_to("site", Phase::Failed).await;
    let clusters = status.clusters.expect("clusters");
    assert_eq!(
        (clusters.succeeded, clusters.failed, clusters.failed_names.as_slice()),
        (2, 1, &["ap".to_owned()][..])
    );
    assert_eq!(
        status.attempts, 7,
        "three steps on two clusters, and the one that was refused"
    );
    let read = fleet.results("site", Some("get")).await;
    assert_eq!(read["eu"]["result"]["fields"]["by"], "eu", "{read:?}");
    assert!(!read.contains_key("ap"), "{read:?}");

    fleet.held(0).await;
    assert_eq!(fleet.board.waiting().await.len(), 0);
}
