//! The jobs against real API servers.

mod hostile;
mod objects;
mod samples;
mod sets;
mod sources;
mod waits;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret, ServiceAccount};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::sync::{OnceCell, mpsc};
use tokio_util::sync::CancellationToken;
use umbel_api::targetcluster::ClusterObservation;
use umbel_clusters::{Access, Limits, Registry};
use umbel_protocol::json::Json;
use umbel_testkit::{ControlPlane, Target};

use super::{ObjectRules, Settings};
use crate::job::{Arguments, Failure, Job, JobContext, Outcome, Report};
use crate::lease::Leases;

/// One home and one target for all tests of this file; each works in namespaces of its own.
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

/// Clients belong to the runtime of one test.
async fn client(kubeconfig: &Path) -> kube::Client {
    let file = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .unwrap();
    kube::Client::try_from(config).unwrap()
}

async fn namespace(client: &kube::Client, name: &str) {
    let object = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    Api::<Namespace>::all(client.clone())
        .create(&PostParams::default(), &object)
        .await
        .unwrap();
}

/// A registry that knows the target as `c2`, and whatever else has a Secret, with Secrets in `namespace` at home.
async fn registry(name: &str, kubeconfigs: &[(&str, &str)]) -> Registry {
    let stage = stage().await;
    let home = client(&stage.home.kubeconfig()).await;
    namespace(&home, name).await;
    let good = std::fs::read_to_string(&stage.target.kubeconfig).unwrap();
    let mut accesses = Vec::new();
    for (cluster, text) in kubeconfigs.iter().copied().chain([("c2", good.as_str())]) {
        let secret = json!({"metadata": {"name": format!("{cluster}-access")}, "stringData": {"kubeconfig": text}});
        let secret = serde_json::from_value(secret).unwrap();
        Api::<Secret>::namespaced(home.clone(), name)
            .create(&PostParams::default(), &secret)
            .await
            .unwrap();
        accesses.push(Access {
            name: cluster.into(),
            secret: format!("{cluster}-access"),
            key: "kubeconfig".into(),
            // What is tested here is not how seldom a cluster is asked.
            limits: Limits {
                qps: 1000,
                burst: 2000,
                tasks: 100,
            },
            ..Access::default()
        });
    }
    Registry::new(home, name, accesses)
}

/// A delivery with a run order and a token, inside its trust window.
fn delivery(order: i64, micros: u64, headers: &[(&str, &str)]) -> (JobContext, Leases, mpsc::Receiver<Report>) {
    let leases = Leases::default();
    let lease = leases.insert_one(&Arc::from("w:1"), (1, micros), Instant::now(), Duration::from_mins(10));
    let (reports, reported) = mpsc::channel(8);
    let headers = headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), Json::string(value)))
        .collect::<BTreeMap<_, _>>();
    let ctx = JobContext {
        id: "id".into(),
        task: "task".into(),
        queue: "q".into(),
        retries: 0,
        order,
        headers: Json::of(&headers),
        request: crate::request::Request::of_nobody(),
        cancel: CancellationToken::new(),
        soft_limit: CancellationToken::new(),
        lease,
        reports,
        children: std::sync::Arc::default(),
        shared: None,
    };
    (ctx, leases, reported)
}

fn arguments(kwargs: &Value) -> Arguments {
    Arguments {
        args: Json::empty_array(),
        kwargs: Json::of(kwargs),
    }
}

fn builtin(registry: &Registry, settings: Settings) -> Vec<Box<dyn Job>> {
    super::builtin(registry, settings, "/nowhere".into()).unwrap()
}

async fn sync(registry: &Registry, ctx: &JobContext, kwargs: &Value) -> Outcome {
    let jobs = builtin(registry, Settings::default());
    assert_eq!(
        jobs.iter().map(|job| job.name()).collect::<Vec<_>>(),
        ["umbel.cluster.sync"]
    );
    jobs[0].run(ctx, arguments(kwargs)).await
}

