//! A real API server takes the definitions, fills in defaults, and refuses nonsense in words that name the field.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use std::time::Duration;
use umbel_testkit::{ControlPlane, eventually};

async fn install(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for (_, definition) in umbel_api::definitions() {
        let name = definition.metadata.name.clone().expect("a name");
        definitions
            .patch(&name, &PatchParams::apply("test").force(), &Patch::Apply(&definition))
            .await
            .expect("the server takes it");
    }
    for (_, definition) in umbel_api::definitions() {
        let name = definition.metadata.name.expect("a name");
        eventually(Duration::from_secs(30), "the definitions are served", async || {
            let found = definitions.get(&name).await.expect("it is there");
            let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
            assert!(
                !conditions
                    .iter()
                    .any(|condition| condition.type_ == "NonStructuralSchema" && condition.status == "True"),
                "{name}: {conditions:?}"
            );
            conditions
                .iter()
                .any(|condition| condition.type_ == "Established" && condition.status == "True")
        })
        .await;
    }
}

fn api(client: &Client, kind: &str) -> Api<DynamicObject> {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("umbel.dev", "v1alpha1", kind));
    Api::default_namespaced_with(client.clone(), &kind)
}

fn object(kind: &str, name: &str, spec: &Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "umbel.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec,
    }))
    .expect("an object")
}

fn schedule(schedule: &Value, patch: &Value) -> Value {
    let mut spec = json!({"schedule": schedule, "taskTemplate": {"queueRef": {"name": "q"}, "task": "t"}});
    for (key, value) in patch.as_object().expect("an object") {
        spec[key] = value.clone();
    }
    spec
}

fn template(patch: &Value) -> Value {
    let mut template = json!({"queueRef": {"name": "q"}, "task": "t"});
    for (key, value) in patch.as_object().expect("an object") {
        template[key] = value.clone();
    }
    json!({"schedule": {"every": "10s"}, "taskTemplate": template})
}

/// A Task of this template, sent to the queue `q`.
fn task(template: &Value, patch: &Value) -> Value {
    let mut spec = json!({"taskTemplate": {"queueRef": {"name": "q"}}});
    for (key, value) in template.as_object().expect("an object") {
        spec["taskTemplate"][key] = value.clone();
    }
    for (key, value) in patch.as_object().expect("an object") {
        spec[key] = value.clone();
    }
    spec
}

fn steps(steps: &Value) -> Value {
    task(&json!({ "steps": steps }), &json!({}))
}

fn rollout(rollout: &Value) -> Value {
    template(&json!({"targets": {"selector": {}, "rollout": rollout}}))
}

fn pool(patch: &Value) -> Value {
    let mut spec = json!({"queues": [{"name": "q"}]});
    for (key, value) in patch.as_object().expect("an object") {
        spec[key] = value.clone();
    }
    spec
}

fn scaling(scaling: &Value) -> Value {
    pool(&json!({ "scaling": scaling }))
}

