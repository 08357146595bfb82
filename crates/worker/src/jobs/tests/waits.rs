//! Wait: one watch for many, and what ends a wait.

use futures::future::join_all;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::DeleteParams;
use umbel_testkit::eventually;

use super::super::rules::ObjectRules as Rules;
use super::super::wait::Wait;
use super::*;

const SOON: Duration = Duration::from_secs(30);

fn waiter(registry: &Registry, namespace: &str) -> Wait {
    let kinds = ["ConfigMap", "PodTemplate", "Secret", "apps/Deployment"];
    let rules = Rules {
        namespaces: vec![namespace.into()],
        kinds: kinds.map(str::to_owned).to_vec(),
        cluster_kinds: vec!["Namespace".into()],
        ..Rules::default()
    };
    Wait::new(registry.clone(), rules)
}

async fn wait(job: &Wait, kwargs: Value) -> Outcome {
    let (ctx, _leases, _) = delivery(1, 1, &[("umbel_cluster", "c2")]);
    job.run(&ctx, arguments(&kwargs)).await
}

fn of(kind: &str, namespace: &str, name: &str, goal: &str, timeout: f64) -> Value {
    let version = if kind == "Deployment" { "apps/v1" } else { "v1" };
    json!({"apiVersion": version, "kind": kind, "namespace": namespace, "name": name, "for": goal, "timeout": timeout})
}

async fn watches(target: &kube::Client, resource: &str) -> u64 {
    let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
    let text = target.request_text(request).await.unwrap();
    let is_it = |line: &&str| {
        line.starts_with("apiserver_longrunning_requests{")
            && line.contains("verb=\"WATCH\"")
            && line.contains(&format!("resource=\"{resource}\""))
            && line.contains("scope=\"namespace\"")
    };
    let counts = text
        .lines()
        .filter(is_it)
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap());
    counts.sum()
}

