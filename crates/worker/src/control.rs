//! Remote control: `celery inspect`, `celery control` and Flower's buttons.
//!
//! # Guarantees
//! A request that cannot be read, is for somebody else or asks for what this worker does not do harms nothing; the last
//! is answered with `{"error": reason}`. No request waits for a task, and no task for a request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use umbel_broker::{ControlChannel, is_own_question};
use umbel_protocol::control::{Command, Request, answer, signal};
use umbel_protocol::json::Json;
use umbel_protocol::result;
use umbel_telemetry::chain;

use crate::app::Shared;
use crate::command;
use crate::inspect;
use crate::queues::Wanted;
use crate::results::{self, Kind, is_wanted};
use crate::revoked::REMEMBERED;
use crate::slots::MOST as MOST_SLOTS;

/// A shutdown may be so old beyond its expiry.
const LATE: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);
/// How often a worker that hears requests asks whether it has missed one that revokes.
const REVOKED_ASKED: Duration = Duration::from_secs(30);
/// Ids in one request that count.
const MOST_IDS: usize = umbel_broker::REVOKED_KEPT;
/// Queues of one worker.
const MOST_QUEUES: usize = 1000;

/// Answers requests for ever. `quiet` is what `shutdown` cancels.
pub(crate) async fn run(shared: Arc<Shared>, quiet: CancellationToken, backoff: Duration) {
    let mut is_warned = false;
    loop {
        match ControlChannel::connect(&shared.config.broker).await {
            Ok(channel) => {
                is_warned = false;
                bind(&shared).await;
                listen(&shared, channel, &quiet).await;
                tracing::debug!("remote control is away");
            }
            Err(err) => {
                if !is_warned {
                    tracing::warn!(error = %chain(&err), "no remote control yet");
                }
                is_warned = true;
            }
        }
        tokio::time::sleep(backoff.mul_f64(0.2 + 0.3 * crate::random())).await;
    }
}

/// Binds the queues that have an exchange of another name; the others are reached by their own.
async fn bind(shared: &Shared) {
    for queue in shared.queues.all() {
        if queue.exchange != queue.name
            && let Err(err) = shared
                .broker
                .bind(&queue.exchange, &queue.exchange_type, &queue.routing_key, &queue.name)
                .await
        {
            tracing::warn!(queue = %queue.name, error = %chain(&err), "not bound");
        }
    }
}

/// Until the connection ends. Subscribed first, ids read after: none is missed.
async fn listen(shared: &Arc<Shared>, mut channel: ControlChannel, quiet: &CancellationToken) {
    let mut known = None;
    let mut ask = tokio::time::interval(REVOKED_ASKED);
    ask.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            payload = channel.next() => match payload {
                Some(payload) => serve(shared, &payload, quiet).await,
                None => return,
            },
            _ = ask.tick() => {
                if let Err(err) = refresh(shared, &mut known).await {
                    known = None;
                    tracing::debug!(error = %chain(&err), "asking for revoked ids again");
                }
            }
        }
    }
}

async fn refresh(shared: &Shared, known: &mut Option<u64>) -> Result<(), umbel_broker::Error> {
    let count = shared.broker.revoked_count().await?;
    if *known != Some(count) {
        let now = shared.clock.now();
        shared.revoked.refresh(&shared.broker, now).await?;
        // What begins after this look knows already that it is revoked.
        let ids = shared.broker.terminated(&shared.leases.wanted(), now).await?;
        let ended = shared.leases.terminate(&ids, signal::DEFAULT);
        if !ended.is_empty() {
            tracing::info!(tasks = ?ended, "told to stop them while nobody listened");
        }
        *known = Some(count);
    }
    Ok(())
}

async fn serve(shared: &Arc<Shared>, payload: &[u8], quiet: &CancellationToken) {
    let request = match Request::parse(payload) {
        Ok(request) => request,
        Err(reason) => return tracing::debug!(%reason, "control request not read"),
    };
    shared.events.heard(request.clock);
    let node = &shared.config.name;
    match request.addressed_to(node) {
        Ok(true) => {}
        Ok(false) => return,
        Err(reason) => return tracing::debug!(%reason, "control request for nobody"),
    }
    // Celery heeds no expiry. To answer late harms nobody, but a shutdown of yesterday is not meant for today's worker.
    // Clocks of clients differ from Redis', so there is some patience.
    if request.method == "shutdown" && request.is_expired(shared.clock.timestamp() - LATE) {
        return tracing::info!(method = %request.method, "control request came too late");
    }
    tracing::debug!(method = %request.method, "control request");
    let answer = match Command::of(&request) {
        Ok(command) => obey(shared, &request, command, quiet).await,
        Err(refusal) => match shared.tasks.command(&request.method) {
            None => Some(refusal.answer()),
            // It may take its time: the next request does not wait for it.
            Some(own) => {
                let shared = Arc::clone(shared);
                tokio::spawn(async move {
                    let said = command::run(own, request.arguments.clone()).await;
                    reply(&shared, &request, Some(said)).await;
                });
                return;
            }
        },
    };
    reply(shared, &request, answer).await;
}

