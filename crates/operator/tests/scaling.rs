//! What a pool's spec says about its size, on a real control plane: each field does something that can be seen.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Kubelet, LONG, Stage};
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use serde_json::{Value, json};
use umbel_testkit::eventually;

async fn pool(stage: &Stage, name: &str, more: Value) {
    let mut spec = json!({ "queues": [{ "name": "mail" }], "concurrency": 2 });
    spec.as_object_mut()
        .expect("an object")
        .extend(more.as_object().expect("an object").clone());
    stage.pool_of(name, spec).await;
}

/// The size of the Deployment, and what the two conditions say of it.
async fn shows(stage: &Stage, name: &str, size: i32, active: (&str, &str), limited: &str, part: &str) {
    let seen = Mutex::new(String::new());
    let is_so = async || {
        let (is, why, says) = stage.condition(name, "ScalingActive").await.unwrap_or_default();
        let (_, bound, _) = stage.condition(name, "ScalingLimited").await.unwrap_or_default();
        let now = stage.size(name).await.unwrap_or(-1);
        *seen.lock().expect("one at a time") = format!("{now} pods, {is} {why}, {bound}: {says}");
        now == size && (is.as_str(), why.as_str()) == active && bound == limited && says.contains(part)
    };
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let in_time = tokio::time::timeout(LONG, wait).await.is_ok();
    let seen = seen.lock().expect("one at a time").clone();
    assert!(
        in_time,
        "{name} must have {size} pods, {active:?}, {limited}, …{part}…; it has {seen}"
    );
}

/// From an hour ago to an hour from now, whatever the time.
fn around_now() -> (String, String) {
    let text = |hours: i64| {
        let at = (Timestamp::now() + SignedDuration::from_hours(hours)).to_zoned(jiff::tz::TimeZone::UTC);
        format!("{} {} * * *", at.minute(), at.hour())
    };
    (text(-1), text(1))
}

