//! What a wait waits for, and whether an object is that far. Pure.

use serde_json::Value;

use super::path::{Path, text};

/// What a wait waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Goal {
    /// The object's controller has brought everything to its present version, and that is available.
    Rollout,
    /// The object is not there.
    Deleted,
    /// A condition has this status.
    Condition { kind: String, status: String },
    /// A field has this value, as text.
    Field { path: Path, of: String, is: String },
}

/// How far an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// There.
    Met,
    /// Not yet, and what is missing.
    Missing(String),
    /// It will not get there by itself.
    Hopeless(String),
}

impl Goal {
    /// `rollout`, `deleted`, `condition=Ready`, `condition=Ready=False`, `jsonpath={.status.phase}=Running`: as
    /// `kubectl wait --for` has them.
    pub(super) fn parse(text: &str) -> Result<Goal, String> {
        if let Some(condition) = text.strip_prefix("condition=") {
            let (kind, status) = condition.split_once('=').unwrap_or((condition, "True"));
            if kind.is_empty() || status.is_empty() || condition.len() > 400 {
                return Err("for: condition=<type> or condition=<type>=<status>".to_owned());
            }
            return Ok(Goal::Condition {
                kind: kind.to_owned(),
                status: status.to_owned(),
            });
        }
        if let Some(field) = text.strip_prefix("jsonpath=") {
            // The last one outside of a filter: values hold none more often than paths do.
            let end = field.rfind('}').map_or(0, |end| end + 1);
            let (path, is) = match field[end..].split_once('=') {
                Some((rest, is)) => (&field[..end + rest.len()], is),
                None => return Err("for: jsonpath=<path>=<value>".to_owned()),
            };
            return Ok(Goal::Field {
                path: Path::parse(path)?,
                of: path.to_owned(),
                is: is.to_owned(),
            });
        }
        match text {
            "rollout" => Ok(Goal::Rollout),
            "delete" | "deleted" => Ok(Goal::Deleted),
            _ => Err("for: rollout, deleted, condition=…, jsonpath=…=…".to_owned()),
        }
    }

    /// How far the object is; `None` if it is not there.
    pub(super) fn progress(&self, kind: &str, object: Option<&Value>) -> Progress {
        let Some(object) = object else {
            return match self {
                Goal::Deleted => Progress::Met,
                _ => Progress::Missing("it does not exist".to_owned()),
            };
        };
        match self {
            Goal::Deleted => {
                let is_going = object["metadata"]["deletionTimestamp"].is_string();
                let text = if is_going { "it is being deleted" } else { "it exists" };
                Progress::Missing(text.to_owned())
            }
            Goal::Condition { kind: wanted, status } => {
                let said = condition(object, wanted);
                let now = said.map_or("no such condition".to_owned(), |said| {
                    format!("it is {}{}", text(&said["status"]), reason(said))
                });
                if said.is_some_and(|said| text(&said["status"]).eq_ignore_ascii_case(status)) {
                    return Progress::Met;
                }
                if kind == "Job" && wanted == "Complete" && is_true(object, "Failed") {
                    return Progress::Hopeless(format!(
                        "the Job failed{}",
                        condition(object, "Failed").map_or(String::new(), reason)
                    ));
                }
                Progress::Missing(format!("condition {wanted}={status}: {now}"))
            }
            Goal::Field { path, of, is } => {
                let now = text(&path.find(object));
                if now == *is {
                    return Progress::Met;
                }
                // Of a value only so much as tells what it is.
                let now: String = now.chars().take(80).collect();
                Progress::Missing(format!("{of} = {is}: it is {now}"))
            }
            Goal::Rollout => rollout(kind, object),
        }
    }
}

fn condition<'o>(object: &'o Value, kind: &str) -> Option<&'o Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|one| one["type"] == kind)
}

fn is_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|one| one["status"] == "True")
}

fn reason(condition: &Value) -> String {
    let words = |name: &str| {
        condition[name]
            .as_str()
            .unwrap_or_default()
            .chars()
            .take(200)
            .collect::<String>()
    };
    match (words("reason"), words("message")) {
        (reason, _) if reason.is_empty() => String::new(),
        (reason, message) if message.is_empty() => format!(" ({reason})"),
        (reason, message) => format!(" ({reason}: {message})"),
    }
}

