//! Manifests of a message: read within limits, held against what the pool allows, put in order. Pure.

use serde_json::{Map, Value};

use super::inventory;
use super::rules::Allow;

/// Objects that a message brings itself. More belong into several messages, which can fail and be retried apart.
pub(super) const MAX_OBJECTS: usize = 100;
/// Objects of a message, those of its sources included.
pub(super) const MAX_SOURCED: usize = 500;
/// Bytes of the manifests of a message or of one source, as text.
pub(super) const MAX_BYTES: usize = 1024 * 1024;

/// What is needed first comes first; unknown kinds come last, since their controllers may need the rest.
const ORDER: &[&str] = &[
    "Namespace",
    "CustomResourceDefinition",
    "PriorityClass",
    "StorageClass",
    "ResourceQuota",
    "LimitRange",
    "NetworkPolicy",
    "ServiceAccount",
    "ClusterRole",
    "Role",
    "ClusterRoleBinding",
    "RoleBinding",
    "Secret",
    "ConfigMap",
    "PersistentVolume",
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

/// The place of a kind in the order in which objects are written.
pub(super) fn rank(kind: &str) -> usize {
    ORDER.iter().position(|known| *known == kind).unwrap_or(ORDER.len())
}

/// Why manifests are not applied, before any cluster was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejected {
    /// Over [`MAX_BYTES`].
    #[error("{from} have {bytes} bytes, more than {MAX_BYTES}")]
    TooLarge {
        /// Whose.
        from: String,
        /// How many.
        bytes: usize,
    },
    /// Over [`MAX_OBJECTS`] or [`MAX_SOURCED`].
    #[error("{from} hold more than {most} objects")]
    TooMany {
        /// Whose.
        from: String,
        /// The limit.
        most: usize,
    },
    /// Neither YAML nor within its limits.
    #[error("{from} are not plain YAML: {why}")]
    NotYaml {
        /// Whose.
        from: String,
        /// The document, the line, what is wrong.
        why: String,
    },
    /// Neither text nor a list of objects, or without any object.
    #[error("{from} {why}")]
    Shape {
        /// Whose.
        from: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A document that is no usable object.
    #[error("{place}: {fault}")]
    Document {
        /// `document 2 (line 14)`, counted from 1, as people do; after the source, where it is not the message.
        place: String,
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

/// One object.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Manifest {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
    /// Empty for what is known to have none, or may have none.
    pub(super) namespace: String,
    pub(super) name: String,
    /// The whole object, its namespace filled in.
    pub(super) object: Value,
}

impl std::fmt::Display for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

impl Manifest {
    /// The same object whatever its version says.
    pub(super) fn is_same_object(&self, other: &Manifest) -> bool {
        (&self.group, &self.kind, &self.namespace, &self.name)
            == (&other.group, &other.kind, &other.namespace, &other.name)
    }

    pub(super) fn api_version(&self) -> &str {
        self.object["apiVersion"].as_str().unwrap_or_default()
    }

    /// Takes the namespace away from an object of a kind that has none.
    pub(super) fn without_namespace(&mut self) {
        self.namespace.clear();
        if let Some(metadata) = self.object["metadata"].as_object_mut() {
            metadata.remove("namespace");
        }
    }
}

/// Manifests from one place.
#[derive(Debug, Clone)]
pub(super) struct Input {
    /// How errors call it; empty for the message itself.
    pub(super) from: String,
    /// YAML text, or a list of objects.
    pub(super) value: Value,
}

impl Input {
    pub(super) fn of_message(value: Value) -> Input {
        Input {
            from: String::new(),
            value,
        }
    }

    fn name(&self) -> String {
        if self.from.is_empty() {
            "the manifests".to_owned()
        } else {
            format!("{}: the manifests", self.from)
        }
    }
}

/// A document, and where it is.
struct Document {
    place: String,
    value: Value,
}

/// The manifests of a message in the order in which they are applied; `namespace` is for objects that name none.
pub(super) fn read(inputs: &[Input], namespace: Option<&str>, allow: Allow<'_>) -> Result<Vec<Manifest>, Rejected> {
    let mut read: Vec<Manifest> = Vec::new();
    for input in inputs {
        let documents = documents(input)?;
        if documents.is_empty() {
            return Err(Rejected::Shape {
                from: input.name(),
                why: "hold no object",
            });
        }
        for Document { place, value } in documents {
            let (manifest, is_default) = object(value, namespace).map_err(|fault| Rejected::Document {
                place: place.clone(),
                fault: fault.into(),
            })?;
            allowed(&manifest, &place, is_default, allow)?;
            read.push(manifest);
        }
        if read.len() > MAX_SOURCED {
            return Err(Rejected::TooMany {
                from: input.name(),
                most: MAX_SOURCED,
            });
        }
    }
    read.sort_by_key(|manifest| rank(&manifest.kind)); // Stable: the author's order within a kind stays.
    let mut seen = std::collections::BTreeSet::new();
    if let Some(twice) = read
        .iter()
        .find(|one| !seen.insert((&one.group, &one.kind, &one.namespace, &one.name)))
    {
        return Err(Rejected::NotAllowed {
            object: twice.to_string(),
            why: "is in the manifests twice".into(),
        });
    }
    Ok(read)
}

/// An object that a message names without describing it.
pub(super) fn reference(
    api_version: &str,
    kind: &str,
    namespace: Option<&str>,
    name: &str,
    allow: Allow<'_>,
) -> Result<Manifest, Rejected> {
    let value = serde_json::json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}});
    let place: String = format!("{kind} {name}").chars().take(100).collect();
    let (manifest, _) = object(value, namespace).map_err(|fault| Rejected::Document {
        place: place.clone(),
        fault: fault.into(),
    })?;
    allowed(&manifest, &place, false, allow)?;
    Ok(manifest)
}

