//! Schedules of celery beat as PeriodicTasks: from an app's `beat_schedule`, or from a fixture of django_celery_beat.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use umbel_api::PeriodicTaskSpec;
use umbel_plan::cron::Timetable;

mod crontab;

use crontab::Crontab;

/// The Python program that reads an app.
pub(crate) const SCRIPT: &str = include_str!("beat_schedule.py");

/// What was read, and what was not.
#[derive(Debug, Default)]
pub(crate) struct Imported {
    /// PeriodicTasks, in the order of the source.
    pub(crate) objects: Vec<Value>,
    /// What differs from the source, a sentence each, with the entry's name.
    pub(crate) notes: Vec<String>,
    /// Entries that have no equal.
    pub(crate) left_out: usize,
}

/// A schedule of celery beat.
#[derive(Debug, Deserialize)]
struct Entry {
    name: String,
    task: String,
    #[serde(default)]
    args: Vec<Value>,
    #[serde(default)]
    kwargs: Map<String, Value>,
    #[serde(default)]
    options: Map<String, Value>,
    #[serde(default)]
    relative: bool,
    when: When,
    /// Fields of the object that the source has beyond Celery's own.
    #[serde(skip)]
    more: Map<String, Value>,
    #[serde(skip)]
    zone: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum When {
    Interval {
        seconds: f64,
    },
    Crontab(Crontab),
    Solar {
        event: String,
        latitude: f64,
        longitude: f64,
    },
    Clocked {
        at: String,
    },
    Unknown {
        what: String,
    },
}

#[derive(Deserialize)]
struct App {
    timezone: String,
    entries: Vec<Entry>,
}

/// Reads what [`SCRIPT`] printed.
///
/// # Errors
/// It is not that.
pub(crate) fn of_app(text: &str, queue: &str) -> anyhow::Result<Imported> {
    let App { timezone, entries } = serde_json::from_str(text)?;
    Ok(import(entries, &timezone, queue))
}

/// Reads a fixture: objects of django_celery_beat, among others that are passed over.
///
/// # Errors
/// It is no list of such objects.
pub(crate) fn of_fixture(text: &str, queue: &str) -> anyhow::Result<Imported> {
    #[derive(Deserialize)]
    struct Object {
        model: String,
        pk: Value,
        fields: Map<String, Value>,
    }
    let objects: Vec<Object> = serde_json::from_str(text)?;
    let mut schedules: BTreeMap<(String, String), &Map<String, Value>> = BTreeMap::new();
    for object in &objects {
        if let Some(kind) = object.model.strip_prefix("django_celery_beat.") {
            schedules.insert((kind.to_owned(), object.pk.to_string()), &object.fields);
        }
    }
    let tasks = objects
        .iter()
        .filter(|object| object.model == "django_celery_beat.periodictask");
    let entries: Vec<Entry> = tasks.map(|task| of_fields(&task.fields, &schedules)).collect();
    Ok(import(entries, "UTC", queue))
}

/// An entry from the fields of a row.
fn of_fields(fields: &Map<String, Value>, schedules: &BTreeMap<(String, String), &Map<String, Value>>) -> Entry {
    let text =
        |fields: &Map<String, Value>, key: &str| fields.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let schedule = ["crontab", "interval", "solar", "clocked"]
        .into_iter()
        .find_map(|kind| {
            let key = fields.get(kind).filter(|key| !key.is_null())?;
            let found = schedules.get(&(format!("{kind}schedule"), key.to_string()))?;
            Some((kind, *found))
        });
    let number = |value: Option<&Value>| {
        let text = value.and_then(Value::as_str).and_then(|text| text.parse().ok());
        text.or_else(|| value.and_then(Value::as_f64)).unwrap_or(f64::NAN)
    };
    let when = match schedule {
        Some(("crontab", crontab)) => When::Crontab(Crontab {
            minute: text(crontab, "minute"),
            hour: text(crontab, "hour"),
            day_of_month: text(crontab, "day_of_month"),
            month_of_year: text(crontab, "month_of_year"),
            day_of_week: text(crontab, "day_of_week"),
        }),
        Some(("interval", interval)) => {
            let unit = match text(interval, "period").as_str() {
                "days" => 86_400.0,
                "hours" => 3600.0,
                "minutes" => 60.0,
                "seconds" => 1.0,
                "microseconds" => 1e-6,
                _ => f64::NAN,
            };
            When::Interval {
                seconds: unit * number(interval.get("every")),
            }
        }
        Some(("solar", solar)) => When::Solar {
            event: text(solar, "event"),
            latitude: number(solar.get("latitude")),
            longitude: number(solar.get("longitude")),
        },
        Some((_, clocked)) => When::Clocked {
            at: text(clocked, "clocked_time"),
        },
        None => When::Unknown {
            what: "a schedule that the fixture does not hold".into(),
        },
    };
    // Arguments are JSON in a text.
    let parsed = |key: &str| serde_json::from_str::<Value>(&text(fields, key)).unwrap_or(Value::Null);
    let mut options = Map::new();
    for key in ["queue", "exchange", "routing_key", "priority"] {
        let value = fields
            .get(key)
            .filter(|value| !value.is_null() && value.as_str() != Some(""));
        options.extend(value.map(|value| (key.to_owned(), value.clone())));
    }
    if let Some(seconds) = fields.get("expire_seconds").filter(|value| !value.is_null()) {
        options.insert("expires".into(), seconds.clone());
    }
    if let Value::Object(headers) = parsed("headers")
        && !headers.is_empty()
    {
        options.insert("headers".into(), Value::Object(headers));
    }
    let mut more = Map::new();
    if fields.get("enabled") == Some(&Value::Bool(false)) {
        more.insert("suspend".into(), json!(true));
    }
    if fields.get("one_off") == Some(&Value::Bool(true)) {
        more.insert("maxRuns".into(), json!(1));
    }
    for (theirs, ours) in [("start_time", "startTime"), ("expires", "endTime")] {
        let time = fields
            .get(theirs)
            .and_then(Value::as_str)
            .filter(|time| !time.is_empty());
        more.extend(time.map(|time| (ours.to_owned(), json!(time))));
    }
    let zone = schedule
        .map(|(_, schedule)| text(schedule, "timezone"))
        .filter(|zone| !zone.is_empty());
    Entry {
        name: text(fields, "name"),
        task: text(fields, "task"),
        args: match parsed("args") {
            Value::Array(args) => args,
            _ => Vec::new(),
        },
        kwargs: match parsed("kwargs") {
            Value::Object(kwargs) => kwargs,
            _ => Map::new(),
        },
        options,
        relative: false,
        when,
        more,
        zone,
    }
}

fn import(entries: Vec<Entry>, zone: &str, queue: &str) -> Imported {
    let mut imported = Imported::default();
    let mut names = BTreeSet::new();
    for entry in entries {
        let own = entry.name.clone();
        let mut notes = Vec::new();
        match object(entry, zone, queue, &mut names, &mut notes) {
            Ok(object) => imported.objects.push(object),
            Err(why) => {
                imported.left_out += 1;
                notes.push(format!("left out: {why}"));
            }
        }
        imported
            .notes
            .extend(notes.into_iter().map(|note| format!("{own}: {note}")));
    }
    imported
}

fn object(
    entry: Entry,
    zone: &str,
    queue: &str,
    names: &mut BTreeSet<String>,
    notes: &mut Vec<String>,
) -> Result<Value, String> {
    let Entry {
        name: own,
        task,
        args,
        kwargs,
        options,
        relative,
        when,
        more,
        zone: own_zone,
    } = entry;
    let mut spec = Map::new();
    let schedule = match when {
        When::Crontab(crontab) => {
            spec.insert("timeZone".into(), json!(own_zone.as_deref().unwrap_or(zone)));
            json!({ "cron": crontab.cron()? })
        }
        When::Interval { seconds } => {
            if !(seconds >= 1.0 && seconds.fract() == 0.0 && seconds < 1e7) {
                return Err(format!(
                    "an interval of {seconds} s: it must be whole seconds, one at least"
                ));
            }
            if relative {
                notes.push("relative is left out: slots are counted from the object's creation".to_owned());
            }
            json!({ "every": format!("{seconds}s") })
        }
        When::Solar {
            event,
            latitude,
            longitude,
        } => {
            json!({ "solar": { "event": event, "latitude": latitude, "longitude": longitude } })
        }
        When::Clocked { at } => json!({ "at": at }),
        When::Unknown { what } => return Err(format!("{what} has no equal")),
    };
    spec.insert("schedule".into(), schedule);
    // Celery sends whether the run before has ended or not.
    spec.insert("overlap".into(), json!("Allow"));
    spec.extend(more);
    let mut template = Map::new();
    let theirs = options.get("queue").and_then(Value::as_str).unwrap_or(queue);
    let ours = object_name(theirs);
    if ours != theirs {
        notes.push(format!(
            "queue {theirs:?} is TaskQueue {ours}: give that spec.queueName {theirs:?}"
        ));
    }
    template.insert("queueRef".into(), json!({ "name": ours }));
    template.insert("task".into(), json!(task));
    if !args.is_empty() {
        template.insert("args".into(), Value::Array(args));
    }
    if !kwargs.is_empty() {
        template.insert("kwargs".into(), Value::Object(kwargs));
    }
    for (option, value) in options {
        match (option.as_str(), &value) {
            ("queue", _) => {}
            ("priority", Value::Number(priority)) => {
                template.insert("priority".into(), json!(priority));
            }
            ("expires", Value::Number(seconds)) => {
                template.insert(
                    "expiresAfter".into(),
                    json!(format!("{}s", seconds.as_f64().unwrap_or(0.0).ceil())),
                );
            }
            ("time_limit", Value::Number(seconds)) => {
                template.insert(
                    "timeLimit".into(),
                    json!(format!("{}s", seconds.as_f64().unwrap_or(0.0).ceil())),
                );
            }
            ("headers", Value::Object(headers)) => {
                let texts = headers.iter().map(|(name, value)| {
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    (name.clone(), json!(text))
                });
                template.insert("headers".into(), Value::Object(texts.collect()));
            }
            _ => notes.push(format!("the option {option} is left out")),
        }
    }
    spec.insert("taskTemplate".into(), Value::Object(template));
    let spec = Value::Object(spec);
    let typed: PeriodicTaskSpec = serde_json::from_value(spec.clone()).map_err(|err| err.to_string())?;
    Timetable::of(&typed, Timestamp::now()).map_err(|fault| fault.to_string())?;
    let mut name = object_name(&own);
    let mut count = 1;
    while !names.insert(name.clone()) {
        count += 1;
        name = format!("{}-{count}", object_name(&own));
    }
    Ok(json!({
        "apiVersion": "umbel.dev/v1alpha1",
        "kind": "PeriodicTask",
        "metadata": { "name": name, "annotations": { "umbel.dev/imported-as": own } },
        "spec": spec,
    }))
}

/// A name that the API server takes.
fn object_name(text: &str) -> String {
    let mut name = String::new();
    for c in text.chars().take(200) {
        match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '.') => name.push(c),
            _ if name.ends_with('-') => {}
            _ => name.push('-'),
        }
    }
    let name = name.replace(".-", "-").replace("-.", "-").replace("..", ".");
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() {
        "schedule".to_owned()
    } else {
        name.to_owned()
    }
}
