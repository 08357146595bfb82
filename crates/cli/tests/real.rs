//! Whole commands against a real Redis, a real Celery worker and a real API server.

#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

mod support;

use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use support::{Done, good, plain as umbel};
use tokio::sync::OnceCell;
use umbel_api::{PeriodicTask, TargetCluster, TaskQueue, WorkerPool};
use umbel_testkit::{
    Authority, CeleryOptions, CeleryWorker, ControlPlane, Redis, Sentinels, ServerKind, Target, TempDir, eventually,
    free_port, repository,
};

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[tokio::test]
async fn a_celery_worker_runs_what_is_sent_and_the_result_is_read() {
    let redis = Redis::start().await;
    let url = redis.url();
    let _worker = CeleryWorker::start(&url, &CeleryOptions::default()).await;

    let waited = umbel(&[
        "task",
        "send",
        "umbel.echo",
        "--args",
        "[1, \"ä\"]",
        "--kwargs",
        "{\"k\": null}",
        "--wait",
        "--redis-url",
        &url,
    ])
    .await;
    assert!(
        waited.err.starts_with("task ") && waited.err.ends_with(" sent to queue celery\n"),
        "{}",
        waited.err
    );
    let echoed: Value = serde_json::from_str(&good(waited)).unwrap();
    assert_eq!(echoed, json!({"args": [1, "ä"], "kwargs": {"k": null}}));

    let hostile = "{\"a\\u001b[2J\": 1}";
    let failed = umbel(&[
        "task",
        "send",
        "umbel.sleep",
        "--kwargs",
        hostile,
        "--wait",
        "--redis-url",
        &url,
    ])
    .await;
    assert_eq!((failed.code, failed.out.as_str()), (1, ""));
    assert!(
        failed.err.contains("ended as FAILURE: TypeError: ") && !failed.err.contains('\u{1b}'),
        "{}",
        failed.err
    );
    let id = failed.err.split_whitespace().nth(1).unwrap().to_owned();

    let got: Value = serde_json::from_str(&good(
        umbel(&["task", "get", &id, "-o", "json", "--redis-url", &url]).await,
    ))
    .unwrap();
    assert_eq!((&got["status"], &got["id"]), (&json!("FAILURE"), &json!(id)));
    assert!(got["traceback"].as_str().unwrap().contains("Traceback"), "{got}");
    let table = good(umbel(&["task", "get", &id, "--redis-url", &url]).await);
    assert!(
        table.starts_with("ID ") && table.lines().count() == 2 && table.contains("FAILURE"),
        "{table}"
    );
    let yaml = good(umbel(&["task", "get", &id, "-o", "yaml", "--redis-url", &url]).await);
    assert!(yaml.contains("status: FAILURE"), "{yaml}");
}

#[tokio::test]
async fn tasks_wait_in_the_list_of_their_priority_and_depth_shows_them() {
    let redis = Redis::start().await;
    let url = redis.url();
    for priority in ["0", "9"] {
        let id = good(
            umbel(&[
                "task",
                "send",
                "t",
                "--queue",
                "mail",
                "--priority",
                priority,
                "--redis-url",
                &url,
            ])
            .await,
        );
        assert_eq!(id.trim().len(), 36);
    }
    let mut connection = redis.connection().await;
    for list in ["mail", "mail\u{6}\u{16}9"] {
        let length: i64 = umbel_testkit::redis::cmd("LLEN")
            .arg(list)
            .query_async(&mut connection)
            .await
            .unwrap();
        assert_eq!(length, 1, "{list:?}");
        let raw: String = umbel_testkit::redis::cmd("LINDEX")
            .arg(list)
            .arg(0)
            .query_async(&mut connection)
            .await
            .unwrap();
        let message: Value = serde_json::from_str(&raw).unwrap();
        let sent = message["headers"]["umbel_order"].as_i64().unwrap();
        assert!(sent > 1_600_000_000_000, "milliseconds by the broker's clock: {raw}");
    }

    let listed: Value = serde_json::from_str(&good(
        umbel(&["queue", "ls", "mail", "-o", "json", "--redis-url", &url]).await,
    ))
    .unwrap();
    assert_eq!(listed["items"][0]["depth"]["waiting"], 2);
    let table = good(umbel(&["queue", "ls", "mail", "none", "--redis-url", &url]).await);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        rows[0],
        [
            "NAME",
            "READY",
            "WAITING",
            "IN-FLIGHT",
            "DELAYED",
            "DEAD",
            "PAUSED",
            "SEEN"
        ]
    );
    assert_eq!(rows[1], ["mail", "-", "2", "0", "0", "0", "false", "0s"]);
    assert_eq!(rows[2], ["none", "-", "0", "0", "0", "0", "false", "0s"]);
}

