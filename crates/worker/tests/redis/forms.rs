//! TLS, users with few rights, sockets, rotated passwords, other servers.

use std::path::Path;
use std::time::{Duration, Instant};

use umbel_broker::{Broker, Config, Durability, Pem, Tls};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Authority, Event, History, Issued, Redis, ServerKind, TempDir, eventually, free_port};

use crate::stage::{Admin, goes_through, ids, send, settled, told};
use crate::support::{SOON, admitted, test_worker};

fn text(path: &Path) -> &str {
    path.to_str().expect("a name of ours")
}

/// A server that speaks TLS on a port of its own, and plainly on another for the test to look into it.
async fn secured(settings: &[String]) -> Redis {
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    Redis::start_kind(ServerKind::Redis, &settings).await
}

fn config(port: u16, ca: Option<&Authority>, client: Option<&Issued>, name: Option<&str>) -> Config {
    let mut config = Config::new(&format!("rediss://127.0.0.1:{port}/0"));
    config.connect_timeout = Duration::from_secs(2);
    config.tls = Some(Tls {
        authorities: ca.map(|ca| Pem::File(ca.certificate())),
        certificate: client.map(|client| (Pem::File(client.certificate.clone()), Pem::File(client.key.clone()))),
        server_name: name.map(ToOwned::to_owned),
    });
    config
}

/// What happened, with its causes.
async fn outcome(config: &Config) -> Result<(), String> {
    let broker = Broker::connect(config).await.map_err(|err| {
        let mut words = err.to_string();
        let mut source = std::error::Error::source(&err);
        while let Some(cause) = source {
            words = format!("{words}: {cause}");
            source = cause.source();
        }
        assert_eq!(err.trouble().label(), "tls", "{words}");
        words
    })?;
    broker.time().await.map(|_| ()).map_err(|err| err.to_string())
}

#[tokio::test]
async fn r18_tls_is_refused_with_its_reason_and_never_falls_back() {
    let (ca, other) = (Authority::new("ours"), Authority::new("theirs"));
    let good = ca.issue("server", "IP:127.0.0.1,DNS:redis.internal", true);
    let expired = ca.issue("old", "IP:127.0.0.1", false);
    let elsewhere = ca.issue("elsewhere", "DNS:redis.internal", true);
    let (client, stranger) = (
        ca.issue("client", "DNS:worker", true),
        other.issue("stranger", "DNS:worker", true),
    );
    let ports: Vec<u16> = (0..5).map(|_| free_port()).collect();
    let mut ancient = good.settings(&ca, ports[4], false);
    ancient.extend(
        [
            "--tls-protocols",
            "TLSv1 TLSv1.1",
            "--tls-ciphers",
            "DEFAULT:@SECLEVEL=0",
        ]
        .map(String::from),
    );
    let servers = [
        secured(&good.settings(&ca, ports[0], false)).await,
        secured(&expired.settings(&ca, ports[1], false)).await,
        secured(&elsewhere.settings(&ca, ports[2], false)).await,
        secured(&good.settings(&ca, ports[3], true)).await,
        secured(&ancient).await,
    ];
    let plain = servers[0].port();
    let table = [
        ("good", config(ports[0], Some(&ca), None, None), None),
        (
            "both show a certificate",
            config(ports[3], Some(&ca), Some(&client), None),
            None,
        ),
        (
            "another name, told",
            config(ports[2], Some(&ca), None, Some("redis.internal")),
            None,
        ),
        (
            "expired",
            config(ports[1], Some(&ca), None, None),
            Some("certificate has expired"),
        ),
        (
            "another authority",
            config(ports[0], Some(&other), None, None),
            Some("not trusted (wrong CA?)"),
        ),
        (
            "the machine's authorities",
            config(ports[0], None, None, None),
            Some("not trusted (wrong CA?)"),
        ),
        (
            "another name",
            config(ports[2], Some(&ca), None, None),
            Some("is not for the name 127.0.0.1"),
        ),
        (
            "no client certificate",
            config(ports[3], Some(&ca), None, None),
            Some("asks for a client certificate"),
        ),
        (
            "a stranger's certificate",
            config(ports[3], Some(&ca), Some(&stranger), None),
            Some("refuses our client certificate"),
        ),
        (
            "TLS 1.0 and 1.1 only",
            config(ports[4], Some(&ca), None, None),
            Some("no TLS 1.2"),
        ),
        (
            "a server without TLS",
            config(plain, Some(&ca), None, None),
            Some("speak TLS?"),
        ),
    ];
    for (case, config, reason) in table {
        match (outcome(&config).await, reason) {
            (Ok(()), None) => {}
            (Err(words), Some(reason)) => assert!(words.contains(reason), "{case}: {words}"),
            (outcome, _) => panic!("{case}: {outcome:?}"),
        }
    }
    // Asked for, but not in the address: refused before anything is sent.
    let mut clear = config(plain, Some(&ca), None, None);
    clear.url = format!("redis://:geheim@127.0.0.1:{plain}/0");
    let err = Broker::connect(&clear).await.err().expect("it is refused").to_string();
    assert!(err.contains("rediss://") && !err.contains("geheim"), "{err}");
}

