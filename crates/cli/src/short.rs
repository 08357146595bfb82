//! Workflows and tasks as people write them in JSON: Celery's own form, and a shorter one.
//!
//! ```text
//! "proj.add"                                          a task without arguments
//! {"task": "proj.add", "args": [2, 3], "kwargs": {}, "options": {"queue": "q"}, "immutable": true}
//! {"chain": [T, …]}   {"group": [T, …]}   {"chord": {"header": [T, …], "body": T}}
//! {"map": T, "it": […]}   {"starmap": T, "it": […]}   {"chunks": T, "it": […], "size": 10}
//! ```
//!
//! `T` is any of these. The composites may have `options`, too. What Celery serialises (`subtask_type`, `celery.chain`, …)
//! is the second form.

use umbel_client::{Json, Signature};

/// Options of a signature that this program knows, so that a misspelt one is told.
const OPTIONS: [&str; 29] = [
    "add_to_parent",
    "argsrepr",
    "chain",
    "chord",
    "compression",
    "countdown",
    "eta",
    "exchange",
    "exchange_type",
    "expires",
    "group_id",
    "group_index",
    "headers",
    "ignore_result",
    "kwargsrepr",
    "link",
    "link_error",
    "parent_id",
    "priority",
    "queue",
    "replaced_task_nesting",
    "reply_to",
    "retries",
    "root_id",
    "routing_key",
    "serializer",
    "shadow",
    "task_id",
    "time_limit",
];

/// Reads any of the forms.
pub(crate) fn parse(json: &Json) -> Result<Signature, String> {
    at(json, "the workflow")
}

fn at(json: &Json, place: &str) -> Result<Signature, String> {
    if let Some(name) = json.text() {
        return named(&name, place);
    }
    if !json.is_object() {
        return Err(format!("{place} is neither an object nor the name of a task"));
    }
    let list = |name: &str, list: &Json| -> Result<Vec<Signature>, String> {
        let elements = list
            .elements()
            .ok_or_else(|| format!("{name} of {place} is no array"))?;
        let each = elements.iter().enumerate();
        each.map(|(index, element)| at(element, &format!("{name}[{index}] of {place}")))
            .collect()
    };
    let known = ["chain", "group", "chord", "map", "starmap", "chunks", "task"];
    let found: Vec<&str> = known.into_iter().filter(|name| json.get(name).is_some()).collect();
    let (kind, value) = match found.as_slice() {
        [one] => (*one, json.get(one).unwrap_or_else(Json::null)),
        [] => return Err(format!("{place} has none of {}", known.join(", "))),
        several => return Err(format!("{place} has more than one of {}", several.join(", "))),
    };
    if kind == "task" {
        let signature = Signature::parse(json).map_err(|err| format!("{place}: {err}"))?;
        return checked(signature, place);
    }
    let allowed = ["it", "size", "options", "immutable", kind];
    if let Some((odd, _)) = json
        .entries()
        .iter()
        .find(|(name, _)| !allowed.contains(&name.as_str()))
    {
        return Err(format!("{place} has {odd:?}, which a {kind} has not"));
    }
    let items = || {
        let it = json.get("it").and_then(|it| it.elements());
        it.ok_or_else(|| format!("{place} has no array \"it\""))
    };
    let mut signature = match kind {
        "chain" => umbel_client::chain(list("chain", &value)?),
        "group" => umbel_client::group(list("group", &value)?),
        "chord" => {
            let header = value
                .get("header")
                .ok_or_else(|| format!("the chord of {place} has no header"))?;
            let body = value
                .get("body")
                .ok_or_else(|| format!("the chord of {place} has no body"))?;
            umbel_client::chord(list("header", &header)?, at(&body, &format!("the body of {place}"))?)
        }
        "map" => Signature::map(&at(&value, &format!("map of {place}"))?, &items()?),
        "starmap" => Signature::starmap(&at(&value, &format!("starmap of {place}"))?, &items()?),
        _ => {
            let size = json
                .get("size")
                .and_then(|size| size.to::<usize>().ok())
                .filter(|size| *size > 0);
            let size = size.ok_or_else(|| format!("{place} has no \"size\" above 0"))?;
            let (task, items) = (at(&value, &format!("chunks of {place}"))?, items()?);
            let parts: Vec<Signature> = items.chunks(size).map(|part| Signature::starmap(&task, part)).collect();
            Signature::group(&parts)
        }
    };
    if let Some(options) = json.get("options") {
        if !options.is_object() {
            return Err(format!("options of {place} is no object"));
        }
        for (name, value) in options.entries() {
            signature.options.set(&name, value);
        }
    }
    signature.immutable |= json
        .get("immutable")
        .is_some_and(|immutable| immutable.as_str() == "true");
    checked(signature, place)
}