fn rollout(kind: &str, object: &Value) -> Progress {
    let missing = |text: String| Progress::Missing(format!("rollout: {text}"));
    let (spec, status) = (&object["spec"], &object["status"]);
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    if !matches!(kind, "Deployment" | "StatefulSet" | "DaemonSet" | "Job") {
        return Progress::Hopeless(format!(
            "a {kind} has no rollout; wait for a condition or a field of it"
        ));
    }
    if kind == "Job" {
        if is_true(object, "Failed") {
            return Progress::Hopeless(format!(
                "the Job failed{}",
                condition(object, "Failed").map_or(String::new(), reason)
            ));
        }
        if is_true(object, "Complete") {
            return Progress::Met;
        }
        let wanted = spec["completions"].as_i64().unwrap_or(1);
        return missing(format!("{} of {wanted} pods succeeded", number(&status["succeeded"])));
    }
    if number(&status["observedGeneration"]) < number(&object["metadata"]["generation"]) {
        return missing("its controller has not seen the change yet".to_owned());
    }
    if kind == "DaemonSet" {
        let wanted = number(&status["desiredNumberScheduled"]);
        let (updated, available) = (
            number(&status["updatedNumberScheduled"]),
            number(&status["numberAvailable"]),
        );
        return if updated < wanted {
            missing(format!("{updated} of {wanted} pods updated"))
        } else if available < wanted {
            missing(format!("{available} of {wanted} pods available"))
        } else {
            Progress::Met
        };
    }
    let wanted = spec["replicas"].as_i64().unwrap_or(1);
    let updated = number(&status["updatedReplicas"]);
    if kind == "StatefulSet" {
        let partition = number(&spec["updateStrategy"]["rollingUpdate"]["partition"]);
        let ready = number(&status["readyReplicas"]);
        return if ready < wanted {
            missing(format!("{ready} of {wanted} pods ready"))
        } else if partition > 0 {
            if updated < wanted - partition {
                missing(format!("{updated} of {} pods updated", wanted - partition))
            } else {
                Progress::Met
            }
        } else if status["updateRevision"] != status["currentRevision"] {
            missing(format!("{updated} of {wanted} pods updated"))
        } else {
            Progress::Met
        };
    }
    let progressing = condition(object, "Progressing");
    if let Some(stuck) = progressing.filter(|one| one["reason"] == "ProgressDeadlineExceeded") {
        return Progress::Hopeless(format!("the rollout is stuck{}", reason(stuck)));
    }
    let (all, available) = (number(&status["replicas"]), number(&status["availableReplicas"]));
    if updated < wanted {
        missing(format!("{updated} of {wanted} pods updated"))
    } else if all > updated {
        missing(format!("{} old pods are left", all - updated))
    } else if available < updated {
        missing(format!("{available} of {updated} updated pods available"))
    } else {
        Progress::Met
    }
}

#[cfg(test)]
mod unit {
    use serde_json::json;

    use super::*;

