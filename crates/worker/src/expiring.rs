//! Queues that were declared with `x-expires`: their lists are kept for as long as a worker serves them.
//!
//! With Celery only a push renews a list's time on Redis (kombu's `basic_get` would, which no worker uses), so what waits
//! for longer behind a busy worker goes with its list. Here serving counts as use, as with RabbitMQ.

use std::sync::Arc;
use std::time::Duration;

use umbel_telemetry::chain;

use crate::app::Shared;
use crate::limits::Named;

/// Pause after a failed attempt, at most.
const AGAIN: Duration = Duration::from_millis(200);

/// The time of a queue: the rule that names it, else the one for all; the last of several counts.
fn expires_of(rules: &[Named<Span>], queue: &str) -> Option<Duration> {
    let named = |name: Option<&str>| rules.iter().rev().find(|rule| rule.name.as_deref() == name);
    named(Some(queue)).or_else(|| named(None)).map(|rule| rule.value.0)
}

/// A duration as flags have it, longer than nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        match crate::args::parse_duration(text)? {
            Duration::ZERO => Err("must be above zero".into()),
            span => Ok(Span(span)),
        }
    }
}

/// Renews for ever, each three times in its time.
pub(crate) async fn run(shared: Arc<Shared>) {
    let rules = &shared.config.queue_expires;
    let Some(shortest) = rules.iter().map(|rule| rule.value.0).min() else {
        return;
    };
    loop {
        let mut pause = shortest / 3;
        for queue in shared.queues.all() {
            let Some(expires) = expires_of(rules, &queue.name) else {
                continue;
            };
            if queue.exchange_type == "fanout" {
                continue; // Its list is this worker's own.
            }
            let bound = (
                queue.exchange.as_str(),
                queue.exchange_type.as_str(),
                queue.routing_key.as_str(),
            );
            if let Err(err) = shared
                .broker
                .keep_queue(bound, &queue.name, expires, shared.clock.now())
                .await
            {
                tracing::debug!(queue = queue.name, error = %chain(&err), "keeping the queue again");
                pause = pause.min(AGAIN);
            }
        }
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queues_own_time_goes_before_that_of_all() {
        let rules: Vec<Named<Span>> = ["30s", "mail=5s", "mail=7s"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        assert_eq!(expires_of(&rules, "mail"), Some(Duration::from_secs(7)));
        assert_eq!(expires_of(&rules, "other"), Some(Duration::from_secs(30)));
        assert_eq!(expires_of(&rules[1..], "other"), None);
        assert!("mail=0s".parse::<Named<Span>>().is_err());
    }
}
