//! What a TaskQueue's status says: who owns the queue, and what the latest sample showed.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use umbel_api::{
    TaskQueueStatus,
    condition::{Finding, Status, find, merge, whole_seconds},
    names::queue_condition::{BROKER_DATA_LOST, BROKER_REACHABLE, EVICTION_RISK, READY},
    taskqueue::{BrokerSeen, Depth},
};

/// A depth is written into status at most this often; metrics are the live source.
pub const DEPTH_EVERY: Duration = Duration::from_secs(15);

/// For so long a loss of data is shown, unless there is another one.
pub const LOSS_SHOWN: Duration = Duration::from_secs(3600);

/// What is known of a queue's broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerFacts {
    /// Host, port, version and what its settings promise.
    pub seen: BrokerSeen,
    /// Whether it throws keys away.
    pub eviction: Eviction,
}

/// Whether a broker throws keys away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Eviction {
    /// Nobody has looked.
    #[default]
    Unseen,
    /// It does not.
    Never,
    /// It does, in these words.
    Risk(String),
}

/// A TaskQueue's claim to a queue on a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What tells one data set of one server from all others, key prefix included.
    pub broker: String,
    /// Name of the queue there.
    pub queue: String,
    /// When the object was created.
    pub created: Timestamp,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Claim {
    fn is_same_queue(&self, other: &Self) -> bool {
        self.broker == other.broker && self.queue == other.queue
    }

    fn rank(&self) -> (Timestamp, &str, &str) {
        (self.created, &self.namespace, &self.name)
    }
}

/// The claim that goes before `mine`: the oldest one; in the same second that with the smaller namespace and name.
pub fn owner_before<'a>(mine: &Claim, all: impl IntoIterator<Item = &'a Claim>) -> Option<&'a Claim> {
    all.into_iter()
        .filter(|claim| claim.is_same_queue(mine) && claim.rank() < mine.rank())
        .min_by_key(|claim| claim.rank())
}

/// What is known of a queue.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// Nobody asked the broker yet.
    Nothing,
    /// The broker can't be asked.
    Fault {
        /// One word.
        reason: String,
        /// A sentence.
        why: String,
    },
    /// The broker answered.
    Answer {
        /// When, by its clock.
        at: Timestamp,
        /// What it said of this queue, or which key is not what it must be.
        depth: Result<Depth, String>,
        /// What it is.
        broker: BrokerFacts,
    },
}