#[tokio::test]
async fn r18_a_worker_runs_over_mutual_tls_and_comes_back_when_its_authority_is_mended() {
    let (ca, other) = (Authority::new("ours"), Authority::new("theirs"));
    let port = free_port();
    let redis = secured(&ca.issue("server", "DNS:redis.internal", true).settings(&ca, port, true)).await;
    let client = ca.issue("client", "DNS:worker", true);
    let folder = TempDir::new("trust");
    let trusted = folder.path().join("ca.pem");
    std::fs::copy(other.certificate(), &trusted).expect("copied");
    let history = History::new();
    let flags = [
        "--redis-ca-file",
        text(&trusted),
        "--redis-cert-file",
        text(&client.certificate),
        "--redis-key-file",
        text(&client.key),
        "--redis-server-name",
        "redis.internal",
    ];
    let url = format!("rediss://127.0.0.1:{port}/0");
    let mut worker = test_worker(&url, &history, &flags);
    worker.says(SOON, "wrong CA?").await;
    assert!(worker.exit().is_none(), "it waits");
    let mut connection = redis.connection().await;
    assert_eq!(
        connection.exists("umbel:workers").await,
        Ok(false),
        "nothing went another way"
    );
    std::fs::copy(ca.certificate(), &trusted).expect("copied");
    admitted(&redis, 1).await;
    goes_through(&mut connection, &history, "over-tls").await;
    settled(&mut connection).await;
}

#[tokio::test]
async fn a_worker_runs_over_a_socket() {
    let folder = TempDir::new("socket");
    let path = folder.path().join("redis.sock");
    let redis = Redis::start_with(&["--unixsocket", text(&path)]).await;
    let history = History::new();
    let _worker = test_worker(&format!("redis+socket://{}?virtual_host=3", text(&path)), &history, &[]);
    let mut connection = redis.connection_to(3).await;
    goes_through(&mut connection, &history, "over-a-socket").await;
}

#[tokio::test]
async fn r17_a_new_password_in_the_file_is_used_without_a_restart() {
    let redis = Redis::start().await;
    let mut connection = redis.connection().await;
    told(
        &mut connection,
        &["ACL", "SETUSER", "w", "on", ">old", "~*", "&*", "+@all"],
    )
    .await;
    let folder = TempDir::new("secret");
    let file = folder.path().join("url");
    let write = |password: &str| {
        // As a mounted Secret changes: another file takes the name.
        let next = folder.path().join("next");
        std::fs::write(&next, format!("redis://w:{password}@127.0.0.1:{}/0\n", redis.port())).expect("written");
        std::fs::rename(&next, &file).expect("renamed");
    };
    write("old");
    let history = History::new();
    let mut worker = test_worker("", &history, &["--redis-url-file", text(&file)]);
    admitted(&redis, 1).await;
    send(&mut connection, &history, &ids("running", 4), 3.0)
        .await
        .expect("sent");
    eventually(SOON, "they run", async || history.total(Event::Started) == 4).await;
    // The password changes while tasks run; first at the server, and every connection of the user ends.
    told(&mut connection, &["ACL", "SETUSER", "w", "resetpass", ">new"]).await;
    told(&mut connection, &["CLIENT", "KILL", "USER", "w"]).await;
    worker.says(SOON, "WRONGPASS").await;
    write("new");
    let took = goes_through(&mut connection, &history, "after").await;
    assert!(took < Duration::from_secs(30), "{took:?}");
    // Now the file first, with both passwords good: every connection is made anew, and the old password goes unused.
    told(&mut connection, &["ACL", "SETUSER", "w", ">newer"]).await;
    let of_worker = async |connection: &mut _| {
        let list: String = umbel_testkit::redis::cmd("CLIENT")
            .arg("LIST")
            .query_async(connection)
            .await
            .expect("the server answers");
        let ids = list.lines().filter(|line| line.contains("user=w"));
        ids.filter_map(|line| line.split(' ').next().map(ToOwned::to_owned))
            .collect::<Vec<String>>()
    };
    let before = of_worker(&mut connection).await;
    assert!(!before.is_empty());
    let begin = Instant::now();
    write("newer");
    eventually(Duration::from_secs(30), "every connection is a new one", async || {
        let now = of_worker(&mut connection).await;
        !now.is_empty() && now.iter().all(|id| !before.contains(id))
    })
    .await;
    assert!(begin.elapsed() < Duration::from_secs(30));
    told(&mut connection, &["ACL", "SETUSER", "w", "<new"]).await;
    told(&mut connection, &["CLIENT", "KILL", "USER", "w"]).await;
    goes_through(&mut connection, &history, "at-last").await;
    settled(&mut connection).await;
    let verdict = history.verdict(&[]);
    assert_eq!((verdict.lost.len(), verdict.rerun), (0, 0), "{verdict}");
    assert!(worker.exit().is_none(), "the same process: {}", worker.tail());
    for password in ["old", "newer"] {
        assert!(
            !worker.log().contains(&format!("w:{password}@")),
            "no password in the log"
        );
    }
}