fn documents(input: &Input) -> Result<Vec<Document>, Rejected> {
    let too_large = |bytes| Rejected::TooLarge {
        from: input.name(),
        bytes,
    };
    let documents = match &input.value {
        Value::String(text) if text.len() > MAX_BYTES => return Err(too_large(text.len())),
        Value::String(text) => yaml(input, text)?,
        Value::Array(list) => {
            let bytes = serde_json::to_vec(list).map_or(usize::MAX, |text| text.len());
            if bytes > MAX_BYTES {
                return Err(too_large(bytes));
            }
            let place = |number: usize| format!("document {number}");
            let numbered = list.iter().enumerate();
            let document = |(index, value): (usize, &Value)| Document {
                place: place(index + 1),
                value: value.clone(),
            };
            numbered.map(document).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            return Err(Rejected::Shape {
                from: input.name(),
                why: "are neither YAML text nor a list of objects",
            });
        }
    };
    let most = if input.from.is_empty() {
        MAX_OBJECTS
    } else {
        MAX_SOURCED
    };
    if documents.len() > most {
        let from = input.name();
        return Err(Rejected::TooMany { from, most });
    }
    Ok(documents)
}

/// Anchors are refused rather than bounded: a manifest of 1 MiB must not become more by being read.
fn yaml(input: &Input, text: &str) -> Result<Vec<Document>, Rejected> {
    let mut documents = Vec::new();
    let chunks = split(text);
    if chunks.len() > 2 * MAX_SOURCED {
        return Err(Rejected::TooMany {
            from: input.name(),
            most: MAX_SOURCED,
        });
    }
    for Chunk { first, content, text } in chunks {
        let number = documents.len() + 1;
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! {
                max_anchors: 0, max_aliases: 0, max_depth: 64, max_nodes: 200_000, max_documents: 2,
            },
            with_snippet: false,
            strict_booleans: true,
        };
        let read: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options).map_err(|err| {
            let at = err.location().and_then(|at| usize::try_from(at.line()).ok());
            let line = first + at.unwrap_or(1).max(1) - 1;
            let text = err.to_string();
            // Its own places count from the document's first line.
            let text = text.split(" at line ").next().unwrap_or_default();
            let text = text.rsplit_once(" column ").map_or(text, |(_, after)| {
                after.split_once(": ").map_or(text, |(_, words)| words)
            });
            Rejected::NotYaml {
                from: input.name(),
                why: format!(
                    "document {number}, line {line}: {}",
                    text.chars().take(200).collect::<String>()
                ),
            }
        })?;
        for value in read.into_iter().filter(|value| !value.is_null()) {
            let source = if input.from.is_empty() {
                String::new()
            } else {
                format!("{}: ", input.from)
            };
            let place = format!("{source}document {} (line {content})", documents.len() + 1);
            documents.push(Document { place, value });
        }
    }
    Ok(documents)
}

/// One document's text, and lines counted from 1.
struct Chunk<'a> {
    /// Of its beginning, the mark included.
    first: usize,
    /// Of its first word: where people look.
    content: usize,
    text: &'a str,
}

