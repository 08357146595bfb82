//! From a slot to its messages: which clusters, under which ids.

use std::collections::BTreeMap;

use jiff::Timestamp;
use umbel_api::periodictask::Targets;
use uuid::Uuid;

/// A TargetCluster as the fan-out sees it: no client, no credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it is suspended.
    pub is_suspended: bool,
}

/// One message of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatch {
    /// The task's id: the same for the same slot and cluster, whoever computes it.
    pub id: Uuid,
    /// The cluster it is for, where the schedule has targets.
    pub cluster: Option<String>,
}

/// The messages of a slot, and which of the named clusters got none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fanout {
    /// In the order of cluster names.
    pub dispatches: Vec<Dispatch>,
    /// Named, but there is no such TargetCluster.
    pub unknown: Vec<String>,
    /// Chosen, but suspended.
    pub suspended: Vec<String>,
}

/// Why a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// A slot of the schedule.
    Slot(Timestamp),
    /// Somebody asked for it, at that time.
    Request(Timestamp),
}

impl Occasion {
    /// The slot, or the time for which it was asked.
    pub const fn at(&self) -> Timestamp {
        match self {
            Self::Slot(at) | Self::Request(at) => *at,
        }
    }

    /// Id of the run that begins.
    pub fn run_id(&self, uid: &str) -> Uuid {
        let kind = match self {
            Self::Slot(_) => "run",
            Self::Request(_) => "request-run",
        };
        derived(uid, &format!("{kind}/{}", self.at().as_millisecond()))
    }

    fn id(&self, uid: &str, cluster: &str) -> Uuid {
        let at = self.at().as_millisecond();
        match self {
            Self::Slot(_) => derived(uid, &format!("{at}/{cluster}")),
            Self::Request(_) => derived(uid, &format!("request/{at}/{cluster}")),
        }
    }
}

/// The messages of a run of the PeriodicTask with this uid.
pub fn dispatches(uid: &str, occasion: Occasion, targets: Option<&Targets>, clusters: &[Candidate]) -> Fanout {
    let Some(Targets {
        clusters: named,
        selector,
    }) = targets
    else {
        return Fanout {
            dispatches: vec![Dispatch {
                id: occasion.id(uid, ""),
                cluster: None,
            }],
            ..Fanout::default()
        };
    };
    let known: BTreeMap<&str, &Candidate> = clusters
        .iter()
        .map(|cluster| (cluster.name.as_str(), cluster))
        .collect();
    let mut fanout = Fanout {
        unknown: named
            .iter()
            .filter(|name| !known.contains_key(name.as_str()))
            .cloned()
            .collect(),
        ..Fanout::default()
    };
    for (name, cluster) in known {
        let is_chosen = named.iter().any(|named| named == name)
            || selector
                .as_ref()
                .is_some_and(|selector| selector.matches(&cluster.labels));
        match (is_chosen, cluster.is_suspended) {
            (false, _) => {}
            (true, true) => fanout.suspended.push(name.to_owned()),
            (true, false) => {
                fanout.dispatches.push(Dispatch {
                    id: occasion.id(uid, name),
                    cluster: Some(name.to_owned()),
                });
            }
        }
    }
    fanout
}

fn derived(uid: &str, name: &str) -> Uuid {
    // An API server's uid is a UUID; any other text serves as well.
    let space = Uuid::parse_str(uid).unwrap_or_else(|_| Uuid::new_v5(&Uuid::NAMESPACE_OID, uid.as_bytes()));
    Uuid::new_v5(&space, name.as_bytes())
}
