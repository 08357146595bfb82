//! Is what our worker did what Celery's worker did? Field by field, but for what differs by nature and for the
//! differences that are meant, all of them below.

use std::collections::HashMap;

use serde_json::Value;

use crate::effects::Effects;

/// Fields that each run has anew: both sides must have one of the same type.
const ANEW: [&str; 21] = [
    "date_done",    // when a result was stored
    "eta",          // of a retry
    "expires",      // of a message that was made to expire later than now
    "expiration",   // milliseconds left of `expires`
    "traceback",    // Python's frames; ours names error and cause
    "origin",       // who made the message
    "reply_to",     // names the sender for the rpc backend
    "delivery_tag", // one for each copy
    "pid",          //
    "worker_pid",   //
    "timestamp",    //
    "clock",        // of the other members, too
    "runtime",      //
    "loadavg",      //
    "time_start",   //
    "processed",    // counts what ran before the capture
    "active",       //
    "sw_ident",     // `umbel`
    "sw_ver",       //
    "sw_sys",       //
    "freq",         // of heartbeats: 10 s, and 2 s while somebody listens
];

/// Fields that only one of both sides has.
const ONE_SIDED: [(&str, &str); 4] = [
    (
        "reply_to",
        "Celery's: its client's, in options that this worker makes itself",
    ),
    (
        "umbel_order",
        "ours: order of runs of one schedule, in the headers of a retry",
    ),
    ("umbel_run", "ours: the schedule's run"),
    ("origin", "Celery repeats it among the properties of a retry"),
];

/// Names of ids that each run makes anew, ours to theirs.
pub(crate) type Names = HashMap<String, String>;

/// Compares all that a worker did.
///
/// # Errors
/// What differs, and what else there was.
pub(crate) fn compare(ours: &Effects, theirs: &Effects) -> Result<(), String> {
    let mut names = Names::new();
    match_all("messages", &ours.messages, &theirs.messages, &mut names)?;
    match_all("chord keys", &chords(ours, theirs), &chords(theirs, theirs), &mut names)?;
    let by_key = |documents: &[Value]| {
        let mut documents = documents.to_vec();
        documents.sort_by_key(|document| document["key"].to_string()); // Stable: states keep their order.
        documents
    };
    // A capture of the messages alone says nothing of results.
    if !theirs.documents.is_empty() {
        match_all(
            "results",
            &by_key(&ours.documents),
            &by_key(&theirs.documents),
            &mut names,
        )?;
    }
    // Who waits reads the channel, who comes later the key.
    let documents: Vec<&Value> = ours.documents.iter().map(|document| &document["document"]).collect();
    let published: Vec<&Value> = ours.published.iter().map(|document| &document["document"]).collect();
    if documents == published {
        Ok(())
    } else {
        Err(format!("stored {documents:?}, published {published:?}"))
    }
}

/// What is said of chords, but for two things: Celery also counts a group at the end of a chain in a chord's header,
/// under an id that no part ever has; and 5.6 and older leave no mark that a chord is done.
fn chords(of: &Effects, theirs: &Effects) -> Vec<Value> {
    let has = |effects: &Effects, field: &str, start: &str| {
        let mut chords = effects.chords.iter();
        chords.any(|chord| chord[field].as_str().is_some_and(|key| key.starts_with(start)))
    };
    let mut chords = of.chords.clone();
    chords.retain(|chord| match (chord["set"].as_str(), chord["done"].as_str()) {
        (Some(key), _) => key.strip_suffix(".s").is_none_or(|group| has(of, "part", group)),
        (_, Some(_)) => has(theirs, "done", ""),
        _ => true,
    });
    chords
}

/// Each of theirs has one of ours; none is left.
///
/// # Errors
/// The first of theirs that is not among ours, or what is left.
pub(crate) fn match_all(what: &str, ours: &[Value], theirs: &[Value], names: &mut Names) -> Result<(), String> {
    let mut left: Vec<&Value> = ours.iter().collect();
    for their in theirs {
        let mut why = Vec::new();
        let found = left.iter().position(|our| {
            let mut attempt = names.clone();
            match same(our, their, "", &mut attempt) {
                Ok(()) => *names = attempt,
                Err(differs) => {
                    why.push(format!("    {differs:.600}"));
                    return false;
                }
            }
            true
        });
        let Some(at) = found else {
            return Err(format!(
                "{what}: Celery's\n    {:.400}\n  is not among ours, which differ in\n{}",
                their.to_string(),
                why.join("\n")
            ));
        };
        left.remove(at);
    }
    if left.is_empty() {
        Ok(())
    } else {
        Err(format!("{what}: Celery has none of these: {left:?}"))
    }
}