/// The apply job of a pool that allows one namespace.
fn applier(registry: &Registry, namespace: &str) -> Box<dyn Job> {
    let kinds = ["ConfigMap", "apps/Deployment", "Namespace", "example.com/Widget"]
        .map(str::to_owned)
        .to_vec();
    let settings = Settings {
        apply: Some(ObjectRules {
            namespaces: vec![namespace.into()],
            kinds,
            force: true,
            ..ObjectRules::default()
        }),
        ..Settings::default()
    };
    builtin(registry, settings)
        .into_iter()
        .find(|job| job.name() == "umbel.cluster.apply")
        .unwrap()
}

async fn apply(registry: &Registry, namespace: &str, fence: (i64, u64), kwargs: Value) -> Outcome {
    let (ctx, _leases, _) = delivery(fence.0, fence.1, &[("umbel_cluster", "c2")]);
    applier(registry, namespace).run(&ctx, arguments(&kwargs)).await
}

/// A run of a job of a pool with these settings.
async fn run(registry: &Registry, settings: &Value, name: &str, fence: (i64, u64), kwargs: Value) -> Outcome {
    let settings = Settings::parse(&settings.to_string()).unwrap();
    run_of(&builtin(registry, settings), name, fence, kwargs).await
}

async fn run_of(jobs: &[Box<dyn Job>], name: &str, fence: (i64, u64), kwargs: Value) -> Outcome {
    run_at("c2", jobs, name, fence, kwargs).await
}

async fn run_at(cluster: &str, jobs: &[Box<dyn Job>], name: &str, fence: (i64, u64), kwargs: Value) -> Outcome {
    let (ctx, _leases, _) = delivery(fence.0, fence.1, &[("umbel_cluster", cluster)]);
    let job = jobs.iter().find(|job| job.name() == format!("umbel.cluster.{name}"));
    job.unwrap().run(&ctx, arguments(&kwargs)).await
}

/// How often the target's API server was asked for this resource, by verb; dry runs apart.
async fn asked(target: &kube::Client, resource: &str) -> BTreeMap<String, u64> {
    let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
    let text = target.request_text(request).await.unwrap();
    let mut counts = BTreeMap::new();
    let label = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!("{name}=\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    for line in text.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
        if label(line, "resource").as_deref() == Some(resource) {
            let dry = label(line, "dry_run").unwrap();
            let verb = format!("{}{dry}", label(line, "verb").unwrap());
            let count = line.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
            *counts.entry(verb).or_default() += count;
        }
    }
    counts
}

/// What was asked since then.
async fn asked_since(target: &kube::Client, resource: &str, then: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let mut now = asked(target, resource).await;
    for (verb, count) in then {
        *now.get_mut(verb).unwrap() -= count;
    }
    now.retain(|_, count| *count > 0);
    now
}

#[track_caller]
fn refused(outcome: Outcome, exc_type: &str, words: &str) {
    let why = failed(outcome);
    assert!(why.message.contains(words), "expected {words:?}, got {why}");
    assert!(why.exc_type == exc_type && !why.is_retryable, "{why:?}");
}

fn config_map(namespace: &str, name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data})
}