/// The status that follows, given the one that stands.
///
/// # Guarantees
/// Called with its own answer and the same facts, it answers the same. What is unknown keeps its last value.
pub fn status(
    old: &TaskQueueStatus,
    seen: &Seen,
    owner: Option<&Claim>,
    namespace: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> TaskQueueStatus {
    let reachable = match seen {
        Seen::Nothing => Finding::new(
            BROKER_REACHABLE,
            Status::Unknown,
            "NotAskedYet",
            "the broker was not asked yet",
        ),
        Seen::Fault { reason, why } => Finding::new(BROKER_REACHABLE, false, reason, why),
        Seen::Answer { .. } => Finding::new(BROKER_REACHABLE, true, "Answered", "the broker answers"),
    };
    let ready = match (owner, seen) {
        (Some(owner), _) => {
            // What goes on in other namespaces is nobody's business here.
            let who = if owner.namespace == namespace {
                format!("TaskQueue {}", owner.name)
            } else {
                "a TaskQueue of another namespace".to_owned()
            };
            Finding::new(
                READY,
                false,
                "QueueOwnedElsewhere",
                format!("{who} owns the queue {:?} on this broker", owner.queue),
            )
        }
        (None, Seen::Nothing) => Finding::new(READY, Status::Unknown, "NotAskedYet", "the broker was not asked yet"),
        (None, Seen::Fault { reason, why }) => Finding::new(READY, false, reason, why),
        (None, Seen::Answer { depth: Err(key), .. }) => Finding::new(READY, false, "WrongKeyType", key),
        (None, Seen::Answer { depth: Ok(_), .. }) => Finding::new(READY, true, "Serving", "the queue can be consumed"),
    };
    let (depth, sampled) = match (owner, seen) {
        // The numbers belong to the owner.
        (Some(_), _) => (None, None),
        (
            None,
            Seen::Answer {
                at, depth: Ok(depth), ..
            },
        ) if old.depth.as_ref() == Some(depth) => {
            // The same numbers at another time are no change.
            (
                Some(depth.clone()),
                old.last_sample_time.clone().or(Some(Time(whole_seconds(*at)))),
            )
        }
        (
            None,
            Seen::Answer {
                at, depth: Ok(depth), ..
            },
        ) => (Some(depth.clone()), Some(Time(whole_seconds(*at)))),
        (None, _) => (old.depth.clone(), old.last_sample_time.clone()),
    };
    let mut findings = vec![ready, reachable];
    let mut broker = old.broker.clone();
    if let Seen::Answer { broker: facts, .. } = seen {
        match &facts.eviction {
            Eviction::Unseen => {}
            Eviction::Never => findings.push(Finding::new(
                EVICTION_RISK,
                false,
                "NoEviction",
                "the broker throws nothing away",
            )),
            Eviction::Risk(risk) => findings.push(Finding::new(EVICTION_RISK, true, "EvictionPolicy", risk)),
        }
        findings.push(data_lost(old, &facts.seen, now));
        broker = Some(facts.seen.clone());
    }
    TaskQueueStatus {
        observed_generation: generation,
        depth,
        last_sample_time: sampled,
        broker,
        conditions: merge(&old.conditions, &findings, generation, now),
    }
}

/// Whether the broker has other data than when it was seen last, at the same address; shown for an hour.
fn data_lost(old: &TaskQueueStatus, seen: &BrokerSeen, now: Timestamp) -> Finding {
    let before = old.broker.as_ref().filter(|before| before.server == seen.server);
    if before.is_some_and(|before| !before.data_set.is_empty() && before.data_set != seen.data_set) {
        let message = if seen.data_set.is_empty() {
            "the broker has come back empty: what was queued, running or delayed there is gone"
        } else {
            "the broker has come back with other data: what was queued, running or delayed there is gone"
        };
        return Finding::new(BROKER_DATA_LOST, true, "DataSetReplaced", message);
    }
    match find(&old.conditions, BROKER_DATA_LOST) {
        Some(lost)
            if lost.status == "True" && now.duration_since(lost.last_transition_time.0).unsigned_abs() < LOSS_SHOWN =>
        {
            Finding::new(BROKER_DATA_LOST, true, &*lost.reason, &*lost.message)
        }
        _ => Finding::new(
            BROKER_DATA_LOST,
            false,
            "DataSetKept",
            "the broker has the data that it had",
        ),
    }
}

/// When a status is worth writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// It says nothing new.
    Never,
    /// A condition or the generation changed.
    Now,
    /// Only numbers changed, and they were written a moment ago.
    After(Duration),
}

