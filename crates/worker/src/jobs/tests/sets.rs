//! Apply sets, definitions, namespaces: what an apply does besides writing objects one by one.

use k8s_openapi::api::core::v1::PodTemplate;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DeleteParams, DynamicObject};

use super::*;

fn settings(namespace: &str) -> Value {
    let rules = json!({"namespaces": [namespace], "kinds": ["ConfigMap", "PodTemplate"]});
    json!({"apply": rules, "prune": rules})
}

fn template(namespace: &str, name: &str, image: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name, "namespace": namespace},
        "template": {"spec": {"containers": [{"name": "c", "image": image}]}}})
}

async fn inventory(target: &kube::Client, namespace: &str) -> (String, String, Vec<String>) {
    let maps = Api::<ConfigMap>::namespaced(target.clone(), namespace);
    let map = maps.get("umbel-applyset-shop").await.unwrap();
    let data = map.data.unwrap();
    let objects: Vec<Value> = serde_json::from_str(&data["objects"]).unwrap();
    let names = objects
        .iter()
        .map(|one| one["name"].as_str().unwrap().to_owned())
        .collect();
    let fence = map.metadata.annotations.unwrap()["umbel.dev/fence"].clone();
    (fence, data["state"].clone(), names)
}

/// What a delete did with each object.
fn removals(result: &Value) -> Vec<&Value> {
    let objects = result["objects"].as_array().unwrap();
    objects.iter().map(|one| &one["action"]).collect()
}

