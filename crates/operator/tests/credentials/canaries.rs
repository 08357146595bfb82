//! Credentials show nowhere: what the operator reads of Secrets goes into no log, event, metric, object or message.

use std::fmt::Write as _;

use kube::api::{Api, DynamicObject, ListParams};
use kube::discovery::{Discovery, verbs};
use serde_json::json;
use umbel_testkit::{canaries, eventually, eventually_some, free_port};

use crate::common::{LONG, NAMESPACE, Stage, metrics};
use crate::{EXPIRING, OURS, Stranger, clusters, join, renew, says, secrets, status, token_of};

/// All objects but Secrets, as JSON.
async fn objects(client: &kube::Client) -> String {
    let mut text = String::new();
    let discovery = Discovery::new(client.clone()).run().await.expect("answered");
    for group in discovery.groups() {
        for (resource, can) in group.recommended_resources() {
            if !can.supports_operation(verbs::LIST) || resource.kind == "Secret" {
                continue;
            }
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            let list = api.list(&ListParams::default()).await.expect("answered");
            writeln!(text, "{}", serde_json::to_string(&list.items).expect("plain data")).expect("written");
        }
    }
    text
}

fn base64(text: &str) -> String {
    let text = serde_json::to_value(k8s_openapi::ByteString(text.as_bytes().to_vec())).expect("base64");
    text.as_str().expect("text").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c05_canaries_of_credentials_show_nowhere_at_the_operator() {
    let stage = Stage::start().await;
    stage.redis.set("rdbcompression", "no").await;
    let stranger = Stranger::start(&stage).await;
    stranger.allow("eu").await;
    let text = std::fs::read_to_string(&stranger.target.kubeconfig).expect("there");
    let file = kube::config::Kubeconfig::from_yaml(&text).expect("a kubeconfig");
    let cluster = file.clusters[0].cluster.clone().expect("a cluster");
    let authority = cluster.certificate_authority_data.expect("an authority");
    let authority: k8s_openapi::ByteString = serde_json::from_value(json!(authority)).expect("base64");
    let server = cluster.server.expect("a server").replace("https://", "");
    let closed = format!("127.0.0.1:{}", free_port());
    // To the one server that is there no token of these is one.
    let mut all = canaries(&server, &server, &closed, &authority.0);
    assert_eq!(all.len(), 25);
    for (number, (_, text)) in all.iter().enumerate() {
        // Whose token could be renewed: the operator tries, with what it read.
        join(&stage, &format!("c{number}"), text, renew("eu")).await;
    }
    // By discovery, too.
    let fields = json!({ "metadata": { "name": "found", "labels": { "umbel.dev/cluster": "true" } }, "stringData": { "kubeconfig": all[0].1 } });
    stage.apply("v1", "Secret", "secrets", "found", fields).await;
    // Tokens that a server takes, and one that it does not, although it is due: here whole tokens are the canaries.
    let due = stranger.kubeconfig("eu", 500, 100).await;
    join(&stage, "due", &due, renew("eu")).await;

    let token = token_of(&secrets(&stage, NAMESPACE).get("due").await.expect("there"));
    let parts: Vec<&str> = token.split('.').collect();
    // The same claims with a signature of nobody.
    let forged = format!(
        "{}.{}.{}",
        parts[0], parts[1], "canary0forged0signature0canary0forged0signature"
    );
    join(&stage, "forged", &due.replace(&token, &forged), renew("eu")).await;
    all.extend([
        (token.clone(), String::new()),
        ("canary0forged0signature".to_owned(), String::new()),
    ]);

    // Tasks for all of them, which wait in their queue.
    stage.queue("jobs").await;
    let spec = json!({ "spec": { "taskTemplate": { "queueRef": { "name": "jobs" }, "task": "umbel.cluster.sync", "targets": { "selector": {} } } } });
    stage.apply(OURS, "Task", "tasks", "all", spec).await;
    // A pool that may touch them: its environment names them.
    stage
        .pool_of("jobs", json!({ "queues": [{ "name": "jobs" }], "clusterAccess": { "selector": {} }, "scaling": { "maxReplicas": 0 } }))
        .await;
    let admin = format!("127.0.0.1:{}", free_port());
    let flags = ["--discover-namespaces", NAMESPACE];
    let operator = stage.operator(&flags, &[("UMBEL_LOG", "trace"), ("UMBEL_ADMIN_ADDR", &admin)]);

    eventually_some(LONG, "it is discovered", async || {
        clusters(&stage, NAMESPACE).get_opt("found").await.expect("answered")
    })
    .await;
    says(&stage, "due", EXPIRING, ("False", "Renewed")).await;
    let message = says(&stage, "forged", EXPIRING, ("True", "RenewalFailed")).await;
    assert!(message.contains("Unauthorized"), "{message}");
    let mut judged = 0;
    for number in 0..25 {
        let name = format!("c{number}");
        let is_accepted = eventually_some(LONG, &format!("{name} is judged"), async || {
            let status = status(&stage, &name).await;
            let found = umbel_api::condition::find(&status.conditions, "KubeconfigAccepted")?;
            Some(found.status == "True")
        })
        .await;
        judged += usize::from(is_accepted);
    }
    assert!((3..25).contains(&judged), "{judged} are accepted");
    let api: Api<umbel_api::Task> = Api::namespaced(stage.client.clone(), NAMESPACE);
    eventually(LONG, "messages are sent", async || {
        let depth = stage.broker.depths(&["jobs".to_owned()]).await.expect("answered");
        depth.queues[0].clone().expect("readable").waiting >= 25
            && api
                .get("all")
                .await
                .expect("there")
                .status
                .is_some_and(|status| status.clusters.is_some())
    })
    .await;
    all.push((
        token_of(&secrets(&stage, NAMESPACE).get("due").await.expect("there")),
        String::new(),
    ));

    let mut raw = stage.redis.connection().await;
    let _: String = redis::cmd("SAVE").query_async(&mut raw).await.expect("saved");
    let dump = std::fs::read(stage.redis.folder().join("dump.rdb")).expect("there");
    let places = [
        ("the log", operator.log()),
        ("the events", stage.events().await.join("\n")),
        ("the metrics", metrics(&admin).await),
        ("the objects", objects(&stage.client).await),
        ("the objects at the target", objects(&stranger.client).await),
        ("Redis, messages included", String::from_utf8_lossy(&dump).into_owned()),
    ];
    let log = &places[0].1;
    assert!(
        log.contains("TRACE") || log.contains("trace"),
        "the log is at its most talkative"
    );
    assert!(places[2].1.contains("umbel_") && places[3].1.contains("umbel-pool-jobs"));
    assert!(places[5].1.contains("umbel.cluster.sync"), "the dump is readable");
    for (canary, _) in &all {
        for (place, text) in &places {
            // As it is, and in base64.
            let forms = [canary.clone(), base64(canary)];
            for form in forms {
                let found = text
                    .find(&form)
                    .map(|at| &text[text.floor_char_boundary(at.saturating_sub(300))..at]);
                assert_eq!(found, None, "{} is in {place}", &canary[..canary.len().min(24)]);
            }
        }
    }
}