struct Stage {
    home: ControlPlane,
    target: Target,
}

static STAGE: OnceCell<Stage> = OnceCell::const_new();

/// A home with our kinds, and a target.
async fn stage() -> &'static Stage {
    STAGE
        .get_or_init(|| async {
            let home = ControlPlane::start().await;
            let target = home.target("c2").await;
            let definitions = Api::<CustomResourceDefinition>::all(home.client().await);
            for kind in ["taskqueues", "workerpools", "periodictasks", "targetclusters"] {
                let text = std::fs::read_to_string(repository().join(format!("crds/{kind}.yaml"))).unwrap();
                let definition: CustomResourceDefinition = serde_saphyr::from_str(&text).unwrap();
                definitions.create(&PostParams::default(), &definition).await.unwrap();
            }
            for kind in ["taskqueues", "workerpools", "periodictasks", "targetclusters"] {
                eventually(Duration::from_secs(20), "the kind is served", async || {
                    let status = definitions.get(&format!("{kind}.umbel.dev")).await.unwrap().status;
                    let conditions = status.and_then(|status| status.conditions).unwrap_or_default();
                    conditions
                        .iter()
                        .any(|condition| condition.type_ == "Established" && condition.status == "True")
                })
                .await;
            }
            Stage { home, target }
        })
        .await
}

/// A namespace at home, with the flags that lead there.
async fn place(namespace: &str) -> (Client, [String; 4]) {
    let stage = stage().await;
    let client = stage.home.client().await;
    let object = object(json!({"metadata": {"name": namespace}}));
    Api::<Namespace>::all(client.clone())
        .create(&PostParams::default(), &object)
        .await
        .unwrap();
    let flags = [
        "--kubeconfig".to_owned(),
        stage.home.kubeconfig().display().to_string(),
        "-n".to_owned(),
        namespace.to_owned(),
    ];
    (client, flags)
}

async fn at(flags: &[String; 4], args: &[&str]) -> Done {
    let all: Vec<&str> = flags.iter().map(String::as_str).chain(args.iter().copied()).collect();
    umbel(&all).await
}

/// The line of a kubeconfig that holds the private key.
fn key_line(text: &str) -> String {
    text.lines()
        .find(|line| line.contains("client-key-data:"))
        .unwrap()
        .to_owned()
}

/// How a case spoils a kubeconfig.
type Change = Box<dyn Fn(String) -> String>;

/// A kubeconfig file of one's own with the target's admin in it, changed by `change`.
fn kubeconfig(folder: &TempDir, change: impl FnOnce(String) -> String) -> PathBuf {
    let file = folder.path().join("kubeconfig");
    let target = &STAGE.get().unwrap().target.kubeconfig;
    std::fs::write(&file, change(std::fs::read_to_string(target).unwrap())).unwrap();
    file
}

