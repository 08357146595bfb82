//! Which clusters a run is for, and the ids of its tasks.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use umbel_api::periodictask::{Targets, Unreachable};
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
    /// Whether the latest sync did not reach it.
    pub is_unreachable: bool,
}

/// Which clusters a run is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice<'a> {
    /// In the order of their names.
    pub chosen: Vec<&'a Candidate>,
    /// Chosen, but not reachable, and given up for that: they are among the chosen, too.
    pub given_up: BTreeSet<String>,
    /// Named, but there is no such TargetCluster.
    pub unknown: Vec<String>,
    /// Would be chosen, but suspended.
    pub suspended: Vec<String>,
    /// Would be chosen, but left out as it is not reachable.
    pub unreachable: Vec<String>,
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

    /// Id of the task of a cluster (empty without targets) and a step (none without steps).
    pub fn id(&self, uid: &str, cluster: &str, step: Option<&str>) -> Uuid {
        let at = self.at().as_millisecond();
        // A cluster's name has no slash.
        let step = step.map(|step| format!("/{step}")).unwrap_or_default();
        match self {
            Self::Slot(_) => derived(uid, &format!("{at}/{cluster}{step}")),
            Self::Request(_) => derived(uid, &format!("request/{at}/{cluster}{step}")),
        }
    }
}

/// The clusters that targets choose now.
pub fn choose<'a>(targets: &Targets, clusters: &'a [Candidate]) -> Choice<'a> {
    let Targets {
        clusters: named,
        selector,
        unreachable,
        rollout: _,
    } = targets;
    let known: BTreeMap<&str, &Candidate> = clusters
        .iter()
        .map(|cluster| (cluster.name.as_str(), cluster))
        .collect();
    let unknown = named.iter().filter(|name| !known.contains_key(name.as_str()));
    let mut choice = Choice {
        unknown: unknown.cloned().collect(),
        ..Choice::default()
    };
    for (name, cluster) in known {
        let is_chosen = named.iter().any(|named| named == name)
            || selector
                .as_ref()
                .is_some_and(|selector| selector.matches(&cluster.labels));
        match (is_chosen, cluster.is_suspended, unreachable) {
            (false, _, _) => {}
            (true, true, _) => choice.suspended.push(name.to_owned()),
            (true, false, Unreachable::Skip) if cluster.is_unreachable => choice.unreachable.push(name.to_owned()),
            (true, false, unreachable) => {
                if cluster.is_unreachable && *unreachable == Unreachable::Fail {
                    choice.given_up.insert(name.to_owned());
                }
                choice.chosen.push(cluster);
            }
        }
    }
    choice
}

fn derived(uid: &str, name: &str) -> Uuid {
    // An API server's uid is a UUID; any other text serves as well.
    let space = Uuid::parse_str(uid).unwrap_or_else(|_| Uuid::new_v5(&Uuid::NAMESPACE_OID, uid.as_bytes()));
    Uuid::new_v5(&space, name.as_bytes())
}