#[tokio::test]
async fn r19_narrow_rights_are_named_by_command_and_by_key_without_a_crash_loop() {
    let redis = Redis::start().await;
    let mut connection = redis.connection().await;
    let history = History::new();
    let admin = Admin::new();
    told(
        &mut connection,
        &["ACL", "SETUSER", "w", "on", ">pw", "~*", "&*", "+@all", "-hset"],
    )
    .await;
    let url = format!("redis://w:pw@127.0.0.1:{}/0", redis.port());
    let mut worker = test_worker(&url, &history, &["--admin-addr", admin.address()]);
    worker.says(SOON, "command hset").await;
    told(
        &mut connection,
        &[
            "ACL",
            "SETUSER",
            "w",
            "+hset",
            "resetkeys",
            "~umbel:*",
            "~celery-task-meta-*",
        ],
    )
    .await;
    send(&mut connection, &history, &ids("kept", 3), 0.0)
        .await
        .expect("sent");
    worker.says(SOON, "\"key\":\"celery\"").await;
    assert!(worker.exit().is_none(), "no crash loop: {}", worker.tail());
    assert_eq!(history.total(Event::Started), 0);
    eventually(SOON, "it is counted", async || {
        admin.metric("umbel_broker_errors_total", "no_permission").await > 0.0
    })
    .await;
    told(&mut connection, &["ACL", "SETUSER", "w", "~*"]).await;
    goes_through(&mut connection, &history, "allowed").await;
    settled(&mut connection).await;
    assert!(history.verdict(&[]).lost.is_empty());
    let lines = worker.log().lines().filter(|line| line.contains("NOPERM")).count();
    assert!(lines < 20, "it does not flood its log: {lines} lines");
}

#[tokio::test]
async fn r28_both_servers_are_known_and_run_everything_and_a_cluster_is_refused() {
    for (kind, name) in [(ServerKind::Redis, "redis"), (ServerKind::Valkey, "valkey")] {
        let redis = Redis::start_kind(kind, &["--appendonly", "yes"]).await;
        let survey = Broker::connect(&Config::new(&redis.url()))
            .await
            .expect("the server runs")
            .survey()
            .await
            .expect("it can be used");
        assert_eq!(
            (survey.software.as_str(), survey.durability),
            (name, Some(Durability::Basic))
        );
        let history = History::new();
        let mut worker = test_worker(&redis.url(), &history, &[]);
        worker.says(SOON, &format!("\"software\":\"{name}\"")).await;
        let mut connection = redis.connection().await;
        send(&mut connection, &history, &ids(name, 50), 0.01)
            .await
            .expect("sent");
        settled(&mut connection).await;
        assert_eq!(history.verdict(&[]).done, 50, "{name}");
    }
    let cluster = Redis::start_with(&["--cluster-enabled", "yes"]).await;
    let history = History::new();
    let mut worker = test_worker(&cluster.url(), &history, &[]);
    worker.says(SOON, "Redis Cluster").await;
    assert!(worker.exit().is_none());
}