/// What must be taken: smallest objects, and each optional part once.
fn accepted() -> Vec<(&'static str, Value)> {
    vec![
        ("TaskQueue", json!({})),
        (
            "TaskQueue",
            json!({"queueName": "Celery.High_Prio:eu@1", "lease": {"duration": "2s", "renewEvery": "1s"}}),
        ),
        (
            "TaskQueue",
            json!({"broker": {"redis": {"urlSecretRef": {"name": "s", "key": "url"}, "keyPrefix": "app1:"}}}),
        ),
        (
            "TaskQueue",
            json!({"softTimeLimit": "59m", "retry": {"maxAttempts": 1, "factor": 1, "jitter": 0}}),
        ),
        (
            "TaskQueue",
            json!({"paused": true, "expiresAfter": "1h", "limits": {"maxInFlight": 10, "rate": {"count": 100},
                "perKey": [{"tasks": "bill.*", "key": "acct-{kwargs.account}/{header.tenant}", "limit": 2}]}}),
        ),
        (
            "WorkerPool",
            json!({"queues": [{"name": "q", "weight": 5}], "consumption": "Strict",
                "recycle": {"maxTasks": 1000, "maxAge": "24h", "maxMemory": "512Mi"}}),
        ),
        ("WorkerPool", pool(&json!({}))),
        (
            "WorkerPool",
            pool(&json!({"scaling": {"minReplicas": 3, "maxReplicas": 3}})),
        ),
        (
            "WorkerPool",
            pool(&json!({"template": {"spec": {"containers": [{"name": "worker", "newer": {"field": 1}}]}}})),
        ),
        (
            "TaskQueue",
            json!({
                "accept": ["json", "msgpack", "yaml", "auth"], "prioritySteps": [0, 5], "timeZone": "Europe/Berlin",
                "ack": "Early", "allowedTasks": ["proj.*"], "onUnknownTask": "DeadLetter",
                "results": {"store": "Failures", "maxBytes": "1Mi",
                    "backend": {"urlSecretRef": {"name": "results", "key": "url"}, "keyPrefix": "app"}},
            }),
        ),
        ("WorkerPool", pool(&json!({"clusterAccess": {"names": ["eu"]}}))),
        ("WorkerPool", pool(&json!({"clusterAccess": {"selector": {}}}))),
        (
            "WorkerPool",
            pool(&json!({"jobs": {"apply": {"namespaces": ["shop"], "kinds": ["ConfigMap", "apps/Deployment"]}}})),
        ),
        (
            "WorkerPool",
            pool(&json!({"jobs": {
                "apply": {"namespaces": ["shop"], "kinds": ["ConfigMap"], "force": true,
                    "clusterKinds": ["Namespace", "rbac.authorization.k8s.io/Role"],
                    "sources": {"configMaps": ["site"], "secrets": ["keys"], "hosts": ["git.example.com", "http://[fd00::1]:8080"]}},
                "prune": {"namespaces": ["shop"], "kinds": ["ConfigMap"]},
                "delete": {"namespaces": ["shop"], "kinds": ["ConfigMap"], "anyOwner": true},
                "diff": {"namespaces": ["shop"], "kinds": ["ConfigMap"]},
                "get": {"clusterKinds": ["Node"]},
                "labelNodes": {"prefixes": ["fleet.example.com/", "node-role.kubernetes.io/", "robot-"]},
                "restart": {"namespaces": ["shop"], "kinds": ["apps/Deployment"]},
                "scale": {"namespaces": ["shop"], "kinds": ["apps/Deployment"]},
                "wait": {"namespaces": ["shop"], "kinds": ["apps/Deployment"], "clusterKinds": ["Namespace"]},
            }})),
        ),
        (
            "WorkerPool",
            pool(&json!({"jobs": {"exec": {"programs": [
                {"name": "resize", "path": "/usr/bin/resize", "args": ["--fast", ""], "env": ["S3_BUCKET"]},
                {"name": "Render_2.sh", "path": "/opt/render it/run"},
            ]}}})),
        ),
        (
            "WorkerPool",
            pool(&json!({"jobs": {"http": {"hosts": [
                "api.example.com", "*.example.org:8443", "http://hooks.shop.svc:8080", "https://10.1.2.3", "[fd00::1]:8443", "*",
            ]}}})),
        ),
        ("WorkerPool", pool(&json!({"drain": {"gracePeriod": "1h30m"}}))),
        ("WorkerPool", pool(&json!({"suspend": true}))),
        (
            "WorkerPool",
            pool(
                &json!({"protection": {"onEviction": ["DisruptionBudget", "SafeToEvict", "DoNotDisrupt"], "maxHold": "2h"}}),
            ),
        ),
        (
            "WorkerPool",
            scaling(&json!({"target": {"type": "BacklogPerReplica", "value": 200}, "interval": "5s", "paused": "In"})),
        ),
        (
            "WorkerPool",
            scaling(&json!({"target": {"type": "DrainTime", "value": "1h30m"}})),
        ),
        (
            "WorkerPool",
            scaling(&json!({"target": {"type": "Latency", "value": "30s"}, "mode": "External"})),
        ),
        (
            "WorkerPool",
            scaling(&json!({
                "up": {"stabilization": "15s", "selectPolicy": "Min", "policies": [
                    {"type": "Percent", "value": 200, "periodSeconds": 15}, {"type": "Pods", "value": 4, "periodSeconds": 1800}]},
                "down": {"cooldownToZero": "10m", "selectPolicy": "Disabled", "victims": "IdleFirst", "confirmTimeout": "1m", "drainWait": "2h"},
                "onBrokerError": {"policy": "Fallback", "replicas": 3, "failureThreshold": 10},
                "schedules": [{"name": "office", "start": "0 8 * * MON-FRI", "end": "0 18 * * MON-FRI",
                    "timeZone": "Europe/Berlin", "minReplicas": 4, "maxReplicas": 40}],
            })),
        ),
        (
            "PeriodicTask",
            schedule(
                &json!({"cron": "*/5 9-17 * * MON-FRI"}),
                &json!({"timeZone": "America/Argentina/Buenos_Aires"}),
            ),
        ),
        ("PeriodicTask", schedule(&json!({"every": "1h30m"}), &json!({}))),
        (
            "PeriodicTask",
            schedule(&json!({"cron": "@daily"}), &json!({"runOnCreate": true})),
        ),
        (
            "PeriodicTask",
            schedule(
                &json!({"cron": "*/10 30 2 L * FRI#2"}),
                &json!({"dst": {"skipped": "Skip", "repeated": "Twice"}, "maxRuns": 12, "jitter": "90s", "overlap": "BufferOne",
                    "pauseAfterFailures": 3, "history": {"succeeded": 0, "failed": 20}}),
            ),
        ),
        (
            "PeriodicTask",
            schedule(
                &json!({"solar": {"event": "dawn_civil", "latitude": -37.81, "longitude": 144.96}}),
                &json!({"overlap": "Replace"}),
            ),
        ),
        (
            "PeriodicTask",
            schedule(
                &json!({"at": "2030-01-01T00:00:00Z"}),
                &json!({"missedRuns": "RunAll", "overlap": "Allow"}),
            ),
        ),
        (
            "PeriodicTask",
            template(&json!({"args": [1, "a", {"b": [null]}], "kwargs": {"n": {"m": 1.5}}, "headers": {"x": "y"}})),
        ),
        (
            "PeriodicTask",
            template(
                &json!({"retry": {"maxAttempts": 2, "initialBackoff": "20m", "maxBackoff": "20m", "factor": 1.5, "jitter": 0}}),
            ),
        ),
        // The bound may be the queue's.
        ("PeriodicTask", template(&json!({"retry": {"initialBackoff": "20m"}}))),
        (
            "Task",
            json!({"taskTemplate": {"queueRef": {"name": "q"}, "retry": {"maxAttempts": 3}, "steps": [
                {"name": "a", "task": "t", "retry": {"maxAttempts": 1}}, {"name": "b", "task": "t"}]}}),
        ),
        (
            "PeriodicTask",
            template(&json!({"targets": {"selector": {"matchLabels": {"env": "prod"}}}})),
        ),
        (
            "PeriodicTask",
            template(&json!({"targets": {"clusters": ["eu", "us"]}})),
        ),
        (
            "PeriodicTask",
            template(&json!({"targets": {"selector": {}, "unreachable": "Skip", "rollout": {}}})),
        ),
        (
            "PeriodicTask",
            rollout(&json!({"maxFailures": "0%", "minSuccessTime": "5m", "progressDeadline": "1h"})),
        ),
        (
            "PeriodicTask",
            rollout(&json!({"type": "Progressive", "maxConcurrency": 1, "maxFailures": 0})),
        ),
        (
            "PeriodicTask",
            rollout(&json!({"type": "Progressive", "maxConcurrency": 100_000, "maxFailures": 100_000})),
        ),
        (
            "PeriodicTask",
            rollout(
                &json!({"type": "ProgressivePerGroup", "maxConcurrency": "100%", "maxFailures": "100%", "groups": [
                    {"name": "canary", "selector": {"matchLabels": {"ring": "canary"}}},
                    {"name": "rest-2", "selector": {"matchExpressions": [{"key": "ring", "operator": "Exists"}]}},
                ]}),
            ),
        ),
        ("Task", task(&json!({"task": "t"}), &json!({}))),
        (
            "Task",
            task(
                &json!({"task": "t", "argsFrom": [{"name": "a", "configMapKeyRef": {"name": "c", "key": "k"}}],
                    "targets": {"clusters": ["eu"], "unreachable": "Fail"}}),
                &json!({"cancel": true, "ttlSecondsAfterFinished": 0}),
            ),
        ),
        (
            "Task",
            task(&json!({"task": "t"}), &json!({"ttlSecondsAfterFinished": 315_360_000})),
        ),
        (
            "Task",
            steps(&json!([{"name": "a", "task": "t"}, {"name": "b", "task": "t"}])),
        ),
        (
            "Task",
            steps(&json!([
                {"name": "a", "task": "t", "args": [1], "kwargs": {"b": {"c": null}}, "timeLimit": "5m", "dependsOn": []},
                {"name": "b-2", "task": "t", "argsFrom": [{"name": "p", "secretKeyRef": {"name": "s", "key": "k"}}], "dependsOn": []},
                {"name": "3", "task": "t", "dependsOn": ["a", "b-2"]},
            ])),
        ),
        (
            "TargetCluster",
            json!({"kubeconfigSecretRef": {"name": "eu", "key": "kubeconfig"}}),
        ),
        (
            "TargetCluster",
            target(&json!({
                "limits": {"qps": 1000, "burst": 1, "maxConcurrentTasks": 1000},
                "impersonate": {"user": "jane doe@example.com", "groups": ["dev", "system:authenticated"]},
            })),
        ),
    ]
}