/// Pods stay pending here: nothing runs, and what is looked at is the size alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_field_of_scaling_moves_the_size_or_holds_it() {
    let stage = Stage::start_with(&["--cm-arg=--horizontal-pod-autoscaler-sync-period=1s"]).await;
    let _operator = stage.operator(&[], &[]);
    stage.queue("mail").await;
    stage.send_sleeps("mail", 100, 0.1).await;
    stage.secret("dead", "redis://127.0.0.1:1/0").await;
    let broker = json!({ "redis": { "urlSecretRef": { "name": "dead", "key": "url" } } });
    stage
        .apply(
            "umbel.dev/v1alpha1",
            "TaskQueue",
            "taskqueues",
            "lost",
            json!({ "spec": { "broker": broker } }),
        )
        .await;
    // Suspended pools have no part of the queue, so what follows is `waits` alone: one pool at a time.
    let (start, end) = around_now();
    let slow = json!({ "policies": [{ "type": "Pods", "value": 2, "periodSeconds": 1800 }] });
    let backlog = json!({ "type": "BacklogPerReplica", "value": 25 });
    let never = json!({ "type": "DrainTime", "value": "5m" });
    let office = json!({ "name": "office", "start": start, "end": end, "minReplicas": 3 });
    let quiet = json!({ "name": "quiet", "start": start, "end": end, "maxReplicas": 2 });
    let yes = |reason| ("True", reason);
    let no = |reason| ("False", reason);
    let table = [
        (
            json!({ "scaling": { "target": backlog } }),
            4,
            yes("Steady"),
            "WithinBounds",
            "asks for 4, one for each 25 that wait",
        ),
        (
            json!({ "scaling": { "target": never, "maxReplicas": 5 } }),
            5,
            yes("Steady"),
            "AtMaximum",
            "no rate was measured yet for DrainTime",
        ),
        (
            json!({ "scaling": { "up": slow } }),
            2,
            yes("Limited"),
            "ScaleUpLimit",
            "up.policies allow 2 now",
        ),
        (
            json!({ "scaling": { "paused": "Out" } }),
            0,
            no("Paused"),
            "Paused",
            "scaling.paused is Out",
        ),
        (
            json!({ "scaling": { "schedules": [quiet] } }),
            2,
            yes("Steady"),
            "AtScheduledMaximum",
            "maxReplicas of schedule quiet is 2",
        ),
        (
            json!({ "scaling": { "schedules": [office], "target": { "type": "BacklogPerReplica", "value": 1000 } } }),
            3,
            yes("Steady"),
            "AtScheduledMinimum",
            "minReplicas of schedule office is 3",
        ),
        (
            json!({ "suspend": true, "scaling": { "minReplicas": 5 } }),
            0,
            no("Suspended"),
            "WithinBounds",
            "the pool is suspended",
        ),
        (
            json!({ "replicas": 3, "scaling": { "mode": "Manual" } }),
            3,
            yes("Manual"),
            "WithinBounds",
            "spec.replicas says so",
        ),
        (
            json!({ "queues": [{ "name": "lost" }], "scaling": { "onBrokerError": { "policy": "Fallback", "replicas": 2, "failureThreshold": 1 } } }),
            2,
            no("Fallback"),
            "WithinBounds",
            "onBrokerError asks for at least 2 meanwhile",
        ),
        (
            json!({ "queues": [{ "name": "lost" }] }),
            0,
            no("BrokerUnreadable"),
            "WithinBounds",
            "an outage is not an empty queue",
        ),
    ];
    for (number, (spec, size, active, limited, part)) in table.into_iter().enumerate() {
        let name = format!("p{number}");
        pool(&stage, &name, spec).await;
        shows(&stage, &name, size, active, limited, part).await;
        stage
            .pools()
            .delete(&name, &kube::api::DeleteParams::default())
            .await
            .expect("it goes");
        eventually(LONG, "the pool has no part of the queue any more", async || {
            stage
                .pools()
                .get_opt(&name)
                .await
                .expect("the API server answers")
                .is_none()
        })
        .await;
    }

    // A look every five minutes: what comes in between is not seen, but a change of the spec is.
    pool(
        &stage,
        "rare",
        json!({ "scaling": { "interval": "5m", "target": backlog } }),
    )
    .await;
    shows(&stage, "rare", 4, yes("Steady"), "WithinBounds", "100 waiting").await;
    stage.send_sleeps("mail", 100, 0.1).await;
    eventually(LONG, "the operator saw more", async || {
        let status = stage.queues().get("mail").await.expect("it is there").status;
        status
            .and_then(|status| status.depth)
            .is_some_and(|depth| depth.waiting == 200)
    })
    .await;
    shows(&stage, "rare", 4, yes("Steady"), "WithinBounds", "100 waiting").await;
    pool(
        &stage,
        "rare",
        json!({ "scaling": { "interval": "4m", "target": backlog } }),
    )
    .await;
    shows(&stage, "rare", 8, yes("Steady"), "WithinBounds", "200 waiting").await;

    let nonsense = json!({ "name": "a", "start": "at noon", "end": "0 1 * * *", "minReplicas": 1 });
    pool(&stage, "bad", json!({ "scaling": { "schedules": [nonsense] } })).await;
    eventually(LONG, "a bad schedule is named", async || {
        let (is, why, says) = stage.condition("bad", "Ready").await.unwrap_or_default();
        (is.as_str(), why.as_str()) == ("False", "BadSchedule")
            && says.starts_with("spec.scaling.schedules[a].start \"at noon\"")
    })
    .await;

    // A real HorizontalPodAutoscaler on the pool. Its bounds are what it needs no metrics for.
    pool(
        &stage,
        "hpa",
        json!({ "replicas": 1, "scaling": { "mode": "External", "maxReplicas": 5 } }),
    )
    .await;
    shows(
        &stage,
        "hpa",
        1,
        yes("External"),
        "WithinBounds",
        "which another scaler writes, is 1",
    )
    .await;
    let scaler = |min: u32, max: u32| {
        json!({ "spec": {
            "scaleTargetRef": { "apiVersion": "umbel.dev/v1alpha1", "kind": "WorkerPool", "name": "hpa" },
            "minReplicas": min, "maxReplicas": max,
            "metrics": [{ "type": "External", "external": { "metric": { "name": "none" }, "target": { "type": "Value", "value": "1" } } }],
        }})
    };
    let apply = async |spec| {
        stage
            .apply(
                "autoscaling/v2",
                "HorizontalPodAutoscaler",
                "horizontalpodautoscalers",
                "hpa",
                spec,
            )
            .await;
    };
    apply(scaler(3, 4)).await;
    shows(&stage, "hpa", 3, yes("External"), "WithinBounds", "is 3").await;
    apply(scaler(7, 9)).await;
    shows(&stage, "hpa", 5, yes("External"), "AtMaximum", "maxReplicas is 5").await;
    apply(scaler(1, 2)).await;
    shows(&stage, "hpa", 2, yes("External"), "WithinBounds", "is 2").await;
    let scale: Scale = stage.pools().get_scale("hpa").await.expect("it has a scale");
    let selector = scale.status.and_then(|status| status.selector);
    assert_eq!(selector.as_deref(), Some("umbel.dev/pool=hpa"));
}

