//! What log lines say of the message that they belong to, and the context of a trace that goes with it.

use std::future::Future;
use std::sync::Arc;

use umbel_protocol::json::Json;
use umbel_protocol::message::TaskMessage;
use umbel_telemetry::task;

/// Headers of the W3C's trace context, which a message passes on to what follows from it.
const TRACE: [&str; 3] = ["traceparent", "tracestate", "baggage"];

struct Facts {
    message: Arc<TaskMessage>,
    queue: Arc<str>,
}

impl task::Facts for Facts {
    fn each(&self, tell: &mut dyn FnMut(&'static str, &str)) {
        let message = &self.message;
        tell("task.id", &message.id);
        tell("task.name", &message.task);
        tell("queue", &self.queue);
        tell(
            "correlation_id",
            message.correlation_id.as_deref().unwrap_or(&message.id),
        );
        let parent = message.header("traceparent").and_then(|parent| parent.text());
        if let Some(trace) = parent.as_deref().and_then(trace_id) {
            tell("trace_id", trace);
        }
    }
}

/// What log lines say of this message.
pub(crate) fn of(message: &Arc<TaskMessage>, queue: &Arc<str>) -> Arc<dyn task::Facts> {
    Arc::new(Facts {
        message: Arc::clone(message),
        queue: Arc::clone(queue),
    })
}

/// Work on a message: its log lines name it.
pub(crate) fn within<F: Future>(
    message: &Arc<TaskMessage>,
    queue: &Arc<str>,
    work: F,
) -> impl Future<Output = F::Output> {
    task::within(of(message, queue), work)
}

/// The trace in `<version>-<trace id>-<parent id>-<flags>`.
fn trace_id(parent: &str) -> Option<&str> {
    let mut parts = parent.trim().split('-');
    let (version, trace) = (parts.next()?, parts.next()?);
    let is_hex = |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_hex(version, 2) && is_hex(trace, 32) && parts.next().is_some()).then_some(trace)
}

/// Adds the trace context of a message to the headers of what follows from it, unless they have one.
pub(crate) fn pass_trace_on(message: &TaskMessage, headers: &mut Vec<(String, Json)>) {
    if !message.headers.as_str().contains("\"traceparent\"") || headers.iter().any(|(name, _)| name == TRACE[0]) {
        return; // As a rule there is none, and that costs no more than a look.
    }
    for name in TRACE {
        if let Some(value) = message
            .header(name)
            .filter(|_| headers.iter().all(|(known, _)| known != name))
        {
            headers.push((name.to_owned(), value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::trace_id;

    #[test]
    fn a_trace_is_read_from_its_parent() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(trace_id(&format!("00-{trace}-b7ad6b7169203331-01")), Some(trace));
        for bad in ["", "00-0af7-b7ad-01", trace, "zz-0af7651916cd43dd8448eb211c80319c-x-01"] {
            assert_eq!(trace_id(bad), None, "{bad}");
        }
    }
}