/// Compares two values; an error says where and how they differ.
pub(crate) fn same(ours: &Value, theirs: &Value, path: &str, names: &mut Names) -> Result<(), String> {
    let differ = || Err(format!("{path}: ours {ours}, Celery's {theirs}"));
    match (ours, theirs) {
        (Value::Object(our), Value::Object(their)) => {
            for (key, value) in their {
                let path = format!("{path}.{key}");
                match our.get(key) {
                    Some(other) if ANEW.contains(&key.as_str()) => kind(other, value, &path)?,
                    // Celery knows the settings of tasks that it sends; ours leaves them to who runs the task.
                    Some(Value::Null) if key == "ignore_result" && *value == Value::Bool(false) => {}
                    Some(other) => same(other, value, &path, names)?,
                    // A null says no more than nothing.
                    None if value.is_null() || is_one_sided(key) => {}
                    None => return Err(format!("{path}: ours has none, Celery's {value}")),
                }
            }
            // Celery knows nothing of the message when it stores that nobody knows the task.
            let is_unknown = their
                .get("result")
                .is_some_and(|result| result["exc_type"] == "NotRegistered");
            let added = our.iter().find(|(key, value)| {
                let may_add = is_one_sided(key) || is_unknown && ["group_id", "parent_id"].contains(&key.as_str());
                !their.contains_key(*key) && !value.is_null() && !may_add
            });
            added.map_or(Ok(()), |(key, value)| {
                Err(format!("{path}.{key}: ours {value}, Celery has none"))
            })
        }
        (Value::Array(our), Value::Array(their)) if our.len() == their.len() => our
            .iter()
            .zip(their)
            .enumerate()
            .try_for_each(|(index, (our, their))| same(our, their, &format!("{path}[{index}]"), names)),
        (Value::String(our), Value::String(their)) if same_text(our, their, names) => Ok(()),
        (Value::Number(our), Value::Number(their)) if our == their || our.as_f64() == their.as_f64() => Ok(()),
        _ if ours == theirs => Ok(()),
        _ => differ(),
    }
}

fn is_one_sided(key: &str) -> bool {
    ONE_SIDED.iter().any(|(name, _)| *name == key)
}

/// The same type, and both say something or neither does.
fn kind(ours: &Value, theirs: &Value, path: &str) -> Result<(), String> {
    if std::mem::discriminant(ours) == std::mem::discriminant(theirs) {
        Ok(())
    } else {
        Err(format!("{path}: ours {ours}, Celery's {theirs}"))
    }
}

/// Texts are the same when the ids in them are, or stand for each other.
fn same_text(ours: &str, theirs: &str, names: &mut Names) -> bool {
    if ours == theirs {
        return true;
    }
    let (our, their) = (split_ids(ours), split_ids(theirs));
    our.len() == their.len()
        && our.iter().zip(&their).all(|(our, their)| {
            our == their
                || is_id(our)
                    && is_id(their)
                    && names.entry((*our).to_owned()).or_insert_with(|| (*their).to_owned()) == their
        })
}

const ID: usize = 36;

fn is_id(text: &str) -> bool {
    text.len() == ID
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// A text cut at the UUIDs in it.
fn split_ids(text: &str) -> Vec<&str> {
    let (mut parts, mut from, mut at) = (Vec::new(), 0, 0);
    while at + ID <= text.len() {
        if text.get(at..at + ID).is_some_and(is_id) {
            parts.extend([&text[from..at], &text[at..at + ID]]);
            at += ID;
            from = at;
        } else {
            at += 1;
        }
    }
    parts.push(&text[from..]);
    parts
}

#[test]
fn ids_made_anew_stand_for_one_another_and_nothing_else_does() {
    let one = "7c6a269a-9825-4b14-8cb7-bcc55ac42770";
    let two = "11111111-2222-3333-4444-555555555555";
    let mut names = Names::new();
    assert!(same_text(&format!("old:{one}"), &format!("old:{two}"), &mut names));
    assert!(
        !same_text(one, "22222222-2222-3333-4444-555555555555", &mut names),
        "it has a name"
    );
    assert!(!same_text(&format!("new:{one}"), &format!("old:{two}"), &mut names));
    let (ours, theirs) = (serde_json::json!({"a": 1, "b": null}), serde_json::json!({"a": 1}));
    assert_eq!(same(&ours, &theirs, "", &mut names), Ok(()));
    let theirs = serde_json::json!({"a": 1, "c": 2});
    assert_eq!(
        same(&ours, &theirs, "", &mut names),
        Err(".c: ours has none, Celery's 2".to_owned())
    );
}
