//! What a TaskQueue's status says: who owns the queue, and what the latest sample showed.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use umbel_api::{
    TaskQueueStatus,
    condition::{Finding, Status, find, merge, whole_seconds},
    names::queue_condition::{
        BACKLOGGED, BROKER_DATA_LOST, BROKER_REACHABLE, DEAD_LETTER_GROWING, EVICTION_RISK, PAUSED, READY,
    },
    taskqueue::{BrokerSeen, Consumers, Depth, Rates},
};

use crate::flow::Flow;

/// A depth is written into status at most this often; metrics are the live source.
pub const DEPTH_EVERY: Duration = Duration::from_secs(15);

/// For so long a loss of data is shown, unless there is another one.
pub const LOSS_SHOWN: Duration = Duration::from_secs(3600);

/// For so long after the last one, dead letters are growing.
const GROWING: Duration = Duration::from_secs(600);

/// Work waits for longer than it should from here on.
const WAITS_LONG: u64 = 300;

/// There is more work than is done within reasonable time from here on.
const DRAINS_SLOWLY: u64 = 600;

/// `Ready` of an object whose queue is another object's.
const OWNED_ELSEWHERE: &str = "QueueOwnedElsewhere";

/// `Ready` of an object whose queue can be consumed.
const SERVING: &str = "Serving";

/// What is known of a queue's broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerFacts {
    /// Host, port, version and what its settings promise.
    pub seen: BrokerSeen,
    /// Whether it throws keys away.
    pub eviction: Eviction,
    /// When it was seen last that its data had gone back to an earlier state.
    pub went_back: Option<Timestamp>,
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

/// The claim that counts as the owner's although nobody can tell yet: this object's status says that another one owns the
/// queue, and of those that ask for a queue of that name on a broker not seen yet this one goes first. Whoever leads anew
/// knows of claims one by one, and who is no owner must not take himself for it until all are known.
pub fn presumed_owner<'a>(
    old: &TaskQueueStatus,
    mine: &Claim,
    unseen: impl IntoIterator<Item = &'a Claim>,
) -> Option<&'a Claim> {
    let ready = find(&old.conditions, READY)?;
    if ready.status != "False" || ready.reason != OWNED_ELSEWHERE {
        return None;
    }
    unseen
        .into_iter()
        .filter(|claim| claim.queue == mine.queue && claim.rank() < mine.rank())
        .min_by_key(|claim| claim.rank())
}

/// Whether the object's queue was its own, and in order, when its status was written.
pub fn is_serving(status: &TaskQueueStatus) -> bool {
    find(&status.conditions, READY).is_some_and(|ready| ready.status == "True" && ready.reason == SERVING)
}

/// What is known of a queue.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
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
        queue: Result<Found, String>,
        /// What it is.
        broker: BrokerFacts,
    },
}

/// What a broker says of a queue.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// How many messages are where.
    pub depth: Depth,
    /// How it fares.
    pub flow: Flow,
    /// Who takes its messages.
    pub consumers: Consumers,
    /// Whether nothing of it is consumed.
    pub is_paused: bool,
    /// When its last dead letter came.
    pub died: Option<Timestamp>,
}

/// What the object itself says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its generation.
    pub generation: Option<i64>,
    /// `spec.paused`.
    pub is_paused: bool,
    /// `spec.limits.maxLength`.
    pub most: Option<u64>,
    /// `spec.timeZone`.
    pub time_zone: &'a str,
    /// Whether it is being deleted, and its messages are to go first.
    pub waits_to_purge: bool,
}

