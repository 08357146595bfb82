//! What log lines say of the task that they belong to: every line that is written while a task is worked on names it,
//! also one of a library, or of the task's own code. Nothing is done for a line that is not written.

use std::fmt::{self, Write as _};
use std::future::Future;
use std::sync::Arc;

use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// What is known of a task, as fields of a log line. Never an argument, never a result.
pub trait Facts: Send + Sync {
    /// Tells each field: its name, which needs no escape, and its value.
    fn each(&self, tell: &mut dyn FnMut(&'static str, &str));
}

tokio::task_local! {
    static FACTS: Arc<dyn Facts>;
}

/// Work whose log lines say what they belong to. What it spawns is not part of it.
///
/// # Cancellation
/// As the work itself.
pub fn within<F: Future>(facts: Arc<dyn Facts>, work: F) -> impl Future<Output = F::Output> {
    FACTS.scope(facts, work)
}

/// As [`within`], of a function that waits for nothing.
pub fn within_call<T>(facts: Arc<dyn Facts>, call: impl FnOnce() -> T) -> T {
    FACTS.sync_scope(facts, call)
}

/// Is this line written for a task?
pub(crate) fn is_within() -> bool {
    FACTS.try_with(|_| ()).is_ok()
}

/// A format with the facts behind each line.
pub(crate) struct WithFacts<F> {
    pub(crate) inner: F,
    pub(crate) is_json: bool,
}

impl<S, N, F> FormatEvent<S, N> for WithFacts<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let Ok(facts) = FACTS.try_with(Arc::clone) else {
            return self.inner.format_event(ctx, writer, event);
        };
        let mut line = String::new();
        self.inner.format_event(ctx, Writer::new(&mut line), event)?;
        append(&mut line, self.is_json, &*facts)?;
        writer.write_str(&line)
    }
}

/// Adds the fields that the line does not have.
fn append(line: &mut String, is_json: bool, facts: &dyn Facts) -> fmt::Result {
    line.truncate(line.trim_end().len());
    if is_json && line.pop() != Some('}') {
        return Err(fmt::Error);
    }
    let mut written = Ok(());
    facts.each(&mut |name, value| {
        let (key, before) = if is_json {
            (format!("\"{name}\":"), ",")
        } else {
            (format!("{name}="), " ")
        };
        if written.is_err() || line.contains(&key) {
            return;
        }
        written = write!(line, "{before}{key}").and_then(|()| text(line, value));
    });
    written?;
    line.push_str(if is_json { "}\n" } else { "\n" });
    Ok(())
}

/// A text in JSON, which a terminal takes as well.
fn text(line: &mut String, value: &str) -> fmt::Result {
    line.push('"');
    for c in value.chars() {
        match c {
            '"' | '\\' => {
                line.push('\\');
                line.push(c);
            }
            c if c.is_control() => write!(line, "\\u{:04x}", u32::from(c))?,
            c => line.push(c),
        }
    }
    line.push('"');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Known(&'static str);

    impl Facts for Known {
        fn each(&self, tell: &mut dyn FnMut(&'static str, &str)) {
            tell("task.id", self.0);
            tell("queue", "q");
        }
    }

    #[test]
    fn a_line_gets_what_it_does_not_say_itself() {
        let mut line = "{\"message\":\"m\",\"task.id\":\"own\"}\n".to_owned();
        append(&mut line, true, &Known("other")).unwrap();
        assert_eq!(line, "{\"message\":\"m\",\"task.id\":\"own\",\"queue\":\"q\"}\n");
        let mut line = "{\"message\":\"m\"}\n".to_owned();
        append(&mut line, true, &Known("a\"\\\n\u{7}")).unwrap();
        assert_eq!(
            line,
            "{\"message\":\"m\",\"task.id\":\"a\\\"\\\\\\u000a\\u0007\",\"queue\":\"q\"}\n"
        );
        let mut line = "INFO m\n".to_owned();
        append(&mut line, false, &Known("id")).unwrap();
        assert_eq!(line, "INFO m task.id=\"id\" queue=\"q\"\n");
    }
}
