//! `umbel queue ls`.

use std::process::ExitCode;

use jiff::Timestamp;
use kube::ResourceExt as _;
use serde_json::json;
use umbel_api::TaskQueue;
use umbel_api::names::queue_condition::{BROKER_REACHABLE, READY};
use umbel_api::taskqueue::{Depth, Step};
use umbel_broker::{Broker, QueueDepth};

use crate::args::{Global, QueueLs};
use crate::broker;
use crate::home::{Home, objects};
use crate::output::{self, Column, Row, ago};

/// What is known of a queue now.
struct Seen {
    namespace: String,
    name: String,
    queue: String,
    ready: String,
    depth: Option<Depth>,
    /// Known where the broker was asked.
    is_paused: Option<bool>,
    /// Seconds since the depth was taken.
    age: Option<i64>,
    message: String,
    is_unanswered: bool,
}

pub(crate) async fn run(global: &Global, ls: &QueueLs) -> anyhow::Result<ExitCode> {
    let seen = if global.server.is_given() {
        on_broker(&broker::connect(&broker::named_broker(global)?).await?, &ls.names).await?
    } else {
        of_objects(global, &Home::open(global).await?, ls).await?
    };
    let columns = [
        Column("NAMESPACE", !ls.all_namespaces),
        Column("NAME", false),
        Column("QUEUE", true),
        Column("READY", false),
        Column("WAITING", false),
        Column("IN-FLIGHT", false),
        Column("DELAYED", false),
        Column("DEAD", false),
        Column("QUARANTINED", true),
        Column("PAUSED", false),
        Column("SEEN", false),
        Column("MESSAGE", true),
    ];
    // A broker that was asked and did not answer is a failure, though the others are listed.
    let is_whole = seen.iter().all(|one| !one.is_unanswered);
    output::list(global.output, &columns, seen.into_iter().map(row).collect())?;
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn row(seen: Seen) -> Row {
    let Seen {
        namespace,
        name,
        queue,
        ready,
        depth,
        is_paused,
        age,
        message,
        is_unanswered: _,
    } = seen;
    let number = |of: fn(&Depth) -> u64| {
        depth
            .as_ref()
            .map_or_else(|| "-".to_owned(), |depth| of(depth).to_string())
    };
    let cells = vec![
        namespace.clone(),
        name.clone(),
        queue.clone(),
        ready.clone(),
        number(|depth| depth.waiting),
        number(|depth| depth.in_flight),
        number(|depth| depth.delayed),
        number(|depth| depth.dead),
        number(|depth| depth.quarantined),
        is_paused.map_or_else(|| "-".to_owned(), |is_paused| is_paused.to_string()),
        age.map_or_else(|| "-".to_owned(), ago),
        message.clone(),
    ];
    let value = json!({"namespace": namespace, "name": name, "queue": queue, "ready": ready, "depth": depth,
        "paused": is_paused, "ageSeconds": age, "message": message});
    Row {
        name: format!("taskqueue.umbel.dev/{name}"),
        cells,
        value,
    }
}

/// Queues on a broker, by the names that producers use.
async fn on_broker(broker: &Broker, names: &[String]) -> anyhow::Result<Vec<Seen>> {
    let names = if names.is_empty() {
        vec!["celery".to_owned()]
    } else {
        names.to_vec()
    };
    let sample = broker.depths(&names).await?;
    let mut seen = Vec::with_capacity(names.len());
    for (name, depth) in names.into_iter().zip(sample.queues) {
        let is_paused = Some(broker.queue_policy(&name).await?.is_paused);
        let (depth, message) = match depth {
            Ok(depth) => (Some(written(&depth)), String::new()),
            Err(fault) => (None, format!("key {}: {}", fault.key, fault.reason)),
        };
        let ready = if depth.is_some() { "-" } else { "False" }.to_owned();
        let age = depth.is_some().then_some(0);
        seen.push(Seen {
            namespace: String::new(),
            queue: name.clone(),
            name,
            ready,
            depth,
            is_paused,
            age,
            message,
            is_unanswered: age.is_none(),
        });
    }
    Ok(seen)
}

fn written(depth: &QueueDepth) -> Depth {
    Depth {
        waiting: depth.waiting + depth.suspect,
        by_priority: depth
            .by_priority
            .iter()
            .map(|&(step, waiting)| Step { step, waiting })
            .collect(),
        in_flight: depth.in_flight,
        delayed: depth.delayed,
        dead: depth.dead,
        quarantined: depth.quarantine,
    }
}

async fn of_objects(global: &Global, home: &Home, ls: &QueueLs) -> anyhow::Result<Vec<Seen>> {
    let queues: Vec<TaskQueue> = objects(home, &ls.names, ls.all_namespaces).await?;
    let mut seen = Vec::with_capacity(queues.len());
    for queue in queues {
        let mut one = from_status(&queue, Timestamp::now());
        if ls.live {
            match live(global, home, &queue).await {
                Ok((depth, is_paused)) => {
                    (one.depth, one.is_paused, one.age) = (Some(depth), Some(is_paused), Some(0));
                }
                Err(err) => {
                    (one.depth, one.age) = (None, None);
                    one.is_unanswered = true;
                    one.message = format!("{err:#}");
                    output::say(&format!("TaskQueue {}: {err:#}", one.name));
                }
            }
        }
        seen.push(one);
    }
    Ok(seen)
}

async fn live(global: &Global, home: &Home, queue: &TaskQueue) -> anyhow::Result<(Depth, bool)> {
    let broker = broker::of_object(global, home, queue).await?;
    let depth = broker.depths(&[queue.queue_name()]).await?.queues.pop();
    match depth {
        Some(Ok(depth)) => {
            let policy = broker.queue_policy(&queue.queue_name()).await?;
            Ok((written(&depth), policy.is_paused))
        }
        Some(Err(fault)) => anyhow::bail!("key {}: {}", fault.key, fault.reason),
        None => anyhow::bail!("the broker said nothing about the queue"),
    }
}

fn from_status(queue: &TaskQueue, now: Timestamp) -> Seen {
    let status = queue.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    // The worst news: what should hold and does not, then what should not hold and does.
    let is_good = |kind: &str| matches!(kind, READY | BROKER_REACHABLE);
    let mut conditions: Vec<_> = status.conditions.iter().collect();
    conditions.sort_by_key(|condition| !is_good(&condition.type_));
    let message = conditions
        .into_iter()
        .find(|condition| (condition.status == "True") != is_good(&condition.type_));
    Seen {
        namespace: queue.namespace().unwrap_or_default(),
        name: queue.name_any(),
        queue: queue.queue_name(),
        ready: ready.map_or_else(|| "-".to_owned(), |condition| condition.status.clone()),
        depth: status.depth,
        is_paused: None,
        age: status.last_sample_time.map(|time| now.as_second() - time.0.as_second()),
        message: message.map(|condition| condition.message.clone()).unwrap_or_default(),
        is_unanswered: false,
    }
}