/// Whether `new` is worth writing, when the last write was `since` ago (`None`: not by this leader).
pub fn worth(old: &TaskQueueStatus, new: &TaskQueueStatus, since: Option<Duration>) -> Worth {
    if old == new {
        return Worth::Never;
    }
    let same_findings = |kind: &str| match (find(&old.conditions, kind), find(&new.conditions, kind)) {
        (Some(old), Some(new)) => old.status == new.status && old.reason == new.reason,
        (old, new) => old.is_none() && new.is_none(),
    };
    let kinds = [READY, BROKER_REACHABLE, EVICTION_RISK, BROKER_DATA_LOST];
    let said = kinds.into_iter().all(same_findings)
        && old.broker == new.broker
        && old.observed_generation == new.observed_generation;
    match since.and_then(|since| DEPTH_EVERY.checked_sub(since)) {
        Some(rest) if said && !rest.is_zero() => Worth::After(rest),
        Some(_) | None => Worth::Now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a valid second")
    }

    fn claim(broker: &str, queue: &str, created: i64, namespace: &str, name: &str) -> Claim {
        Claim {
            broker: broker.into(),
            queue: queue.into(),
            created: at(created),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    fn depth(waiting: u64) -> Seen {
        Seen::Answer {
            at: at(100),
            depth: Ok(Depth {
                waiting,
                ..Depth::default()
            }),
            broker: BrokerFacts::default(),
        }
    }

    #[test]
    fn oldest_claim_owns_and_names_break_ties() {
        let all = [
            claim("a", "q", 5, "z", "late"),
            claim("a", "q", 3, "b", "two"),
            claim("a", "q", 3, "b", "one"),
            claim("a", "other", 1, "a", "other-queue"),
            claim("b", "q", 1, "a", "other-broker"),
        ];
        let owner = |index: usize| owner_before(&all[index], &all).map(|claim| claim.name.as_str());
        assert_eq!([0, 1, 2, 3, 4].map(owner), [Some("one"), Some("one"), None, None, None]);
    }

    #[test]
    fn outage_keeps_the_last_depth_and_says_so() {
        let fine = status(&TaskQueueStatus::default(), &depth(7), None, "n", Some(1), at(100));
        assert_eq!(fine.depth.as_ref().map(|depth| depth.waiting), Some(7));
        let fault = Seen::Fault {
            reason: "BrokerUnreachable".into(),
            why: "redis:6379/0: refused".into(),
        };
        let away = status(&fine, &fault, None, "n", Some(1), at(110));
        assert_eq!(
            (&away.depth, &away.last_sample_time),
            (&fine.depth, &fine.last_sample_time)
        );
        for kind in [READY, BROKER_REACHABLE] {
            assert_eq!(
                find(&away.conditions, kind).expect("a condition").reason,
                "BrokerUnreachable"
            );
        }
        assert_eq!(worth(&fine, &away, Some(Duration::ZERO)), Worth::Now);
    }

    /// A queue on this server with this data.
    fn on(server: &str, data_set: &str, eviction: Eviction) -> Seen {
        let Seen::Answer { at, depth, .. } = depth(1) else {
            unreachable!()
        };
        let seen = BrokerSeen {
            server: server.into(),
            data_set: data_set.into(),
            durability: Some("Basic".into()),
            ..BrokerSeen::default()
        };
        let broker = BrokerFacts { seen, eviction };
        Seen::Answer { at, depth, broker }
    }

    #[test]
    fn lost_data_is_told_for_an_hour_and_a_move_to_another_server_is_no_loss() {
        let holds =
            |status: &TaskQueueStatus| find(&status.conditions, BROKER_DATA_LOST).map(|one| one.status == "True");
        let step = |old: &TaskQueueStatus, server, data_set, second| {
            status(
                old,
                &on(server, data_set, Eviction::Never),
                None,
                "n",
                Some(1),
                at(second),
            )
        };
        let first = step(&TaskQueueStatus::default(), "a", "", 100);
        let begun = step(&first, "a", "one", 110);
        assert_eq!((holds(&first), holds(&begun)), (Some(false), Some(false)));
        assert_eq!(
            begun.broker.as_ref().and_then(|broker| broker.durability.as_deref()),
            Some("Basic")
        );
        let empty = step(&begun, "a", "", 120);
        let other = step(&empty, "a", "two", 130);
        let later = step(&other, "a", "two", 120 + 3599);
        let over = step(&later, "a", "two", 120 + 3601);
        assert_eq!(
            [&empty, &other, &later, &over].map(holds),
            [Some(true), Some(true), Some(true), Some(false)]
        );
        assert_eq!(worth(&begun, &empty, Some(Duration::ZERO)), Worth::Now);
        assert_eq!(holds(&step(&begun, "b", "three", 120)), Some(false), "another server");
    }

    #[test]
    fn an_evicting_broker_is_told() {
        let of = |eviction| {
            let said = status(
                &TaskQueueStatus::default(),
                &on("a", "", eviction),
                None,
                "n",
                None,
                at(1),
            );
            find(&said.conditions, EVICTION_RISK).map(|one| (one.status.clone(), one.message.clone()))
        };
        assert_eq!(of(Eviction::Unseen), None);
        assert_eq!(of(Eviction::Never).map(|said| said.0), Some("False".into()));
        assert_eq!(
            of(Eviction::Risk("allkeys-lru".into())),
            Some(("True".into(), "allkeys-lru".into()))
        );
    }

    #[test]
    fn same_facts_say_nothing_new() {
        let first = status(&TaskQueueStatus::default(), &depth(7), None, "n", Some(1), at(100));
        let later = Seen::Answer {
            at: at(160),
            depth: Ok(Depth {
                waiting: 7,
                ..Depth::default()
            }),
            broker: BrokerFacts::default(),
        };
        let again = status(&first, &later, None, "n", Some(1), at(160));
        assert_eq!(worth(&first, &again, None), Worth::Never);
    }

    #[test]
    fn numbers_are_written_seldom() {
        let first = status(&TaskQueueStatus::default(), &depth(7), None, "n", Some(1), at(100));
        let more = status(&first, &depth(8), None, "n", Some(1), at(101));
        let table = [
            (None, Worth::Now),
            (Some(Duration::from_secs(1)), Worth::After(Duration::from_secs(14))),
            (Some(Duration::from_secs(15)), Worth::Now),
        ];
        for (since, expected) in table {
            assert_eq!(worth(&first, &more, since), expected, "{since:?}");
        }
    }

    #[test]
    fn a_foreign_owner_is_not_named_across_namespaces() {
        let owner = claim("a", "q", 1, "secret-team", "secret-name");
        let said = |namespace: &str| {
            let status = status(
                &TaskQueueStatus::default(),
                &depth(1),
                Some(&owner),
                namespace,
                None,
                at(1),
            );
            assert_eq!(status.depth, None);
            find(&status.conditions, READY).expect("a condition").message.clone()
        };
        assert!(!said("mine").contains("secret"));
        assert!(said("secret-team").contains("secret-name"));
    }
}
