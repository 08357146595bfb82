//! What a TargetCluster's status says: whether its kubeconfig may be used, and what the latest sync saw.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use umbel_api::{
    TargetClusterStatus,
    condition::{Finding, Status, find, merge, whole_seconds},
    names::cluster_condition::{AUTHORIZED, HEALTHY, KUBECONFIG_ACCEPTED, REACHABLE},
    targetcluster::{Circuit, ClusterObservation},
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

/// The uid that a cluster's kube-system namespace must have: what an administrator accepts, else what stands, else what the
/// first report says.
pub fn pin(accepted: Option<&str>, stored: Option<&str>, report: Option<&ClusterObservation>) -> Option<String> {
    let reported = report.and_then(|report| report.uid.as_deref());
    [accepted, stored, reported]
        .into_iter()
        .flatten()
        .find(|uid| is_uid(uid))
        .map(str::to_owned)
}

/// Comes through a broker, or from whoever may annotate.
fn is_uid(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && !text.starts_with('-')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// The status that follows, given the one that stands, the uid that an administrator accepts, and the latest report of a
/// pool that may touch the cluster.
///
/// # Guarantees
/// Called with its own answer and the same facts, it answers the same. A failed sync keeps what an earlier one saw.
pub fn status(
    old: &TargetClusterStatus,
    kubeconfig: &Kubeconfig,
    accept: Option<&str>,
    report: Option<&ClusterObservation>,
    generation: Option<i64>,
    now: Timestamp,
) -> TargetClusterStatus {
    let cluster_uid = pin(accept, old.cluster_uid.as_deref(), report);
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
        Some(ClusterObservation { error, reason, .. }) => Some(Finding::new(
            REACHABLE,
            false,
            reason
                .as_deref()
                .filter(|reason| is_word(reason))
                .unwrap_or("SyncFailed"),
            cut(error.as_deref().unwrap_or("the sync failed without a reason")),
        )),
    };
    let authorized = report.and_then(|report| authorized(report, cluster_uid.is_some()));
    let findings = [Some(accepted), reachable, authorized, report.map(healthy)];
    let findings: Vec<Finding> = findings.into_iter().flatten().collect();
    let conditions = merge(&old.conditions, &findings, generation, now);
    let base = TargetClusterStatus {
        observed_generation: generation,
        conditions,
        cluster_uid,
        ..old.clone()
    };
    match report {
        None => base,
        Some(report) => seen(base, report),
    }
}

