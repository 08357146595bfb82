//! From a signature of one task to its message.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::signature::{self, Options, wrong};
use super::{Outgoing, Sender};
use crate::json::Json;
use crate::message::{MAX_PRIORITY, MAX_TIME_LIMIT, NewTask, Reason, TimeLimit};
use crate::{time, write};

/// What a task inherits from the one that sends it.
pub(super) struct Origin {
    /// The queue of the running task.
    pub(super) queue: String,
    pub(super) root: Option<String>,
    pub(super) parent: Option<String>,
}

/// The message of a call: these arguments, sent under these options.
pub(super) fn outgoing(
    name: &str,
    args: Json,
    kwargs: Json,
    options: &Options,
    origin: &Origin,
    sender: &mut Sender<'_>,
) -> Result<Outgoing, Reason> {
    let id = options.text("task_id").unwrap_or_else(&mut *sender.ids);
    let exchange = options.text("exchange").filter(|_| !options.has("queue"));
    let queue = options.text("queue").or_else(|| options.text("routing_key"));
    let task = NewTask {
        task: name.to_owned(),
        args,
        kwargs,
        embed: Some(embed(options)),
        queue: queue.unwrap_or_else(|| origin.queue.clone()),
        priority: priority(options).unwrap_or(sender.priority),
        retries: options
            .get("retries")
            .and_then(|retries| retries.to().ok())
            .unwrap_or(0),
        eta: eta(options, sender.now)?,
        eta_text: as_given(options, "eta").filter(|_| options.get("countdown").is_none()),
        expires: expires(options, sender.now)?,
        expires_text: as_given(options, "expires"),
        sent_at: Some(sender.now),
        time_limit: TimeLimit {
            hard: seconds(options, "time_limit"),
            soft: seconds(options, "soft_time_limit"),
        },
        shadow: options.text("shadow"),
        root_id: options.text("root_id").or_else(|| origin.root.clone()),
        parent_id: options.text("parent_id").or_else(|| origin.parent.clone()),
        group: options.text("group_id"),
        group_index: options.get("group_index").and_then(|index| index.as_str().parse().ok()),
        ignore_result: options.get("ignore_result").map(|ignore| ignore.as_str() == "true"),
        argsrepr: options.text("argsrepr"),
        kwargsrepr: options.text("kwargsrepr"),
        origin: sender.origin.to_owned(),
        reply_to: options.text("reply_to").unwrap_or_else(|| sender.reply_to.to_owned()),
        delivery_tag: (sender.ids)(),
        headers: headers(options),
        id,
        ..NewTask::default()
    };
    Ok(Outgoing {
        task,
        exchange,
        exchange_type: options.text("exchange_type"),
        serializer: options.text("serializer"),
        compression: options.text("compression"),
    })
}

/// Callbacks, errbacks, chain and chord, as the message carries them.
fn embed(options: &Options) -> Json {
    let some = |name| {
        options
            .get(name)
            .map_or_else(Json::null, |value| write::array(signature::list(value)))
    };
    let chord = options.get("chord").cloned().unwrap_or_else(Json::null);
    write::object([
        ("callbacks", &some("link")),
        ("errbacks", &some("link_error")),
        ("chain", &some("chain")),
        ("chord", &chord),
    ])
}

/// Custom headers, the depth of replacement, and stamps: `stamped_headers` names options that are such.
fn headers(options: &Options) -> Vec<(String, Json)> {
    let mut headers = options.get("headers").map_or_else(Vec::new, Json::entries);
    if let Some(nesting) = options.get("replaced_task_nesting") {
        headers.push(("replaced_task_nesting".into(), nesting.clone()));
    }
    let names = options.stamps();
    if !names.is_empty() {
        let stamps = names
            .iter()
            .filter_map(|name| Some((name.as_str(), options.get(name)?)));
        headers.push(("stamps".into(), write::object(stamps)));
        headers.push((
            "stamped_headers".into(),
            write::array(names.iter().map(|name| Json::string(name))),
        ));
    }
    headers
}

fn number(value: &Json) -> Option<f64> {
    value.as_str().parse::<f64>().ok().filter(|number| number.is_finite())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the type's range"
)]
fn priority(options: &Options) -> Option<u8> {
    let asked = options.get("priority").and_then(number)?;
    Some(asked.clamp(0.0, f64::from(MAX_PRIORITY)) as u8)
}

fn seconds(options: &Options, name: &str) -> Option<f64> {
    let asked = options.get(name).and_then(number).filter(|limit| *limit > 0.0)?;
    Some(asked.min(MAX_TIME_LIMIT))
}

/// `countdown` goes before `eta`, as in Celery.
fn eta(options: &Options, now: Timestamp) -> Result<Option<Timestamp>, Reason> {
    if let Some(countdown) = options.get("countdown") {
        let seconds = number(countdown).ok_or(wrong("options.countdown", "a number of seconds"))?;
        return Ok(Some(after(now, seconds)));
    }
    instant(options, "eta", "options.eta")
}

fn expires(options: &Options, now: Timestamp) -> Result<Option<Timestamp>, Reason> {
    match options.get("expires").and_then(number) {
        Some(seconds) => Ok(Some(after(now, seconds))),
        None => instant(options, "expires", "options.expires"),
    }
}

/// A time as the signature has it: in its own offset, or in none, which the consumer reads in its own zone.
fn as_given(options: &Options, name: &str) -> Option<String> {
    let value = options.get(name)?;
    value.get("__value__").unwrap_or_else(|| value.clone()).text()
}

fn instant(options: &Options, name: &str, field: &'static str) -> Result<Option<Timestamp>, Reason> {
    let Some(value) = options.get(name) else {
        return Ok(None);
    };
    // Celery's JSON wraps a datetime: `{"__type__": "datetime", "__value__": "2026-…"}`.
    let text = value.get("__value__").unwrap_or_else(|| value.clone()).text();
    text.and_then(|text| time::parse(&text, &TimeZone::UTC))
        .map(Some)
        .ok_or(wrong(field, "an ISO 8601 time"))
}

/// A century is as good as never, and does not leave what a timestamp holds.
fn after(now: Timestamp, seconds: f64) -> Timestamp {
    const CENTURY: f64 = 100.0 * 366.0 * 86_400.0;
    let wait = SignedDuration::from_secs_f64(seconds.clamp(-CENTURY, CENTURY));
    now.saturating_add(wait).unwrap_or(Timestamp::MAX)
}
