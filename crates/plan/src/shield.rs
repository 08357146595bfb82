//! What a busy pod carries: its deletion cost, and what shields it from whoever moves pods around.
//!
//! Cost and shield follow long tasks only, and slowly: up when one has run for ten seconds, down after a minute without
//! one. Tasks that are shorter cause no writes, however many there are. A shield ends after `maxHold` though the work goes
//! on; it comes back only after such a minute. All pods together are marked ten times in a second at most.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use umbel_api::names::{
    ANNOTATION_BUSY_SINCE, ANNOTATION_DELETION_COST, ANNOTATION_DO_NOT_DISRUPT, ANNOTATION_SAFE_TO_EVICT, LABEL_BUSY,
    LABEL_POOL,
};
use umbel_api::workerpool::{Budget, Protection, Shield};

use crate::deployment::{COST_ADMITTED, COST_BUSY, labels};
use crate::pool::Pool;
use crate::scaling::signed;

/// A pod counts as busy when a task has run for so long.
const UP: Duration = Duration::from_secs(10);
/// And as idle after so long: sooner up than down, so that a pod that works again and again stays as it is.
const DOWN: Duration = Duration::from_mins(1);
/// Between two marks on the long run, …
const APART: Duration = Duration::from_millis(150);
/// … of which the first few may come together: ten in any second.
const TOGETHER: Duration = Duration::from_millis(450);
/// One that has to wait asks again after this: nothing waits for a mark.
const AGAIN: Duration = Duration::from_secs(1);

/// The tasks of one pod, as they were seen. By their ids, as no clock but our own can be trusted to tell how old they are.
#[derive(Clone, Debug, Default)]
pub struct Work {
    since: HashMap<String, Instant>,
    /// Since when none of them is long.
    short: Option<Instant>,
}

impl Work {
    /// Takes the ids of what a pod works on now; answers whether it is busy, for a mark that is `raised` or not, and for
    /// how long that has been so.
    pub fn see<'a>(
        &mut self,
        tasks: impl IntoIterator<Item = &'a str>,
        raised: bool,
        now: Instant,
    ) -> (bool, Duration) {
        let mut before = std::mem::take(&mut self.since);
        for id in tasks {
            let (id, since) = before.remove_entry(id).unwrap_or_else(|| (id.to_owned(), now));
            self.since.insert(id, since);
        }
        let age = |since: Instant| now.saturating_duration_since(since);
        let oldest = self.since.values().copied().map(age).max();
        if oldest.is_some_and(|oldest| oldest >= UP) {
            self.short = None;
            return (true, oldest.unwrap_or_default());
        }
        let short = age(*self.short.get_or_insert(now));
        match oldest {
            Some(oldest) if !raised => (true, oldest),
            Some(_) | None => (false, short),
        }
    }
}

/// When pods may be marked, all of them together.
#[derive(Clone, Copy, Debug)]
pub struct Turns {
    free: Instant,
}

impl Turns {
    /// All are free.
    pub fn new(now: Instant) -> Turns {
        Turns { free: now }
    }

    /// Takes a turn.
    ///
    /// # Errors
    /// When to ask again.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        if self.free.saturating_duration_since(now) > TOGETHER {
            return Err(AGAIN);
        }
        self.free = self.free.max(now) + APART;
        Ok(())
    }
}

/// One pod, as it works and as it is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// It works, as [`Work::see`] says.
    pub busy: bool,
    /// It is marked as busy by its cost.
    pub raised: bool,
    /// For how long its work has differed from its mark.
    pub differs_for: Duration,
    /// Since when it is marked, where that was written down.
    pub since: Option<Timestamp>,
    /// Whether it is shielded now.
    pub shielded: bool,
}

/// What to write on a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Nothing.
    Keep,
    /// It is busy.
    Raise,
    /// It has been shielded for as long as it may.
    Unshield,
    /// It is idle.
    Lower,
}

/// What to write on a pod now.
pub fn decide(protection: &Protection, seen: &Seen, now: Timestamp) -> Mark {
    let Seen {
        busy,
        raised,
        differs_for,
        since,
        shielded,
    } = *seen;
    let wants = !protection.on_eviction.is_empty();
    let over = |since: Timestamp| now.duration_since(since) >= signed(protection.max_hold.get());
    match (busy, raised) {
        (true, false) if differs_for >= UP => Mark::Raise,
        (false, true) if differs_for >= DOWN => Mark::Lower,
        // The pool asks for a shield since then, or for none any more.
        (true, true) if wants && since.is_none() => Mark::Raise,
        (_, true) if shielded && (!wants || since.is_none_or(over)) => Mark::Unshield,
        _ => Mark::Keep,
    }
}