/// The documents of a text. A line that begins with `---` ends a document wherever it stands.
fn split(text: &str) -> Vec<Chunk<'_>> {
    let is_mark = |line: &str| {
        let rest = line.strip_prefix("---");
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\n', '\r']))
    };
    let (mut begins, mut at) = (vec![(0, 1)], 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if is_mark(line) && at > 0 {
            begins.push((at, index + 1));
        }
        at += line.len();
    }
    let ends: Vec<usize> = begins.iter().skip(1).map(|(at, _)| *at).chain([text.len()]).collect();
    let chunk = |((at, first), end): ((usize, usize), usize)| {
        let text = &text[at..end];
        let is_content = |line: &str| {
            let line = line.trim();
            !(line.is_empty() || line.starts_with('#') || line == "---")
        };
        let skipped = text.lines().take_while(|line| !is_content(line)).count();
        Chunk {
            first,
            content: first + skipped,
            text,
        }
    };
    begins.into_iter().zip(ends).map(chunk).collect()
}

/// Also: is its namespace the one of the message?
fn object(document: Value, default_namespace: Option<&str>) -> Result<(Manifest, bool), &'static str> {
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
    if metadata
        .get("namespace")
        .is_some_and(|value| !(value.is_string() || value.is_null()))
    {
        return Err("has a `metadata.namespace` that is no text");
    }
    let is_default = text(metadata, "namespace").is_none();
    let namespace = text(metadata, "namespace").or_else(|| default_namespace.map(str::to_owned));
    for map in ["annotations", "labels"] {
        if metadata
            .get(map)
            .is_some_and(|value| !(value.is_object() || value.is_null()))
        {
            return Err("has labels or annotations that are no mapping");
        }
    }
    if metadata
        .get("labels")
        .and_then(|labels| labels.get(inventory::LABEL))
        .is_some()
    {
        return Err("has a label of ours: apply sets are named in the message, with `applySet`");
    }
    let namespace = namespace.unwrap_or_default();
    if namespace.is_empty() {
        metadata.remove("namespace");
    } else {
        metadata.insert("namespace".into(), Value::String(namespace.clone()));
    }
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
    let is_of_names = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    if name.len() > 253 || name.starts_with('.') || !name.bytes().all(is_of_names) {
        return Err("has a name that is no name of an object");
    }
    let (group, version) = (group.to_owned(), version.to_owned());
    let manifest = Manifest {
        group,
        version,
        kind,
        namespace,
        name,
        object: Value::Object(object),
    };
    Ok((manifest, is_default))
}

/// The namespace of a kind that may be cluster-scoped is looked at when that is known, unless the manifest itself names it.
fn allowed(manifest: &Manifest, place: &str, is_default: bool, allow: Allow<'_>) -> Result<(), Rejected> {
    let Manifest {
        group,
        kind,
        namespace,
        name,
        ..
    } = manifest;
    let not_allowed = |why: String| Rejected::NotAllowed {
        object: manifest.to_string(),
        why,
    };
    allow.kind(group, kind).map_err(not_allowed)?;
    let may_have_none = allow.is_cluster_kind(group, kind);
    if namespace.is_empty() && !may_have_none {
        return Err(Rejected::Document {
            place: place.to_owned(),
            fault: "has no `metadata.namespace`, and the message gives no `namespace`".to_owned(),
        });
    }
    if !(namespace.is_empty() || (is_default && may_have_none)) {
        allow.namespace(namespace).map_err(not_allowed)?;
    }
    if group.is_empty() && kind == "ConfigMap" && name.starts_with(inventory::PREFIX) {
        return Err(not_allowed(format!(
            "names that begin with {} are those of apply sets' inventories",
            inventory::PREFIX
        )));
    }
    Ok(())
}

#[cfg(test)]
mod unit {
    use serde_json::json;

    use super::*;

    use super::super::rules::ObjectRules;

    fn rules() -> ObjectRules {
        ObjectRules {
            namespaces: vec!["demo".into()],
            kinds: ["ConfigMap", "Secret", "Service", "apps/Deployment"]
                .map(str::to_owned)
                .to_vec(),
            ..ObjectRules::default()
        }
    }

    fn read(manifests: &Value, namespace: Option<&str>, rules: &ObjectRules) -> Result<Vec<Manifest>, Rejected> {
        let inputs = [Input::of_message(manifests.clone())];
        super::read(&inputs, namespace, Allow { job: "apply", rules })
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
    fn kinds_that_grant_rights_need_a_list_of_their_own() {
        let kinds = ["Role", "RoleBinding"].map(|kind| format!("rbac.authorization.k8s.io/{kind}"));
        let mut rules = ObjectRules {
            namespaces: vec!["demo".into()],
            kinds: kinds.to_vec(),
            ..ObjectRules::default()
        };
        let object = |kind: &str, namespace: &str| json!([{"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": "x", "namespace": namespace}}]);
        for kind in ["Role", "RoleBinding"] {
            let said = read(&object(kind, "demo"), None, &rules).unwrap_err().to_string();
            let words =
                "objects of the group rbac.authorization.k8s.io grant rights; the kind rbac.authorization.k8s.io";
            assert_eq!(
                said,
                format!(
                    "{kind} demo/x: {words}/{kind} is not allowed by this pool (spec.jobs.apply.clusterKinds: none)"
                )
            );
        }
        rules.cluster_kinds = kinds[..1].to_vec();
        assert_eq!(read(&object("Role", "demo"), None, &rules).unwrap().len(), 1);
        assert!(read(&object("RoleBinding", "demo"), None, &rules).is_err());
        // Also there the namespace counts, once it is said.
        assert!(read(&object("Role", "kube-system"), None, &rules).is_err());
    }

