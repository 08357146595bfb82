//! Remote control: `celery inspect`, `celery control` and Flower's buttons.
//!
//! # Guarantees
//! A request that cannot be read, is for somebody else or asks for what this worker does not do harms nothing; the last
//! is answered with `{"error": reason}`. No request waits for a task, and no task for a request.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use umbel_broker::{ControlChannel, is_own_question};
use umbel_protocol::control::{Command, Request, answer};
use umbel_protocol::json::Json;
use umbel_telemetry::chain;

use crate::app::Shared;
use crate::inspect;
use crate::revoked::REMEMBERED;

/// How often a worker that hears requests asks whether it has missed one that revokes.
const REVOKED_ASKED: Duration = Duration::from_secs(30);
/// Ids in one request that count.
const MOST_IDS: usize = 10_000;
/// Slots of a worker, as on the command line.
const MOST_SLOTS: usize = 100_000;

/// Answers requests for ever. `quiet` is what `shutdown` cancels.
pub(crate) async fn run(shared: Arc<Shared>, quiet: CancellationToken, backoff: Duration) {
    let mut is_warned = false;
    loop {
        match ControlChannel::connect(&shared.config.broker).await {
            Ok(channel) => {
                is_warned = false;
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
        shared.revoked.refresh(&shared.broker, shared.clock.now()).await?;
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
    tracing::debug!(method = %request.method, "control request");
    let answer = match Command::of(&request) {
        Ok(command) => obey(shared, &request, command, quiet).await,
        Err(refusal) => Some(refusal.answer()),
    };
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
        Command::Active { safe } => or_error(inspect::active(shared, safe).await),
        // Never more is taken than there are slots for: nothing waits in the worker.
        Command::Reserved => answer::tasks(&[], false),
        Command::Scheduled => or_error(inspect::scheduled(shared).await),
        Command::QueryTask { ids } => or_error(inspect::query(shared, &ids).await),
        Command::Revoked => answer::names(shared.revoked.ids(shared.clock.now())),
        Command::Registered { .. } => answer::names(shared.tasks.names()),
        Command::Stats => inspect::stats(shared).to_json(),
        Command::Conf { .. } => inspect::conf(shared).to_json(),
        Command::ActiveQueues if request.ticket.as_deref().is_some_and(is_own_question) => answer::tasks(&[], false),
        Command::ActiveQueues => inspect::queues(shared),
        Command::Report => answer::ok(&inspect::report(shared)),
        Command::Revoke {
            mut ids,
            terminate,
            signal: _,
        } => {
            ids.truncate(MOST_IDS);
            if let Err(err) = revoke(shared, &ids).await {
                return Some(answer::error(&format!("not stored for other workers: {}", chain(&err))));
            }
            // Flower writes 1 for true.
            let is_one = request
                .arguments
                .get("terminate")
                .is_some_and(|given| given.as_str() == "1");
            if terminate || is_one {
                answer::terminated(&shared.leases.terminate(&ids))
            } else {
                answer::flagged(&ids)
            }
        }
        Command::TimeLimit { task, hard, soft } => {
            if shared.tasks.set_limits(&task, hard, soft) {
                answer::time_limit_set()
            } else {
                answer::unknown_task()
            }
        }
        Command::RateLimit { task, .. } if shared.tasks.get(&task).is_none() => answer::unknown_task(),
        Command::PoolGrow { by } => grow(shared, by),
        Command::PoolShrink { by } => shrink(shared, by),
        Command::Autoscale { .. } => answer::not_autoscaled(),
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
        Command::RateLimit { .. } => answer::error("rate limits are not supported by this worker"),
        Command::RevokeByStamps { .. } => answer::error("revoking by stamps is not supported by this worker"),
        Command::AddConsumer { .. } | Command::CancelConsumer { .. } => {
            answer::error("the queues of this worker are set when it starts")
        }
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

fn grow(shared: &Shared, by: u32) -> Json {
    let by = by as usize;
    let total = shared.slots_total.load(Ordering::Relaxed);
    if total.saturating_add(by) > MOST_SLOTS {
        return answer::error(&format!("ValueError('a worker has at most {MOST_SLOTS} slots')"));
    }
    shared.slots_total.fetch_add(by, Ordering::Relaxed);
    shared.slots.add_permits(by);
    answer::pool_grows()
}

/// Slots that are free go at once, the others when their runs end.
fn shrink(shared: &Arc<Shared>, by: u32) -> Json {
    let by = by as usize;
    let total = shared.slots_total.load(Ordering::Relaxed);
    if by >= total {
        return answer::error("ValueError('a worker has at least one slot')");
    }
    shared.slots_total.fetch_sub(by, Ordering::Relaxed);
    let owed = by - shared.slots.forget_permits(by);
    let slots = Arc::clone(&shared.slots);
    tokio::spawn(async move {
        for _ in 0..owed {
            match slots.acquire().await {
                Ok(slot) => slot.forget(),
                Err(_) => return,
            }
        }
    });
    answer::pool_shrinks()
}
