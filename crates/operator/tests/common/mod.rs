//! A stage for the operator: a real API server and controller-manager, a real Redis, real workers. What is missing at
//! this level is a kubelet: [`Kubelet`] runs the worker of each pod as a process on loopback and tells the API server.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test uses a part")]
#![allow(clippy::missing_panics_doc, reason = "a failure here is the failure of the test")]

pub mod kubelet;
pub mod lag;

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Pod, ResourceQuota};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use umbel_api::{TaskQueue, WorkerPool};
use umbel_broker::{Broker, Config};
use umbel_protocol::json::Json;
use umbel_protocol::message::NewTask;
use umbel_testkit::{ControlPlane, Process, Redis, eventually, free_port};

pub use kubelet::Kubelet;

pub const NAMESPACE: &str = "default";
pub const LONG: Duration = Duration::from_secs(60);

/// A control plane with our kinds, and a Redis with its Secret.
pub struct Stage {
    pub plane: ControlPlane,
    pub redis: Redis,
    pub client: Client,
    pub broker: Broker,
}

fn resource(version: &str, kind: &str, plural: &str) -> ApiResource {
    let (group, short) = version.split_once('/').unwrap_or(("", version));
    ApiResource {
        group: group.into(),
        version: short.into(),
        api_version: version.into(),
        kind: kind.into(),
        plural: plural.into(),
    }
}

async fn put(
    api: &Api<DynamicObject>,
    (version, kind): (&str, &str),
    name: &str,
    fields: &Value,
) -> Result<(), kube::Error> {
    let mut body = json!({ "apiVersion": version, "kind": kind, "metadata": { "name": name } });
    body.as_object_mut()
        .expect("an object")
        .extend(fields.as_object().expect("an object").clone());
    api.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(body))
        .await
        .map(|_| ())
}

/// Flags of an operator whose clocks run much faster than they should: it keeps its Lease.
pub const LONG_LEASES: [&str; 6] = [
    "--lease-duration",
    "1h",
    "--renew-deadline",
    "50m",
    "--retry-period",
    "40s",
];

/// Variables of a program whose clocks go as libfaketime's words say.
pub fn clocks(words: &str) -> [(&str, &str); 3] {
    [
        ("LD_PRELOAD", "/usr/$LIB/faketime/libfaketime.so.1"),
        ("FAKETIME", words),
        ("FAKETIME_DISABLE_SHM", "1"),
    ]
}

/// What a program counts, as a scraper reads it.
pub async fn metrics(address: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n")
        .await
        .expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    answer
}

impl Stage {
    pub async fn start() -> Stage {
        Stage::start_with(&[]).await
    }

    /// With further arguments for the control plane.
    pub async fn start_with(arguments: &[&str]) -> Stage {
        Stage::start_on(arguments, Redis::start()).await
    }

    /// On this Redis.
    pub async fn start_on(arguments: &[&str], redis: impl Future<Output = Redis>) -> Stage {
        let (plane, redis) = tokio::join!(ControlPlane::start_with(arguments), redis);
        let client = plane.client().await;
        install(&client).await;
        let broker = Broker::connect(&Config::new(&redis.url()))
            .await
            .expect("the broker answers");
        let stage = Stage {
            plane,
            redis,
            client,
            broker,
        };
        stage.secret("redis", &stage.redis.url()).await;
        stage
    }

    pub async fn secret(&self, name: &str, url: &str) {
        self.apply("v1", "Secret", "secrets", name, json!({ "stringData": { "url": url } }))
            .await;
    }

    /// Applies an object of a core or of our kind in the test's namespace.
    pub async fn apply(&self, version: &str, kind: &str, plural: &str, name: &str, fields: Value) {
        self.try_apply(version, kind, plural, name, fields)
            .await
            .expect("the object is accepted");
    }

