//! Faults of steps down, of stopping and of sizes, each brought about, with what must be observed. Others of them are in
//! `lag.rs`, `rollout.rs`, `scaling.rs` and `pool.rs`, and with the worker, by the same names.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::kubelet::MISSING;
use common::{Kubelet, LONG, Stage};
use kube::ResourceExt;
use kube::api::EvictParams;
use serde_json::{Value, json};
use umbel_broker::{
    Admission, Broker, Config, End, Fence, Gate, GateAnswer, Policy, QueueLists, Reserved, Reserver, Settlement,
    StepAnswer, TermAnswer, WorkerIdentity, WorkerRecord,
};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Event, History, Redis, Signal, eventually, send_signal, within};

const INSTALL: &str = "here";

fn fence(n: u64) -> Fence {
    Fence {
        install: INSTALL.into(),
        term: 1,
        n,
    }
}

async fn broker(redis: &Redis) -> Broker {
    let broker = Broker::connect(&Config::new(&redis.url())).await;
    broker.expect("the broker answers")
}

fn reserver(redis: &Redis, worker: &str) -> Reserver {
    let identity = WorkerIdentity {
        worker: worker.into(),
        install: INSTALL.into(),
        is_standalone: false,
    };
    let policies = vec![("q".into(), Policy::default())];
    Reserver::new(Config::new(&redis.url()), identity, policies, LONG, 1000)
}

/// One slot a pod on the queue of the same name, always so many pods.
async fn manual(stage: &Stage, pool: &str, replicas: u32, more: Value) {
    let mut spec = json!({
        "queues": [{ "name": pool }], "concurrency": 1, "replicas": replicas, "scaling": { "mode": "Manual" },
    });
    spec.as_object_mut()
        .expect("an object")
        .extend(more.as_object().expect("an object").clone());
    stage.pool_of(pool, spec).await;
}

/// A template whose workers write what they run into the history.
fn noted(history: &History) -> Value {
    let tasks = Path::new(env!("CARGO_BIN_EXE_umbel-operator")).with_file_name("examples/test_tasks");
    assert!(tasks.exists(), "cargo build -p umbel-worker --example test_tasks");
    let (variable, folder) = history.environment();
    json!({ "spec": { "containers": [{
        "name": "worker", "image": "w", "command": [tasks.to_str().expect("a path of text")],
        "env": [{ "name": variable, "value": folder }],
    }] } })
}

async fn work(stage: &Stage, history: &History, queue: &str, count: usize, seconds: f64) -> Vec<String> {
    let ids = stage.send("test.work", queue, count, seconds).await;
    history.enqueued(ids.iter().map(String::as_str));
    ids
}

/// Names of the pods whose workers hold a task.
async fn busy(stage: &Stage) -> Vec<String> {
    let records = stage.broker.workers().await.unwrap_or_default();
    let holders = records.iter().filter(|record| record.held > 0);
    holders
        .filter_map(|record| record.heartbeat.as_ref().map(|beat| beat.pod.clone()))
        .collect()
}

async fn open_workers(stage: &Stage) -> usize {
    let records = stage.broker.workers().await.unwrap_or_default();
    let is_open = |record: &&WorkerRecord| record.gate == Gate::Open && record.heartbeat.is_some();
    records.iter().filter(is_open).count()
}

async fn dead(stage: &Stage, queue: &str) -> u64 {
    let sample = stage.broker.depths(&[queue.to_owned()]).await;
    let sample = sample.expect("the broker answers");
    sample.queues[0].as_ref().expect("the queue is readable").dead
}