async fn scale(stage: &Stage, name: &str, replicas: u32) {
    let body = json!({ "spec": { "replicas": replicas } });
    stage
        .pools()
        .patch_scale(name, &PatchParams::default(), &Patch::Merge(body))
        .await
        .expect("the scale is written");
}

/// Somebody scales the pool through its scale subresource while pods work: those that hold a task stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_is_said_by_the_victims() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let operator = stage.operator(&[], &[]);
    for name in ["idle", "soon", "wait"] {
        stage.queue(name).await;
    }
    let spec = |name: &str, mode: &str, down: Value| {
        json!({
            "queues": [{ "name": name }], "concurrency": 1, "replicas": 3, "drain": { "gracePeriod": "20s" },
            "scaling": { "mode": mode, "down": down },
        })
    };
    pool(
        &stage,
        "idle",
        spec("idle", "External", json!({ "victims": "IdleOnly" })),
    )
    .await;
    pool(
        &stage,
        "soon",
        spec(
            "soon",
            "Manual",
            json!({ "victims": "IdleFirst", "confirmTimeout": "1s" }),
        ),
    )
    .await;
    pool(&stage, "wait", spec("wait", "Manual", json!({ "drainWait": "4s" }))).await;
    // Longer than a busy machine takes until the last of them is stopped.
    for (name, seconds) in [("idle", 20.0), ("soon", 20.0), ("wait", 20.0)] {
        stage.ready(name, 3).await;
        // Two of three pods work.
        stage.send_sleeps(name, 2, seconds).await;
        eventually(LONG, "two pods are busy", async || {
            stage.status(name).await.busy_replicas == 2
        })
        .await;
        scale(&stage, name, 1).await;
    }
    let of = |name: &str| -> Vec<u64> {
        let removals = kubelet.removals();
        let gone = removals.iter().filter(|one| one.pool == name && one.admitted);
        gone.map(|one| one.held).collect()
    };
    // The idle pod goes, the others are let alone.
    eventually(LONG, "no pod can be chosen any more", async || {
        let blocked = stage.condition("idle", "ScaleDownBlocked").await.unwrap_or_default();
        of("idle") == [0] && (blocked.0.as_str(), blocked.1.as_str()) == ("True", "NoCandidate")
    })
    .await;
    let says = stage.condition("idle", "ScalingActive").await.unwrap_or_default().2;
    assert!(
        says.contains("1 wanted") && says.contains("no pod can be chosen") && says.contains("Next: nothing, until"),
        "{says}"
    );
    eventually(
        LONG,
        "busy pods are stopped where the pool says so, after the idle one",
        async || of("soon") == [0, 1] && of("wait") == [0, 1],
    )
    .await;
    // Nobody's task is lost: who was stopped ended it within its grace, or handed it back.
    for name in ["idle", "soon", "wait"] {
        stage.drained(name, LONG).await;
        eventually(LONG, "one pod is left", async || stage.size(name).await == Some(1)).await;
        let counters = stage.status(name).await.counters.expect("counters are shown");
        let stopped = u64::from(name != "idle");
        assert_eq!(
            (counters.busy_stopped, counters.wrong_victims),
            (stopped, 0),
            "{name}\n{}",
            operator.log()
        );
    }
    assert_eq!(of("idle"), [0, 0], "{}", operator.log());
    let sample = stage
        .broker
        .depths(&["idle", "soon", "wait"].map(str::to_owned))
        .await
        .expect("the broker answers");
    assert!(
        sample
            .queues
            .iter()
            .all(|queue| queue.as_ref().is_ok_and(|queue| queue.dead == 0))
    );
    let events = stage.events().await;
    assert_eq!(
        events.iter().filter(|event| event.starts_with("StoppedBusy")).count(),
        2,
        "{events:#?}"
    );
}