    /// Objects of a kind, in the namespace of the tests.
    pub fn objects(&self, version: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), NAMESPACE, &resource(version, kind, plural))
    }

    pub async fn try_apply(
        &self,
        version: &str,
        kind: &str,
        plural: &str,
        name: &str,
        fields: Value,
    ) -> Result<(), kube::Error> {
        put(&self.objects(version, kind, plural), (version, kind), name, &fields).await
    }

    /// The same for an object that is in no namespace.
    pub async fn apply_anywhere(&self, version: &str, kind: &str, plural: &str, name: &str, fields: Value) {
        let api = Api::all_with(self.client.clone(), &resource(version, kind, plural));
        put(&api, (version, kind), name, &fields)
            .await
            .expect("the object is accepted");
    }

    pub async fn queue(&self, name: &str) {
        let spec = json!({
            "broker": { "redis": { "urlSecretRef": { "name": "redis", "key": "url" } } },
            "lease": { "duration": "10s", "renewEvery": "3s" },
        });
        self.apply(
            "umbel.dev/v1alpha1",
            "TaskQueue",
            "taskqueues",
            name,
            json!({ "spec": spec }),
        )
        .await;
    }

    /// A pool on the queue of the same name; `scaling` as in its spec.
    pub async fn pool(&self, name: &str, concurrency: u32, scaling: Value) {
        let spec = json!({ "queues": [{ "name": name }], "concurrency": concurrency, "scaling": scaling });
        self.pool_of(name, spec).await;
    }

    /// A pool with this spec.
    pub async fn pool_of(&self, name: &str, spec: Value) {
        self.apply(
            "umbel.dev/v1alpha1",
            "WorkerPool",
            "workerpools",
            name,
            json!({ "spec": spec }),
        )
        .await;
    }

    /// A quota, in force.
    pub async fn quota(&self, name: &str, hard: Value) {
        let fields = json!({ "spec": { "hard": hard } });
        self.apply("v1", "ResourceQuota", "resourcequotas", name, fields).await;
        let quotas: Api<ResourceQuota> = Api::namespaced(self.client.clone(), NAMESPACE);
        eventually(LONG, "the quota is in force", async || {
            let is_counted = |quota: ResourceQuota| quota.status.is_some_and(|status| status.hard.is_some());
            quotas.get(name).await.is_ok_and(is_counted)
        })
        .await;
    }

    /// Starts an operator with short lease times.
    pub fn operator(&self, extra: &[&str], env: &[(&str, &str)]) -> Process {
        let admin = format!("127.0.0.1:{}", free_port());
        let kubeconfig = self.plane.kubeconfig();
        // As variables, so that a test's flags win.
        let mut vars = vec![
            ("KUBECONFIG", kubeconfig.to_str().expect("a path of text")),
            ("UMBEL_LOG", "info,kube=warn,tower=warn"),
            ("UMBEL_ADMIN_ADDR", &admin),
            ("UMBEL_NAMESPACE", NAMESPACE),
            ("UMBEL_SAMPLE_INTERVAL", "200ms"),
        ];
        // Short lease times where leaders change, which have names of their own. An operator alone keeps the default ones:
        // on a busy machine it would lose a short Lease, end, and nobody would start it again. Campaigns repeat all tests
        // at the default times.
        let is_one_of_several = extra.contains(&"--id");
        if is_one_of_several && std::env::var_os("UMBEL_TEST_DEFAULT_LEASES").is_none() {
            let short = [
                ("UMBEL_LEASE_DURATION", "3s"),
                ("UMBEL_RENEW_DEADLINE", "2s"),
                ("UMBEL_RETRY_PERIOD", "400ms"),
            ];
            vars.extend_from_slice(&short);
        }
        vars.extend_from_slice(env);
        Process::start(Path::new(env!("CARGO_BIN_EXE_umbel-operator")), extra, &vars)
    }

    pub async fn send_sleeps(&self, queue: &str, count: usize, seconds: f64) {
        self.send("umbel.sleep", queue, count, seconds).await;
    }

    /// Sends tasks that take so long; their ids.
    pub async fn send(&self, task: &str, queue: &str, count: usize, seconds: f64) -> Vec<String> {
        let id = |number: usize| format!("{queue}-{number}-{}", uuid::Uuid::new_v4());
        let ids: Vec<String> = (0..count).map(id).collect();
        let message = |id: &String| {
            let task = NewTask {
                id: id.clone(),
                task: task.into(),
                args: Json::of(&[seconds]),
                queue: queue.into(),
                ..NewTask::default()
            };
            task.encode()
        };
        let messages: Vec<Vec<u8>> = ids.iter().map(message).collect();
        self.broker
            .publish(queue, 0, &messages)
            .await
            .expect("the queue accepts");
        ids
    }

    pub fn deployments(&self) -> Api<Deployment> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub fn pools(&self) -> Api<WorkerPool> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub fn queues(&self) -> Api<TaskQueue> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// The Deployments of a pool, the latest first.
    pub async fn deployments_of(&self, pool: &str) -> Vec<Deployment> {
        let ours = ListParams::default().labels(&format!("umbel.dev/pool={pool}"));
        let found = self.deployments().list(&ours).await;
        let mut all = found.expect("the API server answers").items;
        all.sort_by_key(|deployment| std::cmp::Reverse(deployment.creation_timestamp().map(|made| made.0)));
        all
    }

    /// The latest Deployment of a pool.
    pub async fn deployment(&self, pool: &str) -> Option<Deployment> {
        self.deployments_of(pool).await.into_iter().next()
    }

    /// The sizes of a pool's Deployments, summed; nothing while there is none.
    pub async fn size(&self, pool: &str) -> Option<i32> {
        let all = self.deployments_of(pool).await;
        let sizes = all.iter().filter_map(|deployment| deployment.spec.replicas);
        (!all.is_empty()).then(|| sizes.sum())
    }

    pub async fn status(&self, pool: &str) -> umbel_api::WorkerPoolStatus {
        self.pools()
            .get(pool)
            .await
            .expect("the pool is there")
            .status
            .unwrap_or_default()
    }

    pub async fn pods_of(&self, pool: &str) -> Vec<Pod> {
        let ours = ListParams::default().labels(&format!("umbel.dev/pool={pool}"));
        self.pods().list(&ours).await.expect("the API server answers").items
    }

    pub async fn condition(&self, pool: &str, kind: &str) -> Option<(String, String, String)> {
        let found = umbel_api::condition::find(&self.status(pool).await.conditions, kind).cloned()?;
        Some((found.status, found.reason, found.message))
    }

    pub async fn events(&self) -> Vec<String> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), NAMESPACE);
        let all = api
            .list(&ListParams::default())
            .await
            .expect("the API server answers")
            .items;
        all.into_iter()
            .map(|event| {
                format!(
                    "{} {}",
                    event.reason.unwrap_or_default(),
                    event.message.unwrap_or_default()
                )
            })
            .collect()
    }

    /// Waits for a number of admitted and Ready pods.
    pub async fn ready(&self, pool: &str, wanted: u32) {
        eventually(LONG, &format!("{pool} has {wanted} ready pods"), async || {
            self.status(pool).await.ready_replicas == wanted
        })
        .await;
    }

    /// Waits until nothing is waiting or in flight.
    pub async fn drained(&self, queue: &str, deadline: Duration) {
        let names = [queue.to_owned()];
        eventually(deadline, &format!("{queue} is empty"), async || {
            let sample = self.broker.depths(&names).await.expect("the broker answers");
            let depth = sample.queues[0].clone().expect("the queue is readable");
            depth.waiting + depth.in_flight + depth.delayed == 0
        })
        .await;
    }
}

async fn install(client: &Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for (_, definition) in umbel_api::definitions() {
        let name = definition.name_any();
        api.patch(&name, &PatchParams::apply("test").force(), &Patch::Apply(&definition))
            .await
            .expect("the definition is accepted");
        let established = await_condition(api.clone(), &name, conditions::is_crd_established());
        tokio::time::timeout(LONG, established)
            .await
            .expect("in time")
            .expect("it is established");
    }
}

/// The worker that was built beside the operator.
pub fn worker() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_umbel-operator")).with_file_name("umbel-worker");
    assert!(
        path.exists(),
        "{} is missing: cargo build -p umbel-worker",
        path.display()
    );
    path
}
