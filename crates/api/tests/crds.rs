//! The definitions in `crds/` are what the types say.

use std::{fs, path::Path};

#[test]
fn committed_definitions_are_current() {
    let folder = Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("../../crds");
    for (file, definition) in umbel_api::definitions() {
        let committed = fs::read_to_string(folder.join(file)).unwrap_or_default();
        assert_eq!(
            committed,
            umbel_api::to_yaml(&definition),
            "{file} is old: run `make crds`"
        );
    }
}

#[test]
fn definitions_stay_small_and_structural() {
    for (file, definition) in umbel_api::definitions() {
        let text = serde_json::to_string(&definition).expect("plain data");
        assert!(text.len() < 256 * 1024, "{file} has {} bytes", text.len());
        // What may be anything may be null, too.
        let text = text.replace(r#"{"nullable":true,"x-kubernetes-preserve-unknown-fields":true}"#, "{}");
        for refused in ["\"uint", "\"nullable\"", "\"$ref\"", "\"$defs\""] {
            assert!(!text.contains(refused), "{file} contains {refused}");
        }
    }
}

/// A credential is what a Secret holds. No field of a cluster names a program or a plugin that would fetch one.
#[test]
fn d09_no_cluster_names_a_program() {
    fn names(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                if let Some(properties) = fields.get("properties").and_then(serde_json::Value::as_object) {
                    found.extend(properties.keys().map(|name| name.to_lowercase()));
                }
                fields.values().for_each(|value| names(value, found));
            }
            serde_json::Value::Array(values) => values.iter().for_each(|value| names(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    let (_, definition) = umbel_api::definitions()
        .into_iter()
        .find(|(file, _)| file.contains("targetclusters"))
        .expect("the definition");
    let value = serde_json::to_value(&definition).expect("plain data");
    names(&value, &mut found);
    assert!(found.contains(&"kubeconfigsecretref".to_owned()), "{found:?}");
    for word in ["exec", "command", "program", "plugin", "provider", "path", "file"] {
        let named: Vec<&String> = found.iter().filter(|name| name.contains(word)).collect();
        assert!(named.is_empty(), "{named:?}");
    }
    assert!(
        !serde_json::to_string(&value)
            .expect("plain data")
            .contains("preserve-unknown-fields")
    );
}

#[test]
fn smallest_objects_get_their_defaults() {
    use umbel_api::{PeriodicTaskSpec, TargetClusterSpec, TaskQueueSpec, WorkerPoolSpec};

    let queue: TaskQueueSpec = serde_json::from_str("{}").expect("an empty queue");
    assert_eq!(queue.lease.duration.to_string(), "1m");
    assert_eq!((queue.max_deliveries, queue.retry.max_attempts), (3, 5));

    let pool: WorkerPoolSpec = serde_json::from_str(r#"{"queues": [{"name": "mail"}]}"#).expect("a small pool");
    assert_eq!(
        (
            pool.scaling.min_replicas,
            pool.scaling.max_replicas,
            pool.scaling.target.value.count()
        ),
        (0, 10, Some(80))
    );

    let task: PeriodicTaskSpec = serde_json::from_str(
        r#"{"schedule": {"every": "10s"}, "taskTemplate": {"queueRef": {"name": "mail"}, "task": "t"}}"#,
    )
    .expect("a small schedule");
    assert_eq!(
        (task.time_zone.as_str(), task.catch_up_window.to_string().as_str()),
        ("UTC", "10m")
    );

    let cluster: TargetClusterSpec =
        serde_json::from_str(r#"{"kubeconfigSecretRef": {"name": "eu", "key": "kubeconfig"}}"#)
            .expect("a small cluster");
    assert!(!cluster.suspend);
}
