//! Every capture of real Celery is used by a test, and the tables say by which: `registry.json` here, and the features in
//! `docs/compatibility.md`.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

fn text(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// What stands at the left margin of a source file, by name: functions, constants, statics.
fn items(source: &str) -> BTreeMap<String, String> {
    let mut items: BTreeMap<String, String> = BTreeMap::new();
    let mut name = String::new();
    let mut attributes = String::new();
    for line in source.lines() {
        if line.starts_with("#[") {
            attributes.push_str(line);
            name.clear();
            continue;
        }
        let words = line.split(|ch: char| !(ch.is_alphanumeric() || ch == '_'));
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        let is_margin = line.starts_with(|ch: char| ch.is_ascii_lowercase());
        let at = words.iter().position(|word| ["fn", "const", "static"].contains(word));
        if let (true, Some(at)) = (is_margin, at)
            && at < 4
            && let Some(found) = words.get(at + 1)
        {
            (*found).clone_into(&mut name);
            items.insert(name.clone(), std::mem::take(&mut attributes));
        } else if is_margin {
            name.clear();
            attributes.clear();
        }
        if let Some(item) = items.get_mut(&name) {
            item.push('\n');
            item.push_str(line);
        }
    }
    items
}

/// The text of a test with that of everything in its file that it uses.
fn reach(items: &BTreeMap<String, String>, test: &str) -> String {
    let (mut seen, mut todo) = (BTreeSet::new(), vec![test]);
    let mut reached = String::new();
    while let Some(name) = todo.pop() {
        let Some(item) = items.get(name).filter(|_| seen.insert(name)) else {
            continue;
        };
        reached.push_str(item);
        todo.extend(item.split(|ch: char| !(ch.is_alphanumeric() || ch == '_')));
    }
    reached
}

fn is_test(item: &str) -> bool {
    let attributes = item.lines().next().unwrap_or_default();
    (attributes.contains("#[test]") || attributes.contains("#[tokio::test"))
        && !attributes.contains("ignore")
        && !attributes.contains("should_panic")
}

#[test]
fn every_capture_is_used_by_a_test_that_names_it() {
    let table: BTreeMap<String, Vec<String>> =
        serde_json::from_str(&text("crates/protocol/tests/registry.json")).unwrap();
    let files = std::fs::read_dir(root().join("crates/protocol/tests/golden")).unwrap();
    let golden: BTreeSet<String> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .map(|name| name.strip_suffix(".json").unwrap().to_owned())
        .collect();
    assert_eq!(golden.len(), 182);
    assert_eq!(table.keys().cloned().collect::<BTreeSet<_>>(), golden);
    let mut sources: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (capture, uses) in &table {
        if uses.is_empty() {
            wrong.push(format!("{capture}: no test"));
        }
        for entry in uses {
            let [kind, file, test] = entry.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{capture}: {entry:?} is not `kind file test`");
            };
            let items = sources.entry(file).or_insert_with(|| items(&text(file)));
            if !["decode", "encode", "play", "peer"].contains(&kind) {
                wrong.push(format!("{capture}: no kind is called {kind:?}"));
            }
            if !items.get(test).is_some_and(|item| is_test(item)) {
                wrong.push(format!("{capture}: {file} has no test {test}"));
            } else if !reach(items, test).contains(&format!("\"{capture}\"")) {
                wrong.push(format!("{capture}: {test} in {file} does not use it"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Names of all tests of the repository, of Rust and of the peers.
fn all_tests() -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    let mut folders = vec![root().join("crates"), root().join("e2e"), root().join("examples")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                tests.extend(tests_of(&std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    tests
}

/// Functions with `#[test]` or `#[tokio::test]` above them, at the margin or in a module.
fn tests_of(source: &str) -> Vec<String> {
    let (mut tests, mut is_next) = (Vec::new(), false);
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_next = true;
        } else if let Some((_, name)) = line.split_once("fn ")
            && is_next
        {
            tests.extend(name.split('(').next().map(str::to_owned));
            is_next = false;
        }
    }
    tests
}

#[test]
fn each_feature_has_its_test_or_its_reason() {
    let tests = all_tests();
    assert!(tests.len() > 300, "{} tests", tests.len());
    let document = text("docs/compatibility.md");
    let (mut features, mut wrong) = (0, Vec::new());
    for line in document.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [feature, works, why] = cells[..] else {
            wrong.push(format!("three columns: {line}"));
            continue;
        };
        match works {
            "Works" | "---" => continue,
            "yes" => {
                let named: Vec<&str> = why.split('`').skip(1).step_by(2).collect();
                let is_name = |word: &&str| word.contains('_') && !word.contains([' ', '-', '=', '.', ':']);
                let named: Vec<&str> = named.into_iter().filter(is_name).collect();
                let missing: Vec<&&str> = named.iter().filter(|name| !tests.contains(**name)).collect();
                if named.is_empty() || !missing.is_empty() {
                    wrong.push(format!("{feature}: no such test: {missing:?}"));
                }
            }
            "no" | "never" => {
                if why.len() < 10 {
                    wrong.push(format!("{feature}: {works}, and why?"));
                }
            }
            other => wrong.push(format!("{feature}: {other:?} is not yes, no or never")),
        }
        features += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(features > 100, "{features} features");
}

#[test]
fn the_registry_sees_what_a_test_uses() {
    let source = "const ALL: [&str; 1] = [\n    \"a-01\",\n];\n\n#[test]\nfn uses_it() {\n    for name in ALL {}\n}\n\n\
                  #[test]\nfn does_not() {\n    \"a-02\";\n}\n\nfn helper() {}\n";
    let items = items(source);
    assert!(is_test(&items["uses_it"]) && !is_test(&items["helper"]));
    assert!(reach(&items, "uses_it").contains("\"a-01\""));
    assert!(!reach(&items, "does_not").contains("\"a-01\""));
    assert_eq!(tests_of(source), ["uses_it", "does_not"]);
}