#[track_caller]
fn done(outcome: Outcome) -> Value {
    match outcome {
        Outcome::Done(json) => serde_json::from_str(json.as_str()).unwrap(),
        Outcome::Retry { why, .. } => panic!("retry: {why}"),
        Outcome::Failed(why) => panic!("failed: {why}"),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn failed(outcome: Outcome) -> Failure {
    match outcome {
        Outcome::Done(json) => panic!("done: {}", json.as_str()),
        Outcome::Retry { why, .. } => panic!("retry: {why}"),
        Outcome::Failed(why) => why,
        other => panic!("{other:?}"),
    }
}

fn actions(result: &Value, cluster: &str) -> Vec<String> {
    let objects = result["clusters"][cluster].as_array().unwrap();
    objects
        .iter()
        .map(|one| format!("{}/{} {}", one["kind"], one["name"], one["action"]).replace('"', ""))
        .collect()
}

#[tokio::test]
async fn sync_counts_nodes_pods_and_capacity_and_reports_what_it_returns() {
    let registry = registry("sync-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    let nodes = Api::<Node>::all(target.clone());
    for (name, ready, memory) in [("n1", "True", "16Gi"), ("n2", "False", "8Gi")] {
        let node = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        nodes.create(&PostParams::default(), &node).await.unwrap();
        let status = json!({"status": {
            "capacity": {"cpu": "4", "memory": memory}, "allocatable": {"cpu": "3500m", "memory": memory},
            "conditions": [{"type": "Ready", "status": ready}]}});
        nodes
            .patch_status(name, &PatchParams::default(), &Patch::Merge(&status))
            .await
            .unwrap();
    }
    namespace(&target, "sync-pods").await;
    // The target runs no controllers, which would make the namespace's account.
    let account = serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
    let accounts = Api::<ServiceAccount>::namespaced(target.clone(), "sync-pods");
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let pods = Api::<Pod>::namespaced(target, "sync-pods");
    for name in ["a", "b", "c"] {
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap())
            .await
            .unwrap();
    }
    let failed = json!({"status": {"phase": "Failed"}});
    pods.patch_status("c", &PatchParams::default(), &Patch::Merge(&failed))
        .await
        .unwrap();

    let (ctx, _leases, mut reported) = delivery(1, 1, &[]);
    let result = done(sync(&registry, &ctx, &json!({"cluster": "c2"})).await);

    let report = reported.recv().await.unwrap();
    assert_eq!((report.cluster.as_str(), &report.body), ("c2", &result));
    let seen: ClusterObservation = serde_json::from_value(result).unwrap();
    assert!(
        seen.reachable && seen.kubeconfig_accepted == Some(true) && seen.error.is_none(),
        "{seen:?}"
    );
    assert!(seen.version.unwrap().starts_with("v1."));
    assert!(seen.api_latency_ms.unwrap() < 5_000 && seen.at.is_some());
    let nodes = seen.nodes.unwrap();
    assert_eq!((nodes.total, nodes.ready), (2, 1));
    assert_eq!(
        (seen.capacity["cpu"].0.as_str(), seen.capacity["memory"].0.as_str()),
        ("8", "24Gi")
    );
    assert_eq!(
        (
            seen.allocatable["cpu"].0.as_str(),
            seen.allocatable["memory"].0.as_str()
        ),
        ("7", "24Gi")
    );
    assert_eq!(
        seen.pods.into_iter().collect::<Vec<_>>(),
        [("Failed".to_owned(), 1), ("Pending".to_owned(), 2)]
    );
}

#[tokio::test]
async fn sync_of_a_target_that_never_answers_fails_in_time_and_says_so() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let accepting = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = silent.accept().await {
            held.push(stream);
        }
    });
    let good = std::fs::read_to_string(&stage().await.target.kubeconfig).unwrap();
    let server = good
        .lines()
        .find(|line| line.contains("server:"))
        .unwrap()
        .trim()
        .to_owned();
    let dead = good.replace(&server, &format!("server: https://127.0.0.1:{port}"));
    let registry = registry("sync-dead", &[("dead", &dead)]).await;

    let (ctx, _leases, mut reported) = delivery(1, 1, &[("umbel_cluster", "dead")]);
    let begin = Instant::now();
    let why = failed(sync(&registry, &ctx, &json!({})).await);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    assert!(
        !why.is_retryable && why.message.starts_with("cluster `dead`: read who it is: "),
        "{why}"
    );
    let seen: ClusterObservation = serde_json::from_value(reported.recv().await.unwrap().body).unwrap();
    assert_eq!(
        (seen.reachable, seen.error, seen.nodes),
        (false, Some(why.message), None)
    );

    // The neighbour is not slower for it.
    let (ctx, _leases, _reported) = delivery(1, 1, &[]);
    done(sync(&registry, &ctx, &json!({"cluster": "c2"})).await);
    accepting.abort();
}

