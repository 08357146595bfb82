//! Values by a schema: what it allows, and what it does not.

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Map, Value, json};
use umbel_testkit::Chance;

/// How to come to a property: names, `[]` for the items of a list, `{}` for the values of a map.
pub(crate) type Way = Vec<String>;

/// Objects are not nested deeper than this where nobody asks for it.
const DEEP: usize = 6;

/// Words that mean something somewhere: what no pattern says.
const WORDS: &[&str] = &[
    "",
    "a",
    "jobs",
    "calm",
    "redis",
    "url",
    "target",
    "kubeconfig",
    "nobody",
    "default",
    "umbel.echo",
    "worker",
    "0s",
    "1s",
    "20s",
    "90s",
    "1h",
    "1h30m",
    "720h",
    "9999999h",
    "0.001s",
    "1ms",
    "999999999999h",
    "-1s",
    "1",
    "0",
    "25%",
    "0%",
    "100%",
    "101%",
    "1.5",
    "0 0 1 1 *",
    "*/5 * * * *",
    "0 0 30 2 *",
    "60 0 1 1 *",
    "0 0 1 1 0 2027",
    "UTC",
    "Europe/Berlin",
    "America/St_Johns",
    "Mars/Olympus",
    "apps/Deployment",
    "ConfigMap",
    "/bin/true",
    "PATH",
    "https://example.com:443",
    "*.example.com",
    "[::1]:99999",
    "256Ki",
    "1Mi",
    "999999999Mi",
    "{task}",
    "{args.0}",
    "{header.tenant}",
    "app.kubernetes.io/name",
    "Ünïcödé ✓",
    "line\nbreak",
    "\u{1b}[31mred",
    "\u{202e}right to left",
    "=cmd()",
    "{{ .Values }}",
    "$(UMBEL_REDIS_URL)",
    "../../etc/passwd",
];

const TIMES: &[&str] = &[
    "2026-11-30T13:00:00Z",
    "1970-01-01T00:00:00Z",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "2027-02-28T23:59:60Z",
    "2027-02-29T00:00:00Z",
    "2030-03-31T02:30:00.123456789+14:00",
    "2026-10-25T02:30:00+01:00",
];

/// Pod templates, and what is none.
fn templates() -> Vec<Value> {
    let container = |more: Value| {
        let mut one = json!({ "name": "worker", "image": "registry.example/w:1" });
        one.as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("an object").clone());
        json!({ "spec": { "containers": [one] } })
    };
    vec![
        container(json!({})),
        container(json!({ "env": [{ "name": "A", "value": "1" }], "args": ["--x"] })),
        container(json!({ "env": [{ "name": "A", "value": "1" }, { "name": "A", "value": "2" }] })),
        container(json!({ "env": "no list" })),
        container(
            json!({ "env": [{ "name": "UMBEL_QUEUE", "value": "mine" }], "readinessProbe": { "exec": { "command": ["x"] } } }),
        ),
        container(
            json!({ "resources": { "requests": { "cpu": "1000m", "memory": "1Gi" }, "limits": { "cpu": "1" } } }),
        ),
        container(json!({ "resources": { "requests": { "cpu": "many" } } })),
        container(json!({ "ports": [{ "containerPort": 99999 }] })),
        container(json!({ "volumeMounts": [{ "name": "nowhere", "mountPath": "/x" }] })),
        container(json!({ "invented": { "by": "nobody" } })),
        json!({ "spec": { "containers": [] } }),
        json!({ "spec": { "containers": [{ "name": "Not A Name", "image": "" }] } }),
        json!({ "spec": { "containers": [{ "name": "a", "image": "a" }, { "name": "a", "image": "a" }] } }),
        json!({ "spec": { "containers": "none" } }),
        json!({ "spec": [] }),
        json!({ "spec": null, "metadata": null }),
        json!({ "metadata": { "labels": { "umbel.dev/pool": "calm", "x": "y" }, "annotations": { "a": "b" } } }),
        json!({ "metadata": { "labels": "none" } }),
        json!({ "metadata": { "labels": { "not a label!": "✓" } }, "spec": { "containers": [{ "name": "w", "image": "w" }] } }),
        json!({ "spec": { "containers": [{ "name": "w", "image": "w" }], "nodeSelector": { "a": "b" }, "hostNetwork": true,
                "serviceAccountName": "root", "terminationGracePeriodSeconds": -1, "restartPolicy": "Never" } }),
        json!({}),
    ]
}

