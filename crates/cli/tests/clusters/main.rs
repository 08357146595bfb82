//! `umbel cluster` against a real home and real targets.

#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::authorization::v1::SelfSubjectRulesReview;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use support::{Done, plain as umbel};
use tokio::sync::OnceCell;
use umbel_api::{TargetCluster, WorkerPool};
use umbel_clusters::credential::Account;
use umbel_clusters::kubeconfig;
use umbel_testkit::{ControlPlane, Target, TempDir, eventually, free_port};

const SOON: Duration = Duration::from_secs(30);

/// The call succeeds; what it printed.
#[track_caller]
fn good(done: Done) -> Done {
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    done
}

/// How many there are in all namespaces.
async fn count<K>(client: &Client, of: &ListParams) -> usize
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    Api::<K>::all(client.clone()).list(of).await.unwrap().items.len()
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

struct Stage {
    home: ControlPlane,
    target: Target,
}

static STAGE: OnceCell<Stage> = OnceCell::const_new();

/// A home with our kinds, and a target.
async fn stage() -> &'static Stage {
    STAGE
        .get_or_init(|| async {
            let home = ControlPlane::start().await;
            let target = home.target("c2").await;
            let definitions = Api::<CustomResourceDefinition>::all(home.client().await);
            for (_, definition) in umbel_api::definitions() {
                definitions.create(&PostParams::default(), &definition).await.unwrap();
                let name = definition.name_any();
                let established = await_condition(definitions.clone(), &name, conditions::is_crd_established());
                tokio::time::timeout(SOON, established).await.unwrap().unwrap();
            }
            Stage { home, target }
        })
        .await
}

/// A namespace at home.
struct Place {
    home: Client,
    target: Client,
    namespace: String,
    flags: Vec<String>,
    from: Vec<String>,
}

async fn namespace(client: &Client, name: &str) {
    let object = object(json!({"metadata": {"name": name}}));
    Api::<Namespace>::all(client.clone())
        .create(&PostParams::default(), &object)
        .await
        .unwrap();
}

async fn place(name: &str) -> Place {
    let stage = stage().await;
    let home = stage.home.client().await;
    namespace(&home, name).await;
    let text = |path: &Path| path.display().to_string();
    Place {
        home,
        target: stage.target.client().await,
        namespace: name.to_owned(),
        flags: ["--kubeconfig", &text(&stage.home.kubeconfig()), "-n", name]
            .map(str::to_owned)
            .to_vec(),
        from: [
            "--from-kubeconfig",
            &text(&stage.target.kubeconfig),
            "--from-context",
            "c2",
        ]
        .map(str::to_owned)
        .to_vec(),
    }
}

impl Place {
    async fn run(&self, args: &[&str]) -> Done {
        let flags = self.flags.iter().map(String::as_str);
        let all: Vec<&str> = ["cluster"]
            .into_iter()
            .chain(args.iter().copied())
            .chain(flags)
            .collect();
        umbel(&all).await
    }

    /// With an administrator's access to the target.
    async fn from(&self, args: &[&str]) -> Done {
        let from = self.from.iter().map(String::as_str);
        self.run(&args.iter().copied().chain(from).collect::<Vec<_>>()).await
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.home.clone(), &self.namespace)
    }

    fn clusters(&self) -> Api<TargetCluster> {
        Api::namespaced(self.home.clone(), &self.namespace)
    }

    async fn kubeconfig(&self, cluster: &str) -> Vec<u8> {
        let secret = self.secrets().get(&format!("umbel-cluster-{cluster}")).await.unwrap();
        secret.data.unwrap()["kubeconfig"].0.clone()
    }

    async fn write(&self, cluster: &str, kubeconfig: &str) {
        let patch = json!({"stringData": {"kubeconfig": kubeconfig}});
        self.secrets()
            .patch(
                &format!("umbel-cluster-{cluster}"),
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await
            .unwrap();
    }

    async fn account(&self, cluster: &str) -> Account {
        let secret = self.secrets().get(&format!("umbel-cluster-{cluster}")).await.unwrap();
        serde_json::from_str(&secret.annotations()["umbel.dev/renew"]).unwrap()
    }
}

fn token(kubeconfig: &[u8]) -> String {
    let root: Value = serde_saphyr::from_slice(kubeconfig).unwrap();
    root.pointer("/users/0/user/token")
        .unwrap()
        .as_str()
        .unwrap()
        .to_owned()
}

fn client(kubeconfig: &[u8]) -> Client {
    kubeconfig::parse(kubeconfig)
        .map(|accepted| accepted.client().unwrap())
        .unwrap()
}

