//! Delete, diff, get, restart, scale, label-nodes.

use k8s_openapi::api::apps::v1::Deployment;

use super::*;

fn deployment(namespace: &str, image: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": namespace},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": image}]}}}})
}

#[tokio::test]
async fn delete_removes_what_an_apply_wrote_and_asks_twice_for_the_rest() {
    let registry = registry("delete-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "delete").await;
    let maps = Api::<ConfigMap>::namespaced(target.clone(), "delete");
    let rules = |any_owner: bool| {
        let rules = json!({"namespaces": ["delete"], "kinds": ["ConfigMap"]});
        let mut delete = rules.clone();
        delete["anyOwner"] = json!(any_owner);
        json!({"apply": rules, "delete": delete})
    };
    let ours = |names: &[&str]| {
        names
            .iter()
            .map(|name| config_map("delete", name, &json!({"a": "1"})))
            .collect::<Vec<_>>()
    };
    done(
        run(
            &registry,
            &rules(false),
            "apply",
            (10, 1),
            json!({"manifests": ours(&["a", "b"])}),
        )
        .await,
    );
    let theirs = serde_json::from_value(json!({"metadata": {"name": "theirs"}})).unwrap();
    maps.create(&PostParams::default(), &theirs).await.unwrap();
    let named = |name: &str| json!({"objects": [{"apiVersion": "v1", "kind": "ConfigMap", "namespace": "delete", "name": name}]});
    let delete = async |order: i64, settings: Value, kwargs: Value| {
        run(&registry, &settings, "delete", (order, 1), kwargs).await
    };

    refused(
        delete(9, rules(false), named("a")).await,
        "RuntimeError",
        "ConfigMap delete/a: 10/1.1 wrote it, which is newer than this run (9/1.1)",
    );
    // One that is not ours keeps all of them.
    let mut both = named("theirs");
    both["manifests"] = json!(ours(&["a"]));
    refused(
        delete(11, rules(false), both).await,
        "RuntimeError",
        "ConfigMap delete/theirs: no apply job wrote it",
    );
    let mut any = named("theirs");
    any["anyOwner"] = json!(true);
    refused(
        delete(11, rules(false), any.clone()).await,
        "PermissionError",
        "spec.jobs.delete.anyOwner",
    );
    for (kwargs, exc_type, words) in [
        (
            json!({"objects": [{"apiVersion": "v1", "kind": "Secret", "namespace": "delete", "name": "x"}]}),
            "PermissionError",
            "the kind Secret is not allowed by this pool (spec.jobs.delete.kinds: ConfigMap)",
        ),
        (
            json!({"objects": [{"apiVersion": "v1", "kind": "ConfigMap", "namespace": "kube-system", "name": "x"}]}),
            "PermissionError",
            "(spec.jobs.delete.namespaces: delete)",
        ),
        (
            json!({"objects": [{"apiVersion": "v1", "kind": "Node", "name": "x"}]}),
            "PermissionError",
            "the kind Node is not allowed by this pool",
        ),
        (json!({}), "TypeError", "missing field `manifests`"),
    ] {
        refused(delete(11, rules(true), kwargs).await, exc_type, words);
    }
    assert_eq!(
        maps.list(&kube::api::ListParams::default()).await.unwrap().items.len(),
        3
    );

    let result = done(delete(11, rules(false), json!({"manifests": ours(&["a", "none"])})).await);
    let said: Vec<_> = result["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["name"].clone(), one["action"].clone()))
        .collect();
    assert_eq!(said, [(json!("a"), json!("deleted")), (json!("none"), json!("absent"))]);
    done(delete(11, rules(true), any).await);
    let left: Vec<_> = maps
        .list(&kube::api::ListParams::default())
        .await
        .unwrap()
        .items
        .into_iter()
        .map(|one| one.metadata.name.unwrap())
        .collect();
    assert_eq!(left, ["b"]);
}

#[tokio::test]
async fn a_delete_of_an_object_of_a_set_is_one_of_its_runs() {
    let registry = registry("delset-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "delset").await;
    let rules = json!({"namespaces": ["delset"], "kinds": ["ConfigMap"]});
    let settings = json!({"apply": rules, "delete": rules});
    let all = ["a", "b"].map(|name| config_map("delset", name, &json!({"a": "1"})));
    let set = json!({"manifests": all, "namespace": "delset", "applySet": "shop"});
    done(run(&registry, &settings, "apply", (10, 1), set.clone()).await);
    // Nothing was to be written, so the objects still say 10.
    done(run(&registry, &settings, "apply", (20, 1), set.clone()).await);
    let delete = async |order: i64| {
        run(
            &registry,
            &settings,
            "delete",
            (order, 1),
            json!({"manifests": [all[0]]}),
        )
        .await
    };
    refused(
        delete(15).await,
        "RuntimeError",
        "apply set delset/shop: 20/1.1 wrote it, which is newer than this run (15/1.1)",
    );
    done(delete(25).await);
    refused(
        run(&registry, &settings, "apply", (22, 1), set).await,
        "RuntimeError",
        "25/1.1 wrote it",
    );
    let map = Api::<ConfigMap>::namespaced(target, "delset")
        .get("umbel-applyset-shop")
        .await
        .unwrap();
    let data = map.data.unwrap();
    assert!(
        data["state"] == "closed" && !data["objects"].contains("\"a\"") && data["objects"].contains("\"b\""),
        "{data:?}"
    );
}

#[tokio::test]
async fn diff_names_fields_and_no_values_and_changes_nothing() {
    let registry = registry("diff-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "diff").await;
    let rules = json!({"namespaces": ["diff", "coming"], "kinds": ["ConfigMap", "Secret", "apps/Deployment", "diff.example.com/Widget"]});
    let settings = json!({"apply": rules, "diff": rules});
    let secret = |value: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "diff"}, "stringData": {"password": value}});
    let map = |name: &str, value: &str| config_map("diff", name, &json!({"v": value}));
    let before =
        json!({"manifests": [deployment("diff", "web:1"), secret("canary-1"), map("same", "1"), map("taken", "1")]});
    done(run(&registry, &settings, "apply", (10, 1), before).await);
    let maps = Api::<ConfigMap>::namespaced(target.clone(), "diff");
    let taken = config_map("diff", "taken", &json!({"v": "theirs"}));
    maps.patch("taken", &PatchParams::apply("somebody").force(), &Patch::Apply(&taken))
        .await
        .unwrap();
    let version = maps.get("same").await.unwrap().metadata.resource_version;

    let widget =
        json!({"apiVersion": "diff.example.com/v1", "kind": "Widget", "metadata": {"name": "w", "namespace": "diff"}});
    let after = json!({"manifests": [deployment("diff", "web:2"), secret("canary-2"), map("same", "1"), map("taken", "2"), map("new", "1"),
        config_map("coming", "x", &json!({})), widget]});
    // A look needs no newer run.
    let result = done(run(&registry, &settings, "diff", (5, 1), after).await);
    let said: Vec<(String, &Value)> = result["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (format!("{} {}", one["name"], one["action"]).replace('"', ""), one))
        .collect();
    assert_eq!(
        said.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>(),
        [
            "s configure",
            "same unchanged",
            "taken conflict",
            "new create",
            "x create, its namespace is not there yet",
            "web configure",
            "w create, its kind is not there yet"
        ]
    );
    assert_eq!(said[0].1["fields"], json!(["~ .data.password"]));
    assert_eq!(said[2].1["conflicts"], json!(["conflict with \"somebody\": .data.v"]));
    assert_eq!(
        said[5].1["fields"],
        json!(["~ .spec.template.spec.containers[0].image"])
    );
    assert!(!result.to_string().contains("canary"), "{result}");
    assert_eq!(maps.get("same").await.unwrap().metadata.resource_version, version);
    assert!(maps.get_opt("new").await.unwrap().is_none());
    refused(
        run(
            &registry,
            &settings,
            "diff",
            (1, 1),
            json!({"manifests": [config_map("kube-system", "x", &json!({}))]}),
        )
        .await,
        "PermissionError",
        "spec.jobs.diff.namespaces",
    );
}

#[tokio::test]
async fn get_reads_fields_and_never_what_a_secret_holds() {
    let registry = registry("get-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "get").await;
    let secret = json!({"metadata": {"name": "s", "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{canary}"}},
        "type": "example.com/x", "stringData": {"password": "canary"}});
    let secrets = Api::<Secret>::namespaced(target.clone(), "get");
    secrets
        .create(&PostParams::default(), &serde_json::from_value(secret).unwrap())
        .await
        .unwrap();
    let maps = Api::<ConfigMap>::namespaced(target.clone(), "get");
    for (name, app) in [("a", "x"), ("b", "y"), ("c", "x")] {
        let map = json!({"metadata": {"name": name, "labels": {"app": app}}, "data": {"v": name}});
        maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap())
            .await
            .unwrap();
    }
    let settings =
        json!({"get": {"namespaces": ["get"], "kinds": ["ConfigMap", "Secret"], "clusterKinds": ["Namespace"]}});
    let get = async |kwargs: Value| run(&registry, &settings, "get", (1, 1), kwargs).await;
    let of = |kind: &str, more: Value| {
        let mut kwargs = json!({"apiVersion": "v1", "kind": kind, "namespace": "get"});
        kwargs
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        kwargs
    };
    let result = done(
        get(of(
            "ConfigMap",
            json!({"name": "a", "fields": {"value": ".data.v", "none": ".data.w"}}),
        ))
        .await,
    );
    assert_eq!(result, json!({"cluster": "c2", "fields": {"value": "a", "none": null}}));
    let result = done(get(of("ConfigMap", json!({"selector": "app=x", "fields": ["data.v"]}))).await);
    assert_eq!(
        result["items"],
        json!([
        {"name": "a", "namespace": "get", "fields": {"data.v": "a"}}, {"name": "c", "namespace": "get", "fields": {"data.v": "c"}}])
    );
    let result =
        done(get(json!({"apiVersion": "v1", "kind": "Namespace", "name": "get", "fields": ["status.phase"]})).await);
    assert_eq!(result["fields"], json!({"status.phase": "Active"}));

    let fields = json!(["data", "data.password", "stringData", "metadata", "type"]);
    for more in [json!({"name": "s", "fields": fields}), json!({"fields": fields})] {
        let text = done(get(of("Secret", more)).await).to_string();
        assert!(
            text.contains("example.com/x") && !text.contains("canary") && !text.contains("Y2FuYXJ5"),
            "{text}"
        );
    }
    for (kwargs, exc_type, words) in [
        (
            of("ConfigMap", json!({"name": "none", "fields": ["data"]})),
            "LookupError",
            "ConfigMap get/none: it does not exist",
        ),
        (
            of("Pod", json!({"fields": ["data"]})),
            "PermissionError",
            "(spec.jobs.get.kinds: ConfigMap, Secret)",
        ),
        (
            of("ConfigMap", json!({"namespace": "kube-system", "fields": ["data"]})),
            "PermissionError",
            "(spec.jobs.get.namespaces: get)",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Node", "name": "n", "fields": ["spec"]}),
            "PermissionError",
            "the kind Node is not allowed by this pool",
        ),
        (
            of("ConfigMap", json!({"fields": ["a["]})),
            "ValueError",
            "a bracket is not closed",
        ),
        (of("ConfigMap", json!({"fields": []})), "ValueError", "1 to 50 paths"),
        (
            of("ConfigMap", json!({"name": "a", "selector": "x", "fields": ["a"]})),
            "TypeError",
            "a name or a selector",
        ),
    ] {
        refused(get(kwargs).await, exc_type, words);
    }
}

#[tokio::test]
async fn restart_and_scale_act_once_a_run_and_never_after_a_newer_one() {
    let registry = registry("scale-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "scale").await;
    let rules = json!({"namespaces": ["scale"], "kinds": ["apps/Deployment", "ConfigMap"]});
    let settings = json!({"apply": rules, "restart": rules, "scale": rules});
    done(
        run(
            &registry,
            &settings,
            "apply",
            (10, 1),
            json!({"manifests": [deployment("scale", "web")]}),
        )
        .await,
    );
    let deployments = Api::<Deployment>::namespaced(target, "scale");
    let at = |kind: &str| json!({"kind": kind, "namespace": "scale", "name": "web"});
    let restart =
        async |order: i64, micros: u64| run(&registry, &settings, "restart", (order, micros), at("Deployment")).await;
    assert_eq!(done(restart(1_700_000_060_000, 1).await)["action"], "restarted");
    let now = deployments.get("web").await.unwrap();
    let template = now.spec.template.metadata.unwrap().annotations.unwrap();
    assert_eq!(template["kubectl.kubernetes.io/restartedAt"], "2023-11-14T22:14:20Z");
    // The second delivery of the same run, and the retry of the one before it.
    assert_eq!(done(restart(1_700_000_060_000, 9).await)["action"], "unchanged");
    refused(
        restart(1_700_000_000_000, 99).await,
        "RuntimeError",
        "1700000060000/1.1 wrote it, which is newer",
    );
    assert_eq!(
        deployments.get("web").await.unwrap().metadata.resource_version,
        now.metadata.resource_version
    );

    let scale = async |order: i64, replicas: u32| {
        let mut kwargs = at("Deployment");
        kwargs["replicas"] = json!(replicas);
        run(&registry, &settings, "scale", (order, 1), kwargs).await
    };
    let result = done(scale(20, 5).await);
    assert_eq!(
        (&result["action"], &result["from"], &result["to"]),
        (&json!("scaled"), &json!(2), &json!(5))
    );
    refused(
        scale(19, 7).await,
        "RuntimeError",
        "20/1.1 wrote it, which is newer than this run (19/1.1)",
    );
    assert_eq!(done(scale(20, 5).await)["action"], "unchanged");
    assert_eq!(done(scale(21, 5).await)["action"], "unchanged");
    refused(scale(20, 7).await, "RuntimeError", "21/1.1 wrote it");
    assert_eq!(deployments.get("web").await.unwrap().spec.replicas, Some(5));
    // What an apply wrote is still its own: neither restart nor scale stand in its way but for the field that was taken.
    let mut without_size = deployment("scale", "web:2");
    without_size["spec"].as_object_mut().unwrap().remove("replicas");
    done(
        run(
            &registry,
            &settings,
            "apply",
            (30, 1),
            json!({"manifests": [without_size]}),
        )
        .await,
    );
    let spec = deployments.get("web").await.unwrap().spec;
    assert_eq!(spec.replicas, Some(5));
    assert!(spec.template.metadata.unwrap().annotations.is_some());

    refused(
        run(
            &registry,
            &settings,
            "restart",
            (1, 1),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "namespace": "scale", "name": "x"}),
        )
        .await,
        "ValueError",
        "only Deployment, StatefulSet, DaemonSet of apps are restarted",
    );
    for job in ["restart", "scale"] {
        for (kind, namespace, exc_type, words) in [
            (
                "StatefulSet",
                "scale",
                "PermissionError",
                format!("the kind apps/StatefulSet is not allowed by this pool (spec.jobs.{job}.kinds"),
            ),
            (
                "Deployment",
                "kube-system",
                "PermissionError",
                format!("(spec.jobs.{job}.namespaces: scale)"),
            ),
            ("Deployment", "scale", "LookupError", "it does not exist".to_owned()),
        ] {
            let mut kwargs = json!({"kind": kind, "namespace": namespace, "name": "other"});
            if job == "scale" {
                kwargs["replicas"] = json!(1);
            }
            refused(run(&registry, &settings, job, (1, 1), kwargs).await, exc_type, &words);
        }
    }
}

