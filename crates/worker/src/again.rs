//! Another run of a task: what its message says, and when no run is left.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use umbel_broker::{End, FollowUp};
use umbel_protocol::event::Event;
use umbel_protocol::json::Json;
use umbel_protocol::message::{self, NewTask, TaskMessage};
use umbel_protocol::result;

use crate::app::Shared;
use crate::clock::seconds_of;
use crate::job::Failure;
use crate::request::custom_headers;
use crate::results::Kind;
use crate::retry::{self, OwnPolicy, RetryPolicy};
use crate::run::Delivery;
use crate::stop::{Retry, When};

/// Runs again later, or ends as a failure when the attempts are used up.
pub(crate) async fn retry(shared: &Arc<Shared>, delivery: Delivery, asked: Retry, order: i64, trail: &[Json]) {
    let retries = delivery.message.retries;
    let mut policy = policy(shared, &delivery.message);
    if let Some(most) = asked.max_retries {
        policy.max_attempts = most.saturating_add(1);
    }
    let Some(backoff) = retry::next(&policy, retries, crate::random()) else {
        return give_up(shared, delivery, asked, trail).await;
    };
    let now = shared.clock.now();
    let due = match asked.when {
        Some(When::In(wait)) => now + wait.as_secs_f64(),
        Some(When::At(eta)) => seconds_of(eta),
        None => now + backoff.as_secs_f64(),
    };
    match next(shared, &delivery, &asked, due, order) {
        Ok((end, follow_ups)) => {
            shared
                .due
                .within(Duration::try_from_secs_f64(due - now).unwrap_or_default());
            let cause = asked.because.as_ref().map(Failure::document);
            let traceback = asked.because.as_ref().map(|why| why.traceback(&delivery.message.task));
            shared.events.task(|| Event::TaskRetried {
                uuid: delivery.message.id.clone(),
                exception: cause.as_ref().map_or_else(|| "None".into(), result::Failure::repr),
                traceback: traceback.clone(),
            });
            let result = shared.document(&delivery.message, Kind::Retry, trail, |ctx| match &cause {
                Some(cause) => result::retry(ctx.id, cause, traceback.as_deref(), &ctx.meta),
                None => result::retry_without_cause(ctx.id, &ctx.meta),
            });
            shared
                .end_with(delivery, end, result, follow_ups, ("", "retried"))
                .await;
        }
        Err(malformed) => {
            // It was read a moment ago, so this is a defect of ours; the message is kept all the same.
            let why = asked.because.unwrap_or_else(|| Failure::transient("asked for a retry"));
            let reason = format!("failed ({why}), and no retry could be made of it: {malformed}");
            shared.bury_with(delivery, &why, reason, trail).await;
        }
    }
}

/// What the message says, then what its task, then what the queue.
fn policy(shared: &Shared, message: &TaskMessage) -> RetryPolicy {
    let options = shared.tasks.options(&message.task);
    let policy = options.map_or(shared.config.retry, |options| options.retry(&shared.config.retry));
    let Some(header) = message.own_header(retry::HEADER) else {
        return policy;
    };
    let (own, ignored) = OwnPolicy::read(&header);
    if !ignored.is_empty() {
        tracing::debug!(?ignored, "the header {} makes no sense in these", retry::HEADER);
    }
    own.over(&policy)
}

