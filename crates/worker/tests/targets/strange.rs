//! Answers that no API server gives: of a proxy, of a page for people, of another program.

use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use serde_json::{Value, json};

use crate::stage::{Scene, client, namespace, target};
use crate::stub::{Reply, Stub, status};

/// What says nothing of any object, each with words by which its failure is told from others.
fn strange() -> Vec<(&'static str, Reply, &'static str)> {
    let page = "<html>no such page here</html>";
    let json = |code, text: &str| Reply::Json(code, "", text.to_owned());
    let other = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound",
        "message": "no such route here", "details": {"name": "elsewhere"}});
    vec![
        ("a page", json(404, page), "no such page here</html> (404)"),
        ("a page that is found", json(200, page), "expected value"),
        ("an object of another program", json(200, "{}"), "missing field"),
        (
            "a Status that says of no object",
            status(404, "NotFound", "no such route here"),
            "no such route here (404)",
        ),
        (
            "a Status of another object",
            json(404, &other.to_string()),
            "no such route here (404)",
        ),
    ]
}

#[tokio::test]
async fn what_is_no_answer_of_an_api_server_is_no_absence() {
    let scene = Scene::new("strange").await;
    let administrator = client(&target().await).await;
    namespace(&administrator, "strange").await;
    // What is asked at this path gets this answer.
    let rule: Arc<Mutex<Option<(String, Reply)>>> = Arc::default();
    let said = Arc::clone(&rule);
    let stub = Stub::before(&target().await, move |asked| {
        let said = said.lock().unwrap();
        match &*said {
            Some((path, reply)) if asked.method == "GET" && asked.is(path) => reply.clone(),
            _ => Reply::Pass,
        }
    })
    .await;
    scene.secret("c", &stub.kubeconfig("t")).await;
    let _worker = scene
        .worker(
            &[("c", json!({"limits": {"qps": 1000, "burst": 1000}}))],
            &["--retry-max-attempts", "1"],
        )
        .await;
    let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "strange"}});
    let set = |names: &[&str]| {
        json!({"cluster": "c", "namespace": "strange", "applySet": "shop",
            "manifests": names.iter().map(|name| map(name)).collect::<Vec<_>>()})
    };
    let run = async |job: &str, kwargs: &Value| {
        let id = scene.send(&format!("umbel.cluster.{job}"), kwargs).await;
        scene.result(&id).await
    };
    run("apply", &set(&["a", "b"])).await.unwrap();

    let object = |kind: &str, version: &str, name: &str| json!({"apiVersion": version, "kind": kind, "namespace": "strange", "name": name});
    let delete = json!({"cluster": "c", "objects": [object("ConfigMap", "v1", "b")]});
    let unserved = json!({"cluster": "c", "objects": [object("Widget", "strange.example.com/v1", "w")]});
    let mut wait = object("ConfigMap", "v1", "b");
    wait["cluster"] = json!("c");
    wait["for"] = json!("deleted");
    wait["timeout"] = json!(2);
    let prune = set(&["a"]);
    let of_b = "/api/v1/namespaces/strange/configmaps/b";
    for (path, job, kwargs) in [
        (of_b, "delete", &delete),
        (of_b, "prune", &prune),
        (
            "/api/v1/namespaces/strange/configmaps/umbel-applyset-shop",
            "prune",
            &prune,
        ),
        ("/api/v1", "delete", &delete),
        ("/api/v1", "prune", &prune),
        ("/apis", "delete", &unserved),
        ("/apis/strange.example.com/v1", "delete", &unserved),
    ] {
        for (what, reply, words) in strange() {
            // That of a kind is held against what the server says it serves.
            let is_told_apart = path == "/apis/strange.example.com/v1" && matches!(&reply, Reply::Json(404, ..));
            *rule.lock().unwrap() = Some((path.to_owned(), reply));
            let words = match words {
                "missing field" if path.contains("/configmaps/") => "the answer is no object of this name",
                words => words,
            };
            let outcome = run(job, kwargs).await;
            if is_told_apart {
                assert_eq!(outcome.unwrap()["objects"][0]["action"], "absent", "{what} at {path}");
                continue;
            }
            let failed = outcome.unwrap_err();
            assert!(failed.contains(words), "{job}, {what} at {path}: {failed}");
        }
    }
    // Who waits for an end waits on.
    *rule.lock().unwrap() = Some((of_b.to_owned(), strange().remove(0).1));
    let waiting = run("wait", &wait).await.unwrap_err();
    assert!(waiting.contains("it exists"), "{waiting}");

    *rule.lock().unwrap() = None;
    let maps: Api<ConfigMap> = Api::namespaced(administrator, "strange");
    assert!(maps.get_opt("b").await.unwrap().is_some());
    let pruned = run("prune", &prune).await.unwrap();
    assert_eq!(pruned["pruned"][0]["action"], "deleted", "{pruned}");
    let deleted = run("delete", &delete).await.unwrap();
    assert_eq!(deleted["objects"][0]["action"], "absent", "{deleted}");
    let absent = run("delete", &unserved).await.unwrap();
    assert_eq!(absent["objects"][0]["action"], "absent", "{absent}");
}