#[tokio::test]
async fn a_cluster_that_the_pool_does_not_have_is_refused_by_name() {
    let plain = "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n\
                 clusters: [{name: c, cluster: {server: \"http://127.0.0.1:1\"}}]\nusers: [{name: u, user: {token: t}}]\n";
    let registry = registry("sync-refused", &[("plain", plain)]).await;
    let cases = [
        (
            json!({"cluster": "other"}),
            "PermissionError",
            "this pool may not touch a cluster named `other`",
        ),
        (
            json!({"cluster": "plain"}),
            "PermissionError",
            "cluster `plain`: Secret `plain-access`: cluster: `server` is not https",
        ),
        (json!({}), "TypeError", "umbel.cluster.sync needs a cluster"),
        (
            json!({"cluster": "c2", "token": "x"}),
            "TypeError",
            "keyword arguments: unknown field `token`",
        ),
        (json!({"cluster": 7}), "TypeError", "keyword arguments: invalid type"),
    ];
    for (kwargs, exc_type, words) in cases {
        let (ctx, _leases, _reported) = delivery(1, 1, &[]);
        let why = failed(sync(&registry, &ctx, &kwargs).await);
        assert!(
            why.exc_type == exc_type && why.message.starts_with(words) && !why.is_retryable,
            "{kwargs}: {why}"
        );
    }
    let (ctx, _leases, _reported) = delivery(1, 1, &[("umbel_cluster", "c2")]);
    let why = failed(sync(&registry, &ctx, &json!({"cluster": "other"})).await);
    assert_eq!(
        why.message,
        "the message is for cluster `c2`, its argument says `other`"
    );
}

#[tokio::test]
async fn apply_creates_then_changes_nothing_then_configures_and_prunes_fields() {
    let registry = registry("apply-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "apply").await;
    let text = |colour: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: 2\n  selector: {{matchLabels: {{app: web}}}}\n  \
             template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      containers:\n      - {{name: web, image: web, resources: {{requests: {{cpu: 1000m}}}}}}\n\
             ---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: colours}}\ndata: {{{colour}: \"1\"}}\n"
        )
    };
    let kwargs = |colour: &str| json!({"manifests": text(colour), "namespace": "apply"});

    let result = done(apply(&registry, "apply", (10, 1), kwargs("red")).await);
    assert_eq!(
        actions(&result, "c2"),
        ["ConfigMap/colours created", "Deployment/web created"]
    );
    let result = done(apply(&registry, "apply", (10, 2), kwargs("red")).await);
    assert_eq!(
        actions(&result, "c2"),
        ["ConfigMap/colours unchanged", "Deployment/web unchanged"]
    );
    let result = done(apply(&registry, "apply", (20, 1), kwargs("blue")).await);
    assert_eq!(
        actions(&result, "c2"),
        ["ConfigMap/colours configured", "Deployment/web unchanged"]
    );

    let map = Api::<ConfigMap>::namespaced(target.clone(), "apply")
        .get("colours")
        .await
        .unwrap();
    assert_eq!(map.data.unwrap().into_keys().collect::<Vec<_>>(), ["blue"]);
    assert_eq!(map.metadata.annotations.unwrap()["umbel.dev/fence"], "20/1.1");
    let owners: Vec<_> = map
        .metadata
        .managed_fields
        .unwrap()
        .into_iter()
        .map(|entry| (entry.manager, entry.operation))
        .collect();
    assert_eq!(owners, [(Some("umbel-apply".to_owned()), Some("Apply".to_owned()))]);
}

