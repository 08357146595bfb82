//! `umbel pool explain`: the pool's own words about its size.

use std::cmp::Ordering;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use serde_json::{Value, json};
use umbel_api::names::pool_condition as condition;
use umbel_api::workerpool::Mode;
use umbel_api::{WorkerPool, WorkerPoolStatus};

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
        Mode::External => format!(
            "{} (spec.replicas, which something else writes); allowed are {} to {}",
            pods(status.desired_replicas),
            scaling.min_replicas,
            scaling.max_replicas
        ),
        Mode::Auto => format!(
            "{}; demand alone asks for {}, allowed are {} to {}",
            pods(status.desired_replicas),
            status.recommended_replicas,
            scaling.min_replicas,
            scaling.max_replicas
        ),
    };
    lines.push(("Wanted", wanted));

    let why = find(status, condition::SCALING_ACTIVE);
    if let Some(why) = why {
        lines.push(("Why", why.message.clone()));
    }
    lines.push(("Held by", held(pool, status)));
    lines.push(("Next", next(status, why.map_or("", |why| &why.reason))));
    if let Some(last) = &status.last_scale {
        lines.push((
            "Last",
            format!("{} from {} to {}: {}", last.time.0, last.from, last.to, last.reason),
        ));
    }
    lines
}

fn find<'a>(status: &'a WorkerPoolStatus, kind: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == kind)
}

fn pods(count: u32) -> String {
    format!("{count} {}", if count == 1 { "pod" } else { "pods" })
}

/// What keeps the pool from the size that demand asks for.
fn held(pool: &WorkerPool, status: &WorkerPoolStatus) -> String {
    let is = |kind: &str, state: &str| find(status, kind).filter(|condition| condition.status == state);
    let mut held = Vec::new();
    if let Some(blocked) = is(condition::SCALE_DOWN_BLOCKED, "True") {
        held.push(blocked.message.clone());
    }
    if is(condition::SCALING_LIMITED, "True").is_some() {
        let scaling = &pool.spec.scaling;
        held.push(format!(
            "its bounds, {} to {} pods",
            scaling.min_replicas, scaling.max_replicas
        ));
    }
    let others = [
        is(condition::FOREIGN_SCALER, "True"),
        is(condition::READY, "False"),
        is(condition::BROKER_REACHABLE, "False"),
    ];
    held.extend(others.into_iter().flatten().map(|condition| condition.message.clone()));
    if held.is_empty() {
        "nothing".to_owned()
    } else {
        held.join("; ")
    }
}

/// What happens next, by the numbers and by the word of the latest decision.
fn next(status: &WorkerPoolStatus, reason: &str) -> String {
    let is_blocked = find(status, condition::SCALE_DOWN_BLOCKED).is_some_and(|condition| condition.status == "True");
    let (now, then) = (status.replicas, status.desired_replicas);
    match now.cmp(&then) {
        Ordering::Less => format!("{} more will start", pods(then - now)),
        Ordering::Greater if is_blocked => "nothing, until what holds it back is gone".to_owned(),
        Ordering::Greater => format!("{} will go, each when it is idle", pods(now - then)),
        Ordering::Equal => match reason {
            "Stabilizing" => "another size, if demand stays as it is until the time above",
            "CoolingDown" => "the last pods go at the time above, if nothing comes",
            "BusyPods" => "fewer pods, as their tasks end",
            "NoSample" | "BrokerUnreadable" | "SampleTooOld" => "the size stays until the broker answers",
            _ => "the size stays until demand changes",
        }
        .to_owned(),
    }
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
            ("Held by", "its bounds, 1 to 8 pods"),
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
        assert!(explained.contains(&("Held by", "pod w-1 is admitted and not Ready".to_owned())));
        assert!(explained.contains(&("Next", "nothing, until what holds it back is gone".to_owned())));
    }

    #[test]
    fn a_size_that_waits_for_a_time_says_so() {
        let mut why = condition(
            "ScalingActive",
            "True",
            "stays at 3: demand asks for 1, which counts from T on if it lasts",
        );
        why["reason"] = json!("Stabilizing");
        let status = json!({"replicas": 3, "desiredReplicas": 3, "recommendedReplicas": 1, "conditions": [why]});
        let next = (
            "Next",
            "another size, if demand stays as it is until the time above".to_owned(),
        );
        assert!(explain(&pool(&status)).contains(&next));
    }

    #[test]
    fn a_pool_that_nobody_looks_after_says_so() {
        assert_eq!(
            explain(&pool(&Value::Null))[0].1,
            "nothing is known yet: no operator has seen this pool"
        );
    }
}
