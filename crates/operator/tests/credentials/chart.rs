//! The operator with the rights that the chart gives, and no other.

use std::path::Path;

use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use umbel_testkit::{Process, TempDir, eventually, eventually_some};

use crate::common::{LONG, NAMESPACE, Stage};
use crate::{EXPIRING, Stranger, account_kubeconfig, clusters, join, renew, says, secrets, token_in, token_of};

/// Who the operator is by the chart.
const USER: &str = "system:serviceaccount:default:umbel";

/// Installs what the chart, with these values, makes of accounts and rights; the operator's kubeconfig.
async fn install(stage: &Stage, folder: &TempDir, values: &[&str]) -> String {
    let program = |name: &str| std::env::var(name).expect("hack/env.sh names it");
    let chart = umbel_testkit::repository().join("charts/umbel");
    let mut flags = vec![
        "template",
        "umbel",
        chart.to_str().expect("text"),
        "--namespace",
        NAMESPACE,
    ];
    for template in ["rbac", "serviceaccounts"] {
        flags.extend([
            "--show-only",
            if template == "rbac" {
                "templates/rbac.yaml"
            } else {
                "templates/serviceaccounts.yaml"
            },
        ]);
    }
    flags.extend(values.iter().flat_map(|value| ["--set", value]));
    let rendered = std::process::Command::new(program("HELM"))
        .args(&flags)
        .output()
        .expect("helm runs");
    assert!(
        rendered.status.success(),
        "{}",
        String::from_utf8_lossy(&rendered.stderr)
    );
    let file = folder.path().join("rendered.yaml");
    std::fs::write(&file, rendered.stdout).expect("written");
    let kubeconfig = stage.plane.kubeconfig();
    let flags = [
        "--kubeconfig",
        kubeconfig.to_str().expect("text"),
        "apply",
        "--server-side",
        "-f",
        file.to_str().expect("text"),
    ];
    let mut kubectl = Process::start(Path::new(&program("KUBECTL")), flags, &[]);
    assert!(kubectl.wait(LONG).await.success(), "{}", kubectl.log());

    let config = folder.path().join("operator.kubeconfig");
    std::fs::write(&config, account_kubeconfig(stage, "umbel").await).expect("written");
    config.to_str().expect("text").to_owned()
}

