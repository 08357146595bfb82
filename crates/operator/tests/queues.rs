//! TaskQueues: how they fare, what may wait, what goes with them, on a real API server, a real Redis and a real worker.

mod common;

use std::time::Duration;

use common::{Kubelet, LONG, Stage};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use redis::AsyncCommands;
use serde_json::{Value, json};
use umbel_api::condition::find;
use umbel_api::taskqueue::Step;
use umbel_api::{TaskQueue, TaskQueueStatus};
use umbel_protocol::json::Json;
use umbel_protocol::message::NewTask;
use umbel_testkit::{CeleryOptions, CeleryWorker, Process, eventually, eventually_some};

const OURS: &str = "umbel.dev/v1alpha1";

async fn object(stage: &Stage, name: &str) -> TaskQueue {
    stage.queues().get(name).await.expect("the queue is there")
}

async fn status(stage: &Stage, name: &str) -> TaskQueueStatus {
    object(stage, name).await.status.unwrap_or_default()
}

async fn say(stage: &Stage, name: &str, spec: Value) {
    let mut all = json!({ "broker": { "redis": { "urlSecretRef": { "name": "redis", "key": "url" } } } });
    let fields = all.as_object_mut().expect("an object");
    fields.extend(spec.as_object().expect("an object").clone());
    stage
        .apply(OURS, "TaskQueue", "taskqueues", name, json!({ "spec": all }))
        .await;
}

async fn says(stage: &Stage, name: &str, kind: &str, expected: (&str, &str)) {
    eventually(LONG, &format!("{name}: {kind} is {expected:?}"), async || {
        find(&status(stage, name).await.conditions, kind)
            .is_some_and(|found| (found.status.as_str(), found.reason.as_str()) == expected)
    })
    .await;
}

async fn has_event(stage: &Stage, reason: &str) {
    eventually(LONG, &format!("an Event {reason}"), async || {
        stage.events().await.iter().any(|event| event.starts_with(reason))
    })
    .await;
}

fn message(queue: &str, id: &str, headers: Vec<(String, Json)>) -> Vec<u8> {
    let task = NewTask {
        id: id.into(),
        task: "umbel.echo".into(),
        args: Json::of(&[id]),
        queue: queue.into(),
        headers,
        ..NewTask::default()
    };
    task.encode()
}

fn messages(queue: &str, ids: std::ops::Range<usize>) -> Vec<Vec<u8>> {
    ids.map(|id| message(queue, &id.to_string(), Vec::new())).collect()
}