/// A pool that aims at a time begins by Utilization, and follows the rate once its workers showed one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_is_measured_and_then_followed() {
    let stage = Stage::start().await;
    let _kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let operator = stage.operator(&[], &[]);
    stage.queue("mail").await;
    // 800 tasks of 0.5 s on two slots a pod: Utilization asks for the maximum, five minutes of time for one pod. There is
    // work for longer than anyone looks, however late the rate is known.
    let target = json!({ "type": "DrainTime", "value": "5m" });
    let down = json!({ "stabilization": "0s" });
    pool(
        &stage,
        "mail",
        json!({ "scaling": { "target": target, "maxReplicas": 2, "down": down } }),
    )
    .await;
    stage.send_sleeps("mail", 800, 0.5).await;
    shows(
        &stage,
        "mail",
        2,
        ("True", "Steady"),
        "AtMaximum",
        "by Utilization, because no rate was measured yet for DrainTime",
    )
    .await;
    eventually(LONG, "the rate is known, and asks for less", async || {
        let says = stage.condition("mail", "ScalingActive").await.unwrap_or_default().2;
        // Both pods hold tasks for as long as there is work, so neither is taken.
        says.contains("to be done within 5m, at 0.5") && stage.status("mail").await.recommended_replicas == 1
    })
    .await;
    drop(operator);
}

/// The Eviction API refuses a pod that works, as `kubectl drain` would find, until `maxHold` is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s08_busy_pods_are_shielded_from_eviction_for_a_bounded_time() {
    let stage = Stage::start().await;
    let _kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let operator = stage.operator(&[], &[]);
    stage.queue("mail").await;
    let protection = json!({ "onEviction": ["DisruptionBudget", "SafeToEvict"], "maxHold": "25s" });
    let spec = |protection: &Value| json!({ "replicas": 2, "concurrency": 1, "scaling": { "mode": "Manual" }, "protection": protection });
    pool(&stage, "mail", spec(&protection)).await;
    stage.ready("mail", 2).await;
    stage.send_sleeps("mail", 1, 70.0).await;
    let shielded = async || {
        let pods = stage.pods_of("mail").await;
        let names = pods
            .iter()
            .filter(|pod| pod.labels().get("umbel.dev/busy").is_some_and(|value| value == "true"));
        names.map(kube::ResourceExt::name_any).collect::<Vec<_>>()
    };
    eventually(LONG, "the pod that works is shielded", async || {
        shielded().await.len() == 1
    })
    .await;
    let busy = shielded().await.remove(0);
    let pod = stage.pods().get(&busy).await.expect("it is there");
    let safe = pod.annotations().get("cluster-autoscaler.kubernetes.io/safe-to-evict");
    assert_eq!(safe.map(String::as_str), Some("false"));
    let evict = async |pod: &str| {
        let dry = kube::api::EvictParams {
            post_options: kube::api::PostParams {
                dry_run: true,
                ..Default::default()
            },
            ..Default::default()
        };
        stage.pods().evict(pod, &dry).await
    };
    // The client tries again while the API server answers "too many requests": what is refused has no answer in time.
    let is_refused = async || {
        let answer = tokio::time::timeout(Duration::from_secs(4), evict(&busy)).await;
        !matches!(answer, Ok(Ok(_)))
    };
    eventually(LONG, "the eviction is refused", is_refused).await;
    let other = stage
        .pods_of("mail")
        .await
        .into_iter()
        .map(|pod| pod.name_any())
        .find(|name| *name != busy);
    evict(&other.expect("two pods")).await.expect("an idle pod may go");
    eventually(LONG, "the shield ends though the task goes on", async || {
        shielded().await.is_empty()
    })
    .await;
    assert_eq!(stage.status("mail").await.busy_replicas, 1, "{}", operator.log());
    evict(&busy).await.expect("it may go now");
    // Without protection there is no budget, unless the pool has one over all.
    let mut over_all = spec(&json!({}));
    over_all["podDisruptionBudget"] = json!({ "maxUnavailable": "50%" });
    pool(&stage, "mail", over_all).await;
    let budgets: kube::Api<k8s_openapi::api::policy::v1::PodDisruptionBudget> =
        kube::Api::namespaced(stage.client.clone(), common::NAMESPACE);
    eventually(LONG, "one of the two may be away", async || {
        let budget = budgets.get_opt("mail-all").await.expect("the API server answers");
        let status = budget.and_then(|budget| budget.status);
        status.is_some_and(|status| (status.expected_pods, status.disruptions_allowed) == (Some(2), Some(1)))
    })
    .await;
    eventually(LONG, "the budget is gone", async || {
        budgets
            .get_opt("mail-busy")
            .await
            .expect("the API server answers")
            .is_none()
    })
    .await;
}

