//! What TaskQueues and TargetClusters say of themselves, on a real API server and a real Redis.

#[allow(unused_imports, reason = "no pool runs here")]
mod common;

use std::time::Duration;

use common::{LONG, NAMESPACE, Stage};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use redis::AsyncCommands;
use serde_json::{Value, json};
use umbel_api::condition::find;
use umbel_api::{TargetCluster, TargetClusterStatus, TaskQueue, TaskQueueStatus, WorkerPool};
use umbel_broker::{ClusterReport, TargetSaid};
use umbel_testkit::eventually;

const OURS: &str = "umbel.dev/v1alpha1";

async fn queue(stage: &Stage, name: &str) -> TaskQueueStatus {
    stage
        .queues()
        .get(name)
        .await
        .expect("the queue is there")
        .status
        .unwrap_or_default()
}

fn ready(status: &TaskQueueStatus) -> (String, String) {
    let found = find(&status.conditions, "Ready");
    found
        .map(|found| (found.status.clone(), found.reason.clone()))
        .unwrap_or_default()
}

async fn is_ready(stage: &Stage, name: &str, expected: (&str, &str)) {
    let expected = (expected.0.to_owned(), expected.1.to_owned());
    eventually(LONG, &format!("{name} is {expected:?}"), async || {
        ready(&queue(stage, name).await) == expected
    })
    .await;
}

/// What the operator counts, as a scraper reads it.
async fn metrics(operator: &umbel_testkit::Process) -> String {
    let log = operator.log();
    let port = log
        .split("\"addr\":\"127.0.0.1:")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .expect("it says where it listens");
    common::metrics(&format!("127.0.0.1:{port}")).await
}