/// A worker without a pool.
fn worker(stage: &Stage, queue: &str) -> Process {
    let url = stage.redis.url();
    let args = [
        "--standalone",
        "--redis-url",
        &url,
        "--queue",
        queue,
        "--concurrency",
        "3",
    ];
    Process::start(&common::worker(), args, &[])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_tells_its_pace_its_age_and_who_takes_its_messages() {
    let stage = Stage::start().await;
    let _operator = stage.operator(&[], &[]);
    say(&stage, "pace", json!({ "paused": true })).await;
    stage.pool("pace", 1, json!({ "maxReplicas": 0 })).await;
    says(&stage, "pace", "Paused", ("True", "SpecPaused")).await;
    let sent = jiff::Timestamp::now().as_second() - 400;
    let header = ("umbel_sent_at".to_owned(), Json::of(&(sent as f64)));
    stage
        .broker
        .publish("pace", 0, &[message("pace", "old", vec![header])])
        .await
        .expect("published");
    stage
        .broker
        .publish("pace", 3, &messages("pace", 0..2))
        .await
        .expect("published");
    eventually(LONG, "what waits is told by step and age", async || {
        let status = status(&stage, "pace").await;
        let steps = [(0, 1), (3, 2), (6, 0), (9, 0)].map(|(step, waiting)| Step { step, waiting });
        status.depth.is_some_and(|depth| depth.by_priority == steps)
            && (status.oldest_waiting_seconds, status.oldest_waiting_is_lower_bound) == (Some(360), false)
    })
    .await;
    says(&stage, "pace", "Backlogged", ("True", "WaitsLong")).await;
    has_event(&stage, "WaitsLong").await;

    // By hand.
    let policy = stage.broker.resume("pace").await.expect("resumed");
    assert!(!policy.is_paused);
    says(&stage, "pace", "Paused", ("False", "ResumedByHand")).await;
    let _worker = worker(&stage, "pace");
    let celery = CeleryWorker::start(
        &stage.redis.url(),
        &CeleryOptions {
            queues: "pace",
            ..CeleryOptions::default()
        },
    )
    .await;
    stage.broker.pause("pace").await.expect("paused");
    says(&stage, "pace", "Paused", ("True", "SpecPaused")).await;
    say(&stage, "pace", json!({})).await;
    says(&stage, "pace", "Paused", ("False", "Consumed")).await;
    stage.broker.pause("pace").await.expect("paused");
    says(&stage, "pace", "Paused", ("True", "PausedByHand")).await;
    eventually(LONG, "its consumers are told", async || {
        status(&stage, "pace").await.consumers.is_some_and(|consumers| {
            consumers.pools == ["pace"]
                && (consumers.pods, consumers.slots, consumers.busy_slots) == (1, 3, 0)
                && consumers.foreign_workers == Some(1)
        })
    })
    .await;
    drop(celery);
    stage.broker.resume("pace").await.expect("resumed");

    // About ten a second come and go, some fail. Measured over at least ten seconds.
    let mut next = 100;
    let rates = eventually_some(LONG, "the pace is told", async || {
        stage
            .broker
            .publish("pace", 0, &messages("pace", next..next + 2))
            .await
            .expect("published");
        next += 2;
        status(&stage, "pace")
            .await
            .rates
            .filter(|rates| rates.succeeded > 0.0 && rates.started > 0.0 && rates.enqueued > 0.0)
    })
    .await;
    assert!(rates.failed.abs() < f64::EPSILON, "{rates:?}");
    says(&stage, "pace", "Backlogged", ("False", "KeepsUp")).await;
    // What is told is told of a queue at rest, too.
    eventually(LONG * 3, "all is quiet", async || {
        let status = status(&stage, "pace").await;
        status
            .rates
            .is_some_and(|rates| rates.started.abs() + rates.enqueued.abs() < f64::EPSILON)
            && status.oldest_waiting_seconds.is_none()
            && status.estimated_drain_seconds.is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_wait_is_a_dead_letter_and_says_so() {
    let stage = Stage::start().await;
    let _operator = stage.operator(&[], &[]);
    say(&stage, "full", json!({ "limits": { "maxLength": 5 } })).await;
    says(&stage, "full", "Ready", ("True", "Serving")).await;
    says(&stage, "full", "DeadLetterGrowing", ("False", "NoneCame")).await;
    let policy = eventually_some(LONG, "the bound is at the broker", async || {
        stage.broker.queue_policy("full").await.expect("answered").bound
    })
    .await;
    assert_eq!((policy.most, policy.on_full), (5, umbel_broker::OnFull::Refuse));
    // As Celery's clients send: nobody is asked.
    stage
        .broker
        .publish("full", 0, &messages("full", 0..8))
        .await
        .expect("published");
    eventually(LONG, "three are dead letters", async || {
        status(&stage, "full")
            .await
            .depth
            .is_some_and(|depth| (depth.waiting, depth.dead) == (5, 3))
    })
    .await;
    let mut connection = stage.redis.connection().await;
    let first: String = connection.lindex("full", -1).await.expect("a message");
    assert!(first.contains("\"id\": \"0\""), "the newest went: {first}");
    says(&stage, "full", "Backlogged", ("True", "Full")).await;
    says(&stage, "full", "DeadLetterGrowing", ("True", "LettersCame")).await;
    for reason in ["QueueOverflowed", "Full", "LettersCame"] {
        has_event(&stage, reason).await;
    }

    // A schedule waits for room, and goes on when there is some.
    let fields = json!({ "spec": {
        "schedule": { "every": "1s" }, "overlap": "Allow",
        "taskTemplate": { "task": "umbel.echo", "queueRef": { "name": "full" } },
    } });
    stage.apply(OURS, "PeriodicTask", "periodictasks", "tick", fields).await;
    has_event(&stage, "QueueFull").await;
    assert_eq!(connection.llen("full").await, Ok(5));
    say(
        &stage,
        "full",
        json!({ "limits": { "maxLength": 5, "onFull": "DropOldest" } }),
    )
    .await;
    eventually(LONG, "the oldest goes for each that comes", async || {
        let waiting: Vec<String> = connection.lrange("full", 0, -1).await.expect("a list");
        waiting.len() <= 6 && waiting.iter().all(|raw| raw.contains("umbel_order"))
    })
    .await;

    // No dead letters: gone, and counted.
    let off = json!({ "limits": { "maxLength": 5, "onFull": "DropOldest" }, "deadLetter": { "enabled": false } });
    say(&stage, "full", off).await;
    eventually(LONG, "what goes is counted", async || {
        let evicted = stage.broker.evicted().await.expect("answered");
        evicted
            .iter()
            .any(|one| (one.cause.as_str(), one.queue.as_str()) == ("disabled", "full"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k13_a_deleted_queue_keeps_its_messages_unless_it_is_told_to_purge() {
    let mut stage = Stage::start().await;
    let _operator = stage.operator(&[], &[]);
    say(&stage, "kept", json!({})).await;
    say(&stage, "purged", json!({ "deletionPolicy": "Purge" })).await;
    says(&stage, "purged", "Ready", ("True", "Serving")).await;
    says(&stage, "kept", "Ready", ("True", "Serving")).await;
    let mut connection = stage.redis.connection().await;
    for queue in ["kept", "purged"] {
        stage
            .broker
            .publish(queue, 0, &messages(queue, 0..3))
            .await
            .expect("published");
        stage
            .broker
            .publish(queue, 9, &messages(queue, 3..5))
            .await
            .expect("published");
        let dead = format!("umbel:dead:{queue}");
        let _: String = connection
            .xadd(dead, "*", &[("raw", "r"), ("id", "i")])
            .await
            .expect("added");
        let delayed = format!("umbel:delayed:{queue}");
        let member = format!("{}:{queue}1:tm", queue.len());
        let _: () = connection
            .zadd(delayed, member, 9_999_999_999_u64)
            .await
            .expect("added");
    }
    eventually(LONG, "its finalizer is set", async || {
        object(&stage, "purged").await.finalizers() == ["umbel.dev/queue"]
    })
    .await;
    assert!(object(&stage, "kept").await.finalizers().is_empty());
    for queue in ["kept", "purged"] {
        stage
            .queues()
            .delete(queue, &DeleteParams::default())
            .await
            .expect("deleted");
        eventually(LONG, "it is gone", async || {
            stage.queues().get_opt(queue).await.expect("answered").is_none()
        })
        .await;
    }
    for (command, key) in [
        ("LLEN", "purged"),
        ("LLEN", "purged\x06\x169"),
        ("ZCARD", "umbel:delayed:purged"),
        ("XLEN", "umbel:dead:purged"),
    ] {
        let left: u64 = redis::cmd(command)
            .arg(key)
            .query_async(&mut connection)
            .await
            .expect("answered");
        assert_eq!(left, 0, "{key}");
    }
    assert_eq!(connection.llen("kept").await, Ok(3));
    assert_eq!(connection.zcard("umbel:delayed:kept").await, Ok(1));
    has_event(&stage, "Purged").await;

    // While the broker is away the object stays, and may be let go.
    say(&stage, "stays", json!({ "deletionPolicy": "Purge" })).await;
    eventually(LONG, "its finalizer is set", async || {
        object(&stage, "stays").await.finalizers() == ["umbel.dev/queue"]
    })
    .await;
    stage.redis.kill();
    says(&stage, "stays", "Ready", ("False", "BrokerUnreachable")).await;
    stage
        .queues()
        .delete("stays", &DeleteParams::default())
        .await
        .expect("deleted");
    let change = Patch::Merge(json!({ "metadata": { "labels": { "looked": "at" } } }));
    stage
        .queues()
        .patch("stays", &PatchParams::default(), &change)
        .await
        .expect("it is there");
    eventually(LONG, "it says what lets it go", async || {
        let said = status(&stage, "stays").await;
        find(&said.conditions, "Ready").is_some_and(|ready| ready.message.contains("Retain lets it go"))
    })
    .await;
    let change = Patch::Merge(json!({ "spec": { "deletionPolicy": "Retain" } }));
    stage
        .queues()
        .patch("stays", &PatchParams::default(), &change)
        .await
        .expect("it is still there");
    eventually(LONG, "it is gone", async || {
        stage.queues().get_opt("stays").await.expect("answered").is_none()
    })
    .await;

    // Without the Secret nobody can purge any more.
    say(&stage, "orphan", json!({ "deletionPolicy": "Purge" })).await;
    eventually(LONG, "its finalizer is set", async || {
        object(&stage, "orphan").await.finalizers() == ["umbel.dev/queue"]
    })
    .await;
    let secrets: Api<Secret> = Api::namespaced(stage.client.clone(), common::NAMESPACE);
    secrets
        .delete("redis", &DeleteParams::default())
        .await
        .expect("deleted");
    stage
        .queues()
        .delete("orphan", &DeleteParams::default())
        .await
        .expect("deleted");
    eventually(LONG, "it is gone", async || {
        stage.queues().get_opt("orphan").await.expect("answered").is_none()
    })
    .await;
    has_event(&stage, "NotPurged").await;
}

/// A dump from before is restored: the same data set, but an earlier state of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_earlier_state_of_the_data_is_noticed() {
    let mut stage = Stage::start().await;
    let operator = stage.operator(&[], &[]);
    say(&stage, "back", json!({})).await;
    let worker = worker(&stage, "back");
    let fields = json!({ "spec": {
        "schedule": { "every": "1s" }, "overlap": "Allow",
        "taskTemplate": { "task": "umbel.echo", "queueRef": { "name": "back" } },
    } });
    stage.apply(OURS, "PeriodicTask", "periodictasks", "tick", fields).await;
    let mut connection = stage.redis.connection().await;
    let token = async |connection: &mut redis::aio::MultiplexedConnection| -> u64 {
        connection.get("umbel:fence").await.ok().flatten().unwrap_or(0)
    };
    eventually(LONG, "tokens are given out", async || token(&mut connection).await > 0).await;
    says(&stage, "back", "BrokerDataLost", ("False", "DataSetKept")).await;
    let _: () = redis::cmd("SAVE").query_async(&mut connection).await.expect("saved");
    let before = token(&mut connection).await;
    eventually(LONG, "time goes on", async || {
        token(&mut connection).await > before + 3_000_000
    })
    .await;
    let set: String = connection.get("umbel:gen").await.expect("an id");
    stage.redis.kill();
    stage.redis.start_again().await;
    says(&stage, "back", "BrokerDataLost", ("True", "DataWentBack")).await;
    has_event(&stage, "DataWentBack").await;
    let mut connection = stage.redis.connection().await;
    assert_eq!(connection.get("umbel:gen").await, Ok(set), "by its name it is the same");

    // Another leader knows it by what the last one wrote down.
    drop(worker);
    let told = status(&stage, "back").await.broker.map_or(0, |broker| broker.token);
    assert!(told > 0);
    drop(operator);
    let change = json!({ "status": { "conditions": [] } });
    stage
        .queues()
        .patch_status("back", &PatchParams::default(), &Patch::Merge(change))
        .await
        .expect("its conditions are forgotten");
    let _: () = connection.set("umbel:fence", told - 1).await.expect("set");
    let _next = stage.operator(&[], &[]);
    says(&stage, "back", "BrokerDataLost", ("True", "DataWentBack")).await;
}

/// A new password reaches the operator and the workers within 30 s, without anybody's restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_secret_is_used_within_thirty_seconds() {
    let stage = Stage::start().await;
    let _kubelet = Kubelet::start(&stage.client, &stage.broker, "one").await;
    let _operator = stage.operator(&[], &[]);
    say(&stage, "secret", json!({})).await;
    stage.pool("secret", 2, json!({ "mode": "Manual" })).await;
    stage.ready("secret", 1).await;
    let pod = stage.pods_of("secret").await.remove(0);
    stage.redis.set("requirepass", "new").await;
    // Who is connected stays so; a new connection needs the new one.
    let url = stage.redis.url().replace("redis://", "redis://:new@");
    let mut connection = redis::Client::open(url.as_str())
        .expect("an address")
        .get_multiplexed_async_connection()
        .await
        .expect("the new password is right");
    let _: () = redis::cmd("CLIENT")
        .arg("KILL")
        .arg("TYPE")
        .arg("normal")
        .arg("SKIPME")
        .arg("yes")
        .query_async(&mut connection)
        .await
        .expect("told");
    says(&stage, "secret", "Ready", ("False", "BrokerUnreachable")).await;
    let raw = message("secret", "after", Vec::new());
    let _: () = connection.lpush("secret", raw).await.expect("sent");
    let begin = std::time::Instant::now();
    stage.secret("redis", &url).await;
    eventually(LONG, "the worker runs what was sent", async || {
        connection.exists("celery-task-meta-after").await.unwrap_or(false)
    })
    .await;
    says(&stage, "secret", "Ready", ("True", "Serving")).await;
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    let now = stage.pods_of("secret").await;
    assert_eq!(now.len(), 1);
    assert_eq!(now[0].uid(), pod.uid(), "nobody was restarted");
}