/// The ways to all properties below `schema`.
pub(crate) fn ways(schema: &Value) -> Vec<Way> {
    let mut all = Vec::new();
    for (name, below) in properties(schema) {
        let first = vec![name];
        all.push(first.clone());
        all.extend(ways(below).into_iter().map(|rest| [first.clone(), rest].concat()));
    }
    all
}

fn properties(schema: &Value) -> Vec<(String, &Value)> {
    let named = schema["properties"].as_object().into_iter().flatten();
    let mut all: Vec<(String, &Value)> = named.map(|(name, below)| (name.clone(), below)).collect();
    if schema["items"].is_object() {
        all.push(("[]".into(), &schema["items"]));
    }
    if schema["additionalProperties"].is_object() {
        all.push(("{}".into(), &schema["additionalProperties"]));
    }
    all
}

fn required(schema: &Value) -> Vec<&str> {
    schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// Changes one property of `spec`: to what the schema allows or not, or away.
pub(crate) fn change(spec: &mut Value, schema: &Value, way: &[String], chance: &mut Chance) {
    change_at(spec, schema, way, chance, 0);
}

fn change_at(spec: &mut Value, schema: &Value, way: &[String], chance: &mut Chance, depth: usize) {
    let Some((first, rest)) = way.split_first() else {
        *spec = match chance.below(8) {
            0..5 => allowed(schema, chance, 0),
            5 => Value::Null,
            _ => refused(schema, chance),
        };
        return;
    };
    match first.as_str() {
        "[]" => {
            let items = list(spec);
            if items.is_empty() {
                items.push(allowed(&schema["items"], chance, DEEP));
            }
            let place = chance.pick(items.len());
            change_at(&mut items[place], &schema["items"], rest, chance, depth + 1);
        }
        "{}" => {
            let key = (*chance.of(WORDS)).to_owned();
            let one = map(spec).entry(key).or_insert(Value::Null);
            change_at(one, &schema["additionalProperties"], rest, chance, depth + 1);
        }
        name => {
            let below = &schema["properties"][name];
            let fields = map(spec);
            // Many exclude each other: now and then it stands alone, but seldom without all that makes the object work.
            if chance.one_in(if depth == 0 { 12 } else { 2 }) {
                let needed = required(schema);
                fields.retain(|field, _| needed.contains(&field.as_str()));
            }
            for needed in required(schema) {
                if needed != name && !fields.contains_key(needed) {
                    let value = allowed(&schema["properties"][needed], chance, DEEP);
                    fields.insert(needed.to_owned(), value);
                }
            }
            let one = fields.entry(name.to_owned()).or_insert(Value::Null);
            change_at(one, below, rest, chance, depth + 1);
            if one.is_null() {
                fields.remove(name);
            }
        }
    }
}

fn list(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = json!([]);
    }
    value.as_array_mut().expect("a list")
}

fn map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("an object")
}

/// A value that the schema allows, as far as types, bounds, patterns and enumerations go.
fn allowed(schema: &Value, chance: &mut Chance, depth: usize) -> Value {
    if let Some(words) = schema["enum"].as_array() {
        return chance.of(words).clone();
    }
    if schema["x-kubernetes-int-or-string"] == json!(true) {
        return match chance.below(3) {
            0 => json!(chance.below(200)),
            1 => json!(format!("{}%", chance.below(120))),
            _ => json!(chance.of(WORDS)),
        };
    }
    match schema["type"].as_str() {
        Some("boolean") => json!(chance.one_in(2)),
        Some("integer") => json!(whole(schema, chance)),
        Some("number") => {
            let (least, most) = (
                schema["minimum"].as_f64().unwrap_or(0.0),
                schema["maximum"].as_f64().unwrap_or(100.0),
            );
            let part = chance.below(1001) as f64 / 1000.0;
            json!(least + (most - least) * part)
        }
        Some("string") => json!(text(schema, chance)),
        Some("array") => {
            let least = schema["minItems"].as_u64().unwrap_or(0);
            let most = schema["maxItems"].as_u64().unwrap_or(4).min(least + 3);
            let count = least + chance.below(most - least + 1);
            (0..count)
                .map(|_| allowed(&schema["items"], chance, depth + 1))
                .collect()
        }
        Some("object") if schema["x-kubernetes-preserve-unknown-fields"] == json!(true) => {
            if chance.one_in(3) {
                json!({ "a": anything(chance, 0) })
            } else {
                chance.of(&templates()).clone()
            }
        }
        Some("object") if schema["additionalProperties"].is_object() => {
            let count = chance.below(3);
            let pair = |_| {
                let value = allowed(&schema["additionalProperties"], chance, depth + 1);
                ((*chance.of(WORDS)).to_owned(), value)
            };
            (0..count).map(pair).collect::<Map<_, _>>().into()
        }
        Some("object") => {
            let needed = required(schema);
            let mut fields = Map::new();
            for (name, below) in properties(schema) {
                if needed.contains(&name.as_str()) || (depth < DEEP && chance.one_in(3)) {
                    fields.insert(name, allowed(below, chance, depth + 1));
                }
            }
            fields.into()
        }
        _ => anything(chance, 0),
    }
}