#[tokio::test]
async fn a_set_in_place_costs_one_dry_run_for_each_object_and_no_write() {
    let registry = registry("set-cost-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "set-cost").await;
    let kwargs = |image: &str| {
        let all = (0..100).map(|n| template("set-cost", &format!("t{n}"), image));
        json!({"manifests": all.collect::<Vec<_>>(), "namespace": "set-cost", "applySet": "shop"})
    };
    let apply = async |order: i64, micros: u64, image: &str| {
        run(
            &registry,
            &settings("set-cost"),
            "apply",
            (order, micros),
            kwargs(image),
        )
        .await
    };
    let result = done(apply(10, 1, "a").await);
    assert_eq!(result["clusters"]["c2"].as_array().unwrap().len(), 100);
    let templates = Api::<PodTemplate>::namespaced(target.clone(), "set-cost");
    let versions = async || {
        let all = templates.list(&kube::api::ListParams::default()).await.unwrap();
        let versions = all.items.into_iter().map(|one| one.metadata.resource_version.unwrap());
        versions.collect::<Vec<_>>()
    };
    let before = versions().await;

    let then = asked(&target, "podtemplates").await;
    let maps = asked(&target, "configmaps").await;
    let result = done(apply(20, 1, "a").await);
    assert!(
        actions(&result, "c2").iter().all(|one| one.ends_with(" unchanged")),
        "{result}"
    );
    let spent = asked_since(&target, "podtemplates", &then).await;
    let expected = BTreeMap::from([("APPLYAll".to_owned(), 100), ("LIST".to_owned(), 1)]);
    assert_eq!(
        spent,
        expected,
        "inventories: {:?}",
        asked_since(&target, "configmaps", &maps).await
    );
    assert_eq!(versions().await, before);
    let (fence, state, names) = inventory(&target, "set-cost").await;
    assert_eq!((fence.as_str(), state.as_str(), names.len()), ("20/1.1", "closed", 100));

    // The retry of the older run, although it is the newer delivery and finds objects that say 10.
    refused(
        apply(15, 99, "b").await,
        "RuntimeError",
        "apply set set-cost/shop: 20/1.1 wrote it, which is newer than this run (15/1.99)",
    );
    assert_eq!(versions().await, before);

    // A run that ended in the middle may have writes on their way: all is written, with the newer fence.
    let open = json!({"data": {"state": "open"}, "metadata": {"annotations": {"umbel.dev/fence": "25/1.1"}}});
    Api::<ConfigMap>::namespaced(target.clone(), "set-cost")
        .patch("umbel-applyset-shop", &PatchParams::default(), &Patch::Merge(&open))
        .await
        .unwrap();
    done(apply(30, 1, "a").await);
    for one in templates.list(&kube::api::ListParams::default()).await.unwrap() {
        assert_eq!(one.metadata.annotations.unwrap()["umbel.dev/fence"], "30/1.1");
    }
    let (fence, state, _) = inventory(&target, "set-cost").await;
    assert_eq!((fence.as_str(), state.as_str()), ("30/1.1", "closed"));
}

#[tokio::test]
async fn without_a_set_each_object_says_which_run_it_belongs_to() {
    // ReplicationControllers, because no other test counts them.
    let registry = registry("noset-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "noset").await;
    let settings = json!({"apply": {"namespaces": ["noset"], "kinds": ["ReplicationController"]}});
    let object = |n: u32| {
        json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": format!("r{n}"), "namespace": "noset"},
            "spec": {"replicas": 0, "selector": {"a": "b"}, "template": {"metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
    };
    let kwargs = json!({"manifests": (0..100).map(object).collect::<Vec<_>>()});
    let apply = async |order: i64, micros: u64| {
        let then = asked(&target, "replicationcontrollers").await;
        let outcome = run(&registry, &settings, "apply", (order, micros), kwargs.clone()).await;
        let result = done(outcome);
        assert_eq!(result["clusters"]["c2"].as_array().unwrap().len(), 100);
        asked_since(&target, "replicationcontrollers", &then).await
    };
    apply(10, 1).await;
    let counts = |verbs: &[&str]| {
        verbs
            .iter()
            .map(|&verb| (verb.to_owned(), 100))
            .collect::<BTreeMap<_, u64>>()
    };
    assert_eq!(apply(20, 1).await, counts(&["GET", "APPLYAll", "APPLY"]));
    // Another delivery of the same run has nothing to write.
    assert_eq!(apply(20, 2).await, counts(&["GET", "APPLYAll"]));
}

#[tokio::test]
async fn what_left_a_set_goes_only_when_asked_for_and_only_if_it_is_still_ours() {
    let registry = registry("prune-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "prune").await;
    let maps = Api::<ConfigMap>::namespaced(target.clone(), "prune");
    let kwargs = |names: &[&str], prune: bool| {
        let all = names.iter().map(|name| config_map("prune", name, &json!({"a": "1"})));
        json!({"manifests": all.collect::<Vec<_>>(), "namespace": "prune", "applySet": "shop", "prune": prune})
    };
    let apply = async |order: i64, names: &[&str], prune: bool| {
        run(&registry, &settings("prune"), "apply", (order, 1), kwargs(names, prune)).await
    };
    done(apply(1, &["a", "b", "c", "d"], false).await);
    // Somebody else's objects with the same names: one that only carries the label, one that does not.
    for (name, labels) in [("c", json!({"umbel.dev/applyset": "shop"})), ("d", json!({}))] {
        maps.delete(name, &DeleteParams::default()).await.unwrap();
        let theirs = json!({"metadata": {"name": name, "labels": labels}, "data": {"x": "y"}});
        let theirs = serde_json::from_value(theirs).unwrap();
        maps.create(&PostParams::default(), &theirs).await.unwrap();
    }
    let result = done(apply(2, &["a"], false).await);
    assert_eq!(result.get("pruned"), None);
    assert!(maps.get_opt("b").await.unwrap().is_some());
    assert_eq!(inventory(&target, "prune").await.2, ["a", "b", "c", "d"]);

    let result = done(apply(3, &["a"], true).await);
    let pruned: Vec<String> = result["pruned"]["c2"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| format!("{} {}", one["name"], one["action"]).replace('"', ""))
        .collect();
    assert_eq!(
        pruned,
        [
            "b deleted",
            "c kept, it is no longer ours",
            "d kept, it is no longer ours"
        ]
    );
    assert!(maps.get_opt("b").await.unwrap().is_none());
    assert!(maps.get_opt("c").await.unwrap().is_some() && maps.get_opt("d").await.unwrap().is_some());
    let (fence, state, names) = inventory(&target, "prune").await;
    assert_eq!(
        (fence.as_str(), state.as_str(), names),
        ("3/1.1", "closed", vec!["a".to_owned()])
    );

    // By the job of its own; and an older one's retry comes too late.
    done(apply(4, &["a", "e"], false).await);
    let prune = async |order: i64| {
        let mut kwargs = kwargs(&["a"], false);
        kwargs.as_object_mut().unwrap().remove("prune");
        run(&registry, &settings("prune"), "prune", (order, 1), kwargs).await
    };
    refused(
        prune(3).await,
        "RuntimeError",
        "4/1.1 wrote it, which is newer than this run (3/1.1)",
    );
    assert!(maps.get_opt("e").await.unwrap().is_some());
    let result = done(prune(5).await);
    assert_eq!(result["pruned"][0]["action"], "deleted");
    assert!(maps.get_opt("e").await.unwrap().is_none() && maps.get_opt("a").await.unwrap().is_some());
    assert_eq!(inventory(&target, "prune").await.2, ["a"]);
}

#[tokio::test]
async fn sets_do_not_take_objects_from_each_other_and_rules_hold_for_them() {
    let registry = registry("sets-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "sets").await;
    let manifests = json!([config_map("sets", "a", &json!({"a": "1"}))]);
    let apply = async |order: i64, more: Value| {
        let mut kwargs = json!({"manifests": manifests, "namespace": "sets"});
        kwargs
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        run(&registry, &settings("sets"), "apply", (order, 1), kwargs).await
    };
    done(apply(1, json!({"applySet": "one"})).await);
    let words = "ConfigMap sets/a: it belongs to the apply set `sets/one`";
    refused(apply(2, json!({"applySet": "two"})).await, "RuntimeError", words);
    refused(apply(2, json!({})).await, "RuntimeError", words);
    for (more, exc_type, words) in [
        (json!({"applySet": "One"}), "ValueError", "applySet: 1 to 63"),
        (
            json!({"applySet": "one", "namespace": "kube-system"}),
            "PermissionError",
            "the namespace kube-system is not allowed",
        ),
        (
            json!({"applySet": "one", "namespace": null}),
            "TypeError",
            "an applySet needs a `namespace`",
        ),
        (json!({"prune": true}), "TypeError", "prune needs an applySet"),
        (json!({"force": true}), "PermissionError", "spec.jobs.apply.force"),
        (
            json!({"manifests": [config_map("sets", "umbel-applyset-one", &json!({}))]}),
            "PermissionError",
            "names that begin with umbel-applyset-",
        ),
    ] {
        refused(apply(3, more).await, exc_type, words);
    }
    let only_apply = json!({"apply": {"namespaces": ["sets"], "kinds": ["ConfigMap"]}});
    let kwargs = json!({"manifests": manifests, "namespace": "sets", "applySet": "one", "prune": true});
    let outcome = run(&registry, &only_apply, "apply", (3, 1), kwargs).await;
    refused(outcome, "PermissionError", "this pool does not prune");
}

fn widgets(namespace: &str, group: &str) -> Value {
    json!([
        {"apiVersion": format!("{group}/v1"), "kind": "Widget", "metadata": {"name": "w", "namespace": namespace}, "spec": {"size": 3}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "inside", "namespace": namespace}},
        {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": format!("widgets.{group}")},
         "spec": {"group": group, "scope": "Namespaced", "names": {"kind": "Widget", "plural": "widgets"}, "versions": [
            {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": {"size": {"type": "integer"}}}}}}}]}},
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
    ])
}

#[tokio::test]
async fn a_definition_and_a_namespace_come_before_what_needs_them() {
    let registry = registry("crd-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    let settings = |cluster_kinds: Value| {
        json!({"apply": {"namespaces": ["crd"], "kinds": ["ConfigMap", "crd.example.com/Widget", "Namespace",
            "apiextensions.k8s.io/CustomResourceDefinition"], "clusterKinds": cluster_kinds}})
    };
    let kwargs = json!({"manifests": widgets("crd", "crd.example.com")});
    let apply =
        async |order: i64, kinds: Value| run(&registry, &settings(kinds), "apply", (order, 1), kwargs.clone()).await;
    // In the list of namespaced kinds they are of no use.
    let words = "objects of the group apiextensions.k8s.io grant rights; the kind apiextensions.k8s.io/CustomResourceDefinition is not allowed by this pool (spec.jobs.apply.clusterKinds: none)";
    refused(apply(1, json!([])).await, "PermissionError", words);
    let definition = "apiextensions.k8s.io/CustomResourceDefinition";
    refused(
        apply(1, json!([definition])).await,
        "ValueError",
        "document 4: has no `metadata.namespace`",
    );
    let all = json!([definition, "Namespace"]);
    let result = done(apply(1, all.clone()).await);
    assert_eq!(
        actions(&result, "c2"),
        [
            "Namespace/crd created",
            "CustomResourceDefinition/widgets.crd.example.com created",
            "ConfigMap/inside created",
            "Widget/w created",
        ]
    );
    let result = done(apply(1, all).await);
    assert!(
        actions(&result, "c2").iter().all(|one| one.ends_with("unchanged")),
        "{result}"
    );
    assert!(
        Api::<ConfigMap>::namespaced(target, "crd")
            .get_opt("inside")
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn t08_all_conflicts_are_named_before_anything_is_written() {
    let registry = registry("conflicts-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "conflicts").await;
    let maps = Api::<ConfigMap>::namespaced(target, "conflicts");
    for (name, owner) in [("b", "alice"), ("c", "bob")] {
        let theirs = config_map("conflicts", name, &json!({"v": "theirs", "w": "theirs"}));
        maps.patch(name, &PatchParams::apply(owner), &Patch::Apply(&theirs))
            .await
            .unwrap();
    }
    let all = ["a", "b", "c"].map(|name| config_map("conflicts", name, &json!({"v": "ours"})));
    let why = failed(
        run(
            &registry,
            &settings("conflicts"),
            "apply",
            (1, 1),
            json!({"manifests": all}),
        )
        .await,
    );
    assert_eq!(
        why.message,
        "cluster `c2`: fields of other managers: ConfigMap conflicts/b: conflict with \"alice\": .data.v; \
         ConfigMap conflicts/c: conflict with \"bob\": .data.v"
    );
    assert!(maps.get_opt("a").await.unwrap().is_none());
}

#[tokio::test]
async fn objects_that_grant_rights_are_applied_where_the_pool_names_their_kinds() {
    let registry = registry("rbac-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "rbac").await;
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}]});
    let settings = json!({"apply": {"namespaces": ["rbac"], "kinds": ["ConfigMap"], "clusterKinds": ["rbac.authorization.k8s.io/Role"]}});
    let apply = async |namespace: &str| {
        run(
            &registry,
            &settings,
            "apply",
            (1, 1),
            json!({"manifests": [role], "namespace": namespace}),
        )
        .await
    };
    assert_eq!(actions(&done(apply("rbac").await), "c2"), ["Role/r created"]);
    refused(
        apply("kube-system").await,
        "PermissionError",
        "the namespace kube-system is not allowed",
    );
}

#[tokio::test]
async fn sets_of_one_name_in_two_namespaces_are_two_sets() {
    let registry = registry("set-twins-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "set-twin-a").await;
    namespace(&target, "set-twin-b").await;
    let rules = json!({"namespaces": ["set-twin-a", "set-twin-b"], "kinds": ["ConfigMap"]});
    let settings = json!({"apply": rules, "prune": rules});
    let apply = async |order: i64, place: &str| {
        let map = config_map("set-twin-a", "m", &json!({"by": place}));
        let kwargs = json!({"manifests": [map], "namespace": place, "applySet": "shop"});
        run(&registry, &settings, "apply", (order, 1), kwargs).await
    };
    done(apply(1, "set-twin-a").await);
    let words = "it belongs to the apply set `set-twin-a/shop`";
    refused(apply(2, "set-twin-b").await, "RuntimeError", words);
    done(apply(3, "set-twin-a").await);
}

#[tokio::test]
async fn what_a_server_says_of_a_secret_that_it_cannot_read_does_not_repeat_it() {
    let registry = registry("set-words-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "set-words").await;
    let settings = json!({"apply": {"namespaces": ["set-words"], "kinds": ["Secret"]}});
    for data in [
        json!({"stringData": {"pin": 483_920}}),
        json!({"data": {"pin": "483920*"}}),
    ] {
        let mut secret =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "set-words"}});
        secret
            .as_object_mut()
            .unwrap()
            .extend(data.as_object().cloned().unwrap());
        let why = match run(&registry, &settings, "apply", (1, 1), json!({"manifests": [secret]})).await {
            Outcome::Failed(why) | Outcome::Retry { why, .. } => why,
            other => panic!("{other:?}"),
        };
        assert!(why.message.contains("Secret set-words/s"), "{why}");
        assert!(!why.message.contains("483920"), "{why}");
    }
}

/// A version that goes takes no object along: these are the same in the version that stays.
#[tokio::test]
async fn what_was_written_in_a_version_that_is_served_no_more_is_found_in_another() {
    let registry = registry("versions-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "versions").await;
    let group = "versions.example.com";
    let definition = |is_first_served: bool, scope: &str, plural: &str, kind: &str| {
        let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}")},
            "spec": {"group": group, "scope": scope, "names": {"kind": kind, "plural": plural}, "versions": [
                {"name": "v1", "served": is_first_served, "storage": false, "schema": schema},
                {"name": "v2", "served": true, "storage": true, "schema": schema}]}})
    };
    let all = [("Namespaced", "widgets", "Widget"), ("Cluster", "racks", "Rack")];
    let definitions: Api<CustomResourceDefinition> = Api::all(target.clone());
    let define = async |is_first_served: bool| {
        for (scope, plural, kind) in all {
            let patch = Patch::Apply(definition(is_first_served, scope, plural, kind));
            let name = format!("{plural}.{group}");
            definitions
                .patch(&name, &PatchParams::apply("test").force(), &patch)
                .await
                .unwrap();
            let path = format!("/apis/{group}/v1");
            umbel_testkit::eventually(Duration::from_secs(30), "served as the definition says", async || {
                let request = http::Request::get(&path).body(Vec::new()).unwrap();
                let found = target.request::<Value>(request).await.unwrap_or_default();
                let resources = found["resources"].as_array().cloned().unwrap_or_default();
                resources.iter().any(|one| one["kind"] == kind) == is_first_served
            })
            .await;
        }
    };
    define(true).await;
    let settings = {
        let rules = json!({"namespaces": ["versions"], "kinds": ["ConfigMap", format!("{group}/Widget")],
            "clusterKinds": [format!("{group}/Rack")]});
        json!({"apply": rules, "prune": rules, "delete": rules, "diff": rules})
    };
    let object =
        |kind: &str, name: &str| json!({"apiVersion": format!("{group}/v1"), "kind": kind, "metadata": {"name": name}});
    let objects = json!([
        object("Widget", "kept"),
        object("Widget", "left"),
        object("Rack", "left"),
        object("Rack", "kept")
    ]);
    let set = |manifests: &Value| json!({"manifests": manifests, "namespace": "versions", "applySet": "shop"});
    let run = async |order: i64, job: &str, kwargs: Value| run(&registry, &settings, job, (order, 1), kwargs).await;
    done(run(1, "apply", set(&objects)).await);
    define(false).await;

    let second = |kind: &str, plural: &str| ApiResource {
        group: group.into(),
        version: "v2".into(),
        api_version: format!("{group}/v2"),
        kind: kind.into(),
        plural: plural.into(),
    };
    let widgets: Api<DynamicObject> = Api::namespaced_with(target.clone(), "versions", &second("Widget", "widgets"));
    let racks: Api<DynamicObject> = Api::all_with(target.clone(), &second("Rack", "racks"));
    let there = async || {
        let params = kube::api::ListParams::default();
        let (one, other) = (widgets.list(&params).await.unwrap(), racks.list(&params).await.unwrap());
        let names = one.items.into_iter().chain(other.items).map(|one| {
            let kind = one.types.map(|types| types.kind).unwrap_or_default();
            format!("{kind} {}", one.metadata.name.unwrap())
        });
        names.collect::<Vec<_>>()
    };
    assert_eq!(there().await.len(), 4);

    // Manifests in the version that went name the same objects.
    let kept = json!([object("Widget", "kept"), object("Rack", "kept")]);
    let result = done(run(2, "prune", set(&kept)).await);
    let pruned: Vec<&Value> = result["pruned"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["action"])
        .collect();
    assert_eq!(pruned, ["deleted", "deleted"], "{result}");
    let left = there().await;
    assert!(
        left.len() == 2 && left.iter().all(|one| one.ends_with("kept")),
        "{left:?}"
    );

    // What writes does so in its own version or not at all, and a diff says what an apply would.
    let words = format!("Widget versions/kept: the cluster has no kind {group}/v1 Widget");
    for job in ["apply", "diff"] {
        refused(
            run(3, job, set(&json!([object("Widget", "kept")]))).await,
            "LookupError",
            &words,
        );
    }

    let result = done(run(4, "delete", json!({"manifests": kept, "namespace": "versions"})).await);
    assert_eq!(removals(&result), ["deleted", "deleted"], "{result}");
    assert_eq!(there().await, Vec::<String>::new());

    // With the definition everything went.
    for (_, plural, _) in all {
        let name = format!("{plural}.{group}");
        definitions.delete(&name, &DeleteParams::default()).await.unwrap();
    }
    umbel_testkit::eventually(Duration::from_secs(30), "the definitions are gone", async || {
        let groups = target.list_api_groups().await.unwrap().groups;
        !groups.iter().any(|one| one.name == group)
    })
    .await;
    let result = done(run(5, "delete", json!({"manifests": kept, "namespace": "versions"})).await);
    assert_eq!(removals(&result), ["absent", "absent"], "{result}");
}