/// A reason of a condition, as the API server takes it.
fn is_word(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// What the credential may read. Nothing is said where nothing was tried.
fn authorized(report: &ClusterObservation, is_pinned: bool) -> Option<Finding> {
    let refused = report.refused.as_ref()?;
    if !refused.is_empty() {
        let message = format!("refused: {}", cut(&refused.join("; ")));
        return Some(Finding::new(AUTHORIZED, false, "Refused", cut(&message)));
    }
    Some(match &report.uid_unknown {
        None => Finding::new(AUTHORIZED, true, "Allowed", "the credential may read what a sync needs"),
        Some(why) => {
            let writes = if is_pinned {
                ", and jobs that write are refused"
            } else {
                ""
            };
            let message = format!(
                "the credential may read nodes and pods, but not who the cluster is (get the namespace kube-system): \
                 its identity is not verified{writes}: {why}"
            );
            Finding::new(AUTHORIZED, true, "IdentityNotVerified", cut(&message))
        }
    })
}

fn healthy(report: &ClusterObservation) -> Finding {
    let words = report.health.as_deref();
    match report.healthy {
        Some(true) => Finding::new(HEALTHY, true, "Healthy", cut(words.unwrap_or("all is well"))),
        Some(false) => Finding::new(
            HEALTHY,
            false,
            "NotHealthy",
            cut(words.unwrap_or("something is not ready")),
        ),
        None if report.reachable => Finding::new(
            HEALTHY,
            Status::Unknown,
            "NotAllowedToAsk",
            "the credential may ask neither for /readyz nor for nodes",
        ),
        None => Finding::new(HEALTHY, Status::Unknown, "NotReachable", "the latest sync failed"),
    }
}

fn seen(base: TargetClusterStatus, report: &ClusterObservation) -> TargetClusterStatus {
    let ClusterObservation {
        at,
        reachable,
        kubeconfig_accepted: _,
        error,
        reason: _,
        version,
        api_latency_ms,
        nodes,
        capacity,
        allocatable,
        usage,
        pods,
        uid: _,
        uid_unknown: _,
        refused: _,
        healthy: _,
        health: _,
        circuit,
    } = report;
    let last_error = error.as_deref().map(cut);
    let second = |time: &Time| Time(whole_seconds(time.0));
    let circuit = circuit.as_ref().map(|Circuit { state, since, until }| Circuit {
        state: *state,
        since: since.as_ref().map(second),
        until: until.as_ref().map(second),
    });
    let base = TargetClusterStatus {
        circuit: circuit.or(base.circuit),
        ..base
    };
    if !reachable || version.is_none() {
        return TargetClusterStatus { last_error, ..base };
    }
    TargetClusterStatus {
        version: version.as_deref().map(cut),
        api_latency_ms: *api_latency_ms,
        nodes: nodes.clone(),
        capacity: few(capacity),
        allocatable: few(allocatable),
        usage: few(usage),
        pods: few(pods),
        last_sync_time: at.as_ref().map(|at| Time(whole_seconds(at.0))).or(base.last_sync_time),
        last_error,
        observed_generation: base.observed_generation,
        credentials_expire_time: base.credentials_expire_time,
        conditions: base.conditions,
        cluster_uid: base.cluster_uid,
        circuit: base.circuit,
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
    let state = |status: &TargetClusterStatus| status.circuit.as_ref().map(|circuit| circuit.state);
    let said = [KUBECONFIG_ACCEPTED, REACHABLE, AUTHORIZED, HEALTHY]
        .iter()
        .all(|kind| word(old, kind) == word(new, kind))
        && state(old) == state(new)
        && old.cluster_uid == new.cluster_uid
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
        let new = status(&TargetClusterStatus::default(), &fine(), None, None, Some(1), at(1));
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
            None,
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
        let then = status(&first, &fine(), None, Some(&failed), Some(1), at(16));
        assert_eq!(
            (&then.version, &then.nodes, &then.last_sync_time),
            (&first.version, &first.nodes, &first.last_sync_time)
        );
        assert_eq!(then.last_error.as_deref(), Some("no answer within 5 s"));
        assert!(!holds(&then.conditions, REACHABLE));
        assert_eq!(worth(&first, &then, Some(Duration::ZERO)), Worth::Now);

        let again = status(&then, &fine(), None, Some(&synced(25, 2)), Some(1), at(26));
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
            None,
            Some(&synced(5, 2)),
            Some(1),
            at(6),
        );
        assert_eq!(
            status(&first, &fine(), None, Some(&synced(5, 2)), Some(1), at(60)),
            first
        );
        assert_eq!(status(&first, &fine(), None, None, Some(1), at(60)), first);
        let later = status(&first, &fine(), None, Some(&synced(15, 2)), Some(1), at(16));
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
        let status = status(
            &TargetClusterStatus::default(),
            &fine(),
            None,
            Some(&flood),
            Some(1),
            at(6),
        );
        assert!(serde_json::to_string(&status).expect("plain data").len() < 8 * 1024);
        assert!(!status.last_error.expect("an error").contains('\n'));
    }

    fn identified(uid: &str) -> ClusterObservation {
        ClusterObservation {
            uid: Some(uid.into()),
            refused: Some(Vec::new()),
            ..synced(5, 1)
        }
    }

    #[test]
    fn d05_the_first_report_pins_and_only_an_administrator_changes_it() {
        let nothing = TargetClusterStatus::default();
        let first = status(&nothing, &fine(), None, Some(&identified("a-1")), Some(1), at(6));
        assert_eq!(first.cluster_uid.as_deref(), Some("a-1"));
        let other = status(&first, &fine(), None, Some(&identified("b-2")), Some(1), at(7));
        assert_eq!(other.cluster_uid.as_deref(), Some("a-1"));
        let accepted = status(&first, &fine(), Some("b-2"), Some(&identified("a-1")), Some(1), at(8));
        assert_eq!(accepted.cluster_uid.as_deref(), Some("b-2"));
        assert_eq!(worth(&first, &accepted, Some(Duration::ZERO)), Worth::Now);
        for bad in ["", "!1", "a b", &"a".repeat(65)] {
            assert_eq!(pin(Some(bad), None, Some(&identified(bad))), None, "{bad:?}");
        }
    }

    #[test]
    fn what_a_credential_may_not_read_and_what_is_not_well_is_said() {
        let told = |report: &ClusterObservation, kind: &str| {
            let nothing = TargetClusterStatus::default();
            let status = status(&nothing, &fine(), None, Some(report), Some(1), at(6));
            let found = find(&status.conditions, kind).expect("a condition").clone();
            (found.status, found.reason, found.message)
        };
        let (status, reason, _) = told(&identified("a"), AUTHORIZED);
        assert_eq!((status.as_str(), reason.as_str()), ("True", "Allowed"));
        let refused = ClusterObservation {
            refused: Some(vec!["list pods: pods is forbidden".into()]),
            ..identified("a")
        };
        let (status, _, message) = told(&refused, AUTHORIZED);
        assert_eq!((status.as_str(), message.contains("list pods")), ("False", true));
        let blind = ClusterObservation {
            uid: None,
            uid_unknown: Some("forbidden".into()),
            ..identified("a")
        };
        let (status, reason, message) = told(&blind, AUTHORIZED);
        assert_eq!((status.as_str(), reason.as_str()), ("True", "IdentityNotVerified"));
        assert!(
            message.contains("kube-system") && !message.contains("refused"),
            "{message}"
        );
        let ill = ClusterObservation {
            healthy: Some(false),
            health: Some("1 of 2 nodes not ready: n2".into()),
            ..identified("a")
        };
        let (status, _, message) = told(&ill, HEALTHY);
        assert_eq!(
            (status.as_str(), message.as_str()),
            ("False", "1 of 2 nodes not ready: n2")
        );
        let mistaken = ClusterObservation {
            reachable: false,
            reason: Some("IdentityChanged".into()),
            error: Some("it is another cluster".into()),
            ..ClusterObservation::default()
        };
        let (status, reason, _) = told(&mistaken, REACHABLE);
        assert_eq!((status.as_str(), reason.as_str()), ("False", "IdentityChanged"));
        assert_eq!(told(&mistaken, HEALTHY).0, "Unknown");
    }
}