/// The status that follows, given the one that stands.
///
/// # Guarantees
/// Called with its own answer and the same facts, it answers the same. What is unknown keeps its last value.
pub fn status(
    old: &TaskQueueStatus,
    seen: &Seen,
    owner: Option<&Claim>,
    about: &About<'_>,
    now: Timestamp,
) -> TaskQueueStatus {
    let About {
        namespace, generation, ..
    } = *about;
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
    let mut ready = match (owner, seen) {
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
                OWNED_ELSEWHERE,
                format!("{who} owns the queue {:?} on this broker", owner.queue),
            )
        }
        (None, _) if is_unknown_zone(about.time_zone) => Finding::new(
            READY,
            false,
            "UnknownTimeZone",
            format!("spec.timeZone {:?} is not in the time zone database", about.time_zone),
        ),
        (None, Seen::Nothing) => Finding::new(READY, Status::Unknown, "NotAskedYet", "the broker was not asked yet"),
        (None, Seen::Fault { reason, why }) => Finding::new(READY, false, reason, why),
        (None, Seen::Answer { queue: Err(key), .. }) => Finding::new(READY, false, "WrongKeyType", key),
        (None, Seen::Answer { queue: Ok(_), .. }) => Finding::new(READY, true, SERVING, "the queue can be consumed"),
    };
    if about.waits_to_purge && ready.status != Status::True {
        ready
            .message
            .push_str("; its deletion waits for the broker, to purge the queue: deletionPolicy Retain lets it go");
    }
    let mut new = match (owner, seen) {
        // The numbers belong to the owner.
        (Some(_), _) => TaskQueueStatus::default(),
        (
            None,
            Seen::Answer {
                at, queue: Ok(found), ..
            },
        ) => {
            let Found {
                depth, flow, consumers, ..
            } = found;
            let mut new = TaskQueueStatus {
                depth: Some(depth.clone()),
                oldest_waiting_seconds: flow.oldest.map(|oldest| oldest.0),
                oldest_waiting_is_lower_bound: flow.oldest.is_some_and(|oldest| oldest.1),
                rates: flow.rates,
                estimated_drain_seconds: flow.drain,
                consumers: Some(consumers.clone()),
                // The same numbers at another time are no change.
                last_sample_time: old.last_sample_time.clone(),
                ..TaskQueueStatus::default()
            };
            if old.last_sample_time.is_none() || new != numbers(old) {
                new.last_sample_time = Some(Time(whole_seconds(*at)));
            }
            new
        }
        (None, _) => numbers(old),
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
        findings.push(data_lost(old, facts, now));
        broker = Some(facts.seen.clone());
    }
    if let (
        None,
        Seen::Answer {
            at, queue: Ok(found), ..
        },
    ) = (owner, seen)
    {
        findings.extend([paused(found, about), backlogged(found, about), growing(found, *at)]);
    }
    new.observed_generation = generation;
    new.broker = broker;
    new.conditions = merge(&old.conditions, &findings, generation, now);
    if owner.is_some() {
        // Like the numbers that they are made of.
        let of_owner = [PAUSED, BACKLOGGED, DEAD_LETTER_GROWING];
        new.conditions.retain(|one| !of_owner.contains(&one.type_.as_str()));
    }
    // A token grows with all that is done; it is no news by itself.
    if tokenless(&new) == tokenless(old) && token(&new) >= token(old) {
        return old.clone();
    }
    new
}

fn is_unknown_zone(name: &str) -> bool {
    !name.is_empty() && jiff::tz::TimeZone::get(name).is_err()
}

/// The numbers of a status, and nothing else.
fn numbers(status: &TaskQueueStatus) -> TaskQueueStatus {
    TaskQueueStatus {
        observed_generation: None,
        broker: None,
        conditions: Vec::new(),
        ..status.clone()
    }
}

fn token(status: &TaskQueueStatus) -> u64 {
    status.broker.as_ref().map_or(0, |broker| broker.token)
}

fn tokenless(status: &TaskQueueStatus) -> TaskQueueStatus {
    let mut status = status.clone();
    if let Some(broker) = &mut status.broker {
        broker.token = 0;
    }
    status
}

fn paused(found: &Found, about: &About<'_>) -> Finding {
    let (reason, message) = match (found.is_paused, about.is_paused) {
        (true, true) => (
            "SpecPaused",
            "spec.paused is true: no worker of Umbel's takes its messages",
        ),
        (true, false) => (
            "PausedByHand",
            "somebody has paused it at the broker: no worker of Umbel's takes its messages until `umbel queue resume`",
        ),
        (false, true) => (
            "ResumedByHand",
            "spec.paused is true, but somebody has resumed it at the broker",
        ),
        (false, false) => ("Consumed", "its messages may be taken"),
    };
    Finding::new(PAUSED, found.is_paused, reason, message)
}