/// A TargetCluster's spec with more in it.
fn target(more: &Value) -> Value {
    let mut spec = json!({"kubeconfigSecretRef": {"name": "eu", "key": "kubeconfig"}});
    let fields = spec.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    spec
}

/// What must be refused, and a word of the answer that tells a person where to look.
fn refused() -> Vec<(&'static str, Value, &'static str)> {
    let every = json!({"every": "10s"});
    vec![
        ("TaskQueue", json!({"queueName": "unacked"}), "spec.queueName"),
        ("TaskQueue", json!({"queueName": "umbel:dead:x"}), "spec.queueName"),
        ("TaskQueue", json!({"queueName": "a b"}), "spec.queueName"),
        ("TaskQueue", json!({"queueName": "a\u{6}\u{16}3"}), "spec.queueName"),
        ("TaskQueue", json!({"queueName": "a,b"}), "spec.queueName"),
        ("TaskQueue", json!({"queueName": "🌿"}), "spec.queueName"),
        ("TaskQueue", json!({"queueName": "x".repeat(201)}), "spec.queueName"),
        (
            "TaskQueue",
            json!({"lease": {"duration": "30s"}}),
            "spec.lease.renewEvery: Invalid value",
        ),
        (
            "TaskQueue",
            json!({"lease": {"renewEvery": "31s"}}),
            "spec.lease.renewEvery",
        ),
        (
            "TaskQueue",
            json!({"lease": {"duration": "100ms", "renewEvery": "10ms"}}),
            "spec.lease.duration",
        ),
        ("TaskQueue", json!({"softTimeLimit": "1h"}), "spec.softTimeLimit"),
        (
            "TaskQueue",
            json!({"limits": {"maxInFlight": 0}}),
            "spec.limits.maxInFlight",
        ),
        (
            "TaskQueue",
            json!({"limits": {"rate": {"count": 0}}}),
            "spec.limits.rate.count",
        ),
        (
            "TaskQueue",
            json!({"limits": {"rate": {"count": 1, "period": "0s"}}}),
            "spec.limits.rate.period",
        ),
        (
            "TaskQueue",
            json!({"limits": {"perKey": [{"tasks": "*", "key": "{args.x}"}]}}),
            "spec.limits.perKey[0].key",
        ),
        (
            "WorkerPool",
            pool(&json!({"recycle": {"maxMemory": "much"}})),
            "spec.recycle.maxMemory",
        ),
        ("TaskQueue", json!({"timeLimit": "0s"}), "spec.timeLimit"),
        ("TaskQueue", json!({"timeLimit": "1y"}), "spec.timeLimit"),
        ("TaskQueue", json!({"timeLimit": "-5s"}), "spec.timeLimit"),
        ("TaskQueue", json!({"timeLimit": ""}), "spec.timeLimit"),
        ("TaskQueue", json!({"maxDeliveries": 0}), "spec.maxDeliveries"),
        ("TaskQueue", json!({"retry": {"factor": 0.5}}), "spec.retry.factor"),
        (
            "TaskQueue",
            json!({"retry": {"initialBackoff": "20m"}}),
            "spec.retry.initialBackoff",
        ),
        ("TaskQueue", json!({"results": {"ttl": "0s"}}), "spec.results.ttl"),
        (
            "TaskQueue",
            json!({"results": {"maxBytes": "1Gi"}}),
            "spec.results.maxBytes",
        ),
        (
            "TaskQueue",
            json!({"results": {"maxBytes": "65Mi"}}),
            "spec.results.maxBytes",
        ),
        ("TaskQueue", json!({"results": {"store": "Some"}}), "spec.results.store"),
        (
            "TaskQueue",
            json!({"results": {"backend": {"urlSecretRef": {"name": "x"}}}}),
            "urlSecretRef.key",
        ),
        ("TaskQueue", json!({"accept": ["pickle"]}), "spec.accept"),
        ("TaskQueue", json!({"accept": []}), "spec.accept"),
        ("TaskQueue", json!({"accept": ["json", "json"]}), "spec.accept"),
        ("TaskQueue", json!({"prioritySteps": []}), "spec.prioritySteps"),
        ("TaskQueue", json!({"prioritySteps": [0, 6, 3]}), "spec.prioritySteps"),
        ("TaskQueue", json!({"prioritySteps": [0, 0]}), "spec.prioritySteps"),
        ("TaskQueue", json!({"prioritySteps": [0, 10]}), "spec.prioritySteps"),
        ("TaskQueue", json!({"ack": "Never"}), "spec.ack"),
        ("TaskQueue", json!({"timeZone": "../etc/passwd"}), "spec.timeZone"),
        ("TaskQueue", json!({"allowedTasks": ["a b"]}), "spec.allowedTasks"),
        ("TaskQueue", json!({"onUnknownTask": "Drop"}), "spec.onUnknownTask"),
        (
            "TaskQueue",
            json!({"broker": {"redis": {"urlSecretRef": {"name": "../x", "key": "k"}}}}),
            "urlSecretRef.name",
        ),
        ("WorkerPool", json!({}), "spec.queues"),
        ("WorkerPool", pool(&json!({"queues": []})), "spec.queues"),
        (
            "WorkerPool",
            pool(&json!({"queues": [{"name": "a"}, {"name": "a"}]})),
            "spec.queues[1]",
        ),
        (
            "WorkerPool",
            pool(&json!({"scaling": {"minReplicas": 11}})),
            "spec.scaling.minReplicas",
        ),
        (
            "WorkerPool",
            pool(&json!({"scaling": {"maxReplicas": 2_147_483_648_u32}})),
            "spec.scaling.maxReplicas",
        ),
        (
            "WorkerPool",
            pool(&json!({"scaling": {"target": {"value": 101}}})),
            "spec.scaling.target.value",
        ),
        (
            "WorkerPool",
            pool(&json!({"scaling": {"mode": "Sometimes"}})),
            "spec.scaling.mode",
        ),
        (
            "WorkerPool",
            scaling(&json!({"target": {"value": 0}})),
            "Utilization is a number of percent from 1 to 100",
        ),
        (
            "WorkerPool",
            scaling(&json!({"target": {"value": "80"}})),
            "Utilization is a number of percent from 1 to 100",
        ),
        (
            "WorkerPool",
            scaling(&json!({"target": {"value": -5}})),
            "Utilization is a number of percent from 1 to 100",
        ),
        (
            "WorkerPool",
            scaling(&json!({"target": {"type": "BacklogPerReplica", "value": 0}})),
            "BacklogPerReplica is a number of messages",
        ),
        (
            "WorkerPool",
            scaling(&json!({"target": {"type": "BacklogPerReplica", "value": "5m"}})),
            "BacklogPerReplica is a number of messages",
        ),
        (
            "WorkerPool",
            scaling(&json!({"target": {"type": "DrainTime"}})),
            "DrainTime and Latency are durations from 1s to 168h",
        ),
        (
            "WorkerPool",
            scaling(&json!({"target": {"type": "DrainTime", "value": "1y"}})),
            "spec.scaling.target.value",
        ),
        (
            "WorkerPool",
            scaling(&json!({"target": {"type": "Latency", "value": "-5s"}})),
            "spec.scaling.target.value",
        ),
        (
            "WorkerPool",
            scaling(&json!({"target": {"type": "Latency", "value": "200h"}})),
            "spec.scaling.target.value",
        ),
        (
            "WorkerPool",
            scaling(&json!({"target": {"type": "Luck", "value": 5}})),
            "spec.scaling.target.type",
        ),
        (
            "WorkerPool",
            scaling(&json!({"interval": "500ms"})),
            "an interval lasts from 1s to 5m",
        ),
        (
            "WorkerPool",
            scaling(&json!({"up": {"stabilization": "25h"}})),
            "spec.scaling.up.stabilization",
        ),
        (
            "WorkerPool",
            scaling(&json!({"down": {"cooldownToZero": "169h"}})),
            "spec.scaling.down.cooldownToZero",
        ),
        (
            "WorkerPool",
            scaling(&json!({"up": {"policies": [{"type": "Pods", "value": 0, "periodSeconds": 15}]}})),
            "policies[0].value",
        ),
        (
            "WorkerPool",
            scaling(&json!({"up": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 1801}]}})),
            "policies[0].periodSeconds",
        ),
        (
            "WorkerPool",
            scaling(&json!({"down": {"policies": [{"type": "Share", "value": 1, "periodSeconds": 1}]}})),
            "policies[0].type",
        ),
        (
            "WorkerPool",
            scaling(&json!({"paused": "Maybe"})),
            "spec.scaling.paused",
        ),
        (
            "WorkerPool",
            scaling(&json!({"onBrokerError": {"policy": "Fallback"}})),
            "replicas is given with policy Fallback, and only then",
        ),
        (
            "WorkerPool",
            scaling(&json!({"onBrokerError": {"replicas": 2}})),
            "replicas is given with policy Fallback, and only then",
        ),
        (
            "WorkerPool",
            scaling(&json!({"onBrokerError": {"failureThreshold": 0}})),
            "onBrokerError.failureThreshold",
        ),
        (
            "WorkerPool",
            scaling(&json!({"schedules": [{"name": "a", "start": "0 8 * * *", "end": "0 9 * * *"}]})),
            "minReplicas or maxReplicas must be given",
        ),
        (
            "WorkerPool",
            scaling(&json!({"schedules": [{"name": "a", "start": "0 8 * * *", "end": "0 8 * * *", "minReplicas": 1}]})),
            "start and end must differ",
        ),
        (
            "WorkerPool",
            scaling(
                &json!({"schedules": [{"name": "a", "start": "0 8 * * *", "end": "0 9 * * *", "minReplicas": 3, "maxReplicas": 2}]}),
            ),
            "minReplicas must not be larger than maxReplicas",
        ),
        (
            "WorkerPool",
            pool(&json!({"protection": {"maxHold": "0s"}})),
            "spec.protection.maxHold",
        ),
        (
            "WorkerPool",
            pool(&json!({"protection": {"onEviction": ["Magic"]}})),
            "spec.protection.onEviction",
        ),
        (
            "WorkerPool",
            pool(&json!({"drain": {"handBackAt": 100}})),
            "spec.drain.handBackAt",
        ),
        ("WorkerPool", pool(&json!({"concurrency": 0})), "spec.concurrency"),
        ("WorkerPool", pool(&json!({"replicas": -1})), "spec.replicas"),
        (
            "WorkerPool",
            pool(&json!({"drain": {"gracePeriod": "0s"}})),
            "spec.drain.gracePeriod",
        ),
        ("WorkerPool", pool(&json!({"clusterAccess": {}})), "selector or names"),
        (
            "WorkerPool",
            pool(&json!({"jobs": {"apply": {"namespaces": [], "kinds": ["ConfigMap"]}}})),
            "jobs.apply.namespaces",
        ),
        (
            "WorkerPool",
            pool(&json!({"jobs": {"apply": {"namespaces": ["a"], "kinds": ["*"]}}})),
            "jobs.apply.kinds",
        ),
        (
            "WorkerPool",
            pool(&json!({"jobs": {"prune": {}}})),
            "kinds with namespaces, or clusterKinds",
        ),
        (
            "WorkerPool",
            pool(&json!({"jobs": {"wait": {"kinds": ["ConfigMap"]}}})),
            "kinds with namespaces, or clusterKinds",
        ),
        (
            "WorkerPool",
            pool(&json!({"jobs": {"get": {"clusterKinds": ["*"]}}})),
            "jobs.get.clusterKinds",
        ),
        (
            "WorkerPool",
            pool(&json!({"jobs": {"labelNodes": {"prefixes": [""]}}})),
            "jobs.labelNodes.prefixes",
        ),
        (
            "WorkerPool",
            pool(
                &json!({"jobs": {"apply": {"namespaces": ["a"], "kinds": ["ConfigMap"], "sources": {"hosts": ["a/b"]}}}}),
            ),
            "jobs.apply.sources.hosts",
        ),
        (
            "WorkerPool",
            pool(&json!({"jobs": {"exec": {"programs": [{"name": "sh", "path": "sh"}]}}})),
            "programs[0].path",
        ),
        (
            "WorkerPool",
            pool(&json!({"jobs": {"exec": {"programs": [{"name": "a b", "path": "/bin/sh"}]}}})),
            "programs[0].name",
        ),
        (
            "WorkerPool",
            pool(&json!({"jobs": {"exec": {"programs": [{"name": "a", "path": "/a"}, {"name": "a", "path": "/b"}]}}})),
            "programs[1]",
        ),
        (
            "WorkerPool",
            pool(&json!({"jobs": {"exec": {"programs": [{"name": "a", "path": "/a", "env": ["UMBEL_REDIS_URL"]}]}}})),
            "programs[0].env",
        ),
        (
            "WorkerPool",
            pool(&json!({"jobs": {"exec": {"programs": []}}})),
            "jobs.exec.programs",
        ),
        (
            "WorkerPool",
            pool(&json!({"jobs": {"http": {"hosts": []}}})),
            "jobs.http.hosts",
        ),
        (
            "WorkerPool",
            pool(&json!({"jobs": {"http": {"hosts": ["ftp://a.example"]}}})),
            "jobs.http.hosts",
        ),
        (
            "WorkerPool",
            pool(&json!({"jobs": {"http": {"hosts": ["a.example/path"]}}})),
            "jobs.http.hosts",
        ),
        (
            "WorkerPool",
            pool(&json!({"jobs": {"http": {"hosts": ["user@a.example"]}}})),
            "jobs.http.hosts",
        ),
        (
            "PeriodicTask",
            schedule(&json!({}), &json!({})),
            "exactly one of cron, every, at and solar",
        ),
        (
            "PeriodicTask",
            schedule(&json!({"cron": "* * * * *", "every": "1s"}), &json!({})),
            "exactly one of cron, every, at and solar",
        ),
        (
            "PeriodicTask",
            schedule(&json!({"cron": "* * * * * * *"}), &json!({})),
            "spec.schedule.cron",
        ),
        (
            "PeriodicTask",
            schedule(&json!({"cron": "hourly"}), &json!({})),
            "spec.schedule.cron",
        ),
        (
            "PeriodicTask",
            schedule(&json!({"every": "0s"}), &json!({})),
            "spec.schedule.every",
        ),
        (
            "PeriodicTask",
            schedule(&json!({"every": "1ms"}), &json!({})),
            "spec.schedule.every",
        ),
        (
            "PeriodicTask",
            schedule(&json!({"at": "tomorrow"}), &json!({})),
            "spec.schedule.at",
        ),
        (
            "PeriodicTask",
            schedule(
                &every,
                &json!({"startTime": "2030-01-01T00:00:00Z", "endTime": "2029-01-01T00:00:00Z"}),
            ),
            "spec.startTime",
        ),
        (
            "PeriodicTask",
            schedule(&every, &json!({"overlap": "Queue"})),
            "spec.overlap",
        ),
        (
            "PeriodicTask",
            template(&json!({"argsFrom": [{"name": "a"}]})),
            "exactly one of configMapKeyRef and secretKeyRef",
        ),
        (
            "PeriodicTask",
            template(&json!({"argsFrom": [{"name": "a", "secretKeyRef": {"name": "s", "key": "../k"}}]})),
            "spec.taskTemplate.argsFrom[0].secretKeyRef.key",
        ),
        (
            "PeriodicTask",
            schedule(&json!({"cron": "@every 1ms"}), &json!({})),
            "spec.schedule.cron",
        ),
        (
            "PeriodicTask",
            schedule(
                &json!({"solar": {"event": "moonrise", "latitude": 0, "longitude": 0}}),
                &json!({}),
            ),
            "spec.schedule.solar.event",
        ),
        (
            "PeriodicTask",
            schedule(
                &json!({"solar": {"event": "sunset", "latitude": 90.5, "longitude": 0}}),
                &json!({}),
            ),
            "spec.schedule.solar.latitude",
        ),
        ("PeriodicTask", schedule(&every, &json!({"maxRuns": 0})), "spec.maxRuns"),
        (
            "PeriodicTask",
            schedule(&every, &json!({"jitter": "1y"})),
            "spec.jitter",
        ),
        (
            "PeriodicTask",
            schedule(&every, &json!({"dst": {"skipped": "Never"}})),
            "spec.dst.skipped",
        ),
        (
            "PeriodicTask",
            schedule(&every, &json!({"pauseAfterFailures": 0})),
            "spec.pauseAfterFailures",
        ),
        (
            "PeriodicTask",
            schedule(&every, &json!({"history": {"failed": 21}})),
            "spec.history.failed",
        ),
        (
            "PeriodicTask",
            schedule(&every, &json!({"missedRuns": "All"})),
            "spec.missedRuns",
        ),
        ("PeriodicTask", template(&json!({"task": ""})), "spec.taskTemplate.task"),
        (
            "PeriodicTask",
            template(&json!({"priority": 10})),
            "spec.taskTemplate.priority",
        ),
        (
            "PeriodicTask",
            template(&json!({"retry": {"maxAttempts": 0}})),
            "spec.taskTemplate.retry.maxAttempts",
        ),
        (
            "PeriodicTask",
            template(&json!({"retry": {"maxAttempts": 1001}})),
            "spec.taskTemplate.retry.maxAttempts",
        ),
        (
            "PeriodicTask",
            template(&json!({"retry": {"factor": 0.5}})),
            "spec.taskTemplate.retry.factor",
        ),
        (
            "PeriodicTask",
            template(&json!({"retry": {"jitter": 1.5}})),
            "spec.taskTemplate.retry.jitter",
        ),
        (
            "PeriodicTask",
            template(&json!({"retry": {"initialBackoff": "-1s"}})),
            "spec.taskTemplate.retry.initialBackoff",
        ),
        (
            "PeriodicTask",
            template(&json!({"retry": {"initialBackoff": "2m", "maxBackoff": "1m"}})),
            "initialBackoff must not be longer than maxBackoff",
        ),
        (
            "Task",
            json!({"taskTemplate": {"queueRef": {"name": "q"}, "steps": [
                {"name": "a", "task": "t", "retry": {"initialBackoff": "2m", "maxBackoff": "1m"}}]}}),
            "initialBackoff must not be longer than maxBackoff",
        ),
        ("PeriodicTask", template(&json!({"args": {}})), "spec.taskTemplate.args"),
        (
            "PeriodicTask",
            template(&json!({"targets": {}})),
            "exactly one of clusters and selector",
        ),
        (
            "PeriodicTask",
            template(&json!({"targets": {"clusters": ["a"], "selector": {}}})),
            "exactly one of clusters and selector",
        ),
        (
            "PeriodicTask",
            template(&json!({"steps": [{"name": "a", "task": "t"}]})),
            "exactly one of task and steps must be given",
        ),
        (
            "PeriodicTask",
            template(&json!({"targets": {"selector": {}, "unreachable": "Retry"}})),
            "spec.taskTemplate.targets.unreachable",
        ),
        (
            "PeriodicTask",
            rollout(&json!({"type": "Waves"})),
            "spec.taskTemplate.targets.rollout.type",
        ),
        (
            "PeriodicTask",
            rollout(&json!({"type": "Progressive", "maxConcurrency": 0})),
            "maxConcurrency is a number of clusters from 1 on, or from 1% to 100%",
        ),
        (
            "PeriodicTask",
            rollout(&json!({"type": "Progressive", "maxConcurrency": 100_001})),
            "spec.taskTemplate.targets.rollout.maxConcurrency",
        ),
        (
            "PeriodicTask",
            rollout(&json!({"type": "Progressive", "maxConcurrency": "0%"})),
            "maxConcurrency is a number of clusters from 1 on, or from 1% to 100%",
        ),
        (
            "PeriodicTask",
            rollout(&json!({"type": "Progressive", "maxConcurrency": "101%"})),
            "maxConcurrency is a number of clusters from 1 on, or from 1% to 100%",
        ),
        (
            "PeriodicTask",
            rollout(&json!({"type": "Progressive", "maxConcurrency": "5"})),
            "maxConcurrency is a number of clusters from 1 on, or from 1% to 100%",
        ),
        (
            "PeriodicTask",
            rollout(&json!({"maxFailures": -1})),
            "maxFailures is a number of clusters, or from 0% to 100%",
        ),
        (
            "PeriodicTask",
            rollout(&json!({"maxFailures": 100_001})),
            "spec.taskTemplate.targets.rollout.maxFailures",
        ),
        (
            "PeriodicTask",
            rollout(&json!({"maxFailures": "101%"})),
            "maxFailures is a number of clusters, or from 0% to 100%",
        ),
        (
            "PeriodicTask",
            rollout(&json!({"maxFailures": "few"})),
            "maxFailures is a number of clusters, or from 0% to 100%",
        ),
        (
            "PeriodicTask",
            rollout(&json!({"type": "ProgressivePerGroup", "maxConcurrency": 1})),
            "ProgressivePerGroup needs groups",
        ),
        (
            "PeriodicTask",
            rollout(&json!({"type": "ProgressivePerGroup", "groups": []})),
            "spec.taskTemplate.targets.rollout.groups",
        ),
        (
            "PeriodicTask",
            rollout(&json!({"maxConcurrency": 1})),
            "with type All there are neither groups nor maxConcurrency",
        ),
        (
            "PeriodicTask",
            rollout(&json!({"type": "All", "groups": [{"name": "a", "selector": {}}]})),
            "with type All there are neither groups nor maxConcurrency",
        ),
        (
            "PeriodicTask",
            rollout(
                &json!({"type": "Progressive", "groups": [{"name": "a", "selector": {}}, {"name": "a", "selector": {}}]}),
            ),
            "groups[1]",
        ),
        (
            "PeriodicTask",
            rollout(&json!({"type": "Progressive", "groups": [{"name": "A", "selector": {}}]})),
            "groups[0].name",
        ),
        (
            "PeriodicTask",
            rollout(&json!({"type": "Progressive", "groups": [{"name": "a"}]})),
            "groups[0].selector",
        ),
        (
            "PeriodicTask",
            rollout(&json!({"minSuccessTime": "1y"})),
            "spec.taskTemplate.targets.rollout.minSuccessTime",
        ),
        (
            "PeriodicTask",
            rollout(&json!({"progressDeadline": "-5s"})),
            "spec.taskTemplate.targets.rollout.progressDeadline",
        ),
        ("Task", json!({}), "spec.taskTemplate"),
        (
            "Task",
            task(&json!({}), &json!({})),
            "exactly one of task and steps must be given",
        ),
        (
            "Task",
            task(&json!({"task": "t", "steps": [{"name": "a", "task": "t"}]}), &json!({})),
            "exactly one of task and steps must be given",
        ),
        (
            "Task",
            task(
                &json!({"steps": [{"name": "a", "task": "t"}], "argsFrom": [{"name": "p", "secretKeyRef": {"name": "s", "key": "k"}}]}),
                &json!({}),
            ),
            "with steps, each step has its own args, kwargs and argsFrom",
        ),
        ("Task", steps(&json!([])), "spec.taskTemplate.steps"),
        (
            "Task",
            steps(&json!([{"name": "a"}])),
            "spec.taskTemplate.steps[0].task",
        ),
        (
            "Task",
            steps(&json!([{"task": "t"}])),
            "spec.taskTemplate.steps[0].name",
        ),
        (
            "Task",
            steps(&json!([{"name": "a_b", "task": "t"}])),
            "spec.taskTemplate.steps[0].name",
        ),
        (
            "Task",
            steps(&json!([{"name": "x".repeat(64), "task": "t"}])),
            "spec.taskTemplate.steps[0].name",
        ),
        (
            "Task",
            steps(&json!([{"name": "a", "task": "t"}, {"name": "a", "task": "u"}])),
            "spec.taskTemplate.steps[1]",
        ),
        (
            "Task",
            steps(
                &(0..21)
                    .map(|at| json!({"name": format!("s{at}"), "task": "t"}))
                    .collect::<Value>(),
            ),
            "spec.taskTemplate.steps",
        ),
        (
            "Task",
            steps(&json!([{"name": "a", "task": "t"}, {"name": "b", "task": "t", "dependsOn": ["gone"]}])),
            "dependsOn names other steps of the same template",
        ),
        (
            "Task",
            steps(&json!([{"name": "a", "task": "t", "dependsOn": ["a"]}])),
            "dependsOn names other steps of the same template",
        ),
        (
            "Task",
            steps(&json!([{"name": "a", "task": "t"}, {"name": "b", "task": "t", "dependsOn": ["a", "a"]}])),
            "spec.taskTemplate.steps[1].dependsOn[1]",
        ),
        (
            "Task",
            steps(&json!([{"name": "a", "task": "t", "timeLimit": "1y"}])),
            "spec.taskTemplate.steps[0].timeLimit",
        ),
        (
            "Task",
            steps(&json!([{"name": "a", "task": "t", "argsFrom": [{"name": "p"}]}])),
            "exactly one of configMapKeyRef and secretKeyRef",
        ),
        (
            "Task",
            task(&json!({"task": "t"}), &json!({"ttlSecondsAfterFinished": -1})),
            "spec.ttlSecondsAfterFinished",
        ),
        (
            "Task",
            task(&json!({"task": "t"}), &json!({"ttlSecondsAfterFinished": 315_360_001})),
            "spec.ttlSecondsAfterFinished",
        ),
        (
            "Task",
            task(&json!({"task": "t"}), &json!({"cancel": "yes"})),
            "spec.cancel",
        ),
        ("TargetCluster", json!({}), "spec.kubeconfigSecretRef"),
        (
            "TargetCluster",
            json!({"kubeconfigSecretRef": {"name": "eu"}}),
            "spec.kubeconfigSecretRef.key",
        ),
        (
            "TargetCluster",
            target(&json!({"limits": {"qps": 0}})),
            "spec.limits.qps",
        ),
        (
            "TargetCluster",
            target(&json!({"limits": {"qps": 1001}})),
            "spec.limits.qps",
        ),
        (
            "TargetCluster",
            target(&json!({"limits": {"burst": 0}})),
            "spec.limits.burst",
        ),
        (
            "TargetCluster",
            target(&json!({"limits": {"maxConcurrentTasks": 0}})),
            "spec.limits.maxConcurrentTasks",
        ),
        // Who would otherwise be the kubeconfig's own user, or more than that.
        (
            "TargetCluster",
            target(&json!({"impersonate": {"groups": ["dev"]}})),
            "spec.impersonate.user",
        ),
        (
            "TargetCluster",
            target(&json!({"impersonate": {"user": ""}})),
            "spec.impersonate.user",
        ),
        (
            "TargetCluster",
            target(&json!({"impersonate": {"user": "  "}})),
            "impersonate.user must not be empty",
        ),
        (
            "TargetCluster",
            target(&json!({"impersonate": {"user": " jane"}})),
            "begin or end with a blank",
        ),
        (
            "TargetCluster",
            target(&json!({"impersonate": {"user": "jane\r\nx"}})),
            "printable ASCII",
        ),
        (
            "TargetCluster",
            target(&json!({"impersonate": {"user": "system:admin"}})),
            "impersonate.user must not begin with system:",
        ),
        (
            "TargetCluster",
            target(&json!({"impersonate": {"user": "jane", "groups": [""]}})),
            "spec.impersonate.groups",
        ),
        (
            "TargetCluster",
            target(&json!({"impersonate": {"user": "jane", "groups": ["dev", "system:masters"]}})),
            "impersonate.groups must not name system:masters",
        ),
    ]
}

