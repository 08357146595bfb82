//! Answers of a worker, in Celery's words: Flower and `celery inspect` show or parse them.

use super::info::TaskRequest;
use crate::json::Json;
use crate::result::Failure;
use crate::write;

/// `{"ok": text}`.
pub fn ok(text: &str) -> Json {
    write::object([("ok", &Json::string(text))])
}

/// `{"error": text}`.
pub fn error(text: &str) -> Json {
    write::object([("error", &Json::string(text))])
}

/// ping.
pub fn pong() -> Json {
    ok("pong")
}

/// clock.
pub fn clock(clock: u64) -> Json {
    write::object([("clock", &Json::of(&clock))])
}

/// revoked, registered: a list of texts.
pub fn names<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> Json {
    write::array(names.into_iter().map(|name| Json::string(name.as_ref())))
}

/// The line of one task in `registered`: its name, with attributes that are set: `proj.limited [rate_limit=2/m]`.
pub fn registered(task: &str, attributes: &[(&str, &str)]) -> String {
    if attributes.is_empty() {
        return task.to_owned();
    }
    let shown: Vec<String> = attributes
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    format!("{task} [{}]", shown.join(" "))
}

/// active, reserved.
pub fn tasks<'a>(tasks: impl IntoIterator<Item = &'a TaskRequest>, safe: bool) -> Json {
    write::array(tasks.into_iter().map(|task| task.to_json(safe)))
}

/// scheduled: tasks with the time that they wait for, in ISO 8601.
pub fn scheduled<'a>(tasks: impl IntoIterator<Item = (&'a str, &'a TaskRequest)>) -> Json {
    write::array(tasks.into_iter().map(|(eta, task)| {
        write::object([
            ("eta", &Json::string(eta)),
            ("priority", &Json::of(&6)),
            ("request", &task.to_json(false)),
        ])
    }))
}

/// query_task: `active`, `reserved`, `scheduled` or `ready` of the tasks that are known.
pub fn query_task<'a>(tasks: impl IntoIterator<Item = (&'a str, &'a TaskRequest)>) -> Json {
    let known: Vec<(String, Json)> = tasks
        .into_iter()
        .map(|(state, task)| {
            (
                task.id.clone(),
                write::array([Json::string(state), task.to_json(false)]),
            )
        })
        .collect();
    write::object(known.iter().map(|(id, task)| (id.as_str(), task)))
}

/// revoke, of tasks that do not run or are left to run.
pub fn flagged(ids: &[String]) -> Json {
    let set = if ids.is_empty() {
        "set()".to_owned()
    } else {
        let ids: Vec<String> = ids.iter().map(|id| Json::string(id).repr()).collect();
        format!("{{{}}}", ids.join(", "))
    };
    ok(&format!("tasks {set} flagged as revoked"))
}

/// revoke with terminate: the ids of the tasks that were stopped.
pub fn terminated(ids: &[String]) -> Json {
    if ids.is_empty() {
        return ok("terminate: tasks unknown");
    }
    ok(&format!("terminate: {}", ids.join(", ")))
}

/// revoke_by_stamped_headers without terminate; `headers` as it came.
pub fn flagged_stamps(headers: &Json) -> Json {
    ok(&format!(
        "headers {} flagged as revoked, but not terminated",
        headers.repr()
    ))
}

/// revoke_by_stamped_headers with terminate: stamps and values of the tasks that were stopped.
pub fn terminated_stamps(asked: &Json, stopped: &[(String, Vec<Json>)]) -> Json {
    if stopped.is_empty() {
        return ok(&format!("headers {} were not terminated", asked.repr()));
    }
    let stopped: Vec<(&str, Json)> = stopped
        .iter()
        .map(|(name, values)| (name.as_str(), write::array(values)))
        .collect();
    let stopped = write::object(stopped.iter().map(|(name, values)| (*name, values)));
    ok(&format!("headers {} revoked", stopped.repr()))
}

/// revoke with a signal that there is not.
pub fn unknown_signal(signal: &str) -> Json {
    let said = format!("module 'signal' has no attribute {}", Json::string(signal).repr());
    error(&format!("AttributeError({})", Json::string(&said).repr()))
}

/// rate_limit; `rate` as asked for, empty for none.
pub fn rate_limit_set(rate: &str) -> Json {
    if rate.is_empty() {
        ok("rate limit disabled successfully")
    } else {
        ok("new rate limit set successfully")
    }
}

/// rate_limit with something that is no rate.
pub fn invalid_rate(rate: &str) -> Json {
    let cause = Failure::new("builtins", "ValueError", &format!("invalid rate: {rate:?}"));
    error(&format!("Invalid rate limit string: {}", cause.repr()))
}

/// rate_limit, time_limit: the worker does not run this task.
pub fn unknown_task() -> Json {
    error("unknown task")
}

/// time_limit.
pub fn time_limit_set() -> Json {
    ok("time limits set successfully")
}

/// pool_grow.
pub fn pool_grows() -> Json {
    ok("pool will grow")
}

/// pool_shrink.
pub fn pool_shrinks() -> Json {
    ok("pool will shrink")
}

/// pool_grow, pool_shrink: something else sets the size.
pub fn pool_is_autoscaled(method: &str) -> Json {
    error(&format!(
        "{method} is not supported with autoscale. Adjust autoscale range instead."
    ))
}

/// autoscale.
pub fn autoscaled(max: usize, min: usize) -> Json {
    ok(&format!("autoscale now max={max} min={min}"))
}

/// autoscale of a worker without it.
pub fn not_autoscaled() -> Json {
    error("ValueError('Autoscale not enabled')")
}

/// pool_restart of a worker that does not do it.
pub fn no_restarts() -> Json {
    error("ValueError('Pool restarts not enabled')")
}

/// add_consumer.
pub fn consumer_added(queue: &str) -> Json {
    ok(&format!("add consumer {queue}"))
}

/// cancel_consumer.
pub fn consumer_cancelled(queue: &str) -> Json {
    ok(&format!("no longer consuming from {queue}"))
}

/// enable_events; were they off before?
pub fn events_enabled(is_change: bool) -> Json {
    ok(if is_change {
        "task events enabled"
    } else {
        "task events already enabled"
    })
}

/// disable_events; were they on before?
pub fn events_disabled(is_change: bool) -> Json {
    ok(if is_change {
        "task events disabled"
    } else {
        "task events already disabled"
    })
}

/// hello: what this worker knows to be revoked, and its clock.
pub fn hello<T: AsRef<str>>(revoked: impl IntoIterator<Item = T>, clock: u64) -> Json {
    write::object([("revoked", &names(revoked)), ("clock", &Json::of(&clock))])
}
