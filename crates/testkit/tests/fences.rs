//! Which crate may use which: a `Cargo.toml` is the only promise that survives hurry, and this is its test.

use std::collections::BTreeMap;

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Ours, by folder: whom each may use. What is not listed here uses none of ours.
const ARROWS: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("protocol", &[]),
    ("telemetry", &[]),
    ("plan", &["api"]),
    ("broker", &["protocol"]),
    ("codec", &["protocol"]),
    ("client", &["protocol", "codec", "broker"]),
    ("clusters", &["api"]),
    (
        "operator",
        &["api", "plan", "protocol", "broker", "clusters", "telemetry"],
    ),
    ("worker", &["protocol", "codec", "broker", "clusters", "telemetry"]),
    ("dashboard", &["api", "protocol", "broker", "telemetry"]),
    (
        "cli",
        &["api", "plan", "protocol", "codec", "broker", "client", "clusters"],
    ),
    ("testkit", &["api", "protocol"]),
    ("example-worker", &["worker"]),
];

/// Foreign crates with an owner: only these of ours may list them.
const OWNERS: &[(&str, &[&str])] = &[
    ("redis", &["broker", "testkit"]),
    ("clap", &["operator", "worker", "dashboard", "cli"]),
    ("base64", &["protocol", "codec", "clusters"]),
    ("croner", &["plan"]),
    ("prometheus-client", &["telemetry", "operator", "worker", "dashboard"]),
    ("axum", &["telemetry", "dashboard"]),
];

/// Foreign crates that only these of ours must do without.
const STRANGERS: &[(&str, &[&str])] = &[("tokio", &["api", "protocol", "codec", "plan"])];

#[test]
fn crates_use_only_whom_they_may() {
    let metadata = MetadataCommand::new()
        .no_deps()
        .exec()
        .expect("cargo describes the workspace");
    let short = |name: &str| name.strip_prefix("umbel-").unwrap_or(name).to_owned();
    let ours: Vec<String> = metadata.packages.iter().map(|package| short(&package.name)).collect();
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut broken = Vec::new();
    for package in &metadata.packages {
        let name = short(&package.name);
        let allowed = arrows.get(name.as_str()).copied().unwrap_or_default();
        // Tests may use the kit and what they drive; the build of the product does not see that.
        for dependency in package
            .dependencies
            .iter()
            .filter(|dependency| dependency.kind == DependencyKind::Normal)
        {
            let used = short(&dependency.name);
            let is_ours = dependency.path.is_some() && ours.contains(&used);
            let owned = OWNERS
                .iter()
                .any(|(foreign, owners)| dependency.name == *foreign && !owners.contains(&name.as_str()));
            let strange = STRANGERS
                .iter()
                .any(|(foreign, without)| dependency.name == *foreign && without.contains(&name.as_str()));
            if (is_ours && !allowed.contains(&used.as_str())) || (!is_ours && (owned || strange)) {
                broken.push(format!("{name} -> {used}"));
            }
        }
    }
    assert!(
        ours.iter().any(|name| name == "broker"),
        "the workspace was read: {ours:?}"
    );
    assert!(broken.is_empty(), "arrows that the house does not have: {broken:?}");
}
