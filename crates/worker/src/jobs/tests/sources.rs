//! Manifests from ConfigMaps, Secrets and addresses.

use umbel_testkit::TempDir;

use super::*;

#[tokio::test]
async fn manifests_come_from_files_that_the_pool_names_and_from_nowhere_else() {
    let registry = registry("sources-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "sources").await;
    let folder = TempDir::new("sources");
    let text = |name: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n");
    for (path, text) in [
        ("configmaps/site/app.yaml", text("from-map")),
        ("configmaps/site/bad.yaml", text("x") + "---\nkind: Oops\n"),
        ("configmaps/other/app.yaml", text("other")),
        ("secrets/keys/app.yaml", text("from-secret")),
    ] {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let rules = json!({"namespaces": ["sources"], "kinds": ["ConfigMap"],
        "sources": {"configMaps": ["site"], "secrets": ["keys"], "hosts": ["*.example.com"]}});
    let settings = Settings::parse(&json!({"apply": rules}).to_string()).unwrap();
    let jobs = super::super::builtin(&registry, settings, folder.path().into()).unwrap();
    let apply = async |from: Value| {
        run_of(
            &jobs,
            "apply",
            (1, 1),
            json!({"manifestsFrom": from, "namespace": "sources"}),
        )
        .await
    };
    let map = |name: &str, key: &str| json!({"configMap": {"name": name, "key": key}});
    let secret = |name: &str, key: &str| json!({"secret": {"name": name, "key": key}});
    let result = done(apply(json!([map("site", "app.yaml"), secret("keys", "app.yaml")])).await);
    assert_eq!(
        actions(&result, "c2"),
        ["ConfigMap/from-map created", "ConfigMap/from-secret created"]
    );

    for (from, exc_type, words) in [
        (
            map("other", "app.yaml"),
            "PermissionError",
            "manifests come from ConfigMap \"other\" (spec.jobs.apply.sources.configMaps)",
        ),
        (
            secret("c2-access", "kubeconfig"),
            "PermissionError",
            "spec.jobs.apply.sources.secrets",
        ),
        (
            map("keys", "app.yaml"),
            "PermissionError",
            "spec.jobs.apply.sources.configMaps",
        ),
        (
            map("site", "../other/app.yaml"),
            "ValueError",
            "is no key of a ConfigMap",
        ),
        (map("site", "..data"), "ValueError", "is no key of a ConfigMap"),
        (
            map("site", "bad.yaml"),
            "ValueError",
            "ConfigMap site, key bad.yaml: document 2 (line 5): has no `apiVersion`",
        ),
        (
            json!({"url": "https://evil.example.org/x"}),
            "PermissionError",
            "the pool allows no request to https://evil.example.org",
        ),
        (
            json!({"url": "http://169.254.169.254/latest"}),
            "PermissionError",
            "the pool allows no request to http://169.254.169.254",
        ),
        (
            json!({}),
            "TypeError",
            "each source is one of configMap, secret and url",
        ),
        (
            json!({"url": "https://a.example.com", "secret": {"name": "keys", "key": "app.yaml"}}),
            "TypeError",
            "each source is one of",
        ),
    ] {
        refused(apply(json!([from])).await, exc_type, words);
    }
    // One that is not there yet may come.
    let why = failed(apply(json!([map("site", "missing.yaml")])).await);
    assert!(
        why.is_retryable && why.message == "ConfigMap site, key missing.yaml: entity not found",
        "{why:?}"
    );
}

#[tokio::test]
async fn manifests_come_from_addresses_that_the_pool_allows() {
    let registry = registry("url-home", &[]).await;
    let target = client(&stage().await.target.kubeconfig).await;
    namespace(&target, "url").await;
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: from-url, namespace: url}\n";
    let app = axum::Router::new()
        .route("/app.yaml", axum::routing::get(move || async move { text }))
        .route(
            "/large.yaml",
            axum::routing::get(|| async { "x".repeat((1 << 20) + 1) }),
        )
        .route(
            "/away.yaml",
            axum::routing::get(|| async { axum::response::Redirect::temporary("http://127.0.0.2:1/x") }),
        );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });
    let rules = json!({"namespaces": ["url"], "kinds": ["ConfigMap"], "sources": {"hosts": [host]}});
    let apply = async |path: &str| {
        let from = json!([{"url": format!("{host}{path}?token=canary")}]);
        run(
            &registry,
            &json!({"apply": rules}),
            "apply",
            (1, 1),
            json!({"manifestsFrom": from}),
        )
        .await
    };
    assert_eq!(
        actions(&done(apply("/app.yaml").await), "c2"),
        ["ConfigMap/from-url created"]
    );
    refused(
        apply("/large.yaml").await,
        "ValueError",
        "answered with more than 1048576 bytes",
    );
    refused(
        apply("/away.yaml").await,
        "PermissionError",
        "the pool allows no request to http://127.0.0.2:1",
    );
    let why = failed(apply("/none.yaml").await);
    assert!(
        why.message.contains("answered 404") && !why.message.contains("canary"),
        "{why}"
    );
    serving.abort();
}
