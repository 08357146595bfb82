//! How a run goes on: which of its tasks are sent now, which never will be, and how far its clusters are. Pure.
//!
//! A run is a table: its clusters (one without a name where it has no targets) by its steps. A task of the table is sent when
//! its cluster has its turn and all tasks that it depends on have succeeded there.
//!
//! # Guarantees
//! Asked again with what it answered carried out, it answers nothing new: the leader may change between any two looks.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use umbel_api::periodictask::{ClusterProgress, Step, TaskTemplate, Waves, WavesKind};

use crate::fanout::{Candidate, Occasion};

/// Names that a status shows.
const NAMES: usize = 20;

/// The table of a run, as it was when the run began; stored with it, so that nobody's change of an object reaches into a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What is sent, with the arguments as they were then.
    pub template: TaskTemplate,
    /// The clusters, those of earlier groups first.
    pub members: Vec<Member>,
    /// What each step depends on, by place.
    pub after: Vec<Vec<usize>>,
    /// The bounds, in numbers of clusters.
    #[serde(default)]
    pub bounds: Option<Bounds>,
}

/// A cluster of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name; none where the run has no targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Place of its group.
    #[serde(default)]
    pub group: usize,
    /// It could not be reached when the run began, and counts as failed by that.
    #[serde(default)]
    pub is_given_up: bool,
}

/// How many clusters at a time, and when to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// So many at a time.
    pub most: usize,
    /// When more have failed, no other one begins.
    pub failures: usize,
    /// Milliseconds from the last success of a cluster until it makes room.
    pub soak_ms: i64,
    /// Milliseconds within which a cluster must have succeeded.
    pub deadline_ms: Option<i64>,
    /// Only those of one group at a time.
    pub by_group: bool,
}

/// Why a template's steps can't be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepFault {
    /// A step waits for itself, by way of others.
    #[error("spec.taskTemplate.steps: {0} is a cycle: none of these can ever begin")]
    Cycle(String),
    /// A step depends on one that there is not.
    #[error("spec.taskTemplate.steps: {step} depends on {missing}, and there is no such step")]
    Unknown {
        /// The step.
        step: String,
        /// What it names.
        missing: String,
    },
}

/// The steps of a template; a template of one task is one step.
pub fn steps(template: &TaskTemplate) -> Vec<Step> {
    match &template.task {
        Some(task) => vec![Step {
            name: String::new(),
            task: task.clone(),
            args: template.args.clone(),
            kwargs: template.kwargs.clone(),
            args_from: template.args_from.clone(),
            time_limit: template.time_limit,
            retry: template.retry,
            depends_on: None,
        }],
        None => template.steps.clone(),
    }
}

/// What each step depends on, by place.
///
/// # Errors
/// A step that can never begin.
pub fn dependencies(steps: &[Step]) -> Result<Vec<Vec<usize>>, StepFault> {
    let places: BTreeMap<&str, usize> = steps.iter().enumerate().map(|(at, step)| (&*step.name, at)).collect();
    let mut after = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        after.push(match &step.depends_on {
            None => at.checked_sub(1).into_iter().collect(),
            Some(names) => names
                .iter()
                .map(|name| {
                    places.get(&**name).copied().ok_or_else(|| StepFault::Unknown {
                        step: step.name.clone(),
                        missing: name.clone(),
                    })
                })
                .collect::<Result<Vec<usize>, StepFault>>()?,
        });
    }
    // What can begin is taken away until nothing is left, or a cycle.
    let mut left: BTreeSet<usize> = (0..steps.len()).collect();
    while let Some(free) = left
        .iter()
        .copied()
        .find(|step| after[*step].iter().all(|before| !left.contains(before)))
    {
        left.remove(&free);
    }
    let Some(first) = left.first().copied() else {
        return Ok(after);
    };
    let (mut path, mut at) = (vec![first], first);
    // Each of those left waits for another one of them.
    while let Some(next) = after[at].iter().copied().find(|before| left.contains(before)) {
        let seen = path.iter().position(|known| *known == next);
        path.push(next);
        if let Some(seen) = seen {
            path.drain(..seen);
            break;
        }
        at = next;
    }
    path.reverse();
    let names: Vec<&str> = path.iter().map(|step| &*steps[*step].name).collect();
    Err(StepFault::Cycle(names.join(" → ")))
}

