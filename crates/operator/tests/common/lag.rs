//! What makes a step down a race: a controller-manager that lags behind, pods of others that change all the time, work in
//! the queue. And the negative control on the same stage: the victim is drained and marked, then the size is lowered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::autoscaling::v1::{Scale, ScaleSpec};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::task::JoinHandle;
use umbel_broker::Fence;
use umbel_testkit::{Signal, eventually, send_signal};

use super::{Kubelet, LONG, NAMESPACE, Stage};

/// For so long the controller-manager is stopped.
pub const LAG: Duration = Duration::from_secs(2);

/// Ends what runs beside a test.
pub type Stop = Arc<AtomicBool>;

/// Pods of somebody else that change all the time: what is behind them in the watch is seen late.
pub struct Noise {
    stop: Stop,
    tasks: Vec<JoinHandle<()>>,
}

impl Noise {
    /// Each pod rests so long between two changes.
    pub async fn start(client: &Client, rest: Duration) -> Noise {
        let stop = Stop::default();
        let api: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
        let mut tasks = Vec::new();
        for number in 0..8 {
            let name = format!("noise-{number}");
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
                "spec": { "containers": [{ "name": "c", "image": "none" }], "schedulerName": "nobody" },
            });
            // One of before is noise again.
            let applied = api
                .patch(&name, &PatchParams::apply("noise").force(), &Patch::Apply(pod))
                .await;
            applied.expect("the pod is made");
            let (api, stop) = (api.clone(), stop.clone());
            tasks.push(tokio::spawn(async move {
                let ballast = "x".repeat(16_000);
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let body =
                        json!({ "metadata": { "annotations": { "round": format!("{round}"), "ballast": ballast } } });
                    let _ = api.patch(&name, &PatchParams::default(), &Patch::Merge(body)).await;
                    tokio::time::sleep(rest).await;
                }
            }));
        }
        Noise { stop, tasks }
    }

    pub async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

/// Keeps a queue about half full of work: tasks of 50 ms to 1.2 s.
pub fn load(stage: &Arc<Stage>, queue: &str, stop: &Stop) -> JoinHandle<()> {
    let (stage, queue, stop) = (stage.clone(), queue.to_owned(), stop.clone());
    tokio::spawn(async move {
        let mut round = 0u32;
        while !stop.load(Ordering::Relaxed) {
            let seconds = 0.05 + f64::from(round * 7 % 24) * 0.05;
            stage.send_sleeps(&queue, 1, seconds).await;
            round += 1;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    })
}

/// What the negative control came to.
#[derive(Debug, Default)]
pub struct Control {
    pub trials: usize,
    /// Steps down that took another pod than the marked one.
    pub wrong: usize,
    /// Pods that were removed while they held a task.
    pub busy: usize,
}

/// The negative control: the victim is drained and marked with the lowest cost, then the size is lowered, until `is_enough`.
pub async fn control(
    stage: &Arc<Stage>,
    kubelet: &Kubelet,
    rest: Duration,
    is_enough: impl Fn(&Control) -> bool,
) -> Control {
    bare(stage).await;
    let whole = async || {
        let status = stage
            .deployments()
            .get("bare")
            .await
            .expect("it is there")
            .status
            .unwrap_or_default();
        status.ready_replicas == Some(4) && status.replicas == Some(4)
    };
    eventually(LONG, "four pods are ready", whole).await;
    stage
        .broker
        .claim_term("control", 1, "test")
        .await
        .expect("the broker answers");
    let stop = Stop::default();
    let load = load(stage, "bare", &stop);
    let noise = Noise::start(&stage.client, rest).await;
    let manager = stage.plane.pid("kube-controller-manager");
    let mut n = 0;
    let mut fence = || {
        n += 1;
        Fence {
            install: "control".into(),
            term: 1,
            n,
        }
    };
    let mut seen = Control::default();
    while !is_enough(&seen) {
        let pods = stage.pods_of("bare").await;
        let records = stage.broker.workers().await.expect("the broker answers");
        let idle = |pod: &&Pod| {
            let uid = pod.uid().unwrap_or_default();
            pod.metadata.deletion_timestamp.is_none()
                && records
                    .iter()
                    .any(|record| record.worker.starts_with(&uid) && record.held == 0)
        };
        // The oldest idle one: the controller itself would rather take the newest.
        let mut idle: Vec<&Pod> = pods.iter().filter(idle).collect();
        idle.sort_by_key(|pod| pod.creation_timestamp());
        let Some(victim) = idle.first() else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        seen.trials += 1;
        let uid = victim.uid().expect("a uid");
        let name = records
            .iter()
            .find(|record| record.worker.starts_with(&uid))
            .expect("its worker")
            .worker
            .clone();

        send_signal(manager, Signal::Stop);
        tokio::time::sleep(LAG).await;
        stage.broker.drain(&fence(), &name).await.expect("the broker answers");
        mark(stage, victim, "-2147483648").await;
        scale(stage, 3).await;
        send_signal(manager, Signal::Cont);
        let live = async || {
            let pods = stage.pods_of("bare").await;
            let live = pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
            live.collect::<Vec<_>>()
        };
        eventually(LONG, "three pods are left", async || live().await.len() == 3).await;
        let is_left = live().await.iter().any(|pod| pod.uid().as_deref() == Some(&uid));
        seen.wrong += usize::from(is_left);
        if is_left {
            // Make the stage whole for the next trial.
            stage.broker.open(&fence(), &name).await.expect("the broker answers");
            mark(stage, victim, "0").await;
        }
        scale(stage, 4).await;
        eventually(LONG, "four pods are ready again", whole).await;
        let removals = kubelet.removals().into_iter();
        seen.busy = removals.filter(|one| one.pool == "bare" && one.held > 0).count();
    }
    stop.store(true, Ordering::Relaxed);
    load.await.expect("it ends");
    noise.end().await;
    seen
}

/// Four workers in a Deployment that is nobody's.
async fn bare(stage: &Stage) {
    let env = json!([
        { "name": "UMBEL_REDIS_URL", "valueFrom": { "secretKeyRef": { "name": "redis", "key": "url" } } },
        { "name": "UMBEL_QUEUE", "value": "bare" },
        { "name": "UMBEL_CONCURRENCY", "value": "1" },
        { "name": "UMBEL_STANDALONE", "value": "true" },
        { "name": "UMBEL_POD_UID", "valueFrom": { "fieldRef": { "fieldPath": "metadata.uid" } } },
    ]);
    let labels = json!({ "umbel.dev/pool": "bare" });
    let spec = json!({
        "replicas": 4,
        "selector": { "matchLabels": labels },
        "template": {
            "metadata": { "labels": labels },
            "spec": { "containers": [{ "name": "worker", "image": "none", "env": env }] },
        },
    });
    stage
        .apply("apps/v1", "Deployment", "deployments", "bare", json!({ "spec": spec }))
        .await;
}

async fn mark(stage: &Stage, pod: &Pod, cost: &str) {
    let cost = json!({ "metadata": { "annotations": { "controller.kubernetes.io/pod-deletion-cost": cost } } });
    stage
        .pods()
        .patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(cost))
        .await
        .expect("the pod is marked");
}

async fn scale(stage: &Stage, to: i32) {
    let scale = Scale {
        metadata: ObjectMeta {
            name: Some("bare".into()),
            namespace: Some(NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        spec: Some(ScaleSpec { replicas: Some(to) }),
        status: None,
    };
    stage
        .deployments()
        .replace_scale("bare", &PostParams::default(), &scale)
        .await
        .expect("the size is set");
}