/// The gate is closed and the leases are counted in one step: either the worker has the message, and the drain says so,
/// or it has none, and gets none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s03_a_worker_takes_a_message_in_the_instant_of_its_drain() {
    let redis = Redis::start().await;
    let (here, leader) = (broker(&redis).await, broker(&redis).await);
    let lists = [QueueLists::new(here.keys(), "q")];
    let claimed = leader.claim_term(INSTALL, 1, "leader").await;
    assert_eq!(claimed.expect("it answers"), TermAnswer::Accepted);
    let mut worker = reserver(&redis, "w");
    let hello = worker.reserve(1, &lists, Vec::new).await.expect("it answers");
    assert!(matches!(hello, Reserved::Gate(_)), "{hello:?}");
    let (mut took, mut missed, mut waits) = (0, 0, false);
    for round in 0..1000_u64 {
        if !waits {
            here.publish("q", 0, &[b"m".to_vec()]).await.expect("published");
        }
        let opened = leader.open(&fence(2 * round + 1), "w").await.expect("it answers");
        assert_eq!(opened, GateAnswer::Done { held: 0 });
        let closing = fence(2 * round + 2);
        // Each is first on its wire in half of the rounds.
        let (reserved, drained) = if round % 2 == 0 {
            let drain = leader.drain(&closing, "w");
            tokio::join!(worker.reserve(1, &lists, Vec::new), drain)
        } else {
            let drain = leader.drain(&closing, "w");
            let (drained, reserved) = tokio::join!(drain, worker.reserve(1, &lists, Vec::new));
            (reserved, drained)
        };
        let drained = drained.expect("it answers");
        match reserved.expect("it answers") {
            Reserved::Batch(batch) => {
                assert_eq!((batch.taken.len(), drained), (1, GateAnswer::Done { held: 1 }));
                let end = Settlement {
                    lid: batch.taken[0].lid.clone(),
                    id: "m".into(),
                    task: "t".into(),
                    end: End::Ack,
                    result: None,
                    run: None,
                    outcome: "succeeded",
                    follow_ups: Vec::new(),
                };
                let lost = here.settle(10, &[end]).await.expect("it answers");
                assert!(lost.is_empty(), "its lease holds although its gate is closed");
                (took, waits) = (took + 1, false);
            }
            Reserved::Gate(_) => {
                assert_eq!(drained, GateAnswer::Done { held: 0 });
                (missed, waits) = (missed + 1, true);
            }
            Reserved::Busy => panic!("it is not asked for a suspect"),
        }
        let late = worker.reserve(1, &lists, Vec::new).await.expect("it answers");
        assert!(matches!(late, Reserved::Gate(_)), "drained is drained: {late:?}");
    }
    println!("{took} messages were taken before the drain, {missed} were not");
    assert!(took >= 20 && missed >= 20, "both must be met: {took}, {missed}");
}

/// Whoever says hello is nobody until he is admitted, whatever he asks for.
#[tokio::test]
async fn s20_a_replacement_that_reserves_before_it_is_admitted_gets_nothing() {
    let redis = Redis::start().await;
    let here = broker(&redis).await;
    let lists = [QueueLists::new(here.keys(), "q")];
    let claimed = here.claim_term(INSTALL, 1, "leader").await;
    assert_eq!(claimed.expect("it answers"), TermAnswer::Accepted);
    here.operator_heartbeat(INSTALL, 1, "{}").await.expect("it leads");
    here.publish("q", 0, &vec![b"m".to_vec(); 5]).await.expect("published");
    let mut worker = reserver(&redis, "new");
    let refused = async |worker: &mut Reserver| {
        let one = worker.reserve(1, &lists, Vec::new).await.expect("it answers");
        let suspect = worker.reserve_suspect(&lists, Vec::new).await.expect("it answers");
        assert!(matches!(one, Reserved::Gate(_)), "{one:?}");
        assert!(matches!(suspect, Reserved::Gate(_)), "{suspect:?}");
        let sample = here.depths(&["q".to_owned()]).await.expect("it answers");
        let depth = sample.queues[0].as_ref().expect("readable");
        assert_eq!((depth.waiting, depth.in_flight), (5, 0));
    };
    refused(&mut worker).await;
    let by_itself = here.admit_self(INSTALL, "new", "pool", 30).await.expect("it answers");
    assert_eq!(by_itself, Admission::Leader, "who leads admits");
    refused(&mut worker).await;

    // Nobody leads, and a step down is under way: it is the replacement of who was removed.
    let step = here.step(&fence(1), "pool", &["new".to_owned()]).await;
    assert!(
        matches!(step, Ok(StepAnswer::Workers(states)) if states == [(Some(Gate::New), 0)]),
        "the step is announced"
    );
    let mut connection = redis.connection().await;
    let beat: usize = connection
        .del(format!("umbel:hb:operator:{INSTALL}"))
        .await
        .expect("deleted");
    assert_eq!(beat, 1, "the leader was heard of until now");
    let by_itself = here.admit_self(INSTALL, "new", "pool", 30).await.expect("it answers");
    assert_eq!(by_itself, Admission::Step);
    refused(&mut worker).await;

    let opened = here.open(&fence(2), "new").await.expect("it answers");
    assert_eq!(opened, GateAnswer::Done { held: 0 });
    let taken = worker.reserve(5, &lists, Vec::new).await.expect("it answers");
    assert!(
        matches!(&taken, Reserved::Batch(batch) if batch.taken.len() == 5),
        "{taken:?}"
    );
}