#[tokio::test]
async fn t07_an_older_run_is_refused_even_when_its_delivery_is_newer() {
    let registry = registry("fence-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "fence").await;
    let kwargs = |value: &str| json!({"manifests": [config_map("fence", "m", &json!({"v": value}))]});

    done(apply(&registry, "fence", (20, 1), kwargs("new")).await);
    let why = failed(apply(&registry, "fence", (10, 99), kwargs("old")).await);
    assert_eq!(
        why.message,
        "cluster `c2`: ConfigMap fence/m: 20/1.1 wrote it, which is newer than this run (10/1.99)"
    );
    assert!(!why.is_retryable);
    let map = Api::<ConfigMap>::namespaced(target.clone(), "fence")
        .get("m")
        .await
        .unwrap();
    assert_eq!(map.data.unwrap()["v"], "new");

    let spoilt = json!({"metadata": {"annotations": {"umbel.dev/fence": "soon"}}});
    let maps = Api::<ConfigMap>::namespaced(target, "fence");
    maps.patch("m", &PatchParams::default(), &Patch::Merge(&spoilt))
        .await
        .unwrap();
    let why = failed(apply(&registry, "fence", (30, 1), kwargs("newer")).await);
    assert!(
        why.message
            .ends_with("its annotation umbel.dev/fence is `soon`, which is no fence; remove it to go on"),
        "{why}"
    );
}

#[tokio::test]
async fn t07_racing_runs_leave_the_newer_one_on_every_object() {
    let registry = registry("race-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "race").await;
    for round in 0..5 {
        let kwargs = |run: &str| {
            let maps = (0..8).map(|n| config_map("race", &format!("m{round}-{n}"), &json!({"run": run})));
            json!({"manifests": maps.collect::<Vec<_>>()})
        };
        let (_, newer) = tokio::join!(
            apply(&registry, "race", (1, 2), kwargs("older")),
            apply(&registry, "race", (2, 1), kwargs("newer"))
        );
        done(newer);
    }
    let maps = Api::<ConfigMap>::namespaced(target, "race")
        .list(&kube::api::ListParams::default())
        .await
        .unwrap();
    assert_eq!(maps.items.len(), 40);
    for map in maps {
        assert_eq!(map.data.unwrap()["run"], "newer", "{:?}", map.metadata.name);
    }
}

#[tokio::test]
async fn t08_a_field_of_another_manager_is_a_conflict_that_names_it() {
    let registry = registry("conflict-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "conflict").await;
    let maps = Api::<ConfigMap>::namespaced(target, "conflict");
    let theirs = config_map("conflict", "m", &json!({"v": "theirs"}));
    maps.patch("m", &PatchParams::apply("somebody"), &Patch::Apply(&theirs))
        .await
        .unwrap();

    let ours = json!([config_map("conflict", "m", &json!({"v": "ours"}))]);
    let why = failed(apply(&registry, "conflict", (1, 1), json!({"manifests": ours})).await);
    assert!(
        why.message.contains("conflict with \"somebody\"") && why.message.contains(".data.v"),
        "{why}"
    );
    assert_eq!(maps.get("m").await.unwrap().data.unwrap()["v"], "theirs");

    done(apply(&registry, "conflict", (1, 2), json!({"manifests": ours, "force": true})).await);
    assert_eq!(maps.get("m").await.unwrap().data.unwrap()["v"], "ours");
}

#[tokio::test]
async fn what_is_not_allowed_or_not_valid_leaves_nothing_behind() {
    let registry = registry("refused-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "refused").await;
    let good = config_map("refused", "good", &json!({"a": "1"}));
    let beside = |bad: Value| json!({"manifests": [good.clone(), bad]});
    let object = |api_version: &str, kind: &str, namespace: &str| json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x", "namespace": namespace}});
    let cases = [
        (
            beside(object("v1", "Secret", "refused")),
            "PermissionError",
            "Secret refused/x: the kind Secret is not allowed by this pool",
        ),
        (
            beside(object("v1", "ConfigMap", "kube-system")),
            "PermissionError",
            "ConfigMap kube-system/x: the namespace kube-system is not allowed",
        ),
        (
            beside(object("rbac.authorization.k8s.io/v1", "Role", "refused")),
            "PermissionError",
            "Role refused/x: objects of the group rbac.authorization.k8s.io grant rights",
        ),
        (
            beside(object("v1", "Namespace", "refused")),
            "PermissionError",
            "cluster `c2`: Namespace refused/x: v1 Namespace is cluster-scoped",
        ),
        (
            beside(object("example.com/v1", "Widget", "refused")),
            "LookupError",
            "cluster `c2`: Widget refused/x: the cluster has no kind example.com/v1 Widget",
        ),
        (
            beside(object("apps/v1", "Deployment", "refused")),
            "RuntimeError",
            "cluster `c2`: Deployment refused/x: cluster `c2`: apply it: ",
        ),
        (
            json!({"manifests": [good], "cluster": "other"}),
            "ValueError",
            "the message is for cluster `c2`",
        ),
        (
            json!({"manifests": "a: ["}),
            "ValueError",
            "the manifests are not plain YAML",
        ),
        (
            json!({"manifests": [good], "clusters": ["c2"]}),
            "TypeError",
            "umbel.cluster.apply takes one cluster or several",
        ),
        (json!({}), "TypeError", "keyword arguments: missing field `manifests`"),
    ];
    for (kwargs, exc_type, words) in cases {
        let why = failed(apply(&registry, "refused", (1, 1), kwargs.clone()).await);
        assert!(why.message.starts_with(words), "{kwargs}: {why}");
        assert!(why.exc_type == exc_type && !why.is_retryable, "{kwargs}: {why:?}");
    }
    let maps = Api::<ConfigMap>::namespaced(target, "refused");
    assert!(maps.get_opt("good").await.unwrap().is_none());
}

#[tokio::test]
async fn one_dead_cluster_of_two_is_retried_and_the_other_is_applied() {
    let good = std::fs::read_to_string(&stage().await.target.kubeconfig).unwrap();
    let server = good
        .lines()
        .find(|line| line.contains("server:"))
        .unwrap()
        .trim()
        .to_owned();
    let closed = umbel_testkit::free_port();
    let dead = good.replace(&server, &format!("server: https://127.0.0.1:{closed}"));
    let registry = registry("two-home", &[("dead", &dead)]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "two").await;

    let (ctx, _leases, _) = delivery(1, 1, &[]);
    let kwargs = json!({"clusters": ["c2", "dead"], "manifests": [config_map("two", "m", &json!({"a": "1"}))]});
    let Outcome::Retry { why, .. } = applier(&registry, "two").run(&ctx, arguments(&kwargs)).await else {
        panic!("a dead cluster may come back");
    };
    assert!(
        why.message
            .starts_with("1 of 2 clusters failed: cluster `dead`: read who it is: not reachable"),
        "{why}"
    );
    assert_eq!(why.exc_type, "ConnectionError");
    assert!(
        Api::<ConfigMap>::namespaced(target, "two")
            .get_opt("m")
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn a_run_that_lost_its_lease_writes_nothing() {
    let registry = registry("lost-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "lost").await;
    let (ctx, leases, _) = delivery(1, 1, &[("umbel_cluster", "c2")]);
    leases.renewed(
        &[Arc::from("w:1")],
        &["w:1".to_owned()],
        Instant::now(),
        Duration::from_mins(1),
    );
    let kwargs = json!({"manifests": [config_map("lost", "m", &json!({"a": "1"}))]});
    let Outcome::Failed(why) = applier(&registry, "lost").run(&ctx, arguments(&kwargs)).await else {
        panic!("the lease is lost");
    };
    assert_eq!(why.exc_type, "WorkerLostError");
    assert!(
        Api::<ConfigMap>::namespaced(target, "lost")
            .get_opt("m")
            .await
            .unwrap()
            .is_none()
    );
}