fn dry_run() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

#[tokio::test]
async fn kinds_are_taken_defaulted_and_refused() {
    let plane = ControlPlane::start().await;
    let client = plane.client().await;
    install(&client).await;
    let dry = dry_run();
    let strict = |kind: &str| api(&client, kind);

    for (index, (kind, spec)) in accepted().into_iter().enumerate() {
        let result = strict(kind)
            .create(&dry, &object(kind, &format!("ok-{index}"), &spec))
            .await;
        assert!(result.is_ok(), "{kind} {spec}: {result:?}");
    }
    for (index, (kind, spec, word)) in refused().into_iter().enumerate() {
        match strict(kind)
            .create(&dry, &object(kind, &format!("bad-{index}"), &spec))
            .await
        {
            Err(kube::Error::Api(answer)) => {
                assert_eq!(answer.code, 422, "{kind} {spec}: {answer:?}");
                assert!(
                    answer.message.contains(word),
                    "{kind} {spec}: {} does not say {word}",
                    answer.message
                );
            }
            other => panic!("{kind} {spec}: {other:?}"),
        }
    }

    // Names count, too.
    let long = strict("WorkerPool")
        .create(&dry, &object("WorkerPool", &"p".repeat(53), &pool(&json!({}))))
        .await;
    assert!(long.expect_err("too long").to_string().contains("52 characters"));
    let taken = strict("TaskQueue")
        .create(&dry, &object("TaskQueue", "unacked", &json!({})))
        .await;
    assert!(
        taken
            .expect_err("a name of the transport")
            .to_string()
            .contains("belongs to the transport")
    );

    // Defaults come from the server, also below a half-given object; nulls count as absent.
    let spec = pool(&json!({"scaling": {"down": {"stabilization": "5s"}}, "drain": null}));
    let made = strict("WorkerPool")
        .create(&dry, &object("WorkerPool", "defaults", &spec))
        .await
        .expect("taken")
        .data;
    assert_eq!(
        made["spec"]["scaling"]["down"],
        json!({"stabilization": "5s", "cooldownToZero": "1m", "selectPolicy": "Max", "victims": "Drained", "confirmTimeout": "15s"})
    );
    assert_eq!(
        made["spec"]["scaling"]["target"],
        json!({"type": "Utilization", "value": 80})
    );
    assert_eq!(
        (&made["spec"]["concurrency"], &made["spec"]["drain"]),
        (&json!(10), &json!({"handBackAt": 90}))
    );
    let typed: umbel_api::WorkerPoolSpec =
        serde_json::from_value(made["spec"].clone()).expect("what the server made is ours");
    assert_eq!(typed.scaling.down.stabilization.get(), Duration::from_secs(5));

    // What can't be changed is not.
    let queues = strict("TaskQueue");
    queues
        .create(
            &PostParams::default(),
            &object("TaskQueue", "fixed", &json!({"queueName": "one"})),
        )
        .await
        .expect("made");
    for change in [
        json!({"spec": {"queueName": "two"}}),
        json!({"spec": {"queueName": null}}),
    ] {
        let answer = queues
            .patch("fixed", &PatchParams::default(), &Patch::Merge(&change))
            .await;
        assert!(
            answer
                .expect_err("immutable")
                .to_string()
                .contains("queueName can't be changed"),
            "{change}"
        );
    }
    queues
        .patch(
            "fixed",
            &PatchParams::default(),
            &Patch::Merge(&json!({"spec": {"maxDeliveries": 5}})),
        )
        .await
        .expect("other fields can");
    queues.delete("fixed", &DeleteParams::default()).await.expect("deleted");

    // The pool's scale subresource writes spec.replicas.
    let pools = strict("WorkerPool");
    pools
        .create(
            &PostParams::default(),
            &object("WorkerPool", "scaled", &pool(&json!({"scaling": {"mode": "Manual"}}))),
        )
        .await
        .expect("made");
    let scale = pools
        .patch_scale(
            "scaled",
            &PatchParams::default(),
            &Patch::Merge(&json!({"spec": {"replicas": 4}})),
        )
        .await
        .expect("scaled");
    assert_eq!(scale.spec.and_then(|spec| spec.replicas), Some(4));
}

