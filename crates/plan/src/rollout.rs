//! How a pool's size is shared between the revisions of its template.
//!
//! Each revision has a Deployment of its own. As pods of the present one become ready, as many pods of the older ones are
//! taken away, which is a scale-down like any other: `drain` brings it about, for each Deployment by itself. What is decided
//! here is only how many pods each of them should have, and for how long a pod that takes no more work may go on with its tasks.
//!
//! A revision is *proven* once a pod of it was admitted and Ready. Until the present one is, it gets no more than the surge,
//! and the latest proven one stays as large as the pool should be: a template that never becomes ready takes nothing down.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use umbel_api::workerpool::{Amount, Rollout};

use crate::drain::{Gate, Rules, World};
use umbel_api::workerpool::Victims;

/// One revision's pods, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fleet {
    /// The Deployment's size.
    pub size: u32,
    /// Pods that live.
    pub live: u32,
    /// Admitted pods that take work, Ready or not.
    pub open: u32,
    /// Those that are Ready as well.
    pub serving: u32,
    /// Admitted and Ready pods whose worker lives: serving ones, and those that would be once their gate is opened.
    pub able: u32,
    /// Admitted and Ready pods.
    pub ready: u32,
    /// Pods that hold a task.
    pub busy: u32,
    /// Pods that hold a task and take no more.
    pub leaving: u32,
    /// Pods whose gate is closed.
    pub closed: u32,
}

impl Fleet {
    /// Counts what a world shows.
    pub fn of(world: &World) -> Self {
        let mut fleet = Self {
            size: world.deployment.size,
            ..Self::default()
        };
        for pod in world.live() {
            fleet.live += 1;
            fleet.ready += u32::from(pod.is_admitted() && pod.ready);
            let Some(worker) = &pod.worker else { continue };
            let (opened, holds) = (worker.gate == Gate::Open, worker.held > 0);
            fleet.busy += u32::from(holds);
            fleet.closed += u32::from(worker.gate == Gate::Closed);
            fleet.leaving += u32::from(holds && worker.gate == Gate::Closed);
            if pod.is_admitted() && worker.alive {
                fleet.open += u32::from(opened);
                fleet.serving += u32::from(opened && pod.ready);
                fleet.able += u32::from(pod.ready);
            }
        }
        fleet
    }
}

/// What is remembered of one revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// Whether a pod of it was ever admitted and Ready.
    pub proven: bool,
    /// When another template replaced it.
    pub replaced_at: Option<Timestamp>,
}

/// What is remembered of a pool's revisions, by Deployment. Status carries it from one leader to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory(BTreeMap<String, Note>);

impl Memory {
    /// As an earlier leader left it.
    pub fn recall(notes: impl IntoIterator<Item = (String, Note)>) -> Self {
        Self(notes.into_iter().collect())
    }

    /// What is remembered of a Deployment.
    pub fn of(&self, deployment: &str) -> Note {
        self.0.get(deployment).copied().unwrap_or_default()
    }

    /// Takes note of what is seen: the present revision first, if it has a Deployment, then the older ones.
    pub fn see<'a>(
        &mut self,
        present: Option<(&'a str, &Fleet)>,
        older: impl Iterator<Item = (&'a str, &'a Fleet)>,
        now: Timestamp,
    ) {
        let mut notes = BTreeMap::new();
        if let Some((name, fleet)) = present {
            let note = Note {
                proven: self.of(name).proven || fleet.serving > 0,
                replaced_at: None,
            };
            notes.insert(name.to_owned(), note);
        }
        for (name, fleet) in older {
            let known = self.of(name);
            // One without pods has nothing to fall back to: what it showed once does not count any more.
            let asleep = known.replaced_at.is_none() && (fleet.size, fleet.live) == (0, 0);
            let note = Note {
                proven: !asleep && (known.proven || fleet.serving > 0),
                replaced_at: Some(known.replaced_at.unwrap_or(now)),
            };
            notes.insert(name.to_owned(), note);
        }
        self.0 = notes;
    }
}

/// What a pool's owner says about rollouts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    surge: Amount,
    timeout: Duration,
    keep: usize,
    /// No task should run for longer.
    longest: Duration,
}