/// How long until time alone may call for another mark.
pub fn look(protection: &Protection, seen: &Seen, now: Timestamp) -> Option<Duration> {
    let differs = match (seen.busy, seen.raised) {
        (true, false) => Some(UP.saturating_sub(seen.differs_for)),
        (false, true) => Some(DOWN.saturating_sub(seen.differs_for)),
        _ => None,
    };
    let since = seen.since.filter(|_| seen.shielded);
    let ends = since.map(|since| {
        let left = (since + signed(protection.max_hold.get())).duration_since(now);
        Duration::try_from(left).unwrap_or_default()
    });
    differs.into_iter().chain(ends).min()
}

/// The metadata to merge into a pod's; nothing for [`Mark::Keep`].
pub fn metadata(mark: Mark, protection: &Protection, now: Timestamp) -> Option<Value> {
    let shields = &protection.on_eviction;
    let given = |shield: Shield, value: &str| shields.contains(&shield).then(|| value.to_owned());
    // Taken off are all of them: the pool may have asked for others before.
    let gone = json!({
        "labels": { LABEL_BUSY: null },
        "annotations": { ANNOTATION_SAFE_TO_EVICT: null, ANNOTATION_DO_NOT_DISRUPT: null },
    });
    match mark {
        Mark::Keep => None,
        Mark::Raise if shields.is_empty() => Some(json!({ "annotations": {
            ANNOTATION_DELETION_COST: COST_BUSY.to_string(),
        }})),
        Mark::Raise => Some(json!({
            "labels": { LABEL_BUSY: given(Shield::DisruptionBudget, "true") },
            "annotations": {
                ANNOTATION_DELETION_COST: COST_BUSY.to_string(),
                ANNOTATION_BUSY_SINCE: umbel_api::condition::whole_seconds(now).to_string(),
                ANNOTATION_SAFE_TO_EVICT: given(Shield::SafeToEvict, "false"),
                ANNOTATION_DO_NOT_DISRUPT: given(Shield::DoNotDisrupt, "true"),
            },
        })),
        Mark::Unshield => Some(gone),
        Mark::Lower => {
            let mut idle = gone;
            idle["annotations"][ANNOTATION_BUSY_SINCE] = Value::Null;
            idle["annotations"][ANNOTATION_DELETION_COST] = json!(COST_ADMITTED.to_string());
            Some(idle)
        }
    }
}

/// The disruption budgets that a pool may have, by name: one for all its pods, and one that allows no eviction of busy pods.
/// A pod under both could not be evicted at all, so the schema refuses that.
pub fn budgets(pool: &Pool) -> [(String, Option<Value>); 2] {
    // Each has a suffix of its own, and no pool's budget the name of another's: `a-busy` may be a pool, too.
    let (busy, all) = (format!("{}-busy", pool.name), format!("{}-all", pool.name));
    let shields = pool.protection.on_eviction.contains(&Shield::DisruptionBudget);
    let of_busy = shields.then(|| {
        let selector = json!({ LABEL_POOL: pool.name, LABEL_BUSY: "true" });
        let spec = json!({ "maxUnavailable": 0, "selector": { "matchLabels": selector } });
        budget(pool, &busy, &spec)
    });
    let of_all = pool.budget.as_ref().map(|limits| {
        let mut spec = json!({
            "selector": { "matchLabels": { LABEL_POOL: pool.name } },
            // A pod that nobody admitted does no work that a budget could protect.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        });
        let Budget {
            min_available,
            max_unavailable,
        } = limits;
        for (field, amount) in [("minAvailable", min_available), ("maxUnavailable", max_unavailable)] {
            if let Some(amount) = amount {
                spec[field] = json!(amount);
            }
        }
        budget(pool, &all, &spec)
    });
    [(busy, of_busy), (all, of_all)]
}

fn budget(pool: &Pool, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": name,
            "namespace": pool.namespace,
            "labels": labels(pool),
            "ownerReferences": [pool.owner],
        },
        "spec": spec,
    })
}