/// Writes of costs and shields follow tasks of ten seconds and more, and those only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s08_short_tasks_cause_no_marks_and_a_long_one_two() {
    let stage = Stage::start().await;
    let _kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let _operator = stage.operator(&[], &[]);
    stage.queue("mail").await;
    let protection = json!({ "onEviction": ["DisruptionBudget"] });
    let spec = json!({ "replicas": 2, "concurrency": 1, "scaling": { "mode": "Manual" }, "protection": protection });
    pool(&stage, "mail", spec).await;
    stage.ready("mail", 2).await;
    let costs = async || {
        let pods = stage.pods_of("mail").await;
        let cost = |pod: &Pod| {
            pod.annotations()
                .get("controller.kubernetes.io/pod-deletion-cost")
                .cloned()
        };
        pods.iter()
            .map(|pod| (pod.name_any(), cost(pod)))
            .collect::<BTreeMap<_, _>>()
    };
    eventually(LONG, "both are admitted", async || {
        costs().await.values().all(|cost| cost.as_deref() == Some("0"))
    })
    .await;
    let marks = Arc::new(AtomicUsize::new(0));
    let seen = marks.clone();
    let mut before = costs().await;
    let events = kube::runtime::watcher(stage.pods(), kube::runtime::watcher::Config::default());
    let counting = tokio::spawn(async move {
        let mut events = std::pin::pin!(events.applied_objects());
        while let Some(Ok(pod)) = events.next().await {
            let cost = pod
                .annotations()
                .get("controller.kubernetes.io/pod-deletion-cost")
                .cloned();
            if let Some(known) = before.get_mut(&pod.name_any())
                && *known != cost
            {
                *known = cost;
                seen.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    // Both work without a rest for three times as long as a long task takes to show.
    stage.send_sleeps("mail", 60, 1.0).await;
    eventually(LONG, "all are done", async || {
        stage.status("mail").await.busy_replicas == 2
    })
    .await;
    eventually(LONG, "all are done", async || {
        stage.status("mail").await.busy_replicas == 0
    })
    .await;
    assert_eq!(marks.load(Ordering::SeqCst), 0, "marks of short tasks");

    stage.send_sleeps("mail", 1, 20.0).await;
    eventually(LONG, "the long one is marked", async || {
        marks.load(Ordering::SeqCst) == 1
    })
    .await;
    eventually(LONG * 2, "the mark goes", async || marks.load(Ordering::SeqCst) == 2).await;
    let left = costs().await;
    assert!(left.values().all(|cost| cost.as_deref() == Some("0")), "{left:?}");
    counting.abort();
}

/// What keeps a pod's task from ending, or its cost from being ours, is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s04_s09_a_short_grace_and_another_writer_of_costs_are_named() {
    let stage = Stage::start_with(&[
        "--apiserver-arg=--runtime-config=admissionregistration.k8s.io/v1beta1=true",
        "--apiserver-arg=--feature-gates=MutatingAdmissionPolicy=true",
    ])
    .await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    // A platform that gives a stopping pod ten minutes, whatever its template asks for.
    let cap = json!({
        "failurePolicy": "Fail", "reinvocationPolicy": "Never",
        "matchConstraints": { "resourceRules": [{ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"] }] },
        "matchConditions": [{ "name": "long", "expression": "object.spec.terminationGracePeriodSeconds > 600" }],
        "mutations": [{ "patchType": "ApplyConfiguration", "applyConfiguration": {
            "expression": "Object{spec: Object.spec{terminationGracePeriodSeconds: 600}}" } }],
    });
    let version = "admissionregistration.k8s.io/v1beta1";
    stage
        .apply_anywhere(
            version,
            "MutatingAdmissionPolicy",
            "mutatingadmissionpolicies",
            "cap",
            json!({ "spec": cap }),
        )
        .await;
    let binding = json!({ "spec": { "policyName": "cap" } });
    stage
        .apply_anywhere(
            version,
            "MutatingAdmissionPolicyBinding",
            "mutatingadmissionpolicybindings",
            "cap",
            binding,
        )
        .await;
    // The API server takes a while to learn of it.
    let probe = json!({
        "metadata": { "name": "probe" },
        "spec": { "terminationGracePeriodSeconds": 700, "containers": [{ "name": "c", "image": "i" }] },
    });
    let probe = serde_json::from_value(probe).expect("a pod");
    let dry = kube::api::PostParams {
        dry_run: true,
        ..kube::api::PostParams::default()
    };
    eventually(LONG, "long graces are capped", async || {
        let pod = stage.pods().create(&dry, &probe).await;
        pod.is_ok_and(|pod| pod.spec.and_then(|spec| spec.termination_grace_period_seconds) == Some(600))
    })
    .await;
    let _operator = stage.operator(&[], &[]);
    stage.queue("mail").await;
    let says = async |kind: &str, status: &str, reason: &str, part: &str| {
        eventually(
            LONG,
            &format!("{kind} is {status}, {reason}: …{part}…"),
            async || {
                let found = stage.condition("mail", kind).await;
                found.is_some_and(|(is, why, words)| is == status && why == reason && words.contains(part))
            },
        )
        .await;
    };
    let spec = |replicas: u32, more: Value| {
        let mut spec = json!({ "replicas": replicas, "concurrency": 1, "scaling": { "mode": "Manual" } });
        spec["drain"] = more;
        spec
    };
    pool(&stage, "mail", spec(2, json!({}))).await;
    says(
        "GraceTooShort",
        "True",
        "CappedByPlatform",
        "10m where the pool asks for 1h30s",
    )
    .await;
    pool(&stage, "mail", spec(2, json!({ "gracePeriod": "20s" }))).await;
    says(
        "GraceTooShort",
        "True",
        "ShorterThanTimeLimit",
        "20s, by drain.gracePeriod",
    )
    .await;
    stage
        .apply(
            "umbel.dev/v1alpha1",
            "TaskQueue",
            "taskqueues",
            "mail",
            json!({ "spec": {
                "broker": { "redis": { "urlSecretRef": { "name": "redis", "key": "url" } } },
                "lease": { "duration": "10s", "renewEvery": "3s" }, "timeLimit": "1m",
            } }),
        )
        .await;
    pool(&stage, "mail", spec(2, json!({}))).await;
    says("GraceTooShort", "False", "LongEnough", "1m30s").await;

    says("ForeignCostWriter", "False", "OnlyUs", "").await;
    eventually(LONG, "two pods of the latest template", async || {
        stage.pods_of("mail").await.len() == 2
    })
    .await;
    stage.ready("mail", 2).await;
    // It names the idle one as the most expensive, the one that works as the cheapest.
    stage.send_sleeps("mail", 1, 25.0).await;
    let mut busy = None;
    eventually(LONG, "one of them works", async || {
        let records = stage.broker.workers().await.expect("the broker answers");
        let holder = records.iter().find(|record| record.held > 0);
        busy = holder
            .and_then(|record| record.heartbeat.as_ref())
            .map(|beat| beat.pod.clone());
        busy.is_some()
    })
    .await;
    let busy = busy.expect("one works");
    let other = PatchParams {
        field_manager: Some("karpenter".into()),
        ..PatchParams::default()
    };
    for pod in stage.pods_of("mail").await {
        let cost = if pod.name_any() == busy {
            "-2147483648"
        } else {
            "2147483647"
        };
        let body = json!({ "metadata": { "annotations": { "controller.kubernetes.io/pod-deletion-cost": cost } } });
        stage
            .pods()
            .patch(&pod.name_any(), &other, &Patch::Merge(body))
            .await
            .expect("it is accepted");
    }
    says("ForeignCostWriter", "True", "CostWritten", "karpenter").await;
    pool(&stage, "mail", spec(1, json!({}))).await;
    eventually(LONG, "the one that works is left", async || {
        let left: Vec<String> = stage.pods_of("mail").await.iter().map(ResourceExt::name_any).collect();
        stage.size("mail").await == Some(1) && left == [busy.as_str()]
    })
    .await;
    assert!(kubelet.removals().iter().all(|removal| removal.held == 0));
}