async fn reply(shared: &Shared, request: &Request, answer: Option<Json>) {
    let node = &shared.config.name;
    let reply = answer.and_then(|answer| {
        let tag = uuid::Uuid::new_v4().to_string();
        request.reply(node, &answer, shared.events.lamport(), &tag)
    });
    if let Some(reply) = reply
        && let Err(err) = shared.broker.answer(&reply).await
    {
        tracing::debug!(error = %chain(&err), method = %request.method, "control request not answered");
    }
}

/// Does what is asked for; the answer, if there is one.
async fn obey(shared: &Arc<Shared>, request: &Request, command: Command, quiet: &CancellationToken) -> Option<Json> {
    Some(match command {
        Command::Ping => answer::pong(),
        Command::Clock => answer::clock(shared.events.lamport()),
        Command::Active { safe } => inspect::active(shared, safe),
        Command::Reserved => or_error(inspect::reserved(shared).await),
        Command::Scheduled => or_error(inspect::scheduled(shared).await),
        Command::QueryTask { ids } => or_error(inspect::query(shared, &ids).await),
        Command::Revoked => answer::names(shared.revoked.ids(shared.clock.now())),
        Command::Registered { items } => inspect::registered(shared, &items),
        Command::Stats => inspect::stats(shared).to_json(),
        Command::Conf { .. } => inspect::conf(shared).to_json(),
        Command::ActiveQueues if request.ticket.as_deref().is_some_and(is_own_question) => answer::tasks(&[], false),
        Command::ActiveQueues => inspect::queues(shared),
        Command::Report => answer::ok(&inspect::report(shared)),
        Command::Revoke {
            mut ids,
            terminate,
            signal: asked,
        } => {
            let Some(signum) = signal::number(asked.as_deref()) else {
                return Some(answer::unknown_signal(asked.as_deref().unwrap_or_default()));
            };
            ids.truncate(MOST_IDS);
            ids.dedup();
            if let Err(err) = revoke(shared, &ids).await {
                return Some(answer::error(&format!("not stored for other workers: {}", chain(&err))));
            }
            mark(shared, &ids).await;
            if terminate {
                answer::terminated(&shared.leases.terminate(&ids, signum))
            } else {
                answer::flagged(&ids)
            }
        }
        Command::RevokeByStamps {
            stamps,
            terminate,
            signal: asked,
        } => {
            let Some(signum) = signal::number(asked.as_deref()) else {
                return Some(answer::unknown_signal(asked.as_deref().unwrap_or_default()));
            };
            let headers = request.arguments.get("headers").unwrap_or_else(Json::empty_object);
            revoke_stamps(shared, &stamps, &headers, terminate.then_some(signum)).await
        }
        Command::TimeLimit { task, hard, soft } => {
            if shared.tasks.set_limits(&task, hard, soft) {
                answer::time_limit_set()
            } else {
                answer::unknown_task()
            }
        }
        Command::RateLimit { task, rate } => limit_rate(shared, &task, &rate),
        Command::PoolGrow { .. } if shared.autoscale.bounds().is_some() => answer::pool_is_autoscaled("pool_grow"),
        Command::PoolShrink { .. } if shared.autoscale.bounds().is_some() => answer::pool_is_autoscaled("pool_shrink"),
        Command::PoolGrow { by } if shared.slots.grow(by as usize) => answer::pool_grows(),
        Command::PoolGrow { .. } => answer::error(&format!("ValueError('a worker has at most {MOST_SLOTS} slots')")),
        Command::PoolShrink { by } if shared.slots.shrink(by as usize) => answer::pool_shrinks(),
        Command::PoolShrink { .. } => answer::error("ValueError('a worker has at least one slot')"),
        Command::Autoscale { max, min } => {
            let count = |bound: Option<u32>| bound.map(|bound| bound as usize);
            match shared.autoscale.change(count(max), count(min)) {
                Some(bounds) => answer::autoscaled(bounds.max, bounds.min),
                None => answer::not_autoscaled(),
            }
        }
        Command::PoolRestart => answer::no_restarts(),
        Command::EnableEvents => answer::events_enabled(shared.events.switch(true)),
        Command::DisableEvents => answer::events_disabled(shared.events.switch(false)),
        Command::Hello { from_node, mut revoked } => {
            if from_node == shared.config.name {
                return None;
            }
            revoked.truncate(MOST_IDS);
            if let Err(err) = revoke(shared, &revoked).await {
                tracing::debug!(error = %chain(&err), "revoked ids of a new worker not stored");
            }
            answer::hello(shared.revoked.ids(shared.clock.now()), shared.events.lamport())
        }
        Command::AddConsumer {
            queue,
            exchange,
            exchange_type,
            routing_key,
        } => {
            let wanted = Wanted {
                queue,
                exchange,
                exchange_type,
                routing_key,
            };
            add_consumer(shared, wanted).await
        }
        Command::CancelConsumer { queue } => {
            if shared.queues.cancel(&queue, &shared.config.name) {
                tracing::info!(queue = %queue, "told to serve it no more");
            }
            answer::consumer_cancelled(&queue)
        }
        Command::Heartbeat => {
            shared.events.beat();
            return None;
        }
        Command::Shutdown => {
            tracing::info!("told to stop by remote control");
            quiet.cancel();
            return None;
        }
        // Celery 5.7's workers die of the events of an election; nothing in Celery starts one.
        Command::Election => return None,
    })
}