/// The arguments of the next run. Of those that it does not set, it keeps what it does not set by the other way:
/// `names` are the parameters in their order.
fn call(asked: &Retry, message: &TaskMessage, names: &[&str]) -> (Json, Json) {
    let (args, kwargs) = (message.args.clone(), message.kwargs.clone());
    match (&asked.args, &asked.kwargs) {
        (None, None) => (args, kwargs),
        (Some(args), Some(kwargs)) => (args.clone(), kwargs.clone()),
        (Some(args), None) => {
            let count = args.elements().map_or(0, |args| args.len());
            let named = &names[..count.min(names.len())];
            let mut kept = kwargs.entries();
            kept.retain(|(name, _)| !named.contains(&name.as_str()));
            (args.clone(), object(&kept))
        }
        (None, Some(kwargs)) => {
            let mut positional = args.elements().unwrap_or_default();
            let mut rest = kwargs.entries();
            rest.retain(|(name, value)| {
                let place = names.iter().position(|known| known == name);
                match place.and_then(|place| positional.get_mut(place)) {
                    Some(argument) => {
                        *argument = value.clone();
                        false
                    }
                    None => true,
                }
            });
            let positional: Vec<&str> = positional.iter().map(Json::as_str).collect();
            (verbatim(&format!("[{}]", positional.join(", ")), &args), object(&rest))
        }
    }
}

fn object(entries: &[(String, Json)]) -> Json {
    let entries: Vec<String> = entries
        .iter()
        .map(|(name, value)| format!("{}: {value}", Json::string(name)))
        .collect();
    verbatim(&format!("{{{}}}", entries.join(", ")), &Json::empty_object())
}

/// A text that consists of values that were read, so that it can be read again.
fn verbatim(text: &str, otherwise: &Json) -> Json {
    Json::parse(text).unwrap_or_else(|_| otherwise.clone())
}

/// No run is left: the task's own error, or Celery's.
async fn give_up(shared: &Arc<Shared>, delivery: Delivery, asked: Retry, trail: &[Json]) {
    let message = &delivery.message;
    let times = message.retries.saturating_add(1);
    if let Some(why) = asked.because {
        let reason = format!("failed {times} times, the last time: {why}");
        return shared.bury_with(delivery, &why, reason, trail).await;
    }
    let text = format!(
        "Can't retry {}[{}] args:{} kwargs:{}",
        message.task,
        message.id,
        asked.args.as_ref().unwrap_or(&message.args).repr(),
        asked.kwargs.as_ref().unwrap_or(&message.kwargs).repr()
    );
    let failure = Failure::raise("celery.exceptions", "MaxRetriesExceededError", &[text]);
    let reason = format!("asked for a retry {times} times");
    shared.bury_with(delivery, &failure, reason, trail).await;
}

/// The message of the next run and the way it goes: it waits at the broker, or is sent to another list.
fn next(
    shared: &Shared,
    delivery: &Delivery,
    asked: &Retry,
    due: f64,
    order: i64,
) -> Result<(End, Vec<FollowUp>), message::Malformed> {
    let message = &delivery.message;
    #[allow(clippy::cast_possible_truncation)] // Microseconds since 1970 fit.
    let eta = Timestamp::from_microsecond((due * 1e6) as i64).ok();
    let now = shared.clock.timestamp();
    let mut change = message::Retry {
        retries: message.retries.saturating_add(1),
        eta,
        delivery_tag: uuid::Uuid::new_v4().to_string(),
        now: Some(now),
        headers: asked.headers.clone(),
    };
    change.headers.push(("umbel_order".into(), Json::of(&order)));
    let expires = asked.expires.and_then(|after| now.saturating_add(after).ok());
    let queue = asked.queue.as_deref().filter(|queue| *queue != &*delivery.queue);
    let priority = asked.priority.filter(|priority| *priority != message.priority);
    let is_same_call = asked.args.is_none() && asked.kwargs.is_none();
    if is_same_call && queue.is_none() && priority.is_none() {
        if let Some(expires) = expires {
            change
                .headers
                .push(("expires".into(), Json::string(&expires.to_string())));
        }
        let raw = shared.config.codec.retry(&delivery.raw, &change, &shared.config.zone)?;
        return Ok((End::Later { due, raw }, Vec::new()));
    }
    let job = shared.tasks.get(&message.task);
    let (args, kwargs) = call(asked, message, job.map_or(&[], |job| job.parameters()));
    let task = rebuilt(message, asked, (args, kwargs), change, expires);
    let raw = shared.config.codec.encode_like(&delivery.raw, &task)?;
    if queue.is_none() && priority.is_none() {
        return Ok((End::Later { due, raw }, Vec::new()));
    }
    // Whoever serves that list need not be a worker of ours: the message itself says when.
    let list = shared
        .broker
        .keys()
        .list(queue.unwrap_or(&delivery.queue), task.priority);
    Ok((End::Ack, vec![FollowUp::Push { list, raw }]))
}

