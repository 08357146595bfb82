//! Every Task of manifests/samples/jobs does at a real cluster what it says, under the rules of the pool beside it.

use std::path::PathBuf;

use umbel_testkit::{TempDir, eventually};

use super::*;

fn folder() -> PathBuf {
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("../../manifests/samples/jobs")
}

fn read(path: &Path) -> Value {
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// What kubelets would say: all pods are ready, those of Jobs have succeeded.
async fn play_kubelet(pods: Api<Pod>) {
    loop {
        for pod in pods.list(&kube::api::ListParams::default()).await.unwrap() {
            let is_of_job = pod
                .metadata
                .owner_references
                .iter()
                .flatten()
                .any(|owner| owner.kind == "Job");
            let (phase, ready) = if is_of_job {
                ("Succeeded", "False")
            } else {
                ("Running", "True")
            };
            if pod.status.and_then(|status| status.phase).as_deref() != Some(phase) {
                let ready = json!({"type": "Ready", "status": ready, "lastTransitionTime": "2020-01-01T00:00:00Z"});
                let status = json!({"status": {"phase": phase, "conditions": [ready]}});
                let name = pod.metadata.name.unwrap();
                // It may be gone.
                let _ = pods
                    .patch_status(&name, &PatchParams::default(), &Patch::Merge(&status))
                    .await;
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn every_sample_does_what_it_says() {
    let home = stage().await.home.kubeconfig();
    // One with controllers.
    let berlin = std::fs::read_to_string(&home).unwrap();
    let registry = registry("samples-home", &[("berlin", &berlin)]).await;
    let home = client(&home).await;
    let node =
        json!({"metadata": {"name": "berlin-1", "labels": {"kubernetes.io/os": "linux", "fleet.example.com/new": ""}}});
    let nodes = Api::<Node>::all(home.clone());
    nodes
        .create(&PostParams::default(), &serde_json::from_value(node).unwrap())
        .await
        .unwrap();
    let kubelet = tokio::spawn(play_kubelet(Api::namespaced(home.clone(), "shop")));

    let sources = TempDir::new("samples");
    let path = sources.path().join("secrets/shop-secrets/database.yaml");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(
        path,
        "apiVersion: v1\nkind: Secret\nmetadata: {name: database}\nstringData: {password: canary}\n",
    )
    .unwrap();
    let pool: umbel_api::WorkerPool = serde_json::from_value(read(&folder().join("pool.yaml"))).unwrap();
    let settings = Settings::parse(&json!(pool.spec.jobs).to_string()).unwrap();
    let jobs = super::super::builtin(&registry, settings, sources.path().into()).unwrap();

    let mut files: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.retain(|path| path.file_stem().unwrap() != "pool");
    files.sort();
    assert_eq!(files.len(), 27);
    let mut results = BTreeMap::new();
    let mut order = 1_700_000_000_000;
    for path in files {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let task = read(&path);
        serde_json::from_value::<umbel_api::Task>(task.clone()).unwrap();
        let template = &task["spec"]["taskTemplate"];
        let steps = template["steps"]
            .as_array()
            .cloned()
            .unwrap_or_else(|| vec![template.clone()]);
        for step in steps {
            order += 1;
            let job = step["task"].as_str().unwrap().strip_prefix("umbel.cluster.").unwrap();
            let kwargs = step.get("kwargs").cloned().unwrap_or(json!({}));
            let outcome = run_at("berlin", &jobs, job, (order, 1), kwargs).await;
            let Outcome::Done(result) = outcome else {
                panic!("{name}, {job}: {outcome:?}")
            };
            results.insert(name.clone(), serde_json::from_str::<Value>(result.as_str()).unwrap());
        }
    }
    kubelet.abort();
    let said = |name: &str| &results[name];
    assert_eq!(said("02-list-nodes")["items"][0]["name"], "berlin-1");
    assert_eq!(
        said("03-label-nodes")["nodes"],
        json!([{"node": "berlin-1", "action": "labelled"}])
    );
    assert_eq!(said("10-list-pods")["items"].as_array().unwrap().len(), 2);
    let diff = &said("11-diff")["objects"][0];
    assert_eq!(diff["fields"], json!(["~ .spec.template.spec.containers[0].image"]));
    assert_eq!(
        said("15-rollout-status")["fields"],
        json!({"wanted": 3, "updated": 3, "available": 3})
    );
    assert_eq!(actions(said("22-custom-resource"), "berlin")[1], "Robot/r2 created");
    let pruned = &said("24-apply-set-prune")["pruned"]["berlin"];
    assert_eq!(
        (&pruned[0]["name"], &pruned[0]["action"]),
        (&json!("page-2"), &json!("deleted"))
    );
    // The size is the one that scale gave it: the manifest says none.
    let expected = json!({"image": "registry.example.com/web:4", "available": 3});
    assert_eq!(said("26-workflow")["fields"], expected);
    let namespaces = Api::<Namespace>::all(home);
    eventually(Duration::from_secs(60), "the namespace goes", async || {
        namespaces.get_opt("shop").await.unwrap().is_none()
    })
    .await;
    nodes
        .delete("berlin-1", &kube::api::DeleteParams::default())
        .await
        .unwrap();
}