#[tokio::test]
async fn a_joined_cluster_is_a_secret_that_workers_accept_and_a_target_with_labels() {
    let (client, flags) = place("join").await;
    let folder = TempDir::new("join");
    // The CA in a file beside the kubeconfig, as many tools write it.
    let file = kubeconfig(&folder, |text| {
        let line = text
            .lines()
            .find(|line| line.contains("certificate-authority-data:"))
            .unwrap()
            .to_owned();
        let data: k8s_openapi::ByteString = object(json!(line.split(": ").nth(1).unwrap().trim()));
        std::fs::write(folder.path().join("ca.pem"), data.0).unwrap();
        text.replace(&line, "    certificate-authority: ca.pem")
    });
    let from = file.display().to_string();
    let join = [
        "cluster",
        "join",
        "c2",
        "--as-is",
        "--from-kubeconfig",
        &from,
        "--from-context",
        "c2",
        "--label",
        "env=prod",
    ];
    let joined = at(&flags, &join).await;
    assert!(
        joined
            .err
            .starts_with("TargetCluster join/c2 leads to https://127.0.0.1:"),
        "{}",
        joined.err
    );
    assert_eq!(good(joined), "targetcluster.umbel.dev/c2\n");

    let target = Api::<TargetCluster>::namespaced(client.clone(), "join")
        .get("c2")
        .await
        .unwrap();
    assert_eq!(target.metadata.labels.unwrap()["env"], "prod");
    let reference = target.spec.kubeconfig_secret_ref;
    let secret = Api::<Secret>::namespaced(client.clone(), "join")
        .get(&reference.name)
        .await
        .unwrap();
    umbel_clusters::kubeconfig::parse(&secret.data.unwrap()[&reference.key].0)
        .map(drop)
        .unwrap();
    // Through the registry, as a worker goes.
    let access = umbel_clusters::Access {
        name: "c2".into(),
        secret: reference.name,
        key: reference.key,
        ..umbel_clusters::Access::default()
    };
    let registry = umbel_clusters::Registry::new(client, "join", vec![access]);
    let turn = registry.target("c2").await.unwrap();
    turn.ask(
        "read its version",
        Duration::from_secs(10),
        turn.client().apiserver_version(),
    )
    .await
    .unwrap();

    let again = [
        "cluster",
        "join",
        "c2",
        "--as-is",
        "--from-kubeconfig",
        &from,
        "--from-context",
        "c2",
        "-o",
        "json",
    ];
    let updated: Value = serde_json::from_str(&good(at(&flags, &again).await)).unwrap();
    assert_eq!(
        updated["metadata"]["labels"],
        Value::Null,
        "labels are those of the last join"
    );
}

#[tokio::test]
async fn a_context_that_workers_would_refuse_is_refused_and_nothing_is_written() {
    let (client, flags) = place("refuse").await;
    let secrets = Api::<Secret>::namespaced(client.clone(), "refuse");
    let cases: [(&str, Change, &str); 4] = [
        (
            "c2",
            Box::new(|text| {
                let line = key_line(&text);
                text.replace(&line, "    exec: {command: touch, args: [canary]}")
            }),
            "user: `exec` is not allowed: a worker starts no program",
        ),
        (
            "c2",
            Box::new(|text| text.replace("server: https", "server: http")),
            "cluster: `server` is not https",
        ),
        (
            "c2",
            Box::new(|text| {
                let line = key_line(&text);
                text.replace(&line, "    client-key: /nowhere/key.pem")
            }),
            "read client-key from /nowhere/key.pem",
        ),
        ("other", Box::new(|text| text), "no context other; there are: c2"),
    ];
    for (context, change, words) in cases {
        let folder = TempDir::new("refuse");
        let from = kubeconfig(&folder, change).display().to_string();
        let done = at(
            &flags,
            &[
                "cluster",
                "join",
                "c2",
                "--as-is",
                "--from-kubeconfig",
                &from,
                "--from-context",
                context,
            ],
        )
        .await;
        assert_eq!((done.code, done.out.as_str()), (1, ""));
        assert!(
            done.err.contains(words) && done.err.lines().count() == 1,
            "{}",
            done.err
        );
    }
    assert!(secrets.get_opt("umbel-cluster-c2").await.unwrap().is_none());

    let foreign = object(json!({"metadata": {"name": "umbel-cluster-c2"}, "stringData": {"kubeconfig": "theirs"}}));
    secrets.create(&PostParams::default(), &foreign).await.unwrap();
    let folder = TempDir::new("refuse");
    let from = kubeconfig(&folder, |text| text).display().to_string();
    let done = at(
        &flags,
        &[
            "cluster",
            "join",
            "c2",
            "--as-is",
            "--from-kubeconfig",
            &from,
            "--from-context",
            "c2",
        ],
    )
    .await;
    assert!(
        done.code == 1 && done.err.contains("exists and is not Umbel's"),
        "{}",
        done.err
    );
    assert_eq!(
        secrets.get("umbel-cluster-c2").await.unwrap().data.unwrap()["kubeconfig"].0,
        b"theirs"
    );
}