/// Whether work waits for longer than it should.
fn backlogged(found: &Found, about: &About<'_>) -> Finding {
    let waiting: u64 = found.depth.by_priority.iter().map(|step| step.waiting).sum();
    let (holds, reason, message) = match (about.most, found.flow.oldest, found.flow.drain) {
        (Some(most), _, _) if waiting >= most => (
            true,
            "Full",
            format!("as many messages wait as may: limits.maxLength is {most}"),
        ),
        (_, Some((oldest, _)), _) if oldest >= WAITS_LONG => (
            true,
            "WaitsLong",
            format!("the next message has waited for {} min or more", oldest / 60),
        ),
        (_, _, Some(drain)) if drain >= DRAINS_SLOWLY => (
            true,
            "DrainsSlowly",
            format!("what waits needs about {} min more", drain / 60),
        ),
        _ => (false, "KeepsUp", "nothing waits for long".to_owned()),
    };
    Finding::new(BACKLOGGED, holds, reason, message)
}

/// Whether dead letters have come lately, by the broker's clock.
fn growing(found: &Found, at: Timestamp) -> Finding {
    match found.died {
        Some(died) if at.duration_since(died).unsigned_abs() < GROWING => Finding::new(
            DEAD_LETTER_GROWING,
            true,
            "LettersCame",
            format!(
                "{} dead letters, the last one at {}",
                found.depth.dead,
                whole_seconds(died)
            ),
        ),
        _ => Finding::new(
            DEAD_LETTER_GROWING,
            false,
            "NoneCame",
            "no dead letter has come for ten minutes",
        ),
    }
}

