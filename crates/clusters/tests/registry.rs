//! The registry with real Secrets at home, a real target, and rights as a pool's worker has them.

#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use umbel_clusters::registry::accesses;
use umbel_clusters::{Access, Error, Registry};
use umbel_testkit::{ControlPlane, Target, eventually, free_port};

const REQUEST: Duration = Duration::from_secs(10);

struct Stage {
    home: ControlPlane,
    target: Target,
}

static STAGE: OnceCell<Stage> = OnceCell::const_new();

async fn stage() -> &'static Stage {
    STAGE
        .get_or_init(|| async {
            let home = ControlPlane::start().await;
            let target = home.target("c2").await;
            Stage { home, target }
        })
        .await
}

async fn config(kubeconfig: &Path) -> Config {
    let file = Kubeconfig::read_from(kubeconfig).unwrap();
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .unwrap()
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

async fn home(namespace: &str) -> Client {
    let client = Client::try_from(config(&stage().await.home.kubeconfig()).await).unwrap();
    let name = object(json!({"metadata": {"name": namespace}}));
    Api::<Namespace>::all(client.clone())
        .create(&PostParams::default(), &name)
        .await
        .unwrap();
    client
}

async fn write(client: &Client, namespace: &str, cluster: &str, kubeconfig: &str) -> Access {
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": cluster}, "stringData": {"kubeconfig": kubeconfig}});
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    secrets
        .patch(cluster, &PatchParams::apply("test").force(), &Patch::Apply(&secret))
        .await
        .unwrap();
    access(cluster)
}

fn access(cluster: &str) -> Access {
    Access {
        name: cluster.into(),
        secret: cluster.into(),
        key: "kubeconfig".into(),
        ..Access::default()
    }
}

async fn good() -> String {
    std::fs::read_to_string(&stage().await.target.kubeconfig).unwrap()
}

/// The target's kubeconfig with another port.
async fn at_port(port: u16) -> String {
    let good = good().await;
    let server = good
        .lines()
        .find(|line| line.contains("server:"))
        .unwrap()
        .trim()
        .to_owned();
    good.replace(&server, &format!("server: https://127.0.0.1:{port}"))
}

async fn version(registry: &Registry, cluster: &str) -> Result<String, Error> {
    let target = registry.target(cluster).await?;
    let info = target
        .ask("read its version", REQUEST, target.client().apiserver_version())
        .await?;
    Ok(info.git_version)
}

#[test]
fn the_environment_names_the_clusters() {
    let two = accesses(r#"[{"name":"a","secret":"s","key":"k"},{"name":"b","secret":"t"}]"#).unwrap();
    assert_eq!(
        two[0],
        Access {
            name: "a".into(),
            secret: "s".into(),
            key: "k".into(),
            ..Access::default()
        }
    );
    assert_eq!(two[1].key, "kubeconfig");
    assert_eq!(accesses("").unwrap(), []);
    assert!(accesses(r#"[{"name":"a","secret":"s","token":"t"}]"#).is_err());
}

#[tokio::test]
async fn a_worker_without_a_home_knows_no_cluster() {
    let err = version(&Registry::none(), "a").await.unwrap_err();
    assert!(
        err.is_permanent() && matches!(err, Error::UnknownCluster { .. }),
        "{err}"
    );
}

#[tokio::test]
async fn rights_on_one_named_secret_are_enough_and_reach_no_other() {
    let admin = home("rights").await;
    let mine = write(&admin, "rights", "mine", &good().await).await;
    let other = write(&admin, "rights", "other", &good().await).await;
    let post = PostParams::default();
    let account = object(json!({"metadata": {"name": "pool"}}));
    let accounts = Api::<ServiceAccount>::namespaced(admin.clone(), "rights");
    accounts.create(&post, &account).await.unwrap();
    let role = json!({"metadata": {"name": "pool"}, "rules": [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["mine"], "verbs": ["get", "watch"]}]});
    Api::<Role>::namespaced(admin.clone(), "rights")
        .create(&post, &object(role))
        .await
        .unwrap();
    let binding = json!({"metadata": {"name": "pool"}, "subjects": [{"kind": "ServiceAccount", "name": "pool", "namespace": "rights"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "pool"}});
    Api::<RoleBinding>::namespaced(admin.clone(), "rights")
        .create(&post, &object(binding))
        .await
        .unwrap();
    let request: TokenRequest = object(json!({"spec": {"audiences": []}, "metadata": {}}));
    let token = accounts
        .create_token_request("pool", &post, &request)
        .await
        .unwrap()
        .status
        .unwrap()
        .token;
    let mut as_pool = config(&stage().await.home.kubeconfig()).await;
    as_pool.auth_info = kube::config::AuthInfo {
        token: Some(SecretString::from(token.unwrap())),
        ..Default::default()
    };
    let registry = Registry::new(Client::try_from(as_pool).unwrap(), "rights", vec![mine, other]);

    eventually(Duration::from_secs(10), "the Role is in force", async || {
        version(&registry, "mine").await.is_ok()
    })
    .await;
    let err = version(&registry, "other").await.unwrap_err();
    assert!(
        err.to_string()
            .starts_with("cluster `other`: Secret `other`: the worker may not read it: secrets \"other\" is forbidden"),
        "{err}"
    );

    // The watch works with these rights, too: what is written is seen without a restart.
    write(&admin, "rights", "mine", "not a kubeconfig").await;
    eventually(Duration::from_secs(10), "the watch tells of the change", async || {
        matches!(version(&registry, "mine").await, Err(Error::RefusedKubeconfig { .. }))
    })
    .await;
}

#[tokio::test]
async fn a_rotated_or_deleted_secret_is_noticed_without_restart() {
    let client = home("rotate").await;
    let closed = free_port();
    let registry = Registry::new(
        client.clone(),
        "rotate",
        vec![write(&client, "rotate", "c", &at_port(closed).await).await],
    );
    let err = version(&registry, "c").await.unwrap_err();
    assert!(matches!(err, Error::Unreachable { .. }), "{err}");
    assert!(
        err.to_string().contains("not reachable: ") && err.to_string().contains("refused"),
        "{err}"
    );

    write(&client, "rotate", "c", &good().await).await;
    let begin = Instant::now();
    eventually(Duration::from_secs(30), "the new address is used", async || {
        version(&registry, "c").await.is_ok()
    })
    .await;
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "by the watch, not by a later look: {:?}",
        begin.elapsed()
    );

    Api::<Secret>::namespaced(client, "rotate")
        .delete("c", &DeleteParams::default())
        .await
        .unwrap();
    eventually(
        Duration::from_secs(10),
        "the old credential is not used any more",
        async || {
            let said = version(&registry, "c").await.map_err(|err| err.to_string());
            said == Err("cluster `c`: Secret `c`: it does not exist".to_owned())
        },
    )
    .await;
}

#[tokio::test]
async fn d08_a_watch_ends_when_its_credential_is_replaced() {
    let client = home("watch").await;
    let access = write(&client, "watch", "c", &good().await).await;
    let registry = Registry::new(client.clone(), "watch", vec![access]);
    let target = registry.target("c").await.unwrap();
    let secrets = Api::<Secret>::namespaced(target.client(), "default");
    let all = ListParams::default();
    let listed = target.ask("list", REQUEST, secrets.list(&all));
    let from = listed.await.unwrap().metadata.resource_version.unwrap();
    let params = kube::api::WatchParams::default().disable_bookmarks();
    let watch = target
        .ask("watch", REQUEST, secrets.watch(&params, &from))
        .await
        .unwrap();
    let mut watch = std::pin::pin!(watch);
    let begin = Instant::now();
    write(&client, "watch", "c", &format!("{}\n# again", good().await)).await;
    let err = loop {
        let next = tokio::time::timeout(Duration::from_secs(30), futures::StreamExt::next(&mut watch)).await;
        match next.expect("within 30 s") {
            Some(Err(err)) => break err,
            Some(Ok(_)) => {}
            None => panic!("it ended without a reason after {:?}", begin.elapsed()),
        }
    };
    let words = format!("{err:?}");
    println!("a watch ends {:?} after its credential was replaced", begin.elapsed());
    assert!(words.contains("the credential of the watch was replaced"), "{words}");
}

#[tokio::test]
async fn what_is_wrong_with_a_secret_is_said_without_its_content() {
    let client = home("wrong").await;
    let exec = good()
        .await
        .replace("users:", "users:\n- {name: x, user: {exec: {command: canary-7f3a9c}}}");
    let mut accesses = vec![access("absent"), write(&client, "wrong", "exec", &exec).await];
    let no_key = write(&client, "wrong", "no-key", "x").await;
    accesses.push(Access {
        key: "other".into(),
        ..no_key
    });
    let registry = Registry::new(client, "wrong", accesses);
    let cases = [
        ("absent", "cluster `absent`: Secret `absent`: it does not exist", false),
        (
            "no-key",
            "cluster `no-key`: Secret `no-key`: it has no key `other`",
            false,
        ),
        (
            "exec",
            "cluster `exec`: Secret `exec`: the kubeconfig must hold exactly one user, which its current context uses; it holds 2",
            true,
        ),
    ];
    for (cluster, words, is_permanent) in cases {
        let err = version(&registry, cluster).await.unwrap_err();
        assert_eq!((err.to_string().as_str(), err.is_permanent()), (words, is_permanent));
    }
}

#[tokio::test]
async fn a_refused_credential_is_an_answer_and_opens_no_circuit() {
    let client = home("expired").await;
    let good = good().await;
    let key = good.lines().find(|line| line.contains("client-key-data")).unwrap();
    let certificate = good
        .lines()
        .find(|line| line.contains("client-certificate-data"))
        .unwrap();
    let indent = &key[..key.len() - key.trim_start().len()];
    let expired = good
        .replace(key, "")
        .replace(certificate, &format!("{indent}token: canary-7f3a9c"));
    let registry = Registry::new(
        client.clone(),
        "expired",
        vec![write(&client, "expired", "c", &expired).await],
    );
    for _ in 0..5 {
        let err = version(&registry, "c").await.err();
        // `/version` may be open to everybody, so the question is one that needs rights.
        if let Some(err) = err {
            assert_eq!(err.code(), Some(401), "{err}");
        }
        // Who the cluster is, is asked first.
        let err = registry.target("c").await.err().unwrap();
        assert_eq!(err.code(), Some(401), "{err}");
        assert!(
            !err.is_permanent() && !format!("{err} {err:?}").contains("canary"),
            "{err:?}"
        );
    }
}

#[tokio::test]
async fn a_dead_target_is_left_alone_and_its_neighbour_is_not_slower() {
    let client = home("dead").await;
    let dead = write(&client, "dead", "dead", &at_port(free_port()).await).await;
    let alive = write(&client, "dead", "alive", &good().await).await;
    let registry = Registry::new(client, "dead", vec![dead, alive]);
    for _ in 0..3 {
        let err = version(&registry, "dead").await.unwrap_err();
        assert!(matches!(err, Error::Unreachable { .. }), "{err}");
    }
    let begin = Instant::now();
    for _ in 0..100 {
        let err = version(&registry, "dead").await.unwrap_err();
        assert!(matches!(err, Error::CircuitOpen { .. }), "{err}");
        assert!(
            err.retry_after().unwrap() <= Duration::from_secs(6) && !err.is_permanent(),
            "{err}"
        );
    }
    assert!(begin.elapsed() < Duration::from_millis(500), "{:?}", begin.elapsed());
    version(&registry, "alive").await.unwrap();
}

#[tokio::test]
async fn more_tasks_than_turns_are_sent_away_at_once() {
    let client = home("turns").await;
    let registry = Registry::new(
        client.clone(),
        "turns",
        vec![write(&client, "turns", "c", &good().await).await],
    );
    let mut turns = Vec::new();
    for _ in 0..5 {
        turns.push(registry.target("c").await.unwrap());
    }
    let begin = Instant::now();
    let err = registry.target("c").await.err().unwrap();
    assert!(matches!(err, Error::Busy { limit: 5, .. }) && err.is_busy(), "{err}");
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "nobody waits in a slot: {:?}",
        begin.elapsed()
    );
    turns.pop();
    version(&registry, "c").await.unwrap();
}

/// Passes connections on until it is aborted; then all of them break and no new one is taken.
async fn relay(listener: TcpListener, upstream: String) {
    let mut open = JoinSet::new();
    while let Ok((mut near, _)) = listener.accept().await {
        let upstream = upstream.clone();
        open.spawn(async move {
            let mut far = TcpStream::connect(upstream).await.unwrap();
            tokio::io::copy_bidirectional(&mut near, &mut far).await
        });
    }
}

#[tokio::test]
async fn an_outage_at_home_does_not_stop_work_at_targets_that_are_known() {
    let admin = home("outage").await;
    let known = write(&admin, "outage", "known", &good().await).await;
    let unknown = write(&admin, "outage", "unknown", &good().await).await;
    let server = stage().await.home.server();
    let upstream = server.trim_start_matches("https://").trim_end_matches('/');
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let relay = tokio::spawn(relay(listener, upstream.to_owned()));
    let mut config = config(&stage().await.home.kubeconfig()).await;
    config.cluster_url = format!("https://127.0.0.1:{port}").parse().unwrap();
    config.default_retry = false;
    let registry = Registry::new(Client::try_from(config).unwrap(), "outage", vec![known, unknown]);
    version(&registry, "known").await.unwrap();

    relay.abort();
    let err = version(&registry, "unknown").await.unwrap_err();
    assert!(
        err.to_string()
            .contains("the home cluster did not answer: not reachable"),
        "{err}"
    );
    let begin = Instant::now();
    eventually(
        Duration::from_secs(40),
        "the time without a watch is over",
        async || {
            version(&registry, "known").await.unwrap();
            begin.elapsed() > Duration::from_secs(17)
        },
    )
    .await;
}
