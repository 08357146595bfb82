//! Structured logs: one JSON object a line in a cluster, text on a terminal.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::lossy::Stderr;
pub use crate::lossy::dropped;
use crate::task::{self, WithFacts};

/// The variable that chooses what is logged, in `tracing`'s filter syntax.
pub const FILTER_VARIABLE: &str = "UMBEL_LOG";

/// What is logged when nobody chose: our own state changes, and of the
/// libraries only what needs a look.
const DEFAULT_FILTER: &str = "warn,umbel=info,umbel_operator=info,umbel_worker=info,\
umbel_broker=info,umbel_clusters=info,umbel_telemetry=info";

/// Sends this process's logs to stderr, and says which service it is. Panics are among them. A log that nobody reads is
/// dropped and holds up nobody, see [`dropped`].
///
/// A second call changes nothing: the first subscriber stays. A filter that
/// cannot be read is reported on the first line and replaced by the default,
/// because a typing mistake must not silence a service.
pub fn init(service: &'static str) {
    let wanted = std::env::var(FILTER_VARIABLE).ok().filter(|text| !text.is_empty());
    let (filter, fault) = match wanted.as_deref().map(EnvFilter::try_new) {
        None => (EnvFilter::new(DEFAULT_FILTER), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(DEFAULT_FILTER), Some(error.to_string())),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Stderr::default);
    let installed = if std::io::stderr().is_terminal() {
        builder
            .map_event_format(|inner| WithFacts { inner, is_json: false })
            .finish()
            .try_init()
    } else {
        builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .map_event_format(|inner| WithFacts { inner, is_json: true })
            .finish()
            .try_init()
    };
    if installed.is_ok() {
        // The standard hook writes to stderr itself, and waits for who reads it.
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string);
            // The words of a task's panic may hold its arguments: its result and its dead letter have them.
            let reason = panic.payload_as_str().filter(|_| !task::is_within());
            tracing::error!(target: "umbel_telemetry", reason, place, "panic");
        }));
        tracing::info!(target: "umbel_telemetry", service, version = env!("CARGO_PKG_VERSION"), "started");
    }
    if let Some(error) = fault {
        tracing::warn!(target: "umbel_telemetry", variable = FILTER_VARIABLE, error, "log filter ignored");
    }
}