/// What a required field is given beside the one that is looked at.
fn sample(name: &str) -> Value {
    match name {
        "queues" => json!([{ "name": "q" }]),
        "redis" | "broker" => json!({}),
        "tasks" => json!("*"),
        "key" => json!("k"),
        "type" => json!("Pods"),
        "value" | "periodSeconds" | "count" => json!(1),
        "start" => json!("0 8 * * *"),
        "end" => json!("0 9 * * *"),
        "path" => json!("/x"),
        "programs" => json!([{ "name": "a", "path": "/x" }]),
        "namespaces" | "names" | "hosts" | "prefixes" => json!(["a"]),
        "kinds" => json!(["ConfigMap"]),
        _ => json!("a"),
    }
}

/// A value for `schema` that holds `value` at this way, and what else must be there.
fn holding(schema: &Value, way: &[String], value: &Value) -> Value {
    let Some((first, rest)) = way.split_first() else {
        return value.clone();
    };
    if first == "[0]" {
        return json!([holding(&schema["items"], rest, value)]);
    }
    let required = schema["required"].as_array().into_iter().flatten();
    let names = required.filter_map(Value::as_str);
    let mut object: serde_json::Map<String, Value> = names.map(|name| (name.to_owned(), sample(name))).collect();
    object.insert(first.clone(), holding(&schema["properties"][first], rest, value));
    Value::Object(object)
}

