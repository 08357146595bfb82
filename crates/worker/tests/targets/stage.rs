//! A namespace at home with Secrets, a Redis, and workers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use umbel_api::targetcluster::ClusterObservation;
use umbel_broker::{AsideFilter, AsideKind, Broker, Config};
use umbel_protocol::json::Json;
use umbel_protocol::message::NewTask;
use umbel_testkit::{ControlPlane, Process, Redis, Target, eventually_some};

/// What should take milliseconds, on a machine that compiles beside the tests.
pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) struct Servers {
    home: ControlPlane,
    target: Target,
}

static SERVERS: OnceCell<Servers> = OnceCell::const_new();

async fn servers() -> &'static Servers {
    SERVERS
        .get_or_init(|| async {
            let home = ControlPlane::start().await;
            let target = home.target("c2").await;
            Servers { home, target }
        })
        .await
}

/// Administrator's access to the target.
pub(crate) async fn target() -> PathBuf {
    servers().await.target.kubeconfig.clone()
}

/// Administrator's access to another cluster: home.
pub(crate) async fn another() -> PathBuf {
    servers().await.home.kubeconfig()
}

/// Clients belong to the runtime of one test.
pub(crate) async fn client(kubeconfig: &Path) -> Client {
    let file = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .unwrap();
    Client::try_from(config).unwrap()
}

/// Makes a namespace.
pub(crate) async fn namespace(client: &Client, name: &str) {
    let object = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    Api::<Namespace>::all(client.clone())
        .create(&PostParams::default(), &object)
        .await
        .unwrap();
}

/// The uid by which a cluster is recognised.
pub(crate) async fn uid(kubeconfig: &Path) -> String {
    let namespaces = Api::<Namespace>::all(client(kubeconfig).await);
    namespaces.get("kube-system").await.unwrap().metadata.uid.unwrap()
}

pub(crate) struct Scene {
    pub(crate) name: String,
    pub(crate) home: Client,
    pub(crate) redis: Redis,
    pub(crate) broker: Broker,
}

impl Scene {
    pub(crate) async fn new(name: &str) -> Scene {
        let home = client(&servers().await.home.kubeconfig()).await;
        namespace(&home, name).await;
        let redis = Redis::start().await;
        let broker = Broker::connect(&Config::new(&redis.url())).await.unwrap();
        Scene {
            name: name.to_owned(),
            home,
            redis,
            broker,
        }
    }

    /// Writes the Secret of a cluster.
    pub(crate) async fn secret(&self, cluster: &str, kubeconfig: &str) {
        write(&self.home, &self.name, cluster, kubeconfig).await;
    }

    /// A worker whose pool may touch these clusters, each with a Secret of its name, and what else is said of it.
    pub(crate) async fn worker(&self, clusters: &[(&str, Value)], flags: &[&str]) -> Process {
        let all: Vec<Value> = clusters
            .iter()
            .map(|(name, more)| {
                let mut one = json!({"name": name, "secret": name});
                one.as_object_mut()
                    .unwrap()
                    .extend(more.as_object().cloned().unwrap_or_default());
                one
            })
            .collect();
        self.worker_with(&json!(all), flags).await
    }

    pub(crate) async fn worker_with(&self, clusters: &Value, flags: &[&str]) -> Process {
        let home = servers().await.home.kubeconfig().display().to_string();
        let rules = json!({"namespaces": [self.name], "kinds": ["ConfigMap", "strange.example.com/Widget"]});
        let jobs = json!({"apply": rules, "prune": rules, "delete": rules, "wait": rules}).to_string();
        let (url, clusters) = (self.redis.url(), clusters.to_string());
        let args = ["--standalone", "--redis-url", &url, "--queue", "q"]
            .into_iter()
            .chain(flags.iter().copied());
        let env = [
            ("KUBECONFIG", home.as_str()),
            ("UMBEL_NAMESPACE", &self.name),
            ("UMBEL_CLUSTERS", &clusters),
            ("UMBEL_JOBS", &jobs),
            ("RUST_LOG", "umbel_worker=debug,umbel_clusters=debug"),
        ];
        Process::start(&program(), args, &env)
    }

    pub(crate) async fn send(&self, task: &str, kwargs: &Value) -> String {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
        let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let id = format!("00000000-0000-4000-8000-{next:012}");
        let task = NewTask {
            id: id.clone(),
            task: task.into(),
            queue: "q".into(),
            kwargs: Json::of(kwargs),
            ..NewTask::default()
        };
        self.broker.publish("q", 0, &[task.encode()]).await.unwrap();
        id
    }

    pub(crate) async fn sync(&self, cluster: &str) -> String {
        self.send("umbel.cluster.sync", &json!({"cluster": cluster})).await
    }

    /// Applies a ConfigMap in the namespace of the scene's name.
    pub(crate) async fn apply(&self, cluster: &str, name: &str) -> String {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": self.name}});
        self.send("umbel.cluster.apply", &json!({"cluster": cluster, "manifests": [map]}))
            .await
    }

    /// What a task returned, or the message of its failure.
    pub(crate) async fn result(&self, id: &str) -> Result<Value, String> {
        let document = self.broker.wait_result(id, SOON * 2).await.unwrap();
        let document = document.expect("a result in time");
        let document: Value = serde_json::from_slice(&document).unwrap();
        if document["status"] == "SUCCESS" {
            Ok(document["result"].clone())
        } else {
            Err(document["result"]["exc_message"][0]
                .as_str()
                .unwrap_or_default()
                .to_owned())
        }
    }

    /// The latest report about a cluster.
    pub(crate) async fn report(&self, cluster: &str) -> ClusterObservation {
        eventually_some(SOON, "a report", async || {
            let reports = self.broker.cluster_reports(&self.name).await.unwrap();
            let report = reports.into_iter().find(|report| report.name == cluster)?;
            Some(serde_json::from_value(report.body).unwrap())
        })
        .await
    }

    /// Reasons of the dead letters.
    pub(crate) async fn dead(&self) -> Vec<String> {
        let page = self
            .broker
            .aside(AsideKind::Dead, "q", AsideFilter::default(), 100)
            .await
            .unwrap();
        page.entries.into_iter().map(|one| one.reason).collect()
    }
}

/// Writes a Secret with a kubeconfig.
/// The worker's; a measurement names another build of it.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("UMBEL_TEST_WORKER").map_or_else(|| env!("CARGO_BIN_EXE_umbel-worker").into(), PathBuf::from)
}

pub(crate) async fn write(home: &Client, namespace: &str, name: &str, kubeconfig: &str) {
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"kubeconfig": kubeconfig}});
    let secrets = Api::<Secret>::namespaced(home.clone(), namespace);
    secrets
        .patch(name, &PatchParams::apply("test").force(), &Patch::Apply(&secret))
        .await
        .unwrap();
}