/// The ReplicaSet controller would take it first: nobody is removed beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s05_a_busy_pod_that_is_not_ready_holds_the_step_down() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let history = History::new();
    let operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    let more = || json!({ "template": noted(&history) });
    manual(&stage, "jobs", 3, more()).await;
    stage.ready("jobs", 3).await;
    work(&stage, &history, "jobs", 1, 20.0).await;
    eventually(LONG, "one works", async || busy(&stage).await.len() == 1).await;
    let worker = busy(&stage).await.remove(0);
    kubelet.show_unready(&worker, true);
    stage.ready("jobs", 2).await;

    manual(&stage, "jobs", 1, more()).await;
    eventually(LONG, "it says why it waits", async || {
        let blocked = stage.condition("jobs", "ScaleDownBlocked").await.unwrap_or_default();
        let (_, _, says) = stage.condition("jobs", "ScalingActive").await.unwrap_or_default();
        (blocked.0.as_str(), blocked.1.as_str()) == ("True", "AdmittedPodNotReady")
            && says.contains(&format!("admitted pod {worker} is not Ready"))
    })
    .await;
    // It waits: the size is what it was, and the two idle pods are there.
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(3) {
        assert_eq!(stage.size("jobs").await, Some(3), "{}", operator.log());
        assert!(kubelet.removals().is_empty(), "{:#?}", kubelet.removals());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(history.total(Event::Done), 0, "all this while it worked");
    kubelet.show_unready(&worker, false);
    eventually(LONG, "the one that works is left", async || {
        let left = stage.pods_of("jobs").await;
        stage.size("jobs").await == Some(1) && left.len() == 1 && left[0].name_any() == worker
    })
    .await;
    eventually(LONG, "its task ends", async || history.total(Event::Done) == 1).await;
    let wrong = kubelet.removals().into_iter().filter(|one| one.held > 0).count();
    assert_eq!((wrong, history.total(Event::Started)), (0, 1), "{}", operator.log());
}

/// What no budget shields may be evicted while it works: its task is handed back, uncharged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s08_an_evicted_pod_hands_its_task_back() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let history = History::new();
    let operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    let more = json!({ "template": noted(&history), "drain": { "gracePeriod": "4s" } });
    manual(&stage, "jobs", 1, more).await;
    stage.ready("jobs", 1).await;
    let id = work(&stage, &history, "jobs", 1, 8.0).await.remove(0);
    eventually(LONG, "it works", async || history.count(Event::Started, &id) == 1).await;
    let pod = stage.pods_of("jobs").await.remove(0).name_any();
    let eviction = EvictParams::default();
    let granted = stage.pods();
    let granted = granted.evict(&pod, &eviction);
    within(LONG, "the eviction", granted).await.expect("it is granted");
    eventually(LONG, "it is gone", async || {
        stage.pods().get_opt(&pod).await.expect("it answers").is_none()
    })
    .await;
    let held = kubelet
        .removals()
        .into_iter()
        .find(|one| one.pod == pod)
        .map(|one| one.held);
    assert!(held.is_some_and(|held| held > 0), "it worked\n{}", operator.log());
    eventually(LONG, "the next one does it", async || {
        history.count(Event::Done, &id) == 1
    })
    .await;
    assert_eq!(history.count(Event::Started, &id), 2);
    let mut connection = stage.redis.connection().await;
    assert_eq!(connection.hlen("umbel:att").await, Ok(0), "nobody is charged");
}

