//! Limits that all workers keep together: rates of tasks, concurrency keys, and one run for copies of a message.
//!
//! A message without any of these costs a look at its headers. All others of a batch ask Redis in one call; what may not
//! run now is back in Redis when that call returns, so it takes no slot and is not asked about again before its time.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use umbel_broker::{Ask, End, FollowUp, Once, QueuePolicy, Rate, Turn, Until};
use umbel_protocol::control::glob;
use umbel_protocol::json::Json;
use umbel_protocol::message::TaskMessage;
use umbel_telemetry::chain;

use crate::app::Shared;
use crate::consume::Decider;
use crate::job::{Failure, Job};
use crate::keyed::{KeyOf, KeyRule, bounded};
use crate::run::Delivery;
use crate::tasks::Tasks;

/// The concurrency key that a producer names, and how many may hold it where that is not one.
const KEY_HEADER: &str = "umbel_concurrency_key";
const KEY_LIMIT_HEADER: &str = "umbel_concurrency_limit";
/// The unique key of a message: an object with `key` and `until`.
const UNIQUE_HEADER: &str = "umbel_unique";
/// Pause where the server refuses to answer.
const AGAIN: Duration = Duration::from_secs(1);

/// A limit for what a name stands for: `NAME=VALUE`, or `VALUE` for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named<T> {
    /// A queue, or a glob of task names; `None`: all.
    pub name: Option<String>,
    /// The limit.
    pub value: T,
}

impl<T: std::str::FromStr<Err: std::fmt::Display>> std::str::FromStr for Named<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Named<T>, String> {
        let (name, value) = match text.rsplit_once('=') {
            Some((name, value)) => (Some(name.trim().to_owned()), value),
            None => (None, text),
        };
        if name.as_ref().is_some_and(String::is_empty) {
            return Err(format!("{text:?} names nothing in front of ="));
        }
        let value = value.trim().parse::<T>().map_err(|err| err.to_string())?;
        Ok(Named { name, value })
    }
}

/// The limits of a configuration.
#[derive(Debug, Clone, Default)]
pub struct SharedLimits {
    /// Rates of queues, written to Redis when the worker starts.
    pub queue_rates: Vec<Named<Rate>>,
    /// Messages of queues that are held at a time, likewise.
    pub queue_in_flight: Vec<Named<NonZeroU64>>,
    /// Rates of tasks, by globs.
    pub task_rates: Vec<Named<Rate>>,
    /// Concurrency keys of tasks, by globs.
    pub keys: Vec<KeyRule>,
    /// Copies of a message within this time run once.
    pub deduplicate: Option<Duration>,
}

/// What the messages of a task ask for.
struct TaskLimit {
    /// Name of the rate: the task's own, whatever alias the message has.
    rate: Option<(String, Rate)>,
    key: Option<(KeyOf, u32)>,
}

/// The limits of a worker's tasks.
pub(crate) struct Limits {
    tasks: HashMap<String, TaskLimit>,
    once: Option<Duration>,
}

impl Limits {
    pub(crate) fn new(tasks: &Tasks, config: &SharedLimits) -> Limits {
        let mut limits = HashMap::new();
        for (name, own_name, options) in tasks.all() {
            let by_flag = config.task_rates.iter().rev().find(|rule| {
                let pattern = rule.name.as_deref().unwrap_or("*");
                glob(name, pattern) || glob(own_name, pattern)
            });
            let rate = by_flag.map(|rule| rule.value).or(options.shared_rate);
            let rule = config
                .keys
                .iter()
                .rev()
                .find(|rule| glob(name, &rule.tasks) || glob(own_name, &rule.tasks));
            let key = match rule {
                Some(rule) => Some((KeyOf::Template(rule.template.clone()), rule.most)),
                None => options.concurrency_key.clone(),
            };
            if rate.is_some() || key.is_some() {
                let rate = rate.map(|rate| (format!("t:{}", bounded(own_name.to_owned())), rate));
                limits.insert(name.to_owned(), TaskLimit { rate, key });
            }
        }
        Limits {
            tasks: limits,
            once: config.deduplicate,
        }
    }