    #[test]
    fn cluster_scoped_objects_have_no_namespace_unless_the_message_gives_one() {
        let rules = ObjectRules {
            cluster_kinds: vec!["Namespace".into()],
            ..ObjectRules::default()
        };
        let object = json!([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}]);
        assert_eq!(read(&object, None, &rules).unwrap()[0].to_string(), "Namespace x");
        let mut given = read(&object, Some("anywhere"), &rules).unwrap().remove(0);
        given.without_namespace();
        assert_eq!(given.object["metadata"], json!({"name": "x"}));
    }

    #[test]
    fn places_are_documents_and_lines_in_their_source() {
        let text = "# site\n\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: demo}\n---\n# second\n\nkind: Oops\n";
        assert_eq!(refusal(&json!(text)), "document 2 (line 10): has no `apiVersion`");
        let inputs = [
            Input::of_message(json!(config_map("a"))),
            Input {
                from: "ConfigMap site, key app.yaml".into(),
                value: json!("---\na: 1\n"),
            },
        ];
        let rules = rules();
        let allow = Allow {
            job: "apply",
            rules: &rules,
        };
        let said = super::read(&inputs, None, allow).unwrap_err().to_string();
        assert_eq!(
            said,
            "ConfigMap site, key app.yaml: document 1 (line 2): has no `apiVersion`"
        );
        // A mark inside of a text that is indented is none, and one at the beginning of a line always is.
        let block =
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: demo}\ndata:\n  x: |\n    ---\n    y\n";
        assert_eq!(
            super::read(&[Input::of_message(json!(block))], None, allow).unwrap()[0].object["data"]["x"],
            "---\ny\n"
        );
        for (text, words) in [
            (
                config_map("a") + "---\na: 1\na: 2\n",
                "the manifests are not plain YAML: document 2, line 7: ",
            ),
            (
                "a: [\n".to_owned(),
                "the manifests are not plain YAML: document 1, line ",
            ),
            (
                "a: 1\n b: 2\n".to_owned(),
                "the manifests are not plain YAML: document 1, line 2: ",
            ),
            (
                "a: 1\n---\nb: &x 1\n".to_owned(),
                "the manifests are not plain YAML: document 2, line 3: ",
            ),
        ] {
            let said = refusal(&json!(text));
            assert!(said.starts_with(words), "{said}");
            eprintln!("{said}");
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
            (json!(flood), "the manifests hold more than 500 objects"),
            (json!("x".repeat(5 * MAX_BYTES)), "the manifests have 5242880 bytes"),
            (json!([{"a": "x".repeat(MAX_BYTES)}]), "the manifests have "),
            (json!(""), "the manifests hold no object"),
            (json!([]), "the manifests hold no object"),
            (json!(12), "the manifests are neither YAML text nor a list"),
            (
                json!({"kind": "ConfigMap"}),
                "the manifests are neither YAML text nor a list",
            ),
            (json!("just words"), "document 1 (line 1): is not an object"),
            (json!("a: 1\n"), "document 1 (line 1): has no `apiVersion`"),
            (json!("apiVersion: v1\n"), "document 1 (line 1): has no `kind`"),
            (
                json!("apiVersion: v1\nkind: ConfigMap\n"),
                "document 1 (line 1): has no `metadata`",
            ),
            (
                json!("apiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: x}\n"),
                "document 1 (line 1): has no `metadata.name`",
            ),
            (
                json!("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n"),
                "document 1 (line 1): has no `metadata.namespace`",
            ),
            (
                json!("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: demo, annotations: text}\n"),
                "document 1 (line 1): has labels",
            ),
            (
                json!("apiVersion: v1\nkind: List\nitems: []\n"),
                "document 1 (line 1): is a list",
            ),
            (
                json!("apiVersion: ../v1\nkind: ConfigMap\nmetadata: {name: x, namespace: demo}\n"),
                "document 1 (line 1): has characters",
            ),
            (
                json!("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ../x, namespace: demo}\n"),
                "document 1 (line 1): has a name",
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
        assert!(
            refusal(&json!(bomb)).contains("document 1, line 1"),
            "{}",
            refusal(&json!(bomb))
        );
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
