//! Credentials of target clusters: renewed, said to end, discovered, and read by nobody else. On real API servers.

mod canaries;
mod chart;
#[allow(unused_imports, reason = "no pool runs here")]
#[path = "../common/mod.rs"]
mod common;
mod token;

use std::time::Duration;

use common::{LONG, NAMESPACE, Stage};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use token::Issuer;
use umbel_api::condition::find;
use umbel_api::names::ANNOTATION_RENEW;
use umbel_api::{TargetCluster, TargetClusterStatus, TaskQueue};
use umbel_clusters::credential::of_token;
use umbel_clusters::kubeconfig;
use umbel_testkit::{Signal, Target, eventually, eventually_some, send_signal};

const OURS: &str = "umbel.dev/v1alpha1";
const PLACE: &str = "umbel-system";

/// A target with an account, and tokens of any life for it.
struct Stranger {
    target: Target,
    client: Client,
    issuer: Issuer,
}

impl Stranger {
    async fn start(stage: &Stage) -> Stranger {
        let target = stage.plane.target("c2").await;
        let client = target.client().await;
        let namespace = serde_json::from_value(json!({ "metadata": { "name": PLACE } })).expect("a namespace");
        let namespaces: Api<Namespace> = Api::all(client.clone());
        namespaces
            .create(&PostParams::default(), &namespace)
            .await
            .expect("made");
        let issuer = Issuer::new(&target.kubeconfig.with_file_name("service-account.key"));
        Stranger { target, client, issuer }
    }

    /// A kubeconfig with a token that is `age` old and lasts for `left` more.
    async fn kubeconfig(&self, account: &str, age: i64, left: i64) -> String {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), PLACE);
        let patch = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": account } });
        let made = accounts
            .patch(account, &PatchParams::apply("test"), &Patch::Apply(patch))
            .await
            .expect("made");
        let now = Timestamp::now().as_second();
        let token = self
            .issuer
            .token(PLACE, account, &made.uid().expect("a uid"), now - age, now + left);
        self.with(json!({ "token": token }))
    }

    fn with(&self, user: Value) -> String {
        let text = std::fs::read_to_string(&self.target.kubeconfig).expect("the tool writes a kubeconfig");
        let mut root: Value =
            serde_json::to_value(kube::config::Kubeconfig::from_yaml(&text).expect("it is one")).expect("plain data");
        root["users"][0]["user"] = user;
        root.as_object_mut()
            .expect("a mapping")
            .retain(|_, value| !value.is_null());
        root.to_string()
    }

    /// Lets an account make tokens for itself.
    async fn allow(&self, account: &str) {
        use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
        let rules = json!([{ "apiGroups": [""], "resources": ["serviceaccounts/token"], "resourceNames": [account], "verbs": ["create"] }]);
        let role = serde_json::from_value(json!({ "metadata": { "name": account }, "rules": rules })).expect("a role");
        let roles: Api<Role> = Api::namespaced(self.client.clone(), PLACE);
        roles.create(&PostParams::default(), &role).await.expect("made");
        let binding = json!({ "metadata": { "name": account },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account },
            "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": PLACE }] });
        let bindings: Api<RoleBinding> = Api::namespaced(self.client.clone(), PLACE);
        let binding = serde_json::from_value(binding).expect("a binding");
        bindings.create(&PostParams::default(), &binding).await.expect("made");
    }
}

fn renew(account: &str) -> Value {
    json!({ ANNOTATION_RENEW: json!({ "namespace": PLACE, "serviceAccount": account, "seconds": 3600 }).to_string() })
}

fn secrets(stage: &Stage, namespace: &str) -> Api<Secret> {
    Api::namespaced(stage.client.clone(), namespace)
}

fn clusters(stage: &Stage, namespace: &str) -> Api<TargetCluster> {
    Api::namespaced(stage.client.clone(), namespace)
}

