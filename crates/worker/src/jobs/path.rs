//! Fields of an object by path: `.spec.replicas`, `{.metadata.labels['a.b/c']}`, `.spec.containers[0].image`,
//! `.spec.containers[*].image`, `.status.conditions[?(@.type=="Ready")].status`. Pure.
//!
//! A part of `JSONPath`: steps, indices, one kind of filter. `[*]` gives a list, a filter the first that it lets through.

use serde_json::Value;

const MOST_BYTES: usize = 500;

/// A path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Field(String),
    Index(usize),
    All,
    Where { field: String, is: String },
}

impl Path {
    /// Reads one, with or without braces and the leading dot.
    pub(super) fn parse(text: &str) -> Result<Path, String> {
        let wrong = |why: &str| format!("the path {text:?}: {why}");
        if text.len() > MOST_BYTES {
            return Err(format!("a path of more than {MOST_BYTES} bytes"));
        }
        let mut rest = text.trim();
        if let Some(inner) = rest.strip_prefix('{') {
            rest = inner
                .strip_suffix('}')
                .ok_or_else(|| wrong("its brace is not closed"))?;
        }
        rest = rest.strip_prefix('$').unwrap_or(rest);
        let mut steps = Vec::new();
        let mut is_first = true;
        while !rest.is_empty() {
            if let Some(inner) = rest.strip_prefix('[') {
                let (step, after) = bracket(inner).map_err(wrong)?;
                steps.push(step);
                rest = after;
            } else {
                let name = match rest.strip_prefix('.') {
                    Some(name) => name,
                    None if is_first => rest,
                    None => return Err(wrong("a dot is missing")),
                };
                let end = name.find(['.', '[']).unwrap_or(name.len());
                let is_name = |c: char| c.is_ascii_alphanumeric() || "-_/".contains(c);
                if end == 0 || !name[..end].chars().all(is_name) {
                    return Err(wrong("a step is no name; others are written as ['…']"));
                }
                steps.push(Step::Field(name[..end].to_owned()));
                rest = &name[end..];
            }
            is_first = false;
        }
        if steps.is_empty() {
            return Err(wrong("it has no step"));
        }
        Ok(Path(steps))
    }

    /// What is there; null where nothing is.
    pub(super) fn find(&self, object: &Value) -> Value {
        find(&self.0, object)
    }
}

fn bracket(inner: &str) -> Result<(Step, &str), &'static str> {
    let unclosed = "a bracket is not closed";
    if let Some(rest) = inner.strip_prefix("*]") {
        return Ok((Step::All, rest));
    }
    if let Some(rest) = inner.strip_prefix("?(@.") {
        let (condition, rest) = rest.split_once(")]").ok_or(unclosed)?;
        let (field, is) = condition.split_once("==").ok_or("a filter has no ==")?;
        let is = is.trim();
        let quoted = |mark: char| is.strip_prefix(mark).and_then(|is| is.strip_suffix(mark));
        let is = quoted('"')
            .or_else(|| quoted('\''))
            .ok_or("a filter's value is not in quotes")?;
        return Ok((
            Step::Where {
                field: field.trim().to_owned(),
                is: is.to_owned(),
            },
            rest,
        ));
    }
    for mark in ['\'', '"'] {
        if let Some(rest) = inner.strip_prefix(mark) {
            let (name, rest) = rest.split_once(mark).ok_or(unclosed)?;
            let rest = rest.strip_prefix(']').ok_or(unclosed)?;
            return Ok((Step::Field(name.to_owned()), rest));
        }
    }
    let (index, rest) = inner.split_once(']').ok_or(unclosed)?;
    let index = index.parse().map_err(|_| "an index is no number")?;
    Ok((Step::Index(index), rest))
}

fn find(steps: &[Step], value: &Value) -> Value {
    let Some((step, rest)) = steps.split_first() else {
        return value.clone();
    };
    let one = |found: Option<&Value>| found.map_or(Value::Null, |found| find(rest, found));
    match step {
        Step::Field(name) => one(value.get(name)),
        Step::Index(index) => one(value.get(index)),
        Step::Where { field, is } => {
            let mut items = value.as_array().into_iter().flatten();
            one(items.find(|item| text(&item[field]) == *is))
        }
        Step::All => match value {
            Value::Array(items) => items.iter().map(|item| find(rest, item)).collect(),
            Value::Object(fields) => fields.values().map(|item| find(rest, item)).collect(),
            _ => Value::Null,
        },
    }
}

/// A value as people compare it: text without quotes.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod unit {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_find_what_they_name() {
        let object = json!({
            "metadata": {"labels": {"a.b/c": "x"}},
            "spec": {"replicas": 3, "containers": [{"name": "a", "image": "i1"}, {"name": "b", "image": "i2"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]},
        });
        for (path, expected) in [
            (".spec.replicas", json!(3)),
            ("spec.replicas", json!(3)),
            ("{.spec.replicas}", json!(3)),
            ("$.spec.replicas", json!(3)),
            (".metadata.labels['a.b/c']", json!("x")),
            (".spec.containers[1].image", json!("i2")),
            (".spec.containers[*].image", json!(["i1", "i2"])),
            (".status.conditions[?(@.type==\"Other\")].status", json!("False")),
            (".status.conditions[?(@.type == 'Ready')].status", json!("True")),
            (".status.conditions[?(@.type=='None')].status", json!(null)),
            (".spec.nothing.here", json!(null)),
            (".spec.replicas[0]", json!(null)),
            (".spec.containers[9]", json!(null)),
        ] {
            assert_eq!(Path::parse(path).unwrap().find(&object), expected, "{path}");
        }
    }

    #[test]
    fn what_is_no_path_says_why() {
        for text in [
            "",
            ".",
            "..a",
            "a..b",
            "{.a",
            "a[",
            "a[1",
            "a[x]",
            "a['b]",
            "a[?(@.b)]",
            "a[?(@.b==c)]",
            "a b",
            "a[0]b",
            &"a".repeat(501),
        ] {
            assert!(Path::parse(text).is_err(), "{text}");
        }
    }
}
