//! Pools that cannot be as they are wanted: each gives one condition that names the cause, and disturbs nobody else.

mod common;

use common::{Kubelet, LONG, Stage};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use umbel_testkit::{Redis, eventually};

async fn shows(stage: &Stage, pool: &str, reason: &str, part: &str) {
    eventually(LONG, &format!("{pool} says {reason}: …{part}…"), async || {
        let found = stage.condition(pool, "Ready").await;
        found.is_some_and(|(status, why, message)| status == "False" && why == reason && message.contains(part))
    })
    .await;
}

async fn pool(stage: &Stage, name: &str, spec: serde_json::Value) -> Result<(), kube::Error> {
    stage
        .try_apply(
            "umbel.dev/v1alpha1",
            "WorkerPool",
            "workerpools",
            name,
            json!({ "spec": spec }),
        )
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k17_k26_each_fault_is_named_and_nobody_else_is_disturbed() {
    let stage = Stage::start().await;
    let _kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let _operator = stage.operator(&[], &[]);
    let other = Redis::start().await;
    stage.secret("other", &other.url()).await;
    for queue in ["good", "bad"] {
        stage.queue(queue).await;
    }
    let elsewhere = json!({ "broker": { "redis": { "urlSecretRef": { "name": "other", "key": "url" } } }, "lease": { "duration": "10s", "renewEvery": "3s" } });
    stage
        .apply(
            "umbel.dev/v1alpha1",
            "TaskQueue",
            "taskqueues",
            "far",
            json!({ "spec": elsewhere }),
        )
        .await;
    let homeless = json!({ "broker": { "redis": { "urlSecretRef": { "name": "nobody", "key": "url" } } } });
    stage
        .apply(
            "umbel.dev/v1alpha1",
            "TaskQueue",
            "taskqueues",
            "homeless",
            json!({ "spec": homeless }),
        )
        .await;
    let manual = json!({ "mode": "Manual" });
    pool(
        &stage,
        "good",
        json!({ "queues": [{ "name": "good" }], "scaling": manual }),
    )
    .await
    .unwrap();

    let inverted = json!({ "queues": [{ "name": "good" }], "scaling": { "minReplicas": 3, "maxReplicas": 1 } });
    let refused = pool(&stage, "inverted", inverted)
        .await
        .expect_err("the API server refuses it");
    assert!(
        refused.to_string().contains("minReplicas must not be larger"),
        "{refused}"
    );

    let one = |more: serde_json::Value| {
        let mut spec = json!({ "queues": [{ "name": "good" }] });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let template = json!({ "spec": { "containers": [{ "name": "worker", "image": "x" }] } });
    let refused = [
        (
            json!({ "rollout": { "maxSurge": 0 } }),
            "maxSurge is a number of pods from 1 on",
        ),
        (
            json!({ "rollout": { "maxSurge": "0%" } }),
            "maxSurge is a number of pods from 1 on",
        ),
        (
            json!({ "rollout": { "maxSurge": "201%" } }),
            "maxSurge is a number of pods from 1 on",
        ),
        (
            json!({ "rollout": { "drainTimeout": "721h" } }),
            "drainTimeout lasts at most 720h",
        ),
        (json!({ "rollout": { "type": "Recreate" } }), "Unsupported value"),
        (json!({ "rollout": { "keepDraining": 21 } }), "keepDraining"),
        (
            json!({ "podDisruptionBudget": {} }),
            "give minAvailable or maxUnavailable",
        ),
        (
            json!({ "podDisruptionBudget": { "minAvailable": 1, "maxUnavailable": 1 } }),
            "give minAvailable or maxUnavailable",
        ),
        (
            json!({ "podDisruptionBudget": { "minAvailable": "101%" } }),
            "minAvailable is a number of pods, or from 0% to 100%",
        ),
        (
            json!({ "podDisruptionBudget": { "minAvailable": 1 }, "protection": { "onEviction": ["DisruptionBudget"] } }),
            "a pod has one budget",
        ),
        (json!({ "runtime": "Celery" }), "runtime Celery needs a template"),
        (
            json!({ "runtime": "Celery", "template": template, "recycle": { "maxTasks": 5 } }),
            "clusterAccess, jobs and recycle are for runtime Umbel",
        ),
    ];
    for (more, words) in refused {
        let refusal = pool(&stage, "odd", one(more.clone()))
            .await
            .expect_err("the API server refuses it");
        assert!(refusal.to_string().contains(words), "{more}: {refusal}");
    }
    pool(&stage, "py", one(json!({ "suspend": true }))).await.unwrap();
    let changed = one(json!({ "suspend": true, "runtime": "Celery", "template": template }));
    let refusal = pool(&stage, "py", changed)
        .await
        .expect_err("the API server refuses it");
    assert!(refusal.to_string().contains("a pool keeps its runtime"), "{refusal}");

    pool(&stage, "lost", json!({ "queues": [{ "name": "nowhere" }] }))
        .await
        .unwrap();
    shows(&stage, "lost", "UnknownQueue", "TaskQueue nowhere").await;

    pool(
        &stage,
        "split",
        json!({ "queues": [{ "name": "good" }, { "name": "far" }] }),
    )
    .await
    .unwrap();
    shows(&stage, "split", "QueuesOnSeveralBrokers", "good and far").await;

    let template = json!({ "spec": { "containers": [{ "name": "worker", "image": "x", "ports": [{ "containerPort": 99999 }] }] } });
    pool(
        &stage,
        "odd",
        json!({ "queues": [{ "name": "bad" }], "template": template }),
    )
    .await
    .unwrap();
    shows(&stage, "odd", "TemplateRefused", "containerPort").await;

    // What a field cannot hold the API server does not even call a bad request.
    for (name, more, words) in [
        (
            "many",
            json!({ "resources": { "requests": { "cpu": "many" } } }),
            "quantities must match",
        ),
        ("listless", json!({ "args": "no list" }), "expected list, got"),
    ] {
        let mut container = json!({ "name": "worker", "image": "x" });
        container
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let template = json!({ "spec": { "containers": [container] } });
        let spec = json!({ "queues": [{ "name": "bad" }], "template": template });
        pool(&stage, name, spec).await.unwrap();
        shows(&stage, name, "TemplateRefused", words).await;
    }

    let late = json!({ "cron": "0 0 1 1 *" });
    for (time, schedule) in [
        ("startTime", late.clone()),
        ("endTime", late),
        ("at", json!({ "at": "9999-12-31T23:59:59Z" })),
    ] {
        let mut spec =
            json!({ "schedule": schedule, "taskTemplate": { "queueRef": { "name": "good" }, "task": "umbel.echo" } });
        if time != "at" {
            spec[time] = json!("9999-12-31T23:59:59Z");
        }
        let applied = stage.try_apply(
            "umbel.dev/v1alpha1",
            "PeriodicTask",
            "periodictasks",
            "late",
            json!({ "spec": spec }),
        );
        let refusal = applied.await.expect_err("the API server refuses it");
        let words = format!("{time} must be before the year 9999");
        assert!(refusal.to_string().contains(&words), "{refusal}");
    }

    pool(&stage, "homeless", json!({ "queues": [{ "name": "homeless" }] }))
        .await
        .unwrap();
    eventually(LONG, "the missing Secret is named", async || {
        let found = stage.condition("homeless", "BrokerReachable").await;
        found.is_some_and(|(status, _, message)| status == "False" && message.contains("nobody"))
    })
    .await;

    // A Deployment of the name that the pool's will have, as an earlier pool of this name shows it.
    let spec = || json!({ "queues": [{ "name": "bad" }], "suspend": true });
    pool(&stage, "taken", spec()).await.unwrap();
    eventually(LONG, "it has a Deployment", async || {
        stage.deployment("taken").await.is_some()
    })
    .await;
    let name = stage.deployment("taken").await.unwrap().name_any();
    stage.pools().delete("taken", &DeleteParams::default()).await.unwrap();
    eventually(LONG, "the Deployment is gone", async || {
        stage.deployments().get_opt(&name).await.unwrap().is_none()
    })
    .await;
    let bare = json!({ "spec": { "replicas": 0, "selector": { "matchLabels": { "a": "b" } }, "template": {
        "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "x" }] } } } });
    stage.apply("apps/v1", "Deployment", "deployments", &name, bare).await;
    pool(&stage, "taken", spec()).await.unwrap();
    shows(&stage, "taken", "NameTaken", &format!("Deployment {name}")).await;
    let untouched = stage.deployments().get(&name).await.unwrap();
    assert!(untouched.metadata.owner_references.is_none());

    stage.ready("good", 1).await;
    stage.send_sleeps("good", 5, 0.05).await;
    stage.drained("good", LONG).await;
}

/// What the administrator does not allow, and what is another's, is said and never sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a05_i22_hostile_templates_and_secrets_of_clusters_never_reach_the_api() {
    let stage = Stage::start().await;
    let _operator = stage.operator(&[], &[]);
    stage.queue("good").await;
    let spec = json!({ "spec": { "kubeconfigSecretRef": { "name": "eu-kubeconfig", "key": "value" } } });
    stage
        .apply("umbel.dev/v1alpha1", "TargetCluster", "targetclusters", "eu", spec)
        .await;
    let of = |more: serde_json::Value| {
        let mut spec = json!({ "queues": [{ "name": "good" }], "suspend": true });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let template = |more: serde_json::Value| {
        let mut pod = json!({ "containers": [{ "name": "worker", "image": "x" }] });
        pod.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        of(json!({ "template": { "spec": pod } }))
    };
    let hidden = json!({ "name": "k", "secret": { "secretName": "eu-kubeconfig" } });
    let refused = [
        ("net", template(json!({ "hostNetwork": true })), "spec.hostNetwork"),
        (
            "disk",
            template(json!({ "volumes": [{ "name": "root", "hostPath": { "path": "/" } }] })),
            "spec.volumes[0].hostPath",
        ),
        (
            "init",
            template(
                json!({ "initContainers": [{ "name": "i", "image": "x", "securityContext": { "privileged": true } }] }),
            ),
            "spec.initContainers[0].securityContext.privileged",
        ),
        (
            "thief",
            template(json!({ "volumes": [hidden] })),
            "which is a target cluster's",
        ),
    ];
    for (name, spec, words) in &refused {
        pool(&stage, name, spec.clone()).await.unwrap();
        shows(&stage, name, "TemplateRefused", words).await;
        assert!(stage.deployment(name).await.is_none(), "{name}");
    }
    // Of a cluster that the pool has nothing to do with.
    let secrets = json!({ "secrets": { "names": ["eu-kubeconfig"] } });
    let sources = json!({ "apply": { "namespaces": ["a"], "kinds": ["ConfigMap"], "sources": { "secrets": ["eu-kubeconfig"] } } });
    for (name, jobs) in [("args", secrets), ("sources", sources)] {
        pool(&stage, name, of(json!({ "jobs": jobs }))).await.unwrap();
        shows(&stage, name, "SecretRefused", "TargetCluster eu").await;
        assert!(stage.deployment(name).await.is_none(), "{name}");
    }

    // A pool that was in order keeps what it has, and its sentence speaks of what is now.
    let calm = json!({ "clusterAccess": { "names": ["eu", "atlantis"] } });
    pool(&stage, "calm", of(calm)).await.unwrap();
    eventually(LONG, "it runs, and says which cluster is missing", async || {
        let found = stage.condition("calm", "Ready").await.unwrap_or_default();
        found.0 == "True"
            && found
                .2
                .ends_with("clusterAccess.names: there is no TargetCluster atlantis")
    })
    .await;
    let before = stage.deployments_of("calm").await.len();
    pool(&stage, "calm", refused[0].1.clone()).await.unwrap();
    shows(&stage, "calm", "TemplateRefused", refused[0].2).await;
    let (is, why, says) = stage.condition("calm", "ScalingActive").await.unwrap();
    assert_eq!((is.as_str(), why.as_str()), ("False", "TemplateRefused"), "{says}");
    assert!(says.contains("the size stays") && says.contains(refused[0].2), "{says}");
    assert_eq!(stage.deployments_of("calm").await.len(), before);
}

/// A broker that never answered is no other than one that stopped to: the pool's size for that comes after as many failures
/// as it says, and then soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s17_a_pool_falls_back_after_as_many_failures_as_it_says() {
    let stage = Stage::start().await;
    let address = format!("redis://127.0.0.1:{}/0", umbel_testkit::free_port());
    stage.secret("nobody", &address).await;
    let _operator = stage.operator(&[], &[]);
    let broker = json!({ "broker": { "redis": { "urlSecretRef": { "name": "nobody", "key": "url" } } } });
    stage
        .apply(
            "umbel.dev/v1alpha1",
            "TaskQueue",
            "taskqueues",
            "away",
            json!({ "spec": broker }),
        )
        .await;
    for (name, threshold) in [("soon", 1), ("later", 15), ("never", 1000)] {
        let fallback = json!({ "policy": "Fallback", "replicas": 2, "failureThreshold": threshold });
        let spec = json!({ "queues": [{ "name": "away" }], "scaling": { "onBrokerError": fallback } });
        pool(&stage, name, spec).await.unwrap();
    }
    for name in ["soon", "later"] {
        eventually(LONG, &format!("{name} has its size"), async || {
            stage.size(name).await == Some(2)
        })
        .await;
        let (_, why, _) = stage.condition(name, "ScalingActive").await.unwrap();
        assert_eq!(why, "Fallback", "{name}");
    }
    let (_, why, _) = stage.condition("never", "ScalingActive").await.unwrap();
    assert_eq!((stage.size("never").await, why.as_str()), (Some(0), "NoSample"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k15_a_quota_below_the_size_is_quoted_and_stops_no_scale_down() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let operator = stage.operator(&[], &[]);
    stage.quota("small", json!({ "pods": "2" })).await;
    stage.queue("jobs").await;
    let spec = |replicas: u32| json!({ "queues": [{ "name": "jobs" }], "concurrency": 1, "replicas": replicas, "scaling": { "mode": "Manual" } });
    pool(&stage, "jobs", spec(4)).await.unwrap();
    shows(&stage, "jobs", "ReplicaFailure", "exceeded quota").await;
    // Two of four are there, and they work: admission asks for less than a settled size.
    stage.ready("jobs", 2).await;
    stage.send_sleeps("jobs", 6, 0.1).await;
    stage.drained("jobs", LONG).await;

    pool(&stage, "jobs", spec(1)).await.unwrap();
    eventually(LONG * 3, "one pod is left", async || {
        stage.size("jobs").await == Some(1) && stage.status("jobs").await.ready_replicas == 1
    })
    .await;
    let removals = kubelet.removals();
    assert!(
        removals.iter().all(|removal| removal.held == 0 && !removal.open),
        "{removals:#?}\n{}",
        operator.log()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_taskqueues_on_one_queue_the_younger_one_is_not_consumed() {
    let stage = Stage::start().await;
    let _kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let _operator = stage.operator(&[], &[]);
    stage.queue("mail").await;
    eventually(LONG, "the first one owns it", async || {
        let queue = stage.queues().get("mail").await.expect("it is there");
        queue
            .status
            .is_some_and(|status| umbel_api::condition::holds(&status.conditions, "Ready"))
    })
    .await;
    // Equal seconds would let the smaller name win.
    let spec =
        json!({ "queueName": "mail", "broker": { "redis": { "urlSecretRef": { "name": "redis", "key": "url" } } } });
    stage
        .apply(
            "umbel.dev/v1alpha1",
            "TaskQueue",
            "taskqueues",
            "post",
            json!({ "spec": spec }),
        )
        .await;
    pool(&stage, "post", json!({ "queues": [{ "name": "post" }] }))
        .await
        .unwrap();
    shows(&stage, "post", "QueueOwnedElsewhere", "post").await;
    assert_eq!(stage.size("post").await.unwrap_or(0), 0);
}

/// Somebody else writes the Deployment's size again and again: he is named, and after three corrections left alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k16_another_scaler_is_named_and_not_fought_for_ever() {
    let stage = Stage::start().await;
    let _kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    let spec = json!({ "queues": [{ "name": "jobs" }], "replicas": 1, "scaling": { "mode": "Manual" } });
    pool(&stage, "jobs", spec).await.unwrap();
    stage.ready("jobs", 1).await;
    let other = PatchParams {
        field_manager: Some("autoscaler".into()),
        ..PatchParams::default()
    };
    for round in 0..4 {
        let size = json!({ "spec": { "replicas": 2 } });
        let name = stage.deployment("jobs").await.expect("it is there").name_any();
        stage
            .deployments()
            .patch(&name, &other, &Patch::Merge(size))
            .await
            .unwrap();
        if round < 3 {
            eventually(LONG, "the size is set right", async || {
                stage.size("jobs").await == Some(1)
            })
            .await;
        }
    }
    eventually(LONG, "the other one is named", async || {
        let found = stage.condition("jobs", "ForeignScaler").await;
        found.is_some_and(|(status, _, message)| {
            status == "True" && message.contains("autoscaler") && message.contains("stopped")
        })
    })
    .await;
    assert_eq!(stage.size("jobs").await, Some(2), "{}", operator.log());
}

/// The watch does not show a Deployment without its pool's label: it gets the label back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k16_a_deployment_gets_its_label_back() {
    let stage = Stage::start().await;
    let _operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    let spec = json!({ "queues": [{ "name": "jobs" }], "suspend": true });
    pool(&stage, "jobs", spec).await.unwrap();
    eventually(LONG, "it has a Deployment", async || {
        stage.deployment("jobs").await.is_some()
    })
    .await;
    let name = stage.deployment("jobs").await.unwrap().name_any();
    let bare = json!({ "metadata": { "labels": { "umbel.dev/pool": null } } });
    stage
        .deployments()
        .patch(&name, &PatchParams::default(), &Patch::Merge(bare))
        .await
        .unwrap();
    eventually(LONG, "it has its label again", async || {
        let found = stage.deployments().get(&name).await.unwrap();
        found.labels().get("umbel.dev/pool").is_some_and(|pool| pool == "jobs")
    })
    .await;
}