fn on(secret: &str, queue_name: &str) -> Value {
    json!({ "spec": { "queueName": queue_name, "broker": { "redis": { "urlSecretRef": { "name": secret, "key": "url" } } } } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k26_queues_tell_their_owner_their_broker_and_their_depth() {
    let mut stage = Stage::start().await;
    let operator = stage.operator(&[], &[]);
    stage.queue("mail").await;
    is_ready(&stage, "mail", ("True", "Serving")).await;

    // Depth comes, but not at every change.
    stage.send_sleeps("mail", 7, 0.1).await;
    eventually(LONG, "the depth is shown", async || {
        queue(&stage, "mail")
            .await
            .depth
            .is_some_and(|depth| depth.waiting == 7)
    })
    .await;
    let version = stage.queues().get("mail").await.expect("there").resource_version();
    for _ in 0..5 {
        stage.send_sleeps("mail", 1, 0.1).await;
    }
    eventually(LONG, "the sampler has seen them", async || {
        stage
            .broker
            .depths(&["mail".into()])
            .await
            .is_ok_and(|sample| sample.queues[0].as_ref().is_ok_and(|depth| depth.waiting == 12))
    })
    .await;
    let begin = std::time::Instant::now();
    eventually(LONG, "five more are shown", async || {
        queue(&stage, "mail")
            .await
            .depth
            .is_some_and(|depth| depth.waiting == 12)
    })
    .await;
    assert!(
        begin.elapsed() > Duration::from_secs(5),
        "numbers are written seldom, not after {:?}",
        begin.elapsed()
    );
    assert_ne!(
        stage.queues().get("mail").await.expect("there").resource_version(),
        version
    );

    let waiting = "umbel_queue_messages{namespace=\"default\",queue=\"mail\",state=\"waiting\"} 12";
    let counted = metrics(&operator).await;
    assert!(counted.contains(waiting), "{counted}");

    // Two names for one server, and one queue on it: the older object owns it.
    stage
        .secret("same", &stage.redis.url().replace("127.0.0.1", "localhost"))
        .await;
    let mut connection = stage.redis.connection().await;
    let _: () = connection.set("umbel:gen", "this-data-set").await.expect("set");
    eventually(LONG, "a later object, an own second", async || {
        let created = stage
            .queues()
            .get("mail")
            .await
            .expect("there")
            .creation_timestamp()
            .expect("a time")
            .0;
        jiff::Timestamp::now().as_second() > created.as_second()
    })
    .await;
    stage
        .apply(OURS, "TaskQueue", "taskqueues", "also-mail", on("same", "mail"))
        .await;
    is_ready(&stage, "also-mail", ("False", "QueueOwnedElsewhere")).await;
    is_ready(&stage, "mail", ("True", "Serving")).await;
    stage
        .queues()
        .delete("mail", &kube::api::DeleteParams::default())
        .await
        .expect("deleted");
    is_ready(&stage, "also-mail", ("True", "Serving")).await;
    assert!(
        !metrics(&operator).await.contains("queue=\"mail\""),
        "what is gone is counted no more"
    );

    // A key of another type, a Secret that is not there, a broker that is not there.
    let _: () = connection.set("wrong", "text").await.expect("set");
    stage
        .apply(OURS, "TaskQueue", "taskqueues", "wrong", on("redis", "wrong"))
        .await;
    is_ready(&stage, "wrong", ("False", "WrongKeyType")).await;
    stage
        .apply(OURS, "TaskQueue", "taskqueues", "no-secret", on("absent", "x"))
        .await;
    is_ready(&stage, "no-secret", ("False", "SecretNotUsable")).await;
    stage
        .apply(OURS, "TaskQueue", "taskqueues", "no-broker", json!({ "spec": {} }))
        .await;
    is_ready(&stage, "no-broker", ("False", "NoBroker")).await;
    stage.secret("absent", &stage.redis.url()).await;
    is_ready(&stage, "no-secret", ("True", "Serving")).await;

    let before = queue(&stage, "also-mail").await.depth;
    assert!(before.is_some());
    stage.redis.kill();
    is_ready(&stage, "also-mail", ("False", "BrokerUnreachable")).await;
    assert_eq!(
        queue(&stage, "also-mail").await.depth,
        before,
        "an outage is not an empty queue"
    );
    stage.redis.start_again().await;
    is_ready(&stage, "also-mail", ("True", "Serving")).await;

    let events = stage.events().await;
    for reason in [
        "QueueOwnedElsewhere",
        "WrongKeyType",
        "SecretNotUsable",
        "NoBroker",
        "BrokerUnreachable",
        "Serving",
    ] {
        assert!(
            events.iter().any(|event| event.starts_with(reason)),
            "{reason} in {events:#?}"
        );
    }
    drop(operator);

    // A restart changes nothing that did not change.
    let versions = async || -> Vec<Option<String>> {
        let all = stage
            .queues()
            .list(&kube::api::ListParams::default())
            .await
            .expect("a list");
        all.items.iter().map(ResourceExt::resource_version).collect()
    };
    let _next = stage.operator(&[], &[]);
    let marker = "after-restart";
    stage
        .apply(OURS, "TaskQueue", "taskqueues", marker, on("redis", marker))
        .await;
    is_ready(&stage, marker, ("True", "Serving")).await;
    // Longer than the interval of status writes: who writes what he has written before is caught.
    let quiet = Duration::from_secs(17);
    let mut last = (versions().await, std::time::Instant::now());
    eventually(LONG * 2, "no write while nothing changes", async || {
        let now = versions().await;
        if now != last.0 {
            last = (now, std::time::Instant::now()); // What the outage had changed is written once.
        }
        last.1.elapsed() > quiet
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn priority_steps_of_a_queue_hold_for_depths_and_schedules() {
    let stage = Stage::start().await;
    let _operator = stage.operator(&[], &[]);
    let mut steps = on("redis", "steps");
    steps["spec"]["prioritySteps"] = json!([0, 5]);
    stage.apply(OURS, "TaskQueue", "taskqueues", "steps", steps).await;
    stage.queue("usual").await; // Kombu's own steps on the same broker.
    is_ready(&stage, "steps", ("True", "Serving")).await;
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(2);
    let fields = json!({ "spec": {
        "schedule": { "at": soon.to_string() },
        "taskTemplate": { "task": "umbel.echo", "priority": 7, "queueRef": { "name": "steps" } },
    } });
    stage.apply(OURS, "PeriodicTask", "periodictasks", "once", fields).await;
    let mut connection = stage.redis.connection().await;
    eventually(LONG, "the slot lies in the list of step 5", async || {
        connection
            .llen("steps\x06\x165")
            .await
            .is_ok_and(|length: usize| length == 1)
    })
    .await;
    eventually(LONG, "and is counted", async || {
        queue(&stage, "steps")
            .await
            .depth
            .is_some_and(|depth| depth.waiting == 1)
    })
    .await;

    // Schedules send JSON: who does not read it is told, and nothing is sent.
    let mut packed = on("redis", "packed");
    packed["spec"]["accept"] = json!(["msgpack"]);
    stage.apply(OURS, "TaskQueue", "taskqueues", "packed", packed).await;
    let fields = json!({ "spec": {
        "schedule": { "every": "1s" },
        "taskTemplate": { "task": "umbel.echo", "queueRef": { "name": "packed" } },
    } });
    stage
        .apply(OURS, "PeriodicTask", "periodictasks", "unread", fields)
        .await;
    eventually(LONG, "an Event says why", async || {
        let events = stage.events().await;
        events.iter().any(|event| event.starts_with("JsonNotAccepted"))
    })
    .await;
    assert_eq!(connection.llen("packed").await, Ok(0));
    let kombus: bool = connection.exists("steps\x06\x166").await.expect("answered");
    assert!(!kombus);
}

async fn cluster(stage: &Stage, name: &str) -> TargetClusterStatus {
    let api: Api<TargetCluster> = Api::namespaced(stage.client.clone(), NAMESPACE);
    api.get(name)
        .await
        .expect("the cluster is there")
        .status
        .unwrap_or_default()
}

async fn says(stage: &Stage, name: &str, kind: &str, expected: (&str, &str)) {
    eventually(LONG, &format!("{name}: {kind} is {expected:?}"), async || {
        find(&cluster(stage, name).await.conditions, kind)
            .is_some_and(|found| (found.status.as_str(), found.reason.as_str()) == expected)
    })
    .await;
}

async fn join(stage: &Stage, name: &str, env: &str, kubeconfig: Option<&str>) {
    if let Some(kubeconfig) = kubeconfig {
        let data = json!({ "stringData": { "kubeconfig": kubeconfig } });
        stage.apply("v1", "Secret", "secrets", name, data).await;
    }
    let body = json!({
        "metadata": { "name": name, "labels": { "env": env } },
        "spec": { "kubeconfigSecretRef": { "name": name, "key": "kubeconfig" } },
    });
    stage.apply(OURS, "TargetCluster", "targetclusters", name, body).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k26_target_clusters_show_what_pools_that_may_touch_them_saw() {
    let stage = Stage::start().await;
    let operator = stage.operator(&[], &[]);
    let good = std::fs::read_to_string(stage.plane.kubeconfig()).expect("a kubeconfig");
    join(&stage, "eu", "prod", Some(&good)).await;
    join(&stage, "lab", "dev", Some(&good)).await;
    join(&stage, "late", "dev", None).await;
    join(&stage, "plain", "dev", Some(&good.replace("https://", "http://"))).await;
    let exec = "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\n\
                clusters: [{name: k, cluster: {server: 'https://127.0.0.1:1'}}]\n\
                users: [{name: u, user: {exec: {command: /bin/sh, apiVersion: client.authentication.k8s.io/v1}}}]\n";
    join(&stage, "exec", "dev", Some(exec)).await;
    let file = exec.replace(
        "exec: {command: /bin/sh, apiVersion: client.authentication.k8s.io/v1}",
        "tokenFile: /etc/passwd",
    );
    join(&stage, "file", "dev", Some(&file)).await;

    says(&stage, "eu", "KubeconfigAccepted", ("True", "Accepted")).await;
    says(&stage, "eu", "Reachable", ("Unknown", "NotSyncedYet")).await;
    for name in ["plain", "exec", "file"] {
        says(&stage, name, "KubeconfigAccepted", ("False", "KubeconfigRefused")).await;
        let message = find(&cluster(&stage, name).await.conditions, "KubeconfigAccepted")
            .expect("there")
            .message
            .clone();
        assert!(
            message.contains(&format!("Secret {name}")) && !message.contains("/bin/sh"),
            "{message}"
        );
    }
    says(&stage, "late", "KubeconfigAccepted", ("False", "SecretNotFound")).await;
    join(&stage, "late", "dev", Some(&good)).await;
    says(&stage, "late", "KubeconfigAccepted", ("True", "Accepted")).await;

    // A pool that may touch what is labelled prod.
    stage.queue("sync").await;
    let pool = json!({ "spec": {
        "queues": [{ "name": "sync" }], "scaling": { "maxReplicas": 0 },
        "clusterAccess": { "selector": { "matchLabels": { "env": "prod" } } },
    }});
    stage.apply(OURS, "WorkerPool", "workerpools", "sync", pool).await;
    let pools: Api<WorkerPool> = stage.pools();
    let uid = pools
        .get("sync")
        .await
        .expect("the pool is there")
        .uid()
        .expect("a uid");
    let report = |name: &str, pool: &str, body: Value| ClusterReport {
        namespace: NAMESPACE.into(),
        name: name.into(),
        pool: pool.into(),
        worker: "w".into(),
        body,
    };
    let seen = |version: &str| {
        json!({
            "at": jiff::Timestamp::now().to_string(), "reachable": true, "kubeconfigAccepted": true, "version": version,
            "apiLatencyMs": 3, "nodes": { "total": 2, "ready": 1 }, "capacity": { "cpu": "8", "memory": "32Gi" },
            "allocatable": { "cpu": "7900m" }, "pods": { "Running": 5 },
        })
    };
    // Lies first: from a pool that does not exist, and about a cluster that this pool may not touch.
    stage
        .broker
        .report_cluster(&report("lab", "somebody", seen("v9.9.9")))
        .await
        .expect("reported");
    stage
        .broker
        .report_cluster(&report("eu", &uid, seen("v1.36.3")))
        .await
        .expect("reported");
    stage
        .broker
        .report_cluster(&report("late", &uid, seen("v9.9.9")))
        .await
        .expect("reported");
    says(&stage, "eu", "Reachable", ("True", "Answered")).await;
    let status = cluster(&stage, "eu").await;
    assert_eq!(
        (status.version.as_deref(), status.api_latency_ms),
        (Some("v1.36.3"), Some(3))
    );
    assert_eq!(status.nodes.map(|nodes| (nodes.total, nodes.ready)), Some((2, 1)));
    assert_eq!(
        status.capacity.get("memory").map(|quantity| quantity.0.as_str()),
        Some("32Gi")
    );
    assert!(status.last_sync_time.is_some());

    let failed =
        json!({ "at": jiff::Timestamp::now().to_string(), "reachable": false, "error": "no answer within 5 s" });
    stage
        .broker
        .report_cluster(&report("eu", &uid, failed))
        .await
        .expect("reported");
    says(&stage, "eu", "Reachable", ("False", "SyncFailed")).await;
    let status = cluster(&stage, "eu").await;
    assert_eq!(
        (status.version.as_deref(), status.last_error.as_deref()),
        (Some("v1.36.3"), Some("no answer within 5 s"))
    );

    for name in ["lab", "late"] {
        assert_eq!(
            cluster(&stage, name).await.version,
            None,
            "{name}: a report of a pool that may not touch it"
        );
    }
    // Rights given later count from the next look on.
    let wider = Patch::Merge(json!({ "spec": { "clusterAccess": { "names": ["late"] } } }));
    pools
        .patch("sync", &PatchParams::default(), &wider)
        .await
        .expect("changed");
    eventually(LONG, "the report is taken now", async || {
        cluster(&stage, "late").await.version.as_deref() == Some("v9.9.9")
    })
    .await;
    drop(operator);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d05_t10_workers_are_told_which_cluster_a_target_is_and_that_it_is_gone() {
    let stage = Stage::start().await;
    let _operator = stage.operator(&[], &[]);
    let good = std::fs::read_to_string(stage.plane.kubeconfig()).expect("a kubeconfig");
    join(&stage, "eu", "prod", Some(&good)).await;
    stage.queue("sync").await;
    let pool = json!({ "spec": {
        "queues": [{ "name": "sync" }], "scaling": { "maxReplicas": 0 }, "clusterAccess": { "names": ["eu"] },
    }});
    stage.apply(OURS, "WorkerPool", "workerpools", "sync", pool).await;
    let uid = stage.pools().get("sync").await.expect("there").uid().expect("a uid");
    let is_said = async |expected: Option<TargetSaid>| {
        eventually(LONG, &format!("workers are told {expected:?}"), async || {
            let said = stage.broker.targets_said(NAMESPACE).await.unwrap_or_default();
            match (said.get("eu"), &expected) {
                (Some(TargetSaid::Gone(_)), Some(TargetSaid::Gone(_))) => true,
                (said, expected) => said == expected.as_ref(),
            }
        })
        .await;
    };
    is_said(Some(TargetSaid::Known)).await;

    let report = async |body: Value| {
        let mut body = body;
        body["at"] = json!(jiff::Timestamp::now().to_string());
        let report = ClusterReport {
            namespace: NAMESPACE.into(),
            name: "eu".into(),
            pool: uid.clone(),
            worker: "w".into(),
            body,
        };
        stage.broker.report_cluster(&report).await.expect("reported");
    };
    report(json!({
        "reachable": true, "version": "v1.36.3", "uid": "uid-one", "refused": ["list pods: pods is forbidden"],
        "healthy": false, "health": "1 of 2 nodes not ready: n2", "usage": { "cpu": "1500m" },
        "circuit": { "state": "Open", "since": "2026-01-01T00:00:00Z", "until": "2026-01-01T00:00:05Z" },
    }))
    .await;
    is_said(Some(TargetSaid::Pinned("uid-one".into()))).await;
    says(&stage, "eu", "Authorized", ("False", "Refused")).await;
    says(&stage, "eu", "Healthy", ("False", "NotHealthy")).await;
    let status = cluster(&stage, "eu").await;
    assert_eq!(status.cluster_uid.as_deref(), Some("uid-one"));
    assert_eq!(status.usage.get("cpu").map(|cpu| cpu.0.as_str()), Some("1500m"));
    let circuit = status.circuit.expect("a circuit");
    assert_eq!(json!(circuit.state), json!("Open"));
    assert!(circuit.since < circuit.until);

    // Another cluster does not change that, nor does a broker that has lost what was said.
    report(json!({
        "reachable": false, "reason": "IdentityChanged", "error": "it was uid-one and is uid-two", "uid": "uid-two",
    }))
    .await;
    says(&stage, "eu", "Reachable", ("False", "IdentityChanged")).await;
    let mut connection = stage.redis.connection().await;
    let _: () = connection
        .del(format!("umbel:targets:{NAMESPACE}"))
        .await
        .expect("deleted");
    is_said(Some(TargetSaid::Pinned("uid-one".into()))).await;

    // An administrator does.
    let clusters: Api<TargetCluster> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let accept = json!({ "metadata": { "annotations": { "umbel.dev/accept-identity": "uid-two" } } });
    clusters
        .patch("eu", &PatchParams::default(), &Patch::Merge(accept))
        .await
        .expect("annotated");
    is_said(Some(TargetSaid::Pinned("uid-two".into()))).await;
    eventually(LONG, "status shows it", async || {
        cluster(&stage, "eu").await.cluster_uid.as_deref() == Some("uid-two")
    })
    .await;

    let params = kube::api::DeleteParams::default();
    clusters.delete("eu", &params).await.expect("deleted");
    is_said(Some(TargetSaid::Gone(0))).await;
    join(&stage, "eu", "prod", Some(&good)).await;
    is_said(Some(TargetSaid::Known)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_claim_owns_a_queue_across_namespaces_and_nobody_is_named() {
    let stage = Stage::start().await;
    let _operator = stage.operator(&[], &[]);
    stage.queue("mail").await;
    is_ready(&stage, "mail", ("True", "Serving")).await;
    let namespaces: Api<Namespace> = Api::all(stage.client.clone());
    let other: Namespace = serde_json::from_value(json!({ "metadata": { "name": "other" } })).expect("a namespace");
    namespaces
        .create(&kube::api::PostParams::default(), &other)
        .await
        .expect("made");
    let first = stage
        .queues()
        .get("mail")
        .await
        .expect("there")
        .creation_timestamp()
        .expect("a time")
        .0;
    eventually(LONG, "a later second", async || {
        jiff::Timestamp::now().as_second() > first.as_second()
    })
    .await;
    let secrets: Api<k8s_openapi::api::core::v1::Secret> = Api::namespaced(stage.client.clone(), "other");
    let secret =
        serde_json::from_value(json!({ "metadata": { "name": "redis" }, "stringData": { "url": stage.redis.url() } }));
    secrets
        .create(&kube::api::PostParams::default(), &secret.expect("a secret"))
        .await
        .expect("made");
    let queues: Api<TaskQueue> = Api::namespaced(stage.client.clone(), "other");
    let mut body = on("redis", "mail");
    body["metadata"] = json!({ "name": "theirs" });
    let theirs: TaskQueue = serde_json::from_value(body).expect("a queue");
    queues
        .create(&kube::api::PostParams::default(), &theirs)
        .await
        .expect("made");
    eventually(LONG, "it is owned elsewhere", async || {
        let status = queues.get("theirs").await.expect("there").status.unwrap_or_default();
        let found = find(&status.conditions, "Ready").cloned();
        found.is_some_and(|found| found.reason == "QueueOwnedElsewhere" && !found.message.contains("default"))
            && status.depth.is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_queue_allows_reaches_its_broker_and_what_people_do_there_stays() {
    let stage = Stage::start().await;
    let _operator = stage.operator(&[], &[]);
    let say = async |spec: Value| {
        let mut all = json!({ "broker": { "redis": { "urlSecretRef": { "name": "redis", "key": "url" } } }, "queueName": "mail.out" });
        let fields = all.as_object_mut().expect("an object");
        fields.extend(spec.as_object().expect("an object").clone());
        stage
            .apply(OURS, "TaskQueue", "taskqueues", "mail", json!({ "spec": all }))
            .await;
    };
    let allows = async |expected: &str| {
        eventually(LONG, expected, async || {
            let policy = stage.broker.queue_policy("mail.out").await.expect("the broker answers");
            let rate = policy.rate.map_or_else(|| "-".to_owned(), |rate| rate.to_string());
            let most = policy.max_in_flight.unwrap_or(0);
            format!("{} {most} {rate}", policy.is_paused) == expected
        })
        .await;
    };
    say(
        json!({ "paused": true, "limits": { "maxInFlight": 7, "rate": { "count": 100, "period": "1m", "burst": 5 } } }),
    )
    .await;
    allows("true 7 100/60000/5").await;
    // By hand: it stays until the object changes.
    stage.broker.resume("mail.out").await.expect("the broker answers");
    say(json!({ "paused": true, "limits": { "maxInFlight": 7, "rate": { "count": 100, "period": "1m", "burst": 5 } }, "timeLimit": "2h" })).await;
    is_ready(&stage, "mail", ("True", "Serving")).await;
    allows("false 7 100/60000/5").await;
    say(json!({ "limits": { "maxInFlight": 9 } })).await;
    allows("false 9 -").await;
    // Redis has lost it.
    let mut connection = stage.redis.connection().await;
    let _: () = connection
        .del(&["umbel:queue:mail.out", "umbel:limited"][..])
        .await
        .expect("deleted");
    allows("false 9 -").await;
    say(json!({})).await;
    allows("false 0 -").await;
    let left: bool = connection.exists("umbel:limited").await.expect("answered");
    assert!(!left, "no reserve looks for limits any more");

    // The object goes: what it said goes with it. What people have set and what waits stays.
    say(json!({ "paused": true, "limits": { "maxInFlight": 9 } })).await;
    allows("true 9 -").await;
    let rate = "5/s/1".parse().expect("a rate");
    stage.broker.set_queue_rate("mail.out", Some(rate)).await.expect("set");
    stage
        .broker
        .publish("mail.out", 0, &[b"m".to_vec()])
        .await
        .expect("published");
    stage
        .queues()
        .delete("mail", &kube::api::DeleteParams::default())
        .await
        .expect("deleted");
    allows("false 0 5/1000/1").await;
    assert_eq!(connection.llen("mail.out").await, Ok(1));
    let said: bool = connection
        .hexists("umbel:queue:mail.out", "said")
        .await
        .expect("answered");
    assert!(!said);
}

/// How often pools were looked at.
fn passes(metrics: &str) -> u64 {
    let lines = metrics
        .lines()
        .filter(|line| line.contains("reconcile_total{") && line.contains("\"workerpool\""));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// A ServiceAccount that a quota refuses is not sent again on every pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k15_a_refused_service_account_is_not_sent_on_every_pass() {
    let stage = Stage::start().await;
    stage.quota("none", json!({ "count/serviceaccounts": "0" })).await;
    let operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    stage.pool("jobs", 1, json!({})).await;
    eventually(LONG, "the refusal is shown", async || {
        let found = stage.condition("jobs", "Ready").await;
        found.is_some_and(|(_, _, message)| message.contains("ServiceAccount") && message.contains("exceeded quota"))
    })
    .await;
    // Each change of the pool is a pass. On a busy machine they take so long that it is sent again now and then.
    for round in 0..20 {
        let note = json!({ "metadata": { "annotations": { "round": round.to_string() } } });
        stage
            .pools()
            .patch("jobs", &PatchParams::default(), &Patch::Merge(note))
            .await
            .expect("it is accepted");
        let before = passes(&metrics(&operator).await);
        eventually(LONG, "another pass", async || {
            passes(&metrics(&operator).await) > before
        })
        .await;
    }
    let all = metrics(&operator).await;
    let sent = all
        .lines()
        .find(|line| line.contains("kubernetes_writes") && line.contains("\"access\""));
    let sent: u32 = sent
        .and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .expect("it was sent once");
    assert!(sent <= 10, "{sent}");
}
