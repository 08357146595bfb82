//! `umbel pool explain`: the pool's own words about its size.

use kube::Api;
use serde_json::{Value, json};
use umbel_api::WorkerPool;
use umbel_api::names::pool_condition as condition;

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
                .try_for_each(|(word, text)| output::line(&format!("  {word:<9}  {}", output::plain(text))))
        }
    }
}

/// The pool's own sentence (current, wanted, why, what holds it back, what happens next) as its condition has it, and
/// beside it what the sentence has no room for.
fn explain(pool: &WorkerPool) -> Vec<(&'static str, String)> {
    let Some(status) = &pool.status else {
        return vec![(
            "Says",
            "nothing is known yet: no operator has seen this pool".to_owned(),
        )];
    };
    let find = |kind: &str| status.conditions.iter().find(|condition| condition.type_ == kind);
    let mut lines = Vec::new();
    if let Some(says) = find(condition::SCALING_ACTIVE) {
        lines.push(("Says", says.message.clone()));
    }
    if let Some(demand) = status.demand {
        let text = format!(
            "{} waiting, {} in flight, {} due soon",
            demand.waiting, demand.in_flight, demand.delayed_soon
        );
        lines.push(("Demand", text));
    }
    if let Some(slots) = status.slots {
        lines.push(("Slots", format!("{} of {} in use", slots.busy, slots.total)));
    }
    // What is wrong besides, unless the sentence speaks of it.
    let wrong = [
        (condition::READY, "False"),
        (condition::BROKER_REACHABLE, "False"),
        (condition::SCALE_DOWN_BLOCKED, "True"),
        (condition::FOREIGN_SCALER, "True"),
        (condition::FOREIGN_COST_WRITER, "True"),
        (condition::GRACE_TOO_SHORT, "True"),
    ];
    let told = lines.first().map(|(_, text)| text.clone()).unwrap_or_default();
    for (kind, state) in wrong {
        if let Some(found) = find(kind).filter(|found| found.status == state && !told.contains(&found.message)) {
            lines.push((
                if kind == condition::READY { "Not ready" } else { "Also" },
                found.message.clone(),
            ));
        }
    }
    if let Some(last) = &status.last_scale {
        let victims = if last.victims.is_empty() {
            String::new()
        } else {
            format!("; removed {}", last.victims.join(", "))
        };
        lines.push((
            "Last",
            format!(
                "{} from {} to {}: {}{victims}",
                last.time.0, last.from, last.to, last.reason
            ),
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
    fn the_sentence_of_the_condition_is_printed_word_by_word() {
        let sentence = "5 pods (4 ready, 1 busy, 1 draining), 1 wanted: demand asks for 0. Held back by admitted pod w-1 is not Ready. \
                        Next: nothing, until what holds it back is gone.";
        let explained = explain(&pool(&json!({
            "replicas": 5, "readyReplicas": 4, "desiredReplicas": 1, "recommendedReplicas": 0,
            "slots": {"total": 20, "busy": 3}, "demand": {"waiting": 0, "inFlight": 3, "delayedSoon": 1},
            "lastScale": {"time": "2026-01-01T00:00:00Z", "from": 3, "to": 5, "reason": "demand asks for 5"},
            "conditions": [
                condition("ScalingActive", "True", sentence),
                condition("ScaleDownBlocked", "True", "admitted pod w-1 is not Ready"),
                condition("Ready", "False", "4 of 5 pods are ready"),
                condition("BrokerReachable", "True", "the broker answers"),
            ],
        })));
        let expected = [
            ("Says", sentence),
            ("Demand", "0 waiting, 3 in flight, 1 due soon"),
            ("Slots", "3 of 20 in use"),
            ("Not ready", "4 of 5 pods are ready"),
            ("Last", "2026-01-01T00:00:00Z from 3 to 5: demand asks for 5"),
        ];
        assert_eq!(explained, expected.map(|(word, text)| (word, text.to_owned())));
    }

    #[test]
    fn a_pool_that_cannot_run_says_why() {
        let explained = explain(&pool(&json!({
            "conditions": [condition("Ready", "False", "there is no TaskQueue q in this namespace")],
        })));
        assert_eq!(
            explained,
            [("Not ready", "there is no TaskQueue q in this namespace".to_owned())]
        );
    }

    #[test]
    fn a_pool_that_nobody_looks_after_says_so() {
        assert_eq!(
            explain(&pool(&Value::Null))[0].1,
            "nothing is known yet: no operator has seen this pool"
        );
    }
}
