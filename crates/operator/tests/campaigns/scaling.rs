//! Steps down under load by the thousand, while everything around them misbehaves. No pod may go that holds a task, no
//! task may be lost, and none may run twice. The negative control on the same stage shows that it could be otherwise.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::task::{JoinSet, LocalSet};
use umbel_testkit::{Chance, History, Process, Signal, send_signal};

use crate::common::lag::{Control, Noise, Stop, control};
use crate::common::{Kubelet, LONG, Stage};
use crate::{minutes, number};

/// Pools that shrink and grow beside each other, by names that say so.
const POOLS: usize = 8;
/// The size that a pool grows back to.
const WHOLE: u32 = 4;
/// The rest of the noise between two changes: it must not take the machine from everybody else.
const REST: Duration = Duration::from_millis(250);
/// Between two looks at a pool: eight pools and a short one keep an API server busy.
const LOOK: Duration = Duration::from_millis(250);
/// A step down may wait for tasks, for a pod that is not Ready, for a whole rollout, and for a controller that sleeps.
const PATIENT: Duration = Duration::from_secs(300);

/// What was done to the stage.
#[derive(Default)]
struct Faults {
    lags: AtomicUsize,
    unready: AtomicUsize,
    costs: AtomicUsize,
    rollouts: AtomicUsize,
}

struct Field {
    stage: Arc<Stage>,
    kubelet: Kubelet,
    operator: Process,
    history: History,
    faults: Faults,
    stop: Stop,
    tasks: PathBuf,
    wanted: usize,
    until: Instant,
    begun: AtomicUsize,
    done: AtomicUsize,
    /// Shall all times be the default ones?
    is_slow: bool,
}

impl Field {
    async fn start(wanted: usize, is_slow: bool) -> Field {
        let stage = Arc::new(Stage::start().await);
        let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
        let interval: &[_] = if is_slow {
            &[("UMBEL_SAMPLE_INTERVAL", "1s")]
        } else {
            &[]
        };
        let operator = stage.operator(&[], interval);
        let tasks = Path::new(env!("CARGO_BIN_EXE_umbel-operator")).with_file_name("examples/test_tasks");
        assert!(tasks.exists(), "cargo build -p umbel-worker --example test_tasks");
        Field {
            stage,
            kubelet,
            operator,
            history: History::new(),
            faults: Faults::default(),
            stop: Stop::default(),
            tasks,
            wanted,
            until: minutes(),
            begun: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            is_slow,
        }
    }

    async fn queue(&self, name: &str) {
        if !self.is_slow {
            return self.stage.queue(name).await;
        }
        let spec = json!({ "broker": { "redis": { "urlSecretRef": { "name": "redis", "key": "url" } } } });
        let fields = json!({ "spec": spec });
        self.stage
            .apply("umbel.dev/v1alpha1", "TaskQueue", "taskqueues", name, fields)
            .await;
    }

    /// The pool's workers write what they run into the history.
    async fn pool(&self, name: &str, replicas: u32, version: u32) {
        let (variable, folder) = self.history.environment();
        let template = json!({ "spec": { "containers": [{
            "name": "worker", "image": "w", "command": [self.tasks.to_str().expect("a path of text")],
            "env": [{ "name": variable, "value": folder }, { "name": "VERSION", "value": version.to_string() }],
        }] } });
        let spec = json!({
            "queues": [{ "name": name }], "concurrency": 1, "replicas": replicas, "template": template,
            "scaling": { "mode": "Manual" },
        });
        self.stage.pool_of(name, spec).await;
    }

    async fn is_whole(&self, pool: &str, size: u32) -> bool {
        let seen = self.stage.pools().get(pool).await.expect("it is there");
        let generation = seen.metadata.generation;
        let Some(status) = seen.status.filter(|status| status.observed_generation == generation) else {
            return false;
        };
        status.ready_replicas == size
            && status.replicas == size
            && self.stage.size(pool).await == i32::try_from(size).ok()
            && self.stage.deployments_of(pool).await.len() == 1
    }