impl Settings {
    /// As the object says it; `time_limit` is that of the pool's queues.
    pub fn new(rollout: &Rollout, time_limit: Duration) -> Self {
        let Rollout {
            kind: umbel_api::workerpool::RolloutKind::Drain,
            max_surge,
            drain_timeout,
            keep_draining,
        } = rollout;
        Self {
            surge: max_surge.clone(),
            timeout: drain_timeout.get(),
            keep: *keep_draining as usize,
            longest: time_limit,
        }
    }

    /// Pods beyond the size, at least one: without any nothing could begin.
    fn surge(&self, desired: u32) -> u32 {
        self.surge.of(desired).max(1)
    }
}

/// What one older revision should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its size.
    pub desired: u32,
    /// For how long a pod of it that is not needed may work, from when its gate was closed, before it is stopped.
    pub patience: Duration,
    /// Whether its Deployment goes once it is empty.
    pub retires: bool,
}

impl Share {
    /// By what rules it shrinks: each pod when it is idle, or when its time is over.
    pub fn rules(&self, rules: &Rules) -> Rules {
        Rules {
            victims: Victims::Drained,
            wait: Some(self.patience),
            leaves: true,
            ..*rules
        }
    }
}

/// What each revision should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shares {
    /// The present one's size.
    pub present: u32,
    /// The older ones', in the order given.
    pub older: Vec<Share>,
}

/// Shares `desired` pods between the present revision and the older ones, the latest first.
///
/// # Guarantees
/// The older ones are told to give up no more than what the present one serves beyond the rest of the size, and nothing at
/// all while it is not proven, as long as one of them is. Without older ones the present one gets everything.
pub fn share(desired: u32, (present, note): (&Fleet, Note), older: &[(Fleet, Note)], settings: &Settings) -> Shares {
    if older.is_empty() {
        return Shares {
            present: desired,
            older: Vec::new(),
        };
    }
    let proven = note.proven || present.serving > 0;
    let base = older.iter().position(|(_, note)| note.proven);
    let mut need = desired - present.serving.min(desired);
    let mut with_pods = 0;
    let mut shares: Vec<Share> = older
        .iter()
        .enumerate()
        .map(|(number, (fleet, note))| {
            let given = if note.proven { need.min(fleet.size) } else { 0 };
            need -= given.min(fleet.able);
            with_pods += usize::from(fleet.live > 0);
            let patience = if with_pods > settings.keep {
                settings.timeout.min(settings.longest)
            } else {
                settings.timeout
            };
            Share {
                desired: given,
                patience,
                retires: proven || base != Some(number),
            }
        })
        .collect();
    let present = match base {
        // Nothing to fall back to.
        None => desired,
        Some(base) if !proven => {
            // What demand asks for beyond what is there comes with a template that is known to work.
            let lacks = desired.saturating_sub(shares.iter().map(|share| share.desired).sum());
            shares[base].desired += lacks;
            desired.min(settings.surge(desired))
        }
        Some(_) => {
            let open: u32 = older.iter().map(|(fleet, _)| fleet.open).sum();
            let room = desired.saturating_add(settings.surge(desired)).saturating_sub(open);
            // Whoever is there already stays: it serves, or will.
            room.max(present.size).min(desired)
        }
    };
    Shares { present, older: shares }
}

/// A rollout under way, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rolling {
    /// The present revision.
    pub revision: String,
    /// Its pods that serve.
    pub serving: u32,
    /// The pool's size.
    pub wanted: u32,
    /// Pods of older revisions.
    pub older: u32,
    /// Those that hold a task.
    pub busy: u32,
    /// Why pods of the present revision do not become ready.
    pub trouble: Option<String>,
}

impl Rolling {
    /// What happens next.
    pub fn next(&self) -> &'static str {
        match self {
            Self { trouble: Some(_), .. } => "the older pods stay until one of the new revision is ready",
            Self { serving, wanted, .. } if serving < wanted => {
                "as pods of the new revision become ready, as many older ones take no more work"
            }
            _ => "the older pods go, each when it is idle",
        }
    }
}

impl fmt::Display for Rolling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            revision,
            serving,
            wanted,
            older,
            busy,
            trouble,
        } = self;
        write!(
            f,
            "{serving} of {wanted} pods serve with revision {revision}, {older} of older ones are left, {busy} with tasks"
        )?;
        match trouble {
            Some(why) => write!(f, "; {why}"),
            None => Ok(()),
        }
    }
}