/// A node is cut off with a worker in the middle of a task. Its lease returns the work, and when the node is back the
/// worker learns that the run is not its own any more before it does anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s14_a_lost_nodes_work_is_done_elsewhere_and_its_zombie_is_fenced() {
    let stage = Stage::start_with(&[
        "--cm-arg=--node-monitor-grace-period=12s",
        "--cm-arg=--node-monitor-period=1s",
        "--apiserver-arg=--default-not-ready-toleration-seconds=1",
        "--apiserver-arg=--default-unreachable-toleration-seconds=1",
    ])
    .await;
    let lost = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let history = History::new();
    let operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    manual(&stage, "jobs", 1, json!({ "template": noted(&history) })).await;
    stage.ready("jobs", 1).await;
    let pod = stage.pods_of("jobs").await.remove(0).name_any();
    let _other = Kubelet::start(&stage.client, &stage.broker, "node-2").await;
    let id = work(&stage, &history, "jobs", 1, 5.0).await.remove(0);
    eventually(LONG, "it runs", async || history.total(Event::Started) == 1).await;
    let zombie = lost.pid(&pod).expect("it runs");
    let cut = Instant::now();
    lost.lose();
    send_signal(zombie, Signal::Stop);

    eventually(LONG * 2, "another worker does it", async || {
        history.count(Event::Done, &id) == 1
    })
    .await;
    println!("the work of a lost node was done after {:?}", cut.elapsed());
    assert!(
        cut.elapsed() >= Duration::from_secs(10),
        "not before its lease had ended"
    );
    let pods = stage.pods_of("jobs").await;
    let gone = pods
        .iter()
        .find(|one| one.name_any() == pod)
        .expect("no kubelet removes it");
    assert!(gone.metadata.deletion_timestamp.is_some(), "its node is given up");
    stage.ready("jobs", 1).await;

    send_signal(zombie, Signal::Cont);
    let more = work(&stage, &history, "jobs", 10, 0.1).await;
    eventually(LONG, "what comes then is done", async || {
        history.verdict(&[]).lost.is_empty()
    })
    .await;
    stage.drained("jobs", LONG).await;
    let verdict = history.verdict(&[]);
    assert_eq!(
        (verdict.stale.len(), verdict.unknown.len(), dead(&stage, "jobs").await),
        (0, 0, 0),
        "{verdict}\n{}",
        operator.log()
    );
    assert_eq!(
        (history.count(Event::Started, &id), history.count(Event::Done, &id)),
        (2, 1)
    );
    assert!(more.iter().all(|id| history.count(Event::Done, id) == 1));
}

