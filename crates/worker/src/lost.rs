//! Messages that end without a run of ours: given up after the deaths of their workers, or not to be read.
//!
//! # Guarantees
//! What follows such an end is what follows a failed run: FAILURE for who waits, its chord's part, its errbacks, FAILURE
//! for the rest of its chain, the dead letter or the quarantine. It is settled under a lease, as any delivery: a sweeper
//! that dies before leaves the message to the next one, and nothing of it is said twice.

use std::sync::Arc;
use std::time::Instant;

use umbel_broker::{End, GivenUp, Overdue, Settlement};
use umbel_protocol::canvas::Aftermath;
use umbel_protocol::message::{Limits, Malformed, NewTask, TaskMessage};
use umbel_protocol::result;

use crate::app::Shared;
use crate::canvas;
use crate::job::Failure;
use crate::results::{Kind, is_wanted};
use crate::run::Delivery;
use crate::settle::Ended;

/// Why a task that was acknowledged before its run comes to nothing.
const EARLY: &str = "the worker was lost while the task ran; it was acknowledged early and is not run again";

/// What Redis keeps of a message that is acknowledged before its run: all that its end needs, should its worker die.
/// Its arguments are not kept: it is not run again.
pub(crate) fn stub(shared: &Shared, message: &TaskMessage) -> Vec<u8> {
    let stub = NewTask {
        id: message.id.clone(),
        task: message.task.clone(),
        embed: message.embed.clone(),
        queue: message.queue.clone(),
        priority: message.priority,
        root_id: message.root_id.clone(),
        parent_id: message.parent_id.clone(),
        group: message.group.clone(),
        group_index: message.group_index,
        ignore_result: message.ignore_result,
        headers: ["umbel_run", "umbel_unique"]
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), message.header(name)?)))
            .collect(),
        ..NewTask::default()
    };
    // No larger than the message that it stands for, or little.
    let sealed = shared.config.codec.outgoing(&stub, None, None, usize::MAX);
    sealed.unwrap_or_else(|_| stub.encode())
}

/// Ends a message that nobody is to run any more, under the lease that this sweeper was given.
pub(crate) async fn give_up(shared: Arc<Shared>, overdue: Overdue, given: GivenUp, sent: Instant) {
    let GivenUp {
        at: _,
        lid,
        micros,
        deaths,
    } = given;
    let lease = shared.leases.insert_one(&lid, (0, micros), sent, shared.config.lease);
    let queue: Arc<str> = shared.broker.keys().queue_of(&overdue.list).into();
    let raw = overdue.raw.strip_prefix(b"\0").unwrap_or(&overdue.raw);
    let (why, reason) = if deaths == 0 {
        (EARLY, EARLY.to_owned())
    } else {
        (
            "the task killed its worker each time it ran",
            format!("killed its worker {deaths} times"),
        )
    };
    let Some(message) = readable(&shared, raw) else {
        tracing::error!(queue = %queue, reason = %reason, "message without a name given up: dead letter");
        let settlement = bare(lid, String::new(), String::new(), End::Bury { reason });
        return shared.send(Ended::of(queue, settlement)).await;
    };
    tracing::error!(task.id = %message.id, task.name = %message.task, queue = %queue, deaths, "given up: its worker was lost");
    let delivery = Delivery {
        lease,
        queue,
        raw: Arc::new(raw.to_vec()),
        message: Arc::new(message),
        is_suspect: deaths > 0,
        is_early: false, // There are no bytes but those under the lease: of a stub nothing is kept.
        sends: Aftermath::default(),
    };
    let failure = Failure::raise("billiard.exceptions", "WorkerLostError", &[why]);
    shared.bury(delivery, &failure, reason).await;
}

/// Puts a message that cannot be run into the quarantine, and tells all who wait for it as far as it names them.
pub(crate) async fn quarantine(shared: &Arc<Shared>, delivery: Unread, malformed: &Malformed) {
    let Unread { lease, queue, raw } = delivery;
    let reason = malformed.to_string();
    tracing::error!(queue = %queue, task.id = malformed.id.as_deref().unwrap_or(""), reason = %reason, "message put in the quarantine");
    let failure = result::Failure::new("kombu.exceptions", "DecodeError", &reason);
    let end = End::Quarantine { reason };
    let limits = Limits {
        bytes: shared.config.max_message,
        ..Limits::default()
    };
    if let Some(message) = shared.config.codec.salvage(&raw, &limits) {
        let aftermath = canvas::after_failure(shared, &message, &failure, None);
        let result = shared.document(&message, Kind::Failure, &[], |ctx| {
            result::failure(ctx.id, &failure, None, &ctx.meta)
        });
        let delivery = Delivery {
            lease,
            queue,
            raw,
            message: Arc::new(message),
            is_suspect: false,
            is_early: false,
            sends: Aftermath::default(),
        };
        return shared
            .end_workflow(delivery, end, result, aftermath, ("failed", "quarantined"))
            .await;
    }
    shared.metrics.tasks.ended(&queue, "", "quarantined");
    let id = malformed.id.clone().unwrap_or_default();
    let is_told = !id.is_empty() && is_wanted(shared.config.results.store, None, None, Kind::Failure);
    let result = is_told.then(|| {
        let meta = result::Meta {
            done_at: shared.clock.timestamp(),
            ..result::Meta::default()
        };
        shared.stored(&id, result::failure(&id, &failure, None, &meta), false)
    });
    let task = malformed.task.clone().unwrap_or_default();
    let settlement = Settlement {
        result,
        ..bare(lease.lid, id, task, end)
    };
    shared.send(Ended::of(queue, settlement)).await;
}

/// A delivery whose message cannot be read.
pub(crate) struct Unread {
    pub(crate) lease: crate::lease::Lease,
    pub(crate) queue: Arc<str>,
    pub(crate) raw: Arc<Vec<u8>>,
}

/// The message, or as much of it as names it.
fn readable(shared: &Shared, raw: &[u8]) -> Option<TaskMessage> {
    let limits = Limits {
        bytes: usize::MAX, // It was taken, so it is as large as it may be.
        ..Limits::default()
    };
    let codec = &shared.config.codec;
    codec
        .decode(raw, &limits, &shared.config.zone)
        .ok()
        .or_else(|| codec.salvage(raw, &limits))
}

fn bare(lid: Arc<str>, id: String, task: String, end: End) -> Settlement {
    Settlement {
        lid,
        id,
        task,
        end,
        result: None,
        run: None,
        outcome: "failed",
        follow_ups: Vec::new(),
    }
}