/// Every right that is asked for here, as the API server sees it.
async fn may(client: &Client, namespace: &str, verb: &str, resource: &str) -> bool {
    let (group, resource) = resource.split_once('/').unwrap_or(("", resource));
    let review = json!({ "spec": { "user": USER, "groups": ["system:serviceaccounts", "system:authenticated"],
        "resourceAttributes": { "namespace": namespace, "verb": verb, "group": group, "resource": resource } } });
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let review = serde_json::from_value(review).expect("a review");
    let answer = reviews.create(&PostParams::default(), &review).await.expect("answered");
    answer.status.is_some_and(|status| status.allowed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_and_renewal_need_no_more_than_the_chart_gives() {
    let stage = Stage::start().await;
    let stranger = Stranger::start(&stage).await;
    stranger.allow("eu").await;
    let other = serde_json::from_value(json!({ "metadata": { "name": "other" } })).expect("a namespace");
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(stage.client.clone());
    namespaces.create(&PostParams::default(), &other).await.expect("made");
    let folder = TempDir::new("chart");
    let values = [
        "watchNamespaces={default,other}",
        "clusterDiscovery.namespaces={default}",
        "tokenRenewal.enabled=true",
    ];
    let config = install(&stage, &folder, &values).await;
    eventually(LONG, "the rights are in force", async || {
        may(&stage.client, NAMESPACE, "list", "secrets").await
            && may(&stage.client, NAMESPACE, "update", "secrets").await
    })
    .await;
    // The list is that of one namespace. (What the operator gives to pools it holds itself: `get` and `watch`, by name.)
    for (namespace, verb) in [
        ("other", "list"),
        ("kube-system", "get"),
        ("kube-system", "list"),
        ("kube-system", "watch"),
    ] {
        assert!(
            !may(&stage.client, namespace, verb, "secrets").await,
            "{verb} secrets in {namespace}"
        );
    }
    for verb in ["create", "delete", "patch"] {
        assert!(!may(&stage.client, NAMESPACE, verb, "secrets").await, "{verb} secrets");
    }

    let good = stranger.with(json!({ "token": "t" }));
    let secret = async |name: &str, labels: Value, data: Value| {
        let fields = json!({ "metadata": { "name": name, "labels": labels }, "stringData": data });
        stage.apply("v1", "Secret", "secrets", name, fields).await;
    };
    secret(
        "eu-access",
        json!({ "umbel.dev/cluster": "true", "umbel.dev/cluster-name": "labelled" }),
        json!({ "kubeconfig": &good }),
    )
    .await;
    secret(
        "us-kubeconfig",
        json!({ "cluster.x-k8s.io/cluster-name": "us" }),
        json!({ "value": &good }),
    )
    .await;
    // Whose name is taken, which an Event says.
    let spec = json!({ "spec": { "kubeconfigSecretRef": { "name": "theirs", "key": "k" } } });
    stage
        .apply("umbel.dev/v1alpha1", "TargetCluster", "targetclusters", "mine", spec)
        .await;
    secret(
        "mine",
        json!({ "umbel.dev/cluster": "true" }),
        json!({ "kubeconfig": &good }),
    )
    .await;
    // Due at once.
    join(&stage, "eu", &stranger.kubeconfig("eu", 500, 100).await, renew("eu")).await;
    let before = secrets(&stage, NAMESPACE).get("eu").await.expect("there");

    let flags = [
        "--discover-namespaces",
        NAMESPACE,
        "--watch-namespaces",
        "default,other",
    ];
    let operator = stage.operator(&flags, &[("KUBECONFIG", &config)]);
    let api = clusters(&stage, NAMESPACE);
    for (name, key) in [("labelled", "kubeconfig"), ("us", "value")] {
        let found = eventually_some(LONG, &format!("{name} is there"), async || {
            api.get_opt(name).await.expect("answered")
        })
        .await;
        assert_eq!(found.spec.kubeconfig_secret_ref.key, key);
        says(&stage, name, "KubeconfigAccepted", ("True", "Accepted")).await;
    }
    eventually(LONG, "it is told that a name was taken", async || {
        stage
            .events()
            .await
            .iter()
            .any(|event| event.starts_with("NotDiscovered"))
    })
    .await;
    eventually(LONG, "another token", async || {
        token_of(&secrets(&stage, NAMESPACE).get("eu").await.expect("there")) != token_of(&before)
    })
    .await;
    says(&stage, "eu", EXPIRING, ("False", "Renewed")).await;

    // Labels follow, and what goes is seen.
    let secrets: Api<Secret> = secrets(&stage, NAMESPACE);
    let labels = json!({ "metadata": { "labels": { "label.umbel.dev/env": "dev" } } });
    secrets
        .patch("us-kubeconfig", &PatchParams::default(), &Patch::Merge(labels))
        .await
        .expect("written");
    eventually(LONG, "labels follow", async || {
        api.get("us")
            .await
            .expect("there")
            .labels()
            .get("env")
            .is_some_and(|env| env == "dev")
    })
    .await;
    let none = json!({ "metadata": { "labels": { "umbel.dev/cluster": null } } });
    secrets
        .patch("eu-access", &PatchParams::default(), &Patch::Merge(none))
        .await
        .expect("written");
    secrets
        .delete("us-kubeconfig", &DeleteParams::default())
        .await
        .expect("deleted");
    for name in ["labelled", "us"] {
        eventually(LONG, &format!("{name} is gone"), async || {
            api.get_opt(name).await.expect("answered").is_none()
        })
        .await;
    }
    let log = operator.log();
    let refused = log.lines().find(|line| line.to_lowercase().contains("forbidden"));
    assert_eq!(refused, None, "a right is missing");
}

/// Two replicas: the leader renews. When it goes, the other one does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_operators_the_leader_alone_renews_and_after_it_the_other() {
    let stage = Stage::start().await;
    let stranger = Stranger::start(&stage).await;
    stranger.allow("eu").await;
    stranger.allow("us").await;
    let mut first = stage.operator(&["--id", "first"], &[]);
    first.says(LONG, "leading").await;
    let second = stage.operator(&["--id", "second"], &[]);
    eventually(LONG, "the second runs", async || !second.log().is_empty()).await;
    let renewed = |operator: &Process| operator.log().matches("token renewed").count();
    let changes = async |name: &str, from: &str| {
        eventually(LONG, &format!("another token of {name}"), async || {
            token_of(&secrets(&stage, NAMESPACE).get(name).await.expect("there")) != from
        })
        .await;
    };
    let eu = stranger.kubeconfig("eu", 500, 100).await;
    join(&stage, "eu", &eu, renew("eu")).await;
    let before = token_in(eu.as_bytes());
    changes("eu", &before).await;
    eventually(LONG, "it is told", async || renewed(&first) == 1).await;
    assert_eq!(renewed(&second), 0, "{}", second.log());

    // It hands over as it ends.
    first.signal(umbel_testkit::Signal::Term);
    assert!(first.wait(LONG).await.success());
    let kept = token_of(&secrets(&stage, NAMESPACE).get("eu").await.expect("there"));
    let us = stranger.kubeconfig("us", 500, 100).await;
    join(&stage, "us", &us, renew("us")).await;
    let before = token_in(us.as_bytes());
    changes("us", &before).await;
    eventually(LONG, "it is told", async || renewed(&second) == 1).await;
    assert_eq!(renewed(&first), 1);
    // A token that is not due is not made again by the next leader.
    assert_eq!(
        token_of(&secrets(&stage, NAMESPACE).get("eu").await.expect("there")),
        kept
    );
}