/// A Secret and its TargetCluster.
async fn join(stage: &Stage, name: &str, kubeconfig: &str, annotations: Value) {
    let fields = json!({ "metadata": { "name": name, "annotations": annotations, "labels": { "kept": "yes" } },
        "stringData": { "kubeconfig": kubeconfig, "note": "kept" } });
    stage.apply("v1", "Secret", "secrets", name, fields).await;
    let spec = json!({ "spec": { "kubeconfigSecretRef": { "name": name, "key": "kubeconfig" } } });
    stage.apply(OURS, "TargetCluster", "targetclusters", name, spec).await;
}

async fn status(stage: &Stage, name: &str) -> TargetClusterStatus {
    let found = clusters(stage, NAMESPACE)
        .get(name)
        .await
        .expect("the cluster is there");
    found.status.unwrap_or_default()
}

/// Waits for a condition; its message.
async fn says(stage: &Stage, name: &str, kind: &str, expected: (&str, &str)) -> String {
    eventually_some(LONG, &format!("{name}: {kind} is {expected:?}"), async || {
        let status = status(stage, name).await;
        let found = find(&status.conditions, kind)?;
        ((found.status.as_str(), found.reason.as_str()) == expected).then(|| found.message.clone())
    })
    .await
}

const EXPIRING: &str = "CredentialsExpiring";

fn token_of(secret: &Secret) -> String {
    token_in(&secret.data.as_ref().expect("data")["kubeconfig"].0)
}