/// A leader ends between the drain of a pod and its deletion. The next one opens it again where it is wanted after all,
/// and removes it where it is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s15_a_controller_that_dies_between_drain_and_delete_leaves_nobody_idle() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let dies = async |name: &str| {
        let mut leader = stage.operator(&["--id", name], &[("UMBEL_FAILPOINT", "before-delete:abort")]);
        assert!(!leader.wait(LONG * 2).await.success(), "{}", leader.log());
        assert_eq!(open_workers(&stage).await, 1, "one is drained\n{}", leader.log());
        assert_eq!(stage.pods_of("jobs").await.len(), 2, "and there");
    };
    stage.queue("jobs").await;
    manual(&stage, "jobs", 2, json!({})).await;
    let first = stage.operator(&["--id", "first"], &[]);
    stage.ready("jobs", 2).await;
    drop(first);
    manual(&stage, "jobs", 1, json!({})).await;
    dies("second").await;
    manual(&stage, "jobs", 2, json!({})).await;
    let third = stage.operator(&["--id", "third"], &[]);
    eventually(LONG, &format!("it is opened again\n{}", third.log()), async || {
        open_workers(&stage).await == 2
    })
    .await;
    assert!(kubelet.removals().is_empty());
    stage.ready("jobs", 2).await;
    drop(third);

    manual(&stage, "jobs", 1, json!({})).await;
    dies("fourth").await;
    let last = stage.operator(&["--id", "last"], &[]);
    eventually(LONG * 2, &format!("the step is finished\n{}", last.log()), async || {
        stage.size("jobs").await == Some(1) && stage.pods_of("jobs").await.len() == 1 && open_workers(&stage).await == 1
    })
    .await;
    let removals = kubelet.removals();
    assert!(removals.iter().all(|one| one.held == 0 && !one.open), "{removals:#?}");
}

/// No leader follows one that died in the middle of a step: the drained worker opens its own gate within two minutes. Of
/// these, the 90 s that an announced step holds it back are skipped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s15_a_drained_worker_works_again_when_no_controller_comes() {
    let stage = Stage::start_on(&[], Redis::with_clock(&[])).await;
    let _kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    stage.queue("jobs").await;
    manual(&stage, "jobs", 2, json!({})).await;
    let first = stage.operator(&["--id", "first"], &[]);
    stage.ready("jobs", 2).await;
    drop(first);
    manual(&stage, "jobs", 1, json!({})).await;
    let mut leader = stage.operator(&["--id", "second"], &[("UMBEL_FAILPOINT", "before-delete:abort")]);
    assert!(!leader.wait(LONG * 2).await.success(), "{}", leader.log());
    assert_eq!(open_workers(&stage).await, 1, "one is drained");
    stage.redis.set_clock(90);
    eventually(Duration::from_secs(90), "it has admitted itself", async || {
        open_workers(&stage).await == 2
    })
    .await;
    stage.send_sleeps("jobs", 2, 3.0).await;
    eventually(LONG, "and works", async || busy(&stage).await.len() == 2).await;
    stage.drained("jobs", LONG).await;
}

/// A message comes at every instant of the way to zero, and is picked up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s16_a_message_that_comes_in_the_instant_of_scaling_to_zero_is_picked_up() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let history = History::new();
    let operator = stage.operator(&[], &[]);
    stage.queue("mail").await;
    let down = json!({ "stabilization": "0s", "cooldownToZero": "1s" });
    let spec = json!({
        "queues": [{ "name": "mail" }], "concurrency": 1, "template": noted(&history),
        "scaling": { "maxReplicas": 1, "down": down },
    });
    stage.pool_of("mail", spec).await;
    work(&stage, &history, "mail", 1, 0.0).await;
    let all_done = async || eventually(LONG, "it is done", async || history.verdict(&[]).lost.is_empty()).await;
    all_done().await;
    let is_drained = async || {
        let records = stage.broker.workers().await.expect("the broker answers");
        records.iter().all(|record| record.gate != Gate::Open)
    };
    let is_deleted = async || {
        let pods = stage.pods_of("mail").await;
        pods.iter().all(|pod| pod.metadata.deletion_timestamp.is_some())
    };
    let instants = ["soon", "drained", "deleted", "zero", "gone"];
    let (mut took, mut met) = (Vec::new(), 0);
    for round in 0..10 {
        let instant = instants[round % instants.len()];
        let done = Instant::now();
        eventually(
            LONG,
            &format!("the pool is {instant}\n{}", operator.log()),
            async || {
                match instant {
                    // Around the end of the cooldown.
                    "soon" => done.elapsed() > Duration::from_millis(900 + 60 * round as u64),
                    "drained" => is_drained().await,
                    "deleted" => is_deleted().await,
                    "zero" => stage.size("mail").await == Some(0),
                    _ => stage.pods_of("mail").await.is_empty() && stage.size("mail").await == Some(0),
                }
            },
        )
        .await;
        met += usize::from(stage.size("mail").await != Some(0));
        let sent = Instant::now();
        work(&stage, &history, "mail", 1, 0.0).await;
        all_done().await;
        took.push((instant, sent.elapsed().as_millis()));
    }
    println!("picked up and done, by the instant, in ms: {took:?}; {met} came before the size was 0");
    assert!(met >= 2, "no message came on the way: {took:?}");
    assert_eq!(history.verdict(&[]).rerun, 0);
    assert!(kubelet.removals().iter().all(|one| one.held == 0), "{}", operator.log());
}