/// Whether the broker has other data than when it was seen last, at the same address; shown for an hour.
fn data_lost(old: &TaskQueueStatus, facts: &BrokerFacts, now: Timestamp) -> Finding {
    let seen = &facts.seen;
    let before = old.broker.as_ref().filter(|before| before.server == seen.server);
    if before.is_some_and(|before| !before.data_set.is_empty() && before.data_set != seen.data_set) {
        let message = if seen.data_set.is_empty() {
            "the broker has come back empty: what was queued, running or delayed there is gone"
        } else {
            "the broker has come back with other data: what was queued, running or delayed there is gone"
        };
        return Finding::new(BROKER_DATA_LOST, true, "DataSetReplaced", message);
    }
    // The same data, but tokens, terms or slots of it are lower than they were.
    let is_back = before.is_some_and(|before| before.data_set == seen.data_set && seen.token < before.token);
    let is_recent = |at: Timestamp| now.duration_since(at).unsigned_abs() < LOSS_SHOWN;
    if is_back || facts.went_back.is_some_and(is_recent) {
        return Finding::new(
            BROKER_DATA_LOST,
            true,
            "DataWentBack",
            "the broker has come back with an earlier state of its data: what came since then is gone, what was done since \
             then may be done again",
        );
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

/// A status without what moves while the same goes on: ages, and rates, of which only counts whether there are any.
fn lasting(status: &TaskQueueStatus) -> TaskQueueStatus {
    let Rates {
        enqueued,
        started,
        succeeded,
        failed,
    } = status.rates.unwrap_or_default();
    let is_moving = enqueued + started + succeeded + failed > 0.0;
    let mut lasting = TaskQueueStatus {
        oldest_waiting_seconds: status.oldest_waiting_seconds.map(|_| 0),
        rates: is_moving.then(Rates::default),
        estimated_drain_seconds: None,
        last_sample_time: None,
        ..tokenless(status)
    };
    // It tells one of these times.
    let backlogged = lasting.conditions.iter_mut().filter(|one| one.type_ == BACKLOGGED);
    backlogged.for_each(|one| one.message.clear());
    lasting
}

/// When a status is worth writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// It says nothing new: an age or a rate that moves is none by itself.
    Never,
    /// A condition or the generation changed.
    Now,
    /// Only numbers changed, and they were written a moment ago.
    After(Duration),
}

/// Whether `new` is worth writing, when the last write was `since` ago (`None`: not by this leader).
pub fn worth(old: &TaskQueueStatus, new: &TaskQueueStatus, since: Option<Duration>) -> Worth {
    if old == new || lasting(old) == lasting(new) {
        return Worth::Never;
    }
    let same_findings = |kind: &str| match (find(&old.conditions, kind), find(&new.conditions, kind)) {
        (Some(old), Some(new)) => old.status == new.status && old.reason == new.reason,
        (old, new) => old.is_none() && new.is_none(),
    };
    // Not what depends on numbers alone.
    let kinds = [READY, BROKER_REACHABLE, EVICTION_RISK, BROKER_DATA_LOST, PAUSED];
    let said = kinds.into_iter().all(same_findings)
        && tokenless(old).broker == tokenless(new).broker
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
        found(
            100,
            Found {
                depth: Depth {
                    waiting,
                    ..Depth::default()
                },
                ..Found::default()
            },
        )
    }

    fn found(second: i64, found: Found) -> Seen {
        Seen::Answer {
            at: at(second),
            queue: Ok(found),
            broker: BrokerFacts::default(),
        }
    }

    fn about(namespace: &str, generation: Option<i64>) -> About<'_> {
        About {
            namespace,
            generation,
            ..About::default()
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
    fn who_was_no_owner_is_none_until_all_claims_are_known() {
        let mine = claim("a", "q", 5, "n", "mine");
        let owner = claim("a", "q", 3, "m", "owner");
        let unseen = [
            claim("", "q", 4, "m", "second"),
            claim("", "q", 3, "m", "owner"),
            claim("", "q", 6, "m", "younger"),
            claim("", "other", 1, "m", "other-queue"),
        ];
        let said = |owner| {
            status(
                &TaskQueueStatus::default(),
                &depth(1),
                owner,
                &about("n", Some(1)),
                at(100),
            )
        };
        let (elsewhere, ours) = (said(Some(&owner)), said(None));
        let presumed = |old: &TaskQueueStatus, unseen: &[Claim]| {
            presumed_owner(old, &mine, unseen).map(|claim| claim.name.clone())
        };
        assert_eq!(presumed(&elsewhere, &unseen), Some("owner".into()));
        assert_eq!(presumed(&elsewhere, &unseen[2..]), None, "nobody goes before it");
        assert_eq!(presumed(&ours, &unseen), None);
        assert_eq!(presumed(&TaskQueueStatus::default(), &unseen), None);
        // Before its own broker was seen, too: what it said stays.
        let old = status(
            &elsewhere,
            &Seen::Nothing,
            Some(&unseen[1]),
            &about("n", Some(1)),
            at(110),
        );
        assert_eq!(presumed(&old, &unseen), Some("owner".into()));
        assert_eq!((is_serving(&elsewhere), is_serving(&ours)), (false, true));
    }

    #[test]
    fn outage_keeps_the_last_depth_and_says_so() {
        let fine = status(
            &TaskQueueStatus::default(),
            &depth(7),
            None,
            &about("n", Some(1)),
            at(100),
        );
        assert_eq!(fine.depth.as_ref().map(|depth| depth.waiting), Some(7));
        let fault = Seen::Fault {
            reason: "BrokerUnreachable".into(),
            why: "redis:6379/0: refused".into(),
        };
        let away = status(&fine, &fault, None, &about("n", Some(1)), at(110));
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

    #[test]
    fn a_queue_with_a_time_zone_that_nobody_knows_says_so() {
        for (time_zone, reason) in [
            ("UTC", "NotAskedYet"),
            ("Europe/Berlin", "NotAskedYet"),
            ("Mars/Olympus", "UnknownTimeZone"),
        ] {
            let about = About {
                time_zone,
                ..About::default()
            };
            let status = status(
                &TaskQueueStatus::default(),
                &Seen::Nothing,
                None,
                &about,
                Timestamp::UNIX_EPOCH,
            );
            let ready = find(&status.conditions, READY).expect("it is there");
            assert_eq!(ready.reason, reason, "{time_zone}: {}", ready.message);
        }
    }

    #[test]
    fn a_deletion_that_waits_for_the_broker_says_what_lets_it_go() {
        let fault = Seen::Fault {
            reason: "BrokerUnreachable".into(),
            why: "redis:6379/0: refused".into(),
        };
        let says_so = |seen: &Seen, waits_to_purge| {
            let about = About {
                waits_to_purge,
                ..about("n", Some(1))
            };
            let new = status(&TaskQueueStatus::default(), seen, None, &about, at(1));
            let ready = find(&new.conditions, READY).expect("a condition");
            ready.message.contains("deletionPolicy Retain lets it go")
        };
        assert_eq!(
            [says_so(&fault, true), says_so(&fault, false), says_so(&depth(1), true)],
            [true, false, false]
        );
    }

    /// A queue on this server with this data.
    fn on(server: &str, data_set: &str, eviction: Eviction) -> Seen {
        let Seen::Answer { at, queue, .. } = depth(1) else {
            unreachable!()
        };
        let seen = BrokerSeen {
            server: server.into(),
            data_set: data_set.into(),
            durability: Some("Basic".into()),
            ..BrokerSeen::default()
        };
        let broker = BrokerFacts {
            seen,
            eviction,
            went_back: None,
        };
        Seen::Answer { at, queue, broker }
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
                &about("n", Some(1)),
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
                &about("n", None),
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
        let first = status(
            &TaskQueueStatus::default(),
            &depth(7),
            None,
            &about("n", Some(1)),
            at(100),
        );
        let Seen::Answer { queue, broker, .. } = depth(7) else {
            unreachable!()
        };
        let later = Seen::Answer {
            at: at(160),
            queue,
            broker,
        };
        let again = status(&first, &later, None, &about("n", Some(1)), at(160));
        assert_eq!(worth(&first, &again, None), Worth::Never);
    }

    #[test]
    fn numbers_are_written_seldom() {
        let first = status(
            &TaskQueueStatus::default(),
            &depth(7),
            None,
            &about("n", Some(1)),
            at(100),
        );
        let more = status(&first, &depth(8), None, &about("n", Some(1)), at(101));
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
                &about(namespace, None),
                at(1),
            );
            assert_eq!(status.depth, None);
            find(&status.conditions, READY).expect("a condition").message.clone()
        };
        assert!(!said("mine").contains("secret"));
        assert!(said("secret-team").contains("secret-name"));
    }

    fn says(status: &TaskQueueStatus, kind: &str) -> (String, String) {
        let found = find(&status.conditions, kind).expect("a condition");
        (found.status.clone(), found.reason.clone())
    }

    fn of(holds: bool, reason: &str) -> (String, String) {
        (if holds { "True" } else { "False" }.to_owned(), reason.to_owned())
    }

    #[test]
    fn a_pause_says_who_made_it() {
        for (broker, spec, reason) in [
            (false, false, "Consumed"),
            (false, true, "ResumedByHand"),
            (true, false, "PausedByHand"),
            (true, true, "SpecPaused"),
        ] {
            let seen = Found {
                is_paused: broker,
                ..Found::default()
            };
            let about = About {
                is_paused: spec,
                ..About::default()
            };
            let new = status(&TaskQueueStatus::default(), &found(1, seen), None, &about, at(1));
            assert_eq!(says(&new, PAUSED), of(broker, reason));
        }
    }

    #[test]
    fn an_age_or_a_rate_that_moves_is_no_news_but_that_nothing_moves_any_more_is() {
        let seen = |second, waiting, oldest, started, drain| {
            let flow = Flow {
                oldest: Some((oldest, true)),
                drain,
                rates: Some(Rates {
                    started,
                    ..Rates::default()
                }),
            };
            let depth = Depth {
                waiting,
                ..Depth::default()
            };
            let seen = Found {
                depth,
                flow,
                ..Found::default()
            };
            found(second, seen)
        };
        let step = |old: &TaskQueueStatus, seen: &Seen, second| {
            let new = status(old, seen, None, &about("n", Some(1)), at(second));
            (worth(old, &new, None), new)
        };
        let (_, first) = step(&TaskQueueStatus::default(), &seen(100, 5, 300, 1.0, Some(30)), 100);
        assert_eq!(step(&first, &seen(200, 5, 360, 2.0, Some(60)), 200).0, Worth::Never);
        assert_eq!(step(&first, &seen(200, 5, 360, 1.0, None), 200).0, Worth::Never);
        assert_eq!(step(&first, &seen(200, 5, 300, 0.0, Some(30)), 200).0, Worth::Now);
        assert_eq!(step(&first, &seen(200, 6, 300, 1.0, Some(30)), 200).0, Worth::Now);
        // A condition turns by an age alone.
        assert_eq!(step(&first, &seen(200, 5, 299, 1.0, Some(30)), 200).0, Worth::Now);
    }

    #[test]
    fn a_backlog_is_told_by_age_by_pace_and_by_the_bound() {
        let step = |waiting| vec![umbel_api::taskqueue::Step { step: 0, waiting }];
        let said = |most, waiting, flow| {
            let seen = Found {
                depth: Depth {
                    by_priority: step(waiting),
                    ..Depth::default()
                },
                flow,
                ..Found::default()
            };
            let about = About {
                most,
                ..About::default()
            };
            let new = status(&TaskQueueStatus::default(), &found(1, seen), None, &about, at(1));
            says(&new, BACKLOGGED)
        };
        let flow = |oldest, drain| Flow {
            oldest: Some((oldest, true)),
            drain: Some(drain),
            rates: None,
        };
        assert_eq!(said(Some(6), 5, flow(299, 599)), of(false, "KeepsUp"));
        assert_eq!(said(Some(5), 5, flow(299, 599)), of(true, "Full"));
        assert_eq!(said(None, 5, flow(300, 599)), of(true, "WaitsLong"));
        assert_eq!(said(None, 5, flow(299, 600)), of(true, "DrainsSlowly"));
    }

    #[test]
    fn dead_letters_grow_for_ten_minutes_after_the_last() {
        let said = |died: Option<i64>, now| {
            let seen = Found {
                died: died.map(at),
                ..Found::default()
            };
            let new = status(
                &TaskQueueStatus::default(),
                &found(now, seen),
                None,
                &About::default(),
                at(now),
            );
            says(&new, DEAD_LETTER_GROWING)
        };
        assert_eq!(said(None, 1000), of(false, "NoneCame"));
        assert_eq!(said(Some(401), 1000), of(true, "LettersCame"));
        assert_eq!(said(Some(400), 1000), of(false, "NoneCame"));
    }

    #[test]
    fn what_depends_on_numbers_goes_when_the_queue_becomes_anothers() {
        let owner = claim("a", "q", 1, "n", "owner");
        let ours = status(
            &TaskQueueStatus::default(),
            &depth(1),
            None,
            &about("n", Some(1)),
            at(1),
        );
        let step = |old: &TaskQueueStatus| status(old, &depth(1), Some(&owner), &about("n", Some(1)), at(2));
        let elsewhere = step(&ours);
        for kind in [PAUSED, BACKLOGGED, DEAD_LETTER_GROWING] {
            assert!(find(&ours.conditions, kind).is_some(), "{kind}");
            assert_eq!(find(&elsewhere.conditions, kind), None);
        }
        assert!(find(&elsewhere.conditions, BROKER_REACHABLE).is_some());
        assert_eq!(step(&elsewhere), elsewhere);
    }

    #[test]
    fn data_that_went_back_is_told_and_a_token_alone_is_no_news() {
        let with = |token, went_back: Option<i64>| {
            let Seen::Answer {
                at: then,
                queue,
                mut broker,
            } = on("a", "one", Eviction::Never)
            else {
                unreachable!()
            };
            broker.seen.token = token;
            broker.went_back = went_back.map(at);
            Seen::Answer {
                at: then,
                queue,
                broker,
            }
        };
        let step =
            |old: &TaskQueueStatus, seen: &Seen, second| status(old, seen, None, &about("n", Some(1)), at(second));
        let lost = |status: &TaskQueueStatus| says(status, BROKER_DATA_LOST);
        let first = step(&TaskQueueStatus::default(), &with(10, None), 100);
        assert_eq!(lost(&first), of(false, "DataSetKept"));
        let grown = step(&first, &with(20, None), 110);
        assert_eq!(worth(&first, &grown, None), Worth::Never);
        let back = step(&first, &with(9, None), 120);
        assert_eq!(lost(&back), of(true, "DataWentBack"));
        assert_eq!(worth(&first, &back, Some(Duration::ZERO)), Worth::Now);
        let later = step(&back, &with(30, None), 130);
        assert_eq!(lost(&later), of(true, "DataWentBack"), "for an hour");
        // Seen between two writes of the status.
        let seen = step(&first, &with(20, Some(130)), 140);
        assert_eq!(lost(&seen), of(true, "DataWentBack"));
    }
}
