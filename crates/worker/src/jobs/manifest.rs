//! Manifests of a message: read within limits, held against what the pool allows, put in order. Pure.

use serde_json::{Map, Value};

use super::ApplyRules;

/// Objects of one message. More belong into several messages, which can fail and be retried apart.
pub(super) const MAX_OBJECTS: usize = 100;
/// Bytes of all manifests together, as text.
pub(super) const MAX_BYTES: usize = 1024 * 1024;

/// Groups whose objects grant rights, or change what the API server does with other objects.
const FORBIDDEN_GROUPS: &[&str] = &[
    "rbac.authorization.k8s.io",
    "authorization.k8s.io",
    "authentication.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "certificates.k8s.io",
];

/// What is needed first comes first; unknown kinds come last, since their controllers may need the rest.
const ORDER: &[&str] = &[
    "ResourceQuota",
    "LimitRange",
    "NetworkPolicy",
    "ServiceAccount",
    "Secret",
    "ConfigMap",
    "PersistentVolumeClaim",
    "Service",
    "PodDisruptionBudget",
    "Pod",
    "ReplicaSet",
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "HorizontalPodAutoscaler",
    "Job",
    "CronJob",
    "Ingress",
];

/// Why manifests are not applied, before any cluster was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejected {
    /// Over [`MAX_BYTES`].
    #[error("the manifests have {0} bytes, more than {MAX_BYTES}")]
    TooLarge(usize),
    /// Over [`MAX_OBJECTS`].
    #[error("the manifests hold more than {MAX_OBJECTS} objects")]
    TooMany,
    /// Neither YAML nor within its limits.
    #[error("the manifests are not plain YAML: {0}")]
    NotYaml(String),
    /// Neither text nor a list of objects, or without any object.
    #[error("the manifests {0}")]
    Shape(&'static str),
    /// A document that is no usable object.
    #[error("document {index}: {fault}")]
    Document {
        /// Counted from 1, as people do.
        index: usize,
        /// What is wrong.
        fault: String,
    },
    /// A kind or a namespace that the pool does not allow.
    #[error("{object}: {why}")]
    NotAllowed {
        /// The object.
        object: String,
        /// The rule that stands in the way.
        why: String,
    },
}

/// One namespaced object to apply.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Manifest {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    /// The whole object, its namespace filled in.
    pub(super) object: Value,
}

impl std::fmt::Display for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// The manifests of a message in the order in which they are applied.
///
/// `manifests` is YAML text or a list of objects; `namespace` is for objects that name none.
pub(super) fn read(manifests: &Value, namespace: Option<&str>, rules: &ApplyRules) -> Result<Vec<Manifest>, Rejected> {
    let documents = documents(manifests)?;
    if documents.is_empty() {
        return Err(Rejected::Shape("hold no object"));
    }
    let mut read = Vec::with_capacity(documents.len());
    for (index, document) in documents.into_iter().enumerate() {
        let manifest = object(document, namespace).map_err(|fault| Rejected::Document {
            index: index + 1,
            fault: fault.into(),
        })?;
        allowed(&manifest, rules)?;
        read.push(manifest);
    }
    let rank = |kind: &str| ORDER.iter().position(|known| *known == kind).unwrap_or(ORDER.len());
    read.sort_by_key(|manifest| rank(&manifest.kind)); // Stable: the author's order within a kind stays.
    if let Some(twice) = read.iter().enumerate().find_map(|(at, one)| {
        read[..at]
            .iter()
            .any(|other| (&one.group, to_string(one)) == (&other.group, to_string(other)))
            .then_some(one)
    }) {
        return Err(Rejected::NotAllowed {
            object: twice.to_string(),
            why: "is in the manifests twice".into(),
        });
    }
    Ok(read)
}

fn to_string(manifest: &Manifest) -> String {
    manifest.to_string()
}

fn documents(manifests: &Value) -> Result<Vec<Value>, Rejected> {
    let documents = match manifests {
        Value::String(text) => yaml(text)?,
        Value::Array(list) => {
            let bytes = serde_json::to_vec(list).map_or(usize::MAX, |text| text.len());
            if bytes > MAX_BYTES {
                return Err(Rejected::TooLarge(bytes));
            }
            list.clone()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            return Err(Rejected::Shape("are neither YAML text nor a list of objects"));
        }
    };
    if documents.len() > MAX_OBJECTS {
        Err(Rejected::TooMany)
    } else {
        Ok(documents)
    }
}

/// Anchors are refused rather than bounded: a manifest of 1 MiB must not become more by being read.
fn yaml(text: &str) -> Result<Vec<Value>, Rejected> {
    if text.len() > MAX_BYTES {
        return Err(Rejected::TooLarge(text.len()));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_anchors: 0, max_aliases: 0, max_depth: 64, max_nodes: 200_000, max_documents: 2 * MAX_OBJECTS,
        },
        with_snippet: false,
        strict_booleans: true,
    };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|err| Rejected::NotYaml(err.to_string().chars().take(200).collect()))?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

