//! What a pool shows of itself: status, conditions, Events.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use umbel_api::WorkerPool;
use umbel_api::condition::{self, Finding, Status};
use umbel_api::names::pool_condition;
use umbel_api::workerpool::{Counters, DemandStatus, LastScale, RevisionStatus, Slots, WorkerPoolStatus};
use umbel_plan::drain::{self, Gate};
use umbel_plan::explain::{self, Story};
use umbel_plan::rollout::Rolling;
use umbel_plan::scaling::Decision;
use umbel_plan::{deployment, scaling};

use crate::observe::Workers;

/// Demand and busy pods change all the time; people look, and nobody decides on them.
const COARSE: Duration = Duration::from_secs(5);

/// What a leader adds to a pool's status before it is written.
#[derive(Clone, Debug, Default)]
pub struct News {
    /// Counted since the last write.
    pub counters: Counters,
    /// The latest change of size, until it is written.
    pub last_scale: Option<LastScale>,
    /// When status was last written.
    written: Option<Instant>,
}

/// Everything that one pass found out about a valid pool.
pub struct Found<'a> {
    /// All pods that live, whatever template they were made from.
    pub pods: Vec<&'a drain::Pod>,
    /// The pool's size.
    pub size: u32,
    /// Its workers, if the broker answers.
    pub workers: Option<&'a Workers>,
    /// The size decision.
    pub decision: &'a Decision,
    /// What a step down is about, if one is under way.
    pub turn: &'a drain::Reason,
    /// Whether that keeps pods from going.
    pub is_blocked: bool,
    /// The template's revisions.
    pub revisions: Vec<RevisionStatus>,
    /// A template that replaces another.
    pub rolling: Option<Rolling>,
    /// Why children could not be applied.
    pub refused: Option<(&'static str, String)>,
    /// Why pods cannot be made.
    pub replica_failure: Option<String>,
    /// Why a pod of the present template does not become ready, if somebody says so.
    pub trouble: Option<String>,
    /// Why the broker gives no sample.
    pub broker_fault: Option<(&'static str, String)>,
    /// Who else writes the Deployment's size, and whether we stopped to set it right.
    pub foreign_scaler: Option<(String, bool)>,
    /// Who else writes deletion costs.
    pub foreign_cost_writer: Option<String>,
    /// What is said of Celery's remote control, where its workers are Celery's.
    pub remote_control: Option<Finding>,
    /// Whether a stopping pod has as long as its tasks may run.
    pub grace: Finding,
    /// Target clusters that it names and that are not there.
    pub absent: &'a [String],
}

/// Status of a pool that cannot run.
pub fn invalid(pool: &WorkerPool, reason: &str, message: String, now: Timestamp) -> WorkerPoolStatus {
    let mut status = pool.status.clone().unwrap_or_default();
    let held = format!("nothing is decided and the size stays: {message}");
    let findings = [
        Finding::new(pool_condition::READY, false, reason, message),
        Finding::new(pool_condition::SCALING_ACTIVE, false, reason, held),
    ];
    status.conditions = condition::merge(&status.conditions, &findings, pool.metadata.generation, now);
    status.observed_generation = pool.metadata.generation;
    status
}

/// Pods that status names, of thousands that one step may remove: status stays small.
const MOST_NAMED: usize = 100;

/// As many names as status has room for.
pub fn some_of(mut names: Vec<String>) -> Vec<String> {
    names.truncate(MOST_NAMED);
    names
}

/// Status of a pool, with the news added.
pub fn status(pool: &WorkerPool, found: &Found<'_>, news: &News, now: Timestamp) -> WorkerPoolStatus {
    let old = pool.status.clone().unwrap_or_default();
    let live = &found.pods;
    let number = |matches: &dyn Fn(&drain::Pod) -> bool| {
        u32::try_from(live.iter().filter(|pod| matches(pod)).count()).unwrap_or(u32::MAX)
    };
    let holds = |pod: &drain::Pod| pod.worker.as_ref().is_some_and(|worker| worker.held > 0);
    let closed = |pod: &drain::Pod| pod.worker.as_ref().is_some_and(|worker| worker.gate == Gate::Closed);
    let slots = found.workers.map(|workers| {
        let beats = live
            .iter()
            .filter_map(|pod| workers.present(&pod.uid)?.heartbeat.as_ref());
        beats.fold(Slots::default(), |sum, beat| Slots {
            total: sum.total + u64::from(beat.slots),
            busy: sum.busy + u64::from(beat.busy),
        })
    });
    let blocked = found.is_blocked.then(|| found.turn.word().to_owned());
    let counters = old.counters.unwrap_or_default();
    WorkerPoolStatus {
        observed_generation: pool.metadata.generation,
        replicas: number(&|_| true),
        ready_replicas: number(&|pod| pod.is_admitted() && pod.ready),
        desired_replicas: found.decision.replicas,
        recommended_replicas: found.decision.recommended,
        busy_replicas: number(&|pod| holds(pod)),
        idle_replicas: number(&|pod| pod.is_admitted() && !holds(pod)),
        draining_replicas: number(&|pod| closed(pod)),
        slots: slots.or(old.slots),
        selector: Some(deployment::selector(&pool.name_any())),
        demand: found.decision.demand.map(demand).or(old.demand),
        last_scale: news.last_scale.clone().or(old.last_scale),
        blocked_reason: blocked.clone(),
        counters: Some(Counters {
            scale_downs: counters.scale_downs + news.counters.scale_downs,
            busy_stopped: counters.busy_stopped + news.counters.busy_stopped,
            wrong_victims: counters.wrong_victims + news.counters.wrong_victims,
            handed_back: counters.handed_back + news.counters.handed_back,
        }),
        revisions: found.revisions.clone(),
        conditions: condition::merge(
            &old.conditions,
            &findings(found, live, blocked),
            pool.metadata.generation,
            now,
        ),
    }
}

/// How much was counted since the last look, where a count may begin anew at zero: with other data, or after a long time
/// without any. `known` is the count of the last look; a new leader has none, and takes it that what was `told` already is
/// the beginning of what is counted now.
pub fn counted_since(known: Option<u64>, told: u64, counted: u64) -> u64 {
    match known.unwrap_or(told.min(counted)) {
        known if known <= counted => counted - known,
        _ => counted,
    }
}

fn demand(demand: scaling::Demand) -> DemandStatus {
    DemandStatus {
        waiting: demand.waiting,
        in_flight: demand.in_flight,
        delayed_soon: demand.due_soon,
    }
}

fn findings(found: &Found<'_>, live: &[&drain::Pod], blocked: Option<String>) -> Vec<Finding> {
    let Found {
        pods: _,
        size,
        workers: _,
        decision,
        turn,
        is_blocked: _,
        revisions: _,
        rolling,
        refused,
        replica_failure,
        trouble,
        broker_fault,
        foreign_scaler,
        foreign_cost_writer,
        remote_control,
        grace,
        absent,
    } = found;
    let ready = live.iter().filter(|pod| pod.is_admitted() && pod.ready).count();
    let missing = match absent.join(", ") {
        none if none.is_empty() => none,
        names => format!("; clusterAccess.names: there is no TargetCluster {names}"),
    };
    let progress = format!("{ready} of {size} pods are ready{missing}");
    let is_whole = ready >= *size as usize;
    let up = match (refused, replica_failure) {
        (Some((reason, why)), _) => Finding::new(pool_condition::READY, false, *reason, why.clone()),
        (None, Some(why)) if !is_whole => Finding::new(pool_condition::READY, false, "ReplicaFailure", why.clone()),
        (None, _) if is_whole => Finding::new(pool_condition::READY, true, "Running", progress),
        (None, _) => match trouble {
            Some(why) => Finding::new(
                pool_condition::READY,
                false,
                "PodsNotReady",
                format!("{progress}; {why}"),
            ),
            None => Finding::new(pool_condition::READY, false, "Progressing", progress),
        },
    };
    let active = decision.reason.is_active();
    let number = |matches: &dyn Fn(&&&drain::Pod) -> bool| {
        u32::try_from(live.iter().filter(matches).count()).unwrap_or(u32::MAX)
    };
    let yielded = foreign_scaler.as_ref().filter(|(_, yields)| *yields);
    let obstacles = [
        refused.as_ref().map(|(_, why)| why.clone()),
        replica_failure.clone(),
        broker_fault.as_ref().map(|(_, why)| why.clone()),
        yielded.map(|(manager, _)| format!("{manager}, which writes the Deployment's size again and again")),
    ];
    let story = Story {
        live: number(&|_| true),
        ready: number(&|pod| pod.is_admitted() && pod.ready),
        busy: number(&|pod| pod.worker.as_ref().is_some_and(|worker| worker.held > 0)),
        draining: number(&|pod| pod.worker.as_ref().is_some_and(|worker| worker.gate == Gate::Closed)),
        decision,
        turn,
        rollout: rolling.as_ref(),
        obstacles: obstacles.into_iter().flatten().collect(),
    };
    let stuck = match (blocked, turn) {
        (Some(word), reason) => Finding::new(pool_condition::SCALE_DOWN_BLOCKED, true, word, explain::step(reason)),
        (None, _) => Finding::new(
            pool_condition::SCALE_DOWN_BLOCKED,
            false,
            "NotBlocked",
            "nothing keeps a smaller size from coming about",
        ),
    };
    let mut findings = vec![
        up,
        Finding::new(
            pool_condition::SCALING_ACTIVE,
            active,
            decision.reason.word(),
            story.to_string(),
        ),
        match &decision.bound {
            Some(bound) => Finding::new(
                pool_condition::SCALING_LIMITED,
                true,
                bound.word(),
                decision.to_string(),
            ),
            None => Finding::new(
                pool_condition::SCALING_LIMITED,
                false,
                "WithinBounds",
                "no bound keeps the size from what is asked for",
            ),
        },
        stuck,
        progress_of(rolling.as_ref()),
        match broker_fault {
            Some((reason, why)) => Finding::new(pool_condition::BROKER_REACHABLE, false, *reason, why.clone()),
            None if found.workers.is_none() => Finding::new(
                pool_condition::BROKER_REACHABLE,
                Status::Unknown,
                "NotSampled",
                "no sample was taken yet",
            ),
            None => Finding::new(pool_condition::BROKER_REACHABLE, true, "Sampled", "the broker answers"),
        },
        match foreign_scaler {
            None => Finding::new(
                pool_condition::FOREIGN_SCALER,
                false,
                "OnlyUs",
                "nobody else writes the size",
            ),
            Some((manager, yields)) => {
                let end = if *yields {
                    "we stopped to set it right; scale the WorkerPool instead"
                } else {
                    "it is set right"
                };
                let note = format!("{manager} wrote the Deployment's size: {end}");
                Finding::new(pool_condition::FOREIGN_SCALER, true, "SizeWritten", note)
            }
        },
        match foreign_cost_writer {
            None => Finding::new(
                pool_condition::FOREIGN_COST_WRITER,
                false,
                "OnlyUs",
                "nobody else writes deletion costs",
            ),
            Some(manager) => {
                let note = format!("{manager} writes deletion costs of pods; no step down relies on them");
                Finding::new(pool_condition::FOREIGN_COST_WRITER, true, "CostWritten", note)
            }
        },
        grace.clone(),
    ];
    findings.extend(remote_control.clone());
    findings
}

fn progress_of(rolling: Option<&Rolling>) -> Finding {
    let (is_so, reason, message) = match rolling {
        None => (false, "Complete", "all pods have the present template".to_owned()),
        Some(rolling) => match &rolling.trouble {
            Some(_) => (false, "NewRevisionNotReady", rolling.to_string()),
            None => (true, "Progressing", rolling.to_string()),
        },
    };
    Finding::new(pool_condition::ROLLOUT_PROGRESSING, is_so, reason, message)
}

impl News {
    /// Whether `new` is to be written now; otherwise when to look again, if at all.
    pub fn due(
        &self,
        old: Option<&WorkerPoolStatus>,
        new: &WorkerPoolStatus,
        now: Instant,
    ) -> Result<(), Option<Duration>> {
        let Some(old) = old else { return Ok(()) };
        if old == new {
            return Err(None);
        }
        if essence(old) != essence(new) {
            return Ok(());
        }
        let left = self.written.map(|at| COARSE.saturating_sub(now.duration_since(at)));
        match left.filter(|left| !left.is_zero()) {
            Some(left) => Err(Some(left)),
            None => Ok(()),
        }
    }

    /// Status was written: the news are in it.
    pub fn told(&mut self, now: Instant) {
        *self = Self {
            written: Some(now),
            ..Self::default()
        };
    }
}

/// Status without what changes all the time.
fn essence(status: &WorkerPoolStatus) -> WorkerPoolStatus {
    let short = |condition: &Condition| Condition {
        message: String::new(),
        ..condition.clone()
    };
    let calm = |revision: &RevisionStatus| RevisionStatus {
        busy_replicas: 0,
        ..revision.clone()
    };
    WorkerPoolStatus {
        demand: None,
        slots: None,
        busy_replicas: 0,
        idle_replicas: 0,
        recommended_replicas: 0,
        conditions: status.conditions.iter().map(short).collect(),
        revisions: status.revisions.iter().map(calm).collect(),
        ..status.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k20_a_step_down_by_ten_thousand_pods_leaves_a_small_status() {
        let victims = (0..10_000).map(|number| format!("{}-{number:0>16}", "p".repeat(63)));
        let told = some_of(victims.collect());
        let bytes = serde_json::to_string(&told).expect("plain data").len();
        assert!(told.len() == MOST_NAMED && bytes < 16 * 1024, "{bytes}");
    }

    #[test]
    fn a_count_that_begins_anew_is_added_to_what_was_told() {
        for (known, told, counted, since) in [
            (None, 0, 0, 0),
            (None, 0, 3, 3),
            // The leader before told all of it, or all but two.
            (None, 5, 5, 0),
            (None, 3, 5, 2),
            // It began anew while nobody led: what is counted now was told by somebody, as far as anybody knows.
            (None, 5, 2, 0),
            (Some(5), 9, 7, 2),
            (Some(5), 9, 5, 0),
            (Some(5), 9, 2, 2),
            (Some(5), 9, 0, 0),
        ] {
            assert_eq!(counted_since(known, told, counted), since, "{known:?} {told} {counted}");
        }
    }
}