/// The ways to all numbers, durations, and what may be a number or a text, with what each must not be.
fn numbers(schema: &Value, way: &[String], found: &mut Vec<(Vec<String>, Value)>) {
    let mut add = |values: &[Value]| found.extend(values.iter().map(|value| (way.to_vec(), value.clone())));
    let is_span = schema["pattern"]
        .as_str()
        .is_some_and(|pattern| pattern.ends_with("(m|s|ms))+$"));
    match schema["type"].as_str() {
        _ if schema["x-kubernetes-int-or-string"] == true => {
            add(&[
                json!(-1),
                json!(2_147_483_648_u64),
                json!("1y"),
                json!("-5s"),
                json!("201%"),
                json!(""),
            ]);
        }
        Some("integer") => {
            add(&[json!(-1), json!(0.5), json!("x"), json!(9_223_372_036_854_775_808_u64)]);
            let most = schema["maximum"].as_f64().expect("a largest one");
            if most < 2_147_483_648.0 {
                add(&[json!(2_147_483_648_u64)]);
            }
        }
        Some("string") if is_span => add(&[json!("1y"), json!("-5s"), json!(""), json!(5), json!("9999999h")]),
        _ => {}
    }
    if schema["items"].is_object() {
        numbers(&schema["items"], &[way, &["[0]".to_owned()]].concat(), found);
    }
    for (name, below) in schema["properties"].as_object().into_iter().flatten() {
        numbers(below, &[way, std::slice::from_ref(name)].concat(), found);
    }
}