fn object(document: Value, default_namespace: Option<&str>) -> Result<Manifest, &'static str> {
    let Value::Object(mut object) = document else {
        return Err("is not an object");
    };
    let text = |map: &Map<String, Value>, name: &str| {
        map.get(name)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    let api_version = text(&object, "apiVersion").ok_or("has no `apiVersion`")?;
    let kind = text(&object, "kind").ok_or("has no `kind`")?;
    if kind.ends_with("List") && object.contains_key("items") {
        return Err("is a list; give its items as documents");
    }
    let metadata = object
        .get_mut("metadata")
        .and_then(Value::as_object_mut)
        .ok_or("has no `metadata`")?;
    let name = text(metadata, "name").ok_or("has no `metadata.name`")?;
    let namespace = text(metadata, "namespace")
        .or_else(|| default_namespace.map(str::to_owned))
        .ok_or("has no `metadata.namespace`, and the message gives no `namespace`")?;
    for map in ["annotations", "labels"] {
        if metadata
            .get(map)
            .is_some_and(|value| !(value.is_object() || value.is_null()))
        {
            return Err("has labels or annotations that are no mapping");
        }
    }
    metadata.insert("namespace".into(), Value::String(namespace.clone()));
    // They would make the write conditional on, or pretend, what only the server knows.
    for server_owned in [
        "managedFields",
        "resourceVersion",
        "uid",
        "generation",
        "creationTimestamp",
        "selfLink",
    ] {
        metadata.remove(server_owned);
    }
    object.remove("status");

    // They end up in paths of requests.
    let is_path_safe = |text: &str| {
        text.len() <= 253
            && !text.starts_with('.')
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.')
    };
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    if !(is_path_safe(group) && is_path_safe(version) && is_path_safe(&kind) && is_path_safe(&namespace)) {
        return Err("has characters in its `apiVersion`, `kind` or namespace that no such name has");
    }
    if name.len() > 253
        || name.starts_with('.')
        || name.contains(['/', '%', '?', '#', '\\'])
        || name.contains(char::is_control)
    {
        return Err("has a name that is no name of an object");
    }
    let (group, version) = (group.to_owned(), version.to_owned());
    Ok(Manifest {
        group,
        version,
        kind,
        namespace,
        name,
        object: Value::Object(object),
    })
}