fn or_error(answer: Result<Json, umbel_broker::Error>) -> Json {
    answer.unwrap_or_else(|err| answer::error(&chain(&err).to_string()))
}

/// Here at once, and in Redis for everybody else and for after a restart.
async fn revoke(shared: &Shared, ids: &[String]) -> Result<(), umbel_broker::Error> {
    if ids.is_empty() {
        return Ok(());
    }
    let now = shared.clock.now();
    shared.revoked.add(ids.iter().cloned(), now);
    shared.broker.revoke(ids, now, now + REMEMBERED.as_secs_f64()).await
}

/// REVOKED as the result of what nobody has begun, so that callers need not wait until its message is taken. Whoever
/// takes it stores the same: a failure here loses nothing.
async fn mark(shared: &Shared, ids: &[String]) {
    if !is_wanted(shared.config.results.store, None, None, Kind::Failure) {
        return;
    }
    let runs = shared.leases.runs();
    let meta = result::Meta {
        done_at: shared.clock.timestamp(),
        ..result::Meta::default()
    };
    let documents: Vec<_> = ids
        .iter()
        .filter(|id| runs.iter().all(|run| run.message.id != **id))
        .map(|id| shared.stored(id, result::revoked(id, "revoked", &meta), false))
        .collect();
    match shared.store.store_unless_begun(&documents, results::state).await {
        Ok(stored) => tracing::debug!(stored, "stored as revoked"),
        Err(err) => tracing::warn!(error = %chain(&err), "not stored as revoked before their messages are taken"),
    }
}

/// Flags stamps, and ends the runs that have one of them when asked to.
async fn revoke_stamps(shared: &Shared, stamps: &[(String, Vec<Json>)], headers: &Json, signum: Option<u8>) -> Json {
    let pairs = stamps
        .iter()
        .flat_map(|(name, values)| values.iter().map(|value| (name.clone(), value.clone())));
    let pairs: Vec<(String, Json)> = pairs.take(MOST_IDS).collect();
    let now = shared.clock.now();
    shared.revoked.add_stamps(&pairs, now);
    if !pairs.is_empty()
        && let Err(err) = shared
            .broker
            .revoke_stamps(&pairs, now, now + REMEMBERED.as_secs_f64())
            .await
    {
        return answer::error(&format!("not stored for other workers: {}", chain(&err)));
    }
    let Some(signum) = signum else {
        return answer::flagged_stamps(headers);
    };
    let (ids, stopped) = inspect::stamped(shared, &pairs);
    shared.leases.terminate(&ids, signum);
    answer::terminated_stamps(headers, &stopped)
}

fn limit_rate(shared: &Shared, task: &str, rate: &str) -> Json {
    if !rate.is_empty() && umbel_protocol::control::per_second(rate).is_none() {
        return answer::invalid_rate(rate);
    }
    let Some(job) = shared.tasks.get(task) else {
        return answer::unknown_task();
    };
    tracing::info!(task.name = task, rate, "rate limit changed");
    shared.rates.set(job.name(), rate, Instant::now());
    answer::rate_limit_set(rate)
}

async fn add_consumer(shared: &Shared, wanted: Wanted) -> Json {
    let is_bound = wanted.exchange.is_some() || wanted.routing_key.is_some();
    let asked = wanted.queue.clone();
    let queue = match wanted.check(shared.broker.keys(), &shared.config.name) {
        Ok(queue) => queue,
        Err(reason) => return answer::error(&format!("ValueError({})", Json::string(&reason).repr())),
    };
    let served = shared.queues.names();
    let is_served = served.contains(&queue.name);
    if !is_served && served.len() >= MOST_QUEUES {
        return answer::error(&format!("ValueError('a worker serves at most {MOST_QUEUES} queues')"));
    }
    // Bound first: what is published from the answer on is not lost.
    if (is_bound || !is_served)
        && queue.exchange_type != "fanout" // Nothing is bound to it in Redis: its publications are heard.
        && let Err(err) = shared
            .broker
            .bind(&queue.exchange, &queue.exchange_type, &queue.routing_key, &queue.name)
            .await
    {
        return answer::error(&format!("not bound: {}", chain(&err)));
    }
    let answer = answer::consumer_added(&asked);
    if !is_served {
        tracing::info!(queue = %queue.name, exchange = %queue.exchange, "told to serve it, too");
    }
    shared.queues.add(queue);
    answer
}