/// Everything that a credential may do, a line each.
async fn rights(client: &Client, namespaces: &[&str]) -> String {
    let api: Api<SelfSubjectRulesReview> = Api::all(client.clone());
    let mut text = String::new();
    for namespace in namespaces {
        let review = object(json!({"spec": {"namespace": namespace}}));
        let status = api
            .create(&PostParams::default(), &review)
            .await
            .unwrap()
            .status
            .unwrap();
        assert!(!status.incomplete, "{status:?}");
        let words = |words: &Option<Vec<String>>| words.clone().unwrap_or_default().join(",");
        let resources = status.resource_rules.iter().map(|rule| {
            let groups = words(&rule.api_groups);
            let names = words(&rule.resource_names);
            format!(
                "{} [{groups}] {} [{names}]",
                rule.verbs.join(","),
                words(&rule.resources)
            )
        });
        let others = status.non_resource_rules.iter();
        let others = others.map(|rule| format!("{} {}", rule.verbs.join(","), words(&rule.non_resource_urls)));
        let mut lines: Vec<String> = resources.chain(others).collect();
        lines.sort();
        text += &["# in ", namespace, "\n", &lines.join("\n"), "\n"].concat();
    }
    text
}

/// D03: the list is the file. `UMBEL_UPDATE=1` writes it.
#[tokio::test]
async fn d03_a_joined_account_may_do_what_is_written_and_no_more() {
    let place = place("join").await;
    for name in ["shop", "other"] {
        namespace(&place.target, name).await;
    }
    let join = [
        "join",
        "c2",
        "--label",
        "env=prod",
        "--allow",
        "shop:apps/Deployment,ConfigMap",
        "--allow",
        ":nodes",
    ];
    let joined = good(place.from(&join).await);
    assert_eq!(joined.out, "targetcluster.umbel.dev/c2\n");
    let lines: Vec<&str> = joined.err.lines().collect();
    for line in [
        "at the target: made ServiceAccount umbel-system/umbel-join-c2",
        "at the target: made ClusterRole umbel-join-c2",
        "at the target: made Role umbel-system/umbel-join-c2-token",
        "at the target: made RoleBinding shop/umbel-join-c2",
    ] {
        assert!(lines.contains(&line), "{line}: {}", joined.err);
    }
    assert!(
        lines
            .last()
            .unwrap()
            .starts_with("TargetCluster join/c2 leads to https://127.0.0.1:"),
        "{}",
        joined.err
    );
    let target = place.clusters().get("c2").await.unwrap();
    assert_eq!(target.labels()["env"], "prod");

    let text = place.kubeconfig("c2").await;
    assert!(!joined.err.contains(&token(&text)));
    let lifetime = kubeconfig::parse(&text).map(|accepted| accepted.lifetime()).unwrap();
    let life = lifetime.until.unwrap().duration_since(lifetime.from.unwrap());
    assert_eq!(life.as_secs(), 3600);
    let account = client(&text);
    let file =
        Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("tests/clusters/joined-rights.txt");
    // Roles are seen a moment after they are written.
    let mut found = String::new();
    eventually(SOON, "the roles are in force", async || {
        found = rights(&account, &["other", "shop", "umbel-system", "kube-system"]).await;
        found.contains("deployments/scale") && found.contains("serviceaccounts/token") && found.contains("/readyz")
    })
    .await;
    if std::env::var_os("UMBEL_UPDATE").is_some() {
        std::fs::write(&file, &found).unwrap();
    }
    assert_eq!(found, std::fs::read_to_string(&file).unwrap_or_default());

    // Its own token and nobody else's.
    let own = place.account("c2").await;
    let again = own.token(&account).await.unwrap();
    assert!(!again.is_empty());
    let other = Account {
        namespace: "umbel-system".into(),
        service_account: "default".into(),
        bound_to: None,
        seconds: 3600,
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(place.target.clone(), "umbel-system");
    let _ = accounts
        .create(
            &PostParams::default(),
            &object(json!({"metadata": {"name": "default"}})),
        )
        .await; // There where a controller made it.
    let refused = other.token(&account).await.unwrap_err();
    assert!(
        matches!(&refused, kube::Error::Api(status) if status.code == 403),
        "{refused:?}"
    );

    // Again: nothing changes but the token. With less: the rights go.
    let again = good(place.from(&join).await);
    assert!(
        !again.err.contains("made") && !again.err.contains("changed"),
        "{}",
        again.err
    );
    let fewer = good(place.from(&["join", "c2"]).await);
    assert!(
        fewer.err.contains("at the target: removed Role shop/umbel-join-c2"),
        "{}",
        fewer.err
    );
    assert!(
        fewer.err.contains("at the target: changed ClusterRole umbel-join-c2"),
        "{}",
        fewer.err
    );
    let roles: Api<Role> = Api::namespaced(place.target.clone(), "shop");
    assert!(roles.list(&ListParams::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_dry_run_makes_nothing_and_a_wrong_right_is_refused_before_anything_is_made() {
    let place = place("dry").await;
    let dry = good(
        place
            .from(&["join", "c2", "--target-namespace", "elsewhere", "--dry-run"])
            .await,
    );
    assert!(
        dry.out.contains("kind: ClusterRoleBinding") && dry.out.contains("kind: TargetCluster"),
        "{}",
        dry.out
    );
    assert!(
        dry.err.contains("at the target: would make Namespace elsewhere"),
        "{}",
        dry.err
    );
    for (allow, words) in [
        ("shop", "not of the form NAMESPACE:KIND[,KIND]"),
        ("shop:Teapot", "the target serves no kind Teapot"),
        ("shop:nodes", "nodes is in no namespace; say :nodes"),
        (":ConfigMap", "ConfigMap is in namespaces; say NAMESPACE:ConfigMap"),
        ("shop:*", "the target serves no kind *"),
    ] {
        let done = place
            .from(&["join", "c2", "--target-namespace", "elsewhere", "--allow", allow])
            .await;
        assert_eq!((done.code, done.out.as_str()), (1, ""), "{allow}");
        assert!(done.err.contains(words), "{allow}: {}", done.err);
    }
    let namespaces: Api<Namespace> = Api::all(place.target.clone());
    assert!(namespaces.get_opt("elsewhere").await.unwrap().is_none());
    let accounts: Api<ClusterRole> = Api::all(place.target.clone());
    assert!(accounts.get_opt("umbel-dry-c2").await.unwrap().is_none());
    assert!(place.clusters().get_opt("c2").await.unwrap().is_none());
    assert!(place.secrets().get_opt("umbel-cluster-c2").await.unwrap().is_none());
}

#[tokio::test]
async fn an_account_of_somebody_else_is_left_as_it_is() {
    let place = place("foreign").await;
    let roles: Api<ClusterRole> = Api::all(place.target.clone());
    let theirs = object(json!({"metadata": {"name": "umbel-foreign-c2"}, "rules": []}));
    roles.create(&PostParams::default(), &theirs).await.unwrap();
    let done = place.from(&["join", "c2"]).await;
    assert!(
        done.code == 1
            && done
                .err
                .contains("ClusterRole umbel-foreign-c2 at the target exists and is not this cluster's"),
        "{}",
        done.err
    );
    assert!(place.secrets().get_opt("umbel-cluster-c2").await.unwrap().is_none());
    good(place.from(&["join", "c2", "--account", "ours"]).await);
    assert_eq!(place.account("c2").await.service_account, "ours");
}

/// A kubeconfig that leads elsewhere, or has another CA.
fn changed(text: &[u8], change: impl Fn(&mut Value)) -> String {
    let mut root: Value = serde_saphyr::from_slice(text).unwrap();
    change(&mut root);
    serde_saphyr::to_string(&root).unwrap()
}

#[tokio::test]
async fn test_says_what_works_and_what_is_missing() {
    let place = place("test").await;
    namespace(&place.target, "test-shop").await;
    good(place.from(&["join", "c2", "--allow", "test-shop:ConfigMap"]).await);
    let pool: WorkerPool = object(json!({"apiVersion": "umbel.dev/v1alpha1", "kind": "WorkerPool",
        "metadata": {"name": "appliers"}, "spec": {"queues": [{"name": "q"}], "clusterAccess": {"names": ["c2"]},
        "jobs": {"apply": {"namespaces": ["test-shop"], "kinds": ["ConfigMap"]}}}}));
    let pools: Api<WorkerPool> = Api::namespaced(place.home.clone(), "test");
    pools.create(&PostParams::default(), &pool).await.unwrap();
    let text = place.kubeconfig("c2").await;

    let mut done = place.run(&["test", "c2"]).await;
    eventually(SOON, "the roles are in force", async || {
        done = place.run(&["test", "c2"]).await;
        done.code == 0
    })
    .await;
    for line in [
        "c2: good",
        "  ok       TLS: the server's certificate is the CA's",
        "  ok       login as system:serviceaccount:umbel-system:umbel-test-c2",
        "  ok       sync: get namespaces kube-system",
        "  ok       sync: get /readyz",
        "  ok       pool appliers, job apply: patch configmaps in test-shop",
    ] {
        assert!(done.out.lines().any(|found| found == line), "{line}: {}", done.out);
    }
    assert!(done.out.contains("identity: kube-system is "), "{}", done.out);

    // A right less, and a pool that wants more than was allowed.
    let bindings: Api<RoleBinding> = Api::namespaced(place.target.clone(), "test-shop");
    bindings
        .delete("umbel-test-c2", &DeleteParams::default())
        .await
        .unwrap();
    let cluster_bindings: Api<ClusterRoleBinding> = Api::all(place.target.clone());
    cluster_bindings
        .delete("umbel-test-c2", &DeleteParams::default())
        .await
        .unwrap();
    eventually(SOON, "it is missing", async || {
        done = place.run(&["test", "c2"]).await;
        done.code == 1
            && done
                .out
                .contains("  MISSING  pool appliers, job apply: patch configmaps in test-shop")
            && done.out.contains("  MISSING  sync: list pods")
            && done.out.contains("  without  sync: list nodes.metrics.k8s.io")
    })
    .await;
    assert!(!done.out.contains(&token(&text)) && !done.err.contains(&token(&text)));

    let dead = format!("https://127.0.0.1:{}", free_port());
    let authority = umbel_testkit::Authority::new("another");
    let ca = std::fs::read(authority.certificate()).unwrap();
    let ca = serde_json::to_value(k8s_openapi::ByteString(ca)).unwrap();
    let cases: [(&str, String); 5] = [
        (
            "connection: ",
            changed(&text, |root| root["clusters"][0]["cluster"]["server"] = json!(dead)),
        ),
        (
            "TLS: ",
            changed(&text, |root| {
                root["clusters"][0]["cluster"]["certificate-authority-data"] = ca.clone();
            }),
        ),
        (
            "login: Unauthorized",
            changed(&text, |root| root["users"][0]["user"]["token"] = json!("wrong")),
        ),
        (
            "kubeconfig: user: `exec` is not allowed",
            changed(&text, |root| {
                root["users"][0]["user"]["exec"] = json!({"command": "touch"});
            }),
        ),
        ("kubeconfig: the kubeconfig is not plain YAML", "{".to_owned()),
    ];
    for (words, text) in cases {
        place.write("c2", &text).await;
        let done = place.run(&["test", "--all", "-o", "json"]).await;
        let found: Value = serde_json::from_str(&done.out).unwrap();
        let last = found["items"][0]["lines"].as_array().unwrap().last().unwrap().clone();
        assert_eq!((done.code, &last["verdict"]), (1, &json!("MISSING")), "{words}");
        assert!(last["text"].as_str().unwrap().starts_with(words), "{words}: {last}");
    }
}

/// What `test` says, once it says all of this; the whole of it.
async fn said(place: &Place, lines: &[&str]) -> Done {
    let mut done = place.run(&["test", "c2"]).await;
    // Roles are seen a moment after they are written.
    let waited = tokio::time::timeout(SOON, async {
        while !lines.iter().all(|line| done.out.lines().any(|found| found == *line)) {
            tokio::time::sleep(Duration::from_millis(200)).await;
            done = place.run(&["test", "c2"]).await;
        }
    });
    assert!(waited.await.is_ok(), "{lines:?}: {}{}", done.out, done.err);
    done
}

#[tokio::test]
async fn test_asks_as_whom_workers_are() {
    let place = place("as").await;
    namespace(&place.target, "as-shop").await;
    good(place.from(&["join", "c2", "--allow", "as-shop:ConfigMap"]).await);
    said(&place, &["c2: good"]).await;
    let who = json!({"spec": {"impersonate": {"user": "jane", "groups": ["dev", "ops"]}}});
    let merge = PatchParams::default();
    place.clusters().patch("c2", &merge, &Patch::Merge(who)).await.unwrap();

    // The account may do all of it, and be nobody else.
    let done = said(
        &place,
        &[
            "c2: not good",
            "  ok       login as system:serviceaccount:umbel-system:umbel-as-c2",
            "  MISSING  impersonate: impersonate users jane",
            "  MISSING  impersonate: impersonate groups dev",
            "  MISSING  impersonate: impersonate groups ops",
        ],
    )
    .await;
    let last = done.out.lines().last().unwrap();
    assert!(
        done.code == 1
            && last.starts_with("  MISSING  impersonate jane of dev, ops: ")
            && last.contains("cannot impersonate"),
        "{}",
        done.out
    );

    const RBAC: &str = "rbac.authorization.k8s.io";
    let roles: Api<ClusterRole> = Api::all(place.target.clone());
    let bindings: Api<ClusterRoleBinding> = Api::all(place.target.clone());
    let bind = async |name: &str, role: &str, subject: Value| {
        let binding = object(json!({"metadata": {"name": name}, "subjects": [subject],
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role}}));
        bindings.create(&PostParams::default(), &binding).await.unwrap();
    };
    let role = object(json!({"metadata": {"name": "as-jane"}, "rules": [
        {"apiGroups": [""], "resources": ["users", "groups"], "verbs": ["impersonate"], "resourceNames": ["jane", "dev", "ops"]}]}));
    roles.create(&PostParams::default(), &role).await.unwrap();
    let account = json!({"kind": "ServiceAccount", "namespace": "umbel-system", "name": "umbel-as-c2"});
    bind("as-jane", "as-jane", account).await;
    // Now what jane may not do is missing, whatever the account may.
    let done = said(
        &place,
        &[
            "  ok       impersonate jane of dev, ops: requests are made as jane",
            "  ok       renewal: create serviceaccounts/token umbel-as-c2 in umbel-system",
            "  MISSING  sync: list nodes",
            "  MISSING  allowed at join: patch configmaps in as-shop",
        ],
    )
    .await;
    assert_eq!(done.code, 1);

    // By the groups, too: they are sent.
    bind(
        "as-dev",
        "umbel-as-c2",
        json!({"kind": "Group", "apiGroup": RBAC, "name": "dev"}),
    )
    .await;
    let shop: Api<RoleBinding> = Api::namespaced(place.target.clone(), "as-shop");
    let binding = object(
        json!({"metadata": {"name": "as-jane"}, "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": "umbel-as-c2"},
        "subjects": [{"kind": "User", "apiGroup": RBAC, "name": "jane"}]}),
    );
    shop.create(&PostParams::default(), &binding).await.unwrap();
    let done = said(
        &place,
        &[
            "c2: good",
            "  ok       sync: list nodes",
            "  ok       allowed at join: patch configmaps in as-shop",
        ],
    )
    .await;
    assert!(done.code == 0 && !done.out.contains("MISSING"), "{}", done.out);
}

#[tokio::test]
async fn test_asks_for_what_the_jobs_of_pools_do() {
    let place = place("jobs").await;
    namespace(&place.target, "jobs-shop").await;
    good(
        place
            .from(&["join", "c2", "--allow", "jobs-shop:apps/Deployment"])
            .await,
    );
    let rules = |kinds: Value| json!({"namespaces": ["jobs-shop"], "kinds": kinds});
    let deployments = rules(json!(["apps/Deployment"]));
    let pool: WorkerPool = object(
        json!({"apiVersion": "umbel.dev/v1alpha1", "kind": "WorkerPool", "metadata": {"name": "all"},
        "spec": {"queues": [{"name": "q"}], "clusterAccess": {"names": ["c2"]}, "jobs": {
            "apply": {"namespaces": ["jobs-shop"], "kinds": ["apps/Deployment"], "clusterKinds": ["rbac.authorization.k8s.io/Role"]},
            "prune": deployments, "delete": deployments, "scale": deployments, "restart": deployments,
            "wait": deployments, "diff": rules(json!(["Gone", "gone.example.com/Widget", "Node"])), "labelNodes": {"prefixes": ["a.example.com/"]},
        }}}),
    );
    let pools: Api<WorkerPool> = Api::namespaced(place.home.clone(), "jobs");
    pools.create(&PostParams::default(), &pool).await.unwrap();
    let done = said(
        &place,
        &[
            "  ok       pool all, job apply: patch deployments.apps in jobs-shop",
            "  ok       pool all, job apply: list deployments.apps in jobs-shop",
            "  ok       pool all, job scale: patch deployments.apps in jobs-shop",
            "  ok       pool all, job scale: patch deployments.apps/scale in jobs-shop",
            "  ok       pool all, job wait: watch deployments.apps in jobs-shop",
            "  MISSING  pool all, job apply, apply sets: get configmaps in jobs-shop",
            "  MISSING  pool all, job apply, apply sets: create configmaps in jobs-shop",
            "  MISSING  pool all, job apply, apply sets: update configmaps in jobs-shop",
            "  MISSING  pool all, job prune, apply sets: update configmaps in jobs-shop",
            "  MISSING  pool all, job delete, apply sets: update configmaps in jobs-shop",
            "  MISSING  pool all, job apply: patch roles.rbac.authorization.k8s.io in jobs-shop",
            "  without  pool all, job apply: list roles.rbac.authorization.k8s.io in jobs-shop",
            "  MISSING  pool all, job labelNodes: patch nodes",
            "  MISSING  pool all, job diff: the target serves no kind Gone",
            "  MISSING  pool all, job diff: the target serves no kind gone.example.com/Widget",
            "  MISSING  pool all, job diff: Node is cluster-scoped there, and not in clusterKinds",
        ],
    )
    .await;
    assert_eq!(done.code, 1);

    // A group of which nobody answers hides no other.
    let service = object(json!({"metadata": {"name": "v1.dead.example.com"},
        "spec": {"group": "dead.example.com", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1,
            "service": {"namespace": "jobs-shop", "name": "nobody"}}}));
    let services: Api<APIService> = Api::all(place.target.clone());
    services.create(&PostParams::default(), &service).await.unwrap();
    let spec = json!({"spec": {"jobs": {"diff": null, "labelNodes": null,
        "apply": {"clusterKinds": null, "kinds": ["apps/Deployment", "ConfigMap"]}}}});
    let merge = PatchParams::default();
    pools.patch("all", &merge, &Patch::Merge(spec)).await.unwrap();
    good(
        place
            .from(&["join", "c2", "--allow", "jobs-shop:apps/Deployment,ConfigMap"])
            .await,
    );
    let done = said(
        &place,
        &[
            "c2: good",
            "  ok       pool all, job apply, apply sets: create configmaps in jobs-shop",
        ],
    )
    .await;
    assert!(done.code == 0 && !done.out.contains("MISSING"), "{}", done.out);
    services
        .delete("v1.dead.example.com", &DeleteParams::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn rotate_makes_a_new_token_and_with_key_the_old_ones_die() {
    let place = place("rotate").await;
    good(place.from(&["join", "c2"]).await);
    let first = place.kubeconfig("c2").await;
    let mut done = place.run(&["rotate", "c2"]).await;
    // Within the same second it would last no longer; and its right is seen a moment later.
    eventually(SOON, "its own token makes a new one", async || {
        done = place.run(&["rotate", "c2"]).await;
        done.code == 0
    })
    .await;
    assert!(done.err.contains("the old token is used no more"), "{}", done.err);
    let second = place.kubeconfig("c2").await;
    assert_ne!(token(&first), token(&second));
    client(&second).apiserver_version().await.unwrap();

    let needs = place.run(&["rotate", "c2", "--key"]).await;
    assert_eq!(needs.code, 2, "{}", needs.err);
    let done = good(place.from(&["rotate", "c2", "--key"]).await);
    assert!(
        done.err
            .contains("every earlier token of the account is worth nothing now"),
        "{}",
        done.err
    );
    let third = place.kubeconfig("c2").await;
    client(&third).apiserver_version().await.unwrap();
    // The API server knows a token for ten seconds.
    for old in [&first, &second] {
        let old = client(old);
        let me: Api<SelfSubjectRulesReview> = Api::all(old);
        eventually(SOON, "the old token is none any more", async || {
            let review = object(json!({"spec": {"namespace": "default"}}));
            let answer = me.create(&PostParams::default(), &review).await;
            matches!(&answer, Err(kube::Error::Api(status)) if status.code == 401)
        })
        .await;
    }

    let as_is = good(place.from(&["join", "c2", "--as-is"]).await);
    assert!(
        as_is
            .err
            .contains("umbel-system/umbel-rotate-c2 of an earlier join stays"),
        "{}",
        as_is.err
    );
    let done = place.run(&["rotate", "c2"]).await;
    assert!(
        done.code == 1 && done.err.contains("holds no token that can be renewed"),
        "{}",
        done.err
    );
}

#[tokio::test]
async fn leave_takes_away_what_join_made_and_says_what_stays() {
    let place = place("leave").await;
    namespace(&place.target, "leave-shop").await;
    good(place.from(&["join", "c2", "--allow", "leave-shop:ConfigMap"]).await);
    let pool: WorkerPool = object(json!({"apiVersion": "umbel.dev/v1alpha1", "kind": "WorkerPool",
        "metadata": {"name": "syncers"}, "spec": {"queues": [{"name": "q"}], "clusterAccess": {"names": ["c2", "gone"]}}}));
    let pools: Api<WorkerPool> = Api::namespaced(place.home.clone(), "leave");
    pools.create(&PostParams::default(), &pool).await.unwrap();

    let asked = place.from(&["leave", "c2"]).await;
    assert!(
        asked.code == 2
            && asked.err.contains("WorkerPool syncers covers TargetCluster leave/c2")
            && asked.err.contains("--yes"),
        "{}",
        asked.err
    );
    assert!(place.clusters().get_opt("c2").await.unwrap().is_some());

    let left = good(place.from(&["leave", "c2", "--yes"]).await);
    for line in [
        "at the target: removed ClusterRoleBinding umbel-leave-c2",
        "at the target: removed Role leave-shop/umbel-leave-c2",
        "at the target: removed ServiceAccount umbel-system/umbel-leave-c2",
        "at the target: Namespace umbel-system stays",
        "at home: removed TargetCluster leave/c2",
        "at home: removed Secret leave/umbel-cluster-c2",
    ] {
        assert!(left.err.lines().any(|found| found == line), "{line}: {}", left.err);
    }
    let ours = ListParams::default().labels("umbel.dev/account=umbel-leave-c2");
    assert_eq!(count::<ClusterRole>(&place.target, &ours).await, 0);
    assert_eq!(count::<Role>(&place.target, &ours).await, 0);
    assert_eq!(count::<ServiceAccount>(&place.target, &ours).await, 0);
    assert!(place.secrets().get_opt("umbel-cluster-c2").await.unwrap().is_none());
    let again = place.run(&["leave", "c2", "--yes"]).await;
    assert!(
        again.code == 2 && again.err.contains("there is no TargetCluster c2"),
        "{}",
        again.err
    );

    // One that does not answer any more.
    good(place.from(&["join", "gone"]).await);
    let folder = TempDir::new("gone");
    let file: PathBuf = folder.path().join("kubeconfig");
    let text = std::fs::read(&stage().await.target.kubeconfig).unwrap();
    let dead = format!("https://127.0.0.1:{}", free_port());
    std::fs::write(
        &file,
        changed(&text, |root| root["clusters"][0]["cluster"]["server"] = json!(dead)),
    )
    .unwrap();
    let mut leave = vec![
        "leave",
        "gone",
        "--yes",
        "--from-context",
        "c2",
        "--from-kubeconfig",
        file.to_str().unwrap(),
    ];
    let done = place.run(&leave).await;
    assert!(
        done.code == 1 && done.err.contains("nothing was removed at home (--force goes on)"),
        "{}",
        done.err
    );
    assert!(place.clusters().get_opt("gone").await.unwrap().is_some());
    leave.push("--force");
    let done = good(place.run(&leave).await);
    assert!(
        done.err
            .contains("ServiceAccount umbel-system/umbel-leave-gone and its roles stay"),
        "{}",
        done.err
    );
    assert!(place.clusters().get_opt("gone").await.unwrap().is_none());
    assert!(place.secrets().get_opt("umbel-cluster-gone").await.unwrap().is_none());
}

#[tokio::test]
async fn ls_is_a_table_of_what_the_status_says() {
    let place = place("ls").await;
    for (name, env) in [("eu", "prod"), ("us", "dev")] {
        let cluster: TargetCluster = object(json!({"apiVersion": "umbel.dev/v1alpha1", "kind": "TargetCluster",
            "metadata": {"name": name, "labels": {"env": env}}, "spec": {"kubeconfigSecretRef": {"name": name, "key": "kubeconfig"}}}));
        place.clusters().create(&PostParams::default(), &cluster).await.unwrap();
    }
    let at = jiff::Timestamp::now().to_string();
    let status = json!({"status": {"version": "v1.36.3", "apiLatencyMs": 4, "nodes": {"total": 3, "ready": 2},
        "pods": {"Running": 40, "Pending": 2}, "lastSyncTime": at, "lastError": "no answer within 5 s",
        "conditions": [{"type": "Reachable", "status": "False", "reason": "R", "message": "m", "lastTransitionTime": at}]}});
    place
        .clusters()
        .patch_status("eu", &PatchParams::default(), &Patch::Merge(&status))
        .await
        .unwrap();
    let table = good(place.run(&["ls"]).await).out;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        rows[0],
        [
            "NAME",
            "REACHABLE",
            "VERSION",
            "NODES",
            "PODS",
            "LATENCY",
            "CIRCUIT",
            "SYNCED",
            "ERROR"
        ]
    );
    assert_eq!(rows[1][..7], ["eu", "False", "v1.36.3", "2/3", "42", "4ms", "-"]);
    assert!(
        table.lines().nth(1).unwrap().ends_with("no answer within 5 s"),
        "{table}"
    );
    assert_eq!(rows[2], ["us", "-", "-", "-", "-", "-", "-", "-"]);
    assert_eq!(
        good(place.run(&["ls", "-l", "env=dev", "-o", "name"]).await).out,
        "targetcluster.umbel.dev/us\n"
    );
    let json: Value = serde_json::from_str(&good(place.run(&["ls", "eu", "-o", "json"]).await).out).unwrap();
    assert_eq!(json["items"][0]["status"]["pods"]["Running"], 40);
    let wide = good(place.run(&["ls", "-o", "wide"]).await).out;
    assert!(wide.contains("env=prod") && wide.contains("EXPIRES"), "{wide}");
    assert_eq!(place.run(&["ls", "absent"]).await.code, 2);
}

#[tokio::test]
async fn tasks_that_are_objects_are_listed_shown_and_cancelled() {
    use umbel_api::Task;
    let place = place("tasks").await;
    let tasks: Api<Task> = Api::namespaced(place.home.clone(), "tasks");
    for name in ["migrate", "other"] {
        let task: Task = object(
            json!({"apiVersion": "umbel.dev/v1alpha1", "kind": "Task", "metadata": {"name": name},
            "spec": {"taskTemplate": {"task": "umbel.echo", "queueRef": {"name": "q"}}}}),
        );
        tasks.create(&PostParams::default(), &task).await.unwrap();
    }
    let run = async |args: &[&str]| {
        let flags = place.flags.iter().map(String::as_str);
        umbel(
            &["task"]
                .into_iter()
                .chain(args.iter().copied())
                .chain(flags)
                .collect::<Vec<_>>(),
        )
        .await
    };
    let phase = async |name: &str, phase: &str| {
        let status = json!({"status": {"phase": phase, "attempts": 1, "resultPreview": "[2, 3]"}});
        tasks
            .patch_status(name, &PatchParams::default(), &Patch::Merge(&status))
            .await
            .unwrap();
    };
    phase("migrate", "Running").await;
    let table = good(run(&["ls"]).await).out;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[1][..3], ["migrate", "Running", "1"]);
    assert_eq!(rows[2][..3], ["other", "Pending", "0"]);
    assert_eq!(
        good(run(&["ls", "-o", "name"]).await).out,
        "task.umbel.dev/migrate\ntask.umbel.dev/other\n"
    );

    let late = run(&["get", "migrate", "--wait", "--timeout", "0.1"]).await;
    assert!(
        late.code == 1 && late.err.contains("Task migrate did not end within 0.1 s"),
        "{}",
        late.err
    );
    let dry = good(run(&["cancel", "migrate", "--dry-run"]).await);
    assert!(dry.out.contains("would be cancelled"), "{}", dry.out);
    assert!(!tasks.get("migrate").await.unwrap().spec.cancel);
    let asked = run(&["cancel", "task.umbel.dev/migrate", "--timeout", "0.1"]).await;
    assert!(
        asked.code == 1 && asked.out.contains("is being cancelled"),
        "{}",
        asked.out
    );
    assert!(tasks.get("migrate").await.unwrap().spec.cancel);
    assert!(!tasks.get("other").await.unwrap().spec.cancel);
    phase("migrate", "Cancelled").await;
    assert!(good(run(&["cancel", "migrate"]).await).out.contains("cancelled"));
    assert_eq!(run(&["get", "migrate", "--wait"]).await.code, 1);
    phase("other", "Succeeded").await;
    let got: Value = serde_json::from_str(&good(run(&["get", "other", "--wait", "-o", "json"]).await).out).unwrap();
    assert_eq!(got["items"][0]["status"]["resultPreview"], "[2, 3]");
    let mixed = run(&["cancel", "other", "7f8c2a1e-5d0b-4c5f-9d57-6d0a8a4f0f11"]).await;
    assert!(
        mixed.code == 2 && mixed.err.contains("name them apart"),
        "{}",
        mixed.err
    );
    let absent = run(&["get", "task.umbel.dev/absent"]).await;
    assert!(
        absent.code == 1 && absent.err.contains("read Task absent"),
        "{}",
        absent.err
    );
}

/// C05, here: whatever a person asks, and however much the program tells.
#[tokio::test]
async fn c05_canaries_of_credentials_show_in_no_output() {
    let place = place("canaries").await;
    let stage = stage().await;
    let text = std::fs::read(&stage.target.kubeconfig).unwrap();
    let root: Value = serde_saphyr::from_slice(&text).unwrap();
    let authority: k8s_openapi::ByteString =
        serde_json::from_value(root["clusters"][0]["cluster"]["certificate-authority-data"].clone()).unwrap();
    let server = root["clusters"][0]["cluster"]["server"]
        .as_str()
        .unwrap()
        .replace("https://", "");
    let all = umbel_testkit::canaries(&server, &server, &format!("127.0.0.1:{}", free_port()), &authority.0);
    assert_eq!(all.len(), 25);
    let folder = TempDir::new("canaries");
    let account = json!({"namespace": "umbel-system", "serviceAccount": "x", "seconds": 3600}).to_string();
    let mut outputs = Vec::new();
    for (number, (_, text)) in all.iter().enumerate() {
        let name = format!("c{number}");
        let secret = object(
            json!({"metadata": {"name": format!("umbel-cluster-{name}"), "annotations": {"umbel.dev/renew": account},
            "labels": {"app.kubernetes.io/managed-by": "umbel"}}, "stringData": {"kubeconfig": text}}),
        );
        place.secrets().create(&PostParams::default(), &secret).await.unwrap();
        let cluster = object(
            json!({"apiVersion": "umbel.dev/v1alpha1", "kind": "TargetCluster", "metadata": {"name": name},
            "spec": {"kubeconfigSecretRef": {"name": format!("umbel-cluster-{name}"), "key": "kubeconfig"}}}),
        );
        place.clusters().create(&PostParams::default(), &cluster).await.unwrap();
        // The same as a person's own file.
        let file = folder.path().join(&name);
        std::fs::write(&file, text).unwrap();
        // Whose canary is the name of a file is told which file is not there.
        let flags = [&["--as-is"][..], &[], &["--dry-run"]];
        for flag in flags.into_iter().filter(|_| !text.contains("/tmp/canary")) {
            let mut join = vec![
                "join",
                "new",
                "--from-context",
                "c",
                "--from-kubeconfig",
                file.to_str().unwrap(),
            ];
            join.extend(flag);
            outputs.push(place.run(&join).await);
        }
        for command in ["rotate", "test"] {
            outputs.push(place.run(&[command, &name]).await);
        }
    }
    for list in [
        &["ls"][..],
        &["ls", "-o", "wide"],
        &["ls", "-o", "json"],
        &["ls", "-o", "yaml"],
        &["test", "--all", "-o", "json"],
    ] {
        outputs.push(place.run(list).await);
    }
    for number in 0..all.len() {
        outputs.push(place.run(&["leave", &format!("c{number}"), "--yes"]).await);
    }
    let said: usize = outputs.iter().map(|done| done.out.len() + done.err.len()).sum();
    assert!(said > 10_000, "{said} characters");
    assert!(
        outputs
            .iter()
            .any(|done| done.err.contains("TargetCluster canaries/new leads to")),
        "one was joined"
    );
    for (number, (canary, _)) in all.iter().enumerate() {
        let encoded = serde_json::to_value(k8s_openapi::ByteString(canary.clone().into_bytes())).unwrap();
        for form in [canary, encoded.as_str().unwrap()] {
            let found = outputs
                .iter()
                .find(|done| done.out.contains(form) || done.err.contains(form));
            assert!(
                found.is_none(),
                "the canary of c{number}: {:?}",
                found.map(|done| (&done.out, &done.err))
            );
        }
    }
}