/// Neither an outage nor a key that cannot be read is an empty queue, or a full one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s17_what_cannot_be_read_holds_the_size() {
    let mut stage = Stage::start_on(&[], Redis::durable()).await;
    let _kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    let down = json!({ "stabilization": "0s", "cooldownToZero": "0s" });
    stage.pool("jobs", 1, json!({ "maxReplicas": 6, "down": down })).await;
    let is_held = async |stage: &Stage| {
        eventually(LONG, &format!("it says so\n{}", operator.log()), async || {
            let (is, why, _) = stage.condition("jobs", "ScalingActive").await.unwrap_or_default();
            (is.as_str(), why.as_str()) == ("False", "BrokerUnreadable")
        })
        .await;
        let size = stage.size("jobs").await.expect("it is there");
        assert!((2..6).contains(&size), "{size} pods\n{}", operator.log());
        // Longer than ten samples, each of which would change it.
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(4) {
            assert_eq!(stage.size("jobs").await, Some(size), "{}", operator.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    stage.send_sleeps("jobs", 3, 5.0).await;
    eventually(LONG, "they run", async || busy(&stage).await.len() == 3).await;
    stage.redis.kill();
    is_held(&stage).await;
    stage.redis.start_again().await;
    let is_zero = async |stage: &Stage| {
        eventually(LONG * 2, &format!("it is read again\n{}", operator.log()), async || {
            stage.size("jobs").await == Some(0)
        })
        .await;
    };
    is_zero(&stage).await;

    stage.send_sleeps("jobs", 2, 5.0).await;
    eventually(LONG, "both run", async || busy(&stage).await.len() == 2).await;
    let mut connection = stage.redis.connection().await;
    let _: () = connection.set("jobs", "no list").await.expect("set");
    is_held(&stage).await;
    eventually(LONG, "nobody has anything to do", async || {
        busy(&stage).await.is_empty()
    })
    .await;
    is_held(&stage).await;
    let _: () = connection.del("jobs").await.expect("deleted");
    is_zero(&stage).await;
}

/// Work comes and goes in a square wave. Pods stay pending here: what is looked at is the size alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s18_a_load_that_flaps_changes_the_size_once() {
    let stage = Stage::start().await;
    let operator = stage.operator(&[], &[]);
    for (name, down) in [
        ("calm", json!({ "stabilization": "30s" })),
        ("nervous", json!({ "stabilization": "0s", "cooldownToZero": "0s" })),
    ] {
        stage.queue(name).await;
        stage.pool(name, 1, json!({ "maxReplicas": 4, "down": down })).await;
    }
    let sizes = async |calm: i32, nervous: i32| {
        let what = format!("sizes {calm} and {nervous}\n{}", operator.log());
        eventually(LONG, &what, async || {
            (stage.size("calm").await, stage.size("nervous").await) == (Some(calm), Some(nervous))
        })
        .await;
    };
    let generation = async |pool: &str| {
        let deployment = stage.deployment(pool).await.expect("it is there");
        deployment.metadata.generation.expect("it has one")
    };
    sizes(0, 0).await;
    let before = (generation("calm").await, generation("nervous").await);
    let mut connection = stage.redis.connection().await;
    for _ in 0..6 {
        for pool in ["calm", "nervous"] {
            stage.send_sleeps(pool, 10, 1.0).await;
        }
        sizes(4, 4).await;
        let _: () = connection.del(&["calm", "nervous"]).await.expect("deleted");
        // The one that is not held shows that the end of the work was seen.
        sizes(4, 0).await;
    }
    let after = (generation("calm").await, generation("nervous").await);
    assert_eq!(after.0 - before.0, 1, "one change of the calm pool\n{}", operator.log());
    assert!(
        after.1 - before.1 >= 12,
        "the nervous one followed: {before:?}, {after:?}"
    );
}

/// Pods that never become Ready are asked for once, not again and again, and what they shall do is shown as undone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s19_pods_that_never_become_ready_are_no_reason_for_more() {
    let stage = Stage::start().await;
    let _kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    let pool = async |image: &str| {
        let template = json!({ "spec": { "containers": [{ "name": "worker", "image": image }] } });
        let down = json!({ "stabilization": "0s", "cooldownToZero": "1s" });
        let scaling = json!({ "maxReplicas": 3, "down": down });
        let spec =
            json!({ "queues": [{ "name": "jobs" }], "concurrency": 1, "template": template, "scaling": scaling });
        stage.pool_of("jobs", spec).await;
    };
    pool(MISSING).await;
    stage.send_sleeps("jobs", 40, 0.01).await;
    eventually(
        LONG,
        &format!("it says what it lacks\n{}", operator.log()),
        async || {
            let (is, _, says) = stage.condition("jobs", "Ready").await.unwrap_or_default();
            let status = stage.status("jobs").await;
            let demand = status.demand.unwrap_or_default();
            let shown = (status.replicas, status.ready_replicas, demand.waiting);
            let is_named = says.contains("0 of 3 pods are ready; pod jobs-") && says.contains("ImagePullBackOff");
            is == "False" && is_named && shown == (3, 0, 40)
        },
    )
    .await;
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(3) {
        let status = stage.status("jobs").await;
        assert_eq!((stage.size("jobs").await, status.desired_replicas), (Some(3), 3));
        assert!(stage.pods_of("jobs").await.len() <= 3, "{}", operator.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    pool("w").await;
    stage.drained("jobs", LONG * 2).await;
}

/// A real autoscaler on the pool's Deployment instead of the pool.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s06_an_autoscaler_on_the_deployment_is_named_and_left_alone() {
    let stage = Stage::start_with(&["--cm-arg=--horizontal-pod-autoscaler-sync-period=1s"]).await;
    let operator = stage.operator(&[], &[]);
    stage.queue("jobs").await;
    manual(&stage, "jobs", 1, json!({})).await;
    eventually(LONG, "the size is ours", async || stage.size("jobs").await == Some(1)).await;
    let name = stage.deployment("jobs").await.expect("it is there").name_any();
    let metric = json!({ "type": "External", "external": { "metric": { "name": "none" }, "target": { "type": "Value", "value": "1" } } });
    let spec = json!({ "spec": {
        "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": name },
        "minReplicas": 3, "maxReplicas": 4, "metrics": [metric],
    } });
    let kind = "HorizontalPodAutoscaler";
    stage
        .apply("autoscaling/v2", kind, "horizontalpodautoscalers", "jobs", spec)
        .await;
    eventually(LONG * 2, &format!("it is named\n{}", operator.log()), async || {
        let (is, _, says) = stage.condition("jobs", "ForeignScaler").await.unwrap_or_default();
        is == "True" && says.contains("kube-controller-manager") && says.contains("stopped")
    })
    .await;
    let since = Instant::now();
    eventually(LONG, "the size is the other one's", async || {
        stage.size("jobs").await == Some(3)
    })
    .await;
    while since.elapsed() < Duration::from_secs(3) {
        assert_eq!(stage.size("jobs").await, Some(3), "nobody fights\n{}", operator.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