    async fn settles(&self, pool: &str, size: u32) {
        let begin = Instant::now();
        while !self.is_whole(pool, size).await {
            assert!(begin.elapsed() < PATIENT, "{pool} has not {size} ready pods of {size}");
            tokio::time::sleep(LOOK).await;
        }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Work for a pool: there is always some, and never much.
async fn load(field: &Field, queue: &str, mut chance: Chance) {
    let names = [queue.to_owned()];
    while !field.is_over() {
        let sample = field.stage.broker.depths(&names).await.expect("the broker answers");
        let waiting = sample.queues[0].as_ref().map_or(0, |depth| depth.waiting);
        if waiting < 2 {
            let seconds = chance.time(50, 1200).as_secs_f64();
            let ids = field.stage.send("test.work", queue, 1, seconds).await;
            field.history.enqueued(ids.iter().map(String::as_str));
        }
        chance.pause(100, 500).await;
    }
}

/// Stops the controller-manager at random.
async fn lag(field: &Field, mut chance: Chance) {
    let manager = field.stage.plane.pid("kube-controller-manager");
    while !field.is_over() {
        chance.pause(300, 2500).await;
        send_signal(manager, Signal::Stop);
        chance.pause(200, 3000).await;
        send_signal(manager, Signal::Cont);
        field.faults.lags.fetch_add(1, Ordering::Relaxed);
    }
}

/// Somebody who makes the busy pods the cheapest, and the idle ones dear.
async fn costs(field: &Field, pools: &[String], mut chance: Chance) {
    let other = PatchParams {
        field_manager: Some("somebody".into()),
        ..PatchParams::default()
    };
    while !field.is_over() {
        chance.pause(200, 1000).await;
        let records = field.stage.broker.workers().await.expect("the broker answers");
        let pool: &String = chance.of(pools);
        let pods = field.stage.pods_of(pool).await;
        if pods.is_empty() {
            continue;
        }
        let pod = chance.of(&pods);
        let uid = pod.uid().unwrap_or_default();
        let is_busy = records
            .iter()
            .any(|record| record.worker.starts_with(&uid) && record.held > 0);
        let cost = if is_busy { -100_000 } else { 100_000 };
        let body = json!({ "metadata": { "annotations": {
            "controller.kubernetes.io/pod-deletion-cost": cost.to_string(),
        } } });
        let written = field
            .stage
            .pods()
            .patch(&pod.name_any(), &other, &Patch::Merge(body))
            .await;
        field
            .faults
            .costs
            .fetch_add(usize::from(written.is_ok()), Ordering::Relaxed);
    }
}

/// One of a pool's pods is not Ready for a while, a busy one where there is one: the controller would take it first.
async fn unready(field: &Field, pool: &str, mut chance: Chance) {
    let records = field.stage.broker.workers().await.expect("the broker answers");
    let pods = field.stage.pods_of(pool).await;
    let is_busy = |uid: &str| {
        let mut mine = records.iter().filter(|record| record.worker.starts_with(uid));
        mine.any(|record| record.held > 0)
    };
    let busy = pods.iter().find(|pod| is_busy(&pod.uid().unwrap_or_default()));
    let Some(pod) = busy.or(pods.first()).map(ResourceExt::name_any) else {
        return;
    };
    field.kubelet.show_unready(&pod, true);
    field.faults.unready.fetch_add(1, Ordering::Relaxed);
    chance.pause(1000, 6000).await;
    field.kubelet.show_unready(&pod, false);
}

/// Takes a pool down and up until all steps are done.
async fn shrink(field: &Field, pool: &str, mut chance: Chance) {
    let (mut size, mut version) = (WHOLE, 1);
    while Instant::now() < field.until && field.begun.load(Ordering::Relaxed) < field.wanted {
        field.begun.fetch_add(1, Ordering::Relaxed);
        size = 1 + u32::try_from(chance.below(u64::from(size) - 1)).unwrap_or(0);
        if chance.one_in(12) {
            version += 1;
            field.faults.rollouts.fetch_add(1, Ordering::Relaxed);
        }
        let (is_unready, branch) = (chance.one_in(4), chance.branch());
        let trouble = async {
            if is_unready {
                unready(field, pool, branch).await;
            }
        };
        let step = async {
            field.pool(pool, size, version).await;
            field.settles(pool, size).await;
        };
        tokio::join!(trouble, step);
        field.done.fetch_add(1, Ordering::Relaxed);
        if size == 1 || chance.one_in(2) {
            size = WHOLE;
            field.pool(pool, size, version).await;
            field.settles(pool, size).await;
        }
    }
}

/// What it came to.
struct Outcome {
    took: Duration,
    begun: usize,
    downs: usize,
    drained: usize,
    wrong: usize,
    enqueued: usize,
    lost: usize,
    rerun: usize,
    counted_wrong: u64,
    control: Control,
}

impl Outcome {
    fn is_good(&self) -> bool {
        let nothing = self.wrong + self.lost + self.rerun == 0 && self.counted_wrong == 0;
        nothing && self.downs > 0 && self.downs == self.begun && self.drained >= self.downs && self.control.busy > 0
    }
}

async fn run(wanted: usize, seed: u64, is_slow: bool) -> (Outcome, Arc<Field>) {
    let mut chance = Chance::new(seed);
    let field = Arc::new(Field::start(wanted, is_slow).await);
    let pools: Vec<String> = (0..POOLS).map(|number| format!("pool-{number}")).collect();
    for pool in &pools {
        field.queue(pool).await;
        field.pool(pool, WHOLE, 1).await;
    }
    for pool in &pools {
        field.settles(pool, WHOLE).await;
    }
    let began = Instant::now();
    let noise = Noise::start(&field.stage.client, REST).await;
    let mut weather = JoinSet::new();
    let mut steps = JoinSet::new();
    for pool in &pools {
        let (one, queue, branch) = (field.clone(), pool.clone(), chance.branch());
        weather.spawn_local(async move { load(&one, &queue, branch).await });
        let (one, pool, branch) = (field.clone(), pool.clone(), chance.branch());
        steps.spawn_local(async move { shrink(&one, &pool, branch).await });
    }
    let (one, branch) = (field.clone(), chance.branch());
    weather.spawn_local(async move { lag(&one, branch).await });
    let (one, all, branch) = (field.clone(), pools.clone(), chance.branch());
    weather.spawn_local(async move { costs(&one, &all, branch).await });

    let mut told = 0;
    loop {
        let minute = tokio::time::timeout(Duration::from_secs(60), steps.join_next());
        match minute.await {
            Ok(None) => break,
            // What a step that hangs has to say was printed.
            Ok(Some(_)) => {}
            Err(_) => {
                let done = field.done.load(Ordering::Relaxed);
                println!(
                    "{} s: {done} steps down, {} in this minute",
                    began.elapsed().as_secs(),
                    done - told
                );
                told = done;
            }
        }
    }
    let took = began.elapsed();
    field.stop.store(true, Ordering::Relaxed);
    while weather.join_next().await.is_some() {}
    noise.end().await;
    let mut counted_wrong = 0;
    for pool in &pools {
        field.stage.drained(pool, LONG).await;
        let counters = field.stage.status(pool).await.counters.unwrap_or_default();
        counted_wrong += counters.busy_stopped + counters.wrong_victims;
    }
    let verdict = field.history.verdict(&[]);
    println!("{verdict}");
    let removals = field.kubelet.removals();
    let is_wrong = |one: &&crate::common::kubelet::Removal| one.held > 0 || (one.admitted && one.open);
    for one in removals.iter().filter(is_wrong) {
        println!("wrong: {one:?}");
    }
    // On the same stage, with as much noise.
    let is_enough = |seen: &Control| seen.trials >= 60 || (seen.trials >= 20 && seen.busy > 0);
    let control = control(&field.stage, &field.kubelet, REST, is_enough).await;
    let outcome = Outcome {
        took,
        begun: field.begun.load(Ordering::Relaxed),
        downs: field.done.load(Ordering::Relaxed),
        drained: removals.iter().filter(|one| one.admitted).count(),
        wrong: removals.iter().filter(is_wrong).count(),
        enqueued: verdict.enqueued,
        lost: verdict.lost.len() + verdict.unknown.len(),
        rerun: verdict.rerun,
        counted_wrong,
        control,
    };
    (outcome, field)
}

fn table(outcome: &Outcome, faults: &Faults, seed: u64) {
    let count = |one: &AtomicUsize| one.load(Ordering::Relaxed);
    println!(
        "\nseed {seed}\n{:>8} {:>6} {:>8} {:>6} {:>9} {:>6} {:>8} {:>6} {:>6} {:>6} {:>6}",
        "seconds", "lags", "unready", "costs", "rollouts", "downs", "drained", "busy", "tasks", "lost", "rerun"
    );
    println!(
        "{:>8} {:>6} {:>8} {:>6} {:>9} {:>6} {:>8} {:>6} {:>6} {:>6} {:>6}",
        outcome.took.as_secs(),
        count(&faults.lags),
        count(&faults.unready),
        count(&faults.costs),
        count(&faults.rollouts),
        outcome.downs,
        outcome.drained,
        outcome.wrong,
        outcome.enqueued,
        outcome.lost,
        outcome.rerun
    );
    let Control { trials, wrong, busy } = outcome.control;
    println!("control, mark and then lower: {trials} steps down, {wrong} wrong victims, {busy} busy pods removed");
}

/// `SCALE_DOWNS` steps down by the `SEED`, or as many as begin within `MINUTES`; with `DEFAULT_TIMES` at the default leases and sample interval.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make campaign-scaling"]
async fn no_step_down_removes_a_pod_that_works() {
    let wanted = usize::try_from(number("SCALE_DOWNS", 1000)).expect("a number of steps");
    let seed = number("SEED", 1);
    let is_slow = number("DEFAULT_TIMES", 0) > 0;
    let (outcome, field) = LocalSet::new().run_until(run(wanted, seed, is_slow)).await;
    table(&outcome, &field.faults, seed);
    assert!(outcome.is_good(), "BAD\n{}", field.operator.log());
}