#[tokio::test]
async fn racing_scales_leave_the_newer_size() {
    let registry = registry("scalerace-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "scalerace").await;
    let rules = json!({"namespaces": ["scalerace"], "kinds": ["apps/Deployment"]});
    let settings = json!({"apply": rules, "scale": rules});
    done(
        run(
            &registry,
            &settings,
            "apply",
            (1, 1),
            json!({"manifests": [deployment("scalerace", "web")]}),
        )
        .await,
    );
    let deployments = Api::<Deployment>::namespaced(target, "scalerace");
    for round in 1..=10_i32 {
        let scale = async |order: i32, replicas: i32| {
            let kwargs = json!({"kind": "Deployment", "namespace": "scalerace", "name": "web", "replicas": replicas});
            run(&registry, &settings, "scale", (order.into(), 1), kwargs).await
        };
        let (_, newer) = tokio::join!(scale(10 * round, 100), scale(10 * round + 1, round));
        done(newer);
        assert_eq!(deployments.get("web").await.unwrap().spec.replicas, Some(round));
    }
}

#[tokio::test]
async fn nodes_get_labels_within_the_prefixes_each_with_its_own_order() {
    // A cluster of its own: other tests count the nodes of theirs.
    let other = stage().await.home.target("c3").await;
    let text = std::fs::read_to_string(&other.kubeconfig).unwrap();
    let registry = registry("label-home", &[("c3", &text)]).await;
    let nodes = Api::<Node>::all(client(&other.kubeconfig).await);
    for (name, rack) in [("label-1", "a"), ("label-2", "b"), ("label-3", "a")] {
        let node = json!({"metadata": {"name": name, "labels": {"label.test/rack": rack}}});
        nodes
            .create(&PostParams::default(), &serde_json::from_value(node).unwrap())
            .await
            .unwrap();
    }
    let settings = json!({"labelNodes": {"prefixes": ["fleet.example.com/", "node-role.kubernetes.io/"]}});
    let jobs = builtin(&registry, Settings::parse(&settings.to_string()).unwrap());
    let label = async |order: i64, kwargs: Value| run_at("c3", &jobs, "label-nodes", (order, 1), kwargs).await;
    let labels = async |name: &str| nodes.get(name).await.unwrap().metadata.labels.unwrap();

    let kwargs = json!({"selector": "label.test/rack=a", "set": {"fleet.example.com/role": "robot", "node-role.kubernetes.io/edge": ""}});
    let result = done(label(20, kwargs.clone()).await);
    assert_eq!(
        result["nodes"],
        json!([{"node": "label-1", "action": "labelled"}, {"node": "label-3", "action": "labelled"}])
    );
    assert_eq!(labels("label-1").await["fleet.example.com/role"], "robot");
    assert_eq!(labels("label-3").await["node-role.kubernetes.io/edge"], "");
    assert!(!labels("label-2").await.contains_key("fleet.example.com/role"));
    assert_eq!(done(label(20, kwargs).await)["nodes"][0]["action"], "unchanged");

    // An older run does not come after a newer one of the same label, and one of another label is not older.
    let role = |value: &str| json!({"nodes": ["label-1"], "set": {"fleet.example.com/role": value}});
    refused(
        label(10, role("old")).await,
        "RuntimeError",
        "Node label-1, label fleet.example.com/role: 20/1.1 wrote it",
    );
    done(label(5, json!({"nodes": ["label-1"], "set": {"fleet.example.com/type": "x"}})).await);
    done(label(30, json!({"nodes": ["label-1"], "remove": ["fleet.example.com/role"]})).await);
    refused(label(25, role("old")).await, "RuntimeError", "30/1.1 wrote it");
    let now = labels("label-1").await;
    assert!(
        !now.contains_key("fleet.example.com/role")
            && now["fleet.example.com/type"] == "x"
            && now["label.test/rack"] == "a"
    );

    for (kwargs, exc_type, words) in [
        (
            json!({"nodes": ["label-1"], "set": {"other.example.com/x": "y"}}),
            "PermissionError",
            "the label other.example.com/x is not allowed by this pool (spec.jobs.labelNodes.prefixes: fleet.example.com/, node-role.kubernetes.io/)",
        ),
        (
            json!({"nodes": ["label-1"], "remove": ["kubernetes.io/hostname"]}),
            "PermissionError",
            "kubernetes.io/hostname is not allowed",
        ),
        (
            json!({"nodes": ["label-1"], "set": {"fleet.example.com/a b": "y"}}),
            "ValueError",
            "no label",
        ),
        (
            json!({"nodes": ["label-1"], "set": {"fleet.example.com/a": "a/b"}}),
            "ValueError",
            "no label",
        ),
        (
            json!({"nodes": ["../x"], "set": {"fleet.example.com/a": "b"}}),
            "ValueError",
            "a name that is no name",
        ),
        (
            json!({"nodes": ["none"], "set": {"fleet.example.com/a": "b"}}),
            "LookupError",
            "Node none: it does not exist",
        ),
        (json!({"nodes": ["label-1"]}), "ValueError", "1 to 50 labels"),
        (
            json!({"set": {"fleet.example.com/a": "b"}}),
            "TypeError",
            "nodes or a selector",
        ),
    ] {
        refused(label(40, kwargs).await, exc_type, words);
    }
}