#[tokio::test]
async fn a_task_queue_leads_to_its_broker_by_its_secret() {
    let (client, flags) = place("queues").await;
    let redis = Redis::start().await;
    let none = at(&flags, &["task", "send", "t"]).await;
    assert_eq!(
        (none.code, none.err.as_str()),
        (2, "error: namespace queues has no TaskQueue; say -n or --redis-url\n")
    );
    assert!(
        at(&flags, &["queue", "ls"])
            .await
            .err
            .contains("namespace queues has no TaskQueue")
    );

    let secret = object(json!({"metadata": {"name": "redis"}, "stringData": {"url": redis.url()}}));
    Api::<Secret>::namespaced(client.clone(), "queues")
        .create(&PostParams::default(), &secret)
        .await
        .unwrap();
    let queues = Api::<TaskQueue>::namespaced(client.clone(), "queues");
    let queue = |name: &str, secret: &str| -> TaskQueue {
        object(
            json!({"apiVersion": "umbel.dev/v1alpha1", "kind": "TaskQueue", "metadata": {"name": name}, "spec": {
            "queueName": format!("Celery.{name}"),
            "broker": {"redis": {"urlSecretRef": {"name": secret, "key": "url"}, "keyPrefix": "p:"}}}}),
        )
    };
    queues
        .create(&PostParams::default(), &queue("mail", "redis"))
        .await
        .unwrap();
    good(at(&flags, &["task", "send", "t"]).await);
    let mut connection = redis.connection().await;
    let length: i64 = umbel_testkit::redis::cmd("LLEN")
        .arg("p:Celery.mail")
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(length, 1);

    queues
        .create(&PostParams::default(), &queue("lost", "absent"))
        .await
        .unwrap();
    let several = at(&flags, &["task", "send", "t"]).await;
    assert!(
        several.code == 2 && several.err.contains("several TaskQueues; say --queue: lost, mail"),
        "{}",
        several.err
    );
    let status = json!({"status": {"depth": {"waiting": 7, "inFlight": 2, "delayed": 1, "dead": 0, "quarantined": 0},
        "lastSampleTime": "2026-01-01T00:00:00Z",
        "conditions": [{"type": "Ready", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    queues
        .patch_status("mail", &PatchParams::default(), &Patch::Merge(&status))
        .await
        .unwrap();
    let table = good(at(&flags, &["queue", "ls"]).await);
    let mail: Vec<&str> = table
        .lines()
        .find(|line| line.starts_with("mail"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(&mail[..6], ["mail", "True", "7", "2", "1", "0"]);

    let live = at(&flags, &["queue", "ls", "--live", "-o", "wide"]).await;
    assert!(
        live.err
            .contains("TaskQueue lost: read Secret queues/absent: secrets \"absent\" not found"),
        "{}",
        live.err
    );
    assert_eq!(live.code, 1);
    let mail: Vec<String> = live
        .out
        .lines()
        .find(|line| line.contains("mail"))
        .unwrap()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    assert_eq!(&mail[..5], ["queues", "mail", "Celery.mail", "True", "1"]);
    assert_eq!(
        good(at(&flags, &["queue", "ls", "-o", "name"]).await),
        "taskqueue.umbel.dev/lost\ntaskqueue.umbel.dev/mail\n"
    );
}

/// TLS with a certificate of one's own, and Sentinels: as the object and its Secrets say, with no flag.
#[tokio::test]
async fn a_task_queue_says_how_tls_and_sentinels_are_spoken_to() {
    let (client, flags) = place("secured").await;
    let secrets = Api::<Secret>::namespaced(client.clone(), "secured");
    let queues = Api::<TaskQueue>::namespaced(client.clone(), "secured");
    let secret = async |name: &str, data: Value| {
        let secret = object(json!({"metadata": {"name": name}, "stringData": data}));
        secrets.create(&PostParams::default(), &secret).await.unwrap();
    };
    let queue = async |name: &str, redis: Value| {
        let queue = object(json!({"metadata": {"name": name}, "spec": {"broker": {"redis": redis}}}));
        queues.create(&PostParams::default(), &queue).await.unwrap();
    };
    let length = async |redis: &Redis, list: &str| -> i64 {
        let mut connection = redis.connection().await;
        let mut command = umbel_testkit::redis::cmd("LLEN");
        command.arg(list).query_async(&mut connection).await.unwrap()
    };

    let authority = Authority::new("ours");
    let (server, own) = (
        authority.issue("server", "DNS:redis.internal", true),
        authority.issue("client", "DNS:umbel", true),
    );
    let port = free_port();
    let settings = server.settings(&authority, port, true);
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let redis = Redis::start_kind(ServerKind::Redis, &settings).await;
    let file = |path: &PathBuf| std::fs::read_to_string(path).unwrap();
    secret("tls-url", json!({"url": format!("rediss://127.0.0.1:{port}/0")})).await;
    secret("ca", json!({"ca.crt": file(&authority.certificate())})).await;
    secret(
        "own",
        json!({"tls.crt": file(&own.certificate), "tls.key": file(&own.key)}),
    )
    .await;
    let tls = json!({"urlSecretRef": {"name": "tls-url", "key": "url"}, "tls": {
        "caSecretRef": {"name": "ca", "key": "ca.crt"}, "clientCertSecretRef": {"name": "own"}, "serverName": "redis.internal"}});
    queue("tls", tls.clone()).await;
    good(at(&flags, &["task", "send", "t", "--queue", "tls"]).await);
    assert_eq!(length(&redis, "tls").await, 1);
    let mut wrong = tls;
    wrong["tls"].as_object_mut().unwrap().remove("serverName");
    queue("other-name", wrong).await;
    let refused = at(&flags, &["task", "send", "t", "--queue", "other-name"]).await;
    assert!(
        refused.code == 1 && refused.err.contains("127.0.0.1"),
        "{}",
        refused.err
    );
    assert_eq!(length(&redis, "other-name").await, 0);

    let primary = Redis::start().await;
    let _replica = Redis::replica_of(primary.port(), &[]).await;
    let sentinels = Sentinels::watch(primary.port(), 1, "").await;
    let url = sentinels.url();
    secret("sentinels", json!({"url": url.split('?').next().unwrap()})).await;
    queue(
        "watched",
        json!({"urlSecretRef": {"name": "sentinels", "key": "url"}, "sentinel": {"masterName": sentinels.master()}}),
    )
    .await;
    good(at(&flags, &["task", "send", "t", "--queue", "watched"]).await);
    assert_eq!(length(&primary, "watched").await, 1);

    // A queue that is full refuses, and says so.
    let umbel = umbel_broker::Broker::connect(&umbel_broker::Config::new(&primary.url()))
        .await
        .unwrap();
    let bound = umbel_broker::Bound {
        most: 2,
        on_full: umbel_broker::OnFull::Refuse,
    };
    let policy = umbel_broker::QueuePolicy {
        bound: Some(bound),
        ..umbel_broker::QueuePolicy::default()
    };
    umbel.apply_queue_policy("watched", &policy).await.unwrap();
    let full = at(&flags, &["task", "send", "t", "--queue", "watched", "--count", "3"]).await;
    assert_eq!(full.code, 1);
    assert!(
        full.err
            .contains("the queue watched is full: 2 messages may wait there"),
        "{}",
        full.err
    );
    assert_eq!(length(&primary, "watched").await, 2, "what found room was sent");
    // No replica: nothing counts as sent.
    let missed = at(
        &flags,
        &["task", "send", "t", "--queue", "tls", "--durability", "replicated"],
    )
    .await;
    assert!(
        missed.code == 1 && missed.err.contains("0 of 1 replicas have it"),
        "{}",
        missed.err
    );
}

#[tokio::test]
async fn a_pool_is_explained_from_its_status() {
    let (client, flags) = place("pools").await;
    let pools = Api::<WorkerPool>::namespaced(client, "pools");
    let pool = object(
        json!({"apiVersion": "umbel.dev/v1alpha1", "kind": "WorkerPool", "metadata": {"name": "w"}, "spec": {"queues": [{"name": "q"}]}}),
    );
    pools.create(&PostParams::default(), &pool).await.unwrap();
    let unseen = good(at(&flags, &["pool", "explain", "w"]).await);
    assert_eq!(
        unseen,
        "WorkerPool pools/w\n  Says       nothing is known yet: no operator has seen this pool\n"
    );

    let sentence = "3 pods (3 ready, 1 busy, 0 draining), 1 wanted: demand asks for 1. Held back by nothing. Next: 2 pods go, each when it is idle.";
    let status = json!({"status": {"replicas": 3, "readyReplicas": 3, "busyReplicas": 1, "idleReplicas": 2, "desiredReplicas": 1,
        "recommendedReplicas": 1, "drainingReplicas": 0, "slots": {"total": 6, "busy": 1},
        "conditions": [{"type": "ScalingActive", "status": "True", "reason": "LessDemand", "message": sentence,
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    pools
        .patch_status("w", &PatchParams::default(), &Patch::Merge(&status))
        .await
        .unwrap();
    let lines = good(at(&flags, &["pool", "explain", "w"]).await);
    assert_eq!(
        lines,
        format!("WorkerPool pools/w\n  Says       {sentence}\n  Slots      1 of 6 in use\n")
    );
    let listed = good(at(&flags, &["pool", "ls", "-o", "wide"]).await);
    let row: Vec<&str> = listed.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(
        row[..12],
        [
            "pools",
            "w",
            "q",
            "-",
            "3",
            "1",
            "1",
            "0",
            "1/6",
            "-",
            "-",
            "LessDemand"
        ],
        "{listed}"
    );
    assert!(listed.trim_end().ends_with(sentence), "{listed}");

    // Nobody empties the pool here, so the wait ends without success; what is wanted stands in the spec.
    let late = at(&flags, &["pool", "drain", "w", "--timeout", "1s"]).await;
    assert!(
        late.code == 1
            && late
                .err
                .contains("WorkerPool pools/w has 3 pods after 1s; it goes on to empty itself"),
        "{}",
        late.err
    );
    let spec = async || pools.get("w").await.unwrap().spec.suspend;
    assert!(spec().await);
    let empty =
        json!({"status": {"replicas": 0, "observedGeneration": pools.get("w").await.unwrap().metadata.generation}});
    pools
        .patch_status("w", &PatchParams::default(), &Patch::Merge(&empty))
        .await
        .unwrap();
    let done = at(&flags, &["pool", "drain", "w", "--timeout", "1m"]).await;
    assert!(
        done.code == 0 && done.err.contains("WorkerPool pools/w is empty"),
        "{}",
        done.err
    );
    good(at(&flags, &["pool", "resume", "w"]).await);
    assert!(!spec().await);
    let absent = at(&flags, &["pool", "explain", "nope"]).await;
    assert!(
        absent.code == 1
            && absent
                .err
                .contains("read WorkerPool pools/nope: workerpools.umbel.dev \"nope\" not found"),
        "{}",
        absent.err
    );
}

#[tokio::test]
async fn the_version_of_both_sides_is_said() {
    let (_, flags) = place("versions").await;
    let both = good(at(&flags, &["version"]).await);
    assert!(
        both.starts_with(concat!("umbel ", env!("CARGO_PKG_VERSION"), "\nkubernetes v1.")),
        "{both}"
    );
}

#[tokio::test]
async fn schedules_are_listed_run_and_paused() {
    let (client, flags) = place("schedules").await;
    let schedules = Api::<PeriodicTask>::namespaced(client, "schedules");
    let schedule = object(
        json!({"apiVersion": "umbel.dev/v1alpha1", "kind": "PeriodicTask", "metadata": {"name": "nightly"},
        "spec": {"schedule": {"cron": "0 2 * * *"}, "timeZone": "Europe/Berlin",
            "taskTemplate": {"queueRef": {"name": "q"}, "task": "proj.report"}}}),
    );
    schedules.create(&PostParams::default(), &schedule).await.unwrap();
    let row = |listed: &str| -> Vec<String> {
        let last = listed.lines().last().unwrap();
        last.split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let listed = good(at(&flags, &["periodic", "ls"]).await);
    assert_eq!(
        row(&listed)[..3],
        ["nightly", "0 2 * * * Europe/Berlin", "-"],
        "{listed}"
    );

    assert!(good(at(&flags, &["periodic", "pause", "nightly"]).await).contains("yes"));
    assert!(schedules.get("nightly").await.unwrap().spec.suspend);
    assert!(good(at(&flags, &["periodic", "pause", "nightly"]).await).contains("no"));
    assert!(good(at(&flags, &["periodic", "resume", "nightly"]).await).contains("yes"));
    assert!(!schedules.get("nightly").await.unwrap().spec.suspend);

    // No operator answers here.
    let done = at(&flags, &["periodic", "run", "nightly", "--timeout", "0s"]).await;
    assert_eq!(done.code, 1);
    assert!(done.out.contains("not answered yet"), "{}", done.out);
    let asked = |task: &PeriodicTask| task.metadata.annotations.clone().unwrap_or_default();
    let before = asked(&schedules.get("nightly").await.unwrap());
    assert!(!before["umbel.dev/run-now-by"].is_empty(), "{before:?}");

    // One that does is played.
    for (outcome, code) in [("Succeeded", 0), ("Failed", 1)] {
        let before = asked(&schedules.get("nightly").await.unwrap());
        let run = tokio::spawn({
            let flags = flags.clone();
            async move { at(&flags, &["periodic", "run", "nightly", "--wait", "--timeout", "60s"]).await }
        });
        let mut text = String::new();
        eventually(Duration::from_secs(30), "it asks", async || {
            let now = asked(&schedules.get("nightly").await.unwrap());
            text = now["umbel.dev/run-now"].clone();
            text != before["umbel.dev/run-now"]
        })
        .await;
        let status = json!({"status": {
            "lastRequest": {"asked": text, "answer": "fired at noon"},
            "recent": [{"slot": text, "outcome": outcome, "total": 1, "isRequest": true}],
        }});
        schedules
            .patch_status("nightly", &PatchParams::default(), &Patch::Merge(&status))
            .await
            .unwrap();
        let done = run.await.unwrap();
        assert_eq!(done.code, code, "{}{}", done.out, done.err);
        assert!(
            done.out.contains(outcome) && done.out.contains("fired at noon"),
            "{}",
            done.out
        );
    }
    let refused = json!({"status": {"lastRequest": null, "recent": null}});
    let forget = Patch::Merge(&refused);
    schedules
        .patch_status("nightly", &PatchParams::default(), &forget)
        .await
        .unwrap();
    let absent = at(&flags, &["periodic", "run", "daily"]).await;
    assert!(absent.code != 0 && absent.err.contains("daily"), "{}", absent.err);
}