#[tokio::test]
async fn a_hundred_waits_share_one_watch_and_hold_no_turn() {
    let registry = registry("waits-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "waits").await;
    let templates = Api::<k8s_openapi::api::core::v1::PodTemplate>::namespaced(target.clone(), "waits");
    let template = |name: &str| {
        serde_json::from_value(
            json!({"metadata": {"name": name}, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}),
        )
        .unwrap()
    };
    for n in 0..50 {
        templates
            .create(&PostParams::default(), &template(&format!("t{n}")))
            .await
            .unwrap();
    }
    let job = waiter(&registry, "waits");
    let before = asked(&target, "podtemplates").await;
    // Fifty that are there are to go, fifty that are not are to come.
    let all = join_all((0..100).map(|n| {
        let goal = if n < 50 {
            "deleted"
        } else {
            "jsonpath={.metadata.labels.ready}=yes"
        };
        wait(&job, of("PodTemplate", "waits", &format!("t{n}"), goal, 60.0))
    }));
    let meddle = async {
        eventually(SOON, "they watch", async || watches(&target, "podtemplates").await == 1).await;
        assert_eq!(job.counts(), (1, 100));
        // More than the turns of a worker at a cluster wait, and there is a turn for another job.
        registry.target("c2").await.unwrap();
        for n in 0..50 {
            templates
                .delete(&format!("t{n}"), &DeleteParams::default())
                .await
                .unwrap();
            let mut ready: k8s_openapi::api::core::v1::PodTemplate = template(&format!("t{}", n + 50));
            templates.create(&PostParams::default(), &ready).await.unwrap();
            ready.metadata.labels = Some(BTreeMap::from([("ready".into(), "yes".into())]));
            let name = format!("t{}", n + 50);
            templates
                .patch(&name, &PatchParams::default(), &Patch::Merge(&ready))
                .await
                .unwrap();
        }
    };
    let (ended, ()) = tokio::join!(all, meddle);
    for one in ended {
        assert!(done(one)["waited"].as_f64().unwrap() < 60.0);
    }
    eventually(SOON, "nothing is watched any more", async || {
        job.counts() == (0, 0) && watches(&target, "podtemplates").await == 0
    })
    .await;
    let asked = asked_since(&target, "podtemplates", &before).await;
    // One list at the beginning, and one for those who came meanwhile; a watch lasts 15 s, so there may be several.
    assert!(
        asked["LIST"] <= 3 && asked["WATCH"] <= 4 && asked.get("GET").is_none_or(|gets| *gets <= 6),
        "{asked:?}"
    );
}

#[tokio::test]
async fn a_rollout_is_waited_for_and_a_wait_that_runs_out_says_what_is_missing() {
    let registry = registry("rollout-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "rollout").await;
    let deployments = Api::<Deployment>::namespaced(target.clone(), "rollout");
    let web = json!({"metadata": {"name": "web"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": "web"}]}}}});
    deployments
        .create(&PostParams::default(), &serde_json::from_value(web).unwrap())
        .await
        .unwrap();
    let job = waiter(&registry, "rollout");
    let status = async |status: Value| {
        let patch = json!({"status": status});
        deployments
            .patch_status("web", &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .unwrap();
    };
    status(json!({"observedGeneration": 1, "updatedReplicas": 2, "replicas": 2, "readyReplicas": 2, "availableReplicas": 1})).await;
    let why = failed(wait(&job, of("Deployment", "rollout", "web", "rollout", 1.0)).await);
    assert_eq!(
        why.message,
        "cluster `c2`: Deployment rollout/web: not there after 1 s; still waiting for rollout: 1 of 2 updated pods available"
    );
    assert!(why.exc_type == "TimeoutError" && !why.is_retryable);
    let complete = async {
        eventually(SOON, "it waits", async || job.counts() == (1, 1)).await;
        status(json!({"availableReplicas": 2})).await;
    };
    let (ended, ()) = tokio::join!(
        wait(&job, of("Deployment", "rollout", "web", "rollout", 60.0)),
        complete
    );
    assert_eq!(done(ended)["object"], "Deployment rollout/web");
    let stuck = json!({"conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "x"}]});
    status(stuck).await;
    refused(
        wait(&job, of("Deployment", "rollout", "web", "rollout", 60.0)).await,
        "RuntimeError",
        "the rollout is stuck (ProgressDeadlineExceeded: x)",
    );

    let why = failed(wait(&job, of("ConfigMap", "rollout", "none", "jsonpath=.data.a=1", 1.0)).await);
    assert!(why.message.ends_with("still waiting for it does not exist"), "{why}");
    done(wait(&job, of("ConfigMap", "rollout", "none", "deleted", 30.0)).await);
    done(
        wait(
            &job,
            json!({"apiVersion": "v1", "kind": "Namespace", "name": "rollout", "for": "jsonpath=.status.phase=Active"}),
        )
        .await,
    );
    // A Secret's values are neither compared nor told.
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "canary"}});
    let secrets = Api::<Secret>::namespaced(target, "rollout");
    secrets
        .create(&PostParams::default(), &serde_json::from_value(secret).unwrap())
        .await
        .unwrap();
    let why = failed(wait(&job, of("Secret", "rollout", "s", "jsonpath=.data.password=x", 1.0)).await);
    assert!(why.message.ends_with(".data.password = x: it is null"), "{why}");

    for (kwargs, exc_type, words) in [
        (
            of("Pod", "rollout", "x", "rollout", 1.0),
            "PermissionError",
            "(spec.jobs.wait.kinds: ConfigMap, PodTemplate, Secret, apps/Deployment)",
        ),
        (
            of("ConfigMap", "kube-system", "x", "deleted", 1.0),
            "PermissionError",
            "(spec.jobs.wait.namespaces: rollout)",
        ),
        (
            of("ConfigMap", "rollout", "x", "done", 1.0),
            "ValueError",
            "for: rollout, deleted",
        ),
        (
            of("ConfigMap", "rollout", "x", "deleted", 0.0),
            "ValueError",
            "timeout: more than 0",
        ),
        (
            of("ConfigMap", "rollout", "../x", "deleted", 1.0),
            "ValueError",
            "a name that is no name",
        ),
    ] {
        refused(wait(&job, kwargs).await, exc_type, words);
    }
}

#[tokio::test]
async fn a_wait_survives_the_ends_of_its_watch_and_versions_that_are_gone() {
    let registry = registry("ends-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "ends").await;
    let maps = Api::<ConfigMap>::namespaced(target.clone(), "ends");
    let map = |v: &str| json!({"metadata": {"name": "m"}, "data": {"v": v}});
    maps.create(&PostParams::default(), &serde_json::from_value(map("1")).unwrap())
        .await
        .unwrap();
    let job = waiter(&registry, "ends");
    let before = asked(&target, "configmaps").await;
    let gone = job.begin_too_late("c2", "ends", "m");
    let long = wait(&job, of("ConfigMap", "ends", "other", "jsonpath=.data.v=2", 100.0));
    let meddle = async {
        // The watch is the third: one that was refused, two that ended in time.
        eventually(Duration::from_secs(60), "watches end and go on", async || {
            asked_since(&target, "configmaps", &before)
                .await
                .get("WATCH")
                .is_some_and(|count| *count >= 3)
        })
        .await;
        let mut other = map("2");
        other["metadata"]["name"] = json!("other");
        maps.create(&PostParams::default(), &serde_json::from_value(other).unwrap())
            .await
            .unwrap();
        maps.patch("m", &PatchParams::default(), &Patch::Merge(&map("2")))
            .await
            .unwrap();
    };
    let gone = tokio::time::timeout(Duration::from_secs(100), gone);
    let (gone, ended, ()) = tokio::join!(gone, long, meddle);
    assert!(gone.expect("it began anew").unwrap().is_ok());
    done(ended);
}
