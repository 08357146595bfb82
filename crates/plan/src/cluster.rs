//! What a TargetCluster's status says: whether its kubeconfig may be used, and what the latest sync saw.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use umbel_api::{
    TargetClusterStatus,
    condition::{Finding, Status, find, merge, whole_seconds},
    names::cluster_condition::{KUBECONFIG_ACCEPTED, REACHABLE},
    targetcluster::ClusterObservation,
};

/// A status in which only numbers changed is written at most this often.
pub const NUMBERS_EVERY: Duration = Duration::from_secs(5);
/// Whatever comes through a broker is bounded before it enters an object: entries of a map, …
const MOST_ENTRIES: usize = 16;
/// … and characters of a text.
const LONGEST_TEXT: usize = 512;

/// What the kubeconfig is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kubeconfig {
    /// It keeps to the rules.
    Accepted {
        /// The API server that it names.
        server: String,
    },
    /// It does not, or it is not there.
    Refused {
        /// One word.
        reason: &'static str,
        /// A sentence without secrets.
        why: String,
    },
    /// It could not be read now.
    Unknown {
        /// A sentence.
        why: String,
    },
}

/// The status that follows, given the one that stands and the latest report of a pool that may touch the cluster.
///
/// # Guarantees
/// Called with its own answer and the same facts, it answers the same. A failed sync keeps what an earlier one saw.
pub fn status(
    old: &TargetClusterStatus,
    kubeconfig: &Kubeconfig,
    report: Option<&ClusterObservation>,
    generation: Option<i64>,
    now: Timestamp,
) -> TargetClusterStatus {
    let accepted = match kubeconfig {
        Kubeconfig::Accepted { server } => Finding::new(
            KUBECONFIG_ACCEPTED,
            true,
            "Accepted",
            format!("the kubeconfig may be used; it names {}", cut(server)),
        ),
        Kubeconfig::Refused { reason, why } => Finding::new(KUBECONFIG_ACCEPTED, false, *reason, cut(why)),
        Kubeconfig::Unknown { why } => Finding::new(KUBECONFIG_ACCEPTED, Status::Unknown, "NotReadable", cut(why)),
    };
    let reachable = match report {
        None => match find(&old.conditions, REACHABLE) {
            // A broker that lost its reports does not make a cluster unknown.
            Some(_) => None,
            None => Some(Finding::new(
                REACHABLE,
                Status::Unknown,
                "NotSyncedYet",
                "no umbel.cluster.sync job has reported yet",
            )),
        },
        Some(ClusterObservation {
            reachable: true, error, ..
        }) => Some(match error {
            None => Finding::new(REACHABLE, true, "Answered", "the API server answers"),
            Some(error) => Finding::new(REACHABLE, true, "AnsweredWithError", cut(error)),
        }),
        Some(ClusterObservation { error, .. }) => Some(Finding::new(
            REACHABLE,
            false,
            "SyncFailed",
            cut(error.as_deref().unwrap_or("the sync failed without a reason")),
        )),
    };
    let findings: Vec<Finding> = [Some(accepted), reachable].into_iter().flatten().collect();
    let conditions = merge(&old.conditions, &findings, generation, now);
    let base = TargetClusterStatus {
        observed_generation: generation,
        conditions,
        ..old.clone()
    };
    match report {
        None => base,
        Some(report) => seen(base, report),
    }
}

fn seen(base: TargetClusterStatus, report: &ClusterObservation) -> TargetClusterStatus {
    let ClusterObservation {
        at,
        reachable,
        kubeconfig_accepted: _,
        error,
        version,
        api_latency_ms,
        nodes,
        capacity,
        allocatable,
        pods,
    } = report;
    let last_error = error.as_deref().map(cut);
    if !reachable || version.is_none() {
        return TargetClusterStatus { last_error, ..base };
    }
    TargetClusterStatus {
        version: version.as_deref().map(cut),
        api_latency_ms: *api_latency_ms,
        nodes: nodes.clone(),
        capacity: few(capacity),
        allocatable: few(allocatable),
        pods: few(pods),
        last_sync_time: at.as_ref().map(|at| Time(whole_seconds(at.0))).or(base.last_sync_time),
        last_error,
        observed_generation: base.observed_generation,
        credentials_expire_time: base.credentials_expire_time,
        conditions: base.conditions,
    }
}