    /// What a message must ask for before it runs; nothing for most.
    ///
    /// # Errors
    /// The failure of a program's own function for the key of this message.
    pub(crate) fn ask(&self, delivery: &Delivery, job: &dyn Job) -> Result<Option<Ask>, Failure> {
        let message = &delivery.message;
        let task = if self.tasks.is_empty() {
            None
        } else {
            self.tasks.get(&message.task)
        };
        let key = match (header_key(message), task.and_then(|task| task.key.as_ref())) {
            (Some(key), _) => Some(key),
            (None, Some((key, most))) => key.key(message, job.parameters())?.map(|key| (key, *most)),
            (None, None) => None,
        };
        let rate = task.and_then(|task| task.rate.clone());
        let once = self.once(message);
        if key.is_none() && rate.is_none() && once.is_none() {
            return Ok(None);
        }
        Ok(Some(Ask {
            lid: Arc::clone(&delivery.lease.lid),
            id: message.id.clone(),
            once,
            key,
            rate,
        }))
    }

    /// All copies of a try share a name; the next try has another.
    fn once(&self, message: &TaskMessage) -> Option<Once> {
        let kept = self.once?;
        let name = bounded(format!("{}:{}", message.id, message.retries));
        Some(Once { name, kept })
    }
}

/// The key that the producer names.
fn header_key(message: &TaskMessage) -> Option<(String, u32)> {
    let key = message.own_header(KEY_HEADER)?.text().filter(|key| !key.is_empty())?;
    let most = message
        .own_header(KEY_LIMIT_HEADER)
        .and_then(|most| most.to::<u32>().ok());
    Some((bounded(key), most.unwrap_or(1).max(1)))
}

/// The unique key of a message, and until when it is taken.
fn unique(message: &TaskMessage) -> Option<(String, Until)> {
    let header: Json = message.own_header(UNIQUE_HEADER)?;
    let key = header.get("key")?.text().filter(|key| !key.is_empty())?;
    let until = header.get("until").and_then(|until| until.text());
    Some((key, until.and_then(|until| Until::named(&until)).unwrap_or_default()))
}

/// May another message with its unique key be sent when this one starts?
pub(crate) fn is_unique_until_start(message: &TaskMessage) -> bool {
    matches!(unique(message), Some((_, Until::Started)))
}

/// A message starts: another one with its unique key may be sent now, where its sender wanted that.
pub(crate) async fn note_start(shared: &Shared, message: &TaskMessage) {
    let Some((key, Until::Started)) = unique(message) else {
        return;
    };
    if let Err(err) = Box::pin(shared.broker.release_unique(&key, &message.id)).await {
        tracing::warn!(task.id = %message.id, error = %chain(&err), "unique key kept until its time is over");
    }
}

/// What an end leaves behind for copies of the message, and for messages with its unique key.
pub(crate) fn at_the_end(shared: &Shared, message: &TaskMessage, end: &End, state: &str) -> Vec<FollowUp> {
    let mut follow_ups = Vec::new();
    if state == "duplicate" {
        return follow_ups; // The other copy has it all.
    }
    let is_final = match end {
        End::Ack | End::Bury { .. } | End::BuryBytes { .. } | End::Quarantine { .. } => true,
        End::Later { .. } | End::Park { .. } | End::Release | End::Charge | End::Requeue => false,
    };
    // Replaced, or put back by its task after an early acknowledgement, it goes on under its id and as the same try: what
    // goes on is no copy of it.
    let is_same_try = matches!(state, "replaced" | "requeued");
    if let Some(once) = shared
        .limits
        .once(message)
        .filter(|_| !is_same_try && (is_final || matches!(end, End::Later { .. })))
    {
        follow_ups.push(FollowUp::Mark {
            key: once.key(&shared.broker),
            ttl: once.kept.as_secs().max(1),
            value: "done".into(),
        });
    }
    // Replaced and sent to another list it goes on under its id, and keeps its key.
    if is_final
        && !is_same_try
        && state != "retried"
        && let Some((key, _)) = unique(message)
    {
        follow_ups.push(FollowUp::LetGo {
            key: shared.broker.keys().umbel(&format!("unique:{key}")),
            token: message.id.clone(),
        });
    }
    follow_ups
}