/// Each number, percentage and duration of a queue and a pool, out of its bounds: the answer names the field.
#[tokio::test]
async fn i23_each_number_and_duration_is_refused_in_words_that_name_its_field() {
    let plane = ControlPlane::start().await;
    let client = plane.client().await;
    install(&client).await;
    let dry = dry_run();
    let (mut tried, mut wrong) = (0, Vec::new());
    for (_, definition) in umbel_api::definitions() {
        let definition = serde_json::to_value(&definition).expect("plain data");
        let kind = definition["spec"]["names"]["kind"].as_str().expect("a name").to_owned();
        if kind != "TaskQueue" && kind != "WorkerPool" {
            continue;
        }
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let mut all = Vec::new();
        numbers(schema, &[], &mut all);
        for (way, value) in all {
            let spec = holding(schema, &way, &value);
            let field = format!("spec.{}", way.join(".")).replace(".[0]", "[0]");
            let name = format!("bad-{tried}");
            tried += 1;
            match api(&client, &kind).create(&dry, &object(&kind, &name, &spec)).await {
                Err(kube::Error::Api(answer)) if answer.code == 422 && answer.message.contains(&field) => {}
                other => wrong.push(format!("{kind} {field} {value}: {other:?}")),
            }
        }
    }
    assert!(tried > 150, "{tried} values");
    assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
}