/// Whether `new` is to be written now, when the last write was `since` ago; otherwise when, if ever.
pub fn worth(old: &TargetClusterStatus, new: &TargetClusterStatus, since: Option<Duration>) -> crate::queue::Worth {
    use crate::queue::Worth;
    if old == new {
        return Worth::Never;
    }
    let word = |status: &TargetClusterStatus, kind: &str| {
        find(&status.conditions, kind).map(|condition| (condition.status.clone(), condition.reason.clone()))
    };
    let said = [KUBECONFIG_ACCEPTED, REACHABLE]
        .iter()
        .all(|kind| word(old, kind) == word(new, kind))
        && old.observed_generation == new.observed_generation;
    match since.and_then(|since| NUMBERS_EVERY.checked_sub(since)) {
        Some(rest) if said && !rest.is_zero() => Worth::After(rest),
        Some(_) | None => Worth::Now,
    }
}

fn few<V: Clone>(map: &BTreeMap<String, V>) -> BTreeMap<String, V> {
    map.iter()
        .filter(|(key, _)| key.len() <= 63)
        .take(MOST_ENTRIES)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(LONGEST_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Worth;
    use umbel_api::{condition::holds, targetcluster::Nodes};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a valid second")
    }

    fn fine() -> Kubeconfig {
        Kubeconfig::Accepted {
            server: "https://eu:6443".into(),
        }
    }

    fn synced(second: i64, total: u64) -> ClusterObservation {
        ClusterObservation {
            at: Some(Time(at(second))),
            reachable: true,
            version: Some("v1.36.3".into()),
            api_latency_ms: Some(4),
            nodes: Some(Nodes { total, ready: total }),
            pods: BTreeMap::from([("Running".into(), 3)]),
            ..ClusterObservation::default()
        }
    }

    #[test]
    fn a_new_cluster_waits_for_its_first_sync() {
        let new = status(&TargetClusterStatus::default(), &fine(), None, Some(1), at(1));
        assert!(holds(&new.conditions, KUBECONFIG_ACCEPTED));
        assert_eq!(
            find(&new.conditions, REACHABLE).expect("a condition").reason,
            "NotSyncedYet"
        );
    }

    #[test]
    fn a_failed_sync_keeps_what_an_earlier_one_saw() {
        let first = status(
            &TargetClusterStatus::default(),
            &fine(),
            Some(&synced(5, 2)),
            Some(1),
            at(6),
        );
        assert_eq!(
            (first.version.as_deref(), first.nodes.clone()),
            (Some("v1.36.3"), Some(Nodes { total: 2, ready: 2 }))
        );
        let failed = ClusterObservation {
            at: Some(Time(at(15))),
            error: Some("no answer within 5 s".into()),
            ..ClusterObservation::default()
        };
        let then = status(&first, &fine(), Some(&failed), Some(1), at(16));
        assert_eq!(
            (&then.version, &then.nodes, &then.last_sync_time),
            (&first.version, &first.nodes, &first.last_sync_time)
        );
        assert_eq!(then.last_error.as_deref(), Some("no answer within 5 s"));
        assert!(!holds(&then.conditions, REACHABLE));
        assert_eq!(worth(&first, &then, Some(Duration::ZERO)), Worth::Now);

        let again = status(&then, &fine(), Some(&synced(25, 2)), Some(1), at(26));
        assert_eq!(
            (again.last_error.as_deref(), holds(&again.conditions, REACHABLE)),
            (None, true)
        );
    }

    #[test]
    fn the_same_report_says_nothing_new_and_numbers_wait() {
        let first = status(
            &TargetClusterStatus::default(),
            &fine(),
            Some(&synced(5, 2)),
            Some(1),
            at(6),
        );
        assert_eq!(status(&first, &fine(), Some(&synced(5, 2)), Some(1), at(60)), first);
        assert_eq!(status(&first, &fine(), None, Some(1), at(60)), first);
        let later = status(&first, &fine(), Some(&synced(15, 2)), Some(1), at(16));
        assert_eq!(
            worth(&first, &later, Some(Duration::from_secs(2))),
            Worth::After(Duration::from_secs(3))
        );
        assert_eq!(worth(&first, &later, None), Worth::Now);
    }

    #[test]
    fn what_comes_through_a_broker_is_bounded() {
        let mut flood = synced(5, 1);
        flood.pods = (0..1000).map(|n| (format!("Phase{n}"), n)).collect();
        flood.version = Some("v".repeat(100_000));
        flood.error = Some("e\n\u{1b}[31m".repeat(10_000));
        let status = status(&TargetClusterStatus::default(), &fine(), Some(&flood), Some(1), at(6));
        assert!(serde_json::to_string(&status).expect("plain data").len() < 8 * 1024);
        assert!(!status.last_error.expect("an error").contains('\n'));
    }
}