fn whole(schema: &Value, chance: &mut Chance) -> i64 {
    // Bounds are written as 1.0.
    #[allow(clippy::cast_possible_truncation, reason = "bounds are far smaller")]
    let bound = |name: &str, otherwise: i64| schema[name].as_f64().map_or(otherwise, |bound| bound as i64);
    let (least, most) = (bound("minimum", -5), bound("maximum", i64::from(i32::MAX)));
    let within = u64::try_from(most - least).unwrap_or(0) + 1;
    match chance.below(6) {
        0 => least,
        1 => most,
        2 => least + i64::try_from(chance.below(within)).unwrap_or(0),
        _ => least + i64::try_from(chance.below(within.min(6))).unwrap_or(0),
    }
}

fn text(schema: &Value, chance: &mut Chance) -> String {
    if schema["format"] == json!("date-time") {
        return (*chance.of(TIMES)).to_owned();
    }
    let most = schema["maxLength"].as_u64().and_then(|most| usize::try_from(most).ok());
    let most = most.unwrap_or(300);
    match schema["pattern"].as_str() {
        Some(pattern) if chance.one_in(2) => by_pattern(pattern, most, chance),
        _ if chance.one_in(12) => "x".repeat(most),
        _ => (*chance.of(WORDS)).to_owned(),
    }
}

/// A text that this pattern matches; at worst a word.
fn by_pattern(pattern: &str, most: usize, chance: &mut Chance) -> String {
    let inner = pattern.strip_prefix('^').unwrap_or(pattern);
    let inner = inner.strip_suffix('$').unwrap_or(inner);
    let mut seed = [0; 32];
    for part in seed.chunks_mut(8) {
        part.copy_from_slice(&chance.below(u64::MAX).to_le_bytes());
    }
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let texts = proptest::string::string_regex(inner).expect("a pattern without look-around");
    let found = (0..20).find_map(|_| {
        let text = texts.new_tree(&mut runner).ok()?.current();
        (text.chars().count() <= most).then_some(text)
    });
    found.unwrap_or_else(|| (*chance.of(WORDS)).to_owned())
}

/// A value that the schema does not allow, in one of many ways.
fn refused(schema: &Value, chance: &mut Chance) -> Value {
    let most = schema["maxLength"].as_u64().and_then(|most| usize::try_from(most).ok());
    match chance.below(12) {
        0 => json!("x".repeat(most.unwrap_or(1000) + 1)),
        1 => json!(schema["maximum"].as_f64().unwrap_or(1e9) + 1.0),
        2 => json!(schema["minimum"].as_f64().unwrap_or(0.0) - 1.0),
        3 => json!(i64::MAX),
        4 => json!(1e300),
        5 => json!([]),
        6 => json!([{}, [], "", null, 1]),
        7 => json!({ "invented": anything(chance, 0) }),
        8 => json!(!chance.one_in(2)),
        9 => json!("no such word"),
        10 => json!(format!("\u{0}{}", chance.of(WORDS))),
        _ => anything(chance, 0),
    }
}

fn anything(chance: &mut Chance, depth: usize) -> Value {
    match chance.below(if depth < 4 { 8 } else { 6 }) {
        0 => Value::Null,
        1 => json!(chance.one_in(2)),
        2 => json!(-1),
        3 => json!(chance.below(u64::MAX)),
        4 => json!(0.1),
        5 => json!(chance.of(WORDS)),
        6 => (0..chance.below(4)).map(|_| anything(chance, depth + 1)).collect(),
        _ => {
            let pair = |_| ((*chance.of(WORDS)).to_owned(), anything(chance, depth + 1));
            (0..3).map(pair).collect::<Map<_, _>>().into()
        }
    }
}