/// Writes the limits of the queues that flags name into Redis, where all workers of them read them.
pub(crate) async fn write_queue_limits(shared: Arc<Shared>) {
    let limits = &shared.config.limits;
    if limits.queue_rates.is_empty() && limits.queue_in_flight.is_empty() {
        return;
    }
    for queue in shared.queues.names() {
        let of_queue = |name: &Option<String>| name.as_ref().is_none_or(|name| *name == queue);
        let rate = limits.queue_rates.iter().rev().find(|rule| of_queue(&rule.name));
        let most = limits.queue_in_flight.iter().rev().find(|rule| of_queue(&rule.name));
        loop {
            match write(
                &shared,
                &queue,
                rate.map(|rule| rule.value),
                most.map(|rule| rule.value.get()),
            )
            .await
            {
                Ok(None) => break,
                Ok(Some(policy)) => {
                    tracing::info!(queue, ?policy, "limits of the queue are set for all its workers");
                    break;
                }
                Err(err) => {
                    tracing::debug!(queue, error = %chain(&err), "setting the queue's limits again");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

async fn write(
    shared: &Shared,
    queue: &str,
    rate: Option<Rate>,
    most: Option<u64>,
) -> Result<Option<QueuePolicy>, umbel_broker::Error> {
    let mut policy = None;
    if rate.is_some() {
        policy = Some(shared.broker.set_queue_rate(queue, rate).await?);
    }
    if most.is_some() {
        policy = Some(shared.broker.set_max_in_flight(queue, most).await?);
    }
    Ok(policy)
}

/// A message that has to ask, with what would run it.
pub(crate) struct Asking {
    pub(crate) delivery: Delivery,
    pub(crate) job: Arc<dyn Job>,
    pub(crate) ask: Ask,
}

impl Decider {
    /// Asks for the turns of all messages of a batch that have to, and starts those that may.
    pub(crate) async fn take_turns(&mut self) {
        let asking = std::mem::take(&mut self.asking);
        if asking.is_empty() {
            return;
        }
        let asks: Vec<Ask> = asking.iter().map(|one| one.ask.clone()).collect();
        let shared = Arc::clone(&self.shared);
        let turns = match self.quiet.run_until_cancelled(shared.broker.turns(&asks)).await {
            Some(Ok(turns)) if turns.len() == asks.len() => turns,
            answer => {
                // Told to be quiet, or nobody knows: the next hello hands back what is still leased.
                self.leave(asks.iter().map(|ask| &ask.lid));
                if let Some(Err(err)) = answer {
                    self.shared.metrics.broker_failed(&err);
                    tracing::warn!(error = %chain(&err), "limits not asked: the messages go back");
                    let _ = self.quiet.run_until_cancelled(tokio::time::sleep(AGAIN)).await;
                }
                return;
            }
        };
        for (Asking { delivery, job, ask }, turn) in asking.into_iter().zip(turns) {
            match turn {
                Turn::Go(wait) => self.begin(delivery, job, wait).await,
                Turn::Parked(wait) => {
                    self.shared.due.within(wait);
                    self.shared.parked(&delivery);
                }
                Turn::Lost => self.shared.leases.remove(std::iter::once(&ask.lid)),
                Turn::Duplicate => {
                    tracing::info!(task.id = %ask.id, task.name = %delivery.message.task, queue = %delivery.queue, "duplicate: another copy runs or has run");
                    self.shared.end(delivery, End::Ack, None, "", "duplicate").await;
                }
                Turn::Fault(reason) => {
                    self.shared.faults.report(&delivery.queue, &reason);
                    let shared = Arc::clone(&self.shared);
                    tokio::spawn(async move {
                        tokio::time::sleep(AGAIN).await;
                        shared.end(delivery, End::Release, None, "", "handed_back").await;
                    });
                }
            }
        }
    }
}

impl Shared {
    /// A message that Redis keeps until its turn: no lease of ours any more.
    fn parked(&self, delivery: &Delivery) {
        self.events.received(&delivery.message, true);
        let task = &delivery.message.task;
        let is_known = self.tasks.get(task).is_some();
        self.metrics
            .tasks
            .ended(&delivery.queue, if is_known { task } else { "" }, "parked");
        self.leases.remove(std::iter::once(&delivery.lease.lid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_names_or_are_for_all() {
        let named: Named<Rate> = "mail=10/s/2".parse().unwrap();
        assert_eq!(named.name.as_deref(), Some("mail"));
        assert_eq!(named.value, "10/1000/2".parse().unwrap());
        assert_eq!("7".parse::<Named<u64>>().unwrap(), Named { name: None, value: 7 });
        for bad in ["", "=10/s", "mail=", "mail=often"] {
            assert!(bad.parse::<Named<Rate>>().is_err(), "{bad:?}");
        }
    }
}