/// The message anew, with other arguments or another way to go.
fn rebuilt(
    message: &TaskMessage,
    asked: &Retry,
    (args, kwargs): (Json, Json),
    change: message::Retry,
    expires: Option<Timestamp>,
) -> NewTask {
    let same = NewTask::from(message);
    let mut headers = custom_headers(message);
    for name in ["replaced_task_nesting", "stamped_headers", "stamps"] {
        headers.extend(message.header(name).map(|value| (name.to_owned(), value)));
    }
    headers.retain(|(name, _)| !change.headers.iter().any(|(set, _)| set == name));
    headers.extend(change.headers);
    NewTask {
        argsrepr: same.argsrepr.filter(|_| args == message.args),
        kwargsrepr: same.kwargsrepr.filter(|_| kwargs == message.kwargs),
        args,
        kwargs,
        queue: asked.queue.clone().unwrap_or(same.queue),
        priority: asked.priority.unwrap_or(same.priority),
        retries: change.retries,
        eta: change.eta,
        expires: expires.or(same.expires),
        sent_at: change.now,
        shadow: message.header("shadow").and_then(|shadow| shadow.text()),
        parent_id: same.parent_id.or_else(|| Some(message.id.clone())),
        delivery_tag: change.delivery_tag,
        headers,
        ..NewTask::from(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbel_protocol::message::{Limits, decode};

    #[test]
    fn a_message_made_anew_keeps_its_policy() {
        let policy = Json::parse(r#"{"max_attempts": 2}"#).unwrap();
        let task = NewTask {
            id: "1".into(),
            task: "t".into(),
            headers: vec![(retry::HEADER.into(), policy.clone())],
            ..NewTask::default()
        };
        let message = decode(&task.encode(), &Limits::default(), &jiff::tz::TimeZone::UTC).unwrap();
        let call = (Json::parse("[1]").unwrap(), Json::empty_object());
        let next = rebuilt(&message, &Retry::new(), call, message::Retry::default(), None);
        assert!(
            next.headers.contains(&(retry::HEADER.to_owned(), policy)),
            "{:?}",
            next.headers
        );
    }

    #[test]
    fn a_retry_keeps_what_it_does_not_set() {
        let json = |text: &str| Json::parse(text).unwrap();
        let message = |args: &str, kwargs: &str| {
            let task = NewTask {
                id: "1".into(),
                task: "t".into(),
                args: json(args),
                kwargs: json(kwargs),
                ..NewTask::default()
            };
            decode(&task.encode(), &Limits::default(), &jiff::tz::TimeZone::UTC).unwrap()
        };
        let names = ["foo", "bar", "label"];
        let positional = Retry::new().args(&(2, 3));
        let named = Retry::new().kwargs(&serde_json::json!({"foo": 2}));
        for (asked, was, expected) in [
            (
                &positional,
                message("[]", r#"{"foo": 1, "bar": 2, "label": "x"}"#),
                ("[2, 3]", r#"{"label": "x"}"#),
            ),
            (&positional, message("[1, 2]", "{}"), ("[2, 3]", "{}")),
            (&named, message("[1, NaN]", "{}"), ("[2, NaN]", "{}")),
            (&named, message("[]", r#"{"foo": 1}"#), ("[]", r#"{"foo": 2}"#)),
        ] {
            let (args, kwargs) = call(asked, &was, &names);
            assert_eq!((args.as_str(), kwargs.as_str()), expected);
        }
    }
}