impl Plan {
    /// The table of a run for these clusters; `template` has its arguments already. Those that could not be reached and count
    /// as failed are named apart.
    ///
    /// # Errors
    /// A step that can never begin.
    pub fn new(template: TaskTemplate, chosen: &[&Candidate], given_up: &BTreeSet<String>) -> Result<Self, StepFault> {
        let after = dependencies(&steps(&template))?;
        let waves = template.targets.as_ref().and_then(|targets| targets.rollout.as_ref());
        let mut members: Vec<Member> = match &template.targets {
            None => vec![Member::default()],
            Some(_) => chosen.iter().map(|one| member(one, waves, given_up)).collect(),
        };
        members.sort_by(|one, other| (one.group, &one.cluster).cmp(&(other.group, &other.cluster)));
        let bounds = waves.map(|waves| Bounds::of(waves, members.len()));
        Ok(Self {
            template,
            members,
            after,
            bounds,
        })
    }

    /// Whether all of it is sent at once and nothing of it has to be known later: one message.
    pub fn is_plain(&self) -> bool {
        self.template.targets.is_none() && self.after.len() == 1
    }

    /// Id of the task of a cluster and a step: the same whoever computes it.
    pub fn id(&self, uid: &str, occasion: Occasion, (member, step): (usize, usize)) -> String {
        let cluster = self.members[member].cluster.as_deref().unwrap_or_default();
        let step = self.template.steps.get(step).map(|step| &*step.name);
        occasion.id(uid, cluster, step).to_string()
    }

    /// All tasks, by cluster and step.
    pub fn all(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        (0..self.members.len()).flat_map(|member| (0..self.after.len()).map(move |step| (member, step)))
    }
}

fn member(candidate: &Candidate, waves: Option<&Waves>, given_up: &BTreeSet<String>) -> Member {
    let groups = waves.map_or(&[][..], |waves| &waves.groups);
    let matches = |labels| groups.iter().position(|group| group.selector.matches(labels));
    Member {
        cluster: Some(candidate.name.clone()),
        group: matches(&candidate.labels).unwrap_or(groups.len()),
        is_given_up: given_up.contains(&candidate.name),
    }
}

impl Bounds {
    fn of(waves: &Waves, clusters: usize) -> Self {
        let whole = u32::try_from(clusters).unwrap_or(u32::MAX);
        let part = |amount: &umbel_api::workerpool::Amount| amount.of(whole) as usize;
        let millis = |span: &umbel_api::Span| i64::try_from(span.get().as_millis()).unwrap_or(i64::MAX);
        Self {
            most: waves.max_concurrency.as_ref().map_or(usize::MAX, part).max(1),
            // Where all begin at once, nothing is left to be held back.
            failures: match waves.kind {
                WavesKind::All => usize::MAX,
                WavesKind::Progressive | WavesKind::ProgressivePerGroup => waves.max_failures.as_ref().map_or(0, part),
            },
            soak_ms: waves.min_success_time.as_ref().map_or(0, millis),
            deadline_ms: waves.progress_deadline.as_ref().map(millis),
            by_group: waves.kind == WavesKind::ProgressivePerGroup,
        }
    }
}

/// How far one task is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It was not sent.
    #[default]
    Later,
    /// It was sent then, and has not ended.
    Open(Timestamp),
    /// It was sent and ended well, then.
    Succeeded {
        /// When it was sent.
        sent: Timestamp,
        /// When it ended.
        ended: Timestamp,
    },
    /// It ended otherwise.
    Failed,
    /// It will never be sent.
    Skipped,
}

impl State {
    fn sent(self) -> Option<Timestamp> {
        match self {
            Self::Open(sent) | Self::Succeeded { sent, ended: _ } => Some(sent),
            Self::Later | Self::Failed | Self::Skipped => None,
        }
    }
}

/// What is to be done with a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// These are sent now.
    pub start: Vec<(usize, usize)>,
    /// These never will be.
    pub skip: Vec<(usize, usize)>,
    /// How far its clusters are, with this carried out.
    pub clusters: ClusterProgress,
    /// More clusters have failed than may: the rest does not begin.
    pub is_halted: bool,
}

/// How far a cluster is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stand {
    /// Nothing of it was sent.
    Pending,
    /// It goes on.
    Running,
    /// It has succeeded, and makes no room yet.
    Soaking,
    Succeeded,
    Failed,
    /// It never began, and never will.
    Skipped,
}

impl Stand {
    const fn is_under_way(self) -> bool {
        matches!(self, Self::Running | Self::Soaking)
    }

    const fn has_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Skipped)
    }
}

