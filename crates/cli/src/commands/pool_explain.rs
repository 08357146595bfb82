//! `umbel pool explain`: the pool's own words about its size.

use kube::Api;
use serde_json::{Value, json};
use umbel_api::WorkerPool;
use umbel_api::names::pool_condition as condition;
use umbel_api::workerpool::Mode;

use crate::args::{Format, Global};
use crate::home::{Home, said};
use crate::output;

pub(crate) async fn run(global: &Global, name: &str) -> anyhow::Result<()> {
    let Home { client, namespace } = Home::open(global).await?;
    let api = Api::<WorkerPool>::namespaced(client, &namespace);
    let pool = api
        .get(name)
        .await
        .map_err(|err| said(err, format!("read WorkerPool {namespace}/{name}")))?;
    let lines = explain(&pool);
    match global.output {
        Format::Name => output::line(&format!("workerpool.umbel.dev/{name}")),
        Format::Json | Format::Yaml => {
            let lines = lines.into_iter().map(|(word, text)| (word.to_lowercase(), json!(text)));
            let mut value: serde_json::Map<String, Value> = lines.collect();
            value.insert("status".to_owned(), serde_json::to_value(&pool.status)?);
            output::value(global.output, &Value::Object(value))
        }
        Format::Table | Format::Wide => {
            output::line(&format!("WorkerPool {namespace}/{name}"))?;
            lines
                .iter()
                .try_for_each(|(word, text)| output::line(&format!("  {word:<8}  {}", output::plain(text))))
        }
    }
}

/// Current, wanted, why, what holds it back, and what happens next.
fn explain(pool: &WorkerPool) -> Vec<(&'static str, String)> {
    let Some(status) = &pool.status else {
        return vec![(
            "Current",
            "nothing is known yet: no operator has seen this pool".to_owned(),
        )];
    };
    let pods = |count: u32| format!("{count} {}", if count == 1 { "pod" } else { "pods" });
    let mut current = format!(
        "{}: {} ready, {} busy, {} idle, {} draining",
        pods(status.replicas),
        status.ready_replicas,
        status.busy_replicas,
        status.idle_replicas,
        status.draining_replicas
    );
    if let Some(slots) = status.slots {
        current = format!("{current}; {} of {} slots in use", slots.busy, slots.total);
    }
    let mut lines = vec![("Current", current)];
    if let Some(demand) = status.demand {
        let text = format!(
            "{} waiting, {} in flight, {} due soon",
            demand.waiting, demand.in_flight, demand.delayed_soon
        );
        lines.push(("Demand", text));
    }
    let scaling = &pool.spec.scaling;
    let wanted = match scaling.mode {
        Mode::Manual => format!("{} (spec.replicas)", pods(status.desired_replicas)),
        Mode::Auto => format!(
            "{}; demand alone asks for {}, allowed are {} to {}",
            pods(status.desired_replicas),
            status.recommended_replicas,
            scaling.min_replicas,
            scaling.max_replicas
        ),
    };
    lines.push(("Wanted", wanted));

    let find = |kind: &str| status.conditions.iter().find(|condition| condition.type_ == kind);
    if let Some(why) = find(condition::SCALING_ACTIVE) {
        lines.push(("Why", why.message.clone()));
    }
    // These hold a size back when they are true, the next ones when they are not.
    let when_true = [
        condition::SCALE_DOWN_BLOCKED,
        condition::SCALING_LIMITED,
        condition::FOREIGN_SCALER,
    ];
    let when_false = [condition::READY, condition::BROKER_REACHABLE];
    let held = when_true
        .iter()
        .map(|kind| (kind, "True"))
        .chain(when_false.iter().map(|kind| (kind, "False")));
    let mut held: Vec<String> = held
        .filter_map(|(kind, state)| find(kind).filter(|condition| condition.status == state))
        .map(|condition| format!("{}: {}", condition.type_, condition.message))
        .collect();
    if held.is_empty()
        && let Some(reason) = &status.blocked_reason
    {
        held.push(reason.clone());
    }
    let is_blocked = find(condition::SCALE_DOWN_BLOCKED).is_some_and(|condition| condition.status == "True");
    lines.push((
        "Held by",
        if held.is_empty() {
            "nothing".to_owned()
        } else {
            held.join("; ")
        },
    ));

    let (now, then) = (status.replicas, status.desired_replicas);
    let next = match now.cmp(&then) {
        std::cmp::Ordering::Less => format!("{} more will start", pods(then - now)),
        std::cmp::Ordering::Equal => "the size stays until demand changes".to_owned(),
        std::cmp::Ordering::Greater if is_blocked => "nothing, until what holds it back is gone".to_owned(),
        std::cmp::Ordering::Greater => format!("{} will go, each when it is idle", pods(now - then)),
    };
    lines.push(("Next", next));
    if let Some(last) = &status.last_scale {
        lines.push((
            "Last",
            format!("{} from {} to {}: {}", last.time.0, last.from, last.to, last.reason),
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(status: &Value) -> WorkerPool {
        serde_json::from_value(json!({
            "apiVersion": "umbel.dev/v1alpha1", "kind": "WorkerPool", "metadata": {"name": "w"},
            "spec": {"queues": [{"name": "q"}], "scaling": {"minReplicas": 1, "maxReplicas": 8}},
            "status": status,
        }))
        .unwrap()
    }

    fn condition(kind: &str, status: &str, message: &str) -> Value {
        json!({"type": kind, "status": status, "message": message, "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn a_growing_pool_says_what_it_wants_and_what_comes() {
        let explained = explain(&pool(&json!({
            "replicas": 2, "readyReplicas": 2, "busyReplicas": 2, "desiredReplicas": 8, "recommendedReplicas": 13,
            "slots": {"total": 20, "busy": 20}, "demand": {"waiting": 80, "inFlight": 20, "delayedSoon": 3},
            "conditions": [condition("ScalingActive", "True", "2 -> 8: demand asks for 13, maxReplicas is 8"),
                           condition("ScalingLimited", "True", "maxReplicas is 8")],
        })));
        let expected = [
            (
                "Current",
                "2 pods: 2 ready, 2 busy, 0 idle, 0 draining; 20 of 20 slots in use",
            ),
            ("Demand", "80 waiting, 20 in flight, 3 due soon"),
            ("Wanted", "8 pods; demand alone asks for 13, allowed are 1 to 8"),
            ("Why", "2 -> 8: demand asks for 13, maxReplicas is 8"),
            ("Held by", "ScalingLimited: maxReplicas is 8"),
            ("Next", "6 pods more will start"),
        ];
        assert_eq!(explained, expected.map(|(word, text)| (word, text.to_owned())));
    }

    #[test]
    fn a_blocked_step_down_says_that_nothing_happens_until() {
        let explained = explain(&pool(&json!({
            "replicas": 5, "readyReplicas": 4, "desiredReplicas": 1, "recommendedReplicas": 0,
            "conditions": [condition("ScaleDownBlocked", "True", "pod w-1 is admitted and not Ready")],
        })));
        assert!(explained.contains(&(
            "Held by",
            "ScaleDownBlocked: pod w-1 is admitted and not Ready".to_owned()
        )));
        assert!(explained.contains(&("Next", "nothing, until what holds it back is gone".to_owned())));
    }

    #[test]
    fn a_pool_that_nobody_looks_after_says_so() {
        assert_eq!(
            explain(&pool(&Value::Null))[0].1,
            "nothing is known yet: no operator has seen this pool"
        );
    }
}
