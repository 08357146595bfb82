//! C07: manifests of somebody who means harm. They are refused with the reason, and no request leaves for the cluster.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Counts connections to the target: TLS hides requests, and without a connection there is none.
struct Counter {
    port: u16,
    count: Arc<AtomicUsize>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn counter(server: &str) -> Counter {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let (seen, to) = (Arc::clone(&count), server.trim_start_matches("https://").to_owned());
    let accepting = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            seen.fetch_add(1, Ordering::SeqCst);
            let to = to.clone();
            tokio::spawn(async move {
                if let Ok(mut server) = tokio::net::TcpStream::connect(to).await {
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut server).await;
                }
            });
        }
    });
    Counter { port, count, accepting }
}

/// What is wrong with each, and the words of its refusal.
fn hostile() -> Vec<(&'static str, Value, &'static str)> {
    let map = |metadata: Value| json!([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}]);
    let of = |api_version: &str, kind: &str| json!([{"apiVersion": api_version, "kind": kind, "metadata": {"name": "x", "namespace": "demo"}}]);
    let text = |lines: &str| {
        json!(format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: x, namespace: demo}}\n{lines}"
        ))
    };
    let named = |name: &str| map(json!({"name": name, "namespace": "demo"}));
    let inside = |namespace: &str| map(json!({"name": "x", "namespace": namespace}));
    let yaml = "are not plain YAML: document 1, line ";
    let name = "has a name that is no name of an object";
    let letters = "has characters in its `apiVersion`, `kind` or namespace";
    let rights = "grant rights";
    let kind = "is not allowed by this pool (spec.jobs.apply.kinds";
    let laughs = (1..30).map(|n| format!("  a{n}: &a{n} [*a{}, *a{}]\n", n - 1, n - 1));
    let laughs = "data:\n  a0: &a0 [x, x]\n".to_owned() + &laughs.collect::<String>();
    vec![
        ("billion laughs", text(&laughs), yaml),
        ("one anchor", text("data: &a {x: y}\n"), yaml),
        ("an alias to nothing", text("data: *a\n"), yaml),
        ("a merge key", text("data: {<<: {a: b}, <<: *a}\n"), yaml),
        ("a tab as indentation", text("data:\n\tx: y\n"), yaml),
        ("a key twice", text("data: {a: b}\ndata: {c: d}\n"), yaml),
        ("a key twice in metadata", json!("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, name: y, namespace: demo}\n"), yaml),
        ("depth", json!("[".repeat(5000)), yaml),
        ("depth of mappings", json!("{a: ".repeat(200)), yaml),
        ("an open quote", text("data: {a: \"b}\n"), yaml),
        ("two million nodes", json!(format!("[{}]", "1,".repeat(300_000))), yaml),
        ("a megabyte", json!("x".repeat((1 << 20) + 1)), "have 1048577 bytes"),
        ("a megabyte in a list", map(json!({"name": "x", "namespace": "demo", "a": "x".repeat(1 << 20)})), "more than 1048576"),
        ("a hundred and one", json!((0..101).map(|n| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("x{n}"), "namespace": "demo"}})).collect::<Vec<_>>()), "hold more than 100 objects"),
        ("documents without end", json!("---\n".repeat(2000)), "hold more than 500 objects"),
        ("a number", json!(7), "neither YAML text nor a list"),
        ("a mapping", json!({"apiVersion": "v1"}), "neither YAML text nor a list"),
        ("nothing", json!(""), "hold no object"),
        ("a word", json!("rm -rf"), "is not an object"),
        ("a kind that is a list", json!([{"apiVersion": "v1", "kind": ["ConfigMap"], "metadata": {}}]), "has no `kind`"),
        ("metadata that is text", json!([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": "x"}]), "has no `metadata`"),
        ("a name that is a number", map(json!({"name": 7, "namespace": "demo"})), "has no `metadata.name`"),
        ("a namespace that is a list", map(json!({"name": "x", "namespace": ["demo"]})), "has a `metadata.namespace` that is no text"),
        ("labels that are a list", map(json!({"name": "x", "namespace": "demo", "labels": ["a"]})), "are no mapping"),
        ("annotations that are text", map(json!({"name": "x", "namespace": "demo", "annotations": "a"})), "are no mapping"),
        ("generateName", map(json!({"generateName": "x-", "namespace": "demo"})), "has no `metadata.name`"),
        ("a List", json!([{"apiVersion": "v1", "kind": "List", "metadata": {}, "items": []}]), "is a list"),
        ("a ConfigMapList", json!([{"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"name": "x"}, "items": []}]), "is a list"),
        ("a path up", named("../../kube-system/configmaps/x"), name),
        ("dots", named(".."), name),
        ("an encoded slash", named("x%2fstatus"), name),
        ("a query", named("x?force=true"), name),
        ("a fragment", named("x#y"), name),
        ("a backslash", named("x\\y"), name),
        ("a line end", named("x\r\nX-Evil: 1"), name),
        ("a NUL", named("x\u{0}"), name),
        ("letters that look alike", named("с"), name),
        ("a long name", named(&"x".repeat(254)), name),
        ("a path in the namespace", inside("demo/pods"), letters),
        ("dots as namespace", inside(".."), letters),
        ("a path as version", of("v1/../../apis", "ConfigMap"), letters),
        ("a path as kind", of("v1", "ConfigMap/x"), letters),
        ("another namespace", inside("kube-system"), "the namespace kube-system is not allowed by this pool"),
        ("a Role", of("rbac.authorization.k8s.io/v1", "Role"), rights),
        ("a ClusterRoleBinding", of("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"), rights),
        ("a webhook", of("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"), rights),
        ("a policy", of("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy"), rights),
        ("a definition", of("apiextensions.k8s.io/v1", "CustomResourceDefinition"), rights),
        ("an API of its own", of("apiregistration.k8s.io/v1", "APIService"), rights),
        ("a signing request", of("certificates.k8s.io/v1", "CertificateSigningRequest"), rights),
        ("a token", of("authentication.k8s.io/v1", "TokenRequest"), rights),
        ("a review", of("authorization.k8s.io/v1", "SubjectAccessReview"), rights),
        ("a Namespace", of("v1", "Namespace"), kind),
        ("a Node", of("v1", "Node"), kind),
        ("a PersistentVolume", of("v1", "PersistentVolume"), kind),
        ("a Pod", of("v1", "Pod"), kind),
        ("a Secret", of("v1", "Secret"), kind),
        ("a kind of nobody", of("evil.example/v9", "Backdoor"), kind),
        ("the same kind in another group", of("evil.example/v1", "ConfigMap"), kind),
        ("another case", of("v1", "configmap"), kind),
        ("an inventory", named("umbel-applyset-shop"), "those of apply sets' inventories"),
        ("a label of ours", map(json!({"name": "x", "namespace": "demo", "labels": {"umbel.dev/applyset": "shop"}})), "has a label of ours"),
        ("one object twice", json!([map(json!({"name": "x", "namespace": "demo"}))[0], map(json!({"name": "x", "namespace": "demo"}))[0]]), "is in the manifests twice"),
    ]
}

#[tokio::test]
async fn c07_hostile_manifests_are_refused_with_the_reason_and_without_a_request() {
    let good = std::fs::read_to_string(&stage().await.target.kubeconfig).unwrap();
    let server = good
        .lines()
        .find_map(|line| line.trim().strip_prefix("server: "))
        .unwrap();
    let counter = counter(server).await;
    let counted = good.replace(server, &format!("https://127.0.0.1:{}", counter.port));
    let registry = registry("hostile-home", &[("counted", &counted)]).await;
    let rules = json!({"namespaces": ["demo"], "kinds": ["ConfigMap", "apps/Deployment"]});
    let settings = json!({"apply": rules, "prune": rules, "delete": rules, "diff": rules});
    let jobs = builtin(&registry, Settings::parse(&settings.to_string()).unwrap());
    let cases = hostile();
    assert!(cases.len() >= 50);
    for (what, manifests, words) in cases {
        for job in ["apply", "prune", "delete", "diff"] {
            let mut kwargs = json!({"manifests": manifests});
            if job == "prune" {
                kwargs["applySet"] = json!("shop");
                kwargs["namespace"] = json!("demo");
            }
            let why = failed(run_at("counted", &jobs, job, (1, 1), kwargs).await);
            let words = words.replace("spec.jobs.apply", &format!("spec.jobs.{job}"));
            // There the message brings the namespace.
            let is_named = job == "prune" && words.starts_with("has no `metadata.namespace`");
            assert!(
                why.message.contains(&words) || is_named,
                "{what}, {job}: expected {words:?}, got {why}"
            );
            assert!(
                matches!(why.exc_type.as_str(), "ValueError" | "PermissionError") && !why.is_retryable,
                "{what}: {why:?}"
            );
            assert!(
                why.message.len() < 1000,
                "{what}: {} bytes of message",
                why.message.len()
            );
        }
    }
    assert_eq!(counter.count.load(Ordering::SeqCst), 0);
    // It would have been counted.
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "demo").await;
    done(
        run_at(
            "counted",
            &jobs,
            "apply",
            (1, 1),
            json!({"manifests": [config_map("demo", "x", &json!({}))]}),
        )
        .await,
    );
    assert!(counter.count.load(Ordering::SeqCst) > 0);
}