    #[test]
    fn goals_are_written_as_kubectl_has_them() {
        assert_eq!(Goal::parse("rollout"), Ok(Goal::Rollout));
        assert_eq!(Goal::parse("delete"), Ok(Goal::Deleted));
        let condition = |kind: &str, status: &str| Goal::Condition {
            kind: kind.into(),
            status: status.into(),
        };
        assert_eq!(Goal::parse("condition=Ready"), Ok(condition("Ready", "True")));
        assert_eq!(Goal::parse("condition=Ready=False"), Ok(condition("Ready", "False")));
        let field = |path: &str, is: &str| Goal::Field {
            path: Path::parse(path).unwrap(),
            of: path.into(),
            is: is.into(),
        };
        assert_eq!(
            Goal::parse("jsonpath={.status.phase}=Running"),
            Ok(field("{.status.phase}", "Running"))
        );
        assert_eq!(Goal::parse("jsonpath=.data.a=b=c"), Ok(field(".data.a", "b=c")));
        let filter = "{.status.conditions[?(@.type==\"A\")].status}";
        assert_eq!(
            Goal::parse(&format!("jsonpath={filter}=True")),
            Ok(field(filter, "True"))
        );
        for text in [
            "",
            "ready",
            "condition=",
            "jsonpath=.a",
            "jsonpath==x",
            "condition=Ready=",
        ] {
            assert!(Goal::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rollouts_are_done_when_the_present_version_is_available() {
        let deployment = |generation: i64, status: Value| json!({"metadata": {"generation": generation}, "spec": {"replicas": 3}, "status": status});
        let status = |updated: i64, all: i64, available: i64| json!({"observedGeneration": 2, "updatedReplicas": updated, "replicas": all, "availableReplicas": available});
        let stuck = json!({"observedGeneration": 2, "conditions": [
            {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "no"}]});
        let set = |ready: i64, updated: i64, current: &str, partition: i64| {
            json!({"metadata": {"generation": 1}, "spec": {"replicas": 2, "updateStrategy": {"rollingUpdate": {"partition": partition}}},
                "status": {"observedGeneration": 1, "readyReplicas": ready, "updatedReplicas": updated, "currentRevision": current, "updateRevision": "b"}})
        };
        let daemons = |updated: i64, available: i64| {
            json!({"metadata": {"generation": 1}, "status": {"observedGeneration": 1, "desiredNumberScheduled": 2,
                "updatedNumberScheduled": updated, "numberAvailable": available}})
        };
        let missing = |text: &str| Progress::Missing(format!("rollout: {text}"));
        for (kind, object, expected) in [
            (
                "Deployment",
                deployment(3, status(3, 3, 3)),
                missing("its controller has not seen the change yet"),
            ),
            (
                "Deployment",
                deployment(2, status(1, 4, 3)),
                missing("1 of 3 pods updated"),
            ),
            (
                "Deployment",
                deployment(2, status(3, 4, 3)),
                missing("1 old pods are left"),
            ),
            (
                "Deployment",
                deployment(2, status(3, 3, 2)),
                missing("2 of 3 updated pods available"),
            ),
            ("Deployment", deployment(2, status(3, 3, 3)), Progress::Met),
            (
                "Deployment",
                deployment(2, stuck),
                Progress::Hopeless("the rollout is stuck (ProgressDeadlineExceeded: no)".into()),
            ),
            ("StatefulSet", set(1, 1, "a", 0), missing("1 of 2 pods ready")),
            ("StatefulSet", set(2, 1, "a", 0), missing("1 of 2 pods updated")),
            ("StatefulSet", set(2, 1, "a", 1), Progress::Met),
            ("StatefulSet", set(2, 2, "b", 0), Progress::Met),
            ("DaemonSet", daemons(1, 2), missing("1 of 2 pods updated")),
            ("DaemonSet", daemons(2, 1), missing("1 of 2 pods available")),
            ("DaemonSet", daemons(2, 2), Progress::Met),
            ("Job", json!({"status": {}}), missing("0 of 1 pods succeeded")),
            (
                "Job",
                json!({"status": {"conditions": [{"type": "Complete", "status": "True"}]}}),
                Progress::Met,
            ),
            (
                "Job",
                json!({"status": {"conditions": [{"type": "Failed", "status": "True", "reason": "Backoff"}]}}),
                Progress::Hopeless("the Job failed (Backoff)".into()),
            ),
            (
                "Service",
                json!({}),
                Progress::Hopeless("a Service has no rollout; wait for a condition or a field of it".into()),
            ),
        ] {
            assert_eq!(Goal::Rollout.progress(kind, Some(&object)), expected, "{kind} {object}");
        }
        assert_eq!(
            Goal::Rollout.progress("Deployment", None),
            Progress::Missing("it does not exist".into())
        );
    }

    #[test]
    fn conditions_fields_and_deletions_say_what_is_missing() {
        let pod = json!({"metadata": {}, "status": {"phase": "Pending", "conditions": [
            {"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]}});
        let said = |goal: &str, object: Option<&Value>| Goal::parse(goal).unwrap().progress("Pod", object);
        let missing = |text: &str| Progress::Missing(text.into());
        assert_eq!(
            said("condition=Ready", Some(&pod)),
            missing("condition Ready=True: it is False (ContainersNotReady)")
        );
        assert_eq!(said("condition=Ready=false", Some(&pod)), Progress::Met);
        assert_eq!(
            said("condition=Other", Some(&pod)),
            missing("condition Other=True: no such condition")
        );
        assert_eq!(
            said("jsonpath={.status.phase}=Running", Some(&pod)),
            missing("{.status.phase} = Running: it is Pending")
        );
        assert_eq!(said("jsonpath={.status.phase}=Pending", Some(&pod)), Progress::Met);
        assert_eq!(said("deleted", Some(&pod)), missing("it exists"));
        assert_eq!(said("deleted", None), Progress::Met);
    }
}