impl Plan {
    /// What to do now; `states` has a row for each cluster, with each step in it.
    pub fn next(&self, states: &[Vec<State>], now: Timestamp) -> Verdict {
        let mut stands: Vec<Stand> = self
            .members
            .iter()
            .zip(states)
            .map(|(member, row)| self.stand(member, row, now))
            .collect();
        let failed = stands.iter().filter(|stand| **stand == Stand::Failed).count();
        let is_halted = self.bounds.is_some_and(|bounds| failed > bounds.failures);
        let (mut start, mut skip) = (Vec::new(), Vec::new());
        for (at, (stand, row)) in stands.iter_mut().zip(states).enumerate() {
            if is_halted && *stand == Stand::Pending {
                *stand = Stand::Skipped;
            }
            match stand {
                Stand::Failed | Stand::Skipped => skip.extend(left(at, row)),
                Stand::Running => start.extend(self.ready(at, row)),
                Stand::Pending | Stand::Soaking | Stand::Succeeded => {}
            }
        }
        for at in self.admitted(&stands) {
            stands[at] = Stand::Running;
            start.extend(self.ready(at, &states[at]));
        }
        Verdict {
            start,
            skip,
            clusters: self.progress(&stands),
            is_halted,
        }
    }

    fn stand(&self, member: &Member, row: &[State], now: Timestamp) -> Stand {
        let since = row.iter().filter_map(|state| state.sent()).min();
        let is_skipped = row.contains(&State::Skipped);
        if member.is_given_up || row.contains(&State::Failed) || (is_skipped && since.is_some()) {
            return Stand::Failed;
        }
        if is_skipped {
            return Stand::Skipped;
        }
        let Some(since) = since else {
            return Stand::Pending;
        };
        let ends = row.iter().map(|state| match state {
            State::Succeeded { sent: _, ended } => Some(*ended),
            State::Later | State::Open(_) | State::Failed | State::Skipped => None,
        });
        let ended = ends
            .collect::<Option<Vec<Timestamp>>>()
            .and_then(|ends| ends.into_iter().max());
        let deadline = self.deadline(since);
        if deadline.is_some_and(|deadline| deadline < ended.unwrap_or(now)) {
            return Stand::Failed;
        }
        let Some(ended) = ended else {
            return Stand::Running;
        };
        let until = add(ended, self.bounds.map_or(0, |bounds| bounds.soak_ms));
        if until <= now { Stand::Succeeded } else { Stand::Soaking }
    }

    /// From when on a cluster that began then counts as failed.
    fn deadline(&self, since: Timestamp) -> Option<Timestamp> {
        let bounds = self.bounds?;
        Some(add(since, bounds.deadline_ms?))
    }

    /// Tasks of a cluster that has begun, or begins, whose turn it is.
    fn ready<'a>(&'a self, member: usize, row: &'a [State]) -> impl Iterator<Item = (usize, usize)> + 'a {
        let succeeded = |step: &usize| matches!(row[*step], State::Succeeded { .. });
        let is_ready = move |step: &usize| row[*step] == State::Later && self.after[*step].iter().all(succeeded);
        (0..row.len()).filter(is_ready).map(move |step| (member, step))
    }

    /// Clusters that may begin now.
    fn admitted(&self, stands: &[Stand]) -> Vec<usize> {
        let pending = stands.iter().enumerate().filter(|(_, stand)| **stand == Stand::Pending);
        let pending = pending.map(|(at, _)| at);
        let Some(bounds) = self.bounds else {
            return pending.collect();
        };
        let group = |at: usize| self.members[at].group;
        // The members are in the order of their groups.
        let present = (0..stands.len()).find(|at| !stands[*at].has_ended()).map(group);
        let under_way = stands.iter().filter(|stand| stand.is_under_way()).count();
        pending
            .filter(|at| !bounds.by_group || Some(group(*at)) == present)
            .take(bounds.most.saturating_sub(under_way))
            .collect()
    }

    fn progress(&self, stands: &[Stand]) -> ClusterProgress {
        let count = |is: fn(Stand) -> bool| {
            u32::try_from(stands.iter().filter(|stand| is(**stand)).count()).unwrap_or(u32::MAX)
        };
        let failed = self
            .members
            .iter()
            .zip(stands)
            .filter(|(_, stand)| **stand == Stand::Failed);
        ClusterProgress {
            total: count(|_| true),
            succeeded: count(|stand| matches!(stand, Stand::Succeeded | Stand::Soaking)),
            failed: count(|stand| stand == Stand::Failed),
            running: count(|stand| stand == Stand::Running),
            pending: count(|stand| stand == Stand::Pending),
            skipped: count(|stand| stand == Stand::Skipped),
            failed_names: failed
                .filter_map(|(member, _)| member.cluster.clone())
                .take(NAMES)
                .collect(),
        }
    }
}

/// Tasks that were not sent.
fn left(member: usize, row: &[State]) -> impl Iterator<Item = (usize, usize)> + '_ {
    let is_left = |step: &usize| row[*step] == State::Later;
    (0..row.len()).filter(is_left).map(move |step| (member, step))
}

fn add(at: Timestamp, millis: i64) -> Timestamp {
    at.saturating_add(SignedDuration::from_millis(millis))
        .unwrap_or(Timestamp::MAX)
}