fn named(name: &str, place: &str) -> Result<Signature, String> {
    if name.is_empty() {
        return Err(format!("{place} is an empty name"));
    }
    Ok(Signature::task(name, Json::empty_array(), Json::empty_object()))
}

/// Refuses options that nobody reads: an option that is misspelt would do nothing.
fn checked(signature: Signature, place: &str) -> Result<Signature, String> {
    let stamps = signature
        .options
        .get("stamped_headers")
        .and_then(Json::elements)
        .unwrap_or_default();
    let stamps: Vec<String> = stamps.iter().filter_map(Json::text).collect();
    for (name, _) in signature.options.entries() {
        let is_known = OPTIONS.contains(&name)
            || matches!(name, "soft_time_limit" | "stamped_headers" | "delivery_mode" | "origin")
            || stamps.iter().any(|stamp| stamp == name);
        if !is_known {
            return Err(format!("{place} has the option {name:?}, which is not known"));
        }
    }
    Ok(signature)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Signature, String> {
        parse(&Json::parse(text).unwrap())
    }

    #[test]
    fn the_short_form_is_celerys_form_written_shorter() {
        let short = read(
            r#"{"chain": ["a", {"group": [{"task": "b", "args": [1]}, "c"]}, {"task": "d", "immutable": true}],
                "options": {"queue": "q"}}"#,
        )
        .unwrap();
        let long = short.to_json();
        assert!(long.as_str().contains(r#""task": "celery.group""#), "{long}");
        assert!(long.as_str().contains(r#""options": {"queue": "q"}"#), "{long}");
        // Celery's form is read, too, and is the same.
        assert_eq!(parse(&long).unwrap(), short);
        let chord = read(r#"{"chord": {"header": ["a", "b"], "body": "c"}}"#).unwrap();
        assert_eq!(
            (chord.tasks().unwrap().len(), chord.body().unwrap().task),
            (2, "c".into())
        );
        let chunks = read(r#"{"chunks": "a", "it": [[1], [2], [3]], "size": 2}"#).unwrap();
        assert_eq!(chunks.tasks().unwrap().len(), 2);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let cases = [
            ("1", "the workflow is neither"),
            ("{}", "the workflow has none of"),
            (r#"{"chain": ["a", 7]}"#, "chain[1] of the workflow is neither"),
            (r#"{"chain": ["a"], "group": ["b"]}"#, "more than one of"),
            (r#"{"chord": {"header": ["a"]}}"#, "has no body"),
            (r#"{"task": "a", "options": {"que": "q"}}"#, "the option \"que\""),
            (r#"{"group": [{"task": "a", "args": {}}]}"#, "group[0] of the workflow"),
            (r#"{"map": "a"}"#, "no array \"it\""),
            (r#"{"chain": ["a"], "queue": "q"}"#, "which a chain has not"),
        ];
        for (text, words) in cases {
            let err = read(text).unwrap_err();
            assert!(err.contains(words), "{text}: {err}");
        }
    }
}