fn allowed(manifest: &Manifest, rules: &ApplyRules) -> Result<(), Rejected> {
    let Manifest {
        group, kind, namespace, ..
    } = manifest;
    let not_allowed = |why: String| {
        Err(Rejected::NotAllowed {
            object: manifest.to_string(),
            why,
        })
    };
    if FORBIDDEN_GROUPS.contains(&group.as_str()) {
        return not_allowed(format!(
            "objects of the group {group} grant rights and are never applied"
        ));
    }
    let qualified = if group.is_empty() {
        kind.clone()
    } else {
        format!("{group}/{kind}")
    };
    let list = |names: &[String]| names.iter().take(20).map(String::as_str).collect::<Vec<_>>().join(", ");
    if !rules.kinds.contains(&qualified) {
        return not_allowed(format!(
            "the kind {qualified} is not allowed by this pool (spec.jobs.apply.kinds: {})",
            list(&rules.kinds)
        ));
    }
    if !rules.namespaces.contains(namespace) {
        return not_allowed(format!(
            "the namespace {namespace} is not allowed by this pool (spec.jobs.apply.namespaces: {})",
            list(&rules.namespaces)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod unit {
    use serde_json::json;

    use super::*;

    fn rules() -> ApplyRules {
        ApplyRules {
            namespaces: vec!["demo".into()],
            kinds: ["ConfigMap", "Secret", "Service", "apps/Deployment"]
                .map(str::to_owned)
                .to_vec(),
        }
    }

    fn config_map(name: &str) -> String {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: demo}}\ndata: {{a: \"1\"}}\n")
    }

    fn refusal(manifests: &Value) -> String {
        read(manifests, None, &rules()).expect_err("refused").to_string()
    }

    #[test]
    fn objects_are_ordered_by_what_needs_what() {
        let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\n# nothing\n---\napiVersion: v1\n\
                    kind: Service\nmetadata: {name: s}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n";
        let read = read(&json!(text), Some("demo"), &rules()).unwrap();
        let names: Vec<String> = read.iter().map(Manifest::to_string).collect();
        assert_eq!(names, ["ConfigMap demo/c", "Service demo/s", "Deployment demo/d"]);
        assert_eq!(read[2].group, "apps");
        assert_eq!(read[2].object["metadata"]["namespace"], "demo");
    }

    #[test]
    fn a_list_of_objects_is_taken_without_what_the_server_owns() {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "status": {"x": 1},
            "metadata": {"name": "c", "namespace": "demo", "uid": "u", "resourceVersion": "7", "managedFields": []}});
        let read = read(&json!([object]), None, &rules()).unwrap();
        let expected = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "demo"}});
        assert_eq!(read[0].object, expected);
    }

    #[test]
    fn what_the_pool_does_not_allow_is_named_with_the_rule() {
        let cases = [
            (
                config_map("c").replace("namespace: demo", "namespace: kube-system"),
                "ConfigMap kube-system/c: the namespace kube-system is not allowed by this pool (spec.jobs.apply.namespaces: demo)",
            ),
            (
                config_map("c").replace("kind: ConfigMap", "kind: Pod"),
                "Pod demo/c: the kind Pod is not allowed by this pool (spec.jobs.apply.kinds: ConfigMap, Secret, Service, apps/Deployment)",
            ),
            (
                config_map("c").replace("apiVersion: v1", "apiVersion: apps/v1"),
                "ConfigMap demo/c: the kind apps/ConfigMap is not allowed",
            ),
            (
                config_map("c").replace("apiVersion: v1", "apiVersion: evil.example/v1"),
                "the kind evil.example/ConfigMap is not allowed",
            ),
        ];
        for (text, words) in cases {
            assert!(
                refusal(&json!(text)).starts_with(words) || refusal(&json!(text)).contains(words),
                "{}",
                refusal(&json!(text))
            );
        }
    }

    #[test]
    fn kinds_that_grant_rights_are_refused_even_when_the_pool_names_them() {
        let all = ApplyRules {
            namespaces: vec!["demo".into()],
            kinds: ["Role", "RoleBinding"]
                .map(|kind| format!("rbac.authorization.k8s.io/{kind}"))
                .to_vec(),
        };
        for kind in ["Role", "RoleBinding"] {
            let object = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": "x", "namespace": "demo"}});
            let said = read(&json!([object]), None, &all).unwrap_err().to_string();
            assert_eq!(
                said,
                format!(
                    "{kind} demo/x: objects of the group rbac.authorization.k8s.io grant rights and are never applied"
                )
            );
        }
    }

    #[test]
    fn hostile_text_is_refused_with_its_place() {
        let bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n";
        let many = (0..=MAX_OBJECTS)
            .map(|n| config_map(&format!("c{n}")))
            .collect::<Vec<_>>()
            .join("---\n");
        let flood = "---\n{}\n".repeat(10_000);
        let cases = [
            (json!(bomb), "the manifests are not plain YAML: "),
            (
                json!(config_map("c").replace("metadata", "\tmetadata")),
                "the manifests are not plain YAML: ",
            ),
            (json!("[".repeat(10_000)), "the manifests are not plain YAML: "),
            (json!(many), "the manifests hold more than 100 objects"),
            (json!(flood), "the manifests are not plain YAML: "),
            (json!("x".repeat(5 * MAX_BYTES)), "the manifests have 5242880 bytes"),
            (json!([{"a": "x".repeat(MAX_BYTES)}]), "the manifests have "),
            (json!(""), "the manifests hold no object"),
            (json!([]), "the manifests hold no object"),
            (json!(12), "the manifests are neither YAML text nor a list"),
            (
                json!({"kind": "ConfigMap"}),
                "the manifests are neither YAML text nor a list",
            ),
            (json!("just words"), "document 1: is not an object"),
            (json!("a: 1\n"), "document 1: has no `apiVersion`"),
            (json!("apiVersion: v1\n"), "document 1: has no `kind`"),
            (
                json!("apiVersion: v1\nkind: ConfigMap\n"),
                "document 1: has no `metadata`",
            ),
            (
                json!("apiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: x}\n"),
                "document 1: has no `metadata.name`",
            ),
            (
                json!("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n"),
                "document 1: has no `metadata.namespace`",
            ),
            (
                json!("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: demo, annotations: text}\n"),
                "document 1: has labels",
            ),
            (
                json!("apiVersion: v1\nkind: List\nitems: []\n"),
                "document 1: is a list",
            ),
            (
                json!("apiVersion: ../v1\nkind: ConfigMap\nmetadata: {name: x, namespace: demo}\n"),
                "document 1: has characters",
            ),
            (
                json!("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ../x, namespace: demo}\n"),
                "document 1: has a name",
            ),
            (
                json!(format!("{}---\n{}", config_map("c"), config_map("c"))),
                "ConfigMap demo/c: is in the manifests twice",
            ),
        ];
        for (manifests, words) in cases {
            let said = refusal(&manifests);
            assert!(said.starts_with(words), "expected {words:?}, got {said:?}");
        }
        assert!(refusal(&json!(bomb)).contains("line 1"), "{}", refusal(&json!(bomb)));
    }

    #[test]
    fn windows_line_ends_are_line_ends() {
        let text = config_map("c").replace('\n', "\r\n");
        assert_eq!(
            read(&json!(text), None, &rules()).unwrap()[0].object["data"],
            json!({"a": "1"})
        );
    }
}