/// That of a kubeconfig.
fn token_in(kubeconfig: &[u8]) -> String {
    let root: Value = serde_saphyr_json(kubeconfig);
    root.pointer("/users/0/user/token")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn serde_saphyr_json(bytes: &[u8]) -> Value {
    let text = String::from_utf8(bytes.to_vec()).expect("text");
    serde_json::to_value(kube::config::Kubeconfig::from_yaml(&text).expect("a kubeconfig")).expect("plain data")
}

/// D03, D08: at four fifths of its life, by itself, and what else the Secret holds stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d03_a_token_is_renewed_before_it_ends() {
    let stage = Stage::start().await;
    let stranger = Stranger::start(&stage).await;
    stranger.allow("eu").await;
    // Due within two seconds, and ends in twelve.
    let old = stranger.kubeconfig("eu", 45, 15).await;
    join(&stage, "eu", &old, renew("eu")).await;
    let before = secrets(&stage, NAMESPACE).get("eu").await.expect("there");
    let operator = stage.operator(&[], &[]);
    eventually(LONG, "another token", async || {
        token_of(&secrets(&stage, NAMESPACE).get("eu").await.expect("there")) != token_of(&before)
    })
    .await;
    let after = secrets(&stage, NAMESPACE).get("eu").await.expect("there");
    let (from, until) = of_token(&token_of(&after));
    let (from, until) = (from.expect("a begin"), until.expect("an end"));
    assert_eq!(until.duration_since(from).as_secs(), 3600);
    let data = after.data.as_ref().expect("data");
    assert_eq!(data["note"].0, b"kept");
    assert_eq!(
        (after.labels(), after.annotations()),
        (before.labels(), before.annotations())
    );

    let message = says(&stage, "eu", EXPIRING, ("False", "Renewed")).await;
    eventually(LONG, "the end of the new token is shown", async || {
        let shown = status(&stage, "eu").await.credentials_expire_time;
        shown.is_some_and(|shown| shown.0.as_second() == until.as_second())
    })
    .await;
    assert!(message.contains("is renewed before"), "{message}");
    let client = kubeconfig::parse(&data["kubeconfig"].0).map(|accepted| accepted.client().expect("a client"));
    client
        .expect("accepted")
        .apiserver_version()
        .await
        .expect("the new token is one");
    for token in [token_of(&before), token_of(&after)] {
        assert!(!operator.log().contains(&token), "no token is logged");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_that_fails_says_why_and_is_tried_again() {
    let stage = Stage::start().await;
    let stranger = Stranger::start(&stage).await;
    join(&stage, "eu", &stranger.kubeconfig("eu", 500, 100).await, renew("eu")).await;
    // It accepts connections and says nothing.
    let server = stage.plane.pid("kube-apiserver-c2");
    send_signal(server, Signal::Stop);
    let _operator = stage.operator(&[], &[]);
    let message = says(&stage, "eu", EXPIRING, ("True", "RenewalFailed")).await;
    assert!(message.contains("deadline has elapsed"), "{message}");
    send_signal(server, Signal::Cont);
    // It answers, and says no.
    let message = eventually_some(LONG, "the target's words are shown", async || {
        let status = status(&stage, "eu").await;
        let message = &find(&status.conditions, EXPIRING)?.message;
        message.contains("cannot create resource").then(|| message.clone())
    })
    .await;
    assert!(
        message.contains("after the latest try: it was not renewed: the target: "),
        "{message}"
    );
    eventually(LONG, "an Event tells", async || {
        stage
            .events()
            .await
            .iter()
            .any(|event| event.starts_with("RenewalFailed"))
    })
    .await;
    stranger.allow("eu").await;
    says(&stage, "eu", EXPIRING, ("False", "Renewed")).await;

    // Nobody renews these: no annotation, one that is none, and where it is switched off there is none that counts.
    join(&stage, "soon", &stranger.kubeconfig("eu", 3000, 600).await, json!({})).await;
    let message = says(&stage, "soon", EXPIRING, ("True", "ExpiresSoon")).await;
    assert!(message.contains("nobody renews it"), "{message}");
    join(
        &stage,
        "broken",
        &stranger.kubeconfig("eu", 3000, 600).await,
        json!({ ANNOTATION_RENEW: "yes" }),
    )
    .await;
    says(&stage, "broken", EXPIRING, ("True", "ExpiresSoon")).await;
    join(&stage, "far", &stranger.kubeconfig("eu", 100, 900).await, json!({})).await;
    says(&stage, "far", EXPIRING, ("False", "FarAway")).await;
    join(&stage, "over", &stranger.kubeconfig("eu", 100, -10).await, json!({})).await;
    says(&stage, "over", EXPIRING, ("True", "Expired")).await;
    let endless = stranger.with(json!({ "token": "no-web-token" }));
    join(&stage, "endless", &endless, json!({})).await;
    says(&stage, "endless", EXPIRING, ("False", "NoEnd")).await;
    // The administrator's certificate.
    let text = std::fs::read_to_string(&stranger.target.kubeconfig).expect("there");
    join(&stage, "certificate", &text, json!({})).await;
    eventually(LONG, "the certificate's end is shown", async || {
        let status = status(&stage, "certificate").await;
        let said = find(&status.conditions, EXPIRING).is_some_and(|said| said.message.contains("client certificate"));
        said && status.credentials_expire_time.is_some()
    })
    .await;
    join(&stage, "bad", "{}", json!({})).await;
    says(&stage, "bad", EXPIRING, ("Unknown", "NoCredential")).await;
}

/// What a person writes while the target is asked wins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_persons_change_wins_over_a_renewal() {
    let stage = Stage::start().await;
    let stranger = Stranger::start(&stage).await;
    stranger.allow("eu").await;
    join(&stage, "eu", &stranger.kubeconfig("eu", 500, 100).await, renew("eu")).await;
    let mut operator = stage.operator(&[], &[("UMBEL_FAILPOINT", "before-renewal.eu:stop")]);
    operator.says(LONG, "before-renewal.eu").await;
    let own = stranger.kubeconfig("eu", 10, 3000).await;
    let patch = json!({ "stringData": { "kubeconfig": own } });
    let api = secrets(&stage, NAMESPACE);
    api.patch("eu", &PatchParams::default(), &Patch::Merge(patch))
        .await
        .expect("written");
    let theirs = token_of(&api.get("eu").await.expect("there"));
    operator.signal(Signal::Cont);
    // Its end is shown, so it was looked at after the renewal.
    let until = of_token(&theirs).1.expect("an end");
    eventually(LONG, "what the person wrote is shown", async || {
        let shown = status(&stage, "eu").await.credentials_expire_time;
        shown.is_some_and(|shown| shown.0.as_second() == until.as_second())
    })
    .await;
    assert_eq!(token_of(&api.get("eu").await.expect("there")), theirs);
    assert!(!operator.log().contains("token renewed"), "{}", operator.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labelled_secrets_become_target_clusters_and_go_with_them() {
    let stage = Stage::start().await;
    let stranger = Stranger::start(&stage).await;
    let good = stranger.with(json!({ "token": "t" }));
    let secret = async |name: &str, labels: Value, data: Value| {
        let fields = json!({ "metadata": { "name": name, "labels": labels }, "stringData": data });
        stage.apply("v1", "Secret", "secrets", name, fields).await;
    };
    // A human's comes first.
    let spec = json!({ "spec": { "kubeconfigSecretRef": { "name": "theirs", "key": "k" }, "suspend": true } });
    stage.apply(OURS, "TargetCluster", "targetclusters", "mine", spec).await;
    let labels = json!({ "umbel.dev/cluster": "true", "umbel.dev/cluster-name": "eu", "label.umbel.dev/env": "prod" });
    secret("eu-access", labels, json!({ "kubeconfig": &good })).await;
    secret(
        "us-kubeconfig",
        json!({ "cluster.x-k8s.io/cluster-name": "us" }),
        json!({ "value": &good }),
    )
    .await;
    secret(
        "us-ca",
        json!({ "cluster.x-k8s.io/cluster-name": "us" }),
        json!({ "tls.crt": "c" }),
    )
    .await;
    secret(
        "bad",
        json!({ "umbel.dev/cluster": "true" }),
        json!({ "kubeconfig": good.replace("https", "http") }),
    )
    .await;
    secret(
        "mine",
        json!({ "umbel.dev/cluster": "true" }),
        json!({ "kubeconfig": &good }),
    )
    .await;
    secret("plain", json!({}), json!({ "kubeconfig": &good })).await;
    let operator = stage.operator(&["--discover-namespaces", NAMESPACE], &[]);

    let api = clusters(&stage, NAMESPACE);
    let there = async |name: &str| {
        eventually_some(LONG, &format!("{name} is there"), async || {
            api.get_opt(name).await.expect("answered")
        })
        .await
    };
    let eu = there("eu").await;
    assert_eq!(eu.labels()["env"], "prod");
    assert_eq!(eu.spec.kubeconfig_secret_ref.name, "eu-access");
    assert_eq!(eu.owner_references()[0].name, "eu-access");
    let us = there("us").await;
    assert_eq!(
        (
            us.spec.kubeconfig_secret_ref.name.as_str(),
            us.spec.kubeconfig_secret_ref.key.as_str()
        ),
        ("us-kubeconfig", "value")
    );
    says(&stage, "us", "KubeconfigAccepted", ("True", "Accepted")).await;
    there("bad").await;
    says(&stage, "bad", "KubeconfigAccepted", ("False", "KubeconfigRefused")).await;
    eventually(LONG, "it is told that a name was taken", async || {
        let events = stage.events().await;
        events
            .iter()
            .any(|event| event.starts_with("NotDiscovered") && event.contains("TargetCluster mine exists"))
    })
    .await;
    let mine = api.get("mine").await.expect("there");
    assert!(
        mine.spec.suspend && mine.spec.kubeconfig_secret_ref.name == "theirs" && mine.owner_references().is_empty()
    );
    assert_eq!(api.get_opt("plain").await.expect("answered"), None);

    // A person's own fields stay when labels follow.
    let suspend = json!({ "spec": { "suspend": true } });
    api.patch("eu", &PatchParams::default(), &Patch::Merge(suspend))
        .await
        .expect("written");
    let labels = json!({ "metadata": { "labels": { "label.umbel.dev/env": "dev", "label.umbel.dev/tier": "gold" } } });
    let secrets = secrets(&stage, NAMESPACE);
    secrets
        .patch("eu-access", &PatchParams::default(), &Patch::Merge(labels))
        .await
        .expect("written");
    eventually(LONG, "labels follow", async || {
        let eu = api.get("eu").await.expect("there");
        eu.labels().get("env").is_some_and(|env| env == "dev") && eu.labels().contains_key("tier") && eu.spec.suspend
    })
    .await;
    // The label goes: so does the cluster. And with its Secret. A human's stays.
    let none = json!({ "metadata": { "labels": { "umbel.dev/cluster": null } } });
    secrets
        .patch("eu-access", &PatchParams::default(), &Patch::Merge(none))
        .await
        .expect("written");
    secrets
        .delete("us-kubeconfig", &DeleteParams::default())
        .await
        .expect("deleted");
    secrets.delete("mine", &DeleteParams::default()).await.expect("deleted");
    for name in ["eu", "us"] {
        eventually(LONG, &format!("{name} is gone"), async || {
            api.get_opt(name).await.expect("answered").is_none()
        })
        .await;
    }
    assert!(api.get_opt("mine").await.expect("answered").is_some());
    assert!(!operator.log().contains("panicked"), "{}", operator.log());
}

/// A kubeconfig of a ServiceAccount at home.
async fn account_kubeconfig(stage: &Stage, name: &str) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let token = eventually_some(LONG, "the account has a token", async || {
        let request = TokenRequest::default();
        let answer = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await;
        answer.ok()?.status?.token
    })
    .await;
    let text = std::fs::read_to_string(stage.plane.kubeconfig()).expect("there");
    let file = kube::config::Kubeconfig::from_yaml(&text).expect("a kubeconfig");
    let mut root = serde_json::to_value(file).expect("plain data");
    root["users"][0]["user"] = json!({ "token": token });
    root.to_string()
}

/// A client with the rights of a ServiceAccount at home.
async fn as_account(stage: &Stage, name: &str) -> Client {
    let file = kube::config::Kubeconfig::from_yaml(&account_kubeconfig(stage, name).await).expect("a kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await;
    Client::try_from(config.expect("complete")).expect("a client")
}

/// D04: a pool reaches the Secrets of its clusters, by name, as long as they are its clusters.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d04_a_pool_reads_the_secrets_of_its_clusters_and_no_other() {
    let stage = Stage::start().await;
    for (name, env) in [("eu", "prod"), ("us", "prod"), ("lab", "dev")] {
        stage
            .apply(
                "v1",
                "Secret",
                "secrets",
                name,
                json!({ "stringData": { "kubeconfig": "k" } }),
            )
            .await;
        let fields = json!({ "metadata": { "name": name, "labels": { "env": env } },
            "spec": { "kubeconfigSecretRef": { "name": name, "key": "kubeconfig" } } });
        stage.apply(OURS, "TargetCluster", "targetclusters", name, fields).await;
    }
    stage.queue("sync").await;
    for (pool, env) in [("sync", "prod"), ("lab", "dev")] {
        let spec = json!({ "queues": [{ "name": "sync" }], "scaling": { "maxReplicas": 0 },
            "clusterAccess": { "selector": { "matchLabels": { "env": env } } } });
        stage.pool_of(pool, spec).await;
    }
    let _operator = stage.operator(&[], &[]);
    let api: Api<Secret> = Api::namespaced(as_account(&stage, "umbel-pool-sync").await, NAMESPACE);
    let code = async |name: &str| match api.get(name).await {
        Ok(_) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => panic!("{error}"),
    };
    for name in ["eu", "us"] {
        eventually(LONG, &format!("{name} may be read"), async || code(name).await == 200).await;
    }
    // Another pool's, the broker's, one that is not there: the same answer. No list, nothing written.
    for name in ["lab", "redis", "absent"] {
        assert_eq!(code(name).await, 403, "{name}");
    }
    let refused =
        |result: Result<(), kube::Error>| matches!(result, Err(kube::Error::Api(status)) if status.code == 403);
    assert!(refused(api.list(&kube::api::ListParams::default()).await.map(drop)));
    let patch = Patch::Merge(json!({ "stringData": { "kubeconfig": "mine" } }));
    assert!(refused(
        api.patch("eu", &PatchParams::default(), &patch).await.map(drop)
    ));
    let elsewhere: Api<Secret> = Api::namespaced(api.clone().into_client(), "kube-system");
    assert!(refused(elsewhere.get("eu").await.map(drop)));

    // One leaves the pool by its label, the other is deleted.
    let labels = json!({ "metadata": { "labels": { "env": "dev" } } });
    let all = clusters(&stage, NAMESPACE);
    all.patch("us", &PatchParams::default(), &Patch::Merge(labels))
        .await
        .expect("written");
    eventually(LONG, "us is the pool's no more", async || code("us").await == 403).await;
    assert_eq!(code("eu").await, 200);
    all.delete("eu", &DeleteParams::default()).await.expect("deleted");
    eventually(LONG, "eu is the pool's no more", async || code("eu").await == 403).await;
}

/// A04: every reference is a name in its own namespace; what lies in another one is told apart from nothing by nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a04_no_reference_crosses_namespaces() {
    let stage = Stage::start().await;
    let namespace = serde_json::from_value(json!({ "metadata": { "name": "other" } })).expect("a namespace");
    let namespaces: Api<Namespace> = Api::all(stage.client.clone());
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .expect("made");
    // `kept-apart` exists in the other namespace, `never-made` nowhere.
    let secret = serde_json::from_value(json!({ "metadata": { "name": "kept-apart" },
        "stringData": { "url": stage.redis.url(), "kubeconfig": "k" } }));
    let elsewhere = secrets(&stage, "other");
    elsewhere
        .create(&PostParams::default(), &secret.expect("a secret"))
        .await
        .expect("made");
    let config: k8s_openapi::api::core::v1::ConfigMap =
        serde_json::from_value(json!({ "metadata": { "name": "kept-apart" }, "data": { "key": "[]" } }))
            .expect("a map");
    let maps: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::namespaced(stage.client.clone(), "other");
    maps.create(&PostParams::default(), &config).await.expect("made");

    // By the definitions: each reference that there is, so that a new one is not forgotten here.
    let mut found = Vec::new();
    for (_, definition) in umbel_api::definitions() {
        let value = serde_json::to_value(&definition.spec.versions[0].schema).expect("plain data");
        let spec = &value["openAPIV3Schema"]["properties"]["spec"];
        references(spec, &definition.spec.names.kind, &mut found);
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    let words: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
    assert!(words.len() >= 9, "{words:?}");
    for (path, schema) in &found {
        let fields = schema["properties"].as_object().expect("properties");
        assert!(!fields.contains_key("namespace"), "{path} names a namespace");
        let pattern = fields["name"]["pattern"].as_str();
        assert_eq!(
            pattern,
            Some("^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"),
            "{path}: a name has no slash"
        );
    }
    for name in ["other/kept-apart", "../other/kept-apart", "other%2fkept-apart"] {
        let spec = json!({ "spec": { "kubeconfigSecretRef": { "name": name, "key": "kubeconfig" } } });
        let refused = stage
            .try_apply(OURS, "TargetCluster", "targetclusters", "c", spec)
            .await;
        assert!(
            matches!(&refused, Err(kube::Error::Api(status)) if status.code == 422),
            "{name}: {refused:?}"
        );
    }

    let _operator = stage.operator(&[], &[]);
    stage.queue("own").await;
    let said = async |kind: &str, name: &str| -> String {
        let words = match kind {
            "TargetCluster" => clusters(&stage, NAMESPACE).get(name).await.ok().and_then(|found| {
                let status = found.status?;
                Some(find(&status.conditions, "KubeconfigAccepted")?.clone())
            }),
            "TaskQueue" => {
                let queues: Api<TaskQueue> = Api::namespaced(stage.client.clone(), NAMESPACE);
                queues.get(name).await.ok().and_then(|found| {
                    let status = found.status?;
                    let found = find(&status.conditions, "BrokerReachable").filter(|found| found.status == "False");
                    found
                        .or(find(&status.conditions, "Ready").filter(|found| found.status == "False"))
                        .cloned()
                })
            }
            other => panic!("{other}"),
        };
        words
            .map(|found| format!("{} {} {}", found.status, found.reason, found.message))
            .unwrap_or_default()
    };
    let reference = |name: &str, key: &str| json!({ "name": name, "key": key });
    let redis = |part: Value| {
        let mut redis = json!({ "urlSecretRef": reference("redis", "url") });
        redis
            .as_object_mut()
            .expect("an object")
            .extend(part.as_object().expect("an object").clone());
        json!({ "spec": { "broker": { "redis": redis } } })
    };
    // Each with the Secret that lies elsewhere, and with one that lies nowhere.
    type Spec<'a> = Box<dyn Fn(&str) -> Value + 'a>;
    let cases: Vec<(&str, &str, &str, Spec<'_>)> = vec![
        (
            "TargetCluster",
            "targetclusters",
            "kubeconfig",
            Box::new(|name| json!({ "spec": { "kubeconfigSecretRef": reference(name, "kubeconfig") } })),
        ),
        (
            "TaskQueue",
            "taskqueues",
            "url",
            Box::new(|name| redis(json!({ "urlSecretRef": reference(name, "url") }))),
        ),
        (
            "TaskQueue",
            "taskqueues",
            "ca",
            Box::new(|name| redis(json!({ "tls": { "caSecretRef": reference(name, "url") } }))),
        ),
        (
            "TaskQueue",
            "taskqueues",
            "cert",
            Box::new(|name| redis(json!({ "tls": { "clientCertSecretRef": { "name": name } } }))),
        ),
    ];
    for (kind, plural, field, spec) in cases {
        let mut words = Vec::new();
        for name in ["kept-apart", "never-made"] {
            let object = format!("{field}-{name}");
            stage.apply(OURS, kind, plural, &object, spec(name)).await;
            let word = eventually_some(
                Duration::from_secs(30),
                &format!("{kind} {object} says something"),
                async || {
                    let word = said(kind, &object).await;
                    (word.starts_with("False") && word.contains(name)).then_some(word)
                },
            )
            .await;
            words.push(word.replace(&object, "OBJECT").replace(name, "NAME"));
        }
        assert_eq!(
            words[0], words[1],
            "{kind}.{field} tells what lies in another namespace"
        );
    }
    // Arguments and queues of schedules.
    let queue = serde_json::from_value(json!({ "metadata": { "name": "kept-apart" }, "spec": {
        "broker": { "redis": { "urlSecretRef": reference("kept-apart", "url") } } } }));
    let queues: Api<TaskQueue> = Api::namespaced(stage.client.clone(), "other");
    let params = PostParams::default();
    queues.create(&params, &queue.expect("a queue")).await.expect("made");
    let schedules: Api<umbel_api::PeriodicTask> = Api::namespaced(stage.client.clone(), NAMESPACE);
    for field in ["arguments", "queue"] {
        let mut words = Vec::new();
        for name in ["kept-apart", "never-made"] {
            let template = match field {
                "queue" => json!({ "task": "umbel.echo", "queueRef": { "name": name } }),
                _ => json!({ "task": "umbel.echo", "queueRef": { "name": "own" },
                    "argsFrom": [{ "name": "a", "configMapKeyRef": reference(name, "key") }] }),
            };
            let object = format!("{field}-{name}");
            let spec = json!({ "spec": { "schedule": { "every": "1s" }, "taskTemplate": template } });
            stage.apply(OURS, "PeriodicTask", "periodictasks", &object, spec).await;
            let word = eventually_some(LONG, &format!("schedule {object} says something"), async || {
                let status = schedules.get(&object).await.ok()?.status?;
                let mut all = status.conditions.iter();
                let found = all.find(|found| found.message.replace(&object, "").contains(name))?;
                Some(format!("{} {} {}", found.type_, found.reason, found.message))
            })
            .await;
            words.push(word.replace(&object, "OBJECT").replace(name, "NAME"));
        }
        assert_eq!(words[0], words[1], "PeriodicTask {field}");
    }
}

/// Schemas of objects that name another object: a `…Ref` with a `name`.
fn references(schema: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    if let Some(properties) = schema["properties"].as_object() {
        for (name, inner) in properties {
            let path = format!("{path}.{name}");
            // Pods' templates are Kubernetes' own.
            if name == "template" {
                continue;
            }
            if name.ends_with("Ref") && inner["properties"]["name"].is_object() {
                found.push((path.clone(), inner.clone()));
            }
            references(inner, &path, found);
        }
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            references(&schema[inner], path, found);
        }
    }
}
